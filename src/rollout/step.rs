//! Every pair of phase and event.

use super::bake::BakeFailure;
use super::case::{Attempt, Case, Ending, NOT_ROLLED_OUT, Origin, StepName};
use super::{Appearance, Clock, Command, Event, MAX_PAST, Mode, Phase, Rollout};
use crate::ledger::{self, Found};
use crate::units::{Revision, Time};

/// A revision that appears.
#[derive(Debug, Clone, Copy)]
pub(super) struct Newcomer {
    pub(super) revision: Revision,
    pub(super) origin: Origin,
    /// The revision that was serving then.
    pub(super) serving: Option<Revision>,
}

impl Rollout {
    /// Takes an event, and says what is to be done. What happened is in the entries.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Command> {
        let now = now.max(self.since);
        let mut commands = Vec::new();
        if matches!(self.clock, Clock::Begins) {
            self.clock = Clock::Runs(Some(now));
        }
        self.note_lateness(now);
        match event {
            Event::Seen {
                revision,
                origin,
                serving,
                appears,
            } => {
                let newcomer = Newcomer {
                    revision,
                    origin,
                    serving,
                };
                self.seen(newcomer, appears, now, &mut commands);
            }
            Event::Settled => self.on_settled(now, &mut commands),
            Event::HelmIsDone => self.on_helm_is_done(now, &mut commands),
            Event::TroubleBegan => self.on_trouble(now),
            Event::Regressed {
                revision,
                reason,
                text,
            } => self.on_regressed(revision, reason, &text, now, &mut commands),
            Event::Healthy(revision) => self.on_healthy(revision, "", now, &mut commands),
            Event::HealthyDespite { revision, text } => {
                self.on_healthy(revision, &text, now, &mut commands);
            }
            Event::BakeFailed {
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
            Event::Inconclusive { revision, reason } => {
                self.on_inconclusive(revision, &reason, now, &mut commands);
            }
            Event::NotRolledOut { revision, text } => {
                self.on_not_rolled_out(revision, &text, now, &mut commands);
            }
            Event::Held(held) => self.on_held(held, now),
            Event::Blind(blind) => self.on_blind(blind, now),
            Event::Uninstalled => self.on_uninstalled(now, &mut commands),
            Event::Ordered {
                target,
                reason,
                order,
            } => self.on_ordered(target, reason, order, now, &mut commands),
            Event::OrderDeclined {
                target,
                reason,
                order,
                why,
            } => self.on_order_declined(target, reason, order, &why, now),
            Event::Ready { target } => self.on_ready(target, now, &mut commands),
            Event::NoTarget { reason } => self.on_no_target(reason, now, &mut commands),
            Event::Refused { reason } => self.on_refused(reason, now, &mut commands),
            Event::Executed { attempt, made } => {
                self.on_executed(attempt, made, now, &mut commands);
            }
            Event::ExecutionFailed { attempt, reason } => {
                self.on_execution_failed(attempt, reason, now, &mut commands);
            }
            Event::Recovered => {
                self.on_verified(Ending::Recovered, String::new(), now, &mut commands);
            }
            Event::SameFailure { text } => {
                self.on_verified(Ending::SameFailure, text, now, &mut commands);
            }
            Event::OldSettings { text } => {
                let text = format!("Turned back, but the same still fails: {text}");
                self.on_verified(Ending::Unverified, text, now, &mut commands);
            }
            Event::Worse { text } => self.on_verified(Ending::Worse, text, now, &mut commands),
            Event::Tick => self.on_tick(now, &mut commands),
        }
        commands
    }

    /// What is to be done after a restart, so that the phase goes on where it was. A watch is restored by whoever
    /// kept it.
    pub fn resume(&mut self) -> Vec<Command> {
        if matches!(self.clock, Clock::Stands) {
            self.clock = Clock::Begins;
        }
        match &self.phase {
            Phase::Absent | Phase::Steady | Phase::Settling(_) | Phase::Watching(_) => Vec::new(),
            // Begun anew: what happened while we were away is not known.
            Phase::Verifying(case) => vec![Command::Verify(case.made.unwrap_or_default())],
            Phase::Preflight(case) => vec![Command::Preflight(case.revision)],
            Phase::TurningBack(case) => match (case.made, case.target) {
                // Carrying it out again finishes what was begun.
                (None, Some(target)) => vec![Command::Execute {
                    bad: case.revision,
                    target,
                }],
                (Some(_), _) | (None, None) => Vec::new(),
            },
        }
    }

    /// A newest revision was read. Seen again, it is no news.
    fn seen(
        &mut self,
        newcomer: Newcomer,
        appears: Appearance,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Newcomer {
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
            self.past.clear();
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
            Some(case) if serving == before => case.serving,
            Some(_) | None => serving,
        };
        let newcomer = Newcomer {
            serving,
            ..newcomer
        };
        self.takes_its_place(newcomer, is_first_sight, now, commands);
    }

    /// A revision that is to be judged, in whatever phase it appears.
    fn takes_its_place(
        &mut self,
        newcomer: Newcomer,
        is_first_sight: bool,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Newcomer {
            revision,
            origin,
            serving,
        } = newcomer;
        match std::mem::take(&mut self.phase) {
            // What was there before us is not new: it serves, and is the baseline.
            Phase::Absent if is_first_sight => {
                self.enter(Phase::Steady, now);
                self.note(
                    now,
                    Some(revision),
                    format!("Revision {revision} serves; its soundings are the baseline"),
                );
            }
            Phase::Absent | Phase::Steady => self.begin(revision, origin, serving, now, commands),
            Phase::Settling(case) | Phase::Watching(case) => {
                commands.push(Command::EndWatch { kept: false });
                // The revision that was serving before both is the last one that is not in doubt.
                let serving = case.serving;
                self.end(
                    *case,
                    Ending::Superseded,
                    format!("Revision {revision} took its place"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
            Phase::Preflight(case) => {
                let serving = case.serving;
                self.end(
                    *case,
                    Ending::Superseded,
                    format!("Revision {revision} took its place before it was turned back"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
            // Ours, or told of after a restart before it is known to be ours.
            Phase::TurningBack(case) if origin == Origin::OurRollback => {
                self.phase = Phase::TurningBack(case);
            }
            Phase::TurningBack(mut case) => {
                self.note(
                    now,
                    Some(revision),
                    format!("Revision {revision} appeared while the rollback was carried out"),
                );
                self.passed_over(&case, revision, now);
                case.overtaken_by = Some((revision, origin));
                case.overtaken_by_same = false;
                match case.made {
                    // Helm is still at work: it ends first, one way or the other.
                    None => self.phase = Phase::TurningBack(case),
                    Some(made) => self.overtaken(*case, made, (revision, origin), now, commands),
                }
            }
            Phase::Verifying(case) => {
                commands.push(Command::EndWatch { kept: false });
                let serving = case.way_back();
                self.end(
                    *case,
                    Ending::Superseded,
                    format!(
                        "Turned back; revision {revision} took its place before that was verified"
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
        origin: Origin,
        serving: Option<Revision>,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        if self.limits.mode == Mode::Off {
            self.enter(Phase::Steady, now);
            self.note(
                now,
                Some(revision),
                format!("Revision {revision} appeared; the mode is off, so it is not judged"),
            );
            return;
        }
        self.enter(
            Phase::Settling(Box::new(Case::new(revision, origin, serving, now))),
            now,
        );
        let what = match origin {
            Origin::First => "the first one: there is nothing to go back to",
            Origin::Upgrade => "an upgrade",
            Origin::OurRollback => "a rollback of ours, which is never turned back",
            Origin::OtherRollback => "a rollback by somebody else, which is never turned back",
        };
        self.note(
            now,
            Some(revision),
            format!("Revision {revision} appeared, {what}; its watch begins"),
        );
        commands.push(Command::Watch(revision));
    }

    fn on_settled(&mut self, now: Time, commands: &mut Vec<Command>) {
        if self.phase == Phase::Steady {
            self.start_is_complete();
            self.rolled_out_late(now, commands);
        }
        match std::mem::take(&mut self.phase) {
            Phase::Settling(mut case) => {
                case.settled = Some(now);
                let revision = case.revision;
                self.enter(Phase::Watching(case), now);
                self.note(now, Some(revision), "The rollout is complete");
            }
            Phase::TurningBack(case) => match case.made {
                // Of the revision that is being turned back, or before the record of the rollback is there.
                None => self.phase = Phase::TurningBack(case),
                Some(made) => self.turned(
                    case,
                    made,
                    "The rollback's rollout is complete",
                    now,
                    commands,
                ),
            },
            Phase::Watching(mut case) => {
                if case.settled.is_none() {
                    case.settled = Some(now);
                    self.note(now, Some(case.revision), "The rollout is complete");
                }
                self.phase = Phase::Watching(case);
            }
            phase @ (Phase::Absent | Phase::Steady | Phase::Preflight(_) | Phase::Verifying(_)) => {
                self.phase = phase;
            }
        }
    }

    /// Nobody can see how far the rollback's rollout has come.
    fn on_helm_is_done(&mut self, now: Time, commands: &mut Vec<Command>) {
        match std::mem::take(&mut self.phase) {
            Phase::TurningBack(case) if case.made.is_some() => {
                let made = case.made.unwrap_or_default();
                let how =
                    "Helm is done, and how far the rollback's rollout has come cannot be seen";
                self.turned(case, made, how, now, commands);
            }
            phase => self.phase = phase,
        }
    }

    /// The rollback is carried out and its rollout complete, as far as anybody can see it.
    fn turned(
        &mut self,
        mut case: Box<Case>,
        made: Revision,
        how: &str,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        case.turned = Some(now);
        self.enter(Phase::Verifying(case), now);
        self.note(now, Some(made), format!("{how}; its probes are asked"));
        commands.push(Command::Verify(made));
    }

    /// The rollback is carried out, and a revision of somebody else came after it.
    fn overtaken(
        &mut self,
        case: Case,
        made: Revision,
        (revision, origin): (Revision, Origin),
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let serving = case.way_back().or(Some(made));
        self.end(
            case,
            Ending::Superseded,
            format!("Turned back; revision {revision} took its place before that was verified"),
            now,
        );
        self.begin(revision, origin, serving, now, commands);
    }

    fn on_trouble(&mut self, now: Time) {
        match &mut self.phase {
            Phase::Settling(case) | Phase::Watching(case) => {
                case.trouble_since = Some(now);
            }
            Phase::Absent
            | Phase::Steady
            | Phase::Preflight(_)
            | Phase::TurningBack(_)
            | Phase::Verifying(_) => {}
        }
    }

    fn on_regressed(
        &mut self,
        judged: Revision,
        reason: String,
        text: &str,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Some(mut case) = self.take_judged(judged) else {
            return;
        };
        if self.blind {
            commands.push(Command::EndWatch { kept: false });
            let text =
                format!("Our own trouble makes soundings void, so this is not acted on: {text}");
            self.end(*case, Ending::Inconclusive, text, now);
            return;
        }
        case.convicted = Some(now);
        case.reason = reason;
        text.clone_into(&mut case.text);
        let revision = case.revision;
        commands.push(Command::EndWatch { kept: false });
        commands.push(Command::Found {
            revision,
            found: Found::Bad,
            evidence: text.to_owned(),
        });
        if let Some((ending, why)) = self.obstacle(&case, now) {
            self.end(*case, ending, format!("{why}: {text}"), now);
            return;
        }
        self.enter(Phase::Preflight(case), now);
        self.note(now, Some(revision), format!("Verdict: rollback. {text}"));
        commands.push(Command::Preflight(revision));
    }

    /// How a person turns back what we may not: mode and limit bind only us.
    fn by_hand(&self, serving: Option<Revision>) -> String {
        let names = self.names.as_ref();
        let (namespace, release) = names
            .map_or(("NAMESPACE", "RELEASE"), |(namespace, release)| {
                (namespace.as_str(), release.as_str())
            });
        let target = serving.map_or_else(String::new, |revision| format!(" {revision}"));
        let by_helm = ledger::by_hand(release, namespace, serving);
        format!(
            "leadsman rollback {release}{target} --namespace {namespace} --reason TEXT, or {by_helm}"
        )
    }

    /// Why a revision that is bad is not turned back, if so.
    pub(super) fn obstacle(&self, case: &Case, now: Time) -> Option<(Ending, String)> {
        // Mode, origin and limit bind a verdict, and no person: also not one who joined a verdict's rollback.
        if case.is_wanted_by_a_person() {
            return None;
        }
        let left_alone = |why: &str| Some((Ending::LeftAlone, format!("Bad, but {why}")));
        match case.origin {
            Origin::First => {
                return left_alone("the first revision: there is nothing to go back to");
            }
            Origin::OurRollback | Origin::OtherRollback => {
                return left_alone("made by a rollback, which is never turned back");
            }
            Origin::Upgrade => {}
        }
        if self.held {
            return left_alone("the release is paused or scaled to zero");
        }
        if self
            .turned_back
            .iter()
            .any(|(revision, _)| *revision == case.revision)
        {
            return left_alone("it was turned back before");
        }
        match self.limits.mode {
            Mode::Observe => {
                return Some((
                    Ending::WouldRollBack,
                    "Would have been turned back in the mode enforce".into(),
                ));
            }
            Mode::Off => return Some((Ending::WouldRollBack, "The mode is off".into())),
            Mode::Enforce => {}
        }
        let (done, most) = (self.rollbacks_today(now), self.limits.max_per_day);
        if done >= most as usize {
            return Some((
                Ending::LimitReached,
                format!(
                    "Bad, but {done} rollbacks in 24 h are as many as the limit of {most} allows; by hand: {}",
                    self.by_hand(case.serving)
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
        commands: &mut Vec<Command>,
    ) {
        let Some(case) = self.take_judged(judged) else {
            return;
        };
        commands.push(Command::EndWatch { kept: true });
        commands.push(Command::Found {
            revision: judged,
            found: Found::Passed,
            evidence: "a whole watch without anything against it".into(),
        });
        let mut text = "The watch is over and nothing speaks against it".to_owned();
        if !despite.is_empty() {
            text = format!("{text}; {despite}");
        }
        self.end(*case, Ending::Kept, text, now);
    }

    fn on_inconclusive(
        &mut self,
        judged: Revision,
        reason: &str,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Some(case) = self.take_judged(judged) else {
            return;
        };
        commands.push(Command::EndWatch { kept: false });
        commands.push(Command::Found {
            revision: judged,
            found: Found::Unknown,
            evidence: reason.to_owned(),
        });
        self.end(
            *case,
            Ending::Inconclusive,
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
        commands: &mut Vec<Command>,
    ) {
        let Some(mut case) = self.take_judged(judged) else {
            return;
        };
        commands.push(Command::EndWatch { kept: false });
        let text = format!("The rollout is not complete: {missing}");
        commands.push(Command::Found {
            revision: judged,
            found: Found::Incomplete,
            evidence: text.clone(),
        });
        case.reason = NOT_ROLLED_OUT.into();
        self.end(*case, Ending::Inconclusive, text, now);
    }

    /// Whether the release is paused or scaled to zero is remembered in every phase.
    fn on_held(&mut self, held: bool, now: Time) {
        if self.held == held {
            return;
        }
        self.held = held;
        let text = if held {
            "The release is paused or scaled to zero: its soundings are void"
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
            Phase::Absent | Phase::Steady => {}
            Phase::Settling(_)
            | Phase::Watching(_)
            | Phase::Preflight(_)
            | Phase::TurningBack(_)
            | Phase::Verifying(_) => {
                let text = if blind {
                    "Our own trouble makes soundings void"
                } else {
                    "Our own trouble is over"
                };
                self.note(now, self.newest, text);
            }
        }
    }

    fn on_uninstalled(&mut self, now: Time, commands: &mut Vec<Command>) {
        self.newest = None;
        self.is_absent = true;
        self.start = None;
        // Installed again, its numbers begin anew; the rollbacks still count for the day.
        for (revision, _) in &mut self.turned_back {
            *revision = Revision(0);
        }
        match std::mem::take(&mut self.phase) {
            Phase::Absent => {}
            Phase::Steady => {
                self.enter(Phase::Absent, now);
                self.note(now, None, "The release was uninstalled");
            }
            Phase::Settling(case) | Phase::Watching(case) | Phase::Verifying(case) => {
                commands.push(Command::EndWatch { kept: false });
                self.end(
                    *case,
                    Ending::Uninstalled,
                    "The release was uninstalled".into(),
                    now,
                );
                self.enter(Phase::Absent, now);
            }
            Phase::Preflight(case) | Phase::TurningBack(case) => {
                self.end(
                    *case,
                    Ending::Uninstalled,
                    "The release was uninstalled".into(),
                    now,
                );
                self.enter(Phase::Absent, now);
            }
        }
    }

    fn on_ready(&mut self, target: Revision, now: Time, commands: &mut Vec<Command>) {
        let Some(mut case) = self.take_preflight() else {
            return;
        };
        let bad = case.revision;
        case.target = Some(target);
        if let Some((ending, why)) = self.obstacle(&case, now) {
            // The mode, or whether the release is held, has changed since the verdict.
            self.end(*case, ending, why, now);
            return;
        }
        // A person knows what is what: nobody else rolls back during a start.
        self.start = None;
        case.begun = Some(now);
        self.turned_back.push((bad, now));
        if self.turned_back.len() > MAX_PAST {
            self.turned_back.remove(0);
        }
        let slow = case.slow_rollout().map_or_else(String::new, |took| {
            format!(
                "; the rollout of revision {bad} took {} s, and the way back may take as long, while the runbook allows {} s",
                took.as_secs(),
                StepName::Complete.limit().as_secs()
            )
        });
        self.enter(Phase::TurningBack(case), now);
        self.note(
            now,
            Some(bad),
            format!("Turning back to revision {target}{slow}"),
        );
        commands.push(Command::Execute { bad, target });
    }

    pub(super) fn on_refused(&mut self, reason: String, now: Time, commands: &mut Vec<Command>) {
        let Some(case) = self.take_preflight() else {
            return;
        };
        if case.ordered {
            self.end_order(*case, &reason, now, commands);
        } else {
            self.end(*case, Ending::Refused, reason, now);
        }
    }

    fn on_executed(
        &mut self,
        attempt: Attempt,
        made: Revision,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Some(mut case) = self.take_attempt(attempt) else {
            return;
        };
        case.made = Some(made);
        commands.extend(Self::found_by_order(&case));
        // After a restart it may be seen before it is known to be ours.
        case.overtaken_by = case.overtaken_by.filter(|(other, _)| *other > made);
        // The record may be told of here before the watch sees it.
        self.newest = self.newest.max(Some(made));
        self.note(
            now,
            Some(made),
            format!("The rollback made revision {made}; its rollout runs"),
        );
        match case.overtaken_by {
            None => {
                self.phase = Phase::TurningBack(case);
                // However long helm took, the pods have their time.
                self.since = now;
            }
            Some(other) => self.overtaken(*case, made, other, now, commands),
        }
    }

    fn on_execution_failed(
        &mut self,
        attempt: Attempt,
        reason: String,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Some(case) = self.take_attempt(attempt) else {
            return;
        };
        let overtaken_by = case.overtaken_by;
        let serving = case.serving;
        match overtaken_by {
            None => self.end(*case, Ending::Failed, reason, now),
            Some((revision, origin)) if case.overtaken_by_same => {
                self.try_again_for(case, (revision, origin), now, commands);
            }
            Some((revision, origin)) => {
                self.end(
                    *case,
                    Ending::Superseded,
                    format!("Revision {revision} took its place: {reason}"),
                    now,
                );
                self.begin(revision, origin, serving, now, commands);
            }
        }
    }

    fn on_verified(
        &mut self,
        ending: Ending,
        text: String,
        now: Time,
        commands: &mut Vec<Command>,
    ) {
        let Some(mut case) = self.take_verifying() else {
            return;
        };
        commands.push(Command::EndWatch { kept: false });
        let target = case.target.unwrap_or_default();
        let text = match ending {
            Ending::Recovered => {
                case.verified = Some(now);
                format!("Turned back to the contents of revision {target}, and well again")
            }
            Ending::SameFailure => {
                // It was not the release, so its contents are not bad.
                commands.push(Command::Found {
                    revision: case.revision,
                    found: Found::Unknown,
                    evidence: "the same failed after it was turned back".into(),
                });
                format!("Turned back, but the same still fails, so it was not the release: {text}")
            }
            Ending::Worse => format!("Turned back, and more fails than before: {text}"),
            Ending::Kept
            | Ending::Unchanged
            | Ending::Inconclusive
            | Ending::Superseded
            | Ending::Uninstalled
            | Ending::WouldRollBack
            | Ending::LeftAlone
            | Ending::LimitReached
            | Ending::Refused
            | Ending::OrderRefused
            | Ending::Failed
            | Ending::Unverified => text,
        };
        self.end(*case, ending, text, now);
    }

    /// Time has passed: a phase whose time is up ends.
    fn on_tick(&mut self, now: Time, commands: &mut Vec<Command>) {
        let Some(case) = self.phase.case() else {
            self.start_may_end(now);
            return;
        };
        let stands = self.phase.acts() && matches!(self.clock, Clock::Stands);
        if stands || now < case.ends(&self.phase, &self.limits, self.counts_since()) {
            return;
        }
        match std::mem::take(&mut self.phase) {
            phase @ (Phase::Absent | Phase::Steady) => self.phase = phase,
            Phase::Settling(case) => {
                let revision = case.revision;
                let cap = self.limits.settle_cap.as_secs();
                self.enter(Phase::Watching(case), now);
                self.note(
                    now,
                    Some(revision),
                    format!("The rollout is not complete after {cap} s; the analysis goes on"),
                );
            }
            Phase::Watching(case) => {
                commands.push(Command::EndWatch { kept: false });
                self.end(
                    *case,
                    Ending::Inconclusive,
                    "The watch ended without a verdict".into(),
                    now,
                );
            }
            Phase::Preflight(case) => {
                let text = "Whether it can be turned back could not be found out in time";
                if case.ordered {
                    self.end_order(*case, text, now, commands);
                } else {
                    self.end(*case, Ending::Refused, text.into(), now);
                }
            }
            Phase::TurningBack(case) => {
                let overtaken_by = case.overtaken_by;
                if let Some(other) = overtaken_by.filter(|_| case.overtaken_by_same) {
                    self.try_again_for(case, other, now, commands);
                    return;
                }
                let serving = case.made.or(case.serving);
                let text = match case.made {
                    None => "The rollback did not end in time",
                    Some(_) => "The rollback's rollout was not complete in time",
                };
                self.end(*case, Ending::Failed, text.into(), now);
                if let Some((revision, origin)) = overtaken_by {
                    self.begin(revision, origin, serving, now, commands);
                }
            }
            Phase::Verifying(case) => {
                commands.push(Command::EndWatch { kept: false });
                let text =
                    "Turned back, but whether the release is well could not be found out".into();
                self.end(*case, Ending::Unverified, text, now);
            }
        }
    }

    fn note_lateness(&mut self, now: Time) {
        let (Phase::Preflight(case) | Phase::TurningBack(case) | Phase::Verifying(case)) =
            &mut self.phase
        else {
            return;
        };
        let mut late = Vec::new();
        for timing in case.timings() {
            let exceeded = timing
                .from
                .is_some_and(|from| timing.to.unwrap_or(now).since(from) > timing.step.limit());
            if exceeded && !case.late.contains(&timing.step) {
                case.late.push(timing.step);
                late.push(timing.step);
            }
        }
        let revision = case.revision;
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

    /// Takes the case out of a phase; the caller enters the next one. `None` leaves the phase as it is.
    fn take_case(&mut self, is_it: impl FnOnce(&Phase) -> bool) -> Option<Box<Case>> {
        if !is_it(&self.phase) {
            return None;
        }
        match std::mem::take(&mut self.phase) {
            Phase::Settling(case)
            | Phase::Watching(case)
            | Phase::Preflight(case)
            | Phase::TurningBack(case)
            | Phase::Verifying(case) => Some(case),
            phase @ (Phase::Absent | Phase::Steady) => {
                self.phase = phase;
                None
            }
        }
    }

    /// The case of a revision that is judged.
    fn take_judged(&mut self, judged: Revision) -> Option<Box<Case>> {
        self.take_case(|phase| match phase {
            Phase::Settling(case) | Phase::Watching(case) => case.revision == judged,
            Phase::Absent
            | Phase::Steady
            | Phase::Preflight(_)
            | Phase::TurningBack(_)
            | Phase::Verifying(_) => false,
        })
    }

    fn take_preflight(&mut self) -> Option<Box<Case>> {
        self.take_case(|phase| matches!(phase, Phase::Preflight(_)))
    }

    /// The case of this rollback, while it is carried out.
    fn take_attempt(&mut self, attempt: Attempt) -> Option<Box<Case>> {
        self.take_case(
            |phase| matches!(phase, Phase::TurningBack(case) if case.attempt() == Some(attempt)),
        )
    }

    fn take_verifying(&mut self) -> Option<Box<Case>> {
        self.take_case(|phase| matches!(phase, Phase::Verifying(_)))
    }

    pub(super) fn enter(&mut self, phase: Phase, now: Time) {
        self.phase = phase;
        self.since = now;
    }

    pub(super) fn end(&mut self, case: Case, ending: Ending, text: String, now: Time) {
        self.enter(Phase::Steady, now);
        self.finish(case, ending, text, now);
    }

    /// Writes down how a revision ended, in whatever phase that leaves the release.
    pub(super) fn finish(&mut self, case: Case, ending: Ending, text: String, now: Time) {
        let revision = case.revision;
        // That is about what a person wanted, and not about the revision.
        let said = if ending == Ending::OrderRefused {
            text.clone()
        } else {
            let word = ending.as_str().replace('_', " ");
            format!("Revision {revision}: {word}. {text}")
        };
        self.note(now, Some(revision), said);
        self.remember(case, ending, text, now);
    }
}
