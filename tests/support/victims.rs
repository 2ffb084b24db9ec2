//! The table of victims, and how they are built.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine::missing;
use crate::process::python;

/// What a victim needs beside a C and a C++ compiler, or instead of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Needs {
    Nothing,
    Musl,
    Python,
    Rust,
    Go,
}

/// A victim: how one source is built.
#[derive(Clone, Copy, Debug, Hash)]
pub struct Program {
    /// The name of the built file.
    pub name: &'static str,
    /// What it is built with.
    pub compiler: &'static str,
    source: &'static str,
    flags: &'static [&'static str],
    /// Files that must lie beside it.
    beside: &'static [&'static str],
    pub(crate) needs: Needs,
}

impl Program {
    /// The path of its source.
    #[must_use]
    pub fn source(&self) -> PathBuf {
        programs_folder().join(self.source)
    }
}

/// Frame pointers and line numbers: stacks that any unwinder can walk as far as the victim's own code goes.
const POINTERS: &[&str] = &[
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-mno-omit-leaf-frame-pointer",
];
/// As distributions build: no frame pointers.
const TABLES: &[&str] = &["-g", "-O2", "-fomit-frame-pointer"];

/// With threads.
const LOAD: &[&str] = &["-g", "-O1", "-fno-omit-frame-pointer", "-pthread"];

const fn c(name: &'static str, source: &'static str, flags: &'static [&'static str]) -> Program {
    Program {
        name,
        compiler: "cc",
        source,
        flags,
        beside: &[],
        needs: Needs::Nothing,
    }
}

/// `basic.c` with musl as its libc.
const fn musl(name: &'static str, flags: &'static [&'static str]) -> Program {
    Program {
        name,
        compiler: "musl-gcc",
        source: "basic.c",
        flags,
        beside: &[],
        needs: Needs::Musl,
    }
}

/// The Go program whose heap and goroutines are looked at, built one way.
const fn entries(name: &'static str, flags: &'static [&'static str]) -> Program {
    Program {
        name,
        compiler: "go",
        source: "entries.go",
        flags,
        beside: &[],
        needs: Needs::Go,
    }
}

/// The Go program that keeps no profile of its heap, built one way.
const fn kept(name: &'static str, flags: &'static [&'static str]) -> Program {
    Program {
        source: "kept.go",
        ..entries(name, flags)
    }
}

const fn rust(name: &'static str, flags: &'static [&'static str]) -> Program {
    Program {
        name,
        compiler: "rustc",
        source: "rust.rs",
        flags,
        beside: &[],
        needs: Needs::Rust,
    }
}

/// Every victim. Names with `-omit` have no frame pointers.
const PROGRAMS: &[Program] = &[
    c("kinds", "kinds.c", POINTERS),
    c("kinds-omit", "kinds.c", TABLES),
    c("mappings", "mappings.c", POINTERS),
    c("segments", "segments.c", POINTERS),
    c("pages", "pages.c", POINTERS),
    c("pages-omit", "pages.c", TABLES),
    c("hugepages", "hugepages.c", POINTERS),
    c("stackpages", "stackpages.c", POINTERS),
    c("remap", "remap.c", POINTERS),
    c("arenas", "arenas.c", POINTERS),
    c("arenas-omit", "arenas.c", TABLES),
    c("threads", "threads.c", POINTERS),
    c("threads-omit", "threads.c", TABLES),
    c("deep", "deep.c", POINTERS),
    c("deep-omit", "deep.c", TABLES),
    c("churn", "churn.c", POINTERS),
    c("demo", "demo.c", POINTERS),
    c("many", "many.c", POINTERS),
    c("short", "short.c", POINTERS),
    c("lost", "lost.c", LOAD),
    c("one", "one.c", TABLES),
    c("exec", "exec.c", POINTERS),
    c("fork", "fork.c", POINTERS),
    c("vfork", "vfork.c", POINTERS),
    c("family", "family.c", POINTERS),
    c("basic", "basic.c", POINTERS),
    c("renamed", "renamed.c", POINTERS),
    c("hostile", "hostile.c", POINTERS),
    c("liar", "liar.c", LOAD),
    c("liar_go", "liar_go.c", POINTERS),
    c("stuck", "stuck.c", LOAD),
    c("fill_up", "fill_up.c", POINTERS),
    c("basic-stripped", "basic.c", &["-O1", "-static", "-s"]),
    c(
        "basic-nopie",
        "basic.c",
        &[
            "-g",
            "-O1",
            "-fno-omit-frame-pointer",
            "-no-pie",
            "-fno-pie",
        ],
    ),
    c(
        "basic-static",
        "basic.c",
        &["-g", "-O1", "-fno-omit-frame-pointer", "-static"],
    ),
    c(
        "basic-static-pie",
        "basic.c",
        &[
            "-g",
            "-O1",
            "-fno-omit-frame-pointer",
            "-static-pie",
            "-fPIE",
        ],
    ),
    musl("basic-musl", POINTERS),
    c("basic-omit", "basic.c", TABLES),
    c(
        "basic-omit-nopie",
        "basic.c",
        &["-g", "-O2", "-fomit-frame-pointer", "-no-pie", "-fno-pie"],
    ),
    c(
        "basic-omit-static",
        "basic.c",
        &["-g", "-O2", "-fomit-frame-pointer", "-static"],
    ),
    c(
        "basic-omit-static-pie",
        "basic.c",
        &["-g", "-O2", "-fomit-frame-pointer", "-static-pie", "-fPIE"],
    ),
    musl("basic-omit-musl", TABLES),
    musl(
        "basic-omit-musl-static",
        &["-g", "-O2", "-fomit-frame-pointer", "-static"],
    ),
    c(
        "basic-omit-stripped",
        "basic.c",
        &["-O2", "-fomit-frame-pointer", "-s"],
    ),
    Program {
        compiler: "c++",
        ..c(
            "cpp-omit-stripped",
            "cpp.cpp",
            &[
                "-O2",
                "-fomit-frame-pointer",
                "-fno-optimize-sibling-calls",
                "-rdynamic",
                "-s",
            ],
        )
    },
    Program {
        compiler: "c++",
        ..c("cold-omit", "cold.cpp", TABLES)
    },
    Program {
        compiler: "c++",
        ..c("containers-omit", "containers.cpp", TABLES)
    },
    Program {
        compiler: "c++",
        ..c("sessions", "sessions.cpp", LOAD)
    },
    c("records", "records.c", POINTERS),
    c("cached", "cached.c", LOAD),
    Program {
        compiler: "c++",
        ..c("fragments", "fragments.cpp", LOAD)
    },
    c("clone-omit", "clone.c", TABLES),
    c(
        "libplugin-omit.so",
        "plugin.c",
        &["-g", "-O2", "-fomit-frame-pointer", "-shared", "-fPIC"],
    ),
    Program {
        beside: &["libplugin-omit.so"],
        ..c(
            "dlopen-omit",
            "dlopen.c",
            &[
                "-g",
                "-O2",
                "-fomit-frame-pointer",
                "-DPLUGIN=\"libplugin-omit.so\"",
            ],
        )
    },
    Program {
        beside: &["libplugin-omit.so"],
        ..c("busy", "busy.c", TABLES)
    },
    rust("rust", &["-g", "-O"]),
    Program {
        source: "shapes.rs",
        ..rust("shapes", &["-O"])
    },
    Program {
        source: "shapes.rs",
        ..rust("shapes-v0", &["-O", "-Csymbol-mangling-version=v0"])
    },
    rust("rust-v0-no-debug", &["-O", "-Csymbol-mangling-version=v0"]),
    Program {
        name: "cgo",
        compiler: "go",
        source: "cgo.go",
        flags: &[],
        beside: &[],
        needs: Needs::Go,
    },
    Program {
        name: "hoard",
        compiler: "go",
        source: "hoard.go",
        flags: &[],
        beside: &[],
        needs: Needs::Go,
    },
    kept("kept-stripped", &["-ldflags=-s -w"]),
    kept("kept-pie", &["-buildmode=pie", "-ldflags=-s -w"]),
    entries("entries", &[]),
    entries("entries-stripped", &["-ldflags=-s -w"]),
    entries("entries-pie", &["-buildmode=pie", "-ldflags=-s -w"]),
    c("realloc_race", "realloc_race.c", POINTERS),
    c("crowd", "crowd.c", POINTERS),
    c("library", "library.c", POINTERS),
    c("library-omit", "library.c", TABLES),
    c("signal", "signal.c", POINTERS),
    c("longjmp", "longjmp.c", POINTERS),
    c("kernel_leak", "kernel_leak.c", POINTERS),
    c("load", "load.c", LOAD),
    c("load_threads", "load_threads.c", LOAD),
    c("endless", "endless.c", POINTERS),
    c(
        "behaviours",
        "behaviours.c",
        &[
            "-g",
            "-O1",
            "-fno-omit-frame-pointer",
            "-mno-omit-leaf-frame-pointer",
            "-Wl,--no-as-needed",
            "-lm",
        ],
    ),
    c(
        "backtrace",
        "backtrace.c",
        &["-g", "-O1", "-fno-omit-frame-pointer", "-rdynamic"],
    ),
    c(
        "backtrace-omit",
        "backtrace.c",
        &["-g", "-O2", "-fomit-frame-pointer", "-rdynamic"],
    ),
    c(
        "backtrace-many",
        "backtrace.c",
        &[
            "-g",
            "-O2",
            "-fomit-frame-pointer",
            "-rdynamic",
            "-DWALKS=100000",
            "-DDEEPEST=7",
        ],
    ),
    c(
        "libplugin.so",
        "plugin.c",
        &["-g", "-O1", "-fno-omit-frame-pointer", "-shared", "-fPIC"],
    ),
    Program {
        beside: &["libplugin.so"],
        ..c("dlopen", "dlopen.c", POINTERS)
    },
    c(
        "bare",
        "bare.c",
        &[
            "-O1",
            "-nostdlib",
            "-static",
            "-fno-stack-protector",
            "-no-pie",
            "-fno-pie",
        ],
    ),
    Program {
        compiler: "c++",
        ..c("losing", "losing.cpp", &["-g", "-O1", "-pthread"])
    },
    Program {
        compiler: "c++",
        ..c(
            "cpp",
            "cpp.cpp",
            &[
                "-g",
                "-O2",
                "-fno-omit-frame-pointer",
                "-fno-optimize-sibling-calls",
            ],
        )
    },
    Program {
        compiler: "c++",
        ..c(
            "cpp-omit",
            "cpp.cpp",
            &[
                "-g",
                "-O2",
                "-fomit-frame-pointer",
                "-fno-optimize-sibling-calls",
            ],
        )
    },
    Program {
        name: "leakext.so",
        compiler: "cc",
        source: "leakext.c",
        flags: &["-g", "-O2", "-fomit-frame-pointer", "-shared", "-fPIC"],
        beside: &[],
        needs: Needs::Python,
    },
];

/// Every victim that there is.
#[must_use]
pub fn programs() -> &'static [Program] {
    PROGRAMS
}

pub(crate) fn find_program(name: &str) -> Result<&'static Program> {
    PROGRAMS
        .iter()
        .find(|program| program.name == name)
        .with_context(|| format!("there is no victim named {name}"))
}

/// The folder of the victims' sources.
pub(crate) fn programs_folder() -> PathBuf {
    // Where the victims are prebuilt the sources may be elsewhere too: they lie beside them then.
    match prebuilt_folder() {
        Some(folder) => folder,
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("programs"),
    }
}

/// The folder that `LEAKSCOPE_VICTIMS` names.
pub(crate) fn prebuilt_folder() -> Option<PathBuf> {
    env::var_os("LEAKSCOPE_VICTIMS").map(PathBuf::from)
}

/// The folder of cargo's profile in which this very program lies, as `target/debug`.
pub(crate) fn profile_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("the path of the running test")?;
    let folder = own.parent().context("the folder of the running test")?;
    let folder = match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().context("the folder above deps")?,
        _ => folder,
    };
    Ok(folder.to_owned())
}

/// The path of a victim: prebuilt, built before from the same sources by the same commands, or built now.
///
/// # Errors
/// When there is no such victim or the compiler fails.
pub fn victim(name: &str) -> Result<PathBuf> {
    let program = find_program(name)?;
    if let Some(folder) = prebuilt_folder() {
        return Ok(folder.join(name));
    }
    let profile = profile_folder()?;
    let target = profile.parent().context("the target folder")?;
    let folder = target
        .join("victims")
        .join(format!("{:016x}", fingerprint()?));
    for beside in program.beside {
        build(find_program(beside)?, &folder)?;
    }
    build(program, &folder)
}

/// Copies every victim that can be built here into a folder, with what they need at run time. Says which were left out and why.
///
/// # Errors
/// When a compiler fails.
pub fn build_all(folder: &Path) -> Result<Vec<(&'static str, String)>> {
    if prebuilt_folder().is_some() {
        bail!(
            "LEAKSCOPE_VICTIMS is set: the victims would be looked for there, not built; unset it"
        );
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let mut left_out = Vec::new();
    for program in PROGRAMS {
        match missing(program.name) {
            Some(reason) => left_out.push((program.name, reason)),
            None => {
                let built = victim(program.name)?;
                fs::copy(&built, folder.join(program.name))
                    .with_context(|| format!("copying {}", built.display()))?;
            }
        }
    }
    fs::copy(programs_folder().join("pyext.py"), folder.join("pyext.py"))
        .context("copying pyext.py")?;
    Ok(left_out)
}

/// Changes when a source or a command of the table does.
fn fingerprint() -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    PROGRAMS.hash(&mut hasher);
    let mut paths: Vec<PathBuf> = fs::read_dir(programs_folder())?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        if path
            .extension()
            .is_some_and(|kind| ["c", "cpp", "h", "rs", "go"].iter().any(|of| kind == *of))
        {
            path.file_name().hash(&mut hasher);
            fs::read(&path)?.hash(&mut hasher);
        }
    }
    Ok(hasher.finish())
}

fn build(program: &Program, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(program.name);
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // Built aside and moved into place, so that tests that need the same victim at once do not disturb each other.
    let aside = tempfile::Builder::new()
        .prefix(".build-")
        .tempdir_in(folder)?;
    let output = aside.path().join(program.name);
    let mut command = Command::new(program.compiler);
    match program.needs {
        Needs::Rust => drop(command.arg("--edition=2021")),
        Needs::Go => {
            // Nothing is fetched, and nothing is written but beside the program.
            command.arg("build").env("CGO_ENABLED", "1");
            command.env("GO111MODULE", "off");
            command.env("GOCACHE", folder.join(".go-cache"));
        }
        // Without builtins a pair of malloc and free is not optimized away.
        _ => drop(command.args(["-Wall", "-Wextra", "-fno-builtin", "-pthread"])),
    }
    command.args(program.flags).arg("-o").arg(&output);
    if program.needs == Needs::Python {
        command.arg("-I").arg(python()?.include);
    }
    command.arg(programs_folder().join(program.source));
    let built = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if !built.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&built.stderr));
    }
    fs::rename(&output, &path).with_context(|| format!("moving {} into place", path.display()))?;
    Ok(path)
}
