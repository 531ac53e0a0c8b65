//! Persists the counters of the long windows: every minute, and at the stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::core::probe_stats::TrackedProbe;
use crate::core::units::{ClockShift, HasTimes, Namespace, ReleaseName, Time};
use crate::core::window::LongWindows;
use crate::metrics::Metrics;
use crate::platform::clock::{self, Timeline};
use crate::storage::{StateStore, StoredKind, StoredState};

/// What a crash may lose; the windows are minutes to weeks long.
const EVERY: Duration = Duration::from_secs(60);

/// Counters of one release, and when they were written, on both time lines.
#[derive(Debug, Serialize, Deserialize)]
struct StoredCounters {
    saved: Time,
    /// Seconds since the machine's start.
    monotonic_s: u64,
    /// Long windows by probe name.
    probes: BTreeMap<Box<str>, LongWindows>,
    /// Long windows of the latency objective by probe name, with the promised latency in milliseconds.
    #[serde(default)]
    slow: BTreeMap<Box<str>, (u64, LongWindows)>,
}

impl HasTimes for StoredCounters {
    fn shift(&mut self, by: ClockShift) {
        self.saved.shift(by);
    }
}

/// Returns the probes that run now.
pub(super) type ProbeSource = Box<dyn Fn() -> Vec<Arc<TrackedProbe>> + Send + Sync>;

/// Writes the counters of all probes until `stop` is cancelled.
pub(super) async fn keep(
    store: Arc<StateStore>,
    timeline: Timeline,
    metrics: Arc<Metrics>,
    probes: ProbeSource,
    stop: CancellationToken,
) {
    let mut fails = false;
    loop {
        let stopped = tokio::time::timeout(EVERY, stop.cancelled()).await.is_ok();
        let (tracked_probe, store) = (probes(), Arc::clone(&store));
        let written =
            tokio::task::spawn_blocking(move || write(&store, timeline.now(), &tracked_probe))
                .await;
        let error = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if error.is_some() {
            metrics.releases.state_failed();
        }
        if let Some(error) = error.as_ref().filter(|_| !fails) {
            tracing::error!(
                error,
                "The counters of the long spans cannot be written; a restart would forget them"
            );
        }
        fails = error.is_some();
        if stopped {
            return;
        }
    }
}

fn write(
    store: &StateStore,
    now: Time,
    tracked_probe: &[Arc<TrackedProbe>],
) -> std::io::Result<()> {
    let monotonic_s = monotonic_s();
    let releases = by_release(tracked_probe);
    // One release after the other: the counters of ten thousand probes need not be in memory twice.
    for ((namespace, release), probes) in releases {
        if !store.is_known(StoredKind::Spans, &namespace, &release) {
            // It could not be read so far. What was counted meanwhile is less than what is stored.
            restore_of(store, now, &namespace, &release, &probes);
        }
        let mut kept = StoredCounters {
            saved: now,
            monotonic_s,
            probes: BTreeMap::new(),
            slow: BTreeMap::new(),
        };
        for tracked_probe in probes {
            let probe = tracked_probe.probe();
            let name = probe.id.probe.as_str();
            let stats = tracked_probe.lock();
            kept.probes
                .insert(name.into(), stats.long_windows().clone());
            if let Some((promised, long_windows)) = stats.slow() {
                let slow = (millis(promised), long_windows.clone());
                kept.slow.insert(name.into(), slow);
            }
        }
        store.save(StoredKind::Spans, &namespace, &release, &kept, now)?;
    }
    Ok(())
}

/// Restores the stored counters of new probes.
pub(super) fn restore(store: &StateStore, now: Time, new: &[Arc<TrackedProbe>]) {
    for ((namespace, release), probes) in by_release(new) {
        restore_of(store, now, &namespace, &release, &probes);
    }
}

type ProbedRelease<'a> = BTreeMap<(Namespace, ReleaseName), Vec<&'a Arc<TrackedProbe>>>;

fn by_release(probes: &[Arc<TrackedProbe>]) -> ProbedRelease<'_> {
    let mut releases = ProbedRelease::new();
    for tracked_probe in probes {
        let id = tracked_probe.probe().id.clone();
        // Nothing is promised of a dependency, so that nobody asks for its long spans.
        if id.is_dependency() {
            continue;
        }
        let of = releases.entry((id.namespace, id.release)).or_default();
        of.push(tracked_probe);
    }
    releases
}

fn restore_of(
    store: &StateStore,
    now: Time,
    namespace: &Namespace,
    release: &ReleaseName,
    probes: &[&Arc<TrackedProbe>],
) {
    let mut kept: StoredCounters = match store.load(StoredKind::Spans, namespace, release, now) {
        StoredState::Nothing => return,
        StoredState::State(kept) => kept,
        StoredState::Quarantined(why) | StoredState::Unknown(why) => {
            tracing::warn!(%release, "{why}");
            return;
        }
    };
    // Where the machine is the same, only the rounding of both clocks is left; that is no move.
    let should = kept
        .monotonic_s
        .saturating_add(now.since(kept.saved).as_secs());
    let moved = monotonic_s()
        .cast_signed()
        .saturating_sub(should.cast_signed());
    let moved = if moved.abs() <= 5 { 0 } else { moved };
    for tracked_probe in probes {
        let name = tracked_probe.probe().id.probe.clone();
        if let Some(long_windows) = kept.probes.remove(name.as_str()) {
            tracked_probe
                .lock()
                .restore_long_windows(long_windows.moved(moved));
        }
        if let Some((promised, long_windows)) = kept.slow.remove(name.as_str()) {
            let promised = Duration::from_millis(promised);
            tracked_probe
                .lock()
                .restore_slow(promised, long_windows.moved(moved));
        }
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn monotonic_s() -> u64 {
    clock::now().nanos() / 1_000_000_000
}
