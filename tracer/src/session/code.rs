//! New code that nobody tells of: where the kernel does not let functions be seen, what a process maps at an address of its own choice is found by
//! looking at what it maps.

use std::time::{Duration, Instant};

use super::Session;
use crate::kernel::{KernelError, MappingWay, process_cpu_time};

/// How often a process is looked at for new code that nobody tells of, if it has run meanwhile. Sooner at first, each time after twice as
/// long: a program that has just begun maps its libraries.
const LOOK_FOR_CODE_EVERY: Duration = Duration::from_secs(3);
const LOOK_FOR_CODE_FIRST: Duration = Duration::from_millis(100);

/// Of how many processes at once: to read the mappings of one takes some 0.1 ms.
const LOOKED_AT_ONCE: usize = 8;

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

impl Session {
    /// Looks at some processes that have run since they were last looked at for new code, where nobody tells of it.
    pub(super) fn look_for_code(&mut self) -> Result<(), KernelError> {
        if *self.probe.mapping_way() == MappingWay::Functions {
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
    use super::{CodeLook, LOOK_FOR_CODE_EVERY, LOOK_FOR_CODE_FIRST};
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
}
