//! A connection that cannot be held by a client that does not read: the time that its answer waits for it is bounded.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How long an answer may wait for its reader, all waits together.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connection.
pub(super) struct Impatient<S> {
    inner: S,
    /// Runs out while a write waits.
    timer: Pin<Box<Sleep>>,
    /// Since when a write waits.
    waits_since: Option<Instant>,
    /// How long writes have waited since the last request.
    waited: Duration,
    patience: Duration,
}

impl<S> Impatient<S> {
    /// Wraps a connection.
    pub(super) fn new(inner: S) -> Self {
        Self::with_patience(inner, PATIENCE)
    }

    fn with_patience(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            waits_since: None,
            waited: Duration::ZERO,
            patience,
        }
    }

    /// Counts the time that a write takes; an error when it was too long.
    fn time<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let now = Instant::now();
        if poll.is_ready() {
            if let Some(since) = self.waits_since.take() {
                self.waited += now - since;
            }
            return poll;
        }
        if self.waits_since.is_none() {
            self.waits_since = Some(now);
            let left = self.patience.saturating_sub(self.waited);
            self.timer.as_mut().reset(now + left);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let poll = Pin::new(&mut self.inner).poll_read(context, buffer);
        if buffer.filled().len() > before && self.waits_since.is_none() {
            self.waited = Duration::ZERO;
        }
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.time(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.time(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_flush(context);
        self.time(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.inner).poll_shutdown(context);
        self.time(context, poll)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{io, time::Duration};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::Impatient;

    #[tokio::test]
    async fn a_reader_that_drips_is_given_up() {
        let (mut reader, writer) = tokio::io::duplex(16);
        let mut writer = Impatient::with_patience(writer, Duration::from_millis(100));
        let drip = tokio::spawn(async move {
            let mut byte = [0];
            while reader.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let error = writer.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(writer);
        drip.await.unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_reads_gets_everything() {
        let (mut reader, writer) = tokio::io::duplex(16);
        let mut writer = Impatient::with_patience(writer, Duration::from_secs(30));
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        writer.write_all(&[0; 65_536]).await.unwrap();
        drop(writer);
        assert_eq!(read.await.unwrap(), 65_536);
    }
}
