//! Whether the rollout of a revision is complete, as far as the cluster shows it.

use std::time::Duration;

use super::ReleaseController;
use super::state::MAX_WORKLOADS;
use crate::release::{ReleaseState, WorkloadState};

/// A template that changed without a new revision counts as the previous state after this time.
const TEMPLATES_STAND: Duration = Duration::from_secs(30);

/// Workloads that a sentence names.
const MAX_NAMED: usize = 3;

impl ReleaseController {
    /// Remembers the workloads of an idle release.
    pub(super) fn note_workloads(&mut self, release_state: &ReleaseState) {
        let now = self.now();
        let rollout = &self.state.rollout;
        let is_at_rest = rollout.phase().candidate().is_none() && !rollout.is_starting();
        // While a controller has not taken up a change, its template is not known.
        if !is_at_rest
            || !release_state
                .workload_states
                .iter()
                .all(|it| it.observed || it.wanted == 0)
        {
            return;
        }
        let workloads: Vec<WorkloadState> = release_state
            .workload_states
            .iter()
            .take(MAX_WORKLOADS)
            .cloned()
            .collect();
        if !have_same_templates(&workloads, &self.state.workloads) {
            self.templates_since = now;
        }
        // Another template may be that of a revision whose record is not seen yet, and its rollout is not what was before.
        let before = &self.state.workloads_before;
        let stands = before.is_empty()
            || have_same_templates(&workloads, before)
            || now.since(self.templates_since) >= TEMPLATES_STAND;
        if stands && !self.state.doubtful {
            self.state.workloads_before.clone_from(&workloads);
        }
        self.state.workloads = workloads;
    }

    /// Re-evaluates the workloads after time has passed without a change.
    pub(super) fn look_at_workloads(&mut self) {
        let observed = self.release_state.borrow().clone();
        let newest = observed
            .release_state
            .newest()
            .map(|record| record.revision);
        if observed.trouble.is_none() && newest == self.state.rollout.newest() {
            self.note_workloads(&observed.release_state);
            self.note_templates(&observed.release_state);
        }
    }

    /// Whether the rollout of the newest revision is complete; `None` if the cluster does not show it.
    pub(super) fn is_rolled_out(&self, release_state: &ReleaseState) -> Option<bool> {
        let newest = release_state.newest().map(|record| record.revision);
        if newest.is_some() && release_state.complete == newest {
            return Some(true);
        }
        if release_state.workload_states.is_empty() {
            return None;
        }
        Some(release_state.applied && self.incomplete(release_state).next().is_none())
    }

    /// Passes a change to the analysis. A rollout that was complete stays so: replicas come and go.
    pub(super) fn tell_of_rollout(&mut self, release_state: &ReleaseState) {
        let is_complete = self.is_rolled_out(release_state);
        // Helm may wait for something else than pods until long after the end of the watch.
        let seems_complete =
            self.incomplete(release_state).next().is_none() && self.has_new_template(release_state);
        let Some(running) = &mut self.state.running else {
            return;
        };
        running.was_complete |= is_complete == Some(true);
        let rolled_out = is_complete.map(|_| running.was_complete || seems_complete);
        if rolled_out != running.rolled_out && rolled_out.is_some() {
            running.rolled_out = rolled_out;
            running.tick.rolled_out = rolled_out;
        }
    }

    /// What keeps the rollout from being complete, in words.
    pub(super) fn what_is_missing(&self, release_state: &ReleaseState) -> String {
        let mut named: Vec<String> = self.incomplete(release_state).map(in_words).collect();
        let more = named.len().saturating_sub(MAX_NAMED);
        named.truncate(MAX_NAMED);
        if more > 0 {
            named.push(format!("and {more} more"));
        }
        if named.is_empty() {
            let status = release_state.newest().map(|record| record.status);
            let status = status.map_or_else(|| "not there".into(), |status| status.to_string());
            return format!("helm is not done with it, its record is {status}");
        }
        named.join("; ")
    }

    fn incomplete<'a>(
        &'a self,
        release_state: &'a ReleaseState,
    ) -> impl Iterator<Item = &'a WorkloadState> {
        release_state.workload_states.iter().filter(|workload| {
            let before = self.before(workload);
            !workload.is_complete_after(before)
        })
    }

    fn has_new_template(&self, release_state: &ReleaseState) -> bool {
        release_state.workload_states.iter().any(|workload| {
            let before = self.before(workload);
            workload.template.is_some()
                && before.is_none_or(|before| before.template != workload.template)
        })
    }

    pub(super) fn before(&self, workload: &WorkloadState) -> Option<&WorkloadState> {
        let mut before = self.state.workloads_before.iter();
        before.find(|before| before.is(workload))
    }
}

fn have_same_templates(some: &[WorkloadState], others: &[WorkloadState]) -> bool {
    let is_among = |one: &WorkloadState| {
        let mut others = others.iter();
        others.any(|other| other.is(one) && other.template == one.template)
    };
    some.len() == others.len() && some.iter().all(is_among)
}

fn in_words(workload: &WorkloadState) -> String {
    let WorkloadState {
        kind,
        name,
        ready,
        wanted,
        ..
    } = workload;
    if *wanted == 0 && workload.lacks == u32::MAX {
        return format!("{kind} {name} is not there");
    }
    if ready >= wanted {
        return format!(
            "{kind} {name}: its {wanted} new pods are Ready, and older ones are still there"
        );
    }
    format!("{kind} {name}: {ready} of {wanted} pods are of its newest template and Ready")
}
