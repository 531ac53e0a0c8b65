//! A latency and an outcome in 32 bits.

use std::time::Duration;

use super::MAX_LATENCY;
use crate::core::probe_result::{Outcome, Reason, UnknownReason};

/// The low bits hold the outcome, the high ones the latency in µs: packed values sort by latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct PackedResult(u32);

const CODE_BITS: u32 = 6;
const CODES: usize = 1 + Reason::COUNT + UnknownReason::COUNT;
const MAX_MICROS: u32 = MAX_LATENCY.as_micros() as u32;
const _: () = assert!(CODES <= 1 << CODE_BITS && MAX_MICROS < 1 << (32 - CODE_BITS));

impl PackedResult {
    /// Latencies out of bounds are clamped: 1 µs to [`MAX_LATENCY`].
    pub(crate) fn new(latency: Duration, outcome: Outcome) -> Self {
        let code = match outcome {
            Outcome::Success => 0,
            Outcome::Failure(reason) => 1 + reason.index(),
            Outcome::Unknown(reason) => 1 + Reason::COUNT + reason.index(),
        };
        let micros = latency.min(MAX_LATENCY).as_micros() as u32;
        Self(micros.max(1) << CODE_BITS | code as u32)
    }

    /// From 1 to [`MAX_LATENCY`] in µs.
    pub(crate) const fn micros(self) -> u64 {
        (self.0 >> CODE_BITS) as u64
    }

    /// 0 for a success, 1 + the reason's index for a failure, more for unknown.
    pub(crate) const fn code(self) -> usize {
        (self.0 & ((1 << CODE_BITS) - 1)) as usize
    }

    /// The latency.
    pub(crate) const fn latency(self) -> Duration {
        Duration::from_micros(self.micros())
    }

    /// The outcome.
    pub(crate) fn outcome(self) -> Outcome {
        let Some(failure) = self.code().checked_sub(1) else {
            return Outcome::Success;
        };
        let unknown = || UnknownReason::ALL.get(failure - Reason::COUNT);
        match Reason::ALL.get(failure) {
            Some(reason) => Outcome::Failure(*reason),
            // Every code that `new` makes is known; any other would be no evidence.
            None => Outcome::Unknown(*unknown().unwrap_or(&UnknownReason::Late)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        let failure = Reason::ALL.iter().map(|r| Outcome::Failure(*r));
        let unknown = UnknownReason::ALL.iter().map(|r| Outcome::Unknown(*r));
        for outcome in failure.chain(unknown).chain([Outcome::Success]) {
            for micros in [1, 999, 60_000_000] {
                let latency = Duration::from_micros(micros);
                let packed = PackedResult::new(latency, outcome);
                assert_eq!((packed.latency(), packed.outcome()), (latency, outcome));
            }
        }
    }

    #[test]
    fn packed_values_sort_by_latency() {
        let slow_good = PackedResult::new(Duration::from_micros(3), Outcome::Success);
        let fast_bad =
            PackedResult::new(Duration::from_micros(2), Outcome::Failure(Reason::Dialogue));
        assert!(fast_bad < slow_good);
    }
}
