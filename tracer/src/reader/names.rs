//! What a person calls the places outside heaps: variables by their symbols, stacks by their threads.

use std::{collections::HashMap, ops::Range, path::Path, sync::Arc};

use leakscope_common::PAGE_BYTES;

use super::{functions::RustFunctions, regions::AddressSpaceImage};
use crate::{
    heap::{RegionKind, RootName},
    process::{elf::ElfFile, procfs::MemoryMap},
    symbol::{Debuginfod, ElfSymbols, Module, Modules, Symbols as _},
    units::bytes,
};

/// Names addresses of an address space.
pub struct Names<'image> {
    image: &'image AddressSpaceImage,
    proc_root: &'image Path,
    pid: u32,
    symbols: ElfSymbols,
    modules: Modules,
    functions: RustFunctions,
    /// Files by the beginnings of their mappings.
    opened: HashMap<u64, Option<Arc<Module>>>,
}

impl<'image> Names<'image> {
    /// Names places of this process.
    #[must_use]
    pub fn new(image: &'image AddressSpaceImage, proc_root: &'image Path, pid: u32) -> Self {
        Self {
            image,
            proc_root,
            pid,
            symbols: ElfSymbols::default(),
            modules: Modules::default(),
            functions: RustFunctions::default(),
            opened: HashMap::new(),
        }
    }

    /// Servers are asked for symbols that are not on this machine, and waited for.
    #[must_use]
    pub fn with_servers(mut self, servers: Option<Debuginfod>) -> Self {
        self.symbols = ElfSymbols::with_servers(servers);
        self.symbols.be_patient();
        self
    }

    /// A variable: `global NAME+0x10 in FILE`, or where in the file's data it is; without where where the whole is asked for. And the
    /// addresses that the variable has, as far as the file says it.
    fn variable(&mut self, map: &MemoryMap, address: u64, is_whole: bool) -> (String, Range<u64>) {
        let file = map
            .path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let module = self
            .opened
            .entry(map.start)
            .or_insert_with(|| self.modules.open(self.proc_root, self.pid, map))
            .clone();
        let named = module.and_then(|module| {
            let start = data_vaddr(module.elf.as_ref()?, map.offset)?;
            let place = start.checked_add(address.checked_sub(map.start)?)?;
            let named = self.symbols.name(&module, place).pop()?;
            Some((
                named.function,
                place.saturating_sub(named.start?),
                named.size,
            ))
        });
        let offset = address.saturating_sub(map.start);
        match named {
            Some((name, offset, size)) => {
                let first = address.saturating_sub(offset).max(map.start);
                let behind = first.saturating_add(size.unwrap_or(0)).clamp(
                    address.saturating_add(1),
                    map.end.max(address.saturating_add(1)),
                );
                let name = if offset > 0 && !is_whole {
                    format!("global {name}+{offset:#x} in {file}")
                } else {
                    format!("global {name} in {file}")
                };
                (name, first..behind)
            }
            // Between what has names there may be more of them.
            None if is_whole => (
                format!("data of {file}"),
                address..address.saturating_add(1),
            ),
            None => (
                format!("data of {file}+{offset:#x}"),
                address..address.saturating_add(1),
            ),
        }
    }

    fn place(&mut self, address: u64, is_whole: bool) -> (String, Range<u64>) {
        let image = self.image;
        let behind = image
            .regions
            .partition_point(|region| region.range.start <= address);
        let found = behind
            .checked_sub(1)
            .and_then(|place| Some((place, image.regions.get(place)?)));
        let Some((place, region)) = found else {
            return ("nowhere".to_owned(), address..address.saturating_add(1));
        };
        let name = match (image.files.get(place), region.kind) {
            (Some(Some(map)), RegionKind::Data | RegionKind::Constant) => {
                return self.variable(map, address, is_whole);
            }
            (_, RegionKind::Stack) => {
                if region.name.starts_with('[') {
                    format!("thread {} stack", self.pid)
                } else {
                    region.name.clone()
                }
            }
            (_, RegionKind::Shared) => format!("shared memory {}", region.name),
            _ => format!(
                "mapping of {} at {:#x}",
                bytes(region.range.end - region.range.start),
                region.range.start
            ),
        };
        (name, region.range.clone())
    }
}

/// The ELF virtual address at which a mapping of data begins. The page in which constants end and data begins is mapped for both:
/// data comes last.
pub(super) fn data_vaddr(elf: &ElfFile, file_offset: u64) -> Option<u64> {
    vaddr_at(elf, file_offset, false)
}

/// The ELF virtual address at which a mapping of code begins.
pub(super) fn code_vaddr(elf: &ElfFile, file_offset: u64) -> Option<u64> {
    vaddr_at(elf, file_offset, true)
}

fn vaddr_at(elf: &ElfFile, file_offset: u64, is_code: bool) -> Option<u64> {
    elf.segments
        .iter()
        .rev()
        .filter(|segment| segment.executable == is_code)
        .find_map(|segment| {
            let first = segment.file_offset - segment.file_offset % PAGE_BYTES;
            let behind = segment.file_offset.checked_add(segment.file_size)?;
            (first..behind).contains(&file_offset).then(|| {
                segment
                    .vaddr
                    .wrapping_sub(segment.file_offset)
                    .wrapping_add(file_offset)
            })
        })
}

impl RootName for Names<'_> {
    fn has_rust(&mut self) -> bool {
        let place = (self.proc_root, self.pid);
        self.functions
            .are_there(self.image, place, &mut self.modules)
    }

    fn functions(&mut self, address: u64) -> Option<Vec<String>> {
        let place = (self.proc_root, self.pid);
        self.functions
            .at(self.image, place, &mut self.modules, address)
    }

    fn has_function(&mut self, address: u64, name: &str) -> bool {
        let place = (self.proc_root, self.pid);
        let asked = (address, name);
        self.functions
            .exists(self.image, place, &mut self.modules, asked)
    }

    fn name(&mut self, address: u64) -> String {
        self.place(address, false).0
    }

    fn whole(&mut self, address: u64) -> (String, Range<u64>) {
        self.place(address, true)
    }
}
