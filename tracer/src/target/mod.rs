//! Processes, the ELF files they map, allocator discovery and probe-site selection.
