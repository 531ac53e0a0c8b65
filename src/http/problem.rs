//! Errors in the format of RFC 9457.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

/// `application/problem+json` with the status' own title and the details.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    let body = serde_json::json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or("Error"),
        "status": status.as_u16(),
        "detail": detail,
    });
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}
