//! Go's table of functions: names, files and lines of code, inlined calls too, as the linker writes it for the runtime's own use
//! (src/runtime/symtab.go, symtabinl.go, cmd/link/internal/ld/pcln.go). It stays in stripped files. Addresses are those of the file,
//! before it is placed anywhere. Pure; no offset or count in the table is believed.

use serde::{Deserialize, Serialize};

use super::{
    as_bytes,
    bytes::{half, size, varint},
    version::Layout,
};

/// Places in `pcHeader` of the offsets of its parts.
const FUNCTIONS: usize = 8;
const NAMES: usize = 32;
const UNITS: usize = 40;
const FILES: usize = 48;
const VALUES: usize = 56;
const TABLE: usize = 64;

/// Places in `_func`.
const NAME: usize = 4;
const FILE_VALUES: usize = 20;
const LINE_VALUES: usize = 24;
const VALUE_TABLES: usize = 28;
const UNIT: usize = 32;

/// `_PCDATA_InlTreeIndex` and `_FUNCDATA_InlTree` (src/internal/abi/symtab.go).
const INLINED_INDEX: usize = 2;
const INLINED_CALLS: usize = 3;
/// An offset of function data that says that there is none (`^uint32(0)`).
const NO_DATA: u32 = u32::MAX;

/// Calls are inlined into each other so deep at most; the compiler stops long before.
const DEEPEST: usize = 64;
/// The longest name that is shown, bytes.
const LONGEST: usize = 4096;

/// A function at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoFrame {
    /// Its name, with its package's path.
    pub function: String,
    /// Where its code begins; `None` of one that was inlined.
    pub start: Option<u64>,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
}

/// The table of a program.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct FunctionTable {
    layout: Layout,
    /// From `pcHeader` on.
    #[serde(with = "as_bytes")]
    bytes: Vec<u8>,
    /// Where the functions' code begins.
    text: u64,
    /// The functions' data, from `moduledata.gofunc` on.
    #[serde(with = "as_bytes")]
    data: Vec<u8>,
    #[serde(skip_serializing)]
    functions: usize,
    #[serde(skip_serializing)]
    names: usize,
    #[serde(skip_serializing)]
    units: usize,
    #[serde(skip_serializing)]
    files: usize,
    #[serde(skip_serializing)]
    values: usize,
    #[serde(skip_serializing)]
    table: usize,
}

/// What a table is made from.
#[derive(Deserialize)]
struct Parts {
    layout: Layout,
    #[serde(with = "as_bytes")]
    bytes: Vec<u8>,
    text: u64,
    #[serde(with = "as_bytes")]
    data: Vec<u8>,
}

impl TryFrom<Parts> for FunctionTable {
    type Error = &'static str;

    fn try_from(parts: Parts) -> Result<Self, Self::Error> {
        Self::new(parts.layout, parts.bytes, parts.text, parts.data).ok_or("no table of functions")
    }
}

impl std::fmt::Debug for FunctionTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("FunctionTable")
            .field("functions", &self.functions)
            .finish_non_exhaustive()
    }
}

/// A function of the table.
#[derive(Clone, Copy)]
struct Function {
    /// Where its code begins, from the text on.
    start: u32,
    /// Where its code ends.
    end: u32,
    /// Where its `_func` lies in the table.
    at: usize,
}

impl FunctionTable {
    /// The table in these bytes; `None` where they are none.
    pub(super) fn new(layout: Layout, bytes: Vec<u8>, text: u64, data: Vec<u8>) -> Option<Self> {
        let place = |at| size(&bytes, at).filter(|place| *place < bytes.len());
        let (names, units, files) = (place(NAMES)?, place(UNITS)?, place(FILES)?);
        let (values, table) = (place(VALUES)?, place(TABLE)?);
        let functions = size(&bytes, FUNCTIONS)?;
        // Of each the place of its code and of its `_func`.
        (functions > 0 && functions.checked_mul(8)? < bytes.len() - table).then_some(Self {
            functions,
            names,
            units,
            files,
            values,
            table,
            layout,
            bytes,
            text,
            data,
        })
    }

    /// Where the functions' data ends at the latest, from `moduledata.gofunc` on: behind the longest list of inlined calls that begins
    /// last.
    pub(super) fn data_end(&self) -> u64 {
        let last = (0..self.functions)
            .filter_map(|place| self.data_of(&self.at(place)?, INLINED_CALLS))
            .max();
        last.map_or(0, |last| u64::from(last) + MOST_INLINED_BYTES)
    }

    /// How what it names is laid out.
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.bytes.len().saturating_add(self.data.len())
    }

    /// Takes over the functions' data.
    pub(super) fn set_data(&mut self, data: Vec<u8>) {
        self.data = data;
    }

    /// The function at an address, and those that were inlined there: innermost first, the last is the one that was called. Empty where
    /// there is none.
    #[must_use]
    pub fn frames(&self, address: u64) -> Vec<GoFrame> {
        let mut frames = Vec::new();
        let Some(function) = self.find(address) else {
            return frames;
        };
        // `find` has looked at the distance.
        let mut at = u32::try_from(address.wrapping_sub(self.text)).unwrap_or(0);
        while frames.len() < DEEPEST {
            let inlined = self.inlined(&function, at);
            let own = half(
                &self.bytes,
                self.table.saturating_add(function.at).saturating_add(NAME),
            );
            let Some(name) = inlined
                .map(|(name, _)| name)
                .or(own)
                .and_then(|at| self.name(at))
            else {
                break;
            };
            frames.push(GoFrame {
                function: name,
                start: inlined
                    .is_none()
                    .then(|| self.text.wrapping_add(u64::from(function.start))),
                file: self.file(&function, at),
                line: self
                    .value(&function, LINE_VALUES, at)
                    .and_then(|line| u32::try_from(line).ok()),
            });
            match inlined {
                Some((_, parent)) => match function.start.checked_add(parent) {
                    Some(parent) => at = parent,
                    None => break,
                },
                None => break,
            }
        }
        frames
    }

    /// The innermost function at an address, which is how the runtime keeps stacks: it has an entry for each inlined call.
    #[must_use]
    pub fn innermost(&self, address: u64) -> Option<(GoFrame, bool)> {
        let mut frames = self.frames(address);
        let is_inlined = frames.len() > 1;
        (!frames.is_empty()).then(|| (frames.swap_remove(0), is_inlined))
    }

    /// The name of the function whose code an address lies in, whatever was inlined there; with what follows it.
    #[must_use]
    pub fn name_of(&self, address: u64) -> Option<&[u8]> {
        self.own_name(&self.find(address)?)
    }

    /// The address range of the function whose code an address lies in.
    pub(super) fn range_of(&self, address: u64) -> Option<std::ops::Range<u64>> {
        let function = self.find(address)?;
        let place = |offset: u32| self.text.wrapping_add(u64::from(offset));
        Some(place(function.start)..place(function.end))
    }

    /// The name of a function itself.
    fn own_name(&self, function: &Function) -> Option<&[u8]> {
        let at = half(
            &self.bytes,
            self.table.checked_add(function.at)?.checked_add(NAME)?,
        )?;
        let name = self.names.checked_add(usize::try_from(at).ok()?)?;
        let rest = self.bytes.get(name..)?;
        let end = rest.iter().take(LONGEST).position(|byte| *byte == 0)?;
        rest.get(..end)
    }

    /// The address range of the first function with this name.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let mut wanted = name.as_bytes().to_vec();
        wanted.push(0);
        (0..self.functions).find_map(|place| {
            let function = self.at(place)?;
            let at = half(
                &self.bytes,
                self.table.checked_add(function.at)?.checked_add(NAME)?,
            )?;
            let names = self.bytes.get(self.names..)?;
            let is_it = names.get(usize::try_from(at).ok()?..)?.starts_with(&wanted);
            is_it.then(|| {
                let place = |offset: u32| self.text.wrapping_add(u64::from(offset));
                place(function.start)..place(function.end)
            })
        })
    }

    /// The address ranges of the functions with such names.
    #[must_use]
    pub fn functions(&self, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<std::ops::Range<u64>> {
        let place = |offset: u32| self.text.wrapping_add(u64::from(offset));
        (0..self.functions)
            .filter_map(|number| self.at(number))
            .filter(|function| self.own_name(function).is_some_and(&is_wanted))
            .map(|function| place(function.start)..place(function.end))
            .collect()
    }

    /// The function by its place in the table.
    fn at(&self, place: usize) -> Option<Function> {
        let entry = self.table.checked_add(place.checked_mul(8)?)?;
        let start = half(&self.bytes, entry)?;
        let at = usize::try_from(half(&self.bytes, entry.checked_add(4)?)?).ok()?;
        let end = half(&self.bytes, entry.checked_add(8)?)?;
        Some(Function { start, end, at })
    }

    /// The function whose code an address lies in.
    fn find(&self, address: u64) -> Option<Function> {
        let offset = u32::try_from(address.checked_sub(self.text)?).ok()?;
        let (mut low, mut high) = (0, self.functions);
        while low < high {
            let middle = low.midpoint(high);
            if self.at(middle)?.start <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let function = self.at(low.checked_sub(1)?)?;
        (offset < function.end).then_some(function)
    }

    fn name(&self, at: u32) -> Option<String> {
        text_at(
            &self.bytes,
            self.names.checked_add(usize::try_from(at).ok()?)?,
        )
    }

    fn file(&self, function: &Function, at: u32) -> Option<String> {
        let number = u32::try_from(self.value(function, FILE_VALUES, at)?).ok()?;
        let unit = half(
            &self.bytes,
            self.table.checked_add(function.at)?.checked_add(UNIT)?,
        )?;
        let place = usize::try_from(unit.checked_add(number)?).ok()?;
        let entry = self.units.checked_add(place.checked_mul(4)?)?;
        let name = half(&self.bytes, entry).filter(|name| *name != u32::MAX)?;
        text_at(
            &self.bytes,
            self.files.checked_add(usize::try_from(name).ok()?)?,
        )
    }

    /// The value at an address of the table of values whose place stands in a function's record; `None` where it has none.
    fn value(&self, function: &Function, member: usize, at: u32) -> Option<i32> {
        let values = half(
            &self.bytes,
            self.table.checked_add(function.at)?.checked_add(member)?,
        )?;
        self.value_in(function, values, at)
    }

    fn value_in(&self, function: &Function, values: u32, at: u32) -> Option<i32> {
        if values == 0 {
            return None;
        }
        let begin = self.values.checked_add(usize::try_from(values).ok()?)?;
        let mut rest = self.bytes.get(begin..)?;
        let (mut value, mut until) = (-1_i32, function.start);
        let mut is_first = true;
        loop {
            let (change, taken) = varint(rest)?;
            // A change of nothing ends the table, but at its beginning.
            if change == 0 && !is_first {
                return None;
            }
            is_first = false;
            rest = rest.get(taken..)?;
            let (length, taken) = varint(rest)?;
            rest = rest.get(taken..)?;
            // Zigzag.
            let change = (change >> 1) as i32 ^ -((change & 1) as i32);
            value = value.wrapping_add(change);
            until = until.checked_add(length)?;
            if at < until {
                return Some(value);
            }
        }
    }

    /// Where a function's data of a kind lies.
    fn data_of(&self, function: &Function, kind: usize) -> Option<u32> {
        let record = self.table.checked_add(function.at)?;
        let tables = usize::try_from(half(&self.bytes, record.checked_add(VALUE_TABLES)?)?).ok()?;
        let last = record.checked_add(self.layout.function)?;
        let kinds = usize::from(*self.bytes.get(last.checked_sub(1)?)?);
        let at = last.checked_add(tables.checked_mul(4)?.checked_add(4 * kind)?)?;
        if kind >= kinds {
            return None;
        }
        half(&self.bytes, at).filter(|offset| *offset != NO_DATA)
    }

    /// The call that was inlined at an address: its name, and where the call stood, from the function's beginning on.
    fn inlined(&self, function: &Function, at: u32) -> Option<(u32, u32)> {
        let record = self.table.checked_add(function.at)?;
        let tables = half(&self.bytes, record.checked_add(VALUE_TABLES)?)?;
        if usize::try_from(tables).ok()? <= INLINED_INDEX {
            return None;
        }
        let first = record.checked_add(self.layout.function)?;
        let values = half(&self.bytes, first.checked_add(4 * INLINED_INDEX)?)?;
        let index = usize::try_from(self.value_in(function, values, at)?).ok()?;
        let calls = usize::try_from(self.data_of(function, INLINED_CALLS)?).ok()?;
        let call = calls.checked_add(index.checked_mul(self.layout.inlined)?)?;
        let name = half(&self.data, call.checked_add(self.layout.inlined_name)?)?;
        let parent = half(&self.data, call.checked_add(self.layout.inlined_parent)?)?;
        Some((name, parent))
    }
}

/// A list of inlined calls takes so many bytes at most that are looked for behind the last: some thousand calls.
const MOST_INLINED_BYTES: u64 = 64 << 10;

/// The bytes before the next zero; those that are not UTF-8 are replaced.
fn text_at(bytes: &[u8], at: usize) -> Option<String> {
    let rest = bytes.get(at..)?;
    let rest = rest.get(..rest.len().min(LONGEST)).unwrap_or(rest);
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = String::from_utf8_lossy(rest.get(..end)?);
    (!text.is_empty()).then(|| text.into_owned())
}
