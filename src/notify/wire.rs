//! Alerts as Alertmanager's API v2 takes them (`POST /api/v2/alerts`, postableAlert in its openapi.yaml).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use url::Url;

use crate::alert::Alert;
use crate::alert::Book;
use crate::alert::Labels;
use crate::units::Time;

/// One alert, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Wire {
    /// What tells it from others.
    pub labels: Arc<Labels>,
    /// Whether it has ended.
    pub is_resolved: bool,
    /// JSON.
    pub body: Arc<str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Postable<'a> {
    labels: &'a Labels,
    annotations: BTreeMap<&'static str, String>,
    starts_at: String,
    ends_at: String,
    #[serde(rename = "generatorURL")]
    generator_url: String,
}

/// All alerts of a book that people are told of. A firing one ends four resends from now unless it is sent again, so
/// that two may be lost; `external` labels are added where an alert has none of that name; links begin with `page`.
pub fn wires(
    book: &Book,
    external: &Labels,
    page: Option<&Url>,
    resend: Duration,
    now: Time,
) -> Vec<Arc<Wire>> {
    let told = book.alerts().iter().filter_map(|alert| {
        let (since, ended) = alert.span()?;
        let mut labels = external.clone();
        labels.extend(alert.labels.clone());
        let body = body(
            alert,
            &labels,
            page,
            since,
            ended.unwrap_or(now + resend * 4),
        )?;
        Some(Arc::new(Wire {
            labels: Arc::new(labels),
            is_resolved: ended.is_some(),
            body: body.into(),
        }))
    });
    told.collect()
}

fn body(
    alert: &Alert,
    labels: &Labels,
    page: Option<&Url>,
    since: Time,
    until: Time,
) -> Option<String> {
    let mut annotations = BTreeMap::from([
        ("summary", alert.kind.summary().to_owned()),
        ("description", alert.text.clone()),
    ]);
    // An address that is none would make Alertmanager refuse everything that is sent with it.
    let mut generator_url = String::new();
    if let Some(page) = page {
        let mut runbook = page.clone();
        if let Ok(mut path) = runbook.path_segments_mut() {
            path.pop_if_empty().push("runbook");
        }
        runbook.set_fragment(Some(&alert.kind.name().to_lowercase()));
        annotations.insert("runbook_url", runbook.into());
        let mut link = page.clone();
        link.set_fragment(
            Some(&alert.fragment)
                .filter(|fragment| !fragment.is_empty())
                .map(String::as_str),
        );
        generator_url = link.into();
    }
    let postable = Postable {
        labels,
        annotations,
        starts_at: written(since)?,
        ends_at: written(until)?,
        generator_url,
    };
    serde_json::to_string(&postable).ok()
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
    use crate::alert::{Condition, Kind};

    fn book(fire: u64, end: Option<u64>) -> Book {
        let mut book = Book::default();
        let condition = Condition {
            kind: Kind::ReleaseRegressed,
            place: Labels::from([
                ("namespace".to_owned(), "shop".to_owned()),
                ("release".to_owned(), "web".to_owned()),
            ]),
            text: "api failed \"16\" times".into(),
            fragment: "release/shop/web".into(),
        };
        book.observe(vec![condition], |_| true, Time::from_millis(fire));
        if let Some(end) = end {
            book.observe(vec![], |_| true, Time::from_millis(end));
        }
        book
    }

    fn only(book: &Book, now: u64) -> Value {
        let external = Labels::from([
            ("cluster".to_owned(), "a".to_owned()),
            ("release".to_owned(), "not this".to_owned()),
        ]);
        let page = Url::parse("https://leadsman.example.com/base/").unwrap();
        let wires = wires(
            book,
            &external,
            Some(&page),
            Duration::from_secs(60),
            Time::from_millis(now),
        );
        serde_json::from_str(&wires[0].body).unwrap()
    }

    #[test]
    fn an_alert_is_written_as_the_api_takes_it() {
        let alert = only(&book(1_767_607_200_000, None), 1_767_607_260_500);
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
            &book(1_767_607_200_000, Some(1_767_607_230_000)),
            1_767_607_260_000,
        );
        assert_eq!(alert["startsAt"], "2026-01-05T10:00:00.000Z");
        assert_eq!(alert["endsAt"], "2026-01-05T10:00:30.000Z");
    }
}
