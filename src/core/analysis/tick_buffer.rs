//! Turns results that arrive at any time into one outcome per endpoint and tick.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::TickOutcome;

/// Outcomes of one endpoint that may wait for their tick. More arrive only if results come faster than ticks pass, or
/// if the ticks stop; then the oldest is dropped and counted.
const MAX_WAITING: usize = 64;

/// Outcomes that wait for their tick. A result belongs to the tick in which it arrives; the first in comes out first,
/// and at most one in each tick.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TickBuffer {
    waiting: Vec<VecDeque<TickOutcome>>,
    dropped: u64,
}

impl TickBuffer {
    /// An empty buffer.
    pub fn new(endpoints: usize) -> Self {
        Self {
            waiting: vec![VecDeque::new(); endpoints],
            dropped: 0,
        }
    }

    /// Adds the result of an endpoint; an unknown endpoint is ignored.
    pub fn put(&mut self, endpoint: usize, outcome: TickOutcome) {
        let Some(waiting) = self.waiting.get_mut(endpoint) else {
            return;
        };
        if waiting.len() >= MAX_WAITING {
            waiting.pop_front();
            self.dropped += 1;
        }
        waiting.push_back(outcome);
    }

    /// The outcomes of the tick that ends now: `nothing` for an endpoint without a result.
    pub fn take(&mut self, outcomes: &mut [TickOutcome], nothing: TickOutcome) {
        outcomes.fill(nothing);
        for (outcome, waiting) in outcomes.iter_mut().zip(&mut self.waiting) {
            *outcome = waiting.pop_front().unwrap_or(nothing);
        }
    }

    /// Drops what is waiting: it belongs to a time that is not analyzed.
    pub fn clear(&mut self) {
        self.waiting.iter_mut().for_each(VecDeque::clear);
    }

    /// Outcomes that found no place.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_result_in_a_tick_waits_for_the_next() {
        let mut tick_buffer = TickBuffer::new(2);
        tick_buffer.put(0, TickOutcome::Success);
        tick_buffer.put(0, TickOutcome::Failure);
        tick_buffer.put(7, TickOutcome::Failure);
        let mut outcomes = [TickOutcome::Success; 2];
        tick_buffer.take(&mut outcomes, TickOutcome::Unknown);
        assert_eq!(outcomes, [TickOutcome::Success, TickOutcome::Unknown]);
        tick_buffer.take(&mut outcomes, TickOutcome::Unknown);
        assert_eq!(outcomes, [TickOutcome::Failure, TickOutcome::Unknown]);
        tick_buffer.take(&mut outcomes, TickOutcome::Unknown);
        assert_eq!(outcomes, [TickOutcome::Unknown, TickOutcome::Unknown]);
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        let mut tick_buffer = TickBuffer::new(1);
        for _ in 0..100 {
            tick_buffer.put(0, TickOutcome::Failure);
        }
        assert_eq!(tick_buffer.dropped(), 36);
    }
}
