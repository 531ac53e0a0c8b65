//! Rollout state machine: `(state, input, now) → (state, commands)`. Pure.
//!
//! ```text
//!              Seen            RolloutComplete        Healthy, Inconclusive
//!   Idle ───────────▶ RollingOut ───────▶ Analyzing ─────────────────────────▶ Idle
//!                           │                 │ Regressed
//!                           └────────┬────────┘
//!                                    ▼ Ready        Executed, RolloutComplete    Recovered
//!                                Preflight ──▶ RollingBack ──▶ Verifying ──────────▶ Idle
//! ```
//!
//! Invariants, each held by a property test over any order of inputs:
//! - a revision is rolled back at most once, and a revision that a rollback made never;
//! - unless a person orders it, nothing is rolled back in any mode but `enforce`, nor without a verdict on the very
//!   revision that is the newest, nor while our own trouble blinds us, nor more often in 24 h than the settings allow;
//! - every rollout ends: each phase has a deadline, and time alone leads back to `Idle`. When a phase is resumed after
//!   a restart, its time starts anew;
//! - a revision with the contents that serve is not analyzed, and nothing starts anew for contents that are under
//!   analysis or were rejected (`same_contents.rs`);
//! - a release that comes back after an absence is not analyzed until its start is over (`start.rs`).
//!
//! A revision that passed bakes while the release is idle, and an alarm of its bake may reject it (`bake.rs`).
//!
//! Each transition leaves a [`LogEntry`]. The limits of the runbook are measured; exceeding one is an entry as well.

mod bake;
mod candidate;
mod deadlines;
mod judgement;
mod messages;
mod rollback_order;
mod rolling_back;
mod same_contents;
mod start;
mod transition;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use candidate::{
    Candidate, FinishedRollout, NOT_ROLLED_OUT, ROLLED_OUT_LATE, RevisionOrigin, RollbackAttempt,
    RolloutOutcome, StepName, StepTiming,
};
pub use messages::{Appearance, LogEntry, RolloutCommand, RolloutInput};
pub use rollback_order::{BY_HAND, OrderKey, OrderRecord};
use start::StartupPhase;

use crate::core::units::{ClockShift, HasTimes, Revision, Time};

/// Whether a release is analyzed, and whether it is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Analyze and roll back.
    Enforce,
    /// Analyze, and report what would have been done.
    #[default]
    Observe,
    /// Probe only, without analyses.
    Off,
}

impl Mode {
    /// Whichever of both does less.
    #[must_use]
    pub const fn lesser(self, other: Self) -> Self {
        match (self, other) {
            (Self::Off, _) | (_, Self::Off) => Self::Off,
            (Self::Observe, _) | (_, Self::Observe) => Self::Observe,
            (Self::Enforce, Self::Enforce) => Self::Enforce,
        }
    }

    /// As it is written in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }
}

/// Limits of rollbacks of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutLimits {
    /// Whether to act.
    pub mode: Mode,
    /// Rollbacks in 24 h, at most; 0 to 100.
    pub max_per_day: u32,
    /// The length of the analysis.
    pub watch: Duration,
    /// The phase of settling ends after this at the latest; the analysis goes on.
    pub settle_cap: Duration,
}

/// Where a release stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "name", content = "case", rename_all = "snake_case")]
pub enum RolloutPhase {
    /// There is no such release.
    #[default]
    #[serde(alias = "absent")]
    NotInstalled,
    /// No revision is under analysis.
    #[serde(alias = "steady")]
    Idle,
    /// A new revision is analyzed during its rollout.
    #[serde(alias = "settling")]
    RollingOut(Box<Candidate>),
    /// A new revision is analyzed; its rollout is complete.
    #[serde(alias = "watching")]
    Analyzing(Box<Candidate>),
    /// A rollback was decided; the target is chosen and checked.
    Preflight(Box<Candidate>),
    /// The rollback is carried out.
    #[serde(alias = "turning_back")]
    RollingBack(Box<Candidate>),
    /// The rollback is done; the probes that rejected the revision must recover.
    Verifying(Box<Candidate>),
}

impl RolloutPhase {
    /// As in metrics, the API and events.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NotInstalled => "not_installed",
            Self::Idle => "idle",
            Self::RollingOut(_) => "rolling_out",
            Self::Analyzing(_) => "analyzing",
            Self::Preflight(_) => "preflight",
            Self::RollingBack(_) => "rolling_back",
            Self::Verifying(_) => "verifying",
        }
    }

    /// Whether something is being done about a verdict.
    const fn acts(&self) -> bool {
        match self {
            Self::Preflight(_) | Self::RollingBack(_) | Self::Verifying(_) => true,
            Self::NotInstalled | Self::Idle | Self::RollingOut(_) | Self::Analyzing(_) => false,
        }
    }

    /// The revision at hand, and what is known of it.
    pub fn candidate(&self) -> Option<&Candidate> {
        match self {
            Self::NotInstalled | Self::Idle => None,
            Self::RollingOut(candidate)
            | Self::Analyzing(candidate)
            | Self::Preflight(candidate)
            | Self::RollingBack(candidate)
            | Self::Verifying(candidate) => Some(candidate),
        }
    }

    fn candidate_mut(&mut self) -> Option<&mut Candidate> {
        match self {
            Self::NotInstalled | Self::Idle => None,
            Self::RollingOut(candidate)
            | Self::Analyzing(candidate)
            | Self::Preflight(candidate)
            | Self::RollingBack(candidate)
            | Self::Verifying(candidate) => Some(candidate),
        }
    }
}

/// Rollbacks and finished rollouts that are remembered.
const MAX_PAST: usize = 50;

/// Entries that may wait to be taken; a step makes at most a handful.
const MAX_ENTRIES: usize = 100;

/// Rollbacks older than this do not count for the limit.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The state of one release; see the module for what holds of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    phase: RolloutPhase,
    since: Time,
    limits: RolloutLimits,
    /// How a person rolls it back by hand.
    #[serde(skip)]
    by_hand: ByHand,
    /// The newest revision that was seen.
    newest: Option<Revision>,
    /// Whether it was seen that there is no such release: then a first revision is a new one.
    #[serde(default)]
    is_absent: bool,
    /// The release has come back after an absence, and its start is not over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<StartupPhase>,
    /// Revisions that were rolled back, and when.
    #[serde(alias = "turned_back")]
    rolled_back: Vec<(Revision, Time)>,
    held: bool,
    blind: bool,
    #[serde(alias = "past")]
    finished: Vec<FinishedRollout>,
    #[serde(skip)]
    entries: Vec<LogEntry>,
    #[serde(skip)]
    clock: PhaseClock,
}

/// Words of the caller, which knows the commands.
#[derive(Clone, Default)]
struct ByHand(Option<Arc<dyn Fn(Option<Revision>) -> String + Send + Sync>>);

impl ByHand {
    fn words(&self, target: Option<Revision>) -> Option<String> {
        self.0.as_ref().map(|words| words(target))
    }
}

impl fmt::Debug for ByHand {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("ByHand")
            .field(&self.0.is_some())
            .finish()
    }
}

/// A state that was read again is the same state.
impl PartialEq for ByHand {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for ByHand {}

/// Since when the time of a phase counts. While nobody of us ran, a rollback may have gone on, and its record must be
/// looked at before it is given up.
#[derive(Debug, Clone, Copy, Default)]
enum PhaseClock {
    /// The state was read from outside, and is not gone on with yet: no time runs out.
    #[default]
    Stands,
    /// It is gone on with; time begins with the next step.
    Begins,
    /// Since the phase began, or since then if that is later.
    Runs(Option<Time>),
}

/// A state that was read again is the same state.
impl PartialEq for PhaseClock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PhaseClock {}

impl Rollout {
    /// Whether it is known that there is no such release.
    pub const fn is_absent(&self) -> bool {
        self.is_absent
    }

    /// A release of which nothing is known yet.
    pub fn new(limits: RolloutLimits, now: Time) -> Self {
        Self {
            phase: RolloutPhase::NotInstalled,
            since: now,
            limits,
            by_hand: ByHand::default(),
            newest: None,
            is_absent: false,
            start: None,
            rolled_back: Vec::new(),
            held: false,
            blind: false,
            finished: Vec::new(),
            entries: Vec::new(),
            clock: PhaseClock::Runs(None),
        }
    }

    /// Where the release stands.
    pub const fn phase(&self) -> &RolloutPhase {
        &self.phase
    }

    /// Since when.
    pub const fn since(&self) -> Time {
        self.since
    }

    /// The limits in force.
    pub const fn limits(&self) -> &RolloutLimits {
        &self.limits
    }

    /// Sets new limits. They apply at once, except for the length of a running analysis.
    pub const fn set_limits(&mut self, limits: RolloutLimits) {
        self.limits = limits;
    }

    /// Sets the words for how a person rolls the release back by hand: to a revision, or to one that they choose. They
    /// are added to what is said where a verdict may not roll back.
    pub fn set_by_hand(
        &mut self,
        words: impl Fn(Option<Revision>) -> String + Send + Sync + 'static,
    ) {
        self.by_hand = ByHand(Some(Arc::new(words)));
    }

    /// The newest revision that was seen.
    pub const fn newest(&self) -> Option<Revision> {
        self.newest
    }

    /// Finished rollouts, the newest at the end.
    pub fn finished(&self) -> &[FinishedRollout] {
        &self.finished
    }

    /// Whether the release is paused or scaled to zero.
    pub const fn is_held(&self) -> bool {
        self.held
    }

    /// The entries since they were last taken.
    pub fn take_entries(&mut self) -> Vec<LogEntry> {
        std::mem::take(&mut self.entries)
    }

    /// Rollbacks in the 24 h before.
    pub fn rollbacks_today(&self, now: Time) -> usize {
        self.rolled_back
            .iter()
            .filter(|(_, at)| now.since(*at) < DAY)
            .count()
    }

    /// When time alone changes something next; [`RolloutInput::Tick`] is due then.
    pub fn deadline(&self) -> Option<Time> {
        let Some(candidate) = self.phase.candidate() else {
            return self.start.as_ref().map(StartupPhase::ends);
        };
        if self.phase.acts() {
            match self.clock {
                PhaseClock::Stands => return None,
                PhaseClock::Begins => return Some(self.since),
                PhaseClock::Runs(_) => {}
            }
        }
        let end = self.phase_ends()?;
        let late = candidate.next_late(self.since);
        Some(late.map_or(end, |late| late.min(end)))
    }

    /// When the phase ends at the latest, whatever is due before.
    pub fn phase_ends(&self) -> Option<Time> {
        let candidate = self.phase.candidate()?;
        Some(candidate.ends(&self.phase, &self.limits, self.counts_since()))
    }

    /// Since when the time of the phase counts.
    fn counts_since(&self) -> Time {
        match self.clock {
            PhaseClock::Runs(Some(since)) => self.since.max(since),
            PhaseClock::Stands | PhaseClock::Begins | PhaseClock::Runs(None) => self.since,
        }
    }

    /// Brings a state that was read from outside within its bounds.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let surplus = self.finished.len().saturating_sub(MAX_PAST);
        self.finished.drain(..surplus);
        let surplus = self.rolled_back.len().saturating_sub(MAX_PAST);
        self.rolled_back.drain(..surplus);
        self
    }

    /// Writes something into the log of events that changes nothing.
    pub fn remark(&mut self, at: Time, text: &str) {
        let revision = self.phase.candidate().map(|candidate| candidate.revision);
        self.note(at, revision, text);
    }

    fn note(&mut self, at: Time, revision: Option<Revision>, text: impl Into<String>) {
        if self.entries.len() < MAX_ENTRIES {
            self.entries.push(LogEntry {
                at,
                revision,
                phase: self.phase.as_str().into(),
                text: text.into(),
            });
        }
    }
}

impl HasTimes for Rollout {
    fn shift(&mut self, by: ClockShift) {
        if let Some(candidate) = self.phase.candidate_mut() {
            candidate.shift(by);
        }
        self.since.shift(by);
        if let Some(start) = &mut self.start {
            start.shift(by);
        }
        for (_, at) in &mut self.rolled_back {
            at.shift(by);
        }
        self.finished.shift(by);
        self.entries.shift(by);
    }
}

#[cfg(test)]
mod tests;
