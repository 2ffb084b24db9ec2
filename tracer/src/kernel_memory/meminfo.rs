//! What the kernel holds for itself by `/proc/meminfo` (proc_meminfo(5)).

use super::{lines, number};

/// A class of the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClassKind {
    /// Slab caches whose memory the kernel does not take back.
    UnreclaimableSlabs,
    /// Slab caches whose memory it does.
    ReclaimableSlabs,
    /// Stacks of threads in the kernel.
    KernelStacks,
    /// Page tables.
    PageTables,
    /// Memory that vmalloc maps, in which stacks are, too.
    Vmalloc,
    /// A copy for each processor.
    Percpu,
    /// tmpfs, memfd, System V and shared anonymous memory.
    SharedMemory,
    /// Pages that no counter tells of: buffers of pipes and sockets, of drivers, and what the kernel allocates by the page.
    OtherPages,
}

impl ClassKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::UnreclaimableSlabs,
        Self::ReclaimableSlabs,
        Self::KernelStacks,
        Self::PageTables,
        Self::Vmalloc,
        Self::Percpu,
        Self::SharedMemory,
        Self::OtherPages,
    ];

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnreclaimableSlabs => "unreclaimable slabs",
            Self::ReclaimableSlabs => "reclaimable slabs",
            Self::KernelStacks => "kernel stacks",
            Self::PageTables => "page tables",
            Self::Vmalloc => "vmalloc",
            Self::Percpu => "percpu",
            Self::SharedMemory => "shared memory and tmpfs",
            Self::OtherPages => "other pages",
        }
    }
}

/// A class and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryClass {
    /// Which.
    pub kind: ClassKind,
    /// Bytes.
    pub bytes: u64,
}

/// What is in the memory of a machine that is not the kernel's own, or is counted in a class. What is left of all memory is
/// [`ClassKind::OtherPages`].
const TOLD: [&str; 11] = [
    "MemFree",
    "Buffers",
    "Cached",
    "SwapCached",
    "AnonPages",
    "Slab",
    "KernelStack",
    "PageTables",
    "SecPageTables",
    "Percpu",
    "Hugetlb",
];

/// Reads the classes; those of which the kernel does not tell are left out.
#[must_use]
pub(super) fn parse_meminfo(text: &[u8]) -> Vec<MemoryClass> {
    let bytes_of = |key: &str| {
        lines(text).find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(':')?;
            let kib = value.trim().strip_suffix("kB")?;
            number(kib.as_bytes())?.checked_mul(1024)
        })
    };
    ClassKind::ALL
        .into_iter()
        .filter_map(|kind| {
            let bytes = match kind {
                ClassKind::UnreclaimableSlabs => bytes_of("SUnreclaim"),
                ClassKind::ReclaimableSlabs => bytes_of("SReclaimable"),
                ClassKind::KernelStacks => bytes_of("KernelStack"),
                ClassKind::PageTables => bytes_of("PageTables"),
                ClassKind::Vmalloc => bytes_of("VmallocUsed"),
                ClassKind::Percpu => bytes_of("Percpu"),
                ClassKind::SharedMemory => bytes_of("Shmem"),
                ClassKind::OtherPages => bytes_of("MemTotal").map(|total| {
                    TOLD.iter()
                        .filter_map(|key| bytes_of(key))
                        .fold(total, u64::saturating_sub)
                }),
            }?;
            Some(MemoryClass { kind, bytes })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{ClassKind, MemoryClass, parse_meminfo};
    use proptest::prelude::*;

    #[test]
    fn classes_are_read_and_the_rest_is_what_is_left() {
        let text = b"MemTotal:     1000 kB\nMemFree:       100 kB\nCached:        200 kB\nAnonPages:     300 kB\n\
            Slab:          150 kB\nSReclaimable:  100 kB\nSUnreclaim:     50 kB\nKernelStack:    10 kB\nPageTables:     20 kB\n";
        let class = |kind, kib: u64| MemoryClass {
            kind,
            bytes: kib * 1024,
        };
        assert_eq!(
            parse_meminfo(text),
            [
                class(ClassKind::UnreclaimableSlabs, 50),
                class(ClassKind::ReclaimableSlabs, 100),
                class(ClassKind::KernelStacks, 10),
                class(ClassKind::PageTables, 20),
                class(ClassKind::OtherPages, 220),
            ]
        );
        assert_eq!(parse_meminfo(b"SUnreclaim: 99999999999999999999 kB\n"), []);
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_meminfo(&text);
        }
    }
}
