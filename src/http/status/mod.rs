//! `GET /` and `GET /api/v1/status`: the status page, and everything that it shows.
//!
//! Numbers and reasons only: answers of targets, logs and other evidence are not here. Times are seconds since 1970.

mod dependencies;
mod latencies;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::watch;

use super::api::scraped;
use super::fan_out::{FanOutEntry, fan_out};
use super::shard::ShardedView;
use super::{AppState, ServingConfig};
use crate::core::alerts::LabelSet;
use crate::core::probe_result::Outcome;
use crate::core::units::{ErrorRate, Moment};
use crate::core::window::Quantile;
use crate::metrics::ProbeSeries;
use crate::platform::clock;

use dependencies::{DependencyView, dependencies};
pub use latencies::{DistributionView, LatenciesView, ProbeLatenciesView};

const PAGE: &str = include_str!("../page.html");

/// The page loads nothing from elsewhere, may not be framed, and connects only to this server.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Status of one release, from its controller.
#[derive(Debug, Clone, Default, Serialize)]
pub struct GuardView {
    /// The namespace of the release.
    pub namespace: String,
    /// Its name.
    pub release: String,
    /// `enforce`, `observe` or `off`.
    pub mode: &'static str,
    /// What tells of its revisions and rolls it back; `None` where it is only probed.
    pub engine: Option<&'static str>,
    /// Where it stands.
    pub phase: String,
    /// The newest revision.
    pub revision: Option<u32>,
    /// The revision that is being analyzed, rolled back or verified, if any.
    pub at_hand: Option<u32>,
    /// Since when it stands there.
    pub phase_since: Option<f64>,
    /// The same in a sentence.
    pub says: String,
    /// Why its newest revision could not be rolled back, if so.
    pub preflight_failure: Option<String>,
    /// What people should know of it beforehand, in words.
    pub remarks: Vec<String>,
    /// The running analysis.
    pub analysis: Option<AnalysisView>,
    /// The bake of the newest revision that runs, or how it ended.
    pub bake: Option<BakeView>,
    /// Latencies of the running analysis, or of the last one, and from before it.
    pub latencies: Option<LatenciesView>,
    /// The last verdict.
    pub verdict: Option<VerdictView>,
    /// The runbook's steps.
    pub steps: Vec<StepView>,
    /// Revisions, the newest first.
    pub history: Vec<RevisionView>,
    /// The log of events, the newest first.
    pub events: Vec<EventView>,
    /// What is known of the probes beforehand, in their order.
    #[serde(rename = "probe_history")]
    pub known: Vec<ProbeHistoryView>,
    /// Revisions whose rollout has ended, the oldest first; they have an endpoint of their own.
    #[serde(skip)]
    pub rollouts: Vec<RolloutView>,
    /// The revision at hand.
    #[serde(skip)]
    pub candidate: Option<CandidateView>,
    /// Why nothing new is known of the release, if so.
    pub blind: Option<String>,
}

/// The revision at hand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CandidateView {
    /// Its number.
    pub revision: u32,
    /// The numbers of the verdict in words, or what a person said.
    pub text: String,
    /// The reason of the verdict, as `error_rate:db`.
    pub reason: String,
    /// When it appeared, in seconds since 1970.
    pub since: f64,
    /// Whether it was rejected, or is to be rolled back.
    pub is_rejected: bool,
    /// Whether a person ordered its rollback.
    pub is_ordered: bool,
    /// The order that it carries out, or that has joined it.
    pub order: Option<String>,
}

/// What is known of a probe before a revision appears.
#[derive(Debug, Clone, Serialize)]
pub struct ProbeHistoryView {
    /// Its name.
    pub probe: String,
    /// Results of the baseline.
    pub baseline_total: u64,
    /// Failures among them.
    pub baseline_failed: u64,
    /// Whether pods answer it directly.
    pub pods_answer: bool,
}

/// A finished rollout.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RolloutView {
    /// Its number.
    pub revision: u32,
    /// How it ended.
    pub outcome: &'static str,
    /// Why, in words.
    pub text: String,
    /// The reason of the verdict, as `error_rate:db`; `not_rolled_out` when the rollout was never complete, and
    /// `rolled_out_late` when it was after the end of the analysis; else empty.
    pub reason: String,
    /// The order of a person that it carried out, or that had joined it; see `orders`.
    pub order: Option<String>,
    /// The revision that was serving before.
    pub serving: Option<u32>,
    /// The revision gone back to.
    pub target: Option<u32>,
    /// The revision that the rollback made.
    pub created_revision: Option<u32>,
    /// When it appeared.
    pub appeared_at: f64,
    /// When its own rollout was complete.
    pub complete_at: Option<f64>,
    /// When the verdict of rollback fell.
    pub rejected_at: Option<f64>,
    /// When helm was started.
    pub begun_at: Option<f64>,
    /// When it was over.
    pub ended_at: f64,
    /// The runbook's steps.
    pub steps: Vec<StepView>,
}

/// A running analysis.
#[derive(Debug, Clone, Serialize)]
pub struct AnalysisView {
    /// Seconds since the revision appeared.
    pub elapsed_s: f64,
    /// Seconds of the whole watch.
    pub length_s: f64,
    /// Evidence against the revision.
    pub e_value: f64,
    /// The e-value that rejects.
    pub threshold: f64,
    /// Usable share of the results.
    pub coverage: Option<f64>,
    /// Whether the rollout is complete.
    pub complete: bool,
    /// Seconds and e-value, at most 300 pairs.
    pub e_values: Vec<(f64, f64)>,
    /// The numbers by stratum.
    pub strata: Vec<StratumView>,
    /// Endpoints that do not count at the moment.
    pub excluded: Vec<String>,
    /// Whether new pods are asked directly, or why not.
    pub direct: String,
    /// Unknown results, by cause: how many, and what the cause is.
    pub unknown: Vec<UnknownView>,
    /// What is excluded so far, and why, a sentence each.
    pub not_judged: Vec<String>,
    /// That answers are slower than before, once that is shown.
    pub slower: Option<String>,
    /// How many passed rollouts the tolerance is learned from.
    pub learned_from: u32,
}

/// The bake of a revision that passed its analysis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BakeView {
    /// Its number.
    pub revision: u32,
    /// `baking`, or how it ended: `good`, `inconclusive` or `failed`.
    pub state: &'static str,
    /// When it began, in seconds since 1970.
    pub since: f64,
    /// When it ends, or ended.
    pub until: f64,
    /// The numbers in words.
    pub text: String,
    /// Evidence against the revision, while it bakes.
    pub e_value: Option<f64>,
    /// How much of it raises an alarm.
    pub threshold: Option<f64>,
}

/// Results that say nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UnknownView {
    /// As `limited`.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// In a sentence.
    pub text: &'static str,
}

/// The numbers of one stratum.
#[derive(Debug, Clone, Serialize)]
pub struct StratumView {
    /// Its name.
    pub name: String,
    /// Failures in the span of the estimate.
    pub failed: u64,
    /// Outcomes in it.
    pub total: u64,
    /// Failures before.
    pub baseline_failed: u64,
    /// Outcomes before.
    pub baseline_total: u64,
    /// Evidence of this stratum alone.
    pub e_value: f64,
}

/// A verdict that fell.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct VerdictView {
    /// On which revision.
    pub revision: u32,
    /// `rollback`, `healthy` or `inconclusive`.
    pub verdict: String,
    /// The reason, as `error_rate:db`.
    pub reason: String,
    /// The numbers in words.
    pub text: String,
    /// Failures by probe and reason.
    pub failing: Vec<String>,
    /// What would have had to differ.
    pub otherwise: String,
    /// When.
    pub at: f64,
    /// Slower answers than before, if evident.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower: Option<String>,
}

/// One step of the runbook.
#[derive(Debug, Clone, Serialize)]
pub struct StepView {
    /// Which.
    pub step: &'static str,
    /// From when to when it counts, in words.
    pub counts: &'static str,
    /// What the runbook allows, in seconds.
    pub limit_s: f64,
    /// What it took, or takes so far.
    pub took_s: Option<f64>,
    /// `met`, `running`, `late` or `open`.
    pub state: &'static str,
}

/// One revision.
#[derive(Debug, Clone, Serialize)]
pub struct RevisionView {
    /// Its number.
    pub revision: u32,
    /// Helm's status.
    pub status: String,
    /// How its rollout ended, if it did.
    pub outcome: Option<&'static str>,
    /// Why, in words, or Helm's description.
    pub text: String,
    /// When.
    pub at: Option<f64>,
}

/// One entry of the log of events.
#[derive(Debug, Clone, Serialize)]
pub struct EventView {
    /// When.
    pub at: f64,
    /// What happened.
    pub text: String,
}

/// Something promised, and how it stands.
#[derive(Debug, Clone, Serialize)]
pub struct ObjectiveView {
    /// The namespace of the release.
    pub namespace: String,
    /// Its name.
    pub release: String,
    /// The probe of the objective; `None` for the whole release.
    pub probe: Option<String>,
    /// `availability` or `latency`.
    pub objective: &'static str,
    /// The promised share of successes.
    pub target: f64,
    /// The period, as `30d`.
    pub window: String,
    /// Results of the period that kept the promise.
    pub success: u64,
    /// Those that broke it.
    pub failure: u64,
    /// Remaining share of the period's budget; negative if it is overspent.
    pub budget_remaining: f64,
    /// How long that lasts at the burn rate of the last hour, in seconds; `None` if nothing is being spent.
    pub lasts_s: Option<f64>,
    /// How fast it is being spent, by window.
    pub burns: Vec<BurnView>,
    /// When people are told.
    pub tiers: Vec<TierView>,
    /// What each revision spent, the newest first.
    pub revisions: Vec<SpentView>,
}

/// How fast a budget is being spent in one window.
#[derive(Debug, Clone, Serialize)]
pub struct BurnView {
    /// As `1h`.
    pub window: &'static str,
    /// The share of results that violated the objective.
    pub error_ratio: Option<f64>,
    /// How many times too fast that is.
    pub burn_rate: Option<f64>,
}

/// When people are told that a budget is being spent.
#[derive(Debug, Clone, Serialize)]
pub struct TierView {
    /// Its name, as `page-quick`.
    pub tier: &'static str,
    /// The window that says that it matters.
    pub long: &'static str,
    /// The window that says that it still happens.
    pub short: &'static str,
    /// The burn rate at which it fires.
    pub factor: f64,
    /// The error ratio that this is.
    pub error_ratio: f64,
    /// How long a total outage lasts before it fires, in seconds.
    pub outage_fires_after_s: Option<f64>,
    /// Whether it fires.
    pub firing: bool,
}

/// What a revision spent of a budget.
#[derive(Debug, Clone, Serialize)]
pub struct SpentView {
    /// Its number.
    pub revision: u32,
    /// Results while it was the newest one.
    pub results: u64,
    /// Bad ones among them.
    pub failure: u64,
    /// The share of the period's whole budget that this is.
    pub budget_spent: f64,
}

/// An alert, as it stands.
#[derive(Debug, Clone, Serialize)]
pub struct AlertView {
    /// What tells it from others.
    pub labels: LabelSet,
    /// `pending`, `firing` or `resolved`.
    pub state: &'static str,
    /// One sentence, always the same for its kind.
    pub summary: &'static str,
    /// The particulars.
    pub text: Arc<str>,
    /// When it began to fire.
    pub since: Option<f64>,
    /// When it ended.
    pub ended: Option<f64>,
    /// The Alertmanagers that say that they have it.
    pub confirmed_by: Arc<[Arc<str>]>,
}

/// A receiver that always has the newest view.
pub type GuardFeed = watch::Receiver<Arc<GuardView>>;

impl AlertView {
    /// Namespace and name of its release; `None` if it is about Leadsman itself.
    pub(super) fn about(&self) -> Option<(&str, &str)> {
        Some((self.labels.get("namespace")?, self.labels.get("release")?))
    }
}

#[derive(Serialize)]
struct StatusBody<'a> {
    version: &'static str,
    now: f64,
    ready: bool,
    troubles: Vec<&'static str>,
    /// Those that are of no release.
    alerts: Vec<FanOutEntry<'a, AlertView>>,
    releases: Vec<FanOutEntry<'a, ReleaseView>>,
    /// Each replica asks them itself.
    dependencies: Vec<DependencyView>,
}

#[derive(Serialize)]
pub(super) struct ReleaseView {
    #[serde(flatten)]
    pub(super) controller: Arc<GuardView>,
    probes: Vec<ProbeView>,
    alerts: Vec<AlertView>,
    objectives: Vec<Arc<ObjectiveView>>,
}

impl ReleaseView {
    /// Without probes, for tests.
    #[cfg(test)]
    pub(super) fn bare(controller: GuardView) -> Self {
        Self {
            controller: Arc::new(controller),
            probes: Vec::new(),
            alerts: Vec::new(),
            objectives: Vec::new(),
        }
    }

    /// This replica's own knowledge of a release whose leader does not answer: its probes, and why there is no more.
    pub(super) fn unheard(self, says: String) -> Self {
        let controller = GuardView {
            namespace: self.controller.namespace.clone(),
            release: self.controller.release.clone(),
            // It has a Lease, so it is not only probed.
            mode: self
                .controller
                .engine
                .map_or(UNKNOWN, |_| self.controller.mode),
            engine: self.controller.engine.or(Some(UNKNOWN)),
            phase: UNKNOWN.to_owned(),
            says,
            ..GuardView::default()
        };
        Self {
            controller: Arc::new(controller),
            ..self
        }
    }
}

/// What only another replica could say.
const UNKNOWN: &str = "unknown";

#[derive(Serialize)]
struct ProbeView {
    probe: String,
    target: String,
    state: &'static str,
    reason: Option<&'static str>,
    explanation: Option<String>,
    latency_s: Option<f64>,
    p50_s: Option<f64>,
    p99_s: Option<f64>,
    error_rate: Option<f64>,
    /// Result and latency in seconds, the newest last.
    recent: Vec<(&'static str, f64)>,
}

pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-frame-options"), "DENY"),
    ];
    (headers, PAGE).into_response()
}

pub(super) async fn status(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let gathered = match fan_out(&shared, "/api/v1/status", &headers).await {
        Ok(gathered) => gathered,
        Err(refused) => return refused,
    };
    scraped(shared, &headers, move |shared| {
        let serving_config = shared.serving_config();
        let now = (shared.clock)();
        let heard = gathered.read();
        let ours = own(&shared.alerts());
        let status = StatusBody {
            version: env!("CARGO_PKG_VERSION"),
            now: clock::unix_seconds(),
            ready: shared.is_ready(),
            troubles: (shared.troubles)(),
            alerts: heard.alerts(ours.into_iter(), AlertView::about),
            releases: heard.releases(releases(shared, &serving_config, now)),
            dependencies: dependencies(&serving_config.series, now),
        };
        serde_json::to_vec(&status)
    })
    .await
}

/// Alerts about ourselves.
fn own(alerts: &ShardedView<AlertView>) -> Vec<AlertView> {
    let own = alerts
        .iter()
        .filter(|alert| alert.labels.get("release").is_none());
    own.cloned().collect()
}

pub(super) fn releases(
    shared: &AppState,
    serving_config: &ServingConfig,
    now: Moment,
) -> Vec<ReleaseView> {
    let (alerts, objectives) = (shared.alerts(), shared.objectives());
    let mut alerts_of: HashMap<(&str, &str), Vec<&AlertView>> = HashMap::new();
    for alert in alerts.iter() {
        if let Some((namespace, release)) = alert.about() {
            alerts_of
                .entry((namespace, release))
                .or_default()
                .push(alert);
        }
    }
    let mut objectives_of: HashMap<(&str, &str), Vec<&Arc<ObjectiveView>>> = HashMap::new();
    for objective in objectives.iter() {
        let key = (objective.namespace.as_str(), objective.release.as_str());
        objectives_of.entry(key).or_default().push(objective);
    }
    let mut releases: Vec<ReleaseView> = Vec::new();
    for series in &serving_config.series {
        let probe = series.tracked_probe().probe();
        if probe.id.is_dependency() {
            continue;
        }
        let (namespace, name) = (probe.id.namespace.as_str(), probe.id.release.as_str());
        // Probes of a release stand together.
        let is_same = releases.last().is_some_and(|last| {
            last.controller.namespace == namespace && last.controller.release == name
        });
        if !is_same {
            let mut guarded = serving_config
                .controllers
                .iter()
                .map(|feed| feed.borrow().clone());
            let controller =
                guarded.find(|view| view.namespace == namespace && view.release == name);
            let controller = controller.map(|view| {
                if view.phase.is_empty() {
                    Arc::new(not_yet(&view))
                } else {
                    view
                }
            });
            releases.push(ReleaseView {
                controller: controller.unwrap_or_else(|| Arc::new(only_probed(namespace, name))),
                probes: Vec::new(),
                alerts: all_of(&alerts_of, namespace, name),
                objectives: all_of(&objectives_of, namespace, name),
            });
        }
        if let Some(release) = releases.last_mut() {
            release.probes.push(one(series, now));
        }
    }
    releases
}

fn all_of<T: Clone>(map: &HashMap<(&str, &str), Vec<&T>>, namespace: &str, name: &str) -> Vec<T> {
    let found = map.get(&(namespace, name)).into_iter().flatten();
    found.copied().cloned().collect()
}

/// The view of a controller that has not started yet.
fn not_yet(view: &GuardView) -> GuardView {
    let says = if view.says.is_empty() {
        "It is not guarded yet: its state is being read"
    } else {
        &view.says
    };
    GuardView {
        phase: "starting".to_owned(),
        says: says.to_owned(),
        ..view.clone()
    }
}

fn only_probed(namespace: &str, release: &str) -> GuardView {
    GuardView {
        namespace: namespace.to_owned(),
        release: release.to_owned(),
        mode: "off",
        phase: "idle".to_owned(),
        says: "Probed only; its revisions are not judged".to_owned(),
        ..GuardView::default()
    }
}

fn one(series: &ProbeSeries, now: Moment) -> ProbeView {
    let tracked_probe = series.tracked_probe();
    let (view, recent) = {
        let mut stats = tracked_probe.lock();
        let recent: Vec<(&'static str, f64)> = stats
            .recent()
            .map(|(outcome, latency)| (outcome.words().0, latency.as_secs_f64()))
            .collect();
        (stats.view(now), recent)
    };
    let quantile = |wanted: usize| {
        let at = Quantile::ALL
            .iter()
            .position(|quantile| quantile.per_mille() == wanted)?;
        view.quantiles[at].map(|latency| latency.as_secs_f64())
    };
    let last = view.last.as_ref();
    let (state, reason) = last.map_or(("unknown", None), |last| last.outcome.words());
    let probe = tracked_probe.probe();
    ProbeView {
        probe: probe.id.probe.to_string(),
        target: probe.target.shown(),
        state,
        reason,
        explanation: last
            .filter(|last| last.outcome != Outcome::Success)
            .and_then(|last| last.explanation.as_deref().map(str::to_owned)),
        latency_s: last.map(|last| last.latency.as_secs_f64()),
        p50_s: quantile(500),
        p99_s: quantile(990),
        error_rate: view.window.error_rate().map(ErrorRate::ratio),
        recent,
    }
}
