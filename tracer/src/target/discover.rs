//! tmp
use super::{allocator::*, elf::*, process::*};
use leakscope_common::Function;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
#[derive(Default, Debug)]
pub struct Files;
pub struct Discovery {
    pub allocators: Vec<FoundAllocator>,
    pub problems: Vec<String>,
}
pub struct FoundFunction {
    pub function: Function,
    pub name: String,
    pub offset: u64,
    pub stack_moved: u16,
    pub wants_return: bool,
    pub reason: String,
}
pub struct FoundAllocator {
    pub file: (u64, u64),
    pub path: PathBuf,
    pub open_path: PathBuf,
    pub label: String,
    pub functions: Vec<FoundFunction>,
}
pub fn discover(_f: &Files, proc_root: &Path, pid: u32) -> Result<Discovery, ProcessError> {
    let mut d = Discovery {
        allocators: vec![],
        problems: vec![],
    };
    let mut seen = std::collections::HashSet::new();
    for map in read_maps(proc_root, pid)? {
        if !map.executable
            || !map.is_file()
            || !seen.insert((map.device.major, map.device.minor, map.inode))
        {
            continue;
        }
        let Ok(file) = open_mapped(proc_root, pid, &map) else {
            d.problems
                .push(format!("{} cannot be opened", map.path.display()));
            continue;
        };
        let Ok(elf) = ElfFile::parse(&file) else {
            continue;
        };
        let Ok(found) = find_allocators(&elf, &file, &map.path) else {
            continue;
        };
        let m = file.metadata().unwrap();
        for a in found.allocators {
            d.allocators.push(FoundAllocator {
                file: (m.dev(), m.ino()),
                path: a.path.clone(),
                open_path: proc_root.join(format!("{pid}/map_files/{:x}-{:x}", map.start, map.end)),
                label: format!("{} {}", a.kind, a.path.display()),
                functions: a
                    .functions
                    .iter()
                    .filter_map(|f| {
                        Some(FoundFunction {
                            function: f.function,
                            name: f.name.clone(),
                            offset: elf.file_offset_of(f.vaddr)?
                                + if f.function == Function::Free
                                    && f.name == "free"
                                    && a.kind == AllocatorKind::Glibc
                                {
                                    3
                                } else {
                                    0
                                },
                            stack_moved: 0,
                            wants_return: f.function != Function::Free,
                            reason: String::new(),
                        })
                    })
                    .collect(),
            });
        }
    }
    Ok(d)
}
