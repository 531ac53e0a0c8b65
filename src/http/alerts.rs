//! `/api/v1/alerts`, `/api/v1/objectives`, and the runbook that alerts link to.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::AppState;
use super::api::scraped;
use super::fan_out::{FanOutEntry, fan_out};
use super::runbook;
use super::status::{AlertView, ObjectiveView};

#[derive(Serialize)]
struct AlertsBody<'a> {
    alerts: Vec<FanOutEntry<'a, &'a AlertView>>,
}

#[derive(Serialize)]
struct ObjectivesBody<'a> {
    objectives: Vec<FanOutEntry<'a, &'a Arc<ObjectiveView>>>,
}

/// The current alerts.
pub(super) async fn all(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let gathered = match fan_out(&shared, "/api/v1/alerts", &headers).await {
        Ok(gathered) => gathered,
        Err(refused) => return refused,
    };
    scraped(shared, &headers, move |shared| {
        let own = shared.alerts();
        let heard = gathered.read();
        let alerts = heard.alerts(own.iter(), |alert| alert.about());
        serde_json::to_vec(&AlertsBody { alerts })
    })
    .await
}

/// The objectives and their state.
pub(super) async fn objectives(
    State(shared): State<Arc<AppState>>,
    headers: HeaderMap,
) -> Response {
    let gathered = match fan_out(&shared, "/api/v1/objectives", &headers).await {
        Ok(gathered) => gathered,
        Err(refused) => return refused,
    };
    scraped(shared, &headers, move |shared| {
        let own = shared.objectives();
        let heard = gathered.read();
        let objectives = heard.objectives(own.iter(), |objective| {
            Some((&objective.namespace, &objective.release))
        });
        serde_json::to_vec(&ObjectivesBody { objectives })
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
    (headers, runbook::PAGE.as_str()).into_response()
}
