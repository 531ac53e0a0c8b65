//! What any order of events keeps to, and the story of each ending.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const START: Time = Time::from_millis(1_700_000_000_000);

fn limits(mode: Mode) -> RolloutLimits {
    RolloutLimits {
        mode,
        max_per_day: 2,
        watch: Duration::from_secs(300),
        settle_cap: Duration::from_secs(90),
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A release on which events fall, second by second.
struct World {
    rollout: Rollout,
    now: Time,
    commands: Vec<RolloutCommand>,
    entries: Vec<LogEntry>,
}

impl World {
    fn new(mode: Mode) -> Self {
        let mut world = Self {
            rollout: Rollout::new(limits(mode), START),
            now: START,
            commands: Vec::new(),
            entries: Vec::new(),
        };
        world.happens(seen(1, RevisionOrigin::Upgrade));
        world
    }

    fn happens(&mut self, mut event: RolloutInput) -> &mut Self {
        if let RolloutInput::Executed { attempt, .. }
        | RolloutInput::ExecutionFailed { attempt, .. } = &mut event
            && *attempt == RollbackAttempt::default()
        {
            *attempt = self.attempt();
        }
        self.now = self.now + seconds(1);
        let commands = self.rollout.step(event, self.now);
        self.commands.extend(commands);
        self.entries.extend(self.rollout.take_entries());
        self
    }

    /// The rollback that is carried out at the moment.
    fn attempt(&self) -> RollbackAttempt {
        let candidate = self.rollout.phase().candidate();
        candidate.and_then(Candidate::attempt).unwrap_or_default()
    }

    fn executed(&mut self, created_revision: u32) -> &mut Self {
        self.happens(executed(created_revision))
    }

    fn execution_failed(&mut self, reason: &str) -> &mut Self {
        self.happens(execution_failed(reason))
    }

    fn passes(&mut self, span: Duration) -> &mut Self {
        self.now = self.now + span;
        self.happens(RolloutInput::Tick)
    }

    #[track_caller]
    fn ended(&self, outcome: RolloutOutcome) {
        let last = self.rollout.finished().last().expect("a case has ended");
        assert_eq!(last.outcome, outcome, "{}", last.text);
        assert!(matches!(
            self.rollout.phase(),
            RolloutPhase::Idle | RolloutPhase::NotInstalled
        ));
    }

    fn executions(&self) -> usize {
        let is_execution =
            |command: &&RolloutCommand| matches!(command, RolloutCommand::Execute { .. });
        self.commands.iter().filter(is_execution).count()
    }
}

fn seen(revision: u32, origin: RevisionOrigin) -> RolloutInput {
    RolloutInput::Seen {
        revision: Revision(revision),
        origin,
        serving: Some(Revision(revision - 1)),
        appears: Appearance::New,
    }
}

/// The contents of the newest revision once more.
fn same(revision: u32, origin: RevisionOrigin, known_good: bool) -> RolloutInput {
    let mut event = seen(revision, origin);
    if let RolloutInput::Seen { appears, .. } = &mut event {
        *appears = Appearance::Same { known_good };
    }
    event
}

fn restored(revision: u32) -> RolloutInput {
    let mut event = seen(revision, RevisionOrigin::Upgrade);
    if let RolloutInput::Seen { appears, .. } = &mut event {
        *appears = Appearance::Restored;
    }
    event
}

fn not_rolled_out(revision: u32) -> RolloutInput {
    RolloutInput::NotRolledOut {
        revision: Revision(revision),
        text: "Deployment api: 0 of 3 pods are of its newest template and Ready".into(),
    }
}

fn regressed(revision: u32) -> RolloutInput {
    RolloutInput::Regressed {
        revision: Revision(revision),
        reason: "hard_down_all".into(),
        text: "every endpoint failed 16 times in a row".into(),
    }
}

fn bake_failed(revision: u32, rejects: bool) -> RolloutInput {
    RolloutInput::BakeFailed {
        revision: Revision(revision),
        reason: "bake:error_rate".into(),
        text: "errors 14/96 (14.6 %) in the last 120 s".into(),
        trouble_since: None,
        rejects,
    }
}

fn ready(target: u32) -> RolloutInput {
    RolloutInput::Ready {
        target: Revision(target),
    }
}

/// Of whatever is carried out.
fn executed(created_revision: u32) -> RolloutInput {
    RolloutInput::Executed {
        attempt: RollbackAttempt::default(),
        created_revision: Revision(created_revision),
    }
}

fn execution_failed(reason: &str) -> RolloutInput {
    RolloutInput::ExecutionFailed {
        attempt: RollbackAttempt::default(),
        reason: reason.into(),
    }
}

#[test]
fn however_long_helm_takes_the_pods_have_their_time() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1));
    world.passes(seconds(280));
    world.executed(3).passes(seconds(280));
    assert!(matches!(
        world.rollout.phase(),
        RolloutPhase::RollingBack(_)
    ));
    world
        .happens(seen(3, RevisionOrigin::OurRollback))
        .happens(RolloutInput::RolloutComplete);
    assert!(matches!(world.rollout.phase(), RolloutPhase::Verifying(_)));
}

/// Seconds of the steps, in their order.
fn took(candidate: &Candidate) -> [Option<u64>; 6] {
    candidate
        .timings()
        .map(|it| it.took().map(|took| took.as_secs()))
}

/// A crash loop or pods that are asked directly reject although the Service has not failed once.
#[test]
fn the_detection_counts_from_the_appearance_and_from_the_first_sign_of_trouble() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .passes(seconds(20));
    world.happens(RolloutInput::TroubleBegan).passes(seconds(4));
    world.happens(regressed(2));
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(took(candidate)[..2], [Some(28), Some(6)]);
    assert_eq!(took(candidate)[5], None, "it is not over");

    // Without a sign, as where a progress deadline alone rejects, the second clock says nothing and not 0 s.
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .passes(seconds(20));
    world.happens(regressed(2));
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(took(candidate)[..2], [Some(22), None]);
}

#[test]
fn what_a_person_ordered_was_not_detected() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::TroubleBegan);
    world.happens(ordered("c")).happens(ready(1)).executed(3);
    world
        .happens(seen(3, RevisionOrigin::OurRollback))
        .happens(RolloutInput::RolloutComplete);
    world
        .happens(RolloutInput::Recovered)
        .ended(RolloutOutcome::RolledBack);
    let candidate = &world.rollout.finished()[0].candidate;
    assert_eq!(took(candidate)[..2], [None, None]);
    assert_eq!(took(candidate)[5], Some(5), "from the order");
}

#[test]
fn a_bake_counts_from_the_appearance_too() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Healthy(Revision(2)))
        .passes(seconds(600));
    let since = world.now;
    let RolloutInput::BakeFailed {
        revision,
        reason,
        text,
        ..
    } = bake_failed(2, true)
    else {
        unreachable!()
    };
    let trouble_since = Some(since);
    world.happens(RolloutInput::BakeFailed {
        revision,
        reason,
        text,
        trouble_since,
        rejects: true,
    });
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(took(candidate)[..2], [Some(603), Some(1)]);
    assert!(candidate.late.is_empty());
    world.happens(RolloutInput::Tick);
    assert!(
        world
            .entries
            .iter()
            .any(|entry| entry.text.starts_with("Late: detect takes"))
    );
}

#[test]
fn a_bad_revision_is_rolled_back_and_verified() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::TroubleBegan)
        .happens(RolloutInput::RolloutComplete)
        .happens(regressed(2))
        .happens(ready(1))
        .executed(3)
        .happens(seen(3, RevisionOrigin::OurRollback))
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::Recovered)
        .ended(RolloutOutcome::RolledBack);
    assert_eq!(
        world.commands,
        [
            RolloutCommand::Watch(Revision(2)),
            RolloutCommand::EndAnalysis { kept: false },
            RolloutCommand::Found {
                revision: Revision(2),
                found: crate::core::revision_ledger::ContentVerdict::Bad,
                evidence: "every endpoint failed 16 times in a row".into(),
            },
            RolloutCommand::Preflight(Revision(2)),
            RolloutCommand::Execute {
                bad: Revision(2),
                target: Revision(1),
            },
            RolloutCommand::Verify(Revision(3)),
            RolloutCommand::EndAnalysis { kept: false },
        ]
    );
    let took = took(&world.rollout.finished()[0].candidate).map(Option::unwrap);
    assert_eq!(took, [3, 2, 1, 3, 1, 8]);
    assert!(
        world
            .entries
            .iter()
            .all(|entry| !entry.text.starts_with("Late"))
    );
}

/// What took four minutes to come may take more than five to go.
#[test]
fn the_way_back_has_twice_as_long_as_the_way_there_took() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        // The time in which it should have been complete is over, and it completes all the same.
        .passes(seconds(100))
        .passes(seconds(150))
        .happens(RolloutInput::RolloutComplete)
        .happens(regressed(2))
        .happens(ready(1))
        .executed(3)
        .passes(seconds(450));
    assert!(matches!(
        world.rollout.phase(),
        RolloutPhase::RollingBack(_)
    ));
    world.passes(seconds(100));
    world.ended(RolloutOutcome::RollbackFailed);
}

/// The way back is a rollout as well, and what it may cost is said when it begins.
#[test]
fn a_slow_rollout_says_that_the_way_back_may_be_slow() {
    let begins = |rollout: u64| {
        let mut world = World::new(Mode::Enforce);
        world
            .happens(seen(2, RevisionOrigin::Upgrade))
            .passes(seconds(rollout))
            .happens(RolloutInput::RolloutComplete)
            .happens(regressed(2))
            .happens(ready(1));
        let entries = world.entries.iter().map(|entry| entry.text.clone());
        let begins: Vec<_> = entries
            .filter(|text| text.starts_with("Rolling back"))
            .collect();
        begins.join(" ")
    };
    assert_eq!(begins(20), "Rolling back to revision 1");
    assert_eq!(
        begins(70),
        "Rolling back to revision 1; the rollout of revision 2 took 72 s, and the way back may take as long, while the runbook allows 120 s"
    );
}

#[test]
fn a_healthy_revision_is_kept_and_its_contents_are_good() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::Healthy(Revision(2)))
        .ended(RolloutOutcome::Passed);
    assert!(
        world
            .commands
            .contains(&RolloutCommand::EndAnalysis { kept: true })
    );
}

/// Revision 2 has passed its analysis.
fn passed(mode: Mode) -> World {
    let mut world = World::new(mode);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::Healthy(Revision(2)));
    world.commands.clear();
    world
}

fn bake_is_found(
    found: crate::core::revision_ledger::ContentVerdict,
    revision: u32,
) -> RolloutCommand {
    RolloutCommand::Found {
        revision: Revision(revision),
        found,
        evidence: "errors 14/96 (14.6 %) in the last 120 s".into(),
    }
}

#[test]
fn a_bake_that_rejects_rolls_back_as_a_verdict_does() {
    let mut world = passed(Mode::Enforce);
    world.happens(bake_failed(2, true));
    let bad = bake_is_found(crate::core::revision_ledger::ContentVerdict::Bad, 2);
    assert_eq!(
        world.commands,
        [bad, RolloutCommand::Preflight(Revision(2))]
    );
    world.happens(ready(1)).executed(3);
    world
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::Recovered);
    world.ended(RolloutOutcome::RolledBack);
    let candidate = &world.rollout.finished().last().unwrap().candidate;
    assert_eq!(candidate.reason, "bake:error_rate");
    // Once more it says nothing of the revision that the rollback made.
    world.commands.clear();
    world
        .happens(bake_failed(2, true))
        .happens(bake_failed(3, true));
    assert!(world.commands.is_empty(), "{:?}", world.commands);
}

#[test]
fn a_bake_that_only_notifies_leaves_the_revision_in_place_and_says_so() {
    let check = |world: &mut World, event| {
        world.happens(event).ended(RolloutOutcome::Passed);
        let failed = bake_is_found(crate::core::revision_ledger::ContentVerdict::BakeFailed, 2);
        assert_eq!(world.commands, [failed]);
        let text = &world.rollout.finished().last().unwrap().text;
        assert!(
            text.contains("its bake failed, so it is not known"),
            "{text}"
        );
        assert!(text.contains("14/96"), "{text}");
    };
    check(&mut passed(Mode::Enforce), bake_failed(2, false));
    // Our own trouble is no reason to act, either.
    let mut blind = passed(Mode::Enforce);
    blind.happens(RolloutInput::Blind(true));
    check(&mut blind, bake_failed(2, true));
}

#[test]
fn a_bake_that_fails_when_the_end_of_the_analysis_is_forgotten_is_found_and_nothing_is_rolled_back()
{
    for rejects in [true, false] {
        let mut world = passed(Mode::Enforce);
        assert!(!world.rollout.has_forgotten_its_end());
        world.rollout.finished.clear();
        assert!(world.rollout.has_forgotten_its_end());
        world.happens(bake_failed(2, rejects));
        let failed = bake_is_found(crate::core::revision_ledger::ContentVerdict::BakeFailed, 2);
        assert_eq!(world.commands, [failed]);
        assert_eq!(*world.rollout.phase(), RolloutPhase::Idle);
        let is_said = |entry: &LogEntry| entry.text.contains("its bake failed");
        assert!(world.entries.iter().any(is_said));
    }
}

#[test]
fn what_a_bake_rejects_is_bound_by_mode_limit_and_origin() {
    for (mode, event, outcome) in [
        (Mode::Observe, None, RolloutOutcome::WouldRollBack),
        (
            Mode::Enforce,
            Some(RolloutInput::Held(true)),
            RolloutOutcome::NotEligible,
        ),
    ] {
        let mut world = passed(mode);
        if let Some(event) = event {
            world.happens(event);
        }
        world.happens(bake_failed(2, true)).ended(outcome);
        assert_eq!(
            world.commands,
            [bake_is_found(
                crate::core::revision_ledger::ContentVerdict::Bad,
                2
            )]
        );
    }
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::OtherRollback))
        .happens(RolloutInput::Healthy(Revision(2)))
        .happens(bake_failed(2, true))
        .ended(RolloutOutcome::NotEligible);
}

/// The case is that of the revision which brought the contents, under the newest number.
#[test]
fn the_bake_of_contents_that_came_once_more_rejects_their_newest_number() {
    let mut world = passed(Mode::Enforce);
    world.happens(same(3, RevisionOrigin::Upgrade, false));
    world.ended(RolloutOutcome::Unchanged);
    world.happens(bake_failed(2, true));
    assert!(world.commands.is_empty(), "it is not the newest");
    world.happens(bake_failed(3, true));
    let RolloutPhase::Preflight(candidate) = world.rollout.phase() else {
        panic!("{:?}", world.rollout.phase());
    };
    assert_eq!(
        (candidate.revision, candidate.first()),
        (Revision(3), Revision(2))
    );
    assert_eq!(candidate.serving, Some(Revision(1)));
}

#[test]
fn what_is_not_acted_on_says_why() {
    for (mode, origin, before, outcome) in [
        (
            Mode::Observe,
            RevisionOrigin::Upgrade,
            None,
            RolloutOutcome::WouldRollBack,
        ),
        (
            Mode::Enforce,
            RevisionOrigin::First,
            None,
            RolloutOutcome::NotEligible,
        ),
        (
            Mode::Enforce,
            RevisionOrigin::OtherRollback,
            None,
            RolloutOutcome::NotEligible,
        ),
        (
            Mode::Enforce,
            RevisionOrigin::OurRollback,
            None,
            RolloutOutcome::NotEligible,
        ),
        (
            Mode::Enforce,
            RevisionOrigin::Upgrade,
            Some(RolloutInput::Held(true)),
            RolloutOutcome::NotEligible,
        ),
        (
            Mode::Enforce,
            RevisionOrigin::Upgrade,
            Some(RolloutInput::Blind(true)),
            RolloutOutcome::Inconclusive,
        ),
    ] {
        let mut world = World::new(mode);
        world.happens(seen(2, origin));
        if let Some(before) = before {
            world.happens(before);
        }
        world.happens(regressed(2)).ended(outcome);
        assert_eq!(world.executions(), 0, "{mode:?} {origin:?}");
        assert!(!world.rollout.finished()[0].text.is_empty());
    }
}

#[test]
fn a_revision_that_was_there_before_us_is_not_judged() {
    let world = World::new(Mode::Enforce);
    assert_eq!(world.commands, []);
    assert_eq!(*world.rollout.phase(), RolloutPhase::Idle);
}

#[test]
fn in_the_mode_off_nothing_is_judged() {
    let mut world = World::new(Mode::Off);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2));
    assert_eq!(world.commands, []);
}

#[test]
fn a_newer_revision_ends_the_watch_and_inherits_who_was_serving() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(seen(3, RevisionOrigin::Upgrade))
        .ended_before(RolloutOutcome::Superseded);
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(
        (candidate.revision, candidate.serving),
        (Revision(3), Some(Revision(1)))
    );
    // A verdict on the old one comes too late.
    world.happens(regressed(2));
    assert_eq!(world.executions(), 0);
}

impl World {
    #[track_caller]
    fn ended_before(&self, outcome: RolloutOutcome) {
        assert_eq!(
            self.rollout
                .finished()
                .last()
                .map(|finished| finished.outcome),
            Some(outcome)
        );
    }
}

#[test]
fn a_newer_revision_before_the_rollback_has_begun_stops_it() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(seen(3, RevisionOrigin::Upgrade))
        .happens(ready(1))
        .ended_before(RolloutOutcome::Superseded);
    assert_eq!(world.executions(), 0);
}

#[test]
fn a_newer_revision_during_the_rollback_is_watched_next() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .happens(seen(3, RevisionOrigin::Upgrade))
        .execution_failed("release: already exists")
        .ended_before(RolloutOutcome::Superseded);
    assert_eq!(
        world.rollout.phase().candidate().unwrap().revision,
        Revision(3)
    );
}

#[test]
fn a_newer_revision_before_the_rollbacks_rollout_is_complete_is_watched_at_once() {
    for executed_first in [true, false] {
        let mut world = World::new(Mode::Enforce);
        world
            .happens(seen(2, RevisionOrigin::Upgrade))
            .happens(regressed(2))
            .happens(ready(1));
        let mut both = [executed(3), seen(4, RevisionOrigin::Upgrade)];
        if !executed_first {
            both.reverse();
        }
        for event in both {
            world.happens(event);
        }
        world.ended_before(RolloutOutcome::Superseded);
        let candidate = world.rollout.phase().candidate().unwrap();
        assert_eq!(
            (candidate.revision, candidate.serving),
            (Revision(4), Some(Revision(3)))
        );
        assert_eq!(world.executions(), 1);
    }
}

#[test]
fn after_the_rollback_the_same_failure_acquits_the_release() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .executed(3)
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::StillFailing {
            text: "db failed 30 of 30".into(),
        })
        .ended(RolloutOutcome::StillFailing);
    let last_found = world
        .commands
        .iter()
        .rev()
        .find_map(|command| match command {
            RolloutCommand::Found { found, .. } => Some(*found),
            _ => None,
        });
    assert_eq!(
        last_found,
        Some(crate::core::revision_ledger::ContentVerdict::Unknown)
    );
}

#[test]
fn pods_that_may_have_the_old_settings_do_not_pass_the_release() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .executed(3)
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::OldSettings {
            text: "db failed 30 of 30".into(),
        })
        .ended(RolloutOutcome::Unverified);
    let passes = |command: &RolloutCommand| {
        let unknown = crate::core::revision_ledger::ContentVerdict::Unknown;
        matches!(command, RolloutCommand::Found { found, .. } if *found == unknown)
    };
    assert!(!world.commands.iter().any(passes));
}

#[test]
fn the_limit_of_a_day_holds_and_is_over_a_day_later() {
    let mut world = World::new(Mode::Enforce);
    let bad = |world: &mut World, revision: u32| {
        world
            .happens(seen(revision, RevisionOrigin::Upgrade))
            .happens(regressed(revision));
        if matches!(world.rollout.phase(), RolloutPhase::Preflight(_)) {
            world
                .happens(ready(1))
                .executed(revision + 1)
                .happens(RolloutInput::RolloutComplete)
                .happens(RolloutInput::Recovered);
        }
    };
    bad(&mut world, 2);
    bad(&mut world, 4);
    assert_eq!(world.executions(), 2);
    world
        .rollout
        .set_by_hand(|target| format!("go back to {target:?}"));
    bad(&mut world, 6);
    world.ended(RolloutOutcome::LimitReached);
    let text = &world.rollout.finished().last().unwrap().text;
    let by_hand = "; by hand: go back to Some(Revision(5))";
    assert!(text.contains(by_hand), "{text}");
    assert_eq!(world.executions(), 2);
    world.passes(seconds(24 * 3600));
    bad(&mut world, 8);
    assert_eq!(world.executions(), 3);
}

#[test]
fn what_is_noted_while_a_rollback_is_carried_out_names_that_phase() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .happens(seen(3, RevisionOrigin::Upgrade));
    let entry = world.entries.last().unwrap();
    assert!(entry.text.starts_with("Revision 3 appeared"), "{entry:?}");
    assert_eq!(&*entry.phase, world.rollout.phase().as_str());
    assert!(matches!(
        world.rollout.phase(),
        RolloutPhase::RollingBack(_)
    ));
}

/// A state that was damaged does not make a number up.
#[test]
fn a_verification_without_its_revision_is_not_begun_anew() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .executed(3)
        .happens(RolloutInput::RolloutComplete);
    let mut stored = serde_json::to_value(&world.rollout).unwrap();
    let created_revision = &mut stored["phase"]["case"]["created_revision"];
    assert_eq!(*created_revision, 3);
    *created_revision = serde_json::Value::Null;
    let mut read: Rollout = serde_json::from_value(stored).unwrap();
    assert_eq!(read.resume(), []);
    assert!(matches!(read.phase(), RolloutPhase::Verifying(_)));
}

#[test]
fn an_uninstalled_release_can_come_back() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Uninstalled)
        .ended(RolloutOutcome::Uninstalled);
    assert_eq!(*world.rollout.phase(), RolloutPhase::NotInstalled);
    // Whoever saw that there was none knows that this one is new; it is judged, and can only be told of.
    world.happens(seen(1, RevisionOrigin::First));
    assert_eq!(world.rollout.phase().as_str(), "rolling_out");
    world
        .happens(regressed(1))
        .ended(RolloutOutcome::NotEligible);
    assert_eq!(world.executions(), 0);
}

#[test]
fn what_a_person_orders_is_bound_by_neither_mode_nor_limit_and_done_once() {
    let mut world = World::new(Mode::Observe);
    world.happens(seen(2, RevisionOrigin::Upgrade));
    let order = || RolloutInput::Ordered {
        target: None,
        reason: "the cart loses items".into(),
        order: order("a"),
    };
    world.happens(order());
    assert_eq!(world.rollout.phase().as_str(), "preflight");
    // A second order finds the first under way.
    world.happens(order()).happens(ready(1));
    assert_eq!(world.rollout.phase().as_str(), "rolling_back");
    assert_eq!(world.executions(), 1);
}

fn order(key: &str) -> OrderRecord {
    OrderRecord {
        id: format!("2-{key}").into(),
        keys: vec![OrderKey {
            key: key.into(),
            target: None,
        }],
    }
}

fn ordered(key: &str) -> RolloutInput {
    RolloutInput::Ordered {
        target: Some(Revision(1)),
        reason: "the cart loses items".into(),
        order: order(key),
    }
}

fn found_bad(world: &World) -> usize {
    let is_bad = |command: &&RolloutCommand| {
        let found = crate::core::revision_ledger::ContentVerdict::Bad;
        matches!(command, RolloutCommand::Found { found: is, .. } if *is == found)
    };
    world.commands.iter().filter(is_bad).count()
}

#[test]
fn an_order_that_joins_a_rollback_is_found_by_its_key_with_that_ones_result() {
    let mut world = World::new(Mode::Enforce);
    world.happens(seen(2, RevisionOrigin::Upgrade));
    assert_eq!(
        world.rollout.join(order("b")),
        None,
        "there is nothing to join"
    );
    world.happens(ordered("a"));
    assert_eq!(found_bad(&world), 0, "nothing is done yet");
    assert_eq!(world.rollout.join(order("b")).as_deref(), Some("2-a"));
    world.happens(ready(1));
    assert_eq!(found_bad(&world), 0, "helm may still come too late");
    world.executed(3);
    assert_eq!(found_bad(&world), 1);
    world
        .happens(seen(3, RevisionOrigin::OurRollback))
        .happens(RolloutInput::RolloutComplete);
    assert_eq!(world.rollout.join(order("c")).as_deref(), Some("2-a"));
    world
        .happens(RolloutInput::Recovered)
        .ended(RolloutOutcome::RolledBack);
    let saved = serde_json::to_string(&world.rollout).unwrap();
    let restored: Rollout = serde_json::from_str(&saved).unwrap();
    for key in ["a", "b", "c"] {
        let (candidate, finished) = restored.order_with(key).unwrap();
        assert_eq!(candidate.created_revision, Some(Revision(3)), "{key}");
        assert_eq!(
            finished.map(|finished| finished.outcome),
            Some(RolloutOutcome::RolledBack)
        );
    }
    assert!(restored.order_with("d").is_none());
    // One that joins what a verdict began does not make it a person's.
    world
        .happens(seen(4, RevisionOrigin::Upgrade))
        .happens(regressed(4));
    assert_eq!(world.rollout.join(order("e")).as_deref(), Some("2-e"));
    assert!(!world.rollout.phase().candidate().unwrap().ordered);
}

/// A helm that was given up ends some time, and its end is not that of what has been begun since.
#[test]
fn the_late_end_of_a_rollback_is_not_taken_for_that_of_the_next() {
    // Of the same revision, as a person orders, and of the next one.
    for is_next in [false, true] {
        for event in [executed(7), execution_failed("release: already exists")] {
            let mut world = World::new(Mode::Enforce);
            world
                .happens(seen(2, RevisionOrigin::Upgrade))
                .happens(regressed(2))
                .happens(ready(1));
            let given_up = world.attempt();
            world
                .passes(seconds(300))
                .ended(RolloutOutcome::RollbackFailed);
            if is_next {
                world
                    .happens(seen(3, RevisionOrigin::Upgrade))
                    .happens(regressed(3));
            } else {
                world.happens(ordered("a"));
            }
            world.happens(ready(1));
            let before = world.rollout.clone();
            let mut event = event;
            if let RolloutInput::Executed { attempt, .. }
            | RolloutInput::ExecutionFailed { attempt, .. } = &mut event
            {
                *attempt = given_up;
            }
            world.happens(event);
            assert_eq!(world.rollout, before);
            world.executed(4);
            let candidate = world.rollout.phase().candidate().unwrap();
            assert_eq!(candidate.created_revision, Some(Revision(4)));
        }
    }
}

/// What a verdict may not do any longer, the person who joined it may.
#[test]
fn an_order_that_joins_a_verdict_is_bound_by_neither_mode_nor_limit() {
    type Change = (&'static str, fn(&mut World));
    let changes: [Change; 3] = [
        ("observe", |world| {
            world.rollout.set_limits(limits(Mode::Observe));
        }),
        ("no rollback in a day", |world| {
            let none = RolloutLimits {
                max_per_day: 0,
                ..limits(Mode::Enforce)
            };
            world.rollout.set_limits(none);
        }),
        ("held", |world| {
            world.happens(RolloutInput::Held(true));
        }),
    ];
    for (what, change) in changes {
        for is_joined in [false, true] {
            let mut world = World::new(Mode::Enforce);
            world
                .happens(seen(2, RevisionOrigin::Upgrade))
                .happens(regressed(2));
            if is_joined {
                assert_eq!(world.rollout.join(order("a")).as_deref(), Some("2-a"));
            }
            change(&mut world);
            world.happens(ready(1));
            assert_eq!(world.executions(), usize::from(is_joined), "{what}");
        }
    }
}

#[test]
fn an_order_that_joins_a_verdict_without_a_target_gets_one_chosen_by_hand() {
    let no_target = || RolloutInput::NoTarget {
        reason: "no revision to go back to".into(),
    };
    let looks = |world: &World| {
        let is_look =
            |command: &&RolloutCommand| **command == RolloutCommand::Preflight(Revision(2));
        world.commands.iter().filter(is_look).count()
    };
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2));
    let mut alone = World {
        rollout: world.rollout.clone(),
        commands: Vec::new(),
        entries: Vec::new(),
        ..world
    };
    alone.happens(no_target()).ended(RolloutOutcome::Refused);
    world.rollout.join(order("a"));
    world.happens(no_target());
    assert_eq!(world.rollout.phase().as_str(), "preflight");
    assert!(world.rollout.phase().candidate().unwrap().chosen_by_hand);
    assert_eq!(looks(&world), 2);
    let mut again = restarted(&world, seconds(1));
    again.happens(ready(1));
    assert_eq!(again.executions(), 1);
    // The verdict stands, so this says something of the revision.
    world.happens(no_target()).ended(RolloutOutcome::Refused);
    assert_eq!(looks(&world), 2);
    let (_, finished) = world.rollout.order_with("a").unwrap();
    assert_eq!(finished.unwrap().outcome, RolloutOutcome::Refused);
}

#[test]
fn an_order_that_cannot_be_carried_out_changes_nothing() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::RolloutComplete)
        .happens(RolloutInput::OrderDeclined {
            target: Some(Revision(1)),
            reason: "the cart loses items".into(),
            order: order("a"),
            why: "it would delete data".into(),
        });
    assert_eq!(world.rollout.phase().as_str(), "analyzing");
    assert_eq!(world.rollout.last_ended(), None);
    assert_eq!(found_bad(&world), 0);
    let (_, finished) = world.rollout.order_with("a").unwrap();
    let finished = finished.unwrap();
    assert_eq!(finished.outcome, RolloutOutcome::OrderRefused);
    assert_eq!(
        finished.text,
        "A person ordered a rollback of revision 2 (the cart loses items), and it was refused: it would delete data"
    );
    // What is refused in the last moment has ended the watch, which begins anew.
    world.happens(ordered("b")).happens(RolloutInput::Refused {
        reason: "it would delete data".into(),
    });
    assert_eq!(world.rollout.phase().as_str(), "rolling_out");
    assert_eq!(found_bad(&world), 0);
    let watches = world.commands.iter();
    let watches = watches.filter(|command| matches!(command, RolloutCommand::Watch(_)));
    assert_eq!(watches.count(), 2);
    world
        .happens(RolloutInput::Healthy(Revision(2)))
        .ended(RolloutOutcome::Passed);
    world.happens(ordered("c")).passes(seconds(700));
    assert_eq!(*world.rollout.phase(), RolloutPhase::Idle);
    // Mistakes do not push out how revisions ended.
    for number in 0..100 {
        world.happens(RolloutInput::OrderDeclined {
            target: None,
            reason: "again".into(),
            order: order(&number.to_string()),
            why: "no".into(),
        });
    }
    assert_eq!(world.rollout.finished().len(), 11);
    let last = world.rollout.last_ended().unwrap();
    assert_eq!(last.outcome, RolloutOutcome::Passed);
}

#[test]
fn a_step_that_takes_too_long_is_an_entry_once() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .passes(seconds(70))
        .passes(seconds(5));
    let late = world
        .entries
        .iter()
        .filter(|entry| entry.text.starts_with("Late: initiate"));
    assert_eq!(late.count(), 1);
}

#[test]
fn a_state_that_was_saved_goes_on_where_it_was() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1));
    let saved = serde_json::to_string(&world.rollout).unwrap();
    let restored: Rollout = serde_json::from_str(&saved).unwrap();
    assert_eq!(restored, world.rollout);
}

/// A state as it is read after a restart, so much later.
fn restarted(world: &World, after: Duration) -> World {
    let saved = serde_json::to_string(&world.rollout).unwrap();
    World {
        rollout: serde_json::from_str(&saved).unwrap(),
        now: world.now + after,
        commands: Vec::new(),
        entries: Vec::new(),
    }
}

#[test]
fn after_a_long_absence_a_rollback_is_looked_at_before_its_time_is_up() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1));
    let mut world = restarted(&world, seconds(3600));
    // The cluster is not heard yet.
    assert_eq!(world.rollout.deadline(), None);
    world.passes(seconds(600));
    assert!(matches!(
        world.rollout.phase(),
        RolloutPhase::RollingBack(_)
    ));
    let resumed = world.rollout.resume();
    assert!(matches!(resumed[..], [RolloutCommand::Execute { .. }]));
    // Its time begins now, and whoever waits for its end is told so at once.
    assert!(world.rollout.deadline().unwrap() <= world.now);
    world.happens(RolloutInput::Tick).passes(seconds(290));
    assert!(matches!(
        world.rollout.phase(),
        RolloutPhase::RollingBack(_)
    ));
    world
        .passes(seconds(20))
        .ended(RolloutOutcome::RollbackFailed);
}

#[test]
fn after_a_long_absence_a_look_and_a_verification_begin_anew() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2));
    let mut looking = restarted(&world, seconds(3600));
    looking.passes(seconds(1));
    assert_eq!(
        looking.rollout.resume(),
        [RolloutCommand::Preflight(Revision(2))]
    );
    looking.passes(seconds(600));
    assert!(matches!(
        looking.rollout.phase(),
        RolloutPhase::Preflight(_)
    ));
    world
        .happens(ready(1))
        .executed(3)
        .happens(RolloutInput::RolloutComplete);
    let mut verifying = restarted(&world, seconds(3600));
    verifying.passes(seconds(1));
    assert_eq!(
        verifying.rollout.resume(),
        [RolloutCommand::Verify(Revision(3))]
    );
    verifying
        .passes(seconds(200))
        .happens(RolloutInput::Recovered)
        .ended(RolloutOutcome::RolledBack);
}

#[test]
fn verdicts_on_a_former_installation_are_not_those_of_a_new_one() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Healthy(Revision(2)))
        .happens(RolloutInput::Uninstalled);
    // Until it is installed again, its history is still shown.
    assert_eq!(world.rollout.finished().len(), 1);
    world.happens(seen(1, RevisionOrigin::First));
    assert!(world.rollout.finished().is_empty());
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Inconclusive {
            revision: Revision(2),
            reason: "coverage".into(),
        })
        .ended(RolloutOutcome::Inconclusive);
}

#[test]
fn the_contents_that_serve_are_not_judged_again_whoever_deploys_them() {
    for origin in [RevisionOrigin::Upgrade, RevisionOrigin::OtherRollback] {
        let mut world = World::new(Mode::Enforce);
        let since = world.rollout.since();
        // First sight: never judged, but it serves.
        world
            .happens(same(2, origin, false))
            .ended(RolloutOutcome::Unchanged);
        world
            .happens(same(3, origin, false))
            .ended(RolloutOutcome::Unchanged);
        let text = &world.rollout.finished()[1].text;
        assert!(
            text.starts_with("It has the contents of revision 2, which serves"),
            "{text}"
        );
        assert_eq!(world.rollout.newest(), Some(Revision(3)));
        assert_eq!(
            world.commands,
            [],
            "nothing is marked, and no watch begins or ends"
        );
        assert_eq!(world.rollout.since(), since, "no time begins anew");
        world.happens(regressed(3));
        assert_eq!(world.executions(), 0);
    }
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Healthy(Revision(2)))
        .happens(same(3, RevisionOrigin::Upgrade, true))
        .ended(RolloutOutcome::Unchanged);
}

#[test]
fn the_contents_under_analysis_once_more_go_on_with_it() {
    for complete in [false, true] {
        let mut world = World::new(Mode::Enforce);
        world
            .happens(seen(2, RevisionOrigin::Upgrade))
            .happens(RolloutInput::TroubleBegan);
        if complete {
            world.happens(RolloutInput::RolloutComplete);
        }
        let (phase, before) = (world.rollout.phase().as_str(), world.commands.len());
        let began = world.rollout.phase().candidate().unwrap().clone();
        world.happens(same(3, RevisionOrigin::Upgrade, false));
        assert_eq!(world.rollout.phase().as_str(), phase);
        assert_eq!(
            world.commands[before..],
            [RolloutCommand::GoOn(Revision(3))]
        );
        world.ended_before(RolloutOutcome::Superseded);
        let candidate = world.rollout.phase().candidate().unwrap().clone();
        assert_eq!(
            (candidate.revision, candidate.first()),
            (Revision(3), Revision(2))
        );
        assert_eq!(
            (
                candidate.serving,
                candidate.seen,
                candidate.complete,
                candidate.trouble_since
            ),
            (
                began.serving,
                began.seen,
                began.complete,
                began.trouble_since
            )
        );
        // A third one, and the verdict on all of them.
        world
            .happens(same(4, RevisionOrigin::Upgrade, false))
            .happens(regressed(4))
            .happens(ready(1))
            .executed(5)
            .happens(RolloutInput::RolloutComplete)
            .happens(RolloutInput::Recovered)
            .ended(RolloutOutcome::RolledBack);
        assert_eq!(world.executions(), 1);
        let candidate = &world.rollout.finished().last().unwrap().candidate;
        assert_eq!(
            (candidate.revision, candidate.first()),
            (Revision(4), Revision(2))
        );
    }
}

/// Time does not begin anew by it either.
#[test]
fn whoever_deploys_the_same_again_and_again_is_judged_in_the_same_time() {
    let mut world = World::new(Mode::Enforce);
    world.happens(seen(2, RevisionOrigin::Upgrade));
    for revision in 3..20 {
        world
            .happens(same(revision, RevisionOrigin::Upgrade, false))
            .passes(seconds(20));
    }
    let mut finished = world.rollout.finished().iter();
    let ended = finished.find(|finished| finished.outcome == RolloutOutcome::Inconclusive);
    let ended = ended.expect("its watch ends");
    assert!(ended.at.since(ended.candidate.seen) < seconds(360));
}

#[test]
fn what_a_person_rolls_back_to_is_told_and_left_alone_also_where_it_is_the_same() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(same(3, RevisionOrigin::OtherRollback, false))
        .happens(regressed(3))
        .ended(RolloutOutcome::NotEligible);
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(same(3, RevisionOrigin::OtherRollback, false))
        .happens(ready(1))
        .ended(RolloutOutcome::NotEligible);
    assert_eq!(world.executions(), 0);
}

#[test]
fn a_verdict_holds_for_the_same_contents_under_another_number() {
    // While it is looked whether it can be rolled back.
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(same(3, RevisionOrigin::Upgrade, false));
    world.ended_before(RolloutOutcome::Superseded);
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Preflight(Revision(3)))
    );
    world.happens(ready(1));
    let execute = |bad| RolloutCommand::Execute {
        bad: Revision(bad),
        target: Revision(1),
    };
    assert_eq!(world.commands.last(), Some(&execute(3)));
    // While helm is at work, which then finds that it comes too late.
    world.happens(same(4, RevisionOrigin::Upgrade, false));
    assert_eq!(world.rollout.phase().as_str(), "rolling_back");
    world.execution_failed("release: already exists");
    world.ended_before(RolloutOutcome::Superseded);
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Preflight(Revision(4)))
    );
    world.happens(ready(1));
    assert_eq!(world.commands.last(), Some(&execute(4)));
}

/// What came in between need not have the bad contents, and has an end of its own.
#[test]
fn the_same_as_another_revision_that_came_during_the_rollback_is_not_what_was_bad() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .happens(seen(3, RevisionOrigin::Upgrade))
        .happens(same(4, RevisionOrigin::Upgrade, false));
    let finished = world.rollout.finished().last().unwrap();
    assert_eq!(
        (finished.candidate.revision, finished.outcome),
        (Revision(3), RolloutOutcome::Superseded)
    );
    world.execution_failed("release: already exists");
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Watch(Revision(4)))
    );
    assert_eq!(world.executions(), 1);
}

/// The rollback's own record was seen before helm was done, and somebody deploys its contents once more.
#[test]
fn the_same_as_what_the_rollback_brought_back_is_not_what_was_bad() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1))
        .happens(seen(3, RevisionOrigin::OurRollback))
        .happens(same(4, RevisionOrigin::Upgrade, true))
        .execution_failed("release: already exists");
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Watch(Revision(4)))
    );
    assert_eq!(world.executions(), 1);
}

/// What came too late changed nothing, so the day's limit still allows it.
#[test]
fn a_rollback_that_came_too_late_does_not_count_against_the_limit() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(regressed(2))
        .happens(ready(1));
    for revision in 3..8 {
        world
            .happens(same(revision, RevisionOrigin::Upgrade, false))
            .execution_failed("release: already exists")
            .happens(ready(1));
    }
    assert_eq!(world.executions(), 6);
}

#[test]
fn an_order_that_is_refused_leaves_the_revision_its_first_number() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(same(3, RevisionOrigin::Upgrade, false))
        .happens(ordered("a"))
        .happens(RolloutInput::Refused {
            reason: "a hook runs".into(),
        });
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Watch(Revision(3)))
    );
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(candidate.first(), Revision(2));
}

#[test]
fn the_contents_that_a_rollback_brought_back_are_unchanged_and_it_is_verified_all_the_same() {
    for complete_first in [true, false] {
        let mut world = World::new(Mode::Enforce);
        world
            .happens(seen(2, RevisionOrigin::Upgrade))
            .happens(regressed(2))
            .happens(ready(1))
            .executed(3);
        if complete_first {
            world.happens(RolloutInput::RolloutComplete);
        }
        let phase = world.rollout.phase().as_str();
        world.happens(same(4, RevisionOrigin::Upgrade, true));
        assert_eq!(world.rollout.phase().as_str(), phase);
        world.ended_before(RolloutOutcome::Unchanged);
        let candidate = world.rollout.phase().candidate().unwrap();
        assert_eq!(candidate.way_back(), Some(Revision(4)));
        if !complete_first {
            world.happens(RolloutInput::RolloutComplete);
        }
        world
            .happens(RolloutInput::Recovered)
            .ended(RolloutOutcome::RolledBack);
        // What comes then is compared with what serves.
        let mut other = World::new(Mode::Enforce);
        other
            .happens(seen(2, RevisionOrigin::Upgrade))
            .happens(regressed(2))
            .happens(ready(1))
            .executed(3)
            .happens(RolloutInput::RolloutComplete)
            .happens(same(4, RevisionOrigin::Upgrade, true))
            .happens(seen(5, RevisionOrigin::Upgrade));
        let candidate = other.rollout.phase().candidate().unwrap();
        assert_eq!(candidate.serving, Some(Revision(4)));
    }
}

/// Nobody turns "nothing can be said", or a verdict, into a success by deploying once more.
#[test]
fn the_same_contents_after_doubt_or_a_verdict_are_judged_anew() {
    type Before = (Mode, RolloutInput, RolloutOutcome);
    let candidates: [Before; 4] = [
        (
            Mode::Enforce,
            RolloutInput::Inconclusive {
                revision: Revision(2),
                reason: "coverage".into(),
            },
            RolloutOutcome::Inconclusive,
        ),
        (
            Mode::Enforce,
            not_rolled_out(2),
            RolloutOutcome::Inconclusive,
        ),
        (Mode::Observe, regressed(2), RolloutOutcome::WouldRollBack),
        (Mode::Enforce, regressed(2), RolloutOutcome::Refused),
    ];
    for (mode, event, outcome) in candidates {
        let mut world = World::new(mode);
        world
            .happens(seen(2, RevisionOrigin::Upgrade))
            .happens(event.clone());
        if outcome == RolloutOutcome::Refused {
            world.happens(RolloutInput::Refused {
                reason: "rights".into(),
            });
        }
        world.ended(outcome);
        assert!(world.rollout.is_suspect(false));
        assert!(!world.rollout.is_suspect(true));
        let served_well_since = {
            let mut world = World {
                rollout: world.rollout.clone(),
                commands: Vec::new(),
                entries: Vec::new(),
                ..world
            };
            world.happens(same(3, RevisionOrigin::Upgrade, true));
            world.rollout.finished().last().unwrap().outcome
        };
        assert_eq!(served_well_since, RolloutOutcome::Unchanged);
        world.happens(same(3, RevisionOrigin::Upgrade, false));
        let candidate = world.rollout.phase().candidate().expect("it is judged");
        assert_eq!(
            (candidate.revision, candidate.first(), candidate.serving),
            (Revision(3), Revision(2), Some(Revision(1))),
            "{event:?}"
        );
        assert_eq!(
            world.commands.last(),
            Some(&RolloutCommand::Watch(Revision(3)))
        );
    }
}

#[test]
fn in_the_mode_off_nothing_is_said_of_the_same_contents_either() {
    let mut world = World::new(Mode::Off);
    world.happens(same(2, RevisionOrigin::Upgrade, false));
    assert!(world.rollout.finished().is_empty());
}

#[test]
fn what_says_nothing_does_not_push_out_what_does() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::Healthy(Revision(2)));
    for revision in 3..200 {
        world.happens(same(revision, RevisionOrigin::Upgrade, true));
    }
    let finished = world.rollout.finished();
    assert_eq!(finished.len(), MAX_PAST);
    assert_eq!(finished[0].outcome, RolloutOutcome::Passed);
    assert_eq!(finished[MAX_PAST - 1].candidate.revision, Revision(199));
}

#[test]
fn a_rollout_that_never_completed_is_not_good_and_not_what_served() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(not_rolled_out(2))
        .ended(RolloutOutcome::Inconclusive);
    let finished = world.rollout.finished().last().unwrap();
    assert_eq!(finished.candidate.reason, "not_rolled_out");
    assert!(
        finished
            .text
            .starts_with("The rollout is not complete: Deployment api"),
        "{}",
        finished.text
    );
    let found = world.commands.iter().find_map(|command| match command {
        RolloutCommand::Found { found, .. } => Some(*found),
        _ => None,
    });
    assert_eq!(
        found,
        Some(crate::core::revision_ledger::ContentVerdict::Incomplete)
    );
    assert!(
        world
            .commands
            .contains(&RolloutCommand::EndAnalysis { kept: false })
    );
    // By its record revision 2 serves.
    world.happens(seen(3, RevisionOrigin::Upgrade));
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(candidate.serving, Some(Revision(1)));
    world
        .happens(not_rolled_out(3))
        .happens(seen(4, RevisionOrigin::Upgrade));
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(candidate.serving, Some(Revision(1)));
}

/// One that completes after the end of its analysis serves from then on.
#[test]
fn a_rollout_that_completes_late_is_no_longer_said_to_be_incomplete() {
    let mut world = World::new(Mode::Enforce);
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(not_rolled_out(2));
    assert!(world.rollout.may_complete_late());
    world = restarted(&world, seconds(60));
    world.happens(RolloutInput::RolloutComplete);
    assert!(!world.rollout.may_complete_late());
    let finished = world.rollout.finished().last().unwrap();
    assert_eq!(finished.outcome, RolloutOutcome::Inconclusive);
    assert_eq!(finished.candidate.reason, "rolled_out_late");
    assert_eq!(
        finished.text,
        "The rollout was not complete at the end of the analysis; it was 61 s later, so the revision serves and is not known to be good"
    );
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::Found {
            revision: Revision(2),
            found: crate::core::revision_ledger::ContentVerdict::Unknown,
            evidence: finished.text.clone(),
        })
    );
    // It has not served well since before it was complete.
    assert_eq!(world.rollout.since(), world.now);
    let entries = world.entries.len();
    world.happens(RolloutInput::RolloutComplete);
    assert_eq!(world.entries.len(), entries, "it is said once");
    // The same contents once more are judged, and what comes then is compared with it.
    assert!(world.rollout.is_suspect(false));
    world.happens(seen(3, RevisionOrigin::Upgrade));
    let candidate = world.rollout.phase().candidate().unwrap();
    assert_eq!(candidate.serving, Some(Revision(2)));
}

/// A release that was seen, and then was gone.
fn absent() -> World {
    let mut world = World::new(Mode::Enforce);
    world.happens(RolloutInput::Uninstalled);
    world
}

#[test]
fn what_comes_back_after_an_absence_is_a_start_in_any_order() {
    // One after another; the oldest one by a record that a backup wrote.
    let orders: [&[RolloutInput]; 3] = [
        &[
            seen(3, RevisionOrigin::Upgrade),
            seen(4, RevisionOrigin::Upgrade),
            seen(7, RevisionOrigin::OtherRollback),
        ],
        &[restored(1), restored(2), restored(7)],
        &[seen(7, RevisionOrigin::Upgrade), restored(1), restored(2)],
    ];
    for order in orders {
        let mut world = absent();
        for event in order {
            world.happens(event.clone());
        }
        assert_eq!(*world.rollout.phase(), RolloutPhase::Idle);
        assert_eq!(world.rollout.newest(), Some(Revision(7)));
        assert!(world.rollout.is_starting());
        world.happens(regressed(7)).passes(seconds(120));
        assert_eq!(world.commands, [], "{order:?}");
        assert!(world.rollout.awaits_completion());
        // Its workloads come at last.
        world
            .happens(RolloutInput::RolloutComplete)
            .happens(RolloutInput::Tick);
        assert!(!world.rollout.is_starting());
        world.happens(seen(8, RevisionOrigin::Upgrade));
        assert_eq!(world.commands, [RolloutCommand::Watch(Revision(8))]);
    }
}

#[test]
fn a_start_ends_a_minute_after_the_last_record_and_after_ten_minutes_at_the_latest() {
    let mut world = absent();
    world
        .happens(seen(2, RevisionOrigin::Upgrade))
        .happens(RolloutInput::RolloutComplete)
        .passes(seconds(50));
    assert!(world.rollout.is_starting(), "a further record may come");
    world
        .happens(seen(3, RevisionOrigin::Upgrade))
        .happens(RolloutInput::RolloutComplete)
        .passes(seconds(50));
    assert!(world.rollout.is_starting());
    world.passes(seconds(10));
    assert!(!world.rollout.is_starting());
    // Nobody may wait for ever for a part that never comes, however often something is deployed.
    let mut world = absent();
    for revision in 2..32 {
        world
            .happens(seen(revision, RevisionOrigin::Upgrade))
            .passes(seconds(18));
    }
    assert!(world.rollout.is_starting());
    world.passes(seconds(30));
    assert!(!world.rollout.is_starting());
    let text = &world.entries.last().unwrap().text;
    assert!(
        text.contains("although its rollout is not complete"),
        "{text}"
    );
}

#[test]
fn a_record_of_a_backup_that_was_taken_for_an_installation_is_put_right() {
    let mut world = absent();
    world.happens(seen(1, RevisionOrigin::First));
    assert_eq!(world.rollout.phase().as_str(), "rolling_out");
    world.happens(restored(2));
    assert_eq!(*world.rollout.phase(), RolloutPhase::Idle);
    assert!(world.rollout.is_starting());
    assert_eq!(
        world.commands.last(),
        Some(&RolloutCommand::EndAnalysis { kept: false })
    );
}

#[test]
fn a_start_survives_a_restart_and_a_person_ends_it() {
    let mut world = absent();
    world.happens(seen(2, RevisionOrigin::Upgrade));
    let mut again = restarted(&world, seconds(30));
    assert!(again.rollout.is_starting());
    again.happens(seen(3, RevisionOrigin::Upgrade));
    assert_eq!(again.commands, []);
    again.happens(RolloutInput::Ordered {
        target: None,
        reason: "the cart loses items".into(),
        order: order("a"),
    });
    assert_eq!(again.rollout.phase().as_str(), "preflight");
    assert!(again.rollout.is_starting(), "nothing is done yet");
    // What is refused changes nothing, and neither does what another revision takes the place of.
    let mut refused = restarted(&again, seconds(1));
    refused.happens(RolloutInput::Refused {
        reason: "rights".into(),
    });
    assert!(refused.rollout.is_starting());
    assert!(refused.rollout.deadline().is_some());
    let mut overtaken = restarted(&again, seconds(1));
    overtaken
        .happens(seen(4, RevisionOrigin::Upgrade))
        .ended(RolloutOutcome::Superseded);
    assert!(overtaken.rollout.is_starting());
    assert_eq!(overtaken.commands, []);
    again.happens(ready(2));
    assert!(!again.rollout.is_starting());
    // By another clock.
    let mut moved = world.rollout.clone();
    let later = world.now + seconds(3600);
    moved.shift(ClockShift::between(world.now, later));
    assert_eq!(
        moved.deadline(),
        world.rollout.deadline().map(|at| at + seconds(3600))
    );
    // Gone once more, it is over too.
    world.happens(RolloutInput::Uninstalled);
    assert!(!world.rollout.is_starting());
    // At the daemon's own start a backup may be at work as well.
    let mut world = World {
        rollout: Rollout::new(limits(Mode::Enforce), START),
        ..absent()
    };
    world.happens(restored(4));
    assert!(world.rollout.is_starting());
}

/// A state that an earlier version stored.
#[test]
fn a_state_without_what_is_new_is_read() {
    let mut world = World::new(Mode::Enforce);
    world.happens(seen(2, RevisionOrigin::Upgrade));
    let mut state = serde_json::to_value(&world.rollout).unwrap();
    state.as_object_mut().unwrap().remove("start");
    let candidate = state["phase"]["case"].as_object_mut().unwrap();
    for new in ["first", "overtaken_by_same", "stands_for_made"] {
        candidate.remove(new);
    }
    let read: Rollout = serde_json::from_value(state).unwrap();
    assert_eq!(read, world.rollout);
}

fn any_event() -> impl Strategy<Value = RolloutInput> {
    let revision = 1..8u32;
    let origin = prop_oneof![
        4 => Just(RevisionOrigin::Upgrade),
        1 => Just(RevisionOrigin::First),
        1 => Just(RevisionOrigin::OurRollback),
        1 => Just(RevisionOrigin::OtherRollback),
    ];
    prop_oneof![
        4 => (revision.clone(), origin.clone()).prop_map(|(revision, origin)| seen(revision, origin)),
        4 => (revision.clone(), origin, any::<bool>())
            .prop_map(|(revision, origin, known_good)| same(revision, origin, known_good)),
        1 => revision.clone().prop_map(restored),
        1 => revision.clone().prop_map(not_rolled_out),
        2 => Just(RolloutInput::RolloutComplete),
        1 => Just(RolloutInput::TroubleBegan),
        4 => revision.clone().prop_map(regressed),
        1 => revision.clone().prop_map(|revision| RolloutInput::Healthy(Revision(revision))),
        1 => (revision.clone(), any::<bool>()).prop_map(|(revision, rejects)| bake_failed(revision, rejects)),
        1 => revision.clone().prop_map(|revision| RolloutInput::Inconclusive {
            revision: Revision(revision),
            reason: "coverage".into(),
        }),
        1 => any::<bool>().prop_map(RolloutInput::Held),
        1 => any::<bool>().prop_map(RolloutInput::Blind),
        1 => Just(RolloutInput::Uninstalled),
        4 => revision.clone().prop_map(ready),
        1 => Just(RolloutInput::Refused { reason: "pending".into() }),
        1 => Just(RolloutInput::OrderDeclined {
            target: None,
            reason: "the cart".into(),
            order: order("any"),
            why: "pending".into(),
        }),
        2 => revision.prop_map(executed),
        1 => Just(execution_failed("no")),
        1 => Just(RolloutInput::Recovered),
        1 => Just(RolloutInput::StillFailing { text: "db".into() }),
        1 => Just(RolloutInput::Worsened { text: "all".into() }),
        1 => Just(RolloutInput::OldSettings { text: "db".into() }),
        2 => Just(RolloutInput::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_order_of_events_keeps_the_promises(
        mode in prop_oneof![3 => Just(Mode::Enforce), 1 => Just(Mode::Observe), 1 => Just(Mode::Off)],
        events in prop::collection::vec((any_event(), 0..400u64), 1..80),
    ) {
        let mut world = World::new(mode);
        let mut made_by: HashMap<u32, RevisionOrigin> = HashMap::new();
        let mut regressed_ones = Vec::new();
        let mut blind = false;
        let mut rolled_back = Vec::new();
        let mut times = Vec::new();
        for (event, wait) in events {
            world.now = world.now + seconds(wait);
            match &event {
                RolloutInput::Seen { revision, origin, appears, .. }
                    if world.rollout.newest().is_none_or(|newest| *revision > newest) =>
                {
                    made_by.insert(revision.0, *origin);
                    let before = world.rollout.newest();
                    let is_same = matches!(appears, Appearance::Same { .. });
                    // What was found of contents holds for them under their next number.
                    if is_same && before.is_some_and(|before| regressed_ones.contains(&before.0)) {
                        regressed_ones.push(revision.0);
                    }
                }
                RolloutInput::Uninstalled => {
                    // Numbers begin anew.
                    made_by.clear();
                    rolled_back.clear();
                    regressed_ones.clear();
                }
                RolloutInput::Blind(is) => blind = *is,
                RolloutInput::Regressed { revision, .. } | RolloutInput::BakeFailed { revision, rejects: true, .. }
                    if !blind =>
                {
                    regressed_ones.push(revision.0);
                }
                _ => {}
            }
            let first = world.commands.len();
            let before = world.rollout.phase().clone();
            world.happens(event.clone());
            for command in world.commands[first..].iter().cloned() {
                if let RolloutCommand::Execute { bad, .. } = command {
                    prop_assert_eq!(mode, Mode::Enforce);
                    prop_assert!(!rolled_back.contains(&bad.0), "rolled back twice: {}", bad);
                    prop_assert_eq!(made_by.get(&bad.0).copied(), Some(RevisionOrigin::Upgrade));
                    prop_assert!(regressed_ones.contains(&bad.0), "without a verdict that counts");
                    rolled_back.push(bad.0);
                    times.push(world.now);
                    let now = world.now;
                    let today = times.iter().filter(|at| now.since(**at) < seconds(24 * 3600)).count();
                    prop_assert!(today <= 2, "more than the limit in a day");
                }
            }
            if *world.rollout.phase() != before && world.rollout.phase().as_str() != before.as_str() {
                prop_assert!(!world.entries.is_empty(), "a transition without an entry");
            }
            let is_at_rest = matches!(world.rollout.phase(), RolloutPhase::NotInstalled | RolloutPhase::Idle)
                && !world.rollout.is_starting();
            prop_assert_eq!(world.rollout.deadline().is_none(), is_at_rest);
            let watches = world.commands[first..].iter().any(|command| matches!(command, RolloutCommand::Watch(_)));
            prop_assert!(!(watches && world.rollout.is_starting()), "judged during a start");
        }
        // Time alone brings everything to an end, by the deadlines that are announced.
        for _ in 0..20 {
            let Some(deadline) = world.rollout.deadline() else { break };
            world.now = world.now.max(deadline);
            world.happens(RolloutInput::Tick);
        }
        prop_assert!(matches!(world.rollout.phase(), RolloutPhase::NotInstalled | RolloutPhase::Idle));
        let saved = serde_json::to_string(&world.rollout).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rollout>(&saved).unwrap(), world.rollout);
    }
}
