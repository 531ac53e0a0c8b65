//! The HTTP server: `/metrics`, `/probe`, `/-/healthy`, `/-/ready`, the JSON API and the status page.
//!
//! Invariants:
//! - everything a client does is bounded: connections, the size of a request's head, its duration, the number of pages
//!   written at once;
//! - `auth` protects everything that changes something or shows evidence, and nothing shows a secret;
//! - an error is `application/problem+json` (RFC 9457), except for `/probe` and `/-/…`, whose users expect plain text.

mod alerts;
mod api;
pub(crate) mod auth;
mod blackbox;
mod fan_out;
mod leader_proxy;
mod limits;
mod orders;
mod probe;
mod problem;
pub mod readiness;
mod releases;
mod response_budget;
mod runbook;
mod server;
mod shard;
pub mod status;
mod tls;
mod webhook;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{Semaphore, mpsc, oneshot};

pub use auth::{AccessReview, AuthDecision, Permission};
pub use leader_proxy::{LeaderProxy, LeaderRoute, Routing};
pub use orders::{AcceptedOrder, DeclinedOrder, MAX_REASON, RollbackOrder};
use problem::problem;
pub use server::serve;
pub use shard::Shard;
use shard::{ShardLists, ShardedView};
pub use tls::ListenerTls;
pub use webhook::{AlertSubscriber, MAX_WAITING as MAX_WAITING_ALERTS, ReceivedAlert};

use crate::config::settings::{self, ModuleConfig, ProbeKind};
use crate::config::{NamedFile, Target};
use crate::core::probe_result::ProbeResult;
use crate::core::probe_result::expect::Pattern;
use crate::core::probe_stats::TrackedProbe;
use crate::core::units::Moment;
use crate::metrics::{
    Handler, Metrics, MetricsFormat, ProbeSeries, Refusal, gzip_fast, write_page,
};

/// Requests to `/metrics` that may wait. One thread writes one page at a time; further clients have to come back, so
/// that a misbehaving scraper costs no memory.
const MAX_WAITING_SCRAPES: usize = 8;

/// Concurrent `/probe` requests, each with a probe of its own.
const MAX_CONCURRENT_PROBES: usize = 512;

/// Recordings in memory until their readers have them, each of up to 32 MiB.
const MAX_CONCURRENT_RECORDINGS: usize = 2;

/// Notifications of Alertmanager that are read concurrently, each at most 1 MiB.
const MAX_CONCURRENT_WEBHOOKS: usize = 32;

/// Notifications per second of one address; an Alertmanager sends a few a minute.
const WEBHOOK_RATE: NonZeroU32 = NonZeroU32::new(5000).unwrap();

/// `/-/healthy` fails when the schedule's heartbeat is older than this. It beats twice a second.
const STANDSTILL: Duration = Duration::from_secs(10);

/// One probe for a `/probe` request.
pub struct ProbeRequest {
    /// The target.
    pub target: Target,
    /// The transport and its settings.
    pub kind: ProbeKind,
    /// The timeout.
    pub timeout: Duration,
    /// Whether to describe each step.
    pub transcript: bool,
}

/// The result, with its steps in words if requested.
pub struct ProbeResponse {
    /// The result.
    pub result: ProbeResult,
    /// The steps, one line each; empty if not requested.
    pub steps: Vec<String>,
}

/// Runs one probe. The daemon provides it, since this module does not know the prober.
pub type RunProbe =
    Arc<dyn Fn(ProbeRequest) -> Pin<Box<dyn Future<Output = ProbeResponse> + Send>> + Send + Sync>;

/// Returns the newest recording of a revision, by namespace, release and revision. May take a while.
pub type FindRecording = Arc<dyn Fn(&str, &str, u32) -> Option<Vec<u8>> + Send + Sync>;

/// A request to reload the configuration, with a channel for the result.
pub type ReloadRequest = oneshot::Sender<Result<(), String>>;

/// What a reload of the configuration changes.
pub struct ServingConfig {
    /// The probes and their statistics, in the order of the configuration.
    pub series: Vec<ProbeSeries>,
    /// What `/probe?module=` may name.
    pub modules: BTreeMap<String, ModuleConfig>,
    /// Targets of configured probes, as [`Target`] prints them.
    pub targets: HashSet<String>,
    /// Further targets that `/probe` may be sent to.
    pub allow: Vec<Pattern>,
    /// Subtracted from the scrape timeout that a client announces.
    pub timeout_offset: Duration,
    /// Views of the releases.
    pub controllers: Vec<status::GuardFeed>,
    /// Receivers of orders, by namespace and name.
    pub orders: HashMap<(String, String), mpsc::Sender<RollbackOrder>>,
    /// Receivers of Alertmanager's alerts.
    pub alerts: Vec<AlertSubscriber>,
    /// The file with the bearer token for protected endpoints.
    pub token_file: Option<PathBuf>,
    /// Asks the cluster about other callers. Without this and the file all are rejected.
    pub review: Option<AccessReview>,
    /// The files that the configuration names, to report unusable ones.
    pub files: Vec<NamedFile>,
}

/// State of the server, shared by all handlers.
pub struct AppState {
    /// The daemon's own metrics.
    pub metrics: Arc<Metrics>,
    clock: fn() -> Moment,
    serving_config: RwLock<Arc<ServingConfig>>,
    alerts: ShardLists<status::AlertView>,
    objectives: ShardLists<Arc<status::ObjectiveView>>,
    ready: AtomicBool,
    beat: Box<dyn Fn() -> Moment + Send + Sync>,
    refresh: Box<dyn Fn() + Send + Sync>,
    troubles: Box<dyn Fn() -> Vec<&'static str> + Send + Sync>,
    take: RunProbe,
    recording: FindRecording,
    reload: mpsc::Sender<ReloadRequest>,
    answers: RwLock<Arc<Routing>>,
    /// Why the configuration on the disk is not in force, if so.
    reload_trouble: RwLock<Option<String>>,
    looked: readiness::ReadinessCache,
    scrapes: Semaphore,
    waiting_scrapes: Semaphore,
    response_budget: response_budget::ResponseBudget,
    forwards: leader_proxy::Permits,
    probes: Semaphore,
    probe_rate: DefaultDirectRateLimiter,
    recordings: Arc<Semaphore>,
    webhooks: Semaphore,
    webhook_rate: RateByAddress,
    remembered: webhook::AlertMemory,
}

/// Notifications of one address.
type RateByAddress = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// Source address of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionPeer(IpAddr);

/// What the daemon provides once, at the start.
pub struct Dependencies {
    /// The daemon's own metrics.
    pub metrics: Arc<Metrics>,
    /// The monotonic clock.
    pub clock: fn() -> Moment,
    /// The schedule's last heartbeat.
    pub beat: Box<dyn Fn() -> Moment + Send + Sync>,
    /// Updates gauges before a page is written.
    pub refresh: Box<dyn Fn() + Send + Sync>,
    /// Current troubles of the self-check.
    pub troubles: Box<dyn Fn() -> Vec<&'static str> + Send + Sync>,
    /// Runs a probe for `/probe`.
    pub take: RunProbe,
    /// Finds the recording of an analysis.
    pub recording: FindRecording,
    /// Receiver of reload requests.
    pub reload: mpsc::Sender<ReloadRequest>,
}

impl AppState {
    /// `serve` gives the limits; they hold until the process ends.
    pub fn new(
        dependencies: Dependencies,
        serving_config: ServingConfig,
        serve: &settings::ServeConfig,
    ) -> Self {
        let rate = NonZeroU32::new(serve.probe_rate).unwrap_or(NonZeroU32::MIN);
        Self {
            metrics: dependencies.metrics,
            clock: dependencies.clock,
            serving_config: RwLock::new(Arc::new(serving_config)),
            alerts: ShardLists::new(),
            objectives: ShardLists::new(),
            ready: AtomicBool::new(false),
            beat: dependencies.beat,
            refresh: dependencies.refresh,
            troubles: dependencies.troubles,
            take: dependencies.take,
            recording: dependencies.recording,
            reload: dependencies.reload,
            answers: RwLock::new(Arc::new(Routing::One(LeaderRoute::Here))),
            reload_trouble: RwLock::default(),
            looked: readiness::ReadinessCache::default(),
            scrapes: Semaphore::new(1),
            waiting_scrapes: Semaphore::new(MAX_WAITING_SCRAPES),
            response_budget: response_budget::ResponseBudget::new(),
            forwards: leader_proxy::Permits::new(),
            probes: Semaphore::new(MAX_CONCURRENT_PROBES),
            probe_rate: RateLimiter::direct(Quota::per_second(rate)),
            recordings: Arc::new(Semaphore::new(MAX_CONCURRENT_RECORDINGS)),
            webhooks: Semaphore::new(MAX_CONCURRENT_WEBHOOKS),
            webhook_rate: RateLimiter::hashmap(Quota::per_second(WEBHOOK_RATE)),
            remembered: webhook::AlertMemory::default(),
        }
    }

    /// Puts a new configuration in force.
    pub fn replace_serving_config(&self, serving_config: ServingConfig) {
        *self
            .serving_config
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(serving_config);
        self.looked.forget();
    }

    /// Sets whether traffic should come: from the first schedule to the signal to stop.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Sets which replica answers requests about releases; before that it is this one.
    pub fn set_answers(&self, answers: Routing) {
        let answers = Arc::new(answers);
        *self.answers.write().unwrap_or_else(PoisonError::into_inner) = answers;
    }

    fn answers(&self) -> Arc<Routing> {
        Arc::clone(&self.answers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes why the configuration on the disk is not in force; `None` if it is.
    pub fn note_reload(&self, trouble: Option<String>) {
        let mut noted = self
            .reload_trouble
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *noted = trouble;
    }

    fn reload_trouble(&self) -> Option<String> {
        let noted = self.reload_trouble.read();
        noted.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// Statistics of all probes.
    pub fn tracked_probe(&self) -> Vec<Arc<TrackedProbe>> {
        let serving_config = self.serving_config();
        let series = serving_config.series.iter();
        series
            .map(|series| Arc::clone(series.tracked_probe()))
            .collect()
    }

    /// Views of all releases; the phase is empty before the controller has started.
    pub fn controllers(&self) -> Vec<Arc<status::GuardView>> {
        let serving_config = self.serving_config();
        let views = serving_config
            .controllers
            .iter()
            .map(|feed| feed.borrow().clone());
        views.collect()
    }

    /// Publishes the alerts of one shard, beside those of the others.
    pub fn show_alerts(&self, of: &Shard, alerts: Vec<status::AlertView>) {
        self.alerts.show(of, alerts);
    }

    /// Publishes the objectives of one shard, beside those of the others.
    pub fn show_objectives(&self, of: &Shard, objectives: Vec<Arc<status::ObjectiveView>>) {
        self.objectives.show(of, objectives);
    }

    /// Removes everything of a shard that this replica no longer leads.
    pub fn show_nothing(&self, of: &Shard) {
        self.alerts.drop_shard(of);
        self.objectives.drop_shard(of);
    }

    fn alerts(&self) -> ShardedView<status::AlertView> {
        self.alerts.sharded_view()
    }

    fn objectives(&self) -> ShardedView<Arc<status::ObjectiveView>> {
        self.objectives.sharded_view()
    }

    fn serving_config(&self) -> Arc<ServingConfig> {
        Arc::clone(
            &self
                .serving_config
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

/// All routes.
pub fn router(shared: Arc<AppState>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/probe", get(probe::probe))
        .route("/-/healthy", get(healthy))
        .route("/healthz", get(healthy))
        .route("/-/ready", get(readiness::ready))
        .route("/readyz", get(readiness::ready))
        .route("/-/reload", post(reload))
        .route("/", get(status::page))
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/probes", get(api::probes))
        .route("/runbook", get(alerts::runbook))
        .route("/api/v1/alerts", get(alerts::all).post(webhook::take))
        .route("/api/v1/objectives", get(alerts::objectives))
        .route("/api/v1/releases", get(releases::all))
        .route("/api/v1/releases/{namespace}/{name}", get(releases::one))
        .route(
            "/api/v1/releases/{namespace}/{name}/rollouts",
            get(releases::rollouts),
        )
        .route(
            "/api/v1/releases/{namespace}/{name}/rollouts/{revision}",
            get(releases::rollout),
        )
        .route(
            "/api/v1/releases/{namespace}/{name}/rollouts/{revision}/recording",
            get(releases::recording),
        )
        .route(
            "/api/v1/releases/{namespace}/{name}/rollback",
            post(orders::roll_back),
        )
        .route(
            "/api/v1/releases/{namespace}/{name}/orders/{id}",
            get(orders::order),
        )
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not take this method",
            )
        })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&shared),
            leader_proxy::forward,
        ))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), count))
        .with_state(shared)
}

/// Counts each answer by handler and status; unknown paths share one handler name, so that clients cannot add series.
async fn count(State(shared): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let handler = match request.uri().path() {
        "/metrics" => Handler::Metrics,
        "/probe" => Handler::Probe,
        "/-/healthy" | "/healthz" => Handler::Healthy,
        "/-/ready" | "/readyz" => Handler::Ready,
        "/" | "/api/v1/status" | "/api/v1/probes" => Handler::Api,
        _ => Handler::Other,
    };
    let response = next.run(request).await;
    shared.metrics.request(handler, response.status().as_u16());
    response
}

async fn healthy(State(shared): State<Arc<AppState>>) -> Response {
    let silence = (shared.clock)().since((shared.beat)());
    if silence < STANDSTILL {
        return (StatusCode::OK, "Leadsman is healthy.\n").into_response();
    }
    let text = format!(
        "The schedule has stood still for {} s.\n",
        silence.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Maximum duration of a reload: controllers of changed releases have to hand over.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

async fn reload(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    if let Err(refused) = auth::allowed(&shared, Permission::Reload, &headers).await {
        return refused;
    }
    let (answer, answered) = oneshot::channel();
    match shared.reload.try_send(answer) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_)) => return too_busy("reloads are under way"),
        Err(mpsc::error::TrySendError::Closed(_)) => {
            let text = "this Leadsman has no configuration on the disk";
            return problem(StatusCode::CONFLICT, text);
        }
    }
    match tokio::time::timeout(RELOAD_PATIENCE, answered).await {
        Ok(Ok(Ok(()))) => (StatusCode::OK, "The configuration is in force.\n").into_response(),
        Ok(Ok(Err(why))) => problem(StatusCode::INTERNAL_SERVER_ERROR, &why),
        Ok(Err(_)) | Err(_) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing was heard of the reload; see the log",
        ),
    }
}

async fn metrics(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let Ok(_queued) = shared.waiting_scrapes.try_acquire() else {
        return too_busy("pages of /metrics are being written");
    };
    let Ok(_turn) = shared.scrapes.acquire().await else {
        return not_now(STOPPING);
    };
    let format = MetricsFormat::negotiate(text_of(&headers, header::ACCEPT));
    let gzip = accepts_gzip(text_of(&headers, header::ACCEPT_ENCODING));
    let theirs = Arc::clone(&shared);
    // Writing takes milliseconds with thousands of probes: off the threads that probe.
    let written = tokio::task::spawn_blocking(move || {
        let began = (theirs.clock)();
        (theirs.refresh)();
        let serving_config = theirs.serving_config();
        let mut page = Vec::new();
        write_page(
            &theirs.metrics,
            &serving_config.series,
            began,
            format,
            &mut page,
        );
        let page = if gzip { gzip_fast(&page) } else { Ok(page) };
        theirs.metrics.page_took((theirs.clock)().since(began));
        page
    })
    .await;
    let Ok(Ok(page)) = written else {
        return problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the page could not be written; see the log",
        );
    };
    match shared.response_budget.hold(page).await {
        Some(page) => page_response(page, format, gzip),
        None => too_busy(response_budget::WAITING),
    }
}

/// A page of metrics with the headers that Prometheus wants.
fn page_response(page: impl IntoResponse, format: MetricsFormat, gzip: bool) -> Response {
    let mut response = ([(header::CONTENT_TYPE, format.content_type())], page).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::VARY,
        header::HeaderValue::from_static("accept, accept-encoding"),
    );
    if gzip {
        headers.insert(
            header::CONTENT_ENCODING,
            header::HeaderValue::from_static("gzip"),
        );
    }
    response
}

/// Counts a request to `/probe` without a result.
fn refuse(shared: &AppState, refusal: Refusal, response: Response) -> Response {
    shared.metrics.refused(refusal);
    response
}

fn too_busy(what: &str) -> Response {
    not_now(&format!("too many {what} at once; try again"))
}

/// The text for callers during the stop.
const STOPPING: &str = "this Leadsman is stopping; try again";

/// A temporary refusal: nothing was done, and the caller may retry soon. `text` is a whole sentence.
fn not_now(text: &str) -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, text);
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    response
}

fn text_of(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
}

/// Whether `Accept-Encoding` names gzip (or anything) with a weight above zero.
fn accepts_gzip(accept: &str) -> bool {
    let mut any = false;
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let coding = parts.next().unwrap_or("");
        let refused = parts
            .filter_map(|part| part.strip_prefix("q="))
            .any(|weight| weight.parse().is_ok_and(|weight: f32| weight <= 0.0));
        match coding {
            "gzip" | "x-gzip" => return !refused,
            "*" => any = !refused,
            _ => {}
        }
    }
    any
}

#[cfg(test)]
mod tests {
    use super::accepts_gzip;

    #[test]
    fn gzip_is_sent_to_those_who_take_it() {
        for (accept, expected) in [
            ("", false),
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("*", true),
            ("*;q=0", false),
            ("gzip;q=0, *", false),
            ("identity", false),
        ] {
            assert_eq!(accepts_gzip(accept), expected, "{accept:?}");
        }
    }
}
