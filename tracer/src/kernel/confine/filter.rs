//! The filter of system calls (seccomp(2)): what is not listed is refused. Files are named by nothing but their descriptors: whoever opens
//! `/proc/self/fd/N` is given a copy of descriptor N here, without asking the kernel for a file.

use std::{io, mem};

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const ARCHITECTURE: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT` (arch/x86/include/uapi/asm/unistd.h).
const X32: u32 = 0x4000_0000;
/// Where `struct seccomp_data` (include/uapi/linux/seccomp.h) has the architecture, and the lower half of the third argument.
const ARCHITECTURE_AT: u32 = 4;
const THIRD_ARGUMENT_AT: u32 = 16 + 2 * 8;

/// What a reader of descriptors needs.
const ALLOWED: [libc::c_long; 42] = [
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_readv,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_memfd_create,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_alarm,
    libc::SYS_setitimer,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_membarrier,
];

/// Memory may not become code.
const MAPPING: [libc::c_long; 2] = [libc::SYS_mmap, libc::SYS_mprotect];

/// What [`stand_in`] does instead.
const STOOD_IN_FOR: [libc::c_long; 2] = [libc::SYS_openat, libc::SYS_newfstatat];

/// Has every call refused but those.
pub(super) fn install() -> io::Result<()> {
    let mut program = program();
    // SAFETY: the action is zeroed, which is an empty mask, and its handler has the type that `SA_SIGINFO` asks for; the program and its
    // header live through the call that copies them.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = stand_in;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO;
        if libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        {
            return Err(io::Error::last_os_error());
        }
        let header = libc::sock_fprog {
            len: program.len() as libc::c_ushort,
            filter: program.as_mut_ptr(),
        };
        if libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const header,
        ) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The filter: classic BPF over `struct seccomp_data`.
fn program() -> Vec<libc::sock_filter> {
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at, 0, 0);
    let give = |what: u32| statement(libc::BPF_RET | libc::BPF_K, what, 0, 0);
    let is = |value: u32| statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, 0, 1);
    let refuse = |error: i32| give(libc::SECCOMP_RET_ERRNO | error as u32);
    let mut program = vec![
        load(ARCHITECTURE_AT),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            ARCHITECTURE,
            1,
            0,
        ),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, X32, 0, 1),
        give(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    for call in ALLOWED {
        program.extend([is(call as u32), give(libc::SECCOMP_RET_ALLOW)]);
    }
    for call in STOOD_IN_FOR {
        program.extend([is(call as u32), give(libc::SECCOMP_RET_TRAP)]);
    }
    for call in MAPPING {
        program.extend([
            statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                call as u32,
                0,
                4,
            ),
            load(THIRD_ARGUMENT_AT),
            statement(
                libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K,
                libc::PROT_EXEC as u32,
                0,
                1,
            ),
            refuse(libc::EPERM),
            give(libc::SECCOMP_RET_ALLOW),
        ]);
    }
    // The standard library asks by the descriptor then, and no path is there.
    program.extend([
        is(libc::SYS_statx as u32),
        refuse(libc::ENOSYS),
        is(libc::SYS_readlink as u32),
        refuse(libc::ENOENT),
        refuse(libc::EPERM),
    ]);
    program
}

fn statement(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Answers for a call that the filter caught. Runs as a signal handler: system calls alone.
extern "C" fn stand_in(
    _signal: libc::c_int,
    _info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a handler with `SA_SIGINFO` the context that it goes on with.
    let Some(context) = (unsafe { context.cast::<libc::ucontext_t>().as_mut() }) else {
        return;
    };
    let register = |number: libc::c_int| {
        let registers = &context.uc_mcontext.gregs;
        registers.get(number as usize).copied().unwrap_or(0)
    };
    let (path, third) = (
        register(libc::REG_RSI) as *const u8,
        register(libc::REG_RDX),
    );
    // SAFETY: the caller's own path, which lives through its call, and ends with a zero.
    let named = unsafe {
        if path.is_null() || path.read() == 0 {
            // `AT_EMPTY_PATH`: the descriptor that a path would be relative to.
            libc::c_int::try_from(register(libc::REG_RDI)).ok()
        } else {
            descriptor_of(path)
        }
    };
    let result = match (register(libc::REG_RAX), named) {
        (libc::SYS_openat, Some(fd)) => {
            // SAFETY: plain numbers.
            raw(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, 0) })
        }
        (libc::SYS_newfstatat, Some(fd)) => {
            // SAFETY: the caller's own buffer, which the call was made with.
            raw(unsafe { libc::syscall(libc::SYS_fstat, fd, third) })
        }
        // Debug files beside it are looked for.
        _ => -i64::from(libc::ENOENT),
    };
    if let Some(answer) = context.uc_mcontext.gregs.get_mut(libc::REG_RAX as usize) {
        *answer = result;
    }
}

/// A result as the kernel gives it: an error is negative.
fn raw(result: libc::c_long) -> i64 {
    if result >= 0 {
        return result;
    }
    let error = io::Error::last_os_error().raw_os_error();
    -i64::from(error.unwrap_or(libc::EIO))
}

/// The descriptor that a path names.
///
/// # Safety
/// The path ends with a zero.
unsafe fn descriptor_of(path: *const u8) -> Option<libc::c_int> {
    let mut at = path;
    let mut next = || {
        // SAFETY: the path ends with a zero, behind which nothing is asked for: every caller stops there.
        let byte = unsafe { at.read() };
        at = at.wrapping_add(1);
        byte
    };
    for expected in b"/proc/self/fd/" {
        if next() != *expected {
            return None;
        }
    }
    let mut number: libc::c_int = 0;
    let mut digits = 0;
    loop {
        match next() {
            0 if digits > 0 => return Some(number),
            digit @ b'0'..=b'9' => {
                digits += 1;
                number = number
                    .checked_mul(10)?
                    .checked_add(libc::c_int::from(digit - b'0'))?;
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{descriptor_of, program};

    #[test]
    fn only_descriptors_have_paths() {
        for (path, expected) in [
            (c"/proc/self/fd/0", Some(0)),
            (c"/proc/self/fd/173", Some(173)),
            (c"/proc/self/fd/", None),
            (c"/proc/self/fd/3/x", None),
            (c"/proc/self/fd/99999999999", None),
            (c"/proc/self/f", None),
            (c"/etc/passwd", None),
            (c"", None),
        ] {
            // SAFETY: C strings.
            let found = unsafe { descriptor_of(path.as_ptr().cast()) };
            assert_eq!(found, expected, "{path:?}");
        }
    }

    #[test]
    fn the_filter_ends_with_a_refusal() {
        let program = program();
        assert_eq!(
            program.last().map(|last| last.k),
            Some(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32)
        );
        // `BPF_MAXINSNS`.
        assert!(program.len() < 4096);
    }
}
