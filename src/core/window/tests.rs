#![allow(clippy::cast_sign_loss)]

use super::*;
use crate::core::probe_result::UnknownReason;
use proptest::prelude::*;

const SPAN: Duration = Duration::from_secs(300);
const SLOT: u64 = 10_000;

fn ms(millis: u64) -> Moment {
    Moment::after_boot(Duration::from_millis(millis))
}

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

#[test]
fn an_empty_window_says_nothing() {
    let mut window = Window::new(SPAN, 400);
    assert_eq!(window.counts(ms(1)), WindowCounts::default());
    assert_eq!(window.error_rate(ms(1)), None);
    assert_eq!(window.quantiles(ms(1)), [None; 5]);
}

#[test]
fn void_and_missed_are_counted_and_are_no_evidence() {
    let mut window = Window::new(SPAN, 400);
    window.record(ms(1), micros(5), Outcome::Unknown(UnknownReason::Late));
    window.missed(ms(2), 3);
    let counts = window.counts(ms(2));
    assert_eq!((counts.unknown, counts.missed), (1, 3));
    assert_eq!(counts.error_rate(), None);
    window.record(ms(3), micros(5), Outcome::Success);
    assert_eq!(window.error_rate(ms(3)).map(ErrorRate::ratio), Some(0.0));
}

#[test]
fn a_quantile_is_given_from_the_sample_on_that_proves_it() {
    check_needs(Quantile::P50, 2);
    check_needs(Quantile::P90, 10);
    check_needs(Quantile::P95, 20);
    check_needs(Quantile::P99, 100);
    check_needs(Quantile::P999, 1000);
}

#[track_caller]
fn check_needs(quantile: Quantile, needed: u64) {
    let mut window = Window::new(SPAN, 2000);
    for n in 1..needed {
        window.record(ms(n), micros(n), Outcome::Success);
        assert_eq!(window.quantile(quantile, ms(n)), None, "{n} samples");
    }
    window.record(ms(needed), micros(needed), Outcome::Success);
    assert!(window.quantile(quantile, ms(needed)).is_some());
}

#[test]
fn failures_are_in_the_latency() {
    let mut window = Window::new(SPAN, 400);
    let slow = Duration::from_secs(5);
    window.record(ms(1), micros(100), Outcome::Success);
    window.record(ms(2), slow, Outcome::Failure(Reason::HeaderTimeout));
    window.record(ms(3), slow, Outcome::Failure(Reason::HeaderTimeout));
    assert_eq!(window.quantile(Quantile::P50, ms(3)), Some(slow));
    assert_eq!(window.reasons(ms(3))[Reason::HeaderTimeout.index()], 2);
}

#[test]
fn a_gap_longer_than_the_window_empties_it() {
    let mut window = Window::new(SPAN, 400);
    window.record(ms(5), micros(5), Outcome::Success);
    window.missed(ms(5), 1);
    window.record(ms(5), micros(5), Outcome::Unknown(UnknownReason::File));
    assert_eq!(window.counts(ms(299_999)).success, 1);
    assert_eq!(window.counts(ms(300_000)), WindowCounts::default());
    // A gap of years does not take longer.
    window.record(ms(400_000), micros(5), Outcome::Success);
    let later = Moment::after_boot(Duration::MAX);
    assert_eq!(window.counts(later), WindowCounts::default());
    window.record(later, micros(5), Outcome::Success);
    assert_eq!(window.counts(later).success, 1);
}

#[test]
fn latencies_out_of_range_are_kept_at_the_bounds() {
    for most in [50, 500] {
        let mut window = Window::new(SPAN, most);
        window.record(ms(1), Duration::ZERO, Outcome::Success);
        window.record(ms(1), Duration::ZERO, Outcome::Success);
        assert_eq!(window.quantile(Quantile::P50, ms(1)), Some(micros(1)));
        for _ in 0..most {
            window.record(ms(1), Duration::MAX, Outcome::Success);
        }
        assert_eq!(window.quantile(Quantile::P90, ms(1)), Some(MAX_LATENCY));
    }
}

#[test]
fn with_too_many_results_the_oldest_leave_early() {
    let mut window = Window::new(SPAN, 5);
    for at in [0, 1, 2, SLOT, SLOT + 1] {
        window.record(ms(at), micros(at + 1), Outcome::Failure(Reason::Reset));
    }
    assert_eq!(window.counts(ms(SLOT + 2)).failure, 5);
    window.record(ms(SLOT + 2), micros(7), Outcome::Success);
    let counts = window.counts(ms(SLOT + 2));
    assert_eq!((counts.success, counts.failure), (1, 4));
    // Also when all are of one slot.
    let mut window = Window::new(SPAN, 1);
    for at in 0..10 {
        window.record(ms(at), micros(1), Outcome::Success);
    }
    assert_eq!(window.counts(ms(10)).success, 1);
}

#[test]
fn memory_is_bounded_and_taken_once() {
    check_bytes(60, 1024);
    check_bytes(300, 14 * 1024);
    check_bytes(usize::MAX, 384 * 1024 + 12 * 1024);
}

#[track_caller]
fn check_bytes(results: usize, most_bytes: usize) {
    let interval = SPAN / u32::try_from(results).unwrap_or(u32::MAX);
    let mut window = Window::new(SPAN, Window::room(SPAN, interval, 2));
    let before = window.bytes();
    assert!(before <= most_bytes, "{before} bytes");
    for n in 0..100_000 {
        window.record(ms(n * 3), micros(n), Outcome::Success);
    }
    assert_eq!(window.bytes(), before);
}

#[test]
fn a_steady_schedule_never_loses_a_result_for_want_of_room() {
    for interval in [100, 1000, 7000] {
        let room = Window::room(SPAN, Duration::from_millis(interval), 1);
        let mut window = Window::new(SPAN, room);
        for n in 0..20_000 {
            let at = ms(n * interval);
            window.record(at, micros(9), Outcome::Success);
            let newest = n * interval / SLOT;
            let first = ((newest + 1).saturating_sub(30) * SLOT).div_ceil(interval);
            assert_eq!(window.counts(at).success, n + 1 - first, "{n}");
        }
    }
}

#[test]
fn quantiles_stay_right_however_seldom_they_are_asked_for() {
    for ask_every in [1, 150, 2_500, 9_999] {
        let mut window = Window::new(SPAN, Window::room(SPAN, SPAN / 3000, 1));
        let latency = |n: u64| 1 + n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 2_000_000;
        for n in 0..10_000 {
            let at = n * 100;
            window.record(ms(at), micros(latency(n)), Outcome::Success);
            if n % ask_every == 0 && n > 4_000 && n % 50 == 0 || n == 9_999 {
                let first = (at / SLOT - 29) * SLOT / 100;
                let mut listed: Vec<_> = (first..=n).map(latency).collect();
                listed.sort_unstable();
                let exact = listed[(listed.len() * 99).div_ceil(100) - 1];
                let got = window.quantile(Quantile::P99, ms(at)).unwrap().as_micros() as u64;
                assert!(
                    got >= exact && got <= exact + exact / 100,
                    "{n}: {got} {exact}"
                );
            }
        }
    }
}

/// What happened at a moment.
#[derive(Debug, Clone, Copy)]
enum Event {
    Result(u64, Outcome),
    Missed(u32),
    Read,
}

fn event() -> impl Strategy<Value = Event> {
    let latency = prop_oneof![0u64..2_000, 1_000u64..70_000_000];
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        2 => (0..Reason::COUNT).prop_map(|i| Outcome::Failure(Reason::ALL[i])),
        1 => (0..UnknownReason::COUNT).prop_map(|i| Outcome::Unknown(UnknownReason::ALL[i])),
    ];
    prop_oneof![
        8 => (latency, outcome).prop_map(|(l, o)| Event::Result(l, o)),
        1 => (0u32..9).prop_map(Event::Missed),
        1 => Just(Event::Read),
    ]
}

/// Moments in milliseconds: mostly close together, sometimes back by a little or a lot, sometimes with a gap.
fn moments() -> impl Strategy<Value = Vec<(u64, Event)>> {
    let step = prop_oneof![
        60 => 0i64..2_000,
        5 => -15_000i64..0,
        1 => -400_000i64..0,
        1 => 0i64..500_000,
    ];
    prop::collection::vec((step, event()), 0..600).prop_map(|steps| {
        let mut at = 1_000_000i64;
        let walk = |(step, event): (i64, Event)| {
            at = (at + step).max(0);
            (at as u64, event)
        };
        steps.into_iter().map(walk).collect()
    })
}

proptest! {
    #[test]
    fn a_window_agrees_with_a_plain_list(events in moments(), wait in 0u64..350_000) {
        let mut window = Window::new(SPAN, 1000);
        let mut newest = 0;
        for &(at, event) in &events {
            match event {
                Event::Result(latency, outcome) => window.record(ms(at), micros(latency), outcome),
                Event::Missed(count) => window.missed(ms(at), count),
                Event::Read => { window.quantiles(ms(at)); }
            }
            newest = newest.max(at);
        }
        let now = newest + wait;
        let listed: Vec<_> = events.iter().filter(|(at, _)| at / SLOT + 30 > now / SLOT).collect();
        let mut counts = WindowCounts::default();
        let mut reasons = [0; Reason::COUNT];
        let mut latencies = Vec::new();
        for (_, event) in listed {
            match *event {
                Event::Result(_, Outcome::Unknown(_)) => counts.unknown += 1,
                Event::Result(latency, outcome) => {
                    latencies.push(latency.clamp(1, 60_000_000));
                    if let Outcome::Failure(reason) = outcome {
                        counts.failure += 1;
                        reasons[reason.index()] += 1;
                    } else {
                        counts.success += 1;
                    }
                }
                Event::Missed(count) => counts.missed += u64::from(count),
                Event::Read => {}
            }
        }
        prop_assert_eq!(window.counts(ms(now)), counts);
        prop_assert_eq!(window.reasons(ms(now)), reasons);
        prop_assert_eq!(window.error_rate(ms(now)), counts.error_rate());
        latencies.sort_unstable();
        let all = window.quantiles(ms(now));
        for (quantile, together) in Quantile::ALL.into_iter().zip(all) {
            let got = window.quantile(quantile, ms(now)).map(|d| d.as_micros() as u64);
            prop_assert_eq!(got, together.map(|d| d.as_micros() as u64));
            let n = latencies.len();
            if n < quantile.needs() {
                prop_assert_eq!(got, None);
                continue;
            }
            let exact = latencies[(n * quantile.per_mille()).div_ceil(1000) - 1];
            let got = got.unwrap();
            if n < 100 {
                prop_assert_eq!(got, exact);
            } else {
                prop_assert!(got >= exact && got <= exact + exact / 100 + 1, "{got} {exact}");
            }
        }
    }

    #[test]
    fn reading_changes_nothing(events in moments(), wait in 0u64..350_000) {
        let mut read = Window::new(SPAN, 1000);
        let mut unread = Window::new(SPAN, 1000);
        let mut newest = 0;
        for &(at, event) in &events {
            newest = newest.max(at);
            if let Event::Result(latency, outcome) = event {
                read.record(ms(at), micros(latency), outcome);
                unread.record(ms(at), micros(latency), outcome);
            } else {
                newest += 20_000;
                read.quantiles(ms(newest));
            }
        }
        let now = ms(newest + wait);
        prop_assert_eq!(read.counts(now), unread.counts(now));
        prop_assert_eq!(read.quantiles(now), unread.quantiles(now));
    }

    #[test]
    fn what_is_carried_over_is_the_same_when_nothing_changed(events in moments()) {
        let mut window = Window::new(SPAN, 1000);
        let mut now = 0;
        for &(at, event) in &events {
            now = now.max(at);
            if let Event::Result(latency, outcome) = event {
                window.record(ms(at), micros(latency), outcome);
            }
        }
        let mut carried = window.carried_over(SPAN, 1000);
        prop_assert_eq!(carried.counts(ms(now)), window.counts(ms(now)));
        prop_assert_eq!(carried.quantiles(ms(now)), window.quantiles(ms(now)));
    }
}
