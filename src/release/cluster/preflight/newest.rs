//! What the record of the newest revision says of a rollback, before anything else is looked at. Pure.

use std::time::Duration;

use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::{ReleaseName, Revision};
use crate::release::cluster::objects::RecordSummaryRow;
use crate::release::cluster::release_state::status_of;
use crate::release::cluster::rollback;
use crate::release::{RollbackError, RollbackPlan};

/// A waiting upgrade is given so long before it is rolled back over.
const PENDING_FOR: Duration = Duration::from_secs(10);

/// The newest of these records, if it is the one that the plan is about.
///
/// # Errors
/// The release is gone or is being removed, or another revision is the newest.
pub(super) fn expected<'a>(
    release: &ReleaseName,
    plan: &RollbackPlan,
    rows: &'a [RecordSummaryRow],
) -> Result<&'a RecordSummaryRow, RollbackError> {
    let Some(newest) = rows.last() else {
        let why = format!("the release {release} is gone, with its history");
        return Err(RollbackError::prevented("uninstalled", why));
    };
    let status = status_of(newest);
    if rollback::is_removed(status) {
        return Err(rollback::removed(newest.revision, status));
    }
    if newest.revision != plan.bad {
        return Err(RollbackError::Overtaken {
            bad: plan.bad,
            newest: newest.revision,
        });
    }
    Ok(newest)
}

/// A bad revision whose own operation has not ended.
pub(super) struct PendingOperation<'a> {
    pub(super) revision: Revision,
    pub(super) status: RevisionStatus,
    /// For how long it has been known.
    pub(super) since: Duration,
    /// Its hook that runs, if any.
    pub(super) hook: Option<&'a str>,
    /// Whether it may be rolled back all the same.
    pub(super) may: bool,
}

/// What follows from it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PendingAnswer {
    /// It may be rolled back.
    GoOn,
    /// Not yet, and why.
    Wait(String),
    /// The settings forbid it, in words.
    Refuse(String),
}

impl PendingOperation<'_> {
    pub(super) fn answer(&self) -> PendingAnswer {
        let Self {
            revision, status, ..
        } = self;
        if !self.may {
            return PendingAnswer::Refuse(format!(
                "revision {revision} itself is {status}: its own operation still waits, and release.rollback.while_pending = false says to leave it; end that, or roll back over it"
            ));
        }
        if self.since < PENDING_FOR {
            let seconds = self.since.as_secs();
            return PendingAnswer::Wait(format!(
                "revision {revision} is {status} for {seconds} s only"
            ));
        }
        self.hook.map_or(PendingAnswer::GoOn, |hook| {
            PendingAnswer::Wait(format!("its hook {hook} runs"))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "a test may end where it stands")]

    use super::*;
    use crate::core::revision_ledger::ContentDigest;
    use crate::core::units::Time;

    fn row(revision: u32, status: &str) -> RecordSummaryRow {
        RecordSummaryRow {
            object: format!("sh.helm.release.v1.web.v{revision}").into(),
            release: "web".into(),
            revision: Revision(revision),
            status: status.into(),
            created: Time::default(),
            version: "1".into(),
            ours: false,
            restored: false,
            denied: false,
            by: None,
            labels: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn only_the_newest_revision_of_a_release_that_is_there_may_be_rolled_back() {
        let plan = RollbackPlan {
            bad: Revision(5),
            target: Revision(4),
            digest: ContentDigest("4444".into()),
            reason: String::new(),
            is_dry_run: false,
            fence: 1,
        };
        let overtaken = RollbackError::Overtaken {
            bad: Revision(5),
            newest: Revision(6),
        };
        let gone = RollbackError::prevented(
            "uninstalled",
            "the release web is gone, with its history".to_owned(),
        );
        let removed = |status| Err(rollback::removed(Revision(5), status));
        let good = row(4, "superseded");
        for (newest, expected_error) in [
            (None, Err(gone)),
            (Some(row(5, "deployed")), Ok(())),
            (Some(row(5, "failed")), Ok(())),
            (Some(row(5, "pending-upgrade")), Ok(())),
            (
                Some(row(5, "uninstalling")),
                removed(RevisionStatus::Uninstalling),
            ),
            (
                Some(row(5, "uninstalled")),
                removed(RevisionStatus::Uninstalled),
            ),
            (Some(row(6, "deployed")), Err(overtaken)),
        ] {
            let rows: Vec<RecordSummaryRow> = newest
                .into_iter()
                .flat_map(|newest| [good.clone(), newest])
                .collect();
            let found = expected(&ReleaseName::new("web"), &plan, &rows);
            assert_eq!(found, expected_error.map(|()| &rows[1]));
        }
    }

    #[test]
    fn an_operation_that_waits_is_rolled_back_over_after_its_time_and_its_hook() {
        let wait = |why: &str| PendingAnswer::Wait(why.into());
        let young = "revision 5 is pending-upgrade for 9 s only";
        for (may, since, hook, expected) in [
            (true, 10, None, PendingAnswer::GoOn),
            (true, 9, None, wait(young)),
            (true, 9, Some("migrate"), wait(young)),
            (true, 10, Some("migrate"), wait("its hook migrate runs")),
        ] {
            let operation = PendingOperation {
                revision: Revision(5),
                status: RevisionStatus::PendingUpgrade,
                since: Duration::from_secs(since),
                hook,
                may,
            };
            assert_eq!(operation.answer(), expected);
            let forbidden = PendingOperation {
                may: false,
                ..operation
            };
            let PendingAnswer::Refuse(why) = forbidden.answer() else {
                panic!("it is forbidden");
            };
            assert!(why.contains("while_pending = false"), "{why}");
        }
    }
}
