//! Reports on an analysis: its strata, its numbers, its size.

use std::sync::Arc;

use super::{Analysis, AnalyzedEndpoint};
use crate::core::analysis::MAX_ENDPOINTS;
use crate::core::analysis::comparison::{Comparison, Exclusion, StratumKind};
use crate::core::analysis::regression::{StratumName, StratumReport, StrongestEvidence};
use crate::core::analysis::stratum::BeforeCounts;

/// State of an endpoint at the end of an analysis.
pub(in crate::core::analysis) struct Standing<'a> {
    pub(in crate::core::analysis) name: &'a str,
    pub(in crate::core::analysis) counts: bool,
    pub(in crate::core::analysis) before: BeforeCounts,
    pub(in crate::core::analysis) recent: (u64, u64),
}

impl Analysis {
    pub(super) fn name(&self, of: &Comparison, kind: StratumKind) -> StratumName {
        debug_assert_eq!(of.endpoints.len(), self.endpoints.len());
        match kind {
            StratumKind::Pool => StratumName::Pool,
            StratumKind::Endpoint(at) => StratumName::Endpoint(self.endpoints[at].name.clone()),
            StratumKind::Requests => StratumName::Requests,
            StratumKind::NewPods => StratumName::NewPods,
        }
    }

    /// State of each endpoint, for the verification after a rollback. Failures are those of the last `ticks`; an
    /// endpoint that no new pod answers counts as failing completely, however few users have noticed yet.
    pub(in crate::core::analysis) fn standing(
        &self,
        ticks: u32,
    ) -> impl Iterator<Item = Standing<'_>> {
        let down = |at: usize| {
            let direct = self.failures.direct()?;
            Some(direct.endpoints[at].down >= 3)
        };
        self.endpoints
            .iter()
            .zip(&self.failures.endpoints)
            .enumerate()
            .map(move |(at, (endpoint, compared))| Standing {
                name: &endpoint.name,
                counts: compared.excluded.is_none(),
                before: compared.stratum.before,
                recent: if down(at) == Some(true) {
                    (1, 1)
                } else {
                    compared.stratum.recent.sum(ticks)
                },
            })
    }

    /// Measurements of all endpoints together before the revision.
    pub(in crate::core::analysis) fn pooled(&self) -> BeforeCounts {
        self.failures.pool.before
    }

    /// Excluded endpoints, and why.
    pub fn excluded(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let compared = self.failures.endpoints.iter();
        self.endpoints
            .iter()
            .zip(compared)
            .filter_map(|(endpoint, compared)| {
                let why = match compared.excluded? {
                    Exclusion::FailedAtStart => "it failed before the revision appeared",
                    Exclusion::ControlLost => "it fails for old pods as well",
                    Exclusion::Dependency => "something that it needs fails",
                };
                Some((&*endpoint.name, why))
            })
    }

    /// The endpoints' names, in their order.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| &*endpoint.name)
    }

    /// The numbers of every stratum.
    pub fn report(&self) -> Vec<StratumReport> {
        let of = &self.failures;
        (0..of.strata())
            .map(|at| {
                let kind = of.kind(at);
                let requests = of
                    .requests
                    .as_ref()
                    .filter(|_| kind == StratumKind::Requests);
                let stratum = of.stratum(kind);
                let (before, evidence) = requests
                    .map_or((stratum.before, &stratum.quick), |requests| {
                        (requests.before, &requests.evidence)
                    });
                let (failed, total) = of.recent(kind);
                StratumReport {
                    name: self.name(of, kind),
                    failed,
                    total,
                    before_failed: before.failed,
                    before_total: before.total,
                    assumed: before.assumed,
                    tolerated: evidence.tolerated(),
                    log10_e: evidence.ln_e(&of.rule, &of.misses) / std::f64::consts::LN_10,
                    clipped_blocks: evidence.clipped_blocks,
                }
            })
            .collect()
    }

    /// The strongest evidence so far.
    pub fn strongest(&self) -> Option<StrongestEvidence> {
        let (ln_e, at, tick) = self.failures.strongest?;
        let kind = self.failures.kind(usize::from(at));
        Some(StrongestEvidence {
            e: ln_e.exp(),
            stratum: self.name(&self.failures, kind),
            t: f64::from(tick) * self.rule.interval_s,
        })
    }

    /// Whether a stored state is valid.
    pub fn is_sound(&self) -> bool {
        let count = self.endpoints.len();
        let ticks = self.next_tick;
        let latencies = self.slower.iter().chain(&self.latency);
        self.rule.check().is_ok()
            && (1..=MAX_ENDPOINTS).contains(&count)
            && self.failures.endpoints.len() == count
            && self.failures.is_sound(ticks)
            && latencies
                .clone()
                .all(|latency| latency.is_sound(count, ticks))
            && self.workloads.is_sound(count)
            && self.extended_until.is_none_or(f64::is_finite)
    }

    /// Bytes of the state, including the heap.
    pub fn bytes(&self) -> usize {
        let endpoints = self.endpoints.iter().map(|endpoint| {
            size_of::<AnalyzedEndpoint>()
                + endpoint.name.len()
                + endpoint.needs.capacity() * size_of::<u16>()
        });
        let is_shared = Arc::ptr_eq(&self.rule, &self.failures.rule);
        let rules = if is_shared { 1 } else { 2 };
        size_of::<Self>()
            + rules * self.rule.bytes()
            + endpoints.sum::<usize>()
            + self.failures.bytes()
            + self
                .slower
                .iter()
                .chain(&self.latency)
                .map(|latency| latency.bytes())
                .sum::<usize>()
            + self.workloads.bytes()
            + self
                .dependencies
                .iter()
                .map(|one| size_of_val(one) + one.name.len())
                .sum::<usize>()
            + self
                .slower_notice
                .as_ref()
                .map_or(0, |one| size_of_val(&**one))
            + self
                .regression
                .as_ref()
                .map_or(0, |one| size_of_val(&**one))
    }
}
