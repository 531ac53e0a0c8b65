//! The series of notifications from Alertmanager.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, Result};

use super::own::add;

/// What happened to a received alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WebhookAction {
    /// A release got it.
    Accepted,
    /// It was received before.
    Duplicate,
    /// It concerns no release, or it is one of ours.
    Ignored,
    /// It is invalid.
    Rejected,
}

impl WebhookAction {
    const ALL: [Self; 4] = [
        Self::Accepted,
        Self::Duplicate,
        Self::Ignored,
        Self::Rejected,
    ];

    /// The value of the label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
            Self::Rejected => "rejected",
        }
    }
}

/// Alerts that wait for one release, which takes them within a moment.
pub const CAPACITY: usize = 1024;

/// The statuses that notifications are answered with.
const CODES: [&str; 8] = ["202", "400", "401", "403", "408", "413", "500", "503"];

/// The series of the webhook.
#[derive(Debug)]
pub struct WebhookMetrics {
    requests: IntCounterVec,
    alerts: IntCounterVec,
    truncated: IntCounter,
    waiting: IntGauge,
}

/// An alert that waits for its release; it counts until this value is dropped.
#[derive(Debug)]
pub struct WaitingAlert(IntGauge);

impl Drop for WaitingAlert {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl WebhookMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self> {
        let counters = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label])
                .and_then(|metric| add(registry, Ok(metric)))
        };
        let webhook = Self {
            requests: counters(
                "leadsman_webhook_requests_total",
                "Notifications of Alertmanager, by the status that they were answered with.",
                "code",
            )?,
            alerts: counters(
                "leadsman_webhook_alerts_total",
                "Alerts in them, by what became of them.",
                "action",
            )?,
            waiting: add(
                registry,
                IntGauge::new(
                    "leadsman_webhook_queue_length",
                    "Alerts of Alertmanager that wait for their releases.",
                ),
            )?,
            truncated: add(
                registry,
                IntCounter::new(
                    "leadsman_webhook_truncated_alerts_total",
                    "Alerts that Alertmanager left out of its notifications.",
                ),
            )?,
        };
        let capacity = add(
            registry,
            IntGauge::new(
                "leadsman_webhook_queue_capacity",
                "Alerts of Alertmanager that may wait for one release; further ones are answered with 503.",
            ),
        )?;
        capacity.set(i64::try_from(CAPACITY).unwrap_or(i64::MAX));
        for code in CODES {
            webhook.requests.with_label_values(&[code]);
        }
        for action in WebhookAction::ALL {
            webhook.alerts.with_label_values(&[action.as_str()]);
        }
        Ok(webhook)
    }

    /// A notification was answered.
    pub fn answered(&self, code: u16) {
        let code = code.to_string();
        // Others there are none.
        if CODES.contains(&code.as_str()) {
            self.requests.with_label_values(&[&code]).inc();
        }
    }

    /// Counts alerts by what happened to them.
    pub fn alerts(&self, action: WebhookAction, count: u64) {
        self.alerts
            .with_label_values(&[action.as_str()])
            .inc_by(count);
    }

    /// An alert waits for its release from now on.
    pub fn waits(&self) -> WaitingAlert {
        self.waiting.inc();
        WaitingAlert(self.waiting.clone())
    }

    /// Counts alerts that Alertmanager left out.
    pub fn truncated(&self, count: u64) {
        self.truncated.inc_by(count.min(1_000_000));
    }
}
