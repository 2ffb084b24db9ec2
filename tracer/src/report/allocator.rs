//! Which functions are the allocator itself, as opposed to its callers, and which are a language's own.
//!
//! Owns the names by which frames are folded away. Knows nothing of how allocators are found or probed.

use std::borrow::Cow;

use super::model::{Frame, FrameKind};

/// The C entry points (ISO C 7.24.3, POSIX, `malloc.h` of glibc), and what glibc's `malloc/malloc.c` calls below
/// them.
const C_ENTRIES: [&str; 18] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    "_mid_memalign",
    "sysmalloc",
    "cfree",
    // What jemalloc's entries are made of (src/jemalloc.c).
    "imalloc_fastpath",
    "imalloc",
    "malloc_default",
];

/// What makes mappings and threads' stacks in the C library, with the names that glibc has for them inside.
const MAPPERS: [&str; 15] = [
    "mmap",
    "mmap64",
    "mremap",
    "brk",
    "sbrk",
    "shmat",
    "__mmap",
    "__mmap64",
    "__mremap",
    "__brk",
    "__sbrk",
    "__shmat",
    "allocate_stack",
    "pthread_create",
    "__pthread_create_2_1",
];

/// What implementations put before the C names: glibc's aliases, jemalloc (by itself and within Rust's), gperftools and mimalloc.
const C_PREFIXES: [&str; 9] = [
    "__GI___libc_",
    "__GI___",
    "__GI_",
    "__libc_",
    "_rjem_je_",
    "_rjem_",
    "je_",
    "tc_",
    "mi_",
];

/// Rust's allocator shims and the functions of `alloc::alloc` that lead to them.
const RUST_ENTRIES: [&str; 18] = [
    "__rust_alloc",
    "__rust_alloc_zeroed",
    "__rust_realloc",
    "__rdl_alloc",
    "__rdl_alloc_zeroed",
    "__rdl_realloc",
    "__rg_alloc",
    "__rg_alloc_zeroed",
    "__rg_realloc",
    "alloc::alloc::alloc",
    "alloc::alloc::alloc_zeroed",
    "alloc::alloc::realloc",
    "alloc::alloc::exchange_malloc",
    "alloc::alloc::Global::alloc_impl",
    "alloc::alloc::Global::alloc_impl_runtime",
    "alloc::alloc::Global::grow_impl",
    "alloc::alloc::Global::grow_impl_runtime",
    "alloc::alloc::box_new_uninit",
];

/// The standard C++ allocators of libstdc++ and libc++, whose `allocate` only forwards to `operator new`.
const CXX_ALLOCATORS: [&str; 6] = [
    "std::allocator<",
    "std::allocator_traits<std::allocator<",
    "std::__new_allocator<",
    "__gnu_cxx::new_allocator<",
    "std::__1::allocator<",
    "std::__1::allocator_traits<std::__1::allocator<",
];

/// The regular expression by which pprof drops the same frames (`Profile.drop_frames`, matched against the whole
/// name without its parameters).
pub(super) const DROP_FRAMES: &str = r"(?:__GI___libc_|__GI___|__GI_|__libc_|_rjem_je_|_rjem_|je_|tc_|mi_)?(?:malloc|imalloc_fastpath|imalloc|malloc_default|calloc|realloc|reallocarray|posix_memalign|aligned_alloc|memalign|valloc|pvalloc|mmap|mmap64|mremap|sbrk|shmat)|__(?:mmap|mmap64|mremap|brk|sbrk|shmat)|__GI___brk|allocate_stack|(?:__)?pthread_create(?:_2_1)?|_int_malloc|_int_realloc|_int_memalign|_mid_memalign|sysmalloc|tc_new(?:array)?(?:_nothrow)?|operator new(?:\[\])?|_Zn[wa][jm].*|__(?:rust|rdl|rg)_(?:alloc|alloc_zeroed|realloc)|alloc::alloc::(?:alloc|alloc_zeroed|realloc|exchange_malloc|box_new_uninit|Global::.*)";

/// What programs and libraries allocate through, by the beginnings of their names: GLib, APR, nginx, Redis, PostgreSQL (src/backend/utils/mmgr), GNU's
/// xmalloc and obstacks, Ruby, PHP, Perl, OpenSSL. They call others' sites by no name of their own.
const ALLOCATING: [&str; 23] = [
    "g_malloc",
    "g_realloc",
    "g_slice_alloc",
    "apr_palloc",
    "apr_pcalloc",
    "ngx_alloc",
    "ngx_palloc",
    "ngx_pcalloc",
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "ztrymalloc",
    "palloc",
    "repalloc",
    "MemoryContextAlloc",
    "AllocSet",
    "xmalloc",
    "xcalloc",
    "xrealloc",
    "ruby_x",
    "_emalloc",
    "Perl_safesys",
    "CRYPTO_",
];

/// Whether a function does nothing but allocate for its callers.
pub(super) fn allocates_for_others(function: &str) -> bool {
    ALLOCATING
        .iter()
        .any(|beginning| function.starts_with(beginning))
}

/// Whether a frame is in a function of an allocator, or of what maps in its place.
pub(crate) fn is_allocator(frame: &Frame) -> bool {
    frame.function.as_deref().and_then(entry_name).is_some()
}

/// The short name of an allocator's function, or of one that maps; `None` for any other function.
pub(super) fn entry_name(function: &str) -> Option<Cow<'_, str>> {
    c_entry(function)
        .map(Cow::Borrowed)
        .or_else(|| cxx_entry(function).map(Cow::Borrowed))
        .or_else(|| rust_entry(function))
}

fn c_entry(function: &str) -> Option<&str> {
    // `malloc@@GLIBC_2.2.5`, `malloc@plt`, `realloc.part.0`.
    let name = function
        .split_once(['@', '.'])
        .map_or(function, |(name, _)| name);
    let name = C_PREFIXES
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    (C_ENTRIES.contains(&name) || MAPPERS.contains(&name)).then_some(name)
}

fn cxx_entry(function: &str) -> Option<&'static str> {
    // gperftools' operators (src/tcmalloc.cc).
    match function {
        "tc_new" | "tc_new_nothrow" => return Some("operator new"),
        "tc_newarray" | "tc_newarray_nothrow" => return Some("operator new[]"),
        _ => {}
    }
    if let Some(rest) = function.strip_prefix("operator new") {
        return match rest.strip_prefix("[]") {
            Some(rest) if rest.is_empty() || rest.starts_with('(') => Some("operator new[]"),
            None if rest.is_empty() || rest.starts_with('(') => Some("operator new"),
            _ => None,
        };
    }
    // Itanium C++ ABI, 5.1.3: `nw` is operator new, `na` operator new[]; the parameter is unsigned int or long.
    for (mangled, name) in [("_Znw", "operator new"), ("_Zna", "operator new[]")] {
        if function
            .strip_prefix(mangled)
            .is_some_and(|rest| rest.starts_with(['j', 'm']))
        {
            return Some(name);
        }
    }
    // Templates may be demangled with a return type in front.
    let before_parameters = function
        .split_once(">::allocate(")
        .map(|(class, _)| class)
        .or_else(|| function.strip_suffix(">::allocate"))?;
    CXX_ALLOCATORS
        .iter()
        .any(|allocator| before_parameters.starts_with(allocator))
        .then_some("std::allocator::allocate")
}

fn rust_entry(function: &str) -> Option<Cow<'_, str>> {
    let name = strip_rust_hash(function);
    if RUST_ENTRIES.contains(&name) {
        return Some(Cow::Borrowed(name));
    }
    if let Some(method) = name
        .strip_prefix("<alloc::alloc::Global as core::alloc::Allocator>::")
        .or_else(|| name.strip_prefix("<std::alloc::System as core::alloc::global::GlobalAlloc>::"))
    {
        return Some(Cow::Borrowed(method));
    }
    let (_, method) = name.split_once("GlobalAlloc for std::alloc::System>::")?;
    name.starts_with("std::sys::")
        .then(|| format!("std::alloc::System::{method}").into())
}

/// Rust's legacy mangling ends in `::h` and 16 hexadecimal digits.
fn strip_rust_hash(function: &str) -> &str {
    match function.rsplit_once("::h") {
        Some((name, hash))
            if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            name
        }
        _ => function,
    }
}

/// How functions of the standard libraries of Rust and C++ begin.
const LIBRARIES: [&str; 7] = [
    "std::",
    "core::",
    "alloc::",
    "hashbrown::",
    "__gnu_cxx::",
    "__rust_begin_short_backtrace",
    "__rustc",
];

/// What starts a program or a thread: glibc, musl, Go.
const STARTERS: [&str; 9] = [
    "_start",
    "__libc_start_main",
    "__libc_start_call_main",
    "__libc_start_main_impl",
    "libc_start_main_stage2",
    "start_thread",
    "clone",
    "clone3",
    "__clone3",
];

/// Whether a function is of a language's library, or starts the program or a thread.
pub(super) fn is_of_language(function: &str, kind: FrameKind) -> bool {
    match kind {
        FrameKind::Go => return function.starts_with("runtime."),
        FrameKind::Native => {}
        FrameKind::Jit | FrameKind::Kernel | FrameKind::Python => return false,
    }
    let name = function.split_once('@').map_or(function, |(name, _)| name);
    if STARTERS.contains(&name) {
        return true;
    }
    // `<alloc::vec::Vec<T> as core::iter::Extend>::extend`; a template's return type stands before its name.
    let name = name.trim_start_matches('<');
    let name = ["void ", "auto ", "decltype(auto) "]
        .iter()
        .find_map(|kind| name.strip_prefix(kind))
        .unwrap_or(name);
    // `<u64 as core::fmt::Display>::fmt`, `<&dyn core::ops::Fn() as core::ops::FnOnce<()>>::call_once`: of a type that is no program's.
    let name = name
        .split_once(" as ")
        .filter(|(of, _)| !of.contains("::"))
        .map_or(name, |(_, of)| of);
    let name = name.trim_start_matches(['&', '*', '(', '[']);
    let name = name.strip_prefix("dyn ").unwrap_or(name);
    LIBRARIES.iter().any(|library| name.starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::super::model::FrameKind;
    use super::{entry_name, is_of_language};

    #[test]
    fn libraries_of_languages_are_told_from_programs() {
        for function in [
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "void std::vector<int>::_M_realloc_insert<int>(int&&)",
            "alloc::raw_vec::RawVec<T,A>::grow_one",
            "<alloc::vec::Vec<T> as core::clone::Clone>::clone",
            "std::rt::lang_start",
            "<u64 as core::fmt::Display>::fmt",
            "<&dyn core::ops::function::Fn() as core::ops::function::FnOnce<()>>::call_once",
            "__libc_start_main@@GLIBC_2.34",
        ] {
            assert!(is_of_language(function, FrameKind::Native), "{function}");
        }
        for function in [
            "main",
            "<app::Session as core::clone::Clone>::clone",
            "<&dyn app::Handler as core::fmt::Debug>::fmt",
            "app::std::thing",
            "strdup",
            "runtime.main",
        ] {
            assert!(!is_of_language(function, FrameKind::Native), "{function}");
        }
        assert!(is_of_language("runtime.main", FrameKind::Go));
        assert!(!is_of_language("std::x", FrameKind::Python));
    }

    #[test]
    fn allocators_are_known_by_all_their_names() {
        for (function, name) in [
            ("malloc", "malloc"),
            ("__libc_malloc", "malloc"),
            ("__GI___libc_malloc", "malloc"),
            ("malloc@@GLIBC_2.2.5", "malloc"),
            ("realloc.part.0", "realloc"),
            ("je_calloc", "calloc"),
            ("operator new(unsigned long)", "operator new"),
            (
                "operator new[](unsigned long, std::nothrow_t const&)",
                "operator new[]",
            ),
            ("operator new", "operator new"),
            ("_Znwm", "operator new"),
            ("__GI___mmap64", "mmap64"),
            ("mmap", "mmap"),
            ("__brk", "__brk"),
            ("pthread_create@@GLIBC_2.34", "pthread_create"),
            (
                "std::allocator<std::pair<int const, char> >::allocate(unsigned long)",
                "std::allocator::allocate",
            ),
            (
                "std::__new_allocator<int>::allocate(unsigned long, void const*)",
                "std::allocator::allocate",
            ),
            ("__rust_alloc", "__rust_alloc"),
            (
                "alloc::alloc::exchange_malloc::h0123456789abcdef",
                "alloc::alloc::exchange_malloc",
            ),
            (
                "std::sys::alloc::unix::<impl core::alloc::global::GlobalAlloc for std::alloc::System>::alloc",
                "std::alloc::System::alloc",
            ),
        ] {
            assert_eq!(entry_name(function).as_deref(), Some(name), "{function}");
        }
    }

    #[test]
    fn callers_are_not_allocators() {
        for function in [
            "",
            "my_malloc_wrapper",
            "xmalloc",
            "operator newish()",
            "Pool<int>::allocate(unsigned long)",
            "std::vector<int, std::allocator<int> >::push_back(int const&)",
            "strdup",
            "my_mmap",
            "main",
        ] {
            assert_eq!(entry_name(function), None, "{function}");
        }
    }
}
