//! What a guest reports over the serial line: which tests passed, which failed and with what words, what the verifier walked.
//! Knows nothing of how the guest is made or booted.

use super::boot::End;
use super::guest::MARK;
use crate::bpf::verified::{Counts, Measured, parse};
use crate::test::SKIPPED;
use std::collections::BTreeMap;
use std::time::Duration;

/// So many of the last lines of a test that failed are shown again at the end, where they are looked for.
const LAST_LINES: usize = 25;

/// What the guest reported so far.
#[derive(Default)]
pub(super) struct Results {
    kernel: Option<String>,
    running: Option<String>,
    /// What the test that runs wrote.
    lines: Vec<String>,
    /// The tests that ended, and whether one passed at last.
    ended: BTreeMap<String, bool>,
    /// What was written by those that failed.
    failed: Vec<(String, Vec<String>)>,
    /// The reasons for which tests were skipped.
    pub(super) skipped: Vec<String>,
    verified: Counts,
    done: bool,
}

impl Results {
    /// Takes a line; gives what is to be shown for it.
    pub(super) fn heed(&mut self, line: &str) -> Option<String> {
        let Some(words) = line.strip_prefix(MARK) else {
            return self.heed_test(line);
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        match words.as_slice() {
            ["kernel", release] => {
                self.kernel = Some((*release).to_owned());
                Some(format!("booted Linux {release}"))
            }
            ["verified", ..] => {
                self.verified.extend(parse(line));
                None
            }
            ["begin", binary, test] => {
                self.running = Some(format!("{binary} {test}"));
                self.lines.clear();
                None
            }
            ["end", binary, test, status] => {
                let name = format!("{binary} {test}");
                let passed = *status == "0";
                self.running = None;
                let verdict = if passed { "ok    " } else { "FAILED" };
                let text = format!("{verdict} {name}");
                if !passed {
                    self.failed.push((name.clone(), self.lines.clone()));
                }
                self.ended.insert(name, passed);
                Some(text)
            }
            ["done"] => {
                self.done = true;
                None
            }
            _ => Some(line.to_owned()),
        }
    }

    /// A line that a test wrote. Of those that pass only what was skipped is shown.
    fn heed_test(&mut self, line: &str) -> Option<String> {
        if let Some((_, reason)) = line.split_once(SKIPPED) {
            self.skipped.push(reason.trim().to_owned());
            return Some(line.to_owned());
        }
        if line.is_empty() {
            return None;
        }
        if self.running.is_none() {
            return Some(line.to_owned());
        }
        self.lines.push(line.to_owned());
        None
    }

    /// Whether the guest came to the end of its script.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// What the verifier walked, if the machine came so far.
    pub(super) fn measured(self) -> Option<Measured> {
        let counts = self.verified;
        self.kernel.map(|release| Measured { release, counts })
    }

    /// What those wrote that failed, and the one that did not end.
    pub(super) fn again(&self) -> Vec<String> {
        let unfinished = self.running.iter().map(|name| (name, &self.lines));
        let mut shown = Vec::new();
        for (name, lines) in self
            .failed
            .iter()
            .map(|(name, lines)| (name, lines))
            .chain(unfinished)
        {
            let end = match self.ended.get(name) {
                Some(true) => "failed once and passed when it was tried again",
                Some(false) => "failed",
                None => "did not end",
            };
            shown.push(format!("--- {name} {end}; its last lines:"));
            let skipped = lines.len().saturating_sub(LAST_LINES);
            shown.extend(lines.iter().skip(skipped).cloned());
        }
        shown
    }

    /// What went wrong, if anything, with so many tests to be run.
    pub(super) fn complaints(&self, tests: usize, end: &End, timeout: Duration) -> Vec<String> {
        let mut complaints: Vec<String> = self
            .ended
            .iter()
            .filter(|(_, passed)| !**passed)
            .map(|(name, _)| format!("{name} failed"))
            .collect();
        if self.done {
            // Whatever is missing then, the guest's script is at fault.
            let run = self.ended.len();
            if run != tests {
                complaints.push(format!("{run} of {tests} tests ran"));
            }
            return complaints;
        }
        let when = match (&self.kernel, &self.running) {
            (None, _) => "before its first program ran".to_owned(),
            (_, Some(test)) => format!("in {test}"),
            (_, None) => "between two tests".to_owned(),
        };
        complaints.push(match end {
            End::TimedOut => format!("still running after {} s, {when}", timeout.as_secs()),
            End::Off => format!("the machine went off {when}"),
        });
        complaints
    }
}

#[cfg(test)]
mod tests {
    use super::{End, Results};
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(9);

    fn heeded(lines: &[&str]) -> Results {
        let mut results = Results::default();
        for line in lines {
            results.heed(line);
        }
        results
    }

    fn complaints(lines: &[&str], end: &End) -> Vec<String> {
        heeded(lines).complaints(2, end, LIMIT)
    }

    #[test]
    fn everything_passed_is_no_complaint() {
        let lines = [
            "##leakscope kernel 6.1.0",
            "##leakscope begin a x",
            "test x ... ok",
            "##leakscope end a x 0",
            "##leakscope begin b y",
            "##leakscope end b y 0",
            "##leakscope done",
        ];
        assert_eq!(complaints(&lines, &End::Off), Vec::<String>::new());
        assert_eq!(heeded(&lines).again(), Vec::<String>::new());
    }

    #[test]
    fn failures_and_early_ends_are_complaints() {
        let failed = [
            "##leakscope kernel 6.1",
            "##leakscope begin a x",
            "##leakscope end a x 101",
            "##leakscope begin b y",
        ];
        assert_eq!(
            complaints(&failed, &End::TimedOut),
            ["a x failed", "still running after 9 s, in b y"]
        );
        assert_eq!(
            complaints(&[], &End::Off),
            ["the machine went off before its first program ran"]
        );
        let incomplete = [
            "##leakscope kernel 6.1",
            "##leakscope begin a x",
            "##leakscope end a x 0",
            "##leakscope done",
        ];
        assert_eq!(complaints(&incomplete, &End::Off), ["1 of 2 tests ran"]);
    }

    #[test]
    fn a_test_that_passes_when_it_is_tried_again_is_told_of() {
        let lines = [
            "##leakscope kernel 6.1",
            "##leakscope begin a x",
            "left: 1",
            "##leakscope end a x 101",
            "##leakscope begin a x",
            "##leakscope end a x 0",
            "##leakscope begin b y",
            "##leakscope end b y 0",
            "##leakscope done",
        ];
        assert_eq!(complaints(&lines, &End::Off), Vec::<String>::new());
        assert_eq!(
            heeded(&lines).again(),
            [
                "--- a x failed once and passed when it was tried again; its last lines:",
                "left: 1"
            ]
        );
    }

    #[test]
    fn what_the_verifier_walked_is_collected() {
        let mut results = Results::default();
        for line in [
            "##leakscope verified   ok  probe  accepted; instructions verified: enter 5, exit 6",
            "##leakscope verified   ok  probe  accepted; instructions verified: release 7",
        ] {
            assert_eq!(results.heed(line), None);
        }
        assert_eq!(
            results.verified.into_iter().collect::<Vec<_>>(),
            [
                ("enter".to_owned(), 5),
                ("exit".to_owned(), 6),
                ("release".to_owned(), 7)
            ]
        );
    }

    #[test]
    fn what_was_skipped_is_collected() {
        let results = heeded(&["test a ... SKIPPED: no musl-gcc"]);
        assert_eq!(results.skipped, ["no musl-gcc"]);
    }
}
