//! CPython's objects, read for the names in them: text, types, attributes, keys of dictionaries. 3.8 to 3.13 with the GIL; which of
//! the layouts a process has is told by what is there. Every length and pointer is the target's: what does not fit is no name.
//!
//! Layouts: `Include/cpython/unicodeobject.h`, `Include/cpython/object.h`, `Include/internal/pycore_object.h`,
//! `Include/internal/pycore_dict.h` (`Objects/dict-common.h` before 3.11), `Include/structmember.h`.

pub(super) mod dicts;
#[cfg(test)]
mod tests;
mod text;

use std::{collections::HashMap, rc::Rc};

use super::memory::{Memory, WORD};
use dicts::{Keys, split_values};
use text::Texts;

/// `PyObject.ob_type`.
const OB_TYPE: u64 = 8;
/// `PyTypeObject`: `tp_name`, `tp_basicsize`, `tp_flags`, `tp_members`, `tp_base`, `tp_dict`, `tp_dictoffset`.
const TP_NAME: usize = 24;
const TP_BASICSIZE: usize = 32;
const TP_FLAGS: usize = 168;
const TP_MEMBERS: usize = 240;
const TP_BASE: usize = 256;
const TP_DICT: usize = 264;
const TP_DICTOFFSET: usize = 288;
/// `PyHeapTypeObject.ht_cached_keys`: of 3.11, of 3.12 and 3.13.
const CACHED_KEYS: [usize; 2] = [872, 880];
const TYPE_BYTES: usize = 888;
const PLAIN_TYPE_BYTES: usize = TP_DICTOFFSET + 8;

/// `Py_TPFLAGS_INLINE_VALUES` (3.13), `Py_TPFLAGS_MANAGED_DICT` (3.11 on), `Py_TPFLAGS_HEAPTYPE`, `Py_TPFLAGS_READY`,
/// `Py_TPFLAGS_UNICODE_SUBCLASS`, `Py_TPFLAGS_DICT_SUBCLASS`, `Py_TPFLAGS_TYPE_SUBCLASS`.
const INLINE_VALUES: u64 = 1 << 2;
const MANAGED_DICT: u64 = 1 << 4;
const HEAPTYPE: u64 = 1 << 9;
const READY: u64 = 1 << 12;
const UNICODE_SUBCLASS: u64 = 1 << 28;
const DICT_SUBCLASS: u64 = 1 << 29;
const TYPE_SUBCLASS: u64 = 1 << 31;

/// Before an object: its dictionary, or in 3.12 its values with the lowest bit set; before that its values in 3.11.
const BEFORE_DICT: u64 = 24;
const BEFORE_VALUES: u64 = 32;
/// `PyModuleObject.md_dict`, `md_name`.
const MODULE_DICT: u64 = 16;
const MODULE_NAME: u64 = 48;

/// `PyMemberDef`: `name`, `type`, `offset`; its size.
const MEMBER_TYPE: usize = 8;
const MEMBER_OFFSET: usize = 16;
const MEMBER_BYTES: u64 = 40;
/// `T_OBJECT`, `T_OBJECT_EX`: a reference.
const MEMBER_REFERENCES: [u32; 2] = [6, 16];
/// So many members of a type, and bases of it, are read.
const MOST_MEMBERS: u64 = 64;
const MOST_BASES: usize = 16;
/// The longest name of a type or member that is read, bytes.
const LONGEST_NAME: usize = 256;

/// What is known of a type.
#[derive(Debug, Default)]
pub(super) struct TypeObject {
    name: String,
    flags: u64,
    basic_size: u64,
    dict_offset: i64,
    /// References in its instances, by their distance.
    members: Vec<(u64, String)>,
    /// The names of instances' attributes, where those share them (3.11 on).
    shared: Option<Keys>,
}

impl TypeObject {
    /// Whether its instances are dictionaries.
    pub(super) fn is_dict(&self) -> bool {
        self.flags & DICT_SUBCLASS != 0
    }

    /// Whether its instances are types.
    pub(super) fn is_metatype(&self) -> bool {
        self.flags & TYPE_SUBCLASS != 0
    }
}

/// Reads objects, and remembers the types that it has met.
pub(super) struct Objects<'look> {
    memory: &'look dyn Memory,
    texts: Texts,
    types: HashMap<u64, Option<Rc<TypeObject>>>,
}

impl<'look> Objects<'look> {
    /// Nothing is known yet.
    pub(super) fn new(memory: &'look dyn Memory) -> Self {
        Self {
            memory,
            texts: Texts::default(),
            types: HashMap::new(),
        }
    }

    /// The type of an object.
    pub(super) fn type_of(&mut self, object: u64) -> Option<Rc<TypeObject>> {
        let address = self.memory.word(object.checked_add(OB_TYPE)?)?;
        if let Some(known) = self.types.get(&address) {
            return known.clone();
        }
        let found = self.read_type(address).map(Rc::new);
        self.types.insert(address, found.clone());
        found
    }

    fn read_type(&mut self, address: u64) -> Option<TypeObject> {
        let plain = Fields::read(self.memory, address, PLAIN_TYPE_BYTES)?;
        let flags = plain.word(TP_FLAGS)?;
        if flags & READY == 0 {
            return None;
        }
        let mut found = TypeObject {
            name: self.name_at(plain.word(TP_NAME)?)?,
            flags,
            basic_size: plain.word(TP_BASICSIZE)?,
            dict_offset: plain.word(TP_DICTOFFSET)?.cast_signed(),
            ..TypeObject::default()
        };
        let mut base = Some(plain);
        for _ in 0..MOST_BASES {
            let Some(fields) = base else { break };
            self.read_members(fields.word(TP_MEMBERS)?, &mut found.members);
            base = fields
                .word(TP_BASE)
                .filter(|base| *base != 0)
                .and_then(|base| Fields::read(self.memory, base, PLAIN_TYPE_BYTES));
        }
        if flags & HEAPTYPE != 0 && flags & MANAGED_DICT != 0 {
            let whole = Fields::read(self.memory, address, TYPE_BYTES)?;
            found.shared = CACHED_KEYS
                .iter()
                .filter_map(|at| Keys::read(self.memory, whole.word(*at)?))
                .find(|keys| keys.is_split && self.key(keys, 0).is_some());
        }
        Some(found)
    }

    fn read_members(&self, table: u64, members: &mut Vec<(u64, String)>) {
        if table == 0 {
            return;
        }
        for number in 0..MOST_MEMBERS {
            let Some(fields) = table
                .checked_add(number * MEMBER_BYTES)
                .and_then(|at| Fields::read(self.memory, at, MEMBER_BYTES as usize))
            else {
                return;
            };
            let (Some(name), Some(kind), Some(offset)) = (
                fields.word(0).filter(|name| *name != 0),
                fields.half(MEMBER_TYPE),
                fields.word(MEMBER_OFFSET),
            ) else {
                return;
            };
            let Some(name) = self.name_at(name) else {
                return;
            };
            if MEMBER_REFERENCES.contains(&kind) {
                members.push((offset, name));
            }
        }
    }

    /// A name that stands as C text.
    fn name_at(&self, address: u64) -> Option<String> {
        let name = String::from_utf8(self.memory.string(address, LONGEST_NAME)?).ok()?;
        let fits = !name.is_empty() && !name.chars().any(char::is_control);
        fits.then_some(name)
    }

    /// An object's text, shortened, if it is a string.
    pub(super) fn text(&mut self, object: u64) -> Option<String> {
        let of = self.type_of(object)?;
        if of.flags & UNICODE_SUBCLASS == 0 {
            return None;
        }
        self.texts.read(self.memory, object)
    }

    /// The name of a module.
    pub(super) fn module_name(&mut self, module: u64) -> Option<String> {
        let name = self.memory.word(module.checked_add(MODULE_NAME)?)?;
        self.text(name).filter(|name| !name.is_empty())
    }

    /// The name of a class.
    pub(super) fn class_name(&self, class: u64) -> Option<String> {
        let name = self.memory.word(class.checked_add(TP_NAME as u64)?)?;
        self.name_at(name)
    }

    /// The text of a key.
    fn key(&mut self, keys: &Keys, number: u64) -> Option<String> {
        let key = keys.key_at(self.memory, number)?;
        self.text(key)
    }

    /// The key under which a dictionary has a value, where that is text.
    pub(super) fn key_of(&mut self, dict: u64, value: u64) -> Option<String> {
        let (keys, values) = dicts::parts(self.memory, dict)?;
        let number = match values {
            Some(values) => split_values(self.memory, values, &keys)
                .iter()
                .position(|held| *held == value)? as u64,
            None => keys.place_of(self.memory, value)?,
        };
        self.key(&keys, number)
    }

    /// Whether a dictionary holds an object's attributes, a class's or a module's.
    pub(super) fn is_namespace(&self, of: &TypeObject, object: u64, dict: u64) -> bool {
        let at = |address: Option<u64>| address.and_then(|at| self.memory.word(at)) == Some(dict);
        if of.is_metatype() && at(object.checked_add(TP_DICT as u64)) {
            return true;
        }
        if of.name == "module" && at(object.checked_add(MODULE_DICT)) {
            return true;
        }
        if of.flags & MANAGED_DICT != 0 {
            return at(object.checked_sub(BEFORE_DICT));
        }
        of.dict_offset > 0 && at(object.checked_add(of.dict_offset.cast_unsigned()))
    }

    /// The attribute by which an object holds another.
    pub(super) fn attribute(&mut self, of: &TypeObject, object: u64, held: u64) -> Option<String> {
        if let (Some(shared), Some(values)) = (&of.shared, self.own_values(of, object)) {
            let found = split_values(self.memory, values, shared)
                .iter()
                .position(|value| *value == held);
            if let Some(name) = found.and_then(|number| self.key(shared, number as u64)) {
                return Some(name);
            }
        }
        let holds = |(offset, _): &&(u64, String)| {
            let at = object.checked_add(*offset);
            *offset < of.basic_size && at.and_then(|at| self.memory.word(at)) == Some(held)
        };
        of.members
            .iter()
            .find(holds)
            .map(|(_, name)| text::shortened(name.clone()))
    }

    /// Where the values of an object stand that has no dictionary.
    pub(super) fn own_values(&self, of: &TypeObject, object: u64) -> Option<u64> {
        if of.flags & INLINE_VALUES != 0 {
            return object.checked_add(of.basic_size)?.checked_add(WORD);
        }
        let dict = self.memory.word(object.checked_sub(BEFORE_DICT)?)?;
        if dict & 1 != 0 {
            return dict.checked_add(1);
        }
        if dict == 0 && self.texts.are_of_before_3_12() {
            return self.memory.word(object.checked_sub(BEFORE_VALUES)?);
        }
        None
    }
}

/// The first bytes of something, as numbers.
#[derive(Clone, Debug)]
struct Fields(Vec<u8>);

impl Fields {
    fn read(memory: &dyn Memory, address: u64, length: usize) -> Option<Self> {
        let mut bytes = vec![0; length];
        (memory.read(address, &mut bytes) == length).then_some(Self(bytes))
    }

    fn word(&self, at: usize) -> Option<u64> {
        let part = self.0.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(part.try_into().ok()?))
    }

    fn half(&self, at: usize) -> Option<u32> {
        let part = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(part.try_into().ok()?))
    }
}
