//! Tests of the whole room on real files, on made-up ones, and on broken ones.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod broken;
mod cached;
mod debugger;
mod figures;
mod made_up;
mod oracle;
mod walked;

use std::path::Path;

use object::{Object, ObjectSection, ObjectSegment};

use super::{BuildOptions, Kept, Table, build};

/// Files that are on every machine that can run the tests, and some that may be.
const FILES: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib64/libstdc++.so.6",
    "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0",
    "/usr/lib/x86_64-linux-gnu/libcrypto.so.3",
    "/bin/bash",
    "/usr/bin/gdb",
];

/// The test program itself: a Rust executable.
fn own_file() -> Vec<u8> {
    std::fs::read("/proc/self/exe").unwrap()
}

/// Those of [`FILES`] that are there, with their names.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let there = FILES.iter().filter(|name| Path::new(name).exists());
    let files: Vec<_> = there
        .map(|name| (*name, std::fs::read(name).unwrap()))
        .collect();
    assert!(files.len() >= 3, "no system libraries found");
    files
}

fn pruned(file: &[u8]) -> Table {
    build(file, &BuildOptions::default()).unwrap()
}

fn full(file: &[u8]) -> Table {
    let options = BuildOptions {
        kept: Kept::All,
        ..BuildOptions::default()
    };
    build(file, &options).unwrap()
}

/// Address and bytes of a section.
fn section<'a>(file: &object::File<'a>, name: &str) -> Option<(u64, &'a [u8])> {
    let section = file.section_by_name(name)?;
    Some((section.address(), section.data().ok()?))
}

/// The bytes that are loaded at `from..to`.
fn loaded<'a>(file: &object::File<'a>, from: u64, to: u64) -> &'a [u8] {
    file.segments()
        .find_map(|segment| segment.data_range(from, to - from).ok()?)
        .unwrap()
}

/// A plain pseudo-random sequence (SplitMix64), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
