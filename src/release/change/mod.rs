//! What a revision changed of each workload: its pod template, a ConfigMap or Secret that its pods read, or neither.
//!
//! Two manifests are compared as the API server would store them: the order of keys does not matter, nor do fields
//! without a value, nor whether a Secret is written as `data` or `stringData`. A value that the chart adds counts as a
//! change, even if the API server would have filled in the same. Only digests of a manifest are kept: a few hundred
//! bytes for each workload.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::core::analysis::WorkloadDiff;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;

/// Container names that are kept per workload.
const MAX_CONTAINERS: usize = 100;

/// Services that are kept per manifest.
const MAX_SERVICES: usize = 100;

/// Identifies a workload by kind and name.
pub type WorkloadId = (Box<str>, Box<str>);

type ContentHash = [u8; 32];

/// Identity of what the pods of a workload run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct WorkloadContents {
    template: ContentHash,
    /// Digest of the revision's ConfigMaps and Secrets that the workload reads.
    settings: ContentHash,
    /// Digest of those that it mounts, which the kubelet brings to running pods some time later.
    mounted: ContentHash,
    /// Init containers and containers of the template.
    containers: Vec<Box<str>>,
    /// Whether the old pods stop before the new ones start.
    stops_first: bool,
    /// Names of the Services that select its pods.
    services: BTreeSet<Box<str>>,
}

/// The workloads of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevisionWorkloads {
    all: BTreeMap<WorkloadId, WorkloadContents>,
    /// Names of its Services that select pods.
    services: BTreeSet<Box<str>>,
}

/// A workload whose pods keep running although a revision changed what they read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotRestarted {
    /// As `Deployment`.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Whether the kubelet brings the change to them, because it is mounted as a volume.
    pub is_mounted: bool,
}

/// The revision does not have the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownWorkload;

/// Contents of a ConfigMap or Secret, with the namespace where it is named.
type WorkloadSettings<'a> = HashMap<(&'a str, &'a str), Vec<(Option<&'a str>, ContentHash)>>;

impl RevisionWorkloads {
    /// From a record whose manifest has these objects.
    pub fn of(record: &HelmRecord, objects: &[ManifestObject]) -> Self {
        // A hook may make them as well; what cannot be read of one is as if it were not there.
        let of_hooks = record.hooks.iter();
        let of_hooks = of_hooks.filter(|hook| matches!(&*hook.kind, "ConfigMap" | "Secret"));
        let of_hooks = of_hooks.filter_map(|hook| manifest::objects(&hook.manifest).ok());
        let of_hooks: Vec<ManifestObject> = of_hooks.flatten().collect();
        Self::of_objects(objects, &of_hooks)
    }

    /// From the objects of a manifest and of its hooks.
    pub fn of_objects(objects: &[ManifestObject], of_hooks: &[ManifestObject]) -> Self {
        let mut settings = WorkloadSettings::new();
        for object in objects.iter().chain(of_hooks) {
            if let Some(hash) = contents(object) {
                let found = settings.entry((&object.kind, &object.name)).or_default();
                found.push((object.namespace.as_deref(), hash));
            }
        }
        let services: Vec<(&ManifestObject, &serde_json::Map<String, Value>)> = objects
            .iter()
            .filter(|object| object.kind == "Service" && object.api_version == "v1")
            .filter_map(|object| {
                Some((object, object.body.pointer("/spec/selector")?.as_object()?))
            })
            .filter(|(_, selector)| !selector.is_empty())
            .take(MAX_SERVICES)
            .collect();
        let workloads = objects.iter().filter(|object| object.is_workload());
        let workload = |object: &ManifestObject| WorkloadContents {
            services: selecting(&services, object),
            ..WorkloadContents::of(object, &settings)
        };
        Self {
            all: workloads
                .map(|object| (id(object), workload(object)))
                .collect(),
            services: services
                .iter()
                .map(|(object, _)| object.name.as_str().into())
                .collect(),
        }
    }

    /// What this revision changed of a workload since another one, which served before.
    ///
    /// # Errors
    /// When this revision does not have it.
    pub fn change_since(
        &self,
        before: &Self,
        id: &WorkloadId,
    ) -> Result<Option<WorkloadDiff>, UnknownWorkload> {
        let now = self.all.get(id).ok_or(UnknownWorkload)?;
        Ok(match before.all.get(id) {
            Some(before) if before.template != now.template => Some(WorkloadDiff::Template),
            Some(before) if before.settings != now.settings => Some(WorkloadDiff::Config),
            Some(_) => None,
            // It is new.
            None => Some(WorkloadDiff::Template),
        })
    }

    /// Workloads where this revision changed what their pods read, but not the template.
    pub fn not_restarted_since(&self, before: &Self) -> Vec<NotRestarted> {
        let both = self
            .all
            .iter()
            .filter_map(|(id, now)| Some((id, now, before.all.get(id)?)));
        let runs_on = both.filter(|(_, now, before)| {
            now.template == before.template && now.settings != before.settings
        });
        runs_on
            .map(|((kind, name), now, before)| NotRestarted {
                kind: kind.clone(),
                name: name.clone(),
                is_mounted: now.mounted != before.mounted,
            })
            .collect()
    }

    /// Whether its strategy stops the old pods of a workload before the new ones start.
    pub fn stops_first(&self, id: &WorkloadId) -> bool {
        self.all
            .get(id)
            .is_some_and(|workload| workload.stops_first)
    }

    /// Whether the Service behind a host name selects the pods of a workload. A host that is none of its Services, such
    /// as an Ingress, may mean any of them. True if unknown.
    pub fn is_selected(&self, id: &WorkloadId, host: &str) -> bool {
        let Some(workload) = self.all.get(id) else {
            return true;
        };
        let name = host.split('.').next().unwrap_or_default();
        if self.services.contains(name) {
            return workload.services.contains(name);
        }
        self.services.is_empty() || !workload.services.is_empty()
    }

    /// Whether a container is in the template, and not injected. True if the workload is unknown.
    pub fn has_container(&self, id: &WorkloadId, container: &str) -> bool {
        let Some(workload) = self.all.get(id) else {
            return true;
        };
        let containers = &workload.containers;
        containers.is_empty() || containers.iter().any(|own| **own == *container)
    }
}

fn id(object: &ManifestObject) -> WorkloadId {
    (object.kind.as_str().into(), object.name.as_str().into())
}

impl WorkloadContents {
    fn of(object: &ManifestObject, settings: &WorkloadSettings<'_>) -> Self {
        let template = object.body.pointer("/spec/template");
        let template = template.unwrap_or(&Value::Null);
        let mut read = BTreeSet::new();
        readers(template, &mut read);
        let hash = |read: BTreeSet<(&'static str, &str)>| -> ContentHash {
            let mut hash = Sha256::new();
            for (kind, name) in read {
                let Some(found) = settings.get(&(kind, name)) else {
                    continue;
                };
                let own = object.namespace.as_deref();
                for (namespace, contents) in found {
                    // Where only one names a namespace, it may be the release's, in which the other one is.
                    if namespace.is_none() || own.is_none() || *namespace == own {
                        feed_text(&mut hash, kind);
                        feed_text(&mut hash, name);
                        hash.update(contents);
                    }
                }
            }
            hash.finalize().into()
        };
        Self {
            template: digest(template),
            settings: hash(read),
            mounted: hash(mounted(template)),
            containers: containers(template),
            stops_first: object.stops_first(),
            services: BTreeSet::new(),
        }
    }
}

/// The Services that select the pods of a workload.
fn selecting(
    services: &[(&ManifestObject, &serde_json::Map<String, Value>)],
    workload: &ManifestObject,
) -> BTreeSet<Box<str>> {
    let labels = workload.body.pointer("/spec/template/metadata/labels");
    let selects = |selector: &serde_json::Map<String, Value>| {
        let mut selector = selector.iter();
        selector.all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let own = services.iter().filter(|(service, selector)| {
        let is_elsewhere = service.namespace.is_some()
            && workload.namespace.is_some()
            && service.namespace != workload.namespace;
        !is_elsewhere && selects(selector)
    });
    own.map(|(service, _)| service.name.as_str().into())
        .collect()
}

fn containers(template: &Value) -> Vec<Box<str>> {
    let lists = ["/spec/initContainers", "/spec/containers"];
    let all = lists
        .iter()
        .filter_map(|list| template.pointer(list)?.as_array());
    let names = all
        .flatten()
        .filter_map(|container| container.get("name")?.as_str());
    names.take(MAX_CONTAINERS).map(Into::into).collect()
}

/// ConfigMaps and Secrets in volumes that change while a pod runs. A file mounted by `subPath` never changes.
fn mounted(template: &Value) -> BTreeSet<(&'static str, &str)> {
    let list = |value: &'_ Value, place: &str| -> Vec<Value> {
        let found = value.pointer(place).and_then(Value::as_array);
        found.cloned().unwrap_or_default()
    };
    let containers = ["/spec/initContainers", "/spec/containers"];
    let containers = containers.iter().flat_map(|place| list(template, place));
    let mounts: Vec<Value> = containers
        .flat_map(|container| list(&container, "/volumeMounts"))
        .collect();
    let changes = |volume: &&Value| {
        mounts.iter().any(|mount| {
            let has_path = ["subPath", "subPathExpr"].iter().any(|key| {
                mount
                    .get(key)
                    .is_some_and(|path| !path.is_null() && path != "")
            });
            mount.get("name") == volume.get("name") && !has_path
        })
    };
    let volumes = template.pointer("/spec/volumes").and_then(Value::as_array);
    let mut found = BTreeSet::new();
    for volume in volumes.into_iter().flatten().filter(changes) {
        readers(volume, &mut found);
    }
    found
}

/// ConfigMaps and Secrets that a pod template names: in an environment, a volume, a part of a projected volume, the
/// settings of a driver, or to pull images.
fn readers<'a>(value: &'a Value, found: &mut BTreeSet<(&'static str, &'a str)>) {
    let (map, secret) = ("ConfigMap", "Secret");
    let name = |value: &'a Value, key: &str| value.get(key).and_then(Value::as_str);
    match value {
        Value::Object(fields) => {
            for (key, inner) in fields {
                let named = match key.as_str() {
                    "configMap" | "configMapRef" | "configMapKeyRef" => {
                        name(inner, "name").map(|name| (map, name))
                    }
                    "secret" | "secretRef" | "secretKeyRef" | "nodePublishSecretRef" => {
                        let named = name(inner, "secretName").or_else(|| name(inner, "name"));
                        named.map(|name| (secret, name))
                    }
                    "secretName" => inner.as_str().map(|name| (secret, name)),
                    _ => None,
                };
                found.extend(named);
                if key == "imagePullSecrets" {
                    let all = inner.as_array().into_iter().flatten();
                    found.extend(all.filter_map(|one| Some((secret, name(one, "name")?))));
                }
                readers(inner, found);
            }
        }
        Value::Array(items) => {
            for item in items {
                readers(item, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a ConfigMap or Secret holds; `None` for other objects.
fn contents(object: &ManifestObject) -> Option<ContentHash> {
    let is_secret = match (&*object.api_version, &*object.kind) {
        ("v1", "ConfigMap") => false,
        ("v1", "Secret") => true,
        _ => return None,
    };
    let mut hash = Sha256::new();
    let mut values: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    // The later ones win, as they do there.
    for place in ["data", "binaryData", "stringData"] {
        let is_packed = place == "binaryData" || (is_secret && place == "data");
        let fields = object.body.get(place).and_then(Value::as_object);
        for (key, value) in fields.into_iter().flatten() {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            let unpacked = is_packed.then(|| {
                let text: String = text.split_whitespace().collect();
                STANDARD.decode(text).ok()
            });
            values.insert(key, unpacked.flatten().unwrap_or(text.into_bytes()));
        }
    }
    for (key, value) in values {
        feed_text(&mut hash, key);
        feed(&mut hash, &value);
    }
    feed_text(
        &mut hash,
        object
            .body
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default(),
    );
    Some(hash.finalize().into())
}

fn digest(value: &Value) -> ContentHash {
    let mut hash = Sha256::new();
    feed_value(&mut hash, value);
    hash.finalize().into()
}

/// Whether the API server would drop the field. An empty selector is kept: it selects everything, while no selector
/// selects nothing.
fn is_nothing(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => {
            !key.ends_with("elector")
                && fields
                    .iter()
                    .all(|(inner, value)| !inner.ends_with("elector") && is_nothing(inner, value))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn feed_value(hash: &mut Sha256, value: &Value) {
    match value {
        Value::Null => hash.update(b"n"),
        Value::Bool(yes) => hash.update(if *yes { b"t" } else { b"f" }),
        // A quantity may be written as either.
        Value::Number(number) => feed_text(hash, &number.to_string()),
        Value::String(text) => feed_text(hash, text),
        Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                feed_value(hash, item);
            }
            hash.update(b"]");
        }
        Value::Object(fields) => {
            hash.update(b"{");
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            for (key, value) in sorted {
                if !is_nothing(key, value) {
                    feed_text(hash, key);
                    feed_value(hash, value);
                }
            }
            hash.update(b"}");
        }
    }
}

fn feed_text(hash: &mut Sha256, text: &str) {
    hash.update(b"s");
    feed(hash, text.as_bytes());
}

/// Hashes the length first, so that ("ab", "c") and ("a", "bc") differ.
fn feed(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests;
