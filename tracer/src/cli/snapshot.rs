//! `leakscope snapshot`: keeps what a daemon has traced under a name, lists and deletes what was kept.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use hyper::Method;
use serde::Deserialize;

use super::{
    args::{SnapshotArguments, SnapshotCommand},
    dump::{Place, ask, asked, pair},
    output::say,
};
use crate::{daemon::block_on, report::clean, units};

/// Where a daemon has its snapshots.
const PATH: &str = "/api/v1/snapshots";

/// What a daemon lists.
#[derive(Deserialize)]
struct List {
    snapshots: Vec<Kept>,
}

/// A snapshot in it.
#[derive(Deserialize)]
struct Kept {
    name: String,
    captured_at: String,
    sites: u64,
    inuse_bytes: u64,
}

/// Asks the daemon, and prints what there is to say.
pub(super) fn run(raw: &SnapshotArguments) -> anyhow::Result<ExitCode> {
    let (place, token) = asked(&raw.daemon)?;
    let token = token.as_deref();
    match &raw.what {
        SnapshotCommand::Save { name } => return save(&place, token, name),
        SnapshotCommand::Rm { name } => {
            let path = format!("{PATH}/{}", in_path(name));
            block_on(ask(&place, Method::DELETE, &path, token, Duration::ZERO))?;
        }
        SnapshotCommand::List { json } => {
            let body = block_on(ask(&place, Method::GET, PATH, token, Duration::ZERO))?;
            let text = if *json {
                format!("{}\n", String::from_utf8_lossy(&body).trim_end())
            } else {
                table(&body).with_context(|| format!("{place} answered with no list"))?
            };
            say(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the daemon keep what there is under a name.
pub(super) fn save(place: &Place, token: Option<&str>, name: &str) -> anyhow::Result<ExitCode> {
    let path = format!("{PATH}?{}", pair("name", name));
    block_on(ask(place, Method::POST, &path, token, Duration::ZERO))?;
    Ok(ExitCode::SUCCESS)
}

/// A name as a part of a path.
fn in_path(name: &str) -> String {
    let whole = pair("", name);
    whole.strip_prefix('=').unwrap_or(&whole).to_owned()
}

/// The list, a line for each.
fn table(body: &[u8]) -> anyhow::Result<String> {
    let list: List = serde_json::from_slice(body)?;
    let width = list.snapshots.iter().map(|kept| kept.name.len()).max();
    let Some(width) = width else {
        return Ok("no snapshot is kept; `leakscope snapshot save NAME` makes one\n".to_owned());
    };
    let lines = list.snapshots.iter().map(|kept| {
        let name = clean(&kept.name);
        let (bytes, sites) = (units::bytes(kept.inuse_bytes), units::count(kept.sites));
        let plural = units::plural(kept.sites);
        let at = clean(&kept.captured_at);
        format!("{name:<width$}  {at}  {bytes} at {sites} site{plural}\n")
    });
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{in_path, table};

    #[test]
    fn a_list_has_a_line_for_each() {
        let none = br#"{"snapshots": []}"#;
        assert!(table(none).unwrap().contains("no snapshot is kept"));
        let two = br#"{"snapshots": [
            {"name": "monday", "captured_at": "2026-11-30T08:00:00.000Z", "sites": 1, "inuse_bytes": 2048, "profile_bytes": 9},
            {"name": "t\u001b[2J", "captured_at": "2026-12-01T08:00:00.000Z", "sites": 3, "inuse_bytes": 0, "profile_bytes": 9}]}"#;
        let said = table(two).unwrap();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(
            said.starts_with("monday  2026-11-30T08:00:00.000Z  2.00 KiB at 1 site\n"),
            "{said}"
        );
        assert!(!said.contains('\u{1b}'), "{said}");
        assert!(table(b"<html>").is_err());
    }

    #[test]
    fn names_stay_in_their_part_of_the_path() {
        assert_eq!(in_path("../a?b"), "..%2Fa%3Fb");
    }
}
