//! What is attached: a link for each file and process, or, where the whole machine is traced, one for each file and all
//! processes. A process that is followed uses some of them, and knows their functions by hit slots.

use std::{
    collections::{HashMap, HashSet},
    thread::JoinHandle,
};

use leakscope_common::UNKNOWN_FREE_SLOT;

use super::{process::ProbeSite, window::exact_deadline};
use crate::{
    kernel::{Attachment, KernelError, Link, Probe, close_links},
    process::{
        allocator::AllocatorKind,
        discover::{FoundAllocator, MappedFile},
        procfs::Device,
    },
};

/// A file's device (major, minor) and inode.
pub(super) type FileId = (u32, u32, u64);

/// Where the hit slots of allocators other than the C library's begin: some have more functions than there are slots, and the C library's
/// are not to share with them. Under links for all processes slots belong to files, and a process usually uses the C library and one other.
const OTHERS_SLOT: usize = 12;

/// Where the hit slots of an allocator begin in a process that has these functions already.
pub(super) fn first_slot(kind: AllocatorKind, sites: &[ProbeSite]) -> usize {
    match kind {
        AllocatorKind::Glibc | AllocatorKind::Musl => 0,
        _ => {
            let is_others = |site: &&ProbeSite| usize::from(site.hit_slot) >= OTHERS_SLOT;
            OTHERS_SLOT + sites.iter().filter(is_others).count()
        }
    }
}

/// The last slot that a function can have; further ones share it.
const LAST_SLOT: usize = UNKNOWN_FREE_SLOT - 1;

/// The probes of a file that a process maps, to be attached whenever a window is open.
pub(super) struct Planned {
    file: MappedFile,
    id: FileId,
    attachments: Vec<Attachment>,
    sites: Vec<ProbeSite>,
}

impl Planned {
    /// With hit slots from `first` on.
    pub(super) fn new(found: &FoundAllocator, first: usize) -> Self {
        let (attachments, sites) = plan(found, first);
        Self {
            file: found.file.clone(),
            id: file_id(&found.file.device, found.file.inode),
            attachments,
            sites,
        }
    }

    /// The file.
    pub(super) fn file(&self) -> FileId {
        self.id
    }

    /// The functions.
    pub(super) fn sites(&self) -> &[ProbeSite] {
        &self.sites
    }

    /// Attaches to one process, until the deadline (see [`Link::set_deadline`]); `None` where there is nothing to attach.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn attach(
        &self,
        probe: &Probe,
        pid: u32,
        deadline_ns: Option<u64>,
    ) -> Result<Option<Link>, KernelError> {
        if self.attachments.is_empty() {
            return Ok(None);
        }
        attach_file(probe, &self.file, Some(pid), &self.attachments, deadline_ns).map(Some)
    }

    /// As [`Planned::attach`], for children that work in the process's memory.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn attach_for_children(
        &self,
        probe: &mut Probe,
        pid: u32,
        deadline_ns: Option<u64>,
    ) -> Result<Option<Link>, KernelError> {
        let path = self.file.attach_path();
        let (name, probes) = (&self.file.path, &self.attachments);
        probe.attach_for_children(&path, name, pid, probes, deadline_ns)
    }
}

/// A link for all processes.
struct Shared {
    link: Link,
    sites: Vec<ProbeSite>,
    users: HashSet<u32>,
}

/// The links for all processes, and those that are being closed.
#[derive(Default)]
pub(super) struct Links {
    /// Whether links are for all processes.
    machine: bool,
    shared: HashMap<FileId, Shared>,
    retired: Vec<Link>,
    closing: Option<JoinHandle<()>>,
}

impl Links {
    /// From now on links are for all processes, or for one each.
    pub(super) fn set_machine(&mut self, machine: bool) {
        self.machine = machine;
    }

    /// Whether links are for all processes.
    pub(super) fn is_machine(&self) -> bool {
        self.machine
    }

    /// Attaches to an allocator that a process maps. Gives the functions, and the link if it is the process's own.
    ///
    /// # Errors
    /// The kernel refused.
    pub(super) fn attach(
        &mut self,
        probe: &Probe,
        found: &FoundAllocator,
        pid: u32,
        first: usize,
    ) -> Result<(Vec<ProbeSite>, Option<Link>), KernelError> {
        if !self.machine {
            let (attachments, sites) = plan(found, first);
            if attachments.is_empty() {
                return Ok((sites, None));
            }
            let until_ns = Some(exact_deadline());
            let link = attach_file(probe, &found.file, Some(pid), &attachments, until_ns)?;
            return Ok((sites, Some(link)));
        }
        let file = file_id(&found.file.device, found.file.inode);
        if let Some(shared) = self.shared.get_mut(&file) {
            shared.users.insert(pid);
            return Ok((shared.sites.clone(), None));
        }
        let (attachments, sites) = plan(found, first_slot(found.kind, &[]));
        if !attachments.is_empty() {
            let until_ns = Some(exact_deadline());
            let link = attach_file(probe, &found.file, None, &attachments, until_ns)?;
            self.shared.insert(
                file,
                Shared {
                    link,
                    sites: sites.clone(),
                    users: HashSet::from([pid]),
                },
            );
        }
        Ok((sites, None))
    }

    /// Links for all processes stay until a time, CLOCK_MONOTONIC nanoseconds. Gives the users of those that were taken away, for we had not
    /// come back.
    pub(super) fn put_off_deadline(&self, at_ns: u64) -> Vec<u32> {
        let mut overdue = Vec::new();
        for shared in self.shared.values() {
            if shared.link.is_overdue() {
                overdue.extend(&shared.users);
            } else {
                shared.link.set_deadline(Some(at_ns));
            }
        }
        overdue
    }

    /// A process uses no link any more: those that nobody else uses are closed, beside what goes on.
    pub(super) fn release(&mut self, pid: u32, own: impl IntoIterator<Item = Link>) {
        self.retired.extend(own);
        for shared in self.shared.values_mut() {
            shared.users.remove(&pid);
        }
        let unused: Vec<FileId> = self
            .shared
            .iter()
            .filter(|(_, shared)| shared.users.is_empty())
            .map(|(file, _)| *file)
            .collect();
        for file in unused {
            if let Some(shared) = self.shared.remove(&file) {
                self.retired.push(shared.link);
            }
        }
        self.close_retired();
    }

    /// Begins to close what was given up, if the last time is over.
    pub(super) fn close_retired(&mut self) {
        if self.retired.is_empty()
            || self
                .closing
                .as_ref()
                .is_some_and(|closing| !closing.is_finished())
        {
            return;
        }
        let retired = std::mem::take(&mut self.retired);
        // Where no thread can be made, the closure is dropped, and the links with it.
        self.closing = std::thread::Builder::new()
            .name("detach".to_owned())
            .spawn(move || close_links(retired))
            .ok();
    }

    /// Closes everything, with what processes have of their own; returns when the kernel has forgotten it.
    pub(super) fn close_all(&mut self, own: impl IntoIterator<Item = Link>) {
        let mut links = std::mem::take(&mut self.retired);
        links.extend(own);
        links.extend(self.shared.drain().map(|(_, shared)| shared.link));
        close_links(links);
        if let Some(closing) = self.closing.take() {
            // It panics nowhere; and if it did, its links are closed.
            let _ = closing.join();
        }
    }
}

/// What a file is known by.
pub(super) fn file_id(device: &Device, inode: u64) -> FileId {
    (device.major, device.minor, inode)
}

/// Attaches in a file that a process maps; messages call it as that process does.
fn attach_file(
    probe: &Probe,
    file: &MappedFile,
    pid: Option<u32>,
    attachments: &[Attachment],
    deadline_ns: Option<u64>,
) -> Result<Link, KernelError> {
    let path = file.attach_path();
    probe.attach(&path, &file.path, pid, attachments, deadline_ns)
}

/// The probes of an allocator, with hit slots from `first` on.
fn plan(found: &FoundAllocator, first: usize) -> (Vec<Attachment>, Vec<ProbeSite>) {
    let label = format!("{} {}", found.kind, found.file.path.display());
    found
        .functions
        .iter()
        .enumerate()
        .map(|(index, function)| {
            let hit_slot = u8::try_from((first + index).min(LAST_SLOT)).unwrap_or(0);
            let attachment = Attachment {
                offset: function.probe_offset(),
                cookie: leakscope_common::ProbeCookie {
                    hit_slot,
                    ..function.cookie
                },
                wants_return: function.wants_return(),
            };
            let site = ProbeSite {
                name: function.name.clone(),
                module: found.file.path.clone(),
                allocator: label.clone(),
                offset: function.probe_offset(),
                hit_slot,
                allocates: function.wants_return(),
            };
            (attachment, site)
        })
        .unzip()
}
