//! The kinds of kernel link that this kernel has, as `leakscope doctor` finds out, and what a process holds of them.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail};

use crate::tracer::run;

/// The kinds, best first, by their names on the command line and in `doctor`.
const KINDS: [(&str, &str); 3] = [
    ("session", "uprobe-session"),
    ("multi", "uprobe-multi"),
    ("perf", "perf-event"),
];

/// The kinds that a newer kernel would not choose.
pub const DEGRADED: [&str; 2] = ["multi", "perf"];

/// Whether this kernel would choose a better kind of link than this one, which can then be forced.
///
/// # Errors
/// When leakscope does not say, or says what cannot be: that a kernel which has a kind lacks an older one.
pub fn degraded(kind: &str) -> Result<bool> {
    static ANSWERS: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());
    let mut answers = ANSWERS
        .lock()
        .map_err(|_| anyhow!("a test that asked doctor failed"))?;
    if let Some(known) = answers.get(kind) {
        return Ok(*known);
    }
    let answer = ask(kind)?;
    answers.insert(kind.to_owned(), answer);
    Ok(answer)
}

fn ask(kind: &str) -> Result<bool> {
    let chosen = run(&["doctor"])?;
    let Some(best) = KINDS
        .iter()
        .position(|(_, name)| says_links(&chosen.stdout, name, &["ok", "DEGRADED"]))
    else {
        bail!("doctor names no kind of link: {chosen:?}");
    };
    let mut kinds = KINDS.iter().enumerate();
    let Some((asked, (_, name))) = kinds.find(|(_, (short, _))| *short == kind) else {
        bail!("there is no kind of link named {kind}");
    };
    let forced = run(&["doctor", "--links", kind])?;
    let verdicts: &[&str] = match asked.cmp(&best) {
        std::cmp::Ordering::Less => &["MISSING"],
        _ if asked == 0 => &["ok"],
        _ => &["DEGRADED"],
    };
    if !says_links(&forced.stdout, name, verdicts) || (forced.code() == 0) != (asked >= best) {
        bail!("doctor --links {kind} should say {verdicts:?} of {name}: {forced:?}");
    }
    Ok(asked > best)
}

/// Whether mappings are seen at functions of the kernel here, not when it chooses an address.
///
/// # Errors
/// When leakscope does not say.
pub fn mappings_at_functions() -> Result<bool> {
    let said = run(&["doctor"])?;
    let line = said
        .stdout
        .lines()
        .find(|line| line.split_whitespace().nth(1) == Some("mappings"))
        .with_context(|| format!("doctor says nothing of mappings: {said:?}"))?;
    match (
        line.contains("seen at functions"),
        line.contains("found by looking"),
    ) {
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        _ => bail!("doctor says two things: {line}"),
    }
}

/// Whether doctor's line on links gives this kind one of these verdicts.
fn says_links(text: &str, name: &str, verdicts: &[&str]) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().take(3).collect();
        matches!(words.as_slice(), [verdict, "links", kind]
            if verdicts.contains(verdict) && kind.trim_end_matches(':') == name)
    })
}
