//! The kinds of alerts, with the severity and waiting times of each.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How bad an alert is: `critical` pages the person on call, `warning` is for office hours, `info` needs no action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Pages the person on call.
    Critical,
    /// Has to be looked at within the day.
    Warning,
    /// No action is needed.
    Info,
}

impl Severity {
    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident: $name:literal, $severity:ident, $priority:literal, for $for:literal, keep $keep:literal, $summary:literal;)+) => {
        /// What can be wrong. The number after `for` is how many seconds the condition must hold before the alert
        /// fires, the one after `keep` how many it must not hold before the alert ends.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum AlertKind { $($(#[$doc])* #[serde(rename = $name)] $variant),+ }

        impl AlertKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value of the label `alertname`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// How bad it is.
            pub const fn severity(self) -> Severity {
                match self { $(Self::$variant => Severity::$severity),+ }
            }

            /// The runbook's P0 (outage) to P3.
            pub const fn priority(self) -> &'static str {
                match self { $(Self::$variant => $priority),+ }
            }

            /// One sentence, always the same.
            pub const fn summary(self) -> &'static str {
                match self { $(Self::$variant => $summary),+ }
            }

            /// How long the condition must hold before the alert fires.
            pub const fn patience(self) -> Duration {
                Duration::from_secs(match self { $(Self::$variant => $for),+ })
            }

            /// How long the condition must not hold before the alert ends.
            pub const fn keep(self) -> Duration {
                Duration::from_secs(match self { $(Self::$variant => $keep),+ })
            }
        }
    };
}

kinds! {
    /// A revision was rejected, and is being rolled back, or should be.
    ReleaseRegressed: "LeadsmanReleaseRegressed", Critical, "P1", for 0, keep 0,
        "A new revision of a release made it worse.";
    /// A revision was rolled back, and the release is healthy again.
    ReleaseRolledBack: "LeadsmanReleaseRolledBack", Warning, "P2", for 0, keep 0,
        "A bad revision was rolled back, and the release is well again.";
    /// A rollback started, and failed or did not make the release healthy.
    RollbackFailed: "LeadsmanRollbackFailed", Critical, "P0", for 0, keep 0,
        "The rollback of a bad revision failed, or did not make the release well.";
    /// A rollback did not start, because a preflight check failed.
    RollbackRefused: "LeadsmanRollbackRefused", Critical, "P0", for 0, keep 0,
        "A bad revision is left in place, because it must not be rolled back automatically.";
    /// A rollback did not start, because the daily limit is reached.
    RollbackLimitReached: "LeadsmanRollbackLimitReached", Critical, "P0", for 0, keep 0,
        "A bad revision is left in place, because the limit of rollbacks in a day is reached.";
    /// The same fails after the rollback.
    NotTheRelease: "LeadsmanNotTheRelease", Critical, "P0", for 0, keep 300,
        "A release still fails after its rollback, so its revision was not the cause.";
    /// In the mode observe a revision was rejected.
    ReleaseRegressedObserveOnly: "LeadsmanReleaseRegressedObserveOnly", Critical, "P1", for 0, keep 0,
        "A new revision made a release worse, and the mode observe leaves it in place.";
    /// A new revision answers more slowly than the one before.
    ReleaseSlower: "LeadsmanReleaseSlower", Warning, "P3", for 0, keep 60,
        "A new revision of a release answers more slowly than the one before.";
    /// The bake of a revision that passed its analysis ended with an alarm.
    BakeFailed: "LeadsmanBakeFailed", Warning, "P2", for 0, keep 60,
        "A revision that passed its analysis got worse in the time after it.";
    /// A probe fails, whatever the revision.
    ProbeFailing: "LeadsmanProbeFailing", Critical, "P1", for 60, keep 60,
        "A probe of a release fails.";
    /// A dependency fails.
    DependencyFailing: "LeadsmanDependencyFailing", Critical, "P1", for 60, keep 60,
        "Something fails that releases need and that belongs to none of them.";
    /// The error budget burns so fast that it pages the person on call.
    ObjectiveBurning: "LeadsmanObjectiveBurning", Critical, "P1", for 0, keep 60,
        "The error budget of an objective is being spent far too fast.";
    /// The error budget will not last.
    ObjectiveAtRisk: "LeadsmanObjectiveAtRisk", Warning, "P3", for 0, keep 300,
        "The error budget of an objective will not last.";
    /// No probed host answers.
    AllTargetsSilent: "LeadsmanAllTargetsSilent", Critical, "P1", for 30, keep 60,
        "None of the probed hosts answers: all of them are down, or Leadsman's own network is.";
    /// Leadsman's own machine, network or schedule fails, so results are unknown.
    SelfCheckFailing: "LeadsmanSelfCheckFailing", Warning, "P3", for 120, keep 60,
        "Leadsman is in trouble itself, and what it measures says nothing meanwhile.";
    /// The cluster says nothing about a release.
    Blind: "LeadsmanBlind", Warning, "P2", for 120, keep 30,
        "Leadsman cannot see a release in its cluster, and would roll nothing back.";
    /// Alerts or messages do not arrive.
    DeliveryFailing: "LeadsmanDeliveryFailing", Warning, "P3", for 300, keep 60,
        "Leadsman cannot deliver its alerts or messages to a receiver.";
    /// Always fires, so that its absence can be noticed.
    Watchdog: "LeadsmanWatchdog", Info, "P3", for 0, keep 0,
        "Leadsman is alive and its alerts arrive; this alert always fires.";
}
