//! Surviving memory as a tree of callers, from each process down to the functions that allocate. A function that alone is called
//! stands right below its caller; where several are, each begins a branch. Recursion and frames of languages are folded.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::super::model::{Report, Site, SiteKind, Verdict};
use super::super::names::process_name;
use super::layout::cut;
use super::stack::{self, Line, Look};
use super::{DIM, RED, Text, missing, survives};
use crate::units::{bytes, share};

/// Branches below this share are summed up where no share is asked for, percent.
const MIN_PERCENT: f64 = 1.0;

/// Branches deeper than this are not set in any more: the terminal has an edge.
const DEEPEST: usize = 24;

/// Columns of a line before its name: the share and the bytes.
const FIGURES: usize = 20;

/// Columns of what stands behind a function that leaks.
const LEAKING: usize = 9;

/// So much of a name is shown, however deep it stands.
const NARROWEST: usize = 20;

/// A function and what it calls.
#[derive(Debug, Default)]
struct Node {
    bytes: u64,
    leaks: bool,
    calls: BTreeMap<String, Node>,
}

impl Node {
    fn add(&mut self, site: &Site) {
        self.bytes = self.bytes.saturating_add(site.inuse_bytes);
        self.leaks |= site.verdict == Verdict::Leaking;
    }

    /// What it calls with all that it has, where that is one function.
    fn only_call(&self) -> Option<(&String, &Self)> {
        let mut calls = self.calls.iter();
        let only = calls.next().filter(|(_, call)| call.bytes == self.bytes)?;
        calls.next().is_none().then_some(only)
    }

    /// What it calls, the most bytes first.
    fn sorted(&self) -> Vec<(&String, &Self)> {
        let mut calls: Vec<_> = self.calls.iter().collect();
        calls.sort_by_key(|(_, node)| (std::cmp::Reverse(node.bytes), !node.leaks));
        calls
    }
}

/// What is written, and where.
struct Writer<'a> {
    text: Text,
    total: u64,
    least: u64,
    out: &'a mut dyn Write,
}

/// Writes the tree.
pub(super) fn write(text: Text, report: &Report, out: &mut dyn Write) -> io::Result<()> {
    let is_held = |site: &&Site| survives(site) && site.kind != SiteKind::Pages;
    let mut sites: Vec<&Site> = report.sites.iter().filter(is_held).collect();
    if sites.is_empty() {
        // Pages are in no sum with others.
        sites = report.sites.iter().filter(|site| survives(site)).collect();
    }
    let mut root = Node::default();
    let look = Look {
        links: false,
        width: None,
        ..text.look(0)
    };
    for site in sites {
        root.add(site);
        let process = report.process_of(site).map(process_name);
        let process = process.unwrap_or_else(|| format!("pid {}", site.pid));
        let mut node = root.calls.entry(process).or_default();
        node.add(site);
        for name in path(site, look) {
            node = node.calls.entry(name).or_default();
            node.add(site);
        }
    }
    let percent = if text.style.min_percent > 0.0 {
        text.style.min_percent
    } else if text.style.full {
        0.0
    } else {
        MIN_PERCENT
    };
    let mut writer = Writer {
        text,
        total: root.bytes,
        // A float never holds more than it is cast to here.
        least: (root.bytes as f64 * percent / 100.0) as u64,
        out,
    };
    writer.calls(&root, "", 0)?;
    if !root.calls.is_empty() {
        writeln!(writer.out)?;
    }
    Ok(())
}

/// A site's functions, the root first.
fn path(site: &Site, look: Look) -> Vec<String> {
    let (own, callers) = stack::split(&site.frames);
    if callers.is_empty() {
        return vec![missing(own.is_empty()).to_owned()];
    }
    stack::lines_in(callers, look)
        .into_iter()
        .rev()
        .filter_map(|line| match line {
            Line::Frame(text) => Some(text),
            Line::Remark(_) => None,
        })
        .collect()
}

impl Writer<'_> {
    /// A node and those below it.
    fn node(&mut self, name: &str, node: &Node, indent: &str, depth: usize) -> io::Result<()> {
        let mut node = node;
        self.line(name, node, indent)?;
        // Only one is called, and with all of it: it stands right below. What a process begins with is set in.
        while let Some((only, next)) = node.only_call().filter(|_| depth > 0) {
            self.line(only, next, indent)?;
            node = next;
        }
        if depth < DEEPEST {
            self.calls(node, &format!("{indent}  "), depth + 1)
        } else {
            self.calls(node, indent, depth)
        }
    }

    /// Those that a node calls, as far as they are large enough.
    fn calls(&mut self, node: &Node, indent: &str, depth: usize) -> io::Result<()> {
        let (mut rest, mut hidden) = (0_u64, 0_u64);
        for (name, call) in node.sorted() {
            if call.bytes < self.least && !call.leaks {
                rest = rest.saturating_add(call.bytes);
                hidden += 1;
            } else {
                self.node(name, call, indent, depth)?;
            }
        }
        if hidden > 0 && rest > 0 {
            let text = format!("… {hidden} more with {}", bytes(rest));
            let text = self.text.dress(DIM, &text);
            writeln!(self.out, "{:FIGURES$}{indent}{text}", "")?;
        }
        Ok(())
    }

    fn line(&mut self, name: &str, node: &Node, indent: &str) -> io::Result<()> {
        let figures = format!(
            "{:>7} {:>9}",
            share(node.bytes, self.total),
            bytes(node.bytes)
        );
        let verdict = if node.leaks && node.calls.is_empty() {
            format!("  {}", self.text.dress(RED, "leaking"))
        } else {
            String::new()
        };
        let taken = FIGURES + indent.len() + if verdict.is_empty() { 0 } else { LEAKING };
        let name = match self.text.style.width {
            Some(width) => cut(name, width.saturating_sub(taken).max(NARROWEST)),
            None => name.into(),
        };
        writeln!(self.out, "{figures:<FIGURES$}{indent}{name}{verdict}")
    }
}
