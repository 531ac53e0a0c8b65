//! What the analysis says of a revision, and whether it may be acted on.

use super::candidate::{Candidate, NOT_ROLLED_OUT, RevisionOrigin, RolloutOutcome};
use super::{Mode, Rollout, RolloutCommand, RolloutPhase};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::units::{Revision, Time};

impl Rollout {
    pub(super) fn on_trouble(&mut self, now: Time) {
        match &mut self.phase {
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate) => {
                candidate.trouble_since = Some(now);
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => {}
        }
    }

    pub(super) fn on_regressed(
        &mut self,
        judged: Revision,
        reason: String,
        text: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let is_blind = self.blind;
        let Some(candidate) = self.judged(judged) else {
            return;
        };
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        if is_blind {
            let text =
                format!("Our own trouble makes results unknown, so this is not acted on: {text}");
            self.end(RolloutOutcome::Inconclusive, text, now);
            return;
        }
        candidate.rejected = Some(now);
        candidate.reason = reason;
        text.clone_into(&mut candidate.text);
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Bad,
            evidence: text.to_owned(),
        });
        if let Some((outcome, why)) = self.own_failure(now) {
            self.end(outcome, format!("{why}: {text}"), now);
            return;
        }
        self.move_to(RolloutPhase::Preflight, now);
        self.note(now, Some(judged), format!("Verdict: rollback. {text}"));
        commands.push(RolloutCommand::Preflight(judged));
    }

    /// Why the revision at hand is not rolled back although it is bad, if so.
    pub(super) fn own_failure(&self, now: Time) -> Option<(RolloutOutcome, String)> {
        let candidate = self.phase.candidate()?;
        self.failure(candidate, now)
    }

    /// Why a revision that is bad is not rolled back, if so.
    pub(super) fn failure(
        &self,
        candidate: &Candidate,
        now: Time,
    ) -> Option<(RolloutOutcome, String)> {
        // Mode, origin and limit bind a verdict, and no person: also not one who joined a verdict's rollback.
        if candidate.is_wanted_by_a_person() {
            return None;
        }
        let left_alone = |why: &str| Some((RolloutOutcome::NotEligible, format!("Bad, but {why}")));
        match candidate.origin {
            RevisionOrigin::First => {
                return left_alone("the first revision: there is nothing to go back to");
            }
            RevisionOrigin::OurRollback | RevisionOrigin::OtherRollback => {
                return left_alone("made by a rollback, which is never rolled back");
            }
            RevisionOrigin::Upgrade => {}
        }
        if self.held {
            return left_alone("the release is paused or scaled to zero");
        }
        if self
            .rolled_back
            .iter()
            .any(|(revision, _)| *revision == candidate.revision)
        {
            return left_alone("it was rolled back before");
        }
        match self.limits.mode {
            Mode::Observe => {
                return Some((
                    RolloutOutcome::WouldRollBack,
                    "Would have been rolled back in the mode enforce".into(),
                ));
            }
            Mode::Off => return Some((RolloutOutcome::WouldRollBack, "The mode is off".into())),
            Mode::Enforce => {}
        }
        let (done, most) = (self.rollbacks_today(now), self.limits.max_per_day);
        if done >= most as usize {
            // Mode and limit bind only us.
            let by_hand = self.by_hand.words(candidate.serving);
            let by_hand = by_hand.map_or_else(String::new, |words| format!("; by hand: {words}"));
            return Some((
                RolloutOutcome::LimitReached,
                format!(
                    "Bad, but {done} rollbacks in 24 h are as many as the limit of {most} allows{by_hand}"
                ),
            ));
        }
        None
    }

    pub(super) fn on_healthy(
        &mut self,
        judged: Revision,
        despite: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        if self.judged(judged).is_none() {
            return;
        }
        commands.push(RolloutCommand::EndAnalysis { kept: true });
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Passed,
            evidence: "a whole watch without anything against it".into(),
        });
        let mut text = "The watch is over and nothing speaks against it".to_owned();
        if !despite.is_empty() {
            text = format!("{text}; {despite}");
        }
        self.end(RolloutOutcome::Passed, text, now);
    }

    pub(super) fn on_inconclusive(
        &mut self,
        judged: Revision,
        reason: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        if self.judged(judged).is_none() {
            return;
        }
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Unknown,
            evidence: reason.to_owned(),
        });
        self.end(
            RolloutOutcome::Inconclusive,
            format!("Nothing can be said: {reason}"),
            now,
        );
    }

    /// What was never complete is not known to be good, whatever the old pods have answered meanwhile.
    pub(super) fn on_not_rolled_out(
        &mut self,
        judged: Revision,
        missing: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.judged(judged) else {
            return;
        };
        candidate.reason = NOT_ROLLED_OUT.into();
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        let text = format!("The rollout is not complete: {missing}");
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Incomplete,
            evidence: text.clone(),
        });
        self.end(RolloutOutcome::Inconclusive, text, now);
    }

    /// The revision under judgement, if it is this one.
    fn judged(&mut self, judged: Revision) -> Option<&mut Candidate> {
        match &mut self.phase {
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate) => {
                (candidate.revision == judged).then_some(&mut **candidate)
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => None,
        }
    }
}
