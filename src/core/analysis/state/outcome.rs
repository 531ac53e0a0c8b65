//! The result of an analysis: its verdict, its numbers, and why results were unknown.

use serde::{Deserialize, Serialize};

use super::{Analysis, AnalyzedEndpoint};
use crate::core::analysis::PodState;
use crate::core::analysis::comparison::Exclusion;
use crate::core::analysis::regression::{InconclusiveReason, Regression, SlowerAnswers, Verdict};
use crate::core::analysis::rule::Rule;
use crate::core::analysis::warm_up::RolloutCompletion;

/// Why a result is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownCause {
    /// The prober or the cluster could not tell.
    Unknown,
    /// The workload is scaled to zero or paused.
    Held,
    /// The workload's strategy stops it before it starts again.
    ExpectedDowntime,
    /// The answer was a rate limit's.
    Limited,
    /// A dependency of the endpoint fails.
    Dependency,
    /// The name server did not answer.
    Unresolved,
    /// Old pods fail as well.
    Control,
    /// It failed before the revision appeared.
    FailingAtStart,
}

impl UnknownCause {
    /// How many there are.
    pub const COUNT: usize = 8;

    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Unknown,
        Self::Held,
        Self::ExpectedDowntime,
        Self::Limited,
        Self::Dependency,
        Self::Unresolved,
        Self::Control,
        Self::FailingAtStart,
    ];

    /// The cause in words, to follow a number of results.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Unknown => "not known, because Leadsman or the cluster could not tell",
            Self::Held => "not judged, because the workload was scaled to zero or paused",
            Self::ExpectedDowntime => {
                "not judged, because the strategy stops the old pods before it starts new ones"
            }
            Self::Limited => "not judged, because a rate limit answered",
            Self::Dependency => "not judged, because something that the endpoint needs failed",
            Self::Unresolved => "not judged, because no name server answered",
            Self::Control => "not judged, because old pods failed as well",
            Self::FailingAtStart => {
                "not judged, because the endpoint failed before the revision appeared"
            }
        }
    }

    /// As in results and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Held => "held",
            Self::ExpectedDowntime => "expected_downtime",
            Self::Limited => "limited",
            Self::Dependency => "dependency",
            Self::Unresolved => "unresolved",
            Self::Control => "control",
            Self::FailingAtStart => "failing_at_start",
        }
    }
}

impl Analysis {
    /// Whether all ticks of the analysis have been read.
    pub const fn is_over(&self) -> bool {
        self.is_over
    }

    /// The verdict if the analysis ended here.
    pub fn conclude(&self) -> Verdict {
        if let Some(regression) = &self.regression {
            return Verdict::Rollback((**regression).clone());
        }
        let compared = &self.failures.endpoints;
        let all_failed = compared.iter().all(|endpoint| endpoint.failed_at_start);
        let mut still_failing = compared
            .iter()
            .map(|endpoint| endpoint.excluded == Some(Exclusion::FailedAtStart));
        if all_failed && still_failing.any(|still| still) {
            return Verdict::Inconclusive(InconclusiveReason::BaselineBad);
        }
        if self.is_over && (self.is_rollout_running() || self.met_too_little()) {
            return Verdict::Inconclusive(InconclusiveReason::NotRolledOut);
        }
        // A watch in which nothing was to be asked has no evidence either.
        if self
            .coverage()
            .map_or(self.is_over, |usable| usable < self.rule.min_coverage)
        {
            return Verdict::Inconclusive(InconclusiveReason::Coverage);
        }
        if self.is_over {
            Verdict::Healthy
        } else {
            Verdict::Analyzing
        }
    }

    /// Whether the rollout is known to be incomplete.
    pub fn is_rollout_running(&self) -> bool {
        let is_known = self.workloads.states.is_some();
        let running = self.progress().completion == RolloutCompletion::Running;
        running || !is_known && self.complete_at.is_none() && self.rolled_out == Some(false)
    }

    /// Whether a template changed, and too few results could have met a new pod.
    pub fn met_too_little(&self) -> bool {
        let rule = &self.rule;
        let count = self.endpoints.len() as f64;
        let half = (count * rule.after_complete_s / (2.0 * rule.interval_s) - 1e-9).ceil();
        let least = u64::from(rule.met_min).min(half as u64);
        self.workloads.rolled().next().is_some() && self.met < least
    }

    /// Usable share of the results so far; `None` before the first.
    pub fn coverage(&self) -> Option<f64> {
        (self.scheduled > 0).then(|| self.usable as f64 / self.scheduled as f64)
    }

    /// The e-value after the last tick; 1 before the first.
    pub fn e_value(&self) -> f64 {
        self.failures.ln_e.exp()
    }

    /// The largest e-value of all ticks so far; 0 before the first that was evaluated.
    pub fn max_e(&self) -> f64 {
        self.failures
            .strongest
            .map_or(0.0, |(ln_e, _, _)| ln_e.exp())
    }

    /// The same after the last tick as a power of ten: finite also where the number itself is too large for a double.
    pub fn log10_e(&self) -> f64 {
        self.failures.ln_e / std::f64::consts::LN_10
    }

    /// Why the revision was rejected, if it was.
    pub fn regression(&self) -> Option<&Regression> {
        self.regression.as_deref()
    }

    /// Slower answers than before, once they are evident.
    pub fn slower(&self) -> Option<&SlowerAnswers> {
        self.slower_notice.as_deref()
    }

    /// How many ticks were read.
    pub fn ticks(&self) -> u32 {
        self.next_tick
    }

    /// Seconds since the start of the analysis.
    pub fn elapsed_s(&self) -> f64 {
        f64::from(self.next_tick) * self.rule.interval_s
    }

    /// When the analysis will end as it stands, in seconds after the revision appeared.
    pub fn ends_at_s(&self) -> f64 {
        let rule = &self.rule;
        if let Some(until) = self.extended_until {
            return until;
        }
        match self.progress().completion {
            RolloutCompletion::Unseen => rule.analysis_s,
            RolloutCompletion::Running => rule.longest_s(),
            RolloutCompletion::At(at) => {
                let after = at + rule.after_complete_s.min(rule.analysis_s);
                rule.analysis_s.max(after.min(rule.analysis_cap_s))
            }
        }
    }

    /// When the rollout was complete, if known.
    pub fn complete_at(&self) -> Option<f64> {
        match self.progress().completion {
            RolloutCompletion::At(at) => Some(at),
            RolloutCompletion::Running | RolloutCompletion::Unseen => None,
        }
    }

    /// Whether a rate limit answered, so that all endpoints are probed at their own interval.
    pub const fn is_limited(&self) -> bool {
        self.limited
    }

    /// Unknown results by cause.
    pub fn unknown(&self) -> impl Iterator<Item = (UnknownCause, u64)> {
        UnknownCause::ALL
            .iter()
            .map(|cause| (*cause, self.unknown[*cause as usize]))
    }

    /// Why an endpoint's result in the last tick was unknown, if it was; in the endpoints' order.
    pub fn causes(&self) -> impl Iterator<Item = (&str, Option<UnknownCause>)> {
        let endpoints = self.endpoints.iter();
        endpoints.map(|endpoint| (&*endpoint.name, endpoint.cause))
    }

    /// Dependencies that fail or have failed in this analysis, by name, and whether they fail now.
    pub fn failed_dependencies(&self) -> impl Iterator<Item = (&str, bool)> {
        let failed = self.dependencies.iter().filter(|one| one.has_failed);
        failed.map(|one| (&*one.name, one.is_failing()))
    }

    /// The names of all dependencies, in their order.
    pub fn dependencies(&self) -> impl Iterator<Item = &str> {
        self.dependencies.iter().map(|one| &*one.name)
    }

    /// For each dependency that has failed in this analysis a sentence without its full stop: which failures it
    /// excused.
    pub fn excuses(&self) -> Vec<String> {
        let failed = self.dependencies.iter().enumerate();
        let failed = failed.filter(|(_, one)| one.has_failed);
        failed
            .map(|(at, one)| {
                let needs = |endpoint: &&AnalyzedEndpoint| {
                    endpoint.needs.iter().any(|need| usize::from(*need) == at)
                };
                let named = self.endpoints.iter().filter(needs);
                let named: Vec<&str> = named.map(|endpoint| &*endpoint.name).collect();
                let of = match named.as_slice() {
                    few @ [_, ..] if few.len() <= 4 => few.join(", "),
                    many => format!("{} probes", many.len()),
                };
                let (name, failed) = match one.name.strip_prefix("release:") {
                    Some(release) => (release, "was rejected or failing"),
                    None => (&*one.name, "failed"),
                };
                format!("{name} {failed}, so that failures of {of} meanwhile were not judged")
            })
            .collect()
    }

    /// Number of passed rollouts that the analysis has learned from.
    pub const fn learned_from(&self) -> u32 {
        self.learned_from
    }

    /// The rule in force.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

impl Analysis {
    /// Which endpoints count in the bake: those that did not fail when the revision appeared.
    pub(in crate::core::analysis) fn endpoints_counted_in_bake(&self) -> Vec<bool> {
        let endpoints = self.failures.endpoints.iter();
        endpoints
            .map(|endpoint| !endpoint.failed_at_start)
            .collect()
    }

    /// Whether a pod's state counts against the revision.
    pub fn can_reject(&self, pod: &PodState) -> bool {
        self.workloads.can_reject(pod)
    }

    /// The restarts that are normal for a pod of the same workload.
    pub fn normal_restarts(&self, pod: &PodState) -> u32 {
        self.workloads.normal_restarts(pod)
    }
}
