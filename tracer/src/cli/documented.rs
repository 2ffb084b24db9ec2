//! Every command of the manual (`docs`) and of the README is one that the command line takes. A test; what runs them is
//! `tests/kernel/manual.rs`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a failing test may panic"
)]

use std::{fs, path::Path};

use clap::Parser as _;

use super::args::Arguments;

/// The words of a command up to where the shell goes on with another, or with a file.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '\'' | '"') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '&' | ';' | '#') => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// The lines of the fenced blocks that are for a shell.
fn lines_for_shells(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            inside = !inside && ["sh", "console"].contains(&language);
        } else if inside {
            found.push(line);
        }
    }
    found
}

#[test]
fn every_command_of_the_manual_is_taken() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut taken = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for line in lines_for_shells(&text) {
            if !line.starts_with("leakscope ") {
                continue;
            }
            let line = line
                .replace("$PID", "1")
                .replace("$PYTHON", "1")
                .replace("$GO", "1");
            if let Err(error) = Arguments::try_parse_from(words(&line)) {
                panic!("{}: {line}: {error}", path.display());
            }
            taken += 1;
        }
    }
    assert!(taken > 30, "only {taken} commands were found");
}

#[test]
fn words_are_those_of_a_shell() {
    assert_eq!(
        words("leakscope trace --comm 'a b*' -- x > y"),
        ["leakscope", "trace", "--comm", "a b*", "--", "x"]
    );
}
