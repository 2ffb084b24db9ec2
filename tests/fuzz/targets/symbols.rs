//! A hostile ELF file as the symbolizer sees it: symbol tables and DWARF. Names are found or not; nothing else happens.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use leakscope::process::elf::ElfFile;
use leakscope::symbol::{ElfSymbols, Module, Symbols};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    static QUIET: Once = Once::new();
    // A panic of the library that is caught is what is to be shown here; one that is not caught still ends the run.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let Ok(elf) = ElfFile::parse(bytes) else {
        return;
    };
    // In memory: /dev/shm is a tmpfs. A name of its own, for the symbolizer remembers files by their names.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(format!(
        "/dev/shm/leakscope-fuzz-{}-{number}",
        std::process::id()
    ));
    let mut file = File::create_new(&path).expect("a file in /dev/shm");
    file.write_all(bytes).expect("room in /dev/shm");
    drop(file);
    let file = File::open(&path).expect("the file is there");
    std::fs::remove_file(&path).expect("the file is ours");
    let addresses: Vec<u64> = elf
        .segments
        .iter()
        .map(|segment| segment.vaddr)
        .chain([elf.entry, 0, u64::MAX])
        .collect();
    let module = Module {
        number: 1,
        code: 1,
        path: PathBuf::from("/nowhere/file"),
        root: PathBuf::from("/nowhere"),
        file,
        elf: Some(elf),
        build_id: None,
        identity: (0, number, bytes.len() as u64, 0),
    };
    let mut symbols = ElfSymbols::default();
    for address in addresses {
        for step in [0, 1, 0x10] {
            let _ = symbols.name(&module, address.wrapping_add(step));
        }
    }
});
