//! Frames of Python as a process's stacks have them: each function and line once, under a number that stands in the place of an address, so that names
//! outlive the code objects that they were read from. Knows nothing of how they were read.

use std::{collections::HashMap, ops::Range, sync::Arc};

use leakscope_common::PYTHON_FRAME;

use crate::report::Frame;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct PythonFrames {
    frames: Vec<Arc<Frame>>,
    numbers: HashMap<Arc<Frame>, u64>,
    /// Where the interpreter's own code lies, if it is folded away.
    folded: Vec<Range<u64>>,
}

impl PythonFrames {
    /// The number of a frame, with [`PYTHON_FRAME`].
    pub fn number(&mut self, frame: Frame) -> u64 {
        if let Some(number) = self.numbers.get(&frame) {
            return *number;
        }
        let number = PYTHON_FRAME | self.frames.len() as u64;
        let frame = Arc::new(frame);
        self.frames.push(Arc::clone(&frame));
        self.numbers.insert(frame, number);
        number
    }

    /// The frame of a number.
    #[must_use]
    pub fn frame(&self, number: u64) -> Option<&Arc<Frame>> {
        let index = usize::try_from(number & !PYTHON_FRAME).ok()?;
        (number & PYTHON_FRAME != 0)
            .then(|| self.frames.get(index))
            .flatten()
    }

    /// Whether a stack has Python functions, beside which others may be folded away.
    #[must_use]
    pub fn are_in(stack: &[u64]) -> bool {
        stack.iter().any(|frame| frame & PYTHON_FRAME != 0)
    }

    /// Beside functions of Python, code in this range is not told of.
    pub fn fold(&mut self, range: Range<u64>) {
        if !self.folded.contains(&range) {
            self.folded.push(range);
        }
    }

    /// Whether there are such ranges.
    #[must_use]
    pub fn folds(&self) -> bool {
        !self.folded.is_empty()
    }

    /// Whether an address is one of those.
    #[must_use]
    pub fn is_folded(&self, address: u64) -> bool {
        self.folded.iter().any(|range| range.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::PythonFrames;
    use crate::report::{Frame, FrameKind};

    fn frame(line: u32) -> Frame {
        Frame {
            function: Some("serve".to_owned()),
            file: Some("/srv/app.py".to_owned()),
            line: Some(line),
            kind: FrameKind::Python,
            ..Frame::default()
        }
    }

    #[test]
    fn a_line_has_one_number_however_often_it_is_seen() {
        let mut frames = PythonFrames::default();
        let one = frames.number(frame(1));
        let two = frames.number(frame(2));
        assert_ne!(one, two);
        assert_eq!(frames.number(frame(1)), one);
        assert_eq!(frames.frame(two).and_then(|frame| frame.line), Some(2));
        assert!(frames.frame(0).is_none() && frames.frame(one + 7).is_none());
    }

    #[test]
    fn the_interpreters_code_is_folded_by_its_addresses() {
        let mut frames = PythonFrames::default();
        frames.fold(0x1000..0x2000);
        frames.fold(0x1000..0x2000);
        assert!(frames.is_folded(0x1fff) && !frames.is_folded(0x2000));
    }
}
