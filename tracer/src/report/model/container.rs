//! Which container, pod and unit of systemd a process is in, by the path of its cgroup.
//!
//! Runtimes and systemd name groups by rules that do not change, and need not be asked: Docker, containerd, CRI-O, Podman,
//! Kubernetes with either driver of cgroups, LXC, systemd.

use serde::{Deserialize, Serialize};

/// Hexadecimal digits of a container's id.
const ID: usize = 64;

/// So many of them name it to people.
const SHORT: usize = 12;

/// Characters of a UUID, by which pods are known.
const UUID: usize = 36;

/// What stands before the id in the name of a scope, and whose it is.
const SCOPES: [(&str, &str); 6] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("nerdctl-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
    ("libpod-payload-", "podman"),
];

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, `lxc`; `None` where the path does not say.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Its id of 64 hexadecimal digits; a name with LXC.
    pub id: String,
    /// The pod of Kubernetes that it belongs to, by its UID.
    #[serde(default)]
    pub pod: Option<String>,
    /// What its runtime's files call it.
    #[serde(default)]
    pub name: Option<String>,
    /// What they call its pod, after the pod's namespace: `shop/web-0`.
    #[serde(default)]
    pub pod_name: Option<String>,
    /// What it calls itself in `/etc/hostname`, where no file of a runtime tells.
    #[serde(default)]
    pub hostname: Option<String>,
}

impl Container {
    /// The container of a cgroup's path, the innermost.
    #[must_use]
    pub fn of_cgroup(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let pod = parts.iter().rev().find_map(|part| pod(part));
        let (place, (runtime, id)) = parts.iter().enumerate().rev().find_map(|(place, part)| {
            let above = place.checked_sub(1).and_then(|above| parts.get(above));
            Some((place, scope(part).or_else(|| bare(part, above.copied()))?))
        })?;
        // Of a group that holds the pod, the container is another's.
        let pod = pod.filter(|(_, whole)| parts.iter().take(place).any(|part| part == whole));
        Some(Self {
            runtime: runtime.map(str::to_owned),
            id: id.to_owned(),
            pod: pod.map(|(uid, _)| uid),
            ..Self::default()
        })
    }

    /// Takes what files say of it, which its cgroup does not.
    pub(in crate::report) fn take_names(&mut self, known: Self) {
        if self.id == known.id {
            self.name = known.name;
            self.pod_name = known.pod_name;
            self.hostname = known.hostname;
        }
    }

    /// For people: `docker web 0123456789ab`.
    #[must_use]
    pub fn describe(&self) -> String {
        let id: String = if self.id.len() == ID {
            self.id.chars().take(SHORT).collect()
        } else {
            self.id.clone()
        };
        let mut text = self
            .runtime
            .clone()
            .unwrap_or_else(|| "container".to_owned());
        for part in self.name.iter().chain([&id]) {
            text.push(' ');
            text.push_str(part);
        }
        if let Some(host) = &self.hostname {
            text.push_str(&format!(" (by its own hostname {host})"));
        }
        if let Some(pod) = self.pod_name.as_ref().or(self.pod.as_ref()) {
            text.push_str(&format!(" of pod {pod}"));
        }
        text
    }
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A scope of systemd that a runtime made, or a group that it names as if it were one (CRI-O without systemd).
fn scope(part: &str) -> Option<(Option<&'static str>, &str)> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    SCOPES.into_iter().find_map(|(prefix, runtime)| {
        let id = name.strip_prefix(prefix)?;
        is_id(id).then_some((Some(runtime), id))
    })
}

/// A group that is called like the container alone, by the one above it; and those of LXC.
fn bare<'a>(part: &'a str, above: Option<&str>) -> Option<(Option<&'static str>, &'a str)> {
    if let Some(name) = part.strip_prefix("lxc.payload.") {
        return (!name.is_empty()).then_some((Some("lxc"), name));
    }
    if above == Some("lxc") {
        return Some((Some("lxc"), part));
    }
    if !is_id(part) {
        return None;
    }
    Some((
        match above {
            Some("docker") => Some("docker"),
            Some("default" | "k8s.io") => Some("containerd"),
            Some("libpod_parent") => Some("podman"),
            _ => None,
        },
        part,
    ))
}

/// The UID of a pod, from `podUID` or `kubepods-burstable-podUID.slice`, in which systemd wants no dashes; with the part itself.
fn pod(part: &str) -> Option<(String, &str)> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = name
        .strip_prefix("pod")
        .or_else(|| name.rsplit_once("-pod").map(|(_, uid)| uid))?;
    let uid = uid.replace('_', "-");
    let is_uuid = uid.len() == UUID
        && uid
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    // Pods of a node's own files have a hash.
    let is_hash = uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_uuid || is_hash).then_some((uid, part))
}

/// The unit of systemd that a cgroup belongs to, the innermost service, or else scope, that is none of a container.
#[must_use]
pub(super) fn unit_of_cgroup(path: &str) -> Option<String> {
    let parts = || path.split('/').rev().filter(|part| scope(part).is_none());
    let ends = |ending: &'static str| {
        parts().find(move |part| part.len() > ending.len() && part.ends_with(ending))
    };
    let unit = ends(".service").or_else(|| ends(".scope"))?;
    Some(unescaped(unit))
}

/// A unit's name as systemd shows it: `\x2d` is a dash (systemd.unit(5)).
fn unescaped(name: &str) -> String {
    let mut rest = name;
    let mut out = String::with_capacity(name.len());
    while let Some((before, after)) = rest.split_once("\\x") {
        out.push_str(before);
        let code = after
            .get(..2)
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        match code.filter(u8::is_ascii_graphic) {
            Some(code) => {
                out.push(char::from(code));
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push_str("\\x");
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use proptest::prelude::*;

    use super::{Container, unit_of_cgroup};

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const POD: &str = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed";

    #[test]
    fn every_runtime_names_groups_by_its_rules() {
        let under = POD.replace('-', "_");
        for (path, runtime, pod) in [
            (
                format!("/system.slice/docker-{HEX}.scope"),
                Some("docker"),
                false,
            ),
            (format!("/docker/{HEX}"), Some("docker"), false),
            (format!("/docker/{HEX}/init.scope"), Some("docker"), false),
            (format!("/default/{HEX}"), Some("containerd"), false),
            (
                format!("/machine.slice/libpod-{HEX}.scope/container"),
                Some("podman"),
                false,
            ),
            (
                format!(
                    "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{HEX}.scope"
                ),
                Some("podman"),
                false,
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-{HEX}.scope"
                ),
                Some("containerd"),
                true,
            ),
            (
                format!("/kubepods.slice/kubepods-pod{under}.slice/crio-{HEX}.scope"),
                Some("cri-o"),
                true,
            ),
            (format!("/kubepods/besteffort/pod{POD}/{HEX}"), None, true),
            (
                format!("/kubepods/burstable/pod{POD}/crio-{HEX}"),
                Some("cri-o"),
                true,
            ),
        ] {
            let found = Container::of_cgroup(&path).unwrap();
            assert_eq!(found.runtime.as_deref(), runtime, "{path}");
            assert_eq!(found.id, HEX, "{path}");
            assert_eq!(found.pod.as_deref(), pod.then_some(POD), "{path}");
        }
        let named = Container {
            name: Some("web".to_owned()),
            pod_name: Some("shop/web-0".to_owned()),
            ..Container::of_cgroup(&format!("/docker/{HEX}")).unwrap()
        };
        assert_eq!(
            named.describe(),
            "docker web 0123456789ab of pod shop/web-0"
        );
        let lxc = Container::of_cgroup("/lxc.payload.web/system.slice").unwrap();
        assert_eq!(lxc.describe(), "lxc web");
        for path in [
            "/",
            "",
            "/system.slice/nginx.service",
            "/user.slice/user-0.slice/session-3.scope",
            "/system.slice/docker.service",
            &format!("/machine.slice/libpod-conmon-{HEX}.scope"),
        ] {
            assert_eq!(Container::of_cgroup(path), None, "{path}");
        }
    }

    #[test]
    fn units_are_the_innermost_that_are_no_container() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            (
                "/user.slice/user-0.slice/session-3.scope",
                Some("session-3.scope"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.x\\x2dterm.service",
                Some("app-org.x-term.service"),
            ),
            ("/init.scope", Some("init.scope")),
            ("/", None),
            ("/.service", None),
        ] {
            assert_eq!(unit_of_cgroup(path).as_deref(), unit, "{path}");
        }
        assert_eq!(
            unit_of_cgroup(&format!("/system.slice/docker-{HEX}.scope")),
            None
        );
    }

    proptest! {
        #[test]
        fn no_path_breaks_the_parser(path in "(/?(pod|docker-|crio-|kubepods-pod|lxc|[a-f0-9_-]{0,70}|\\PC{0,8}|\\\\x[0-9a-z]{0,2})(.scope|.slice|.service)?){0,5}") {
            if let Some(container) = Container::of_cgroup(&path) {
                prop_assert!(path.contains(&container.id));
                prop_assert!(!container.id.is_empty());
            }
            drop(unit_of_cgroup(&path));
        }

        #[test]
        fn what_lies_below_a_container_is_in_it(below in "(/[a-z]{1,8}){0,3}", above in "(/[a-z.]{1,8}){0,3}") {
            let path = format!("{above}/docker-{HEX}.scope{below}");
            prop_assert_eq!(Container::of_cgroup(&path).unwrap().id, HEX);
        }
    }
}
