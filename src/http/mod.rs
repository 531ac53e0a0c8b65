//! The HTTP listener: `/metrics`, `/probe`, `/-/healthy`, `/-/ready`, the JSON API.
//!
//! Invariants:
//! - whatever a client does is bounded: connections, the size of a request's head, the time it may take, the number of
//!   pages written at once;
//! - whatever changes something or shows evidence is behind `auth`, and nothing shows a secret;
//! - an error is `application/problem+json` (RFC 9457), but for `/probe` and `/-/…`, whose users expect plain text.

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

/// Pages of `/metrics` that may wait for their turn. A page is written by one thread at a time; more clients than
/// this are told to come back, so that a misbehaving scraper costs no memory.
const MAX_WAITING_SCRAPES: usize = 8;

/// `/probe` requests under way at a time, each with a result of its own.
const MAX_CONCURRENT_PROBES: usize = 512;

/// Recordings that are read at a time and until their readers have them, each of up to 32 MiB.
const MAX_CONCURRENT_RECORDINGS: usize = 2;

/// Notifications of Alertmanager that are read at a time, each at most 1 MiB.
const MAX_CONCURRENT_WEBHOOKS: usize = 32;

/// Notifications of one address in a second; an Alertmanager sends a few in a minute.
const WEBHOOK_RATE: NonZeroU32 = NonZeroU32::new(5000).unwrap();

/// Without a sign of life from the schedule for so long, `/-/healthy` fails. The schedule beats twice a second.
const STANDSTILL: Duration = Duration::from_secs(10);

/// One result on behalf of a `/probe` request.
pub struct ProbeRequest {
    /// Whom to ask.
    pub target: Target,
    /// How.
    pub kind: ProbeKind,
    /// How long it may take.
    pub timeout: Duration,
    /// Whether to write down each step.
    pub transcript: bool,
}

/// What came of it, with the steps in words when they were asked for.
pub struct ProbeResponse {
    /// The result.
    pub result: ProbeResult,
    /// The steps, one line each; empty unless asked for.
    pub steps: Vec<String>,
}

/// Takes one result; given by the daemon, since this module does not know the prober.
pub type RunProbe =
    Arc<dyn Fn(ProbeRequest) -> Pin<Box<dyn Future<Output = ProbeResponse> + Send>> + Send + Sync>;

/// The bytes of the newest recording of a release's revision: namespace, name, revision. May take a while.
pub type FindRecording = Arc<dyn Fn(&str, &str, u32) -> Option<Vec<u8>> + Send + Sync>;

/// Somebody wants the configuration read again, and waits to hear what came of it.
pub type ReloadRequest = oneshot::Sender<Result<(), String>>;

/// What changes when the configuration is read again.
pub struct ServingConfig {
    /// The probes and what is known of them, in the order of the configuration.
    pub series: Vec<ProbeSeries>,
    /// What `/probe?module=` may name.
    pub modules: BTreeMap<String, ModuleConfig>,
    /// Targets of configured probes, as [`Target`] prints them.
    pub targets: HashSet<String>,
    /// Further targets that `/probe` may be sent to.
    pub allow: Vec<Pattern>,
    /// Subtracted from the scrape timeout that a client announces.
    pub timeout_offset: Duration,
    /// Guarded releases.
    pub controllers: Vec<status::GuardFeed>,
    /// Who takes orders for them, by namespace and name.
    pub orders: HashMap<(String, String), mpsc::Sender<RollbackOrder>>,
    /// Who takes alerts of Alertmanager.
    pub alerts: Vec<AlertSubscriber>,
    /// The file with the bearer token that may change something and see evidence.
    pub token_file: Option<PathBuf>,
    /// Asks the cluster about other callers; without both nobody may.
    pub review: Option<AccessReview>,
    /// The files that the configuration names, to say which of them cannot be used.
    pub files: Vec<NamedFile>,
}

/// What the handlers share.
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
    /// Why the configuration on the disk is not the one in force, if so.
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

/// Whose connection it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ConnectionPeer(IpAddr);

/// What the daemon hands over once, at the start.
pub struct Dependencies {
    /// The daemon's own metrics.
    pub metrics: Arc<Metrics>,
    /// The monotonic clock.
    pub clock: fn() -> Moment,
    /// The last sign of life of the schedule.
    pub beat: Box<dyn Fn() -> Moment + Send + Sync>,
    /// Brings gauges up to date before a page is written.
    pub refresh: Box<dyn Fn() + Send + Sync>,
    /// Troubles of our own that are in force.
    pub troubles: Box<dyn Fn() -> Vec<&'static str> + Send + Sync>,
    /// Probes for `/probe`.
    pub take: RunProbe,
    /// Finds the recording of a watch.
    pub recording: FindRecording,
    /// Whoever can read the configuration again.
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

    /// Puts a new configuration before the clients.
    pub fn replace_serving_config(&self, serving_config: ServingConfig) {
        *self
            .serving_config
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(serving_config);
        self.looked.forget();
    }

    /// Says whether traffic should come: from the first schedule to the signal to stop.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    /// Says who answers for what is asked about releases; until it is said that is this replica.
    pub fn set_answers(&self, answers: Routing) {
        let answers = Arc::new(answers);
        *self.answers.write().unwrap_or_else(PoisonError::into_inner) = answers;
    }

    fn answers(&self) -> Arc<Routing> {
        Arc::clone(&self.answers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes why the configuration on the disk is not the one in force; `None` when it is.
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

    /// All probes that are shown.
    pub fn tracked_probe(&self) -> Vec<Arc<TrackedProbe>> {
        let serving_config = self.serving_config();
        let series = serving_config.series.iter();
        series
            .map(|series| Arc::clone(series.tracked_probe()))
            .collect()
    }

    /// What is shown of each guarded release; the phase is empty before its guard has begun.
    pub fn controllers(&self) -> Vec<Arc<status::GuardView>> {
        let serving_config = self.serving_config();
        let views = serving_config
            .controllers
            .iter()
            .map(|feed| feed.borrow().clone());
        views.collect()
    }

    /// Puts the alerts of one share before the clients, beside those of the others.
    pub fn show_alerts(&self, of: &Shard, alerts: Vec<status::AlertView>) {
        self.alerts.show(of, alerts);
    }

    /// Puts the objectives of one share before the clients, beside those of the others.
    pub fn show_objectives(&self, of: &Shard, objectives: Vec<Arc<status::ObjectiveView>>) {
        self.objectives.show(of, objectives);
    }

    /// Nobody here looks after this share any more.
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

/// How long reading the configuration may take: as long as the guards of changed releases need to hand over.
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

/// Counts a request to `/probe` that gets no result.
fn refuse(shared: &AppState, refusal: Refusal, response: Response) -> Response {
    shared.metrics.refused(refusal);
    response
}

fn too_busy(what: &str) -> Response {
    not_now(&format!("too many {what} at once; try again"))
}

/// What whoever asks is told while we end.
const STOPPING: &str = "this Leadsman is stopping; try again";

/// For the moment: nothing was done, and whoever asks again soon may have more luck. A whole sentence.
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
