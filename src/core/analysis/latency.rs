//! Slow answers: the comparison of failures, applied to answers that took much longer than before.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::comparison::{Comparison, ComparisonInput, ComparisonSubject, RisingStratum};
use super::pod_results::{PodReading, PodTick};
use super::rule::Rule;
use super::warm_up::{LearnedRollouts, RolloutProgress};
use super::{AnalysisStart, PodSide, TickOutcome};

/// Buckets of a histogram.
pub const BUCKETS: usize = 864;

/// Longest latency with a bucket of its own, in microseconds.
const MAX_US: u32 = i32::MAX as u32;

/// The histogram of one endpoint's good answers before: (bucket, answers), in order.
pub type BaselineHistogram = Vec<(u16, u64)>;

/// The bucket of a latency: exact below 64 µs, then 32 buckets for each power of two.
pub fn bucket(latency_us: u32) -> u16 {
    let value = latency_us.min(MAX_US);
    let e = (32 - value.leading_zeros()).saturating_sub(6);
    (32 * e + (value >> e)) as u16
}

/// The greatest latency of a bucket, in microseconds.
pub fn edge(bucket: u16) -> u32 {
    let e = (u32::from(bucket) / 32).saturating_sub(1);
    let step = u32::from(bucket) - 32 * e;
    ((step + 1) << e) - 1
}

/// The quantile of a histogram: the edge of the bucket in which it lies; `None` of an empty one.
pub fn quantile(histogram: &BaselineHistogram, quantile: f64) -> Option<u32> {
    let total: u64 = histogram.iter().map(|(_, count)| count).sum();
    let rank = ((quantile * total as f64 - 1e-9).ceil() as u64).max(1);
    let mut below = 0;
    let found = histogram.iter().find(|(_, count)| {
        below += count;
        below >= rank
    });
    found.map(|(bucket, _)| edge(*bucket))
}

/// The limit above which an endpoint's answers are slow.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct LatencyBaseline {
    /// In microseconds; `None` if too little was measured.
    slow_above_us: Option<f64>,
}

/// An instance of the comparison for one factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct LatencyComparison {
    yardsticks: Vec<LatencyBaseline>,
    pub(super) comparison: Comparison,
    pub(super) factor: f64,
}

impl LatencyComparison {
    /// `None` if no endpoint has enough latencies from before.
    pub(super) fn new(rule: &Rule, start: &AnalysisStart, factor: f64) -> Option<Self> {
        let mut baseline = Vec::with_capacity(start.endpoints.len());
        let mut yardsticks = Vec::with_capacity(start.endpoints.len());
        for at in 0..start.endpoints.len() {
            let none = BaselineHistogram::new();
            let histogram = start.latency.get(at).unwrap_or(&none);
            let total: u64 = histogram.iter().map(|(_, count)| count).sum();
            let p = quantile(histogram, rule.latency_quantile);
            let tau = p.map(|p| factor * f64::from(p));
            let tau = tau.filter(|_| total >= rule.latency_n0);
            let slow = tau.map_or(0, |tau| {
                let above = histogram.iter().filter(|(b, _)| f64::from(edge(*b)) > tau);
                above.map(|(_, count)| count).sum()
            });
            baseline.push(if tau.is_some() { (slow, total) } else { (0, 0) });
            yardsticks.push(LatencyBaseline { slow_above_us: tau });
        }
        yardsticks
            .iter()
            .any(|yardstick| yardstick.slow_above_us.is_some())
            .then(|| {
                let rule = Arc::new(Rule {
                    null_margin: rule.latency_null_margin,
                    margin: rule.latency_margin,
                    endpoint_margin: rule.latency_endpoint_margin,
                    control_windows_s: rule.latency_control_windows_s.clone(),
                    ..rule.clone()
                });
                let input = ComparisonInput {
                    subject: ComparisonSubject::Latency,
                    baseline: &baseline,
                    failing_at_start: &vec![false; baseline.len()],
                    learned: &LearnedRollouts::default(),
                    direct: start.direct,
                    requests: None,
                };
                Self {
                    yardsticks,
                    comparison: Comparison::new(rule, input),
                    factor,
                }
            })
    }

    /// One tick. `service` gives the latency of an endpoint's success through the Service, if it counts; `pods` the
    /// outcome that a pod's result counts as.
    pub(super) fn take(
        &mut self,
        now: u32,
        progress: RolloutProgress,
        service: impl Fn(usize) -> Option<u32>,
        looks: &[PodTick<'_>],
        pods: &impl PodReading,
    ) {
        let rule = &self.comparison.rule;
        let grown_s = rule.warm_ages_s.last().copied().unwrap_or_default();
        let grown = rule.ticks_up(grown_s);
        for (at, endpoint) in self.comparison.endpoints.iter_mut().enumerate() {
            endpoint.outcome =
                service(at).map_or(TickOutcome::Unknown, |us| self.yardsticks[at].outcome(us));
        }
        let yardsticks = &self.yardsticks;
        let read = |look: &PodTick<'_>, at: usize| {
            let is_young = look.side == PodSide::New && now < look.ready_tick.saturating_add(grown);
            if is_young || pods.read(look, at) != TickOutcome::Success {
                return TickOutcome::Unknown;
            }
            let latency = look.latency_us.get(at).copied().flatten();
            latency.map_or(TickOutcome::Unknown, |us| yardsticks[at].outcome(us))
        };
        self.comparison.take(now, progress, looks, &read, |_| false);
    }

    pub(super) fn evaluate(&mut self, now: u32) -> Option<RisingStratum> {
        self.comparison.evaluate(now)
    }

    pub(super) fn is_sound(&self, endpoints: usize, ticks: u32) -> bool {
        self.yardsticks.len() == endpoints
            && self.comparison.endpoints.len() == endpoints
            && self.comparison.is_sound(ticks)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.comparison.rule.bytes()
            + self.yardsticks.capacity() * size_of::<LatencyBaseline>()
            + self.comparison.bytes()
    }
}

impl LatencyBaseline {
    fn outcome(self, latency_us: u32) -> TickOutcome {
        match self.slow_above_us {
            Some(limit) if f64::from(latency_us) > limit => TickOutcome::Failure,
            Some(_) => TickOutcome::Success,
            None => TickOutcome::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_have_the_places_and_edges_of_the_specification() {
        for (us, place, greatest) in [
            (63, 63, 63),
            (64, 64, 65),
            (1000, 190, 1007),
            (20_000, 327, 20_479),
            (123_456, 412, 124_927),
            (5_000_000, 582, 5_111_807),
        ] {
            assert_eq!((bucket(us), edge(bucket(us))), (place, greatest), "{us} µs");
        }
        assert!(usize::from(bucket(u32::MAX)) < BUCKETS);
    }

    #[test]
    fn the_quantile_is_the_edge_of_its_bucket() {
        let histogram = vec![(bucket(1000), 95), (bucket(5000), 5)];
        assert_eq!(quantile(&histogram, 0.95), Some(1007));
        assert_eq!(quantile(&histogram, 0.96), Some(edge(bucket(5000))));
        assert_eq!(quantile(&Vec::new(), 0.95), None);
    }
}
