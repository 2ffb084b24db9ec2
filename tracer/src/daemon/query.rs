//! What a request asks for: its query, checked.

use std::time::Duration;

use axum::http::Uri;
use serde::Deserialize;

use super::{error::Refusal, snapshots};
use crate::report::{FORMAT_NAMES, Filter};

/// The longest time between two reports whose difference is asked for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The most bytes of a pattern or path, and the most process ids.
const TEXT: usize = 4096;
const PIDS: usize = 1024;

/// Sites of a view for people where no number is asked for; views for programs have all.
const TOP: usize = 20;

/// The query as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    pid: Option<String>,
    comm: Option<String>,
    cgroup: Option<String>,
    top: Option<String>,
    seconds: Option<String>,
    base: Option<String>,
    format: Option<String>,
    name: Option<String>,
    /// What clients of Go's own server ask for: whether to collect garbage first, and whether to write text.
    #[serde(rename = "gc")]
    _gc: Option<String>,
    debug: Option<String>,
}

/// What is compared with what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Base {
    /// With a snapshot of this name.
    Snapshot(String),
    /// With what is there after so long.
    After(Duration),
}

/// The query, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Query {
    pub(super) filter: Filter,
    pub(super) top: Option<usize>,
    pub(super) base: Option<Base>,
    pub(super) format: Option<&'static str>,
    pub(super) name: Option<String>,
}

impl Query {
    /// Reads a query.
    pub(super) fn read(uri: &Uri) -> Result<Self, Refusal> {
        let written = axum::extract::Query::<Written>::try_from_uri(uri)
            .map_err(|error| Refusal::bad_request(error.body_text()))?
            .0;
        let base = match (written.base, written.seconds) {
            (Some(_), Some(_)) => {
                return Err(Refusal::bad_request(
                    "base and seconds exclude each other: what is to be compared with what?",
                ));
            }
            (Some(name), None) => Some(Base::Snapshot(snapshots::check_name(&name)?)),
            (None, Some(seconds)) => Some(Base::After(wait_of(&seconds)?)),
            (None, None) => None,
        };
        let format = written
            .format
            .map(|wanted| {
                FORMAT_NAMES
                    .into_iter()
                    .find(|name| *name == wanted)
                    .ok_or_else(|| {
                        Refusal::bad_request(format!(
                            "there is no format {wanted:?}; there are {}",
                            FORMAT_NAMES.join(", ")
                        ))
                    })
            })
            .transpose()?;
        if written.debug.is_some_and(|debug| debug != "0") {
            return Err(Refusal::bad_request(
                "debug must be 0; /api/v1/report?format=text is for people",
            ));
        }
        Ok(Self {
            filter: Filter {
                pids: written
                    .pid
                    .as_deref()
                    .map(pids)
                    .transpose()?
                    .unwrap_or_default(),
                comm: written.comm.map(|text| short("comm", text)).transpose()?,
                cgroup: written
                    .cgroup
                    .map(|text| short("cgroup", text))
                    .transpose()?,
            },
            top: written.top.as_deref().map(top).transpose()?,
            base,
            format,
            name: written
                .name
                .map(|name| snapshots::check_name(&name))
                .transpose()?,
        })
    }

    /// How many sites to show in a format.
    pub(super) fn top(&self, format: &str) -> usize {
        self.top.unwrap_or(match format {
            "text" | "json" | "html" => TOP,
            _ => usize::MAX,
        })
    }
}

/// How long a request asks to be made to wait; nothing where it is malformed.
pub(super) fn wait(uri: &Uri) -> Duration {
    match Query::read(uri) {
        Ok(Query {
            base: Some(Base::After(wait)),
            ..
        }) => wait,
        _ => Duration::ZERO,
    }
}

fn pids(list: &str) -> Result<Vec<u32>, Refusal> {
    let mut pids = list
        .split(',')
        .take(PIDS + 1)
        .map(|pid| match pid.trim().parse::<u32>() {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(Refusal::bad_request(format!(
                "pid must be process ids with commas between them, not {:?}",
                list.chars().take(64).collect::<String>()
            ))),
        })
        .collect::<Result<Vec<u32>, Refusal>>()?;
    if pids.len() > PIDS {
        return Err(Refusal::bad_request(format!(
            "at most {PIDS} process ids can be asked for"
        )));
    }
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn short(name: &str, text: String) -> Result<String, Refusal> {
    if text.is_empty() || text.len() > TEXT {
        return Err(Refusal::bad_request(format!(
            "{name} must have 1 to {TEXT} bytes"
        )));
    }
    Ok(text)
}

fn top(text: &str) -> Result<usize, Refusal> {
    text.parse::<u32>()
        .ok()
        .filter(|top| *top > 0)
        .and_then(|top| usize::try_from(top).ok())
        .ok_or_else(|| Refusal::bad_request("top must be a number from 1: how many sites to show"))
}

fn wait_of(text: &str) -> Result<Duration, Refusal> {
    text.parse::<u64>()
        .ok()
        .map(Duration::from_secs)
        .filter(|wait| !wait.is_zero() && *wait <= LONGEST_WAIT)
        .ok_or_else(|| {
            Refusal::bad_request(format!(
                "seconds must be a whole number from 1 to {}",
                LONGEST_WAIT.as_secs()
            ))
        })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::time::Duration;

    use axum::http::Uri;
    use proptest::prelude::*;

    use super::{Base, Query};

    fn read(query: &str) -> Option<Query> {
        Query::read(&format!("/x?{query}").parse::<Uri>().unwrap()).ok()
    }

    #[test]
    fn queries_are_read() {
        let query =
            read("pid=7,3,7&comm=ng%2A&cgroup=/a%20b&top=5&seconds=10&gc=1&debug=0").unwrap();
        assert_eq!(query.filter.pids, [3, 7]);
        assert_eq!(query.filter.comm.as_deref(), Some("ng*"));
        assert_eq!(query.filter.cgroup.as_deref(), Some("/a b"));
        assert_eq!(query.top("json"), 5);
        assert_eq!(query.base, Some(Base::After(Duration::from_secs(10))));
        assert_eq!(read("").unwrap().top("pprof"), usize::MAX);
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for query in [
            "pid=",
            "pid=0",
            "pid=-1",
            "pid=1,x",
            "pid=99999999999",
            "pid=1&pid=2",
            "comm=",
            "top=0",
            "top=-1",
            "top=many",
            "seconds=0",
            "seconds=301",
            "seconds=1.5",
            "seconds=5&base=a",
            "base=../../etc/passwd",
            "base=",
            "format=exe",
            "debug=1",
            "unknown=1",
            "pid=%FF",
        ] {
            assert_eq!(read(query), None, "{query}");
        }
        let many = vec!["1"; 5000].join(",");
        assert_eq!(read(&format!("pid={many}")), None);
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z0-9=&%+,.*/-]{0,60}") {
            if let Ok(uri) = format!("/x?{query}").parse::<Uri>() {
                drop(Query::read(&uri));
            }
        }
    }
}
