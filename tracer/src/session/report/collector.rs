//! Processes in which a collector frees the blocks: who holds them may be garbage already, so that it takes longer until they are a leak. Knows the runtimes
//! whose collectors wait for minutes; judges nothing itself but that.

use super::Traced;
use crate::{
    ledger::{Judgement, Verdict},
    units::duration,
};

/// A full collection of V8's heap comes when that has grown by a good part; until then buffers and what extensions allocate for objects stay, also of those that
/// nobody has any more. In a server that makes little garbage of other kinds it takes one to two minutes, seconds.
const COLLECTED_AFTER_S: f64 = 180.0;

/// How programs and libraries with V8 in them are called.
const V8: [&str; 6] = ["node", "libnode", "nodejs", "electron", "deno", "libv8"];

impl Traced {
    /// Whether it may be called leaking only later, watched for so many seconds.
    pub(in crate::session) fn waits_for_collector(&self, watched_s: f64) -> bool {
        watched_s < COLLECTED_AFTER_S
            && self.space.ranges().iter().any(|range| {
                let name = range.module.as_ref().and_then(|it| it.path.file_name());
                name.is_some_and(|name| is_v8(&name.to_string_lossy()))
            })
    }
}

fn is_v8(file: &str) -> bool {
    V8.iter().any(|beginning| file.starts_with(beginning))
}

/// What is made of a judgement of a site in such a process.
pub(in crate::session) fn until_collected(judgement: Judgement) -> Judgement {
    if judgement.verdict != Verdict::Leaking {
        return judgement;
    }
    Judgement {
        verdict: Verdict::WarmingUp,
        reason: format!("{}; but {}", judgement.reason, why()),
        ..judgement
    }
}

/// Why it is not called leaking yet.
pub(super) fn why() -> String {
    format!(
        "objects of JavaScript may own its blocks, and V8 frees those that are garbage minutes later: no leak before {}",
        duration(COLLECTED_AFTER_S)
    )
}

#[cfg(test)]
mod tests {
    use super::{Judgement, Verdict, is_v8, until_collected};

    #[test]
    fn buffers_that_a_collector_had_not_reached_were_called_a_leak() {
        let leak = Judgement {
            verdict: Verdict::Leaking,
            reason: "all stay".to_owned(),
            growth_bytes_per_s: 7.0,
        };
        let early = until_collected(leak.clone());
        assert_eq!(early.verdict, Verdict::WarmingUp);
        assert!(
            early.reason.starts_with("all stay; but "),
            "{}",
            early.reason
        );
        let churn = Judgement {
            verdict: Verdict::Churn,
            ..leak
        };
        assert_eq!(until_collected(churn.clone()), churn);
    }

    #[test]
    fn programs_with_v8_in_them() {
        assert!(is_v8("node") && is_v8("libnode.so.108"));
        assert!(!is_v8("python3.11") && !is_v8("libjvm.so"));
    }
}
