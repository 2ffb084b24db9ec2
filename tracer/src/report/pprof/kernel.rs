//! Objects of the kernel by where they are made, for pprof: a profile of its own, so that nobody adds them to what heaps hold.

use std::io;

use super::{
    Pprof, build,
    proto::{Label, Profile},
    write,
};
use crate::report::{
    Format,
    difference::Difference,
    model::{KernelObjects, Omitted, Report, Site, SiteKind},
    names::clean,
};

/// See the module.
#[derive(Clone, Copy, Debug, Default)]
pub struct PprofKernel;

impl Format for PprofKernel {
    fn name(&self) -> &'static str {
        "pprof-kernel"
    }

    fn media_type(&self) -> &'static str {
        Pprof.media_type()
    }

    fn is_binary(&self) -> bool {
        true
    }

    fn write(&self, report: &Report, out: &mut dyn io::Write) -> io::Result<()> {
        write(&profile(report), out)
    }

    fn write_difference(&self, _: &Difference, _: &mut dyn io::Write) -> io::Result<()> {
        // A difference knows of heaps. `go tool pprof -diff_base` compares two of these profiles.
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// As a site of a heap would stand there.
fn site(id: u64, of: &KernelObjects) -> Site {
    Site {
        id,
        kind: SiteKind::Heap,
        pid: of.pid,
        inuse_bytes: of.inuse_bytes,
        inuse_objects: of.inuse_objects,
        alloc_bytes: of.alloc_bytes,
        alloc_objects: of.alloc_objects,
        verdict: of.verdict,
        frames: of.frames.clone(),
        stack_complete: true,
        ..Site::default()
    }
}

fn profile(report: &Report) -> Profile {
    let mut parts = report.clone().into_parts();
    let objects = parts
        .kernel
        .take()
        .map_or_else(Vec::new, |kernel| kernel.sites);
    parts.omitted = Omitted::default();
    parts.processes.clear();
    parts.sites = (0..).zip(&objects).map(|(id, of)| site(id, of)).collect();
    let only = Report::new(parts);
    let mut profile = build::build(&only);
    let order: Vec<u64> = only.sites.iter().map(|site| site.id).collect();
    let mut strings = std::mem::take(&mut profile.string_table);
    let mut name = |text: &str| {
        let found = strings.iter().position(|other| other == text);
        let place = found.unwrap_or_else(|| {
            strings.push(text.to_owned());
            strings.len().saturating_sub(1)
        });
        i64::try_from(place).unwrap_or(0)
    };
    // A sample for each site, in their order.
    for (sample, id) in profile.sample.iter_mut().zip(order) {
        let of = usize::try_from(id).ok().and_then(|id| objects.get(id));
        let Some(of) = of else { continue };
        let pid = of.pid.to_string();
        let labels = [
            ("pid", pid.as_str()),
            ("comm", &of.comm),
            ("cgroup", &of.cgroup),
            ("cache", &of.cache),
            ("verdict", of.verdict.name()),
        ];
        sample.label = labels
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| Label {
                key: name(key),
                str: name(&clean(value)),
                ..Label::default()
            })
            .collect();
    }
    profile.string_table = strings;
    // What is dropped are functions that allocate, with what they call.
    profile.drop_frames = 0;
    profile
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::PprofKernel;
    use crate::report::{
        Format, KernelMemory, Pprof, Report, ReportParts, fixtures::kernel_site, pprof,
    };

    fn written(format: &dyn Format) -> pprof::proto::Profile {
        let report = Report::new(ReportParts {
            kernel: Some(KernelMemory {
                sites: vec![kernel_site()],
                ..KernelMemory::default()
            }),
            ..ReportParts::default()
        });
        let mut bytes = Vec::new();
        format.write(&report, &mut bytes).unwrap();
        pprof::read(&bytes).unwrap()
    }

    #[test]
    fn objects_of_the_kernel_have_a_profile_of_their_own() {
        let profile = written(&PprofKernel);
        assert_eq!(profile.totals().get("inuse_objects"), Some(&9640));
        let functions: Vec<&str> = profile
            .function
            .iter()
            .map(|function| profile.string(function.name))
            .collect();
        assert_eq!(functions.first(), Some(&"sock_alloc_inode"));
        assert!(functions.contains(&"handle_request"));
        let labels = &profile.sample.first().unwrap().label;
        let label = |key: &str| {
            let found = labels.iter().find(|label| profile.string(label.key) == key);
            found.map(|label| profile.string(label.str))
        };
        assert_eq!(label("cache"), Some("sock_inode_cache"));
        assert_eq!(label("pid"), Some("4290"));
        assert_eq!(label("verdict"), Some("leaking"));
    }

    #[test]
    fn the_heaps_profile_has_none_of_them() {
        assert!(written(&Pprof).sample.is_empty());
    }
}
