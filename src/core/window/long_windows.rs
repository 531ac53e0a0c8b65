//! Counts over long windows, for rates and budgets: a minute to 30 days in 2.9 KiB.
//!
//! Every window is the newest 12 to 120 slots of one of five rings. The oldest slot expires as a whole, so a window of
//! `n` slots covers between `(n-1)/n` and all of its length: the short windows are at most 1/12 short, 1 h 1/24, 2 h
//! 1/48, the day 1/48 and 30 days 1/120. Counters saturate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::probe_result::Outcome;
use crate::core::units::{ErrorRate, Moment};

/// A window with counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum LongWindow {
    /// One minute.
    #[serde(rename = "1m")]
    Minute,
    /// Five minutes.
    #[serde(rename = "5m")]
    Minutes5,
    /// Half an hour.
    #[serde(rename = "30m")]
    Minutes30,
    /// One hour.
    #[serde(rename = "1h")]
    Hour,
    /// Two hours.
    #[serde(rename = "2h")]
    Hours2,
    /// Six hours.
    #[serde(rename = "6h")]
    Hours6,
    /// One day.
    #[serde(rename = "1d")]
    Day,
    /// Three days.
    #[serde(rename = "3d")]
    Days3,
    /// Thirty days.
    #[serde(rename = "30d")]
    Days30,
}

impl LongWindow {
    /// Every span, from the shortest.
    pub const ALL: [Self; 9] = [
        Self::Minute,
        Self::Minutes5,
        Self::Minutes30,
        Self::Hour,
        Self::Hours2,
        Self::Hours6,
        Self::Day,
        Self::Days3,
        Self::Days30,
    ];

    /// The value of the `window` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "1m",
            Self::Minutes5 => "5m",
            Self::Minutes30 => "30m",
            Self::Hour => "1h",
            Self::Hours2 => "2h",
            Self::Hours6 => "6h",
            Self::Day => "1d",
            Self::Days3 => "3d",
            Self::Days30 => "30d",
        }
    }

    /// Its length.
    pub const fn length(self) -> Duration {
        let (ring, slots) = self.place();
        Duration::from_secs(RINGS[ring].seconds * slots)
    }

    /// Which ring it is in, and how many of its slots it takes.
    const fn place(self) -> (usize, u64) {
        match self {
            Self::Minute => (0, 12),
            Self::Minutes5 => (1, 12),
            Self::Minutes30 => (2, 12),
            Self::Hour => (2, 24),
            Self::Hours2 => (2, 48),
            Self::Hours6 => (3, 12),
            Self::Day => (3, 48),
            Self::Days3 => (4, 12),
            Self::Days30 => (4, 120),
        }
    }
}

struct CountRing {
    /// The length of a slot.
    seconds: u64,
    slots: u64,
    /// Where its slots start among all.
    start: u64,
}

const RINGS: [CountRing; 5] = {
    const fn ring(seconds: u64, slots: u64, start: u64) -> CountRing {
        CountRing {
            seconds,
            slots,
            start,
        }
    }
    [
        ring(5, 12, 0),
        ring(25, 12, 12),
        ring(150, 48, 24),
        ring(30 * 60, 48, 72),
        ring(6 * 3600, 120, 120),
    ]
};
const ALL_SLOTS: usize = 240;

/// Successes, failures and unknown results of a slot or a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Results as expected.
    #[serde(alias = "good")]
    pub success: u32,
    /// Results that were not as expected.
    #[serde(alias = "bad")]
    pub failure: u32,
    /// Results without evidence.
    #[serde(alias = "void")]
    pub unknown: u32,
}

impl Counts {
    /// The share of failures among successes and failures; `None` without either.
    pub fn error_rate(&self) -> Option<ErrorRate> {
        let failure = u64::from(self.failure);
        ErrorRate::of(failure, failure + u64::from(self.success))
    }

    /// Adds the counts of another.
    pub fn add(&mut self, other: Self) {
        self.success = self.success.saturating_add(other.success);
        self.failure = self.failure.saturating_add(other.failure);
        self.unknown = self.unknown.saturating_add(other.unknown);
    }
}

/// Counts over all of [`LongWindow::ALL`].
///
/// As in a [`Window`](super::Window), only time decides what is counted, results may come in any order, and time only
/// goes forward. The serialized form is bound to the machine's time line: store a moment with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredWindows", into = "StoredWindows")]
pub struct LongWindows {
    /// The newest slot of each ring, counted since the machine's start.
    newest: [u64; RINGS.len()],
    /// The slots of all rings; slot `n` of a ring is at `start + n % slots`.
    slots: Box<[Counts; ALL_SLOTS]>,
}

impl Default for LongWindows {
    fn default() -> Self {
        Self {
            newest: [0; RINGS.len()],
            slots: Box::new([Counts::default(); ALL_SLOTS]),
        }
    }
}

impl LongWindows {
    /// Counts a result that ended at a moment.
    pub fn record(&mut self, at: Moment, outcome: Outcome) {
        self.record_times(at, outcome, 1);
    }

    /// Counts a result several times.
    pub fn record_times(&mut self, at: Moment, outcome: Outcome, times: u32) {
        let one = match outcome {
            Outcome::Success => Counts {
                success: times,
                ..Counts::default()
            },
            Outcome::Failure(_) => Counts {
                failure: times,
                ..Counts::default()
            },
            Outcome::Unknown(_) => Counts {
                unknown: times,
                ..Counts::default()
            },
        };
        let seconds = at.nanos() / 1_000_000_000;
        for (ring, newest) in RINGS.iter().zip(&mut self.newest) {
            let number = seconds / ring.seconds;
            let place = |number: u64| (ring.start + number % ring.slots) as usize;
            for stale in *newest + 1..=number.min(*newest + ring.slots) {
                self.slots[place(stale)] = Counts::default();
            }
            *newest = number.max(*newest);
            if number + ring.slots > *newest {
                self.slots[place(number)].add(one);
            }
        }
    }

    /// The same on another time line, on which all moments are this many seconds later: that of another machine, or of
    /// the same one after a restart. Each ring moves by whole slots.
    #[must_use]
    pub fn moved(&self, seconds: i64) -> Self {
        let mut moved = Self::default();
        for (index, ring) in RINGS.iter().enumerate() {
            let newest = self.newest[index];
            let step = ring.seconds.cast_signed();
            let by = (seconds + seconds.signum() * step / 2) / step;
            for number in newest.saturating_sub(ring.slots - 1)..=newest {
                // What would lie before the machine's start has no place.
                if let Some(to) = number.checked_add_signed(by) {
                    moved.slots[(ring.start + to % ring.slots) as usize] =
                        self.slots[(ring.start + number % ring.slots) as usize];
                    moved.newest[index] = to;
                }
            }
        }
        moved
    }

    /// Counts of a window that ends now.
    pub fn count(&self, span: LongWindow, now: Moment) -> Counts {
        let (index, slots) = span.place();
        self.sum(index, slots, now)
    }

    fn sum(&self, index: usize, slots: u64, now: Moment) -> Counts {
        let (ring, newest) = (&RINGS[index], self.newest[index]);
        let last = (now.nanos() / 1_000_000_000 / ring.seconds).max(newest);
        // Slots behind `newest` were not reached yet and still hold what is older.
        let first = (last + 1).saturating_sub(slots);
        let mut sum = Counts::default();
        for number in first..=newest {
            sum.add(self.slots[(ring.start + number % ring.slots) as usize]);
        }
        sum
    }

    /// Counts of this many whole days that end now; 1 to 30.
    pub fn days(&self, days: u32, now: Moment) -> Counts {
        let ring = RINGS.len() - 1;
        let slots = u64::from(days.clamp(1, 30)) * 86_400 / RINGS[ring].seconds;
        self.sum(ring, slots, now)
    }

    /// [`LongWindows::count`] of every span, in the order of [`LongWindow::ALL`].
    pub fn all(&self, now: Moment) -> [Counts; LongWindow::ALL.len()] {
        LongWindow::ALL.map(|span| self.count(span, now))
    }

    /// Bytes of memory.
    pub const fn bytes(&self) -> usize {
        size_of::<Self>() + size_of::<[Counts; ALL_SLOTS]>()
    }
}

/// How [`LongWindows`] are written down. The layout of the rings is part of the version.
#[derive(Serialize, Deserialize)]
struct StoredWindows {
    version: u8,
    newest: [u64; RINGS.len()],
    slots: Vec<Counts>,
}

const VERSION: u8 = 2;

/// Why stored counts cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredWindowsError {
    /// Written by another version.
    #[error("the counts of the long spans have version {0}, and only version {VERSION} is known")]
    Version(u8),
    /// The number of slots is wrong.
    #[error("the counts of the long spans have {0} slots instead of {ALL_SLOTS}")]
    Slots(usize),
    /// An impossible moment.
    #[error("the counts of the long spans are of an impossible time")]
    Time,
}

impl From<LongWindows> for StoredWindows {
    fn from(long_windows: LongWindows) -> Self {
        Self {
            version: VERSION,
            newest: long_windows.newest,
            slots: long_windows.slots.to_vec(),
        }
    }
}

impl TryFrom<StoredWindows> for LongWindows {
    type Error = StoredWindowsError;

    fn try_from(stored: StoredWindows) -> Result<Self, Self::Error> {
        if stored.version != VERSION {
            return Err(StoredWindowsError::Version(stored.version));
        }
        // The last second that a moment can name, so that no sum of slot numbers can overflow.
        if stored.newest.iter().any(|&n| n > u64::MAX / 1_000_000_000) {
            return Err(StoredWindowsError::Time);
        }
        let found = stored.slots.len();
        let slots = stored.slots.into_boxed_slice().try_into();
        Ok(Self {
            newest: stored.newest,
            slots: slots.map_err(|_| StoredWindowsError::Slots(found))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::probe_result::{Reason, UnknownReason};
    use proptest::prelude::*;

    fn second(seconds: u64) -> Moment {
        Moment::after_boot(Duration::from_secs(seconds))
    }

    #[test]
    fn moved_to_another_time_line_the_counts_are_the_same() {
        let mut long_windows = LongWindows::default();
        for at in 0..20_000 {
            long_windows.record(second(1_000_000 + at), Outcome::Success);
        }
        let day = 86_400;
        for by in [0, day, -day, 30 * day] {
            let moved = long_windows.moved(by);
            let now = |seconds: i64| second(u64::try_from(1_019_999 + seconds).unwrap());
            assert_eq!(moved.all(now(by)), long_windows.all(now(0)), "{by}");
        }
        // A machine that started a minute ago: what came before that is gone, and nothing else is made up.
        let young = long_windows.moved(60 - 1_019_999);
        let kept = young.count(LongWindow::ALL[0], second(60)).success;
        assert!(
            kept > 0
                && kept
                    <= long_windows
                        .count(LongWindow::ALL[0], second(1_019_999))
                        .success,
            "{kept}"
        );
        // Long ago is over.
        let old = long_windows
            .moved(0)
            .count(LongWindow::ALL[0], second(9_000_000));
        assert_eq!(old, Counts::default());
    }

    #[test]
    fn the_rings_lie_end_to_end_and_hold_their_spans() {
        let mut start = 0;
        for ring in RINGS {
            assert_eq!(ring.start, start);
            start += ring.slots;
        }
        assert_eq!(start, ALL_SLOTS as u64);
        for span in LongWindow::ALL {
            let (ring, slots) = span.place();
            assert!(slots >= 12 && slots <= RINGS[ring].slots, "{span:?}");
            let length = humantime::parse_duration(span.as_str());
            assert_eq!(length, Ok(span.length()));
        }
        assert!(LongWindows::default().bytes() <= 3 * 1024);
    }

    #[test]
    fn nothing_counted_is_no_rate() {
        let mut long_windows = LongWindows::default();
        assert_eq!(
            long_windows.count(LongWindow::Day, second(9)).error_rate(),
            None
        );
        long_windows.record(second(9), Outcome::Unknown(UnknownReason::Late));
        let day = long_windows.count(LongWindow::Day, second(9));
        assert_eq!((day.unknown, day.error_rate()), (1, None));
    }

    #[test]
    fn counters_stay_at_their_bound() {
        let mut full = Counts {
            success: u32::MAX,
            ..Counts::default()
        };
        full.add(full);
        assert_eq!(full.success, u32::MAX);
    }

    #[test]
    fn stored_counts_come_back_and_damaged_ones_are_refused() {
        let mut long_windows = LongWindows::default();
        long_windows.record(second(100_000), Outcome::Success);
        let text = serde_json::to_string(&long_windows).unwrap();
        assert_eq!(
            serde_json::from_str::<LongWindows>(&text).unwrap(),
            long_windows
        );
        let check = |from: &str, to: &str, says: &str| {
            let damaged = text.replacen(from, to, 1);
            assert_ne!(damaged, text);
            let error = serde_json::from_str::<LongWindows>(&damaged).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        };
        check("\"version\":2", "\"version\":3", "version 3");
        check(
            "{\"success\":0,\"failure\":0,\"unknown\":0},",
            "",
            "239 slots",
        );
        check(
            "\"newest\":[20000",
            "\"newest\":[18446744073709551615",
            "impossible time",
        );
    }

    proptest! {
        #[test]
        fn spans_agree_with_a_plain_list(
            mut times in prop::collection::vec((0u64..3_000_000, 0u8..3), 0..120),
            gap in 0u64..100_000, early in 0usize..5,
        ) {
            times.sort_by_key(|t| t.0);
            // Let some come late, as overlapping results do.
            for i in 0..times.len().saturating_sub(early) {
                if i % 3 == 0 {
                    times.swap(i, i + early);
                }
            }
            let mut long_windows = LongWindows::default();
            let mut now = 0;
            for &(at, kind) in &times {
                let outcome = [
                    Outcome::Success,
                    Outcome::Failure(Reason::Status),
                    Outcome::Unknown(UnknownReason::Late),
                ][usize::from(kind)];
                long_windows.record(second(at), outcome);
                now = now.max(at);
            }
            now += gap;
            for span in LongWindow::ALL {
                let (ring, slots) = span.place();
                let width = RINGS[ring].seconds;
                let listed = |kind: u8| {
                    let counted = |t: &&(u64, u8)| t.1 == kind && t.0 / width + slots > now / width;
                    times.iter().filter(counted).count() as u32
                };
                let expected = Counts { success: listed(0), failure: listed(1), unknown: listed(2) };
                prop_assert_eq!(long_windows.count(span, second(now)), expected, "{:?}", span);
            }
        }
    }
}
