//! CPython: found in a process by what its file exports; its frames as the probe finds them, and their names, read from outside. 3.8 to 3.13 with the
//! GIL; of others only native frames are seen, and it is said.

mod code;
mod file;
mod key;
mod layout;
mod lines;

use std::{collections::HashMap, ops::Range, sync::Arc};

use leakscope_common::{MAPPING_EVAL, MAPPING_INTERPRETER, PythonTable, python_frame_parts};

use crate::{
    apart,
    heap::Memory,
    report::{Frame, FrameKind},
    symbol::{AddressSpace, Module},
};
use code::{Code, Mark};
use file::Interpreter;
pub(crate) use file::{Facts, find};
pub use layout::Version;

/// `struct pthread.specific_1stblock` of glibc from the thread pointer on, x86_64 (nptl/descr.h: 2.4 to 2.43).
const SLOTS: u32 = 0x310;

/// So many code objects of one process are remembered.
const MOST_CODES: usize = 100_000;

/// What is known of files, by the numbers of modules.
#[derive(Debug, Default)]
pub struct Interpreters {
    files: HashMap<u64, Option<Result<Arc<Interpreter>, String>>>,
}

impl Interpreters {
    /// Looks for an interpreter among what a process has mapped. An error says why its frames cannot be seen.
    pub fn find(&mut self, space: &AddressSpace) -> Option<Result<Python, String>> {
        let mut unknown = None;
        let ranges = space.ranges().iter().filter(|range| range.executable);
        for range in ranges {
            let Some(module) = &range.module else {
                continue;
            };
            match self.of_module(module) {
                None => {}
                Some(Err(why)) => unknown = Some(Err(format!("{}: {why}", module.path.display()))),
                Some(Ok(interpreter)) => {
                    let bias = range.start.wrapping_sub(module.mapped_at(range));
                    return Some(Ok(Python {
                        interpreter,
                        module: Arc::clone(module),
                        bias,
                        codes: HashMap::new(),
                    }));
                }
            }
        }
        unknown
    }

    fn of_module(&mut self, module: &Module) -> Option<Result<Arc<Interpreter>, String>> {
        self.files
            .entry(module.number)
            .or_insert_with(|| {
                module.elf.as_ref()?;
                let facts = apart::interpreter(&module.file)?;
                Some(facts.interpreter().map(Arc::new))
            })
            .clone()
    }
}

/// The interpreter in a process.
#[derive(Debug)]
pub struct Python {
    interpreter: Arc<Interpreter>,
    module: Arc<Module>,
    /// What is to be added to addresses of the file.
    bias: u64,
    codes: HashMap<u64, (Mark, Option<Arc<Code>>)>,
}

impl Python {
    /// Its version, `3.11.2`.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.interpreter.release
    }

    /// The file that it is in.
    #[must_use]
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// Whether it is the same, in the same place.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.bias == other.bias && Arc::ptr_eq(&self.interpreter, &other.interpreter)
    }

    /// What the probe has to know.
    #[must_use]
    pub fn table(&self) -> PythonTable {
        let layout = &self.interpreter.layout;
        PythonTable {
            key: self.interpreter.key.wrapping_add(self.bias),
            shape: layout.shape.to_bits(),
            thread_frame: layout.thread_frame,
            cframe: layout.cframe,
            slots: SLOTS,
            reserved: 0,
        }
    }

    /// The addresses of its code, with flags of [`leakscope_common::Mapping`], in order: the loop within the rest.
    #[must_use]
    pub fn marks(&self, space: &AddressSpace) -> Vec<(Range<u64>, u32)> {
        let eval = self.interpreter.eval.iter();
        let mut marks: Vec<_> = eval
            .map(|part| {
                let place = |address: u64| address.wrapping_add(self.bias);
                (
                    place(part.start)..place(part.end),
                    MAPPING_EVAL | MAPPING_INTERPRETER,
                )
            })
            .collect();
        marks.extend(space.ranges().iter().filter_map(|range| {
            let module = range.module.as_ref()?;
            (module.number == self.module.number)
                .then_some((range.start..range.end, MAPPING_INTERPRETER))
        }));
        marks
    }

    /// The function and line of a Python frame of a stack; `None` of what no programmer wrote. A code object that is gone has no name, unless its whole
    /// process is.
    pub fn frame(&mut self, memory: &dyn Memory, is_gone: bool, frame: u64) -> Option<Frame> {
        let (address, position) = python_frame_parts(frame)?;
        let layout = &self.interpreter.layout.code;
        let unnamed = Frame {
            kind: FrameKind::Python,
            ..Frame::default()
        };
        let known = self.codes.get(&address);
        // A code object may be another's memory by now. Of a process that is gone, what was known stays known.
        let code = match (code::mark(memory, layout, address), known) {
            (Some(mark), Some((before, code))) if mark == *before => code.clone(),
            (None, Some((_, code))) if is_gone => code.clone(),
            (None, Some(_)) => None,
            (None, None) => None,
            (Some(mark), _) => {
                let code = Code::read(memory, layout, address).map(Arc::new);
                if self.codes.len() >= MOST_CODES {
                    self.codes.clear();
                }
                self.codes.insert(address, (mark, code.clone()));
                code
            }
        };
        let Some(code) = code else {
            return Some(unnamed);
        };
        if code.is_shim() {
            return None;
        }
        let Some(line) = code.line(layout, position) else {
            return Some(unnamed);
        };
        Some(Frame {
            function: Some(code.function.clone()),
            file: Some(code.file.clone()),
            line: Some(line),
            kind: FrameKind::Python,
            ..Frame::default()
        })
    }

    /// How many threads have a state, as the interpreter lists them, and of how many the state is where the probe looks for it. `None` while it
    /// is not ready, and where its memory cannot be read.
    #[must_use]
    pub fn threads(&self, memory: &dyn Memory) -> Option<(usize, usize)> {
        /// So many are looked at.
        const MOST: usize = 4096;
        let layout = &self.interpreter.layout;
        let key = memory.word(self.interpreter.key.wrapping_add(self.bias))?;
        let (is_created, key) = (key & 0xffff_ffff, key >> 32);
        if is_created == 0 {
            return None;
        }
        let runtime = self.interpreter.runtime.wrapping_add(self.bias);
        let mut interpreter = memory.word(runtime.wrapping_add(layout.first_interpreter))?;
        let (mut all, mut found) = (0, 0);
        let mut interpreters = 0;
        while interpreter != 0 && all < MOST && interpreters < MOST {
            interpreters += 1;
            let mut thread = memory.word(interpreter.wrapping_add(layout.first_thread))?;
            while thread != 0 && all < MOST {
                all += 1;
                let pointer = memory.word(thread.wrapping_add(layout.thread_id))?;
                let slot = pointer
                    .wrapping_add(u64::from(SLOTS))
                    .wrapping_add(key.wrapping_mul(16))
                    .wrapping_add(8);
                found += usize::from(memory.word(slot) == Some(thread));
                thread = memory.word(thread.wrapping_add(layout.next_thread))?;
            }
            interpreter = memory.word(interpreter.wrapping_add(layout.next_interpreter))?;
        }
        Some((all, found))
    }
}
