//! Preflight checks that need only the two records. Pure.

mod context;
mod data;
mod rerun;

pub(super) use rerun::not_hooks;

use std::collections::BTreeSet;

use serde_json::Value;

use super::labels;
use super::record_patch;
use super::scope::ApiScope;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;

pub(super) use context::CheckContext;
pub(super) use data::loses_claims;

/// Objects that one text names.
const MAX_NAMED: usize = 5;

/// Immutable fields by kind.
const FIXED: [(&str, &[&str]); 10] = [
    ("Deployment", &["/spec/selector"]),
    ("DaemonSet", &["/spec/selector"]),
    (
        "StatefulSet",
        &[
            "/spec/selector",
            "/spec/serviceName",
            "/spec/volumeClaimTemplates",
            "/spec/podManagementPolicy",
        ],
    ),
    (
        "Job",
        &["/spec/template", "/spec/selector", "/spec/completionMode"],
    ),
    (
        "PersistentVolumeClaim",
        &[
            "/spec/storageClassName",
            "/spec/volumeName",
            "/spec/accessModes",
        ],
    ),
    ("Service", &["/spec/clusterIP"]),
    ("Secret", &["/type"]),
    ("RoleBinding", &["/roleRef"]),
    ("ClusterRoleBinding", &["/roleRef"]),
    (
        "StorageClass",
        &[
            "/parameters",
            "/provisioner",
            "/reclaimPolicy",
            "/volumeBindingMode",
        ],
    ),
];

/// Fields that the server does not default, so one more or less is a change.
const NOT_FILLED_IN: [&str; 3] = [
    "/spec/volumeClaimTemplates",
    "/spec/serviceName",
    "/parameters",
];

/// Immutable fields of a ConfigMap or Secret with `immutable: true`, which cannot be unset either.
const SEALED: [&str; 4] = ["/immutable", "/data", "/binaryData", "/stringData"];

/// A failed preflight check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PreflightFailure {
    /// A word for metrics.
    pub(super) reason: &'static str,
    pub(super) text: String,
}

/// Dangerous changes that the configuration allows.
#[derive(Debug, Clone, Default)]
pub(super) struct CheckPermissions<'a> {
    pub(super) migrations: bool,
    pub(super) gitops_owner: bool,
    pub(super) kinds: &'a [String],
    /// Patterns of hooks that do not migrate data.
    pub(super) no_migrations: &'a [String],
    /// Objects of the bad revision that are no longer in the cluster, such as an expired Job; they are created anew.
    pub(super) gone: &'a [ManifestObject],
}

/// Objects with changed immutable fields. If they are gone from the cluster, both revisions count as the same.
pub(super) fn with_fixed_changes(
    bad: &HelmRecord,
    target: &HelmRecord,
    scope: &ApiScope,
) -> Vec<ManifestObject> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let new = read(target);
    let mut old = read(bad);
    old.retain(|old| {
        let mut new = new.iter();
        let same = new.find(|new| scope.identity(new) == scope.identity(old));
        same.is_some_and(|new| !fixed_changes(old, new).is_empty())
    });
    old
}

type Check = fn(&CheckContext<'_>) -> Option<PreflightFailure>;

/// What is checked of two records. The first one that fails gives the reason.
const CHECKS: &[Check] = &[
    |context| context.broken[0].clone(),
    |context| context.broken[1].clone(),
    |context| denied(context.bad),
    |context| too_large(context.target),
    migrations,
    kept_by_another,
    deletes_data,
    changes_fixed_fields,
    |context| context.moved.clone(),
    kept_in_cluster,
];

/// What speaks against a rollback.
pub(super) fn failures(context: &CheckContext<'_>) -> Vec<PreflightFailure> {
    let known = context.out_of_scope;
    let found = CHECKS.iter().filter_map(|check| check(context));
    let label = context.is_denied.then(|| denied_by("the record's label"));
    label
        .into_iter()
        .chain(known.iter().cloned())
        .chain(found.filter(|one| !known.contains(one)))
        .collect()
}

fn deletes_data(context: &CheckContext<'_>) -> Option<PreflightFailure> {
    let lost: Vec<String> = context
        .pairs()
        .filter(|(object, _)| !context.allowed.kinds.contains(&object.kind))
        .filter_map(|(object, same)| match same {
            Some(new) => data::goes_with_pods(object, new),
            None if is_kept(object) => None,
            None => data::goes_with(object),
        })
        .collect();
    (!lost.is_empty()).then(|| PreflightFailure {
        reason: "deletes_data",
        text: format!(
            "it would delete {}; allow the kind by release.rollback.may_delete if that is meant",
            listed(&lost)
        ),
    })
}

fn changes_fixed_fields(context: &CheckContext<'_>) -> Option<PreflightFailure> {
    let changed: Vec<String> = context
        .pairs()
        .filter(|(object, _)| !context.allowed.gone.iter().any(|gone| gone == *object))
        .filter_map(|(old, new)| Some((old, new?)))
        .flat_map(|(old, new)| fixed_changes(old, new))
        .take(MAX_NAMED)
        .collect();
    (!changed.is_empty()).then(|| PreflightFailure {
        reason: "immutable",
        text: format!(
            "fields that cannot be changed differ: {}",
            changed.join(", ")
        ),
    })
}

/// Objects that come back: in the target, but not in the bad revision. Empty if a manifest cannot be read, which is a
/// failure by itself.
pub(super) fn returning(
    bad: &HelmRecord,
    target: &HelmRecord,
    scope: &ApiScope,
) -> Vec<ManifestObject> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let old = read(bad);
    let mut new = read(target);
    new.retain(|object| {
        let is_same = |other: &ManifestObject| scope.identity(other) == scope.identity(object);
        !old.iter().any(is_same)
    });
    new
}

/// Workloads that read a changed ConfigMap or Secret and are not restarted, because their template is the same in both
/// revisions: if they read it only at their start, they keep the bad contents.
pub(super) fn not_restarted(
    bad: &HelmRecord,
    target: &HelmRecord,
    scope: &ApiScope,
    namespace: &str,
) -> Vec<String> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let (old, new) = (read(bad), read(target));
    let pairs: Vec<(&ManifestObject, &ManifestObject)> = old
        .iter()
        .filter_map(|old| {
            let same = |new: &&ManifestObject| scope.identity(new) == scope.identity(old);
            Some((old, new.iter().find(same)?))
        })
        .collect();
    let differs = |old: &ManifestObject, new: &ManifestObject| {
        let contents = ["/data", "/binaryData", "/stringData"];
        let mut contents = contents.iter();
        contents.any(|place| old.body.pointer(place) != new.body.pointer(place))
    };
    let changed: Vec<&ManifestObject> = pairs
        .iter()
        .filter(|(old, new)| ["ConfigMap", "Secret"].contains(&&*old.kind) && differs(old, new))
        .map(|(_, new)| *new)
        .collect();
    let stays = |(old, new): &&(&ManifestObject, &ManifestObject)| {
        let template = "/spec/template";
        new.is_workload() && old.body.pointer(template) == new.body.pointer(template)
    };
    let lines = pairs.iter().filter(stays).filter_map(|(_, workload)| {
        let sources = workload.sources();
        let read = changed.iter().filter(|one| {
            let of = |object: &ManifestObject| object.namespace.as_deref().unwrap_or(namespace).to_owned();
            of(one) == of(workload)
                && sources.contains(&(one.kind.as_str(), one.name.as_str()))
        });
        let read: Vec<&ManifestObject> = read.copied().collect();
        let namespace = workload.namespace.as_deref().unwrap_or(namespace);
        let (kind, name) = (&workload.kind, &workload.name);
        (!read.is_empty()).then(|| {
            format!(
                "The rollback changes {}, and does not restart {kind} {name}, whose template is the same; if it reads them only when it starts: kubectl rollout restart {}/{name} --namespace {namespace}",
                named(read.into_iter()),
                kind.to_lowercase()
            )
        })
    });
    lines.take(MAX_NAMED).collect()
}

fn denied(bad: &HelmRecord) -> Option<PreflightFailure> {
    let wish = bad.chart_annotations.get(labels::ROLLBACK)?;
    (wish == "deny").then(|| denied_by("the chart"))
}

/// Somebody does not want a rollback, and says so there.
fn denied_by(what: &str) -> PreflightFailure {
    PreflightFailure {
        reason: "denied",
        text: format!("{what} says {}: deny", labels::ROLLBACK),
    }
}

/// Definitions in the chart's folder `crds` that differ: Helm neither rolls them back nor deletes them, so code of the
/// target meets those of the bad revision.
pub(super) fn other_crds(bad: &HelmRecord, target: &HelmRecord) -> Option<String> {
    let (was, will) = (&bad.crds, &target.crds);
    let names: BTreeSet<&String> = was.keys().chain(will.keys()).collect();
    let differ: Vec<&str> = names
        .into_iter()
        .filter(|name| was.get(*name) != will.get(*name))
        .map(String::as_str)
        .collect();
    let shown = differ.iter().take(MAX_NAMED).copied();
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = differ.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    (!differ.is_empty()).then(|| {
        format!(
            "The charts of revisions {} and {} differ in {shown}{more}: Helm leaves these definitions as they are, so the code that comes back may meet newer ones",
            bad.revision, target.revision
        )
    })
}

/// Bytes by which the record of a rollback may exceed that of its target: a longer description, and times of its hooks.
const GROWS_BY: usize = 2048;

fn too_large(target: &HelmRecord) -> Option<PreflightFailure> {
    (target.size + GROWS_BY > record_patch::MAX_DATA).then(|| PreflightFailure {
        reason: "too_large",
        text: format!(
            "the record of revision {} has {} bytes, so that one more like it may not fit into the {} that Kubernetes takes; make the chart smaller",
            target.revision,
            target.size,
            record_patch::MAX_DATA
        ),
    })
}

/// Hooks that may have changed data which the old code does not know.
fn migrations(context: &CheckContext<'_>) -> Option<PreflightFailure> {
    if context.allowed.migrations {
        return None;
    }
    let ignored = context.allowed.no_migrations;
    let events = ["pre-upgrade", "post-upgrade", "pre-install", "post-install"];
    let hook = context.bad.hooks.iter().find(|hook| {
        hook.kind == "Job"
            && events.iter().any(|event| hook.runs_at(event))
            && !hook.phase.is_empty()
            && !ignored
                .iter()
                .any(|pattern| rerun::fits(pattern, &hook.name))
    })?;
    Some(PreflightFailure {
        reason: "migrations",
        text: format!(
            "its hook {} has run and may have migrated data; set release.rollback.migrations = \"compatible\" when old code can run after it, or {{ ignore = [{:?}] }} when this one migrates nothing",
            hook.name, hook.name
        ),
    })
}

fn kept_by_another(context: &CheckContext<'_>) -> Option<PreflightFailure> {
    if context.allowed.gitops_owner {
        return None;
    }
    let gitops_owner = context.old.iter().find_map(|object| {
        ["/metadata/labels", "/metadata/annotations"]
            .iter()
            .find_map(|place| {
                let outcomes = object.body.pointer(place)?.as_object()?;
                outcomes.keys().find_map(|key| labels::gitops_owner(key))
            })
    })?;
    Some(gitops_failure(gitops_owner))
}

/// The same of what is in the cluster: that tool may write its mark there and not into the manifest.
fn kept_in_cluster(context: &CheckContext<'_>) -> Option<PreflightFailure> {
    let owner = context.gitops_owner?;
    (!context.allowed.gitops_owner).then(|| gitops_failure(owner))
}

fn gitops_failure(gitops_owner: &str) -> PreflightFailure {
    PreflightFailure {
        reason: "kept_by_another",
        text: format!(
            "{gitops_owner} keeps this release and would undo a rollback; revert what it reads, or set release.rollback.allow_gitops = true"
        ),
    }
}

fn is_kept(object: &ManifestObject) -> bool {
    let policy = object
        .body
        .pointer("/metadata/annotations/helm.sh~1resource-policy");
    policy.and_then(Value::as_str) == Some("keep")
}

fn fixed_changes(old: &ManifestObject, new: &ManifestObject) -> Vec<String> {
    let fields = FIXED
        .iter()
        .find(|(kind, _)| *kind == old.kind)
        .map_or(&[][..], |(_, fields)| fields);
    let sealed = if is_sealed(old) { &SEALED[..] } else { &[] };
    let differs = |field: &&&str| {
        let (was, will) = (old.body.pointer(field), new.body.pointer(field));
        // What a manifest leaves out is filled in by the server, and stays.
        if NOT_FILLED_IN.contains(field) || sealed.contains(field) {
            return was.filter(|was| is_any(was)) != will.filter(|will| is_any(will));
        }
        was.is_some() && will.is_some() && was != will
    };
    fields
        .iter()
        .chain(sealed)
        .filter(differs)
        .map(|field| {
            format!(
                "{} {} {}",
                old.kind,
                old.name,
                field.trim_start_matches('/').replace('/', ".")
            )
        })
        .collect()
}

/// Whether it is an immutable ConfigMap or Secret.
fn is_sealed(object: &ManifestObject) -> bool {
    ["ConfigMap", "Secret"].contains(&object.kind.as_str())
        && object.body.get("immutable") == Some(&Value::Bool(true))
}

/// Whether the field differs from an omitted one.
fn is_any(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

pub(super) fn named<'a>(objects: impl Iterator<Item = &'a ManifestObject>) -> String {
    let names: Vec<String> = objects
        .map(|object| format!("{} {}", object.kind, object.name))
        .collect();
    listed(&names)
}

/// The first names, and how many more there are.
pub(super) fn listed(names: &[String]) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    let shown = names[..names.len() - more].join(", ");
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}

#[cfg(test)]
pub(super) mod tests;
