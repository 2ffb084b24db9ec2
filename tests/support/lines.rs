//! Reading a child's output line by line without waiting for ever.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

/// The lines of a stream, read by a thread of their own.
pub(crate) struct Lines {
    receiver: Receiver<String>,
}

impl Lines {
    pub(crate) fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { receiver }
    }

    /// The next line; none at the stream's end.
    pub(crate) fn next(&self, patience: Duration) -> Result<Option<String>> {
        match self.receiver.recv_timeout(patience) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("no line of output within {patience:?}"),
        }
    }

    /// All that was read so far.
    pub(crate) fn pending(&self) -> Vec<String> {
        self.receiver.try_iter().collect()
    }
}

/// Reads a stream to its end in a thread of its own.
pub(crate) fn collect(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is worth having.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}
