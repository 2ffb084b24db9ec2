//! Behaviours of known truth, simulated: what a site looks like to the ledger when its program does this. The programs of
//! `tests/programs` do the same in earnest.

#![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

mod lives;

pub(super) use lives::{Chance, END, FOREVER, Life, fifo, flushed, lives_for, pace, stays};
use lives::{keyed, replaced};

/// What must be said of a behaviour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Truth {
    /// Leaking, from 60 s on.
    Leak,
    /// A leak too slow for 60 s: leaking from here on, never a plateau.
    SlowLeak(f64),
    /// Never leaking.
    Bounded,
    /// Nothing tells it from a leak until it has filled; never leaking from here on.
    BoundedAfter(f64),
}

pub(super) type Behaviour = (&'static str, Truth, fn(&mut Chance) -> Vec<Life>);

/// The behaviours, each with its truth.
pub(super) const CORPUS: &[Behaviour] = &[
    ("leak-fast", Truth::Leak, |c| {
        pace(c, 0.0, END, 200.0, |_, at| stays(at, 126))
    }),
    ("leak-one-a-second", Truth::Leak, |c| {
        pace(c, 0.0, END, 1.0, |_, at| stays(at, 64))
    }),
    ("leak-one-in-3s", Truth::Leak, |c| {
        pace(c, 0.0, END, 0.33, |_, at| stays(at, 4096))
    }),
    ("leak-one-in-5s", Truth::Leak, |c| {
        pace(c, 0.0, END, 0.2, |_, at| stays(at, 32))
    }),
    ("leak-one-in-15s", Truth::SlowLeak(240.0), |c| {
        pace(c, 0.0, END, 1.0 / 15.0, |_, at| stays(at, 1 << 20))
    }),
    ("leak-one-in-40s", Truth::SlowLeak(600.0), |c| {
        pace(c, 0.0, END, 1.0 / 40.0, |_, at| stays(at, 1 << 20))
    }),
    ("leak-random-2-a-second", Truth::Leak, |c| {
        let mut at = 0.0;
        let mut lives = Vec::new();
        while at < END {
            lives.extend(stays(at, 80));
            at += c.wait(0.5);
        }
        lives
    }),
    ("leak-1-percent-of-churn", Truth::Leak, |c| {
        pace(c, 0.0, END, 200.0, |c, at| {
            if c.share() < 0.01 {
                stays(at, 48)
            } else {
                lives_for(at, 48, c.wait(0.02))
            }
        })
    }),
    ("leak-few-bytes-under-churn", Truth::Leak, |c| {
        pace(c, 0.0, END, 300.0, |c, at| {
            if c.share() < 0.004 {
                stays(at, 8)
            } else {
                lives_for(at, 8000, c.wait(0.2))
            }
        })
    }),
    ("leak-half-of-requests-of-2s", Truth::Leak, |c| {
        pace(c, 0.0, END, 20.0, |c, at| {
            if c.share() < 0.5 {
                stays(at, 512)
            } else {
                lives_for(at, 512, 2.0 * c.share())
            }
        })
    }),
    ("leak-in-batches", Truth::Leak, |c| {
        let mut lives = Vec::new();
        for batch in 0..124 {
            for _ in 0..50 {
                lives.extend(stays(5.0 * f64::from(batch) + 0.2 * c.share(), 100));
            }
        }
        lives
    }),
    ("leak-after-start-up", Truth::Leak, |c| {
        let mut lives = pace(c, 0.0, 2.0, 4000.0, |_, at| stays(at, 300));
        lives.extend(pace(c, 2.0, END, 5.0, |_, at| stays(at, 300)));
        lives
    }),
    ("leak-growing-rate", Truth::Leak, |c| {
        pace(c, 0.0, END, 40.0, |c, at| {
            if c.share() < 0.3 + at / END {
                stays(at, 77)
            } else {
                None
            }
        })
    }),
    ("leak-of-varying-load", Truth::Leak, |c| {
        pace(c, 0.0, END, 40.0, |c, at| {
            if c.share() < 0.6 + 0.3 * (at / 7.0).sin() {
                stays(at, 77)
            } else {
                None
            }
        })
    }),
    ("leak-of-mixed-sizes", Truth::Leak, |c| {
        pace(c, 0.0, END, 20.0, |c, at| {
            stays(at, 16 << (c.share() * 10.0) as u32)
        })
    }),
    ("leak-beside-lru", Truth::Leak, |c| {
        let mut lives = fifo(pace(c, 0.0, END, 100.0, |_, at| stays(at, 100)), 300);
        lives.extend(pace(c, 0.0, END, 10.0, |_, at| stays(at, 100)));
        lives
    }),
    ("leak-beside-flush", Truth::Leak, |c| {
        let mut lives = flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 100)), 4.0);
        lives.extend(pace(c, 0.0, END, 5.0, |_, at| stays(at, 100)));
        lives
    }),
    ("cache-without-bound", Truth::Leak, |c| {
        pace(c, 0.0, END, 30.0, |c, at| {
            if c.share() < 0.9 {
                stays(at, 200)
            } else {
                None
            }
        })
    }),
    ("buffer-grows-without-bound", Truth::Leak, |_| {
        let times: Vec<(f64, u64)> = (0..600)
            .map(|at| (f64::from(at), 4096 * u64::from(1 + at as u32)))
            .collect();
        replaced(&times)
    }),
    ("list-grows-by-an-eighth", Truth::SlowLeak(FOREVER), |_| {
        let mut times = Vec::new();
        let mut room = 64.0;
        while room < 620.0 * 1000.0 {
            times.push((room / 1000.0, (room * 8.0) as u64));
            room *= 1.125;
        }
        replaced(&times)
    }),
    ("leak-pauses", Truth::Leak, |c| {
        pace(c, 0.0, END, 10.0, |_, at| {
            if at % 10.0 < 5.0 { stays(at, 99) } else { None }
        })
    }),
    ("leak-late", Truth::SlowLeak(560.0), |c| {
        let mut lives = pace(c, 0.0, END, 100.0, |c, at| lives_for(at, 64, c.wait(0.5)));
        lives.extend(pace(c, 300.0, END, 5.0, |_, at| stays(at, 64)));
        lives
    }),
    // Not leaks.
    ("churn-short", Truth::Bounded, |c| {
        pace(c, 0.0, END, 500.0, |c, at| lives_for(at, 64, c.wait(0.01)))
    }),
    ("churn-5s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 100.0, |c, at| lives_for(at, 64, c.wait(5.0)))
    }),
    ("churn-30s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 50.0, |c, at| lives_for(at, 64, c.wait(30.0)))
    }),
    ("churn-100s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 50.0, |c, at| lives_for(at, 64, c.wait(100.0)))
    }),
    ("churn-250s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 50.0, |c, at| lives_for(at, 64, c.wait(250.0)))
    }),
    ("churn-of-two-kinds", Truth::Bounded, |c| {
        pace(c, 0.0, END, 100.0, |c, at| {
            let mean = if c.share() < 0.9 { 0.1 } else { 20.0 };
            lives_for(at, 64, c.wait(mean))
        })
    }),
    ("churn-rising-load", Truth::Bounded, |c| {
        pace(c, 0.0, END, 100.0, |c, at| {
            if c.share() < at / END {
                lives_for(at, 64, 4.0)
            } else {
                None
            }
        })
    }),
    ("churn-waves", Truth::Bounded, |c| {
        pace(c, 0.0, END, 100.0, |c, at| {
            if c.share() < 0.5 + 0.5 * (at / 20.0).sin() {
                lives_for(at, 64, c.wait(6.0))
            } else {
                None
            }
        })
    }),
    ("start-up-only", Truth::Bounded, |c| {
        pace(c, 0.0, 3.0, 1000.0, |_, at| stays(at, 100))
    }),
    ("start-up-one-block", Truth::Bounded, |_| {
        stays(0.5, 100 << 20).into_iter().collect()
    }),
    ("start-up-in-phases", Truth::Bounded, |c| {
        (0..4)
            .flat_map(|phase| {
                pace(
                    c,
                    8.0 * f64::from(phase),
                    8.0 * f64::from(phase) + 1.0,
                    300.0,
                    |_, at| stays(at, 100),
                )
            })
            .collect()
    }),
    ("cache-fills-in-20s", Truth::Bounded, |c| {
        pace(c, 0.0, 20.0, 50.0, |_, at| stays(at, 200))
    }),
    ("cache-fills-in-35s", Truth::Bounded, |c| {
        pace(c, 0.0, 35.0, 50.0, |_, at| stays(at, 200))
    }),
    ("cache-fills-in-55s", Truth::BoundedAfter(60.0), |c| {
        pace(c, 0.0, 55.0, 50.0, |_, at| stays(at, 200))
    }),
    ("cache-fills-in-200s", Truth::BoundedAfter(215.0), |c| {
        pace(c, 0.0, 200.0, 50.0, |_, at| stays(at, 200))
    }),
    ("cache-of-500-keys", Truth::Bounded, |c| keyed(c, 500, 20.0)),
    ("cache-of-3000-keys", Truth::Bounded, |c| {
        keyed(c, 3000, 30.0)
    }),
    ("cache-of-20000-keys", Truth::Bounded, |c| {
        keyed(c, 20_000, 60.0)
    }),
    ("cache-saturates-30s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 50.0, |c, at| {
            if c.share() < (-at / 30.0).exp() {
                stays(at, 200)
            } else {
                None
            }
        })
    }),
    ("cache-saturates-100s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 50.0, |c, at| {
            if c.share() < (-at / 100.0).exp() {
                stays(at, 200)
            } else {
                None
            }
        })
    }),
    ("lru-of-2s", Truth::Bounded, |c| {
        fifo(pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)), 100)
    }),
    ("lru-of-15s", Truth::Bounded, |c| {
        fifo(pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)), 750)
    }),
    ("lru-of-30s", Truth::Bounded, |c| {
        fifo(pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)), 1500)
    }),
    ("lru-of-40s", Truth::Bounded, |c| {
        fifo(pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)), 2000)
    }),
    ("lru-of-100s", Truth::BoundedAfter(115.0), |c| {
        fifo(pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)), 5000)
    }),
    ("random-eviction", Truth::Bounded, |c| {
        let mut lives: Vec<Life> = Vec::new();
        let mut slots: Vec<usize> = Vec::new();
        for life in pace(c, 0.0, END, 50.0, |_, at| stays(at, 200)) {
            if slots.len() < 1000 {
                slots.push(lives.len());
            } else {
                let slot = (c.share() * slots.len() as f64) as usize;
                lives[slots[slot]].dies = life.born;
                slots[slot] = lives.len();
            }
            lives.push(life);
        }
        lives
    }),
    ("sessions-of-20s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 30.0, |_, at| lives_for(at, 300, 20.0))
    }),
    ("sessions-of-40s", Truth::Bounded, |c| {
        pace(c, 0.0, END, 30.0, |_, at| lives_for(at, 300, 40.0))
    }),
    ("flush-every-3s", Truth::Bounded, |c| {
        flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 80)), 3.0)
    }),
    ("flush-every-17s", Truth::Bounded, |c| {
        flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 80)), 17.0)
    }),
    ("flush-every-30s", Truth::Bounded, |c| {
        flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 80)), 30.0)
    }),
    ("flush-every-42s", Truth::Bounded, |c| {
        flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 80)), 42.0)
    }),
    ("flush-every-100s", Truth::BoundedAfter(101.0), |c| {
        flushed(pace(c, 0.0, END, 50.0, |_, at| stays(at, 80)), 100.0)
    }),
    ("flush-of-most-every-12s", Truth::Bounded, |c| {
        let (most, rest): (Vec<Life>, Vec<Life>) = pace(c, 0.0, END, 50.0, |_, at| stays(at, 80))
            .into_iter()
            .partition(|life| !((life.born * 50.0) as u64).is_multiple_of(10));
        let mut lives = flushed(most, 12.0);
        lives.extend(flushed(rest, 36.0));
        lives
    }),
    ("lazy-frees-of-1000", Truth::Bounded, |c| {
        let mut lives = pace(c, 0.0, END, 60.0, |_, at| stays(at, 80));
        let ends: Vec<f64> = lives
            .iter()
            .skip(999)
            .step_by(1000)
            .map(|life| life.born)
            .collect();
        for (number, life) in lives.iter_mut().enumerate() {
            life.dies = ends.get(number / 1000).copied().unwrap_or(FOREVER);
        }
        lives
    }),
    ("sawtooth-8s", Truth::Bounded, |c| {
        flushed(pace(c, 0.0, END, 100.0, |_, at| stays(at, 1000)), 8.0)
    }),
    ("staircase-to-a-bound", Truth::Bounded, |c| {
        (0..6)
            .flat_map(|step| {
                pace(
                    c,
                    6.0 * f64::from(step),
                    6.0 * f64::from(step) + 0.3,
                    1000.0,
                    |_, at| stays(at, 100),
                )
            })
            .collect()
    }),
    ("staircase-of-7-steps", Truth::Bounded, |c| {
        (0..7)
            .flat_map(|step| {
                pace(
                    c,
                    8.0 * f64::from(step),
                    8.0 * f64::from(step) + 0.3,
                    1000.0,
                    |_, at| stays(at, 100),
                )
            })
            .collect()
    }),
    ("table-doubles", Truth::Bounded, |_| {
        let mut times = Vec::new();
        let mut room = 64.0;
        while room < 620.0 * 1000.0 {
            times.push((room / 1000.0, (room * 16.0) as u64));
            room *= 2.0;
        }
        replaced(&times)
    }),
    ("pool-of-the-most-ever-needed", Truth::Bounded, |c| {
        let (mut most, mut need) = (0.0, 100.0);
        pace(c, 0.0, END, 20.0, |c, at| {
            need += 0.02 * (100.0 - need) + 12.0 * (c.share() - 0.5);
            (need > most).then(|| {
                most = most.max(need.ceil());
                stays(at, 512)
            })?
        })
    }),
    ("arena-chunks", Truth::Bounded, |c| {
        let mut lives: Vec<Life> = pace(c, 0.0, 4.0, 4.0, |_, at| stays(at, 65_536));
        lives.extend(pace(c, 4.0, END, 2.0, |c, at| {
            lives_for(at, 65_536, c.wait(2.0))
        }));
        lives
    }),
    ("sizes-vary-without-growth", Truth::Bounded, |c| {
        let mut lives: Vec<Life> = pace(c, 0.0, END, 30.0, |c, at| {
            stays(at, 16 + (c.share() * 9000.0) as u64)
        });
        let born: Vec<f64> = lives.iter().map(|life| life.born).collect();
        for (life, next) in lives.iter_mut().zip(born.iter().skip(90)) {
            life.dies = *next + c.share();
        }
        lives
    }),
    ("records-ever-rarer", Truth::Bounded, |c| {
        pace(c, 0.0, END, 20.0, |c, at| {
            if c.share() < 1.0 / (1.0 + at) {
                stays(at, 100)
            } else {
                None
            }
        })
    }),
    ("config-reloads", Truth::Bounded, |c| {
        (0..60)
            .flat_map(|load| {
                let from = 11.0 * f64::from(load);
                pace(c, from, from + 0.5, 400.0, |_, at| {
                    Some(Life {
                        born: at,
                        size: 60,
                        dies: from + 11.6,
                    })
                })
            })
            .collect()
    }),
    ("queue-that-backs-up", Truth::Bounded, |c| {
        pace(c, 0.0, END, 40.0, |_, at| {
            lives_for(at, 100, 1.0 + 8.0 * (1.0 + (at / 15.0).sin()))
        })
    }),
    ("big-cache-turned-over", Truth::Bounded, |c| {
        // Full when the trace begins, for the program began long before.
        fifo(pace(c, -900.0, END, 20.0, |_, at| stays(at, 200)), 12_000)
    }),
    ("big-cache-turned-over-at-random", Truth::Bounded, |c| {
        let mut lives: Vec<Life> = pace(c, -3000.0, END, 10.0, |_, at| stays(at, 200));
        for life in &mut lives {
            life.dies = life.born + c.wait(800.0);
        }
        lives
    }),
];
