//! The recent results of one probe: counts and latencies of a rolling window, in fixed memory.
//!
//! Invariants:
//! - Only time decides what is counted, reads do not: the counts for `now` are the same whether or not the window was
//!   read before. Time only goes forward; a `now` before the newest known moment means that moment.
//! - A window is divided into [`SLOTS`] slots that expire as a whole. So it contains everything of the last 29/30 of
//!   its length, and nothing that is older than its length.
//! - Results may come in any order: each is counted in the slot of its moment, and not at all if that slot has expired.
//! - Memory is taken once, by [`Window::new`]. If more results come than were announced, the oldest leave early: the
//!   window becomes shorter, never larger, and never wrong about what it contains.
//! - Successes and failures are evidence. Unknown results and missed slots are counted, and are in no rate and no
//!   quantile.
//! - Too little data gives `None`, never 0.

#![expect(
    clippy::cast_possible_truncation,
    reason = "each cast is of a remainder, a code or a length that was bounded just before"
)]

mod long_windows;
mod packed;
mod quantile;
mod weighted;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use long_windows::{Counts, LongWindow, LongWindows, StoredWindowsError};
pub(crate) use packed::PackedResult;
pub use quantile::Quantile;
pub use weighted::{ResultWeight, WeightedCounts};

use crate::core::probe_result::{Outcome, Reason};
use crate::core::units::{ErrorRate, Moment};

/// Slots of a window.
pub const SLOTS: usize = 30;

/// Maximum number of results in a window: an hour at ten a second fits, and the raw samples take at most 384 KiB.
pub const MAX_SAMPLES: usize = 65_536;

/// The longest latency; longer ones count as this. No timeout is longer.
pub const MAX_LATENCY: Duration = Duration::from_secs(60);

const MAX_MICROS: u64 = MAX_LATENCY.as_micros() as u64;

/// Below this many samples a quantile is taken from the raw values: exact, and faster than a histogram.
const EXACT_BELOW: usize = 100;

/// Significant digits of the histogram: what it answers is at most 1 % too high.
const DIGITS: u8 = 2;

/// Success, and failure for each reason.
const CODES: usize = 1 + Reason::COUNT;

thread_local! {
    /// Where the samples of expired slots are counted before they are subtracted. One for all windows of a thread.
    static SCRATCH: RefCell<Option<Histogram<u32>>> = RefCell::new(new_histogram());
}

/// What a window counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowCounts {
    /// Results as expected.
    pub success: u64,
    /// Results that were not as expected.
    pub failure: u64,
    /// Results without evidence.
    pub unknown: u64,
    /// Slots of the schedule that could not start.
    pub missed: u64,
}

impl WindowCounts {
    /// The share of failures among successes and failures; `None` without either.
    pub fn error_rate(&self) -> Option<ErrorRate> {
        ErrorRate::of(self.failure, self.success.saturating_add(self.failure))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct WindowSlot {
    /// Successes and failures: how many of `Window::samples` belong to this slot.
    samples: u32,
    unknown: u32,
    missed: u32,
}

/// The rolling window of one probe.
#[derive(Debug)]
pub struct Window {
    span: Duration,
    /// Nanoseconds of a slot; at least 1000, so that no number of a slot is near the end of its type.
    slot_nanos: u64,
    /// The newest slot, counted since the machine's start; slot `n` is in `slots[n % SLOTS]`.
    newest: u64,
    /// The first nanosecond behind the newest slot, so that the common question needs no division.
    newest_ends: u64,
    slots: [WindowSlot; SLOTS],
    /// In the order of their slots; never grows beyond `most` live ones and `slack` stale ones in front of them.
    samples: VecDeque<PackedResult>,
    most: usize,
    /// Samples that have left the counts and are still in `total`. Removing one from a histogram costs as much as
    /// removing many, so they wait for the next read, or until there are more than `slack`.
    stale: usize,
    slack: usize,
    /// How many samples there are of each code.
    by_code: [u32; CODES],
    /// The sums over all slots.
    unknown: u64,
    missed: u64,
    /// All samples, if the window is large enough to need it.
    total: Option<Box<Histogram<u32>>>,
}

impl Window {
    /// An empty window with room for `most` successes and failures (at least 1, at most [`MAX_SAMPLES`]).
    pub fn new(span: Duration, most: usize) -> Self {
        let most = Self::bounded(most);
        let slot_nanos = u64::try_from(span.as_nanos() / SLOTS as u128)
            .unwrap_or(u64::MAX / 2)
            .max(1_000);
        let total = (most >= EXACT_BELOW).then(new_histogram).flatten();
        let slack = if total.is_some() { most / 2 } else { 0 };
        Self {
            span,
            slot_nanos,
            newest: 0,
            newest_ends: slot_nanos,
            slots: [WindowSlot::default(); SLOTS],
            samples: VecDeque::with_capacity(most + slack),
            most,
            stale: 0,
            slack,
            by_code: [0; CODES],
            unknown: 0,
            missed: 0,
            total: total.map(Box::new),
        }
    }

    /// The room that a window needs for a result at each interval and some in flight: a slot more than its length, so
    /// that nothing leaves early because of jitter.
    pub fn room(span: Duration, interval: Duration, in_flight: u32) -> usize {
        let due = span.as_nanos().div_ceil(interval.as_nanos().max(1));
        let due = usize::try_from(due).unwrap_or(MAX_SAMPLES).min(MAX_SAMPLES);
        due + due / SLOTS + in_flight as usize + 1
    }

    /// The room that [`Window::new`] gives for this request.
    pub const fn bounded(most: usize) -> usize {
        if most < 1 {
            1
        } else if most > MAX_SAMPLES {
            MAX_SAMPLES
        } else {
            most
        }
    }

    /// An empty window of another length or room, with the results of this one, each at the start of its slot.
    #[must_use]
    pub fn carried_over(&self, span: Duration, most: usize) -> Self {
        let mut new = Self::new(span, most);
        let mut samples = self.samples.range(self.stale..);
        let oldest = (self.newest + 1).saturating_sub(SLOTS as u64);
        for number in oldest..=self.newest {
            let slot = self.slot(number);
            let at =
                Moment::after_boot(Duration::from_nanos(number.saturating_mul(self.slot_nanos)));
            for &packed in samples.by_ref().take(slot.samples as usize) {
                new.put(at, packed);
            }
            new.add_unknown(at, slot.unknown);
            new.missed(at, slot.missed);
        }
        new
    }

    /// Its length.
    pub const fn span(&self) -> Duration {
        self.span
    }

    /// Its room for successes and failures.
    pub const fn most(&self) -> usize {
        self.most
    }

    /// Counts a result that ended at a moment.
    pub fn record(&mut self, at: Moment, latency: Duration, outcome: Outcome) {
        match outcome {
            Outcome::Success | Outcome::Failure(_) => {
                self.put(at, PackedResult::new(latency, outcome));
            }
            Outcome::Unknown(_) => self.add_unknown(at, 1),
        }
    }

    /// Counts slots of the schedule that could not start.
    pub fn missed(&mut self, at: Moment, count: u32) {
        if let Some(number) = self.slot_at(at) {
            let slot = self.slot_mut(number);
            let before = slot.missed;
            slot.missed = before.saturating_add(count);
            self.missed += u64::from(self.slot(number).missed - before);
        }
    }

    /// Current counts. Takes constant time.
    pub fn counts(&mut self, now: Moment) -> WindowCounts {
        self.advance(now);
        WindowCounts {
            success: u64::from(self.by_code[0]),
            failure: self.failure(),
            unknown: self.unknown,
            missed: self.missed,
        }
    }

    /// Current failures by reason, in the order of [`Reason::ALL`].
    pub fn reasons(&mut self, now: Moment) -> [u32; Reason::COUNT] {
        self.advance(now);
        let mut reasons = [0; Reason::COUNT];
        reasons.copy_from_slice(&self.by_code[1..]);
        reasons
    }

    /// The current share of failures among successes and failures; `None` without either. Takes constant time.
    pub fn error_rate(&mut self, now: Moment) -> Option<ErrorRate> {
        self.advance(now);
        ErrorRate::of(self.failure(), self.live() as u64)
    }

    /// A quantile of the current latencies of successes and failures; `None` with fewer samples than
    /// [`Quantile::needs`]. Below 100 samples exact to the microsecond, from there on up to 1 % too high.
    pub fn quantile(&mut self, quantile: Quantile, now: Moment) -> Option<Duration> {
        self.advance(now);
        let samples = self.live();
        if samples < quantile.needs() {
            return None;
        }
        let micros = match self.complete_total() {
            Some(total) => from_histogram(total, quantile),
            None => self.with_raw(|raw| {
                let (_, packed, _) = raw.select_nth_unstable(quantile.rank(samples) - 1);
                packed.micros()
            }),
        };
        Some(Duration::from_micros(micros))
    }

    /// All of [`Quantile::ALL`] at once, cheaper than one by one.
    pub fn quantiles(&mut self, now: Moment) -> [Option<Duration>; Quantile::ALL.len()] {
        self.advance(now);
        let samples = self.live();
        if samples < Quantile::P50.needs() {
            return [None; Quantile::ALL.len()];
        }
        match self.complete_total() {
            Some(total) => Quantile::ALL.map(|quantile| {
                (samples >= quantile.needs())
                    .then(|| Duration::from_micros(from_histogram(total, quantile)))
            }),
            None => self.with_raw(|raw| {
                raw.sort_unstable();
                Quantile::ALL.map(|quantile| {
                    (samples >= quantile.needs()).then(|| raw[quantile.rank(samples) - 1].latency())
                })
            }),
        }
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.samples.capacity() * size_of::<PackedResult>()
            + self.total.as_ref().map_or(0, |total| {
                size_of::<Histogram<u32>>() + total.distinct_values() * size_of::<u32>()
            })
    }

    /// Current successes and failures.
    fn live(&self) -> usize {
        self.samples.len() - self.stale
    }

    fn failure(&self) -> u64 {
        self.live() as u64 - u64::from(self.by_code[0])
    }

    fn slot(&self, number: u64) -> &WindowSlot {
        &self.slots[(number % SLOTS as u64) as usize]
    }

    fn slot_mut(&mut self, number: u64) -> &mut WindowSlot {
        &mut self.slots[(number % SLOTS as u64) as usize]
    }

    /// The slot of a moment, after advancing to it; `None` if that slot has expired.
    #[inline]
    fn slot_at(&mut self, at: Moment) -> Option<u64> {
        self.advance(at);
        if at.nanos() >= self.newest_ends - self.slot_nanos {
            return Some(self.newest);
        }
        let number = at.nanos() / self.slot_nanos;
        (number + SLOTS as u64 > self.newest).then_some(number)
    }

    fn add_unknown(&mut self, at: Moment, count: u32) {
        if let Some(number) = self.slot_at(at) {
            let slot = self.slot_mut(number);
            let before = slot.unknown;
            slot.unknown = before.saturating_add(count);
            self.unknown += u64::from(self.slot(number).unknown - before);
        }
    }

    #[inline]
    fn put(&mut self, at: Moment, packed: PackedResult) {
        let Some(number) = self.slot_at(at) else {
            return;
        };
        if self.live() == self.most {
            self.drop_oldest();
        }
        if number == self.newest {
            self.samples.push_back(packed);
        } else {
            // Results overlap, so that some end a little before one that was already counted. Their place is in
            // front of the samples of all newer slots, near the end.
            let newer: usize = (number + 1..=self.newest)
                .map(|newer| self.slot(newer).samples as usize)
                .sum();
            self.samples.insert(self.samples.len() - newer, packed);
        }
        self.slot_mut(number).samples += 1;
        self.by_code[packed.code()] += 1;
        if let Some(total) = &mut self.total {
            total.saturating_record(packed.micros());
        }
    }

    /// Advances to a moment: expired slots leave.
    #[inline]
    fn advance(&mut self, to: Moment) {
        if to.nanos() >= self.newest_ends {
            self.rotate(to);
        }
    }

    #[cold]
    fn rotate(&mut self, to: Moment) {
        let number = to.nanos() / self.slot_nanos;
        let mut expired = 0;
        for stale in self.newest + 1..=number.min(self.newest + SLOTS as u64) {
            expired += self.empty(stale);
        }
        self.newest = number;
        self.newest_ends = (number + 1).saturating_mul(self.slot_nanos);
        self.forget(expired);
    }

    /// Empties the place of a slot and returns how many samples at the front belonged to it.
    fn empty(&mut self, number: u64) -> usize {
        let slot = std::mem::take(self.slot_mut(number));
        self.unknown -= u64::from(slot.unknown);
        self.missed -= u64::from(slot.missed);
        slot.samples as usize
    }

    /// Makes room by dropping the oldest samples: from the oldest slot that has some, at most a thirtieth of all at a
    /// time, so that a burst within one slot does not empty the window, and the work is spread.
    #[cold]
    fn drop_oldest(&mut self) {
        let oldest = (self.newest + 1).saturating_sub(SLOTS as u64);
        let full = (oldest..=self.newest).find(|&number| self.slot(number).samples > 0);
        if let Some(number) = full {
            let most = u32::try_from(self.most / SLOTS + 1).unwrap_or(u32::MAX);
            let slot = self.slot_mut(number);
            let leaving = slot.samples.min(most);
            slot.samples -= leaving;
            self.forget(leaving as usize);
        }
    }

    /// Removes this many of the oldest samples from the counts.
    fn forget(&mut self, count: usize) {
        for packed in self.samples.range(self.stale..self.stale + count) {
            self.by_code[packed.code()] -= 1;
        }
        self.stale += count;
        if self.stale > self.slack {
            self.settle();
        }
    }

    /// Removes the stale samples from `total`, permanently.
    fn settle(&mut self) {
        if self.stale == 0 {
            return;
        }
        if let Some(total) = &mut self.total {
            // Going over the histogram for the difference costs as much as counting a few hundred samples anew.
            let worth_it = self.samples.len() - self.stale > self.stale + 256;
            if !(worth_it && subtract(total, self.samples.range(..self.stale))) {
                total.clear();
                count_into(total, self.samples.range(self.stale..));
            }
        }
        self.samples.drain(..self.stale);
        self.stale = 0;
    }

    /// The histogram of exactly the live samples; `None` where they are so few that the raw values answer better.
    fn complete_total(&mut self) -> Option<&Histogram<u32>> {
        if self.live() < EXACT_BELOW {
            return None;
        }
        self.settle();
        self.total.as_deref()
    }

    /// Calls with a copy of the packed samples, which sort by latency. On the stack if there are few.
    fn with_raw<T>(&self, ask: impl FnOnce(&mut [PackedResult]) -> T) -> T {
        let (front, back) = self.samples.as_slices();
        let stale_in_front = self.stale.min(front.len());
        let front = &front[stale_in_front..];
        let back = &back[self.stale - stale_in_front..];
        let mut few = [PackedResult::default(); EXACT_BELOW];
        if let Some(raw) = few.get_mut(..self.live()) {
            raw[..front.len()].copy_from_slice(front);
            raw[front.len()..].copy_from_slice(back);
            return ask(raw);
        }
        ask(&mut [front, back].concat())
    }
}

/// `None` only if the constant bounds were refused; a window then answers from the raw values.
fn new_histogram() -> Option<Histogram<u32>> {
    Histogram::new_with_bounds(1, MAX_MICROS, DIGITS).ok()
}

fn from_histogram(total: &Histogram<u32>, quantile: Quantile) -> u64 {
    // The histogram rounds up to the end of its bucket, which at the upper bound is beyond it.
    let micros = total.value_at_quantile(quantile.per_mille() as f64 / 1000.0);
    micros.min(MAX_MICROS)
}

fn count_into<'a>(histogram: &mut Histogram<u32>, samples: impl Iterator<Item = &'a PackedResult>) {
    for packed in samples {
        histogram.saturating_record(packed.micros());
    }
}

/// Removes samples from a histogram; false if that failed, and it must be counted anew.
fn subtract<'a>(
    total: &mut Histogram<u32>,
    samples: impl Iterator<Item = &'a PackedResult>,
) -> bool {
    SCRATCH.with_borrow_mut(|scratch| {
        let Some(scratch) = scratch else {
            return false;
        };
        scratch.clear();
        count_into(scratch, samples);
        total.subtract(&*scratch).is_ok()
    })
}

#[cfg(test)]
mod tests;
