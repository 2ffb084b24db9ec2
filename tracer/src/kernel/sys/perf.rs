//! Perf events: uprobes and tracepoints that programs are put on, and counters. What they are for is known elsewhere.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Read as _},
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::Duration,
};

use super::owned;

/// `struct perf_event_attr` up to `PERF_ATTR_SIZE_VER1` plus padding to version 5 (include/uapi/linux/perf_event.h): the
/// fields that dynamic PMUs and tracepoints need.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PerfEventAttr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    rest: [u64; 5],
}

const _: () = assert!(size_of::<PerfEventAttr>() == 112);

/// `PERF_FLAG_FD_CLOEXEC`.
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
/// `PERF_TYPE_SOFTWARE`, `PERF_TYPE_TRACEPOINT` and `PERF_TYPE_BREAKPOINT`.
const PERF_TYPE_SOFTWARE: u32 = 1;
const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_TYPE_BREAKPOINT: u32 = 5;

/// perf_event_open(2) with these fields.
fn perf_event_open(attr: &PerfEventAttr, pid: i32, cpu: i32) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is a `perf_event_attr` whose `size` says how much of it there is; paths in it outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            std::ptr::from_ref(attr),
            pid,
            cpu,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    owned(fd)
}

/// Opens a uprobe as a perf event: of one process (`pid`), or of every process that maps the file. `kind` is the PMU's
/// number (`/sys/bus/event_source/devices/uprobe/type`).
pub(crate) fn open_uprobe(
    kind: u32,
    path: &CStr,
    offset: u64,
    returns: bool,
    pid: Option<u32>,
) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind,
        size: size_of::<PerfEventAttr>() as u32,
        // Bit 0 is `retprobe` (/sys/bus/event_source/devices/uprobe/format/retprobe).
        config: u64::from(returns),
        config1: path.as_ptr() as u64,
        config2: offset,
        ..PerfEventAttr::default()
    };
    match pid {
        Some(pid) => perf_event_open(&attr, pid as i32, -1),
        None => perf_event_open(&attr, -1, 0),
    }
}

/// Opens a tracepoint as a perf event. BPF programs on it run for every process and CPU.
pub(crate) fn open_tracepoint(id: u64) -> io::Result<OwnedFd> {
    let attr = PerfEventAttr {
        kind: PERF_TYPE_TRACEPOINT,
        size: size_of::<PerfEventAttr>() as u32,
        config: id,
        ..PerfEventAttr::default()
    };
    perf_event_open(&attr, -1, 0)
}

/// Begins to count the processor time of a thread (0: the calling one) and of those that it makes, nanoseconds; see [`Counter`].
pub(crate) fn count_task_clock(thread: u32) -> io::Result<Counter> {
    /// `PERF_COUNT_SW_TASK_CLOCK`.
    const TASK_CLOCK: u64 = 1;
    /// The bits `inherit` and `inherit_thread` (Linux 5.13): of what a thread makes, threads only.
    const INHERIT: u64 = 1 << 1;
    const INHERIT_THREAD: u64 = 1 << 35;
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: TASK_CLOCK,
        flags: INHERIT | INHERIT_THREAD,
        ..PerfEventAttr::default()
    };
    perf_event_open(&attr, thread as i32, -1).map(Counter::from)
}

/// Begins to sample a thread, each time that it has run for so long. Records are bare headers (`sample_type` 0), which hold the mode; the descriptor
/// is to be mapped, and nothing is written before it is.
pub(crate) fn sample_modes(thread: u32, every: Duration) -> io::Result<OwnedFd> {
    /// `PERF_COUNT_SW_CPU_CLOCK`, which has a timer of its own and does not go by ticks.
    const CPU_CLOCK: u64 = 0;
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: CPU_CLOCK,
        sample_period: u64::try_from(every.as_nanos()).unwrap_or(u64::MAX),
        ..PerfEventAttr::default()
    };
    perf_event_open(&attr, thread as i32, -1)
}

/// Begins to write a record of each file that is mapped for execution on a processor (`PERF_RECORD_MMAP2`); the descriptor is to be
/// mapped, and nothing is written before it is.
pub(crate) fn watch_mapped_code(processor: u32) -> io::Result<OwnedFd> {
    /// `PERF_COUNT_SW_DUMMY`, which counts nothing.
    const DUMMY: u64 = 9;
    /// The bits `mmap` and `mmap2`.
    const MMAP: u64 = 1 << 8;
    const MMAP2: u64 = 1 << 23;
    let attr = PerfEventAttr {
        kind: PERF_TYPE_SOFTWARE,
        size: size_of::<PerfEventAttr>() as u32,
        config: DUMMY,
        flags: MMAP | MMAP2,
        ..PerfEventAttr::default()
    };
    perf_event_open(&attr, -1, processor as i32)
}

/// Prepares to see a thread write to a word, in user mode; it is not seen before [`let_overflow`].
pub(crate) fn watch_word(thread: i32, cpu: i32, address: u64) -> io::Result<OwnedFd> {
    /// `HW_BREAKPOINT_W`, `HW_BREAKPOINT_LEN_8` (include/uapi/linux/hw_breakpoint.h).
    const WRITE: u32 = 2;
    const WORD: u64 = 8;
    /// The bits `disabled`, `exclude_kernel`, `exclude_hv`.
    const DISABLED: u64 = 1;
    const EXCLUDE_KERNEL: u64 = 1 << 5;
    const EXCLUDE_HV: u64 = 1 << 6;
    let attr = PerfEventAttr {
        kind: PERF_TYPE_BREAKPOINT,
        size: size_of::<PerfEventAttr>() as u32,
        sample_period: 1,
        flags: DISABLED | EXCLUDE_KERNEL | EXCLUDE_HV,
        bp_type: WRITE,
        config1: address,
        config2: WORD,
        ..PerfEventAttr::default()
    };
    perf_event_open(&attr, thread, cpu)
}

/// Enables a sampling event for so many overflows, after which the kernel disables it by itself.
pub(crate) fn let_overflow(event: BorrowedFd<'_>, times: u32) -> io::Result<()> {
    /// `PERF_EVENT_IOC_REFRESH` (include/uapi/linux/perf_event.h).
    const REFRESH: libc::Ioctl = 0x2402;
    // SAFETY: the request takes a number.
    let result = unsafe { libc::ioctl(event.as_raw_fd(), REFRESH, libc::c_ulong::from(times)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A perf event that is read for its count.
#[derive(Debug)]
pub(crate) struct Counter(File);

impl Counter {
    /// What it has counted since it was opened (`read_format` 0: a single number, perf_event_open(2)).
    pub(crate) fn read(&self) -> io::Result<u64> {
        let mut count = [0_u8; 8];
        (&self.0).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}

impl From<OwnedFd> for Counter {
    fn from(event: OwnedFd) -> Self {
        Self(event.into())
    }
}

impl From<Counter> for OwnedFd {
    fn from(counter: Counter) -> Self {
        counter.0.into()
    }
}
