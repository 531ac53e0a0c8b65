//! The first sign of trouble of a revision, from which the second of the two clocks of the detection counts.
//!
//! Signs are failed results through the Service, failed results of new pods, new pods that restarted or cannot start, and
//! workloads whose pods cannot be created or whose progress deadline is exceeded. Pods and workloads are a sign as long as
//! they are so. After a quiet time the next sign is a new beginning.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::RunningAnalysis;
use super::workload_events::ReportedWorkload;
use crate::core::analysis::{PodSide, TickOutcome};
use crate::core::recording::RecordedTick;
use crate::core::units::{ClockShift, HasTimes, Time};

/// A sign after this time without one is a new beginning, in seconds.
const QUIET: f64 = 30.0;

/// In a bake, probes are asked at their own interval, and what it looks for is rare.
const QUIET_IN_BAKE: Duration = Duration::from_secs(600);

/// Trouble that lasts, or did lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) since: Time,
    /// Its last sign.
    last: Time,
}

impl Trouble {
    /// Takes a sign of a bake.
    pub(super) fn signs(known: &mut Option<Self>, now: Time) {
        match known {
            Some(trouble) if now.since(trouble.last) <= QUIET_IN_BAKE => trouble.last = now,
            Some(_) | None => {
                *known = Some(Self {
                    since: now,
                    last: now,
                });
            }
        }
    }
}

impl HasTimes for Trouble {
    fn shift(&mut self, by: ClockShift) {
        self.since.shift(by);
        self.last.shift(by);
    }
}

impl RunningAnalysis {
    /// Whether pods or workloads are in trouble at the moment.
    pub(super) fn has_troubled_pods(&self) -> bool {
        self.reported_pods.values().any(|pod| pod.is_in_trouble())
            || self.told.iter().any(ReportedWorkload::is_in_trouble)
    }

    /// Takes the signs of this tick. Whether trouble begins with it.
    pub(super) fn trouble_begins(&mut self, outcomes: &[TickOutcome], tick: &RecordedTick) -> bool {
        let is_new = |number: u32| {
            let mut pods = self.pods.iter();
            pods.any(|pod| pod.pod == number && pod.side == PodSide::New)
        };
        let mut direct = tick.direct.iter();
        let is_sign = outcomes.contains(&TickOutcome::Failure)
            || direct.any(|(pod, outcomes)| {
                outcomes.contains(TickOutcome::Failure.letter()) && is_new(*pod)
            })
            || self.has_troubled_pods();
        if !is_sign {
            return false;
        }
        let quiet = QUIET / self.analysis.rule().interval_s;
        let before = self.last_bad.replace(tick.tick);
        before.is_none_or(|before| f64::from(tick.tick.saturating_sub(before)) > quiet)
    }
}

#[cfg(test)]
mod tests;
