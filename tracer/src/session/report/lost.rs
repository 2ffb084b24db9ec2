//! What was lost at exit, as evidence: a block that nothing points to where its process ends leaks, whatever its history.

use super::Traced;
use crate::{
    report::{LOST_AT_EXIT, LostAtExit, Reachability, ReportParts, Verdict},
    session::Session,
    units::{blocks, bytes, count},
};

/// Adds to verdicts what the looks at the ends of processes found. To be called when sites and processes are judged.
pub(super) fn judge(session: &Session, parts: &mut ReportParts) {
    if !session.options.at_exit {
        return;
    }
    let looked = |pid: u32, incarnation: u32| {
        session
            .processes
            .get(&pid)
            .filter(|traced| traced.incarnation == incarnation)
            .and_then(|traced| traced.end_look.as_ref()?.as_ref().ok())
    };
    for site in &mut parts.sites {
        if looked(site.pid, site.incarnation).is_none() {
            continue;
        }
        let Some(found) = site.reachability.filter(|found| found.unreachable > 0) else {
            continue;
        };
        // All of it may have been freed since by exit handlers of others that share the memory; then nothing is in use.
        if site.inuse_bytes == 0 {
            continue;
        }
        site.verdict = Verdict::Leaking;
        site.verdict_reason = of_site(&found);
    }
    for process in &mut parts.processes {
        let Some(look) = looked(process.pid, process.incarnation) else {
            continue;
        };
        parts.lost_at_exit = true;
        process.lost_at_exit = Some(look.lost.clone());
        process.unjudged = None;
        let told = parts
            .sites
            .iter()
            .filter(|site| {
                (site.pid, site.incarnation) == (process.pid, process.incarnation)
                    && site.verdict == Verdict::Leaking
            })
            .filter_map(|site| site.reachability)
            .map(|found| found.unreachable)
            .fold(0, u64::saturating_add);
        let weight = 1 << session.probe.thin_shift();
        let said = of_process(&look.lost, told, weight);
        if told > 0 {
            process.verdict = Verdict::Leaking;
            process.verdict_reason = said;
        } else if process.verdict_reason.is_empty() {
            process.verdict_reason = said;
        } else {
            process.verdict_reason = format!("{said}; of growth: {}", process.verdict_reason);
        }
    }
}

fn of_site(found: &Reachability) -> String {
    format!(
        "{LOST_AT_EXIT}: {} in {}{}",
        bytes(found.unreachable_bytes),
        blocks(found.unreachable),
        parts_of(found.direct, found.unreachable)
    )
}

/// `; 3 direct, 4 indirect`; nothing where all are direct.
fn parts_of(direct: u64, all: u64) -> String {
    if direct == all {
        return String::new();
    }
    format!(
        "; {} direct, {} indirect",
        count(direct),
        count(all.saturating_sub(direct))
    )
}

/// `told`: lost blocks of the sites in the report; `weight`: each traced block stands for so many.
fn of_process(lost: &LostAtExit, told: u64, weight: u64) -> String {
    if lost.objects() == 0 {
        return "nothing lost at exit: pointers led to every block in use".to_owned();
    }
    let mut said = format!(
        "lost at exit: no pointer led to {} ({}{})",
        blocks(lost.objects()),
        bytes(lost.bytes()),
        parts_of(lost.direct_objects, lost.objects())
    );
    let traced = lost.objects().saturating_sub(lost.untraced_objects);
    let hidden = traced.saturating_sub(told);
    if weight > 1 {
        said.push_str(&format!(
            ", the stacks of one of {} are known",
            count(weight)
        ));
    } else {
        for (objects, what) in [
            (lost.untraced_objects, "not traced"),
            (hidden, "suppressed or filtered out"),
        ] {
            if objects == lost.objects() {
                said.push_str(&format!(", all {what}"));
            } else if objects > 0 {
                said.push_str(&format!(", {} of them {what}", count(objects)));
            }
        }
    }
    if lost.unread_registers > 0 {
        said.push_str(&format!(
            "; the registers of {} of {} threads could not be read",
            count(lost.unread_registers),
            count(lost.threads)
        ));
    }
    said
}

/// What is said of the look in the note on how a process ended; nothing where there was to be none.
pub(super) fn note(traced: &Traced, at_exit: bool) -> Option<String> {
    if !at_exit {
        return None;
    }
    match &traced.end_look {
        Some(Ok(look)) => {
            let threads = match look.lost.threads {
                0 | 1 => String::new(),
                threads => format!(" with {} threads", count(threads)),
            };
            Some(format!(
                "held{threads} at its end for {}, to be looked at",
                crate::units::duration(look.lost.held_s)
            ))
        }
        Some(Err(why)) => Some(format!("its heap was not looked at when it ended: {why}")),
        None => {
            traced.ended?;
            let why = match traced.end.told() {
                Some(ended) if ended.signal.is_some() => "a signal ended it",
                _ if traced.sites.is_empty() => "it ended before anything was attached to it",
                _ if !traced.sees_end() => "no _exit of a C library was found in it",
                _ => "it did not end through the C library's _exit",
            };
            Some(format!("its heap was not looked at when it ended: {why}"))
        }
    }
}
