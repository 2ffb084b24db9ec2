//! Tries the service where systemd is the first process: a Debian of its own, booted in QEMU with Debian's kernel, which has AppArmor.
//! `booted.sh` is what is done there.

use super::Release;
use crate::shell::{self, relative};
use crate::vm;
use anyhow::{Context as _, Result, bail};
use std::path::Path;
use std::time::Duration;

const SCRIPT: &str = include_str!("booted.sh");

/// Starts the script and shows what it says on the second serial line.
const UNIT: &str = "[Unit]
Description=tries leakscope
After=basic.target

[Service]
Type=exec
ExecStart=/bin/bash /try.sh
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
";

/// The release of Debian that is booted, what it has besides the least, and its line of kernels.
pub(super) const SUITE: &str = "trixie";
pub(super) const PACKAGES: &str = "systemd,systemd-sysv,apparmor,curl";
const KERNEL: &str = "6.12";

/// How long it may take: all of it is emulated.
const LIMIT: Duration = Duration::from_secs(900);

/// Boots the root with the package in it.
///
/// # Errors
/// When it cannot be booted, or something does not work in it.
pub(super) fn service(folder: &Path, release: &Release, root: &Path) -> Result<()> {
    let package = folder.join(format!("leakscope_{}_amd64.deb", release.version));
    let files = [
        ("/leakscope.deb", shell::read(&package)?, 0o644),
        ("/try.sh", SCRIPT.into(), 0o755),
        ("/etc/systemd/system/try.service", UNIT.into(), 0o644),
        (
            "/etc/systemd/system/multi-user.target.d/try.conf",
            "[Unit]\nWants=try.service\n".into(),
            0o644,
        ),
    ];
    let mut said = Vec::new();
    vm::boot_system(root, &files, KERNEL, LIMIT, &mut |line| {
        println!("    systemd | {line}");
        said.push(line.to_owned());
    })
    .context("a Debian with systemd")?;
    if said.last().map(String::as_str) != Some("##leakscope passed") {
        bail!("the service does not work under systemd: see above");
    }
    println!(
        "{}: runs as a service of systemd, confined by AppArmor, and leaves nothing behind",
        relative(&package)
    );
    Ok(())
}
