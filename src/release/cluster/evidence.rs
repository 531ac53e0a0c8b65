//! Collects evidence: the state of the cluster at the moment of a verdict, before the rollback changes it.
//!
//! A missing part is named in the bundle and delays nothing.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt as _};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod};
use kube::Api;
use kube::api::{ListParams, LogParams};
use serde_json::Value;
use tokio::time::Instant;

use super::ClusterEngine;
use super::api::ask;
use crate::core::evidence::{
    EventEvidence, EvidenceBundle, LogEvidence, MAX_EVENTS, MAX_LINES, MAX_LOGS, MAX_PODS,
    PodEvidence, changes, redacted, redacted_lines, redacted_to,
};
use crate::core::units::Revision;
use crate::helm::manifest;
use crate::helm::record::HelmRecord;
use crate::release::ReleaseState;

/// Maximum duration; parts that have not arrived by then are missing.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// Pods that are read one by one.
const LOOKED_AT: usize = 8;

/// Events of the namespace that are searched.
const MAX_READ: u32 = 500;

/// Bytes that are kept of one log: the last ones.
const MAX_LOG: usize = 64 * 1024;

/// Pods of a hook that are read.
const HOOK_PODS: u32 = 4;

/// Characters that are kept of a hook's last log lines.
const MAX_WORDS: usize = 200;

/// Bytes that are read of one log; a hundred lines rarely have as many.
const MAX_READ_LOG: u64 = 4 * 1024 * 1024;

/// Waits for a part of the evidence until a deadline, so that a slow part does not hold up the others.
async fn by<T>(until: Instant, part: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| format!("nothing came within {} s", PATIENCE.as_secs());
    tokio::time::timeout_at(until, part)
        .await
        .map_err(late)
        .flatten()
}

impl ClusterEngine {
    pub(super) async fn evidence_collector(
        &self,
        release_state: &ReleaseState,
        bad: Revision,
        serving: Option<Revision>,
    ) -> EvidenceBundle {
        let mut evidence = EvidenceBundle::default();
        let until = Instant::now() + PATIENCE;
        let (pods, events, scalers, records) = tokio::join!(
            self.look_at_pods(release_state, bad, until),
            by(until, self.events_of(release_state)),
            by(until, self.scalers()),
            by(until, self.differences(bad, serving)),
        );
        let (pods, logs, mut missing) = pods;
        evidence.pods = pods;
        evidence.logs = logs;
        match events {
            Ok(events) => evidence.events = events,
            Err(why) => missing.push(format!("events: {why}")),
        }
        evidence.workloads = self.rollouts();
        match scalers {
            Ok(scalers) => evidence.workloads.extend(scalers),
            Err(why) => missing.push(format!("autoscalers: {why}")),
        }
        match records {
            Ok((images, values)) => (evidence.images, evidence.values) = (images, values),
            Err(why) => missing.push(format!("differences: {why}")),
        }
        evidence.missing = missing;
        evidence
    }

    fn pods_api(&self) -> Api<Pod> {
        Api::namespaced(self.cache.client().clone(), self.cache.namespace().as_str())
    }

    /// The most informative pods: those of the bad revision first, and among them those in trouble.
    async fn look_at_pods(
        &self,
        release_state: &ReleaseState,
        bad: Revision,
        until: Instant,
    ) -> (Vec<PodEvidence>, Vec<LogEvidence>, Vec<String>) {
        let mut pods: Vec<&crate::release::ReleasePod> = release_state.pods.iter().collect();
        pods.sort_by_key(|pod| {
            (
                pod.revision != bad,
                pod.ready_since.is_some(),
                pod.restarts == 0,
            )
        });
        let looks = pods.into_iter().take(MAX_PODS).enumerate();
        let looks = looks.map(|(place, pod)| self.look_at(pod, place < LOOKED_AT, bad, until));
        let looks: Vec<PodEvidenceResult> = futures::future::join_all(looks).await;
        let (mut found, mut logs, mut missing) = (Vec::new(), Vec::new(), Vec::new());
        for look in looks {
            found.push(look.pod);
            logs.extend(look.logs);
            missing.extend(look.missing);
        }
        logs.truncate(MAX_LOGS);
        (found, logs, missing)
    }

    async fn look_at(
        &self,
        pod: &crate::release::ReleasePod,
        closely: bool,
        bad: Revision,
        until: Instant,
    ) -> PodEvidenceResult {
        let readiness = if pod.ready_since.is_some() {
            "ready"
        } else {
            "not ready"
        };
        let mut state = vec![readiness.to_owned()];
        state.extend(pod.waiting.as_deref().map(str::to_owned));
        if pod.restarts > 0 {
            state.push(format!("{} restarts", pod.restarts));
        }
        let (mut logs, mut missing) = (Vec::new(), Vec::new());
        if closely {
            let api = self.pods_api();
            let whole = async {
                let whole = ask(api.get_opt(&pod.name)).await;
                whole.map_err(|why| why.to_string())
            };
            match by(until, whole).await {
                Ok(Some(whole)) => {
                    let containers = containers_of(&whole);
                    state.extend(containers.iter().filter_map(last_end));
                    if pod.revision == bad {
                        (logs, missing) = logs_of(&api, &pod.name, &containers, until).await;
                    }
                }
                Ok(None) => state.push("gone".into()),
                Err(why) => missing.push(format!("pod {}: {why}", pod.name)),
            }
        }
        let pod = PodEvidence {
            name: pod.name.to_string(),
            revision: pod.revision.0,
            node: pod.node.to_string(),
            state: redacted(&state.join(", ")),
        };
        PodEvidenceResult { pod, logs, missing }
    }

    /// The last log lines of the hooks of a rollback to this revision, each as a sentence. Helm does not report them,
    /// and deletes the pods before it runs the hooks again. Our log gets the whole text.
    pub(super) async fn last_words_of_hooks(&self, target: &HelmRecord) -> Vec<String> {
        let until = Instant::now() + PATIENCE;
        let api = self.pods_api();
        let hooks = target
            .hooks
            .iter()
            .filter(|hook| hook.runs_at("pre-rollback") || hook.runs_at("post-rollback"));
        let mut words = Vec::new();
        for hook in hooks.take(LOOKED_AT) {
            let params = match hook.kind.as_str() {
                "Job" => ListParams::default().labels(&format!("job-name={}", hook.name)),
                "Pod" => ListParams::default().fields(&format!("metadata.name={}", hook.name)),
                _ => continue,
            };
            let pods = async {
                let pods = ask(api.list(&params.limit(HOOK_PODS))).await;
                pods.map_err(|why| why.to_string())
            };
            let pods = match by(until, pods).await {
                Ok(pods) => pods.items,
                Err(why) => {
                    tracing::warn!(release = %self.release, hook = hook.name, why, "What a hook said cannot be had");
                    continue;
                }
            };
            for pod in &pods {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let (logs, missing) = logs_of(&api, name, &containers_of(pod), until).await;
                for why in missing {
                    tracing::warn!(release = %self.release, why, "What a hook said cannot be had");
                }
                for log in logs {
                    tracing::warn!(release = %self.release, pod = name, container = log.container,
                        "The log of a hook ends so:\n{}", log.lines.join("\n"));
                    if let Some(last) = log.lines.iter().rfind(|line| !line.trim().is_empty()) {
                        words.push(format!(
                            "{name} said last: {}",
                            redacted_to(last, MAX_WORDS)
                        ));
                    }
                }
            }
        }
        words
    }

    async fn events_of(&self, release_state: &ReleaseState) -> Result<Vec<EventEvidence>, String> {
        let api: Api<Event> =
            Api::namespaced(self.cache.client().clone(), self.cache.namespace().as_str());
        // Of a busy namespace the others would fill the list.
        let params = ListParams::default().fields("type!=Normal").limit(MAX_READ);
        let events = ask(api.list(&params))
            .await
            .map_err(|why| why.to_string())?;
        let workloads: Vec<&str> = release_state
            .pods
            .iter()
            .map(|pod| &*pod.workload)
            .collect();
        let is_own = |name: &str| {
            release_state.pods.iter().any(|pod| *pod.name == *name)
                // ReplicaSets and pods that are gone begin with the name of their workload.
                || workloads.iter().any(|own| name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')))
        };
        let mut found: Vec<EventEvidence> = events
            .items
            .into_iter()
            .filter(|event| event.involved_object.name.as_deref().is_some_and(is_own))
            .map(|event| EventEvidence {
                at: event
                    .last_timestamp
                    .map(|at| at.0)
                    .or_else(|| event.event_time.map(|at| at.0))
                    .map_or_else(String::new, |at| at.to_string()),
                object: format!(
                    "{} {}",
                    event.involved_object.kind.unwrap_or_default(),
                    event.involved_object.name.unwrap_or_default()
                ),
                reason: event.reason.unwrap_or_default(),
                message: redacted(&event.message.unwrap_or_default()),
                count: event
                    .count
                    .and_then(|count| u32::try_from(count).ok())
                    .unwrap_or(1),
            })
            .collect();
        found.sort_by(|a, b| a.at.cmp(&b.at));
        let surplus = found.len().saturating_sub(MAX_EVENTS);
        found.drain(..surplus);
        Ok(found)
    }

    fn rollouts(&self) -> Vec<String> {
        let parts = self.parts();
        let tables = self.cache.tables();
        let own = tables.workloads().filter(|row| {
            parts
                .iter()
                .any(|(kind, name)| *kind == row.kind && *name == row.name)
        });
        let mut lines: Vec<String> = own
            .map(|row| {
                format!(
                    "{} {}: {} of {} pods of the newest template, {} available, {} in all{}",
                    row.kind.as_str(),
                    row.name,
                    row.updated,
                    row.wanted,
                    row.available,
                    row.total,
                    if row.paused { ", paused" } else { "" }
                )
            })
            .collect();
        lines.sort();
        lines.truncate(MAX_PODS);
        lines
    }

    async fn scalers(&self) -> Result<Vec<String>, String> {
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(self.cache.client().clone(), self.cache.namespace().as_str());
        let scalers = ask(api.list(&ListParams::default().limit(MAX_READ))).await;
        let scalers = scalers.map_err(|why| why.to_string())?;
        let parts = self.parts();
        let own = scalers.items.into_iter().filter_map(|scaler| {
            let spec = scaler.spec?;
            let target = spec.scale_target_ref.name;
            parts.iter().any(|(_, name)| **name == *target).then(|| {
                let status = scaler.status.unwrap_or_default();
                format!(
                    "HorizontalPodAutoscaler {}: {} of {} to {} pods, wants {}",
                    target,
                    status.current_replicas.unwrap_or(0),
                    spec.min_replicas.unwrap_or(1),
                    spec.max_replicas,
                    status.desired_replicas
                )
            })
        });
        Ok(own.take(MAX_PODS).collect())
    }

    /// Images and values that differ between the bad revision and the one before.
    async fn differences(
        &self,
        bad: Revision,
        serving: Option<Revision>,
    ) -> Result<(Vec<String>, Vec<String>), String> {
        let Some(serving) = serving else {
            return Ok(Default::default());
        };
        let read = |revision| async move {
            let record = self.record(revision).await.map_err(|why| why.to_string())?;
            record.ok_or_else(|| format!("the record of revision {revision} cannot be read"))
        };
        let (before, after) = (read(serving).await?, read(bad).await?);
        let values = |record: &HelmRecord| -> Value {
            let config = record.config.as_ref();
            config
                .and_then(|config| serde_json::from_str(config.get()).ok())
                .unwrap_or(Value::Null)
        };
        Ok((
            images(&before, &after),
            changes(&values(&before), &values(&after)),
        ))
    }
}

/// Result of reading one pod.
struct PodEvidenceResult {
    pod: PodEvidence,
    logs: Vec<LogEvidence>,
    missing: Vec<String>,
}

/// The logs of a pod's containers, and which are missing.
async fn logs_of(
    api: &Api<Pod>,
    pod: &str,
    containers: &[ContainerStatus],
    until: Instant,
) -> (Vec<LogEvidence>, Vec<String>) {
    let runs = containers.iter().flat_map(|container| {
        // A run before is there only after a restart.
        let crashed = (container.restart_count > 0).then_some((container, true));
        crashed.into_iter().chain([(container, false)])
    });
    let reads = runs.take(MAX_LOGS).map(|(container, previous)| async move {
        let params = LogParams {
            container: Some(container.name.clone()),
            previous,
            tail_lines: i64::try_from(MAX_LINES).ok(),
            ..LogParams::default()
        };
        let read = async {
            match ask(api.log_stream(pod, &params)).await {
                Ok(log) => end_of(log).await.map_err(|why| why.to_string()),
                // A container that has not started yet has none.
                Err(why) if why.is(400) => Ok(String::new()),
                Err(why) => Err(why.to_string()),
            }
        };
        let text = by(until, read)
            .await
            .map_err(|why| format!("log of {pod}/{}: {why}", container.name))?;
        Ok((!text.trim().is_empty()).then(|| LogEvidence {
            pod: pod.to_owned(),
            container: container.name.clone(),
            previous,
            lines: redacted_lines(&text),
        }))
    });
    let reads: Vec<Result<Option<LogEvidence>, String>> = futures::future::join_all(reads).await;
    let (mut logs, mut missing) = (Vec::new(), Vec::new());
    for read in reads {
        match read {
            Ok(log) => logs.extend(log),
            Err(why) => missing.push(why),
        }
    }
    (logs, missing)
}

fn images(before: &HelmRecord, after: &HelmRecord) -> Vec<String> {
    let objects = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let (old, new) = (objects(before), objects(after));
    let changed = new.iter().filter_map(|object| {
        let was = old
            .iter()
            .find(|other| other.kind == object.kind && other.name == object.name)?;
        (was.images() != object.images()).then(|| {
            format!(
                "{} {}: {} -> {}",
                object.kind,
                object.name,
                was.images().join(", "),
                object.images().join(", ")
            )
        })
    });
    changed.map(|line| redacted(&line)).take(MAX_PODS).collect()
}

/// The end of a log, where a crash shows its reason. A limit at the API server would cut the end off.
async fn end_of(log: impl AsyncRead) -> std::io::Result<String> {
    let mut log = pin!(log.take(MAX_READ_LOG));
    let mut end = Vec::new();
    let mut part = vec![0; 8 * 1024];
    loop {
        let read = log.read(&mut part).await?;
        if read == 0 {
            break;
        }
        end.extend_from_slice(&part[..read]);
        let surplus = end.len().saturating_sub(MAX_LOG);
        end.drain(..surplus);
    }
    Ok(String::from_utf8_lossy(&end).into_owned())
}

/// The containers of a pod, after those init containers that have not succeeded.
fn containers_of(pod: &Pod) -> Vec<ContainerStatus> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let has_ended_well = |container: &&ContainerStatus| {
        let state = container.state.as_ref();
        let end = state.and_then(|state| state.terminated.as_ref());
        end.is_some_and(|end| end.exit_code == 0)
    };
    let init = status.init_container_statuses.iter().flatten();
    let init = init.filter(|container| !has_ended_well(container));
    let all = init.chain(status.container_statuses.iter().flatten());
    all.cloned().collect()
}

fn last_end(container: &ContainerStatus) -> Option<String> {
    let states = [container.state.as_ref(), container.last_state.as_ref()];
    let end = states
        .into_iter()
        .flatten()
        .find_map(|state| state.terminated.as_ref())?;
    let reason = end.reason.as_deref().unwrap_or("ended");
    let message = end
        .message
        .as_deref()
        .map_or_else(String::new, |text| format!(": {text}"));
    let meaning = if reason == "OOMKilled" {
        ": it needed more memory than it may have"
    } else {
        ""
    };
    Some(format!(
        "last end of {}: {reason} (exit code {}){meaning}{message}",
        container.name, end.exit_code
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_slow_is_missing_and_what_has_come_is_kept() {
        let until = Instant::now() + PATIENCE;
        let slow = by(until, std::future::pending::<Result<(), String>>());
        let quick = by(until, std::future::ready(Ok(7)));
        let (slow, quick) = tokio::join!(slow, quick);
        assert_eq!(slow, Err("nothing came within 3 s".to_owned()));
        assert_eq!(quick, Ok(7));
    }

    #[tokio::test]
    async fn of_a_long_log_the_end_is_kept() {
        let log = format!("{}the reason", "x".repeat(100 * 1024));
        let end = end_of(log.as_bytes()).await.unwrap();
        assert_eq!(end.len(), MAX_LOG);
        assert!(end.ends_with("xthe reason"));
        let endless = futures::io::repeat(b'x');
        assert_eq!(end_of(endless).await.unwrap().len(), MAX_LOG);
        assert_eq!(end_of(&b"\xff short"[..]).await.unwrap(), "\u{fffd} short");
    }

    #[test]
    fn an_init_container_that_fails_is_looked_at_before_the_others() {
        let status = |name: &str, state: serde_json::Value| {
            serde_json::json!({
                "name": name, "image": "a", "imageID": "a", "ready": false, "restartCount": 3, "state": state
            })
        };
        let done = serde_json::json!({"terminated": {"exitCode": 0}});
        let waits = serde_json::json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let pod = serde_json::json!({"status": {
            "initContainerStatuses": [status("fetch", done), status("migrate", waits.clone())],
            "containerStatuses": [status("api", waits)],
        }});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let names: Vec<String> = containers_of(&pod).into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["migrate", "api"]);
    }

    #[test]
    fn too_little_memory_is_said_in_words() {
        let status = serde_json::json!({
            "name": "api", "image": "a", "imageID": "a", "ready": false, "restartCount": 1,
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
        });
        let status: ContainerStatus = serde_json::from_value(status).unwrap_or_default();
        assert_eq!(
            last_end(&status).as_deref(),
            Some(
                "last end of api: OOMKilled (exit code 137): it needed more memory than it may have"
            )
        );
    }
}
