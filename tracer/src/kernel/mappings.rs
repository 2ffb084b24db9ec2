//! What sees mappings: programs at the kernel's functions of the system calls that change them, or at the tracepoints of these calls.
//!
//! At a function (fentry, fexit) a program costs those who call it, and nobody else. As soon as one tracepoint of a system call is on, the
//! kernel sends every call of every process on a longer way (`TIF_SYSCALL_TRACEPOINT`). So functions are taken wherever the kernel ties
//! programs to them, which is found by doing it. Knows nothing of what the programs tell.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_prog_type;

use super::{
    attach::Link, btf, error::KernelError, load::LoadedObject, probe::Probe, sys, tracefs::Tracefs,
};

/// How mappings are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingWay {
    /// By programs at the kernel's functions.
    Functions,
    /// At the tracepoints of system calls.
    Tracepoints {
        /// Why not at functions.
        why: String,
    },
}

/// A system call that changes mappings.
struct Call {
    name: &'static str,
    /// It takes something away, and is seen at its beginning too.
    takes: bool,
    /// It makes a mapping or moves one.
    makes: bool,
}

/// Where code is mapped, which is always seen; the others only where the steps of mappings are asked for.
const NEW_CODE: &str = "mmap";

/// A call that a kernel need not have: without protection keys there is none.
const OPTIONAL: &str = "pkey_mprotect";

const CALLS: [Call; 6] = [
    Call {
        name: NEW_CODE,
        takes: false,
        makes: true,
    },
    Call {
        name: "munmap",
        takes: true,
        makes: false,
    },
    Call {
        name: "mremap",
        takes: true,
        makes: true,
    },
    Call {
        name: "brk",
        takes: false,
        makes: true,
    },
    Call {
        name: "mprotect",
        takes: false,
        makes: false,
    },
    Call {
        name: OPTIONAL,
        takes: false,
        makes: false,
    },
];

/// The calls to be seen.
fn calls(steps: bool) -> impl Iterator<Item = &'static Call> {
    CALLS
        .iter()
        .filter(move |call| steps || call.name == NEW_CODE)
}

/// The kernel's function of a 64-bit call (`__SYSCALL_DEFINEx`, arch/x86/include/asm/syscall_wrapper.h).
fn function(call: &Call) -> String {
    format!("__x64_sys_{}", call.name)
}

/// Loaded programs, name and descriptor: one for each function, or one for the beginnings of all calls and one for their ends.
type Programs = Vec<(&'static str, OwnedFd)>;

/// The programs, and how they are tied.
pub(super) struct MappingPrograms {
    way: MappingWay,
    programs: Programs,
    /// Where programs for tracepoints come from that are not loaded yet: what the verifier walks is taken from whoever runs meanwhile, and
    /// where the machine makes many system calls they are never tied.
    object: Option<LoadedObject>,
    /// Runs that the kernel had missed when they began to count.
    missed_before: u64,
}

impl MappingPrograms {
    /// Where the kernel ties programs to its functions, loads them and ties them: that it does is not known before. With `steps`, for all
    /// calls, else for what maps code. With `only_tracepoints`, as if it did not. Programs for tracepoints are loaded from what is
    /// handed over to [`MappingPrograms::keep`].
    pub(super) fn load(object: &LoadedObject, steps: bool, only_tracepoints: bool) -> (Self, Link) {
        let tied = if only_tracepoints {
            Err("perf events were asked for".to_owned())
        } else {
            tie_to_functions(object, steps)
        };
        let (way, programs, link) = match tied {
            Ok((programs, link)) => (MappingWay::Functions, programs, link),
            Err(why) => (MappingWay::Tracepoints { why }, Vec::new(), Link::default()),
        };
        let loaded = Self {
            way,
            programs,
            object: None,
            missed_before: 0,
        };
        (loaded, link)
    }

    /// Keeps the object for as long as programs of it are to be loaded.
    pub(super) fn keep(&mut self, object: LoadedObject) {
        if self.way != MappingWay::Functions {
            self.object = Some(object);
        }
    }

    /// Nothing more is to be loaded.
    pub(super) fn let_object_go(&mut self) {
        self.object = None;
    }

    /// Loads the programs for tracepoints, if they are the way and not loaded yet.
    ///
    /// # Errors
    /// The kernel refused one.
    pub(super) fn load_for_tracepoints(&mut self) -> Result<(), KernelError> {
        let Some(object) = self.object.take() else {
            return Ok(());
        };
        for name in [BEGINNING, END] {
            let kind = bpf_prog_type::BPF_PROG_TYPE_TRACEPOINT;
            self.programs.push((name, object.program(name, kind, 0)?));
        }
        Ok(())
    }

    /// Name and descriptor of each program.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.programs.iter().map(|(name, fd)| (*name, fd.as_fd()))
    }

    /// Ties the programs to tracepoints, if that is the way.
    fn tie_to_tracepoints(&mut self, steps: bool) -> Result<Link, KernelError> {
        let mut link = Link::default();
        if self.way == MappingWay::Functions {
            return Ok(link);
        }
        self.load_for_tracepoints()?;
        let tracefs = Tracefs::open()?;
        for call in calls(steps) {
            for (name, event) in [
                (BEGINNING, format!("syscalls/sys_enter_{}", call.name)),
                (END, format!("syscalls/sys_exit_{}", call.name)),
            ] {
                if name == BEGINNING && !call.takes {
                    continue;
                }
                let Some((_, program)) = self.programs.iter().find(|(other, _)| *other == name)
                else {
                    continue;
                };
                let number = match tracefs.tracepoint_id(&event) {
                    Err(_) if call.name == OPTIONAL => continue,
                    number => number?,
                };
                link.add_tracepoint(program.as_fd(), &event, number)?;
            }
        }
        Ok(link)
    }

    /// How often the kernel skipped one of the programs. It does where one was interrupted, and another thread comes by the same on the same
    /// processor; and, of those at tracepoints, while somebody changes a BPF map there.
    fn missed(&self) -> u64 {
        self.programs()
            .filter_map(|(_, program)| sys::missed_runs(program).ok())
            .fold(0, u64::saturating_add)
            .saturating_sub(self.missed_before)
    }
}

/// The programs for tracepoints.
const BEGINNING: &str = "mapping_enter";
const END: &str = "mapping_return";

/// Loads a program for each function and ties it.
///
/// # Errors
/// Why there is none.
fn tie_to_functions(object: &LoadedObject, steps: bool) -> Result<(Programs, Link), String> {
    let names: Vec<String> = calls(steps).map(function).collect();
    let numbers = btf::function_numbers(&names).map_err(|error| error.to_string())?;
    let mut programs = Vec::new();
    let mut link = Link::default();
    for ((call, name), number) in calls(steps).zip(names).zip(numbers) {
        let Some(number) = number else {
            if call.name == OPTIONAL {
                continue;
            }
            return Err(format!("the kernel's BTF has no function {name}"));
        };
        let at_end = if call.makes {
            "mapping_made"
        } else {
            "mapping_changed"
        };
        for (program, attach_type) in [
            ("mapping_begins", sys::BPF_TRACE_FENTRY),
            (at_end, sys::BPF_TRACE_FEXIT),
        ] {
            if attach_type == sys::BPF_TRACE_FENTRY && !call.takes {
                continue;
            }
            let loaded = object
                .tracing_program(program, attach_type, number)
                .map_err(|error| match error {
                    // The verifier's log is not for people.
                    KernelError::Program { source, .. } => {
                        format!("the kernel refuses programs for its functions: {source}")
                    }
                    error => error.to_string(),
                })?;
            let tied = sys::open_tracing(loaded.as_fd())
                .map_err(|error| format!("the kernel ties no program to {name}: {error}"))?;
            link.links.push(tied);
            programs.push((program, loaded));
        }
    }
    Ok((programs, link))
}

impl Probe {
    /// How mappings are seen.
    #[must_use]
    pub fn mapping_way(&self) -> &MappingWay {
        &self.mapping_programs.way
    }

    /// Whether what sees mappings makes every system call of the machine dearer.
    #[must_use]
    pub fn slows_system_calls(&self) -> bool {
        self.mapping_programs.way != MappingWay::Functions
    }

    /// Attaches to the tracepoints of system calls, if that is how mappings are seen.
    ///
    /// # Errors
    /// A tracepoint was refused, or tracefs cannot be read.
    pub fn attach_mappings(&mut self) -> Result<(), KernelError> {
        let steps = self
            .settings
            .read(0)
            .is_some_and(|settings| settings.mappings != 0);
        let link = self.mapping_programs.tie_to_tracepoints(steps)?;
        self.mapping_links.links.extend(link.links);
        self.mapping_links.events.extend(link.events);
        Ok(())
    }

    /// Calls that change mappings, of any process of the machine, at which the kernel skipped the program, since losses are counted.
    #[must_use]
    pub fn missed_mappings(&self) -> u64 {
        self.mapping_programs.missed()
    }

    /// Begins to count them anew.
    pub(super) fn reset_missed_mappings(&mut self) {
        self.mapping_programs.missed_before += self.mapping_programs.missed();
    }
}

#[cfg(test)]
mod tests {
    use super::{CALLS, NEW_CODE, calls, function};

    #[test]
    fn without_steps_only_the_call_that_maps_code_is_seen() {
        let names: Vec<_> = calls(false).map(function).collect();
        assert_eq!(names, [format!("__x64_sys_{NEW_CODE}")]);
        assert_eq!(calls(true).count(), CALLS.len());
    }
}
