//! `leakscope guard`: waits for the end of the leakscope that started it, and lets those of its command's processes run on that
//! it held at that moment. Not for users: `leakscope trace -- COMMAND` starts it.

use std::{collections::BTreeMap, path::Path, process::ExitCode, thread::sleep, time::Duration};

use crate::{kernel::Watched, process::procfs::is_stopped};

/// Between two looks. A signal that the probe sent last may still be on its way.
const PAUSE: Duration = Duration::from_millis(5);

/// So many looks in a row must find nobody stopped.
const QUIET_LOOKS: u32 = 10;

/// Whoever is stopped again and again is stopped by somebody else.
const TIMES: u32 = 3;

/// Waits, and frees.
pub(super) fn run() -> anyhow::Result<ExitCode> {
    let watched = Watched::inherited()?;
    watched.wait_for_end()?;
    let mut resumed: BTreeMap<u32, u32> = BTreeMap::new();
    let mut quiet = 0;
    while quiet < QUIET_LOOKS {
        quiet += 1;
        for pid in watched.processes() {
            // One that is gone is not stopped.
            if is_stopped(Path::new("/proc"), pid).unwrap_or(false) {
                let times = resumed.entry(pid).or_default();
                if *times < TIMES {
                    *times += 1;
                    watched.resume(pid);
                    quiet = 0;
                }
            }
        }
        sleep(PAUSE);
    }
    Ok(ExitCode::SUCCESS)
}
