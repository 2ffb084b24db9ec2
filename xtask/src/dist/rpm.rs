//! A package of RPM's format, written without rpmbuild.

use super::Release;
use super::content::{Entry, Kind};
use anyhow::{Context as _, Result};
use rpm::{BuildConfig, CompressionWithLevel, FileMode, FileOptions, PackageBuilder};
use std::collections::BTreeSet;
use std::path::Path;

/// Where the package's folders are its own.
const OWN: [&str; 4] = [
    "etc/leakscope",
    "usr/share/doc/leakscope",
    "usr/share/fish",
    "usr/share/zsh",
];

/// As Debian's `postinst`; the argument is the number of versions that are there afterwards.
const AFTER_INSTALL: &str = "if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ \"$1\" -gt 1 ]; then systemctl try-restart leakscope.service; fi
fi
";

const BEFORE_REMOVAL: &str = "if [ \"$1\" = 0 ]; then
    if [ -d /run/systemd/system ]; then systemctl stop leakscope.service; fi
    if command -v systemctl >/dev/null; then systemctl --no-reload disable leakscope.service; fi
fi
";

const AFTER_REMOVAL: &str = "if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ \"$1\" = 0 ]; then rm -rf /var/cache/leakscope; fi
";

/// The package's bytes.
///
/// # Errors
/// When the package cannot be put together.
pub(super) fn package(
    summary: &str,
    description: &str,
    entries: &[Entry],
    release: &Release,
) -> Result<Vec<u8>> {
    let time = u32::try_from(release.time).context("a time that RPM can write")?;
    let config = BuildConfig::default()
        .source_date(time)
        .compression(CompressionWithLevel::Gzip(release.level.into()));
    let licence = "(MIT OR Apache-2.0) AND GPL-2.0-only";
    let mut builder =
        PackageBuilder::new("leakscope", &release.version, licence, "x86_64", summary);
    builder
        .using_config(config)
        .description(description)
        .vendor("The leakscope developers")
        .build_host("localhost")
        .post_install_script(AFTER_INSTALL)
        .pre_uninstall_script(BEFORE_REMOVAL)
        .post_uninstall_script(AFTER_REMOVAL);
    // Folders that it shares with nobody, or that nobody else may have made: they go with it.
    let folders: BTreeSet<&str> = entries
        .iter()
        .flat_map(|entry| Path::new(&entry.path).ancestors().skip(1))
        .filter_map(Path::to_str)
        .filter(|folder| OWN.iter().any(|own| folder.starts_with(own)))
        .collect();
    for folder in folders {
        builder.with_dir_entry(FileOptions::dir(format!("/{folder}")))?;
    }
    for entry in entries {
        let mode = FileMode::regular(u16::try_from(entry.mode)?);
        let options = FileOptions::new(format!("/{}", entry.path)).mode(mode);
        let options = match entry.kind {
            Kind::Plain => options,
            Kind::Configuration => options.config().noreplace(),
            Kind::Documentation => options.doc(),
            Kind::Licence => options.license(),
        };
        builder.with_file_contents(entry.bytes.clone(), options)?;
    }
    let mut bytes = Vec::new();
    builder.build()?.write(&mut bytes)?;
    Ok(bytes)
}
