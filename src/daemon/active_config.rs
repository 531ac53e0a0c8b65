//! Putting settings in force.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::controllers::ControllerHandle;
use super::counter_persistence;
use super::leadership::ReleaseKey;
use super::probe_executor::ProbeTask;
use super::{ActiveConfig, Daemon, orders_of};
use crate::config::NamedFile;
use crate::config::settings::{ProbeConfig, ProbeKind, Settings};
use crate::core::probe_stats::TrackedProbe;
use crate::core::self_check::SelfCheck;
use crate::core::units::ProbeId;
use crate::http::{self, AlertSubscriber, LeaderRoute, Routing, ServingConfig};
use crate::metrics::ProbeSeries;
use crate::platform::clock;
use crate::prober::Prober;

/// The longest that a look at the named files holds up what follows.
const FILES_PATIENCE: Duration = Duration::from_secs(2);

/// How long probing may wait for the counters of the long spans; they come later where they take longer.
const RESTORE_PATIENCE: Duration = Duration::from_millis(100);

impl Daemon {
    pub(super) async fn put_in_force(&self, applied: &mut ActiveConfig) {
        let settings = Self::settings_now(applied);
        applied.leadership.want(&settings.releases);
        let answers = applied.leadership.answers(&mut applied.forwards);
        let is_here = matches!(answers, Routing::One(LeaderRoute::Here));
        if !is_here {
            self.web.set_answers(answers.clone());
        }
        warn_of_restart(&settings, &applied.settings);
        let (runners, series) = self.probe_tasks(&settings, &applied.runners);
        let new: Vec<Arc<TrackedProbe>> = runners
            .iter()
            .filter(|(id, _)| !applied.runners.contains_key(id))
            .map(|(_, runner)| Arc::clone(&runner.tracked_probe))
            .collect();
        self.restore(new).await;
        self.executor.adopt(
            SelfCheck::new(&settings.self_check, hosts_of(&settings)),
            settings.self_check.late_after,
            settings.max_in_flight,
        );
        // Probing waits for nothing that is asked of the cluster.
        self.interval_overrides
            .set(runners.values().cloned().collect());
        let controllers = std::mem::take(&mut applied.controllers);
        let controllers = self
            .controllers_for(
                &settings,
                &applied.leadership,
                controllers,
                &mut applied.cluster,
            )
            .await;
        self.tell_or_be_silent(&applied.leadership, &settings).await;
        applied.leadership.want_no_other(&settings.releases).await;
        let serving = self.serving_config(&settings, series, &controllers);
        self.web.replace_serving_config(serving);
        if settings.named_files != applied.settings.named_files {
            warn_of_files(settings.named_files.clone()).await;
        }
        // Who asks before the guards are there would be told that there are no releases.
        if is_here {
            self.web.set_answers(answers);
        }
        self.orders
            .send_replace(Arc::new(orders_of(&settings, self.address)));
        applied.settings = settings;
        applied.runners = runners;
        applied.controllers = controllers;
    }

    /// The probes' tasks, by id, and their series; those of `[self_check]` have none.
    fn probe_tasks(
        &self,
        settings: &Settings,
        before: &HashMap<ProbeId, Arc<ProbeTask>>,
    ) -> (HashMap<ProbeId, Arc<ProbeTask>>, Vec<ProbeSeries>) {
        let control = settings.self_check.control.iter();
        let mut runners = HashMap::new();
        let mut series = Vec::new();
        for (probe, is_control) in settings
            .probes()
            .chain(&settings.dependencies)
            .map(|probe| (probe, false))
            .chain(control.map(|probe| (probe, true)))
        {
            let runner = self.runner_for(probe, is_control, before.get(&probe.id));
            if !is_control {
                series.push(ProbeSeries::new(Arc::clone(&runner.tracked_probe)));
            }
            runners.insert(probe.id.clone(), runner);
        }
        (runners, series)
    }

    /// What the HTTP server needs of the settings and the controllers.
    fn serving_config(
        &self,
        settings: &Settings,
        series: Vec<ProbeSeries>,
        controllers: &HashMap<ReleaseKey, ControllerHandle>,
    ) -> ServingConfig {
        ServingConfig {
            series,
            modules: settings.modules.clone(),
            targets: settings
                .probes()
                .map(|probe| probe.target.to_string())
                .collect(),
            allow: settings.serve.probe_allow.clone(),
            timeout_offset: settings.serve.timeout_offset,
            controllers: controllers
                .values()
                .map(|controller| controller.view.clone())
                .collect(),
            orders: controllers
                .iter()
                .map(|((namespace, name), controller)| {
                    let key = (namespace.to_string(), name.to_string());
                    (key, controller.orders.clone())
                })
                .collect(),
            alerts: controllers
                .iter()
                .filter(|(_, controller)| !controller.release.alerts.is_empty())
                .map(|((namespace, name), controller)| AlertSubscriber {
                    release: (namespace.to_string(), name.to_string()),
                    rules: controller.release.alerts.clone(),
                    to: controller.alerts.clone(),
                })
                .collect(),
            token_file: settings.serve.token_file.clone(),
            review: self
                .review
                .clone()
                .filter(|_| settings.serve.kubernetes_auth),
            files: settings.named_files.clone(),
        }
    }

    /// Gives new probes the counters that were stored of them.
    async fn restore(&self, new: Vec<Arc<TrackedProbe>>) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let now = self.timeline.now();
        let restored =
            tokio::task::spawn_blocking(move || counter_persistence::restore(&store, now, &new));
        // It goes on by itself, and takes the place of what was counted meanwhile: seconds, of spans of minutes to weeks.
        let _ = tokio::time::timeout(RESTORE_PATIENCE, restored).await;
    }

    fn runner_for(
        &self,
        probe: &Arc<ProbeConfig>,
        is_control: bool,
        old: Option<&Arc<ProbeTask>>,
    ) -> Arc<ProbeTask> {
        if let Some(old) = old
            && *old.probe == **probe
            && old.is_control == is_control
        {
            return Arc::clone(old);
        }
        let tracked_probe = match old {
            Some(old) => {
                old.tracked_probe.adopt(Arc::clone(probe));
                Arc::clone(&old.tracked_probe)
            }
            None => Arc::new(TrackedProbe::new(Arc::clone(probe), clock::now())),
        };
        let prober = Prober::new(
            self.executor.dependencies(),
            probe.target.clone(),
            probe.kind.clone(),
        );
        Arc::new(ProbeTask::new(
            Arc::clone(probe),
            prober,
            tracked_probe,
            is_control,
        ))
    }
}

/// Says which changed settings a restart takes.
fn warn_of_restart(settings: &Settings, before: &Settings) {
    if settings.serve.listen != before.serve.listen {
        tracing::warn!(listen = %settings.serve.listen, "A new listen address takes a restart");
    }
    if settings.serve.max_connections != before.serve.max_connections
        || settings.serve.probe_rate != before.serve.probe_rate
    {
        tracing::warn!("New limits in [serve] take a restart");
    }
    if settings.serve.tls != before.serve.tls {
        tracing::warn!("New files in [serve.tls] take a restart; new contents do not");
    }
    if settings.state != before.state {
        tracing::warn!("A new state.directory takes a restart");
    }
    if settings.lease != before.lease {
        tracing::warn!("Another [lease] takes a restart");
    }
    if settings.kubernetes != before.kubernetes {
        tracing::warn!("Another cluster in [kubernetes] takes a restart");
    }
}

fn hosts_of(settings: &Settings) -> impl Iterator<Item = (ProbeId, String, Duration)> {
    settings
        .probes()
        .chain(&settings.dependencies)
        .map(|probe| (probe.id.clone(), asked_host(probe), probe.interval))
}

/// The host that packets go to: the proxy's, where there is one.
fn asked_host(probe: &ProbeConfig) -> String {
    match &probe.kind {
        ProbeKind::Http(http) => http.proxy.as_ref().unwrap_or(&probe.target).host(),
        ProbeKind::Tcp(_) => probe.target.host(),
    }
}

/// Says which of the named files cannot be used. They may come later, as a Secret does, so nothing is refused.
async fn warn_of_files(files: Vec<NamedFile>) {
    let looking = tokio::task::spawn_blocking(move || http::readiness::troubles(&files));
    // A disk that does not answer holds nothing up; `/-/ready` looks again.
    if let Ok(Ok(troubles)) = tokio::time::timeout(FILES_PATIENCE, looking).await {
        for trouble in troubles {
            tracing::warn!(
                trouble,
                "A file that the configuration names cannot be used yet"
            );
        }
    }
}
