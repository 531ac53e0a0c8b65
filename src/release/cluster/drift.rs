//! What a rollback does not undo. Helm merges into the live object, so a variable that somebody set by hand, or that a
//! failed upgrade left behind, stays although no revision has it.
//!
//! Images and variables are compared, because they decide which code runs and how. Values are never shown: they may be
//! secrets.

use std::collections::BTreeMap;

use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;

use super::ClusterEngine;
use super::api::{ApiError, ask};
use super::rbac;
use crate::core::units::Revision;
use crate::helm::manifest::{self, ManifestObject};

/// Workloads that are looked at, and differences that are kept.
const MAX_LOOKED: usize = 50;
const MAX_DIFFERENCES: usize = 200;

impl ClusterEngine {
    /// How the workloads of the cluster differ from a revision; also empty if that is unknown.
    pub(super) async fn differs(&self, revision: Revision) -> Vec<String> {
        match self.compare(revision).await {
            Ok(mut found) => {
                found.truncate(MAX_DIFFERENCES);
                found
            }
            Err(trouble) => {
                tracing::warn!(release = %self.release, %revision, %trouble,
                    "Whether the workloads are as the rollback should have made them cannot be found out");
                Vec::new()
            }
        }
    }

    async fn compare(&self, revision: Revision) -> Result<Vec<String>, ApiError> {
        let Some(record) = self.record(revision).await? else {
            return Ok(Vec::new());
        };
        // One that cannot be read would not have been gone back to.
        let objects = manifest::objects(&record.manifest).unwrap_or_default();
        let workloads = objects.iter().filter(|object| object.is_workload());
        let mut found = Vec::new();
        for wanted in workloads.take(MAX_LOOKED) {
            let Some((group, version)) = rbac::split(&wanted.api_version) else {
                continue;
            };
            let kind = GroupVersionKind::gvk(group, version, &wanted.kind);
            let Some((plural, _)) = self.cache.resource(&kind).await? else {
                continue;
            };
            let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
            let own = self.cache.namespace().as_str();
            let namespace = wanted.namespace.as_deref().unwrap_or(own);
            let client = self.cache.client().clone();
            let api: Api<DynamicObject> = Api::namespaced_with(client, namespace, &resource);
            match ask(api.get_opt(&wanted.name)).await? {
                Some(live) => found.extend(between(wanted, &live.data)),
                None => found.push(format!("{} {} is not there", wanted.kind, wanted.name)),
            }
        }
        Ok(found)
    }
}

/// How a live workload differs from the manifest.
fn between(wanted: &ManifestObject, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for list in ["initContainers", "containers"] {
        let place = format!("/spec/template/spec/{list}");
        let (wanted_all, live_all) = (
            by_name(wanted.body.pointer(&place)),
            by_name(live.pointer(&place)),
        );
        for (name, container) in &wanted_all {
            let of = format!("container {name} of {} {}", wanted.kind, wanted.name);
            let Some(live) = live_all.get(name) else {
                found.push(format!("{of} is not there"));
                continue;
            };
            let (image, runs) = (text(container, "image"), text(live, "image"));
            if image != runs {
                found.push(format!("{of} has the image {runs} and not {image}"));
            }
            found.extend(variables(&of, container, live));
        }
        for name in live_all
            .keys()
            .filter(|name| !wanted_all.contains_key(*name))
        {
            found.push(format!(
                "container {name} of {} {} is in no chart",
                wanted.kind, wanted.name
            ));
        }
    }
    found
}

fn variables(of: &str, wanted: &Value, live: &Value) -> Vec<String> {
    let (wanted, live) = (by_name(wanted.get("env")), by_name(live.get("env")));
    let mut found = Vec::new();
    for (name, variable) in &wanted {
        match live.get(name) {
            None => found.push(format!("{of} lacks the variable {name}")),
            Some(live) if !is_same(variable, live) => {
                found.push(format!("{of} has another value of the variable {name}"));
            }
            Some(_) => {}
        }
    }
    for name in live.keys().filter(|name| !wanted.contains_key(*name)) {
        found.push(format!(
            "{of} has the variable {name}, which is in no chart"
        ));
    }
    found
}

/// Equal but for defaults: the API server omits empty values and fills in missing ones.
fn is_same(wanted: &Value, live: &Value) -> bool {
    let from = |variable: &Value| {
        variable
            .get("valueFrom")
            .filter(|from| !from.is_null())
            .cloned()
    };
    text(wanted, "value") == text(live, "value")
        && match (from(wanted), from(live)) {
            (None, None) => true,
            (Some(wanted), Some(live)) => is_within(&wanted, &live),
            (None, Some(_)) | (Some(_), None) => false,
        }
}

fn is_within(wanted: &Value, live: &Value) -> bool {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().all(|(key, wanted)| {
            // A quantity, which is written anew.
            let is_told = !wanted.is_null() && key != "divisor";
            !is_told || live.get(key).is_some_and(|live| is_within(wanted, live))
        }),
        (wanted, live) => wanted == live,
    }
}

/// The items of a list by name; of two with one name the last counts, as in Kubernetes.
fn by_name(list: Option<&Value>) -> BTreeMap<&str, &Value> {
    let parts = list.and_then(Value::as_array).into_iter().flatten();
    parts
        .filter_map(|part| Some((part.get("name")?.as_str()?, part)))
        .collect()
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use serde_json::json;

    use super::*;

    const WANTED: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      initContainers:
        - {name: wait, image: 'tools:1'}
      containers:
        - name: web
          image: shop:2
          env:
            - {name: MODE, value: calm}
            - {name: EMPTY, value: ''}
            - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
            - {name: CORES, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1000m}}}
";

    /// As the API server shows it, with defaults.
    fn live() -> Value {
        json!({"spec": {"template": {"spec": {
            "initContainers": [{"name": "wait", "image": "tools:1", "imagePullPolicy": "IfNotPresent"}],
            "containers": [{"name": "web", "image": "shop:2", "env": [
                {"name": "MODE", "value": "calm"},
                {"name": "EMPTY"},
                {"name": "NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
                {"name": "CORES", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}}
            ]}]
        }}}})
    }

    /// The differences after the live object was changed at this place.
    #[track_caller]
    fn check(place: &str, value: Value, expected: &[&str]) {
        let wanted = manifest::objects(WANTED).unwrap();
        let mut live = live();
        *live
            .pointer_mut(&format!("/spec/template/spec/{place}"))
            .unwrap() = value;
        assert_eq!(between(&wanted[0], &live), expected);
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        let wanted = manifest::objects(WANTED).unwrap();
        assert_eq!(between(&wanted[0], &live()), Vec::<String>::new());
    }

    #[test]
    fn other_images_containers_and_variables_are_named_without_their_values() {
        check(
            "containers/0/image",
            json!("shop:3"),
            &["container web of Deployment web has the image shop:3 and not shop:2"],
        );
        check(
            "initContainers/0/name",
            json!("debug"),
            &[
                "container wait of Deployment web is not there",
                "container debug of Deployment web is in no chart",
            ],
        );
        check(
            "containers/0/env/0/value",
            json!("secret"),
            &["container web of Deployment web has another value of the variable MODE"],
        );
        check(
            "containers/0/env/0",
            json!({"name": "EXTRA", "value": "secret"}),
            &[
                "container web of Deployment web lacks the variable MODE",
                "container web of Deployment web has the variable EXTRA, which is in no chart",
            ],
        );
        check(
            "containers/0/env/2/valueFrom/fieldRef/fieldPath",
            json!("status.podIP"),
            &["container web of Deployment web has another value of the variable NODE"],
        );
        check(
            "containers/0/env/1",
            json!({"name": "EMPTY", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}),
            &["container web of Deployment web has another value of the variable EMPTY"],
        );
    }
}
