//! The immutable [`Report`] and its views, one file per format.
//!
//! Owns what a report contains and how it is shown. Knows nothing of processes, maps or symbols: whoever has a report
//! has everything that a view shows, and no view computes a figure of its own.

mod model;
mod time;

pub use model::{
    Frame, FrameKind, Omitted, Overhead, Probe, Process, ReadError, Report, ReportParts, SCHEMA,
    Site, Tier, Verdict,
};
pub use time::{Timestamp, TimestampError};
