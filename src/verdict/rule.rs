//! The numbers of the rule, and how far each may be turned.

use serde::{Deserialize, Serialize};

/// How many alternatives a stratum bets on.
pub(crate) const GRID: usize = 6;

/// The settings of the rule. Names and defaults are those under which the rule was simulated; times are in seconds,
/// rates are shares from 0 to 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rule {
    /// Length of a tick: one sounding of each endpoint. 0.1 to 60.
    pub interval_s: f64,
    /// Length of the watch; ticks at or after it are not read. At most one day.
    pub watch_s: f64,
    /// The e-value needed is 1/alpha.
    pub alpha: f64,
    /// Error probability of the baseline's upper bound.
    pub baseline_conf: f64,
    /// Increase that is tolerated without evidence growing.
    pub null_margin: f64,
    /// Estimated increase needed in all endpoints together, in requests and in new pods.
    pub margin: f64,
    /// Estimated increase needed in one endpoint alone.
    pub endpoint_margin: f64,
    /// Replaces `null_margin` while the rollout runs.
    pub unsettled_margin: f64,
    /// The rollout counts as settled after this at the latest.
    pub settle_cap_s: f64,
    /// Length of a block of evidence.
    pub block_s: f64,
    /// The longest burst that must never convict by itself.
    pub burst_s: f64,
    /// Least tolerated rate.
    pub q_min: f64,
    /// Greatest tolerated rate.
    pub q_max: f64,
    /// The rates that are bet on, with equal weights.
    pub grid: [f64; GRID],
    /// Start weight of the first block.
    pub w_first: f64,
    /// Start weight of the first settled block.
    pub w_settled: f64,
    /// Share of all endpoints together among the strata of soundings.
    pub w_pool: f64,
    /// Share of requests, when they are counted.
    pub w_requests: f64,
    /// The estimate looks back so long …
    pub window_s: f64,
    /// … or over so many soundings, whichever is longer.
    pub window_probes: u32,
    /// Path C needs failures in at least so many ticks …
    pub min_failing_ticks: u32,
    /// … and a last one within so many seconds.
    pub still_failing_s: f64,
    /// For requests: scrapes with errors.
    pub min_failing_scrapes: u32,
    /// A scrape counts as at most so many requests.
    pub request_cap: u32,
    /// How long everything must fail without a break (path B).
    pub hold_s: f64,
    /// Error probability of path B for one endpoint.
    pub alpha_hard: f64,
    /// With fewer baseline soundings than this (half of it for one endpoint) `p_assumed` is taken.
    pub n0_min: u64,
    /// The rate that is assumed without a baseline.
    pub p_assumed: f64,
    /// Successes in a row that free an endpoint that was set aside.
    pub recover_ticks: u32,
    /// Restarts that convict together with CrashLoopBackOff.
    pub crash_restarts: u32,
    /// Restarts that convict by themselves.
    pub crash_restarts_hard: u32,
    /// Usable share of the soundings that a verdict of healthy needs.
    pub min_coverage: f64,
    /// A new pod's soundings count from so long after it became Ready.
    pub pod_grace_s: f64,
    /// How long all new pods must have failed (path D).
    pub pod_hold_s: f64,
    /// In how many of these ticks an old pod must have answered well.
    pub pod_control: u32,
    /// After this a new pod counts in the stratum even without a good answer so far.
    pub pod_cold_s: f64,
    /// Share of the stratum of new pods, when there are direct soundings.
    pub w_pods: f64,
    /// Spans over which old pods' failures are counted.
    pub control_windows_s: [f64; 2],
    /// Fewer failures of old pods than this in a span say nothing.
    pub control_failures: u32,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            interval_s: 5.0,
            watch_s: 300.0,
            alpha: 0.01,
            baseline_conf: 0.01,
            null_margin: 0.005,
            margin: 0.02,
            endpoint_margin: 0.05,
            unsettled_margin: 0.20,
            settle_cap_s: 90.0,
            block_s: 5.0,
            burst_s: 10.0,
            q_min: 0.005,
            q_max: 0.9,
            grid: [0.02, 0.05, 0.10, 0.20, 0.40, 0.80],
            w_first: 0.3,
            w_settled: 0.3,
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
            crash_restarts: 2,
            crash_restarts_hard: 3,
            min_coverage: 0.5,
            pod_grace_s: 2.0,
            pod_hold_s: 10.0,
            pod_control: 5,
            pod_cold_s: 12.0,
            w_pods: 0.4,
            control_windows_s: [10.0, 30.0],
            control_failures: 3,
        }
    }
}

/// A setting, or a number of a stream, that the rule cannot work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Unusable {
    /// The field, as it is written in a stream.
    pub field: String,
    /// What is wrong with it, with the bound.
    pub problem: String,
}

impl Unusable {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl Rule {
    /// Whether every number is one that the rule can work with.
    ///
    /// # Errors
    /// The first that is not, by name and with its bounds.
    pub fn check(&self) -> Result<(), Unusable> {
        let within = |field: &str, value: f64, low: f64, high: f64| {
            // A comparison with NaN is false, so NaN is refused here as well.
            if value >= low && value <= high {
                return Ok(());
            }
            Err(Unusable::new(
                field,
                format!("is {value}, but must be from {low} to {high}"),
            ))
        };
        let spans = [
            ("interval_s", self.interval_s, 0.1, 60.0),
            ("watch_s", self.watch_s, self.interval_s, 86_400.0),
            ("settle_cap_s", self.settle_cap_s, 0.0, 86_400.0),
            ("block_s", self.block_s, 0.1, 3600.0),
            ("burst_s", self.burst_s, 0.0, 3600.0),
            ("window_s", self.window_s, 0.0, 3600.0),
            ("still_failing_s", self.still_failing_s, 0.0, 3600.0),
            ("hold_s", self.hold_s, 0.0, 3600.0),
            ("pod_grace_s", self.pod_grace_s, 0.0, 3600.0),
            ("pod_hold_s", self.pod_hold_s, 0.0, 3600.0),
            ("pod_cold_s", self.pod_cold_s, 0.0, 3600.0),
            ("control_windows_s", self.control_windows_s[0], 0.0, 600.0),
            ("control_windows_s", self.control_windows_s[1], 0.0, 600.0),
        ];
        let shares = [
            ("alpha", self.alpha, 1e-12, 0.5),
            ("baseline_conf", self.baseline_conf, 1e-12, 0.5),
            ("alpha_hard", self.alpha_hard, 1e-12, 0.5),
            ("null_margin", self.null_margin, 0.0, 1.0),
            ("margin", self.margin, 0.0, 1.0),
            ("endpoint_margin", self.endpoint_margin, 0.0, 1.0),
            ("unsettled_margin", self.unsettled_margin, 0.0, 1.0),
            ("q_min", self.q_min, 1e-6, 0.99),
            ("q_max", self.q_max, self.q_min, 0.999),
            ("w_first", self.w_first, 0.0, 0.49),
            ("w_settled", self.w_settled, 0.0, 0.49),
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
            ("pod_control", self.pod_control, 0, 10_000),
            ("control_failures", self.control_failures, 1, 10_000),
        ];
        for (field, value, low, high) in spans.into_iter().chain(shares) {
            within(field, value, low, high)?;
        }
        for (field, value, low, high) in counts {
            within(field, f64::from(value), f64::from(low), f64::from(high))?;
        }
        for rate in self.grid {
            within("grid", rate, 1e-6, 0.999)?;
        }
        Ok(())
    }

    /// The e-value that convicts.
    pub fn threshold(&self) -> f64 {
        1.0 / self.alpha
    }

    /// The most ticks that a watch has.
    pub fn ticks_of_watch(&self) -> u32 {
        self.ticks_up(self.watch_s)
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

    /// How long something must have failed on, in ticks, so that it was down for the whole of a span.
    pub(crate) fn hold(&self, span_s: f64) -> u32 {
        (self.ticks(span_s) + 1).max(3)
    }

    /// How many blocks of length `block_s` a burst can touch, with one sounding every `interval_s`.
    pub(crate) fn blocks_of_a_burst(&self, interval_s: f64, block_s: f64) -> u32 {
        if interval_s >= self.block_s {
            whole(self.burst_s / interval_s) + 1
        } else {
            (self.burst_s / block_s - 1e-9).ceil().max(0.0) as u32 + 1
        }
    }

    /// A rate within what may be tolerated.
    pub(crate) fn tolerable(&self, rate: f64) -> f64 {
        rate.clamp(self.q_min, self.q_max)
    }
}

/// The whole part, with room for a quotient such as 59.999…
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
