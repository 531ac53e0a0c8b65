//! The series of objectives.

use prometheus::{GaugeVec, IntCounterVec, Opts, Registry, Result};

use super::own::add;

const LABELS: [&str; 4] = ["namespace", "release", "probe", "objective"];
const WINDOWED: [&str; 5] = ["namespace", "release", "probe", "objective", "window"];

/// The series of objectives. The label `probe` is empty for an objective of a whole release.
#[derive(Debug)]
pub struct ObjectiveMetrics {
    target: GaugeVec,
    period: GaugeVec,
    remaining: GaugeVec,
    ratio: GaugeVec,
    burn: GaugeVec,
    results: IntCounterVec,
    failures: IntCounterVec,
}

impl ObjectiveMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            GaugeVec::new(Opts::new(name, help), labels)
                .and_then(|metric| add(registry, Ok(metric)))
        };
        let counter = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), &LABELS)
                .and_then(|metric| add(registry, Ok(metric)))
        };
        Ok(Self {
            results: counter(
                "leadsman_slo_results_total",
                "Results as budgets count them: each for as much of its probe's own interval as lay before it.",
            )?,
            failures: counter(
                "leadsman_slo_failures_total",
                "Those of them that broke the promise.",
            )?,
            target: gauge(
                "leadsman_slo_objective_ratio",
                "The share of results that is promised to be good, or within the promised latency.",
                &LABELS,
            )?,
            period: gauge(
                "leadsman_slo_period_seconds",
                "Over how long it is promised.",
                &LABELS,
            )?,
            remaining: gauge(
                "leadsman_slo_error_budget_remaining_ratio",
                "The share of the error budget of the whole period that is left; negative when it is overspent.",
                &LABELS,
            )?,
            ratio: gauge(
                "leadsman_slo_error_ratio",
                "The share of results that broke the promise; absent without results.",
                &WINDOWED,
            )?,
            burn: gauge(
                "leadsman_slo_burn_rate",
                "How fast the error budget is being spent: 1 spends it exactly in the period; absent without results.",
                &WINDOWED,
            )?,
        })
    }

    /// Forgets the series of one objective. `windows`: those of its burn rates.
    pub fn forget<'a>(
        &self,
        [namespace, release, probe, objective]: [&str; 4],
        windows: impl IntoIterator<Item = &'a str>,
    ) {
        let labels = [namespace, release, probe, objective];
        // A series that is not there is as good as one that is removed.
        for gauge in [&self.target, &self.period, &self.remaining] {
            let _ = gauge.remove_label_values(&labels);
        }
        for counter in [&self.results, &self.failures] {
            let _ = counter.remove_label_values(&labels);
        }
        for window in windows {
            let labels = [namespace, release, probe, objective, window];
            for gauge in [&self.ratio, &self.burn] {
                let _ = gauge.remove_label_values(&labels);
            }
        }
    }

    /// Adds results, and those that violated the objective, since the last call.
    pub fn counted(
        &self,
        namespace: &str,
        release: &str,
        probe: &str,
        objective: &str,
        (results, failures): (u64, u64),
    ) {
        let labels = [namespace, release, probe, objective];
        self.results.with_label_values(&labels).inc_by(results);
        self.failures.with_label_values(&labels).inc_by(failures);
    }

    /// Sets the objective and the rest of its budget.
    #[expect(clippy::too_many_arguments, reason = "four of them are labels")]
    pub fn stands(
        &self,
        namespace: &str,
        release: &str,
        probe: &str,
        objective: &str,
        target: f64,
        remaining: f64,
        days: u32,
    ) {
        let labels = [namespace, release, probe, objective];
        self.target.with_label_values(&labels).set(target);
        self.period
            .with_label_values(&labels)
            .set(f64::from(days) * 86_400.0);
        self.remaining.with_label_values(&labels).set(remaining);
    }

    /// Sets the burn rate of a window; both `None` without results.
    #[expect(clippy::too_many_arguments, reason = "five of them are labels")]
    pub fn burns(
        &self,
        namespace: &str,
        release: &str,
        probe: &str,
        objective: &str,
        window: &str,
        ratio: Option<f64>,
        burn: Option<f64>,
    ) {
        let labels = [namespace, release, probe, objective, window];
        for (gauge, value) in [(&self.ratio, ratio), (&self.burn, burn)] {
            match value {
                Some(value) => gauge.with_label_values(&labels).set(value),
                // One that was never there is as good as removed.
                None => drop(gauge.remove_label_values(&labels)),
            }
        }
    }
}
