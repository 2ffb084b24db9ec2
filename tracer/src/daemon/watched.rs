//! A trace whose reports go to one who watches in the same process, without a listener.

use std::{sync::Arc, time::Duration};

use super::thread::{self, Source, Tracing, TracingThread};
use crate::report::Report;

/// The trace, on a thread of its own.
pub struct Watched {
    tracing: Tracing,
    thread: Option<TracingThread>,
}

impl Watched {
    /// Begins. `make` begins the trace, on the thread where it will run.
    ///
    /// # Errors
    /// The trace cannot begin.
    pub async fn start<S: Source>(
        make: impl FnOnce() -> anyhow::Result<S> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (tracing, thread) = thread::start(make).await?;
        Ok(Self {
            tracing,
            thread: Some(thread),
        })
    }

    /// A report of now, and how long making it took.
    ///
    /// # Errors
    /// Tracing has ended.
    pub async fn report(&mut self) -> anyhow::Result<(Arc<Report>, Duration)> {
        match self.tracing.fresh().await {
            Ok(published) => Ok((published.report, published.took)),
            Err(ended) => {
                let said = match &mut self.thread {
                    Some(thread) => (&mut thread.ended).await.ok(),
                    None => None,
                };
                Err(said.and_then(Result::err).unwrap_or_else(|| ended.into()))
            }
        }
    }

    /// Ends the trace, and waits until its probes are away.
    pub fn end(&mut self) {
        self.tracing.stop();
        if let Some(thread) = self.thread.take() {
            thread.join();
        }
    }
}
