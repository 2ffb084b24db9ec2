//! Who is handed a block by Go's runtime: by probes on the instructions at which its functions return, for as long as a link is held. Knows
//! neither Go nor which functions.

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya_obj::generated::bpf_prog_type;

use super::{
    attach::{kernel_path, pause_before_detach, read_pages, unmapped_file, uprobe_pmu},
    error::KernelError,
    link::{Link, LinkMode},
    link_keeper::{Kind, LinkKeeper, Wanted},
    probe::Probe,
    sys,
};

/// The program's name.
const PROGRAM: &str = "go_block";

/// Has blocks told of as [`super::ProbeEvent::GoBlock`].
#[derive(Clone, Debug)]
pub struct BlockWatcher {
    program: Arc<OwnedFd>,
    keeper: Arc<LinkKeeper>,
    mode: LinkMode,
    /// See [`BlockWatcher::ready_to_detach`].
    unmapped: Option<Arc<OwnedFd>>,
}

impl BlockWatcher {
    /// Attaches to instructions of a file, by their places in it, in one process: until the link is dropped, or the deadline,
    /// CLOCK_MONOTONIC nanoseconds. `marks`: what the records carry.
    ///
    /// # Errors
    /// The kernel refused; the error names the file, which is called `name`.
    pub fn watch(
        &self,
        file: &Path,
        name: &Path,
        pid: u32,
        (offsets, marks): (&[u64], u32),
        deadline_ns: u64,
    ) -> Result<Link, KernelError> {
        let failed = |source| KernelError::Attach {
            what: format!("{} ({} probes)", name.display(), offsets.len()),
            source,
        };
        let path = kernel_path(file)?;
        read_pages(&path, offsets.iter().copied());
        let probes: Vec<(u64, u64)> = offsets.iter().map(|at| (*at, u64::from(marks))).collect();
        let (kind, at_once) = match self.mode {
            LinkMode::Session | LinkMode::Multi => (
                Kind::Multi {
                    attach_type: sys::BPF_TRACE_UPROBE_MULTI,
                    flags: 0,
                    has_cookies: true,
                },
                probes.len(),
            ),
            LinkMode::Perf => (
                Kind::Perf {
                    pmu: uprobe_pmu().map_err(failed)?,
                    returns: false,
                },
                1,
            ),
        };
        let mut link = Link::default();
        for probes in probes.chunks(at_once.max(1)) {
            let wanted = Wanted {
                program: self.program.as_fd(),
                path: &path,
                pid: Some(pid),
                kind,
                probes,
            };
            let kept = self
                .keeper
                .make(&wanted, Some(deadline_ns))
                .map_err(failed)?;
            link.kept.push(kept);
        }
        Ok(link)
    }

    /// Waits, so that links that are closed within the next milliseconds take their breakpoints away at once. The link that was made for it is
    /// to be closed after the others.
    #[must_use]
    pub fn ready_to_detach(&self) -> Option<Link> {
        if self.mode == LinkMode::Perf {
            return None;
        }
        pause_before_detach(self.program.as_fd(), self.unmapped.as_ref()?)
    }
}

impl Probe {
    /// The program, if it is loaded.
    pub(super) fn block_program(&self) -> Option<(&'static str, BorrowedFd<'_>)> {
        let watcher = self.block_watcher.as_ref()?.as_ref().ok()?;
        Some((PROGRAM, watcher.program.as_fd()))
    }

    /// What tells of blocks. The program is loaded when it is first asked for.
    ///
    /// # Errors
    /// The kernel refused the program; a sentence for people.
    pub fn block_watcher(&mut self) -> Result<BlockWatcher, String> {
        if let Some(known) = &self.block_watcher {
            return known.clone();
        }
        let mode = self.link_mode();
        let attach_type = match mode {
            LinkMode::Session | LinkMode::Multi => sys::BPF_TRACE_UPROBE_MULTI,
            LinkMode::Perf => 0,
        };
        let kind = bpf_prog_type::BPF_PROG_TYPE_KPROBE;
        let loaded = self
            .object
            .program(PROGRAM, kind, attach_type)
            .map(|program| BlockWatcher {
                program: Arc::new(program),
                keeper: Arc::clone(&self.keeper),
                mode,
                unmapped: unmapped_file().map(Arc::new),
            })
            .map_err(|error| error.to_string());
        self.block_watcher = Some(loaded.clone());
        loaded
    }
}
