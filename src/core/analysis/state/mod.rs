//! The analysis of one revision: its state, and what a tick does.

mod outcome;
mod paths;
mod report;
mod start;
mod teaching;

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::comparison::{Comparison, ComparisonInput, ComparisonSubject, Exclusion, TickCounts};
use super::dependencies::Dependency;
use super::latency::LatencyComparison;
use super::pod_results::PodTick;
use super::regression::{Regression, SlowerAnswers};
use super::requests::RequestStratum;
use super::rule::{AGES, InvalidRule, Rule, whole};
use super::warm_up::{AgeCounts, PHASES, RolloutCompletion, RolloutProgress};
use super::workloads::AnalyzedWorkloads;
use super::{AnalysisStart, Tick, TickOutcome};

pub use outcome::UnknownCause;
pub use teaching::{RolloutLessons, WorkloadLessons};

/// What makes an endpoint's results unknown in this tick, apart from the results themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum UnknownBecause {
    #[default]
    None,
    /// Its workload is scaled to zero or paused.
    Held,
    /// Its workload is expected to be away.
    Downtime,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct AnalyzedEndpoint {
    name: Box<str>,
    /// Indices of its dependencies.
    needs: Vec<u16>,
    /// Failures in a row.
    run: u32,
    /// `N_e`, after completion and before; and both once the release is probed at its own interval.
    hold: [u32; 2],
    hold_limited: [u32; 2],
    excuse: UnknownBecause,
    needs_failing: bool,
    /// Why this tick's result is unknown, if it is.
    cause: Option<UnknownCause>,
    /// Results by phase of the rollout, to learn from.
    by_phase: [AgeCounts; PHASES],
}

/// The state of an analysis; see the module for its invariants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub struct Analysis {
    rule: Arc<Rule>,
    #[serde(alias = "settled_at")]
    complete_at: Option<f64>,
    /// For recordings of version 1: whether the rollout is complete, or has been; `None` if the cluster did not show
    /// it.
    rolled_out: Option<bool>,
    /// Without workloads: the strategy stops the old pods before it starts new ones.
    expected_downtime: bool,
    downtime_ticks: u32,
    next_tick: u32,
    is_over: bool,
    extended_until: Option<f64>,
    endpoints: Box<[AnalyzedEndpoint]>,
    failures: Comparison,
    /// Notices slower answers.
    slower: Option<Box<LatencyComparison>>,
    /// Rejects for slow answers, if configured.
    latency: Option<Box<LatencyComparison>>,
    workloads: AnalyzedWorkloads,
    dependencies: Vec<Dependency>,
    /// Whether a rate limit answered, so that all endpoints are probed at their own interval.
    limited: bool,
    /// Consecutive ticks in which everything failed.
    all_run: u32,
    hold_all: u32,
    scheduled: u64,
    usable: u64,
    /// Usable results that could have met a new pod.
    met: u64,
    /// Unknown results by cause.
    #[serde(alias = "void")]
    unknown: [u64; UnknownCause::COUNT],
    learned_from: u32,
    pool_by_phase: [AgeCounts; PHASES],
    pods_by_age: [AgeCounts; AGES],
    slower_notice: Option<Box<SlowerAnswers>>,
    #[serde(alias = "finding")]
    regression: Option<Box<Regression>>,
}

impl Serialize for Analysis {
    fn serialize<S: Serializer>(&self, writer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, writer)
    }
}

impl<'de> Deserialize<'de> for Analysis {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let mut analysis = Self::deserialize(reader)?;
        // Each part is stored with its rule; those that have the same one share it again.
        if analysis.failures.rule == analysis.rule {
            analysis.failures.rule = Arc::clone(&analysis.rule);
        }
        Ok(analysis)
    }
}

impl Analysis {
    /// Starts the analysis of a revision.
    ///
    /// # Errors
    ///
    /// When the rule or the start is invalid; the error names the field.
    pub fn new(rule: Rule, start: &AnalysisStart) -> Result<Self, InvalidRule> {
        rule.check()?;
        let rule = Arc::new(rule);
        start::check(start)?;
        let requests = start.requests.as_ref();
        let failures = Comparison::new(
            Arc::clone(&rule),
            ComparisonInput {
                subject: ComparisonSubject::Failures,
                baseline: &start.baseline,
                failing_at_start: &start.failing_at_start,
                learned: &start.learned,
                direct: start.direct,
                requests: requests.map(|before| RequestStratum::new(&rule, before)),
            },
        );
        let endpoints = (0..start.endpoints.len())
            .map(|at| AnalyzedEndpoint {
                name: start.endpoints[at].clone(),
                needs: start.needs.get(at).cloned().unwrap_or_default(),
                run: 0,
                hold: holds(&rule, &failures, at, rule.interval_s),
                hold_limited: {
                    let interval_overrides =
                        start.steady_s.get(at).copied().unwrap_or(rule.interval_s);
                    holds(&rule, &failures, at, interval_overrides)
                },
                excuse: UnknownBecause::None,
                needs_failing: false,
                cause: None,
                by_phase: [(0, 0); PHASES],
            })
            .collect();
        let latency = |factor| LatencyComparison::new(&rule, start, factor).map(Box::new);
        Ok(Self {
            complete_at: start.complete_at,
            rolled_out: None,
            expected_downtime: start.expected_downtime,
            downtime_ticks: 0,
            next_tick: 0,
            is_over: false,
            extended_until: None,
            endpoints,
            failures,
            slower: latency(rule.slower_factor),
            latency: rule
                .latency_rejects
                .then(|| latency(rule.latency_factor))
                .flatten(),
            workloads: AnalyzedWorkloads::new(start.workloads.as_deref()),
            dependencies: start
                .dependencies
                .iter()
                .map(|name| Dependency::new(name))
                .collect(),
            limited: false,
            all_run: 0,
            hold_all: rule.hold(rule.hold_s),
            scheduled: 0,
            usable: 0,
            met: 0,
            unknown: [0; UnknownCause::COUNT],
            learned_from: start.learned.rollouts,
            pool_by_phase: [(0, 0); PHASES],
            pods_by_age: [(0, 0); AGES],
            slower_notice: None,
            regression: None,
            rule,
        })
    }

    /// The rollout is complete, this many seconds after the revision appeared. The first report counts. Only if the
    /// workloads are unknown.
    pub fn complete(&mut self, at_s: f64) {
        if self.complete_at.is_none() && at_s.is_finite() {
            self.complete_at = Some(at_s.max(0.0));
        }
    }

    /// Of recordings of version 1: whether the rollout is complete at the moment.
    pub const fn rolled_out(&mut self, is_complete: bool) {
        self.rolled_out = Some(is_complete);
    }

    /// One tick. `Some` in the tick of a rejection; after that, and after the end, ticks are ignored.
    pub fn tick(&mut self, tick: &Tick<'_>) -> Option<&Regression> {
        if self.regression.is_some() || self.is_over {
            return None;
        }
        let now = self.next_tick;
        let t = f64::from(now) * self.rule.interval_s;
        self.next_tick += 1;
        self.workloads.take(tick.rollout);
        self.workloads.take_pods(t, tick.pods);
        self.regression = self
            .crash_loop(now, t, tick.pods)
            .or_else(|| self.cannot_start(now, t))
            .or_else(|| self.not_ready(now, t))
            .map(Box::new);
        if self.regression.is_some() {
            return self.regression.as_deref();
        }

        let progress = self.progress();
        self.find_excuses(t, progress);
        self.read_outcomes(tick);
        self.follow_dependencies(tick.dependencies);
        let (down, counts) = self.take_results(now, progress, tick.direct);
        self.count_runs();
        self.count_met(t);
        self.learn(t, progress, &counts);
        let downtime = self.workloads.last_downtime;
        if let Some(requests) = &mut self.failures.requests {
            requests.take(&self.rule, t, progress, downtime, tick.scrapes);
        }
        self.take_latencies(now, t, progress, tick);

        self.regression = self
            .hard_down(now, t, progress.phase(&self.rule, t) == 0)
            .or_else(|| down.map(|down| self.pods_down(now, t, down)))
            .or_else(|| self.error_rate(now, t))
            .or_else(|| self.slow_answers(now, t))
            .map(Box::new);
        self.is_over = self.ends();
        self.regression.as_deref()
    }

    /// Progress of the rollout.
    pub(super) fn progress(&self) -> RolloutProgress {
        let given = || match self.complete_at {
            Some(at) => RolloutCompletion::At(at),
            None => RolloutCompletion::Unseen,
        };
        RolloutProgress {
            completion: self.workloads.completion().unwrap_or_else(given),
            serves_new: self.workloads.serves_new(),
        }
    }

    /// Which endpoints probe a workload that is paused, or away as expected.
    fn find_excuses(&mut self, t: f64, progress: RolloutProgress) {
        let endpoints = &mut self.endpoints;
        for endpoint in endpoints.iter_mut() {
            endpoint.excuse = UnknownBecause::None;
        }
        let held = std::cell::RefCell::new(endpoints);
        let outcome = |probes: Option<&[u16]>, excuse: UnknownBecause| {
            let mut endpoints = held.borrow_mut();
            match probes {
                None => endpoints.iter_mut().for_each(|one| one.excuse = excuse),
                Some(probes) => {
                    for place in probes {
                        if let Some(one) = endpoints.get_mut(usize::from(*place)) {
                            one.excuse = excuse;
                        }
                    }
                }
            }
        };
        self.workloads.excused(
            &self.rule,
            t,
            |probes| outcome(probes, UnknownBecause::Downtime),
            |probes| outcome(probes, UnknownBecause::Held),
        );
        let dt = self.rule.interval_s;
        let ends = match progress.completion {
            RolloutCompletion::At(at) => at,
            RolloutCompletion::Running | RolloutCompletion::Unseen => self.rule.settle_unknown_s,
        };
        let is_expected = self.expected_downtime
            && self.workloads.states.is_none()
            && t < ends - 1e-9
            && f64::from(self.downtime_ticks + 1) * dt <= self.rule.downtime_s + 1e-9;
        if is_expected {
            self.downtime_ticks += 1;
            self.workloads.last_downtime = Some(t);
            outcome(None, UnknownBecause::Downtime);
        }
    }

    /// Reads this tick's outcomes, as far as they are evidence.
    fn read_outcomes(&mut self, tick: &Tick<'_>) {
        let mut unresolved = false;
        let mut others = false;
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let raw = tick.outcomes.get(at).copied().unwrap_or_default();
            self.limited |= raw == TickOutcome::Limited;
            endpoint.cause = None;
            let outcome = match (endpoint.excuse, raw) {
                (_, TickOutcome::NotDue) => TickOutcome::NotDue,
                (UnknownBecause::Downtime, _) => {
                    endpoint.cause = Some(UnknownCause::ExpectedDowntime);
                    TickOutcome::Unknown
                }
                (UnknownBecause::Held, _) => {
                    endpoint.cause = Some(UnknownCause::Held);
                    TickOutcome::Unknown
                }
                (UnknownBecause::None, TickOutcome::Limited) => {
                    endpoint.cause = Some(UnknownCause::Limited);
                    TickOutcome::Unknown
                }
                (UnknownBecause::None, TickOutcome::Unknown) => {
                    endpoint.cause = Some(UnknownCause::Unknown);
                    TickOutcome::Unknown
                }
                (
                    UnknownBecause::None,
                    TickOutcome::Success | TickOutcome::Failure | TickOutcome::Unresolved,
                ) => raw,
            };
            unresolved |= outcome == TickOutcome::Unresolved;
            others |= matches!(outcome, TickOutcome::Success | TickOutcome::Failure);
            let is_scheduled =
                endpoint.excuse != UnknownBecause::Downtime && outcome != TickOutcome::NotDue;
            self.scheduled += u64::from(is_scheduled);
            self.failures.endpoints[at].outcome = outcome;
        }
        if unresolved {
            self.resolve(tick.direct, others);
        }
    }

    /// A name that was not resolved is unknown if no other endpoint has an answer, or if a pod answers well.
    fn resolve(&mut self, looks: &[PodTick<'_>], others: bool) {
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let outcome = &mut self.failures.endpoints[at].outcome;
            if *outcome != TickOutcome::Unresolved {
                continue;
            }
            let (mut good, mut new_failures) = (false, false);
            for look in looks {
                let answer = look.outcomes.get(at);
                good |= answer == Some(&TickOutcome::Success);
                new_failures |=
                    answer == Some(&TickOutcome::Failure) && look.side == super::PodSide::New;
            }
            if !others || good && !new_failures {
                *outcome = TickOutcome::Unknown;
                endpoint.cause = Some(UnknownCause::Unresolved);
            } else {
                *outcome = TickOutcome::Failure;
            }
        }
    }

    /// Failures of an endpoint are unknown while a dependency of it fails.
    fn follow_dependencies(&mut self, outcomes: &[TickOutcome]) {
        if self.dependencies.is_empty() {
            return;
        }
        for (at, dependency) in self.dependencies.iter_mut().enumerate() {
            dependency.take(&self.rule, outcomes.get(at).copied().unwrap_or_default());
        }
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let mut needs = endpoint.needs.iter();
            let dependencies = &self.dependencies;
            endpoint.needs_failing = needs.any(|need| {
                let need = dependencies.get(usize::from(*need));
                need.is_some_and(Dependency::is_failing)
            });
            let compared = &mut self.failures.endpoints[at];
            if endpoint.needs_failing && compared.outcome == TickOutcome::Failure {
                compared.outcome = TickOutcome::Unknown;
                endpoint.cause = Some(UnknownCause::Dependency);
                compared.exclude(Exclusion::Dependency);
            }
        }
    }

    /// Feeds the comparison of failures.
    fn take_results(
        &mut self,
        now: u32,
        progress: RolloutProgress,
        looks: &[PodTick<'_>],
    ) -> (Option<super::pod_results::EndpointDown>, TickCounts) {
        let before: bool = self.failures.direct().is_some();
        let endpoints = &self.endpoints;
        let read = |look: &PodTick<'_>, at: usize| pod_outcome(&endpoints[at], look, at);
        let taken = self.failures.take(now, progress, looks, &read, |at| {
            endpoints[at].needs_failing
        });
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let compared = &self.failures.endpoints[at];
            if compared.outcome == TickOutcome::Unknown && endpoint.cause.is_none() {
                endpoint.cause = Some(match compared.excluded_now {
                    true if compared.failed_at_start && !compared.was_readmitted() => {
                        UnknownCause::FailingAtStart
                    }
                    true if endpoint.needs_failing => UnknownCause::Dependency,
                    _ if before => UnknownCause::Control,
                    _ => UnknownCause::Dependency,
                });
            }
            let (_, n) = compared.outcome.counts();
            self.usable += u64::from(n);
            if let Some(cause) = endpoint.cause {
                self.unknown[cause as usize] += 1;
            }
        }
        taken
    }

    /// Failures in a row, of each endpoint and of all of them.
    fn count_runs(&mut self) {
        let (mut all_failed, mut some_unknown, mut counted) = (true, false, 0u32);
        let mut is_wholly_unknown = true;
        for (endpoint, compared) in self.endpoints.iter_mut().zip(&self.failures.endpoints) {
            match compared.outcome {
                TickOutcome::Success => endpoint.run = 0,
                TickOutcome::Failure => endpoint.run += 1,
                TickOutcome::Unknown
                | TickOutcome::NotDue
                | TickOutcome::Limited
                | TickOutcome::Unresolved => {}
            }
            is_wholly_unknown &= !compared.outcome.is_result();
            if !compared.excluded_now && compared.outcome != TickOutcome::NotDue {
                counted += 1;
                some_unknown |= compared.outcome == TickOutcome::Unknown;
                all_failed &= compared.outcome == TickOutcome::Failure;
            }
        }
        if is_wholly_unknown {
            // Neither lengthens nor ends the run.
        } else if counted >= 2 && all_failed && !some_unknown {
            self.all_run += 1;
        } else {
            self.all_run = 0;
        }
    }

    /// Usable results that could have met a new pod: of endpoints whose workload has a Ready one.
    fn count_met(&mut self, t: f64) {
        let serves = |state: &super::workloads::WorkloadProgress| {
            state.ready_at.is_some_and(|at| at <= t + 1e-9)
        };
        let is_asked = |state: &super::workloads::WorkloadProgress| {
            let probes = state.is.probes.as_ref();
            probes.is_none_or(|probes| !probes.is_empty())
        };
        let any_asked = self.workloads.rolled().any(is_asked);
        for (at, compared) in self.failures.endpoints.iter().enumerate() {
            if !compared.outcome.is_result() {
                continue;
            }
            let place = u16::try_from(at).unwrap_or(u16::MAX);
            let has_met = self.workloads.rolled().any(|state| {
                let probes = state.is.probes.as_ref();
                let asks = probes.is_none_or(|probes| probes.contains(&place));
                serves(state) && (asks || !any_asked)
            });
            self.met += u64::from(has_met);
        }
    }

    /// Adds up what later rollouts learn from this one if it passes.
    fn learn(&mut self, t: f64, progress: RolloutProgress, counts: &TickCounts) {
        let add = |sum: &mut AgeCounts, (k, n): (u16, u16)| {
            sum.0 += u64::from(k);
            sum.1 += u64::from(n);
        };
        for (sum, count) in self.pods_by_age.iter_mut().zip(&counts.pods) {
            add(sum, *count);
        }
        let phase = progress.phase(&self.rule, t);
        if phase >= PHASES {
            return;
        }
        add(&mut self.pool_by_phase[phase], counts.pool);
        for (endpoint, compared) in self.endpoints.iter_mut().zip(&self.failures.endpoints) {
            add(&mut endpoint.by_phase[phase], compared.outcome.counts());
        }
    }

    /// Feeds the comparisons of latency.
    fn take_latencies(&mut self, now: u32, t: f64, progress: RolloutProgress, tick: &Tick<'_>) {
        let is_counted = progress.phase(&self.rule, t) == PHASES;
        let endpoints = &self.endpoints;
        let failures = &self.failures.endpoints;
        let pod = |look: &PodTick<'_>, at: usize| {
            if failures[at].excluded_now {
                TickOutcome::Unknown
            } else {
                pod_outcome(&endpoints[at], look, at)
            }
        };
        for latency in self.slower.iter_mut().chain(&mut self.latency) {
            let service = |at: usize| {
                let is_good = is_counted && failures[at].outcome == TickOutcome::Success;
                is_good
                    .then(|| tick.latency_us.get(at).copied().flatten())
                    .flatten()
            };
            latency.take(now, progress, service, tick.direct, &pod);
        }
    }

    /// Whether the analysis ends after this tick. One that would end under suspicion continues once.
    fn ends(&mut self) -> bool {
        let passed = self.elapsed_s() + 1e-9;
        let end = self.ends_at_s();
        if passed < end {
            return false;
        }
        if self.extended_until.is_some() {
            return true;
        }
        let is_suspicious = self.failures.ln_e > 1e-6f64.ln_1p()
            || self
                .endpoints
                .iter()
                .zip(&self.failures.endpoints)
                .any(|(one, compared)| {
                    compared.excluded.is_none() && one.run >= self.rule.extend_run
                });
        if !is_suspicious {
            return true;
        }
        let until = (end + self.rule.extend_s).min(self.rule.longest_s());
        self.extended_until = Some(until);
        passed >= until
    }
}

/// `N_e` of an endpoint with a result every `pace_s`, after completion and before.
fn holds(rule: &Rule, failures: &Comparison, at: usize, pace_s: f64) -> [u32; 2] {
    let looks = failures.endpoints.len() as f64 * rule.analysis_s / rule.interval_s;
    let surprise = (rule.alpha_hard / looks).ln();
    let needed = |rate: f64| (surprise / rate.ln() - 1e-9).ceil() as u32;
    let before = failures.endpoints[at].stratum.before;
    let least = (whole(rule.hold_s / pace_s) + 1).max(3);
    let complete = least.max(needed(before.bound.clamp(0.001, 0.95)));
    [complete, complete.max(needed(before.unsettled(rule)))]
}

/// The outcome that a pod's result counts as.
fn pod_outcome(endpoint: &AnalyzedEndpoint, look: &PodTick<'_>, at: usize) -> TickOutcome {
    let outcome = look.outcomes.get(at).copied().unwrap_or_default();
    match outcome {
        _ if endpoint.excuse != UnknownBecause::None => TickOutcome::Unknown,
        TickOutcome::Failure if endpoint.needs_failing => TickOutcome::Unknown,
        TickOutcome::Success | TickOutcome::Failure => outcome,
        TickOutcome::Unknown
        | TickOutcome::NotDue
        | TickOutcome::Limited
        | TickOutcome::Unresolved => TickOutcome::Unknown,
    }
}
