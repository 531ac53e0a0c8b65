//! The first sign of trouble of a revision: the second clock of the time to detect starts with it.
//!
//! Signs are failed results through the Service, failed results of new pods, new pods that restarted or cannot start,
//! and workloads whose pods cannot be created or whose progress deadline is exceeded. The state of pods and workloads
//! is a sign for as long as it lasts. After a quiet time the next sign starts the clock anew.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::RunningAnalysis;
use super::workload_events::ReportedWorkload;
use crate::core::analysis::{PodSide, TickOutcome};
use crate::core::recording::RecordedTick;
use crate::core::units::{ClockShift, HasTimes, Time};

/// Seconds without a sign after which the next one starts the clock anew.
const QUIET: f64 = 30.0;

/// The same during a bake, where probes run at their own interval and failures are rare.
const QUIET_IN_BAKE: Duration = Duration::from_secs(600);

/// Trouble that lasts, or did lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trouble {
    pub(super) since: Time,
    /// The last sign.
    last: Time,
}

impl Trouble {
    /// Takes a sign during a bake.
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
    /// Whether pods or workloads are in trouble now.
    pub(super) fn has_troubled_pods(&self) -> bool {
        self.reported_pods.values().any(|pod| pod.is_in_trouble())
            || self.told.iter().any(ReportedWorkload::is_in_trouble)
    }

    /// Takes the signs of this tick. Returns whether trouble begins with it.
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
