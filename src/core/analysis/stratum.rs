//! A stratum: a stream of counts that is evaluated by itself. It covers all endpoints, one endpoint, requests, or new
//! pods.

use serde::{Deserialize, Serialize};

use super::bound::{is_significant, upper_bound};
use super::counts::RecentCounts;
use super::mixture::{Mixture, ln};
use super::pod_results::MAX_ASKED;
use super::rule::Rule;

/// Measurements before the revision appeared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct BeforeCounts {
    pub(super) failed: u64,
    pub(super) total: u64,
    /// Too little was measured: the rule's rate is assumed.
    pub(super) assumed: bool,
    /// Upper bound of the rate, or the assumed rate.
    pub(super) bound: f64,
}

impl BeforeCounts {
    pub(super) fn new(rule: &Rule, failed: u64, total: u64, least: u64) -> Self {
        let assumed = total < least;
        let bound = if assumed {
            rule.p_assumed
        } else {
            upper_bound(failed as f64, total as f64, rule.baseline_conf)
        };
        Self {
            failed,
            total,
            assumed,
            bound,
        }
    }

    pub(super) fn rate(&self) -> f64 {
        if self.assumed || self.total == 0 {
            0.0
        } else {
            self.failed as f64 / self.total as f64
        }
    }

    /// What is tolerated long after the rollout is complete.
    pub(super) fn complete(&self, rule: &Rule) -> f64 {
        rule.tolerable(self.bound + rule.null_margin)
    }

    /// The default while the rollout runs.
    pub(super) fn unsettled(&self, rule: &Rule) -> f64 {
        rule.tolerable(self.bound + rule.unsettled_margin)
    }

    /// The default of the time in between.
    pub(super) fn late(&self, rule: &Rule) -> f64 {
        rule.tolerable(self.bound + rule.late_margin.max(rule.null_margin))
    }
}

/// Current counts of old pods for a stratum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ControlCounts {
    /// Upper bound of their failure rate.
    pub(super) bound: f64,
    /// Number of failures.
    pub(super) failed: u64,
    /// Number of results.
    pub(super) total: u64,
}

impl ControlCounts {
    pub(super) fn rate(&self) -> f64 {
        self.failed as f64 / self.total as f64
    }
}

/// Results of old pods in the last ticks in which they were probed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OldPodResults {
    recent: RecentCounts,
    asked_now: bool,
}

impl OldPodResults {
    /// With room for `most` results a tick.
    pub(super) fn new(rule: &Rule, most: usize) -> Self {
        let longest = rule.control_windows_s.iter().copied().fold(0.0, f64::max);
        Self {
            recent: RecentCounts::new(rule.ticks(longest), most as u64),
            asked_now: false,
        }
    }

    pub(super) fn push(&mut self, failed: u16, total: u16) {
        self.asked_now = total > 0;
        if self.asked_now {
            self.recent.push(failed, total);
        }
    }

    /// Their counts for a stratum with this history; `None` if they are not significant.
    pub(super) fn says(&self, rule: &Rule, before: f64, margin: f64) -> Option<ControlCounts> {
        // The rule has at least one failure in `control_failures`.
        if !self.recent.has_failures() {
            return None;
        }
        rule.control_windows_s
            .iter()
            .filter_map(|window_s| {
                let (failed, total) = self.recent.sum(rule.ticks(*window_s).max(1));
                if failed < u64::from(rule.control_failures) {
                    return None;
                }
                let (k, n) = (failed as f64, total as f64);
                if !is_significant(k, n, before, rule.significance) {
                    return None;
                }
                if !self.asked_now && k / n <= before + margin {
                    return None;
                }
                Some(ControlCounts {
                    bound: upper_bound(k, n, rule.baseline_conf),
                    failed,
                    total,
                })
            })
            .reduce(|a, b| if b.bound > a.bound { b } else { a })
    }

    pub(super) fn bytes(&self) -> usize {
        self.recent.bytes()
    }
}

/// A stratum: its evidence in short and in long blocks, and the counts of its estimate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stratum {
    pub(super) before: BeforeCounts,
    pub(super) margin: f64,
    ln_weight: f64,
    pub(super) quick: Mixture,
    pub(super) slow: Option<Box<Mixture>>,
    pub(super) recent: RecentCounts,
    pub(super) old_pods: Option<OldPodResults>,
    pub(super) failing_ticks: u32,
    pub(super) last_failing_tick: Option<u32>,
}

/// The inputs of a stratum.
pub(super) struct StratumSetup {
    pub(super) before: BeforeCounts,
    pub(super) margin: f64,
    /// Its share of the evidence.
    pub(super) weight: f64,
    /// Tolerated rates of a block.
    pub(super) classes: usize,
    /// Results of a tick, at most.
    pub(super) most_results: usize,
    pub(super) with_slow_blocks: bool,
    pub(super) with_old_pods: bool,
    /// Ticks of the estimate.
    pub(super) window: u32,
}

impl Stratum {
    pub(super) fn new(rule: &Rule, setup: &StratumSetup) -> Self {
        let dt = rule.interval_s;
        let mixture = |block_s, alpha| Mixture::new(rule, dt, block_s, alpha, setup.classes);
        Self {
            before: setup.before,
            margin: setup.margin,
            ln_weight: ln(setup.weight),
            quick: mixture(rule.block_s, rule.alpha),
            slow: setup
                .with_slow_blocks
                .then(|| Box::new(mixture(rule.slow_block_s, rule.alpha_slow))),
            recent: RecentCounts::new(setup.window, setup.most_results as u64),
            old_pods: setup
                .with_old_pods
                .then(|| OldPodResults::new(rule, MAX_ASKED * setup.most_results)),
            failing_ticks: 0,
            last_failing_tick: None,
        }
    }

    /// Whether a block begins at `t`.
    pub(super) fn is_due(&self, t: f64) -> bool {
        let slow = self.slow.as_ref();
        self.quick.due(t).is_some() || slow.is_some_and(|slow| slow.due(t).is_some())
    }

    /// Opens the blocks that begin at `t`. `rates(class, start of the block)` is what a class tolerates without old
    /// pods, and whether that is certain; `control` are the counts of old pods up to the tick before.
    pub(super) fn advance(
        &mut self,
        rule: &Rule,
        t: f64,
        control: Option<ControlCounts>,
        is_sure: impl Fn(f64) -> bool,
        rate: impl Fn(usize, f64) -> f64,
    ) {
        let raised = |rate: f64| match control {
            Some(control) => rule.tolerable(rate.max(control.bound + rule.null_margin)),
            None => rate,
        };
        let slow = self.slow.as_deref_mut();
        for mixture in std::iter::once(&mut self.quick).chain(slow) {
            if let Some(index) = mixture.due(t) {
                let begin = mixture.begin_of(index);
                mixture.open_block(rule, index, is_sure(begin), |class| {
                    raised(rate(class, begin))
                });
            }
        }
    }

    /// Adds a tick's counts, all of one class.
    pub(super) fn add(&mut self, tick: u32, failed: u16, total: u16) {
        self.quick.add(0, f64::from(failed), f64::from(total));
        if let Some(slow) = &mut self.slow
            && total > 0
        {
            // A tick is one result there: what fails together is not taken for several failures.
            slow.add(0, f64::from(failed) / f64::from(total), 1.0);
        }
        self.note(tick, failed, total);
    }

    /// Adds a tick's counts by class.
    pub(super) fn add_classes(&mut self, tick: u32, counts: &[(u16, u16)]) {
        let (failed, total) = counts.iter().fold((0u16, 0u16), |(k, n), (failed, total)| {
            (k + failed, n + total)
        });
        for (class, (k, n)) in counts.iter().enumerate() {
            if *n == 0 {
                continue;
            }
            let (k, n) = (f64::from(*k), f64::from(*n));
            self.quick.add(class, k, n);
            if let Some(slow) = &mut self.slow {
                slow.add(class, k / f64::from(total), n / f64::from(total));
            }
        }
        self.note(tick, failed, total);
    }

    fn note(&mut self, tick: u32, failed: u16, total: u16) {
        self.recent.push(failed, total);
        if failed > 0 {
            self.failing_ticks += 1;
            self.last_failing_tick = Some(tick);
        }
    }

    /// The logarithm of its e-value, times its weight.
    pub(super) fn weighted(&self, ln_e: f64) -> f64 {
        self.ln_weight + ln_e
    }

    /// Counts of old pods, including this tick.
    pub(super) fn control(&self, rule: &Rule) -> Option<ControlCounts> {
        let old_pods = self.old_pods.as_ref()?;
        old_pods.says(rule, self.before.rate(), self.margin)
    }

    /// Test 2 of path C: whether the estimate exceeds the rate before by more than the margin.
    pub(super) fn rose(&self, (failed, total): (u64, u64), control: Option<ControlCounts>) -> bool {
        let before = self
            .before
            .rate()
            .max(control.map_or(0.0, |control| control.rate()));
        total > 0 && failed as f64 / total as f64 - before > self.margin
    }

    /// Test 3 of path C for probe results: failures in enough ticks, and recently.
    pub(super) fn is_alive(&self, rule: &Rule, tick: u32) -> bool {
        let lately = rule.ticks(rule.still_failing_s).max(3);
        self.failing_ticks >= rule.min_failing_ticks
            && self
                .last_failing_tick
                .is_some_and(|last| tick.saturating_sub(last) < lately)
    }

    pub(super) fn is_sound(&self, classes: usize, with_old_pods: bool) -> bool {
        self.quick.is_sound(classes)
            && self.slow.as_ref().is_none_or(|slow| slow.is_sound(classes))
            && self.old_pods.is_some() == with_old_pods
    }

    pub(super) fn bytes(&self) -> usize {
        self.quick.bytes()
            + self
                .slow
                .as_ref()
                .map_or(0, |slow| size_of::<Mixture>() + slow.bytes())
            + self.recent.bytes()
            + self.old_pods.as_ref().map_or(0, OldPodResults::bytes)
    }
}
