//! Links: how the programs are tied to functions. One interface over three kinds, the best of which is found by probing.
//!
//! Links that put breakpoints into processes are kept by a process of its own (see `link_keeper`); the others by descriptors of ours.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::FileExt as _},
    },
    path::Path,
    sync::Arc,
};

use aya_obj::generated::bpf_prog_type;

use super::{
    error::KernelError,
    link::{Attachment, Link, LinkMode},
    link_keeper::{Kind, LinkKeeper, Wanted},
    load::LoadedObject,
    sys,
};

/// The programs of one mode.
pub(crate) struct HeapPrograms {
    mode: LinkMode,
    keeper: Arc<LinkKeeper>,
    /// Entry, or both in a session.
    enter: OwnedFd,
    /// Return; none in a session.
    leave: Option<OwnedFd>,
    release: OwnedFd,
    /// Entry of `_exit`, where that is to be seen.
    ends: Option<OwnedFd>,
    /// A file of ours that nobody maps: see [`HeapPrograms::ready_to_detach`].
    unmapped: Option<OwnedFd>,
}

/// Bytes of that file: a page, though nobody reads it.
const UNMAPPED_BYTES: u64 = 4096;

const KPROBE: bpf_prog_type = bpf_prog_type::BPF_PROG_TYPE_KPROBE;

impl HeapPrograms {
    /// Loads the programs of a mode; with `empty`, the program that does nothing in the place of each; with `ends`, also the one
    /// for the ends of processes.
    ///
    /// # Errors
    /// The kernel refused one.
    pub(crate) fn load(
        object: &LoadedObject,
        keeper: &Arc<LinkKeeper>,
        mode: LinkMode,
        empty: bool,
        ends: bool,
    ) -> Result<Self, KernelError> {
        // It returns 0, which in a session asks for the return trap: every trap of the real programs is taken.
        let program = |name, attach_type| {
            let name = if empty { "nothing" } else { name };
            object.program(name, KPROBE, attach_type)
        };
        let (enter, leave, entry_type) = match mode {
            LinkMode::Session => (
                program("allocate_session", sys::BPF_TRACE_UPROBE_SESSION)?,
                None,
                sys::BPF_TRACE_UPROBE_MULTI,
            ),
            LinkMode::Multi => (
                program("allocate_enter", sys::BPF_TRACE_UPROBE_MULTI)?,
                Some(program("allocate_return", sys::BPF_TRACE_UPROBE_MULTI)?),
                sys::BPF_TRACE_UPROBE_MULTI,
            ),
            LinkMode::Perf => (
                program("allocate_enter", 0)?,
                Some(program("allocate_return", 0)?),
                0,
            ),
        };
        let release = program("release", entry_type)?;
        let ends = ends
            .then(|| program("process_ends", entry_type))
            .transpose()?;
        Ok(Self {
            mode,
            keeper: Arc::clone(keeper),
            enter,
            leave,
            release,
            ends,
            // Without it links are closed all the same.
            unmapped: unmapped_file(),
        })
    }

    /// Waits, so that the links that are closed within the next milliseconds take their breakpoints away at once.
    ///
    /// Before it touches the first breakpoint the kernel keeps processes from being forked (kernel/events/uprobes.c, `register_for_each_vma`:
    /// `percpu_down_write(&dup_mmap_sem)`), and waits for a grace period of RCU for that, some 5 ms, in which the target is trapped still; but not
    /// where this was so a moment ago (kernel/rcu/sync.c, `GP_EXIT`). A probe in a file that nobody maps waits in its place.
    ///
    /// The link that was made for it is to be closed after the others.
    pub(crate) fn ready_to_detach(&self) -> Option<Link> {
        if self.mode == LinkMode::Perf {
            // These wait for more than that, each by itself.
            return None;
        }
        pause_before_detach(self.release.as_fd(), self.unmapped.as_ref()?)
    }

    /// The mode.
    pub(crate) fn mode(&self) -> LinkMode {
        self.mode
    }

    /// Name and descriptor of each program.
    pub(crate) fn programs(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        let enter = match self.mode {
            LinkMode::Session => "allocate_session",
            LinkMode::Multi | LinkMode::Perf => "allocate_enter",
        };
        let mut programs = vec![
            (enter, self.enter.as_fd()),
            ("release", self.release.as_fd()),
        ];
        if let Some(leave) = &self.leave {
            programs.push(("allocate_return", leave.as_fd()));
        }
        if let Some(ends) = &self.ends {
            programs.push(("process_ends", ends.as_fd()));
        }
        programs
    }

    /// Attaches to `_exit` at an offset of a file, for one process.
    ///
    /// # Errors
    /// The kernel refused; the error names the file, which is called `name`.
    pub(crate) fn attach_end(
        &self,
        path: &CStr,
        name: &Path,
        pid: u32,
        offset: u64,
    ) -> Result<Link, KernelError> {
        let attach = || -> io::Result<Link> {
            let mut link = Link::default();
            if let Some(program) = &self.ends {
                let kind = if self.mode == LinkMode::Perf {
                    Kind::Perf {
                        pmu: uprobe_pmu()?,
                        returns: false,
                    }
                } else {
                    Kind::Multi {
                        attach_type: sys::BPF_TRACE_UPROBE_MULTI,
                        flags: 0,
                        has_cookies: false,
                    }
                };
                let wanted = Wanted {
                    program: program.as_fd(),
                    path,
                    pid: Some(pid),
                    kind,
                    probes: &[(offset, 0)],
                };
                link.kept.push(self.keeper.make(&wanted, None)?);
            }
            Ok(link)
        };
        attach().map_err(|source| KernelError::Attach {
            what: format!("_exit in {}", name.display()),
            source,
        })
    }

    /// Attaches probes in a file: to one process, or to all that map it. The path may be a `/proc/PID/fd` or `map_files`
    /// link, and stands as `name` in messages. Either all are attached or none. They are taken away at the deadline (see
    /// [`Link::set_deadline`]).
    ///
    /// # Errors
    /// The kernel refused a link; the error names the file.
    pub(crate) fn attach(
        &self,
        path: &CStr,
        name: &Path,
        pid: Option<u32>,
        probes: &[Attachment],
        deadline_ns: Option<u64>,
    ) -> Result<Link, KernelError> {
        let failed = |source: io::Error| KernelError::Attach {
            what: format!(
                "{} ({} probes, {})",
                name.display(),
                probes.len(),
                self.mode.name()
            ),
            source,
        };
        read_pages(path, probes.iter().map(|probe| probe.offset));
        let (both, entry_only): (Vec<Attachment>, Vec<Attachment>) =
            probes.iter().partition(|probe| probe.wants_return);
        let mut link = Link::default();
        let mut make = |program: &OwnedFd, kind: Kind, probes: &[Attachment]| -> io::Result<()> {
            let probes: Vec<(u64, u64)> = probes
                .iter()
                .map(|probe| (probe.offset, probe.cookie.to_bits()))
                .collect();
            let wanted = Wanted {
                program: program.as_fd(),
                path,
                pid,
                kind,
                probes: &probes,
            };
            link.kept.push(self.keeper.make(&wanted, deadline_ns)?);
            Ok(())
        };
        if self.mode == LinkMode::Perf {
            let pmu = uprobe_pmu().map_err(failed)?;
            let mut add = |program: &OwnedFd, probe: &Attachment, returns: bool| {
                make(
                    program,
                    Kind::Perf { pmu, returns },
                    std::slice::from_ref(probe),
                )
            };
            // Returns first: a call that enters in between is missed whole instead of half seen.
            for probe in &both {
                if let Some(leave) = &self.leave {
                    add(leave, probe, true).map_err(failed)?;
                }
            }
            for probe in &entry_only {
                add(&self.release, probe, false).map_err(failed)?;
            }
            for probe in &both {
                add(&self.enter, probe, false).map_err(failed)?;
            }
            return Ok(link);
        }
        let mut add = |program: &OwnedFd, attach_type: u32, probes: &[Attachment], flags: u32| {
            if probes.is_empty() {
                return Ok(());
            }
            let kind = Kind::Multi {
                attach_type,
                flags,
                has_cookies: true,
            };
            make(program, kind, probes)
        };
        // Frees first: a block that is allocated as soon as its probe is there must not be freed unseen.
        add(&self.release, sys::BPF_TRACE_UPROBE_MULTI, &entry_only, 0).map_err(failed)?;
        match &self.leave {
            None => add(&self.enter, sys::BPF_TRACE_UPROBE_SESSION, &both, 0).map_err(failed)?,
            Some(leave) => {
                add(
                    leave,
                    sys::BPF_TRACE_UPROBE_MULTI,
                    &both,
                    sys::BPF_F_UPROBE_MULTI_RETURN,
                )
                .map_err(failed)?;
                add(&self.enter, sys::BPF_TRACE_UPROBE_MULTI, &both, 0).map_err(failed)?;
            }
        }
        Ok(link)
    }
}

/// A file of ours that nobody maps.
pub(super) fn unmapped_file() -> Option<OwnedFd> {
    sys::memory_file(c"leakscope", UNMAPPED_BYTES).ok()
}

/// See [`HeapPrograms::ready_to_detach`]: waits by a probe in that file, with a program of multi links.
pub(super) fn pause_before_detach(program: BorrowedFd<'_>, unmapped: &OwnedFd) -> Option<Link> {
    let path = CString::new(format!("/proc/self/fd/{}", unmapped.as_raw_fd())).ok()?;
    let link = sys::link_uprobe_multi(
        program,
        sys::BPF_TRACE_UPROBE_MULTI,
        &path,
        &[0],
        &[],
        std::process::id(),
        0,
    )
    .ok()?;
    Some(Link {
        links: vec![link],
        ..Link::default()
    })
}

/// Reads a byte of each probe's page, so that it is in the page cache: where it is not, attaching reads it while the file's mappings
/// are locked, of which ext4 warns (`ext4_check_map_extents_env`), and a machine with `panic_on_warn` ends. What cannot be read the
/// kernel refuses itself, with its reason.
pub(super) fn read_pages(path: &CStr, offsets: impl Iterator<Item = u64>) {
    if let Ok(file) = File::open(OsStr::from_bytes(path.to_bytes())) {
        for offset in offsets {
            let _ = file.read_at(&mut [0], offset);
        }
    }
}

/// The number of the uprobe PMU.
pub(crate) fn uprobe_pmu() -> io::Result<u32> {
    const PATH: &str = "/sys/bus/event_source/devices/uprobe/type";
    std::fs::read_to_string(PATH)?
        .trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{PATH} does not hold a number")))
}

/// A program that returns 0, loaded with an attach type: the question to the kernel.
fn trivial_program(attach_type: u32) -> io::Result<OwnedFd> {
    let mut set = aya_obj::generated::bpf_insn {
        code: 0xb7,
        _bitfield_align_1: [],
        _bitfield_1: aya_obj::generated::bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm: 0,
    };
    let mut exit = set;
    set.code = 0xb7;
    exit.code = 0x95;
    sys::load_program(
        &sys::ProgramLoad {
            name: "leakscope_ask",
            program_type: KPROBE as u32,
            expected_attach_type: attach_type,
            attach_btf_id: 0,
            instructions: &[set, exit],
            license: c"GPL",
            btf: None,
            func_info: &[],
            func_info_size: 0,
            line_info: &[],
            line_info_size: 0,
        },
        &mut [],
    )
}

/// Whether multi links of an attach type work, with a process filter that counts all threads.
///
/// The link is asked for on a directory, which is never a valid target: a kernel that knows such links says EBADF. With
/// an impossible process id, a kernel that filters by process (a fix of Linux 6.10, also in later 6.6 and 6.9 releases) refuses it earlier with
/// EINVAL; one that filters by thread would lose the calls of every other thread.
fn supports(attach_type: u32) -> bool {
    let Ok(program) = trivial_program(attach_type) else {
        return false;
    };
    let ask = |pid: u32| {
        sys::link_uprobe_multi(program.as_fd(), attach_type, c"/", &[0], &[], pid, 0)
            .err()
            .and_then(|error| error.raw_os_error())
    };
    ask(0) == Some(libc::EBADF) && ask(u32::MAX) == Some(libc::EINVAL)
}

/// The best kind of link that this kernel has, found by asking for each.
pub(crate) fn best_link_mode() -> LinkMode {
    if supports(sys::BPF_TRACE_UPROBE_SESSION) && supports(sys::BPF_TRACE_UPROBE_MULTI) {
        LinkMode::Session
    } else if supports(sys::BPF_TRACE_UPROBE_MULTI) {
        LinkMode::Multi
    } else {
        LinkMode::Perf
    }
}

/// A path as the kernel wants it.
pub(crate) fn kernel_path(path: &Path) -> Result<CString, KernelError> {
    use std::os::unix::ffi::OsStrExt as _;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| KernelError::Attach {
        what: path.display().to_string(),
        source: io::Error::from_raw_os_error(libc::EINVAL),
    })
}
