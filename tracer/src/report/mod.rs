//! The immutable [`Report`] and its views, one file per format.
//!
//! Owns what a report contains and how it is shown. Knows nothing of processes, maps or symbols: whoever has a report
//! has everything that a view shows, and no view computes a figure of its own.

mod allocator;
mod check;
mod difference;
mod filter;
mod folded;
pub mod heap;
mod html;
mod json;
mod kernel_names;
mod lives;
pub mod metrics;
mod model;
mod names;
pub mod pprof;
mod suppress;
mod svg;
mod text;
mod time;

#[cfg(test)]
mod arbitrary;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::io;

use thiserror::Error;

pub(crate) use allocator::is_allocator;
pub use difference::{Change, ChangeKind, Changed, Difference, Figures, MemoryBefore, Moment};
pub use filter::Filter;
pub use folded::Folded;
pub use html::Html;
pub use json::Json;
pub(crate) use kernel_names::{
    descriptors, kernel_path, leaks, level_figures, level_name, made_for, others, own_line,
    site_figures, site_name,
};
pub(crate) use lives::lives;
pub use model::{
    Container, CountedGrowth, CountedSize, DESCRIPTORS, DescriptorKind, Ended, Evidence, Frame,
    FrameKind, GoHeapUse, GoSize, GoUse, HeapUse, HeldMemory, Holding, KernelLevel,
    KernelLevelKind, KernelMemory, KernelObjects, KernelPart, KernelSiteKind, KernelWindows, Lives,
    LostAtExit, LostType, MappingKind, MemoryLimit, MemoryPoint, OfLife, OfSize, Omitted, Overhead,
    Probe, Process, ProcessKernel, Reachability, ReadError, Report, ReportParts, SCHEMA, Sample,
    Site, SiteHolder, SiteKind, SiteType, Suppressed, Tier, UnseenGrowth, Verdict,
};
pub use names::LOST_AT_EXIT;
pub(crate) use names::{clean, function, peak, process_name, unnamed, why_empty};
pub use pprof::{Pprof, PprofAllocs, PprofGoroutines, PprofKernel};
pub use suppress::{ALL_SUPPRESSED, SuppressError, Suppressions};
pub use svg::Svg;
pub use text::{By, Style, Text};
pub(crate) use text::{Titles, callers, reserved, stack_lines};
pub use time::{Timestamp, TimestampError};

/// The JSON Schema (2020-12) of what [`Json`] writes.
///
/// # Errors
/// It is not as it was compressed when leakscope was built (`build.rs`).
pub fn json_schema() -> io::Result<String> {
    let packed = include_bytes!(concat!(env!("OUT_DIR"), "/schema.json.gz"));
    io::read_to_string(flate2::read::GzDecoder::new(&packed[..]))
}

/// A view of a report.
pub trait Format: Send + Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// The media type, for HTTP.
    fn media_type(&self) -> &'static str;

    /// Whether what is written is not text, and no terminal should get it.
    fn is_binary(&self) -> bool {
        false
    }

    /// Writes the report.
    ///
    /// # Errors
    /// Those of `out`.
    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()>;

    /// Writes what changed between two reports.
    ///
    /// # Errors
    /// Those of `out`.
    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()>;
}

/// The names of all formats.
pub const FORMAT_NAMES: [&str; 6] = ["text", "json", "folded", "svg", "pprof", "html"];

/// There is no format of this name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{name:?} is no format; there are text, json, folded, svg, pprof and html")]
pub struct UnknownFormat {
    name: String,
}

impl dyn Format {
    /// The format of one of [`FORMAT_NAMES`], in its plain style.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn from_name(name: &str) -> Result<Box<dyn Format>, UnknownFormat> {
        Ok(match name {
            "text" => Box::new(Text::default()),
            "json" => Box::new(Json),
            "folded" => Box::new(Folded),
            "svg" => Box::new(Svg),
            "pprof" => Box::new(Pprof),
            "html" => Box::new(Html),
            _ => {
                return Err(UnknownFormat {
                    name: name.to_owned(),
                });
            }
        })
    }
}
