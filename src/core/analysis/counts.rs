//! Failures and outcomes of the last ticks.

use serde::{Deserialize, Serialize};

use super::run_length;

/// A ring of `(failures, outcomes)`, one pair a tick, with its sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "T: Copy + PartialEq + Serialize",
    deserialize = "T: Copy + Deserialize<'de>"
))]
pub(super) struct RecentCounts<T> {
    #[serde(with = "run_length")]
    slots: Vec<(T, T)>,
    next: usize,
    filled: usize,
}

/// Counter type of a ring: small for the results of a tick, wide for the requests of a scrape.
pub(super) trait RingCount: Copy + Default + Into<u64> {}
impl RingCount for u16 {}
impl RingCount for u64 {}

impl<T: RingCount> RecentCounts<T> {
    pub(super) fn new(length: u32) -> Self {
        Self {
            slots: vec![(T::default(), T::default()); length.max(1) as usize],
            next: 0,
            filled: 0,
        }
    }

    pub(super) fn push(&mut self, failed: T, total: T) {
        self.slots[self.next] = (failed, total);
        self.next = (self.next + 1) % self.slots.len();
        self.filled = (self.filled + 1).min(self.slots.len());
    }

    /// The sum over the last `length` pairs, or as many as there are.
    pub(super) fn sum(&self, length: u32) -> (u64, u64) {
        let length = (length as usize).min(self.filled);
        // The newest pairs end before `next`; the older ones of a ring that has gone round are at its end.
        let newest = length.min(self.next);
        let older = self.slots.len() - (length - newest);
        let pairs = self.slots[self.next - newest..self.next]
            .iter()
            .chain(&self.slots[older..]);
        pairs.fold((0, 0), |(failed, total), (k, n)| {
            let (k, n): (u64, u64) = ((*k).into(), (*n).into());
            (failed + k, total + n)
        })
    }

    pub(super) fn whole(&self) -> (u64, u64) {
        self.sum(u32::MAX)
    }

    pub(super) fn is_sound(&self) -> bool {
        !self.slots.is_empty() && self.next < self.slots.len() && self.filled <= self.slots.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<(T, T)>()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end where it stands")]
mod tests {
    use super::RecentCounts;

    #[test]
    fn equal_pairs_in_a_row_are_stored_once() {
        let mut recent = RecentCounts::<u16>::new(120);
        recent.push(0, 10);
        recent.push(0, 10);
        recent.push(1, 10);
        let text = serde_json::to_string(&recent).unwrap();
        assert_eq!(
            text,
            r#"{"slots":[[[0,10],2],[1,10],[[0,0],117]],"next":3,"filled":3}"#
        );
        assert_eq!(
            serde_json::from_str::<RecentCounts<u16>>(&text).unwrap(),
            recent
        );
    }

    #[test]
    fn pairs_are_read_as_they_were_stored_at_first() {
        let text = r#"{"slots":[[0,10],[0,10],[1,10]],"next":0,"filled":3}"#;
        let recent = serde_json::from_str::<RecentCounts<u16>>(text).unwrap();
        assert_eq!((recent.slots.len(), recent.whole()), (3, (1, 30)));
    }

    #[test]
    fn a_ring_from_outside_is_bounded() {
        for slots in [
            "[[[0,0],65537]]",
            "[[[0,0],65536],[0,0]]",
            "[[[0,0],18446744073709551615]]",
            "[[0]]",
            "[[[0,0],1,1]]",
            "[[0,65536]]",
        ] {
            let text = format!(r#"{{"slots":{slots},"next":0,"filled":0}}"#);
            assert!(
                serde_json::from_str::<RecentCounts<u16>>(&text).is_err(),
                "{slots}"
            );
        }
    }

    #[test]
    fn only_the_last_pairs_count() {
        let mut recent = RecentCounts::<u16>::new(3);
        assert_eq!(recent.whole(), (0, 0));
        for failed in 0..5 {
            recent.push(failed, 10);
        }
        assert_eq!(recent.whole(), (2 + 3 + 4, 30));
        assert_eq!(recent.sum(1), (4, 10));
        assert_eq!(recent.sum(2), (3 + 4, 20));
        recent.push(5, 10);
        assert_eq!(recent.sum(2), (4 + 5, 20));
    }
}
