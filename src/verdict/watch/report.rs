//! Looking at a watch: its strata, its numbers, its size.

use super::{Aside, Endpoint, NewPods, Watch};
use crate::verdict::MAX_ENDPOINTS;
use crate::verdict::finding::{StratumName, StratumReport, Strongest};
use crate::verdict::stratum::{Before, Control, OldPods, Stratum};

/// Where an endpoint stands at the end of a watch.
pub(in crate::verdict) struct Standing<'a> {
    pub(in crate::verdict) name: &'a str,
    pub(in crate::verdict) counts: bool,
    pub(in crate::verdict) before: Before,
    pub(in crate::verdict) recent: (u64, u64),
}

/// A stratum by its place.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Pool,
    Endpoint(usize),
    Requests,
    NewPods,
}

impl Watch {
    /// Strata, in order: the pool, the endpoints, requests, new pods.
    pub(super) fn strata(&self) -> usize {
        let more = usize::from(self.requests.is_some()) + usize::from(self.new_pods.is_some());
        1 + self.endpoints.len() + more
    }

    pub(super) fn kind(&self, at: usize) -> Kind {
        match at.checked_sub(1) {
            None => Kind::Pool,
            Some(endpoint) if endpoint < self.endpoints.len() => Kind::Endpoint(endpoint),
            Some(next) if next == self.endpoints.len() && self.requests.is_some() => Kind::Requests,
            Some(_) => Kind::NewPods,
        }
    }

    pub(super) fn stratum(&self, at: usize) -> &Stratum {
        match (self.kind(at), &self.requests, &self.new_pods) {
            (Kind::Endpoint(at), _, _) => &self.endpoints[at].stratum,
            (Kind::Requests, Some(requests), _) => &requests.stratum,
            (Kind::NewPods, _, Some(new_pods)) => &new_pods.stratum,
            (Kind::Pool | Kind::Requests | Kind::NewPods, _, _) => &self.pool.stratum,
        }
    }

    pub(super) fn name(&self, at: usize) -> StratumName {
        match self.kind(at) {
            Kind::Pool => StratumName::Pool,
            Kind::Endpoint(at) => StratumName::Endpoint(self.endpoints[at].name.clone()),
            Kind::Requests => StratumName::Requests,
            Kind::NewPods => StratumName::NewPods,
        }
    }

    /// Failures and outcomes in the span of the estimate.
    pub(super) fn recent(&self, at: usize) -> (u64, u64) {
        match (self.kind(at), &self.requests, &self.new_pods) {
            (Kind::Endpoint(at), _, _) => self.endpoints[at].recent.whole(),
            (Kind::Requests, Some(requests), _) => requests.recent.whole(),
            (Kind::NewPods, _, Some(new_pods)) => new_pods.direct.estimate(),
            (Kind::Pool | Kind::Requests | Kind::NewPods, _, _) => self.pool.recent.whole(),
        }
    }

    /// What old pods say of a stratum, this tick included.
    pub(super) fn control(&self, at: usize) -> Option<Control> {
        let stratum = self.stratum(at);
        let old_pods = match self.kind(at) {
            Kind::Pool | Kind::NewPods => self.pool.old_pods.as_ref(),
            Kind::Endpoint(at) => self.endpoints[at].old_pods.as_ref(),
            Kind::Requests => None,
        };
        old_pods?.says(&self.rule, stratum.before.rate(), stratum.margin)
    }

    /// Seconds that the estimate looks back.
    pub(super) fn span_s(&self, at: usize) -> f64 {
        let rule = &self.rule;
        match (self.kind(at), &self.requests) {
            (Kind::Requests, Some(requests)) => rule.window_s.max(requests.interval_s),
            (Kind::Pool | Kind::Endpoint(_) | Kind::NewPods | Kind::Requests, _) => {
                let probes = f64::from(rule.window_probes) / self.endpoints.len() as f64;
                rule.window_s.max(probes.ceil() * rule.interval_s)
            }
        }
    }

    /// Where each endpoint stands, for the verification after a rollback.
    /// Failures are those of the last `ticks`; an endpoint that new pods do not answer at all fails wholly, however few
    /// users have noticed yet.
    pub(in crate::verdict) fn standing(&self, ticks: u32) -> impl Iterator<Item = Standing<'_>> {
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
    pub(in crate::verdict) fn pooled(&self) -> Before {
        self.pool.stratum.before
    }

    /// Endpoints that are set aside at the moment, so that they do not count, and why.
    pub fn aside(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.endpoints.iter().filter_map(|endpoint| {
            let why = match endpoint.aside? {
                Aside::FailedAtStart => "it failed before the revision appeared",
                Aside::ControlLost => "it fails for old pods as well",
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

    /// The strongest evidence so far.
    pub fn strongest(&self) -> Option<Strongest> {
        let (ln_e, at, tick) = self.strongest?;
        Some(Strongest {
            e: ln_e.exp(),
            stratum: self.name(usize::from(at)),
            t: f64::from(tick) * self.rule.interval_s,
        })
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
