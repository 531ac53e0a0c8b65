//! Bodies within limits: how long one may take to come, and how much memory those hold that are sent and not yet taken.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::problem;

/// How long the body of a request may take to come.
const PATIENCE: Duration = Duration::from_secs(5);

/// The memory of all answers that clients have not taken yet. A page has some kilobytes for a few probes and some
/// megabytes for thousands, so readers that are slow are only refused where they would cost much.
const MAX_UNTAKEN: usize = 64 * 1024 * 1024;

/// Of what there are too many then.
pub(super) const WAITING: &str = "answers wait to be taken by their readers";

/// What that memory is counted in.
const UNIT: usize = 1024;

/// Reads the body of a request, or says why not.
pub(super) async fn read(body: Body, most: usize) -> Result<Bytes, Response> {
    match tokio::time::timeout(PATIENCE, axum::body::to_bytes(body, most)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let text = format!("the body is cut off, or larger than {most} bytes");
            Err(problem(StatusCode::PAYLOAD_TOO_LARGE, &text))
        }
        Err(_) => {
            let text = format!("the body does not come within {} s", PATIENCE.as_secs());
            Err(problem(StatusCode::REQUEST_TIMEOUT, &text))
        }
    }
}

/// Bytes with a permit that is given back when the last of them has been sent, or nobody wants them any more.
pub(super) fn until_taken(bytes: Vec<u8>, permit: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(Held {
        bytes,
        _permit: permit,
    })
}

struct Held {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Answers that are sent, and not yet taken.
pub(super) struct Untaken(Arc<Semaphore>);

impl Untaken {
    /// There are none.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_UNTAKEN / UNIT)))
    }

    /// Counts an answer until it has been taken; `None` when others hold too much memory.
    pub(super) fn hold(&self, bytes: Vec<u8>) -> Option<Bytes> {
        // One that is larger than all of it goes alone.
        let units = bytes.len().div_ceil(UNIT).min(MAX_UNTAKEN / UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.0).try_acquire_many_owned(units).ok()?;
        Some(until_taken(bytes, permit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nobody_takes_hold_a_bounded_memory() {
        let untaken = Untaken::new();
        let half = || vec![0; MAX_UNTAKEN / 2];
        let first = untaken.hold(half()).unwrap();
        let second = untaken.hold(half()).unwrap();
        assert!(untaken.hold(vec![0]).is_none());
        // What is sent in pieces counts until the last of them has gone.
        let piece = first.slice(..10);
        drop(first);
        assert!(untaken.hold(vec![0]).is_none());
        drop(piece);
        assert!(untaken.hold(vec![0]).is_some());
        drop(second);
        assert!(untaken.hold(vec![0; MAX_UNTAKEN + 1]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_dribbles_is_given_up() {
        let pieces = futures::stream::unfold((), |()| async {
            tokio::time::sleep(PATIENCE / 3).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        let slow = read(Body::from_stream(pieces), 1024).await.unwrap_err();
        assert_eq!(slow.status(), StatusCode::REQUEST_TIMEOUT);
        let large = read(Body::from("too large"), 3).await.unwrap_err();
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(read(Body::from("well"), 10).await.unwrap(), "well");
    }
}
