//! Strata with their control group, and path C over them: once for failures, and again for slow answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::TickOutcome;
use super::mixture::{LN_ZERO, Mixture, NonFailure, ln, ln_sum};
use super::pod_results::{
    ClassCounts, DirectResults, EndpointDown, MAX_ASKED, PodReading, PodTick,
};
use super::requests::RequestStratum;
use super::rule::{AGES, Rule};
use super::stratum::{BeforeCounts, ControlCounts, Stratum, StratumSetup};
use super::warm_up::{AgeCounts, LearnedRollouts, PHASES, RolloutProgress, default_of_age, limit};

/// Why an endpoint is excluded at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Exclusion {
    /// It failed when the revision appeared.
    FailedAtStart,
    /// It fails for old pods as well.
    ControlLost,
    /// A dependency of it fails.
    Dependency,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ComparisonSubject {
    /// Failures: more are tolerated while the rollout warms up.
    Failures,
    /// Slow answers: only those of a time after the warm-up are counted.
    Latency,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ComparedEndpoint {
    pub(super) failed_at_start: bool,
    pub(super) excluded: Option<Exclusion>,
    /// Successes in a row while excluded.
    recovering: u32,
    pub(super) stratum: Stratum,
    pub(super) learned: [AgeCounts; PHASES],
    /// The outcome of this tick, after everything that makes it unknown.
    #[serde(alias = "mark")]
    pub(super) outcome: TickOutcome,
    /// Whether it is excluded in this tick, including the tick that ends the exclusion.
    pub(super) excluded_now: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NewPodCounts {
    stratum: Stratum,
    direct: DirectResults,
    learned: [AgeCounts; AGES],
}

/// Identifies a stratum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StratumKind {
    Pool,
    Endpoint(usize),
    Requests,
    NewPods,
}

/// A stratum that passes all tests of path C.
#[derive(Debug, Clone, Copy)]
pub(super) struct RisingStratum {
    pub(super) kind: StratumKind,
    /// The sum that reached the threshold, as a logarithm.
    pub(super) ln_e: f64,
    /// The threshold.
    pub(super) threshold: f64,
    /// Whether the long blocks decided.
    pub(super) slow_blocks: bool,
}

/// Counts of a tick, from which later rollouts learn.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TickCounts {
    pub(super) pool: (u16, u16),
    pub(super) pods: ClassCounts,
}

/// An instance of the comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Comparison {
    pub(super) rule: Arc<Rule>,
    pub(super) misses: NonFailure,
    subject: ComparisonSubject,
    pub(super) pool: Stratum,
    learned_pool: [AgeCounts; PHASES],
    pub(super) endpoints: Box<[ComparedEndpoint]>,
    pub(super) requests: Option<Box<RequestStratum>>,
    new_pods: Option<NewPodCounts>,
    /// The e-value after the last tick in which it was evaluated, as a logarithm.
    pub(super) ln_e: f64,
    /// The largest so far: its value, its largest stratum, and its tick.
    pub(super) strongest: Option<(f64, u16, u32)>,
}

/// The inputs of an instance.
pub(super) struct ComparisonInput<'a> {
    pub(super) subject: ComparisonSubject,
    pub(super) baseline: &'a [AgeCounts],
    pub(super) failing_at_start: &'a [bool],
    pub(super) learned: &'a LearnedRollouts,
    pub(super) direct: bool,
    pub(super) requests: Option<RequestStratum>,
}

impl Comparison {
    pub(super) fn new(rule: Arc<Rule>, input: ComparisonInput<'_>) -> Self {
        let count = input.baseline.len();
        let share = StrataWeights::new(&rule, count, input.requests.is_some(), input.direct);
        let least = rule.window_probes.div_ceil(count as u32);
        let window = rule.ticks(rule.window_s).max(least);
        let pooled = std::iter::zip(input.baseline, input.failing_at_start)
            .filter(|(_, failing)| !**failing)
            .fold((0u64, 0u64), |(failed, total), ((k, n), _)| {
                (failed.saturating_add(*k), total.saturating_add(*n))
            });
        let with_slow_blocks = input.subject == ComparisonSubject::Failures;
        let stratum = |before, margin, weight, classes, most_results| {
            let setup = StratumSetup {
                before,
                margin,
                weight,
                classes,
                most_results,
                with_slow_blocks,
                // New pods have the pool's control.
                with_old_pods: input.direct && classes == 1,
                window,
            };
            Stratum::new(&rule, &setup)
        };
        let pooled = BeforeCounts::new(&rule, pooled.0, pooled.1, rule.n0_min);
        let endpoints = std::iter::zip(input.baseline, input.failing_at_start)
            .enumerate()
            .map(|(at, ((failed, total), failing))| {
                let before = BeforeCounts::new(&rule, *failed, *total, rule.n0_min / 2);
                ComparedEndpoint {
                    failed_at_start: *failing,
                    excluded: failing.then_some(Exclusion::FailedAtStart),
                    recovering: 0,
                    stratum: stratum(before, rule.endpoint_margin, share.endpoint, 1, 1),
                    learned: input.learned.endpoints.get(at).copied().unwrap_or_default(),
                    outcome: TickOutcome::Unknown,
                    excluded_now: *failing,
                }
            })
            .collect();
        let new_pods = input.direct.then(|| NewPodCounts {
            stratum: stratum(
                pooled,
                rule.margin,
                share.new_pods,
                AGES + 1,
                MAX_ASKED * count,
            ),
            // Whether pods are down is judged by their failures alone.
            direct: DirectResults::new(count, with_slow_blocks),
            learned: input.learned.pods,
        });
        let mut requests = input.requests.map(Box::new);
        if let Some(requests) = &mut requests {
            requests.ln_weight = ln(share.requests);
        }
        Self {
            subject: input.subject,
            pool: stratum(pooled, rule.margin, share.pool, 1, count),
            learned_pool: input.learned.pool,
            endpoints,
            requests,
            new_pods,
            ln_e: 0.0,
            strongest: None,
            misses: NonFailure::new(&rule),
            rule,
        }
    }

    /// Takes this tick's outcomes (already in the endpoints) and the results of pods: follows the control group,
    /// excludes and readmits endpoints, and adds the counts to the strata. Also returns the regression of path D.
    pub(super) fn take(
        &mut self,
        now: u32,
        progress: RolloutProgress,
        looks: &[PodTick<'_>],
        reading: &impl PodReading,
        has_dependency_failing: impl Fn(usize) -> bool,
    ) -> (Option<EndpointDown>, TickCounts) {
        let mut down = None;
        if let Some(NewPodCounts { direct, .. }) = &mut self.new_pods {
            direct.take(&self.rule, now, looks, reading);
            let endpoints = &self.endpoints;
            down = direct.down(&self.rule, now, |at| endpoints[at].excluded.is_some());
        }
        self.follow_control();
        for at in 0..self.endpoints.len() {
            self.readmit(at, &has_dependency_failing);
        }
        let endpoints = &self.endpoints;
        let pods = match &mut self.new_pods {
            Some(NewPodCounts { direct, .. }) => {
                direct.count(&self.rule, now, looks, reading, |at| {
                    endpoints[at].excluded_now
                })
            }
            None => ClassCounts::default(),
        };
        let t = f64::from(now) * self.rule.interval_s;
        let has_new_pods = self.new_pods.as_ref();
        let new_pods_due = has_new_pods.is_some_and(|one| one.stratum.is_due(t));
        // Only a block that opens asks the control, so it is added up only then.
        let is_needed = new_pods_due || self.pool.is_due(t);
        let pool_control = is_needed.then(|| self.control(StratumKind::Pool)).flatten();
        self.count_pods(now, pool_control, &pods);
        let pool = self.count_endpoints(now, progress, pool_control);
        (down, TickCounts { pool, pods })
    }

    /// Without a healthy control group a failure is unknown; if that lasts, the endpoint is excluded.
    fn follow_control(&mut self) {
        let Some(NewPodCounts { direct, .. }) = &self.new_pods else {
            return;
        };
        for (endpoint, pods) in self.endpoints.iter_mut().zip(&direct.endpoints) {
            if !pods.answers.control_lost() {
                continue;
            }
            if endpoint.outcome == TickOutcome::Failure {
                endpoint.outcome = TickOutcome::Unknown;
            }
            // Once for each run of such ticks: an endpoint that is mended is not excluded for ever.
            if pods.lost_run == self.rule.recover_ticks {
                endpoint.exclude(Exclusion::ControlLost);
            }
        }
    }

    fn readmit(&mut self, at: usize, has_dependency_failing: &impl Fn(usize) -> bool) {
        let endpoint = &mut self.endpoints[at];
        endpoint.excluded_now = endpoint.excluded.is_some();
        let Some(excluded) = endpoint.excluded else {
            return;
        };
        match endpoint.outcome {
            TickOutcome::Success => endpoint.recovering += 1,
            TickOutcome::Failure => endpoint.recovering = 0,
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => {}
        }
        let by_cause = match excluded {
            Exclusion::FailedAtStart => false,
            Exclusion::ControlLost => self.new_pods.as_ref().is_some_and(|new_pods| {
                new_pods.direct.endpoints[at].well_run >= self.rule.recover_ticks
            }),
            Exclusion::Dependency => !has_dependency_failing(at),
        };
        if by_cause || endpoint.recovering >= self.rule.recover_ticks {
            endpoint.excluded = None;
            endpoint.recovering = 0;
        }
        if endpoint.outcome != TickOutcome::NotDue {
            endpoint.outcome = TickOutcome::Unknown;
        }
    }

    /// Counts of old pods for a stratum.
    pub(super) fn control(&self, kind: StratumKind) -> Option<ControlCounts> {
        match kind {
            StratumKind::Endpoint(at) => self.endpoints[at].stratum.control(&self.rule),
            StratumKind::Pool | StratumKind::NewPods => self.pool.control(&self.rule),
            StratumKind::Requests => None,
        }
    }

    fn count_pods(&mut self, now: u32, control: Option<ControlCounts>, counts: &ClassCounts) {
        let Some(new_pods) = &mut self.new_pods else {
            return;
        };
        let rule = &self.rule;
        let has_counts = counts.iter().any(|(_, n)| *n > 0);
        let learned = new_pods.learned;
        let before = new_pods.stratum.before;
        let is_latency = self.subject == ComparisonSubject::Latency;
        if has_counts || new_pods.stratum.quick.has_begun() {
            let is_sure = is_latency
                || counts.iter().enumerate().any(|(class, (_, n))| {
                    *n > 0 && learned.get(class).is_none_or(|(_, n)| *n >= rule.warm_n)
                });
            let t = f64::from(now) * rule.interval_s;
            new_pods.stratum.advance(
                rule,
                t,
                control,
                |_| is_sure,
                |class, _| match learned.get(class) {
                    Some(learned) if !is_latency => {
                        let default = default_of_age(rule, &before, class);
                        limit(rule, &before, *learned, default)
                    }
                    Some(_) | None => before.complete(rule),
                },
            );
        }
        new_pods.stratum.add_classes(now, counts);
    }

    /// Adds this tick's outcomes to the strata, and old pods' results to what is tolerated next.
    fn count_endpoints(
        &mut self,
        now: u32,
        progress: RolloutProgress,
        pool_control: Option<ControlCounts>,
    ) -> (u16, u16) {
        let rule = &self.rule;
        let subject = self.subject;
        let t = f64::from(now) * rule.interval_s;
        let advance = |stratum: &mut Stratum, control, learned: &[AgeCounts; PHASES]| {
            let before = stratum.before;
            let tolerated = |begin| {
                let phase = progress.phase(rule, begin);
                match subject {
                    ComparisonSubject::Failures => {
                        progress.tolerated(rule, &before, learned, phase)
                    }
                    ComparisonSubject::Latency => (before.complete(rule), phase == PHASES),
                }
            };
            let is_sure = |begin| tolerated(begin).1;
            let rate = |_, begin| tolerated(begin).0;
            stratum.advance(rule, t, control, is_sure, rate);
        };
        let (mut failed, mut total) = (0u16, 0u16);
        let (mut old_failed, mut old_total) = (0u16, 0u16);
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let is_due = endpoint.stratum.is_due(t);
            let control = is_due.then(|| endpoint.stratum.control(rule)).flatten();
            advance(&mut endpoint.stratum, control, &endpoint.learned);
            let (k, n) = endpoint.outcome.counts();
            endpoint.stratum.add(now, k, n);
            if !endpoint.failed_at_start {
                failed += k;
                total += n;
            }
            if let (Some(old), Some(new_pods)) = (&mut endpoint.stratum.old_pods, &self.new_pods) {
                let answers = new_pods.direct.endpoints[at].answers;
                let (k, n) = if endpoint.excluded_now {
                    (0, 0)
                } else {
                    (answers.old_failures, answers.old())
                };
                old.push(k, n);
                if !endpoint.failed_at_start {
                    old_failed += k;
                    old_total += n;
                }
            }
        }
        advance(&mut self.pool, pool_control, &self.learned_pool);
        self.pool.add(now, failed, total);
        if let Some(old) = &mut self.pool.old_pods {
            old.push(old_failed, old_total);
        }
        (failed, total)
    }

    /// Path C: evaluates the evidence after this tick.
    pub(super) fn evaluate(&mut self, now: u32) -> Option<RisingStratum> {
        // Nobody reads the evidence for slow answers before it rejects.
        let is_read = self.subject == ComparisonSubject::Failures;
        if !is_read && !self.can_reach(self.rule.alpha, |stratum| Some(&stratum.quick)) {
            return None;
        }
        let (ln_e, largest) = self.sum();
        self.ln_e = ln_e;
        if self.strongest.is_none_or(|(most, _, _)| ln_e > most) {
            self.strongest = Some((ln_e, largest, now));
        }
        let quick = self.rise(now, ln_e, self.rule.alpha, false);
        quick.or_else(|| {
            let ln_e = self.slow_sum()?;
            self.rise(now, ln_e, self.rule.alpha_slow, true)
        })
    }

    /// The sum of the strata's e-values, and the place of the largest term.
    fn sum(&self) -> (f64, u16) {
        let mut sum = LN_ZERO;
        let mut largest = (LN_ZERO, 0u16);
        for at in 0..self.strata() {
            let weighted = self.weighted(self.kind(at), self.own_ln_e(self.kind(at), false));
            sum = ln_sum(&[sum, weighted]);
            if weighted > largest.0 {
                largest = (weighted, at as u16);
            }
        }
        (sum, largest.1)
    }

    /// Whether the sum can reach its threshold at all: the weights sum up to 1, so it is at most the largest of the
    /// strata, which has a cheap bound. Not for requests.
    fn can_reach<'a>(
        &'a self,
        alpha: f64,
        evidence: impl Fn(&'a Stratum) -> Option<&'a Mixture>,
    ) -> bool {
        let needed = -alpha.ln();
        (0..self.strata())
            .filter_map(|at| evidence(self.stratum(self.kind(at))))
            .any(|evidence| evidence.can_reach(&self.rule, &self.misses, needed))
    }

    /// The sum of the long blocks, if it can reach its threshold.
    fn slow_sum(&self) -> Option<f64> {
        self.pool.slow.as_ref()?;
        if !self.can_reach(self.rule.alpha_slow, |stratum| stratum.slow.as_deref()) {
            return None;
        }
        let mut sum = LN_ZERO;
        for at in 0..self.strata() {
            let kind = self.kind(at);
            sum = ln_sum(&[sum, self.weighted(kind, self.own_ln_e(kind, true))]);
        }
        Some(sum)
    }

    /// The stratum that rejects, if the sum has reached the threshold.
    fn rise(&self, now: u32, ln_e: f64, alpha: f64, slow: bool) -> Option<RisingStratum> {
        let needed = -alpha.ln();
        if ln_e < needed {
            return None;
        }
        let mut best: Option<(f64, StratumKind)> = None;
        for at in 0..self.strata() {
            let kind = self.kind(at);
            let own = self.own_ln_e(kind, slow);
            if own < needed + 0.1f64.ln() || !self.passes(kind, now) {
                continue;
            }
            let weighted = self.weighted(kind, own);
            if best.is_none_or(|(most, _)| weighted > most) {
                best = Some((weighted, kind));
            }
        }
        best.map(|(_, kind)| RisingStratum {
            kind,
            ln_e,
            threshold: 1.0 / alpha,
            slow_blocks: slow,
        })
    }

    /// Tests 2 and 3 of path C.
    fn passes(&self, kind: StratumKind, now: u32) -> bool {
        if let (StratumKind::Requests, Some(requests)) = (kind, &self.requests) {
            let t = f64::from(now) * self.rule.interval_s;
            return requests.passes(&self.rule, t);
        }
        let stratum = self.stratum(kind);
        stratum.is_alive(&self.rule, now)
            && stratum.rose(stratum.recent.whole(), self.control(kind))
    }

    fn own_ln_e(&self, kind: StratumKind, slow: bool) -> f64 {
        if let (StratumKind::Requests, Some(requests)) = (kind, &self.requests) {
            return if slow {
                0.0
            } else {
                requests.evidence.ln_e(&self.rule, &self.misses)
            };
        }
        let stratum = self.stratum(kind);
        match &stratum.slow {
            Some(long) if slow => long.ln_e(&self.rule, &self.misses),
            Some(_) | None => stratum.quick.ln_e(&self.rule, &self.misses),
        }
    }

    fn weighted(&self, kind: StratumKind, ln_e: f64) -> f64 {
        match (kind, &self.requests) {
            (StratumKind::Requests, Some(requests)) => requests.ln_weight + ln_e,
            _ => self.stratum(kind).weighted(ln_e),
        }
    }

    /// How many strata there are; in order: the pool, the endpoints, requests, new pods.
    pub(super) fn strata(&self) -> usize {
        let more = usize::from(self.requests.is_some()) + usize::from(self.new_pods.is_some());
        1 + self.endpoints.len() + more
    }

    pub(super) fn kind(&self, at: usize) -> StratumKind {
        match at.checked_sub(1) {
            None => StratumKind::Pool,
            Some(endpoint) if endpoint < self.endpoints.len() => StratumKind::Endpoint(endpoint),
            Some(next) if next == self.endpoints.len() && self.requests.is_some() => {
                StratumKind::Requests
            }
            Some(_) => StratumKind::NewPods,
        }
    }

    /// A stratum; requests are kept elsewhere and give the pool.
    pub(super) fn stratum(&self, kind: StratumKind) -> &Stratum {
        match (kind, &self.new_pods) {
            (StratumKind::Endpoint(at), _) => &self.endpoints[at].stratum,
            (StratumKind::NewPods, Some(new_pods)) => &new_pods.stratum,
            (StratumKind::Pool | StratumKind::Requests | StratumKind::NewPods, _) => &self.pool,
        }
    }

    /// Failures and results in the span of the estimate.
    pub(super) fn recent(&self, kind: StratumKind) -> (u64, u64) {
        match (kind, &self.requests) {
            (StratumKind::Requests, Some(requests)) => requests.recent.whole(),
            (
                StratumKind::Pool
                | StratumKind::Endpoint(_)
                | StratumKind::NewPods
                | StratumKind::Requests,
                _,
            ) => self.stratum(kind).recent.whole(),
        }
    }

    /// Seconds that the estimate looks back.
    pub(super) fn span_s(&self, kind: StratumKind) -> f64 {
        let rule = &self.rule;
        match (kind, &self.requests) {
            (StratumKind::Requests, Some(requests)) => rule.window_s.max(requests.interval_s),
            (
                StratumKind::Pool
                | StratumKind::Endpoint(_)
                | StratumKind::NewPods
                | StratumKind::Requests,
                _,
            ) => {
                let probes = f64::from(rule.window_probes) / self.endpoints.len() as f64;
                rule.window_s.max(probes.ceil() * rule.interval_s)
            }
        }
    }

    /// Results of pods by endpoint, if pods are probed directly.
    pub(super) fn direct(&self) -> Option<&DirectResults> {
        self.new_pods.as_ref().map(|new_pods| &new_pods.direct)
    }

    pub(super) fn is_sound(&self, ticks: u32) -> bool {
        let direct = self.new_pods.is_some();
        let endpoints = self.endpoints.len();
        self.rule.check().is_ok()
            && self.ln_e.is_finite()
            && self.misses.is_sound()
            && self.pool.is_sound(1, direct)
            && self
                .endpoints
                .iter()
                .all(|endpoint| endpoint.stratum.is_sound(1, direct))
            && self
                .requests
                .as_ref()
                .is_none_or(|requests| requests.is_sound())
            && self.new_pods.as_ref().is_none_or(|new_pods| {
                new_pods.stratum.is_sound(AGES + 1, false)
                    && new_pods.direct.is_sound(endpoints, ticks)
            })
            && self
                .strongest
                .is_none_or(|(_, at, _)| usize::from(at) < self.strata())
    }

    pub(super) fn bytes(&self) -> usize {
        let endpoints = self
            .endpoints
            .iter()
            .map(|endpoint| size_of::<ComparedEndpoint>() + endpoint.stratum.bytes());
        endpoints.sum::<usize>()
            + self.pool.bytes()
            + self
                .requests
                .as_ref()
                .map_or(0, |requests| size_of::<RequestStratum>() + requests.bytes())
            + self.new_pods.as_ref().map_or(0, |new_pods| {
                new_pods.stratum.bytes() + new_pods.direct.bytes()
            })
    }
}

impl ComparedEndpoint {
    /// Whether it failed at the start and has counted again since.
    pub(super) fn was_readmitted(&self) -> bool {
        self.failed_at_start && self.excluded != Some(Exclusion::FailedAtStart)
    }

    /// Excludes it, unless it is already excluded.
    pub(super) fn exclude(&mut self, why: Exclusion) {
        if self.excluded.is_none() {
            self.excluded = Some(why);
            self.recovering = 0;
        }
    }
}

/// The share of the evidence of each stratum; they sum up to 1.
struct StrataWeights {
    pool: f64,
    endpoint: f64,
    requests: f64,
    new_pods: f64,
}

impl StrataWeights {
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
