//! The demo's cluster: pods of the newest revision replace the others, one after another, and a Service distributes
//! connections to Ready pods. It reads the history, and writes the state of its pods beside it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::app::{self, AppBehaviour, SharedSurroundings, Surroundings};
use super::story::RELEASE;
use crate::core::units::Revision;
use crate::http;
use crate::platform::clock::Timeline;
use crate::release::embedded::{EmbeddedHistory, EmbeddedPods as Written};
use crate::release::{ReleasePod, WorkloadState};

/// How often the cluster looks at what is wanted.
const ROUND: Duration = Duration::from_millis(100);

/// How long a pod terminates: it gets no new connections, but answers those that it has.
const TERMINATION: Duration = Duration::from_millis(500);

/// Time after the last pod became Ready when a rollout counts as stuck; in Kubernetes it is ten minutes.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(30);

/// Connections of one pod at a time; a demo needs a fraction.
const MAX_CONNECTIONS: usize = 2000;

/// The first wait of a pod that crashed; each is twice the one before.
const BACK_OFF: Duration = Duration::from_secs(1);
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

struct RunningPod {
    release_state: ReleasePod,
    behaviour: AppBehaviour,
    started: Instant,
    /// When it is gone.
    ends: Option<Instant>,
    /// When it starts again after a crash.
    back_at: Option<Instant>,
    stop: CancellationToken,
}

type ReadyPods = Arc<Mutex<Vec<SocketAddr>>>;

/// The cluster at work.
pub(super) struct DemoCluster {
    history: EmbeddedHistory,
    service: SocketAddr,
    timeline: Timeline,
    pods: BTreeMap<u32, RunningPod>,
    born: u32,
    sky: Arc<SharedSurroundings>,
    weather: Option<(Instant, Surroundings)>,
    newest: Option<Revision>,
    /// Pods of the newest revision that are Ready, and since when so many are.
    progress: (usize, Instant),
    ready: ReadyPods,
    tasks: TaskTracker,
    written: Written,
}

/// Runs the app of a history until `stop`. The Service listens at `listener`, and the app's database at `database`.
///
/// # Errors
/// When the history cannot be read or written.
pub(super) async fn run(
    directory: &Path,
    listener: TcpListener,
    database: TcpListener,
    stop: CancellationToken,
) -> io::Result<()> {
    let ready = ReadyPods::default();
    let tasks = TaskTracker::new();
    let service = listener.local_addr()?;
    let serving = tokio::spawn(serve_service(listener, Arc::clone(&ready), tasks.clone()));
    let sky: Arc<SharedSurroundings> = Arc::default();
    tasks.spawn(http::serve(
        database,
        app::database(Arc::clone(&sky)),
        MAX_CONNECTIONS,
        None,
        stop.clone(),
    ));
    let mut cluster = DemoCluster {
        history: EmbeddedHistory::of(directory),
        service,
        timeline: Timeline::start(),
        pods: BTreeMap::new(),
        born: 0,
        sky,
        weather: None,
        newest: None,
        progress: (0, Instant::now()),
        ready,
        tasks,
        written: Written::default(),
    };
    // What an earlier run has left says nothing about these pods.
    cluster.history.write_cluster(&cluster.written)?;
    let ended = loop {
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = tokio::time::sleep(ROUND) => {
                if let Err(error) = cluster.round().await {
                    break Err(error);
                }
            }
        }
    };
    serving.abort();
    for pod in cluster.pods.values() {
        pod.stop.cancel();
    }
    ended
}

impl DemoCluster {
    async fn round(&mut self) -> io::Result<()> {
        let records = self.history.records()?;
        let Some(newest) = records.last() else {
            return Ok(());
        };
        let behaviour: AppBehaviour = serde_json::from_value(newest.contents.clone())?;
        if self.newest != Some(newest.revision) {
            if behaviour.weather != Surroundings::default() {
                self.weather = Some((Instant::now(), behaviour.weather.clone()));
            }
            self.newest = Some(newest.revision);
            self.progress = (0, Instant::now());
        }
        self.change_weather();
        self.age().await?;
        self.replace(newest.revision, &behaviour).await?;
        self.publish(newest.revision, &behaviour)
    }

    fn change_weather(&self) {
        let Some((since, weather)) = &self.weather else {
            return;
        };
        let passed = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let db = weather
            .db_down_after_ms
            .is_some_and(|after| passed >= after);
        self.sky.db_is_down.store(db, Ordering::Relaxed);
        let blip = weather
            .blip_ms
            .is_some_and(|(from, long)| passed >= from && passed < from + long);
        self.sky.all_is_down.store(blip, Ordering::Relaxed);
    }

    /// Pods become Ready, crash, come back, and go.
    async fn age(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let time = self.timeline.now();
        self.pods.retain(|_, pod| {
            let is_gone = pod.ends.is_some_and(|at| at <= now);
            if is_gone {
                pod.stop.cancel();
            }
            !is_gone
        });
        let mut back = Vec::new();
        for (number, pod) in &mut self.pods {
            if let Some(at) = pod.back_at {
                if at <= now {
                    back.push(*number);
                }
                continue;
            }
            let age = now.duration_since(pod.started);
            let crash = pod.behaviour.crash_after_ms.map(Duration::from_millis);
            if crash.is_some_and(|after| age >= after) {
                pod.stop.cancel();
                pod.release_state.restarts += 1;
                pod.release_state.ready_since = None;
                pod.release_state.waiting = Some("CrashLoopBackOff".into());
                let doublings = (pod.release_state.restarts - 1).min(16);
                pod.back_at = Some(now + (BACK_OFF * 2u32.pow(doublings)).min(MAX_BACK_OFF));
            } else if pod.release_state.ready_since.is_none()
                && age >= Duration::from_millis(pod.behaviour.start_ms)
            {
                pod.release_state.ready_since = Some(time);
            }
        }
        for number in back {
            let Some(pod) = self.pods.get(&number) else {
                continue;
            };
            let behaviour = pod.behaviour.clone();
            let (address, stop) = self.start_server(&behaviour).await?;
            if let Some(pod) = self.pods.get_mut(&number) {
                pod.stop = stop;
                pod.started = Instant::now();
                pod.back_at = None;
                pod.release_state.waiting = None;
                pod.release_state.address = Some(address);
            }
        }
        Ok(())
    }

    /// One new pod at a time, and an old one goes when a new one is Ready.
    async fn replace(&mut self, revision: Revision, behaviour: &AppBehaviour) -> io::Result<()> {
        let count =
            |is: &dyn Fn(&RunningPod) -> bool| self.pods.values().filter(|pod| is(pod)).count();
        let stays = |pod: &RunningPod| pod.ends.is_none();
        let is_new = |pod: &RunningPod| stays(pod) && pod.release_state.revision == revision;
        let is_old = |pod: &RunningPod| stays(pod) && pod.release_state.revision != revision;
        let (new, old) = (count(&is_new), count(&is_old));
        let ready =
            count(&|pod: &RunningPod| is_new(pod) && pod.release_state.ready_since.is_some());
        let replicas = behaviour.replicas();
        // With the strategy `Recreate` all old pods are gone before the first new one starts.
        if old > 0 && (behaviour.stops_first || ready + old > replicas) {
            // A pod that is not Ready goes first: nobody would miss it.
            let oldest = self
                .pods
                .values_mut()
                .filter(|pod| pod.ends.is_none() && pod.release_state.revision != revision)
                .min_by_key(|pod| pod.release_state.ready_since.is_some());
            if let Some(pod) = oldest {
                pod.release_state.terminating = true;
                pod.ends = Some(Instant::now() + TERMINATION);
            }
        }
        let room = match (old, behaviour.stops_first) {
            (0, _) => replicas.saturating_sub(new),
            (_, true) => 0,
            (_, false) => (replicas + 1).saturating_sub(new + old),
        };
        for _ in 0..room.min(replicas.saturating_sub(new)) {
            self.start_pod(revision, behaviour).await?;
        }
        Ok(())
    }

    async fn start_pod(&mut self, revision: Revision, behaviour: &AppBehaviour) -> io::Result<()> {
        let (address, stop) = self.start_server(behaviour).await?;
        self.born += 1;
        let release_state = ReleasePod {
            name: format!("mykadoo-r{revision}-{}", self.born).into(),
            revision,
            node: if self.born.is_multiple_of(2) {
                "node-a"
            } else {
                "node-b"
            }
            .into(),
            ready_since: None,
            terminating: false,
            restarts: 0,
            waiting: None,
            address: Some(address),
            workload: RELEASE.into(),
            workload_kind: "Deployment".into(),
            container: Box::default(),
            ip: None,
            ports: Vec::new(),
        };
        self.pods.insert(
            self.born,
            RunningPod {
                release_state,
                behaviour: behaviour.clone(),
                started: Instant::now(),
                ends: None,
                back_at: None,
                stop,
            },
        );
        Ok(())
    }

    async fn start_server(
        &self,
        behaviour: &AppBehaviour,
    ) -> io::Result<(SocketAddr, CancellationToken)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let pod = app::DemoPod::new(behaviour, &self.sky);
        let stop = CancellationToken::new();
        let router = app::router(Arc::new(pod));
        self.tasks.spawn(http::serve(
            listener,
            router,
            MAX_CONNECTIONS,
            None,
            stop.clone(),
        ));
        Ok((address, stop))
    }

    /// Tells the Service and the file what the pods do.
    fn publish(&mut self, newest: Revision, behaviour: &AppBehaviour) -> io::Result<()> {
        let is_ready = |pod: &&RunningPod| {
            pod.release_state.ready_since.is_some() && !pod.release_state.terminating
        };
        let addresses = self.pods.values().filter(is_ready);
        let addresses: Vec<SocketAddr> = addresses
            .filter_map(|pod| pod.release_state.address)
            .collect();
        let of_newest = self
            .pods
            .values()
            .filter(|pod| pod.release_state.revision == newest);
        let new_ready = of_newest.filter(is_ready).count();
        let replicas = behaviour.replicas();
        let complete = new_ready >= replicas
            && self
                .pods
                .values()
                .all(|pod| pod.release_state.revision == newest);
        if new_ready != self.progress.0 {
            self.progress = (new_ready, Instant::now());
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let workload = WorkloadState {
            kind: "Deployment".into(),
            name: RELEASE.into(),
            template: Some(behaviour.image.as_str().into()),
            observed: true,
            complete,
            wanted: count(replicas),
            ready: count(new_ready),
            serving: count(addresses.len()),
            unavailable: count(replicas.saturating_sub(addresses.len())),
            lacks: count(replicas.saturating_sub(new_ready)),
            stops_first: behaviour.stops_first,
            deadline_exceeded: !complete && self.progress.1.elapsed() >= PROGRESS_DEADLINE,
            paused: false,
            refused: false,
        };
        *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
        let written = Written {
            service: Some(self.service),
            complete: complete.then_some(newest),
            pods: self
                .pods
                .values()
                .map(|pod| pod.release_state.clone())
                .collect(),
            workloads: vec![workload],
        };
        if written != self.written {
            self.history.write_cluster(&written)?;
            self.written = written;
        }
        Ok(())
    }
}

/// Each connection goes to one pod that is Ready, by chance; without one it is closed.
async fn serve_service(listener: TcpListener, ready: ReadyPods, tasks: TaskTracker) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // No descriptor is left: wait instead of turning in a circle.
            tokio::time::sleep(ROUND).await;
            continue;
        };
        let pod = {
            let pods = ready.lock().unwrap_or_else(PoisonError::into_inner);
            fastrand::choice(pods.iter().copied().collect::<Vec<_>>())
        };
        let Some(pod) = pod else { continue };
        tasks.spawn(async move {
            if let Ok(mut pod) = TcpStream::connect(pod).await {
                // Whoever ends first ends the other; how is no news.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
            }
        });
    }
}
