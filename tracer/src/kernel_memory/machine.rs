//! One look at the whole machine, and what could not be read in it.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    allocinfo::{AllocatingLine, parse_allocinfo},
    meminfo::{MemoryClass, parse_meminfo},
    read_at_most,
    slab::{Slab, SlabNames, parse_slabinfo},
};

/// Of each file so many bytes are read at most; slabinfo takes some 30 KiB, allocinfo 500 KiB.
const MOST_BYTES: u64 = 8 << 20;

/// `allocinfo` has thousands of lines: it is read so often.
const LINES_EVERY: Duration = Duration::from_secs(20);

/// Caches come with modules: the names are looked at again so often.
const NAMES_EVERY: Duration = Duration::from_secs(300);

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineLook {
    /// Slab caches that hold objects.
    pub slabs: Vec<Slab>,
    /// Classes of memory.
    pub classes: Vec<MemoryClass>,
    /// Lines of the kernel's source; `None` where this look did not read them.
    pub lines: Option<Vec<AllocatingLine>>,
}

/// The files of the machine.
#[derive(Debug)]
pub struct Machine {
    proc_root: PathBuf,
    slab_root: PathBuf,
    names: SlabNames,
    named: Option<Instant>,
    lines_read: Option<Instant>,
    /// What could not be read, a sentence each.
    refused: Vec<String>,
}

impl Machine {
    /// By these roots of procfs and sysfs.
    #[must_use]
    pub fn new(proc_root: &Path, sys_root: &Path) -> Self {
        Self {
            proc_root: proc_root.to_owned(),
            slab_root: sys_root.join("kernel/slab"),
            names: SlabNames::default(),
            named: None,
            lines_read: None,
            refused: Vec::new(),
        }
    }

    /// Looks.
    pub fn look(&mut self) -> MachineLook {
        self.refused.clear();
        if self.named.is_none_or(|at| at.elapsed() >= NAMES_EVERY) {
            self.names = SlabNames::read(&self.slab_root);
            self.named = Some(Instant::now());
        }
        let mut slabs = parse_slabinfo(&self.read("slabinfo", true));
        slabs.retain(|slab| slab.objects > 0);
        let classes = parse_meminfo(&self.read("meminfo", true));
        let lines = self
            .lines_read
            .is_none_or(|at| at.elapsed() >= LINES_EVERY)
            .then(|| {
                self.lines_read = Some(Instant::now());
                parse_allocinfo(&self.read("allocinfo", false))
            });
        MachineLook {
            slabs,
            classes,
            lines,
        }
    }

    /// The other names of a cache.
    #[must_use]
    pub fn shared_with(&self, name: &str) -> Vec<String> {
        self.names.shared_with(name)
    }

    /// See [`SlabNames::is_reclaimable`].
    pub fn is_reclaimable(&mut self, name: &str) -> Option<bool> {
        self.names.is_reclaimable(&self.slab_root, name)
    }

    /// What could not be read in the last look, a sentence each.
    #[must_use]
    pub fn refused(&self) -> &[String] {
        &self.refused
    }

    fn read(&mut self, name: &str, is_everywhere: bool) -> Vec<u8> {
        let path = self.proc_root.join(name);
        match read_at_most(&path, MOST_BYTES) {
            Ok(bytes) => bytes,
            Err(error) => {
                if is_everywhere || error.kind() != io::ErrorKind::NotFound {
                    self.refused.push(refusal(&path, &error));
                }
                Vec::new()
            }
        }
    }
}

fn refusal(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!(
            "{path} cannot be read: permission denied; it takes root, or CAP_DAC_READ_SEARCH"
        ),
        _ => format!("{path} cannot be read: {error}"),
    }
}

/// One look for `doctor`: how many caches, classes and lines are told of, and what could not be read.
#[must_use]
pub fn read_machine_once(proc_root: &Path, sys_root: &Path) -> (MachineLook, Vec<String>) {
    let mut machine = Machine::new(proc_root, sys_root);
    let look = machine.look();
    (look, machine.refused)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::path::Path;

    use super::{Machine, read_machine_once};

    #[test]
    fn what_is_missing_is_said_and_what_is_optional_is_not() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("meminfo"), "SUnreclaim: 5 kB\n").unwrap();
        let mut machine = Machine::new(root.path(), root.path());
        let look = machine.look();
        assert_eq!(look.classes.len(), 1);
        assert_eq!(machine.refused().len(), 1, "{:?}", machine.refused());
        assert!(
            machine
                .refused()
                .iter()
                .all(|line| line.contains("slabinfo"))
        );
    }

    #[test]
    fn this_machine_tells_of_its_classes() {
        let (look, _) = read_machine_once(Path::new("/proc"), Path::new("/sys"));
        assert!(!look.classes.is_empty());
    }
}
