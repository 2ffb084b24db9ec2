//! How long a report takes over a million blocks and ten thousand sites.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, ReportFigures, Times};
use super::proc;
use super::report_file::ReportFile;
use super::rounds::most_lost;
use super::victim::{Victim, compile};
use anyhow::{Context as _, Result, bail};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// The bar: milliseconds from the question to the report.
const LIMIT_MS: f64 = 250.0;
/// Blocks that the program holds, and the stacks that they come from.
const BLOCKS: u64 = 1_000_000;
const SITES: u64 = 10_000;
/// leakscope's default for `--top` is 20; the others are summed up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures.
///
/// # Errors
/// When the program or leakscope fails, or the report does not hold what the program did.
pub(super) fn measure(bench: &mut Bench) -> Result<ReportFigures> {
    let program = compile("bench_sites")?;
    let mut written = Vec::new();
    let mut ended = Vec::new();
    let mut reports = Vec::new();
    let mut figures = ReportFigures::default();
    for run in 1..=bench.runs {
        bench.say(&format!("report {run}/{}", bench.runs));
        let mut victim = Victim::start(&mut Command::new(&program), bench.folder())?;
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--tier", "exact", "--format", "json", "-p"]);
        command.arg(victim.pid().to_string());
        let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        wait_for_probes(&tracer, bench)?;
        victim.fill()?;
        // The last stacks are read and the once-a-second look is over.
        thread::sleep(Duration::from_millis(500));
        figures.tracer_resident_bytes = proc::memory(tracer.pid()).resident;
        figures.map_bytes = proc::map_bytes(tracer.pid());
        let asked = Instant::now();
        tracer.interrupt()?;
        let mut text = String::new();
        let mut last = asked;
        while let Ok((at, line)) = tracer.line(PATIENCE) {
            text.push_str(&line);
            text.push('\n');
            last = at;
        }
        tracer.end(PATIENCE)?;
        ended.push(asked.elapsed().as_secs_f64() * 1e3);
        written.push((last - asked).as_secs_f64() * 1e3);
        let report = ReportFile::parse(text.as_bytes()).with_context(|| bench.log("tracer.log"))?;
        victim.end()?;
        if report.live_blocks() != BLOCKS || report.site_count() != SITES {
            bail!(
                "the report has {} blocks at {} sites; the program holds {BLOCKS} at {SITES}",
                report.live_blocks(),
                report.site_count()
            );
        }
        reports.push(report);
    }
    figures.blocks = BLOCKS;
    figures.sites = SITES;
    figures.written = Times::of(&written);
    figures.ended = Times::of(&ended);
    figures.lost = most_lost(reports.iter());
    figures.bars = vec![
        BarFigures::at_most("report, ms".into(), figures.written.median_ms, LIMIT_MS),
        BarFigures::at_most(
            "events lost".into(),
            figures.lost.values().sum::<u64>() as f64,
            0.0,
        ),
    ];
    Ok(figures)
}

/// The program does nothing yet that could be felt: waits until leakscope holds its uprobe links, and some time more for
/// tables and filter.
fn wait_for_probes(tracer: &Running, bench: &Bench) -> Result<()> {
    let begun = Instant::now();
    while proc::held(tracer.pid()).uprobe_links == 0 {
        if begun.elapsed() > PATIENCE {
            bail!("leakscope has not attached: {}", bench.log("tracer.log"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(700));
    Ok(())
}
