//! Questions about a process's memory: walks of its heap, which follow addresses that the process chose. The reader is handed the memory
//! as a descriptor and reads it itself; what else it has to know it asks back. Knows nothing of what answers are for.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    ops::Range,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Question, Trial, Unread, ask_about, keep::Terms, serve::encode};
use crate::{
    heap::{
        Allocator, BlockObject, Container, Counts, Look, LookOptions, OTHER_ROOTS, Owned,
        PooledCounts, Region, RegionKind, RootName, Shape, Space, YoungPool, counts_of, kept,
        next_words, object_in, pooled, space, young_pools,
    },
    reader::{Bounded, Ground, LookTask, ProcessMemory, look_through},
};

/// The longest answers that are believed, bytes: lost blocks of some sixteen bytes each, numbers, kinds.
const MOST_OF_LOOK: usize = 256 << 20;
const MOST_OF_NUMBERS: usize = 4096;
const MOST_OF_SIZES: usize = 32 << 20;

/// The time for a piece of work: some, and for each so many bytes that there are a second more; however many there are.
const PATIENCE: Duration = Duration::from_secs(2);
const BYTES_IN_A_SECOND: u64 = 16 << 20;
const MOST_PATIENCE: Duration = Duration::from_secs(900);

/// What is kept of blocks and pointers takes less than the memory that is walked, and this, bytes.
const BESIDE: u64 = 1 << 30;

/// What is walked, and how far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) memory: &'a ProcessMemory,
    pub(crate) regions: &'a [Region],
    /// Until when; `None`: whenever it is done.
    pub(crate) until: Option<Instant>,
    /// So many bytes are read at most.
    pub(crate) most_bytes: u64,
}

/// A walk as it is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Walk<'a> {
    regions: Cow<'a, [Region]>,
    within: Option<Duration>,
    most_bytes: u64,
    wanted: Wanted<'a>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Wanted<'a> {
    Space {
        is_python: bool,
    },
    Look(LookTask<'a>),
    Counts(Allocator, Cow<'a, [u64]>),
    Pooled,
    YoungPools(u64),
    Objects(Cow<'a, [(u64, u64)]>),
    /// And how many entries to leave out.
    NextWords(Container, u64),
    /// And the word, and bytes of a pool.
    Kept(Container, u64, u64),
}

/// What a walk asks back.
#[derive(Debug, Serialize, Deserialize)]
enum Call<'a> {
    Regions,
    IsIdle,
    HasRust,
    Functions(u64),
    HasFunction(u64, Cow<'a, str>),
    Name(u64),
    Whole(u64),
}

/// Of a walk that tells nothing, whether that is for want of time or room.
pub(crate) type IsOver = bool;

/// How full a heap is.
pub(crate) fn walk_space(
    place: Place<'_>,
    is_python: bool,
) -> Result<(Option<Space>, IsOver), Unread> {
    ask(
        place,
        Wanted::Space { is_python },
        MOST_OF_NUMBERS,
        &mut Nobody,
    )
}

/// Blocks by size, and which of some are gone. `None` where no heap is known, or there was not enough time.
pub(crate) fn walk_counts(
    place: Place<'_>,
    allocator: Allocator,
    blocks: &[u64],
) -> Result<(Option<Counts>, IsOver), Unread> {
    let wanted = Wanted::Counts(allocator, Cow::Borrowed(blocks));
    ask(place, wanted, MOST_OF_SIZES, &mut Nobody)
}

/// Objects in CPython's pools; `None` where there was not enough time.
pub(crate) fn walk_pools(place: Place<'_>) -> Result<Option<PooledCounts>, Unread> {
    ask(place, Wanted::Pooled, MOST_OF_SIZES, &mut Nobody)
}

/// The pools with room for more.
pub(crate) fn walk_young_pools(
    place: Place<'_>,
    pool_bytes: u64,
) -> Result<Vec<YoungPool>, Unread> {
    let wanted = Wanted::YoungPools(pool_bytes);
    ask(place, wanted, MOST_OF_SIZES, &mut Nobody)
}

/// The objects in some blocks, each of so many bytes.
pub(crate) fn objects_in(
    place: Place<'_>,
    blocks: &[(u64, u64)],
) -> Result<Vec<Option<BlockObject>>, Unread> {
    let wanted = Wanted::Objects(Cow::Borrowed(blocks));
    ask(place, wanted, MOST_OF_SIZES, &mut Nobody)
}

/// The words that will point to what is put into a container next, from so many entries on.
pub(crate) fn walk_next_words(
    place: Place<'_>,
    of: Container,
    skip: u64,
) -> Result<Vec<u64>, Unread> {
    ask(
        place,
        Wanted::NextWords(of, skip),
        MOST_OF_NUMBERS,
        &mut Nobody,
    )
}

/// What a word of a container's entries points to: its block, and what it is.
pub(crate) fn walk_kept(
    place: Place<'_>,
    of: Container,
    word: u64,
    pool_bytes: u64,
) -> Result<Option<(u64, BlockObject)>, Unread> {
    let wanted = Wanted::Kept(of, word, pool_bytes);
    ask(place, wanted, MOST_OF_NUMBERS, &mut Nobody)
}

/// A look, and those that confirm it. `None` where no heap is known, or there was not enough time for one.
pub(crate) fn walk_look(
    place: Place<'_>,
    task: LookTask<'_>,
    ground: &mut dyn Ground,
) -> Result<Option<Look>, Unread> {
    ask(place, Wanted::Look(task), MOST_OF_LOOK, ground)
}

/// A look at a process that is stopped.
pub(crate) fn walk_stopped(place: Place<'_>, task: LookTask<'_>) -> Result<Option<Look>, Unread> {
    ask(place, Wanted::Look(task), MOST_OF_LOOK, &mut Nobody)
}

/// Walks in every way that there is, for trials.
pub fn walk_all(memory: &ProcessMemory, regions: &[Region]) -> Vec<Trial> {
    let place = Place {
        memory,
        regions,
        until: None,
        most_bytes: u64::MAX,
    };
    // Some blocks may be anywhere.
    let starts = regions
        .iter()
        .filter_map(|region| region.present.first())
        .map(|range| range.start.saturating_add(64));
    let some: Vec<(u64, u64)> = starts.map(|start| (start, 64)).collect();
    let known: Vec<u64> = some.iter().map(|(start, _)| *start).collect();
    let container = Container {
        address: known.first().copied().unwrap_or(0),
        shape: Shape::Dict,
        entries: 64,
    };
    let owned: Vec<Owned> = known
        .iter()
        .map(|start| Owned {
            address: *start,
            bytes: 48,
            owner: 1,
        })
        .collect();
    let task = LookTask {
        options: LookOptions {
            is_python: true,
            is_stopped: true,
            levels: 5,
            groups_with_holders: 20,
            by_size: false,
            most_edges: 1 << 20,
        },
        owned: Cow::Owned(owned),
        registers: Cow::Borrowed(&known),
        wants_blocks: true,
    };
    let counts = |allocator| walk_counts(place, allocator, &known).is_ok();
    vec![
        Trial::of("space", || walk_space(place, true).is_ok()),
        Trial::of("glibc", || counts(Allocator::Glibc)),
        Trial::of("jemalloc", || counts(Allocator::Jemalloc)),
        Trial::of("mimalloc", || counts(Allocator::Mimalloc)),
        Trial::of("pools", || walk_pools(place).is_ok()),
        Trial::of("young pools", || walk_young_pools(place, 1 << 14).is_ok()),
        Trial::of("objects", || objects_in(place, &some).is_ok()),
        Trial::of("next words", || {
            walk_next_words(place, container, 0).is_ok()
        }),
        Trial::of("kept", || {
            walk_kept(place, container, container.address, 1 << 14).is_ok()
        }),
        Trial::of("look", || walk_stopped(place, task).is_ok()),
    ]
}

fn ask<A: DeserializeOwned>(
    place: Place<'_>,
    wanted: Wanted<'_>,
    most: usize,
    ground: &mut dyn Ground,
) -> Result<A, Unread> {
    let question = Question::Walk(Walk {
        regions: Cow::Borrowed(place.regions),
        within: place
            .until
            .map(|until| until.saturating_duration_since(Instant::now())),
        most_bytes: place.most_bytes,
        wanted,
    });
    let bytes = place
        .regions
        .iter()
        .filter(|region| region.kind != RegionKind::Constant)
        .map(Region::present_bytes)
        .fold(0, u64::saturating_add);
    let terms = Terms {
        most,
        patience: Some(
            PATIENCE
                .saturating_add(Duration::from_secs(bytes / BYTES_IN_A_SECOND))
                .min(MOST_PATIENCE),
        ),
        memory: BESIDE.saturating_add(bytes),
    };
    ask_about(&question, &[place.memory.file()], terms, &mut |call| {
        reply(call, ground)
    })
}

/// The answer to what the reader asks back; empty where that is nothing that it may ask.
fn reply(call: &[u8], ground: &mut dyn Ground) -> Vec<u8> {
    let bytes = match postcard::from_bytes(call) {
        Ok(Call::Regions) => postcard::to_stdvec(&ground.regions()),
        Ok(Call::IsIdle) => postcard::to_stdvec(&ground.is_idle()),
        Ok(Call::HasRust) => postcard::to_stdvec(&ground.has_rust()),
        Ok(Call::Functions(at)) => postcard::to_stdvec(&ground.functions(at)),
        Ok(Call::HasFunction(at, name)) => postcard::to_stdvec(&ground.has_function(at, &name)),
        Ok(Call::Name(at)) => postcard::to_stdvec(&ground.name(at)),
        Ok(Call::Whole(at)) => postcard::to_stdvec(&ground.whole(at)),
        Err(error) => Err(error),
    };
    bytes.unwrap_or_default()
}

/// In the reader: walks.
pub(super) fn answer(
    walk: &Walk<'_>,
    file: File,
    back: &mut dyn FnMut(&[u8]) -> Vec<u8>,
) -> Vec<u8> {
    let memory = ProcessMemory::from(file);
    let until = walk
        .within
        .and_then(|within| Instant::now().checked_add(within));
    let regions = walk.regions.as_ref();
    let bounded = Bounded::new(&memory, until, walk.most_bytes);
    match &walk.wanted {
        Wanted::Space { is_python } => {
            let space = space(&bounded, regions, *is_python);
            encode(&Ok((space, bounded.is_over())))
        }
        Wanted::Look(task) => {
            let mut asking = Asking::new(back, until);
            let bounds = (until, walk.most_bytes);
            encode(&Ok(look_through(
                memory,
                regions,
                bounds,
                task,
                &mut asking,
            )))
        }
        Wanted::Counts(allocator, blocks) => {
            let found = counts_of(*allocator, &bounded, regions, blocks);
            let is_over: IsOver = bounded.is_over();
            encode(&Ok((found.filter(|_| !is_over), is_over)))
        }
        Wanted::Pooled => {
            let found = pooled(&bounded, regions);
            encode(&Ok((!bounded.is_over()).then_some(found)))
        }
        Wanted::YoungPools(pool_bytes) => encode(&Ok(young_pools(&bounded, regions, *pool_bytes))),
        Wanted::Objects(blocks) => {
            let kinds = blocks
                .iter()
                .map(|(block, bytes)| object_in(&bounded, regions, *block, *bytes));
            encode(&Ok(kinds.collect::<Vec<_>>()))
        }
        Wanted::NextWords(of, skip) => encode(&Ok(next_words(&bounded, of, *skip))),
        Wanted::Kept(of, word, pool_bytes) => {
            encode(&Ok(kept(&bounded, regions, of, *word, *pool_bytes)))
        }
    }
}

/// So many roots are named in a walk: each is asked of the tracer, which asks another reader.
const MOST_NAMED: u32 = 1 << 14;

/// In the reader: asks back. Where there is no answer, nothing is known.
struct Asking<'a> {
    back: &'a mut dyn FnMut(&[u8]) -> Vec<u8>,
    until: Option<Instant>,
    /// Names of whole variables, by their first addresses, with the addresses behind them: of a table of a million words one is asked for.
    whole: BTreeMap<u64, (u64, String)>,
    named: u32,
}

impl<'a> Asking<'a> {
    fn new(back: &'a mut dyn FnMut(&[u8]) -> Vec<u8>, until: Option<Instant>) -> Self {
        Self {
            back,
            until,
            whole: BTreeMap::new(),
            named: 0,
        }
    }

    fn ask<A: DeserializeOwned + Default>(&mut self, call: &Call<'_>) -> A {
        let call = postcard::to_stdvec(call).unwrap_or_default();
        postcard::from_bytes(&(self.back)(&call)).unwrap_or_default()
    }

    /// Whether there is time to name one more.
    fn may_name(&mut self) -> bool {
        self.named = self.named.saturating_add(1);
        self.named <= MOST_NAMED && self.until.is_none_or(|until| Instant::now() < until)
    }
}

impl RootName for Asking<'_> {
    fn name(&mut self, address: u64) -> String {
        if self.may_name() {
            self.ask(&Call::Name(address))
        } else {
            OTHER_ROOTS.to_owned()
        }
    }

    fn whole(&mut self, address: u64) -> (String, Range<u64>) {
        if let Some((first, (behind, name))) = self.whole.range(..=address).next_back()
            && address < *behind
        {
            return (name.clone(), *first..*behind);
        }
        if !self.may_name() {
            return (OTHER_ROOTS.to_owned(), address..address.saturating_add(1));
        }
        let (name, range): (String, Range<u64>) = self.ask(&Call::Whole(address));
        self.whole.insert(range.start, (range.end, name.clone()));
        (name, range)
    }

    fn has_rust(&mut self) -> bool {
        self.ask(&Call::HasRust)
    }

    fn functions(&mut self, address: u64) -> Option<Vec<String>> {
        self.ask(&Call::Functions(address))
    }

    fn has_function(&mut self, address: u64, name: &str) -> bool {
        self.ask(&Call::HasFunction(address, Cow::Borrowed(name)))
    }
}

impl Ground for Asking<'_> {
    fn regions(&mut self) -> Option<(Vec<Region>, Vec<u64>)> {
        self.ask(&Call::Regions)
    }

    fn is_idle(&mut self) -> bool {
        self.ask(&Call::IsIdle)
    }
}

/// For walks that ask nothing.
struct Nobody;

impl RootName for Nobody {
    fn name(&mut self, _: u64) -> String {
        String::new()
    }
}

impl Ground for Nobody {
    fn regions(&mut self) -> Option<(Vec<Region>, Vec<u64>)> {
        None
    }

    fn is_idle(&mut self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::time::Instant;

    use super::{Asking, Call, MOST_NAMED, OTHER_ROOTS, RootName as _};

    /// What the tracer answers: one variable of 8,000,000 bytes, and others of 8.
    fn answer(call: &[u8]) -> Vec<u8> {
        let answer = match postcard::from_bytes(call).unwrap() {
            Call::Whole(at) if (0x1000..0x1000 + 8_000_000).contains(&at) => {
                ("global kept", 0x1000..0x1000 + 8_000_000)
            }
            Call::Whole(at) => ("another", at..at + 8),
            _ => ("", 0..0),
        };
        postcard::to_stdvec(&answer).unwrap()
    }

    #[test]
    fn a_table_of_a_million_pointers_is_asked_for_once() {
        let mut asked = 0;
        let mut back = |call: &[u8]| {
            asked += 1;
            answer(call)
        };
        let mut asking = Asking::new(&mut back, None);
        for word in 0..1_000_000 {
            assert_eq!(asking.whole(0x1000 + 8 * word).0, "global kept");
        }
        assert_eq!(asking.whole(0x1000 + 8_000_000).0, "another");
        assert_eq!(asked, 2);
    }

    #[test]
    fn names_without_an_end_are_asked_for_as_long_as_there_is_time() {
        let mut asked = 0;
        let mut back = |call: &[u8]| {
            asked += 1;
            answer(call)
        };
        let mut asking = Asking::new(&mut back, None);
        let last = (0..=u64::from(MOST_NAMED)).map(|word| asking.whole(1 << 40 | word << 3).0);
        assert_eq!(last.last().unwrap(), OTHER_ROOTS);
        assert_eq!(asked, MOST_NAMED);
        let mut never = |_: &[u8]| unreachable!("its time is over");
        let mut asking = Asking::new(&mut never, Some(Instant::now()));
        assert_eq!(asking.whole(1).0, OTHER_ROOTS);
    }
}
