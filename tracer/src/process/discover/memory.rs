//! Whether a process's code is still what its file says.
//!
//! Libraries that hook functions overwrite their first bytes. The kernel takes the instruction under a probe from the file: on changed
//! code it would run the wrong one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The one-byte breakpoint, `int3`.
const BREAKPOINT: u8 = 0xcc;
/// Since Linux 6.18 a uprobe on the five-byte no-operation becomes a call into the kernel's own page (`arch_uprobe_optimize()`).
const NOP5: &[u8] = &[0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `call rel32`.
const CALL: u8 = 0xe8;
/// Since Linux 7.3 it is the ten-byte one (`cs nopw 0(%rax,%rax,1)`), which becomes [`STEP_OVER_RED_ZONE`] and the call: the call
/// alone wrote into the red zone.
const NOP10: &[u8] = &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00];
/// `lea -0x80(%rsp),%rsp`.
const STEP_OVER_RED_ZONE: &[u8] = &[0x48, 0x8d, 0x64, 0x24, 0x80];

/// How code in memory compares to the file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    /// It is the same.
    Same,
    /// It could not be read.
    Unknown,
    /// It is the same but for a breakpoint, this many bytes from the start.
    Breakpoint(usize),
    /// It is another from this byte on.
    Changed(usize),
}

/// `/proc/PID/mem`, to be read only.
pub(super) struct CodeInMemory(Option<File>);

impl CodeInMemory {
    pub(super) fn open(folder: &Path) -> Self {
        Self(File::open(folder.join("mem")).ok())
    }

    /// Compares the bytes at an address of the process to those of the file.
    pub(super) fn compare(&self, address: u64, expected: &[u8]) -> Comparison {
        let mut found = vec![0; expected.len()];
        match &self.0 {
            Some(memory) if memory.read_exact_at(&mut found, address).is_ok() => {
                compare(&found, expected)
            }
            _ => Comparison::Unknown,
        }
    }
}

fn compare(found: &[u8], expected: &[u8]) -> Comparison {
    let mut breakpoint = None;
    let mut at = 0;
    while let (Some(byte), Some(wanted)) = (found.get(at), expected.get(at)) {
        let mut length = 1;
        if byte != wanted {
            let (there, wanted) = (rest(found, at), rest(expected, at));
            if *byte == CALL && wanted.starts_with(NOP5) {
                length = NOP5.len();
            } else if wanted.starts_with(NOP10) && is_optimised_nop10(there) {
                length = NOP10.len();
            } else if *byte != BREAKPOINT {
                return Comparison::Changed(at);
            }
            breakpoint = breakpoint.or(Some(at));
        }
        at += length;
    }
    breakpoint.map_or(Comparison::Same, Comparison::Breakpoint)
}

fn rest(bytes: &[u8], from: usize) -> &[u8] {
    bytes.get(from..).unwrap_or_default()
}

/// Whether these bytes are what an optimised probe makes of [`NOP10`]; the first is a breakpoint while the others change.
fn is_optimised_nop10(there: &[u8]) -> bool {
    let Some((step, call)) = there.split_at_checked(STEP_OVER_RED_ZONE.len()) else {
        return false;
    };
    let is_step = step == STEP_OVER_RED_ZONE
        || step.first() == Some(&BREAKPOINT) && rest(step, 1) == rest(STEP_OVER_RED_ZONE, 1);
    is_step && call.first() == Some(&CALL) && there.len() >= NOP10.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_are_told_from_hooks() {
        let code = [0x55, 0x48, 0x89, 0xe5, 0x41];
        assert_eq!(compare(&code, &code), Comparison::Same);
        assert_eq!(
            compare(&[0xcc, 0x48, 0x89, 0xe5, 0x41], &code),
            Comparison::Breakpoint(0)
        );
        assert_eq!(
            compare(&[0x55, 0xcc, 0x89, 0xe5, 0x41], &code),
            Comparison::Breakpoint(1)
        );
        assert_eq!(compare(&[0xe9, 1, 2, 3, 4], &code), Comparison::Changed(0));
        assert_eq!(
            compare(&[0xcc, 0xcc, 0x90, 0xe5, 0x41], &code),
            Comparison::Changed(2)
        );
        assert_eq!(compare(&[], &[]), Comparison::Same);
        let nop = [0x53, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x5b];
        assert_eq!(
            compare(&[0x53, 0xe8, 1, 2, 3, 4, 0x5b], &nop),
            Comparison::Breakpoint(1)
        );
        assert_eq!(
            compare(&[0x53, 0xe9, 1, 2, 3, 4, 0x5b], &nop),
            Comparison::Changed(1)
        );
        assert_eq!(
            compare(&[0x53, 0xe8, 1, 2, 3, 4, 0x5c], &nop),
            Comparison::Changed(6)
        );
    }

    #[test]
    fn an_optimised_nop10_is_a_breakpoint_not_a_hook() {
        let mut code = vec![0x53];
        code.extend(NOP10);
        code.push(0x5b);
        let optimised = |first: u8, call: u8| {
            let mut bytes = vec![0x53, first];
            bytes.extend(rest(STEP_OVER_RED_ZONE, 1));
            bytes.extend([call, 1, 2, 3, 4, 0x5b]);
            bytes
        };
        for first in [0x48, BREAKPOINT] {
            assert_eq!(
                compare(&optimised(first, CALL), &code),
                Comparison::Breakpoint(1)
            );
        }
        assert_eq!(
            compare(&optimised(0x48, 0xe9), &code),
            Comparison::Changed(1)
        );
    }
}
