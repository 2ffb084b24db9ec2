//! The probe's unwind tables: which file's rows and which process's mappings stand where in the shared arrays.
//!
//! A process's mappings are replaced as a whole: the new slice is written to free room, then the one word that names it is
//! changed, and the old room is used again only after every walk that may still read it has ended.

mod file;
mod room;

pub(crate) use file::read_table;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    num::NonZeroUsize,
    ops::Range,
    path::Path,
    sync::Arc,
};

use leakscope_common::{
    CfaRule, MAPPING_FRAME_POINTERS, MAPPING_GAPS_KEEP_FRAME_POINTERS, MAPPING_NO_TABLE,
    MAPPING_UPROBES, Mapping, UnwindPage, UnwindRow,
};

use crate::{
    apart::{self, Unread},
    kernel::{KernelError, Probe},
    process::elf::{Segment, is_go},
    symbol::{AddressSpace, Module},
    unwind::{BuildOptions, Cache, Key, Table, UnwindError, Wanted},
};
use room::Room;

/// The kernel's name for its page of a process that has uprobes (`xol_add_vma`, kernel/events/uprobes.c).
const UPROBES: &str = "[uprobes]";

/// A file's table in the shared arrays.
#[derive(Debug)]
struct Installed {
    rows: (usize, usize),
    pages: (usize, usize),
    /// See [`Mapping::first_page`].
    first_page: u32,
    users: HashSet<u32>,
}

/// What is known of how a file can be unwound; for `doctor` and for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwinding {
    /// By its table.
    Table {
        /// Rows kept.
        rows: usize,
        /// Rows in full.
        rows_full: usize,
        /// Bytes of rows and index.
        bytes: usize,
        /// Executable bytes of the file.
        text_bytes: u64,
    },
    /// By frame pointers, which its compiler always keeps.
    FramePointers {
        /// Why they can be relied on.
        reason: &'static str,
    },
    /// Not at all.
    Impossible {
        /// Why.
        reason: String,
    },
}

/// Builds tables and remembers them.
#[derive(Debug)]
pub(super) struct Builder {
    cache: Cache,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new(BuildOptions::default(), None)
    }
}

impl Builder {
    fn new(options: BuildOptions, directory: Option<&Path>) -> Self {
        let cache = Cache::new(options);
        Self {
            cache: match directory {
                Some(directory) => cache.with_directory(directory.to_owned()),
                None => cache,
            },
        }
    }

    /// Builds the missing tables, several at a time.
    fn build<'a>(&self, modules: impl Iterator<Item = &'a Arc<Module>>) {
        let requests: Vec<(Wanted, &Arc<Module>)> = modules
            .filter(|module| keeps_frame_pointers(module).is_none())
            .map(|module| (key(module), module))
            .filter(|(key, _)| self.cache.get(key).is_none())
            .map(|(key, module)| (wanted(key, module), module))
            .collect();
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        // Each file's outcome is asked for again when it is installed.
        let _ = self
            .cache
            .build_many(&requests, |module, options| make(module, options), threads);
    }

    /// The table of a file: built, or remembered.
    fn table(&self, module: &Module) -> Result<Arc<Table>, TableError> {
        let key = key(module);
        match self.cache.get(&key) {
            Some(known) => known.map_err(TableError::from),
            None => self
                .cache
                .get_or_build(&wanted(key, module), |options| make(module, options)),
        }
    }

    /// How a file can be unwound.
    #[must_use]
    pub(super) fn describe(&self, module: &Module) -> Unwinding {
        if let Some(reason) = keeps_frame_pointers(module) {
            return Unwinding::FramePointers { reason };
        }
        match self.table(module) {
            Ok(table) => Unwinding::Table {
                rows: table.rows.len(),
                rows_full: table.stats.rows_full as usize,
                bytes: table.bytes(),
                text_bytes: table.stats.text_bytes,
            },
            Err(error) => Unwinding::Impossible {
                reason: error.to_string(),
            },
        }
    }
}

/// Everything that is installed.
pub struct Tables {
    rows: Room,
    pages: Room,
    mappings: Room,
    files: HashMap<u64, Installed>,
    /// By module: see [`Tables::gap_flags`].
    gap_flags: HashMap<u64, u32>,
    slices: HashMap<u32, (usize, usize)>,
    builder: Builder,
}

impl Tables {
    /// Nothing installed yet. Tables are also kept in `directory`, if there is one.
    #[must_use]
    pub fn new(probe: &Probe, options: BuildOptions, directory: Option<&Path>) -> Self {
        let (rows, pages, mappings) = probe.unwind_capacity();
        Self {
            rows: Room::new(rows),
            pages: Room::new(pages),
            mappings: Room::new(mappings),
            files: HashMap::new(),
            gap_flags: HashMap::new(),
            slices: HashMap::new(),
            builder: Builder::new(options, directory),
        }
    }

    /// Installs the tables of everything that a process has mapped, and its mappings, of which parts are marked with more flags. Returns what went wrong, a line for each
    /// file.
    ///
    /// # Errors
    /// The probe's table of processes is full.
    pub fn install(
        &mut self,
        probe: &mut Probe,
        incarnation: u32,
        space: &AddressSpace,
        marks: &[(Range<u64>, u32)],
    ) -> Result<Vec<String>, KernelError> {
        let mut problems = Vec::new();
        let modules: BTreeMap<u64, &Arc<Module>> = space
            .ranges()
            .iter()
            .filter_map(|range| range.module.as_ref())
            .map(|module| (module.number, module))
            .collect();
        self.builder.build(
            modules
                .values()
                .copied()
                .filter(|module| !self.files.contains_key(&module.number)),
        );
        // V8's generated code keeps frame pointers like its builtins; other runtimes' only where they write perf maps.
        let generated_keeps_frame_pointers =
            space.has_perf_map() || modules.values().any(|module| self.gap_flags(module) != 0);
        let mut mappings = Vec::new();
        for range in space.ranges() {
            let mut mapping = Mapping {
                start: range.start,
                end: range.end,
                flags: MAPPING_NO_TABLE,
                ..Mapping::default()
            };
            if range.label.as_deref() == Some(UPROBES) {
                mapping.flags |= MAPPING_UPROBES;
            } else if range.module.is_none()
                && range.label.is_none()
                && generated_keeps_frame_pointers
            {
                mapping.flags = MAPPING_FRAME_POINTERS;
            }
            if let Some(module) = &range.module {
                mapping.bias = range.start.wrapping_sub(module.mapped_at(range));
                if keeps_frame_pointers(module).is_some() {
                    mapping.flags = MAPPING_FRAME_POINTERS;
                } else {
                    match self.file(probe, incarnation, module) {
                        Ok(first_page) => {
                            mapping.first_page = first_page;
                            mapping.flags = self.gap_flags(module);
                        }
                        // All that its table would add is where C code that it calls ends.
                        Err(_) if holds_go(module) => mapping.flags = MAPPING_FRAME_POINTERS,
                        Err(problem) => problems.push(problem),
                    }
                }
            }
            mappings.extend(marked(mapping, marks));
        }
        let Some(first) = self.mappings.take(mappings.len().max(1)) else {
            problems.push(format!(
                "no room for the {} mappings of incarnation {incarnation}: its stacks end early",
                mappings.len()
            ));
            return Ok(problems);
        };
        for (place, mapping) in (first..).zip(&mappings) {
            probe.write_mapping(place, *mapping);
        }
        probe.set_slice(incarnation, first as u32, mappings.len() as u32);
        if let Some((old, len)) = self
            .slices
            .insert(incarnation, (first, mappings.len().max(1)))
        {
            self.mappings.retire(old, len);
        }
        Ok(problems)
    }

    /// Gives back what an incarnation that has ended used.
    pub fn remove(&mut self, probe: &mut Probe, incarnation: u32) {
        probe.clear_slice(incarnation);
        probe.clear_python(incarnation);
        if let Some((first, len)) = self.slices.remove(&incarnation) {
            self.mappings.retire(first, len);
        }
        let (rows, pages) = (&mut self.rows, &mut self.pages);
        self.files.retain(|_, file| {
            file.users.remove(&incarnation);
            let used = !file.users.is_empty();
            if !used {
                rows.retire(file.rows.0, file.rows.1);
                pages.retire(file.pages.0, file.pages.1);
            }
            used
        });
    }

    /// What to do where a file's table has no rule.
    fn gap_flags(&mut self, module: &Module) -> u32 {
        *self.gap_flags.entry(module.number).or_insert_with(|| {
            if apart::holds_v8(&module.file) || holds_go(module) {
                MAPPING_GAPS_KEEP_FRAME_POINTERS
            } else {
                0
            }
        })
    }

    /// Installs a file's table, if it is not there; returns its place in the page index.
    fn file(
        &mut self,
        probe: &mut Probe,
        incarnation: u32,
        module: &Module,
    ) -> Result<u32, String> {
        if let Some(installed) = self.files.get_mut(&module.number) {
            installed.users.insert(incarnation);
            return Ok(installed.first_page);
        }
        let name = module.path.display();
        let table = self
            .builder
            .table(module)
            .map_err(|error| format!("{name} cannot be unwound: {error}"))?;
        let (first, last) = page_span(module, &table);
        let page_count = usize::try_from(last - first + 1).unwrap_or(usize::MAX);
        // One row more, before the first: for addresses before it.
        let row_count = table.rows.len() + 1;
        let full = || format!("{name}: no room for its unwind table; stacks end there");
        let rows = self.rows.take(row_count).ok_or_else(full)?;
        let Some(pages) = self.pages.take(page_count) else {
            self.rows.retire(rows, row_count);
            return Err(full());
        };
        probe.write_unwind_row(
            rows,
            UnwindRow {
                cfa: CfaRule::None as u8,
                ..UnwindRow::default()
            },
        );
        for (place, row) in (rows + 1..).zip(&table.rows) {
            probe.write_unwind_row(place, *row);
        }
        let base = rows as u32 + 1;
        for (place, page) in (pages..).zip(first..=last) {
            let starts = |page: u64| -> u32 {
                page.checked_sub(table.first_page)
                    .and_then(|index| usize::try_from(index).ok())
                    .map_or(0, |index| {
                        table
                            .page_starts
                            .get(index)
                            .copied()
                            .unwrap_or(table.rows.len() as u32)
                    })
            };
            probe.write_unwind_page(
                place,
                UnwindPage {
                    first: base + starts(page),
                    end: base + starts(page + 1),
                },
            );
        }
        let first_page = (pages as u32).wrapping_sub(first as u32);
        self.files.insert(
            module.number,
            Installed {
                rows: (rows, row_count),
                pages: (pages, page_count),
                first_page,
                users: HashSet::from([incarnation]),
            },
        );
        Ok(first_page)
    }
}

/// A mapping in pieces, each with the flags of all marks that it lies in.
fn marked(mapping: Mapping, marks: &[(Range<u64>, u32)]) -> Vec<Mapping> {
    let mut edges: Vec<u64> = marks
        .iter()
        .flat_map(|(range, _)| [range.start, range.end])
        .chain([mapping.start, mapping.end])
        .filter(|edge| (mapping.start..=mapping.end).contains(edge))
        .collect();
    edges.sort_unstable();
    edges.dedup();
    edges
        .windows(2)
        .filter_map(|edges| match edges {
            [start, end] => {
                let flags = marks
                    .iter()
                    .filter(|(range, _)| range.contains(start))
                    .fold(mapping.flags, |flags, (_, more)| flags | more);
                Some(Mapping {
                    start: *start,
                    end: *end,
                    flags,
                    ..mapping
                })
            }
            _ => None,
        })
        .collect()
}

/// The 64 KiB pages that addresses in the file's executable segments, or rows of its table, can have.
fn page_span(module: &Module, table: &Table) -> (u64, u64) {
    let mut first = table.first_page;
    let mut last = table.first_page + (table.page_starts.len().saturating_sub(2)) as u64;
    let segments = module.elf.as_ref().map_or(&[][..], |elf| &elf.segments);
    for Segment {
        vaddr,
        memory_size,
        executable,
        ..
    } in segments
    {
        if *executable {
            // A mapping begins and ends at page boundaries of the machine, which lie in the same 64 KiB page or a neighbour.
            first = first.min(vaddr.saturating_sub(4096) >> 16);
            last = last.max(vaddr.saturating_add(*memory_size).saturating_add(4096) >> 16);
        }
    }
    (first, last.min(first + (1 << 20)))
}

/// Whether the code in a file is known to keep frame pointers throughout, and why.
fn keeps_frame_pointers(module: &Module) -> Option<&'static str> {
    let elf = module.elf.as_ref()?;
    // Go keeps frame pointers on amd64 since 1.7 and writes no .eh_frame.
    let is_go = elf.section(".gopclntab").is_some() && elf.section(".eh_frame").is_none();
    // One that loads libraries may call C, whose stacks end where the file's table says so.
    (is_go && elf.needed.is_empty()).then_some("Go")
}

/// Whether a file holds Go code, which keeps frame pointers; what C code there is beside it has rules of its own.
fn holds_go(module: &Module) -> bool {
    module.elf.as_ref().is_some_and(is_go)
}

/// What the table of a file that is not in memory is found by.
fn wanted(key: Key, module: &Module) -> Wanted {
    Wanted {
        key,
        state: file::state(module),
    }
}

/// The identity of a file's contents.
fn key(module: &Module) -> Key {
    match module.elf.as_ref().and_then(|elf| elf.build_id.as_deref()) {
        Some(id) if id.len() >= 8 => Key::BuildId(id.into()),
        _ => {
            let (device, inode, size, modified) = module.identity;
            Key::File {
                device,
                inode,
                size,
                modified,
            }
        }
    }
}

/// Has a file's table made.
fn make(module: &Module, options: &BuildOptions) -> Result<Result<Table, UnwindError>, TableError> {
    match apart::unwinding(&module.file, options.kept) {
        Err(why) if why.is_for_now() => Err(TableError::Read(why)),
        made => Ok(made.map_err(|why| UnwindError::Unread(why.to_string()))),
    }
}

/// Why a file has no table.
#[derive(Clone, Debug, thiserror::Error)]
enum TableError {
    /// It cannot be read now.
    #[error(transparent)]
    Read(Unread),
    /// What is in it.
    #[error(transparent)]
    Unwind(#[from] UnwindError),
}

#[cfg(test)]
mod tests {
    use super::{Mapping, marked};

    #[test]
    fn marks_that_overlap_cut_a_mapping_in_pieces() {
        let mapping = Mapping {
            start: 0x1000,
            end: 0x5000,
            bias: 0x1000,
            first_page: 7,
            flags: 1,
        };
        let marks = [
            (0x2000..0x3000, 2),
            (0x2800..0x3000, 4),
            (0x1000..0x5000, 8),
            (0x6000..0x7000, 16),
        ];
        let pieces: Vec<_> = marked(mapping, &marks)
            .iter()
            .map(|piece| (piece.start, piece.end, piece.flags))
            .collect();
        let expected = [
            (0x1000, 0x2000, 9),
            (0x2000, 0x2800, 11),
            (0x2800, 0x3000, 15),
            (0x3000, 0x5000, 9),
        ];
        assert_eq!(pieces, expected);
        assert_eq!(marked(mapping, &[]), [mapping]);
    }
}
