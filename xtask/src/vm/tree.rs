//! The guest's root directory before it is an archive: files of this machine with the libraries they need, and files we write.

use super::archive::{Archive, Member};
use crate::shell::{self, ask, command};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

/// What stands at a path.
enum Node {
    Directory,
    Content(Vec<u8>, u32),
    /// A file of this machine, read when the archive is written.
    Host(PathBuf),
    Link(String),
}

/// A root directory; the keys are absolute paths without the leading slash, so that parents sort before their children.
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

/// Directories at the root that many systems keep as links into /usr.
const MERGED: [&str; 5] = ["bin", "sbin", "lib", "lib32", "lib64"];

impl Tree {
    /// An empty root with the links at its top that this machine's has.
    pub(super) fn new() -> Self {
        let mut tree = Self {
            nodes: BTreeMap::new(),
        };
        for name in MERGED {
            if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
                let target = target.to_string_lossy().into_owned();
                tree.directory(&format!("/{target}"));
                tree.nodes.insert(name.to_owned(), Node::Link(target));
            }
        }
        tree
    }

    /// Adds a directory and its parents.
    pub(super) fn directory(&mut self, path: &str) {
        let mut so_far = String::new();
        for component in Path::new(path).components() {
            if let Component::Normal(name) = component {
                if !so_far.is_empty() {
                    so_far.push('/');
                }
                so_far.push_str(&name.to_string_lossy());
                self.nodes.entry(so_far.clone()).or_insert(Node::Directory);
            }
        }
    }

    /// The directory of a whole system, without what is no file, directory or link.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn of_system(root: &Path) -> Result<Self> {
        let mut tree = Self {
            nodes: BTreeMap::new(),
        };
        let mut left = vec![root.to_owned()];
        while let Some(dir) = left.pop() {
            let failed = || format!("cannot read the directory {}", dir.display());
            for entry in fs::read_dir(&dir).with_context(failed)? {
                let entry = entry.with_context(failed)?;
                let (host, kind) = (entry.path(), entry.file_type()?);
                let inside = host.strip_prefix(root)?.to_string_lossy().into_owned();
                let node = if kind.is_dir() {
                    left.push(host);
                    Node::Directory
                } else if kind.is_symlink() {
                    Node::Link(fs::read_link(&host)?.to_string_lossy().into_owned())
                } else if kind.is_file() {
                    Node::Host(host)
                } else {
                    continue;
                };
                tree.nodes.insert(inside, node);
            }
        }
        Ok(tree)
    }

    /// Adds a file with this content.
    pub(super) fn content(&mut self, path: &str, content: impl Into<Vec<u8>>, permissions: u32) {
        self.insert(path, Node::Content(content.into(), permissions));
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Node::Link(target.to_owned()));
    }

    /// Adds a file of this machine at another path, with the libraries and the loader that it needs at theirs.
    ///
    /// # Errors
    /// When a library cannot be found.
    pub(super) fn program(&mut self, file: &Path, path: &str) -> Result<()> {
        self.insert(path, Node::Host(file.to_owned()));
        self.libraries(file)
    }

    /// Adds a file of this machine at its own path, with what it needs.
    ///
    /// # Errors
    /// As [`Tree::program`].
    pub(super) fn own(&mut self, file: &Path) -> Result<()> {
        self.mirror(file)?;
        self.libraries(file)
    }

    /// Adds a directory of this machine with the files below it, without directories of the given names, and without what
    /// its programs need.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn own_directory(&mut self, dir: &Path, without: &[&str]) -> Result<()> {
        let failed = || format!("cannot read the directory {}", dir.display());
        for entry in fs::read_dir(dir).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            if path.is_file() {
                self.mirror(&path)?;
            } else if path.is_dir() && !without.iter().any(|name| path.ends_with(name)) {
                self.own_directory(&path, without)?;
            }
        }
        Ok(())
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// When a file cannot be read or the archive cannot be written.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let out =
            fs::File::create(file).with_context(|| format!("cannot write {}", file.display()))?;
        let mut archive = Archive::new(BufWriter::new(out));
        for (path, node) in &self.nodes {
            match node {
                Node::Directory => archive.add(path, &Member::Directory)?,
                Node::Content(content, permissions) => {
                    archive.add(path, &Member::File(content, *permissions))?;
                }
                Node::Host(host) => {
                    let content = shell::read(host)?;
                    let permissions = fs::metadata(host)?.permissions().mode() & 0o7777;
                    archive.add(path, &Member::File(&content, permissions))?;
                }
                Node::Link(target) => archive.add(path, &Member::Link(target))?,
            }
        }
        archive.finish()?;
        Ok(())
    }

    fn insert(&mut self, path: &str, node: Node) {
        if let Some(parent) = Path::new(path).parent() {
            self.directory(&parent.to_string_lossy());
        }
        self.nodes
            .insert(path.trim_start_matches('/').to_owned(), node);
    }

    /// Adds a file of this machine where it really lies, and the link by which it was named.
    fn mirror(&mut self, file: &Path) -> Result<()> {
        let lost = || format!("cannot find {}", file.display());
        let real = file.canonicalize().with_context(lost)?;
        self.insert(&real.to_string_lossy(), Node::Host(real.clone()));
        let (Some(parent), Some(name)) = (file.parent(), file.file_name()) else {
            return Ok(());
        };
        let named = parent.canonicalize().with_context(lost)?.join(name);
        if named != real {
            self.link(&named.to_string_lossy(), &real.to_string_lossy());
        }
        Ok(())
    }

    /// The libraries and the loader, as ldd(1) finds them; a static program has none, and ldd fails then.
    fn libraries(&mut self, file: &Path) -> Result<()> {
        let list = ask(command("ldd").arg(file)).unwrap_or_default();
        for path in library_paths(&list) {
            self.mirror(Path::new(path))
                .with_context(|| format!("{} needs it", file.display()))?;
        }
        Ok(())
    }
}

/// The paths in ldd's output: `name => /path (0x…)`, or `/path (0x…)` for the loader.
fn library_paths(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| {
        let path = line.split_once("=>").map_or(line, |(_, path)| path);
        path.split_whitespace()
            .next()
            .filter(|path| path.starts_with('/'))
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use super::{Tree, library_paths};
    use std::fs;
    use std::path::Path;

    #[test]
    fn ldd_is_understood() {
        let list = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibgone.so => not found\n\tstatically linked\n";
        assert_eq!(
            library_paths(list).collect::<Vec<_>>(),
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn parents_come_before_their_children() {
        let mut tree = Tree {
            nodes: Default::default(),
        };
        tree.content("/a/b/c", "x", 0o644);
        tree.content("/a-b", "y", 0o644);
        tree.link("/a/l", "b/c");
        let names: Vec<&str> = tree.nodes.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a-b", "a/b", "a/b/c", "a/l"]);
    }

    #[test]
    fn a_dynamic_program_brings_its_loader() {
        let mut tree = Tree::new();
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        tree.own(&shell).unwrap();
        assert!(tree.nodes.keys().any(|name| name.contains("libc.so")));
        assert!(tree.nodes.keys().any(|name| name.contains("ld-")));
        let file = std::env::temp_dir().join(format!("xtask-tree-{}", std::process::id()));
        tree.write(&file).unwrap();
        assert!(fs::metadata(&file).unwrap().len() > 100_000);
        fs::remove_file(&file).unwrap();
    }
}
