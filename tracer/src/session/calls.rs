//! Mappings and the system calls of others: where mappings are seen at tracepoints, these are set only when the machine makes few calls, and
//! given up when it makes so many that it shows. New code, which the same tracepoints tell of, is looked for from then on. The budget decides what is too many.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::Session;
use crate::{
    budget::{COUNT_FOR, CallWatch, a_second},
    kernel::{CallCounter, KernelError, process_cpu_time, running_processors},
};

/// How often a process is looked at for new code that nobody tells of, if it has run meanwhile. Sooner at first, each time after twice as
/// long: a program that has just begun maps its libraries.
const LOOK_FOR_CODE_EVERY: Duration = Duration::from_secs(3);
const LOOK_FOR_CODE_FIRST: Duration = Duration::from_millis(100);

/// Of how many processes at once: to read the mappings of one takes some 0.1 ms.
const LOOKED_AT_ONCE: usize = 8;

/// Where all processors together were busy for a smaller part of one, none makes many calls.
const BUSY: f64 = 0.05;

/// What the report says of mappings that are not seen.
const NOT_SHOWN: &str = "mmap tracking off";
const DEARER: &str = "on this kernel it would slow all system calls";
const WHO_SHOWS: &str = "force with --tier growth";

/// What is known of the machine's system calls.
#[derive(Debug)]
pub(super) struct Calls {
    /// Whether mappings may be given up: neither tier nor target asks for all of them.
    may_give_up: bool,
    watch: CallWatch,
    began: Instant,
    /// What is counting now.
    counter: Option<CallCounter>,
    /// When the machine was last asked, and for how long its processors had been idle by then.
    idle: Option<(Instant, Duration)>,
    seen: Seen,
}

/// Whether mappings are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// They are.
    Yes,
    /// Nothing sees them yet: why.
    NotYet(String),
    /// They were given up, for good: why.
    GivenUp(String),
}

impl Calls {
    /// Nothing was counted yet.
    pub(super) fn new(budget: f64, may_give_up: bool) -> Self {
        Self {
            may_give_up,
            watch: CallWatch::new(budget),
            began: Instant::now(),
            counter: None,
            idle: None,
            seen: Seen::NotYet(
                "mmap tracking not on yet: counting the machine's system calls first".to_owned(),
            ),
        }
    }

    /// Why mappings are not shown.
    pub(super) fn unseen(&self) -> Option<&str> {
        match &self.seen {
            Seen::Yes => None,
            Seen::NotYet(why) | Seen::GivenUp(why) => Some(why),
        }
    }

    /// How soon a count is over, or one is due that was found to be called for.
    fn wait_at_most(&self) -> Duration {
        match &self.counter {
            Some(counter) => COUNT_FOR.saturating_sub(counter.begun().elapsed()),
            None if self.watch.is_alarmed() || self.seen != Seen::Yes => {
                self.watch.next().saturating_sub(self.began.elapsed())
            }
            None => Duration::MAX,
        }
    }

    /// Whether the machine was idle since it was asked last.
    fn has_rested(&mut self, proc_root: &Path) -> bool {
        let now = Instant::now();
        let Some((idle, processors)) = idle_time(proc_root).zip(running_processors()) else {
            return false;
        };
        let before = self.idle.replace((now, idle));
        before.is_some_and(|(at, before)| {
            let elapsed = now.saturating_duration_since(at).as_secs_f64();
            let idle = idle.saturating_sub(before).as_secs_f64();
            processors as f64 * elapsed - idle < BUSY * elapsed
        })
    }
}

/// When a process was last looked at for new code.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeLook {
    at: Instant,
    /// Its processor time by then.
    cpu: Duration,
    /// How soon it is looked at again.
    again: Duration,
}

impl CodeLook {
    /// The look after one.
    fn after(before: Option<Self>, at: Instant, cpu: Duration) -> Self {
        let again = before.map_or(LOOK_FOR_CODE_FIRST, |before| {
            (before.again * 2).min(LOOK_FOR_CODE_EVERY)
        });
        Self { at, cpu, again }
    }

    fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= self.again
    }
}

/// For how long all processors together have been idle: the second figure of `/proc/uptime`, seconds.
fn idle_time(proc_root: &Path) -> Option<Duration> {
    let text = fs::read_to_string(proc_root.join("uptime")).ok()?;
    let seconds = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

impl Session {
    /// Whether system calls are to be counted.
    fn counts_calls(&self) -> bool {
        self.calls.may_give_up
            && !matches!(self.calls.seen, Seen::GivenUp(_))
            && self.probe.slows_system_calls()
    }

    /// Sees mappings from now on, to the end, whatever that costs others.
    pub(super) fn keep_mappings(&mut self) -> Result<(), KernelError> {
        self.calls.may_give_up = false;
        if let Some(counter) = self.calls.counter.take() {
            self.probe.end_counter(counter);
        }
        self.see_mappings()
    }

    /// Sees mappings from now on.
    fn see_mappings(&mut self) -> Result<(), KernelError> {
        if matches!(self.calls.seen, Seen::NotYet(_)) {
            self.probe.attach_mappings()?;
            self.calls.seen = Seen::Yes;
        }
        Ok(())
    }

    /// At the beginning: mappings are seen at once, but where that makes system calls dearer and the machine makes many. Nothing is done
    /// while they are counted, for we make many ourselves.
    pub(super) fn begin_mappings(&mut self) -> Result<(), KernelError> {
        if !self.counts_calls() {
            return self.see_mappings();
        }
        // The first begins to count.
        self.step_calls()?;
        if self.calls.counter.is_some() {
            std::thread::sleep(COUNT_FOR);
            self.step_calls()?;
        }
        Ok(())
    }

    /// How soon the machine's system calls want to be looked at.
    pub(super) fn next_count_step(&self) -> Duration {
        if self.counts_calls() {
            self.calls.wait_at_most()
        } else {
            Duration::MAX
        }
    }

    /// Counts the machine's system calls where that matters, and gives mappings up when they are too many.
    pub(super) fn step_calls(&mut self) -> Result<(), KernelError> {
        if !self.counts_calls() {
            return Ok(());
        }
        let calls = &mut self.calls;
        let at = calls.began.elapsed();
        let Some(counter) = &mut calls.counter else {
            if at < calls.watch.next() {
                return Ok(());
            }
            if calls.has_rested(&self.proc_root) {
                calls.watch.rested(at);
                return self.see_mappings();
            }
            match CallCounter::start() {
                Ok(counter) => calls.counter = Some(counter),
                Err(error) => self.give_mappings_up(format!("{NOT_SHOWN}: {error}")),
            }
            return Ok(());
        };
        if counter.begun().elapsed() < COUNT_FOR {
            return Ok(());
        }
        let counted = counter.read();
        if let Some(counter) = calls.counter.take() {
            self.probe.end_counter(counter);
        }
        match counted {
            Ok(count) => {
                let given_up = calls.watch.counted(at, count.most, count.over).is_some();
                if !calls.watch.was_too_high() {
                    return self.see_mappings();
                }
                let was_seen = calls.seen == Seen::Yes;
                let taken_away = if was_seen {
                    let after = calls.began.elapsed().as_secs_f64();
                    format!(", after {after:.1} s")
                } else {
                    String::new()
                };
                let rate = a_second(count.most, count.over);
                let why = format!(
                    "{NOT_SHOWN}{taken_away}: {DEARER} (one processor makes {rate:.0} a second; {WHO_SHOWS})"
                );
                if given_up {
                    self.give_mappings_up(why);
                } else if !was_seen {
                    calls.seen = Seen::NotYet(why);
                }
            }
            Err(error) => self.give_mappings_up(format!("{NOT_SHOWN}: {error}")),
        }
        Ok(())
    }

    /// Mappings are not seen any more, and what was seen of them is not shown: why.
    fn give_mappings_up(&mut self, why: String) {
        self.probe.end_mappings();
        self.growth.give_all_up();
        self.calls.seen = Seen::GivenUp(why);
    }

    /// Looks at some processes that have run since they were last looked at for new code, where nobody tells of it.
    pub(super) fn look_for_code(&mut self) -> Result<(), KernelError> {
        if self.calls.seen == Seen::Yes {
            return Ok(());
        }
        let now = Instant::now();
        let due: Vec<u32> = self
            .processes
            .values()
            .filter(|traced| {
                traced.ended.is_none() && traced.code_look.is_none_or(|look| look.is_due(now))
            })
            .map(|traced| traced.pid)
            .collect();
        let mut looked = 0;
        for pid in due {
            self.faults.work_on(pid);
            let Some(traced) = self.processes.get_mut(&pid) else {
                continue;
            };
            // One that is gone has nothing more to be found.
            let cpu = process_cpu_time(pid).unwrap_or_default();
            let before = traced.code_look;
            traced.code_look = Some(CodeLook::after(before, now, cpu));
            if before.is_some_and(|before| before.cpu == cpu) {
                continue;
            }
            let is_new = traced
                .space
                .refresh(&self.proc_root, pid, &mut self.modules)
                .unwrap_or(false);
            if std::mem::take(&mut traced.has_new_code) || is_new {
                self.look_at_mappings(pid, false)?;
            }
            looked += 1;
            if looked == LOOKED_AT_ONCE {
                break;
            }
        }
        self.faults.work_on(None);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::expect_used, reason = "tests")]

    use super::{CodeLook, LOOK_FOR_CODE_EVERY, LOOK_FOR_CODE_FIRST, idle_time};
    use std::time::{Duration, Instant};

    #[test]
    fn looks_for_code_become_rarer() {
        let now = Instant::now();
        let mut look = CodeLook::after(None, now, Duration::ZERO);
        assert_eq!(look.again, LOOK_FOR_CODE_FIRST);
        assert!(!look.is_due(now));
        assert!(look.is_due(now + LOOK_FOR_CODE_FIRST));
        for _ in 0..10 {
            look = CodeLook::after(Some(look), now, Duration::ZERO);
        }
        assert_eq!(look.again, LOOK_FOR_CODE_EVERY);
    }

    #[test]
    fn the_machines_idle_time_is_the_second_figure() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(idle_time(folder.path()), None);
        let file = folder.path().join("uptime");
        for (text, time) in [
            ("35.02 61.50\n", Some(Duration::from_millis(61_500))),
            ("35.02\n", None),
            ("35.02 -1\n", None),
            ("35.02 nan\n", None),
        ] {
            std::fs::write(&file, text).expect("written");
            assert_eq!(idle_time(folder.path()), time, "{text}");
        }
    }
}
