//! `/api/v1/alerts`: what is wrong, and who was told; and the runbook that alerts link to.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Shared;
use super::api::scraped;

/// What to do about each alert; shipped with the program, so that it is there when nothing else is.
const RUNBOOK: &str = include_str!("runbook.html");

/// The alerts that live.
pub(super) async fn all(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    scraped(shared, &headers, |shared| {
        serde_json::to_vec(&json!({ "alerts": shared.alerts() }))
    })
    .await
}

/// What is promised, and how it stands.
pub(super) async fn objectives(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    scraped(shared, &headers, |shared| {
        serde_json::to_vec(&json!({ "objectives": shared.objectives() }))
    })
    .await
}

pub(super) async fn runbook() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, RUNBOOK).into_response()
}
