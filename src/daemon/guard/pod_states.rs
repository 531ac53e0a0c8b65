//! What new pods are like, as far as it can be held against the revision.
//!
//! A pod counts when the revision changed its workload: its template, or settings that it reads. A pod of another workload
//! that is made meanwhile, as by an autoscaler or a drained node, fails for another reason. And an old pod excuses only new
//! pods of the same workload: one that has crashed for months says nothing about its neighbours.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::saved::Watching;
use crate::release::Facts;
use crate::release::Pod;
use crate::units::{Revision, Time};
use crate::verdict::{Change, PodState, Stuck};

/// Trouble of old pods in this watch, by their workloads: a new pod of the same workload that has the same is excused,
/// also when the old one has gone.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct OldTrouble {
    looping: BTreeSet<String>,
    stuck: BTreeSet<(String, Stuck)>,
}

impl OldTrouble {
    pub(super) fn note(&mut self, old: &Pod) {
        if old.is_crash_looping() {
            self.looping.insert(old.workload_name());
        }
        if let Some(stuck) = old.stuck() {
            self.stuck.insert((old.workload_name(), stuck));
        }
    }

    pub(super) fn has(&self, new: &Pod, stuck: Option<Stuck>) -> bool {
        let workload = new.workload_name();
        self.looping.contains(&workload)
            || stuck.is_some_and(|stuck| self.stuck.contains(&(workload, stuck)))
    }
}

/// States of new pods that are not known yet: of workloads that the revision changed since the one that served before.
pub(super) fn pod_states(
    watching: &mut Watching,
    facts: &Facts,
    serving: Option<Revision>,
    now: Time,
) -> Vec<PodState> {
    let revision = watching.revision;
    let change = |pod: &Pod| facts.change_of(pod, revision, serving);
    for pod in &facts.pods {
        if pod.terminating || !watching.is_older(pod) {
            continue;
        }
        // Where the settings changed, old pods may read the new ones: what they did before counts, and nothing since.
        if watching.watch.ticks() == 0 || change(pod) != Ok(Some(Change::Config)) {
            watching.old.note(pod);
        }
    }
    let mut states = Vec::new();
    for pod in &facts.pods {
        if !watching.is_own(pod) {
            continue;
        }
        let (change, unknown) = match change(pod) {
            Ok(Some(change)) => (Some(change), None),
            // Made meanwhile, of a workload that is as it was: its trouble has another cause.
            Ok(None) => continue,
            // As if it had changed it: it is the release's own new pod.
            Err(why) => (None, Some(why)),
        };
        let stuck = watching.is_stuck(pod, facts, now);
        let state = (pod.restarts, pod.is_crash_looping());
        if stuck.is_none()
            && (state == (0, false) || watching.crashes.get(&pod.name) == Some(&state))
        {
            continue;
        }
        watching.crashes.insert(pod.name.clone(), state);
        // Where no manifests are stored there is nothing to compare.
        let unknown = unknown.filter(|_| !pod.workload_kind.is_empty());
        states.push(PodState {
            restarts: pod.restarts,
            crash_loop_back_off: pod.is_crash_looping(),
            old_too: watching.old.has(pod, stuck),
            stuck,
            workload: pod.workload_name().into(),
            container: pod.container.clone(),
            change,
            unknown: unknown.map(Into::into),
        });
    }
    states
}

#[cfg(test)]
mod tests;
