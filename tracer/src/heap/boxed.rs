//! Rust: what trait objects point to is named by their vtables. A `Box<dyn Trait>` is two words, the block and a table of the drop
//! glue (null where there is none), the size, the alignment and the methods; what these functions are called says whose they are.
//!
//! The compiler makes functions with the same code one, and a table then names another type's function. So a type is told only where
//! no name speaks against it: of a type that has a function of its own for a slot, the table would point to that one.

use std::collections::{BTreeSet, HashMap};

use super::{
    blocks::{BlockId, Blocks},
    holders::RootName,
    memory::{Memory, Region, RegionKind, WORD, each_word},
};

/// Where the methods begin in a vtable, words: `COMMON_VTABLE_ENTRIES` of rustc's `rustc_middle/src/ty/vtable.rs`.
const METHODS: u64 = 3;
/// So many methods are looked at.
const MOST_METHODS: u64 = 32;
/// The largest alignment and size that are believed.
const MOST_ALIGN: u64 = 4096;
const MOST_SIZE: u64 = 1 << 32;
/// `RcInner` and `ArcInner` have two counts before the value.
const COUNTS: u64 = 16;
/// By so much a block of glibc may be larger than what was asked for: to the next multiple of 16 behind the header's 8, and a remainder
/// that is no chunk of its own. No block is smaller than the least.
const SLACK: u64 = 15 + 16;
const LEAST_BLOCK: u64 = 24;
/// So many vtables of a process are named: each is some look-ups in a symbol table.
const MOST_TABLES: usize = 1 << 14;

/// A valid vtable with a type.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Table {
    name: String,
    size: u64,
    align: u64,
}

impl Table {
    /// Whether a block of so many bytes can be the value, alone or behind the counts of an `Rc`.
    fn fits(&self, length: u64) -> bool {
        let counted = COUNTS
            .next_multiple_of(self.align.max(1))
            .saturating_add(self.size);
        [self.size, counted].into_iter().any(|asked| {
            let most = asked.saturating_add(SLACK).max(LEAST_BLOCK);
            (asked..=most).contains(&length)
        })
    }
}

/// Blocks that trait objects point to.
#[derive(Debug, Default)]
pub(super) struct Boxed {
    tables: Vec<Table>,
    /// By block: the number of its table, or none where two disagree.
    of: HashMap<BlockId, Option<u32>>,
}

impl Boxed {
    /// Looks for them in blocks and in data segments. Stacks have stale words, and references to parts of other values.
    pub(super) fn find(
        memory: &dyn Memory,
        regions: &[Region],
        blocks: &Blocks,
        names: &mut dyn RootName,
    ) -> Self {
        let mut found = Self::default();
        if !names.has_rust() {
            return found;
        }
        let described = described(regions);
        let (low, high) = (
            described.first().map_or(u64::MAX, |range| range.0),
            described.last().map_or(0, |range| range.1),
        );
        let is_described = |word: u64| {
            (low..high).contains(&word)
                && described
                    .partition_point(|(start, _)| *start <= word)
                    .checked_sub(1)
                    .and_then(|place| described.get(place))
                    .is_some_and(|(_, end)| word < *end)
        };
        let mut known: HashMap<u64, Option<u32>> = HashMap::new();
        let searched = regions.iter().filter(|region| {
            matches!(
                region.kind,
                RegionKind::Data | RegionKind::Brk | RegionKind::Anonymous
            )
        });
        for region in searched {
            for present in &region.present {
                let mut last = 0;
                each_word(memory, present.clone(), |address, word| {
                    let data = std::mem::replace(&mut last, word);
                    if !word.is_multiple_of(WORD) || !is_described(word) {
                        return;
                    }
                    let Some((block, 0)) = blocks.find(data) else {
                        return;
                    };
                    let is_heap = region.kind != RegionKind::Data;
                    if is_heap && blocks.find(address).is_none() {
                        return;
                    }
                    let number = match known.get(&word) {
                        Some(number) => *number,
                        None if known.len() >= MOST_TABLES => None,
                        None => {
                            let number = table(memory, word, names).and_then(|table| {
                                found.tables.push(table);
                                u32::try_from(found.tables.len() - 1).ok()
                            });
                            known.insert(word, number);
                            number
                        }
                    };
                    if let Some(number) = number {
                        found.add(block, number);
                    }
                });
            }
        }
        found
    }

    fn add(&mut self, block: BlockId, number: u32) {
        let name = |number: u32| self.tables.get(number as usize).map(|table| &table.name);
        let is_other = self
            .of
            .get(&block)
            .is_some_and(|known| known.and_then(name) != name(number));
        self.of.insert(block, (!is_other).then_some(number));
    }

    /// The type of the value in a block of so many bytes.
    pub(super) fn type_of(&self, block: BlockId, length: u64) -> Option<&str> {
        let number = (*self.of.get(&block)?)?;
        let table = self.tables.get(number as usize)?;
        table.fits(length).then_some(table.name.as_str())
    }
}

/// What files map, in order.
fn described(regions: &[Region]) -> Vec<(u64, u64)> {
    regions
        .iter()
        .filter(|region| matches!(region.kind, RegionKind::Data | RegionKind::Constant))
        .map(|region| (region.range.start, region.range.end))
        .collect()
}

/// The vtable at an address, if one is there and its type can be told.
fn table(memory: &dyn Memory, address: u64, names: &mut dyn RootName) -> Option<Table> {
    let word = |number: u64| memory.word(address.checked_add(number.checked_mul(WORD)?)?);
    let (drop, size, align) = (word(0)?, word(1)?, word(2)?);
    let is_layout = align.is_power_of_two()
        && align <= MOST_ALIGN
        && (1..MOST_SIZE).contains(&size)
        && size.is_multiple_of(align);
    if !is_layout {
        return None;
    }
    let mut slots: Vec<Vec<Function>> = Vec::new();
    if drop != 0 {
        slots.push(functions(drop, names)?);
    }
    for number in METHODS..METHODS + MOST_METHODS {
        let Some(functions) = word(number).and_then(|method| functions(method, names)) else {
            break;
        };
        // The next vtable begins.
        if functions.iter().any(Function::is_drop) {
            break;
        }
        slots.push(functions);
    }
    let name = type_of(&slots, &mut |function| {
        names.has_function(address, function)
    })?;
    Some(Table { name, size, align })
}

/// A function's name: the drop glue of a type, or a type's method of a trait, or something else.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Function(String);

const DROP: &str = "core::ptr::drop_in_place";

impl Function {
    fn is_drop(&self) -> bool {
        self.0.starts_with(DROP)
    }

    /// The type in `core::ptr::drop_in_place<T>` or `<T as Trait>::method`, and what stands around it.
    fn parts(&self) -> Option<(&str, &str, &str)> {
        let text = self.0.as_str();
        if let Some(rest) = text.strip_prefix(DROP) {
            let open = if rest.starts_with("::<") { 3 } else { 1 };
            let name = rest.get(open..)?.strip_suffix('>')?;
            let name = Some(name).filter(|name| is_concrete(name))?;
            return Some((text.get(..DROP.len() + open)?, name, ">"));
        }
        let inner = text.strip_prefix('<')?;
        let mut depth = 0_usize;
        for (at, letter) in inner.char_indices() {
            match letter {
                '<' | '(' | '[' => depth += 1,
                // The arrow of a function's type.
                '>' if inner.get(..at)?.ends_with('-') => {}
                '>' | ')' | ']' => depth = depth.checked_sub(1)?,
                ' ' if depth == 0 && inner.get(at..)?.starts_with(" as ") => {
                    let name = inner.get(..at).filter(|name| is_concrete(name))?;
                    return Some(("<", name, inner.get(at..)?));
                }
                _ => {}
            }
        }
        None
    }
}

/// Whether a type has no parameters: the legacy mangling names a method of `impl<T> Trait for Vec<T>` so, whatever `T` is. A parameter
/// begins with a capital letter and belongs to no crate.
fn is_concrete(name: &str) -> bool {
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    name.split(|letter| !is_word(letter))
        .all(|word| word.contains("::") || !word.starts_with(char::is_uppercase))
}

/// The functions that begin at an address; `None` where no code is.
fn functions(address: u64, names: &mut dyn RootName) -> Option<Vec<Function>> {
    let names = names.functions(address)?;
    Some(names.into_iter().map(Function).collect())
}

/// The only type that the functions in a vtable's slots can be of; `exists` says whether there is a function of a name.
fn type_of(slots: &[Vec<Function>], exists: &mut dyn FnMut(&str) -> bool) -> Option<String> {
    let candidates: BTreeSet<&str> = slots
        .iter()
        .flatten()
        .filter_map(|function| Some(function.parts()?.1))
        .collect();
    // Drop glue alone is too often another type's.
    let has_method = slots
        .iter()
        .flatten()
        .any(|function| !function.is_drop() && function.parts().is_some());
    if !has_method {
        return None;
    }
    let mut left = candidates.into_iter().filter(|candidate| {
        slots.iter().all(|functions| {
            let mut parts = functions.iter().filter_map(Function::parts);
            let is_named = parts.clone().any(|(_, name, _)| name == *candidate);
            is_named
                || !parts.any(|(before, _, behind)| exists(&format!("{before}{candidate}{behind}")))
        })
    });
    let only = left.next()?;
    left.next().is_none().then(|| only.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Function, Table, type_of};

    fn told(slots: &[&str], all: &[&str]) -> Option<String> {
        let slots: Vec<Vec<Function>> = slots
            .iter()
            .map(|name| vec![Function((*name).to_owned())])
            .collect();
        type_of(&slots, &mut |name| all.contains(&name))
    }

    #[test]
    fn the_type_of_a_vtable_whose_functions_are_shared_with_another_type() {
        let drop = "core::ptr::drop_in_place<app::Circle>";
        let (area, other) = (
            "<app::Circle as app::Shape>::area",
            "<app::Square as app::Shape>::area",
        );
        let name = "<app::Circle as app::Shape>::name";
        let all = [drop, area, other, name];
        assert_eq!(
            told(&[drop, area, name], &all).as_deref(),
            Some("app::Circle")
        );
        // Dropping and naming a square is the same code as a circle's, and stands there under its name only.
        assert_eq!(
            told(&[drop, other, name], &all).as_deref(),
            Some("app::Square")
        );
        // Of a square that had those functions itself, they would stand there.
        let more = [drop, area, other, name, "<app::Square as app::Shape>::name"];
        assert_eq!(told(&[drop, other, name], &more), None);
        assert_eq!(told(&[drop], &all), None);
        assert_eq!(told(&[], &all), None);
    }

    #[test]
    fn types_with_brackets_are_read_whole() {
        let parts = |name: &str| {
            Function(name.to_owned())
                .parts()
                .map(|(_, name, _)| name.to_owned())
        };
        let name = "<alloc::vec::Vec<(u8, fn(u8) -> u8)> as core::fmt::Debug>::fmt";
        let vec = Some("alloc::vec::Vec<(u8, fn(u8) -> u8)>".to_owned());
        assert_eq!(parts(name), vec);
        let drop = "core::ptr::drop_in_place::<app::main::{closure#0}>";
        assert_eq!(parts(drop).as_deref(), Some("app::main::{closure#0}"));
        assert_eq!(parts("app::main"), None);
        assert_eq!(parts("<T as core::any::Any>::type_id"), None);
        assert_eq!(parts("<alloc::vec::Vec<T> as core::fmt::Debug>::fmt"), None);
    }

    #[test]
    fn a_value_fits_into_its_block_alone_or_behind_the_counts() {
        let table = Table {
            name: String::new(),
            size: 32,
            align: 8,
        };
        assert!(table.fits(40) && table.fits(56));
        assert!(!table.fits(24) && !table.fits(200));
    }
}
