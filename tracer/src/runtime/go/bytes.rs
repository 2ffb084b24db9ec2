//! Little-endian numbers at places in bytes that nobody vouches for.

/// The 32-bit number at a place.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?))
}

/// The 64-bit number at a place.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk::<8>()?))
}

/// The same, as a length or an offset.
pub(super) fn size(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

/// An unsigned number of seven bits a byte, low bits first (encoding/binary's `Uvarint`), and how many bytes it takes.
pub(super) fn varint(bytes: &[u8]) -> Option<(u32, usize)> {
    let mut value = 0_u32;
    for (place, byte) in bytes.iter().take(5).enumerate() {
        let shift = 7 * u32::try_from(place).ok()?;
        value |= u32::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some((value, place + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{half, size, varint, word};

    #[test]
    fn what_is_not_there_is_no_number() {
        let bytes = [1, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(half(&bytes, 4), Some(2));
        assert_eq!(half(&bytes, 5), None);
        assert_eq!(word(&bytes, 0), Some(0x2_0000_0001));
        assert_eq!(size(&bytes, 1), None);
        assert_eq!(word(&bytes, usize::MAX), None);
    }

    #[test]
    fn a_number_without_an_end_is_none() {
        assert_eq!(varint(&[0xac, 2]), Some((300, 2)));
        assert_eq!(varint(&[0x80; 9]), None);
        assert_eq!(varint(&[]), None);
    }
}
