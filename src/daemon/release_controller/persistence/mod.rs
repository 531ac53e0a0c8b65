//! Reads the stored state before a release controller starts, and writes it.
//!
//! Invariants:
//! - a controller does not start while its state cannot be read: it would forget its ledger, its limit of rollbacks and
//!   a running rollback, and then overwrite them;
//! - one write is in progress at a time, and none is waited for after the permit is lost.

use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{ReleaseController, SAVE_EVERY, Startup, State};
use crate::core::rollout::Rollout;
use crate::core::units::Time;
use crate::daemon::probe_executor::ProbeResultMsg;
use crate::http::status::GuardView;
use crate::http::{DeclinedOrder, ReceivedAlert, RollbackOrder};
use crate::metrics::ObjectGauges;
use crate::release::{ObservedState, by_hand};
use crate::storage::{StoredKind, StoredState};

/// Maximum wait for the disk before a rollback goes on without it.
const SAVE_PATIENCE: Duration = Duration::from_secs(3);

/// First wait after a failed read; it doubles with each further one.
const READ_AGAIN: Duration = Duration::from_millis(500);

/// Longest wait between reads: the API server's return must be noticed within the runbook's time to detect.
const READ_AGAIN_AT_MOST: Duration = Duration::from_secs(15);

/// Concurrent reads: a replica that takes over two thousand releases must not run into the API server's limits.
static READING: Semaphore = Semaphore::const_new(8);

/// A controller that waits for its stored state.
pub(in crate::daemon) struct Posted {
    pub(super) setup: Startup,
    handed_over: Option<State>,
    pub(super) release_state: watch::Receiver<ObservedState>,
    pub(super) results: mpsc::Receiver<ProbeResultMsg>,
    pub(super) view: watch::Sender<std::sync::Arc<GuardView>>,
    pub(super) orders: mpsc::Receiver<RollbackOrder>,
    pub(super) alerts: mpsc::Receiver<ReceivedAlert>,
}

impl Posted {
    pub(in crate::daemon) const fn new(
        setup: Startup,
        handed_over: Option<State>,
        release_state: watch::Receiver<ObservedState>,
        results: mpsc::Receiver<ProbeResultMsg>,
        view: watch::Sender<std::sync::Arc<GuardView>>,
        orders: mpsc::Receiver<RollbackOrder>,
        alerts: mpsc::Receiver<ReceivedAlert>,
    ) -> Self {
        Self {
            setup,
            handed_over,
            release_state,
            results,
            view,
            orders,
            alerts,
        }
    }

    /// Runs until `stop` is cancelled; then returns the state for the successor. `None` if the state was never read.
    pub(in crate::daemon) async fn run(mut self, stop: CancellationToken) -> Option<State> {
        let limits = self.setup.release.controller.limits();
        let mut state = match self.handed_over.take() {
            // It is still the same turn.
            Some(state) => state,
            None => Box::pin(self.read(&stop)).await?,
        };
        state.rollout.set_limits(limits);
        let release = &self.setup.release;
        let (namespace, name) = (release.namespace.clone(), release.name.clone());
        state.rollout.set_by_hand(move |target| {
            by_hand::commands(name.as_str(), namespace.as_str(), target)
        });
        // What was heard meanwhile is no news, and would all fall into one tick.
        while self.results.try_recv().is_ok() {}
        Some(Box::pin(ReleaseController::new(self, state).run(stop)).await)
    }

    /// Reads the state until it is known. `None` if `stop` is cancelled or the permit is lost before.
    async fn read(&mut self, stop: &CancellationToken) -> Option<State> {
        let permit = self.setup.permit.clone();
        let mut wait = READ_AGAIN;
        loop {
            let found = tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                () = permit.lost() => return None,
                found = self.ask() => found,
            };
            let why = match found {
                Ok(state) => return Some(state),
                Err(why) => why,
            };
            self.cannot_tell(&why);
            let again = Instant::now() + wait;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return None,
                    () = permit.lost() => return None,
                    () = tokio::time::sleep_until(again) => break,
                    Some(order) = self.orders.recv() => {
                        let why = format!("{why}; try again when it can be");
                        let _ = order.answer.send(Err(DeclinedOrder::NotNow(why)));
                    }
                }
            }
            wait = (wait * 2).min(READ_AGAIN_AT_MOST);
        }
    }

    /// Reads the state once, or says why it is unknown.
    async fn ask(&self) -> Result<State, String> {
        let release = &self.setup.release;
        let limits = release.controller.limits();
        let anew = |now: Time| State::new(Rollout::new(limits, now));
        let mut state = anew(self.setup.timeline.now());
        let mut fence = self.setup.permit.fence().unwrap_or(0);
        if let Some(store) = self.setup.store.clone() {
            // Never closed; without a place it would only be quicker.
            let place = READING.acquire().await;
            let (namespace, name) = (release.namespace.clone(), release.name.clone());
            let timeline = self.setup.timeline;
            let reads = tokio::task::spawn_blocking(move || {
                let found =
                    store.load::<State>(StoredKind::State, &namespace, &name, timeline.now());
                (found, store.fence(StoredKind::State, &namespace, &name))
            });
            let (found, number) = reads.await.map_err(|error| error.to_string())?;
            drop(place);
            fence = fence.max(number);
            match found {
                StoredState::Nothing => {}
                StoredState::Unknown(why) => {
                    return Err(format!("its state cannot be read yet: {why}"));
                }
                StoredState::Quarantined(why) => tracing::warn!(release = %release.name, "{why}"),
                StoredState::State(stored) => match stored.bounded() {
                    Ok(stored) => state = stored,
                    Err(why) => {
                        tracing::warn!(release = %release.name, "The stored state is not used, because {why}; the release is followed anew");
                    }
                },
            }
        }
        state.fence = (state.fence + 1).max(fence);
        Ok(state)
    }

    /// Publishes that the release is not analyzed yet, and why.
    fn cannot_tell(&self, why: &str) {
        let release = &self.setup.release;
        tracing::warn!(release = %release.name, "It is not guarded yet: {why}");
        let releases = &self.setup.executor.metrics().releases;
        releases.state_failed();
        let seen = ObjectGauges {
            unreadable: 0,
            blind: true,
            watch_failures: self.release_state.borrow().failures,
        };
        releases.sees(release.namespace.as_str(), release.name.as_str(), &seen);
        let view = GuardView {
            namespace: release.namespace.to_string(),
            release: release.name.to_string(),
            mode: release.controller.mode.as_str(),
            engine: Some(self.setup.engine.name()),
            says: format!("It is not guarded yet: {why}"),
            blind: Some(why.to_owned()),
            ..GuardView::default()
        };
        self.view.send_replace(std::sync::Arc::new(view));
        self.setup.changed.notify_one();
    }
}

impl ReleaseController {
    /// Writes the state. A slow or full disk is logged once and blocks nothing; losing the permit ends the wait.
    pub(super) async fn save(&mut self, urgent: bool) {
        let Some(store) = self.setup.store.clone() else {
            return;
        };
        let permit = self.setup.permit.clone();
        let now = self.now();
        let patience = if urgent { SAVE_PATIENCE } else { SAVE_EVERY };
        self.last_save = now;
        let saves = tokio::time::timeout(patience, async {
            if let Some(earlier) = &mut self.writing {
                // What came of it was said, or is of no matter: this one holds more.
                let _ = earlier.await;
            }
            let release = &self.setup.release;
            let (namespace, name) = (release.namespace.clone(), release.name.clone());
            self.state.images = self.setup.engine.run_images();
            let state = self.state.clone();
            self.is_dirty = false;
            let writes = tokio::task::spawn_blocking(move || {
                store.save(StoredKind::State, &namespace, &name, &state, now)
            });
            let written = self.writing.insert(writes).await;
            self.writing = None;
            written.map_err(|error| error.to_string())
        });
        let written = tokio::select! {
            written = saves => written,
            () = permit.lost() => return,
        };
        let error = match written {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("not written within {} s", patience.as_secs())),
        };
        let fails = error.is_some();
        if let Some(error) = error {
            self.is_dirty = true;
            self.setup.executor.metrics().releases.state_failed();
            if !self.save_fails {
                tracing::error!(release = %self.setup.release.name, error,
                    "The state cannot be written; judging goes on, but a restart would forget what happens now");
            }
        } else if self.save_fails {
            tracing::info!(release = %self.setup.release.name, "The state is written again");
        }
        self.save_fails = fails;
    }
}

#[cfg(test)]
mod tests;
