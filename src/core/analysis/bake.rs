//! The bake after a passed analysis: an hour at the probes' own interval, for what needs load or time to show.
//!
//! A CUSUM of clipped likelihood ratios (Shiryaev-Roberts) against a generous rate: it forgets what is over, and finds
//! what stays. Only after it a revision is known to be good.

use serde::{Deserialize, Serialize};

use super::counts::RecentCounts;
use super::regression::share;
use super::rule::{GRID, Rule, whole};
use super::{Analysis, PodState, TickOutcome};

/// A bake of a week is the longest that can be set.
const MAX_BAKE_S: f64 = 7.0 * 86_400.0;

/// The bake of a revision that passed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bake {
    rule: Rule,
    /// Length of a tick in seconds.
    tick_s: f64,
    /// Seconds after the revision appeared at which the bake began.
    from_s: f64,
    next_tick: u32,
    tolerated: f64,
    gain: [f64; GRID],
    /// `R_j` of the closed blocks.
    sums: [f64; GRID],
    block: u32,
    failed: u32,
    total: u32,
    recent: RecentCounts,
    /// Which endpoints count: those that did not fail when the revision appeared.
    counts: Vec<bool>,
    scheduled: u64,
    usable: u64,
    /// Ticks that were missed.
    #[serde(default)]
    missed: u32,
    max_mean: f64,
    alarm: Option<BakeAlarm>,
}

/// What the bake has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BakeAlarm {
    /// `bake:error_rate` or `bake:crash_loop`.
    pub reason: Box<str>,
    /// The tick, counted from the bake's beginning.
    pub tick: u32,
    /// Seconds after the revision appeared.
    pub t: f64,
    /// The evidence, if it raised the alarm.
    pub e: Option<f64>,
    /// The numbers in words.
    pub text: String,
}

/// How a bake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BakeEnd {
    /// It has not ended.
    Baking,
    /// No alarm: the revision is known to be good.
    Good,
    /// Too few results were usable.
    Coverage,
    /// It ended with an alarm.
    Alarm,
}

impl Bake {
    /// Begins the bake of a revision that passed, `from_s` seconds after it appeared, with ticks of `tick_s`.
    pub fn new(analysis: &Analysis, tick_s: f64, from_s: f64) -> Self {
        let rule = analysis.rule().clone();
        let tolerated = rule.tolerable(analysis.pooled().bound + rule.bake_null_margin);
        let gain = rule
            .grid
            .map(|rate| ((tolerated + (1.0 - tolerated) * rate) / tolerated).ln());
        let tick_s = tick_s.clamp(0.1, 600.0);
        let counts = analysis.endpoints_counted_in_bake();
        Self {
            tick_s,
            from_s: from_s.max(0.0),
            next_tick: 0,
            tolerated,
            gain,
            sums: [0.0; GRID],
            block: 0,
            failed: 0,
            total: 0,
            recent: RecentCounts::new(whole(rule.bake_window_s / tick_s), counts.len() as u64),
            counts,
            scheduled: 0,
            usable: 0,
            missed: 0,
            max_mean: 0.0,
            alarm: None,
            rule,
        }
    }

    /// A missed tick, for example while Leadsman did not run. It brings no results; a bake with many missed ticks is
    /// inconclusive.
    pub fn miss(&mut self) {
        if self.alarm.is_some() || self.is_over() {
            return;
        }
        self.missed += 1;
        let none = vec![TickOutcome::NotDue; self.counts.len()];
        self.tick(&none, &[], |_| 0);
    }

    /// One tick: an outcome for each endpoint, in their order, and the states of the revision's pods that changed.
    /// `normal_restarts` is what is normal for a pod. `Some` in the tick of an alarm.
    pub fn tick(
        &mut self,
        outcomes: &[TickOutcome],
        pods: &[PodState],
        normal_restarts: impl Fn(&PodState) -> u32,
    ) -> Option<&BakeAlarm> {
        if self.alarm.is_some() || self.is_over() {
            return None;
        }
        let now = self.next_tick;
        let t = self.from_s + f64::from(now) * self.tick_s;
        self.next_tick += 1;
        self.alarm = self.crash_loop(now, t, pods, normal_restarts);
        if self.alarm.is_some() {
            return self.alarm.as_ref();
        }
        let block = whole((t - self.from_s) / self.rule.bake_block_s);
        if block > self.block {
            for (j, sum) in self.sums.iter_mut().enumerate() {
                *sum = (*sum + 1.0) * factor(&self.rule, self.gain[j], j, self.failed, self.total);
            }
            (self.block, self.failed, self.total) = (block, 0, 0);
        }
        let (mut failed, mut total) = (0u16, 0u16);
        for (outcome, counts) in outcomes.iter().zip(&self.counts) {
            if !counts || *outcome == TickOutcome::NotDue {
                continue;
            }
            self.scheduled += 1;
            // An answer that a name server kept away is no evidence in so coarse a look.
            let (k, n) = outcome.counts();
            failed += k;
            total += n;
        }
        self.usable += u64::from(total);
        self.failed += u32::from(failed);
        self.total += u32::from(total);
        self.recent.push(failed, total);
        let mean = self.mean();
        self.max_mean = self.max_mean.max(mean);
        let (k, n) = self.recent.whole();
        let rose = n > 0 && k as f64 / n as f64 > self.tolerated + self.rule.bake_margin;
        if mean >= self.rule.bake_threshold && rose {
            self.alarm = Some(BakeAlarm {
                reason: "bake:error_rate".into(),
                tick: now,
                t,
                e: Some(mean),
                text: format!(
                    "errors {k}/{n} ({}) in the last {:.0} s, {:.1} % tolerated",
                    share(k, n),
                    self.rule.bake_window_s,
                    self.tolerated * 100.0
                ),
            });
        }
        self.alarm.as_ref()
    }

    fn crash_loop(
        &self,
        now: u32,
        t: f64,
        pods: &[PodState],
        normal_restarts: impl Fn(&PodState) -> u32,
    ) -> Option<BakeAlarm> {
        let rule = &self.rule;
        let looping = pods.iter().find(|pod| {
            let normal = normal_restarts(pod);
            let with_reason = pod.crash_loop_back_off
                && pod.restarts >= rule.crash_restarts.saturating_add(normal);
            !pod.old_too
                && !pod.injected
                && (with_reason || pod.restarts >= rule.crash_restarts_hard.saturating_add(normal))
        })?;
        let of = if looping.workload.is_empty() {
            String::new()
        } else {
            format!(" of {}", looping.workload)
        };
        Some(BakeAlarm {
            reason: "bake:crash_loop".into(),
            tick: now,
            t,
            e: None,
            text: format!("new pod{of} restarted {} times", looping.restarts),
        })
    }

    /// The evidence, including the open block.
    fn mean(&self) -> f64 {
        let terms = self.sums.iter().enumerate().map(|(j, sum)| {
            (sum + 1.0) * factor(&self.rule, self.gain[j], j, self.failed, self.total)
        });
        terms.sum::<f64>() / GRID as f64
    }

    /// The current evidence.
    pub fn evidence(&self) -> f64 {
        self.mean().min(1e300)
    }

    /// The evidence at which an alarm may be raised.
    pub const fn threshold(&self) -> f64 {
        self.rule.bake_threshold
    }

    /// Failures and results of the last [`Rule::bake_window_s`] seconds.
    pub fn recent(&self) -> (u64, u64) {
        self.recent.whole()
    }

    /// The share of failures that is tolerated, and the one that an alarm needs.
    pub fn bounds(&self) -> (f64, f64) {
        (self.tolerated, self.tolerated + self.rule.bake_margin)
    }

    /// Length of a tick in seconds.
    pub const fn tick_s(&self) -> f64 {
        self.tick_s
    }

    /// Seconds after the revision appeared at which it ends.
    pub const fn ends_s(&self) -> f64 {
        self.rule.bake_s
    }

    /// The largest evidence so far.
    pub const fn max_e(&self) -> f64 {
        self.max_mean
    }

    /// How many ticks were read.
    pub const fn ticks(&self) -> u32 {
        self.next_tick
    }

    /// The time of the last tick, in seconds after the revision appeared.
    pub fn t(&self) -> f64 {
        self.from_s + f64::from(self.next_tick.saturating_sub(1)) * self.tick_s
    }

    /// Seconds after the revision appeared that the bake has reached.
    pub fn elapsed_s(&self) -> f64 {
        self.from_s + f64::from(self.next_tick) * self.tick_s
    }

    /// Whether the bake has ended.
    pub fn is_over(&self) -> bool {
        self.elapsed_s() >= self.rule.bake_s - 1e-9
    }

    /// The current or final result.
    pub fn end(&self) -> BakeEnd {
        if self.alarm.is_some() {
            return BakeEnd::Alarm;
        }
        if !self.is_over() {
            return BakeEnd::Baking;
        }
        let (usable, least) = (self.usable as f64, self.rule.min_coverage);
        let looked = f64::from(self.next_tick.saturating_sub(self.missed));
        let is_seldom = looked < least * f64::from(self.next_tick);
        if is_seldom || usable < least * self.scheduled as f64 || self.usable == 0 {
            BakeEnd::Coverage
        } else {
            BakeEnd::Good
        }
    }

    /// The alarm, if there was one.
    pub const fn alarm(&self) -> Option<&BakeAlarm> {
        self.alarm.as_ref()
    }

    /// Whether a stored state is valid.
    pub fn is_sound(&self) -> bool {
        let numbers = self.sums.iter().chain(&self.gain);
        self.rule.check().is_ok()
            && (0.1..=600.0).contains(&self.tick_s)
            && (0.0..=MAX_BAKE_S).contains(&self.from_s)
            && f64::from(self.next_tick) * self.tick_s <= 2.0 * MAX_BAKE_S
            && self.failed <= self.total
            && numbers.chain([&self.tolerated]).all(|n| n.is_finite())
    }
}

/// `f_j`: the clipped factor by which a block multiplies a bet.
fn factor(rule: &Rule, gain: f64, j: usize, failed: u32, total: u32) -> f64 {
    let miss = (-rule.grid[j]).ln_1p();
    let ln = f64::from(failed) * gain + f64::from(total - failed) * miss;
    ln.exp().min(rule.bake_clip)
}
