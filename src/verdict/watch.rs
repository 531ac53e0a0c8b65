//! One revision under judgement.

use serde::{Deserialize, Serialize};

use super::counts::Recent;
use super::direct::{Direct, Down};
use super::finding::{Finding, Reason, Rise, StratumName, StratumReport, Strongest, Verdict, Why};
use super::rule::{Rule, Unusable};
use super::stratum::{Before, Control, LN_ZERO, OldPods, Opening, Stratum, ln, ln_sum};
use super::{MAX_ENDPOINTS, Mark, PodLook, PodState, RequestsBefore, Scrape, Start, Tick};

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
        check(start)?;
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

        self.finding = self.crash_loop(now, t, tick.pods);
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

    /// Path A.
    fn crash_loop(&self, now: u32, t: f64, pods: &[PodState]) -> Option<Finding> {
        let rule = &self.rule;
        let looping = pods.iter().find(|pod| {
            !pod.old_too
                && (pod.restarts >= rule.crash_restarts_hard
                    || pod.crash_loop_back_off && pod.restarts >= rule.crash_restarts)
        })?;
        let waiting = if looping.crash_loop_back_off {
            " (CrashLoopBackOff)"
        } else {
            ""
        };
        Some(Finding {
            reason: Reason::CrashLoop,
            tick: now,
            t,
            e: None,
            text: format!("new pod restarted {} times{waiting}", looping.restarts),
            otherwise: format!(
                "With fewer than {} restarts, or with pods of the old revision that do the same, it would not have been \
                 held against the revision.",
                if looping.crash_loop_back_off {
                    rule.crash_restarts
                } else {
                    rule.crash_restarts_hard
                }
            ),
        })
    }

    /// Path B.
    fn hard_down(&self, now: u32, t: f64, is_settled: bool) -> Option<Finding> {
        let finding = |reason, text, ticks: u32| Finding {
            reason,
            tick: now,
            t,
            e: None,
            text,
            otherwise: format!(
                "One good answer in the last {:.0} s would have ended the run, and the revision would have been watched \
                 further.",
                f64::from(ticks) * self.rule.interval_s
            ),
        };
        if self.all_run >= self.hold_all {
            let text = format!("every endpoint failed {} times in a row", self.all_run);
            return Some(finding(Reason::HardDownAll, text, self.all_run));
        }
        self.endpoints.iter().find_map(|endpoint| {
            let hold = if is_settled {
                endpoint.hold
            } else {
                endpoint.hold_unsettled
            };
            (endpoint.mark == Mark::Bad && endpoint.run >= hold).then(|| {
                let text = format!("{} failed {} times in a row", endpoint.name, endpoint.run);
                finding(Reason::HardDown(endpoint.name.clone()), text, endpoint.run)
            })
        })
    }

    /// Path D.
    fn pods_down(&self, now: u32, t: f64, down: Down) -> Finding {
        let name = &self.endpoints[down.endpoint].name;
        Finding {
            reason: Reason::PodsDown(name.clone()),
            tick: now,
            t,
            e: None,
            text: format!(
                "{} new pods failed {name} {} times in a row while old pods answered",
                down.pods, down.ticks
            ),
            otherwise: format!(
                "One good answer of a new pod in the last {:.0} s, or old pods failing {name} as well, would have kept \
                 the revision under watch.",
                f64::from(down.ticks) * self.rule.interval_s
            ),
        }
    }

    /// Path C.
    fn error_rate(&mut self, now: u32, t: f64) -> Option<Finding> {
        let rule = &self.rule;
        // One pass for the sum; the terms are made again only where something convicts.
        let mut ln_e = LN_ZERO;
        let mut largest = (LN_ZERO, 0u16);
        for at in 0..self.strata() {
            let stratum = self.stratum(at);
            let weighted = stratum.ln_weighted(stratum.ln_e(rule));
            ln_e = ln_sum(&[ln_e, weighted]);
            if weighted > largest.0 {
                largest = (weighted, at as u16);
            }
        }
        self.ln_e = ln_e;
        if self.strongest.is_none_or(|(most, _, _)| ln_e > most) {
            self.strongest = Some((ln_e, largest.1, now));
        }
        let needed = ln(rule.threshold());
        if ln_e < needed {
            return None;
        }
        let mut best: Option<(f64, usize)> = None;
        for at in 0..self.strata() {
            let stratum = self.stratum(at);
            let own = stratum.ln_e(rule);
            if own < needed + 0.1f64.ln() || !self.passes(at, now, t) {
                continue;
            }
            let weighted = stratum.ln_weighted(own);
            if best.is_none_or(|(most, _)| weighted > most) {
                best = Some((weighted, at));
            }
        }
        let (_, at) = best?;
        let stratum = self.stratum(at);
        let (failed, total) = self.recent(at);
        let control = self.control(at);
        let name = self.name(at);
        let rise = Rise {
            stratum: &name,
            failed,
            total,
            span_s: (t + rule.interval_s).min(self.span_s(at)),
            before: (stratum.before.failed, stratum.before.total),
            assumed: stratum.before.assumed.then_some(rule.p_assumed),
            old_pods: control
                .filter(|control| control.rate() > stratum.before.rate())
                .map(|control| (control.failed, control.total)),
            margin: stratum.margin,
            e: ln_e.exp(),
            threshold: rule.threshold(),
        };
        Some(Finding {
            tick: now,
            t,
            e: Some(ln_e.exp()),
            text: rise.text(),
            otherwise: rise.otherwise(),
            reason: Reason::ErrorRate(name),
        })
    }

    /// Tests 2 and 3 of path C.
    fn passes(&self, at: usize, now: u32, t: f64) -> bool {
        let rule = &self.rule;
        let stratum = self.stratum(at);
        let (failed, total) = self.recent(at);
        let is_alive = match (self.kind(at), &self.requests) {
            (Kind::Requests, Some(requests)) => {
                let lately = rule.still_failing_s.max(2.0 * requests.interval_s);
                stratum.failing_ticks >= rule.min_failing_scrapes
                    && t - requests.last_failing_t <= lately + 1e-9
            }
            (Kind::Pool | Kind::Endpoint(_) | Kind::NewPods | Kind::Requests, _) => {
                stratum.is_alive(rule, now)
            }
        };
        is_alive && stratum.rose(failed, total, self.control(at))
    }

    /// Strata, in order: the pool, the endpoints, requests, new pods.
    fn strata(&self) -> usize {
        let more = usize::from(self.requests.is_some()) + usize::from(self.new_pods.is_some());
        1 + self.endpoints.len() + more
    }

    fn kind(&self, at: usize) -> Kind {
        match at.checked_sub(1) {
            None => Kind::Pool,
            Some(endpoint) if endpoint < self.endpoints.len() => Kind::Endpoint(endpoint),
            Some(next) if next == self.endpoints.len() && self.requests.is_some() => Kind::Requests,
            Some(_) => Kind::NewPods,
        }
    }

    fn stratum(&self, at: usize) -> &Stratum {
        match (self.kind(at), &self.requests, &self.new_pods) {
            (Kind::Endpoint(at), _, _) => &self.endpoints[at].stratum,
            (Kind::Requests, Some(requests), _) => &requests.stratum,
            (Kind::NewPods, _, Some(new_pods)) => &new_pods.stratum,
            (Kind::Pool | Kind::Requests | Kind::NewPods, _, _) => &self.pool.stratum,
        }
    }

    fn name(&self, at: usize) -> StratumName {
        match self.kind(at) {
            Kind::Pool => StratumName::Pool,
            Kind::Endpoint(at) => StratumName::Endpoint(self.endpoints[at].name.clone()),
            Kind::Requests => StratumName::Requests,
            Kind::NewPods => StratumName::NewPods,
        }
    }

    /// Failures and outcomes in the span of the estimate.
    fn recent(&self, at: usize) -> (u64, u64) {
        match (self.kind(at), &self.requests, &self.new_pods) {
            (Kind::Endpoint(at), _, _) => self.endpoints[at].recent.whole(),
            (Kind::Requests, Some(requests), _) => requests.recent.whole(),
            (Kind::NewPods, _, Some(new_pods)) => new_pods.direct.estimate(),
            (Kind::Pool | Kind::Requests | Kind::NewPods, _, _) => self.pool.recent.whole(),
        }
    }

    /// What old pods say of a stratum, this tick included.
    fn control(&self, at: usize) -> Option<Control> {
        let stratum = self.stratum(at);
        let old_pods = match self.kind(at) {
            Kind::Pool | Kind::NewPods => self.pool.old_pods.as_ref(),
            Kind::Endpoint(at) => self.endpoints[at].old_pods.as_ref(),
            Kind::Requests => None,
        };
        old_pods?.says(&self.rule, stratum.before.rate(), stratum.margin)
    }

    /// Seconds that the estimate looks back.
    fn span_s(&self, at: usize) -> f64 {
        let rule = &self.rule;
        match (self.kind(at), &self.requests) {
            (Kind::Requests, Some(requests)) => rule.window_s.max(requests.interval_s),
            (Kind::Pool | Kind::Endpoint(_) | Kind::NewPods | Kind::Requests, _) => {
                let probes = f64::from(rule.window_probes) / self.endpoints.len() as f64;
                rule.window_s.max(probes.ceil() * rule.interval_s)
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

    /// The strongest evidence so far.
    pub fn strongest(&self) -> Option<Strongest> {
        let (ln_e, at, tick) = self.strongest?;
        Some(Strongest {
            e: ln_e.exp(),
            stratum: self.name(usize::from(at)),
            t: f64::from(tick) * self.rule.interval_s,
        })
    }

    /// The numbers of every stratum.
    pub fn report(&self) -> Vec<StratumReport> {
        (0..self.strata())
            .map(|at| {
                let stratum = self.stratum(at);
                let (failed, total) = self.recent(at);
                StratumReport {
                    name: self.name(at),
                    failed,
                    total,
                    before_failed: stratum.before.failed,
                    before_total: stratum.before.total,
                    assumed: stratum.before.assumed,
                    tolerated: stratum.tolerated(),
                    log10_e: stratum.ln_e(&self.rule) / std::f64::consts::LN_10,
                    clipped_blocks: stratum.clipped_blocks,
                }
            })
            .collect()
    }

    /// Where each endpoint stands, for the verification after a rollback.
    /// Failures are those of the last `ticks`; an endpoint that new pods do not answer at all fails wholly, however few
    /// users have noticed yet.
    pub(super) fn standing(&self, ticks: u32) -> impl Iterator<Item = Standing<'_>> {
        let down = |at: usize| {
            let pods = self.new_pods.as_ref()?;
            Some(pods.direct.endpoints[at].down >= 3)
        };
        self.endpoints
            .iter()
            .enumerate()
            .map(move |(at, endpoint)| Standing {
                name: &endpoint.name,
                counts: endpoint.aside.is_none(),
                before: endpoint.stratum.before,
                recent: if down(at) == Some(true) {
                    (1, 1)
                } else {
                    endpoint.recent.sum(ticks)
                },
            })
    }

    /// What was measured of all endpoints together before.
    pub(super) fn pooled(&self) -> Before {
        self.pool.stratum.before
    }

    /// Endpoints that are set aside at the moment: they do not count.
    pub fn aside(&self) -> impl Iterator<Item = &str> {
        self.endpoints
            .iter()
            .filter(|endpoint| endpoint.aside.is_some())
            .map(|endpoint| &*endpoint.name)
    }

    /// The endpoints' names, in their order.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.name)
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

    /// Whether a state that was read from outside can be worked with.
    pub fn is_sound(&self) -> bool {
        let strata = (0..self.strata()).all(|at| self.stratum(at).is_sound());
        let count = self.endpoints.len();
        let old = |old: &Option<OldPods>| {
            old.is_some() == self.new_pods.is_some() && old.as_ref().is_none_or(OldPods::is_sound)
        };
        self.rule.check().is_ok()
            && (1..=MAX_ENDPOINTS).contains(&count)
            && strata
            && self.ln_e.is_finite()
            && self.pool.recent.is_sound()
            && old(&self.pool.old_pods)
            && self
                .endpoints
                .iter()
                .all(|e| e.recent.is_sound() && old(&e.old_pods))
            && self.requests.as_ref().is_none_or(|r| r.recent.is_sound())
            && self
                .new_pods
                .as_ref()
                .is_none_or(|p| p.direct.is_sound(count))
            && self
                .strongest
                .is_none_or(|(_, at, _)| usize::from(at) < self.strata())
    }

    /// Bytes that the state takes, on the heap as well.
    pub fn bytes(&self) -> usize {
        let old = |old: &Option<OldPods>| old.as_ref().map_or(0, OldPods::bytes);
        let endpoints: usize = self
            .endpoints
            .iter()
            .map(|e| size_of::<Endpoint>() + e.name.len() + e.recent.bytes() + old(&e.old_pods))
            .sum();
        let pods = |pods: &NewPods| pods.direct.bytes();
        size_of::<Self>()
            + self.pool.recent.bytes()
            + old(&self.pool.old_pods)
            + endpoints
            + self.requests.as_ref().map_or(0, |r| r.recent.bytes())
            + self.new_pods.as_ref().map_or(0, pods)
    }
}

/// Where an endpoint stands at the end of a watch.
pub(super) struct Standing<'a> {
    pub(super) name: &'a str,
    pub(super) counts: bool,
    pub(super) before: Before,
    pub(super) recent: (u64, u64),
}

/// A stratum by its place.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Pool,
    Endpoint(usize),
    Requests,
    NewPods,
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

fn check(start: &Start) -> Result<(), Unusable> {
    let count = start.endpoints.len();
    if !(1..=MAX_ENDPOINTS).contains(&count) {
        return Err(Unusable::new(
            "endpoints",
            format!("has {count} names, but must have 1 to {MAX_ENDPOINTS}"),
        ));
    }
    for (field, length) in [
        ("baseline", start.baseline.len()),
        ("failing_at_start", start.failing_at_start.len()),
    ] {
        if length != count {
            return Err(Unusable::new(
                field,
                format!("has {length} entries for {count} endpoints"),
            ));
        }
    }
    for (at, (failed, total)) in start.baseline.iter().enumerate() {
        if failed > total {
            return Err(Unusable::new(
                format!("baseline[{at}]"),
                format!("has {failed} failures of {total}"),
            ));
        }
    }
    if let Some(at) = start.settled_at
        && !(at.is_finite() && at >= 0.0)
    {
        return Err(Unusable::new(
            "settled_at",
            format!("is {at}, but must be 0 or more"),
        ));
    }
    if let Some(requests) = &start.requests {
        if !(requests.interval_s >= 1.0 && requests.interval_s <= 600.0) {
            return Err(Unusable::new(
                "requests.interval_s",
                format!("is {}, but must be from 1 to 600", requests.interval_s),
            ));
        }
        if requests.failed > requests.total {
            return Err(Unusable::new(
                "requests.baseline",
                format!("has {} failures of {}", requests.failed, requests.total),
            ));
        }
    }
    Ok(())
}
