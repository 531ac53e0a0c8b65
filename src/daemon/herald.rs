//! Who tells people: looks at everything that is known, keeps the book of alerts, and hands them to Alertmanager.
//!
//! Invariants:
//! - what is wrong is found anew at each look, from what is known then; only the book has a memory, and it is stored;
//! - a receiver that hangs, a name that is not resolved, or a store that does not answer, holds up nothing here;
//! - whoever does not hold the Lease any more tells nothing more, not even what waits.

mod budgets;
mod conditions;
mod looking;
mod messages;
mod news;
mod peers;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use url::Url;

use messages::Posting;
use peers::{Place, Sending};

pub(super) use budgets::promises;
pub(super) use conditions::{in_a_row, slower};

use super::runner::Crew;
use crate::alert::Book;
use crate::alert::State;
use crate::clock::{self, Timeline};
use crate::config::settings::{Alertmanagers, Receiver};
use crate::metrics::{Counts, Metrics};
use crate::notify::Message;
use crate::permit::Permit;
use crate::serve::status::AlertView;
use crate::serve::{self, Share};
use crate::store::{Found, Kind as Stored, Store};
use crate::track::Tracked;
use crate::units::{Dated, Namespace, ProbeId, ReleaseName, Shift, Time};

/// Time alone changes what is wrong: it is looked at least so often.
const EVERY: Duration = Duration::from_secs(1);

/// Changes that come together are looked at together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Names are resolved again so often; pods of Alertmanager come and go.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// After a failure to write the book it is tried again.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// The stored book is waited for so long: what was told before may be told again, which is better than nothing.
const READ_PATIENCE: Duration = Duration::from_secs(30);

/// A book that cannot be read is tried again after that.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// What revisions have spent is written so often.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How long the disk may take at the end.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// What of the settings is for the herald.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Orders {
    pub(super) alertmanagers: Option<Arc<Alertmanagers>>,
    /// What links begin with.
    pub(super) page: Option<Url>,
    pub(super) promises: Vec<budgets::Promise>,
    pub(super) receivers: Vec<Receiver>,
}

impl Orders {
    /// What of it is for one share.
    fn of(self: &Arc<Self>, share: &Share) -> Arc<Self> {
        if *share == Share::All {
            return Arc::clone(self);
        }
        let promises = self.promises.iter().filter(|promise| promise.is_of(share));
        Arc::new(Self {
            promises: promises.cloned().collect(),
            ..(**self).clone()
        })
    }
}

/// What survives a restart.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    book: Book,
    #[serde(default)]
    accounts: budgets::Accounts,
    /// News that was told, or waits to be told, the oldest first.
    #[serde(default)]
    told: VecDeque<String>,
    /// Messages that wait, by receiver.
    #[serde(default)]
    waiting: BTreeMap<String, Vec<Message>>,
}

impl Dated for Kept {
    fn shift(&mut self, by: Shift) {
        self.book.shift(by);
        for message in self.waiting.values_mut().flatten() {
            message.since += by.seconds();
            message.at += by.seconds();
        }
    }
}

/// What the herald is made of.
pub(super) struct Setup {
    /// What of all that is configured it tells of.
    pub(super) share: Share,
    /// How this replica is called, where others tell as well.
    pub(super) replica: Option<String>,
    pub(super) crew: Arc<Crew>,
    pub(super) web: Arc<serve::Shared>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) timeline: Timeline,
    pub(super) changed: Arc<Notify>,
    pub(super) orders: watch::Receiver<Arc<Orders>>,
    pub(super) permit: Permit,
    /// Cancelled when a task that should live as long as this ends by itself.
    pub(super) ended: CancellationToken,
}

pub(super) struct Herald {
    setup: Setup,
    kept: Kept,
    /// Whether it is known what was stored: what is not may not be written over.
    is_read: bool,
    looked: budgets::Looked,
    /// The probes of the last look, and the same by name.
    probes: (Vec<Arc<Tracked>>, HashMap<ProbeId, Arc<Tracked>>),
    orders: Arc<Orders>,
    peers: HashMap<Place, Sending>,
    outboxes: Vec<Posting>,
    resolving: JoinSet<(usize, Result<Vec<SocketAddr>, String>)>,
    unresolved: HashSet<usize>,
    resent: Time,
    /// What it has added to the numbers of alerts.
    counted: Counts,
    /// What was shown last: the versions of the book and of the Alertmanagers.
    shown: Option<(u64, Vec<u64>)>,
    saved: Time,
    is_dirty: bool,
    save_fails: bool,
    /// The book is being written, beside the loop.
    saving: Option<Saving>,
    /// It has changed since that began, and is to be written again.
    wants_save: bool,
    /// Ends all that is being sent, at once.
    halt: CancellationToken,
}

/// What the writing of the book ends with; where it had to be read first, with what was stored.
type Saving = JoinHandle<Result<Option<Kept>, String>>;

impl Herald {
    pub(super) fn new(setup: Setup) -> Self {
        let now = setup.timeline.now();
        let orders = setup.orders.borrow().of(&setup.share);
        // What concerns nobody else dies with us, and so does what is told of it.
        let store = setup.store.filter(|_| setup.share != Share::Ourselves);
        let setup = Setup { store, ..setup };
        Self {
            is_read: setup.store.is_none(),
            setup,
            kept: Kept::default(),
            looked: budgets::Looked::default(),
            probes: (Vec::new(), HashMap::new()),
            orders,
            peers: HashMap::new(),
            outboxes: Vec::new(),
            resolving: JoinSet::new(),
            unresolved: HashSet::new(),
            resent: now,
            counted: Counts::default(),
            shown: None,
            saved: now,
            is_dirty: false,
            save_fails: false,
            saving: None,
            wants_save: false,
            halt: CancellationToken::new(),
        }
    }

    /// Tells until told to stop.
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
        for sending in self.peers.values() {
            sending.stop.cancel();
        }
        for posting in &self.outboxes {
            posting.stop.cancel();
        }
        for (_, sending) in self.peers.drain() {
            // It ends within the time that it may still send; a panic in it was told where it happened.
            let _ = sending.task.await;
        }
        for posting in &mut self.outboxes {
            let _ = (&mut posting.task).await;
        }
        self.forget_objectives();
        let alerting = &self.setup.metrics.alerting;
        alerting.stand(&mut self.counted, Counts::default());
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
        let orders = self.setup.orders.borrow_and_update().of(&self.setup.share);
        if orders.alertmanagers != self.orders.alertmanagers || orders.page != self.orders.page {
            for (_, sending) in self.peers.drain() {
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

    /// Reads what was stored, and waits for that as long as people can wait.
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

    fn begin_to_read(&self) -> Option<Saving> {
        let (store, timeline) = (self.setup.store.clone()?, self.setup.timeline);
        let place = place(&self.setup.share);
        Some(tokio::task::spawn_blocking(move || {
            load(&store, &place, timeline.now()).map(Some)
        }))
    }

    /// Goes on with what was stored. What we have told or tried to tell meanwhile is not lost by that.
    fn adopt(&mut self, stored: Kept) {
        let own = std::mem::replace(&mut self.kept, stored);
        for posting in &self.outboxes {
            let name = posting.outbox.receiver().name;
            let waiting = self.kept.waiting.remove(name).unwrap_or_default();
            for message in waiting {
                if !own.told.contains(&message.id()) {
                    posting.outbox.offer(message);
                }
            }
        }
        self.kept.told.extend(own.told);
        self.shown = None;
        self.is_read = true;
    }

    /// Looks what is wrong, and tells what is new, or is to be told again.
    fn look(&mut self) {
        let now = self.setup.timeline.now();
        let mut tracked = self.setup.web.tracked();
        let mut views = self.setup.web.guards();
        tracked.retain(|tracked| {
            let id = &tracked.probe().id;
            is_of(
                &self.setup.share,
                id.namespace.as_str(),
                id.release.as_str(),
            )
        });
        views.retain(|view| is_of(&self.setup.share, &view.namespace, &view.release));
        let promises = &self.orders.promises;
        let is_same = tracked.len() == self.probes.0.len()
            && tracked
                .iter()
                .zip(&self.probes.0)
                .all(|(one, other)| Arc::ptr_eq(one, other));
        if !is_same {
            let by_id = tracked.iter();
            let by_id = by_id.map(|tracked| (tracked.probe().id.clone(), Arc::clone(tracked)));
            self.probes = (tracked.clone(), by_id.collect());
        }
        let by_id = &self.probes.1;
        budgets::book(&mut self.kept.accounts, promises, &views, by_id);
        let metrics = &self.setup.metrics;
        let accounts = &self.kept.accounts;
        self.looked
            .look(promises, accounts, by_id, metrics, clock::now());
        let mut book = std::mem::take(&mut self.kept.book);
        let mut looked = book.look(now);
        let unknown = self.conditions(&tracked, &views, |found| looked.holds(found));
        for condition in self.looked.conditions() {
            looked.holds(condition.clone());
        }
        let changed = looked.end(|labels| unknown.is_known(labels));
        self.kept.book = book;
        let objectives = self.looked.views();
        for view in &objectives {
            let what = || {
                view.probe.as_deref().map_or_else(
                    || view.objective.to_owned(),
                    |probe| format!("{} of {probe}", view.objective),
                )
            };
            let is_spent = view.budget_remaining <= 0.0;
            let crew = &self.setup.crew;
            crew.is_spent(&view.namespace, &view.release, what, is_spent);
        }
        self.setup
            .web
            .show_objectives(&self.setup.share, objectives);
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
            for sending in self.peers.values() {
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

    /// Puts the alerts before those who ask.
    fn show(&mut self) {
        // Of ten thousand it is much work, and mostly the same.
        let peers = self.peers.values();
        let versions = peers.map(|sending| sending.peer.version()).collect();
        let version = Some((self.kept.book.version(), versions));
        if self.shown == version {
            return;
        }
        self.shown = version;
        let mut counts = [0; 3];
        let names: Vec<(Arc<str>, &Sending)> = self
            .peers
            .values()
            .map(|sending| (sending.peer.name().into(), sending))
            .collect();
        // Mostly the same have all of them, and of ten thousand it counts.
        let mut shared: Arc<[Arc<str>]> = Arc::default();
        let views = self.kept.book.alerts().iter().map(|alert| {
            let (at, state) = match alert.state {
                State::Pending { .. } => (0, "pending"),
                State::Firing { .. } => (1, "firing"),
                State::Resolved(_) => (2, "resolved"),
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
            let is_pending = matches!(alert.state, State::Pending { .. });
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
        let now = Counts {
            alerts: counts,
            left_out: self.kept.book.left_out,
        };
        let alerting = &self.setup.metrics.alerting;
        alerting.stand(&mut self.counted, now);
        self.setup.web.show_alerts(&self.setup.share, views);
    }

    /// Begins to write the book, beside the loop. While it is being written, only the newest waits to be written next.
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
        let (kind, namespace, release) = place(&self.setup.share);
        self.saving = Some(tokio::task::spawn_blocking(move || {
            store
                .save(kind, &namespace, &release, &kept, now)
                .map_err(|error| error.to_string())?;
            Ok(None)
        }));
    }

    fn on_written(&mut self, written: Result<Option<Kept>, String>) {
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

/// How the writing ended that is under way; waits for ever where there is none.
async fn written(saving: &mut Option<Saving>) -> Result<Option<Kept>, String> {
    let Some(task) = saving else {
        return std::future::pending().await;
    };
    let written = task.await.map_err(|error| error.to_string());
    *saving = None;
    written.flatten()
}

/// Where a book is stored.
type StoredAt = (Stored, Namespace, ReleaseName);

/// Alerts of all releases are stored under a name of their own.
fn place(share: &Share) -> StoredAt {
    let (kind, namespace, release) = match share {
        Share::Release(namespace, release) => {
            (Stored::ReleaseAlerts, namespace.as_str(), release.as_str())
        }
        Share::All | Share::Ourselves => (Stored::Alerts, "leadsman", "leadsman"),
    };
    (kind, Namespace::new(namespace), ReleaseName::new(release))
}

/// Whether a share has to do with a release.
fn is_of(share: &Share, namespace: &str, release: &str) -> bool {
    match share {
        Share::All => true,
        // What belongs to no release is told by each replica of itself.
        Share::Ourselves => release.is_empty(),
        Share::Release(own, name) => own == namespace && name == release,
    }
}

/// What was stored; an error when that is not known at the moment.
fn load(store: &Store, place: &StoredAt, now: Time) -> Result<Kept, String> {
    let (kind, namespace, release) = place;
    let why = match store.load::<Kept>(*kind, namespace, release, now) {
        Found::Nothing => return Ok(Kept::default()),
        Found::Unknown(why) => return Err(why),
        Found::State(kept) => match kept.book.clone().bounded(now) {
            Ok(book) => return Ok(Kept { book, ..kept }),
            Err(why) => why,
        },
        Found::SetAside(why) => why,
    };
    tracing::warn!("The stored alerts are not used: {why}");
    Ok(Kept::default())
}

/// Names what links begin with where the configuration does not: whoever installs us knows the address of the Service
/// before us, and a setting of its own would hide the user's.
const DEFAULT_URL: &str = "LEADSMAN_DEFAULT_URL";

/// What links begin with, where nothing is said: what our installation says, or this host and the port.
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
