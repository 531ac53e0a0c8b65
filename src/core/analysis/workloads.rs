//! The rollout by workload: what the revision changed, what became Ready and complete, what cannot start.

use serde::{Deserialize, Serialize};

use super::rule::{InvalidRule, Rule};
use super::warm_up::RolloutCompletion;
use super::{MAX_ENDPOINTS, PodState, StuckReason, WorkloadDiff};

/// Maximum number of workloads of a release; further ones are ignored.
pub const MAX_WORKLOADS: usize = 500;

/// Pods that cannot start and that are remembered; more of them add nothing.
const MAX_STUCK: usize = 64;

/// A workload of the release when the revision appeared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnalyzedWorkload {
    /// As `Deployment web`.
    pub name: Box<str>,
    /// What this revision changed of it.
    pub change: Option<WorkloadDiff>,
    /// Why it is unknown whether the revision changed it; then it counts as changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Box<str>>,
    /// Whether it was complete when the revision appeared.
    pub was_complete: bool,
    /// Whether its strategy can leave it without pods.
    pub stops_first: bool,
    /// Indices of the endpoints that probe it; `None` if unknown, so that all of them may.
    pub probes: Option<Vec<u16>>,
    /// When it got the new template, in seconds; `None`: not yet.
    pub template_at: Option<f64>,
    /// Learned: the longest time without a Ready pod, in seconds.
    pub gap_s: f64,
    /// Learned: the longest time from the new template to the first Ready pod, in seconds.
    pub ready_s: f64,
    /// Learned: the most restarts of a pod.
    pub restarts: u32,
}

/// A change of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkloadChange {
    /// It got the new template.
    Template,
    /// The first pod made from the new template is Ready.
    Ready,
    /// The rollout of it is complete.
    Complete,
    /// Its progress deadline is exceeded.
    Deadline,
    /// Its pods cannot be created.
    Refused,
    /// They can again.
    Created,
    /// It has no Ready pod of any revision.
    None,
    /// It has one.
    Some,
    /// It is scaled to zero, or paused.
    Held,
    /// It is neither of both any longer.
    Free,
}

/// A change of a workload at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WorkloadEvent {
    /// Seconds after the revision appeared.
    pub t: f64,
    /// The workload's index in the start.
    pub workload: u16,
    /// What happened.
    pub what: WorkloadChange,
}

/// State of a workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkloadProgress {
    pub(super) is: AnalyzedWorkload,
    pub(super) ready_at: Option<f64>,
    pub(super) complete_at: Option<f64>,
    deadline: bool,
    refused_since: Option<f64>,
    has_none: bool,
    pub(super) held: bool,
    /// Ticks without a Ready pod while its rollout ran.
    pub(super) gap_ticks: u32,
    /// The most restarts of one of its new pods.
    pub(super) most_restarts: u32,
}

/// A pod that cannot start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct StuckPod {
    name: Box<str>,
    pub(super) workload: Option<u16>,
    since: f64,
    pub(super) what: StuckReason,
    pub(super) container: Box<str>,
}

/// All workloads of the release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct AnalyzedWorkloads {
    /// `None` if the cluster does not show the rollout.
    pub(super) states: Option<Vec<WorkloadProgress>>,
    pub(super) stuck: Vec<StuckPod>,
    /// The last tick in which a workload was expected to be away, in seconds.
    pub(super) last_downtime: Option<f64>,
}

/// Why a workload is not ready (path E).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum NotReady {
    Late { after_s: f64 },
    Deadline,
    Refused,
}

impl AnalyzedWorkloads {
    pub(super) fn new(workloads: Option<&[AnalyzedWorkload]>) -> Self {
        let begin = |workload: &AnalyzedWorkload| WorkloadProgress {
            is: workload.clone(),
            ready_at: None,
            complete_at: None,
            deadline: false,
            refused_since: None,
            has_none: false,
            held: false,
            gap_ticks: 0,
            most_restarts: 0,
        };
        Self {
            states: workloads.map(|workloads| workloads.iter().map(begin).collect()),
            stuck: Vec::new(),
            last_downtime: None,
        }
    }

    pub(super) fn check(
        workloads: &[AnalyzedWorkload],
        endpoints: usize,
    ) -> Result<(), InvalidRule> {
        if workloads.len() > MAX_WORKLOADS {
            return Err(InvalidRule::new(
                "workloads",
                format!(
                    "has {} entries, but may have {MAX_WORKLOADS}",
                    workloads.len()
                ),
            ));
        }
        for (at, workload) in workloads.iter().enumerate() {
            let field = |name: &str| format!("workloads[{at}].{name}");
            let mut probes = workload.probes.iter().flatten();
            if probes.any(|probe| usize::from(*probe) >= endpoints.min(MAX_ENDPOINTS)) {
                return Err(InvalidRule::new(field("probes"), "names no endpoint"));
            }
            for (name, value) in [
                ("template_at", workload.template_at.unwrap_or(0.0)),
                ("gap_s", workload.gap_s),
                ("ready_s", workload.ready_s),
            ] {
                if !(value.is_finite() && value >= 0.0) {
                    let problem = format!("is {value}, but must be 0 or more");
                    return Err(InvalidRule::new(field(name), problem));
                }
            }
        }
        Ok(())
    }

    /// Takes the changes since the tick before.
    pub(super) fn take(&mut self, events: &[WorkloadEvent]) {
        let Some(states) = &mut self.states else {
            return;
        };
        for event in events {
            let Some(state) = states.get_mut(usize::from(event.workload)) else {
                continue;
            };
            match event.what {
                WorkloadChange::Template => {
                    state.is.template_at.get_or_insert(event.t);
                }
                WorkloadChange::Ready => {
                    state.ready_at.get_or_insert(event.t);
                }
                WorkloadChange::Complete => {
                    state.complete_at.get_or_insert(event.t);
                }
                WorkloadChange::Deadline => state.deadline = true,
                WorkloadChange::Refused => {
                    state.refused_since.get_or_insert(event.t);
                }
                WorkloadChange::Created => state.refused_since = None,
                WorkloadChange::None => state.has_none = true,
                WorkloadChange::Some => state.has_none = false,
                WorkloadChange::Held => state.held = true,
                WorkloadChange::Free => state.held = false,
            }
        }
    }

    /// Index and state of a workload by its name.
    pub(super) fn named(&self, name: &str) -> Option<(u16, &WorkloadProgress)> {
        let mut states = self.states.iter().flatten().enumerate();
        let (at, state) = states.find(|(_, state)| &*state.is.name == name)?;
        Some((u16::try_from(at).ok()?, state))
    }

    /// Whether a pod's state counts against the revision. If the rollout can be seen, only that of a workload that the
    /// revision changed; never that of a container outside the chart.
    pub(super) fn can_reject(&self, pod: &PodState) -> bool {
        !pod.injected
            && (self.states.is_none()
                || self
                    .named(&pod.workload)
                    .is_some_and(|(_, state)| state.is.change.is_some()))
    }

    /// The restarts that are normal for a pod.
    pub(super) fn normal_restarts(&self, pod: &PodState) -> u32 {
        self.named(&pod.workload)
            .map_or(0, |(_, state)| state.is.restarts)
    }

    /// Remembers restarts, and pods that cannot start.
    pub(super) fn take_pods(&mut self, t: f64, pods: &[PodState]) {
        for pod in pods {
            let place = self.named(&pod.workload).map(|(at, _)| at);
            if let (Some(at), Some(states), false) = (place, &mut self.states, pod.injected) {
                let state = &mut states[usize::from(at)];
                state.most_restarts = state.most_restarts.max(pod.restarts);
            }
            let known = self.stuck.iter().position(|stuck| stuck.name == pod.name);
            match (pod.stuck, known) {
                (Some(what), _) if pod.old_too || !self.can_reject(pod) => {
                    let _ = what;
                    known.map(|at| self.stuck.swap_remove(at));
                }
                (Some(what), Some(at)) => self.stuck[at].what = what,
                (Some(what), None) if self.stuck.len() < MAX_STUCK => self.stuck.push(StuckPod {
                    name: pod.name.clone(),
                    workload: place,
                    since: t,
                    what,
                    container: pod.container.clone(),
                }),
                (Some(_), None) => {}
                (None, known) => {
                    known.map(|at| self.stuck.swap_remove(at));
                }
            }
        }
    }

    /// Pods that could not start for long enough, while none of their workload became Ready.
    pub(super) fn cannot_start(&self, rule: &Rule, t: f64) -> Option<&StuckPod> {
        self.stuck.iter().find(|pod| {
            let state = self.state_of(pod.workload);
            t - pod.since >= rule.stuck_s - 1e-9
                && state.is_none_or(|state| state.ready_at.is_none())
        })
    }

    pub(super) fn state_of(&self, workload: Option<u16>) -> Option<&WorkloadProgress> {
        self.states.as_ref()?.get(usize::from(workload?))
    }

    /// Path E.
    pub(super) fn not_ready(&self, rule: &Rule, t: f64) -> Option<(&WorkloadProgress, NotReady)> {
        let states = self.states.as_ref()?;
        let is_neighbour_away = states.iter().any(|state| {
            state.is.change.is_none() && state.is.was_complete && state.has_none && !state.held
        });
        if is_neighbour_away {
            return None;
        }
        states.iter().find_map(|state| {
            let is_asked = state.is.change == Some(WorkloadDiff::Template)
                && state.is.was_complete
                && !state.held
                && state.ready_at.is_none()
                // Where its strategy replaces no pods by itself, it is complete without new ones.
                && state.complete_at.is_none();
            if !is_asked {
                return None;
            }
            let limit = rule.ready_within_s.max(2.0 * state.is.ready_s);
            let late = state.is.template_at.map(|at| t - at);
            let why = if late.is_some_and(|late| late >= limit - 1e-9) {
                NotReady::Late { after_s: limit }
            } else if state.deadline {
                NotReady::Deadline
            } else if state
                .refused_since
                .is_some_and(|since| t - since >= rule.stuck_s - 1e-9)
            {
                NotReady::Refused
            } else {
                return None;
            };
            Some((state, why))
        })
    }

    /// Counts the ticks without a pod, and calls `expected` for each workload whose downtime is expected in this tick
    /// and `held` for each that is paused; both get the indices of the endpoints that probe it.
    pub(super) fn excused(
        &mut self,
        rule: &Rule,
        t: f64,
        mut expected: impl FnMut(Option<&[u16]>),
        mut held: impl FnMut(Option<&[u16]>),
    ) {
        let dt = rule.interval_s;
        // Where it is not known who asks it, a part that is held must not silence what others answer.
        let mut unmapped = self.states.iter().flatten();
        let all_held = unmapped.all(|state| state.held || state.is.probes.is_some());
        for state in self.states.iter_mut().flatten() {
            let probes = state.is.probes.as_deref();
            if state.held && (probes.is_some() || all_held) {
                held(probes);
            }
            let is_gap = state.is.change == Some(WorkloadDiff::Template)
                && state.is.stops_first
                && state.has_none
                && state.complete_at.is_none();
            if !is_gap {
                continue;
            }
            state.gap_ticks += 1;
            let allowed = rule.downtime_s.max(2.0 * state.is.gap_s);
            if f64::from(state.gap_ticks) * dt <= allowed + 1e-9 {
                self.last_downtime = Some(t);
                expected(probes);
            }
        }
    }

    /// Workloads whose template the revision changed.
    pub(super) fn rolled(&self) -> impl Iterator<Item = &WorkloadProgress> {
        let states = self.states.iter().flatten();
        states.filter(|state| state.is.change == Some(WorkloadDiff::Template))
    }

    /// When the rollout was complete, according to the workloads; `None` if they are unknown.
    pub(super) fn completion(&self) -> Option<RolloutCompletion> {
        self.states.as_ref()?;
        let any_complete_before = self.rolled().any(|state| state.is.was_complete);
        let waited_for = self
            .rolled()
            .filter(|state| state.is.was_complete || !any_complete_before);
        let mut latest = 0.0;
        for state in waited_for {
            let Some(at) = state.complete_at else {
                return Some(RolloutCompletion::Running);
            };
            latest = f64::max(latest, at);
        }
        Some(RolloutCompletion::At(latest))
    }

    /// Whether the first new pod is Ready.
    pub(super) fn serves_new(&self) -> bool {
        self.rolled().any(|state| state.ready_at.is_some())
    }

    pub(super) fn is_sound(&self, endpoints: usize) -> bool {
        let states = self.states.iter().flatten();
        self.stuck.len() <= MAX_STUCK
            && self.stuck.iter().all(|pod| pod.since.is_finite())
            && states.clone().count() <= MAX_WORKLOADS
            && states
                .map(|state| &state.is)
                .all(|is| Self::check(std::slice::from_ref(is), endpoints).is_ok())
    }

    pub(super) fn bytes(&self) -> usize {
        let states = self.states.iter().flatten().map(|state| {
            let probes = state.is.probes.as_ref().map_or(0, Vec::capacity);
            let unknown = state.is.unknown.as_ref().map_or(0, |why| why.len());
            let texts = state.is.name.len() + unknown;
            size_of::<WorkloadProgress>() + texts + probes * size_of::<u16>()
        });
        let stuck = self.stuck.iter();
        let texts = stuck.map(|pod| pod.name.len() + pod.container.len());
        states.sum::<usize>() + self.stuck.capacity() * size_of::<StuckPod>() + texts.sum::<usize>()
    }
}
