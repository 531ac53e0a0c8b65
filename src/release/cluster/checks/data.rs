//! Data that a rollback would lose, because it deletes an object or makes it smaller.

use serde_json::Value;

use super::super::rbac;
use super::super::scope::is_of_kubernetes;
use crate::helm::manifest::ManifestObject;

/// Deleting one of these deletes data.
const PRECIOUS: [&str; 5] = [
    "CustomResourceDefinition",
    "Namespace",
    "PersistentVolumeClaim",
    "PersistentVolume",
    "StorageClass",
];

/// Groups of operators whose resources describe behaviour and own no data: routes, certificates, scaling, policies.
const HARMLESS_GROUPS: [&str; 15] = [
    "acme.cert-manager.io",
    "autoscaling.k8s.io",
    "bitnami.com",
    "cert-manager.io",
    "cilium.io",
    "configuration.konghq.com",
    "crd.projectcalico.org",
    "flagger.app",
    "gateway.networking.k8s.io",
    "keda.sh",
    "kyverno.io",
    "monitoring.googleapis.com",
    "projectcontour.io",
    "traefik.containo.us",
    "traefik.io",
];

/// Such kinds in groups that have others as well: an Argo CD `Application` may delete everything that it deployed.
const HARMLESS_KINDS: [(&str, &[&str]); 4] = [
    (
        "argoproj.io",
        &[
            "AnalysisRun",
            "AnalysisTemplate",
            "ClusterAnalysisTemplate",
            "Experiment",
            "Rollout",
        ],
    ),
    (
        "external-secrets.io",
        &[
            "ClusterExternalSecret",
            "ClusterSecretStore",
            "ExternalSecret",
            "SecretStore",
        ],
    ),
    (
        "grafana.integreatly.org",
        &[
            "GrafanaAlertRuleGroup",
            "GrafanaDashboard",
            "GrafanaDatasource",
            "GrafanaFolder",
        ],
    ),
    (
        "monitoring.coreos.com",
        &[
            "AlertmanagerConfig",
            "PodMonitor",
            "Probe",
            "PrometheusRule",
            "ScrapeConfig",
            "ServiceMonitor",
        ],
    ),
];

/// The same by the end of the group's name.
const HARMLESS_ENDINGS: [&str; 3] = [".istio.io", ".linkerd.io", ".gatekeeper.sh"];

/// Why deleting an object loses data, in words that name it; `None` if it does not.
pub(super) fn goes_with(object: &ManifestObject) -> Option<String> {
    let named = format!("{} {}", object.kind, object.name);
    let group = rbac::split(&object.api_version).map_or("", |(group, _)| group);
    if is_of_kubernetes(group) {
        if PRECIOUS.contains(&object.kind.as_str()) {
            return Some(named);
        }
        return (has_claims(object) && policy(object, "whenDeleted"))
            .then(|| format!("{named}, whose claims go with it (whenDeleted: Delete)"));
    }
    let kinds = HARMLESS_KINDS.iter().find(|(of, _)| *of == group);
    let is_harmless = HARMLESS_GROUPS.contains(&group)
        || kinds.is_some_and(|(_, kinds)| kinds.contains(&object.kind.as_str()))
        || HARMLESS_ENDINGS
            .iter()
            .any(|outcome| group.ends_with(outcome));
    (!is_harmless).then(|| format!("{named} ({group}), whose operator may delete data with it"))
}

/// Why fewer pods of a StatefulSet lose data, in words; `None` if they do not.
pub(super) fn goes_with_pods(old: &ManifestObject, new: &ManifestObject) -> Option<String> {
    let pods = |object: &ManifestObject| {
        let replicas = object.body.pointer("/spec/replicas");
        replicas.and_then(Value::as_u64).unwrap_or(1)
    };
    let (was, will) = (pods(old), pods(new));
    // Its controller may see the number of pods before or after the policy.
    let deletes = policy(old, "whenScaled") || policy(new, "whenScaled");
    (old.is_workload() && has_claims(old) && deletes && will < was).then(|| {
        format!(
            "claims of StatefulSet {}, which goes from {was} pods to {will} (whenScaled: Delete)",
            old.name
        )
    })
}

/// Whether a StatefulSet deletes its claims when it gets fewer pods.
pub(in crate::release::cluster) fn loses_claims(object: &ManifestObject) -> bool {
    has_claims(object) && policy(object, "whenScaled")
}

fn has_claims(object: &ManifestObject) -> bool {
    let claims = object.body.pointer("/spec/volumeClaimTemplates");
    object.kind == "StatefulSet"
        && claims
            .and_then(Value::as_array)
            .is_some_and(|all| !all.is_empty())
}

fn policy(object: &ManifestObject, when: &str) -> bool {
    let place = format!("/spec/persistentVolumeClaimRetentionPolicy/{when}");
    object.body.pointer(&place).and_then(Value::as_str) == Some("Delete")
}
