//! `…/rollback` and `…/orders/{id}`: a person orders a rollback, and hears what became of that order.
//!
//! Invariants:
//! - an order has an id, which is kept with the rollout that it makes or joins: nobody is told of another's result;
//! - an order that is sent again with the same `Idempotency-Key` is the same order, also after a restart; one to another
//!   revision is a mistake;
//! - what cannot be done is refused before anything changes.

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

/// The header that says that it is the same order as before.
pub(super) const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The longest key, in bytes.
const MAX_KEY: usize = 128;

/// The largest body that is read.
const MAX_BODY: usize = 16 * 1024;

/// The longest reason, in bytes.
pub const MAX_REASON: usize = 500;

/// How long the controller may take to look whether it can be done.
const ANSWER: Duration = Duration::from_secs(15);

/// A person wants the newest revision of a release rolled back.
#[derive(Debug)]
pub struct RollbackOrder {
    /// The revision to go back to; without one it is chosen as after a verdict.
    pub target: Option<u32>,
    /// Why; not empty, at most [`MAX_REASON`] bytes.
    pub reason: String,
    /// What tells an order that is sent again from a new one; at most 128 bytes.
    pub key: Option<Box<str>>,
    /// What became of it: the look before the rollback has been taken by then.
    pub answer: oneshot::Sender<Result<AcceptedOrder, DeclinedOrder>>,
}

/// An order that is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AcceptedOrder {
    /// Its id; several orders for the same rollback have one.
    pub id: String,
    /// The revision that is rolled back.
    pub revision: u32,
    /// The revision that it goes back to, as far as that is known.
    pub target: Option<u32>,
    /// Whether that rollback was under way before this order came.
    pub joined: bool,
}

/// Why an order is not carried out. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeclinedOrder {
    /// There is no such release or revision: 404.
    Unknown(String),
    /// It is in conflict with what there is, or something is in the way: 409.
    Conflict(String),
    /// It cannot be said at the moment: 503, and the same order may be sent again.
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

/// The key of an order; an error in words when it cannot be one.
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

/// Nobody takes orders for it: because it is only probed, or not known at all.
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

/// What became of an order.
#[derive(Serialize)]
struct OrderView<'a> {
    id: &'a str,
    /// `running` or `ended`.
    state: &'static str,
    /// The revision that is rolled back.
    revision: u32,
    /// Where the release stands, in a sentence.
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
