//! What a tick of the verdict costs, what its state takes, and how long a thousand releases take.
//!
//! `cargo bench --bench verdict`

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench may end where it stands, and its numbers are small"
)]

use std::alloc::System;
use std::hint::black_box;
use std::time::Instant;

use fastrand::Rng;
use leadsman::verdict::{MAX_ASKED, Mark, PodLook, Rule, Side, Start, Tick, Watch, upper_bound};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The share of soundings that fail by themselves.
const BASE: f64 = 0.01;
const TOTAL: u64 = 3600;

fn watch(endpoints: usize, direct: bool) -> Watch {
    let rule = Rule {
        interval_s: 1.0,
        ..Rule::default()
    };
    let start = Start {
        endpoints: (0..endpoints)
            .map(|at| format!("probe-{at}").into())
            .collect(),
        baseline: vec![((TOTAL as f64 * BASE) as u64, TOTAL); endpoints],
        failing_at_start: vec![false; endpoints],
        settled_at: Some(30.0),
        direct,
        ..Start::default()
    };
    Watch::new(rule, &start).unwrap()
}

fn marks(rng: &mut Rng, endpoints: usize) -> Vec<Mark> {
    (0..endpoints)
        .map(|_| {
            if rng.f64() < BASE {
                Mark::Bad
            } else {
                Mark::Good
            }
        })
        .collect()
}

/// Whole watches, one after another, that convict nobody: µs and allocations of a tick, the state's bytes.
fn ticks(endpoints: usize, pods: usize) {
    let mut rng = Rng::with_seed(7);
    let fresh = watch(endpoints, pods > 0);
    let length = fresh.rule().ticks_of_watch() as usize;
    let rows: Vec<Vec<Mark>> = (0..length).map(|_| marks(&mut rng, endpoints)).collect();
    let answers: Vec<Vec<Mark>> = (0..pods).map(|_| marks(&mut rng, endpoints)).collect();
    let looks: Vec<PodLook<'_>> = answers
        .iter()
        .enumerate()
        .map(|(pod, marks)| PodLook {
            pod: pod as u32,
            side: if pod < MAX_ASKED {
                Side::Old
            } else {
                Side::New
            },
            latency_us: &[],
            ready_tick: 0,
            marks,
        })
        .collect();
    let rounds = 20_000 / endpoints;
    let (mut spent, mut allocations, mut read) = (0.0, 0, 0_usize);
    for _ in 0..rounds.max(5) {
        let mut watch = watch(endpoints, pods > 0);
        let region = Region::new(ALLOCATOR);
        let began = Instant::now();
        for marks in &rows {
            black_box(watch.tick(&Tick {
                marks,
                direct: &looks,
                ..Tick::default()
            }));
        }
        spent += began.elapsed().as_secs_f64();
        allocations += region.change().allocations;
        read += watch.ticks() as usize;
    }
    println!(
        "{endpoints:>4} probes, {pods:>2} pods: {:>7.2} µs a tick, {allocations} allocations in {read} ticks, state {} bytes",
        spent * 1e6 / read as f64,
        fresh.bytes()
    );
}

/// Healthy releases of five minutes at 1 s; beside it what drawing their soundings takes.
fn releases(count: usize) {
    let mut rng = Rng::with_seed(8);
    let began = Instant::now();
    let mut bad = 0;
    for _ in 0..count * 300 {
        bad += marks(&mut rng, 4)
            .iter()
            .filter(|mark| **mark == Mark::Bad)
            .count();
    }
    let drawing = began.elapsed();
    let began = Instant::now();
    let mut turned_back = 0;
    for _ in 0..count {
        let mut watch = watch(4, false);
        while !watch.is_over() && watch.finding().is_none() {
            let marks = marks(&mut rng, 4);
            watch.tick(&Tick {
                marks: &marks,
                ..Tick::default()
            });
        }
        turned_back += usize::from(watch.finding().is_some());
    }
    println!(
        "{count} healthy releases of 300 ticks: {:.2} s, of it {:.2} s for drawing {bad} failures; {turned_back} turned back",
        began.elapsed().as_secs_f64(),
        drawing.as_secs_f64()
    );
}

/// The bound of a baseline, which is found by bisection at the start and when a block opens under the control's eyes.
fn bound() {
    let began = Instant::now();
    let rounds = 10_000;
    for failed in 0..rounds {
        black_box(upper_bound(f64::from(failed % 100), 3600.0, 0.01));
    }
    let each = began.elapsed().as_secs_f64() * 1e6 / f64::from(rounds);
    println!("an upper bound: {each:.2} µs");
}

fn main() {
    for (endpoints, pods) in [(4, 0), (4, 2 * MAX_ASKED), (100, 0), (100, 2 * MAX_ASKED)] {
        ticks(endpoints, pods);
    }
    bound();
    releases(1000);
}
