//! Since when nothing arrives at a receiver: said once when it begins, and once when it is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What is known of a receiver.
#[derive(Debug, Default)]
enum State {
    /// Nothing was sent to it yet.
    #[default]
    Untried,
    Works,
    Fails(Instant),
}

#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<State>);

impl Failing {
    pub(super) fn since(&self) -> Option<Instant> {
        match *self.state() {
            State::Fails(since) => Some(since),
            State::Untried | State::Works => None,
        }
    }

    /// Whether anything was sent, so that it is known whether it arrives.
    pub(super) fn is_known(&self) -> bool {
        !matches!(*self.state(), State::Untried)
    }

    /// Nothing arrives.
    pub(super) fn fails(&self, receiver: &str, why: &str) {
        let mut state = self.state();
        if !matches!(*state, State::Fails(_)) {
            *state = State::Fails(Instant::now());
            tracing::warn!(receiver, "What is sent does not arrive: {why}");
        }
    }

    /// Something arrived.
    pub(super) fn works(&self, receiver: &str) {
        if let State::Fails(_) = std::mem::replace(&mut *self.state(), State::Works) {
            tracing::info!(receiver, "What is sent arrives again");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
