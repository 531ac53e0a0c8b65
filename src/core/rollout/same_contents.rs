//! A revision with the contents of the newest one before it.
//!
//! | phase of that one | what follows |
//! |---|---|
//! | idle: never analyzed, passed, unchanged, or made by a rollback | `unchanged`: it serves already; no analysis |
//! | idle: inconclusive, or rejected and still there | an analysis, compared with the revision that served before both |
//! | rolling out, analyzing | the analysis continues under the new number, with all its evidence |
//! | preflight | the verdict stands; the preflight runs again |
//! | rolling back, before helm has made its revision | once helm is done, as in preflight |
//! | rolling back or verifying, with the contents of helm's revision | `unchanged`; the rollback is verified all the same |
//!
//! So upgrading again with the same contents neither gains nor loses anything. The earlier number ends as `superseded`.

use super::candidate::{
    Candidate, FinishedRollout, NOT_ROLLED_OUT, ROLLED_OUT_LATE, RevisionOrigin, RolloutOutcome,
};
use super::transition::NewRevision;
use super::{Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

impl Rollout {
    pub(super) fn same(
        &mut self,
        newcomer: NewRevision,
        before: Revision,
        known_good: bool,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let NewRevision {
            revision, origin, ..
        } = newcomer;
        match &mut self.phase {
            // Without anything before it, it is the same as nothing.
            RolloutPhase::NotInstalled => {
                self.begin(revision, origin, newcomer.serving, now, commands);
            }
            RolloutPhase::Idle => {
                let suspect = self.suspect(before, known_good);
                match suspect.map(|suspect| (suspect.first(), suspect.serving)) {
                    None => self.unchanged(newcomer, before, "which serves", now),
                    Some((first, serving)) => {
                        self.begin(revision, origin, serving, now, commands);
                        if let RolloutPhase::RollingOut(candidate) = &mut self.phase {
                            candidate.first = Some(first);
                        }
                    }
                }
            }
            RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_) => {
                self.renumber((revision, origin), now);
                commands.push(RolloutCommand::GoOn(revision));
            }
            RolloutPhase::Preflight(_) => self.look_again_for((revision, origin), now, commands),
            // Ours, or told of after a restart before it is known to be ours.
            RolloutPhase::RollingBack(_) if origin == RevisionOrigin::OurRollback => {}
            RolloutPhase::RollingBack(candidate) if candidate.created_revision.is_none() => {
                // One that came in between has these contents, which need not be the bad ones.
                candidate.overtaken_by_same |=
                    candidate.overtaken_by.is_none() && before == candidate.revision;
                self.is_overtaken_by((revision, origin), now);
                let text = format!(
                    "Revision {revision} appeared while the rollback was carried out, with the contents of revision {before}"
                );
                self.note(now, Some(revision), text);
            }
            RolloutPhase::RollingBack(candidate) | RolloutPhase::Verifying(candidate) => {
                candidate.stands_for_made = Some(revision);
                self.unchanged(newcomer, before, "which the rollback made", now);
            }
        }
    }

    /// Whether the newest revision does not simply serve: it is inconclusive, or was rejected and is still there. Then
    /// the same contents are analyzed again.
    pub fn is_suspect(&self, known_good: bool) -> bool {
        let newest = self.newest;
        newest.is_some_and(|newest| self.suspect(newest, known_good).is_some())
    }

    /// How a revision ended last. An order that was refused says nothing of it.
    fn last_of(&self, revision: Revision) -> Option<&FinishedRollout> {
        self.finished
            .iter()
            .rev()
            .find(|finished| is_about(finished, revision))
    }

    fn suspect(&self, revision: Revision, known_good: bool) -> Option<&Candidate> {
        let finished = self.last_of(revision)?;
        let is_uncertain = match finished.outcome {
            RolloutOutcome::Inconclusive
            | RolloutOutcome::WouldRollBack
            | RolloutOutcome::NotEligible
            | RolloutOutcome::LimitReached
            | RolloutOutcome::Refused
            | RolloutOutcome::RollbackFailed => true,
            RolloutOutcome::Passed
            | RolloutOutcome::Unchanged
            | RolloutOutcome::Superseded
            | RolloutOutcome::Uninstalled
            | RolloutOutcome::RolledBack
            | RolloutOutcome::StillFailing
            | RolloutOutcome::Worsened
            | RolloutOutcome::Unverified
            | RolloutOutcome::OrderRefused => false,
        };
        (is_uncertain && !known_good).then_some(&finished.candidate)
    }

    /// The finished rollout of a revision, if it was never complete.
    pub(super) fn never_rolled_out(&self, revision: Revision) -> Option<&Candidate> {
        let finished = self.last_of(revision)?;
        let never = finished.outcome == RolloutOutcome::Inconclusive
            && finished.candidate.reason == NOT_ROLLED_OUT;
        never.then_some(&finished.candidate)
    }

    /// Whether the analysis of the newest revision ended before its rollout was complete, and that is still waited for.
    pub fn may_complete_late(&self) -> bool {
        let newest = self.newest.filter(|_| self.phase == RolloutPhase::Idle);
        newest.is_some_and(|newest| self.never_rolled_out(newest).is_some())
    }

    /// The rollout is complete after the end of its analysis. From now on the revision serves, and the next one is
    /// compared with it; without an analysis it is not known to be good.
    pub(super) fn rolled_out_late(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        let newest = self.newest.filter(|_| self.may_complete_late());
        let mut finished = self.finished.iter_mut().rev();
        let Some(finished) =
            newest.and_then(|newest| finished.find(|finished| is_about(finished, newest)))
        else {
            return;
        };
        let revision = finished.candidate.revision;
        let text = format!(
            "The rollout was not complete at the end of the analysis; it was {} s later, so the revision serves and is not known to be good",
            now.since(finished.at).as_secs()
        );
        finished.candidate.reason = ROLLED_OUT_LATE.into();
        finished.candidate.complete = Some(now);
        finished.text.clone_from(&text);
        // What was measured before does not tell how it serves.
        self.since = now;
        self.note(now, Some(revision), format!("Revision {revision}: {text}"));
        commands.push(RolloutCommand::Found {
            revision,
            found: ContentVerdict::Unknown,
            evidence: text,
        });
    }

    /// Nothing is analyzed, and nothing that is running changes: no time starts anew.
    fn unchanged(&mut self, newcomer: NewRevision, before: Revision, which: &str, now: Time) {
        let NewRevision {
            revision,
            origin,
            serving,
        } = newcomer;
        self.finish(
            Candidate::new(revision, origin, serving, now),
            RolloutOutcome::Unchanged,
            format!(
                "It has the contents of revision {before}, {which}, and brings no pods of its own, so there is nothing to judge"
            ),
            now,
        );
    }

    /// The case goes on under another number.
    fn renumber(&mut self, (revision, origin): (Revision, RevisionOrigin), now: Time) {
        let Some(candidate) = self.phase.candidate_mut() else {
            return;
        };
        let mut passed = candidate.clone();
        // An order goes on with the case.
        passed.order = None;
        candidate.first = Some(candidate.first());
        candidate.revision = revision;
        candidate.origin = origin;
        let text = format!(
            "Revision {revision} has the same contents and took its place; what is found of one holds for both"
        );
        self.finish(passed, RolloutOutcome::Superseded, text, now);
    }

    /// A revision appeared while the rollback is carried out. One that appeared before gives way to it, and was never
    /// judged.
    pub(super) fn is_overtaken_by(&mut self, other: (Revision, RevisionOrigin), now: Time) {
        let Some(candidate) = self.phase.candidate_mut() else {
            return;
        };
        let Some((revision, origin)) = candidate.overtaken_by.replace(other) else {
            return;
        };
        let passed = Candidate::new(revision, origin, candidate.serving, now);
        let text = format!("Revision {} took its place before it was judged", other.0);
        self.finish(passed, RolloutOutcome::Superseded, text, now);
    }

    /// The verdict holds for the same contents under another number.
    fn look_again_for(
        &mut self,
        other: (Revision, RevisionOrigin),
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let (revision, _) = other;
        self.renumber(other, now);
        self.move_to(RolloutPhase::Preflight, now);
        let text =
            format!("The verdict holds for revision {revision}, which has the same contents");
        self.note(now, Some(revision), text);
        commands.push(RolloutCommand::Preflight(revision));
    }

    /// The rollback came too late for a revision with the same contents: it is begun anew for that one.
    pub(super) fn try_again_for(
        &mut self,
        other: (Revision, RevisionOrigin),
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.phase.candidate_mut() else {
            return;
        };
        candidate.overtaken_by = None;
        candidate.overtaken_by_same = false;
        candidate.begun = None;
        if !candidate.ordered {
            candidate.target = None;
        }
        // Nothing was rolled back, so nothing counts against the limit of the day.
        let came_too_late_for = candidate.revision;
        self.rolled_back
            .retain(|(revision, _)| *revision != came_too_late_for);
        self.look_again_for(other, now, commands);
    }
}

pub(super) fn is_about(finished: &FinishedRollout, revision: Revision) -> bool {
    finished.candidate.revision == revision && finished.outcome != RolloutOutcome::OrderRefused
}
