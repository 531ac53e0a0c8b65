//! A revision under analysis, with its times, and the outcome of its rollout.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{OrderRecord, RolloutLimits, RolloutPhase};
use crate::core::units::{ClockShift, HasTimes, Revision, Time};

/// Who made a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevisionOrigin {
    /// The first installation: there is nothing to go back to.
    First,
    /// An upgrade.
    Upgrade,
    /// A rollback of ours.
    OurRollback,
    /// A rollback by another user or tool.
    OtherRollback,
}

/// How a rollout ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutOutcome {
    /// Nothing spoke against the revision.
    #[serde(alias = "kept")]
    Passed,
    /// It has the contents that serve already; there was nothing to analyze.
    Unchanged,
    /// Nothing could be said about it.
    Inconclusive,
    /// A newer revision took its place.
    Superseded,
    /// The release was uninstalled.
    Uninstalled,
    /// It was rejected, and would have been rolled back in the mode `enforce`.
    WouldRollBack,
    /// It is bad, and is left as it is: a first revision, one that a rollback made, or a release that is held.
    #[serde(alias = "left_alone")]
    NotEligible,
    /// It is bad, and the limit of rollbacks in a day is reached.
    LimitReached,
    /// It is bad, and rolling it back was refused.
    Refused,
    /// A person ordered a rollback, and something was in the way: nothing is said of the revision.
    OrderRefused,
    /// It is bad, and rolling it back failed.
    #[serde(alias = "failed")]
    RollbackFailed,
    /// It was rolled back, and the release is healthy again.
    #[serde(alias = "recovered")]
    RolledBack,
    /// It was rolled back, and the same still fails: the release was not the cause.
    #[serde(alias = "same_failure")]
    StillFailing,
    /// It was rolled back, and more fails than before.
    #[serde(alias = "worse")]
    Worsened,
    /// It was rolled back, and the state of the release since is unknown.
    Unverified,
}

impl RolloutOutcome {
    /// As in the API and in files.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Unchanged => "unchanged",
            Self::Inconclusive => "inconclusive",
            Self::Superseded => "superseded",
            Self::Uninstalled => "uninstalled",
            Self::WouldRollBack => "would_roll_back",
            Self::NotEligible => "not_eligible",
            Self::LimitReached => "limit_reached",
            Self::Refused => "refused",
            Self::OrderRefused => "order_refused",
            Self::RollbackFailed => "rollback_failed",
            Self::RolledBack => "rolled_back",
            Self::StillFailing => "still_failing",
            Self::Worsened => "worsened",
            Self::Unverified => "unverified",
        }
    }
}

/// The runbook's steps from the appearance of a revision to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// From the moment the revision appeared to the verdict.
    Detect,
    /// From the first sign of trouble to the verdict: the later part of [`Self::Detect`].
    DetectFromTrouble,
    /// From the verdict to the start of the rollback.
    Initiate,
    /// From the start of the rollback until its rollout is complete.
    Complete,
    /// From then until the release is known to be well.
    Verify,
    /// From the moment the revision appeared, or an order was given, until the release is known to be well.
    Total,
}

impl StepName {
    /// In their order.
    pub const ALL: [Self; 6] = [
        Self::Detect,
        Self::DetectFromTrouble,
        Self::Initiate,
        Self::Complete,
        Self::Verify,
        Self::Total,
    ];

    /// As in the API and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detect => "detect",
            Self::DetectFromTrouble => "detect_from_trouble",
            Self::Initiate => "initiate",
            Self::Complete => "complete",
            Self::Verify => "verify",
            Self::Total => "total",
        }
    }

    /// From when to when it counts, in words.
    pub const fn counts(self) -> &'static str {
        match self {
            Self::Detect => "from the moment the revision appeared to the verdict",
            Self::DetectFromTrouble => {
                "from the first sign of trouble (a failed result, also of a pod; a restart; a pod that cannot start) to \
                 the verdict"
            }
            Self::Initiate => "from the verdict or order to the start of the rollback",
            Self::Complete => "from the start of the rollback until its rollout is complete",
            Self::Verify => "from then until the release is known to be well",
            Self::Total => {
                "from the moment the revision appeared, or a person ordered the rollback, to the end"
            }
        }
    }

    /// What the runbook allows.
    pub const fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Detect | Self::DetectFromTrouble | Self::Complete => 120,
            Self::Initiate | Self::Verify => 60,
            Self::Total => 360,
        })
    }
}

/// One step of the runbook: its beginning and its end, as far as they have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepTiming {
    /// Which.
    pub step: StepName,
    /// When it began.
    pub from: Option<Time>,
    /// When it ended.
    pub to: Option<Time>,
}

impl StepTiming {
    /// How long it took; `None` while it runs and before.
    pub fn took(&self) -> Option<Duration> {
        Some(self.to?.since(self.from?))
    }
}

/// The reason of an inconclusive analysis whose rollout was never complete.
pub const NOT_ROLLED_OUT: &str = "not_rolled_out";

/// The reason of such an analysis once the rollout is complete after all: it serves, and was not analyzed so.
pub const ROLLED_OUT_LATE: &str = "rolled_out_late";

/// Minimum and maximum time for a rollback's rollout, whatever the original rollout took.
const LEAST_WAY_BACK: Duration = Duration::from_secs(300);
const LONGEST_WAY_BACK: Duration = Duration::from_secs(3600);

/// A revision at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The revision.
    pub revision: Revision,
    /// Who made it.
    pub origin: RevisionOrigin,
    /// The one that was serving when it appeared.
    pub serving: Option<Revision>,
    /// When it appeared.
    pub seen: Time,
    /// When its rollout was complete.
    #[serde(alias = "settled")]
    pub complete: Option<Time>,
    /// The first sign of the current trouble, of any kind.
    #[serde(alias = "first_bad")]
    pub trouble_since: Option<Time>,
    /// When the verdict to roll back was made.
    #[serde(alias = "convicted")]
    pub rejected: Option<Time>,
    /// Its reason, as `error_rate:db`; or [`NOT_ROLLED_OUT`] or [`ROLLED_OUT_LATE`].
    pub reason: String,
    /// The numbers in words.
    pub text: String,
    /// The first of consecutive revisions with the same contents that are analyzed as one; `None` if there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<Revision>,
    /// Whether a person ordered its rollback, without a verdict.
    #[serde(default)]
    pub ordered: bool,
    /// The order that it carries out, or that has joined it.
    #[serde(default)]
    pub order: Option<OrderRecord>,
    /// Whether its target is chosen as for an order, because the verdict found none and an order joined it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chosen_by_hand: bool,
    /// The revision to go back to.
    pub target: Option<Revision>,
    /// When the rollback was begun.
    pub begun: Option<Time>,
    /// The revision that the rollback made.
    #[serde(alias = "made")]
    pub created_revision: Option<Revision>,
    /// When the rollback's rollout was complete.
    #[serde(alias = "turned")]
    pub rolled_back_at: Option<Time>,
    /// When it was known to be well.
    pub verified: Option<Time>,
    /// A foreign revision that appeared during the rollback.
    pub overtaken_by: Option<(Revision, RevisionOrigin)>,
    /// Whether that one has the contents of this one.
    #[serde(default)]
    pub overtaken_by_same: bool,
    /// A foreign revision with the contents of `made`, which took its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stands_for_made: Option<Revision>,
    /// Steps whose limit was exceeded and noted.
    pub late: Vec<StepName>,
}

/// Which rollback it is: a release may have several one after another, also of one revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RollbackAttempt {
    /// The revision that is rolled back.
    pub bad: Revision,
    /// When it was begun.
    pub begun: Time,
}

impl Candidate {
    pub(super) fn new(
        revision: Revision,
        origin: RevisionOrigin,
        serving: Option<Revision>,
        now: Time,
    ) -> Self {
        Self {
            revision,
            origin,
            serving,
            seen: now,
            complete: None,
            trouble_since: None,
            rejected: None,
            reason: String::new(),
            text: String::new(),
            first: None,
            ordered: false,
            order: None,
            chosen_by_hand: false,
            target: None,
            begun: None,
            created_revision: None,
            rolled_back_at: None,
            verified: None,
            overtaken_by: None,
            overtaken_by_same: false,
            stands_for_made: None,
            late: Vec::new(),
        }
    }

    /// The first revision that has these contents and is analyzed with it.
    pub fn first(&self) -> Revision {
        self.first.unwrap_or(self.revision)
    }

    /// The rollback that is carried out, once it has begun.
    pub fn attempt(&self) -> Option<RollbackAttempt> {
        let begun = self.begun?;
        Some(RollbackAttempt {
            bad: self.revision,
            begun,
        })
    }

    /// Whether a person ordered its rollback, also after a verdict.
    pub const fn is_wanted_by_a_person(&self) -> bool {
        self.ordered || self.order.is_some()
    }

    /// The revision whose rollout ends the rollback, once there is one.
    pub fn way_back(&self) -> Option<Revision> {
        self.stands_for_made.or(self.created_revision)
    }

    /// The runbook's steps as far as they have come.
    pub fn timings(&self) -> [StepTiming; 6] {
        // What a person ordered was not detected.
        let detected = self.rejected.filter(|_| !self.ordered);
        let began = detected.map_or(self.rejected, |_| Some(self.seen));
        StepName::ALL.map(|step| {
            let (from, to) = match step {
                StepName::Detect => (detected.and(began), detected),
                StepName::DetectFromTrouble => (detected.and(self.trouble_since), detected),
                StepName::Initiate => (self.rejected, self.begun),
                StepName::Complete => (self.begun, self.rolled_back_at),
                StepName::Verify => (self.rolled_back_at, self.verified),
                StepName::Total => (began, self.verified),
            };
            StepTiming { step, from, to }
        })
    }

    /// How long the way back may take: twice as long as the way there did, which is a rollout as well.
    fn way_back_limit(&self) -> Duration {
        let there = self.complete.or(self.rejected);
        let took = there.map_or(Duration::ZERO, |at| at.since(self.seen));
        (2 * took).clamp(LEAST_WAY_BACK, LONGEST_WAY_BACK)
    }

    /// How long the revision's own rollout took, if that is a good part of the runbook's limit for the way back, which
    /// is a rollout as well.
    pub(super) fn slow_rollout(&self) -> Option<Duration> {
        let took = self.complete?.since(self.seen);
        (took >= StepName::Complete.limit() / 2).then_some(took)
    }

    /// When the next limit of the runbook that has not been noted runs out.
    pub(super) fn next_late(&self, since: Time) -> Option<Time> {
        self.timings()
            .into_iter()
            .filter(|timing| timing.to.is_none() && !self.late.contains(&timing.step))
            .filter_map(|timing| Some(timing.from? + timing.step.limit()))
            .map(|at| at.max(since))
            .min()
    }

    /// When the phase ends by itself. Each wait is longer than the runbook's limit, so that being late is known before
    /// giving up.
    pub(super) fn ends(&self, phase: &RolloutPhase, limits: &RolloutLimits, since: Time) -> Time {
        const ANSWER: Duration = Duration::from_secs(30);
        match phase {
            RolloutPhase::NotInstalled | RolloutPhase::Idle => since,
            RolloutPhase::RollingOut(_) => self.seen + limits.settle_cap,
            RolloutPhase::Analyzing(_) => self.seen + limits.watch + ANSWER,
            // An upgrade that waits may run a hook, and that is waited for.
            RolloutPhase::Preflight(_) => since + Duration::from_secs(660),
            RolloutPhase::RollingBack(_) => since + self.way_back_limit(),
            RolloutPhase::Verifying(_) => since + LEAST_WAY_BACK,
        }
    }
}

impl HasTimes for Candidate {
    fn shift(&mut self, by: ClockShift) {
        self.seen.shift(by);
        for time in [
            &mut self.complete,
            &mut self.trouble_since,
            &mut self.rejected,
            &mut self.begun,
            &mut self.rolled_back_at,
            &mut self.verified,
        ] {
            time.shift(by);
        }
    }
}

/// A finished rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedRollout {
    /// The revision and its times.
    #[serde(alias = "case")]
    pub candidate: Candidate,
    /// How it ended.
    #[serde(alias = "ending")]
    pub outcome: RolloutOutcome,
    /// When.
    pub at: Time,
    /// Why, in words.
    pub text: String,
}

impl HasTimes for FinishedRollout {
    fn shift(&mut self, by: ClockShift) {
        self.candidate.shift(by);
        self.at.shift(by);
    }
}
