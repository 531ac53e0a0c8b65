//! What the rolling window costs, beside the obvious way: a ring of 60 histograms that is merged for each question.
//!
//! `cargo bench --bench window -- --quick`

#![allow(clippy::cast_possible_truncation)]

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use hdrhistogram::Histogram;

use leadsman::core::probe_result::{Outcome, Reason};
use leadsman::core::units::Moment;
use leadsman::core::window::{LongWindow, LongWindows, Quantile, Window};

const SPAN: Duration = Duration::from_secs(300);

/// The obvious way: a histogram and two counters for each sixtieth of the span.
struct Ring {
    slots: VecDeque<(Histogram<u32>, u64, u64)>,
    merged: Histogram<u32>,
    newest: u64,
}

impl Ring {
    const SLOTS: u64 = 60;

    fn new() -> Self {
        Self {
            slots: (0..Self::SLOTS).map(|_| (histogram(), 0, 0)).collect(),
            merged: histogram(),
            newest: 0,
        }
    }

    fn rotate(&mut self, now: Moment) {
        let number = now.nanos() / (SPAN.as_nanos() as u64 / Self::SLOTS);
        for _ in 0..(number - self.newest).min(Self::SLOTS) {
            if let Some(mut oldest) = self.slots.pop_front() {
                oldest.0.clear();
                self.slots.push_back((oldest.0, 0, 0));
            }
        }
        self.newest = number;
    }

    fn record(&mut self, now: Moment, latency: Duration, success: bool) {
        self.rotate(now);
        if let Some((histogram, goods, bads)) = self.slots.back_mut() {
            histogram.saturating_record(latency.as_micros() as u64);
            *goods += u64::from(success);
            *bads += u64::from(!success);
        }
    }

    fn p99(&mut self, now: Moment) -> u64 {
        self.rotate(now);
        self.merged.clear();
        for (histogram, ..) in &self.slots {
            let added = self.merged.add(histogram);
            debug_assert!(added.is_ok());
        }
        self.merged.value_at_quantile(0.99)
    }

    fn error_rate(&mut self, now: Moment) -> f64 {
        self.rotate(now);
        let sum = |(success, failure), slot: &(_, u64, u64)| (success + slot.1, failure + slot.2);
        let (success, failure) = self.slots.iter().fold((0, 0), sum);
        failure as f64 / (success + failure) as f64
    }

    fn bytes(&self) -> usize {
        let one = size_of::<Histogram<u32>>() + self.merged.distinct_values() * 4;
        (self.slots.len() + 1) * one
    }
}

#[allow(clippy::expect_used)]
fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("these bounds are good")
}

/// A latency as they come: mostly some milliseconds, sometimes a lot more.
fn latency(n: u64) -> Duration {
    let mixed = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let slow = if mixed.is_multiple_of(50) { 40 } else { 1 };
    Duration::from_micros((2_000 + mixed % 9_000) * slow)
}

fn outcome(n: u64) -> Outcome {
    if n.is_multiple_of(40) {
        Outcome::Failure(Reason::Status)
    } else {
        Outcome::Success
    }
}

/// A window that has been full for a while.
fn full(results: u32) -> (Window, Moment, Duration) {
    let interval = SPAN / results;
    let mut window = Window::new(SPAN, Window::room(SPAN, interval, 2));
    let mut now = Moment::default();
    for n in 0..u64::from(results) * 3 {
        now = now + interval;
        window.record(now, latency(n), outcome(n));
    }
    (window, now, interval)
}

fn full_ring(results: u32) -> (Ring, Moment, Duration) {
    let interval = SPAN / results;
    let mut ring = Ring::new();
    let mut now = Moment::default();
    for n in 0..u64::from(results) * 3 {
        now = now + interval;
        ring.record(now, latency(n), outcome(n) == Outcome::Success);
    }
    (ring, now, interval)
}

fn bench(c: &mut Criterion) {
    let sizes = [60, 300, 3000];
    for size in sizes {
        let (window, ring) = (full(size).0.bytes(), full_ring(size).0.bytes());
        println!(
            "memory at {size} results: window {window} B, ring of histograms {ring} B, {:.0} times as much",
            ring as f64 / window as f64
        );
    }

    let mut group = c.benchmark_group("record");
    for size in sizes {
        group.bench_function(BenchmarkId::new("window", size), |b| {
            let (mut window, mut now, interval) = full(size);
            let mut n = 0;
            b.iter(|| {
                n += 1;
                now = now + interval;
                window.record(now, black_box(latency(n)), outcome(n));
            });
        });
        group.bench_function(BenchmarkId::new("ring of histograms", size), |b| {
            let (mut ring, mut now, interval) = full_ring(size);
            let mut n = 0;
            b.iter(|| {
                n += 1;
                now = now + interval;
                ring.record(now, black_box(latency(n)), true);
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("p99");
    for size in sizes {
        group.bench_function(BenchmarkId::new("window", size), |b| {
            let (mut window, now, _) = full(size);
            // 60 results are too few for it; the work is that of the median.
            let quantile = if size < 100 {
                Quantile::P95
            } else {
                Quantile::P99
            };
            b.iter(|| window.quantile(quantile, black_box(now)));
        });
        group.bench_function(BenchmarkId::new("ring of histograms", size), |b| {
            let (mut ring, now, _) = full_ring(size);
            b.iter(|| ring.p99(black_box(now)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("a slot's results, then p99");
    for size in sizes {
        group.bench_function(BenchmarkId::new("window", size), |b| {
            let (mut window, mut now, interval) = full(size);
            let mut n = 0;
            b.iter(|| {
                for _ in 0..size / 30 {
                    n += 1;
                    now = now + interval;
                    window.record(now, latency(n), outcome(n));
                }
                window.quantile(Quantile::P99, now)
            });
        });
        group.bench_function(BenchmarkId::new("ring of histograms", size), |b| {
            let (mut ring, mut now, interval) = full_ring(size);
            let mut n = 0;
            b.iter(|| {
                for _ in 0..size / 30 {
                    n += 1;
                    now = now + interval;
                    ring.record(now, latency(n), outcome(n) == Outcome::Success);
                }
                ring.p99(now)
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("all quantiles");
    for size in sizes {
        group.bench_function(BenchmarkId::new("window", size), |b| {
            let (mut window, now, _) = full(size);
            b.iter(|| window.quantiles(black_box(now)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("error rate");
    for size in sizes {
        group.bench_function(BenchmarkId::new("window", size), |b| {
            let (mut window, now, _) = full(size);
            b.iter(|| window.error_rate(black_box(now)));
        });
        group.bench_function(BenchmarkId::new("ring of histograms", size), |b| {
            let (mut ring, now, _) = full_ring(size);
            b.iter(|| ring.error_rate(black_box(now)));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("spans");
    let mut long_windows = LongWindows::default();
    let mut now = Moment::default();
    group.bench_function("record", |b| {
        b.iter(|| {
            now = now + Duration::from_secs(1);
            long_windows.record(now, black_box(Outcome::Success));
        });
    });
    group.bench_function("30 days", |b| {
        b.iter(|| long_windows.count(LongWindow::Days30, black_box(now)));
    });
    group.bench_function("all eight", |b| b.iter(|| long_windows.all(black_box(now))));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
