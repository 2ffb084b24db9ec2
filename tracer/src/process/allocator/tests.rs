//! Allocators by the symbols of their files.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::File;

use super::*;
use crate::process::testing::{GLIBC, JEMALLOC, MIMALLOC, MUSL, TCMALLOC, build, library};

const C_PROGRAM: &str = "#include <stdlib.h>\n#include <stdio.h>\nint main(void) { void *p = malloc(10); p = realloc(p, 99); printf(\"%p\", p); free(p); }";
const CPP_PROGRAM: &str = "#include <string>\n#include <new>\nstruct alignas(64) A { char c[64]; };\nint main(int c, char **) { std::string s(c * 99, 'x'); auto *a = new A; delete a; auto *z = new int[c]; delete[] z; return s[0]; }";

fn in_library(library: (&str, &str)) -> Option<Found> {
    let bytes = self::library(library)?;
    let elf = ElfFile::parse(&bytes).unwrap();
    Some(find_allocators(&elf, &bytes, Path::new(library.0)).unwrap())
}

fn in_program(compiler: &str, package: &str, arguments: &[&str], source: &str) -> Option<Found> {
    let folder = tempfile::tempdir().unwrap();
    let path = build(folder.path(), compiler, package, arguments, source)?;
    let file = File::open(&path).unwrap();
    let elf = ElfFile::parse(&file).unwrap();
    Some(find_allocators(&elf, &file, &path).unwrap())
}

/// Every name of the only allocator that was found, by the function that its own or its target's probe stands for.
fn only(
    found: &Found,
    kind: AllocatorKind,
) -> (&Allocator, BTreeMap<String, Function>, BTreeSet<String>) {
    assert_eq!(found.allocators.len(), 1, "{found:?}");
    let allocator = &found.allocators[0];
    assert_eq!(allocator.kind, kind);
    let probed = allocator
        .functions
        .iter()
        .flat_map(|function| {
            let names = function.aliases.iter().chain([&function.name]);
            names.map(|name| (name.clone(), function.function))
        })
        .collect();
    let addresses: BTreeSet<u64> = allocator
        .functions
        .iter()
        .map(|function| function.vaddr)
        .collect();
    assert_eq!(
        addresses.len(),
        allocator.functions.len(),
        "one probe for each address"
    );
    (
        allocator,
        probed,
        allocator.covered.iter().cloned().collect(),
    )
}

const C_FUNCTIONS: [(&str, Function); 10] = [
    ("malloc", Function::Malloc),
    ("calloc", Function::Calloc),
    ("realloc", Function::Realloc),
    ("reallocarray", Function::ReallocArray),
    ("free", Function::Free),
    ("posix_memalign", Function::PosixMemalign),
    ("aligned_alloc", Function::AlignedAlloc),
    ("memalign", Function::AlignedAlloc),
    ("valloc", Function::Valloc),
    ("pvalloc", Function::Pvalloc),
];

#[test]
fn glibc_has_its_ten_functions() {
    let Some(found) = in_library(GLIBC) else {
        return;
    };
    let (allocator, probed, covered) = only(&found, AllocatorKind::Glibc);
    for (name, function) in C_FUNCTIONS {
        // It checks for overflow and jumps to realloc.
        let is_door = name == "reallocarray" && covered.contains(name);
        assert!(
            is_door || probed.get(name) == Some(&function),
            "{name}: {covered:?}"
        );
    }
    assert!(
        allocator
            .functions
            .iter()
            .all(|function| !function.name.starts_with("__")),
        "the plain names come first"
    );
    assert_eq!(allocator.functions[0].name, "malloc");
    assert_eq!(allocator.functions[1].name, "free");
    assert!(allocator.functions.iter().all(|function| function.size > 0));
}

#[test]
fn musl_is_told_and_its_doors_are_seen_through() {
    let Some(found) = in_library(MUSL) else {
        return;
    };
    let (_, probed, covered) = only(&found, AllocatorKind::Musl);
    for name in [
        "malloc",
        "free",
        "calloc",
        "realloc",
        "posix_memalign",
        "aligned_alloc",
    ] {
        assert!(probed.contains_key(name), "{name}: {probed:?}");
    }
    assert!(
        covered.contains("memalign") && covered.contains("valloc"),
        "{covered:?}"
    );
}

#[test]
fn jemalloc_has_its_operators_and_its_own_interface() {
    let Some(found) = in_library(JEMALLOC) else {
        return;
    };
    let (_, probed, covered) = only(&found, AllocatorKind::Jemalloc);
    let malloc_like = ["malloc", "_Znwm", "_ZnwmRKSt9nothrow_t", "mallocx"];
    assert!(
        malloc_like
            .iter()
            .all(|name| probed.get(*name) == Some(&Function::Malloc)),
        "{probed:?}"
    );
    for name in ["free", "_ZdlPvm", "_ZdaPvm", "sdallocx", "dallocx"] {
        assert_eq!(probed.get(name), Some(&Function::Free), "{name}");
    }
    assert_eq!(probed.get("rallocx"), Some(&Function::Realloc));
    // They jump to free, to operator new, and call aligned_alloc before anything else.
    for name in ["_ZdlPv", "_Znam", "_ZnwmSt11align_val_t"] {
        assert!(
            covered.contains(name) && !probed.contains_key(name),
            "{name}"
        );
    }
}

#[test]
fn tcmalloc_and_mimalloc_are_told_by_their_own_names() {
    for (library, kind) in [
        (TCMALLOC, AllocatorKind::Tcmalloc),
        (MIMALLOC, AllocatorKind::Mimalloc),
    ] {
        let Some(found) = in_library(library) else {
            continue;
        };
        let (_, probed, covered) = only(&found, kind);
        for name in [
            "malloc", "free", "calloc", "_Znwm", "_Znam", "_ZdlPv", "_ZdaPv",
        ] {
            assert!(probed.contains_key(name), "{kind}: {name}");
        }
        for (name, _) in C_FUNCTIONS
            .iter()
            .filter(|(name, _)| *name != "reallocarray")
        {
            assert!(
                probed.contains_key(*name) || covered.contains(*name),
                "{kind}: {name}"
            );
        }
    }
}

#[test]
fn what_only_calls_an_allocator_is_none() {
    for library in [
        ("/usr/lib/x86_64-linux-gnu/libstdc++.so.6", "libstdc++6"),
        ("/lib64/ld-linux-x86-64.so.2", "libc6"),
        ("/proc/self/exe", "this program"),
    ] {
        let Some(found) = in_library(library) else {
            continue;
        };
        assert_eq!(found.allocators, [], "{}", library.0);
    }
    for arguments in [&[][..], &["-static-libstdc++"]] {
        let Some(found) = in_program("g++", "g++", arguments, CPP_PROGRAM) else {
            return;
        };
        assert_eq!(found.allocators, [], "{arguments:?}");
    }
    let source = "#include <stddef.h>\nextern void *__libc_malloc(size_t); extern void __libc_free(void *);\nvoid *malloc(size_t n) { return __libc_malloc(n); }\nvoid free(void *p) { __libc_free(p); }\nint main(void) { free(malloc(3)); }";
    let Some(found) = in_program("gcc", "gcc", &["-fno-builtin"], source) else {
        return;
    };
    assert_eq!(found, Found::default(), "doors to glibc's functions");
}

#[test]
fn the_allocator_of_a_static_program_is_found() {
    for arguments in [["-static"], ["-static-pie"]] {
        let Some(found) = in_program("gcc", "gcc", &arguments, C_PROGRAM) else {
            return;
        };
        let (_, probed, _) = only(&found, AllocatorKind::Glibc);
        assert!(
            ["malloc", "calloc", "realloc", "free"]
                .iter()
                .all(|name| probed.contains_key(*name)),
            "{probed:?}"
        );
    }
    if let Some(found) = in_program("g++", "g++", &["-static"], CPP_PROGRAM) {
        let (_, probed, _) = only(&found, AllocatorKind::Glibc);
        assert!(
            !probed.keys().any(|name| name.starts_with("_Z")),
            "libstdc++'s operators call malloc: {probed:?}"
        );
    }
    if let Some(found) = in_program("musl-gcc", "musl-tools", &["-static"], C_PROGRAM) {
        let (_, probed, covered) = only(&found, AllocatorKind::Musl);
        assert!(probed.contains_key("malloc"));
        assert!(
            ["free", "realloc"]
                .iter()
                .all(|name| probed.contains_key(*name) || covered.contains(*name))
        );
    }
}

#[test]
fn operators_with_an_arena_of_their_own_are_an_allocator() {
    let source = "#include <new>\n#include <cstdlib>\n#include <sys/mman.h>\nstatic char *next; static size_t left;\nvoid *operator new(size_t n) { n = (n + 15) & ~15; if (left < n) { left = n > 1 << 20 ? n : 1 << 20; next = (char *)mmap(0, left, 3, 0x22, -1, 0); } void *p = next; next += n; left -= n; return p; }\nvoid operator delete(void *p) noexcept { asm volatile(\"\" :: \"r\"(p) : \"memory\"); }\nint main(int c, char **) { int *p = new int(c); void *q = malloc(c); free(q); c = *p; delete p; return c; }";
    let Some(found) = in_program("g++", "g++", &["-fno-builtin", "-fno-inline"], source) else {
        return;
    };
    let (_, probed, _) = only(&found, AllocatorKind::CppOperators);
    assert_eq!(probed.get("_Znwm"), Some(&Function::Malloc));
    assert_eq!(probed.get("_ZdlPv"), Some(&Function::Free));
}

#[test]
fn a_chooser_is_not_taken_for_the_function() {
    let source = "#include <stddef.h>\nstatic char pool[99];\nstatic void *plain(size_t n) { return pool + n; }\nstatic void *(*choose(void))(size_t) { return plain; }\nvoid *malloc(size_t n) __attribute__((ifunc(\"choose\")));\nvoid *volatile kept;\nvoid *calloc(size_t n, size_t s) { return pool + n * s; }\nvoid free(void *p) { kept = p; }\nint main(void) { free(malloc(3)); }";
    let Some(found) = in_program("gcc", "gcc", &["-fno-builtin"], source) else {
        return;
    };
    let (_, probed, _) = only(&found, AllocatorKind::Other);
    assert!(
        !probed.contains_key("malloc") && probed.contains_key("calloc"),
        "{probed:?}"
    );
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("malloc") && note.contains("IFUNC")),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_lone_name_is_no_allocator() {
    let source = "#include <stdlib.h>\nstatic char pool[99];\nvoid *valloc(size_t n) { return pool + n; }\nint main(void) { return valloc(3) == 0; }";
    let Some(found) = in_program("gcc", "gcc", &["-fno-builtin"], source) else {
        return;
    };
    assert_eq!(found.allocators, []);
    assert!(
        found.notes.iter().any(|note| note.contains("valloc")),
        "{:?}",
        found.notes
    );
}

#[test]
fn a_library_that_adds_a_checked_realloc_is_not_worth_a_word() {
    let source = "#include <stdlib.h>\n#include <errno.h>\nvoid *reallocarray(void *p, size_t n, size_t s) { if (s && n > (size_t)-1 / s) { errno = ENOMEM; return 0; } return realloc(p, n * s); }\nint main(void) { free(reallocarray(0, 3, 4)); }";
    let Some(found) = in_program("gcc", "gcc", &[], source) else {
        return;
    };
    assert_eq!(found, Found::default());
}

#[test]
fn a_prefixed_jemalloc_beside_the_c_library_is_a_second_allocator() {
    let source = "#include <stdlib.h>\nstatic char pool[99];\nvoid *_rjem_malloc(size_t n) { return pool + n; }\nvoid *volatile kept;\nvoid _rjem_sdallocx(void *p, size_t n, int f) { kept = (char *)p + n + f; }\nint main(void) { _rjem_sdallocx(_rjem_malloc(3), 3, 0); free(malloc(3)); }";
    let Some(found) = in_program("gcc", "gcc", &["-static", "-fno-builtin"], source) else {
        return;
    };
    let kinds: Vec<AllocatorKind> = found
        .allocators
        .iter()
        .map(|allocator| allocator.kind)
        .collect();
    assert_eq!(kinds, [AllocatorKind::Glibc, AllocatorKind::Jemalloc]);
    let names: Vec<&str> = found.allocators[1]
        .functions
        .iter()
        .map(|function| function.name.as_str())
        .collect();
    assert_eq!(names, ["_rjem_malloc", "_rjem_sdallocx"]);
}
