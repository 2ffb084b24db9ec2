//! The report as one JSON object on one line, so that several in a row are JSON Lines.

use std::io;

use super::{Difference, Format, Report};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Format for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn media_type(&self) -> &'static str {
        "application/json"
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, report)?;
        out.write_all(b"\n")
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, difference)?;
        out.write_all(b"\n")
    }
}
