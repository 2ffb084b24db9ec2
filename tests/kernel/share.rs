//! The share of stacks that reach their true end, in programs as distributions ship them and in C++ without frame
//! pointers: at least 99.9 % of all allocations.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    ALL_SITES, PATIENCE, Report, Tracer, answers, leave_out, prebuilt, python, require_kernel,
    require_victim, run, run_command, send,
};
use tempfile::TempDir;

/// Of a thousand allocations this many must have a complete stack.
const PER_MILLE: u64 = 999;

#[track_caller]
fn assert_share(what: &str, command: &[&str], least: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let mut arguments = vec![
        "trace", "--tier", "exact", "--top", ALL_SITES, "--format", "json", "-o",
    ];
    arguments.push(path.to_str().unwrap());
    arguments.push("--");
    arguments.extend(command);
    let finished = run(&arguments).expect("leakscope runs");
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    let text = fs::read_to_string(&path).expect("a report");
    let report: Report = serde_json::from_str(&text).expect("by the contract");
    assert_share_of(what, &report, least);
}

#[track_caller]
fn assert_share_of(what: &str, report: &Report, least: u64) {
    let mut all = 0;
    let mut complete = 0;
    // Where the others end: the frame, and how many.
    let mut ends: BTreeMap<String, u64> = BTreeMap::new();
    for site in &report.sites {
        all += site.alloc_objects;
        if site.stack_complete {
            complete += site.alloc_objects;
        } else if let Some(frame) = site.frames.last() {
            let end = format!(
                "{} in {}+{:#x}",
                frame.function.as_deref().unwrap_or("?"),
                frame.module.as_deref().unwrap_or("?"),
                frame.offset.unwrap_or(0)
            );
            *ends.entry(end).or_default() += site.alloc_objects;
        }
    }
    let mut ends: Vec<(u64, String)> = ends.into_iter().map(|(end, count)| (count, end)).collect();
    ends.sort_by(|one, other| other.cmp(one));
    ends.truncate(20);
    let losses: Vec<_> = report
        .losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    // A figure that is worth reading even where the test passes.
    let _ = writeln!(
        io::stderr(),
        "{what}: {complete} of {all} stacks complete ({:.4} %), {} sites; {losses:?}; ends: {ends:#?}",
        complete as f64 * 100.0 / all as f64,
        report.sites.len(),
    );
    assert!(all >= least, "{what}: only {all} allocations");
    assert!(
        complete * 1000 >= all * PER_MILLE,
        "{what}: {complete} of {all} stacks complete; {losses:?}; ends: {ends:#?}"
    );
}

/// Debian's interpreter where there is one, else the one on PATH.
fn interpreter() -> Option<String> {
    let debian = Path::new("/usr/bin/python3");
    if debian.exists() {
        return Some(debian.display().to_string());
    }
    python()
        .ok()
        .map(|python| python.executable.display().to_string())
}

const PYTHON_WORK: &str = "
import ctypes, json, re, zlib, decimal, functools, hashlib, sqlite3, xml.etree.ElementTree as tree
kept = []
@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
def compare(a, b):
    bytes(2000 + a[0])
    return a[0] - b[0]
libc = ctypes.CDLL(None)
for turn in range(30):
    data = {str(i): [i * 0.5, 'x' * (i * 13 % 1500), {'deep': [None] * (i % 300)}] for i in range(200)}
    text = json.dumps(data)
    assert json.loads(text) == data
    assert zlib.decompress(zlib.compress(text.encode())) == text.encode()
    kept.append(len(re.findall(r'(\\w+)\\W+(\\w+)', text)))
    numbers = (ctypes.c_int * 40)(*[(i * 7919) % 41 for i in range(40)])
    libc.qsort(numbers, 40, ctypes.sizeof(ctypes.c_int), compare)
    assert list(numbers) == sorted(numbers)
    decimal.Decimal(2).sqrt(decimal.Context(prec=2000 + turn))
    hashlib.sha256(text.encode()).hexdigest()
    database = sqlite3.connect(':memory:')
    database.execute('create table t(a, b)')
    database.executemany('insert into t values (?, ?)', [(i, 'y' * i) for i in range(300)])
    database.execute('select a, count(*) from t group by length(b) % 7 order by 2').fetchall()
    database.close()
    root = tree.fromstring('<a>' + '<b c=\"d\">e</b>' * 300 + '</a>')
    kept.append(len(root))
";

#[test]
fn python_with_its_own_tests() {
    let _alone = require_kernel!();
    if prebuilt() {
        leave_out("python's share is measured where its whole library is");
        return;
    }
    let Some(python) = interpreter() else {
        leave_out("there is no python3");
        return;
    };
    assert_share("python3, a workload", &[&python, "-c", PYTHON_WORK], 10_000);
    let modules = ["test_list", "test_dict", "test_json"];
    let mut check = Command::new(&python);
    check.args([
        "-c",
        "import test.test_list, test.test_dict, test.test_json",
    ]);
    if run_command(check).is_ok_and(|finished| finished.code() == 0) {
        let mut command = vec![python.as_str(), "-m", "test"];
        command.extend(modules);
        assert_share("python3 -m test", &command, 10_000);
    } else {
        leave_out("python's own test suite is not installed (Debian: libpython3.11-testsuite)");
    }
}

#[test]
fn containers_of_cpp_without_frame_pointers() {
    let _alone = require_kernel!();
    let path = require_victim!("containers-omit");
    assert_share("C++ containers", &[path.to_str().unwrap()], 50_000);
}

#[test]
fn gdb() {
    let _alone = require_kernel!();
    if !answers("gdb", "--version") {
        leave_out("gdb is not installed");
        return;
    }
    assert_share(
        "gdb",
        &["gdb", "-nx", "-batch", "-ex", "info functions", "/bin/true"],
        10_000,
    );
}

/// A server of the distribution, stripped as it ships, on a Unix socket of its own. Killed when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
    _folder: TempDir,
}

impl Server {
    /// Starts the program with arguments that are made from the folder and the socket; none where it is not installed.
    fn start(program: &str, arguments: impl Fn(&Path, &Path) -> Vec<String>) -> Option<Self> {
        let found = ["/usr/bin", "/usr/sbin"]
            .map(|folder| Path::new(folder).join(program))
            .into_iter()
            .find(|path| path.exists());
        let Some(path) = found else {
            leave_out(&format!("{program} is not installed"));
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let child = Command::new(path)
            .args(arguments(folder.path(), &socket))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let server = Self {
            child,
            socket,
            _folder: folder,
        };
        let start = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            assert!(start.elapsed() < PATIENCE, "{program} does not listen");
            sleep(Duration::from_millis(10));
        }
        Some(server)
    }

    /// Says something on a new connection and reads until the answer ends as it should.
    fn ask(&self, words: &[u8], end: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.socket).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(words).unwrap();
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        while !answer.ends_with(end) || end.is_empty() {
            match stream.read(&mut bytes).expect("an answer") {
                0 => break,
                length => answer.extend_from_slice(bytes.get(..length).unwrap()),
            }
        }
        answer
    }

    /// Attaches, lets it work, and looks at the stacks.
    #[track_caller]
    fn assert_share(self, what: &str, least: u64, mut work: impl FnMut(&Self, usize)) {
        let pid = self.child.id().to_string();
        let mut tracer = Tracer::start(&["--tier", "exact", "-p", &pid]).expect("leakscope starts");
        tracer
            .wait_until_attached(self.child.id())
            .expect("attached");
        for round in 0..200 {
            work(&self, round);
        }
        assert_share_of(what, &tracer.stop().expect("the report"), least);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn redis() {
    let _alone = require_kernel!();
    let Some(server) = Server::start("redis-server", |_, socket| {
        let socket = socket.display().to_string();
        ["--port", "0", "--save", "", "--unixsocket", &socket]
            .map(str::to_owned)
            .to_vec()
    }) else {
        return;
    };
    server.assert_share("redis-server", 5_000, |server, round| {
        let mut words = Vec::new();
        for number in 0..10 {
            let value = "x".repeat(number * 97 + round);
            for line in [
                format!("SET key:{round}:{number} {value}"),
                format!("LPUSH list:{number} {value}"),
                format!("HSET hash:{number} field:{round} {value}"),
                format!("ZADD sorted:{number} {round} member:{round}"),
                format!("EVAL \"return string.rep('y', {round})\" 0"),
                format!("DEL key:{round}:{}", number / 2),
            ] {
                words.extend_from_slice(line.trim_end().as_bytes());
                words.extend_from_slice(b"\r\n");
            }
        }
        words.extend_from_slice(b"PING\r\n");
        server.ask(&words, b"+PONG\r\n");
    });
}

#[test]
fn memcached() {
    let _alone = require_kernel!();
    let Some(server) = Server::start("memcached", |_, socket| {
        let socket = socket.display().to_string();
        ["-u", "root", "-m", "256", "-s", &socket]
            .map(str::to_owned)
            .to_vec()
    }) else {
        return;
    };
    // It takes its memory in large pieces: one more for each size, and what a connection needs.
    server.assert_share("memcached", 100, |server, round| {
        let held: Vec<_> = (0..round % 40)
            .map(|_| UnixStream::connect(&server.socket).unwrap())
            .collect();
        let value = "x".repeat(round * 997);
        let words = format!("set key{round} 0 0 {}\r\n{value}\r\n", value.len());
        server.ask(words.as_bytes(), b"STORED\r\n");
        drop(held);
    });
}

#[test]
fn nginx() {
    let _alone = require_kernel!();
    let Some(server) = Server::start("nginx", |folder, socket| {
        let configuration = folder.join("nginx.conf");
        let text = format!(
            "daemon off; master_process off; pid {0}/pid; error_log {0}/error; events {{ }}\n\
             http {{ access_log {0}/access; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi; \
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi; gzip on; gzip_min_length 0; gzip_types *;\n\
             server {{ listen unix:{1}; root {0}; autoindex on; }} }}\n",
            folder.display(),
            socket.display()
        );
        fs::write(&configuration, text).unwrap();
        vec!["-c".to_owned(), configuration.display().to_string()]
    }) else {
        return;
    };
    server.assert_share("nginx", 1_000, |server, round| {
        let path = if round % 2 == 0 { "/" } else { "/nginx.conf" };
        let words = format!(
            "GET {path} HTTP/1.1\r\nHost: here\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n"
        );
        let answer = server.ask(words.as_bytes(), b"");
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{path}");
    });
}

/// A cluster made for the test, run by the user that Debian's package makes.
struct Postgres {
    server: Child,
    programs: PathBuf,
    folder: TempDir,
}

impl Postgres {
    fn start() -> Option<Self> {
        let programs = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path().join("bin"))
            .find(|folder| folder.join("initdb").exists());
        let passwords = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let user = passwords
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&"postgres"))
            .and_then(|fields| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)));
        let (Some(programs), Some((user, group))) = (programs, user) else {
            leave_out("PostgreSQL is not installed (Debian: postgresql-15)");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(user), Some(group)).unwrap();
        let data = folder.path().join("data");
        let run = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command
                .uid(user)
                .gid(group)
                .arg("-D")
                .arg(&data)
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let made = run("initdb")
            .args(["--no-sync", "-A", "trust", "-U", "postgres", "--locale=C"])
            .status()
            .unwrap();
        assert!(made.success(), "{made}");
        let server = run("postgres")
            .arg("-k")
            .arg(folder.path())
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .spawn()
            .unwrap();
        let postgres = Self {
            server,
            programs,
            folder,
        };
        let begun = Instant::now();
        while postgres.ask("select 1").is_none() {
            assert!(begun.elapsed() < PATIENCE, "PostgreSQL does not listen");
            sleep(Duration::from_millis(50));
        }
        Some(postgres)
    }

    /// A session with statements, one on each line; what they gave.
    fn ask(&self, statements: &str) -> Option<String> {
        let mut client = Command::new(self.programs.join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"])
            .args(["-U", "postgres", "-h"])
            .arg(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdin = client.stdin.take().unwrap();
        // One that cannot connect reads nothing.
        let told = stdin.write_all(format!("{statements};\n").as_bytes());
        drop(stdin);
        let output = client.wait_with_output().unwrap();
        told.ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8(output.stdout).unwrap())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Its fast shutdown, which ends the sessions.
        let _ = send("INT", self.server.id());
        let _ = self.server.wait();
    }
}

#[test]
fn postgres() {
    /// After so long a new backend is to be followed, seconds.
    const PICKED_UP: f64 = 0.1;
    const WORK: &str = "select count(*) from (select md5(i::text) as m from generate_series(1, 20000) i order by m) s";
    let _alone = require_kernel!();
    let Some(server) = Postgres::start() else {
        return;
    };
    let mut tracer = Tracer::start(&["--tier", "exact", "--comm", "postgres"]).unwrap();
    tracer.wait_until_attached(server.server.id()).unwrap();
    let backends: Vec<u32> = (0..4)
        .map(|_| {
            let said = server
                .ask(&format!(
                    "select pg_backend_pid();\nselect pg_sleep({PICKED_UP});\n{WORK}"
                ))
                .unwrap();
            said.lines().next().unwrap().parse().unwrap()
        })
        .collect();
    let mut session = String::from("create table t(a int, b text)");
    for round in 0..10 {
        session.push_str(&format!(
            ";\ninsert into t select i, repeat('x', i % 100) from generate_series(1, 500) i;\n{WORK};\n\
             select count(*) from t x join t y using (a) where x.a % 7 = {round};\nupdate t set b = b || 'y' where a % 5 = 0"
        ));
    }
    server.ask(&session).unwrap();
    let report = tracer.stop().unwrap();
    for pid in backends {
        let worked: u64 = report
            .sites
            .iter()
            .filter(|site| site.pid == pid)
            .map(|site| site.alloc_objects)
            .sum();
        assert!(worked > 0, "backend {pid}: {:?}", report.processes);
    }
    let leaking: Vec<_> = report
        .sites
        .iter()
        .filter(|site| site.verdict == "leaking")
        .collect();
    assert!(leaking.is_empty(), "{leaking:?}");
    assert_share_of("postgres", &report, 500);
}
