//! What containers are called, by the files that runtimes keep of them: nobody is asked, and no socket is spoken to.
//!
//! Docker: `config.v2.json` of each container. containerd and CRI-O: the annotations of the bundle's `config.json`. Podman:
//! `containers.json`. None of this is promised to stay: what is not there, or reads otherwise, is a name that is not known.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::open::open_below;

/// The most bytes of such a file: Podman has one for all containers.
const MOST_BYTES: u64 = 4 << 20;

/// The longest name: Kubernetes allows 253 bytes, others less.
const LONGEST: usize = 253;

/// The kernel's, of a host's name (`__NEW_UTS_LEN`).
const LONGEST_HOST: u64 = 64;

/// What a container is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// By its runtime.
    pub name: Option<String>,
    /// Its pod, by Kubernetes.
    pub pod: Option<String>,
    /// The pod's namespace.
    pub namespace: Option<String>,
    /// By itself, in `/etc/hostname`: anybody in it can have written that.
    pub host: Option<String>,
}

/// Bundles of containerd's runtime, by the namespaces of its clients, and of CRI-O and Podman; `*` stands for the id.
const BUNDLES: [&str; 6] = [
    "run/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json",
    "run/containerd/io.containerd.runtime.v2.task/default/*/config.json",
    "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json",
    "run/containers/storage/overlay-containers/*/userdata/config.json",
    "var/lib/containers/storage/overlay-containers/*/userdata/config.json",
    "run/containerd/io.containerd.runtime.v2.task/moby/*/config.json",
];

/// Annotations that say each, by CRI-O and the kubelet, by containerd, by nerdctl.
const NAME: [&str; 3] = [
    "io.kubernetes.container.name",
    "io.kubernetes.cri.container-name",
    "nerdctl/name",
];
const POD: [&str; 2] = ["io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name"];
const NAMESPACE: [&str; 2] = [
    "io.kubernetes.pod.namespace",
    "io.kubernetes.cri.sandbox-namespace",
];

/// Looks for the names of the container with this id, below the root of the machine's files. `own_root` is its own.
#[must_use]
pub fn names(root: &Path, id: &str, own_root: &Path) -> Names {
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        // It stands in paths.
        return Names::default();
    }
    let mut names = docker(root, id)
        .or_else(|| bundled(root, id))
        .unwrap_or_default();
    if names.name.is_none() {
        names.name = podman(root, id);
    }
    if names == Names::default() {
        names.host = host(own_root).filter(|host| !id.starts_with(host));
    }
    names
}

fn docker(root: &Path, id: &str) -> Option<Names> {
    let path = format!("var/lib/docker/containers/{id}/config.v2.json");
    let config = read(root, &path)?;
    let labels = config.pointer("/Config/Labels");
    let name = config.get("Name").and_then(Value::as_str)?;
    let mut names = annotated(labels);
    names.name = names.name.or_else(|| fit(name.trim_start_matches('/')));
    Some(names)
}

fn bundled(root: &Path, id: &str) -> Option<Names> {
    let mut found = BUNDLES.iter().map(|path| path.replace('*', id));
    found.find_map(|path| {
        let names = annotated(read(root, &path)?.get("annotations"));
        (names != Names::default()).then_some(names)
    })
}

fn podman(root: &Path, id: &str) -> Option<String> {
    let all = read(
        root,
        "var/lib/containers/storage/overlay-containers/containers.json",
    )?;
    let is_it = |one: &&Value| one.get("id").and_then(Value::as_str) == Some(id);
    let found = all.as_array()?.iter().find(is_it)?;
    fit(found.pointer("/names/0").and_then(Value::as_str)?)
}

/// What annotations or labels say.
fn annotated(annotations: Option<&Value>) -> Names {
    let first = |keys: &[&str]| {
        let value = |key: &&str| annotations?.get(*key)?.as_str();
        keys.iter().find_map(value).and_then(fit)
    };
    Names {
        name: first(&NAME),
        pod: first(&POD),
        namespace: first(&NAMESPACE),
        host: None,
    }
}

/// A name that is one.
fn fit(name: &str) -> Option<String> {
    let name = name.trim();
    let is_fit = !name.is_empty() && name.len() <= LONGEST && !name.contains(char::is_control);
    is_fit.then(|| name.to_owned())
}

fn host(own_root: &Path) -> Option<String> {
    let mut text = String::new();
    let file = open_below(own_root, Path::new("etc/hostname")).ok()?;
    file.take(LONGEST_HOST + 1).read_to_string(&mut text).ok()?;
    fit(text.lines().next()?)
}

/// A file of JSON, whose links lead nowhere but below the root.
fn read(root: &Path, path: &str) -> Option<Value> {
    let file: File = open_below(root, &PathBuf::from(path)).ok()?;
    let mut text = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::{fs, path::Path};

    use super::{Names, names};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn put(root: &Path, path: &str, text: &str) {
        let path = root.join(path.replace('*', ID));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn found(files: &[(&str, &str)]) -> Names {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            put(root.path(), path, text);
        }
        names(root.path(), ID, &root.path().join("own"))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn every_runtime_keeps_names_in_files_of_its_own() {
        let docker = "var/lib/docker/containers/*/config.v2.json";
        let plain = found(&[(
            docker,
            r#"{"ID": "x", "Name": "/web", "Config": {"Labels": {}}}"#,
        )]);
        assert_eq!(
            plain,
            Names {
                name: some("web"),
                ..Names::default()
            }
        );
        let kubelet = r#"{"Name": "/k8s_api_web-0_shop_1b9d_0", "Config": {"Labels": {"io.kubernetes.container.name": "api",
            "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop"}}}"#;
        let whole = Names {
            name: some("api"),
            pod: some("web-0"),
            namespace: some("shop"),
            host: None,
        };
        assert_eq!(found(&[(docker, kubelet)]), whole);
        let containerd = r#"{"ociVersion": "1.1.0", "annotations": {"io.kubernetes.cri.container-name": "api",
            "io.kubernetes.cri.sandbox-name": "web-0", "io.kubernetes.cri.sandbox-namespace": "shop"}}"#;
        let task = "run/containerd/io.containerd.runtime.v2.task/k8s.io/*/config.json";
        assert_eq!(found(&[(task, containerd)]), whole);
        let nerdctl = "run/containerd/io.containerd.runtime.v2.task/default/*/config.json";
        let of = found(&[(nerdctl, r#"{"annotations": {"nerdctl/name": "web"}}"#)]);
        assert_eq!(of.name, some("web"));
        let list = format!(
            r#"[{{"id": "{}", "names": ["other"]}}, {{"id": "{ID}", "names": ["web"]}}]"#,
            ID.replace('0', "1")
        );
        let podman = "var/lib/containers/storage/overlay-containers/containers.json";
        assert_eq!(found(&[(podman, &list)]).name, some("web"));
    }

    #[test]
    fn without_a_runtimes_files_it_is_called_as_it_calls_itself() {
        let named = found(&[("own/etc/hostname", "web-1\n")]);
        assert_eq!(
            named,
            Names {
                host: some("web-1"),
                ..Names::default()
            }
        );
        // Docker's own choice says nothing.
        assert_eq!(
            found(&[("own/etc/hostname", "0123456789ab\n")]),
            Names::default()
        );
        assert_eq!(found(&[("own/etc/hostname", "\n")]), Names::default());
    }

    #[test]
    fn what_is_no_id_and_what_is_no_json_leads_nowhere() {
        let root = tempfile::tempdir().unwrap();
        put(
            root.path(),
            "var/lib/docker/containers/*/config.v2.json",
            "{\"Name\": \"/a\\u001b[2J\"}",
        );
        assert_eq!(names(root.path(), ID, root.path()), Names::default());
        put(
            root.path(),
            "var/lib/docker/containers/*/config.v2.json",
            "[not json",
        );
        assert_eq!(names(root.path(), ID, root.path()), Names::default());
        assert_eq!(names(root.path(), "../../x", root.path()), Names::default());
    }
}
