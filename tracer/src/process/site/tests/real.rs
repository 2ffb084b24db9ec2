//! The functions of the allocators that Debian ships.

use std::collections::HashMap;
use std::path::Path;

use super::super::*;
use super::check;
use crate::process::allocator::{AllocatorFunction, find_allocators};
use crate::process::elf::ElfFile;
use crate::process::testing::{GLIBC, JEMALLOC, MIMALLOC, MUSL, TCMALLOC, library};

/// Build-ids of Debian 12's libc6 2.36-9+deb12u14 and libjemalloc2 5.3.0-1, as far as it takes to tell them.
const GLIBC_ID: &[u8] = &[0x93, 0xac, 0x61, 0xec, 0x5a, 0x8e];
const JEMALLOC_ID: &[u8] = &[0x1d, 0x51, 0x63, 0xc2, 0x46, 0xdc];

/// A function of a library: name, what it is, address, code.
struct Real {
    name: String,
    function: Function,
    vaddr: u64,
    code: Vec<u8>,
}

fn functions_of(library: (&str, &str)) -> Vec<Real> {
    let Some(bytes) = self::library(library) else {
        return Vec::new();
    };
    let elf = ElfFile::parse(&bytes).unwrap();
    let found = find_allocators(&elf, &bytes, Path::new(library.0)).unwrap();
    assert!(!found.allocators.is_empty(), "{}", library.0);
    let of = |function: &AllocatorFunction| Real {
        name: function.name.clone(),
        function: function.function,
        vaddr: function.vaddr,
        code: elf.code_at(&bytes, function.vaddr, function.size).unwrap(),
    };
    found
        .allocators
        .iter()
        .flat_map(|allocator| &allocator.functions)
        .map(of)
        .collect()
}

fn all_functions() -> Vec<Real> {
    [GLIBC, MUSL, JEMALLOC, TCMALLOC, MIMALLOC]
        .into_iter()
        .flat_map(functions_of)
        .collect()
}

#[test]
fn the_sites_in_real_allocators_keep_their_promises() {
    for real in all_functions() {
        for wants_return in [real.function != Function::Free, false] {
            let site = select(&real.code, real.vaddr, real.function, wants_return);
            check(
                &real.code,
                real.vaddr,
                real.function,
                wants_return,
                &site,
                &real.name,
            );
        }
    }
}

#[test]
fn a_jump_added_to_a_real_function_moves_the_probe_away() {
    for real in all_functions() {
        let wants_return = real.function != Function::Free;
        let site = select(&real.code, real.vaddr, real.function, wants_return);
        for target in 1..=site.offset_from_entry {
            // jmp rel32 behind the function's end.
            let mut code = real.code.clone();
            let distance = target as i64 - (code.len() as i64 + 5);
            code.push(0xe9);
            code.extend((distance as i32).to_le_bytes());
            let moved = select(&code, real.vaddr, real.function, wants_return);
            assert!(
                moved.offset_from_entry < target,
                "{}: {target}: {}",
                real.name,
                moved.reason
            );
            check(
                &code,
                real.vaddr,
                real.function,
                wants_return,
                &moved,
                &real.name,
            );
        }
    }
}

#[test]
fn the_hot_functions_of_debians_allocators_are_never_single_stepped() {
    let hot = |library, names: &[&str]| {
        for real in functions_of(library) {
            if names.contains(&real.name.as_str()) {
                let site = select(
                    &real.code,
                    real.vaddr,
                    real.function,
                    real.function != Function::Free,
                );
                assert_eq!(
                    site.cost,
                    SiteCost::Emulated,
                    "{}: {}",
                    real.name,
                    site.reason
                );
            }
        }
    };
    hot(
        GLIBC,
        &[
            "malloc",
            "free",
            "calloc",
            "realloc",
            "posix_memalign",
            "aligned_alloc",
        ],
    );
    hot(MUSL, &["malloc", "free", "calloc", "realloc"]);
    hot(
        JEMALLOC,
        &[
            "malloc", "free", "calloc", "realloc", "_Znwm", "_ZdlPvm", "sdallocx",
        ],
    );
    hot(
        TCMALLOC,
        &[
            "malloc",
            "free",
            "calloc",
            "realloc",
            "tc_new",
            "tc_delete_sized",
        ],
    );
    hot(MIMALLOC, &["malloc", "free", "mi_new", "mi_heap_realloc"]);
}

#[test]
fn debian_12_has_the_sites_that_were_measured() {
    let sites = |library, build_id: &[u8]| -> HashMap<String, (u64, String)> {
        let Some(bytes) = self::library(library) else {
            return HashMap::new();
        };
        // The offsets hold for one build only; elsewhere the promises above must do.
        if !ElfFile::parse(&bytes)
            .unwrap()
            .build_id
            .is_some_and(|id| id.starts_with(build_id))
        {
            return HashMap::new();
        }
        let site = |real: Real| {
            let site = select(
                &real.code,
                real.vaddr,
                real.function,
                real.function != Function::Free,
            );
            let word = site
                .instruction
                .split(' ')
                .next()
                .unwrap_or_else(|| panic!("{site:?}"))
                .to_owned();
            (real.name, (site.offset_from_entry, word))
        };
        functions_of(library).into_iter().map(site).collect()
    };
    let glibc = sites(GLIBC, GLIBC_ID);
    for (name, offset, word) in [
        ("malloc", 0, "push"),
        ("calloc", 0, "push"),
        ("realloc", 0, "push"),
        ("free", 3, "je"),
    ] {
        assert!(
            glibc.is_empty() || glibc[name] == (offset, word.to_owned()),
            "{name}: {glibc:?}"
        );
    }
    let jemalloc = sites(JEMALLOC, JEMALLOC_ID);
    assert!(
        jemalloc.is_empty() || jemalloc["malloc"] == (7, "ja".to_owned()),
        "{jemalloc:?}"
    );
}
