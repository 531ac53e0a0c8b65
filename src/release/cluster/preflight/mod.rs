//! The preflight: may and can a rollback be done?

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use tokio::time::Instant;

mod foreseen;
mod newest;

use foreseen::About;
use newest::{PendingAnswer, PendingOperation};

use super::ClusterEngine;
use super::api::{ApiError, ask};
use super::checks::{self, CheckContext, CheckPermissions, PreflightFailure};
use super::granted::Asker;
use super::helm_command::HelmVersion;
use super::helm_version;
use super::images;
use super::rbac;
use super::rbac::RbacRights;
use super::release_state::status_of;
use super::scope_check::ScopeCheck;
use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::Revision;
use crate::helm::manifest::ManifestObject;
use crate::helm::record::HelmRecord;
use crate::release::{RollbackError, RollbackPlan};

/// Between looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long to wait for a running hook, or for an API server that is away.
const WAIT: Duration = Duration::from_secs(600);

/// Objects of the target, missing in the bad revision, that are looked up in the cluster.
const MAX_RETURNING: usize = 50;

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
        let newest = newest::expected(&self.release, plan, &rows)?;
        // Before any record is read: the large one may be one of these.
        if let Some(PreflightFailure { reason, text }) = self.too_large_for_helm().await? {
            return Err(RollbackError::prevented(reason, self.with_command(plan, &text)).into());
        }
        let (bad, target) = self.both_records(plan).await?;
        if let Some(why) = self.waits_for_operation(plan, status_of(newest), &bad)? {
            return Ok(Some(why));
        }
        let scoped = self.scoped(&bad, &target).await?;
        let fixed = checks::with_fixed_changes(&bad, &target, &scoped.scope);
        let gone = self.gone(fixed).await?;
        let allowed = CheckPermissions {
            migrations: self.policy.may.after_migrations,
            gitops_owner: self.policy.may.against_gitops,
            kinds: &self.policy.may.delete,
            no_migrations: &self.policy.may.no_migrations,
            gone: &gone,
        };
        let mut context = CheckContext::new(&bad, &target, &scoped.scope, &allowed);
        let objects = context.objects();
        let moved = self.moved(plan, [&bad, &target]);
        context.is_denied = newest.denied;
        context.out_of_scope = &scoped.failures;
        context.moved = moved.refused;
        context.gitops_owner = self.gitops_owner(&objects);
        let mut failures = checks::failures(&context);
        let records = [&bad, &target];
        if failures.is_empty() {
            let asked = self.ask_cluster(plan, records, &scoped, &objects, version);
            match asked.await? {
                ClusterAnswer::Wait(why) => return Ok(Some(why)),
                ClusterAnswer::Failures(found) => failures = found,
            }
        }
        let about = About {
            plan,
            begins: !plan.is_dry_run && failures.is_empty(),
        };
        self.foresee(about, records, &scoped.scope, moved.remarks)
            .await?;
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

    /// The records of the bad revision and of the target.
    async fn both_records(
        &self,
        plan: &RollbackPlan,
    ) -> Result<(HelmRecord, HelmRecord), PreflightError> {
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
        Ok((bad, target))
    }

    /// Why the bad revision's own operation is waited for, if so.
    fn waits_for_operation(
        &self,
        plan: &RollbackPlan,
        status: RevisionStatus,
        bad: &HelmRecord,
    ) -> Result<Option<String>, RollbackError> {
        if !status.is_pending() {
            return Ok(None);
        }
        let running = bad.hooks.iter().find(|hook| hook.phase == "Running");
        let operation = PendingOperation {
            revision: plan.bad,
            status,
            since: self.cache.now().since(self.seen_since(plan.bad)),
            hook: running.map(|hook| &*hook.name),
            may: self.policy.may.while_pending,
        };
        match operation.answer() {
            PendingAnswer::GoOn => Ok(None),
            PendingAnswer::Wait(why) => Ok(Some(why)),
            PendingAnswer::Refuse(why) => Err(RollbackError::prevented(
                "pending",
                self.with_command(plan, &why),
            )),
        }
    }

    /// Which code that served before the bad revision the target cannot name any more.
    fn moved(&self, plan: &RollbackPlan, records: [&HelmRecord; 2]) -> images::Moved {
        if plan.is_dry_run && plan.bad == plan.target {
            return images::Moved::default();
        }
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.moved(plan.bad, records)
    }

    /// What only the cluster can say: rights, objects that Helm does not know of, and a dry run of each write.
    async fn ask_cluster(
        &self,
        plan: &RollbackPlan,
        [bad, target]: [&HelmRecord; 2],
        scoped: &ScopeCheck,
        objects: &[ManifestObject],
        version: HelmVersion,
    ) -> Result<ClusterAnswer, ApiError> {
        let changed = scoped.without_left_alone(objects, &self.policy.may);
        let mut failures = self.rights(&changed, target, self.asker(plan)).await?;
        if failures.is_empty() && version.major == 3 {
            let returning = checks::returning(bad, target, &scoped.scope);
            failures.extend(self.unknown_to_helm(bad, returning).await?);
        }
        if failures.is_empty() {
            let tried = self
                .try_beforehand(plan, [bad, target], scoped, version)
                .await?;
            failures.extend(tried.failures);
            if let Some(why) = tried.away.filter(|_| failures.is_empty()) {
                if !plan.is_dry_run {
                    return Ok(ClusterAnswer::Wait(why));
                }
                failures.push(PreflightFailure {
                    reason: "webhook_away",
                    text: why,
                });
            }
        }
        if !failures.is_empty() && self.cache.is_unsteady() {
            return Ok(ClusterAnswer::Wait(
                "the API server has just come back and does not know all rights yet".into(),
            ));
        }
        Ok(ClusterAnswer::Failures(failures))
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

/// What the cluster says of a rollback.
enum ClusterAnswer {
    /// It cannot say it yet, and why.
    Wait(String),
    /// What is in the way, if anything.
    Failures(Vec<PreflightFailure>),
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
