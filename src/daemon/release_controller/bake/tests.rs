#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use super::super::state::tests::state;
use super::*;
use crate::core::analysis::Rule;
use crate::core::baseline::Baseline;
use crate::core::revision_ledger::{ContentDigest, LedgerEntry};
use crate::core::rollout::{Appearance, RevisionOrigin};

const TICK: Duration = Duration::from_secs(5);

/// Revision 4 has passed its analysis, and its bake begins; the time when that is.
fn baking() -> (State, Time) {
    let (mut state, now) = state();
    state.rollout.step(RolloutInput::Healthy(Revision(4)), now);
    let analysis = state.running.take().unwrap();
    state.ledger.write(LedgerEntry {
        digest: ContentDigest("4444".into()),
        weak: None,
        revision: Revision(4),
        found: ContentVerdict::Passed,
        at: now,
        evidence: "a whole watch without anything against it".into(),
    });
    state.bake = Some(RevisionBake {
        trouble: None,
        serving: Some(Revision(3)),
        recorded: state.recorded,
        began: now,
        bake: Bake::new(&analysis.analysis, TICK_S, 300.0),
        lately: vec![LatestResults::default(); 1],
        excused: ExcusedProbes::default(),
        outcomes: vec![TickOutcome::NotDue],
        analysis,
    });
    (state, now)
}

/// One result of the probe in each of so many ticks; the time after them.
fn ticks(state: &mut State, mut now: Time, count: u32, outcome: TickOutcome) -> Time {
    let release_state = ReleaseState::default();
    for _ in 0..count {
        let bake = state.bake.as_mut().unwrap();
        bake.hears("api", outcome, None);
        now = bake.next_tick();
        bake.tick(now, Some(&release_state), true, |_| None);
    }
    now
}

fn bake(state: &State) -> &RevisionBake {
    state.bake.as_ref().unwrap()
}

#[test]
fn it_ends_well_an_hour_after_the_revision_appeared_or_by_two_minutes_of_failures() {
    let (mut state, now) = baking();
    ticks(&mut state, now, 659, TickOutcome::Success);
    assert_eq!(bake(&state).bake.end(), BakeEnd::Baking);
    let view = view(&state).unwrap();
    assert_eq!((view.revision, view.state), (4, "baking"));
    assert!(
        view.text.starts_with("0 of the last 24 results"),
        "{}",
        view.text
    );
    ticks(&mut state, now, 1, TickOutcome::Success);
    assert_eq!(bake(&state).bake.end(), BakeEnd::Good);

    let (mut state, now) = baking();
    ticks(&mut state, now, 100, TickOutcome::Success);
    for _ in 0..25 {
        ticks(&mut state, now, 1, TickOutcome::Failure);
    }
    let failed = bake(&state);
    assert_eq!(failed.bake.end(), BakeEnd::Alarm);
    assert_eq!(&*failed.bake.alarm().unwrap().reason, "bake:error_rate");
    assert_eq!(failed.failing(), ["api: 8 of the last 8 results failed"]);
}

/// However often a probe is asked, nothing waits for a later tick.
#[test]
fn the_last_result_of_a_tick_that_says_something_stands_for_all_of_it() {
    for (message, counts) in [
        (&[TickOutcome::Failure, TickOutcome::Success][..], (0, 1)),
        (&[TickOutcome::Success, TickOutcome::Failure], (1, 1)),
        (
            &[
                TickOutcome::Failure,
                TickOutcome::Unknown,
                TickOutcome::Limited,
            ],
            (1, 1),
        ),
        (&[TickOutcome::Unknown], (0, 0)),
        (&[], (0, 0)),
    ] {
        let (mut state, _) = baking();
        let running = state.bake.as_mut().unwrap();
        for outcome in message {
            running.hears("api", *outcome, None);
            running.hears("another", TickOutcome::Failure, None);
        }
        let release_state = ReleaseState::default();
        running.tick(running.next_tick(), Some(&release_state), true, |_| None);
        running.tick(running.next_tick(), Some(&release_state), true, |_| None);
        assert_eq!(running.bake.recent(), counts, "{message:?}");
    }
}

#[test]
fn time_in_which_nobody_ran_counts_as_if_no_probe_had_been_due() {
    let (mut state, now) = baking();
    let now = ticks(&mut state, now, 60, TickOutcome::Success);
    let text = serde_json::to_string(&state).unwrap();
    let read: State = serde_json::from_str(&text).unwrap();
    let mut read = read.bounded().unwrap();
    assert_eq!(bake(&read).bake, bake(&state).bake);
    // A result that was waiting for its tick when the others were missed says nothing of now.
    let running = read.bake.as_mut().unwrap();
    running.hears("api", TickOutcome::Failure, None);
    let back = now + TICK * 301;
    running.tick(back, Some(&ReleaseState::default()), true, |_| None);
    assert_eq!(running.bake.ticks(), 60 + 301);
    assert_eq!(running.bake.recent(), (0, 0));
    assert_eq!(running.next_tick(), back + TICK);
    ticks(&mut read, back, 299, TickOutcome::Success);
    assert_eq!(bake(&read).bake.end(), BakeEnd::Good);
}

/// Evicted after a minute, and back when the hour is over: nobody knows how the revision did meanwhile.
#[test]
fn a_bake_in_which_nobody_ran_for_most_of_the_time_says_nothing() {
    let (mut state, now) = baking();
    let now = ticks(&mut state, now, 12, TickOutcome::Success);
    let running = state.bake.as_mut().unwrap();
    running.tick(
        now + TICK * 900,
        Some(&ReleaseState::default()),
        true,
        |_| None,
    );
    assert_eq!(running.bake.end(), BakeEnd::Coverage);
}

#[test]
fn what_is_unknown_or_not_at_rest_is_no_evidence() {
    for (is_known, is_at_rest, end) in [
        (false, true, BakeEnd::Coverage),
        (true, false, BakeEnd::Coverage),
        (true, true, BakeEnd::Alarm),
    ] {
        let (mut state, _) = baking();
        let running = state.bake.as_mut().unwrap();
        let release_state = ReleaseState::default();
        for _ in 0..660 {
            running.hears("api", TickOutcome::Failure, None);
            let at = running.next_tick();
            running.tick(at, is_known.then_some(&release_state), is_at_rest, |_| None);
        }
        assert_eq!(running.bake.end(), end, "{is_known} {is_at_rest}");
    }
}

/// The probe may be heard before what it needs, in the tick in which both begin to fail, or after it.
#[test]
fn failures_say_nothing_while_something_fails_that_the_probe_needs() {
    let postgres = NeedsEntry::Dependency("postgres".into());
    for knows_at in ["the result", "the tick"] {
        let (mut state, _) = baking();
        let running = state.bake.as_mut().unwrap();
        let release_state = ReleaseState::default();
        for _ in 0..100 {
            if knows_at == "the result" {
                running.hears("api", TickOutcome::Unknown, Some(&postgres));
                running.tick(running.next_tick(), Some(&release_state), true, |_| None);
            } else {
                running.hears("api", TickOutcome::Failure, None);
                running.tick(running.next_tick(), Some(&release_state), true, |_| {
                    Some(&postgres)
                });
            }
        }
        assert_eq!(running.bake.end(), BakeEnd::Baking, "{knows_at}");
        assert_eq!(running.bake.recent(), (0, 0), "{knows_at}");
        let says = "postgres failed, so that failures of api meanwhile are not judged";
        assert_eq!(running.excused.news().as_deref(), Some(says), "{knows_at}");
    }
}

#[test]
fn a_damaged_bake_is_dropped_and_leaves_the_revision_in_doubt() {
    let (state, _) = baking();
    let whole = serde_json::to_value(&state).unwrap();
    assert!(!state.clone().bounded().unwrap().doubtful);
    for damage in [
        |bake: &mut serde_json::Value| bake["bake"]["tick_s"] = 0.0.into(),
        |bake: &mut serde_json::Value| bake["bake"]["from_s"] = (-1e12).into(),
        |bake: &mut serde_json::Value| bake["bake"]["next_tick"] = u32::MAX.into(),
        |bake: &mut serde_json::Value| bake["lately"] = serde_json::json!([]),
        |bake: &mut serde_json::Value| bake["bake"]["sums"] = "none".into(),
        |bake: &mut serde_json::Value| *bake = serde_json::json!({ "began": 7 }),
    ] {
        let mut damaged = whole.clone();
        damage(&mut damaged["bake"]);
        let read: State = serde_json::from_value(damaged.clone()).unwrap();
        let read = read.bounded().unwrap();
        assert!(read.bake.is_none() && read.doubtful, "{}", damaged["bake"]);
        assert_eq!(read.ledger, state.ledger);
    }
    let mut older = whole;
    older.as_object_mut().unwrap().remove("bake");
    older.as_object_mut().unwrap().remove("baked");
    let read: State = serde_json::from_value(older).unwrap();
    assert!(read.bounded().unwrap().bake.is_none());
}

#[test]
fn the_same_contents_under_another_number_go_on_baking_and_others_end_it() {
    let (mut state, now) = baking();
    assert_eq!(state.is_still_that_of(Revision(4)), Some(Revision(4)));
    let appears = |revision, appears| RolloutInput::Seen {
        revision: Revision(revision),
        origin: RevisionOrigin::Upgrade,
        serving: Some(Revision(4)),
        appears,
    };
    let same = Appearance::Same { known_good: false };
    state.rollout.step(appears(5, same), now);
    assert_eq!(state.is_still_that_of(Revision(4)), Some(Revision(5)));
    state.rollout.step(appears(6, Appearance::New), now);
    assert_eq!(state.is_still_that_of(Revision(4)), None);
    assert_eq!(state.is_still_that_of(Revision(5)), None);
}

/// Its measurements are no baseline before its bake ended well, unless there is none other.
#[test]
fn what_it_measures_is_kept_apart_until_it_is_known_to_be_good() {
    let (mut state, mut now) = baking();
    let least = Rule::default().n0_min;
    for known in state.probes.values_mut() {
        known.adopt();
        known.candidate = Baseline::default();
    }
    let before = state.probes["api"].baseline.counts(now);
    assert!(before.1 < least);
    for _ in 0..60 {
        now = now + TICK;
        state.add_result("api", TickOutcome::Success, None, now);
        state.add_result("new", TickOutcome::Success, None, now);
    }
    assert_eq!(state.probes["api"].baseline.counts(now), before);
    let mut ends_well = state.clone();
    ends_well.bake = None;
    ends_well.adopt_candidates();
    assert_eq!(ends_well.probes["api"].baseline.counts(now), (0, 60));

    // Enough is known of one probe from before, and too little of the other.
    for _ in 0..least {
        let known = state.probes.get_mut("api").unwrap();
        known.baseline.record(TickOutcome::Failure, now);
    }
    let known_good = state.probes["api"].baseline.counts(now);
    assert!(state.end_bake_for_next(least, now));
    assert_eq!(state.probes["api"].baseline.counts(now), known_good);
    assert_eq!(state.probes["new"].baseline.counts(now), (0, 60));
    assert!(!state.end_bake_for_next(least, now));
}

#[test]
fn the_latest_eight_results_are_kept_of_each_endpoint() {
    let mut latest = LatestResults::default();
    assert!(latest.shard().abs() < f64::EPSILON);
    for outcome in [
        TickOutcome::Failure,
        TickOutcome::Unknown,
        TickOutcome::NotDue,
        TickOutcome::Success,
    ] {
        latest.take(outcome);
    }
    assert!((latest.shard() - 0.5).abs() < f64::EPSILON);
    for _ in 0..8 {
        latest.take(TickOutcome::Success);
    }
    assert_eq!((latest.failures, latest.count), (0, 8));
}
