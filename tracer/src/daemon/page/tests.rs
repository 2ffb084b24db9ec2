//! The page as a browser meets it: its files, its reports, its events.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a failing test may panic"
)]

use std::{io::Read as _, sync::Arc};

use flate2::read::GzDecoder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    sync::watch,
};

use super::{
    super::{
        auth::Entrance,
        routes,
        serve::{self, Counters, Listener, Server},
        testing::large_report,
        tests::{Answer, Daemon, join_all},
        thread::Published,
    },
    files::{FILES, POLICY},
    sheet::Sheet,
};
use crate::report::{Difference, Report};

/// All files together, as a browser has them, bytes.
const LARGEST: usize = 300 << 10;

impl Daemon {
    /// Asks with these headers.
    async fn ask_with(&self, path: &str, headers: &str) -> Answer {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        self.say(request.as_bytes()).await
    }
}

fn unpack(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    GzDecoder::new(bytes).read_to_end(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_of_the_page_comes_with_its_type_and_may_do_nothing_else() {
    let daemon = Daemon::start().await;
    let mut whole = 0;
    for file in FILES {
        let path = format!("/page/{}", file.name);
        let answer = daemon.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        let media_type = match file.name.rsplit_once('.').unwrap().1 {
            "html" => "text/html; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert!(
            answer.head.contains(&format!("content-type: {media_type}")),
            "{path}"
        );
        let policy = format!("content-security-policy: {POLICY}");
        assert!(answer.head.contains(&policy), "{path}: {}", answer.head);
        assert!(!POLICY.contains("unsafe"));
        assert!(answer.head.contains("nosniff"), "{path}");
        assert_eq!(answer.body.len(), file.length);
        whole += file.length;
        let packed = daemon
            .ask_with(&path, "accept-encoding: br, gzip\r\n")
            .await;
        assert!(packed.head.contains("content-encoding: gzip"), "{path}");
        assert_eq!(unpack(&packed.body), answer.body);
        // Nothing is named that is elsewhere, and nothing makes markup of text.
        let text = answer.text().replace("http://www.w3.org/", "");
        for forbidden in [
            "http:",
            "https:",
            "innerHTML",
            "insertAdjacent",
            "eval(",
            "style=\"",
            "onclick=\"",
        ] {
            assert!(!text.contains(forbidden), "{path} has {forbidden}");
        }
    }
    assert!(whole < LARGEST, "{whole}");
    let index = daemon.get("/").await;
    assert_eq!(index.body, daemon.get("/page/index.html").await.body);
    assert!(index.text().contains("<noscript>"));
    daemon
        .get("/page/..%2fmod.rs")
        .await
        .refuses(404, "no such file");
    daemon
        .get("/page/package.json")
        .await
        .refuses(404, "no such file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_has_a_file_is_not_sent_it_again() {
    let daemon = Daemon::start().await;
    let first = daemon.get("/").await;
    let etag = first
        .head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap();
    let again = daemon
        .ask_with("/", &format!("if-none-match: \"other\", W/{etag}\r\n"))
        .await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let other = daemon.ask_with("/", "if-none-match: \"other\"\r\n").await;
    assert_eq!(other.status, 200);
}

#[test]
fn what_the_page_is_told_is_what_the_report_says() {
    let report = large_report(300, 1);
    let told = serde_json::to_value(Sheet::of_report(7, &report)).unwrap();
    let whole = serde_json::to_value(&report).unwrap();
    assert_eq!(told["number"], 7);
    for name in [
        "captured_at",
        "duration_s",
        "tier",
        "omitted",
        "losses",
        "overhead",
        "kernel",
    ] {
        assert_eq!(told[name], whole[name], "{name}");
    }
    assert_eq!(told["total"]["inuse_bytes"], report.total().inuse_bytes);
    let frames = told["frames"].as_array().unwrap();
    let (sites, all) = (
        told["sites"].as_array().unwrap(),
        whole["sites"].as_array().unwrap(),
    );
    assert_eq!(sites.len(), all.len());
    for (site, of) in sites.iter().zip(all) {
        for name in [
            "pid",
            "incarnation",
            "id",
            "inuse_bytes",
            "inuse_objects",
            "alloc_bytes",
            "verdict",
        ] {
            assert_eq!(site[name], of[name], "{name}");
        }
        let places = site["frames"].as_array().unwrap();
        assert_eq!(places.len(), of["frames"].as_array().unwrap().len());
        for (place, frame) in places.iter().zip(of["frames"].as_array().unwrap()) {
            let row = &frames[usize::try_from(place.as_u64().unwrap()).unwrap()];
            for name in ["function", "module", "file", "line"] {
                assert_eq!(row[name], frame[name], "{name}");
            }
        }
    }
    let process = &told["processes"][0];
    for name in ["pid", "comm", "rss_bytes", "inuse_bytes", "verdict"] {
        assert_eq!(process[name], whole["processes"][0][name], "{name}");
    }
}

#[test]
fn an_interval_is_told_where_there_is_one() {
    let mut parts = large_report(2, 1).into_parts();
    parts.sites[0].inuse_bytes_low -= 10;
    let report = Report::new(parts);
    let told = serde_json::to_value(Sheet::of_report(1, &report)).unwrap();
    let ends = |place: usize, end: &str| told["sites"][place][end].as_u64();
    let site = &report.sites[0];
    assert_eq!(ends(0, "inuse_bytes_low"), Some(site.inuse_bytes_low));
    assert_eq!(ends(0, "inuse_bytes_high"), Some(site.inuse_bytes_high));
    assert_eq!(ends(1, "inuse_bytes_low"), None);
}

#[test]
fn a_difference_is_told_with_what_was_before() {
    let base = large_report(5, 1);
    let mut parts = base.clone().into_parts();
    parts.sites[0].inuse_bytes += 1000;
    let new = Report::new(parts);
    let difference = Difference::between(&base, &new);
    let told = serde_json::to_value(Sheet::of_difference(3, &new, &difference)).unwrap();
    assert_eq!(told["difference"]["total"]["inuse_bytes_change"], 1000);
    let sites = told["sites"].as_array().unwrap();
    assert_eq!(sites.len(), 1);
    assert_eq!(sites[0]["change"], "grown");
    assert_eq!(sites[0]["inuse_bytes_change"], 1000);
    let (before, now) = (&sites[0]["inuse_bytes_base"], &sites[0]["inuse_bytes"]);
    assert_eq!(before.as_u64().unwrap() + 1000, now.as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closer_look_has_everything_and_names_that_are_none_are_refused() {
    let daemon = Daemon::start().await;
    let sheet = daemon.get("/api/v1/page").await.json();
    assert_eq!(sheet["sites"].as_array().unwrap().len(), 200);
    let id = sheet["sites"][0]["id"].as_u64().unwrap();
    let site = daemon
        .get(&format!("/api/v1/page/site/4242/0/{id}"))
        .await
        .json();
    assert_eq!(site["site"]["frames"].as_array().unwrap().len(), 20);
    assert_eq!(site["site"]["weight"], 1);
    let process = daemon.get("/api/v1/page/process/4242/0").await.json();
    assert_eq!(process["process"]["comm"], "service");
    assert!(process["process"]["memory_series"].is_array());
    daemon
        .get("/api/v1/page/process/1/0")
        .await
        .refuses(404, "not traced");
    daemon
        .get("/api/v1/page/site/4242/0/99999")
        .await
        .refuses(404, "known");
    assert_eq!(daemon.get("/api/v1/page/site/x/0/1").await.status, 400);
    daemon
        .get("/api/v1/page?base=none")
        .await
        .refuses(404, "no snapshot");
    daemon
        .get("/api/v1/page?seconds=3")
        .await
        .refuses(400, "seconds");
    let packed = daemon
        .ask_with("/api/v1/page", "accept-encoding: gzip\r\n")
        .await;
    assert!(packed.head.contains("content-encoding: gzip"));
    let sheet: serde_json::Value = serde_json::from_slice(&unpack(&packed.body)).unwrap();
    assert_eq!(sheet["sites"].as_array().unwrap().len(), 200);
}

/// A page that waits for events.
async fn events(daemon: &Daemon) -> UnixStream {
    let mut stream = daemon.connect().await;
    let request = "GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until this comes, and gives all that came.
async fn until(stream: &mut UnixStream, wanted: &str) -> String {
    let mut heard = Vec::new();
    let mut room = [0; 1024];
    loop {
        let text = String::from_utf8_lossy(&heard).into_owned();
        if text.contains(wanted) {
            return text;
        }
        let length = stream.read(&mut room).await.unwrap();
        assert!(length > 0, "the end instead of {wanted}: {text}");
        heard.extend_from_slice(&room[..length]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_report_and_another_snapshot_bring_events() {
    let daemon = Daemon::start().await;
    let mut page = events(&daemon).await;
    let first = until(&mut page, "\"number\":").await;
    assert!(first.contains("content-type: text/event-stream"), "{first}");
    assert!(first.contains("retry: "), "{first}");
    assert!(first.contains("event: now\ndata: {"), "{first}");
    let second = until(&mut page, "\"number\":").await;
    assert!(!second.contains("content-type"), "{second}");
    daemon.ask("PUT", "/api/v1/snapshots/a").await;
    until(&mut page, "\"snapshots\":1").await;
    daemon.ask("DELETE", "/api/v1/snapshots/a").await;
    until(&mut page, "\"snapshots\":2").await;
    daemon.tracing.stop();
    // The last chunk: nothing more comes.
    let last = until(&mut page, "0\r\n\r\n").await;
    assert!(last.contains("\"ended\":true"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_does_not_read_holds_nobody_up() {
    let daemon = Daemon::start().await;
    let mut deaf = Vec::new();
    for _ in 0..20 {
        deaf.push(events(&daemon).await);
    }
    for change in 0..50 {
        let path = format!("/api/v1/snapshots/s{change}");
        assert_eq!(daemon.ask("PUT", &path).await.status, 201);
        assert_eq!(daemon.ask("DELETE", &path).await.status, 204);
    }
    let mut page = events(&daemon).await;
    until(&mut page, "\"snapshots\":100").await;
    assert_eq!(daemon.get("/metrics").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_for_pages_have_a_number_and_come_back() {
    let daemon = Daemon::start().await;
    let mut pages = Vec::new();
    for _ in 0..64 {
        let mut page = events(&daemon).await;
        until(&mut page, "retry").await;
        pages.push(page);
    }
    daemon
        .get("/api/v1/events")
        .await
        .refuses(503, "too many pages");
    assert_eq!(daemon.get("/metrics").await.status, 200);
    pages.clear();
    loop {
        let mut page = events(&daemon).await;
        let mut answer = [0; 12];
        page.read_exact(&mut answer).await.unwrap();
        if &answer == b"HTTP/1.1 200" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_at_once_are_given_one_piece_of_memory() {
    let daemon = Daemon::start().await;
    let app = routes::app(daemon.tracing.clone(), Arc::new(Counters::default()));
    let published: Published = app.tracing.fresh().await.unwrap();
    let bodies = join_all((0..20).map(|_| app.sheet(&published, true)).collect()).await;
    let first = bodies[0].as_ref().unwrap();
    for body in &bodies {
        assert_eq!(body.as_ref().unwrap().as_ptr(), first.as_ptr());
    }
    let plain = app.sheet(&published, false).await.unwrap();
    assert_eq!(unpack(first), plain);
}

/// The same daemon over TCP, where pages of others could ask, and what it answers.
async fn over_tcp(daemon: &Daemon, request: &str) -> Answer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let counters = Arc::new(Counters::default());
    let (_ending, ending) = watch::channel(false);
    let server = Server {
        router: routes::router(daemon.tracing.clone(), Arc::clone(&counters)),
        counters,
        ending,
    };
    let entrance = Entrance::Tcp {
        token: None,
        address,
    };
    let listening = tokio::spawn(serve::listen(Listener::Tcp(listener), entrance, server));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = request.replace("OWN", &address.to_string());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let length = stream.read(&mut answer).await.unwrap();
    listening.abort();
    Answer::read(&answer[..length])
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_others_hear_no_events_and_change_no_snapshots() {
    let daemon = Daemon::start().await;
    for (method, path, headers, status) in [
        ("GET", "/api/v1/events", "sec-fetch-site: same-origin", 200),
        ("GET", "/api/v1/events", "sec-fetch-site: cross-site", 403),
        ("GET", "/api/v1/events", "origin: http://evil.example", 403),
        ("PUT", "/api/v1/snapshots/a", "origin: http://OWN", 201),
        (
            "PUT",
            "/api/v1/snapshots/a",
            "origin: http://evil.example",
            403,
        ),
        ("DELETE", "/api/v1/snapshots/a", "origin: null", 403),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: OWN\r\n{headers}\r\n\r\n");
        let answer = over_tcp(&daemon, &request).await;
        assert_eq!(answer.status, status, "{method} {path} {headers}");
    }
}
