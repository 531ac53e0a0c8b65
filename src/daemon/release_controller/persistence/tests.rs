//! A guard begins with what is stored, or not at all.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

use super::super::state::tests::{names, state};
use super::*;
use crate::config::settings::AlertWeight;
use crate::config::{self, Sources};
use crate::core::analysis::{self, TickOutcome};
use crate::core::revision_ledger::{ContentDigest, RevisionStatus, StoredRevision};
use crate::core::units::Revision;
use crate::daemon::interval_overrides::IntervalOverrides;
use crate::daemon::probe_executor::ProbeExecutor;
use crate::metrics::Metrics;
use crate::platform::clock::{self, Timeline};
use crate::platform::permit::Permit;
use crate::prober;
use crate::prober::schedule::Schedule;
use crate::release::ReleaseState;
use crate::release::embedded::EmbeddedEngine;
use crate::storage::StateStore;
use crate::storage::played::{Cluster, Replica};

/// A guard at its post, and what is to be seen of it.
struct Guarding {
    task: JoinHandle<Option<State>>,
    stop: CancellationToken,
    view: watch::Receiver<Arc<GuardView>>,
    orders: mpsc::Sender<RollbackOrder>,
    alerts: mpsc::Sender<ReceivedAlert>,
    /// The facts come only where a test sends some.
    release_state: watch::Sender<ObservedState>,
    metrics: Arc<Metrics>,
    _folder: tempfile::TempDir,
}

fn controller(store: StateStore, permit: Permit) -> Guarding {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    let text = format!(
        "[[release]]\nname = \"web\"\nnamespace = \"shop\"\nbase_url = \"http://127.0.0.1:9\"\nembedded = {:?}\nmode = \"enforce\"\n[[release.probe]]\nname = \"api\"\npath = \"/\"\n",
        folder.path()
    );
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        files: vec![file],
        environment: Vec::new(),
        flags: Vec::new(),
        discovered: Vec::new(),
    };
    let Ok(loaded) = config::load(&sources) else {
        panic!("the configuration is wrong");
    };
    let settings = loaded.settings;
    let metrics = Arc::new(Metrics::new().unwrap());
    let dependencies = prober::ProberContext::new(clock::now);
    let (release_state, observed) = watch::channel(ObservedState::default());
    let (_, results) = mpsc::channel(1);
    let (orders, ordered) = mpsc::channel(1);
    let (tell, alerts) = mpsc::channel(8);
    let (view, shown) = watch::channel(Arc::new(GuardView::default()));
    let setup = Startup {
        engine: EmbeddedEngine::new(folder.path()),
        release: settings.releases[0].clone(),
        store: Some(Arc::new(store)),
        executor: Arc::new(ProbeExecutor::new(
            &settings,
            Arc::clone(&metrics),
            dependencies,
        )),
        interval_overrides: Arc::new(IntervalOverrides::new(
            Schedule::start(clock::now, |_| {}).unwrap(),
        )),
        timeline: Timeline::start(),
        changed: Arc::new(Notify::new()),
        waits: watch::channel(false).1,
        begun: CancellationToken::new(),
        permit,
    };
    let stop = CancellationToken::new();
    let posted = Posted::new(setup, None, observed, results, view, ordered, alerts);
    let stopped = stop.clone();
    Guarding {
        task: tokio::spawn(async move { Box::pin(posted.run(stopped)).await }),
        stop,
        view: shown,
        orders,
        alerts: tell,
        release_state,
        metrics,
        _folder: folder,
    }
}

/// What the last replica stored, which is everything; then one that takes over.
async fn taken_over() -> (Cluster, Replica) {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    let (namespace, release) = names();
    let (state, saved) = state();
    let nothing = first
        .store
        .load::<State>(StoredKind::State, &namespace, &release, saved);
    assert_eq!(nothing, StoredState::Nothing);
    let kind = StoredKind::State;
    first
        .store
        .save(kind, &namespace, &release, &state, saved)
        .unwrap();
    let second = cluster.replica(Some(2));
    (cluster, second)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_whose_state_cannot_be_read_is_not_guarded_until_it_can_be() {
    let (cluster, replica) = taken_over().await;
    cluster.world().refuses = Some(429);
    let permit = Permit::of(replica.lease.subscribe());
    let mut guarding = controller(replica.store, permit);
    let shown = guarding.view.wait_for(|view| view.blind.is_some()).await;
    let shown = Arc::clone(&shown.unwrap());
    assert!(shown.says.contains("not guarded yet"), "{}", shown.says);
    assert!(shown.phase.is_empty());
    let (answer, answered) = oneshot::channel();
    let order = RollbackOrder {
        target: None,
        reason: "because".into(),
        answer,
        key: None,
    };
    assert!(guarding.orders.send(order).await.is_ok());
    let refused = answered.await.unwrap().unwrap_err();
    let why = format!("{refused:?}");
    assert!(
        why.starts_with("NotNow") && why.contains("cannot be read yet"),
        "{why}"
    );
    cluster.world().refuses = None;
    let begun = guarding.view.wait_for(|view| !view.phase.is_empty()).await;
    assert_eq!(begun.unwrap().rollouts.len(), 1, "what was stored is known");
    guarding.stop.cancel();
    let ended = guarding.task.await.unwrap().unwrap();
    assert_eq!(ended.ledger.entries().len(), 1);
    assert_eq!(ended.fence, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_loses_the_permit_before_the_state_is_read_leaves_nothing() {
    let (cluster, replica) = taken_over().await;
    cluster.world().refuses = Some(429);
    let permit = Permit::of(replica.lease.subscribe());
    let mut guarding = controller(replica.store, permit);
    let waits = guarding.view.wait_for(|view| view.blind.is_some()).await;
    drop(waits);
    replica.lease.send_replace(None);
    assert_eq!(guarding.task.await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_another_replica_began_is_recorded_from_there_on() {
    let (_cluster, replica) = taken_over().await;
    let folder = replica.folder.path().to_owned();
    let permit = Permit::of(replica.lease.subscribe());
    let mut guarding = controller(replica.store, permit);
    let begun = guarding.view.wait_for(|view| !view.phase.is_empty()).await;
    drop(begun);
    guarding.stop.cancel();
    guarding.task.await.unwrap();
    let files = crate::storage::recordings(&folder, None);
    let recording = crate::storage::read_recording(&files[0]).unwrap();
    assert_eq!(recording.first_tick(), 10);
    assert!(recording.cut.is_some());
    assert_eq!(recording.pods.len(), 1);
}

/// The facts of a release whose newest revision is this one.
fn at(revision: u32, stored_at: Option<Time>) -> ObservedState {
    let record = StoredRevision {
        revision: Revision(revision),
        status: RevisionStatus::Deployed,
        description: "Upgrade complete".into(),
        digest: Some(ContentDigest(revision.to_string().into())),
        weak: None,
        hooks_succeeded: true,
        test_failed: false,
    };
    ObservedState {
        release_state: Arc::new(ReleaseState {
            revisions: vec![record],
            stored_at,
            ..ReleaseState::default()
        }),
        ..ObservedState::default()
    }
}

/// A watch has found something, and the cluster tells nothing of the release: what could be done must wait, and what was
/// found is true all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_is_acted_on_when_the_cluster_is_seen_again() {
    let cluster = Cluster::new().await;
    let first = cluster.replica(Some(1));
    let (namespace, release) = names();
    let (mut state, saved) = state();
    let kind = StoredKind::State;
    let nothing = first.store.load::<State>(kind, &namespace, &release, saved);
    assert_eq!(nothing, StoredState::Nothing);
    let running = state.running.as_mut().unwrap();
    while running.analysis.regression().is_none() {
        assert!(!running.analysis.is_over());
        running.analysis.tick(&analysis::Tick {
            outcomes: &[TickOutcome::Failure],
            ..analysis::Tick::default()
        });
    }
    first
        .store
        .save(kind, &namespace, &release, &state, saved)
        .unwrap();
    let second = cluster.replica(Some(2));
    let permit = Permit::of(second.lease.subscribe());
    let mut guarding = controller(second.store, permit);
    let away = ObservedState {
        trouble: Some("the API server cannot be reached".into()),
        ..at(4, None)
    };
    guarding.release_state.send_replace(away);
    let blind = guarding.view.wait_for(|view| view.blind.is_some()).await;
    assert_eq!(blind.unwrap().phase, "analyzing");
    guarding.release_state.send_replace(at(4, None));
    let is_found = |view: &GuardView| view.verdict.as_ref().is_some_and(|it| it.revision == 4);
    let shown = guarding.view.wait_for(|view| is_found(view)).await;
    let verdict = shown.unwrap().verdict.clone().unwrap();
    assert_eq!(verdict.verdict, "rollback");
    let is_finished = |view: &GuardView| view.phase != "analyzing";
    let phase = guarding.view.wait_for(|view| is_finished(view)).await;
    let rollouts = phase.unwrap().rollouts.clone();
    let is_unknown = rollouts.iter().any(|it| it.outcome == "inconclusive");
    assert!(!is_unknown, "{rollouts:?}");
}

/// Alerts that were told before we saw the revision: one began before it was stored, and one after that.
async fn told_before_the_watch(weight: AlertWeight) -> (Guarding, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut guarding = controller(StateStore::open(folder.path()).unwrap(), Permit::always());
    let now = Timeline::start().now();
    let ago = |seconds: u64| Time::from_millis(now.millis() - seconds * 1000);
    guarding.release_state.send_replace(at(7, Some(ago(3600))));
    let steady = guarding.view.wait_for(|view| view.phase == "idle").await;
    drop(steady);
    let waits = || guarding.metrics.webhook.waits();
    for (name, since) in [("Before", ago(20)), ("Under", ago(5))] {
        let alert = ReceivedAlert::firing(name, since.millis(), weight, waits());
        guarding.alerts.send(alert).await.unwrap();
    }
    let taken = || guarding.alerts.capacity() == guarding.alerts.max_capacity();
    while !taken() {
        tokio::task::yield_now().await;
    }
    guarding.release_state.send_replace(at(8, Some(ago(10))));
    (guarding, folder)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_was_told_before_its_revision_was_seen_counts() {
    let (mut guarding, _folder) = told_before_the_watch(AlertWeight::Inconclusive).await;
    let seen = guarding
        .view
        .wait_for(|view| view.revision == Some(8))
        .await;
    drop(seen);
    guarding.stop.cancel();
    let state = guarding.task.await.unwrap().unwrap();
    let running = state.running.unwrap();
    let names: Vec<&str> = running.alerts.iter().map(|firing| &*firing.name).collect();
    assert_eq!(names, ["Under"]);
    assert_eq!(state.told.len(), 2, "both still fire");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_was_told_before_its_revision_was_seen_rejects() {
    let (mut guarding, _folder) = told_before_the_watch(AlertWeight::Reject).await;
    let verdict = guarding.view.wait_for(|view| view.verdict.is_some()).await;
    let verdict = verdict.unwrap().verdict.clone().unwrap();
    assert_eq!(verdict.reason, "alert:Under");
}
