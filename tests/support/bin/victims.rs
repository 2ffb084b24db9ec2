//! Builds every victim into a folder, for machines without a compiler: `LEAKSCOPE_VICTIMS` then names the folder.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

fn main() -> Result<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        writeln!(io::stderr(), "usage: victims FOLDER")?;
        return Ok(ExitCode::from(2));
    };
    let folder = PathBuf::from(folder);
    let left_out = leakscope_tests::build_all(&folder)
        .with_context(|| format!("building the victims into {}", folder.display()))?;
    for (name, reason) in left_out {
        writeln!(io::stderr(), "left out: {name} — {reason}")?;
    }
    Ok(ExitCode::SUCCESS)
}
