//! Which revision is gone back to, table by table.

use super::*;

fn stored(
    revision: u32,
    status: RevisionStatus,
    description: &str,
    contents: &str,
) -> StoredRevision {
    StoredRevision {
        revision: Revision(revision),
        status,
        description: description.into(),
        digest: (!contents.is_empty()).then(|| ContentDigest(contents.into())),
        weak: None,
        hooks_succeeded: true,
        test_failed: false,
    }
}

fn found(entries: &[(&str, ContentVerdict)]) -> RevisionLedger {
    let mut ledger = RevisionLedger::default();
    for (contents, found) in entries {
        ledger.write(LedgerEntry {
            digest: ContentDigest((*contents).into()),
            weak: None,
            revision: Revision(0),
            found: *found,
            at: Time::default(),
            evidence: String::new(),
        });
    }
    ledger
}

const DONE: &str = "Upgrade complete";

#[track_caller]
fn check(
    bad: u32,
    records: &[StoredRevision],
    ledger: &RevisionLedger,
    serving: Option<u32>,
    expected: Result<u32, &str>,
) {
    let got = choose(Revision(bad), records, ledger, serving.map(Revision));
    match (got, expected) {
        (Ok(choice), Ok(target)) => assert_eq!(choice.target, Revision(target)),
        (Err(none), Err(part)) => assert!(none.to_string().contains(part), "{none}"),
        (got, expected) => panic!("{got:?} and not {expected:?}"),
    }
}

#[test]
fn the_newest_that_is_known_to_be_good_comes_first() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Superseded, DONE, "b"),
        stored(3, RevisionStatus::Superseded, DONE, "c"),
        stored(4, RevisionStatus::Deployed, DONE, "d"),
    ];
    check(
        4,
        &records,
        &found(&[("a", ContentVerdict::Good), ("b", ContentVerdict::Good)]),
        Some(3),
        Ok(2),
    );
    check(
        4,
        &records,
        &found(&[("c", ContentVerdict::Good)]),
        Some(3),
        Ok(3),
    );
}

#[test]
fn without_a_known_good_one_the_one_that_was_serving_is_taken_and_no_other() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Superseded, DONE, "b"),
        stored(3, RevisionStatus::Deployed, DONE, "c"),
    ];
    check(3, &records, &RevisionLedger::default(), Some(2), Ok(2));
    check(
        3,
        &records,
        &RevisionLedger::default(),
        None,
        Err("revision 2 was neither found good nor serving"),
    );
}

#[test]
fn contents_that_are_the_same_or_known_to_be_bad_are_passed_over() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Superseded, DONE, "b"),
        stored(3, RevisionStatus::Superseded, DONE, "c"),
        stored(4, RevisionStatus::Deployed, DONE, "c"),
    ];
    let ledger = found(&[("a", ContentVerdict::Good), ("b", ContentVerdict::Bad)]);
    check(4, &records, &ledger, Some(3), Ok(1));
    let none = found(&[("a", ContentVerdict::Bad), ("b", ContentVerdict::Bad)]);
    check(
        4,
        &records,
        &none,
        Some(3),
        Err("revision 3 has the same contents"),
    );
    check(
        4,
        &records,
        &none,
        Some(3),
        Err("revision 2 has contents that were found bad"),
    );
}

#[test]
fn a_revision_that_never_worked_is_no_target_whatever_its_status_says() {
    for description in [
        "Upgrade \"web\" failed: timed out",
        "Rollback \"web\" failed: no",
        "Release \"web\" failed: x",
        "failed to render resource: y",
        "Preparing upgrade",
        "Initial install underway",
        "Deletion in progress (or silently failed)",
        "Uninstallation complete",
        "Release unlocked from stale 'pending-upgrade' state",
        "superseded by new release",
    ] {
        let records = [
            stored(1, RevisionStatus::Superseded, description, "a"),
            stored(2, RevisionStatus::Deployed, DONE, "b"),
        ];
        check(
            2,
            &records,
            &found(&[("a", ContentVerdict::Good)]),
            Some(1),
            Err("never seen to work"),
        );
    }
    for status in [
        RevisionStatus::Failed,
        RevisionStatus::PendingUpgrade,
        RevisionStatus::PendingInstall,
        RevisionStatus::PendingRollback,
        RevisionStatus::Uninstalling,
        RevisionStatus::Uninstalled,
        RevisionStatus::Unknown,
    ] {
        let records = [
            stored(1, status, DONE, "a"),
            stored(2, RevisionStatus::Deployed, DONE, "b"),
        ];
        check(
            2,
            &records,
            &RevisionLedger::default(),
            Some(1),
            Err("has the status"),
        );
    }
}

/// An upgrade that was rolled back while it waited says at its end that it is deployed.
#[test]
fn of_two_that_are_deployed_the_status_decides_nothing() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Deployed, DONE, "b"),
        stored(3, RevisionStatus::Deployed, "Rollback to 1", "a"),
        stored(4, RevisionStatus::Superseded, DONE, "c"),
    ];
    check(4, &records, &RevisionLedger::default(), Some(3), Ok(3));
    check(
        4,
        &records,
        &found(&[("b", ContentVerdict::Bad)]),
        Some(3),
        Ok(3),
    );
    check(
        4,
        &records,
        &found(&[("b", ContentVerdict::Good)]),
        None,
        Ok(2),
    );
    let bad = found(&[("b", ContentVerdict::Bad)]);
    let says = "revision 2 has contents that were found bad";
    check(4, &records, &bad, None, Err(says));
}

/// Helm keeps ten revisions, and somebody may delete any of them.
#[test]
fn revisions_that_are_not_there_are_passed_without_a_word() {
    let records = [
        stored(3, RevisionStatus::Superseded, DONE, "a"),
        stored(7, RevisionStatus::Superseded, "Rollback to 2", "b"),
        stored(9, RevisionStatus::Deployed, DONE, "c"),
    ];
    check(9, &records, &RevisionLedger::default(), Some(7), Ok(7));
    check(
        9,
        &records,
        &found(&[("a", ContentVerdict::Good)]),
        None,
        Ok(3),
    );
    // The one that was serving is gone, and with it what is known of the others.
    let none = choose(
        Revision(9),
        &records,
        &RevisionLedger::default(),
        Some(Revision(8)),
    );
    let NoTarget { passed_over } = none.unwrap_err();
    assert_eq!(passed_over.len(), 2, "{passed_over:?}");
}

/// However long it has been so: a pending one that serves has not been seen to work.
#[test]
fn a_revision_that_is_pending_is_no_target() {
    for (status, word) in [
        (RevisionStatus::PendingInstall, "pending-install"),
        (RevisionStatus::PendingUpgrade, "pending-upgrade"),
        (RevisionStatus::PendingRollback, "pending-rollback"),
    ] {
        let records = [
            stored(1, RevisionStatus::Deployed, "Install complete", "a"),
            stored(2, status, "Preparing upgrade", "b"),
            stored(3, RevisionStatus::Failed, DONE, "c"),
        ];
        let says = format!("revision 2 has the status {word}");
        check(3, &records, &RevisionLedger::default(), Some(2), Err(&says));
        check(3, &records, &RevisionLedger::default(), Some(1), Ok(1));
        let good = found(&[("a", ContentVerdict::Good), ("b", ContentVerdict::Good)]);
        check(3, &records, &good, Some(2), Ok(1));
    }
}

#[test]
fn a_description_of_ones_own_is_no_obstacle() {
    let records = [
        stored(
            1,
            RevisionStatus::Superseded,
            "ticket 4711: failed: twice before",
            "a",
        ),
        stored(2, RevisionStatus::Deployed, DONE, "b"),
    ];
    check(2, &records, &RevisionLedger::default(), Some(1), Ok(1));
}

#[test]
fn a_rollback_is_as_good_as_what_it_went_back_to() {
    let mut records = vec![
        stored(1, RevisionStatus::Failed, "Upgrade \"web\" failed: x", "a"),
        stored(2, RevisionStatus::Superseded, "Rollback to 1", "a"),
        stored(3, RevisionStatus::Deployed, DONE, "b"),
    ];
    check(
        3,
        &records,
        &RevisionLedger::default(),
        Some(2),
        Err("goes back to revision 1, which has the status failed"),
    );
    records[0] = stored(1, RevisionStatus::Superseded, DONE, "a");
    check(3, &records, &RevisionLedger::default(), Some(2), Ok(2));
    records[1].hooks_succeeded = false;
    check(
        3,
        &records,
        &RevisionLedger::default(),
        Some(2),
        Err("hooks did not succeed"),
    );
}

#[test]
fn rollbacks_that_point_at_one_another_end() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Rollback to 2", "a"),
        stored(2, RevisionStatus::Superseded, "Rollback to 1", "a"),
        stored(3, RevisionStatus::Deployed, DONE, "b"),
    ];
    check(3, &records, &RevisionLedger::default(), Some(2), Ok(2));
}

#[test]
fn of_a_long_history_the_newest_are_told_of_and_the_rest_is_counted() {
    let records: Vec<StoredRevision> = (1..=10_000)
        .map(|revision| stored(revision, RevisionStatus::Superseded, DONE, ""))
        .collect();
    let none = choose(Revision(10_001), &records, &RevisionLedger::default(), None).unwrap_err();
    let text = none.to_string();
    assert!(text.contains("revision 10000 was not read"), "{text}");
    assert!(text.ends_with("nor any of 9994 older ones"), "{text}");
    assert!(text.len() < 500, "{text}");
}

#[test]
fn what_cannot_be_read_or_is_not_there_is_no_target() {
    let records = [
        stored(1, RevisionStatus::Superseded, DONE, ""),
        stored(2, RevisionStatus::Deployed, DONE, "b"),
    ];
    check(
        2,
        &records,
        &RevisionLedger::default(),
        Some(1),
        Err("was not read, or cannot be"),
    );
    check(
        1,
        &records,
        &RevisionLedger::default(),
        None,
        Err("has no predecessor"),
    );
}

/// A chart that renders something random: the same software has another digest each time.
#[test]
fn contents_that_are_rendered_anew_each_time_are_known_to_be_bad_by_chart_images_and_values() {
    let record = |revision: u32, contents: &str, weak: &str| StoredRevision {
        weak: Some(ContentDigest(weak.into())),
        ..stored(revision, RevisionStatus::Superseded, DONE, contents)
    };
    let entry = |contents: &str, weak: &str, revision: u32, found: ContentVerdict| LedgerEntry {
        digest: ContentDigest(contents.into()),
        weak: Some(ContentDigest(weak.into())),
        revision: Revision(revision),
        found,
        at: Time::default(),
        evidence: String::new(),
    };
    let ledger = |entries: &[LedgerEntry]| {
        let mut ledger = RevisionLedger::default();
        for entry in entries {
            ledger.write(entry.clone());
        }
        ledger
    };
    let records = [
        record(1, "a", "old"),
        record(2, "b1", "new"),
        record(3, "b2", "new"),
        record(4, "c", "newest"),
    ];
    let bad = entry("b1", "new", 2, ContentVerdict::Bad);
    let says =
        Err("revision 3 has the chart, images and values of revision 2, which was found bad");
    check(
        4,
        &records,
        &ledger(std::slice::from_ref(&bad)),
        Some(3),
        says,
    );
    // Nothing could be said of it itself.
    let unknown = entry("b2", "new", 3, ContentVerdict::Unknown);
    check(4, &records, &ledger(&[bad.clone(), unknown]), Some(3), says);
    // What was found of its own contents holds, and so does that the same chart, images and values were good as well.
    let good = entry("b2", "new", 3, ContentVerdict::Good);
    check(4, &records, &ledger(&[bad.clone(), good]), Some(3), Ok(3));
    let repaired = entry("b0", "new", 1, ContentVerdict::Good);
    check(
        4,
        &records,
        &ledger(&[bad.clone(), repaired]),
        Some(3),
        Ok(3),
    );
    // What a rollback brought back was chosen.
    let mut chosen = records.clone();
    chosen[2].description = "Rollback to 1".into();
    check(4, &chosen, &ledger(&[bad]), Some(3), Ok(3));
    // A bad revision says nothing of the one before that differs in a template alone.
    let own = entry("b2", "new", 3, ContentVerdict::Bad);
    check(3, &records, &ledger(&[own]), Some(2), Ok(2));
}

#[test]
fn the_ledger_is_bounded_and_the_last_finding_about_contents_holds() {
    let mut ledger = RevisionLedger::default();
    for number in 0..200u32 {
        ledger.write(LedgerEntry {
            digest: ContentDigest(number.to_string().into()),
            weak: None,
            revision: Revision(number),
            found: ContentVerdict::Good,
            at: Time::default(),
            evidence: "ü".repeat(5000),
        });
    }
    assert_eq!(ledger.entries().len(), MAX_ENTRIES);
    assert!(
        ledger
            .entries()
            .iter()
            .all(|entry| entry.evidence.len() <= MAX_EVIDENCE)
    );
    let again = found(&[("a", ContentVerdict::Good), ("a", ContentVerdict::Bad)]);
    assert_eq!(again.entries().len(), 1);
    assert_eq!(again.entries()[0].found, ContentVerdict::Bad);
}

/// What was never rolled out has never served, whatever its record says.
#[test]
fn contents_that_were_never_rolled_out_are_not_gone_back_to() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Superseded, DONE, "b"),
        stored(3, RevisionStatus::Deployed, DONE, "c"),
    ];
    let incomplete = found(&[("b", ContentVerdict::Incomplete)]);
    check(
        3,
        &records,
        &incomplete,
        Some(2),
        Err("whose rollout was never complete"),
    );
    check(3, &records, &incomplete, Some(1), Ok(1));
    let good = found(&[
        ("a", ContentVerdict::Good),
        ("b", ContentVerdict::Incomplete),
    ]);
    check(3, &records, &good, Some(2), Ok(1));
}

/// Where a release is deployed several times an hour, no bake ends.
#[test]
fn what_passed_its_analysis_is_gone_back_to_although_its_bake_never_ended() {
    let records = [
        stored(1, RevisionStatus::Superseded, "Install complete", "a"),
        stored(2, RevisionStatus::Superseded, DONE, "b"),
        stored(3, RevisionStatus::Superseded, DONE, "c"),
        stored(4, RevisionStatus::Deployed, DONE, "d"),
    ];
    let passed = [
        ("a", ContentVerdict::Good),
        ("b", ContentVerdict::Passed),
        ("c", ContentVerdict::Passed),
    ];
    check(4, &records, &found(&passed), Some(3), Ok(3));
    check(4, &records, &found(&passed[1..]), None, Ok(3));
    let choice = choose(Revision(4), &records, &found(&passed), None).unwrap();
    assert!(!choice.known_good);
    // The alarm of a bake says more than that the revision was serving, as long as there is a better one.
    let failed = ("c", ContentVerdict::BakeFailed);
    check(
        4,
        &records,
        &found(&[passed[0], passed[1], failed]),
        Some(3),
        Ok(2),
    );
    check(4, &records, &found(&[passed[0], failed]), Some(3), Ok(1));
    check(4, &records, &found(&[failed]), Some(3), Ok(3));
}
