//! The interval of each probe: its own, or the shorter one of a running analysis.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::probe_executor::ProbeTask;
use crate::core::units::{Namespace, ProbeId, ProbeName, ReleaseName};
use crate::prober::schedule::{Schedule, ScheduledSlot};

type PacedRelease = (Namespace, ReleaseName);

#[derive(Default)]
struct WantedInterval {
    runners: Vec<Arc<ProbeTask>>,
    watched: HashMap<PacedRelease, AnalyzedRelease>,
}

/// A release with a running analysis.
struct AnalyzedRelease {
    interval: Duration,
    /// Dependencies that its probes need.
    needs: Vec<ProbeName>,
}

impl WantedInterval {
    /// The interval in force. A dependency runs as often as the most frequent probe that needs it.
    fn interval(&self, id: &ProbeId, own: Duration) -> Duration {
        let watched = if id.is_dependency() {
            let those = self.watched.values();
            let those = those.filter(|one| one.needs.contains(&id.probe));
            those.map(|one| one.interval).min()
        } else {
            let release = (id.namespace.clone(), id.release.clone());
            self.watched.get(&release).map(|one| one.interval)
        };
        watched.unwrap_or(own)
    }
}

/// The schedule, and the releases that override intervals in it.
pub(super) struct IntervalOverrides {
    schedule: Mutex<Option<Schedule<Arc<ProbeTask>>>>,
    wanted: Mutex<WantedInterval>,
}

impl IntervalOverrides {
    pub(super) fn new(schedule: Schedule<Arc<ProbeTask>>) -> Self {
        Self {
            schedule: Mutex::new(Some(schedule)),
            wanted: Mutex::new(WantedInterval::default()),
        }
    }

    /// Replaces all probes of the schedule.
    pub(super) fn set(&self, runners: Vec<Arc<ProbeTask>>) {
        self.change(|wanted| wanted.runners = runners);
    }

    /// Sets the interval of a release's probes and their dependencies during an analysis; `None` restores their own.
    pub(super) fn watch(
        &self,
        release: PacedRelease,
        interval: Option<Duration>,
        needs: Vec<ProbeName>,
    ) {
        self.change(|wanted| {
            match interval {
                Some(interval) => wanted
                    .watched
                    .insert(release, AnalyzedRelease { interval, needs }),
                None => wanted.watched.remove(&release),
            };
        });
    }

    fn change(&self, change: impl FnOnce(&mut WantedInterval)) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wanted);
        let slots = wanted.runners.iter().map(|runner| {
            let probe = &runner.probe;
            let interval = wanted.interval(&probe.id, probe.interval);
            let mut stats = runner.tracked_probe.lock();
            stats.taken_every(interval, probe.interval);
            drop(stats);
            ScheduledSlot {
                key: probe.id.clone(),
                interval,
                payload: Arc::clone(runner),
            }
        });
        let schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(schedule) = &*schedule {
            schedule.set(slots.collect());
        }
    }

    /// Stops the schedule.
    pub(super) fn stop(&self) {
        let schedule = self
            .schedule
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(schedule) = schedule {
            schedule.stop();
        }
    }
}
