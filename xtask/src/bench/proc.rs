//! What `/proc` says of a process: its memory, and the BPF maps and programs behind its descriptors.

use std::collections::HashMap;
use std::fs;

/// One KiB, the unit of `/proc/PID/smaps`.
const KIB: u64 = 1024;

/// How `/proc/PID/smaps` calls a BPF map that a process has mapped.
const BPF_MAP: &str = "anon_inode:bpf-map";

/// Memory of a process, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident, without mapped BPF maps.
    pub(super) resident: u64,
}

/// A process's memory; nothing when it is gone.
pub(super) fn memory(pid: u32) -> Memory {
    Memory::parse(&fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default())
}

impl Memory {
    /// Reads `smaps` (proc(5)): a line that begins with an address range, then lines of `Name: KiB kB`.
    fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        let mut is_map = false;
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(first), Some(second)) = (words.next(), words.next()) else {
                continue;
            };
            if !first.ends_with(':') {
                is_map = line.ends_with(BPF_MAP);
            } else if first == "Rss:" && !is_map {
                memory.resident += second.parse::<u64>().unwrap_or(0) * KIB;
            }
        }
        memory
    }
}

/// Resident memory of a process as `/proc/PID/status` counts it, mapped BPF maps included, bytes; 0 when it is gone.
pub(super) fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&text, "VmRSS").unwrap_or(0) * KIB
}

/// All BPF maps that a process has descriptors of.
pub(super) fn map_bytes(pid: u32) -> u64 {
    held(pid).maps.values().sum()
}

/// A number behind `name:` in a file of lines.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A loaded BPF program as its descriptor shows it (kernel/bpf/syscall.c, `bpf_prog_show_fdinfo`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Program {
    /// `enum bpf_prog_type`; 2 is a uprobe.
    pub(super) kind: u64,
    pub(super) id: u64,
    /// Counted while `kernel.bpf_stats_enabled` is 1.
    pub(super) run_ns: u64,
    pub(super) runs: u64,
    /// Runs that the kernel refused because the program ran already.
    pub(super) missed: u64,
}

/// What a process holds of BPF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes of the maps that it has descriptors of (`memlock`: what the kernel allocated), by number: of one map there may be several.
    pub(super) maps: HashMap<u64, u64>,
    /// In the order in which they were loaded.
    pub(super) programs: Vec<Program>,
    /// Links to uprobes: multi links, or perf events.
    pub(super) uprobe_links: usize,
}

/// The processes whose parent a process is (`PPid` of `/proc/PID/status`; not every kernel has lists of children).
pub(super) fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            field(&text, "PPid") == Some(parent.into())
        })
        .collect()
}

/// What a process holds; nothing when it is gone.
pub(super) fn held(pid: u32) -> Held {
    let numbers = fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut held = Held::default();
    for number in numbers {
        // It may have been closed meanwhile.
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
        held.add(&text);
    }
    held.programs.sort_by_key(|program| program.id);
    held
}

impl Held {
    fn add(&mut self, text: &str) {
        let number = |name| field(text, name);
        if number("map_type").is_some() {
            let (id, bytes) = (number("map_id"), number("memlock"));
            self.maps.insert(id.unwrap_or(0), bytes.unwrap_or(0));
        } else if let Some(kind) = number("prog_type") {
            self.programs.push(Program {
                kind,
                id: number("prog_id").unwrap_or(0),
                run_ns: number("run_time_ns").unwrap_or(0),
                runs: number("run_cnt").unwrap_or(0),
                missed: number("recursion_misses").unwrap_or(0),
            });
        } else if text.contains("uprobe") {
            // `link_type` of multi links, `event_type` of perf links (kernel/trace/bpf_trace.c, kernel/bpf/syscall.c).
            self.uprobe_links += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Held, Memory, Program};

    #[test]
    fn mapped_maps_are_no_memory_of_the_process() {
        let text = "7f00-7f10 r--s 00001000 00:10 1 anon_inode:bpf-map\nSize: 8 kB\nRss: 8 kB\n\
                    7f10-7f20 rw-s 00000000 00:10 1    anon_inode:bpf-map\nSize: 64 kB\nRss: 12 kB\n\
                    5500-5600 r-xp 00000000 fe:00 1    /usr/bin/program\nSize: 100 kB\nRss: 20 kB\n\
                    7ff0-7fff rw-p 00000000 00:00 0\nSize: 9 kB\nRss: 3 kB\nVmFlags: rd wr\n";
        let memory = Memory {
            resident: 23 * 1024,
        };
        assert_eq!(Memory::parse(text), memory);
    }

    #[test]
    fn descriptors_are_told_apart() {
        let mut held = Held::default();
        held.add("pos:\t0\nmap_type:\t2\nkey_size:\t4\nmemlock:\t4096\nmap_id:\t8\n");
        held.add("pos:\t0\nmap_type:\t1\nmemlock:\t100\nmap_id:\t9\n");
        held.add("pos:\t0\nmap_type:\t1\nmemlock:\t100\nmap_id:\t9\n");
        held.add("prog_type:\t2\nmemlock:\t8192\nprog_id:\t70\nrun_time_ns:\t500\nrun_cnt:\t5\n");
        held.add("link_type:\tuprobe_multi\nlink_id:\t3\nprog_id:\t70\n");
        held.add("");
        let program = Program {
            kind: 2,
            id: 70,
            run_ns: 500,
            runs: 5,
            missed: 0,
        };
        assert_eq!(held.maps.values().sum::<u64>(), 4196);
        assert_eq!(held.uprobe_links, 1);
        assert_eq!(held.programs, [program]);
    }
}
