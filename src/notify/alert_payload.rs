//! Alerts as Alertmanager's API v2 takes them (`POST /api/v2/alerts`, postableAlert in its openapi.yaml).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use url::Url;

use crate::core::alerts::AlertKind;
use crate::core::alerts::AlertStore;
use crate::core::alerts::LabelSet;
use crate::core::alerts::Labels;
use crate::core::units::Time;

/// How alerts are written for all Alertmanagers.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertStyle {
    /// Labels that are added unless the alert has them.
    pub external: Labels,
    /// What links begin with.
    pub page: Option<Url>,
}

/// One alert that is to be sent. It is written when it is: ten thousand texts that wait would take some megabytes.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertPayload {
    /// Its identity.
    pub labels: LabelSet,
    /// Whether it has ended.
    pub is_resolved: bool,
    pub(super) kind: AlertKind,
    pub(super) text: Arc<str>,
    pub(super) fragment: Arc<str>,
    pub(super) since: Time,
    pub(super) until: Time,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PostableAlert<'a> {
    labels: BTreeMap<&'a str, &'a str>,
    annotations: BTreeMap<&'static str, &'a str>,
    starts_at: String,
    ends_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: String,
}

/// All alerts of a store that fire or have just ended. A firing one ends four resends from now unless it is sent again,
/// so that two may be lost.
pub fn wires(alert_store: &AlertStore, resend: Duration, now: Time) -> Vec<Arc<AlertPayload>> {
    let told = alert_store.alerts().iter().filter_map(|alert| {
        let (since, ended) = alert.span()?;
        Some(Arc::new(AlertPayload {
            labels: alert.labels.clone(),
            is_resolved: ended.is_some(),
            kind: alert.kind,
            text: Arc::clone(&alert.text),
            fragment: Arc::clone(&alert.fragment),
            since,
            until: ended.unwrap_or(now + resend * 4),
        }))
    });
    told.collect()
}

impl AlertPayload {
    /// Whether it is about a revision, so that people may be waiting for it.
    pub(super) fn is_of_revision(&self) -> bool {
        self.labels.get("revision").is_some()
    }
}

impl AlertStyle {
    /// The labels of an alert as Alertmanager gets them. It drops empty ones, so that they would not be found again.
    pub(super) fn labels<'a>(&'a self, own: &'a LabelSet) -> BTreeMap<&'a str, &'a str> {
        let external = self.external.iter().filter(|(_, value)| !value.is_empty());
        let external = external.map(|(name, value)| (name.as_str(), value.as_str()));
        external.chain(own.iter()).collect()
    }

    /// The JSON of some alerts.
    pub fn body<'a>(&self, wires: impl IntoIterator<Item = &'a AlertPayload>) -> Vec<u8> {
        let mut body = vec![b'['];
        for payload in wires {
            let before = body.len();
            if before > 1 {
                body.push(b',');
            }
            if self.write(payload, &mut body).is_none() {
                body.truncate(before);
            }
        }
        body.push(b']');
        body
    }

    fn write(&self, payload: &AlertPayload, to: &mut Vec<u8>) -> Option<()> {
        let mut annotations = BTreeMap::from([
            ("summary", payload.kind.summary()),
            ("description", &*payload.text),
        ]);
        // An address that is none would make Alertmanager refuse everything that is sent with it.
        let mut generator_url = String::new();
        let mut runbook = String::new();
        if let Some(page) = &self.page {
            let mut url = page.clone();
            if let Ok(mut path) = url.path_segments_mut() {
                path.pop_if_empty().push("runbook");
            }
            url.set_fragment(Some(&payload.kind.name().to_lowercase()));
            runbook = url.into();
            let mut link = page.clone();
            link.set_fragment(Some(&*payload.fragment).filter(|fragment| !fragment.is_empty()));
            generator_url = link.into();
        }
        if !runbook.is_empty() {
            annotations.insert("runbook_url", &runbook);
        }
        let postable = PostableAlert {
            labels: self.labels(&payload.labels),
            annotations,
            starts_at: written(payload.since)?,
            ends_at: written(payload.until)?,
            generator_url,
        };
        serde_json::to_writer(to, &postable).ok()
    }
}

/// RFC 3339 with milliseconds.
fn written(time: Time) -> Option<String> {
    let at = Timestamp::from_millisecond(i64::try_from(time.millis()).ok()?).ok()?;
    Some(format!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use serde_json::{Value, json};

    use super::*;
    use crate::core::alerts::Condition;

    fn alert_store(fire: u64, end: Option<u64>) -> AlertStore {
        let mut alert_store = AlertStore::default();
        let condition = Condition {
            kind: AlertKind::ReleaseRegressed,
            place: Labels::from([
                ("namespace".to_owned(), "shop".to_owned()),
                ("release".to_owned(), "web".to_owned()),
            ]),
            text: "api failed \"16\" times".into(),
            fragment: "release/shop/web".into(),
        };
        alert_store.observe(vec![condition], |_| true, Time::from_millis(fire));
        if let Some(end) = end {
            alert_store.observe(vec![], |_| true, Time::from_millis(end));
        }
        alert_store
    }

    fn only(alert_store: &AlertStore, now: u64) -> Value {
        let external = Labels::from([
            ("cluster".to_owned(), "a".to_owned()),
            ("empty".to_owned(), String::new()),
            ("release".to_owned(), "not this".to_owned()),
        ]);
        let page = Url::parse("https://leadsman.example.com/base/").unwrap();
        let style = AlertStyle {
            external,
            page: Some(page),
        };
        let wires = wires(alert_store, Duration::from_secs(60), Time::from_millis(now));
        let body = style.body(wires.iter().map(AsRef::as_ref));
        let all: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(all.as_array().unwrap().len(), wires.len());
        all[0].clone()
    }

    #[test]
    fn an_alert_is_written_as_the_api_takes_it() {
        let alert = only(&alert_store(1_767_607_200_000, None), 1_767_607_260_500);
        assert_eq!(
            alert,
            json!({
                "labels": {"alertname": "LeadsmanReleaseRegressed", "cluster": "a", "namespace": "shop",
                           "priority": "P1", "release": "web", "severity": "critical", "source": "leadsman"},
                "annotations": {"summary": "A new revision of a release made it worse.",
                                "description": "api failed \"16\" times",
                                "runbook_url": "https://leadsman.example.com/base/runbook#leadsmanreleaseregressed"},
                "startsAt": "2026-01-05T10:00:00.000Z",
                "endsAt": "2026-01-05T10:05:00.500Z",
                "generatorURL": "https://leadsman.example.com/base/#release/shop/web",
            })
        );
    }

    #[test]
    fn one_that_is_over_ends_when_it_ended() {
        let alert = only(
            &alert_store(1_767_607_200_000, Some(1_767_607_230_000)),
            1_767_607_260_000,
        );
        assert_eq!(alert["startsAt"], "2026-01-05T10:00:00.000Z");
        assert_eq!(alert["endsAt"], "2026-01-05T10:00:30.000Z");
    }
}
