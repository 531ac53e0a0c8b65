//! The verification after a rollback: do the endpoints that rejected the revision recover?
//!
//! The bounds are those of the analysis: measurements before the bad revision, with its margins. The last [`CALM_S`]
//! seconds must be within them, for all endpoints together and for each; an endpoint that was excluded at the verdict
//! is excluded here as well. When the time is up, failures are compared with those under the bad revision.

use serde::{Deserialize, Serialize};

use super::counts::RecentCounts;
use super::regression::share;
use super::rule::Rule;
use super::stratum::BeforeCounts;
use super::{Analysis, TickOutcome};

/// How long the release must be healthy, in seconds.
const CALM_S: f64 = 15.0;

/// After this many seconds without recovery, failures are compared with those before: the runbook's limit of a minute.
const LIMIT_S: f64 = 60.0;

/// Increase of an endpoint's failing share that counts as worse.
const WORSE: f64 = 0.25;

/// Result of the verification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerificationOutcome {
    /// The release is as healthy as before the bad revision.
    Recovered,
    /// The same fails as under the bad revision.
    #[serde(alias = "SameFailure")]
    StillFailing(String),
    /// More fails than under the bad revision.
    #[serde(alias = "Worse")]
    Worsened(String),
    /// Too few results were usable.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct VerifiedEndpoint {
    name: Box<str>,
    counts: bool,
    before: BeforeCounts,
    /// Share of failures under the bad revision.
    #[serde(alias = "under_bad")]
    failure_rate: f64,
    recent: RecentCounts,
}

/// The state of a verification: one tick after another, from the moment when the rollback's rollout is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    rule: Rule,
    pool: BeforeCounts,
    endpoints: Vec<VerifiedEndpoint>,
    ticks: u32,
}

impl Verification {
    /// Takes over bounds, failures and interval from the analysis that rejected the revision.
    pub fn new(analysis: &Analysis) -> Self {
        Self::at_pace(analysis, analysis.rule().interval_s)
    }

    /// The same with ticks of this length, for example while a rate limit prevents the interval of the analysis.
    pub fn at_pace(analysis: &Analysis, interval_s: f64) -> Self {
        let failure_rate = analysis.rule().ticks_up(CALM_S).max(3);
        let rule = Rule {
            interval_s,
            ..analysis.rule().clone()
        };
        let calm = rule.ticks_up(CALM_S).max(3);
        let endpoints = analysis
            .standing(failure_rate)
            .map(|standing| VerifiedEndpoint {
                name: standing.name.into(),
                counts: standing.counts,
                before: standing.before,
                failure_rate: rate(standing.recent),
                recent: RecentCounts::new(calm, 1),
            })
            .collect();
        Self {
            pool: analysis.pooled(),
            rule,
            endpoints,
            ticks: 0,
        }
    }

    /// After a bake: uses the shares of failures that the bake saw under the bad revision, one for each endpoint.
    #[must_use]
    pub fn with_failures(mut self, shards: &[f64]) -> Self {
        for (endpoint, share) in self.endpoints.iter_mut().zip(shards) {
            endpoint.failure_rate = share.clamp(0.0, 1.0);
        }
        self
    }

    /// One tick; `Some` when it is decided.
    pub fn tick(&mut self, outcomes: &[TickOutcome]) -> Option<VerificationOutcome> {
        self.ticks += 1;
        for (at, endpoint) in self.endpoints.iter_mut().enumerate() {
            let outcome = outcomes.get(at).copied().unwrap_or_default();
            let (k, n) = outcome.counts();
            endpoint.recent.push(k, n);
        }
        let calm = self.rule.ticks_up(CALM_S).max(3);
        if self.ticks < calm {
            return None;
        }
        let is_known = self.is_known(calm);
        if is_known && self.is_well() {
            return Some(VerificationOutcome::Recovered);
        }
        if self.ticks < self.rule.ticks_up(LIMIT_S).max(calm) {
            return None;
        }
        if !is_known {
            return Some(VerificationOutcome::Unknown);
        }
        let text = self.failing();
        let is_worse = self
            .counting()
            .any(|endpoint| rate(endpoint.recent.whole()) > endpoint.failure_rate + WORSE);
        Some(if is_worse {
            VerificationOutcome::Worsened(text)
        } else {
            VerificationOutcome::StillFailing(text)
        })
    }

    /// The endpoints by name, in the order of their outcomes.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.name)
    }

    /// How many ticks it has taken.
    pub const fn ticks(&self) -> u32 {
        self.ticks
    }

    fn counting(&self) -> impl Iterator<Item = &VerifiedEndpoint> {
        // Where nothing counted, everything has to: otherwise silence would be recovery.
        let all = self.endpoints.iter().all(|endpoint| !endpoint.counts);
        self.endpoints
            .iter()
            .filter(move |endpoint| endpoint.counts || all)
    }

    fn is_known(&self, calm: u32) -> bool {
        let (usable, scheduled) = self.counting().fold((0.0, 0.0), |(usable, all), endpoint| {
            let (_, n) = endpoint.recent.whole();
            (usable + n as f64, all + f64::from(calm))
        });
        usable >= self.rule.min_coverage * scheduled && usable > 0.0
    }

    fn is_well(&self) -> bool {
        let within = |(k, n): (u64, u64), bound: f64| k as f64 <= bound * n as f64;
        let pool = self.counting().fold((0, 0), |(k, n), endpoint| {
            let (more_k, more_n) = endpoint.recent.whole();
            (k + more_k, n + more_n)
        });
        within(pool, self.pool.bound + self.rule.margin)
            && self.counting().all(|endpoint| {
                let bound = endpoint.before.bound + self.rule.endpoint_margin;
                within(endpoint.recent.whole(), bound)
            })
    }

    fn failing(&self) -> String {
        let mut failing: Vec<String> = Vec::new();
        for endpoint in self.counting() {
            let (k, n) = endpoint.recent.whole();
            if k > 0 {
                failing.push(format!("{} {k}/{n} ({})", endpoint.name, share(k, n)));
            }
        }
        failing.join(", ")
    }

    /// Whether a stored state is valid.
    pub fn is_sound(&self) -> bool {
        self.rule.check().is_ok() && !self.endpoints.is_empty()
    }
}

fn rate((k, n): (u64, u64)) -> f64 {
    if n == 0 { 0.0 } else { k as f64 / n as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::analysis::{AnalysisStart, Tick};

    /// An analysis of four endpoints that ended with these outcomes.
    fn rejected(outcomes: [TickOutcome; 4]) -> Analysis {
        let rule = Rule {
            interval_s: 1.0,
            ..Rule::default()
        };
        let start = AnalysisStart {
            endpoints: ["health", "db", "redis", "root"].map(Into::into).to_vec(),
            baseline: vec![(0, 3600); 4],
            failing_at_start: vec![false; 4],
            complete_at: Some(0.0),
            ..AnalysisStart::default()
        };
        let mut analysis = Analysis::new(rule, &start).unwrap();
        while analysis
            .tick(&Tick {
                outcomes: &outcomes,
                ..Tick::default()
            })
            .is_none()
        {}
        analysis
    }

    fn verify(
        analysis: &Analysis,
        outcomes: impl Fn(u32) -> [TickOutcome; 4],
    ) -> (VerificationOutcome, u32) {
        let mut verification = Verification::new(analysis);
        for now in 0..1000 {
            if let Some(verified) = verification.tick(&outcomes(now)) {
                return (verified, now + 1);
            }
        }
        panic!("no end");
    }

    use TickOutcome::{Failure as X, Success as O, Unknown as V};

    #[test]
    fn well_for_fifteen_seconds_is_recovered() {
        let dead = rejected([X; 4]);
        assert_eq!(
            verify(&dead, |_| [O; 4]),
            (VerificationOutcome::Recovered, 15)
        );
        let late = verify(&dead, |now| if now < 20 { [X; 4] } else { [O; 4] });
        assert_eq!(late, (VerificationOutcome::Recovered, 35));
    }

    #[test]
    fn the_same_endpoint_failing_on_is_the_same_failure() {
        let one = rejected([O, X, O, O]);
        let (verified, ticks) = verify(&one, |_| [O, X, O, O]);
        assert_eq!(
            verified,
            VerificationOutcome::StillFailing("db 15/15 (100 %)".into())
        );
        assert_eq!(ticks, 60);
    }

    #[test]
    fn an_outage_that_goes_on_is_no_worse_for_having_been_short_before() {
        let mut analysis = rejected([O, O, O, X]);
        assert!(analysis.is_sound());
        // The watch's own window still holds good answers from before the outage.
        analysis = {
            let rule = analysis.rule().clone();
            let start = AnalysisStart {
                endpoints: ["health", "db"].map(Into::into).to_vec(),
                baseline: vec![(0, 3600); 2],
                failing_at_start: vec![false; 2],
                complete_at: Some(0.0),
                ..AnalysisStart::default()
            };
            let mut analysis = Analysis::new(rule, &start).unwrap();
            for now in 0..100 {
                let outcomes = if now < 60 { [O, O] } else { [X, X] };
                analysis.tick(&Tick {
                    outcomes: &outcomes,
                    ..Tick::default()
                });
            }
            analysis
        };
        let mut verification = Verification::new(&analysis);
        let verified = (0..60).find_map(|_| verification.tick(&[X, X]));
        assert!(
            matches!(verified, Some(VerificationOutcome::StillFailing(_))),
            "{verified:?}"
        );
    }

    #[test]
    fn another_endpoint_failing_is_worse() {
        let one = rejected([O, X, O, O]);
        let (verified, _) = verify(&one, |_| [O, X, X, O]);
        assert!(
            matches!(verified, VerificationOutcome::Worsened(text) if text.contains("redis 15/15"))
        );
    }

    #[test]
    fn void_is_not_recovery() {
        let dead = rejected([X; 4]);
        assert_eq!(
            verify(&dead, |_| [V; 4]),
            (VerificationOutcome::Unknown, 60)
        );
        let mostly = verify(&dead, |now| if now % 4 == 0 { [O; 4] } else { [V; 4] });
        assert_eq!(mostly.0, VerificationOutcome::Unknown);
    }
}
