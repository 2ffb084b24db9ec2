//! What a victim says that it leaked.

use anyhow::{Context, Result};
use serde::Deserialize;

/// One line of a victim's truth: what survives of the allocator calls made by one function.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// The function that called the allocator.
    pub function: String,
    /// Surviving bytes.
    pub bytes: u64,
    /// Surviving blocks.
    pub objects: u64,
    /// All bytes that it ever allocated, where the victim knows.
    pub alloc_bytes: Option<u64>,
    /// All blocks that it ever allocated, where the victim knows.
    pub alloc_objects: Option<u64>,
    /// How many times the function `recurse` stands above it, where the victim knows.
    pub recursions: Option<usize>,
    /// How many frames the stack has up to its true end, from the function on.
    pub frames: Option<usize>,
    /// The names of the program's own frames, from the function up to `main`.
    pub stack: Option<Vec<String>>,
}

impl Truth {
    /// Reads a line.
    ///
    /// # Errors
    /// When it is no such line.
    pub fn parse(line: &str) -> Result<Self> {
        serde_json::from_str(line).with_context(|| format!("the victim said: {line}"))
    }
}
