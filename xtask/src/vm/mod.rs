//! `test vm`: the kernel tests on other kernels, in QEMU.
//!
//! Per kernel: unpack Debian's package, pack an initramfs with leakscope, the kernel tests and the programs they trace, boot
//! it, and show what comes over the serial line as ordinary test results. Nothing is installed, nothing needs root.

mod apt;
mod archive;
mod boot;
mod guest;
mod kernel;
mod results;
mod tree;
mod victims;

use crate::bpf::verified::{Measured, Table};
use crate::shell;
use crate::test::share_machine;
use anyhow::{Context as _, Result, bail};
use boot::{Accelerator, End, Machine, boot};
use clap::{Args, ValueEnum};
use guest::Guest;
use kernel::Kernel;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tree::Tree;

/// What `test vm` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// A line of Debian's cloud kernels (6.1, 6.12, 7.3), or a vmlinuz, a .deb, or a directory one was unpacked to; may be repeated
    #[arg(long, default_values = LINES)]
    kernel: Vec<String>,
    /// Seconds that each kernel may take
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// How the processor is emulated
    #[arg(long, value_enum, default_value_t = Choice::Tcg)]
    accel: Choice,
    /// Words: all kernel tests with one of them in their names, and not those of tests/guests.txt
    #[arg(last = true)]
    words: Vec<String>,
}

/// How the processor is emulated.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// In software: slower, works everywhere
    Tcg,
    /// KVM if a trial boot with it succeeds within seconds, else software
    Auto,
}

/// How long a trial boot with KVM may take; where KVM works it takes a second.
const TRIAL: Duration = Duration::from_secs(15);

/// Runs the kernel tests on each kernel.
///
/// # Errors
/// When something is missing or cannot be built, a test fails, or a kernel does not finish in time.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let qemu = find_qemu()?;
    let kernels = arguments
        .kernel
        .iter()
        .map(|wish| Kernel::find(wish))
        .collect::<Result<Vec<_>>>()?;
    let guest = guest::prepare(&arguments.words)?;
    let _lock = share_machine()?;
    let outcomes = on_each(&kernels, |kernel| test(arguments, &qemu, kernel, &guest));
    let mut failures = Vec::new();
    for (kernel, outcome) in kernels.iter().zip(outcomes) {
        let complaints = match outcome {
            Ok(complaints) => complaints,
            Err(error) => vec![format!("{error:#}")],
        };
        failures.extend(
            complaints
                .into_iter()
                .map(|complaint| format!("{}: {complaint}", kernel.name)),
        );
    }
    if !failures.is_empty() {
        bail!("test vm:\n  {}", failures.join("\n  "));
    }
    println!(
        "\n=== all kernel tests that ran passed on {} kernels",
        kernels.len()
    );
    Ok(ExitCode::SUCCESS)
}

/// Does something with each kernel, two at the same time: under emulation each is busy with about one processor.
fn on_each<T: Send>(
    kernels: &[Kernel],
    act: impl Fn(&Kernel) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(kernel) = kernels.get(at) else { break };
                    let outcome = act(kernel);
                    outcomes
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(at, outcome);
                }
            });
        }
    });
    outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect()
}

/// A machine that needs no virtualization of the host.
fn emulated(qemu: &Path, kernel: &Kernel) -> Machine {
    Machine {
        qemu: qemu.to_owned(),
        console: shell::target_dir().join(format!("vm/{}.console.log", kernel.name)),
        kernel: kernel.image.clone(),
        accelerator: Accelerator::Tcg,
    }
}

/// Boots each kernel for as long as it takes to load the probe; gives what their verifiers walked.
///
/// # Errors
/// When something is missing or cannot be built, or a kernel refuses the probe or does not say in time.
pub(crate) fn verified(binary: &Path, wishes: &[&String], timeout: u64) -> Result<Vec<Measured>> {
    let qemu = find_qemu()?;
    let kernels = wishes
        .iter()
        .map(|wish| Kernel::find(wish))
        .collect::<Result<Vec<_>>>()?;
    let guest = guest::prepare_bare(binary)?;
    let outcomes = on_each(&kernels, |kernel| {
        let machine = emulated(&qemu, kernel);
        let show = |line: &str| println!("{:>6} | {line}", kernel.label);
        let (measured, complaints) =
            guest::run(&guest, &machine, Duration::from_secs(timeout), &show)?;
        match measured {
            Some(measured) if complaints.is_empty() && !measured.counts.is_empty() => Ok(measured),
            _ => bail!(
                "{} did not load the probe: {}; its log: {}",
                kernel.name,
                complaints.join("; "),
                shell::relative(&machine.console)
            ),
        }
    });
    let mut measured = Vec::new();
    let mut failures = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(one) => measured.push(one),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    if !failures.is_empty() {
        bail!("{}", failures.join("\n  "));
    }
    Ok(measured)
}

/// The lines of Debian's kernels that tests are run on.
const LINES: [&str; 4] = ["6.1", "6.12", "6.19", "7.3"];

/// Tries a binary as it is shipped on each kernel, with nothing beside it.
///
/// # Errors
/// When something is missing, or the binary fails on a kernel.
pub(crate) fn smoke(binary: &Path, timeout: Duration) -> Result<()> {
    let qemu = find_qemu()?;
    let kernels = LINES
        .into_iter()
        .map(Kernel::find)
        .collect::<Result<Vec<_>>>()?;
    let guest = guest::prepare_smoke(binary)?;
    let outcomes = on_each(&kernels, |kernel| {
        let machine = emulated(&qemu, kernel);
        let show = |line: &str| println!("{:>6} | {line}", kernel.label);
        let (_, complaints) = guest::run(&guest, &machine, timeout, &show)?;
        if !complaints.is_empty() {
            bail!("{}: {}", kernel.name, complaints.join("; "));
        }
        Ok(())
    });
    let failures: Vec<String> = outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\n  "));
    }
    Ok(())
}

/// Boots a whole system with its own init, on a line of Debian's kernels; `files` lie in it too: path, content, permissions. What it
/// writes to its second serial line comes line by line.
///
/// # Errors
/// When something is missing, or it is not switched off in time.
pub(crate) fn boot_system(
    root: &Path,
    files: &[(&str, Vec<u8>, u32)],
    line: &str,
    timeout: Duration,
    heed: &mut dyn FnMut(&str),
) -> Result<()> {
    let kernel = Kernel::find(line)?;
    let mut tree = Tree::of_system(root)?;
    for (path, content, permissions) in files {
        tree.content(path, content.clone(), *permissions);
    }
    tree.link("/init", "/usr/lib/systemd/systemd");
    let folder = shell::target_dir().join("vm");
    let initramfs = folder.join("system.cpio");
    tree.write(&initramfs)?;
    let machine = Machine {
        qemu: find_qemu()?,
        console: folder.join("system.console.log"),
        kernel: kernel.image,
        accelerator: Accelerator::Tcg,
    };
    let end = boot(&machine, &initramfs, timeout, heed)?;
    std::fs::remove_file(&initramfs)?;
    if end == End::TimedOut {
        bail!(
            "it was still running after {} s; its log: {}",
            timeout.as_secs(),
            shell::relative(&machine.console)
        );
    }
    Ok(())
}

fn find_qemu() -> Result<PathBuf> {
    shell::find_program("qemu-system-x86_64")
        .context("no qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)")
}

/// Runs the kernel tests on one kernel; gives what is to be complained of.
fn test(arguments: &Arguments, qemu: &Path, kernel: &Kernel, guest: &Guest) -> Result<Vec<String>> {
    let table = Table::read()?;
    let started = Instant::now();
    let machine = Machine {
        qemu: qemu.to_owned(),
        kernel: kernel.image.clone(),
        console: shell::target_dir().join(format!("vm/{}.console.log", kernel.name)),
        accelerator: accelerator(arguments.accel, qemu, kernel)?,
    };
    let show = |line: &str| {
        println!(
            "{:>6} {:>4} s | {line}",
            kernel.label,
            started.elapsed().as_secs()
        );
    };
    show(&format!(
        "=== {} in QEMU ({}), at most {} s",
        kernel.name,
        machine.accelerator.name(),
        arguments.timeout
    ));
    let timeout = Duration::from_secs(arguments.timeout);
    let (measured, mut complaints) = guest::run(guest, &machine, timeout, &show)?;
    if let Some(measured) = measured {
        let (lines, of_verifier) = table.compare(&measured);
        for line in lines {
            show(&line);
        }
        complaints.extend(of_verifier);
    }
    show(&format!(
        "=== {} in {} s; the kernel's own log: {}",
        if complaints.is_empty() {
            "passed"
        } else {
            "FAILED"
        },
        started.elapsed().as_secs(),
        shell::relative(&machine.console)
    ));
    Ok(complaints)
}

/// KVM only where it was seen to work: some machines have /dev/kvm and hang with it.
fn accelerator(choice: Choice, qemu: &Path, kernel: &Kernel) -> Result<Accelerator> {
    if choice == Choice::Tcg || !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Tcg);
    }
    let machine = Machine {
        qemu: qemu.to_owned(),
        kernel: kernel.image.clone(),
        console: shell::target_dir().join(format!("vm/{}.trial.log", kernel.name)),
        accelerator: Accelerator::Kvm,
    };
    Ok(if guest::boots(&machine, TRIAL)? {
        Accelerator::Kvm
    } else {
        println!(
            "KVM does not boot {} within {} s: software emulation",
            kernel.name,
            TRIAL.as_secs()
        );
        Accelerator::Tcg
    })
}
