//! Hostile call frame information: the table of any file can be built, searched and walked by.
#![no_main]

use leakscope::unwind::{
    BuildOptions, Kept, Lookup, Registers, build, walk, walk_from_system_call,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    for kept in [Kept::Calls, Kept::Writes, Kept::All] {
        let options = BuildOptions {
            kept,
            ..BuildOptions::default()
        };
        let Ok(table) = build(file, &options) else {
            return;
        };
        let mut last = 0;
        let mut first = None;
        for (address, row) in table.iter() {
            assert!(address >= last, "rows are not sorted");
            last = address;
            first.get_or_insert(address);
            assert_eq!(table.lookup(address), Some(row));
        }
        // A thread whose stack is the file itself.
        let lookup = |address| table.lookup(address).map(Lookup::Row);
        let read = |address: u64| {
            let at = usize::try_from(address % 4096).ok()?;
            let bytes = file.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let registers = Registers {
            ip: first.unwrap_or(0),
            sp: 64,
            bp: 128,
        };
        assert!(walk(registers, lookup, read, 127).frames.len() <= 127);
        let walked = walk_from_system_call(registers, lookup, read, 127);
        assert!(walked.frames.len() <= 127);
    }
});
