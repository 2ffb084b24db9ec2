//! Who holds what, as a graph for graphviz: groups and roots as nodes, `a -> b` where a holds b.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{HeapGroup, HeapReport};
use crate::{
    report::names::clean,
    units::{blocks, bytes, count},
};

/// Writes the holders of the largest groups.
///
/// # Errors
/// Those of `out`.
pub fn write_dot(report: &HeapReport, out: &mut dyn Write) -> io::Result<()> {
    let mut edges: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    let with_holders = |group: &&HeapGroup| super::notable(group).next().is_some();
    for group in report.groups.iter().filter(with_holders) {
        let name = clean(&group.name).into_owned();
        let label = format!(
            "{name}\n{} in {}",
            bytes(group.bytes),
            blocks(group.objects)
        );
        nodes.insert(name.clone(), label);
        for holder in super::notable(group) {
            let mut held = name.clone();
            for step in &holder.path {
                let step = clean(step).into_owned();
                nodes.entry(step.clone()).or_insert_with(|| step.clone());
                let objects = edges.entry((step.clone(), held)).or_default();
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
        writeln!(
            out,
            "  {} [label={}];",
            quoted(name),
            quoted(&label.replace('&', "&amp;"))
        )?;
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
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{super::HeapHolder, HeapGroup, HeapReport, write_dot};

    #[test]
    fn names_of_the_target_end_no_string_and_are_no_entities() {
        let report = HeapReport {
            groups: vec![HeapGroup {
                name: "a\"b\\&lt;".to_owned(),
                objects: 2,
                holders: vec![HeapHolder {
                    path: vec!["x\n\u{1b}\"];}".to_owned()],
                    objects: 2,
                }],
                ..HeapGroup::default()
            }],
            ..HeapReport::default()
        };
        let mut text = Vec::new();
        write_dot(&report, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains(r#""a\"b\\&lt;" [label="a\"b\\&amp;lt;\n"#),
            "{text}"
        );
        assert!(
            text.contains("\"x\u{fffd}\u{fffd}\\\"];}\" -> \"a"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 7, "{text}");
    }
}
