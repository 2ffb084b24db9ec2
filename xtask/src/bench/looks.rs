//! Whether looks at programs that change all the time call blocks lost that are held: none of these programs loses any.

use super::Bench;
use super::budget::Load as _;
use super::child::Running;
use super::figures::{BarFigures, LooksFigures, TurnoverFigures};
use super::heap::look;
use super::loads::{BusyRedis, Redis};
use super::victim::compile;
use crate::shell::{find_program, root};
use anyhow::{Context as _, Result, bail};
use serde_json::{Deserializer, Value};
use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How often each is looked at, and how soon after its start.
const LOOKS: u32 = 100;
const WARM: Duration = Duration::from_secs(5);
/// Between two reports of a trace.
const EVERY_S: u32 = 3;
/// How much longer than its time a trace may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures.
///
/// # Errors
/// When a program or leakscope fails.
pub(super) fn measure(bench: &mut Bench) -> Result<TurnoverFigures> {
    let mut programs = vec![looks(
        bench,
        "turnover.c",
        &mut Command::new(compile("turnover")?),
    )?];
    let script = root().join("tests/programs/turnover.py");
    if let Some(python) = find_program("python3") {
        programs.push(looks(
            bench,
            "turnover.py",
            Command::new(python).arg(script),
        )?);
    }
    if find_program("redis-server").is_some() {
        programs.push(traced(bench)?);
    }
    let bars = programs.iter().map(|looks| {
        let what = format!("looks at {} that called a held block lost", looks.program);
        BarFigures::at_most(what, f64::from(looks.wrong), 0.0)
    });
    Ok(TurnoverFigures {
        bars: bars.collect(),
        programs,
    })
}

/// Looks at a program again and again.
fn looks(bench: &Bench, name: &str, command: &mut Command) -> Result<LooksFigures> {
    let mut running = Running::start(command, &bench.folder().join("victim.log"))?;
    thread::sleep(WARM);
    let mut figures = LooksFigures {
        program: name.to_owned(),
        ..LooksFigures::default()
    };
    for _ in 0..LOOKS {
        let found = look(bench, running.pid())?.report;
        let blocks = found.get("blocks").and_then(Value::as_u64);
        let groups = found.get("groups").and_then(Value::as_array);
        let lost = groups
            .context("no groups")?
            .iter()
            .map(|group| (name_of(group), number(group, "unreachable_objects")));
        figures.add(bench, blocks.unwrap_or(0), lost);
    }
    if running.ended()?.is_some() {
        bail!("{name} has ended: {}", bench.log("victim.log"));
    }
    Ok(figures)
}

/// Traces Redis under full load, whose allocator no walk knows, and looks at what is said of its blocks in each report.
fn traced(bench: &Bench) -> Result<LooksFigures> {
    let redis: BusyRedis = Redis::start(bench.folder())?.under_load()?;
    thread::sleep(WARM);
    let length = LOOKS * EVERY_S;
    bench.say(&format!("redis is traced for {length} s"));
    let mut command = Command::new(&bench.leakscope);
    command.args(["trace", "--tier", "exact", "--top", "100000"]);
    command.args(["--format", "json", "--every", &format!("{EVERY_S}s")]);
    command.args(["--for", &format!("{length}s")]);
    command.args(redis.target());
    let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let ended = tracer.end(Duration::from_secs(u64::from(length)) + PATIENCE)?;
    if !ended.success() {
        bail!("leakscope failed: {}", bench.log("tracer.log"));
    }
    let mut text = String::new();
    while let Ok(Some((_, line))) = tracer.line_if_any(Duration::ZERO) {
        text.push_str(&line);
        text.push('\n');
    }
    let mut figures = LooksFigures {
        program: "redis, traced".to_owned(),
        ..LooksFigures::default()
    };
    for report in Deserializer::from_str(&text).into_iter::<Value>() {
        let report = report.context("no report")?;
        let sites = report.get("sites").and_then(Value::as_array);
        let sites: Vec<(&Value, &Value)> = sites
            .context("no sites")?
            .iter()
            .filter_map(|site| Some((site, site.get("reachability")?)))
            .filter(|(_, found)| found.is_object())
            .collect();
        if sites.is_empty() {
            // There was not time enough.
            continue;
        }
        let blocks = sites.iter().map(|(_, found)| number(found, "checked"));
        let lost = sites
            .iter()
            .map(|(site, found)| (leaf_of(site), number(found, "unreachable")));
        figures.add(bench, blocks.sum(), lost);
    }
    if figures.looks == 0 {
        bail!("no report says whether blocks are reachable");
    }
    Ok(figures)
}

impl LooksFigures {
    fn add(&mut self, bench: &Bench, blocks: u64, lost: impl Iterator<Item = (String, u64)>) {
        self.looks += 1;
        self.blocks = blocks;
        let lost: BTreeMap<String, u64> = lost.filter(|(_, objects)| *objects > 0).collect();
        if !lost.is_empty() {
            self.wrong += 1;
            bench.say(&format!(
                "look {} at {} called lost: {lost:?}",
                self.looks, self.program
            ));
        }
        if self.looks.is_multiple_of(10) {
            bench.say(&format!(
                "looks at {}: {}, {} wrong",
                self.program, self.looks, self.wrong
            ));
        }
    }
}

fn number(of: &Value, name: &str) -> u64 {
    of.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn name_of(group: &Value) -> String {
    format!(
        "{} of {} B",
        group
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default(),
        number(group, "block_bytes")
    )
}

fn leaf_of(site: &Value) -> String {
    let frames = site.get("frames").and_then(Value::as_array);
    let names: Vec<&str> = frames
        .into_iter()
        .flatten()
        .filter_map(|frame| frame.get("function")?.as_str())
        .take(4)
        .collect();
    names.join(" < ")
}
