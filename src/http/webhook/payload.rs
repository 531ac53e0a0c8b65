//! Alertmanager's payload version 4, read leniently and within bounds.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::core::alerts::Labels;

/// Alerts of one notification.
const MAX_ALERTS: usize = 512;

/// Labels of one alert, and the bytes of a name and of a value.
const MAX_LABELS: usize = 64;
const MAX_NAME: usize = 128;
const MAX_VALUE: usize = 1024;

/// Length of the reason why an alert is invalid; it quotes the payload.
const MAX_WHY: usize = 200;

/// A notification. Its alerts are parsed one by one, so that an invalid one does not affect the others.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebhookNotification<'a> {
    version: String,
    pub(super) group_key: String,
    #[serde(default)]
    pub(super) truncated_alerts: u64,
    #[serde(rename = "status")]
    _status: WebhookAlertStatus,
    #[serde(borrow)]
    pub(super) alerts: ListedAlerts<'a>,
}

/// The alerts of a notification: the first [`MAX_ALERTS`] as they were written, and how many there are.
pub(super) struct ListedAlerts<'a> {
    written: Vec<&'a RawValue>,
    pub(super) count: usize,
}

impl<'de: 'a, 'a> Deserialize<'de> for ListedAlerts<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(AlertListVisitor)
    }
}

struct AlertListVisitor;

impl<'de> Visitor<'de> for AlertListVisitor {
    type Value = ListedAlerts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of alerts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut alerts: A) -> Result<Self::Value, A::Error> {
        let (mut written, mut count) = (Vec::new(), 0);
        while let Some(alert) = alerts.next_element()? {
            count += 1;
            if count <= MAX_ALERTS {
                written.push(alert);
            }
        }
        Ok(ListedAlerts { written, count })
    }
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub(super) enum WebhookAlertStatus {
    Firing,
    Resolved,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WebhookAlert {
    pub(super) status: WebhookAlertStatus,
    pub(super) labels: Labels,
    pub(super) starts_at: jiff::Timestamp,
    pub(super) fingerprint: String,
}

/// The alerts of a notification, `None` for each that cannot be read. An error when nothing of it can be used, so that the
/// sender's own counters tell of that.
pub(super) fn read(notice: &WebhookNotification<'_>) -> Result<Vec<Option<WebhookAlert>>, String> {
    if notice.version != "4" {
        return Err("this takes version 4 of the payload".into());
    }
    if notice.alerts.count > MAX_ALERTS {
        return Err(format!(
            "there are {} alerts; set max_alerts to at most {MAX_ALERTS}",
            notice.alerts.count
        ));
    }
    let (mut unreadable, mut why) = (0, String::new());
    let alerts: Vec<Option<WebhookAlert>> = notice
        .alerts
        .written
        .iter()
        .map(|written| {
            let alert = serde_json::from_str(written.get());
            alert
                .inspect_err(|error| {
                    unreadable += 1;
                    why = error.to_string().chars().take(MAX_WHY).collect();
                })
                .ok()
        })
        .collect();
    if unreadable > 0 && unreadable == alerts.len() {
        return Err(format!("no alert can be read: {why}"));
    }
    if unreadable > 0 {
        tracing::warn!(
            unreadable,
            why,
            "Alerts of a notification cannot be read, and are left out"
        );
    }
    Ok(alerts)
}

/// Whether an alert keeps the bounds; one that does not is left out, and the others count.
pub(super) fn is_bounded(alert: &WebhookAlert) -> bool {
    let fits =
        |(name, value): (&String, &String)| name.len() <= MAX_NAME && value.len() <= MAX_VALUE;
    alert.labels.len() <= MAX_LABELS
        && alert.fingerprint.len() <= MAX_NAME
        && alert.labels.iter().all(fits)
}
