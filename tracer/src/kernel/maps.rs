//! Maps of the loaded object, made ready to be read and written. It knows nothing of what they hold.

use std::io;

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use leakscope_common::Plain;

use super::{
    error::KernelError,
    load::{LoadedObject, io_error},
    shared::{LargeArray, SharedArray},
};

/// Maps an array.
pub(super) fn shared<T: Plain>(
    object: &LoadedObject,
    name: &str,
    len: u32,
) -> Result<SharedArray<T>, KernelError> {
    SharedArray::map(object.map_fd(name)?, len as usize).map_err(|source| cannot_map(name, source))
}

/// An array that is mapped when it is looked at.
pub(super) fn large<T: Plain>(
    object: &LoadedObject,
    name: &str,
    len: u32,
) -> Result<LargeArray<T>, KernelError> {
    LargeArray::new(object.map_fd(name)?, len as usize).map_err(|source| cannot_map(name, source))
}

/// An array or a part of it could not be mapped.
pub(super) fn cannot_map(name: &str, source: io::Error) -> KernelError {
    KernelError::call(format!("cannot map the BPF array {name}"), source)
}

/// A hash map behind aya's typed interface.
pub(super) fn hash<K: aya::Pod, V: aya::Pod>(
    data: MapData,
) -> Result<BpfHashMap<MapData, K, V>, KernelError> {
    BpfHashMap::try_from(Map::HashMap(data)).map_err(|error| map_error("a hash map", &error))
}

/// A failed map operation.
pub(super) fn map_error(name: &str, error: &MapError) -> KernelError {
    let source = io_error(error);
    if source.raw_os_error() == Some(libc::E2BIG) {
        return KernelError::call(format!("the BPF map {name} is full"), source);
    }
    KernelError::call(format!("cannot use the BPF map {name}"), source)
}
