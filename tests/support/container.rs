//! Containers without an engine, and control groups: what a process can be put into.
//!
//! Owns how a root, namespaces and groups are made and taken away. Must not know what is traced in them.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{Truth, Victim, children};

/// A folder with Debian in it, as debootstrap makes it.
const DEBIAN: &str = "LEAKSCOPE_DEBIAN";

/// A control group made for a test, gone when dropped.
pub struct Group {
    path: PathBuf,
}

impl Group {
    /// With another group below it; `None` where none can be made.
    #[must_use]
    pub fn make(below: &Path) -> Option<Self> {
        let path = below.join(format!("leakscope-test-{}", std::process::id()));
        fs::create_dir_all(path.join("inner")).ok()?;
        Some(Self { path })
    }

    /// Its folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of the group below it.
    #[must_use]
    pub fn inner(&self) -> PathBuf {
        self.path.join("inner")
    }

    /// Moves a process into it, or into the group below.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn take(&self, pid: u32, inner: bool) -> io::Result<()> {
        let group = if inner {
            self.inner()
        } else {
            self.path.clone()
        };
        fs::write(group.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that still has processes stays behind: the test failed already.
        let _ = fs::remove_dir(self.inner());
        let _ = fs::remove_dir(&self.path);
    }
}

/// A program that speaks as victims do, in a root, a PID and a mount namespace of its own: a container without an engine.
pub struct Container {
    root: PathBuf,
    /// The root, where it was made for this one.
    _own: Option<TempDir>,
    outer: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pid: u32,
}

/// A shell's words, in new namespaces and a new root.
fn entering(root: &Path, words: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["-m", "-p", "-f", "sh", "-c"])
        .arg(format!(
            "mount --bind \"$0\" \"$0\" && cd \"$0\" && mkdir -p old && pivot_root . old && {words}"
        ))
        .arg(root);
    command
}

/// The folder with Debian in it, where there is one.
#[must_use]
pub fn debian() -> Option<PathBuf> {
    let folder = std::env::var_os(DEBIAN).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debian"),
        PathBuf::from,
    );
    // The last that debootstrap does with its own folder is to remove it.
    (folder.join("etc/debian_version").exists() && !folder.join("debootstrap").exists())
        .then_some(folder)
}

impl Container {
    /// Whether a process can be given a root of its own here.
    #[must_use]
    pub fn can_be_made() -> bool {
        tempfile::tempdir().is_ok_and(|empty| {
            entering(empty.path(), "exit 0")
                .output()
                .is_ok_and(|output| output.status.success())
        })
    }

    /// A victim as `/program`, in a root with copies of the libraries that it maps.
    ///
    /// # Errors
    /// A file cannot be copied, or the program does not come up.
    pub fn of_victim(program: &Path) -> Result<Self> {
        let root = tempfile::tempdir()?;
        let copy = |from: &Path, to: &Path| -> Result<()> {
            let to = root.path().join(to.strip_prefix("/")?);
            fs::create_dir_all(to.parent().context("a file's folder")?)?;
            fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
            Ok(())
        };
        copy(program, Path::new("/program"))?;
        // What it maps here it needs there, at the same paths.
        let here = Victim::start(program)?;
        let maps = fs::read_to_string(format!("/proc/{}/maps", here.pid()))?;
        let paths = maps.lines().filter_map(|line| line.get(line.find('/')?..));
        for path in paths.map(Path::new).filter(|path| *path != program) {
            copy(path, path)?;
        }
        // The dynamic loader under the name in the program's header, which may be a link.
        for loader in ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"] {
            let loader = Path::new(loader);
            if loader.exists() {
                copy(loader, loader)?;
            }
        }
        let path = root.path().to_owned();
        Self::start(path, Some(root), "exec /program")
    }

    /// What the shell's words start in a root that is there already.
    ///
    /// # Errors
    /// It does not come up.
    pub fn in_root(root: &Path, words: &str) -> Result<Self> {
        Self::start(root.to_owned(), None, words)
    }

    fn start(root: PathBuf, own: Option<TempDir>, words: &str) -> Result<Self> {
        let mut outer = entering(&root, words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = outer.stdin.take().context("its input")?;
        let stdout = BufReader::new(outer.stdout.take().context("its output")?);
        let mut container = Self {
            root,
            _own: own,
            outer,
            stdin,
            stdout,
            pid: 0,
        };
        let line = container.line()?;
        // Inside it is the first process.
        ensure!(line == "ready 1", "it said {line:?}");
        container.pid = *children(container.outer.id())?
            .first()
            .context("the first process inside")?;
        Ok(container)
    }

    /// The program's process, as it is known outside.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A file in it, as it is reached from outside.
    #[must_use]
    pub fn outside(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("the program in the container has ended");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Lets the program do its work, and takes its truth.
    ///
    /// # Errors
    /// It ends, or says something else.
    pub fn go(&mut self) -> Result<Vec<Truth>> {
        self.stdin.write_all(b"go\n")?;
        let mut truths = Vec::new();
        loop {
            let line = self.line()?;
            if line == "done" {
                return Ok(truths);
            }
            truths.push(Truth::parse(&line)?);
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.stdin.write_all(b"quit\n");
        let _ = self.outer.wait();
    }
}
