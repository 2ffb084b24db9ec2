//! Call frame information of ELF files to compact rows; pure.
