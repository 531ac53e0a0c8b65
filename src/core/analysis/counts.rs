//! Failures and outcomes of the last so many ticks.

use serde::{Deserialize, Serialize};

use super::run_length;

/// Bits that a number may have. All divide a word, so that no number lies across two.
const WIDTHS: [u8; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The width of rings that were stored before there were several.
const WIDTH_BEFORE: u8 = 16;

/// A ring of `(failures, outcomes)`, one pair a tick. The numbers lie in as few bits as the largest needs: most are 0 or
/// 1, and a state has many rings.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(into = "StoredCounts", try_from = "StoredCounts")]
pub(super) struct RecentCounts {
    words: Box<[u64]>,
    length: u16,
    next: u16,
    width: u8,
}

/// A ring as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredCounts {
    #[serde(with = "run_length")]
    slots: Vec<(u64, u64)>,
    next: usize,
    /// Bits of a number.
    bits: Option<u8>,
}

impl RecentCounts {
    /// A ring of `length` pairs (1 to 65 535), with room for numbers up to `most`.
    pub(super) fn new(length: u32, most: u64) -> Self {
        let length = u16::try_from(length.max(1)).unwrap_or(u16::MAX);
        Self::of_width(length, width_of(most))
    }

    fn of_width(length: u16, width: u8) -> Self {
        let bits = 2 * usize::from(length) * usize::from(width);
        Self {
            words: vec![0; bits.div_ceil(64)].into(),
            length,
            next: 0,
            width,
        }
    }

    /// Adds a pair. Numbers above the ring's `most` are kept as well, in a ring that is made wider: the only allocation of
    /// a tick, where a stream asks more pods at once than the daemon does.
    pub(super) fn push(&mut self, failed: impl Into<u64>, total: impl Into<u64>) {
        let (failed, total) = (failed.into(), total.into());
        if (failed | total) & !self.mask() != 0 {
            self.widen(failed | total);
        }
        self.set(self.next, (failed, total));
        self.next = if self.next + 1 == self.length {
            0
        } else {
            self.next + 1
        };
    }

    /// The sum over the last `length` pairs, or as many as there are.
    pub(super) fn sum(&self, length: u32) -> (u64, u64) {
        let length = u16::try_from(length).map_or(self.length, |length| length.min(self.length));
        // The newest pairs end before `next`; the older ones of a ring that has gone round are at its end. Pairs that
        // were never written are 0.
        let newest = length.min(self.next);
        let older = self.length - (length - newest);
        let pairs = (self.next - newest..self.next).chain(older..self.length);
        pairs.fold((0, 0), |(failed, total), at| {
            let (k, n) = self.pair(at);
            (failed.wrapping_add(k), total.wrapping_add(n))
        })
    }

    pub(super) fn whole(&self) -> (u64, u64) {
        self.sum(u32::MAX)
    }

    /// Whether any of the pairs has failures; quicker than their sum.
    pub(super) fn has_failures(&self) -> bool {
        if self.width == 64 {
            return self.words.iter().step_by(2).any(|failed| *failed > 0);
        }
        // Every second number of a word.
        let failures = u64::MAX / ((1 << self.width) + 1);
        self.words.iter().any(|word| word & failures != 0)
    }

    fn mask(&self) -> u64 {
        u64::MAX >> (64 - self.width)
    }

    fn pair(&self, at: u16) -> (u64, u64) {
        let place = 2 * usize::from(at);
        (self.number(place), self.number(place + 1))
    }

    fn number(&self, place: usize) -> u64 {
        let bit = place * usize::from(self.width);
        (self.words[bit / 64] >> (bit % 64)) & self.mask()
    }

    fn set(&mut self, at: u16, (failed, total): (u64, u64)) {
        let mask = self.mask();
        let place = 2 * usize::from(at);
        for (place, number) in [(place, failed), (place + 1, total)] {
            let bit = place * usize::from(self.width);
            let word = &mut self.words[bit / 64];
            *word = (*word & !(mask << (bit % 64))) | (number << (bit % 64));
        }
    }

    fn widen(&mut self, most: u64) {
        let mut wider = Self::of_width(self.length, width_of(most));
        wider.next = self.next;
        for at in 0..self.length {
            wider.set(at, self.pair(at));
        }
        *self = wider;
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.words)
    }
}

/// Rings with the same pairs are the same, however wide.
impl PartialEq for RecentCounts {
    fn eq(&self, other: &Self) -> bool {
        self.next == other.next
            && self.length == other.length
            && (0..self.length).all(|at| self.pair(at) == other.pair(at))
    }
}

impl From<RecentCounts> for StoredCounts {
    fn from(ring: RecentCounts) -> Self {
        Self {
            slots: (0..ring.length).map(|at| ring.pair(at)).collect(),
            next: usize::from(ring.next),
            bits: Some(ring.width),
        }
    }
}

impl TryFrom<StoredCounts> for RecentCounts {
    type Error = String;

    fn try_from(stored: StoredCounts) -> Result<Self, String> {
        let StoredCounts { slots, next, bits } = stored;
        let length = u16::try_from(slots.len())
            .ok()
            .filter(|length| *length > 0)
            .ok_or_else(|| format!("a ring has {} pairs, but must have 1 to 65535", slots.len()))?;
        let next = u16::try_from(next)
            .ok()
            .filter(|next| *next < length)
            .ok_or_else(|| format!("a ring of {length} pairs goes on at {next}"))?;
        let all = slots.iter().fold(0, |all, (k, n)| all | k | n);
        let width = bits.unwrap_or_else(|| width_of(all).max(WIDTH_BEFORE));
        if !WIDTHS.contains(&width) || width < width_of(all) {
            return Err(format!("a ring has numbers of {width} bits"));
        }
        let mut ring = Self::of_width(length, width);
        for (at, pair) in (0..length).zip(slots) {
            ring.set(at, pair);
        }
        ring.next = next;
        Ok(ring)
    }
}

/// The least width that has room for a number.
fn width_of(most: u64) -> u8 {
    let needed = 64 - most.leading_zeros();
    let mut fitting = WIDTHS.into_iter();
    let width = fitting.find(|width| u32::from(*width) >= needed);
    width.unwrap_or(64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end where it stands")]
mod tests {
    use super::{RecentCounts, width_of};

    #[test]
    fn equal_pairs_in_a_row_are_stored_once() {
        let mut recent = RecentCounts::new(120, 10);
        recent.push(0_u16, 10_u16);
        recent.push(0_u16, 10_u16);
        recent.push(1_u16, 10_u16);
        let text = serde_json::to_string(&recent).unwrap();
        assert_eq!(
            text,
            r#"{"slots":[[[0,10],2],[1,10],[[0,0],117]],"next":3,"bits":4}"#
        );
        assert_eq!(serde_json::from_str::<RecentCounts>(&text).unwrap(), recent);
    }

    #[test]
    fn pairs_are_read_as_they_were_stored_at_first() {
        let text = r#"{"slots":[[0,10],[0,10],[1,10]],"next":0,"filled":3}"#;
        let recent = serde_json::from_str::<RecentCounts>(text).unwrap();
        assert_eq!((recent.length, recent.whole()), (3, (1, 30)));
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
            "[]",
        ] {
            let text = format!(r#"{{"slots":{slots},"next":0,"filled":0,"bits":16}}"#);
            assert!(
                serde_json::from_str::<RecentCounts>(&text).is_err(),
                "{slots}"
            );
        }
    }

    #[test]
    fn only_the_last_pairs_count() {
        let mut recent = RecentCounts::new(3, 10);
        assert_eq!(recent.whole(), (0, 0));
        for failed in 0..5_u16 {
            recent.push(failed, 10_u16);
        }
        assert_eq!(recent.whole(), (2 + 3 + 4, 30));
        assert_eq!(recent.sum(1), (4, 10));
        assert_eq!(recent.sum(2), (3 + 4, 20));
        recent.push(5_u16, 10_u16);
        assert_eq!(recent.sum(2), (4 + 5, 20));
    }

    #[test]
    fn a_ring_goes_on_within_itself_and_in_a_known_width() {
        for end in [
            r#""next":1,"bits":1"#,
            r#""next":0,"bits":3"#,
            r#""next":0,"bits":0"#,
        ] {
            let text = format!(r#"{{"slots":[[0,1]],{end}}}"#);
            assert!(
                serde_json::from_str::<RecentCounts>(&text).is_err(),
                "{end}"
            );
        }
    }

    #[test]
    fn a_number_takes_as_few_bits_as_it_needs() {
        for (most, width) in [
            (0, 1),
            (1, 1),
            (2, 2),
            (5, 4),
            (20, 8),
            (256, 16),
            (65_536, 32),
            (u64::MAX, 64),
        ] {
            assert_eq!(width_of(most), width, "{most}");
        }
    }

    #[test]
    fn a_larger_number_makes_the_ring_wider_and_loses_nothing() {
        let mut recent = RecentCounts::new(100, 1);
        let mut wide = RecentCounts::new(100, u64::MAX);
        let numbers = [1_u64, 0, 3, 200, 7, 65_536, 2, 1 << 40, 5];
        for (at, number) in (0..).zip(numbers.into_iter().cycle().take(150)) {
            let failed = if at % 3 == 0 { number / 2 } else { 0 };
            recent.push(failed, number);
            wide.push(failed, number);
            for length in [1, 7, 100, 1000] {
                assert_eq!(recent.sum(length), wide.sum(length), "{at} {length}");
            }
            assert_eq!(recent.has_failures(), recent.whole().0 > 0);
            assert_eq!(wide.has_failures(), wide.whole().0 > 0);
        }
        assert_eq!(recent, wide);
    }
}
