//! Reports that somebody wanted to keep, by name, to compare later ones with: as profiles, which are small, and never more
//! than a fixed number of bytes of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;

use super::error::Refusal;
use crate::report::{Format as _, Pprof, Report, Timestamp, pprof};

/// The most snapshots, and the most bytes of all together.
const COUNT: usize = 64;
const BYTES: usize = 32 << 20;

/// The longest name.
const NAME: usize = 64;

/// A report that is kept.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    captured_at: Timestamp,
    sites: u64,
    inuse_bytes: u64,
    profile: Arc<[u8]>,
}

/// A snapshot in the list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Listed {
    name: String,
    captured_at: Timestamp,
    sites: u64,
    inuse_bytes: u64,
    profile_bytes: usize,
}

/// All snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    kept: Mutex<BTreeMap<String, Snapshot>>,
}

/// A name that can stand in a path and in a command: letters, digits, `.`, `_` and `-`, the first of them no dot or dash.
pub(super) fn check_name(name: &str) -> Result<String, Refusal> {
    let fit = |character: char| character.is_ascii_alphanumeric() || "._-".contains(character);
    if name.is_empty()
        || name.len() > NAME
        || name.starts_with(['.', '-'])
        || !name.chars().all(fit)
    {
        return Err(Refusal::bad_request(format!(
            "a snapshot's name has 1 to {NAME} letters, digits, dots, dashes and underscores, and begins with a letter, a digit or an underscore"
        )));
    }
    Ok(name.to_owned())
}

impl Snapshots {
    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Snapshot>> {
        // Nothing is half done in it at any time.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a report. Writing its profile takes some time: not to be called where others wait.
    pub(super) fn keep(&self, name: &str, report: &Report) -> Result<Listed, Refusal> {
        self.check_room(&self.kept(), name, 0)?;
        let mut profile = Vec::new();
        Pprof
            .write(report, &mut profile)
            .map_err(|error| Refusal::internal(format!("cannot write the profile: {error}")))?;
        let total = report.total();
        let snapshot = Snapshot {
            captured_at: report.captured_at,
            sites: total.sites,
            inuse_bytes: total.inuse_bytes,
            profile: profile.into(),
        };
        let mut kept = self.kept();
        self.check_room(&kept, name, snapshot.profile.len())?;
        let listed = snapshot.listed(name);
        kept.insert(name.to_owned(), snapshot);
        Ok(listed)
    }

    fn check_room(
        &self,
        kept: &BTreeMap<String, Snapshot>,
        name: &str,
        bytes: usize,
    ) -> Result<(), Refusal> {
        if kept.contains_key(name) {
            return Err(Refusal::conflict(format!(
                "there is a snapshot {name:?} already; delete it first, or take another name"
            )));
        }
        let held: usize = kept.values().map(|snapshot| snapshot.profile.len()).sum();
        if kept.len() >= COUNT || held.saturating_add(bytes) > BYTES {
            return Err(Refusal::conflict(format!(
                "there is no room: {} snapshots with {} KiB are kept, and at most {COUNT} with {} KiB can be; delete some",
                kept.len(),
                held >> 10,
                BYTES >> 10
            )));
        }
        Ok(())
    }

    /// All of them, by name.
    pub(super) fn list(&self) -> Vec<Listed> {
        self.kept()
            .iter()
            .map(|(name, snapshot)| snapshot.listed(name))
            .collect()
    }

    /// One of them.
    pub(super) fn find(&self, name: &str) -> Result<Snapshot, Refusal> {
        self.kept()
            .get(name)
            .cloned()
            .ok_or_else(|| not_found(name))
    }

    /// Keeps one no longer.
    pub(super) fn delete(&self, name: &str) -> Result<(), Refusal> {
        self.kept()
            .remove(name)
            .map(|_| ())
            .ok_or_else(|| not_found(name))
    }
}

fn not_found(name: &str) -> Refusal {
    Refusal::not_found(format!(
        "there is no snapshot {name:?}; /api/v1/snapshots lists those that are there"
    ))
}

impl Snapshot {
    fn listed(&self, name: &str) -> Listed {
        Listed {
            name: name.to_owned(),
            captured_at: self.captured_at,
            sites: self.sites,
            inuse_bytes: self.inuse_bytes,
            profile_bytes: self.profile.len(),
        }
    }

    /// When it was captured.
    pub(super) fn captured_at(&self) -> Timestamp {
        self.captured_at
    }

    /// The gzipped profile.
    pub(super) fn profile(&self) -> Arc<[u8]> {
        Arc::clone(&self.profile)
    }

    /// The report, as far as its profile tells.
    pub(super) fn report(&self) -> Result<Report, Refusal> {
        pprof::read(&self.profile)
            .and_then(|profile| pprof::to_report(&profile))
            .map_err(|error| Refusal::internal(format!("cannot read the snapshot: {error}")))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::super::testing::large_report;
    use super::{BYTES, COUNT, Snapshots, check_name};

    #[test]
    fn names_cannot_lead_anywhere() {
        for good in ["a", "before-deploy_1.2", "_x", "9"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\0b",
            "a b",
            "-rf",
            "ä",
            "a\n",
            "%2e%2e",
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name(&"x".repeat(65)).is_err());
    }

    #[test]
    fn a_day_of_snapshots_stays_in_the_same_memory() {
        let snapshots = Snapshots::default();
        // One every five minutes, each of another program, none ever deleted.
        for minute in (0..24 * 60).step_by(5) {
            let report = large_report(300, minute);
            let kept = snapshots.keep(&format!("at-{minute}"), &report);
            let list = snapshots.list();
            assert!(list.len() <= COUNT);
            assert!(list.iter().map(|one| one.profile_bytes).sum::<usize>() <= BYTES);
            assert_eq!(kept.is_err(), minute >= 5 * COUNT as u64, "{minute}");
        }
        snapshots.delete("at-0").unwrap();
        assert!(snapshots.keep("again", &large_report(300, 1)).is_ok());
    }

    #[test]
    fn what_is_kept_comes_back() {
        let snapshots = Snapshots::default();
        let report = large_report(100, 1);
        snapshots.keep("a", &report).unwrap();
        assert!(snapshots.keep("a", &report).is_err());
        let back = snapshots.find("a").unwrap().report().unwrap();
        assert_eq!(back.total(), report.total());
        snapshots.delete("a").unwrap();
        assert!(snapshots.find("a").is_err());
        assert!(snapshots.delete("a").is_err());
    }
}
