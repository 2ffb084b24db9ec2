//! A saved profile that somebody else gave to `diff`, compressed or not.
#![no_main]

mod views;

use leakscope::report::pprof;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(profile) = pprof::read(bytes) else {
        return;
    };
    let _ = profile.totals();
    let Ok(report) = pprof::to_report(&profile) else {
        return;
    };
    // A profile has samples for sites; it cannot list processes without any, so all that it tells of adds up.
    let contradictions: Vec<_> = report
        .contradictions()
        .into_iter()
        .filter(|text| text.contains("outside") || text.contains("more survives"))
        .collect();
    assert!(contradictions.is_empty(), "{contradictions:?}");
    views::show(&report);
});
