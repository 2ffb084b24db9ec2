//! Names of the kernel's functions, by `/proc/kallsyms`: lines of address, kind, name, and module in brackets. The list is read when an address
//! is not known yet, and not kept.

use std::{collections::HashMap, fs, io, path::Path, sync::Arc};

use crate::report::{Frame, FrameKind};

/// The list has some 200,000 lines of 45 bytes; of a longer one the rest is not read.
const MOST_BYTES: usize = 64 << 20;

/// What stands for the kernel's own file in a frame.
const KERNEL: &str = "[kernel]";

/// The kernel's functions by address.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    known: HashMap<u64, Arc<Frame>>,
    /// Why there are no names, for people.
    refused: Option<String>,
}

/// A function that is listed: where it begins, and where its line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    start: u64,
    line: usize,
}

impl KernelSymbols {
    /// Learns the names of return addresses.
    pub fn learn(&mut self, proc_root: &Path, addresses: impl Iterator<Item = u64>) {
        let unknown: Vec<u64> = addresses
            .filter(|address| !self.known.contains_key(address))
            .collect();
        if unknown.is_empty() || self.refused.is_some() {
            return;
        }
        match read(proc_root) {
            Ok(text) => self.learn_from(&text, &unknown),
            Err(error) => self.refused = Some(format!("/proc/kallsyms: {error}")),
        }
    }

    fn learn_from(&mut self, text: &[u8], unknown: &[u64]) {
        let listed = listed(text);
        if listed.is_empty() {
            self.refused = Some(
                "/proc/kallsyms shows no addresses (kernel.kptr_restrict, CAP_SYSLOG)".to_owned(),
            );
            return;
        }
        for address in unknown {
            let frame = frame(text, &listed, *address);
            self.known.insert(*address, Arc::new(frame));
        }
    }

    /// The frame of a return address.
    #[must_use]
    pub fn frame(&self, address: u64) -> Arc<Frame> {
        self.known.get(&address).cloned().unwrap_or_else(|| {
            Arc::new(Frame {
                module: Some(KERNEL.to_owned()),
                kind: FrameKind::Kernel,
                address: Some(address),
                ..Frame::default()
            })
        })
    }

    /// Why there are no names, for people.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }
}

fn read(proc_root: &Path) -> io::Result<Vec<u8>> {
    let mut text = fs::read(proc_root.join("kallsyms"))?;
    text.truncate(MOST_BYTES);
    Ok(text)
}

/// The functions, by address. None where addresses are not shown: all are 0 then.
fn listed(text: &[u8]) -> Vec<Listed> {
    let mut listed = Vec::new();
    let mut line = 0;
    for bytes in text.split(|byte| *byte == b'\n') {
        let mut fields = bytes.split(|byte| *byte == b' ');
        if let (Some(address), Some([b't' | b'T' | b'w' | b'W'])) = (fields.next(), fields.next())
            && let Some(start) = std::str::from_utf8(address)
                .ok()
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            && start != 0
        {
            listed.push(Listed { start, line });
        }
        line = line.saturating_add(bytes.len()).saturating_add(1);
    }
    listed.sort_unstable();
    listed
}

/// The frame of a return address: the call lies before it.
fn frame(text: &[u8], listed: &[Listed], address: u64) -> Frame {
    let call = address.saturating_sub(1);
    let place = listed.partition_point(|one| one.start <= call);
    let found = place.checked_sub(1).and_then(|place| listed.get(place));
    let named = found.and_then(|found| {
        let line = text
            .get(found.line..)?
            .split(|byte| *byte == b'\n')
            .next()?;
        let name = String::from_utf8_lossy(line);
        let name = name.splitn(3, ' ').nth(2)?;
        let (name, module) = name.split_once('\t').unwrap_or((name, KERNEL));
        Some((name.to_owned(), module.to_owned(), found.start))
    });
    let (function, module, start) = match named {
        Some((name, module, start)) => (Some(name), module, Some(start)),
        None => (None, KERNEL.to_owned(), None),
    };
    Frame {
        function,
        function_offset: start.map(|start| address.saturating_sub(start)),
        module: Some(module),
        kind: FrameKind::Kernel,
        address: Some(address),
        ..Frame::default()
    }
}

#[cfg(test)]
mod tests {
    use super::{KernelSymbols, listed};
    use proptest::prelude::*;

    const LIST: &[u8] = b"ffffffff81000000 T _text\nffffffff81000100 t do_pipe2\nffffffff81000080 T alloc_pipe_info\n\
        ffffffff81000090 d a_variable\nffffffffc0000000 t fs_open\t[ext4]\n";

    fn names(addresses: &[u64]) -> Vec<(Option<String>, Option<String>)> {
        let mut symbols = KernelSymbols::default();
        symbols.learn_from(LIST, addresses);
        addresses
            .iter()
            .map(|address| {
                let frame = symbols.frame(*address);
                (frame.function.clone(), frame.module.clone())
            })
            .collect()
    }

    #[test]
    fn a_return_address_belongs_to_the_function_that_called() {
        let found = names(&[
            0xffff_ffff_8100_0100,
            0xffff_ffff_8100_0101,
            0xffff_ffff_c000_0010,
        ]);
        let expected = [
            ("alloc_pipe_info", "[kernel]"),
            ("do_pipe2", "[kernel]"),
            ("fs_open", "[ext4]"),
        ];
        let expected: Vec<_> = expected
            .map(|(name, module)| (Some(name.to_owned()), Some(module.to_owned())))
            .into();
        assert_eq!(found, expected);
        assert_eq!(names(&[1]), [(None, Some("[kernel]".to_owned()))]);
    }

    #[test]
    fn addresses_that_are_not_shown_are_said_to_be_hidden() {
        let mut symbols = KernelSymbols::default();
        symbols.learn_from(b"0000000000000000 T _text\n0000000000000000 t pipe\n", &[7]);
        assert!(symbols.refused().is_some());
        assert_eq!(symbols.frame(7).function, None);
    }

    proptest! {
        #[test]
        fn whatever_the_list_says_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = listed(&text);
            KernelSymbols::default().learn_from(&text, &[1, u64::MAX]);
        }
    }
}
