//! `bench`: what tracing costs, measured on programs of its own, against the cost of empty probes and against other tools.
//!
//! All subjects of a case are measured in turn, again and again (A B C, A B C), and medians are shown: figures of one run can
//! be compared with each other, those of different runs cannot. The cost of an operation is CPU time of the target, so
//! that other work on the machine matters little.

mod asked;
mod attach;
mod budget;
mod case;
mod child;
mod daemon;
mod faults;
mod figures;
mod heap;
mod kernel;
mod languages;
mod leak;
mod loads;
mod looks;
mod proc;
mod processes;
mod profile;
mod report_file;
mod rounds;
mod servers;
mod subject;
mod table;
mod twins;
mod verdicts;
mod victim;

use crate::shell;
use anyhow::{Context as _, Result, bail};
use case::{
    ATTACH, BUDGET, CASES, DAEMON, FAULTS, HEAP, KERNEL, LANGUAGES, LEAK, LEAK_OTHERS, LOOKS,
    PROCESSES, PROFILE, REPORT, SCALING, SERVERS, TWINS, VERDICTS,
};
use clap::Args;
use figures::Figures;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use subject::Subject;

/// What `bench` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Cases to run; none: all but `full`, `heap`, `kernel`, `budget`, `twins`, `languages`, `leak`, `leak-others`, `servers` and `verdicts`
    cases: Vec<String>,
    /// Write the figures to stdout as one JSON object
    #[arg(long)]
    json: bool,
    /// How often each subject of a case is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Another tracer: its name and the command that attaches it to process {pid}; it is ended by SIGINT
    #[arg(long = "peer", value_name = "NAME=COMMAND", value_parser = peer)]
    peers: Vec<(String, String)>,
    /// Leave heaptrack, bpftrace and Valgrind out
    #[arg(long)]
    own: bool,
    /// Also the case `full`: more live blocks than leakscope holds (takes 1 GiB)
    #[arg(long)]
    full_set: bool,
    /// Of the cases `budget`, `twins` and `languages`, only loads whose name contains this.
    #[arg(long, value_name = "NAME")]
    load: Option<String>,
}

/// Parses `NAME=COMMAND`.
fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && command.contains("{pid}") => {
            Ok((name.to_owned(), command.to_owned()))
        }
        _ => Err("it must read NAME=COMMAND, and the command must contain {pid}".to_owned()),
    }
}

/// A benchmark under way.
struct Bench {
    leakscope: PathBuf,
    runs: u32,
    /// Which loads of the budget; all where it is empty.
    load: String,
    folder: Folder,
    problems: Vec<String>,
}

/// A folder that is removed when it is dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // A leftover in the target directory harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    /// For reports and complaints.
    fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// Where it stands.
    fn say(&self, line: &str) {
        eprintln!("{line}");
    }

    /// Something could not be measured, or is to be looked at.
    fn note(&mut self, problem: String) {
        eprintln!("{problem}");
        self.problems.push(problem);
    }

    /// Keeps leakscope's last report for a look at what was lost.
    fn keep_report(&mut self, case: &str, run: u32) -> Result<()> {
        let kept = shell::target_dir().join(format!("bench/lost-{case}-{run}.json"));
        fs::copy(self.folder().join("report.json"), &kept)
            .with_context(|| format!("cannot write {}", kept.display()))?;
        self.note(format!(
            "{case}: events were lost in run {run}; its report is {}",
            shell::relative(&kept)
        ));
        Ok(())
    }

    /// What a process wrote to stderr.
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder().join(name)).unwrap_or_default()
    }
}

/// Runs the cases and prints their figures.
///
/// # Errors
/// When a case does not exist, nothing can be traced here, or leakscope fails in a case; what was measured is printed all
/// the same.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let wanted = wanted(arguments)?;
    if !shell::is_root() {
        bail!("attaching takes root: run `cargo xtask bench` as root");
    }
    let leakscope = shell::build_leakscope()?;
    let folder = shell::target_dir().join(format!("bench/run-{}", std::process::id()));
    shell::make_dir(&folder)?;
    let mut bench = Bench {
        leakscope,
        runs: arguments.runs,
        load: arguments.load.clone().unwrap_or_default(),
        folder: Folder(folder),
        problems: Vec::new(),
    };
    let subjects = if arguments.own {
        Subject::own()
    } else {
        Subject::all(&arguments.peers)
    };
    let mut figures = Figures {
        kernel: one_line("/proc/sys/kernel/osrelease"),
        processor: processor(),
        processors: std::thread::available_parallelism().map_or(0, usize::from),
        runs: arguments.runs,
        ..Figures::default()
    };
    let mut failed = false;
    if !arguments.json {
        println!("{figures}");
    }
    for name in wanted {
        match run(&mut bench, name, &subjects, &mut figures) {
            // At once: a benchmark takes minutes and may be ended before its last case.
            Ok(text) if !arguments.json => println!("\n{text}"),
            Ok(_) => {}
            Err(error) => {
                bench.note(format!("{name}: {error:#}"));
                failed = true;
            }
        }
    }
    figures.problems = std::mem::take(&mut bench.problems);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
    } else {
        for problem in &figures.problems {
            println!("\n{problem}");
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The names of the cases to run, in the order of the table.
fn wanted(arguments: &Arguments) -> Result<Vec<&'static str>> {
    let names = case::names();
    if let Some(unknown) = arguments
        .cases
        .iter()
        .find(|name| !names.contains(&name.as_str()))
    {
        bail!(
            "there is no case {unknown}; the cases are {}",
            names.join(", ")
        );
    }
    // The verdicts are no figures of cost, and take four minutes; the budget takes eight, twins six, languages six, servers eleven, a run of a leak one, heaps five, the kernel one a run.
    let large = |name: &str| CASES.iter().any(|case| case.name == name && case.large);
    Ok(names
        .into_iter()
        .filter(|name| {
            if arguments.cases.is_empty() {
                ![
                    HEAP,
                    KERNEL,
                    LOOKS,
                    BUDGET,
                    TWINS,
                    LANGUAGES,
                    LEAK,
                    LEAK_OTHERS,
                    SERVERS,
                    VERDICTS,
                ]
                .contains(name)
                    && (arguments.full_set || !large(name))
            } else {
                arguments.cases.iter().any(|wanted| wanted == name)
                    || arguments.full_set && large(name)
            }
        })
        .collect())
}

/// Runs one case; its figures as text.
fn run(
    bench: &mut Bench,
    name: &'static str,
    subjects: &[Subject],
    figures: &mut Figures,
) -> Result<String> {
    Ok(match name {
        ATTACH => {
            figures.attach = attach::measure(bench)?;
            table::Attach(&figures.attach).to_string()
        }
        PROCESSES => figures
            .processes
            .insert(processes::measure(bench)?)
            .to_string(),
        REPORT => figures.report.insert(asked::measure(bench)?).to_string(),
        DAEMON => figures.daemon.insert(daemon::measure(bench)?).to_string(),
        LOOKS => figures.looks.insert(looks::measure(bench)?).to_string(),
        HEAP => figures.heap.insert(heap::measure(bench)?).to_string(),
        KERNEL => figures
            .kernel_cost
            .insert(kernel::measure(bench)?)
            .to_string(),
        FAULTS => figures.faults.insert(faults::measure(bench)?).to_string(),
        SERVERS => figures.servers.insert(servers::measure(bench)?).to_string(),
        LEAK | LEAK_OTHERS => {
            let servers: &[leak::Server] = if name == LEAK {
                &leak::SERVERS
            } else {
                &leak::OTHERS
            };
            let measured = leak::measure(bench, name, servers)?;
            let text = measured.to_string();
            figures.leaks.push(measured);
            text
        }
        BUDGET => figures.budget.insert(budget::measure(bench)?).to_string(),
        TWINS => figures.twins.insert(twins::measure(bench)?).to_string(),
        LANGUAGES => figures
            .languages
            .insert(languages::measure(bench)?)
            .to_string(),
        VERDICTS => {
            let verdicts = figures.verdicts.insert(verdicts::measure(bench)?);
            for problem in verdicts.broken() {
                bench.note(problem);
            }
            verdicts.to_string()
        }
        PROFILE => {
            figures.profile = profile::measure(bench)?;
            table::Profile(&figures.profile).to_string()
        }
        _ => {
            let case = CASES
                .iter()
                .find(|case| case.name == name)
                .with_context(|| format!("there is no case {name}"))?;
            if name == SCALING {
                let scaling = rounds::scale(bench, case, &Subject::own())?;
                figures.scaling.insert(scaling).to_string()
            } else {
                let measured = rounds::measure(bench, case, subjects)?;
                let text = measured.to_string();
                figures.cases.push(measured);
                text
            }
        }
    })
}

fn one_line(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The processor's name.
fn processor() -> String {
    one_line("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{case, peer};

    #[test]
    fn a_peer_needs_a_name_and_a_place_for_the_process() {
        assert_eq!(
            peer("memleak=memleak -p {pid} --x=1"),
            Ok(("memleak".to_owned(), "memleak -p {pid} --x=1".to_owned()))
        );
        for wrong in ["memleak -p {pid}", "=x {pid}", "name=memleak -p 1"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_case_has_a_name_of_its_own_and_a_program() {
        let mut names = case::names();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for case in &case::CASES {
            let source = crate::shell::root().join(format!("tests/programs/{}.c", case.program));
            assert!(source.is_file(), "{}", source.display());
        }
    }
}
