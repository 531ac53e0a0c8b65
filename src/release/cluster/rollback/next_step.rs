//! What comes next of a rollback: from what its records say, what was tried, and the time. Pure.

use std::time::Duration;

use crate::core::revision_ledger::RevisionStatus;
use crate::core::units::Revision;
use crate::helm::error::HelmError;
use crate::release::cluster::helm_command;
use crate::release::cluster::objects::RecordSummaryRow;

/// A rollback that was decided is given up after that: whoever looks then has other means.
pub(super) const GIVE_UP: Duration = Duration::from_secs(280);

/// A run of helm that has less time than that is not begun.
const SHORTEST: Duration = Duration::from_secs(20);

/// Kept free for putting right what a run that is ended at its limit leaves behind.
const RESERVE: Duration = Duration::from_secs(10);

/// Runs of helm for one rollback.
const MAX_RUNS: u32 = 3;

/// What was found of our rollback in the records.
pub(super) enum RollbackProgress {
    /// The records could not be read.
    Unreadable {
        /// The error.
        text: String,
        /// Whether the same read may work in a moment.
        may_pass: bool,
    },
    /// The bad revision is still the newest.
    Nothing,
    /// The rollback is there and complete.
    Done(RecordSummaryRow),
    /// It is there, and still said to be under way.
    Pending(RecordSummaryRow),
    /// It is there, and failed.
    Failed(RecordSummaryRow, String),
    /// Something else is there.
    Overtaken(Revision),
    /// Somebody uninstalls the release.
    Removed(RevisionStatus),
}

/// What was tried so far.
pub(super) struct Attempts {
    /// Runs of helm that were started.
    pub(super) runs: u32,
    /// Whether a helm of a replica that was killed had its time to end.
    pub(super) waited_for_orphan: bool,
    /// The class of the last run's error.
    pub(super) class: HelmError,
    /// The last run's error; empty where helm says that it worked, and before the first run.
    pub(super) said: String,
}

impl Attempts {
    pub(super) const fn none() -> Self {
        Self {
            runs: 0,
            waited_for_orphan: false,
            class: HelmError::Other,
            said: String::new(),
        }
    }

    /// Whether helm may be started once more although it left no record: killed before it wrote anything, or it says that
    /// it worked and the record is not there.
    fn may_begin_again(&self) -> bool {
        self.class.may_be_tried_again() || self.said.is_empty() || self.said.starts_with("helm ")
    }
}

/// The time until the rollback is given up.
#[derive(Debug, Clone, Copy)]
pub(super) struct TimeLeft(Duration);

impl TimeLeft {
    pub(super) const fn after(elapsed: Duration) -> Self {
        Self(GIVE_UP.saturating_sub(elapsed))
    }

    pub(super) const fn is_over(self) -> bool {
        self.0.is_zero()
    }

    /// What a run of helm may take.
    pub(super) fn for_helm(self) -> Duration {
        self.0.saturating_sub(RESERVE + helm_command::LAST_SECONDS)
    }
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// Wait a moment, and read again.
    Pause,
    /// A helm that a killed replica started may be at work: give it time.
    WaitForOrphan,
    /// Mark the record as failed.
    Repair {
        row: &'a RecordSummaryRow,
        /// Why it is one.
        why: &'a str,
    },
    /// Start helm for the first time.
    Run,
    /// Wait a moment and start helm again: the run before left no record.
    PauseAndRun,
    /// Start helm again on top of this record, which a run before left as failed.
    RunOnTopOf(&'a RecordSummaryRow),
    /// The rollback is done.
    Finish(&'a RecordSummaryRow),
    /// Give up.
    Stop(StopReason),
}

/// Why a rollback is given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// The records cannot be read, and that will not pass.
    Unreadable(String),
    /// The proxy did not let helm's request through.
    NotLetThrough,
    /// Somebody else made this revision.
    Overtaken(Revision),
    /// Somebody uninstalls the release.
    Removed(RevisionStatus),
    /// Helm failed, or the time is up.
    Failed(String),
}

pub(super) fn next_step<'a>(
    found: &'a RollbackProgress,
    attempts: &'a Attempts,
    time: TimeLeft,
) -> Step<'a> {
    match found {
        RollbackProgress::Unreadable { text, may_pass } => match (may_pass, time.is_over()) {
            (true, true) => Step::Stop(given_up(text)),
            (true, false) => Step::Pause,
            (false, _) => Step::Stop(StopReason::Unreadable(text.clone())),
        },
        RollbackProgress::Overtaken(_) if attempts.class == HelmError::NotLetThrough => {
            Step::Stop(StopReason::NotLetThrough)
        }
        RollbackProgress::Overtaken(newest) => Step::Stop(StopReason::Overtaken(*newest)),
        RollbackProgress::Removed(status) => Step::Stop(StopReason::Removed(*status)),
        RollbackProgress::Done(row) => Step::Finish(row),
        // Not ours to end yet: the helm that made it may be at work.
        RollbackProgress::Pending(_) if attempts.runs == 0 && !attempts.waited_for_orphan => {
            Step::WaitForOrphan
        }
        RollbackProgress::Pending(row) => Step::Repair {
            row,
            why: if attempts.said.is_empty() {
                "helm was killed"
            } else {
                attempts.said.as_str()
            },
        },
        RollbackProgress::Failed(row, why) => after_failure(row, why, attempts, time),
        RollbackProgress::Nothing => without_record(attempts, time),
    }
}

/// A run left a record that says `failed`, and why.
fn after_failure<'a>(
    row: &'a RecordSummaryRow,
    why: &str,
    attempts: &Attempts,
    time: TimeLeft,
) -> Step<'a> {
    let Attempts {
        runs, class, said, ..
    } = attempts;
    let may_go_on = *runs == 0 || class.may_be_tried_again() || said.starts_with("helm ");
    if *runs >= MAX_RUNS || !may_go_on {
        let why = if said.is_empty() { why } else { said };
        return Step::Stop(StopReason::Failed(why.to_owned()));
    }
    if time.for_helm() < SHORTEST {
        return Step::Stop(given_up(said));
    }
    Step::RunOnTopOf(row)
}

/// There is no record of a rollback: helm was not started, or ended before it wrote anything.
fn without_record(attempts: &Attempts, time: TimeLeft) -> Step<'static> {
    let may_run_once_more = attempts.runs < MAX_RUNS || attempts.class.may_be_tried_again();
    if attempts.runs > 0 && !(may_run_once_more && attempts.may_begin_again()) {
        return Step::Stop(StopReason::Failed(attempts.said.clone()));
    }
    if time.for_helm() < SHORTEST {
        return Step::Stop(given_up(&attempts.said));
    }
    if attempts.runs > 0 {
        Step::PauseAndRun
    } else {
        Step::Run
    }
}

fn given_up(said: &str) -> StopReason {
    StopReason::Failed(format!("given up after {} s: {said}", GIVE_UP.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::units::Time;

    fn row(revision: u32) -> RecordSummaryRow {
        RecordSummaryRow {
            object: "sh.helm.release.v1.web.v3".into(),
            release: "web".into(),
            revision: Revision(revision),
            status: "failed".into(),
            created: Time::default(),
            version: "1".into(),
            ours: false,
            restored: false,
            denied: false,
            by: None,
            labels: std::collections::BTreeMap::new(),
        }
    }

    fn tried(runs: u32, class: HelmError, said: &str) -> Attempts {
        Attempts {
            runs,
            class,
            said: said.to_owned(),
            ..Attempts::none()
        }
    }

    fn check(found: &RollbackProgress, attempts: &Attempts, elapsed: u64, expected: &Step<'_>) {
        let time = TimeLeft::after(Duration::from_secs(elapsed));
        assert_eq!(&next_step(found, attempts, time), expected);
    }

    fn failed(why: &str) -> Step<'static> {
        Step::Stop(StopReason::Failed(why.into()))
    }

    #[test]
    fn what_somebody_else_did_ends_the_rollback() {
        let none = Attempts::none();
        let overtaken = RollbackProgress::Overtaken(Revision(5));
        let stop = Step::Stop(StopReason::Overtaken(Revision(5)));
        check(&overtaken, &none, 0, &stop);
        check(&overtaken, &tried(1, HelmError::Overtaken, "so"), 0, &stop);
        let not_let_through = Step::Stop(StopReason::NotLetThrough);
        let refused = tried(1, HelmError::NotLetThrough, "so");
        check(&overtaken, &refused, 0, &not_let_through);
        let removed = RollbackProgress::Removed(RevisionStatus::Uninstalled);
        let stop = Step::Stop(StopReason::Removed(RevisionStatus::Uninstalled));
        check(&removed, &none, 0, &stop);
    }

    #[test]
    fn records_that_cannot_be_read_are_waited_for_as_long_as_that_may_pass() {
        let none = Attempts::none();
        let unreadable = |may_pass| RollbackProgress::Unreadable {
            text: "no".into(),
            may_pass,
        };
        check(&unreadable(true), &none, 279, &Step::Pause);
        let given_up = failed("given up after 280 s: no");
        check(&unreadable(true), &none, 280, &given_up);
        let stop = Step::Stop(StopReason::Unreadable("no".into()));
        check(&unreadable(false), &none, 0, &stop);
    }

    #[test]
    fn a_record_that_is_there_is_finished_or_repaired_whatever_the_time() {
        let done = RollbackProgress::Done(row(3));
        let pending = RollbackProgress::Pending(row(3));
        let mut orphan = Attempts::none();
        check(&done, &orphan, 0, &Step::Finish(&row(3)));
        check(&done, &orphan, 280, &Step::Finish(&row(3)));
        check(&pending, &orphan, 0, &Step::WaitForOrphan);
        orphan.waited_for_orphan = true;
        let three = row(3);
        let killed = Step::Repair {
            row: &three,
            why: "helm was killed",
        };
        check(&pending, &orphan, 280, &killed);
        let said = Step::Repair {
            row: &three,
            why: "timed out",
        };
        let tried = tried(1, HelmError::Transient, "timed out");
        check(&pending, &tried, 280, &said);
    }

    #[test]
    fn helm_is_started_while_there_are_runs_and_time() {
        let nothing = RollbackProgress::Nothing;
        let none = Attempts::none();
        check(&nothing, &none, 0, &Step::Run);
        check(&nothing, &none, 245, &Step::Run);
        check(&nothing, &none, 246, &failed("given up after 280 s: "));
        for (runs, class, said, expected) in [
            // It says that it worked, was killed, or had trouble that passes.
            (1, HelmError::Other, "", Step::PauseAndRun),
            (1, HelmError::Other, "helm was killed", Step::PauseAndRun),
            (2, HelmError::Transient, "reset", Step::PauseAndRun),
            (3, HelmError::Transient, "reset", Step::PauseAndRun),
            // It says why, and that does not pass; or it had its runs.
            (1, HelmError::Invalid, "no", failed("no")),
            (
                3,
                HelmError::Other,
                "helm was killed",
                failed("helm was killed"),
            ),
            (3, HelmError::Other, "", failed("")),
        ] {
            check(&nothing, &tried(runs, class, said), 0, &expected);
        }
        let late = failed("given up after 280 s: reset");
        check(
            &nothing,
            &tried(1, HelmError::Transient, "reset"),
            246,
            &late,
        );
    }

    #[test]
    fn helm_is_started_on_top_of_a_failed_record_while_that_may_help() {
        let left = RollbackProgress::Failed(row(3), "hook failed".into());
        let three = row(3);
        let again = || Step::RunOnTopOf(&three);
        for (runs, class, said, expected) in [
            // A run of a replica that was killed.
            (0, HelmError::Other, "", again()),
            (1, HelmError::Transient, "reset", again()),
            (2, HelmError::Other, "helm was killed", again()),
            (1, HelmError::Invalid, "no", failed("no")),
            (1, HelmError::Other, "", failed("hook failed")),
            (3, HelmError::Transient, "reset", failed("reset")),
        ] {
            check(&left, &tried(runs, class, said), 0, &expected);
        }
        let late = failed("given up after 280 s: reset");
        check(&left, &tried(1, HelmError::Transient, "reset"), 246, &late);
    }
}
