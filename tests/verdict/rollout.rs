//! Whole rolling updates: pods that come and go, a Service that picks one of them, and soundings of single pods.

use fastrand::Rng;
use leadsman::verdict::{Finding, MAX_ASKED, Mark, PodLook, Side, Start, Tick, Watch};

use super::world::{BASE, ENDPOINTS, rule, start, within};

const NODES: u16 = 5;
/// From the verdict until the rollback is under way.
const INITIATE_S: f64 = 2.0;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// New pods fail more often, in every endpoint; 1 is dead.
    Rise(f64),
    /// New pods never answer one endpoint.
    OneEndpointDead,
    /// New pods fail everything for so many seconds after they became Ready.
    ColdStart(f64),
    /// For old and new alike: a share of the soundings of these endpoints fails, from one time to another.
    Common {
        /// Which endpoints.
        endpoints: [bool; ENDPOINTS],
        /// The share that fails.
        share: f64,
        /// From when.
        from_s: f64,
        /// Until when.
        until_s: f64,
    },
    /// Everything fails for 10 s, in new pods only.
    BurstOfNewPods {
        /// From when.
        from_s: f64,
    },
}

/// One kind of rolling update: 10 % surge, at least one pod, and no pod less than there should be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rollout {
    /// How many pods.
    pub(crate) replicas: usize,
    /// A pod becomes Ready so long after it was created, from and to.
    pub(crate) pod_start_s: (f64, f64),
    /// The share of soundings that fail anyway, in the watch and in the hour before.
    pub(crate) base: f64,
    /// Whether pods are asked directly as well.
    pub(crate) direct: bool,
}

/// A pod's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    id: u32,
    side: Side,
    #[allow(dead_code)]
    node: u16,
    /// When it became Ready; old pods were so from the start.
    pub(crate) ready_s: f64,
    /// When it was told to go.
    pub(crate) gone_s: f64,
}

impl Pod {
    fn serves(&self, t: f64) -> bool {
        self.ready_s <= t && t < self.gone_s
    }
}

/// How a rolling update ended.
#[derive(Debug)]
pub(crate) struct RolloutEnd {
    /// What convicted, if anything.
    pub(crate) finding: Option<Finding>,
    /// From the first new pod Ready to the verdict, in seconds, at worst.
    pub(crate) delay_s: f64,
    /// The share of users' requests in five minutes that fail because of the revision: turned back after the verdict …
    pub(crate) users_failing: f64,
    /// … and if nobody did anything.
    pub(crate) users_failing_unguarded: f64,
}

/// The pods of one rolling update and what is wrong with them.
pub(crate) struct Deployed {
    /// Old and new pods, in the order in which they go or become Ready.
    pub(crate) pods: Vec<Pod>,
    /// What goes wrong.
    pub(crate) fault: Fault,
    base: f64,
}

impl Rollout {
    /// A rollout of so many pods that start in 6 to 8 s, at the base rate, with direct soundings.
    pub(crate) const fn of(replicas: usize) -> Self {
        Self {
            replicas,
            pod_start_s: (6.0, 8.0),
            base: BASE,
            direct: true,
        }
    }

    /// Draws when pods become Ready; each that does makes an old one go, and the next one is created at once.
    pub(crate) fn deploy(&self, rng: &mut Rng) -> Deployed {
        let surge = self.replicas.div_ceil(10).max(1);
        let ready = rolling(rng, self.replicas, surge, self.pod_start_s);
        let first_node = rng.u16(..NODES);
        let node = |number: usize| (first_node + number as u16) % NODES;
        let old = ready.iter().enumerate().map(|(number, gone_s)| Pod {
            id: number as u32,
            side: Side::Old,
            node: node(number),
            ready_s: 0.0,
            gone_s: *gone_s,
        });
        let new = ready.iter().enumerate().map(|(number, ready_s)| Pod {
            id: (self.replicas + number) as u32,
            side: Side::New,
            // A new pod often comes to the node where an old one went, but not always.
            node: node(number + rng.usize(..2)),
            ready_s: *ready_s,
            gone_s: f64::INFINITY,
        });
        Deployed {
            pods: old.chain(new).collect(),
            fault: Fault::None,
            base: self.base,
        }
    }

    /// Judges a rolling update of this kind.
    pub(crate) fn judge(&self, rng: &mut Rng, deployed: &Deployed) -> RolloutEnd {
        let rule = rule(1.0);
        let known = start(rng, 1.0);
        let mut start = Start {
            settled_at: None,
            direct: self.direct,
            ..known
        };
        if self.base == 0.0 {
            start.baseline.fill((0, 3600));
        }
        let (first, last) = (deployed.first_ready_s(), deployed.last_ready_s());
        let mut watch = Watch::new(rule, &start).unwrap();
        let mut turns = [0, 0];
        let mut pod_marks = [[Mark::Void; ENDPOINTS]; 2 * MAX_ASKED];
        let mut delay_s = f64::INFINITY;
        while !watch.is_over() {
            let t = watch.elapsed_s();
            if t >= last {
                watch.settled(last);
            }
            let mut marks = [Mark::Void; ENDPOINTS];
            for (at, mark) in marks.iter_mut().enumerate() {
                *mark = deployed.through_the_service(rng, t, at);
            }
            let asked = deployed.in_turn(t, &mut turns);
            for (place, pod) in asked.iter().enumerate() {
                for (at, mark) in pod_marks[place].iter_mut().enumerate() {
                    *mark = deployed.asked(rng, pod, t, at);
                }
            }
            let looks: Vec<PodLook<'_>> = asked
                .iter()
                .zip(&pod_marks)
                .map(|(pod, marks)| PodLook {
                    pod: pod.id,
                    side: pod.side,
                    latency_us: &[],
                    ready_tick: pod.ready_s.ceil() as u32,
                    marks,
                })
                .collect();
            let direct: &[PodLook<'_>] = if self.direct { &looks } else { &[] };
            let seen = Tick {
                marks: &marks,
                direct,
                ..Tick::default()
            };
            if watch.tick(&seen).is_some() {
                delay_s = t + 1.0 - first.ceil();
                break;
            }
        }
        let finding = watch.finding().cloned();
        let verdict_s = finding
            .as_ref()
            .map_or(f64::INFINITY, |found| found.t + 1.0);
        let ended = self.turned_back(rng, deployed, verdict_s + INITIATE_S);
        RolloutEnd {
            finding,
            delay_s,
            users_failing: deployed.users_failing(&ended),
            users_failing_unguarded: deployed.users_failing(&deployed.pods),
        }
    }

    /// The new pods when the release is turned back at this time: those that are not Ready go at once, the others as
    /// pods of the old revision become Ready again.
    fn turned_back(&self, rng: &mut Rng, deployed: &Deployed, at_s: f64) -> Vec<Pod> {
        let surge = self.replicas.div_ceil(10).max(1);
        let mut pods: Vec<Pod> = deployed
            .pods
            .iter()
            .filter(|pod| pod.side == Side::New && pod.ready_s <= at_s)
            .copied()
            .collect();
        let ready_again = rolling(rng, pods.len(), surge, self.pod_start_s);
        for (pod, again_s) in pods.iter_mut().zip(ready_again) {
            pod.gone_s = at_s + again_s;
        }
        pods
    }
}

/// When so many pods become Ready, of which so many may be starting at a time.
fn rolling(rng: &mut Rng, pods: usize, surge: usize, start_s: (f64, f64)) -> Vec<f64> {
    let mut free_s = vec![0.0; surge];
    let mut ready: Vec<f64> = (0..pods)
        .map(|_| {
            let slot = (0..surge)
                .min_by(|a, b| f64::total_cmp(&free_s[*a], &free_s[*b]))
                .unwrap();
            free_s[slot] += within(rng, start_s.0, start_s.1);
            free_s[slot]
        })
        .collect();
    ready.sort_by(f64::total_cmp);
    ready
}

impl Deployed {
    fn new_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.side == Side::New)
    }

    /// When the first new pod became Ready.
    pub(crate) fn first_ready_s(&self) -> f64 {
        self.new_pods()
            .map(|pod| pod.ready_s)
            .fold(f64::INFINITY, f64::min)
    }

    /// When the last one did, and so when the last old one went.
    pub(crate) fn last_ready_s(&self) -> f64 {
        self.new_pods().map(|pod| pod.ready_s).fold(0.0, f64::max)
    }

    /// How likely a sounding of this pod fails.
    fn rate(&self, pod: &Pod, t: f64, at: usize) -> f64 {
        let is_new = pod.side == Side::New;
        match self.fault {
            Fault::Rise(rise) if is_new => (self.base + rise).min(1.0),
            Fault::OneEndpointDead if is_new && at == 1 => 1.0,
            Fault::ColdStart(cold_s) if is_new && t < pod.ready_s + cold_s => 1.0,
            Fault::BurstOfNewPods { from_s } if is_new && from_s <= t && t < from_s + 10.0 => 1.0,
            Fault::Common {
                endpoints,
                share,
                from_s,
                until_s,
            } if endpoints[at] && from_s <= t && t < until_s => {
                1.0 - (1.0 - self.base) * (1.0 - share)
            }
            _ => self.base,
        }
    }

    fn asked(&self, rng: &mut Rng, pod: &Pod, t: f64, at: usize) -> Mark {
        mark(rng.f64() < self.rate(pod, t, at))
    }

    /// The Service picks one of the Ready pods, for each sounding anew. One that was told to go within the last second
    /// may still be picked, and then fails half of the time: nothing fails by itself where the base rate is 0.
    fn through_the_service(&self, rng: &mut Rng, t: f64, at: usize) -> Mark {
        let going = |pod: &Pod| self.base > 0.0 && t - 1.0 < pod.gone_s && pod.gone_s <= t;
        let candidates = self.pods.iter().filter(|pod| pod.serves(t) || going(pod));
        let Some(pod) = candidates.clone().nth(rng.usize(..candidates.count())) else {
            return Mark::Bad;
        };
        if going(pod) && rng.bool() {
            return Mark::Bad;
        }
        self.asked(rng, pod, t, at)
    }

    /// At most five Ready pods of each revision, in turn.
    fn in_turn(&self, t: f64, turns: &mut [usize; 2]) -> Vec<Pod> {
        let mut asked = Vec::new();
        for (side, turn) in [Side::New, Side::Old].into_iter().zip(turns) {
            let ready: Vec<&Pod> = self
                .pods
                .iter()
                .filter(|pod| pod.side == side && pod.serves(t))
                .collect();
            let count = ready.len().min(MAX_ASKED);
            asked.extend((0..count).map(|next| *ready[(*turn + next) % ready.len()]));
            *turn += count;
        }
        asked
    }

    /// The share of users' requests in five minutes that fail because of the revision, while these new pods serve.
    fn users_failing(&self, new_pods: &[Pod]) -> f64 {
        let replicas = self.pods.len() as f64 / 2.0;
        let excess = match self.fault {
            Fault::Rise(rise) => rise.min(1.0 - self.base),
            Fault::OneEndpointDead => (1.0 - self.base) / ENDPOINTS as f64,
            _ => 0.0,
        };
        let served: f64 = new_pods
            .iter()
            .filter(|pod| pod.side == Side::New)
            .map(|pod| (pod.gone_s.min(300.0) - pod.ready_s).max(0.0))
            .sum();
        served / replicas / 300.0 * excess
    }
}

fn mark(bad: bool) -> Mark {
    if bad { Mark::Bad } else { Mark::Good }
}
