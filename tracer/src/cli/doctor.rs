//! `leakscope doctor`: what this machine, this user and a process allow, and what to do about the rest.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use bytesize::ByteSize;

use super::{args::DoctorArguments, output::to_stdout};
use crate::{
    kernel::{self, LinkMode, MappingWay, Probe, ProbeOptions, Verdict},
    kernel_memory::read_machine_once,
    report::clean,
    session::{Unwinding, inspect},
};

/// Runs the checks and prints them.
pub(super) fn run(arguments: &DoctorArguments) -> anyhow::Result<ExitCode> {
    // Where nobody reads on, nothing is wrong.
    let mut works = true;
    to_stdout(|out| {
        works = print(out, arguments)?;
        Ok(())
    })
    .context("cannot write to stdout")?;
    Ok(ExitCode::from(u8::from(!works)))
}

/// Prints everything; tells whether tracing can work.
fn print(out: &mut dyn Write, arguments: &DoctorArguments) -> io::Result<bool> {
    let links = arguments.links.map(LinkMode::from);
    let mut works = true;
    let mut limited = false;
    writeln!(out, "leakscope {}", env!("CARGO_PKG_VERSION"))?;
    let provenance = kernel::provenance();
    writeln!(
        out,
        "  BPF object     sha256 {} ({})\n                 built by {}\n",
        provenance.sha256, provenance.source, provenance.toolchain
    )?;
    for check in kernel::checks(links) {
        works &= check.verdict != Verdict::Missing;
        limited |= check.verdict == Verdict::Degraded;
        line(
            out,
            check.verdict,
            &check.name,
            &check.detail,
            &check.remedy,
        )?;
    }
    works &= print_probe(out, links)?;
    print_kernel_memory(out)?;
    let process_works = match arguments.pid {
        Some(pid) => print_process(out, pid)?,
        None => true,
    };
    let said = match (works, limited) {
        (true, false) => "Tracing works here.",
        (true, true) => "Tracing works here, but for what the lines marked DEGRADED say.",
        (false, _) => "Tracing cannot work here: see the lines marked MISSING.",
    };
    let of_process = if works && !process_works {
        " This process cannot be traced: see the lines marked MISSING."
    } else {
        ""
    };
    writeln!(out, "\n{said}{of_process}")?;
    Ok(works && process_works)
}

/// One line of the list.
fn line(
    out: &mut dyn Write,
    verdict: Verdict,
    name: &str,
    detail: &str,
    remedy: &str,
) -> io::Result<()> {
    let mark = match verdict {
        Verdict::Good => "ok",
        Verdict::Degraded => "DEGRADED",
        Verdict::Missing => "MISSING",
    };
    // A process chooses its own name, and those of its files and functions.
    writeln!(out, "  {mark:<9} {name:<15} {}", clean(detail))?;
    if verdict != Verdict::Good && !remedy.is_empty() {
        let remedy = clean(remedy);
        writeln!(out, "  {:<9} {:<15} what to do: {remedy}", "", "")?;
    }
    Ok(())
}

/// Loads the probe, as a trace would, and says what it takes.
fn print_probe(out: &mut dyn Write, links: Option<LinkMode>) -> io::Result<bool> {
    let options = ProbeOptions {
        links,
        mapping_steps: true,
        page_faults: true,
        ends: true,
        kernel_allocations: true,
        ..ProbeOptions::default()
    };
    let mut probe = match Probe::load(&options) {
        Ok(probe) => probe,
        Err(error) => {
            line(out, Verdict::Missing, "probe", &error.to_string(), "")?;
            return Ok(false);
        }
    };
    // Where it cannot be loaded it is not among the programs.
    let _ = probe.write_watcher();
    let _ = probe.block_watcher();
    let _ = probe.load_kernel_allocations();
    let _ = probe.held_by_files(std::process::id());
    let programs = match probe.verified_instructions() {
        Ok(programs) => programs
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", "),
        Err(error) => error.to_string(),
    };
    line(
        out,
        Verdict::Good,
        "probe",
        &format!("accepted; instructions verified: {programs}"),
        "",
    )?;
    print_mappings(out, probe.mapping_way())?;
    let sum = |at_once: bool| -> u64 {
        probe
            .memory()
            .iter()
            .filter(|map| map.allocated == at_once)
            .map(|map| map.bytes)
            .sum()
    };
    line(
        out,
        Verdict::Good,
        "map memory",
        &format!(
            "{} at once, at most {} more as processes and threads come",
            ByteSize::b(sum(true)),
            ByteSize::b(sum(false))
        ),
        "",
    )?;
    for map in probe.memory() {
        let when = if map.allocated { "" } else { " at most" };
        writeln!(
            out,
            "  {:<9} {:<15} {:<14} {:>10}{when}, {} entries",
            "",
            "",
            map.name,
            ByteSize::b(map.bytes).to_string(),
            map.entries
        )?;
    }
    Ok(true)
}

/// Says what the kernel tells of its own memory.
fn print_kernel_memory(out: &mut dyn Write) -> io::Result<()> {
    const NAME: &str = "kernel memory";
    let (look, refused) = read_machine_once(Path::new("/proc"), Path::new("/sys"));
    let lines = match look.lines.map_or(0, |lines| lines.len()) {
        0 => "no lines of its source (CONFIG_MEM_ALLOC_PROFILING)".to_owned(),
        lines => format!("{lines} lines of its source"),
    };
    let told = format!(
        "watched without a probe (--kernel): {} slab caches, {} classes, {lines}",
        look.slabs.len(),
        look.classes.len()
    );
    if refused.is_empty() {
        return line(out, Verdict::Good, NAME, &told, "");
    }
    let remedy = "run as root; what can be read is watched";
    let said = format!("{told}; {}", refused.join("; "));
    line(out, Verdict::Degraded, NAME, &said, remedy)
}

/// Says how mappings are seen, and what that costs.
fn print_mappings(out: &mut dyn Write, way: &MappingWay) -> io::Result<()> {
    const NAME: &str = "mappings";
    match way {
        MappingWay::Functions => line(
            out,
            Verdict::Good,
            NAME,
            "seen at functions of the kernel (fentry, fexit): other calls cost what they did",
            "",
        ),
        MappingWay::Places { why } => line(
            out,
            Verdict::Degraded,
            NAME,
            &format!(
                "seen when the kernel chooses an address for one, which costs only who maps; what goes, and what is mapped elsewhere, is \
                 found by looking at each process every second ({why})"
            ),
            "nothing has to be done; a kernel with BTF that allows programs of type tracing sees every step",
        ),
    }
}

/// Says what would be attached in a process, and how its files can be unwound.
fn print_process(out: &mut dyn Write, pid: u32) -> io::Result<bool> {
    writeln!(out, "\nProcess {pid}")?;
    let found = match inspect(Path::new("/proc"), pid) {
        Ok(found) => found,
        Err(error) => {
            line(out, Verdict::Missing, "process", &error.to_string(), "")?;
            return Ok(false);
        }
    };
    line(out, Verdict::Good, "name", &found.comm, "")?;
    let is_read = matches!(&found.go, Some(Ok(_)));
    if found.probes.is_empty() && !is_read {
        line(
            out,
            Verdict::Missing,
            "allocators",
            "none known in the files that it maps",
            "see the notes below",
        )?;
    }
    let mut allocator = "";
    for probe in &found.probes {
        if probe.allocator != allocator {
            allocator = &probe.allocator;
            line(out, Verdict::Good, "allocator", allocator, "")?;
        }
        writeln!(
            out,
            "  {:<9} {:<15} {:<20} at {:#x}: {}",
            "",
            "",
            clean(&probe.name),
            probe.offset,
            clean(&probe.reason)
        )?;
    }
    for covered in &found.covered {
        line(out, Verdict::Good, "covered", covered, "")?;
    }
    for note in &found.notes {
        line(out, Verdict::Degraded, "note", note, "")?;
    }
    match &found.python {
        Some(Ok(seen)) => line(out, Verdict::Good, "python", seen, "")?,
        Some(Err(why)) => line(out, Verdict::Degraded, "python", why, "")?,
        None => {}
    }
    match &found.go {
        Some(Ok(seen)) => line(out, Verdict::Good, "go", seen, "")?,
        Some(Err(why)) => line(out, Verdict::Degraded, "go", why, "")?,
        None => {}
    }
    for file in &found.files {
        let path = file.path.display();
        match &file.unwinding {
            Unwinding::Table {
                rows,
                rows_full,
                bytes,
                text_bytes,
            } => line(
                out,
                Verdict::Good,
                "unwinding",
                &format!(
                    "{path}: {rows} rows of {rows_full}, {}, for {} of code",
                    ByteSize::b(*bytes as u64),
                    ByteSize::b(*text_bytes)
                ),
                "",
            )?,
            Unwinding::FramePointers { reason } => line(
                out,
                Verdict::Good,
                "unwinding",
                &format!("{path}: by frame pointers ({reason})"),
                "",
            )?,
            Unwinding::Impossible { reason } => line(
                out,
                Verdict::Degraded,
                "unwinding",
                &format!("{path}: stacks end here: {reason}"),
                "",
            )?,
        }
    }
    Ok(!found.probes.is_empty() || is_read)
}

#[cfg(test)]
mod tests {
    use super::line;
    use crate::kernel::Verdict;

    #[test]
    fn a_name_with_escapes_moves_no_cursor() {
        let mut out = Vec::new();
        let name = "e\u{1b}[2J\u{1b}]0;title\u{7}\r\nok\u{202e}";
        line(&mut out, Verdict::Missing, "name", name, name).unwrap_or_default();
        let text = String::from_utf8_lossy(&out);
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.lines()
                .all(|line| !line.chars().any(char::is_control) && !line.contains('\u{202e}')),
            "{text:?}"
        );
    }
}
