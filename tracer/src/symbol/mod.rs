//! Addresses to frames. Owns which file names an address, where its debug information is, and a cache of the answers.
//! Knows nothing of sites, bytes or views.

mod debug;
mod debuginfod;
mod demangle;
mod elf;
mod kallsyms;
mod perf_map;
mod python;
mod space;
mod vetted;

pub use debug::DebugFiles;
pub use debuginfod::{Debuginfod, DebuginfodSettings};
pub(crate) use demangle::demangled;
pub(crate) use elf::{Answered, Namer};
pub use elf::{ElfSymbols, Named, Symbols};
pub use kallsyms::KernelSymbols;
pub(crate) use perf_map::Generated;
pub use perf_map::PerfMap;
pub use python::PythonFrames;
pub(crate) use space::nanoseconds;
pub use space::{AddressSpace, Module, Modules, Place, Range};
pub(crate) use vetted::Identity;

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
        self.learn(space, addresses);
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

    /// Has what is not known yet named, all of a module at once, so that one is not waited for after the other.
    fn learn(&mut self, space: &AddressSpace, addresses: &[u64]) {
        let mut unknown: Vec<(&Arc<Module>, Vec<Wanted>)> = Vec::new();
        for (depth, address) in addresses.iter().enumerate() {
            let looked_up = called(*address, depth);
            let Some((range, module)) = space
                .find(looked_up)
                .and_then(|range| Some((range, range.module.as_ref()?)))
            else {
                continue;
            };
            let wanted = Wanted {
                virtual_address: module.virtual_address(range.file_offset(looked_up)),
                file_offset: range.file_offset(looked_up),
                address: *address,
                behind: address.wrapping_sub(looked_up),
            };
            let key = (module.number, wanted.virtual_address);
            if self.known.contains_key(&key) {
                continue;
            }
            let of_module = unknown
                .iter_mut()
                .find(|(other, _)| other.number == module.number);
            match of_module {
                Some((_, all)) => all.push(wanted),
                None => unknown.push((module, vec![wanted])),
            }
        }
        for (module, _) in &unknown {
            self.symbols.prepare(module);
        }
        for (module, all) in unknown {
            let addresses: Vec<u64> = all.iter().map(|one| one.virtual_address).collect();
            let named = self.symbols.names(module, &addresses);
            for (wanted, named) in all.into_iter().zip(named) {
                let key = (module.number, wanted.virtual_address);
                self.known.insert(key, wanted.frames(module, named));
            }
        }
    }

    fn frame(
        &self,
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
        let virtual_address = module.virtual_address(range.file_offset(looked_up));
        let known = self.known.get(&(module.number, virtual_address));
        frames.extend(
            known
                .into_iter()
                .flatten()
                .map(|frame| placed(frame, address)),
        );
    }
}

/// An address of a module that is to be named.
struct Wanted {
    virtual_address: u64,
    file_offset: u64,
    /// In the process.
    address: u64,
    /// How far that lies behind what is looked up, bytes.
    behind: u64,
}

impl Wanted {
    /// Its frames: one, named or not, and those of the functions that were inlined there.
    fn frames(self, module: &Module, named: Vec<Named>) -> Vec<Arc<Frame>> {
        let offset = self.virtual_address.wrapping_add(self.behind);
        let place = Frame {
            module: Some(display(&module.path)),
            offset: Some(offset),
            file_offset: Some(self.file_offset.wrapping_add(self.behind)),
            build_id: module.build_id.clone(),
            address: Some(self.address),
            ..Frame::default()
        };
        if named.is_empty() {
            return vec![Arc::new(place)];
        }
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
        fn names(&mut self, _: &Module, addresses: &[u64]) -> Vec<Vec<Named>> {
            let named = Named {
                function: "everywhere".to_owned(),
                size: None,
                start: Some(0),
                file: None,
                line: None,
                inlined: false,
            };
            vec![vec![named]; addresses.len()]
        }
    }

    /// Names that get better once.
    #[derive(Default)]
    struct Late {
        asked: u32,
        prepared: bool,
    }

    impl Symbols for Late {
        fn names(&mut self, module: &Module, addresses: &[u64]) -> Vec<Vec<Named>> {
            assert!(self.prepared);
            if self.asked < 3 {
                return vec![Vec::new(); addresses.len()];
            }
            Everywhere.names(module, addresses)
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
