//! The line of an instruction, from the tables of a code object (`Objects/lnotab_notes.txt`, `Objects/locations.md` of CPython). Pure over bytes.

use super::layout::LineTable;

/// The line of the instruction at a distance in bytes from the first one; `None` where it has none.
pub(super) fn line_of(kind: LineTable, table: &[u8], first_line: i64, at: i64) -> Option<i64> {
    match kind {
        LineTable::Lnotab => Some(lnotab(table, first_line, at)),
        LineTable::Ranges => ranges(table, first_line, at),
        LineTable::Locations => locations(table, first_line, at / 2),
    }
}

/// Pairs: so many bytes on, so many lines on.
fn lnotab(table: &[u8], first_line: i64, at: i64) -> i64 {
    let (mut line, mut address) = (first_line, 0);
    for pair in table.chunks_exact(2) {
        let [bytes, lines] = pair else { break };
        address += i64::from(*bytes);
        if address > at {
            break;
        }
        line += i64::from(lines.cast_signed());
    }
    line
}

/// Pairs: the line moves by so much, and holds for so many bytes.
fn ranges(table: &[u8], first_line: i64, at: i64) -> Option<i64> {
    /// The bytes have no line.
    const NO_LINE: i8 = -128;
    let (mut line, mut end) = (first_line, 0);
    for pair in table.chunks_exact(2) {
        let [bytes, lines] = pair else { break };
        let lines = lines.cast_signed();
        if lines != NO_LINE {
            line += i64::from(lines);
        }
        end += i64::from(*bytes);
        if end > at {
            return (lines != NO_LINE).then_some(line);
        }
    }
    None
}

/// Entries: a first byte with the kind of what follows and how many instructions it is for.
fn locations(table: &[u8], first_line: i64, index: i64) -> Option<i64> {
    let mut bytes = table.iter().copied();
    let (mut line, mut behind) = (first_line, 0);
    while let Some(first) = bytes.next() {
        let kind = first >> 3 & 15;
        behind += i64::from(first & 7) + 1;
        match kind {
            // A column in a second byte.
            0..=9 => drop(bytes.next()),
            // Lines on, and two columns.
            10..=12 => {
                line += i64::from(kind) - 10;
                bytes.next();
                bytes.next();
            }
            13 => line += signed(&mut bytes)?,
            // The end's line and two columns follow.
            14 => {
                line += signed(&mut bytes)?;
                for _ in 0..3 {
                    number(&mut bytes)?;
                }
            }
            _ => {}
        }
        if behind > index {
            return (kind != 15).then_some(line);
        }
    }
    None
}

/// Six bits a byte, the lowest first; the seventh bit says that there are more.
fn number(bytes: &mut impl Iterator<Item = u8>) -> Option<u64> {
    let (mut value, mut shift) = (0_u64, 0_u32);
    loop {
        let byte = bytes.next()?;
        value |= u64::from(byte & 63).checked_shl(shift)?;
        shift += 6;
        if byte & 64 == 0 {
            return Some(value);
        }
    }
}

/// The lowest bit is the sign.
fn signed(bytes: &mut impl Iterator<Item = u8>) -> Option<i64> {
    let value = number(bytes)?;
    let size = i64::try_from(value >> 1).ok()?;
    Some(if value & 1 == 0 { size } else { -size })
}

#[cfg(test)]
mod tests {
    use super::{LineTable, line_of};

    #[test]
    fn lines_of_3_9_go_on_by_bytes_and_lines() {
        // dis of a function of four lines, and one that goes back a line.
        let table = [0, 1, 8, 1, 10, 2, 4, 0xff];
        let line = |at| line_of(LineTable::Lnotab, &table, 10, at);
        assert_eq!(line(-1), Some(10));
        assert_eq!(line(0), Some(11));
        assert_eq!(line(7), Some(11));
        assert_eq!(line(8), Some(12));
        assert_eq!(line(18), Some(14));
        assert_eq!(line(22), Some(13));
    }

    #[test]
    fn lines_of_3_10_hold_for_ranges_of_which_some_have_none() {
        let table = [8, 1, 4, 0x80, 10, 2];
        let line = |at| line_of(LineTable::Ranges, &table, 10, at);
        assert_eq!(line(0), Some(11));
        assert_eq!(line(8), None);
        assert_eq!(line(12), Some(13));
        assert_eq!(line(40), None);
    }

    #[test]
    fn lines_of_3_11_are_told_in_five_ways() {
        // RESUME without columns of the next line; one line on with columns; a short form; the long form; none.
        let table = [
            0x80 | 13 << 3,
            2,
            0x80 | 11 << 3 | 1,
            0,
            9,
            0x80,
            7,
            0x80 | 14 << 3,
            3,
            0,
            1,
            1,
            0x80 | 15 << 3,
        ];
        let line = |index: i64| line_of(LineTable::Locations, &table, 10, index * 2);
        assert_eq!(line(0), Some(11));
        assert_eq!((line(1), line(2)), (Some(12), Some(12)));
        assert_eq!(line(3), Some(12));
        assert_eq!(line(4), Some(11));
        assert_eq!((line(5), line(6)), (None, None));
    }

    #[test]
    fn a_table_that_ends_in_the_middle_has_no_line() {
        for table in [&[][..], &[0x80 | 14 << 3, 64], &[0x80 | 13 << 3]] {
            assert_eq!(line_of(LineTable::Locations, table, 1, 100), None);
        }
        let endless = [0xff; 40];
        assert_eq!(line_of(LineTable::Locations, &endless, 1, 1000), None);
    }
}
