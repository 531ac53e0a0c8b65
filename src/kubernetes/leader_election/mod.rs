//! Leader election: the leader is the holder of a Lease of coordination.k8s.io.
//!
//! Invariants:
//! - there is at most one leader: a holder that could not renew for `lease.deadline` stops acting, counted from the
//!   moment before its last successful request; others wait for `lease.duration`, which is longer, counted from the
//!   moment after they saw that;
//! - only the local monotonic clock decides what has expired; the times in the Lease are for people;
//! - each write names the resourceVersion that was read, so of two candidates one wins;
//! - a holder that renewed too late steps down, even if the API server accepted it: its work has ended meanwhile;
//! - each holder has a higher fencing token than all before, even if the Lease was deleted in between;
//! - each of several Leases is independent: a request to transfer one is only a hint to its holder.

mod balance;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

pub use balance::LeaseBalance;

use crate::config::settings::LeaseTimes;
use crate::core::units::Moment;
use crate::platform::clock;
use crate::platform::permit::{HeldLease, Permit};

/// Annotation: the URL at which the holder answers other replicas.
const ADDRESS: &str = "leadsman.io/address";

/// Annotation: the holder's fencing token. The Lease's count of transitions would start again after a deletion.
const FENCE: &str = "leadsman.io/fence";

/// Annotation: the identity of a replica with fewer Leases that requests this one.
const WANTED_BY: &str = "leadsman.io/wanted-by";

/// A request that was not repeated within this time has expired.
const WISH_LASTS: Duration = Duration::from_secs(15);

/// How long a replica leaves a Lease alone after giving it to another one.
const SIT_OUT: Duration = Duration::from_secs(5);

/// A new Lease starts with the seconds since 2025, more than there can have been transitions.
const FENCE_EPOCH: i64 = 1_735_689_600;

/// Maximum duration of one request: several fit into the deadline.
const PATIENCE: Duration = Duration::from_secs(3);

/// Interval at which candidates read the Lease.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Pause after a failed request.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A Lease with a longer duration is not believed.
const LONGEST: Duration = Duration::from_secs(3600);

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeaderStatus {
    /// This replica.
    Leads {
        /// Fencing token: higher than that of all leaders before.
        fence: u64,
    },
    /// Another replica, or none.
    Follows {
        /// The leader, if known.
        leader: Option<Leader>,
    },
}

/// Another replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// Its name in the Lease.
    pub identity: String,
    /// The URL at which it answers.
    pub address: Option<String>,
}

/// Observes the Lease.
pub trait LeaseObserver: Send + Sync {
    /// Whether this replica holds it.
    fn leadership(&self, is_leading: bool);
    /// It could not be read or renewed.
    fn failed(&self);
    /// The leader changed.
    fn changed(&self);
}

/// A candidate for the Lease.
pub struct LeaderElector {
    api: Api<Lease>,
    name: String,
    identity: String,
    address: Option<String>,
    times: LeaseTimes,
    meter: Arc<dyn LeaseObserver>,
    held: watch::Sender<Option<HeldLease>>,
    status: watch::Sender<LeaderStatus>,
    /// The highest token that was seen.
    highest: AtomicU64,
    /// The other Leases of the same replicas.
    balance: Option<Arc<LeaseBalance>>,
    wanted: watch::Sender<Option<TransferRequest>>,
    over: Arc<Notify>,
}

/// Who requests a Lease that we hold, and when that was last seen.
type TransferRequest = (String, Moment);

/// Transfers a held Lease to a replica that has fewer.
#[derive(Debug, Clone)]
pub struct Transfer {
    wanted: watch::Receiver<Option<TransferRequest>>,
    over: Arc<Notify>,
    status: watch::Receiver<LeaderStatus>,
}

impl Transfer {
    /// Who requests it, while we hold it.
    pub fn wanted_by(&self) -> Option<String> {
        let wanted = self.wanted.borrow();
        let (who, said) = wanted.as_ref()?;
        // Whoever is still there says it again.
        (clock::now().since(*said) < WISH_LASTS).then(|| who.clone())
    }

    /// Gives it back; when this returns, we do not act.
    pub async fn hand_over(&mut self) {
        self.over.notify_one();
        let follows = |status: &LeaderStatus| matches!(status, LeaderStatus::Follows { .. });
        // Whoever held it may have ended altogether.
        let _ = self.status.wait_for(follows).await;
    }
}

/// The Lease as last read or written, and since when it is unchanged.
struct LeaseView {
    lease: Lease,
    since: Moment,
}

/// Why there is no answer.
enum LeaseError {
    /// Another replica was faster, or the Lease is gone.
    Changed,
    /// No answer, or a refusal.
    Failed(String),
}

impl LeaderElector {
    /// Sends no request before [`Self::run`]. `identity` identifies this process among all others, including earlier
    /// ones.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is another thing, given once"
    )]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        address: Option<String>,
        times: LeaseTimes,
        balance: Option<Arc<LeaseBalance>>,
        meter: Arc<dyn LeaseObserver>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
            address,
            times,
            meter,
            held: watch::Sender::new(None),
            status: watch::Sender::new(LeaderStatus::Follows { leader: None }),
            highest: AtomicU64::new(0),
            balance,
            wanted: watch::Sender::new(None),
            over: Arc::new(Notify::new()),
        }
    }

    /// The handle to transfer it.
    pub fn transfer(&self) -> Transfer {
        Transfer {
            wanted: self.wanted.subscribe(),
            over: Arc::clone(&self.over),
            status: self.status.subscribe(),
        }
    }

    /// The permit: whether this replica may act, and until when.
    pub fn permit(&self) -> Permit {
        Permit::of(self.held.subscribe())
    }

    /// Who leads.
    pub fn status(&self) -> watch::Receiver<LeaderStatus> {
        self.status.subscribe()
    }

    /// Is a candidate until `stop` is cancelled; then gives the Lease back, so that another replica need not wait.
    pub async fn run(self, stop: CancellationToken) {
        let mut seen: Option<LeaseView> = None;
        loop {
            let wait = if self.leadership().is_some() {
                self.lead(&mut seen).await
            } else {
                self.follow(&mut seen).await
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.over.notified() => {
                    let wanted = self.wanted.send_replace(None);
                    self.give_back(seen.take(), wanted.map(|(who, _)| who)).await;
                    tokio::select! {
                        () = stop.cancelled() => break,
                        () = tokio::time::sleep(SIT_OUT) => {}
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
        self.give_back(seen, None).await;
        if let Some(balance) = &self.balance {
            balance.forget(&self.name);
        }
    }

    /// Gives the Lease back at once, if we hold it; `to` may take it before all others.
    async fn give_back(&self, seen: Option<LeaseView>, to: Option<String>) {
        if let (Some(_), Some(seen)) = (self.leadership(), seen) {
            self.step_down(None);
            let mut lease = seen.lease;
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            if let Some(to) = to {
                let annotations = lease.metadata.annotations.get_or_insert_default();
                annotations.insert(WANTED_BY.into(), to);
            }
            // Whoever waits gets it without this a little later.
            if self.write(&lease).await.is_ok() {
                self.note(&lease);
                tracing::info!(lease = self.name, "Gave the Lease back");
            }
        }
    }

    fn leadership(&self) -> Option<u64> {
        match *self.status.borrow() {
            LeaderStatus::Leads { fence } => Some(fence),
            LeaderStatus::Follows { .. } => None,
        }
    }

    /// Renews it. Returns the wait before the next renewal.
    async fn lead(&self, seen: &mut Option<LeaseView>) -> Duration {
        let asked = clock::now();
        let held = *self.held.borrow();
        let Some(held) = held.filter(|held| asked < held.until) else {
            return self.is_late(seen);
        };
        let Some(known) = seen else {
            self.step_down(None);
            return Duration::ZERO;
        };
        let mut lease = known.lease.clone();
        lease.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
        // It has been heard; who still wants it says so again.
        if let Some(who) = take_wish(&mut lease) {
            self.wanted.send_replace(Some((who, asked)));
        }
        let left = held.until.since(asked);
        let params = PostParams::default();
        let written = self.ask_for(left, self.api.replace(&self.name, &params, &lease));
        match written.await {
            // Guards look at the clock as well, and have ended: who acts again has to begin again.
            _ if held.until <= clock::now() => self.is_late(seen),
            Ok(lease) => {
                self.held.send_replace(Some(HeldLease {
                    until: asked + self.times.deadline,
                    ..held
                }));
                *seen = Some(LeaseView {
                    lease,
                    since: asked,
                });
                self.times.renew
            }
            Err(LeaseError::Changed) => {
                // Who edits a label of it takes nothing from us.
                match self.read().await {
                    Ok(Some(lease)) if holder(&lease) == self.identity => {
                        known.lease = lease;
                        Duration::ZERO
                    }
                    Ok(_) => {
                        tracing::warn!("Somebody else has taken the Lease");
                        self.step_down(None);
                        *seen = None;
                        Duration::ZERO
                    }
                    Err(_) => TRY_AGAIN,
                }
            }
            Err(LeaseError::Failed(why)) => {
                self.meter.failed();
                tracing::warn!(why, "The Lease cannot be renewed at the moment");
                TRY_AGAIN
            }
        }
    }

    fn is_late(&self, seen: &mut Option<LeaseView>) -> Duration {
        tracing::warn!("The Lease could not be renewed in time; another replica may act now");
        self.step_down(None);
        // Whether it was renewed after all is seen when it is looked at.
        *seen = None;
        Duration::ZERO
    }

    /// Reads it, and takes it if it is free. Returns the wait before the next read.
    async fn follow(&self, seen: &mut Option<LeaseView>) -> Duration {
        let found = match self.read().await {
            Ok(found) => found,
            Err(LeaseError::Changed) => return TRY_AGAIN,
            Err(LeaseError::Failed(why)) => {
                self.meter.failed();
                tracing::warn!(why, "The Lease cannot be read at the moment");
                // What was seen ages all the same: its holder may renew what we do not see, so nothing is taken before
                // it was looked at again.
                return TRY_AGAIN;
            }
        };
        let now = clock::now();
        let Some(lease) = found else {
            // Somebody has deleted it. Its holder may not know that yet.
            let expires = seen.as_ref().and_then(|seen| {
                let is_held = !holder(&seen.lease).is_empty();
                is_held.then(|| seen.since + lasts(&seen.lease, self.times.duration))
            });
            return match expires.filter(|expires| *expires > now) {
                Some(expires) => LOOK_EVERY.min(expires.since(now)),
                None => self.take(None, seen).await,
            };
        };
        self.note(&lease);
        let is_same = seen.as_ref().is_some_and(|seen| {
            seen.lease.metadata.resource_version == lease.metadata.resource_version
        });
        if !is_same {
            *seen = Some(LeaseView {
                lease: lease.clone(),
                since: now,
            });
        }
        let since = seen.as_ref().map_or(now, |seen| seen.since);
        let who = holder(&lease);
        let expires = since + lasts(&lease, self.times.duration);
        // Nobody else has our identity: we have lost it, or never heard that we got it.
        if who.is_empty() || who == self.identity || expires <= now {
            let free_since = if who.is_empty() { since } else { expires };
            if let Some(left) = self.left_to_others(&lease, free_since) {
                return left;
            }
            return self.take(Some(lease), seen).await;
        }
        if let Some(balance) = &self.balance
            // Only while its holder lives: a word on it looks like a sign of life.
            && now.since(since) <= self.times.renew * 2
            && balance.wishes_for(&self.name, now)
        {
            self.wish_for(lease.clone()).await;
        }
        let leader = Leader {
            identity: who.to_owned(),
            address: address(&lease),
        };
        self.is_led_by(Some(leader));
        LOOK_EVERY.min(expires.since(now))
    }

    /// Whether to leave a free Lease to another replica for now, and how long.
    fn left_to_others(&self, lease: &Lease, since: Moment) -> Option<Duration> {
        let balance = self.balance.as_ref()?;
        let annotations = lease.metadata.annotations.as_ref();
        let wanted = annotations.and_then(|all| all.get(WANTED_BY));
        let wait = match wanted {
            Some(who) if *who == self.identity => return None,
            Some(_) => SIT_OUT,
            None => balance.wait(),
        };
        let left = (since + wait).since(clock::now());
        (!left.is_zero()).then(|| left.min(LOOK_EVERY))
    }

    /// Tells the holder that we have fewer. A lost request does no harm.
    async fn wish_for(&self, mut lease: Lease) {
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(WANTED_BY.into(), self.identity.clone());
        if self.write(&lease).await.is_ok() {
            tracing::info!(lease = self.name, "Asked for the Lease: others hold more");
        }
    }

    async fn take(&self, free: Option<Lease>, seen: &mut Option<LeaseView>) -> Duration {
        let asked = clock::now();
        let now = Some(MicroTime(Timestamp::now()));
        let is_new = free.is_none();
        let mut lease = free.unwrap_or_else(|| Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: None,
        });
        let before = lease.spec.take().unwrap_or_default();
        let transitions = before.lease_transitions.unwrap_or(0).max(0);
        let transitions = transitions.saturating_add(1);
        let fence = self.next_fence();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.times.duration.as_secs()).ok(),
            lease_transitions: Some(transitions),
            acquire_time: now.clone(),
            renew_time: now,
            ..before
        });
        let annotations = lease.metadata.annotations.get_or_insert_default();
        annotations.insert(FENCE.into(), fence.to_string());
        annotations.remove(WANTED_BY);
        match &self.address {
            Some(address) => annotations.insert(ADDRESS.into(), address.clone()),
            None => annotations.remove(ADDRESS),
        };
        let written = if is_new {
            self.ask(self.api.create(&PostParams::default(), &lease))
                .await
        } else {
            self.write(&lease).await
        };
        match written {
            // That took longer than it may last.
            Ok(_) if asked + self.times.deadline <= clock::now() => Duration::ZERO,
            Ok(lease) => {
                self.note(&lease);
                *seen = Some(LeaseView {
                    lease,
                    since: asked,
                });
                tracing::info!(
                    lease = self.name,
                    identity = self.identity,
                    fence,
                    "This replica acts from now on"
                );
                self.wanted.send_replace(None);
                self.held.send_replace(Some(HeldLease {
                    until: asked + self.times.deadline,
                    fence,
                }));
                self.status.send_replace(LeaderStatus::Leads { fence });
                self.meter.leadership(true);
                self.meter.changed();
                self.times.renew
            }
            Err(LeaseError::Changed) => Duration::ZERO,
            Err(LeaseError::Failed(why)) => {
                self.meter.failed();
                tracing::warn!(why, "The Lease is free and cannot be taken at the moment");
                TRY_AGAIN
            }
        }
    }

    /// Remembers its token and its holder.
    fn note(&self, lease: &Lease) {
        if let Some(balance) = &self.balance {
            balance.note(&self.name, holder(lease));
        }
        let annotations = lease.metadata.annotations.as_ref();
        let fence = annotations.and_then(|all| all.get(FENCE)?.parse().ok());
        self.highest
            .fetch_max(fence.unwrap_or(0), Ordering::Relaxed);
    }

    /// A token higher than all that were seen, or, without any, than all that can have existed.
    fn next_fence(&self) -> u64 {
        let highest = self.highest.load(Ordering::Relaxed);
        if highest > 0 {
            return highest + 1;
        }
        let since = Timestamp::now().as_second() - FENCE_EPOCH;
        u64::try_from(since).unwrap_or(0).max(1)
    }

    /// Stops acting.
    fn step_down(&self, leader: Option<Leader>) {
        // First of all: whoever is about to write looks at this.
        self.held.send_replace(None);
        self.meter.leadership(false);
        self.is_led_by(leader);
    }

    fn is_led_by(&self, leader: Option<Leader>) {
        let is_new = self.status.send_if_modified(|status| {
            let now = LeaderStatus::Follows { leader };
            let is_new = *status != now;
            *status = now;
            is_new
        });
        if is_new {
            self.meter.changed();
        }
    }

    async fn read(&self) -> Result<Option<Lease>, LeaseError> {
        self.ask(self.api.get_opt(&self.name)).await
    }

    async fn write(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let params = PostParams::default();
        self.ask(self.api.replace(&self.name, &params, lease)).await
    }

    async fn ask<T>(
        &self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, LeaseError> {
        self.ask_for(PATIENCE, request).await
    }

    /// Sends a request with a limit, at most [`PATIENCE`].
    async fn ask_for<T>(
        &self,
        patience: Duration,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, LeaseError> {
        match tokio::time::timeout(patience.min(PATIENCE), request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                Err(LeaseError::Changed)
            }
            Ok(Err(kube::Error::Api(status))) => Err(LeaseError::Failed(format!(
                "the API server says {} {} of the Lease {}",
                status.code, status.reason, self.name
            ))),
            Ok(Err(_)) => Err(LeaseError::Failed(
                "the API server cannot be reached".into(),
            )),
            Err(_) => Err(LeaseError::Failed(format!(
                "the API server does not answer within {} s",
                PATIENCE.as_secs()
            ))),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|spec| spec.holder_identity.as_deref());
    holder.unwrap_or("")
}

/// Removes and returns the name of the replica that requests it.
fn take_wish(lease: &mut Lease) -> Option<String> {
    let annotations = lease.metadata.annotations.as_mut()?;
    annotations.remove(WANTED_BY)
}

fn address(lease: &Lease) -> Option<String> {
    let annotations = lease.metadata.annotations.as_ref()?;
    annotations.get(ADDRESS).cloned()
}

/// The duration by the holder's own word; at least ours, since the holder counts with its own configuration.
fn lasts(lease: &Lease, ours: Duration) -> Duration {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| spec.lease_duration_seconds);
    let theirs = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    theirs
        .map_or(ours, Duration::from_secs)
        .max(ours)
        .min(LONGEST)
}

#[cfg(test)]
mod tests;
