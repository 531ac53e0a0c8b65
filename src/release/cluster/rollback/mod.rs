//! Carries out a rollback, and repairs what it, or an upgrade that it overtook, leaves behind.
//!
//! Helm's output is not believed: after each run the records are read again. They decide the next step, whether helm
//! was run by this process, by one that was killed, or not at all. So starting again after a restart is the same as
//! continuing.

mod next_step;
mod repair;

use next_step::{Attempts, RollbackProgress, Step, StopReason, TimeLeft, next_step};

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::ClusterEngine;
use super::api::ApiError;
use super::helm_command::{self, HelmRollback, HelmRun};
use super::helm_proxy;
use super::helm_version;
use super::objects::RecordSummaryRow;
use super::preflight::PreflightError;
use super::release_state::status_of;
use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::{Revision, Time};
use crate::helm::error::{self, HelmError};
use crate::helm::record::HelmRecord;
use crate::release::by_hand;
use crate::release::{RollbackError, RollbackPlan, RollbackReport};

/// A helm that one of us started before it was killed may still be at work for so long.
const ORPHAN: Duration = Duration::from_secs(10);

/// Pause while the API server is away.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether somebody is uninstalling a release, or has done so and kept its history.
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

/// Whether a record is of a rollback to the contents that were planned.
fn goes_back(record: &HelmRecord, plan: &RollbackPlan) -> bool {
    let says_so =
        record.description.starts_with("Rollback ") || record.description.starts_with("Release \"");
    says_so && record.digest() == plan.digest
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
        let mut attempts = Attempts::none();
        loop {
            if !self.policy.permit.holds() {
                return Err(RollbackError::prevented(
                    "not_leader",
                    "another replica acts from now on, and goes on with this",
                ));
            }
            // Whatever the time, what is there is looked at and put right first: a record that is left pending blocks
            // every later upgrade.
            let time = TimeLeft::after(began.elapsed());
            let found = self.progress(plan, bad).await;
            match next_step(&found, &attempts, time) {
                Step::Pause => tokio::time::sleep(PAUSE).await,
                Step::WaitForOrphan => {
                    attempts.waited_for_orphan = true;
                    self.wait_for_orphan(plan, bad).await;
                }
                Step::Repair { row, why } => self.repair_pending(plan, row, why, time).await?,
                Step::Run => self.run(plan, bad, &mut attempts, time).await?,
                Step::PauseAndRun => {
                    tokio::time::sleep(PAUSE).await;
                    self.run(plan, bad, &mut attempts, time).await?;
                }
                Step::RunOnTopOf(row) => {
                    self.note_failed(row).await;
                    bad = row.revision;
                    self.set_making(Some((Revision(bad.0 + 1), plan.target)));
                    self.run(plan, bad, &mut attempts, time).await?;
                }
                Step::Finish(row) => {
                    self.sign(plan, row).await;
                    return Ok(RollbackReport {
                        created_revision: row.revision,
                        finished: attempts.runs == 0,
                    });
                }
                Step::Stop(reason) => return Err(self.stopped(plan, reason, &attempts.said)),
            }
        }
    }

    fn stopped(&self, plan: &RollbackPlan, reason: StopReason, said: &str) -> RollbackError {
        match reason {
            StopReason::Unreadable(trouble) => {
                RollbackError::Storage(self.with_command(plan, &trouble))
            }
            StopReason::NotLetThrough => {
                let reason = helm_proxy::reason(said);
                RollbackError::prevented(reason, self.with_command(plan, &said))
            }
            StopReason::Overtaken(newest) => RollbackError::Overtaken {
                bad: plan.bad,
                newest,
            },
            StopReason::Removed(status) => removed(plan.bad, status),
            StopReason::Failed(why) => RollbackError::Failed {
                text: self.with_command(plan, &why),
            },
        }
    }

    /// Marks a record that is left pending as failed. What may work in a moment is tried again from the beginning, after
    /// a pause.
    async fn repair_pending(
        &self,
        plan: &RollbackPlan,
        row: &RecordSummaryRow,
        why: &str,
        time: TimeLeft,
    ) -> Result<(), RollbackError> {
        self.set_making(Some((row.revision, plan.target)));
        match self.repair(row, why).await {
            // Whoever may not any more is told so above.
            Ok(()) | Err(ApiError::NotOurs) => {}
            Err(trouble) if !time.is_over() && (self.may_pass(&trouble) || trouble.is(409)) => {
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
        Ok(())
    }

    /// Whether the same may work in a moment.
    pub(super) fn may_pass(&self, trouble: &ApiError) -> bool {
        let is_refusal = trouble.is(401) || trouble.is(403);
        trouble.may_pass() || (is_refusal && self.cache.is_unsteady())
    }

    /// Runs helm once, and notes what it says went wrong.
    async fn run(
        &self,
        plan: &RollbackPlan,
        bad: Revision,
        attempts: &mut Attempts,
        time: TimeLeft,
    ) -> Result<(), RollbackError> {
        let ended = self.run_helm(plan, bad, &mut attempts.runs, time.for_helm());
        (attempts.class, attempts.said) = ended.await?;
        Ok(())
    }

    /// What helm says went wrong; empty when it says that it worked.
    async fn run_helm(
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
        let outcome = self
            .outcome(plan, ran, proxy.refused(), &target, began)
            .await?;
        if !outcome.1.is_empty() {
            tracing::warn!(release = %self.release, class = ?outcome.0, "{}", outcome.1);
        }
        Ok(outcome)
    }

    /// How a run of helm that began then ended: the class of its error, and the error.
    async fn outcome(
        &self,
        plan: &RollbackPlan,
        ran: HelmRun,
        refused: Option<String>,
        target: &HelmRecord,
        began: Time,
    ) -> Result<(HelmError, String), RollbackError> {
        Ok(match ran {
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
                    self.last_words_of_hooks(target).await
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
        })
    }

    /// What the records say, read now, also where they cannot be read.
    async fn progress(&self, plan: &RollbackPlan, bad: Revision) -> RollbackProgress {
        let found = self.found(plan, bad).await;
        found.unwrap_or_else(|trouble| RollbackProgress::Unreadable {
            may_pass: self.may_pass(&trouble),
            text: trouble.to_string(),
        })
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

    /// What went wrong, and the command with which a person does the same.
    pub(super) fn with_command(&self, plan: &RollbackPlan, why: &dyn fmt::Display) -> String {
        format!("{why}; by hand: {}", self.by_hand(plan.target))
    }

    /// The command with which a person does the same.
    pub(super) fn by_hand(&self, target: Revision) -> String {
        let namespace = self.cache.namespace().as_str();
        by_hand::helm_command(self.release.as_str(), namespace, Some(target))
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
}

#[cfg(test)]
mod tests;
