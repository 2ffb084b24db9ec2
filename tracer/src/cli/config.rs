//! The daemon's configuration file: TOML whose keys are the long options of `leakscope daemon`. What stands in it is put before the
//! words of the command line, so that every option can stand there; what the command line says too is left out.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::Read as _,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow, bail};
use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory as _, Parser as _,
    error::{ContextKind, ErrorKind},
    parser::ValueSource,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::args::Arguments;

/// Where it is looked for if no other is named; there need not be one.
const PLACE: &str = "/etc/leakscope/config.toml";

/// The largest file that is read, bytes.
const LARGEST: u64 = 1 << 20;

/// The subcommand that has a configuration.
const DAEMON: &str = "daemon";

/// Options that are about the file itself.
const OWN: [&str; 3] = ["config", "print-config", "help"];

/// Options of which one on the command line takes the place of all of them in the file: which processes are traced.
const TARGETS: [&str; 4] = ["pid", "comm", "cgroup", "all"];

/// The words of a command line, with those that the configuration file adds.
pub(super) fn with_file(words: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if words.get(1).is_none_or(|word| word != DAEMON) {
        return Ok(words);
    }
    let command = Arguments::command().ignore_errors(true);
    let Some(given) = command
        .try_get_matches_from(&words)
        .ok()
        .and_then(|matches| matches.subcommand_matches(DAEMON).cloned())
    else {
        // Help is asked for.
        return Ok(words);
    };
    let named = given.get_one::<PathBuf>("config");
    let path = named.map_or(Path::new(PLACE), PathBuf::as_path);
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(words);
        }
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let entries = parse(&text).with_context(|| path.display().to_string())?;
    let is_given = |option: &str| {
        given.value_source(&option.replace('-', "_")) == Some(ValueSource::CommandLine)
    };
    let targets_given = TARGETS.iter().any(|option| is_given(option));
    let added = entries
        .into_iter()
        .filter(|(option, _)| {
            !(is_given(option) || (targets_given && TARGETS.contains(&option.as_str())))
        })
        .flat_map(|(_, words)| words);
    let (begin, rest) = words.split_at_checked(2).unwrap_or((&words, &[]));
    Ok(begin
        .iter()
        .cloned()
        .chain(added)
        .chain(rest.iter().cloned())
        .collect())
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(LARGEST + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// The options of a file, by name, as words of a command line.
fn parse(text: &str) -> anyhow::Result<BTreeMap<String, Vec<OsString>>> {
    let line = |span: Range<usize>| {
        let before = text.get(..span.start).unwrap_or(text);
        before.matches('\n').count() + 1
    };
    let table = DeTable::parse(text).map_err(|error| {
        let place = line(error.span().unwrap_or_default());
        anyhow!("line {place}: {}", error.message())
    })?;
    let daemon = daemon();
    let mut options = BTreeMap::new();
    for (key, value) in table.get_ref() {
        let name = key.get_ref().as_ref();
        let place = || format!("line {}", line(key.span()));
        let Some(option) = option(&daemon, name) else {
            bail!(
                "{}: there is no option {name:?}; the keys are the options of `leakscope daemon`, such as budget or listen",
                place()
            );
        };
        let words = words(option, name, value).with_context(place)?;
        check(&words).with_context(place)?;
        options.insert(name.to_owned(), words);
    }
    Ok(options)
}

/// The daemon's command line.
fn daemon() -> Command {
    let mut whole = Arguments::command();
    whole.build();
    whole.find_subcommand(DAEMON).cloned().unwrap_or_default()
}

/// An option that may stand in the file.
fn option<'a>(daemon: &'a Command, name: &str) -> Option<&'a Arg> {
    daemon
        .get_arguments()
        .filter(|option| option.get_long() == Some(name))
        .find(|_| !OWN.contains(&name))
}

/// An option with a value of the file, as words.
fn words(option: &Arg, name: &str, value: &Spanned<DeValue<'_>>) -> anyhow::Result<Vec<OsString>> {
    let is_flag = matches!(option.get_action(), ArgAction::SetTrue);
    let takes_many = matches!(option.get_action(), ArgAction::Append);
    let word = |value: &DeValue<'_>| {
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            _ => bail!("{name} is a text or a number, e.g. {name} = \"…\""),
        };
        Ok(OsString::from(format!("--{name}={text}")))
    };
    match value.get_ref() {
        DeValue::Boolean(on) if is_flag => Ok(on
            .then(|| OsString::from(format!("--{name}")))
            .into_iter()
            .collect()),
        _ if is_flag => bail!("{name} is true or false"),
        DeValue::Array(values) if takes_many => {
            values.iter().map(|value| word(value.get_ref())).collect()
        }
        DeValue::Array(_) => bail!("{name} has one value, not a list"),
        value => Ok(vec![word(value)?]),
    }
}

/// Whether each value is one that the option takes; how the options go together is seen later.
fn check(words: &[OsString]) -> anyhow::Result<()> {
    for word in words {
        let line = [OsStr::new("leakscope"), OsStr::new(DAEMON), word];
        let Err(error) = Arguments::try_parse_from(line) else {
            continue;
        };
        if matches!(
            error.kind(),
            ErrorKind::ValueValidation | ErrorKind::InvalidValue
        ) {
            let text = error.to_string();
            // What clap says of the command line as a whole comes after an empty line.
            let first = text.split("\n\n").next().unwrap_or(&text);
            let first = first.trim_start_matches("error: ").trim().to_owned();
            let known = error.get(ContextKind::InvalidArg).is_some();
            bail!("{}", if known { first } else { text });
        }
    }
    Ok(())
}

/// What is in force, as a file that can be read again: options that have no value are comments.
pub(super) fn print(words: &[OsString]) -> anyhow::Result<String> {
    let matches = Arguments::command().try_get_matches_from(words)?;
    let given = matches
        .subcommand_matches(DAEMON)
        .context("only the daemon has a configuration")?;
    let mut text = String::new();
    for option in daemon().get_arguments() {
        let Some(name) = option.get_long() else {
            continue;
        };
        if OWN.contains(&name) || option.is_hide_set() {
            continue;
        }
        let help = option
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        text.push_str(&format!("# {}\n", help.replace('\n', "\n# ")));
        match value(option, given) {
            Some(value) => text.push_str(&format!("{name} = {value}\n\n")),
            None => text.push_str(&format!("# {name} =\n\n")),
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    Ok(text)
}

/// Whether a flag is on although nobody set it: the daemon traces all where nothing else is named, and watches the kernel.
fn is_usual(flag: &str, given: &ArgMatches) -> bool {
    let is_named =
        |option: &&str| *option != "all" && matches!(given.try_get_raw(option), Ok(Some(_)));
    match flag {
        "kernel" => true,
        "all" => !TARGETS.iter().any(is_named),
        _ => false,
    }
}

/// An option's value in TOML; `None` where it has none.
fn value(option: &Arg, given: &ArgMatches) -> Option<String> {
    let id = option.get_id().as_str();
    if matches!(option.get_action(), ArgAction::SetTrue) {
        let is_on = given.get_flag(id) || is_usual(id, given);
        return Some(is_on.to_string());
    }
    let values: Vec<String> = given
        .get_raw(id)?
        .map(|raw| quoted(&raw.to_string_lossy()))
        .collect();
    if matches!(option.get_action(), ArgAction::Append) {
        return Some(format!("[{}]", values.join(", ")));
    }
    values.into_iter().next()
}

/// A text in TOML: a basic string, or a number as it is.
fn quoted(text: &str) -> String {
    let are_digits =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, parts) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = are_digits(whole) && are_digits(parts);
    if is_number && text.len() < 10 && (whole == "0" || !whole.starts_with('0')) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                out.push('\\');
                out.push(character);
            }
            _ if character.is_control() => {
                out.push_str(&format!("\\u{:04X}", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{ffi::OsString, fs, io::Write as _};

    use super::{daemon, parse, print, quoted, with_file};

    fn merged(file: &str, words: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut named = tempfile::NamedTempFile::new()?;
        named.write_all(file.as_bytes())?;
        let path = named.path().display().to_string();
        let line = ["leakscope", "daemon", "--config", &path];
        let line = line.iter().chain(words).map(OsString::from).collect();
        let all = with_file(line)?;
        Ok(all
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .filter(|word| *word != path)
            .collect())
    }

    fn said(file: &str) -> String {
        format!("{:#}", parse(file).unwrap_err())
    }

    #[test]
    fn what_stands_in_the_file_comes_before_the_command_line() {
        let file = "# all of it\nbudget = 0.5\nlisten = \"127.0.0.1:7117\"\nkernel = true\nnative = false\nexclude = [\"a*\", \"/b\"]\n";
        let words = merged(file, &["--max-stacks", "4096"]).unwrap();
        assert_eq!(
            words,
            [
                "leakscope",
                "daemon",
                "--budget=0.5",
                "--exclude=a*",
                "--exclude=/b",
                "--kernel",
                "--listen=127.0.0.1:7117",
                "--config",
                "--max-stacks",
                "4096"
            ]
        );
    }

    #[test]
    fn the_command_line_wins() {
        let file = "budget = 0.5\nmax-stacks = 128\ncomm = [\"redis*\"]\n";
        let words = merged(file, &["--budget", "2", "-p", "1"]).unwrap();
        let words = words.join(" ");
        assert!(words.contains("--max-stacks=128"), "{words}");
        assert!(
            !words.contains("0.5") && !words.contains("redis"),
            "{words}"
        );
    }

    #[test]
    fn a_mistake_is_told_with_its_key_and_its_line() {
        for (file, parts) in [
            ("budget = 1\nbugdet = 2\n", ["line 2", "\"bugdet\""]),
            ("\n\nbudget = \"much\"\n", ["line 3", "--budget"]),
            ("tier = \"fast\"\n", ["line 1", "tier"]),
            ("kernel = \"yes\"\n", ["line 1", "kernel is true or false"]),
            ("budget = [1, 2]\n", ["line 1", "budget has one value"]),
            ("pid = [true]\n", ["line 1", "pid is a text or a number"]),
            ("config = \"/x\"\n", ["line 1", "no option \"config\""]),
            ("[daemon]\nbudget = 1\n", ["line 1", "\"daemon\""]),
            ("budget = 1\nbudget 2\n", ["line 2", ""]),
            ("budget = 1\nbudget = 2\n", ["line 2", ""]),
        ] {
            for part in parts {
                assert!(said(file).contains(part), "{part}: {}", said(file));
            }
        }
        assert!(merged("x = 1", &[]).is_err());
        let line = ["leakscope", "daemon", "--config", "/no/such/file"];
        let error = with_file(line.iter().map(OsString::from).collect()).unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/file"));
    }

    #[test]
    fn every_option_of_the_daemon_can_stand_in_the_file_and_is_printed() {
        let words: Vec<OsString> = ["leakscope", "daemon", "--budget", "3", "--comm", "a\"b*"]
            .iter()
            .map(OsString::from)
            .collect();
        let text = print(&words).unwrap();
        let read = parse(&text).unwrap();
        assert_eq!(read.get("budget").unwrap(), &["--budget=3"]);
        assert_eq!(read.get("comm").unwrap(), &["--comm=a\"b*"]);
        for option in daemon().get_arguments() {
            let Some(name) = option.get_long() else {
                continue;
            };
            let is_there =
                text.contains(&format!("\n{name} = ")) || text.contains(&format!("\n# {name} ="));
            let is_own = super::OWN.contains(&name) || option.is_hide_set();
            assert_eq!(is_there, !is_own, "{name}: {text}");
        }
        assert_eq!(quoted("a\nb"), "\"a\\u000Ab\"");
    }

    #[test]
    fn half_a_percent_was_printed_as_a_text() {
        assert_eq!(quoted("0.5"), "0.5");
        for text in ["1.", ".5", "00.5", "1.2.3", "10.0.0.1", "1e3"] {
            assert!(quoted(text).starts_with('"'), "{text}");
        }
    }

    #[test]
    fn what_the_daemon_does_by_itself_was_printed_as_not_in_force() {
        let printed = |words: &[&str]| {
            let line = ["leakscope", "daemon"].iter().chain(words);
            print(&line.map(OsString::from).collect::<Vec<_>>()).unwrap()
        };
        let usual = printed(&[]);
        for line in ["\nall = true\n", "\nkernel = true\n"] {
            assert!(usual.contains(line), "{usual}");
        }
        assert!(parse(&usual).is_ok(), "{usual}");
        let named = printed(&["--comm", "a*"]);
        assert!(named.contains("\nall = false\n"), "{named}");
    }

    #[test]
    fn the_file_that_is_shipped_is_taken_with_and_without_its_examples() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/config.toml");
        let text = fs::read_to_string(path).unwrap();
        assert!(parse(&text).unwrap().is_empty());
        let examples: String = text
            .lines()
            .filter_map(|line| line.strip_prefix("#:"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(parse(&examples).unwrap().len() > 4, "{examples}");
    }
}
