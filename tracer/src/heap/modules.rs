//! CPython's modules: the roots that people know by name.

use std::{collections::HashMap, ops::Range};

use super::{
    blocks::{BlockId, Blocks},
    census::{Group, GroupId, GroupKind},
    graph::Reach,
    holders::RootName,
    memory::{Memory, PAGE, WORD},
    objects::Objects,
};

/// The modules of a process that roots reach.
#[derive(Debug, Default)]
pub(super) struct Modules {
    blocks: Vec<(BlockId, u64)>,
    names: HashMap<u64, String>,
}

impl Modules {
    /// Finds them among the blocks.
    pub(super) fn of(
        objects: &mut Objects<'_>,
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
                && let Some(name) = objects.module_name(address.saturating_add(group.object_at))
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
        memory: &'names dyn Memory,
        others: &'names mut dyn RootName,
    ) -> impl RootName + 'names {
        Named {
            modules: self,
            memory,
            others,
        }
    }
}

struct Named<'names> {
    modules: &'names Modules,
    memory: &'names dyn Memory,
    others: &'names mut dyn RootName,
}

impl Named<'_> {
    /// What CPython would call it.
    fn python(&self, address: u64) -> Option<String> {
        let module = self.modules.names.get(&address).cloned();
        module.or_else(|| {
            let is_frame = !self.modules.is_empty() && is_in_frame(self.memory, address);
            is_frame.then(|| "a Python frame's variable".to_owned())
        })
    }
}

impl RootName for Named<'_> {
    fn has_rust(&mut self) -> bool {
        self.others.has_rust()
    }

    fn functions(&mut self, address: u64) -> Option<Vec<String>> {
        self.others.functions(address)
    }

    fn has_function(&mut self, address: u64, name: &str) -> bool {
        self.others.has_function(address, name)
    }

    fn name(&mut self, address: u64) -> String {
        self.python(address)
            .unwrap_or_else(|| self.others.name(address))
    }

    fn whole(&mut self, address: u64) -> (String, Range<u64>) {
        match self.python(address) {
            Some(name) => (name, address..address.saturating_add(1)),
            None => self.others.whole(address),
        }
    }
}

/// Whether an address lies in the memory of frames, which 3.11 and later map in pieces: `_PyStackChunk` of `Include/cpython/pystate.h`
/// (the piece before, its size, how much was used before) stands at the beginning, `DATA_STACK_CHUNK_SIZE` of `Python/pystate.c`.
fn is_in_frame(memory: &dyn Memory, address: u64) -> bool {
    const CHUNK: u64 = 4 * PAGE;
    const HEAD: u64 = 24;
    let page = address - address % PAGE;
    (0..CHUNK / PAGE).any(|back| {
        let Some(start) = page.checked_sub(back * PAGE) else {
            return false;
        };
        let word = |at: u64| start.checked_add(at).and_then(|at| memory.word(at));
        address - start >= HEAD
            && word(0).is_some_and(|before| before.is_multiple_of(PAGE))
            && word(8) == Some(CHUNK)
            && word(16).is_some_and(|top| top < CHUNK / WORD)
    })
}
