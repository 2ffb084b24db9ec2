//! Processes that are found by a selection: those that run when it is made, and those that start later, of which the probe
//! tells. Without a selection only what was named is followed.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use super::{Session, TraceError, process::Traced};
use crate::{
    budget::Choice,
    kernel::{KernelError, LinkMode},
    process::{
        procfs::{list_pids, read_name, read_process},
        select::Selector,
    },
};

/// With a selection of all processes, how long one must live before it is followed. What a machine starts and ends at once is
/// not where memory leaks, and to follow a process costs more than most of these take.
const SETTLE: Duration = Duration::from_millis(40);

/// How long a child of a command, which usually calls exec at once, may take before it is looked at as it is.
const EXEC_WITHIN: Duration = Duration::from_millis(2);

/// With more processes than this, links are for all processes of the machine: one for each process costs time that grows with their
/// number squared (500 processes: 46 s against 1 s), and at every hit the kernel asks each whether it is meant.
const MANY: usize = 24;

/// How long after it was followed a process is looked at once more where that is not done at once: its libraries are there.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// How often the probe's suggestions are looked at where it does not wake us: as long as there are some.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// After so long without one it wakes us for the next.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// How often the names of processes that are not followed are looked at: a process may take another name at any time (prctl(2),
/// `/proc/PID/comm`), of which nobody tells.
const NAMES_EVERY: Duration = Duration::from_secs(1);

/// Looking at them takes at most one part in so many of our time.
const NAMES_PART: u32 = 200;

/// So many processes that have ended stay in the report, the last ones.
const KEEP_ENDED: usize = 64;

/// So many stay when the stack table is half full.
const KEEP_ENDED_CROWDED: usize = 16;

/// How often the room of ended processes is taken back: the whole live table is read for it, some 10 ms.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Of how many processes memory and processor time are read at each look.
const MEASURED_AT_A_LOOK: usize = 64;

/// The state of a selection.
#[derive(Debug, Default)]
pub(super) struct Selecting {
    selector: Option<Selector>,
    /// Processes that were named, whatever the selector says; until they end.
    named: HashSet<u32>,
    /// Processes to look at, and when.
    candidates: BTreeMap<u32, Instant>,
    /// Processes that have ended, the oldest first.
    ended: VecDeque<u32>,
    /// Incarnations whose room is to be taken back.
    dropped: HashSet<u32>,
    swept: Option<Instant>,
    /// When the names of the others are looked at next, and those of them that have the right one and could not be followed.
    names_due: Option<Instant>,
    refused: HashSet<u32>,
    /// The last process that was measured.
    measured: u32,
    /// Processes that met the selection and could not be followed.
    failed: u64,
    /// When the probe suggested a process last, while it does not wake us for that.
    suggested: Option<Instant>,
}

impl Selecting {
    /// When something is to be done next.
    pub(super) fn wait_at_most(&self) -> Duration {
        let now = Instant::now();
        let due = self
            .candidates
            .values()
            .min()
            .map_or(Duration::MAX, |due| due.saturating_duration_since(now));
        if self.suggested.is_some() {
            due.min(LOOK_EVERY)
        } else {
            due
        }
    }
}

impl Session {
    /// Whether the whole machine is traced: then what we take ourselves matters more than how fine a verdict is.
    pub(super) fn is_of_machine(&self) -> bool {
        self.selecting
            .selector
            .as_ref()
            .is_some_and(Selector::is_all)
    }

    /// Traces the processes that a selector wants: those that run now, and from now on those that start. Processes that an earlier
    /// selector wanted and this one does not are let go. Gives how many are followed.
    ///
    /// # Errors
    /// The kernel refused something. That a single process cannot be followed is no error.
    pub fn select(&mut self, selector: Selector) -> Result<usize, TraceError> {
        let all = selector.is_all();
        let selection = *selector.selection();
        self.selecting.suggested = None;
        let first = self.processes.is_empty();
        self.selecting.selector = Some(selector);
        // Before the look at those that run: one that starts in between is found twice rather than never.
        self.probe.select(&selection)?;
        let unwanted: Vec<u32> = self
            .processes
            .keys()
            .copied()
            .filter(|pid| !self.is_wanted(*pid))
            .collect();
        for pid in unwanted {
            self.let_go(pid);
        }
        let wanted: Vec<u32> = list_pids(&self.proc_root)
            .unwrap_or_default()
            .into_iter()
            .filter(|pid| self.is_wanted(*pid))
            .collect();
        if first {
            // Windows are opened and closed for each process by itself.
            let at_once = self.options.tier == Choice::Exact;
            self.links
                .set_machine(at_once && (all || wanted.len() > MANY));
        }
        for pid in wanted {
            self.consider(pid)?;
        }
        if first {
            // What is asked for lasts from when everything that runs is traced.
            self.begin_now();
        }
        Ok(self.running())
    }

    /// Whether processes that are not followed are trapped too, since links are for all.
    #[must_use]
    pub fn traps_others(&self) -> bool {
        self.links.is_machine()
            && !self
                .selecting
                .selector
                .as_ref()
                .is_none_or(|selector| selector.is_all() && !selector.excludes())
    }

    /// The selection, where there is one.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        self.selecting.selector.as_ref()
    }

    /// A process is followed whatever the selection says, until it ends.
    pub(super) fn note_named(&mut self, pid: u32) {
        self.selecting.named.insert(pid);
    }

    /// Whether a process is to be followed: it was named, or the selection says so.
    fn is_wanted(&self, pid: u32) -> bool {
        self.selecting.named.contains(&pid)
            || self.selecting.selector.as_ref().is_some_and(|selector| {
                // Nor what works for us: readers, the keeper.
                let own = std::process::id();
                pid != own
                    && read_process(&self.proc_root, pid)
                        .is_ok_and(|process| process.parent != own && selector.wants(&process))
            })
    }

    /// Follows a process if the selection wants it.
    fn consider(&mut self, pid: u32) -> Result<(), KernelError> {
        if self
            .processes
            .get(&pid)
            .is_some_and(|traced| traced.ended.is_none())
            || self.was_given_up(pid)
            || !self.is_wanted(pid)
        {
            return Ok(());
        }
        match self.follow_as_it_is(pid) {
            Ok(()) => Ok(()),
            Err(TraceError::Kernel(error)) if !matches!(error, KernelError::Attach { .. }) => {
                Err(error)
            }
            // It has ended meanwhile, is another user's, or a file of its cannot be attached to.
            Err(_) => {
                self.selecting.refused.insert(pid);
                self.selecting.failed += 1;
                Ok(())
            }
        }
    }

    /// Follows a process even if it has no allocator that is known: one may be loaded later, and the report says why nothing is seen.
    fn follow_as_it_is(&mut self, pid: u32) -> Result<(), TraceError> {
        let mut traced = self.prepare(pid)?;
        self.growth.begin(&self.proc_root, pid, traced.incarnation);
        self.probe.follow(pid, traced.incarnation)?;
        self.forget_ended(pid);
        if read_process(&self.proc_root, pid).is_ok_and(|process| process.comm != traced.comm) {
            traced.begin_program(&self.proc_root, traced.incarnation);
        }
        self.processes.insert(pid, traced);
        // What it did after we looked and before the probe knew it, nobody was told of: a process that has just begun calls exec and maps
        // its libraries at this very time.
        if !self.is_kept_after_exec(pid) {
            self.let_go(pid);
        } else if self.probe.link_mode() == LinkMode::Perf {
            // Each probe is attached by itself: of calls that come in between, the return alone would be seen, and count as lost.
            self.selecting
                .candidates
                .insert(pid, Instant::now() + LOOK_AGAIN_AFTER);
        } else {
            self.note_mapping(pid, false)?;
        }
        Ok(())
    }

    /// The probe suggests a process.
    pub(super) fn note_candidate(&mut self, pid: u32) {
        if self.is_of_machine() && self.selecting.suggested.replace(Instant::now()).is_none() {
            self.probe.wake_for_candidates(false);
        }
        let settle = match &self.selecting.selector {
            Some(selector) if selector.is_all() => SETTLE,
            Some(_) => Duration::ZERO,
            None => return,
        };
        // A process that calls exec again and again is not put off each time.
        self.selecting
            .candidates
            .entry(pid)
            .or_insert(Instant::now() + settle);
    }

    /// A child of a command is traced from its first instruction; its allocators are looked for when it has called exec, or shows that
    /// it does not.
    pub(super) fn note_fork(&mut self, pid: u32, incarnation: u32) {
        let Ok(mut traced) = Traced::open(
            &self.probe,
            &self.proc_root,
            pid,
            self.limits(self.beginning()),
        ) else {
            // It has ended by now.
            self.probe.forget(pid, incarnation);
            return;
        };
        traced.incarnation = incarnation;
        // It may never call exec: a worker is within the budget from here on.
        self.begin_windows(&mut traced);
        self.forget_ended(pid);
        self.processes.insert(pid, traced);
        self.selecting
            .candidates
            .insert(pid, Instant::now() + EXEC_WITHIN);
    }

    /// Where processes are selected by their names: looks for those that have taken one since they started.
    pub(super) fn look_for_names(&mut self) {
        let begun = Instant::now();
        let Some(selector) = &self.selecting.selector else {
            return;
        };
        if selector.wants_name("").is_none()
            || self.selecting.names_due.is_some_and(|due| due > begun)
        {
            return;
        }
        let pids = list_pids(&self.proc_root).unwrap_or_default();
        let is_followed = |pid: &u32| {
            let traced = self.processes.get(pid);
            traced.is_some_and(|traced| traced.ended.is_none())
        };
        let named: Vec<u32> = pids
            .iter()
            .copied()
            .filter(|pid| !is_followed(pid) && !self.selecting.refused.contains(pid))
            .filter(|pid| {
                read_name(&self.proc_root, *pid)
                    .and_then(|name| selector.wants_name(&name))
                    .unwrap_or(false)
            })
            .collect();
        // A number may come to stand for another process.
        self.selecting
            .refused
            .retain(|pid| pids.binary_search(pid).is_ok());
        for pid in named {
            self.selecting.candidates.entry(pid).or_insert(begun);
        }
        self.selecting.names_due =
            Some(begun + NAMES_EVERY.max(begun.elapsed().saturating_mul(NAMES_PART)));
    }

    /// Looks at the candidates whose time has come.
    pub(super) fn consider_candidates(&mut self) -> Result<(), KernelError> {
        let now = Instant::now();
        if self
            .selecting
            .suggested
            .is_some_and(|last| last.elapsed() >= QUIET_AFTER)
        {
            self.selecting.suggested = None;
            self.probe.wake_for_candidates(true);
        }
        let due: Vec<u32> = self
            .selecting
            .candidates
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(pid, _)| *pid)
            .collect();
        for pid in due {
            self.selecting.candidates.remove(&pid);
            self.faults.work_on(pid);
            let is_followed = self
                .processes
                .get(&pid)
                .is_some_and(|traced| traced.ended.is_none());
            if is_followed {
                self.note_mapping(pid, false)?;
            } else if self.selecting.selector.is_some() {
                self.consider(pid)?;
            }
        }
        self.faults.work_on(None);
        Ok(())
    }

    /// After an exec: whether the process is still to be followed.
    pub(super) fn is_kept_after_exec(&self, pid: u32) -> bool {
        self.selecting.selector.is_none() || self.is_wanted(pid)
    }

    /// A process has ended; the oldest of those that ended is forgotten when there are many.
    pub(super) fn note_end(&mut self, pid: u32) {
        self.selecting.candidates.remove(&pid);
        self.selecting.named.remove(&pid);
        if self.selecting.selector.is_none() && self.processes.len() <= KEEP_ENDED {
            // What was named stays.
            return;
        }
        self.selecting.ended.push_back(pid);
        while self.selecting.ended.len() > KEEP_ENDED {
            if let Some(oldest) = self.selecting.ended.front().copied() {
                self.forget_ended(oldest);
            }
        }
    }

    /// A process that is still running is not to be followed any more.
    pub(super) fn let_go(&mut self, pid: u32) {
        if let Some(traced) = self.processes.remove(&pid) {
            self.probe.forget(pid, traced.incarnation);
            self.tables.remove(&mut self.probe, traced.incarnation);
            self.links.release(pid, traced.links.into_values());
            self.selecting.dropped.insert(traced.incarnation);
        }
    }

    /// Forgets a process that has ended, so that its number can stand for another.
    pub(super) fn forget_ended(&mut self, pid: u32) {
        self.selecting.ended.retain(|ended| *ended != pid);
        let is_over = self
            .processes
            .get(&pid)
            .is_some_and(|traced| traced.ended.is_some());
        if is_over && let Some(traced) = self.processes.remove(&pid) {
            self.selecting.dropped.insert(traced.incarnation);
        }
    }

    /// An incarnation has ended whose blocks, stacks and totals are wanted no more.
    pub(super) fn drop_incarnation(&mut self, incarnation: u32) {
        self.selecting.dropped.insert(incarnation);
        self.selecting.swept = None;
    }

    /// Takes back the room of what was dropped, every now and then.
    pub(super) fn sweep(&mut self) -> Result<(), KernelError> {
        let crowded = self.stacks.len() > self.probe.site_slots() / 4;
        if crowded {
            while self.selecting.ended.len() > KEEP_ENDED_CROWDED
                && let Some(oldest) = self.selecting.ended.front().copied()
            {
                self.forget_ended(oldest);
            }
        }
        let is_due = crowded
            || self
                .selecting
                .swept
                .is_none_or(|last| last.elapsed() >= SWEEP_EVERY);
        if !is_due || self.selecting.dropped.is_empty() {
            return Ok(());
        }
        self.selecting.swept = Some(Instant::now());
        let dropped = std::mem::take(&mut self.selecting.dropped);
        for site in self.probe.drop_incarnations(&dropped)? {
            self.ledger.forget(site);
            self.totals.forget(site);
        }
        for incarnation in &dropped {
            self.ledger.forget_process(*incarnation);
        }
        self.stacks
            .retain(|_, stack| !dropped.contains(&stack.incarnation));
        self.joined_stacks.drop_incarnations(&dropped);
        Ok(())
    }

    /// Of the processes that ran, those to measure at this look: all, or where there are many some in turn.
    pub(super) fn due_for_measurement(&mut self, ran: &HashSet<u32>) -> Vec<u32> {
        let after = self.selecting.measured;
        let running = |pid: &u32, traced: &Traced| {
            (traced.ended.is_none() && ran.contains(&traced.incarnation)).then_some(*pid)
        };
        let due: Vec<u32> = self
            .processes
            .range(after.saturating_add(1)..)
            .chain(self.processes.range(..=after))
            .filter_map(|(pid, traced)| running(pid, traced))
            .take(MEASURED_AT_A_LOOK)
            .collect();
        self.selecting.measured = due.last().copied().unwrap_or(0);
        due
    }

    /// How many processes met the selection and could not be followed.
    #[must_use]
    pub fn not_followed(&self) -> u64 {
        self.selecting.failed
    }
}
