//! Archives whose bytes depend on nothing but what is in them: owner root, one time for all, a fixed order.

use super::content::Entry;
use crate::shell::{command, describe};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use tar::{Builder, EntryType, Header};

/// A tar archive of files with the folders that lead to them, names beginning with `prefix`.
///
/// # Errors
/// When a name is too long for the format.
pub(super) fn tar(entries: &[Entry], prefix: &str, time: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|one, other| one.path.cmp(&other.path));
    for entry in &sorted {
        for folder in Path::new(&entry.path).ancestors().skip(1) {
            folders.insert(folder.to_string_lossy().into_owned());
        }
    }
    for folder in folders {
        let name = match folder.as_str() {
            "" => prefix.to_owned(),
            _ => format!("{prefix}{folder}/"),
        };
        if !name.is_empty() {
            archive.append_data(
                &mut header(EntryType::Directory, 0o755, 0, time),
                name,
                &[][..],
            )?;
        }
    }
    for entry in sorted {
        let size = u64::try_from(entry.bytes.len())?;
        archive.append_data(
            &mut header(EntryType::Regular, entry.mode, size, time),
            format!("{prefix}{}", entry.path),
            entry.bytes.as_slice(),
        )?;
    }
    Ok(archive.into_inner()?)
}

fn header(kind: EntryType, mode: u32, size: u64, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// Compressed by xz(1), in one thread: with more, the bytes depend on how many.
///
/// # Errors
/// When there is no xz, or it fails.
pub(super) fn xz(bytes: Vec<u8>, level: u8) -> Result<Vec<u8>> {
    let mut command = command("xz");
    command
        .args(["--stdout", "--threads=1", &format!("-{level}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .context("cannot start xz (Debian: xz-utils)")?;
    let mut input = child.stdin.take().context("xz has no input")?;
    let writer = thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output()?;
    match writer.join() {
        Ok(written) => written?,
        Err(_) => bail!("writing to xz ended with a panic"),
    }
    if !output.status.success() {
        bail!("`{}` failed ({})", describe(&command), output.status);
    }
    Ok(output.stdout)
}
