//! A look at a process without touching it: what would be attached, and how its files can be unwound.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use super::{
    process::{TraceError, readable, why_empty},
    tables::{Builder, Unwinding},
};
use crate::{
    apart::GoMemory,
    process::{
        discover::{Files, discover},
        elf::is_go,
        procfs::answering_memory,
    },
    reader::{Answering, ProcessMemory},
    runtime::cpython::Interpreters,
    symbol::{AddressSpace, Modules},
    units::bytes,
};

/// A probe that would be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedProbe {
    /// The function's symbol.
    pub name: String,
    /// Family and file of the allocator.
    pub allocator: String,
    /// Where in the file, bytes.
    pub offset: u64,
    /// Why there.
    pub reason: String,
}

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InspectedFile {
    /// As the process sees it.
    pub path: PathBuf,
    /// How it can be unwound.
    pub unwinding: Unwinding,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The process's name.
    pub comm: String,
    /// In the order of the allocators.
    pub probes: Vec<PlannedProbe>,
    /// What may be missing, a line each.
    pub notes: Vec<String>,
    /// What is seen without a probe of its own, a line for each allocator.
    pub covered: Vec<String>,
    /// What is known of the Python in it; an error says what cannot be seen.
    pub python: Option<Result<String, String>>,
    /// What is known of the Go runtime in it; an error says what cannot be read.
    pub go: Option<Result<String, String>>,
    /// Files with code, by address.
    pub files: Vec<InspectedFile>,
}

/// Looks at a process.
///
/// # Errors
/// There is no such process, it runs no program, or it cannot be read.
pub fn inspect(proc_root: &Path, pid: u32) -> Result<Inspection, TraceError> {
    let process = readable(proc_root, pid)?;
    let discovery = discover(&Files::default(), proc_root, pid)?;
    let mut inspection = Inspection {
        comm: process.comm,
        notes: discovery
            .problems
            .iter()
            .chain(&discovery.foreign_breakpoints())
            .map(|problem| format!("{}: {}", problem.path.display(), problem.what))
            .collect(),
        ..Inspection::default()
    };
    for found in &discovery.allocators {
        let allocator = format!(
            "{} {} ({})",
            found.kind,
            found.file.path.display(),
            found.placement
        );
        for function in &found.functions {
            inspection.probes.push(PlannedProbe {
                name: function.name.clone(),
                allocator: allocator.clone(),
                offset: function.probe_offset(),
                reason: format!(
                    "{} `{}`, {}",
                    function.site.cost, function.site.instruction, function.site.reason
                ),
            });
        }
        if !found.covered.is_empty() {
            inspection.covered.push(format!(
                "{}: seen without a probe of their own, for they go through others: {}",
                found.file.path.display(),
                found.covered.join(", ")
            ));
        }
    }
    let mut space = AddressSpace::default();
    space.refresh(proc_root, pid, &mut Modules::default())?;
    inspection.python = Interpreters::default().find(&space).map(|found| {
        let python = found?;
        let path = python.module().path.display();
        let ranges = answering_memory(proc_root, pid).unwrap_or_default();
        let threads = ProcessMemory::open(proc_root, pid)
            .ok()
            .and_then(|memory| python.threads(&Answering::new(&memory, &ranges)));
        match threads {
            Some((all, found)) if found == all => Ok(format!(
                "CPython {} in {path}: functions and lines in stacks; {found} of {all} thread states found",
                python.release()
            )),
            Some((all, found)) => Err(format!(
                "CPython {} in {path}: {found} of {all} thread states are where they are looked for; stacks of the other threads have no Python functions",
                python.release()
            )),
            None => Err(format!(
                "CPython {} in {path}: its threads cannot be read yet",
                python.release()
            )),
        }
    });
    inspection.go = go(proc_root, pid, &space);
    if !matches!(inspection.go, Some(Ok(_))) {
        inspection.notes.extend(why_empty(&discovery));
    }
    let builder = Builder::default();
    let mut seen = HashSet::new();
    for range in space.ranges() {
        if let Some(module) = &range.module
            && seen.insert(module.number)
        {
            inspection.files.push(InspectedFile {
                path: module.path.clone(),
                unwinding: builder.describe(module),
            });
        }
    }
    Ok(inspection)
}

/// What can be read of the Go runtime of a process.
fn go(proc_root: &Path, pid: u32, space: &AddressSpace) -> Option<Result<String, String>> {
    let (range, module, elf) = space.ranges().iter().find_map(|range| {
        let module = range.module.as_ref()?;
        let elf = module.elf.as_ref().filter(|elf| is_go(elf))?;
        Some((range, module, elf))
    })?;
    let memory = match ProcessMemory::open(proc_root, pid) {
        Ok(memory) => memory,
        Err(error) => return Some(Err(format!("its memory cannot be read: {error}"))),
    };
    let ranges = answering_memory(proc_root, pid).unwrap_or_default();
    let place = GoMemory {
        memory: &memory,
        ranges: &ranges,
        bias: range.start.wrapping_sub(module.mapped_at(range)),
    };
    let program = match place.program(elf) {
        Ok(Ok(program)) => program,
        Ok(Err(error)) => return Some(Err(error.to_string())),
        Err(why) => return Some(Err(why.to_string())),
    };
    let (profile, goroutines) = match place.look(&program.places) {
        Ok(seen) => seen,
        Err(why) => return Some(Err(why.to_string())),
    };
    let goroutines = match goroutines {
        Some(_) => "goroutines",
        None => "no goroutines",
    };
    let heap = match profile {
        Some(profile) if profile.rate > 0 => format!(
            "its heap profile, one sample for {}",
            bytes(profile.rate)
        ),
        // While it is swept there is nothing to be counted.
        _ if !matches!(place.generation(&program.places), Ok(Some(_))) => {
            "it has no heap profile, and its heap is not where this version has it".to_owned()
        }
        _ if program.returns.is_empty() => {
            "it has no heap profile; blocks are counted by size, and where they are allocated is not seen".to_owned()
        }
        _ => "it has no heap profile; blocks are counted by size, and some are seen where they are allocated".to_owned(),
    };
    Some(Ok(format!(
        "{} in {}: {goroutines}, functions and lines; {heap}",
        program.version.name,
        module.path.display()
    )))
}
