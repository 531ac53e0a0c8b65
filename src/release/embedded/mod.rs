//! A release that lives in a directory: for `leadsman demo`, and to try out settings without a cluster.
//!
//! ```text
//! DIRECTORY/v3.json     the record of revision 3: status, description, contents
//! DIRECTORY/pods.json   the state of the app's pods, written by the app
//! ```
//!
//! Records have Helm's statuses and descriptions, and a rollback does what Helm's does: it makes a new revision with
//! the contents of the target, first as `pending-rollback`, then `deployed`, and supersedes the others.

mod history;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use history::{EmbeddedHistory, EmbeddedPods, EmbeddedRecord};

use super::{Engine, EngineFuture, ObservedState, RollbackError, RollbackPlan, RollbackReport};
use crate::core::revision_ledger::RevisionStatus;
use crate::core::revision_ledger::StoredRevision;
use crate::core::units::Revision;

/// Interval of reading the directory; a new revision is known within this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The engine for a release in a directory.
#[derive(Debug)]
pub struct EmbeddedEngine {
    directory: PathBuf,
}

impl EmbeddedEngine {
    /// For this directory, which need not exist yet.
    pub fn new(directory: &Path) -> Arc<Self> {
        Arc::new(Self {
            directory: directory.to_owned(),
        })
    }

    fn history(&self) -> EmbeddedHistory {
        EmbeddedHistory::of(&self.directory)
    }

    fn check(&self, plan: &RollbackPlan) -> Result<(), RollbackError> {
        let records = self
            .history()
            .records()
            .map_err(|error| self.storage(&error))?;
        let newest = records
            .last()
            .map(|record| record.revision)
            .unwrap_or_default();
        if newest != plan.bad {
            return Err(RollbackError::Overtaken {
                bad: plan.bad,
                newest,
            });
        }
        // The judged revision may itself still be pending: an upgrade that waits for its pods.
        let pending =
            |record: &&EmbeddedRecord| record.status.is_pending() && record.revision != plan.bad;
        if let Some(record) = records.iter().find(pending) {
            return Err(RollbackError::Pending {
                revision: record.revision,
                status: record.status,
            });
        }
        let target = records.iter().find(|record| record.revision == plan.target);
        if target.is_none_or(|record| record.digest() != plan.digest) {
            return Err(RollbackError::TargetGone {
                target: plan.target,
            });
        }
        Ok(())
    }

    fn roll_back(&self, plan: &RollbackPlan) -> Result<RollbackReport, RollbackError> {
        let history = self.history();
        let records = history.records().map_err(|error| self.storage(&error))?;
        let left_behind = records.last().filter(|newest| {
            newest.rolled_back == Some(plan.bad) && newest.description == described(plan)
        });
        let (record, finished) = if let Some(record) = left_behind {
            // Also where it says that it is deployed: whoever was killed may not have come to the others.
            (record.clone(), true)
        } else {
            self.check(plan)?;
            (self.create(&history, &records, plan)?, false)
        };
        history
            .deploy(&record)
            .map_err(|error| self.storage(&error))?;
        Ok(RollbackReport {
            created_revision: record.revision,
            finished,
        })
    }

    /// Creates the next record; a second creator gets an error.
    fn create(
        &self,
        history: &EmbeddedHistory,
        records: &[EmbeddedRecord],
        plan: &RollbackPlan,
    ) -> Result<EmbeddedRecord, RollbackError> {
        let target = records.iter().find(|record| record.revision == plan.target);
        let contents = target
            .map(|record| record.contents.clone())
            .unwrap_or_default();
        let record = EmbeddedRecord {
            revision: crate::core::units::Revision(plan.bad.0 + 1),
            status: RevisionStatus::PendingRollback,
            description: described(plan),
            contents,
            rolled_back: Some(plan.bad),
            reason: Some(plan.reason.clone()),
        };
        match history.create(&record) {
            Ok(()) => Ok(record),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(RollbackError::Overtaken {
                    bad: plan.bad,
                    newest: record.revision,
                })
            }
            Err(error) => Err(self.storage(&error)),
        }
    }

    fn storage(&self, error: &io::Error) -> RollbackError {
        RollbackError::Storage(format!(
            "the history in {} cannot be read or written: {error}",
            self.directory.display()
        ))
    }
}

fn described(plan: &RollbackPlan) -> String {
    format!("Rollback to {}", plan.target)
}

impl Engine for EmbeddedEngine {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn follow(self: Arc<Self>, to: watch::Sender<ObservedState>) -> EngineFuture<()> {
        Box::pin(async move {
            while !to.is_closed() {
                let this = Arc::clone(&self);
                let read =
                    tokio::task::spawn_blocking(move || this.history().release_state()).await;
                let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
                to.send_if_modified(|observed| match read {
                    Ok(release_state) => {
                        let is_new =
                            *observed.release_state != release_state || observed.trouble.is_some();
                        if is_new {
                            *observed = ObservedState {
                                release_state: Arc::new(release_state),
                                trouble: None,
                                failures: 0,
                            };
                        }
                        is_new
                    }
                    Err(error) => {
                        let said = Some(self.storage(&error).to_string());
                        let is_new = observed.trouble != said;
                        observed.trouble = said;
                        is_new
                    }
                });
                tokio::time::sleep(LOOK_EVERY).await;
            }
        })
    }

    fn preflight(self: Arc<Self>, plan: RollbackPlan) -> EngineFuture<Result<(), RollbackError>> {
        Box::pin(async move { blocking(move || self.check(&plan)).await })
    }

    fn stored(self: Arc<Self>, revision: Revision) -> EngineFuture<Option<StoredRevision>> {
        Box::pin(async move {
            let read = blocking(move || {
                self.history()
                    .release_state()
                    .map_err(|error| self.storage(&error))
            });
            let release_state = read.await.ok()?;
            release_state
                .revisions
                .into_iter()
                .find(|record| record.revision == revision)
        })
    }

    fn execute(
        self: Arc<Self>,
        plan: RollbackPlan,
    ) -> EngineFuture<Result<RollbackReport, RollbackError>> {
        Box::pin(async move { blocking(move || self.roll_back(&plan)).await })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RollbackError> + Send + 'static,
) -> Result<T, RollbackError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(RollbackError::Storage(error.to_string())))
}

#[cfg(test)]
mod tests;
