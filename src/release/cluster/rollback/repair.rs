//! Putting right what a rollback, or an upgrade that it overtook, leaves behind.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use super::PAUSE;
use super::next_step::RollbackProgress;
use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::Revision;
use crate::kubernetes::client::{ApiWriter, WriteError};
use crate::release::RollbackPlan;
use crate::release::cluster::api::{ApiError, PATIENCE};
use crate::release::cluster::labels;
use crate::release::cluster::objects::{RecordSummaryRow, WorkloadKind};
use crate::release::cluster::record_patch::{MAX_DESCRIPTION, RecordChange};
use crate::release::cluster::records::FencingToken;
use crate::release::cluster::release_state::status_of;
use crate::release::cluster::{CachedRecord, ClusterEngine};

/// An upgrade that was rolled back and still says after that time that it is pending will not end by itself.
const LEFT_PENDING: Duration = Duration::from_secs(900);

/// What the record of a rollback says of it. A reason, which a person may have written, gives way to what stands behind it.
pub(super) fn description(plan: &RollbackPlan, digest: &str) -> String {
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

impl ClusterEngine {
    /// A record of a rollback that nobody carries on with must not block upgrades for ever.
    pub(super) async fn repair(&self, row: &RecordSummaryRow, why: &str) -> Result<(), ApiError> {
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

    /// Marks a run of ours that failed, so that one of us that comes later steps over it. Without that the next run goes
    /// on all the same.
    pub(super) async fn note_failed(&self, row: &RecordSummaryRow) {
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

    /// Puts right what a rollback of ours that was given up left behind, as after an API server that was away for long:
    /// its record is marked as failed, or as ours where helm came to its end after all. One look is enough as soon as the
    /// API server answers: helm is not at work any more, and what begins later is somebody else's.
    pub(in super::super) async fn finish_left(&self) {
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

    /// Notes in the record that we made it, and why. Without that the rollback holds all the same.
    pub(super) async fn sign(&self, plan: &RollbackPlan, row: &RecordSummaryRow) {
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

    /// The newest record, if a rollback of ours made it and serves, and what is left of it is ours to put right: in the
    /// mode enforce, or because a person had us roll it back.
    fn made_by_us<'a>(&self, rows: &'a [RecordSummaryRow]) -> Option<&'a RecordSummaryRow> {
        let newest = rows.last()?;
        let is_ours = newest.ours && status_of(newest) == RevisionStatus::Deployed;
        let may = self.policy.enforces || self.created_revision() == Some(newest.revision);
        (is_ours && may).then_some(newest)
    }

    /// Puts right the record of an upgrade that was rolled back while it waited: helm says at its end that it is
    /// deployed, although the rollback is. Nothing is touched once a revision newer than ours is there.
    pub(in super::super) async fn repair_records(&self, rows: &[RecordSummaryRow]) {
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

    /// Deletes a pod that keeps a StatefulSet from going back: with ordered pods the controller waits for a pod of the
    /// bad revision to become Ready, which it never does. One at a time, and only after a rollback of ours.
    pub(in super::super) async fn unblock(
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
