//! A container image as an archive in the layout of the Open Container Initiative (image-spec 1.1), made without an engine:
//! `docker load`, `podman load`, `ctr image import` and `skopeo copy oci-archive:` take it. A `manifest.json` beside it, of Docker's
//! own older layout (Docker Image Specification 1.2), is for engines without containerd's store of images.

use super::Release;
use super::content::{Entry, gzip};
use super::tarball::tar;
use crate::bpf::sha256;
use anyhow::Result;
use serde_json::{Value, json};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The archive's bytes: one layer with these files.
///
/// # Errors
/// When a path is too long.
pub(super) fn image(entries: &[Entry], release: &Release) -> Result<Vec<u8>> {
    let layer = tar(entries, "", release.time)?;
    let mut blobs = Blobs(Vec::new());
    let compressed = blobs.add(LAYER, gzip(&layer)?)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": release.date()?,
        "config": {
            "Entrypoint": ["/usr/bin/leakscope"],
            "Cmd": ["--help"],
            "Labels": {
                "org.opencontainers.image.title": "leakscope",
                "org.opencontainers.image.version": release.version,
                "org.opencontainers.image.licenses": "(MIT OR Apache-2.0) AND GPL-2.0-only",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
        "history": [{ "created": release.date()?, "created_by": "cargo xtask dist" }],
    });
    let config = blobs.add(CONFIG, serde_json::to_vec(&config)?)?;
    let older = json!([{
        "Config": place(&config),
        "RepoTags": [format!("leakscope:{}", release.version)],
        "Layers": [place(&compressed)],
    }]);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [compressed],
    });
    let mut manifest = blobs.add(MANIFEST, serde_json::to_vec(&manifest)?)?;
    if let Some(fields) = manifest.as_object_mut() {
        fields.insert(
            "platform".to_owned(),
            json!({ "architecture": "amd64", "os": "linux" }),
        );
        // The names under which engines keep it: containerd's and the specification's.
        fields.insert(
            "annotations".to_owned(),
            json!({
                "io.containerd.image.name": format!("docker.io/library/leakscope:{}", release.version),
                "org.opencontainers.image.ref.name": release.version,
            }),
        );
    }
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    let mut files = blobs.0;
    files.push(Entry::plain(
        "oci-layout",
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    ));
    files.push(Entry::plain("index.json", serde_json::to_vec(&index)?));
    files.push(Entry::plain("manifest.json", serde_json::to_vec(&older)?));
    tar(&files, "", release.time)
}

/// Where a content is in the archive.
fn place(content: &Value) -> Option<String> {
    let digest = content.get("digest")?.as_str()?;
    Some(format!("blobs/{}", digest.replace(':', "/")))
}

/// Contents by their checksums.
struct Blobs(Vec<Entry>);

impl Blobs {
    /// Adds one and gives what refers to it.
    fn add(&mut self, kind: &str, bytes: Vec<u8>) -> Result<Value> {
        let digest = sha256(&bytes);
        let size = bytes.len();
        self.0
            .push(Entry::plain(format!("blobs/sha256/{digest}"), bytes));
        Ok(json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": size }))
    }
}
