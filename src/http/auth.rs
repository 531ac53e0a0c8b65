//! Authorization of callers that change something or read evidence. A caller needs the bearer token of
//! `serve.token_file`, or, with `serve.kubernetes_auth`, an account that the cluster allows it. Without either key
//! these endpoints reject all requests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use sha2::{Digest as _, Sha256};

use super::problem::problem;
use super::{AppState, not_now};
use crate::platform::files::named::MAX_SECRET;
use crate::platform::files::read_theirs;

/// A protected operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// Order a rollback of a release, by namespace and name.
    RollBack(String, String),
    /// Read a recording of a release, by namespace and name. It contains logs.
    ReadRecording(String, String),
    /// Send alerts as evidence.
    SendAlerts,
    /// Reload the configuration.
    Reload,
}

/// The cluster's answer about a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthDecision {
    /// Allowed; the caller's name, for the log.
    Allowed(String),
    /// Not allowed; the caller's name.
    Forbidden(String),
    /// The cluster does not know the caller.
    Unauthenticated,
    /// The cluster does not answer.
    Unknown(String),
}

/// Asks the cluster about a token. The daemon provides it, since this module does not know the cluster.
pub type AccessReview = Arc<
    dyn Fn(String, Permission) -> Pin<Box<dyn Future<Output = AuthDecision> + Send>> + Send + Sync,
>;

/// Admits a caller, or answers why not.
pub(super) async fn allowed(
    shared: &AppState,
    permission: Permission,
    headers: &HeaderMap,
) -> Result<(), Response> {
    let serving_config = shared.serving_config();
    if serving_config.token_file.is_none() && serving_config.review.is_none() {
        let text = "nobody may do this here; name a file with a token by serve.token_file, or set \
                    serve.kubernetes_auth in a cluster";
        return Err(problem(StatusCode::FORBIDDEN, text));
    }
    let given = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .and_then(bearer)
        .filter(|token| !token.is_empty());
    let Some(given) = given else {
        return Err(unauthenticated("this takes a bearer token"));
    };
    let mut unreadable = false;
    if let Some(file) = &serving_config.token_file {
        match read(file).await {
            Some(token) if is_equal(&token, given) => return Ok(()),
            Some(_) => {}
            None => unreadable = true,
        }
    }
    let (Some(review), Ok(given)) = (&serving_config.review, str::from_utf8(given)) else {
        return Err(if unreadable {
            let text = "the file of serve.token_file cannot be read, or is empty";
            problem(StatusCode::INTERNAL_SERVER_ERROR, text)
        } else {
            unauthenticated("this is not the bearer token of serve.token_file")
        });
    };
    match review(given.to_owned(), permission.clone()).await {
        AuthDecision::Allowed(user) => {
            tracing::info!(user, ?permission, "Let somebody in whom the cluster lets");
            Ok(())
        }
        AuthDecision::Forbidden(user) => {
            tracing::warn!(
                user,
                ?permission,
                "Refused somebody whom the cluster does not let"
            );
            let text = format!("{user} may not; this needs {}", needed(&permission));
            Err(problem(StatusCode::FORBIDDEN, &text))
        }
        AuthDecision::Unauthenticated => {
            Err(unauthenticated("nobody here knows this bearer token"))
        }
        AuthDecision::Unknown(why) => {
            tracing::warn!(why, "Cannot say who a caller is");
            let text = format!(
                "nobody can say at the moment who has this token ({why}), so it is of no use; try again"
            );
            Err(not_now(&text))
        }
    }
}

/// The token of an Authorization header; the scheme's case does not matter (RFC 9110).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

async fn read(file: &std::path::Path) -> Option<Vec<u8>> {
    let file = file.to_owned();
    let read = tokio::task::spawn_blocking(move || read_theirs(&file, MAX_SECRET));
    let bytes = read.await.ok()?.ok()?;
    let token = bytes.trim_ascii();
    (!token.is_empty()).then(|| token.to_vec())
}

/// Compares digests, so that the time it takes reveals nothing about the token.
fn is_equal(one: &[u8], other: &[u8]) -> bool {
    Sha256::digest(one) == Sha256::digest(other)
}

/// The rule that a Role needs.
fn needed(permission: &Permission) -> String {
    match permission {
        Permission::RollBack(namespace, _) => {
            format!("create on releases/rollback of leadsman.io in {namespace}")
        }
        Permission::ReadRecording(namespace, _) => {
            format!("get on releases/recording of leadsman.io in {namespace}")
        }
        Permission::SendAlerts => "post on the non-resource URL /api/v1/alerts".into(),
        Permission::Reload => "post on the non-resource URL /-/reload".into(),
    }
}

fn unauthenticated(text: &str) -> Response {
    let mut response = problem(StatusCode::UNAUTHORIZED, text);
    let scheme = HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, scheme);
    response
}
