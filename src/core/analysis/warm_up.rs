//! How much more than usual may fail while a revision warms up: by the phase of its rollout, and by a new pod's age.
//!
//! What the last passed rollouts taught is tolerated; while they have taught little, a generous default.

use serde::{Deserialize, Serialize};

use super::bound::{is_significant, upper_bound};
use super::rule::{AGES, Rule};
use super::stratum::BeforeCounts;

/// Phases of a rollout with their own lessons: before it is complete, and two spans after it.
pub(super) const PHASES: usize = 3;

/// Failures and results.
pub type AgeCounts = (u64, u64);

/// The lessons of the last passed rollouts, summed up.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LearnedRollouts {
    /// Number of rollouts.
    #[serde(default)]
    pub rollouts: u32,
    /// Seconds until the longest of them was complete; not used for decisions.
    #[serde(default)]
    pub longest_s: f64,
    /// New pods' counted results, by the age classes of the rule.
    pub pods: [AgeCounts; AGES],
    /// Results of all endpoints through the Service, by phase.
    pub pool: [AgeCounts; PHASES],
    /// The same for each endpoint, in their order; empty without lessons.
    pub endpoints: Vec<[AgeCounts; PHASES]>,
}

/// When the rollout is complete, in seconds after the revision appeared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum RolloutCompletion {
    /// It was complete then.
    At(f64),
    /// It is running.
    Running,
    /// The cluster does not show it.
    Unseen,
}

/// Progress of the rollout.
#[derive(Debug, Clone, Copy)]
pub(super) struct RolloutProgress {
    pub(super) completion: RolloutCompletion,
    /// Whether the first new pod is Ready.
    pub(super) serves_new: bool,
}

impl RolloutProgress {
    /// The phase of a time: 0 to 2, or 3 for the time in which only the baseline is tolerated.
    pub(super) fn phase(&self, rule: &Rule, t: f64) -> usize {
        let complete = match self.completion {
            RolloutCompletion::At(at) if at <= 0.0 => return PHASES,
            RolloutCompletion::At(at) => at,
            RolloutCompletion::Running => return 0,
            RolloutCompletion::Unseen => rule.settle_unknown_s,
        };
        let ends = [0.0, rule.settle_plus_s, 2.0 * rule.settle_plus_s];
        let passed = ends.iter().filter(|end| t >= complete + **end - 1e-9);
        passed.count()
    }

    /// What a block of the pool or an endpoint that opens in `phase` tolerates, and whether that is certain.
    pub(super) fn tolerated(
        &self,
        rule: &Rule,
        before: &BeforeCounts,
        learned: &[AgeCounts; PHASES],
        phase: usize,
    ) -> (f64, bool) {
        let Some(counts) = learned.get(phase) else {
            return (before.complete(rule), true);
        };
        let default = default_of(rule, before, phase);
        if phase == 0 && !self.serves_new {
            return (default, false);
        }
        let rate = limit(rule, before, *counts, default);
        (rate, counts.1 >= rule.warm_n)
    }
}

/// The default of a phase without lessons.
pub(super) fn default_of(rule: &Rule, before: &BeforeCounts, phase: usize) -> f64 {
    match phase {
        0 | 1 => before.unsettled(rule),
        2 => before.late(rule),
        _ => before.complete(rule),
    }
}

/// The default of an age class of new pods.
pub(super) fn default_of_age(rule: &Rule, before: &BeforeCounts, class: usize) -> f64 {
    match rule.warm_ages_s.get(class) {
        Some(end) if *end <= rule.warm_default_s + 1e-9 => before.unsettled(rule),
        Some(_) => before.late(rule),
        None => before.complete(rule),
    }
}

/// `L(k, n, default)` of the rule: the tolerated rate after lessons of `k` failures in `n` results.
pub(super) fn limit(rule: &Rule, before: &BeforeCounts, (k, n): AgeCounts, default: f64) -> f64 {
    if n < rule.warm_n {
        return default;
    }
    let (k, total) = (k as f64, n as f64);
    let complete = before.complete(rule);
    let bound = upper_bound(k, total, rule.baseline_conf) + rule.null_margin;
    let bound = complete.max(rule.tolerable(bound));
    if is_significant(k, total, before.rate(), rule.significance) {
        bound
    } else if n >= rule.warm_sure_n {
        complete
    } else {
        default.min(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_those_of_the_specification() {
        let rule = Rule::default();
        let before = BeforeCounts::new(&rule, 0, 14_400, rule.n0_min);
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 5e-9, "{found} {expected}");
        };
        close(before.complete(&rule), 0.005_319_752);
        close(before.unsettled(&rule), 0.200_319_752);
        close(before.late(&rule), 0.050_319_752);
        let unsettled = |k, n| limit(&rule, &before, (k, n), before.unsettled(&rule));
        let late = |k, n| limit(&rule, &before, (k, n), before.late(&rule));
        close(unsettled(0, 39), 0.200_319_752);
        close(unsettled(0, 60), 0.078_881_272);
        close(late(0, 60), 0.050_319_752);
        close(unsettled(2, 60), 0.157_784_324);
        close(late(2, 60), 0.157_784_324);
        close(unsettled(0, 150), 0.005_319_752);
        close(unsettled(1, 1000), 0.012_613_049);
        close(unsettled(12, 200), 0.129_506_557);
    }

    #[test]
    fn the_phase_follows_the_completion() {
        let rule = Rule::default();
        let at = |completion, t| {
            let progress = RolloutProgress {
                completion,
                serves_new: true,
            };
            progress.phase(&rule, t)
        };
        for (completion, t, phase) in [
            (RolloutCompletion::At(0.0), 0.0, 3),
            (RolloutCompletion::At(20.0), 19.0, 0),
            (RolloutCompletion::At(20.0), 20.0, 1),
            (RolloutCompletion::At(20.0), 50.0, 2),
            (RolloutCompletion::At(20.0), 80.0, 3),
            (RolloutCompletion::Running, 1e6, 0),
            (RolloutCompletion::Unseen, 89.0, 0),
            (RolloutCompletion::Unseen, 150.0, 3),
        ] {
            assert_eq!(at(completion, t), phase, "{completion:?} {t}");
        }
    }
}
