//! The rights that are needed: to follow a release, to collect evidence, and to roll it back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use kube::core::GroupVersionKind;

use super::api::ApiError;
use super::namespace_cache::NamespaceCache;
use super::records::Records;
use super::scope::ApiScope;
use crate::config::settings::HelmDriver;
use crate::config::settings::ReleaseConfig;
use crate::core::rollout::Mode;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::{HelmHook, HelmRecord};

/// Objects of one release whose kinds are looked up.
const MAX_OBJECTS: usize = 2000;

/// Verbs that helm needs for each kind of a manifest.
const OF_OBJECTS: [&str; 4] = ["get", "create", "patch", "delete"];

/// Verbs that it needs for the kind of a hook.
const OF_HOOKS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

const WATCH: [&str; 3] = ["get", "list", "watch"];

/// A kind of objects in a namespace; an empty namespace means the whole cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RightScope {
    pub(super) namespace: String,
    pub(super) group: String,
    pub(super) plural: String,
    /// The only object that is meant; empty for all of the kind.
    pub(super) name: String,
}

/// Verbs by scope.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RbacRights(BTreeMap<RightScope, BTreeSet<&'static str>>);

impl RbacRights {
    pub(super) fn add(
        &mut self,
        namespace: &str,
        group: &str,
        plural: &str,
        verbs: &[&'static str],
    ) {
        let place = RightScope {
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            plural: plural.to_owned(),
            name: String::new(),
        };
        self.0.entry(place).or_default().extend(verbs);
    }

    /// To impersonate a service account of a namespace.
    pub(super) fn to_impersonate(namespace: &str, account: &str) -> Self {
        let place = RightScope {
            namespace: namespace.to_owned(),
            group: String::new(),
            plural: "serviceaccounts".to_owned(),
            name: account.to_owned(),
        };
        Self(BTreeMap::from([(place, BTreeSet::from(["impersonate"]))]))
    }

    /// Adds all rights of another set.
    pub fn extend(&mut self, other: Self) {
        for (place, verbs) in other.0 {
            self.0.entry(place).or_default().extend(verbs);
        }
    }

    /// To follow releases in a namespace, and to collect evidence.
    pub fn to_analyze(namespace: &str, driver: HelmDriver) -> Self {
        let mut rights = Self::default();
        rights.add(namespace, "", driver.plural(), &WATCH);
        rights.add(namespace, "", "pods", &WATCH);
        for plural in ["deployments", "replicasets", "statefulsets", "daemonsets"] {
            rights.add(namespace, "apps", plural, &WATCH);
        }
        rights.extend(Self::to_collect(namespace));
        rights
    }

    /// To collect evidence and write Events. Without these rights a rollback is still possible.
    pub(super) fn to_collect(namespace: &str) -> Self {
        let mut rights = Self::default();
        rights.add(namespace, "", "pods/log", &["get"]);
        rights.add(namespace, "", "events", &["list"]);
        rights.add(
            namespace,
            "autoscaling",
            "horizontalpodautoscalers",
            &["list"],
        );
        rights.add(namespace, "events.k8s.io", "events", &["create", "patch"]);
        rights
    }

    /// For helm: to write the records of a rollback.
    pub(super) fn to_record(namespace: &str, driver: HelmDriver) -> Self {
        let mut rights = Self::default();
        rights.add(
            namespace,
            "",
            driver.plural(),
            &["get", "list", "create", "update"],
        );
        rights
    }

    /// To repair records that helm made.
    pub(super) fn to_patch_record(namespace: &str, driver: HelmDriver) -> Self {
        let mut rights = Self::default();
        rights.add(namespace, "", driver.plural(), &["get", "list", "update"]);
        rights
    }

    /// To keep the state in ConfigMaps of a namespace.
    pub fn to_keep_state(namespace: &str) -> Self {
        let mut rights = Self::default();
        rights.add(namespace, "", "configmaps", &["get", "create", "update"]);
        rights
    }

    /// To be one of several replicas.
    pub fn to_hold_lease(namespace: &str) -> Self {
        let mut rights = Self::default();
        let verbs = ["get", "create", "update"];
        rights.add(namespace, "coordination.k8s.io", "leases", &verbs);
        rights
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (&RightScope, &'static str)> {
        self.0
            .iter()
            .flat_map(|(place, verbs)| verbs.iter().map(move |verb| (place, *verb)))
    }

    /// A Role for each namespace and a ClusterRole for objects without one, each bound to a service account, as YAML.
    pub fn manifest(&self, name: &str, account: &str, account_namespace: &str) -> String {
        let mut namespaces: Vec<&str> = self.0.keys().map(|place| &*place.namespace).collect();
        namespaces.dedup();
        let mut text = String::new();
        for namespace in namespaces {
            let kind = if namespace.is_empty() {
                "ClusterRole"
            } else {
                "Role"
            };
            let meta = if namespace.is_empty() {
                format!("metadata:\n  name: {name}\n")
            } else {
                format!("metadata:\n  name: {name}\n  namespace: {namespace}\n")
            };
            text += &format!(
                "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n{meta}rules:\n"
            );
            for rule in self.rules(namespace) {
                text += &format!(
                    "  - apiGroups: [\"{}\"]\n    resources: [{}]\n",
                    rule.group,
                    rule.plurals.join(", ")
                );
                if !rule.name.is_empty() {
                    text += &format!("    resourceNames: [\"{}\"]\n", rule.name);
                }
                text += &format!("    verbs: [{}]\n", rule.verbs.join(", "));
            }
            text += &format!(
                "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\n{meta}roleRef:\n  \
                 apiGroup: rbac.authorization.k8s.io\n  kind: {kind}\n  name: {name}\nsubjects:\n  - kind: ServiceAccount\n    \
                 name: {account}\n    namespace: {account_namespace}\n"
            );
        }
        text
    }

    /// Rules; resources of a group with the same verbs share one.
    fn rules(&self, namespace: &str) -> Vec<RoleRule<'_>> {
        let mut rules: Vec<RoleRule<'_>> = Vec::new();
        for (place, verbs) in self
            .0
            .iter()
            .filter(|(place, _)| place.namespace == namespace)
        {
            // In the order in which people write them.
            let order = [
                "get",
                "list",
                "watch",
                "create",
                "update",
                "patch",
                "delete",
                "impersonate",
            ];
            let verbs: Vec<&str> = order
                .into_iter()
                .filter(|verb| verbs.contains(verb))
                .collect();
            let same = |rule: &&mut RoleRule<'_>| {
                rule.group == place.group && rule.verbs == verbs && rule.name == place.name
            };
            match rules.iter_mut().find(same) {
                Some(rule) => rule.plurals.push(&place.plural),
                None => rules.push(RoleRule {
                    group: &place.group,
                    verbs,
                    plurals: vec![&place.plural],
                    name: &place.name,
                }),
            }
        }
        rules
    }
}

/// A rule of a Role.
struct RoleRule<'a> {
    group: &'a str,
    verbs: Vec<&'static str>,
    plurals: Vec<&'a str>,
    name: &'a str,
}

impl fmt::Display for RightScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// To change these objects and run these hooks, and the kinds that the cluster does not have.
pub(super) async fn to_change(
    cache: &NamespaceCache,
    objects: &[ManifestObject],
    hooks: &[ManifestObject],
) -> Result<(RbacRights, BTreeSet<String>), ApiError> {
    let own = cache.namespace().as_str();
    let mut rights = RbacRights::default();
    let mut unknown = BTreeSet::new();
    let all = objects.iter().map(|object| (object, &OF_OBJECTS[..]));
    let all = all.chain(hooks.iter().map(|hook| (hook, &OF_HOOKS[..])));
    let all: Vec<(&ManifestObject, &[&'static str])> = all.take(MAX_OBJECTS).collect();
    for (object, verbs) in all {
        let Some((group, version)) = split(&object.api_version) else {
            unknown.insert(format!("{} {}", object.api_version, object.kind));
            continue;
        };
        let kind = GroupVersionKind::gvk(group, version, &object.kind);
        let Some((plural, is_namespaced)) = cache.resource(&kind).await? else {
            unknown.insert(format!("{} {}", object.api_version, object.kind));
            continue;
        };
        let namespace = object.namespace.as_deref().unwrap_or(own);
        rights.add(
            if is_namespaced { namespace } else { "" },
            group,
            &plural,
            verbs,
        );
    }
    Ok((rights, unknown))
}

/// Revisions whose kinds are read, the newest first.
const MAX_REVISIONS: usize = 20;

/// Objects outside the release's namespace that are named.
const MAX_WARNINGS: usize = 20;

/// The rights for one release.
#[derive(Debug, Default)]
pub struct RequiredRights {
    /// For Leadsman's own account.
    pub own: RbacRights,
    /// For the account that helm acts as; the same one unless `kubernetes.impersonate` names another.
    pub helm: RbacRights,
    /// Revisions that cannot be read, and why.
    pub left_out: Vec<String>,
    /// Objects without a right, because the configuration does not let a rollback change them.
    pub warnings: Vec<String>,
}

/// All rights for a release: to follow it, to collect evidence, and, unless it is only observed, to roll it back to any
/// of its stored revisions. `impersonate` is the service account that helm acts as.
///
/// # Errors
///
/// When the cluster does not answer, or the release has no readable revision.
pub async fn needed(
    cache: &NamespaceCache,
    release: &ReleaseConfig,
    impersonate: Option<&str>,
) -> Result<RequiredRights, String> {
    let (namespace, driver) = (release.namespace.as_str(), cache.driver());
    let mut needed = RequiredRights {
        own: RbacRights::to_analyze(namespace, driver),
        ..RequiredRights::default()
    };
    if release.controller.mode != Mode::Enforce {
        return Ok(needed);
    }
    needed.helm = RbacRights::to_record(namespace, driver);
    if let Some(account) = impersonate {
        needed
            .own
            .extend(RbacRights::to_patch_record(namespace, driver));
        needed
            .own
            .extend(RbacRights::to_impersonate(namespace, account));
    }
    let said = |trouble: ApiError| trouble.to_string();
    let (mut objects, mut hooks) = stored(cache, release, &mut needed.left_out).await?;
    if release.controller.may.unblock_statefulsets
        && objects.iter().any(|one| one.kind == "StatefulSet")
    {
        needed.own.add(namespace, "", "pods", &["delete"]);
    }
    let scope = ApiScope::of(cache, objects.iter().chain(&hooks)).await;
    let scope = scope.map_err(said)?;
    let may = &release.controller.may;
    let mut warned = BTreeSet::new();
    let mut is_allowed = |object: &ManifestObject| {
        let warning = scope.warning(object, may);
        let is_allowed = warning.is_none();
        needed
            .warnings
            .extend(warning.filter(|text| warned.insert(text.clone())));
        is_allowed
    };
    hooks.retain(&mut is_allowed);
    objects.retain(is_allowed);
    let more = needed.warnings.len().saturating_sub(MAX_WARNINGS);
    needed.warnings.truncate(MAX_WARNINGS);
    if more > 0 {
        needed
            .warnings
            .push(format!("{more} more objects are outside the namespace"));
    }
    let mut kinds = BTreeSet::new();
    objects.retain(|object| {
        kinds.insert((
            object.api_version.clone(),
            object.kind.clone(),
            object.namespace.clone(),
        ))
    });
    // Kinds that the cluster no longer has cannot be given rights to.
    let (to_change, _) = to_change(cache, &objects, &hooks).await.map_err(said)?;
    needed.helm.extend(to_change);
    Ok(needed)
}

/// The objects of the stored revisions, and their hooks of a rollback.
async fn stored(
    cache: &NamespaceCache,
    release: &ReleaseConfig,
    left_out: &mut Vec<String>,
) -> Result<(Vec<ManifestObject>, Vec<ManifestObject>), String> {
    let records = Records::new(cache.client().clone(), &release.namespace, cache.driver());
    let said = |trouble: ApiError| trouble.to_string();
    let rows = records.list(&release.name).await.map_err(said)?;
    let mut objects = Vec::new();
    let mut hooks = Vec::new();
    for row in rows.iter().rev().take(MAX_REVISIONS) {
        let fetched = records.fetch(&row.object).await.map_err(said)?;
        // Gone in between.
        let Some((_, read)) = fetched else {
            continue;
        };
        let read = read.and_then(|record| {
            let objects = manifest::objects(&record.manifest).map_err(|broken| broken.to_string());
            Ok((rollback_hooks(&record), objects?))
        });
        match read {
            Ok((of_hooks, of_manifest)) => {
                hooks.extend(of_hooks);
                objects.extend(of_manifest);
            }
            Err(why) => left_out.push(format!("revision {} cannot be read: {why}", row.revision)),
        }
    }
    if objects.is_empty() {
        return Err("no stored revision can be read; install the release first".into());
    }
    Ok((objects, hooks))
}

/// The hooks that a rollback to this record runs.
pub(super) fn hooks_of_rollback(target: &HelmRecord) -> impl Iterator<Item = &HelmHook> {
    let hooks = target.hooks.iter();
    hooks.filter(|hook| hook.runs_at("pre-rollback") || hook.runs_at("post-rollback"))
}

/// The objects of these hooks.
pub(super) fn rollback_hooks(target: &HelmRecord) -> Vec<ManifestObject> {
    hooks_of_rollback(target)
        .filter_map(|hook| manifest::objects(&hook.manifest).ok())
        .flatten()
        .collect()
}

/// Group and version of `apps/v1` or `v1`.
pub(super) fn split(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        Some((group, version)) => (!version.contains('/')).then_some((group, version)),
        None => Some(("", api_version)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_holds_each_right_once_and_the_account_that_has_it() {
        let mut rights = RbacRights::to_analyze("shop", HelmDriver::Secret);
        rights.extend(RbacRights::to_record("shop", HelmDriver::Secret));
        rights.add("", "storage.k8s.io", "storageclasses", &["get"]);
        let text = rights.manifest("leadsman", "lead", "ops");
        for part in [
            "kind: ClusterRole\nmetadata:\n  name: leadsman\nrules:\n  - apiGroups: [\"storage.k8s.io\"]\n    resources: [storageclasses]\n    verbs: [get]\n",
            "kind: Role\nmetadata:\n  name: leadsman\n  namespace: shop\n",
            "resources: [daemonsets, deployments, replicasets, statefulsets]\n    verbs: [get, list, watch]\n",
            "resources: [secrets]\n    verbs: [get, list, watch, create, update]\n",
            "  - kind: ServiceAccount\n    name: lead\n    namespace: ops\n",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert_eq!(text.matches("secrets").count(), 1);
    }

    #[test]
    fn a_core_kind_has_no_group() {
        assert_eq!(split("v1"), Some(("", "v1")));
        assert_eq!(split("apps/v1"), Some(("apps", "v1")));
        assert_eq!(split("a/b/c"), None);
    }
}
