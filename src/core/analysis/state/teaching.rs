//! What later rollouts learn from one that passed.

use serde::{Deserialize, Serialize};

use super::Analysis;
use crate::core::analysis::rule::AGES;
use crate::core::analysis::warm_up::{AgeCounts, PHASES};

/// The lessons of one rollout.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RolloutLessons {
    /// New pods' counted results, by age.
    pub pods: [AgeCounts; AGES],
    /// All endpoints' results through the Service, by phase of the rollout.
    pub pool: [AgeCounts; PHASES],
    /// The same of each endpoint.
    pub endpoints: Vec<(Box<str>, [AgeCounts; PHASES])>,
    /// Seconds from the revision's appearance until its rollout was complete; 0 if that was not seen.
    #[serde(default)]
    pub rollout_s: f64,
    /// Of each workload whose template changed.
    pub workloads: Vec<WorkloadLessons>,
}

/// The lessons of one workload's rollout.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkloadLessons {
    /// As `Deployment web`.
    pub name: Box<str>,
    /// Seconds without a Ready pod.
    pub gap_s: f64,
    /// Seconds from its new template to the first Ready pod.
    pub ready_s: f64,
    /// The most restarts of a pod.
    pub restarts: u32,
}

impl Analysis {
    /// The lessons of this rollout, if it passes: none if no template changed.
    pub fn teaching(&self) -> Option<RolloutLessons> {
        let workloads: Vec<WorkloadLessons> = self
            .workloads
            .rolled()
            .map(|state| {
                let from = state.is.template_at.unwrap_or(0.0);
                WorkloadLessons {
                    name: state.is.name.clone(),
                    gap_s: f64::from(state.gap_ticks) * self.rule.interval_s,
                    ready_s: state.ready_at.map_or(0.0, |at| (at - from).max(0.0)),
                    restarts: state.most_restarts,
                }
            })
            .collect();
        (!workloads.is_empty()).then(|| RolloutLessons {
            pods: self.pods_by_age,
            pool: self.pool_by_phase,
            endpoints: self
                .endpoints
                .iter()
                .map(|endpoint| (endpoint.name.clone(), endpoint.by_phase))
                .collect(),
            rollout_s: self.complete_at().unwrap_or(0.0),
            workloads,
        })
    }
}
