//! What the binary is made of, as a bill of materials of CycloneDX 1.5: from cargo's own books, and the C library that is linked in.

use super::Release;
use crate::shell::{self, ask, cargo, command, root};
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The document.
///
/// # Errors
/// When cargo fails, or says something unexpected.
pub(super) fn document(release: &Release, digest: &str) -> Result<Vec<u8>> {
    let metadata = shell::capture(cargo().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        super::build::TARGET,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let checksums = checksums(&String::from_utf8(shell::read(
        &root().join("Cargo.lock"),
    )?)?);
    let linked = linked(&metadata)?;
    let list = |pointer: &str| {
        metadata
            .pointer(pointer)
            .and_then(Value::as_array)
            .with_context(|| format!("cargo metadata has no {pointer}"))
    };
    let mut components = Vec::new();
    let mut references = BTreeMap::new();
    for package in list("/packages")? {
        let [id, name, version] = ["id", "name", "version"].map(|key| text(package, key));
        if !linked.contains(id) {
            continue;
        }
        let reference = format!("pkg:cargo/{name}@{version}");
        references.insert(id.to_owned(), reference.clone());
        if name == "leakscope" {
            continue;
        }
        let mut component = json!({
            "type": "library",
            "bom-ref": reference,
            "name": name,
            "version": version,
            "purl": reference,
            "licenses": [{ "expression": text(package, "license").replace('/', " OR ") }],
        });
        if let (Some(sum), Some(fields)) = (
            checksums.get(&(name.to_owned(), version.to_owned())),
            component.as_object_mut(),
        ) {
            fields.insert(
                "hashes".to_owned(),
                json!([{ "alg": "SHA-256", "content": sum }]),
            );
        }
        components.push(component);
    }
    if let Some(version) = glibc() {
        components.push(json!({
            "type": "library",
            "bom-ref": format!("pkg:generic/glibc@{version}"),
            "name": "glibc",
            "version": version,
            "purl": format!("pkg:generic/glibc@{version}"),
            "licenses": [{ "expression": "LGPL-2.1-or-later" }],
            "description": "linked in statically",
        }));
    }
    let mut dependencies = Vec::new();
    for node in list("/resolve/nodes")? {
        if let Some(reference) = references.get(text(node, "id")) {
            let on: BTreeSet<&String> = normal(node).filter_map(|id| references.get(id)).collect();
            dependencies.push(json!({ "ref": reference, "dependsOn": on }));
        }
    }
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": release.date()?,
            "component": {
                "type": "application",
                "bom-ref": format!("pkg:cargo/leakscope@{}", release.version),
                "name": "leakscope",
                "version": release.version,
                "licenses": [{ "expression": "(MIT OR Apache-2.0) AND GPL-2.0-only" }],
                "hashes": [{ "alg": "SHA-256", "content": digest }],
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

/// The ids of leakscope and what it depends on where it runs: not what builds or tests it.
fn linked(metadata: &Value) -> Result<BTreeSet<String>> {
    let nodes = metadata
        .pointer("/resolve/nodes")
        .and_then(Value::as_array)
        .context("cargo metadata has no /resolve/nodes")?;
    let by_id: BTreeMap<&str, &Value> = nodes.iter().map(|node| (text(node, "id"), node)).collect();
    let own = metadata
        .pointer("/packages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|package| text(package, "name") == "leakscope")
        .context("cargo metadata has no package leakscope")?;
    let mut linked = BTreeSet::new();
    let mut left = vec![text(own, "id")];
    while let Some(id) = left.pop() {
        if linked.insert(id.to_owned())
            && let Some(node) = by_id.get(id)
        {
            left.extend(normal(node));
        }
    }
    Ok(linked)
}

/// What a package needs where it runs.
fn normal(node: &Value) -> impl Iterator<Item = &str> {
    node.get("deps")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|dependency| {
            dependency
                .get("dep_kinds")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .any(|kind| kind.get("kind").is_some_and(Value::is_null))
        })
        .map(|dependency| text(dependency, "pkg"))
}

fn text<'value>(value: &'value Value, key: &str) -> &'value str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The checksums of Cargo.lock, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    lock.split("[[package]]")
        .filter_map(|package| {
            let field = |name: &str| {
                package
                    .lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))
                    .and_then(|value| value.strip_suffix('"'))
            };
            let key = (field("name")?.to_owned(), field("version")?.to_owned());
            Some((key, field("checksum")?.to_owned()))
        })
        .collect()
}

/// The version of the C library that this machine links with.
fn glibc() -> Option<String> {
    let said = ask(command("getconf").arg("GNU_LIBC_VERSION"))?;
    Some(said.trim().strip_prefix("glibc ")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::checksums;

    #[test]
    fn checksums_are_read_from_the_lock() {
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
        let found = checksums(lock);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found
                .get(&("a".to_owned(), "1.0.0".to_owned()))
                .map(String::as_str),
            Some("abc")
        );
    }
}
