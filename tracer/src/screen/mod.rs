//! The live screen: processes, their sites, all of one site, a call tree; of a trace of its own or of a daemon.
//!
//! Owns what is shown and how keys change that. Every figure is a report's, or the difference of two reports' figures; where
//! reports come from is a [`Feed`]'s to know. `state` and `keys` are the machine, `draw` makes cells of it, `run` waits and
//! `terminal` gives the terminal back.

mod curve;
mod detail;
mod draw;
mod feed;
mod history;
mod kernel;
mod key;
mod keys;
mod list;
mod order;
mod run;
mod state;
mod terminal;
mod text;
mod tree;

#[cfg(test)]
mod tests;

pub use feed::{Feed, Trouble};
pub use run::{Messages, Options, run};
