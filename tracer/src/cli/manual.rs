//! `leakscope manual`: manual pages, one for each subcommand, made from the same description as the help. For `cargo xtask dist`.

use std::{fs, io, path::Path, process::ExitCode};

use anyhow::Context as _;
use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::args::{ManualArguments, visible_command};

/// Writes the pages into a folder.
pub(super) fn run(raw: &ManualArguments) -> anyhow::Result<ExitCode> {
    write(&raw.folder).with_context(|| {
        format!(
            "cannot write manual pages to {}; name a folder that exists",
            raw.folder.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

fn write(folder: &Path) -> io::Result<()> {
    for (name, page) in pages()? {
        fs::write(folder.join(name), page)?;
    }
    Ok(())
}

/// File names and what is in them: leakscope's own page, and those of its subcommands.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut whole = visible_command().disable_help_subcommand(true);
    whole.build();
    with_subcommands(&whole).into_iter().map(page).collect()
}

/// A command and all below it.
fn with_subcommands(command: &Command) -> Vec<Command> {
    std::iter::once(command.clone())
        .chain(command.get_subcommands().flat_map(with_subcommands))
        .collect()
}

fn page(command: Command) -> io::Result<(String, Vec<u8>)> {
    let after = command.get_after_help().map(ToString::to_string);
    let has_arguments = command.get_arguments().next().is_some();
    let has_subcommands = command.has_subcommands();
    // One page for all that is one command's: `build` gave it the name `leakscope-trace`.
    let man = Man::new(command)
        .source(concat!("leakscope ", env!("CARGO_PKG_VERSION")))
        .manual("leakscope");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if has_arguments {
        man.render_options_section(&mut page)?;
    }
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(after) = after {
        notes(&after).to_writer(&mut page)?;
    }
    Ok((man.get_filename(), page))
}

/// What stands below the options in the help. Its lines are not filled: examples stand in columns.
fn notes(text: &str) -> Roff {
    let mut roff = Roff::default();
    roff.control("SH", ["NOTES"]);
    roff.control("nf", []);
    for line in text.lines() {
        if line.is_empty() {
            roff.control("sp", []);
        } else {
            roff.text([roman(line)]);
        }
    }
    roff.control("fi", []);
    roff
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::collections::BTreeMap;

    use super::{pages, write};
    use crate::cli::args::visible_command;

    #[test]
    fn every_subcommand_has_a_page_and_every_option_stands_in_it() {
        let pages: BTreeMap<String, String> = pages()
            .unwrap()
            .into_iter()
            .map(|(name, page)| (name, String::from_utf8(page).unwrap().replace('\\', "")))
            .collect();
        let command = visible_command();
        let subcommands: Vec<_> = command.get_subcommands().collect();
        assert!(pages.len() > subcommands.len(), "{:?}", pages.keys());
        assert!(pages.contains_key("leakscope-snapshot-list.1"));
        let own = pages.get("leakscope.1").unwrap();
        for subcommand in subcommands {
            let name = format!("leakscope-{}", subcommand.get_name());
            assert!(own.contains(&format!("{name}(1)")), "{own}");
            let page = pages.get(&format!("{name}.1")).unwrap();
            assert!(page.starts_with(".ie"), "{page}");
            for argument in subcommand.get_arguments() {
                if let Some(long) = argument.get_long() {
                    let shown = page.contains(&format!("--{long}"));
                    assert_eq!(shown, !argument.is_hide_set(), "{name}: --{long}");
                }
            }
            if let Some(after) = subcommand.get_after_help() {
                for line in after.to_string().lines() {
                    let plain = line.replace('\'', "*(Aq");
                    assert!(page.contains(&plain), "{name}: {plain}\n{page}");
                }
            }
        }
    }

    #[test]
    fn pages_are_written_into_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path()).unwrap();
        assert!(folder.path().join("leakscope-trace.1").is_file());
        assert!(write(&folder.path().join("none")).is_err());
    }
}
