//! `fuzz`: the readers of what a traced process controls, fed with damaged input for a bounded time; `fuzz --replay`: with their
//! seeds and some damaged copies of each; `fuzz --whole COUNT`: whole libraries and heaps, damaged, through the reader as it is.
//!
//! The targets in tests/fuzz are libFuzzer's. They are built here with the coverage counters that it needs and no sanitizer: these
//! passes are in stable compilers, and what a sanitizer would find in addition cannot be where no code is unsafe. Overflowing
//! arithmetic and failed debug assertions are crashes. What is found grows in target/fuzz; the seeds are committed and not touched.

use crate::shell::{self, Executable, cargo, root};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

/// What `fuzz` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Seconds for each target
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// No search: the seeds and the same few hundred damaged copies of them each time, built as tests are
    #[arg(long, conflicts_with = "seconds")]
    replay: bool,
    /// So many damaged copies of a library and of a heap, through a reader that the tracer starts
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["seconds", "replay"])]
    whole: Option<u64>,
    /// The targets; all if none is named
    targets: Vec<String>,
}

/// What rustc is told, as libFuzzer's documentation and `cargo fuzz` have it: counters at each edge, a table of their places, and
/// calls at each comparison, so that magic numbers are found.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Only with a target named, the flags spare build scripts and macros.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The longest input, bytes: the smallest real ELF files are about as long, and longer ones are mutated more slowly.
const LONGEST: u32 = 16_384;

/// So many inputs of each target are tried by `--replay`.
const REPLAYED: u32 = 500;

/// Builds the targets and runs each.
///
/// # Errors
/// When one cannot be built, or crashes: the input is kept and named.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(count) = arguments.whole {
        return whole(count);
    }
    let work = shell::target_dir().join("fuzz");
    let mut build = cargo();
    build
        .args(["build", "--manifest-path"])
        .arg(root().join("tests/fuzz/Cargo.toml"))
        .arg("--target-dir");
    if arguments.replay {
        // The dependencies are those that tests are built with.
        build.arg(shell::target_dir());
    } else {
        build
            .arg(&work)
            .args(["--release", "--target", TRIPLE])
            .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"));
    }
    let built = shell::build(&mut build)?;
    let wanted: Vec<_> = built
        .iter()
        .filter(|target| arguments.targets.is_empty() || arguments.targets.contains(&target.name))
        .collect();
    if wanted.is_empty() {
        let names: Vec<&str> = built.iter().map(|target| target.name.as_str()).collect();
        bail!("there is no such target: {}", names.join(", "));
    }
    let mut failed = Vec::new();
    // Two at a time: each is busy with one processor.
    for pair in wanted.chunks(2) {
        let outcomes: Vec<Result<()>> = thread::scope(|scope| {
            let running: Vec<_> = pair
                .iter()
                .map(|target| scope.spawn(|| run(target, &work, arguments)))
                .collect();
            running
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|_| bail!("the thread that ran a target panicked"))
                })
                .collect()
        });
        for outcome in outcomes {
            if let Err(error) = outcome {
                failed.push(format!("{error:#}"));
            }
        }
    }
    if !failed.is_empty() {
        bail!("fuzz:\n  {}", failed.join("\n  "));
    }
    Ok(ExitCode::SUCCESS)
}

/// A program with a heap of many kinds, which waits for its input to end.
const HEAP: &str = "import collections, json, sys\n\
kept = [json.loads('{\"a\": [1, 2.5, \"text\"], \"b\": {\"c\": null}}') for _ in range(3000)]\n\
more = collections.OrderedDict((str(n), bytes(n)) for n in range(2000))\n\
print('ready', flush=True)\n\
sys.stdin.read()";

/// Damages whole libraries and heaps; each says how many readers ended over them, how long the slowest took, and the tracer's memory.
fn whole(count: u64) -> Result<ExitCode> {
    let built = shell::build(cargo().args(["build", "-p", "leakscope", "--bins", "--examples"]))?;
    let path = |name: &str| {
        let found = built.iter().find(|built| built.name == name);
        found
            .map(|built| built.path.clone())
            .with_context(|| format!("{name} was not built"))
    };
    let run = |example: &str, what: &str| -> Result<()> {
        let status = Command::new(path(example)?)
            .arg(path("leakscope")?)
            .args([what, &count.to_string()])
            .status()?;
        if !status.success() {
            bail!("{example} failed ({status})");
        }
        Ok(())
    };
    let library = root().join("tests/fuzz/seeds/library/debug");
    run("mutants", &library.to_string_lossy())?;
    let mut heap = Command::new("python3")
        .args(["-c", HEAP])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start python3")?;
    // It is ready when it has said so.
    if let Some(said) = &mut heap.stdout {
        said.read_exact(&mut [0; 6])?;
    }
    let ran = run("mutant_heaps", &heap.id().to_string());
    drop(heap.stdin.take());
    heap.wait()?;
    ran?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one target on its seeds, and on what was found before where more is to be found.
fn run(target: &Executable, work: &Path, arguments: &Arguments) -> Result<()> {
    let (program, name) = (&target.path, &target.name);
    let crashes = work.join("crashes");
    shell::make_dir(&crashes)?;
    let mut command = Command::new(program);
    // Where libFuzzer writes what it keeps. A replay begins with nothing, or it would try other inputs each time.
    let found = if arguments.replay {
        let replayed = work.join("replayed").join(name);
        if replayed.exists() {
            fs::remove_dir_all(&replayed)
                .with_context(|| format!("cannot remove {}", replayed.display()))?;
        }
        command.args([format!("-runs={REPLAYED}"), "-seed=1".to_owned()]);
        replayed
    } else {
        command.arg(format!("-max_total_time={}", arguments.seconds));
        work.join("found").join(name)
    };
    shell::make_dir(&found)?;
    command.arg(&found);
    let output = command
        .arg(root().join("tests/fuzz/seeds").join(name))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-artifact_prefix={}/{name}-", crashes.display()))
        // An input that takes so long or so much is a defect too: MiB, for all and in one piece; seconds.
        .args(["-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10"])
        .args(["-print_final_stats=1", "-verbosity=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let figure = |what: &str| {
        said.lines()
            .find_map(|line| line.strip_prefix(what))
            .map_or("?", str::trim)
    };
    if output.status.success() {
        println!(
            "{name}: {} inputs, at most {} MiB, no complaint",
            figure("stat::number_of_executed_units:"),
            figure("stat::peak_rss_mb:"),
        );
        return Ok(());
    }
    let lines: Vec<&str> = said.lines().collect();
    for line in lines.iter().skip(lines.len().saturating_sub(40)) {
        println!("{name} | {line}");
    }
    bail!(
        "{name} failed ({}): the input is in {}",
        output.status,
        shell::relative(&crashes)
    )
}
