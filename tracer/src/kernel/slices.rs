//! What the probe walks stacks by, written: which slice of the mappings table is an incarnation's, and the tables' entries. Where they go is
//! decided elsewhere.

use std::{mem::offset_of, sync::atomic::Ordering};

use leakscope_common::{
    Mapping, PythonTable, SLICE_LENT, SLICE_NO_STEPS, SLICE_SLOTS, SLICE_WINDOWED, Settings, Slice,
    UnwindPage, UnwindRow,
};

use super::{
    btf,
    maps::map_error,
    probe::{Probe, Value},
};

impl Probe {
    /// Tells the probe where a process's mappings stand.
    pub fn set_slice(&mut self, incarnation: u32, first: u32, count: u32) {
        let index = slice_index(incarnation);
        self.slice_generation = self.slice_generation.wrapping_add(1);
        let range = Slice::pack(self.slice_generation, first, count.min(Slice::MAX_COUNT));
        let Some(there) = self.slices.read(index) else {
            return;
        };
        if there.incarnation != incarnation {
            self.slices.write(index, Slice::default());
        }
        if let Some(word) = self.slices.word(index, offset_of!(Slice, range)) {
            word.store(range, Ordering::SeqCst);
        }
        self.slices.write(
            index,
            Slice {
                range,
                incarnation,
                flags: if there.incarnation == incarnation {
                    there.flags
                } else {
                    0
                },
            },
        );
    }

    /// Tells of no step of an incarnation's mappings any more. Where it has no slice (see [`Probe::set_slice`]) it goes on.
    pub fn ignore_mappings(&mut self, incarnation: u32) {
        let index = slice_index(incarnation);
        if let Some(slice) = self.slices.read(index)
            && slice.incarnation == incarnation
        {
            let flags = slice.flags | SLICE_NO_STEPS;
            self.slices.write(index, Slice { flags, ..slice });
        }
    }

    /// From now on the incarnation's blocks stand in the buckets of windows, or no more; gives whether that is so. To be called while nothing is
    /// attached to it and none of its blocks is in the table; threads keep to what was so when their records were made: see
    /// [`Probe::take_thread_hits`]. Where it has no slice (see [`Probe::set_slice`]) nothing changes.
    pub fn set_windowed(&mut self, incarnation: u32, windowed: bool) -> bool {
        let index = slice_index(incarnation);
        let Some(slice) = self.slices.read(index) else {
            return false;
        };
        if slice.incarnation != incarnation {
            return false;
        }
        let flags = if windowed {
            slice.flags | SLICE_WINDOWED
        } else {
            slice.flags & !SLICE_WINDOWED
        };
        self.slices.write(index, Slice { flags, ..slice });
        windowed
    }

    /// From now on children that work in the incarnation's memory are seen by the probes of [`Probe::attach_for_children`].
    pub fn lend(&mut self, incarnation: u32) {
        let index = slice_index(incarnation);
        if let Some(slice) = self.slices.read(index)
            && slice.incarnation == incarnation
        {
            let flags = slice.flags | SLICE_LENT;
            self.slices.write(index, Slice { flags, ..slice });
        }
    }

    /// Whether the incarnation's blocks stand in the buckets of windows.
    #[must_use]
    pub fn is_windowed(&self, incarnation: u32) -> bool {
        self.slices
            .read(slice_index(incarnation))
            .is_some_and(|slice| {
                slice.incarnation == incarnation && slice.flags & SLICE_WINDOWED != 0
            })
    }

    /// Tells the probe how the Python frames of an incarnation are found.
    ///
    /// # Errors
    /// The kernel does not say where threads' pointers stand, or the map is full.
    pub fn set_python(&mut self, incarnation: u32, table: PythonTable) -> Result<(), String> {
        if self.thread_pointer.is_none() {
            let found = btf::thread_pointer().map_err(|error| error.to_string());
            self.thread_pointer = Some(found.map(|thread_pointer| {
                if let Some(settings) = self.settings.read(0) {
                    self.settings.write(
                        0,
                        Settings {
                            thread_pointer,
                            ..settings
                        },
                    );
                }
            }));
        }
        if let Some(Err(why)) = &self.thread_pointer {
            return Err(why.clone());
        }
        self.pythons
            .insert(incarnation, Value(table), 0)
            .map_err(|error| map_error("PYTHONS", &error).to_string())
    }

    /// The incarnation has no Python frames any more.
    pub fn clear_python(&mut self, incarnation: u32) {
        // Most have none.
        let _ = self.pythons.remove(&incarnation);
    }

    /// The process's mappings are not to be used any more.
    pub fn clear_slice(&mut self, incarnation: u32) {
        let index = slice_index(incarnation);
        if self
            .slices
            .read(index)
            .is_some_and(|slice| slice.incarnation == incarnation)
        {
            self.slices.write(index, Slice::default());
        }
    }

    /// Writes an entry of the mappings table; `false` beyond its end.
    pub fn write_mapping(&mut self, index: usize, mapping: Mapping) -> bool {
        self.mappings.write(index, mapping)
    }

    /// Writes an entry of the unwind tables' page index; `false` beyond its end.
    pub fn write_unwind_page(&mut self, index: usize, page: UnwindPage) -> bool {
        self.unwind_pages.write(index, page)
    }

    /// Writes a row of the unwind tables; `false` beyond their end.
    pub fn write_unwind_row(&mut self, index: usize, row: UnwindRow) -> bool {
        self.unwind_rows.write(index, row)
    }

    /// Capacities of the unwind tables: rows, pages, mappings.
    #[must_use]
    pub fn unwind_capacity(&self) -> (usize, usize, usize) {
        (
            self.unwind_rows.len(),
            self.unwind_pages.len(),
            self.mappings.len(),
        )
    }
}

/// The slot of an incarnation's slice.
fn slice_index(incarnation: u32) -> usize {
    (incarnation & (SLICE_SLOTS - 1)) as usize
}
