//! Ids and units, one type each, so that arithmetic which makes no sense does not compile.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A point on the monotonic time line, in nanoseconds since the machine started.
///
/// Good for intervals and deadlines within one run of the machine; says nothing about the date. The ground floor
/// receives moments as arguments and never asks for one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Moment(u64);

impl Moment {
    /// The moment at this time after the machine's start; saturates after 584 years.
    pub fn after_boot(since: Duration) -> Self {
        Self(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }

    /// Nanoseconds since the machine's start.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Time passed since an earlier moment; zero when that one is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// A point in time that survives a restart: milliseconds since 1970, running evenly within one run of the program.
///
/// The date is read once, at the start; from then on the monotonic clock is added, so that a date that jumps moves no
/// deadline.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The time this many milliseconds after 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// Seconds since 1970.
    pub fn unix_seconds(self) -> f64 {
        self.0 as f64 / 1e3
    }

    /// Time passed since an earlier one; zero when that one is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// The shift from the clock of the process that wrote a time to ours.
///
/// Clocks of two machines agree only as far as they are synchronized. A deadline of another machine could be far too
/// late here, or already over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClockShift(i64);

impl ClockShift {
    /// What moves `from` to `to`.
    pub fn between(from: Time, to: Time) -> Self {
        let millis = i128::from(to.0) - i128::from(from.0);
        Self(i64::try_from(millis).unwrap_or(if millis < 0 { i64::MIN } else { i64::MAX }))
    }

    /// How far, in whichever direction.
    pub const fn span(self) -> Duration {
        Duration::from_millis(self.0.unsigned_abs())
    }

    /// The same in seconds; negative towards earlier.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e3
    }
}

/// Contains times that another machine may have written.
pub trait HasTimes {
    /// Moves all of them, as if our clock had been read.
    fn shift(&mut self, by: ClockShift);
}

impl HasTimes for Time {
    fn shift(&mut self, by: ClockShift) {
        self.0 = self.0.saturating_add_signed(by.0);
    }
}

impl<T: HasTimes> HasTimes for Option<T> {
    fn shift(&mut self, by: ClockShift) {
        if let Some(one) = self {
            one.shift(by);
        }
    }
}

impl<T: HasTimes> HasTimes for [T] {
    fn shift(&mut self, by: ClockShift) {
        for one in self {
            one.shift(by);
        }
    }
}

/// The number of a revision of a release, as Helm counts them: from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u32);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A share of failed results, from 0.0 to 1.0.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct ErrorRate(f64);

impl ErrorRate {
    /// `None` without results (no data is not the same as no errors) and when more failed than were taken.
    pub fn of(failed: u64, total: u64) -> Option<Self> {
        (total > 0 && failed <= total).then(|| Self(failed as f64 / total as f64))
    }

    /// The share as a number from 0.0 to 1.0.
    pub const fn ratio(self) -> f64 {
        self.0
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes a text that the configuration reader has already checked.
            pub fn new(name: impl Into<Box<str>>) -> Self {
                Self(name.into())
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type! {
    /// The name of a Helm release.
    ReleaseName
}
name_type! {
    /// A Kubernetes namespace.
    Namespace
}
name_type! {
    /// The name of a probe, unique within its release.
    ProbeName
}

/// What tells one probe from every other: the label set of its series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ProbeId {
    /// The namespace of the release.
    pub namespace: Namespace,
    /// The release that the probe belongs to.
    pub release: ReleaseName,
    /// The probe's own name.
    pub probe: ProbeName,
}

impl ProbeId {
    /// Whether it belongs to no release, as a dependency does.
    pub fn is_dependency(&self) -> bool {
        self.release.as_str().is_empty()
    }
}

impl fmt::Display for ProbeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_dependency() {
            return write!(f, "dependency/{}", self.probe);
        }
        write!(f, "{}/{}/{}", self.namespace, self.release, self.probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_results_is_not_an_error_rate_of_zero() {
        assert_eq!(ErrorRate::of(0, 0), None);
        assert_eq!(ErrorRate::of(2, 1), None);
        assert_eq!(ErrorRate::of(1, 4).map(ErrorRate::ratio), Some(0.25));
    }

    #[test]
    fn a_shift_moves_one_clock_to_another_in_both_directions() {
        let (early, late) = (Time::from_millis(5_000), Time::from_millis(2_405_000));
        for (from, to) in [(early, late), (late, early), (early, early)] {
            let shift = ClockShift::between(from, to);
            let mut moved = from;
            moved.shift(shift);
            assert_eq!(moved, to);
            assert_eq!(shift.span(), from.since(to).max(to.since(from)));
        }
        let mut first = Time::default();
        first.shift(ClockShift::between(late, early));
        assert_eq!(first, Time::default(), "nothing is before 1970");
        let all = ClockShift::between(Time::default(), Time::from_millis(u64::MAX));
        assert_eq!(all.span(), Duration::from_millis(i64::MAX.unsigned_abs()));
    }

    #[test]
    fn time_before_a_moment_is_zero_and_not_a_panic() {
        let early = Moment::after_boot(Duration::from_secs(1));
        let late = early + Duration::from_secs(2);
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(5), Moment::default());
    }
}
