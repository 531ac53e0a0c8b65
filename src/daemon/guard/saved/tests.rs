//! What an older version wrote is read, and comes back as it was.

#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use super::*;
use crate::ledger;
use crate::rollout::{Event, Limits, Mode, Origin};
use crate::store::{Found, Kind, Store};
use crate::units::{Namespace, ReleaseName};
use crate::verdict::{Rule, Start, Tick};

/// When everything in the state below began.
pub(in crate::daemon::guard) const START: Time = Time::from_millis(1_700_000_000_000);

/// The state as the first version wrote it: see [`state`]. It is never written anew; a later format gets its own.
const V1: &str = include_str!("v1.json");

pub(in crate::daemon::guard) fn names() -> (Namespace, ReleaseName) {
    (Namespace::new("shop"), ReleaseName::new("web"))
}

fn seen(revision: u32, origin: Origin, serving: Option<u32>) -> Event {
    Event::Seen {
        revision: Revision(revision),
        origin,
        serving: serving.map(Revision),
    }
}

/// A state in which nothing is missing: a revision was turned back, and the next but one is watched.
pub(in crate::daemon::guard) fn state() -> (State, Time) {
    let limits = Limits {
        mode: Mode::Enforce,
        max_per_day: 2,
        watch: Duration::from_secs(300),
        settle_cap: Duration::from_secs(90),
    };
    let mut now = START;
    let mut state = State::new(Rollout::new(limits, now));
    let regressed = Event::Regressed {
        revision: Revision(2),
        reason: "hard_down:api".into(),
        text: "api failed 15 times in a row".into(),
    };
    let story = [
        seen(1, Origin::First, None),
        seen(2, Origin::Upgrade, Some(1)),
        Event::Settled,
        Event::FirstBad,
        regressed,
        Event::Ready {
            target: Revision(1),
        },
        Event::Executed(Revision(3)),
        Event::Settled,
        Event::Recovered,
        seen(4, Origin::Upgrade, Some(3)),
        Event::Settled,
        Event::FirstBad,
    ];
    for event in story {
        now = now + Duration::from_secs(10);
        state.rollout.step(event, now);
        state.entries.extend(state.rollout.take_entries());
    }
    for mark in [Mark::Good, Mark::Bad, Mark::Good] {
        let known = state.probes.entry("api".into()).or_default();
        known.baseline.record(mark, START);
        known.candidate.record(mark, now);
        known.looked(true);
        known.well = true;
    }
    state.ledger.write(ledger::Entry {
        digest: ledger::Digest("0123456789abcdef".into()),
        revision: Revision(1),
        found: ledger::Found::Good,
        at: START,
        evidence: "served well".into(),
    });
    let start = Start {
        endpoints: vec!["api".into()],
        baseline: vec![(0, 3600)],
        failing_at_start: vec![false],
        ..Start::default()
    };
    let mut watch = Watch::new(Rule::default(), &start).unwrap();
    for _ in 0..10 {
        watch.tick(&Tick {
            marks: &[Mark::Good],
            ..Tick::default()
        });
    }
    watch.settled(4.0);
    let began = START + Duration::from_secs(100);
    state.deployed = Some(Revision(3));
    state.recorded = Some((Revision(4), began));
    state.convicted = Some(watch.clone());
    state.verdict = Some(VerdictView {
        revision: 2,
        verdict: "rollback".into(),
        reason: "hard_down:api".into(),
        text: "api failed 15 times in a row".into(),
        failing: vec!["api: connect 15 times".into()],
        otherwise: "it would have had to answer once".into(),
        at: (START + Duration::from_secs(50)).unix_seconds(),
    });
    state.fence = 7;
    let mut watching = Watching {
        revision: Revision(4),
        began,
        watch,
        pods: vec![recording::Pod {
            pod: 0,
            name: "web-1".into(),
            side: crate::verdict::Side::New,
            node: 0,
            ready_tick: 1,
        }],
        nodes: vec!["node-1".into()],
        direct: vec![true],
        failing: vec![BTreeMap::from([("connect".into(), 1)])],
        last_bad: Some(3),
        crashes: BTreeMap::from([("web-1".into(), (1, false))]),
        stuck: BTreeMap::from([("web-2".into(), now)]),
        alerts: Vec::new(),
        trace: Vec::new(),
        inbox: Inbox::new(1),
        tick: recording::Recorded::default(),
    };
    watching.trace();
    state.watching = Some(watching);
    (state, now)
}

fn stored(text: &str, now: Time) -> Found<State> {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    std::fs::write(folder.path().join("shop.web.json"), text).unwrap();
    let (namespace, release) = names();
    store.load(Kind::State, &namespace, &release, now)
}

#[test]
fn the_state_of_an_older_version_is_read() {
    let (state, now) = state();
    let Found::State(read) = stored(V1, now) else {
        panic!("{V1}");
    };
    assert_eq!(read.clone().bounded().unwrap(), state);
    assert!(read.rollout.phase().case().is_some() && read.rollout.past().len() == 1);
}
