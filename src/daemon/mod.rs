//! The daemon: the only place that starts long-lived tasks and holds the whole configuration.
//!
//! The schedule's thread and the HTTP listener live as long as the process. If one of them ends by itself, the process
//! ends with a reason. The order of a stop, which takes a few seconds: report not ready; start no more probes; end the
//! release controllers, with the helm that they run; send the last alerts; give the Lease back; let probes in flight
//! finish within 3 s, or count them as unknown; close the listener.
//!
//! All replicas probe. Release controllers and the alert evaluator, which decide, write and send, run only in the
//! leader. They end when the Lease is lost; the next leader starts them from the stored state, as after a restart. With
//! a Lease for each release, each shard has an alert evaluator, and each replica has one for itself.
//!
//! A running analysis keeps the settings that it began with; only a mode that does less takes effect at once.

mod active_config;
mod alerting;
mod cluster;
mod controllers;
mod counter_persistence;
mod interval_overrides;
mod leadership;
mod probe_executor;
mod release_controller;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::DiscoveredRelease;
use crate::config::settings::Settings;
use crate::core::probe_result::UnknownReason;
use crate::core::probe_stats::TrackedProbe;
use crate::core::units::{Namespace, ProbeId, ReleaseName, Revision};
use crate::http::status::GuardFeed;
use crate::http::{
    self, AccessReview, AuthDecision, Dependencies, ListenerTls, Permission, ProbeRequest,
    ProbeResponse, ReloadRequest, ServingConfig, Shard,
};
use crate::kubernetes::access_review::{self, AccessReviewer};
use crate::metrics::Metrics;
use crate::platform::clock;
use crate::platform::clock::Timeline;
use crate::prober::schedule::Schedule;
use crate::prober::{self, Prober, Transcript};
use crate::release::cluster::{ApiAccess, ApiConnector};
use crate::storage::{StateStore, StoreError};
use alerting::AlertEvaluator;
use cluster::ConnectedCluster;
use controllers::{ControllerHandle, end_all};
use interval_overrides::IntervalOverrides;
use leadership::{LeaderProxies, Leadership, ReleaseKey, ShardLeadership};
use probe_executor::{ProbeExecutor, ProbeTask};

/// Time that probes in flight have after the signal to stop. Longer ones count as unknown: the target did nothing
/// wrong.
const FINISH: Duration = Duration::from_secs(3);

/// Maximum time to write the counters of the long windows at the stop.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// Orders of people that wait for one release; they are carried out one at a time.
const MAX_ORDERS: usize = 4;

/// People who wait for the configuration to be read again; one at a time is served.
const MAX_RELOADS: usize = 4;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Cannot listen on the address.
    #[error(
        "cannot listen at {address}: {cause}; set serve.listen to another, or stop what listens there"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
    /// Two metrics have the same name, a bug.
    #[error("cannot set up the metrics: {0}")]
    Metrics(prometheus::Error),
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster cannot be reached with these settings.
    #[error("the cluster: {0}")]
    Cluster(String),
    /// The schedule's thread cannot be started.
    #[error("cannot start the schedule's thread: {0}")]
    Schedule(io::Error),
}

/// A running daemon.
pub struct Daemon {
    address: SocketAddr,
    executor: Arc<ProbeExecutor>,
    web: Arc<http::AppState>,
    interval_overrides: Arc<IntervalOverrides>,
    timeline: Timeline,
    orders: watch::Sender<Arc<alerting::AlertingConfig>>,
    lead_changes: Arc<Notify>,
    metrics: Arc<Metrics>,
    heralds: Mutex<BTreeMap<Shard, RunningAlerting>>,
    store: Option<Arc<StateStore>>,
    gitops_owner: Option<JoinHandle<()>>,
    stop_keeping: CancellationToken,
    applied: Mutex<ActiveConfig>,
    listener: Option<JoinHandle<()>>,
    close_listener: CancellationToken,
    schedule_ended: CancellationToken,
    controller_ended: CancellationToken,
    discovered: Option<watch::Receiver<Vec<DiscoveredRelease>>>,
    review: Option<AccessReview>,
    reloads: Option<mpsc::Receiver<ReloadRequest>>,
}

/// The configuration in force, and everything that runs it.
struct ActiveConfig {
    settings: Settings,
    /// The configuration as read, without the settings that a running analysis keeps.
    wanted: Settings,
    runners: HashMap<ProbeId, Arc<ProbeTask>>,
    controllers: HashMap<ReleaseKey, ControllerHandle>,
    cluster: Option<ConnectedCluster>,
    /// Which shards this replica leads.
    leadership: Leadership,
    /// Connections to the other replicas.
    forwards: LeaderProxies,
}

/// A running alert evaluator.
struct RunningAlerting {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Daemon {
    /// Starts everything. Must be called inside a tokio runtime.
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        let address = settings.serve.listen;
        let refused = |cause| StartError::Listen { address, cause };
        let tcp = TcpListener::bind(address).await.map_err(refused)?;
        let address = tcp.local_addr().map_err(refused)?;

        let metrics = Arc::new(Metrics::new().map_err(StartError::Metrics)?);
        let executor = Arc::new(ProbeExecutor::new(
            &settings,
            Arc::clone(&metrics),
            prober::ProberContext::new(clock::now),
        ));
        let schedule_ended = CancellationToken::new();
        let schedule = {
            let executor = Arc::clone(&executor);
            // Dropped when the thread ends, for whatever reason.
            let ended = schedule_ended.clone().drop_guard();
            Schedule::start(clock::now, move |due| {
                let _ = &ended;
                executor.begin(due.payload, due.at, due.missed);
            })
            .map_err(StartError::Schedule)?
        };
        executor.follow(schedule.heartbeat_cell());
        let heartbeat_cell = schedule.heartbeat_cell();
        let interval_overrides = Arc::new(IntervalOverrides::new(schedule));
        let store = match &settings.state {
            Some(directory) => Some(StateStore::open(directory)?),
            None => None,
        };
        let connector = match &settings.kubernetes {
            Some(kubernetes) => {
                let connector = ApiConnector::new(&ApiAccess::of(kubernetes)).await;
                Some(connector.map_err(StartError::Cluster)?)
            }
            None => None,
        };
        let client = connector.as_ref().map(ApiConnector::client).transpose();
        let client = client.map_err(StartError::Cluster)?;
        let controller_ended = CancellationToken::new();
        let mut leadership = match (&settings.lease, &client) {
            (Some(lease), Some(client)) => {
                let ended = controller_ended.clone();
                Leadership::by(client.clone(), lease, Arc::clone(&metrics), ended)
            }
            _ => Leadership::alone(),
        };
        let store = match (store, &settings.state_map, &client) {
            (Some(store), Some(map), Some(client)) => {
                let store = store.with_maps(cluster::config_maps(client, map));
                Some(store.with_permit(leadership.permit()))
            }
            (store, _, _) => store,
        };
        let store = store.map(Arc::new);
        if let Some(store) = &store {
            leadership.store_by_permits(store);
        }

        let (reload, reloads) = mpsc::channel(MAX_RELOADS);
        let dependencies = Dependencies {
            metrics: Arc::clone(&metrics),
            clock: clock::now,
            beat: Box::new(move || heartbeat_cell.heartbeat().beat),
            troubles: {
                let executor = Arc::clone(&executor);
                Box::new(move || executor.troubles())
            },
            refresh: {
                let executor = Arc::clone(&executor);
                Box::new(move || executor.refresh_metrics())
            },
            take: run_probe(Arc::clone(executor.dependencies())),
            recording: {
                let store = store.clone();
                Arc::new(move |namespace, release, revision| {
                    let (namespace, release) =
                        (Namespace::new(namespace), ReleaseName::new(release));
                    let store = store.as_ref()?;
                    let found = store.recording(&namespace, &release, Revision(revision));
                    found.unwrap_or_else(|error| {
                        tracing::warn!(%error, "A recording cannot be read");
                        None
                    })
                })
            },
            reload,
        };
        let empty = ServingConfig {
            series: Vec::new(),
            modules: std::collections::BTreeMap::new(),
            targets: std::collections::HashSet::new(),
            allow: Vec::new(),
            timeout_offset: settings.serve.timeout_offset,
            controllers: Vec::new(),
            orders: HashMap::new(),
            alerts: Vec::new(),
            token_file: None,
            review: None,
            files: Vec::new(),
        };
        let web = Arc::new(http::AppState::new(dependencies, empty, &settings.serve));
        let tls = settings
            .serve
            .tls
            .as_ref()
            .map(ListenerTls::read)
            .map(Arc::new);
        let close_listener = CancellationToken::new();
        let router = http::router(Arc::clone(&web));
        let max_connections = settings.serve.max_connections;
        let listener = tokio::spawn(http::serve(
            tcp,
            router,
            max_connections,
            tls,
            close_listener.clone(),
        ));

        let nothing = Settings {
            releases: Vec::new(),
            named_files: Vec::new(),
            ..settings.clone()
        };
        let timeline = Timeline::start();
        let cluster = match (&settings.kubernetes, connector, &client) {
            (Some(kubernetes), Some(connector), Some(client)) => {
                let (client, ended) = (client.clone(), controller_ended.clone());
                let connected =
                    ConnectedCluster::new(kubernetes, connector, client, timeline, ended);
                Some(connected.map_err(StartError::Cluster)?)
            }
            _ => None,
        };
        let review = cluster.as_ref().map(|cluster| review(cluster.client()));
        let discovered = cluster.as_ref().map(|cluster: &ConnectedCluster| {
            let (discovered, work) = cluster.discover();
            let ended = controller_ended.clone().drop_guard();
            tokio::spawn(async move {
                work.await;
                // Nobody listens any more.
                ended.disarm();
            });
            discovered
        });
        let lead_changes = leadership.changes();
        let applied = Mutex::new(ActiveConfig {
            wanted: nothing.clone(),
            settings: nothing,
            runners: HashMap::new(),
            controllers: HashMap::new(),
            cluster,
            leadership,
            forwards: LeaderProxies::new(),
        });
        let stop_keeping = CancellationToken::new();
        let gitops_owner = store.as_ref().map(|store| {
            let web = Arc::clone(&web);
            let probes = move || web.tracked_probe();
            tokio::spawn(counter_persistence::keep(
                Arc::clone(store),
                timeline,
                Arc::clone(&metrics),
                Box::new(probes),
                stop_keeping.clone(),
            ))
        });
        let orders = watch::Sender::new(Arc::new(orders_of(&settings, address)));
        let daemon = Self {
            address,
            executor,
            web,
            interval_overrides,
            timeline,
            orders,
            lead_changes,
            metrics,
            heralds: Mutex::default(),
            store,
            gitops_owner,
            stop_keeping,
            applied,
            listener: Some(listener),
            close_listener,
            schedule_ended,
            controller_ended,
            discovered,
            review,
            reloads: Some(reloads),
        };
        daemon.apply(settings).await;
        daemon.web.set_ready(true);
        tracing::info!(address = %daemon.address, "Listening");
        Ok(daemon)
    }

    /// Address of the listener; with port 0 in the settings, the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Puts settings in force. An unchanged probe keeps its schedule, connections and statistics; a changed one keeps
    /// its counters; the series of a removed one disappear.
    pub async fn apply(&self, settings: Settings) {
        let mut applied = self.applied.lock().await;
        applied.wanted = settings;
        self.put_in_force(&mut applied).await;
        self.web.note_reload(None);
        self.executor
            .metrics()
            .reloaded(true, clock::unix_seconds());
        tracing::info!(
            probes = applied.runners.len(),
            "The configuration is in force"
        );
    }

    /// Notified when the leader changes; then the caller calls [`Self::follow`].
    pub fn lead_changes(&self) -> Arc<Notify> {
        Arc::clone(&self.lead_changes)
    }

    /// Starts or ends release controllers and alerting, as the Leases say now.
    pub async fn follow(&self) {
        let mut applied = self.applied.lock().await;
        if applied.leadership.let_go() {
            self.put_in_force(&mut applied).await;
        }
        if applied.leadership.catch_up() {
            self.put_in_force(&mut applied).await;
        }
    }

    /// Puts settings in force that waited for the end of an analysis. Hands idle releases over to replicas that should
    /// have them.
    pub async fn settle(&self) {
        let mut applied = self.applied.lock().await;
        let mut controllers = applied.controllers.values();
        if controllers.any(|guarded| *guarded.waits.borrow() && !guarded.is_at_work()) {
            self.put_in_force(&mut applied).await;
        }
        let controllers = &applied.controllers;
        let is_at_rest = |key: &ReleaseKey| {
            controllers
                .get(key)
                .is_none_or(|guarded| !guarded.is_at_work())
        };
        let shards = applied.leadership.to_hand_over(is_at_rest);
        if !shards.is_empty() {
            applied.leadership.retire(&shards);
            self.put_in_force(&mut applied).await;
            applied.leadership.hand_over(&shards).await;
        }
    }

    /// Heralds live where the guards live.
    async fn tell_or_be_silent(&self, leadership: &Leadership, settings: &Settings) {
        let mut heralds = self.heralds.lock().await;
        let releases = settings.releases.iter();
        let configured: HashSet<Shard> = releases
            .map(|release| leadership::shard_of(&release.namespace, &release.name))
            .collect();
        let is_wanted =
            |shard: &Shard| !matches!(shard, Shard::Release(..)) || configured.contains(shard);
        let acting: BTreeMap<&Shard, &ShardLeadership> = leadership
            .acting()
            .filter(|(shard, _)| is_wanted(shard))
            .collect();
        let (told, silent): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut *heralds)
            .into_iter()
            .partition(|(shard, _)| acting.contains_key(shard));
        *heralds = told;
        for alerting in silent.values() {
            alerting.stop.cancel();
        }
        for (shard, alerting) in silent {
            end_evaluator(alerting).await;
            self.web.show_nothing(&shard);
        }
        for (shard, post) in acting {
            if !heralds.contains_key(shard) {
                let alerting = self.evaluator(shard, post, leadership.replica());
                heralds.insert(shard.clone(), alerting);
            }
        }
        let tells = settings
            .alertmanager
            .as_ref()
            .filter(|_| !heralds.is_empty());
        let urls = tells.map_or(0, |alertmanagers| alertmanagers.urls.len());
        self.metrics.alerting.configured(urls);
    }

    fn evaluator(
        &self,
        shard: &Shard,
        post: &ShardLeadership,
        replica: Option<String>,
    ) -> RunningAlerting {
        let evaluator = AlertEvaluator::new(alerting::AlertingSetup {
            shard: shard.clone(),
            replica,
            executor: Arc::clone(&self.executor),
            web: Arc::clone(&self.web),
            metrics: Arc::clone(&self.metrics),
            store: self.store.clone(),
            timeline: self.timeline,
            changed: post.changed(),
            orders: self.orders.subscribe(),
            permit: post.permit(),
            ended: self.controller_ended.clone(),
        });
        let ended = self.controller_ended.clone().drop_guard();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            evaluator.run(stopped).await;
            ended.disarm();
        });
        RunningAlerting { stop, task }
    }

    /// The releases that `select` takes, as they change; none where there is no cluster.
    pub fn discovered(&self) -> Option<watch::Receiver<Vec<DiscoveredRelease>>> {
        self.discovered.clone()
    }

    /// Status of a release, always the newest.
    pub async fn view(&self, namespace: &Namespace, release: &ReleaseName) -> Option<GuardFeed> {
        let applied = self.applied.lock().await;
        let key = (namespace.clone(), release.clone());
        applied
            .controllers
            .get(&key)
            .map(|controller| controller.view.clone())
    }

    /// Statistics of all probes, in the order of the configuration.
    pub async fn tracked_probe(&self) -> Vec<Arc<TrackedProbe>> {
        let applied = self.applied.lock().await;
        let probes = applied.settings.probes();
        probes
            .filter_map(|probe| applied.runners.get(&probe.id))
            .map(|runner| Arc::clone(&runner.tracked_probe))
            .collect()
    }

    /// Reload requests from HTTP. The caller of this function answers them; without one, each request is told that
    /// there is no configuration file to read.
    pub const fn reloads(&mut self) -> Option<mpsc::Receiver<ReloadRequest>> {
        self.reloads.take()
    }

    /// Notes that a changed configuration could not be read, and why; the old one stays in force.
    pub fn reload_failed(&self, why: &str) {
        self.web.note_reload(Some(why.to_owned()));
        self.executor
            .metrics()
            .reloaded(false, clock::unix_seconds());
    }

    /// Waits until a task ends that should live as long as the process; returns which.
    pub async fn failed(&mut self) -> &'static str {
        let Some(listener) = &mut self.listener else {
            return "the HTTP listener has ended";
        };
        tokio::select! {
            () = self.schedule_ended.cancelled() => "the schedule has ended by itself",
            () = self.controller_ended.cancelled() => "the guard of a release, or alerting, has ended by itself",
            _ = listener => {
                self.listener = None;
                "the HTTP listener has ended by itself"
            }
        }
    }

    /// Stops everything, within a few seconds.
    pub async fn stop(&mut self) {
        self.web.set_ready(false);
        self.interval_overrides.stop();
        let controllers = std::mem::take(&mut self.applied.lock().await.controllers);
        end_all(controllers.into_values().collect()).await;
        let heralds = std::mem::take(&mut *self.heralds.lock().await);
        for alerting in heralds.values() {
            alerting.stop.cancel();
        }
        for alerting in heralds.into_values() {
            end_evaluator(alerting).await;
        }
        // The cluster's store takes it only from whoever has the Lease.
        self.stop_keeping.cancel();
        if let Some(gitops_owner) = self.gitops_owner.take() {
            // A store that does not answer holds up the end no longer than this.
            let _ = tokio::time::timeout(LAST_WRITE, gitops_owner).await;
        }
        self.applied.lock().await.leadership.give_back().await;
        self.executor.finish(FINISH).await;
        self.close_listener.cancel();
        if let Some(listener) = self.listener.take() {
            // The listener drains by itself within a second; a panic in it has been logged where it happened.
            let _ = listener.await;
        }
        tracing::info!("Stopped");
    }
}

/// Asks the cluster whether a caller may do something.
fn review(client: kube::Client) -> AccessReview {
    let reviewer = Arc::new(AccessReviewer::new(client));
    Arc::new(move |token: String, permission: Permission| {
        let reviewer = Arc::clone(&reviewer);
        Box::pin(async move {
            let of = |verb, part, namespace, name| access_review::RequiredPermission::Release {
                verb,
                part,
                namespace,
                name,
            };
            let permission = match permission {
                Permission::RollBack(namespace, name) => of("create", "rollback", namespace, name),
                Permission::ReadRecording(namespace, name) => {
                    of("get", "recording", namespace, name)
                }
                Permission::SendAlerts => access_review::RequiredPermission::Path {
                    verb: "post",
                    path: "/api/v1/alerts",
                },
                Permission::Reload => access_review::RequiredPermission::Path {
                    verb: "post",
                    path: "/-/reload",
                },
            };
            match reviewer.review(&token, permission).await {
                access_review::AccessDecision::Allowed { user } => AuthDecision::Allowed(user),
                access_review::AccessDecision::Forbidden { user } => AuthDecision::Forbidden(user),
                access_review::AccessDecision::Unauthenticated => AuthDecision::Unauthenticated,
                access_review::AccessDecision::Unknown(why) => AuthDecision::Unknown(why),
            }
        })
    })
}

/// The settings that alerting uses.
fn orders_of(settings: &Settings, address: SocketAddr) -> alerting::AlertingConfig {
    let page = settings.serve.external_url.clone();
    alerting::AlertingConfig {
        alertmanagers: settings.alertmanager.clone().map(Arc::new),
        page: page.or_else(|| alerting::default_page(address)),
        promises: alerting::promises(settings),
        receivers: settings.receivers.clone(),
    }
}

/// Ends an alert evaluator; it may send for a moment longer.
async fn end_evaluator(alerting: RunningAlerting) {
    alerting.stop.cancel();
    // A panic in it was told where it happened.
    let _ = alerting.task.await;
}

/// Results on behalf of `/probe`: each with a prober of its own, which is gone afterwards.
fn run_probe(dependencies: Arc<prober::ProberContext>) -> http::RunProbe {
    Arc::new(move |call: ProbeRequest| {
        let dependencies = Arc::clone(&dependencies);
        Box::pin(async move {
            let prober = Prober::new(&dependencies, call.target, call.kind);
            let mut transcript = call.transcript.then(Transcript::default);
            let result = prober
                .sound(clock::now(), call.timeout, transcript.as_mut())
                .await;
            let steps = transcript.map_or_else(Vec::new, |transcript| transcript.lines());
            ProbeResponse { result, steps }
        })
    })
}

/// Names of self-check troubles, for the log.
fn named(troubles: &[UnknownReason]) -> String {
    troubles
        .iter()
        .map(|reason| reason.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}
