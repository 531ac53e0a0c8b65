//! The series of Alertmanager's notifications to us.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry, Result};

use super::own::add;

/// What became of an alert that we were told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A release was told.
    Accepted,
    /// It was known already.
    Duplicate,
    /// No release is concerned, or it is one of ours.
    Ignored,
    /// It is not as it must be.
    Rejected,
}

impl Action {
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

/// The statuses that notifications are answered with.
const CODES: [&str; 8] = ["202", "400", "401", "403", "408", "413", "500", "503"];

/// The series of the webhook.
#[derive(Debug)]
pub struct Webhook {
    requests: IntCounterVec,
    alerts: IntCounterVec,
    truncated: IntCounter,
}

impl Webhook {
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
            truncated: add(
                registry,
                IntCounter::new(
                    "leadsman_webhook_truncated_alerts_total",
                    "Alerts that Alertmanager left out of its notifications.",
                ),
            )?,
        };
        for code in CODES {
            webhook.requests.with_label_values(&[code]);
        }
        for action in Action::ALL {
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

    /// Alerts came to this.
    pub fn alerts(&self, action: Action, count: u64) {
        self.alerts
            .with_label_values(&[action.as_str()])
            .inc_by(count);
    }

    /// Alerts were left out by Alertmanager.
    pub fn truncated(&self, count: u64) {
        self.truncated.inc_by(count.min(1_000_000));
    }
}
