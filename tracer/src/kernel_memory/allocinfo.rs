//! `/proc/allocinfo`: what each line of the kernel's source has allocated and not freed, where the kernel counts that
//! (CONFIG_MEM_ALLOC_PROFILING).

use super::lines;

/// A line of the kernel's source that allocates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatingLine {
    /// `mm/slub.c:2319 alloc_slab_page`, the module before it where it is in one.
    pub place: String,
    /// Bytes.
    pub bytes: u64,
    /// Allocations.
    pub calls: u64,
}

/// What holds less is not followed, bytes.
const LEAST_BYTES: u64 = 64 * 1024;

/// So many lines are followed, the largest.
const MOST_LINES: usize = 256;

/// Longer places are none.
const LONGEST_PLACE: usize = 200;

/// Reads the lines `bytes calls file:line [module] func:name`, the largest first.
#[must_use]
pub(super) fn parse_allocinfo(text: &[u8]) -> Vec<AllocatingLine> {
    let mut found: Vec<AllocatingLine> = lines(text).filter_map(line).collect();
    found.sort_by(|one, two| (two.bytes, &one.place).cmp(&(one.bytes, &two.place)));
    found.truncate(MOST_LINES);
    found
}

fn line(text: &str) -> Option<AllocatingLine> {
    let mut words = text.split_ascii_whitespace();
    let bytes: u64 = words.next()?.parse().ok()?;
    let calls: u64 = words.next()?.parse().ok()?;
    let place: Vec<&str> = words
        .map(|word| word.strip_prefix("func:").unwrap_or(word))
        .collect();
    let place = place.join(" ");
    (bytes >= LEAST_BYTES && !place.is_empty() && place.len() <= LONGEST_PLACE).then_some(
        AllocatingLine {
            place,
            bytes,
            calls,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::{AllocatingLine, parse_allocinfo};
    use proptest::prelude::*;

    #[test]
    fn lines_that_hold_much_are_read() {
        let text = b"allocinfo - version: 1.0\n#     <size>  <calls> <tag info>\n           0        0 init/main.c:1314 func:do_initcalls\n\
              262144       64 fs/pipe.c:801 func:alloc_pipe_info\n     1048576      256 net/core/sock.c:2100 [ipv6] func:sk_prot_alloc\n";
        let line = |place: &str, bytes, calls| AllocatingLine {
            place: place.to_owned(),
            bytes,
            calls,
        };
        assert_eq!(
            parse_allocinfo(text),
            [
                line("net/core/sock.c:2100 [ipv6] sk_prot_alloc", 1_048_576, 256),
                line("fs/pipe.c:801 alloc_pipe_info", 262_144, 64),
            ]
        );
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_allocinfo(&text);
        }
    }
}
