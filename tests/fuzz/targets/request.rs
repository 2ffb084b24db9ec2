//! What whoever reaches the daemon asks for: a path with a query.
#![no_main]

use leakscope::daemon::is_well_asked;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|asked: &str| {
    let _ = is_well_asked(asked);
});
