//! Workload events for the analysis: the workloads when a revision appears, and what changes after that.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ReleaseController;
use super::state::{MAX_WORKLOADS, RunningAnalysis};
use crate::config::settings::ProbeConfig;
use crate::core::analysis::{
    AnalyzedWorkload, RolloutLessons, WorkloadChange, WorkloadDiff, WorkloadEvent,
};
use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::{Revision, Time};
use crate::release::{ReleasePod, ReleaseState, WorkloadState};

/// Templates that stay unchanged for this long belong to the known revision.
const TEMPLATES_STAND: Duration = Duration::from_secs(2);

/// Workloads, as `Deployment web`, with the identifier of their template.
pub(super) type WorkloadTemplates = Vec<(Box<str>, Box<str>)>;

/// What the analysis was told about one workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ReportedWorkload {
    /// As `Deployment web`.
    id: Box<str>,
    change: Option<WorkloadDiff>,
    /// Identifier of its template before the revision appeared.
    template_before: Option<Box<str>>,
    /// Whether its pods are really replaced.
    is_rolled: bool,
    has_template: bool,
    is_ready: bool,
    is_complete: bool,
    deadline_exceeded: bool,
    refused: bool,
    has_none: bool,
    held: bool,
}

impl ReportedWorkload {
    pub(super) fn new(workload: &AnalyzedWorkload, template_before: Option<&str>) -> Self {
        Self {
            id: workload.name.clone(),
            change: workload.change,
            template_before: template_before.map(Into::into),
            ..Self::default()
        }
    }

    /// Whether a pod belongs to it.
    pub(super) fn is_of(&self, pod: &ReleasePod) -> bool {
        *self.id == *pod.workload_name()
    }

    /// Whether a pod of it that was created since the revision appeared belongs to the revision.
    pub(super) fn makes_new_pods(&self) -> bool {
        match self.change {
            // While a hook runs, what is made is still of the old template.
            Some(WorkloadDiff::Template) => self.has_template,
            Some(WorkloadDiff::Config) => true,
            None => false,
        }
    }

    /// Whether the revision changed only settings that its pods read.
    pub(super) fn reads_changed_settings(&self) -> bool {
        self.change == Some(WorkloadDiff::Config)
    }

    /// Whether it cannot create its pods, or has exceeded its progress deadline.
    pub(super) const fn is_in_trouble(&self) -> bool {
        self.refused || self.deadline_exceeded
    }

    /// Whether its pods are replaced by new ones.
    pub(super) fn is_rolled(&self) -> bool {
        self.is_rolled
    }

    /// Takes an event, also one that is read back from a recording.
    pub(super) fn note(&mut self, what: WorkloadChange) {
        match what {
            WorkloadChange::Template => self.has_template = true,
            WorkloadChange::Ready => self.is_ready = true,
            WorkloadChange::Complete => self.is_complete = true,
            WorkloadChange::Deadline => self.deadline_exceeded = true,
            WorkloadChange::Refused => self.refused = true,
            WorkloadChange::Created => self.refused = false,
            WorkloadChange::None => self.has_none = true,
            WorkloadChange::Some => self.has_none = false,
            WorkloadChange::Held => self.held = true,
            WorkloadChange::Free => self.held = false,
        }
    }
}

impl ReleaseController {
    /// The workloads of a new revision; `None` if the cluster does not show its rollout.
    pub(super) fn workloads_at_start(
        &self,
        release_state: &ReleaseState,
        revision: Revision,
        serving: Option<Revision>,
    ) -> Option<Vec<AnalyzedWorkload>> {
        if release_state.workload_states.is_empty() {
            return None;
        }
        let states = release_state.workload_states.iter().take(MAX_WORKLOADS);
        let workloads = states.map(|state| {
            let change =
                release_state.change_of_workload(&state.kind, &state.name, revision, serving);
            let (change, unknown) = match change {
                Ok(change) => (change, None),
                // As if it had changed it: what goes wrong with it may be its own doing.
                Err(why) => (Some(WorkloadDiff::Template), Some(why.into())),
            };
            let before = self.before(state);
            let learned = |of: fn(&crate::core::analysis::WorkloadLessons) -> f64| {
                let id = state.id();
                let taught = self.state.taught.iter().flat_map(|one| &one.workloads);
                let own = taught.filter(|one| *one.name == *id);
                own.map(of).fold(0.0, f64::max)
            };
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it was a count"
            )]
            let restarts = learned(|one| f64::from(one.restarts)) as u32;
            AnalyzedWorkload {
                name: state.id().into(),
                change,
                unknown,
                // A part that is new must become complete as well, where it is known what was there before.
                was_complete: before.map_or(!self.state.workloads_before.is_empty(), |before| {
                    before.complete && before.wanted > 0
                }),
                stops_first: state.stops_first
                    || release_state.stops_first(&state.kind, &state.name, revision),
                probes: probing(&self.setup.release.probes, &state.name),
                template_at: None,
                gap_s: learned(|one| one.gap_s),
                ready_s: learned(|one| one.ready_s),
                restarts,
            }
        });
        Some(workloads.collect())
    }

    /// What the last passed rollouts taught about these endpoints.
    pub(super) fn learned(&self, endpoints: &[Box<str>]) -> crate::core::analysis::LearnedRollouts {
        let mut learned = crate::core::analysis::LearnedRollouts {
            rollouts: u32::try_from(self.state.taught.len()).unwrap_or(u32::MAX),
            endpoints: vec![[(0, 0); 3]; endpoints.len()],
            ..crate::core::analysis::LearnedRollouts::default()
        };
        let add = |sum: &mut (u64, u64), (k, n): &(u64, u64)| {
            sum.0 = sum.0.saturating_add(*k);
            sum.1 = sum.1.saturating_add(*n);
        };
        for taught in &self.state.taught {
            learned.longest_s = learned.longest_s.max(taught.rollout_s);
            for (sum, counts) in learned.pods.iter_mut().zip(&taught.pods) {
                add(sum, counts);
            }
            for (sum, counts) in learned.pool.iter_mut().zip(&taught.pool) {
                add(sum, counts);
            }
            for (name, counts) in &taught.endpoints {
                let Some(at) = endpoints.iter().position(|own| own == name) else {
                    continue;
                };
                for (sum, counts) in learned.endpoints[at].iter_mut().zip(counts) {
                    add(sum, counts);
                }
            }
        }
        learned
    }

    /// Learns from a rollout that passed.
    pub(super) fn learn_from(&mut self, taught: RolloutLessons) {
        if self.state.taught.len() >= super::state::MAX_TAUGHT {
            self.state.taught.pop_front();
        }
        self.state.taught.push_back(taught);
    }

    /// Remembers the templates while the newest revision is known: they tell its pods from the next one's. They must
    /// have been stable for a moment, since the next revision's templates may be seen before its record.
    pub(super) fn note_templates(&mut self, release_state: &ReleaseState) {
        let newest = release_state.newest().map(|record| record.revision);
        if newest.is_none() || newest != self.state.rollout.newest() {
            return;
        }
        let now = self.now();
        let states = release_state.workload_states.iter().take(MAX_WORKLOADS);
        let templates: WorkloadTemplates = states
            .filter(|state| state.observed)
            .filter_map(|state| Some((state.id().into(), state.template.clone()?)))
            .collect();
        if self.templates_seen.0 != templates {
            self.templates_seen = (templates, now);
        } else if now.since(self.templates_seen.1) >= TEMPLATES_STAND
            && self.state.templates != self.templates_seen.0
        {
            self.state.templates.clone_from(&self.templates_seen.0);
            self.is_dirty = true;
        }
    }

    /// The last known identifier of a workload's template.
    pub(super) fn template_before(&self, id: &str) -> Option<&str> {
        let mut templates = self.state.templates.iter();
        let found = templates.find(|(of, _)| **of == *id);
        found.map(|(_, template)| &**template)
    }

    /// What changed about the workloads since the last tick.
    pub(super) fn rollout_events(&mut self, release_state: &ReleaseState) -> Vec<WorkloadEvent> {
        let now = self.now();
        let Some(running) = &self.state.running else {
            return Vec::new();
        };
        let mut told = running.told.clone();
        // Also a helm that failed is done, and may have changed nothing.
        let newest = release_state.newest();
        let is_deployed = release_state.applied
            && newest.is_some_and(|record| record.status == RevisionStatus::Deployed);
        let t = seconds(running, now);
        let mut events = Vec::new();
        for (place, told) in told.iter_mut().enumerate() {
            let Ok(workload) = u16::try_from(place) else {
                break;
            };
            let mut states = release_state.workload_states.iter();
            let Some(state) = states.find(|state| *state.id() == *told.id) else {
                continue;
            };
            let own = release_state
                .pods
                .iter()
                .filter(|pod| running.is_own(pod) && *pod.workload_name() == *told.id);
            let has_own_pods = own.clone().next().is_some();
            // Where only settings changed, a pod that started since stands for them.
            let serves = told.change == Some(WorkloadDiff::Config)
                && own.clone().any(|pod| pod.ready_since.is_some());
            let context = WorkloadContext {
                before: self.before(state),
                // Of a workload of which nothing is known, old pods must not be taken for new ones.
                is_new: has_own_pods || is_deployed,
                is_deployed,
            };
            let mut happened = told.follow(state, &context);
            if serves && !told.is_ready {
                told.is_ready = true;
                happened.push(WorkloadChange::Ready);
            }
            events.extend(
                happened
                    .into_iter()
                    .map(|what| WorkloadEvent { t, workload, what }),
            );
        }
        if let Some(running) = &mut self.state.running {
            running.told = told;
        }
        events
    }
}

/// What else is known about a workload.
struct WorkloadContext<'a> {
    /// The workload before the revision appeared.
    before: Option<&'a WorkloadState>,
    /// If there was none: whether its template is the revision's.
    is_new: bool,
    /// Whether helm has finished successfully.
    is_deployed: bool,
}

impl ReportedWorkload {
    /// The events of one workload since the last tick.
    fn follow(
        &mut self,
        state: &WorkloadState,
        context: &WorkloadContext<'_>,
    ) -> Vec<WorkloadChange> {
        let before = context.before;
        let mut happened = Vec::new();
        let mut once = |told: &mut bool, is: bool, what| {
            if is && !*told {
                *told = true;
                happened.push(what);
            }
        };
        let same = self.template_before.is_some() && self.template_before == state.template;
        let is_known = state.observed && state.template.is_some();
        // A change of the manifest that the API server does not see as one: its pods are what this revision wants.
        let is_as_wanted = context.is_deployed && same && !state.paused;
        let is_other = !same && (self.template_before.is_some() || context.is_new);
        let has_template = is_known && (is_other || is_as_wanted);
        self.is_rolled |= is_known && is_other;
        once(
            &mut self.has_template,
            has_template,
            WorkloadChange::Template,
        );
        once(
            &mut self.is_ready,
            has_template && state.ready > 0,
            WorkloadChange::Ready,
        );
        once(
            &mut self.is_complete,
            has_template && state.is_complete_after(before),
            WorkloadChange::Complete,
        );
        // What its controller says before it has taken up the new template is about the old one.
        once(
            &mut self.deadline_exceeded,
            has_template && !same && state.deadline_exceeded,
            WorkloadChange::Deadline,
        );
        let mut change = |told: &mut bool, is: bool, begins, ends| {
            if is != *told {
                *told = is;
                happened.push(if is { begins } else { ends });
            }
        };
        change(
            &mut self.refused,
            has_template && !same && state.refused,
            WorkloadChange::Refused,
            WorkloadChange::Created,
        );
        change(
            &mut self.has_none,
            state.wanted > 0 && state.serving == 0,
            WorkloadChange::None,
            WorkloadChange::Some,
        );
        change(
            &mut self.held,
            state.is_held(),
            WorkloadChange::Held,
            WorkloadChange::Free,
        );
        happened
    }
}

/// Indices of the probes that probe a workload; `None` if all of them may.
fn probing(probes: &[Arc<ProbeConfig>], workload: &str) -> Option<Vec<u16>> {
    let named = |probe: &Arc<ProbeConfig>| probe.pods.as_ref()?.workload.clone();
    if probes.iter().all(|probe| named(probe).is_none()) {
        return None;
    }
    let own = probes
        .iter()
        .enumerate()
        .filter(|(_, probe)| named(probe).is_none_or(|named| *named == *workload));
    Some(
        own.filter_map(|(place, _)| u16::try_from(place).ok())
            .collect(),
    )
}

fn seconds(running: &RunningAnalysis, now: Time) -> f64 {
    now.since(running.began).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(template: &str, wanted: u32, ready: u32) -> WorkloadState {
        WorkloadState {
            kind: "Deployment".into(),
            name: "web".into(),
            template: Some(template.into()),
            observed: true,
            complete: ready == wanted,
            wanted,
            ready,
            serving: ready,
            lacks: wanted - ready,
            ..WorkloadState::default()
        }
    }

    fn after(before: &WorkloadState, is_deployed: bool) -> WorkloadContext<'_> {
        WorkloadContext {
            before: Some(before),
            is_new: false,
            is_deployed,
        }
    }

    /// A workload that the revision changed, with its template before.
    fn told(template: Option<&str>) -> ReportedWorkload {
        ReportedWorkload {
            id: "Deployment web".into(),
            change: Some(WorkloadDiff::Template),
            template_before: template.map(Into::into),
            ..ReportedWorkload::default()
        }
    }

    #[test]
    fn a_workload_of_which_nothing_is_known_has_new_pods_when_there_are_some() {
        use WorkloadChange::{Complete, Ready, Template};
        let mut told = told(None);
        let unknown = |is_new| WorkloadContext {
            before: None,
            is_new,
            is_deployed: false,
        };
        let now = state("one", 1, 1);
        assert_eq!(told.follow(&now, &unknown(false)), []);
        assert_eq!(
            told.follow(&now, &unknown(true)),
            [Template, Ready, Complete]
        );
    }

    #[test]
    fn a_rollout_is_told_step_by_step_and_each_step_once() {
        use WorkloadChange::{Complete, None as Gone, Ready, Some as Back, Template};
        let before = state("old", 2, 2);
        let mut told = told(Some("old"));
        let mut follow = |now: &WorkloadState| told.follow(now, &after(&before, false));
        // Helm has stored the record, and the workload is as it was.
        assert_eq!(follow(&before), []);
        assert_eq!(follow(&state("new", 2, 0)), [Template, Gone]);
        assert_eq!(follow(&state("new", 2, 0)), []);
        assert_eq!(follow(&state("new", 2, 1)), [Ready, Back]);
        assert_eq!(follow(&state("new", 2, 2)), [Complete]);
        assert_eq!(follow(&state("new", 2, 1)), []);
    }

    #[test]
    fn a_manifest_that_changes_nothing_in_the_cluster_is_complete_when_helm_is_done() {
        use WorkloadChange::{Complete, Ready, Template};
        let before = state("old", 2, 2);
        let mut told = told(Some("old"));
        assert_eq!(told.follow(&before, &after(&before, false)), []);
        let happened = told.follow(&before, &after(&before, true));
        assert_eq!(happened, [Template, Ready, Complete]);
        assert!(!told.is_rolled());
        // While it is paused, its controller makes nothing of a new template.
        let paused = WorkloadState {
            paused: true,
            ..state("old", 2, 2)
        };
        let mut told = self::told(Some("old"));
        let happened = told.follow(&paused, &after(&before, true));
        assert_eq!(happened, [WorkloadChange::Held]);
    }

    #[test]
    fn pods_are_those_of_the_revision_once_it_has_its_template() {
        let mut told = told(Some("old"));
        assert!(!told.makes_new_pods());
        told.follow(&state("new", 2, 0), &after(&state("old", 2, 2), false));
        assert!(told.makes_new_pods() && told.is_rolled());
        for (change, makes) in [(Some(WorkloadDiff::Config), true), (None, false)] {
            let told = ReportedWorkload {
                change,
                ..ReportedWorkload::default()
            };
            assert_eq!(told.makes_new_pods(), makes, "{change:?}");
        }
    }

    #[test]
    fn what_the_controller_said_of_the_old_template_is_not_held_against_the_new_one() {
        let before = WorkloadState {
            deadline_exceeded: true,
            refused: true,
            ..state("old", 2, 1)
        };
        let mut told = told(Some("old"));
        assert_eq!(told.follow(&before, &after(&before, false)), []);
        let now = WorkloadState {
            deadline_exceeded: true,
            ..state("new", 2, 0)
        };
        let happened = told.follow(&now, &after(&before, false));
        assert!(happened.contains(&WorkloadChange::Deadline), "{happened:?}");
    }

    #[test]
    fn scaled_to_zero_is_held_and_no_outage() {
        let before = state("old", 2, 2);
        let mut told = told(Some("old"));
        let happened = told.follow(&state("old", 0, 0), &after(&before, false));
        assert_eq!(happened, [WorkloadChange::Held]);
        let happened = told.follow(&before, &after(&before, false));
        assert_eq!(happened, [WorkloadChange::Free]);
    }
}
