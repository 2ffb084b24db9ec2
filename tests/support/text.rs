//! Whether the kernel has breakpoints in a process's copy of the C library, or in the program itself where that is
//! statically linked: its code in memory against its file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::PATIENCE;

/// glibc's file, and musl's, which may be under the loader's name only.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libc.so", "ld-musl-x86_64.so.1"];

/// The file offsets at which the code of the process's C library differs from its file: the breakpoints. Code has no
/// relocations, so nothing else makes a difference. For a statically linked program, its own code.
///
/// # Errors
/// When the process is gone.
pub fn breakpoints(pid: u32) -> Result<Vec<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("reading the mappings of process {pid}"))?;
    let memory = File::open(format!("/proc/{pid}/mem"))
        .with_context(|| format!("opening the memory of process {pid}"))?;
    let own = fs::read_link(format!("/proc/{pid}/exe"))?;
    let is_library = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        LIBRARIES.contains(&name)
    };
    let dynamic = maps.lines().any(is_library);
    let mut found = Vec::new();
    let mut seen = false;
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, flags, offset, _, _, path] = fields.as_slice() else {
            continue;
        };
        let wanted = if dynamic {
            is_library(path)
        } else {
            Path::new(path) == own
        };
        if !flags.contains('x') || !wanted {
            continue;
        }
        seen = true;
        let (start, end) = range.split_once('-').context("an address range")?;
        let start = u64::from_str_radix(start, 16)?;
        let end = u64::from_str_radix(end, 16)?;
        let offset = u64::from_str_radix(offset, 16)?;
        let mut in_memory = vec![0; usize::try_from(end - start)?];
        memory.read_exact_at(&mut in_memory, start)?;
        let mut in_file = Vec::new();
        // The mapped file itself: the process may have a root of its own, and what it calls the file need not lead there.
        let path = format!("/proc/{pid}/map_files/{start:x}-{end:x}");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        in_file.resize(in_memory.len(), 0);
        let mut length = 0;
        while let Some(rest) = in_file.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + u64::try_from(length)?)? {
                0 => break,
                read => length += read,
            }
        }
        in_memory.truncate(length);
        in_file.truncate(length);
        let pages = in_memory.chunks(4096).zip(in_file.chunks(4096));
        for (number, (a, b)) in pages.enumerate().filter(|(_, (a, b))| a != b) {
            let differing = a.iter().zip(b).enumerate().filter(|(_, (a, b))| a != b);
            for (place, _) in differing {
                found.push(offset + u64::try_from(number * 4096 + place)?);
            }
        }
    }
    if !seen {
        bail!("process {pid} maps no code of {}", own.display());
    }
    Ok(found)
}

/// Waits until there are breakpoints (`some`), the same for half a second, or until there are none (`!some`).
/// `interrupted` may end the waiting with an error.
///
/// # Errors
/// When it takes too long; whatever `interrupted` says.
pub fn wait_for_breakpoints(
    pid: u32,
    some: bool,
    mut interrupted: impl FnMut() -> Result<()>,
) -> Result<Vec<u64>> {
    const SETTLED: Duration = Duration::from_millis(500);
    let start = Instant::now();
    let mut last = Vec::new();
    let mut since = Instant::now();
    loop {
        let now = breakpoints(pid)?;
        if !some && now.is_empty() {
            return Ok(now);
        }
        if now != last {
            last = now;
            since = Instant::now();
        } else if some && !last.is_empty() && since.elapsed() > SETTLED {
            return Ok(last);
        }
        interrupted()?;
        if start.elapsed() > PATIENCE {
            bail!(
                "process {pid} still has breakpoints at {last:x?} after {PATIENCE:?}, where {} were expected",
                if some { "some" } else { "none" }
            );
        }
        sleep(Duration::from_millis(20));
    }
}
