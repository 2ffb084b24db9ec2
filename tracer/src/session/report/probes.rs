//! The probed functions of a process and how often each was called. Knows nothing of what came of the calls.

use std::collections::{HashMap, HashSet};

use leakscope_common::HIT_SLOTS;

use crate::{report::Probe, session::ProbeSite};

/// The probed functions with what their counters say: a counter that several share is read once.
pub(super) fn told(sites: &[ProbeSite], hits: &[u64; HIT_SLOTS]) -> Vec<Probe> {
    let mut counted: HashMap<u8, usize> = HashMap::new();
    for site in sites {
        *counted.entry(site.hit_slot).or_default() += 1;
    }
    let mut read = HashSet::new();
    sites
        .iter()
        .map(|site| {
            let slot = site.hit_slot;
            let is_first = read.insert(slot);
            Probe {
                name: site.name.clone(),
                module: Some(site.module.to_string_lossy().into_owned()),
                site_offset: site.offset,
                hits: hits
                    .get(usize::from(slot))
                    .copied()
                    .filter(|_| is_first)
                    .unwrap_or(0),
                together: counted
                    .get(&slot)
                    .is_some_and(|sharers| *sharers > 1)
                    .then_some(u32::from(slot)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::told;
    use crate::session::ProbeSite;
    use leakscope_common::HIT_SLOTS;
    use std::path::PathBuf;

    #[test]
    fn the_sum_of_functions_that_share_a_counter_stands_once() {
        let site = |name: &str, hit_slot| ProbeSite {
            name: name.to_owned(),
            module: PathBuf::from("/usr/lib/liballoc.so"),
            allocator: String::new(),
            offset: 0,
            hit_slot,
            allocates: true,
        };
        let sites = [
            site("malloc", 0),
            site("a", 30),
            site("b", 30),
            site("c", 30),
        ];
        let mut hits = [0; HIT_SLOTS];
        (hits[0], hits[30]) = (7, 500);
        let probes: Vec<_> = told(&sites, &hits)
            .into_iter()
            .map(|probe| (probe.hits, probe.together))
            .collect();
        assert_eq!(
            probes,
            [(7, None), (500, Some(30)), (0, Some(30)), (0, Some(30))]
        );
    }
}
