//! Error budgets: for each objective what is spent, how fast, and by which revision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::conditions;
use crate::config::settings::{ObjectivesConfig, Settings};
use crate::core::alerts::AlertKind;
use crate::core::alerts::Condition;
use crate::core::probe_stats::{ProbeStats, TrackedProbe};
use crate::core::slo::{BurnTier, Objective};
use crate::core::units::{Moment, ProbeId};
use crate::core::window::{Counts, LongWindow, LongWindows};
use crate::http::Shard;
use crate::http::status::{BurnView, GuardView, ObjectiveView, SpentView, TierView};
use crate::metrics::Metrics;

/// Revisions per release whose spending is kept.
const MAX_REVISIONS: usize = 20;

/// Windows that are shown, the shortest first: all windows of the tiers, and the longest period.
const WINDOWS: [LongWindow; 8] = [
    LongWindow::Minutes5,
    LongWindow::Minutes30,
    LongWindow::Hour,
    LongWindow::Hours2,
    LongWindow::Hours6,
    LongWindow::Day,
    LongWindow::Days3,
    LongWindow::Days30,
];

/// One objective.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::daemon) struct Promise {
    namespace: String,
    release: String,
    /// The probe of the objective; `None`: all probes of the release.
    probe: Option<String>,
    is_latency: bool,
    objective: Objective,
    of: Vec<ProbeId>,
    /// Results per second that the schedule should give.
    expected: f64,
}

/// The objectives of all releases.
pub(in crate::daemon) fn promises(settings: &Settings) -> Vec<Promise> {
    let mut promises = Vec::new();
    for release in &settings.releases {
        let mut add =
            |objectives: &ObjectivesConfig, probe: Option<&str>, of: &[(ProbeId, f64, bool)]| {
                for (objective, is_latency) in [
                    (&objectives.availability, false),
                    (&objectives.latency, true),
                ] {
                    let Some(objective) = objective else {
                        continue;
                    };
                    let of: Vec<_> = of
                        .iter()
                        .filter(|(_, _, has_threshold)| !is_latency || *has_threshold)
                        .collect();
                    promises.push(Promise {
                        namespace: release.namespace.to_string(),
                        release: release.name.to_string(),
                        probe: probe.map(str::to_owned),
                        is_latency,
                        objective: objective.clone(),
                        expected: of.iter().map(|(_, rate, _)| rate).sum(),
                        of: of.into_iter().map(|(id, _, _)| id.clone()).collect(),
                    });
                }
            };
        let all: Vec<_> = release
            .probes
            .iter()
            .map(|probe| {
                let rate = 1.0 / probe.interval.as_secs_f64();
                (probe.id.clone(), rate, probe.latency_objective.is_some())
            })
            .collect();
        add(&release.objectives, None, &all);
        for (probe, one) in release.probes.iter().zip(&all) {
            add(
                &probe.objectives,
                Some(probe.id.probe.as_str()),
                std::slice::from_ref(one),
            );
        }
    }
    promises
}

impl Promise {
    /// Whether the objective belongs to this shard.
    pub(super) fn is_of(&self, share: &Shard) -> bool {
        super::is_of(share, &self.namespace, &self.release)
    }

    /// Removes its series.
    pub(super) fn forget(&self, metrics: &Metrics) {
        let probe = self.probe.as_deref().unwrap_or("");
        let labels = [&self.namespace, &self.release, probe, self.what()];
        metrics
            .objectives
            .forget(labels, WINDOWS.iter().map(|window| window.as_str()));
    }

    const fn what(&self) -> &'static str {
        if self.is_latency {
            "latency"
        } else {
            "availability"
        }
    }

    fn long_windows<'a>(&self, stats: &'a ProbeStats) -> Option<&'a LongWindows> {
        if self.is_latency {
            stats.slow().map(|(_, long_windows)| long_windows)
        } else {
            Some(stats.long_windows())
        }
    }

    /// Results and failures since the probes were first configured, from the long windows.
    fn totals(&self, tracked_probe: &HashMap<ProbeId, Arc<TrackedProbe>>) -> (u64, u64) {
        let all = self.of.iter().filter_map(|id| tracked_probe.get(id));
        all.fold((0, 0), |sum, tracked_probe| {
            let stats = tracked_probe.lock();
            let (success, failure) = if self.is_latency {
                stats.weighted_slow().unwrap_or_default()
            } else {
                stats.weighted()
            };
            (sum.0 + success + failure, sum.1 + failure)
        })
    }

    /// Counts of each window and of the period.
    fn count(
        &self,
        tracked_probe: &HashMap<ProbeId, Arc<TrackedProbe>>,
        now: Moment,
    ) -> ([Counts; WINDOWS.len()], Counts) {
        let mut windows = [Counts::default(); WINDOWS.len()];
        let mut period = Counts::default();
        for id in &self.of {
            let Some(tracked_probe) = tracked_probe.get(id) else {
                continue;
            };
            let stats = tracked_probe.lock();
            let Some(long_windows) = self.long_windows(&stats) else {
                continue;
            };
            for (sum, span) in windows.iter_mut().zip(WINDOWS) {
                sum.add(long_windows.count(span, now));
            }
            period.add(long_windows.days(self.objective.days, now));
        }
        (windows, period)
    }
}

/// Results and failures by revision of one release.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SpentByRevision {
    revisions: BTreeMap<u32, (u64, u64)>,
    /// Totals of the release's probes at the last evaluation. `None` before the first one in this process: results from
    /// before belong to no revision here, or to the records of the replica that led then.
    #[serde(skip)]
    last: Option<(u64, u64)>,
}

impl SpentByRevision {
    /// Adds the results since the last evaluation to a revision.
    fn add(&mut self, revision: u32, totals: (u64, u64)) {
        // Numbers that went back begin again: the release was uninstalled, and the later ones are of its former life.
        self.revisions.split_off(&(revision.saturating_add(1)));
        let spent = self.revisions.entry(revision).or_default();
        if let Some(last) = self.last {
            // A probe that is gone takes its totals along.
            spent.0 += totals.0.saturating_sub(last.0);
            spent.1 += totals.1.saturating_sub(last.1);
        }
        self.last = Some(totals);
        while self.revisions.len() > MAX_REVISIONS {
            self.revisions.pop_first();
        }
    }
}

/// Key: namespace and release, joined by a slash.
pub(super) type SpentByRelease = BTreeMap<String, SpentByRevision>;

/// Adds the results since the last evaluation to the revision that serves. Drops releases that were uninstalled or have
/// no objective any longer.
pub(super) fn add_spending(
    accounts: &mut SpentByRelease,
    promises: &[Promise],
    views: &[Arc<GuardView>],
    tracked_probe: &HashMap<ProbeId, Arc<TrackedProbe>>,
) {
    let wanted: HashMap<String, &Promise> = promises
        .iter()
        .filter(|promise| promise.probe.is_none() && !promise.is_latency)
        .map(|promise| (account(&promise.namespace, &promise.release), promise))
        .collect();
    accounts.retain(|name, _| wanted.contains_key(name));
    for view in views {
        let name = account(&view.namespace, &view.release);
        let Some(promise) = wanted.get(&name) else {
            continue;
        };
        if view.phase == "not_installed" {
            accounts.remove(&name);
            continue;
        }
        let Some(revision) = view.revision else {
            continue;
        };
        let totals = promise.totals(tracked_probe);
        accounts.entry(name).or_default().add(revision, totals);
    }
}

/// Key of a release in [`SpentByRelease`].
fn account(namespace: &str, release: &str) -> String {
    format!("{namespace}/{release}")
}

/// Objectives that one tick evaluates at least: so many cost about a millisecond.
const AT_ONCE: usize = 100;

/// Ticks within which all objectives are evaluated. In a total outage the fastest tier fires after most of a minute.
const ROUND: usize = 10;

/// Result of evaluating one objective, and the totals that it was computed from.
type ObjectiveCache = (Arc<ObjectiveView>, Vec<Condition>, (u64, u64));

/// Results of the last evaluation of each objective.
#[derive(Default)]
pub(super) struct ObjectiveResults {
    known: Vec<ObjectiveCache>,
    next: usize,
}

impl ObjectiveResults {
    /// Forgets all results, because the objectives changed.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Evaluates the objectives whose turn it is; the first time, all of them.
    pub(super) fn look(
        &mut self,
        promises: &[Promise],
        accounts: &SpentByRelease,
        tracked_probe: &HashMap<ProbeId, Arc<TrackedProbe>>,
        metrics: &Metrics,
        now: Moment,
    ) {
        let at = |promise, last| one(promise, accounts, tracked_probe, metrics, now, last);
        if self.known.len() != promises.len() {
            self.known = promises.iter().map(|promise| at(promise, None)).collect();
            self.next = 0;
            return;
        }
        let count = promises.len().div_ceil(ROUND).max(AT_ONCE);
        for _ in 0..count.min(promises.len()) {
            let last = self.known[self.next].2;
            self.known[self.next] = at(&promises[self.next], Some(last));
            self.next = (self.next + 1) % promises.len();
        }
    }

    /// Views of all objectives.
    pub(super) fn views(&self) -> Vec<Arc<ObjectiveView>> {
        let views = self.known.iter().map(|(view, ..)| Arc::clone(view));
        views.collect()
    }

    /// Conditions of all objectives.
    pub(super) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.known.iter().flat_map(|(_, found, _)| found)
    }
}

fn one(
    promise: &Promise,
    accounts: &SpentByRelease,
    tracked_probe: &HashMap<ProbeId, Arc<TrackedProbe>>,
    metrics: &Metrics,
    now: Moment,
    last: Option<(u64, u64)>,
) -> ObjectiveCache {
    let mut found = Vec::new();
    let (windows, period) = promise.count(tracked_probe, now);
    let objective = &promise.objective;
    let of = |span: LongWindow| {
        let at = WINDOWS.iter().position(|window| *window == span);
        at.map_or_else(Counts::default, |at| windows[at])
    };
    let remaining = objective.remaining(&period, promise.expected);
    let firing: Vec<BurnTier> = objective
        .tiers
        .iter()
        .copied()
        .filter(|tier| objective.fires(*tier, of, promise.expected))
        .collect();
    let burns: Vec<BurnView> = WINDOWS
        .iter()
        .zip(&windows)
        .map(|(span, counts)| BurnView {
            window: span.as_str(),
            error_ratio: counts
                .error_rate()
                .map(crate::core::units::ErrorRate::ratio),
            burn_rate: objective.burn(counts),
        })
        .collect();
    let hour = objective.burn(&of(LongWindow::Hour)).unwrap_or(0.0);
    for (kind, is_page) in [
        (AlertKind::ObjectiveBurning, true),
        (AlertKind::ObjectiveAtRisk, false),
    ] {
        let fired = firing.iter().find(|tier| tier.is_page() == is_page);
        found.extend(fired.map(|tier| condition(promise, kind, *tier, of, remaining)));
    }
    let account = accounts.get(&account(&promise.namespace, &promise.release));
    let account = account.filter(|_| promise.probe.is_none() && !promise.is_latency);
    let whole = promise.expected * objective.period().as_secs_f64();
    let view = ObjectiveView {
        namespace: promise.namespace.clone(),
        release: promise.release.clone(),
        probe: promise.probe.clone(),
        objective: promise.what(),
        target: objective.target,
        window: format!("{}d", objective.days),
        success: u64::from(period.success),
        failure: u64::from(period.failure),
        budget_remaining: remaining,
        lasts_s: objective
            .lasts(remaining, hour)
            .as_ref()
            .map(Duration::as_secs_f64),
        burns,
        tiers: objective
            .tiers
            .iter()
            .map(|tier| TierView {
                tier: tier.as_str(),
                long: tier.windows().0.as_str(),
                short: tier.windows().1.as_str(),
                factor: objective.factor(*tier),
                error_ratio: objective.threshold(*tier),
                outage_fires_after_s: objective
                    .fires_after(*tier, 1.0)
                    .as_ref()
                    .map(Duration::as_secs_f64),
                firing: firing.contains(tier),
            })
            .collect(),
        revisions: account.map_or_else(Vec::new, |account| {
            let spent = account.revisions.iter().rev();
            spent
                .map(|(revision, (all, failure))| SpentView {
                    revision: *revision,
                    results: *all,
                    failure: *failure,
                    budget_spent: objective.spent(*failure, whole),
                })
                .collect()
        }),
    };
    metrics.objectives.stands(
        &view.namespace,
        &view.release,
        view.probe.as_deref().unwrap_or(""),
        view.objective,
        view.target,
        remaining,
        promise.objective.days,
    );
    for burn in &view.burns {
        metrics.objectives.burns(
            &view.namespace,
            &view.release,
            view.probe.as_deref().unwrap_or(""),
            view.objective,
            burn.window,
            burn.error_ratio,
            burn.burn_rate,
        );
    }
    let totals = promise.totals(tracked_probe);
    // A probe that is gone takes its totals along, and a counter must not go back.
    let since = last.map_or((0, 0), |last| {
        (
            totals.0.saturating_sub(last.0),
            totals.1.saturating_sub(last.1),
        )
    });
    metrics.objectives.counted(
        &view.namespace,
        &view.release,
        view.probe.as_deref().unwrap_or(""),
        view.objective,
        since,
    );
    (Arc::new(view), found, totals)
}

fn condition(
    promise: &Promise,
    kind: AlertKind,
    tier: BurnTier,
    of: impl Fn(LongWindow) -> Counts,
    remaining: f64,
) -> Condition {
    let (long, short) = tier.windows();
    let burn = |span: LongWindow| promise.objective.burn(&of(span)).unwrap_or(0.0);
    let mut place = conditions::release(&promise.namespace, &promise.release);
    place.insert("objective".into(), promise.what().into());
    place.insert("probe".into(), promise.probe.clone().unwrap_or_default());
    let target = number(promise.objective.target * 100.0);
    Condition {
        kind,
        place,
        text: format!(
            "The error budget of the {} of {target} % over {} days is being spent {:.1} times as fast as it lasts over {}, \
             and {:.1} times over {}; {:.1} % of it is left.",
            promise.what(),
            promise.objective.days,
            burn(long),
            long.as_str(),
            burn(short),
            short.as_str(),
            remaining * 100.0
        ),
        fragment: conditions::fragment(&promise.namespace, &promise.release),
    }
}

/// A number without trailing zeros.
fn number(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
