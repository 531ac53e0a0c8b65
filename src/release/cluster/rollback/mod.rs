//! Carries out a rollback, and repairs what it, or an upgrade that it overtook, leaves behind.
//!
//! Helm's output is not believed: after each run the records are read again. They decide the next step, whether helm
//! was run by this process, by one that was killed, or not at all. So starting again after a restart is the same as
//! continuing.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tokio::time::Instant;

use super::api::{ApiError, PATIENCE};
use super::helm_command::{self, HelmRollback, HelmRun};
use super::helm_proxy;
use super::helm_version;
use super::labels;
use super::objects::{RecordSummaryRow, WorkloadKind};
use super::preflight::PreflightError;
use super::record_patch::{MAX_DESCRIPTION, RecordChange};
use super::records::FencingToken;
use super::release_state::status_of;
use super::{CachedRecord, ClusterEngine};
use crate::core::revision_ledger::{self, RevisionStatus};
use crate::core::units::Revision;
use crate::helm::error::{self, HelmError};
use crate::helm::record::HelmRecord;
use crate::kubernetes::client::{ApiWriter, WriteError};
use crate::release::{RollbackError, RollbackPlan, RollbackReport};

/// Time after which a rollback is given up; by then people act with other means.
const GIVE_UP: Duration = Duration::from_secs(280);

/// A run of helm with less time than this does not start.
const SHORTEST: Duration = Duration::from_secs(20);

/// Time reserved to repair what a run that is ended at its limit leaves behind.
const RESERVE: Duration = Duration::from_secs(10);

/// Maximum runs of helm for one rollback.
const MAX_RUNS: u32 = 3;

/// How long a helm may still run after the process that started it was killed.
const ORPHAN: Duration = Duration::from_secs(10);

/// Pause while the API server is away.
const PAUSE: Duration = Duration::from_secs(1);

/// An upgrade that was rolled back and is still pending after this time will not end by itself.
const LEFT_PENDING: Duration = Duration::from_secs(900);

/// The state of our rollback, read from the records.
enum RollbackProgress {
    /// The bad revision is still the newest.
    Nothing,
    /// The rollback is there and complete.
    Done(RecordSummaryRow),
    /// It is there, and still said to be under way.
    Pending(RecordSummaryRow),
    /// Its record exists, and failed.
    Failed(RecordSummaryRow, String),
    /// Another revision is the newest.
    Overtaken(Revision),
    /// The release is being uninstalled.
    Removed(RevisionStatus),
}

/// Whether a release is being uninstalled, or was uninstalled with its history kept.
pub(super) const fn is_removed(status: RevisionStatus) -> bool {
    matches!(
        status,
        RevisionStatus::Uninstalling | RevisionStatus::Uninstalled
    )
}

/// A release that was removed on purpose must not come back.
pub(super) fn removed(bad: Revision, status: RevisionStatus) -> RollbackError {
    let status = if status == RevisionStatus::Uninstalling {
        "is being uninstalled"
    } else {
        "was uninstalled"
    };
    RollbackError::prevented(
        "uninstalled",
        format!("the release {status} as revision {bad}, and a rollback would install it again"),
    )
}

/// The description of the rollback's record. The reason, which a person may have written, is cut if the rest needs the
/// space.
fn description(plan: &RollbackPlan, digest: &str) -> String {
    let before = format!(
        "Rollback to {} by Leadsman: revision {}: ",
        plan.target, plan.bad
    );
    let behind = format!("; contents {digest}");
    let taken = before.chars().count() + behind.chars().count();
    let room = MAX_DESCRIPTION.saturating_sub(taken);
    let mut reason = plan.reason.clone();
    if reason.chars().count() > room {
        reason = reason.chars().take(room.saturating_sub(1)).collect();
        reason.push('…');
    }
    before + &reason + &behind
}

/// Whether a record is that of a rollback to the planned contents.
fn goes_back(record: &HelmRecord, plan: &RollbackPlan) -> bool {
    let says_so =
        record.description.starts_with("Rollback ") || record.description.starts_with("Release \"");
    says_so && record.digest() == plan.digest
}

/// Whether helm may run once more although it left no record: it was killed before it wrote, or it reports success
/// without a record.
fn may_begin_again(class: HelmError, said: &str) -> bool {
    class.may_be_tried_again() || said.is_empty() || said.starts_with("helm ")
}

impl ClusterEngine {
    pub(super) async fn roll_back(
        &self,
        plan: &RollbackPlan,
    ) -> Result<RollbackReport, RollbackError> {
        let ended = self.carry_out(plan).await;
        match &ended {
            Ok(report) => self.set_made(report.created_revision),
            Err(RollbackError::Overtaken { .. }) => {}
            // Its record may be pending, where the API server did not let us look.
            Err(_) => self.set_left(Some((plan.clone(), self.cache.now()))),
        }
        ended
    }

    async fn carry_out(&self, plan: &RollbackPlan) -> Result<RollbackReport, RollbackError> {
        let began = Instant::now();
        let mut bad = plan.bad;
        let mut runs = 0;
        let mut said = String::new();
        let mut class = HelmError::Other;
        let mut was_orphan = false;
        loop {
            if !self.policy.permit.holds() {
                return Err(RollbackError::prevented(
                    "not_leader",
                    "another replica acts from now on, and goes on with this",
                ));
            }
            // Whatever the time, what is there is looked at and put right first: a record that is left pending blocks
            // every later upgrade.
            let left = GIVE_UP.saturating_sub(began.elapsed());
            let time = left.saturating_sub(RESERVE + helm_command::LAST_SECONDS);
            let given_up = || format!("given up after {} s: {said}", GIVE_UP.as_secs());
            let found = match self.found(plan, bad).await {
                Ok(found) => found,
                Err(trouble) if self.may_pass(&trouble) && left.is_zero() => {
                    return Err(self.failed(
                        plan,
                        &format!("given up after {} s: {trouble}", GIVE_UP.as_secs()),
                    ));
                }
                Err(trouble) if self.may_pass(&trouble) => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                Err(trouble) => {
                    return Err(RollbackError::Storage(self.with_command(plan, &trouble)));
                }
            };
            match found {
                RollbackProgress::Overtaken(_) if class == HelmError::NotLetThrough => {
                    let reason = helm_proxy::reason(&said);
                    return Err(RollbackError::prevented(
                        reason,
                        self.with_command(plan, &said),
                    ));
                }
                RollbackProgress::Overtaken(newest) => {
                    return Err(RollbackError::Overtaken {
                        bad: plan.bad,
                        newest,
                    });
                }
                RollbackProgress::Removed(status) => return Err(removed(plan.bad, status)),
                RollbackProgress::Done(row) => {
                    self.sign(plan, &row).await;
                    return Ok(RollbackReport {
                        created_revision: row.revision,
                        finished: runs == 0,
                    });
                }
                // Not ours to end yet: the helm that made it may be at work.
                RollbackProgress::Pending(_) if runs == 0 && !was_orphan => {
                    was_orphan = true;
                    self.wait_for_orphan(plan, bad).await;
                }
                RollbackProgress::Pending(row) => {
                    self.set_making(Some((row.revision, plan.target)));
                    let why = if said.is_empty() {
                        "helm was killed"
                    } else {
                        said.as_str()
                    };
                    match self.repair(&row, why).await {
                        // Whoever may not any more is told so above.
                        Ok(()) | Err(ApiError::NotOurs) => {}
                        Err(trouble)
                            if !left.is_zero() && (self.may_pass(&trouble) || trouble.is(409)) =>
                        {
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(trouble) => {
                            let why = format!(
                                "revision {} is left pending-rollback and cannot be put right yet: {trouble}",
                                row.revision
                            );
                            return Err(RollbackError::Storage(self.with_command(plan, &why)));
                        }
                    }
                }
                RollbackProgress::Failed(row, why) => {
                    let may_go_on =
                        runs == 0 || class.may_be_tried_again() || said.starts_with("helm ");
                    if runs >= MAX_RUNS || !may_go_on {
                        return Err(self.failed(plan, if said.is_empty() { &why } else { &said }));
                    }
                    if time < SHORTEST {
                        return Err(self.failed(plan, &given_up()));
                    }
                    self.note_failed(&row).await;
                    bad = row.revision;
                    self.set_making(Some((Revision(bad.0 + 1), plan.target)));
                    (class, said) = self.run(plan, bad, &mut runs, time).await?;
                }
                RollbackProgress::Nothing => {
                    if runs > 0 {
                        // It ended without a record: nothing was written.
                        if runs >= MAX_RUNS && !class.may_be_tried_again()
                            || !may_begin_again(class, &said)
                        {
                            return Err(self.failed(plan, &said));
                        }
                        tokio::time::sleep(PAUSE).await;
                    }
                    if time < SHORTEST {
                        return Err(self.failed(plan, &given_up()));
                    }
                    (class, said) = self.run(plan, bad, &mut runs, time).await?;
                }
            }
        }
    }

    /// Whether a retry may succeed soon.
    pub(super) fn may_pass(&self, trouble: &ApiError) -> bool {
        let is_refusal = trouble.is(401) || trouble.is(403);
        trouble.may_pass() || (is_refusal && self.cache.is_unsteady())
    }

    /// Runs helm once. Returns its error, with an empty text if it reports success.
    async fn run(
        &self,
        plan: &RollbackPlan,
        bad: Revision,
        runs: &mut u32,
        time: Duration,
    ) -> Result<(HelmError, String), RollbackError> {
        let version = helm_version::of(&self.policy)
            .await
            .map_err(|why| RollbackError::prevented("helm", self.with_command(plan, &why)))?;
        let (target, proxy) = match self.way_to_the_cluster(plan, bad).await {
            Ok(found) => found,
            Err(PreflightError::Trouble(trouble)) if self.may_pass(&trouble) => {
                return Ok((HelmError::Transient, trouble.to_string()));
            }
            Err(PreflightError::Trouble(trouble)) => {
                return Err(RollbackError::Storage(self.with_command(plan, &trouble)));
            }
            Err(PreflightError::Is(rollback_error)) => return Err(rollback_error),
        };
        *runs += 1;
        let order = HelmRollback {
            namespace: self.cache.namespace(),
            release: &self.release,
            target: plan.target,
            driver: self.cache.driver(),
            version,
            server_side: target.server_side,
            kubeconfig: proxy.kubeconfig(),
            limit: time,
        };
        if !self.policy.permit.holds() {
            return Ok((HelmError::Other, "another replica acts".into()));
        }
        tracing::info!(release = %self.release, target = plan.target.0, run = *runs, "Starting helm rollback");
        let began = self.cache.now();
        let ran = tokio::select! {
            ran = helm_command::rollback(&self.policy, &order) => ran,
            never = proxy.serve() => match never {},
        };
        let refused = proxy.refused();
        let outcome = match ran {
            HelmRun::Well => (HelmError::Other, String::new()),
            // What the record held when it was looked at was another thing than helm read.
            HelmRun::Failed { .. } if refused.is_some() => {
                (HelmError::NotLetThrough, refused.unwrap_or_default())
            }
            // Helm does not always say that it was the API server that went away, as where it waits for a hook.
            HelmRun::Failed { class, text }
                if class.may_be_of_an_outage() && self.cache.was_in_trouble(began) =>
            {
                tracing::warn!(release = %self.release, ?class, "The API server was in trouble while helm ran");
                (HelmError::Transient, text)
            }
            HelmRun::Failed { class, text } => {
                let of_hook = matches!(class, HelmError::Hook | HelmError::NotReady);
                let words = if of_hook {
                    self.last_words_of_hooks(&target).await
                } else {
                    Vec::new()
                };
                let text = std::iter::once(text).chain(words);
                (class, text.collect::<Vec<_>>().join("; "))
            }
            HelmRun::Killed(why) => (HelmError::Other, why),
            HelmRun::NotStarted(why) => {
                let why = format!("helm cannot be started: {why}");
                return Err(RollbackError::prevented(
                    "helm",
                    self.with_command(plan, &why),
                ));
            }
        };
        if !outcome.1.is_empty() {
            tracing::warn!(release = %self.release, class = ?outcome.0, "{}", outcome.1);
        }
        Ok(outcome)
    }

    /// The state of the rollback, by the current records.
    async fn found(
        &self,
        plan: &RollbackPlan,
        bad: Revision,
    ) -> Result<RollbackProgress, ApiError> {
        let rows = self.records.list(&self.release).await?;
        let Some(newest) = rows.last() else {
            return Ok(RollbackProgress::Overtaken(Revision::default()));
        };
        let status = status_of(newest);
        if is_removed(status) {
            return Ok(RollbackProgress::Removed(status));
        }
        if newest.revision == bad {
            return Ok(RollbackProgress::Nothing);
        }
        let bad = self.after_failed_runs(plan, bad, &rows).await?;
        if newest.revision.0 != bad.0 + 1 {
            return Ok(RollbackProgress::Overtaken(newest.revision));
        }
        let Some((version, read)) = self.records.fetch(&newest.object).await? else {
            return Ok(RollbackProgress::Nothing);
        };
        let row = RecordSummaryRow {
            version,
            ..newest.clone()
        };
        let Ok(record) = read else {
            return Ok(RollbackProgress::Overtaken(row.revision));
        };
        // Whoever rolls back to the same contents has done our work.
        if !goes_back(&record, plan) {
            return Ok(RollbackProgress::Overtaken(row.revision));
        }
        Ok(match record.status {
            RevisionStatus::PendingRollback => RollbackProgress::Pending(row),
            RevisionStatus::Deployed => RollbackProgress::Done(row),
            RevisionStatus::Failed => {
                RollbackProgress::Failed(row, error::described(&record.description))
            }
            RevisionStatus::Unknown
            | RevisionStatus::Uninstalled
            | RevisionStatus::Superseded
            | RevisionStatus::Uninstalling
            | RevisionStatus::PendingInstall
            | RevisionStatus::PendingUpgrade => RollbackProgress::Overtaken(row.revision),
        })
    }

    /// The last of our own failed runs after the bad revision, without the newest record. A process that was killed may
    /// have got that far.
    async fn after_failed_runs(
        &self,
        plan: &RollbackPlan,
        bad: Revision,
        rows: &[RecordSummaryRow],
    ) -> Result<Revision, ApiError> {
        let mut last = bad;
        let before_newest = rows.len().saturating_sub(1);
        for row in rows[..before_newest]
            .iter()
            .filter(|row| row.revision > bad)
        {
            let is_next = row.revision.0 == last.0 + 1;
            if !is_next || !row.ours || status_of(row) != RevisionStatus::Failed {
                break;
            }
            let Some((_, Ok(record))) = self.records.fetch(&row.object).await? else {
                break;
            };
            if !goes_back(&record, plan) {
                break;
            }
            last = row.revision;
        }
        Ok(last)
    }

    async fn wait_for_orphan(&self, plan: &RollbackPlan, bad: Revision) {
        let until = Instant::now() + ORPHAN;
        while Instant::now() < until {
            tokio::time::sleep(PAUSE).await;
            if !matches!(
                self.found(plan, bad).await,
                Ok(RollbackProgress::Pending(_))
            ) {
                return;
            }
        }
    }

    /// Marks a pending record as failed when no process continues its rollback: it would block all upgrades.
    async fn repair(&self, row: &RecordSummaryRow, why: &str) -> Result<(), ApiError> {
        let change = RecordChange {
            status: Some("failed"),
            description: Some(format!("Rollback \"{}\" failed: {why}", self.release)),
            labels: vec![(labels::MADE, row.revision.to_string())],
        };
        self.records
            .patch_record(row, &change, &self.turn())
            .await?;
        tracing::warn!(release = %self.release, revision = row.revision.0, why,
            "A record that was left pending-rollback is marked as failed");
        Ok(())
    }

    /// Marks our failed run, so that a later process skips it. If that fails, the next run goes on all the same.
    async fn note_failed(&self, row: &RecordSummaryRow) {
        if row.ours || !self.policy.permit.holds() {
            return;
        }
        let change = RecordChange {
            labels: vec![(labels::MADE, row.revision.to_string())],
            ..RecordChange::default()
        };
        if let Err(trouble) = self.records.patch_record(row, &change, &self.turn()).await {
            tracing::warn!(release = %self.release, revision = row.revision.0, %trouble,
                "The record of a rollback that failed cannot be marked as ours");
        }
    }

    /// Repairs what an abandoned rollback left behind, for example after the API server was away for long. Its record
    /// is marked as failed, or as ours if helm finished after all. One check is enough once the API server answers:
    /// helm has ended by then, and whatever starts later is not ours.
    pub(super) async fn finish_left(&self) {
        let Some((plan, given_up)) = self.left() else {
            return;
        };
        // A rollback that is being carried out does that itself.
        if self.making().is_some() {
            return;
        }
        let done = match self.found(&plan, plan.bad).await {
            Ok(RollbackProgress::Pending(row)) if row.created <= given_up => {
                self.repair(&row, "helm did not end").await
            }
            Ok(RollbackProgress::Done(row)) if row.created <= given_up => {
                if !row.ours {
                    self.sign(&plan, &row).await;
                }
                self.set_made(row.revision);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(trouble) => Err(trouble),
        };
        match done {
            Ok(()) => self.set_left(None),
            Err(trouble) => {
                tracing::debug!(release = %self.release, %trouble, "What a rollback left is put right later");
            }
        }
    }

    /// Notes in the record that we made it, and why. The rollback is valid without that.
    async fn sign(&self, plan: &RollbackPlan, row: &RecordSummaryRow) {
        let digest: String = plan.digest.0.chars().take(12).collect();
        let change = RecordChange {
            status: None,
            description: Some(description(plan, &digest)),
            labels: vec![
                (labels::MADE, row.revision.to_string()),
                (labels::TURNED_BACK, plan.bad.to_string()),
                (labels::DIGEST, digest),
            ],
        };
        let turn = FencingToken {
            fence: plan.fence,
            ..self.turn()
        };
        for _ in 0..3 {
            match self.records.patch_record(row, &change, &turn).await {
                Ok(()) | Err(ApiError::NotOurs) => return,
                Err(trouble) if self.may_pass(&trouble) => tokio::time::sleep(PAUSE).await,
                Err(trouble) => {
                    tracing::warn!(release = %self.release, revision = row.revision.0, %trouble,
                        "The record of the rollback cannot be marked as ours");
                    return;
                }
            }
        }
    }

    fn failed(&self, plan: &RollbackPlan, why: &str) -> RollbackError {
        RollbackError::Failed {
            text: self.with_command(plan, &why),
        }
    }

    /// The error, and the command with which a person does the same.
    pub(super) fn with_command(&self, plan: &RollbackPlan, why: &dyn fmt::Display) -> String {
        format!("{why}; by hand: {}", self.by_hand(plan.target))
    }

    /// The command with which a person does the same.
    pub(super) fn by_hand(&self, target: Revision) -> String {
        let namespace = self.cache.namespace().as_str();
        revision_ledger::by_hand(self.release.as_str(), namespace, Some(target))
    }

    /// A record by revision, as it is now.
    pub(super) async fn record(&self, revision: Revision) -> Result<Option<HelmRecord>, ApiError> {
        let object = format!("sh.helm.release.v1.{}.v{revision}", self.release);
        Ok(self
            .records
            .fetch(&object)
            .await?
            .and_then(|(_, read)| read.ok()))
    }

    /// The newest record, if our rollback made it and is deployed, and repairs are ours to do: in the mode enforce, or
    /// because a person ordered the rollback.
    fn made_by_us<'a>(&self, rows: &'a [RecordSummaryRow]) -> Option<&'a RecordSummaryRow> {
        let newest = rows.last()?;
        let is_ours = newest.ours && status_of(newest) == RevisionStatus::Deployed;
        let may = self.policy.enforces || self.created_revision() == Some(newest.revision);
        (is_ours && may).then_some(newest)
    }

    /// Repairs the record of an upgrade that was rolled back while it waited: helm marks it as deployed at its end,
    /// although the rollback is. Changes nothing once a newer revision than ours exists.
    pub(super) async fn repair_records(&self, rows: &[RecordSummaryRow]) {
        let Some(newest) = self.made_by_us(rows) else {
            return;
        };
        let now = self.cache.now();
        for row in rows
            .iter()
            .filter(|row| row.revision < newest.revision && row.created <= newest.created)
        {
            let is_left = match status_of(row) {
                RevisionStatus::Deployed => true,
                status if status.is_pending() => now.since(newest.created) > LEFT_PENDING,
                _ => false,
            };
            if !is_left {
                continue;
            }
            let change = RecordChange {
                status: Some("superseded"),
                description: Some(format!(
                    "Rollback \"{}\" failed: superseded by revision {}, to which Leadsman rolled back",
                    self.release, newest.revision
                )),
                labels: Vec::new(),
            };
            match self.records.patch_record(row, &change, &self.turn()).await {
                Ok(()) => tracing::info!(release = %self.release, revision = row.revision.0,
                    "A record that was left behind is marked as superseded"),
                Err(ApiError::NotOurs) => return,
                Err(trouble) => {
                    tracing::debug!(release = %self.release, %trouble, "A record is put right later");
                }
            }
        }
    }

    /// Deletes a pod that blocks a StatefulSet: with ordered pods the controller waits until the bad pod is Ready,
    /// which never happens. One at a time, and only after our own rollback.
    pub(super) async fn unblock(
        &self,
        rows: &[RecordSummaryRow],
        known: &BTreeMap<Revision, CachedRecord>,
    ) {
        let Some(newest) = self.made_by_us(rows) else {
            return;
        };
        if !self.policy.may.unblock_statefulsets {
            return;
        }
        let Some(Ok(read)) = known.get(&newest.revision).map(|known| known.read.as_ref()) else {
            return;
        };
        let stuck = {
            let tables = self.cache.tables();
            let own = |name: &str| {
                read.workloads
                    .iter()
                    .any(|(kind, own)| *kind == WorkloadKind::StatefulSet && **own == *name)
            };
            let sets = tables.workloads().filter(|row| {
                row.kind == WorkloadKind::StatefulSet
                    && row.ordered
                    && !row.partial
                    && row.observed
                    && own(&row.name)
            });
            let stuck = sets.filter_map(|set| {
                tables.pods.values().find(|pod| {
                    pod.owner == set.uid
                        && pod.hash != set.template
                        && pod.ready_since.is_none()
                        && !pod.terminating
                })
            });
            stuck
                .map(|pod| (pod.name.clone(), pod.uid.clone()))
                .collect::<Vec<_>>()
        };
        let pods: Api<Pod> =
            Api::namespaced(self.cache.client().clone(), self.cache.namespace().as_str());
        let writer = ApiWriter::new(&self.policy.permit, PATIENCE);
        for (name, uid) in stuck {
            match writer.delete(&pods, &name, &uid).await {
                Err(WriteError::NotHeld) => return,
                Ok(()) => tracing::info!(release = %self.release, pod = %name,
                    "A pod of the revision that was rolled back blocked its StatefulSet and is deleted"),
                Err(error) => {
                    tracing::warn!(release = %self.release, pod = %name, trouble = %ApiError::from(error),
                    "A pod blocks its StatefulSet and cannot be deleted");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
