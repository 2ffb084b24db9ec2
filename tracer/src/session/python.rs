//! The Python in followed processes: the probe is told how its frames are found, and what new stacks have of them is named at once, while the
//! code objects are there.

use std::{
    ops::Range,
    path::Path,
    time::{Duration, Instant},
};

use leakscope_common::PYTHON_FRAME;

use super::{Session, process::Traced};
use crate::{
    heap::Memory,
    process::procfs::answering_memory,
    reader::{Answering, ProcessMemory},
    runtime::cpython::Python,
};

/// How often it is looked which memory can be read.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The Python in a process.
#[derive(Debug)]
pub(super) struct PythonProcess {
    pub(super) python: Python,
    answering: Vec<Range<u64>>,
    looked: Option<Instant>,
}

impl Session {
    /// Looks for Python in a process, and tells the probe. Gives where the interpreter's code lies, with flags of mappings.
    pub(super) fn find_python(&mut self, traced: &mut Traced) -> Vec<(Range<u64>, u32)> {
        let python = match self.interpreters.find(&traced.space) {
            None => return Vec::new(),
            Some(Err(why)) => {
                traced.note(format!("Python functions are not seen: {why}"));
                return Vec::new();
            }
            Some(Ok(python)) => python,
        };
        if let Err(why) = self.probe.set_python(traced.incarnation, python.table()) {
            traced.note(format!("Python functions are not seen: {why}"));
            return Vec::new();
        }
        let marks = python.marks(&traced.space);
        if !self.options.native {
            for (range, _) in &marks {
                traced.space.python_mut().fold(range.clone());
            }
        }
        let is_known = traced
            .python
            .as_ref()
            .is_some_and(|known| known.python.is_same(&python));
        if !is_known {
            traced.python = Some(PythonProcess {
                python,
                answering: Vec::new(),
                looked: None,
            });
        }
        marks
    }
}

impl Traced {
    /// Names the Python frames of a new stack: in their place stand the numbers of [`crate::symbol::PythonFrames`].
    pub(super) fn name_python(&mut self, proc_root: &Path, frames: Vec<u64>) -> Vec<u64> {
        if frames.iter().all(|frame| frame & PYTHON_FRAME == 0) {
            return frames;
        }
        let Some(process) = &mut self.python else {
            return frames;
        };
        if process
            .looked
            .is_none_or(|looked| looked.elapsed() >= LOOK_EVERY)
        {
            process.looked = Some(Instant::now());
            // Of a process that is gone, what was known is of no use.
            process.answering = answering_memory(proc_root, self.pid).unwrap_or_default();
        }
        let opened = ProcessMemory::open(proc_root, self.pid).ok();
        let answering = opened
            .as_ref()
            .map(|memory| Answering::new(memory, &process.answering));
        let memory: &dyn Memory = match &answering {
            Some(memory) => memory,
            None => &Nothing,
        };
        let is_gone = process.answering.is_empty();
        let names = self.space.python_mut();
        frames
            .into_iter()
            .filter_map(|frame| {
                if frame & PYTHON_FRAME == 0 {
                    return Some(frame);
                }
                let named = process.python.frame(memory, is_gone, frame)?;
                Some(names.number(named))
            })
            .collect()
    }
}

/// The memory of a process that is gone.
struct Nothing;

impl Memory for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) -> usize {
        0
    }
}
