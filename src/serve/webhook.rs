//! `POST /api/v1/alerts`: Alertmanager's webhook, payload version 4 (its `notify/webhook`), as evidence about releases.
//!
//! Invariants:
//! - an alert is evidence and no command: it only reaches a release whose configuration names it, and what it means there
//!   is decided there;
//! - an answer is given as soon as the alerts are in a bounded queue; what has no room is answered with 503, which
//!   Alertmanager repeats;
//! - the same news twice is one: told apart by group, fingerprint, beginning and status;
//! - our own alerts that come back are no news.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::auth::{Deed, allowed};
use super::problem::problem;
use super::{Peer, Shared, bodies, too_busy};
use crate::alert::Labels;
use crate::config::settings::{AlertRule, Weight};
use crate::metrics::Action;

/// The largest body.
const MAX_BODY: usize = 1024 * 1024;

/// Alerts of one notification.
const MAX_ALERTS: usize = 512;

/// Labels of one alert, and the bytes of a name and of a value.
const MAX_LABELS: usize = 64;
const MAX_NAME: usize = 128;
const MAX_VALUE: usize = 1024;

/// News that is remembered, so that its repetition is none: Alertmanager repeats what fires every four hours or so.
const MAX_REMEMBERED: usize = 10_000;

/// Alerts that wait for one release. It takes them within a moment.
pub const MAX_WAITING: usize = 1024;

/// An alert of Alertmanager about a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertHeard {
    /// Its name.
    pub name: String,
    /// What tells it from others: Alertmanager's hash of its labels.
    pub fingerprint: String,
    /// When it began, in milliseconds since 1970.
    pub since: u64,
    /// Whether it fires, or has ended.
    pub is_firing: bool,
    /// What it means here.
    pub weight: Weight,
}

/// Who takes alerts about a release.
pub struct AlertsFor {
    /// Its rules.
    pub rules: Vec<AlertRule>,
    /// Its guard.
    pub to: mpsc::Sender<AlertHeard>,
}

impl AlertsFor {
    fn weight(&self, labels: &Labels) -> Option<Weight> {
        let matches = |rule: &&AlertRule| {
            rule.labels.iter().all(|(name, pattern)| {
                pattern
                    .0
                    .is_match(labels.get(name).map_or("", String::as_str))
            })
        };
        self.rules.iter().find(matches).map(|rule| rule.weight)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notice {
    version: String,
    group_key: String,
    #[serde(default)]
    truncated_alerts: u64,
    #[serde(rename = "status")]
    _status: Status,
    alerts: Vec<Told>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
enum Status {
    Firing,
    Resolved,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    status: Status,
    labels: Labels,
    starts_at: jiff::Timestamp,
    fingerprint: String,
}

/// News of the last hours, the oldest first.
#[derive(Default)]
pub(super) struct Remembered {
    order: VecDeque<u64>,
    known: HashSet<u64>,
}

impl Remembered {
    /// Whether this is news; it is none from now on.
    fn is_news(&mut self, key: u64) -> bool {
        if !self.known.insert(key) {
            return false;
        }
        self.order.push_back(key);
        if self.order.len() > MAX_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn forget(&mut self, key: u64) {
        self.known.remove(&key);
        self.order.retain(|known| *known != key);
    }
}

pub(super) async fn take(
    State(shared): State<Arc<Shared>>,
    peer: Option<axum::Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let from = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.0);
    let response = taken(&shared, from, &headers, body).await;
    shared.metrics.webhook.answered(response.status().as_u16());
    response
}

async fn taken(shared: &Shared, from: IpAddr, headers: &HeaderMap, body: Body) -> Response {
    if let Err(refused) = allowed(shared, Deed::SendAlerts, headers).await {
        return refused;
    }
    let board = shared.board();
    if shared.webhook_rate.check_key(&from).is_err() {
        return too_busy("notifications come from this address");
    }
    let Ok(_turn) = shared.webhooks.try_acquire() else {
        return too_busy("notifications are being read");
    };
    let body = match bodies::read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let notice: Notice = match serde_json::from_slice(&body) {
        Ok(notice) => notice,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    };
    if let Err(why) = check(&notice) {
        let rejected = notice.alerts.len() as u64;
        shared.metrics.webhook.alerts(Action::Rejected, rejected);
        return problem(StatusCode::BAD_REQUEST, &why);
    }
    shared.metrics.webhook.truncated(notice.truncated_alerts);
    let mut counts = HashMap::new();
    for alert in &notice.alerts {
        let Ok(action) = deliver(shared, &board.alerts, &notice.group_key, alert) else {
            // What was delivered before is known when all of it comes again.
            return too_busy("alerts for a release are waiting");
        };
        shared.metrics.webhook.alerts(action, 1);
        *counts.entry(action.as_str()).or_insert(0) += 1;
    }
    (StatusCode::ACCEPTED, axum::Json(json!(counts))).into_response()
}

fn check(notice: &Notice) -> Result<(), String> {
    if notice.version != "4" {
        return Err("this takes version 4 of the payload".into());
    }
    if notice.alerts.len() > MAX_ALERTS {
        return Err(format!(
            "there are {} alerts; set max_alerts to at most {MAX_ALERTS}",
            notice.alerts.len()
        ));
    }
    for alert in &notice.alerts {
        if alert.labels.len() > MAX_LABELS {
            return Err(format!("an alert has {} labels", alert.labels.len()));
        }
        let is_long =
            |(name, value): (&String, &String)| name.len() > MAX_NAME || value.len() > MAX_VALUE;
        if alert.fingerprint.len() > MAX_NAME || alert.labels.iter().any(is_long) {
            return Err("an alert has a label that is too long".into());
        }
    }
    Ok(())
}

/// Hands an alert to all releases that it is about. An error when one of them has no room.
fn deliver(
    shared: &Shared,
    releases: &[AlertsFor],
    group: &str,
    alert: &Told,
) -> Result<Action, ()> {
    let name = alert.labels.get("alertname").map_or("", String::as_str);
    if name.starts_with("Leadsman")
        || alert
            .labels
            .get("source")
            .is_some_and(|source| source == "leadsman")
    {
        return Ok(Action::Ignored);
    }
    let about: Vec<_> = releases
        .iter()
        .filter_map(|release| Some((release, release.weight(&alert.labels)?)))
        .collect();
    if about.is_empty() {
        return Ok(Action::Ignored);
    }
    let since = u64::try_from(alert.starts_at.as_millisecond()).unwrap_or(0);
    let mut hasher = DefaultHasher::new();
    (group, &alert.fingerprint, since, alert.status).hash(&mut hasher);
    let key = hasher.finish();
    let remembered = || {
        shared
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    if !remembered().is_news(key) {
        return Ok(Action::Duplicate);
    }
    for (release, weight) in about {
        let heard = AlertHeard {
            name: name.to_owned(),
            fingerprint: alert.fingerprint.clone(),
            since,
            is_firing: alert.status == Status::Firing,
            weight,
        };
        if release.to.try_send(heard).is_err() {
            remembered().forget(key);
            return Err(());
        }
    }
    Ok(Action::Accepted)
}

pub(super) type Memory = Mutex<Remembered>;
