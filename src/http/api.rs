//! `/api/v1/probes`: statistics of each probe, as JSON. Durations are in seconds, times in seconds since 1970.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::problem::problem;
use super::{AppState, STOPPING, accepts_gzip, not_now, response_budget, text_of, too_busy};
use crate::core::probe_result::{PhaseTimes, Reason, UnknownReason};
use crate::core::probe_stats::{LastResult, ProbeStatsView};
use crate::core::units::{ErrorRate, Moment};
use crate::core::window::{Counts, LongWindow, Quantile};
use crate::metrics::{ProbeSeries, gzip_fast};

pub(super) async fn probes(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    scraped(shared, &headers, |shared| {
        let now = (shared.clock)();
        let serving_config = shared.serving_config();
        let probes: Vec<Value> = serving_config
            .series
            .iter()
            .map(|series| one(series, now))
            .collect();
        serde_json::to_vec(&json!({ "probes": probes }))
    })
    .await
}

/// Writes an answer that visits every probe: on a blocking thread, one at a time, with a bounded queue.
pub(super) async fn scraped(
    shared: Arc<AppState>,
    headers: &HeaderMap,
    write: impl FnOnce(&AppState) -> serde_json::Result<Vec<u8>> + Send + 'static,
) -> Response {
    let Ok(_queued) = shared.waiting_scrapes.try_acquire() else {
        return too_busy("pages are being written");
    };
    let Ok(_turn) = shared.scrapes.acquire().await else {
        return not_now(STOPPING);
    };
    let gzip = accepts_gzip(text_of(headers, header::ACCEPT_ENCODING));
    let theirs = Arc::clone(&shared);
    let written = tokio::task::spawn_blocking(move || {
        let body = write(&theirs)?;
        Ok::<_, std::io::Error>(if gzip { gzip_fast(&body)? } else { body })
    })
    .await;
    let Ok(Ok(body)) = written else {
        return problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the answer could not be written; see the log",
        );
    };
    let Some(body) = shared.response_budget.hold(body).await else {
        return too_busy(response_budget::WAITING);
    };
    let kind = [
        (header::CONTENT_TYPE, "application/json"),
        // It is true for a second; nobody between us and the reader should keep it.
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "accept-encoding"),
    ];
    let mut response = (kind, body).into_response();
    if gzip {
        let gzip = HeaderValue::from_static("gzip");
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, gzip);
    }
    response
}

fn one(series: &ProbeSeries, now: Moment) -> Value {
    let probe = series.tracked_probe().probe();
    let (view, by_reason, recent) = {
        let mut stats = series.tracked_probe().lock();
        let recent: Vec<_> = stats.recent().collect();
        (stats.view(now), stats.window().reasons(now), recent)
    };
    let is_dependency = probe.id.is_dependency();
    json!({
        "is_dependency": is_dependency,
        "namespace": probe.id.namespace,
        "release": probe.id.release,
        "probe": probe.id.probe,
        "target": probe.target.shown(),
        "interval_seconds": seconds(probe.interval),
        "timeout_seconds": seconds(probe.timeout),
        "last": view.last.as_ref().map(last),
        "last_success_timestamp_seconds": view.last_success_unix,
        "consecutive_failures": view.consecutive_failures,
        "certificate_expiry_timestamp_seconds": view.certificate_expiry,
        "window": window(probe.window, &view, &by_reason),
        "spans": long_windows(&view),
        "totals": totals(&view),
        "recent": recent.iter().map(|(outcome, latency)| json!({
            "result": outcome.words().0,
            "reason": outcome.words().1,
            "latency_seconds": seconds(*latency),
        })).collect::<Vec<_>>(),
    })
}

fn last(last: &LastResult) -> Value {
    let (result, reason) = last.outcome.words();
    json!({
        "timestamp_seconds": last.unix,
        "result": result,
        "reason": reason,
        "explanation": last.explanation.as_deref(),
        "latency_seconds": seconds(last.latency),
        "phases_seconds": phases(&last.phases),
        "status": last.status,
        "http_version": last.http_version,
    })
}

fn window(span: Duration, view: &ProbeStatsView, by_reason: &[u32; Reason::COUNT]) -> Value {
    let failure: Map<String, Value> = Reason::ALL
        .iter()
        .zip(by_reason)
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| (reason.as_str().to_owned(), json!(count)))
        .collect();
    let quantiles: Map<String, Value> = Quantile::ALL
        .iter()
        .zip(view.quantiles)
        .map(|(quantile, latency)| (quantile_name(*quantile), json!(latency.map(seconds))))
        .collect();
    json!({
        "seconds": seconds(span),
        "success": view.window.success,
        "failure": failure,
        "unknown": view.window.unknown,
        "missed": view.window.missed,
        "error_ratio": view.window.error_rate().map(ErrorRate::ratio),
        "latency_seconds": quantiles,
    })
}

fn long_windows(view: &ProbeStatsView) -> Value {
    let of = |counts: &Counts| {
        json!({
            "success": counts.success,
            "failure": counts.failure,
            "unknown": counts.unknown,
            "error_ratio": counts.error_rate().map(ErrorRate::ratio),
        })
    };
    let named = LongWindow::ALL
        .iter()
        .zip(&view.long_windows)
        .map(|(span, counts)| (span.as_str().to_owned(), of(counts)));
    Value::Object(named.collect())
}

fn totals(view: &ProbeStatsView) -> Value {
    let failure: Map<String, Value> = Reason::ALL
        .iter()
        .zip(view.totals.failure)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.as_str().to_owned(), json!(count)))
        .collect();
    let unknown: Map<String, Value> = UnknownReason::ALL
        .iter()
        .zip(view.totals.unknown)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.as_str().to_owned(), json!(count)))
        .collect();
    json!({ "success": view.totals.success, "failure": failure, "unknown": unknown, "missed": view.totals.missed })
}

fn phases(phases: &PhaseTimes) -> Value {
    Value::Object(
        phases
            .named()
            .iter()
            .map(|(name, span)| ((*name).to_owned(), json!(seconds(*span))))
            .collect(),
    )
}

fn quantile_name(quantile: Quantile) -> String {
    // 500 → p50, 999 → p999: without the zero that a whole percentage would end in.
    let per_mille = quantile.per_mille();
    if per_mille.is_multiple_of(10) {
        format!("p{}", per_mille / 10)
    } else {
        format!("p{per_mille}")
    }
}

fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}
