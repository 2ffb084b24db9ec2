//! Mappings and the system calls of others: where mappings are seen at tracepoints, they are given up when the machine makes so many calls
//! that it shows. New code, which the same tracepoints tell of, is looked for from then on. The budget decides what is too many.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use super::Session;
use crate::{
    budget::{COUNT_FOR, CallWatch},
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
    /// Why mappings were given up.
    given_up: Option<String>,
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
            given_up: None,
        }
    }

    /// Mappings are seen to the end, whatever that costs others.
    pub(super) fn keep_mappings(&mut self) {
        self.may_give_up = false;
    }

    /// Why mappings are not shown any more.
    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.as_deref()
    }

    /// How soon a count is over, or one is due that was found to be called for.
    fn wait_at_most(&self) -> Duration {
        match &self.counter {
            Some(counter) => COUNT_FOR.saturating_sub(counter.begun().elapsed()),
            None if self.watch.is_alarmed() => {
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
        self.calls.may_give_up && self.calls.given_up.is_none() && self.probe.slows_system_calls()
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
    pub(super) fn step_calls(&mut self) {
        if !self.counts_calls() {
            return;
        }
        let calls = &mut self.calls;
        let at = calls.began.elapsed();
        let Some(counter) = &mut calls.counter else {
            if at < calls.watch.next() {
                return;
            }
            if calls.has_rested(&self.proc_root) {
                calls.watch.rested(at);
                return;
            }
            match CallCounter::start() {
                Ok(counter) => calls.counter = Some(counter),
                Err(error) => self.give_mappings_up(&error.to_string()),
            }
            return;
        };
        if counter.begun().elapsed() < COUNT_FOR {
            return;
        }
        let counted = counter.read();
        if let Some(counter) = calls.counter.take() {
            self.probe.end_counter(counter);
        }
        match counted {
            Ok(count) => {
                if let Some(rate) = self.calls.watch.counted(at, count.most, count.over) {
                    self.give_mappings_up(&format!(
                        "one processor makes {rate:.0} system calls a second"
                    ));
                }
            }
            Err(error) => self.give_mappings_up(&error.to_string()),
        }
    }

    /// Mappings are not seen any more, and what was seen of them is not shown.
    fn give_mappings_up(&mut self, why: &str) {
        self.probe.end_mappings();
        self.growth.give_all_up();
        self.calls.given_up = Some(format!(
            "mappings are not shown, for what sees them on this machine makes every system call of every process take longer, and was taken \
             away after {:.1} s ({why}); --tier growth shows them",
            self.calls.began.elapsed().as_secs_f64()
        ));
    }

    /// Looks at some processes that have run since they were last looked at for new code, where nobody tells of it.
    pub(super) fn look_for_code(&mut self) -> Result<(), KernelError> {
        if self.calls.given_up.is_none() {
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
