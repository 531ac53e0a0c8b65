//! `/api/v1/releases…`: the guarded releases, each by itself, and the revisions that were judged.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

use super::Shared;
use super::api::scraped;
use super::problem::problem;
use super::status;
use super::status::GuardView;

pub(super) async fn all(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    scraped(shared, &headers, |shared| {
        let releases = status::releases(&shared.board(), (shared.clock)());
        serde_json::to_vec(&json!({ "releases": releases }))
    })
    .await
}

pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let is_it = move |view: &GuardView| view.namespace == namespace && view.release == name;
    let releases = status::releases(&shared.board(), (shared.clock)());
    let Some(release) = releases.into_iter().find(|release| is_it(&release.guard)) else {
        return unknown();
    };
    scraped(shared, &headers, move |_| serde_json::to_vec(&release)).await
}

pub(super) async fn rollouts(
    State(shared): State<Arc<Shared>>,
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
    State(shared): State<Arc<Shared>>,
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

fn guarded(shared: &Shared, namespace: &str, name: &str) -> Option<Arc<GuardView>> {
    let board = shared.board();
    let mut views = board.guards.iter().map(|feed| feed.borrow().clone());
    views.find(|view| view.namespace == namespace && view.release == name)
}

fn unknown() -> Response {
    problem(
        StatusCode::NOT_FOUND,
        "no such release is guarded here; /api/v1/releases names those that are",
    )
}
