//! Connections: how many there may be, how large a request, and how long anything may take.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse as _, Response},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
};

use super::{auth::Entrance, error::Refusal, stream::Impatient};

/// Connections at a time, for each listener: one that is flooded leaves the other alone.
const CONNECTIONS: usize = 256;

/// How long a new client waits for the end of another's connection when there are too many. Clients that make a
/// connection for each request are that many only because the ends of their last ones have not been noticed yet.
const ROOM_WITHIN: Duration = Duration::from_millis(500);

/// How long a client may take to say what it wants, and a connection may be idle.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// The most bytes of a request's head, and the most headers in it.
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;

/// The most bytes of a request's body: nothing here takes any.
const BODY_BYTES: u64 = 4096;

/// Where pprof asks for names.
pub(super) const SYMBOL: &str = "/debug/pprof/symbol";

/// The largest body of a question for the names of addresses, which pprof asks of all that have none in a profile.
const SYMBOL_BYTES: u64 = 1 << 20;

/// How long an answer may be in the making, beyond what the request itself asks to wait.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a connection may last. What is being answered then is still finished.
const LIFETIME: Duration = Duration::from_secs(600);

/// How long answers may take to be finished when the daemon ends.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What is said to a client for whom there is no room.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 67\r\nretry-after: 5\r\nconnection: close\r\n\r\n{\"error\":\"there are too many connections; try later\",\"status\":503}\n";

/// What the connections have done, for metrics.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Requests that were answered, by hundreds of the status: 2xx, 3xx, 4xx, 5xx.
    pub(super) answered: [AtomicU64; 4],
    /// Connections that were turned away.
    pub(super) turned_away: AtomicU64,
    /// Connections that there are.
    pub(super) open: AtomicU64,
}

impl Counters {
    /// The classes of [`Counters::answered`].
    pub(super) const CLASSES: [&'static str; 4] = ["2xx", "3xx", "4xx", "5xx"];

    fn note(&self, response: &Response) {
        let class = usize::from(response.status().as_u16() / 100).saturating_sub(2);
        if let Some(counter) = self.answered.get(class) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What every connection needs.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) router: Router,
    pub(super) counters: Arc<Counters>,
    /// Becomes true when the daemon ends.
    pub(super) ending: watch::Receiver<bool>,
}

/// A listener, of either kind.
pub(super) enum Listener {
    /// A Unix socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

/// One connection, of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {
    /// Says something without waiting.
    fn say(&self, bytes: &[u8]);
}

impl Connection for tokio::net::UnixStream {
    fn say(&self, bytes: &[u8]) {
        // It is about to be closed: a client that cannot even take this gets nothing.
        let _ = self.try_write(bytes);
    }
}

impl Connection for tokio::net::TcpStream {
    fn say(&self, bytes: &[u8]) {
        let _ = self.try_write(bytes);
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Box<dyn Connection>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are written in one piece.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        })
    }
}

/// Takes connections until the daemon ends, and then waits a moment for their answers.
pub(super) async fn listen(listener: Listener, entrance: Entrance, server: Server) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut ending = server.ending.clone();
    let mut patient = true;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        let Ok(stream) = accepted else {
            // Out of file descriptors, or the client is gone already: the next one may have more luck.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let wait = if patient { ROOM_WITHIN } else { Duration::ZERO };
        let room = tokio::select! {
            room = tokio::time::timeout(wait, Arc::clone(&permits).acquire_owned()) => room,
            _ = ending.wait_for(|ending| *ending) => break,
        };
        // Where nobody leaves, those behind need not wait too.
        patient = room.is_ok();
        let Ok(Ok(permit)) = room else {
            server.counters.turned_away.fetch_add(1, Ordering::Relaxed);
            stream.say(FULL);
            continue;
        };
        let server = server.clone();
        let entrance = entrance.clone();
        tokio::spawn(async move {
            server.counters.open.fetch_add(1, Ordering::Relaxed);
            converse(stream, entrance, &server).await;
            server.counters.open.fetch_sub(1, Ordering::Relaxed);
            drop(permit);
        });
    }
    drop(listener);
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    // Whoever is not done by then is cut off.
    let _ = tokio::time::timeout(LAST_WORDS, permits.acquire_many(all)).await;
}

/// Answers the requests of one connection.
async fn converse(stream: Box<dyn Connection>, entrance: Entrance, server: &Server) {
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let router = server.router.clone();
        let counters = Arc::clone(&server.counters);
        let entrance = entrance.clone();
        async move {
            let response = answer(router, &entrance, request).await;
            counters.note(&response);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Impatient::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let mut ending = server.ending.clone();
    let lasted = tokio::time::sleep(LIFETIME);
    // What a client did wrong is told to nobody but the client.
    let finished = tokio::select! {
        _ = connection.as_mut() => true,
        _ = ending.wait_for(|ending| *ending) => false,
        () = lasted => false,
    };
    if !finished {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(2 * ANSWER_WITHIN, connection).await;
    }
}

/// Refuses a body.
fn body_too_large(most: u64) -> Response {
    Refusal::too_large(format!(
        "no request here needs a larger body; at most {most} bytes are taken"
    ))
    .into_response()
}

/// Answers one request.
async fn answer(
    router: Router,
    entrance: &Entrance,
    request: hyper::Request<Incoming>,
) -> Response {
    let is_symbol = request.uri().path() == SYMBOL;
    let most = if is_symbol { SYMBOL_BYTES } else { BODY_BYTES };
    if request.body().size_hint().lower() > most {
        return body_too_large(most);
    }
    let wanted = super::query::wait(request.uri());
    let admitted = entrance
        .admit(request.method(), request.uri().path(), request.headers())
        .and_then(|()| {
            if wanted.is_zero() && request.uri().path() != super::page::EVENTS {
                Ok(())
            } else {
                entrance.admit_waiting(request.headers())
            }
        });
    if let Err(refusal) = admitted {
        return refusal.into_response();
    }
    let (head, body) = request.into_parts();
    // A body that does not say how long it is is read to its end or to the bound; any other is dropped unread, but for a long one: who still
    // writes would not hear the answer.
    if body.size_hint().exact().is_none() || is_symbol {
        let read = axum::body::to_bytes(Body::new(body), most as usize);
        match tokio::time::timeout(HEAD_WITHIN, read).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return body_too_large(most),
            Err(_) => return Refusal::timeout().into_response(),
        }
    }
    let request = Request::from_parts(head, Body::empty());
    let service = TowerToHyperService::new(router);
    match tokio::time::timeout(
        ANSWER_WITHIN.saturating_add(wanted),
        hyper::service::Service::call(&service, request),
    )
    .await
    {
        Ok(Ok(response)) => response,
        Ok(Err(never)) => match never {},
        Err(_) => Refusal::timeout().into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_answer_for_whom_there_is_no_room_has_its_length() {
        let text = String::from_utf8_lossy(FULL);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
