//! The series of alerts and receivers, named after Prometheus' own (`prometheus_notifications_…`), so that rules for
//! those can be adapted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, Result,
};

use super::own::add;

/// Duration of a request to a receiver: from a local one to the usual timeout.
const EDGES: [f64; 8] = [0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 5.0, 10.0];

/// The states of [`AlertingMetrics::alerts`].
const STATES: [&str; 3] = ["pending", "firing", "resolved"];

/// Alerts of one evaluator. Several in one process are added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AlertCounts {
    /// Pending, firing and resolved ones.
    pub alerts: [usize; 3],
    /// Alerts that found no room.
    pub left_out: u64,
}

/// The series of alerts.
#[derive(Debug)]
pub struct AlertingMetrics {
    alerts: IntGaugeVec,
    /// How many tasks send to each Alertmanager: after a reload the old one may still send when the new one starts.
    present: Mutex<HashMap<String, usize>>,
    left_out: IntGauge,
    configured: IntGauge,
    discovered: IntGauge,
    capacity: IntGauge,
    sent: IntCounterVec,
    errors: IntCounterVec,
    dropped: IntCounterVec,
    waiting: IntGaugeVec,
    unconfirmed: IntGaugeVec,
    latency: HistogramVec,
    messages: IntCounterVec,
}

impl AlertingMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let to = &["alertmanager"];
        let counter = |name: &str, help: &str| {
            IntCounterVec::new(Opts::new(name, help), to)
                .and_then(|metric| add(registry, Ok(metric)))
        };
        let gauge = |name: &str, help: &str| {
            IntGaugeVec::new(Opts::new(name, help), to).and_then(|metric| add(registry, Ok(metric)))
        };
        let alone = |name: &str, help: &str| {
            IntGauge::new(name, help).and_then(|metric| add(registry, Ok(metric)))
        };
        let alerting = Self {
            present: Mutex::default(),
            alerts: add(
                registry,
                IntGaugeVec::new(
                    Opts::new("leadsman_alerts", "Alerts that live, by where they stand."),
                    &["state"],
                ),
            )?,
            left_out: alone(
                "leadsman_alerts_left_out",
                "Alerts for which there was no room when it was last looked.",
            )?,
            configured: alone(
                "leadsman_alertmanager_configured",
                "URLs of Alertmanagers in the configuration of whoever tells; 0 in a replica that does not.",
            )?,
            discovered: alone(
                "leadsman_alertmanager_discovered",
                "Alertmanagers that alerts are sent to: every address of every URL.",
            )?,
            capacity: alone(
                "leadsman_alertmanager_queue_capacity",
                "Alerts that may wait for one Alertmanager.",
            )?,
            sent: counter(
                "leadsman_alertmanager_sent_total",
                "Alerts sent, whether or not they arrived.",
            )?,
            errors: counter(
                "leadsman_alertmanager_errors_total",
                "Alerts sent that did not arrive; most are tried again.",
            )?,
            dropped: counter(
                "leadsman_alertmanager_dropped_total",
                "Alerts that were dropped: refused, or no room in the queue.",
            )?,
            waiting: gauge(
                "leadsman_alertmanager_queue_length",
                "Alerts that wait to be sent.",
            )?,
            unconfirmed: gauge(
                "leadsman_alertmanager_unconfirmed_alerts",
                "Firing alerts that were sent, and that the Alertmanager did not list when asked.",
            )?,
            latency: add(
                registry,
                HistogramVec::new(
                    HistogramOpts::new(
                        "leadsman_alertmanager_latency_seconds",
                        "How long a request with alerts took.",
                    )
                    .buckets(EDGES.to_vec()),
                    to,
                ),
            )?,
            messages: add(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "leadsman_messages_total",
                        "Messages to Slack and webhooks, by what became of them; failed ones are tried again.",
                    ),
                    &["receiver", "result"],
                ),
            )?,
        };
        for receiver in ["slack", "webhook"] {
            for result in ["sent", "failed", "dropped"] {
                alerting.messages.with_label_values(&[receiver, result]);
            }
        }
        for state in STATES {
            alerting.alerts.with_label_values(&[state]).set(0);
        }
        Ok(alerting)
    }

    /// Replaces the counts of one evaluator.
    pub fn stand(&self, before: &mut AlertCounts, now: AlertCounts) {
        for (at, state) in STATES.iter().enumerate() {
            let more = number(now.alerts[at]) - number(before.alerts[at]);
            self.alerts.with_label_values(&[state]).add(more);
        }
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        self.left_out
            .add(number(now.left_out) - number(before.left_out));
        *before = now;
    }

    /// Counts a message by its result.
    pub fn message(&self, receiver: &str, result: &str) {
        self.messages.with_label_values(&[receiver, result]).inc();
    }

    /// How many URLs of Alertmanagers are configured.
    pub fn configured(&self, count: usize) {
        self.configured.set(number(count));
    }

    /// How many alerts may wait for each Alertmanager.
    pub fn capacity(&self, capacity: usize) {
        self.capacity.set(number(capacity));
    }

    /// Adds an Alertmanager, with all its series at 0.
    pub fn appears(&self, to: &str) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        *present.entry(to.to_owned()).or_default() += 1;
        self.discovered.set(number(present.len()));
        for counter in [&self.sent, &self.errors, &self.dropped] {
            counter.with_label_values(&[to]);
        }
        for gauge in [&self.waiting, &self.unconfirmed] {
            gauge.with_label_values(&[to]);
        }
        self.latency.with_label_values(&[to]);
    }

    /// Removes an Alertmanager, unless another task sends there.
    pub fn is_gone(&self, to: &str) {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let left = present.get(to).map_or(0, |count| count.saturating_sub(1));
        if left > 0 {
            present.insert(to.to_owned(), left);
            return;
        }
        present.remove(to);
        self.discovered.set(number(present.len()));
        // A series that is not there is as good as one that is removed.
        for counter in [&self.sent, &self.errors, &self.dropped] {
            let _ = counter.remove_label_values(&[to]);
        }
        for gauge in [&self.waiting, &self.unconfirmed] {
            let _ = gauge.remove_label_values(&[to]);
        }
        let _ = self.latency.remove_label_values(&[to]);
    }

    /// Alerts were sent.
    pub fn sent(&self, to: &str, count: usize, took: Duration) {
        self.sent.with_label_values(&[to]).inc_by(count as u64);
        self.latency
            .with_label_values(&[to])
            .observe(took.as_secs_f64());
    }

    /// Alerts among them did not arrive.
    pub fn failed(&self, to: &str, count: usize) {
        self.errors.with_label_values(&[to]).inc_by(count as u64);
    }

    /// Alerts were dropped.
    pub fn dropped(&self, to: &str, count: usize) {
        self.dropped.with_label_values(&[to]).inc_by(count as u64);
    }

    /// Changes the number of waiting alerts.
    pub fn waiting(&self, to: &str, more: i64) {
        self.waiting.with_label_values(&[to]).add(more);
    }

    /// Changes the number of alerts that it should list and does not.
    pub fn unconfirmed(&self, to: &str, more: i64) {
        self.unconfirmed.with_label_values(&[to]).add(more);
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
