//! What a person calls the places outside heaps: variables by their symbols, stacks by their threads.

use std::path::Path;

use leakscope_common::PAGE_BYTES;

use super::regions::AddressSpaceImage;
use crate::{
    heap::{RegionKind, RootName},
    symbol::{Debuginfod, ElfSymbols, Modules, Symbols as _},
    target::{elf::ElfFile, process::MemoryMap},
    units::bytes,
};

/// Names addresses of an address space.
pub struct Names<'image> {
    image: &'image AddressSpaceImage,
    proc_root: &'image Path,
    pid: u32,
    symbols: ElfSymbols,
    modules: Modules,
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
        }
    }

    /// Servers are asked for symbols that are not on this machine, and waited for.
    #[must_use]
    pub fn with_servers(mut self, servers: Option<Debuginfod>) -> Self {
        self.symbols = ElfSymbols::with_servers(servers);
        self.symbols.be_patient();
        self
    }

    /// `global NAME+0x10 in FILE`, or where in the file's data it is.
    fn variable(&mut self, map: &MemoryMap, address: u64) -> String {
        let file = map
            .path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let named = self
            .modules
            .open(self.proc_root, self.pid, map)
            .and_then(|module| {
                let start = data_vaddr(module.elf.as_ref()?, map.offset)?;
                let place = start.checked_add(address.checked_sub(map.start)?)?;
                let named = self.symbols.name(&module, place).pop()?;
                Some((named.function, place.saturating_sub(named.start?)))
            });
        match named {
            Some((name, 0)) => format!("global {name} in {file}"),
            Some((name, offset)) => format!("global {name}+{offset:#x} in {file}"),
            None => format!("data of {file}+{:#x}", address.saturating_sub(map.start)),
        }
    }
}

/// The ELF virtual address at which a mapping of data begins. The page in which constants end and data begins is mapped for both:
/// data comes last.
pub(super) fn data_vaddr(elf: &ElfFile, file_offset: u64) -> Option<u64> {
    elf.segments
        .iter()
        .rev()
        .filter(|segment| !segment.executable)
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
    fn name(&mut self, address: u64) -> String {
        let image = self.image;
        let behind = image
            .regions
            .partition_point(|region| region.range.start <= address);
        let Some(place) = behind.checked_sub(1) else {
            return "nowhere".to_owned();
        };
        let Some(region) = image.regions.get(place) else {
            return "nowhere".to_owned();
        };
        match (image.files.get(place), region.kind) {
            (Some(Some(map)), RegionKind::Data | RegionKind::Constant) => {
                self.variable(map, address)
            }
            (_, RegionKind::Stack) => {
                if region.name.starts_with('[') {
                    "stack of the first thread".to_owned()
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
        }
    }
}
