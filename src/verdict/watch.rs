//! One revision under judgement.

mod paths;
mod report;
mod start;

use serde::{Deserialize, Serialize};

use super::counts::Recent;
use super::direct::{Direct, Down};
use super::finding::{Finding, Verdict, Why};
use super::rule::{Rule, Unusable};
use super::stratum::{Before, Control, OldPods, Opening, Stratum};
use super::{Mark, PodLook, RequestsBefore, Scrape, Start, Tick};

/// Why an endpoint is not counted at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Aside {
    /// It failed when the revision appeared.
    FailedAtStart,
    /// It fails for old pods as well.
    ControlLost,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Endpoint {
    name: Box<str>,
    failed_at_start: bool,
    aside: Option<Aside>,
    /// Successes in a row while set aside.
    recovering: u32,
    /// Failures in a row.
    run: u32,
    /// `N_e`, settled and before.
    hold: u32,
    hold_unsettled: u32,
    stratum: Stratum,
    recent: Recent<u16>,
    old_pods: Option<OldPods>,
    /// This tick's mark, after everything that makes it void.
    mark: Mark,
    /// Whether it is not counted in this tick: set aside, the tick that frees it included.
    aside_now: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pool {
    stratum: Stratum,
    recent: Recent<u16>,
    old_pods: Option<OldPods>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Requests {
    interval_s: f64,
    stratum: Stratum,
    recent: Recent<u64>,
    last_failing_t: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewPods {
    stratum: Stratum,
    direct: Direct,
}

/// The state of the judgement on one revision; see the module for what holds of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    rule: Rule,
    settled_at: Option<f64>,
    /// Whether the rollout is complete, or has been in this watch; `None` where nobody can see it.
    #[serde(default)]
    rolled_out: Option<bool>,
    expected_downtime: bool,
    next_tick: u32,
    pool: Pool,
    endpoints: Vec<Endpoint>,
    requests: Option<Requests>,
    new_pods: Option<NewPods>,
    /// Ticks in a row in which everything failed.
    all_run: u32,
    hold_all: u32,
    scheduled: u64,
    usable: u64,
    ln_e: f64,
    /// The largest so far, where, and in which tick.
    strongest: Option<(f64, u16, u32)>,
    finding: Option<Finding>,
}

impl Watch {
    /// Begins to watch a revision.
    ///
    /// # Errors
    /// When the rule or what is known at the start cannot be worked with; the error names the field.
    pub fn new(rule: Rule, start: &Start) -> Result<Self, Unusable> {
        rule.check()?;
        start::check(start)?;
        let count = start.endpoints.len();
        let dt = rule.interval_s;
        let share = Weights::new(&rule, count, start.requests.is_some(), start.direct);
        let window = rule
            .ticks(rule.window_s)
            .max(rule.window_probes.div_ceil(count as u32))
            .max(1);
        let (failed, total) = std::iter::zip(&start.baseline, &start.failing_at_start)
            .filter(|(_, failing)| !**failing)
            .fold((0u64, 0u64), |(failed, total), ((k, n), _)| {
                (failed.saturating_add(*k), total.saturating_add(*n))
            });
        let pooled = Before::new(&rule, failed, total, rule.n0_min);
        let old_pods = || start.direct.then(|| OldPods::new(&rule));
        let looks = count as f64 * rule.watch_s / dt;
        let surprise = (rule.alpha_hard / looks).ln();
        let hold_all = rule.hold(rule.hold_s);
        let endpoints = std::iter::zip(&start.endpoints, &start.baseline)
            .zip(&start.failing_at_start)
            .map(|((name, (failed, total)), failing)| {
                let before = Before::new(&rule, *failed, *total, rule.n0_min / 2);
                let needed = |rate: f64| (surprise / rate.ln() - 1e-9).ceil() as u32;
                let hold = hold_all.max(needed(before.bound.clamp(0.001, 0.95)));
                let unsettled = rule.tolerable(before.bound + rule.unsettled_margin);
                Endpoint {
                    name: name.clone(),
                    failed_at_start: *failing,
                    aside: failing.then_some(Aside::FailedAtStart),
                    recovering: 0,
                    run: 0,
                    hold,
                    hold_unsettled: hold.max(needed(unsettled)),
                    stratum: Stratum::new(
                        &rule,
                        before,
                        rule.endpoint_margin,
                        share.endpoint,
                        dt,
                        Opening::AtStart,
                    ),
                    recent: Recent::new(window),
                    old_pods: old_pods(),
                    mark: Mark::Void,
                    aside_now: *failing,
                }
            })
            .collect();
        let pool = Pool {
            stratum: Stratum::new(&rule, pooled, rule.margin, share.pool, dt, Opening::AtStart),
            recent: Recent::new(window),
            old_pods: old_pods(),
        };
        let requests = start.requests.map(|before| {
            let RequestsBefore {
                interval_s,
                failed,
                total,
            } = before;
            let known = Before::new(&rule, failed, total, rule.n0_min);
            Requests {
                interval_s,
                stratum: Stratum::new(
                    &rule,
                    known,
                    rule.margin,
                    share.requests,
                    interval_s,
                    Opening::AtStart,
                ),
                recent: Recent::new(super::rule::whole(rule.window_s / interval_s).max(1)),
                last_failing_t: 0.0,
            }
        });
        let new_pods = start.direct.then(|| NewPods {
            stratum: Stratum::new(
                &rule,
                pooled,
                rule.margin,
                share.new_pods,
                dt,
                Opening::AtFirstCount,
            ),
            direct: Direct::new(count, window),
        });
        Ok(Self {
            rule,
            settled_at: start.settled_at,
            rolled_out: None,
            expected_downtime: start.expected_downtime,
            next_tick: 0,
            pool,
            endpoints,
            requests,
            new_pods,
            all_run: 0,
            hold_all,
            scheduled: 0,
            usable: 0,
            ln_e: 0.0,
            strongest: None,
            finding: None,
        })
    }

    /// The rollout is complete, so many seconds after the revision appeared. The first report counts.
    pub fn settled(&mut self, at_s: f64) {
        if self.settled_at.is_none() && at_s.is_finite() {
            self.settled_at = Some(at_s.max(0.0));
        }
    }

    /// Whether the rollout is complete at the moment, as far as anybody can see it. Where it is not at the end, the
    /// revision is not healthy, whatever its old pods have answered.
    pub const fn rolled_out(&mut self, is_complete: bool) {
        self.rolled_out = Some(is_complete);
    }

    /// One tick. `Some` in the tick in which the revision is convicted; after that, and at the end of the watch,
    /// ticks are not read.
    pub fn tick(&mut self, tick: &Tick<'_>) -> Option<&Finding> {
        if self.finding.is_some() || self.is_over() {
            return None;
        }
        let now = self.next_tick;
        let t = f64::from(now) * self.rule.interval_s;
        self.next_tick += 1;
        let settled_from = self.settled_from();
        let is_settled = t >= settled_from - 1e-9;

        let cannot_start = || Self::cannot_start(now, t, tick.pods);
        self.finding = self.crash_loop(now, t, tick.pods).or_else(cannot_start);
        if self.finding.is_some() {
            return self.finding.as_ref();
        }
        let is_down_as_expected = self.expected_downtime && !is_settled;
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            endpoint.mark = match tick.marks.get(at) {
                Some(mark) if !is_down_as_expected => *mark,
                _ => Mark::Void,
            };
        }
        let looks = if is_down_as_expected {
            &[]
        } else {
            tick.direct
        };
        let (down, pod_counts) = self.set_aside(now, looks);

        let control = self.pool_control();
        let counts = pod_counts.unwrap_or_default();
        if let Some(new_pods) = &mut self.new_pods {
            let has_counts = counts.1 > 0;
            new_pods
                .stratum
                .advance(&self.rule, t, settled_from, control, has_counts);
            new_pods
                .stratum
                .add(now, f64::from(counts.0), f64::from(counts.1));
        }
        self.count(now, t, settled_from, control);
        self.count_requests(now, t, settled_from, tick.scrapes);
        if !is_down_as_expected {
            self.scheduled += self.endpoints.len() as u64;
        }

        self.finding = self
            .hard_down(now, t, is_settled)
            .or_else(|| down.map(|down| self.pods_down(now, t, down)))
            .or_else(|| self.error_rate(now, t));
        self.finding.as_ref()
    }

    /// From when blocks count as settled.
    fn settled_from(&self) -> f64 {
        let cap = self.rule.settle_cap_s;
        self.settled_at.map_or(cap, |at| at.min(cap))
    }

    /// Section "direct soundings" and "set aside" of the rule: makes marks void, and counts the new pods' answers.
    fn set_aside(&mut self, now: u32, looks: &[PodLook<'_>]) -> (Option<Down>, Option<(u16, u16)>) {
        let rule = &self.rule;
        let mut down = None;
        if let Some(NewPods { direct, .. }) = &mut self.new_pods {
            direct.take(rule, now, looks);
            let endpoints = &mut self.endpoints;
            down = direct.down(rule, now, looks, |at| endpoints[at].aside.is_some());
            for (endpoint, pods) in endpoints.iter_mut().zip(&direct.endpoints) {
                if !pods.answers.control_lost() {
                    continue;
                }
                if endpoint.mark == Mark::Bad {
                    endpoint.mark = Mark::Void;
                }
                if pods.lost_run >= rule.recover_ticks && endpoint.aside.is_none() {
                    endpoint.aside = Some(Aside::ControlLost);
                    endpoint.recovering = 0;
                }
            }
        }
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            endpoint.aside_now = endpoint.aside.is_some();
            let Some(aside) = endpoint.aside else {
                continue;
            };
            match endpoint.mark {
                Mark::Good => endpoint.recovering += 1,
                Mark::Bad => endpoint.recovering = 0,
                Mark::Void => {}
            }
            let pods = self
                .new_pods
                .as_mut()
                .map(|new_pods| &mut new_pods.direct.endpoints[at]);
            let by_old_pods = aside == Aside::ControlLost
                && pods
                    .as_ref()
                    .is_some_and(|pods| pods.well_run >= rule.recover_ticks);
            if by_old_pods || endpoint.recovering >= rule.recover_ticks {
                endpoint.aside = None;
                if let Some(pods) = pods {
                    // As many lost ticks in a row again are needed before it is set aside once more.
                    pods.lost_run = 0;
                }
                endpoint.recovering = 0;
            }
            endpoint.mark = Mark::Void;
        }
        let endpoints = &self.endpoints;
        let is_aside = |at: usize| endpoints[at].aside_now;
        let counts = self
            .new_pods
            .as_mut()
            .map(|new_pods| new_pods.direct.count(rule, now, looks, is_aside));
        (down, counts)
    }

    /// What old pods said of all endpoints together up to the tick before.
    fn pool_control(&self) -> Option<Control> {
        let stratum = &self.pool.stratum;
        self.pool
            .old_pods
            .as_ref()?
            .says(&self.rule, stratum.before.rate(), stratum.margin)
    }

    /// Adds this tick's marks to the strata, and what old pods answered to what is tolerated next.
    fn count(&mut self, now: u32, t: f64, settled_from: f64, pool_control: Option<Control>) {
        let rule = &self.rule;
        let (mut failed, mut total) = (0u16, 0u16);
        let (mut old_failed, mut old_total) = (0u16, 0u16);
        let (mut all_failed, mut some_void, mut counted) = (true, false, 0u32);
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let stratum = &mut endpoint.stratum;
            let control = endpoint
                .old_pods
                .as_ref()
                .and_then(|old| old.says(rule, stratum.before.rate(), stratum.margin));
            stratum.advance(rule, t, settled_from, control, true);
            let (k, n) = match endpoint.mark {
                Mark::Good => (0, 1),
                Mark::Bad => (1, 1),
                Mark::Void => (0, 0),
            };
            stratum.add(now, f64::from(k), f64::from(n));
            endpoint.recent.push(k, n);
            match endpoint.mark {
                Mark::Good => endpoint.run = 0,
                Mark::Bad => endpoint.run += 1,
                Mark::Void => {}
            }
            if !endpoint.failed_at_start {
                failed += k;
                total += n;
            }
            self.usable += u64::from(n);
            if !endpoint.aside_now {
                counted += 1;
                some_void |= endpoint.mark == Mark::Void;
                all_failed &= endpoint.mark == Mark::Bad;
            }
            if let (Some(old), Some(new_pods)) = (&mut endpoint.old_pods, &self.new_pods) {
                let answers = new_pods.direct.endpoints[at].answers;
                let (k, n) = if endpoint.aside_now {
                    (0, 0)
                } else {
                    (answers.old_bad, answers.old())
                };
                old.push(k, n);
                if !endpoint.failed_at_start {
                    old_failed += k;
                    old_total += n;
                }
            }
        }
        let pool = &mut self.pool;
        pool.stratum
            .advance(rule, t, settled_from, pool_control, true);
        pool.stratum.add(now, f64::from(failed), f64::from(total));
        pool.recent.push(failed, total);
        if let Some(old) = &mut pool.old_pods {
            old.push(old_failed, old_total);
        }
        let is_wholly_void = self
            .endpoints
            .iter()
            .all(|endpoint| endpoint.mark == Mark::Void);
        if is_wholly_void {
            // Neither lengthens nor ends the run.
        } else if counted >= 2 && all_failed && !some_void {
            self.all_run += 1;
        } else {
            self.all_run = 0;
        }
    }

    fn count_requests(&mut self, now: u32, t: f64, settled_from: f64, scrapes: &[Scrape]) {
        let Some(requests) = &mut self.requests else {
            return;
        };
        let rule = &self.rule;
        requests.stratum.advance(rule, t, settled_from, None, true);
        for scrape in scrapes {
            if self.expected_downtime && scrape.t <= settled_from {
                continue;
            }
            let total = scrape.total.max(scrape.failed);
            let cap = u64::from(rule.request_cap);
            let (k, n) = if total > cap {
                (scrape.failed as f64 * cap as f64 / total as f64, cap as f64)
            } else {
                (scrape.failed as f64, total as f64)
            };
            requests.stratum.add(now, k, n);
            requests.recent.push(scrape.failed, total);
            if scrape.failed > 0 {
                requests.last_failing_t = scrape.t;
            }
        }
    }

    /// Whether all ticks of the watch have been read.
    pub fn is_over(&self) -> bool {
        f64::from(self.next_tick) * self.rule.interval_s >= self.rule.watch_s - 1e-9
    }

    /// The verdict if the stream ended here.
    pub fn conclude(&self) -> Verdict {
        if let Some(finding) = &self.finding {
            return Verdict::Rollback(finding.clone());
        }
        let all_failed = self.endpoints.iter().all(|e| e.failed_at_start);
        let still_aside = |endpoint: &Endpoint| endpoint.aside == Some(Aside::FailedAtStart);
        if all_failed && self.endpoints.iter().any(still_aside) {
            return Verdict::Inconclusive(Why::BaselineBad);
        }
        if self.is_over() && self.settled_at.is_none() && self.rolled_out == Some(false) {
            return Verdict::Inconclusive(Why::NotRolledOut);
        }
        if self
            .coverage()
            .is_some_and(|usable| usable < self.rule.min_coverage)
        {
            return Verdict::Inconclusive(Why::Coverage);
        }
        if self.is_over() {
            Verdict::Healthy
        } else {
            Verdict::Watching
        }
    }

    /// Usable share of the soundings so far; `None` before the first.
    pub fn coverage(&self) -> Option<f64> {
        (self.scheduled > 0).then(|| self.usable as f64 / self.scheduled as f64)
    }

    /// The e-value after the last tick; 1 before the first.
    pub fn e_value(&self) -> f64 {
        self.ln_e.exp()
    }

    /// The largest e-value of all ticks so far; 0 before the first that was evaluated.
    pub fn max_e(&self) -> f64 {
        self.strongest.map_or(0.0, |(ln_e, _, _)| ln_e.exp())
    }

    /// The same after the last tick as a power of ten: finite also where the number itself is too large for a double.
    pub fn log10_e(&self) -> f64 {
        self.ln_e / std::f64::consts::LN_10
    }

    /// Why the revision was convicted, if it was.
    pub fn finding(&self) -> Option<&Finding> {
        self.finding.as_ref()
    }

    /// How many ticks were read.
    pub fn ticks(&self) -> u32 {
        self.next_tick
    }

    /// Seconds of the watch that have passed.
    pub fn elapsed_s(&self) -> f64 {
        f64::from(self.next_tick) * self.rule.interval_s
    }

    /// When the rollout was complete, if it was reported.
    pub fn settled_at(&self) -> Option<f64> {
        self.settled_at
    }

    /// The rule in force.
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// Which share of the evidence each stratum carries; they sum up to 1.
struct Weights {
    pool: f64,
    endpoint: f64,
    requests: f64,
    new_pods: f64,
}

impl Weights {
    fn new(rule: &Rule, endpoints: usize, with_requests: bool, with_pods: bool) -> Self {
        let requests = if with_requests { rule.w_requests } else { 0.0 };
        let new_pods = if with_pods {
            rule.w_pods * (1.0 - requests)
        } else {
            0.0
        };
        let rest = 1.0 - requests - new_pods;
        Self {
            pool: rest * rule.w_pool,
            endpoint: rest * (1.0 - rule.w_pool) / endpoints as f64,
            requests,
            new_pods,
        }
    }
}
