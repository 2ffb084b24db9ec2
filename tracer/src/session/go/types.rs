//! What the blocks of a site are, by the call that allocates them: all of one type, where that is known.

use std::{ops::Range, path::Path};

use super::GoProcess;
use crate::{process::procfs::answering_memory, reader::Answering, report::SiteType};

/// The types of so many sites are looked at in a look: each takes some ten microseconds.
const MOST: usize = 100;

impl GoProcess {
    /// Looks what the blocks of some sites of the profile are. `ranges`: what of the process's memory answers.
    pub(super) fn learn_types(&mut self, ranges: &[Range<u64>]) {
        let Some(found) = &self.found else {
            return;
        };
        let memory = Answering::new(&found.memory, ranges);
        let type_of = |stack: &[u64]| found.program.allocated_type(&memory, found.bias, stack);
        let mut looked = 0;
        for site in self.sites.values_mut() {
            looked += usize::from(site.learn_type(type_of));
            if looked >= MOST {
                return;
            }
        }
    }

    /// What a block is that was handed out at a stack.
    pub(super) fn block_type(&self, proc_root: &Path, pid: u32, frames: &[u64]) -> Option<String> {
        let found = self.found.as_ref()?;
        let ranges = answering_memory(proc_root, pid).ok()?;
        let memory = Answering::new(&found.memory, &ranges);
        found.program.allocated_type(&memory, found.bias, frames)
    }
}

/// What is said of the blocks of a site that are all of one type.
pub(super) fn types_of(name: Option<&String>, objects: u64, bytes: u64) -> Vec<SiteType> {
    let known = name.filter(|_| objects > 0);
    let of = known.map(|name| SiteType {
        name: name.clone(),
        objects,
        bytes,
    });
    of.into_iter().collect()
}
