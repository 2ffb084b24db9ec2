//! The call tree of a process's sites, by bytes in use: from the program's beginning to who allocates, or from who allocates
//! to who called that. Owns which branches are open.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::history::ProcessKey;
use crate::report::{Frame, Report, Site, SiteKind, Verdict, callers, function, unnamed};

/// A branch with at least one part in so many of its process's bytes is open from the beginning.
const OPEN_FROM: u64 = 4;

/// From where a tree grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the outermost function to those that it calls.
    #[default]
    Callees,
    /// From the function that allocates to those that call it.
    Callers,
}

/// A function, at one place in the tree.
#[derive(Debug, Default)]
struct Node {
    name: u32,
    bytes: u64,
    objects: u64,
    is_leaking: bool,
    children: Vec<u32>,
    /// The same in every report: of the names from the root on.
    path: u64,
}

/// A line of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: u64,
    pub(super) objects: u64,
    pub(super) is_leaking: bool,
    /// How far it is indented: only where a branch has several.
    pub(super) depth: usize,
    /// Whether it is open; `None` where there is nothing to open.
    pub(super) is_open: Option<bool>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) direction: Direction,
    nodes: Vec<Node>,
    names: Vec<String>,
    /// Lines in view or not: a node and its depth.
    rows: Vec<(u32, usize)>,
    pub(super) total: u64,
    /// Paths of those that the user has opened or closed against what they would be.
    turned: HashSet<u64>,
    pub(super) cursor: usize,
    pub(super) top: usize,
    chosen: u64,
}

impl Tree {
    /// Grows the tree of a process, or of all of them.
    pub(super) fn grow(&mut self, report: &Report, process: Option<ProcessKey>) {
        let mut growing = Growing::default();
        for site in &report.sites {
            let is_of = process.is_none_or(|process| {
                (process.pid, process.incarnation) == (site.pid, site.incarnation)
            });
            // What pages hold, others hold too.
            if is_of && site.kind != SiteKind::Pages && site.inuse_bytes > 0 {
                growing.add(site, self.direction);
            }
        }
        let Growing {
            mut nodes, names, ..
        } = growing;
        let order: Vec<(u64, u64)> = nodes.iter().map(|node| (node.bytes, node.path)).collect();
        let greatest = |child: &u32| std::cmp::Reverse(order.get(*child as usize).copied());
        for node in &mut nodes {
            node.children.sort_by_key(greatest);
        }
        self.total = nodes.first().map_or(0, |root| root.bytes);
        (self.nodes, self.names) = (nodes, names);
        self.lay_out();
    }

    /// Turns it round.
    pub(super) fn turn_round(&mut self) {
        self.direction = match self.direction {
            Direction::Callees => Direction::Callers,
            Direction::Callers => Direction::Callees,
        };
        self.turned.clear();
        (self.cursor, self.top, self.chosen) = (0, 0, 0);
    }

    /// Forgets what was opened and chosen: another process's will come.
    pub(super) fn reset(&mut self) {
        *self = Self {
            direction: self.direction,
            ..Self::default()
        };
    }

    /// How many lines it has.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Moves the cursor to a line.
    pub(super) fn go(&mut self, to: usize) {
        self.cursor = to.min(self.rows.len().saturating_sub(1));
        self.chosen = self.current().map_or(0, |node| node.path);
    }

    /// Opens the chosen line or closes it; `Some` for one of the two only.
    pub(super) fn turn(&mut self, open: Option<bool>) {
        let Some(node) = self.current().filter(|node| !node.children.is_empty()) else {
            return;
        };
        let path = node.path;
        if open.is_none_or(|open| open != self.is_open(node)) && !self.turned.remove(&path) {
            self.turned.insert(path);
        }
        self.lay_out();
    }

    /// The line that the chosen one stands below.
    pub(super) fn parent(&self) -> Option<usize> {
        let (chosen, _) = self.rows.get(self.cursor)?;
        let place = |node: &u32| self.rows.iter().position(|(row, _)| row == node);
        let parent = (0..)
            .zip(&self.nodes)
            .find(|(_, node)| node.children.contains(chosen))?;
        place(&parent.0)
    }

    /// Opens all branches, or has each as it would be by itself.
    pub(super) fn fold(&mut self) {
        if self.turned.is_empty() {
            self.turned = self
                .nodes
                .iter()
                .filter(|node| !node.children.is_empty() && !self.is_open(node))
                .map(|node| node.path)
                .collect();
        } else {
            self.turned.clear();
        }
        self.lay_out();
    }

    /// The lines in view, with whether each is the chosen one.
    pub(super) fn visible(&self, height: usize) -> impl Iterator<Item = (Row<'_>, bool)> {
        self.rows
            .iter()
            .enumerate()
            .skip(self.top)
            .take(height)
            .filter_map(|(place, (node, depth))| {
                let node = self.nodes.get(*node as usize)?;
                let row = Row {
                    name: self.names.get(node.name as usize)?,
                    bytes: node.bytes,
                    objects: node.objects,
                    is_leaking: node.is_leaking,
                    depth: *depth,
                    is_open: (!node.children.is_empty()).then(|| self.is_open(node)),
                };
                Some((row, place == self.cursor))
            })
    }

    fn current(&self) -> Option<&Node> {
        let (node, _) = self.rows.get(self.cursor)?;
        self.nodes.get(*node as usize)
    }

    fn is_open(&self, node: &Node) -> bool {
        let by_itself = node.bytes >= self.total.div_ceil(OPEN_FROM);
        by_itself != self.turned.contains(&node.path)
    }

    /// The lines, from what is open; the cursor stays with its node.
    fn lay_out(&mut self) {
        let mut rows = Vec::new();
        // Those still to come, the next one last: a node, its depth, and whether it has siblings. A chain of single callers
        // is not indented, but for where it begins beside others.
        let mut coming: Vec<(u32, usize, bool)> = Vec::new();
        let below = |node: &Node, depth: usize| -> Vec<(u32, usize, bool)> {
            let is_fork = node.children.len() > 1;
            let children = node.children.iter().rev();
            children.map(|child| (*child, depth, is_fork)).collect()
        };
        if let Some(root) = self.nodes.first() {
            coming = below(root, 0);
        }
        while let Some((place, depth, has_siblings)) = coming.pop() {
            rows.push((place, depth));
            let Some(node) = self.nodes.get(place as usize) else {
                continue;
            };
            if self.is_open(node) {
                let is_deeper = has_siblings || node.children.len() > 1;
                coming.extend(below(node, depth + usize::from(is_deeper)));
            }
        }
        self.rows = rows;
        let chosen = self.rows.iter().position(|(place, _)| {
            self.nodes
                .get(*place as usize)
                .is_some_and(|node| node.path == self.chosen)
        });
        self.go(chosen.unwrap_or(self.cursor));
    }
}

/// A tree in the making. The first node is the root, which has no name.
#[derive(Default)]
struct Growing {
    nodes: Vec<Node>,
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    places: HashMap<(u32, u32), u32>,
}

impl Growing {
    fn add(&mut self, site: &Site, direction: Direction) {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let frames = callers(site).iter().map(|frame| name(frame));
        let mut names: Vec<String> = if frames.len() == 0 {
            vec!["[no caller recorded]".to_owned()]
        } else {
            frames.collect()
        };
        if direction == Direction::Callees {
            names.reverse();
        }
        self.count(0, site);
        let mut place = 0;
        for name in names {
            let name = self.number(name);
            place = self.child(place, name);
            self.count(place, site);
        }
    }

    fn count(&mut self, place: u32, site: &Site) {
        if let Some(node) = self.nodes.get_mut(place as usize) {
            node.bytes = node.bytes.saturating_add(site.inuse_bytes);
            node.objects = node.objects.saturating_add(site.inuse_objects);
            node.is_leaking |= site.verdict == Verdict::Leaking;
        }
    }

    fn number(&mut self, name: String) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    fn child(&mut self, parent: u32, name: u32) -> u32 {
        if let Some(place) = self.places.get(&(parent, name)) {
            return *place;
        }
        let place = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let above = self.nodes.get_mut(parent as usize);
        let path = above.map_or(0, |above| {
            above.children.push(place);
            let mut hasher = DefaultHasher::new();
            let own = self.names.get(name as usize);
            (above.path, own).hash(&mut hasher);
            hasher.finish()
        });
        self.nodes.push(Node {
            name,
            path,
            ..Node::default()
        });
        self.places.insert((parent, name), place);
        place
    }
}

/// What makes frames one branch: the function, else the place in its module.
fn name(frame: &Frame) -> String {
    function(frame).map_or_else(|| unnamed(frame), str::to_owned)
}
