//! The demo's app: one pod, whose revision contains its behaviour.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// The four endpoints of the runbook, with the names of their probes.
pub(super) const ENDPOINTS: [(&str, &str); 4] = [
    ("api", "/api/health"),
    ("db", "/api/health/db"),
    ("redis", "/api/health/redis"),
    ("web", "/"),
];

/// Pods of a revision that says nothing else; one more while a revision takes the place of another.
pub(super) const REPLICAS: usize = 3;

/// Requests that a pod with a limit answers at once, in seconds of the limit.
const BURST_S: f64 = 10.0;

/// What a pod that leaks loses each second: the share of requests that fail.
const LEAK_PER_S: f64 = 0.02;

const PAGE: &str = "<!doctype html><title>Demo app</title><p>The app that Leadsman probes.</p>\n";

/// How a revision of the app behaves; its contents in the history.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct AppBehaviour {
    /// What people call it.
    pub(super) image: String,
    /// From the start of a pod until it is Ready.
    pub(super) start_ms: u64,
    /// Pods that serve; 0 is [`REPLICAS`].
    pub(super) replicas: usize,
    /// Its pods go before the new ones start, as by the strategy `Recreate`.
    pub(super) stops_first: bool,
    /// From then until it answers well.
    pub(super) cold_ms: u64,
    /// Share of requests that fail meanwhile; 0 is all.
    pub(super) cold_error_rate: f64,
    /// How long an answer takes.
    pub(super) answer_ms: u64,
    /// Requests that a pod answers in a minute; above it, it says 429. 0 is no limit.
    pub(super) per_minute: u32,
    /// Share of requests that fail.
    pub(super) error_rate: f64,
    /// Paths that never answer well; `*` is every path.
    pub(super) dead: Vec<String>,
    /// It crashes so long after its start, again and again.
    pub(super) crash_after_ms: Option<u64>,
    /// So long after its start it runs out of memory: from then on two requests more in a hundred fail each second.
    pub(super) leaks_after_ms: Option<u64>,
    /// What happens around it, whichever revision serves.
    pub(super) weather: Surroundings,
}

impl AppBehaviour {
    pub(super) fn replicas(&self) -> usize {
        match self.replicas {
            0 => REPLICAS,
            some => some,
        }
    }
}

/// What happens around the app, counted from the moment when the revision that brings it is deployed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Surroundings {
    /// From then on the database is down for every pod, old and new.
    pub(super) db_down_after_ms: Option<u64>,
    /// Everything fails from then on for so long.
    pub(super) blip_ms: Option<(u64, u64)>,
}

/// The weather that is on, for all pods.
#[derive(Debug, Default)]
pub(super) struct SharedSurroundings {
    pub(super) db_is_down: AtomicBool,
    pub(super) all_is_down: AtomicBool,
}

/// One pod's state, as its requests see it.
pub(super) struct DemoPod {
    pub(super) behaviour: AppBehaviour,
    pub(super) started: Instant,
    pub(super) sky: Arc<SharedSurroundings>,
    /// What is left of the limit, and when that was.
    pub(super) left: Mutex<(f64, Instant)>,
}

impl DemoPod {
    pub(super) fn new(behaviour: &AppBehaviour, sky: &Arc<SharedSurroundings>) -> Self {
        let left = BURST_S * f64::from(behaviour.per_minute) / 60.0;
        Self {
            behaviour: behaviour.clone(),
            started: Instant::now(),
            sky: Arc::clone(sky),
            left: Mutex::new((left, Instant::now())),
        }
    }

    /// Whether the limit leaves room for one request more: a bucket of tokens.
    fn is_within_limit(&self) -> bool {
        if self.behaviour.per_minute == 0 {
            return true;
        }
        let rate = f64::from(self.behaviour.per_minute) / 60.0;
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let tokens = (left.0 + left.1.elapsed().as_secs_f64() * rate).min(BURST_S * rate);
        let is_within = tokens >= 1.0;
        *left = (tokens - f64::from(u8::from(is_within)), Instant::now());
        is_within
    }

    /// The share of requests that fails for want of memory.
    fn leaked(&self) -> f64 {
        let after = self.behaviour.leaks_after_ms.map(Duration::from_millis);
        let leaks_for = after.map(|after| self.started.elapsed().saturating_sub(after));
        leaks_for.map_or(0.0, |time| time.as_secs_f64() * LEAK_PER_S)
    }

    fn answers_well(&self, path: &str) -> bool {
        let behaviour = &self.behaviour;
        let warm = Duration::from_millis(behaviour.start_ms + behaviour.cold_ms);
        let is_dead = behaviour
            .dead
            .iter()
            .any(|dead| dead == "*" || dead == path);
        let fails_cold =
            behaviour.cold_error_rate <= 0.0 || fastrand::f64() < behaviour.cold_error_rate;
        let is_cold = behaviour.cold_ms > 0 && self.started.elapsed() < warm && fails_cold;
        let db_is_down = path == "/api/health/db" && self.sky.db_is_down.load(Ordering::Relaxed);
        let error_rate = behaviour.error_rate + self.leaked();
        let is_lucky = error_rate <= 0.0 || fastrand::f64() >= error_rate;
        let all_is_down = self.sky.all_is_down.load(Ordering::Relaxed);
        is_lucky && !(is_dead || is_cold || db_is_down || all_is_down)
    }
}

/// The four endpoints of one pod.
pub(super) fn router(pod: Arc<DemoPod>) -> Router {
    Router::new().fallback(answer).with_state(pod)
}

/// The database of the app, which belongs to no revision: as much of one as a probe sees.
pub(super) fn database(sky: Arc<SharedSurroundings>) -> Router {
    let answer = async |State(sky): State<Arc<SharedSurroundings>>| {
        if sky.db_is_down.load(Ordering::Relaxed) {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        }
    };
    Router::new().fallback(answer).with_state(sky)
}

async fn answer(State(pod): State<Arc<DemoPod>>, request: Request) -> Response {
    let path = request.uri().path();
    if !ENDPOINTS.iter().any(|(_, known)| *known == path) {
        return StatusCode::NOT_FOUND.into_response();
    }
    if !pod.is_within_limit() {
        return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "5")]).into_response();
    }
    if pod.behaviour.answer_ms > 0 {
        tokio::time::sleep(Duration::from_millis(pod.behaviour.answer_ms)).await;
    }
    if !pod.answers_well(path) {
        let body = r#"{"status": "failing"}"#;
        let kind = [(header::CONTENT_TYPE, "application/json")];
        return (StatusCode::SERVICE_UNAVAILABLE, kind, body).into_response();
    }
    if path == "/" {
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE).into_response()
    } else {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, r#"{"status": "ok"}"#).into_response()
    }
}
