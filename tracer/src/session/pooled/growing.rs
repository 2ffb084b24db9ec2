//! Containers that grow: what is put into them is kept, and who puts it there is seen at once, for an entry is written once. Of objects that are watched from
//! their birth on few stay, where a program makes and drops many beside. Pure.

use std::collections::HashMap;

use super::choose::Random;
use crate::heap::{Container, ObjectKind};

/// A container by so few entries more than at first does not grow, for all that is known.
const LEAST_GROWTH: u64 = 10;

/// So many are watched, those that grow most.
const MOST: usize = 64;

/// Who puts objects of a kind into containers is seen so often; then only so many times as often as who makes such, for of what is kept otherwise only that is
/// seen.
const ENOUGH: u32 = 6;
const BESIDE: u32 = 2;

/// A word is chosen that is written within so many seconds at the rate at which its container grows, but so many entries from now at most.
const WITHIN_S: f64 = 1.0;
const FARTHEST: f64 = 64.0;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Growing {
    /// Entries when each was seen first, and at the last look, so many seconds after the first.
    before: HashMap<u64, (u64, u64)>,
    before_s: f64,
    /// With entries a second.
    found: Vec<(Container, f64)>,
    /// How often objects of a kind were seen to be put into one, and what was put into each last.
    kept: HashMap<ObjectKind, u32>,
    last: HashMap<u64, ObjectKind>,
}

impl Growing {
    /// Takes in the containers with many entries, so long after the first look.
    pub(super) fn note(&mut self, containers: &[Container], passed_s: f64) {
        let mut found: Vec<(Container, f64)> = Vec::new();
        let before = std::mem::take(&mut self.before);
        let over_s = (passed_s - self.before_s).max(0.1);
        self.before_s = passed_s;
        for of in containers {
            let known = before.get(&of.address).copied();
            let (first, last) = known.unwrap_or((of.entries, of.entries));
            self.before.insert(of.address, (first, of.entries));
            let more = of.entries.saturating_sub(last);
            if more > 0 && of.entries.saturating_sub(first) >= LEAST_GROWTH {
                found.push((*of, more as f64 / over_s));
            }
        }
        found.sort_by(|one, other| other.1.total_cmp(&one.1));
        found.truncate(MOST);
        self.found = found;
        self.last
            .retain(|address, _| self.before.contains_key(address));
    }

    /// Whether one grows of whose entries more is to be learnt; `born`: how often objects of a kind were seen to be made.
    pub(super) fn is_wanted(&self, born: &HashMap<ObjectKind, u32>) -> bool {
        self.found.iter().any(|(of, _)| !self.is_enough(of, born))
    }

    fn is_enough(&self, of: &Container, born: &HashMap<ObjectKind, u32>) -> bool {
        self.last.get(&of.address).is_some_and(|kind| {
            let kept = self.kept.get(kind).copied().unwrap_or(0);
            let born = born.get(kind).copied().unwrap_or(0);
            kept >= ENOUGH.max(born.saturating_mul(BESIDE))
        })
    }

    /// Chooses a container, and how many entries from now.
    pub(super) fn choose(
        &self,
        born: &HashMap<ObjectKind, u32>,
        random: &mut Random,
    ) -> Option<(Container, u64)> {
        let wanted: Vec<&(Container, f64)> = self
            .found
            .iter()
            .filter(|(of, _)| !self.is_enough(of, born))
            .collect();
        let total: f64 = wanted.iter().map(|(_, per_s)| per_s).sum();
        let mut at = random.part() * total;
        let (of, per_s) = wanted.into_iter().find(|(_, per_s)| {
            at -= per_s;
            at < 0.0
        })?;
        let farthest = (per_s * WITHIN_S).clamp(1.0, FARTHEST);
        Some((*of, (random.part() * farthest) as u64))
    }

    /// An object was put into a container, and is still there.
    pub(super) fn kept(&mut self, of: &Container, kind: &ObjectKind) {
        *self.kept.entry(kind.clone()).or_default() += 1;
        self.last.insert(of.address, kind.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{ENOUGH, Growing};
    use crate::{
        heap::{Container, ObjectKind, Shape},
        session::pooled::choose::Random,
    };

    fn list(address: u64, entries: u64) -> Container {
        Container {
            address,
            shape: Shape::List,
            entries,
        }
    }

    /// In a server with a thread for each request a hundred dictionaries are made and dropped for each that is kept: none of the latter was seen.
    #[test]
    fn who_puts_objects_into_a_list_that_grows_was_not_asked() {
        let mut growing = Growing::default();
        let mut random = Random::new(3);
        let none = HashMap::new();
        growing.note(&[list(1, 60), list(2, 5000)], 0.0);
        assert!(!growing.is_wanted(&none));
        growing.note(&[list(1, 460), list(2, 5005), list(3, 70)], 10.0);
        for _ in 0..50 {
            let found = growing.choose(&none, &mut random);
            assert!(found.is_some_and(|(of, skip)| of.address == 1 && skip < 40));
        }
        // It was filled, and is full.
        growing.note(&[list(1, 460), list(2, 5015)], 20.0);
        assert_eq!(
            growing
                .choose(&none, &mut random)
                .map(|found| found.0.address),
            Some(2)
        );
    }

    #[test]
    fn what_is_kept_in_containers_does_not_hide_what_is_kept_otherwise() {
        let kind = ObjectKind {
            name: "dict".to_owned(),
            block_bytes: 64,
            object_at: 16,
        };
        let mut growing = Growing::default();
        growing.note(&[list(1, 60)], 0.0);
        growing.note(&[list(1, 460)], 10.0);
        let mut born = HashMap::new();
        for _ in 0..ENOUGH {
            assert!(growing.is_wanted(&born));
            growing.kept(&list(1, 460), &kind);
        }
        assert!(!growing.is_wanted(&born));
        assert_eq!(growing.choose(&born, &mut Random::new(1)), None);
        born.insert(kind, ENOUGH);
        assert!(growing.is_wanted(&born));
    }
}
