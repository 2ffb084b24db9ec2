//! What a file says of the interpreter in it: version, where the loop lies that runs Python functions, and where threads' states are found. Knows
//! nothing of processes.

use std::ops::Range;

use iced_x86::{Decoder, DecoderOptions, FlowControl};
use serde::{Deserialize, Serialize};

use super::{
    key::key_address,
    layout::{Layout, TOLD_BYTES, Version},
};
use crate::process::elf::{ElfFile, ReadAt, SymbolKind};

/// The function that runs Python functions.
const EVAL: &str = "_PyEval_EvalFrameDefault";
/// Everything that is known of all threads.
const RUNTIME: &str = "_PyRuntime";
/// `PY_VERSION_HEX`, since 3.11.
const VERSION: &str = "Py_Version";
/// See [`key_address`].
const GETTER: &str = "PyGILState_GetThisThreadState";

/// The largest loop and the largest getter that are looked at, bytes. Loops have 20 to 130 KiB, getters some 40 bytes.
const MOST_EVAL: u64 = 1 << 20;
const MOST_GETTER: u64 = 128;
/// The most constants that are searched for the version, bytes.
const MOST_CONSTANTS: u64 = 64 << 20;

/// What is read of a file with an interpreter in it; its parts are parsed by the process apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The version, and how the file says it.
    release: Option<(Version, String)>,
    /// The first bytes of `_PyRuntime`, which since 3.13 tell offsets.
    told: Option<Vec<u8>>,
    eval: Vec<Range<u64>>,
    runtime: u64,
    key: Option<u64>,
}

/// An interpreter, in addresses of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interpreter {
    pub(super) version: Version,
    /// As the file says it: `3.11.2`.
    pub(super) release: String,
    /// The loop, and the parts of it that the compiler put elsewhere.
    pub(super) eval: Vec<Range<u64>>,
    pub(super) runtime: u64,
    /// The `Py_tss_t`.
    pub(super) key: u64,
    pub(super) layout: Layout,
}

/// Looks for an interpreter in a file.
pub(crate) fn find(elf: &ElfFile, source: &(impl ReadAt + ?Sized)) -> Option<Facts> {
    let wanted = |name: &[u8]| {
        [RUNTIME, VERSION, GETTER]
            .iter()
            .any(|wanted| wanted.as_bytes() == name)
            || name.strip_prefix(EVAL.as_bytes()).is_some_and(|rest| {
                // `.cold`, `.part.0`, `.lto_priv.0`.
                rest.is_empty() || rest.first() == Some(&b'.')
            })
    };
    let mut symbols = elf.symbols(source, wanted).ok()?;
    symbols.retain(|symbol| symbol.kind != SymbolKind::Undefined);
    let named = |name: &str| symbols.iter().find(|symbol| symbol.name == name);
    let runtime = named(RUNTIME)?.vaddr;
    let eval = named(EVAL)?;
    let parts = symbols
        .iter()
        .filter(|symbol| symbol.name.starts_with(EVAL))
        .filter(|symbol| symbol.size > 0)
        .map(|symbol| symbol.vaddr..symbol.vaddr.saturating_add(symbol.size));
    let mut eval_parts: Vec<Range<u64>> = parts.collect();
    let hot = eval.vaddr..eval.vaddr.saturating_add(eval.size.clamp(1, MOST_EVAL));
    eval_parts.extend(cold_parts(elf, source, &hot));
    eval_parts.sort_by_key(|part| (part.start, part.end));
    eval_parts.dedup();
    let number = named(VERSION).and_then(|symbol| number_at(elf, source, symbol.vaddr));
    let key = named(GETTER).and_then(|getter| {
        let size = match getter.size {
            0 => MOST_GETTER,
            size => size.min(MOST_GETTER),
        };
        let code = elf.code_at(source, getter.vaddr, size).ok()?;
        key_address(&code, getter.vaddr, runtime)
    });
    Some(Facts {
        release: match number {
            Some(number) => Some(release_of(number)),
            None => version_among_constants(elf, source),
        },
        told: bytes_at(elf, source, runtime, TOLD_BYTES),
        eval: eval_parts,
        runtime,
        key,
    })
}

/// What `PY_VERSION_HEX` says.
fn release_of(number: u32) -> (Version, String) {
    let [major, minor, micro, _] = number.to_be_bytes();
    (Version { major, minor }, format!("{major}.{minor}.{micro}"))
}

impl Facts {
    /// The interpreter.
    ///
    /// # Errors
    /// Why its frames cannot be seen.
    pub(super) fn interpreter(self) -> Result<Interpreter, String> {
        let (version, release) = self
            .release
            .ok_or("which version of CPython it is cannot be told")?;
        let layout = match self.told.as_deref().and_then(Layout::told) {
            Some((_, true, _)) => {
                return Err(format!(
                    "CPython {release} is free-threaded, which is not read"
                ));
            }
            Some((_, false, layout)) => Some(layout),
            None => Layout::of(version),
        };
        let layout =
            layout.ok_or_else(|| format!("CPython {release} is not known (3.8 to 3.13 are)"))?;
        let key = self
            .key
            .ok_or_else(|| format!("where CPython {release} keeps threads' states is not found"))?;
        Ok(Interpreter {
            version,
            release,
            eval: self.eval,
            runtime: self.runtime,
            key,
            layout,
        })
    }
}

/// The parts of a function that stand apart from it: a jump out of it, other than to where a function begins, leads there. Where they begin and
/// end, `.eh_frame_hdr` tells, which lists the beginnings of all functions and parts.
fn cold_parts(elf: &ElfFile, source: &(impl ReadAt + ?Sized), hot: &Range<u64>) -> Vec<Range<u64>> {
    let Ok(code) = elf.code_at(source, hot.start, hot.end - hot.start) else {
        return Vec::new();
    };
    let starts = function_starts(elf, source);
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut decoder = Decoder::with_ip(64, &code, hot.start, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        let jumps = matches!(
            instruction.flow_control(),
            FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch
        );
        let target = instruction.near_branch_target();
        if !jumps || hot.contains(&target) || !elf.is_code(target) {
            continue;
        }
        let next = starts.partition_point(|start| *start <= target);
        let start = next.checked_sub(1).and_then(|place| starts.get(place));
        let (Some(start), Some(end)) = (start, starts.get(next)) else {
            continue;
        };
        // A jump to a beginning may end in another function.
        if *start != target && !hot.contains(start) && !parts.contains(&(*start..*end)) {
            parts.push(*start..*end);
        }
    }
    parts
}

/// The addresses at which `.eh_frame_hdr` says that functions begin, in order (LSB Core, 10.6.2).
fn function_starts(elf: &ElfFile, source: &(impl ReadAt + ?Sized)) -> Vec<u64> {
    /// `DW_EH_PE_datarel | DW_EH_PE_sdata4`, as all linkers write it; a pointer to the frames and the count stand before the table.
    const TABLE: u8 = 0x3b;
    const UDATA4: u8 = 0x03;
    const BEFORE: usize = 12;
    let Some(section) = elf.section(".eh_frame_hdr") else {
        return Vec::new();
    };
    let Ok(bytes) = section.read(source) else {
        return Vec::new();
    };
    if bytes.first() != Some(&1) || bytes.get(2..4) != Some(&[UDATA4, TABLE]) {
        return Vec::new();
    }
    bytes
        .get(BEFORE..)
        .unwrap_or_default()
        .chunks_exact(8)
        .filter_map(|entry| {
            let offset = i32::from_le_bytes(entry.get(..4)?.try_into().ok()?);
            section.vaddr.checked_add_signed(i64::from(offset))
        })
        .collect()
}

/// The version in the text that `Py_GetVersion` begins with.
fn version_among_constants(
    elf: &ElfFile,
    source: &(impl ReadAt + ?Sized),
) -> Option<(Version, String)> {
    let section = elf.section(".rodata")?;
    if section.size > MOST_CONSTANTS {
        return None;
    }
    let constants = section.read(source).ok()?;
    let mut found: Option<(Version, String)> = None;
    for (at, _) in constants
        .windows(2)
        .enumerate()
        .filter(|(_, two)| *two == b"3.")
    {
        let before = at.checked_sub(1).and_then(|place| constants.get(place));
        if before.is_some_and(|byte| byte.is_ascii_digit() || *byte == b'.') {
            continue;
        }
        let Some(text) = constants.get(at..).and_then(version_text) else {
            continue;
        };
        let mut numbers = text.split('.').skip(1).map(str::parse::<u8>);
        let Some(Ok(minor)) = numbers.next() else {
            continue;
        };
        let version = Version { major: 3, minor };
        if Layout::of(version).is_none() {
            continue;
        }
        if found.as_ref().is_some_and(|(known, _)| *known != version) {
            // Two are one too many.
            return None;
        }
        found = Some((version, text));
    }
    found
}

/// `3.8.18` up to its closing zero.
fn version_text(bytes: &[u8]) -> Option<String> {
    const LONGEST: usize = 16;
    let end = bytes.iter().take(LONGEST).position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(bytes.get(..end)?).ok()?;
    let is_version = text.split('.').count() == 3
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+'))
        && text
            .split('.')
            .all(|part| part.starts_with(|first: char| first.is_ascii_digit()));
    is_version.then(|| text.to_owned())
}

fn number_at(elf: &ElfFile, source: &(impl ReadAt + ?Sized), vaddr: u64) -> Option<u32> {
    let bytes = bytes_at(elf, source, vaddr, 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Bytes that the file has for addresses.
fn bytes_at(
    elf: &ElfFile,
    source: &(impl ReadAt + ?Sized),
    vaddr: u64,
    size: u64,
) -> Option<Vec<u8>> {
    let offset = elf.file_offset_of(vaddr)?;
    let mut bytes = vec![0; usize::try_from(size).ok()?];
    source.read_at(offset, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::version_text;

    #[test]
    fn a_version_is_three_numbers_and_perhaps_a_letter() {
        assert_eq!(version_text(b"3.8.18\0x").as_deref(), Some("3.8.18"));
        assert_eq!(version_text(b"3.9.2+\0").as_deref(), Some("3.9.2+"));
        assert_eq!(version_text(b"3.10.0rc1\0").as_deref(), Some("3.10.0rc1"));
        for other in [
            &b"3.8\0"[..],
            b"3.8.18",
            b"3.x.y\0",
            b"3..1\0",
            b"3.8.18 (default\0",
        ] {
            assert_eq!(version_text(other), None);
        }
    }
}
