//! A bake that ended with an alarm, for a revision that passed its analysis.
//!
//! A notice changes only what is known of the revision. If the bake may reject, the same follows as after a verdict:
//! mode, origin, limit, preflight, rollback and verification.

use super::candidate::{Candidate, FinishedRollout, RolloutOutcome};
use super::same_contents::is_about;
use super::{Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

/// The alarm of a bake.
#[derive(Debug)]
pub(super) struct BakeFailure {
    pub(super) reason: String,
    /// The numbers in words.
    pub(super) text: String,
    /// When the trouble began, if known.
    pub(super) trouble_since: Option<Time>,
    /// Whether the user lets a bake reject.
    pub(super) rejects: bool,
}

impl Rollout {
    /// How the bake ended is of no interest once another revision is there, or something is being done about this one.
    pub(super) fn on_bake_failed(
        &mut self,
        revision: Revision,
        failure: BakeFailure,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        if self.phase != RolloutPhase::Idle || self.newest != Some(revision) {
            return;
        }
        let is_forgotten = self.has_forgotten_its_end();
        let passed = self.passed(revision);
        if passed.is_none() && !is_forgotten {
            return;
        }
        let BakeFailure {
            reason,
            text,
            trouble_since,
            rejects,
        } = failure;
        let found = |found| RolloutCommand::Found {
            revision,
            found,
            evidence: text.clone(),
        };
        let Some(passed) = passed.filter(|_| rejects && !self.blind) else {
            commands.push(found(ContentVerdict::BakeFailed));
            self.bake_is_noted(revision, &text, now);
            return;
        };
        commands.push(found(ContentVerdict::Bad));
        let candidate = Candidate {
            revision,
            first: Some(passed.first()).filter(|first| *first != revision),
            trouble_since,
            rejected: Some(now),
            reason,
            text: text.clone(),
            order: None,
            ..passed
        };
        if let Some((outcome, why)) = self.failure(&candidate, now) {
            self.enter(RolloutPhase::Idle, now);
            self.finish(candidate, outcome, format!("{why}: {text}"), now);
            return;
        }
        self.enter(RolloutPhase::Preflight(Box::new(candidate)), now);
        self.note(
            now,
            Some(revision),
            format!("Verdict of the bake: rollback. {text}"),
        );
        commands.push(RolloutCommand::Preflight(revision));
    }

    /// Whether the end of its analysis is forgotten, because too many rollouts came since. Then its bake is only
    /// reported: what served before it is no longer known.
    pub fn has_forgotten_its_end(&self) -> bool {
        self.last_end().is_none()
    }

    /// The last end of the newest revision, or of an earlier one with the same contents, that says something of it.
    fn last_end(&self) -> Option<&FinishedRollout> {
        let mut finished = self.finished.iter().rev();
        finished.find(|finished| {
            !matches!(
                finished.outcome,
                RolloutOutcome::Unchanged
                    | RolloutOutcome::OrderRefused
                    | RolloutOutcome::Superseded
            )
        })
    }

    /// The finished rollout of the newest revision, or of an earlier one with the same contents, if it passed.
    fn passed(&self, revision: Revision) -> Option<Candidate> {
        let passed = self.last_end()?;
        let is_it =
            passed.outcome == RolloutOutcome::Passed && passed.candidate.revision <= revision;
        is_it.then(|| passed.candidate.clone())
    }

    /// Nothing is done about it: what is shown of the revision says so.
    fn bake_is_noted(&mut self, revision: Revision, text: &str, now: Time) {
        let said = format!(
            "It passed its analysis, and its bake failed, so it is not known to be good: {text}"
        );
        let mut finished = self.finished.iter_mut().rev();
        if let Some(finished) = finished.find(|finished| is_about(finished, revision)) {
            finished.text.clone_from(&said);
        }
        self.note(now, Some(revision), format!("Revision {revision}: {said}"));
    }
}
