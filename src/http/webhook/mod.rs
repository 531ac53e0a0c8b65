//! `POST /api/v1/alerts`: Alertmanager's webhook, payload version 4 (its `notify/webhook`), as evidence about releases.
//!
//! Invariants:
//! - an alert is evidence, not a command: it reaches only releases whose configuration names it, and their controllers
//!   decide what it means;
//! - the answer is sent as soon as the alerts are in a bounded queue; without room it is 503, which Alertmanager
//!   repeats;
//! - a repeated alert counts once for a release: alerts are identified by group, fingerprint, start and status, and
//!   remembered as long as they are repeated;
//! - an invalid alert does not affect the others of its notification;
//! - our own alerts that come back are ignored;
//! - with a Lease for each release, a notification succeeds only when every leader has taken it, and is repeated until
//!   then: only the leaders know which alerts are about their releases.

mod payload;

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::mpsc;

use self::payload::{WebhookAlert, WebhookAlertStatus, WebhookNotification, is_bounded, read};
use super::auth::{Permission, allowed};
use super::leader_proxy::{ReplicaRequest, is_passed_on};
use super::problem::problem;
use super::{AppState, ConnectionPeer, fan_out, not_now, response_budget, too_busy};
use crate::config::settings::{AlertRule, AlertWeight};
use crate::core::alerts::Labels;
use crate::core::units::Moment;
use crate::metrics::{WEBHOOK_CAPACITY, WaitingAlert, WebhookAction};
use crate::platform::clock;

/// The largest body.
const MAX_BODY: usize = 1024 * 1024;

/// Alerts that are remembered by release, so that repetitions are recognized; the one not seen for longest is dropped.
const MAX_REMEMBERED: usize = 10_000;

/// How long an alert is remembered without a repetition. Alertmanager repeats firing alerts every four hours by
/// default, and rarely less than daily.
const REMEMBERED_FOR: Duration = Duration::from_secs(48 * 3600);

/// Addresses of which it is known how often they came: beyond that those are forgotten that have not come of late.
const MAX_ADDRESSES: usize = 1000;

/// How long other replicas may take: an Alertmanager waits ten seconds at least, and the body may have taken some.
const PATIENCE: Duration = Duration::from_secs(4);

/// The largest answer of another replica, which only counts.
const MAX_COUNTS: usize = 16 * 1024;

/// Alerts that wait for one release.
pub const MAX_WAITING: usize = WEBHOOK_CAPACITY;

/// An alert of Alertmanager about a release.
#[derive(Debug)]
pub struct ReceivedAlert {
    /// Its name.
    pub name: String,
    /// What tells it from others: Alertmanager's hash of its labels.
    pub fingerprint: String,
    /// When it began, in milliseconds since 1970.
    pub since: u64,
    /// Whether it fires, or has ended.
    pub is_firing: bool,
    /// What it means here.
    pub weight: AlertWeight,
    /// It counts as waiting until the controller has taken it.
    _waits: WaitingAlert,
}

#[cfg(test)]
impl ReceivedAlert {
    /// One that fires.
    pub(crate) fn firing(name: &str, since: u64, weight: AlertWeight, waits: WaitingAlert) -> Self {
        Self {
            name: name.to_owned(),
            fingerprint: name.to_owned(),
            since,
            is_firing: true,
            weight,
            _waits: waits,
        }
    }
}

/// Who takes alerts about a release.
pub struct AlertSubscriber {
    /// Its namespace and name.
    pub release: (String, String),
    /// Its rules.
    pub rules: Vec<AlertRule>,
    /// Its guard.
    pub to: mpsc::Sender<ReceivedAlert>,
}

impl AlertSubscriber {
    fn weight(&self, labels: &Labels) -> Option<AlertWeight> {
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

/// News of the last days, by when it was last heard.
#[derive(Default)]
pub(super) struct SeenAlerts {
    /// When each was last heard, and its place in `order`.
    known: HashMap<u64, (Moment, u64)>,
    /// The keys, from the one that was heard longest ago.
    order: BTreeMap<u64, u64>,
    next: u64,
}

impl SeenAlerts {
    /// Whether the alert is new. It is remembered from now on.
    fn is_news(&mut self, key: u64, now: Moment) -> bool {
        while let Some((place, oldest)) = self.order.first_key_value().map(|(a, b)| (*a, *b)) {
            let heard = self.known.get(&oldest).map(|(heard, _)| *heard);
            if heard.is_some_and(|heard| now.since(heard) < REMEMBERED_FOR) {
                break;
            }
            self.order.remove(&place);
            self.known.remove(&oldest);
        }
        let before = self.known.insert(key, (now, self.next));
        if let Some((_, place)) = before {
            self.order.remove(&place);
        }
        self.order.insert(self.next, key);
        self.next += 1;
        if self.known.len() > MAX_REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.known.remove(&oldest);
        }
        before.is_none()
    }

    fn forget(&mut self, key: u64) {
        if let Some((_, place)) = self.known.remove(&key) {
            self.order.remove(&place);
        }
    }
}

pub(super) async fn take(
    State(shared): State<Arc<AppState>>,
    peer: Option<axum::Extension<ConnectionPeer>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let from = peer.map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.0);
    let response = taken(&shared, from, &headers, body).await;
    shared.metrics.webhook.answered(response.status().as_u16());
    response
}

async fn taken(shared: &AppState, from: IpAddr, headers: &HeaderMap, body: Body) -> Response {
    // First of all, since to look who it is may take a file or the cluster.
    if shared.webhook_rate.len() > MAX_ADDRESSES {
        shared.webhook_rate.retain_recent();
    }
    if shared.webhook_rate.check_key(&from).is_err() {
        return too_busy("notifications come from this address");
    }
    if let Err(refused) = allowed(shared, Permission::SendAlerts, headers).await {
        return refused;
    }
    let serving_config = shared.serving_config();
    let Ok(turn) = shared.webhooks.try_acquire() else {
        return too_busy("notifications are being read");
    };
    let body = match response_budget::read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let notice: WebhookNotification<'_> = match serde_json::from_slice(&body) {
        Ok(notice) => notice,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    };
    let alerts = match read(&notice) {
        Ok(alerts) => alerts,
        Err(why) => {
            let rejected = notice.alerts.count as u64;
            shared
                .metrics
                .webhook
                .alerts(WebhookAction::Rejected, rejected);
            return problem(StatusCode::BAD_REQUEST, &why);
        }
    };
    // What is of other replicas is passed on also when there is no room here, so that one release is in no other's way.
    let here = deliver_all(shared, &serving_config.alerts, &notice.group_key, &alerts);
    let truncated = notice.truncated_alerts;
    drop(turn);
    let elsewhere = if is_passed_on(headers) {
        Ok(WebhookCounts::new())
    } else {
        pass_on(shared, headers, body).await
    };
    let Ok(mut counts) = here else {
        // What was delivered before is known when all of it comes again.
        return too_busy("alerts for a release are waiting");
    };
    match elsewhere {
        Ok(others) => add(&mut counts, others),
        Err(refused) => return refused,
    }
    // What is answered with 503 comes again, and is counted then.
    shared.metrics.webhook.truncated(truncated);
    (StatusCode::ACCEPTED, axum::Json(json!(counts))).into_response()
}

/// How many alerts were accepted, ignored and so on.
type WebhookCounts = BTreeMap<String, u64>;

/// Hands all alerts to the releases here. An error when one of them has no room.
fn deliver_all(
    shared: &AppState,
    releases: &[AlertSubscriber],
    group: &str,
    alerts: &[Option<WebhookAlert>],
) -> Result<WebhookCounts, ()> {
    let mut counts = WebhookCounts::new();
    for alert in alerts {
        let action = match alert {
            Some(alert) if is_bounded(alert) => deliver(shared, releases, group, alert)?,
            Some(_) | None => WebhookAction::Rejected,
        };
        shared.metrics.webhook.alerts(action, 1);
        *counts.entry(action.as_str().to_owned()).or_insert(0) += 1;
    }
    Ok(counts)
}

/// Passes a notification on to all replicas that lead a release: returns their counts, or the answer if one of them has
/// not taken it. A replica that has taken it recognizes the repetition.
async fn pass_on(
    shared: &AppState,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<WebhookCounts, Response> {
    let answers = shared.answers();
    let others = fan_out::others(&answers);
    let mut counts = WebhookCounts::new();
    let Some(_turns) = shared.forwards.requests(others.len()) else {
        return Err(too_busy("requests wait for other replicas"));
    };
    let kept = [header::AUTHORIZATION, header::CONTENT_TYPE].into_iter();
    let kept = kept.filter_map(|name| Some((name.clone(), headers.get(&name)?.clone())));
    let asked = ReplicaRequest {
        method: Method::POST,
        path: "/api/v1/alerts",
        headers: kept.collect(),
        body,
        patience: PATIENCE,
        most: MAX_COUNTS,
    };
    let mut troubles = Vec::new();
    for (identity, said) in fan_out::ask(&others, &asked).await {
        match said {
            // Whatever it says, it has taken it.
            Ok(said) => add(
                &mut counts,
                serde_json::from_slice(&said).unwrap_or_default(),
            ),
            Err(why) => {
                tracing::warn!(identity, why, "A notification cannot be passed on");
                troubles.push(format!("the replica {identity} has not taken it ({why})"));
            }
        }
    }
    if answers.lacks_somebody() {
        troubles.push("no replica acts for some release at the moment".into());
    }
    if troubles.is_empty() {
        return Ok(counts);
    }
    Err(not_now(&format!("{}; send it again", troubles.join(", "))))
}

fn add(counts: &mut WebhookCounts, others: WebhookCounts) {
    for (action, count) in others {
        let sum = counts.entry(action).or_insert(0);
        *sum = sum.saturating_add(count);
    }
}

/// Hands an alert to all releases that it is about. An error when one of them has no room.
fn deliver(
    shared: &AppState,
    releases: &[AlertSubscriber],
    group: &str,
    alert: &WebhookAlert,
) -> Result<WebhookAction, ()> {
    let name = alert.labels.get("alertname").map_or("", String::as_str);
    if name.starts_with("Leadsman")
        || alert
            .labels
            .get("source")
            .is_some_and(|source| source == "leadsman")
    {
        return Ok(WebhookAction::Ignored);
    }
    let about: Vec<_> = releases
        .iter()
        .filter_map(|release| Some((release, release.weight(&alert.labels)?)))
        .collect();
    if about.is_empty() {
        return Ok(WebhookAction::Ignored);
    }
    let since = u64::try_from(alert.starts_at.as_millisecond()).unwrap_or(0);
    let remembered = || {
        shared
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    };
    let mut action = WebhookAction::Duplicate;
    for (release, weight) in about {
        // By release: what one of them has heard is news to another that this replica acts for since.
        let mut hasher = DefaultHasher::new();
        let told = (group, &alert.fingerprint, since, alert.status);
        (&release.release, told).hash(&mut hasher);
        let key = hasher.finish();
        if !remembered().is_news(key, clock::now()) {
            continue;
        }
        let heard = ReceivedAlert {
            name: name.to_owned(),
            fingerprint: alert.fingerprint.clone(),
            since,
            is_firing: alert.status == WebhookAlertStatus::Firing,
            weight,
            _waits: shared.metrics.webhook.waits(),
        };
        if release.to.try_send(heard).is_err() {
            remembered().forget(key);
            return Err(());
        }
        action = WebhookAction::Accepted;
    }
    Ok(action)
}

pub(super) type AlertMemory = Mutex<SeenAlerts>;

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hours: u64) -> Moment {
        Moment::after_boot(Duration::from_secs(hours * 3600))
    }

    #[test]
    fn what_is_repeated_stays_known_and_what_is_not_is_forgotten() {
        let mut remembered = SeenAlerts::default();
        assert!(remembered.is_news(1, hour(1)));
        assert!(remembered.is_news(2, hour(1)));
        for hours in 2..100 {
            assert!(!remembered.is_news(1, hour(hours)), "{hours}");
        }
        assert!(
            remembered.is_news(2, hour(100)),
            "it was not repeated for days"
        );
        // One that found no room comes again, and is news then.
        remembered.forget(1);
        assert!(remembered.is_news(1, hour(100)));
        assert_eq!(remembered.known.len(), remembered.order.len());
    }

    #[test]
    fn the_one_heard_longest_ago_makes_room() {
        let mut remembered = SeenAlerts::default();
        for key in 0..MAX_REMEMBERED as u64 {
            assert!(remembered.is_news(key, hour(1)));
        }
        assert!(!remembered.is_news(0, hour(1)));
        assert!(remembered.is_news(u64::MAX, hour(1)));
        assert!(!remembered.is_news(0, hour(1)), "it was repeated");
        assert!(remembered.is_news(1, hour(1)), "it was the oldest");
        assert_eq!(remembered.known.len(), MAX_REMEMBERED);
        assert_eq!(remembered.order.len(), MAX_REMEMBERED);
    }
}
