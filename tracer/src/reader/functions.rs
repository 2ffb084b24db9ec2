//! Functions of Rust by their addresses: drop glue and methods of traits, whose names have a type in them. Knows no vtable.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    path::Path,
    sync::Arc,
};

use super::{names::code_vaddr, regions::AddressSpaceImage};
use crate::{
    apart,
    process::elf::{ElfFile, SymbolKind},
    symbol::{Module, Modules, demangled},
};

/// What `.comment` says of a file that rustc has compiled a part of; it stays where a file is stripped.
const COMPILER: &[u8] = b"rustc version";
/// A longer section is not looked through, bytes.
const LONGEST_COMMENT: u64 = 1 << 16;
/// With as many symbols as are given out there may be more.
const MOST: usize = 65_536;

/// The functions of the files of a process.
#[derive(Debug, Default)]
pub(super) struct RustFunctions {
    /// By the number of the module.
    files: HashMap<u64, Named>,
    has_rust: Option<bool>,
}

#[derive(Debug, Default)]
struct Named {
    by_address: HashMap<u64, Vec<String>>,
    all: HashSet<String>,
    is_cut: bool,
}

impl RustFunctions {
    /// Whether a file of the process was compiled from Rust, in part.
    pub(super) fn are_there(
        &mut self,
        image: &AddressSpaceImage,
        (proc_root, pid): (&Path, u32),
        modules: &mut Modules,
    ) -> bool {
        *self.has_rust.get_or_insert_with(|| {
            let mut maps = image.files.iter().flatten().filter(|map| map.executable);
            maps.any(|map| {
                modules
                    .open(proc_root, pid, map)
                    .is_some_and(|module| apart::holds_rust(&module.file))
            })
        })
    }

    /// The names of the functions that begin at an address; `None` where no code is.
    pub(super) fn at(
        &mut self,
        image: &AddressSpaceImage,
        place: (&Path, u32),
        modules: &mut Modules,
        address: u64,
    ) -> Option<Vec<String>> {
        let map = image.file_of(address).filter(|map| map.executable)?;
        let module = modules.open(place.0, place.1, map)?;
        let start = code_vaddr(module.elf.as_ref()?, map.offset)?;
        let vaddr = start.checked_add(address.checked_sub(map.start)?)?;
        let named = self.of(&module).by_address.get(&vaddr);
        Some(named.cloned().unwrap_or_default())
    }

    /// Whether the file that maps an address has a function of a name, or may have.
    pub(super) fn exists(
        &mut self,
        image: &AddressSpaceImage,
        place: (&Path, u32),
        modules: &mut Modules,
        (address, name): (u64, &str),
    ) -> bool {
        image
            .file_of(address)
            .and_then(|map| modules.open(place.0, place.1, map))
            .is_none_or(|module| {
                let named = self.of(&module);
                named.is_cut || named.all.contains(name)
            })
    }

    fn of(&mut self, module: &Arc<Module>) -> &Named {
        self.files
            .entry(module.number)
            .or_insert_with(|| Named::read(module))
    }
}

impl Named {
    fn read(module: &Module) -> Self {
        let mut named = Self::default();
        let functions = apart::rust_functions(&module.file);
        named.is_cut = functions
            .as_ref()
            .map_or(true, |functions| functions.len() >= MOST);
        for (address, name) in functions.unwrap_or_default() {
            named.all.insert(name.clone());
            named.by_address.entry(address).or_default().push(name);
        }
        named
    }
}

/// Whether a mangled name has a type in it that a vtable can be of: drop glue and methods of traits, in the legacy mangling and in
/// that of RFC 2603.
fn has_type(name: &[u8]) -> bool {
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    let begins = |start: &&[u8]| name.starts_with(start);
    if name.starts_with(b"_ZN") {
        return has(b"drop_in_place") || has(b"$u20$as$u20$");
    }
    let methods: [&[u8]; 6] = [
        b"_RNvX", b"_RNvY", b"_RINvX", b"_RINvY", b"_RNSNvX", b"_RNSNvY",
    ];
    name.starts_with(b"_R") && (methods.iter().any(begins) || has(b"13drop_in_place"))
}

/// The functions of a file whose names have types in them, with their addresses.
pub(crate) fn rust_functions(elf: &ElfFile, file: &File) -> Vec<(u64, String)> {
    let symbols = elf.symbols(file, has_type).unwrap_or_default();
    symbols
        .into_iter()
        .filter(|symbol| symbol.kind == SymbolKind::Function)
        .map(|symbol| (symbol.vaddr, demangled(&symbol.name)))
        .collect()
}

/// Whether rustc has compiled a part of a file.
pub(crate) fn holds_rust(elf: &ElfFile, file: &File) -> bool {
    let section = elf
        .section(".comment")
        .filter(|section| section.size <= LONGEST_COMMENT);
    section
        .and_then(|section| section.read(file).ok())
        .is_some_and(|text| text.windows(COMPILER.len()).any(|part| part == COMPILER))
}

#[cfg(test)]
mod tests {
    use super::has_type;

    #[test]
    fn names_with_types_are_picked_in_both_manglings() {
        for name in [
            "_ZN4core3ptr33drop_in_place$LT$v..Circle$GT$17h920fb5b3b28bc60cE",
            "_ZN42_$LT$v..Square$u20$as$u20$v..Shape$GT$4area17hfa6c35d571cdbccaE",
            "_RNvXs_Cs4QpAyJL01X4_1vNtB4_6SquareNtB4_5Shape4area",
            "_RINvNtCs1_4core3ptr13drop_in_placeNtCs2_1v6CircleEB1_",
        ] {
            assert!(has_type(name.as_bytes()), "{name}");
        }
        assert!(!has_type(b"_ZN1v4main17h920fb5b3b28bc60cE"));
        assert!(!has_type(b"malloc"));
    }
}
