//! A perf map, which a process writes itself.
#![no_main]

use leakscope::symbol::PerfMap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let map = PerfMap::read(text);
    for line in text.split(|byte| *byte == b'\n').take(32) {
        let digits = line.split(|byte| *byte == b' ').next().unwrap_or_default();
        let digits = String::from_utf8_lossy(digits);
        let Ok(address) = u64::from_str_radix(&digits, 16) else {
            continue;
        };
        for asked in [address, address.wrapping_sub(1), address.wrapping_add(1)] {
            if let Some((_, start)) = map.find(asked) {
                assert!(start <= asked);
            }
        }
    }
});
