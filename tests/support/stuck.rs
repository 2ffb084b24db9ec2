//! What a process that does not end is doing, with all that it started: for the message of a test that waited in vain.

use std::fmt::Write as _;
use std::fs;

use crate::faults::children;

/// This process and all below it.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&one) = family.get(next) {
        // One that has ended meanwhile has none.
        family.extend(children(one).unwrap_or_default());
        next += 1;
    }
    family
}

/// The entries of a folder that are numbers.
fn numbers(folder: &str) -> Vec<u32> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// One line for each thread of the process and of those that it started: state, system call, and where in the kernel it waits.
pub(crate) fn describe(pid: u32) -> String {
    let mut text = String::new();
    for process in family(pid) {
        let folder = format!("/proc/{process}/task");
        for thread in numbers(&folder) {
            let read = |file: &str| {
                let text = fs::read_to_string(format!("{folder}/{thread}/{file}"));
                text.unwrap_or_else(|error| error.to_string())
            };
            let status = read("status");
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or("?").trim().to_owned()
            };
            let stack: Vec<String> = read("stack")
                .lines()
                .map(|line| line.rsplit(' ').next().unwrap_or(line).to_owned())
                .collect();
            let _ = write!(
                text,
                "\n  {process}/{thread} {} {}, traced by {}, system call {}: {}",
                of("Name:"),
                of("State:"),
                of("TracerPid:"),
                read("syscall").trim(),
                stack.join(" ")
            );
        }
    }
    text
}
