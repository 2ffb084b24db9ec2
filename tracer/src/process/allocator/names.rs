//! The names of allocator functions, and what their arguments mean.
//!
//! Sources: ISO C, POSIX and glibc's `malloc.h`; jemalloc's `jemalloc.h` (the `*allocx` family); gperftools' `tcmalloc.h`; mimalloc's
//! `mimalloc.h`; the Itanium C++ ABI's mangling of `operator new` and `operator delete`; rustc's `rustc_ast::expand::allocator`.

use leakscope_common::Function;
use leakscope_common::Function::{
    AlignedAlloc, Calloc, Free, HeapCalloc, HeapRealloc, Malloc, PosixMemalign, Pvalloc, Realloc,
    ReallocArray, RustRealloc, Valloc,
};

/// Which interface a name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Family {
    /// C's own names, without a prefix.
    C,
    /// jemalloc under a prefix of its own.
    PrefixedJemalloc,
    /// mimalloc's `mi_` interface.
    Mimalloc,
    /// gperftools' `tc_` interface, and TCMalloc's internal names.
    Tcmalloc,
    /// `operator new` and `operator delete`.
    CppOperators,
    /// `__rust_alloc` and the functions behind it.
    Rust,
}

/// C's functions, and those that jemalloc adds; jemalloc under a prefix has all of them.
/// `realloc` with further arguments behind the size, and `malloc` likewise, are the plain ones to the probe.
const C: &[(&str, Function)] = &[
    ("malloc", Malloc),
    ("free", Free),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("posix_memalign", PosixMemalign),
    ("aligned_alloc", AlignedAlloc),
    ("memalign", AlignedAlloc),
    ("reallocarray", ReallocArray),
    ("valloc", Valloc),
    ("pvalloc", Pvalloc),
    ("mallocx", Malloc),
    ("rallocx", Realloc),
    ("dallocx", Free),
    ("sdallocx", Free),
    ("reallocf", Realloc),
    ("cfree", Free),
    ("vfree", Free),
    ("free_sized", Free),
    ("free_aligned_sized", Free),
];

/// glibc's own names for the same functions: programs call them, and some allocators define them too.
const GLIBC_INTERNAL: &[(&str, Function)] = &[
    ("__libc_malloc", Malloc),
    ("__libc_free", Free),
    ("__libc_cfree", Free),
    ("__libc_calloc", Calloc),
    ("__libc_realloc", Realloc),
    ("__libc_reallocarray", ReallocArray),
    ("__libc_memalign", AlignedAlloc),
    ("__libc_valloc", Valloc),
    ("__libc_pvalloc", Pvalloc),
    ("__posix_memalign", PosixMemalign),
];

/// jemalloc's `--with-jemalloc-prefix` as distributions and Rust's jemalloc crates choose it.
const JEMALLOC_PREFIXES: &[&str] = &["je_", "_rjem_", "__rjem_"];

/// The names behind `mi_`.
const MIMALLOC: &[(&str, Function)] = &[
    ("malloc", Malloc),
    ("free", Free),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("zalloc", Malloc),
    ("new", Malloc),
    ("new_nothrow", Malloc),
    ("new_aligned", Malloc),
    ("new_aligned_nothrow", Malloc),
    ("posix_memalign", PosixMemalign),
    ("aligned_alloc", AlignedAlloc),
    ("memalign", AlignedAlloc),
    ("malloc_aligned", Malloc),
    ("zalloc_aligned", Malloc),
    ("realloc_aligned", Realloc),
    ("free_size", Free),
    ("free_aligned", Free),
    ("free_size_aligned", Free),
    ("malloc_small", Malloc),
    ("zalloc_small", Malloc),
    ("mallocn", Calloc),
    ("reallocn", ReallocArray),
    ("reallocarray", ReallocArray),
    ("reallocf", Realloc),
    ("rezalloc", Realloc),
    ("recalloc", ReallocArray),
    ("valloc", Valloc),
    ("pvalloc", Pvalloc),
    ("cfree", Free),
    ("new_n", Calloc),
    ("new_realloc", Realloc),
    ("new_reallocn", ReallocArray),
    ("malloc_aligned_at", Malloc),
    ("zalloc_aligned_at", Malloc),
    ("calloc_aligned", Calloc),
    ("calloc_aligned_at", Calloc),
    ("realloc_aligned_at", Realloc),
    ("rezalloc_aligned", Realloc),
    ("rezalloc_aligned_at", Realloc),
    ("recalloc_aligned", ReallocArray),
    ("recalloc_aligned_at", ReallocArray),
    // The heap comes first and the size second, which is where `aligned_alloc` has it.
    ("heap_malloc", AlignedAlloc),
    ("heap_zalloc", AlignedAlloc),
    ("heap_calloc", HeapCalloc),
    ("heap_realloc", HeapRealloc),
    ("heap_malloc_small", AlignedAlloc),
    ("heap_mallocn", HeapCalloc),
    ("heap_reallocf", HeapRealloc),
    ("heap_rezalloc", HeapRealloc),
    ("heap_alloc_new", AlignedAlloc),
    ("heap_malloc_aligned", AlignedAlloc),
    ("heap_malloc_aligned_at", AlignedAlloc),
    ("heap_zalloc_aligned", AlignedAlloc),
    ("heap_zalloc_aligned_at", AlignedAlloc),
    ("heap_calloc_aligned", HeapCalloc),
    ("heap_calloc_aligned_at", HeapCalloc),
    ("heap_realloc_aligned", HeapRealloc),
    ("heap_realloc_aligned_at", HeapRealloc),
    ("heap_rezalloc_aligned", HeapRealloc),
    ("heap_rezalloc_aligned_at", HeapRealloc),
];

/// The names behind `tc_`.
const TCMALLOC: &[(&str, Function)] = &[
    ("malloc", Malloc),
    ("free", Free),
    ("calloc", Calloc),
    ("realloc", Realloc),
    ("new", Malloc),
    ("delete", Free),
    ("newarray", Malloc),
    ("deletearray", Free),
    ("delete_sized", Free),
    ("deletearray_sized", Free),
    ("posix_memalign", PosixMemalign),
    ("memalign", AlignedAlloc),
    ("valloc", Valloc),
    ("pvalloc", Pvalloc),
    ("cfree", Free),
    ("free_sized", Free),
    ("malloc_skip_new_handler", Malloc),
    ("new_nothrow", Malloc),
    ("newarray_nothrow", Malloc),
    ("new_aligned", Malloc),
    ("new_aligned_nothrow", Malloc),
    ("newarray_aligned", Malloc),
    ("newarray_aligned_nothrow", Malloc),
    ("delete_nothrow", Free),
    ("deletearray_nothrow", Free),
    ("delete_aligned", Free),
    ("delete_aligned_nothrow", Free),
    ("delete_sized_aligned", Free),
    ("deletearray_aligned", Free),
    ("deletearray_aligned_nothrow", Free),
    ("deletearray_sized_aligned", Free),
];

/// The names behind `TCMallocInternal`, of the TCMalloc that is not gperftools'.
const TCMALLOC_INTERNAL: &[(&str, Function)] = &[
    ("Malloc", Malloc),
    ("Free", Free),
    ("Calloc", Calloc),
    ("Realloc", Realloc),
    ("New", Malloc),
    ("Delete", Free),
    ("NewArray", Malloc),
    ("DeleteArray", Free),
    ("NewNothrow", Malloc),
    ("NewArrayNothrow", Malloc),
    ("NewAligned", Malloc),
    ("DeleteSized", Free),
    ("DeleteArraySized", Free),
    ("DeleteAligned", Free),
    ("PosixMemalign", PosixMemalign),
    ("AlignedAlloc", AlignedAlloc),
    ("Memalign", AlignedAlloc),
    ("Valloc", Valloc),
    ("Pvalloc", Pvalloc),
    ("Cfree", Free),
    ("FreeSized", Free),
    ("FreeAlignedSized", Free),
];

/// What follows `__rust_`, `__rdl_` (the default allocator) and `__rg_` (a `#[global_allocator]`).
const RUST: &[(&str, Function)] = &[
    ("alloc", Malloc),
    ("dealloc", Free),
    ("realloc", RustRealloc),
    ("alloc_zeroed", Malloc),
];

/// What follows `_Znwm` and `_Znam`: nothrow, aligned, both.
const NEW_FORMS: &[&str] = &[
    "",
    "RKSt9nothrow_t",
    "St11align_val_t",
    "St11align_val_tRKSt9nothrow_t",
];
/// What follows `_ZdlPv` and `_ZdaPv`: sized (`m`), nothrow, aligned.
const DELETE_FORMS: &[&str] = &[
    "",
    "m",
    "RKSt9nothrow_t",
    "St11align_val_t",
    "mSt11align_val_t",
    "St11align_val_tRKSt9nothrow_t",
];

/// What a name says, if it is that of an allocator function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) family: Family,
    pub(super) function: Function,
    /// How often programs call it: smaller is more often. Hit counters are few, and go to the first.
    pub(super) rank: usize,
}

/// What a symbol's name says.
pub(super) fn meaning(name: &[u8]) -> Option<Meaning> {
    let name = str::from_utf8(name).ok()?;
    let with = |family, found: Option<(usize, Function)>| {
        let (rank, function) = found?;
        Some(Meaning {
            family,
            function,
            rank,
        })
    };
    let internal = || find(GLIBC_INTERNAL, name).map(|(rank, function)| (rank + C.len(), function));
    with(Family::C, find(C, name).or_else(internal))
        .or_else(|| with(Family::CppOperators, cpp_operator(name)))
        .or_else(|| with(Family::Mimalloc, find(MIMALLOC, name.strip_prefix("mi_")?)))
        .or_else(|| with(Family::Tcmalloc, find(TCMALLOC, name.strip_prefix("tc_")?)))
        .or_else(|| {
            with(
                Family::Tcmalloc,
                find(TCMALLOC_INTERNAL, name.strip_prefix("TCMallocInternal")?),
            )
        })
        .or_else(|| {
            let base = JEMALLOC_PREFIXES
                .iter()
                .find_map(|prefix| name.strip_prefix(prefix))?;
            with(Family::PrefixedJemalloc, find(C, base))
        })
        .or_else(|| with(Family::Rust, rust(name)))
}

fn find(table: &[(&str, Function)], name: &str) -> Option<(usize, Function)> {
    table
        .iter()
        .enumerate()
        .find(|(_, (known, _))| *known == name)
        .map(|(rank, (_, function))| (rank, *function))
}

fn cpp_operator(name: &str) -> Option<(usize, Function)> {
    let forms = |prefixes: [&str; 2], forms: &[&str], function| {
        let rest = prefixes
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix))?;
        Some((forms.iter().position(|form| *form == rest)?, function))
    };
    forms(["_Znwm", "_Znam"], NEW_FORMS, Malloc)
        .or_else(|| forms(["_ZdlPv", "_ZdaPv"], DELETE_FORMS, Free))
}

/// `__rust_alloc`, or since Rust 1.87 the same in the v0 mangling of the pseudo crate `__rustc`:
/// `_RNvCs<disambiguator>_7___rustc12___rust_alloc` (an identifier is its length, `_` where it begins with one, and itself).
fn rust(name: &str) -> Option<(usize, Function)> {
    let plain = match name.strip_prefix("_RNvCs") {
        None => name,
        Some(mangled) => {
            let (_, identifier) = mangled.split_once("_7___rustc")?;
            let (length, identifier) = identifier.split_once('_')?;
            (length.parse() == Ok(identifier.len())).then_some(identifier)?
        }
    };
    let base = ["__rust_", "__rdl_", "__rg_"]
        .iter()
        .find_map(|prefix| plain.strip_prefix(prefix))?;
    find(RUST, base)
}

/// Names that say whose allocator a file holds, without being one of its functions.
pub(super) const MARKERS: &[&str] = &[
    // jemalloc's control interface, without a prefix.
    "mallctl",
    // glibc: its version function; the inner allocation function, where local symbols remain.
    "gnu_get_libc_version",
    "_int_malloc",
    // musl: stages of its dynamic loader; parts of its two allocators, where local symbols remain.
    "__dls2b",
    "__dls3",
    "__libc_malloc_impl",
    "__malloc_alloc_meta",
    "__malloc_context",
    "__malloc_donate",
    "__expand_heap",
    "__init_libc",
];

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let of =
            |name: &str| meaning(name.as_bytes()).map(|meaning| (meaning.family, meaning.function));
        assert_eq!(of("malloc"), Some((Family::C, Malloc)));
        assert_eq!(of("__libc_memalign"), Some((Family::C, AlignedAlloc)));
        assert_eq!(of("je_sdallocx"), Some((Family::PrefixedJemalloc, Free)));
        assert_eq!(
            of("_rjem_rallocx"),
            Some((Family::PrefixedJemalloc, Realloc))
        );
        assert_eq!(
            of("__rjem_posix_memalign"),
            Some((Family::PrefixedJemalloc, PosixMemalign))
        );
        assert_eq!(of("mi_heap_calloc"), Some((Family::Mimalloc, HeapCalloc)));
        assert_eq!(of("tc_newarray"), Some((Family::Tcmalloc, Malloc)));
        assert_eq!(
            of("_ZnwmSt11align_val_tRKSt9nothrow_t"),
            Some((Family::CppOperators, Malloc))
        );
        assert_eq!(
            of("_ZdaPvmSt11align_val_t"),
            Some((Family::CppOperators, Free))
        );
        assert_eq!(of("__rust_realloc"), Some((Family::Rust, RustRealloc)));
        assert_eq!(
            of("_RNvCsfLfy6EI15iL_7___rustc12___rust_alloc"),
            Some((Family::Rust, Malloc))
        );
        assert_eq!(
            of("_RNvCsfLfy6EI15iL_7___rustc11___rg_dealloc"),
            None,
            "the length is wrong"
        );
        assert_eq!(
            of("_RNvCsfLfy6EI15iL_7___rustc12___rg_dealloc"),
            Some((Family::Rust, Free))
        );
        for other in [
            "",
            "xmalloc",
            "malloc_default",
            "je_malloc_default",
            "mi_",
            "_Znwj",
            "_ZnwmPv",
            "free_all",
            "__rust_alloc_error_handler",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert!(meaning(b"mall\xffoc").is_none());
        assert!(meaning(b"malloc").unwrap().rank < meaning(b"valloc").unwrap().rank);
    }
}
