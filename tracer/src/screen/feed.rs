//! Where reports come from, and the thread that fetches them. Whoever feeds the screen decides what a report costs; here it is
//! decided how often one is asked for.

use std::{
    sync::{Arc, mpsc::Sender},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{run::Event, state::News};
use crate::{kernel::thread_cpu_time, report::Report};

/// Reports are asked for so that fetching them takes at most one part in so many of the time.
const SHARE: u32 = 120;

/// But at least this often.
const RAREST: Duration = Duration::from_secs(15);

/// Why there is no report.
#[derive(Debug)]
pub enum Trouble {
    /// The next time there may be one.
    Passing(anyhow::Error),
    /// There will be none any more.
    Final(anyhow::Error),
}

/// What hands out reports.
pub trait Feed: Send + 'static {
    /// The newest report, and the processor time or, where that is not ours, the time that it took to make.
    fn next(&mut self) -> impl Future<Output = Result<(Arc<Report>, Duration), Trouble>>;

    /// Ends what makes them.
    fn end(self) -> impl Future<Output = ()>;
}

/// The thread that fetches.
pub(super) struct Fetching {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fetching {
    /// Begins to hand reports over, at most once in `every`.
    pub(super) fn start(
        feed: impl Feed,
        every: Duration,
        events: Sender<Event>,
        runtime: tokio::runtime::Runtime,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("reports".to_owned())
            .spawn(move || {
                runtime.block_on(fetch(feed, every, &events, stopped));
                // What waits for an answer is for nobody any more.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Ends what makes reports, and waits until it has ended.
    pub(super) fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, that was said.
            let _ = thread.join();
        }
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        self.end();
    }
}

async fn fetch(
    mut feed: impl Feed,
    every: Duration,
    events: &Sender<Event>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut is_over = false;
    // To let go of a large report takes long: the screen is never the last to do so.
    let mut shown = [None, None];
    while !is_over {
        let begun = Instant::now();
        let next = tokio::select! {
            next = feed.next() => next,
            _ = &mut stopped => break,
        };
        let (event, took) = match next {
            Ok((report, took)) => {
                let [_, last] = std::mem::take(&mut shown);
                shown = [last, Some(Arc::clone(&report))];
                let begun = thread_cpu_time();
                let news = News::of(report);
                let took = took.saturating_add(thread_cpu_time().saturating_sub(begun));
                (Event::Report(Box::new(news)), took)
            }
            Err(Trouble::Passing(error)) => (Event::Trouble(format!("{error:#}")), Duration::ZERO),
            Err(Trouble::Final(error)) => {
                is_over = true;
                (Event::Over(error), Duration::ZERO)
            }
        };
        if events.send(event).is_err() {
            break;
        }
        let pause = took.saturating_mul(SHARE).clamp(every, every.max(RAREST));
        let rest = pause.saturating_sub(begun.elapsed());
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            _ = &mut stopped => break,
        }
    }
    feed.end().await;
}
