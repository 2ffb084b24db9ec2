//! Events for pages (server-sent events, HTML Living Standard 9.2). A page that does not read is told less often; it holds nobody up.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::State,
};
use hyper::body::Frame;
use tokio::{
    sync::{OwnedSemaphorePermit, watch},
    time::Instant,
};

use super::{
    Answer, App, Refusal, answer,
    live::{Now, Watching},
};

/// How often something is sent at least, by which ends notice that the other one is gone.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// How long a page is told before it has to ask again, which browsers do by themselves: less than a connection may last.
const LASTS: Duration = Duration::from_secs(480);

/// Begins the events: how long a page is to wait before it asks again, milliseconds.
const FIRST: &str = "retry: 2000\n\n";

/// Told while nothing happens: a comment.
const ALIVE: &str = ":\n\n";

/// Events until the page goes away.
pub(super) async fn events(State(app): State<Arc<App>>) -> Answer {
    let place = Arc::clone(&app.live.places)
        .try_acquire_owned()
        .map_err(|_| Refusal::busy("too many pages wait for events already; close some"))?;
    let (watching, now) = app.live.watch();
    let told = Told {
        now,
        until: Instant::now() + LASTS,
        begun: false,
        _watching: watching,
        _place: place,
    };
    Ok(answer("text/event-stream", Body::new(Events::of(told))))
}

/// What one page has been told.
struct Told {
    now: watch::Receiver<Now>,
    until: Instant,
    begun: bool,
    _watching: Watching,
    _place: OwnedSemaphorePermit,
}

impl Told {
    /// What to tell it next; nothing at the end.
    async fn next(mut self) -> Option<(Self, Bytes)> {
        if !self.begun {
            self.begun = true;
            return Some((self, FIRST.into()));
        }
        if self.now.borrow().ended && self.now.has_changed().is_ok_and(|changed| !changed) {
            return None;
        }
        let bytes = tokio::select! {
            changed = self.now.changed() => {
                changed.ok()?;
                self.now.borrow_and_update().event.clone()
            }
            () = tokio::time::sleep(ALIVE_EVERY) => ALIVE.into(),
            () = tokio::time::sleep_until(self.until) => return None,
        };
        Some((self, bytes))
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(Told, Bytes)>> + Send>>;

/// The body of an answer that goes on.
struct Events {
    next: Option<Next>,
}

impl Events {
    fn of(told: Told) -> Self {
        Self {
            next: Some(Box::pin(told.next())),
        }
    }
}

impl HttpBody for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        match next.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => {
                self.next = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some((told, bytes))) => {
                self.next = Some(Box::pin(told.next()));
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
        }
    }
}
