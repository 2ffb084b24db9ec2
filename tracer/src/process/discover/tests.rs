//! What is found in real processes: allocators, their functions, what stands in the way.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use super::*;
use crate::process::site::SiteCost;
use crate::process::testing::{JEMALLOC, MIMALLOC, MUSL, TCMALLOC, build, skip};

/// A process that runs until the test is over.
struct Running(Child);

impl Running {
    /// Starts a program that echoes a line, and waits for the line: then all that it maps at its start is mapped.
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        stdin.write_all(b"ready\n").unwrap();
        stdin.flush().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn discover(&self) -> Discovery {
        discover(&Files::new(), Path::new("/proc"), self.0.id()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Echoes a line with `read` and `write` alone.
const ECHO: &str = "#include <stdlib.h>\n#include <unistd.h>\nint main(void) { char c[99]; void *volatile p = malloc(3); free(p); long n = read(0, c, 99); write(1, c, n); pause(); }";

fn kinds(discovery: &Discovery) -> Vec<(AllocatorKind, Placement)> {
    discovery
        .allocators
        .iter()
        .map(|allocator| (allocator.kind, allocator.placement))
        .collect()
}

fn function<'a>(
    discovery: &'a Discovery,
    kind: AllocatorKind,
    name: &str,
) -> Option<&'a FoundFunction> {
    let allocator = discovery
        .allocators
        .iter()
        .find(|allocator| allocator.kind == kind)?;
    allocator
        .functions
        .iter()
        .find(|function| function.name == name)
}

#[test]
fn the_test_process_finds_its_own_c_library_and_reads_each_file_once() {
    let files = Files::new();
    let first = discover(&files, Path::new("/proc"), std::process::id()).unwrap();
    assert_eq!(
        kinds(&first),
        [(AllocatorKind::Glibc, Placement::CLibrary)],
        "{:?}",
        first.problems
    );
    assert!(
        first.why_empty().is_none() && first.problems.is_empty(),
        "{:?}",
        first.problems
    );
    assert!(first.files >= 3);
    assert_eq!(files.files_read(), first.files as u64);

    let second = discover(&files, Path::new("/proc"), std::process::id()).unwrap();
    assert_eq!(files.files_read(), first.files as u64, "known already");
    assert_eq!(
        first.allocators[0].functions,
        second.allocators[0].functions
    );
    assert!(Arc::ptr_eq(
        &first.allocators[0].file.file,
        &second.allocators[0].file.file
    ));

    let libc = &first.allocators[0].file;
    let reached = fs::metadata(libc.attach_path()).unwrap();
    assert_eq!(
        (Device::from_stat(reached.dev()), reached.ino()),
        (libc.device, libc.inode)
    );

    let malloc = function(&first, AllocatorKind::Glibc, "malloc").unwrap();
    assert!(malloc.wants_return() && malloc.site.stack_moved == 0);
    assert_eq!(malloc.cookie.function, malloc.site.function as u8);
    assert_eq!(
        malloc.probe_offset(),
        malloc.file_offset + malloc.site.offset_from_entry
    );
    assert!(
        !function(&first, AllocatorKind::Glibc, "free")
            .unwrap()
            .wants_return()
    );
}

#[test]
fn preloaded_allocators_stand_before_the_c_library() {
    for ((library, package), kind) in [
        (JEMALLOC, AllocatorKind::Jemalloc),
        (TCMALLOC, AllocatorKind::Tcmalloc),
        (MIMALLOC, AllocatorKind::Mimalloc),
    ] {
        if !Path::new(library).exists() {
            skip(library, package);
            continue;
        }
        let running = Running::start(Command::new("cat").env("LD_PRELOAD", library));
        let found = running.discover();
        assert_eq!(
            kinds(&found),
            [
                (kind, Placement::Preloaded),
                (AllocatorKind::Glibc, Placement::CLibrary)
            ]
        );
        let malloc = function(&found, kind, "malloc").unwrap();
        assert_eq!(
            malloc.site.cost,
            SiteCost::Emulated,
            "{}",
            malloc.site.reason
        );

        // Each function has a counter of its own for as long as there are any; the first two of each allocator always do.
        let slots: Vec<u8> = found
            .allocators
            .iter()
            .flat_map(|a| a.functions.iter().map(|f| f.cookie.hit_slot))
            .collect();
        let different: BTreeSet<u8> = slots.iter().copied().collect();
        assert_eq!(different.len(), slots.len().min(HIT_SLOTS));
        let first: Vec<u8> = found
            .allocators
            .iter()
            .map(|allocator| allocator.functions[0].cookie.hit_slot)
            .collect();
        assert_eq!(first, [0, 1]);
    }
}

#[test]
fn the_allocator_in_a_static_program_is_its_own() {
    let folder = tempfile::tempdir().unwrap();
    if let Some(program) = build(folder.path(), "gcc", "gcc", &["-static"], ECHO) {
        let running = Running::start(&mut Command::new(program));
        assert_eq!(
            kinds(&running.discover()),
            [(AllocatorKind::Glibc, Placement::Executable)]
        );
    }
    if let Some(program) = build(folder.path(), "gcc", "gcc", &["-static", "-s"], ECHO) {
        let running = Running::start(&mut Command::new(program));
        let found = running.discover();
        assert!(
            found
                .why_empty()
                .unwrap()
                .contains("is linked statically and stripped"),
            "{:?}",
            found.why_empty()
        );
        assert!(
            found.problems[0]
                .to_string()
                .contains("linked statically and stripped"),
            "{:?}",
            found.problems
        );
    }
    if let Some(program) = build(folder.path(), "musl-gcc", "musl-tools", &[], ECHO) {
        if !Path::new(MUSL.0).exists() {
            return skip(MUSL.0, MUSL.1);
        }
        let running = Running::start(&mut Command::new(program));
        assert_eq!(
            kinds(&running.discover()),
            [(AllocatorKind::Musl, Placement::CLibrary)]
        );
    }
}

#[test]
fn a_library_in_another_mount_namespace_is_read() {
    let (library, package) = JEMALLOC;
    if !Path::new(library).exists() {
        return skip(library, package);
    }
    let folder = tempfile::tempdir().unwrap();
    let possible = Command::new("unshare")
        .args(["--mount", "true"])
        .stderr(Stdio::null())
        .status();
    if !possible.is_ok_and(|status| status.success()) {
        return skip("permission to unshare", "nothing, but run as root");
    }
    let script =
        "mount -t tmpfs none \"$0\" && cp \"$1\" \"$0/x.so\" && LD_PRELOAD=\"$0/x.so\" exec cat";
    let running = Running::start(
        Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(folder.path())
            .arg(library),
    );
    let inside = folder.path().join("x.so");
    assert!(
        !inside.exists(),
        "it is to be seen from the other namespace only"
    );
    let found = running.discover();
    assert_eq!(found.problems, []);
    assert_eq!(
        kinds(&found)[0],
        (AllocatorKind::Jemalloc, Placement::Preloaded)
    );
    assert_eq!(found.allocators[0].file.path, inside);
    let reached = fs::read(found.allocators[0].file.attach_path()).unwrap();
    assert_eq!(reached, fs::read(library).unwrap());
}

#[test]
fn a_library_that_was_replaced_while_mapped_is_still_the_one_that_is_read() {
    if !Path::new(JEMALLOC.0).exists() {
        return skip(JEMALLOC.0, JEMALLOC.1);
    }
    if fs::metadata("/proc/1/map_files").is_err() {
        return skip("permission to read map_files", "nothing, but run as root");
    }
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("own library.so");
    fs::copy(JEMALLOC.0, &library).unwrap();
    let preloaded = folder.path().join("link.so");
    std::os::unix::fs::symlink(&library, &preloaded).unwrap();
    let running = Running::start(Command::new("cat").env("LD_PRELOAD", &preloaded));
    let before = running.discover();
    assert_eq!(before.problems, []);

    let other = folder.path().join("other.so");
    fs::write(&other, b"not a library at all").unwrap();
    fs::rename(&other, &library).unwrap();
    let after = running.discover();
    assert_eq!(kinds(&after).len(), 2);
    let jemalloc =
        |discovery: &Discovery| function(discovery, AllocatorKind::Jemalloc, "malloc").cloned();
    assert_eq!(jemalloc(&before), jemalloc(&after));
    let problem = after
        .problems
        .iter()
        .find(|problem| problem.path == library)
        .unwrap();
    assert!(problem.what.contains("replaced on disk"), "{problem}");
}

#[test]
fn changed_code_gets_no_probe_and_foreign_breakpoints_are_told() {
    // Overwrites the start of calloc as hooks do, and plants a breakpoint in valloc; calls neither.
    let source = "#define _GNU_SOURCE\n#include <stdlib.h>\n#include <malloc.h>\n#include <string.h>\n#include <sys/mman.h>\n#include <unistd.h>\nstatic void put(void *at, const void *bytes, int n) { char *page = (char *)((unsigned long)at & ~4095ul); mprotect(page, 8192, 7); memcpy(at, bytes, n); mprotect(page, 8192, 5); }\nint main(void) { char c[99]; put((void *)calloc, \"\\xe9\\1\\2\\3\\4\", 5); put((void *)valloc, \"\\xcc\", 1); long n = read(0, c, 99); write(1, c, n); pause(); }";
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = build(folder.path(), "gcc", "gcc", &[], source) else {
        return;
    };
    let running = Running::start(&mut Command::new(program));
    let found = running.discover();
    let glibc = |name| function(&found, AllocatorKind::Glibc, name);
    assert!(glibc("malloc").is_some() && glibc("calloc").is_none());
    assert!(
        found
            .problems
            .iter()
            .any(|problem| problem.what.contains("calloc gets no probe")),
        "{:?}",
        found.problems
    );
    assert_eq!(
        glibc("valloc").map(|valloc| valloc.breakpoint),
        Some(Some(0)),
        "{:?}",
        found.problems
    );
    let foreign = found.foreign_breakpoints();
    assert_eq!(foreign.len(), 1, "one line for a file");
    assert!(
        foreign[0].to_string().contains("valloc+0"),
        "{}",
        foreign[0]
    );
}

#[test]
fn damaged_and_foreign_files_are_lines_in_the_report() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("77");
    fs::create_dir_all(folder.join("root/lib")).unwrap();
    let stat = |flags: u64| {
        format!("77 (x) S 5 77 77 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 9 1000 200 0 1 1")
    };
    fs::write(folder.join("stat"), stat(0)).unwrap();
    fs::write(folder.join("status"), "Tgid:\t77\nUid:\t0\t0\t0\t0\n").unwrap();
    let mut maps = String::new();
    let mut map = |name: &str, bytes: Option<&[u8]>| {
        let path = folder.join("root/lib").join(name);
        let (device, inode) =
            bytes.map_or((Device { major: 1, minor: 1 }, 4_000_000_000), |bytes| {
                fs::write(&path, bytes).unwrap();
                let metadata = fs::metadata(&path).unwrap();
                (Device::from_stat(metadata.dev()), metadata.ino())
            });
        let start = 0x10000 + maps.len() * 0x1000;
        maps += &format!(
            "{start:x}-{:x} r-xp 00000000 {:x}:{:x} {inode} /lib/{name}\n",
            start + 0x1000,
            device.major,
            device.minor
        );
    };
    let own = fs::read("/proc/self/exe").unwrap();
    // e_machine: EM_AARCH64.
    let mut other_machine = fs::read("/bin/cat").unwrap();
    other_machine[18] = 183;
    map("jit", Some(b"\x55\xc3 no ELF file"));
    map("short.so", Some(&own[..60]));
    map("arm.so", Some(&other_machine));
    map("gone.so", None);
    fs::write(folder.join("maps"), &maps).unwrap();

    let found = discover(&Files::new(), root.path(), 77).unwrap();
    assert_eq!(found.files, 4);
    let line = |name: &str| {
        found
            .problems
            .iter()
            .find(|problem| problem.path.ends_with(name))
            .map(ToString::to_string)
    };
    assert_eq!(line("jit"), None);
    assert!(
        line("short.so").unwrap().contains("is damaged"),
        "{:?}",
        line("short.so")
    );
    assert!(
        line("arm.so").unwrap().contains("machine 183"),
        "{:?}",
        line("arm.so")
    );
    assert!(
        line("gone.so").unwrap().contains("cannot be opened"),
        "{:?}",
        line("gone.so")
    );
    assert!(
        found.why_empty().unwrap().contains("short.so: is damaged"),
        "{:?}",
        found.why_empty()
    );

    fs::write(folder.join("stat"), stat(0x20_0000)).unwrap();
    assert!(matches!(
        discover(&Files::new(), root.path(), 77),
        Err(DiscoverError::KernelThread { .. })
    ));
    fs::write(folder.join("stat"), stat(0)).unwrap();
    fs::write(folder.join("maps"), "").unwrap();
    assert!(matches!(
        discover(&Files::new(), root.path(), 77),
        Err(DiscoverError::Ended { .. })
    ));
    assert!(matches!(
        discover(&Files::new(), root.path(), 78),
        Err(DiscoverError::Process(_))
    ));
}
