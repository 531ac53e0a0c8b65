//! Whether this replica acts: always if it is alone, else while it holds the Lease. There is one Lease for all
//! releases, or one for each, which spreads them over the replicas.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::settings::{LeaseConfig, ReleaseConfig};
use crate::core::units::{Namespace, ReleaseName};
use crate::http::{LeaderProxy, LeaderRoute, Routing, Shard};
use crate::kubernetes::leader_election::{
    LeaderElector, LeaderStatus, LeaseBalance, LeaseObserver, Transfer,
};
use crate::metrics::Metrics;
use crate::platform::permit::Permit;
use crate::storage::StateStore;

/// Maximum time to give the Lease back.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// A release by namespace and name.
pub(super) type ReleaseKey = (Namespace, ReleaseName);

/// Leadership of one shard.
pub(super) struct ShardLeadership {
    permit: Permit,
    status: watch::Receiver<LeaderStatus>,
    /// The status that the daemon has acted upon.
    followed: LeaderStatus,
    /// Notified when the alert evaluator of this shard may have something new to send.
    changed: Arc<Notify>,
    candidate: Option<RunningElector>,
}

/// A running candidate for one Lease.
struct RunningElector {
    stop: CancellationToken,
    task: JoinHandle<()>,
    transfer: Transfer,
}

/// Leadership of all shards that this replica leads or is a candidate for.
pub(super) struct Leadership {
    shards: BTreeMap<Shard, ShardLeadership>,
    of_replicas: Option<ReplicaSetup>,
    /// Notified when the leader of any shard changes.
    changes: Arc<Notify>,
}

/// What is needed where there may be other replicas.
struct ReplicaSetup {
    client: kube::Client,
    namespace: String,
    lease: LeaseConfig,
    identity: String,
    balance: Option<Arc<LeaseBalance>>,
    held: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    store: Option<Arc<StateStore>>,
    ended: CancellationToken,
}

/// Metrics of one Lease.
struct LeaseMetrics {
    metrics: Arc<Metrics>,
    shard: Shard,
    holds: AtomicBool,
    /// Number of Leases that this replica holds.
    held: Arc<AtomicUsize>,
    changes: Arc<Notify>,
}

impl LeaseObserver for LeaseMetrics {
    fn leadership(&self, is_leading: bool) {
        if self.holds.swap(is_leading, Ordering::Relaxed) != is_leading {
            let held = if is_leading {
                self.held.fetch_add(1, Ordering::Relaxed) + 1
            } else {
                self.held.fetch_sub(1, Ordering::Relaxed) - 1
            };
            self.metrics.leadership(held);
        }
        if let Shard::Release(namespace, release) = &self.shard {
            self.metrics.leads_release(namespace, release, is_leading);
        }
    }

    fn failed(&self) {
        self.metrics.lease_failed();
    }

    fn changed(&self) {
        self.changes.notify_one();
    }
}

impl ShardLeadership {
    fn alone() -> Self {
        // Whoever gives it away may go: what was said last stays.
        let (_, status) = watch::channel(LeaderStatus::Leads { fence: 0 });
        Self {
            permit: Permit::always(),
            status,
            followed: LeaderStatus::Leads { fence: 0 },
            changed: Arc::default(),
            candidate: None,
        }
    }

    /// Whether this replica leads the shard, as far as the daemon has acted upon that.
    pub(super) fn acts(&self) -> bool {
        matches!(self.followed, LeaderStatus::Leads { .. })
    }

    pub(super) fn permit(&self) -> Permit {
        self.permit.clone()
    }

    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

impl Leadership {
    /// Leadership without other replicas.
    pub(super) fn alone() -> Self {
        Self {
            shards: BTreeMap::from([(Shard::All, ShardLeadership::alone())]),
            of_replicas: None,
            changes: Arc::default(),
        }
    }

    /// Becomes a candidate for the Lease. With a Lease for each release, candidates start in [`Self::want`].
    pub(super) fn by(
        client: kube::Client,
        lease: &LeaseConfig,
        metrics: Arc<Metrics>,
        ended: CancellationToken,
    ) -> Self {
        let own = client.default_namespace().to_owned();
        let namespace = lease.namespace.clone().unwrap_or(own);
        metrics.leadership(0);
        let identity = identity(lease);
        let balance = lease.spread.then(|| Arc::new(LeaseBalance::new(&identity)));
        let mut leadership = Self {
            shards: BTreeMap::new(),
            of_replicas: None,
            changes: Arc::default(),
        };
        let replicas = ReplicaSetup {
            client,
            namespace,
            lease: lease.clone(),
            identity,
            balance,
            held: Arc::default(),
            metrics,
            store: None,
            ended,
        };
        if lease.spread {
            // Of itself each tells.
            leadership
                .shards
                .insert(Shard::Ourselves, ShardLeadership::alone());
        } else {
            let shard_leadership = replicas.begin(&Shard::All, &lease.name, &leadership.changes);
            leadership.shards.insert(Shard::All, shard_leadership);
        }
        leadership.of_replicas = Some(replicas);
        leadership
    }

    /// Makes the store use each release's own permit.
    pub(super) fn store_by_permits(&mut self, store: &Arc<StateStore>) {
        if let Some(replicas) = &mut self.of_replicas {
            replicas.store = Some(Arc::clone(store));
        }
    }

    /// The permit for everything without a Lease of its own.
    pub(super) fn permit(&self) -> Permit {
        let all = self.shards.get(&Shard::All);
        all.map_or_else(Permit::never, ShardLeadership::permit)
    }

    /// Name of this replica, if several act.
    pub(super) fn replica(&self) -> Option<String> {
        let replicas = spread(self.of_replicas.as_ref())?;
        let name = replicas.identity.rsplit_once('_');
        name.map(|(name, _)| name.to_owned())
    }

    /// Notified when a leader changes; then the daemon calls [`Self::let_go`] and [`Self::catch_up`].
    pub(super) fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.changes)
    }

    /// Becomes a candidate for each of these releases, if each has a Lease of its own.
    pub(super) fn want(&mut self, releases: &[ReleaseConfig]) {
        let Some(replicas) = spread(self.of_replicas.as_ref()) else {
            return;
        };
        for release in releases {
            let shard = shard_of(&release.namespace, &release.name);
            if self.shards.contains_key(&shard) {
                continue;
            }
            let (namespace, name) = (&release.namespace, &release.name);
            let lease = format!("{}.{namespace}.{name}", replicas.lease.name);
            let shard_leadership = replicas.begin(&shard, &lease, &self.changes);
            if let Some(store) = &replicas.store {
                store.permit_for(namespace, name, Some(shard_leadership.permit()));
            }
            replicas
                .metrics
                .leads_release(namespace.as_str(), name.as_str(), false);
            self.shards.insert(shard, shard_leadership);
        }
    }

    /// Gives back the Leases of all other releases.
    pub(super) async fn want_no_other(&mut self, releases: &[ReleaseConfig]) {
        let Some(replicas) = spread(self.of_replicas.as_ref()) else {
            return;
        };
        let wanted: HashSet<Shard> = releases
            .iter()
            .map(|release| shard_of(&release.namespace, &release.name))
            .collect();
        let mut gone = Vec::new();
        self.shards.retain(|shard, shard_leadership| {
            let Shard::Release(namespace, release) = shard else {
                return true;
            };
            let keep = wanted.contains(shard);
            if !keep {
                gone.extend(shard_leadership.candidate.take());
                let key = (
                    Namespace::new(namespace.as_str()),
                    ReleaseName::new(release.as_str()),
                );
                if let Some(store) = &replicas.store {
                    store.permit_for(&key.0, &key.1, None);
                }
                replicas.metrics.forget_release(namespace, release);
            }
            keep
        });
        end(gone).await;
        if self.shards.keys().all(|shard| *shard == Shard::Ourselves) {
            // There is nothing to act for, so nobody is missing.
            replicas.metrics.leadership(1);
        }
    }

    /// The leadership of a release's shard.
    pub(super) fn of(&self, release: &ReleaseConfig) -> Option<&ShardLeadership> {
        let all = self.shards.get(&Shard::All);
        all.or_else(|| {
            self.shards
                .get(&shard_of(&release.namespace, &release.name))
        })
    }

    /// The shards that this replica leads.
    pub(super) fn acting(&self) -> impl Iterator<Item = (&Shard, &ShardLeadership)> {
        self.shards
            .iter()
            .filter(|(_, shard_leadership)| shard_leadership.acts())
    }

    /// Drops leadership that was lost or re-acquired since the last call (another replica may have acted in between).
    /// Returns whether anything changed.
    pub(super) fn let_go(&mut self) -> bool {
        let mut any = false;
        for shard_leadership in self.shards.values_mut() {
            if shard_leadership.acts()
                && *shard_leadership.status.borrow() != shard_leadership.followed
            {
                shard_leadership.followed = LeaderStatus::Follows { leader: None };
                any = true;
            }
        }
        any
    }

    /// Records the current status as acted upon. Returns whether it is new.
    pub(super) fn catch_up(&mut self) -> bool {
        let mut any = false;
        for shard_leadership in self.shards.values_mut() {
            let now = shard_leadership.status.borrow().clone();
            any |= shard_leadership.followed != now;
            shard_leadership.followed = now;
        }
        any
    }

    /// Idle releases to hand over to a replica that has fewer.
    pub(super) fn to_hand_over(&self, is_at_rest: impl Fn(&ReleaseKey) -> bool) -> Vec<Shard> {
        let balance = self
            .of_replicas
            .as_ref()
            .and_then(|all| all.balance.as_ref());
        let Some(balance) = balance else {
            return Vec::new();
        };
        let mut given: HashMap<String, usize> = HashMap::new();
        let mut shards = Vec::new();
        for (shard, shard_leadership) in self.acting() {
            let Shard::Release(namespace, release) = shard else {
                continue;
            };
            let wanted = shard_leadership
                .candidate
                .as_ref()
                .and_then(|running| running.transfer.wanted_by());
            let Some(by) = wanted else { continue };
            let key = (
                Namespace::new(namespace.as_str()),
                ReleaseName::new(release.as_str()),
            );
            let count = given.entry(by.clone()).or_default();
            if balance.is_fair(&by, *count) && is_at_rest(&key) {
                *count += 1;
                shards.push(shard.clone());
            }
        }
        shards
    }

    /// Stops leading these shards, before their Leases are [handed over](Self::hand_over).
    pub(super) fn retire(&mut self, shards: &[Shard]) {
        for shard in shards {
            if let Some(shard_leadership) = self.shards.get_mut(shard) {
                shard_leadership.followed = LeaderStatus::Follows { leader: None };
            }
        }
    }

    /// Hands these Leases over to the replicas that asked for them.
    pub(super) async fn hand_over(&mut self, shards: &[Shard]) {
        for shard in shards {
            let shard_leadership = self.shards.get_mut(shard);
            if let Some(running) =
                shard_leadership.and_then(|shard_leadership| shard_leadership.candidate.as_mut())
            {
                // Otherwise it expires by itself, or is led anew.
                let _ = tokio::time::timeout(GIVE_BACK, running.transfer.hand_over()).await;
            }
        }
    }

    /// Gives all Leases back, so that other replicas act at once.
    pub(super) async fn give_back(&mut self) {
        let all = self.shards.values_mut();
        end(all
            .filter_map(|shard_leadership| shard_leadership.candidate.take())
            .collect())
        .await;
    }

    /// The routing table of the HTTP server: which replica answers for which release.
    pub(super) fn answers(&self, known: &mut LeaderProxies) -> Routing {
        let lease = self.of_replicas.as_ref().map(|replicas| &replicas.lease);
        let mut met = LeaderProxies::default();
        let mut lead = |shard_leadership: &ShardLeadership| {
            lead(&shard_leadership.followed, lease, known, &mut met)
        };
        let answers = match self.shards.get(&Shard::All) {
            Some(shard_leadership) => Routing::One(lead(shard_leadership)),
            None => Routing::Each(
                self.shards
                    .iter()
                    .filter_map(|(shard, shard_leadership)| match shard {
                        Shard::Release(namespace, release) => {
                            Some(((namespace.clone(), release.clone()), lead(shard_leadership)))
                        }
                        Shard::All | Shard::Ourselves => None,
                    })
                    .collect(),
            ),
        };
        *known = met;
        answers
    }
}

impl ReplicaSetup {
    /// Starts a candidate for one Lease.
    fn begin(&self, shard: &Shard, name: &str, changes: &Arc<Notify>) -> ShardLeadership {
        let counted = LeaseMetrics {
            metrics: Arc::clone(&self.metrics),
            shard: shard.clone(),
            holds: AtomicBool::new(false),
            held: Arc::clone(&self.held),
            changes: Arc::clone(changes),
        };
        let candidate = LeaderElector::new(
            self.client.clone(),
            &self.namespace,
            name,
            self.identity.clone(),
            self.lease.address.as_ref().map(ToString::to_string),
            self.lease.times,
            self.balance.clone(),
            Arc::new(counted),
        );
        let (permit, status) = (candidate.permit(), candidate.status());
        let transfer = candidate.transfer();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended = self.ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            candidate.run(stopped).await;
            ended.disarm();
        });
        ShardLeadership {
            permit,
            status,
            followed: LeaderStatus::Follows { leader: None },
            changed: Arc::default(),
            candidate: Some(RunningElector {
                stop,
                task,
                transfer,
            }),
        }
    }
}

/// The setup, if each release has a Lease of its own.
fn spread(replicas: Option<&ReplicaSetup>) -> Option<&ReplicaSetup> {
    replicas.filter(|replicas| replicas.lease.spread)
}

/// Gives Leases back, all at once.
async fn end(running: Vec<RunningElector>) {
    for running in &running {
        running.stop.cancel();
    }
    let until = tokio::time::Instant::now() + GIVE_BACK;
    for running in running {
        // Otherwise it expires by itself.
        let _ = tokio::time::timeout_at(until, running.task).await;
    }
}

pub(super) fn shard_of(namespace: &Namespace, release: &ReleaseName) -> Shard {
    Shard::Release(namespace.to_string(), release.to_string())
}

/// Identity of this process: a pod that restarts has the same name, so the name alone is not enough.
fn identity(lease: &LeaseConfig) -> String {
    let named = lease.identity.clone();
    let host = named.or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| "leadsman".into());
    format!("{host}_{:08x}", fastrand::u32(..))
}

/// Proxies to other replicas by address; they keep their connections.
pub(super) type LeaderProxies = HashMap<String, Arc<LeaderProxy>>;

fn lead(
    status: &LeaderStatus,
    lease: Option<&LeaseConfig>,
    known: &LeaderProxies,
    met: &mut LeaderProxies,
) -> LeaderRoute {
    match status {
        LeaderStatus::Leads { .. } => LeaderRoute::Here,
        LeaderStatus::Follows { leader: None } => LeaderRoute::Nobody,
        LeaderStatus::Follows {
            leader: Some(leader),
        } => {
            let address = leader.address.as_deref();
            let forward = match (address, lease) {
                (Some(address), Some(lease)) => forward(address, lease, known, met),
                _ => Err("it does not say where it answers; set lease.address".into()),
            };
            LeaderRoute::Elsewhere {
                identity: leader.identity.clone(),
                forward,
            }
        }
    }
}

fn forward(
    address: &str,
    lease: &LeaseConfig,
    known: &LeaderProxies,
    met: &mut LeaderProxies,
) -> Result<Arc<LeaderProxy>, String> {
    if let Some(forward) = met.get(address).or_else(|| known.get(address)) {
        let forward = Arc::clone(forward);
        met.insert(address.to_owned(), Arc::clone(&forward));
        return Ok(forward);
    }
    let forward = Arc::new(LeaderProxy::to(address, &lease.tls)?);
    met.insert(address.to_owned(), Arc::clone(&forward));
    Ok(forward)
}
