//! The BPF object inside the binary and where it came from.

/// The object's bytes, aligned as the ELF reader wants them.
pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LEAKSCOPE_BPF_OBJECT_PATH"));

/// Where the object came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// `committed`, or `environment` where a build variable named it.
    pub source: &'static str,
    /// The object's SHA-256.
    pub sha256: &'static str,
    /// The toolchain that made it, one line.
    pub toolchain: &'static str,
}

/// Where the object came from.
#[must_use]
pub const fn provenance() -> Provenance {
    Provenance {
        source: env!("LEAKSCOPE_BPF_OBJECT_SOURCE"),
        sha256: env!("LEAKSCOPE_BPF_OBJECT_SHA256"),
        toolchain: env!("LEAKSCOPE_BPF_OBJECT_TOOLCHAIN"),
    }
}
