//! The baseline: measurements of the last known-good revision, in the hour before a new one appears.
//!
//! Invariants:
//! - only successes and failures count, and only while a revision that is not in doubt serves;
//! - time without results does not use up the hour: after a bad revision the hour before it is still there, until it is
//!   a day old;
//! - the memory is fixed: 60 cells of a minute for each probe.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::analysis::{BUCKETS, BaselineHistogram, TickOutcome, bucket};
use crate::core::units::{ClockShift, HasTimes, Time};

/// Minutes that are kept.
const CELLS: usize = 60;

/// Milliseconds of half an hour.
const HALF_HOUR_MS: u64 = 30 * 60 * 1000;

/// Older minutes say nothing about today.
const OLDEST_MINUTES: u64 = 24 * 60;

/// Failures in a row that make a probe "failing when the revision appeared".
const FAILING: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct BaselineCell {
    /// Minutes since 1970.
    minute: u64,
    failed: u32,
    total: u32,
}

/// The baseline of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Baseline {
    cells: VecDeque<BaselineCell>,
    /// Failures in a row at the end, whichever revision they belong to; saturates at three.
    failing: u8,
    #[serde(default, skip_serializing_if = "BaselineLatencies::is_empty")]
    latencies: BaselineLatencies,
}

/// Latencies of successes, in the current half hour and in the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct BaselineLatencies {
    /// Half hours since 1970.
    half_hour: u64,
    /// Answers by the bucket of [`bucket`].
    now: BTreeMap<u16, u64>,
    before: BTreeMap<u16, u64>,
}

impl BaselineLatencies {
    fn is_empty(&self) -> bool {
        self.now.is_empty() && self.before.is_empty()
    }

    fn count(&mut self, latency: Duration, now: Time) {
        let half_hour = now.millis() / HALF_HOUR_MS;
        // A clock that was set back stays in the newest one.
        if half_hour > self.half_hour {
            self.before = std::mem::take(&mut self.now);
            self.half_hour = half_hour;
        }
        let us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        *self.now.entry(bucket(us)).or_default() += 1;
    }

    fn histogram(&self) -> BaselineHistogram {
        let mut sum = self.before.clone();
        for (bucket, count) in &self.now {
            *sum.entry(*bucket).or_default() += count;
        }
        sum.into_iter().collect()
    }

    /// Checks a stored value, which may contain any bucket.
    fn bounded(mut self) -> Self {
        for part in [&mut self.now, &mut self.before] {
            part.retain(|bucket, count| usize::from(*bucket) < BUCKETS && *count < 1 << 40);
        }
        self
    }
}

/// Results of a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LongestGap {
    /// Minutes with results.
    pub minutes: u32,
    /// Failures in them.
    pub failed: u64,
    /// Results in them.
    pub total: u64,
}

impl Baseline {
    /// Counts a result of a revision that is not in doubt.
    pub fn record(&mut self, mark: TickOutcome, now: Time) {
        self.follow(mark);
        let failed = match mark {
            TickOutcome::Success => 0,
            TickOutcome::Failure => 1,
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => return,
        };
        let minute = now.millis() / 60_000;
        match self.cells.back_mut() {
            // A clock that was set back between two runs: the result still counts, in the newest minute.
            Some(cell) if cell.minute >= minute => {
                cell.failed = cell.failed.saturating_add(failed);
                cell.total = cell.total.saturating_add(1);
            }
            Some(_) | None => {
                if self.cells.len() >= CELLS {
                    self.cells.pop_front();
                }
                self.cells.push_back(BaselineCell {
                    minute,
                    failed,
                    total: 1,
                });
            }
        }
    }

    /// Takes a result of a revision under analysis: it does not count for the baseline, but says whether the probe
    /// fails now.
    pub fn follow(&mut self, mark: TickOutcome) {
        match mark {
            TickOutcome::Success => self.failing = 0,
            TickOutcome::Failure => self.failing = (self.failing + 1).min(FAILING),
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => {}
        }
    }

    /// Counts the latency of a success of a revision that is not in doubt.
    pub fn took(&mut self, latency: Duration, now: Time) {
        self.latencies.count(latency, now);
    }

    /// Latencies of successes in the last recorded hour or so.
    pub fn latencies(&self) -> BaselineHistogram {
        self.latencies.histogram()
    }

    /// Failures and results of the last recorded hour.
    pub fn counts(&self, now: Time) -> (u64, u64) {
        let minute = now.millis() / 60_000;
        self.cells
            .iter()
            .filter(|cell| cell.minute + OLDEST_MINUTES >= minute)
            .fold((0, 0), |(failed, total), cell| {
                // A file from outside may hold anything; more failures than results would be no rate.
                let of = u64::from(cell.total);
                (failed + u64::from(cell.failed).min(of), total + of)
            })
    }

    /// Results in the whole minutes after a moment.
    pub fn since(&self, since: Time, now: Time) -> LongestGap {
        let minute = |time: Time| time.millis() / 60_000;
        let whole = self
            .cells
            .iter()
            .filter(|cell| cell.minute > minute(since) && cell.minute < minute(now));
        whole.fold(LongestGap::default(), |sum, cell| LongestGap {
            minutes: sum.minutes + 1,
            failed: sum.failed + u64::from(cell.failed.min(cell.total)),
            total: sum.total + u64::from(cell.total),
        })
    }

    /// Whether the last three results all failed.
    pub fn is_failing(&self) -> bool {
        self.failing >= FAILING
    }

    /// Brings a state that was read from outside within its bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let surplus = self.cells.len().saturating_sub(CELLS);
        self.cells.drain(..surplus);
        self.failing = self.failing.min(FAILING);
        self.latencies = self.latencies.bounded();
        self
    }
}

impl HasTimes for Baseline {
    fn shift(&mut self, by: ClockShift) {
        for cell in &mut self.cells {
            let mut began = Time::from_millis(cell.minute.saturating_mul(60_000));
            began.shift(by);
            cell.minute = began.millis() / 60_000;
        }
        let half_hour = self.latencies.half_hour.saturating_mul(HALF_HOUR_MS);
        let mut began = Time::from_millis(half_hour);
        began.shift(by);
        self.latencies.half_hour = began.millis() / HALF_HOUR_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: u64) -> Time {
        Time::from_millis(1_700_000_000_000) + Duration::from_secs(60 * minutes)
    }

    #[test]
    fn only_the_last_hour_that_was_recorded_counts() {
        let mut baseline = Baseline::default();
        for minute in 0..100 {
            baseline.record(TickOutcome::Success, at(minute));
            baseline.record(
                if minute < 40 {
                    TickOutcome::Failure
                } else {
                    TickOutcome::Unknown
                },
                at(minute),
            );
        }
        assert_eq!(baseline.counts(at(100)), (0, 60));
    }

    #[test]
    fn time_without_records_does_not_use_up_the_hour_until_it_is_a_day_old() {
        let mut baseline = Baseline::default();
        for minute in 0..60 {
            baseline.record(TickOutcome::Success, at(minute));
        }
        assert_eq!(baseline.counts(at(600)), (0, 60));
        assert_eq!(baseline.counts(at(24 * 60 + 29)), (0, 31));
        assert_eq!(baseline.counts(at(3 * 24 * 60)), (0, 0));
    }

    #[test]
    fn only_whole_minutes_with_results_count_since_a_moment() {
        let mut baseline = Baseline::default();
        for minute in 0..10 {
            let mark = if minute == 7 {
                TickOutcome::Unknown
            } else {
                TickOutcome::Success
            };
            baseline.record(mark, at(minute));
            if minute == 8 {
                baseline.record(TickOutcome::Failure, at(minute));
            }
        }
        // The minute of the moment itself, and the one that runs, are not whole.
        let stretch = LongestGap {
            minutes: 5,
            failed: 1,
            total: 6,
        };
        assert_eq!(baseline.since(at(2), at(9)), stretch);
        assert_eq!(baseline.since(at(9), at(9)), LongestGap::default());
    }

    #[test]
    fn three_failures_in_a_row_are_failing_and_unknown_changes_nothing() {
        let mut baseline = Baseline::default();
        for mark in [
            TickOutcome::Failure,
            TickOutcome::Failure,
            TickOutcome::Unknown,
        ] {
            baseline.record(mark, at(0));
        }
        assert!(!baseline.is_failing());
        baseline.follow(TickOutcome::Failure);
        assert!(baseline.is_failing());
        assert_eq!(baseline.counts(at(0)), (2, 2));
        baseline.follow(TickOutcome::Success);
        assert!(!baseline.is_failing());
    }

    #[test]
    fn a_clock_that_was_set_back_loses_nothing() {
        let mut baseline = Baseline::default();
        baseline.record(TickOutcome::Success, at(10));
        baseline.record(TickOutcome::Failure, at(2));
        assert_eq!(baseline.counts(at(10)), (1, 2));
    }
}
