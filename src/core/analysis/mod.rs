//! The analysis of a revision: tick by tick to a verdict, with the evidence.
//!
//! These paths reject, in this order: pods that crash in a loop or cannot start (A); workloads that do not become Ready
//! (E); endpoints that are down without a break (B); new pods that are down while old ones answer (D); an error rate
//! that rose (C), shown by an e-value that no burst and no number of looks can push to its threshold by chance; and, if
//! configured, the same for slow answers.
//!
//! Invariants:
//! - unknown is not evidence: it neither rejects nor passes;
//! - the state has a fixed size, a tick allocates nothing, and the state can be saved and restored between any two
//!   ticks;
//! - time is counted in ticks from the revision's appearance, so a clock that jumps changes nothing;
//! - after a verdict to roll back, further ticks change nothing.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ticks, blocks and counts are small: the rule's own check and the bounds below see to it"
)]

mod bake;
mod bound;
mod comparison;
mod counts;
mod dependencies;
mod flags;
mod latency;
mod mixture;
mod pod_results;
mod regression;
mod requests;
mod rule;
mod run_length;
mod state;
mod stratum;
mod tick_buffer;
mod verification;
mod warm_up;
mod workloads;

pub use bake::{Bake, BakeAlarm, BakeEnd};
pub use bound::upper_bound;
pub(crate) use dependencies::Dependency;
pub use latency::{BUCKETS, BaselineHistogram, bucket, edge, quantile};
pub use pod_results::{MAX_ASKED, PodSide, PodTick};
pub use regression::{
    InconclusiveReason, Regression, RegressionReason, SlowerAnswers, StratumName, StratumReport,
    StrongestEvidence, Verdict, number,
};
pub use rule::{InvalidRule, Rule};
pub use state::{Analysis, RolloutLessons, UnknownCause, WorkloadLessons};
pub use tick_buffer::TickBuffer;
pub use verification::{Verification, VerificationOutcome};
pub use warm_up::{AgeCounts, LearnedRollouts};
pub use workloads::{AnalyzedWorkload, MAX_WORKLOADS, WorkloadChange, WorkloadEvent};

use serde::{Deserialize, Serialize};

/// The most endpoints of one release.
pub const MAX_ENDPOINTS: usize = 1000;

/// The most dependencies that the endpoints of one release need.
pub const MAX_DEPENDENCIES: usize = 64;

/// What a probe result means for the analysis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum TickOutcome {
    /// `.`: a success.
    #[serde(rename = ".")]
    Success,
    /// `x`: a failure.
    #[serde(rename = "x")]
    Failure,
    /// `-`: no evidence either way.
    #[default]
    #[serde(rename = "-")]
    Unknown,
    /// `_`: the endpoint was not due in this tick.
    #[serde(rename = "_")]
    NotDue,
    /// `l`: a rate limit answered, because the analysis probes more often than configured.
    #[serde(rename = "l")]
    Limited,
    /// `r`: no name server answered.
    #[serde(rename = "r")]
    Unresolved,
}

impl TickOutcome {
    /// The character of an outcome in streams and recordings.
    pub const fn letter(self) -> char {
        match self {
            Self::Success => '.',
            Self::Failure => 'x',
            Self::Unknown => '-',
            Self::NotDue => '_',
            Self::Limited => 'l',
            Self::Unresolved => 'r',
        }
    }

    /// The outcome of a character; `None` for any other.
    pub const fn of(letter: char) -> Option<Self> {
        match letter {
            '.' => Some(Self::Success),
            'x' => Some(Self::Failure),
            '-' => Some(Self::Unknown),
            '_' => Some(Self::NotDue),
            'l' => Some(Self::Limited),
            'r' => Some(Self::Unresolved),
            _ => None,
        }
    }

    /// Whether it is evidence, after everything that makes it unknown.
    pub(crate) const fn is_result(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }

    /// Failures and results: (0, 1), (1, 1), or (0, 0) without evidence.
    pub(crate) const fn counts(self) -> (u16, u16) {
        match self {
            Self::Success => (0, 1),
            Self::Failure => (1, 1),
            Self::Unknown | Self::NotDue | Self::Limited | Self::Unresolved => (0, 0),
        }
    }
}

/// What is known when a revision appears.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AnalysisStart {
    /// The endpoints' names, 1 to [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Box<str>>,
    /// Failures and results of each in the hour before, without unknown ones; (0, 0) without a baseline.
    pub baseline: Vec<(u64, u64)>,
    /// Whether each endpoint's last three results before were all failures.
    pub failing_at_start: Vec<bool>,
    /// Without workloads: seconds until the rollout was complete; `None` if the cluster does not show it.
    #[serde(rename = "settled_at")]
    pub complete_at: Option<f64>,
    /// Without workloads: the strategy stops the old pods before it starts new ones.
    pub expected_downtime: bool,
    /// Whether pods are probed directly as well.
    pub direct: bool,
    /// Counts of users' requests, if available.
    pub requests: Option<RequestsBefore>,
    /// The workloads of the release; `None` if the cluster does not show its rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Vec<AnalyzedWorkload>>,
    /// What the last passed rollouts taught.
    #[serde(default)]
    pub learned: LearnedRollouts,
    /// The endpoints' own intervals in seconds; empty if unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steady_s: Vec<f64>,
    /// Names of the dependencies, at most [`MAX_DEPENDENCIES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<Box<str>>,
    /// For each endpoint the indices of its dependencies; empty if no endpoint has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Vec<u16>>,
    /// Latencies of each endpoint's successes in the hour before; empty if unknown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency: Vec<BaselineHistogram>,
}

/// Users' requests before the revision appeared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RequestsBefore {
    /// Seconds from one scrape to the next; 1 to 600.
    pub interval_s: f64,
    /// Requests that failed.
    pub failed: u64,
    /// All requests.
    pub total: u64,
}

/// Everything that became known in one tick.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tick<'a> {
    /// One outcome for each endpoint, probed through the Service.
    pub outcomes: &'a [TickOutcome],
    /// Results of pods that were probed directly; the daemon probes at most [`MAX_ASKED`] on each side.
    pub direct: &'a [PodTick<'a>],
    /// States of new pods that are new since the tick before.
    pub pods: &'a [PodState],
    /// Scrapes that came in since the tick before.
    pub scrapes: &'a [RequestScrape],
    /// Changes of the rollout since the tick before, in order of time.
    pub rollout: &'a [WorkloadEvent],
    /// One outcome for each dependency.
    pub dependencies: &'a [TickOutcome],
    /// Latencies of successes through the Service in microseconds, one for each endpoint.
    pub latency_us: &'a [Option<u32>],
}

/// What a revision changed of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadDiff {
    /// Its pod template.
    Template,
    /// Only a ConfigMap or Secret that its pods read.
    Config,
}

/// The state of one pod of the new revision; it replaces the pod's former one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodState {
    /// Its name.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub name: Box<str>,
    /// Restarts of the chart's containers since the revision appeared.
    pub restarts: u32,
    /// Whether one of them waits with the reason CrashLoopBackOff.
    pub crash_loop_back_off: bool,
    /// Whether an old pod of the same workload does the same, or has since the revision appeared.
    pub old_too: bool,
    /// Whether it is about a container outside the chart, such as an injected sidecar.
    #[serde(default, skip_serializing_if = "is_false")]
    pub injected: bool,
    /// Why it cannot start at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<StuckReason>,
    /// Its workload, as `Deployment web`; empty if unknown.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub workload: Box<str>,
    /// Its container that is in trouble; empty if unknown.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub container: Box<str>,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Why a pod cannot start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StuckReason {
    /// An image of it cannot be pulled.
    Image,
    /// A container of it cannot be created, for example because a Secret is missing.
    Container,
}

/// Counts of users' requests in one scrape interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RequestScrape {
    /// Seconds since the revision appeared.
    pub t: f64,
    /// Requests that failed.
    pub failed: u64,
    /// All requests.
    pub total: u64,
}

#[cfg(test)]
mod tests;
