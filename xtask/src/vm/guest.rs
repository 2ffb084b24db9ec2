//! What runs inside: the first program, the kernel tests, and how their results are told apart on the serial line.

use super::boot::{End, Machine, boot};
use super::tree::Tree;
use super::victims;
use crate::bpf::verified::{Counts, Measured, WAYS, WORDS, parse};
use crate::shell::{self, command, root};
use crate::test::{BINARY, List, REQUIRE_KERNEL, SKIPPED, Suite, Test, required};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// With this begins a line of the guest that is for us and not for people.
const MARK: &str = "##leakscope";

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
    tests: Vec<String>,
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
    tree.content("/init", init(&binaries, &package), 0o755);
    let initramfs = shell::target_dir().join("vm/initramfs.cpio");
    tree.write(&initramfs)?;
    println!(
        "the guest: {} tests, {} programs to trace, {} MiB",
        binaries
            .values()
            .map(|binary| binary.tests.len())
            .sum::<usize>(),
        victims.len(),
        fs::metadata(&initramfs)?.len() >> 20
    );
    Ok(Guest {
        initramfs,
        tests: binaries.into_keys().collect(),
    })
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
    tree.content("/init", init(&BTreeMap::new(), Path::new("/")), 0o755);
    let initramfs = shell::target_dir().join("vm/bare.cpio");
    tree.write(&initramfs)?;
    Ok(Guest {
        initramfs,
        tests: Vec::new(),
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
    let mut complaints = results.complaints(&guest.tests, &end, timeout);
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
    let counts = results.verified;
    let measured = results.kernel.map(|release| Measured { release, counts });
    Ok((measured, complaints))
}

/// Whether the machine gets as far as its first program.
///
/// # Errors
/// As [`run`].
pub(super) fn boots(machine: &Machine, timeout: Duration) -> Result<bool> {
    let mut tree = base()?;
    tree.content("/init", init(&BTreeMap::new(), Path::new("/")), 0o755);
    let initramfs = machine.console.with_extension("cpio");
    tree.write(&initramfs)?;
    let mut results = Results::default();
    boot(machine, &initramfs, timeout, &mut |line| {
        results.heed(line);
    })?;
    Ok(results.done)
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

/// The first program: mounts, runs the tests one after the other, switches the machine off. tracefs stays unmounted.
fn init(binaries: &BTreeMap<String, Binary>, package: &Path) -> String {
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
    for (test, binary) in binaries {
        let names: Vec<String> = binary.tests.iter().map(|name| quote(name)).collect();
        // One test at a time: under emulation two would only wait for each other, and the one that hangs is known.
        script.push_str(&format!(
            "echo; echo '{MARK} begin {test}'\n\
             {HOME}/tests/{test} --test-threads=1 --exact {}\n\
             status=$?\n\
             echo; echo \"{MARK} end {test} $status\"\n",
            names.join(" ")
        ));
    }
    script.push_str(&format!("echo '{MARK} done'\nsync\npoweroff -f\n"));
    script
}

/// A word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// What the guest reported so far.
#[derive(Default)]
struct Results {
    kernel: Option<String>,
    running: Option<String>,
    passed: Vec<String>,
    failed: Vec<String>,
    skipped: Vec<String>,
    verified: Counts,
    done: bool,
}

impl Results {
    /// Takes a line; gives what is to be shown for it.
    fn heed(&mut self, line: &str) -> Option<String> {
        let Some(words) = line.strip_prefix(MARK) else {
            if let Some((_, reason)) = line.split_once(SKIPPED) {
                self.skipped.push(reason.trim().to_owned());
            }
            return (!line.is_empty()).then(|| line.to_owned());
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        match words.as_slice() {
            ["kernel", release] => {
                self.kernel = Some((*release).to_owned());
                Some(format!("booted Linux {release}"))
            }
            ["verified", ..] => {
                self.verified.extend(parse(line));
                None
            }
            ["begin", name] => {
                self.running = Some((*name).to_owned());
                Some(format!("--- {name}"))
            }
            ["end", name, status] => {
                self.running = None;
                if *status == "0" {
                    self.passed.push((*name).to_owned());
                    None
                } else {
                    self.failed.push(format!("{name} (exit status {status})"));
                    Some(format!("--- {name}: FAILED, exit status {status}"))
                }
            }
            ["done"] => {
                self.done = true;
                None
            }
            _ => Some(line.to_owned()),
        }
    }

    /// What went wrong, if anything.
    fn complaints(&self, tests: &[String], end: &End, timeout: Duration) -> Vec<String> {
        let mut complaints: Vec<String> = self
            .failed
            .iter()
            .map(|name| format!("test program {name} failed"))
            .collect();
        if self.done {
            // Whatever is missing then, the guest's script is at fault.
            let run = self.passed.len() + self.failed.len();
            if run != tests.len() {
                complaints.push(format!("{run} of {} test programs ran", tests.len()));
            }
            return complaints;
        }
        let when = match (&self.kernel, &self.running) {
            (None, _) => "before its first program ran".to_owned(),
            (_, Some(test)) => format!("in test program {test}"),
            (_, None) => "between two test programs".to_owned(),
        };
        complaints.push(match end {
            End::TimedOut => format!("still running after {} s, {when}", timeout.as_secs()),
            End::Off => format!("the machine went off {when}"),
        });
        complaints
    }
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

    use super::{Binary, End, Results, init, quote};
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(9);

    fn complaints(lines: &[&str], end: &End) -> Vec<String> {
        let mut results = Results::default();
        for line in lines {
            results.heed(line);
        }
        results.complaints(&["a".into(), "b".into()], end, LIMIT)
    }

    #[test]
    fn everything_passed_is_no_complaint() {
        let lines = [
            "##leakscope kernel 6.1.0",
            "##leakscope begin a",
            "test x ... ok",
            "##leakscope end a 0",
            "##leakscope begin b",
            "##leakscope end b 0",
            "##leakscope done",
        ];
        assert_eq!(complaints(&lines, &End::Off), Vec::<String>::new());
    }

    #[test]
    fn failures_and_early_ends_are_complaints() {
        let failed = [
            "##leakscope kernel 6.1",
            "##leakscope begin a",
            "##leakscope end a 101",
            "##leakscope begin b",
        ];
        assert_eq!(
            complaints(&failed, &End::TimedOut),
            [
                "test program a (exit status 101) failed",
                "still running after 9 s, in test program b"
            ]
        );
        assert_eq!(
            complaints(&[], &End::Off),
            ["the machine went off before its first program ran"]
        );
        let incomplete = [
            "##leakscope kernel 6.1",
            "##leakscope begin a",
            "##leakscope end a 0",
            "##leakscope done",
        ];
        assert_eq!(
            complaints(&incomplete, &End::Off),
            ["1 of 2 test programs ran"]
        );
    }

    #[test]
    fn what_the_verifier_walked_is_collected() {
        let mut results = Results::default();
        for line in [
            "##leakscope verified   ok  probe  accepted; instructions verified: enter 5, exit 6",
            "##leakscope verified   ok  probe  accepted; instructions verified: release 7",
        ] {
            assert_eq!(results.heed(line), None);
        }
        assert_eq!(
            results.verified.into_iter().collect::<Vec<_>>(),
            [
                ("enter".to_owned(), 5),
                ("exit".to_owned(), 6),
                ("release".to_owned(), 7)
            ]
        );
    }

    #[test]
    fn what_was_skipped_is_collected() {
        let mut results = Results::default();
        results.heed("test a ... SKIPPED: no musl-gcc");
        assert_eq!(results.skipped, ["no musl-gcc"]);
    }

    #[test]
    fn the_first_program_is_valid_shell() {
        let binary = Binary {
            path: "/nowhere".into(),
            tests: vec!["it's".into()],
        };
        let script = init(
            &BTreeMap::from([("a".into(), binary)]),
            Path::new("/some where"),
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
