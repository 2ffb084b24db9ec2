//! `/proc/slabinfo` (slabinfo(5)), and what `/sys/kernel/slab` says of its caches: which names share one, and whether the
//! kernel takes its memory back when it is short.

use std::{collections::HashMap, fs, path::Path};

use super::{lines, number, read_at_most};

/// Names of caches that are read at most; a machine has some 200 to 500.
const MOST_CACHES: usize = 4096;

/// Longer names are none.
const LONGEST_NAME: usize = 96;

/// A slab cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slab {
    /// The first of the names that it has.
    pub name: String,
    /// Objects in use. Those that a processor keeps at hand count as in use.
    pub objects: u64,
    /// The size of one, bytes.
    pub object_bytes: u64,
}

impl Slab {
    /// The bytes of its objects.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.saturating_mul(self.object_bytes)
    }
}

/// Where the kernel makes a slab and what it keeps beside one, as `/proc/kallsyms` names it (mm/slub.c of 5.10 to 7.0;
/// mm/memcontrol.c up to 6.9).
const MAKES_SLABS: [&str; 6] = [
    "allocate_slab",
    "new_slab",
    "___slab_alloc",
    "alloc_slab_obj_exts",
    "memcg_alloc_slab_cgroups",
    "memcg_alloc_page_obj_cgroups",
];

/// Whether what a function of the kernel allocates belongs to a slab. A compiler's suffix (`.isra.0`) does not matter.
#[must_use]
pub fn makes_slabs(function: &str) -> bool {
    let name = function.split('.').next().unwrap_or(function);
    MAKES_SLABS.contains(&name)
}

/// Reads the lines `name active total size …`; others are passed over.
#[must_use]
pub(super) fn parse_slabinfo(text: &[u8]) -> Vec<Slab> {
    lines(text)
        .filter(|line| !line.starts_with('#') && !line.starts_with("slabinfo"))
        .filter_map(slab)
        .take(MOST_CACHES)
        .collect()
}

fn slab(line: &str) -> Option<Slab> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next().filter(|name| name.len() <= LONGEST_NAME)?;
    let objects = words.next()?.parse().ok()?;
    let _total: u64 = words.next()?.parse().ok()?;
    Some(Slab {
        name: name.to_owned(),
        objects,
        object_bytes: words.next()?.parse().ok()?,
    })
}

/// What `/sys/kernel/slab` says: a folder for each cache, and a link to it for each name of a cache that several share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlabNames {
    /// The folder that a name stands for.
    folders: HashMap<String, String>,
    /// The names that stand for a folder.
    names: HashMap<String, Vec<String>>,
    /// Whether a cache, by its name, gives memory back.
    reclaimable: HashMap<String, Option<bool>>,
}

impl SlabNames {
    /// Reads which names share a cache; nothing where the folder is not there or may not be read.
    #[must_use]
    pub fn read(slab_root: &Path) -> Self {
        let mut found = Self::default();
        let Ok(entries) = fs::read_dir(slab_root) else {
            return found;
        };
        for entry in entries.flatten().take(MOST_CACHES) {
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            let (true, Ok(target)) = (is_link, fs::read_link(entry.path())) else {
                continue;
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(folder) = target.file_name().filter(|_| name.len() <= LONGEST_NAME) {
                let folder = folder.to_string_lossy().into_owned();
                found
                    .names
                    .entry(folder.clone())
                    .or_default()
                    .push(name.clone());
                found.folders.insert(name, folder);
            }
        }
        for names in found.names.values_mut() {
            names.sort();
        }
        found
    }

    /// The other names of a cache.
    #[must_use]
    pub fn shared_with(&self, name: &str) -> Vec<String> {
        let names = self
            .folders
            .get(name)
            .and_then(|folder| self.names.get(folder));
        names
            .into_iter()
            .flatten()
            .filter(|other| *other != name)
            .cloned()
            .collect()
    }

    /// Whether the kernel takes the memory of a cache back when it is short (`reclaim_account`); `None` where that is not
    /// said. Asked once for each name.
    pub fn is_reclaimable(&mut self, slab_root: &Path, name: &str) -> Option<bool> {
        if let Some(known) = self.reclaimable.get(name) {
            return *known;
        }
        // A name is one part of a path, whatever it says.
        let is_part = !name.contains('/') && name != "." && name != "..";
        let file = slab_root.join(name).join("reclaim_account");
        let said = is_part
            .then(|| read_at_most(&file, 16).ok())
            .flatten()
            .and_then(|text| number(&text))
            .map(|said| said != 0);
        self.reclaimable.insert(name.to_owned(), said);
        said
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failing test may panic")]

    use std::os::unix::fs::symlink;

    use super::{Slab, SlabNames, makes_slabs, parse_slabinfo};
    use proptest::prelude::*;

    const SLABINFO: &str = "\
slabinfo - version: 2.1
# name            <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab> : tunables <limit>
filp                8234   8400    256   16    1 : tunables    0    0    0 : slabdata    525    525      0
kmalloc-cg-1k         12     16   1024   16    4 : tunables    0    0    0 : slabdata      1      1      0
broken               x      16   1024
short                5
";

    #[test]
    fn what_makes_slabs_is_known_with_a_compilers_suffix() {
        assert!(makes_slabs("allocate_slab"));
        assert!(makes_slabs("new_slab.isra.0"));
        assert!(!makes_slabs("kmem_cache_alloc_lru_noprof"));
    }

    #[test]
    fn caches_and_their_objects_are_read() {
        let slab = |name: &str, objects, object_bytes| Slab {
            name: name.to_owned(),
            objects,
            object_bytes,
        };
        assert_eq!(
            parse_slabinfo(SLABINFO.as_bytes()),
            [slab("filp", 8234, 256), slab("kmalloc-cg-1k", 12, 1024)]
        );
        assert_eq!(slab("filp", 8234, 256).bytes(), 8234 * 256);
    }

    #[test]
    fn names_of_one_cache_are_told() {
        let root = tempfile::tempdir().unwrap();
        for (folder, said) in [(":0000256", "0\n"), ("dentry", "1\n")] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
            std::fs::write(root.path().join(folder).join("reclaim_account"), said).unwrap();
        }
        for name in ["filp", "signal_cache", "UNIX"] {
            symlink(":0000256", root.path().join(name)).unwrap();
        }
        let mut names = SlabNames::read(root.path());
        assert_eq!(names.shared_with("signal_cache"), ["UNIX", "filp"]);
        assert_eq!(names.shared_with("dentry"), Vec::<String>::new());
        assert_eq!(names.is_reclaimable(root.path(), "filp"), Some(false));
        assert_eq!(names.is_reclaimable(root.path(), "dentry"), Some(true));
        assert_eq!(names.is_reclaimable(root.path(), "../dentry"), None);
        assert_eq!(names.is_reclaimable(root.path(), "nothing"), None);
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_is_read_to_its_end(text in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse_slabinfo(&text);
        }

        #[test]
        fn numbers_of_any_size_are_taken(objects: u64, total: u64, size: u64) {
            let text = format!("cache {objects} {total} {size} 1 1 : tunables\n");
            let found = parse_slabinfo(text.as_bytes());
            prop_assert_eq!(found.len(), 1);
            prop_assert!(found.iter().all(|slab| slab.bytes() >= slab.object_bytes || slab.objects == 0));
        }
    }
}
