//! What sees mappings: programs at the kernel's functions of the system calls that change them, or where the kernel chooses addresses.
//!
//! At a function (fentry, fexit) a program costs those who call it, and nobody else. So does one at the raw tracepoint
//! `mmap:vm_unmapped_area`, which every kernel has, but it sees only what is made where the kernel chooses. Functions are taken wherever
//! the kernel ties programs to them, which is found by doing it. Knows nothing of what the programs tell.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya_obj::generated::bpf_prog_type;

use super::{
    btf,
    error::{KernelError, verifiers_reason},
    link::Link,
    load::LoadedObject,
    probe::Probe,
    sys,
};

/// How mappings are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MappingWay {
    /// By programs at the kernel's functions: every step of each.
    Functions,
    /// When the kernel chooses an address for one; the rest by looking.
    Places {
        /// Why not at functions.
        why: String,
    },
}

/// A system call that changes mappings.
struct Call {
    name: &'static str,
    /// It takes something away, and is seen at its beginning too.
    takes: bool,
    /// It makes a mapping, moves one, or makes memory of one.
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
        makes: true,
    },
    Call {
        name: OPTIONAL,
        takes: false,
        makes: true,
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

/// Loaded programs, name and descriptor.
type Programs = Vec<(&'static str, OwnedFd)>;

/// The programs, and how they are tied.
pub(super) struct MappingPrograms {
    way: MappingWay,
    programs: Programs,
    /// Runs that the kernel had missed when they began to count.
    missed_before: u64,
}

/// The program at the raw tracepoint where the kernel chooses an address, and the structure that it reads there: one of its members, and
/// where that is to lie, bytes.
const PLACED: &str = "mapping_placed";
const AREA: &str = "vm_unmapped_area_info";
const LENGTH: (&str, u32) = ("length", 8);

impl MappingPrograms {
    /// Loads the programs and ties them: whether the kernel ties some to its functions is not known before. With `steps`, for all calls, else
    /// for what maps code. With `only_places`, as if it did not.
    ///
    /// # Errors
    /// The kernel refused what each kernel has.
    pub(super) fn load(
        object: &LoadedObject,
        steps: bool,
        only_places: bool,
    ) -> Result<(Self, Link), KernelError> {
        let tied = if only_places {
            Err("perf events were asked for".to_owned())
        } else {
            tie_to_functions(object, steps)
        };
        let (way, mut programs, mut link) = match tied {
            Ok((programs, link)) => (MappingWay::Functions, programs, link),
            Err(why) => (MappingWay::Places { why }, Vec::new(), Link::default()),
        };
        if steps || way != MappingWay::Functions {
            let (program, tied) = tie_to_places(object)?;
            link.links.push(tied);
            programs.push((PLACED, program));
        }
        let loaded = Self {
            way,
            programs,
            missed_before: 0,
        };
        Ok((loaded, link))
    }

    /// Whether the address that the kernel chooses is all that is seen.
    pub(super) fn sees_places_only(&self) -> bool {
        self.way != MappingWay::Functions
    }

    /// Name and descriptor of each program.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.programs.iter().map(|(name, fd)| (*name, fd.as_fd()))
    }

    /// How often the kernel skipped one of the programs. It does where one was interrupted, and another thread comes by the same on the same
    /// processor.
    fn missed(&self) -> u64 {
        self.programs()
            .filter_map(|(_, program)| sys::missed_runs(program).ok())
            .fold(0, u64::saturating_add)
            .saturating_sub(self.missed_before)
    }
}

/// Loads the program for the raw tracepoint and ties it.
fn tie_to_places(object: &LoadedObject) -> Result<(OwnedFd, OwnedFd), KernelError> {
    let (member, expected) = LENGTH;
    // A kernel that does not say lays it out as all do whose sources are known.
    if let Ok(Some(found)) = btf::member_offset(AREA, member)
        && found != expected
    {
        return Err(KernelError::call(
            format!("cannot see mappings: in this kernel {AREA}.{member} lies at {found}"),
            std::io::ErrorKind::Unsupported.into(),
        ));
    }
    let kind = bpf_prog_type::BPF_PROG_TYPE_RAW_TRACEPOINT;
    let program = object.program(PLACED, kind, 0)?;
    let link =
        sys::open_raw_tracepoint(program.as_fd(), c"vm_unmapped_area").map_err(|source| {
            KernelError::Attach {
                what: "the tracepoint vm_unmapped_area".to_owned(),
                source,
            }
        })?;
    Ok((program, link))
}

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
                    // The rest of the verifier's log is not for people.
                    KernelError::Program { source, log, .. } => {
                        let reason = verifiers_reason(&log)
                            .map_or_else(String::new, |reason| format!(" ({reason})"));
                        format!("the kernel refuses programs for its functions: {source}{reason}")
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
