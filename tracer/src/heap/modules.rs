//! CPython's modules: the roots that people know by name. `PyModuleObject` of `Include/internal/pycore_moduleobject.h` (3.11;
//! `Objects/moduleobject.c` before), `PyASCIIObject` of `Include/cpython/unicodeobject.h`.

use std::collections::HashMap;

use super::{
    blocks::{BlockId, Blocks},
    census::{Group, GroupId, GroupKind},
    graph::Reach,
    holders::RootName,
    memory::Memory,
};

/// `md_name`.
const MODULE_NAME: u64 = 48;
/// `length` of a string, and the bits of its `state`: `kind` (three bits from the third on, of two before), `compact`, `ascii`.
const STRING_LENGTH: u64 = 16;
/// The text of an ASCII string: behind `wstr`, which 3.12 left out.
const STRING_TEXT: [u64; 2] = [40, 48];
/// The longest name of a module that is read, bytes.
const LONGEST: u64 = 256;

/// The modules of a process that roots reach.
#[derive(Debug, Default)]
pub(super) struct Modules {
    blocks: Vec<(BlockId, u64)>,
    names: HashMap<u64, String>,
}

impl Modules {
    /// Finds them among the blocks.
    pub(super) fn of(
        memory: &dyn Memory,
        blocks: &Blocks,
        groups: &[Group],
        group_of: &[GroupId],
        reach: &Reach,
    ) -> Self {
        let mut modules = Self::default();
        let is_module = |group: &Group| group.kind == GroupKind::Python && group.name == "module";
        if !groups.iter().any(is_module) {
            return modules;
        }
        for (block, address, _) in blocks.iter() {
            let Some(group) = group_of
                .get(block as usize)
                .and_then(|group| groups.get(usize::from(*group)))
                .filter(|group| is_module(group))
            else {
                continue;
            };
            if reach.has(block)
                && let Some(name) = name(memory, address.saturating_add(group.object_at))
            {
                modules.blocks.push((block, address));
                modules.names.insert(address, format!("module {name}"));
            }
        }
        modules
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Whether a block is one of them.
    pub(super) fn has(&self, block: BlockId) -> bool {
        self.blocks
            .binary_search_by_key(&block, |(module, _)| *module)
            .is_ok()
    }

    /// Their blocks, with their addresses.
    pub(super) fn blocks(&self) -> &[(BlockId, u64)] {
        &self.blocks
    }

    /// Names of roots, these among them.
    pub(super) fn names<'names>(
        &'names self,
        others: &'names mut dyn RootName,
    ) -> impl RootName + 'names {
        Named {
            modules: self,
            others,
        }
    }
}

struct Named<'names> {
    modules: &'names Modules,
    others: &'names mut dyn RootName,
}

impl RootName for Named<'_> {
    fn name(&mut self, address: u64) -> String {
        self.modules
            .names
            .get(&address)
            .cloned()
            .unwrap_or_else(|| self.others.name(address))
    }
}

/// A module's name, where it is an ASCII string.
fn name(memory: &dyn Memory, module: u64) -> Option<String> {
    let string = memory.word(module.checked_add(MODULE_NAME)?)?;
    let length = memory.word(string.checked_add(STRING_LENGTH)?)?;
    if !(1..=LONGEST).contains(&length) {
        return None;
    }
    STRING_TEXT.into_iter().find_map(|text| {
        let name = memory.string(string.checked_add(text)?, LONGEST as usize + 1)?;
        let fits = name.len() as u64 == length && name.iter().all(|byte| byte.is_ascii_graphic());
        fits.then(|| String::from_utf8(name).ok()).flatten()
    })
}
