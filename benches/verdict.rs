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

use fastrand::Rng;
use leadsman::core::analysis::{
    Analysis, AnalysisStart, AnalyzedWorkload, MAX_ASKED, PodSide, PodTick, Rule, Tick,
    TickOutcome, WorkloadChange, WorkloadDiff, WorkloadEvent, bucket, upper_bound,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The share of results that fail by themselves.
const BASE: f64 = 0.01;
const TOTAL: u64 = 3600;

/// CPU time of this program in seconds: it has one thread, and what else runs on the machine does not count.
fn cpu_s() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A release of one workload that is rolled out; with latencies of the hour before where answers are timed.
fn analysis(endpoints: usize, direct: bool, timed: bool) -> Analysis {
    let rule = Rule {
        interval_s: 1.0,
        ..Rule::default()
    };
    let before = vec![
        (bucket(5000), 1000),
        (bucket(9000), 2400),
        (bucket(20_000), 200),
    ];
    let start = AnalysisStart {
        endpoints: (0..endpoints)
            .map(|at| format!("probe-{at}").into())
            .collect(),
        baseline: vec![((TOTAL as f64 * BASE) as u64, TOTAL); endpoints],
        failing_at_start: vec![false; endpoints],
        direct,
        workloads: Some(vec![AnalyzedWorkload {
            name: "Deployment web".into(),
            change: Some(WorkloadDiff::Template),
            unknown: None,
            was_complete: true,
            stops_first: false,
            probes: None,
            template_at: Some(0.0),
            gap_s: 0.0,
            ready_s: 0.0,
            restarts: 0,
        }]),
        latency: if timed {
            vec![before; endpoints]
        } else {
            Vec::new()
        },
        ..AnalysisStart::default()
    };
    Analysis::new(rule, &start).unwrap()
}

/// What becomes known of the rollout in a tick: Ready after 12 s, complete after 40 s.
fn events(tick: usize) -> Vec<WorkloadEvent> {
    let what = match tick {
        12 => WorkloadChange::Ready,
        40 => WorkloadChange::Complete,
        _ => return Vec::new(),
    };
    vec![WorkloadEvent {
        t: tick as f64,
        workload: 0,
        what,
    }]
}

fn outcomes(rng: &mut Rng, endpoints: usize) -> Vec<TickOutcome> {
    (0..endpoints)
        .map(|_| {
            if rng.f64() < BASE {
                TickOutcome::Failure
            } else {
                TickOutcome::Success
            }
        })
        .collect()
}

/// Whole watches, one after another, that reject nobody: µs of a tick (the median of the watches), allocations, the state's bytes.
fn ticks(endpoints: usize, pods: usize, timed: bool) {
    let mut rng = Rng::with_seed(7);
    let region = Region::new(ALLOCATOR);
    let fresh = analysis(endpoints, pods > 0, timed);
    let held = region.change();
    let held = held.bytes_allocated + held.bytes_reallocated.max(0).unsigned_abs()
        - held.bytes_deallocated
        + size_of_val(&fresh);
    let bytes = fresh.bytes();
    assert!(held <= bytes, "{held} bytes are held, and not {bytes}");
    let length = 300;
    let rows: Vec<Vec<TickOutcome>> = (0..length).map(|_| outcomes(&mut rng, endpoints)).collect();
    let answers: Vec<Vec<TickOutcome>> = (0..pods).map(|_| outcomes(&mut rng, endpoints)).collect();
    let happened: Vec<Vec<WorkloadEvent>> = (0..length).map(events).collect();
    let took = vec![Some(8000); endpoints];
    let latency_us: &[Option<u32>] = if timed { &took } else { &[] };
    // Pods answer well throughout: their failures would be a regression.
    let all_good = vec![TickOutcome::Success; endpoints];
    let looks: Vec<PodTick<'_>> = answers
        .iter()
        .enumerate()
        .map(|(pod, outcomes)| {
            let side = if pod < MAX_ASKED {
                PodSide::Old
            } else {
                PodSide::New
            };
            PodTick {
                pod: pod as u32,
                side,
                ready_tick: 0,
                outcomes: if side == PodSide::New {
                    &all_good
                } else {
                    outcomes
                },
                latency_us,
            }
        })
        .collect();
    let rounds = (20_000 / endpoints / 4).max(5);
    let mut spent_us = Vec::new();
    let (mut allocations, mut read) = (0, 0_usize);
    for _ in 0..rounds {
        let mut analysis = analysis(endpoints, pods > 0, timed);
        let region = Region::new(ALLOCATOR);
        let began = cpu_s();
        for (outcomes, rollout) in rows.iter().zip(&happened) {
            black_box(analysis.tick(&Tick {
                outcomes,
                direct: &looks,
                rollout,
                latency_us,
                ..Tick::default()
            }));
        }
        let spent = cpu_s() - began;
        allocations += region.change().allocations;
        read += analysis.ticks() as usize;
        spent_us.push(spent * 1e6 / f64::from(analysis.ticks()));
        assert!(
            analysis.regression().is_none(),
            "{:?}",
            analysis.regression()
        );
    }
    spent_us.sort_by(f64::total_cmp);
    let with = if timed { ", timed" } else { "" };
    println!(
        "{endpoints:>4} probes, {pods:>2} pods{with}: {:>7.2} µs a tick, {allocations} allocations in {read} ticks, state {} bytes",
        spent_us[spent_us.len() / 2],
        bytes
    );
}

/// Healthy releases of five minutes at 1 s; beside it what drawing their results takes.
fn releases(count: usize) {
    let mut rng = Rng::with_seed(8);
    let began = cpu_s();
    let mut failure = 0;
    for _ in 0..count * 300 {
        failure += outcomes(&mut rng, 4)
            .iter()
            .filter(|outcome| **outcome == TickOutcome::Failure)
            .count();
    }
    let drawing = cpu_s() - began;
    let began = cpu_s();
    let mut rolled_back = 0;
    let happened: Vec<Vec<WorkloadEvent>> = (0..=300).map(events).collect();
    for _ in 0..count {
        let mut analysis = analysis(4, false, false);
        while !analysis.is_over() && analysis.regression().is_none() {
            let outcomes = outcomes(&mut rng, 4);
            analysis.tick(&Tick {
                outcomes: &outcomes,
                rollout: &happened[(analysis.ticks() as usize).min(300)],
                ..Tick::default()
            });
        }
        rolled_back += usize::from(analysis.regression().is_some());
    }
    println!(
        "{count} healthy releases of 300 ticks: {:.2} s, of it {:.2} s for drawing {failure} failures; {rolled_back} rolled back",
        cpu_s() - began,
        drawing
    );
}

/// The bound of a baseline, which is found by bisection at the start and when a block opens under the control's eyes.
fn bound() {
    let began = cpu_s();
    let rounds = 10_000;
    for failed in 0..rounds {
        black_box(upper_bound(f64::from(failed % 100), 3600.0, 0.01));
    }
    let each = (cpu_s() - began) * 1e6 / f64::from(rounds);
    println!("an upper bound: {each:.2} µs");
}

fn main() {
    for (endpoints, pods, timed) in [
        (4, 0, false),
        (4, 2 * MAX_ASKED, false),
        (4, 2 * MAX_ASKED, true),
        (100, 0, false),
        (100, 2 * MAX_ASKED, false),
        (100, 2 * MAX_ASKED, true),
    ] {
        ticks(endpoints, pods, timed);
    }
    bound();
    releases(1000);
}
