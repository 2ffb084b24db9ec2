//! `dist`: what is shipped. A static binary, packages of Debian and RPM, a container image, an archive for everybody else, what
//! they are made of, and checksums.
//!
//! Owns which artefacts there are and where they lie (`target/dist`). One binary is always packed to the same bytes: every time
//! is `SOURCE_DATE_EPOCH`, or that of the commit. `--twice` says whether building it elsewhere gives the same one.

mod attempt;
mod booted;
mod build;
mod contained;
mod content;
mod deb;
mod oci;
mod provenance;
mod rpm;
mod sbom;
mod tarball;

use crate::bpf::sha256;
use crate::shell::{
    self, ask, command, leakscope_under_test, make_dir, relative, root, target_dir,
};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use content::{Entry, Kind, LICENCES};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// What `dist` is given.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Package the binary that the tests use (built as they are, or named by `LEAKSCOPE_BIN`) instead of a release, pack it twice,
    /// and try the packages in one root: what CI can bear
    #[arg(long)]
    check: bool,
    /// Build and pack everything a second time, from another checkout in another folder, and compare
    #[arg(long, conflicts_with = "check")]
    twice: bool,
    /// Also install, use and remove the packages in the roots of debootstrap below target/dist/roots, which are made if need be;
    /// as root
    #[arg(long = "try", conflicts_with = "check")]
    attempt: bool,
    /// With --try: what an earlier run made, without making it again
    #[arg(long, requires = "attempt", conflicts_with = "twice")]
    made: bool,
}

/// What all artefacts have in common.
pub(super) struct Release {
    version: String,
    /// The time of everything, in seconds since 1970.
    time: u64,
    /// How hard xz and gzip try, up to 9.
    level: u8,
}

impl Release {
    fn new(level: u8) -> Result<Self> {
        let time = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(named) => named,
            Err(_) => ask(command("git").args(["log", "-1", "--format=%ct"]))
                .context("set SOURCE_DATE_EPOCH: there is no commit whose time could be taken")?,
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            time: time
                .trim()
                .parse()
                .with_context(|| format!("SOURCE_DATE_EPOCH={time}: seconds since 1970"))?,
            level,
        })
    }

    /// As RFC 3339 has it.
    fn date(&self) -> Result<String> {
        let time = SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.time))
            .context("a time that can be written")?;
        Ok(humantime::format_rfc3339_seconds(time).to_string())
    }
}

const SUMMARY: &str = "finds memory leaks in programs that are already running";

const DESCRIPTION: [&str; 4] = [
    "leakscope attaches to running processes without restarting or changing them, watches",
    "their allocators from inside the kernel (eBPF) within an overhead budget, names the",
    "call stacks whose memory survives, and says whether that is a leak. It needs Linux 6.1",
    "or newer, and root or CAP_BPF and CAP_PERFMON.",
];

/// Makes what is asked for.
///
/// # Errors
/// When something cannot be built, is not the same twice, or does not work where it is tried.
pub(crate) fn perform(arguments: &Arguments) -> Result<ExitCode> {
    let folder = target_dir().join("dist");
    if arguments.check {
        let folder = folder.join("check");
        let release = Release::new(0)?;
        let binary = leakscope_under_test()?;
        let made = pack(&binary, &folder, &release)?;
        compare(&made, &pack(&binary, &folder, &release)?)?;
        println!("packed twice: the same bytes");
        attempt::once(&folder, &release)?;
        return Ok(ExitCode::SUCCESS);
    }
    let release = Release::new(9)?;
    if arguments.made {
        attempt::everywhere(&folder, &release)?;
        return Ok(ExitCode::SUCCESS);
    }
    let binary = build::build(root(), &folder.join("build"))?;
    let made = pack(&binary, &folder, &release)?;
    if arguments.twice {
        let checkout = build::check_out(&folder)?;
        let again = build::build(&checkout, &folder.join("again"))?;
        compare(&made, &pack(&again, &folder.join("twice"), &release)?)?;
        println!("built from two checkouts and packed: the same bytes");
    }
    if arguments.attempt {
        attempt::everywhere(&folder, &release)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Packs a binary into all artefacts below a folder, and gives their checksums.
fn pack(whole: &Path, folder: &Path, release: &Release) -> Result<BTreeMap<String, String>> {
    make_dir(folder)?;
    let binary = build::split(whole, folder)?;
    let common = content::common(&binary.stripped)?;
    let version = &release.version;
    let mut artefacts: Vec<(String, Vec<u8>)> = Vec::new();

    let name = format!("leakscope-{version}-x86_64");
    let mut entries = common.clone();
    entries.push(content::zsh(&binary.stripped, "site-functions")?);
    let archive = tarball::tar(&entries, &format!("{name}/"), release.time)?;
    artefacts.push((
        format!("{name}.tar.xz"),
        tarball::xz(archive, release.level)?,
    ));

    let below_usr = |entries: &[Entry]| -> Vec<Entry> {
        entries
            .iter()
            .cloned()
            .map(|entry| entry.below("usr"))
            .collect()
    };
    let mut system = below_usr(&common);
    system.extend(content::service()?);

    let mut entries = system.clone();
    entries.push(content::zsh(&binary.stripped, "vendor-completions")?.below("usr"));
    entries.push(
        Entry::plain(
            "usr/share/doc/leakscope/copyright",
            content::of_root("xtask/src/dist/package/copyright")?,
        )
        .of_kind(Kind::Licence),
    );
    let mut scripts = BTreeMap::new();
    for script in ["postinst", "prerm", "postrm"] {
        let path = format!("xtask/src/dist/package/{script}");
        scripts.insert(script, content::of_root(&path)?);
    }
    let package = deb::Package {
        name: "leakscope",
        section: "devel",
        summary: SUMMARY,
        description: &DESCRIPTION,
        fields: &[],
        scripts,
    };
    artefacts.push((
        format!("leakscope_{version}_amd64.deb"),
        deb::package(&package, &entries, release)?,
    ));

    let (start, rest) = binary
        .build_id
        .split_at_checked(2)
        .context("a build id of some bytes")?;
    let debug = Entry::plain(
        format!("usr/lib/debug/.build-id/{start}/{rest}.debug"),
        binary.debug,
    );
    let package = deb::Package {
        name: "leakscope-dbgsym",
        section: "debug",
        summary: "debug information of leakscope",
        description: &["For debuggers, and to name the frames of a backtrace of leakscope itself."],
        fields: &[format!("Depends: leakscope (= {version})")],
        scripts: BTreeMap::new(),
    };
    artefacts.push((
        format!("leakscope-dbgsym_{version}_amd64.deb"),
        deb::package(&package, &[debug], release)?,
    ));

    let mut entries = system;
    entries.push(content::zsh(&binary.stripped, "site-functions")?.below("usr"));
    artefacts.push((
        format!("leakscope-{version}-1.x86_64.rpm"),
        rpm::package(SUMMARY, &DESCRIPTION.join(" "), &entries, release)?,
    ));

    let inside: Vec<Entry> = common
        .into_iter()
        .filter(|entry| entry.path == "bin/leakscope" || entry.kind == Kind::Licence)
        .collect();
    if inside.len() != LICENCES.len() + 1 {
        bail!("the image has {} files", inside.len());
    }
    artefacts.push((
        format!("{name}.oci.tar"),
        oci::image(&below_usr(&inside), release)?,
    ));

    let digest = sha256(&shell::read(&binary.stripped)?);
    artefacts.push((
        format!("{name}.cdx.json"),
        sbom::document(release, &digest)?,
    ));
    artefacts.push((
        format!("{name}.provenance.json"),
        provenance::document(release)?,
    ));

    let mut sums = BTreeMap::new();
    for (name, bytes) in &artefacts {
        let path = folder.join(name);
        shell::write(&path, bytes)?;
        sums.insert(name.clone(), sha256(bytes));
        println!("{:>10} bytes  {}", bytes.len(), relative(&path));
    }
    // The bare binary is offered too.
    if let Some(name) = binary.stripped.file_name() {
        sums.insert(name.to_string_lossy().into_owned(), digest);
    }
    let list: String = sums
        .iter()
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect();
    shell::write(&folder.join("SHA256SUMS"), list.as_bytes())?;
    let size = fs::metadata(&binary.stripped)?.len();
    println!("{size:>10} bytes  {}", relative(&binary.stripped));
    Ok(sums)
}

/// That two lists of checksums are one.
fn compare(one: &BTreeMap<String, String>, other: &BTreeMap<String, String>) -> Result<()> {
    let different: Vec<&str> = one
        .iter()
        .filter(|(name, sum)| other.get(*name) != Some(sum))
        .map(|(name, _)| name.as_str())
        .collect();
    if !different.is_empty() || one.len() != other.len() {
        bail!("not the same bytes twice: {}", different.join(", "));
    }
    Ok(())
}
