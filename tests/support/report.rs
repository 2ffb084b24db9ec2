//! The JSON report by its contract, and the questions that the tests ask of it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::truth::Truth;

/// The whole report.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// The version of the contract.
    pub schema: u32,
    /// When, RFC 3339 in UTC.
    pub captured_at: String,
    /// How long was traced, seconds.
    pub duration_s: f64,
    /// How allocations were seen.
    pub tier: String,
    /// Why by this tier.
    pub tier_reason: String,
    /// Who was traced.
    pub processes: Vec<Process>,
    /// What survives, by stack.
    pub sites: Vec<Site>,
    /// What was lost, by cause.
    pub losses: BTreeMap<String, u64>,
    /// What it cost.
    pub overhead: Overhead,
}

/// A traced process.
#[derive(Clone, Debug, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// The evidence for its verdict, and what is not seen of it.
    pub verdict_reason: String,
    /// The kernel's name for it.
    pub comm: String,
    /// Its cgroup's path.
    pub cgroup: Option<String>,
    /// The allocators that were found in it.
    pub allocators: Vec<String>,
    /// Surviving bytes of all its sites.
    #[serde(default)]
    pub inuse_bytes: u64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// How fast that grows.
    pub rss_growth_bytes_per_s: f64,
    /// How it ended.
    #[serde(default)]
    pub ended: Option<Ended>,
    /// What else is to be said of it.
    #[serde(default)]
    pub exit_note: Option<String>,
    /// Its memory over time, the oldest first.
    pub memory_series: Vec<MemoryPoint>,
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Ended {
    /// By itself.
    pub exit_status: Option<u32>,
    /// By a signal.
    pub signal: Option<String>,
    /// For want of what memory.
    pub out_of_memory: Option<String>,
}

/// A process's memory at a time.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct MemoryPoint {
    /// Anonymous memory that is resident.
    pub anonymous_bytes: u64,
}

/// A stack and what survives of it.
#[derive(Clone, Debug, Deserialize)]
pub struct Site {
    /// The process.
    pub pid: u32,
    /// Surviving bytes.
    pub inuse_bytes: u64,
    /// Surviving blocks.
    pub inuse_objects: u64,
    /// All bytes ever allocated.
    pub alloc_bytes: u64,
    /// All blocks ever allocated.
    pub alloc_objects: u64,
    /// Lower bound of the 95 % interval.
    pub inuse_bytes_low: u64,
    /// Upper bound of the 95 % interval.
    pub inuse_bytes_high: u64,
    /// Age of the oldest surviving block.
    pub oldest_age_s: f64,
    /// How fast it grows.
    pub growth_bytes_per_s: f64,
    /// What it looks like.
    pub verdict: String,
    /// Why.
    pub verdict_reason: String,
    /// `heap`, `mapping` or `pages`.
    pub kind: String,
    /// What was mapped, where it is a mapping.
    pub mapping: Option<String>,
    /// Bytes of it that are address space alone.
    #[serde(default)]
    pub reserved_bytes: u64,
    /// Whether the stack reaches its true end.
    pub stack_complete: bool,
    /// What its blocks are, where that is known.
    #[serde(default)]
    pub types: Vec<SiteType>,
    /// Leaf first.
    pub frames: Vec<Frame>,
}

/// What blocks of a site are.
#[derive(Clone, Debug, Deserialize)]
pub struct SiteType {
    /// The type.
    pub name: String,
}

/// A frame of a stack.
#[derive(Clone, Debug, Deserialize)]
pub struct Frame {
    /// The function's name.
    pub function: Option<String>,
    /// The mapped file.
    pub module: Option<String>,
    /// Where in the module.
    pub offset: Option<u64>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it, from 1.
    pub line: Option<u32>,
    /// Whether the function was inlined into the next frame.
    pub inlined: bool,
    /// `native` and others.
    pub kind: String,
}

/// The cost of tracing.
#[derive(Clone, Debug, Deserialize)]
pub struct Overhead {
    /// Calls that were seen.
    pub probe_hits: u64,
    /// The share of the time that probes were attached.
    pub duty: f64,
    /// The share of the target's CPU time that went into probes.
    pub target_cpu_fraction: f64,
    /// What it was allowed to cost.
    pub budget: f64,
}

/// Figures of several sites together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Number of sites.
    pub sites: usize,
    /// Surviving bytes.
    pub bytes: u64,
    /// Surviving blocks.
    pub objects: u64,
    /// All bytes ever allocated.
    pub alloc_bytes: u64,
    /// All blocks ever allocated.
    pub alloc_objects: u64,
}

impl Sum {
    /// Adds a site.
    pub fn add(&mut self, site: &Site) {
        self.sites += 1;
        self.bytes += site.inuse_bytes;
        self.objects += site.inuse_objects;
        self.alloc_bytes += site.alloc_bytes;
        self.alloc_objects += site.alloc_objects;
    }
}

/// The functions that belong to an allocator, not to its caller.
const ALLOCATOR: [&str; 13] = [
    "malloc",
    // What musl's malloc is a weak alias of.
    "default_malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "free",
    "cfree",
    "operator new",
];

impl Frame {
    /// Whether this frame belongs to an allocator.
    #[must_use]
    pub fn is_allocator(&self) -> bool {
        let Some(name) = self.function.as_deref() else {
            return false;
        };
        let base = name
            .trim_start_matches("__libc_")
            .trim_start_matches("__GI___libc_")
            .trim_start_matches("__");
        let base = base
            .split(['@', '(', '['])
            .next()
            .unwrap_or(base)
            .trim_end();
        ALLOCATOR.contains(&base)
    }

    /// Whether this frame is the function of this plain name.
    #[must_use]
    pub fn is(&self, function: &str) -> bool {
        let Some(name) = self.function.as_deref() else {
            return false;
        };
        name.split('(').next() == Some(function)
    }
}

impl Site {
    /// The nearest frame that does not belong to an allocator.
    #[must_use]
    pub fn caller(&self) -> Option<&Frame> {
        self.frames.iter().find(|frame| !frame.is_allocator())
    }

    /// Whether the function of this name stands anywhere in the stack.
    #[must_use]
    pub fn contains(&self, function: &str) -> bool {
        self.frames.iter().any(|frame| frame.is(function))
    }

    /// The names of the frames, for messages.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.frames
            .iter()
            .map(|frame| frame.function.as_deref().unwrap_or("?"))
            .collect()
    }
}

impl Report {
    /// The losses that leave bytes or blocks uncounted or counted where they do not belong. Losses that only cut
    /// stacks short or tell of something late are not among them.
    #[must_use]
    pub fn byte_losses(&self) -> Vec<(&str, u64)> {
        self.losses
            .iter()
            .filter(|(name, count)| {
                // Of mappings, the kernel skips the program where it was preempted in another thread (Linux 7): that says nothing of
                // blocks, nor of which process it was. Tests of mappings compare them with the truth.
                let says_nothing = ["stack_deferred", "mapping_missed"];
                **count > 0
                    && !name.starts_with("unwind_")
                    && !says_nothing.contains(&name.as_str())
            })
            .map(|(name, count)| (name.as_str(), *count))
            .collect()
    }

    /// All sites of a process whose nearest frame outside the allocator is this function, together.
    #[must_use]
    pub fn called_by(&self, pid: u32, function: &str) -> Sum {
        self.sum(pid, |site| {
            site.caller().is_some_and(|frame| frame.is(function))
        })
    }

    /// All sites of a process with this function anywhere in the stack, together.
    #[must_use]
    pub fn below(&self, pid: u32, function: &str) -> Sum {
        self.sum(pid, |site| site.contains(function))
    }

    fn sum(&self, pid: u32, wanted: impl Fn(&Site) -> bool) -> Sum {
        let mut sum = Sum::default();
        for site in self
            .sites
            .iter()
            .filter(|site| site.pid == pid && wanted(site))
        {
            sum.add(site);
        }
        sum
    }

    /// Forgets that calls had begun when their process was attached to. Where one is caught while it allocates, that is no loss of those
    /// that waited.
    pub fn forget_earlier_calls(&mut self) {
        self.losses.remove("return_without_call");
    }

    /// What is wrong with the report in the light of the victim's truth: each line of it must be met to the byte by
    /// the sites that `found` chooses, and nothing may have been lost that concerns bytes. Empty: nothing is.
    #[must_use]
    pub fn differences(
        &self,
        truths: &[Truth],
        found: impl Fn(&Self, &Truth) -> Sum,
    ) -> Vec<String> {
        let mut differences: Vec<String> = self
            .byte_losses()
            .into_iter()
            .map(|(name, count)| format!("lost: {name} {count}"))
            .collect();
        if truths.is_empty() {
            differences.push("the victim stated no truth".to_owned());
        }
        for truth in truths {
            let sum = found(self, truth);
            let wrong = (sum.bytes, sum.objects) != (truth.bytes, truth.objects)
                || truth
                    .alloc_bytes
                    .is_some_and(|bytes| bytes != sum.alloc_bytes)
                || truth
                    .alloc_objects
                    .is_some_and(|objects| objects != sum.alloc_objects);
            if wrong {
                differences.push(format!("{truth:?} but the report says {sum:?}"));
            }
        }
        if !differences.is_empty() {
            for site in self.sites.iter().take(30) {
                let names = site.names();
                let leaf = names.get(..names.len().min(8)).unwrap_or_default();
                differences.push(format!(
                    "site of {}: {} B / {}: {}",
                    site.pid,
                    site.inuse_bytes,
                    site.inuse_objects,
                    leaf.join(" < ")
                ));
            }
        }
        differences
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::{Frame, Report};
    use crate::truth::Truth;

    fn frame(function: &str) -> Frame {
        serde_json::from_value(serde_json::json!({
            "function": function, "module": null, "offset": null, "file": null, "line": null,
            "inlined": false, "kind": "native"
        }))
        .unwrap()
    }

    fn report(loss: u64) -> Report {
        let site = |bytes: u64, names: &[&str]| {
            serde_json::json!({
                "pid": 5, "inuse_bytes": bytes, "inuse_objects": 1, "alloc_bytes": bytes, "alloc_objects": 1,
                "inuse_bytes_low": bytes, "inuse_bytes_high": bytes, "oldest_age_s": 0.0,
                "growth_bytes_per_s": 0.0, "verdict": "churn", "verdict_reason": "", "kind": "heap",
                "stack_complete": true,
                "frames": names.iter().map(|name| serde_json::json!({
                    "function": name, "module": null, "offset": null, "file": null, "line": null,
                    "inlined": false, "kind": "native"
                })).collect::<Vec<_>>()
            })
        };
        serde_json::from_value(serde_json::json!({
            "schema": 1, "captured_at": "", "duration_s": 1.0, "tier": "exact", "tier_reason": "",
            "processes": [],
            "sites": [site(10, &["malloc", "a", "main"]), site(5, &["malloc", "operator new(unsigned long)", "a"]),
                      site(2, &["calloc", "b", "a"])],
            "losses": { "live_table_full": loss, "unwind_fault": 3 },
            "overhead": { "probe_hits": 0, "duty": 1.0, "target_cpu_fraction": 0.0, "budget": 0.01 }
        }))
        .unwrap()
    }

    #[test]
    fn allocator_frames_are_told_from_callers() {
        for name in [
            "malloc",
            "__libc_malloc",
            "operator new(unsigned long)",
            "operator new[](unsigned long)",
        ] {
            assert!(frame(name).is_allocator(), "{name}");
        }
        for name in ["leak_malloc", "mallocate", "main"] {
            assert!(!frame(name).is_allocator(), "{name}");
        }
        assert!(frame("throw_deep(int, int)").is("throw_deep"));
    }

    #[test]
    fn sums_are_by_nearest_caller_or_by_any_frame() {
        let report = report(0);
        assert_eq!(report.called_by(5, "a").bytes, 15);
        assert_eq!(report.below(5, "a").bytes, 17);
        assert_eq!(report.called_by(6, "a").bytes, 0);
    }

    #[test]
    fn a_difference_and_a_loss_are_both_found() {
        let truth = |bytes| {
            vec![
                Truth::parse(&format!(
                    "{{\"function\":\"a\",\"bytes\":{bytes},\"objects\":2}}"
                ))
                .unwrap(),
            ]
        };
        let by_caller = |report: &Report, truth: &Truth| report.called_by(5, &truth.function);
        assert!(report(0).differences(&truth(15), by_caller).is_empty());
        assert!(!report(0).differences(&truth(16), by_caller).is_empty());
        assert!(!report(1).differences(&truth(15), by_caller).is_empty());
        assert!(!report(0).differences(&[], by_caller).is_empty());
    }
}
