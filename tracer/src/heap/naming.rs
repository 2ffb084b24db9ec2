//! Ways to objects of CPython in the program's own words: the attribute, key or variable by which each object holds the next. Knows
//! blocks, and asks [`Objects`] what stands in them.

use super::{
    blocks::{BlockId, Blocks},
    census::{Group, GroupId, GroupKind},
    graph::{Reach, Reached},
    modules::Modules,
    objects::Objects,
};

/// So many blocks are gone up at most, and so many references are looked up in one look: each is a few reads.
const MOST_HOPS: usize = 256;
const MOST_LOOKUPS: u32 = 200_000;

/// By what a holder holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Detail {
    /// An attribute or variable.
    Attribute(String),
    /// A key of a dictionary.
    Key(String),
}

/// A step of a way: who holds, and by what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) label: String,
    pub(super) detail: Option<Detail>,
}

impl Part {
    /// A step of which only the holder is known.
    pub(super) fn plain(label: String) -> Self {
        Self {
            label,
            detail: None,
        }
    }

    /// What a person reads.
    pub(super) fn shown(&self) -> String {
        match &self.detail {
            None => self.label.clone(),
            Some(Detail::Attribute(name)) => format!("{}.{name}", self.label),
            Some(Detail::Key(key)) => format!("{}['{key}']", self.label),
        }
    }
}

/// Everything that a way is read from.
pub(super) struct Naming<'look> {
    objects: Objects<'look>,
    blocks: &'look Blocks,
    groups: &'look [Group],
    group_of: &'look [GroupId],
    modules: &'look Modules,
    left: u32,
}

/// A dictionary that was passed on the way up: whose it is, its holder tells.
struct Passed {
    dict: u64,
    label: String,
    key: Option<String>,
}

impl<'look> Naming<'look> {
    /// Names of what a look has found.
    pub(super) fn new(
        objects: Objects<'look>,
        blocks: &'look Blocks,
        groups: &'look [Group],
        group_of: &'look [GroupId],
        modules: &'look Modules,
    ) -> Self {
        Self {
            objects,
            blocks,
            groups,
            group_of,
            modules,
            left: MOST_LOOKUPS,
        }
    }

    fn group(&self, block: BlockId) -> Option<&'look Group> {
        let group = *self.group_of.get(block as usize)?;
        self.groups.get(usize::from(group))
    }

    fn is_python(&self, block: BlockId) -> bool {
        self.group(block)
            .is_some_and(|group| group.kind == GroupKind::Python)
    }

    /// Where the object in a block begins, or the block.
    fn object(&self, block: BlockId) -> u64 {
        let begin = self.group(block).map_or(0, |group| group.object_at);
        self.blocks
            .address(block)
            .unwrap_or(0)
            .saturating_add(begin)
    }

    /// Whether a block that begins like an object is none: before 3.13 the values of an instance's attributes stand in a block of their
    /// own, of which the first words are what stood there before.
    fn is_values(&mut self, block: BlockId, reach: &Reach) -> bool {
        if self.group(block).is_some_and(Group::is_leaf) {
            return true;
        }
        let Reached::By(above) = reach.by(block) else {
            return false;
        };
        let holder = self.object(above);
        let values = self
            .is_python(above)
            .then(|| self.objects.type_of(holder))
            .flatten()
            .and_then(|of| self.objects.own_values(&of, holder));
        values
            .and_then(|values| self.blocks.find(values))
            .is_some_and(|(found, distance)| found == block && distance > 0)
    }

    /// The way from a block up to its root, at most `levels` steps and the root; `None` where too many were looked up already.
    pub(super) fn way(
        &mut self,
        block: BlockId,
        reach: &Reach,
        jumps: &[BlockId],
        levels: usize,
        root: &mut dyn FnMut(u64) -> String,
    ) -> Option<Vec<Part>> {
        let mut way: Vec<Part> = Vec::new();
        let mut passed: Option<Passed> = None;
        let mut held = self.object(block);
        let mut at = block;
        for _ in 0..MOST_HOPS {
            let parent = match reach.by(at) {
                Reached::By(parent) => parent,
                Reached::ByRoot(address) => {
                    if add_passed(&mut way, passed, levels) {
                        way.push(Part::plain(root(address)));
                    }
                    return Some(way);
                }
                Reached::Not => return Some(way),
            };
            at = parent;
            if !self.is_python(parent) {
                let above = jumps.get(parent as usize).copied().unwrap_or(parent);
                if above != parent && self.is_python(above) {
                    // The items of a list, the table of a dictionary, the values of attributes.
                    continue;
                }
                let label = self.group(parent).map_or_else(String::new, Group::label);
                if !add_passed(&mut way, passed.take(), levels)
                    || !add(&mut way, Part::plain(label), levels)
                {
                    return Some(way);
                }
                held = self.object(parent);
                continue;
            }
            self.left = self.left.checked_sub(1)?;
            let object = self.object(parent);
            if self.is_values(parent, reach) {
                continue;
            }
            let label = self.group(parent).map_or_else(String::new, Group::label);
            let Some(of) = self.objects.type_of(object) else {
                // It has changed meanwhile.
                return Some(way);
            };
            if of.is_dict() {
                if !add_passed(&mut way, passed.take(), levels) {
                    return Some(way);
                }
                passed = Some(Passed {
                    dict: object,
                    label,
                    key: self.objects.key_of(object, held),
                });
                held = object;
                continue;
            }
            let detail = match passed.take() {
                Some(own) if self.objects.is_namespace(&of, object, own.dict) => own.key,
                other => {
                    if !add_passed(&mut way, other, levels) {
                        return Some(way);
                    }
                    if self.objects.is_namespace(&of, object, held) {
                        Some("__dict__".to_owned())
                    } else {
                        self.objects.attribute(&of, object, held)
                    }
                }
            };
            let detail = detail.map(Detail::Attribute);
            if self.modules.has(parent) {
                if let Reached::ByRoot(address) = reach.by(parent) {
                    way.push(Part {
                        label: root(address),
                        detail,
                    });
                }
                return Some(way);
            }
            let label = match self.objects.class_name(object).filter(|_| of.is_metatype()) {
                Some(name) => format!("class {name}"),
                None => label,
            };
            if !add(&mut way, Part { label, detail }, levels) {
                return Some(way);
            }
            held = object;
        }
        Some(way)
    }
}

/// Adds a step if there is room for it. Objects that hold each other by one attribute are one step.
fn add(way: &mut Vec<Part>, part: Part, levels: usize) -> bool {
    if way.last() == Some(&part) {
        return true;
    }
    if way.len() >= levels {
        return false;
    }
    way.push(part);
    true
}

/// Adds a dictionary that is nobody's namespace.
fn add_passed(way: &mut Vec<Part>, passed: Option<Passed>, levels: usize) -> bool {
    passed.is_none_or(|passed| {
        let part = Part {
            label: passed.label,
            detail: passed.key.map(Detail::Key),
        };
        add(way, part, levels)
    })
}

/// Ways of one kind of which some were read, each with a weight: how many of `count` have which. What many of them have each of its
/// own tells nothing, and is left out.
pub(super) fn shares(mut ways: Vec<(Vec<Part>, u64)>, count: u64) -> Vec<(Vec<String>, u64)> {
    /// So many attributes are told apart.
    const MOST_ATTRIBUTES: usize = 3;
    let longest = ways.iter().map(|(way, _)| way.len()).max().unwrap_or(0);
    for place in 0..longest {
        let mut attributes: Vec<&str> = Vec::new();
        let mut keys: Vec<&str> = Vec::new();
        for (way, _) in &ways {
            let (seen, name) = match way.get(place).and_then(|part| part.detail.as_ref()) {
                Some(Detail::Attribute(name)) => (&mut attributes, name),
                Some(Detail::Key(name)) => (&mut keys, name),
                None => continue,
            };
            if !seen.contains(&name.as_str()) {
                seen.push(name);
            }
        }
        let (many_attributes, many_keys) = (attributes.len() > MOST_ATTRIBUTES, keys.len() > 1);
        for (way, _) in &mut ways {
            if let Some(part) = way.get_mut(place) {
                let is_dropped = match part.detail {
                    Some(Detail::Attribute(_)) => many_attributes,
                    Some(Detail::Key(_)) => many_keys,
                    None => false,
                };
                if is_dropped {
                    part.detail = None;
                }
            }
        }
    }
    let mut shares: Vec<(Vec<String>, u64)> = Vec::new();
    let mut whole = 0_u64;
    for (way, weight) in ways {
        let path: Vec<String> = way.iter().map(Part::shown).collect();
        whole = whole.saturating_add(weight);
        match shares.iter_mut().find(|(known, _)| *known == path) {
            Some((_, sum)) => *sum = sum.saturating_add(weight),
            None => shares.push((path, weight)),
        }
    }
    shares.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    let mut left = count;
    for (_, weight) in shares.iter_mut().skip(1) {
        let part = u128::from(count) * u128::from(*weight) / u128::from(whole.max(1));
        *weight = u64::try_from(part).unwrap_or(0).min(left);
        left -= *weight;
    }
    if let Some((_, most)) = shares.first_mut() {
        *most = left;
    }
    shares.retain(|(_, objects)| *objects > 0);
    shares
}

#[cfg(test)]
mod tests {
    use super::{Detail, Part, shares};

    fn way(attribute: &str, key: &str) -> Vec<Part> {
        vec![
            Part {
                label: "Session".to_owned(),
                detail: Some(Detail::Attribute(attribute.to_owned())),
            },
            Part {
                label: "dict".to_owned(),
                detail: Some(Detail::Key(key.to_owned())),
            },
        ]
    }

    #[test]
    fn attributes_are_told_apart_and_keys_that_all_differ_are_left_out() {
        let ways = vec![
            (way("body", "a"), 6),
            (way("head", "b"), 3),
            (way("body", "c"), 1),
        ];
        let found = shares(ways, 1000);
        let expected = [
            (vec!["Session.body".to_owned(), "dict".to_owned()], 700),
            (vec!["Session.head".to_owned(), "dict".to_owned()], 300),
        ];
        assert_eq!(found, expected);
        let one = shares(vec![(way("body", "a"), 1)], 1);
        let path = one.first().map(|(path, _)| path.join(" <- "));
        assert_eq!(path.as_deref(), Some("Session.body <- dict['a']"));
    }
}
