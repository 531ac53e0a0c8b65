//! Where the objects of a rollback live: in the release's own namespace, in another one, or in none.
//!
//! A user who may write Secrets in a namespace can write a record that names any object of the cluster, and helm would
//! change it with Leadsman's rights. So a rollback changes only objects in the release's namespace, unless the
//! configuration allows the other namespace or the kind. This file checks that before helm starts. While helm runs, its
//! requests pass [`super::helm_proxy`], which decides by the request and not by the record.

mod contents;

use std::collections::{BTreeMap, BTreeSet};

use kube::core::GroupVersionKind;

use super::api::ApiError;
use super::checks::{self, PreflightFailure};
use super::namespace_cache::NamespaceCache;
use super::rbac;
use crate::config::settings::{ClusterKind, RollbackPermissions};
use crate::helm::manifest::ManifestObject;
pub(super) use contents::Contents;

/// Objects and hooks of two revisions together; a record of 1 MiB has room for some thousands.
const MAX_OBJECTS: usize = 2000;

/// Kinds that the cluster does not have; after this many no further one is looked up.
const MAX_UNKNOWN: usize = 5;

/// Namespaces that one text names.
const MAX_NAMED: usize = 5;

/// Groups of Kubernetes itself; their kinds that are not listed live in namespaces.
const BUILT_IN_GROUPS: [&str; 7] = [
    "",
    "apps",
    "autoscaling",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
];

/// More of these groups.
const OTHER_BUILT_IN_GROUPS: [&str; 4] = [
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
];

/// Identity of an object, as Helm sees it: the group counts, the version of the API does not.
pub(super) type ObjectIdentity<'a> = (&'a str, &'a str, Option<&'a str>, &'a str);

/// A kind of the cluster.
#[derive(Debug, Clone)]
struct ApiResourceKind {
    plural: String,
    is_namespaced: bool,
}

/// Which kinds are namespaced, for the kinds of one release.
#[derive(Debug, Clone, Default)]
pub(super) struct ApiScope {
    own: String,
    /// By apiVersion and kind.
    kinds: BTreeMap<(String, String), ApiResourceKind>,
    unknown: BTreeSet<String>,
}

/// Where an object lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ObjectPlace<'a> {
    Own,
    Other(&'a str),
    Cluster,
}

impl ApiScope {
    /// From what is known without a cluster.
    pub(super) fn built_in(own: &str) -> Self {
        Self {
            own: own.to_owned(),
            ..Self::default()
        }
    }

    /// With these namespaced kinds: version, kind and plural.
    #[cfg(test)]
    pub(super) fn for_tests(own: &str, kinds: &[(&str, &str, &str)]) -> Self {
        let mut scope = Self::built_in(own);
        for (version, kind, plural) in kinds {
            let resource = ApiResourceKind {
                plural: (*plural).to_owned(),
                is_namespaced: true,
            };
            let kind = ((*version).to_owned(), (*kind).to_owned());
            scope.kinds.insert(kind, resource);
        }
        scope
    }

    /// Looks up the kinds of these objects in the cluster.
    pub(super) async fn of(
        cache: &NamespaceCache,
        objects: impl Iterator<Item = &ManifestObject> + Send,
    ) -> Result<Self, ApiError> {
        let mut scope = Self::built_in(cache.namespace().as_str());
        let kinds: BTreeSet<(&str, &str)> = objects
            .take(MAX_OBJECTS)
            .map(|object| (object.api_version.as_str(), object.kind.as_str()))
            .collect();
        for (api_version, kind) in kinds {
            let found = match rbac::split(api_version) {
                Some((group, version)) => {
                    cache
                        .resource(&GroupVersionKind::gvk(group, version, kind))
                        .await?
                }
                None => None,
            };
            if let Some((plural, is_namespaced)) = found {
                let resource = ApiResourceKind {
                    plural,
                    is_namespaced,
                };
                scope
                    .kinds
                    .insert((api_version.to_owned(), kind.to_owned()), resource);
            } else if built_in(group(api_version), kind).is_none() {
                scope
                    .unknown
                    .insert(format!("{} {}", shown(api_version), shown(kind)));
                if scope.unknown.len() >= MAX_UNKNOWN {
                    break;
                }
            }
        }
        Ok(scope)
    }

    fn resource(&self, object: &ManifestObject) -> Option<&ApiResourceKind> {
        let key = (object.api_version.clone(), object.kind.clone());
        self.kinds.get(&key)
    }

    fn is_namespaced(&self, object: &ManifestObject) -> bool {
        self.resource(object).map_or_else(
            || built_in(group(&object.api_version), &object.kind).unwrap_or(true),
            |resource| resource.is_namespaced,
        )
    }

    fn place<'a>(&self, object: &'a ManifestObject) -> ObjectPlace<'a> {
        if !self.is_namespaced(object) {
            return ObjectPlace::Cluster;
        }
        match object.namespace.as_deref() {
            Some(namespace) if namespace != self.own => ObjectPlace::Other(namespace),
            Some(_) | None => ObjectPlace::Own,
        }
    }

    /// Identity of an object. It does not matter whether it names the release's own namespace, or which namespace it
    /// names if its kind has none.
    pub(super) fn identity<'a>(&'a self, object: &'a ManifestObject) -> ObjectIdentity<'a> {
        let namespace = match self.place(object) {
            ObjectPlace::Own => Some(self.own.as_str()),
            ObjectPlace::Other(namespace) => Some(namespace),
            ObjectPlace::Cluster => None,
        };
        (
            group(&object.api_version),
            &object.kind,
            namespace,
            &object.name,
        )
    }

    /// Whether a rollback may change an object there.
    pub(super) fn is_allowed(&self, object: &ManifestObject, may: &RollbackPermissions) -> bool {
        match self.place(object) {
            ObjectPlace::Own => true,
            ObjectPlace::Other(namespace) => may.namespaces.iter().any(|one| one == namespace),
            ObjectPlace::Cluster => may.cluster_scoped.contains(&kind_of(object)),
        }
    }

    /// Why a rollback may not change an object there, in words; `None` if it may.
    pub(super) fn warning(
        &self,
        object: &ManifestObject,
        may: &RollbackPermissions,
    ) -> Option<String> {
        if self.is_allowed(object, may) {
            return None;
        }
        let (kind, name) = (shown(&object.kind), shown(&object.name));
        match self.place(object) {
            ObjectPlace::Own => None,
            ObjectPlace::Other(namespace) => Some(format!(
                "{kind} {name} is in the namespace {}: a rollback that has to do with it is refused, and no right is printed for it; if the release owns it, set release.rollback.namespaces = [{:?}]",
                shown(namespace),
                shown(namespace)
            )),
            ObjectPlace::Cluster => Some(format!(
                "{kind} {name} is in no namespace: a rollback that changes it is refused, and no right is printed for it; if the release owns it, set release.rollback.cluster_scoped = [{:?}]",
                shown(&kind_of(object).to_string())
            )),
        }
    }

    /// Objects without a namespace that are the same in both revisions, and whose kind is not allowed. The rollback
    /// leaves them alone, whatever the cluster has. Each with its path in the API.
    pub(super) fn left_alone<'a>(
        &'a self,
        contents: &'a Contents,
        may: &RollbackPermissions,
    ) -> BTreeMap<String, &'a ManifestObject> {
        let bad = self.grouped(&contents.bad);
        let target = self.grouped(&contents.target);
        let mut found = BTreeMap::new();
        for (identity, objects) in target {
            let (Some(first), Some(was)) = (objects.first(), bad.get(&identity)) else {
                continue;
            };
            let is_same = |other: &&ManifestObject| other.body == first.body;
            if self.place(first) == ObjectPlace::Cluster
                && !may.cluster_scoped.contains(&kind_of(first))
                && objects.iter().all(is_same)
                && was.iter().all(is_same)
                && let Some(path) = self.path(first)
            {
                found.insert(path, *first);
            }
        }
        found
    }

    /// The path of an object without a namespace.
    fn path(&self, object: &ManifestObject) -> Option<String> {
        self.path_below(object, "")
    }

    /// The path of an object in the release's namespace; `None` for others, and if the cluster does not have the kind.
    pub(super) fn path_in_own(&self, object: &ManifestObject) -> Option<String> {
        let below = format!("namespaces/{}/", self.own);
        (self.place(object) == ObjectPlace::Own).then(|| self.path_below(object, &below))?
    }

    fn path_below(&self, object: &ManifestObject, below: &str) -> Option<String> {
        let plural = &self.resource(object)?.plural;
        let (api_version, name) = (&object.api_version, &object.name);
        let root = if api_version.contains('/') {
            "apis"
        } else {
            "api"
        };
        Some(format!("/{root}/{api_version}/{below}{plural}/{name}"))
    }

    /// Groups and plurals of the kinds without a namespace that a rollback may change.
    pub(super) fn allowed_kinds(&self, may: &RollbackPermissions) -> BTreeSet<(String, String)> {
        let allowed = self.kinds.iter().filter(|((api_version, kind), resource)| {
            let kind = ClusterKind::new(group(api_version), kind);
            !resource.is_namespaced && may.cluster_scoped.contains(&kind)
        });
        allowed
            .map(|((api_version, _), resource)| {
                (group(api_version).to_owned(), resource.plural.clone())
            })
            .collect()
    }

    fn grouped<'a>(
        &'a self,
        objects: &'a [ManifestObject],
    ) -> BTreeMap<ObjectIdentity<'a>, Vec<&'a ManifestObject>> {
        let mut grouped: BTreeMap<ObjectIdentity<'a>, Vec<&'a ManifestObject>> = BTreeMap::new();
        for object in objects {
            grouped
                .entry(self.identity(object))
                .or_default()
                .push(object);
        }
        grouped
    }

    /// What a rollback would have to change and may not.
    pub(super) fn refusals(
        &self,
        contents: &Contents,
        may: &RollbackPermissions,
    ) -> Vec<PreflightFailure> {
        let mut failures = Vec::new();
        if contents.all().count() > MAX_OBJECTS {
            failures.push(PreflightFailure {
                reason: "too_large",
                text: format!("both revisions together have more than {MAX_OBJECTS} objects"),
            });
        }
        if !self.unknown.is_empty() {
            let unknown: Vec<&str> = self.unknown.iter().map(String::as_str).collect();
            failures.push(PreflightFailure {
                reason: "unknown_kind",
                text: format!("the cluster does not have {}", unknown.join(", ")),
            });
        }
        let left_alone: BTreeSet<ObjectIdentity<'_>> = self
            .left_alone(contents, may)
            .into_values()
            .map(|object| self.identity(object))
            .collect();
        let mut seen = BTreeSet::new();
        let refused: Vec<&ManifestObject> = contents
            .all()
            .filter(|object| !self.is_allowed(object, may))
            .filter(|object| !left_alone.contains(&self.identity(object)))
            .filter(|object| seen.insert(self.identity(object)))
            .collect();
        failures.extend(self.foreign(&refused));
        failures.extend(self.wide(&refused));
        failures.extend(self.other_to_helm(contents));
        failures
    }

    fn foreign(&self, refused: &[&ManifestObject]) -> Option<PreflightFailure> {
        let mut namespaces = BTreeSet::new();
        let foreign = refused.iter().copied().filter(|object| {
            let ObjectPlace::Other(namespace) = self.place(object) else {
                return false;
            };
            namespaces.insert(shown(namespace));
            true
        });
        let named = named(foreign, |object| match self.place(object) {
            ObjectPlace::Other(namespace) => format!(" in {}", shown(namespace)),
            ObjectPlace::Own | ObjectPlace::Cluster => String::new(),
        })?;
        let keys: Vec<String> = namespaces.into_iter().take(MAX_NAMED).collect();
        Some(PreflightFailure {
            reason: "foreign_namespace",
            text: format!(
                "it would change {named}, outside the release's namespace {}; if the release owns that, set release.rollback.namespaces = {keys:?}",
                self.own
            ),
        })
    }

    fn wide(&self, refused: &[&ManifestObject]) -> Option<PreflightFailure> {
        let mut kinds = BTreeSet::new();
        let wide = refused.iter().copied().filter(|object| {
            let is_wide = self.place(object) == ObjectPlace::Cluster;
            if is_wide {
                kinds.insert(shown(&kind_of(object).to_string()));
            }
            is_wide
        });
        let named = named(wide, |_| String::new())?;
        let keys: Vec<String> = kinds.into_iter().take(MAX_NAMED).collect();
        Some(PreflightFailure {
            reason: "cluster_scoped",
            text: format!(
                "it would change {named}, in no namespace and so there for the whole cluster; if the release owns that, set release.rollback.cluster_scoped = {keys:?}"
            ),
        })
    }

    /// Objects without a namespace for which the revisions name different namespaces. Helm takes them for two objects:
    /// it changes one, and then deletes the other, which is the same.
    fn other_to_helm(&self, contents: &Contents) -> Option<PreflightFailure> {
        let bad = self.grouped(&contents.bad);
        let target = self.grouped(&contents.target);
        let differ = target.iter().filter_map(|(identity, objects)| {
            let all = objects.iter().chain(bad.get(identity)?);
            let written: BTreeSet<&Option<String>> = all.map(|object| &object.namespace).collect();
            let first = objects.first()?;
            (self.place(first) == ObjectPlace::Cluster && written.len() > 1).then_some(*first)
        });
        let named = named(differ, |_| String::new())?;
        Some(PreflightFailure {
            reason: "cluster_scoped",
            text: format!(
                "the two revisions write different namespaces for {named}, which is in none: helm would take that for two objects and delete it; deploy a chart that writes no namespace there"
            ),
        })
    }
}

/// Whether a kind of Kubernetes itself is namespaced; `None` for other kinds.
fn built_in(group: &str, kind: &str) -> Option<bool> {
    if ClusterKind::new(group, kind).is_built_in() {
        return Some(false);
    }
    BUILT_IN_GROUPS.contains(&group).then_some(true)
}

/// Whether a group belongs to Kubernetes itself.
pub(super) fn is_of_kubernetes(group: &str) -> bool {
    BUILT_IN_GROUPS.contains(&group)
        || OTHER_BUILT_IN_GROUPS.contains(&group)
        || ClusterKind::has_group(group)
}

fn kind_of(object: &ManifestObject) -> ClusterKind {
    ClusterKind::new(group(&object.api_version), &object.kind)
}

fn group(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

/// A name from a record, which may contain anything, shortened and escaped.
pub(super) fn shown(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(100).collect()
}

/// Some objects by kind and name, and how many more there are; `None` if there are none.
fn named<'a>(
    objects: impl Iterator<Item = &'a ManifestObject>,
    place: impl Fn(&ManifestObject) -> String,
) -> Option<String> {
    let all: Vec<String> = objects
        .map(|object| {
            format!(
                "{} {}{}",
                shown(&object.kind),
                shown(&object.name),
                place(object)
            )
        })
        .collect();
    (!all.is_empty()).then(|| checks::listed(&all))
}

#[cfg(test)]
mod tests;
