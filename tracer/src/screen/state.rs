//! What is shown: a state that keys and reports change. Pure: it draws nothing, asks nobody and knows no time.

use std::{collections::HashMap, sync::Arc};

use super::{
    detail::{self, Line},
    history::{Base, History, ProcessKey, SiteKey},
    kernel,
    list::{List, in_view},
    order::{self, ProcessOrder, ProcessSort, SiteOrder, SiteSort},
    tree::Tree,
};
use crate::report::{Omitted, Process, Report, Site, Titles, Verdict};

/// Where the user is; one is entered from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Processes,
    /// The sites of a process, or of all.
    Sites(Option<ProcessKey>),
    Site(SiteKey),
    /// What the kernel holds on the machine.
    Kernel,
    /// The call tree of a process, or of all.
    Tree(Option<ProcessKey>),
}

/// What the terminal has to do beside drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    Quit,
    /// Ctrl-Z.
    Suspend,
    /// Draw everything again: something else wrote on the screen.
    Redraw,
    /// Whether the mouse is listened to.
    Mouse(bool),
}

/// Lines around a list: two of what is seen in all, one of columns, one of keys.
pub(super) const HEAD: usize = 2;
pub(super) const COLUMNS: usize = 1;
pub(super) const FOOT: usize = 1;

/// What a report comes to in all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) total: Omitted,
    /// Processes of which something leaks.
    pub(super) leaking: u64,
    /// Events that were lost.
    pub(super) lost: u64,
}

impl Sums {
    fn of(report: &Report) -> Self {
        let leaks = |process: &&Process| {
            process.verdict == Verdict::Leaking || order::kernel_leaks(process)
        };
        let lost = report.losses.values();
        Self {
            total: report.total(),
            leaking: report.processes.iter().filter(leaks).count() as u64,
            lost: lost.fold(0, |sum: u64, lost| sum.saturating_add(*lost)),
        }
    }
}

/// A report, with what can be worked out of it before it is shown: where no key waits for it.
#[derive(Debug)]
pub(super) struct News {
    pub(super) report: Arc<Report>,
    titles: Titles,
    leaking: HashMap<ProcessKey, usize>,
    sums: Sums,
}

impl News {
    pub(super) fn of(report: Arc<Report>) -> Self {
        let mut leaking = HashMap::new();
        for site in &report.sites {
            if site.verdict == Verdict::Leaking {
                *leaking.entry(SiteKey::of(site).process).or_default() += 1;
            }
        }
        Self {
            titles: Titles::new(&report.sites),
            leaking,
            sums: Sums::of(&report),
            report,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    /// What is watched, for people.
    pub(super) source: String,
    /// Columns and lines of the terminal.
    pub(super) size: (u16, u16),
    /// The first report leads into its first process.
    pub(super) is_single: bool,
    /// What is shown.
    pub(super) report: Option<Arc<Report>>,
    /// What came since, while it is paused.
    pub(super) waiting: Option<News>,
    pub(super) is_paused: bool,
    /// Never empty; the first is [`Place::Processes`].
    trail: Vec<Place>,
    pub(super) processes: List<ProcessKey, ProcessSort>,
    pub(super) sites: List<SiteKey, SiteSort>,
    pub(super) tree: Tree,
    /// What is above the sites of a process, or all of a site.
    pub(super) lines: Vec<Line>,
    /// The first of `lines` in view, of a site.
    pub(super) lines_top: usize,
    pub(super) is_site_folded: bool,
    pub(super) history: History,
    pub(super) base: Option<Base>,
    pub(super) is_difference: bool,
    /// A filter is being typed; what it was before.
    pub(super) typing: Option<String>,
    pub(super) is_help: bool,
    pub(super) is_mouse: bool,
    /// Said until the next key.
    pub(super) note: Option<String>,
    /// Why no reports come; said until one does.
    pub(super) trouble: Option<String>,
    /// How many sites of each process leak.
    pub(super) leaking: HashMap<ProcessKey, usize>,
    pub(super) sums: Sums,
    /// Titles of the report's sites.
    named: Titles,
    /// Those that were in view in words, by their places in the report.
    titles: HashMap<u32, String>,
}

impl State {
    pub(super) fn new(source: String, size: (u16, u16)) -> Self {
        Self {
            source,
            size,
            is_single: false,
            report: None,
            waiting: None,
            is_paused: false,
            trail: vec![Place::Processes],
            processes: List::new(ProcessSort::Verdict, false),
            sites: List::new(SiteSort::Verdict, true),
            tree: Tree::default(),
            lines: Vec::new(),
            lines_top: 0,
            is_site_folded: true,
            history: History::default(),
            base: None,
            is_difference: false,
            typing: None,
            is_help: false,
            is_mouse: false,
            note: None,
            trouble: None,
            leaking: HashMap::new(),
            sums: Sums::default(),
            named: Titles::default(),
            titles: HashMap::new(),
        }
    }

    pub(super) fn place(&self) -> Place {
        self.trail.last().copied().unwrap_or(Place::Processes)
    }

    /// A process of the report.
    pub(super) fn process(&self, key: ProcessKey) -> Option<&Process> {
        let report = self.report.as_ref()?;
        report
            .processes
            .iter()
            .find(|process| ProcessKey::of(process) == key)
    }

    /// The title of a site that is in view.
    pub(super) fn title(&self, place: u32) -> &str {
        self.titles.get(&place).map_or("", String::as_str)
    }

    /// The snapshot, while the difference is shown.
    pub(super) fn shown_base(&self) -> Option<&Base> {
        self.base.as_ref().filter(|_| self.is_difference)
    }

    /// Takes a report.
    #[cfg(test)]
    pub(super) fn take(&mut self, report: Arc<Report>) {
        self.take_news(News::of(report));
    }

    /// Takes a report that has been made ready.
    pub(super) fn take_news(&mut self, news: News) {
        self.trouble = None;
        if self.history.record(&news.report) && self.base.take().is_some() {
            self.is_difference = false;
            self.note =
                Some("this is another trace: the snapshot of the one before is gone".to_owned());
        }
        if self.is_paused {
            self.waiting = Some(news);
        } else {
            self.put(news);
        }
        if std::mem::take(&mut self.is_single)
            && let Some(process) = self.processes.chosen()
        {
            self.enter(Place::Sites(Some(process)));
        }
    }

    /// Shows a report.
    pub(super) fn put(&mut self, news: News) {
        self.leaking = news.leaking;
        self.sums = news.sums;
        self.named = news.titles;
        self.titles.clear();
        self.report = Some(news.report);
        self.renew();
    }

    /// Takes another size of the terminal.
    pub(super) fn resize(&mut self, columns: u16, lines: u16) {
        self.size = (columns, lines);
        self.renew();
    }

    /// Puts everything in order again that rests on the report, or on how it is looked at.
    pub(super) fn renew(&mut self) {
        let Some(report) = self.report.clone() else {
            return;
        };
        let base = self.base.as_ref().filter(|_| self.is_difference);
        match self.place() {
            Place::Processes => {
                let list = &self.processes;
                let order = ProcessOrder {
                    sort: list.sort,
                    is_reversed: list.is_reversed,
                    filter: &list.filter,
                    is_folded: list.is_folded,
                    base,
                };
                let (rows, folded) = order::processes(&report, order);
                self.processes.put(rows, folded, process_key(&report));
            }
            Place::Sites(process) => {
                let list = &self.sites;
                let order = SiteOrder {
                    sort: list.sort,
                    is_reversed: list.is_reversed,
                    filter: &list.filter,
                    is_folded: list.is_folded,
                    base,
                    history: &self.history,
                    process,
                };
                let (rows, folded) = order::sites(&report, order);
                self.sites.put(rows, folded, site_key(&report));
            }
            Place::Tree(process) => self.tree.grow(&report, process),
            Place::Site(_) | Place::Kernel => {}
        }
        self.tell(&report);
        self.settle();
    }

    /// The lines that stand above the sites, or are all of one.
    fn tell(&mut self, report: &Report) {
        let columns = usize::from(self.size.0);
        match self.place() {
            Place::Sites(Some(key)) | Place::Tree(Some(key)) => {
                let found = self.process(key);
                let mut lines = found.map(|process| detail::process(report, process, columns));
                // The list needs the room more.
                let most = (usize::from(self.size.1) / 3).max(1);
                if let Some(lines) = &mut lines {
                    lines.truncate(most);
                }
                self.lines = lines.unwrap_or_default();
            }
            Place::Site(key) => {
                let mut sites = report.sites.iter().enumerate();
                if let Some((place, site)) = sites.find(|(_, site)| SiteKey::of(site) == key) {
                    let about = detail::About {
                        report,
                        site,
                        title: self.named.text(place, site),
                        history: &self.history,
                        base: self.base.as_ref().filter(|_| self.is_difference),
                        is_folded: self.is_site_folded,
                    };
                    self.lines = detail::site(&about, columns);
                }
            }
            Place::Kernel => {
                let held = report.kernel.as_ref();
                self.lines = kernel::lines(held, self.is_site_folded, columns);
            }
            Place::Processes | Place::Sites(None) | Place::Tree(None) => self.lines.clear(),
        }
    }

    /// Has in view what is chosen, with the titles that this needs.
    pub(super) fn settle(&mut self) {
        let height = self.height();
        match self.place() {
            Place::Processes => self.processes.show(height),
            Place::Sites(_) => {
                self.sites.show(height);
                let Some(report) = &self.report else {
                    return;
                };
                for (place, _) in self.sites.visible(height) {
                    if let Some(site) = report.sites.get(place as usize) {
                        let title = || self.named.text(place as usize, site);
                        self.titles
                            .entry(place)
                            .or_insert_with(|| detail::short_title(title()));
                    }
                }
            }
            Place::Site(_) | Place::Kernel => {
                self.lines_top = self.lines_top.min(self.lines.len().saturating_sub(height));
            }
            Place::Tree(_) => {
                self.tree.top = in_view(self.tree.top, self.tree.cursor, self.tree.len(), height);
            }
        }
    }

    /// Lines for rows.
    pub(super) fn height(&self) -> usize {
        let around = match self.place() {
            Place::Processes | Place::Sites(None) | Place::Tree(None) => COLUMNS,
            Place::Sites(Some(_)) | Place::Tree(Some(_)) => COLUMNS + self.lines.len(),
            Place::Site(_) | Place::Kernel => 0,
        };
        usize::from(self.size.1).saturating_sub(HEAD + around + FOOT)
    }

    /// Goes to a place from the one where the user is.
    pub(super) fn enter(&mut self, place: Place) {
        match place {
            Place::Sites(_) => self.sites.reset(),
            Place::Site(_) | Place::Kernel => self.lines_top = 0,
            Place::Tree(_) => self.tree.reset(),
            Place::Processes => {}
        }
        self.trail.push(place);
        self.renew();
    }

    /// Goes back; whether there was somewhere to go.
    pub(super) fn leave(&mut self) -> bool {
        let is_inside = self.trail.len() > 1;
        if is_inside {
            self.trail.pop();
            self.renew();
        }
        is_inside
    }
}

/// The key of a process by its place in a report.
pub(super) fn process_key(report: &Report) -> impl Fn(u32) -> Option<ProcessKey> {
    |place| report.processes.get(place as usize).map(ProcessKey::of)
}

/// The key of a site by its place in a report.
pub(super) fn site_key(report: &Report) -> impl Fn(u32) -> Option<SiteKey> {
    |place| report.sites.get(place as usize).map(of_site)
}

fn of_site(site: &Site) -> SiteKey {
    SiteKey::of(site)
}
