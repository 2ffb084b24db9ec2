//! Heaps that are damaged at random, and every walk, through the reader: `mutant_heaps LEAKSCOPE PID COUNT`; with `-` for LEAKSCOPE in this
//! process, to compare. The heap is that of a process as it is now. The first is not damaged. It says how many readers ended or were given
//! up over them, how long the slowest took, and the memory of this process, which stands for the tracer's.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use leakscope::{
    apart,
    heap::{Memory as _, Region, RegionKind},
    reader::{ProcessMemory, read_address_space},
};

/// Of so many bytes of a process at most a copy is made.
const MOST_BYTES: u64 = 64 << 20;

/// An answer that takes longer is shown.
const MOST: Duration = Duration::from_secs(2);

/// A generator of numbers that are the same each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 11) % most.max(1)
    }
}

/// What was written over, and what stood there.
struct Damage(Vec<(u64, [u8; 8])>);

impl Damage {
    /// Some words are others: lengths that are a little or very wrong, pointers to elsewhere, flags.
    fn make(file: &File, pieces: &[(u64, u64)], numbers: &mut Numbers) -> anyhow::Result<Self> {
        let mut before = Vec::new();
        let place = |numbers: &mut Numbers| -> u64 {
            let number = numbers.below(pieces.len() as u64);
            let piece = usize::try_from(number).ok().and_then(|at| pieces.get(at));
            let (start, end) = piece.copied().unwrap_or((8, 16));
            // The beginnings have headers and lists.
            let within = match numbers.below(3) {
                0 => (end - start).min(4096),
                _ => end - start,
            };
            start + numbers.below(within / 8) * 8
        };
        for _ in 0..=numbers.below(64) {
            let at = place(numbers);
            let mut old = [0; 8];
            file.read_exact_at(&mut old, at).context("the copy")?;
            let word = u64::from_le_bytes(old);
            let new = match numbers.below(8) {
                0 => 0,
                1 => u64::MAX,
                2 => place(numbers),
                3 => word ^ 1 << numbers.below(64),
                4 => word.wrapping_add(numbers.below(64) * 16),
                5 => at,
                6 => word.wrapping_shl(16),
                _ => numbers.next(),
            };
            file.write_all_at(&new.to_le_bytes(), at)?;
            before.push((at, old));
        }
        Ok(Self(before))
    }

    fn undo(self, file: &File) -> anyhow::Result<()> {
        for (at, old) in self.0.into_iter().rev() {
            file.write_all_at(&old, at)?;
        }
        Ok(())
    }
}

/// Where something is there: beginnings and ends.
type Pieces = Vec<(u64, u64)>;

/// The process's memory in a file, at its own addresses; the regions of which something is there, and their pieces.
fn copy(pid: u32) -> anyhow::Result<(File, Vec<Region>, Pieces)> {
    let proc_root = Path::new("/proc");
    let memory = ProcessMemory::open(proc_root, pid)?;
    let mut regions = read_address_space(proc_root, pid)?.regions;
    // In memory, for there files have room for every address.
    let file = tempfile::tempfile_in("/dev/shm")?;
    let (mut pieces, mut left) = (Pieces::new(), MOST_BYTES);
    for region in &mut regions {
        // What a file maps is not marked as there, and types are described in it.
        let parts = match region.kind {
            RegionKind::Constant => vec![region.range.clone()],
            _ => region.present.clone(),
        };
        for part in parts {
            let length = (part.end - part.start).min(left);
            left -= length;
            let mut bytes = vec![0; usize::try_from(length)?];
            let read = memory.read(part.start, &mut bytes);
            bytes.truncate(read);
            file.write_all_at(&bytes, part.start)?;
            if region.kind != RegionKind::Constant && read >= 8 {
                pieces.push((part.start, part.start + read as u64));
            }
        }
    }
    Ok((file, regions, pieces))
}

fn most_memory_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[expect(clippy::print_stdout, reason = "what it is for")]
fn main() -> anyhow::Result<()> {
    let mut words = std::env::args_os().skip(1);
    let (Some(program), Some(pid), Some(count)) = (words.next(), words.next(), words.next()) else {
        bail!("mutant_heaps LEAKSCOPE PID COUNT");
    };
    let count: u64 = count.to_string_lossy().parse().context("COUNT")?;
    let pid: u32 = pid.to_string_lossy().parse().context("PID")?;
    if program != "-" {
        // It is started in another folder.
        apart::use_program(fs::canonicalize(PathBuf::from(program)).context("LEAKSCOPE")?);
    }
    let (file, regions, pieces) = copy(pid)?;
    let memory = ProcessMemory::from(file.try_clone()?);
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut slowest, mut answered) = (Duration::ZERO, 0);
    let begun = Instant::now();
    for number in 0..count {
        let damage = match number {
            0 => Damage(Vec::new()),
            _ => Damage::make(&file, &pieces, &mut numbers)?,
        };
        let before = apart::given_up();
        let trials = apart::walk_all(&memory, &regions);
        let answers = trials.iter().filter(|trial| trial.is_answered).count();
        if number == 0 && answers == 0 {
            bail!("the heap is not walked before it is damaged: is the reader started?");
        }
        answered += answers;
        let Some(longest) = trials.into_iter().max_by_key(|trial| trial.took) else {
            continue;
        };
        slowest = slowest.max(longest.took);
        if apart::given_up() > before || longest.took > MOST {
            println!("heap {number}: {longest:?}, {} words", damage.0.len());
        }
        damage.undo(&file)?;
    }
    println!(
        "{count} heaps in {:.0?}: {answered} answers, {} readers given up, the slowest answer took {slowest:.1?}, {} KiB here at most",
        begun.elapsed(),
        apart::given_up(),
        most_memory_kib().unwrap_or(0),
    );
    Ok(())
}
