//! How a rollout replaces pods: which are Ready when, and what the cluster says of it.

use fastrand::Rng;
use leadsman::core::analysis::{
    AnalyzedWorkload, MAX_ASKED, PodSide, WorkloadChange, WorkloadDiff, WorkloadEvent,
};

use super::world::{event, within};

/// How many pods, and how they are replaced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// For the table.
    pub(crate) name: &'static str,
    /// How many pods.
    pub(crate) replicas: usize,
    /// So many more may be there.
    pub(crate) surge: usize,
    /// So many fewer may be Ready.
    pub(crate) unavailable: usize,
    /// The old pods go before the new ones start.
    pub(crate) stops_first: bool,
}

impl Shape {
    const fn of(name: &'static str, replicas: usize, surge: usize, unavailable: usize) -> Self {
        Self {
            name,
            replicas,
            surge,
            unavailable,
            stops_first: false,
        }
    }

    /// One pod, replaced without a gap.
    pub(crate) const ONE: Self = Self::of("1", 1, 1, 0);
    /// Three pods, one by one.
    pub(crate) const THREE: Self = Self::of("3", 3, 1, 0);
    /// Five pods.
    pub(crate) const FIVE: Self = Self::of("5", 5, 2, 1);
    /// Six pods, one by one.
    pub(crate) const SIX: Self = Self::of("6", 6, 1, 0);
    /// Twenty pods with the defaults of a Deployment.
    pub(crate) const TWENTY: Self = Self::of("20", 20, 5, 5);
    /// Twenty pods, two by two.
    pub(crate) const TWENTY_SLOW: Self = Self::of("20s", 20, 2, 0);
    /// Twenty pods, one by one.
    pub(crate) const TWENTY_SINGLE: Self = Self::of("20x1", 20, 1, 0);
    /// One pod that goes before the next one starts.
    pub(crate) const RECREATED: Self = Self {
        stops_first: true,
        ..Self::of("recreated", 1, 0, 1)
    };

    /// The workload as it is known when the revision appears.
    pub(crate) fn workload(self) -> AnalyzedWorkload {
        AnalyzedWorkload {
            name: "Deployment web".into(),
            change: Some(WorkloadDiff::Template),
            unknown: None,
            was_complete: true,
            stops_first: self.stops_first,
            probes: None,
            template_at: Some(0.0),
            gap_s: 0.0,
            ready_s: 0.0,
            restarts: 0,
        }
    }

    /// Draws when pods become Ready and go. A pod that becomes Ready lets an old one go, and that the next one start.
    /// Before `from_s` a hook runs, and nothing happens to the pods.
    pub(crate) fn deploy(self, rng: &mut Rng, from_s: f64, start_s: (f64, f64)) -> Deployed {
        let mut gone_s: Vec<f64> = Vec::new();
        let mut starting: Vec<f64> = Vec::new();
        let mut ready_s: Vec<f64> = Vec::new();
        let mut created = 0;
        let mut now = from_s;
        loop {
            let mut available = self.replicas - gone_s.len() + ready_s.len();
            while available > self.replicas - self.unavailable && gone_s.len() < self.replicas {
                gone_s.push(now);
                available -= 1;
            }
            let old = self.replicas - gone_s.len();
            while created < self.replicas && old + created < self.replicas + self.surge {
                created += 1;
                starting.push(now + within(rng, start_s.0, start_s.1));
            }
            let next = (0..starting.len()).min_by(|a, b| starting[*a].total_cmp(&starting[*b]));
            let Some(next) = next else { break };
            now = starting.swap_remove(next);
            ready_s.push(now);
        }
        let old = gone_s.iter().enumerate().map(|(number, gone_s)| Pod {
            id: number as u32,
            number,
            side: PodSide::Old,
            // Old pods have been Ready for long.
            ready_s: 0.0,
            gone_s: *gone_s,
        });
        let new = ready_s.iter().enumerate().map(|(number, ready_s)| Pod {
            id: (self.replicas + number) as u32,
            number,
            side: PodSide::New,
            ready_s: *ready_s,
            gone_s: f64::INFINITY,
        });
        let mut events = Vec::new();
        if self.stops_first {
            events.push(event(from_s, WorkloadChange::None));
            events.push(event(ready_s[0], WorkloadChange::Some));
        }
        events.push(event(ready_s[0], WorkloadChange::Ready));
        let complete_s = f64::max(now, gone_s.iter().copied().fold(0.0, f64::max));
        events.push(event(complete_s, WorkloadChange::Complete));
        Deployed {
            pods: old.chain(new).collect(),
            first_ready_s: ready_s[0],
            complete_s,
            events,
        }
    }
}

/// A pod's life.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod {
    /// Its own throughout the watch.
    pub(crate) id: u32,
    /// Among those of its side, in the order in which they go or become Ready.
    pub(crate) number: usize,
    /// Old or new.
    pub(crate) side: PodSide,
    /// When it became Ready.
    pub(crate) ready_s: f64,
    /// When it was told to go.
    pub(crate) gone_s: f64,
}

impl Pod {
    /// Whether it is Ready and stays for now.
    pub(crate) fn serves(&self, t: f64) -> bool {
        self.ready_s <= t && t < self.gone_s
    }
}

/// The pods of one rollout.
#[derive(Debug, Clone)]
pub(crate) struct Deployed {
    /// Old ones, then new ones.
    pub(crate) pods: Vec<Pod>,
    /// When the first new pod became Ready.
    pub(crate) first_ready_s: f64,
    /// When the last one was, and all old ones told to go.
    pub(crate) complete_s: f64,
    /// What the cluster says of it, in order of time.
    pub(crate) events: Vec<WorkloadEvent>,
}

impl Deployed {
    /// A rollout whose new pods never become Ready: those that may go have gone, and no more happens.
    pub(crate) fn stuck(shape: Shape) -> Self {
        let pods = (shape.unavailable..shape.replicas).map(|number| Pod {
            id: number as u32,
            number,
            side: PodSide::Old,
            ready_s: 0.0,
            gone_s: f64::INFINITY,
        });
        Self {
            pods: pods.collect(),
            first_ready_s: f64::INFINITY,
            complete_s: f64::INFINITY,
            events: Vec::new(),
        }
    }

    /// The pods that the Service picks from: those that serve, and for a while those that were told to go.
    pub(crate) fn picked_at<'a>(&'a self, t: f64, drain_s: f64, into: &mut Vec<&'a Pod>) {
        into.clear();
        let picked = |pod: &&Pod| pod.ready_s <= t && t < pod.gone_s + drain_s;
        into.extend(self.pods.iter().filter(picked));
    }

    /// At most five pods of each side that serve, each side in its own turn.
    pub(crate) fn in_turn<'a>(&'a self, t: f64, turns: &mut [usize; 2], into: &mut Vec<&'a Pod>) {
        into.clear();
        for (side, turn) in [PodSide::New, PodSide::Old].into_iter().zip(turns) {
            let serving = self
                .pods
                .iter()
                .filter(|pod| pod.side == side && pod.serves(t));
            let serving: Vec<&Pod> = serving.collect();
            let count = serving.len().min(MAX_ASKED);
            into.extend((0..count).map(|next| serving[(*turn + next) % serving.len()]));
            *turn += count;
        }
    }
}
