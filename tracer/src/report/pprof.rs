//! pprof's `profile.proto`, compressed by gzip: what `go tool pprof` and profile stores read.
//!
//! Sample types are those of a heap profile. Labels say which process, cgroup and allocator a sample belongs to and
//! its verdict. What is in no stack (sites left out, stacks that end early) appears as a pseudo frame in brackets, so
//! that every sum is that of the report.

mod build;
mod goroutines;
mod kernel;
pub mod proto;
mod read;

use std::collections::BTreeMap;
use std::io::{self, Read};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message;
use thiserror::Error;

use super::Format;
use super::difference::Difference;
use super::model::Report;
pub use goroutines::PprofGoroutines;
pub use kernel::PprofKernel;
use proto::Profile;

/// A profile may not be larger than this when uncompressed, bytes.
const LARGEST_PROFILE: u64 = 1 << 30;

/// The first bytes of gzip (RFC 1952, 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pprof;

impl Format for Pprof {
    fn name(&self) -> &'static str {
        "pprof"
    }

    fn media_type(&self) -> &'static str {
        "application/octet-stream"
    }

    fn is_binary(&self) -> bool {
        true
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        write(&profile(report), out)
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        write(&difference_profile(difference), out)
    }
}

/// Writes a profile, compressed.
fn write(profile: &Profile, out: &mut dyn io::Write) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::fast());
    io::Write::write_all(&mut gzip, &profile.encode_to_vec())?;
    gzip.finish()?;
    Ok(())
}

/// The same profile, of which pprof shows first what was allocated, not what survives.
#[derive(Clone, Copy, Debug, Default)]
pub struct PprofAllocs;

impl PprofAllocs {
    fn shown_first(mut profile: Profile) -> Profile {
        let allocated = profile
            .sample_type
            .iter()
            .map(|kind| kind.r#type)
            .find(|kind| profile.string(*kind) == "alloc_space");
        profile.default_sample_type = allocated.unwrap_or(profile.default_sample_type);
        profile
    }
}

impl Format for PprofAllocs {
    fn name(&self) -> &'static str {
        "pprof-allocs"
    }

    fn media_type(&self) -> &'static str {
        Pprof.media_type()
    }

    fn is_binary(&self) -> bool {
        true
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        write(&Self::shown_first(profile(report)), out)
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        write(&Self::shown_first(difference_profile(difference)), out)
    }
}

/// The differences as a profile, whose values may be negative.
#[must_use]
pub fn difference_profile(difference: &Difference) -> Profile {
    build::build_difference(difference)
}

/// The report that a profile tells of; see [`read`] for the bytes.
///
/// # Errors
/// When it is no heap profile.
pub fn to_report(profile: &Profile) -> Result<Report, PprofError> {
    read::report(profile)
}

/// The report as a profile.
#[must_use]
pub fn profile(report: &Report) -> Profile {
    build::build(report)
}

/// A saved profile that cannot be read.
#[derive(Debug, Error)]
pub enum PprofError {
    /// The compression is damaged.
    #[error("the profile cannot be decompressed: {0}")]
    Gzip(#[from] io::Error),
    /// Not a profile.
    #[error("not a profile of pprof: {0}")]
    Proto(#[from] prost::DecodeError),
    /// A profile of something else.
    #[error("the profile has no inuse_space and inuse_objects: it is no heap profile")]
    NoHeap,
    /// More than the reader is ready to hold.
    #[error("the profile is larger than {} MiB uncompressed", LARGEST_PROFILE >> 20)]
    TooLarge,
}

/// Reads a profile, compressed or not.
///
/// # Errors
/// When it is damaged, no profile, or too large.
pub fn read(bytes: &[u8]) -> Result<Profile, PprofError> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Ok(Profile::decode(bytes)?);
    }
    let mut raw = Vec::new();
    MultiGzDecoder::new(bytes)
        .take(LARGEST_PROFILE + 1)
        .read_to_end(&mut raw)?;
    if raw.len() as u64 > LARGEST_PROFILE {
        return Err(PprofError::TooLarge);
    }
    Ok(Profile::decode(raw.as_slice())?)
}

impl Profile {
    /// The string at an index of the string table; empty when there is none.
    #[must_use]
    pub fn string(&self, index: i64) -> &str {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.string_table.get(index))
            .map_or("", String::as_str)
    }

    /// The sum of every sample type, by its name.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<String, i64> {
        self.sample_type
            .iter()
            .enumerate()
            .map(|(place, kind)| {
                let sum = self
                    .sample
                    .iter()
                    .filter_map(|sample| sample.value.get(place))
                    .fold(0_i64, |sum, value| sum.saturating_add(*value));
                (self.string(kind.r#type).to_owned(), sum)
            })
            .collect()
    }
}
