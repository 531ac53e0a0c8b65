//! Results of pods that are probed directly: new ones against old ones, at the same time and with the same
//! dependencies.
//!
//! Old pods are the control group. An endpoint that fails for all of them says nothing about the new revision; if it
//! fails for a part of them, that much is tolerated of new pods as well.

use serde::{Deserialize, Serialize};

use super::rule::{AGES, Rule};
use super::{TickOutcome, run_length};

/// Pods of one side that the daemon probes in one tick, at most; the others follow in turn.
pub const MAX_ASKED: usize = 5;

/// New pods whose runs are remembered; the one probed longest ago is replaced.
const MAX_PODS: usize = 48;

/// Failures in a row of a pod before it counts as down (path D).
const MIN_RUN: u16 = 3;

/// Counts of new pods in one tick, by age class; the last class is for older pods.
pub(super) type ClassCounts = [(u16, u16); AGES + 1];

/// The revision of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSide {
    /// The revision under analysis.
    New,
    /// The one before.
    Old,
}

/// Results of one pod in one tick.
#[derive(Debug, Clone, Copy)]
pub struct PodTick<'a> {
    /// Number of the pod, unique during the analysis.
    pub pod: u32,
    /// Old or new.
    pub side: PodSide,
    /// The tick in which it became Ready.
    pub ready_tick: u32,
    /// One outcome for each endpoint; unknown if it was not probed.
    pub outcomes: &'a [TickOutcome],
    /// Latencies of successes in microseconds, one for each endpoint; empty if unknown.
    pub latency_us: &'a [Option<u32>],
}

/// How a pod's result at an endpoint counts in an instance of the comparison.
pub(super) trait PodReading {
    fn read(&self, look: &PodTick<'_>, endpoint: usize) -> TickOutcome;
}

impl<F: Fn(&PodTick<'_>, usize) -> TickOutcome> PodReading for F {
    fn read(&self, look: &PodTick<'_>, endpoint: usize) -> TickOutcome {
        self(look, endpoint)
    }
}

/// Results of one endpoint's pods in this tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct EndpointTick {
    #[serde(rename = "old_good")]
    pub(super) old_successes: u16,
    #[serde(rename = "old_bad")]
    pub(super) old_failures: u16,
    #[serde(rename = "new_good")]
    pub(super) new_successes: u16,
    #[serde(rename = "new_bad")]
    pub(super) new_failures: u16,
}

impl EndpointTick {
    pub(super) fn old(self) -> u16 {
        self.old_successes + self.old_failures
    }

    /// Old pods were probed, and none answered well.
    pub(super) fn control_lost(self) -> bool {
        self.old_failures > 0 && self.old_successes == 0
    }
}

/// An endpoint's history with new and old pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct DirectEndpoint {
    pub(super) answers: EndpointTick,
    /// Consecutive ticks with the control lost, among those in which old pods were probed.
    pub(super) lost_run: u32,
    /// Consecutive ticks with a success of an old pod, among the same ticks.
    pub(super) well_run: u32,
    /// `F`: consecutive ticks in which new pods were probed and all failed.
    pub(super) down: u32,
    /// `K`: those of them with a success of an old pod.
    pub(super) controlled: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct DirectPod {
    id: u32,
    last_tick: u32,
}

/// Failures in a row of one pod at one endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct FailureRun {
    failures: u16,
    /// Ticks from the first of them to the last result.
    since: u16,
    /// The tick of its last result.
    last: u32,
}

impl FailureRun {
    fn take(&mut self, tick: u32, failed: bool) {
        if !failed {
            self.failures = 0;
        } else if self.failures == 0 {
            (self.failures, self.since) = (1, 0);
        } else {
            self.failures = self.failures.saturating_add(1);
            let since = u16::try_from(tick - self.last).unwrap_or(u16::MAX);
            self.since = self.since.saturating_add(since);
        }
        self.last = tick;
    }
}

/// The results of all pods that are probed directly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DirectResults {
    pub(super) endpoints: Vec<DirectEndpoint>,
    pods: Vec<DirectPod>,
    /// For each remembered pod and endpoint whether it has ever answered well.
    #[serde(with = "run_length")]
    warm: Vec<bool>,
    /// Failures in a row of each; empty if path D is off.
    #[serde(with = "run_length")]
    runs: Vec<FailureRun>,
}

/// Path D: all new pods of an endpoint are down while old ones answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct EndpointDown {
    pub(super) endpoint: usize,
    pub(super) pods: u32,
    pub(super) ticks: u32,
}

impl DirectResults {
    pub(super) fn new(endpoints: usize, with_runs: bool) -> Self {
        Self {
            endpoints: vec![DirectEndpoint::default(); endpoints],
            pods: Vec::with_capacity(MAX_PODS),
            warm: vec![false; MAX_PODS * endpoints],
            runs: if with_runs {
                vec![FailureRun::default(); MAX_PODS * endpoints]
            } else {
                Vec::new()
            },
        }
    }

    /// Adds up the pods' results of this tick, and follows the control of each endpoint.
    pub(super) fn take(
        &mut self,
        rule: &Rule,
        tick: u32,
        looks: &[PodTick<'_>],
        reading: &impl PodReading,
    ) {
        for endpoint in &mut self.endpoints {
            endpoint.answers = EndpointTick::default();
        }
        for look in asked(looks, PodSide::Old, self.endpoints.len()) {
            for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
                match reading.read(look, at) {
                    TickOutcome::Success => endpoint.answers.old_successes += 1,
                    TickOutcome::Failure => endpoint.answers.old_failures += 1,
                    TickOutcome::Unknown
                    | TickOutcome::NotDue
                    | TickOutcome::Limited
                    | TickOutcome::Unresolved => {}
                }
            }
        }
        for look in asked(looks, PodSide::New, self.endpoints.len()) {
            if in_grace(rule, tick, look) {
                continue;
            }
            let slot = self.slot(look.pod, tick);
            for at in 0..self.endpoints.len() {
                let outcome = reading.read(look, at);
                match outcome {
                    TickOutcome::Success => self.endpoints[at].answers.new_successes += 1,
                    TickOutcome::Failure => self.endpoints[at].answers.new_failures += 1,
                    TickOutcome::Unknown
                    | TickOutcome::NotDue
                    | TickOutcome::Limited
                    | TickOutcome::Unresolved => continue,
                }
                if let Some(run) = self.runs.get_mut(slot * self.endpoints.len() + at) {
                    run.take(tick, outcome == TickOutcome::Failure);
                }
            }
        }
        for endpoint in &mut self.endpoints {
            let answers = endpoint.answers;
            if answers.old() > 0 {
                if answers.control_lost() {
                    endpoint.lost_run += 1;
                    endpoint.well_run = 0;
                } else {
                    endpoint.lost_run = 0;
                    endpoint.well_run += 1;
                }
            }
            if answers.new_successes > 0 || answers.control_lost() {
                endpoint.down = 0;
                endpoint.controlled = 0;
            } else if answers.new_failures > 0 {
                endpoint.down += 1;
                endpoint.controlled += u32::from(answers.old_successes > 0);
            }
        }
    }

    /// Path D. `excluded` says which endpoints were excluded before this tick.
    pub(super) fn down(
        &self,
        rule: &Rule,
        tick: u32,
        excluded: impl Fn(usize) -> bool,
    ) -> Option<EndpointDown> {
        if self.runs.is_empty() {
            return None;
        }
        let hold = rule.hold(rule.pod_hold_s);
        let count = self.endpoints.len();
        (0..count).find_map(|at| {
            let endpoint = &self.endpoints[at];
            if excluded(at)
                || endpoint.answers.new_failures == 0
                || endpoint.down < hold
                || endpoint.controlled < rule.pod_control
            {
                return None;
            }
            let (mut pods, mut longest) = (0, 0);
            for slot in 0..self.pods.len() {
                let run = self.runs[slot * count + at];
                if run.failures < MIN_RUN || tick - run.last >= hold {
                    continue;
                }
                pods += 1;
                longest = longest.max(tick - run.last + u32::from(run.since) + 1);
            }
            (pods >= 2 && longest >= hold).then_some(EndpointDown {
                endpoint: at,
                pods,
                ticks: endpoint.down,
            })
        })
    }

    /// Counts of the stratum of new pods in this tick; `excluded` says which endpoints are excluded in it.
    pub(super) fn count(
        &mut self,
        rule: &Rule,
        tick: u32,
        looks: &[PodTick<'_>],
        reading: &impl PodReading,
        excluded: impl Fn(usize) -> bool,
    ) -> ClassCounts {
        let cold = rule.ticks_up(rule.pod_cold_s);
        let mut counts = ClassCounts::default();
        for look in asked(looks, PodSide::New, self.endpoints.len()) {
            if in_grace(rule, tick, look) {
                continue;
            }
            let age = tick.saturating_sub(look.ready_tick);
            let class = rule.age_class(f64::from(age) * rule.interval_s);
            let slot = self.slot(look.pod, tick);
            for at in 0..self.endpoints.len() {
                let outcome = reading.read(look, at);
                let warm = &mut self.warm[slot * self.endpoints.len() + at];
                let is_counted = *warm || tick >= look.ready_tick.saturating_add(cold);
                *warm |= outcome == TickOutcome::Success;
                let answers = self.endpoints[at].answers;
                let old_failing = answers.old() > 0 && answers.old_failures * 2 >= answers.old();
                let is_result = matches!(outcome, TickOutcome::Success | TickOutcome::Failure);
                if is_result && is_counted && !old_failing && !excluded(at) {
                    counts[class].0 += u16::from(outcome == TickOutcome::Failure);
                    counts[class].1 += 1;
                }
            }
        }
        counts
    }

    /// The index of a pod; a new one takes a free place, or that of the pod probed longest ago.
    fn slot(&mut self, pod: u32, tick: u32) -> usize {
        let slot = match self.pods.iter().position(|known| known.id == pod) {
            Some(slot) => slot,
            None if self.pods.len() < MAX_PODS => {
                self.pods.push(DirectPod {
                    id: pod,
                    last_tick: tick,
                });
                self.pods.len() - 1
            }
            None => {
                let oldest = (0..self.pods.len()).min_by_key(|slot| self.pods[*slot].last_tick);
                let slot = oldest.unwrap_or(0);
                let places = slot * self.endpoints.len()..(slot + 1) * self.endpoints.len();
                self.warm[places.clone()].fill(false);
                if let Some(runs) = self.runs.get_mut(places) {
                    runs.fill(FailureRun::default());
                }
                self.pods[slot].id = pod;
                slot
            }
        };
        self.pods[slot].last_tick = tick;
        slot
    }

    pub(super) fn is_sound(&self, endpoints: usize, ticks: u32) -> bool {
        self.endpoints.len() == endpoints
            && self.pods.len() <= MAX_PODS
            && self.warm.len() == MAX_PODS * endpoints
            && (self.runs.is_empty() || self.runs.len() == MAX_PODS * endpoints)
            && self.runs.iter().all(|run| run.last <= ticks)
    }

    pub(super) fn bytes(&self) -> usize {
        self.endpoints.capacity() * size_of::<DirectEndpoint>()
            + self.pods.capacity() * size_of::<DirectPod>()
            + self.warm.capacity()
            + self.runs.capacity() * size_of::<FailureRun>()
    }
}

/// The pods of one side that were probed. A pod with outcomes for another number of endpoints is skipped.
fn asked<'a, 'b>(
    looks: &'a [PodTick<'b>],
    side: PodSide,
    endpoints: usize,
) -> impl Iterator<Item = &'a PodTick<'b>> {
    let was_asked = |look: &PodTick<'_>| {
        look.outcomes
            .iter()
            .any(|outcome| *outcome != TickOutcome::Unknown)
    };
    looks.iter().filter(move |look| {
        look.side == side && look.outcomes.len() == endpoints && was_asked(look)
    })
}

/// Whether a pod became Ready so recently that it does not count yet.
fn in_grace(rule: &Rule, tick: u32, look: &PodTick<'_>) -> bool {
    tick < look
        .ready_tick
        .saturating_add(rule.ticks_up(rule.pod_grace_s))
}
