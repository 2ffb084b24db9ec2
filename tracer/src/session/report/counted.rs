//! Growth of a heap that was counted and that no judged site explains: its blocks become more, and no window caught the calls that make them, or too few did.
//! Changes no figure.

use super::Traced;
use crate::{
    kernel::monotonic_ns,
    ledger::{Counted, Unexplained},
    report::{UnseenGrowth, Verdict},
    units::{blocks, bytes, duration, rate},
};

/// So many sizes that grow are named.
const MOST_SIZES: usize = 3;

/// Sites that explain less than this share of what a heap grows by leave the growth unexplained.
const EXPLAINED: f64 = 0.5;

/// It is called a leak when it was counted for so long, longer than a site's blocks need that were seen to stay, and is so many blocks of one size, fewer where
/// they are so many bytes, or of all sizes so many bytes.
const LEAK_AFTER_S: f64 = 60.0;
const LEAST_BLOCKS: f64 = 50.0;
const FEW_BLOCKS: f64 = 8.0;
const MUCH: f64 = 1_048_576.0;
const LEAST_BYTES: f64 = 65_536.0;

/// How fast the heap sites of a process grow, bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rates {
    /// Those that could be judged, whatever they are.
    pub(super) judged: f64,
    /// Those of which too little was seen.
    pub(super) unjudged: f64,
}

/// What the heap of a process grows by, beside what its judged sites explain.
pub(super) fn unseen(traced: &Traced, rates: Rates) -> Option<UnseenGrowth> {
    if traced.ended.is_some() {
        return None;
    }
    let windows = &traced.windows;
    let counted = windows.counted(&windows.cohorts, monotonic_ns())?;
    of_count(&counted, rates, traced.pid)
}

fn of_count(counted: &Counted, rates: Rates, pid: u32) -> Option<UnseenGrowth> {
    let of_sizes: f64 = counted
        .unexplained
        .iter()
        .map(Unexplained::bytes_per_s)
        .sum();
    let whole = if counted.heap.is_steady && rates.judged < EXPLAINED * counted.heap.bytes_per_s {
        counted.heap.bytes_per_s - rates.judged
    } else {
        0.0
    };
    let (per_s, what, is_enough) = if of_sizes >= whole {
        let objects: f64 = counted.unexplained.iter().map(|grown| grown.objects).sum();
        let bytes: f64 = counted.unexplained.iter().map(Unexplained::bytes).sum();
        let is_much = objects >= FEW_BLOCKS && bytes >= MUCH;
        let is_enough = objects >= LEAST_BLOCKS || is_much;
        (of_sizes, sizes(counted), is_enough)
    } else {
        let grown = counted.heap.bytes;
        let what = bytes(grown.max(0.0) as u64);
        let what = if rates.unjudged >= EXPLAINED * whole {
            what
        } else {
            format!("{what} in blocks of many sizes")
        };
        (whole, what, grown >= LEAST_BYTES)
    };
    let rate = rate(per_s).filter(|_| per_s > 0.0)?;
    let verdict = if is_enough && counted.over_s >= LEAK_AFTER_S {
        Verdict::Leaking
    } else {
        Verdict::WarmingUp
    };
    let whose = if rates.unjudged > 0.0 {
        "too few windows caught blocks of them to be sure whose they are"
    } else {
        "no window caught a block of them that stays"
    };
    let verdict_reason = format!(
        "its heap grew by {what} ({rate}), counted {} times in {}, and {whose}; `leakscope trace -p {pid} --tier exact --for 2m` sees each",
        counted.looks,
        duration(counted.over_s),
    );
    Some(UnseenGrowth {
        growth_bytes_per_s: per_s,
        looks: counted.looks,
        over_s: counted.over_s,
        verdict,
        verdict_reason,
    })
}

/// The sizes that grow most.
fn sizes(counted: &Counted) -> String {
    let mut sizes: Vec<&Unexplained> = counted.unexplained.iter().collect();
    sizes.sort_by(|one, other| other.bytes_per_s().total_cmp(&one.bytes_per_s()));
    let named: Vec<String> = sizes
        .iter()
        .take(MOST_SIZES)
        .map(|grown| {
            let number = blocks(grown.objects.round() as u64);
            let (least, most) = (bytes(grown.smallest()), bytes(grown.size));
            if least == most {
                format!("{number} of {most}")
            } else {
                format!("{number} of {least} to {most}")
            }
        })
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{Rates, UnseenGrowth, Verdict, of_count};
    use crate::ledger::{Counted, HeapGrowth, Unexplained};

    fn counted(objects: f64, heap_bytes_per_s: f64, over_s: f64) -> Counted {
        let unexplained = Unexplained {
            size: 112,
            objects,
            objects_per_s: objects / over_s,
        };
        Counted {
            unexplained: (objects > 0.0).then_some(unexplained).into_iter().collect(),
            heap: HeapGrowth {
                most: 0.0,
                bytes: heap_bytes_per_s * over_s,
                bytes_per_s: heap_bytes_per_s,
                is_steady: heap_bytes_per_s > 0.0,
            },
            looks: 8,
            over_s,
            ..Counted::default()
        }
    }

    fn verdict(counted: &Counted, judged: f64) -> Option<Verdict> {
        let rates = Rates {
            judged,
            unjudged: 0.0,
        };
        of_count(counted, rates, 7).map(|unseen: UnseenGrowth| unseen.verdict)
    }

    #[test]
    fn a_leak_of_a_few_blocks_a_second_that_no_window_caught_was_called_churn() {
        assert_eq!(
            verdict(&counted(874.0, 0.0, 85.0), 0.0),
            Some(Verdict::Leaking)
        );
        assert_eq!(
            verdict(&counted(516.0, 0.0, 50.0), 0.0),
            Some(Verdict::WarmingUp)
        );
        assert_eq!(
            verdict(&counted(12.0, 0.0, 85.0), 0.0),
            Some(Verdict::WarmingUp)
        );
        assert_eq!(verdict(&counted(0.0, 0.0, 85.0), 0.0), None);
    }

    #[test]
    fn blocks_of_one_size_that_a_site_shows_were_said_to_be_caught_by_no_window() {
        let rates = Rates {
            judged: 0.0,
            unjudged: 2_000.0,
        };
        let unseen = of_count(&counted(0.0, 2_010.0, 61.0), rates, 7).unwrap_or_default();
        assert_eq!(unseen.verdict, Verdict::Leaking);
        let reason = unseen.verdict_reason;
        assert!(reason.contains("too few windows caught"), "{reason}");
        assert!(!reason.contains("many sizes"), "{reason}");
    }

    #[test]
    fn blocks_of_512_kib_were_said_to_have_576() {
        let mut counted = counted(12.0, 0.0, 84.0);
        for grown in &mut counted.unexplained {
            grown.size = 576 << 10;
        }
        let unseen = of_count(&counted, Rates::default(), 7).unwrap_or_default();
        assert!(
            unseen
                .verdict_reason
                .contains("12 blocks of 512 KiB to 576 KiB"),
            "{}",
            unseen.verdict_reason
        );
        assert_eq!(unseen.verdict, Verdict::Leaking);
        assert!((unseen.growth_bytes_per_s - 544.0 * 1024.0 / 7.0).abs() < 1.0);
    }

    #[test]
    fn arrays_that_realloc_lengthens_were_called_churn_for_no_size_of_theirs_grows() {
        let growing = counted(0.0, 50_000.0, 85.0);
        assert_eq!(verdict(&growing, 0.0), Some(Verdict::Leaking));
        // The sites explain it.
        assert_eq!(verdict(&growing, 30_000.0), None);
    }
}
