//! The preflight: may and can a rollback be done?

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::time::Instant;

use super::ClusterEngine;
use super::api::{ApiError, ask};
use super::checks::{self, CheckPermissions, PreflightFailure};
use super::granted::Asker;
use super::helm_version;
use super::images;
use super::rbac;
use super::rbac::RbacRights;
use super::release_state::status_of;
use super::replicas::{self, KeptReplicas};
use super::rollback;
use super::scope::ApiScope;
use crate::core::units::Revision;
use crate::helm::manifest::ManifestObject;
use crate::helm::record::HelmRecord;
use crate::release::{RollbackError, RollbackPlan};

/// How long a pending upgrade may take before it is rolled back over.
const PENDING_FOR: Duration = Duration::from_secs(10);

/// Pause between two checks while waiting.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long to wait for a running hook, or for an API server that is away.
const WAIT: Duration = Duration::from_secs(600);

/// Objects of the target, missing in the bad revision, that are looked up in the cluster.
const MAX_RETURNING: usize = 50;

/// Remarks on one rollback, without those on autoscalers.
const MAX_FORESEEN: usize = 12;

impl ClusterEngine {
    pub(super) async fn may_be_rolled_back(
        &self,
        plan: &RollbackPlan,
    ) -> Result<(), RollbackError> {
        let looked = self.wait_until_clear(plan).await;
        if plan.is_dry_run {
            let is_lacking = looked.as_ref().is_err_and(|why| why.reason() == "rights");
            let now = (plan.bad, plan.target, looked.is_ok());
            let before = self.looked().replace(now);
            if is_lacking && before.is_none_or(|(_, _, was_well)| was_well) {
                // What other releases of the namespace were told may be over as well.
                self.cache.recheck_rights();
            }
        }
        looked
    }

    /// How fresh rights have to be: in the minutely check, answers may be minutes old if all was well before.
    fn asker(&self, plan: &RollbackPlan) -> Asker {
        let is_as_before = *self.looked() == Some((plan.bad, plan.target, true));
        match (plan.is_dry_run, is_as_before) {
            (true, true) => Asker::Rest,
            (true, false) => Asker::DryRun,
            (false, _) => Asker::Rollback,
        }
    }

    fn looked(&self) -> MutexGuard<'_, Option<(Revision, Revision, bool)>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait_until_clear(&self, plan: &RollbackPlan) -> Result<(), RollbackError> {
        let began = Instant::now();
        loop {
            match self.look(plan).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) if began.elapsed() > WAIT => {
                    let why = format!("waited {} s, and {why}", WAIT.as_secs());
                    return Err(RollbackError::prevented(
                        "pending",
                        self.with_command(plan, &why),
                    ));
                }
                // A rehearsal asks what would be in the way, not how long.
                Ok(Some(_)) if plan.is_dry_run => return Ok(()),
                Ok(Some(why)) => {
                    tracing::info!(release = %self.release, "The rollback waits: {why}");
                }
                Err(PreflightError::Is(rollback_error)) => return Err(rollback_error),
                Err(PreflightError::Trouble(trouble))
                    if self.may_pass(&trouble) && !plan.is_dry_run && began.elapsed() <= WAIT =>
                {
                    tracing::warn!(release = %self.release, %trouble, "The rollback waits for the API server");
                }
                Err(PreflightError::Trouble(trouble)) => {
                    if trouble.is(403) {
                        self.cache.recheck_rights();
                    }
                    return Err(RollbackError::Storage(self.with_command(plan, &trouble)));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Runs all checks once. Returns why to wait and check again, if so.
    async fn look(&self, plan: &RollbackPlan) -> Result<Option<String>, PreflightError> {
        let version = helm_version::of(&self.policy)
            .await
            .map_err(|why| RollbackError::prevented("helm", self.with_command(plan, &why)))?;
        let rows = self.records.list(&self.release).await?;
        let Some(newest) = rows.last() else {
            let why = format!("the release {} is gone, with its history", self.release);
            return Err(RollbackError::prevented("uninstalled", why).into());
        };
        let status = status_of(newest);
        if rollback::is_removed(status) {
            return Err(rollback::removed(newest.revision, status).into());
        }
        if newest.revision != plan.bad {
            return Err(RollbackError::Overtaken {
                bad: plan.bad,
                newest: newest.revision,
            }
            .into());
        }
        // Before any record is read: the large one may be one of these.
        if let Some(PreflightFailure { reason, text }) = self.too_large_for_helm().await? {
            return Err(RollbackError::prevented(reason, self.with_command(plan, &text)).into());
        }
        let target = self
            .record(plan.target)
            .await?
            .filter(|record| record.digest() == plan.digest);
        let Some(target) = target else {
            let target = plan.target;
            return Err(RollbackError::TargetGone { target }.into());
        };
        // A minutely look at rest asks whether what serves could be written again.
        let bad = if plan.bad == plan.target {
            Some(target.clone())
        } else {
            self.record(plan.bad).await?
        };
        let Some(bad) = bad else {
            return Err(RollbackError::prevented(
                "unreadable",
                self.with_command(
                    plan,
                    &format!("the record of revision {} cannot be read", plan.bad),
                ),
            )
            .into());
        };
        if status.is_pending() {
            if !self.policy.may.while_pending {
                let why = format!(
                    "revision {} itself is {status}: its own operation still waits, and release.rollback.while_pending = false says to leave it; end that, or roll back over it",
                    plan.bad
                );
                return Err(
                    RollbackError::prevented("pending", self.with_command(plan, &why)).into(),
                );
            }
            let since = self.cache.now().since(self.seen_since(plan.bad));
            if since < PENDING_FOR {
                return Ok(Some(format!(
                    "revision {} is {status} for {} s only",
                    plan.bad,
                    since.as_secs()
                )));
            }
            if let Some(hook) = bad.hooks.iter().find(|hook| hook.phase == "Running") {
                return Ok(Some(format!("its hook {} runs", hook.name)));
            }
        }
        let allowed = CheckPermissions {
            migrations: self.policy.may.after_migrations,
            gitops_owner: self.policy.may.against_gitops,
            kinds: &self.policy.may.delete,
            no_migrations: &self.policy.may.no_migrations,
            gone: &[],
        };
        let scoped = self.scoped(&bad, &target).await?;
        let fixed = checks::with_fixed_changes(&bad, &target, &scoped.scope);
        let gone = self.gone(fixed).await?;
        let allowed = CheckPermissions {
            gone: &gone,
            ..allowed
        };
        let (objects, found) = checks::look(&bad, &target, &scoped.scope, &allowed);
        let mut failures = scoped.failures.clone();
        failures.extend(
            found
                .into_iter()
                .filter(|one| !scoped.failures.contains(one)),
        );
        if newest.denied {
            failures.insert(0, checks::denied_by("the record's label"));
        }
        let mut moved = images::Moved::default();
        if !plan.is_dry_run || plan.bad != plan.target {
            let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            moved = images.moved(plan.bad, [&bad, &target]);
        }
        failures.extend(moved.refused);
        if !self.policy.may.against_gitops
            && let Some(gitops_owner) = self.gitops_owner(&objects)
        {
            failures.push(checks::gitops_failure(gitops_owner));
        }
        if failures.is_empty() {
            let changed = scoped.without_left_alone(&objects, &self.policy.may);
            failures.extend(self.rights(&changed, &target, self.asker(plan)).await?);
            if failures.is_empty() && version.major == 3 {
                let returning = checks::returning(&bad, &target, &scoped.scope);
                failures.extend(self.unknown_to_helm(&bad, returning).await?);
            }
            if failures.is_empty() {
                let tried = self
                    .try_beforehand(plan, [&bad, &target], &scoped, version)
                    .await?;
                failures.extend(tried.failures);
                if let Some(why) = tried.away.filter(|_| failures.is_empty()) {
                    if !plan.is_dry_run {
                        return Ok(Some(why));
                    }
                    failures.push(PreflightFailure {
                        reason: "webhook_away",
                        text: why,
                    });
                }
            }
            if !failures.is_empty() && self.cache.is_unsteady() {
                return Ok(Some(
                    "the API server has just come back and does not know all rights yet".into(),
                ));
            }
        }
        let kept = self.kept_replicas(&bad, &target, &scoped.scope).await?;
        let namespace = self.cache.namespace().as_str();
        let about = About {
            plan,
            begins: !plan.is_dry_run && failures.is_empty(),
        };
        let records = [&bad, &target];
        let mut known = foreseen(about, records, (&scoped.scope, namespace), &kept);
        known.extend(moved.remarks);
        self.foresee(about, known);
        if plan.is_dry_run {
            self.say_what_evidence_lacks(self.asker(plan)).await?;
        }
        let Some(first) = failures.first() else {
            return Ok(None);
        };
        let texts: Vec<&str> = failures.iter().map(|one| one.text.as_str()).collect();
        let text = self.with_command(plan, &texts.join("; "));
        Err(RollbackError::prevented(first.reason, text).into())
    }

    /// Keeps remarks about the rollback for the status and the log.
    fn foresee(&self, about: About<'_>, lines: Vec<String>) {
        if about.begins {
            for line in &lines {
                tracing::warn!(release = %self.release, "{line}");
            }
        }
        *self.foreseen.lock().unwrap_or_else(PoisonError::into_inner) = lines;
    }

    /// Logs missing rights that do not prevent a rollback, but its evidence.
    async fn say_what_evidence_lacks(&self, asker: Asker) -> Result<(), ApiError> {
        let needed = RbacRights::to_collect(self.cache.namespace().as_str());
        let missing = self.cache.missing(&needed, asker).await?.join(", ");
        let mut known = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        if !missing.is_empty() && *known != missing {
            tracing::warn!(
                release = %self.release,
                "Evidence and Events will not be whole, as rights are missing: {missing}; `leadsman rbac` prints what is needed"
            );
        }
        *known = missing;
        Ok(())
    }

    /// Objects that Helm 3 would refuse to overwrite half-way: they exist, and are in the target but not in the bad
    /// revision.
    async fn unknown_to_helm(
        &self,
        bad: &HelmRecord,
        returning: Vec<ManifestObject>,
    ) -> Result<Option<PreflightFailure>, ApiError> {
        let mut found = Vec::new();
        for object in returning.into_iter().take(MAX_RETURNING) {
            let client = self.cache.acting()?.clone();
            let Some(api) = self.api_of(client, &object).await? else {
                continue;
            };
            if ask(api.get_metadata_opt(&object.name)).await?.is_some() {
                found.push(object);
            }
        }
        Ok((!found.is_empty()).then(|| PreflightFailure {
            reason: "no_original",
            text: format!(
                "{} is there although revision {} does not have it, and Helm 3 stops half-way at that; delete it, or use Helm 4.2 or newer",
                checks::named(found.iter()),
                bad.revision
            ),
        }))
    }

    /// Those of the objects that are missing in the cluster, such as an expired Job.
    async fn gone(&self, objects: Vec<ManifestObject>) -> Result<Vec<ManifestObject>, ApiError> {
        let mut gone = Vec::new();
        for object in objects.into_iter().take(MAX_RETURNING) {
            let client = self.cache.acting()?.clone();
            let Some(api) = self.api_of(client, &object).await? else {
                continue;
            };
            match ask(api.get_metadata_opt(&object.name)).await {
                Ok(None) => gone.push(object),
                Ok(Some(_)) => {}
                // That the right is missing is said below.
                Err(trouble) if trouble.is(403) => {}
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(gone)
    }

    /// Where an object is stored; `None` if the cluster does not have its kind.
    pub(super) async fn api_of(
        &self,
        client: Client,
        object: &ManifestObject,
    ) -> Result<Option<Api<DynamicObject>>, ApiError> {
        let Some((group, version)) = rbac::split(&object.api_version) else {
            return Ok(None);
        };
        let kind = GroupVersionKind::gvk(group, version, &object.kind);
        let Some((plural, is_namespaced)) = self.cache.resource(&kind).await? else {
            return Ok(None);
        };
        let resource = ApiResource::from_gvk_with_plural(&kind, &plural);
        let own = self.cache.namespace().as_str();
        Ok(Some(if is_namespaced {
            let namespace = object.namespace.as_deref().unwrap_or(own);
            Api::namespaced_with(client, namespace, &resource)
        } else {
            Api::all_with(client, &resource)
        }))
    }

    /// The GitOps tool that manages a workload of the release in the cluster.
    fn gitops_owner(&self, objects: &[ManifestObject]) -> Option<&'static str> {
        let tables = self.cache.tables();
        let own = |kind: &str, name: &str| {
            objects
                .iter()
                .any(|object| object.kind == kind && object.name == *name)
        };
        let mut keepers = tables
            .workloads()
            .filter(|row| own(row.kind.as_str(), &row.name));
        keepers.find_map(|row| row.gitops_owner)
    }

    /// Missing rights of helm, and of Leadsman beside it.
    async fn rights(
        &self,
        objects: &[ManifestObject],
        target: &HelmRecord,
        asker: Asker,
    ) -> Result<Vec<PreflightFailure>, ApiError> {
        let hooks = rbac::rollback_hooks(target);
        let (namespace, driver) = (self.cache.namespace().as_str(), self.cache.driver());
        let (mut of_helm, unknown) = rbac::to_change(&self.cache, objects, &hooks).await?;
        of_helm.extend(RbacRights::to_record(namespace, driver));
        let mut own = RbacRights::to_patch_record(namespace, driver);
        let has_ordered = objects.iter().any(|object| object.kind == "StatefulSet");
        if has_ordered && self.policy.may.unblock_statefulsets {
            own.add(namespace, "", "pods", &["delete"]);
        }
        let mut failures = Vec::new();
        if !unknown.is_empty() {
            let unknown: Vec<String> = unknown.into_iter().collect();
            failures.push(PreflightFailure {
                reason: "unknown_kind",
                text: format!("the cluster does not have {}", unknown.join(", ")),
            });
        }
        let mut missing = self.cache.missing(&own, asker).await?;
        let of_helm = self.cache.missing_of_helm(&of_helm, asker).await;
        match (of_helm, self.cache.impersonated()) {
            (Ok(of_helm), None) => missing.extend(of_helm),
            (Ok(of_helm), Some(account)) => {
                missing.extend(
                    of_helm
                        .into_iter()
                        .map(|right| format!("{right} for {account}")),
                );
            }
            // Who may not act as an account is not told what that may do.
            (Err(trouble), Some(account)) if trouble.is(403) => {
                missing.push(format!("impersonate {account}"));
            }
            (Err(trouble), _) => return Err(trouble),
        }
        missing.sort();
        missing.dedup();
        if !missing.is_empty() {
            failures.push(PreflightFailure {
                reason: "rights",
                text: format!(
                    "rights are missing: {}; `leadsman rbac` prints what is needed",
                    missing.join(", ")
                ),
            });
        }
        Ok(failures)
    }
}

/// A rollback as described to people.
#[derive(Debug, Clone, Copy)]
struct About<'a> {
    plan: &'a RollbackPlan,
    /// Whether it starts now, and not only might.
    begins: bool,
}

/// The remarks about a rollback: before it in one form, at its start in another, so that the log has both.
fn foreseen(
    About { plan, begins }: About<'_>,
    [bad, target]: [&HelmRecord; 2],
    (scope, namespace): (&ApiScope, &str),
    kept: &[KeptReplicas],
) -> Vec<String> {
    let mut foreseen = replicas::remarks(kept);
    if plan.bad == plan.target {
        return foreseen;
    }
    // What may have changed data comes first: it is what people may have to undo.
    let mut lines = checks::not_hooks(bad, target, scope);
    lines.extend(checks::other_crds(bad, target));
    lines.extend(checks::not_restarted(bad, target, scope, namespace));
    // An autoscaler changes its numbers each minute, and has a remark without them.
    let is_told = |one: &&KeptReplicas| begins || !one.is_scaled();
    lines.extend(kept.iter().filter(is_told).filter_map(KeptReplicas::line));
    lines.truncate(MAX_FORESEEN);
    let about = if begins {
        format!("Rollback of revision {}", plan.bad)
    } else {
        format!("If revision {} is rolled back", plan.bad)
    };
    foreseen.extend(lines.into_iter().map(|line| format!("{about}: {line}")));
    foreseen
}

/// Why a check ended without an answer.
pub(super) enum PreflightError {
    Is(RollbackError),
    Trouble(ApiError),
}

impl From<RollbackError> for PreflightError {
    fn from(rollback_error: RollbackError) -> Self {
        Self::Is(rollback_error)
    }
}

impl From<ApiError> for PreflightError {
    fn from(trouble: ApiError) -> Self {
        Self::Trouble(trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::revision_ledger::ContentDigest;
    use crate::release::cluster::checks::tests::plain;

    fn plan(bad: u32) -> RollbackPlan {
        RollbackPlan {
            bad: Revision(bad),
            target: Revision(4),
            digest: ContentDigest("4444".into()),
            reason: String::new(),
            is_dry_run: false,
            fence: 1,
        }
    }

    #[test]
    fn a_job_that_may_have_migrated_data_is_told_of_before_the_rollback_and_at_it() {
        let jobs = |count: u32| {
            let job = |number| {
                format!(
                    "---\napiVersion: batch/v1\nkind: Job\nmetadata:\n  name: migrate-{number}\nspec: {{template: {{}}}}\n"
                )
            };
            plain(&(0..count).map(job).collect::<String>())
        };
        let scope = ApiScope::for_tests("shop", &[("batch/v1", "Job", "jobs")]);
        let (bad, target) = (jobs(1), jobs(0));
        let told = |bad_number, begins, bad: &HelmRecord| {
            let plan = &plan(bad_number);
            let about = About { plan, begins };
            foreseen(about, [bad, &target], (&scope, "shop"), &[])
        };
        let line = "Job migrate-0 of revision 1 is not in revision 1: it may have migrated data";
        let before = format!("If revision 5 is rolled back: {line}");
        assert_eq!(told(5, false, &bad), [before]);
        let at_it = format!("Rollback of revision 5: {line}");
        assert_eq!(told(5, true, &bad), [at_it]);
        assert!(told(4, false, &bad).is_empty(), "it serves");
        let many = told(5, false, &jobs(100));
        assert!(many.len() <= MAX_FORESEEN, "{many:?}");
    }
}
