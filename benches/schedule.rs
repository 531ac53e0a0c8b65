//! How late do starts come? The schedule's thread against what it must be better than, and what it cannot beat.
//!
//! Rows, at the same rate and taking turns in one run:
//! - `tokio interval`: the naive way, a task with an interval timer per probe;
//! - `ours`: the schedule, one probe a second each, with phases from the hash of their keys;
//! - `bare thread`: sleeps until each due time of an even sequence and does nothing else, with the timer slack of `ours`;
//! - `bare, 50 µs slack`: the same with the slack that Linux gives by default, to show what setting it is worth.
//!
//! Shown are the medians over the rounds. Look at the ratios to `bare thread`: its lateness is the machine's own noise,
//! and the absolute figures change with whatever else runs there. CPU is that of the whole process, per start; a start
//! does nothing here but note the time.
//!
//! `cargo bench --bench schedule [-- --seconds 5 --rounds 5]`; without `--bench` (as under `cargo test`) one short round.

#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Nanoseconds of a few seconds.

use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leadsman::core::units::{Moment, Namespace, ProbeId, ProbeName, ReleaseName};
use leadsman::platform::clock;
use leadsman::prober::schedule::{Schedule, ScheduledSlot};

const RATES: [u64; 3] = [1_000, 5_000, 10_000];
type Way = (&'static str, fn(&Load) -> Seen);
const WAYS: [Way; 4] = [
    ("tokio interval", tokio_interval),
    ("ours", ours),
    ("bare thread", bare_thread),
    ("bare, 50 µs slack", bare_thread_default_slack),
];
/// The row that the others are compared with.
const CONTROL: usize = 2;

/// What each way has to do: `rate` starts a second, of which those due from `from` to `until` are looked at.
struct Load {
    rate: u64,
    from: Moment,
    until: Moment,
}

/// Lateness of every start in nanoseconds, in no order.
#[derive(Default)]
struct Seen {
    late: Vec<u64>,
    missed: u64,
}

impl Load {
    fn room(&self) -> Vec<u64> {
        let seconds = self.until.since(self.from).as_secs() + 2;
        Vec::with_capacity(usize::try_from(self.rate * seconds).unwrap_or(0))
    }

    fn counts(&self, due: Moment) -> bool {
        due >= self.from && due < self.until
    }
}

fn tokio_interval(load: &Load) -> Seen {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_time()
        .build()
        .unwrap();
    let late = Arc::new(Mutex::new(load.room()));
    runtime.block_on(async {
        let mut tasks = Vec::new();
        let start = tokio::time::Instant::now() + Duration::from_millis(200);
        let start_moment = clock::now() + Duration::from_millis(200);
        for number in 0..load.rate {
            let late = Arc::clone(&late);
            let phase = Duration::from_secs(1) * u32::try_from(number).unwrap()
                / u32::try_from(load.rate).unwrap();
            let (from, until) = (load.from, load.until);
            tasks.push(tokio::spawn(async move {
                let mut ticks = tokio::time::interval_at(start + phase, Duration::from_secs(1));
                let mut due = start_moment + phase;
                while due < until {
                    ticks.tick().await;
                    let now = clock::now();
                    if due >= from {
                        late.lock().unwrap().push(now.since(due).as_nanos() as u64);
                    }
                    due = due + Duration::from_secs(1);
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
    let late = std::mem::take(&mut *late.lock().unwrap());
    Seen { late, missed: 0 }
}

fn ours(load: &Load) -> Seen {
    let seen = Arc::new(Mutex::new(Seen {
        late: load.room(),
        missed: 0,
    }));
    let schedule = Schedule::start(clock::now, {
        let seen = Arc::clone(&seen);
        let (from, until) = (load.from, load.until);
        move |due| {
            let now = clock::now();
            let mut seen = seen.lock().unwrap();
            seen.missed += due.missed;
            if due.at >= from && due.at < until {
                seen.late.push(now.since(due.at).as_nanos() as u64);
            }
        }
    })
    .unwrap();
    let slots = (0..load.rate).map(|number| ScheduledSlot {
        key: ProbeId {
            namespace: Namespace::new("bench"),
            release: ReleaseName::new("bench"),
            probe: ProbeName::new(format!("probe-{number}")),
        },
        interval: Duration::from_secs(1),
        payload: (),
    });
    schedule.set(slots.collect());
    std::thread::sleep(load.until.since(clock::now()));
    schedule.stop();
    std::mem::take(&mut *seen.lock().unwrap())
}

fn bare_thread(load: &Load) -> Seen {
    bare(load, 1_000)
}

fn bare_thread_default_slack(load: &Load) -> Seen {
    bare(load, 50_000)
}

fn bare(load: &Load, slack_nanos: u64) -> Seen {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::set_current_timer_slack(NonZeroU64::new(slack_nanos)).unwrap();
            let mut late = load.room();
            let step = Duration::from_secs(1) / u32::try_from(load.rate).unwrap();
            let mut due = clock::now() + step;
            while due < load.until {
                let wait = due.since(clock::now());
                if !wait.is_zero() {
                    std::thread::sleep(wait);
                }
                if load.counts(due) {
                    late.push(clock::now().since(due).as_nanos() as u64);
                }
                due = due + step;
            }
            late
        });
        Seen {
            late: thread.join().unwrap(),
            missed: 0,
        }
    })
}

/// One way in one round.
#[derive(Clone, Copy)]
struct Figures {
    p50: f64,
    p99: f64,
    worst: f64,
    cpu: f64,
    starts: usize,
    missed: u64,
}

fn run(way: fn(&Load) -> Seen, rate: u64, span: Duration) -> Figures {
    // The first 1.5 s bring every probe to its grid and the caches to their state.
    let from = clock::now() + Duration::from_millis(1_500);
    let load = Load {
        rate,
        from,
        until: from + span,
    };
    let before = cpu_time();
    let mut seen = way(&load);
    let cpu = cpu_time().saturating_sub(before);
    seen.late.sort_unstable();
    let quantile = |share: f64| {
        let last = seen.late.len().saturating_sub(1) as f64;
        seen.late
            .get((last * share) as usize)
            .map_or(f64::NAN, |n| *n as f64 / 1e3)
    };
    let all = rate as f64 * (span.as_secs_f64() + 1.5);
    Figures {
        p50: quantile(0.5),
        p99: quantile(0.99),
        worst: quantile(1.0),
        cpu: cpu.as_secs_f64() * 1e6 / all,
        starts: seen.late.len(),
        missed: seen.missed,
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn option(name: &str, default: u64) -> u64 {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1).map_or(default, |value| {
        value.parse().expect("a whole number after the option")
    })
}

fn main() {
    let full = std::env::args().any(|arg| arg == "--bench");
    let (rounds, span, rates) = if full {
        let seconds = option("--seconds", 3);
        (
            option("--rounds", 3),
            Duration::from_secs(seconds),
            &RATES[..],
        )
    } else {
        (1, Duration::from_millis(200), &RATES[..1])
    };
    println!("Lateness of starts in µs, median of {rounds} rounds of {span:?}.");
    println!(
        "{:>8}  {:<18} {:>8} {:>8} {:>9} {:>10} {:>10} {:>9} {:>8} {:>7}",
        "starts/s", "", "p50", "p99", "max", "p50/bare", "p99/bare", "CPU µs", "starts", "missed"
    );
    for &rate in rates {
        let mut figures = vec![Vec::new(); WAYS.len()];
        for _ in 0..rounds {
            for (row, (_, way)) in WAYS.iter().enumerate() {
                figures[row].push(run(*way, rate, span));
            }
        }
        let middle =
            |row: usize, of: fn(&Figures) -> f64| median(figures[row].iter().map(of).collect());
        // The median of the ratios within each round, so that both sides met the same neighbours.
        let ratio = |row: usize, of: fn(&Figures) -> f64| {
            let pairs = figures[row].iter().zip(&figures[CONTROL]);
            median(pairs.map(|(own, bare)| of(own) / of(bare)).collect())
        };
        for (row, (name, _)) in WAYS.iter().enumerate() {
            println!(
                "{rate:>8}  {name:<18} {:>8.0} {:>8.0} {:>9.0} {:>10.2} {:>10.2} {:>9.1} {:>8} {:>7}",
                middle(row, |f| f.p50),
                middle(row, |f| f.p99),
                middle(row, |f| f.worst),
                ratio(row, |f| f.p50),
                ratio(row, |f| f.p99),
                middle(row, |f| f.cpu),
                figures[row].iter().map(|f| f.starts).sum::<usize>(),
                figures[row].iter().map(|f| f.missed).sum::<u64>(),
            );
        }
    }
}
