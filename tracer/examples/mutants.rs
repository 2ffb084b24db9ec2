//! Files that are damaged at random, and everything that is ever asked of a file, through the reader:
//! `mutants LEAKSCOPE FILE COUNT`; with `-` for LEAKSCOPE in this process, to compare. The first is not damaged. It says how many readers ended or were given up over them, how long the slowest took, and the memory
//! of this process, which stands for the tracer's.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use leakscope::apart;

/// An answer that takes longer is shown.
const MOST: Duration = Duration::from_secs(2);

/// A generator of numbers that are the same each time (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).unwrap_or(0) % most.max(1)
    }
}

/// A few bytes are others: most of them in the headers, at the beginning and at the end of the file, where one byte changes much.
fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    let length = bytes.len();
    for _ in 0..=numbers.below(16) {
        let place = match numbers.below(4) {
            0 => numbers.below(length),
            1 => length.saturating_sub(1 + numbers.below(4096)),
            _ => numbers.below(4096),
        };
        let value = match numbers.below(3) {
            0 => 0xff,
            1 => 0,
            _ => u8::try_from(numbers.below(256)).unwrap_or(0),
        };
        if let Some(byte) = bytes.get_mut(place) {
            *byte = value;
        }
    }
    if numbers.below(20) == 0 {
        bytes.truncate(numbers.below(length));
    }
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
    let (Some(program), Some(file), Some(count)) = (words.next(), words.next(), words.next())
    else {
        bail!("mutants LEAKSCOPE FILE COUNT");
    };
    let count: u64 = count.to_string_lossy().parse().context("COUNT")?;
    if program != "-" {
        // It is started in another folder.
        apart::use_program(fs::canonicalize(PathBuf::from(program)).context("LEAKSCOPE")?);
    }
    let whole = fs::read(&file).context("FILE")?;
    let folder = tempfile::tempdir()?;
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let (mut slowest, mut answered) = (Duration::ZERO, 0);
    let begun = Instant::now();
    for number in 0..count {
        let mut bytes = whole.clone();
        if number > 0 {
            damage(&mut bytes, &mut numbers);
        }
        let path = folder.path().join("mutant");
        File::create(&path)?.write_all(&bytes)?;
        let before = apart::given_up();
        let trials = apart::ask_all(&File::open(&path)?, &path);
        let answers = trials.iter().filter(|trial| trial.is_answered).count();
        if number == 0 && answers == 0 {
            bail!("nothing is known of the file before it is damaged: is the reader started?");
        }
        answered += answers;
        let Some(longest) = trials.into_iter().max_by_key(|trial| trial.took) else {
            continue;
        };
        slowest = slowest.max(longest.took);
        if apart::given_up() > before || longest.took > MOST {
            let kept = format!("mutant-{number}");
            fs::copy(&path, &kept)?;
            println!("{kept}: {longest:?}");
        }
        fs::remove_file(&path)?;
    }
    println!(
        "{count} files in {:.0?}: {answered} answers, {} readers given up, the slowest answer took {slowest:.1?}, {} KiB here at most",
        begun.elapsed(),
        apart::given_up(),
        most_memory_kib().unwrap_or(0),
    );
    Ok(())
}
