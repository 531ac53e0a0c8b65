//! Direct soundings: new pods against old ones, at the same time and with the same dependencies.
//!
//! Old pods are the control. An endpoint that fails for all of them says nothing about the new revision, and what a
//! share of them shows is tolerated of the new pods as well.

use serde::{Deserialize, Serialize};

use super::Mark;
use super::rule::Rule;

/// Pods of one revision that are asked in one tick, at most; the others have their turn later.
pub const MAX_ASKED: usize = 5;

/// New pods whose runs are remembered; the one asked longest ago gives way.
const MAX_PODS: usize = 48;

/// To which revision a pod belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The revision that is being judged.
    New,
    /// The one before.
    Old,
}

/// What one pod answered in one tick.
#[derive(Debug, Clone, Copy)]
pub struct PodLook<'a> {
    /// The pod, by a number that is its own throughout the watch.
    pub pod: u32,
    /// Old or new.
    pub side: Side,
    /// The node that it runs on, by a number.
    pub node: u16,
    /// The tick in which it became Ready.
    pub ready_tick: u32,
    /// One mark for each endpoint; void where it was not asked.
    pub marks: &'a [Mark],
}

impl PodLook<'_> {
    fn was_asked(&self) -> bool {
        self.marks.iter().any(|mark| *mark != Mark::Void)
    }
}

/// What one endpoint's pods answered in this tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Answers {
    pub(super) old_good: u16,
    pub(super) old_bad: u16,
    pub(super) new_good: u16,
    pub(super) new_bad: u16,
}

impl Answers {
    pub(super) fn old(self) -> u16 {
        self.old_good + self.old_bad
    }

    /// Old pods were asked, and none answered well.
    pub(super) fn control_lost(self) -> bool {
        self.old_bad > 0 && self.old_good == 0
    }
}

/// An endpoint's history with new and old pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    pub(super) answers: Answers,
    /// Ticks in a row with the control lost, among those in which old pods were asked.
    pub(super) lost_run: u32,
    /// Ticks in a row with a good answer from an old pod, likewise.
    pub(super) well_run: u32,
    /// `F`: ticks in a row in which new pods were asked and all failed.
    pub(super) down: u32,
    /// `K`: those of them with a good answer from an old pod.
    pub(super) controlled: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pod {
    id: u32,
    last_tick: u32,
}

/// Failures and outcomes of one node's new pods in one tick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct NodeCount {
    node: u16,
    failed: u16,
    total: u16,
}

/// What is known from direct soundings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Direct {
    pub(super) endpoints: Vec<Endpoint>,
    pods: Vec<Pod>,
    /// Failures in a row, for each remembered pod and endpoint.
    runs: Vec<u16>,
    /// Whether the pod has answered well there, likewise.
    warm: Vec<bool>,
    /// For the estimate: counts by node in each of the last W ticks.
    nodes: Vec<[NodeCount; MAX_ASKED]>,
    next: usize,
    filled: usize,
}

/// Path D: all new pods of an endpoint are down while old ones answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Down {
    pub(super) endpoint: usize,
    pub(super) pods: u32,
    pub(super) ticks: u32,
}

impl Direct {
    pub(super) fn new(endpoints: usize, window_ticks: u32) -> Self {
        Self {
            endpoints: vec![Endpoint::default(); endpoints],
            pods: Vec::with_capacity(MAX_PODS),
            runs: vec![0; MAX_PODS * endpoints],
            warm: vec![false; MAX_PODS * endpoints],
            nodes: vec![[NodeCount::default(); MAX_ASKED]; window_ticks.max(1) as usize],
            next: 0,
            filled: 0,
        }
    }

    /// Adds up what the pods answered in this tick, and follows the control of each endpoint.
    pub(super) fn take(&mut self, rule: &Rule, tick: u32, looks: &[PodLook<'_>]) {
        for endpoint in &mut self.endpoints {
            endpoint.answers = Answers::default();
        }
        for look in asked(looks, Side::Old, self.endpoints.len()) {
            for (endpoint, mark) in self.endpoints.iter_mut().zip(look.marks) {
                match mark {
                    Mark::Good => endpoint.answers.old_good += 1,
                    Mark::Bad => endpoint.answers.old_bad += 1,
                    Mark::Void => {}
                }
            }
        }
        for look in asked(looks, Side::New, self.endpoints.len()) {
            if in_grace(rule, tick, look) {
                continue;
            }
            let slot = self.slot(look.pod, tick);
            for (at, mark) in look.marks.iter().enumerate() {
                let run = &mut self.runs[slot * self.endpoints.len() + at];
                match mark {
                    Mark::Good => {
                        self.endpoints[at].answers.new_good += 1;
                        *run = 0;
                    }
                    Mark::Bad => {
                        self.endpoints[at].answers.new_bad += 1;
                        *run = run.saturating_add(1);
                    }
                    Mark::Void => {}
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
            if answers.new_good > 0 || answers.control_lost() {
                endpoint.down = 0;
                endpoint.controlled = 0;
            } else if answers.new_bad > 0 {
                endpoint.down += 1;
                endpoint.controlled += u32::from(answers.old_good > 0);
            }
        }
    }

    /// Path D. `aside` says which endpoints were set aside before this tick.
    pub(super) fn down(
        &self,
        rule: &Rule,
        tick: u32,
        looks: &[PodLook<'_>],
        aside: impl Fn(usize) -> bool,
    ) -> Option<Down> {
        let hold = rule.hold(rule.pod_hold_s);
        (0..self.endpoints.len()).find_map(|at| {
            let endpoint = &self.endpoints[at];
            if aside(at) || endpoint.down < hold || endpoint.controlled < rule.pod_control {
                return None;
            }
            let (mut pods, mut longest) = (0, 0);
            for look in asked(looks, Side::New, self.endpoints.len()) {
                if in_grace(rule, tick, look) || look.marks[at] == Mark::Void {
                    continue;
                }
                let run = u32::from(self.run(look.pod, at));
                pods += u32::from(run >= 3);
                longest = longest.max(run);
            }
            (pods >= 2 && longest >= hold).then_some(Down {
                endpoint: at,
                pods,
                ticks: endpoint.down,
            })
        })
    }

    /// Counts of the stratum of new pods in this tick; `aside` says which endpoints are set aside in it.
    pub(super) fn count(
        &mut self,
        rule: &Rule,
        tick: u32,
        looks: &[PodLook<'_>],
        aside: impl Fn(usize) -> bool,
    ) -> (u16, u16) {
        let cold = rule.ticks_up(rule.pod_cold_s);
        let mut by_node = [NodeCount::default(); MAX_ASKED];
        let (mut failed, mut total) = (0, 0);
        for (count, look) in by_node
            .iter_mut()
            .zip(asked(looks, Side::New, self.endpoints.len()))
        {
            count.node = look.node;
            if in_grace(rule, tick, look) {
                continue;
            }
            let slot = self.slot(look.pod, tick);
            for (at, mark) in look.marks.iter().enumerate() {
                let warm = &mut self.warm[slot * self.endpoints.len() + at];
                let counts = *warm || tick >= look.ready_tick.saturating_add(cold);
                *warm |= *mark == Mark::Good;
                let answers = self.endpoints[at].answers;
                let old_failing = answers.old() > 0 && answers.old_bad * 2 >= answers.old();
                if *mark == Mark::Void || !counts || aside(at) || old_failing {
                    continue;
                }
                count.total += 1;
                count.failed += u16::from(*mark == Mark::Bad);
            }
            failed += count.failed;
            total += count.total;
        }
        self.nodes[self.next] = by_node;
        self.next = (self.next + 1) % self.nodes.len();
        self.filled = (self.filled + 1).min(self.nodes.len());
        (failed, total)
    }

    /// Failures and outcomes of the last W ticks, without the worst node where there are two or more.
    pub(super) fn estimate(&self) -> (u64, u64) {
        let recent = || self.nodes[..self.filled].iter().flatten();
        let (failed, total) = sum(recent());
        let mut least: Option<(u64, u64)> = None;
        let mut looked_at = [None; MAX_PODS];
        let mut nodes = 0;
        for count in recent().filter(|count| count.total > 0) {
            if looked_at[..nodes].contains(&Some(count.node)) || nodes == MAX_PODS {
                continue;
            }
            looked_at[nodes] = Some(count.node);
            nodes += 1;
            let (k, n) = sum(recent().filter(|other| other.node == count.node));
            let rest = (failed - k, total - n);
            let rate = |(k, n): (u64, u64)| k as f64 / n.max(1) as f64;
            if rest.1 > 0 && least.is_none_or(|least| rate(rest) < rate(least)) {
                least = Some(rest);
            }
        }
        if nodes >= 2 {
            least.unwrap_or((failed, total))
        } else {
            (failed, total)
        }
    }

    fn run(&self, pod: u32, endpoint: usize) -> u16 {
        self.pods
            .iter()
            .position(|known| known.id == pod)
            .map_or(0, |slot| self.runs[slot * self.endpoints.len() + endpoint])
    }

    /// The place of a pod; a new one takes a free place, or that of the pod asked longest ago.
    fn slot(&mut self, pod: u32, tick: u32) -> usize {
        let slot = match self.pods.iter().position(|known| known.id == pod) {
            Some(slot) => slot,
            None if self.pods.len() < MAX_PODS => {
                self.pods.push(Pod {
                    id: pod,
                    last_tick: tick,
                });
                self.pods.len() - 1
            }
            None => {
                let oldest = (0..self.pods.len()).min_by_key(|slot| self.pods[*slot].last_tick);
                let slot = oldest.unwrap_or(0);
                let places = slot * self.endpoints.len()..(slot + 1) * self.endpoints.len();
                self.runs[places.clone()].fill(0);
                self.warm[places].fill(false);
                self.pods[slot].id = pod;
                slot
            }
        };
        self.pods[slot].last_tick = tick;
        slot
    }

    pub(super) fn is_sound(&self, endpoints: usize) -> bool {
        self.endpoints.len() == endpoints
            && self.pods.len() <= MAX_PODS
            && self.runs.len() == MAX_PODS * endpoints
            && self.warm.len() == MAX_PODS * endpoints
            && self.next < self.nodes.len()
            && self.filled <= self.nodes.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.endpoints.capacity() * size_of::<Endpoint>()
            + self.pods.capacity() * size_of::<Pod>()
            + self.runs.capacity() * size_of::<u16>()
            + self.warm.capacity()
            + self.nodes.capacity() * size_of::<[NodeCount; MAX_ASKED]>()
    }
}

fn sum<'a>(counts: impl Iterator<Item = &'a NodeCount>) -> (u64, u64) {
    counts.fold((0, 0), |(failed, total), count| {
        (
            failed + u64::from(count.failed),
            total + u64::from(count.total),
        )
    })
}

/// The pods of one side that were asked anything, as many as may be. One with marks for other endpoints is passed over.
fn asked<'a, 'b>(
    looks: &'a [PodLook<'b>],
    side: Side,
    endpoints: usize,
) -> impl Iterator<Item = &'a PodLook<'b>> {
    looks
        .iter()
        .filter(move |look| look.side == side && look.marks.len() == endpoints && look.was_asked())
        .take(MAX_ASKED)
}

/// A pod that has just become Ready is given a moment.
fn in_grace(rule: &Rule, tick: u32, look: &PodLook<'_>) -> bool {
    tick < look
        .ready_tick
        .saturating_add(rule.ticks_up(rule.pod_grace_s))
}
