//! When each probe is due: a heap of due times, and no clock.
//!
//! Invariants:
//! - *No drift.* The slots of a probe are the points of a grid: multiples of its interval since the machine's start,
//!   shifted by a hash of its key. They depend neither on when anything started nor on how late it was, and survive a
//!   restart of the program.
//! - *Quick first answer.* The first slot after an addition comes within the shorter of the interval and
//!   [`FIRST_WITHIN`]. It may lie off the grid; the second is then the first point of the grid that is at least half an
//!   interval later, so that the two are between half and one and a half intervals apart and nothing counts as missed.
//! - *Each slot once.* A slot is either started or counted as missed, never both and never twice.
//! - *No burst.* A slot is started only while it is less than the shorter of the interval and [`TOO_LATE`] behind; older
//!   ones are missed. So one call to catch up starts a probe at most once, and after a gap of any length all probes
//!   together start no more than was due within [`TOO_LATE`]; the others go on at their next slot.
//! - *No one is touched* by the change of another.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use crate::core::units::{Moment, ProbeId};

/// Maximum wait for the first slot after an addition, however long the interval.
pub const FIRST_WITHIN: Duration = Duration::from_secs(1);

/// A slot that is later than this is missed: its result would say more about us than about the target.
pub const TOO_LATE: Duration = Duration::from_secs(1);

/// Guards the arithmetic; the configuration does not allow anything near it.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// What should be started, and how often.
#[derive(Debug, Clone)]
pub struct ScheduledSlot<T> {
    /// What tells it from the others, and gives it its place on the grid.
    pub key: ProbeId,
    /// From one due time to the next; below 1 ms counts as 1 ms.
    pub interval: Duration,
    /// Passed to the start.
    pub payload: T,
}

/// A slot whose time has come.
#[derive(Debug, PartialEq, Eq)]
pub struct DueSlot<'a, T> {
    /// What was given with the [`ScheduledSlot`].
    pub payload: &'a T,
    /// When the slot was due: now, or a little earlier.
    pub at: Moment,
    /// Slots of this probe since its last start that could not start.
    pub missed: u64,
}

/// The wanted slots and when each is due next. The time is an argument of every call, and must not run backwards.
///
/// Memory grows with the number of slots, whose bound is that of the configuration.
#[derive(Debug)]
pub struct Timetable<T> {
    entries: Vec<TimetableEntry<T>>,
    /// The due time of each entry, and its place in `entries`. Exactly one element per entry.
    heap: BinaryHeap<Reverse<(Moment, usize)>>,
}

#[derive(Debug)]
struct TimetableEntry<T> {
    key: ProbeId,
    grid: DueTimes,
    due: Moment,
    missed: u64,
    payload: T,
}

impl<T> Default for Timetable<T> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            heap: BinaryHeap::new(),
        }
    }
}

impl<T> Timetable<T> {
    /// Makes `wanted` the whole set of slots.
    ///
    /// A key that stays with its interval keeps its due times and only gets the new payload. One with another interval
    /// starts anew, with what it has missed so far. The first of several slots with the same key counts.
    ///
    /// Takes time in proportion to all slots (the heap is built anew), which is fine for the rare change of a
    /// configuration and leaves nothing stale behind.
    pub fn set(&mut self, now: Moment, wanted: Vec<ScheduledSlot<T>>) {
        let mut before: HashMap<ProbeId, TimetableEntry<T>> = self
            .entries
            .drain(..)
            .map(|entry| (entry.key.clone(), entry))
            .collect();
        let mut taken = std::collections::HashSet::with_capacity(wanted.len());
        for slot in wanted {
            if !taken.insert(slot.key.clone()) {
                continue;
            }
            let grid = DueTimes::of(&slot.key, slot.interval);
            let (due, missed) = match before.remove(&slot.key) {
                Some(entry) if entry.grid == grid => (entry.due, entry.missed),
                Some(entry) => (grid.first_after(now), entry.missed),
                None => (grid.first_after(now), 0),
            };
            self.entries.push(TimetableEntry {
                key: slot.key,
                grid,
                due,
                missed,
                payload: slot.payload,
            });
        }
        self.heap = self
            .entries
            .iter()
            .enumerate()
            .map(|(index, entry)| Reverse((entry.due, index)))
            .collect();
    }

    /// Makes the next slot due at `now`, so that a command need not wait for a first answer; the second is on the grid.
    pub fn begin(&mut self, now: Moment) {
        if let Some(mut top) = self.heap.peek_mut() {
            let Reverse((due, index)) = &mut *top;
            if let Some(entry) = self.entries.get_mut(*index) {
                *due = now.min(*due);
                entry.due = *due;
            }
        }
    }

    /// When the next slot is due; `None` without slots.
    pub fn next_due(&self) -> Option<Moment> {
        self.heap.peek().map(|Reverse((due, _))| *due)
    }

    /// The next slot to start at `now`; `None` when nothing (more) is to be started.
    pub fn pop_due(&mut self, now: Moment) -> Option<DueSlot<'_, T>> {
        loop {
            let mut top = self.heap.peek_mut()?;
            let Reverse((due, index)) = *top;
            if due > now {
                return None;
            }
            let entry = self.entries.get_mut(index)?;
            let (slot, skipped) = entry.grid.newest(due, now);
            let starts = now.since(slot) < entry.grid.interval.min(TOO_LATE);
            entry.missed += skipped + u64::from(!starts);
            entry.due = entry.grid.after(slot);
            *top = Reverse((entry.due, index));
            drop(top);
            if starts {
                // Looked up again: the compiler does not let a borrow out of the loop.
                let entry = self.entries.get_mut(index)?;
                return Some(DueSlot {
                    missed: std::mem::take(&mut entry.missed),
                    payload: &entry.payload,
                    at: slot,
                });
            }
        }
    }
}

/// The due times of one probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DueTimes {
    interval: Duration,
    hash: u64,
}

impl DueTimes {
    fn of(key: &ProbeId, interval: Duration) -> Self {
        Self {
            interval: interval.max(SHORTEST_INTERVAL),
            hash: stable_hash(key),
        }
    }

    /// The first slot of a probe that is new at `now`: strictly later, and within the shorter of the interval and
    /// [`FIRST_WITHIN`]. Where the interval is a whole number of seconds, it fits the grid but for the skipped points.
    fn first_after(self, now: Moment) -> Moment {
        point_from(
            now + Duration::from_nanos(1),
            self.interval.min(FIRST_WITHIN),
            self.hash,
        )
    }

    /// The slot after this one: exactly one interval later, unless `slot` is a first one off the grid.
    fn after(self, slot: Moment) -> Moment {
        point_from(slot + self.interval / 2, self.interval, self.hash)
    }

    /// The newest slot that is not after `now`, given one (`due`) that is not, and how many lie before it from `due` on.
    fn newest(self, due: Moment, now: Moment) -> (Moment, u64) {
        let second = self.after(due);
        if second > now {
            return (due, 0);
        }
        let interval = nanos(self.interval);
        let further = nanos(now.since(second)) / interval;
        let newest = second + Duration::from_nanos(further * interval);
        (newest, further + 1)
    }
}

/// The first moment, `from` or later, that is `hash` modulo `step`.
fn point_from(from: Moment, step: Duration, hash: u64) -> Moment {
    let step = nanos(step).max(1);
    let phase = hash % step;
    // How far `from` is past the last point.
    let finished = (from.nanos() % step + step - phase) % step;
    from + Duration::from_nanos((step - finished) % step)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// FNV-1a over the three names, then mixed so that names which differ in one digit spread as well as any others.
///
/// Fixed for ever: it decides the phase of every probe, which must be the same after an update. (The hash of the
/// standard library gives no such promise.)
fn stable_hash(key: &ProbeId) -> u64 {
    let names = [
        key.namespace.as_str(),
        key.release.as_str(),
        key.probe.as_str(),
    ];
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for name in names {
        // 0xff never occurs in UTF-8, so "a", "bc" and "ab", "c" differ.
        for byte in name.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests;
