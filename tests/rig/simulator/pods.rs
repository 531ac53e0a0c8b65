//! Pods: their life as a kubelet would lead and report it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::behaviour::{Answer, Behaviour};
use crate::program::{self, Program};
use crate::web;

const MAX_LINES: usize = 2000;

/// A real program may take so long to end; the default of Kubernetes.
const GRACE: Duration = Duration::from_secs(30);

/// All pods, and what is overridden.
pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) pods: Mutex<HashMap<(String, String), Arc<Running>>>,
    /// By namespace, pod (empty: all of them) and path.
    pub(crate) overrides: Mutex<BTreeMap<(String, String, String), Answer>>,
    /// Namespaces and workloads whose pods cannot pull their images.
    pub(crate) without_registry: Mutex<HashSet<(String, String)>>,
    next_address: AtomicU32,
}

impl World {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            pods: Mutex::new(HashMap::new()),
            overrides: Mutex::new(BTreeMap::new()),
            without_registry: Mutex::default(),
            next_address: AtomicU32::new(1),
        }
    }
}

/// One pod.
pub(crate) struct Running {
    world: Arc<World>,
    pub(crate) namespace: String,
    pub(crate) name: String,
    uid: String,
    address: IpAddr,
    behaviour: Behaviour,
    newest: watch::Sender<Option<Arc<Pod>>>,
    ready_since: Mutex<Option<Instant>>,
    /// When requests were let through that count for a limit.
    pub(crate) counted: Mutex<VecDeque<Instant>>,
    /// Of this run and of the one before.
    pub(crate) logs: Mutex<(VecDeque<String>, VecDeque<String>)>,
    /// The process of a pod that is no simulation.
    pub(crate) process: watch::Sender<Option<u32>>,
}

impl Running {
    /// Whether a limit of so many requests a minute has room for one more.
    pub(crate) fn lets_through(&self, most: usize) -> bool {
        let mut counted = self.counted.lock().unwrap();
        let now = Instant::now();
        counted.retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        let has_room = counted.len() < most;
        if has_room {
            counted.push_back(now);
        }
        has_room
    }

    pub(crate) fn answer(&self, path: &str) -> Answer {
        let overrides = self.world.overrides.lock().unwrap();
        let key = |pod: &str| (self.namespace.clone(), pod.to_owned(), path.to_owned());
        let found = overrides
            .get(&key(&self.name))
            .or_else(|| overrides.get(&key("")));
        let found = found.or_else(|| self.behaviour.answers.get(path));
        found.cloned().unwrap_or(Answer::Ok)
    }

    fn is_without_registry(&self) -> bool {
        let without = self.world.without_registry.lock().unwrap();
        without.iter().any(|(namespace, workload)| {
            *namespace == self.namespace && self.name.starts_with(&format!("{workload}-"))
        })
    }

    pub(crate) fn ready_for(&self) -> Option<Duration> {
        self.ready_since
            .lock()
            .unwrap()
            .map(|since| since.elapsed())
    }

    pub(crate) fn log(&self, line: &str) {
        let mut logs = self.logs.lock().unwrap();
        if logs.0.len() >= MAX_LINES {
            logs.0.pop_front();
        }
        logs.0.push_back(line.to_owned());
    }

    pub(crate) const fn address(&self) -> IpAddr {
        self.address
    }

    pub(crate) fn client(&self) -> Client {
        self.world.client.clone()
    }

    fn is_deleted(&self) -> bool {
        let newest = self.newest.borrow();
        newest
            .as_ref()
            .is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// Sends a signal to the process of a pod that is no simulation; whether it has one.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        let id = *self.process.borrow();
        let pid = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.world.client.clone(), &self.namespace)
    }

    /// Writes the status until the API server has taken it, or the pod is gone.
    async fn report(&self, status: &Value) {
        let patch = Patch::Merge(json!({"status": status}));
        loop {
            match self
                .pods()
                .patch_status(&self.name, &PatchParams::default(), &patch)
                .await
            {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn event(&self, reason: &str, message: &str) {
        let events: Api<k8s_openapi::api::core::v1::Event> =
            Api::namespaced(self.world.client.clone(), &self.namespace);
        let now = now();
        let event = json!({
            "metadata": {"generateName": format!("{}.", self.name)},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", "namespace": self.namespace, "name": self.name, "uid": self.uid},
            "reason": reason, "message": message, "type": "Warning", "count": 1,
            "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "kubelet", "host": "sim-1"},
        });
        if let Ok(event) = serde_json::from_value(event) {
            let _ = events.create(&PostParams::default(), &event).await;
        }
    }
}

fn now() -> String {
    // Kubernetes' times have no fractions.
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second())
        .unwrap()
        .to_string()
}

/// Between tries to be heard by an API server that is away: a node is there again within a second.
pub(crate) struct Quick;

impl Iterator for Quick {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(500))
    }
}

impl Backoff for Quick {
    fn reset(&mut self) {}
}

/// Follows the pods of the node for ever.
pub(crate) async fn run(world: Arc<World>) {
    let api: Api<Pod> = Api::all(world.client.clone());
    let config = watcher::Config::default().fields("spec.nodeName!=");
    let mut events = watcher(api, config).backoff(Quick).boxed();
    let mut listed = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(pod)) => seen(&world, pod),
            Ok(Event::InitApply(pod)) => {
                listed.insert(pod.uid().unwrap_or_default());
                seen(&world, pod);
            }
            Ok(Event::Delete(pod)) => gone(&world, &pod),
            Ok(Event::Init) => listed.clear(),
            // What went away while nobody could be heard is in no list.
            Ok(Event::InitDone) => world.pods.lock().unwrap().retain(|_, pod| {
                let stays = listed.contains(&pod.uid);
                if !stays {
                    pod.newest.send_replace(None);
                }
                stays
            }),
            Err(error) => eprintln!("pods: {error}"),
        }
    }
}

fn seen(world: &Arc<World>, pod: Pod) {
    let key = (pod.namespace().unwrap_or_default(), pod.name_any());
    let uid = pod.uid().unwrap_or_default();
    let mut pods = world.pods.lock().unwrap();
    if let Some(running) = pods.get(&key)
        && running.uid == uid
    {
        running.newest.send_replace(Some(Arc::new(pod)));
        return;
    }
    let number = world.next_address.fetch_add(1, Ordering::Relaxed);
    // 250 pods in each of 250 networks; no two that live have the same address.
    let part = |number: u32| u8::try_from(number % 250).unwrap_or(0);
    let (high, low) = (part(number / 250), part(number) + 1);
    let running = Arc::new(Running {
        world: Arc::clone(world),
        namespace: key.0.clone(),
        name: key.1.clone(),
        uid,
        address: Ipv4Addr::new(10, 244, high, low).into(),
        behaviour: Behaviour::of(pod.annotations()),
        newest: watch::Sender::new(Some(Arc::new(pod))),
        ready_since: Mutex::new(None),
        counted: Mutex::default(),
        logs: Mutex::default(),
        process: watch::Sender::new(None),
    });
    if let Some(old) = pods.insert(key, Arc::clone(&running)) {
        old.newest.send_replace(None);
    }
    drop(pods);
    tokio::spawn(live(running));
}

fn gone(world: &Arc<World>, pod: &Pod) {
    let key = (pod.namespace().unwrap_or_default(), pod.name_any());
    let mut pods = world.pods.lock().unwrap();
    let is_it = pods
        .get(&key)
        .is_some_and(|running| Some(&running.uid) == pod.uid().as_ref());
    if is_it && let Some(running) = pods.remove(&key) {
        running.newest.send_replace(None);
    }
}

/// A pod's whole life: until it is deleted.
async fn live(pod: Arc<Running>) {
    let first = pod.newest.borrow().clone();
    let Some(first) = first else { return };
    let mut newest = pod.newest.subscribe();
    let deleted = async {
        let is_over = |pod: &Option<Arc<Pod>>| {
            pod.as_ref()
                .is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
        };
        let _ = newest.wait_for(is_over).await;
        if pod.signal(Signal::TERM) {
            let mut process = pod.process.subscribe();
            let ended = process.wait_for(Option::is_none);
            let _ = tokio::time::timeout(GRACE, ended).await;
        }
        tokio::time::sleep(pod.behaviour.grace).await;
    };
    tokio::select! {
        () = deleted => {}
        () = containers(Arc::clone(&pod), &first) => {}
    }
    if pod.newest.borrow().is_none() {
        return;
    }
    // The work may be over before the pod is deleted, as of a Job.
    let mut newest = pod.newest.subscribe();
    let _ = newest
        .wait_for(|pod| {
            pod.as_ref()
                .is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
        })
        .await;
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    loop {
        match pod.pods().delete(&pod.name, &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    }
}

/// What is reported of the only container that counts; further ones do as it does.
struct Report<'a> {
    pod: &'a Running,
    spec: &'a Pod,
    restarts: u32,
    last: Value,
    started: String,
}

impl Report<'_> {
    async fn state(&self, phase: &str, state: Value, ready: bool) {
        let now = now();
        let yes = |is: bool| if is { "True" } else { "False" };
        let condition = |kind: &str, is: bool| json!({"type": kind, "status": yes(is), "lastTransitionTime": now});
        let containers = &self.spec.spec.as_ref().unwrap().containers;
        let is_running = state.get("running").is_some();
        let statuses: Vec<Value> = containers
            .iter()
            .map(|container| {
                json!({
                    "name": container.name, "image": container.image, "imageID": self.pod.behaviour.image_id.clone().unwrap_or_else(|| format!("sim@{}", container.image.as_deref().unwrap_or(""))),
                    "ready": ready, "started": is_running, "restartCount": self.restarts,
                    "state": state, "lastState": self.last,
                })
            })
            .collect();
        let ip = self.pod.address.to_string();
        let status = json!({
            "phase": phase, "hostIP": "127.0.0.1", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": self.started,
            "conditions": [condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", ready), condition("Ready", ready)],
            "containerStatuses": statuses,
        });
        *self.pod.ready_since.lock().unwrap() = ready.then(Instant::now);
        self.pod.report(&status).await;
    }
}

async fn containers(pod: Arc<Running>, spec: &Pod) {
    let mut report = Report {
        pod: &pod,
        spec,
        restarts: 0,
        last: json!({}),
        started: now(),
    };
    let waiting =
        |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
    report
        .state("Pending", waiting("ContainerCreating", ""), false)
        .await;
    tokio::time::sleep(pod.behaviour.start).await;
    if pod.behaviour.image_fails || pod.is_without_registry() {
        loop {
            report
                .state("Pending", waiting("ErrImagePull", "not found"), false)
                .await;
            pod.event("Failed", "Failed to pull image: not found").await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            report
                .state(
                    "Pending",
                    waiting("ImagePullBackOff", "Back-off pulling image"),
                    false,
                )
                .await;
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
    }
    let is_job = spec
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "Job");
    if is_job {
        report
            .state("Running", json!({"running": {"startedAt": now()}}), true)
            .await;
        match pod.behaviour.run {
            Some(run) => tokio::time::sleep(run).await,
            None => std::future::pending().await,
        }
        let exit = pod.behaviour.exit;
        let (phase, reason) = if exit == 0 {
            ("Succeeded", "Completed")
        } else {
            ("Failed", "Error")
        };
        if exit != 0 {
            pod.log("panic: connection string postgres://app:hunter2@db:5432/app refused");
        }
        let ended =
            json!({"terminated": {"exitCode": exit, "reason": reason, "finishedAt": now()}});
        report.state(phase, ended, false).await;
        return;
    }
    let mut back_off = Duration::from_secs(10);
    loop {
        pod.log("started");
        let image = spec
            .spec
            .as_ref()
            .and_then(|spec| spec.containers.first()?.image.clone());
        let program = image.as_deref().and_then(program::of);
        let end = match program {
            Some(program) => run_program(&pod, &report, &program).await,
            None => run_once(&pod, &report).await,
        };
        if pod.is_deleted() {
            return std::future::pending().await;
        }
        let started = now();
        let (code, reason) = match end {
            End::Crash => (1, "Error"),
            End::OutOfMemory => (137, "OOMKilled"),
            End::Exit(0) => (0, "Completed"),
            End::Exit(code) => (code, "Error"),
        };
        let policy = spec
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.as_deref());
        if policy == Some("Never") {
            let phase = if code == 0 { "Succeeded" } else { "Failed" };
            let ended = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}});
            report.state(phase, ended, false).await;
            return;
        }
        if end == End::Crash {
            pod.log("panic: connection string postgres://app:hunter2@db:5432/app refused");
        }
        let ended = json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}});
        report.state("Running", ended.clone(), false).await;
        {
            let mut logs = pod.logs.lock().unwrap();
            logs.1 = std::mem::take(&mut logs.0);
        }
        report.last = ended;
        // The first restart is at once, as a kubelet's.
        if report.restarts > 0 {
            let message = format!(
                "back-off {} s restarting failed container",
                back_off.as_secs()
            );
            report
                .state("Running", waiting("CrashLoopBackOff", &message), false)
                .await;
            pod.event("BackOff", "Back-off restarting failed container")
                .await;
            tokio::time::sleep(back_off).await;
            back_off = (back_off * 2).min(Duration::from_secs(300));
        }
        report.restarts += 1;
    }
}

#[derive(PartialEq)]
enum End {
    Crash,
    OutOfMemory,
    Exit(i32),
}

/// One run of a real program, with its readiness probe.
async fn run_program(pod: &Arc<Running>, report: &Report<'_>, path: &std::path::Path) -> End {
    let mut program = match Program::start(pod, report.spec, path).await {
        Ok(program) => program,
        Err(why) => {
            eprintln!("{}/{}: {why}", pod.namespace, pod.name);
            pod.log(&why);
            return End::Exit(128);
        }
    };
    pod.process.send_replace(program.id());
    let running = json!({"running": {"startedAt": now()}});
    let containers = &report.spec.spec.as_ref().unwrap().containers;
    let probe = containers.iter().find_map(|container| {
        let get = container.readiness_probe.as_ref()?.http_get.as_ref()?;
        let port = container.ports.iter().flatten().next()?.container_port;
        Some(web::Probe {
            address: (pod.address, u16::try_from(port).ok()?).into(),
            path: get.path.clone()?,
            by_tls: get.scheme.as_deref() == Some("HTTPS"),
        })
    });
    report
        .state("Running", running.clone(), probe.is_none())
        .await;
    let ready = async {
        let Some(probe) = probe else {
            return std::future::pending::<()>().await;
        };
        let mut was_ready = false;
        loop {
            let is_ready = probe.is_well().await;
            if is_ready != was_ready {
                report.state("Running", running.clone(), is_ready).await;
                was_ready = is_ready;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let code = tokio::select! {
        () = ready => unreachable!("the readiness probe goes on for ever"),
        code = program.run(pod, report.spec) => code,
    };
    pod.process.send_replace(None);
    End::Exit(code)
}

/// One run of the container, with its server and its readiness probe.
async fn run_once(pod: &Arc<Running>, report: &Report<'_>) -> End {
    let spec = report.spec.spec.as_ref().unwrap();
    let ports = spec
        .containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten());
    let mut servers = tokio::task::JoinSet::new();
    for port in ports {
        let number = u16::try_from(port.container_port).unwrap();
        let listener = TcpListener::bind((pod.address, number))
            .await
            .expect("a pod's address");
        let pod = Arc::clone(pod);
        servers.spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        if let Ok((stream, _)) = accepted {
                            connections.spawn(web::serve(stream, Arc::clone(&pod)));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
    }
    let running = json!({"running": {"startedAt": now()}});
    let probe = spec.containers.iter().find_map(|container| {
        let probe = container.readiness_probe.as_ref()?;
        let path = probe.http_get.as_ref()?.path.clone()?;
        let seconds = |value: Option<i32>, least: u64| {
            u64::try_from(value.unwrap_or(0)).unwrap_or(0).max(least)
        };
        Some((
            path,
            seconds(probe.initial_delay_seconds, 0),
            seconds(probe.period_seconds, 1),
        ))
    });
    report
        .state("Running", running.clone(), probe.is_none())
        .await;
    let ready = async {
        let Some((path, delay, period)) = probe else {
            return std::future::pending::<()>().await;
        };
        tokio::time::sleep(Duration::from_secs(delay)).await;
        let mut was_ready = false;
        loop {
            let (status, _) = web::at_once(pod, &path, &pod.answer(&path));
            let is_ready = (200..400).contains(&status);
            if is_ready != was_ready {
                report.state("Running", running.clone(), is_ready).await;
                was_ready = is_ready;
            }
            tokio::time::sleep(Duration::from_secs(period)).await;
        }
    };
    let after = |span: Option<Duration>| async move {
        match span {
            Some(span) => tokio::time::sleep(span).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ready => unreachable!("the readiness probe goes on for ever"),
        () = after(pod.behaviour.crash_after) => End::Crash,
        () = after(pod.behaviour.oom_after) => End::OutOfMemory,
    }
}
