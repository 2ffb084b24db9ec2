//! Servers under full load, for benchmarks: Redis and PostgreSQL, each with its own benchmark as the client.

use super::budget::{Load, Sample};
use super::child::Running;
use super::proc::children;
use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

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
        let redis = Self { server, socket };
        wait_until_it_answers(|| {
            let mut command = Command::new("redis-cli");
            client(command.arg("-s").arg(&redis.socket).arg("ping"))
        })?;
        Ok(redis)
    }
}

/// The same while some clients send all the requests that they can.
pub(super) struct BusyRedis {
    redis: Redis,
    /// Sends requests until it is dropped.
    _clients: Running,
    /// Requests that one client more sends in a second beside them.
    pace: f64,
}

impl Redis {
    /// Puts it under full load.
    ///
    /// # Errors
    /// When its benchmark cannot be started.
    pub(super) fn under_load(self) -> Result<BusyRedis> {
        let mut command = self.benchmark();
        command.args(["-c", "50", "-n", "2000000000"]);
        let mut busy = BusyRedis {
            _clients: Running::start(&mut command, &self.socket.with_extension("load"))?,
            redis: self,
            pace: 1000.0,
        };
        busy.pace = busy.ask_beside(Duration::from_secs(1))?.0;
        Ok(busy)
    }

    fn benchmark(&self) -> Command {
        let mut command = Command::new("redis-benchmark");
        command.arg("-s").arg(&self.socket);
        command.args(["-t", "set", "-r", "100000", "-d", "100"]);
        command
    }

    /// Commands that it deals with in a second while something is done.
    fn commands_per_second(&self, action: impl FnOnce() -> Result<()>) -> Result<f64> {
        let (begun, before) = (Instant::now(), self.commands()?);
        action()?;
        let done = self.commands()? - before;
        Ok(done / begun.elapsed().as_secs_f64())
    }

    /// Commands that it has dealt with.
    fn commands(&self) -> Result<f64> {
        let mut command = Command::new("redis-cli");
        let text = client(command.arg("-s").arg(&self.socket).args(["info", "stats"]))?;
        text.lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"))
            .and_then(|count| count.trim().parse().ok())
            .with_context(|| format!("redis-cli said {text}"))
    }
}

impl BusyRedis {
    /// What one client more sees: its requests in a second, and the 99.9th percentile of their times, milliseconds.
    fn ask_beside(&self, time: Duration) -> Result<(f64, Option<f64>)> {
        let requests = (self.pace * time.as_secs_f64()).max(100.0) as u64;
        let mut command = self.redis.benchmark();
        let text = client(command.args(["-c", "1", "-n", &requests.to_string()]))?;
        let pace = number_before(&text, " requests per second")
            .with_context(|| format!("redis-benchmark said {text}"))?;
        // The first line of the distribution that is not below.
        let p999_ms = text.lines().find_map(|line| {
            let (percent, rest) = line.split_once("% <= ")?;
            let percent: f64 = percent.trim().parse().ok()?;
            let time = rest.split_whitespace().next()?;
            (percent >= 99.9).then(|| time.parse().ok())?
        });
        Ok((pace, p999_ms))
    }
}

impl Load for BusyRedis {
    fn target(&self) -> Vec<String> {
        vec!["-p".to_owned(), self.redis.pid().to_string()]
    }

    fn slice(&mut self, time: Duration) -> Result<Sample> {
        let mut p999_ms = None;
        let per_second = self.redis.commands_per_second(|| {
            p999_ms = self.ask_beside(time)?.1;
            Ok(())
        })?;
        Ok(Sample {
            per_second,
            p999_ms,
        })
    }

    fn per_second(&mut self, time: Duration) -> Result<f64> {
        self.redis.commands_per_second(|| {
            thread::sleep(time);
            Ok(())
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

/// The same while some clients read all that they can.
pub(super) struct BusyPostgres {
    /// Reads until it is dropped, before the server is.
    _clients: Running,
    postgres: Postgres,
    /// How far its logs have been read, bytes.
    read: HashMap<PathBuf, u64>,
}

impl Postgres {
    /// Puts it under full load.
    ///
    /// # Errors
    /// When its benchmark cannot be started.
    pub(super) fn under_load(self) -> Result<BusyPostgres> {
        let mut command = self.client("pgbench");
        command
            .args(["-S", "-n", "-c", "4", "-j", "1", "-l"])
            .arg(format!("--log-prefix={}", self.folder.join(LOG).display()))
            .args(["-T", "36000", "postgres"]);
        Ok(BusyPostgres {
            _clients: Running::start(&mut command, &self.folder.join("pgbench"))?,
            postgres: self,
            read: HashMap::new(),
        })
    }
}

/// How pgbench's logs are called, before a dot.
const LOG: &str = "transactions";

/// What pgbench may keep back of its log.
const LOG_DELAY: Duration = Duration::from_millis(300);

impl Load for BusyPostgres {
    fn target(&self) -> Vec<String> {
        // The sessions come and go.
        vec!["--comm".to_owned(), "postgres".to_owned()]
    }

    fn target_alone(&self) -> Vec<String> {
        let server = self.postgres.server.pid();
        let mut all = children(server);
        all.push(server);
        let all: Vec<String> = all.iter().map(u32::to_string).collect();
        vec!["-p".to_owned(), all.join(",")]
    }

    fn slice(&mut self, time: Duration) -> Result<Sample> {
        let epoch = || Ok::<_, anyhow::Error>(SystemTime::now().duration_since(UNIX_EPOCH)?);
        let begun = epoch()?;
        thread::sleep(time);
        let ended = epoch()?;
        thread::sleep(LOG_DELAY);
        let mut micros: Vec<f64> = Vec::new();
        for entry in fs::read_dir(&self.postgres.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with(&format!("{LOG}.")) {
                continue;
            }
            let mut file = File::open(&path)?;
            let read = self.read.entry(path).or_default();
            file.seek(SeekFrom::Start(*read))?;
            let mut text = String::new();
            *read += file.read_to_string(&mut text)? as u64;
            micros.extend(text.lines().filter_map(|line| {
                let (at, time) = transaction(line)?;
                (begun..ended).contains(&at).then_some(time)
            }));
        }
        micros.sort_by(f64::total_cmp);
        Ok(Sample {
            per_second: micros.len() as f64 / (ended - begun).as_secs_f64(),
            p999_ms: micros.get(micros.len() * 999 / 1000).map(|time| time / 1e3),
        })
    }
}

/// A line of pgbench's log (pgbench(1), per-transaction logging): client, transaction, time in microseconds, script, and when it ended, in
/// seconds and microseconds of the epoch.
fn transaction(line: &str) -> Option<(Duration, f64)> {
    let mut words = line.split(' ');
    let time = words.nth(2)?.parse().ok()?;
    let seconds = words.nth(1)?.parse().ok()?;
    let micros = words.next()?.parse().ok()?;
    Some((
        Duration::from_secs(seconds) + Duration::from_micros(micros),
        time,
    ))
}

#[cfg(test)]
mod tests {
    use super::{number_before, transaction};
    use std::time::Duration;

    #[test]
    fn the_number_before_some_words_is_read() {
        let text = "Summary:\n  throughput summary: 81967.21 requests per second\n";
        assert_eq!(number_before(text, " requests per second"), Some(81967.21));
        assert_eq!(number_before(text, " nothing"), None);
    }

    #[test]
    fn transactions_are_read_and_lines_cut_off_are_not() {
        let line = "0 199 2241 0 1175850568 995598";
        let at = Duration::new(1_175_850_568, 995_598_000);
        assert_eq!(transaction(line), Some((at, 2241.0)));
        assert_eq!(transaction("0 199 2241 0"), None);
    }
}
