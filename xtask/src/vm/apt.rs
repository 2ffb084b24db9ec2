//! Asks apt for packages: with the machine's own configuration, or for a later release of Debian with one of our own.
//!
//! Owns the second configuration and its state below target/. Nothing is installed, and the machine's lists are only read.

use crate::shell::{self, ask, command};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release that has kernels later than this machine's: Debian's backports to its newest stable release.
const LATER: &str = "trixie-backports";

/// Debian's keys, of the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The ending of a directory into which a package is being downloaded.
pub(super) const DOWNLOAD: &str = ".download";

/// apt with one configuration.
pub(super) struct Apt {
    /// For people.
    pub(super) name: String,
    options: Vec<String>,
}

impl Apt {
    /// As this machine has it.
    pub(super) fn own() -> Self {
        Self {
            name: "this machine's apt".to_owned(),
            options: Vec::new(),
        }
    }

    /// For a later release, from the mirror that this machine has its own from; its lists are brought up to date.
    ///
    /// # Errors
    /// When apt does not know a mirror of Debian, or the lists cannot be fetched and never were.
    pub(super) fn later() -> Result<Self> {
        let dir = shell::target_dir().join("vm/apt");
        shell::make_dir(&dir.join("lists/partial"))?;
        shell::make_dir(&dir.join("cache/archives/partial"))?;
        let mirror = mirror()?;
        if !Path::new(KEYRING).is_file() {
            bail!("there is no {KEYRING} (Debian: apt-get install debian-archive-keyring)");
        }
        shell::write(
            &dir.join("sources.list"),
            format!("deb [signed-by={KEYRING}] {mirror} {LATER} main\n").as_bytes(),
        )?;
        // No package is installed here, so that none is too old or in the way.
        shell::write(&dir.join("status"), b"")?;
        let apt = Self {
            name: LATER.to_owned(),
            options: options(&dir),
        };
        let updated = shell::run(apt.command("apt-get").args(["update", "-q"]));
        if let Err(error) = updated {
            if apt.names("^linux-").is_empty() {
                return Err(error).context(format!("the package lists of {LATER}"));
            }
            println!("the package lists of {LATER} may be old: {error:#}");
        }
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = command(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The packages whose names match an extended regular expression.
    pub(super) fn names(&self, pattern: &str) -> Vec<String> {
        ask(self
            .command("apt-cache")
            .args(["search", "--names-only", pattern]))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
    }

    /// Downloads a package into an empty directory of its own below `parent` and gives the file.
    ///
    /// # Errors
    /// When apt cannot.
    pub(super) fn download(&self, name: &str, parent: &Path) -> Result<PathBuf> {
        let dir = parent.join(format!("{name}{DOWNLOAD}"));
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        shell::make_dir(&dir)?;
        shell::run(
            self.command("apt-get")
                .args(["download", "-q", name])
                .current_dir(&dir),
        )
        .context("the package lists may be old: run `apt-get update`")?;
        fs::read_dir(&dir)?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get left no .deb in {}", dir.display()))
    }
}

/// What leads apt to a directory of ours, see apt.conf(5). How the network is reached stays as the machine has it.
fn options(dir: &Path) -> Vec<String> {
    let dir = dir.display();
    [
        format!("Dir::Etc::SourceList={dir}/sources.list"),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State={dir}"),
        format!("Dir::State::Lists={dir}/lists"),
        format!("Dir::State::Status={dir}/status"),
        format!("Dir::Cache={dir}/cache"),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        // apt's own user may not reach a checkout.
        "APT::Sandbox::User=root".to_owned(),
    ]
    .into()
}

/// Where this machine has its Debian from.
fn mirror() -> Result<String> {
    ask(command("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    ]))
    .as_deref()
    .and_then(|sites| sites.lines().next())
    .map(str::to_owned)
    .context("apt knows no mirror of Debian: run `apt-get update` (on Debian)")
}
