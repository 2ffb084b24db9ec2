//! What an unprivileged user prepares for whoever traces his programs ends, hangs and fills nobody.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]

use std::{
    fs::{self, File, Permissions},
    io::{BufRead as _, BufReader},
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use leakscope_tests::{NOBODY, Report, Tracer, require_kernel, require_victim};
use tempfile::TempDir;

/// A hostile program. Killed when dropped.
struct Hostile(Child);

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Hostile {
    fn start(program: &Path, words: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(words)
            .uid(NOBODY)
            .gid(NOBODY)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let hostile = Self(child);
        assert_eq!(line, "ready\n");
        hostile
    }

    /// Traces it for some seconds; also the most memory that this took, in KiB.
    fn traced(&self) -> (Report, u64) {
        let pid = self.0.id().to_string();
        let mut tracer = Tracer::start(&["--tier", "exact", "-p", &pid]).expect("started");
        tracer.wait_until_attached(self.0.id()).expect("attached");
        std::thread::sleep(std::time::Duration::from_secs(2));
        let status = fs::read_to_string(format!("/proc/{}/status", tracer.pid())).expect("status");
        let most = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .and_then(|line| line.split_whitespace().next())
            .and_then(|number| number.parse().ok())
            .expect("its memory");
        let report = tracer.stop().expect("a report");
        assert!(report.sites.iter().any(|site| site.inuse_bytes > 0));
        (report, most)
    }
}

/// What is said of the only process.
fn note(report: &Report) -> &str {
    let process = report.processes.first().expect("a process");
    process.exit_note.as_deref().unwrap_or_default()
}

/// A folder that `nobody` may look into.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("opened to others");
    folder
}

/// A library with packed debug information, by `nobody`.
fn library(folder: &TempDir) -> PathBuf {
    let source = folder.path().join("library.c");
    let library = folder.path().join("library.so");
    fs::write(
        &source,
        "#include <stdlib.h>\nvoid *leak_one(int size) { return malloc(size); }\n",
    )
    .expect("written");
    let built = Command::new("cc")
        .args(["-g", "-gz=zlib", "-O1", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .status();
    assert!(built.expect("a compiler").success());
    chown(&library, Some(NOBODY), Some(NOBODY)).expect("given away");
    library
}

/// Writes over the size that packed sections say that they have (`ch_size`); returns how many there are.
fn claim(library: &Path, size: u64) -> usize {
    let file = File::options()
        .read(true)
        .write(true)
        .open(library)
        .expect("opened");
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).expect("read");
        u64::from_le_bytes(bytes)
    };
    // `e_shoff` and `e_shnum`; `sh_flags` and `sh_offset` of a section, and `SHF_COMPRESSED`.
    let (table, count) = (word(0x28), word(0x3c) & 0xffff);
    let mut packed = 0;
    for section in 0..count {
        let header = table + 64 * section;
        if word(header + 8) & 0x800 != 0 {
            file.write_all_at(&size.to_le_bytes(), word(header + 24) + 8)
                .expect("written");
            packed += 1;
        }
    }
    packed
}

#[test]
fn packed_debug_information_of_a_user_names_functions() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    let folder = folder();
    let library = library(&folder);
    let hostile = Hostile::start(&program, &["load", library.to_str().unwrap()]);
    let (report, _) = hostile.traced();
    let named = report
        .sites
        .iter()
        .flat_map(|site| &site.frames)
        .find(|frame| frame.function.as_deref() == Some("leak_one"))
        .expect("named");
    assert_eq!(named.line, Some(2), "{named:?}");
}

#[test]
fn a_section_that_claims_to_unpack_to_more_than_there_is_ends_nobody() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    // What it claims, or has: less than a byte, more than any machine, and nearly as much as there could be.
    for size in [0, 1 << 46, 1 << 30] {
        let folder = folder();
        let library = library(&folder);
        assert!(claim(&library, size) > 0);
        let hostile = Hostile::start(&program, &["load", library.to_str().unwrap()]);
        let (report, most) = hostile.traced();
        let note = note(&report);
        assert!(
            note.contains("library.so: its functions have no names"),
            "{size}: {note}"
        );
        assert!(most < 512 << 10, "{size}: {most} KiB");
    }
}

#[test]
fn a_perf_map_that_is_a_link_hangs_nobody() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    for target in ["/proc/kmsg", "/sys/kernel/tracing/trace_pipe", "/dev/zero"] {
        Hostile::start(&program, &["link", target]).traced();
    }
}

#[test]
fn a_sparse_file_of_gigabytes_takes_no_memory() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    let folder = folder();
    let path = folder.path().join("sparse");
    let file = File::create(&path).expect("made");
    // The headers of a library, and its first segment as long as the file.
    let library = fs::read(library(&folder)).expect("read");
    file.write_all_at(library.get(..4096).unwrap_or_default(), 0)
        .expect("written");
    let length: u64 = 4 << 30;
    // `p_flags`, `p_offset`, `p_vaddr`, `p_paddr`, `p_filesz` and `p_memsz` of the first program header.
    file.write_all_at(&5_u32.to_le_bytes(), 68)
        .expect("written");
    for (place, value) in [
        (72, 0),
        (80, 0),
        (88, 0),
        (96, length - 4096),
        (104, length - 4096),
    ] {
        let value: u64 = value;
        file.write_all_at(&value.to_le_bytes(), place)
            .expect("written");
    }
    file.set_len(length).expect("sparse");
    let hostile = Hostile::start(&program, &["map", path.to_str().unwrap()]);
    let (_, most) = hostile.traced();
    assert!(most < 512 << 10, "{most} KiB");
}

#[test]
fn thousands_of_files_take_neither_memory_nor_all_descriptors() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    let hostile = Hostile::start(&program, &["files", "3000"]);
    let (_, most) = hostile.traced();
    assert!(most < 512 << 10, "{most} KiB");
}

#[test]
fn thousands_of_pages_of_code_are_known_in_time() {
    let _turn = require_kernel!();
    let program = require_victim!("hostile");
    let hostile = Hostile::start(&program, &["pages", "30000"]);
    let (_, most) = hostile.traced();
    assert!(most < 512 << 10, "{most} KiB");
}
