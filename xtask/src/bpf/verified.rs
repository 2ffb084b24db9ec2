//! `bpf verified`: how many instructions the verifier walked for each program, by line of kernels, beside the committed table.
//!
//! Owns `tracer/bpf/<arch>.verified`: a line for each program, a column for each line of kernels. The figures come from the
//! kernels themselves (`leakscope doctor` asks for `bpf_prog_info.verified_insns`), so the table changes with the probe's sources
//! and with the kernels, and growth is seen long before a kernel refuses.

use super::{ARCH, relative, root};
use crate::shell::{self, command};
use crate::vm;
use anyhow::{Context as _, Result, bail};
use clap::Args;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Instructions walked, by program.
pub(crate) type Counts = BTreeMap<String, u32>;

/// What `doctor` writes before the counts.
pub(crate) const WORDS: &str = "instructions verified: ";

/// How `doctor` is asked: each kind of link has programs of its own, and the oldest asks for tracepoints in the place of kernel functions.
pub(crate) const WAYS: [&str; 4] = ["", "--links=session", "--links=multi", "--links=perf"];

/// What a person runs when the table is to be written anew.
const UPDATE: &str = "`cargo xtask bpf verified --update`";

/// A program may grow by one part in so many, and by [`GROWTH`] more, before it is a failure.
const PART: u32 = 10;
/// See [`PART`]: small programs change by as much with every compiler.
const GROWTH: u32 = 100;

/// The most that the verifier walks (`BPF_COMPLEXITY_LIMIT_INSNS`, include/linux/bpf.h).
const LIMIT: u32 = 1_000_000;
/// A program that takes more fails on any kernel: the next kernel's verifier may walk many times as much, as that of Linux 6.19 did.
const MOST: u32 = LIMIT / 10;

/// What `bpf verified` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// `here` for this machine's own kernel, else as for `test vm`; may be repeated
    #[arg(long, default_values_t = ["here", "6.1", "6.12", "6.19", "7.3"].map(str::to_owned))]
    kernel: Vec<String>,
    /// Write the table anew, instead of comparing with it
    #[arg(long)]
    update: bool,
    /// Seconds that each emulated kernel may take
    #[arg(long, default_value_t = 300)]
    timeout: u64,
}

/// What the programs took on one kernel.
pub(crate) struct Measured {
    /// As `uname -r` says.
    pub(crate) release: String,
    /// By program.
    pub(crate) counts: Counts,
}

/// Asks the kernels, and compares or updates.
///
/// # Errors
/// A kernel does not boot or refuses the probe; a program grew beyond the tolerance.
pub(super) fn perform(arguments: &Arguments) -> Result<()> {
    let binary = shell::leakscope_under_test()?;
    let mut measured = Vec::new();
    let (own, others): (Vec<&String>, Vec<&String>) =
        arguments.kernel.iter().partition(|wish| *wish == "here");
    if !own.is_empty() {
        measured.push(here(&binary)?);
    }
    if !others.is_empty() {
        measured.extend(vm::verified(&binary, &others, arguments.timeout)?);
    }
    let mut table = Table::read()?;
    let mut complaints = Vec::new();
    for kernel in &measured {
        let (lines, of_kernel) = table.compare(kernel);
        for line in lines {
            println!("{line}");
        }
        complaints.extend(of_kernel);
        table.put(kernel);
    }
    if arguments.update {
        shell::write(&path(), table.to_text().as_bytes())?;
        println!("wrote {}", relative(&path()));
        return Ok(());
    }
    conclude(&complaints)
}

/// Compares this machine's own kernel with the table.
///
/// # Errors
/// As [`perform`].
pub(super) fn compare_here() -> Result<()> {
    let (lines, complaints) = Table::read()?.compare(&here(&shell::leakscope_under_test()?)?);
    for line in lines {
        println!("{line}");
    }
    conclude(&complaints)
}

fn conclude(complaints: &[String]) -> Result<()> {
    if complaints.is_empty() {
        return Ok(());
    }
    bail!("the verifier:\n  {}", complaints.join("\n  "))
}

/// Asks this machine's own kernel.
fn here(binary: &Path) -> Result<Measured> {
    if !shell::is_root() {
        bail!("the kernel tells root only: run this as root");
    }
    let mut counts = Counts::new();
    for way in WAYS {
        let way = Some(way).filter(|way| !way.is_empty());
        let said = shell::ask(command(binary).arg("doctor").args(way));
        counts.extend(said.iter().flat_map(|text| parse(text)));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot read the kernel's release")?;
    Ok(Measured {
        release: release.trim().to_owned(),
        counts,
    })
}

/// The counts in what `doctor` printed: `… instructions verified: NAME COUNT, NAME COUNT`.
pub(crate) fn parse(text: &str) -> Counts {
    text.lines()
        .filter_map(|line| line.split_once(WORDS))
        .flat_map(|(_, counts)| counts.split(','))
        .filter_map(|pair| {
            let (name, count) = pair.trim().split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        })
        .collect()
}

/// The line of kernels that a release belongs to: its first two numbers.
fn line_of(release: &str) -> String {
    let mut numbers = release.split(['.', '-', '+']);
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => format!("{major}.{minor}"),
        _ => release.to_owned(),
    }
}

fn path() -> PathBuf {
    root().join("tracer/bpf").join(format!("{ARCH}.verified"))
}

/// The committed table: counts by line of kernels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<String, Counts>);

impl Table {
    /// Reads the committed table.
    ///
    /// # Errors
    /// It cannot be read, or is no such table.
    pub(crate) fn read() -> Result<Self> {
        if !path().exists() {
            return Ok(Self::default());
        }
        let text = String::from_utf8(shell::read(&path())?)?;
        Self::parse(&text).with_context(|| format!("{}; run {UPDATE}", relative(&path())))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rows = text.lines().filter(|line| !line.starts_with('#'));
        let head = rows.next().context("it has no head")?;
        let kernels: Vec<&str> = head.split_whitespace().skip(1).collect();
        let mut table = Self::default();
        for row in rows {
            let mut cells = row.split_whitespace();
            let program = cells.next().context("an empty line")?;
            let cells: Vec<&str> = cells.collect();
            if cells.len() != kernels.len() {
                bail!("the line of {program} has {} figures", cells.len());
            }
            for (kernel, cell) in kernels.iter().zip(cells) {
                if cell == "-" {
                    continue;
                }
                let count = cell
                    .parse()
                    .with_context(|| format!("{program} on {kernel}: {cell}"))?;
                table
                    .0
                    .entry((*kernel).to_owned())
                    .or_default()
                    .insert(program.to_owned(), count);
            }
        }
        Ok(table)
    }

    fn to_text(&self) -> String {
        let mut kernels: Vec<&String> = self.0.keys().collect();
        kernels.sort_by_key(|kernel| {
            kernel
                .split('.')
                .map(|number| number.parse().unwrap_or(u32::MAX))
                .collect::<Vec<_>>()
        });
        let mut programs: Vec<&String> = self.0.values().flat_map(BTreeMap::keys).collect();
        programs.sort();
        programs.dedup();
        let mut text = format!(
            "# Instructions that each kernel's verifier walked, of {LIMIT} at most; - where it was not loaded.\n\
             # {UPDATE} rewrites this.\n"
        );
        let mut row = |name: &str, cells: Vec<String>| {
            let cells: String = cells.iter().map(|cell| format!(" {cell:>8}")).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<18}{cells}");
        };
        row(
            "program",
            kernels.iter().map(|name| (*name).clone()).collect(),
        );
        for program in programs {
            let cells = kernels.iter().map(|kernel| {
                let count = self.0.get(*kernel).and_then(|counts| counts.get(program));
                count.map_or_else(|| "-".to_owned(), u32::to_string)
            });
            row(program, cells.collect());
        }
        text
    }

    fn put(&mut self, kernel: &Measured) {
        self.0
            .insert(line_of(&kernel.release), kernel.counts.clone());
    }

    /// What to show of a kernel beside the table, and what to complain of.
    pub(crate) fn compare(&self, kernel: &Measured) -> (Vec<String>, Vec<String>) {
        let line = line_of(&kernel.release);
        let known = self.0.get(&line);
        let mut shown = vec![format!(
            "instructions verified on Linux {}{}",
            kernel.release,
            if known.is_some() {
                String::new()
            } else {
                format!(": {line} is not in the table, so only the limit counts")
            }
        )];
        let mut complaints = Vec::new();
        if kernel.counts.is_empty() {
            complaints.push(format!(
                "Linux {} said nothing of any program",
                kernel.release
            ));
        }
        for (program, &count) in &kernel.counts {
            let before = known.and_then(|counts| counts.get(program)).copied();
            let beside = match before {
                None => "not in the table".to_owned(),
                Some(before) if before == count => "as in the table".to_owned(),
                Some(before) => format!("in the table {before}"),
            };
            shown.push(format!("  {program:<18} {count:>8}  {beside}"));
            let allowed = before.map(|before| before + before / PART + GROWTH);
            if allowed.is_some_and(|allowed| count > allowed) {
                complaints.push(format!(
                    "{program} takes {count} instructions on Linux {}, {} in the table: more than one part in {PART} and {GROWTH} \
                     more; make it smaller, or if it is worth it, {UPDATE}",
                    kernel.release,
                    before.unwrap_or(0),
                ));
            } else if known.is_some() && before.is_none() {
                complaints.push(format!(
                    "{program} is not in the table for Linux {line}: run {UPDATE}"
                ));
            }
            if count > MOST {
                complaints.push(format!(
                    "{program} takes {count} instructions on Linux {}: more than {MOST}, a tenth of the verifier's limit",
                    kernel.release
                ));
            }
        }
        let gone = known
            .into_iter()
            .flat_map(BTreeMap::keys)
            .filter(|program| !kernel.counts.contains_key(*program));
        for program in gone {
            complaints.push(format!(
                "{program} is in the table for Linux {line}, but {} did not take it; if it is gone, run {UPDATE}",
                kernel.release
            ));
        }
        (shown, complaints)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{Counts, MOST, Measured, Table, line_of, parse};

    fn counts(pairs: &[(&str, u32)]) -> Counts {
        pairs
            .iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    fn complaints(pairs: &[(&str, u32)], release: &str) -> Vec<String> {
        let mut table = Table::default();
        table.put(&Measured {
            release: "6.1.0-56-cloud-amd64".to_owned(),
            counts: counts(&[("enter", 30_000), ("exit", 900)]),
        });
        let measured = Measured {
            release: release.to_owned(),
            counts: counts(pairs),
        };
        table.compare(&measured).1
    }

    #[test]
    fn doctor_is_understood() {
        let text = "  ok        BTF\n  ok        probe           accepted; instructions verified: release 2097, mmap_enter 139\n";
        assert_eq!(
            parse(text),
            counts(&[("release", 2097), ("mmap_enter", 139)])
        );
        assert!(parse("  MISSING   probe  refused").is_empty());
    }

    #[test]
    fn a_release_belongs_to_a_line() {
        assert_eq!(line_of("6.1.0-56-cloud-amd64"), "6.1");
        assert_eq!(line_of("6.12.94+deb12-cloud-amd64"), "6.12");
        assert_eq!(line_of("7.0-rc1"), "7.0");
    }

    #[test]
    fn what_is_written_is_read() {
        let mut table = Table::default();
        for (release, pairs) in [
            ("6.12.1", [("a", 1), ("b", 2)]),
            ("6.1.1", [("a", 3), ("c", 4)]),
        ] {
            table.put(&Measured {
                release: release.to_owned(),
                counts: counts(&pairs),
            });
        }
        let text = table.to_text();
        assert!(text.contains("6.1     6.12"), "{text}");
        assert_eq!(Table::parse(&text).unwrap(), table);
        assert!(Table::parse("program 6.1 6.2\na 1\n").is_err());
    }

    #[test]
    fn growth_beyond_the_tolerance_is_a_complaint() {
        let of = |enter| complaints(&[("enter", enter), ("exit", 990)], "6.1.9");
        assert!(of(33_100).is_empty());
        assert_eq!(of(33_101).len(), 1);
        assert!(of(1).is_empty());
    }

    #[test]
    fn a_program_that_is_new_or_gone_is_a_complaint() {
        assert_eq!(complaints(&[("enter", 30_000)], "6.1.9").len(), 1);
        let all = [("enter", 30_000), ("exit", 900), ("more", 5)];
        assert_eq!(complaints(&all, "6.1.9").len(), 1);
        assert_eq!(complaints(&[], "6.1.9").len(), 3);
    }

    #[test]
    fn the_committed_table_is_below_the_limit_on_every_kernel() {
        let table = Table::read().unwrap();
        for kernel in ["6.1", "6.12", "6.18", "6.19", "7.3"] {
            let counts = table.0.get(kernel).unwrap();
            assert!(counts.contains_key("allocate_session"), "{kernel}");
            for (program, &count) in counts {
                assert!(count <= MOST, "{program} on {kernel}: {count}");
            }
        }
    }

    #[test]
    fn another_line_is_held_by_the_limit_alone() {
        assert!(complaints(&[("other", 100_000)], "6.19.1").is_empty());
        assert_eq!(complaints(&[("other", 100_001)], "6.19.1").len(), 1);
        assert_eq!(complaints(&[], "6.19.1").len(), 1);
    }
}
