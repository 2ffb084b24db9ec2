//! A list with a cursor: which rows there are and in what order, which one is chosen, which are in view. Knows rows by their
//! keys and their places in a report, and nothing of what they are.

/// See the module. `K` tells rows apart from report to report, `S` is what they can be sorted by.
#[derive(Debug)]
pub(super) struct List<K, S> {
    /// Places in the report, in the order in which they are shown.
    pub(super) rows: Vec<u32>,
    /// So many are folded away.
    pub(super) folded: usize,
    /// The place of the chosen row among `rows`.
    pub(super) cursor: usize,
    /// The first row in view.
    pub(super) top: usize,
    chosen: Option<K>,
    /// Whether the user has chosen. Until then the first row is, whichever it is.
    is_moved: bool,
    pub(super) sort: S,
    pub(super) is_reversed: bool,
    /// What rows must have in their names, in lower case.
    pub(super) filter: String,
    pub(super) is_folded: bool,
}

impl<K: Copy + PartialEq, S> List<K, S> {
    pub(super) fn new(sort: S, is_folded: bool) -> Self {
        Self {
            rows: Vec::new(),
            folded: 0,
            cursor: 0,
            top: 0,
            chosen: None,
            is_moved: false,
            sort,
            is_reversed: false,
            filter: String::new(),
            is_folded,
        }
    }

    /// The row that is chosen.
    pub(super) fn chosen(&self) -> Option<K> {
        self.chosen
    }

    /// The place in the report of the row that is chosen.
    pub(super) fn current(&self) -> Option<u32> {
        self.rows.get(self.cursor).copied()
    }

    /// Puts other rows in place of those that there were. The chosen row stays chosen where it still is.
    pub(super) fn put(&mut self, rows: Vec<u32>, folded: usize, key: impl Fn(u32) -> Option<K>) {
        self.rows = rows;
        self.folded = folded;
        if !self.is_moved {
            self.cursor = 0;
        } else if let Some(place) = self
            .chosen
            .and_then(|chosen| self.rows.iter().position(|row| key(*row) == Some(chosen)))
        {
            self.cursor = place;
        }
        self.choose(key);
    }

    /// Moves the cursor by so many rows.
    pub(super) fn step(&mut self, by: isize, key: impl Fn(u32) -> Option<K>) {
        self.go(self.cursor.saturating_add_signed(by), key);
    }

    /// Moves the cursor to a row. At the first one, the list is as if nobody had chosen.
    pub(super) fn go(&mut self, to: usize, key: impl Fn(u32) -> Option<K>) {
        self.cursor = to;
        self.choose(key);
        self.is_moved = self.cursor > 0;
    }

    /// Begins anew: other rows will come.
    pub(super) fn reset(&mut self) {
        (self.cursor, self.top, self.chosen, self.is_moved) = (0, 0, None, false);
        self.filter.clear();
    }

    fn choose(&mut self, key: impl Fn(u32) -> Option<K>) {
        self.cursor = self.cursor.min(self.rows.len().saturating_sub(1));
        self.chosen = self.current().and_then(key);
    }

    /// Has the cursor in view where so many rows are.
    pub(super) fn show(&mut self, height: usize) {
        self.top = in_view(self.top, self.cursor, self.rows.len(), height);
    }

    /// The rows in view, with whether each is the chosen one.
    pub(super) fn visible(&self, height: usize) -> impl Iterator<Item = (u32, bool)> + '_ {
        self.rows
            .iter()
            .enumerate()
            .skip(self.top)
            .take(height)
            .map(|(place, row)| (*row, place == self.cursor))
    }
}

/// The first row in view of so many, so that the cursor is among `height` of them and as little as possible moves.
pub(super) fn in_view(top: usize, cursor: usize, rows: usize, height: usize) -> usize {
    let last = rows.saturating_sub(height);
    let least = (cursor + 1).saturating_sub(height);
    top.clamp(least, cursor.max(least)).min(last.max(least))
}

#[cfg(test)]
mod tests {
    use super::{List, in_view};

    #[test]
    fn the_cursor_is_in_view_and_nothing_moves_without_need() {
        assert_eq!(in_view(0, 3, 10, 5), 0);
        assert_eq!(in_view(0, 5, 10, 5), 1);
        assert_eq!(in_view(4, 2, 10, 5), 2);
        assert_eq!(in_view(8, 9, 10, 5), 5);
        assert_eq!(in_view(0, 0, 0, 5), 0);
        assert_eq!(in_view(3, 1, 2, 0), 2);
    }

    #[test]
    fn what_was_chosen_stays_chosen() {
        let key = |row: u32| Some(row);
        let mut list = List::new((), false);
        list.put(vec![3, 1, 2], 0, key);
        assert_eq!(list.chosen(), Some(3));
        // Nobody has chosen yet: the first is, whichever it is.
        list.put(vec![2, 3, 1], 0, key);
        assert_eq!(list.chosen(), Some(2));
        list.step(1, key);
        assert_eq!(list.chosen(), Some(3));
        list.put(vec![1, 2, 3], 0, key);
        assert_eq!((list.chosen(), list.cursor), (Some(3), 2));
        // Gone: the one that took its place.
        list.put(vec![1, 2], 0, key);
        assert_eq!(list.chosen(), Some(2));
        list.put(Vec::new(), 0, key);
        assert_eq!(list.chosen(), None);
        list.step(-5, key);
        assert_eq!(list.cursor, 0);
    }
}
