//! Runs the image as the DaemonSet has it run: with its command, its capabilities and its mounts, a root that is read-only, and the
//! profile of seccomp. What a node's engine would do is done by crun, the runtime below it.
//!
//! Owns the container's configuration (`config.json` of the OCI runtime specification 1.0). Must not know how the image is made.

use crate::shell::{self, command, root};
use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A program that allocates all the time.
const VICTIM: &str = r#"while (1) { push @kept, "x" x 1000; select undef, undef, undef, 0.002 }"#;

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a container, and what is mounted into it.
struct Bundle {
    folder: PathBuf,
    capabilities: Vec<String>,
    seccomp: Value,
}

/// A child that is killed when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // If it has ended already, all is well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs what is in a folder that has the image's root as `rootfs`.
///
/// # Errors
/// When something does not work, or is refused.
pub(super) fn everything(folder: &Path) -> Result<()> {
    let manifest = String::from_utf8(shell::read(
        &root().join("tracer/deploy/kubernetes/daemonset.yaml"),
    )?)?;
    let mut bundle = Bundle::new(folder, &manifest)?;
    bundle.is_confined()?;
    let victim = Killed(
        Command::new("perl")
            .args(["-e", VICTIM])
            .spawn()
            .context("cannot start perl")?,
    );
    let pid = victim.0.id().to_string();
    bundle.run(&["doctor"])?;
    bundle.run(&[
        "trace",
        "-p",
        &pid,
        "--tier",
        "exact",
        "--for",
        "3s",
        "--format",
        "json",
        "-o",
        "/var/cache/leakscope/trace.json",
    ])?;
    bundle.holds("cache/trace.json", "\"alloc_bytes\":")?;
    bundle.run(&[
        "heap",
        "-p",
        &pid,
        "--format",
        "json",
        "-o",
        "/var/cache/leakscope/heap.json",
    ])?;
    bundle.holds("cache/heap.json", "\"blocks\":")?;
    let words: Vec<&str> = list(&manifest, "command:")
        .skip(1)
        // Others work on this machine.
        .flat_map(|word| match word {
            "--all" => vec!["-p", &pid],
            word => vec![word],
        })
        .collect();
    bundle.daemon(&words, &pid)
}

/// The items of a list in the manifest that has one on each line.
fn list<'text>(manifest: &'text str, key: &'static str) -> impl Iterator<Item = &'text str> {
    manifest
        .lines()
        .skip_while(move |line| line.trim() != key)
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "))
}

impl Bundle {
    fn new(folder: &Path, manifest: &str) -> Result<Self> {
        let added = manifest
            .lines()
            .find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'))
            .context("the manifest adds no capabilities")?;
        for part in ["run", "cache", "token"] {
            shell::make_dir(&folder.join(part))?;
        }
        let token = folder.join("token/token");
        shell::write(&token, b"0123456789abcdef0123456789abcdef\n")?;
        fs::set_permissions(&token, fs::Permissions::from_mode(0o400))?;
        // Engines make the places of mounts, which is too late where the root is read-only.
        for place in [
            "proc",
            "sys",
            "dev",
            "tmp",
            "run/leakscope",
            "var/cache/leakscope",
            "etc/leakscope",
        ] {
            shell::make_dir(&folder.join("rootfs").join(place))?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            capabilities: added
                .split(", ")
                .map(|name| format!("CAP_{name}"))
                .collect(),
            seccomp: serde_json::from_slice(&shell::read(
                &root().join("tracer/deploy/confinement/seccomp.json"),
            )?)?,
        })
    }

    /// That the profile counts: without one of its calls tracing is not possible.
    fn is_confined(&mut self) -> Result<()> {
        let whole = self.seccomp.clone();
        let names = self.seccomp.pointer_mut("/syscalls/0/names");
        let names = names.and_then(Value::as_array_mut);
        names
            .context("the profile of seccomp allows nothing")?
            .retain(|name| name != "bpf");
        let refused = self.run(&["doctor"]).is_err();
        self.seccomp = whole;
        if !refused {
            bail!("the profile of seccomp is not applied in the container");
        }
        Ok(())
    }

    /// A container that runs leakscope with these arguments.
    fn command(&self, arguments: &[&str]) -> Result<(Command, String)> {
        let mut words = vec!["/usr/bin/leakscope"];
        words.extend(arguments);
        let bind = |from: &Path, to: &str, how: &str| json!({ "destination": to, "type": "bind", "source": from, "options": ["rbind", how] });
        // A node's processes are seen: there is no namespace of process ids.
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": words,
                "cwd": "/",
                "env": ["PATH=/usr/bin"],
                "noNewPrivileges": true,
                "capabilities": {
                    "bounding": self.capabilities,
                    "permitted": self.capabilities,
                    "effective": self.capabilities,
                },
            },
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
                bind(&self.folder.join("run"), "/run/leakscope", "rw"),
                bind(&self.folder.join("cache"), "/var/cache/leakscope", "rw"),
                bind(&self.folder.join("token"), "/etc/leakscope", "ro"),
                bind(Path::new("/sys/kernel/tracing"), "/sys/kernel/tracing", "ro"),
                bind(Path::new("/sys/fs/cgroup"), "/sys/fs/cgroup", "ro"),
            ],
            "linux": {
                "namespaces": [{ "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }],
                "seccomp": self.seccomp,
                // As engines do unless they are told otherwise.
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        shell::write(
            &self.folder.join("config.json"),
            &serde_json::to_vec_pretty(&config)?,
        )?;
        let name = format!("leakscope-{}", std::process::id());
        // As on nodes of today: crun refuses a machine that has control groups of both versions.
        let script = "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec crun --cgroup-manager=disabled run --bundle \"$0\" \"$1\"";
        let mut run = command("unshare");
        run.args(["--mount", "sh", "-c", script])
            .arg(&self.folder)
            .arg(&name);
        Ok((run, name))
    }

    /// Runs a subcommand to its end.
    fn run(&self, arguments: &[&str]) -> Result<()> {
        let (mut crun, _) = self.command(arguments)?;
        let output = crun.output().context("cannot start crun")?;
        if !output.status.success() {
            bail!(
                "leakscope {} in the container ({}):\n{}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// That a file which was written has a number other than 0 behind these words.
    fn holds(&self, file: &str, words: &str) -> Result<()> {
        let text = String::from_utf8(shell::read(&self.folder.join(file))?)?;
        let has = text.split(words).skip(1).any(|rest| {
            rest.trim_start()
                .starts_with(|first: char| ('1'..='9').contains(&first))
        });
        if !has {
            bail!("{file} of the container has no {words} other than 0");
        }
        Ok(())
    }

    /// Runs the daemon, asks it, and ends it.
    fn daemon(&self, words: &[&str], pid: &str) -> Result<()> {
        let (mut crun, name) = self.command(words)?;
        let mut daemon = Killed(crun.stdin(Stdio::null()).spawn()?);
        let socket = self.folder.join("run/leakscope.sock");
        let begun = Instant::now();
        let ask = |path: &str| {
            shell::ask(
                command("curl")
                    .args(["-sf", "--unix-socket"])
                    .arg(&socket)
                    .arg(format!("http://localhost{path}")),
            )
        };
        let report = format!("/api/v1/report?format=json&pid={pid}");
        let seen = |text: String| {
            let (_, rest) = text.split_once("\"alloc_bytes\":")?;
            rest.trim_start()
                .starts_with(|first: char| ('1'..='9').contains(&first))
                .then_some(())
        };
        while ask(&report).and_then(seen).is_none() {
            if let Some(status) = daemon.0.try_wait()? {
                bail!("the daemon in the container ended with {status}");
            }
            if begun.elapsed() > PATIENCE {
                bail!("the daemon in the container saw no allocation");
            }
            sleep(Duration::from_millis(200));
        }
        for path in ["/", "/metrics", "/debug/pprof/heap", "/flamegraph.svg"] {
            // What is no text is fetched as well.
            let fetched = command("curl")
                .args(["-sf", "-o", "/dev/null", "--unix-socket"])
                .arg(&socket)
                .arg(format!("http://localhost{path}"))
                .status()?;
            if !fetched.success() {
                bail!("the daemon in the container does not answer {path}");
            }
        }
        shell::run(command("crun").args(["--cgroup-manager=disabled", "kill", &name, "TERM"]))?;
        let status = daemon.0.wait()?;
        if !status.success() {
            bail!("the daemon in the container ended with {status}");
        }
        Ok(())
    }
}
