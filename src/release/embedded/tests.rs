//! An embedded release keeps a history as Helm does.

use serde_json::json;

use super::*;
use crate::core::revision_ledger::{ContentDigest, RevisionLedger};
use crate::core::units::Revision;
use crate::release::plan;

struct Release {
    folder: tempfile::TempDir,
}

impl Release {
    fn with(revisions: u32) -> Self {
        let release = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        for number in 1..=revisions {
            release
                .history()
                .upgrade(json!({ "number": number }))
                .unwrap();
        }
        release
    }

    fn history(&self) -> EmbeddedHistory {
        EmbeddedHistory::of(self.folder.path())
    }

    fn engine(&self) -> Arc<EmbeddedEngine> {
        EmbeddedEngine::new(self.folder.path())
    }

    fn plan(&self) -> RollbackPlan {
        let release_state = self.history().release_state().unwrap();
        let newest = release_state.newest().unwrap().revision;
        let before = Some(Revision(newest.0 - 1));
        plan(
            newest,
            &release_state,
            &RevisionLedger::default(),
            before,
            "hard_down_all",
        )
        .unwrap()
    }

    fn statuses(&self) -> Vec<(u32, RevisionStatus)> {
        let records = self.history().records().unwrap();
        records
            .iter()
            .map(|record| (record.revision.0, record.status))
            .collect()
    }
}

#[tokio::test]
async fn a_rollback_makes_a_new_revision_with_the_contents_of_the_target() {
    let release = Release::with(3);
    let plan = release.plan();
    release.engine().preflight(plan.clone()).await.unwrap();
    let report = release.engine().execute(plan).await.unwrap();
    assert_eq!(
        report,
        RollbackReport {
            created_revision: Revision(4),
            finished: false
        }
    );
    let records = release.history().records().unwrap();
    assert_eq!(records[3].contents, records[1].contents);
    assert_eq!(records[3].description, "Rollback to 2");
    assert_eq!(
        release.statuses(),
        [
            (1, RevisionStatus::Superseded),
            (2, RevisionStatus::Superseded),
            (3, RevisionStatus::Superseded),
            (4, RevisionStatus::Deployed)
        ]
    );
    assert_eq!(
        release.history().release_state().unwrap().ours,
        [Revision(4)]
    );
}

#[tokio::test]
async fn carried_out_twice_it_makes_one_rollback() {
    let release = Release::with(2);
    let plan = release.plan();
    release.engine().execute(plan.clone()).await.unwrap();
    let again = release.engine().execute(plan).await.unwrap();
    assert_eq!(
        again,
        RollbackReport {
            created_revision: Revision(3),
            finished: true
        }
    );
    assert_eq!(release.statuses().len(), 3);
}

#[tokio::test]
async fn a_rollback_that_was_killed_half_way_is_finished() {
    let release = Release::with(2);
    let plan = release.plan();
    let records = release.history().records().unwrap();
    release
        .engine()
        .create(&release.history(), &records, &plan)
        .unwrap();
    assert_eq!(release.statuses()[2], (3, RevisionStatus::PendingRollback));
    let report = release.engine().execute(plan).await.unwrap();
    assert_eq!(
        report,
        RollbackReport {
            created_revision: Revision(3),
            finished: true
        }
    );
    assert_eq!(release.statuses()[2], (3, RevisionStatus::Deployed));
}

#[tokio::test]
async fn a_newer_revision_is_the_fence() {
    let release = Release::with(2);
    let plan = release.plan();
    release.history().upgrade(json!({ "number": 3 })).unwrap();
    let overtaken = RollbackError::Overtaken {
        bad: Revision(2),
        newest: Revision(3),
    };
    assert_eq!(
        release.engine().preflight(plan.clone()).await,
        Err(overtaken.clone())
    );
    assert_eq!(release.engine().execute(plan).await, Err(overtaken));
    assert_eq!(release.statuses().len(), 3);
}

#[tokio::test]
async fn a_target_with_other_contents_is_refused() {
    let release = Release::with(2);
    let plan = RollbackPlan {
        digest: ContentDigest("other".into()),
        ..release.plan()
    };
    let gone = RollbackError::TargetGone {
        target: Revision(1),
    };
    assert_eq!(release.engine().execute(plan).await, Err(gone));
}

#[tokio::test]
async fn somebody_elses_pending_operation_is_not_disturbed() {
    let release = Release::with(3);
    let mut record = release.history().records().unwrap()[1].clone();
    record.status = RevisionStatus::PendingRollback;
    std::fs::write(
        release.folder.path().join("v2.json"),
        serde_json::to_vec(&record).unwrap(),
    )
    .unwrap();
    let plan = RollbackPlan {
        bad: Revision(3),
        target: Revision(1),
        digest: release.history().records().unwrap()[0].digest(),
        reason: String::new(),
        fence: 1,
        is_dry_run: false,
    };
    let refused = release.engine().preflight(plan).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("revision 2 is pending-rollback"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_record_that_lies_or_is_damaged_is_trouble_and_not_a_fact() {
    let release = Release::with(2);
    let path = release.folder.path().join("v7.json");
    for (content, expected) in [
        (
            std::fs::read(release.folder.path().join("v2.json")).unwrap(),
            "says that it is revision 2",
        ),
        (b"{\"revision\":7".to_vec(), "v7.json"),
        (vec![b' '; 2 * 1024 * 1024], "larger than"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = release.history().release_state().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn followers_learn_of_a_new_revision_and_of_trouble() {
    let release = Release::with(1);
    let (to, mut release_state) = watch::channel(ObservedState::default());
    let following = tokio::spawn(release.engine().follow(to));
    release_state.changed().await.unwrap();
    assert_eq!(
        release_state
            .borrow_and_update()
            .release_state
            .revisions
            .len(),
        1
    );
    release.history().upgrade(json!({})).unwrap();
    release_state.changed().await.unwrap();
    assert_eq!(
        release_state
            .borrow_and_update()
            .release_state
            .revisions
            .len(),
        2
    );
    std::fs::write(release.folder.path().join("v3.json"), "{").unwrap();
    release_state.changed().await.unwrap();
    let observed = release_state.borrow_and_update().clone();
    assert!(observed.trouble.unwrap().contains("v3.json"));
    assert_eq!(observed.release_state.revisions.len(), 2);
    drop(release_state);
    following.await.unwrap();
}

#[test]
fn the_history_is_bounded_as_helms_is() {
    let release = Release::with(60);
    let statuses = release.statuses();
    assert_eq!(statuses.len(), 50);
    assert_eq!(statuses.last(), Some(&(60, RevisionStatus::Deployed)));
}
