//! Logs an outage of a receiver: once when it starts, and once when it is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is known of a receiver.
#[derive(Debug, Default)]
enum ReceiverState {
    /// Nothing was sent to it yet.
    #[default]
    Untried,
    Works,
    Fails(Instant),
}

#[derive(Debug, Default)]
pub(super) struct FailureLog(Mutex<ReceiverState>);

impl FailureLog {
    pub(super) fn since(&self) -> Option<Instant> {
        match *self.state() {
            ReceiverState::Fails(since) => Some(since),
            ReceiverState::Untried | ReceiverState::Works => None,
        }
    }

    /// Whether anything was sent, so that it is known whether it arrives.
    pub(super) fn is_known(&self) -> bool {
        !matches!(*self.state(), ReceiverState::Untried)
    }

    /// Nothing arrives.
    pub(super) fn fails(&self, receiver: &str, why: &str) {
        let mut state = self.state();
        if !matches!(*state, ReceiverState::Fails(_)) {
            *state = ReceiverState::Fails(Instant::now());
            tracing::warn!(receiver, "What is sent does not arrive: {why}");
        }
    }

    /// Something arrived.
    pub(super) fn works(&self, receiver: &str) {
        if let ReceiverState::Fails(_) = std::mem::replace(&mut *self.state(), ReceiverState::Works)
        {
            tracing::info!(receiver, "What is sent arrives again");
        }
    }

    fn state(&self) -> MutexGuard<'_, ReceiverState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
