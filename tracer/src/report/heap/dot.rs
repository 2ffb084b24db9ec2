//! Who holds what, as a graph for graphviz: groups and roots as nodes, `a -> b` where a holds b.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::HeapReport;
use crate::units::{blocks, bytes, count};

/// Writes the holders of the largest groups.
///
/// # Errors
/// Those of `out`.
pub fn write_dot(report: &HeapReport, out: &mut dyn Write) -> io::Result<()> {
    let mut edges: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    for group in report
        .groups
        .iter()
        .filter(|group| !group.holders.is_empty())
    {
        nodes.insert(
            group.name.clone(),
            format!(
                "{}\n{} in {}",
                group.name,
                bytes(group.bytes),
                blocks(group.objects)
            ),
        );
        for holder in &group.holders {
            let mut held = &group.name;
            for step in &holder.path {
                nodes.entry(step.clone()).or_insert_with(|| step.clone());
                let objects = edges.entry((step.clone(), held.clone())).or_default();
                *objects = objects.saturating_add(holder.objects);
                held = step;
            }
        }
    }
    writeln!(out, "digraph heap {{")?;
    writeln!(
        out,
        "  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];"
    )?;
    for (name, label) in &nodes {
        writeln!(out, "  {} [label={}];", quoted(name), quoted(label))?;
    }
    for ((holder, held), objects) in &edges {
        writeln!(
            out,
            "  {} -> {} [label={}];",
            quoted(holder),
            quoted(held),
            quoted(&count(*objects))
        )?;
    }
    writeln!(out, "}}")
}

/// A string of the DOT language; names are the target's.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(letter);
            }
            '\n' => quoted.push_str("\\n"),
            letter if letter.is_control() => quoted.push(' '),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}
