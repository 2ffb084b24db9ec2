//! The system calls themselves: thin, one function each, no policy.

mod perf;
mod sharing;

use std::{
    ffi::CStr,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use aya_obj::generated::{bpf_attr, bpf_cmd};
use leakscope_common::Plain;

pub(crate) use perf::{
    Counter, count_task_clock, let_overflow, open_tracepoint, open_uprobe, sample_modes,
    watch_mapped_code, watch_word,
};
pub(crate) use sharing::{
    count_event, event_counter, has_child_ended, share_descriptors, wait_for_child,
};

/// `BPF_TRACE_UPROBE_MULTI` (include/uapi/linux/bpf.h, Linux 6.6).
pub(crate) const BPF_TRACE_UPROBE_MULTI: u32 = 48;
/// `BPF_TRACE_UPROBE_SESSION` (include/uapi/linux/bpf.h, Linux 6.13).
pub(crate) const BPF_TRACE_UPROBE_SESSION: u32 = 57;
/// `BPF_TRACE_FENTRY` and `BPF_TRACE_FEXIT` (include/uapi/linux/bpf.h).
pub(crate) const BPF_TRACE_FENTRY: u32 = 24;
pub(crate) const BPF_TRACE_FEXIT: u32 = 25;
/// `BPF_TRACE_ITER` (include/uapi/linux/bpf.h).
pub(crate) const BPF_TRACE_ITER: u32 = 28;
/// `BPF_PERF_EVENT` (include/uapi/linux/bpf.h).
const BPF_PERF_EVENT: u32 = 41;
/// `BPF_F_UPROBE_MULTI_RETURN` (include/uapi/linux/bpf.h).
pub(crate) const BPF_F_UPROBE_MULTI_RETURN: u32 = 1;

/// bpf(2). The attribute must be right for the command; file descriptors in it stay the caller's.
fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a whole `bpf_attr`, zeroed before its fields were set, and every pointer in it points to memory that
    // outlives the call (each caller in this file borrows it for the call's duration).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// An attribute with all bits zero.
fn empty_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers and arrays of them; all zeroes is what the kernel expects of
    // unused fields.
    unsafe { mem::zeroed() }
}

/// Takes ownership of a file descriptor that the kernel has just made.
fn owned(fd: i64) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the kernel returned this descriptor from the call before; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What `BPF_PROG_LOAD` needs.
pub(crate) struct ProgramLoad<'a> {
    pub(crate) name: &'a str,
    pub(crate) program_type: u32,
    pub(crate) expected_attach_type: u32,
    /// The kernel function that the program is for, by its number in the kernel's BTF; else 0.
    pub(crate) attach_btf_id: u32,
    pub(crate) instructions: &'a [aya_obj::generated::bpf_insn],
    pub(crate) license: &'a CStr,
    pub(crate) btf: Option<BorrowedFd<'a>>,
    pub(crate) func_info: &'a [u8],
    pub(crate) func_info_size: usize,
    pub(crate) line_info: &'a [u8],
    pub(crate) line_info_size: usize,
}

/// `BPF_PROG_LOAD`; the verifier's log goes to `log`, if it is not empty.
pub(crate) fn load_program(load: &ProgramLoad<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; this is the member that the command reads.
    let fields = unsafe { &mut attr.__bindgen_anon_3 };
    fields.prog_type = load.program_type;
    fields.expected_attach_type = load.expected_attach_type;
    fields.attach_btf_id = load.attach_btf_id;
    fields.insns = load.instructions.as_ptr() as u64;
    fields.insn_cnt = load.instructions.len() as u32;
    fields.license = load.license.as_ptr() as u64;
    for (to, from) in fields.prog_name.iter_mut().take(15).zip(load.name.bytes()) {
        *to = from as libc::c_char;
    }
    if let Some(btf) = load.btf {
        fields.prog_btf_fd = btf.as_raw_fd() as u32;
        if let Some(count) = load.func_info.len().checked_div(load.func_info_size) {
            fields.func_info = load.func_info.as_ptr() as u64;
            fields.func_info_cnt = count as u32;
            fields.func_info_rec_size = load.func_info_size as u32;
        }
        if let Some(count) = load.line_info.len().checked_div(load.line_info_size) {
            fields.line_info = load.line_info.as_ptr() as u64;
            fields.line_info_cnt = count as u32;
            fields.line_info_rec_size = load.line_info_size as u32;
        }
    }
    if !log.is_empty() {
        fields.log_level = 1;
        fields.log_buf = log.as_mut_ptr() as u64;
        fields.log_size = log.len() as u32;
    }
    owned(bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr)?)
}

/// `BPF_BTF_LOAD`.
pub(crate) fn load_btf(btf: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; this is the member that the command reads.
    let fields = unsafe { &mut attr.__bindgen_anon_7 };
    fields.btf = btf.as_ptr() as u64;
    fields.btf_size = btf.len() as u32;
    owned(bpf(bpf_cmd::BPF_BTF_LOAD, &mut attr)?)
}

/// `BPF_LINK_CREATE` for a uprobe-multi or uprobe-session program. `offsets` and `cookies` are of equal length;
/// `pid` 0 means every process.
pub(crate) fn link_uprobe_multi(
    program: BorrowedFd<'_>,
    attach_type: u32,
    path: &CStr,
    offsets: &[u64],
    cookies: &[u64],
    pid: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; these are the members that the command reads.
    unsafe {
        let link = &mut attr.link_create;
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.__bindgen_anon_2.target_fd = 0;
        link.attach_type = attach_type;
        let multi = &mut link.__bindgen_anon_3.uprobe_multi;
        multi.path = path.as_ptr() as u64;
        multi.offsets = offsets.as_ptr() as u64;
        multi.cookies = if cookies.is_empty() {
            0
        } else {
            cookies.as_ptr() as u64
        };
        multi.cnt = offsets.len() as u32;
        multi.pid = pid;
        multi.flags = flags;
    }
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// `BPF_LINK_CREATE` for a program on a perf event.
pub(crate) fn link_perf_event(
    program: BorrowedFd<'_>,
    event: BorrowedFd<'_>,
    cookie: u64,
) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; these are the members that the command reads.
    unsafe {
        let link = &mut attr.link_create;
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.__bindgen_anon_2.target_fd = event.as_raw_fd() as u32;
        link.attach_type = BPF_PERF_EVENT;
        link.__bindgen_anon_3.perf_event.bpf_cookie = cookie;
    }
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)
}

/// `BPF_LINK_CREATE` for a program that runs for each open file of a process, and `BPF_ITER_CREATE`: a file that is read for what the
/// program writes.
pub(crate) fn walk_over_files(program: BorrowedFd<'_>, pid: u32) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info` (include/uapi/linux/bpf.h), of which tasks have: thread, process, descriptor of a process.
    let of_task: [u32; 4] = [0, pid, 0, 0];
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; these are the members that the command reads.
    unsafe {
        let link = &mut attr.link_create;
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.attach_type = BPF_TRACE_ITER;
        let info = &mut link.__bindgen_anon_3.__bindgen_anon_1;
        info.iter_info = of_task.as_ptr() as u64;
        info.iter_info_len = size_of_val(&of_task) as u32;
    }
    let link = owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?)?;
    let mut attr = empty_attr();
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    owned(bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr)?)
}

/// `BPF_RAW_TRACEPOINT_OPEN`.
pub(crate) fn open_raw_tracepoint(program: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.raw_tracepoint.name = name.as_ptr() as u64;
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    owned(bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)?)
}

/// `BPF_MAP_LOOKUP_ELEM`: a value of an array map whose values are `T`, rounded up to 8 bytes by the kernel.
pub(crate) fn array_element<T: Plain>(map: BorrowedFd<'_>, index: u32) -> io::Result<T> {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let mut value = mem::MaybeUninit::<T>::zeroed();
    let mut attr = empty_attr();
    // SAFETY: writing to a union of plain integers; these are the members that the command reads.
    unsafe {
        let element = &mut attr.__bindgen_anon_2;
        element.map_fd = map.as_raw_fd() as u32;
        element.key = std::ptr::from_ref(&index) as u64;
        element.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    }
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr)?;
    // SAFETY: zeroed, then written by the kernel; every bit pattern is a `Plain` value.
    Ok(unsafe { value.assume_init() })
}

/// Ties a program to the kernel function that it was loaded for: `BPF_RAW_TRACEPOINT_OPEN` without a name.
pub(crate) fn open_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = empty_attr();
    attr.raw_tracepoint.prog_fd = program.as_raw_fd() as u32;
    owned(bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut attr)?)
}

/// The verified instruction count of a program (`bpf_prog_info.verified_insns`, Linux 5.16).
pub(crate) fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    program_info(program).map(|info| info.verified_insns)
}

/// How often the kernel did not run a program, for it was running on that processor already (`bpf_prog_info.recursion_misses`, Linux 5.12).
pub(crate) fn missed_runs(program: BorrowedFd<'_>) -> io::Result<u64> {
    program_info(program).map(|info| info.recursion_misses)
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a program.
fn program_info(program: BorrowedFd<'_>) -> io::Result<aya_obj::generated::bpf_prog_info> {
    let mut attr = empty_attr();
    // SAFETY: `bpf_prog_info` is plain integers; zero is right for unused fields.
    let mut info: aya_obj::generated::bpf_prog_info = unsafe { mem::zeroed() };
    attr.info.bpf_fd = program.as_raw_fd() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    attr.info.info_len = size_of_val(&info) as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}

/// Descriptors that are waited for together (epoll(7)), each known by a number. One that is closed is forgotten.
pub(crate) struct Waiting(OwnedFd);

/// When a descriptor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// As long as there is something to read.
    WhileReadable,
    /// Once.
    Once,
    /// Each time that somebody is woken for it; that there is something to read is not enough.
    WhenWoken,
}

impl Waiting {
    /// For nothing yet.
    ///
    /// # Errors
    /// epoll(7) refused.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes a number.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        owned(i64::from(epoll)).map(Self)
    }

    /// Waits from now on for a descriptor too.
    ///
    /// # Errors
    /// epoll(7) refused.
    pub(crate) fn add(
        &self,
        source: BorrowedFd<'_>,
        number: u64,
        counts: Counts,
    ) -> io::Result<()> {
        let how = match counts {
            Counts::WhileReadable => 0,
            Counts::Once => libc::EPOLLONESHOT,
            Counts::WhenWoken => libc::EPOLLET,
        };
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | how) as u32,
            u64: number,
        };
        // SAFETY: the event lives through the call.
        let result = unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                source.as_raw_fd(),
                &raw mut event,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Waits until one counts, or the time is over or a signal comes; tells the numbers of those that count, some at a time.
    ///
    /// # Errors
    /// epoll(7) refused.
    pub(crate) fn wait(&self, timeout_ms: i32) -> io::Result<impl Iterator<Item = u64> + use<>> {
        const AT_ONCE: usize = 64;
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; AT_ONCE];
        // SAFETY: there is room for as many events as are told of.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                AT_ONCE as i32,
                timeout_ms,
            )
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => 0,
                error => return Err(error),
            },
        };
        Ok(events.into_iter().take(count).map(|event| event.u64))
    }
}

/// Waits until one of the descriptors is readable, or the time is over. Tells which are.
pub(crate) fn poll_readable(fds: &[BorrowedFd<'_>], timeout_ms: i32) -> io::Result<Vec<bool>> {
    let mut polls: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    // SAFETY: the array lives through the call and its length is its own.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
    if ready < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(vec![false; fds.len()]);
        }
        return Err(error);
    }
    Ok(polls
        .iter()
        .map(|poll| poll.revents & (libc::POLLIN | libc::POLLHUP) != 0)
        .collect())
}

/// process_vm_readv(2) of some ranges, one behind the other; the number of bytes read, less than all where a range is not
/// mapped.
pub(crate) fn read_process_memory(
    pid: u32,
    ranges: &[(u64, usize)],
    buffer: &mut [u8],
) -> io::Result<usize> {
    let remote: Vec<libc::iovec> = ranges
        .iter()
        .map(|(address, length)| libc::iovec {
            iov_base: *address as *mut libc::c_void,
            iov_len: *length,
        })
        .collect();
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes to `buffer`, which is borrowed for the call; it only reads the other process's memory,
    // and checks those addresses.
    let read = unsafe {
        libc::process_vm_readv(
            pid as libc::pid_t,
            &raw const local,
            1,
            remote.as_ptr(),
            remote.len() as libc::c_ulong,
            0,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// The processor time of a process by its clock: `CPUCLOCK_SCHED` (include/linux/posix-timers_types.h), as clock_getcpuclockid(3) makes it.
pub(crate) fn process_cpu_time(pid: u32) -> io::Result<std::time::Duration> {
    const CPUCLOCK_SCHED: i32 = 2;
    clock_time((!(pid as i32) << 3) | CPUCLOCK_SCHED)
}

/// The bytes of a page, which mappings are made of.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf(3) reads no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// The processor time of the calling thread.
pub(crate) fn thread_cpu_time() -> std::time::Duration {
    // This clock every thread has.
    clock_time(libc::CLOCK_THREAD_CPUTIME_ID).unwrap_or_default()
}

/// When the kernel's last tick was, CLOCK_MONOTONIC, and the time from one to the next: CLOCK_MONOTONIC_COARSE stands still between them.
pub(crate) fn last_tick() -> io::Result<(std::time::Duration, std::time::Duration)> {
    const COARSE: libc::clockid_t = libc::CLOCK_MONOTONIC_COARSE;
    let mut length = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours.
    if unsafe { libc::clock_getres(COARSE, &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((clock_time(COARSE)?, as_duration(length)))
}

/// clock_gettime(2).
fn clock_time(clock: libc::clockid_t) -> io::Result<std::time::Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec of ours.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(as_duration(time))
}

fn as_duration(time: libc::timespec) -> std::time::Duration {
    std::time::Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// memfd_create(2): a file in memory that is closed on exec, of this size.
pub(crate) fn memory_file(name: &CStr, size: u64) -> io::Result<OwnedFd> {
    // SAFETY: the name lives through the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = owned(i64::from(fd))?;
    std::fs::File::from(fd.try_clone()?).set_len(size)?;
    Ok(fd)
}

/// setpriority(2) for the calling thread; a refusal changes nothing.
pub(crate) fn set_nice(nice: i32) {
    // SAFETY: plain numbers; on Linux 0 is the calling thread.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
}
