//! Blocks that a collector is to free: their holders may be garbage already, so that it takes longer until they are a leak. Knows the runtimes whose
//! collectors wait for minutes; judges nothing itself but that.

use std::collections::HashSet;

use super::{Session, Traced, name};
use crate::{
    ledger::{Judgement, Verdict},
    report::{Site, SiteKind},
    units::duration,
};

/// A full collection of V8's heap comes when that has grown by a good part; until then the memory behind buffers that nobody has any more stays. In a
/// server that makes little garbage of other kinds it takes one to two minutes, seconds.
const COLLECTED_AFTER_S: f64 = 180.0;

/// How programs and libraries with V8 in them are called.
const V8: [&str; 6] = ["node", "libnode", "nodejs", "electron", "deno", "libv8"];

/// What allocates for objects of V8 that are collected (v8/src/objects/backing-store.cc, node/src/api/environment.cc). What else is called from V8, such as an
/// extension, frees by itself.
const BEHIND_OBJECTS: [&str; 3] = [
    "v8::internal::BackingStore",
    "v8::ArrayBuffer::NewBackingStore",
    "ArrayBufferAllocator",
];

fn holds_v8(traced: &Traced) -> bool {
    traced.space.ranges().iter().any(|range| {
        let name = range.module.as_ref().and_then(|it| it.path.file_name());
        name.is_some_and(|name| {
            let name = name.to_string_lossy();
            V8.iter().any(|beginning| name.starts_with(beginning))
        })
    })
}

fn is_collected(site: &Site) -> bool {
    let frames = site.frames.iter();
    frames
        .filter_map(|frame| frame.function.as_deref())
        .any(|function| BEHIND_OBJECTS.iter().any(|it| function.contains(it)))
}

/// The sites whose blocks belong to objects of a collector, by incarnation. Names the sites of processes that have one.
pub(super) fn collected(session: &mut Session, sites: &mut [Site]) -> HashSet<(u32, u64)> {
    let with_v8: HashSet<u32> = session
        .processes
        .values()
        .filter(|traced| holds_v8(traced))
        .map(|traced| traced.incarnation)
        .collect();
    if with_v8.is_empty() {
        return HashSet::new();
    }
    let is_of_v8 = |site: &Site| site.kind == SiteKind::Heap && with_v8.contains(&site.incarnation);
    sites.sort_by_key(|site| !is_of_v8(site));
    let end = sites.partition_point(is_of_v8);
    let Some(of_v8) = sites.get_mut(..end) else {
        return HashSet::new();
    };
    name(session, of_v8);
    let found = of_v8.iter().filter(|site| is_collected(site));
    found.map(|site| (site.incarnation, site.id)).collect()
}

/// What is made of a judgement of such a site, after so many seconds.
pub(in crate::session) fn until_collected(judgement: Judgement, watched_s: f64) -> Judgement {
    if judgement.verdict != Verdict::Leaking || watched_s >= COLLECTED_AFTER_S {
        return judgement;
    }
    Judgement {
        verdict: Verdict::WarmingUp,
        reason: format!(
            "{}; but these are buffers of JavaScript, of which its collector may free many: no leak before {}",
            judgement.reason,
            duration(COLLECTED_AFTER_S)
        ),
        ..judgement
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Judgement, Site, Verdict, is_collected, until_collected};
    use crate::report::Frame;

    fn site(functions: &[&str]) -> Site {
        let frame = |name: &&str| {
            Arc::new(Frame {
                function: Some((*name).to_owned()),
                ..Frame::default()
            })
        };
        Site {
            frames: functions.iter().map(frame).collect(),
            ..Site::default()
        }
    }

    #[test]
    fn buffers_that_a_collector_had_not_reached_were_called_a_leak() {
        let leak = Judgement {
            verdict: Verdict::Leaking,
            reason: "all stay".to_owned(),
            growth_bytes_per_s: 7.0,
        };
        let early = until_collected(leak.clone(), 62.0);
        assert_eq!(early.verdict, Verdict::WarmingUp);
        assert!(early.reason.starts_with("all stay; "), "{}", early.reason);
        assert_eq!(until_collected(leak.clone(), 181.0), leak);
        let churn = Judgement {
            verdict: Verdict::Churn,
            ..leak
        };
        assert_eq!(until_collected(churn.clone(), 62.0), churn);
    }

    #[test]
    fn what_an_extension_allocates_is_no_collectors() {
        assert!(is_collected(&site(&[
            "node::NodeArrayBufferAllocator::AllocateUninitialized(unsigned long)",
            "v8::internal::Heap::AllocateExternalBackingStore",
        ])));
        assert!(!is_collected(&site(&[
            "addon::Remember(v8::FunctionCallbackInfo<v8::Value> const&)",
            "v8::internal::FunctionCallbackArguments::Call(v8::internal::CallHandlerInfo)",
        ])));
    }
}
