//! The only place that reads a clock.
//!
//! Intervals, deadlines and windows use [`now`]: CLOCK_BOOTTIME, which never jumps and, unlike CLOCK_MONOTONIC,
//! continues while the machine sleeps, so that a suspended hour is visible as a gap. Wall-clock time is only for people
//! and other systems.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::core::units::Moment;
use crate::core::units::Time;

/// The monotonic time now.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Moment::after_boot(Duration::new(seconds, nanos))
}

/// Wall-clock time now, in seconds since 1970, for metrics and messages only.
pub fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// A time line that survives restarts: the date is read once, then the monotonic clock is added, so that a date that
/// jumps moves no deadline.
#[derive(Debug, Clone, Copy)]
pub struct Timeline {
    start: Time,
    at: Moment,
}

impl Timeline {
    /// Begins now.
    pub fn start() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            start: Time::default() + since,
            at: now(),
        }
    }

    /// The time now.
    pub fn now(&self) -> Time {
        self.start + now().since(self.at)
    }
}
