//! Worlds to judge: what an app answers while a revision is rolled out, drawn from seeded random numbers.
//!
//! The base of every world: each result fails by itself with a probability of 1 %. On top comes what old or new pods,
//! or all of them, do worse, and what a pod that goes leaves unanswered.

use fastrand::Rng;
use leadsman::core::analysis::{
    Analysis, AnalysisStart, BaselineHistogram, LearnedRollouts, MAX_ASKED, PodSide, PodTick,
    RolloutLessons, Rule, Tick, TickOutcome, Verdict, WorkloadChange, WorkloadEvent, bucket,
};

use super::rollout::{Deployed, Pod, Shape};

/// As in the runbook: three health endpoints and the page itself.
pub(crate) const ENDPOINTS: usize = 4;
/// The share of results that fail anyway.
pub(crate) const BASE: f64 = 0.01;
/// The probes' own interval.
pub(crate) const STEADY_S: f64 = 10.0;
const DAY_S: f64 = 86_400.0;
const HOUR_S: f64 = 3600.0;

/// The default rule at this interval.
pub(crate) fn rule(interval_s: f64) -> Rule {
    Rule {
        interval_s,
        ..Rule::default()
    }
}

/// The random numbers of one release: the same for the same row and number, whatever the others draw.
pub(crate) fn numbers(row: u64, release: usize) -> Rng {
    let mut seed = Rng::with_seed(row ^ 0x6c65_6164);
    let spread = seed.u64(..);
    Rng::with_seed(spread.wrapping_add((release as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// One question to one pod.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// Whether the pod is of the revision that is judged.
    pub(crate) new: bool,
    /// Its number among those of its side.
    pub(crate) pod: usize,
    /// Which endpoint.
    pub(crate) at: usize,
    /// Seconds since the pod became Ready.
    pub(crate) age_s: f64,
    /// Seconds since the revision appeared.
    pub(crate) t: f64,
}

/// A number for each question, as how likely it fails.
pub(crate) type ByQuestion = Box<dyn Fn(&Asked) -> f64>;

/// How a rate limit counts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// A bucket that holds a minute's worth and is filled evenly.
    Bucket {
        /// Requests a minute.
        per_minute: f64,
    },
    /// So many in each minute by the clock.
    Window {
        /// Requests a minute.
        per_minute: f64,
    },
}

/// One kind of release.
pub(crate) struct World {
    /// Seconds from one result of an endpoint to the next.
    pub(crate) interval_s: f64,
    /// How the pods are replaced.
    pub(crate) shape: Shape,
    /// So long a hook runs before the first pod is replaced.
    pub(crate) hook_s: f64,
    /// A pod becomes Ready so long after it was created, from and to.
    pub(crate) start_s: (f64, f64),
    /// The share of results that fail anyway, in the hour before as well.
    pub(crate) base: f64,
    /// For so long a pod that was told to go is still picked, and answers half of the time.
    pub(crate) drain_s: f64,
    /// What fails beyond that.
    pub(crate) fails: ByQuestion,
    /// From when to when everything fails, whoever is asked.
    pub(crate) outage_s: (f64, f64),
    /// The Service's rate limit.
    pub(crate) limit: Option<Limit>,
    /// From when on a dependency fails that the first two endpoints need, as declared.
    pub(crate) dependency_from_s: Option<f64>,
    /// What good answers' latencies are multiplied by; without it nothing is timed.
    pub(crate) slow: Option<ByQuestion>,
}

impl World {
    /// A rollout of this shape in which nothing goes wrong.
    pub(crate) fn quiet(shape: Shape) -> Self {
        Self {
            interval_s: 1.0,
            shape,
            hook_s: 0.0,
            start_s: (10.0, 13.0),
            base: BASE,
            drain_s: 0.0,
            fails: Box::new(|_| 0.0),
            outage_s: (0.0, 0.0),
            limit: None,
            dependency_from_s: None,
            slow: None,
        }
    }

    /// The same with a burst of 3 to 10 s once a day, at any time of it: so mostly not in the watch. Pods that go are
    /// picked for two seconds more.
    pub(crate) fn normal(shape: Shape, rng: &mut Rng) -> Self {
        let from = within(rng, 0.0, DAY_S);
        Self {
            drain_s: 2.0,
            outage_s: (from, from + within(rng, 3.0, 10.0)),
            ..Self::quiet(shape)
        }
    }

    /// A quiet rollout in which this share fails of what is asked.
    pub(crate) fn failing(shape: Shape, fails: impl Fn(&Asked) -> f64 + 'static) -> Self {
        Self {
            fails: Box::new(fails),
            ..Self::quiet(shape)
        }
    }

    /// Draws one rollout.
    pub(crate) fn deploy(&self, rng: &mut Rng) -> Deployed {
        self.shape.deploy(rng, self.hook_s, self.start_s)
    }

    /// What is known when the revision appears.
    pub(crate) fn start(&self, rng: &mut Rng, lessons: &Lessons, direct: bool) -> AnalysisStart {
        let total = (HOUR_S / self.interval_s) as u64;
        let burst = if self.base > 0.0 && rng.f64() < HOUR_S / DAY_S {
            (within(rng, 3.0, 10.0) / self.interval_s) as u64
        } else {
            0
        };
        let baseline = (0..ENDPOINTS)
            .map(|_| {
                let failed = failures(rng, total, self.base) + burst;
                (failed.min(total), total)
            })
            .collect();
        let is_timed = self.slow.is_some();
        let needs = self.dependency_from_s.is_some();
        AnalysisStart {
            endpoints: ["health", "db", "redis", "root"].map(Box::from).to_vec(),
            baseline,
            failing_at_start: vec![false; ENDPOINTS],
            direct,
            workloads: Some(vec![lessons.workload(self.shape)]),
            learned: lessons.learned(),
            steady_s: vec![STEADY_S; ENDPOINTS],
            dependencies: if needs {
                vec!["database".into()]
            } else {
                vec![]
            },
            needs: if needs {
                vec![vec![0], vec![0], vec![], vec![]]
            } else {
                vec![]
            },
            latency: if is_timed {
                (0..ENDPOINTS).map(|_| latencies(rng)).collect()
            } else {
                vec![]
            },
            ..AnalysisStart::default()
        }
    }

    /// Feeds one release to these watches, each until its end. Where there is a rate limit, one watch alone.
    pub(crate) fn play(&self, rng: &mut Rng, deployed: &Deployed, watches: &mut [Analysis]) {
        let mut limiter = self.limit.map(Limiter::new);
        let mut turns = [0, 0];
        let mut asked: Vec<&Pod> = Vec::new();
        let mut pod_marks = [[TickOutcome::Unknown; ENDPOINTS]; 2 * MAX_ASKED];
        let mut pod_times = [[None; ENDPOINTS]; 2 * MAX_ASKED];
        let mut next_event = 0;
        for tick in 0_u32.. {
            if watches.iter().all(is_done) {
                return;
            }
            let t = f64::from(tick) * self.interval_s;
            let at_own_pace = watches.iter().any(Analysis::is_limited);
            let mut outcomes = [TickOutcome::Unknown; ENDPOINTS];
            let mut times = [None; ENDPOINTS];
            deployed.picked_at(t, self.drain_s, &mut asked);
            for at in 0..ENDPOINTS {
                if at_own_pace && !is_due(tick, at, self.interval_s) {
                    outcomes[at] = TickOutcome::NotDue;
                    continue;
                }
                if let Some(limiter) = &mut limiter
                    && let Some(refusal) = limiter.refuses(t, at_own_pace)
                {
                    outcomes[at] = refusal;
                    continue;
                }
                outcomes[at] = TickOutcome::Failure;
                if !asked.is_empty() {
                    let pod = asked[rng.usize(..asked.len())];
                    // Half of what meets a pod that was told to go is still answered.
                    if pod.serves(t) || rng.bool() {
                        (outcomes[at], times[at]) = self.answer(rng, pod, t, at);
                    }
                }
            }
            deployed.in_turn(t, &mut turns, &mut asked);
            for (place, pod) in asked.iter().enumerate() {
                for at in 0..ENDPOINTS {
                    let answer = if at_own_pace && !is_due(tick, at, self.interval_s) {
                        (TickOutcome::Unknown, None)
                    } else {
                        self.answer(rng, pod, t, at)
                    };
                    (pod_marks[place][at], pod_times[place][at]) = answer;
                }
            }
            let looks: Vec<PodTick<'_>> = (0..asked.len())
                .map(|place| PodTick {
                    pod: asked[place].id,
                    side: asked[place].side,
                    ready_tick: (asked[place].ready_s / self.interval_s).ceil() as u32,
                    outcomes: &pod_marks[place],
                    latency_us: &pod_times[place],
                })
                .collect();
            let first = next_event;
            while let Some(event) = deployed.events.get(next_event)
                && event.t <= t
            {
                next_event += 1;
            }
            let dependency = [outcome(
                self.dependency_from_s.is_some_and(|from| t >= from),
            )];
            let seen = Tick {
                outcomes: &outcomes,
                direct: &looks,
                rollout: &deployed.events[first..next_event],
                dependencies: if self.dependency_from_s.is_some() {
                    &dependency
                } else {
                    &[]
                },
                latency_us: if self.slow.is_some() { &times } else { &[] },
                ..Tick::default()
            };
            for analysis in &mut *watches {
                analysis.tick(&seen);
            }
        }
    }

    /// What a pod answers, and in how many microseconds.
    fn answer(&self, rng: &mut Rng, pod: &Pod, t: f64, at: usize) -> (TickOutcome, Option<u32>) {
        let asked = Asked {
            new: pod.side == PodSide::New,
            pod: pod.number,
            at,
            age_s: t - pod.ready_s,
            t,
        };
        let mut share = (self.fails)(&asked);
        if self.outage_s.0 <= t && t < self.outage_s.1 {
            share = 1.0;
        }
        if at < 2 && self.dependency_from_s.is_some_and(|from| t >= from) {
            share = 1.0;
        }
        let bad = rng.f64() < 1.0 - (1.0 - self.base) * (1.0 - share);
        let time = match &self.slow {
            Some(slow) if !bad => Some((latency(rng) * slow(&asked)) as u32),
            _ => None,
        };
        (outcome(bad), time)
    }
}

/// Whether a watch reads no further ticks.
pub(crate) fn is_done(analysis: &Analysis) -> bool {
    analysis.is_over() || analysis.regression().is_some()
}

/// Whether an endpoint is asked in this tick at the probes' own pace.
fn is_due(tick: u32, at: usize, interval_s: f64) -> bool {
    let every = (STEADY_S / interval_s).max(1.0) as u32;
    (tick + at as u32).is_multiple_of(every)
}

/// A rate limit at work.
struct Limiter {
    kind: Limit,
    left: f64,
    last_s: f64,
    last_fast_s: f64,
}

impl Limiter {
    fn new(kind: Limit) -> Self {
        let (Limit::Bucket { per_minute } | Limit::Window { per_minute }) = kind;
        Self {
            kind,
            left: per_minute,
            last_s: 0.0,
            last_fast_s: 0.0,
        }
    }

    /// What a request is refused with, if it is.
    fn refuses(&mut self, t: f64, at_own_pace: bool) -> Option<TickOutcome> {
        match self.kind {
            Limit::Bucket { per_minute } => {
                let filled = self.left + (t - self.last_s) * per_minute / 60.0;
                self.left = filled.min(per_minute);
            }
            Limit::Window { per_minute } => {
                // The minutes of the clock begin somewhere in the watch.
                let minute = |t: f64| ((t + 23.0) / 60.0).floor();
                if minute(t) > minute(self.last_s) {
                    self.left = per_minute;
                }
            }
        }
        self.last_s = t;
        if !at_own_pace {
            self.last_fast_s = t;
        }
        if self.left >= 1.0 {
            self.left -= 1.0;
            return None;
        }
        // As the daemon reads it: a refusal long after the last request at the watch's pace is a failure.
        Some(if t - self.last_fast_s <= 60.0 {
            TickOutcome::Limited
        } else {
            TickOutcome::Failure
        })
    }
}

/// What kept rollouts taught, the last five of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lessons(Vec<RolloutLessons>);

impl Lessons {
    /// Adds what a watch taught, if its revision was kept.
    pub(crate) fn add(&mut self, analysis: &Analysis) {
        if analysis.conclude() == Verdict::Healthy
            && let Some(teaching) = analysis.teaching()
        {
            self.0.push(teaching);
            if self.0.len() > 5 {
                self.0.remove(0);
            }
        }
    }

    /// From how many rollouts.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The sums.
    pub(crate) fn learned(&self) -> LearnedRollouts {
        let mut sum = LearnedRollouts {
            rollouts: self.0.len() as u32,
            endpoints: vec![Default::default(); ENDPOINTS],
            ..LearnedRollouts::default()
        };
        let add = |to: &mut [(u64, u64)], from: &[(u64, u64)]| {
            for (to, from) in to.iter_mut().zip(from) {
                to.0 += from.0;
                to.1 += from.1;
            }
        };
        for one in &self.0 {
            add(&mut sum.pods, &one.pods);
            add(&mut sum.pool, &one.pool);
            for (to, (_, from)) in sum.endpoints.iter_mut().zip(&one.endpoints) {
                add(to, from);
            }
        }
        sum
    }

    /// The release's only workload, with what is normal for it.
    fn workload(&self, shape: Shape) -> leadsman::core::analysis::AnalyzedWorkload {
        let taught = self.0.iter().flat_map(|one| &one.workloads);
        let most = |what: fn(&leadsman::core::analysis::WorkloadLessons) -> f64| {
            taught.clone().map(what).fold(0.0, f64::max)
        };
        leadsman::core::analysis::AnalyzedWorkload {
            gap_s: most(|one| one.gap_s),
            ready_s: most(|one| one.ready_s),
            ..shape.workload()
        }
    }
}

/// The latency of a good answer in microseconds: 10 ms or so.
fn latency(rng: &mut Rng) -> f64 {
    10_000.0 * (0.5 * normal(rng)).exp()
}

/// A histogram of an hour before, from 300 answers that stand for twelve times as many.
fn latencies(rng: &mut Rng) -> BaselineHistogram {
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..300 {
        *counts.entry(bucket(latency(rng) as u32)).or_insert(0) += 12;
    }
    counts.into_iter().collect()
}

/// A number of the normal distribution, near enough: the sum of twelve even ones.
fn normal(rng: &mut Rng) -> f64 {
    (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
}

/// A number between two others.
pub(crate) fn within(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + rng.f64() * (high - low)
}

pub(crate) fn outcome(bad: bool) -> TickOutcome {
    if bad {
        TickOutcome::Failure
    } else {
        TickOutcome::Success
    }
}

/// An event of the release's only workload.
pub(crate) fn event(t: f64, what: WorkloadChange) -> WorkloadEvent {
    WorkloadEvent {
        t,
        workload: 0,
        what,
    }
}

/// How many of so many results fail: from failure to failure, since most succeed.
fn failures(rng: &mut Rng, total: u64, rate: f64) -> u64 {
    let (mut at, mut failed) = (0.0, 0);
    loop {
        at += 1.0 + ((1.0 - rng.f64()).ln() / (-rate).ln_1p()).floor();
        if at.is_nan() || at > total as f64 {
            return failed;
        }
        failed += 1;
    }
}
