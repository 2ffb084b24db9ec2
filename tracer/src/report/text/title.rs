//! By which frame a site is called: the one that tells it apart from the others. Every view asks here.
//!
//! A function through which many sites allocate (a wrapper of `malloc`, an interpreter's own) is no title for any of them: their
//! titles are looked for further out, until fewer share them.

use std::sync::Arc;

use hashbrown::HashMap;

use super::super::allocator::allocates_for_others;
use super::super::model::{Frame, FrameKind, Site, SiteKind};
use super::super::names::{function, is_of_runtime, unnamed};
use super::missing;
use super::stack::{Look, is_wrapper, split, text_in};

/// From so many sites on that share a frame, it tells none of them apart.
const MANY: usize = 3;

/// So far out is a title looked for, frames.
const DEEPEST: usize = 64;

/// The titles of sites that are shown together.
#[derive(Debug, Default)]
pub(crate) struct Titles {
    /// Where in each site's stack its title is, and whether frames that could be one stand before that.
    places: Vec<Option<(usize, bool)>>,
}

/// A frame as a title: `function (file:line)`.
pub(crate) fn title_text(frame: &Frame) -> String {
    let look = Look {
        short: true,
        ..Look::default()
    };
    text_in(frame, look)
}

/// Texts of frames by numbers: most frames occur in many stacks, and few of them are looked at.
#[derive(Default)]
struct Texts {
    /// By where they are in memory.
    frames: HashMap<*const Frame, usize>,
    texts: HashMap<String, usize>,
}

impl Texts {
    fn number(&mut self, frame: &Arc<Frame>) -> usize {
        let texts = &mut self.texts;
        *self.frames.entry(Arc::as_ptr(frame)).or_insert_with(|| {
            let next = texts.len();
            *texts.entry(title_text(frame)).or_insert(next)
        })
    }
}

/// A site's frames that can be its title, and the one that is so far.
struct Candidate<'a> {
    site: &'a Site,
    /// Their places in its stack.
    places: Vec<usize>,
    begin: usize,
    /// Which of them it is.
    at: usize,
}

/// Pages are told apart from each other alone; and the number of a text.
type Crowd = (bool, usize);

impl<'a> Candidate<'a> {
    fn new(site: &'a Site) -> Self {
        let (own, callers) = split(&site.frames);
        let all = || (own.len()..).zip(callers);
        let allocates = |frame: &Frame| function(frame).is_some_and(allocates_for_others);
        let those = |is_one: &dyn Fn(&Frame) -> bool| -> Vec<usize> {
            all()
                .filter(|(_, frame)| is_one(frame))
                .map(|(place, _)| place)
                .take(DEEPEST)
                .collect()
        };
        let of_program = |frame: &Frame| !is_wrapper(frame) && !allocates(frame);
        let mut places = those(&|frame| of_program(frame) && !is_of_runtime(frame));
        if places.is_empty() {
            places = those(&of_program);
        }
        if places.is_empty() {
            places = those(&|_| true);
        }
        // What a programmer looks for: a line of Python, else a function with a name.
        let frame = |place: &usize| site.frames.get(*place);
        let is_python =
            |place: &usize| frame(place).is_some_and(|one| one.kind == FrameKind::Python);
        let begin = places
            .iter()
            .position(is_python)
            .or_else(|| {
                places
                    .iter()
                    .position(|place| frame(place).is_some_and(|one| is_telling(one)))
            })
            .unwrap_or_default();
        Self {
            site,
            places,
            begin,
            at: begin,
        }
    }

    fn frame(&self, at: usize) -> Option<&'a Arc<Frame>> {
        self.site.frames.get(*self.places.get(at)?)
    }

    fn crowd(&self, texts: &mut Texts) -> Option<Crowd> {
        let is_pages = self.site.kind == SiteKind::Pages;
        Some((is_pages, texts.number(self.frame(self.at)?)))
    }
}

/// Whether a frame has a name, and another than every program's.
fn is_telling(frame: &Frame) -> bool {
    function(frame).is_some_and(|function| function != "main")
}

impl Titles {
    /// Of sites that are shown together.
    pub(crate) fn new<'a>(sites: impl IntoIterator<Item = &'a Site>) -> Self {
        let mut candidates: Vec<Candidate<'_>> = sites.into_iter().map(Candidate::new).collect();
        let mut texts = Texts::default();
        let crowd = look_further_out(&mut candidates, &mut texts);
        // Where names tell nothing apart, addresses may.
        for (candidate, crowd) in candidates.iter_mut().zip(crowd) {
            let is_python = candidate
                .frame(candidate.begin)
                .is_some_and(|frame| frame.kind == FrameKind::Python);
            if crowd >= MANY && !is_python {
                candidate.begin = 0;
                candidate.at = 0;
            }
        }
        look_further_out(&mut candidates, &mut texts);
        Self {
            places: candidates
                .iter()
                .map(|candidate| Some((*candidate.places.get(candidate.at)?, candidate.at > 0)))
                .collect(),
        }
    }

    /// Where in the stack of the site at a place its title is, and whether frames that could be one stand before it; `None` of a site without
    /// a stack.
    pub(crate) fn place(&self, place: usize) -> Option<(usize, bool)> {
        self.places.get(place).copied()?
    }

    /// The frame itself; of the site that is at this place.
    pub(crate) fn of<'a>(&self, place: usize, site: &'a Site) -> Option<(&'a Frame, bool)> {
        let (at, is_further_out) = self.place(place)?;
        Some((site.frames.get(at)?, is_further_out))
    }

    /// It in words.
    pub(crate) fn text(&self, place: usize, site: &Site) -> String {
        match self.of(place, site) {
            Some((frame, _)) => title_text(frame),
            None => missing(site.frames.is_empty()).to_owned(),
        }
    }
}

/// How a site is called whatever stands beside it, in at most so many columns.
pub(crate) fn title_alone(site: &Site, width: usize) -> String {
    let look = Look {
        short: true,
        width: Some(width),
        ..Look::default()
    };
    match Titles::new([site]).of(0, site) {
        Some((frame, _)) => text_in(frame, look),
        None => missing(site.frames.is_empty()).to_owned(),
    }
}

/// What tells each site apart where others of them have the same stack by name, file and line: an address.
pub(crate) fn marks(sites: &[&Site]) -> Vec<Option<String>> {
    let candidates: Vec<Candidate<'_>> = sites.iter().map(|site| Candidate::new(site)).collect();
    let mut texts = Texts::default();
    let mut alike: HashMap<(u32, u32, SiteKind, Vec<usize>), Vec<usize>> = HashMap::new();
    for (place, (site, candidate)) in sites.iter().zip(&candidates).enumerate() {
        let numbers: Vec<usize> = (0..candidate.places.len())
            .filter_map(|at| Some(texts.number(candidate.frame(at)?)))
            .collect();
        if !numbers.is_empty() {
            let key = (site.pid, site.incarnation, site.kind, numbers);
            alike.entry(key).or_default().push(place);
        }
    }
    let mut marks = vec![None; sites.len()];
    for places in alike.values().filter(|places| places.len() > 1) {
        let of = |place: &usize, at: usize| candidates.get(*place)?.frame(at);
        let differs = |at: &usize| {
            let mut offsets = places.iter().map(|place| of(place, *at)?.offset);
            let first = offsets.next().flatten();
            offsets.any(|offset| offset != first)
        };
        let Some(at) = (0..DEEPEST).find(differs) else {
            continue;
        };
        for place in places {
            if let (Some(mark), Some(frame)) = (marks.get_mut(*place), of(place, at)) {
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
fn look_further_out(candidates: &mut [Candidate<'_>], texts: &mut Texts) -> Vec<usize> {
    for _ in 0..DEEPEST {
        let crowds = crowds(candidates, texts);
        let mut moved = false;
        for (candidate, crowd) in candidates.iter_mut().zip(crowds) {
            if crowd >= MANY && candidate.at + 1 < candidate.places.len() {
                candidate.at += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let at_last = crowds(candidates, texts);
    for (candidate, last) in candidates.iter_mut().zip(at_last) {
        if last >= MANY {
            candidate.at = candidate.begin;
        }
    }
    crowds(candidates, texts)
}

/// For each candidate how many, itself among them, have its title.
fn crowds(candidates: &[Candidate<'_>], texts: &mut Texts) -> Vec<usize> {
    let crowds: Vec<Option<Crowd>> = candidates.iter().map(|one| one.crowd(texts)).collect();
    let mut counts: HashMap<Crowd, usize> = HashMap::new();
    for crowd in crowds.iter().flatten() {
        *counts.entry(*crowd).or_default() += 1;
    }
    crowds
        .iter()
        .map(|crowd| {
            crowd
                .and_then(|crowd| counts.get(&crowd).copied())
                .unwrap_or_default()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Frame, FrameKind, Site, Titles, marks};

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
        let titles = Titles::new(sites);
        (0..)
            .zip(sites)
            .map(|(place, site)| {
                titles
                    .of(place, site)
                    .map_or_else(String::new, |(frame, _)| {
                        frame.function.clone().unwrap_or_else(|| {
                            format!("libruby+{}", frame.offset.unwrap_or_default())
                        })
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
    fn functions_of_the_c_library_and_of_threads_were_titles() {
        let of = |module: &str, name: &str, kind| {
            Arc::new(Frame {
                function: Some(name.to_owned()),
                module: Some(module.to_owned()),
                kind,
                ..Frame::default()
            })
        };
        let native = FrameKind::Native;
        let getline = Site {
            frames: vec![
                of("/usr/lib/libc.so.6", "malloc", native),
                of("/usr/lib/libc.so.6", "__GI___getdelim", native),
                of("/srv/app", "read_config", native),
                of(
                    "/usr/lib/libstdc++.so.6.0.30",
                    "execute_native_thread_routine",
                    native,
                ),
            ],
            ..Site::default()
        };
        let slice = Site {
            frames: vec![
                of("/srv/go", "runtime.makeslice", FrameKind::Go),
                of("/srv/go", "main.keep", FrameKind::Go),
            ],
            ..Site::default()
        };
        let only = Site {
            frames: vec![of("/usr/lib/libc.so.6", "__GI___getdelim", native)],
            ..Site::default()
        };
        let sites = [getline.clone(), getline.clone(), getline, slice, only];
        assert_eq!(
            titles(&sites),
            [
                "read_config",
                "read_config",
                "read_config",
                "main.keep",
                "__GI___getdelim"
            ]
        );
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
        let marks = marks(&sites);
        let marks: Vec<_> = marks.iter().map(Option::as_deref).collect();
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

    #[test]
    fn sites_of_the_same_program_in_many_processes_keep_their_titles() {
        let workers: Vec<Site> = (1..6)
            .flat_map(|pid| {
                [["malloc", "decode", "serve"], ["malloc", "store", "serve"]].map(|frames| Site {
                    pid,
                    ..site(&frames)
                })
            })
            .collect();
        assert_eq!(titles(&workers), ["decode", "store"].repeat(5));
    }
}
