//! What is told of Go's heap in a report: a process's runtime, its sites, their frames by name and their verdicts. It looks at nothing.

use std::sync::Arc;

use super::{Blocks, GoHeaps, Names, goroutines, site};
use crate::{
    ledger::{Judgement, SiteId},
    report::{Frame, Process, Site},
};

impl GoHeaps {
    /// Tells of a process's runtime.
    pub(in crate::session) fn describe(&self, incarnation: u32, told: &mut Process) {
        let Some(process) = self.processes.get(&incarnation) else {
            return;
        };
        if process.has_profile() || process.blocks.as_ref().is_some_and(Blocks::is_counted) {
            told.allocators.push(process.allocator());
        }
        told.go = Some(process.used());
    }

    /// Names the frames of a site; `None` of one that is not of Go's profile.
    pub(in crate::session) fn frames(
        &self,
        incarnation: u32,
        id: SiteId,
    ) -> Option<Vec<Arc<Frame>>> {
        let process = self.processes.get(&incarnation)?;
        let found = process.found.as_ref()?;
        let names = Names {
            program: &found.program,
            bias: found.bias,
            path: &process.path,
        };
        match process.sites.get(&id) {
            Some(site) => Some(site.frames(names)),
            None => process
                .goroutines
                .frames(id, names)
                .or_else(|| process.blocks.as_ref()?.frames(id, names)),
        }
    }

    /// Names frames of Go that stand above C where no symbol does: the runtime's table of functions stays in stripped files.
    pub(in crate::session) fn name(&self, incarnation: u32, frames: &mut Vec<Arc<Frame>>) {
        let process = self.processes.get(&incarnation);
        let found = process.and_then(|process| Some((process, process.found.as_ref()?)));
        let Some((process, found)) = found else {
            return;
        };
        if frames.iter().any(|frame| frame.function.is_none()) {
            let names = Names {
                program: &found.program,
                bias: found.bias,
                path: &process.path,
            };
            *frames = site::with_names(names, frames);
        }
    }

    /// Judges a site.
    pub(in crate::session) fn judge(&self, incarnation: u32, id: SiteId) -> Judgement {
        let process = self.processes.get(&incarnation);
        let blocks = process.and_then(|process| process.blocks.as_ref());
        if let Some(known) = blocks.and_then(|blocks| blocks.judgement(id)) {
            return known.clone();
        }
        let judgement = self.ledger.judge_mapping(id);
        let site = process.and_then(|process| Some((process, process.sites.get(&id)?)));
        match site {
            Some((process, site)) => site.judged(&judgement, process.collections()),
            None => goroutines::judged(&judgement),
        }
    }

    /// The sites of a process.
    pub(super) fn sites(&self, pid: u32, incarnation: u32) -> Vec<Site> {
        let Some(process) = self.processes.get(&incarnation) else {
            return Vec::new();
        };
        let goroutines = process.goroutines.described().map(|site| Site {
            pid,
            incarnation,
            ..site
        });
        let made = process.sites.iter().filter(|(_, site)| site.is_shown());
        made.map(|(id, site)| Site {
            pid,
            incarnation,
            id: u64::from(*id),
            allocator: Some(process.allocator()),
            ..site.described()
        })
        .chain(goroutines)
        .collect()
    }
}
