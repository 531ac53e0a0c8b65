//! What holds of every stream of results: the properties of the specification, in its order.
//!
//! The streams are drawn by proptest from a fixed seed, so a run says the same every time; `LEADSMAN_SIMULATE=50` draws
//! fifty times as many.

use fastrand::Rng;
use leadsman::core::analysis::{
    Analysis, AnalysisStart, AnalyzedWorkload, Bake, InconclusiveReason, LearnedRollouts, PodSide,
    PodState, PodTick, RegressionReason, RequestScrape, RequestsBefore, Rule, StuckReason, Tick,
    TickOutcome, Verdict, WorkloadChange, WorkloadDiff, WorkloadEvent, bucket, upper_bound,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::goals::{allowed, releases};
use super::rollout::Shape;
use super::world::{ENDPOINTS, Lessons, World, event, numbers, outcome, rule, within};

type Row = Vec<TickOutcome>;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: releases(cases as usize) as u32,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x6c65_6164),
        ..ProptestConfig::default()
    }
}

fn known(baseline: &[(u64, u64)]) -> AnalysisStart {
    AnalysisStart {
        endpoints: (0..baseline.len())
            .map(|at| format!("e{at}").into())
            .collect(),
        baseline: baseline.to_vec(),
        failing_at_start: vec![false; baseline.len()],
        complete_at: Some(0.0),
        ..AnalysisStart::default()
    }
}

/// The same with a workload that is rolled out.
fn rolled_out(start: AnalysisStart) -> AnalysisStart {
    AnalysisStart {
        workloads: Some(vec![Shape::THREE.workload()]),
        ..start
    }
}

fn judge(rule: &Rule, start: &AnalysisStart, rows: &[Row]) -> Analysis {
    judge_with(rule, start, rows, &[])
}

/// With what becomes known of the rollout.
fn judge_with(
    rule: &Rule,
    start: &AnalysisStart,
    rows: &[Row],
    events: &[WorkloadEvent],
) -> Analysis {
    let mut analysis = Analysis::new(rule.clone(), start).unwrap();
    feed(&mut analysis, rows, events);
    analysis
}

/// Reads so many more rows.
fn feed(analysis: &mut Analysis, rows: &[Row], events: &[WorkloadEvent]) {
    for outcomes in rows {
        let t = analysis.elapsed_s();
        let before = t - analysis.rule().interval_s;
        let new: Vec<WorkloadEvent> = events
            .iter()
            .filter(|event| before < event.t && event.t <= t)
            .copied()
            .collect();
        analysis.tick(&Tick {
            outcomes,
            rollout: &new,
            ..Tick::default()
        });
    }
}

fn fired(analysis: &Analysis) -> u32 {
    analysis
        .regression()
        .map_or(u32::MAX, |regression| regression.tick)
}

/// Clean counts of so many results, for all that is learned.
fn learned_clean(endpoints: usize, results: u64) -> LearnedRollouts {
    LearnedRollouts {
        rollouts: 5,
        longest_s: 0.0,
        pods: [(0, results); 6],
        pool: [(0, results); 3],
        endpoints: vec![[(0, results); 3]; endpoints],
    }
}

/// Real trouble: for a while this share of one endpoint's results fails, or of all endpoints'.
#[derive(Debug, Clone)]
struct Trouble {
    ticks: usize,
    rate: f64,
    /// Beyond the last endpoint: all of them.
    at: usize,
}

fn troubles() -> impl Strategy<Value = Vec<Trouble>> {
    let rate = prop::sample::select(vec![0.0, 0.01, 0.05, 0.1, 0.3, 1.0]);
    let trouble =
        (1_usize..60, rate, 0_usize..8).prop_map(|(ticks, rate, at)| Trouble { ticks, rate, at });
    prop::collection::vec(trouble, 1..12)
}

/// The rows of these troubles, one after another, unknown now and then. A row depends on its place alone.
fn rows(troubles: &[Trouble], seed: u64, endpoints: usize, ticks: usize, unknown: f64) -> Vec<Row> {
    let mut rates = vec![0.01; endpoints];
    let mut next = troubles.iter();
    let mut left = 0;
    (0..ticks)
        .map(|tick| {
            if left == 0 {
                if let Some(trouble) = next.next() {
                    left = trouble.ticks;
                    match rates.get_mut(trouble.at) {
                        Some(rate) => *rate = trouble.rate,
                        None => rates.fill(trouble.rate),
                    }
                } else {
                    left = usize::MAX;
                }
            }
            left -= 1;
            let mut rng = numbers(seed, tick);
            rates
                .iter()
                .map(|rate| {
                    let (is_unknown, bad) = (rng.f64() < unknown, rng.f64() < *rate);
                    if is_unknown {
                        TickOutcome::Unknown
                    } else {
                        outcome(bad)
                    }
                })
                .collect()
        })
        .collect()
}

fn intervals() -> impl Strategy<Value = f64> {
    prop::sample::select(vec![1.0, 5.0])
}

/// Property 1: At the tolerated rate the threshold is reached by chance at most once in a hundred.
#[test]
fn property_01_at_the_tolerated_rate_at_most_one_in_a_hundred_reaches_the_threshold() {
    for (interval_s, count, total) in [(5.0, 300, 720), (1.0, 60, 3600)] {
        let rule = rule(interval_s);
        let baseline = [(total / 100, total); ENDPOINTS];
        let pooled = (total / 100 * 4) as f64;
        let q = upper_bound(pooled, (4 * total) as f64, rule.baseline_conf) + rule.null_margin;
        let ticks = (rule.analysis_s / interval_s) as usize;
        let count = releases(count);
        let reached = (0..count)
            .filter(|release| {
                let mut rng = numbers(21, *release);
                let rows: Vec<Row> = (0..ticks)
                    .map(|_| (0..ENDPOINTS).map(|_| outcome(rng.f64() < q)).collect())
                    .collect();
                judge(&rule, &known(&baseline), &rows).max_e() >= rule.threshold()
            })
            .count();
        assert!(
            reached <= allowed(count, rule.alpha),
            "{reached} of {count}"
        );
    }
}

/// Property 2: Of healthy releases with a burst a day at most one in 2000 is rolled back; through the Service alone, nothing
/// rolled out. `goals.rs` has the same with rollouts.
#[test]
fn property_02_healthy_worlds_are_kept() {
    for interval_s in [1.0, 5.0] {
        let rule = rule(interval_s);
        let ticks = (rule.analysis_s / interval_s) as usize;
        let count = releases(60);
        let rolled_back = (0..count)
            .filter(|release| {
                let mut rng = numbers(22, *release);
                let world = World {
                    interval_s,
                    ..World::normal(Shape::ONE, &mut rng)
                };
                let start = AnalysisStart {
                    workloads: None,
                    complete_at: Some(0.0),
                    ..world.start(&mut rng, &Lessons::default(), false)
                };
                let rows: Vec<Row> = (0..ticks)
                    .map(|tick| {
                        let t = tick as f64 * interval_s;
                        let in_burst = world.outage_s.0 <= t && t < world.outage_s.1;
                        (0..ENDPOINTS)
                            .map(|_| outcome(in_burst || rng.f64() < world.base))
                            .collect()
                    })
                    .collect();
                judge(&rule, &start, &rows).regression().is_some()
            })
            .count();
        assert!(
            rolled_back <= allowed(count, 0.0005),
            "{rolled_back} of {count}"
        );
    }
}

/// Property 7: A stream of which nothing is evidence says nothing.
#[test]
fn property_07_unknown_alone_is_inconclusive() {
    for nothing in [
        TickOutcome::Unknown,
        TickOutcome::Limited,
        TickOutcome::NotDue,
    ] {
        let rows = vec![vec![nothing; 2]; 300];
        let analysis = judge(&rule(1.0), &known(&[(0, 3600); 2]), &rows);
        assert!(analysis.is_over());
        let verdict = analysis.conclude();
        assert_eq!(
            verdict,
            Verdict::Inconclusive(InconclusiveReason::Coverage),
            "{nothing:?}"
        );
    }
}

/// Property 9: A total outage is found as soon as it has lasted `hold_s`.
#[test]
fn property_09_a_total_outage_is_found_in_time_at_any_interval() {
    for interval_s in [0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0] {
        let usual = rule(interval_s);
        // Here no estimate is ever high enough for path C.
        let by_runs_alone = Rule {
            margin: 1.0,
            endpoint_margin: 1.0,
            ..usual.clone()
        };
        for rule in [usual, by_runs_alone] {
            let total = (3600.0 / interval_s) as u64;
            let rows = vec![vec![TickOutcome::Failure; ENDPOINTS]; 60];
            let analysis = judge(&rule, &known(&[(0, total); ENDPOINTS]), &rows);
            let latest = ((rule.hold_s / interval_s).ceil() as u32 + 1).max(3);
            let found = fired(&analysis);
            assert!(found < latest, "every {interval_s} s: {found}");
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    /// Property 3: One more failure never delays a rollback.
    #[test]
    fn property_03_one_more_failure_never_delays_a_rollback(
        troubles in troubles(),
        seed: u64,
        interval_s in intervals(),
        unknown in prop::sample::select(vec![0.0, 0.05]),
        more in prop::collection::vec((0_usize..300, 0_usize..3), 1..10),
    ) {
        let rule = rule(interval_s);
        let ticks = (rule.analysis_s / interval_s) as usize;
        let mut stream = rows(&troubles, seed, 3, ticks, unknown);
        let start = known(&[(36, 3600); 3]);
        let before = fired(&judge(&rule, &start, &stream));
        for (tick, at) in more {
            let outcome = &mut stream[tick % ticks][at];
            if *outcome == TickOutcome::Success {
                *outcome = TickOutcome::Failure;
            }
        }
        let after = fired(&judge(&rule, &start, &stream));
        prop_assert!(after <= before, "{} became {}", before, after);
    }

    /// Property 4: A worse baseline never brings a rollback forward.
    #[test]
    fn property_04_a_worse_baseline_never_brings_a_rollback_forward(
        troubles in troubles(),
        seed: u64,
        interval_s in intervals(),
        failed in prop::array::uniform3(0_u64..40),
        which in 0_usize..3,
        more in 1_u64..200,
    ) {
        let rule = rule(interval_s);
        let stream = rows(&troubles, seed, 3, (rule.analysis_s / interval_s) as usize, 0.0);
        let mut baseline = failed.map(|failed| (failed, 3600));
        let before = fired(&judge(&rule, &known(&baseline), &stream));
        baseline[which].0 += more;
        let after = fired(&judge(&rule, &known(&baseline), &stream));
        prop_assert!(after >= before, "{} became {}", before, after);
    }

    /// Property 5: The order of the endpoints does not matter, with what is learned and which workload they ask.
    #[test]
    fn property_05_the_order_of_endpoints_does_not_matter(
        troubles in troubles(),
        seed: u64,
        order in Just([0_usize, 1, 2, 3]).prop_shuffle(),
    ) {
        let rule = rule(1.0);
        let mut start = rolled_out(known(&[(3, 3600), (40, 3600), (0, 20), (9, 700)]));
        start.learned = learned_clean(4, 200);
        start.learned.endpoints[1] = [(30, 300); 3];
        start.learned.endpoints[3] = [(0, 60); 3];
        let first = |places: Vec<u16>| {
            let workload = AnalyzedWorkload { probes: Some(places), ..Shape::THREE.workload() };
            Some(vec![workload])
        };
        start.workloads = first(vec![0, 1]);
        let events = [
            event(5.0, WorkloadChange::Ready),
            event(40.0, WorkloadChange::Complete),
        ];
        let stream = rows(&troubles, seed, 4, 130, 0.02);
        let place = |at: usize| order.iter().position(|from| *from == at).unwrap() as u16;
        let other = AnalysisStart {
            endpoints: order.iter().map(|at| start.endpoints[*at].clone()).collect(),
            baseline: order.iter().map(|at| start.baseline[*at]).collect(),
            learned: LearnedRollouts {
                endpoints: order.iter().map(|at| start.learned.endpoints[*at]).collect(),
                ..start.learned.clone()
            },
            workloads: first(vec![place(0), place(1)]),
            ..start.clone()
        };
        let moved: Vec<Row> = stream
            .iter()
            .map(|row| order.iter().map(|at| row[*at]).collect())
            .collect();
        let one = judge_with(&rule, &start, &stream, &events);
        let two = judge_with(&rule, &other, &moved, &events);
        prop_assert_eq!(fired(&one), fired(&two));
        let off = (one.max_e() - two.max_e()).abs();
        prop_assert!(off <= 1e-6 * one.max_e(), "{} {}", one.max_e(), two.max_e());
    }

    /// Property 6: One burst of ten seconds rejects nobody, whenever it comes and however often one asks.
    #[test]
    fn property_06_one_burst_of_ten_seconds_never_rejects(
        interval_s in prop::sample::select(vec![1.0, 2.0, 5.0, 10.0, 15.0]),
        place in 0.0_f64..1.0,
        is_rolled_out: bool,
        complete_s in 12.0_f64..200.0,
    ) {
        let rule = rule(interval_s);
        let ticks = (rule.analysis_s / interval_s) as usize;
        let long = ((rule.burst_s / interval_s) as usize).max(1);
        let from = ((ticks - long + 1) as f64 * place) as usize;
        let stream: Vec<Row> = (0..2 * ticks)
            .map(|tick| vec![outcome(from <= tick && tick < from + long); ENDPOINTS])
            .collect();
        let mut start = known(&[(0, (3600.0 / interval_s) as u64); ENDPOINTS]);
        if is_rolled_out {
            start = rolled_out(start);
            start.learned = learned_clean(ENDPOINTS, 1000);
        }
        let events = [
            event(11.0, WorkloadChange::Ready),
            event(complete_s, WorkloadChange::Complete),
        ];
        let analysis = judge_with(&rule, &start, &stream, &events);
        prop_assert_eq!(analysis.regression(), None, "from tick {}", from);
        prop_assert_eq!(analysis.conclude(), Verdict::Healthy);
    }

    /// Property 7: What is no evidence rejects nobody, after whatever came before.
    #[test]
    fn property_07_unknown_rejects_nobody(
        troubles in troubles(),
        seed: u64,
        ticks in 10_usize..200,
        nothing in prop::sample::select(vec![TickOutcome::Unknown, TickOutcome::Limited, TickOutcome::NotDue]),
    ) {
        let rule = rule(1.0);
        let start = known(&[(0, 3600); 2]);
        let mut stream = rows(&troubles, seed, 2, ticks, 0.1);
        let before = fired(&judge(&rule, &start, &stream));
        stream.resize(400, vec![nothing; 2]);
        prop_assert_eq!(fired(&judge(&rule, &start, &stream)), before);
    }

    /// Property 8: The order of ticks within a closed block does not matter at its end.
    #[test]
    fn property_08_the_order_within_a_closed_block_does_not_matter(seed: u64, blocks in 2_usize..24) {
        let rule = rule(1.0);
        let start = known(&[(36, 3600); 3]);
        let block = rule.block_s as usize;
        let mut rng = numbers(seed, 0);
        // Few enough failures to reject nobody before the end, most of the time.
        let stream: Vec<Row> = (0..blocks * block)
            .map(|_| (0..3).map(|_| outcome(rng.f64() < 0.04)).collect())
            .collect();
        let mut shuffled = stream.clone();
        for ticks in shuffled.chunks_mut(block) {
            rng.shuffle(ticks);
        }
        let one = judge(&rule, &start, &stream);
        let two = judge(&rule, &start, &shuffled);
        prop_assume!(one.regression().is_none() && two.regression().is_none());
        let off = (one.e_value() - two.e_value()).abs();
        prop_assert!(off <= 1e-9 * one.e_value(), "{} {}", one.e_value(), two.e_value());
    }

    /// Property 15: A gap within its allowance is kept, with everything failing in it; and failures that go on after a pod is
    /// Ready are found within 15 s.
    #[test]
    fn property_15_expected_downtime(
        learned_s in prop::sample::select(vec![0.0, 20.0, 70.0]),
        share in 0.0_f64..1.0,
    ) {
        let rule = rule(1.0);
        let allowed_s = rule.downtime_s.max(2.0 * learned_s);
        let gap = (1.0 + share * (allowed_s - 1.0)).floor();
        let mut start = known(&[(0, 3600); ENDPOINTS]);
        let workload = AnalyzedWorkload { gap_s: learned_s, ..Shape::RECREATED.workload() };
        start.workloads = Some(vec![workload]);
        let events = [
            event(0.0, WorkloadChange::None),
            event(gap, WorkloadChange::Some),
            event(gap, WorkloadChange::Ready),
            event(gap, WorkloadChange::Complete),
        ];
        let mut stream = vec![vec![TickOutcome::Failure; ENDPOINTS]; gap as usize];
        stream.resize(420, vec![TickOutcome::Success; ENDPOINTS]);
        let analysis = judge_with(&rule, &start, &stream, &events);
        prop_assert_eq!(analysis.conclude(), Verdict::Healthy, "a gap of {} s", gap);
        let dead = vec![vec![TickOutcome::Failure; ENDPOINTS]; 420];
        let analysis = judge_with(&rule, &start, &dead, &events);
        let found_s = analysis.regression().map(|regression| regression.t);
        prop_assert!(found_s.is_some_and(|t| gap <= t && t <= gap + 15.0), "{:?}", found_s);
    }

    /// Property 16: Without a failure the verdict follows the rollout alone.
    #[test]
    fn property_16_good_answers_leave_the_verdict_to_the_rollout(
        interval_s in prop::sample::select(vec![5.0, 10.0]),
        ready_s in prop::option::of(0.0_f64..299.0),
        complete_s in prop::option::of(0.0_f64..1400.0),
    ) {
        let rule = rule(interval_s);
        let start = rolled_out(known(&[(0, 720); 2]));
        let mut events = Vec::new();
        events.extend(ready_s.map(|t| event(t, WorkloadChange::Ready)));
        let complete_s = ready_s.and(complete_s).map(|t| t.max(ready_s.unwrap()));
        events.extend(complete_s.map(|t| event(t, WorkloadChange::Complete)));
        let stream = vec![vec![TickOutcome::Success; 2]; 400];
        let analysis = judge_with(&rule, &start, &stream, &events);
        let verdict = analysis.conclude();
        let end_s = |from: f64| (from / interval_s).ceil() * interval_s;
        match (ready_s, complete_s) {
            (None, _) => {
                prop_assert_eq!(verdict.reason(), "not_ready:web");
                prop_assert_eq!(analysis.regression().map(|it| it.t), Some(end_s(rule.ready_within_s)));
            }
            // Known in the last tick of the longest watch, which begins one interval before its end.
            (Some(_), Some(at)) if at <= rule.analysis_cap_s - interval_s => {
                prop_assert_eq!(verdict, Verdict::Healthy);
                let end = (at + rule.after_complete_s).min(rule.analysis_cap_s).max(rule.analysis_s);
                prop_assert!((analysis.elapsed_s() - end_s(end)).abs() < 1e-6, "{} {}", analysis.elapsed_s(), end);
            }
            (Some(_), _) => {
                prop_assert_eq!(verdict, Verdict::Inconclusive(InconclusiveReason::NotRolledOut));
                prop_assert!((analysis.elapsed_s() - rule.analysis_cap_s).abs() < 1e-6);
            }
        }
    }

    /// Property 17: Where clean rollouts taught enough, a rollout is judged as if it had been complete from the start, from the
    /// first Ready pod on.
    #[test]
    fn property_17_what_was_learned_clean_is_as_good_as_complete(
        troubles in troubles(),
        seed: u64,
        complete_s in 1.0_f64..200.0,
        results in 150_u64..5000,
    ) {
        let rule = rule(1.0);
        let mut start = rolled_out(known(&[(3, 3600), (0, 3600)]));
        start.learned = learned_clean(2, results);
        start.direct = true;
        let mut rng = numbers(seed, 1);
        let mut running = Analysis::new(rule.clone(), &start).unwrap();
        let mut complete = running.clone();
        for (tick, outcomes) in rows(&troubles, seed, 2, 250, 0.02).iter().enumerate() {
            let answers = [outcome(rng.f64() < 0.02), outcome(rng.f64() < 0.02)];
            let looks = [new_pod(7, 0, &answers)];
            let t = tick as f64;
            let ready = (tick == 0).then(|| event(0.0, WorkloadChange::Ready));
            let at_once = (tick == 0).then(|| event(0.0, WorkloadChange::Complete));
            let is_due = t - 1.0 < complete_s && complete_s <= t;
            let late = is_due.then(|| event(complete_s, WorkloadChange::Complete));
            let seen = |rollout: &[WorkloadEvent], analysis: &mut Analysis| {
                analysis.tick(&Tick { outcomes, direct: &looks, rollout, ..Tick::default() });
            };
            seen(&[ready, late].into_iter().flatten().collect::<Vec<_>>(), &mut running);
            seen(&[ready, at_once].into_iter().flatten().collect::<Vec<_>>(), &mut complete);
            prop_assert_eq!(running.e_value().to_bits(), complete.e_value().to_bits(), "tick {}", tick);
        }
    }

    /// Property 18: A notice of slow answers changes no verdict, no tick and no e-value; nor does a bake that only tells.
    #[test]
    fn property_18_notices_change_nothing(
        troubles in troubles(),
        seed: u64,
        slow in 1_u32..4,
    ) {
        let rule = rule(1.0);
        let start = rolled_out(known(&[(3, 3600), (0, 3600)]));
        let timed = AnalysisStart {
            latency: vec![vec![(bucket(9000), 1000), (bucket(20_000), 30)]; 2],
            ..start.clone()
        };
        let mut plain = Analysis::new(rule.clone(), &start).unwrap();
        let mut told = Analysis::new(rule, &timed).unwrap();
        let mut noticed = false;
        for (tick, outcomes) in rows(&troubles, seed, 2, 300, 0.02).iter().enumerate() {
            let rollout = match tick {
                3 => vec![event(3.0, WorkloadChange::Ready)],
                20 => vec![event(20.0, WorkloadChange::Complete)],
                _ => vec![],
            };
            let took = [Some(10_000 * slow), Some(9000)];
            let seen = Tick { outcomes, rollout: &rollout, ..Tick::default() };
            plain.tick(&seen);
            told.tick(&Tick { latency_us: &took, ..seen });
            noticed |= told.slower().is_some();
            prop_assert_eq!(plain.e_value().to_bits(), told.e_value().to_bits());
        }
        prop_assert_eq!(plain.regression(), told.regression());
        prop_assert_eq!(plain.conclude(), told.conclude());
        prop_assert_eq!(plain.ticks(), told.ticks());
        // It is the notice that is looked at: four times as slow is noticed, unless the verdict came first.
        prop_assert!(noticed || slow < 3 || told.regression().is_some());
        let verdict = told.conclude();
        let mut bake = Bake::new(&told, 5.0, 300.0);
        for _ in 0..100 {
            bake.tick(&[TickOutcome::Failure; 2], &[], |_| 0);
        }
        prop_assert!(bake.alarm().is_some());
        prop_assert_eq!(verdict, told.conclude());
    }

    /// Property 19: The first limited answer makes each endpoint's `N_e` that of its own pace, and changes no e-value.
    #[test]
    fn property_19_limited_changes_how_long_a_run_must_be_and_nothing_else(
        troubles in troubles(),
        seed: u64,
        at in 0_usize..3,
        tick in 0_usize..60,
        down in 0_usize..3,
    ) {
        let rule = rule(1.0);
        let start = AnalysisStart { steady_s: vec![5.0, 10.0, 15.0], ..known(&[(0, 3600); 3]) };
        let mut limited = rows(&troubles, seed, 3, 200, 0.0);
        let mut unknown = limited.clone();
        limited[tick][at] = TickOutcome::Limited;
        unknown[tick][at] = TickOutcome::Unknown;
        let mut watches = [(); 2].map(|()| Analysis::new(rule.clone(), &start).unwrap());
        for (limited, unknown) in limited.iter().zip(&unknown) {
            for (analysis, outcomes) in watches.iter_mut().zip([limited, unknown]) {
                analysis.tick(&Tick { outcomes, ..Tick::default() });
            }
            // A shorter run may reject; until then nothing differs.
            if watches[0].regression().is_some() || watches[1].regression().is_some() {
                break;
            }
            let bits = watches.each_ref().map(|analysis| analysis.e_value().to_bits());
            prop_assert_eq!(bits[0], bits[1]);
        }
        // One endpoint goes down later, whichever was limited.
        let mut outcomes = vec![TickOutcome::Success; 3];
        outcomes[at] = TickOutcome::Limited;
        let quiet = vec![vec![TickOutcome::Success; 3]; 5];
        let mut analysis = judge(&rule, &start, &[vec![outcomes], quiet].concat());
        let mut dead = vec![TickOutcome::NotDue; 3];
        dead[down] = TickOutcome::Failure;
        feed(&mut analysis, &vec![dead; 30], &[]);
        // `floor(hold_s / steady_s) + 1` and at least 3.
        let needed = [4, 3, 3][down];
        let regression = analysis.regression().unwrap();
        let (looks, bound) = (3.0 * 300.0_f64, upper_bound(0.0, 3600.0, 0.01));
        let by_chance = ((1e-4 / looks).ln() / bound.ln() - 1e-9).ceil() as u32;
        prop_assert_eq!(regression.tick + 1 - 6, by_chance.max(needed));
        prop_assert_eq!(regression.reason.to_string(), format!("hard_down:e{down}"));
    }
}

fn new_pod(pod: u32, ready_tick: u32, outcomes: &[TickOutcome]) -> PodTick<'_> {
    PodTick {
        pod,
        side: PodSide::New,
        ready_tick,
        outcomes,
        latency_us: &[],
    }
}

proptest! {
    #![proptest_config(config(8))]

    /// Property 10: A state that is saved and read again between any two ticks comes to the same end.
    #[test]
    fn property_10_a_state_saved_between_any_two_ticks_comes_to_the_same_end(seed: u64) {
        let mut rng = numbers(seed, 0);
        let mut whole = anything(&mut rng);
        whole.rule.interval_s = 1.0;
        let mut analysis = Analysis::new(whole.rule.clone(), &whole.start).unwrap();
        let mut restored = analysis.clone();
        for tick in 0..50 {
            let seen = whole.tick(&mut rng, tick);
            seen.with(|seen| analysis.tick(seen).cloned());
            let text = serde_json::to_string(&restored).unwrap();
            restored = serde_json::from_str(&text).unwrap();
            prop_assert!(restored.is_sound());
            seen.with(|seen| restored.tick(seen).cloned());
            prop_assert_eq!(&analysis, &restored, "tick {}", tick);
        }
    }
}

proptest! {
    #![proptest_config(config(60))]

    /// Property 11: Whatever comes in, every number is a number.
    #[test]
    fn property_11_whatever_comes_in_every_number_is_a_number(seed: u64) {
        let mut rng = numbers(seed, 0);
        let mut given = anything(&mut rng);
        // Refused by name is fine, and tested elsewhere.
        if let Ok(mut analysis) = Analysis::new(given.rule.clone(), &given.start) {
            for tick in 0..120 {
                given.tick(&mut rng, tick).with(|seen| {
                    analysis.tick(seen);
                });
                // Where the first tick rejects by a crash loop, no e-value was ever looked at.
                let (e, max_e) = (analysis.e_value(), analysis.max_e());
                prop_assert!(e >= 0.0 && (max_e >= e || max_e == 0.0), "{} {}", e, max_e);
                prop_assert!(analysis.log10_e().is_finite());
                prop_assert!(analysis.coverage().is_none_or(|share| (0.0..=1.0).contains(&share)));
            }
            prop_assert!(analysis.is_sound());
            let _ = (analysis.conclude(), analysis.teaching());
            let mut bake = Bake::new(&analysis, given.rule.interval_s, 0.0);
            for tick in 0..50 {
                given.tick(&mut rng, tick).with(|seen| bake.tick(seen.outcomes, seen.pods, |_| 0).cloned());
                prop_assert!(bake.is_sound() && bake.max_e().is_finite());
            }
        }
    }
}

/// Any rule and any start, sensible or not, and ticks for them.
struct Anything {
    rule: Rule,
    start: AnalysisStart,
    unknown: f64,
}

/// A look at a pod that owns its answers.
struct AnyLook {
    pod: u32,
    side: PodSide,
    ready_tick: u32,
    outcomes: Row,
    latency_us: Vec<Option<u32>>,
}

/// A tick that owns what it tells.
struct AnyTick {
    outcomes: Row,
    pods: Vec<AnyLook>,
    states: Vec<PodState>,
    scrapes: Vec<RequestScrape>,
    rollout: Vec<WorkloadEvent>,
    dependencies: Row,
    latency_us: Vec<Option<u32>>,
}

impl AnyTick {
    fn with<T>(&self, read: impl FnOnce(&Tick<'_>) -> T) -> T {
        let looks: Vec<PodTick<'_>> = self
            .pods
            .iter()
            .map(|look| PodTick {
                pod: look.pod,
                side: look.side,
                ready_tick: look.ready_tick,
                outcomes: &look.outcomes,
                latency_us: &look.latency_us,
            })
            .collect();
        read(&Tick {
            outcomes: &self.outcomes,
            direct: &looks,
            pods: &self.states,
            scrapes: &self.scrapes,
            rollout: &self.rollout,
            dependencies: &self.dependencies,
            latency_us: &self.latency_us,
        })
    }
}

fn anything(rng: &mut Rng) -> Anything {
    let endpoints = rng.usize(1..6);
    let mut rule = rule(*rng.choice([0.5, 1.0, 7.0, 60.0].iter()).unwrap());
    if rng.bool() {
        rule.block_s = within(rng, 0.5, 30.0);
        rule.analysis_s = within(rng, rule.interval_s, 300.0);
        rule.pod_cold_s = within(rng, 0.0, 100.0);
    }
    rule.latency_rejects = rng.bool();
    let counts = |rng: &mut Rng| {
        let n = *rng.choice([0, 1, 19, 40, 3600, 1 << 40].iter()).unwrap();
        (*rng.choice([0, n / 2, n].iter()).unwrap(), n)
    };
    let mut start = known(&(0..endpoints).map(|_| counts(rng)).collect::<Vec<_>>());
    for failing in &mut start.failing_at_start {
        *failing = rng.u8(..) < 50;
    }
    start.complete_at = *rng.choice([None, Some(0.0), Some(33.3)].iter()).unwrap();
    start.expected_downtime = rng.u8(..) < 60;
    start.direct = rng.bool();
    if rng.bool() {
        start.learned = learned_clean(endpoints, 100);
        start.learned.pool = [(); 3].map(|()| counts(rng));
        start.learned.pods = [(); 6].map(|()| counts(rng));
    }
    if rng.bool() {
        start.requests = Some(RequestsBefore {
            interval_s: 15.0,
            failed: 0,
            total: *rng.choice([0, 1000].iter()).unwrap(),
        });
    }
    if rng.bool() {
        let workload = |rng: &mut Rng| AnalyzedWorkload {
            change: *rng
                .choice(
                    [
                        None,
                        Some(WorkloadDiff::Template),
                        Some(WorkloadDiff::Config),
                    ]
                    .iter(),
                )
                .unwrap(),
            was_complete: rng.bool(),
            stops_first: rng.bool(),
            probes: rng.bool().then(|| vec![0]),
            template_at: rng.bool().then_some(3.0),
            ..Shape::THREE.workload()
        };
        start.workloads = Some((0..rng.usize(0..4)).map(|_| workload(rng)).collect());
    }
    if rng.bool() {
        start.steady_s = vec![10.0; endpoints];
        start.dependencies = vec!["database".into()];
        start.needs = vec![vec![0]; endpoints];
    }
    if rng.bool() {
        start.latency = vec![vec![(bucket(5000), 500)]; endpoints];
        start.latency[0].clear();
    }
    Anything {
        rule,
        start,
        unknown: *rng.choice([0.0, 0.3, 1.0].iter()).unwrap(),
    }
}

impl Anything {
    fn tick(&mut self, rng: &mut Rng, tick: u32) -> AnyTick {
        const EVENTS: [WorkloadChange; 10] = [
            WorkloadChange::Template,
            WorkloadChange::Ready,
            WorkloadChange::Complete,
            WorkloadChange::Deadline,
            WorkloadChange::Refused,
            WorkloadChange::Created,
            WorkloadChange::None,
            WorkloadChange::Some,
            WorkloadChange::Held,
            WorkloadChange::Free,
        ];
        let endpoints = self.start.endpoints.len();
        let unknown = self.unknown;
        let bad = *rng.choice([0.0, 0.02, 0.3, 1.0].iter()).unwrap();
        let row = |rng: &mut Rng| -> Row {
            (0..endpoints)
                .map(|_| match rng.u8(..) {
                    _ if rng.f64() < unknown => TickOutcome::Unknown,
                    0 => TickOutcome::Limited,
                    1..8 => TickOutcome::NotDue,
                    8..16 => TickOutcome::Unresolved,
                    _ => outcome(rng.f64() < bad),
                })
                .collect()
        };
        let times = |rng: &mut Rng| -> Vec<Option<u32>> {
            (0..endpoints)
                .map(|_| rng.bool().then(|| rng.u32(..40_000)))
                .collect()
        };
        let t = f64::from(tick) * self.rule.interval_s;
        let some = |rng: &mut Rng, one_in: u8| rng.u8(..one_in) == 0;
        let restarts = rng.u32(..4);
        let state = PodState {
            name: "web-1".into(),
            workload: "Deployment web".into(),
            restarts: restarts / 3,
            crash_loop_back_off: restarts > 2,
            injected: rng.bool(),
            stuck: rng.bool().then_some(StuckReason::Image),
            old_too: rng.bool(),
            ..PodState::default()
        };
        AnyTick {
            outcomes: row(rng),
            pods: (0..rng.u32(..6))
                .map(|pod| {
                    let side = if pod < 2 { PodSide::Old } else { PodSide::New };
                    // More pods than are remembered, now and then.
                    let pod = pod + 6 * rng.u32(..20);
                    AnyLook {
                        pod,
                        side,
                        ready_tick: rng.u32(..=tick),
                        outcomes: row(rng),
                        latency_us: times(rng),
                    }
                })
                .collect(),
            states: if some(rng, 100) { vec![state] } else { vec![] },
            scrapes: if some(rng, 15) {
                let total = rng.u64(..500);
                let failed = rng.u64(..=total);
                vec![RequestScrape { t, failed, total }]
            } else {
                vec![]
            },
            rollout: if some(rng, 20) {
                vec![WorkloadEvent {
                    t,
                    workload: rng.u16(..3),
                    what: *rng.choice(EVENTS.iter()).unwrap(),
                }]
            } else {
                vec![]
            },
            dependencies: vec![outcome(rng.u8(..) < 20)],
            latency_us: times(rng),
        }
    }
}

/// Any way to replace 3 to 20 pods that the defaults of a Deployment allow.
fn shapes() -> impl Strategy<Value = Shape> {
    (3_usize..=20, 0.0_f64..1.0, 0.0_f64..1.0).prop_map(|(replicas, surge, away)| Shape {
        name: "any",
        replicas,
        surge: 1 + (surge * (replicas / 4) as f64) as usize,
        unavailable: (away * (replicas / 4) as f64) as usize,
        stops_first: false,
    })
}

/// A rollout in which nothing fails by itself.
fn clean(shape: Shape) -> World {
    World {
        base: 0.0,
        drain_s: 0.0,
        ..World::quiet(shape)
    }
}

proptest! {
    #![proptest_config(config(12))]

    /// Property 12: What fails for old pods as well is not the release's fault, also after they are gone.
    #[test]
    fn property_12_what_fails_for_old_pods_as_well_never_rejects(
        shape in shapes(),
        seed: u64,
        endpoint in 0..ENDPOINTS,
        place in 0.0_f64..1.0,
    ) {
        let mut rng = numbers(seed, 0);
        let mut world = clean(shape);
        let deployed = world.deploy(&mut rng);
        // Three ticks, whole ones, in which an old pod is still asked.
        let gone = deployed.pods.iter().filter(|pod| pod.side == PodSide::Old);
        let last_s = gone.map(|pod| pod.gone_s).fold(0.0, f64::max);
        let latest_s = (last_s - 4.0).max(0.0);
        let from_s = (place * latest_s).floor();
        world.fails = Box::new(move |asked| f64::from(u8::from(asked.at == endpoint && asked.t >= from_s)));
        let start = world.start(&mut rng, &Lessons::default(), true);
        let mut analysis = [Analysis::new(rule(1.0), &start).unwrap()];
        world.play(&mut rng, &deployed, &mut analysis);
        prop_assert_eq!(analysis[0].regression(), None, "from {} s, the last old pod gone at {} s", from_s, last_s);
    }

    /// Property 13: New pods that are cold for nine seconds, and well afterwards, never reject.
    #[test]
    fn property_13_a_cold_start_of_nine_seconds_never_rejects(
        shape in shapes(),
        seed: u64,
        cold_s in 0.0_f64..9.0,
    ) {
        let mut rng = numbers(seed, 0);
        let world = World {
            fails: Box::new(move |asked| f64::from(u8::from(asked.new && asked.age_s < cold_s))),
            ..clean(shape)
        };
        let deployed = world.deploy(&mut rng);
        let starts = [false, true].map(|direct| world.start(&mut rng, &Lessons::default(), direct));
        let mut watches = starts.map(|start| Analysis::new(rule(1.0), &start).unwrap());
        world.play(&mut rng, &deployed, &mut watches);
        for analysis in &watches {
            prop_assert_eq!(analysis.regression(), None);
        }
    }
}

/// Property 14: Without anything new, every e-value is that of version 1: the file has its verdicts and the bits of its
/// e-values, of each 29th tick and the largest. A hair is left for the logarithms of another C library.
#[test]
fn property_14_without_anything_new_the_e_values_are_those_of_version_1() {
    /// The generator that the streams of the file were drawn with.
    struct Numbers(u64);
    impl Numbers {
        fn next(&mut self) -> f64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as f64 / (1_u64 << 53) as f64
        }
    }
    let file = include_str!("version1.txt");
    for (line, stream) in file.lines().zip(0_usize..) {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (stream as u64 + 1));
        let interval_s = [1.0, 5.0, 2.0][stream % 3];
        let endpoints = [4, 1, 3, 7][stream % 4];
        let total = (3600.0 / interval_s) as u64;
        let baseline: Vec<(u64, u64)> = (0..endpoints)
            .map(|_| ((numbers.next() * 0.03 * total as f64) as u64, total))
            .collect();
        let with_requests = stream % 5 == 4;
        let start = AnalysisStart {
            requests: with_requests.then_some(RequestsBefore {
                interval_s: 15.0,
                failed: 20,
                total: 5000,
            }),
            ..known(&baseline)
        };
        let mut analysis = Analysis::new(rule(interval_s), &start).unwrap();
        let mut evidence = Vec::new();
        let mut rate = 0.01;
        for tick in 0..(300.0 / interval_s) as u32 {
            if numbers.next() < 0.04 {
                rate = [0.0, 0.01, 0.05, 0.15, 0.4][(numbers.next() * 5.0) as usize];
            }
            let outcomes: Row = (0..endpoints)
                .map(|_| {
                    let (unknown, bad) = (numbers.next() < 0.03, numbers.next() < rate);
                    if unknown {
                        TickOutcome::Unknown
                    } else {
                        outcome(bad)
                    }
                })
                .collect();
            let t = f64::from(tick) * interval_s;
            let failed = (numbers.next() * rate * 200.0) as u64;
            let scrapes = [RequestScrape {
                t,
                failed,
                total: 200,
            }];
            let is_due = with_requests && t % 15.0 == 0.0 && t > 0.0;
            analysis.tick(&Tick {
                outcomes: &outcomes,
                scrapes: if is_due { &scrapes } else { &[] },
                ..Tick::default()
            });
            if analysis.regression().is_some() {
                break;
            }
            if tick % 29 == 28 {
                evidence.push(analysis.e_value());
            }
        }
        let number = |text: &str| f64::from_bits(u64::from_str_radix(text, 16).unwrap());
        let words: Vec<&str> = line.split(' ').collect();
        let regression = analysis.regression();
        let tick = regression.map_or("-".to_owned(), |regression| regression.tick.to_string());
        let reason = regression.map_or("-".to_owned(), |regression| {
            regression.reason.to_string().replace(' ', "_")
        });
        assert_eq!((&*tick, &*reason), (words[1], words[2]), "stream {stream}");
        let expected: Vec<f64> = words[3..].iter().map(|word| number(word)).collect();
        let found: Vec<f64> = std::iter::once(analysis.max_e()).chain(evidence).collect();
        assert_eq!(expected.len(), found.len(), "stream {stream}");
        for (expected, found) in expected.iter().zip(&found) {
            let off = (expected - found).abs();
            assert!(
                off <= 1e-13 * expected,
                "stream {stream}: {expected} {found}"
            );
        }
    }
}

/// The tests above would be worth little if their streams rejected nobody.
#[test]
fn the_random_streams_reject_in_several_ways() {
    let mut reasons = std::collections::BTreeSet::new();
    for release in 0..60 {
        let mut rng = numbers(22, release);
        let troubles: Vec<Trouble> = (0..6)
            .map(|_| Trouble {
                ticks: rng.usize(1..60),
                rate: *rng.choice([0.0, 0.01, 0.05, 0.1, 0.3, 1.0].iter()).unwrap(),
                at: rng.usize(0..8),
            })
            .collect();
        let stream = rows(&troubles, release as u64, 3, 300, 0.0);
        let analysis = judge(&rule(1.0), &known(&[(36, 3600); 3]), &stream);
        reasons.insert(
            match analysis.regression().map(|regression| &regression.reason) {
                None => "passed",
                Some(RegressionReason::HardDownAll) => "hard down, all",
                Some(RegressionReason::HardDown(_)) => "hard down",
                Some(RegressionReason::ErrorRate(_)) => "error rate",
                Some(_) => "another",
            },
        );
    }
    assert!(reasons.len() >= 3, "{reasons:?}");
}

/// Where pods cannot be asked, what they would have said counts for nothing, to the last digit.
#[test]
fn without_direct_results_pods_say_nothing() {
    let start = known(&[(3, 3600), (0, 3600)]);
    for release in 0..10 {
        let mut rng = numbers(31, release);
        let mut plain = Analysis::new(rule(1.0), &start).unwrap();
        let mut asked = plain.clone();
        for _ in 0..200 {
            let outcomes = [outcome(rng.f64() < 0.05), outcome(rng.f64() < 0.05)];
            let answers = [outcome(rng.bool()), outcome(rng.bool())];
            let old = PodTick {
                side: PodSide::Old,
                ..new_pod(0, 0, &answers)
            };
            let looks = [old, new_pod(1, 0, &answers), new_pod(2, 0, &answers)];
            let seen = Tick {
                outcomes: &outcomes,
                ..Tick::default()
            };
            plain.tick(&seen);
            asked.tick(&Tick {
                direct: &looks,
                ..seen
            });
            assert_eq!(plain.e_value().to_bits(), asked.e_value().to_bits());
        }
        assert_eq!(plain.regression(), asked.regression());
    }
}
