//! `/proc/PID/maps`, in which the names of files are what a process pleases.
#![no_main]

use leakscope::process::procfs::parse_maps;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(maps) = parse_maps(text) else {
        return;
    };
    for map in &maps {
        assert!(map.start <= map.end);
        assert!(map.path.as_os_str().len() <= text.len());
        if let Some(address) = map.address_of(map.offset) {
            assert_eq!(address, map.start);
        }
        let _ = map.address_of(u64::MAX);
        let _ = map.is_file();
    }
});
