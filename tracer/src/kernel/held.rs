//! Memory that a process's open files hold and no mapping shows, as a program of the probe tells while the kernel walks over the files.
//! Opens none of them and waits for nobody. Knows nothing of what it means.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use leakscope_common::{HELD_BY_PIPE, HELD_BY_SOCKET, HeldOffsets, HeldRecord};

use super::{
    btf,
    error::KernelError,
    load::LoadedObject,
    maps::shared,
    probe::Probe,
    shared::SharedArray,
    sys::{self, BPF_TRACE_ITER},
};

/// The program, and the function of the kernel that stands for its walk (kernel/bpf/task_iter.c).
const PROGRAM: &str = "held_by_file";
const WALK: &str = "bpf_iter_task_file";

/// Of a process so many bytes of records are read: what 174,762 files that hold something hold.
const MOST_BYTES: u64 = 4 << 20;

/// What is read of the kernel's structures, in the order of [`HeldOffsets`].
const MEMBERS: [(&str, &str); 8] = [
    ("file", "f_inode"),
    ("file", "private_data"),
    ("inode", "i_mode"),
    ("pipe_inode_info", "max_usage"),
    ("socket", "sk"),
    ("sock", "sk_backlog"),
    ("sock", "sk_wmem_alloc"),
    ("sock", "sk_wmem_queued"),
];

/// What a process's open files hold, bytes. A pipe or a socket that it has open several times counts once; one that several processes have
/// open counts for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldByFiles {
    /// Pages of pipes.
    pub pipes: u64,
    /// What waits in sockets, with what the kernel needs for it.
    pub sockets: u64,
}

/// The loaded program.
pub(super) struct FileWalk {
    program: OwnedFd,
    /// Mapped as long as the program runs.
    _offsets: SharedArray<HeldOffsets>,
}

impl FileWalk {
    fn load(object: &LoadedObject) -> Result<Self, KernelError> {
        const WHAT: &str = "cannot see what pipes and sockets hold";
        let missing = |what: String| {
            let text = format!("{WHAT}: the kernel's BTF has no {what}");
            KernelError::call(text, io::ErrorKind::Unsupported.into())
        };
        let failed = |source| KernelError::call(WHAT, source);
        let found = btf::member_offsets(&MEMBERS).map_err(failed)?;
        let mut offsets = [0_u32; MEMBERS.len()];
        for ((to, from), (structure, member)) in offsets.iter_mut().zip(found).zip(MEMBERS) {
            *to = from.ok_or_else(|| missing(format!("{structure}.{member}")))?;
        }
        let [
            file_inode,
            file_private,
            inode_mode,
            pipe_usage,
            socket_sock,
            sock_received,
            sock_sent,
            sock_queued,
        ] = offsets;
        let walks = btf::function_numbers(&[WALK.to_owned()]).map_err(failed)?;
        let walk = walks.into_iter().next().flatten();
        let walk = walk.ok_or_else(|| missing(format!("function {WALK}")))?;
        let mapped = shared(object, "HELD_OFFSETS", 1)?;
        mapped.write(
            0,
            HeldOffsets {
                file_inode,
                file_private,
                inode_mode,
                pipe_usage,
                socket_sock,
                sock_received,
                sock_sent,
                sock_queued,
            },
        );
        Ok(Self {
            program: object.tracing_program(PROGRAM, BPF_TRACE_ITER, walk)?,
            _offsets: mapped,
        })
    }

    /// Name and descriptor of the program.
    pub(super) fn program(&self) -> (&'static str, BorrowedFd<'_>) {
        (PROGRAM, self.program.as_fd())
    }

    fn read(&self, pid: u32) -> io::Result<HeldByFiles> {
        let walk = sys::walk_over_files(self.program.as_fd(), pid)?;
        let mut bytes = Vec::new();
        File::from(walk).take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(sum(&bytes))
    }
}

/// Adds up the records of a process.
fn sum(bytes: &[u8]) -> HeldByFiles {
    let mut seen = HashSet::new();
    let mut held = HeldByFiles::default();
    for record in bytes.chunks_exact(size_of::<HeldRecord>()) {
        let word = |at: usize| {
            let word = record.get(at..at.checked_add(8)?)?;
            Some(u64::from_le_bytes(word.try_into().ok()?))
        };
        let Some(((object, bytes), kind)) = word(0).zip(word(8)).zip(word(16)) else {
            continue;
        };
        if !seen.insert(object) {
            continue;
        }
        // The descriptor stands in the upper half.
        let sum = match u32::try_from(kind & u64::from(u32::MAX)) {
            Ok(HELD_BY_PIPE) => &mut held.pipes,
            Ok(HELD_BY_SOCKET) => &mut held.sockets,
            _ => continue,
        };
        *sum = sum.saturating_add(bytes);
    }
    held
}

impl Probe {
    /// What a process's open files hold; `None` of a process that is gone, and where the kernel does not let it be seen: see
    /// [`Probe::held_unseen`]. The program is loaded the first time.
    pub fn held_by_files(&mut self, pid: u32) -> Option<HeldByFiles> {
        let object = &self.object;
        let loaded = self
            .file_walk
            .get_or_insert_with(|| FileWalk::load(object).map_err(|error| error.to_string()));
        loaded.as_ref().ok()?.read(pid).ok()
    }

    /// Why it is not seen what open files hold.
    #[must_use]
    pub fn held_unseen(&self) -> Option<&str> {
        self.file_walk.as_ref()?.as_ref().err().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::{HeldByFiles, sum};
    use proptest::prelude::*;

    fn record(object: u64, bytes: u64, kind: u32, descriptor: u32) -> Vec<u8> {
        let last = u64::from(kind) | u64::from(descriptor) << 32;
        [object, bytes, last]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect()
    }

    #[test]
    fn both_ends_of_a_pipe_counted_its_pages_twice() {
        let records = [
            record(8, 65_536, 1, 3),
            record(8, 65_536, 1, 4),
            record(16, 2048, 2, 5),
            record(24, 7, 9, 6),
        ];
        let expected = HeldByFiles {
            pipes: 65_536,
            sockets: 2048,
        };
        assert_eq!(sum(&records.concat()), expected);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_read_to_its_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = sum(&bytes);
        }
    }
}
