//! Tells pages that there is a newer report. While no page looks, nothing is done; while pages look, reports are made and written for
//! them so rarely that this takes a bounded share of a processor, however large they are.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Bytes;
use tokio::sync::{Notify, Semaphore, watch};

use super::{
    App,
    history::{History, SiteKey, SitePoint},
};
use crate::daemon::thread::{Ended, Published, Tracing};

/// Making a report for pages and writing it takes at most one part in so many of the time; but one comes no more often than every
/// [`EVERY`]`.0` and no less often than `.1`.
const SHARE: u32 = 100;
const EVERY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Pages that can wait for events at a time: other clients need connections too.
const PAGES: usize = 64;

/// What pages are told, from one moment to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    /// The report that all pages show.
    pub(super) published: Option<Published>,
    /// Counts the changes of the list of snapshots.
    pub(super) snapshots: u64,
    /// There will be no more.
    pub(super) ended: bool,
    /// All of that as an event: one piece of memory, whoever it is sent to.
    pub(super) event: Bytes,
}

impl Now {
    fn write(&mut self) {
        let report = self.published.as_ref().map(|published| {
            serde_json::json!({
                "number": published.number,
                "captured_at": published.report.captured_at,
            })
        });
        let data = serde_json::json!({
            "report": report,
            "snapshots": self.snapshots,
            "ended": self.ended,
        });
        self.event = format!("event: now\ndata: {data}\n\n").into();
    }
}

/// See the module.
pub(in crate::daemon) struct Live {
    tracing: Tracing,
    now: watch::Sender<Now>,
    watching: AtomicUsize,
    watched: Notify,
    /// Places for pages.
    pub(super) places: Arc<Semaphore>,
    history: Mutex<History>,
    /// How long the report that pages show is theirs.
    pace: Mutex<Duration>,
}

/// A page that looks, for as long as this is there.
pub(super) struct Watching(Arc<Live>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Live {
    /// Nobody looks yet.
    pub(in crate::daemon) fn new(tracing: Tracing) -> Arc<Self> {
        let mut now = Now::default();
        now.write();
        Arc::new(Self {
            tracing,
            now: watch::Sender::new(now),
            watching: AtomicUsize::new(0),
            watched: Notify::new(),
            places: Arc::new(Semaphore::new(PAGES)),
            history: Mutex::default(),
            pace: Mutex::new(EVERY.0),
        })
    }

    /// A page looks from now on; and what it is told.
    pub(super) fn watch(self: &Arc<Self>) -> (Watching, watch::Receiver<Now>) {
        self.watching.fetch_add(1, Ordering::SeqCst);
        self.watched.notify_one();
        let mut receiver = self.now.subscribe();
        receiver.mark_changed();
        (Watching(Arc::clone(self)), receiver)
    }

    /// The list of snapshots is another one.
    pub(in crate::daemon) fn snapshots_changed(&self) {
        self.now.send_modify(|now| {
            now.snapshots += 1;
            now.write();
        });
    }

    fn pace(&self) -> Duration {
        *self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The report that pages show: that of the last event while it is new enough, for all of them the same. The first page is not made to
    /// wait either: it gets the newest that there is, and an event when there is a newer one.
    pub(super) async fn shown(&self) -> Result<Published, Ended> {
        let last = self.now.borrow().published.clone();
        match last {
            Some(last) if last.begun.elapsed() <= 2 * self.pace() => Ok(last),
            _ => self.tracing.newest().await,
        }
    }

    /// A site's memory over time.
    pub(super) fn series(&self, key: &SiteKey) -> Vec<SitePoint> {
        let history = self.history.lock();
        history.unwrap_or_else(PoisonError::into_inner).series(key)
    }

    async fn until_watched(&self) {
        while self.watching.load(Ordering::SeqCst) == 0 {
            self.watched.notified().await;
        }
    }

    /// Notes every report, for the charts of sites.
    pub(in crate::daemon) async fn remember(self: Arc<Self>) {
        let mut newest = self.tracing.reports();
        while newest.changed().await.is_ok() {
            let published = newest.borrow_and_update().clone();
            if let Some(published) = published {
                let history = self.history.lock();
                history
                    .unwrap_or_else(PoisonError::into_inner)
                    .note(&published.report);
            }
        }
    }

    /// Has reports made while pages look, and tells them.
    pub(in crate::daemon) async fn tell(self: Arc<Self>, app: Weak<App>) {
        let mut due = Instant::now();
        loop {
            self.until_watched().await;
            tokio::time::sleep_until(due.into()).await;
            // One that was made for others shortly before will do.
            let after = due.checked_sub(self.pace() / 2).unwrap_or(due);
            let Ok(published) = self.tracing.since(after).await else {
                self.now.send_modify(|now| {
                    now.ended = true;
                    now.write();
                });
                return;
            };
            let Some(app) = app.upgrade() else {
                return;
            };
            let begun = Instant::now();
            // A page that asks is told what is wrong.
            let _ = app.sheet(&published, true).await;
            let cost = published.took.saturating_add(begun.elapsed());
            let pace = cost.saturating_mul(SHARE).clamp(EVERY.0, EVERY.1);
            *self.pace.lock().unwrap_or_else(PoisonError::into_inner) = pace;
            due = published.begun + pace;
            self.now.send_modify(|now| {
                now.published = Some(published);
                now.write();
            });
        }
    }
}
