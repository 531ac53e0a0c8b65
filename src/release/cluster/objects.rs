//! The cached form of a namespace's objects: many times smaller than the objects.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use k8s_openapi::api::apps::v1::{
    DaemonSet, Deployment, DeploymentSpec, DeploymentStatus, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as Stamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels;
use crate::core::units::Revision;
use crate::core::units::Time;
use crate::helm::record;

/// Containers of one pod that are examined.
const MAX_CONTAINERS: usize = 50;

/// Labels of one record that are kept.
const MAX_LABELS: usize = 20;

/// Labels that Helm sets itself.
const OF_HELM: [&str; 6] = [
    "name",
    "owner",
    "status",
    "version",
    "createdAt",
    "modifiedAt",
];

/// Ports of one pod that are kept.
const MAX_PORTS: usize = 50;

/// Cached objects by key; a complete list replaces all of them.
#[derive(Debug)]
pub(super) struct ObjectTable<K, V> {
    rows: HashMap<K, (u64, V)>,
    round: u64,
}

impl<K, V> Default for ObjectTable<K, V> {
    fn default() -> Self {
        Self {
            rows: HashMap::new(),
            round: 0,
        }
    }
}

impl<K: Hash + Eq, V: PartialEq> ObjectTable<K, V> {
    /// A complete list begins.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// The list is complete: removes objects that were not in it. Returns whether there were any.
    pub(super) fn end(&mut self) -> bool {
        let before = self.rows.len();
        let round = self.round;
        self.rows.retain(|_, (seen, _)| *seen == round);
        self.rows.len() != before
    }

    /// Returns whether it changed anything.
    pub(super) fn put(&mut self, key: K, value: V) -> bool {
        let is_new = self.rows.get(&key).is_none_or(|(_, old)| *old != value);
        self.rows.insert(key, (self.round, value));
        is_new
    }

    /// Returns whether it was there.
    pub(super) fn remove(&mut self, key: &K) -> bool {
        self.rows.remove(key).is_some()
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|(_, value)| value)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.rows.values().map(|(_, value)| value)
    }
}

/// A stored revision, from its object's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordSummaryRow {
    pub(super) object: Box<str>,
    pub(super) release: Box<str>,
    pub(super) revision: Revision,
    /// The label `status`.
    pub(super) status: Box<str>,
    pub(super) created: Time,
    /// Changes with the payload.
    pub(super) version: Box<str>,
    /// Whether our rollback made it.
    pub(super) ours: bool,
    /// Whether Helm wrote it long before the object was created, so a backup restored it.
    pub(super) restored: bool,
    /// Whether its label forbids a rollback.
    pub(super) denied: bool,
    /// The program that wrote the payload, unless it is the helm command.
    pub(super) by: Option<Box<str>>,
    /// The user's labels.
    pub(super) labels: BTreeMap<String, String>,
}

impl RecordSummaryRow {
    /// `None` if Helm did not store it.
    pub(super) fn of(meta: &ObjectMeta) -> Option<Self> {
        let object = meta.name.as_deref()?;
        let (release, revision) = record::name_of(object).ok()?;
        let label = |name: &str| meta.labels.as_ref().and_then(|labels| labels.get(name));
        Some(Self {
            object: object.into(),
            release: release.as_str().into(),
            revision,
            status: label("status").map_or("", String::as_str).into(),
            created: time_of(meta.creation_timestamp.as_ref()),
            version: meta.resource_version.as_deref().unwrap_or_default().into(),
            restored: is_restored(meta),
            // An upgrade inherits the labels of the revision before it, so the label names its own.
            ours: label(labels::MADE)
                .is_some_and(|created_revision| *created_revision == revision.to_string()),
            denied: label(labels::ROLLBACK).is_some_and(|wish| wish == "deny"),
            by: writer_of(meta),
            labels: meta
                .labels
                .iter()
                .flatten()
                .filter(|(key, _)| !OF_HELM.contains(&key.as_str()) && !labels::is_ours(key))
                .take(MAX_LABELS)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        })
    }
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodSummary {
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    /// UID of the ReplicaSet, StatefulSet or DaemonSet that owns it.
    pub(super) owner: Box<str>,
    /// Identifier of its template: `controller-revision-hash`, or `pod-template-generation` of a DaemonSet.
    pub(super) hash: Box<str>,
    pub(super) generation: Box<str>,
    pub(super) node: Box<str>,
    pub(super) created: Time,
    /// Since when it is Ready by the cluster's clock, which may differ from ours.
    ready_stamp: Option<Time>,
    /// The same by our clock.
    pub(super) ready_since: Option<Time>,
    pub(super) terminating: bool,
    /// Containers that have restarted or wait.
    pub(super) troubled: Vec<ContainerSummary>,
    /// Whether a container was last killed for lack of memory.
    pub(super) out_of_memory: bool,
    pub(super) ip: Option<IpAddr>,
    pub(super) ports: Vec<PortRow>,
    /// Images of its containers.
    pub(super) images: Vec<ImageSummary>,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PortRow {
    pub(super) container: Box<str>,
    /// Empty if it has none.
    pub(super) name: Box<str>,
    pub(super) number: u16,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImageSummary {
    pub(super) container: Box<str>,
    /// As the pod's specification names it.
    pub(super) name: Box<str>,
    /// What the node resolved it to.
    pub(super) id: Box<str>,
}

/// A container in trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerSummary {
    pub(super) name: Box<str>,
    pub(super) restarts: u32,
    /// Why it waits.
    pub(super) waiting: Option<Box<str>>,
}

impl ContainerSummary {
    pub(super) fn loops(&self) -> bool {
        self.waiting.as_deref() == Some("CrashLoopBackOff")
    }
}

impl PodSummary {
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let label = |name: &str| -> Box<str> {
            let labels = meta.labels.as_ref();
            labels
                .and_then(|labels| labels.get(name))
                .map_or("", String::as_str)
                .into()
        };
        let phase = status.and_then(|status| status.phase.as_deref());
        let has_ended = matches!(phase, Some("Succeeded" | "Failed"));
        let ready = status
            .and_then(|status| status.conditions.as_ref())
            .and_then(|all| all.iter().find(|one| one.type_ == "Ready"))
            .filter(|ready| ready.status == "True");
        let containers: Vec<_> = status
            .into_iter()
            .flat_map(|status| {
                let init = status.init_container_statuses.iter().flatten();
                init.chain(status.container_statuses.iter().flatten())
            })
            .take(MAX_CONTAINERS)
            .collect();
        let troubled = containers.iter().map(|container| {
            let waiting = container.state.as_ref().and_then(|it| it.waiting.as_ref());
            let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
            // ContainerCreating and PodInitializing are no trouble.
            let reason =
                reason.filter(|reason| !matches!(*reason, "ContainerCreating" | "PodInitializing"));
            ContainerSummary {
                name: container.name.as_str().into(),
                restarts: u32::try_from(container.restart_count).unwrap_or(0),
                waiting: reason.map(Into::into),
            }
        });
        let troubled = troubled.filter(|row| row.restarts > 0 || row.waiting.is_some());
        Some(Self {
            name: meta.name.as_deref()?.into(),
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            owner: owner_of(meta),
            hash: label("controller-revision-hash"),
            generation: label("pod-template-generation"),
            node: spec
                .and_then(|spec| spec.node_name.as_deref())
                .unwrap_or_default()
                .into(),
            created: time_of(meta.creation_timestamp.as_ref()),
            ready_stamp: ready.map(|ready| time_of(ready.last_transition_time.as_ref())),
            ready_since: None,
            terminating: has_ended || meta.deletion_timestamp.is_some(),
            troubled: troubled.collect(),
            out_of_memory: containers.iter().any(|container| {
                let ends = [container.state.as_ref(), container.last_state.as_ref()];
                ends.into_iter().flatten().any(|state| {
                    let ended = state.terminated.as_ref();
                    ended.and_then(|end| end.reason.as_deref()) == Some("OOMKilled")
                })
            }),
            images: images_of(pod),
            ip: status.and_then(|status| status.pod_ip.as_deref()?.parse().ok()),
            ports: spec
                .into_iter()
                .flat_map(|spec| &spec.containers)
                .take(MAX_CONTAINERS)
                .flat_map(|container| {
                    let ports = container.ports.iter().flatten();
                    ports.map(|port| (container.name.as_str(), port))
                })
                .filter_map(|(container, port)| {
                    Some(PortRow {
                        container: container.into(),
                        name: port.name.as_deref().unwrap_or_default().into(),
                        number: u16::try_from(port.container_port).ok()?,
                    })
                })
                .take(MAX_PORTS)
                .collect(),
        })
    }
}

fn images_of(pod: &Pod) -> Vec<ImageSummary> {
    let spec = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let statuses = pod.status.as_ref();
    let statuses = statuses.and_then(|status| status.container_statuses.as_deref());
    let rows = statuses.unwrap_or_default().iter().filter_map(|status| {
        let container = spec.iter().find(|one| one.name == status.name)?;
        (!status.image_id.is_empty()).then(|| ImageSummary {
            container: status.name.as_str().into(),
            name: container.image.as_deref().unwrap_or_default().into(),
            id: status.image_id.as_str().into(),
        })
    });
    rows.take(MAX_CONTAINERS).collect()
}

impl PodSummary {
    /// Since when it is Ready: since it was first seen so, or, for a pod from before the start, since the cluster says
    /// so.
    #[must_use]
    pub(super) fn after(mut self, old: Option<&Self>, now: Time, is_first_list: bool) -> Self {
        self.ready_since = self.ready_stamp.map(|stamp| match old {
            Some(old) if old.ready_stamp == self.ready_stamp => old.ready_since.unwrap_or(now),
            None if is_first_list => stamp.min(now),
            Some(_) | None => now,
        });
        self
    }
}

/// The ReplicaSet of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplicaSetSummary {
    pub(super) uid: Box<str>,
    /// UID of its Deployment.
    pub(super) owner: Box<str>,
    /// The Deployment's revision number of the template; the highest is the current one.
    pub(super) number: u64,
}

impl ReplicaSetSummary {
    pub(super) fn of(set: &ReplicaSet) -> Option<Self> {
        let annotations = set.metadata.annotations.as_ref();
        let number = annotations.and_then(|all| all.get("deployment.kubernetes.io/revision"));
        Some(Self {
            uid: set.metadata.uid.as_deref()?.into(),
            owner: owner_of(&set.metadata),
            number: number.and_then(|number| number.parse().ok()).unwrap_or(0),
        })
    }
}

fn labels_of(template: Option<&PodTemplateSpec>) -> BTreeMap<String, String> {
    let meta = template.and_then(|template| template.metadata.as_ref());
    let labels = meta.and_then(|meta| meta.labels.as_ref());
    let labels = labels.into_iter().flatten().take(MAX_LABELS);
    labels
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Kinds of workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum WorkloadKind {
    Deployment,
    StatefulSet,
    DaemonSet,
}

impl WorkloadKind {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
        }
    }
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WorkloadSummary {
    pub(super) kind: WorkloadKind,
    pub(super) name: Box<str>,
    pub(super) uid: Box<str>,
    /// The controller has seen the newest specification.
    pub(super) observed: bool,
    /// Pods that it should have.
    pub(super) wanted: i32,
    /// Pods that it has, of all templates.
    pub(super) total: i32,
    pub(super) updated: i32,
    pub(super) available: i32,
    pub(super) paused: bool,
    /// StatefulSet: the hash of the newest template. DaemonSet: its generation.
    pub(super) template: Box<str>,
    /// Pods of a StatefulSet start one after another, each when the one before is Ready.
    pub(super) ordered: bool,
    /// The controller replaces no pods, or only some of them.
    pub(super) partial: bool,
    /// Pods that the controller does not replace.
    pub(super) stays: i32,
    /// Its strategy can leave it without pods during a rollout.
    pub(super) stops_first: bool,
    /// The controller reports that the progress deadline is exceeded.
    pub(super) deadline_exceeded: bool,
    /// The controller reports that pods cannot be created.
    pub(super) refused: bool,
    /// The GitOps tool that manages it, if any.
    pub(super) gitops_owner: Option<&'static str>,
    /// Whether Helm made it, for this release or another one.
    pub(super) of_helm: bool,
    /// Labels of its pods.
    pub(super) labels: BTreeMap<String, String>,
}

impl WorkloadSummary {
    pub(super) fn of_deployment(object: &Deployment) -> Option<Self> {
        let (spec, status) = (
            object.spec.as_ref()?,
            object.status.clone().unwrap_or_default(),
        );
        Some(Self {
            observed: is_observed(&object.metadata, status.observed_generation),
            wanted: spec.replicas.unwrap_or(1),
            total: status.replicas.unwrap_or(0),
            updated: status.updated_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            paused: spec.paused.unwrap_or(false),
            stops_first: deployment_stops_first(spec),
            deadline_exceeded: has_condition(
                &status,
                "Progressing",
                "False",
                Some("ProgressDeadlineExceeded"),
            ),
            refused: has_condition(&status, "ReplicaFailure", "True", None),
            labels: labels_of(Some(&spec.template)),
            ..Self::named(WorkloadKind::Deployment, &object.metadata)?
        })
    }

    pub(super) fn of_stateful_set(object: &StatefulSet) -> Option<Self> {
        let (spec, status) = (
            object.spec.as_ref()?,
            object.status.clone().unwrap_or_default(),
        );
        let strategy = spec.update_strategy.as_ref();
        let on_delete = strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete");
        let rolling = strategy.and_then(|one| one.rolling_update.as_ref());
        Some(Self {
            observed: is_observed(&object.metadata, status.observed_generation),
            wanted: spec.replicas.unwrap_or(1),
            total: status.replicas,
            updated: status.updated_replicas.unwrap_or(0),
            available: status
                .available_replicas
                .or(status.ready_replicas)
                .unwrap_or(0),
            template: status.update_revision.as_deref().unwrap_or_default().into(),
            ordered: spec.pod_management_policy.as_deref() != Some("Parallel"),
            partial: on_delete || rolling.and_then(|one| one.partition).unwrap_or(0) > 0,
            stays: if on_delete {
                i32::MAX
            } else {
                rolling.and_then(|one| one.partition).unwrap_or(0)
            },
            // One pod after another is stopped before the one that takes its place.
            stops_first: spec.replicas.unwrap_or(1) <= 1,
            labels: labels_of(Some(&spec.template)),
            ..Self::named(WorkloadKind::StatefulSet, &object.metadata)?
        })
    }

    pub(super) fn of_daemon_set(object: &DaemonSet) -> Option<Self> {
        let (spec, status) = (
            object.spec.as_ref()?,
            object.status.clone().unwrap_or_default(),
        );
        let strategy = spec.update_strategy.as_ref();
        let generation = object
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get("deprecated.daemonset.template.generation"));
        Some(Self {
            observed: is_observed(&object.metadata, status.observed_generation),
            wanted: status.desired_number_scheduled,
            total: status.current_number_scheduled,
            updated: status.updated_number_scheduled.unwrap_or(0),
            available: status.number_available.unwrap_or(0),
            template: generation.map_or("", String::as_str).into(),
            partial: strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete"),
            stays: if strategy.and_then(|one| one.type_.as_deref()) == Some("OnDelete") {
                i32::MAX
            } else {
                0
            },
            stops_first: {
                let rolling = strategy.and_then(|one| one.rolling_update.as_ref());
                let surge = rolling.and_then(|one| one.max_surge.as_ref());
                let wanted = status.desired_number_scheduled;
                wanted <= 1 && part_of(surge, wanted, Rounding::Up).unwrap_or(0) == 0
            },
            labels: labels_of(Some(&spec.template)),
            ..Self::named(WorkloadKind::DaemonSet, &object.metadata)?
        })
    }

    fn named(kind: WorkloadKind, meta: &ObjectMeta) -> Option<Self> {
        Some(Self {
            kind,
            name: meta.name.as_deref()?.into(),
            uid: meta.uid.as_deref()?.into(),
            observed: false,
            wanted: 0,
            total: 0,
            updated: 0,
            available: 0,
            paused: false,
            template: Box::default(),
            ordered: false,
            partial: false,
            stays: 0,
            stops_first: false,
            deadline_exceeded: false,
            refused: false,
            gitops_owner: gitops_owner_of(meta),
            labels: BTreeMap::new(),
            of_helm: meta
                .annotations
                .as_ref()
                .is_some_and(|all| all.contains_key("meta.helm.sh/release-name")),
        })
    }

    /// Whether all its pods have the newest template and are available.
    pub(super) fn is_complete(&self) -> bool {
        self.observed && self.lacks() == 0
    }

    /// Available pods of the newest template that are missing for completeness.
    pub(super) fn lacks(&self) -> u32 {
        let unavailable = self.wanted.saturating_sub(self.available);
        let old = self.wanted.max(self.total).saturating_sub(self.updated);
        let lacks = if self.partial {
            let replaced = self.wanted.saturating_sub(self.stays).max(0);
            unavailable.max(replaced.saturating_sub(self.updated))
        } else {
            unavailable.max(old)
        };
        u32::try_from(lacks).unwrap_or(0)
    }
}

/// Whether Helm wrote a record long before the object that holds it was created. A backup keeps the labels in which
/// Helm notes the time of its write, in seconds since 1970. Helm's clock may be some seconds off.
fn is_restored(meta: &ObjectMeta) -> bool {
    const OFF: i64 = 60;
    let labels = meta.labels.iter().flatten();
    let stamps = labels.filter(|(key, _)| matches!(key.as_str(), "createdAt" | "modifiedAt"));
    let written = stamps
        .filter_map(|(_, stamp)| stamp.parse::<i64>().ok())
        .max();
    let created = meta.creation_timestamp.as_ref();
    let created = created.map(|stamp| stamp.0.as_second());
    matches!((written, created), (Some(written), Some(created)) if written.saturating_add(OFF) < created)
}

/// Who wrote the data of a record, unless it was the helm command, or our repair: tools with a built-in Helm give the
/// API server a name of their own.
fn writer_of(meta: &ObjectMeta) -> Option<Box<str>> {
    const LONGEST: usize = 63;
    let mut entries = meta.managed_fields.iter().flatten();
    let wrote = entries.find(|entry| {
        let fields = entry.fields_v1.as_ref();
        fields.is_some_and(|fields| fields.0.get("f:data").is_some())
    })?;
    let name = wrote.manager.as_deref()?;
    let is_helm = name.eq_ignore_ascii_case("helm") || name.starts_with("leadsman");
    let name: String = name.chars().take(LONGEST).collect();
    (!is_helm && !name.is_empty()).then(|| name.into())
}

/// How a percentage of the replicas is rounded.
#[derive(Clone, Copy)]
enum Rounding {
    Up,
    Down,
}

/// A number of pods, given as such or as a percentage of the replicas.
fn part_of(value: Option<&IntOrString>, replicas: i32, rounded: Rounding) -> Option<i32> {
    match value? {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.trim().parse().ok()?;
            let exact = i64::from(replicas).saturating_mul(percent);
            let whole = match rounded {
                Rounding::Up => exact.saturating_add(99) / 100,
                Rounding::Down => exact / 100,
            };
            i32::try_from(whole).ok()
        }
    }
}

/// Whether a rollout can leave a Deployment without pods. By default a quarter may be missing and a quarter may be too
/// many, as the API server fills it in.
fn deployment_stops_first(spec: &DeploymentSpec) -> bool {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|one| one.type_.as_deref()) == Some("Recreate") {
        return true;
    }
    let rolling = strategy.and_then(|one| one.rolling_update.as_ref());
    let replicas = spec.replicas.unwrap_or(1);
    let quarter = IntOrString::String("25%".into());
    let surge = rolling.and_then(|one| one.max_surge.as_ref());
    let surge = part_of(surge.or(Some(&quarter)), replicas, Rounding::Up).unwrap_or(0);
    let missing = rolling.and_then(|one| one.max_unavailable.as_ref());
    let missing = part_of(missing.or(Some(&quarter)), replicas, Rounding::Down).unwrap_or(0);
    // Neither: the controller takes one away all the same.
    let missing = if surge == 0 { missing.max(1) } else { missing };
    // Also with a surge: as many as may be missing are taken away before a new one is Ready.
    replicas > 0 && replicas - missing <= 0
}

fn has_condition(
    status: &DeploymentStatus,
    kind: &str,
    wanted: &str,
    reason: Option<&str>,
) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|one| {
        one.type_ == kind
            && one.status == wanted
            && reason.is_none_or(|reason| one.reason.as_deref() == Some(reason))
    })
}

fn is_observed(meta: &ObjectMeta, observed: Option<i64>) -> bool {
    observed.unwrap_or(0) >= meta.generation.unwrap_or(0)
}

/// The GitOps tool that would undo our changes, by the marks of Flux and Argo CD.
fn gitops_owner_of(meta: &ObjectMeta) -> Option<&'static str> {
    let labels = meta.labels.iter().flatten();
    let annotations = meta.annotations.iter().flatten();
    let managers = meta.managed_fields.iter().flatten();
    if managers
        .into_iter()
        .any(|field| field.manager.as_deref() == Some("helm-controller"))
    {
        return Some("Flux");
    }
    labels
        .chain(annotations)
        .find_map(|(key, _)| labels::gitops_owner(key))
}

fn owner_of(meta: &ObjectMeta) -> Box<str> {
    let owners = meta.owner_references.iter().flatten();
    let mut controllers = owners.filter(|owner| owner.controller == Some(true));
    controllers
        .next()
        .map_or("", |owner| owner.uid.as_str())
        .into()
}

fn time_of(stamp: Option<&Stamp>) -> Time {
    let millis = stamp.map_or(0, |stamp| stamp.0.as_millisecond());
    Time::from_millis(u64::try_from(millis).unwrap_or(0))
}
