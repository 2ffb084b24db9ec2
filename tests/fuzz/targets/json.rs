//! A saved report that somebody else gave to `diff`.
#![no_main]

mod views;

use leakscope::report::Report;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = Report::from_json(bytes) {
        views::show(&report);
    }
});
