//! What there is to be tested: everything is built at once with one profile, so that no dependency is built twice, and the
//! tests of the whole program are listed one by one.

use super::BINARY;
use crate::shell::{self, Executable, cargo, root};
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// What was built.
pub(crate) struct Suite {
    /// leakscope itself, or what [`BINARY`] names in its place.
    pub(crate) leakscope: PathBuf,
    /// The program that builds the programs to trace.
    pub(crate) victims: PathBuf,
    /// The unit tests of each package.
    pub(crate) units: Vec<Executable>,
    /// The tests of the whole program.
    whole: Vec<Executable>,
}

/// One test of the whole program.
#[derive(Clone)]
pub(crate) struct Test {
    /// The test target's name, such as `kernel_attached`.
    pub(crate) binary: String,
    /// The test's.
    pub(crate) name: String,
    /// The built test target.
    pub(crate) path: PathBuf,
    /// Where cargo would run it.
    pub(crate) dir: PathBuf,
}

impl Suite {
    /// Builds leakscope and all tests.
    ///
    /// # Errors
    /// When cargo fails.
    pub(crate) fn build() -> Result<Self> {
        let mut build = cargo();
        build.args(["build", "--workspace", "--bins", "--examples", "--tests"]);
        let (tests, programs): (Vec<_>, Vec<_>) = shell::build(&mut build)?
            .into_iter()
            .partition(|executable| executable.is_test);
        let program = |name: &str| {
            programs
                .iter()
                .find(|program| program.name == name)
                .map(|program| program.path.clone())
                .with_context(|| format!("cargo built no program named {name}"))
        };
        let leakscope = match std::env::var_os(BINARY) {
            Some(named) => root().join(named),
            None => program("leakscope")?,
        };
        let room = root().join("tests");
        let support = room.join("support");
        let (whole, units) = tests
            .into_iter()
            .partition(|test| test.source.starts_with(&room) && !test.source.starts_with(&support));
        Ok(Self {
            leakscope,
            victims: program("victims")?,
            units,
            whole,
        })
    }

    /// The tests of the whole program whose names contain one of the words; all where there is none.
    ///
    /// # Errors
    /// When a test binary does not list its tests.
    pub(crate) fn tests(&self, words: &[String]) -> Result<Vec<Test>> {
        let mut tests = Vec::new();
        for binary in &self.whole {
            let list = |which: &[&str]| {
                shell::capture(
                    Command::new(&binary.path)
                        .args(words)
                        .args(["--list", "--format", "terse"])
                        .args(which)
                        .current_dir(&binary.package),
                )
            };
            // Those that take minutes are asked for by hand.
            let (listed, ignored) = (list(&[])?, list(&["--ignored"])?);
            let is_ignored = |test: &&str| ignored.lines().any(|other| other == *test);
            tests.extend(
                listed
                    .lines()
                    .filter(|test| !is_ignored(test))
                    .filter_map(|line| line.strip_suffix(": test"))
                    .map(|name| Test {
                        binary: binary.name.clone(),
                        name: name.to_owned(),
                        path: binary.path.clone(),
                        dir: binary.package.clone(),
                    }),
            );
        }
        if tests.is_empty() && words.is_empty() {
            bail!(
                "there are no tests below {}",
                shell::relative(&root().join("tests"))
            );
        }
        tests.sort_by(|one, other| (&one.binary, &one.name).cmp(&(&other.binary, &other.name)));
        Ok(tests)
    }
}
