//! The daemon: a trace that goes on, and HTTP over a Unix socket and TCP by which its reports are asked for.
//!
//! Owns connections, their bounds, and who may ask what. Tracing runs on a thread of its own, which no client can hold up;
//! everything that is handed out is a view of an immutable report. It must not know what is traced or how: it is given a
//! [`Source`] of reports.

mod auth;
mod error;
mod notify;
mod page;
mod query;
mod render;
mod routes;
mod serve;
mod snapshots;
mod socket;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod thread;
mod watched;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

pub use auth::TokenError;
pub use socket::SocketError;
pub use thread::Source;
pub use watched::Watched;

use auth::{CurrentToken, Entrance, Token};
use notify::{Manager, State};
use serve::{Counters, Listener, Server};

/// Where to listen, and who may ask.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The Unix socket.
    pub socket: PathBuf,
    /// An address for TCP.
    pub listen: Option<SocketAddr>,
    /// The file with the token that clients over TCP must show.
    pub token_file: Option<PathBuf>,
}

/// Why the daemon cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The token cannot be read.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Everybody could ask.
    #[error(
        "{address} can be reached from other machines; give --auth-token-file FILE with a token that clients must show, or listen on 127.0.0.1"
    )]
    Open {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}; name another with --listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be listened for.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
}

/// Whether a path with a query asks for what there is, for trials.
#[must_use]
pub fn is_well_asked(path: &str) -> bool {
    path.parse::<axum::http::Uri>().is_ok_and(|uri| {
        // Whatever it says, that is bounded.
        let _ = query::wait(&uri);
        query::Query::read(&uri).is_ok()
    })
}

/// Reads a token file, for clients.
///
/// # Errors
/// See [`TokenError`].
pub fn read_token(path: &Path) -> Result<String, TokenError> {
    Token::read(path).map(|token| token.text())
}

/// Runs until a signal or until tracing ends. `make` begins the trace, on the thread where it will run; `say` is told where
/// the daemon listens.
///
/// # Errors
/// The daemon cannot begin, or tracing cannot go on.
pub async fn run<S: Source>(
    options: &DaemonOptions,
    make: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    let token = current_token(options)?;
    // A service whose manager is never told that it is ready is ended after a while; that is for nobody but the manager.
    let manager = Manager::of_environment()
        .map_err(|error| say(&format!("NOTIFY_SOCKET cannot be used: {error}")))
        .ok();
    let tell = |state| {
        if let Some(Err(error)) = manager.as_ref().map(|manager| manager.tell(state)) {
            say(&format!("cannot tell the service manager: {error}"));
        }
    };
    let mut end = Signals::listen().map_err(DaemonError::Signals)?;
    // Before anything is traced: a second daemon should not get that far.
    let (unix, claim) = socket::claim(&options.socket)
        .await
        .map_err(DaemonError::Socket)?;
    let tcp = match options.listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let begun = thread::start(make);
    let (tracing, thread) = tokio::select! {
        begun = begun => begun?,
        () = end.stop() => return Ok(()),
    };
    let counters = Arc::new(Counters::default());
    let (say_ending, ending) = watch::channel(false);
    let server = Server {
        router: routes::router(tracing.clone(), Arc::clone(&counters)),
        counters,
        ending,
    };
    let mut listeners = JoinSet::new();
    listeners.spawn(serve::listen(
        Listener::Unix(unix),
        Entrance::Socket,
        server.clone(),
    ));
    say(&format!("listening on {}", options.socket.display()));
    if let Some((listener, address)) = tcp {
        say(&format!("listening on http://{address}"));
        let entrance = Entrance::Tcp {
            token: token.clone(),
            address,
        };
        listeners.spawn(serve::listen(Listener::Tcp(listener), entrance, server));
    }
    tell(State::Ready);
    let mut thread = thread;
    let result = loop {
        tokio::select! {
            ended = &mut thread.ended => {
                break ended.unwrap_or_else(|_| Err(thread::internal_error()));
            }
            asked = end.next() => match asked {
                Asked::Stop => {
                    tracing.stop();
                    break Ok(());
                }
                Asked::SelectAgain => {
                    if let (Some(token), Some(path)) = (&token, &options.token_file)
                        && let Err(error) = token.read_again(path)
                    {
                        // A mistake in the file locks nobody out, and lets nobody in.
                        say(&format!("the token stays the one it was: {error}"));
                    }
                    tracing.select_again();
                    say("looking again at what is to be traced");
                }
            },
        }
    };
    tell(State::Stopping);
    // Nobody finds us from here on; detaching goes on meanwhile.
    drop(claim);
    // All receivers may be gone.
    let _ = say_ending.send(true);
    while listeners.join_next().await.is_some() {}
    // A second signal is somebody who does not want to wait.
    let joined = tokio::task::spawn_blocking(move || thread.join());
    tokio::select! {
        _ = joined => {}
        () = end.stop() => std::process::exit(130),
    }
    result
}

/// What those who ask over TCP must show.
fn current_token(options: &DaemonOptions) -> Result<Option<CurrentToken>, DaemonError> {
    let token = options.token_file.as_deref().map(Token::read).transpose()?;
    match options.listen {
        Some(address) if !address.ip().to_canonical().is_loopback() && token.is_none() => {
            Err(DaemonError::Open { address })
        }
        _ => Ok(token.map(CurrentToken::new)),
    }
}

/// The listener, and the address that it has got: the port can be the kernel's choice.
async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), DaemonError> {
    let bound = TcpListener::bind(address).await.and_then(|listener| {
        let address = listener.local_addr()?;
        Ok((listener, address))
    });
    bound.map_err(|source| DaemonError::Listen { address, source })
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Ctrl-C or SIGTERM.
    Stop,
    /// SIGHUP: the filters and the token are read again.
    SelectAgain,
}

/// The signals that a daemon listens for.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next one.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::SelectAgain,
        }
    }

    /// The next one that asks to stop.
    async fn stop(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

/// Runs a future on threads of its own: two, for answers are short and writing views has others.
///
/// # Errors
/// The threads cannot be made, or what the future says.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .thread_name("http")
        .enable_all()
        .build()?;
    let result = runtime.block_on(future);
    // Views that are being written are for nobody any more.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}
