//! `/api/v1/releases…`: releases, and their analyzed revisions.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::AppState;
use super::api::scraped;
use super::auth::{Permission, allowed};
use super::fan_out::{FanOutEntry, fan_out};
use super::problem::problem;
use super::response_budget::until_taken;
use super::status;
use super::status::{GuardView, ReleaseView};

#[derive(Serialize)]
struct ReleasesBody<'a> {
    releases: Vec<FanOutEntry<'a, ReleaseView>>,
}

pub(super) async fn all(State(shared): State<Arc<AppState>>, headers: HeaderMap) -> Response {
    let gathered = match fan_out(&shared, "/api/v1/releases", &headers).await {
        Ok(gathered) => gathered,
        Err(refused) => return refused,
    };
    scraped(shared, &headers, move |shared| {
        let own = status::releases(shared, &shared.serving_config(), (shared.clock)());
        let releases = gathered.read().releases(own);
        serde_json::to_vec(&ReleasesBody { releases })
    })
    .await
}

pub(super) async fn one(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let is_it = move |view: &GuardView| view.namespace == namespace && view.release == name;
    let releases = status::releases(&shared, &shared.serving_config(), (shared.clock)());
    let Some(release) = releases
        .into_iter()
        .find(|release| is_it(&release.controller))
    else {
        return unknown();
    };
    scraped(shared, &headers, move |_| serde_json::to_vec(&release)).await
}

pub(super) async fn rollouts(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(view) = guarded(&shared, &namespace, &name) else {
        return unknown();
    };
    scraped(shared, &headers, move |_| {
        serde_json::to_vec(&json!({ "rollouts": view.rollouts }))
    })
    .await
}

pub(super) async fn rollout(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name, revision)): Path<(String, String, u32)>,
    headers: HeaderMap,
) -> Response {
    let Some(view) = guarded(&shared, &namespace, &name) else {
        return unknown();
    };
    let mut rollouts = view.rollouts.iter().rev();
    let Some(rollout) = rollouts
        .find(|rollout| rollout.revision == revision)
        .cloned()
    else {
        return problem(
            StatusCode::NOT_FOUND,
            "no watch of this revision has ended here",
        );
    };
    scraped(shared, &headers, move |_| serde_json::to_vec(&rollout)).await
}

/// The recording of an analysis, as `leadsman explain` reads it: JSON Lines. It contains logs and differences of
/// values. Secrets are redacted, but it is protected as evidence.
pub(super) async fn recording(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name, revision)): Path<(String, String, u32)>,
    headers: HeaderMap,
) -> Response {
    if !is_possible(&namespace, &name) {
        return unknown();
    }
    let permission = Permission::ReadRecording(namespace.clone(), name.clone());
    if let Err(refused) = allowed(&shared, permission, &headers).await {
        return refused;
    }
    if guarded(&shared, &namespace, &name).is_none() {
        return unknown();
    }
    // A recording has some megabytes, and many readers would fill the memory.
    let Ok(turn) = Arc::clone(&shared.recordings).try_acquire_owned() else {
        return super::too_busy("recordings are being read");
    };
    let find = Arc::clone(&shared.recording);
    let found = tokio::task::spawn_blocking(move || find(&namespace, &name, revision)).await;
    match found {
        Ok(Some(bytes)) => {
            let kind = (header::CONTENT_TYPE, "application/jsonl");
            ([kind], until_taken(bytes, turn)).into_response()
        }
        Ok(None) | Err(_) => problem(
            StatusCode::NOT_FOUND,
            "there is no recording of this revision here; `state` in the configuration says where they are kept",
        ),
    }
}

pub(super) fn guarded(shared: &AppState, namespace: &str, name: &str) -> Option<Arc<GuardView>> {
    let serving_config = shared.serving_config();
    let mut views = serving_config
        .controllers
        .iter()
        .map(|feed| feed.borrow().clone());
    views.find(|view| view.namespace == namespace && view.release == name)
}

/// Longer names do not exist in a cluster.
const MAX_NAME: usize = 253;

/// Whether such a release can exist; the cluster is not asked about others.
pub(super) fn is_possible(namespace: &str, name: &str) -> bool {
    [namespace, name].iter().all(|name| name.len() <= MAX_NAME)
}

pub(super) fn unknown() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "no such release is guarded here; /api/v1/releases names those that are",
    )
}
