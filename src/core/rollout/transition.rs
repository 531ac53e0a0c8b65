//! All transitions: what each input does in each phase.

use super::bake::BakeFailure;
use super::candidate::{
    Candidate, NOT_ROLLED_OUT, RevisionOrigin, RollbackAttempt, RolloutOutcome, StepName,
};
use super::{
    Appearance, MAX_PAST, Mode, PhaseClock, Rollout, RolloutCommand, RolloutInput, RolloutPhase,
};
use crate::core::revision_ledger::{self, ContentVerdict};
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
            RolloutPhase::Verifying(candidate) => {
                vec![RolloutCommand::Verify(
                    candidate.created_revision.unwrap_or_default(),
                )]
            }
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
        match std::mem::take(&mut self.phase) {
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
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                // The revision that was serving before both is the last one that is not in doubt.
                let serving = candidate.serving;
                self.end(
                    *candidate,
                    RolloutOutcome::Superseded,
                    format!("Revision {revision} took its place"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
            RolloutPhase::Preflight(candidate) => {
                let serving = candidate.serving;
                self.end(
                    *candidate,
                    RolloutOutcome::Superseded,
                    format!("Revision {revision} took its place before it was rolled back"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
            // Ours, or told of after a restart before it is known to be ours.
            RolloutPhase::RollingBack(candidate) if origin == RevisionOrigin::OurRollback => {
                self.phase = RolloutPhase::RollingBack(candidate);
            }
            RolloutPhase::RollingBack(mut candidate) => {
                self.note(
                    now,
                    Some(revision),
                    format!("Revision {revision} appeared while the rollback was carried out"),
                );
                self.passed_over(&candidate, revision, now);
                candidate.overtaken_by = Some((revision, origin));
                candidate.overtaken_by_same = false;
                match candidate.created_revision {
                    // Helm is still at work: it ends first, one way or the other.
                    None => self.phase = RolloutPhase::RollingBack(candidate),
                    Some(created_revision) => {
                        self.overtaken(
                            *candidate,
                            created_revision,
                            (revision, origin),
                            now,
                            commands,
                        );
                    }
                }
            }
            RolloutPhase::Verifying(candidate) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let serving = candidate.way_back();
                self.end(
                    *candidate,
                    RolloutOutcome::Superseded,
                    format!(
                        "Rolled back; revision {revision} took its place before that was verified"
                    ),
                    now,
                );
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
        match std::mem::take(&mut self.phase) {
            RolloutPhase::RollingOut(mut candidate) => {
                candidate.complete = Some(now);
                let revision = candidate.revision;
                self.enter(RolloutPhase::Analyzing(candidate), now);
                self.note(now, Some(revision), "The rollout is complete");
            }
            RolloutPhase::RollingBack(candidate) => match candidate.created_revision {
                // Of the revision that is being rolled back, or before the record of the rollback is there.
                None => self.phase = RolloutPhase::RollingBack(candidate),
                Some(created_revision) => self.rolled_back_at(
                    candidate,
                    created_revision,
                    "The rollback's rollout is complete",
                    now,
                    commands,
                ),
            },
            RolloutPhase::Analyzing(mut candidate) => {
                if candidate.complete.is_none() {
                    candidate.complete = Some(now);
                    self.note(now, Some(candidate.revision), "The rollout is complete");
                }
                self.phase = RolloutPhase::Analyzing(candidate);
            }
            phase @ (RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Preflight(_)
            | RolloutPhase::Verifying(_)) => {
                self.phase = phase;
            }
        }
    }

    /// The cluster does not show the progress of the rollback's rollout.
    fn on_helm_is_done(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        match std::mem::take(&mut self.phase) {
            RolloutPhase::RollingBack(candidate) if candidate.created_revision.is_some() => {
                let created_revision = candidate.created_revision.unwrap_or_default();
                let how =
                    "Helm is done, and how far the rollback's rollout has come cannot be seen";
                self.rolled_back_at(candidate, created_revision, how, now, commands);
            }
            phase => self.phase = phase,
        }
    }

    /// The rollback is carried out and its rollout complete, as far as anybody can see it.
    fn rolled_back_at(
        &mut self,
        mut candidate: Box<Candidate>,
        created_revision: Revision,
        how: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        candidate.rolled_back_at = Some(now);
        self.enter(RolloutPhase::Verifying(candidate), now);
        self.note(
            now,
            Some(created_revision),
            format!("{how}; its probes are asked"),
        );
        commands.push(RolloutCommand::Verify(created_revision));
    }

    /// The rollback is done, and a foreign revision came after it.
    fn overtaken(
        &mut self,
        candidate: Candidate,
        created_revision: Revision,
        (revision, origin): (Revision, RevisionOrigin),
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let serving = candidate.way_back().or(Some(created_revision));
        self.end(
            candidate,
            RolloutOutcome::Superseded,
            format!("Rolled back; revision {revision} took its place before that was verified"),
            now,
        );
        self.begin(revision, origin, serving, now, commands);
    }

    fn on_trouble(&mut self, now: Time) {
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

    fn on_regressed(
        &mut self,
        judged: Revision,
        reason: String,
        text: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(mut candidate) = self.take_judged(judged) else {
            return;
        };
        if self.blind {
            commands.push(RolloutCommand::EndAnalysis { kept: false });
            let text =
                format!("Our own trouble makes results unknown, so this is not acted on: {text}");
            self.end(*candidate, RolloutOutcome::Inconclusive, text, now);
            return;
        }
        candidate.rejected = Some(now);
        candidate.reason = reason;
        text.clone_into(&mut candidate.text);
        let revision = candidate.revision;
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        commands.push(RolloutCommand::Found {
            revision,
            found: ContentVerdict::Bad,
            evidence: text.to_owned(),
        });
        if let Some((outcome, why)) = self.failure(&candidate, now) {
            self.end(*candidate, outcome, format!("{why}: {text}"), now);
            return;
        }
        self.enter(RolloutPhase::Preflight(candidate), now);
        self.note(now, Some(revision), format!("Verdict: rollback. {text}"));
        commands.push(RolloutCommand::Preflight(revision));
    }

    /// How a person rolls back what we may not: mode and limit bind only us.
    fn by_hand(&self, serving: Option<Revision>) -> String {
        let names = self.names.as_ref();
        let (namespace, release) = names
            .map_or(("NAMESPACE", "RELEASE"), |(namespace, release)| {
                (namespace.as_str(), release.as_str())
            });
        let target = serving.map_or_else(String::new, |revision| format!(" {revision}"));
        let by_helm = revision_ledger::by_hand(release, namespace, serving);
        format!(
            "leadsman rollback {release}{target} --namespace {namespace} --reason TEXT, or {by_helm}"
        )
    }

    /// Why a rejected revision is not rolled back, if so.
    pub(super) fn failure(
        &self,
        candidate: &Candidate,
        now: Time,
    ) -> Option<(RolloutOutcome, String)> {
        // Mode, origin and limit bind a verdict, and no person: also not one who joined a verdict's rollback.
        if candidate.is_wanted_by_a_person() {
            return None;
        }
        let not_eligible =
            |why: &str| Some((RolloutOutcome::NotEligible, format!("Bad, but {why}")));
        match candidate.origin {
            RevisionOrigin::First => {
                return not_eligible("the first revision: there is nothing to go back to");
            }
            RevisionOrigin::OurRollback | RevisionOrigin::OtherRollback => {
                return not_eligible("made by a rollback, which is never rolled back");
            }
            RevisionOrigin::Upgrade => {}
        }
        if self.held {
            return not_eligible("the release is paused or scaled to zero");
        }
        if self
            .rolled_back
            .iter()
            .any(|(revision, _)| *revision == candidate.revision)
        {
            return not_eligible("it was rolled back before");
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
            return Some((
                RolloutOutcome::LimitReached,
                format!(
                    "Bad, but {done} rollbacks in 24 h are as many as the limit of {most} allows; by hand: {}",
                    self.by_hand(candidate.serving)
                ),
            ));
        }
        None
    }

    fn on_healthy(
        &mut self,
        judged: Revision,
        despite: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.take_judged(judged) else {
            return;
        };
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
        self.end(*candidate, RolloutOutcome::Passed, text, now);
    }

    fn on_inconclusive(
        &mut self,
        judged: Revision,
        reason: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.take_judged(judged) else {
            return;
        };
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Unknown,
            evidence: reason.to_owned(),
        });
        self.end(
            *candidate,
            RolloutOutcome::Inconclusive,
            format!("Nothing can be said: {reason}"),
            now,
        );
    }

    /// What was never complete is not known to be good, whatever the old pods have answered meanwhile.
    fn on_not_rolled_out(
        &mut self,
        judged: Revision,
        missing: &str,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(mut candidate) = self.take_judged(judged) else {
            return;
        };
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        let text = format!("The rollout is not complete: {missing}");
        commands.push(RolloutCommand::Found {
            revision: judged,
            found: ContentVerdict::Incomplete,
            evidence: text.clone(),
        });
        candidate.reason = NOT_ROLLED_OUT.into();
        self.end(*candidate, RolloutOutcome::Inconclusive, text, now);
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
        match std::mem::take(&mut self.phase) {
            RolloutPhase::NotInstalled => {}
            RolloutPhase::Idle => {
                self.enter(RolloutPhase::NotInstalled, now);
                self.note(now, None, "The release was uninstalled");
            }
            RolloutPhase::RollingOut(candidate)
            | RolloutPhase::Analyzing(candidate)
            | RolloutPhase::Verifying(candidate) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                self.end(
                    *candidate,
                    RolloutOutcome::Uninstalled,
                    "The release was uninstalled".into(),
                    now,
                );
                self.enter(RolloutPhase::NotInstalled, now);
            }
            RolloutPhase::Preflight(candidate) | RolloutPhase::RollingBack(candidate) => {
                self.end(
                    *candidate,
                    RolloutOutcome::Uninstalled,
                    "The release was uninstalled".into(),
                    now,
                );
                self.enter(RolloutPhase::NotInstalled, now);
            }
        }
    }

    fn on_ready(&mut self, target: Revision, now: Time, commands: &mut Vec<RolloutCommand>) {
        let Some(mut candidate) = self.take_preflight() else {
            return;
        };
        let bad = candidate.revision;
        candidate.target = Some(target);
        if let Some((outcome, why)) = self.failure(&candidate, now) {
            // The mode, or whether the release is held, has changed since the verdict.
            self.end(*candidate, outcome, why, now);
            return;
        }
        // A person knows what is what: nobody else rolls back during a start.
        self.start = None;
        candidate.begun = Some(now);
        self.rolled_back.push((bad, now));
        if self.rolled_back.len() > MAX_PAST {
            self.rolled_back.remove(0);
        }
        let slow = candidate.slow_rollout().map_or_else(String::new, |took| {
            format!(
                "; the rollout of revision {bad} took {} s, and the way back may take as long, while the runbook allows {} s",
                took.as_secs(),
                StepName::Complete.limit().as_secs()
            )
        });
        self.enter(RolloutPhase::RollingBack(candidate), now);
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
        let Some(candidate) = self.take_preflight() else {
            return;
        };
        if candidate.ordered {
            self.end_order(*candidate, &reason, now, commands);
        } else {
            self.end(*candidate, RolloutOutcome::Refused, reason, now);
        }
    }

    fn on_executed(
        &mut self,
        attempt: RollbackAttempt,
        created_revision: Revision,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(mut candidate) = self.take_attempt(attempt) else {
            return;
        };
        candidate.created_revision = Some(created_revision);
        commands.extend(Self::found_by_order(&candidate));
        // After a restart it may be seen before it is known to be ours.
        candidate.overtaken_by = candidate
            .overtaken_by
            .filter(|(other, _)| *other > created_revision);
        // The record may be told of here before the watch sees it.
        self.newest = self.newest.max(Some(created_revision));
        self.note(
            now,
            Some(created_revision),
            format!("The rollback made revision {created_revision}; its rollout runs"),
        );
        match candidate.overtaken_by {
            None => {
                self.phase = RolloutPhase::RollingBack(candidate);
                // However long helm took, the pods have their time.
                self.since = now;
            }
            Some(other) => self.overtaken(*candidate, created_revision, other, now, commands),
        }
    }

    fn on_execution_failed(
        &mut self,
        attempt: RollbackAttempt,
        reason: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(candidate) = self.take_attempt(attempt) else {
            return;
        };
        let overtaken_by = candidate.overtaken_by;
        let serving = candidate.serving;
        match overtaken_by {
            None => self.end(*candidate, RolloutOutcome::RollbackFailed, reason, now),
            Some((revision, origin)) if candidate.overtaken_by_same => {
                self.try_again_for(candidate, (revision, origin), now, commands);
            }
            Some((revision, origin)) => {
                self.end(
                    *candidate,
                    RolloutOutcome::Superseded,
                    format!("Revision {revision} took its place: {reason}"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
        }
    }

    fn on_verified(
        &mut self,
        outcome: RolloutOutcome,
        text: String,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) {
        let Some(mut candidate) = self.take_verifying() else {
            return;
        };
        commands.push(RolloutCommand::EndAnalysis { kept: false });
        let target = candidate.target.unwrap_or_default();
        let text = match outcome {
            RolloutOutcome::RolledBack => {
                candidate.verified = Some(now);
                format!("Rolled back to the contents of revision {target}, and well again")
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
        self.end(*candidate, outcome, text, now);
    }

    /// Time has passed: a phase whose time is up ends.
    fn on_tick(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        let Some(candidate) = self.phase.candidate() else {
            self.start_may_end(now);
            return;
        };
        let stands = self.phase.acts() && matches!(self.clock, PhaseClock::Stands);
        if stands || now < candidate.ends(&self.phase, &self.limits, self.counts_since()) {
            return;
        }
        match std::mem::take(&mut self.phase) {
            phase @ (RolloutPhase::NotInstalled | RolloutPhase::Idle) => self.phase = phase,
            RolloutPhase::RollingOut(candidate) => {
                let revision = candidate.revision;
                let cap = self.limits.settle_cap.as_secs();
                self.enter(RolloutPhase::Analyzing(candidate), now);
                self.note(
                    now,
                    Some(revision),
                    format!("The rollout is not complete after {cap} s; the analysis goes on"),
                );
            }
            RolloutPhase::Analyzing(candidate) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                self.end(
                    *candidate,
                    RolloutOutcome::Inconclusive,
                    "The watch ended without a verdict".into(),
                    now,
                );
            }
            RolloutPhase::Preflight(candidate) => {
                let text = "Whether it can be rolled back could not be found out in time";
                if candidate.ordered {
                    self.end_order(*candidate, text, now, commands);
                } else {
                    self.end(*candidate, RolloutOutcome::Refused, text.into(), now);
                }
            }
            RolloutPhase::RollingBack(candidate) => {
                let overtaken_by = candidate.overtaken_by;
                if let Some(other) = overtaken_by.filter(|_| candidate.overtaken_by_same) {
                    self.try_again_for(candidate, other, now, commands);
                    return;
                }
                let serving = candidate.created_revision.or(candidate.serving);
                let text = match candidate.created_revision {
                    None => "The rollback did not end in time",
                    Some(_) => "The rollback's rollout was not complete in time",
                };
                self.end(*candidate, RolloutOutcome::RollbackFailed, text.into(), now);
                if let Some((revision, origin)) = overtaken_by {
                    self.begin(revision, origin, serving, now, commands);
                }
            }
            RolloutPhase::Verifying(candidate) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let text =
                    "Rolled back, but whether the release is well could not be found out".into();
                self.end(*candidate, RolloutOutcome::Unverified, text, now);
            }
        }
    }

    fn note_lateness(&mut self, now: Time) {
        let (RolloutPhase::Preflight(candidate)
        | RolloutPhase::RollingBack(candidate)
        | RolloutPhase::Verifying(candidate)) = &mut self.phase
        else {
            return;
        };
        let mut late = Vec::new();
        for timing in candidate.timings() {
            let exceeded = timing
                .from
                .is_some_and(|from| timing.to.unwrap_or(now).since(from) > timing.step.limit());
            if exceeded && !candidate.late.contains(&timing.step) {
                candidate.late.push(timing.step);
                late.push(timing.step);
            }
        }
        let revision = candidate.revision;
        for step in late {
            let limit = step.limit().as_secs();
            self.note(
                now,
                Some(revision),
                format!(
                    "Late: {} takes longer than the runbook's {limit} s",
                    step.as_str()
                ),
            );
        }
    }

    /// Takes the candidate out of a phase; the caller enters the next one. `None` leaves the phase as it is.
    fn take_candidate(
        &mut self,
        is_it: impl FnOnce(&RolloutPhase) -> bool,
    ) -> Option<Box<Candidate>> {
        if !is_it(&self.phase) {
            return None;
        }
        match std::mem::take(&mut self.phase) {
            RolloutPhase::RollingOut(candidate)
            | RolloutPhase::Analyzing(candidate)
            | RolloutPhase::Preflight(candidate)
            | RolloutPhase::RollingBack(candidate)
            | RolloutPhase::Verifying(candidate) => Some(candidate),
            phase @ (RolloutPhase::NotInstalled | RolloutPhase::Idle) => {
                self.phase = phase;
                None
            }
        }
    }

    /// Takes the candidate, if it is this revision under analysis.
    fn take_judged(&mut self, judged: Revision) -> Option<Box<Candidate>> {
        self.take_candidate(|phase| match phase {
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate) => {
                candidate.revision == judged
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => false,
        })
    }

    fn take_preflight(&mut self) -> Option<Box<Candidate>> {
        self.take_candidate(|phase| matches!(phase, RolloutPhase::Preflight(_)))
    }

    /// Takes the candidate of this rollback attempt, while it runs.
    fn take_attempt(&mut self, attempt: RollbackAttempt) -> Option<Box<Candidate>> {
        self.take_candidate(
            |phase| matches!(phase, RolloutPhase::RollingBack(candidate) if candidate.attempt() == Some(attempt)),
        )
    }

    fn take_verifying(&mut self) -> Option<Box<Candidate>> {
        self.take_candidate(|phase| matches!(phase, RolloutPhase::Verifying(_)))
    }

    pub(super) fn enter(&mut self, phase: RolloutPhase, now: Time) {
        self.phase = phase;
        self.since = now;
    }

    pub(super) fn end(
        &mut self,
        candidate: Candidate,
        outcome: RolloutOutcome,
        text: String,
        now: Time,
    ) {
        self.enter(RolloutPhase::Idle, now);
        self.finish(candidate, outcome, text, now);
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
