//! A hostile ELF file: its headers, tables, allocators and the instructions at its probe sites. No file may cost more than an
//! error, or memory beyond a few times its size.
#![no_main]

use std::path::Path;

use leakscope::process::allocator::find_allocators;
use leakscope::process::elf::ElfFile;
use leakscope::process::site::select;
use leakscope_common::Function;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(elf) = ElfFile::parse(file) else {
        return;
    };
    for segment in &elf.segments {
        for executable in [false, true] {
            let _ = elf.vaddr_of_mapping(segment.file_offset, executable);
        }
        if let Some(vaddr) = elf.vaddr_of(segment.file_offset) {
            // Segments may overlap; what is found is inside the file's own claims.
            let _ = elf.file_offset_of(vaddr);
        }
        let _ = elf.is_code(segment.vaddr);
    }
    if let Ok(symbols) = elf.symbols(file, |_| true) {
        for symbol in symbols.iter().take(6) {
            let Ok(code) = elf.code_at(file, symbol.vaddr, 1024) else {
                continue;
            };
            assert!(code.len() <= file.len());
            for wants_return in [false, true] {
                let site = select(&code, symbol.vaddr, Function::Malloc, wants_return);
                assert!(site.offset_from_entry <= code.len() as u64);
            }
        }
    }
    let _ = elf.symbol_slots(file, |_| true);
    let _ = find_allocators(&elf, file, Path::new("/lib/libc.so.6"));
});
