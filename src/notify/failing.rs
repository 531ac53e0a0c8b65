//! Since when nothing arrives at a receiver: said once when it begins, and once when it is over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Failing(Mutex<Option<Instant>>);

impl Failing {
    pub(super) fn since(&self) -> Option<Instant> {
        *self.state()
    }

    /// Nothing arrives.
    pub(super) fn fails(&self, receiver: &str, why: &str) {
        let mut since = self.state();
        if since.is_none() {
            *since = Some(Instant::now());
            tracing::warn!(receiver, "What is sent does not arrive: {why}");
        }
    }

    /// Something arrived.
    pub(super) fn works(&self, receiver: &str) {
        if self.state().take().is_some() {
            tracing::info!(receiver, "What is sent arrives again");
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
