//! Whether this replica acts: alone always, of several while it holds the Lease. One Lease is for all releases, or each
//! release has one of its own, so that they are spread over the replicas.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::settings::{Lease, Release};
use crate::lease::{Balance, Candidate, Handing, Meter, Standing};
use crate::metrics::Metrics;
use crate::permit::Permit;
use crate::serve::{Answers, Forward, Lead, Share};
use crate::store::Store;
use crate::units::{Namespace, ReleaseName};

/// How long giving the Lease back may take.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// A release, by its namespace and name.
pub(super) type Key = (Namespace, ReleaseName);

/// A share of the work, and who does it.
pub(super) struct Post {
    permit: Permit,
    standing: watch::Receiver<Standing>,
    /// As far as it has been followed.
    followed: Standing,
    /// Something has changed that the herald of this share may have to tell.
    changed: Arc<Notify>,
    candidate: Option<Running>,
}

/// Who wants a Lease.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    handing: Handing,
}

/// All shares that this replica does, or would do.
pub(super) struct Leads {
    posts: BTreeMap<Share, Post>,
    of_replicas: Option<Replicas>,
    /// Who acts has changed somewhere.
    changes: Arc<Notify>,
}

/// There may be other replicas.
struct Replicas {
    client: kube::Client,
    namespace: String,
    lease: Lease,
    identity: String,
    balance: Option<Arc<Balance>>,
    held: Arc<AtomicUsize>,
    metrics: Arc<Metrics>,
    store: Option<Arc<Store>>,
    ended: CancellationToken,
}

/// What becomes known of one Lease, as metrics.
struct Counted {
    metrics: Arc<Metrics>,
    share: Share,
    holds: AtomicBool,
    /// Leases that this replica holds.
    held: Arc<AtomicUsize>,
    changes: Arc<Notify>,
}

impl Meter for Counted {
    fn leads(&self, is_leading: bool) {
        if self.holds.swap(is_leading, Ordering::Relaxed) != is_leading {
            let held = if is_leading {
                self.held.fetch_add(1, Ordering::Relaxed) + 1
            } else {
                self.held.fetch_sub(1, Ordering::Relaxed) - 1
            };
            self.metrics.leads(held);
        }
        if let Share::Release(namespace, release) = &self.share {
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

impl Post {
    fn alone() -> Self {
        // Whoever gives it away may go: what was said last stays.
        let (_, standing) = watch::channel(Standing::Leads { fence: 0 });
        Self {
            permit: Permit::always(),
            standing,
            followed: Standing::Leads { fence: 0 },
            changed: Arc::default(),
            candidate: None,
        }
    }

    /// Whether we act, as far as that has been followed.
    pub(super) fn acts(&self) -> bool {
        matches!(self.followed, Standing::Leads { .. })
    }

    pub(super) fn permit(&self) -> Permit {
        self.permit.clone()
    }

    pub(super) fn changed(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }
}

impl Leads {
    /// There is nobody else.
    pub(super) fn alone() -> Self {
        Self {
            posts: BTreeMap::from([(Share::All, Post::alone())]),
            of_replicas: None,
            changes: Arc::default(),
        }
    }

    /// Wants the Lease from now on; where releases are spread, those of the releases when they are [wanted](Self::want).
    pub(super) fn by(
        client: kube::Client,
        lease: &Lease,
        metrics: Arc<Metrics>,
        ended: CancellationToken,
    ) -> Self {
        let own = client.default_namespace().to_owned();
        let namespace = lease.namespace.clone().unwrap_or(own);
        metrics.leads(0);
        let identity = identity(lease);
        let balance = lease.spread.then(|| Arc::new(Balance::new(&identity)));
        let mut leads = Self {
            posts: BTreeMap::new(),
            of_replicas: None,
            changes: Arc::default(),
        };
        let replicas = Replicas {
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
            leads.posts.insert(Share::Ourselves, Post::alone());
        } else {
            let post = replicas.begin(&Share::All, &lease.name, &leads.changes);
            leads.posts.insert(Share::All, post);
        }
        leads.of_replicas = Some(replicas);
        leads
    }

    /// What is stored of a release is written by its own permit.
    pub(super) fn store_by_permits(&mut self, store: &Arc<Store>) {
        if let Some(replicas) = &mut self.of_replicas {
            replicas.store = Some(Arc::clone(store));
        }
    }

    /// By what everything is written that has no Lease of its own.
    pub(super) fn permit(&self) -> Permit {
        let all = self.posts.get(&Share::All);
        all.map_or_else(Permit::never, Post::permit)
    }

    /// How this replica is called where several act.
    pub(super) fn replica(&self) -> Option<String> {
        let replicas = spread(self.of_replicas.as_ref())?;
        let name = replicas.identity.rsplit_once('_');
        name.map(|(name, _)| name.to_owned())
    }

    /// Told when who acts has changed somewhere; then [`Self::let_go`] and [`Self::catch_up`] follow that.
    pub(super) fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.changes)
    }

    /// Wants a Lease for each of these releases that has none yet, where they are spread.
    pub(super) fn want(&mut self, releases: &[Release]) {
        let Some(replicas) = spread(self.of_replicas.as_ref()) else {
            return;
        };
        for release in releases {
            let share = share_of(&release.namespace, &release.name);
            if self.posts.contains_key(&share) {
                continue;
            }
            let (namespace, name) = (&release.namespace, &release.name);
            let lease = format!("{}.{namespace}.{name}", replicas.lease.name);
            let post = replicas.begin(&share, &lease, &self.changes);
            if let Some(store) = &replicas.store {
                store.permit_for(namespace, name, Some(post.permit()));
            }
            replicas
                .metrics
                .leads_release(namespace.as_str(), name.as_str(), false);
            self.posts.insert(share, post);
        }
    }

    /// Gives back the Leases of releases that are not among these.
    pub(super) async fn want_no_other(&mut self, releases: &[Release]) {
        let Some(replicas) = spread(self.of_replicas.as_ref()) else {
            return;
        };
        let wanted: HashSet<Share> = releases
            .iter()
            .map(|release| share_of(&release.namespace, &release.name))
            .collect();
        let mut gone = Vec::new();
        self.posts.retain(|share, post| {
            let Share::Release(namespace, release) = share else {
                return true;
            };
            let keep = wanted.contains(share);
            if !keep {
                gone.extend(post.candidate.take());
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
        if self.posts.keys().all(|share| *share == Share::Ourselves) {
            // There is nothing to act for, so nobody is missing.
            replicas.metrics.leads(1);
        }
    }

    /// Who does what has to do with a release.
    pub(super) fn of(&self, release: &Release) -> Option<&Post> {
        let all = self.posts.get(&Share::All);
        all.or_else(|| self.posts.get(&share_of(&release.namespace, &release.name)))
    }

    /// The shares that we do.
    pub(super) fn acting(&self) -> impl Iterator<Item = (&Share, &Post)> {
        self.posts.iter().filter(|(_, post)| post.acts())
    }

    /// Ends, as far as that has been followed, what was led and is not any more, or anew: in between another one may have
    /// acted. Whether there is any.
    pub(super) fn let_go(&mut self) -> bool {
        let mut any = false;
        for post in self.posts.values_mut() {
            if post.acts() && *post.standing.borrow() != post.followed {
                post.followed = Standing::Follows { leader: None };
                any = true;
            }
        }
        any
    }

    /// How things stand now has been followed. Whether that is new.
    pub(super) fn catch_up(&mut self) -> bool {
        let mut any = false;
        for post in self.posts.values_mut() {
            let now = post.standing.borrow().clone();
            any |= post.followed != now;
            post.followed = now;
        }
        any
    }

    /// Releases that another replica should have, which has fewer: those of them that are at rest.
    pub(super) fn to_hand_over(&self, is_at_rest: impl Fn(&Key) -> bool) -> Vec<Share> {
        let balance = self
            .of_replicas
            .as_ref()
            .and_then(|all| all.balance.as_ref());
        let Some(balance) = balance else {
            return Vec::new();
        };
        let mut given: HashMap<String, usize> = HashMap::new();
        let mut shares = Vec::new();
        for (share, post) in self.acting() {
            let Share::Release(namespace, release) = share else {
                continue;
            };
            let wanted = post
                .candidate
                .as_ref()
                .and_then(|running| running.handing.wanted_by());
            let Some(by) = wanted else { continue };
            let key = (
                Namespace::new(namespace.as_str()),
                ReleaseName::new(release.as_str()),
            );
            let count = given.entry(by.clone()).or_default();
            if balance.is_fair(&by, *count) && is_at_rest(&key) {
                *count += 1;
                shares.push(share.clone());
            }
        }
        shares
    }

    /// Acts for these no more, before their Leases are [given away](Self::hand_over).
    pub(super) fn retire(&mut self, shares: &[Share]) {
        for share in shares {
            if let Some(post) = self.posts.get_mut(share) {
                post.followed = Standing::Follows { leader: None };
            }
        }
    }

    /// Lets those who want these Leases have them.
    pub(super) async fn hand_over(&mut self, shares: &[Share]) {
        for share in shares {
            let post = self.posts.get_mut(share);
            if let Some(running) = post.and_then(|post| post.candidate.as_mut()) {
                // Otherwise it expires by itself, or is led anew.
                let _ = tokio::time::timeout(GIVE_BACK, running.handing.hand_over()).await;
            }
        }
    }

    /// Lets other replicas act at once.
    pub(super) async fn give_back(&mut self) {
        let all = self.posts.values_mut();
        end(all.filter_map(|post| post.candidate.take()).collect()).await;
    }

    /// Who answers for the releases, for the listener.
    pub(super) fn answers(&self, known: &mut Forwards) -> Answers {
        let lease = self.of_replicas.as_ref().map(|replicas| &replicas.lease);
        let mut met = Forwards::default();
        let mut lead = |post: &Post| lead(&post.followed, lease, known, &mut met);
        let answers = match self.posts.get(&Share::All) {
            Some(post) => Answers::One(lead(post)),
            None => Answers::Each(
                self.posts
                    .iter()
                    .filter_map(|(share, post)| match share {
                        Share::Release(namespace, release) => {
                            Some(((namespace.clone(), release.clone()), lead(post)))
                        }
                        Share::All | Share::Ourselves => None,
                    })
                    .collect(),
            ),
        };
        *known = met;
        answers
    }
}

impl Replicas {
    /// Wants a Lease from now on.
    fn begin(&self, share: &Share, name: &str, changes: &Arc<Notify>) -> Post {
        let counted = Counted {
            metrics: Arc::clone(&self.metrics),
            share: share.clone(),
            holds: AtomicBool::new(false),
            held: Arc::clone(&self.held),
            changes: Arc::clone(changes),
        };
        let candidate = Candidate::new(
            self.client.clone(),
            &self.namespace,
            name,
            self.identity.clone(),
            self.lease.address.as_ref().map(ToString::to_string),
            self.lease.times,
            self.balance.clone(),
            Arc::new(counted),
        );
        let (permit, standing) = (candidate.permit(), candidate.standing());
        let handing = candidate.handing();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let ended = self.ended.clone().drop_guard();
        let task = tokio::spawn(async move {
            candidate.run(stopped).await;
            ended.disarm();
        });
        Post {
            permit,
            standing,
            followed: Standing::Follows { leader: None },
            changed: Arc::default(),
            candidate: Some(Running {
                stop,
                task,
                handing,
            }),
        }
    }
}

/// The replicas, where the releases are spread over them.
fn spread(replicas: Option<&Replicas>) -> Option<&Replicas> {
    replicas.filter(|replicas| replicas.lease.spread)
}

/// Gives Leases back, all at once.
async fn end(running: Vec<Running>) {
    for running in &running {
        running.stop.cancel();
    }
    let until = tokio::time::Instant::now() + GIVE_BACK;
    for running in running {
        // Otherwise it expires by itself.
        let _ = tokio::time::timeout_at(until, running.task).await;
    }
}

pub(super) fn share_of(namespace: &Namespace, release: &ReleaseName) -> Share {
    Share::Release(namespace.to_string(), release.to_string())
}

/// Tells this process from all others: a pod that starts again has the same name.
fn identity(lease: &Lease) -> String {
    let named = lease.identity.clone();
    let host = named.or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.filter(|name| !name.is_empty());
    let host = host.unwrap_or_else(|| "leadsman".into());
    format!("{host}_{:08x}", fastrand::u32(..))
}

/// How other replicas are reached, by address: connections that are open are used again.
pub(super) type Forwards = HashMap<String, Arc<Forward>>;

fn lead(standing: &Standing, lease: Option<&Lease>, known: &Forwards, met: &mut Forwards) -> Lead {
    match standing {
        Standing::Leads { .. } => Lead::Here,
        Standing::Follows { leader: None } => Lead::Nobody,
        Standing::Follows {
            leader: Some(leader),
        } => {
            let address = leader.address.as_deref();
            let forward = match (address, lease) {
                (Some(address), Some(lease)) => forward(address, lease, known, met),
                _ => Err("it does not say where it answers; set lease.address".into()),
            };
            Lead::Elsewhere {
                identity: leader.identity.clone(),
                forward,
            }
        }
    }
}

fn forward(
    address: &str,
    lease: &Lease,
    known: &Forwards,
    met: &mut Forwards,
) -> Result<Arc<Forward>, String> {
    if let Some(forward) = met.get(address).or_else(|| known.get(address)) {
        let forward = Arc::clone(forward);
        met.insert(address.to_owned(), Arc::clone(&forward));
        return Ok(forward);
    }
    let forward = Arc::new(Forward::to(address, &lease.tls)?);
    met.insert(address.to_owned(), Arc::clone(&forward));
    Ok(forward)
}
