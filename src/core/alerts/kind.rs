//! The kinds of alerts: how bad each is, and how long it is waited before people are told.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The usual three: `critical` wakes somebody, `warning` is for the day, `info` for whoever looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Somebody is to be woken.
    Critical,
    /// Somebody is to look at it within the day.
    Warning,
    /// Nobody needs to do anything.
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
        /// What can be wrong. The number in seconds after `for` is how long it must hold before it fires, that after
        /// `keep` how long it must not hold before it is over.
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

            /// How long it must hold before people are told.
            pub const fn patience(self) -> Duration {
                Duration::from_secs(match self { $(Self::$variant => $for),+ })
            }

            /// How long it must not hold before it is over.
            pub const fn keep(self) -> Duration {
                Duration::from_secs(match self { $(Self::$variant => $keep),+ })
            }
        }
    };
}

kinds! {
    /// A revision was found bad, and is being rolled back, or should be.
    ReleaseRegressed: "LeadsmanReleaseRegressed", Critical, "P1", for 0, keep 0,
        "A new revision of a release made it worse.";
    /// A revision was rolled back, and the release is well again.
    ReleaseRolledBack: "LeadsmanReleaseRolledBack", Warning, "P2", for 0, keep 0,
        "A bad revision was rolled back, and the release is well again.";
    /// A rollback was begun and did not make the release well.
    RollbackFailed: "LeadsmanRollbackFailed", Critical, "P0", for 0, keep 0,
        "The rollback of a bad revision failed, or did not make the release well.";
    /// A rollback was not begun, because something speaks against it.
    RollbackRefused: "LeadsmanRollbackRefused", Critical, "P0", for 0, keep 0,
        "A bad revision is left in place, because it must not be rolled back automatically.";
    /// A rollback was not begun, because there were enough in a day.
    RollbackLimitReached: "LeadsmanRollbackLimitReached", Critical, "P0", for 0, keep 0,
        "A bad revision is left in place, because the limit of rollbacks in a day is reached.";
    /// The same failed after the rollback.
    NotTheRelease: "LeadsmanNotTheRelease", Critical, "P0", for 0, keep 300,
        "A release still fails after its rollback, so its revision was not the cause.";
    /// In the mode observe a revision was found bad.
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
    /// Something fails that belongs to no release and that probes need.
    DependencyFailing: "LeadsmanDependencyFailing", Critical, "P1", for 60, keep 60,
        "Something fails that releases need and that belongs to none of them.";
    /// The error budget burns so fast that somebody is to be woken.
    ObjectiveBurning: "LeadsmanObjectiveBurning", Critical, "P1", for 0, keep 60,
        "The error budget of an objective is being spent far too fast.";
    /// The error budget burns faster than it lasts.
    ObjectiveAtRisk: "LeadsmanObjectiveAtRisk", Warning, "P3", for 0, keep 300,
        "The error budget of an objective will not last.";
    /// From no host that is probed anything comes back.
    AllTargetsSilent: "LeadsmanAllTargetsSilent", Critical, "P1", for 30, keep 60,
        "None of the probed hosts answers: all of them are down, or Leadsman's own network is.";
    /// Leadsman's own machine, network or schedule fails, so that results are unknown.
    SelfCheckFailing: "LeadsmanSelfCheckFailing", Warning, "P3", for 120, keep 60,
        "Leadsman is in trouble itself, and what it measures says nothing meanwhile.";
    /// What the cluster says of a release is not to be had.
    Blind: "LeadsmanBlind", Warning, "P2", for 120, keep 30,
        "Leadsman cannot see a release in its cluster, and would roll nothing back.";
    /// Alerts or messages do not arrive.
    DeliveryFailing: "LeadsmanDeliveryFailing", Warning, "P3", for 300, keep 60,
        "Leadsman cannot deliver its alerts or messages to a receiver.";
    /// Always there, so that its absence can be noticed.
    Watchdog: "LeadsmanWatchdog", Info, "P3", for 0, keep 0,
        "Leadsman is alive and its alerts arrive; this alert always fires.";
}
