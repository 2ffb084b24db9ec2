//! Goroutines as the program's own `/debug/pprof/goroutine` has them: how many stand at each stack.

use std::io;

use super::{
    Pprof, build,
    proto::{Profile, ValueType},
    write,
};
use crate::report::{
    Format,
    difference::Difference,
    model::{Omitted, Report, Site, SiteKind},
};

/// How the frame begins that says who started a goroutine: the program's own profile has none.
const CREATED_BY: &str = "created by ";

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct PprofGoroutines;

impl Format for PprofGoroutines {
    fn name(&self) -> &'static str {
        "pprof-goroutines"
    }

    fn media_type(&self) -> &'static str {
        Pprof.media_type()
    }

    fn is_binary(&self) -> bool {
        true
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        let counts = |site: &Site| i64::try_from(site.inuse_objects).unwrap_or(i64::MAX);
        write(&profile(report, counts), out)
    }

    fn write_difference(&self, difference: &Difference, out: &mut dyn io::Write) -> io::Result<()> {
        let changes = |site: &Site| {
            let place = usize::try_from(site.id).ok();
            let change = place.and_then(|place| difference.changes.get(place));
            change.map_or(0, |change| change.by.inuse_objects_change)
        };
        write(&profile(&difference.as_report(), changes), out)
    }
}

fn profile(report: &Report, value: impl Fn(&Site) -> i64) -> Profile {
    let mut parts = report.clone().into_parts();
    parts.omitted = Omitted::default();
    parts.sites.retain(|site| site.kind == SiteKind::Goroutines);
    for site in &mut parts.sites {
        let is_creator = site.frames.last().is_some_and(|frame| {
            let function = frame.function.as_deref();
            function.is_some_and(|name| name.starts_with(CREATED_BY))
        });
        if is_creator && site.frames.len() > 1 {
            site.frames.pop();
        }
    }
    let only = Report::new(parts);
    let mut profile = build::build(&only);
    // A sample for each site, in their order.
    for (sample, site) in profile.sample.iter_mut().zip(&only.sites) {
        sample.value = vec![value(site)];
    }
    let mut name = |text: &str| {
        let strings = &mut profile.string_table;
        strings.push(text.to_owned());
        i64::try_from(strings.len() - 1).unwrap_or(0)
    };
    let kind = ValueType {
        r#type: name("goroutine"),
        unit: name("count"),
    };
    profile.sample_type = vec![kind];
    profile.default_sample_type = kind.r#type;
    profile.period_type = Some(kind);
    // What is dropped are functions that allocate, with what they call.
    profile.drop_frames = 0;
    profile
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use super::PprofGoroutines;
    use crate::report::{
        Format as _, Frame, FrameKind, Report, ReportParts, Site, SiteKind, pprof,
    };

    fn frame(name: &str) -> Arc<Frame> {
        Arc::new(Frame {
            function: Some(name.to_owned()),
            kind: FrameKind::Go,
            ..Frame::default()
        })
    }

    #[test]
    fn goroutines_are_counted_by_stack_and_nothing_else_is_there() {
        let site = |kind, id, objects, names: &[&str]| Site {
            kind,
            id,
            inuse_objects: objects,
            inuse_bytes: 2048 * objects,
            frames: names.iter().map(|name| frame(name)).collect(),
            stack_complete: true,
            ..Site::default()
        };
        let report = Report::new(ReportParts {
            sites: vec![
                site(SiteKind::Go, 1, 7, &["main.keep"]),
                site(
                    SiteKind::Goroutines,
                    2,
                    400,
                    &["main.wait", "created by main.main"],
                ),
            ],
            ..ReportParts::default()
        });
        let mut bytes = Vec::new();
        PprofGoroutines.write(&report, &mut bytes).unwrap();
        let profile = pprof::read(&bytes).unwrap();
        let kinds: Vec<&str> = profile
            .sample_type
            .iter()
            .map(|kind| profile.string(kind.r#type))
            .collect();
        assert_eq!(kinds, ["goroutine"]);
        assert_eq!(profile.totals().get("goroutine"), Some(&400));
        let functions: Vec<&str> = profile
            .function
            .iter()
            .map(|function| profile.string(function.name))
            .collect();
        assert_eq!(functions, ["main.wait"]);
        let totals = pprof::profile(&report).totals();
        assert_eq!(totals.get("inuse_objects"), Some(&7));
    }

    #[test]
    fn all_goroutines_were_new_since_any_snapshot() {
        let report = Report::new(ReportParts {
            sites: vec![Site {
                kind: SiteKind::Goroutines,
                inuse_objects: 400,
                inuse_bytes: 819_200,
                alloc_objects: 500,
                alloc_bytes: 1_024_000,
                frames: vec![frame("main.wait")],
                stack_complete: true,
                ..Site::default()
            }],
            ..ReportParts::default()
        });
        let back = pprof::to_report(&pprof::profile(&report)).unwrap();
        let values = |report: &Report| {
            let site = report.sites.first().unwrap();
            let kept = (site.kind, site.inuse_objects, site.inuse_bytes);
            (kept, site.alloc_objects, site.alloc_bytes)
        };
        assert_eq!(values(&back), values(&report));
    }
}
