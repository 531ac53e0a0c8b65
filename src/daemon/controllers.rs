//! Starts, replaces and ends the release controllers when the settings or the leader change.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cluster::ConnectedCluster;
use super::leadership::{Leadership, ReleaseKey, ShardLeadership};
use super::probe_executor::{ProbeResultMsg, ProbeSubject, Subscriber};
use super::release_controller::{self, Posted};
use super::{ActiveConfig, Daemon, MAX_ORDERS};
use crate::config::settings::{NeedsEntry, ProbeConfig, ReleaseConfig, Settings};
use crate::core::units::ProbeId;
use crate::http::status::{GuardFeed, GuardView};
use crate::http::{self, ReceivedAlert, RollbackOrder};
use crate::release::embedded::EmbeddedEngine;
use crate::release::{Engine, ObservedState};

/// A running release controller.
pub(super) struct ControllerHandle {
    pub(super) release: ReleaseConfig,
    results: mpsc::Sender<ProbeResultMsg>,
    pub(super) orders: mpsc::Sender<RollbackOrder>,
    pub(super) alerts: mpsc::Sender<ReceivedAlert>,
    pub(super) view: GuardFeed,
    /// Whether new settings wait until its analysis has ended.
    pub(super) waits: watch::Sender<bool>,
    stop: CancellationToken,
    task: JoinHandle<Option<release_controller::State>>,
}

impl ControllerHandle {
    /// Whether a revision is being analyzed, rolled back or verified.
    pub(super) fn is_at_work(&self) -> bool {
        self.view.borrow().candidate.is_some()
    }
}

impl Daemon {
    /// The settings to put in force: the new ones, but those of a running analysis stay.
    pub(super) fn settings_now(applied: &ActiveConfig) -> Settings {
        let mut settings = applied.wanted.clone();
        for release in &mut settings.releases {
            let key = (release.namespace.clone(), release.name.clone());
            let Some(guarded) = applied.controllers.get(&key) else {
                continue;
            };
            let mut kept = guarded.release.clone();
            kept.controller.mode = kept.controller.mode.lesser(release.controller.mode);
            let waits = kept != *release && guarded.is_at_work();
            if waits {
                *release = kept;
            }
            let did_wait = guarded.waits.send_replace(waits);
            if waits && !did_wait {
                tracing::info!(namespace = %key.0, release = %key.1,
                    "A watch runs; it keeps the settings that it began with, and the new ones wait for its end");
            }
        }
        settings
    }

    /// A controller with unchanged settings goes on; one with new settings hands its state to its successor.
    pub(super) async fn controllers_for(
        &self,
        settings: &Settings,
        leadership: &Leadership,
        mut before: HashMap<ReleaseKey, ControllerHandle>,
        cluster: &mut Option<ConnectedCluster>,
    ) -> HashMap<ReleaseKey, ControllerHandle> {
        let mut controllers = HashMap::new();
        for release in &settings.releases {
            let Some(shard_leadership) = leadership
                .of(release)
                .filter(|shard_leadership| shard_leadership.acts())
            else {
                continue;
            };
            let engine: Arc<dyn Engine> = match (&release.embedded, &mut *cluster) {
                (Some(directory), _) => EmbeddedEngine::new(directory),
                (None, Some(cluster)) if release.in_cluster => {
                    cluster.engine(release, shard_leadership.permit())
                }
                (None, _) => continue,
            };
            let key = (release.namespace.clone(), release.name.clone());
            let old = before.remove(&key);
            let guarded = match old {
                Some(old) if old.release == *release => old,
                Some(old) => {
                    let state = end(old).await;
                    self.controller(release, shard_leadership, engine, state)
                }
                None => self.controller(release, shard_leadership, engine, None),
            };
            controllers.insert(key, guarded);
        }
        let (gone, ended): (Vec<_>, Vec<_>) = before.into_iter().unzip();
        end_all(ended).await;
        for (namespace, name) in gone {
            self.interval_overrides
                .watch((namespace.clone(), name.clone()), None, Vec::new());
            self.executor.suspect(&format!("{namespace}/{name}"), None);
            self.executor
                .metrics()
                .releases
                .forget(namespace.as_str(), name.as_str());
        }
        if let Some(cluster) = cluster {
            let selections = &settings.selections;
            cluster.select(selections);
            cluster.keep(|namespace| {
                controllers.keys().any(|(own, _)| own == namespace)
                    || selections
                        .iter()
                        .any(|selection| selection.namespace == *namespace)
            });
        }
        let mut listeners: HashMap<ProbeId, Vec<Subscriber>> = HashMap::new();
        for guarded in controllers.values() {
            let mut listen = |id: &ProbeId, of| {
                let to = guarded.results.clone();
                let all = listeners.entry(id.clone()).or_default();
                all.push(Subscriber { of, to });
            };
            for (at, probe) in guarded.release.probes.iter().enumerate() {
                listen(&probe.id, ProbeSubject::Endpoint(at));
            }
            let needs = guarded.release.needs();
            let names: Vec<&str> = needs
                .into_iter()
                .filter_map(NeedsEntry::dependency)
                .collect();
            for ProbeConfig { id, .. } in settings.dependencies.iter().map(AsRef::as_ref) {
                if names.contains(&id.probe.as_str()) {
                    listen(id, ProbeSubject::Dependency(id.probe.clone()));
                }
            }
        }
        self.executor.listen(listeners);
        controllers
    }

    fn controller(
        &self,
        release: &ReleaseConfig,
        shard_leadership: &ShardLeadership,
        engine: Arc<dyn Engine>,
        state: Option<release_controller::State>,
    ) -> ControllerHandle {
        self.executor.metrics().releases.is_in(
            release.namespace.as_str(),
            release.name.as_str(),
            release.controller.mode,
        );
        let (observed, release_state) = watch::channel(ObservedState::default());
        let (results, received) = mpsc::channel(release_controller::HEARD);
        let (orders, ordered) = mpsc::channel(MAX_ORDERS);
        let (alerts, told) = mpsc::channel(http::MAX_WAITING_ALERTS);
        let begins = GuardView {
            namespace: release.namespace.to_string(),
            release: release.name.to_string(),
            mode: release.controller.mode.as_str(),
            engine: Some(engine.name()),
            ..GuardView::default()
        };
        let (view, feed) = watch::channel(Arc::new(begins));
        let (waits, told_to_wait) = watch::channel(false);
        let begun = CancellationToken::new();
        let setup = release_controller::Startup {
            release: release.clone(),
            engine: Arc::clone(&engine),
            store: self.store.clone(),
            executor: Arc::clone(&self.executor),
            interval_overrides: Arc::clone(&self.interval_overrides),
            timeline: self.timeline,
            changed: shard_leadership.changed(),
            permit: shard_leadership.permit(),
            waits: told_to_wait,
            begun: begun.clone(),
        };
        let stop = CancellationToken::new();
        let controller = Posted::new(setup, state, release_state, received, view, ordered, told);
        let ended = self.controller_ended.clone().drop_guard();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move {
                // What has to be known of a release depends on where it stands.
                let mut following = tokio::spawn(async move {
                    begun.cancelled().await;
                    engine.follow(observed).await;
                });
                tokio::select! {
                    state = Box::pin(controller.run(stop)) => {
                        following.abort();
                        ended.disarm();
                        state
                    }
                    // What is known would stay as it is, and be believed.
                    _ = &mut following => None,
                }
            }
        });
        ControllerHandle {
            release: release.clone(),
            results,
            orders,
            alerts,
            view: feed,
            waits,
            stop,
            task,
        }
    }
}

/// Stops a controller after it has written its state. `None` if it had ended by itself (logged there), or had not
/// started because its state could not be read.
async fn end(guarded: ControllerHandle) -> Option<release_controller::State> {
    guarded.stop.cancel();
    guarded.task.await.ok().flatten()
}

/// Stops controllers concurrently: each may have to wait for the disk or for helm.
pub(super) async fn end_all(controllers: Vec<ControllerHandle>) {
    for guarded in &controllers {
        guarded.stop.cancel();
    }
    for guarded in controllers {
        end(guarded).await;
    }
}
