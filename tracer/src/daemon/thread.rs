//! The thread that traces, and what the rest of the daemon sees of it: the newest report, and a wish for a newer one.
//!
//! Owns when reports are made. Nothing that a client does reaches this thread but one flag, so that no client can make it
//! wait; however many ask at once, one report is made for all of them.

use std::{
    io::{self, Write as _},
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{oneshot, watch};

use crate::report::Report;

/// How long one step of the trace lasts at most: how soon a wish is noticed by a source that is not woken.
const STEP: Duration = Duration::from_secs(1);

/// A report is made unasked, for metrics, so that making them takes at most this share of the thread's time: where somebody has read the
/// one before, and where nobody has; but no more often than every [`EVERY`]`.0` and no less often than `.1`.
const SHARE_READ: u32 = 100;
const SHARE_UNREAD: u32 = 1000;
const EVERY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// A report is handed out again while it is not older than this many times what making it took, within [`WARM`].
const SHARE_ASKED: u32 = 4;
const WARM: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What is traced, as the thread drives it.
pub trait Source {
    /// Waits for what happens next, at most so long, and deals with it.
    ///
    /// # Errors
    /// Tracing cannot go on.
    fn step(&mut self, at_most: Duration) -> anyhow::Result<()>;

    /// The result so far, with all sites.
    ///
    /// # Errors
    /// Tracing cannot go on.
    fn report(&mut self) -> anyhow::Result<Report>;

    /// Looks again at which processes are to be traced.
    ///
    /// # Errors
    /// Tracing cannot go on.
    fn select_again(&mut self) -> anyhow::Result<()>;

    /// Takes all probes away.
    fn detach(&mut self);

    /// Is given what becomes readable when somebody wishes something: [`Source::step`] is to return then, and to read what
    /// there is. A source that does not look is asked again when its step is over.
    fn wake_by(&mut self, wake: UnixStream) {
        drop(wake);
    }
}

/// A report, and when it was made.
#[derive(Clone, Debug)]
pub(super) struct Published {
    /// Counts up.
    pub(super) number: u64,
    /// When making it began: it knows all that had happened by then.
    pub(super) begun: Instant,
    /// How long making it took.
    pub(super) took: Duration,
    /// The report.
    pub(super) report: Arc<Report>,
}

impl Published {
    /// How long it may be handed out for.
    fn warm_for(&self) -> Duration {
        self.took.saturating_mul(SHARE_ASKED).clamp(WARM.0, WARM.1)
    }

    /// When the next one is due if nobody asks for it; whether this one has been read.
    fn next_unasked(&self, is_read: bool) -> Instant {
        let share = if is_read { SHARE_READ } else { SHARE_UNREAD };
        self.begun + self.took.saturating_mul(share).clamp(EVERY.0, EVERY.1)
    }
}

/// The flags by which the thread is spoken to, and what makes it look at them.
#[derive(Debug)]
struct Wishes {
    /// A report that knows all that had happened by then.
    report: Mutex<Option<Instant>>,
    selection: AtomicBool,
    stop: AtomicBool,
    /// The newest report has been read.
    read: AtomicBool,
    wake: UnixStream,
}

impl Wishes {
    /// None yet; and what becomes readable when there is one.
    fn new() -> io::Result<(Self, UnixStream)> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let wishes = Self {
            report: Mutex::default(),
            selection: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            read: AtomicBool::new(false),
            wake,
        };
        Ok((wishes, woken))
    }

    fn raise(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn report(&self) -> MutexGuard<'_, Option<Instant>> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wishes a report that knows all that had happened by then.
    fn report_since(&self, then: Instant) {
        let mut wish = self.report();
        *wish = wish.max(Some(then));
        drop(wish);
        self.wake();
    }

    /// Whether a report is wished that knows more than the last one. One that is not has been fulfilled while it was raised.
    fn take_report(&self, last: Option<&Published>) -> bool {
        self.report()
            .take()
            .is_some_and(|then| last.is_none_or(|last| last.begun < then))
    }

    fn wake(&self) {
        // Where there is no room, it has not been read yet: the thread will wake.
        let _ = (&self.wake).write(&[1]);
    }
}

/// Tracing has ended, so that there are no more reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tracing has ended")]
pub(super) struct Ended;

/// The tracing thread, as others see it.
#[derive(Clone)]
pub(super) struct Tracing {
    wishes: Arc<Wishes>,
    newest: watch::Receiver<Option<Published>>,
}

/// The thread itself, to be joined.
pub(super) struct TracingThread {
    /// Resolves when the thread is about to end, with what went wrong if anything did.
    pub(super) ended: oneshot::Receiver<anyhow::Result<()>>,
    thread: JoinHandle<()>,
}

impl TracingThread {
    /// Waits for the thread's end.
    pub(super) fn join(self) {
        // If it panicked, that was said.
        let _ = self.thread.join();
    }
}

/// Starts the thread. The source is made on it; the answer comes when that is done.
pub(super) async fn start<S: Source>(
    make: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
) -> anyhow::Result<(Tracing, TracingThread)> {
    let (wishes, woken) = Wishes::new()?;
    let wishes = Arc::new(wishes);
    let (publish, newest) = watch::channel(None);
    let (made, is_made) = oneshot::channel();
    let (say_ended, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("tracing".to_owned())
        .spawn({
            let wishes = Arc::clone(&wishes);
            move || {
                let mut source = match make() {
                    Ok(source) => source,
                    Err(error) => {
                        let _ = made.send(Err(error));
                        return;
                    }
                };
                source.wake_by(woken);
                let _ = made.send(Ok(()));
                let traced =
                    catch_unwind(AssertUnwindSafe(|| trace(&mut source, &wishes, &publish)));
                let result = traced.unwrap_or_else(|_| Err(internal_error()));
                // Whatever happened, no target keeps a probe.
                let _ = catch_unwind(AssertUnwindSafe(|| source.detach()));
                // Who waits for a report learns that there will be none.
                drop(publish);
                // The daemon may have given up waiting.
                let _ = say_ended.send(result);
            }
        })?;
    is_made
        .await
        .map_err(|_| anyhow::anyhow!("the tracing thread ended while it began"))??;
    let tracing = Tracing { wishes, newest };
    Ok((tracing, TracingThread { ended, thread }))
}

/// The thread panicked.
pub(super) fn internal_error() -> anyhow::Error {
    anyhow::anyhow!("internal error in the tracing thread; please report the backtrace above")
}

fn trace(
    source: &mut impl Source,
    wishes: &Wishes,
    publish: &watch::Sender<Option<Published>>,
) -> anyhow::Result<()> {
    let mut number = 0;
    let mut last: Option<Published> = None;
    while !wishes.stop.load(Ordering::SeqCst) {
        if wishes.selection.swap(false, Ordering::SeqCst) {
            source.select_again()?;
        }
        let due = |last: &Option<Published>| {
            let is_read = wishes.read.load(Ordering::SeqCst);
            let next = last.as_ref().map(|last| last.next_unasked(is_read));
            next.map_or(Duration::ZERO, |next| {
                next.saturating_duration_since(Instant::now())
            })
        };
        if wishes.take_report(last.as_ref()) || due(&last).is_zero() {
            wishes.read.store(false, Ordering::SeqCst);
            let begun = Instant::now();
            let report = source.report()?;
            number += 1;
            let published = Published {
                number,
                begun,
                took: begun.elapsed(),
                report: Arc::new(report),
            };
            publish.send_replace(Some(published.clone()));
            last = Some(published);
        }
        source.step(STEP.min(due(&last)))?;
    }
    Ok(())
}

impl Tracing {
    /// Whether tracing goes on.
    pub(super) fn check(&self) -> Result<(), Ended> {
        self.newest.has_changed().map(|_| ()).map_err(|_| Ended)
    }

    /// The newest report as it is; the first one is waited for.
    pub(super) async fn newest(&self) -> Result<Published, Ended> {
        self.wishes.read.store(true, Ordering::SeqCst);
        let mut newest = self.newest.clone();
        let published = newest
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Ended)?
            .clone();
        published.ok_or(Ended)
    }

    /// A report that is warm, else a new one.
    pub(super) async fn warm(&self) -> Result<Published, Ended> {
        let published = self.newest().await?;
        if published.begun.elapsed() <= published.warm_for() {
            return Ok(published);
        }
        self.fresh().await
    }

    /// Every report from now on.
    pub(super) fn reports(&self) -> watch::Receiver<Option<Published>> {
        self.newest.clone()
    }

    /// A report that knows all that has happened by now.
    pub(super) async fn fresh(&self) -> Result<Published, Ended> {
        self.since(Instant::now()).await
    }

    /// A report that knows all that had happened by then.
    pub(super) async fn since(&self, then: Instant) -> Result<Published, Ended> {
        let mut newest = self.newest.clone();
        let knows = |published: &Option<Published>| {
            published
                .as_ref()
                .is_some_and(|published| published.begun >= then)
        };
        if !knows(&newest.borrow()) {
            self.wishes.report_since(then);
        }
        let published = newest.wait_for(knows).await.map_err(|_| Ended)?.clone();
        published.ok_or(Ended)
    }

    /// Asks to look again at which processes are to be traced.
    pub(super) fn select_again(&self) {
        self.wishes.raise(&self.wishes.selection);
    }

    /// Asks to end.
    pub(super) fn stop(&self) {
        self.wishes.raise(&self.wishes.stop);
    }
}

/// How old a report is, by the wall clock.
pub(super) fn age(report: &Report) -> Duration {
    let captured = Duration::from_millis(report.captured_at.unix_ms());
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    now.saturating_sub(captured)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    use super::{Published, Wishes};
    use crate::daemon::testing::large_report;

    #[test]
    fn a_report_that_is_wished_while_it_is_made_is_not_made_twice() {
        let (wishes, _woken) = Wishes::new().unwrap();
        let begun = Instant::now();
        let last = Published {
            number: 1,
            begun,
            took: Duration::from_millis(500),
            report: Arc::new(large_report(1, 1)),
        };
        wishes.report_since(begun - Duration::from_secs(1));
        assert!(!wishes.take_report(Some(&last)));
        wishes.report_since(begun + Duration::from_millis(1));
        wishes.report_since(begun);
        assert!(wishes.take_report(Some(&last)));
        assert!(!wishes.take_report(Some(&last)));
        wishes.report_since(begun);
        assert!(wishes.take_report(None));
    }
}
