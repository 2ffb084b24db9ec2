//! What was measured, as it is printed and as `--json` writes it.

use super::verdicts::Verdicts;
use serde::Serialize;
use std::collections::BTreeMap;

/// Everything.
#[derive(Debug, Default, Serialize)]
pub(super) struct Figures {
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) processors: usize,
    pub(super) runs: u32,
    pub(super) cases: Vec<CaseFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scaling: Option<Scaling>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) attach: Vec<AttachFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<ReportFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) daemon: Option<DaemonFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) processes: Option<ProcessesFigures>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) profile: Vec<ProfileFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) faults: Option<FaultFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel_cost: Option<KernelFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) heap: Option<HeapFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) looks: Option<TurnoverFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) budget: Option<BudgetFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) twins: Option<TwinFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) languages: Option<LanguagesFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) servers: Option<ServersFigures>,
    pub(super) leaks: Vec<LeakFigures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verdicts: Option<Verdicts>,
    /// What could not be measured, and why; reports that show losses.
    pub(super) problems: Vec<String>,
}

/// One case under all its subjects.
#[derive(Debug, Serialize)]
pub(super) struct CaseFigures {
    pub(super) name: String,
    pub(super) what: String,
    /// Return addresses in the stack of the site that allocated most, as leakscope reports it.
    pub(super) frames: Option<u64>,
    pub(super) subjects: Vec<SubjectFigures>,
    pub(super) bars: Vec<BarFigures>,
}

/// One subject; every figure is the median over the runs.
#[derive(Debug, Default, Serialize)]
pub(super) struct SubjectFigures {
    pub(super) name: String,
    /// CPU nanoseconds of the target for an operation.
    pub(super) cpu_ns: f64,
    pub(super) cpu_ns_of_each_run: Vec<f64>,
    pub(super) operations_per_second: f64,
    pub(super) times_nothing: Option<f64>,
    pub(super) times_floor: Option<f64>,
    pub(super) target_resident_bytes: u64,
    pub(super) tracer_resident_bytes: u64,
    pub(super) map_bytes: u64,
    /// By cause, the most of any run; only leakscope says it.
    pub(super) lost: Option<BTreeMap<String, u64>>,
    /// How many blocks each one in the report stands for.
    pub(super) weight: Option<u64>,
}

/// What was promised and what was measured.
#[derive(Debug, Serialize)]
pub(super) struct BarFigures {
    pub(super) what: String,
    pub(super) measured: f64,
    pub(super) limit: f64,
    pub(super) met: bool,
}

/// CPU nanoseconds of a write to a fresh page, its share of making and taking away the mapping included.
#[derive(Debug, Default, Serialize)]
pub(super) struct FaultFigures {
    pub(super) untraced_ns: f64,
    /// As soon as leakscope is there, and when it has seen how fast pages come.
    pub(super) soon_ns: f64,
    pub(super) settled_ns: f64,
    /// In a process that is not followed.
    pub(super) others_ns: f64,
}

/// System calls while a window on the kernel's allocators is open; medians over the runs.
#[derive(Debug, Default, Serialize)]
pub(super) struct KernelFigures {
    /// What else was measured.
    pub(super) peer: String,
    pub(super) operations: Vec<KernelCost>,
    pub(super) bars: Vec<BarFigures>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub(super) struct KernelCost {
    pub(super) operation: String,
    /// Processor time, nanoseconds.
    pub(super) untraced_ns: f64,
    /// So many times as long.
    pub(super) window_times: f64,
    /// The same under another tool; `None` where none is there.
    pub(super) peer_times: Option<f64>,
}

/// Looks at heaps from outside; medians over the runs.
#[derive(Debug, Default, Serialize)]
pub(super) struct HeapFigures {
    /// Bytes in use of the large heap.
    pub(super) heap_bytes: f64,
    /// All looks at it, with the time between them, and our processor time, seconds.
    pub(super) took_s: f64,
    pub(super) cpu_s: f64,
    /// Our memory as a part of the heap.
    pub(super) memory: f64,
    /// What an operation of the program takes longer meanwhile, as a part of it.
    pub(super) slowed: f64,
    /// The program's longest operation meanwhile.
    pub(super) pause_ms: f64,
    pub(super) bars: Vec<BarFigures>,
}

/// Looks at programs that change all the time and lose nothing.
#[derive(Debug, Default, Serialize)]
pub(super) struct TurnoverFigures {
    pub(super) programs: Vec<LooksFigures>,
    pub(super) bars: Vec<BarFigures>,
}

/// Looks at one of them.
#[derive(Debug, Default, Serialize)]
pub(super) struct LooksFigures {
    pub(super) program: String,
    pub(super) looks: u32,
    /// Blocks in the last one.
    pub(super) blocks: u64,
    /// Looks that called some block lost.
    pub(super) wrong: u32,
}

/// Real servers under steady load.
#[derive(Debug, Default, Serialize)]
pub(super) struct ServersFigures {
    pub(super) servers: Vec<ServerFigures>,
    pub(super) bars: Vec<BarFigures>,
}

/// What is said of one process.
#[derive(Debug, Serialize)]
pub(super) struct ServerFigures {
    pub(super) name: String,
    pub(super) verdict: String,
    pub(super) reason: String,
    pub(super) sites: u64,
    /// Why each of the sites called leaking is.
    pub(super) leaking: Vec<String>,
}

/// One leak of a server under full load.
#[derive(Debug, Default, Serialize)]
pub(super) struct LeakFigures {
    pub(super) case: String,
    pub(super) runs: Vec<LeakRun>,
    /// How far the rates are off, the median.
    pub(super) off_percent: f64,
    pub(super) bars: Vec<BarFigures>,
}

/// What a run showed in the end.
#[derive(Debug, Default, Serialize)]
pub(super) struct LeakRun {
    pub(super) server: String,
    pub(super) watched_s: f64,
    /// From when on the leak was the first site at every look.
    pub(super) first_after_s: Option<f64>,
    /// Its place among the sites, from 1 on.
    pub(super) place: Option<u32>,
    pub(super) verdict: String,
    /// The rate as the report has it, and by the program's own count over the time watched.
    pub(super) bytes_per_s: f64,
    pub(super) true_bytes_per_s: f64,
}

impl LeakRun {
    /// How far the rate is off.
    pub(super) fn off_percent(&self) -> f64 {
        (self.bytes_per_s / self.true_bytes_per_s.max(1.0) - 1.0).abs() * 100.0
    }
}

/// Loads with and without leakscope at its default budget.
#[derive(Debug, Default, Serialize)]
pub(super) struct BudgetFigures {
    pub(super) loads: Vec<BudgetLoad>,
    pub(super) bars: Vec<BarFigures>,
}

/// One load; figures are medians over the runs.
#[derive(Debug, Serialize)]
pub(super) struct BudgetLoad {
    pub(super) name: String,
    /// Operations a second without and with leakscope.
    pub(super) per_second: f64,
    pub(super) traced_per_second: f64,
    /// What each slice with it had less than the mean of those without it before and behind, percent.
    pub(super) loss_percent: f64,
    /// How far that may be off by chance: its standard error. `None` of a single run.
    pub(super) loss_percent_error: Option<f64>,
    pub(super) loss_percent_of_each_run: Vec<f64>,
    /// The same of slices with nothing beside them, against those before and behind: what the machine does by itself. `None` of a single
    /// run.
    pub(super) untraced_loss_percent: Option<Vec<f64>>,
    /// By how much the 99.9th percentile of its answers' times grew, milliseconds.
    pub(super) p999_later_ms: Option<f64>,
}

/// Loads beside the same untraced, at the default budget.
#[derive(Debug, Default, Serialize)]
pub(super) struct TwinFigures {
    pub(super) loads: Vec<TwinLoad>,
    pub(super) bars: Vec<BarFigures>,
}

/// One load; figures are medians over the runs.
#[derive(Debug, Serialize)]
pub(super) struct TwinLoad {
    pub(super) name: String,
    /// What the one that was traced did less than the other, percent.
    pub(super) loss_percent: f64,
    /// Its standard error. `None` of a single run.
    pub(super) loss_percent_error: Option<f64>,
    pub(super) loss_percent_of_each_run: Vec<f64>,
    /// What leakscope took of all processors, which both did less; percent.
    pub(super) tracer_percent: f64,
}

impl TwinLoad {
    /// What a load that is traced loses in all, percent.
    pub(super) fn percent(&self) -> f64 {
        self.loss_percent + self.tracer_percent
    }
}

/// The same program in several languages, with and without leakscope at its default budget.
#[derive(Debug, Default, Serialize)]
pub(super) struct LanguagesFigures {
    pub(super) languages: Vec<LanguageFigures>,
    pub(super) bars: Vec<BarFigures>,
}

/// One language; figures are medians over the runs.
#[derive(Debug, Serialize)]
pub(super) struct LanguageFigures {
    pub(super) name: String,
    /// Processor time of a request without and with leakscope, nanoseconds.
    pub(super) ns_per_request: f64,
    pub(super) traced_ns_per_request: f64,
    /// What a slice with it took more than the mean of those before and behind, percent.
    pub(super) more_percent: f64,
    /// Its standard error. `None` of a single run.
    pub(super) more_percent_error: Option<f64>,
    pub(super) more_percent_of_each_run: Vec<f64>,
    /// What leakscope's processes took of one processor, percent.
    pub(super) tracer_percent: f64,
    /// Resident memory of leakscope's processes, bytes.
    pub(super) tracer_resident: f64,
    /// BPF maps, bytes.
    pub(super) tracer_maps: f64,
}

/// Many processes, and many that start.
#[derive(Debug, Serialize)]
pub(super) struct ProcessesFigures {
    /// How many ran.
    pub(super) running: usize,
    /// What a trace of the whole machine took beyond the time asked for: attaching, reporting and detaching.
    pub(super) attach: Times,
    pub(super) started_per_second: u32,
    /// What leakscope took of one processor, without and with the processes that started; percent.
    pub(super) idle_percent: f64,
    pub(super) busy_percent: f64,
    pub(super) bars: Vec<BarFigures>,
}

/// Operations a second with one and with two threads.
#[derive(Debug, Default, Serialize)]
pub(super) struct Scaling {
    pub(super) subjects: Vec<ScalingSubject>,
    pub(super) bars: Vec<BarFigures>,
}

/// One subject of [`Scaling`].
#[derive(Debug, Serialize)]
pub(super) struct ScalingSubject {
    pub(super) name: String,
    pub(super) one_per_second: f64,
    pub(super) two_per_second: f64,
    /// The median of each run's ratio of the two.
    pub(super) ratio: f64,
    pub(super) ratios: Vec<f64>,
    /// The same from the CPU time of an operation: what other processes take does not count, waiting for each other does
    /// as far as it costs CPU time.
    pub(super) cpu_ratio: f64,
}

/// Several measurements of one time, milliseconds. The least is what remains when nothing else runs on the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Times {
    pub(super) median_ms: f64,
    pub(super) least_ms: f64,
}

impl Times {
    pub(super) fn of(values: &[f64]) -> Self {
        Self {
            median_ms: median(values),
            least_ms: values.iter().copied().reduce(f64::min).unwrap_or(0.0),
        }
    }
}

/// One kind of link.
#[derive(Debug, Default, Serialize)]
pub(super) struct AttachFigures {
    pub(super) links: String,
    /// From before the process is looked at until all is in place: discovery, tables and links.
    pub(super) follow: Times,
    /// From the first probe that the target feels to the last link.
    pub(super) arm: Times,
    /// The longest operation of the target in that time.
    pub(super) attach_gap: Times,
    /// How long the kernel is made ready to detach, in which the target is trapped still; done before a window's planned end.
    pub(super) prepare: Times,
    /// From the beginning of detaching until the target runs as before.
    pub(super) disarm: Times,
    /// The longest operation in that time.
    pub(super) detach_gap: Times,
    /// From the beginning to the end of detaching, as the tracer feels it.
    pub(super) detach: Times,
}

/// A report over many blocks and sites.
#[derive(Debug, Default, Serialize)]
pub(super) struct ReportFigures {
    pub(super) blocks: u64,
    pub(super) sites: u64,
    /// From Ctrl-C until the report's last byte was read.
    pub(super) written: Times,
    /// Until leakscope had ended.
    pub(super) ended: Times,
    pub(super) lost: BTreeMap<String, u64>,
    pub(super) tracer_resident_bytes: u64,
    pub(super) map_bytes: u64,
    pub(super) bars: Vec<BarFigures>,
}

/// The daemon over many blocks and sites.
#[derive(Debug, Default, Serialize)]
pub(super) struct DaemonFigures {
    pub(super) blocks: u64,
    pub(super) sites: u64,
    /// A profile when the report has to be made for it.
    pub(super) cold: Times,
    /// A profile of a report that is there.
    pub(super) warm: Times,
    /// The metrics.
    pub(super) metrics: Times,
    /// Readers at a time, for how many seconds, with how many answers and refusals.
    pub(super) readers: usize,
    pub(super) read_s: u64,
    pub(super) answers: u64,
    pub(super) errors: u64,
    /// Resident memory before the readers, and the most while they read: all that `/proc/PID/status` counts.
    pub(super) resident_idle_bytes: u64,
    pub(super) resident_most_bytes: u64,
    /// The kernel's memory for the BPF maps, mapped or not.
    pub(super) map_bytes: u64,
    /// From SIGTERM until it had ended.
    pub(super) ended_ms: f64,
    pub(super) bars: Vec<BarFigures>,
}

/// Where the time goes in one case with one kind of link.
#[derive(Debug, Default, Serialize)]
pub(super) struct ProfileFigures {
    pub(super) case: String,
    pub(super) variant: String,
    /// CPU nanoseconds of the target for an operation while the kernel counts.
    pub(super) cpu_ns: f64,
    pub(super) programs: Vec<ProgramFigures>,
}

/// One program, as the kernel's own statistics have it (`kernel.bpf_stats_enabled`).
#[derive(Debug, Serialize)]
pub(super) struct ProgramFigures {
    pub(super) name: String,
    pub(super) runs_per_operation: f64,
    pub(super) ns_per_run: f64,
    pub(super) ns_per_operation: f64,
    pub(super) missed: u64,
}

/// The middle value; the mean of the two middle ones of an even number; 0 of none.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 || sorted.is_empty() {
        at(middle)
    } else {
        f64::midpoint(at(middle - 1), at(middle))
    }
}

/// The standard error of a median: of normally distributed values it is the square root of pi / 2 times that of their mean. `None` of fewer
/// than two.
pub(super) fn median_error(values: &[f64]) -> Option<f64> {
    let count = values.len() as f64;
    if count < 2.0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let deviation = (squares / (count - 1.0)).sqrt();
    Some(std::f64::consts::FRAC_PI_2.sqrt() * deviation / count.sqrt())
}

/// The median of whole numbers.
pub(super) fn median_of_bytes(values: impl Iterator<Item = u64>) -> u64 {
    median(&values.map(|value| value as f64).collect::<Vec<_>>()) as u64
}

impl BarFigures {
    /// No more than the limit.
    pub(super) fn at_most(what: String, measured: f64, limit: f64) -> Self {
        Self {
            what,
            measured,
            limit,
            met: measured <= limit,
        }
    }

    /// No less than the limit.
    pub(super) fn at_least(what: String, measured: f64, limit: f64) -> Self {
        Self {
            what,
            measured,
            limit,
            met: measured >= limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BarFigures, median, median_error};

    #[test]
    fn the_median_is_the_middle() {
        assert!(median(&[]).abs() < 1e-9);
        assert!((median(&[5.0, 1.0, 100.0]) - 5.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 100.0]) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_median_of_few_or_scattered_values_is_uncertain() {
        assert_eq!(median_error(&[1.0]), None);
        let error = median_error(&[0.0, 0.0, 3.0, 3.0]).unwrap_or_default();
        assert!(
            (error - 1.2533 * 3.0_f64.sqrt() / 2.0).abs() < 1e-3,
            "{error}"
        );
        assert!(median_error(&[1.0, 1.0]).unwrap_or(1.0).abs() < 1e-9);
    }

    #[test]
    fn bars_have_a_direction() {
        assert!(BarFigures::at_most(String::new(), 1.25, 1.25).met);
        assert!(!BarFigures::at_most(String::new(), 1.26, 1.25).met);
        assert!(BarFigures::at_least(String::new(), 1.9, 1.8).met);
        assert!(!BarFigures::at_least(String::new(), 1.7, 1.8).met);
    }
}
