//! Results by what they stand for: budgets are of time, and a probe is asked more often while a revision is watched.
//!
//! A result counts as the interval at which it was taken, divided by the probe's own: of thirty a watch takes in the
//! place of one, each is a thirtieth. What a kind of outcome has of fractions is carried on, so that what is counted is
//! whole and never more than one result off. So five minutes of outage spend the same whether or not anybody watches,
//! and a ratio over an hour is not that of the five minutes of it in which there were most results.

use std::time::Duration;

use crate::core::probe_result::Outcome;

/// One, as fractions of results are counted.
const ONE: u64 = 1 << 16;

/// What one result counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResultWeight(u64);

impl Default for ResultWeight {
    fn default() -> Self {
        Self(ONE)
    }
}

impl ResultWeight {
    /// Of a result that is taken at an interval, by a probe that has its own. An interval of zero there is none.
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
    /// Fractions of good, bad and unknown results.
    carried: [u64; 3],
    success: u64,
    failure: u64,
}

impl WeightedCounts {
    /// Counts one; returns how many whole ones that makes.
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

    /// Good and bad ones so far.
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
