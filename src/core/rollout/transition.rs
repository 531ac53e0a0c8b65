//! What each event changes. What the analysis says is in `judgement.rs`, a rollback in `rolling_back.rs`, and what time alone
//! changes in `deadlines.rs`.

use super::bake::BakeFailure;
use super::candidate::{Candidate, RevisionOrigin, RolloutOutcome};
use super::{Appearance, Mode, PhaseClock, Rollout, RolloutCommand, RolloutInput, RolloutPhase};
use crate::core::units::{Revision, Time};

/// A revision that appears.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewRevision {
    pub(super) revision: Revision,
    pub(super) origin: RevisionOrigin,
    /// The revision that was serving then.
    pub(super) serving: Option<Revision>,
}

impl Rollout {
    /// Takes an event, and says what is to be done. What happened is in the entries.
    pub fn step(&mut self, event: RolloutInput, now: Time) -> Vec<RolloutCommand> {
        let now = now.max(self.since);
        let mut commands = Vec::new();
        if matches!(self.clock, PhaseClock::Begins) {
            self.clock = PhaseClock::Runs(Some(now));
        }
        self.note_lateness(now);
        match event {
            RolloutInput::Seen {
                revision,
                origin,
                serving,
                appears,
            } => {
                let newcomer = NewRevision {
                    revision,
                    origin,
                    serving,
                };
                self.seen(newcomer, appears, now, &mut commands);
            }
            RolloutInput::RolloutComplete => self.on_complete(now, &mut commands),
            RolloutInput::HelmIsDone => self.on_helm_is_done(now, &mut commands),
            RolloutInput::TroubleBegan => self.on_trouble(now),
            RolloutInput::Regressed {
                revision,
                reason,
                text,
            } => self.on_regressed(revision, reason, &text, now, &mut commands),
            RolloutInput::Healthy(revision) => self.on_healthy(revision, "", now, &mut commands),
            RolloutInput::HealthyDespite { revision, text } => {
                self.on_healthy(revision, &text, now, &mut commands);
            }
            RolloutInput::BakeFailed {
                revision,
                reason,
                text,
                trouble_since,
                rejects,
            } => {
                let alarm = BakeFailure {
                    reason,
                    text,
                    trouble_since,
                    rejects,
                };
                self.on_bake_failed(revision, alarm, now, &mut commands);
            }
            RolloutInput::Inconclusive { revision, reason } => {
                self.on_inconclusive(revision, &reason, now, &mut commands);
            }
            RolloutInput::NotRolledOut { revision, text } => {
                self.on_not_rolled_out(revision, &text, now, &mut commands);
            }
            RolloutInput::Held(held) => self.on_held(held, now),
            RolloutInput::Blind(blind) => self.on_blind(blind, now),
            RolloutInput::Uninstalled => self.on_uninstalled(now, &mut commands),
            RolloutInput::Ordered {
                target,
                reason,
                order,
            } => self.on_ordered(target, reason, order, now, &mut commands),
            RolloutInput::OrderDeclined {
                target,
                reason,
                order,
                why,
            } => self.on_order_declined(target, reason, order, &why, now),
            RolloutInput::Ready { target } => self.on_ready(target, now, &mut commands),
            RolloutInput::NoTarget { reason } => self.on_no_target(reason, now, &mut commands),
            RolloutInput::Refused { reason } => self.on_refused(reason, now, &mut commands),
            RolloutInput::Executed {
                attempt,
                created_revision,
            } => {
                self.on_executed(attempt, created_revision, now, &mut commands);
            }
            RolloutInput::ExecutionFailed { attempt, reason } => {
                self.on_execution_failed(attempt, reason, now, &mut commands);
            }
            RolloutInput::Recovered => {
                self.on_verified(
                    RolloutOutcome::RolledBack,
                    String::new(),
                    now,
                    &mut commands,
                );
            }
            RolloutInput::StillFailing { text } => {
                self.on_verified(RolloutOutcome::StillFailing, text, now, &mut commands);
            }
            RolloutInput::OldSettings { text } => {
                let text = format!("Rolled back, but the same still fails: {text}");
                self.on_verified(RolloutOutcome::Unverified, text, now, &mut commands);
            }
            RolloutInput::Worsened { text } => {
                self.on_verified(RolloutOutcome::Worsened, text, now, &mut commands);
            }
            RolloutInput::Tick => self.on_tick(now, &mut commands),
        }
        commands
    }

    /// Commands that resume the phase after a restart. The caller restores a running analysis itself.
    pub fn resume(&mut self) -> Vec<RolloutCommand> {
        if matches!(self.clock, PhaseClock::Stands) {
            self.clock = PhaseClock::Begins;
        }
        match &self.phase {
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::RollingOut(_)
            | RolloutPhase::Analyzing(_) => Vec::new(),
            // Begun anew: what happened while we were away is not known.
            RolloutPhase::Verifying(candidate) => candidate
                .created_revision
                .map(RolloutCommand::Verify)
                .into_iter()
                .collect(),
            RolloutPhase::Preflight(candidate) => {
                vec![RolloutCommand::Preflight(candidate.revision)]
            }
            RolloutPhase::RollingBack(candidate) => {
                match (candidate.created_revision, candidate.target) {
                    // Carrying it out again finishes what was begun.
                    (None, Some(target)) => vec![RolloutCommand::Execute {
                        bad: candidate.revision,
                        target,
                    }],
                    (Some(_), _) | (None, None) => Vec::new(),
                }
            }
        }
    }

    /// A newest revision was read. One that is known already changes nothing.
    fn seen(
        &mut self,
        newcomer: NewRevision,
        appears: Appearance,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let NewRevision {
            revision, serving, ..
        } = newcomer;
        let before = self.newest;
        if before.is_some_and(|newest| revision <= newest) {
            return;
        }
        let was_absent = std::mem::take(&mut self.is_absent);
        let is_first_sight = before.is_none() && !was_absent;
        if was_absent {
            // Numbers begin anew, and what was said of another revision 2 must not be taken for a verdict on this one.
            self.finished.clear();
        }
        self.newest = Some(revision);
        if self.is_start(newcomer, appears, was_absent, now, commands) {
            return;
        }
        if let (Appearance::Same { known_good }, Some(before)) = (appears, before)
            && self.limits.mode != Mode::Off
        {
            self.same(newcomer, before, known_good, now, commands);
            return;
        }
        // What was never rolled out does not serve, whatever its record says.
        let never_served = before.and_then(|before| self.never_rolled_out(before));
        let serving = match never_served {
            Some(candidate) if serving == before => candidate.serving,
            Some(_) | None => serving,
        };
        let newcomer = NewRevision {
            serving,
            ..newcomer
        };
        self.takes_its_place(newcomer, is_first_sight, now, commands);
    }

    /// A revision that has to be analyzed, in whatever phase it appears.
    fn takes_its_place(
        &mut self,
        newcomer: NewRevision,
        is_first_sight: bool,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let NewRevision {
            revision,
            origin,
            serving,
        } = newcomer;
        match &mut self.phase {
            // What was there before us is not new: it serves, and is the baseline.
            RolloutPhase::NotInstalled if is_first_sight => {
                self.enter(RolloutPhase::Idle, now);
                self.note(
                    now,
                    Some(revision),
                    format!("Revision {revision} serves; its results are the baseline"),
                );
            }
            RolloutPhase::NotInstalled | RolloutPhase::Idle => {
                self.begin(revision, origin, serving, now, commands);
            }
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate) => {
                // The revision that was serving before both is the last one that is not in doubt.
                let serving = candidate.serving;
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let text = format!("Revision {revision} took its place");
                self.end(RolloutOutcome::Superseded, text, now);
                self.begin(revision, origin, serving, now, commands);
            }
            RolloutPhase::Preflight(candidate) => {
                let serving = candidate.serving;
                let text = format!("Revision {revision} took its place before it was rolled back");
                self.end(RolloutOutcome::Superseded, text, now);
                self.begin(revision, origin, serving, now, commands);
            }
            // Ours, or told of after a restart before it is known to be ours.
            RolloutPhase::RollingBack(_) if origin == RevisionOrigin::OurRollback => {}
            RolloutPhase::RollingBack(candidate) => {
                candidate.overtaken_by_same = false;
                let created_revision = candidate.created_revision;
                self.note(
                    now,
                    Some(revision),
                    format!("Revision {revision} appeared while the rollback was carried out"),
                );
                self.is_overtaken_by((revision, origin), now);
                // Where helm is still at work, it ends first, one way or the other.
                if let Some(created_revision) = created_revision {
                    self.overtaken(created_revision, (revision, origin), now, commands);
                }
            }
            RolloutPhase::Verifying(candidate) => {
                let serving = candidate.way_back();
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let text = format!(
                    "Rolled back; revision {revision} took its place before that was verified"
                );
                self.end(RolloutOutcome::Superseded, text, now);
                self.begin(revision, origin, serving, now, commands);
            }
        }
    }

    pub(super) fn begin(
        &mut self,
        revision: Revision,
        origin: RevisionOrigin,
        serving: Option<Revision>,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        if self.limits.mode == Mode::Off {
            self.enter(RolloutPhase::Idle, now);
            self.note(
                now,
                Some(revision),
                format!("Revision {revision} appeared; the mode is off, so it is not judged"),
            );
            return;
        }
        self.enter(
            RolloutPhase::RollingOut(Box::new(Candidate::new(revision, origin, serving, now))),
            now,
        );
        let what = match origin {
            RevisionOrigin::First => "the first one: there is nothing to go back to",
            RevisionOrigin::Upgrade => "an upgrade",
            RevisionOrigin::OurRollback => "a rollback of ours, which is never rolled back",
            RevisionOrigin::OtherRollback => {
                "a rollback by somebody else, which is never rolled back"
            }
        };
        self.note(
            now,
            Some(revision),
            format!("Revision {revision} appeared, {what}; its watch begins"),
        );
        commands.push(RolloutCommand::Watch(revision));
    }

    fn on_complete(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        if self.phase == RolloutPhase::Idle {
            self.start_is_complete();
            self.rolled_out_late(now, commands);
        }
        match &mut self.phase {
            RolloutPhase::RollingOut(candidate) => {
                candidate.complete = Some(now);
                let revision = candidate.revision;
                self.move_to(RolloutPhase::Analyzing, now);
                self.note(now, Some(revision), "The rollout is complete");
            }
            RolloutPhase::RollingBack(candidate) => {
                // Without it, that is of the revision that is being rolled back, or the record is not there yet.
                if let Some(created_revision) = candidate.created_revision {
                    let how = "The rollback's rollout is complete";
                    self.rolled_back_at(created_revision, how, now, commands);
                }
            }
            RolloutPhase::Analyzing(candidate) => {
                if candidate.complete.is_none() {
                    candidate.complete = Some(now);
                    let revision = candidate.revision;
                    self.note(now, Some(revision), "The rollout is complete");
                }
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Preflight(_)
            | RolloutPhase::Verifying(_) => {}
        }
    }

    /// Whether the release is paused or scaled to zero is remembered in every phase.
    fn on_held(&mut self, held: bool, now: Time) {
        if self.held == held {
            return;
        }
        self.held = held;
        let text = if held {
            "The release is paused or scaled to zero: its results are unknown"
        } else {
            "The release runs again"
        };
        self.note(now, self.newest, text);
    }

    fn on_blind(&mut self, blind: bool, now: Time) {
        if self.blind == blind {
            return;
        }
        self.blind = blind;
        match self.phase {
            RolloutPhase::NotInstalled | RolloutPhase::Idle => {}
            RolloutPhase::RollingOut(_)
            | RolloutPhase::Analyzing(_)
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => {
                let text = if blind {
                    "Our own trouble makes results unknown"
                } else {
                    "Our own trouble is over"
                };
                self.note(now, self.newest, text);
            }
        }
    }

    fn on_uninstalled(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        self.newest = None;
        self.is_absent = true;
        self.start = None;
        // Installed again, its numbers begin anew; the rollbacks still count for the day.
        for (revision, _) in &mut self.rolled_back {
            *revision = Revision(0);
        }
        match &self.phase {
            RolloutPhase::NotInstalled => {}
            RolloutPhase::Idle => {
                self.enter(RolloutPhase::NotInstalled, now);
                self.note(now, None, "The release was uninstalled");
            }
            RolloutPhase::RollingOut(_)
            | RolloutPhase::Analyzing(_)
            | RolloutPhase::Verifying(_) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                self.end_uninstalled(now);
            }
            RolloutPhase::Preflight(_) | RolloutPhase::RollingBack(_) => self.end_uninstalled(now),
        }
    }

    fn end_uninstalled(&mut self, now: Time) {
        let text = "The release was uninstalled".into();
        self.end(RolloutOutcome::Uninstalled, text, now);
        self.enter(RolloutPhase::NotInstalled, now);
    }

    pub(super) fn enter(&mut self, phase: RolloutPhase, now: Time) {
        self.phase = phase;
        self.since = now;
    }

    /// The revision at hand goes on in another phase.
    pub(super) fn move_to(&mut self, to: fn(Box<Candidate>) -> RolloutPhase, now: Time) {
        match std::mem::take(&mut self.phase) {
            phase @ (RolloutPhase::NotInstalled | RolloutPhase::Idle) => self.phase = phase,
            RolloutPhase::RollingOut(candidate)
            | RolloutPhase::Analyzing(candidate)
            | RolloutPhase::Preflight(candidate)
            | RolloutPhase::RollingBack(candidate)
            | RolloutPhase::Verifying(candidate) => self.enter(to(candidate), now),
        }
    }

    /// The revision at hand has come to its end.
    pub(super) fn end(&mut self, outcome: RolloutOutcome, text: String, now: Time) {
        match std::mem::take(&mut self.phase) {
            phase @ (RolloutPhase::NotInstalled | RolloutPhase::Idle) => self.phase = phase,
            RolloutPhase::RollingOut(candidate)
            | RolloutPhase::Analyzing(candidate)
            | RolloutPhase::Preflight(candidate)
            | RolloutPhase::RollingBack(candidate)
            | RolloutPhase::Verifying(candidate) => {
                self.enter(RolloutPhase::Idle, now);
                self.finish(*candidate, outcome, text, now);
            }
        }
    }

    /// Writes down how a revision ended, in whatever phase that leaves the release.
    pub(super) fn finish(
        &mut self,
        candidate: Candidate,
        outcome: RolloutOutcome,
        text: String,
        now: Time,
    ) {
        let revision = candidate.revision;
        // That is about what a person wanted, and not about the revision.
        let said = if outcome == RolloutOutcome::OrderRefused {
            text.clone()
        } else {
            let word = outcome.as_str().replace('_', " ");
            format!("Revision {revision}: {word}. {text}")
        };
        self.note(now, Some(revision), said);
        self.remember(candidate, outcome, text, now);
    }
}
