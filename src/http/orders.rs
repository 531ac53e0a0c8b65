//! `…/rollback` and `…/orders/{id}`: a person orders a rollback, and follows its progress.
//!
//! Invariants:
//! - an order has an id, which is stored with the rollout that it starts or joins, so no caller gets another order's
//!   result;
//! - an order that is sent again with the same `Idempotency-Key` is the same order, also after a restart; with another
//!   revision it is an error;
//! - an order that cannot be carried out is refused before anything changes.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use super::AppState;
use super::api::scraped;
use super::auth::{Permission, allowed};
use super::problem::problem;
use super::releases::{guarded, is_possible, unknown};
use super::status::{GuardView, RolloutView};

/// The header that identifies a repeated order.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest key, in bytes.
const MAX_KEY: usize = 128;

/// The largest body that is read.
const MAX_BODY: usize = 16 * 1024;

/// The longest reason, in bytes.
pub const MAX_REASON: usize = 500;

/// Maximum time for the controller to check an order.
const ANSWER: Duration = Duration::from_secs(15);

/// An order to roll back the newest revision of a release.
#[derive(Debug)]
pub struct RollbackOrder {
    /// The revision to roll back to; without one it is chosen as after a verdict.
    pub target: Option<u32>,
    /// The reason; not empty, at most [`MAX_REASON`] bytes.
    pub reason: String,
    /// Identifies a repeated order; at most 128 bytes.
    pub key: Option<Box<str>>,
    /// The answer, sent after the order was checked.
    pub answer: oneshot::Sender<Result<AcceptedOrder, DeclinedOrder>>,
}

/// An accepted order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcceptedOrder {
    /// Its id; several orders for the same rollback share one.
    pub id: String,
    /// The revision that is rolled back.
    pub revision: u32,
    /// The target, if known.
    pub target: Option<u32>,
    /// Whether the rollback was running before this order.
    pub joined: bool,
}

/// Why an order was declined. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeclinedOrder {
    /// There is no such release or revision: 404.
    Unknown(String),
    /// It conflicts with the current state, or a check failed: 409.
    Conflict(String),
    /// Unknown at the moment: 503, and the same order may be sent again.
    NotNow(String),
}

/// The body of an order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OrderBody {
    #[serde(default)]
    revision: Option<u32>,
    reason: String,
}

/// Takes the order for a rollback.
pub(super) async fn roll_back(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    if !is_possible(&namespace, &name) {
        return unknown();
    }
    let permission = Permission::RollBack(namespace.clone(), name.clone());
    if let Err(refused) = allowed(&shared, permission, &headers).await {
        return refused;
    }
    let serving_config = shared.serving_config();
    let body = match super::response_budget::read(body, MAX_BODY).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let asked: OrderBody = match serde_json::from_slice(&body) {
        Ok(asked) => asked,
        Err(error) => return problem(StatusCode::BAD_REQUEST, &format!("the body: {error}")),
    };
    if asked.reason.trim().is_empty() || asked.reason.len() > MAX_REASON {
        let text = format!("a rollback takes a reason of at most {MAX_REASON} bytes");
        return problem(StatusCode::BAD_REQUEST, &text);
    }
    let key = match key_of(&headers) {
        Ok(key) => key,
        Err(text) => return problem(StatusCode::BAD_REQUEST, &text),
    };
    let Some(orders) = serving_config
        .orders
        .get(&(namespace.clone(), name.clone()))
    else {
        return not_guarded(&shared, &namespace, &name);
    };
    let (answer, answered) = oneshot::channel();
    let order = RollbackOrder {
        target: asked.revision,
        reason: asked.reason,
        key,
        answer,
    };
    if orders.try_send(order).is_err() {
        return super::too_busy("orders for this release are waiting");
    }
    match tokio::time::timeout(ANSWER, answered).await {
        Ok(Ok(Ok(accepted))) => (StatusCode::ACCEPTED, axum::Json(accepted)).into_response(),
        Ok(Ok(Err(DeclinedOrder::Unknown(why)))) => problem(StatusCode::NOT_FOUND, &why),
        Ok(Ok(Err(DeclinedOrder::Conflict(why)))) => problem(StatusCode::CONFLICT, &why),
        Ok(Ok(Err(DeclinedOrder::NotNow(why)))) => super::not_now(&why),
        // It has ended without a look at the order.
        Ok(Err(_)) => super::not_now("this release is not guarded at the moment; try again"),
        // The order waits, and is carried out all the same.
        Err(_) => problem(
            StatusCode::GATEWAY_TIMEOUT,
            "the order has not been looked at yet, so it may still be carried out; send it again with the same \
             Idempotency-Key, or look before you repeat it",
        ),
    }
}

/// The key of an order, or why it is invalid.
fn key_of(headers: &HeaderMap) -> Result<Option<Box<str>>, String> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("").trim();
    let fits = (1..=MAX_KEY).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(text.into()));
    }
    Err(format!(
        "the Idempotency-Key must have 1 to {MAX_KEY} visible ASCII characters"
    ))
}

/// The answer for a release that takes no orders: it is only probed, or unknown.
fn not_guarded(shared: &AppState, namespace: &str, name: &str) -> Response {
    let is_probed = shared.serving_config().series.iter().any(|series| {
        let id = &series.tracked_probe().probe().id;
        id.namespace.as_str() == namespace && id.release.as_str() == name
    });
    if !is_probed {
        return unknown();
    }
    let text = format!(
        "{namespace}/{name} is only probed: without [kubernetes] its revisions are not known here and cannot be \
         rolled back"
    );
    problem(StatusCode::CONFLICT, &text)
}

/// State of an order.
#[derive(Serialize)]
struct OrderView<'a> {
    id: &'a str,
    /// `running` or `ended`.
    state: &'static str,
    /// The revision that is rolled back.
    revision: u32,
    /// State of the release, as a sentence.
    says: &'a str,
    /// How it ended, if it did.
    rollout: Option<&'a RolloutView>,
}

pub(super) async fn order(
    State(shared): State<Arc<AppState>>,
    Path((namespace, name, id)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(view) = guarded(&shared, &namespace, &name) else {
        return unknown();
    };
    if view.phase.is_empty() {
        return super::not_now("the state of this release is being read; try again");
    }
    if find(&view, &id).is_none() {
        return problem(
            StatusCode::NOT_FOUND,
            "there is no such order here; an order is forgotten when the release is installed anew, and after 50 later \
             rollouts",
        );
    }
    scraped(shared, &headers, move |_| {
        serde_json::to_vec(&json!(find(&view, &id)))
    })
    .await
}

fn find<'a>(view: &'a GuardView, id: &'a str) -> Option<OrderView<'a>> {
    let is_it = |order: &Option<String>| order.as_deref() == Some(id);
    let says = view.says.as_str();
    if let Some(candidate) = view
        .candidate
        .as_ref()
        .filter(|candidate| is_it(&candidate.order))
    {
        return Some(OrderView {
            id,
            state: "running",
            revision: candidate.revision,
            says,
            rollout: None,
        });
    }
    let mut ended = view.rollouts.iter().rev();
    let rollout = ended.find(|rollout| is_it(&rollout.order))?;
    Some(OrderView {
        id,
        state: "ended",
        revision: rollout.revision,
        says,
        rollout: Some(rollout),
    })
}
