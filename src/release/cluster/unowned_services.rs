//! Pods that come from no Deployment, StatefulSet or DaemonSet of the chart, but from an Argo `Rollout` or an operator.
//!
//! They are found through the selectors of the chart's Services: a workload of the namespace that no Helm release owns
//! is followed like a part of the chart. If there is none, the progress of a rollout cannot be seen, and it never
//! counts as complete.

use std::collections::BTreeMap;

use super::namespace_cache::ObjectCache;
use super::objects::{WorkloadKind, WorkloadSummary};
use crate::helm::manifest::ManifestObject;

/// Services of one manifest, and makers of pods that a text names.
const MAX_SERVICES: usize = 100;
const MAX_MAKERS: usize = 3;

/// A Service that selects no pods of the chart's own workloads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnownedService {
    name: Box<str>,
    selector: BTreeMap<String, String>,
    /// The objects of the manifest that may make its pods, in words.
    makers: String,
}

/// The Services of a manifest in the release's namespace.
pub(super) fn services(objects: &[ManifestObject], namespace: &str) -> Vec<UnownedService> {
    let labels = |object: &ManifestObject| strings(object, "/spec/template/metadata/labels");
    let own: Vec<BTreeMap<String, String>> = objects
        .iter()
        .filter(|object| object.is_workload())
        .map(labels)
        .collect();
    let makers = objects.iter().filter(|object| {
        let has = |place: &str| object.body.pointer(place).is_some();
        !object.is_workload()
            && object.api_version.contains('.')
            && (has("/spec/template") || has("/spec/workloadRef"))
    });
    let makers: Vec<String> = makers
        .take(MAX_MAKERS)
        .map(|object| format!("{} {}", object.kind, object.name))
        .collect();
    // A Service without such a resource, beside workloads of the chart's own, is a name for what belongs to somebody else.
    if makers.is_empty() && !own.is_empty() {
        return Vec::new();
    }
    let services = objects.iter().filter(|object| {
        let is_elsewhere = object
            .namespace
            .as_deref()
            .is_some_and(|place| place != namespace);
        object.kind == "Service" && object.api_version == "v1" && !is_elsewhere
    });
    let services = services.map(|object| UnownedService {
        name: object.name.as_str().into(),
        selector: strings(object, "/spec/selector"),
        makers: makers.join(", "),
    });
    services
        .filter(|service| !service.selector.is_empty())
        .filter(|service| !own.iter().any(|labels| service.selects(labels)))
        .take(MAX_SERVICES)
        .collect()
}

fn strings(object: &ManifestObject, place: &str) -> BTreeMap<String, String> {
    let fields = object.body.pointer(place).and_then(|it| it.as_object());
    fields
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

impl UnownedService {
    fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut selector = self.selector.iter();
        selector.all(|(key, value)| labels.get(key) == Some(value))
    }

    fn workloads<'a>(
        &'a self,
        tables: &'a ObjectCache,
    ) -> impl Iterator<Item = &'a WorkloadSummary> {
        tables
            .workloads()
            .filter(|row| !row.of_helm && self.selects(&row.labels))
    }

    /// The remark about it.
    pub(super) fn remark(&self, tables: &ObjectCache) -> String {
        let name = &self.name;
        let found: Vec<String> = self
            .workloads(tables)
            .take(MAX_MAKERS)
            .map(|row| format!("{} {}", row.kind.as_str(), row.name))
            .collect();
        let makers = if self.makers.is_empty() {
            String::new()
        } else {
            format!(" ({} may make them)", self.makers)
        };
        if found.is_empty() {
            return format!(
                "How far a rollout of the pods of Service {name} has come cannot be seen: no Deployment, StatefulSet or DaemonSet makes them{makers}. The probes alone judge it"
            );
        }
        format!(
            "Service {name} selects pods of {}, which the chart does not have{makers}: it is followed as a part of the release",
            found.join(", ")
        )
    }
}

/// The workloads that make the pods of these Services.
pub(super) fn parts(
    services: &[UnownedService],
    tables: &ObjectCache,
) -> Vec<(WorkloadKind, Box<str>)> {
    let found = services.iter().flat_map(|one| one.workloads(tables));
    let mut parts: Vec<(WorkloadKind, Box<str>)> =
        found.map(|row| (row.kind, row.name.clone())).collect();
    parts.sort();
    parts.dedup();
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::helm::manifest;

    const CHART: &str = "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata:\n  name: play\nspec:\n  template: {}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: play\nspec:\n  selector: {app: play}\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template: {metadata: {labels: {app: web, tier: front}}}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selector: {app: web}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: outside\nspec:\n  type: ExternalName\n";

    /// `db` is a database outside the chart: its restarts are not caused by this chart.
    #[test]
    fn a_service_beside_own_workloads_that_nothing_of_the_chart_can_serve_is_no_part() {
        let (_, without_rollout) = CHART.split_once("---").unwrap();
        let services = services(&manifest::objects(without_rollout).unwrap(), "shop");
        assert_eq!(services, []);
    }

    #[test]
    fn a_service_without_a_workload_of_the_chart_leads_to_its_pods() {
        let services = services(&manifest::objects(CHART).unwrap(), "shop");
        assert_eq!(services.len(), 1);
        let mut tables = ObjectCache::default();
        let said = services[0].remark(&tables);
        assert!(
            said.contains("Service play has come cannot be seen") && said.contains("Rollout play"),
            "{said}"
        );
        assert_eq!(parts(&services, &tables), []);
        let row = |of_helm: bool| {
            let mut meta = serde_json::json!({"name": "played", "uid": "1"});
            if of_helm {
                meta["annotations"] = serde_json::json!({"meta.helm.sh/release-name": "other"});
            }
            let object = serde_json::json!({"metadata": meta, "spec": {
                "selector": {}, "template": {"metadata": {"labels": {"app": "play", "x": "y"}}}
            }});
            WorkloadSummary::of_deployment(&serde_json::from_value(object).unwrap()).unwrap()
        };
        tables.put_workload(row(true));
        assert_eq!(parts(&services, &tables), []);
        tables.put_workload(row(false));
        assert_eq!(
            parts(&services, &tables),
            [(WorkloadKind::Deployment, "played".into())]
        );
        let said = services[0].remark(&tables);
        assert!(said.contains("selects pods of Deployment played"), "{said}");
    }
}
