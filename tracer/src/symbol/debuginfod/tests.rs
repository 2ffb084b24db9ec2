//! Against servers that answer as they please.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use super::{Debuginfod, DebuginfodSettings, Found, public};
use crate::{process::elf::ElfFile, symbol::space::hex};

/// What a server does with a request, whose path it is given.
type Behaviour = fn(&str, &mut TcpStream);

/// A server on this machine; the paths that were asked for.
fn server(behaviour: Behaviour) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, paths) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let first = lines.next().unwrap().unwrap();
            lines.find(|line| line.as_ref().unwrap().is_empty());
            let path = first.split(' ').nth(1).unwrap().to_owned();
            let _ = asked.send(path.clone());
            behaviour(&path, &mut stream);
        }
    });
    (url, paths)
}

fn answer(stream: &mut TcpStream, status: &str, body: &[u8]) {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    // A client that has seen enough goes away.
    let _ = stream.write_all(body);
}

fn our_file() -> Vec<u8> {
    fs::read(std::env::current_exe().unwrap()).unwrap()
}

fn our_build_id() -> String {
    let file = fs::File::open(std::env::current_exe().unwrap()).unwrap();
    hex(&ElfFile::parse(&file).unwrap().build_id.unwrap())
}

/// A client with patience, and what it says.
struct Client {
    debuginfod: Debuginfod,
    said: Arc<Mutex<Vec<String>>>,
    patience: Duration,
}

fn client(urls: &[&str], cache: &Path) -> Client {
    let said = Arc::new(Mutex::new(Vec::new()));
    let settings = DebuginfodSettings {
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        timeout: Duration::from_secs(1),
        maxtime: Some(Duration::from_secs(20)),
        largest: 1 << 30,
    };
    client_with(settings, cache, said)
}

fn client_with(
    settings: DebuginfodSettings,
    cache: &Path,
    said: Arc<Mutex<Vec<String>>>,
) -> Client {
    let patience = settings.patience();
    let debuginfod = Debuginfod::new(settings, cache.to_owned(), {
        let said = Arc::clone(&said);
        move |line| said.lock().unwrap().push(line.to_owned())
    });
    Client {
        debuginfod,
        said,
        patience,
    }
}

impl Client {
    fn fetch(&mut self, build_id: &str) -> Found {
        let _ = self.debuginfod.find(build_id);
        self.debuginfod.wait(build_id, &mut self.patience);
        self.debuginfod.find(build_id)
    }

    #[track_caller]
    fn said_once(&self, words: &str) {
        let said = self.said.lock().unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said.iter().all(|line| line.contains(words)), "{said:?}");
    }
}

fn is_here(found: &Found) -> bool {
    matches!(found, Found::Here(_))
}

#[test]
fn a_file_is_fetched_once_and_lies_where_other_tools_look() {
    let (url, paths) = server(|_, stream| answer(stream, "200 OK", &our_file()));
    let cache = tempfile::tempdir().unwrap();
    let id = our_build_id();
    for _ in 0..2 {
        assert!(is_here(&client(&[&url], cache.path()).fetch(&id)));
    }
    assert_eq!(
        paths.try_iter().collect::<Vec<_>>(),
        [format!("/buildid/{id}/debuginfo")]
    );
    let kept = fs::read(cache.path().join(&id).join("debuginfo")).unwrap();
    assert_eq!(kept.len(), our_file().len());
}

#[test]
fn the_next_server_is_asked_where_one_has_nothing() {
    let (empty, _) = server(|_, stream| answer(stream, "404 Not Found", b"none"));
    let (url, _) = server(|_, stream| answer(stream, "200 OK", &our_file()));
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&empty, &url], cache.path());
    assert!(is_here(&client.fetch(&our_build_id())));
    assert!(client.said.lock().unwrap().is_empty());
}

#[test]
fn that_no_server_has_it_is_remembered() {
    let (url, paths) = server(|_, stream| answer(stream, "404 Not Found", b"none"));
    let cache = tempfile::tempdir().unwrap();
    let id = our_build_id();
    for _ in 0..2 {
        let mut client = client(&[&url], cache.path());
        assert!(!is_here(&client.fetch(&id)));
        assert!(client.said.lock().unwrap().is_empty());
    }
    assert_eq!(paths.try_iter().count(), 1);
    let kept = fs::metadata(cache.path().join(&id).join("debuginfo")).unwrap();
    assert_eq!(kept.len(), 0);
}

#[test]
fn a_file_of_another_build_id_is_not_kept() {
    let (url, _) = server(|_, stream| answer(stream, "200 OK", &our_file()));
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    let other = "00112233445566778899";
    assert!(!is_here(&client.fetch(other)));
    client.said_once("has another one, or is no ELF file");
    assert!(!cache.path().join(other).exists(), "an empty folder stays");
}

#[test]
fn a_server_that_fails_is_said_once_and_left_alone() {
    let (url, paths) = server(|_, stream| answer(stream, "500 Broken", b""));
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    for id in ["00112233445566778899", "99887766554433221100"] {
        assert!(!is_here(&client.fetch(id)));
        // It may have it tomorrow.
        assert!(!cache.path().join(id).exists(), "an empty folder stays");
    }
    client.said_once("status 500");
    assert_eq!(paths.try_iter().count(), 1);
}

#[test]
fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    assert!(!is_here(&client.fetch(&our_build_id())));
    client.said_once("refused");
}

#[test]
fn a_silent_server_is_given_up() {
    let (url, _) = server(|_, _| thread::sleep(Duration::from_secs(60)));
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    assert!(!is_here(&client.fetch(&our_build_id())));
    client.said_once("too slow, or silent");
}

#[test]
fn a_server_that_sends_a_byte_at_a_time_is_given_up() {
    let (url, _) = server(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(b"x").is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    assert!(!is_here(&client.fetch(&our_build_id())));
    client.said_once("too slow, or silent");
}

#[test]
fn patience_ends_before_a_file_without_end_and_nothing_of_it_stays() {
    let (url, _) = server(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[0; 4096]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let mut client = client(&[&url], cache.path());
    let id = our_build_id();
    client.patience = Duration::from_millis(300);
    assert!(matches!(client.fetch(&id), Found::Awaited));
    client.said_once("1 debug file had not come");
    assert_eq!(client.patience, Duration::ZERO);
    // Nobody waits any more, and it is not said again.
    assert!(matches!(client.fetch(&id), Found::Awaited));
    client.said_once("1 debug file had not come");
    let folder = cache.path().join(&id);
    while fs::read_dir(&folder).map_or(0, Iterator::count) == 0 {
        thread::yield_now();
    }
    drop(client);
    assert_eq!(fs::read_dir(folder).map_or(0, Iterator::count), 0);
}

#[test]
fn a_file_that_is_too_large_is_left_there() {
    for behaviour in [
        (|_, stream| answer(stream, "200 OK", &our_file())) as Behaviour,
        |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            while stream.write_all(&[0; 4096]).is_ok() {}
        },
        |_, stream| answer(stream, "406 Not Acceptable", b""),
    ] {
        let (url, _) = server(behaviour);
        let cache = tempfile::tempdir().unwrap();
        let settings = DebuginfodSettings {
            largest: 100_000,
            ..client(&[&url], cache.path())
                .debuginfod
                .shared()
                .settings
                .clone()
        };
        let mut client = client_with(settings, cache.path(), Arc::default());
        assert!(!is_here(&client.fetch(&our_build_id())));
        client.said_once("larger than");
    }
}

#[test]
fn what_is_no_build_id_is_not_asked_for() {
    let (url, paths) = server(|_, stream| answer(stream, "404 Not Found", b""));
    let cache = tempfile::tempdir().unwrap();
    let client = client(&[&url], cache.path());
    for id in ["", "00", "001122334455667", &"00".repeat(65)] {
        if !matches!(client.debuginfod.find(id), Found::Nowhere) {
            panic!("{id} was asked for");
        }
    }
    assert_eq!(paths.try_iter().count(), 0);
}

#[test]
fn passwords_are_not_said() {
    assert_eq!(public("https://me:word@host/path"), "https://host/path");
    assert_eq!(public("http://host:80"), "http://host:80");
}
