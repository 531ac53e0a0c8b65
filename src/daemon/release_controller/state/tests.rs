//! What an older version wrote is read, and comes back as it was.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::float_cmp,
    reason = "a test may end where it stands, and whole milliseconds are exact"
)]

use super::*;
use crate::core::analysis::{AnalysisStart, Rule, Tick};
use crate::core::revision_ledger;
use crate::core::rollout::{Mode, RevisionOrigin, RollbackAttempt, RolloutInput, RolloutLimits};
use crate::core::units::{Namespace, ReleaseName};
use crate::storage::{StateStore, StoredKind, StoredState};

/// When everything in the state below began.
pub(in crate::daemon::release_controller) const START: Time = Time::from_millis(1_700_000_000_000);

/// The state as the first version wrote it: see [`state`]. It is never written anew; a later format gets its own.
const V1: &str = include_str!("v1.json");

pub(in crate::daemon::release_controller) fn names() -> (Namespace, ReleaseName) {
    (Namespace::new("shop"), ReleaseName::new("web"))
}

fn seen(revision: u32, origin: RevisionOrigin, serving: Option<u32>) -> RolloutInput {
    RolloutInput::Seen {
        revision: Revision(revision),
        origin,
        serving: serving.map(Revision),
        appears: crate::core::rollout::Appearance::New,
    }
}

/// A state in which nothing is missing: a revision was rolled back, and the next but one is watched.
pub(in crate::daemon::release_controller) fn state() -> (State, Time) {
    let limits = RolloutLimits {
        mode: Mode::Enforce,
        max_per_day: 2,
        watch: Duration::from_secs(300),
        settle_cap: Duration::from_secs(90),
    };
    let mut now = START;
    let mut state = State::new(Rollout::new(limits, now));
    let regressed = RolloutInput::Regressed {
        revision: Revision(2),
        reason: "hard_down:api".into(),
        text: "api failed 15 times in a row".into(),
    };
    let story = [
        seen(1, RevisionOrigin::First, None),
        seen(2, RevisionOrigin::Upgrade, Some(1)),
        RolloutInput::RolloutComplete,
        RolloutInput::TroubleBegan,
        regressed,
        RolloutInput::Ready {
            target: Revision(1),
        },
        RolloutInput::Executed {
            attempt: RollbackAttempt {
                bad: Revision(2),
                begun: START + Duration::from_secs(60),
            },
            created_revision: Revision(3),
        },
        RolloutInput::RolloutComplete,
        RolloutInput::Recovered,
        seen(4, RevisionOrigin::Upgrade, Some(3)),
        RolloutInput::RolloutComplete,
        RolloutInput::TroubleBegan,
    ];
    for event in story {
        now = now + Duration::from_secs(10);
        state.rollout.step(event, now);
        state.entries.extend(state.rollout.take_entries());
    }
    for outcome in [
        TickOutcome::Success,
        TickOutcome::Failure,
        TickOutcome::Success,
    ] {
        let known = state.probes.entry("api".into()).or_default();
        known.baseline.record(outcome, START);
        known.candidate.record(outcome, now);
        known.looked(true);
        known.well = true;
    }
    state.ledger.write(revision_ledger::LedgerEntry {
        digest: revision_ledger::ContentDigest("0123456789abcdef".into()),
        weak: None,
        revision: Revision(1),
        found: revision_ledger::ContentVerdict::Good,
        at: START,
        evidence: "served well".into(),
    });
    let start = AnalysisStart {
        endpoints: vec!["api".into()],
        baseline: vec![(0, 3600)],
        failing_at_start: vec![false],
        ..AnalysisStart::default()
    };
    let mut analysis = Analysis::new(Rule::default(), &start).unwrap();
    for _ in 0..10 {
        analysis.tick(&Tick {
            outcomes: &[TickOutcome::Success],
            ..Tick::default()
        });
    }
    analysis.complete(4.0);
    let began = START + Duration::from_secs(100);
    state.deployed = Some(Revision(3));
    state.recorded = Some((Revision(4), began));
    state.rejected = Some(analysis.clone());
    state.verdict = Some(VerdictView {
        revision: 2,
        verdict: "rollback".into(),
        reason: "hard_down:api".into(),
        text: "api failed 15 times in a row".into(),
        failing: vec!["api: connect 15 times".into()],
        otherwise: "it would have had to answer once".into(),
        slower: None,
        at: (START + Duration::from_secs(50)).unix_seconds(),
    });
    state.fence = 7;
    let mut running = RunningAnalysis {
        revision: Revision(4),
        first: None,
        began,
        analysis,
        pods: vec![recording::RecordedPod {
            pod: 0,
            name: "web-1".into(),
            side: crate::core::analysis::PodSide::New,
            ready_tick: 1,
        }],
        direct: vec![true],
        failing: vec![BTreeMap::from([("connect".into(), 1)])],
        last_bad: Some(3),
        reported_pods: BTreeMap::from([("web-1".into(), ReportedPod::default())]),
        told: vec![ReportedWorkload::default()],
        hurried_until: Some(now),
        old: OldPodFailures::default(),
        alerts: Vec::new(),
        e_values: Vec::new(),
        was_complete: false,
        rolled_out: None,
        tick_buffer: TickBuffer::new(1),
        needed: Vec::new(),
        tick: recording::RecordedTick::default(),
    };
    running.e_values();
    state.running = Some(running);
    (state, now)
}

fn stored(text: &str, now: Time) -> StoredState<State> {
    let folder = tempfile::tempdir().unwrap();
    let store = StateStore::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("shop.web.json"), text).unwrap();
    let (namespace, release) = names();
    store.load(StoredKind::State, &namespace, &release, now)
}

/// All numbers in a text of JSON that can only be points in time, as milliseconds: these are written in milliseconds,
/// in seconds, and in minutes.
fn times(value: &serde_json::Value, path: &str, found: &mut BTreeMap<String, f64>) {
    match value {
        serde_json::Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let unit = [1.0, 1e3, 6e4];
            let unit = unit.into_iter().find(|unit| {
                let millis = number * unit;
                (1.6e12..1.8e12).contains(&millis)
            });
            if let Some(unit) = unit {
                found.insert(path.to_owned(), number * unit);
            }
        }
        serde_json::Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                times(value, &format!("{path}/{at}"), found);
            }
        }
        serde_json::Value::Object(values) => {
            for (name, value) in values {
                times(value, &format!("{path}/{name}"), found);
            }
        }
        serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::String(_) => {}
    }
}

#[test]
fn every_time_of_a_state_is_moved_to_our_clock() {
    let (mut state, _) = state();
    state.counts_since = Some(START);
    let of = |state: &State| {
        let mut found = BTreeMap::new();
        times(&serde_json::to_value(state).unwrap(), "", &mut found);
        // It is a name.
        found.remove("/recorded/1");
        found
    };
    let before = of(&state);
    assert!(before.len() >= 20, "{before:#?}");
    let by = Duration::from_secs(40 * 60);
    state.shift(ClockShift::between(START, START + by));
    let after = of(&state);
    assert_eq!(before.len(), after.len());
    for (path, was) in before {
        assert_eq!(after[&path] - was, by.as_secs_f64() * 1e3, "{path}");
    }
}

#[test]
fn a_watch_begun_by_another_clock_goes_on_at_the_right_tick() {
    let minutes = Duration::from_secs(40 * 60);
    for writer_is_ahead in [true, false] {
        let (state, saved) = state();
        let next = state.next_tick().unwrap();
        let waits = ClockShift::between(saved, next);
        // The present of whoever wrote it is forty minutes away by our clock.
        let ours = if writer_is_ahead {
            Time::from_millis(saved.millis() - 2_400_000)
        } else {
            saved + minutes
        };
        let mut moved = state.clone();
        moved.shift(ClockShift::between(saved, ours));
        let next = moved.next_tick().unwrap();
        assert_eq!(ClockShift::between(ours, next), waits);
        let deadlines = (state.rollout.deadline(), moved.rollout.deadline());
        let (Some(was), Some(is)) = deadlines else {
            panic!("{deadlines:?}");
        };
        assert_eq!(
            ClockShift::between(ours, is),
            ClockShift::between(saved, was)
        );
        assert_eq!(
            moved.rollout.rollbacks_today(ours),
            state.rollout.rollbacks_today(saved)
        );
    }
}

#[test]
fn the_state_of_an_older_version_is_read() {
    let (mut state, now) = state();
    // Its sentences are stored, in the words of that version.
    let v1 = V1.replace("Turned back", "Rolled back");
    let StoredState::State(read) = stored(&v1, now) else {
        panic!("{v1}");
    };
    assert_eq!(read.entries.len(), state.entries.len());
    state.entries.clone_from(&read.entries);
    // A watch of the first version of the rule cannot be gone on with: it begins anew.
    state.running = None;
    state.rejected = None;
    assert_eq!(read.clone().bounded().unwrap(), state);
    assert!(read.rollout.phase().candidate().is_some() && read.rollout.finished().len() == 1);
}

#[test]
fn what_was_measured_before_a_late_rollout_was_complete_is_not_its_own() {
    let (mut state, now) = state();
    let newest = RolloutInput::NotRolledOut {
        revision: Revision(4),
        text: "Deployment api: 0 of 3 pods".into(),
    };
    state.rollout.step(newest, now);
    assert!(state.rollout.may_complete_late());
    let verdict = state.verdict.clone().unwrap();
    state.completes_late();
    assert_eq!(state.probes["api"].candidate, Baseline::default());
    assert_eq!(state.verdict.clone().unwrap(), verdict, "of revision 2");
    state.verdict = Some(VerdictView {
        revision: 4,
        ..verdict
    });
    state.completes_late();
    assert_eq!(state.verdict.unwrap().reason, "rolled_out_late");
}

/// A verification of these endpoints, with ticks of a second.
fn verifying(endpoints: [&str; 3]) -> RunningVerification {
    let start = AnalysisStart {
        endpoints: endpoints.map(Into::into).to_vec(),
        baseline: vec![(0, 3600); 3],
        failing_at_start: vec![false; 3],
        ..AnalysisStart::default()
    };
    let analysis = Analysis::new(Rule::default(), &start).unwrap();
    RunningVerification {
        began: START,
        verification: Verification::at_pace(&analysis, 1.0),
        tick_buffer: TickBuffer::new(3),
        interval: Duration::from_secs(1),
        is_limited: false,
        excused: ExcusedProbes::default(),
    }
}

#[test]
fn a_verification_takes_each_result_in_its_own_tick() {
    let mut verifying = verifying(["api", "db", "web"]);
    let mut ends = None;
    for tick in 1..=60 {
        let outcome = if tick <= 20 {
            TickOutcome::Failure
        } else {
            TickOutcome::Success
        };
        for name in ["web", "db", "another", "api"] {
            verifying.hears(name, outcome, None);
        }
        ends = verifying.tick(false, |_| None).map(|end| (tick, end));
        if ends.is_some() {
            break;
        }
    }
    assert_eq!(ends, Some((35, VerificationOutcome::Recovered)));
}

#[test]
fn a_verification_does_not_judge_failures_of_a_probe_whose_dependency_fails() {
    let postgres = NeedsEntry::Dependency("postgres".into());
    for knows_at in ["the result", "the tick", "never"] {
        let mut verifying = verifying(["api", "db", "web"]);
        let mut ends = None;
        for _ in 0..60 {
            let need = (knows_at == "the result").then_some(&postgres);
            verifying.hears("api", TickOutcome::Success, None);
            verifying.hears("db", TickOutcome::Failure, need);
            verifying.hears("web", TickOutcome::Success, None);
            let need = (knows_at == "the tick").then_some(&postgres);
            ends = verifying.tick(false, |probe| need.filter(|_| probe == "db"));
            if ends.is_some() {
                break;
            }
        }
        let says = "postgres failed, so that failures of db meanwhile are not judged";
        if knows_at == "never" {
            let worse = VerificationOutcome::Worsened("db 15/15 (100 %)".into());
            assert_eq!(ends, Some(worse));
            assert_eq!(verifying.excused.news(), None);
        } else {
            assert_eq!(ends, Some(VerificationOutcome::Recovered), "{knows_at}");
            assert_eq!(verifying.excused.news().as_deref(), Some(says));
        }
    }
}
