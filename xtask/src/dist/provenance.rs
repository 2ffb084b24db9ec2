//! Where what is shipped comes from: the commit, the compilers, and the BPF object, which is not compiled with the rest.

use super::Release;
use crate::bpf::{parse_record, sha256};
use crate::shell::{ask, command};
use anyhow::Result;
use serde_json::json;

use super::content::of_root;

/// The document.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn document(release: &Release) -> Result<Vec<u8>> {
    let object = of_root("tracer/bpf/x86_64.o")?;
    let record = String::from_utf8(of_root("tracer/bpf/x86_64.toolchain")?)?;
    let git = |arguments: &[&str]| {
        ask(command("git").args(arguments)).map(|answer| answer.trim().to_owned())
    };
    let document = json!({
        "version": release.version,
        "commit": git(&["rev-parse", "HEAD"]),
        // Whether the checkout was as the commit has it.
        "clean": git(&["status", "--porcelain"]).map(|changes| changes.is_empty()),
        "rustc": ask(command("rustc").arg("--version")).map(|said| said.trim().to_owned()),
        "cargo_lock_sha256": sha256(&of_root("Cargo.lock")?),
        "bpf_object": {
            "sha256": sha256(&object),
            "bytes": object.len(),
            "made_with": parse_record(&record),
            "rebuilt_and_compared_by": "cargo xtask bpf check",
        },
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}
