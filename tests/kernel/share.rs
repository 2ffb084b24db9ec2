//! The share of stacks that reach their true end, in programs as distributions ship them.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
