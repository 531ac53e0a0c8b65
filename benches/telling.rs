//! What alerts cost: looking at 10 000 conditions, and writing all of them for a round of resending.
//!
//! `cargo bench --bench telling -- --quick`

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use url::Url;

use leadsman::alert::{Book, Condition, Kind, Labels};
use leadsman::notify::wires;
use leadsman::objective::{Objective, Tier};
use leadsman::units::Time;
use leadsman::window::Tally;

const ALERTS: usize = 10_000;

fn conditions() -> Vec<Condition> {
    (0..ALERTS)
        .map(|number| Condition {
            kind: Kind::ReleaseRegressed,
            place: Labels::from([
                ("namespace".to_owned(), "mykadoo-production".to_owned()),
                ("release".to_owned(), format!("release-{number:05}")),
                ("revision".to_owned(), "42".to_owned()),
            ]),
            text: "Revision 42: api failed 16 times in a row. Turning back to revision 41."
                .to_owned(),
            fragment: format!("release/mykadoo-production/release-{number:05}"),
        })
        .collect()
}

fn telling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("10 000 firing alerts");
    group
        .measurement_time(Duration::from_secs(5))
        .sample_size(10);
    let now = Time::from_millis(1_800_000_000_000);
    let mut book = Book::default();
    let all = conditions();
    book.observe(all.clone(), |_| true, now);
    group.bench_function("a look", |bencher| {
        bencher.iter_batched(
            || all.clone(),
            |all| book.observe(all, |_| true, now),
            criterion::BatchSize::LargeInput,
        );
    });
    let page = Url::parse("https://leadsman.example.com/").ok();
    let external = Labels::from([("cluster".to_owned(), "production".to_owned())]);
    group.bench_function("a round of resending", |bencher| {
        bencher.iter(|| {
            wires(
                &book,
                &external,
                page.as_ref(),
                Duration::from_secs(60),
                now,
            )
        });
    });
    group.finish();

    let objective = Objective {
        target: 0.999,
        days: 30,
        tiers: Tier::ALL.to_vec(),
    };
    let tally = Tally {
        good: 3000,
        bad: 2,
        void: 0,
    };
    criterion.bench_function("the four tiers of 1000 objectives", |bencher| {
        bencher.iter(|| {
            (0..1000)
                .filter(|_| {
                    Tier::ALL
                        .iter()
                        .any(|tier| objective.fires(*tier, |_| tally, 1.0))
                })
                .count()
        });
    });
}

criterion_group!(benches, telling);
criterion_main!(benches);
