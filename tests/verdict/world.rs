//! Worlds to judge: what an app answers through its Service after a revision appeared, drawn from seeded random numbers.
//!
//! The base of every world: each sounding fails by itself with a probability of 1 %. On top come bursts in which
//! everything fails, single failures of pods that are replaced, and what the revision makes worse.

use fastrand::Rng;
use leadsman::verdict::{Finding, Mark, Rule, Start, Tick, Watch};

/// As in the runbook: three health endpoints and the page itself.
pub(crate) const ENDPOINTS: usize = 4;
/// The share of soundings that fail anyway.
pub(crate) const BASE: f64 = 0.01;
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

/// When everything fails for a while.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bursts {
    /// Never.
    None,
    /// For 3 to 10 s once a day, at any time of it: so mostly not in the watch.
    Daily,
    /// For 10 s in the watch.
    Hit,
}

/// One kind of release, as it looks through the Service alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    /// One sounding of each endpoint so often.
    pub(crate) interval_s: f64,
    /// By how much the share of failures rises, in every endpoint; 1 is an outage.
    pub(crate) rise: f64,
    /// The rise comes at some time within so many seconds of the revision's appearance.
    pub(crate) onset_within_s: f64,
    /// What happens to everything at once.
    pub(crate) bursts: Bursts,
    /// Whether pods that are replaced lose a sounding now and then; the rollout takes 10 to 90 s then, else no time.
    pub(crate) turnover: bool,
}

/// How a watch ended.
#[derive(Debug, Clone)]
pub(crate) struct End {
    /// What convicted, if anything.
    pub(crate) finding: Option<Finding>,
    /// From the onset to the verdict, in seconds, at worst: the onset may come right after a sounding. Negative where
    /// the verdict came before it.
    pub(crate) delay_s: f64,
}

impl World {
    /// A world in which nothing happens.
    pub(crate) const fn quiet(interval_s: f64) -> Self {
        Self {
            interval_s,
            rise: 0.0,
            onset_within_s: 0.0,
            bursts: Bursts::None,
            turnover: false,
        }
    }

    /// Draws one release of this kind and judges it.
    pub(crate) fn judge(&self, rng: &mut Rng) -> End {
        let dt = self.interval_s;
        let rule = rule(dt);
        let ticks = rule.ticks_of_watch();
        let settled_at = if self.turnover {
            within(rng, 10.0, 90.0)
        } else {
            0.0
        };
        let start = Start {
            settled_at: Some(settled_at),
            ..start(rng, dt)
        };
        let mut watch = Watch::new(rule.clone(), &start).unwrap();
        let onset = (within(rng, 0.0, self.onset_within_s) / dt).ceil() as u32;
        let burst = self.burst(rng, rule.watch_s);
        let lost = self.turnover(rng, ticks, settled_at);
        for tick in 0..ticks {
            let t = f64::from(tick) * dt;
            let in_burst = burst.0 <= t && t < burst.1;
            let rate = if tick >= onset {
                BASE + self.rise
            } else {
                BASE
            };
            let mut marks = [Mark::Good; ENDPOINTS];
            for (at, mark) in marks.iter_mut().enumerate() {
                if in_burst || rng.f64() < rate || lost.contains(&(tick, at)) {
                    *mark = Mark::Bad;
                }
            }
            let seen = Tick {
                marks: &marks,
                ..Tick::default()
            };
            if let Some(finding) = watch.tick(&seen) {
                return End {
                    finding: Some(finding.clone()),
                    delay_s: (f64::from(tick) + 1.0 - f64::from(onset)) * dt,
                };
            }
        }
        End {
            finding: None,
            delay_s: f64::INFINITY,
        }
    }

    /// From when to when everything fails.
    fn burst(&self, rng: &mut Rng, watch_s: f64) -> (f64, f64) {
        let (start, length) = match self.bursts {
            Bursts::None => return (0.0, 0.0),
            Bursts::Daily => (within(rng, 0.0, DAY_S), within(rng, 3.0, 10.0)),
            // Somewhere wholly in the watch.
            Bursts::Hit => (within(rng, 0.0, watch_s - 10.0), 10.0),
        };
        (start, start + length)
    }

    /// Soundings that pods lose as they go: each of 3 to 20 pods that the rollout replaces loses one half of the time,
    /// and afterwards a pod goes every two minutes.
    fn turnover(&self, rng: &mut Rng, ticks: u32, settled_at: f64) -> Vec<(u32, usize)> {
        let mut lost = Vec::new();
        if !self.turnover {
            return lost;
        }
        let end = f64::from(ticks) * self.interval_s;
        let replaced = rng.usize(3..=20);
        let mut later = settled_at + exponential(rng, 120.0);
        let mut times: Vec<f64> = (0..replaced)
            .map(|_| within(rng, 0.0, settled_at))
            .collect();
        while later < end {
            times.push(later);
            later += exponential(rng, 120.0);
        }
        for time in times {
            if rng.bool() {
                lost.push(((time / self.interval_s) as u32, rng.usize(..ENDPOINTS)));
            }
        }
        lost
    }
}

/// What is known when the revision appears: the hour before at the base rate, with what the daily burst did if it fell
/// into this hour. Settled from the start, without direct soundings.
pub(crate) fn start(rng: &mut Rng, interval_s: f64) -> Start {
    let total = (HOUR_S / interval_s) as u64;
    let burst = if rng.f64() < HOUR_S / DAY_S {
        (within(rng, 3.0, 10.0) / interval_s) as u64
    } else {
        0
    };
    let baseline = (0..ENDPOINTS)
        .map(|_| ((failures(rng, total, BASE) + burst).min(total), total))
        .collect();
    Start {
        endpoints: ["health", "db", "redis", "root"].map(Box::from).to_vec(),
        baseline,
        failing_at_start: vec![false; ENDPOINTS],
        settled_at: Some(0.0),
        ..Start::default()
    }
}

/// A number between two others.
pub(crate) fn within(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + rng.f64() * (high - low)
}

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - rng.f64()).ln()
}

/// How many of so many soundings fail: from failure to failure, since most succeed.
fn failures(rng: &mut Rng, total: u64, rate: f64) -> u64 {
    let (mut at, mut failed) = (0.0, 0);
    loop {
        at += 1.0 + ((1.0 - rng.f64()).ln() / (-rate).ln_1p()).floor();
        if at > total as f64 {
            return failed;
        }
        failed += 1;
    }
}
