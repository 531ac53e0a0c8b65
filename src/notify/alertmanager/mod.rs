//! One Alertmanager: a queue, a sending loop, and reading back.
//!
//! As in Prometheus, every alert goes to every Alertmanager, each of which has a queue and a loop of its own, and
//! firing alerts are sent again and again. Unlike there, a failed batch is retried, since the next resend may be a
//! minute away; and the alerts that Alertmanager lists are read back, so that an alert is known to have arrived.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::alert_list::{AlertListReader, number};
use super::alert_payload::{AlertPayload, AlertStyle};
use super::failure_log::FailureLog;
use crate::config::settings::AlertmanagerConfig;
use crate::core::alerts::LabelSet;
use crate::core::alerts::MAX_ALERTS;
use crate::platform::http_client::{authorized, cause, client, excerpt};
use crate::platform::permit::{Permit, PermitError};

/// Alerts that wait for one Alertmanager: all that can live.
pub const CAPACITY: usize = MAX_ALERTS;

/// Alerts of one request.
const BATCH: usize = 256;

/// Waits between attempts: doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

/// Maximum duration of a request about a revision: the next attempt must not come too late.
const SOON: Duration = Duration::from_secs(5);

/// How long what waits may still be sent after the signal to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// The largest list of alerts that is read back; it is never whole in memory.
const MAX_LIST: usize = 64 * 1024 * 1024;

/// Waits between attempts to read back, and how often it is tried.
const READ_BACK: (Duration, u32) = (Duration::from_secs(2), 5);

/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 32;

/// Takes the numbers of all Alertmanagers; `to` is their URL.
pub trait AlertmanagerObserver: Send + Sync {
    /// There is one.
    fn appears(&self, to: &str);
    /// It is gone.
    fn is_gone(&self, to: &str);
    /// Alerts were sent, successfully or not, in this time.
    fn sent(&self, to: &str, count: usize, took: Duration);
    /// Alerts were among them that did not arrive.
    fn failed(&self, to: &str, count: usize);
    /// Alerts will not arrive: there was no room, or they are refused.
    fn dropped(&self, to: &str, count: usize);
    /// Alerts wait.
    fn waiting(&self, to: &str, count: usize);
    /// Firing alerts that it says it has, of those that it should have.
    fn confirmed(&self, to: &str, confirmed: usize, of: usize);
}

/// The addresses behind a URL, at most 32.
///
/// # Errors
/// When the name cannot be resolved.
pub async fn addresses(url: &Url) -> Result<Vec<SocketAddr>, String> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or(80);
    let found = tokio::net::lookup_host((host, port));
    let found = tokio::time::timeout(Duration::from_secs(10), found).await;
    let found = found.map_err(|_| "its name is not resolved in time".to_owned())?;
    let mut all: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
    all.sort_unstable();
    all.dedup();
    all.truncate(MAX_ADDRESSES);
    Ok(all)
}

#[derive(Default)]
struct AlertQueue {
    order: VecDeque<LabelSet>,
    newest: HashMap<LabelSet, Arc<AlertPayload>>,
}

impl AlertQueue {
    /// Adds an alert, or brings it up to date where it waits; returns how many were dropped.
    fn offer(&mut self, payload: &Arc<AlertPayload>) -> usize {
        if let Some(waiting) = self.newest.get_mut(&payload.labels) {
            *waiting = Arc::clone(payload);
            return 0;
        }
        self.newest
            .insert(payload.labels.clone(), Arc::clone(payload));
        self.order.push_back(payload.labels.clone());
        if self.order.len() <= CAPACITY {
            return 0;
        }
        if let Some(oldest) = self.order.pop_front() {
            self.newest.remove(&oldest);
        }
        1
    }

    fn take(&mut self) -> Vec<Arc<AlertPayload>> {
        let count = self.order.len().min(BATCH);
        let taken = self.order.drain(..count);
        taken
            .filter_map(|labels| self.newest.remove(&labels))
            .collect()
    }

    /// Puts a batch back that did not arrive; what has become newer meanwhile stays newer. Returns how many found no
    /// room: they are the oldest.
    fn put_back(&mut self, batch: Vec<Arc<AlertPayload>>) -> usize {
        let mut dropped = 0;
        for payload in batch.into_iter().rev() {
            if self.newest.contains_key(&payload.labels) {
                continue;
            }
            if self.order.len() >= CAPACITY {
                dropped += 1;
                continue;
            }
            self.order.push_front(payload.labels.clone());
            self.newest.insert(payload.labels.clone(), payload);
        }
        dropped
    }
}

/// What Alertmanager has of ours.
#[derive(Default)]
struct SentAlerts {
    /// Firing alerts that were sent.
    sent: HashSet<LabelSet>,
    /// Those of them that it says it has.
    confirmed: HashSet<LabelSet>,
    /// Counts changes of the confirmed alerts.
    version: u64,
}

/// One Alertmanager at one address.
pub struct AlertmanagerPeer {
    name: String,
    url: Url,
    address: SocketAddr,
    settings: Arc<AlertmanagerConfig>,
    style: Arc<AlertStyle>,
    meter: Arc<dyn AlertmanagerObserver>,
    queue: Mutex<AlertQueue>,
    has_work: Notify,
    known: Mutex<SentAlerts>,
    has_sent: Notify,
    failure_log: FailureLog,
    permit: Permit,
}

/// However it ends, its series go.
impl Drop for AlertmanagerPeer {
    fn drop(&mut self) {
        self.meter.is_gone(&self.name);
    }
}

enum AlertmanagerError {
    /// Another attempt may help.
    Passing(String),
    /// Sending the same again would be refused again.
    Lasting(String),
}

impl AlertmanagerPeer {
    /// The Alertmanager of `url` at one of its addresses. Nothing is sent before [`Self::run`], nor without the permit.
    pub fn new(
        url: &Url,
        address: SocketAddr,
        settings: Arc<AlertmanagerConfig>,
        style: Arc<AlertStyle>,
        meter: Arc<dyn AlertmanagerObserver>,
        permit: Permit,
    ) -> Arc<Self> {
        let mut url = url.clone();
        if let Some(name) = &settings.tls.server_name {
            // The port, the path and the address are as they were.
            let _ = url.set_host(Some(name));
        }
        let mut shown = url.clone();
        let _ = shown.set_ip_host(address.ip());
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        let peer = Self {
            name: endpoint(&shown, "alerts").into(),
            url,
            address,
            settings,
            style,
            meter,
            queue: Mutex::default(),
            has_work: Notify::new(),
            known: Mutex::default(),
            has_sent: Notify::new(),
            failure_log: FailureLog::default(),
            permit,
        };
        peer.meter.appears(&peer.name);
        Arc::new(peer)
    }

    /// Its URL with the address, as the metrics name it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Since when nothing arrives there, if so.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failure_log.since()
    }

    /// Whether anything was sent there, so that it is known whether it arrives.
    pub fn is_tried(&self) -> bool {
        self.failure_log.is_known()
    }

    /// Another number whenever [`Self::has`] may say something else.
    pub fn version(&self) -> u64 {
        self.known().version
    }

    /// Whether it says that it has an alert.
    pub fn has(&self, labels: &LabelSet) -> bool {
        self.known().confirmed.contains(labels)
    }

    /// Puts alerts into its queue. Never waits.
    pub fn offer(&self, alerts: &[Arc<AlertPayload>]) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped: usize = alerts.iter().map(|payload| queue.offer(payload)).sum();
        let waiting = queue.order.len();
        drop(queue);
        if dropped > 0 {
            self.meter.dropped(&self.name, dropped);
        }
        self.meter.waiting(&self.name, waiting);
        if waiting > 0 {
            self.has_work.notify_one();
        }
    }

    /// Sends until `stop` is cancelled; waiting alerts are still sent for a short while, and a request in flight is not
    /// given up.
    pub async fn run(&self, stop: CancellationToken) {
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = late => {}
            () = self.send_all(&stop) => {}
            () = self.read_back() => {}
        }
    }

    /// Sends until `stop` is cancelled, and nothing waits or arrives.
    async fn send_all(&self, stop: &CancellationToken) {
        let mut pause = BACKOFF.0;
        let mut http = None;
        loop {
            if self.is_empty() {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.has_work.notified() => {}
                }
                continue;
            }
            if self.send(&mut http).await {
                pause = BACKOFF.0;
                continue;
            }
            if stop.is_cancelled() {
                return;
            }
            // Several that wait for the same one must not come back together.
            let jitter = 0.5 + fastrand::f64();
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    fn is_empty(&self) -> bool {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .order
            .is_empty()
    }

    fn known(&self) -> std::sync::MutexGuard<'_, SentAlerts> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends one batch. Returns whether the next may follow at once.
    async fn send(&self, http: &mut Option<Client>) -> bool {
        let batch = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let began = Instant::now();
        let posted = self
            .permit
            .bound(self.settings.timeout, self.post(http, &batch));
        let outcome = match posted.await {
            Ok(outcome) => outcome,
            Err(PermitError::TimedOut) => {
                Err(AlertmanagerError::Passing("no answer in time".into()))
            }
            // The replica that holds the permit now sends the same.
            Err(PermitError::NotHeld) => {
                let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.put_back(batch);
                return false;
            }
        };
        self.meter.sent(&self.name, batch.len(), began.elapsed());
        let good = match outcome {
            Ok(()) => {
                self.arrived(&batch);
                true
            }
            Err(failure) => {
                self.meter.failed(&self.name, batch.len());
                // Certificates may be others by now.
                *http = None;
                let (AlertmanagerError::Passing(why) | AlertmanagerError::Lasting(why)) = &failure;
                self.failure_log.fails(&self.name, why);
                match failure {
                    AlertmanagerError::Passing(_) => {
                        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                        let dropped = queue.put_back(batch);
                        drop(queue);
                        if dropped > 0 {
                            self.meter.dropped(&self.name, dropped);
                        }
                        false
                    }
                    AlertmanagerError::Lasting(_) => {
                        self.meter.dropped(&self.name, batch.len());
                        true
                    }
                }
            }
        };
        let waiting = self
            .queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .order
            .len();
        self.meter.waiting(&self.name, waiting);
        good
    }

    fn arrived(&self, batch: &[Arc<AlertPayload>]) {
        self.failure_log.works(&self.name);
        let mut known = self.known();
        let mut is_new = false;
        for payload in batch {
            if payload.is_resolved {
                known.sent.remove(&payload.labels);
                let was_confirmed = known.confirmed.remove(&payload.labels);
                known.version += u64::from(was_confirmed);
            } else {
                is_new |= known.sent.insert(payload.labels.clone());
            }
        }
        self.meter
            .confirmed(&self.name, known.confirmed.len(), known.sent.len());
        drop(known);
        if is_new {
            self.has_sent.notify_one();
        }
    }

    async fn post(
        &self,
        http: &mut Option<Client>,
        batch: &[Arc<AlertPayload>],
    ) -> Result<(), AlertmanagerError> {
        let client = match http {
            Some(client) => client,
            None => http.insert(self.client().map_err(AlertmanagerError::Passing)?),
        };
        let body = self.style.body(batch.iter().map(AsRef::as_ref));
        let timeout = if batch.iter().any(|payload| payload.is_of_revision()) {
            self.settings.timeout.min(SOON)
        } else {
            self.settings.timeout
        };
        let request = client
            .post(endpoint(&self.url, "alerts"))
            .timeout(timeout)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        let request =
            authorized(request, self.settings.auth.as_ref()).map_err(AlertmanagerError::Passing)?;
        let response = request
            .send()
            .await
            .map_err(|error| AlertmanagerError::Passing(cause(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let why = format!("{status}: {}", excerpt(response).await);
        // These say what is wrong with the alerts; all others, what is wrong between us.
        let lasting = [
            StatusCode::BAD_REQUEST,
            StatusCode::PAYLOAD_TOO_LARGE,
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ];
        Err(if lasting.contains(&status) {
            AlertmanagerError::Lasting(why)
        } else {
            AlertmanagerError::Passing(why)
        })
    }

    fn client(&self) -> Result<Client, String> {
        client(
            &self.settings.tls,
            self.settings.timeout,
            Some((&self.url, self.address)),
        )
    }

    /// After something new was sent, and once per round of resends: asks which alerts it has. An Alertmanager that lost
    /// its storage no longer has what it once confirmed.
    async fn read_back(&self) {
        loop {
            let again = tokio::time::sleep(self.settings.resend);
            let is_new = tokio::select! {
                () = self.has_sent.notified() => true,
                () = again => false,
            };
            if self.known().sent.is_empty() {
                continue;
            }
            let attempts = if is_new { READ_BACK.1 } else { 1 };
            for _ in 0..attempts {
                match self.list().await {
                    Ok(there) => {
                        let mut known = self.known();
                        let confirmed: HashSet<_> = known
                            .sent
                            .iter()
                            .filter(|labels| {
                                there.contains(&number(self.style.labels(labels).into_iter()))
                            })
                            .cloned()
                            .collect();
                        known.version += u64::from(known.confirmed != confirmed);
                        known.confirmed = confirmed;
                        self.meter
                            .confirmed(&self.name, known.confirmed.len(), known.sent.len());
                        if known.confirmed.len() == known.sent.len() {
                            break;
                        }
                    }
                    Err(why) => {
                        tracing::debug!(
                            alertmanager = self.name,
                            "Its alerts cannot be read: {why}"
                        );
                    }
                }
                tokio::time::sleep(READ_BACK.0).await;
            }
        }
    }

    /// The numbers of the alerts that it has of ours.
    async fn list(&self) -> Result<HashSet<u64>, String> {
        let mut url = endpoint(&self.url, "alerts");
        url.query_pairs_mut()
            .append_pair("filter", "source=\"leadsman\"");
        let request = authorized(self.client()?.get(url), self.settings.auth.as_ref())?;
        let mut response = request.send().await.map_err(|error| cause(&error))?;
        if !response.status().is_success() {
            return Err(response.status().to_string());
        }
        let mut listed = AlertListReader::default();
        let mut length = 0;
        while let Some(bytes) = response.chunk().await.map_err(|error| cause(&error))? {
            length += bytes.len();
            if length > MAX_LIST {
                return Err(format!("the list is larger than {MAX_LIST} bytes"));
            }
            listed.take(&bytes)?;
        }
        listed.end()
    }
}

/// `api/v2/…` below the URL, whose path is a prefix.
fn endpoint(url: &Url, what: &str) -> Url {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["api", "v2", what]);
    }
    url
}

#[cfg(test)]
mod tests;
