//! Which numbers the kernel's own type information (BTF) gives to functions, and where members of its structures lie: a program that is
//! tied to a kernel function is loaded with its number. Reads the file from front to end, twice, and keeps nothing of it: it has some five megabytes, of which a few names matter.
//! Knows nothing of programs.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
};

/// The kernel's BTF.
const PATH: &str = "/sys/kernel/btf/vmlinux";

/// `BTF_MAGIC` (include/uapi/linux/btf.h).
const MAGIC: u16 = 0xeb9f;
/// Bytes of `struct btf_header` and `struct btf_type` (include/uapi/linux/btf.h).
const HEADER: usize = 24;
const TYPE: usize = 12;
/// `BTF_KIND_STRUCT` and `BTF_KIND_FUNC`.
const STRUCT: u32 = 4;
const FUNC: u32 = 12;
/// Bytes of `struct btf_member`: name, type, offset in bits.
const MEMBER: usize = 12;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 16;

/// The numbers of functions in the kernel's BTF, in the order of the names; `None` for one that is not there.
///
/// # Errors
/// It cannot be read, or is none that is known.
pub(super) fn function_numbers(names: &[String]) -> io::Result<Vec<Option<u32>>> {
    numbers_in(open()?, names).map_err(cannot_read)
}

/// Where a member lies in a structure of the kernel, bytes; `None` where there is none of these names.
///
/// # Errors
/// As for [`function_numbers`].
pub(super) fn member_offset(structure: &str, member: &str) -> io::Result<Option<u32>> {
    offset_in(open()?, structure, member).map_err(cannot_read)
}

/// Where members lie in structures of the kernel, bytes, in the order of the pairs of structure and member; `None` where there is none of
/// these names. In one pass.
///
/// # Errors
/// As for [`function_numbers`].
pub(super) fn member_offsets(wanted: &[(&str, &str)]) -> io::Result<Vec<Option<u32>>> {
    offsets_in(open()?, wanted).map_err(cannot_read)
}

/// Where in `task_struct` a thread's thread pointer stands, bytes (arch/x86/include/asm/processor.h).
///
/// # Errors
/// As for [`function_numbers`], and the kernel's structures are others.
pub(super) fn thread_pointer() -> io::Result<u32> {
    let thread = member_offset("task_struct", "thread")?;
    let base = member_offset("thread_struct", "fsbase")?;
    thread
        .zip(base)
        .and_then(|(thread, base)| thread.checked_add(base))
        .ok_or_else(|| unknown("it has no task_struct.thread.fsbase"))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn cannot_read(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read {PATH}: {error}"))
}

fn open() -> io::Result<BufReader<File>> {
    let file = File::open(PATH).map_err(cannot_read)?;
    Ok(BufReader::with_capacity(BUFFER, file))
}

/// As [`function_numbers`], in any BTF of this machine's byte order.
fn numbers_in(btf: BufReader<impl Read + Seek>, names: &[String]) -> io::Result<Vec<Option<u32>>> {
    let mut found = vec![None; names.len()];
    visit(btf, names, |number, kind, index, _| {
        if kind == FUNC
            && let Some(slot @ None) = found.get_mut(index)
        {
            *slot = Some(number);
        }
        found.iter().any(Option::is_none)
    })?;
    Ok(found)
}

/// As [`member_offset`].
fn offset_in(
    btf: BufReader<impl Read + Seek>,
    structure: &str,
    member: &str,
) -> io::Result<Option<u32>> {
    let found = offsets_in(btf, &[(structure, member)])?;
    Ok(found.into_iter().next().flatten())
}

/// As [`member_offsets`].
fn offsets_in(
    btf: BufReader<impl Read + Seek>,
    wanted: &[(&str, &str)],
) -> io::Result<Vec<Option<u32>>> {
    let mut names: Vec<String> = Vec::new();
    let mut number = |name: &str| {
        let found = names.iter().position(|other| other == name);
        found.unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        })
    };
    let numbers: Vec<(usize, usize)> = wanted
        .iter()
        .map(|(structure, member)| (number(structure), number(member)))
        .collect();
    let mut found: Vec<Option<Option<u32>>> = vec![None; wanted.len()];
    visit(btf, &names, |_, kind, index, members| {
        if kind == STRUCT {
            for ((structure, member), slot) in numbers.iter().zip(&mut found) {
                if *structure == index && slot.flatten().is_none() {
                    // The upper bits are a bit field's width (`kind_flag`), which no whole member has.
                    let bits = members.iter().find(|(name, _)| name == member);
                    *slot = Some(bits.map(|(_, bits)| bits / 8));
                }
            }
        }
        found.iter().any(|slot| slot.flatten().is_none())
    })?;
    Ok(found.into_iter().map(Option::flatten).collect())
}

/// Shows each type that has one of these names: its number, its kind, which of the names, and of a structure the members that have one, with
/// their offsets. Ends when the visitor wants no more.
fn visit(
    mut btf: BufReader<impl Read + Seek>,
    names: &[String],
    mut visitor: impl FnMut(u32, u32, usize, &[(usize, u32)]) -> bool,
) -> io::Result<()> {
    let mut header = [0_u8; HEADER];
    btf.read_exact(&mut header)?;
    let mut words = words_of(&header);
    let mut word = || words.next().unwrap_or(0);
    // The first word is magic, version and flags; then the header's length, and offset and length of types and names.
    let first = word();
    let (length, types, types_length, strings, strings_length) =
        (word(), word(), word(), word(), word());
    if first & 0xffff != u32::from(MAGIC) {
        return Err(unknown("it does not begin as BTF does"));
    }
    let begin = |section: u32| SeekFrom::Start(u64::from(length) + u64::from(section));
    btf.seek(begin(strings))?;
    let wanted = names_at(&mut (&mut btf).take(u64::from(strings_length)), names)?;
    let index_of = |name: u32| wanted.iter().position(|at| *at == Some(name));
    btf.seek(begin(types))?;
    let mut end = u64::from(types_length);
    // 0 is `void`, which has no record.
    for number in 1_u32.. {
        if end < TYPE as u64 {
            break;
        }
        let mut record = [0_u8; TYPE];
        btf.read_exact(&mut record)?;
        let mut words = words_of(&record);
        let mut word = || words.next().unwrap_or(0);
        let (name, info) = (word(), word());
        let kind = info >> 24 & 0x1f;
        let more = behind(kind, info & 0xffff)
            .ok_or_else(|| unknown(&format!("type {number} is of kind {kind}")))?;
        end = end.saturating_sub(TYPE as u64 + more.unsigned_abs());
        let Some(index) = index_of(name) else {
            btf.seek_relative(more)?;
            continue;
        };
        let mut members = Vec::new();
        if kind == STRUCT {
            let mut record = vec![0_u8; usize::try_from(more).unwrap_or(0)];
            btf.read_exact(&mut record)?;
            for member in record.chunks_exact(MEMBER) {
                if let [name, _, bits] = words_of(member).collect::<Vec<_>>()[..]
                    && let Some(index) = index_of(name)
                {
                    members.push((index, bits));
                }
            }
        } else {
            btf.seek_relative(more)?;
        }
        if !visitor(number, kind, index, &members) {
            break;
        }
    }
    Ok(())
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks_exact(4)
        .filter_map(|word| word.try_into().ok())
        .map(u32::from_le_bytes)
}

/// Where among the names, which end with a zero each, some stand; offsets in bytes.
fn names_at(strings: &mut impl BufRead, names: &[String]) -> io::Result<Vec<Option<u32>>> {
    let mut at = vec![None; names.len()];
    let mut offset = 0_u32;
    let mut string = Vec::new();
    loop {
        string.clear();
        let read = strings.read_until(0, &mut string)?;
        if read == 0 {
            return Ok(at);
        }
        let name = string.strip_suffix(&[0]).unwrap_or(&string);
        if let Some(index) = names.iter().position(|wanted| wanted.as_bytes() == name)
            && let Some(slot) = at.get_mut(index)
        {
            *slot = Some(offset);
        }
        offset = offset.saturating_add(u32::try_from(read).unwrap_or(u32::MAX));
    }
}

/// Bytes behind the record of a type of a kind with so many members (include/uapi/linux/btf.h).
fn behind(kind: u32, members: u32) -> Option<i64> {
    let members = i64::from(members);
    Some(match kind {
        // INT, VAR, DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64.
        4 | 5 | 15 | 19 => 12 * members,
        // ENUM, FUNC_PROTO.
        6 | 13 => 8 * members,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn unknown(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("this kernel's BTF is not understood: {why}"),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{BufReader, FUNC, STRUCT, numbers_in, offset_in};
    use std::io::Cursor;

    /// BTF of these types (name, kind, members, bytes behind) with these names.
    fn btf(types: &[(u32, u32, u32, usize)], strings: &str) -> Vec<u8> {
        let mut records = Vec::new();
        for (name, kind, members, more) in types {
            for word in [*name, kind << 24 | members, 7] {
                records.extend(word.to_le_bytes());
            }
            records.extend(vec![0xff_u8; *more]);
        }
        let mut bytes = 0x1_eb9f_u32.to_le_bytes().to_vec();
        let length = u32::try_from(records.len()).unwrap();
        for word in [24, 0, length, length, u32::try_from(strings.len()).unwrap()] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(records);
        bytes.extend(strings.bytes());
        bytes
    }

    fn ask(bytes: Vec<u8>) -> std::io::Result<Vec<Option<u32>>> {
        let names = ["sys_a", "sys_b", "sys_c"].map(str::to_owned);
        // Records and names cross the buffer's end.
        numbers_in(BufReader::with_capacity(7, Cursor::new(bytes)), &names)
    }

    const STRINGS: &str = "\0int\0sys_b\0a_sys_a\0sys_a\0";

    #[test]
    fn functions_are_found_by_their_names() {
        // An integer, a structure of two members and a variable stand before; a type that is no function has a function's name.
        let types = [
            (1, 1, 0, 4),
            (5, 4, 2, 24),
            (19, 14, 0, 4),
            (5, FUNC, 1, 0),
            (11, FUNC, 0, 0),
            (19, FUNC, 0, 0),
        ];
        assert_eq!(ask(btf(&types, STRINGS)).unwrap(), [Some(6), Some(4), None]);
    }

    #[test]
    fn what_is_no_btf_is_an_error() {
        let mut bytes = btf(&[(5, FUNC, 0, 0)], STRINGS);
        assert!(ask(bytes.iter().copied().take(20).collect()).is_err());
        bytes.swap(0, 1);
        assert!(ask(bytes).is_err());
        // A kind that is not known has an unknown length.
        assert!(ask(btf(&[(1, 31, 0, 0), (5, FUNC, 0, 0)], STRINGS)).is_err());
    }

    #[test]
    fn a_file_that_was_cut_off_has_no_functions() {
        let mut cut = btf(&[(1, 4, 60_000, 0), (5, FUNC, 0, 0)], STRINGS);
        cut.truncate(41);
        assert_eq!(ask(cut).unwrap(), [None; 3]);
    }

    #[test]
    fn a_members_place_is_found_by_its_name() {
        // sys_a is a structure of sys_c at bit 0 and sys_b at bit 64.
        let mut bytes = btf(&[(1, 1, 0, 4), (19, STRUCT, 2, 24)], STRINGS);
        let members = 24 + 12 + 4 + 12;
        for (at, word) in [(0, 1_u32), (8, 0), (12, 5), (20, 64)] {
            let place = members + at;
            bytes.splice(place..place + 4, word.to_le_bytes());
        }
        let offset = |member: &str| {
            let bytes = BufReader::with_capacity(7, Cursor::new(bytes.clone()));
            offset_in(bytes, "sys_a", member).unwrap()
        };
        assert_eq!(offset("sys_b"), Some(8));
        assert_eq!(offset("sys_c"), None);
    }

    #[test]
    fn this_kernels_own_is_understood() {
        let names = ["__x64_sys_munmap".to_owned(), "no function".to_owned()];
        if std::path::Path::new(super::PATH).exists() {
            let found = super::function_numbers(&names).unwrap();
            assert!(matches!(found[..], [Some(_), None]), "{found:?}");
        }
    }
}
