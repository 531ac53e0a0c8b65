//! What the rule does in simulated worlds, against what it is meant to do: false rollbacks, and delays.
//!
//! Each release is judged in four ways at once: through the Service alone and with pods asked directly, each as the
//! first rollout of an app and after five that were kept. A row's goal is checked as far as so few releases can tell:
//! more than the binomial distribution allows with 1 % are a failure.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fastrand::Rng;
use leadsman::core::analysis::{
    Analysis, AnalysisStart, Bake, BakeEnd, InconclusiveReason, TickOutcome, Verdict,
};

use super::rollout::{Deployed, Shape};
use super::world::{ENDPOINTS, Lessons, Limit, World, is_done, numbers, outcome, rule, within};

/// The ways in which a release is judged: whether pods are asked directly, and whether something was learned.
const WAYS: [(&str, bool, bool); 4] = [
    ("Service, first", false, false),
    ("Service", false, true),
    ("direct, first", true, false),
    ("direct", true, true),
];

/// How many releases a row simulates, for so many at the factor 1.
pub(crate) fn releases(count: usize) -> usize {
    let factor = std::env::var("LEADSMAN_SIMULATE").map_or(1, |value| {
        value
            .parse()
            .expect("LEADSMAN_SIMULATE is a factor, such as 50")
    });
    count * factor
}

/// The most of so many that may happen where each does with this chance: more has a chance of at most 1 %.
pub(crate) fn allowed(count: usize, chance: f64) -> usize {
    let (mut one, mut below) = ((1.0 - chance).powf(count as f64), 0.0);
    for k in 0..count {
        below += one;
        if below >= 0.99 {
            return k;
        }
        one *= (count - k) as f64 / (k + 1) as f64 * chance / (1.0 - chance);
    }
    count
}

#[test]
fn the_allowance_is_that_of_the_binomial_distribution() {
    assert_eq!(allowed(4, 0.005), 1);
    assert_eq!(allowed(600, 0.005), 8);
    assert_eq!(allowed(8, 0.05), 2);
    assert_eq!(allowed(200, 0.05), 18);
    assert_eq!(allowed(100, 0.0), 0);
}

/// What so many releases of one kind came to, judged in one way.
#[derive(Default)]
struct Cell {
    releases: usize,
    /// From the onset to the rollback in seconds, ascending; of those that were rolled back.
    delays_s: Vec<f64>,
    reasons: BTreeMap<String, u32>,
    /// How many ended as healthy.
    healthy: usize,
}

impl Cell {
    fn note(&mut self, analysis: &Analysis, onset_s: f64) {
        self.releases += 1;
        if let Some(regression) = analysis.regression() {
            self.delays_s.push(regression.t - onset_s);
            *self
                .reasons
                .entry(regression.reason.to_string())
                .or_default() += 1;
        }
        self.healthy += usize::from(analysis.conclude() == Verdict::Healthy);
    }

    /// Of all releases; those that are kept come last, as infinitely late.
    fn quantile(&self, share: f64) -> f64 {
        let place = (share * self.releases as f64).ceil() as usize;
        let latest = f64::INFINITY;
        *self.delays_s.get(place.max(1) - 1).unwrap_or(&latest)
    }

    #[track_caller]
    fn at_most(&self, row: &str, way: &str, in_a_thousand: f64) {
        let rolled_back = self.delays_s.len();
        let most = allowed(self.releases, in_a_thousand / 1000.0);
        assert!(
            rolled_back <= most,
            "{row}, {way}: {rolled_back} of {} rolled back, {most} allowed: {:?}",
            self.releases,
            self.reasons
        );
    }

    #[track_caller]
    fn found_within(&self, row: &str, way: &str, p95_s: f64) {
        let in_time = self
            .delays_s
            .iter()
            .filter(|delay| **delay <= p95_s)
            .count();
        let most = allowed(self.releases, 0.05);
        assert!(
            self.releases - in_time <= most,
            "{row}, {way}: {} of {} found after {p95_s} s or never, {most} allowed: {:?} {:?}",
            self.releases - in_time,
            self.releases,
            self.delays_s,
            self.reasons
        );
    }
}

/// What kept rollouts taught, through the Service alone and with pods asked directly.
#[derive(Default)]
struct Taught {
    service: Lessons,
    direct: Lessons,
}

/// Judges rollouts of a world one after another, until five were kept in each way.
fn taught(seed: u64, world: &dyn Fn(&mut Rng, usize) -> World) -> Taught {
    let mut taught = Taught::default();
    for attempt in 0..10 {
        if taught.service.len().min(taught.direct.len()) == 5 {
            break;
        }
        let mut rng = numbers(seed ^ 0x7465_6163_6800, attempt);
        let world = world(&mut rng, attempt);
        let deployed = world.deploy(&mut rng);
        let starts = [
            world.start(&mut rng, &taught.service, false),
            world.start(&mut rng, &taught.direct, true),
        ];
        let mut watches = starts.map(|start| begin(&world, &start));
        world.play(&mut rng, &deployed, &mut watches);
        taught.service.add(&watches[0]);
        taught.direct.add(&watches[1]);
    }
    taught
}

/// The same of rollouts that hand over in order, simulated once for each shape and history.
fn taught_normally(shape: Shape, history: usize) -> Arc<Taught> {
    static KNOWN: Mutex<BTreeMap<(&str, usize), Arc<Taught>>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(taught) = known().get(&(shape.name, history)) {
        return Arc::clone(taught);
    }
    let normal = |rng: &mut Rng, _| World {
        drain_s: 0.0,
        ..World::normal(shape, rng)
    };
    let new = Arc::new(taught(1_000_000 + history as u64, &normal));
    Arc::clone(known().entry((shape.name, history)).or_insert(new))
}

fn begin(world: &World, start: &AnalysisStart) -> Analysis {
    let mut rule = rule(world.interval_s);
    rule.latency_rejects = world.slow.is_some();
    Analysis::new(rule, start).unwrap()
}

/// Which history the releases of a row have behind them.
#[derive(Clone, Copy)]
enum Past {
    /// Rollouts that hand over in order.
    Normal,
    /// Rollouts of the same world.
    Same,
    /// Rollouts of another one.
    Of(fn(usize) -> World),
}

/// One row: so many releases of a world, judged in all ways.
struct Row<'a> {
    name: &'a str,
    seed: u64,
    shape: Shape,
    count: usize,
    finished: Past,
    /// When it begins; without it, when the first new pod is Ready.
    onset_s: Option<f64>,
}

impl Row<'_> {
    fn play(&self, world: &dyn Fn(&mut Rng, usize) -> World) -> [Cell; 4] {
        let mut cells: [Cell; 4] = Default::default();
        // A release of one kind differs from that of another shape.
        let seed = self.seed * 1000 + self.shape.replicas as u64 * 10 + self.shape.surge as u64;
        let mut finished = Arc::new(Taught::default());
        for release in 0..releases(self.count) {
            if release % 10 == 0 {
                finished = match self.finished {
                    Past::Normal => taught_normally(self.shape, release / 10),
                    Past::Of(world) => Arc::new(taught(seed + release as u64, &|_, at| world(at))),
                    Past::Same => {
                        let base = release;
                        Arc::new(taught(
                            seed + 77_000_000 * (1 + release as u64),
                            &|rng, at| world(rng, base + at),
                        ))
                    }
                };
            }
            let mut rng = numbers(seed, release);
            let world = world(&mut rng, release);
            let deployed = world.deploy(&mut rng);
            let nothing = Lessons::default();
            let starts = WAYS.map(|(_, direct, learned)| {
                let lessons = match (learned, direct) {
                    (false, _) => &nothing,
                    (true, false) => &finished.service,
                    (true, true) => &finished.direct,
                };
                // The same hour before in each way.
                world.start(&mut numbers(seed ^ 0x68_6f75, release), lessons, direct)
            });
            let mut watches = starts.map(|start| begin(&world, &start));
            if world.limit.is_some() {
                // Each way asks at its own pace and meets the limit by itself.
                for analysis in &mut watches {
                    world.play(&mut rng, &deployed, std::slice::from_mut(analysis));
                }
            } else {
                world.play(&mut rng, &deployed, &mut watches);
            }
            let onset_s = self.onset_s.unwrap_or(deployed.first_ready_s);
            for (cell, analysis) in cells.iter_mut().zip(&watches) {
                cell.note(analysis, onset_s);
            }
        }
        for cell in &mut cells {
            cell.delays_s.sort_by(f64::total_cmp);
        }
        cells
    }

    fn title(&self) -> String {
        format!("{}, {} pods", self.name, self.shape.name)
    }
}

/// A row of healthy releases: of a thousand at most so many may be rolled back, where there is a goal.
#[track_caller]
fn kept(row: &Row<'_>, goal: Option<f64>, world: impl Fn(&mut Rng, usize) -> World) {
    let cells = row.play(&world);
    let mut line = format!("{:<58} {:>5}", row.title(), cells[0].releases);
    for (cell, (way, ..)) in cells.iter().zip(WAYS) {
        let share = cell.delays_s.len() as f64 * 1000.0 / cell.releases as f64;
        line += &format!("   {way} {share:>6.1}");
    }
    let goal_text = goal.map_or("none".to_owned(), |goal| format!("{goal}"));
    let reasons: Vec<_> = cells.iter().map(|cell| &cell.reasons).collect();
    println!("{line}   of 1000 rolled back, goal {goal_text}   {reasons:?}");
    if let Some(goal) = goal {
        for (cell, (way, ..)) in cells.iter().zip(WAYS) {
            cell.at_most(&row.title(), way, goal);
        }
    }
}

/// Seconds within which 95 % must be found after five rollouts, through the Service and directly, where there is a goal.
type Goals = (Option<f64>, Option<f64>);

#[track_caller]
fn found(row: &Row<'_>, goals: Goals, world: impl Fn(&mut Rng, usize) -> World) {
    let cells = row.play(&world);
    let mut line = format!("{:<58} {:>5}", row.title(), cells[0].releases);
    for (cell, (way, ..)) in cells.iter().zip(WAYS) {
        let share = cell.delays_s.len() * 100 / cell.releases;
        line += &format!(
            "   {way} {share:>3} % {:>3.0}/{:<3.0}",
            cell.quantile(0.5).ceil(),
            cell.quantile(0.95).ceil()
        );
    }
    let text = |goal: Option<f64>| goal.map_or("-".to_owned(), |goal| format!("{goal}"));
    println!("{line}   goals {} {}", text(goals.0), text(goals.1));
    for (goal, cell) in [(goals.0, 1), (goals.1, 3)] {
        if let Some(goal) = goal {
            cells[cell].found_within(&row.title(), WAYS[cell].0, goal);
        }
    }
}

/// The shapes of the table.
const SHAPES: [Shape; 4] = [Shape::THREE, Shape::FIVE, Shape::TWENTY, Shape::TWENTY_SLOW];

/// A row of healthy releases in each of these shapes.
#[track_caller]
fn kept_in(
    shapes: &[Shape],
    name: &str,
    seed: u64,
    finished: Past,
    goal: Option<f64>,
    world: impl Fn(Shape, &mut Rng, usize) -> World,
) {
    for shape in shapes {
        let row = Row {
            name,
            seed,
            shape: *shape,
            count: 4,
            finished,
            onset_s: None,
        };
        kept(&row, goal, |rng, release| world(*shape, rng, release));
    }
}

#[test]
fn goal_normal_releases_are_kept() {
    let normal = |shape, rng: &mut Rng, _| World::normal(shape, rng);
    kept_in(&SHAPES, "normal", 1, Past::Same, Some(0.5), normal);
    let slowly = |shape, rng: &mut Rng, _| World {
        interval_s: 5.0,
        ..World::normal(shape, rng)
    };
    kept_in(
        &SHAPES[..1],
        "normal, each 5 s",
        2,
        Past::Same,
        Some(0.5),
        slowly,
    );
}

#[test]
fn goal_a_burst_of_ten_seconds_is_kept() {
    const BEGINS_S: [f64; 11] = [
        28.0, 0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 20.0, 45.0, 150.0, 280.0,
    ];
    let burst = |shape, _: &mut Rng, release: usize| {
        let from = BEGINS_S[release % BEGINS_S.len()];
        World {
            outage_s: (from, from + 10.0),
            ..World::quiet(shape)
        }
    };
    let (finished, goal) = (Past::Normal, Some(5.0));
    kept_in(
        &SHAPES,
        "a burst of 10 s of everything",
        3,
        finished,
        goal,
        burst,
    );
}

/// A pod's warm-up: the share that fails at an age.
fn warming(
    name: &str,
    seed: u64,
    shapes: &[Shape],
    goal: Option<f64>,
    share: impl Fn(f64) -> f64 + Copy + 'static,
) {
    let world = |shape, _: &mut Rng, _| {
        World::failing(
            shape,
            move |asked| if asked.new { share(asked.age_s) } else { 0.0 },
        )
    };
    kept_in(shapes, name, seed, Past::Same, goal, world);
}

fn until(age_s: f64, share: f64) -> impl Fn(f64) -> f64 + Copy + 'static {
    move |age| if age < age_s { share } else { 0.0 }
}

#[test]
fn goal_short_warm_ups_are_kept() {
    for (name, seed, share, age_s) in [
        ("50 % for 10 s", 11, 0.5, 10.0),
        ("20 % for 10 s", 12, 0.2, 10.0),
        ("10 % for 15 s", 13, 0.1, 15.0),
        ("5 % for 30 s", 14, 0.05, 30.0),
    ] {
        warming(name, seed, &SHAPES[..3], Some(5.0), until(age_s, share));
    }
}

#[test]
fn goal_long_warm_ups_are_kept() {
    for (name, seed, share, age_s) in [
        ("20 % for 30 s", 15, 0.2, 30.0),
        ("all for 9 s", 18, 1.0, 9.0),
        ("3 % for 60 s", 19, 0.03, 60.0),
        ("10 % for 60 s", 20, 0.1, 60.0),
    ] {
        warming(name, seed, &SHAPES[..3], Some(5.0), until(age_s, share));
    }
    let fading = |age: f64| 0.2 * (-age / 20.0).exp();
    warming("20 % fading with 20 s", 16, &SHAPES[..3], Some(5.0), fading);
    let one = [Shape::ONE];
    warming("20 % for 20 s", 17, &one, Some(5.0), until(20.0, 0.2));
}

#[test]
fn worlds_without_a_goal_are_in_the_table() {
    let shapes = [Shape::THREE];
    warming("20 % for 60 s", 21, &shapes, None, until(60.0, 0.2));
    let both = |shape, _: &mut Rng, _| World {
        drain_s: 10.0,
        ..World::failing(shape, |asked| {
            if asked.new && asked.age_s < 20.0 {
                0.2
            } else {
                0.0
            }
        })
    };
    let name = "drain of 10 s and 20 % for 20 s";
    kept_in(&shapes, name, 22, Past::Same, None, both);
    for (share, seed) in [(0.15, 23), (0.4, 24), (1.0, 25)] {
        let shared = move |shape, _: &mut Rng, _| {
            World::failing(shape, move |asked| {
                if asked.at < 2 && asked.t >= 5.0 {
                    share
                } else {
                    0.0
                }
            })
        };
        let name = format!("a dependency of two endpoints fails by {share} from 5 s on");
        kept_in(&shapes, &name, seed, Past::Normal, None, shared);
    }
    let later = |shape, _: &mut Rng, _| {
        World::failing(shape, |asked| {
            f64::from(u8::from(asked.at < 2 && asked.t >= 60.0))
        })
    };
    let name = "the same from 60 s on, not declared";
    kept_in(&shapes, name, 26, Past::Normal, None, later);
}

#[test]
fn goal_drains_are_kept() {
    for (drain_s, seed) in [(5.0, 31), (10.0, 32)] {
        let drain = move |shape, _: &mut Rng, _| World {
            drain_s,
            ..World::quiet(shape)
        };
        let name = format!("drain of {drain_s} s");
        kept_in(&SHAPES[..3], &name, seed, Past::Same, Some(5.0), drain);
    }
    let slow = |shape, _: &mut Rng, _| World {
        drain_s: 10.0,
        start_s: (29.0, 31.0),
        ..World::quiet(shape)
    };
    let shapes = [Shape::SIX, Shape::TWENTY_SINGLE];
    let name = "drain of 10 s, one by one, 30 s each";
    kept_in(&shapes, name, 33, Past::Same, Some(5.0), slow);
}

/// A pod that stops first, and comes back after so long.
fn recreated(gap_s: f64) -> World {
    World {
        start_s: (gap_s, gap_s),
        ..World::quiet(Shape::RECREATED)
    }
}

#[test]
fn goal_the_downtime_of_a_strategy_is_kept() {
    const GAPS_S: [f64; 8] = [16.0, 100.0, 12.0, 60.0, 14.0, 45.0, 80.0, 30.0];
    let shapes = [Shape::RECREATED];
    let gaps = |_, _: &mut Rng, release: usize| recreated(GAPS_S[release % GAPS_S.len()]);
    let name = "a strategy that stops first, gap of 12 to 100 s";
    kept_in(&shapes, name, 34, Past::Same, Some(5.0), gaps);
    // So long a gap is rolled back where nothing like it was met before.
    let long = |_, _: &mut Rng, _| recreated(150.0);
    let finished = Past::Of(|attempt| recreated(80.0 + 35.0 * (attempt as f64).min(2.0)));
    kept_in(&shapes, "the same, gap of 150 s", 35, finished, None, long);
}

#[test]
fn goal_rate_limits_are_kept() {
    for (per_minute, seed) in [(30.0, 41), (60.0, 43), (120.0, 45), (200.0, 47)] {
        for (kind, limit) in [
            ("bucket", Limit::Bucket { per_minute }),
            ("window", Limit::Window { per_minute }),
        ] {
            let limited = move |shape, _: &mut Rng, _| World {
                limit: Some(limit),
                ..World::quiet(shape)
            };
            let name = format!("a rate limit of {per_minute} a minute, {kind}");
            let shapes = [Shape::THREE];
            kept_in(&shapes, &name, seed, Past::Normal, Some(5.0), limited);
        }
    }
}

#[test]
fn goal_one_point_more_is_harmless() {
    let rise =
        |shape, _: &mut Rng, _| World::failing(shape, |asked| if asked.new { 0.01 } else { 0.0 });
    kept_in(
        &SHAPES,
        "new pods +1 point",
        51,
        Past::Normal,
        Some(10.0),
        rise,
    );
}

#[test]
fn goal_a_declared_dependency_that_fails_is_kept() {
    let later = |shape, _: &mut Rng, _| World {
        dependency_from_s: Some(60.0),
        ..World::quiet(shape)
    };
    let (shapes, finished) = ([Shape::THREE], Past::Normal);
    let name = "a declared dependency fails from 60 s on";
    kept_in(&shapes, name, 52, finished, Some(5.0), later);
}

/// What must never be: a verdict of healthy on a rollout that is not complete.
#[test]
fn goal_pods_that_never_start_are_never_healthy() {
    for (shape, lessons) in [
        (Shape::THREE, Lessons::default()),
        (Shape::FIVE, Lessons::default()),
        (Shape::TWENTY, Lessons::default()),
    ] {
        for release in 0..releases(4) {
            let mut rng = numbers(61, release);
            let world = World::quiet(shape);
            let starts = [false, true].map(|direct| world.start(&mut rng, &lessons, direct));
            let mut watches = starts.map(|start| begin(&world, &start));
            world.play(&mut rng, &Deployed::stuck(shape), &mut watches);
            for analysis in &watches {
                let regression = analysis.regression().unwrap();
                assert_eq!(regression.reason.to_string(), "not_ready:web");
                assert_eq!(regression.tick, 300);
            }
            // The same where the first pod becomes Ready and the others never do.
            let mut halted = world.deploy(&mut rng);
            halted.events.pop();
            halted
                .pods
                .retain(|pod| pod.number == 0 || pod.gone_s.is_finite());
            halted
                .pods
                .iter_mut()
                .for_each(|pod| pod.gone_s = f64::INFINITY);
            let mut analysis = [begin(&world, &world.start(&mut rng, &lessons, false))];
            if release == 0 {
                world.play(&mut rng, &halted, &mut analysis);
                let verdict = analysis[0].conclude();
                assert_eq!(
                    verdict,
                    Verdict::Inconclusive(InconclusiveReason::NotRolledOut)
                );
            }
        }
    }
}

/// New pods fail more often, in every endpoint.
fn worse(shape: Shape, rise: f64) -> World {
    World::failing(shape, move |asked| if asked.new { rise } else { 0.0 })
}

/// A row of bad releases in each of these shapes.
#[track_caller]
fn found_in(
    shapes: &[Shape],
    name: &str,
    seed: u64,
    onset_s: Option<f64>,
    goals: impl Fn(Shape) -> Goals,
    world: impl Fn(Shape, &mut Rng) -> World,
) {
    for shape in shapes {
        let row = Row {
            name,
            seed,
            shape: *shape,
            count: 6,
            finished: Past::Normal,
            onset_s,
        };
        found(&row, goals(*shape), |rng, _| world(*shape, rng));
    }
}

/// The goal where pods are asked directly is less for twenty pods.
fn unless_twenty(seconds: f64, twenty_s: f64) -> impl Fn(Shape) -> f64 {
    move |shape| {
        if shape.replicas == 20 {
            twenty_s
        } else {
            seconds
        }
    }
}

const FOUND_SHAPES: [Shape; 3] = [Shape::THREE, Shape::FIVE, Shape::TWENTY];

#[test]
fn goal_dead_pods_are_found() {
    let direct = unless_twenty(18.0, 14.0);
    let goals = |service: f64| {
        let direct = &direct;
        move |shape| (Some(service), Some(direct(shape)))
    };
    found_in(&FOUND_SHAPES, "dead", 71, None, goals(25.0), |shape, _| {
        worse(shape, 1.0)
    });
    let one = |shape, _: &mut Rng| {
        World::failing(shape, |asked| {
            f64::from(u8::from(asked.new && asked.at == 1))
        })
    };
    found_in(
        &FOUND_SHAPES,
        "one endpoint dead",
        72,
        None,
        goals(35.0),
        one,
    );
    let outage = |shape, _: &mut Rng| World {
        outage_s: (200.0, f64::INFINITY),
        ..World::quiet(shape)
    };
    let all = |_| (Some(16.0), Some(16.0));
    found_in(
        &FOUND_SHAPES,
        "everything down from 200 s on",
        73,
        Some(200.0),
        all,
        outage,
    );
}

#[test]
fn goal_large_rises_are_found() {
    for (rise, seed, service, direct) in [
        (0.5, 74, None, Some(25.0)),
        (0.2, 75, Some(45.0), Some(30.0)),
    ] {
        let name = format!("+{} points", rise * 100.0);
        let goals = |_| (service, direct);
        found_in(&FOUND_SHAPES, &name, seed, None, goals, |shape, _| {
            worse(shape, rise)
        });
    }
}

/// The goals are of pods that hand over in order. Where they do not, what was learned of that hides a part.
#[test]
fn rises_behind_an_untidy_handover_are_in_the_table() {
    let untidy = |fails: f64| World {
        drain_s: 2.0,
        ..worse(Shape::THREE, fails)
    };
    for (rise, seed) in [(0.2, 78), (0.1, 79)] {
        let row = Row {
            name: &format!("+{} points, drain of 2 s", rise * 100.0),
            seed,
            shape: Shape::THREE,
            count: 6,
            finished: Past::Of(|_| World {
                drain_s: 2.0,
                ..World::quiet(Shape::THREE)
            }),
            onset_s: None,
        };
        found(&row, (None, None), |_, _| untidy(rise));
    }
}

#[test]
fn goal_small_rises_are_found() {
    for (rise, seed, service, direct) in [
        (0.1, 76, Some(75.0), Some(45.0)),
        (0.05, 77, Some(175.0), Some(80.0)),
    ] {
        let name = format!("+{} points", rise * 100.0);
        let goals = |_| (service, direct);
        found_in(&FOUND_SHAPES, &name, seed, None, goals, |shape, _| {
            worse(shape, rise)
        });
    }
}

/// Rows of the table that have no goal of their own: their figures there are what is checked, with some room.
#[test]
fn goal_what_version_one_missed_is_found() {
    let higher = |shape, _: &mut Rng| World {
        base: 0.05,
        ..worse(shape, 0.07 / 0.95)
    };
    let shapes = [Shape::THREE, Shape::TWENTY];
    let goals = |shape: Shape| match shape.replicas {
        3 => (Some(220.0), Some(100.0)),
        _ => (Some(220.0), Some(75.0)),
    };
    found_in(&shapes, "5 % to 12 %", 81, None, goals, higher);
    let one = |shape, _: &mut Rng| {
        World::failing(
            shape,
            |asked| {
                if asked.new && asked.at == 1 { 0.2 } else { 0.0 }
            },
        )
    };
    let goals = |_| (Some(120.0), Some(85.0));
    found_in(&shapes, "one endpoint +20 points", 82, None, goals, one);
    let fifth = |shape, _: &mut Rng| {
        World::failing(shape, |asked| {
            f64::from(u8::from(asked.new && asked.pod.is_multiple_of(5)))
        })
    };
    let goals = |_| (Some(65.0), Some(65.0));
    let fives = [Shape::FIVE, Shape::TWENTY];
    found_in(&fives, "one pod of five dead", 83, None, goals, fifth);
    let periodic = |shape, _: &mut Rng| {
        World::failing(shape, |asked| {
            f64::from(u8::from(asked.new && asked.t % 60.0 < 5.0))
        })
    };
    let goals = |_| (Some(240.0), Some(220.0));
    found_in(&shapes, "5 s of each minute", 84, None, goals, periodic);
}

#[test]
fn goal_what_begins_or_becomes_ready_late_is_found() {
    let shapes = [Shape::THREE, Shape::TWENTY];
    for (name, seed, rise, from_s, latest_s) in [
        ("dead from 290 s on", 85, 1.0, 290.0, 16.0),
        ("+20 points from 270 s on", 86, 0.2, 270.0, 45.0),
    ] {
        let late = move |shape, _: &mut Rng| {
            World::failing(
                shape,
                move |asked| if asked.t >= from_s { rise } else { 0.0 },
            )
        };
        let goals = |_| (Some(latest_s), Some(latest_s));
        found_in(&shapes, name, seed, Some(from_s), goals, late);
    }
    for (name, seed, rise, service_s, direct_s) in [
        ("Ready after 240 s and +20 points", 87, 0.2, 80.0, 32.0),
        ("Ready after 240 s and dead", 88, 1.0, 28.0, 28.0),
    ] {
        let slow = move |shape, _: &mut Rng| World {
            hook_s: 229.0,
            ..worse(shape, rise)
        };
        let goals = |_| (Some(service_s), Some(direct_s));
        found_in(&shapes[..1], name, seed, None, goals, slow);
    }
    // With a base rate of nothing at all it is the same.
    let clean = |shape, _: &mut Rng| World {
        base: 0.0,
        ..worse(shape, 1.0)
    };
    let goals = |_| (Some(25.0), Some(18.0));
    found_in(
        &shapes,
        "dead, nothing fails by itself",
        89,
        None,
        goals,
        clean,
    );
}

/// Which answers are how much slower, and in how many releases of the ways in which pods are asked directly that
/// rejects; the notice for less is counted beside it.
fn timed(
    name: &str,
    seed: u64,
    count: usize,
    slower: impl Fn(&super::world::Asked) -> f64 + Copy + 'static,
) -> (Cell, usize) {
    let shape = Shape::FIVE;
    let mut cell = Cell::default();
    let mut notices = Vec::new();
    for release in 0..releases(count) {
        let mut rng = numbers(seed, release);
        let world = World {
            slow: Some(Box::new(slower)),
            ..World::quiet(shape)
        };
        let deployed = world.deploy(&mut rng);
        let lessons = &taught_normally(shape, 0).direct;
        let start = world.start(&mut rng, lessons, true);
        let mut analysis = [begin(&world, &start)];
        world.play(&mut rng, &deployed, &mut analysis);
        cell.note(&analysis[0], deployed.first_ready_s);
        notices.extend(
            analysis[0]
                .slower()
                .map(|slower| slower.t - deployed.first_ready_s),
        );
    }
    cell.delays_s.sort_by(f64::total_cmp);
    notices.sort_by(f64::total_cmp);
    println!(
        "latency: {name:<40} {:>5} releases   rejected {} {:.0}/{:.0}   noticed {} {:.0}   {:?}",
        cell.releases,
        cell.delays_s.len(),
        cell.quantile(0.5).ceil(),
        cell.quantile(0.95).ceil(),
        notices.len(),
        notices
            .get(notices.len() / 2)
            .map_or(f64::NAN, |t| t.ceil()),
        cell.reasons
    );
    (cell, notices.len())
}

#[test]
fn goal_slow_answers_are_found_and_a_load_is_not() {
    let (three, _) = timed("new pods three times as slow", 91, 4, |asked| {
        if asked.new { 3.0 } else { 1.0 }
    });
    three.found_within("three times as slow", "direct", 105.0);
    let (five, _) = timed("new pods five times as slow", 92, 4, |asked| {
        if asked.new { 5.0 } else { 1.0 }
    });
    five.found_within("five times as slow", "direct", 85.0);
    let (twice, noticed) = timed("new pods twice as slow", 93, 4, |asked| {
        if asked.new { 2.0 } else { 1.0 }
    });
    twice.at_most("twice as slow", "direct", 50.0);
    assert!(noticed + allowed(twice.releases, 0.05) >= twice.releases);
    for (name, seed, load) in [("load", 94, 1.3), ("no change", 95, 1.0)] {
        let (same, _) = timed(name, seed, 4, move |_| load);
        same.at_most(name, "direct", 10.0);
    }
    let (cold, _) = timed("five times as slow for a minute", 96, 4, |asked| {
        if asked.new && asked.age_s < 60.0 {
            5.0
        } else {
            1.0
        }
    });
    cold.at_most("cold for a minute", "direct", 10.0);
}

/// The share of an endpoint's results that fails at a time.
type Rate = Box<dyn Fn(f64, usize) -> f64>;

/// Bakes of an hour through the Service alone, each endpoint each five seconds; the rate at which an endpoint fails at
/// a time, counted from the revision's appearance.
fn baked(
    name: &str,
    seed: u64,
    count: usize,
    onset_s: f64,
    rate: impl Fn(&mut Rng) -> Rate,
) -> Cell {
    let mut cell = Cell::default();
    for release in 0..releases(count) {
        let mut rng = numbers(seed, release);
        let rate = rate(&mut rng);
        let start = World::quiet(Shape::ONE).start(&mut rng, &Lessons::default(), false);
        let analysis = Analysis::new(rule(1.0), &start).unwrap();
        let mut bake = Bake::new(&analysis, 5.0, 300.0);
        while bake.end() == BakeEnd::Baking {
            let t = bake.elapsed_s();
            let outcomes: [TickOutcome; ENDPOINTS] =
                std::array::from_fn(|at| outcome(rng.f64() < 0.01 + rate(t, at)));
            bake.tick(&outcomes, &[], |_| 0);
        }
        cell.releases += 1;
        cell.healthy += usize::from(bake.end() == BakeEnd::Good);
        if let Some(alarm) = bake.alarm() {
            cell.delays_s.push(alarm.t - onset_s);
            *cell.reasons.entry(alarm.reason.to_string()).or_default() += 1;
        }
    }
    cell.delays_s.sort_by(f64::total_cmp);
    println!(
        "bake: {name:<43} {:>5} releases   alarms {}   {:.0}/{:.0} s",
        cell.releases,
        cell.delays_s.len(),
        cell.quantile(0.5),
        cell.quantile(0.95)
    );
    cell
}

#[test]
fn goal_the_bake_finds_what_lasts_and_forgets_what_is_over() {
    let alarms = |name, seed, rate: fn(&mut Rng) -> Rate| {
        let cell = baked(name, seed, 4, 0.0, rate);
        cell.at_most(name, "bake", 5.0);
        assert_eq!(cell.healthy + cell.delays_s.len(), cell.releases);
    };
    alarms("nothing", 101, |_| Box::new(|_, _| 0.0));
    alarms("a burst of 10 s in the hour", 102, |rng| {
        let from = within(rng, 300.0, 3590.0);
        Box::new(move |t, _| f64::from(u8::from(from <= t && t < from + 10.0)))
    });
    for (name, seed, at, rise, latest_s) in [
        ("dead from 1000 s on", 103, None, 1.0, 135.0),
        ("+20 points", 104, None, 0.2, 225.0),
        ("+10 points", 105, None, 0.1, 530.0),
        ("one of four endpoints dead", 106, Some(1), 1.0, 185.0),
    ] {
        let cell = baked(name, seed, 4, 1000.0, |_| {
            let hit = move |t: f64, which: usize| t >= 1000.0 && at.is_none_or(|at| at == which);
            Box::new(move |t, which| if hit(t, which) { rise } else { 0.0 })
        });
        cell.found_within(name, "bake", latest_s);
    }
    let leak = baked("a leak: a point more each minute", 107, 4, 300.0, |_| {
        Box::new(|t, _| ((t - 300.0) / 60.0 * 0.01).max(0.0))
    });
    leak.found_within("a leak", "bake", 860.0);
}

/// A watch that is done stays as it is: the simulation must not feed it further.
#[test]
fn a_release_is_played_until_every_way_has_ended() {
    let world = worse(Shape::THREE, 1.0);
    let mut rng = numbers(111, 0);
    let deployed = world.deploy(&mut rng);
    let lessons = Lessons::default();
    let starts = [false, true].map(|direct| world.start(&mut rng, &lessons, direct));
    let mut watches = starts.map(|start| begin(&world, &start));
    world.play(&mut rng, &deployed, &mut watches);
    assert!(watches.iter().all(is_done));
    assert!(
        watches
            .iter()
            .all(|analysis| analysis.regression().is_some())
    );
    assert!(deployed.complete_s > deployed.first_ready_s);
}
