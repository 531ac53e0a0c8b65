//! One stream of counts, and the evidence in it: path C of the rule.
//!
//! The evidence is a mixture e-process. A bet is placed at the start of every block (mostly at the first and at the
//! first settled one) on each of a few failure rates above what is tolerated; each block multiplies a bet by the
//! likelihood ratio of what was seen, clipped so that no single burst can win. Under any rate up to the tolerated
//! one, the expected value never exceeds 1, so reaching 100 has a probability of at most 1 %, however often one looks.
//!
//! Sums are kept as logarithms: a long watch at a large clip would leave the range of a double.

use serde::{Deserialize, Serialize};

use super::bound::upper_bound;
use super::counts::Recent;
use super::rule::{GRID, Rule, whole};

/// The logarithm of nothing, finite so that it survives JSON.
pub(super) const LN_ZERO: f64 = -1e300;

/// What old pods say about a stratum at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Control {
    /// Upper bound of their failure rate.
    pub(super) bound: f64,
    /// Failures that were counted.
    pub(super) failed: u64,
    /// Of so many outcomes.
    pub(super) total: u64,
}

impl Control {
    pub(super) fn rate(&self) -> f64 {
        self.failed as f64 / self.total as f64
    }
}

/// Which bets the first blocks carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Opening {
    /// Block 0 and the first settled block.
    AtStart,
    /// The first block that has anything to count; none before it.
    AtFirstCount,
}

/// What was measured before the revision appeared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Before {
    pub(super) failed: u64,
    pub(super) total: u64,
    /// Too little was measured: the rule's rate is assumed.
    pub(super) assumed: bool,
    /// Upper bound of the rate, or the assumed rate.
    pub(super) bound: f64,
}

impl Before {
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
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Block {
    index: u32,
    failed: f64,
    total: f64,
    tolerated: f64,
    /// `ln(S_j + w_b)` of each alternative.
    stake: [f64; GRID],
    /// `a_j`: what one failure adds.
    gain: [f64; GRID],
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stratum {
    pub(super) before: Before,
    pub(super) margin: f64,
    ln_weight: f64,
    opening: Opening,
    block_s: f64,
    even_weight: f64,
    ln_clip: f64,
    open: Option<Block>,
    ln_sums: [f64; GRID],
    used: f64,
    settled_bet: bool,
    pub(super) clipped_blocks: u32,
    pub(super) failing_ticks: u32,
    pub(super) last_failing_tick: Option<u32>,
}

impl Stratum {
    /// `cadence_s` is the time from one count to the next.
    pub(super) fn new(
        rule: &Rule,
        before: Before,
        margin: f64,
        weight: f64,
        cadence_s: f64,
        opening: Opening,
    ) -> Self {
        let block_s = rule.block_s.max(cadence_s);
        let count = (rule.watch_s / block_s - 1e-9).ceil().max(1.0);
        let touched = rule.blocks_of_a_burst(cadence_s, block_s);
        Self {
            before,
            margin,
            ln_weight: ln(weight),
            opening,
            block_s,
            even_weight: (1.0 - rule.w_first - rule.w_settled) / count,
            ln_clip: -rule.alpha.ln() / f64::from(touched),
            open: None,
            ln_sums: [LN_ZERO; GRID],
            used: 0.0,
            settled_bet: false,
            clipped_blocks: 0,
            failing_ticks: 0,
            last_failing_tick: None,
        }
    }

    /// Closes the block that has ended and opens the one of time `t`, if that is another.
    ///
    /// `settled_from` is the time from which blocks count as settled; `control` is what old pods said up to the tick
    /// before.
    pub(super) fn advance(
        &mut self,
        rule: &Rule,
        t: f64,
        settled_from: f64,
        control: Option<Control>,
        has_counts: bool,
    ) {
        let index = whole(t / self.block_s);
        match &self.open {
            Some(open) if index <= open.index => return,
            Some(_) => self.close(rule),
            None if self.opening == Opening::AtFirstCount && !has_counts => return,
            None => {}
        }
        let is_first = self.used == 0.0;
        let settled = self.opening == Opening::AtFirstCount
            || f64::from(index) * self.block_s >= settled_from - 1e-9;
        let mut weight = self.even_weight;
        if is_first {
            weight += rule.w_first;
        }
        if settled && !self.settled_bet {
            weight += rule.w_settled;
            self.settled_bet = true;
        }
        self.used += weight;
        let margin = if settled {
            rule.null_margin
        } else {
            rule.unsettled_margin
        };
        let mut tolerated = rule.tolerable(self.before.bound + margin);
        if let Some(control) = control {
            tolerated = rule.tolerable(tolerated.max(control.bound + rule.null_margin));
        }
        let ln_bet = ln(weight);
        self.open = Some(Block {
            index,
            failed: 0.0,
            total: 0.0,
            tolerated,
            stake: self.ln_sums.map(|sum| ln_add(sum, ln_bet)),
            gain: rule
                .grid
                .map(|rate| ((tolerated + (1.0 - tolerated) * rate) / tolerated).ln()),
        });
    }

    fn close(&mut self, rule: &Rule) {
        let Some(open) = self.open.take() else { return };
        let mut clipped = false;
        for (j, sum) in self.ln_sums.iter_mut().enumerate() {
            let factor = ln_factor(&open, rule.grid[j], j);
            clipped |= factor > self.ln_clip;
            *sum = open.stake[j] + factor.min(self.ln_clip);
        }
        self.clipped_blocks += u32::from(clipped);
    }

    /// Adds the counts of a tick to the open block. They may be fractions: a large scrape is scaled down.
    pub(super) fn add(&mut self, tick: u32, failed: f64, total: f64) {
        if let Some(open) = &mut self.open {
            open.failed += failed;
            open.total += total;
        }
        if failed > 0.0 {
            self.failing_ticks += 1;
            self.last_failing_tick = Some(tick);
        }
    }

    /// The logarithm of the e-value, with the open block as it stands.
    pub(super) fn ln_e(&self, rule: &Rule) -> f64 {
        let kept = ln((1.0 - self.used).max(0.0));
        let Some(open) = &self.open else { return kept };
        let mut terms = [kept; GRID + 1];
        let ln_share = -(GRID as f64).ln();
        for (j, term) in terms.iter_mut().enumerate().take(GRID) {
            let factor = ln_factor(open, rule.grid[j], j).min(self.ln_clip);
            *term = open.stake[j] + factor + ln_share;
        }
        ln_sum(&terms)
    }

    /// The same, times the stratum's weight.
    pub(super) fn ln_weighted(&self, ln_e: f64) -> f64 {
        self.ln_weight + ln_e
    }

    /// The tolerated rate of the open block.
    pub(super) fn tolerated(&self) -> Option<f64> {
        self.open.as_ref().map(|open| open.tolerated)
    }

    /// Test 2 of path C: whether the estimate exceeds what was before by more than the margin.
    pub(super) fn rose(&self, failed: u64, total: u64, control: Option<Control>) -> bool {
        let before = self
            .before
            .rate()
            .max(control.map_or(0.0, |control| control.rate()));
        total > 0 && failed as f64 / total as f64 - before > self.margin
    }

    /// Test 3 of path C for soundings: failures in enough ticks, and lately.
    pub(super) fn is_alive(&self, rule: &Rule, tick: u32) -> bool {
        let lately = rule.ticks(rule.still_failing_s).max(3);
        self.failing_ticks >= rule.min_failing_ticks
            && self
                .last_failing_tick
                .is_some_and(|last| tick - last < lately)
    }

    pub(super) fn is_sound(&self) -> bool {
        let finite = self.ln_sums.iter().all(|sum| sum.is_finite());
        finite && self.block_s > 0.0 && self.ln_clip.is_finite() && self.used.is_finite()
    }
}

/// `ln f_j` before the clip.
fn ln_factor(block: &Block, rate: f64, j: usize) -> f64 {
    block.failed * block.gain[j] + (block.total - block.failed) * (-rate).ln_1p()
}

/// What old pods answered in the last ticks in which they were asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct OldPods {
    recent: Recent<u16>,
    asked_now: bool,
}

impl OldPods {
    pub(super) fn new(rule: &Rule) -> Self {
        let [a, b] = rule.control_windows_s;
        Self {
            recent: Recent::new(rule.ticks(a).max(rule.ticks(b)).max(1)),
            asked_now: false,
        }
    }

    pub(super) fn push(&mut self, failed: u16, total: u16) {
        self.asked_now = total > 0;
        if self.asked_now {
            self.recent.push(failed, total);
        }
    }

    /// What they say, for a stratum with this history; `None` when they say nothing.
    pub(super) fn says(&self, rule: &Rule, before: f64, margin: f64) -> Option<Control> {
        rule.control_windows_s
            .iter()
            .filter_map(|window_s| {
                let (failed, total) = self.recent.sum(rule.ticks(*window_s).max(1));
                if failed < u64::from(rule.control_failures) {
                    return None;
                }
                let rate = failed as f64 / total as f64;
                if !self.asked_now && rate <= before + margin {
                    return None;
                }
                let bound = upper_bound(failed as f64, total as f64, rule.baseline_conf);
                Some(Control {
                    bound,
                    failed,
                    total,
                })
            })
            .reduce(|a, b| if b.bound > a.bound { b } else { a })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.recent.is_sound()
    }

    pub(super) fn bytes(&self) -> usize {
        self.recent.bytes()
    }
}

pub(super) fn ln(value: f64) -> f64 {
    if value > 0.0 { value.ln() } else { LN_ZERO }
}

fn ln_add(a: f64, b: f64) -> f64 {
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    large + (small - large).exp().ln_1p()
}

/// `ln Σ exp(term)`.
pub(super) fn ln_sum(terms: &[f64]) -> f64 {
    let largest = terms.iter().copied().fold(LN_ZERO, f64::max);
    if largest <= LN_ZERO {
        return LN_ZERO;
    }
    let sum: f64 = terms.iter().map(|term| (term - largest).exp()).sum();
    largest + sum.ln()
}
