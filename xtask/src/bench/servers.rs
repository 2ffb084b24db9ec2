//! What is said of real servers under steady load: none of them leaks.

use super::Bench;
use super::child::Running;
use super::figures::{BarFigures, ServerFigures, ServersFigures};
use super::loads::{Postgres, Redis};
use crate::shell;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

/// How long they are under load before they are watched, and how long they are watched.
const WARM: Duration = Duration::from_secs(60);
const WATCHED: Duration = Duration::from_secs(600);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server in CPython: it keeps sessions in a cache of bounded size and answers with JSON from a database in memory.
const PYTHON_SERVER: &str = r"
import functools, json, os, sqlite3, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
database = sqlite3.connect(':memory:')
database.execute('create table items(id integer primary key, name text)')
database.executemany('insert into items values (?, ?)', [(i, 'item %d' % i) for i in range(2000)])
@functools.lru_cache(maxsize=500)
def found(prefix):
    return database.execute('select id, name from items where name like ? limit 50', (prefix + '%',)).fetchall()
class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = json.dumps({'path': self.path, 'found': found('item ' + self.path[1:])}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
server = HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler)
print('ready', os.getpid(), flush=True)
server.serve_forever()
";

/// The same in Node.
const NODE_SERVER: &str = r"
const cache = new Map();
require('http').createServer((request, response) => {
    let body = cache.get(request.url);
    if (body === undefined) {
        body = JSON.stringify({path: request.url, items: Array.from({length: 50}, (_, i) => ({id: i, name: 'item ' + i}))});
        if (cache.size >= 500) cache.delete(cache.keys().next().value);
        cache.set(request.url, body);
    }
    response.setHeader('Content-Length', Buffer.byteLength(body));
    response.end(body);
}).listen(Number(process.argv[1]), '127.0.0.1', () => console.log('ready', process.pid));
";

/// Some hundred requests a second to each, with keys and sizes that come again.
const LOAD: &str = r"
import http.client, random, socket, sys, threading, time
memcached, redis, ports = sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[3:]]
def http_load(port):
    connection = None
    while True:
        try:
            connection = connection or http.client.HTTPConnection('127.0.0.1', port, timeout=5)
            connection.request('GET', '/%d' % random.randrange(2000))
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection = None
        time.sleep(0.01)
def store_load(path, store, fetch):
    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    while True:
        key = b'key:%d' % random.randrange(5000)
        value = b'x' * random.randrange(1, 2000)
        link.sendall(store(key, value))
        link.recv(65536)
        link.sendall(fetch(key))
        link.recv(65536)
        time.sleep(0.005)
jobs = [(http_load, (port,)) for port in ports]
jobs.append((store_load, (memcached, lambda k, v: b'set %s 0 0 %d\r\n%s\r\n' % (k, len(v), v), lambda k: b'get %s\r\n' % k)))
jobs.append((store_load, (redis, lambda k, v: b'*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n' % (len(k), k, len(v), v),
                          lambda k: b'*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n' % (len(k), k))))
for job, arguments in jobs:
    threading.Thread(target=job, args=arguments, daemon=True).start()
print('ready', flush=True)
sys.stdin.read()
";

/// A port that nobody listens on.
fn free_port() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port is free")?;
    Ok(listener.local_addr()?.port().to_string())
}

/// A program that says when it is ready.
fn ready(program: &str, arguments: &[&str], folder: &Path) -> Result<Running> {
    let path = shell::find_program(program).with_context(|| format!("there is no {program}"))?;
    let mut command = Command::new(path);
    command.args(arguments);
    let log = folder.join(format!("{program}-server.log"));
    let running = Running::start(&mut command, &log)?;
    let (_, line) = running.line(PATIENCE)?;
    if !line.starts_with("ready") {
        bail!("{program} said {line:?}");
    }
    Ok(running)
}

/// nginx with one worker, in the foreground.
fn nginx(folder: &Path, port: &str) -> Result<Running> {
    let program = shell::find_program("nginx").context("there is no nginx")?;
    let prefix = folder.join("nginx");
    shell::make_dir(&prefix)?;
    fs::write(prefix.join("page.html"), "x".repeat(20_000))?;
    let configuration = format!(
        "daemon off; master_process off; pid {0}/pid; error_log {0}/error.log;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; gzip on; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;\n\
         uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {0}; location / {{ try_files /page.html =404; }} }} }}\n",
        prefix.display()
    );
    let file = prefix.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(&prefix).arg("-c").arg(&file);
    Running::start(&mut command, &folder.join("nginx.log"))
}

/// Watches them all at the same time.
///
/// # Errors
/// When one is missing or fails, or leakscope does.
pub(super) fn measure(bench: &Bench) -> Result<ServersFigures> {
    let folder = bench.folder();
    let ports = [free_port()?, free_port()?, free_port()?];
    let [nginx_port, python_port, node_port] = &ports;
    let redis = Redis::start(folder)?;
    let postgres = Postgres::start(folder)?;
    let web = nginx(folder, nginx_port)?;
    let python = ready("python3", &["-c", PYTHON_SERVER, python_port], folder)?;
    let node = ready("node", &["-e", NODE_SERVER, node_port], folder)?;
    let socket = folder.join("memcached.sock");
    let mut command =
        Command::new(shell::find_program("memcached").context("there is no memcached")?);
    command.args(["-u", "root", "-m", "64", "-s"]).arg(&socket);
    let memcached = Running::start(&mut command, &folder.join("memcached.log"))?;
    thread::sleep(Duration::from_secs(1));
    let socket = socket.to_string_lossy();
    let redis_socket = redis.socket().to_string_lossy().into_owned();
    let mut arguments = vec!["-c", LOAD, &socket, &redis_socket];
    arguments.extend(ports.iter().map(String::as_str));
    let _load = ready("python3", &arguments, folder)?;
    let length = (WARM + WATCHED + PATIENCE).as_secs().to_string();
    let mut sessions = postgres.client("pgbench");
    sessions.args(["-n", "-c", "2", "-R", "100", "-T", &length, "postgres"]);
    let _sessions = Running::start(&mut sessions, &folder.join("pgbench.log"))?;
    bench.say(&format!("servers: warm after {} s", WARM.as_secs()));
    thread::sleep(WARM);
    let mut pids = [&web, &python, &node, &memcached]
        .map(Running::pid)
        .to_vec();
    pids.push(redis.pid());
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let servers = watch(bench, &pids.join(","))?;
    let leaking: usize = servers.iter().map(|server| server.leaking.len()).sum();
    let called: usize = servers
        .iter()
        .filter(|server| server.verdict == "leaking")
        .count();
    Ok(ServersFigures {
        bars: vec![
            BarFigures::at_most("sites called leaking".to_owned(), leaking as f64, 0.0),
            BarFigures::at_most("processes called leaking".to_owned(), called as f64, 0.0),
        ],
        servers,
    })
}

/// What is said of the processes named, and of PostgreSQL's, after the time.
fn watch(bench: &Bench, pids: &str) -> Result<Vec<ServerFigures>> {
    let seconds = format!("{}s", WATCHED.as_secs());
    bench.say(&format!("servers: watched for {seconds}"));
    let mut tracers = Vec::new();
    for (number, target) in [["-p", pids], ["--comm", "postgres"]].iter().enumerate() {
        let report = bench.folder().join(format!("servers-{number}.json"));
        let mut command = Command::new(&bench.leakscope);
        command.args(["trace", "--for", &seconds, "--top", "100000"]);
        command.args(["--format", "json", "-o"]).arg(&report);
        command.args(target);
        let tracer = Running::start(&mut command, &bench.folder().join("tracer.log"))?;
        tracers.push((tracer, report));
    }
    let mut servers = Vec::new();
    for (mut tracer, report) in tracers {
        if !tracer.end(WATCHED + PATIENCE)?.success() {
            bail!("leakscope failed: {}", bench.log("tracer.log"));
        }
        servers.extend(said(&serde_json::from_slice(&shell::read(&report)?)?));
    }
    Ok(servers)
}

/// What a report says of its processes.
fn said(report: &Value) -> Vec<ServerFigures> {
    let list = |name: &str| report.get(name).and_then(Value::as_array).cloned();
    let text = |of: &Value, name: &str| {
        of.get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let sites = list("sites").unwrap_or_default();
    list("processes")
        .unwrap_or_default()
        .iter()
        .map(|process| {
            let own = |site: &&Value| site.get("pid") == process.get("pid");
            ServerFigures {
                name: text(process, "comm"),
                verdict: text(process, "verdict"),
                reason: text(process, "verdict_reason"),
                sites: sites.iter().filter(own).count() as u64,
                leaking: sites
                    .iter()
                    .filter(own)
                    .filter(|site| text(site, "verdict") == "leaking")
                    .map(|site| text(site, "verdict_reason"))
                    .collect(),
            }
        })
        .collect()
}
