//! The alert evaluator: turns the status of all releases into alerts and messages, and hands them to the receivers.
//!
//! Invariants:
//! - each evaluation finds the conditions anew from the current status; only the [`AlertStore`] has a memory, and it is
//!   stored;
//! - a receiver that hangs, a name that does not resolve and a store that does not answer block nothing here;
//! - a replica that loses the Lease stops sending immediately, including queued messages.

mod alertmanager_discovery;
mod conditions;
mod error_budgets;
mod evaluate;
mod message_texts;
mod messages;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;

use alertmanager_discovery::{AlertmanagerAddress, AlertmanagerTask};
use messages::ReceiverTask;

pub(super) use conditions::{in_a_row, slower};
pub(super) use error_budgets::promises;

use super::probe_executor::ProbeExecutor;
use crate::config::settings::{AlertmanagerConfig, ReceiverConfig};
use crate::core::alerts::AlertState;
use crate::core::alerts::AlertStore;
use crate::core::probe_stats::TrackedProbe;
use crate::core::units::{ClockShift, HasTimes, Namespace, ProbeId, ReleaseName, Time};
use crate::http::status::AlertView;
use crate::http::{self, Shard};
use crate::metrics::{AlertCounts, Metrics};
use crate::notify::Message;
use crate::platform::clock::{self, Timeline};
use crate::platform::permit::Permit;
use crate::storage::{StateStore, StoredKind as Stored, StoredState};

/// Maximum time between evaluations: some conditions change with time alone.
const EVERY: Duration = Duration::from_secs(1);

/// Changes within this time are evaluated together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Interval of resolving names: pods of Alertmanager come and go.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// Interval of writing while anything has changed, and the wait after a failed write.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Maximum wait for stored alerts at start-up. On timeout alerts may be sent again.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// Wait before reading stored alerts again after a failure.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Interval of writing what revisions have spent of their budgets.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// Maximum time of the last write at the stop.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The settings that alerting uses.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AlertingConfig {
    pub(super) alertmanagers: Option<Arc<AlertmanagerConfig>>,
    /// Base of all links.
    pub(super) page: Option<Url>,
    pub(super) promises: Vec<error_budgets::Promise>,
    pub(super) receivers: Vec<ReceiverConfig>,
}

impl AlertingConfig {
    /// The part of the settings that belongs to one shard.
    fn of(self: &Arc<Self>, shard: &Shard) -> Arc<Self> {
        if *shard == Shard::All {
            return Arc::clone(self);
        }
        let promises = self.promises.iter().filter(|promise| promise.is_of(shard));
        Arc::new(Self {
            promises: promises.cloned().collect(),
            ..(**self).clone()
        })
    }
}

/// What survives a restart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct StoredAlerts {
    #[serde(flatten)]
    alert_store: AlertStore,
    #[serde(default)]
    accounts: error_budgets::SpentByRelease,
    /// Keys of messages that were sent or wait, the oldest first.
    #[serde(default)]
    told: VecDeque<String>,
    /// Waiting messages by receiver.
    #[serde(default)]
    waiting: BTreeMap<String, Vec<Message>>,
}

impl HasTimes for StoredAlerts {
    fn shift(&mut self, by: ClockShift) {
        self.alert_store.shift(by);
        for message in self.waiting.values_mut().flatten() {
            message.since += by.seconds();
            message.at += by.seconds();
        }
    }
}

/// Dependencies of the evaluator.
pub(super) struct AlertingSetup {
    /// The shard whose alerts it evaluates.
    pub(super) shard: Shard,
    /// Name of this replica in alerts, if several replicas send.
    pub(super) replica: Option<String>,
    pub(super) executor: Arc<ProbeExecutor>,
    pub(super) web: Arc<http::AppState>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Option<Arc<StateStore>>,
    pub(super) timeline: Timeline,
    pub(super) changed: Arc<Notify>,
    pub(super) orders: watch::Receiver<Arc<AlertingConfig>>,
    pub(super) permit: Permit,
    /// Cancelled when a task ends by itself that should live as long as the evaluator.
    pub(super) ended: CancellationToken,
}

pub(super) struct AlertEvaluator {
    setup: AlertingSetup,
    kept: StoredAlerts,
    /// Whether the stored alerts were read. Before that nothing may overwrite them.
    is_read: bool,
    looked: error_budgets::ObjectiveResults,
    /// The probes at the last evaluation, as a list and by id.
    probes: (Vec<Arc<TrackedProbe>>, HashMap<ProbeId, Arc<TrackedProbe>>),
    orders: Arc<AlertingConfig>,
    alertmanagers: HashMap<AlertmanagerAddress, AlertmanagerTask>,
    outboxes: Vec<ReceiverTask>,
    resolving: JoinSet<(usize, Result<Vec<SocketAddr>, String>)>,
    unresolved: HashSet<usize>,
    resent: Time,
    /// How much this evaluator has added to the gauges of alerts.
    counted: AlertCounts,
    /// Versions of the alert store and of the Alertmanagers that were shown last.
    shown: Option<(u64, Vec<u64>)>,
    saved: Time,
    is_dirty: bool,
    save_fails: bool,
    /// The write that is in progress, beside the loop.
    saving: Option<SaveResult>,
    /// Alerts changed during the write, so another one must follow.
    wants_save: bool,
    /// Ends all sending at once.
    halt: CancellationToken,
}

/// Result of a write; with the stored alerts, if they had to be read first.
type SaveResult = JoinHandle<Result<Option<StoredAlerts>, String>>;

impl AlertEvaluator {
    pub(super) fn new(setup: AlertingSetup) -> Self {
        let now = setup.timeline.now();
        let orders = setup.orders.borrow().of(&setup.shard);
        // What concerns nobody else dies with us, and so does what is told of it.
        let store = setup.store.filter(|_| setup.shard != Shard::Ourselves);
        let setup = AlertingSetup { store, ..setup };
        Self {
            is_read: setup.store.is_none(),
            setup,
            kept: StoredAlerts::default(),
            looked: error_budgets::ObjectiveResults::default(),
            probes: (Vec::new(), HashMap::new()),
            orders,
            alertmanagers: HashMap::new(),
            outboxes: Vec::new(),
            resolving: JoinSet::new(),
            unresolved: HashSet::new(),
            resent: now,
            counted: AlertCounts::default(),
            shown: None,
            saved: now,
            is_dirty: false,
            save_fails: false,
            saving: None,
            wants_save: false,
            halt: CancellationToken::new(),
        }
    }

    /// Runs until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut resolve = tokio::time::interval(RESOLVE_EVERY);
        let permit = self.setup.permit.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = permit.lost() => return,
            () = self.read() => {}
        }
        self.open_outboxes();
        resolve.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let is_lost = loop {
            tokio::select! {
                () = stop.cancelled() => break false,
                () = permit.lost() => break true,
                Ok(()) = self.setup.orders.changed() => {
                    self.take_orders();
                    resolve.reset_immediately();
                }
                _ = resolve.tick() => self.resolve(),
                Some(found) = self.resolving.join_next() => {
                    if let Ok((number, found)) = found {
                        self.on_resolved(number, found);
                    }
                }
                written = written(&mut self.saving) => self.on_written(written),
                () = self.setup.changed.notified() => {
                    tokio::time::sleep(TOGETHER).await;
                    self.look();
                }
                () = tokio::time::sleep(EVERY) => self.look(),
            }
        };
        if is_lost || !permit.holds() {
            // Whoever holds it now tells the same, and what we sent besides would be told twice.
            self.halt.cancel();
        } else {
            // What came with the signal is still told.
            self.look();
        }
        self.end().await;
    }

    async fn end(mut self) {
        for sending in self.alertmanagers.values() {
            sending.stop.cancel();
        }
        for posting in &self.outboxes {
            posting.stop.cancel();
        }
        for (_, sending) in self.alertmanagers.drain() {
            // It ends within the time that it may still send; a panic in it was told where it happened.
            let _ = sending.task.await;
        }
        for posting in &mut self.outboxes {
            let _ = (&mut posting.task).await;
        }
        self.forget_objectives();
        let alerting = &self.setup.metrics.alerting;
        alerting.stand(&mut self.counted, AlertCounts::default());
        self.is_dirty |= !self.outboxes.is_empty();
        let is_worth_it =
            self.is_dirty || self.saving.is_some() || !self.orders.promises.is_empty();
        if is_worth_it && self.setup.permit.holds() {
            let last = async {
                if self.saving.is_some() {
                    let written = written(&mut self.saving).await;
                    self.wants_save = false;
                    self.on_written(written);
                }
                if self.is_read {
                    self.save();
                }
                if self.saving.is_some() {
                    let written = written(&mut self.saving).await;
                    self.on_written(written);
                }
            };
            let _ = tokio::time::timeout(LAST_WRITE, last).await;
        }
    }

    fn take_orders(&mut self) {
        let orders = self.setup.orders.borrow_and_update().of(&self.setup.shard);
        if orders.alertmanagers != self.orders.alertmanagers || orders.page != self.orders.page {
            for (_, sending) in self.alertmanagers.drain() {
                sending.stop.cancel();
            }
            // What is being resolved is of other URLs.
            self.resolving = JoinSet::new();
            self.unresolved.clear();
        }
        if orders.promises != self.orders.promises {
            self.forget_objectives();
            self.looked.forget();
        }
        let others = orders.receivers != self.orders.receivers;
        self.orders = orders;
        if others {
            self.open_outboxes();
        }
    }

    fn forget_objectives(&self) {
        for promise in &self.orders.promises {
            promise.forget(&self.setup.metrics);
        }
    }

    /// Reads the stored alerts, for at most [`READ_PATIENCE`].
    async fn read(&mut self) {
        let until = tokio::time::Instant::now() + READ_PATIENCE;
        while !self.is_read {
            let mut reading = self.begin_to_read();
            match written(&mut reading).await {
                Ok(stored) => self.adopt(stored.unwrap_or_default()),
                Err(why) => {
                    tracing::warn!("The stored alerts cannot be read yet: {why}");
                    if tokio::time::Instant::now() >= until {
                        tracing::error!(
                            "Alerts are told without what was told before; nothing of that is written over"
                        );
                        return;
                    }
                    tokio::time::sleep(READ_AGAIN).await;
                }
            }
        }
    }

    fn begin_to_read(&self) -> Option<SaveResult> {
        let (store, timeline) = (self.setup.store.clone()?, self.setup.timeline);
        let place = place(&self.setup.shard);
        Some(tokio::task::spawn_blocking(move || {
            load(&store, &place, timeline.now()).map(Some)
        }))
    }

    /// Continues with the stored alerts. What this process has sent or queued in the meantime is kept.
    fn adopt(&mut self, stored: StoredAlerts) {
        let own = std::mem::replace(&mut self.kept, stored);
        for posting in &self.outboxes {
            let name = posting.delivery_queue.receiver().name;
            let waiting = self.kept.waiting.remove(name).unwrap_or_default();
            for message in waiting {
                if !own.told.contains(&message.id()) {
                    posting.delivery_queue.offer(message);
                }
            }
        }
        self.kept.told.extend(own.told);
        self.shown = None;
        self.is_read = true;
    }

    /// Evaluates all conditions, and sends new alerts and those that are due again.
    fn look(&mut self) {
        let now = self.setup.timeline.now();
        let mut tracked_probe = self.setup.web.tracked_probe();
        let mut views = self.setup.web.controllers();
        tracked_probe.retain(|tracked_probe| {
            let id = &tracked_probe.probe().id;
            is_of(
                &self.setup.shard,
                id.namespace.as_str(),
                id.release.as_str(),
            )
        });
        views.retain(|view| is_of(&self.setup.shard, &view.namespace, &view.release));
        let promises = &self.orders.promises;
        let is_same = tracked_probe.len() == self.probes.0.len()
            && tracked_probe
                .iter()
                .zip(&self.probes.0)
                .all(|(one, other)| Arc::ptr_eq(one, other));
        if !is_same {
            let by_id = tracked_probe.iter();
            let by_id = by_id
                .map(|tracked_probe| (tracked_probe.probe().id.clone(), Arc::clone(tracked_probe)));
            self.probes = (tracked_probe.clone(), by_id.collect());
        }
        let by_id = &self.probes.1;
        error_budgets::add_spending(&mut self.kept.accounts, promises, &views, by_id);
        let metrics = &self.setup.metrics;
        let accounts = &self.kept.accounts;
        self.looked
            .look(promises, accounts, by_id, metrics, clock::now());
        let mut alert_store = std::mem::take(&mut self.kept.alert_store);
        let mut looked = alert_store.look(now);
        let unknown = self.conditions(&tracked_probe, &views, |found| looked.holds(found));
        for condition in self.looked.conditions() {
            looked.holds(condition.clone());
        }
        let changed = looked.end(|labels| unknown.is_known(labels));
        self.kept.alert_store = alert_store;
        let objectives = self.looked.views();
        for view in &objectives {
            let what = || {
                view.probe.as_deref().map_or_else(
                    || view.objective.to_owned(),
                    |probe| format!("{} of {probe}", view.objective),
                )
            };
            let is_spent = view.budget_remaining <= 0.0;
            let executor = &self.setup.executor;
            executor.is_spent(&view.namespace, &view.release, what, is_spent);
        }
        self.setup
            .web
            .show_objectives(&self.setup.shard, objectives);
        let news = self.tell_news(&views) || self.has_told();
        self.is_dirty |= changed || news;
        let resend = self
            .orders
            .alertmanagers
            .as_ref()
            .map(|settings| settings.resend);
        if changed || resend.is_some_and(|resend| now.since(self.resent) >= resend) {
            self.resent = now;
            let wires = self.wires();
            for sending in self.alertmanagers.values() {
                sending.peer.offer(&wires);
            }
        }
        self.show();
        let promises_nothing = self.orders.promises.is_empty();
        let wait = if self.is_dirty {
            SAVE_EVERY
        } else {
            KEEP_EVERY
        };
        if changed
            || news
            || (now.since(self.saved) >= wait && (self.is_dirty || !promises_nothing))
        {
            self.save();
        }
    }

    /// Publishes the alerts for the API.
    fn show(&mut self) {
        // Of ten thousand it is much work, and mostly the same.
        let alertmanagers = self.alertmanagers.values();
        let versions = alertmanagers
            .map(|sending| sending.peer.version())
            .collect();
        let version = Some((self.kept.alert_store.version(), versions));
        if self.shown == version {
            return;
        }
        self.shown = version;
        let mut counts = [0; 3];
        let names: Vec<(Arc<str>, &AlertmanagerTask)> = self
            .alertmanagers
            .values()
            .map(|sending| (sending.peer.name().into(), sending))
            .collect();
        // Mostly the same have all of them, and of ten thousand it counts.
        let mut shared: Arc<[Arc<str>]> = Arc::default();
        let views = self.kept.alert_store.alerts().iter().map(|alert| {
            let (at, state) = match alert.state {
                AlertState::Pending { .. } => (0, "pending"),
                AlertState::Firing { .. } => (1, "firing"),
                AlertState::Resolved(_) => (2, "resolved"),
            };
            counts[at] += 1;
            let confirmed = names
                .iter()
                .filter(|(_, sending)| sending.peer.has(&alert.labels))
                .map(|(name, _)| name);
            if !confirmed.clone().eq(shared.iter()) {
                shared = confirmed.cloned().collect();
            }
            // The end of the episode before is told to Alertmanager, and would puzzle people here.
            let is_pending = matches!(alert.state, AlertState::Pending { .. });
            let span = alert.span().filter(|_| !is_pending);
            AlertView {
                labels: alert.labels.clone(),
                state,
                summary: alert.kind.summary(),
                text: Arc::clone(&alert.text),
                since: span.map(|(since, _)| since.unix_seconds()),
                ended: span.and_then(|(_, ended)| ended.map(Time::unix_seconds)),
                confirmed_by: Arc::clone(&shared),
            }
        });
        let views = views.collect();
        let now = AlertCounts {
            alerts: counts,
            left_out: self.kept.alert_store.left_out,
        };
        let alerting = &self.setup.metrics.alerting;
        alerting.stand(&mut self.counted, now);
        self.setup.web.show_alerts(&self.setup.shard, views);
    }

    /// Starts a write beside the loop. During a write only the newest state waits to be written next.
    fn save(&mut self) {
        let Some(store) = self.setup.store.clone() else {
            self.is_dirty = false;
            return;
        };
        if self.saving.is_some() {
            self.wants_save = true;
            return;
        }
        let now = self.setup.timeline.now();
        self.saved = now;
        self.is_dirty = false;
        if !self.is_read {
            self.saving = self.begin_to_read();
            return;
        }
        self.keep_waiting();
        let kept = self.kept.clone();
        let (kind, namespace, release) = place(&self.setup.shard);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            store
                .save(kind, &namespace, &release, &kept, now)
                .map_err(|error| error.to_string())?;
            Ok(None)
        }));
    }

    fn on_written(&mut self, written: Result<Option<StoredAlerts>, String>) {
        self.save_fails &= written.is_err();
        match written {
            Ok(None) => {}
            Ok(Some(stored)) => {
                self.adopt(stored);
                self.wants_save = true;
            }
            Err(error) => self.on_failed(&error),
        }
        if std::mem::take(&mut self.wants_save) {
            if self.save_fails {
                // Tried again in a while, with all that came meanwhile.
                self.is_dirty = true;
            } else {
                self.save();
            }
        }
    }

    fn on_failed(&mut self, error: &str) {
        self.is_dirty = true;
        self.setup.metrics.releases.state_failed();
        if !self.save_fails {
            tracing::error!(
                error,
                "The alerts cannot be written; a restart would forget when they began"
            );
        }
        self.save_fails = true;
    }
}

/// Result of the write in progress; pending forever if there is none.
async fn written(saving: &mut Option<SaveResult>) -> Result<Option<StoredAlerts>, String> {
    let Some(task) = saving else {
        return std::future::pending().await;
    };
    let written = task.await.map_err(|error| error.to_string());
    *saving = None;
    written.flatten()
}

/// Where alerts are stored.
type AlertStorage = (Stored, Namespace, ReleaseName);

/// Alerts of all releases are stored under a name of their own.
fn place(shard: &Shard) -> AlertStorage {
    let (kind, namespace, release) = match shard {
        Shard::Release(namespace, release) => {
            (Stored::ReleaseAlerts, namespace.as_str(), release.as_str())
        }
        Shard::All | Shard::Ourselves => (Stored::Alerts, "leadsman", "leadsman"),
    };
    (kind, Namespace::new(namespace), ReleaseName::new(release))
}

/// Whether a shard contains a release.
fn is_of(shard: &Shard, namespace: &str, release: &str) -> bool {
    match shard {
        Shard::All => true,
        // What belongs to no release is told by each replica of itself.
        Shard::Ourselves => release.is_empty(),
        Shard::Release(own, name) => own == namespace && name == release,
    }
}

/// Reads the stored alerts. An error means that they are unknown at the moment, not that there are none.
fn load(store: &StateStore, place: &AlertStorage, now: Time) -> Result<StoredAlerts, String> {
    let (kind, namespace, release) = place;
    let why = match store.load::<StoredAlerts>(*kind, namespace, release, now) {
        StoredState::Nothing => return Ok(StoredAlerts::default()),
        StoredState::Unknown(why) => return Err(why),
        StoredState::State(kept) => match kept.alert_store.clone().bounded(now) {
            Ok(alert_store) => {
                return Ok(StoredAlerts {
                    alert_store,
                    ..kept
                });
            }
            Err(why) => why,
        },
        StoredState::Quarantined(why) => why,
    };
    tracing::warn!("The stored alerts are not used: {why}");
    Ok(StoredAlerts::default())
}

/// Environment variable with the base of links if the configuration has none: the chart knows the address of the
/// Service, and a setting in its file would override the user's.
const DEFAULT_URL: &str = "LEADSMAN_DEFAULT_URL";

/// Default base of links: the value of [`DEFAULT_URL`], else this host and port.
pub(super) fn default_page(address: SocketAddr) -> Option<Url> {
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    page_of(variable(DEFAULT_URL), variable("HOSTNAME"), address.port())
}

fn page_of(said: Option<String>, host: Option<String>, port: u16) -> Option<Url> {
    let said = said.and_then(|said| Url::parse(&said).ok());
    said.filter(|said| matches!(said.scheme(), "http" | "https"))
        .or_else(|| {
            let host = host.unwrap_or_else(|| "localhost".into());
            Url::parse(&format!("http://{host}:{port}/")).ok()
        })
}

#[cfg(test)]
mod tests {
    use super::page_of;

    #[test]
    fn links_begin_with_what_the_installation_says_or_with_this_host() {
        let page = |said: Option<&str>, host: Option<&str>| {
            let text = |text: &str| text.to_owned();
            page_of(said.map(text), host.map(text), 9616).map(String::from)
        };
        let service = "https://leadsman.shop.svc:9616/";
        assert_eq!(page(Some(service), Some("pod-1")).as_deref(), Some(service));
        let host = Some("http://pod-1:9616/");
        assert_eq!(page(None, Some("pod-1")).as_deref(), host);
        for odd in ["no address", "mailto:a@b"] {
            assert_eq!(page(Some(odd), Some("pod-1")).as_deref(), host, "{odd}");
        }
        let nowhere = page(None, None);
        assert_eq!(nowhere.as_deref(), Some("http://localhost:9616/"));
    }
}
