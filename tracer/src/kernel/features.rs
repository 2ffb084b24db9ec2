//! What this kernel and this user allow, found by asking, never by a version.

use std::{fs, io, path::Path};

use super::{
    attach, clock::keep_clocks_ready, error::KernelError, follow::PAGE_FAULTS, link::LinkMode,
    tracefs::Tracefs,
};

/// A capability that tracing uses (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its number.
    pub bit: u32,
    /// Its name.
    pub name: &'static str,
    /// What it is needed for.
    pub purpose: &'static str,
    /// Whether nothing works without it.
    pub required: bool,
}

const SYS_PTRACE: u32 = 19;
const DAC_READ_SEARCH: u32 = 2;

/// `CAP_SYS_ADMIN`, which stands for several others.
const SYS_ADMIN: u32 = 21;

/// The capabilities in question.
const CAPABILITIES: [Capability; 5] = [
    Capability {
        bit: 39,
        name: "CAP_BPF",
        purpose: "loading the probe",
        required: true,
    },
    Capability {
        bit: 38,
        name: "CAP_PERFMON",
        purpose: "attaching to functions and tracepoints",
        required: true,
    },
    Capability {
        bit: SYS_PTRACE,
        name: "CAP_SYS_PTRACE",
        purpose: "/proc/PID/maps and root of other users' processes",
        required: false,
    },
    Capability {
        bit: DAC_READ_SEARCH,
        name: "CAP_DAC_READ_SEARCH",
        purpose: "files that only their owners may read",
        required: false,
    },
    Capability {
        bit: SYS_ADMIN,
        name: "CAP_SYS_ADMIN",
        purpose: "opening mapped files that were replaced (map_files), tracefs where it is not mounted, and telling huge pages from others",
        required: false,
    },
];

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Tracing works, with a drawback.
    Degraded,
    /// Tracing cannot work.
    Missing,
}

/// Something that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// The answer, for people.
    pub detail: String,
    /// What to do about it; empty where there is nothing to do.
    pub remedy: String,
}

impl Check {
    fn new(name: &str, verdict: Verdict, detail: String, remedy: &str) -> Self {
        Self {
            name: name.to_owned(),
            verdict,
            detail,
            remedy: remedy.to_owned(),
        }
    }
}

/// The effective capabilities of this process, as a bit mask.
///
/// # Errors
/// `/proc/self/status` cannot be read.
pub fn effective_capabilities() -> Result<u64, KernelError> {
    const PATH: &str = "/proc/self/status";
    let text = fs::read_to_string(PATH)
        .map_err(|source| KernelError::call(format!("cannot read {PATH}"), source))?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0))
}

/// Whether a capability is there; CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON (capabilities(7)).
fn has(effective: u64, capability: &Capability) -> bool {
    let bit = |number: u32| effective >> number & 1 == 1;
    bit(capability.bit) || (matches!(capability.bit, 38 | 39) && bit(SYS_ADMIN))
}

/// Refuses to go on without the capabilities that everything needs.
///
/// # Errors
/// Names what is missing.
pub fn require_capabilities() -> Result<(), KernelError> {
    let effective = effective_capabilities()?;
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|capability| capability.required && !has(effective, capability))
        .map(|capability| capability.name)
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(KernelError::Capabilities {
            missing: missing.join(" and "),
        })
    }
}

/// Refuses to go on where process ids are not those that the kernel reports: nothing that it says would be of the process asked for.
///
/// # Errors
/// This is another PID namespace than the machine's.
pub fn require_pids_of_the_machine() -> Result<(), KernelError> {
    match fs::read_link(PID_NAMESPACE) {
        Ok(link) if link != Path::new(INITIAL_PID_NAMESPACE) => Err(KernelError::PidNamespace {
            found: link.display().to_string(),
        }),
        _ => Ok(()),
    }
}

/// What Debian's and Ubuntu's kernels add to the levels that there are: from here on perf_event_open(2) is for CAP_SYS_ADMIN alone.
const FOR_ADMINISTRATORS: i64 = 3;

/// Why these kernels refuse to count and to trace with CAP_PERFMON alone; `None` where that is not the reason.
pub(super) fn refused_by_paranoia() -> Option<String> {
    let level = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?;
    paranoia(&level, effective_capabilities().ok()?)
}

fn paranoia(level: &str, effective: u64) -> Option<String> {
    const SETTING: &str = "kernel.perf_event_paranoid";
    let level: i64 = level.trim().parse().ok()?;
    let is_administrator = effective >> SYS_ADMIN & 1 == 1;
    (level >= FOR_ADMINISTRATORS && !is_administrator).then(|| {
        format!(
            "{SETTING} is {level}, and this kernel then lets nobody trace without CAP_SYS_ADMIN: add that capability, or run \
             `sysctl {SETTING}=2`"
        )
    })
}

/// Whether perf_event_open(2) is allowed, by which programs are tied to tracepoints.
fn check_perf_events() -> Check {
    const NAME: &str = "perf events";
    match keep_clocks_ready() {
        Ok(_) => Check::new(NAME, Verdict::Good, "allowed".to_owned(), ""),
        Err(error) => Check::new(
            NAME,
            Verdict::Missing,
            error.to_string(),
            "let leakscope call perf_event_open(2)",
        ),
    }
}

/// What this user lacks to read the files that processes of others map; nothing where nothing is missing.
#[must_use]
pub fn missing_to_read_files() -> Option<String> {
    let effective = effective_capabilities().unwrap_or(0);
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|capability| matches!(capability.bit, SYS_PTRACE | DAC_READ_SEARCH))
        .filter(|capability| !has(effective, capability))
        .map(|capability| format!("{} ({})", capability.name, capability.purpose))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "missing: {}; run as root, or give the binary what is missing (setcap)",
            missing.join(" and ")
        )
    })
}

/// Asks for everything that tracing needs, but loads nothing. With `links`, as if the kernel had no better kind of link.
#[must_use]
pub fn checks(links: Option<LinkMode>) -> Vec<Check> {
    vec![
        check_architecture(),
        check_capabilities(),
        check_perf_events(),
        check_btf(),
        check_pid_namespace(),
        check_tracefs(),
        check_page_faults(),
        check_uprobes(),
        check_links(links),
    ]
}

fn check_architecture() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Check::new(
        "kernel",
        Verdict::Good,
        format!("Linux {} on {}", release.trim(), std::env::consts::ARCH),
        "",
    )
}

fn check_capabilities() -> Check {
    const NAME: &str = "capabilities";
    let effective = match effective_capabilities() {
        Ok(effective) => effective,
        Err(error) => return Check::new(NAME, Verdict::Missing, error.to_string(), "mount /proc"),
    };
    let missing: Vec<&Capability> = CAPABILITIES
        .iter()
        .filter(|capability| !has(effective, capability))
        .collect();
    if missing.is_empty() {
        return Check::new(NAME, Verdict::Good, "all that are used".to_owned(), "");
    }
    let detail = missing
        .iter()
        .map(|capability| format!("no {} ({})", capability.name, capability.purpose))
        .collect::<Vec<_>>()
        .join(", ");
    let verdict = if missing.iter().any(|capability| capability.required) {
        Verdict::Missing
    } else {
        Verdict::Degraded
    };
    Check::new(
        NAME,
        verdict,
        detail,
        "run as root, or give the binary these capabilities (setcap)",
    )
}

fn check_btf() -> Check {
    const PATH: &str = "/sys/kernel/btf/vmlinux";
    const NAME: &str = "BTF";
    match fs::metadata(PATH) {
        Ok(metadata) => Check::new(
            NAME,
            Verdict::Good,
            format!("{PATH} ({} bytes)", metadata.len()),
            "",
        ),
        // The probe brings its own BTF, is not relocated against the kernel's, and calls no kernel function by its BTF id. Programs at
        // functions of the kernel need it; what stands in their place is said where mappings are.
        Err(error) => Check::new(
            NAME,
            Verdict::Good,
            format!(
                "{PATH}: {error}; not needed, the probe brings its own; mappings are seen at tracepoints"
            ),
            "",
        ),
    }
}

/// The inode of the initial PID namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The own one.
const PID_NAMESPACE: &str = "/proc/self/ns/pid";

fn check_pid_namespace() -> Check {
    const NAME: &str = "PID namespace";
    match fs::read_link(PID_NAMESPACE) {
        Ok(link) if link == Path::new(INITIAL_PID_NAMESPACE) => {
            Check::new(NAME, Verdict::Good, "the machine's own".to_owned(), "")
        }
        Ok(link) => Check::new(
            NAME,
            Verdict::Missing,
            format!(
                "{}: a container's; process ids here are not those that the kernel reports",
                link.display()
            ),
            "run leakscope in the machine's PID namespace (with containers: --pid=host)",
        ),
        Err(error) => Check::new(
            NAME,
            Verdict::Degraded,
            format!("{PID_NAMESPACE}: {error}"),
            "mount /proc",
        ),
    }
}

fn check_tracefs() -> Check {
    const NAME: &str = "tracefs";
    match Tracefs::open() {
        Ok(tracefs) => Check::new(NAME, Verdict::Good, tracefs.describe(), ""),
        // Where programs are tied to functions, which is tried when the probe is loaded, mappings do not need it.
        Err(error) => Check::new(
            NAME,
            Verdict::Degraded,
            format!(
                "{error}; without it only processes that run are traced (-p): no command, no --comm, --cgroup or --all"
            ),
            "",
        ),
    }
}

fn check_page_faults() -> Check {
    const NAME: &str = "page faults";
    const LOST: &str = "--tier growth shows mappings, but not where their pages were touched";
    let Ok(tracefs) = Tracefs::open() else {
        let detail = format!("no tracefs (see above): {LOST}");
        return Check::new(NAME, Verdict::Degraded, detail, "");
    };
    let asked = PAGE_FAULTS
        .iter()
        .try_for_each(|(event, _)| tracefs.tracepoint_id(event).map(|_| ()));
    match asked {
        Ok(()) => Check::new(
            NAME,
            Verdict::Good,
            PAGE_FAULTS.map(|(event, _)| event).join(", "),
            "",
        ),
        Err(error) => Check::new(
            NAME,
            Verdict::Degraded,
            format!("{error}: {LOST}"),
            "use a kernel built with CONFIG_FTRACE=y",
        ),
    }
}

fn check_uprobes() -> Check {
    const NAME: &str = "uprobes";
    match attach::uprobe_pmu() {
        Ok(number) => Check::new(NAME, Verdict::Good, format!("PMU type {number}"), ""),
        Err(error) => uprobes_refused(
            &error,
            Path::new("/sys/bus").is_dir(),
            attach::best_link_mode(),
        ),
    }
}

/// What it means that the number of the uprobe PMU cannot be read: it is needed for links of perf alone.
fn uprobes_refused(error: &io::Error, has_sysfs: bool, links: LinkMode) -> Check {
    const NAME: &str = "uprobes";
    const MOUNT: &str = "mount sysfs: `mount -t sysfs sysfs /sys`";
    match (has_sysfs, links) {
        (false, LinkMode::Perf) => Check::new(
            NAME,
            Verdict::Missing,
            "/sys is not mounted, which says by what number uprobes are asked for".to_owned(),
            MOUNT,
        ),
        (false, _) => Check::new(
            NAME,
            Verdict::Degraded,
            format!(
                "/sys is not mounted: allocators are traced all the same, through {} links; the kernel's own memory is not \
                 seen in full, nor limits of control groups",
                links.name()
            ),
            MOUNT,
        ),
        (true, _) => Check::new(
            NAME,
            Verdict::Missing,
            error.to_string(),
            "use a kernel built with CONFIG_UPROBE_EVENTS=y",
        ),
    }
}

fn check_links(links: Option<LinkMode>) -> Check {
    const NAME: &str = "links";
    let best = attach::best_link_mode();
    if best != LinkMode::Session && require_capabilities().is_err() {
        return Check::new(
            NAME,
            Verdict::Degraded,
            "not known: to try takes CAP_BPF and CAP_PERFMON".to_owned(),
            "",
        );
    }
    let mode = links.unwrap_or(best);
    if !best.includes(mode) {
        return Check::new(
            NAME,
            Verdict::Missing,
            format!("{}: the kernel has only {}", mode.name(), best.name()),
            "ask for no kind of link: the best that there is will be used",
        );
    }
    let (verdict, detail) = match mode {
        LinkMode::Session => (Verdict::Good, "one for entries and returns".to_owned()),
        LinkMode::Multi => (
            Verdict::Degraded,
            "the kernel has no uprobe-session links (Linux 6.13): a call costs some 15 % more".to_owned(),
        ),
        LinkMode::Perf => (
            Verdict::Degraded,
            "the kernel has no usable uprobe-multi links (Linux 6.6): detaching takes some 100 ms for each probe".to_owned(),
        ),
    };
    Check::new(NAME, verdict, format!("{}: {detail}", mode.name()), "")
}

#[cfg(test)]
mod tests {
    use super::{LinkMode, SYS_ADMIN, Verdict, paranoia, uprobes_refused};
    use std::io;

    #[test]
    fn a_root_without_sys_was_said_to_be_a_kernel_without_uprobes() {
        let error = io::Error::from(io::ErrorKind::NotFound);
        let works = uprobes_refused(&error, false, LinkMode::Session);
        assert_eq!(works.verdict, Verdict::Degraded);
        assert!(works.detail.contains("/sys is not mounted"), "{works:?}");
        assert!(!works.remedy.contains("CONFIG"), "{works:?}");
        let needed = uprobes_refused(&error, false, LinkMode::Perf);
        assert_eq!(needed.verdict, Verdict::Missing);
        let kernel = uprobes_refused(&error, true, LinkMode::Perf);
        assert!(kernel.remedy.contains("CONFIG_UPROBE_EVENTS"), "{kernel:?}");
    }

    #[test]
    fn paranoia_is_the_reason_where_the_level_is_one_of_debians() {
        assert!(paranoia("3\n", 1 << 38).is_some_and(|why| why.contains("CAP_SYS_ADMIN")));
        assert!(paranoia("4", 0).is_some());
        assert_eq!(paranoia("4", 1 << SYS_ADMIN), None);
        assert_eq!(paranoia("2", 0), None);
        assert_eq!(paranoia("", 0), None);
    }
}
