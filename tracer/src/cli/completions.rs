//! `leakscope completions`: a script that lets a shell complete subcommands and options. Made from the same description as the help.

use std::process::ExitCode;

use clap_complete::{Shell, generate};

use super::{
    args::{CompletionsArguments, FormatChoice, visible_command},
    output::Output,
};

/// Writes the script.
pub(super) fn run(raw: &CompletionsArguments) -> anyhow::Result<ExitCode> {
    let mut output = Output::open(None, FormatChoice::Text)?;
    output.write_bytes(&script(raw.shell))?;
    Ok(ExitCode::SUCCESS)
}

/// The script for a shell.
fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    generate(shell, &mut visible_command(), "leakscope", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use clap_complete::Shell;

    use super::script;
    use crate::cli::args::visible_command;

    #[test]
    fn every_subcommand_and_option_is_completed_and_none_that_is_hidden() {
        let command = visible_command();
        for shell in Shell::value_variants() {
            let script = String::from_utf8_lossy(&script(*shell)).into_owned();
            for subcommand in command.get_subcommands() {
                assert!(script.contains(subcommand.get_name()), "{shell}");
                for argument in subcommand.get_arguments() {
                    if let Some(long) = argument.get_long().filter(|_| !argument.is_hide_set()) {
                        assert!(script.contains(long), "{shell}: --{long}");
                    }
                }
            }
            for hidden in ["floor", "guard", "manual", "reader"] {
                assert!(!script.contains(hidden), "{shell}: {hidden}");
            }
        }
    }
}
