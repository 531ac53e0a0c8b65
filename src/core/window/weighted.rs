//! Results weighted by time: a budget is about time, and a probe runs more often during an analysis.
//!
//! A result counts as its interval divided by the probe's own interval: of thirty results in place of one, each counts
//! as a thirtieth. Fractions are carried over for each kind of outcome, so that counts are whole and never off by more
//! than one result. So five minutes of outage spend the same with or without an analysis, and the ratio of an hour is
//! not dominated by the five minutes with the most results.

use std::time::Duration;

use crate::core::probe_result::Outcome;

/// One result, in the unit of the fractions.
const ONE: u64 = 1 << 16;

/// The weight of one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultWeight(u64);

impl Default for ResultWeight {
    fn default() -> Self {
        Self(ONE)
    }
}

impl ResultWeight {
    /// The weight of a result at an interval, for a probe with its own interval. Intervals are never zero.
    pub fn of(interval: Duration, own: Duration) -> Self {
        // Up, so that thirty thirtieths are one.
        let share = (interval.as_nanos() * u128::from(ONE)).div_ceil(own.as_nanos().max(1));
        // The longest watch interval is minutes, and the shortest of a probe some milliseconds.
        Self(u64::try_from(share).unwrap_or(u64::MAX).clamp(1, ONE << 16))
    }
}

/// Counts results by their weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightedCounts {
    /// Carried fractions of successes, failures and unknown results.
    carried: [u64; 3],
    success: u64,
    failure: u64,
}

impl WeightedCounts {
    /// Counts one result; returns how many whole ones that makes.
    pub fn count(&mut self, outcome: Outcome, weight: ResultWeight) -> u32 {
        let kind = match outcome {
            Outcome::Success => 0,
            Outcome::Failure(_) => 1,
            Outcome::Unknown(_) => 2,
        };
        let sum = self.carried[kind] + weight.0;
        self.carried[kind] = sum % ONE;
        let whole = sum / ONE;
        match outcome {
            Outcome::Success => self.success += whole,
            Outcome::Failure(_) => self.failure += whole,
            Outcome::Unknown(_) => {}
        }
        u32::try_from(whole).unwrap_or(u32::MAX)
    }

    /// Successes and failures so far.
    pub const fn counts(&self) -> (u64, u64) {
        (self.success, self.failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::probe_result::Reason;

    #[test]
    fn an_outage_counts_the_same_watched_or_not() {
        let own = Duration::from_secs(30);
        let outage = |interval: u64| {
            let mut weighted = WeightedCounts::default();
            let weight = ResultWeight::of(Duration::from_secs(interval), own);
            let mut whole = 0;
            for _ in 0..300 / interval {
                whole += weighted.count(Outcome::Failure(Reason::Status), weight);
            }
            assert_eq!(weighted.counts(), (0, u64::from(whole)));
            whole
        };
        assert_eq!(outage(30), 10);
        for interval in [1, 2, 3, 5, 10] {
            assert_eq!(outage(interval), 10, "{interval}");
        }
        // One that is asked more often than it is watched stands for more.
        let mut weighted = WeightedCounts::default();
        let weight = ResultWeight::of(Duration::from_secs(1), Duration::from_millis(100));
        assert_eq!(weighted.count(Outcome::Success, weight), 10);
        assert_eq!(weighted.count(Outcome::Success, ResultWeight::default()), 1);
        assert_eq!(weighted.counts(), (11, 0));
    }
}
