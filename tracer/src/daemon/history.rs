//! Every process's memory over time, in a fixed amount of memory: a process has a fixed number of points, and when they are
//! full, every other one is dropped and new ones come half as often. A day fits as a minute does.

use std::collections::BTreeMap;

use crate::report::{MemoryPoint, Process, Report};

/// Points of a process: as many as a chart can show.
const POINTS: usize = 256;

/// Processes that have points. With [`POINTS`] of 24 bytes these are 3 MiB.
const PROCESSES: usize = 512;

/// A process's points.
#[derive(Debug)]
struct Series {
    points: Vec<MemoryPoint>,
    /// A point is kept when this much time has gone by since the last, seconds.
    spacing_s: f64,
    last_seen_s: f64,
}

/// The points of all processes.
#[derive(Debug, Default)]
pub(super) struct History {
    series: BTreeMap<(u32, u32), Series>,
}

impl History {
    /// Adds a report's figures.
    pub(super) fn note(&mut self, report: &Report) {
        let at_s = report.duration_s;
        for process in &report.processes {
            let key = (process.pid, process.incarnation);
            if process.exited && !self.series.contains_key(&key) {
                continue;
            }
            let series = self.series.entry(key).or_insert_with(|| Series {
                points: Vec::new(),
                spacing_s: 0.0,
                last_seen_s: at_s,
            });
            if process.exited {
                continue;
            }
            series.last_seen_s = at_s;
            series.add(MemoryPoint {
                at_s,
                rss_bytes: process.rss_bytes,
                inuse_bytes: process.inuse_bytes,
            });
        }
        while self.series.len() > PROCESSES {
            // Whoever has not been seen for longest; of those that run, who holds least.
            let least = self
                .series
                .iter()
                .min_by(|(_, one), (_, other)| {
                    let held = |series: &Series| series.points.last().map(|point| point.rss_bytes);
                    one.last_seen_s
                        .total_cmp(&other.last_seen_s)
                        .then_with(|| held(one).cmp(&held(other)))
                })
                .map(|(key, _)| *key);
            let Some(key) = least else {
                return;
            };
            self.series.remove(&key);
        }
    }

    /// Gives every process its points.
    pub(super) fn fill(&self, processes: &mut [Process]) {
        for process in processes {
            if let Some(series) = self.series.get(&(process.pid, process.incarnation)) {
                process.memory_over_time.clone_from(&series.points);
            }
        }
    }
}

impl Series {
    fn add(&mut self, point: MemoryPoint) {
        if let Some(last) = self.points.last()
            && point.at_s - last.at_s < self.spacing_s
        {
            return;
        }
        if self.points.len() >= POINTS {
            let mut keep = false;
            self.points.retain(|_| {
                keep = !keep;
                keep
            });
            let span = point.at_s - self.points.first().map_or(0.0, |point| point.at_s);
            self.spacing_s = span / POINTS as f64 * 2.0;
        }
        self.points.push(point);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a failing test may panic")]

    use super::{History, POINTS, PROCESSES};
    use crate::report::{Process, Report, ReportParts};

    fn report(at_s: f64, pids: std::ops::Range<u32>) -> Report {
        Report::new(ReportParts {
            duration_s: at_s,
            processes: pids
                .map(|pid| Process {
                    pid,
                    rss_bytes: at_s as u64,
                    ..Process::default()
                })
                .collect(),
            ..ReportParts::default()
        })
    }

    #[test]
    fn a_day_is_kept_from_end_to_end_in_the_same_memory() {
        let mut history = History::default();
        // A report every five seconds for 24 hours.
        for step in 0..17_280 {
            history.note(&report(f64::from(step) * 5.0, 1..4));
            let series = &history.series[&(1, 0)];
            assert!(series.points.len() <= POINTS);
            assert!(series.points.capacity() <= POINTS);
        }
        let points = &history.series[&(1, 0)].points;
        assert!(points.len() > POINTS / 3, "{}", points.len());
        assert!(points[0].at_s < 1.0);
        assert!(points[points.len() - 1].at_s > 85_000.0);
        // Evenly: no gap is three times another.
        let gaps: Vec<f64> = points
            .windows(2)
            .map(|pair| pair[1].at_s - pair[0].at_s)
            .collect();
        let least = gaps.iter().copied().fold(f64::MAX, f64::min);
        let most = gaps.iter().copied().fold(0.0, f64::max);
        assert!(most < least * 3.0, "{least} to {most}");
    }

    #[test]
    fn processes_that_are_gone_make_room() {
        let mut history = History::default();
        for step in 0..40 {
            let first = step * 100;
            history.note(&report(f64::from(step), first..first + 100));
            assert!(history.series.len() <= PROCESSES);
        }
        assert!(history.series.contains_key(&(3999, 0)));
        assert!(!history.series.contains_key(&(0, 0)));
    }
}
