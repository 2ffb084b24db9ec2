//! What can go wrong between us and the kernel: what was tried, on what, and what to do.

use std::{borrow::Cow, io};

use super::features::{refused_by_paranoia, require_capabilities};

/// An error of the kernel room.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Our own code panicked, and nothing could be given up to go on.
    #[error("internal error in the tracing thread; please report the backtrace above")]
    Internal,
    /// The BPF object could not be read.
    #[error(
        "the built-in BPF object cannot be read: {reason}; rebuild leakscope (`cargo xtask bpf build`)"
    )]
    Object {
        /// What the reader said.
        reason: String,
    },
    /// A map could not be created.
    #[error("cannot create the BPF map {name} ({bytes} bytes): {source}{}", hint(.source))]
    Map {
        /// The map.
        name: String,
        /// What it would have taken.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program was refused.
    #[error("the kernel refused the BPF program {name}: {source}{}{}", refusal(.source, .log), log_tail(.source, .log))]
    Program {
        /// The program.
        name: String,
        /// The kernel's answer.
        source: io::Error,
        /// The verifier's log.
        log: String,
    },
    /// Probes could not be attached.
    #[error("cannot attach to {what}: {source}{}", hint(.source))]
    Attach {
        /// The file or event.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Tracepoints need tracefs.
    #[error("cannot read tracefs: {reason}")]
    Tracefs {
        /// What was tried, and what to do.
        reason: String,
    },
    /// This user may not trace.
    #[error(
        "not allowed to trace: {missing} missing; run as root, or give the binary these capabilities (see `leakscope doctor`)"
    )]
    Capabilities {
        /// What is missing.
        missing: String,
    },
    /// Process ids are not those that the kernel reports.
    #[error(
        "process ids here are those of a container ({found}), not those that the kernel reports: run leakscope in the machine's PID namespace (with \
         containers: --pid=host)"
    )]
    PidNamespace {
        /// The namespace.
        found: String,
    },
    /// Memory could run out at any moment.
    #[error(
        "the address space is limited to {allowed_kib} KiB (`ulimit -v`), and leakscope needs at least {needed_kib} KiB; raise the limit"
    )]
    AddressSpace {
        /// What the limit is.
        allowed_kib: u64,
        /// What it has to be at least.
        needed_kib: u64,
    },
    /// Another call to the kernel failed.
    #[error("{what}: {source}{}", hint(.source))]
    Call {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl KernelError {
    /// A failed call, with what was tried.
    pub(crate) fn call(what: impl Into<String>, source: io::Error) -> Self {
        Self::Call {
            what: what.into(),
            source,
        }
    }
}

/// What to do about a refusal for want of privileges, memory or descriptors.
fn hint(error: &io::Error) -> Cow<'static, str> {
    let hint = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if require_capabilities().is_err() => {
            "; run as root, or with the capabilities CAP_BPF and CAP_PERFMON"
        }
        Some(libc::EACCES) if let Some(paranoia) = refused_by_paranoia() => {
            return format!("; {paranoia}").into();
        }
        Some(libc::EPERM | libc::EACCES) => {
            "; CAP_BPF and CAP_PERFMON are there, so it is lockdown, a security module or a container's seccomp that refuses"
        }
        Some(libc::ENOMEM) => {
            "; ask for smaller tables (--max-blocks, --max-stacks), or give leakscope's cgroup more memory (`leakscope doctor` says \
             what the tables take)"
        }
        Some(libc::EMFILE) => "; allow more open files (`ulimit -n`)",
        _ => "",
    };
    hint.into()
}

/// Why a program was refused, and what to do about it. Whoever refuses a program before the verifier has looked at it leaves no log.
fn refusal(error: &io::Error, log: &str) -> String {
    match verifiers_reason(log) {
        Some(reason) if is_of_program(error) => format!("; the kernel's verifier says: {reason}"),
        _ => hint(error).into_owned(),
    }
}

/// The verifier's reason: the last line of its log but for its counts (`print_verification_stats`, kernel/bpf/verifier.c). None where it had
/// nothing against the program (`do_check_subprogs`), and what came behind it refused.
pub(super) fn verifiers_reason(log: &str) -> Option<&str> {
    const COUNTS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    const CONTENT: &str = "is safe for any args that match its prototype";
    let mut lines = log.lines().rev().map(str::trim);
    lines
        .find(|line| !line.is_empty() && !COUNTS.iter().any(|count| line.starts_with(count)))
        .filter(|line| !line.ends_with(CONTENT))
}

/// Whether an error speaks of the program rather than of what was missing to look at it.
fn is_of_program(error: &io::Error) -> bool {
    !matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN | libc::EINTR)
    )
}

/// The end of a verifier's log, where the reason stands. Empty where the verifier was not the one that refused.
fn log_tail(error: &io::Error, log: &str) -> String {
    if !is_of_program(error) {
        return String::new();
    }
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines
        .get(lines.len().saturating_sub(30)..)
        .unwrap_or_default();
    if tail.is_empty() {
        String::new()
    } else {
        format!("; the end of the verifier's log:\n{}", tail.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::KernelError;
    use std::io;

    fn said(code: i32, log: &str) -> String {
        let error = KernelError::Program {
            name: "release".to_owned(),
            source: io::Error::from_raw_os_error(code),
            log: log.to_owned(),
        };
        error.to_string()
    }

    #[test]
    fn a_verifiers_refusal_was_called_one_of_lockdown() {
        let log = "12: (79) r1 = *(u64 *)(r2 +0)\nR2 invalid mem access 'scalar'\nprocessed 13 insns (limit 1000000)\n";
        for code in [libc::EACCES, libc::EPERM, libc::EINVAL] {
            let said = said(code, log);
            assert!(
                said.contains("verifier says: R2 invalid mem access 'scalar';"),
                "{said}"
            );
            assert!(
                !said.contains("lockdown") && !said.contains("run as root"),
                "{said}"
            );
        }
    }

    #[test]
    fn who_refuses_without_a_log_is_no_verifier() {
        assert!(!said(libc::EPERM, "").contains("verifier"));
        assert!(said(libc::EPERM, "").contains("CAP_BPF"));
        let content = "Func#3 ('freed') is safe for any args that match its prototype\n";
        assert!(!said(libc::EINVAL, content).contains("verifier says"));
        assert!(said(libc::ENOMEM, "processed 13 insns\n").contains("--max-blocks"));
    }
}
