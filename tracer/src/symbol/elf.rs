//! The backend for ELF files: blazesym, in the reader. Files are what traced processes please, and the library is not ours: whatever it
//! does on a damaged one costs that file's names and nothing else.

use std::{collections::HashSet, fs::File};

use blazesym::symbolize::{Input, Symbolized, Symbolizer, source};
use serde::{Deserialize, Serialize};

use super::{
    DebugFiles, Debuginfod,
    demangle::demangled,
    space::Module,
    vetted::{Identity, Readable, Vetted},
};
use crate::apart;

/// Said of a file that is copied to be read.
const DEBUG_LEFT_OUT: &str = "its debug information is not read: others than root can change it, and it is larger than what is copied";

/// A function at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its name, demangled.
    pub function: String,
    /// Its first ELF virtual address; unknown for inlined functions.
    pub start: Option<u64>,
    /// Its bytes, where the file says it; as believable as the file.
    pub size: Option<u64>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// Whether it was inlined into the function that follows.
    pub inlined: bool,
}

/// Names addresses of a module.
pub trait Symbols {
    /// The functions at each of some ELF virtual addresses: inlined ones first, innermost first; the last is the one that
    /// was called. Empty when there is no name.
    fn names(&mut self, module: &Module, virtual_addresses: &[u64]) -> Vec<Vec<Named>>;

    /// The functions at one.
    fn name(&mut self, module: &Module, virtual_address: u64) -> Vec<Named> {
        self.names(module, &[virtual_address])
            .pop()
            .unwrap_or_default()
    }

    /// Addresses of this module are going to be named.
    fn prepare(&mut self, _module: &Module) {}

    /// The modules, by number, for which there are better names since this was asked last.
    fn improved(&mut self) -> Vec<u64> {
        Vec::new()
    }

    /// From now on better names that are on their way are waited for, within bounds.
    fn be_patient(&mut self) {}

    /// The modules, by number, of which there are no names, or not all that there could be, and why; each is told once.
    fn refused(&mut self) -> Vec<(u64, String)> {
        Vec::new()
    }
}

/// What a file says of some addresses.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// For each address: see [`Symbols::names`].
    names: Vec<Vec<Named>>,
    /// Why there is no name.
    refused: Option<String>,
    /// Whether there is debug information that is not read.
    without_debug: bool,
}

/// Reads names from files that are handed to it, and remembers what it has read.
pub(crate) struct Namer {
    symbolizer: Symbolizer,
    vetted: Vetted,
}

impl Default for Namer {
    fn default() -> Self {
        // Separate debug files are looked for by `DebugFiles`, by build-id; the files are named by descriptors, of which blazesym
        // could not find the folder.
        let symbolizer = Symbolizer::builder()
            .set_debug_dirs(Some(std::iter::empty::<&str>()))
            .enable_auto_reload(false)
            // It knows no bound for names.
            .enable_demangling(false)
            .build();
        Self {
            symbolizer,
            vetted: Vetted::default(),
        }
    }
}

impl Namer {
    /// The functions at some addresses of a file, which may have a separate debug file.
    pub(crate) fn names(
        &mut self,
        (identity, file): (Identity, File),
        debug: Option<File>,
        addresses: &[u64],
    ) -> Answered {
        if self.vetted.is_full() {
            *self = Self::default();
        }
        // A debug file may lack what the module's own dynamic symbols have; those are better than nothing.
        let mut all: Vec<Readable> = Vec::new();
        all.extend(debug.and_then(|debug| self.vetted.readable_now(debug).ok()));
        match self.vetted.readable(identity, file) {
            Ok(own) => all.push(own),
            Err(why) => {
                return Answered {
                    refused: Some(why),
                    ..Answered::default()
                };
            }
        }
        Answered {
            without_debug: all.iter().any(|readable| !readable.has_debug),
            names: addresses
                .iter()
                .map(|address| {
                    let mut found = all
                        .iter()
                        .map(|readable| self.look_up(readable, *address))
                        .skip_while(Vec::is_empty);
                    found.next().unwrap_or_default()
                })
                .collect(),
            refused: None,
        }
    }

    fn look_up(&self, readable: &Readable, virtual_address: u64) -> Vec<Named> {
        let mut elf = source::Elf::new(&readable.path);
        elf.debug_syms = readable.has_debug;
        let source = source::Source::Elf(elf);
        match self
            .symbolizer
            .symbolize_single(&source, Input::VirtOffset(virtual_address))
        {
            Ok(Symbolized::Sym(symbol)) => named(&symbol),
            // No name is an answer, not an error.
            Ok(Symbolized::Unknown(_)) | Err(_) => Vec::new(),
        }
    }
}

/// ELF symbols and DWARF, through the reader.
#[derive(Debug, Default)]
pub struct ElfSymbols {
    debug: DebugFiles,
    /// Modules that have no names, by number: they are not looked at again.
    broken: HashSet<u64>,
    /// Modules whose debug information is left out, by number.
    without_debug: HashSet<u64>,
    /// What is to be said of modules, as long as nobody was told.
    refused: Vec<(u64, String)>,
}

impl ElfSymbols {
    /// Asks servers for debug information that is not on this machine.
    #[must_use]
    pub fn with_servers(servers: Option<Debuginfod>) -> Self {
        Self {
            debug: servers.map_or_else(DebugFiles::default, DebugFiles::with_servers),
            ..Self::default()
        }
    }

    /// What the reader says of addresses that are loaded.
    fn ask(&mut self, module: &Module, addresses: &[u64]) -> Vec<Vec<Named>> {
        let debug = self.debug.file_for(module);
        let (answered, is_for_now) =
            match apart::names((module.identity, &module.file), debug, addresses) {
                Ok(answered) => (answered, false),
                Err(why) => (
                    Answered {
                        refused: Some(why.to_string()),
                        ..Answered::default()
                    },
                    why.is_for_now(),
                ),
            };
        if let Some(why) = answered.refused {
            if !is_for_now {
                self.broken.insert(module.number);
            }
            self.refused
                .push((module.number, format!("its functions have no names: {why}")));
        }
        if answered.without_debug && self.without_debug.insert(module.number) {
            self.refused
                .push((module.number, DEBUG_LEFT_OUT.to_owned()));
        }
        answered.names
    }
}

impl Symbols for ElfSymbols {
    fn prepare(&mut self, module: &Module) {
        self.debug.prepare(module);
    }

    fn improved(&mut self) -> Vec<u64> {
        self.debug.arrived()
    }

    fn be_patient(&mut self) {
        self.debug.be_patient();
    }

    fn refused(&mut self) -> Vec<(u64, String)> {
        std::mem::take(&mut self.refused)
    }

    fn names(&mut self, module: &Module, virtual_addresses: &[u64]) -> Vec<Vec<Named>> {
        // Nothing is loaded elsewhere, and the library adds to addresses without a care.
        let is_loaded = |address: &u64| {
            *address != u64::MAX
                && module.elf.as_ref().is_some_and(|elf| {
                    elf.segments.iter().any(|segment| {
                        address
                            .checked_sub(segment.vaddr)
                            .is_some_and(|distance| distance < segment.memory_size)
                    })
                })
        };
        let loaded: Vec<u64> = virtual_addresses
            .iter()
            .copied()
            .filter(is_loaded)
            .collect();
        let named = if loaded.is_empty() || self.broken.contains(&module.number) {
            Vec::new()
        } else {
            self.ask(module, &loaded)
        };
        let mut named = named.into_iter();
        virtual_addresses
            .iter()
            .map(|address| {
                let next = is_loaded(address).then(|| named.next()).flatten();
                next.unwrap_or_default()
            })
            .collect()
    }
}

/// blazesym gives the outer function first and the inlined ones in the order of their nesting.
fn named(symbol: &blazesym::symbolize::Sym<'_>) -> Vec<Named> {
    let place = |info: Option<&blazesym::symbolize::CodeInfo<'_>>| {
        (
            info.map(|info| info.to_path().to_string_lossy().into_owned()),
            info.and_then(|info| info.line),
        )
    };
    // The outer function's own place stands in the symbol; what it is called for is in the first inlined one.
    let (file, line) = place(symbol.code_info.as_deref());
    let mut names = vec![Named {
        function: demangled(&symbol.name),
        start: Some(symbol.addr),
        size: symbol.size.and_then(|size| u64::try_from(size).ok()),
        file,
        line,
        inlined: false,
    }];
    for inlined in &symbol.inlined {
        let (file, line) = place(inlined.code_info.as_ref());
        names.push(Named {
            function: demangled(&inlined.name),
            start: None,
            size: None,
            file,
            line,
            inlined: true,
        });
    }
    names.reverse();
    names
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{ElfSymbols, Symbols as _};
    use crate::{process::elf::ElfFile, symbol::Module};
    use std::{fs::File, os::unix::fs::PermissionsExt as _, path::PathBuf};

    fn ourselves() -> Module {
        let path = std::env::current_exe().unwrap();
        let file = File::open(&path).unwrap();
        Module {
            number: 1,
            code: 1,
            elf: Some(ElfFile::parse(&file).unwrap()),
            path,
            root: PathBuf::from("/"),
            file,
            build_id: None,
            identity: (0, 0, 0, 0),
        }
    }

    #[test]
    fn a_file_that_is_cut_short_keeps_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut");
        std::fs::copy(std::env::current_exe().unwrap(), &path).unwrap();
        // Anybody may write to it: it is read as a copy.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut module = ourselves();
        module.file = file;
        let entry = module.elf.as_ref().unwrap().entry;
        let mut symbols = ElfSymbols::default();
        let before = symbols.name(&module, entry);
        assert!(before.iter().any(|named| named.function == "_start"));
        module.file.set_len(4096).unwrap();
        assert_eq!(symbols.name(&module, entry + 1).len(), before.len());
        assert_eq!(symbols.refused(), []);
    }

    #[test]
    fn the_last_address_of_all_overflows_nothing() {
        let module = ourselves();
        let mut symbols = ElfSymbols::default();
        for address in [u64::MAX, u64::MAX - 1, 1 << 47] {
            assert_eq!(symbols.name(&module, address), []);
        }
        let entry = module.elf.as_ref().unwrap().entry;
        let named = symbols.name(&module, entry);
        assert!(
            named.iter().any(|named| named.function == "_start"),
            "{named:?}"
        );
    }
}
