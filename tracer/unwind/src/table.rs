//! A file's unwind table: its rows, its page index, and the search through them. Knows not how it was made.

use leakscope_common::UnwindRow;

use super::build::Kept;

/// The rows of one file. See the module's documentation for which rows there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Sorted by ELF virtual address, of which each keeps the low 16 bits.
    pub rows: Vec<UnwindRow>,
    /// The first row's virtual address divided by 64 KiB.
    pub first_page: u64,
    /// For each 64 KiB page from `first_page` on, the index of the first row at or behind the page's first address; then one more,
    /// the number of rows.
    pub page_starts: Vec<u32>,
    /// Which rows are there.
    pub kept: Kept,
    /// How the table came about.
    pub stats: Stats,
}

/// Counts from building a [`Table`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries of call frame information (FDEs) that the table was made of.
    pub functions: u32,
    /// Entries that could not be read; their functions have no rows or unsupported ones.
    pub corrupt: u32,
    /// Entries that cover no executable byte of the file: functions of no length, or that the linker discarded.
    pub outside: u32,
    /// Rows of the full table, kept or not.
    pub rows_full: u32,
    /// Rows of the table that say [`CfaRule::Unsupported`](leakscope_common::CfaRule::Unsupported).
    pub unsupported: u32,
    /// Executable bytes of the file.
    pub text_bytes: u64,
}

impl Table {
    /// The row for an ELF virtual address: the last one that begins at or before it. `None` before the first row and
    /// behind the last row's page. For a frame behind a call, ask for return address - 1.
    ///
    /// The probe searches in the same way: only within the page of the address, and, where no row of that page
    /// begins at or before it, the row before the page's first one holds.
    #[must_use]
    pub fn lookup(&self, address: u64) -> Option<UnwindRow> {
        let page = (address >> 16).checked_sub(self.first_page)?;
        let page = usize::try_from(page).ok()?;
        let first = *self.page_starts.get(page)? as usize;
        let behind = *self.page_starts.get(page.checked_add(1)?)? as usize;
        let low = address as u16;
        let in_page = self.rows.get(first..behind)?;
        let count = in_page.partition_point(|row| row.address_low <= low);
        self.rows.get((first + count).checked_sub(1)?).copied()
    }

    /// Bytes of rows and page index.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of_val(self.rows.as_slice()) + size_of_val(self.page_starts.as_slice())
    }

    /// The rows with their virtual addresses, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, UnwindRow)> + '_ {
        let pages = self.page_starts.array_windows::<2>().zip(self.first_page..);
        pages.flat_map(|(&[first, behind], page)| {
            let rows = self.rows.get(first as usize..behind as usize);
            rows.unwrap_or_default()
                .iter()
                .map(move |row| (page << 16 | u64::from(row.address_low), *row))
        })
    }
}

/// Makes the page index. `rows` are sorted by address; `None` if they are more than the index can number.
pub(super) fn index_pages(rows: &[(u64, UnwindRow)]) -> Option<(u64, Vec<u32>)> {
    let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else {
        return Some((0, Vec::new()));
    };
    let count = u32::try_from(rows.len()).ok()?;
    let first_page = first >> 16;
    let pages = usize::try_from((last >> 16) - first_page + 1).ok()?;
    let mut starts = Vec::with_capacity(pages + 1);
    for (index, (address, _)) in (0..count).zip(rows) {
        let page = usize::try_from((address >> 16) - first_page).ok()?;
        while starts.len() <= page {
            starts.push(index);
        }
    }
    starts.push(count);
    Some((first_page, starts))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn table(addresses: &[u64]) -> Table {
        let rows: Vec<_> = addresses
            .iter()
            .zip(0..)
            .map(|(address, number)| {
                let row = UnwindRow {
                    address_low: *address as u16,
                    cfa_offset: number,
                    ..UnwindRow::default()
                };
                (*address, row)
            })
            .collect();
        let (first_page, page_starts) = index_pages(&rows).unwrap();
        Table {
            rows: rows.into_iter().map(|(_, row)| row).collect(),
            first_page,
            page_starts,
            ..Table::default()
        }
    }

    #[test]
    fn a_row_holds_across_pages_without_rows() {
        let table = table(&[0x1_0010, 0x1_FFFF, 0x5_0000]);
        assert_eq!(table.page_starts, [0, 2, 2, 2, 2, 3]);
        let found = |address| table.lookup(address).map(|row| row.cfa_offset);
        assert_eq!(found(0xFFFF), None);
        assert_eq!(found(0x1_000F), None);
        assert_eq!(found(0x1_0010), Some(0));
        assert_eq!(found(0x1_FFFE), Some(0));
        assert_eq!(found(0x2_0000), Some(1));
        assert_eq!(found(0x4_FFFF), Some(1));
        assert_eq!(found(0x5_0000), Some(2));
        assert_eq!(found(0x5_FFFF), Some(2));
        assert_eq!(found(0x6_0000), None);
        assert_eq!(Table::default().lookup(0), None);
    }

    proptest! {
        #[test]
        fn finds_what_a_plain_search_finds(
            addresses in prop::collection::btree_set(0x8_0000_u64..0x20_0000, 1..200),
            asked in prop::collection::vec(0x7_0000_u64..0x21_0000, 100),
        ) {
            let addresses: Vec<u64> = addresses.into_iter().collect();
            let table = table(&addresses);
            prop_assert!(table.iter().map(|(address, _)| address).eq(addresses.iter().copied()));
            for address in asked {
                let plain = addresses.iter().rposition(|row| *row <= address);
                let last_page = addresses.last().unwrap() >> 16;
                let expected = plain.filter(|_| address >> 16 <= last_page).map(|index| index as i16);
                prop_assert_eq!(table.lookup(address).map(|row| row.cfa_offset), expected);
            }
        }
    }
}
