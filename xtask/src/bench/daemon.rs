//! The daemon over a million blocks and ten thousand sites: how soon it answers, what 200 readers do to it, how it ends.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, DaemonFigures, Times};
use super::proc;
use super::victim::{Victim, compile};
use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The bars: milliseconds for a profile and for metrics, bytes of resident memory, milliseconds from SIGTERM to the end.
const PROFILE_MS: f64 = 300.0;
const METRICS_MS: f64 = 20.0;
const RESIDENT: u64 = 128 << 20;
const END_MS: f64 = 1000.0;

/// Readers at a time, and for how long.
const READERS: usize = 200;
const READ_FOR: Duration = Duration::from_secs(60);

/// Live blocks and stacks of the program (tests/programs/bench_sites.c).
const BLOCKS: u64 = 1_000_000;
const SITES: u64 = 10_000;

/// Room for twice the program's blocks: it holds a million of them all the time, and nothing is to be thinned.
const MAX_BLOCKS: &str = "2000000";

/// After so long a report is made anew for whoever asks.
const COLD_AFTER: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(30);

const HEAP: &str = "/debug/pprof/heap";
const METRICS: &str = "/metrics";

/// What the readers ask for in turn.
const PATHS: [&str; 6] = [
    HEAP,
    METRICS,
    "/api/v1/report?top=20",
    "/flamegraph.svg",
    "/api/v1/processes",
    "/debug/pprof/allocs",
];

/// Measures.
///
/// # Errors
/// When the program or the daemon fails, or the daemon does not know what the program holds.
pub(super) fn measure(bench: &mut Bench) -> Result<DaemonFigures> {
    bench.say("daemon");
    let program = compile("bench_sites")?;
    let mut victim = Victim::start(&mut Command::new(&program), bench.folder())?;
    let socket = bench.folder().join("socket");
    let mut command = Command::new(&bench.leakscope);
    command.args(["daemon", "--tier", "exact", "--max-blocks", MAX_BLOCKS]);
    command
        .arg("--pid")
        .arg(victim.pid().to_string())
        .arg("--socket")
        .arg(&socket);
    let mut daemon = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
    let begun = Instant::now();
    while ask(&socket, "/healthz").is_err() {
        if begun.elapsed() > PATIENCE || daemon.ended()?.is_some() {
            bail!("the daemon does not answer: {}", bench.log("tracer.log"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    victim.fill()?;
    let mut cold = Vec::new();
    let mut warm = Vec::new();
    let mut metrics = Vec::new();
    for _ in 0..bench.runs {
        thread::sleep(COLD_AFTER);
        cold.push(timed(&socket, HEAP)?);
        // Of the same report, but not written yet.
        warm.push(timed(&socket, "/debug/pprof/heap?top=9999")?);
        metrics.push(timed(&socket, METRICS)?);
    }
    let known = known(&socket)?;
    if known != (BLOCKS, SITES) {
        bail!(
            "the daemon knows {} blocks at {} sites; the program holds {BLOCKS} at {SITES}",
            known.0,
            known.1
        );
    }
    let resident_idle = proc::resident(daemon.pid());
    let read = read_all(&socket, daemon.pid());
    if let Some(error) = &read.first_error {
        bench.note(format!("daemon: a reader was told: {error}"));
    }
    let text = ask(&socket, METRICS)?;
    let lost = sum_of(&text, "leakscope_events_lost_total{");
    let map_bytes = proc::map_bytes(daemon.pid());
    let asked = Instant::now();
    daemon.signal("TERM")?;
    daemon.end(PATIENCE)?;
    let ended_ms = asked.elapsed().as_secs_f64() * 1e3;
    victim.end()?;
    let (cold, warm, metrics) = (Times::of(&cold), Times::of(&warm), Times::of(&metrics));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(DaemonFigures {
        blocks: BLOCKS,
        sites: SITES,
        cold,
        warm,
        metrics,
        readers: READERS,
        read_s: READ_FOR.as_secs(),
        answers: read.answers,
        errors: read.errors,
        resident_idle_bytes: resident_idle,
        resident_most_bytes: read.most_resident,
        map_bytes,
        ended_ms,
        bars: vec![
            BarFigures::at_most("cold profile, ms".into(), cold.median_ms, PROFILE_MS),
            BarFigures::at_most("warm profile, ms".into(), warm.median_ms, PROFILE_MS),
            BarFigures::at_most("metrics, ms".into(), metrics.median_ms, METRICS_MS),
            BarFigures::at_most("readers' errors".into(), read.errors as f64, 0.0),
            BarFigures::at_most("events lost".into(), lost, 0.0),
            BarFigures::at_most(
                "resident, MiB".into(),
                mib(read.most_resident),
                mib(RESIDENT),
            ),
            BarFigures::at_most("SIGTERM to end, ms".into(), ended_ms, END_MS),
        ],
    })
}

/// What came of the readers.
#[derive(Default)]
struct Read {
    answers: u64,
    errors: u64,
    first_error: Option<String>,
    most_resident: u64,
}

/// Lets the readers read, each with a connection for each request; meanwhile looks at the daemon's memory.
fn read_all(socket: &Path, pid: u32) -> Read {
    let stop = AtomicBool::new(false);
    let (answers, errors) = (AtomicU64::new(0), AtomicU64::new(0));
    let first_error = Mutex::new(None);
    let mut most_resident = 0;
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (stop, answers, errors, first_error) = (&stop, &answers, &errors, &first_error);
            scope.spawn(move || {
                let mut paths = PATHS.iter().cycle().skip(reader % PATHS.len());
                while !stop.load(Ordering::Relaxed)
                    && let Some(path) = paths.next()
                {
                    match ask(socket, path) {
                        Ok(_) => answers.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            first_error
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert_with(|| format!("{path}: {error:#}"));
                            errors.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        let begun = Instant::now();
        while begun.elapsed() < READ_FOR {
            most_resident = most_resident.max(proc::resident(pid));
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    Read {
        answers: answers.into_inner(),
        errors: errors.into_inner(),
        first_error: first_error
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
        most_resident,
    }
}

/// Milliseconds until an answer was there to its last byte.
fn timed(socket: &Path, path: &str) -> Result<f64> {
    let begun = Instant::now();
    ask(socket, path)?;
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// Asks for a path over a connection of its own; the answer's body.
fn ask(socket: &Path, path: &str) -> Result<Vec<u8>> {
    let mut connection = UnixStream::connect(socket)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    write!(
        connection,
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    body(&answer)
        .map(<[u8]>::to_vec)
        .with_context(|| String::from_utf8_lossy(answer.get(..300).unwrap_or(&answer)).into_owned())
}

/// The body of an answer; nothing where it is not a complete one with status 200.
fn body(answer: &[u8]) -> Option<&[u8]> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = answer.split_at_checked(end + 4)?;
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?
        .trim()
        .parse();
    (head.starts_with("http/1.1 200") && length == Ok(body.len())).then_some(body)
}

/// Live blocks and sites that the daemon knows.
fn known(socket: &Path) -> Result<(u64, u64)> {
    let report = super::report_file::ReportFile::parse(&ask(socket, "/api/v1/report?top=1")?)?;
    Ok((report.live_blocks(), report.site_count()))
}

/// The sum of the metrics whose lines begin like this.
fn sum_of(metrics: &[u8], beginning: &str) -> f64 {
    String::from_utf8_lossy(metrics)
        .lines()
        .filter(|line| line.starts_with(beginning))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::{body, sum_of};

    #[test]
    fn only_complete_good_answers_count() {
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
            Some(&b"abc"[..])
        );
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc"),
            None
        );
        assert_eq!(
            body(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
            None
        );
        assert_eq!(body(b""), None);
    }

    #[test]
    fn metrics_are_added_up() {
        let text = b"lost{cause=\"a\"} 2\nlost{cause=\"b\"} 3\nother 9\n";
        assert!((sum_of(text, "lost{") - 5.0).abs() < 1e-9);
    }
}
