//! The rollout as the analysis sees it: the release's workloads when a revision appears, and what happens to them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Guard;
use super::saved::{MAX_WORKLOADS, Watching};
use crate::config::settings::Probe;
use crate::release::{Facts, WorkloadState};
use crate::units::{Revision, Time};
use crate::verdict::{Change, RolloutEvent, Teaching, Workload, WorkloadChange};

/// What the analysis was told of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ToldWorkload {
    /// As `Deployment web`.
    id: Box<str>,
    has_template: bool,
    is_ready: bool,
    is_complete: bool,
    deadline_exceeded: bool,
    refused: bool,
    has_none: bool,
    held: bool,
}

impl ToldWorkload {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.into(),
            ..Self::default()
        }
    }
}

impl Guard {
    /// The workloads of a revision that appears; `None` where nobody can see its rollout.
    pub(super) fn workloads_at_start(
        &self,
        facts: &Facts,
        revision: Revision,
        serving: Option<Revision>,
    ) -> Option<Vec<Workload>> {
        if facts.workload_states.is_empty() {
            return None;
        }
        let states = facts.workload_states.iter().take(MAX_WORKLOADS);
        let workloads = states.map(|state| {
            let change = facts.change_of_workload(&state.kind, &state.name, revision, serving);
            let (change, unknown) = match change {
                Ok(change) => (change, None),
                // As if it had changed it: what goes wrong with it may be its own doing.
                Err(why) => (Some(Change::Template), Some(why.into())),
            };
            let before = self.before(state);
            let learned = |of: fn(&crate::verdict::WorkloadTeaching) -> f64| {
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
            Workload {
                name: state.id().into(),
                change,
                unknown,
                was_complete: before.is_some_and(|before| before.complete && before.wanted > 0),
                stops_first: state.stops_first,
                probes: asking(&self.setup.release.probes, &state.name),
                template_at: None,
                gap_s: learned(|one| one.gap_s),
                ready_s: learned(|one| one.ready_s),
                restarts,
            }
        });
        Some(workloads.collect())
    }

    /// What the last kept rollouts taught, for these endpoints.
    pub(super) fn learned(&self, endpoints: &[Box<str>]) -> crate::verdict::Learned {
        let mut learned = crate::verdict::Learned {
            rollouts: u32::try_from(self.state.taught.len()).unwrap_or(u32::MAX),
            endpoints: vec![[(0, 0); 3]; endpoints.len()],
            ..crate::verdict::Learned::default()
        };
        let add = |sum: &mut (u64, u64), (k, n): &(u64, u64)| {
            sum.0 = sum.0.saturating_add(*k);
            sum.1 = sum.1.saturating_add(*n);
        };
        for taught in &self.state.taught {
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

    /// A rollout that was kept teaches those after it.
    pub(super) fn learn_from(&mut self, taught: Teaching) {
        if self.state.taught.len() >= super::saved::MAX_TAUGHT {
            self.state.taught.pop_front();
        }
        self.state.taught.push_back(taught);
    }

    /// What became known of the workloads since the tick before.
    pub(super) fn rollout_events(&mut self, facts: &Facts) -> Vec<RolloutEvent> {
        let now = self.now();
        let Some(watching) = &self.state.watching else {
            return Vec::new();
        };
        let mut told = watching.told.clone();
        let t = seconds(watching, now);
        let mut events = Vec::new();
        for (place, told) in told.iter_mut().enumerate() {
            let Ok(workload) = u16::try_from(place) else {
                break;
            };
            let mut states = facts.workload_states.iter();
            let Some(state) = states.find(|state| *state.id() == *told.id) else {
                continue;
            };
            let own = facts
                .pods
                .iter()
                .filter(|pod| watching.is_own(pod) && *pod.workload_name() == *told.id);
            let has_own_pods = own.clone().next().is_some();
            // Where only settings changed, a pod that started since stands for them.
            let serves = own.clone().any(|pod| pod.ready_since.is_some());
            let seen = Seen {
                before: self.before(state),
                // Of a workload of which nothing is known, old pods must not be taken for new ones.
                is_new: has_own_pods || facts.applied,
                applied: facts.applied,
            };
            let mut happened = told.follow(state, &seen);
            if serves && !told.is_ready {
                told.is_ready = true;
                happened.push(WorkloadChange::Ready);
            }
            events.extend(
                happened
                    .into_iter()
                    .map(|what| RolloutEvent { t, workload, what }),
            );
        }
        if let Some(watching) = &mut self.state.watching {
            watching.told = told;
        }
        events
    }
}

/// What is known around a workload.
struct Seen<'a> {
    /// The workload before the revision appeared.
    before: Option<&'a WorkloadState>,
    /// Where there is none: whether its template is the revision's.
    is_new: bool,
    /// Whether helm is done.
    applied: bool,
}

impl ToldWorkload {
    /// What is new about the workload.
    fn follow(&mut self, state: &WorkloadState, seen: &Seen<'_>) -> Vec<WorkloadChange> {
        let Seen {
            before, applied, ..
        } = *seen;
        let mut happened = Vec::new();
        let mut once = |told: &mut bool, is: bool, what| {
            if is && !*told {
                *told = true;
                happened.push(what);
            }
        };
        let same = before.is_some_and(|before| before.template == state.template);
        let is_known = state.observed && state.template.is_some();
        // A change of the manifest that the API server does not see as one: its pods are what this revision wants.
        let is_as_wanted = applied && same;
        let has_template = is_known && (!same && (before.is_some() || seen.is_new) || is_as_wanted);
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

/// Places of the probes that ask a workload; `None` where all of them may.
fn asking(probes: &[Arc<Probe>], workload: &str) -> Option<Vec<u16>> {
    let named = |probe: &Arc<Probe>| probe.pods.as_ref()?.workload.clone();
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

fn seconds(watching: &Watching, now: Time) -> f64 {
    now.since(watching.began).as_secs_f64()
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

    fn seen(before: &WorkloadState, applied: bool) -> Seen<'_> {
        Seen {
            before: Some(before),
            is_new: false,
            applied,
        }
    }

    #[test]
    fn a_workload_of_which_nothing_is_known_has_new_pods_when_there_are_some() {
        use WorkloadChange::{Complete, Ready, Template};
        let mut told = ToldWorkload::new("Deployment web");
        let unknown = |is_new| Seen {
            before: None,
            is_new,
            applied: false,
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
        let mut told = ToldWorkload::new("Deployment web");
        let mut follow = |now: &WorkloadState| told.follow(now, &seen(&before, false));
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
        let mut told = ToldWorkload::new("Deployment web");
        assert_eq!(told.follow(&before, &seen(&before, false)), []);
        let happened = told.follow(&before, &seen(&before, true));
        assert_eq!(happened, [Template, Ready, Complete]);
    }

    #[test]
    fn what_the_controller_said_of_the_old_template_is_not_held_against_the_new_one() {
        let before = WorkloadState {
            deadline_exceeded: true,
            refused: true,
            ..state("old", 2, 1)
        };
        let mut told = ToldWorkload::new("Deployment web");
        assert_eq!(told.follow(&before, &seen(&before, false)), []);
        let now = WorkloadState {
            deadline_exceeded: true,
            ..state("new", 2, 0)
        };
        let happened = told.follow(&now, &seen(&before, false));
        assert!(happened.contains(&WorkloadChange::Deadline), "{happened:?}");
    }

    #[test]
    fn scaled_to_zero_is_held_and_no_outage() {
        let before = state("old", 2, 2);
        let mut told = ToldWorkload::new("Deployment web");
        let happened = told.follow(&state("old", 0, 0), &seen(&before, false));
        assert_eq!(happened, [WorkloadChange::Held]);
        let happened = told.follow(&before, &seen(&before, false));
        assert_eq!(happened, [WorkloadChange::Free]);
    }
}
