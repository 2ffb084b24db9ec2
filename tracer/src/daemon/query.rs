//! What a request asks for: its query, checked.

use std::{sync::Arc, time::Duration};

use axum::http::Uri;
use leakscope_common::Selection;

use super::{error::Refusal, snapshots};
use crate::{
    process::select::Selector,
    report::{By, FORMAT_NAMES, Filter, Style},
};

/// Where control groups are mounted, which is no part of a group's path.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The longest time between two reports whose difference is asked for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The most bytes of a pattern or path, and the most process ids.
const TEXT: usize = 4096;
const PIDS: usize = 1024;

/// Sites of a view for people where no number is asked for; views for programs have all.
const TOP: usize = 20;

/// The query as it is written: each name at most once, but for those that may be repeated.
#[derive(Debug, Default)]
struct Written {
    pid: Vec<String>,
    comm: Vec<String>,
    cgroup: Vec<String>,
    top: Option<String>,
    seconds: Option<String>,
    base: Option<String>,
    new: Option<String>,
    format: Option<String>,
    name: Option<String>,
    /// What clients of Go's own server ask for: whether to collect garbage first, and whether to write text.
    gc: Option<String>,
    debug: Option<String>,
    color: Option<String>,
    links: Option<String>,
    full: Option<String>,
    by: Option<String>,
    min_percent: Option<String>,
    width: Option<String>,
    height: Option<String>,
}

impl Written {
    fn read(uri: &Uri) -> Result<Self, Refusal> {
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Refusal::bad_request(error.body_text()))?
            .0;
        let mut written = Self::default();
        for (name, value) in pairs {
            let once = match name.as_str() {
                "pid" => {
                    written.pid.push(value);
                    continue;
                }
                "comm" => {
                    written.comm.push(short("comm", value)?);
                    continue;
                }
                "cgroup" => {
                    written.cgroup.push(short("cgroup", value)?);
                    continue;
                }
                "top" => &mut written.top,
                "seconds" => &mut written.seconds,
                "base" => &mut written.base,
                "new" => &mut written.new,
                "format" => &mut written.format,
                "name" => &mut written.name,
                "gc" => &mut written.gc,
                "debug" => &mut written.debug,
                "color" => &mut written.color,
                "links" => &mut written.links,
                "full" => &mut written.full,
                "by" => &mut written.by,
                "min-percent" => &mut written.min_percent,
                "width" => &mut written.width,
                "height" => &mut written.height,
                _ => {
                    return Err(Refusal::bad_request(format!(
                        "there is no parameter {:?}; there are pid, comm, cgroup, top, seconds, base, new, format, full, by, min-percent, width and name",
                        name.chars().take(64).collect::<String>()
                    )));
                }
            };
            if once.replace(value).is_some() {
                return Err(Refusal::bad_request(format!("{name} is given twice")));
            }
        }
        Ok(written)
    }
}

/// What is compared with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// With a snapshot of this name: the other one of this name, or else what is there now.
    Snapshot(String, Option<String>),
    /// With what is there after so long.
    After(Duration),
}

/// The query, checked.
#[derive(Clone, Debug)]
pub(super) struct Query {
    pub(super) filter: Filter,
    pub(super) top: Option<usize>,
    pub(super) base: Option<Base>,
    pub(super) format: Option<&'static str>,
    pub(super) name: Option<String>,
    /// How text is dressed, and how much of it is wanted.
    pub(super) style: Style,
}

impl Query {
    /// Reads a query.
    pub(super) fn read(uri: &Uri) -> Result<Self, Refusal> {
        let written = Written::read(uri)?;
        let style = style(&written)?;
        let new = written.new.as_deref().map(snapshots::check_name);
        let new = new.transpose()?;
        let base = match (written.base, written.seconds) {
            (Some(_), Some(_)) => {
                return Err(Refusal::bad_request(
                    "base and seconds exclude each other: what is to be compared with what?",
                ));
            }
            (Some(name), None) => Some(Base::Snapshot(snapshots::check_name(&name)?, new)),
            (None, _) if new.is_some() => {
                return Err(Refusal::bad_request(
                    "new is a snapshot that is compared with another: name that with base",
                ));
            }
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
                pids: pids(&written.pid)?,
                comms: comms(&written.comm)?,
                cgroups: written
                    .cgroup
                    .iter()
                    .map(|path| path.strip_prefix(CGROUPS).unwrap_or(path).to_owned())
                    .collect(),
            },
            style,
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
            "text" if self.style.full || self.style.by == By::Tree => usize::MAX,
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

/// How text is to be written.
fn style(written: &Written) -> Result<Style, Refusal> {
    let flag = |name: &str, value: &Option<String>| match value.as_deref() {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(_) => Err(Refusal::bad_request(format!("{name} must be 0 or 1"))),
    };
    let number = |name: &str, value: &Option<String>| {
        value
            .as_deref()
            .map(|text| {
                let number = text.parse::<u16>().ok().filter(|number| *number > 0);
                number.map(usize::from).ok_or_else(|| {
                    Refusal::bad_request(format!("{name} must be a number from 1 to 65535"))
                })
            })
            .transpose()
    };
    Ok(Style {
        color: flag("color", &written.color)?,
        links: flag("links", &written.links)?,
        full: flag("full", &written.full)?,
        width: number("width", &written.width)?,
        height: number("height", &written.height)?,
        by: match written.by.as_deref() {
            None | Some("site") => By::Site,
            Some("tree") => By::Tree,
            Some(_) => return Err(Refusal::bad_request("by must be site or tree")),
        },
        min_percent: match written.min_percent.as_deref() {
            None => 0.0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|percent: &f64| (0.0..=100.0).contains(percent))
                .ok_or_else(|| Refusal::bad_request("min-percent must be from 0 to 100"))?,
        },
    })
}

fn pids(lists: &[String]) -> Result<Vec<u32>, Refusal> {
    let mut pids = lists
        .iter()
        .flat_map(|list| list.split(','))
        .take(PIDS + 1)
        .map(|pid| match pid.trim().parse::<u32>() {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => Err(Refusal::bad_request(format!(
                "pid must be process ids with commas between them; {:?} is none",
                pid.chars().take(64).collect::<String>()
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

/// The patterns are those of `--comm`.
fn comms(patterns: &[String]) -> Result<Option<Arc<Selection>>, Refusal> {
    if patterns.is_empty() {
        return Ok(None);
    }
    let selector = Selector::new(patterns, Vec::new())
        .map_err(|error| Refusal::bad_request(format!("comm: {error}")))?;
    Ok(Some(Arc::new(*selector.selection())))
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
    use crate::report::Process;

    fn read(query: &str) -> Option<Query> {
        Query::read(&format!("/x?{query}").parse::<Uri>().unwrap()).ok()
    }

    #[test]
    fn queries_are_read() {
        let query =
            read("pid=7,3,7&comm=ng%2A&cgroup=/a%20b&top=5&seconds=10&gc=1&debug=0").unwrap();
        assert_eq!(query.filter.pids, [3, 7]);
        let wants = |pid, comm: &str, cgroup: &str| {
            query.filter.wants(&Process {
                pid,
                comm: comm.to_owned(),
                cgroup: cgroup.to_owned(),
                ..Process::default()
            })
        };
        // Together they are the union.
        assert!(wants(9, "nginx", "/z") && wants(7, "redis", "/z") && wants(9, "redis", "/a b/c"));
        assert!(!wants(9, "redis", "/z"));
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
            "top=1&top=2",
            "comm=%5Bx",
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
            "new=a",
            "base=a&new=",
            "format=exe",
            "debug=1",
            "full=yes",
            "by=size",
            "min-percent=101",
            "width=0",
            "height=-1",
            "unknown=1",
            "pid=%FF",
        ] {
            assert!(read(query).is_none(), "{query}");
        }
        let many = vec!["1"; 5000].join(",");
        assert!(read(&format!("pid={many}")).is_none());
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
