//! Where a module's debug information is: in itself, or in a separate file that is found by build-id or by debug link,
//! on this machine or inside the root of the process's container, or else, if that is wanted, on a server.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{
    debuginfod::{Debuginfod, Found},
    space::Module,
};
use crate::{
    apart,
    process::{elf::ElfFile, open::open_below},
};

/// Where distributions put separate debug files (gdb's `debug-file-directory`).
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// Separate debug files by module, held open.
#[derive(Debug, Default)]
pub struct DebugFiles {
    found: HashMap<u64, Debug>,
    network: Option<Network>,
}

/// Where a module's debug information is.
#[derive(Debug)]
enum Debug {
    /// In the module, as far as there is any.
    Inside,
    /// In a file of its own.
    Apart(File),
    /// Servers are asked for the file of this build id.
    Awaited(String),
}

/// Servers that are asked, and for how long they may be waited for.
#[derive(Debug)]
struct Network {
    servers: Debuginfod,
    patience: Duration,
    /// Answers that are known of.
    answers: u64,
    looked: Instant,
}

/// Files that no server could be asked for are asked for again after so long, at the earliest.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

impl DebugFiles {
    /// Asks servers for what is not on this machine.
    #[must_use]
    pub fn with_servers(servers: Debuginfod) -> Self {
        Self {
            found: HashMap::new(),
            network: Some(Network {
                patience: Duration::ZERO,
                answers: servers.answers(),
                looked: Instant::now(),
                servers,
            }),
        }
    }

    /// From now on files that servers may have are waited for, but no longer than was allowed, all in all.
    pub fn be_patient(&mut self) {
        let Some(network) = &mut self.network else {
            return;
        };
        network.patience = network.servers.patience();
        for debug in self.found.values() {
            if let Debug::Awaited(build_id) = debug {
                network.servers.wait(build_id, &mut network.patience);
            }
        }
    }

    /// Asks servers for a module's debug file, if it has none here.
    pub fn prepare(&mut self, module: &Module) {
        let network = self.network.as_ref();
        self.found
            .entry(module.number)
            .or_insert_with(|| Debug::of(module, network));
    }

    /// The modules, by number, whose debug files have come since this was asked last.
    pub fn arrived(&mut self) -> Vec<u64> {
        let Some(network) = &mut self.network else {
            return Vec::new();
        };
        let answers = network.servers.answers();
        if answers == network.answers && network.looked.elapsed() < LOOK_AGAIN {
            return Vec::new();
        }
        network.answers = answers;
        network.looked = Instant::now();
        let mut arrived = Vec::new();
        for (module, debug) in &mut self.found {
            if let Debug::Awaited(build_id) = debug
                && let Found::Here(file) = network.servers.find(build_id)
            {
                *debug = Debug::Apart(file);
                arrived.push(*module);
            }
        }
        arrived
    }

    /// The separate debug file of a module, where there is one.
    pub fn file_for(&mut self, module: &Module) -> Option<&File> {
        self.prepare(module);
        if let Some(network) = &mut self.network
            && !network.patience.is_zero()
            && let Some(debug) = self.found.get_mut(&module.number)
            && let Debug::Awaited(build_id) = debug
        {
            network.servers.wait(build_id, &mut network.patience);
            if let Found::Here(file) = network.servers.find(build_id) {
                *debug = Debug::Apart(file);
            }
        }
        match self.found.get(&module.number) {
            Some(Debug::Apart(file)) => Some(file),
            _ => None,
        }
    }
}

impl Debug {
    fn of(module: &Module, network: Option<&Network>) -> Self {
        let Some(elf) = &module.elf else {
            return Self::Inside;
        };
        if elf.section(".debug_info").is_some() {
            return Self::Inside;
        }
        let local = candidates(module)
            .into_iter()
            .find_map(|(root, name)| open_matching(&root, &name, elf));
        if let Some(file) = local {
            return Self::Apart(file);
        }
        let (Some(network), Some(build_id)) = (network, &module.build_id) else {
            return Self::Inside;
        };
        match network.servers.find(build_id) {
            Found::Here(file) => Self::Apart(file),
            // What no server can be asked for now may be asked for later.
            Found::Awaited | Found::Nowhere => Self::Awaited(build_id.clone()),
        }
    }
}

/// Where a separate debug file may be, in the order in which gdb looks: a root, and the name below it.
fn candidates(module: &Module) -> Vec<(PathBuf, PathBuf)> {
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
            all.push((module.root.clone(), below.to_owned()));
        }
        all.push((PathBuf::from("/"), path));
    }
    all
}

/// Opens a debug file if it belongs to the module: the same build-id, or, where the module has none, the debug link
/// alone has to do.
fn open_matching(root: &Path, name: &Path, module: &ElfFile) -> Option<File> {
    let file = open_below(root, name).ok()?;
    let debug = apart::headers(&file).ok()?;
    (debug.build_id == module.build_id).then_some(file)
}
