//! Readers of `/proc/PID`: who a process is, what it maps, how much memory it holds.
//!
//! Owns the text formats of procfs (`proc_pid_stat(5)`, `proc_pid_status(5)`, `proc_pid_maps(5)`,
//! `proc_pid_cgroup(5)`) and the ways in which a process can vanish while it is read. Must not know what the
//! mapped files contain.

mod answering;
mod exit;
mod maps;
mod memory;
pub mod pagemap;

pub(crate) use answering::read_environment;
pub use answering::{answering_memory, lies_in};
pub use exit::{OomCounts, OomKills, OutOfMemory, signal_name, zombie_exit_code};
pub use maps::{
    Device, MemoryMap, OpenedMap, OpenedThrough, open_mapped, open_mapped_through, parse_maps,
    read_maps,
};
pub use memory::{Memory, exact_anonymous_bytes, read_memory};

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// `PF_KTHREAD` of `include/linux/sched.h`: the flag of a kernel thread in the ninth field of `stat`.
const PF_KTHREAD: u64 = 0x0020_0000;

/// Why a process could not be read.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// There is no such process.
    #[error("process {pid} does not exist; `ps -e` lists those that do")]
    NotFound {
        /// The process id asked for.
        pid: u32,
    },
    /// The process ended while it was read.
    #[error("process {pid} ended while it was looked at")]
    Gone {
        /// The process id asked for.
        pid: u32,
    },
    /// The id is that of a thread which is not the first of its process.
    #[error("{pid} is a thread of process {process}; trace the process with -p {process}")]
    Thread {
        /// The id asked for.
        pid: u32,
        /// The process that the thread belongs to.
        process: u32,
    },
    /// A file of the process cannot be read.
    #[error("process {pid}: cannot read {path}: {source}{}", hint(source))]
    Unreadable {
        /// The process id asked for.
        pid: u32,
        /// The file that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of the process does not have the form that the kernel documents.
    #[error("process {pid}: {path} has an unexpected form: {found:?}")]
    Malformed {
        /// The process id asked for.
        pid: u32,
        /// The file that was read.
        path: PathBuf,
        /// The line or field in question.
        found: String,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::PermissionDenied {
        "; it belongs to another user or is protected, which takes CAP_SYS_PTRACE: run as root, or give the binary that capability"
    } else {
        ""
    }
}

/// One line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMembership {
    /// The v1 controllers of the hierarchy, comma-separated (`memory`, `cpu,cpuacct`, `name=systemd`); empty for v2.
    pub controllers: String,
    /// The group's path from the root of the hierarchy, as seen from our cgroup namespace.
    pub path: String,
}

/// A process as `/proc` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Thread group id.
    pub pid: u32,
    /// The parent's thread group id; 0 for the first process and kernel threads' parent.
    pub parent: u32,
    /// The first thread's name, at most 15 bytes; bytes that are not UTF-8 are replaced.
    pub comm: String,
    /// The control group that says most: see [`telling_cgroup`].
    pub cgroup: String,
    /// Every hierarchy's group, in the kernel's order.
    pub cgroups: Vec<CgroupMembership>,
    /// Effective user id.
    pub uid: u32,
    /// A thread of the kernel: it has no user memory.
    pub is_kernel_thread: bool,
    /// When it started, clock ticks (100 a second on Linux) since boot. With the id it names a process uniquely.
    pub start_time_ticks: u64,
    /// It has ended and waits to be reaped: it has no memory any more.
    pub is_zombie: bool,
}

/// The name of a process's first thread, as it is now; `None` where the process is gone.
#[must_use]
pub fn read_name(proc_root: &Path, pid: u32) -> Option<String> {
    let name = fs::read(proc_root.join(pid.to_string()).join("comm")).ok()?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    Some(String::from_utf8_lossy(name).into_owned())
}

/// Ids of all the processes that `proc_root` shows, ascending.
///
/// # Errors
/// The folder cannot be listed.
pub fn list_pids(proc_root: &Path) -> io::Result<Vec<u32>> {
    let mut pids = numbers(proc_root)?;
    pids.sort_unstable();
    Ok(pids)
}

/// Ids of a process's threads, in no order; its own is the first thread's.
///
/// # Errors
/// The process is gone.
pub fn list_threads(proc_root: &Path, pid: u32) -> io::Result<Vec<u32>> {
    numbers(&proc_root.join(pid.to_string()).join("task"))
}

/// The processes that a process's first thread has started and not waited for (`/proc/PID/task/TID/children`, proc(5)); none where the kernel is built
/// without that file.
#[must_use]
pub fn list_children(proc_root: &Path, pid: u32) -> Vec<u32> {
    let number = pid.to_string();
    let path = proc_root
        .join(&number)
        .join("task")
        .join(&number)
        .join("children");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// The entries of a folder whose names are numbers.
fn numbers(folder: &Path) -> io::Result<Vec<u32>> {
    Ok(fs::read_dir(folder)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Reads what `/proc` says of a process.
///
/// # Errors
/// See [`ProcessError`].
pub fn read_process(proc_root: &Path, pid: u32) -> Result<Process, ProcessError> {
    let folder = proc_root.join(pid.to_string());
    let stat_path = folder.join("stat");
    let stat = match fs::read(&stat_path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(ProcessError::NotFound { pid });
        }
        Err(error) => return Err(read_error(pid, stat_path, error)),
    };
    let stat = parse_stat(&stat).ok_or_else(|| malformed(pid, stat_path, &stat))?;

    let status_path = folder.join("status");
    let status = read(pid, &status_path)?;
    let number = |key: &str, index: usize| {
        status_value(&status, key)
            .and_then(|value| {
                value
                    .split_ascii_whitespace()
                    .nth(index)?
                    .parse::<u32>()
                    .ok()
            })
            .ok_or_else(|| malformed(pid, status_path.clone(), key.as_bytes()))
    };
    let process = number("Tgid", 0)?;
    if process != pid {
        return Err(ProcessError::Thread { pid, process });
    }
    // Real, effective, saved, file system.
    let uid = number("Uid", 1)?;

    let cgroups = match read(pid, &folder.join("cgroup")) {
        Ok(text) => parse_cgroups(&text),
        Err(ProcessError::Unreadable { .. }) => Vec::new(),
        // A kernel without control groups has no such file, and the process is there: see above.
        Err(_) if stat_path_exists(&folder) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Process {
        pid,
        parent: stat.parent,
        comm: stat.comm,
        cgroup: telling_cgroup(&cgroups).to_owned(),
        cgroups,
        uid,
        is_kernel_thread: stat.flags & PF_KTHREAD != 0,
        start_time_ticks: stat.start_time_ticks,
        is_zombie: stat.is_zombie,
    })
}

fn stat_path_exists(folder: &Path) -> bool {
    folder.join("stat").exists()
}

/// The group that says most of a process: the v2 group; but where that is the root (a machine whose controllers are
/// still on v1), the group of the first of the hierarchies `memory`, `name=systemd`, `pids`, `cpu`, or any, that is not a root.
#[must_use]
pub fn telling_cgroup(cgroups: &[CgroupMembership]) -> &str {
    let v2 = cgroups.iter().find(|group| group.controllers.is_empty());
    let telling = |group: &&CgroupMembership| group.path != "/";
    if let Some(group) = v2.filter(telling) {
        return &group.path;
    }
    ["memory", "name=systemd", "pids", "cpu"]
        .iter()
        .find_map(|wanted| {
            cgroups
                .iter()
                .filter(telling)
                .find(|group| group.controllers.split(',').any(|name| name == *wanted))
        })
        .or_else(|| cgroups.iter().find(telling))
        .or(v2)
        .or_else(|| cgroups.first())
        .map_or("", |group| &group.path)
}

/// Parses `/proc/PID/cgroup`: `hierarchy:controllers:path`. Lines of another form are passed over.
fn parse_cgroups(text: &[u8]) -> Vec<CgroupMembership> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_hierarchy, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some(CgroupMembership {
                controllers: controllers.to_owned(),
                path: path.to_owned(),
            })
        })
        .collect()
}

struct Stat {
    comm: String,
    parent: u32,
    flags: u64,
    start_time_ticks: u64,
    is_zombie: bool,
}

/// Parses `/proc/PID/stat`. The name stands in parentheses and may itself hold spaces, newlines and parentheses, so the
/// fields are counted from the last closing one.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let comm = stat.get(open + 1..close)?;
    let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields` begins with the third field of proc_pid_stat(5).
    let field = |number: usize| fields.get(number - 3).copied();
    let threads: u64 = field(20)?.parse().ok()?;
    Some(Stat {
        comm: String::from_utf8_lossy(comm).into_owned(),
        parent: field(4)?.parse().ok()?,
        flags: field(9)?.parse().ok()?,
        start_time_ticks: field(22)?.parse().ok()?,
        // The first thread of a process may end before the others: it is then a zombie, and the process is not.
        is_zombie: matches!(field(3)?, "Z" | "X" | "x") && threads <= 1,
    })
}

/// The value of `key` in a file of `Key:\tvalue` lines.
fn status_value<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
        str::from_utf8(value).ok().map(str::trim)
    })
}

/// Reads a file of a process that was there a moment ago.
fn read(pid: u32, path: &Path) -> Result<Vec<u8>, ProcessError> {
    fs::read(path).map_err(|error| read_error(pid, path.to_owned(), error))
}

fn read_error(pid: u32, path: PathBuf, source: io::Error) -> ProcessError {
    if source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ESRCH) {
        ProcessError::Gone { pid }
    } else {
        ProcessError::Unreadable { pid, path, source }
    }
}

fn malformed(pid: u32, path: PathBuf, found: &[u8]) -> ProcessError {
    let found = found.get(..found.len().min(80)).unwrap_or_default();
    ProcessError::Malformed {
        pid,
        path,
        found: String::from_utf8_lossy(found).into_owned(),
    }
}

#[cfg(test)]
mod tests;

/// The process's fields of `/proc/PID/stat` behind its name; the first is the third of proc_pid_stat(5).
fn stat_fields(proc_root: &Path, pid: u32) -> Result<Vec<String>, ProcessError> {
    let path = proc_root.join(pid.to_string()).join("stat");
    let stat = read(pid, &path)?;
    stat.iter()
        .rposition(|&byte| byte == b')')
        .and_then(|close| stat.get(close + 1..))
        .and_then(|rest| str::from_utf8(rest).ok())
        .map(|rest| rest.split_ascii_whitespace().map(str::to_owned).collect())
        .ok_or_else(|| malformed(pid, path, &stat))
}

/// The processor time that a process has spent in its program and in the kernel, with all its threads, in clock ticks (fields 14 and 15 of
/// proc_pid_stat(5)).
///
/// # Errors
/// See [`ProcessError`].
pub fn mode_ticks(proc_root: &Path, pid: u32) -> Result<(u64, u64), ProcessError> {
    let fields = stat_fields(proc_root, pid)?;
    let ticks = |number: usize| fields.get(number - 3).and_then(|ticks| ticks.parse().ok());
    ticks(14).zip(ticks(15)).ok_or_else(|| {
        let path = proc_root.join(pid.to_string()).join("stat");
        malformed(pid, path, fields.join(" ").as_bytes())
    })
}

/// The state of a thread: a letter of proc_pid_stat(5).
///
/// # Errors
/// See [`ProcessError`].
pub fn thread_state(proc_root: &Path, thread: u32) -> Result<char, ProcessError> {
    let fields = stat_fields(proc_root, thread)?;
    let state = fields.first().and_then(|state| state.chars().next());
    state.ok_or(ProcessError::Gone { pid: thread })
}

/// Whether a process is stopped (state `T` of proc_pid_stat(5)).
///
/// # Errors
/// See [`ProcessError`].
pub fn is_stopped(proc_root: &Path, pid: u32) -> Result<bool, ProcessError> {
    Ok(thread_state(proc_root, pid)? == 'T')
}

/// Where the program's interpreter, the dynamic loader, begins in memory: `AT_BASE` of its auxiliary vector (getauxval(3)); `None` where
/// it has none.
///
/// # Errors
/// The process is gone or unreadable.
pub fn interpreter_base(proc_root: &Path, pid: u32) -> Result<Option<u64>, ProcessError> {
    /// `AT_BASE` (include/uapi/linux/auxvec.h).
    const AT_BASE: u64 = 7;
    let path = proc_root.join(pid.to_string()).join("auxv");
    let vector = read(pid, &path)?;
    let (words, _) = vector.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (pairs, _) = words.as_chunks::<2>();
    Ok(pairs
        .iter()
        .find(|[kind, base]| *kind == AT_BASE && *base != 0)
        .map(|[_, base]| *base))
}

/// The processor time that a process and its ended threads have used, in user space and in the kernel (fields 14 and 15 of
/// proc_pid_stat(5), in ticks of 10 ms: `USER_HZ` is 100 on every architecture but Alpha).
///
/// # Errors
/// See [`ProcessError`].
pub fn cpu_time(proc_root: &Path, pid: u32) -> Result<Duration, ProcessError> {
    const TICK_MS: u64 = 10;
    let fields = stat_fields(proc_root, pid)?;
    let ticks: u64 = [14_usize, 15]
        .into_iter()
        .filter_map(|number| fields.get(number - 3)?.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks.saturating_mul(TICK_MS)))
}
