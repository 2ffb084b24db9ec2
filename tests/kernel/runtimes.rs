//! Programs with a runtime of their own between C and the kernel: Go, and JavaScript that V8 compiles as it runs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "tests")]
