//! Who holds a group, drawn as a tree from left to right: the group, who holds it, who holds those, up to the roots. Ways that begin
//! alike share their steps. Self-contained SVG; every name is the target's, and is escaped.

use std::io::{self, Write};

use super::HeapGroup;
use crate::{
    report::{heap::label, html::text, names::clean},
    units::{blocks, count},
};

/// Sizes of the drawing, pixels.
const BOX_HEIGHT: usize = 40;
const ROW: usize = 50;
const BETWEEN: usize = 56;
const PADDING: usize = 10;
/// Of a letter of the page's font for code, at 12 pixels, tenths of a pixel.
const LETTER: usize = 73;
/// Longer names are shortened in the middle; whoever points at them reads all.
const LONGEST: usize = 46;
/// The widest line, for what holds all.
const WIDEST: u64 = 7;
/// So many steps and ways are drawn.
const MOST_BOXES: usize = 200;

/// A box of the drawing.
struct Node {
    label: String,
    objects: u64,
    depth: usize,
    parent: Option<usize>,
    /// The middle, from above, pixels.
    y: usize,
}

/// Draws the holders of a group; nothing where none are known.
pub(super) fn write(group: &HeapGroup, out: &mut dyn Write) -> io::Result<()> {
    let (nodes, height) = laid_out(group);
    if nodes.len() < 2 {
        return Ok(());
    }
    let depth = nodes.iter().map(|node| node.depth).max().unwrap_or(0);
    let mut widths = vec![0; depth + 1];
    for node in &nodes {
        if let Some(widest) = widths.get_mut(node.depth) {
            *widest = width(node).max(*widest);
        }
    }
    let x = |depth: usize| -> usize {
        let before = widths.get(..depth).unwrap_or_default();
        before.iter().map(|width| width + BETWEEN).sum()
    };
    let whole = x(depth) + widths.last().copied().unwrap_or(0) + 2;
    let name = text(&label(group));
    writeln!(
        out,
        "<svg class=\"tree\" width=\"{whole}\" height=\"{height}\" viewBox=\"0 0 {whole} {height}\" role=\"img\" \
         aria-label=\"who holds {name}\">"
    )?;
    for node in &nodes {
        let Some(held) = node.parent.and_then(|parent| nodes.get(parent)) else {
            continue;
        };
        let from = x(held.depth) + width(held);
        let (to, bend) = (x(node.depth), BETWEEN / 2);
        let all = held.objects.max(node.objects).max(1);
        let thick = 1 + node.objects.saturating_mul(WIDEST - 1) / all;
        writeln!(
            out,
            "<path d=\"M{to} {}C{} {} {} {} {} {}\" stroke-width=\"{thick}\"/>\
             <path class=\"tip\" d=\"M{from} {y}l9 -5v10z\"/>",
            node.y,
            to.saturating_sub(bend),
            node.y,
            from + bend,
            held.y,
            from + 6,
            held.y,
            y = held.y
        )?;
    }
    for node in &nodes {
        let class = if node.parent.is_none() { "held" } else { "by" };
        let top = node.y.saturating_sub(BOX_HEIGHT / 2);
        writeln!(
            out,
            "<g class=\"{class}\"><title>{}</title><rect x=\"{}\" y=\"{top}\" width=\"{}\" height=\"{BOX_HEIGHT}\" rx=\"5\"/>\
             <text x=\"{text_x}\" y=\"{}\">{}</text><text class=\"count\" x=\"{text_x}\" y=\"{}\">{}</text></g>",
            text(&node.label),
            x(node.depth) + 1,
            width(node),
            top + 16,
            text(&shortened(&node.label)),
            top + 32,
            told(node),
            text_x = x(node.depth) + 1 + PADDING,
        )?;
    }
    writeln!(out, "</svg>")
}

fn told(node: &Node) -> String {
    if node.parent.is_none() {
        blocks(node.objects)
    } else {
        count(node.objects)
    }
}

fn width(node: &Node) -> usize {
    let letters = shortened(&node.label)
        .chars()
        .count()
        .max(told(node).chars().count());
    letters * LETTER / 10 + 2 * PADDING
}

/// The boxes with their places, a holder behind what it holds; and the height of the drawing.
fn laid_out(group: &HeapGroup) -> (Vec<Node>, usize) {
    let mut nodes = vec![Node {
        label: label(group),
        objects: group.objects,
        depth: 0,
        parent: None,
        y: 0,
    }];
    for holder in super::notable(group) {
        let mut at = 0;
        for (depth, step) in holder.path.iter().enumerate() {
            let step = clean(step);
            let known = nodes.iter().position(|node| {
                node.parent == Some(at) && node.depth == depth + 1 && node.label == step
            });
            at = match known {
                Some(known) => known,
                None if nodes.len() >= MOST_BOXES => break,
                None => {
                    nodes.push(Node {
                        label: step.into_owned(),
                        objects: 0,
                        depth: depth + 1,
                        parent: Some(at),
                        y: 0,
                    });
                    nodes.len() - 1
                }
            };
            if let Some(node) = nodes.get_mut(at) {
                node.objects = node.objects.saturating_add(holder.objects);
            }
        }
    }
    let mut rows = 0;
    place(&mut nodes, 0, &mut rows);
    (nodes, rows.max(1) * ROW)
}

/// Gives a box and those that hold it their places: a row for each way, a box in the middle of its holders.
fn place(nodes: &mut [Node], at: usize, rows: &mut usize) -> usize {
    let holders: Vec<usize> = nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.parent == Some(at))
        .map(|(number, _)| number)
        .collect();
    let places: Vec<usize> = holders
        .iter()
        .map(|holder| place(nodes, *holder, rows))
        .collect();
    let y = match (places.first(), places.last()) {
        (Some(first), Some(last)) => usize::midpoint(*first, *last),
        _ => {
            *rows += 1;
            *rows * ROW - ROW / 2
        }
    };
    if let Some(node) = nodes.get_mut(at) {
        node.y = y;
    }
    y
}

/// A name that fits into a box: what stands in the middle of a long one says least.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= LONGEST {
        return name.to_owned();
    }
    let head = letters.iter().take(LONGEST / 2);
    let tail = letters.iter().skip(letters.len() - LONGEST / 2);
    head.chain(['…'].iter()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{super::HeapHolder, HeapGroup, laid_out, shortened, write};

    fn group() -> HeapGroup {
        let holder = |path: &[&str], objects| HeapHolder {
            path: path.iter().map(|step| (*step).to_owned()).collect(),
            objects,
        };
        HeapGroup {
            name: "Metric<\"&\">".to_owned(),
            kind: "c++".to_owned(),
            objects: 10,
            holders: vec![
                holder(&["list", "Analyzer.metrics", "module app"], 6),
                holder(&["list", "<script>alert(1)</script>"], 4),
            ],
            ..HeapGroup::default()
        }
    }

    #[test]
    fn ways_that_begin_alike_share_their_boxes_and_no_two_boxes_touch() {
        let (nodes, height) = laid_out(&group());
        assert_eq!(nodes.len(), 5);
        let list = nodes.iter().find(|node| node.label == "list").unwrap();
        assert_eq!(list.objects, 10);
        for (number, one) in nodes.iter().enumerate() {
            assert!(one.y > 0 && one.y < height);
            for other in nodes.iter().skip(number + 1) {
                assert!(one.depth != other.depth || one.y.abs_diff(other.y) >= super::BOX_HEIGHT);
            }
        }
    }

    #[test]
    fn names_of_the_target_are_no_markup() {
        let mut drawn = Vec::new();
        write(&group(), &mut drawn).unwrap();
        let drawn = String::from_utf8(drawn).unwrap();
        assert!(!drawn.contains("<script"), "{drawn}");
        assert!(drawn.contains("&lt;script&gt;"), "{drawn}");
        assert!(drawn.contains("Metric&lt;&quot;&amp;&quot;&gt;"), "{drawn}");
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = format!("begin{}end", "x".repeat(100));
        let short = shortened(&name);
        assert!(short.starts_with("begin") && short.ends_with("end"));
        assert!(short.chars().count() < 50);
    }
}
