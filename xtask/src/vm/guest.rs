//! What runs inside: the first program, the kernel tests and the programs that they trace.

use super::boot::{Machine, boot};
use super::results::Results;
use super::tree::Tree;
use super::victims;
use crate::bpf::verified::{Measured, WAYS, WORDS};
use crate::shell::{self, command, root};
use crate::test::{BINARY, List, REQUIRE_KERNEL, Suite, Test, required};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// With this begins a line of the guest that is for us and not for people.
pub(super) const MARK: &str = "##leakscope";

/// Where leakscope, the tests and their programs lie in the guest.
const HOME: &str = "/opt/leakscope";

/// The dynamic loader of musl programs, which is its C library too.
const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";

/// What the kernel says of itself when it is in trouble: BUG(), WARN_ON(), the lock and memory checkers, a bad access.
const TROUBLE: [&str; 6] = [
    "BUG:",
    "WARNING: CPU",
    "WARNING: possible",
    "Oops:",
    "general protection fault",
    "Kernel panic",
];

/// A test target, and which of its tests are run.
struct Binary {
    path: PathBuf,
    tests: Vec<String>,
}

/// An initramfs and what is in it.
pub(super) struct Guest {
    initramfs: PathBuf,
    tests: usize,
}

/// Builds leakscope, the tests and the programs they trace, and packs them. The tests are those of `tests/guests.txt`, or all kernel
/// tests with one of the words in their names.
///
/// # Errors
/// When something cannot be built or is missing.
pub(super) fn prepare(words: &[String]) -> Result<Guest> {
    let suite = Suite::build()?;
    let mut tests = suite.tests(words)?;
    if words.is_empty() {
        let list = List::read("guests")?;
        list.check(&tests)?;
        tests.retain(|test| list.has(test));
    } else {
        tests.retain(|test| test.binary.starts_with("kernel_"));
    }
    let mut binaries: BTreeMap<String, Binary> = BTreeMap::new();
    for Test {
        binary, name, path, ..
    } in tests
    {
        let binary = binaries.entry(binary).or_insert_with(|| Binary {
            path,
            tests: Vec::new(),
        });
        binary.tests.push(name);
    }
    if binaries.is_empty() {
        bail!("there are no such tests");
    }
    let victims = victims::build(&suite.victims)?;
    let work = shell::target_dir().join("vm/programs");
    shell::make_dir(&work)?;

    let mut tree = base()?;
    tree.program(
        &slim(&suite.leakscope, &work)?,
        &format!("{HOME}/leakscope"),
    )?;
    for (name, binary) in &binaries {
        tree.program(&slim(&binary.path, &work)?, &format!("{HOME}/tests/{name}"))?;
    }
    for victim in &victims {
        let name = victim.file_name().unwrap_or_default().to_string_lossy();
        tree.program(victim, &format!("{HOME}/victims/{name}"))?;
    }
    // ldd says nothing of programs for another loader than its own.
    if Path::new(MUSL_LOADER).exists() {
        tree.own(Path::new(MUSL_LOADER))?;
    }
    if victims
        .iter()
        .any(|victim| victim.ends_with(victims::EXTENSION))
    {
        victims::add_python(&mut tree)?;
    }
    // For tests that let calls to the kernel fail.
    if let Some(strace) = shell::find_program("strace") {
        tree.own(&strace)?;
    }
    // Tests run where cargo would run them.
    let package = root().join("tests");
    tree.directory(&package.to_string_lossy());
    tree.content("/init", init(&binaries, &package, ""), 0o755);
    let initramfs = shell::target_dir().join("vm/initramfs.cpio");
    tree.write(&initramfs)?;
    let tests = binaries.values().map(|binary| binary.tests.len()).sum();
    println!(
        "the guest: {} tests, {} programs to trace, {} MiB",
        tests,
        victims.len(),
        fs::metadata(&initramfs)?.len() >> 20
    );
    Ok(Guest { initramfs, tests })
}

/// leakscope alone, for what the verifier says.
///
/// # Errors
/// As [`prepare`].
pub(super) fn prepare_bare(binary: &Path) -> Result<Guest> {
    let work = shell::target_dir().join("vm/programs");
    shell::make_dir(&work)?;
    let mut tree = base()?;
    tree.program(&slim(binary, &work)?, &format!("{HOME}/leakscope"))?;
    tree.content("/init", init(&BTreeMap::new(), Path::new("/"), ""), 0o755);
    let initramfs = shell::target_dir().join("vm/bare.cpio");
    tree.write(&initramfs)?;
    Ok(Guest {
        initramfs,
        tests: 0,
    })
}

/// What is tried of a binary that has nothing beside it: a function of the first program for each.
const SMOKE: &str = include_str!("smoke.sh");

/// A binary as it is shipped, and what it is tried with: busybox, and a shell that it can trace.
///
/// # Errors
/// As [`prepare`].
pub(super) fn prepare_smoke(binary: &Path) -> Result<Guest> {
    let mut tree = base()?;
    tree.program(binary, &format!("{HOME}/leakscope"))?;
    let names: Vec<&str> = SMOKE
        .lines()
        .filter_map(|line| line.strip_suffix("() {"))
        // It looks at what the others wrote.
        .filter(|name| *name != "holds")
        .collect();
    let rest = format!(
        "{SMOKE}\nfor name in {}; do\n\
         echo; echo \"{MARK} begin smoke $name\"\n\
         $name {HOME}/leakscope\n\
         status=$?\n\
         echo; echo \"{MARK} end smoke $name $status\"\n\
         done\n",
        names.join(" ")
    );
    tree.content(
        "/init",
        init(&BTreeMap::new(), Path::new("/"), &rest),
        0o755,
    );
    let initramfs = shell::target_dir().join("vm/smoke.cpio");
    tree.write(&initramfs)?;
    Ok(Guest {
        initramfs,
        tests: names.len(),
    })
}

/// Runs the tests on one machine and shows their output line by line; gives what the verifier walked, if the machine came so far,
/// and what is to be complained of.
///
/// # Errors
/// When QEMU cannot be started or the console's log cannot be read.
pub(super) fn run(
    guest: &Guest,
    machine: &Machine,
    timeout: Duration,
    show: &dyn Fn(&str),
) -> Result<(Option<Measured>, Vec<String>)> {
    let mut results = Results::default();
    let end = boot(machine, &guest.initramfs, timeout, &mut |line| {
        if let Some(text) = results.heed(line) {
            show(&text);
        }
    })?;
    for text in results.again() {
        show(&text);
    }
    let mut complaints = results.complaints(guest.tests, &end, timeout);
    if !results.skipped.is_empty() {
        show(&format!(
            "--- {} SKIPPED, so nothing is known of them:",
            results.skipped.len()
        ));
        for reason in &results.skipped {
            show(reason);
        }
        if required() {
            complaints.push(format!("{REQUIRE_KERNEL}=1, and tests were skipped"));
        }
    }
    let console = String::from_utf8_lossy(&shell::read(&machine.console)?).into_owned();
    let trouble: Vec<&str> = console
        .lines()
        .filter(|line| TROUBLE.iter().any(|word| line.contains(word)))
        .collect();
    if let Some(first) = trouble.first() {
        complaints.push(format!(
            "the kernel complains in {} lines, first: {}",
            trouble.len(),
            first.trim_end()
        ));
    }
    if !complaints.is_empty() {
        show("--- the end of the kernel's log");
        let lines: Vec<&str> = console.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(40)) {
            show(line.trim_end());
        }
    }
    let measured = results.measured();
    Ok((measured, complaints))
}

/// Whether the machine gets as far as its first program.
///
/// # Errors
/// As [`run`].
pub(super) fn boots(machine: &Machine, timeout: Duration) -> Result<bool> {
    let mut tree = base()?;
    tree.content("/init", init(&BTreeMap::new(), Path::new("/"), ""), 0o755);
    let initramfs = machine.console.with_extension("cpio");
    tree.write(&initramfs)?;
    let mut results = Results::default();
    boot(machine, &initramfs, timeout, &mut |line| {
        results.heed(line);
    })?;
    Ok(results.is_done())
}

/// A root with busybox as its tools, and libraries that are loaded by name only.
fn base() -> Result<Tree> {
    let busybox = ["busybox", "busybox-static"]
        .into_iter()
        .filter_map(shell::find_program)
        .chain(Some(PathBuf::from("/bin/busybox")))
        .find(|file| file.is_file())
        .context("no busybox (Debian: apt-get install busybox-static)")?;
    let mut tree = Tree::new();
    tree.program(&busybox, "/usr/bin/busybox")?;
    let applets = shell::capture(command(&busybox).arg("--list"))?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        tree.link(&format!("/usr/bin/{applet}"), "busybox");
    }
    // Tests trace the shell too: busybox goes by the name that it is called by, and is linked statically.
    let shell = Path::new("/bin/dash");
    if shell.exists() {
        tree.program(shell, "/usr/bin/sh")?;
    }
    // pthread_cancel(3) and panics load it when they need it.
    let unwinder = Path::new("/lib/x86_64-linux-gnu/libgcc_s.so.1");
    if unwinder.exists() {
        tree.own(unwinder)?;
    }
    tree.content(
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        0o644,
    );
    tree.content("/etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644);
    tree.content("/etc/hosts", "127.0.0.1 localhost\n", 0o644);
    for dir in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/var"] {
        tree.directory(dir);
    }
    Ok(tree)
}

/// The first program: mounts, runs the tests one after the other and the rest, switches the machine off. tracefs stays unmounted.
fn init(binaries: &BTreeMap<String, Binary>, package: &Path, rest: &str) -> String {
    let mut script = format!(
        "#!/usr/bin/busybox sh\n\
         export PATH=/usr/bin:/usr/sbin HOME=/root TERM=dumb RUST_BACKTRACE=0\n\
         export {REQUIRE_KERNEL}={} {BINARY}={HOME}/leakscope {}={HOME}/victims\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs devtmpfs /dev\n\
         mkdir -p /dev/pts /dev/shm\n\
         mount -t devpts devpts /dev/pts\n\
         mount -t tmpfs tmpfs /dev/shm\n\
         mount -t tmpfs tmpfs /tmp\n\
         mount -t tmpfs tmpfs /run\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         ip link set lo up\n\
         exec </dev/null >/dev/ttyS1 2>&1\n\
         cd {}\n\
         echo; echo \"{MARK} kernel $(uname -r)\"\n",
        u8::from(required()),
        victims::VARIABLE,
        quote(&package.to_string_lossy()),
    );
    // A kind of link that the kernel lacks gives no line. Where the probe is refused, doctor says why.
    script.push_str(&format!(
        "for way in {}; do\n\
         {HOME}/leakscope doctor $way >/tmp/said 2>&1\n\
         grep -q '{WORDS}' /tmp/said || [ -n \"$way\" ] || cat /tmp/said\n\
         sed -n 's/.*{WORDS}/{MARK} verified &/p' /tmp/said\n\
         done\n",
        WAYS.map(quote).join(" ")
    ));
    // One test at a time: under emulation two would only wait for each other, and the one that hangs is known. Emulated, and beside
    // another guest, each runs a hundred times slower than it should, and unevenly: what fails once is tried once more, and told of.
    script.push_str(&format!(
        "try() {{\n\
         echo; echo \"{MARK} begin $1 $2\"\n\
         {HOME}/tests/$1 --exact $2\n\
         status=$?\n\
         echo; echo \"{MARK} end $1 $2 $status\"\n\
         return $status\n\
         }}\n"
    ));
    for (binary, tests) in binaries.iter().map(|(name, binary)| (name, &binary.tests)) {
        for test in tests {
            let (binary, test) = (quote(binary), quote(test));
            script.push_str(&format!("try {binary} {test} || try {binary} {test}\n"));
        }
    }
    script.push_str(rest);
    script.push_str(&format!("echo '{MARK} done'\nsync\npoweroff -f\n"));
    script
}

/// A word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A copy without debug information: the archive lies in the guest's memory.
fn slim(program: &Path, dir: &Path) -> Result<PathBuf> {
    let name = program.file_name().context("a program without a name")?;
    let copy = dir.join(name);
    shell::run(
        command("strip")
            .args(["--strip-debug", "-o"])
            .arg(&copy)
            .arg(program),
    )
    .context("strip is part of binutils, as the linker is")?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "a test")]

    use super::{Binary, init, quote};
    use std::collections::BTreeMap;
    use std::path::Path;

    #[test]
    fn the_first_program_is_valid_shell() {
        let binary = Binary {
            path: "/nowhere".into(),
            tests: vec!["it's".into()],
        };
        let script = init(
            &BTreeMap::from([("a".into(), binary)]),
            Path::new("/some where"),
            super::SMOKE,
        );
        let checked = std::process::Command::new("sh")
            .args(["-n", "-c", &script])
            .status();
        match checked {
            Ok(status) => assert!(status.success(), "{script}"),
            Err(error) => panic!("no sh: {error}"),
        }
        assert_eq!(quote("it's"), "'it'\\''s'");
    }
}
