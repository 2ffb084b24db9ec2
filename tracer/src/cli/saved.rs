//! Reports that were saved to files, as JSON or as a profile. Knows nothing of what becomes of them.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::{Context as _, anyhow};
use serde::Deserialize;

use crate::report::{ReadError, Report, pprof};

/// The largest file that is read, bytes.
const LARGEST: u64 = 1 << 30;

/// Reads a saved report.
pub(super) fn read(path: &Path) -> anyhow::Result<Report> {
    let place = || {
        format!(
            "cannot use {}; save a report with --format json or --format pprof",
            path.display()
        )
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes))
        .with_context(place)?;
    if bytes.len() as u64 > LARGEST {
        return Err(anyhow!("it has more than {} MiB", LARGEST >> 20)).with_context(place);
    }
    parse(&bytes).with_context(place)
}

/// A report, whichever of the two forms it has.
fn parse(bytes: &[u8]) -> anyhow::Result<Report> {
    let text = bytes.trim_ascii();
    if text.is_empty() {
        return Err(anyhow!("the file is empty"));
    }
    // No profile begins with a brace: in its encoding, that is the end of a group, which profiles do not have.
    if !text.starts_with(b"{") {
        return Ok(pprof::to_report(&pprof::read(bytes)?)?);
    }
    // With --every there are several, a line each; the last has all that those before it have.
    let last = text
        .rsplit(|byte| *byte == b'\n')
        .next()
        .filter(|line| line.starts_with(b"{") && line.ends_with(b"}"))
        .unwrap_or(text);
    Report::from_json(last).map_err(|error| match (other_kind(last), error) {
        (Some(kind), ReadError::Json(_)) => anyhow!("it is {kind}, not a report of a trace"),
        (_, error) => error.into(),
    })
}

/// What other JSON of leakscope's a text is.
fn other_kind(json: &[u8]) -> Option<&'static str> {
    #[derive(Deserialize)]
    struct Fields {
        groups: Option<serde::de::IgnoredAny>,
        changes: Option<serde::de::IgnoredAny>,
    }
    let fields: Fields = serde_json::from_slice(json).ok()?;
    match (fields.groups, fields.changes) {
        (Some(_), _) => Some("what `leakscope heap` saved"),
        (None, Some(_)) => Some("a difference of two reports"),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{parse, read};
    use crate::report::{Format as _, Json, Pprof, Report, ReportParts};

    fn said(bytes: &[u8]) -> String {
        format!("{:#}", parse(bytes).unwrap_err())
    }

    fn saved(duration_s: f64) -> (Report, Vec<u8>) {
        let report = Report::new(ReportParts {
            duration_s,
            ..ReportParts::default()
        });
        let mut json = Vec::new();
        Json.write(&report, &mut json).unwrap();
        (report, json)
    }

    #[test]
    fn of_several_reports_in_a_file_the_last_is_taken() {
        let ((_, first), (last, second)) = (saved(1.0), saved(2.0));
        assert_eq!(parse(&[first, second].concat()).unwrap(), last);
    }

    #[test]
    fn json_on_many_lines_is_read() {
        let (report, json) = saved(3.0);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let pretty = serde_json::to_vec_pretty(&value).unwrap();
        assert_eq!(parse(&pretty).unwrap(), report);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let (report, json) = saved(1.0);
        let cut = json.get(..json.len() / 2).unwrap();
        assert!(said(cut).contains("not a report"), "{}", said(cut));
        let mut profile = Vec::new();
        Pprof.write(&report, &mut profile).unwrap();
        assert!(parse(&profile).is_ok());
        let cut = profile.get(..profile.len() / 2).unwrap();
        assert!(said(cut).contains("cannot be decompressed"));
        assert!(said(b" \n").contains("empty"));
        assert!(said(b"{\"schema\": 2}").contains("reads schema 1"));
        assert!(said(b"{\"schema\": 1, \"groups\": []}").contains("leakscope heap"));
        assert!(said(b"{\"changes\": []}").contains("a difference"));
        assert!(said(b"\x7fELF\x02\x01").contains("not a profile"));
        let nested = format!("{{\"schema\": 1, \"x\": {}", "[".repeat(100_000));
        assert!(said(nested.as_bytes()).contains("not a report"));
        let missing = read("/no/such/file.json".as_ref()).unwrap_err();
        assert!(format!("{missing:#}").contains("/no/such/file.json"));
    }
}
