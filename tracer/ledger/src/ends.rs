//! What a process frees on its way out, and what is asked after its end: made-up ledgers of leaks that end.

use super::{InUse, Judgement, Ledger, ProcessLevel, SiteOfProcess, Verdict};
use leakscope_common::{Block, SiteTotals};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const PROCESS: u32 = 1;
const SITE: u32 = 1;

/// A site of blocks of the same size that stay, so many a second.
struct Leak {
    ledger: Ledger,
    rate: u64,
    size: u64,
    seconds: u64,
}

impl Leak {
    fn totals(&self, freed: u64) -> SiteTotals {
        let objects = self.rate * self.seconds;
        SiteTotals {
            alloc_objects: objects,
            alloc_bytes: objects * self.size,
            free_objects: freed,
            free_bytes: freed * self.size,
        }
    }

    fn level(&self, unknown_frees: f64) -> ProcessLevel {
        let bytes = (self.rate * self.seconds * self.size) as f64;
        ProcessLevel {
            inuse_bytes: bytes,
            most_inuse_bytes: bytes,
            anonymous_bytes: 1e6,
            resident_bytes: 1e6,
            alloc_bytes: bytes,
            unknown_frees,
        }
    }

    /// Watched for so long, a look a second and the ages every other one.
    fn watched(rate: u64, size: u64, seconds: u64) -> Self {
        let mut leak = Self {
            ledger: Ledger::new(0),
            rate,
            size,
            seconds: 0,
        };
        for second in 1..=seconds {
            leak.seconds = second;
            let now_ns = second * SECOND;
            let (totals, level) = (leak.totals(0), leak.level(0.0));
            leak.ledger.observe(now_ns, SITE, &totals, 1);
            leak.ledger.observe_process(now_ns, PROCESS, level);
            if second % 2 == 0 {
                leak.survey(rate * second);
            }
        }
        leak
    }

    /// The ages of the blocks that are left.
    fn survey(&mut self, left: u64) {
        let (rate, size) = (self.rate, self.size);
        let mut ages = self
            .ledger
            .survey_ages(self.seconds * SECOND, 1, 4, |site| site);
        for number in 0..left {
            ages.note(&Block {
                site: SITE,
                size,
                born_ns: number * SECOND / rate.max(1),
                ..Block::default()
            });
        }
        ages.finish();
    }

    /// It ends, and frees so many blocks of the site and so many from before the trace as it does.
    fn end(&mut self, freed: u64, unknown_frees: f64) {
        let end_ns = self.seconds * SECOND + SECOND / 2;
        let (totals, level) = (self.totals(freed), self.level(unknown_frees));
        self.ledger.observe_end(end_ns, SITE, &totals, 1);
        self.ledger.observe_process_end(end_ns, PROCESS, level);
        self.survey(self.rate * self.seconds - freed);
    }

    fn judge(&self) -> Judgement {
        self.ledger.judge(SITE, PROCESS)
    }
}

#[test]
fn frees_at_a_tidy_exit_of_blocks_from_before_do_not_undo_a_leak() {
    let mut leak = Leak::watched(20, 400, 65);
    let before = leak.judge();
    assert_eq!(before.verdict, Verdict::Leaking, "{}", before.reason);
    leak.end(0, 3_000.0);
    let after = leak.judge();
    assert_eq!(after.verdict, Verdict::Leaking, "{}", after.reason);
    let rate = after.growth_bytes_per_s;
    assert!((rate - before.growth_bytes_per_s).abs() < 1.0, "{rate}");
}

#[test]
fn frees_of_blocks_from_before_are_said_as_they_were_counted() {
    let mut leak = Leak::watched(20, 400, 60);
    for second in 61..=120 {
        leak.seconds = second;
        let (totals, level) = (leak.totals(0), leak.level((second - 60) as f64 * 50.0));
        leak.ledger.observe(second * SECOND, SITE, &totals, 1);
        leak.ledger.observe_process(second * SECOND, PROCESS, level);
        if second % 2 == 0 {
            leak.survey(20 * second);
        }
    }
    let judgement = leak.judge();
    assert_eq!(
        judgement.verdict,
        Verdict::WarmingUp,
        "{}",
        judgement.reason
    );
    // 50 a second in the last 60 s: not twice as many.
    assert!(
        judgement.reason.contains("3,000 blocks"),
        "{}",
        judgement.reason
    );
}

#[test]
fn what_is_all_freed_at_the_end_does_not_leak() {
    let mut leak = Leak::watched(20, 400, 65);
    leak.end(20 * 65, 0.0);
    let judgement = leak.judge();
    assert_eq!(judgement.verdict, Verdict::Churn, "{}", judgement.reason);
    assert!(judgement.growth_bytes_per_s.abs() < f64::EPSILON);
    assert!(
        judgement.reason.contains("1,300 blocks"),
        "{}",
        judgement.reason
    );
}

#[test]
fn the_verdict_does_not_change_after_the_end() {
    for seconds in [5, 30, 65] {
        let mut leak = Leak::watched(20, 400, seconds);
        leak.end(0, 0.0);
        let (judgement, memory) = (leak.judge(), leak.ledger.memory(PROCESS, 100));
        for second in seconds + 1..seconds + 200 {
            // Looks at others.
            leak.ledger
                .observe(second * SECOND, 2, &SiteTotals::default(), 1);
            let totals = leak.totals(0);
            leak.ledger.observe_end(second * SECOND, SITE, &totals, 1);
            let level = leak.level(0.0);
            leak.ledger
                .observe_process_end(second * SECOND, PROCESS, level);
            leak.survey(0);
        }
        assert_eq!(leak.judge(), judgement);
        assert_eq!(leak.ledger.memory(PROCESS, 100), memory);
        let last = memory.last().map_or(0.0, |point| point.at_s);
        assert!((last - (seconds as f64 + 0.5)).abs() < 1e-9, "{last}");
    }
}

#[test]
fn a_process_that_has_ended_runs_out_of_nothing() {
    let room = super::Room {
        bytes: 1 << 30,
        limit: super::Limit::Machine,
    };
    let mut leak = Leak::watched(20, 400, 65);
    let judge = |leak: &Leak| {
        let site = leak.judge();
        let sites = [SiteOfProcess {
            verdict: site.verdict,
            growth_bytes_per_s: site.growth_bytes_per_s,
            inuse_bytes: 1,
        }];
        leak.ledger
            .judge_process(PROCESS, &sites, Some(&room), InUse::Counted)
            .reason
    };
    assert!(judge(&leak).contains("memory runs out"));
    leak.end(0, 0.0);
    assert!(
        !judge(&leak).contains("memory runs out"),
        "{}",
        judge(&leak)
    );
}

#[test]
fn what_takes_no_memory_does_not_leak() {
    let leak = Leak::watched(20, 0, 65);
    assert_ne!(leak.judge().verdict, Verdict::Leaking);
}

proptest! {
    /// Whatever the verdicts of the sites, the process's says the same of leaks.
    #[test]
    fn a_process_leaks_where_and_only_where_a_site_of_it_does(
        verdicts in prop::collection::vec((0..Verdict::ALL.len(), 0_u64..1 << 30, -1e6_f64..1e6), 0..6),
        rate in 0_u64..40,
        ends in any::<bool>(),
        is_complete in any::<bool>(),
    ) {
        let mut leak = Leak::watched(rate, 400, 65);
        if ends {
            leak.end(0, 3_000.0);
        }
        let sites: Vec<SiteOfProcess> = verdicts
            .iter()
            .filter_map(|(verdict, inuse_bytes, growth_bytes_per_s)| {
                Some(SiteOfProcess {
                    verdict: *Verdict::ALL.get(*verdict)?,
                    growth_bytes_per_s: *growth_bytes_per_s,
                    inuse_bytes: *inuse_bytes,
                })
            })
            .collect();
        let in_use = if is_complete {
            InUse::Counted
        } else {
            InUse::Estimated
        };
        let leaks = sites.iter().any(|site| site.verdict == Verdict::Leaking);
        for judgement in [
            leak.ledger.judge_process(PROCESS, &sites, None, in_use),
            leak.ledger.judge_anonymous(PROCESS, &sites, None),
        ] {
            prop_assert_eq!(judgement.verdict == Verdict::Leaking, leaks, "{}", judgement.reason);
        }
    }
}
