//! What the checks of two records look at.

use std::collections::BTreeMap;

use super::{CheckPermissions, PreflightFailure};
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;
use crate::release::cluster::scope::ApiScope;

/// What the checks look at.
pub(in super::super) struct CheckContext<'a> {
    pub(super) bad: &'a HelmRecord,
    pub(super) target: &'a HelmRecord,
    pub(super) scope: &'a ApiScope,
    pub(super) allowed: &'a CheckPermissions<'a>,
    /// The objects of the bad revision; none where its manifest cannot be read.
    pub(super) old: Vec<ManifestObject>,
    /// Those of the target, likewise.
    pub(super) new: Vec<ManifestObject>,
    /// The manifests of the bad revision and of the target that cannot be read.
    pub(super) broken: [Option<PreflightFailure>; 2],
    /// Whether the label of the bad revision's record forbids a rollback.
    pub(in super::super) is_denied: bool,
    /// What the rollback would change, and may not.
    pub(in super::super) out_of_scope: &'a [PreflightFailure],
    /// A workload would get other code than its target names.
    pub(in super::super) moved: Option<PreflightFailure>,
    /// The tool that keeps a workload of the release in the cluster.
    pub(in super::super) gitops_owner: Option<&'static str>,
}

impl<'a> CheckContext<'a> {
    /// Of the two records alone; what else is known is filled in by the caller.
    pub(in super::super) fn new(
        bad: &'a HelmRecord,
        target: &'a HelmRecord,
        scope: &'a ApiScope,
        allowed: &'a CheckPermissions<'a>,
    ) -> Self {
        let [(old, broken), (new, broken_target)] = [bad, target].map(objects_of);
        Self {
            bad,
            target,
            scope,
            allowed,
            old,
            new,
            broken: [broken, broken_target],
            is_denied: false,
            out_of_scope: &[],
            moved: None,
            gitops_owner: None,
        }
    }

    /// The objects of both revisions; of one that both have, that of the bad revision.
    pub(in super::super) fn objects(&self) -> Vec<ManifestObject> {
        let mut all = self.old.clone();
        for object in &self.new {
            if !all.iter().any(|other| {
                self.scope.identity(other) == self.scope.identity(object)
                    && other.api_version == object.api_version
            }) {
                all.push(object.clone());
            }
        }
        all
    }

    /// Each object of the bad revision, with the same object of the target where that has it.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&ManifestObject, Option<&ManifestObject>)> {
        let by_identity: BTreeMap<_, &ManifestObject> = self
            .new
            .iter()
            .map(|object| (self.scope.identity(object), object))
            .collect();
        self.old.iter().map(move |object| {
            let same = by_identity.get(&self.scope.identity(object));
            (object, same.copied())
        })
    }
}

/// The objects of a revision; none where its manifest cannot be read, which is a failure by itself.
fn objects_of(record: &HelmRecord) -> (Vec<ManifestObject>, Option<PreflightFailure>) {
    match manifest::objects(&record.manifest) {
        Ok(objects) => (objects, None),
        Err(broken) => {
            let failure = PreflightFailure {
                reason: "manifest",
                text: format!(
                    "the manifest of revision {} cannot be read: {broken}",
                    record.revision
                ),
            };
            (Vec::new(), Some(failure))
        }
    }
}
