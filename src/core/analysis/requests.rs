//! Users' requests, counted from scrapes: a stratum of its own, with its own cadence.

use serde::{Deserialize, Serialize};

use super::counts::RecentCounts;
use super::mixture::Mixture;
use super::rule::{Rule, whole};
use super::stratum::BeforeCounts;
use super::warm_up::{PHASES, RolloutProgress, default_of};
use super::{RequestScrape, RequestsBefore};

/// The stratum of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RequestStratum {
    pub(super) interval_s: f64,
    pub(super) before: BeforeCounts,
    pub(super) margin: f64,
    pub(super) ln_weight: f64,
    pub(super) evidence: Mixture,
    pub(super) recent: RecentCounts,
    failing_scrapes: u32,
    last_failing_t: f64,
}

impl RequestStratum {
    pub(super) fn new(rule: &Rule, before: &RequestsBefore) -> Self {
        let RequestsBefore {
            interval_s,
            failed,
            total,
        } = *before;
        Self {
            interval_s,
            before: BeforeCounts::new(rule, failed, total, rule.n0_min),
            margin: rule.margin,
            ln_weight: 0.0,
            evidence: Mixture::new(rule, interval_s, rule.block_s, rule.alpha, 1),
            recent: RecentCounts::new(whole(rule.window_s / interval_s), u64::MAX),
            failing_scrapes: 0,
            last_failing_t: 0.0,
        }
    }

    /// Adds the scrapes of a tick. `last_downtime` is the last tick in which a workload was expected to be away.
    pub(super) fn take(
        &mut self,
        rule: &Rule,
        t: f64,
        progress: RolloutProgress,
        last_downtime: Option<f64>,
        scrapes: &[RequestScrape],
    ) {
        if let Some(index) = self.evidence.due(t) {
            let phase = progress.phase(rule, self.evidence.begin_of(index));
            let rate = default_of(rule, &self.before, phase);
            self.evidence
                .open_block(rule, index, phase == PHASES, |_| rate);
        }
        for scrape in scrapes {
            let begin = scrape.t - self.interval_s;
            if last_downtime.is_some_and(|last| last > begin + 1e-9) {
                continue;
            }
            let total = scrape.total.max(scrape.failed);
            let cap = u64::from(rule.request_cap);
            let (k, n) = if total > cap {
                (scrape.failed as f64 * cap as f64 / total as f64, cap as f64)
            } else {
                (scrape.failed as f64, total as f64)
            };
            self.evidence.add(0, k, n);
            self.recent.push(scrape.failed, total);
            if scrape.failed > 0 {
                self.failing_scrapes += 1;
                self.last_failing_t = scrape.t;
            }
        }
    }

    /// Tests 2 and 3 of path C.
    pub(super) fn passes(&self, rule: &Rule, t: f64) -> bool {
        let lately = rule.still_failing_s.max(2.0 * self.interval_s);
        let (failed, total) = self.recent.whole();
        self.failing_scrapes >= rule.min_failing_scrapes
            && t - self.last_failing_t <= lately + 1e-9
            && total > 0
            && failed as f64 / total as f64 - self.before.rate() > self.margin
    }

    pub(super) fn is_sound(&self) -> bool {
        self.evidence.is_sound(1) && self.interval_s > 0.0 && self.last_failing_t.is_finite()
    }

    pub(super) fn bytes(&self) -> usize {
        self.evidence.bytes() + self.recent.bytes()
    }
}
