//! The daemon on a running process, asked by the clients that people use: curl, `go tool pprof`, Prometheus, a browser.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use leakscope_tests::{
    Daemon, PATIENCE, Report, Victim, answers, breakpoints, done, go_pprof, in_browser, leave_out,
    require_kernel, require_victim, run, run_command, wait_for_breakpoints,
};
use serde_json::Value;

/// A victim that has leaked what it leaks, and the daemon that watched.
struct Watched {
    daemon: Daemon,
    victim: Victim,
}

impl Watched {
    /// `basic` leaks 10,000 bytes in 4 blocks at `leak_basic` and 800 in 1 at `leak_calloc`.
    fn basic(path: &std::path::Path, arguments: &[&str]) -> Self {
        let mut victim = Victim::start(path).unwrap();
        let pid = victim.pid().to_string();
        let mut all = vec!["-p", pid.as_str()];
        all.extend(arguments);
        let daemon = Daemon::start(&all).unwrap();
        victim.go().unwrap();
        let watched = Self { daemon, victim };
        watched.wait_for("/api/v1/processes", "\"alloc_objects\":105,");
        watched
    }

    /// Asks until the answer contains this: what is handed out may be some seconds old.
    fn wait_for(&self, path: &str, text: &str) -> String {
        let start = Instant::now();
        loop {
            let answer = self.daemon.curl(&[], path).unwrap();
            if answer.contains(text) {
                return answer;
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {answer}");
            sleep(Duration::from_millis(100));
        }
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect(text)
}

/// A client: how it is called, an argument that makes it say its version, and Debian's package.
type Client = (&'static str, &'static str, &'static str);

const CURL: Client = ("curl", "--version", "curl");
const GO: Client = ("go", "version", "golang-go");
const DOT: Client = ("dot", "-V", "graphviz");
const PROMTOOL: Client = ("promtool", "--version", "prometheus");
const CHROMIUM: Client = ("chromium", "--version", "chromium");
const NODE: Client = ("node", "--version", "nodejs");

/// Whether a client is missing, which the machines of `cargo xtask test vm` need not have; says so.
fn lacks((program, argument, package): Client) -> bool {
    let missing = !answers(program, argument);
    if missing {
        leave_out(&format!("{program} is not installed (Debian: {package})"));
    }
    missing
}

/// The lock between kernel tests and the path of a victim. Returns from the test where it cannot be run, or where one of the
/// clients is missing.
macro_rules! set_up {
    ($victim:expr $(, $client:expr)*) => {{
        let alone = require_kernel!();
        let path = require_victim!($victim);
        if [CURL $(, $client)*].into_iter().any(lacks) {
            return;
        }
        (alone, path)
    }};
}

/// What curl gets.
fn fetch(url: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", url]);
    run_command(command).unwrap().stdout
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[test]
fn go_tool_pprof_shows_what_leaks() {
    let (_alone, path) = set_up!("basic", GO);
    let watched = Watched::basic(&path, &[]);
    let heap = watched
        .daemon
        .save("/debug/pprof/heap", "heap.pb.gz")
        .unwrap();
    let heap = heap.to_str().unwrap();
    let top = go_pprof(&["-top", "-unit=B", heap]).unwrap();
    assert!(top.contains("Type: inuse_space"), "{top}");
    let line = top
        .lines()
        .find(|line| line.ends_with(" leak_basic"))
        .unwrap();
    assert!(line.trim_start().starts_with("10000B"), "{top}");
    let counted = go_pprof(&["-top", "-sample_index=inuse_objects", heap]).unwrap();
    let line = counted
        .lines()
        .find(|line| line.ends_with(" leak_basic"))
        .unwrap();
    assert!(line.trim_start().starts_with("4 "), "{counted}");
    // What was freed is there too, of another type.
    let allocs = watched
        .daemon
        .save("/debug/pprof/allocs", "allocs.pb.gz")
        .unwrap();
    let allocated = go_pprof(&["-top", "-unit=B", allocs.to_str().unwrap()]).unwrap();
    assert!(allocated.contains("Type: alloc_space"), "{allocated}");
    assert!(allocated.contains("7700B"), "{allocated}");
    // The source, line by line: file and line are in the profile.
    let list = go_pprof(&["-list=leak_basic", "-unit=B", heap]).unwrap();
    assert!(list.contains("keep(malloc(2500))"), "{list}");
    let tags = go_pprof(&["-tags", heap]).unwrap();
    for tag in ["pid", "comm", "allocator", "verdict", "basic"] {
        assert!(tags.contains(tag), "{tag} in {tags}");
    }
    let raw = go_pprof(&["-raw", heap]).unwrap();
    assert!(raw.contains("basic"), "{raw}");
    // Against itself nothing is left.
    let same = go_pprof(&["-top", &format!("-diff_base={heap}"), heap]).unwrap();
    assert!(!same.contains("leak_basic"), "{same}");
    watched.victim.quit().unwrap();
}

#[test]
fn goroutines_have_a_profile_of_their_own() {
    let (_alone, path) = set_up!("entries-stripped", GO);
    let mut victim = Victim::start(&path).unwrap();
    victim.go().unwrap();
    let pid = victim.pid().to_string();
    let daemon = Daemon::start(&["-p", &pid]).unwrap();
    let watched = Watched { daemon, victim };
    watched.wait_for("/api/v1/report", "main.waitForever");
    let saved = watched
        .daemon
        .save("/debug/pprof/goroutine", "goroutines.pb.gz")
        .unwrap();
    let top = go_pprof(&["-top", saved.to_str().unwrap()]).unwrap();
    assert!(top.contains("Type: goroutine"), "{top}");
    let line = top.lines().find(|line| line.ends_with(" main.waitForever"));
    let line = line.unwrap_or_default();
    assert!(line.trim_start().starts_with("200 "), "{top}");
    watched.victim.quit().unwrap();
}

#[test]
fn go_tool_pprof_draws_what_leaks() {
    let (_alone, path) = set_up!("basic", GO, DOT);
    let watched = Watched::basic(&path, &[]);
    let heap = watched
        .daemon
        .save("/debug/pprof/heap", "heap.pb.gz")
        .unwrap();
    let heap = heap.to_str().unwrap();
    let picture = watched.daemon.file("heap.png");
    go_pprof(&["-png", "-output", picture.to_str().unwrap(), heap]).unwrap();
    let bytes = fs::read(&picture).unwrap();
    // Its signature, then width and height (PNG, 5.2 and 11.2.2): two boxes and an arrow at least.
    assert!(bytes.starts_with(b"\x89PNG\r\n\x1a\n"), "{heap}");
    let size = |place: usize| u32::from_be_bytes(bytes[place..place + 4].try_into().unwrap());
    assert!(
        size(16) > 100 && size(20) > 100,
        "{} x {}",
        size(16),
        size(20)
    );
    let svg = go_pprof(&["-svg", "-unit=B", "-output", "/dev/stdout", heap]).unwrap();
    assert!(
        svg.contains("leak_basic") && svg.contains("10000B"),
        "{svg}"
    );
    watched.victim.quit().unwrap();
}

/// A `go tool pprof -http` that has fetched a profile, or is about to.
struct PprofServer {
    child: Child,
    url: String,
    _home: tempfile::TempDir,
}

impl PprofServer {
    fn start(source: &str) -> Self {
        // `go tool` itself would stay between us and the server.
        let mut command = Command::new("go");
        command.args(["tool", "-n", "pprof"]);
        let pprof = done(run_command(command).unwrap()).unwrap();
        let home = tempfile::tempdir().unwrap();
        let address = format!("127.0.0.1:{}", free_port());
        let child = Command::new(pprof.trim())
            .env("HOME", home.path())
            .env("PPROF_TMPDIR", home.path())
            .args(["-no_browser", &format!("-http={address}"), source])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            url: format!("http://{address}"),
            _home: home,
        }
    }

    /// A page of it, once it has one that contains this.
    fn wait_for(&self, path: &str, text: &str) {
        let start = Instant::now();
        loop {
            let page = fetch(&format!("{}{path}", self.url));
            if page.contains(text) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "no {text:?} in {path}: {page}");
            sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for PprofServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn go_tool_pprof_fetches_and_serves() {
    let (_alone, path) = set_up!("basic", GO, DOT);
    let address = format!("127.0.0.1:{}", free_port());
    let watched = Watched::basic(&path, &["--listen", &address]);
    let pid = watched.victim.pid();
    let server = PprofServer::start(&format!("http://{address}/debug/pprof/heap?pid={pid}"));
    server.wait_for("/ui/top", "leak_basic");
    server.wait_for("/ui/flamegraph", "leak_basic");
    server.wait_for("/ui/peek?f=leak_basic", "leak_basic");
    // The graph. (The page of the source disassembles, which Go's pprof cannot do for position-independent programs.)
    server.wait_for("/ui/?si=inuse_objects", ">4 (");
    drop(server);
    watched.victim.quit().unwrap();
}

#[test]
fn dump_and_diff_show_what_changed_since() {
    let (_alone, path) = set_up!("endless");
    let mut victim = Victim::start(&path).unwrap();
    let pid = victim.pid().to_string();
    let daemon = Daemon::start(&["-p", &pid]).unwrap();
    victim.say("go").unwrap();
    while victim.line().unwrap().as_deref() != Some("round 300") {}
    assert_eq!(daemon.dump(&["--snapshot", "before"]).unwrap().code(), 0);
    let saved = daemon.file("before.json");
    let saved = saved.to_str().unwrap();
    done(daemon.dump(&["--format", "json", "-o", saved]).unwrap()).unwrap();
    while victim.line().unwrap().as_deref() != Some("round 900") {}
    let profile = daemon.file("after.pb.gz");
    let profile = profile.to_str().unwrap();
    // What is handed out may have been made before the last rounds.
    let grown = |change: &Value| change["change"] == "grown" || change["change"] == "new";
    let start = Instant::now();
    let difference = loop {
        let text = done(
            daemon
                .dump(&["--base", "before", "--format", "json"])
                .unwrap(),
        )
        .unwrap();
        let difference = json(&text);
        if difference["total"]["inuse_bytes_change"].as_i64().unwrap() >= 40 * 500 {
            break difference;
        }
        assert!(start.elapsed() < PATIENCE, "{text}");
    };
    let changes = difference["changes"].as_array().unwrap();
    let first = changes.first().unwrap();
    assert!(grown(first), "{first}");
    assert_eq!(first["comm"], "endless");
    let bytes = first["inuse_bytes_change"].as_i64().unwrap();
    let blocks = first["inuse_objects_change"].as_i64().unwrap();
    assert_eq!(bytes, blocks * 40, "{first}");
    let text = done(daemon.dump(&["--base", "before"]).unwrap()).unwrap();
    assert!(
        text.contains("leak_endless") && text.contains("grown"),
        "{text}"
    );
    // Two snapshots compare with each other, whatever has grown since.
    assert_eq!(daemon.dump(&["--snapshot", "later"]).unwrap().code(), 0);
    let two = ["--base", "before", "--new", "later", "--format", "json"];
    let between = json(&done(daemon.dump(&two).unwrap()).unwrap());
    assert!(grown(&between["changes"][0]), "{between}");
    assert_eq!(json(&done(daemon.dump(&two).unwrap()).unwrap()), between);
    done(daemon.dump(&["--format", "pprof", "-o", profile]).unwrap()).unwrap();
    // A saved report and a saved profile compare, without the daemon.
    let finished = run(&["diff", saved, profile, "--format", "json"]).unwrap();
    let difference = json(&done(finished).unwrap());
    let first = &difference["changes"][0];
    assert!(grown(first), "{difference}");
    let against_itself = run(&["diff", profile, profile]).unwrap();
    assert!(
        against_itself
            .stdout
            .contains("No stack holds more or less"),
        "{against_itself:?}"
    );
    let within = done(daemon.dump(&["--for", "1s", "--format", "json"]).unwrap()).unwrap();
    assert!(
        json(&within)["total"]["inuse_bytes_change"]
            .as_i64()
            .unwrap()
            > 0
    );
    // Filters, and what cannot be had.
    let report = done(
        daemon
            .dump(&["--comm", "end*", "--format", "json"])
            .unwrap(),
    );
    let report: Report = serde_json::from_str(&report.unwrap()).unwrap();
    assert_eq!(report.processes.len(), 1);
    for (arguments, subject) in [
        (["-p", "1"], "process 1 is not traced"),
        (["--comm", "nobody*"], "no traced process"),
        (["--base", "never"], "no snapshot \"never\""),
        (["--base=before", "--new=never"], "no snapshot \"never\""),
        (["--snapshot", "before"], "already"),
        (["--snapshot", "../x"], "name"),
        (["-o", "/dev/full"], "/dev/full"),
        (["-o", "/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let refused = daemon.dump(&arguments).unwrap();
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert!(refused.stderr.contains(subject), "{refused:?}");
    }
    victim.say("quit").unwrap();
    victim.end().unwrap();
}

#[test]
fn it_ends_cleanly_and_is_alone_on_its_socket() {
    let (_alone, path) = set_up!("basic");
    let mut watched = Watched::basic(&path, &[]);
    let pid = watched.victim.pid();
    assert!(!breakpoints(pid).unwrap().is_empty());
    let socket = watched.daemon.socket();
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = run(&[
        "daemon",
        "-p",
        &pid.to_string(),
        "--socket",
        socket.to_str().unwrap(),
    ])
    .unwrap();
    assert_eq!(second.code(), 1);
    let holder = format!("process {} (leakscope)", watched.daemon.pid());
    assert!(second.stderr.contains(&holder), "{second:?}");
    // It does not mind being asked to look again.
    watched.daemon.signal("HUP").unwrap();
    watched.wait_for("/healthz", "\"status\":\"ok\"");
    // Clients that wait and clients that say nothing do not keep it.
    let mut idle = UnixStream::connect(&socket).unwrap();
    let mut waiting = Command::new("curl")
        .args(["--silent", "--fail", "--unix-socket"])
        .arg(&socket)
        .arg("http://localhost/debug/pprof/heap?seconds=60")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    watched.daemon.signal("TERM").unwrap();
    let ended = watched.daemon.end().unwrap();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(!socket.exists());
    wait_for_breakpoints(pid, false, || Ok(())).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(!waiting.wait().unwrap().success());
    assert!(watched.victim.is_alive().unwrap());
    watched.victim.quit().unwrap();
}

#[test]
fn a_killed_daemon_leaves_nothing_and_its_socket_is_taken_over() {
    let (_alone, path) = set_up!("basic");
    let mut watched = Watched::basic(&path, &[]);
    let pid = watched.victim.pid();
    watched.daemon.signal("KILL").unwrap();
    watched.daemon.end().unwrap();
    wait_for_breakpoints(pid, false, || Ok(())).unwrap();
    let socket = watched.daemon.socket();
    assert!(socket.exists());
    let refused = watched.daemon.dump(&[]).unwrap();
    assert_eq!(refused.code(), 1);
    assert!(refused.stderr.contains("leakscope daemon"), "{refused:?}");
    let next = watched
        .daemon
        .start_again(&["-p", &pid.to_string()])
        .unwrap();
    assert_eq!(next.socket(), socket);
    assert_eq!(next.dump(&[]).unwrap().code(), 0);
    drop(next);
    watched.victim.quit().unwrap();
}

#[test]
fn beyond_this_machine_only_with_a_token() {
    let (_alone, path) = set_up!("basic");
    let mut victim = Victim::start(&path).unwrap();
    let pid = victim.pid().to_string();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let open = run(&[
        "daemon",
        "-p",
        &pid,
        "--listen",
        "0.0.0.0:0",
        "--socket",
        socket.to_str().unwrap(),
    ])
    .unwrap();
    assert_eq!(open.code(), 1);
    assert!(open.stderr.contains("--auth-token-file"), "{open:?}");
    let token = folder.path().join("token");
    let token_text = token.to_str().unwrap();
    let secret = "0123456789abcdef0123456789abcdef";
    fs::write(&token, secret).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let port = free_port();
    let address = format!("0.0.0.0:{port}");
    let daemon = Daemon::start(&[
        "-p",
        &pid,
        "--listen",
        &address,
        "--auth-token-file",
        token_text,
    ])
    .unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let status = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        command.args(arguments).arg(format!("{url}/metrics"));
        done(run_command(command).unwrap()).unwrap()
    };
    assert_eq!(status(&[]), "401");
    assert_eq!(status(&["-H", "Authorization: Bearer wrong"]), "401");
    assert_eq!(
        status(&["-H", &format!("Authorization: Bearer {secret}")]),
        "200"
    );
    // Another one is read when it is asked to, if it is one.
    let shows = |token: &str| status(&["-H", &format!("Authorization: Bearer {token}")]);
    fs::write(&token, "short").unwrap();
    daemon.signal("HUP").unwrap();
    daemon.curl(&["--fail"], "/healthz").unwrap();
    assert_eq!(shows(secret), "200");
    let next = "fedcba9876543210fedcba9876543210";
    fs::write(&token, next).unwrap();
    daemon.signal("HUP").unwrap();
    let start = Instant::now();
    while shows(next) != "200" {
        assert!(start.elapsed() < PATIENCE);
        sleep(Duration::from_millis(50));
    }
    assert_eq!(shows(secret), "401");
    assert_eq!(run(&["dump", "--url", &url]).unwrap().code(), 1);
    let shown = run(&["dump", "--url", &url, "--auth-token-file", token_text]).unwrap();
    assert_eq!(shown.code(), 0, "{shown:?}");
    drop(daemon);
    victim.kill().unwrap();
}

#[test]
fn the_service_manager_is_told() {
    let (_alone, path) = set_up!("basic");
    let mut victim = Victim::start(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut room = [0; 64];
        let length = manager.recv(&mut room).unwrap();
        String::from_utf8_lossy(&room[..length]).into_owned()
    };
    let mut daemon = Daemon::start_with(
        &[("NOTIFY_SOCKET", socket.to_str().unwrap())],
        &["-p", &victim.pid().to_string()],
    )
    .unwrap();
    assert_eq!(heard(), "READY=1\n");
    assert!(!breakpoints(victim.pid()).unwrap().is_empty());
    daemon.signal("TERM").unwrap();
    assert_eq!(heard(), "STOPPING=1\n");
    assert_eq!(daemon.end().unwrap().code(), 0);
    victim.kill().unwrap();
}

/// A Prometheus that scrapes one address every second.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = folder.path().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: leakscope, static_configs: [{{targets: ['{target}']}}]}}]\n"
            ),
        )
        .unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            port,
            _folder: folder,
        }
    }

    /// The value that a query has, once it has one.
    fn value(&self, query: &str) -> String {
        let start = Instant::now();
        loop {
            let mut command = Command::new("curl");
            command
                .args(["--silent", "--get", "--data-urlencode"])
                .arg(format!("query={query}"))
                .arg(format!("http://127.0.0.1:{}/api/v1/query", self.port));
            let text = run_command(command).unwrap().stdout;
            let value = serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|answer| {
                    Some(
                        answer["data"]["result"].as_array()?.first()?["value"][1]
                            .as_str()?
                            .to_owned(),
                    )
                });
            if let Some(value) = value {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "{query}: {text}");
            sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn prometheus_reads_its_metrics() {
    let (_alone, path) = set_up!("basic", PROMTOOL);
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let watched = Watched::basic(&path, &["--listen", &address]);
    let pid = watched.victim.pid();
    let metrics = watched.wait_for("/metrics", "leakscope_process_inuse_bytes{");
    assert!(
        metrics.contains("leakscope_events_lost_total{cause="),
        "{metrics}"
    );
    let saved = watched.daemon.save("/metrics", "metrics").unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "promtool check metrics < \"$0\""])
        .arg(&saved);
    let checked = run_command(command).unwrap();
    assert_eq!(checked.code(), 0, "{checked:?}");
    assert_eq!(format!("{}{}", checked.stdout, checked.stderr), "");
    let prometheus = Prometheus::start(&address);
    // The newest figures come at the next report.
    let query = format!("leakscope_process_inuse_bytes{{pid=\"{pid}\",comm=\"basic\"}} == 10800");
    assert_eq!(prometheus.value(&query), "10800");
    assert_eq!(prometheus.value("up"), "1");
    assert_eq!(prometheus.value("leakscope_overhead_budget_ratio"), "0.01");
    assert_eq!(prometheus.value("sum(leakscope_events_lost_total)"), "0");
    drop(prometheus);
    watched.victim.quit().unwrap();
}

#[test]
fn a_browser_shows_the_page_and_a_click_zooms() {
    let (_alone, path) = set_up!("basic", CHROMIUM);
    let watched = Watched::basic(&path, &[]);
    // Clicks on the frame of `leak_calloc`, which is small until then.
    let zoom = "window.addEventListener('load', () => setTimeout(() => {
        const frames = [...document.querySelectorAll('#frames > g')];
        const wanted = frames.find(g => g.querySelector('title').textContent.startsWith('leak_calloc'));
        const width = () => wanted.querySelector('rect').getBoundingClientRect().width;
        const before = width();
        wanted.dispatchEvent(new MouseEvent('click', {bubbles: true}));
        document.documentElement.setAttribute('data-zoomed', width() > before * 5);
        document.documentElement.setAttribute('data-charts', document.querySelectorAll('svg.chart polyline').length);
    }, 500));";
    let svg = watched.daemon.save("/flamegraph.svg", "flame.svg").unwrap();
    let shown = in_browser(&svg, zoom).unwrap();
    assert!(shown.contains("data-zoomed=\"true\""), "{shown}");
    // A chart needs two points in time.
    watched.wait_for("/api/v1/report?format=html&top=5", "<polyline");
    let page = watched.daemon.file("page.html");
    let page_text = page.to_str().unwrap();
    done(
        watched
            .daemon
            .dump(&["--format", "html", "-o", page_text])
            .unwrap(),
    )
    .unwrap();
    let shown = in_browser(&page, zoom).unwrap();
    assert!(shown.contains("data-zoomed=\"true\""), "{shown}");
    assert!(shown.contains("data-charts=\"2\""), "{shown}");
    assert!(shown.contains("leak_basic"), "{shown}");
    // It asks for nothing from elsewhere.
    let text = fs::read_to_string(&page).unwrap();
    assert!(!text.contains("src=") && !text.contains("<link"), "{text}");
    watched.victim.quit().unwrap();
}

#[test]
fn its_page_shows_the_leak_of_a_running_process() {
    let (_alone, path) = set_up!("basic", CHROMIUM, NODE);
    let address = format!("127.0.0.1:{}", free_port());
    let watched = Watched::basic(&path, &["--listen", &address]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/page/shows.mjs");
    let mut command = Command::new("node");
    command.args([
        script,
        &format!("http://{address}"),
        &watched.victim.pid().to_string(),
        "leak_basic",
        // What the list says of it.
        "9.77 KiB",
    ]);
    let finished = run_command(command).unwrap();
    assert_eq!(finished.code(), 0, "{}", finished.stdout);
    watched.victim.quit().unwrap();
}
