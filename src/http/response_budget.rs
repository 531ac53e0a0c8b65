//! Bodies within limits: how long a request's body may take to arrive, and how much memory unread answers may hold.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::problem::problem;

/// Maximum time for the body of a request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Memory of all answers that clients have not read yet. A page has some kilobytes for a few probes and some megabytes
/// for thousands, so slow readers are closed only if they cost much.
const MAX_UNTAKEN: usize = 64 * 1024 * 1024;

/// Within this time a reader has begun, and a closed one has ended.
const GRACE: Duration = Duration::from_secs(1);

/// The text for too many unread answers.
pub(super) const WAITING: &str = "answers wait to be taken by their readers";

/// What that memory is counted in.
const UNIT: usize = 1024;

/// Reads the body of a request, or returns why not.
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

/// Bytes with a permit that is returned when the last of them was sent or dropped.
pub(super) fn until_taken(bytes: Vec<u8>, permit: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(HeldBytes {
        bytes,
        _permit: permit,
    })
}

struct HeldBytes {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

tokio::task_local! {
    /// Closes the connection that is being answered.
    pub(super) static CLOSE: CancellationToken;
}

/// Answers that were sent, but not read yet.
pub(super) struct ResponseBudget {
    room: Arc<Semaphore>,
    holders: Mutex<VecDeque<BudgetedResponse>>,
}

/// An answer that a client may not have read yet.
struct BudgetedResponse {
    since: Instant,
    units: u32,
    is_held: Weak<()>,
    close: CancellationToken,
}

impl ResponseBudget {
    /// Without answers.
    pub(super) fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MAX_UNTAKEN / UNIT)),
            holders: Mutex::default(),
        }
    }

    /// Counts an answer until it was read. If there is no room, closes the clients that have had theirs for longest;
    /// `None` if all of them have just been answered.
    pub(super) async fn hold(&self, bytes: Vec<u8>) -> Option<Bytes> {
        // One that is larger than all of it goes alone.
        let units = bytes.len().div_ceil(UNIT).min(MAX_UNTAKEN / UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room);
        let permit = if let Ok(permit) = Arc::clone(&room).try_acquire_many_owned(units) {
            permit
        } else {
            if !self.make_room(units) {
                return None;
            }
            let acquired = tokio::time::timeout(GRACE, room.acquire_many_owned(units));
            acquired.await.ok()?.ok()?
        };
        let held = Arc::new(());
        if let Ok(close) = CLOSE.try_with(CancellationToken::clone) {
            let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
            holders.retain(|holder| holder.is_held.strong_count() > 0);
            holders.push_back(BudgetedResponse {
                since: Instant::now(),
                units,
                is_held: Arc::downgrade(&held),
                close,
            });
        }
        Some(Bytes::from_owner(CountedBody {
            held: HeldBytes {
                bytes,
                _permit: permit,
            },
            _is_held: held,
        }))
    }

    /// Closes clients that have had their answers for longest, until there is enough room. Returns whether there was
    /// any.
    fn make_room(&self, units: u32) -> bool {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.is_held.strong_count() > 0);
        let mut freed = self.room.available_permits();
        let mut has_closed = false;
        while freed < units as usize
            && holders
                .front()
                .is_some_and(|first| first.since.elapsed() >= GRACE)
            && let Some(holder) = holders.pop_front()
        {
            holder.close.cancel();
            freed += holder.units as usize;
            has_closed = true;
        }
        has_closed
    }
}

struct CountedBody {
    held: HeldBytes,
    _is_held: Arc<()>,
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        self.held.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_takes_hold_a_bounded_memory() {
        let response_budget = ResponseBudget::new();
        let half = || vec![0; MAX_UNTAKEN / 2];
        let first = response_budget.hold(half()).await.unwrap();
        let second = response_budget.hold(half()).await.unwrap();
        assert!(response_budget.hold(vec![0]).await.is_none());
        // What is sent in pieces counts until the last of them has gone.
        let piece = first.slice(..10);
        drop(first);
        assert!(response_budget.hold(vec![0]).await.is_none());
        drop(piece);
        assert!(response_budget.hold(vec![0]).await.is_some());
        drop(second);
        assert!(
            response_budget
                .hold(vec![0; MAX_UNTAKEN + 1])
                .await
                .is_some()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_had_an_answer_for_longest_makes_room_for_the_next_one() {
        let response_budget = Arc::new(ResponseBudget::new());
        let client = || {
            let (close, response_budget) = (CancellationToken::new(), Arc::clone(&response_budget));
            let closed = close.clone();
            let held = tokio::spawn(CLOSE.scope(close.clone(), async move {
                let held = response_budget.hold(vec![0; MAX_UNTAKEN / 2]).await;
                let is_held = held.is_some();
                closed.cancelled().await;
                is_held
            }));
            (close, held)
        };
        let first = client();
        tokio::task::yield_now().await;
        let second = client();
        tokio::task::yield_now().await;
        // They have just been answered, and may be about to take it.
        assert!(response_budget.hold(vec![0]).await.is_none());
        tokio::time::advance(GRACE).await;
        let third = response_budget.hold(vec![0]).await;
        assert!(third.is_some());
        assert!(first.0.is_cancelled() && !second.0.is_cancelled());
        assert!(first.1.await.unwrap());
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
