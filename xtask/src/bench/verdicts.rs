//! What leakscope says of programs whose truth is known: `behaviours.c`, `.cpp` and `.py` of `tests/programs`, and leaks of released software
//! (`released.sh`), all of their behaviours at once, watched for a minute from their first block on, and for another minute in the middle of
//! their lives.

use super::Bench;
use super::child::Running;
use super::victim::{compile, compile_cpp};
use crate::shell::{self, root};
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fmt;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How long a behaviour is watched.
const WATCHED: Duration = Duration::from_secs(60);
/// Until then leakscope has attached to all; those that are watched from their start wait for so long.
const ATTACHED: Duration = Duration::from_secs(5);
/// How long the others run before.
const HEAD_START: Duration = Duration::from_secs(20);
/// How long attaching to some hundred processes and leaving them may take beside.
const PATIENCE: Duration = Duration::from_secs(120);

/// The least share of the leaks that must be named, in percent.
const NAMED: f64 = 95.0;

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Verdicts {
    rows: Vec<Row>,
}

/// A behaviour.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// Whether it leaks.
    leaks: bool,
    what: String,
    from_start: Said,
    in_the_middle: Said,
}

/// What was said of a behaviour.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Said {
    /// Of the site that decides: one that is called leaking, else the one with the most bytes.
    verdict: String,
    reason: String,
    /// A site is called leaking that does not leak.
    wrongly_leaking: bool,
    /// A site that leaks is called a plateau.
    wrongly_plateau: bool,
}

/// A behaviour as its program lists it.
struct Behaviour {
    /// The program, with the arguments before the behaviour's name.
    program: Vec<OsString>,
    name: String,
    leaks: bool,
    what: String,
}

#[derive(Deserialize)]
struct Report {
    sites: Vec<Site>,
    losses: std::collections::BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Site {
    pid: u32,
    inuse_objects: u64,
    verdict: String,
    verdict_reason: String,
    frames: Vec<Frame>,
}

#[derive(Deserialize)]
struct Frame {
    function: Option<String>,
}

impl Site {
    /// Whether its blocks are by the program's own word never freed.
    fn is_a_leak(&self, behaviour: &Behaviour) -> bool {
        behaviour.leaks
            && !self
                .frames
                .iter()
                .any(|frame| frame.function.as_deref() == Some("other"))
    }
}

/// Measures.
///
/// # Errors
/// When the program or leakscope fails.
pub(super) fn measure(bench: &mut Bench) -> Result<Verdicts> {
    let mut behaviours = Vec::new();
    for program in programs(bench)? {
        let list = shell::capture(started_by(&program).arg("list"))?;
        for line in list.lines() {
            match behaviour(&program, line).with_context(|| format!("{line:?} is no behaviour"))? {
                Listed::There(behaviour) => behaviours.push(behaviour),
                Listed::Missing(note) => bench.note(format!("verdicts: NOT MEASURED: {note}")),
            }
        }
    }
    bench.say(&format!(
        "verdicts: {} behaviours, watched from their start",
        behaviours.len()
    ));
    let from_start = watch(bench, &behaviours, ATTACHED, Duration::ZERO)?;
    bench.say("verdicts: the same, watched in the middle");
    let in_the_middle = watch(bench, &behaviours, Duration::ZERO, HEAD_START)?;
    let rows = behaviours
        .into_iter()
        .zip(from_start.into_iter().zip(in_the_middle))
        .map(|(behaviour, (from_start, in_the_middle))| Row {
            name: behaviour.name,
            leaks: behaviour.leaks,
            what: behaviour.what,
            from_start,
            in_the_middle,
        })
        .collect();
    Ok(Verdicts { rows })
}

/// The programs; what this machine lacks for one is noted.
fn programs(bench: &mut Bench) -> Result<Vec<Vec<OsString>>> {
    let source = |name: &str| root().join("tests/programs").join(name).into_os_string();
    let mut programs = vec![vec![compile("behaviours")?.into_os_string()]];
    match compile_cpp("behaviours_cpp", "behaviours.cpp") {
        Ok(path) => programs.push(vec![path.into_os_string()]),
        Err(why) => bench.note(format!("verdicts: NOT MEASURED: behaviours.cpp: {why:#}")),
    }
    // The distribution's, where there are several.
    let python = std::path::PathBuf::from("/usr/bin/python3");
    let python = if python.exists() {
        Some(python)
    } else {
        shell::find_program("python3")
    };
    match python {
        Some(python) => programs.push(vec![python.into_os_string(), source("behaviours.py")]),
        None => bench.note("verdicts: NOT MEASURED: behaviours.py: it takes python3".to_owned()),
    }
    match shell::find_program("bash") {
        Some(bash) => programs.push(vec![bash.into_os_string(), source("released.sh")]),
        None => bench.note("verdicts: NOT MEASURED: released.sh: it takes bash".to_owned()),
    }
    Ok(programs)
}

/// A command that begins like this.
fn started_by(program: &[OsString]) -> Command {
    let mut words = program.iter();
    let mut command = Command::new(words.next().map_or_else(OsString::new, OsString::clone));
    command.args(words);
    command
}

/// A line of a program's list.
enum Listed {
    There(Behaviour),
    /// What it is and what it takes.
    Missing(String),
}

/// Parses a line of a program's list.
fn behaviour(program: &[OsString], line: &str) -> Option<Listed> {
    let mut fields = line.split('\t');
    let (name, truth, what) = (fields.next()?, fields.next()?, fields.next()?);
    let leaks = match truth {
        "leak" => true,
        "bounded" => false,
        "missing" => return Some(Listed::Missing(format!("{name}: {what}"))),
        _ => return None,
    };
    Some(Listed::There(Behaviour {
        program: program.to_vec(),
        name: name.to_owned(),
        leaks,
        what: what.to_owned(),
    }))
}

/// Runs all behaviours, which wait first, and traces them after the head start.
fn watch(
    bench: &mut Bench,
    behaviours: &[Behaviour],
    wait: Duration,
    head_start: Duration,
) -> Result<Vec<Said>> {
    let log = bench.folder().join("behaviour.log");
    let wait_s = wait.as_secs().to_string();
    let mut running: Vec<Running> = behaviours
        .iter()
        .map(|behaviour| {
            Running::start(
                started_by(&behaviour.program).args([behaviour.name.as_str(), &wait_s]),
                &log,
            )
        })
        .collect::<Result<_>>()?;
    thread::sleep(head_start);
    let pids: Vec<String> = running.iter().map(|one| one.pid().to_string()).collect();
    let path = bench.folder().join("verdicts.json");
    let seconds = (WATCHED + wait).as_secs();
    let mut command = Command::new(&bench.leakscope);
    command
        .args([
            "trace", "--tier", "exact", "--format", "json", "--top", "1000000",
        ])
        .args(["--for", &format!("{seconds}s"), "-p", &pids.join(","), "-o"])
        .arg(&path);
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let status = tracer.end(WATCHED + wait + PATIENCE)?;
    if !status.success() {
        bail!("leakscope: {status}: {}", bench.log("tracer.log"));
    }
    for one in &mut running {
        one.end(PATIENCE)?;
    }
    let report: Report = serde_json::from_slice(&shell::read(&path)?)
        .context("leakscope's report is not by the contract")?;
    let lost: u64 = report.losses.values().sum();
    if lost > 0 {
        bench.note(format!(
            "verdicts: {lost} events were lost: {:?}",
            report.losses
        ));
    }
    Ok(behaviours
        .iter()
        .zip(&running)
        .map(|(behaviour, one)| said(behaviour, one.pid(), &report))
        .collect())
}

/// What a report says of a behaviour.
fn said(behaviour: &Behaviour, pid: u32, report: &Report) -> Said {
    let sites: Vec<&Site> = report.sites.iter().filter(|site| site.pid == pid).collect();
    let leaking = |site: &&&Site| site.verdict == "leaking";
    let decides = sites
        .iter()
        .find(|site| leaking(site) && site.is_a_leak(behaviour))
        .or_else(|| sites.iter().find(leaking))
        .or_else(|| sites.iter().find(|site| site.inuse_objects > 0))
        .or(sites.first());
    let Some(decides) = decides else {
        return Said {
            verdict: "insufficient-data".to_owned(),
            reason: "it allocated nothing while it was watched".to_owned(),
            ..Said::default()
        };
    };
    Said {
        verdict: decides.verdict.clone(),
        reason: decides.verdict_reason.clone(),
        wrongly_leaking: sites
            .iter()
            .filter(leaking)
            .any(|site| !site.is_a_leak(behaviour)),
        // A site that leaks has more than the few blocks of a start.
        wrongly_plateau: behaviour.leaks
            && decides.verdict != "leaking"
            && sites
                .iter()
                .any(|site| site.verdict == "plateau" && site.is_a_leak(behaviour)),
    }
}

impl Verdicts {
    fn said(&self, leaks: bool) -> impl Iterator<Item = &Said> {
        self.rows
            .iter()
            .filter(move |row| row.leaks == leaks)
            .flat_map(|row| [&row.from_start, &row.in_the_middle])
    }

    /// How many leaks were named, of how many.
    fn named(&self) -> (usize, usize) {
        let named = self.said(true).filter(|said| said.verdict == "leaking");
        (named.count(), self.said(true).count())
    }

    fn wrongly(&self, wrongly: fn(&Said) -> bool) -> usize {
        self.said(true)
            .chain(self.said(false))
            .filter(|said| wrongly(said))
            .count()
    }

    /// The bars that are not kept, a line each.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let (named, leaks) = self.named();
        if (named as f64) < NAMED / 100.0 * leaks as f64 {
            broken.push(format!("verdicts: {named} of {leaks} leaks were named"));
        }
        let falsely = self.wrongly(|said| said.wrongly_leaking);
        if falsely > 0 {
            broken.push(format!(
                "verdicts: {falsely} times leaking where nothing leaks"
            ));
        }
        let plateaus = self.wrongly(|said| said.wrongly_plateau);
        if plateaus > 0 {
            broken.push(format!("verdicts: {plateaus} leaks were called a plateau"));
        }
        broken
    }
}

/// A table in Markdown.
impl fmt::Display for Verdicts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "| behaviour | truth | watched for 60 s from its start | 60 s in the middle | evidence, from its start |"
        )?;
        writeln!(out, "|---|---|---|---|---|")?;
        for row in &self.rows {
            let truth = if row.leaks { "leak" } else { "bounded" };
            let mark = |said: &Said| {
                if said.wrongly_leaking || said.wrongly_plateau {
                    " (wrong)"
                } else if row.leaks && said.verdict != "leaking" {
                    " (not named)"
                } else {
                    ""
                }
            };
            writeln!(
                out,
                "| {}: {} | {truth} | {}{} | {}{} | {} |",
                row.name.replace('_', "-"),
                row.what,
                row.from_start.verdict,
                mark(&row.from_start),
                row.in_the_middle.verdict,
                mark(&row.in_the_middle),
                row.from_start.reason,
            )?;
        }
        let (named, leaks) = self.named();
        let bounded = self.said(false).count();
        writeln!(
            out,
            "\n{} behaviours, each watched twice. Leaks named: {named} of {leaks} ({:.1} %; at least {NAMED} %). Leaking where nothing \
             leaks: {} of {bounded} (none). Leaks called a plateau: {} (none).",
            self.rows.len(),
            100.0 * named as f64 / leaks.max(1) as f64,
            self.wrongly(|said| said.wrongly_leaking),
            self.wrongly(|said| said.wrongly_plateau),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Behaviour, Frame, Listed, Report, Row, Said, Site, Verdicts, behaviour, said};

    fn site(function: &str, verdict: &str) -> Site {
        Site {
            pid: 7,
            inuse_objects: 1,
            verdict: verdict.to_owned(),
            verdict_reason: String::new(),
            frames: vec![Frame {
                function: Some(function.to_owned()),
            }],
        }
    }

    fn judged(leaks: bool, sites: Vec<Site>) -> Said {
        let behaviour = Behaviour {
            program: Vec::new(),
            name: "one".to_owned(),
            leaks,
            what: String::new(),
        };
        let report = Report {
            sites,
            losses: std::collections::BTreeMap::new(),
        };
        said(&behaviour, 7, &report)
    }

    #[test]
    fn lines_are_read() {
        let leaks = |line| match behaviour(&[], line) {
            Some(Listed::There(one)) => Some(one.leaks),
            _ => None,
        };
        assert_eq!(leaks("a\tleak\tdoes it"), Some(true));
        assert_eq!(leaks("a\tbounded\tdoes not"), Some(false));
        assert!(behaviour(&[], "a\tmaybe\tx").is_none());
        assert!(behaviour(&[], "a").is_none());
        let missing = behaviour(&[], "a\tmissing\tit takes b");
        assert!(matches!(missing, Some(Listed::Missing(note)) if note == "a: it takes b"));
    }

    #[test]
    fn a_wrong_word_breaks_a_bar() {
        let right = judged(
            true,
            vec![site("other", "plateau"), site("grow", "leaking")],
        );
        assert!(!right.wrongly_leaking && !right.wrongly_plateau);
        assert_eq!(right.verdict, "leaking");
        assert!(judged(true, vec![site("other", "leaking")]).wrongly_leaking);
        assert!(judged(false, vec![site("grow", "leaking")]).wrongly_leaking);
        assert!(judged(true, vec![site("grow", "plateau")]).wrongly_plateau);
        let row = |from_start: Said| Verdicts {
            rows: vec![Row {
                name: "one".to_owned(),
                leaks: true,
                what: String::new(),
                in_the_middle: from_start.clone(),
                from_start,
            }],
        };
        assert!(row(right).broken().is_empty());
        assert_eq!(
            row(judged(true, vec![site("grow", "churn")]))
                .broken()
                .len(),
            1
        );
        assert_eq!(
            row(judged(true, vec![site("grow", "plateau")]))
                .broken()
                .len(),
            2
        );
        assert_eq!(
            row(judged(true, vec![site("other", "leaking")]))
                .broken()
                .len(),
            1
        );
    }
}
