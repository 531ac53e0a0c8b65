//! What happens to a release, what is to be done about it, and what is written down.

use serde::{Deserialize, Serialize};

use super::candidate::{RevisionOrigin, RollbackAttempt};
use super::rollback_order::OrderRecord;
use crate::core::units::{ClockShift, HasTimes, Revision, Time};

/// What a revision brings when it appears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Appearance {
    /// Contents of its own, or pods of its own.
    #[default]
    New,
    /// The contents of the newest revision before it. Where that one serves, it brings no pods of its own either.
    Same {
        /// Whether these contents are known to be good.
        known_good: bool,
    },
    /// A backup brought its record back.
    Restored,
}

/// What happens to a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutInput {
    /// This is the newest stored revision now.
    Seen {
        /// Its number.
        revision: Revision,
        /// Who made it.
        origin: RevisionOrigin,
        /// The revision that was serving when it appeared.
        serving: Option<Revision>,
        /// What it brings.
        #[serde(default)]
        appears: Appearance,
    },
    /// The rollout of the newest revision is complete; it may have taken longer than its analysis.
    #[serde(alias = "settled")]
    RolloutComplete,
    /// Helm has ended its work on the rollback, and nobody can see how far its rollout has come.
    HelmIsDone,
    /// The first sign of trouble of the revision under judgement, or the first after a quiet time.
    TroubleBegan,
    /// The judgement: the revision made things worse.
    Regressed {
        /// The revision that was judged.
        revision: Revision,
        /// The reason, as `error_rate:db`.
        reason: String,
        /// The numbers in words.
        text: String,
    },
    /// The judgement: nothing speaks against the revision.
    Healthy(Revision),
    /// The same, although something failed that its probes need.
    HealthyDespite {
        /// The revision that was judged.
        revision: Revision,
        /// What failed, and what was not judged for it.
        text: String,
    },
    /// The bake of the newest revision, which passed its analysis, ended with an alarm.
    BakeFailed {
        /// The revision that baked.
        revision: Revision,
        /// The reason, as `bake:error_rate`.
        reason: String,
        /// The numbers in words.
        text: String,
        /// When the trouble began, as far as that is known.
        trouble_since: Option<Time>,
        /// Whether the user lets a bake reject.
        rejects: bool,
    },
    /// The judgement: nothing can be said.
    Inconclusive {
        /// The revision that was judged.
        revision: Revision,
        /// Why.
        reason: String,
    },
    /// The analysis is over, and the revision's rollout is not complete.
    NotRolledOut {
        /// The revision that was analyzed.
        revision: Revision,
        /// What is missing, in words.
        text: String,
    },
    /// The release was paused, or scaled to zero.
    Held(bool),
    /// Our own trouble makes all results unknown, or no longer does.
    Blind(bool),
    /// The release is gone.
    Uninstalled,
    /// A person wants the newest revision rolled back.
    Ordered {
        /// The revision to go back to; without one it is chosen as after a verdict.
        target: Option<Revision>,
        /// Why.
        reason: String,
        /// Which order it is.
        order: OrderRecord,
    },
    /// A person wanted the newest revision rolled back, and something is in the way.
    OrderDeclined {
        /// The revision to go back to, if one was named.
        target: Option<Revision>,
        /// Why they wanted it.
        reason: String,
        /// Which order it is.
        order: OrderRecord,
        /// What is in the way.
        why: String,
    },
    /// The look before the rollback found it possible.
    Ready {
        /// The revision to go back to.
        target: Revision,
    },
    /// The look before the rollback found no revision to go back to.
    NoTarget {
        /// Why, with the way out.
        reason: String,
    },
    /// The look before the rollback found that it must not or cannot be.
    Refused {
        /// Why, with the way out.
        reason: String,
    },
    /// The rollback was carried out.
    Executed {
        /// Which one; of one that has been given up it is no news.
        attempt: RollbackAttempt,
        /// The revision that it made.
        created_revision: Revision,
    },
    /// The rollback failed.
    ExecutionFailed {
        /// Which one; of one that has been given up it is no news.
        attempt: RollbackAttempt,
        /// Why.
        reason: String,
    },
    /// After the rollback the probes that rejected pass.
    Recovered,
    /// After the rollback the same still fails: it was not the release.
    StillFailing {
        /// What still fails.
        text: String,
    },
    /// After the rollback the same still fails, and pods may still have the settings of the bad revision.
    OldSettings {
        /// What still fails, and which pods.
        text: String,
    },
    /// After the rollback more fails than before.
    Worsened {
        /// What fails.
        text: String,
    },
    /// Time has passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RolloutCommand {
    /// Probe every second and judge this revision.
    Watch(Revision),
    /// The analysis that runs goes on for this revision, which has the same contents.
    GoOn(Revision),
    /// Stop judging; `kept` when the revision passed: it bakes from here on.
    EndAnalysis {
        /// Whether the revision passed.
        kept: bool,
    },
    /// Look whether this revision can be rolled back, and whereto.
    Preflight(Revision),
    /// Turn this revision back.
    Execute {
        /// The revision found bad; it must still be the newest.
        bad: Revision,
        /// The revision to go back to.
        target: Revision,
    },
    /// Ask the probes that rejected again.
    Verify(Revision),
    /// Write into the ledger what was found of a revision's contents.
    Found {
        /// The revision.
        revision: Revision,
        /// What was found.
        found: crate::core::revision_ledger::ContentVerdict,
        /// Why.
        evidence: String,
    },
}

/// One line of the log of events: when, where, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When.
    pub at: Time,
    /// The revision at hand, if any.
    pub revision: Option<Revision>,
    /// The phase afterwards.
    pub phase: Box<str>,
    /// What happened and why, in words.
    pub text: String,
}

impl HasTimes for LogEntry {
    fn shift(&mut self, by: ClockShift) {
        self.at.shift(by);
    }
}
