//! How fast the machine is while something is measured: a host gives a guest more or less of its processors from second to second, and a
//! measure of throughput can be no better than that unless it is known. Knows nothing of what is measured.

use anyhow::{Context as _, Result};
use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Between two bursts: they take about a hundredth of one processor, with and without leakscope beside.
const PAUSE: Duration = Duration::from_millis(8);

/// Does this, and gives beside what came of it how many bursts of work a processor did in each second of its time meanwhile.
///
/// # Errors
/// When it fails, or the kernel does not account for threads (`CONFIG_SCHED_INFO`).
pub(super) fn during<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let bursts = scope.spawn(|| count_bursts(&is_over));
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let pace = bursts.join().map_err(|_| {
            anyhow::anyhow!("the thread that measures the machine's pace panicked")
        })??;
        Ok((done?, pace))
    })
}

fn count_bursts(is_over: &AtomicBool) -> Result<f64> {
    let mut memory = vec![0_u64; 1 << 14];
    let begun = processor_time()?;
    let mut bursts = 0_u32;
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(PAUSE);
        burst(&mut memory);
        bursts += 1;
    }
    // What runs is accounted for when it is put to sleep.
    thread::sleep(Duration::from_millis(1));
    let took = processor_time()?.saturating_sub(begun);
    Ok(f64::from(bursts) / took.as_secs_f64())
}

/// About 100 µs of arithmetic and of memory that the second cache holds.
fn burst(memory: &mut [u64]) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..30_000 {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let place = state as usize % memory.len();
        if let Some(word) = memory.get_mut(place) {
            *word = word.wrapping_add(state);
        }
    }
    black_box(memory);
}

/// What this thread has had of the processors (proc(5): the first figure of `schedstat`, nanoseconds).
fn processor_time() -> Result<Duration> {
    const FILE: &str = "/proc/thread-self/schedstat";
    let text = fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?;
    let nanoseconds = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("{FILE} has no figure"))?;
    Ok(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::during;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn it_gives_what_was_done_and_a_pace() {
        let (done, pace) = during(|| {
            sleep(Duration::from_millis(50));
            Ok(7)
        })
        .unwrap();
        assert_eq!(done, 7);
        assert!(pace.is_finite() && pace > 0.0, "{pace}");
    }

    #[test]
    fn what_fails_ends_it() {
        let failed: anyhow::Result<((), f64)> = during(|| anyhow::bail!("no server"));
        assert!(failed.is_err());
    }
}
