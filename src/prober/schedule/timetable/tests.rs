use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::core::units::{Namespace, ProbeName, ReleaseName};

fn key(number: usize) -> ProbeId {
    ProbeId {
        namespace: Namespace::new("shop"),
        release: ReleaseName::new("shop"),
        probe: ProbeName::new(format!("probe-{number}")),
    }
}

fn slot(number: usize, interval: Duration) -> ScheduledSlot<usize> {
    ScheduledSlot {
        key: key(number),
        interval,
        payload: number,
    }
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn at(millis: u64) -> Moment {
    Moment::after_boot(ms(millis))
}

/// What starts at `now`: which, when it was due, and what was missed before it.
fn starts(table: &mut Timetable<usize>, now: Moment) -> Vec<(usize, Moment, u64)> {
    let mut all = Vec::new();
    while let Some(due) = table.pop_due(now) {
        all.push((*due.payload, due.at, due.missed));
    }
    all
}

/// Wakes exactly at each due time until `end`.
fn punctual(table: &mut Timetable<usize>, end: Moment) -> Vec<(usize, Moment, u64)> {
    let mut all = Vec::new();
    while let Some(due) = table.next_due().filter(|due| *due <= end) {
        all.extend(starts(table, due));
    }
    all
}

#[test]
fn the_phase_of_a_key_never_changes() {
    // Literal values: whoever changes the hash moves every probe of every user at the next update.
    assert_eq!(stable_hash(&key(0)), 0xdefe_f584_1a4c_dd85);
    assert_eq!(stable_hash(&key(1)), 0x2797_440c_c92f_6ef0);
}

#[test]
fn names_are_kept_apart_in_the_hash() {
    let id = |namespace: &str, release: &str, probe: &str| ProbeId {
        namespace: Namespace::new(namespace),
        release: ReleaseName::new(release),
        probe: ProbeName::new(probe),
    };
    assert_ne!(
        stable_hash(&id("a", "bc", "d")),
        stable_hash(&id("ab", "c", "d"))
    );
}

#[test]
fn after_an_addition_all_are_started_within_a_second_and_spread_over_it() {
    for interval in [ms(100), ms(1_000), ms(7_300), ms(86_400_000)] {
        let within = interval.min(FIRST_WITHIN);
        let now = at(5_000_123);
        let mut table = Timetable::default();
        table.set(now, (0..1000).map(|n| slot(n, interval)).collect());
        let mut tenths = [0_u32; 10];
        for entry in &table.entries {
            let wait = entry.due.since(now);
            assert!(
                wait > Duration::ZERO && wait <= within,
                "{interval:?}: {wait:?}"
            );
            let tenth = (wait.as_nanos() * 10 / within.as_nanos()).min(9);
            tenths[usize::try_from(tenth).unwrap()] += 1;
        }
        // 100 each if perfectly even; six standard deviations of chance are 57.
        assert!(
            tenths.iter().all(|count| (43..=157).contains(count)),
            "{interval:?}: {tenths:?}"
        );
    }
}

#[test]
fn at_the_begin_one_slot_is_due_at_once_and_the_second_is_on_the_grid() {
    let now = at(5_000_123);
    for interval in [ms(100), ms(1_000), ms(60_000)] {
        let mut table = Timetable::default();
        table.begin(now);
        assert!(table.next_due().is_none());
        table.set(now, (0..4).map(|n| slot(n, interval)).collect());
        let others = |table: &Timetable<usize>| {
            let mut due: Vec<_> = table.entries.iter().map(|entry| entry.due).collect();
            due.sort();
            due.split_off(1)
        };
        let before = others(&table);
        table.begin(now);
        assert_eq!(table.next_due(), Some(now));
        assert_eq!(others(&table), before, "nobody else is touched");
        let number = *table.pop_due(now).unwrap().payload;
        let second = table.entries[number].due;
        assert_eq!(second, table.entries[number].grid.after(now));
        assert!(second.since(now) >= interval / 2);
    }
}

#[test]
fn after_the_first_start_the_next_is_on_the_grid_and_nothing_is_missed() {
    for interval in [
        ms(100),
        ms(999),
        ms(1_000),
        ms(1_001),
        ms(7_300),
        ms(60_000),
    ] {
        for number in 0..50 {
            let mut table = Timetable::default();
            table.set(at(777_777), vec![slot(number, interval)]);
            let all = punctual(&mut table, at(777_777) + interval * 5);
            assert!(all.len() >= 4);
            let gap = all[1].1.since(all[0].1);
            assert!(
                gap >= interval / 2 && gap < interval * 3 / 2,
                "{interval:?}: {gap:?}"
            );
            for (index, (_, due, missed)) in all.iter().enumerate() {
                assert_eq!(*missed, 0);
                if index > 0 {
                    let phase = u128::from(stable_hash(&key(number))) % interval.as_nanos();
                    assert_eq!(u128::from(due.nanos()) % interval.as_nanos(), phase);
                }
            }
        }
    }
}

#[test]
fn a_restart_leads_back_to_the_same_grid() {
    let run = |start: u64| {
        let mut table = Timetable::default();
        table.set(at(start), vec![slot(3, ms(7_300))]);
        punctual(&mut table, at(200_000))
            .into_iter()
            .map(|(_, due, _)| due)
            .filter(|due| *due > at(150_000))
            .collect::<Vec<_>>()
    };
    assert!(!run(0).is_empty());
    assert_eq!(run(0), run(123_456));
}

#[test]
fn a_slot_that_is_not_too_late_starts_late_and_the_next_is_on_time() {
    let mut table = Timetable::default();
    table.set(at(0), vec![slot(0, ms(10_000))]);
    let all = punctual(&mut table, at(30_000));
    let next = all.last().unwrap().1 + ms(10_000);
    assert_eq!(starts(&mut table, next + ms(999)), vec![(0, next, 0)]);
    assert_eq!(table.next_due(), Some(next + ms(10_000)));
}

#[test]
fn after_an_hour_of_standstill_there_is_no_burst_and_the_gap_is_counted() {
    let mut table = Timetable::default();
    table.set(at(0), (0..1000).map(|n| slot(n, ms(10_000))).collect());
    punctual(&mut table, at(60_000));
    let resumed = at(60_000 + 3_600_000);
    // What was due in the last second may start: a tenth of all, give or take.
    let mut all = starts(&mut table, resumed);
    assert!(all.len() < 200, "{} at once", all.len());
    all.extend(punctual(
        &mut table,
        resumed + ms(9_000) - Duration::from_nanos(1),
    ));
    let mut seen: Vec<_> = all.iter().map(|(number, ..)| *number).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..1000).collect::<Vec<_>>(), "each exactly once");
    // 360 slots in the hour; the one that started is not among the missed.
    assert!(all.iter().all(|(.., missed)| (359..=360).contains(missed)));
}

#[test]
fn a_change_touches_only_what_changed() {
    let mut table = Timetable::default();
    table.set(at(0), (0..4).map(|n| slot(n, ms(5_000))).collect());
    punctual(&mut table, at(20_000));
    let due_of = |table: &Timetable<usize>, number| {
        let entry = table.entries.iter().find(|entry| entry.key == key(number));
        entry.map(|entry| entry.due)
    };
    let before: Vec<_> = (0..4).map(|n| due_of(&table, n)).collect();
    // 0 goes, 1 gets another payload, 2 another interval, 3 stays, 4 comes, and comes twice.
    let mut other = slot(1, ms(5_000));
    other.payload = 100;
    table.set(
        at(20_001),
        vec![
            slot(4, ms(500)),
            slot(3, ms(5_000)),
            slot(2, ms(300)),
            other,
            slot(4, ms(9_000)),
        ],
    );
    assert_eq!(table.entries.len(), 4);
    assert_eq!(due_of(&table, 0), None);
    assert_eq!(due_of(&table, 1), before[1]);
    assert_eq!(due_of(&table, 3), before[3]);
    assert!(due_of(&table, 2).unwrap() <= at(20_301));
    assert!(due_of(&table, 4).unwrap() <= at(20_501));
    let all = punctual(&mut table, at(30_000));
    assert!(all.iter().any(|(payload, ..)| *payload == 100));
    assert!(
        !all.iter()
            .any(|(payload, ..)| *payload == 0 || *payload == 1)
    );
}

#[test]
fn an_empty_timetable_is_never_due_and_a_zero_interval_does_not_spin() {
    let mut table = Timetable::default();
    assert_eq!(table.next_due(), None);
    assert_eq!(table.pop_due(at(1)), None);
    table.set(at(0), vec![slot(0, Duration::ZERO)]);
    assert_eq!(punctual(&mut table, at(10)).len(), 10);
    table.set(at(10), Vec::new());
    assert_eq!(table.next_due(), None);
}

/// One thing that happens, so many milliseconds after the last.
#[derive(Debug, Clone)]
struct Step {
    wait: u64,
    /// The new wanted set (number, interval in ms), or just a wake-up.
    set: Option<BTreeMap<usize, u64>>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait = prop_oneof![8 => 0_u64..400, 3 => 400_u64..3_000, 1 => 3_000_u64..4_000_000];
    let wanted = prop::collection::btree_map(
        0_usize..6,
        prop_oneof![
            Just(100_u64),
            Just(700),
            Just(1_000),
            Just(1_700),
            Just(10_000)
        ],
        0..6,
    );
    let set = prop_oneof![5 => Just(None), 1 => wanted.prop_map(Some)];
    prop::collection::vec(
        (wait, set).prop_map(|(wait, set)| Step { wait, set }),
        1..120,
    )
}

/// Runs the steps, each wake-up as late as it says, showing the table only the probes that `shown` allows.
fn run(steps: &[Step], shown: impl Fn(usize) -> bool) -> Vec<(usize, Moment, u64, Moment)> {
    let mut table = Timetable::default();
    let mut now = at(1_000_000);
    let mut log = Vec::new();
    for step in steps {
        now = now + ms(step.wait);
        if let Some(wanted) = &step.set {
            let wanted = wanted.iter().filter(|(number, _)| shown(**number));
            table.set(now, wanted.map(|(n, i)| slot(*n, ms(*i))).collect());
        }
        for (number, due, missed) in starts(&mut table, now) {
            log.push((number, due, missed, now));
        }
    }
    log
}

proptest! {
    #[test]
    fn a_probe_does_not_notice_the_others(steps in steps()) {
        let together = run(&steps, |_| true);
        for number in 0..6 {
            let of_it: Vec<_> = together.iter().filter(|start| start.0 == number).copied().collect();
            prop_assert_eq!(of_it, run(&steps, |shown| shown == number));
        }
    }

    #[test]
    fn one_wake_up_starts_a_probe_at_most_once_and_no_slot_that_is_too_late(steps in steps()) {
        let log = run(&steps, |_| true);
        let mut seen = std::collections::BTreeSet::new();
        for (number, due, _, now) in log {
            prop_assert!(due <= now);
            prop_assert!(now.since(due) < TOO_LATE);
            prop_assert!(seen.insert((number, now)), "{} twice at {:?}", number, now);
        }
    }

    #[test]
    fn started_and_missed_are_all_slots_of_the_grid(
        interval in prop_oneof![Just(100_u64), Just(700), Just(1_000), Just(1_700), Just(10_000)],
        number in 0_usize..50,
        waits in prop::collection::vec(prop_oneof![5 => 0_u64..400, 1 => 400_u64..100_000], 1..200),
    ) {
        let mut table = Timetable::default();
        let mut now = at(123_456);
        table.set(now, vec![slot(number, ms(interval))]);
        let first = table.next_due().unwrap();
        let (mut started, mut missed) = (0_u64, 0_u64);
        for wait in waits {
            now = now + ms(wait);
            for (_, due, gap) in starts(&mut table, now) {
                started += 1;
                missed += gap;
                // Counted by hand: the first slot, then every point of the grid from half an interval later on.
                prop_assert_eq!(started + missed, slots_by_hand(first, due, interval, number));
            }
            let open = table.entries[0].missed;
            prop_assert_eq!(started + missed + open, slots_by_hand(first, now, interval, number));
        }
    }
}

/// Slots from the first one to `end`, both included, counted point by point.
fn slots_by_hand(first: Moment, end: Moment, interval_ms: u64, number: usize) -> u64 {
    if end < first {
        return 0;
    }
    let interval = interval_ms * 1_000_000;
    let mut point = stable_hash(&key(number)) % interval;
    let from = first.nanos() + interval / 2;
    point += from.saturating_sub(point) / interval * interval;
    let mut count = 1;
    while point <= end.nanos() {
        count += u64::from(point >= from);
        point += interval;
    }
    count
}
