//! What a rollback may reach: checked in the preflight, and again immediately before helm starts.

use std::collections::BTreeSet;

use super::ClusterEngine;
use super::api::ApiError;
use super::checks::PreflightFailure;
use super::helm_proxy::{HelmProxy, HelmReach};
use super::preflight::PreflightError;
use super::scope::{ApiScope, Contents, ObjectIdentity, shown};
use crate::config::settings::RollbackPermissions;
use crate::core::units::Revision;
use crate::helm::manifest::ManifestObject;
use crate::helm::record::HelmRecord;
use crate::release::{RollbackError, RollbackPlan};

/// Result of the check for one rollback.
pub(super) struct ScopeCheck {
    pub(super) scope: ApiScope,
    contents: Contents,
    /// What the rollback would have to change and may not.
    pub(super) failures: Vec<PreflightFailure>,
}

impl ScopeCheck {
    /// Without the objects that the rollback leaves alone.
    pub(super) fn without_left_alone(
        &self,
        objects: &[ManifestObject],
        may: &RollbackPermissions,
    ) -> Vec<ManifestObject> {
        let left_alone = self.scope.left_alone(&self.contents, may);
        let left_alone: BTreeSet<ObjectIdentity<'_>> = left_alone
            .into_values()
            .map(|object| self.scope.identity(object))
            .collect();
        let changed = objects.iter();
        let changed = changed.filter(|object| !left_alone.contains(&self.scope.identity(object)));
        changed.cloned().collect()
    }

    /// What helm may reach.
    pub(super) fn reach(&self, own: &str, may: &RollbackPermissions) -> HelmReach {
        let left_alone = self.scope.left_alone(&self.contents, may);
        HelmReach {
            namespaces: may
                .namespaces
                .iter()
                .cloned()
                .chain([own.to_owned()])
                .collect(),
            cluster_scoped: self.scope.allowed_kinds(may),
            left_alone: left_alone
                .into_iter()
                .map(|(path, object)| (path, object.body.clone()))
                .collect(),
            keeps_pods: BTreeSet::new(),
        }
    }
}

impl ClusterEngine {
    /// Where the objects of a rollback live, and which of them it may not change.
    pub(super) async fn scoped(
        &self,
        bad: &HelmRecord,
        target: &HelmRecord,
    ) -> Result<ScopeCheck, ApiError> {
        let (contents, mut failures) = Contents::of(bad, target);
        let scope = ApiScope::of(&self.cache, contents.all()).await?;
        let own = self.cache.namespace().as_str();
        failures.extend(scope.refusals(&contents, &self.policy.may));
        failures.extend(
            [bad, target]
                .iter()
                .filter_map(|record| of_another_namespace(record, own)),
        );
        Ok(ScopeCheck {
            scope,
            contents,
            failures,
        })
    }

    /// Reads the target a last time, checks it again, and starts the proxy through which helm reaches these objects and
    /// nothing else. A later change of the record has no effect.
    pub(super) async fn way_to_the_cluster(
        &self,
        plan: &RollbackPlan,
        bad: Revision,
    ) -> Result<(HelmRecord, HelmProxy), PreflightError> {
        let target = self.record(plan.target).await?;
        let target = target.filter(|record| record.digest() == plan.digest);
        let target = target.ok_or(RollbackError::TargetGone {
            target: plan.target,
        })?;
        let bad = self.record(bad).await?.ok_or_else(|| {
            let why = format!("the record of revision {bad} cannot be read");
            RollbackError::prevented("unreadable", self.with_command(plan, &why))
        })?;
        let scoped = self.scoped(&bad, &target).await?;
        if let Some(first) = scoped.failures.first() {
            let texts: Vec<&str> = scoped
                .failures
                .iter()
                .map(|one| one.text.as_str())
                .collect();
            let text = self.with_command(plan, &texts.join("; "));
            return Err(RollbackError::prevented(first.reason, text).into());
        }
        let policy = &self.policy;
        let mut reach = scoped.reach(self.cache.namespace().as_str(), &policy.may);
        let kept = self.kept_replicas(&bad, &target, &scoped.scope).await?;
        reach.keeps_pods = kept.into_iter().map(|one| one.path).collect();
        let client = self.cache.acting()?.clone();
        let proxy = HelmProxy::new(client, reach, policy).await;
        let proxy = proxy.map_err(|error| {
            let why = format!(
                "helm cannot be given a way to the API server in {}: {error}; see kubernetes.scratch",
                policy.scratch.display()
            );
            RollbackError::prevented("helm", self.with_command(plan, &why))
        })?;
        Ok((target, proxy))
    }
}

/// The namespace in a record, if it differs from the one where it is stored: helm looks there for pods of hooks.
pub(super) fn of_another_namespace(record: &HelmRecord, own: &str) -> Option<PreflightFailure> {
    let said = record.namespace.as_str();
    (!said.is_empty() && said != own).then(|| PreflightFailure {
        reason: "foreign_namespace",
        text: format!(
            "the record of revision {} says that it is of the namespace {}, and is stored in {own}; deploy the release anew",
            record.revision,
            shown(said)
        ),
    })
}
