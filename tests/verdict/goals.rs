//! What the rule does in simulated worlds, against what it is meant to do: false rollbacks and delays.
//!
//! Each row prints what came out; the bounds hold for the seeds in use, at every factor of `LEADSMAN_SIMULATE`.

use std::collections::BTreeMap;

use fastrand::Rng;
use leadsman::verdict::Finding;

use super::rollout::{Deployed, Fault, Rollout};
use super::world::{Bursts, ENDPOINTS, World, numbers, within};

/// How many releases a row simulates, for so many at the factor 1.
fn releases(count: usize) -> usize {
    let factor = std::env::var("LEADSMAN_SIMULATE").map_or(1, |value| {
        value
            .parse()
            .expect("LEADSMAN_SIMULATE is a factor, such as 10")
    });
    count * factor
}

/// What so many releases of one kind came to.
struct Row {
    name: String,
    releases: usize,
    /// From the onset to the rollback, ascending.
    delays_s: Vec<f64>,
}

impl Row {
    fn of(
        name: &str,
        count: usize,
        seed: u64,
        mut judge: impl FnMut(u64, usize) -> (f64, Option<Finding>),
    ) -> Self {
        let releases = releases(count);
        let mut delays_s = Vec::new();
        let mut reasons = BTreeMap::<String, u32>::new();
        for release in 0..releases {
            let (late_s, finding) = judge(seed, release);
            if let Some(finding) = finding {
                delays_s.push(late_s);
                *reasons.entry(finding.reason.to_string()).or_default() += 1;
            }
        }
        delays_s.sort_by(f64::total_cmp);
        let row = Self {
            name: name.to_owned(),
            releases,
            delays_s,
        };
        println!(
            "{:<44} {:>6} releases {:>6} turned back   median {:>5} s   p95 {:>5} s   latest {:>5} s   {reasons:?}",
            row.name,
            row.releases,
            row.delays_s.len(),
            row.quantile(0.5),
            row.quantile(0.95),
            row.quantile(1.0)
        );
        row
    }

    /// Of all releases; those that are kept come last, as infinitely late.
    fn quantile(&self, share: f64) -> f64 {
        let place = (share * self.releases as f64).ceil() as usize;
        let latest = f64::INFINITY;
        *self.delays_s.get(place.max(1) - 1).unwrap_or(&latest)
    }

    /// Of a thousand, at most so many may be turned back; one at least, for chance has no halves.
    #[track_caller]
    fn at_most(&self, in_a_thousand: f64) {
        let allowed = (in_a_thousand * self.releases as f64 / 1000.0).max(1.0);
        let turned_back = self.delays_s.len();
        assert!(
            turned_back as f64 <= allowed,
            "{}: {turned_back} of {} turned back",
            self.name,
            self.releases
        );
    }

    #[track_caller]
    fn found_within(&self, share: f64, seconds: f64) {
        let delay = self.quantile(share);
        assert!(
            delay <= seconds,
            "{}: {share} of them take {delay} s, not {seconds}",
            self.name
        );
    }
}

fn worlds(name: &str, count: usize, seed: u64, world: World) -> Row {
    let name = format!("{name}, asked every {} s", world.interval_s);
    Row::of(&name, count, seed, |seed, release| {
        let end = world.judge(&mut numbers(seed, release));
        (end.delay_s, end.finding)
    })
}

fn healthy(interval_s: f64) -> World {
    World {
        bursts: Bursts::Daily,
        turnover: true,
        ..World::quiet(interval_s)
    }
}

/// Worse from the moment when the revision appeared.
fn worse(interval_s: f64, rise: f64) -> World {
    World {
        rise,
        ..World::quiet(interval_s)
    }
}

#[test]
fn goal_healthy_releases_are_kept() {
    for interval_s in [1.0, 5.0] {
        worlds(
            "healthy, daily bursts, pods replaced",
            2000,
            1,
            healthy(interval_s),
        )
        .at_most(0.5);
    }
}

#[test]
fn goal_a_burst_of_ten_seconds_is_kept() {
    for interval_s in [1.0, 5.0] {
        let hit = World {
            bursts: Bursts::Hit,
            ..World::quiet(interval_s)
        };
        worlds("hit by a burst of 10 s", 1000, 2, hit).at_most(5.0);
    }
}

#[test]
fn goal_one_point_more_is_harmless() {
    for interval_s in [1.0, 5.0] {
        worlds("+1 point", 1000, 3, worse(interval_s, 0.01)).at_most(10.0);
    }
}

#[test]
fn goal_an_outage_is_found_in_seconds() {
    for (interval_s, latest_s) in [(1.0, 16.0), (5.0, 20.0)] {
        let dead = World {
            onset_within_s: 120.0,
            ..worse(interval_s, 1.0)
        };
        worlds("dead", 200, 4, dead).found_within(1.0, latest_s);
    }
}

#[test]
fn goal_errors_are_found_the_sooner_the_more_they_are() {
    for (rise, median_s, p95_s) in [(0.2, 20.0, 30.0), (0.1, 35.0, 60.0), (0.05, 80.0, 150.0)] {
        let row = worlds(
            &format!("+{} points", rise * 100.0),
            300,
            5,
            worse(1.0, rise),
        );
        row.found_within(0.5, median_s);
        row.found_within(0.95, p95_s);
    }
    for (rise, median_s, p95_s) in [(0.2, 50.0, 90.0), (0.1, 120.0, 300.0)] {
        let row = worlds(
            &format!("+{} points", rise * 100.0),
            300,
            6,
            worse(5.0, rise),
        );
        row.found_within(0.5, median_s);
        row.found_within(0.95, p95_s);
    }
}

/// A rolling update with this fault, of which some depend on when the first new pod is Ready.
fn updates(
    name: &str,
    count: usize,
    seed: u64,
    rollout: Rollout,
    fault: impl Fn(&mut Rng, &Deployed) -> Fault,
) -> Row {
    let direct = if rollout.direct { "" } else { ", not direct" };
    let name = format!("{name}, {} pods{direct}", rollout.replicas);
    let (mut users, mut unguarded) = (0.0, 0.0);
    let row = Row::of(&name, count, seed, |seed, release| {
        let mut rng = numbers(seed, release);
        let mut deployed = rollout.deploy(&mut rng);
        deployed.fault = fault(&mut rng, &deployed);
        let end = rollout.judge(&mut rng, &deployed);
        users += end.users_failing;
        unguarded += end.users_failing_unguarded;
        (end.delay_s, end.finding)
    });
    if unguarded > 0.0 {
        let percent = |sum: f64| 100.0 * sum / row.releases as f64;
        println!(
            "{:<44} users' requests that fail: {:.1} %, unguarded {:.0} %",
            "",
            percent(users),
            percent(unguarded)
        );
    }
    row
}

#[test]
fn goal_direct_soundings_find_bad_pods_while_old_ones_serve() {
    for replicas in [3, 5, 20] {
        let rollout = Rollout::of(replicas);
        for (name, fault, median_s, p95_s) in [
            ("new pods dead", Fault::Rise(1.0), 13.0, 13.0),
            ("one endpoint dead", Fault::OneEndpointDead, 13.0, 27.0),
            ("new pods +50 points", Fault::Rise(0.5), 19.0, 25.0),
            ("new pods +20 points", Fault::Rise(0.2), 24.0, 35.0),
            ("new pods +10 points", Fault::Rise(0.1), 40.0, 60.0),
        ] {
            let row = updates(name, 60, 7, rollout, |_, _| fault);
            row.found_within(0.5, median_s);
            row.found_within(0.95, p95_s);
        }
    }
}

#[test]
fn goal_what_hits_old_and_new_alike_is_not_the_releases_fault() {
    for replicas in [3, 5, 20] {
        let rollout = Rollout::of(replicas);
        let down = updates("a dependency goes down", 80, 8, rollout, |_, deployed| {
            Fault::Common {
                endpoints: one(1),
                share: 1.0,
                from_s: deployed.first_ready_s() + 2.0,
                until_s: f64::INFINITY,
            }
        });
        down.at_most(0.0);
        let flaky = updates("two endpoints 40 % flaky", 80, 9, rollout, |_, _| {
            Fault::Common {
                endpoints: [true, true, false, false],
                share: 0.4,
                from_s: 0.0,
                until_s: f64::INFINITY,
            }
        });
        flaky.at_most(0.0);
        updates("two endpoints 15 % flaky", 80, 10, rollout, |_, _| {
            Fault::Common {
                endpoints: [true, true, false, false],
                share: 0.15,
                from_s: 0.0,
                until_s: f64::INFINITY,
            }
        })
        .at_most(match replicas {
            20 => 25.0,
            5 => 140.0,
            _ => 240.0,
        });
    }
}

#[test]
fn goal_rolling_updates_that_are_well_are_kept() {
    for replicas in [3, 5, 20] {
        let rollout = Rollout::of(replicas);
        updates("healthy", 300, 11, rollout, |_, _| Fault::None).at_most(1.0);
        updates("new pods +1 point", 300, 12, rollout, |_, _| {
            Fault::Rise(0.01)
        })
        .at_most(10.0);
        updates("a burst of new pods", 300, 13, rollout, |rng, _| {
            Fault::BurstOfNewPods {
                from_s: within(rng, 0.0, 290.0),
            }
        })
        .at_most(2.0);
        updates("a burst of all", 300, 14, rollout, |rng, _| {
            let from_s = within(rng, 0.0, 290.0);
            Fault::Common {
                endpoints: [true; ENDPOINTS],
                share: 1.0,
                from_s,
                until_s: from_s + 10.0,
            }
        })
        .at_most(1.0);
        updates("a cold start of 8 s", 300, 15, rollout, |_, _| {
            Fault::ColdStart(8.0)
        })
        .at_most(1.0);
    }
}

fn one(endpoint: usize) -> [bool; ENDPOINTS] {
    std::array::from_fn(|at| at == endpoint)
}
