//! Replica counts that were set by an autoscaler, which may be outside the chart, or by a person.
//!
//! Helm writes the number of the target's manifest, or removes its own. At noon that may be two pods instead of forty,
//! and the controller stops the others within milliseconds, so scaling up afterwards comes too late. Therefore
//! [`super::helm_proxy`] replaces a smaller number of helm by the current one.

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};

use super::ClusterEngine;
use super::api::{ApiError, ask};
use super::checks::loses_claims;
use super::scope::ApiScope;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;

/// Autoscalers of one namespace that are read.
const MAX_SCALERS: u32 = 500;

/// Workloads that a text names.
const MAX_NAMED: usize = 10;

/// This many times the chart's pods count as intended, even without a visible autoscaler.
const MANY_TIMES: i64 = 3;

/// An autoscaler of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Scaler {
    name: String,
    /// Its target.
    kind: String,
    of: String,
}

/// A workload of the target that keeps its pods in a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeptReplicas {
    /// Path of the object in the API.
    pub(super) path: String,
    workload: String,
    scaler: Option<String>,
    /// Replicas in the target's manifest.
    said: i64,
    /// Current replicas; `None` if unknown.
    live: Option<i64>,
}

impl KeptReplicas {
    /// The remark before any rollback.
    fn remark(&self) -> Option<String> {
        let (scaler, workload, said) = (self.scaler.as_ref()?, &self.workload, self.said);
        Some(format!(
            "An autoscaler, {scaler}, scales {workload}, of which the chart says {said} pods: a rollback keeps as many pods as there are; leave spec.replicas out of a chart with an autoscaler"
        ))
    }

    /// Whether an autoscaler set the number.
    pub(super) const fn is_scaled(&self) -> bool {
        self.scaler.is_some()
    }

    /// The remark at a rollback.
    pub(super) fn line(&self) -> Option<String> {
        let (live, said) = (self.live?, self.said);
        let by = self.scaler.as_ref().map_or_else(String::new, |name| {
            format!(", as its autoscaler {name} has set them")
        });
        (live > said).then(|| {
            format!(
                "The rollback leaves {} at {live} pods{by}, where the chart says {said}",
                self.workload
            )
        })
    }
}

/// Autoscalers in a manifest. Other kinds that create one, such as a `ScaledObject`, have the same fields.
fn scalers_of(objects: &[ManifestObject]) -> impl Iterator<Item = Scaler> {
    let scalers = objects
        .iter()
        .filter(|object| ["HorizontalPodAutoscaler", "ScaledObject"].contains(&&*object.kind));
    scalers.filter_map(|object| {
        let aim = object.body.pointer("/spec/scaleTargetRef")?;
        let kind = aim.get("kind").and_then(Value::as_str);
        Some(Scaler {
            name: object.name.clone(),
            kind: kind.unwrap_or("Deployment").to_owned(),
            of: aim.get("name")?.as_str()?.to_owned(),
        })
    })
}

/// The workloads of the target that keep their pods; `scalers` are those of the cluster.
fn kept(
    mut scalers: Vec<Scaler>,
    bad: &HelmRecord,
    target: &HelmRecord,
    scope: &ApiScope,
    live: &dyn Fn(&ManifestObject) -> Option<i64>,
) -> Vec<KeptReplicas> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let number = |object: &ManifestObject| object.body.pointer("/spec/replicas")?.as_i64();
    let (old, new) = (read(bad), read(target));
    scalers.extend(scalers_of(&old).chain(scalers_of(&new)));
    let found = new.iter().filter_map(|object| {
        let path = scope.path_in_own(object)?;
        let same = |other: &&ManifestObject| scope.identity(other) == scope.identity(object);
        let before = old.iter().find(same);
        let was = before.and_then(number);
        // What only the bad revision says Helm takes away, and the API server makes it 1.
        let said = number(object).or(was.map(|_| 1))?;
        let scaler = scalers
            .iter()
            .find(|scaler| scaler.kind == object.kind && scaler.of == object.name);
        let live = live(object);
        let is_many = live.is_some_and(|live| {
            live >= said.max(1).saturating_mul(MANY_TIMES) && was.is_none_or(|was| was != live)
        });
        // Claims that go with their pods are data, so that no pod goes either.
        let has_more = live.is_some_and(|live| live > said && was.is_none_or(|was| was != live));
        let has_data = loses_claims(object) || before.is_some_and(loses_claims);
        (scaler.is_some() || is_many || has_more && has_data).then(|| KeptReplicas {
            path,
            workload: format!("{} {}", object.kind, object.name),
            scaler: scaler.map(|scaler| scaler.name.clone()),
            said,
            live,
        })
    });
    found.collect()
}

impl ClusterEngine {
    /// Workloads that keep their pods in a rollback. If autoscalers cannot be read: those with many times the chart's
    /// pods; the missing right is reported elsewhere.
    pub(super) async fn kept_replicas(
        &self,
        bad: &HelmRecord,
        target: &HelmRecord,
        scope: &ApiScope,
    ) -> Result<Vec<KeptReplicas>, ApiError> {
        let scalers = match self.autoscalers().await {
            // 404: an API server without them.
            Err(trouble) if trouble.is(403) || trouble.is(404) => Vec::new(),
            found => found?,
        };
        let tables = self.cache.tables();
        let live = |object: &ManifestObject| {
            let mut rows = tables.workloads();
            let row = rows.find(|row| row.kind.as_str() == object.kind && *row.name == object.name);
            row.map(|row| i64::from(row.wanted))
        };
        Ok(kept(scalers, bad, target, scope, &live))
    }

    async fn autoscalers(&self) -> Result<Vec<Scaler>, ApiError> {
        let client = self.cache.client().clone();
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(client, self.cache.namespace().as_str());
        let found = ask(api.list(&ListParams::default().limit(MAX_SCALERS))).await?;
        let scalers = found.items.into_iter().filter_map(|scaler| {
            let aim = scaler.spec?.scale_target_ref;
            Some(Scaler {
                name: scaler.metadata.name?,
                kind: aim.kind,
                of: aim.name,
            })
        });
        Ok(scalers.collect())
    }
}

/// The remarks about them before a rollback.
pub(super) fn remarks(kept: &[KeptReplicas]) -> Vec<String> {
    let all = kept.iter().filter_map(KeptReplicas::remark);
    all.take(MAX_NAMED).collect()
}

/// A change as helm sends it, but without removing pods. `applies` says that fields it omits are removed.
///
/// # Errors
///
/// When the change is not a JSON object: the number of pods is unknown then.
pub(super) fn without_loss(change: &[u8], live: i64, applies: bool) -> Result<Vec<u8>, String> {
    let mut change: Value = serde_json::from_slice(change).map_err(|error| error.to_string())?;
    if !change.is_object() {
        return Err("it is no JSON object".into());
    }
    let said = change.pointer("/spec/replicas");
    let takes = match said.map(Value::as_i64) {
        None => applies,
        Some(None) => true,
        Some(Some(said)) => said < live,
    };
    if takes && live > 0 {
        // Without it nothing is said of pods at all.
        if let Some(Value::Object(spec)) = change.pointer_mut("/spec") {
            spec.insert("replicas".into(), json!(live));
        }
    }
    Ok(change.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::release::cluster::checks::tests::plain;

    fn web(replicas: Option<i64>) -> HelmRecord {
        let replicas = replicas.map_or_else(String::new, |said| format!("  replicas: {said}\n"));
        plain(&format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  paused: false\n{replicas}"
        ))
    }

    /// Whether pods are kept, from the numbers of the bad revision, the target and the cluster, and whether an
    /// autoscaler exists.
    #[track_caller]
    fn check(said: [Option<i64>; 2], live: i64, is_scaled: bool, expected: &str) {
        let scaler = |of: &str| Scaler {
            name: "noon".into(),
            kind: "Deployment".into(),
            of: of.into(),
        };
        let scalers = [
            scaler("other"),
            scaler(if is_scaled { "web" } else { "api" }),
        ]
        .to_vec();
        let scope = ApiScope::for_tests("shop", &[("apps/v1", "Deployment", "deployments")]);
        let [bad, target] = said.map(web);
        let found = kept(scalers, &bad, &target, &scope, &|_| Some(live));
        let lines: Vec<String> = found.iter().filter_map(KeptReplicas::line).collect();
        assert_eq!(lines.join("; "), expected, "{said:?} {live} {is_scaled}");
        assert!(
            found
                .iter()
                .all(|one| one.path == "/apis/apps/v1/namespaces/shop/deployments/web")
        );
        let remarks = remarks(&found);
        assert_eq!(remarks.len(), usize::from(is_scaled && !found.is_empty()));
    }

    #[test]
    fn a_rollback_takes_no_pods_that_somebody_else_has_made() {
        let both = [Some(2), Some(2)];
        let by_scaler = "The rollback leaves Deployment web at 40 pods, as its autoscaler noon has set them, where the chart says 2";
        check(both, 40, true, by_scaler);
        let by_hand = "The rollback leaves Deployment web at 6 pods, where the chart says 2";
        check(both, 6, false, by_hand);
        check(both, 5, false, "");
        // The bad revision itself asked for them.
        check([Some(40), Some(2)], 40, false, "");
        // Helm would take its own number away, which leaves one pod.
        let alone = "The rollback leaves Deployment web at 40 pods, as its autoscaler noon has set them, where the chart says 1";
        check([Some(2), None], 40, true, alone);
        // A chart that leaves the number to others is well, and more pods are no loss.
        check([None, None], 40, true, "");
        check(both, 1, true, "");
    }

    #[test]
    fn claims_that_go_with_pods_keep_all_of_them() {
        let scope = ApiScope::for_tests("shop", &[("apps/v1", "StatefulSet", "statefulsets")]);
        let db = |policy: &str| {
            plain(&format!(
                "apiVersion: apps/v1\nkind: StatefulSet\nmetadata:\n  name: db\nspec:\n  replicas: 2\n  \
                 persistentVolumeClaimRetentionPolicy:\n    whenScaled: {policy}\n  volumeClaimTemplates:\n  - metadata:\n      name: data\n"
            ))
        };
        let kept_by = |policies: [&str; 2], live: i64| {
            let [bad, target] = policies.map(db);
            kept(Vec::new(), &bad, &target, &scope, &|_| Some(live)).len()
        };
        assert_eq!(kept_by(["Retain", "Delete"], 3), 1);
        assert_eq!(kept_by(["Delete", "Retain"], 3), 1);
        assert_eq!(kept_by(["Retain", "Retain"], 3), 0);
        assert_eq!(kept_by(["Delete", "Delete"], 2), 0);
    }

    #[test]
    fn a_change_leaves_the_pods_that_there_are() {
        let check = |change: Value, applies: bool, expected: Value| {
            let sent = without_loss(change.to_string().as_bytes(), 40, applies).unwrap();
            let sent: Value = serde_json::from_slice(&sent).unwrap();
            assert_eq!(sent, expected, "{change} {applies}");
        };
        let kept = json!({"spec": {"replicas": 40, "x": 1}});
        check(
            json!({"spec": {"replicas": 2, "x": 1}}),
            false,
            kept.clone(),
        );
        check(
            json!({"spec": {"replicas": null, "x": 1}}),
            false,
            kept.clone(),
        );
        check(json!({"spec": {"replicas": 2, "x": 1}}), true, kept.clone());
        check(json!({"spec": {"x": 1}}), true, kept);
        // What says nothing of it, and what asks for more, stays as it is.
        let silent = json!({"spec": {"x": 1}});
        check(silent.clone(), false, silent);
        let more = json!({"spec": {"replicas": 50}});
        check(more.clone(), true, more);
        let labels = json!({"metadata": {"labels": {"a": "b"}}});
        check(labels.clone(), true, labels);
        assert!(without_loss(b"spec: {replicas: 2}", 40, true).is_err());
        // Nobody starts what was stopped, and nothing that was stopped by mistake stays so.
        let stopped = without_loss(br#"{"spec":{"replicas":2}}"#, 0, true).unwrap();
        assert_eq!(stopped, br#"{"spec":{"replicas":2}}"#);
    }
}
