//! Where a module's debug information is: in itself, or in a separate file that is found by build-id or by debug link,
//! on this machine or inside the root of the process's container.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use super::space::Module;
use crate::target::elf::ElfFile;

/// Where distributions put separate debug files (gdb's `debug-file-directory`).
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// Separate debug files by module, held open.
#[derive(Debug, Default)]
pub struct DebugFiles {
    found: HashMap<u64, Option<File>>,
}

impl DebugFiles {
    /// The path to read a module's symbols from: its debug file where there is one, else the module itself.
    pub fn path_for(&mut self, module: &Module) -> PathBuf {
        let debug = self
            .found
            .entry(module.number)
            .or_insert_with(|| find(module));
        match debug {
            Some(file) => PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
            None => module.open_path(),
        }
    }
}

/// Looks for a separate debug file whose build-id is the module's.
fn find(module: &Module) -> Option<File> {
    let elf = module.elf.as_ref()?;
    if elf.section(".debug_info").is_some() {
        return None;
    }
    candidates(module)
        .into_iter()
        .find_map(|path| open_matching(&path, elf))
}

/// Where a separate debug file may be, in the order in which gdb looks.
fn candidates(module: &Module) -> Vec<PathBuf> {
    let mut relative = Vec::new();
    if let Some(id) = &module.build_id
        && let Some((first, rest)) = id.split_at_checked(2)
    {
        relative.push(PathBuf::from(format!(
            "{DEBUG_DIRECTORY}/.build-id/{first}/{rest}.debug"
        )));
    }
    if let Some(link) = module.elf.as_ref().and_then(|elf| elf.debug_link.as_ref())
        && let Some(name) = link.name.file_name()
        && let Some(folder) = module.path.parent()
    {
        relative.push(folder.join(name));
        relative.push(folder.join(".debug").join(name));
        let below = folder.strip_prefix("/").unwrap_or(folder);
        relative.push(Path::new(DEBUG_DIRECTORY).join(below).join(name));
    }
    let mut all = Vec::new();
    for path in relative {
        if let Ok(below) = path.strip_prefix("/") {
            all.push(module.root.join(below));
        }
        all.push(path);
    }
    all
}

/// Opens a debug file if it belongs to the module: the same build-id, or, where the module has none, the debug link
/// alone has to do.
fn open_matching(path: &Path, module: &ElfFile) -> Option<File> {
    if !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = File::open(path).ok()?;
    let debug = ElfFile::parse(&file).ok()?;
    (debug.build_id == module.build_id).then_some(file)
}
