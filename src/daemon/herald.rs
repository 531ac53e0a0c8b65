//! Who tells people: looks at everything that is known, keeps the book of alerts, and hands them to Alertmanager.
//!
//! Invariants:
//! - what is wrong is found anew at each look, from what is known then; only the book has a memory, and it is stored;
//! - a receiver that hangs, or a name that is not resolved, holds up nothing here.

mod budgets;
mod conditions;
mod messages;
mod news;
mod peers;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use messages::Posting;
use peers::{Place, Sending};

pub(super) use budgets::promises;

use super::runner::Crew;
use crate::alert::Book;
use crate::alert::Condition;
use crate::alert::Kind;
use crate::alert::LabelSet;
use crate::alert::Labels;
use crate::alert::State;
use crate::clock::{self, Timeline};
use crate::config::settings::{Alertmanagers, Receiver};
use crate::metrics::Metrics;
use crate::notify::Message;
use crate::permit::Permit;
use crate::serve;
use crate::serve::status::{AlertView, GuardView};
use crate::store::{Found, Kind as Stored, Store};
use crate::track::Tracked;
use crate::units::{Dated, Moment, Namespace, ProbeId, ReleaseName, Shift, Time};
use crate::window::Span;

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
    /// What was shown last: the versions of the book and of the Alertmanagers.
    shown: Option<(u64, Vec<u64>)>,
    saved: Time,
    is_dirty: bool,
    save_fails: bool,
}

impl Herald {
    pub(super) fn new(setup: Setup) -> Self {
        let now = setup.timeline.now();
        let orders = Arc::clone(&setup.orders.borrow());
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
            shown: None,
            saved: now,
            is_dirty: false,
            save_fails: false,
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
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = permit.lost() => break,
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
                () = self.setup.changed.notified() => {
                    tokio::time::sleep(TOGETHER).await;
                    self.look().await;
                }
                () = tokio::time::sleep(EVERY) => self.look().await,
            }
        }
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
        self.is_dirty |= !self.outboxes.is_empty();
        let is_worth_it = self.is_dirty || !self.orders.promises.is_empty();
        if is_worth_it && self.is_read && self.setup.permit.holds() {
            let _ = tokio::time::timeout(LAST_WRITE, self.save()).await;
        }
    }

    fn take_orders(&mut self) {
        let orders = Arc::clone(&self.setup.orders.borrow_and_update());
        if orders.alertmanagers != self.orders.alertmanagers || orders.page != self.orders.page {
            for (_, sending) in self.peers.drain() {
                sending.stop.cancel();
            }
            self.resolving.abort_all();
            self.unresolved.clear();
        }
        if orders.promises != self.orders.promises {
            self.setup.metrics.objectives.clear();
            self.looked.forget();
        }
        let others = orders.receivers != self.orders.receivers;
        self.orders = orders;
        if others {
            self.keep_waiting();
            self.begin_outboxes_anew();
        }
    }

    fn begin_outboxes_anew(&mut self) {
        for posting in self.outboxes.drain(..) {
            posting.stop.cancel();
        }
        self.open_outboxes();
    }

    /// Reads what was stored, and waits for that as long as people can wait.
    async fn read(&mut self) {
        let until = tokio::time::Instant::now() + READ_PATIENCE;
        while !self.is_read {
            let Err(why) = self.read_now().await else {
                return;
            };
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

    /// Reads what was stored. What we have told or tried to tell meanwhile is not lost by that.
    async fn read_now(&mut self) -> Result<(), String> {
        let Some(store) = self.setup.store.clone() else {
            return Ok(());
        };
        let timeline = self.setup.timeline;
        let kept = tokio::task::spawn_blocking(move || load(&store, timeline.now()));
        let kept = kept.await.map_err(|error| error.to_string())??;
        let own = std::mem::replace(&mut self.kept, kept);
        self.kept.told.extend(own.told);
        for (receiver, messages) in own.waiting {
            let waiting = self.kept.waiting.entry(receiver).or_default();
            waiting.extend(messages);
        }
        self.shown = None;
        self.is_read = true;
        Ok(())
    }

    /// Looks what is wrong, and tells what is new, or is to be told again.
    async fn look(&mut self) {
        let now = self.setup.timeline.now();
        let tracked = self.setup.web.tracked();
        let views = self.setup.web.guards();
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
        let changed = looked.end(|labels| !unknown.contains(&key(labels)));
        self.kept.book = book;
        self.setup.web.show_objectives(self.looked.views());
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
            self.save().await;
        }
    }

    /// Tells what is wrong; gives the releases and probes of which that is not known.
    fn conditions(
        &self,
        tracked: &[Arc<Tracked>],
        views: &[Arc<GuardView>],
        mut found: impl FnMut(Condition),
    ) -> HashSet<Key> {
        let mut unknown = HashSet::new();
        let at = clock::now();
        let mut unwell: HashSet<(String, String)> = HashSet::new();
        for tracked in tracked {
            let id = tracked.probe().id.clone();
            let (is_known, is_well) = {
                let track = tracked.lock();
                (track.is_known(), is_well(&track, at))
            };
            if !is_known {
                unknown.insert((
                    id.namespace.to_string(),
                    id.release.to_string(),
                    id.probe.to_string(),
                ));
            }
            if !is_well {
                unwell.insert((id.namespace.to_string(), id.release.to_string()));
            }
            if let Some(condition) = conditions::of_probe(tracked) {
                found(condition);
            }
        }
        let unix = self.setup.timeline.now().unix_seconds();
        for view in views {
            let release = (view.namespace.clone(), view.release.clone());
            if view.phase.is_empty() {
                // It has just begun, or its state cannot be read.
                if let Some(condition) = conditions::blind(view) {
                    found(condition);
                }
                unknown.insert((release.0, release.1, String::new()));
                continue;
            }
            let is_well = !unwell.contains(&release);
            let release = conditions::of_release(view, is_well, unix);
            for condition in release.into_iter().chain(conditions::blind(view)) {
                found(condition);
            }
        }
        let troubles = self.setup.crew.troubles();
        if !troubles.is_empty() {
            let text = format!(
                "Soundings are void: {}.",
                troubles.join(", ").replace('_', " ")
            );
            found(conditions::of_ourselves(
                Kind::SelfTrouble,
                Labels::new(),
                text,
            ));
        }
        for sending in self.peers.values() {
            if sending.peer.failing_since().is_some() {
                let receiver = sending.peer.name().to_owned();
                let text = format!("Alerts do not arrive at {receiver}.");
                let place = Labels::from([("receiver".to_owned(), receiver)]);
                found(conditions::of_ourselves(Kind::DeliveryFailing, place, text));
            }
        }
        for posting in &self.outboxes {
            if posting.outbox.failing_since().is_some() {
                let receiver = posting.outbox.receiver().name.to_owned();
                let text = format!("Messages do not arrive at the receiver {receiver}.");
                let place = Labels::from([("receiver".to_owned(), receiver)]);
                found(conditions::of_ourselves(Kind::DeliveryFailing, place, text));
            }
        }
        let watchdog = self.orders.alertmanagers.as_ref();
        if watchdog.is_some_and(|settings| settings.watchdog) {
            let text = "This alert always fires; when it does not arrive, no other does.".into();
            found(conditions::of_ourselves(
                Kind::Watchdog,
                Labels::new(),
                text,
            ));
        }
        unknown
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
        let views = self.kept.book.alerts().iter().map(|alert| {
            let (at, state) = match alert.state {
                State::Pending { .. } => (0, "pending"),
                State::Firing { .. } => (1, "firing"),
                State::Resolved { .. } => (2, "resolved"),
            };
            counts[at] += 1;
            let confirmed = names
                .iter()
                .filter(|(_, sending)| sending.peer.has(&alert.labels));
            let span = alert.span();
            AlertView {
                labels: alert.labels.clone(),
                state,
                summary: alert.kind.summary(),
                text: Arc::clone(&alert.text),
                since: span.map(|(since, _)| since.unix_seconds()),
                ended: span.and_then(|(_, ended)| ended.map(Time::unix_seconds)),
                confirmed_by: confirmed.map(|(name, _)| Arc::clone(name)).collect(),
            }
        });
        let views = views.collect();
        self.setup
            .metrics
            .alerting
            .stand(counts, self.kept.book.left_out);
        self.setup.web.show_alerts(views);
    }

    async fn save(&mut self) {
        let Some(store) = self.setup.store.clone() else {
            self.is_dirty = false;
            return;
        };
        let now = self.setup.timeline.now();
        self.saved = now;
        self.keep_waiting();
        if !self.is_read {
            if let Err(why) = self.read_now().await {
                return self.written(Some(&why));
            }
            self.begin_outboxes_anew();
        }
        let kept = self.kept.clone();
        let written = tokio::task::spawn_blocking(move || {
            let (namespace, release) = ours();
            store.save(Stored::Alerts, &namespace, &release, &kept, now)
        });
        let error = match written.await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        self.written(error.as_deref());
    }

    /// What became of writing the book.
    fn written(&mut self, error: Option<&str>) {
        self.is_dirty = error.is_some();
        if let Some(error) = error {
            self.setup.metrics.releases.state_failed();
            if !self.save_fails {
                tracing::error!(
                    error,
                    "The alerts cannot be written; a restart would forget when they began"
                );
            }
        }
        self.save_fails = error.is_some();
    }
}

/// Namespace, release and probe; empty where an alert has none.
type Key = (String, String, String);

fn key(labels: &LabelSet) -> Key {
    let of = |name: &str| labels.get(name).unwrap_or_default().to_owned();
    (of("namespace"), of("release"), of("probe"))
}

/// The alerts are of all releases, and stored under a name of their own.
fn ours() -> (Namespace, ReleaseName) {
    (Namespace::new("leadsman"), ReleaseName::new("leadsman"))
}

/// No bad sounding, and some good ones, in the last five minutes.
fn is_well(track: &crate::track::Track, now: Moment) -> bool {
    let tally = track.tally(Span::Minutes5, now);
    tally.bad == 0 && tally.good > 0
}

/// What was stored; an error when that is not known at the moment.
fn load(store: &Store, now: Time) -> Result<Kept, String> {
    let (namespace, release) = ours();
    let why = match store.load::<Kept>(Stored::Alerts, &namespace, &release, now) {
        Found::Nothing => return Ok(Kept::default()),
        Found::Unknown(why) => return Err(why),
        Found::State(kept) => match kept.book.clone().bounded() {
            Ok(book) => return Ok(Kept { book, ..kept }),
            Err(why) => why,
        },
        Found::SetAside(why) => why,
    };
    tracing::warn!("The stored alerts are not used: {why}");
    Ok(Kept::default())
}

/// What links begin with, where nothing is said: this host and the port.
pub(super) fn default_page(address: SocketAddr) -> Option<Url> {
    let host = std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| "localhost".into());
    Url::parse(&format!("http://{host}:{}/", address.port())).ok()
}
