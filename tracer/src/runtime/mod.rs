//! Runtimes between a program and the kernel: what they keep in a process's memory of their own heap, stacks and names. One folder for
//! each. Pure over bytes that they are handed; they attach nothing and stop nothing.

pub mod cpython;
pub mod go;
