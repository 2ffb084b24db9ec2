//! Where blocks begin and which are in use: two bits for each place, with counts beside them, so that looking one up touches one line of
//! the processor's cache. Knows no addresses.

/// Places of a cell, and cells of a piece.
const PLACES: usize = 64;
const CELLS: usize = 16;
const PIECE: usize = PLACES * CELLS;

/// The bits of places that follow each other.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    starts: u64,
    used: u64,
    /// How many bits of `used` are set in the cells before; filled in by [`Cells::count`].
    before: u32,
    /// The last start before the cell; 0 where there is none.
    last: u32,
}

/// Cells that follow each other; none where no block begins, for a block may be larger than all memory.
#[derive(Clone, Debug, Default)]
struct Piece {
    cells: Option<Box<[Cell; CELLS]>>,
    /// How many blocks in use begin before the piece.
    before: u32,
    /// The last start before the piece.
    last: u32,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Cells {
    pieces: Vec<Piece>,
    /// The last start of all.
    last: u32,
}

impl Cells {
    /// A block begins at a place.
    pub(super) fn start(&mut self, place: usize) {
        if self.pieces.len() <= place / PIECE {
            self.pieces.resize_with(place / PIECE + 1, Piece::default);
        }
        if let Some(piece) = self.pieces.get_mut(place / PIECE) {
            piece.cells.get_or_insert_default();
        }
        if let Some(cell) = self.cell_mut(place) {
            cell.starts |= bit(place);
        }
    }

    /// The block that begins at a place is in use, or is not.
    pub(super) fn use_it(&mut self, place: usize, is_used: bool) {
        if let Some(cell) = self.cell_mut(place) {
            if is_used {
                cell.used |= bit(place);
            } else {
                cell.used &= !bit(place);
            }
        }
    }

    /// No block is in use any more.
    pub(super) fn use_none(&mut self) {
        let pieces = self.pieces.iter_mut();
        for cell in
            pieces.flat_map(|piece| piece.cells.iter_mut().flat_map(|cells| cells.iter_mut()))
        {
            cell.used = 0;
        }
    }

    fn cell(&self, place: usize) -> Option<&Cell> {
        let piece = self.pieces.get(place / PIECE)?;
        piece.cells.as_ref()?.get(place / PLACES % CELLS)
    }

    fn cell_mut(&mut self, place: usize) -> Option<&mut Cell> {
        let piece = self.pieces.get_mut(place / PIECE)?;
        piece.cells.as_mut()?.get_mut(place / PLACES % CELLS)
    }

    /// Whether a block begins at a place.
    pub(super) fn is_start(&self, place: usize) -> bool {
        self.cell(place)
            .is_some_and(|cell| cell.starts & bit(place) != 0)
    }

    /// Whether a block that is in use begins at a place.
    pub(super) fn is_used(&self, place: usize) -> bool {
        self.cell(place)
            .is_some_and(|cell| cell.used & bit(place) != 0)
    }

    /// The first start behind a place.
    pub(super) fn next_start(&self, place: usize) -> Option<usize> {
        let from = place + 1;
        let mut mask = u64::MAX << (from % PLACES);
        let mut first = from / PLACES % CELLS;
        for (number, piece) in self.pieces.iter().enumerate().skip(from / PIECE) {
            let cells = piece.cells.iter().flat_map(|cells| cells.iter());
            for (at, cell) in cells.enumerate().skip(first) {
                let starts = cell.starts & mask;
                if starts != 0 {
                    let bit = starts.trailing_zeros() as usize;
                    return Some(number * PIECE + at * PLACES + bit);
                }
                mask = u64::MAX;
            }
            (mask, first) = (u64::MAX, 0);
        }
        None
    }

    /// Counts, once all bits stand; gives how many blocks are in use.
    pub(super) fn count(&mut self) -> u32 {
        let (mut sum, mut last) = (0_u32, 0_u32);
        for (number, piece) in self.pieces.iter_mut().enumerate() {
            (piece.before, piece.last) = (sum, last);
            for (at, cell) in (0..).zip(piece.cells.iter_mut().flat_map(|cells| cells.iter_mut())) {
                (cell.before, cell.last) = (sum, last);
                sum = sum.saturating_add(cell.used.count_ones());
                if cell.starts != 0 {
                    let bit = 63 - cell.starts.leading_zeros() as usize;
                    let place = number * PIECE + at * PLACES + bit;
                    last = u32::try_from(place).unwrap_or(u32::MAX);
                }
            }
        }
        self.last = last;
        sum
    }

    /// The block in use that a place lies in: where it begins, and how many others in use begin before it. As of the last count.
    #[inline]
    pub(super) fn find(&self, place: usize) -> Option<(usize, u32)> {
        let here = self.cell(place);
        let starts = here.map_or(0, |cell| {
            cell.starts & (u64::MAX >> (PLACES - 1 - place % PLACES))
        });
        let (start, cell) = if starts == 0 {
            let piece = self.pieces.get(place / PIECE);
            let last = match (here, piece) {
                (Some(cell), _) => cell.last,
                (None, Some(piece)) => piece.last,
                (None, None) => self.last,
            };
            (last as usize, self.cell(last as usize)?)
        } else {
            let bit = PLACES - 1 - starts.leading_zeros() as usize;
            (place - place % PLACES + bit, here?)
        };
        // Of a place before the first start this is none.
        let below = cell.used & (bit(start) - 1);
        (cell.used & bit(start) != 0).then(|| (start, cell.before + below.count_ones()))
    }

    /// Where the block in use begins before which so many others do. As of the last count.
    pub(super) fn select(&self, rank: u32) -> Option<usize> {
        let behind = self.pieces.partition_point(|piece| piece.before <= rank);
        let number = behind.checked_sub(1)?;
        let cells = self.pieces.get(number)?.cells.as_deref()?;
        let at = cells
            .partition_point(|cell| cell.before <= rank)
            .checked_sub(1)?;
        let cell = cells.get(at)?;
        let mut used = cell.used;
        for _ in 0..rank.checked_sub(cell.before)? {
            used &= used.wrapping_sub(1);
        }
        (used != 0).then(|| number * PIECE + at * PLACES + used.trailing_zeros() as usize)
    }

    /// The places at which blocks begin, in order, and whether they are in use.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        let pieces = self.pieces.iter().enumerate();
        let cells = pieces.flat_map(|(number, piece)| {
            let cells = piece.cells.iter().flat_map(|cells| cells.iter());
            (number * CELLS..).zip(cells)
        });
        cells.flat_map(|(number, cell)| {
            let mut left = cell.starts;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let place = left.trailing_zeros() as usize;
                    left &= left - 1;
                    (number * PLACES + place, cell.used >> place & 1 == 1)
                })
            })
        })
    }
}

fn bit(place: usize) -> u64 {
    1 << (place % PLACES)
}

#[cfg(test)]
mod tests {
    use super::Cells;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_and_places_agree_with_a_list(
            blocks in proptest::collection::btree_map(0_usize..30_000, any::<bool>(), 0..100),
            asked in proptest::collection::vec(0_usize..40_000, 0..100),
        ) {
            let mut cells = Cells::default();
            for (place, is_used) in &blocks {
                cells.start(*place);
                cells.use_it(*place, *is_used);
            }
            let used: Vec<usize> = blocks.iter().filter(|(_, used)| **used).map(|(place, _)| *place).collect();
            prop_assert_eq!(cells.count() as usize, used.len());
            prop_assert_eq!(cells.iter().collect::<Vec<_>>(), blocks.clone().into_iter().collect::<Vec<_>>());
            for (rank, place) in (0..).zip(&used) {
                prop_assert_eq!(cells.select(rank), Some(*place));
            }
            prop_assert_eq!(cells.select(used.len() as u32), None);
            for place in asked.into_iter().chain(blocks.keys().copied()) {
                let last = blocks.range(..=place).next_back();
                let found = last.filter(|(_, used)| **used).map(|(start, _)| {
                    (*start, used.partition_point(|other| other < start) as u32)
                });
                prop_assert_eq!(cells.find(place), found);
                let next = blocks.range(place + 1..).next().map(|(next, _)| *next);
                prop_assert_eq!(cells.next_start(place), next);
                prop_assert_eq!(cells.is_start(place), blocks.contains_key(&place));
                prop_assert_eq!(cells.is_used(place), blocks.get(&place) == Some(&true));
            }
        }
    }
}
