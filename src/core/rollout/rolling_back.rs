//! A rollback from its start to its verification.

use super::candidate::{Candidate, RevisionOrigin, RollbackAttempt, RolloutOutcome, StepName};
use super::{MAX_PAST, Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

impl Rollout {
    pub(super) fn on_ready(
        &mut self,
        target: Revision,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let RolloutPhase::Preflight(candidate) = &mut self.phase else {
            return;
        };
        let bad = candidate.revision;
        let slow = candidate.slow_rollout();
        candidate.target = Some(target);
        if let Some((outcome, why)) = self.own_failure(now) {
            // The mode, or whether the release is held, has changed since the verdict.
            self.end(outcome, why, now);
            return;
        }
        // A person knows what is what: nobody else rolls back during a start.
        self.start = None;
        if let Some(candidate) = self.phase.candidate_mut() {
            candidate.begun = Some(now);
        }
        self.rolled_back.push((bad, now));
        if self.rolled_back.len() > MAX_PAST {
            self.rolled_back.remove(0);
        }
        let slow = slow.map_or_else(String::new, |took| {
            format!(
                "; the rollout of revision {bad} took {} s, and the way back may take as long, while the runbook allows {} s",
                took.as_secs(),
                StepName::Complete.limit().as_secs()
            )
        });
        self.move_to(RolloutPhase::RollingBack, now);
        self.note(
            now,
            Some(bad),
            format!("Rolling back to revision {target}{slow}"),
        );
        commands.push(RolloutCommand::Execute { bad, target });
    }

    pub(super) fn on_refused(
        &mut self,
        reason: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let RolloutPhase::Preflight(candidate) = &self.phase else {
            return;
        };
        if candidate.ordered {
            self.end_order(&reason, now, commands);
        } else {
            self.end(RolloutOutcome::Refused, reason, now);
        }
    }

    pub(super) fn on_executed(
        &mut self,
        attempt: RollbackAttempt,
        created_revision: Revision,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.attempted(attempt) else {
            return;
        };
        candidate.created_revision = Some(created_revision);
        // After a restart it may be seen before it is known to be ours.
        candidate.overtaken_by = candidate
            .overtaken_by
            .filter(|(other, _)| *other > created_revision);
        let overtaken_by = candidate.overtaken_by;
        commands.extend(Self::found_by_order(candidate));
        // The record may be told of here before the watch sees it.
        self.newest = self.newest.max(Some(created_revision));
        self.note(
            now,
            Some(created_revision),
            format!("The rollback made revision {created_revision}; its rollout runs"),
        );
        match overtaken_by {
            // However long helm took, the pods have their time.
            None => self.since = now,
            Some(other) => self.overtaken(created_revision, other, now, commands),
        }
    }

    pub(super) fn on_execution_failed(
        &mut self,
        attempt: RollbackAttempt,
        reason: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.attempted(attempt) else {
            return;
        };
        let serving = candidate.serving;
        match candidate.overtaken_by {
            None => self.end(RolloutOutcome::RollbackFailed, reason, now),
            Some((revision, origin)) if candidate.overtaken_by_same => {
                self.try_again_for((revision, origin), now, commands);
            }
            Some((revision, origin)) => {
                self.end(
                    RolloutOutcome::Superseded,
                    format!("Revision {revision} took its place: {reason}"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
        }
    }

    /// Nobody can see how far the rollback's rollout has come.
    pub(super) fn on_helm_is_done(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        let RolloutPhase::RollingBack(candidate) = &self.phase else {
            return;
        };
        if let Some(created_revision) = candidate.created_revision {
            let how = "Helm is done, and how far the rollback's rollout has come cannot be seen";
            self.rolled_back_at(created_revision, how, now, commands);
        }
    }

    /// The rollback is carried out and its rollout complete, as far as anybody can see it.
    pub(super) fn rolled_back_at(
        &mut self,
        created_revision: Revision,
        how: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        if let Some(candidate) = self.phase.candidate_mut() {
            candidate.rolled_back_at = Some(now);
        }
        self.move_to(RolloutPhase::Verifying, now);
        self.note(
            now,
            Some(created_revision),
            format!("{how}; its probes are asked"),
        );
        commands.push(RolloutCommand::Verify(created_revision));
    }

    /// The rollback is carried out, and a revision of somebody else came after it.
    pub(super) fn overtaken(
        &mut self,
        created_revision: Revision,
        (revision, origin): (Revision, RevisionOrigin),
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let way_back = self.phase.candidate().and_then(Candidate::way_back);
        let serving = way_back.or(Some(created_revision));
        self.end(
            RolloutOutcome::Superseded,
            format!("Rolled back; revision {revision} took its place before that was verified"),
            now,
        );
        self.begin(revision, origin, serving, now, commands);
    }

    pub(super) fn on_verified(
        &mut self,
        outcome: RolloutOutcome,
        text: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let RolloutPhase::Verifying(candidate) = &mut self.phase else {
            return;
        };
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        let text = match outcome {
            RolloutOutcome::RolledBack => {
                candidate.verified = Some(now);
                match candidate.target {
                    Some(target) => {
                        format!("Rolled back to the contents of revision {target}, and well again")
                    }
                    None => "Rolled back, and well again".into(),
                }
            }
            RolloutOutcome::StillFailing => {
                // It was not the release, so its contents are not bad.
                commands.push(RolloutCommand::Found {
                    revision: candidate.revision,
                    found: ContentVerdict::Unknown,
                    evidence: "the same failed after it was rolled back".into(),
                });
                format!("Rolled back, but the same still fails, so it was not the release: {text}")
            }
            RolloutOutcome::Worsened => format!("Rolled back, and more fails than before: {text}"),
            RolloutOutcome::Passed
            | RolloutOutcome::Unchanged
            | RolloutOutcome::Inconclusive
            | RolloutOutcome::Superseded
            | RolloutOutcome::Uninstalled
            | RolloutOutcome::WouldRollBack
            | RolloutOutcome::NotEligible
            | RolloutOutcome::LimitReached
            | RolloutOutcome::Refused
            | RolloutOutcome::OrderRefused
            | RolloutOutcome::RollbackFailed
            | RolloutOutcome::Unverified => text,
        };
        self.end(outcome, text, now);
    }

    /// The revision that this attempt rolls back, while it is carried out.
    fn attempted(&mut self, attempt: RollbackAttempt) -> Option<&mut Candidate> {
        let RolloutPhase::RollingBack(candidate) = &mut self.phase else {
            return None;
        };
        (candidate.attempt() == Some(attempt)).then_some(&mut **candidate)
    }
}
