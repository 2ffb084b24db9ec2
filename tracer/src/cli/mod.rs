//! Arguments (raw) to a plan (validated), and what each subcommand does with it. A file for each subcommand. The only
//! room that writes to stdout and stderr.

mod args;
mod completions;
mod config;
mod daemon;
mod diff;
mod doctor;
#[cfg(test)]
mod documented;
mod dump;
mod floor;
mod guard;
mod heap;
mod manual;
mod output;
mod places;
mod plan;
mod progress;
mod reader;
mod report;
mod saved;
mod schema;
mod snapshot;
mod stop;
mod top;
mod trace;
mod values;

use std::{ffi::OsString, process::ExitCode};

use clap::{
    Parser as _,
    error::{ContextKind, ContextValue, ErrorKind},
};

use args::{Arguments, Command};

/// Parses the arguments, runs the subcommand, and gives the exit code: 0 done, 1 could not do it, 2 usage.
#[must_use]
pub fn run() -> ExitCode {
    say_panics();
    crate::kernel::look_up_hosts_by_ourselves();
    let words = match config::with_file(std::env::args_os().collect()) {
        Ok(words) => words,
        Err(error) => {
            output::complain(&format!("leakscope: {}", told(&error)));
            return ExitCode::from(2);
        }
    };
    let arguments = match Arguments::try_parse_from(&words) {
        Ok(arguments) => arguments,
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => {
            output::complain(&format!("error: {}", no_text(&words)));
            return ExitCode::from(2);
        }
        Err(error) => without_hidden(error).exit(),
    };
    if !matches!(arguments.command, Command::Reader { .. }) {
        crate::apart::use_processes();
    }
    let result = match arguments.command {
        Command::Trace(raw) => plan::TracePlan::new(*raw).and_then(|plan| trace::run(&plan)),
        Command::Daemon(raw) if raw.print_config => config::print(&words)
            .and_then(|text| output::say(&text))
            .map(|()| ExitCode::SUCCESS),
        Command::Daemon(raw) => plan::DaemonPlan::new(*raw).and_then(daemon::run),
        Command::Top(raw) => top::run(*raw),
        Command::Dump(raw) => dump::run(&raw),
        Command::Snapshot(raw) => snapshot::run(&raw),
        Command::Diff(raw) => diff::run(&raw),
        Command::Report(raw) => report::run(&raw),
        Command::Heap(raw) => heap::run(&raw),
        Command::Doctor(raw) => doctor::run(&raw),
        Command::Completions(raw) => completions::run(&raw),
        Command::Schema => schema::run(),
        Command::Manual(raw) => manual::run(&raw),
        Command::Floor(raw) => floor::run(&raw),
        Command::Guard => guard::run(),
        Command::Reader { memory } => reader::run(memory),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            output::complain(&format!("leakscope: {}", told(&error)));
            ExitCode::from(1)
        }
    }
}

/// Which argument should be a text and is none, which the parser does not say.
fn no_text(words: &[OsString]) -> String {
    let lossy = |word: &OsString| OsString::from(word.to_string_lossy().into_owned());
    // Some may be what they are: paths, and the words of a command.
    let is_wrong = |place: usize| {
        let others = words.iter().enumerate();
        let others = others.map(|(at, word)| {
            if at == place {
                word.clone()
            } else {
                lossy(word)
            }
        });
        Arguments::try_parse_from(others).is_err_and(|error| error.kind() == ErrorKind::InvalidUtf8)
    };
    let wrong = (0..words.len()).find(|place| {
        let is_text = words.get(*place).is_none_or(|word| word.to_str().is_some());
        !is_text && is_wrong(*place)
    });
    let Some((place, word)) = wrong.and_then(|place| Some((place, words.get(place)?))) else {
        return "an argument is no text (UTF-8)".to_owned();
    };
    let option = place
        .checked_sub(1)
        .and_then(|before| words.get(before)?.to_str());
    let option = option.filter(|option| option.starts_with('-') && !option.contains('='));
    match option {
        Some(option) => format!("the value of {option} is no text (UTF-8): {word:?}"),
        None => format!("an argument is no text (UTF-8): {word:?}"),
    }
}

/// A mistake in the arguments, without proposing a subcommand that the help does not show.
fn without_hidden(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::Strings(proposed)) = error.get(ContextKind::SuggestedSubcommand) else {
        return error;
    };
    let visible = args::visible_command();
    let is_visible = |name: &String| visible.find_subcommand(name).is_some();
    let shown: Vec<String> = proposed
        .iter()
        .filter(|name| is_visible(name))
        .cloned()
        .collect();
    if shown.is_empty() {
        error.remove(ContextKind::SuggestedSubcommand);
    } else {
        error.insert(
            ContextKind::SuggestedSubcommand,
            ContextValue::Strings(shown),
        );
    }
    error
}

/// A panic is a fault of ours: where, with what led to it, for whoever mends it.
fn say_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::force_capture();
        output::complain(&format!("leakscope: {panic}\n{backtrace}"));
    }));
}

/// An error with its causes. Many say their cause themselves, so one whose text was said already is not said again.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Arguments, no_text, told, without_hidden};
    use crate::kernel::KernelError;
    use anyhow::Context as _;
    use clap::Parser as _;
    use std::{ffi::OsString, io, os::unix::ffi::OsStringExt as _};

    #[test]
    fn an_argument_that_is_no_text_was_not_named() {
        let words = |words: &[&[u8]]| -> Vec<OsString> {
            let words = words.iter().map(|word| OsString::from_vec(word.to_vec()));
            words.collect()
        };
        let line = words(&[b"leakscope", b"trace", b"-o", b"\xfe", b"--comm", b"a\xff"]);
        let said = no_text(&line);
        assert!(said.contains("--comm") && said.contains("a\\xFF"), "{said}");
        let line = words(&[b"leakscope", b"trace", b"--comm=a\xff"]);
        assert!(no_text(&line).contains("--comm=a"), "{}", no_text(&line));
    }

    #[test]
    fn no_hidden_subcommand_is_proposed() {
        let said = |wrong: &str| {
            let parsed = Arguments::try_parse_from(["leakscope", wrong]);
            parsed.map_or_else(|error| without_hidden(error).to_string(), |_| String::new())
        };
        assert!(!said("foo").contains("floor"), "{}", said("foo"));
        assert!(said("trce").contains("'trace'"), "{}", said("trce"));
    }

    #[test]
    fn a_cause_is_said_once() {
        let refused = || {
            Err::<(), _>(KernelError::Map {
                name: "LIVE".to_owned(),
                bytes: 8,
                source: io::Error::from_raw_os_error(libc::EPERM),
            })
        };
        for result in [
            refused().map_err(anyhow::Error::from),
            refused().context("cannot begin"),
        ] {
            let text = result
                .map_err(|error| told(&error))
                .err()
                .unwrap_or_default();
            assert_eq!(text.matches("not permitted").count(), 1, "{text}");
            assert!(text.contains("LIVE"), "{text}");
        }
    }
}
