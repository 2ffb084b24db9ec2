//! The goroutines of a program (src/runtime/runtime2.go, `g`): who started them, what they wait for, where, and how large their stacks
//! are. Read from `runtime.allgs`, while they run; what is torn is left out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{bytes::word, pieces::Pieces, program::Places};
use crate::heap::Memory;

/// Places in `g`: `stack.lo`, `stack.hi`, `sched.sp`, `sched.pc`.
const STACK_LOW: usize = 0;
const STACK_HIGH: usize = 8;
const STACK_POINTER: usize = 56;
const COUNTER: usize = 64;
/// From `g.startpc` back to `g.gopc`; `ancestors` lies between.
const CREATOR: usize = 16;
/// Where `g.startpc` lies, in all known versions.
const STARTS: std::ops::Range<usize> = 280..336;
/// Bytes of `g` that are read.
const GOROUTINE: usize = 336;

/// Statuses (`_Grunnable`, `_Grunning`, `_Gsyscall`, `_Gwaiting`, `_Gdead`, `_Gpreempted`), and the bit of one that is being scanned.
const RUNNABLE: u32 = 1;
const RUNNING: u32 = 2;
const IN_SYSTEM_CALL: u32 = 3;
const WAITING: u32 = 4;
const PREEMPTED: u32 = 9;
const SCANNED: u32 = 0x1000;

/// The most goroutines that are looked at.
const MOST: usize = 1 << 18;
/// The most frames of a stack.
const DEEPEST: usize = 64;
/// The most of a stack that is read, bytes.
const STACK_READ: u64 = 4096;
/// The largest stack that is believed, bytes: `maxstacksize` is 1 GB.
const LARGEST_STACK: u64 = 1 << 30;
/// The longest reason to wait, bytes.
const LONGEST_REASON: usize = 64;

/// Where goroutines were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GoroutineKind {
    /// Where the `go` statement's call returns to; 0 of those that the runtime starts first.
    pub creator: u64,
    /// The function that was started.
    pub start: u64,
}

/// Goroutines that were started at the same place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoroutineGroup {
    /// Each of them.
    pub members: Vec<Member>,
    /// By what they do: `chan receive`, `running`.
    pub does: BTreeMap<String, Waiting>,
}

/// A goroutine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number, which no other ever has.
    pub number: u64,
    /// Bytes of its stack.
    pub stack_bytes: u64,
}

/// Goroutines that do the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// How many.
    pub count: u64,
    /// Bytes of their stacks.
    pub stack_bytes: u64,
    /// The stack of one of them, leaf first: addresses that calls return to; empty where none could be read.
    pub stack: Vec<u64>,
}

/// All goroutines at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goroutines {
    /// By where they were started.
    pub groups: BTreeMap<GoroutineKind, GoroutineGroup>,
    /// There were more than are looked at.
    pub is_cut: bool,
}

impl Places {
    /// Looks at all goroutines; `None` where they are not as they should be in this version.
    #[must_use]
    pub fn goroutines(&self, memory: &dyn Memory, bias: u64) -> Option<Goroutines> {
        let main = self.main?.wrapping_add(bias);
        self.all_goroutines.iter().find_map(|list| {
            let list = list.wrapping_add(bias);
            let (first, count) = (memory.word(list)?, memory.word(list.checked_add(8)?)?);
            let capacity = memory.word(list.checked_add(16)?)?;
            if count == 0 || count > capacity || first == 0 {
                return None;
            }
            self.listed(memory, bias, first, usize::try_from(count).ok()?, main)
        })
    }

    fn listed(
        &self,
        memory: &dyn Memory,
        bias: u64,
        first: u64,
        count: usize,
        main: u64,
    ) -> Option<Goroutines> {
        let pieces = Pieces::new(memory);
        let mut all = Goroutines {
            is_cut: count > MOST,
            ..Goroutines::default()
        };
        let count = count.min(MOST);
        let list = pieces.read(first, 8 * count)?;
        let (addresses, _) = list.as_chunks::<8>();
        let addresses: Vec<u64> = addresses.iter().map(|it| u64::from_le_bytes(*it)).collect();
        // The first is the main one, by which the layout is checked.
        let begin = pieces.read(*addresses.first()?, GOROUTINE)?;
        let start_at = STARTS
            .step_by(8)
            .find(|at| word(&begin, *at) == Some(main))?;
        if word(&begin, self.layout.goroutine)? != 1 {
            return None;
        }
        let mut reasons = BTreeMap::new();
        for address in addresses {
            let Some(bytes) = pieces.read(address, GOROUTINE) else {
                continue;
            };
            let Some((does, is_parked)) = self.does(&pieces, bias, &bytes, &mut reasons) else {
                continue;
            };
            let (Some(low), Some(high)) = (word(&bytes, STACK_LOW), word(&bytes, STACK_HIGH))
            else {
                continue;
            };
            let Some(stack_bytes) = high.checked_sub(low).filter(|it| *it <= LARGEST_STACK) else {
                continue;
            };
            let kind = GoroutineKind {
                creator: word(&bytes, start_at - CREATOR)?,
                start: word(&bytes, start_at)?,
            };
            let group = all.groups.entry(kind).or_default();
            group.members.push(Member {
                number: word(&bytes, self.layout.goroutine)?,
                stack_bytes,
            });
            let waiting = group.does.entry(does).or_default();
            waiting.count += 1;
            waiting.stack_bytes = waiting.stack_bytes.saturating_add(stack_bytes);
            if is_parked && waiting.stack.is_empty() {
                waiting.stack = self.stack(memory, &bytes, high).unwrap_or_default();
            }
        }
        Some(all)
    }

    /// What a goroutine does, and whether it stands still; `None` of one that has ended.
    fn does(
        &self,
        pieces: &Pieces<'_>,
        bias: u64,
        goroutine: &[u8],
        reasons: &mut BTreeMap<u8, Option<String>>,
    ) -> Option<(String, bool)> {
        let status = super::bytes::half(goroutine, self.layout.status)? & !SCANNED;
        let says = |what: &str, is_parked| Some((what.to_owned(), is_parked));
        match status {
            RUNNABLE => says("runnable", true),
            RUNNING => says("running", false),
            IN_SYSTEM_CALL => says("system call", false),
            PREEMPTED => says("preempted", true),
            WAITING => {
                let reason = *goroutine.get(self.layout.reason)?;
                let text = reasons
                    .entry(reason)
                    .or_insert_with(|| self.reason(pieces, bias, reason));
                Some((text.clone().unwrap_or_else(|| "waiting".to_owned()), true))
            }
            _ => None,
        }
    }

    /// What a number of `waitReason` means, by the runtime's own table.
    fn reason(&self, pieces: &Pieces<'_>, bias: u64, reason: u8) -> Option<String> {
        let entry = self.reasons?.wrapping_add(bias);
        let entry = pieces.read(entry.checked_add(16 * u64::from(reason))?, 16)?;
        let length = usize::try_from(word(&entry, 8)?).ok()?;
        if length > LONGEST_REASON {
            return None;
        }
        let text = String::from_utf8(pieces.read(word(&entry, 0)?, length)?).ok()?;
        (!text.is_empty()).then_some(text)
    }

    /// The stack of a goroutine that stands still, along its frame pointers, which Go code keeps on this machine.
    fn stack(&self, memory: &dyn Memory, goroutine: &[u8], high: u64) -> Option<Vec<u64>> {
        let low = word(goroutine, STACK_POINTER)?;
        let bytes = high.checked_sub(low)?.min(STACK_READ);
        let mut stack = vec![0; usize::try_from(bytes).ok()?];
        let read = memory.read(low, &mut stack);
        stack.truncate(read);
        let mut frames = vec![word(goroutine, COUNTER).filter(|it| *it != 0)?];
        let mut frame = word(goroutine, STACK_POINTER + self.layout.frame_pointer)?;
        while frames.len() < DEEPEST {
            let Some(at) = frame
                .checked_sub(low)
                .and_then(|it| usize::try_from(it).ok())
            else {
                break;
            };
            let (Some(next), Some(address)) =
                (word(&stack, at), word(&stack, at.saturating_add(8)))
            else {
                break;
            };
            if address == 0 {
                break;
            }
            frames.push(address);
            if next <= frame {
                break;
            }
            frame = next;
        }
        Some(frames)
    }
}
