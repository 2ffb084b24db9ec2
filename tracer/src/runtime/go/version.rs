//! Which Go built a program, by `.go.buildinfo` (debug/buildinfo), and how its runtime lays out what is read of it. Only versions whose
//! sources were read are known; others are refused.

use serde::{Deserialize, Serialize};

use super::bytes::varint;

/// `buildInfoMagic` (debug/buildinfo).
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Where the flags lie, and the one that says that the strings follow in the header itself, since Go 1.18.
const FLAGS: usize = 15;
const INLINE_STRINGS: u8 = 2;
/// Bytes of the header.
const HEADER: usize = 32;
/// The longest version that is believed.
const LONGEST: usize = 256;

/// The versions of which the sources were read: Go 1.`OLDEST` to Go 1.`NEWEST`.
const OLDEST: u32 = 19;
const NEWEST: u32 = 27;

/// The version of Go that built a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// As it calls itself: `go1.24.4`.
    pub name: String,
    /// The second number.
    minor: Option<u32>,
}

impl Version {
    /// The version in a `.go.buildinfo` section.
    #[must_use]
    pub fn of_build_info(section: &[u8]) -> Option<Self> {
        let header = section.strip_prefix(MAGIC)?;
        let flags = header.get(FLAGS - MAGIC.len())?;
        if flags & INLINE_STRINGS == 0 {
            return None;
        }
        let rest = section.get(HEADER..)?;
        let (length, taken) = varint(rest)?;
        let length = usize::try_from(length).ok().filter(|it| *it <= LONGEST)?;
        let name = rest.get(taken..)?.get(..length)?;
        let name = std::str::from_utf8(name).ok()?;
        Some(Self::named(name))
    }

    fn named(name: &str) -> Self {
        // `go1.24.4`, `go1.27rc1`, `go1.22.1 X:boringcrypto`; a development version stands between two.
        let minor = name.strip_prefix("go1.").and_then(|rest| {
            let end = rest.find(|it: char| !it.is_ascii_digit());
            rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
        });
        Self {
            name: name.to_owned(),
            minor,
        }
    }

    /// The second number, where it has one.
    pub(super) fn minor(&self) -> Option<u32> {
        self.minor
    }

    /// How its runtime lays out what is read of it; `None` where that is not known.
    #[must_use]
    pub fn layout(&self) -> Option<Layout> {
        let minor = self.minor.filter(|it| (OLDEST..=NEWEST).contains(it))?;
        Some(Layout::of(minor))
    }
}

/// The versions that are known, for people.
#[must_use]
pub(super) fn known() -> String {
    format!("Go 1.{OLDEST} to 1.{NEWEST}")
}

/// Offsets in the runtime's structures, bytes (src/runtime: `symtab.go`, `mprof.go`, `runtime2.go`, `mheap.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// `moduledata.gofunc`.
    pub(super) functions_data: usize,
    /// `moduledata.types`.
    pub(super) types: usize,
    /// The size of `_func`.
    pub(super) function: usize,
    /// The size of `inlinedCall`, and its members `nameOff` (`func_` before Go 1.20) and `parentPc`.
    pub(super) inlined: usize,
    pub(super) inlined_name: usize,
    pub(super) inlined_parent: usize,
    /// Words of `memRecordCycle`: the bytes are its objects times the bucket's size since Go 1.27.
    pub(super) cycle_words: usize,
    /// The most program counters of a bucket (`maxStack`, `maxProfStackDepth`).
    pub(super) deepest: u64,
    /// `g.atomicstatus`, `g.goid`, `g.waitreason`.
    pub(super) status: usize,
    pub(super) goroutine: usize,
    pub(super) reason: usize,
    /// `gobuf.bp`.
    pub(super) frame_pointer: usize,
    /// Of the heap's spans.
    pub(super) spans: SpanLayout,
}

/// Offsets in the heap's structures, bytes (src/runtime/mheap.go).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SpanLayout {
    /// `mheap.sweepgen`, `mheap.allspans`, `mheap.arenas`.
    pub(super) heap_generation: usize,
    pub(super) all: usize,
    pub(super) arenas: usize,
    /// `heapArena.spans`.
    pub(super) of_arena: u64,
    /// `mspan.nelems`, a word of 64 bits or of 16.
    pub(super) blocks: usize,
    pub(super) wide_blocks: bool,
    /// `mspan.allocBits`, `mspan.sweepgen`.
    pub(super) bits: usize,
    pub(super) generation: usize,
}

impl SpanLayout {
    fn of(minor: u32) -> Self {
        // `pageAlloc` grew in Go 1.20.
        let heap_generation = if minor < 20 { 65848 } else { 65856 };
        // `mheap.pagesInUse` and others came before the arenas in Go 1.22, when bits for pointers moved out of them and into the spans.
        let (arenas, of_arena) = match minor {
            ..20 => (heap_generation + 88, 2 << 20),
            20 | 21 => (heap_generation + 88, (1 << 20) + (1 << 14)),
            22.. => (heap_generation + 152, 0),
        };
        // `mspan.pinnerBits` came in Go 1.21; three words became one in Go 1.22.
        let (blocks, bits, generation) = match minor {
            ..21 => (56, 72, 88),
            21 => (56, 72, 96),
            22.. => (50, 64, 88),
        };
        Self {
            heap_generation,
            all: heap_generation + 8,
            arenas,
            of_arena,
            blocks,
            wide_blocks: minor < 22,
            bits,
            generation,
        }
    }
}

impl Layout {
    fn of(minor: u32) -> Self {
        let (functions_data, function) = match minor {
            ..20 => (304, 40),
            20..27 => (320, 44),
            27.. => (344, 44),
        };
        let (inlined, inlined_name, inlined_parent) = match minor {
            ..20 => (20, 12, 16),
            20.. => (16, 4, 8),
        };
        // Before them `syscallbp` came in Go 1.23, and `gobuf.ret` went in Go 1.25.
        let status = if matches!(minor, 23 | 24) { 152 } else { 144 };
        Self {
            functions_data,
            // `covctrs` and `ecovctrs` came before it in Go 1.20.
            types: if minor < 20 { 280 } else { 296 },
            function,
            inlined,
            inlined_name,
            inlined_parent,
            cycle_words: if minor < 27 { 4 } else { 2 },
            deepest: if minor < 23 { 32 } else { 1024 },
            status,
            goroutine: status + 8,
            reason: status + 32,
            frame_pointer: if minor < 25 { 48 } else { 40 },
            spans: SpanLayout::of(minor),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::Version;
    use proptest::prelude::{any, prop, proptest};

    fn section(name: &str) -> Vec<u8> {
        let mut section = b"\xff Go buildinf:\x08\x02".to_vec();
        section.resize(32, 0);
        section.push(u8::try_from(name.len()).unwrap());
        section.extend_from_slice(name.as_bytes());
        section
    }

    #[test]
    fn a_version_is_known_or_refused() {
        let of = |name: &str| Version::of_build_info(&section(name)).unwrap();
        assert_eq!(of("go1.19.8").name, "go1.19.8");
        assert!(of("go1.19.8").layout().is_some());
        assert!(of("go1.27rc1").layout().is_some());
        assert!(of("go1.24").layout().is_some());
        assert!(of("go1.18.1").layout().is_none());
        assert!(of("go1.28.0").layout().is_none());
        assert!(of("devel go1.24-abc").layout().is_none());
        assert!(of("go1.99999999999").layout().is_none());
        assert_eq!(Version::of_build_info(b"\xff Go buildinf:"), None);
    }

    proptest! {
        #[test]
        fn no_section_is_believed(mut bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Version::of_build_info(&bytes);
            let mut begun = section("");
            begun.append(&mut bytes);
            let _ = Version::of_build_info(&begun);
        }
    }
}
