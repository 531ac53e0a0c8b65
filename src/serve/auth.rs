//! Who may change something: whoever knows the bearer token of `serve.token_file`.

use std::path::Path;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use sha2::{Digest as _, Sha256};

use super::problem::problem;

/// Only who knows the token may change something.
pub(super) async fn allowed(
    token_file: Option<&Path>,
    headers: &HeaderMap,
) -> Result<(), Response> {
    let Some(file) = token_file else {
        let text = "nobody may change anything here; name a file with a token by serve.token_file";
        return Err(problem(StatusCode::FORBIDDEN, text));
    };
    let Ok(token) = tokio::fs::read(file).await else {
        let text = "the file of serve.token_file cannot be read";
        return Err(problem(StatusCode::INTERNAL_SERVER_ERROR, text));
    };
    let token = token.trim_ascii();
    let given = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let given = given.and_then(|value| value.strip_prefix(b"Bearer "));
    // Digests are compared, so that how long it takes tells nothing of the token.
    let is_it = given.is_some_and(|given| Sha256::digest(given) == Sha256::digest(token));
    if token.is_empty() || !is_it {
        let mut response = problem(
            StatusCode::UNAUTHORIZED,
            "this takes the bearer token of serve.token_file",
        );
        let scheme = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, scheme);
        return Err(response);
    }
    Ok(())
}
