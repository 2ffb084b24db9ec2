//! What the environment says of debuginfod: the variables of debuginfod-find(1).

use std::{ffi::OsString, time::Duration};

/// How long a server may say nothing, unless something else is asked for (debuginfod-find(1)).
const TIMEOUT: Duration = Duration::from_secs(90);

/// How long a result waits for files, unless something else is asked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long fetching one file may take while nobody waits for it.
const LONGEST: Duration = Duration::from_secs(600);

/// The largest file that is fetched, unless something else is asked for: browsers have debug files of more than a gigabyte.
const LARGEST: u64 = 2 << 30;

/// Which servers are asked, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebuginfodSettings {
    /// Servers, in the order in which they are asked, without a slash at the end.
    pub urls: Vec<String>,
    /// How long a server may say nothing.
    pub timeout: Duration,
    /// How long a result may wait, if that was said.
    pub maxtime: Option<Duration>,
    /// The largest file that is fetched, bytes.
    pub largest: u64,
}

impl DebuginfodSettings {
    /// Reads the variables; `None` where no server is named.
    #[must_use]
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Option<Self> {
        let text = |name| Some(variable(name)?.to_string_lossy().into_owned());
        // Zero, and what is no number, is what is said if nothing is said.
        let number =
            |name| -> Option<u64> { text(name)?.trim().parse().ok().filter(|number| *number > 0) };
        // Words that are no address are options of the libraries of elfutils.
        let urls: Vec<String> = text("DEBUGINFOD_URLS")?
            .split_whitespace()
            .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
            .map(|word| word.trim_end_matches('/').to_owned())
            .collect();
        (!urls.is_empty()).then(|| Self {
            urls,
            timeout: number("DEBUGINFOD_TIMEOUT").map_or(TIMEOUT, Duration::from_secs),
            maxtime: number("DEBUGINFOD_MAXTIME").map(Duration::from_secs),
            largest: number("DEBUGINFOD_MAXSIZE").unwrap_or(LARGEST),
        })
    }

    /// How long a result may wait for files, all in all.
    pub(super) fn patience(&self) -> Duration {
        self.maxtime.unwrap_or(PATIENCE)
    }

    /// How long fetching one file may take.
    pub(super) fn longest(&self) -> Duration {
        self.maxtime.unwrap_or(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::DebuginfodSettings;
    use std::time::Duration;

    fn read(variables: &[(&str, &str)]) -> Option<DebuginfodSettings> {
        DebuginfodSettings::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).into())
        })
    }

    #[test]
    fn nothing_is_asked_unless_a_server_is_named() {
        assert_eq!(read(&[("DEBUGINFOD_TIMEOUT", "5")]), None);
        assert_eq!(read(&[("DEBUGINFOD_URLS", "")]), None);
        assert_eq!(
            read(&[("DEBUGINFOD_URLS", "ima:enforcing file:///x")]),
            None
        );
    }

    #[test]
    fn variables_are_those_of_other_tools() {
        let settings = read(&[
            (
                "DEBUGINFOD_URLS",
                " https://a.example/  ima:ignore http://b:8002",
            ),
            ("DEBUGINFOD_TIMEOUT", "5"),
            ("DEBUGINFOD_MAXTIME", "0"),
            ("DEBUGINFOD_MAXSIZE", "1000"),
        ]);
        assert_eq!(
            settings,
            Some(DebuginfodSettings {
                urls: vec!["https://a.example".to_owned(), "http://b:8002".to_owned()],
                timeout: Duration::from_secs(5),
                maxtime: None,
                largest: 1000,
            })
        );
    }
}
