//! What tracing within the default budget takes from servers under full load, and how late their slowest answers become.
//!
//! Each load runs all the time; slices with and without leakscope beside it alternate. A slice begins when leakscope has had time to learn
//! what the load costs.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, BudgetFigures, BudgetLoad, median};
use super::victim::{Victim, compile};
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a slice lasts.
const SLICE: Duration = Duration::from_secs(6);
/// How long leakscope is there before one begins.
const SETTLE: Duration = Duration::from_secs(3);
/// The bars: percent of the throughput, milliseconds of the 99.9th percentile.
const LOSS_PERCENT: f64 = 2.0;
const LATER_MS: f64 = 10.0;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a load did in a slice.
struct Sample {
    per_second: f64,
    /// The 99.9th percentile of its answers' times, where it is a server.
    p999_ms: Option<f64>,
}

/// Something under full load.
trait Load {
    /// What leakscope is to trace.
    fn target(&self) -> Vec<String>;

    /// Measures a slice.
    fn slice(&mut self) -> Result<Sample>;
}

/// Starts a load, with a folder for its files.
type Start = fn(&Path) -> Result<Box<dyn Load>>;

/// Measures each load that this machine has.
///
/// # Errors
/// When leakscope fails; a load that is missing is a note.
pub(super) fn measure(bench: &mut Bench) -> Result<BudgetFigures> {
    let mut figures = BudgetFigures::default();
    let folder = bench.folder().to_owned();
    let loads: [(&str, Start); 4] = [
        ("redis-benchmark, set", |folder| {
            Ok(Box::new(Redis::start(folder)?))
        }),
        ("pgbench, select only", |folder| {
            Ok(Box::new(Postgres::start(folder)?))
        }),
        ("CPython, a loop that allocates", |folder| {
            Ok(Box::new(python(folder)?))
        }),
        ("pairs of malloc and free", |folder| {
            Ok(Box::new(pairs(folder)?))
        }),
    ];
    for (name, start) in loads {
        match start(&folder) {
            Ok(mut load) => {
                let measured = alternate(bench, name, &mut *load)?;
                figures.bars.push(BarFigures::at_most(
                    format!("{name}: throughput lost, %"),
                    measured.loss_percent,
                    LOSS_PERCENT,
                ));
                if let Some(later) = measured.p999_later_ms {
                    figures.bars.push(BarFigures::at_most(
                        format!("{name}: 99.9th percentile later by, ms"),
                        later,
                        LATER_MS,
                    ));
                }
                figures.loads.push(measured);
            }
            Err(error) => bench.note(format!("{name}: left out: {error:#}")),
        }
    }
    Ok(figures)
}

/// Slices without and with leakscope, in turn.
fn alternate(bench: &Bench, name: &str, load: &mut dyn Load) -> Result<BudgetLoad> {
    // Caches fill.
    load.slice()?;
    let mut alone = Vec::new();
    let mut traced = Vec::new();
    let mut ratios = Vec::new();
    let mut later = Vec::new();
    for run in 1..=bench.runs {
        bench.say(&format!("budget: {name} {run}/{}", bench.runs));
        let without = load.slice()?;
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--format", "json", "-o"]);
        command.arg(bench.folder().join("budget.json"));
        command.args(load.target());
        let mut tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        thread::sleep(SETTLE);
        let with = load.slice()?;
        tracer.interrupt()?;
        if !tracer.end(PATIENCE)?.success() {
            bail!("leakscope failed: {}", bench.log("tracer.log"));
        }
        alone.push(without.per_second);
        traced.push(with.per_second);
        ratios.push(with.per_second / without.per_second);
        later.extend(
            with.p999_ms
                .zip(without.p999_ms)
                .map(|(with, without)| with - without),
        );
    }
    Ok(BudgetLoad {
        name: name.to_owned(),
        per_second: median(&alone),
        traced_per_second: median(&traced),
        loss_percent: (1.0 - median(&ratios)) * 100.0,
        loss_percent_of_each_run: ratios.iter().map(|ratio| (1.0 - ratio) * 100.0).collect(),
        p999_later_ms: (!later.is_empty()).then(|| median(&later)),
    })
}

/// A program that counts what it does, and answers `?` (tests/programs/bench.h).
struct Counting(Victim);

impl Load for Counting {
    fn target(&self) -> Vec<String> {
        vec!["-p".to_owned(), self.0.pid().to_string()]
    }

    fn slice(&mut self) -> Result<Sample> {
        let before = self.0.progress()?;
        thread::sleep(SLICE);
        let done = self.0.progress()? - before;
        Ok(Sample {
            per_second: done.operations_per_second(),
            p999_ms: None,
        })
    }
}

/// The tight loop of pairs.
fn pairs(folder: &Path) -> Result<Counting> {
    let program = compile("bench_pair")?;
    Ok(Counting(Victim::start(&mut Command::new(program), folder)?))
}

/// An interpreter that makes and drops lists, strings and dictionaries.
const PYTHON: &str = r"
import os, sys, threading, time
done = 0
def work():
    global done
    kept = {}
    while True:
        for i in range(1000):
            kept[i % 97] = [str(i) * 3, {'a': i, 'b': bytes(700 + i)}]
        done += 1000
threading.Thread(target=work, daemon=True).start()
print('ready', os.getpid(), flush=True)
for line in sys.stdin:
    print(done, time.monotonic_ns(), time.process_time_ns(), flush=True)
";

fn python(folder: &Path) -> Result<Counting> {
    let python = shell::find_program("python3").context("there is no python3")?;
    let mut command = Command::new(python);
    command.args(["-c", PYTHON]);
    Ok(Counting(Victim::start(&mut command, folder)?))
}

/// Runs a client to its end; what it printed.
fn client(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until a client's question is answered.
fn wait_until_it_answers(mut question: impl FnMut() -> Result<String>) -> Result<()> {
    let begun = Instant::now();
    loop {
        match question() {
            Ok(_) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Redis, and its own benchmark.
pub(super) struct Redis {
    server: Running,
    socket: PathBuf,
    requests: u64,
}

impl Redis {
    pub(super) fn pid(&self) -> u32 {
        self.server.pid()
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn start(folder: &Path) -> Result<Self> {
        let program =
            shell::find_program("redis-server").context("Redis is not installed (redis-server)")?;
        let socket = folder.join("redis.sock");
        let mut command = Command::new(program);
        command.args(["--port", "0", "--save", "", "--dir"]);
        command.arg(folder).arg("--unixsocket").arg(&socket);
        let server = Running::start(&mut command, &folder.join("redis.log"))?;
        let mut redis = Self {
            server,
            socket,
            requests: 20_000,
        };
        wait_until_it_answers(|| {
            let mut command = Command::new("redis-cli");
            client(command.arg("-s").arg(&redis.socket).arg("ping"))
        })?;
        // As many as fill a slice.
        let pace = redis.slice()?.per_second;
        redis.requests = (pace * SLICE.as_secs_f64()) as u64;
        Ok(redis)
    }
}

impl Load for Redis {
    fn target(&self) -> Vec<String> {
        vec!["-p".to_owned(), self.server.pid().to_string()]
    }

    fn slice(&mut self) -> Result<Sample> {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(&self.socket);
        command.args(["-t", "set", "-r", "100000", "-d", "100", "-c", "50", "-n"]);
        command.arg(self.requests.to_string());
        let text = client(&mut command)?;
        let per_second = number_before(&text, " requests per second")
            .with_context(|| format!("redis-benchmark said {text}"))?;
        // The first line of the distribution that is not below.
        let p999_ms = text.lines().find_map(|line| {
            let (percent, rest) = line.split_once("% <= ")?;
            let percent: f64 = percent.trim().parse().ok()?;
            let time = rest.split_whitespace().next()?;
            (percent >= 99.9).then(|| time.parse().ok())?
        });
        Ok(Sample {
            per_second,
            p999_ms,
        })
    }
}

/// The number that stands before some words.
fn number_before(text: &str, words: &str) -> Option<f64> {
    let (before, _) = text.split_once(words)?;
    before.split_whitespace().next_back()?.parse().ok()
}

/// PostgreSQL, and its own benchmark.
pub(super) struct Postgres {
    server: Running,
    programs: PathBuf,
    folder: PathBuf,
}

impl Postgres {
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let programs = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
            .find(|programs| programs.join("pgbench").exists())
            .context("PostgreSQL is not installed (postgresql-15)")?;
        // It refuses to run as root, and its user must reach the folder.
        let folder = Path::new("/run").join(format!(
            "leakscope-{}",
            folder.file_name().unwrap_or_default().to_string_lossy()
        ));
        shell::make_dir(&folder)?;
        client(Command::new("chown").arg("postgres").arg(&folder))?;
        let data = folder.join("data");
        let as_postgres = |program: &str| {
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--init-groups",
                    "--",
                ])
                .arg(programs.join(program))
                .arg("-D")
                .arg(&data);
            command
        };
        client(as_postgres("initdb").args(["--no-sync", "-A", "trust", "-U", "postgres"]))?;
        let mut command = as_postgres("postgres");
        command.arg("-k").arg(&folder);
        command.args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let server = Running::start(&mut command, &folder.join("log"))?;
        let postgres = Self {
            server,
            programs,
            folder,
        };
        wait_until_it_answers(|| {
            let mut command = postgres.client("pgbench");
            client(command.args(["-q", "-i", "-s", "5", "postgres"]))
        })?;
        Ok(postgres)
    }

    pub(super) fn client(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(["-U", "postgres", "-h"])
            .arg(&self.folder)
            .current_dir(&self.folder);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its fast shutdown, which ends the sessions; it may be gone already.
        if self.server.interrupt().is_ok() {
            let _ = self.server.end(PATIENCE);
        }
        // A leftover in /run harms nobody.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Load for Postgres {
    fn target(&self) -> Vec<String> {
        // The sessions come and go.
        vec!["--comm".to_owned(), "postgres".to_owned()]
    }

    fn slice(&mut self) -> Result<Sample> {
        let seconds = SLICE.as_secs().to_string();
        let text = client(
            self.client("pgbench")
                .args(["-S", "-n", "-c", "4", "-j", "1", "-l", "--log-prefix=slice"])
                .args(["-T", &seconds, "postgres"]),
        )?;
        let line = text.lines().find_map(|line| line.strip_prefix("tps = "));
        let per_second = line
            .and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("pgbench said {text}"))?;
        let mut micros: Vec<f64> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("slice.") {
                // Client, transaction, time in microseconds (pgbench(1), per-transaction logging).
                let times = fs::read_to_string(&path)?;
                let time = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
                micros.extend(times.lines().filter_map(time));
                fs::remove_file(&path)?;
            }
        }
        micros.sort_by(f64::total_cmp);
        let p999_ms = micros.get(micros.len() * 999 / 1000).map(|time| time / 1e3);
        Ok(Sample {
            per_second,
            p999_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::number_before;

    #[test]
    fn the_number_before_some_words_is_read() {
        let text = "Summary:\n  throughput summary: 81967.21 requests per second\n";
        assert_eq!(number_before(text, " requests per second"), Some(81967.21));
        assert_eq!(number_before(text, " nothing"), None);
    }
}
