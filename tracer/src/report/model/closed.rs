//! A report that is closed: put in order, complete and finite, whether it was made here or read from a file.

use std::ops::Deref;

use leakscope_common::Loss;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use super::container::unit_of_cgroup;
use super::{Container, KernelMemory, ProcessKernel, ReportParts, SCHEMA};

/// A report that nobody changes any more. Its fields are read through [`ReportParts`].
///
/// Sites are sorted by surviving bytes, largest first, in an order that does not depend on how they came; every
/// [`Loss`] has an entry; no floating-point value is infinite or not a number.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "ReportParts")]
pub struct Report {
    parts: ReportParts,
}

/// A saved report that cannot be used.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Not JSON, or not the JSON of a report.
    #[error("not a report of leakscope: {0}")]
    Json(#[from] serde_json::Error),
    /// A report of another version.
    #[error(
        "the report has schema {found}, this leakscope reads schema {SCHEMA}; read it with the version that wrote it"
    )]
    Schema {
        /// The version in the file.
        found: u64,
    },
}

impl Report {
    /// Closes a report: sorts the sites, tells containers by the paths of cgroups, lists every cause of loss, and replaces what is not a finite number by 0.
    #[must_use]
    pub fn new(mut parts: ReportParts) -> Self {
        parts.sort();
        for loss in Loss::ALL {
            parts.losses.entry(loss.name().to_owned()).or_default();
        }
        for process in &mut parts.processes {
            let known = process.container.take();
            process.container = Container::of_cgroup(&process.cgroup);
            if let (Some(container), Some(known)) = (&mut process.container, known) {
                container.take_names(known);
            }
            process.unit = unit_of_cgroup(&process.cgroup);
        }
        let overhead = &mut parts.overhead;
        let floats = [
            &mut parts.duration_s,
            &mut overhead.duty,
            &mut overhead.target_cpu_fraction,
            &mut overhead.budget,
            &mut overhead.tracer_cores,
        ]
        .into_iter()
        .chain(parts.processes.iter_mut().flat_map(|process| {
            process
                .memory_series
                .iter_mut()
                .map(|point| &mut point.at_s)
                .chain([&mut process.rss_growth_bytes_per_s])
                .chain(
                    process
                        .lives
                        .iter_mut()
                        .map(|lives| &mut lives.temporary_below_s),
                )
                .chain(process.lost_at_exit.iter_mut().map(|lost| &mut lost.held_s))
                .chain(process.kernel.iter_mut().flat_map(ProcessKernel::floats))
        }))
        .chain(parts.kernel.iter_mut().flat_map(KernelMemory::floats))
        .chain(parts.sites.iter_mut().flat_map(|site| {
            let counted = site.counted.iter_mut().flat_map(|counted| {
                [
                    &mut counted.growth_bytes_per_s,
                    &mut counted.growth_error_bytes_per_s,
                    &mut counted.share,
                    &mut counted.share_error,
                    &mut counted.last_age_s,
                ]
            });
            let lives = site.lives.iter_mut();
            [&mut site.oldest_age_s, &mut site.growth_bytes_per_s]
                .into_iter()
                .chain(counted)
                .chain(lives.map(|lives| &mut lives.temporary_below_s))
        }));
        for float in floats {
            if !float.is_finite() {
                *float = 0.0;
            }
        }
        Self { parts }
    }

    /// Reads a report that was saved as JSON. Unknown fields are passed over.
    ///
    /// # Errors
    /// When the text is not a report, or one of another schema.
    pub fn from_json(json: &[u8]) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u64,
        }
        // The version first: a later one may lack what this one requires.
        let version: Version = serde_json::from_slice(json)?;
        if version.schema != u64::from(SCHEMA) {
            return Err(ReadError::Schema {
                found: version.schema,
            });
        }
        Ok(serde_json::from_slice(json)?)
    }

    /// The parts, to make another report of them.
    #[must_use]
    pub fn into_parts(self) -> ReportParts {
        self.parts
    }
}

impl From<ReportParts> for Report {
    fn from(parts: ReportParts) -> Self {
        Self::new(parts)
    }
}

impl Deref for Report {
    type Target = ReportParts;

    fn deref(&self) -> &ReportParts {
        &self.parts
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.parts.serialize(serializer)
    }
}
