//! States of new pods that count against the revision.
//!
//! A pod counts if the revision changed its workload: the template, or settings that its pods read. A pod of another
//! workload, started by an autoscaler or a drained node, fails for another reason. An old pod excuses only new pods of
//! the same workload: one that has crashed for months says nothing about its neighbours.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::state::RunningAnalysis;
use crate::core::analysis::{PodState, StuckReason, WorkloadDiff};
use crate::core::units::Revision;
use crate::release::ReleasePod;
use crate::release::ReleaseState;

/// Trouble of old pods during this analysis, by workload. It excuses the same trouble of a new pod of that workload,
/// also after the old pod is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct OldPodFailures {
    looping: BTreeSet<String>,
    stuck: BTreeSet<(String, StuckReason)>,
}

impl OldPodFailures {
    pub(super) fn note(&mut self, old: &ReleasePod) {
        if old.is_crash_looping() {
            self.looping.insert(old.workload_name());
        }
        if let Some(stuck) = old.stuck() {
            self.stuck.insert((old.workload_name(), stuck));
        }
    }

    pub(super) fn has(&self, new: &ReleasePod, stuck: Option<StuckReason>) -> bool {
        let workload = new.workload_name();
        self.looping.contains(&workload)
            || stuck.is_some_and(|stuck| self.stuck.contains(&(workload, stuck)))
    }
}

/// What the analysis was told about a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ReportedPod {
    restarts: u32,
    loops: bool,
    stuck: Option<StuckReason>,
    old_too: bool,
}

impl ReportedPod {
    /// Whether it restarted, or cannot start.
    pub(super) const fn is_in_trouble(self) -> bool {
        self.restarts > 0 || self.loops || self.stuck.is_some()
    }

    /// Extracts it from a state.
    pub(super) fn of(state: &PodState) -> Self {
        Self {
            restarts: state.restarts,
            loops: state.crash_loop_back_off,
            stuck: state.stuck,
            old_too: state.old_too,
        }
    }
}

/// Remembers the trouble of old pods.
pub(super) fn note_old_pods(
    running: &mut RunningAnalysis,
    release_state: &ReleaseState,
    serving: Option<Revision>,
) {
    let revision = running.revision;
    let change = |pod: &ReleasePod| release_state.change_of(pod, revision, serving);
    for pod in &release_state.pods {
        if pod.terminating || !running.is_older(pod) {
            continue;
        }
        // Where the settings changed, old pods may read the new ones: what they did before counts, and nothing since.
        if running.analysis.ticks() == 0 || change(pod) != Ok(Some(WorkloadDiff::Config)) {
            running.old.note(pod);
        }
    }
}

/// New states of new pods, of workloads that the revision changed since the one that served before.
pub(super) fn pod_states(
    running: &mut RunningAnalysis,
    release_state: &ReleaseState,
    serving: Option<Revision>,
) -> Vec<PodState> {
    note_old_pods(running, release_state, serving);
    let revision = running.revision;
    let change = |pod: &ReleasePod| release_state.change_of(pod, revision, serving);
    let mut states = Vec::new();
    for pod in &release_state.pods {
        if !running.is_new(pod) {
            continue;
        }
        // Made meanwhile, of a workload that is as it was: its trouble has another cause. Where the change is not known,
        // it is the release's own new pod.
        if change(pod) == Ok(None) {
            continue;
        }
        let stuck = pod.stuck();
        let now = ReportedPod {
            restarts: pod.restarts,
            loops: pod.is_crash_looping(),
            stuck,
            old_too: running.old.has(pod, stuck),
        };
        let before = running.reported_pods.get(&pod.name).copied();
        if before.unwrap_or_default() == now {
            continue;
        }
        running.reported_pods.insert(pod.name.clone(), now);
        states.push(PodState {
            name: pod.name.clone(),
            restarts: pod.restarts,
            crash_loop_back_off: now.loops,
            old_too: now.old_too,
            injected: false,
            stuck,
            workload: pod.workload_name().into(),
            container: pod.container.clone(),
        });
    }
    // One that is gone is no longer in the way of anything.
    let is_there = |name: &str| release_state.pods.iter().any(|pod| *pod.name == *name);
    running.reported_pods.retain(|name, told| {
        let stays = is_there(name);
        if !stays && told.stuck.is_some() {
            states.push(PodState {
                name: name.clone(),
                restarts: told.restarts,
                ..PodState::default()
            });
        }
        stays
    });
    states
}

#[cfg(test)]
pub(super) mod tests;
