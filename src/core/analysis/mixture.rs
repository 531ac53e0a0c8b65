//! Evidence from one stream of counts: a mixture e-process.
//!
//! At the start of every block a bet is placed on each of a few failure rates above the tolerated one (mostly at the
//! first block, and at the first one whose tolerated rate is certain). Each block multiplies a bet by the likelihood
//! ratio of its counts, clipped so that no single burst can win. Under any rate up to the tolerated one the expected
//! value never exceeds 1, so it reaches 100 with a probability of at most 1 %, however often one looks.
//!
//! Sums are kept as logarithms: a long analysis with a large clip would leave the range of a double.

use serde::{Deserialize, Serialize};

use super::rule::{GRID, Rule, whole};

/// The logarithm of 0, finite so that it survives JSON.
pub(super) const LN_ZERO: f64 = -1e300;

/// Counts of the open block that share one tolerated rate.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
struct RateClass {
    failed: f64,
    total: f64,
    tolerated: f64,
}

impl RateClass {
    /// What its results add to the evidence for one alternative. That of a failure (`a_j`) is worked out anew each time:
    /// most blocks have none, and to keep it for all alternatives takes twice as much as all else of the class.
    fn ln_factor(&self, step: f64, miss: f64) -> f64 {
        let successes = (self.total - self.failed) * miss;
        if self.failed == 0.0 {
            return successes;
        }
        let rate = self.tolerated;
        self.failed * ((rate + (1.0 - rate) * step) / rate).ln() + successes
    }
}

/// What one result that is not a failure adds to the evidence for each alternative: `ln(1 - g_j)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct NonFailure([f64; GRID]);

impl NonFailure {
    pub(super) fn new(rule: &Rule) -> Self {
        Self(rule.grid.map(|rate| (-rate).ln_1p()))
    }

    pub(super) fn is_sound(&self) -> bool {
        self.0.iter().all(|miss| miss.is_finite())
    }
}

/// One e-process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Mixture {
    block_s: f64,
    ln_clip: f64,
    /// Index of the open block.
    open: Option<u32>,
    /// `ln(S_j + w_b)` of the open block.
    stake: [f64; GRID],
    classes: Box<[RateClass]>,
    used: f64,
    /// Whether the bet on the first sure block is placed.
    sure_bet: bool,
    pub(super) clipped_blocks: u32,
}

impl Mixture {
    /// `cadence_s` is the time from one count to the next, `classes` how many tolerated rates a block has.
    pub(super) fn new(
        rule: &Rule,
        cadence_s: f64,
        block_s: f64,
        alpha: f64,
        classes: usize,
    ) -> Self {
        let block_s = block_s.max(cadence_s);
        let touched = rule.blocks_of_a_burst(cadence_s, block_s);
        Self {
            block_s,
            ln_clip: -alpha.ln() / f64::from(touched),
            open: None,
            stake: [LN_ZERO; GRID],
            classes: vec![RateClass::default(); classes].into(),
            used: 0.0,
            sure_bet: false,
            clipped_blocks: 0,
        }
    }

    /// The block of time `t`, where it is not the open one. A time that goes back stays in the open block.
    pub(super) fn due(&self, t: f64) -> Option<u32> {
        let index = whole(t / self.block_s);
        self.open.is_none_or(|open| index > open).then_some(index)
    }

    /// The block of time `t`, unless it is the open one. A time that goes back stays in the open block.
    pub(super) fn begin_of(&self, index: u32) -> f64 {
        f64::from(index) * self.block_s
    }

    /// Whether a block has ever been opened.
    pub(super) fn has_begun(&self) -> bool {
        self.open.is_some()
    }

    /// Closes the open block and opens another, which tolerates `tolerated(class)`.
    pub(super) fn open_block(
        &mut self,
        rule: &Rule,
        index: u32,
        is_sure: bool,
        mut tolerated: impl FnMut(usize) -> f64,
    ) {
        let ln_sums = self.close(rule);
        let count = (rule.analysis_s / self.block_s - 1e-9).ceil().max(1.0);
        let mut weight = (1.0 - rule.w_first - rule.w_complete) / count;
        if self.used == 0.0 {
            weight += rule.w_first;
        }
        if is_sure && !self.sure_bet {
            weight += rule.w_complete;
            self.sure_bet = true;
        }
        self.used += weight;
        let ln_bet = ln(weight);
        self.stake = ln_sums.map(|sum| ln_add(sum, ln_bet));
        for (at, class) in self.classes.iter_mut().enumerate() {
            *class = RateClass {
                failed: 0.0,
                total: 0.0,
                tolerated: tolerated(at),
            };
        }
        self.open = Some(index);
    }

    /// Closes the open block, if there is one: `ln S_j` of the closed blocks.
    fn close(&mut self, rule: &Rule) -> [f64; GRID] {
        let mut ln_sums = [LN_ZERO; GRID];
        if self.open.is_none() {
            return ln_sums;
        }
        let misses = NonFailure::new(rule);
        let mut clipped = false;
        for (j, sum) in ln_sums.iter_mut().enumerate() {
            let factor = self.ln_factor(rule, &misses, j);
            clipped |= factor > self.ln_clip;
            *sum = self.stake[j] + factor.min(self.ln_clip);
        }
        self.clipped_blocks += u32::from(clipped);
        ln_sums
    }

    /// Adds counts to the open block. They may be fractions: a large scrape is scaled down.
    pub(super) fn add(&mut self, class: usize, failed: f64, total: f64) {
        if self.open.is_some()
            && let Some(class) = self.classes.get_mut(class)
        {
            class.failed += failed;
            class.total += total;
        }
    }

    /// `ln f_j` of the open block, before the clip.
    fn ln_factor(&self, rule: &Rule, NonFailure(misses): &NonFailure, j: usize) -> f64 {
        let terms = self.classes.iter().filter(|class| class.total > 0.0);
        terms
            .map(|class| class.ln_factor(rule.grid[j], misses[j]))
            .sum()
    }

    /// The logarithm of the e-value, with the open block as it stands.
    pub(super) fn ln_e(&self, rule: &Rule, misses: &NonFailure) -> f64 {
        let kept = ln((1.0 - self.used).max(0.0));
        if self.open.is_none() {
            return kept;
        }
        let mut terms = [kept; GRID + 1];
        let ln_share = -(GRID as f64).ln();
        for (j, term) in terms.iter_mut().enumerate().take(GRID) {
            *term = self.term(rule, misses, j) + ln_share;
        }
        ln_sum(&terms)
    }

    /// A cheap upper bound of that: no mean is above its largest term.
    pub(super) fn can_reach(&self, rule: &Rule, misses: &NonFailure, needed: f64) -> bool {
        // What is kept is at most 1; together with the mean of the bets it is at most twice the larger of the two. With
        // room for what the weights of the strata are off from 1 by rounding.
        let reaches = |largest: f64| largest.max(0.0) + std::f64::consts::LN_2 + 1e-9 >= needed;
        // Mostly not even an open block that is as bad as can be would do.
        let stake = self.stake.iter().copied().fold(LN_ZERO, f64::max);
        reaches(stake + self.ln_clip) && (0..GRID).any(|j| reaches(self.term(rule, misses, j)))
    }

    /// The logarithm of the bet on one alternative, with the open block as it stands.
    fn term(&self, rule: &Rule, misses: &NonFailure, j: usize) -> f64 {
        self.stake[j] + self.ln_factor(rule, misses, j).min(self.ln_clip)
    }

    /// The rate that the open block tolerates for its last class.
    pub(super) fn tolerated(&self) -> Option<f64> {
        self.open?;
        self.classes.last().map(|class| class.tolerated)
    }

    pub(super) fn is_sound(&self, classes: usize) -> bool {
        let finite = |numbers: &[f64]| numbers.iter().all(|number| number.is_finite());
        let is_open = self.open.is_some();
        finite(&self.stake)
            && finite(&[self.block_s, self.ln_clip, self.used])
            && self.block_s > 0.0
            && self.classes.len() == classes
            && self.classes.iter().all(|class| {
                let is_rate = !is_open || class.tolerated > 0.0 && class.tolerated < 1.0;
                is_rate && finite(&[class.failed, class.total, class.tolerated])
            })
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.classes)
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
