//! Views, written once however many ask, and never more of them at a time than a fixed amount of memory holds.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Refusal;
/// The most bytes of one view.
const LARGEST: usize = 16 << 20;

/// The most KiB of all views that are held for clients or in the cache.
const HELD_KIB: usize = 32 << 10;

/// Views that are kept to be handed out again.
const KEPT: usize = 8;

/// How long to wait until other clients have taken theirs.
const ROOM_WITHIN: Duration = Duration::from_secs(5);

/// What a view is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The report's number.
    pub(super) number: u64,
    pub(super) format: &'static str,
    /// What was asked for, as it was written.
    pub(super) query: String,
}

/// A view, and its share of the memory.
struct Held {
    bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Writes views.
pub(super) struct Renderer {
    /// One is written at a time: what a view takes while it is written is a multiple of what it takes then.
    turn: Arc<Semaphore>,
    room: Arc<Semaphore>,
    kept: Mutex<Vec<(Key, Bytes)>>,
}

impl Default for Renderer {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            room: Arc::new(Semaphore::new(HELD_KIB)),
            kept: Mutex::default(),
        }
    }
}

/// Memory with an end.
struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Renderer {
    /// The view that `write` writes; one with a key is kept for whoever asks next.
    pub(super) async fn render(
        &self,
        key: Option<Key>,
        write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
    ) -> Result<Bytes, Refusal> {
        if let Some(bytes) = self.find(key.as_ref()) {
            return Ok(bytes);
        }
        let turn = Arc::clone(&self.turn)
            .acquire_owned()
            .await
            .map_err(|_| Refusal::internal("there are no more turns"))?;
        // Somebody may have had the same wish.
        if let Some(bytes) = self.find(key.as_ref()) {
            return Ok(bytes);
        }
        let (written, turn) = tokio::task::spawn_blocking(move || {
            let mut out = Limited {
                bytes: Vec::new(),
                limit: LARGEST,
            };
            // Whoever asked may be gone: the turn ends with the work, not with them.
            (write(&mut out).map(|()| out.bytes), turn)
        })
        .await
        .map_err(|_| Refusal::internal("writing the view failed"))?;
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                return Err(Refusal::too_large(format!(
                    "the answer would have more than {} MiB; ask for fewer sites with top=, or for /debug/pprof/heap, which is smaller",
                    LARGEST >> 20
                )));
            }
            Err(error) => {
                return Err(Refusal::internal(format!("cannot write the view: {error}")));
            }
        };
        let kib = u32::try_from(bytes.len() / 1024 + 1).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(kib) else {
            // Others need not wait for room with us.
            drop(turn);
            self.kept().clear();
            let room = self.wait_for_room(kib).await?;
            return Ok(Bytes::from_owner(Held { bytes, _room: room }));
        };
        let held = Bytes::from_owner(Held { bytes, _room: room });
        if let Some(key) = key {
            self.keep(key, held.clone());
        }
        // Only now: who comes next finds it.
        drop(turn);
        Ok(held)
    }

    async fn wait_for_room(&self, kib: u32) -> Result<OwnedSemaphorePermit, Refusal> {
        let room = Arc::clone(&self.room).acquire_many_owned(kib);
        match tokio::time::timeout(ROOM_WITHIN, room).await {
            Ok(Ok(room)) => Ok(room),
            _ => Err(Refusal::busy(
                "other clients hold all the memory that there is for answers; try later",
            )),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Key, Bytes)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: Option<&Key>) -> Option<Bytes> {
        let key = key?;
        self.kept()
            .iter()
            .find(|(kept, _)| kept == key)
            .map(|(_, bytes)| bytes.clone())
    }

    fn keep(&self, key: Key, bytes: Bytes) {
        let mut kept = self.kept();
        // Older reports are asked for by nobody any more.
        kept.retain(|(other, _)| other.number >= key.number);
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push((key, bytes));
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use super::{HELD_KIB, Key, LARGEST, Renderer};

    fn key(number: u64) -> Key {
        Key {
            number,
            format: "text",
            query: String::new(),
        }
    }

    #[tokio::test]
    async fn what_many_ask_for_is_written_once() {
        let renderer = Arc::new(Renderer::default());
        let written = Arc::new(AtomicU32::new(0));
        let mut clients = Vec::new();
        for _ in 0..200 {
            let (renderer, written) = (Arc::clone(&renderer), Arc::clone(&written));
            clients.push(tokio::spawn(async move {
                renderer
                    .render(Some(key(1)), move |out| {
                        written.fetch_add(1, Ordering::SeqCst);
                        out.write_all(b"view")
                    })
                    .await
                    .unwrap()
            }));
        }
        for client in clients {
            assert_eq!(client.await.unwrap(), "view");
        }
        assert_eq!(written.load(Ordering::SeqCst), 1);
        let next = renderer.render(Some(key(2)), |out| out.write_all(b"next"));
        assert_eq!(next.await.unwrap(), "next");
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_do_not_take_their_answers_cannot_fill_the_memory() {
        let renderer = Renderer::default();
        let view = || renderer.render(None, |out| out.write_all(&vec![0; 4 << 20]));
        let mut held = Vec::new();
        let refused = loop {
            match view().await {
                Ok(bytes) => held.push(bytes),
                Err(refusal) => break refusal,
            }
            assert!(held.len() * 4096 <= HELD_KIB);
        };
        assert!(format!("{refused:?}").contains("503"), "{refused:?}");
        held.pop();
        assert!(view().await.is_ok());
    }

    #[tokio::test]
    async fn a_view_that_is_too_large_is_refused() {
        let renderer = Renderer::default();
        let refused = renderer
            .render(None, |out| out.write_all(&vec![0; LARGEST + 1]))
            .await
            .unwrap_err();
        assert!(format!("{refused:?}").contains("413"), "{refused:?}");
    }
}
