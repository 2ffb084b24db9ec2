//! Addresses to frames. Owns which file names an address, where its debug information is, and a cache of the answers.
//! Knows nothing of sites, bytes or views.

mod debug;
mod debuginfod;
mod demangle;
mod elf;
mod perf_map;
mod python;
mod space;
mod vetted;

pub use debug::DebugFiles;
pub use debuginfod::{Debuginfod, DebuginfodSettings};
pub use elf::{ElfSymbols, Named, Symbols};
pub use perf_map::PerfMap;
pub use python::PythonFrames;
pub(crate) use space::nanoseconds;
pub use space::{AddressSpace, Module, Modules, Place, Range};

use std::{collections::HashMap, path::Path, sync::Arc};

use crate::report::{Frame, FrameKind};

/// Names frames, and remembers what it named.
pub struct Resolver {
    symbols: Box<dyn Symbols>,
    /// By module and ELF virtual address; inlined functions first.
    known: HashMap<(u64, u64), Vec<Arc<Frame>>>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(Box::new(ElfSymbols::default()))
    }
}

impl Resolver {
    /// A resolver over a backend.
    #[must_use]
    pub fn new(symbols: Box<dyn Symbols>) -> Self {
        Self {
            symbols,
            known: HashMap::new(),
        }
    }

    /// From now on names that are on their way are waited for, within bounds.
    pub fn be_patient(&mut self) {
        self.symbols.be_patient();
    }

    /// The modules, by number, of which there are no names, or not all that there could be, and why; each is told once.
    pub fn refused(&mut self) -> Vec<(u64, String)> {
        self.symbols.refused()
    }

    /// Names the frames of a stack, leaf first: the probed function's address, then return addresses. Functions that
    /// were inlined stand before the ones they were inlined into.
    pub fn stack(&mut self, space: &AddressSpace, addresses: &[u64]) -> Vec<Arc<Frame>> {
        let improved = self.symbols.improved();
        if !improved.is_empty() {
            self.known
                .retain(|(module, _), _| !improved.contains(module));
        }
        // All at once, so that one is not waited for after the other.
        for (depth, address) in addresses.iter().enumerate() {
            let range = space.find(called(*address, depth));
            if let Some(module) = range.and_then(|range| range.module.as_ref()) {
                self.symbols.prepare(module);
            }
        }
        let mut frames = Vec::with_capacity(addresses.len());
        let is_python = PythonFrames::are_in(addresses);
        for (depth, address) in addresses.iter().enumerate() {
            let looked_up = called(*address, depth);
            if !(is_python && space.python().is_folded(looked_up)) {
                self.frame(space, *address, looked_up, &mut frames);
            }
        }
        if is_python && space.python().folds() {
            drop_beginning(&mut frames);
        }
        frames
    }

    fn frame(
        &mut self,
        space: &AddressSpace,
        address: u64,
        looked_up: u64,
        frames: &mut Vec<Arc<Frame>>,
    ) {
        if let Some(python) = space.python().frame(address) {
            frames.push(Arc::clone(python));
            return;
        }
        let Some(range) = space.find(looked_up) else {
            frames.push(Arc::new(Frame {
                address: Some(address),
                ..Frame::default()
            }));
            return;
        };
        let Some(module) = &range.module else {
            let generated = space.generated(looked_up);
            frames.push(Arc::new(Frame {
                function: generated.map(|(name, _)| name.to_owned()),
                function_offset: generated.map(|(_, start)| address.saturating_sub(start)),
                module: range.label.clone(),
                kind: if range.label.is_none() {
                    FrameKind::Jit
                } else {
                    FrameKind::Native
                },
                address: Some(address),
                ..Frame::default()
            }));
            return;
        };
        let file_offset = looked_up - range.start + range.offset;
        let virtual_address = module.virtual_address(file_offset);
        let key = (module.number, virtual_address);
        if let Some(known) = self.known.get(&key) {
            frames.extend(known.iter().map(|frame| placed(frame, address)));
            return;
        }
        let named = self.symbols.name(module, virtual_address);
        let behind = address - looked_up;
        let offset = virtual_address + behind;
        let place = Frame {
            module: Some(display(&module.path)),
            offset: Some(offset),
            file_offset: Some(file_offset + behind),
            build_id: module.build_id.clone(),
            address: Some(address),
            ..Frame::default()
        };
        let made: Vec<Arc<Frame>> = if named.is_empty() {
            vec![Arc::new(place)]
        } else {
            named
                .into_iter()
                .map(|named| {
                    Arc::new(Frame {
                        function: Some(named.function),
                        function_offset: named.start.map(|start| offset.saturating_sub(start)),
                        file: named.file,
                        line: named.line,
                        inlined: named.inlined,
                        ..place.clone()
                    })
                })
                .collect()
        };
        frames.extend(made.iter().cloned());
        self.known.insert(key, made);
    }
}

/// Drops what starts the program or a thread below its first Python function.
fn drop_beginning(frames: &mut Vec<Arc<Frame>>) {
    const BEGINNINGS: [&str; 11] = [
        "_start",
        "main",
        "__libc_start_main",
        "__libc_start_main_impl",
        "__libc_start_main_alias_1",
        "__libc_start_call_main",
        "start_thread",
        "clone",
        "clone3",
        "__clone",
        "__clone3",
    ];
    while frames.last().is_some_and(|frame| {
        let name = frame.function.as_deref().unwrap_or_default();
        frame.kind == FrameKind::Native && BEGINNINGS.contains(&name)
    }) {
        frames.pop();
    }
}

/// What is looked up for an address of a stack: a return address may lie behind the end of the function that called, so the call itself.
fn called(address: u64, depth: usize) -> u64 {
    address.wrapping_sub(u64::from(depth > 0))
}

/// A frame of the same place in the file, at the address where this process has it.
fn placed(frame: &Arc<Frame>, address: u64) -> Arc<Frame> {
    if frame.address == Some(address) {
        return Arc::clone(frame);
    }
    Arc::new(Frame {
        address: Some(address),
        ..Frame::clone(frame)
    })
}

/// A path for people; bytes that are not UTF-8 are replaced.
fn display(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may fail")]

    use super::{AddressSpace, Module, Named, Range, Resolver, Symbols};
    use std::{fs::File, path::PathBuf, sync::Arc};

    /// One function, everywhere.
    struct Everywhere;

    impl Symbols for Everywhere {
        fn name(&mut self, _: &Module, _: u64) -> Vec<Named> {
            vec![Named {
                function: "everywhere".to_owned(),
                start: Some(0),
                file: None,
                line: None,
                inlined: false,
            }]
        }
    }

    /// Names that get better once.
    #[derive(Default)]
    struct Late {
        asked: u32,
        prepared: bool,
    }

    impl Symbols for Late {
        fn name(&mut self, module: &Module, address: u64) -> Vec<Named> {
            assert!(self.prepared);
            if self.asked < 3 {
                return Vec::new();
            }
            Everywhere.name(module, address)
        }

        fn prepare(&mut self, _: &Module) {
            self.prepared = true;
        }

        fn improved(&mut self) -> Vec<u64> {
            self.asked += 1;
            if self.asked == 3 { vec![1] } else { Vec::new() }
        }
    }

    #[test]
    fn names_that_come_late_replace_those_that_were_remembered() {
        let module = Arc::new(module());
        let mut resolver = Resolver::new(Box::new(Late::default()));
        let space = space(&module, 0x1000);
        let mut name = || {
            let frames = resolver.stack(&space, &[0x1040]);
            frames.first().unwrap().function.clone()
        };
        assert_eq!(name(), None);
        assert_eq!(name(), None);
        assert_eq!(name().as_deref(), Some("everywhere"));
    }

    fn module() -> Module {
        Module {
            number: 1,
            code: 1,
            path: PathBuf::from("/lib/library.so"),
            root: PathBuf::from("/"),
            file: File::open("/dev/null").unwrap(),
            elf: None,
            build_id: None,
            identity: (0, 0, 0, 0),
        }
    }

    /// A process that has the file mapped at an address.
    fn space(module: &Arc<Module>, start: u64) -> AddressSpace {
        let mut space = AddressSpace::default();
        space.insert(Range {
            start,
            end: start + 0x1000,
            offset: 0,
            executable: true,
            module: Some(Arc::clone(module)),
            label: None,
        });
        space
    }

    #[test]
    fn a_library_in_a_second_process_has_that_ones_addresses() {
        let module = Arc::new(module());
        let mut resolver = Resolver::new(Box::new(Everywhere));
        for start in [0x1000_u64, 0x7000] {
            let frames = resolver.stack(&space(&module, start), &[start + 0x40]);
            let frame = frames.first().unwrap();
            assert_eq!(frame.function.as_deref(), Some("everywhere"));
            assert_eq!(frame.address, Some(start + 0x40));
        }
    }
}
