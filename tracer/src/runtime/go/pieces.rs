//! Memory of a process that is read for one look: a page at a time, and each once.

use std::{cell::RefCell, collections::HashMap};

use crate::heap::Memory;

/// Memory is read in pieces of so many bytes, which are pages: no mapping begins within one.
const PIECE: u64 = 4096;
/// So many pieces are read for a look.
const MOST_PIECES: usize = 1 << 14;

/// Memory read piece by piece, each once.
pub(super) struct Pieces<'a> {
    memory: &'a dyn Memory,
    known: RefCell<HashMap<u64, Vec<u8>>>,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(memory: &'a dyn Memory) -> Self {
        Self {
            memory,
            known: RefCell::default(),
        }
    }

    /// So many bytes from an address on; `None` where they are not all there.
    pub(super) fn read(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes);
        let mut known = self.known.borrow_mut();
        while out.len() < bytes {
            let at = address.checked_add(out.len() as u64)?;
            let begin = at - at % PIECE;
            if !known.contains_key(&begin) {
                if known.len() >= MOST_PIECES {
                    return None;
                }
                let mut piece = vec![0; usize::try_from(PIECE).ok()?];
                let read = self.memory.read(begin, &mut piece);
                piece.truncate(read);
                known.insert(begin, piece);
            }
            let piece = known.get(&begin)?;
            let from = usize::try_from(at - begin).ok()?;
            let until = piece.len().min(from.checked_add(bytes - out.len())?);
            let part = piece.get(from..until).filter(|part| !part.is_empty())?;
            out.extend_from_slice(part);
        }
        Some(out)
    }
}
