//! One QEMU machine: its command line, its serial lines, and its end.
//!
//! The kernel's console is the first serial line, a log file; the second carries what the guest reports, line by line.

use crate::shell::{command, describe};
use anyhow::{Context as _, Result};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How the processor is emulated.
pub(super) enum Accelerator {
    /// In software.
    Tcg,
    /// By the hardware.
    Kvm,
}

impl Accelerator {
    /// Its name for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }

    /// The value of QEMU's option `-accel`.
    ///
    /// Both virtual processors on one thread: with a thread each, QEMU 7.2 can go on executing an int3 that the kernel has
    /// already patched away (jump labels, as attaching to a tracepoint flips them), and the guest hangs at it for ever.
    fn option(&self) -> &'static str {
        match self {
            Self::Tcg => "tcg,thread=single",
            Self::Kvm => "kvm",
        }
    }
}

/// What is booted, and with what.
pub(super) struct Machine {
    /// `qemu-system-x86_64`.
    pub(super) qemu: PathBuf,
    /// The bzImage.
    pub(super) kernel: PathBuf,
    /// Where the kernel's console goes.
    pub(super) console: PathBuf,
    /// How.
    pub(super) accelerator: Accelerator,
}

/// How a machine ended.
#[derive(PartialEq, Eq)]
pub(super) enum End {
    /// It was switched off, or its kernel panicked.
    Off,
    /// It was still running when its time was over, and was stopped.
    TimedOut,
}

/// Boots, and gives each line of the guest's report to `heed`, without its line end.
///
/// # Errors
/// When QEMU cannot be started.
pub(super) fn boot(
    machine: &Machine,
    initramfs: &Path,
    timeout: Duration,
    heed: &mut dyn FnMut(&str),
) -> Result<End> {
    let deadline = Instant::now() + timeout;
    let mut command = command(&machine.qemu);
    command
        .args(["-accel", machine.accelerator.option(), "-cpu", "max"])
        .args(["-smp", "2", "-m", "2G"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none"])
        .arg("-kernel")
        .arg(&machine.kernel)
        .arg("-initrd")
        .arg(initramfs)
        // A panic ends the machine (no reboot); an oops is one. Entropy from the processor, or early reads wait for it. A
        // processor counts as locked up after twice watchdog_thresh seconds: a busy host may not run it for long; nor does it give the
        // timer its ticks in time at the start, which the kernel would check.
        .args([
            "-append",
            "console=ttyS0 loglevel=5 panic=-1 oops=panic random.trust_cpu=on watchdog_thresh=30 no_timer_check",
        ])
        .arg("-serial")
        .arg(format!("file:{}", machine.console.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut qemu = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", describe(&command)))?;
    let output = qemu.stdout.take().context("QEMU has no standard output")?;
    let (send, receive) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_owned();
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let end = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match receive.recv_timeout(left) {
            Ok(line) => heed(&line),
            Err(RecvTimeoutError::Disconnected) => break End::Off,
            Err(RecvTimeoutError::Timeout) => break End::TimedOut,
        }
    };
    if end == End::TimedOut {
        qemu.kill().context("cannot stop QEMU")?;
    }
    drop(receive);
    qemu.wait().context("cannot wait for QEMU")?;
    // The reader ends with QEMU's output; it cannot fail.
    let _ended = reader.join();
    Ok(end)
}
