//! A stack of Go's heap profile: what was sampled there, size by size, and what that stands for.

use std::{collections::BTreeMap, sync::Arc};

use leakscope_common::SiteTotals;

use super::{Names, types::types_of};
use crate::{
    ledger::{Judgement, ProfiledBlocks, Sampled, SampledLevel, Verdict},
    report::{Frame, FrameKind, Site, SiteKind},
    runtime::go::{Bucket, GoFrame, Swept, scaled},
};

/// 97.5 % of a normal distribution lie below so many standard deviations.
const CONFIDENCE: f64 = 1.96;

/// What was sampled at a stack.
#[derive(Debug)]
pub(super) struct GoSite {
    /// Where calls return to, leaf first.
    stack: Vec<u64>,
    /// By the blocks' size.
    sizes: BTreeMap<u64, OfSize>,
    /// What collections leave of all of them.
    level: Option<SampledLevel>,
    /// What its blocks are, as far as the call that allocates them says; `None`: that was not looked at.
    block_type: Option<Option<String>>,
}

#[derive(Debug)]
struct OfSize {
    blocks: ProfiledBlocks,
    seen: Sampled,
    /// The same with what is known of the collection that is not published yet.
    known: Sampled,
    rate: u64,
}

/// A look at a profile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// One block is sampled for so many bytes.
    pub(super) rate: u64,
    /// CLOCK_MONOTONIC nanoseconds.
    pub(super) now_ns: u64,
    /// When it was looked at before; 0: never.
    pub(super) looked_ns: u64,
    /// All is swept that the last collection found free.
    pub(super) is_swept: bool,
}

impl OfSize {
    /// The bytes that each sampled block stands for.
    fn bytes(&self, size: u64) -> f64 {
        // As for many, for the number is rounded.
        scaled(1 << 20, size, self.rate).1 as f64 / f64::from(1 << 20)
    }
}

impl GoSite {
    pub(super) fn new(stack: Vec<u64>) -> Self {
        Self {
            stack,
            sizes: BTreeMap::new(),
            level: None,
            block_type: None,
        }
    }

    /// Looks what its blocks are, unless that was done. Whether it was to be done.
    pub(super) fn learn_type(&mut self, type_of: impl Fn(&[u64]) -> Option<String>) -> bool {
        if self.block_type.is_some() {
            return false;
        }
        self.block_type = Some(type_of(&self.stack));
        true
    }

    /// Takes over what is sampled at it now of blocks of a size.
    pub(super) fn observe(&mut self, bucket: &Bucket, look: Look) {
        let Look {
            rate,
            now_ns,
            looked_ns,
            is_swept,
        } = look;
        let seen = Sampled {
            allocs: bucket.allocs,
            frees: bucket.frees,
            pending: bucket.pending,
        };
        let known = if is_swept {
            let Swept { allocs, frees } = bucket.swept;
            let allocs_by_now = seen.allocs.saturating_add(allocs);
            Sampled {
                allocs: allocs_by_now,
                frees: seen.frees.saturating_add(frees).min(allocs_by_now),
                pending: seen.pending.saturating_sub(allocs),
            }
        } else {
            seen
        };
        let of_size = self.sizes.entry(bucket.size).or_insert_with(|| OfSize {
            blocks: if looked_ns == 0 {
                ProfiledBlocks::new(now_ns, known)
            } else {
                ProfiledBlocks::appeared(looked_ns)
            },
            seen,
            known,
            rate,
        });
        of_size.seen = seen;
        of_size.known = known;
        of_size.rate = rate;
        of_size.blocks.observe(now_ns, known);
    }

    /// Notes the level of all sizes, once with each look.
    pub(super) fn note_level(&mut self, looked_ns: u64) {
        let level = self.level.get_or_insert_with(|| {
            if looked_ns == 0 {
                SampledLevel::default()
            } else {
                SampledLevel::appeared()
            }
        });
        let sum = |of: fn(&Sampled) -> u64| {
            let parts = self.sizes.values().map(|of_size| of(&of_size.known));
            parts.fold(0, u64::saturating_add)
        };
        level.observe(
            sum(|known| known.allocs),
            sum(|known| known.frees),
            sum(|known| known.pending),
        );
    }

    /// Blocks that were sampled as the ledger takes them: each is one, with the bytes that it stands for.
    pub(super) fn totals(&self) -> SiteTotals {
        let mut sum = SiteTotals::default();
        for (size, of_size) in &self.sizes {
            let part = of_size.blocks.totals(of_size.bytes(*size));
            sum.alloc_objects = sum.alloc_objects.saturating_add(part.alloc_objects);
            sum.alloc_bytes = sum.alloc_bytes.saturating_add(part.alloc_bytes);
            sum.free_objects = sum.free_objects.saturating_add(part.free_objects);
            sum.free_bytes = sum.free_bytes.saturating_add(part.free_bytes);
        }
        sum
    }

    /// Calls back with when blocks were born that are there, what each stands for, bytes, and how many they are.
    pub(super) fn visit(&self, mut visit: impl FnMut(u64, u64, u32)) {
        for (size, of_size) in &self.sizes {
            let bytes = of_size.bytes(*size) as u64;
            of_size
                .blocks
                .visit(|born_ns, count| visit(born_ns, bytes, count));
        }
    }

    /// Objects and bytes in use as of the last collection, by the profile: as the program's own says.
    pub(super) fn inuse(&self) -> (u64, u64) {
        self.sum(|seen| seen.allocs.saturating_sub(seen.frees))
    }

    /// The same of all that was allocated since the program began.
    fn allocated(&self) -> (u64, u64) {
        self.sum(|seen| seen.allocs)
    }

    fn sum(&self, of: impl Fn(&Sampled) -> u64) -> (u64, u64) {
        let mut sum = (0_u64, 0_u64);
        for (size, of_size) in &self.sizes {
            let (objects, bytes) = scaled(of(&of_size.seen), *size, of_size.rate);
            sum = (sum.0.saturating_add(objects), sum.1.saturating_add(bytes));
        }
        sum
    }

    /// How far off the bytes in use may be, for not every block is sampled; a standard deviation.
    fn error(&self) -> f64 {
        let variance: f64 = self
            .sizes
            .iter()
            .map(|(size, of_size)| {
                let sampled = of_size.seen.allocs.saturating_sub(of_size.seen.frees) as f64;
                let bytes = of_size.bytes(*size);
                let share = (*size as f64 / bytes.max(1.0)).min(1.0);
                sampled * (1.0 - share) * bytes * bytes
            })
            .sum();
        variance.sqrt()
    }

    /// Whether there is anything to be shown.
    pub(super) fn is_shown(&self) -> bool {
        self.allocated().0 > 0
    }

    /// The site without its process, frames and verdict.
    pub(super) fn described(&self) -> Site {
        let (inuse_objects, inuse_bytes) = self.inuse();
        let (alloc_objects, alloc_bytes) = self.allocated();
        let error = (CONFIDENCE * self.error()) as u64;
        let block_type = self.block_type.as_ref().and_then(Option::as_ref);
        Site {
            kind: SiteKind::Go,
            types: types_of(block_type, inuse_objects, inuse_bytes),
            inuse_objects,
            inuse_bytes,
            alloc_objects: alloc_objects.max(inuse_objects),
            alloc_bytes: alloc_bytes.max(inuse_bytes),
            inuse_bytes_low: inuse_bytes.saturating_sub(error),
            inuse_bytes_high: inuse_bytes.saturating_add(error),
            weight: 1,
            stack_complete: true,
            ..Site::default()
        }
    }

    /// Judges it by what the ledger says of its samples; there were so many collections meanwhile.
    pub(super) fn judged(&self, by_ledger: &Judgement, collections: u32) -> Judgement {
        let mut judgement = Judgement {
            reason: of_samples(&by_ledger.reason),
            verdict: by_ledger.verdict,
            growth_bytes_per_s: by_ledger.growth_bytes_per_s,
        };
        let level = self.level.unwrap_or_default();
        if judgement.verdict == Verdict::Leaking && !level.rises() {
            let (births, deaths) = level.births_and_deaths();
            judgement.verdict = Verdict::WarmingUp;
            judgement.reason = format!(
                "by what collections tell so far, {births} sampled blocks were born and {deaths} freed: that may be chance"
            );
        }
        if judgement.reason.is_empty() {
            return judgement;
        }
        let seen = match collections {
            0 => "no collection since tracing began: reckoned by how many of its earlier blocks stayed".to_owned(),
            1 => "one collection seen".to_owned(),
            several => format!("{several} collections seen"),
        };
        judgement.reason = format!("{}; {seen}", judgement.reason);
        judgement
    }

    /// Its frames, without those of the runtime that lead to the allocation, as the program's own profile has them.
    pub(super) fn frames(&self, names: Names<'_>) -> Vec<Arc<Frame>> {
        let frames = self
            .stack
            .iter()
            .map(|address| frame(names, *address))
            .collect();
        shown(frames)
    }
}

/// A stack as the program's own profile has it: without frames of the runtime that lead to the allocation, and without the one where every
/// goroutine ends.
fn shown(mut frames: Vec<Frame>) -> Vec<Arc<Frame>> {
    let own = frames
        .iter()
        .take_while(|frame| is_of_runtime(frame))
        .count();
    if own < frames.len() {
        frames.drain(..own);
    }
    if frames.len() > 1 && frames.last().is_some_and(is_the_end) {
        frames.pop();
    }
    frames.into_iter().map(Arc::new).collect()
}

/// The frames of addresses that calls return to, with those of calls that were inlined there.
pub(super) fn physical_frames(names: Names<'_>, stack: &[u64]) -> Vec<Arc<Frame>> {
    let all = stack.iter().flat_map(|address| {
        let mut frames = frames_at(names, *address);
        if frames.is_empty() {
            // C that was called before, or code that is not the program's.
            frames.push(frame(names, *address));
        }
        frames
    });
    shown(all.collect())
}

/// The function of Go that a call returns to, and those that were inlined there, innermost first; none where there is no Go.
fn frames_at(names: Names<'_>, address: u64) -> Vec<Frame> {
    let offset = address.wrapping_sub(names.bias);
    let found = names.program.functions.frames(offset.wrapping_sub(1));
    let count = found.len();
    found
        .into_iter()
        .zip(1..)
        .map(|(named, place)| named_frame(names, address, named, place < count))
        .collect()
}

/// Frames of which those of Go have names that no symbol names.
pub(super) fn with_names(names: Names<'_>, frames: &[Arc<Frame>]) -> Vec<Arc<Frame>> {
    let named = frames.iter().flat_map(|frame| {
        let address = frame.address.filter(|_| frame.function.is_none());
        let found = address.map_or_else(Vec::new, |address| frames_at(names, address));
        if found.is_empty() {
            vec![Arc::clone(frame)]
        } else {
            found.into_iter().map(Arc::new).collect()
        }
    });
    named.collect()
}

/// What is said of blocks, said of those that were sampled.
fn of_samples(reason: &str) -> String {
    reason
        .replace(" block", " sampled block")
        .replace("its sampled block", "its block")
}

/// The frame of a return address.
pub(super) fn frame(names: Names<'_>, address: u64) -> Frame {
    let offset = address.wrapping_sub(names.bias);
    // The call before it: what follows may be another line, or function.
    let named = names.program.functions.innermost(offset.wrapping_sub(1));
    match named {
        Some((named, inlined)) => named_frame(names, address, named, inlined),
        None => place_frame(names, address),
    }
}

fn place_frame(names: Names<'_>, address: u64) -> Frame {
    Frame {
        module: Some(names.path.to_owned()),
        offset: Some(address.wrapping_sub(names.bias)),
        kind: FrameKind::Go,
        address: Some(address),
        ..Frame::default()
    }
}

fn named_frame(names: Names<'_>, address: u64, named: GoFrame, inlined: bool) -> Frame {
    let offset = address.wrapping_sub(names.bias);
    let GoFrame {
        function,
        start,
        file,
        line,
    } = named;
    Frame {
        function: Some(function),
        function_offset: start.map(|start| offset.saturating_sub(start)),
        file,
        line,
        inlined,
        ..place_frame(names, address)
    }
}

pub(super) fn is_the_end(frame: &Frame) -> bool {
    frame.function.as_deref() == Some("runtime.goexit")
}

/// Whether a frame is the runtime's own (runtime/pprof hides the same).
pub(super) fn is_of_runtime(frame: &Frame) -> bool {
    frame
        .function
        .as_deref()
        .is_some_and(|name| name.starts_with("runtime.") || name.starts_with("internal/runtime/"))
}
