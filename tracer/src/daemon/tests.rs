//! The daemon as its clients see it: real sockets, made-up reports.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::watch,
};

use super::{
    auth::Entrance,
    routes,
    serve::{self, Counters, Listener, Server},
    socket,
    testing::large_report,
    thread::{self, Source, Tracing},
};
use crate::report::{Report, Timestamp, pprof};

/// A trace of a program whose memory grows with every report.
struct Growing {
    reports: u64,
}

impl Source for Growing {
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()> {
        std::thread::sleep(at_most.min(Duration::from_millis(1)));
        Ok(())
    }

    fn report(&mut self) -> anyhow::Result<Report> {
        self.reports += 1;
        let mut parts = large_report(200, 1).into_parts();
        parts.captured_at = Timestamp::from_unix_ms(1_767_225_600_000 + self.reports * 1000);
        parts.duration_s = self.reports as f64;
        for site in &mut parts.sites {
            site.inuse_bytes += self.reports;
            site.inuse_bytes_high += self.reports;
            site.alloc_bytes += self.reports;
        }
        parts.add_up();
        Ok(Report::new(parts))
    }

    fn select_again(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn detach(&mut self) {}
}

/// A daemon in this process.
pub(super) struct Daemon {
    pub(super) path: PathBuf,
    pub(super) tracing: Tracing,
    pub(super) counters: Arc<Counters>,
    _claim: socket::Claim,
    _ending: watch::Sender<bool>,
    _folder: tempfile::TempDir,
}

impl Daemon {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, claim) = socket::claim(&path).await.unwrap();
        let (tracing, _thread) = thread::start(|| Ok(Growing { reports: 0 })).await.unwrap();
        let counters = Arc::new(Counters::default());
        let (ending, is_ending) = watch::channel(false);
        let server = Server {
            router: routes::router(tracing.clone(), Arc::clone(&counters)),
            counters: Arc::clone(&counters),
            ending: is_ending,
        };
        tokio::spawn(serve::listen(
            Listener::Unix(listener),
            Entrance::Socket,
            server,
        ));
        Self {
            path,
            tracing,
            counters,
            _claim: claim,
            _ending: ending,
            _folder: folder,
        }
    }

    pub(super) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }

    /// Sends bytes and reads to the end.
    pub(super) async fn say(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect().await;
        // The daemon may have heard enough before everything is said.
        let _ = stream.write_all(request).await;
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        Answer::read(&bytes)
    }

    pub(super) async fn ask(&self, method: &str, path: &str) -> Answer {
        let request =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        self.say(request.as_bytes()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.tracing.stop();
    }
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Answer {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .unwrap_or(bytes.len());
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        Self {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: bytes.get(end + 4..).unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic_with(&error, self))
    }

    /// Whether it says what is wrong, as JSON.
    #[track_caller]
    pub(super) fn refuses(&self, status: u16, what: &str) {
        assert_eq!(self.status, status, "{self:?}");
        let json = self.json();
        let message = json["error"].as_str().unwrap();
        assert!(message.contains(what), "{message}");
        assert_eq!(json["status"], status);
    }
}

#[expect(clippy::panic, reason = "a failing test may panic")]
fn panic_with(error: &dyn std::fmt::Display, answer: &Answer) -> serde_json::Value {
    panic!("{error}: {} {}", answer.head, answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_answers_in_its_format() {
    let daemon = Daemon::start().await;
    for (path, media_type, begins) in [
        ("/", "text/html", "<!DOCTYPE html>"),
        ("/flamegraph.svg", "image/svg+xml", "<?xml"),
        ("/healthz", "application/json", "{"),
        ("/metrics", "text/plain; version=0.0.4", "# HELP leakscope_"),
        ("/api/v1/report", "application/json", "{\"schema\":1"),
        ("/api/v1/report?format=text", "text/plain", "leakscope: "),
        (
            "/api/v1/report?format=folded",
            "text/plain",
            "service-4242;",
        ),
        ("/api/v1/processes", "application/json", "{"),
        ("/api/v1/snapshots", "application/json", "{\"snapshots\":[]"),
    ] {
        let answer = daemon.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(
            answer.head.contains(&format!("content-type: {media_type}")),
            "{path}: {}",
            answer.head
        );
        assert!(
            answer.text().starts_with(begins),
            "{path}: {}",
            answer.text()
        );
    }
    let report = Report::from_json(&daemon.get("/api/v1/report").await.body).unwrap();
    assert_eq!((report.sites.len(), report.omitted.sites), (20, 180));
    for (path, first) in [
        ("/debug/pprof/heap", "inuse_space"),
        ("/debug/pprof/allocs", "alloc_space"),
    ] {
        let profile = pprof::read(&daemon.get(path).await.body).unwrap();
        assert_eq!(profile.sample.len(), 200);
        assert_eq!(profile.string(profile.default_sample_type), first);
    }
    let head = daemon.ask("HEAD", "/debug/pprof/heap").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_and_say_when_nothing_is_there() {
    let daemon = Daemon::start().await;
    for query in [
        "pid=4242",
        "comm=serv*",
        "comm=x&comm=s%5Be%5D*",
        "cgroup=/",
    ] {
        let answer = daemon.get(&format!("/api/v1/report?{query}")).await;
        let sites = answer.json()["sites"].as_array().map(Vec::len);
        assert_eq!(sites, Some(20), "{query}");
    }
    daemon
        .get("/debug/pprof/heap?pid=1")
        .await
        .refuses(404, "process 1 is not traced");
    daemon
        .get("/api/v1/processes?comm=other")
        .await
        .refuses(404, "no traced process");
    for query in [
        "top=0",
        "pid=x",
        "nothing=1",
        "format=exe",
        "seconds=-1",
        "a%FF=1",
    ] {
        daemon
            .get(&format!("/api/v1/report?{query}"))
            .await
            .refuses(400, "");
    }
    daemon
        .get("/etc/passwd")
        .await
        .refuses(404, "/debug/pprof/heap");
    daemon.ask("PATCH", "/metrics").await.refuses(405, "method");
    daemon
        .get("/flamegraph.svg?format=text")
        .await
        .refuses(400, "one format");
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_kept_compared_and_deleted() {
    let daemon = Daemon::start().await;
    let kept = daemon.ask("POST", "/api/v1/snapshots/before").await;
    assert_eq!(kept.status, 201, "{kept:?}");
    daemon
        .ask("POST", "/api/v1/snapshots?name=before")
        .await
        .refuses(409, "already");
    for path in [
        "/api/v1/snapshots/..%2F..%2Fx",
        "/api/v1/snapshots/%00",
        "/api/v1/snapshots?name=../x",
    ] {
        daemon.ask("POST", path).await.refuses(400, "name");
    }
    daemon.tracing.fresh().await.unwrap();
    let difference = daemon.get("/api/v1/report?base=before").await.json();
    assert_eq!(difference["kind"], "difference");
    assert_eq!(difference["changes"].as_array().map(Vec::len), Some(20));
    let total = difference["total"]["inuse_bytes_change"].as_i64().unwrap();
    assert!(total > 0 && total % 200 == 0, "{total}");
    let profile = pprof::read(&daemon.get("/debug/pprof/heap?base=before").await.body).unwrap();
    assert!(profile.totals()["inuse_space"] > 0);
    let saved = pprof::read(&daemon.get("/api/v1/snapshots/before").await.body).unwrap();
    assert_eq!(saved.sample.len(), 200);
    daemon
        .get("/api/v1/report?base=after")
        .await
        .refuses(404, "no snapshot");
    assert_eq!(
        daemon
            .ask("DELETE", "/api/v1/snapshots/before")
            .await
            .status,
        204
    );
    daemon
        .ask("DELETE", "/api/v1/snapshots/before")
        .await
        .refuses(404, "no snapshot");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_over_time_waits() {
    let daemon = Daemon::start().await;
    let profile = daemon.get("/debug/pprof/heap?seconds=1").await;
    let profile = pprof::read(&profile.body).unwrap();
    // At least one more report was made, in which each of the 200 sites has a byte more.
    assert!(profile.totals()["inuse_space"] >= 200);
    assert_eq!(profile.totals()["inuse_objects"], 0);
    // Only so many may wait, and the others are told.
    let requests = (0..20).map(|_| daemon.get("/debug/pprof/heap?seconds=2"));
    let mut statuses = std::collections::BTreeMap::new();
    let mut running = Vec::new();
    for request in requests {
        running.push(request);
    }
    for answer in join_all(running).await {
        *statuses.entry(answer.status).or_insert(0) += 1;
    }
    assert_eq!(statuses, [(200, 8), (503, 12)].into());
}

/// Waits for all of them at once.
pub(super) async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut outputs = Vec::new();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => {
                outputs.push(output);
                false
            }
            std::task::Poll::Pending => true,
        });
        if futures.is_empty() {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    outputs
}

#[tokio::test(flavor = "multi_thread")]
async fn pprof_failed_over_programs_without_names() {
    let daemon = Daemon::start().await;
    // It asks for the names of all addresses that have none in the profile.
    let body = vec!["0x5512345678"; 20_000].join("+");
    let question = format!(
        "POST /debug/pprof/symbol HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let answer = daemon.say(question.as_bytes()).await;
    assert_eq!(answer.status, 200);
    let get = daemon
        .say(b"GET /debug/pprof/symbol HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await;
    assert_eq!(get.status, 200);
    assert_eq!(get.body, b"num_symbols: 1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_too_large_are_refused() {
    let daemon = Daemon::start().await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let status = daemon.say(long.as_bytes()).await.status;
    assert!([414, 431].contains(&status), "{status}");
    let mut flood = "GET /metrics HTTP/1.1\r\n".to_owned();
    for header in 0..1000 {
        flood.push_str(&format!("x-{header}: y\r\n"));
    }
    flood.push_str("\r\n");
    assert_eq!(daemon.say(flood.as_bytes()).await.status, 431);
    let body =
        "POST /api/v1/snapshots/x HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000000\r\n\r\n";
    let mut stream = daemon.connect().await;
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    Answer::read(&answer[..length]).refuses(413, "body");
    drop(stream);
    // A body in chunks does not say how long it is.
    let mut chunks =
        "POST /api/v1/snapshots/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_owned();
    for _ in 0..8 {
        chunks.push_str(&format!("400\r\n{}\r\n", "x".repeat(1024)));
    }
    chunks.push_str("0\r\n\r\n");
    daemon.say(chunks.as_bytes()).await.refuses(413, "body");
    assert_eq!(
        daemon.say(b"\x16\x03\x01 nonsense\r\n\r\n").await.status,
        400
    );
    // None of it did any harm.
    assert_eq!(daemon.get("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_a_number() {
    let daemon = Daemon::start().await;
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(daemon.connect().await);
    }
    daemon
        .get("/metrics")
        .await
        .refuses(503, "too many connections");
    // Clients that vanish make room.
    idle.clear();
    let mut status = 503;
    while status == 503 {
        status = daemon.get("/metrics").await.status;
    }
    assert_eq!(status, 200);
    assert!(
        daemon
            .counters
            .turned_away
            .load(std::sync::atomic::Ordering::Relaxed)
            > 0
    );
}

/// The clock is not the machine's here: it jumps to the next deadline whenever nothing else is to be done.
#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_request_is_cut_off() {
    let daemon = Daemon::start().await;
    let mut stream = daemon.connect().await;
    let begun = tokio::time::Instant::now();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\n")
        .await
        .unwrap();
    let drip = async {
        // A header every second would go on for a minute.
        for header in 0..60 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let line = format!("x-{header}: y\r\n");
            if stream.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
    };
    drip.await;
    let lasted = begun.elapsed();
    assert!(lasted < Duration::from_secs(20), "{lasted:?}");
    assert!(lasted > Duration::from_secs(5), "{lasted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_at_once_all_get_the_same_report() {
    let daemon = Daemon::start().await;
    let answers = join_all((0..200).map(|_| daemon.get("/debug/pprof/heap")).collect()).await;
    assert_eq!(answers.len(), 200);
    for answer in answers {
        assert_eq!(answer.status, 200);
        assert!(pprof::read(&answer.body).is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_tracing_ends_clients_are_told() {
    let daemon = Daemon::start().await;
    assert_eq!(daemon.get("/healthz").await.status, 200);
    daemon.tracing.stop();
    let mut answer = daemon.get("/debug/pprof/heap?seconds=1").await;
    while answer.status == 200 {
        answer = daemon.get("/debug/pprof/heap?seconds=1").await;
    }
    answer.refuses(503, "tracing has ended");
    daemon
        .get("/healthz")
        .await
        .refuses(503, "tracing has ended");
}
