//! The parts of leakscope's JSON report that the benchmark looks at.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A report.
#[derive(Debug, Deserialize)]
pub(super) struct ReportFile {
    pub(super) sites: Vec<SiteEntry>,
    losses: BTreeMap<String, u64>,
    pub(super) overhead: OverheadEntry,
    processes: Vec<ProcessEntry>,
    omitted: OmittedEntry,
}

/// A site.
#[derive(Debug, Deserialize)]
pub(super) struct SiteEntry {
    alloc_objects: u64,
    #[serde(default)]
    weight: Option<u64>,
    stack_complete: bool,
    frames: Vec<FrameEntry>,
}

#[derive(Debug, Deserialize)]
struct FrameEntry {
    inlined: bool,
}

/// What tracing did.
#[derive(Debug, Deserialize)]
pub(super) struct OverheadEntry {
    pub(super) probe_hits: u64,
}

#[derive(Debug, Deserialize)]
struct OmittedEntry {
    sites: u64,
}

#[derive(Debug, Deserialize)]
struct ProcessEntry {
    inuse_objects: u64,
}

impl ReportFile {
    /// Reads it.
    ///
    /// # Errors
    /// When it is not there or not by the contract.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = crate::shell::read(path)?;
        Self::parse(&text)
    }

    /// The same from memory.
    ///
    /// # Errors
    /// When it is not by the contract.
    pub(super) fn parse(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).context("leakscope's report is not by the contract")
    }

    /// Losses that happened.
    pub(super) fn lost(&self) -> BTreeMap<String, u64> {
        self.losses
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.clone(), *count))
            .collect()
    }

    /// The site that allocated most: return addresses of its stack, if the stack is complete.
    pub(super) fn frames(&self) -> Option<u64> {
        let busiest = self.sites.iter().max_by_key(|site| site.alloc_objects)?;
        let real = busiest.frames.iter().filter(|frame| !frame.inlined);
        busiest
            .stack_complete
            .then(|| (real.count() as u64).saturating_sub(1))
    }

    /// How many blocks one stands for.
    pub(super) fn weight(&self) -> u64 {
        self.sites
            .iter()
            .filter_map(|site| site.weight)
            .max()
            .unwrap_or(1)
    }

    /// Sites, those that are not shown included.
    pub(super) fn site_count(&self) -> u64 {
        self.sites.len() as u64 + self.omitted.sites
    }

    /// Blocks alive in all processes, those of sites that are not shown included.
    pub(super) fn live_blocks(&self) -> u64 {
        self.processes
            .iter()
            .map(|process| process.inuse_objects)
            .sum()
    }
}
