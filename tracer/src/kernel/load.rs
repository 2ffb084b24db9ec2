//! Loading: the object is parsed and relocated by aya-obj, maps are made by aya; programs are loaded by us, because
//! multi and session programs need attach types that aya 0.14 cannot name.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::maps::MapData;
use aya_obj::{Features, Object, btf::BtfFeatures, generated::bpf_prog_type};

use super::{
    error::KernelError,
    object::{OBJECT, is_for_this_machine},
    sys::{self, ProgramLoad},
};

/// Size of the log in which the verifier explains a refusal.
const LOG_BYTES: usize = 4 << 20;

/// A map and the memory that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapMemory {
    /// The map's name.
    pub name: String,
    /// Values it can hold.
    pub entries: u64,
    /// Bytes: allocated at once for arrays and rings; for hashes the most that it can grow to.
    pub bytes: u64,
    /// Whether the memory is taken at once.
    pub allocated: bool,
}

/// The relocated object: maps exist, programs wait to be loaded.
pub(crate) struct LoadedObject {
    object: Object,
    btf: OwnedFd,
    /// The tables of programs to jump to.
    tables: Vec<(String, aya_obj::Map)>,
    /// Maps by name; taken out one by one by their users.
    pub(crate) maps: HashMap<String, MapData>,
    /// What they take.
    pub(crate) memory: Vec<MapMemory>,
}

/// Everything that Linux 6.1, the floor, has.
fn floor_features() -> Features {
    Features::new(
        true,
        true,
        true,
        true,
        true,
        true,
        true,
        Some(floor_btf_features()),
    )
}

/// As [`floor_features`], for BTF.
fn floor_btf_features() -> BtfFeatures {
    BtfFeatures::new(true, true, true, true, true, true, true, true)
}

impl LoadedObject {
    /// Parses the object, makes the maps with these capacities (by map name), and relocates the programs.
    ///
    /// # Errors
    /// The object cannot be read, or a map was refused.
    pub(crate) fn new(capacities: &HashMap<&str, u32>) -> Result<Self, KernelError> {
        let unreadable = |reason: String| KernelError::Object { reason };
        is_for_this_machine(OBJECT).map_err(unreadable)?;
        let mut object = Object::parse(OBJECT).map_err(|error| unreadable(error.to_string()))?;
        let btf = object
            .fixup_and_sanitize_btf(&floor_btf_features())
            .map_err(|error| unreadable(error.to_string()))?
            .map(aya_obj::btf::Btf::to_bytes)
            .ok_or_else(|| unreadable("it carries no BTF".to_owned()))?;
        let btf = sys::load_btf(&btf)
            .map_err(|source| KernelError::call("cannot load the probe's BTF", source))?;
        let mut maps = HashMap::new();
        let mut definitions = Vec::new();
        let mut memory = Vec::new();
        for (name, mut map) in object.maps.drain() {
            if let Some(entries) = capacities.get(name.as_str()) {
                map.set_max_entries(*entries);
            }
            let bytes = map_bytes(&map);
            let allocated = !is_hash(&map);
            memory.push(MapMemory {
                name: name.clone(),
                entries: u64::from(map.max_entries()),
                bytes,
                allocated,
            });
            let data = MapData::create(map.clone(), &name, Some(btf.as_fd())).map_err(|error| {
                KernelError::Map {
                    name: name.clone(),
                    bytes,
                    source: io_error(&error),
                }
            })?;
            definitions.push((name.clone(), data.fd().as_fd().as_raw_fd(), map));
            maps.insert(name, data);
        }
        memory.sort_by(|left, right| {
            right
                .bytes
                .cmp(&left.bytes)
                .then(left.name.cmp(&right.name))
        });
        let text: HashSet<usize> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        object
            .relocate_maps(
                definitions
                    .iter()
                    .map(|(name, fd, map)| (name.as_str(), *fd, map)),
                &text,
            )
            .map_err(|error| unreadable(error.to_string()))?;
        object
            .relocate_calls(&text)
            .map_err(|error| unreadable(error.to_string()))?;
        object.sanitize_functions(&floor_features());
        let tables = definitions
            .into_iter()
            .filter(|(.., map)| map.map_type() == PROG_ARRAY)
            .map(|(name, _, map)| (name, map))
            .collect();
        Ok(Self {
            object,
            btf,
            tables,
            maps,
            memory,
        })
    }

    /// Gives the programs that are loaded from now on tables of their own to jump to: one is for programs that are all loaded for the
    /// same kind of link (`__bpf_prog_map_compatible`, kernel/bpf/core.c).
    ///
    /// # Errors
    /// The kernel refused one.
    pub(crate) fn renew_tables(&mut self) -> Result<(), KernelError> {
        for (name, definition) in &self.tables {
            let old = self.map_fd(name)?.as_raw_fd();
            let fresh = MapData::create(definition.clone(), name, Some(self.btf.as_fd())).map_err(
                |error| KernelError::Map {
                    name: name.clone(),
                    bytes: map_bytes(definition),
                    source: io_error(&error),
                },
            )?;
            let new = fresh.fd().as_fd().as_raw_fd();
            for function in self.object.functions.values_mut() {
                for instruction in &mut function.instructions {
                    if instruction.code == LOAD_WORD
                        && instruction.src_reg() == MAP_DESCRIPTOR
                        && instruction.imm == old
                    {
                        instruction.imm = new;
                    }
                }
            }
            self.maps.insert(name.clone(), fresh);
        }
        Ok(())
    }

    /// Loads a program.
    ///
    /// # Errors
    /// There is no such program, or the kernel refused it; the error carries the verifier's log.
    pub(crate) fn program(
        &self,
        name: &str,
        program_type: bpf_prog_type,
        expected_attach_type: u32,
    ) -> Result<OwnedFd, KernelError> {
        self.program_for(name, program_type, expected_attach_type, 0)
    }

    /// Loads a program for a kernel function, by its number in the kernel's BTF.
    ///
    /// # Errors
    /// As for [`LoadedObject::program`].
    pub(crate) fn tracing_program(
        &self,
        name: &str,
        expected_attach_type: u32,
        function: u32,
    ) -> Result<OwnedFd, KernelError> {
        let kind = bpf_prog_type::BPF_PROG_TYPE_TRACING;
        self.program_for(name, kind, expected_attach_type, function)
    }

    fn program_for(
        &self,
        name: &str,
        program_type: bpf_prog_type,
        expected_attach_type: u32,
        attach_btf_id: u32,
    ) -> Result<OwnedFd, KernelError> {
        let missing = || KernelError::Object {
            reason: format!("it has no program {name}"),
        };
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self
            .object
            .functions
            .get(&program.function_key())
            .ok_or_else(missing)?;
        let func_info = function.func_info.func_info_bytes();
        let line_info = distinct_lines(
            &function.line_info.line_info_bytes(),
            function.line_info_rec_size,
        );
        let load = ProgramLoad {
            name,
            program_type: program_type as u32,
            expected_attach_type,
            attach_btf_id,
            instructions: &function.instructions,
            license: &program.license,
            btf: Some(self.btf.as_fd()),
            func_info: &func_info,
            func_info_size: function.func_info_rec_size,
            line_info: &line_info,
            line_info_size: function.line_info_rec_size,
        };
        patiently(|| sys::load_program(&load, &mut [])).map_err(|source| {
            // Once more, for the reason.
            let mut log = vec![0_u8; LOG_BYTES];
            let source = match patiently(|| sys::load_program(&load, &mut log)) {
                Err(again) => again,
                Ok(_) => source,
            };
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            log.truncate(end);
            KernelError::Program {
                name: name.to_owned(),
                source,
                log: String::from_utf8_lossy(&log).into_owned(),
            }
        })
    }

    /// A map's descriptor.
    pub(crate) fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>, KernelError> {
        self.maps
            .get(name)
            .map(|map| map.fd().as_fd())
            .ok_or_else(|| KernelError::Object {
                reason: format!("it has no map {name}"),
            })
    }

    /// Takes a map out.
    pub(crate) fn take_map(&mut self, name: &str) -> Result<MapData, KernelError> {
        self.maps.remove(name).ok_or_else(|| KernelError::Object {
            reason: format!("it has no map {name}"),
        })
    }
}

/// Tries again while the verifier says EAGAIN: it gives up when a signal is pending (kernel/bpf/verifier.c, `do_check`), be it
/// only a timer's.
fn patiently<T>(mut load: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match load() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    load()
}

/// Line records with strictly rising instruction offsets, as the kernel asks for (`check_btf_line`): an assembler statement
/// without instructions makes two records for one instruction. The offset is a record's first word (`struct bpf_line_info`).
fn distinct_lines(records: &[u8], size: usize) -> Vec<u8> {
    let mut kept = Vec::with_capacity(records.len());
    let mut last: Option<&[u8]> = None;
    for record in records.chunks_exact(size.max(4)) {
        let offset = record.get(..4);
        if offset.is_some() && offset != last {
            kept.extend_from_slice(record);
            last = offset;
        }
    }
    kept
}

/// `BPF_LD | BPF_IMM | BPF_DW`, and `BPF_PSEUDO_MAP_FD`: its value is a map's descriptor (include/uapi/linux/bpf.h).
const LOAD_WORD: u8 = 0x18;
const MAP_DESCRIPTOR: u8 = 1;

/// `BPF_MAP_TYPE_PROG_ARRAY`.
const PROG_ARRAY: u32 = 3;
/// `BPF_MAP_TYPE_HASH` (include/uapi/linux/bpf.h).
const HASH: u32 = 1;
/// `BPF_MAP_TYPE_RINGBUF`.
const RINGBUF: u32 = 27;
/// Bytes of a hash entry beside key and value (`struct htab_elem`, kernel/bpf/hashtab.c).
const HASH_ENTRY: u64 = 48;

fn is_hash(map: &aya_obj::Map) -> bool {
    map.map_type() == HASH
}

/// What a map takes, or can grow to.
fn map_bytes(map: &aya_obj::Map) -> u64 {
    let entries = u64::from(map.max_entries());
    let value = u64::from(map.value_size()).next_multiple_of(8);
    match map.map_type() {
        RINGBUF => entries,
        HASH => entries * (HASH_ENTRY + u64::from(map.key_size()).next_multiple_of(8) + value),
        _ => entries * value,
    }
}

/// The operating system's error inside one of aya's.
pub(crate) fn io_error(error: &(dyn std::error::Error + 'static)) -> std::io::Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>()
            && let Some(code) = io.raw_os_error()
        {
            return std::io::Error::from_raw_os_error(code);
        }
        if let Some(aya::maps::MapError::CreateError { io_error, .. }) = this.downcast_ref()
            && let Some(code) = io_error.raw_os_error()
        {
            return std::io::Error::from_raw_os_error(code);
        }
        cause = this.source();
    }
    std::io::Error::other(error.to_string())
}
