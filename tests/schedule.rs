//! The schedule's thread, with the machine's own clock or one that can be put forward.

#![allow(clippy::unwrap_used)] // Clippy's own exception covers test functions, not their helpers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leadsman::core::units::{Moment, Namespace, ProbeId, ProbeName, ReleaseName};
use leadsman::platform::clock;
use leadsman::prober::schedule::{DueSlot, Schedule, ScheduledSlot};

/// Far longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

fn slot<T>(name: &str, interval: Duration, payload: T) -> ScheduledSlot<T> {
    ScheduledSlot {
        key: ProbeId {
            namespace: Namespace::new("shop"),
            release: ReleaseName::new("shop"),
            probe: ProbeName::new(name),
        },
        interval,
        payload,
    }
}

#[track_caller]
fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = clock::now();
    while !condition() {
        assert!(clock::now().since(start) < DEADLINE, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What was started: name, due time, missed before it.
type Log = Arc<Mutex<Vec<(&'static str, Moment, u64)>>>;

fn logging(clock: fn() -> Moment) -> (Schedule<&'static str>, Log) {
    let log = Log::default();
    let schedule = Schedule::start(clock, {
        let log = Arc::clone(&log);
        move |due| {
            log.lock().unwrap().push((*due.payload, due.at, due.missed));
        }
    });
    (schedule.unwrap(), log)
}

fn count(log: &Log, name: &str) -> usize {
    log.lock().unwrap().iter().filter(|s| s.0 == name).count()
}

#[test]
fn a_change_wakes_the_thread_and_starts_keep_to_the_interval() {
    let (schedule, log) = logging(clock::now);
    let before = clock::now();
    schedule.set(vec![slot("a", Duration::from_millis(50), "a")]);
    wait_until("a starts ten times", || count(&log, "a") >= 10);
    schedule.set(vec![
        slot("a", Duration::from_millis(50), "a"),
        slot("b", Duration::from_secs(3600), "b"),
    ]);
    wait_until("b starts although its interval is an hour", || {
        count(&log, "b") == 1
    });
    schedule.set(vec![slot("b", Duration::from_secs(3600), "b")]);
    schedule.stop();

    let log = log.lock().unwrap();
    let of_a: Vec<_> = log.iter().filter(|start| start.0 == "a").collect();
    assert!(of_a[0].1 > before);
    // The very first is due at once, off the grid.
    for pair in of_a[1..].windows(2) {
        let slots = u32::try_from(pair[1].2).unwrap() + 1;
        assert_eq!(
            pair[1].1.since(pair[0].1),
            Duration::from_millis(50) * slots
        );
    }
    assert_eq!(log.iter().filter(|start| start.0 == "b").count(), 1);
}

#[test]
fn after_the_stop_nothing_starts_and_payloads_are_gone() {
    let payload = Arc::new(AtomicU64::new(0));
    let schedule = Schedule::start(clock::now, |due: DueSlot<'_, Arc<AtomicU64>>| {
        due.payload.fetch_add(1, Ordering::Relaxed);
    })
    .unwrap();
    let every = Duration::from_millis(10);
    schedule.set(vec![
        slot("a", every, Arc::clone(&payload)),
        slot("b", every, Arc::clone(&payload)),
    ]);
    wait_until("they start", || payload.load(Ordering::Relaxed) > 5);
    schedule.set(vec![slot("a", every, Arc::clone(&payload))]);
    wait_until("the removed payload is dropped", || {
        Arc::strong_count(&payload) == 2
    });
    assert!(schedule.is_running());
    schedule.stop();
    assert_eq!(Arc::strong_count(&payload), 1);
}

#[test]
fn the_pulse_goes_on_with_nothing_to_do_and_sees_no_stall_that_was_not() {
    let (schedule, _) = logging(clock::now);
    let first = schedule.heartbeat();
    assert!(first.beat > Moment::default());
    let heartbeat_cell = schedule.heartbeat_cell();
    wait_until("a later beat", || {
        heartbeat_cell.heartbeat().beat > first.beat + Duration::from_millis(600)
    });
    schedule.stop();
}

#[test]
fn a_start_that_panics_is_seen_and_blocks_nobody() {
    let schedule = Schedule::start(clock::now, |_due: DueSlot<'_, ()>| {
        panic!("as a mistake in a start would");
    })
    .unwrap();
    schedule.set(vec![slot("a", Duration::from_millis(10), ())]);
    wait_until("the thread is gone", || !schedule.is_running());
    for _ in 0..100 {
        schedule.set(vec![slot("a", Duration::from_millis(10), ())]);
    }
    schedule.stop();
}

/// Nanoseconds by which the clock of the next test is ahead.
static AHEAD: AtomicU64 = AtomicU64::new(0);

fn jumping() -> Moment {
    clock::now() + Duration::from_nanos(AHEAD.load(Ordering::SeqCst))
}

#[test]
fn a_suspended_hour_is_a_stall_and_its_slots_are_missed() {
    const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let every = Duration::from_millis(1_100);
    let (schedule, log) = logging(jumping);
    schedule.set(NAMES.iter().map(|name| slot(name, every, *name)).collect());
    wait_until("all start", || {
        NAMES.iter().all(|name| count(&log, name) >= 1)
    });

    let asleep = jumping();
    AHEAD.store(3_600_000_000_000, Ordering::SeqCst);
    let awake = asleep + Duration::from_secs(3600);
    wait_until("all start again", || {
        let log = log.lock().unwrap();
        let back = |name: &&str| log.iter().any(|s| s.0 == *name && s.1 > awake);
        NAMES.iter().all(back)
    });
    let stall = schedule.heartbeat().last_stall_end;
    assert!(stall.is_some_and(|end| end >= awake), "{stall:?}");
    schedule.stop();

    let log = log.lock().unwrap();
    for name in NAMES {
        // Slots are neither lost nor made up: between any two starts of the grid lie the missed ones.
        let starts: Vec<_> = log.iter().filter(|start| start.0 == name).skip(1).collect();
        for pair in starts.windows(2) {
            let slots = pair[1].1.since(pair[0].1).as_nanos() / every.as_nanos();
            assert_eq!(u128::from(pair[1].2) + 1, slots, "{name}");
        }
        let missed: u64 = log.iter().filter(|s| s.0 == name).map(|s| s.2).sum();
        // 3600 s / 1.1 s, give or take what a busy machine adds.
        assert!((3_271..3_300).contains(&missed), "{name}: {missed}");
    }
}
