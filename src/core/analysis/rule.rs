//! The numbers of the rule, and the bounds of each.

use serde::{Deserialize, Serialize};

/// How many alternatives a stratum bets on.
pub(crate) const GRID: usize = 6;

/// Ages of new pods by which is learned.
pub(crate) const AGES: usize = 6;

/// The most spans over which old pods' failures are counted.
const MAX_CONTROL_WINDOWS: usize = 3;

/// The settings of the rule, with the names and defaults under which it was simulated. Times are in seconds, rates are
/// shares from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Length of a tick: one probe of each endpoint. 0.1 to 60.
    pub interval_s: f64,
    /// Shortest length of the analysis. At most one day.
    #[serde(rename = "watch_s")]
    pub analysis_s: f64,
    /// The analysis ends no earlier than this after the rollout is complete.
    pub after_complete_s: f64,
    /// Longest length of the analysis while the rollout runs.
    #[serde(rename = "watch_cap_s")]
    pub analysis_cap_s: f64,
    /// An analysis that would end under suspicion continues for this long, once.
    pub extend_s: f64,
    /// Failures in a row of one endpoint that count as suspicion.
    pub extend_run: u32,
    /// Results that must have been able to meet a new pod, for a revision to pass.
    pub met_min: u32,
    /// The e-value needed is 1/alpha.
    pub alpha: f64,
    /// The same for the long blocks.
    pub alpha_slow: f64,
    /// Error probability of the baseline's upper bound.
    pub baseline_conf: f64,
    /// Increase that is tolerated without evidence growing.
    pub null_margin: f64,
    /// Estimated increase needed in all endpoints together, in requests and in new pods.
    pub margin: f64,
    /// Estimated increase needed in one endpoint alone.
    pub endpoint_margin: f64,
    /// Replaces `null_margin` while the rollout runs and shortly after it, where nothing is learned.
    pub unsettled_margin: f64,
    /// The same in the second half of the time after completion, and of a new pod's first minute.
    pub late_margin: f64,
    /// Length of each of the two phases after completion.
    pub settle_plus_s: f64,
    /// When the rollout counts as complete if the cluster does not show it.
    pub settle_unknown_s: f64,
    /// Upper ends of the ages by which new pods' results are learned.
    pub warm_ages_s: [f64; AGES],
    /// Learned results below which they are ignored.
    pub warm_n: u64,
    /// Learned results from which they are fully trusted.
    pub warm_sure_n: u64,
    /// New pods up to this age are tolerated `unsettled_margin`, where nothing is learned.
    pub warm_default_s: f64,
    /// How clearly counts must exceed a rate to be significant: `n kl(k/n, p) > ln significance`.
    pub significance: f64,
    /// Length of a block of evidence.
    pub block_s: f64,
    /// Length of the long blocks, which see what comes and goes.
    pub slow_block_s: f64,
    /// The longest burst that must never reject by itself.
    pub burst_s: f64,
    /// Least tolerated rate.
    pub q_min: f64,
    /// Greatest tolerated rate.
    pub q_max: f64,
    /// The rates that are bet on, with equal weights.
    pub grid: [f64; GRID],
    /// Start weight of the first block.
    pub w_first: f64,
    /// Start weight of the first block whose tolerated rate is sure.
    #[serde(rename = "w_settled")]
    pub w_complete: f64,
    /// Share of all endpoints together among the strata of probe results.
    pub w_pool: f64,
    /// Share of requests, when they are counted.
    pub w_requests: f64,
    /// The estimate looks back so long …
    pub window_s: f64,
    /// … or over this many results, whichever is longer.
    pub window_probes: u32,
    /// Path C needs failures in at least this many ticks …
    pub min_failing_ticks: u32,
    /// … and a last one within this many seconds.
    pub still_failing_s: f64,
    /// For requests: scrapes with errors.
    pub min_failing_scrapes: u32,
    /// A scrape counts as at most this many requests.
    pub request_cap: u32,
    /// How long everything must fail without a break (path B).
    pub hold_s: f64,
    /// Error probability of path B for one endpoint.
    pub alpha_hard: f64,
    /// With fewer baseline results than this (half of it for one endpoint) `p_assumed` is used.
    pub n0_min: u64,
    /// The rate that is assumed without a baseline.
    pub p_assumed: f64,
    /// Successes in a row that readmit an excluded endpoint.
    pub recover_ticks: u32,
    /// A dependency fails when this many …
    pub dependency_bad: u32,
    /// … of its last results failed, out of this many; at most 64.
    pub dependency_of: u32,
    /// Restarts above normal that reject together with CrashLoopBackOff.
    pub crash_restarts: u32,
    /// Restarts above normal that reject by themselves.
    pub crash_restarts_hard: u32,
    /// A changed workload must have a Ready pod after this (path E).
    pub ready_within_s: f64,
    /// How long pods cannot start, or cannot be created, before that rejects.
    pub stuck_s: f64,
    /// Downtime of a strategy that stops first that is always allowed.
    pub downtime_s: f64,
    /// Usable share of the results that a passed revision needs.
    pub min_coverage: f64,
    /// A new pod's results count from this long after it became Ready.
    pub pod_grace_s: f64,
    /// How long all new pods must have failed (path D).
    pub pod_hold_s: f64,
    /// In how many of these ticks an old pod must have answered well.
    pub pod_control: u32,
    /// After this a new pod counts in the stratum even without a success so far.
    pub pod_cold_s: f64,
    /// Share of the stratum of new pods, if pods are probed directly.
    pub w_pods: f64,
    /// Spans over which old pods' failures are counted; 1 to 3.
    pub control_windows_s: Vec<f64>,
    /// Fewer failures of old pods than this in a span say nothing.
    pub control_failures: u32,
    /// Answers that take this many times the baseline's `latency_quantile` are slow: a notice when they become more.
    pub slower_factor: f64,
    /// The same factor for a rejection.
    pub latency_factor: f64,
    /// Whether slow answers reject.
    pub latency_convicts: bool,
    /// The quantile of the baseline's latencies that slow answers are compared with.
    pub latency_quantile: f64,
    /// With fewer latencies from before than this, an endpoint's latency is not analyzed.
    pub latency_n0: u64,
    /// `null_margin` for slow answers.
    pub latency_null_margin: f64,
    /// `margin` for slow answers.
    pub latency_margin: f64,
    /// `endpoint_margin` for slow answers.
    pub latency_endpoint_margin: f64,
    /// `control_windows_s` for slow answers; 1 to 3.
    pub latency_control_windows_s: Vec<f64>,
    /// The bake ends this long after the revision appeared.
    pub bake_s: f64,
    /// Length of a block of the bake.
    pub bake_block_s: f64,
    /// The span of the bake's estimate.
    pub bake_window_s: f64,
    /// Increase over the baseline's upper bound that the bake tolerates.
    pub bake_null_margin: f64,
    /// Further increase that the bake's estimate needs.
    pub bake_margin: f64,
    /// The maximum factor of one block of the bake.
    pub bake_clip: f64,
    /// The evidence at which the bake raises an alarm.
    pub bake_threshold: f64,
    /// From version 1, whose recordings and states contain it; unused.
    #[serde(rename = "settle_cap_s", skip_serializing)]
    #[doc(hidden)]
    pub retired_settle_cap_s: Option<f64>,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            interval_s: 5.0,
            analysis_s: 300.0,
            after_complete_s: 120.0,
            analysis_cap_s: 1200.0,
            extend_s: 60.0,
            extend_run: 3,
            met_min: 60,
            alpha: 0.01,
            alpha_slow: 0.002,
            baseline_conf: 0.01,
            null_margin: 0.005,
            margin: 0.02,
            endpoint_margin: 0.05,
            unsettled_margin: 0.20,
            late_margin: 0.05,
            settle_plus_s: 30.0,
            settle_unknown_s: 90.0,
            warm_ages_s: [5.0, 10.0, 15.0, 20.0, 30.0, 60.0],
            warm_n: 40,
            warm_sure_n: 150,
            warm_default_s: 30.0,
            significance: 20.0,
            block_s: 5.0,
            slow_block_s: 60.0,
            burst_s: 10.0,
            q_min: 0.005,
            q_max: 0.9,
            grid: [0.02, 0.05, 0.10, 0.20, 0.40, 0.80],
            w_first: 0.3,
            w_complete: 0.3,
            w_pool: 0.5,
            w_requests: 0.4,
            window_s: 60.0,
            window_probes: 240,
            min_failing_ticks: 3,
            still_failing_s: 30.0,
            min_failing_scrapes: 2,
            request_cap: 200,
            hold_s: 15.0,
            alpha_hard: 1e-4,
            n0_min: 40,
            p_assumed: 0.05,
            recover_ticks: 3,
            dependency_bad: 2,
            dependency_of: 3,
            crash_restarts: 2,
            crash_restarts_hard: 3,
            ready_within_s: 300.0,
            stuck_s: 60.0,
            downtime_s: 90.0,
            min_coverage: 0.5,
            pod_grace_s: 2.0,
            pod_hold_s: 10.0,
            pod_control: 5,
            pod_cold_s: 12.0,
            w_pods: 0.4,
            control_windows_s: vec![10.0, 30.0],
            control_failures: 3,
            slower_factor: 1.5,
            latency_factor: 2.0,
            latency_convicts: false,
            latency_quantile: 0.95,
            latency_n0: 200,
            latency_null_margin: 0.05,
            latency_margin: 0.10,
            latency_endpoint_margin: 0.15,
            latency_control_windows_s: vec![10.0, 30.0, 120.0],
            bake_s: 3600.0,
            bake_block_s: 30.0,
            bake_window_s: 120.0,
            bake_null_margin: 0.02,
            bake_margin: 0.05,
            bake_clip: 10.0,
            bake_threshold: 1e5,
            retired_settle_cap_s: None,
        }
    }
}

/// A setting, or a number of a stream, outside the bounds of the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct InvalidRule {
    /// The field, as written in a stream.
    pub field: String,
    /// What is wrong with it, with the bound.
    pub problem: String,
}

impl InvalidRule {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Rule {
    /// Checks the bounds of every number.
    ///
    /// # Errors
    ///
    /// The first that is out of bounds, by name and with its bounds.
    pub fn check(&self) -> Result<(), InvalidRule> {
        let within = |field: &str, value: f64, low: f64, high: f64| {
            // A comparison with NaN is false, so NaN is refused here as well.
            if value >= low && value <= high {
                return Ok(());
            }
            Err(InvalidRule::new(
                field,
                format!("is {value}, but must be from {low} to {high}"),
            ))
        };
        let long_windows = [
            ("interval_s", self.interval_s, 0.1, 60.0),
            ("watch_s", self.analysis_s, self.interval_s, 86_400.0),
            ("after_complete_s", self.after_complete_s, 0.0, 86_400.0),
            ("watch_cap_s", self.analysis_cap_s, 0.0, 86_400.0),
            ("extend_s", self.extend_s, 0.0, 86_400.0),
            ("settle_plus_s", self.settle_plus_s, 0.0, 86_400.0),
            ("settle_unknown_s", self.settle_unknown_s, 0.0, 86_400.0),
            ("warm_default_s", self.warm_default_s, 0.0, 86_400.0),
            ("ready_within_s", self.ready_within_s, 0.0, 86_400.0),
            ("stuck_s", self.stuck_s, 0.0, 86_400.0),
            ("downtime_s", self.downtime_s, 0.0, 86_400.0),
            ("bake_s", self.bake_s, 0.0, 604_800.0),
            ("bake_block_s", self.bake_block_s, 1.0, 3600.0),
            ("bake_window_s", self.bake_window_s, 1.0, 3600.0),
            ("block_s", self.block_s, 0.1, 3600.0),
            ("slow_block_s", self.slow_block_s, 0.1, 3600.0),
            ("burst_s", self.burst_s, 0.0, 3600.0),
            ("window_s", self.window_s, 0.0, 3600.0),
            ("still_failing_s", self.still_failing_s, 0.0, 3600.0),
            ("hold_s", self.hold_s, 0.0, 3600.0),
            ("pod_grace_s", self.pod_grace_s, 0.0, 3600.0),
            ("pod_hold_s", self.pod_hold_s, 0.0, 3600.0),
            ("pod_cold_s", self.pod_cold_s, 0.0, 3600.0),
            ("slower_factor", self.slower_factor, 1.0, 1000.0),
            ("latency_factor", self.latency_factor, 1.0, 1000.0),
            ("bake_clip", self.bake_clip, 1.0, 1e6),
            ("bake_threshold", self.bake_threshold, 1.0, 1e12),
            ("significance", self.significance, 1.0, 1e9),
        ];
        let shards = [
            ("alpha", self.alpha, 1e-12, 0.5),
            ("alpha_slow", self.alpha_slow, 1e-12, 0.5),
            ("late_margin", self.late_margin, 0.0, 1.0),
            ("latency_quantile", self.latency_quantile, 0.01, 0.999),
            ("latency_null_margin", self.latency_null_margin, 0.0, 1.0),
            ("latency_margin", self.latency_margin, 0.0, 1.0),
            (
                "latency_endpoint_margin",
                self.latency_endpoint_margin,
                0.0,
                1.0,
            ),
            ("bake_null_margin", self.bake_null_margin, 0.0, 1.0),
            ("bake_margin", self.bake_margin, 0.0, 1.0),
            ("baseline_conf", self.baseline_conf, 1e-12, 0.5),
            ("alpha_hard", self.alpha_hard, 1e-12, 0.5),
            ("null_margin", self.null_margin, 0.0, 1.0),
            ("margin", self.margin, 0.0, 1.0),
            ("endpoint_margin", self.endpoint_margin, 0.0, 1.0),
            ("unsettled_margin", self.unsettled_margin, 0.0, 1.0),
            ("q_min", self.q_min, 1e-6, 0.99),
            ("q_max", self.q_max, self.q_min, 0.999),
            ("w_first", self.w_first, 0.0, 0.49),
            ("w_settled", self.w_complete, 0.0, 0.49),
            ("w_pool", self.w_pool, 0.0, 1.0),
            ("w_requests", self.w_requests, 0.0, 1.0),
            ("w_pods", self.w_pods, 0.0, 1.0),
            ("p_assumed", self.p_assumed, 0.0, 0.99),
            ("min_coverage", self.min_coverage, 0.0, 1.0),
        ];
        let counts = [
            ("window_probes", self.window_probes, 1, 10_000),
            ("min_failing_ticks", self.min_failing_ticks, 1, 10_000),
            ("min_failing_scrapes", self.min_failing_scrapes, 1, 10_000),
            ("request_cap", self.request_cap, 1, 1_000_000),
            ("recover_ticks", self.recover_ticks, 1, 10_000),
            ("crash_restarts", self.crash_restarts, 1, 10_000),
            ("crash_restarts_hard", self.crash_restarts_hard, 1, 10_000),
            ("extend_run", self.extend_run, 1, 10_000),
            ("met_min", self.met_min, 0, 1_000_000),
            ("dependency_of", self.dependency_of, 1, 64),
            ("dependency_bad", self.dependency_bad, 1, self.dependency_of),
            ("pod_control", self.pod_control, 0, 10_000),
            ("control_failures", self.control_failures, 1, 10_000),
        ];
        for (field, value, low, high) in long_windows.into_iter().chain(shards) {
            within(field, value, low, high)?;
        }
        for (field, value, low, high) in counts {
            within(field, f64::from(value), f64::from(low), f64::from(high))?;
        }
        for rate in self.grid {
            within("grid", rate, 1e-6, 0.999)?;
        }
        let mut younger = 0.0;
        for age in self.warm_ages_s {
            within("warm_ages_s", age, younger, 86_400.0)?;
            younger = age;
        }
        let windows = [
            ("control_windows_s", &self.control_windows_s),
            ("latency_control_windows_s", &self.latency_control_windows_s),
        ];
        for (field, long_windows) in windows {
            within(
                field,
                long_windows.len() as f64,
                1.0,
                MAX_CONTROL_WINDOWS as f64,
            )?;
            for span in long_windows {
                within(field, *span, 0.0, 600.0)?;
            }
        }
        Ok(())
    }

    /// The e-value that rejects.
    pub fn threshold(&self) -> f64 {
        1.0 / self.alpha
    }

    /// The most ticks that an analysis has.
    pub fn ticks_of_analysis(&self) -> u32 {
        self.ticks_up(self.longest_s())
    }

    /// The longest that an analysis takes, in seconds.
    pub fn longest_s(&self) -> f64 {
        self.analysis_s.max(self.analysis_cap_s)
    }

    /// Whole ticks in a span of seconds.
    pub fn whole_ticks(&self, span_s: f64) -> u32 {
        self.ticks(span_s)
    }

    /// Whole ticks in a span.
    pub(crate) fn ticks(&self, span_s: f64) -> u32 {
        whole(span_s / self.interval_s)
    }

    /// Ticks that a span touches.
    pub(crate) fn ticks_up(&self, span_s: f64) -> u32 {
        (span_s / self.interval_s - 1e-9).ceil().max(0.0) as u32
    }

    /// How many ticks something must have failed for, to have been down for the whole of a span.
    pub(crate) fn hold(&self, span_s: f64) -> u32 {
        (self.ticks(span_s) + 1).max(3)
    }

    /// How many blocks a burst can touch, with one result every `interval_s`.
    pub(crate) fn blocks_of_a_burst(&self, interval_s: f64, block_s: f64) -> u32 {
        if interval_s >= block_s {
            whole(self.burst_s / interval_s) + 1
        } else {
            (self.burst_s / block_s - 1e-9).ceil().max(0.0) as u32 + 1
        }
    }

    /// The class of a new pod's age: its index in `warm_ages_s`, or [`AGES`] if it is older.
    pub(crate) fn age_class(&self, age_s: f64) -> usize {
        let classes = self.warm_ages_s.iter();
        classes.take_while(|end| age_s >= **end - 1e-9).count()
    }

    /// A rate within what may be tolerated.
    pub(crate) fn tolerable(&self, rate: f64) -> f64 {
        rate.clamp(self.q_min, self.q_max)
    }
}

/// The whole part, tolerant of quotients such as 59.999…
pub(crate) fn whole(quotient: f64) -> u32 {
    (quotient + 1e-9).floor().max(0.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_touches_as_many_blocks_as_the_specification_says() {
        for (interval_s, blocks) in [(1.0, 3), (2.0, 3), (5.0, 3), (10.0, 2), (15.0, 1)] {
            let rule = Rule {
                interval_s,
                ..Rule::default()
            };
            let block_s = rule.block_s.max(interval_s);
            assert_eq!(
                rule.blocks_of_a_burst(interval_s, block_s),
                blocks,
                "{interval_s} s"
            );
        }
    }

    #[test]
    fn a_number_out_of_bounds_is_named() {
        let nan = Rule {
            margin: f64::NAN,
            ..Rule::default()
        };
        assert_eq!(
            nan.check().unwrap_err().to_string(),
            "margin is NaN, but must be from 0 to 1"
        );
        let zero = Rule {
            interval_s: 0.0,
            ..Rule::default()
        };
        assert!(
            zero.check()
                .unwrap_err()
                .to_string()
                .starts_with("interval_s is 0")
        );
        assert_eq!(Rule::default().check(), Ok(()));
    }
}
