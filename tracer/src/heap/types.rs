//! What a block is, by its first words: a C++ object by the type description behind its vtable, a CPython object by its type
//! pointer, text, zeroes. Everything is read from the target's own memory, so stripped programs have types too.

use std::{collections::HashMap, fmt};

use super::{
    census::{Census, Group, GroupId, GroupKind},
    containers::Shape,
    memory::{Memory, Region, RegionKind, WORD, region_of},
};

/// The longest mangled or plain name that is read, bytes.
const LONGEST_NAME: usize = 1024;
/// The longest name that is shown, bytes: a mangled one can stand for far more text than it has itself.
const LONGEST_SHOWN: usize = 400;
/// A complete object's vtable may stand so far into the object that a block begins with it, bytes.
const FARTHEST_TO_TOP: i64 = 1 << 20;

/// `PyTypeObject` of CPython's `Include/cpython/object.h`, 3.8 to 3.14, 64-bit: `ob_type`, `tp_name`, `tp_flags`.
const OB_TYPE: usize = 8;
const TP_NAME: usize = 24;
const TP_FLAGS: usize = 168;
const TYPE_BYTES: usize = TP_FLAGS + 8;
/// `Py_TPFLAGS_READY`.
const READY: u64 = 1 << 12;
/// `Py_TPFLAGS_TYPE_SUBCLASS`.
const TYPE_SUBCLASS: u64 = 1 << 31;
/// `f_localsplus` of `PyFrameObject`, `Include/cpython/frameobject.h` of 3.8 to 3.10 (352 to 360).
const FRAME_LOCALS: u64 = 352;
/// Where in a block an object can begin: at once, behind `PyGC_Head`, behind that and the two words of a managed dictionary (3.11 on).
const OBJECT_AT: [usize; 3] = [0, 16, 32];
/// A metaclass of a metaclass of a metaclass is rare.
const MOST_METACLASSES: usize = 4;

/// A block of which so many bytes of a hundred can be printed is text.
const PRINTABLE_PERCENT: usize = 95;
/// Fewer bytes tell nothing.
const LEAST_TEXT: usize = 8;

/// What may be a type of CPython.
struct TypeObject {
    meta: u64,
    name: String,
    is_of_types: bool,
}

/// Whether a frame that begins with these bytes, and whose locals stand so far in it, has no references.
pub(super) fn is_stale(locals: u64, bytes: &[u8]) -> bool {
    let references = locals
        .checked_sub(FRAME_LOCALS)
        .and_then(|at| usize::try_from(at).ok())
        .and_then(|at| bytes.get(at..at.checked_add(WORD as usize)?));
    references.is_some_and(|word| word.iter().all(|byte| *byte == 0))
}

/// Says what blocks are, and remembers the types that it has met.
pub(super) struct Types<'look> {
    memory: &'look dyn Memory,
    regions: &'look [Region],
    is_python: bool,
    /// By vtable: the number of the class, if it is one.
    classes: HashMap<u64, Option<u32>>,
    /// By address of a type object: the number of the type, if it is one.
    types: HashMap<u64, Option<u32>>,
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    census: Census,
}

impl<'look> Types<'look> {
    /// Nothing is known yet. `is_python`: the process runs CPython.
    pub(super) fn new(
        memory: &'look dyn Memory,
        regions: &'look [Region],
        is_python: bool,
    ) -> Self {
        Self {
            memory,
            regions,
            is_python,
            classes: HashMap::new(),
            types: HashMap::new(),
            names: Vec::new(),
            numbers: HashMap::new(),
            census: Census::default(),
        }
    }

    /// Counts a block of `length` bytes that begins with these; gives its group, and where in it the object begins. `pointed`: the
    /// type as whoever points to it says.
    pub(super) fn count(
        &mut self,
        length: u64,
        bytes: &[u8],
        pointed: Option<&str>,
    ) -> (GroupId, u64) {
        let (kind, number, object_at) = self.kind(bytes, pointed);
        let names = &self.names;
        let group = self.census.add((kind, number, object_at), length, || {
            names.get(number as usize).cloned().unwrap_or_default()
        });
        (group, object_at)
    }

    /// Where in a block stand words that hold nothing: a frame without references is one that its code keeps for the next call
    /// (`co_zombieframe`, up to 3.10), and on its stack stands what the last call left.
    pub(super) fn stale(&self, group: GroupId, object_at: u64, bytes: &[u8]) -> Option<u64> {
        let from = object_at + FRAME_LOCALS;
        (self.census.is(group, GroupKind::Python, "frame") && is_stale(from, bytes)).then_some(from)
    }

    /// What container the objects of a group are, if they are one.
    pub(super) fn container(&self, group: GroupId) -> Option<Shape> {
        let name = self.census.name(group, GroupKind::Python)?;
        Shape::of(name)
    }

    /// Takes what was counted.
    pub(super) fn take_census(&mut self) -> Census {
        std::mem::take(&mut self.census)
    }

    /// Whether a block that begins with these bytes still holds an object of its group, where that tells which pointers lead to it: what was
    /// born in its place may be found otherwise.
    pub(super) fn is_still(&self, group: &Group, bytes: &[u8]) -> bool {
        if group.object_at == 0 {
            return true;
        }
        let number = usize::try_from(group.object_at)
            .ok()
            .and_then(|at| bytes.get(at..)?.get(OB_TYPE..OB_TYPE + WORD as usize))
            .and_then(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
            .and_then(|address| *self.types.get(&address)?);
        let name = number.and_then(|number| self.names.get(number as usize));
        name == Some(&group.name)
    }

    fn kind(&mut self, bytes: &[u8], pointed: Option<&str>) -> (GroupKind, u32, u64) {
        const NONE: u32 = u32::MAX;
        let word = |at: usize| {
            let part = bytes.get(at..at + WORD as usize)?;
            Some(u64::from_le_bytes(part.try_into().ok()?))
        };
        if self.is_python {
            for at in OBJECT_AT {
                if let Some(number) =
                    word(at + OB_TYPE).and_then(|address| self.python_type(address))
                {
                    return (GroupKind::Python, number, at as u64);
                }
            }
        }
        if let Some(number) = word(0).and_then(|vtable| self.class(vtable)) {
            return (GroupKind::Cpp, number, 0);
        }
        if let Some(number) = pointed.and_then(|name| self.number(name.to_owned())) {
            return (GroupKind::Rust, number, 0);
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return (GroupKind::Zero, NONE, 0);
        }
        if is_text(bytes) {
            return (GroupKind::Text, NONE, 0);
        }
        (GroupKind::Size, NONE, 0)
    }

    fn number(&mut self, name: String) -> Option<u32> {
        if let Some(number) = self.numbers.get(&name) {
            return Some(*number);
        }
        let number = u32::try_from(self.names.len()).ok()?;
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        Some(number)
    }

    /// The class that a vtable is of.
    fn class(&mut self, vtable: u64) -> Option<u32> {
        if !self.is_described(vtable) {
            return None;
        }
        if let Some(known) = self.classes.get(&vtable) {
            return *known;
        }
        let number = self.class_name(vtable).and_then(|name| self.number(name));
        self.classes.insert(vtable, number);
        number
    }

    /// Before a vtable's functions stand the offset to the top and the type's description (Itanium C++ ABI, 2.5.2); its second word is
    /// the mangled name (2.9.3).
    fn class_name(&self, vtable: u64) -> Option<String> {
        let to_top = self
            .memory
            .word(vtable.checked_sub(2 * WORD)?)?
            .cast_signed();
        let description = self.memory.word(vtable.checked_sub(WORD)?)?;
        let is_offset =
            (-FARTHEST_TO_TOP..=0).contains(&to_top) && to_top % WORD.cast_signed() == 0;
        if !is_offset || !self.is_described(description) {
            return None;
        }
        let kind = self.memory.word(description)?;
        let name = self.memory.word(description.checked_add(WORD)?)?;
        if !self.is_described(kind) || !self.is_described(name) {
            return None;
        }
        let name = self.memory.string(name, LONGEST_NAME)?;
        demangled(&name)
    }

    /// Whether types can be described at an address: in what a file maps.
    fn is_described(&self, address: u64) -> bool {
        region_of(self.regions, address)
            .is_some_and(|region| matches!(region.kind, RegionKind::Data | RegionKind::Constant))
    }

    /// The type that stands at an address, if a type object does.
    fn python_type(&mut self, address: u64) -> Option<u32> {
        if !address.is_multiple_of(WORD) || address < 1 << 16 {
            return None;
        }
        if let Some(known) = self.types.get(&address) {
            return *known;
        }
        region_of(self.regions, address)?;
        let number = self
            .type_object(address)
            .filter(|found| self.is_metaclass(found.meta))
            .and_then(|found| self.number(found.name));
        self.types.insert(address, number);
        number
    }

    /// What may be a type object.
    fn type_object(&self, address: u64) -> Option<TypeObject> {
        let mut bytes = [0; TYPE_BYTES];
        if self.memory.read(address, &mut bytes) != bytes.len() {
            return None;
        }
        let word = |at: usize| {
            let part = bytes.get(at..at + WORD as usize)?;
            Some(u64::from_le_bytes(part.try_into().ok()?))
        };
        let flags = word(TP_FLAGS)?;
        if flags & READY == 0 {
            return None;
        }
        let name = self.memory.string(word(TP_NAME)?, LONGEST_NAME)?;
        let name = String::from_utf8(name).ok()?;
        let is_name = !name.is_empty() && !name.chars().any(char::is_control);
        is_name.then(|| TypeObject {
            meta: word(OB_TYPE).unwrap_or(0),
            name: shortened(name),
            is_of_types: flags & TYPE_SUBCLASS != 0,
        })
    }

    /// Whether a type is one of types: its own type is, up to `type`, which is of itself. An instance's is not.
    fn is_metaclass(&self, address: u64) -> bool {
        let mut meta = address;
        for _ in 0..MOST_METACLASSES {
            let Some(found) = self.type_object(meta).filter(|found| found.is_of_types) else {
                return false;
            };
            if found.meta == meta {
                return found.name == "type";
            }
            meta = found.meta;
        }
        false
    }
}

fn shortened(mut name: String) -> String {
    if name.len() > LONGEST_SHOWN {
        let mut end = LONGEST_SHOWN;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        name.truncate(end);
        name.push('…');
    }
    name
}

/// The name of a type's description, as a person writes it.
fn demangled(name: &[u8]) -> Option<String> {
    // A leading star: the name is compared by address.
    let name = name.strip_prefix(b"*").unwrap_or(name);
    let is_mangled = name
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.'));
    let begins = name
        .first()
        .is_some_and(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    if !is_mangled || !begins {
        return None;
    }
    let text = str::from_utf8(name).ok()?;
    let symbol = cpp_demangle::Symbol::new(format!("_ZTS{text}")).ok()?;
    let mut shown = Bounded::default();
    // What is too long ends where there is no more room.
    let _full = symbol.structured_demangle(&mut shown, &cpp_demangle::DemangleOptions::default());
    let shown = shown
        .0
        .strip_prefix("typeinfo name for ")
        .map(str::to_owned)?;
    (!shown.is_empty()).then_some(shown)
}

/// Takes text until there is enough.
#[derive(Default)]
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > LONGEST_SHOWN {
            self.0.write_char('…')?;
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

/// Whether bytes up to the first zero, or all of them, are text.
fn is_text(bytes: &[u8]) -> bool {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    let Some(text) = bytes.get(..end).filter(|text| text.len() >= LEAST_TEXT) else {
        return false;
    };
    let printable = text
        .iter()
        .filter(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace() || **byte >= 0x80)
        .count();
    printable * 100 >= text.len() * PRINTABLE_PERCENT && text.iter().any(u8::is_ascii_alphanumeric)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{memory::Region, memory::RegionKind, testing::Image},
        GroupKind, READY, TYPE_SUBCLASS, Types, demangled, is_text,
    };

    #[test]
    fn what_points_to_an_instance_was_taken_for_an_object() {
        const BASE: u64 = 0x7f00_0000_0000;
        const META: u64 = BASE;
        const CLASS: u64 = BASE + 0x400;
        const INSTANCE: u64 = BASE + 0x800;
        const NAME: u64 = BASE + 0xc00;
        let mut image = Image::default();
        image.0.insert(BASE, vec![0; 0x1000]);
        image.put(NAME, u64::from_le_bytes(*b"type\0\0\0\0"));
        let types = [
            (META, META, TYPE_SUBCLASS),
            (CLASS, META, 0),
            (INSTANCE, CLASS, 0),
        ];
        for (place, of, flags) in types {
            image.put(place + 8, of);
            image.put(place + 24, NAME);
            // Of the instance, something of its neighbour's that happens to fit.
            image.put(place + 168, READY | flags);
        }
        let regions = [Region {
            range: BASE..BASE + 0x1000,
            present: std::iter::once(BASE..BASE + 0x1000).collect(),
            kind: RegionKind::Anonymous,
            name: String::new(),
        }];
        let mut types = Types::new(&image, &regions, true);
        let mut kind = |second: u64| {
            let block: Vec<u8> = [7, second, 1, 2]
                .into_iter()
                .flat_map(u64::to_le_bytes)
                .collect();
            types.kind(&block, None).0
        };
        assert_eq!(kind(INSTANCE), GroupKind::Size);
        assert_eq!(kind(CLASS), GroupKind::Python);
        // References lead to the beginning of what is born in an object's place where that has no collector's links.
        let block =
            |words: [u64; 5]| -> Vec<u8> { words.into_iter().flat_map(u64::to_le_bytes).collect() };
        let linked = block([0, 0, 1, CLASS, 0]);
        let (group, object_at) = types.count(64, &linked, None);
        assert_eq!(object_at, 16);
        let groups = types.take_census().into_groups();
        let is_still = |bytes: &[u8]| {
            let group = groups.get(usize::from(group));
            group.map(|group| types.is_still(group, bytes))
        };
        assert_eq!(is_still(&linked), Some(true));
        assert_eq!(is_still(&block([1, CLASS, 9, 8, 7])), Some(false));
        assert_eq!(is_still(&[]), Some(false));
    }

    #[test]
    fn names_of_classes_are_demangled() {
        let shown = |name: &str| demangled(name.as_bytes());
        assert_eq!(shown("7Session").as_deref(), Some("Session"));
        assert_eq!(shown("*N3app5CacheE").as_deref(), Some("app::Cache"));
        assert_eq!(shown("not mangled"), None);
        assert_eq!(shown(""), None);
    }

    #[test]
    fn a_name_that_unfolds_without_end_is_cut() {
        // Each level doubles what is shown: S_ stands for all that came before.
        let mut name = String::from("St4pairI1aS0_E");
        for _ in 0..40 {
            name = format!("St4pairI{name}S0_E");
        }
        if let Some(shown) = demangled(name.as_bytes()) {
            assert!(shown.len() < 500, "{}", shown.len());
        }
    }

    #[test]
    fn text_is_told_from_numbers() {
        assert!(is_text(b"GET /index.html HTTP/1.1\0\x01\x02"));
        assert!(!is_text(b"short\0"));
        assert!(!is_text(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
    }
}
