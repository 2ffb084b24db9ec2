//! Which processes are wanted: by name, by control group, or all. Pure but for [`CgroupPath::resolve`], which asks the cgroup file
//! systems where a group lies. Knows nothing of how a process is traced.

mod group;

use std::fmt;

use leakscope_common::{
    COMM_BYTES, SELECT_ACTIVE, SELECT_CGROUP, SELECT_COMM, SELECTED_CGROUPS, Selection,
};

use super::procfs::Process;
pub use group::CgroupPath;

/// Where control groups are mounted, which is no part of a group's path.
const CGROUPS: &str = "/sys/fs/cgroup";

/// States of the automaton for name patterns: the bits of a word.
const STATES: u32 = u64::BITS;

/// Why a selection cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// A name pattern is not well formed.
    #[error("{option} {pattern:?}: {what}")]
    Pattern {
        /// Where it was given.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// What is the matter.
        what: &'static str,
    },
    /// The patterns are too long together.
    #[error(
        "the patterns of names are too long: together they may have {STATES} characters, one more counted for each pattern"
    )]
    TooLong,
    /// Too many groups.
    #[error(
        "{0} control groups are named, and at most {SELECTED_CGROUPS} can be: name a group above them"
    )]
    TooManyGroups(usize),
    /// There is no such group.
    #[error("no control group {path}: {why}")]
    NoGroup {
        /// What was asked for.
        path: String,
        /// What was tried.
        why: String,
    },
}

/// What to trace among the processes of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    comms: Vec<String>,
    cgroups: Vec<CgroupPath>,
    selection: Box<Selection>,
    excluded: Option<Box<Excluded>>,
}

/// What is not traced, whatever else a selection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// As it was written.
    written: Vec<String>,
    pids: Vec<u32>,
    /// Paths of control groups, which need not be there.
    cgroups: Vec<String>,
    names: Option<Selection>,
}

impl Excluded {
    /// Reads what is excluded: a process id, the path of a control group (`/…`), which means those below it too, or else a pattern of
    /// names. `None` where nothing is.
    ///
    /// # Errors
    /// A pattern is not well formed, or they are too long.
    pub fn read(written: &[String]) -> Result<Option<Self>, SelectError> {
        if written.is_empty() {
            return Ok(None);
        }
        let mut excluded = Self {
            written: written.to_vec(),
            pids: Vec::new(),
            cgroups: Vec::new(),
            names: None,
        };
        let mut states = 0;
        for what in written {
            if let Ok(pid) = what.parse() {
                excluded.pids.push(pid);
            } else if what.starts_with('/') {
                let path = what.strip_prefix(CGROUPS).unwrap_or(what);
                excluded.cgroups.push(path.trim_end_matches('/').to_owned());
            } else {
                let names = excluded.names.get_or_insert(Selection::NONE);
                add_pattern(names, &mut states, "--exclude", what)?;
            }
        }
        Ok(Some(excluded))
    }

    /// Whether a process of this name is.
    fn has_name(&self, name: &str) -> bool {
        self.names
            .as_ref()
            .is_some_and(|names| names.matches_comm(&padded(name)))
    }

    /// Whether a process is.
    fn has(&self, process: &Process) -> bool {
        self.pids.contains(&process.pid)
            || self.has_name(&process.comm)
            || self.cgroups.iter().any(|path| {
                process.cgroups.iter().any(|one| {
                    one.path
                        .strip_prefix(path.as_str())
                        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
            })
    }
}

/// A name as the kernel keeps it.
fn padded(name: &str) -> [u8; COMM_BYTES] {
    let mut comm = [0; COMM_BYTES];
    for (to, from) in comm.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    comm
}

impl Selector {
    /// Every process.
    #[must_use]
    pub fn all() -> Self {
        Self {
            comms: Vec::new(),
            cgroups: Vec::new(),
            excluded: None,
            selection: Box::new(Selection {
                flags: SELECT_ACTIVE,
                ..Selection::NONE
            }),
        }
    }

    /// The processes whose name matches one of the patterns, and those in one of the groups or below it; every process where
    /// neither is given.
    ///
    /// # Errors
    /// A pattern is not well formed, or there are too many.
    pub fn new(comms: &[String], cgroups: Vec<CgroupPath>) -> Result<Self, SelectError> {
        let mut selector = Self::all();
        let selection = &mut *selector.selection;
        let mut states = 0;
        for pattern in comms {
            add_pattern(selection, &mut states, "--comm", pattern)?;
            selection.flags |= SELECT_COMM;
        }
        if cgroups.len() > SELECTED_CGROUPS {
            return Err(SelectError::TooManyGroups(cgroups.len()));
        }
        // The probe can tell groups of the v2 hierarchy only. Where one lies elsewhere it hands over every process that starts, and
        // [`Selector::wants`] decides.
        if !cgroups.is_empty() && cgroups.iter().all(|group| group.unified.is_some()) {
            selection.flags |= SELECT_CGROUP;
            for (index, group) in cgroups.iter().enumerate() {
                if let (Some((id, level)), Some(to), Some(depth)) = (
                    group.unified,
                    selection.cgroups.get_mut(index),
                    selection.cgroup_levels.get_mut(index),
                ) {
                    (*to, *depth) = (id, level);
                    selection.cgroup_count += 1;
                }
            }
        }
        if !comms.is_empty() && !cgroups.is_empty() {
            // The probe compares what must all hold. Of a union it hands over every process that starts, too.
            selection.flags &= !(SELECT_COMM | SELECT_CGROUP);
        }
        selector.comms = comms.to_vec();
        selector.cgroups = cgroups;
        Ok(selector)
    }

    /// The same without what is excluded.
    #[must_use]
    pub fn without(mut self, excluded: Option<Excluded>) -> Self {
        self.excluded = excluded.map(Box::new);
        self
    }

    /// Whether something is excluded.
    #[must_use]
    pub fn excludes(&self) -> bool {
        self.excluded.is_some()
    }

    /// Whether a process of this name may be wanted; `None` where names do not matter.
    #[must_use]
    pub fn wants_name(&self, name: &str) -> Option<bool> {
        let excluded = self.excluded.as_ref();
        (!self.comms.is_empty()).then(|| {
            self.selection.matches_comm(&padded(name))
                && !excluded.is_some_and(|excluded| excluded.has_name(name))
        })
    }

    /// Whether a process is wanted.
    #[must_use]
    pub fn wants(&self, process: &Process) -> bool {
        let is_excluded = self
            .excluded
            .as_ref()
            .is_some_and(|excluded| excluded.has(process));
        if process.is_kernel_thread || process.is_zombie || is_excluded {
            return false;
        }
        self.is_all()
            || self.wants_name(&process.comm).unwrap_or(false)
            || self
                .cgroups
                .iter()
                .any(|group| group.holds(&process.cgroups))
    }

    /// Whether every process is wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.comms.is_empty() && self.cgroups.is_empty()
    }

    /// The criteria as the probe compares them. A process that meets them may still not be wanted.
    #[must_use]
    pub fn selection(&self) -> &Selection {
        &self.selection
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.is_all() {
            "all processes"
        } else {
            "processes"
        })?;
        if !self.comms.is_empty() {
            write!(formatter, " named {}", self.comms.join(" or "))?;
        }
        if !self.cgroups.is_empty() {
            let paths: Vec<&str> = self
                .cgroups
                .iter()
                .map(|group| group.path.as_str())
                .collect();
            let or = if self.comms.is_empty() { "" } else { " or" };
            write!(
                formatter,
                "{or} in the control group {}",
                paths.join(" or ")
            )?;
        }
        if let Some(excluded) = &self.excluded {
            write!(formatter, " without {}", excluded.written.join(", "))?;
        }
        Ok(())
    }
}

/// Adds a shell pattern (`*`, `?`, `[a-z]`, `[!a]`, `\` before a character that is meant itself) to the automaton.
fn add_pattern(
    selection: &mut Selection,
    states: &mut u32,
    option: &'static str,
    pattern: &str,
) -> Result<(), SelectError> {
    let failed = |what| SelectError::Pattern {
        option,
        pattern: pattern.to_owned(),
        what,
    };
    if pattern.is_empty() {
        return Err(failed("it is empty; '*' matches every name"));
    }
    let bit = |state: u32| 1_u64.checked_shl(state).ok_or(SelectError::TooLong);
    selection.start |= bit(*states)?;
    let mut bytes = pattern.bytes();
    let is_plain = !pattern.contains(['*', '?', '[', '\\']);
    let mut taken = 0;
    while let Some(byte) = bytes.next() {
        // The kernel keeps 15 bytes of a name: a longer one is found by its beginning.
        if is_plain && taken + 1 == COMM_BYTES {
            break;
        }
        let here = bit(*states)?;
        let class = match byte {
            b'*' => {
                selection.stay |= here;
                continue;
            }
            b'?' => [true; 256],
            b'[' => class(&mut bytes).ok_or_else(|| failed("a '[' has no ']'"))?,
            b'\\' => only(
                bytes
                    .next()
                    .ok_or_else(|| failed("it ends with a lone '\\'"))?,
            ),
            other => only(other),
        };
        for (advance, belongs) in selection.advance.iter_mut().zip(class) {
            if belongs {
                *advance |= here;
            }
        }
        taken += 1;
        *states += 1;
    }
    selection.accept |= bit(*states)?;
    *states += 1;
    Ok(())
}

/// The class of a single character.
fn only(byte: u8) -> [bool; 256] {
    let mut class = [false; 256];
    if let Some(entry) = class.get_mut(usize::from(byte)) {
        *entry = true;
    }
    class
}

/// Reads a class behind its `[`. A `]` that comes first is meant itself.
fn class(bytes: &mut std::str::Bytes<'_>) -> Option<[bool; 256]> {
    let mut class = [false; 256];
    let mut next = bytes.next()?;
    let inverted = matches!(next, b'!' | b'^');
    if inverted {
        next = bytes.next()?;
    }
    let mut before: Option<u8> = None;
    let mut is_range = false;
    let mut first = true;
    while first || next != b']' {
        first = false;
        if next == b'-' && before.is_some() && !is_range {
            is_range = true;
        } else {
            let from = if is_range {
                before.unwrap_or(next)
            } else {
                next
            };
            for member in from..=next {
                if let Some(entry) = class.get_mut(usize::from(member)) {
                    *entry = true;
                }
            }
            before = (!is_range).then_some(next);
            is_range = false;
        }
        next = bytes.next()?;
    }
    if is_range && let Some(entry) = class.get_mut(usize::from(b'-')) {
        // A '-' that comes last is meant itself.
        *entry = true;
    }
    if inverted {
        class = class.map(|belongs| !belongs);
    }
    Some(class)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests say so by failing")]

    use super::{CgroupPath, Excluded, SelectError, Selector};
    use crate::process::procfs::{CgroupMembership, Process};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn process(comm: &str, cgroup: &str) -> Process {
        Process {
            pid: 7,
            parent: 1,
            comm: comm.to_owned(),
            cgroup: cgroup.to_owned(),
            cgroups: vec![CgroupMembership {
                controllers: String::new(),
                path: cgroup.to_owned(),
            }],
            uid: 0,
            is_kernel_thread: false,
            start_time_ticks: 0,
            is_zombie: false,
        }
    }

    fn matches(patterns: &[&str], comm: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        Selector::new(&patterns, Vec::new())
            .unwrap()
            .wants(&process(comm, "/"))
    }

    #[test]
    fn patterns_are_those_of_the_shell() {
        assert!(matches(&["redis*"], "redis-server"));
        assert!(matches(&["*server"], "redis-server"));
        assert!(matches(&["*dis*er*"], "redis-server"));
        assert!(!matches(&["redis"], "redis-server"));
        assert!(!matches(&["*redis"], "redis-server"));
        assert!(matches(&["pytho[nx]?"], "python3"));
        assert!(!matches(&["pytho[!nx]?"], "python3"));
        assert!(matches(&["[a-c]at"], "bat") && !matches(&["[a-c]at"], "rat"));
        assert!(matches(&["[]-]"], "]") && matches(&["[]-]"], "-"));
        assert!(matches(&["\\*"], "*") && !matches(&["\\*"], "a"));
        assert!(matches(&["nginx", "php*"], "php-fpm") && matches(&["nginx", "php*"], "nginx"));
        assert!(!matches(&["nginx", "php*"], "nginxphp"));
    }

    #[test]
    fn what_is_excluded_is_not_wanted_whatever_else_is_said() {
        let excluded = |written: &[&str]| {
            let written: Vec<String> = written.iter().map(|text| (*text).to_owned()).collect();
            Excluded::read(&written).unwrap()
        };
        let all = Selector::all().without(excluded(&["postgres*", "/user.slice/", "12"]));
        assert!(all.is_all() && all.wants(&process("redis", "/system.slice")));
        assert!(!all.wants(&process("postgres", "/")));
        assert!(!all.wants(&process("redis", "/user.slice/a")));
        assert!(all.wants(&process("redis", "/user.slice2")));
        assert!(!all.wants(&Process {
            pid: 12,
            ..process("redis", "/")
        }));
        assert!(all.to_string().contains("without postgres*"), "{all}");
        let named = Selector::new(&["p*".to_owned()], Vec::new())
            .unwrap()
            .without(excluded(&["postgres"]));
        assert!(named.wants(&process("php", "/")) && !named.wants(&process("postgres", "/")));
        assert_eq!(named.wants_name("postgres"), Some(false));
        assert!(excluded(&[]).is_none());
        assert!(Excluded::read(&["[".to_owned()]).is_err());
    }

    #[test]
    fn a_name_longer_than_the_kernel_keeps_is_found() {
        assert!(matches(&["prometheus-node-exporter"], "prometheus-node"));
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in ["", "[ab", "a\\"] {
            assert!(matches!(
                Selector::new(&[bad.to_owned()], Vec::new()),
                Err(SelectError::Pattern { .. })
            ));
        }
        let long = vec!["*aaaaaaaaaaaaaaa".to_owned(); 5];
        assert!(matches!(
            Selector::new(&long, Vec::new()),
            Err(SelectError::TooLong)
        ));
    }

    #[test]
    fn sixty_four_states_are_enough_for_four_names() {
        let names = vec!["abcdefghijklmno".to_owned(); 4];
        assert!(Selector::new(&names, Vec::new()).is_ok());
    }

    #[test]
    fn a_group_holds_what_is_below_it_and_not_what_is_beside() {
        let group = CgroupPath {
            controller: String::new(),
            path: "/system.slice".to_owned(),
            unified: Some((5, 1)),
        };
        let selector = Selector::new(&[], vec![group]).unwrap();
        assert!(selector.wants(&process("a", "/system.slice")));
        assert!(selector.wants(&process("a", "/system.slice/ssh.service")));
        assert!(!selector.wants(&process("a", "/system.slice2")));
        assert!(!selector.wants(&process("a", "/")));
    }

    /// Shell matching, the slow way.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                slow(rest, text)
                    || text
                        .split_first()
                        .is_some_and(|(_, text)| slow(pattern, text))
            }
            (Some((b'?', rest)), Some((_, text))) => slow(rest, text),
            (Some((letter, rest)), Some((other, text))) => letter == other && slow(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn the_automaton_matches_like_the_definition(
            pattern in "[ab*?]{1,12}", comm in "[abc]{1,15}", _seed in any::<u8>()
        ) {
            prop_assert_eq!(matches(&[&pattern], &comm), slow(pattern.as_bytes(), comm.as_bytes()));
        }
    }
}
