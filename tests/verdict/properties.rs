//! What holds of every stream of soundings, tried with seeded random ones.

use fastrand::Rng;
use leadsman::verdict::{
    Mark, PodLook, PodState, Reason, Rule, Side, Start, Tick, Verdict, Watch, Why, upper_bound,
};

use super::rollout::{Fault, Rollout};
use super::world::{ENDPOINTS, numbers, rule, within};

type Row = Vec<Mark>;

fn known(baseline: &[(u64, u64)]) -> Start {
    Start {
        endpoints: (0..baseline.len())
            .map(|at| format!("e{at}").into())
            .collect(),
        baseline: baseline.to_vec(),
        failing_at_start: vec![false; baseline.len()],
        settled_at: Some(0.0),
        ..Start::default()
    }
}

fn judge(rule: &Rule, start: &Start, rows: &[Row]) -> Watch {
    let mut watch = Watch::new(rule.clone(), start).unwrap();
    for marks in rows {
        watch.tick(&Tick {
            marks,
            ..Tick::default()
        });
    }
    watch
}

fn fired(watch: &Watch) -> u32 {
    watch.finding().map_or(u32::MAX, |finding| finding.tick)
}

fn mark(bad: bool) -> Mark {
    if bad { Mark::Bad } else { Mark::Good }
}

/// Rows whose failure rate changes now and then, as real trouble does; void now and then.
fn stream(rng: &mut Rng, endpoints: usize, ticks: usize, void: f64) -> Vec<Row> {
    let mut rates = vec![0.01; endpoints];
    (0..ticks)
        .map(|_| {
            if rng.f64() < 0.03 {
                let rate = *rng.choice([0.0, 0.01, 0.1, 0.3, 1.0].iter()).unwrap();
                match rng.usize(..=endpoints) {
                    all if all == endpoints => rates.fill(rate),
                    at => rates[at] = rate,
                }
            }
            rates
                .iter()
                .map(|rate| {
                    if rng.f64() < void {
                        Mark::Void
                    } else {
                        mark(rng.f64() < *rate)
                    }
                })
                .collect()
        })
        .collect()
}

#[test]
fn property_at_the_tolerated_rate_at_most_one_in_a_hundred_reaches_the_threshold() {
    for (interval_s, releases, total) in [(5.0, 600, 720), (1.0, 200, 3600)] {
        let rule = rule(interval_s);
        let baseline = [(total / 100, total); ENDPOINTS];
        let pool = baseline
            .iter()
            .fold((0, 0), |(k, n), (more_k, more_n)| (k + more_k, n + more_n));
        let q = upper_bound(pool.0 as f64, pool.1 as f64, rule.baseline_conf) + rule.null_margin;
        let reached = (0..releases)
            .filter(|release| {
                let mut rng = numbers(21, *release);
                let rows: Vec<Row> = (0..rule.ticks_of_watch())
                    .map(|_| (0..ENDPOINTS).map(|_| mark(rng.f64() < q)).collect())
                    .collect();
                judge(&rule, &known(&baseline), &rows).max_e() >= rule.threshold()
            })
            .count();
        assert!(reached * 100 <= releases, "{reached} of {releases}");
    }
}

#[test]
fn property_one_more_failure_never_delays_a_rollback() {
    for release in 0..150 {
        let mut rng = numbers(22, release);
        let rule = rule(*rng.choice([1.0, 5.0].iter()).unwrap());
        let start = known(&[(36, 3600); 3]);
        let mut rows = stream(&mut rng, 3, rule.ticks_of_watch() as usize, 0.0);
        let before = fired(&judge(&rule, &start, &rows));
        for _ in 0..rng.usize(1..10) {
            let tick = rng.usize(..rows.len());
            rows[tick][rng.usize(..3)] = Mark::Bad;
        }
        let after = fired(&judge(&rule, &start, &rows));
        assert!(
            after <= before,
            "release {release}: {before} became {after}"
        );
    }
}

#[test]
fn property_a_worse_baseline_never_brings_a_rollback_forward() {
    for release in 0..150 {
        let mut rng = numbers(23, release);
        let rule = rule(*rng.choice([1.0, 5.0].iter()).unwrap());
        let rows = stream(&mut rng, 3, rule.ticks_of_watch() as usize, 0.0);
        let mut baseline = [
            (rng.u64(..40), 3600),
            (rng.u64(..40), 3600),
            (rng.u64(..40), 3600),
        ];
        let before = fired(&judge(&rule, &known(&baseline), &rows));
        baseline[rng.usize(..3)].0 += rng.u64(1..200);
        let after = fired(&judge(&rule, &known(&baseline), &rows));
        assert!(
            after >= before,
            "release {release}: {before} became {after}"
        );
    }
}

#[test]
fn property_the_order_of_endpoints_does_not_matter() {
    for release in 0..100 {
        let mut rng = numbers(24, release);
        let rule = rule(1.0);
        let start = known(&[(3, 3600), (40, 3600), (0, 20), (9, 700)]);
        let rows = stream(&mut rng, 4, 120, 0.02);
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let mut other = start.clone();
        other.baseline = order.iter().map(|at| start.baseline[*at]).collect();
        other.endpoints = order
            .iter()
            .map(|at| start.endpoints[*at].clone())
            .collect();
        let moved: Vec<Row> = rows
            .iter()
            .map(|row| order.iter().map(|at| row[*at]).collect())
            .collect();
        let (one, two) = (judge(&rule, &start, &rows), judge(&rule, &other, &moved));
        assert_eq!(fired(&one), fired(&two));
        let off = (one.max_e() - two.max_e()).abs();
        assert!(off <= 1e-6 * one.max_e(), "{} {}", one.max_e(), two.max_e());
    }
}

#[test]
fn property_one_burst_of_ten_seconds_never_convicts() {
    for interval_s in [1.0, 2.0, 5.0, 10.0, 15.0] {
        let rule = rule(interval_s);
        let ticks = rule.ticks_of_watch() as usize;
        let long = ((rule.burst_s / interval_s) as usize).max(1);
        for from in 0..=ticks - long {
            let rows: Vec<Row> = (0..ticks)
                .map(|tick| vec![mark(from <= tick && tick < from + long); ENDPOINTS])
                .collect();
            let total = (3600.0 / interval_s) as u64;
            let watch = judge(&rule, &known(&[(0, total); ENDPOINTS]), &rows);
            assert_eq!(
                watch.finding(),
                None,
                "every {interval_s} s, from tick {from}"
            );
            assert_eq!(watch.conclude(), Verdict::Healthy);
        }
    }
}

#[test]
fn property_void_convicts_nobody_and_acquits_nobody() {
    let rule = rule(1.0);
    let start = known(&[(0, 3600); 2]);
    for release in 0..50 {
        let mut rng = numbers(25, release);
        let mut rows = stream(&mut rng, 2, 100, 0.1);
        let before = fired(&judge(&rule, &start, &rows));
        rows.resize(300, vec![Mark::Void; 2]);
        assert_eq!(fired(&judge(&rule, &start, &rows)), before);
    }
    let nothing = judge(&rule, &start, &vec![vec![Mark::Void; 2]; 300]);
    assert_eq!(nothing.conclude(), Verdict::Inconclusive(Why::Coverage));
}

#[test]
fn property_the_order_within_a_closed_block_does_not_matter() {
    let rule = rule(1.0);
    let start = known(&[(36, 3600); 3]);
    let block = rule.block_s as usize;
    for release in 0..100 {
        let mut rng = numbers(26, release);
        // Few enough failures to convict nobody before the end.
        let rows: Vec<Row> = (0..10 * block)
            .map(|_| (0..3).map(|_| mark(rng.f64() < 0.04)).collect())
            .collect();
        let mut shuffled = rows.clone();
        for ticks in shuffled.chunks_mut(block) {
            rng.shuffle(ticks);
        }
        let (one, two) = (judge(&rule, &start, &rows), judge(&rule, &start, &shuffled));
        if one.finding().is_some() || two.finding().is_some() {
            continue;
        }
        let off = (one.e_value() - two.e_value()).abs();
        assert!(off <= 1e-9 * one.e_value());
    }
}

#[test]
fn property_a_total_outage_is_found_in_time_at_any_interval() {
    for interval_s in [0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0] {
        let rule = rule(interval_s);
        let total = (3600.0 / interval_s) as u64;
        let rows = vec![vec![Mark::Bad; ENDPOINTS]; rule.ticks_of_watch() as usize];
        let watch = judge(&rule, &known(&[(0, total); ENDPOINTS]), &rows);
        let latest = ((rule.hold_s / interval_s).ceil() as u32 + 1).max(3);
        assert!(
            fired(&watch) < latest,
            "every {interval_s} s: {}",
            fired(&watch)
        );
    }
}

#[test]
fn property_a_state_saved_between_any_two_ticks_comes_to_the_same_end() {
    let rule = rule(1.0);
    for release in 0..12 {
        let mut rng = numbers(27, release);
        let mut start = known(&[(3, 3600), (0, 3600)]);
        start.direct = true;
        start.settled_at = None;
        start.failing_at_start[0] = rng.bool();
        let mut whole = Watch::new(rule.clone(), &start).unwrap();
        let mut restored = whole.clone();
        let rows = stream(&mut rng, 2, 60, 0.05);
        let pods = stream(&mut rng, 6, 60, 0.05);
        for (tick, (marks, pods)) in rows.iter().zip(&pods).enumerate() {
            let looks: Vec<PodLook<'_>> = pods
                .chunks(2)
                .zip(0..)
                .map(|(marks, pod)| PodLook {
                    pod,
                    side: if pod == 0 { Side::Old } else { Side::New },
                    latency_us: &[],
                    ready_tick: pod * 3,
                    marks,
                })
                .collect();
            let seen = Tick {
                marks,
                direct: if tick < 5 { &[] } else { &looks },
                ..Tick::default()
            };
            whole.tick(&seen);
            let text = serde_json::to_string(&restored).unwrap();
            restored = serde_json::from_str(&text).unwrap();
            assert!(restored.is_sound());
            restored.tick(&seen);
            assert_eq!(whole, restored, "release {release}, tick {tick}");
        }
    }
}

#[test]
fn property_whatever_comes_in_every_number_is_a_number() {
    for release in 0..300 {
        let mut rng = numbers(28, release);
        let endpoints = rng.usize(1..6);
        let mut rule = rule(
            *rng.choice([0.5, 1.0, 7.0, 60.0, 250.0, 400.0].iter())
                .unwrap(),
        );
        rule.block_s = within(&mut rng, 0.5, 30.0);
        let mut start = known(
            &(0..endpoints)
                .map(|_| {
                    let n = *rng.choice([0, 1, 19, 40, 3600, 1 << 40].iter()).unwrap();
                    (*rng.choice([0, n / 2, n].iter()).unwrap(), n)
                })
                .collect::<Vec<_>>(),
        );
        for failing in &mut start.failing_at_start {
            *failing = rng.u8(..) < 50;
        }
        start.settled_at = *rng.choice([None, Some(0.0), Some(33.3)].iter()).unwrap();
        start.expected_downtime = rng.u8(..) < 60;
        let Ok(mut watch) = Watch::new(rule, &start) else {
            continue; // refused by name, which is tested elsewhere
        };
        let void = *rng.choice([0.0, 0.3, 1.0].iter()).unwrap();
        for marks in stream(&mut rng, endpoints, 320, void) {
            let restarts = rng.u32(..5);
            let pods = [PodState {
                restarts,
                crash_loop_back_off: restarts > 3,
                old_too: rng.bool(),
                ..PodState::default()
            }];
            watch.tick(&Tick {
                marks: &marks,
                pods: if rng.u8(..) < 2 { &pods } else { &[] },
                ..Tick::default()
            });
            // Where the first tick convicts by a crash loop, no e-value was ever looked at.
            let (e, max_e) = (watch.e_value(), watch.max_e());
            assert!(
                e >= 0.0 && (max_e >= e || max_e == 0.0),
                "release {release}: {e} {max_e}"
            );
            assert!(watch.is_sound(), "release {release}");
        }
        let _ = watch.conclude();
    }
}

#[test]
fn property_what_fails_for_old_pods_as_well_never_convicts() {
    for release in 0..60 {
        let mut rng = numbers(29, release);
        let rollout = Rollout {
            base: 0.0,
            ..Rollout::of(rng.usize(2..=20))
        };
        let mut deployed = rollout.deploy(&mut rng);
        // Three ticks, whole ones, in which an old pod is still asked.
        let latest_s = (deployed.last_ready_s() - 4.0).max(0.0);
        let endpoint = rng.usize(..ENDPOINTS);
        deployed.fault = Fault::Common {
            endpoints: std::array::from_fn(|at| at == endpoint),
            share: 1.0,
            from_s: within(&mut rng, 0.0, latest_s).floor(),
            until_s: f64::INFINITY,
        };
        let end = rollout.judge(&mut rng, &deployed);
        assert_eq!(end.finding, None, "release {release}: {:?}", deployed.fault);
    }
}

#[test]
fn property_a_cold_start_of_nine_seconds_never_convicts() {
    for release in 0..60 {
        let mut rng = numbers(30, release);
        let rollout = Rollout {
            base: 0.0,
            ..Rollout::of(rng.usize(3..=20))
        };
        let mut deployed = rollout.deploy(&mut rng);
        deployed.fault = Fault::ColdStart(within(&mut rng, 0.0, 9.0));
        let end = rollout.judge(&mut rng, &deployed);
        assert_eq!(end.finding, None, "release {release}: {:?}", deployed.fault);
    }
}

/// Where pods cannot be asked, what they would have said counts for nothing, to the last digit.
#[test]
fn property_without_direct_soundings_nothing_changes() {
    let rule = rule(1.0);
    let start = known(&[(3, 3600), (0, 3600)]);
    for release in 0..50 {
        let mut rng = numbers(31, release);
        let mut plain = Watch::new(rule.clone(), &start).unwrap();
        let mut asked = plain.clone();
        for marks in stream(&mut rng, 2, 200, 0.0) {
            let answers = [mark(rng.bool()), mark(rng.bool())];
            let look = |pod: u32, side| PodLook {
                pod,
                side,
                latency_us: &[],
                ready_tick: 0,
                marks: &answers,
            };
            let looks = [look(0, Side::Old), look(1, Side::New), look(2, Side::New)];
            plain.tick(&Tick {
                marks: &marks,
                ..Tick::default()
            });
            asked.tick(&Tick {
                marks: &marks,
                direct: &looks,
                ..Tick::default()
            });
            assert_eq!(plain.e_value().to_bits(), asked.e_value().to_bits());
        }
        assert_eq!(plain.finding(), asked.finding());
    }
}

/// The tests above would be worth little if their streams convicted nobody.
#[test]
fn the_random_streams_convict_in_several_ways() {
    let mut reasons = std::collections::BTreeSet::new();
    for release in 0..150 {
        let mut rng = numbers(22, release);
        let rule = rule(*rng.choice([1.0, 5.0].iter()).unwrap());
        let rows = stream(&mut rng, 3, rule.ticks_of_watch() as usize, 0.0);
        let watch = judge(&rule, &known(&[(36, 3600); 3]), &rows);
        reasons.insert(match watch.finding().map(|finding| &finding.reason) {
            None => "kept",
            Some(Reason::HardDownAll) => "hard down, all",
            Some(Reason::HardDown(_)) => "hard down",
            Some(Reason::ErrorRate(_)) => "error rate",
            Some(_) => "another",
        });
    }
    assert!(reasons.len() >= 3, "{reasons:?}");
}
