//! Tries what was made as those would who get it: packages in roots of Debian (`attempt.sh`), the archive, the image (`contained`), the
//! service (`booted`), and the binary in a root that has nothing else.

use super::{Release, booted, contained};
use crate::shell::{self, ask, cargo, command, find_program, make_dir, root, target_dir};
use crate::vm;
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Releases of Debian whose roots packages are tried in: 11, 12 and 13.
const SUITES: [&str; 3] = ["bullseye", "bookworm", "trixie"];

/// Where they come from.
const MIRROR: &str = "http://deb.debian.org/debian";

/// How long a kernel may take for what is tried on it: it is emulated.
const GUEST_LIMIT: Duration = Duration::from_secs(600);

const SCRIPT: &str = include_str!("attempt.sh");

/// In the root that CI makes for the tests.
///
/// # Errors
/// When something does not work.
pub(super) fn once(folder: &Path, release: &Release) -> Result<()> {
    crates(None)?;
    archive(folder, release)?;
    let debian = target_dir().join("debian");
    if !shell::is_root() || !debian.join("etc/debian_version").exists() {
        println!(
            "SKIPPED: the packages were not installed: that takes root, and the Debian that .ci/run makes in target/debian"
        );
        return Ok(());
    }
    packages(folder, release, &debian)
}

/// In a root of each suite.
///
/// # Errors
/// When a root cannot be made, or something does not work.
pub(super) fn everywhere(folder: &Path, release: &Release) -> Result<()> {
    if !shell::is_root() {
        bail!("to install packages in roots takes root: run `sudo -E cargo xtask dist --try`");
    }
    archive(folder, release)?;
    alone(folder)?;
    image(folder, release)?;
    for suite in SUITES {
        packages(folder, release, &debian(folder, suite, suite, "")?)?;
    }
    let system = debian(folder, "booted", booted::SUITE, booted::PACKAGES)?;
    booted::service(folder, release, &system)?;
    vm::smoke(&folder.join("leakscope"), GUEST_LIMIT)?;
    println!("leakscope: works on other kernels with nothing beside it");
    let built = folder.join("crates");
    if built.exists() {
        fs::remove_dir_all(&built).with_context(|| format!("cannot remove {}", built.display()))?;
    }
    crates(Some(&built))
}

/// The crates for `cargo install`: everything that they are built from is in them. They are built where `built` names a
/// folder for it: one of its own, for Cargo takes what it built from an earlier crate of the same version as up to date.
fn crates(built: Option<&Path>) -> Result<()> {
    let mut package = cargo();
    package.args(["package", "--quiet", "--allow-dirty"]);
    for name in [
        "leakscope-common",
        "leakscope-model",
        "leakscope-ledger",
        "leakscope-unwind",
        "leakscope",
    ] {
        package.args(["--package", name]);
    }
    match built {
        Some(folder) => package.arg("--target-dir").arg(folder),
        None => package.arg("--no-verify"),
    };
    shell::run(&mut package)?;
    let listed = shell::capture(cargo().args([
        "package",
        "--quiet",
        "--allow-dirty",
        "--list",
        "--package",
        "leakscope",
    ]))?;
    for needed in [
        "bpf/x86_64.o",
        "bpf/x86_64.o.sha256",
        "bpf/x86_64.toolchain",
    ] {
        if !listed.lines().any(|file| file == needed) {
            bail!("the crate leakscope lacks {needed}");
        }
    }
    println!("the crates: packaged");
    Ok(())
}

/// The root of a suite with further packages, made if it is not there.
fn debian(folder: &Path, name: &str, suite: &str, packages: &str) -> Result<PathBuf> {
    let place = folder.join("roots").join(name);
    if place.join("etc/debian_version").exists() && !place.join("debootstrap").exists() {
        return Ok(place);
    }
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    make_dir(&place)?;
    let mut command = command("debootstrap");
    command.arg("--variant=minbase");
    // Its option takes no empty list.
    if !packages.is_empty() {
        command.arg(format!("--include={packages}"));
    }
    command.arg(suite).arg(&place).arg(MIRROR);
    shell::run(command.stdout(Stdio::null())).context("debootstrap (Debian: debootstrap)")?;
    Ok(place)
}

/// Both packages in a root.
fn packages(folder: &Path, release: &Release, debian: &Path) -> Result<()> {
    let version = &release.version;
    attempt(
        debian,
        "deb",
        &folder.join(format!("leakscope_{version}_amd64.deb")),
    )?;
    if find_program("rpm").is_none() {
        println!("SKIPPED: the RPM was not installed: there is no rpm (Debian: rpm)");
        return Ok(());
    }
    attempt(
        debian,
        "rpm",
        &folder.join(format!("leakscope-{version}-1.x86_64.rpm")),
    )
}

fn attempt(debian: &Path, kind: &str, package: &Path) -> Result<()> {
    let space = empty("space")?;
    let mut command = command("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT, "attempt.sh"])
        .args([debian, &space, Path::new(kind), package]);
    let output = command.output().context("unshare")?;
    if !output.status.success() {
        bail!(
            "{} in {} ({}):\n{}{}",
            shell::relative(package),
            shell::relative(debian),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    println!(
        "{}: installed, used and removed in {}, nothing left behind",
        shell::relative(package),
        shell::relative(debian)
    );
    Ok(())
}

/// The archive holds a binary that runs, of this version.
fn archive(folder: &Path, release: &Release) -> Result<()> {
    let place = empty("unpacked")?;
    let name = format!("leakscope-{}-x86_64", release.version);
    shell::run(
        command("tar")
            .args(["--strip-components=1", "-C"])
            .arg(&place)
            .arg("-xf")
            .arg(folder.join(format!("{name}.tar.xz"))),
    )?;
    says_its_version(
        Command::new(place.join("bin/leakscope")).arg("--version"),
        release,
    )?;
    println!("{name}.tar.xz: unpacked, and it runs");
    fs::remove_dir_all(place)?;
    Ok(())
}

/// The binary starts where nothing else is.
fn alone(folder: &Path) -> Result<()> {
    let place = empty("alone")?;
    fs::copy(folder.join("leakscope"), place.join("leakscope"))?;
    let script = "mkdir proc sys && mount -t proc proc proc && mount --rbind /sys sys && \
        chroot . /leakscope doctor && chroot . /leakscope heap -p $$";
    shell::run(
        command("unshare")
            .args(["--mount", "sh", "-c", script])
            .current_dir(&place)
            .stdout(Stdio::null()),
    )
    .context("leakscope in a root of its own")?;
    println!("leakscope doctor and heap: run in a root with nothing else in it");
    fs::remove_dir_all(place)?;
    Ok(())
}

/// What others make of the image is a root in which leakscope runs.
fn image(folder: &Path, release: &Release) -> Result<()> {
    if find_program("skopeo").is_none() || find_program("umoci").is_none() {
        println!("SKIPPED: the image was not unpacked: that takes skopeo and umoci");
        return Ok(());
    }
    let place = empty("image")?;
    let version = &release.version;
    let from = folder.join(format!("leakscope-{version}-x86_64.oci.tar"));
    let layout = place.join("layout");
    shell::run(
        command("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("oci-archive:{}:{version}", from.display()))
            .arg(format!("oci:{}:{version}", layout.display())),
    )?;
    shell::run(
        command("umoci")
            .args(["raw", "unpack", "--image"])
            .arg(format!("{}:{version}", layout.display()))
            .arg(place.join("rootfs"))
            .stderr(Stdio::null()),
    )?;
    says_its_version(
        command("chroot")
            .arg(place.join("rootfs"))
            .args(["/usr/bin/leakscope", "--version"]),
        release,
    )?;
    println!("the image: unpacked by skopeo and umoci, and leakscope runs in it");
    if find_program("crun").is_some() {
        contained::everything(&place)?;
        println!(
            "the image: doctor, trace, heap and the daemon run in it as the DaemonSet says, with the profile of seccomp"
        );
    } else {
        println!("SKIPPED: the image was not run as a container: that takes crun");
    }
    fs::remove_dir_all(place)?;
    Ok(())
}

fn says_its_version(command: &mut Command, release: &Release) -> Result<()> {
    let said = ask(command).unwrap_or_default();
    if !said.starts_with(&format!("leakscope {}", release.version)) {
        bail!("`{}` said: {said:?}", shell::describe(command));
    }
    Ok(())
}

/// A folder with nothing in it.
fn empty(name: &str) -> Result<PathBuf> {
    let place = target_dir().join("dist").join(name);
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    make_dir(&place)?;
    Ok(root().join(place))
}
