//! `leakscope dump`: asks a daemon over HTTP, and writes what it answers.

use std::{fmt, io::ErrorKind, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use axum::body::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{
    Method, Request, StatusCode,
    client::conn::http1,
    header::{AUTHORIZATION, HOST},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use super::{
    args::{DumpArguments, FormatChoice, PlaceArguments},
    output::Output,
    places::daemon_socket,
    snapshot,
};
use crate::{
    daemon::{block_on, read_token},
    report::{By, Style},
};

/// How long a connection may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// How long an answer may take, beyond what is asked to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// The most bytes of an answer.
const LARGEST: usize = 256 << 20;

/// The port of plain HTTP.
const HTTP_PORT: u16 = 80;

/// Where the daemon is.
pub(super) enum Place {
    Socket(PathBuf),
    /// Host and port, as in a `Host` header.
    Tcp(String),
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(formatter, "the daemon at {}", path.display()),
            Self::Tcp(authority) => write!(formatter, "the daemon at http://{authority}"),
        }
    }
}

/// Which daemon is asked, and the token for it.
pub(super) fn asked(raw: &PlaceArguments) -> anyhow::Result<(Place, Option<String>)> {
    let place = match &raw.url {
        Some(url) => Place::Tcp(authority(url)?),
        None => Place::Socket(raw.socket.clone().unwrap_or_else(daemon_socket)),
    };
    let token = raw.auth_token_file.as_deref().map(read_token).transpose()?;
    Ok((place, token))
}

/// Asks and writes.
pub(super) fn run(raw: &DumpArguments) -> anyhow::Result<ExitCode> {
    let (place, token) = asked(&raw.daemon)?;
    if let Some(name) = &raw.snapshot {
        return snapshot::save(&place, token.as_deref(), name);
    }
    let mut output = Output::open(raw.output.as_deref(), raw.format)?.with_view(raw.view);
    let body = block_on(ask(
        &place,
        Method::GET,
        &path(raw, output.style()),
        token.as_deref(),
        raw.duration.unwrap_or_default(),
    ))?;
    output.write_bytes(&body)?;
    Ok(ExitCode::SUCCESS)
}

/// The path and query of what is asked for.
fn path(raw: &DumpArguments, style: Style) -> String {
    let mut query = vec![pair("format", raw.format.name())];
    let only = &raw.only;
    query.extend(selection(&only.pid, &only.comm, &only.cgroup));
    query.extend(raw.top.map(|top| pair("top", &top.to_string())));
    query.extend(raw.base.as_deref().map(|base| pair("base", base)));
    query.extend(raw.new.as_deref().map(|new| pair("new", new)));
    query.extend(raw.duration.map(|wait| {
        let seconds = wait
            .as_secs()
            .saturating_add(u64::from(wait.subsec_nanos() > 0));
        pair("seconds", &seconds.to_string())
    }));
    if raw.format == FormatChoice::Text {
        query.extend(styled(raw, style));
    }
    format!("/api/v1/report?{}", query.join("&"))
}

/// What asks for some of the processes.
pub(super) fn selection(pids: &[u32], comms: &[String], cgroups: &[PathBuf]) -> Vec<String> {
    let mut query = Vec::new();
    if !pids.is_empty() {
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        query.push(pair("pid", &pids.join(",")));
    }
    query.extend(comms.iter().map(|comm| pair("comm", comm)));
    let groups = cgroups.iter().map(|path| path.to_string_lossy());
    query.extend(groups.map(|path| pair("cgroup", &path)));
    query
}

/// How text is to be written, as the daemon is told.
fn styled(raw: &DumpArguments, style: Style) -> Vec<String> {
    let mut query = Vec::new();
    for (name, is_on) in [
        ("color", style.color),
        ("links", style.links),
        ("full", style.full),
    ] {
        if is_on {
            query.push(pair(name, "1"));
        }
    }
    if style.by == By::Tree {
        query.push(pair("by", "tree"));
    }
    for (name, value) in [("width", style.width), ("height", style.height)] {
        query.extend(value.map(|value| pair(name, &value.to_string())));
    }
    query.extend(
        raw.view
            .min_percent
            .map(|percent| pair("min-percent", &percent.to_string())),
    );
    query
}

/// `name=value`, the value with every byte but letters, digits and `-._~` (RFC 3986, 2.3) as `%` and two digits.
pub(super) fn pair(name: &str, value: &str) -> String {
    let mut text = format!("{name}=");
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Host and port of a URL.
pub(super) fn authority(url: &str) -> anyhow::Result<String> {
    let rest = match url.split_once("://") {
        None => url,
        Some(("http", rest)) => rest,
        Some(_) => bail!(
            "--url {url}: only http:// is spoken, e.g. http://127.0.0.1:7117; for other machines, make a tunnel with ssh or put a proxy before the daemon"
        ),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() || authority.contains('@') || !path.is_empty() {
        bail!(
            "--url {url}: name the daemon's address alone, e.g. http://127.0.0.1:7117 or localhost:7117"
        );
    }
    // The colons of an IPv6 address stand in brackets.
    let port = match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port,
        _ => return Ok(format!("{authority}:{HTTP_PORT}")),
    };
    if port.parse::<u16>().is_err() {
        bail!("--url {url}: {port:?} is no port, e.g. http://127.0.0.1:7117");
    }
    Ok(authority.to_owned())
}

/// A request and the body of its answer.
pub(super) async fn ask(
    place: &Place,
    method: Method,
    path: &str,
    token: Option<&str>,
    wait: Duration,
) -> anyhow::Result<Bytes> {
    let (name, host, stream) = match place {
        Place::Socket(path) => {
            let connected = within(CONNECT_WITHIN, UnixStream::connect(path)).await;
            let is_refused = |error: &std::io::Error| error.kind() == ErrorKind::PermissionDenied;
            let why = if connected.as_ref().err().is_some_and(is_refused) {
                "this user may not ask the daemon at {}; its owner may (mostly root)"
            } else {
                "no daemon answers at {}; start one with `leakscope daemon`, or name its socket with --socket"
            };
            let stream =
                connected.with_context(|| why.replace("{}", &path.display().to_string()))?;
            (
                path.display().to_string(),
                "localhost".to_owned(),
                boxed(stream),
            )
        }
        Place::Tcp(authority) => {
            let connected = within(CONNECT_WITHIN, TcpStream::connect(authority.as_str())).await;
            let stream = connected.with_context(|| {
                format!("no daemon answers at http://{authority}; start one with `leakscope daemon --listen ADDRESS`")
            })?;
            (
                format!("http://{authority}"),
                authority.clone(),
                boxed(stream),
            )
        }
    };
    let asked = || format!("asking the daemon at {name}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .with_context(asked)?;
    tokio::spawn(async move {
        // What goes wrong is told to the sender.
        let _ = connection.await;
    });
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, host);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::<Bytes>::new()).with_context(asked)?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        anyhow::Ok((status, body.to_bytes()))
    };
    let (status, body) = tokio::time::timeout(ANSWER_WITHIN.saturating_add(wait), answer)
        .await
        .with_context(|| format!("the daemon at {name} did not answer in time"))?
        .with_context(asked)?;
    if status.is_success() {
        return Ok(body);
    }
    bail!("the daemon at {name}: {}", reason(status, &body));
}

/// What an answer that is no result says.
fn reason(status: StatusCode, body: &[u8]) -> String {
    serde_json::from_slice::<serde_json::Value>(body)
        .ok()
        .and_then(|value| Some(value.get("error")?.as_str()?.to_owned()))
        .unwrap_or_else(|| format!("it answered with status {status}"))
}

/// A connection of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

fn boxed(stream: impl Stream + 'static) -> Box<dyn Stream> {
    Box::new(stream)
}

/// Waits for something, at most so long.
async fn within<T>(
    at_most: Duration,
    future: impl Future<Output = std::io::Result<T>>,
) -> std::io::Result<T> {
    match tokio::time::timeout(at_most, future).await {
        Ok(result) => result,
        Err(_) => Err(ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use super::{authority, pair};

    #[test]
    fn addresses_are_read() {
        assert_eq!(
            authority("http://127.0.0.1:7117").unwrap(),
            "127.0.0.1:7117"
        );
        assert_eq!(authority("http://[::1]:7117/").unwrap(), "[::1]:7117");
        assert_eq!(authority("http://host").unwrap(), "host:80");
        assert_eq!(authority("http://[::1]").unwrap(), "[::1]:80");
        assert_eq!(authority("localhost:7117").unwrap(), "localhost:7117");
        for wrong in [
            "https://host",
            "host:99999",
            "http://host:port",
            "http://",
            "http://a/b",
            "http://u:p@h",
        ] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn values_cannot_add_parameters() {
        assert_eq!(pair("comm", "a*&top=1 ä"), "comm=a%2A%26top%3D1%20%C3%A4");
    }
}
