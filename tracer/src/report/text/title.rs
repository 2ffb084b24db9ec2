//! By which frame a site is called: the one that tells it apart from the others.
//!
//! A function through which many sites allocate (a wrapper of `malloc`, an interpreter's own) is no title for any of them: their
//! titles are looked for further out, until fewer share them.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::model::{Frame, FrameKind, Site, SiteKind};
use super::super::names::{function, unnamed};
use super::stack::{Look, is_wrapper, split, text_in};

/// From so many sites on that share a frame, it tells none of them apart.
const MANY: usize = 3;

/// So far out is a title looked for, frames.
const DEEPEST: usize = 64;

/// The titles of sites that are shown together.
#[derive(Debug)]
pub(super) struct Titles {
    frames: Vec<Option<(Arc<Frame>, bool)>>,
    marks: Vec<Option<String>>,
}

/// A site's frames that can be its title, and the one that is so far.
struct Candidate<'a> {
    frames: Vec<&'a Arc<Frame>>,
    texts: Vec<String>,
    begin: usize,
    place: usize,
}

impl<'a> Candidate<'a> {
    fn new(site: &'a Site) -> Self {
        let (_, callers) = split(&site.frames);
        let mut frames: Vec<&Arc<Frame>> = callers
            .iter()
            .filter(|frame| !is_wrapper(frame))
            .take(DEEPEST)
            .collect();
        if frames.is_empty() {
            frames = callers.iter().take(DEEPEST).collect();
        }
        // What a programmer looks for: a line of Python, else a function with a name.
        let begin = frames
            .iter()
            .position(|frame| frame.kind == FrameKind::Python)
            .or_else(|| frames.iter().position(|frame| is_telling(frame)))
            .unwrap_or_default();
        let look = Look {
            short: true,
            ..Look::default()
        };
        let texts = frames.iter().map(|frame| text_in(frame, look)).collect();
        Self {
            frames,
            texts,
            begin,
            place: begin,
        }
    }

    fn text(&self) -> Option<&str> {
        self.texts.get(self.place).map(String::as_str)
    }
}

/// Whether a frame has a name, and another than every program's.
fn is_telling(frame: &Frame) -> bool {
    function(frame).is_some_and(|function| function != "main")
}

/// How many of the candidates have each title.
fn shared<'a>(candidates: &'a [Candidate<'_>]) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for text in candidates.iter().filter_map(Candidate::text) {
        *counts.entry(text).or_default() += 1;
    }
    counts
}

impl Titles {
    pub(super) fn new(sites: &[&Site]) -> Self {
        let mut candidates: Vec<Candidate<'_>> =
            sites.iter().map(|site| Candidate::new(site)).collect();
        let crowd = look_further_out(&mut candidates);
        // Where names tell nothing apart, addresses may.
        for (candidate, crowd) in candidates.iter_mut().zip(crowd) {
            let is_python = candidate
                .frames
                .get(candidate.begin)
                .is_some_and(|frame| frame.kind == FrameKind::Python);
            if crowd >= MANY && !is_python {
                candidate.begin = 0;
                candidate.place = 0;
            }
        }
        look_further_out(&mut candidates);
        Self {
            marks: marks_of(sites, &candidates),
            frames: candidates
                .iter()
                .map(|candidate| {
                    let frame = candidate.frames.get(candidate.place)?;
                    Some((Arc::clone(frame), candidate.place > 0))
                })
                .collect(),
        }
    }

    /// The title of the site at a place, and whether frames that could be one stand before it; `None` of a site without a stack.
    pub(super) fn of(&self, place: usize) -> Option<(&Frame, bool)> {
        let (frame, is_further_out) = self.frames.get(place)?.as_ref()?;
        Some((frame, *is_further_out))
    }

    /// What tells the site at a place apart where others have the same stack by name, file and line: an address.
    pub(super) fn mark(&self, place: usize) -> Option<&str> {
        self.marks.get(place)?.as_deref()
    }
}

/// The marks of [`Titles::mark`] for sites that are shown otherwise.
pub(crate) fn marks(sites: &[&Site]) -> Vec<Option<String>> {
    let candidates: Vec<Candidate<'_>> = sites.iter().map(|site| Candidate::new(site)).collect();
    marks_of(sites, &candidates)
}

fn marks_of(sites: &[&Site], candidates: &[Candidate<'_>]) -> Vec<Option<String>> {
    let mut alike: HashMap<(u32, u32, SiteKind, &[String]), Vec<usize>> = HashMap::new();
    for (place, (site, candidate)) in sites.iter().zip(candidates).enumerate() {
        if !candidate.texts.is_empty() {
            let key = (site.pid, site.incarnation, site.kind, &candidate.texts[..]);
            alike.entry(key).or_default().push(place);
        }
    }
    let mut marks = vec![None; sites.len()];
    for places in alike.values().filter(|places| places.len() > 1) {
        let of = |place: &usize| {
            candidates
                .get(*place)
                .map_or(&[][..], |one| &one.frames[..])
        };
        let depth = places.first().map_or(0, |place| of(place).len());
        let differs = |depth: &usize| {
            let mut offsets = places.iter().map(|place| of(place).get(*depth)?.offset);
            let first = offsets.next().flatten();
            offsets.any(|offset| offset != first)
        };
        let Some(depth) = (0..depth).find(differs) else {
            continue;
        };
        for place in places {
            if let (Some(mark), Some(frame)) = (marks.get_mut(*place), of(place).get(depth)) {
                let address = Frame {
                    function: None,
                    kind: FrameKind::Native,
                    ..Frame::clone(frame)
                };
                *mark = Some(format!("at {}", unnamed(&address)));
            }
        }
    }
    marks
}

/// Moves the titles that many share further out. Where that has told nothing apart (recursion, one loop), the innermost says
/// most, and is taken again. For each candidate, how many have its title then.
fn look_further_out(candidates: &mut [Candidate<'_>]) -> Vec<usize> {
    for _ in 0..DEEPEST {
        let crowds = crowds(candidates);
        let mut moved = false;
        for (candidate, crowd) in candidates.iter_mut().zip(crowds) {
            if crowd >= MANY && candidate.place + 1 < candidate.frames.len() {
                candidate.place += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let at_last = crowds(candidates);
    for (candidate, last) in candidates.iter_mut().zip(at_last) {
        if last >= MANY {
            candidate.place = candidate.begin;
        }
    }
    crowds(candidates)
}

/// For each candidate how many, itself among them, have its title.
fn crowds(candidates: &[Candidate<'_>]) -> Vec<usize> {
    let counts = shared(candidates);
    candidates
        .iter()
        .map(|candidate| {
            candidate
                .text()
                .and_then(|text| counts.get(text))
                .copied()
                .unwrap_or_default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Frame, Site, Titles};

    fn site(functions: &[&str]) -> Site {
        let frame = |name: &&str| {
            let offset = name.strip_prefix("libruby+");
            Arc::new(Frame {
                function: offset.is_none().then(|| (*name).to_owned()),
                module: Some("libruby".to_owned()),
                offset: offset.and_then(|text| text.parse().ok()),
                ..Frame::default()
            })
        };
        Site {
            frames: functions.iter().map(frame).collect(),
            ..Site::default()
        }
    }

    fn titles(sites: &[Site]) -> Vec<String> {
        let sites: Vec<&Site> = sites.iter().collect();
        let titles = Titles::new(&sites);
        (0..sites.len())
            .map(|place| {
                titles.of(place).map_or_else(String::new, |(frame, _)| {
                    frame
                        .function
                        .clone()
                        .unwrap_or_else(|| format!("libruby+{}", frame.offset.unwrap_or_default()))
                })
            })
            .collect()
    }

    #[test]
    fn twelve_rows_of_one_wrapper_are_told_apart_by_their_callers() {
        let callers: Vec<String> = (0..12).map(|number| format!("caller{number}")).collect();
        let sites: Vec<Site> = callers
            .iter()
            .map(|caller| site(&["malloc", "xmalloc", caller, "main"]))
            .collect();
        assert_eq!(titles(&sites), callers);
        let unnamed: Vec<Site> = (0..12)
            .map(|number| site(&["malloc", "libruby+7", &format!("libruby+{}", 100 + number)]))
            .collect();
        let expected: Vec<String> = (0..12)
            .map(|number| format!("libruby+{}", 100 + number))
            .collect();
        assert_eq!(titles(&unnamed), expected);
    }

    #[test]
    fn a_function_that_is_named_is_a_better_title_than_an_address() {
        let sites = [
            site(&["malloc", "libruby+1", "decode", "main"]),
            site(&["malloc", "load", "main"]),
            site(&["malloc", "libruby+5", "main"]),
            site(&[]),
        ];
        assert_eq!(titles(&sites), ["decode", "load", "libruby+5", ""]);
    }

    #[test]
    fn a_mapping_was_called_by_the_name_of_the_c_library() {
        let sites = [site(&[
            "__GI___mmap64",
            "__GI___mmap64",
            "slab_grow",
            "main",
        ])];
        assert_eq!(titles(&sites), ["slab_grow"]);
    }

    #[test]
    fn three_sites_of_an_unrolled_loop_were_three_rows_without_a_difference() {
        let mut sites: Vec<Site> = (0..3)
            .map(|_| site(&["malloc", "lose", "main"]))
            .chain([site(&["malloc", "other", "main"])])
            .collect();
        for (step, site) in sites.iter_mut().enumerate() {
            if let Some(frame) = site.frames.get_mut(1) {
                Arc::make_mut(frame).offset = Some(0x100 + step as u64);
            }
        }
        let sites: Vec<&Site> = sites.iter().collect();
        let titles = Titles::new(&sites);
        let marks: Vec<_> = (0..4).map(|place| titles.mark(place)).collect();
        assert_eq!(
            marks,
            [
                Some("at [libruby+0x100]"),
                Some("at [libruby+0x101]"),
                Some("at [libruby+0x102]"),
                None
            ]
        );
    }

    #[test]
    fn what_nothing_tells_apart_keeps_its_innermost_frame() {
        let sites: Vec<Site> = (1..6)
            .map(|depth| {
                let mut frames = vec!["malloc"];
                frames.extend(std::iter::repeat_n("insert", depth));
                frames.push("main");
                site(&frames)
            })
            .collect();
        assert_eq!(titles(&sites), ["insert"; 5]);
    }
}
