//! Questions about Go's runtime in a process: its tables and lists lead from one address that the process chose to the next, so the reader
//! follows them. Knows nothing of what answers are for.

use std::{borrow::Cow, fs::File, ops::Range, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Question, Unread, ask_about, keep::Terms, serve::encode};
use crate::{
    process::elf::ElfFile,
    reader::{Answering, ProcessMemory},
    runtime::go::{
        BlockFate, BlockPlace, GoError, Goroutines, HeapProfile, Image, Places, Program, SpanCounts,
    },
};

/// The longest answers that are believed, bytes: a program's table of functions and their data; some ten thousands of stacks; sizes of
/// blocks, and what became of those that are looked after.
const MOST_OF_PROGRAM: usize = 256 << 20;
const MOST_OF_LOOK: usize = 32 << 20;
const MOST_OF_BLOCKS: usize = 4 << 20;

/// The time for an answer; to find the runtime, a second more for each so many bytes that it is looked for in.
const PATIENCE: Duration = Duration::from_secs(2);
const BYTES_IN_A_SECOND: u64 = 16 << 20;
const MOST_PATIENCE: Duration = Duration::from_secs(20);

/// A process with Go in it, of which this much can be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GoMemory<'a> {
    pub(crate) memory: &'a ProcessMemory,
    /// What answers, in order.
    pub(crate) ranges: &'a [Range<u64>],
    /// What addresses are higher by than in the file.
    pub(crate) bias: u64,
}

/// A question as it goes to the reader.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GoQuestion<'a> {
    ranges: Cow<'a, [Range<u64>]>,
    bias: u64,
    wanted: Wanted<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Wanted<'a> {
    Program(Cow<'a, ElfFile>),
    Look(Cow<'a, Places>),
    Generation(Cow<'a, Places>),
    Counts(Cow<'a, Places>),
    /// Addresses, and whether spans lie there.
    Blocks(Cow<'a, Places>, Vec<(u64, bool)>),
    Fates(Cow<'a, Places>, Cow<'a, [BlockPlace]>),
}

impl GoMemory<'_> {
    /// Finds the runtime.
    pub(crate) fn program(self, elf: &ElfFile) -> Result<Result<Program, GoError>, Unread> {
        let data = elf.segments.iter().filter(|segment| !segment.executable);
        let bytes = data
            .map(|segment| segment.file_size)
            .fold(0, u64::saturating_add);
        let patience = PATIENCE
            .saturating_add(Duration::from_secs(bytes / BYTES_IN_A_SECOND))
            .min(MOST_PATIENCE);
        let wanted = Wanted::Program(Cow::Borrowed(elf));
        let found: Result<Program, GoError> = self.ask(wanted, MOST_OF_PROGRAM, patience)?;
        match found {
            Ok(program) if !program.is_consistent() => Err(Unread::Damaged),
            found => Ok(found),
        }
    }

    /// The heap profile, where there is one, and the goroutines.
    pub(crate) fn look(
        self,
        places: &Places,
    ) -> Result<(Option<HeapProfile>, Option<Goroutines>), Unread> {
        let wanted = Wanted::Look(Cow::Borrowed(places));
        self.ask(wanted, MOST_OF_LOOK, PATIENCE)
    }

    /// See [`Places::generation`].
    pub(crate) fn generation(self, places: &Places) -> Result<Option<u32>, Unread> {
        let wanted = Wanted::Generation(Cow::Borrowed(places));
        self.ask(wanted, MOST_OF_BLOCKS, PATIENCE)
    }

    /// See [`Places::span_counts`].
    pub(crate) fn counts(self, places: &Places) -> Result<Option<SpanCounts>, Unread> {
        let wanted = Wanted::Counts(Cow::Borrowed(places));
        self.ask(wanted, MOST_OF_BLOCKS, PATIENCE)
    }

    /// See [`Places::blocks_at`]: an answer for each address.
    pub(crate) fn blocks(
        self,
        places: &Places,
        addresses: Vec<(u64, bool)>,
    ) -> Result<Vec<Option<BlockPlace>>, Unread> {
        let wanted = Wanted::Blocks(Cow::Borrowed(places), addresses);
        self.ask(wanted, MOST_OF_BLOCKS, PATIENCE)
    }

    /// See [`Places::fates`]: an answer for each block.
    pub(crate) fn fates(
        self,
        places: &Places,
        blocks: &[BlockPlace],
    ) -> Result<Vec<BlockFate>, Unread> {
        let wanted = Wanted::Fates(Cow::Borrowed(places), Cow::Borrowed(blocks));
        self.ask(wanted, MOST_OF_BLOCKS, PATIENCE)
    }

    fn ask<A: DeserializeOwned>(
        self,
        wanted: Wanted<'_>,
        most: usize,
        patience: Duration,
    ) -> Result<A, Unread> {
        let question = Question::Go(Box::new(GoQuestion {
            ranges: Cow::Borrowed(self.ranges),
            bias: self.bias,
            wanted,
        }));
        let terms = Terms {
            most,
            patience: Some(patience),
            memory: 0,
        };
        ask_about(&question, &[self.memory.file()], terms, &mut |_| Vec::new())
    }
}

/// In the reader: answers.
pub(super) fn answer(question: &GoQuestion<'_>, file: File) -> Vec<u8> {
    let memory = ProcessMemory::from(file);
    let memory = Answering::new(&memory, &question.ranges);
    let bias = question.bias;
    match &question.wanted {
        Wanted::Program(elf) => encode(&Ok(Program::find(&memory, Image { elf, bias }))),
        Wanted::Look(places) => encode(&Ok((
            places.heap_profile(&memory, bias),
            places.goroutines(&memory, bias),
        ))),
        Wanted::Generation(places) => encode(&Ok(places.generation(&memory, bias))),
        Wanted::Counts(places) => encode(&Ok(places.span_counts(&memory, bias))),
        Wanted::Blocks(places, addresses) => {
            let addresses = addresses.iter().copied();
            encode(&Ok(places.blocks_at(&memory, bias, addresses)))
        }
        Wanted::Fates(places, blocks) => encode(&Ok(places.fates(&memory, bias, blocks))),
    }
}
