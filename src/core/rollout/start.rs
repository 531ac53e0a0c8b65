//! A release that comes back after an absence, for example from a backup.
//!
//! A backup restores the records one after another, in any order, and the objects that they describe some time later.
//! None of that is an upgrade. So a revision above 1 that appears after an absence is a start, and so is every revision
//! that appears until the start is over. The start is over once the rollout has been complete, at least a minute after
//! the last new revision; and after ten minutes at the latest, so that a part that never comes does not leave the
//! release unanalyzed. An ordered rollback ends the start when it begins, but not if it is refused. Probe results until
//! then do not count for the baseline.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::candidate::{RevisionOrigin, RolloutOutcome};
use super::transition::NewRevision;
use super::{Appearance, Rollout, RolloutCommand, RolloutPhase};
use crate::core::units::{ClockShift, HasTimes, Time};

/// Records are brought back within seconds of one another.
const QUIET: Duration = Duration::from_secs(60);

/// Restoring volumes may take hours; deployments in the meantime have to be analyzed.
const LONGEST: Duration = Duration::from_secs(600);

/// A start that is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StartupPhase {
    began: Time,
    /// When the newest revision appeared.
    last: Time,
    /// Whether its rollout has been complete.
    is_complete: bool,
}

impl StartupPhase {
    pub(super) fn ends(&self) -> Time {
        let latest = self.began + LONGEST;
        if self.is_complete {
            (self.last + QUIET).min(latest)
        } else {
            latest
        }
    }
}

impl HasTimes for StartupPhase {
    fn shift(&mut self, by: ClockShift) {
        self.began.shift(by);
        self.last.shift(by);
    }
}

impl Rollout {
    /// Whether the release has come back and its start is not over: nothing that is measured is a baseline.
    pub const fn is_starting(&self) -> bool {
        self.start.is_some()
    }

    /// Whether the start still waits for a complete rollout.
    pub fn awaits_completion(&self) -> bool {
        self.start.is_some_and(|start| !start.is_complete)
    }

    /// Takes a revision that is part of a start; returns `false` if it is not.
    pub(super) fn is_start(
        &mut self,
        newcomer: NewRevision,
        appears: Appearance,
        was_absent: bool,
        now: Time,
        commands: &mut Vec<RolloutCommand>,
    ) -> bool {
        let revision = newcomer.revision;
        let is_restored = appears == Appearance::Restored;
        match &self.phase {
            RolloutPhase::NotInstalled if is_restored || (was_absent && revision.0 > 1) => {}
            RolloutPhase::Idle if self.start.is_some() => {
                if let Some(start) = &mut self.start {
                    start.last = now;
                    start.is_complete = false;
                }
                let text = format!("Revision {revision} appeared; it is part of the start");
                self.note(now, Some(revision), text);
                return true;
            }
            // An order that is being looked at has not ended the start.
            RolloutPhase::Preflight(_) if self.start.is_some() => {
                let text = format!("Revision {revision} took its place before it was rolled back");
                self.end(RolloutOutcome::Superseded, text, now);
                return self.is_start(newcomer, appears, was_absent, now, commands);
            }
            // The oldest record came first, and was taken for an installation.
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate)
                if is_restored && candidate.origin == RevisionOrigin::First =>
            {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let text = format!("Revision {revision} took its place: the release comes back");
                self.end(RolloutOutcome::Superseded, text, now);
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::RollingOut(_)
            | RolloutPhase::Analyzing(_)
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => return false,
        }
        self.start = Some(StartupPhase {
            began: now,
            last: now,
            is_complete: false,
        });
        self.enter(RolloutPhase::Idle, now);
        self.note(
            now,
            Some(revision),
            format!(
                "Revision {revision} came back after an absence: this is a start, and nothing is judged until its rollout is complete, or for {} min",
                LONGEST.as_secs() / 60
            ),
        );
        true
    }

    pub(super) fn start_is_complete(&mut self) {
        if let Some(start) = &mut self.start {
            start.is_complete = true;
        }
    }

    pub(super) fn start_may_end(&mut self, now: Time) {
        let Some(start) = self.start.filter(|start| now >= start.ends()) else {
            return;
        };
        self.start = None;
        // What was measured before does not tell how it serves.
        self.since = now;
        let text = if start.is_complete {
            "The start is over; what the probes measure from here on is the baseline".to_owned()
        } else {
            format!(
                "The start is over after {} min, although its rollout is not complete; what the probes measure from here on is the baseline",
                LONGEST.as_secs() / 60
            )
        };
        self.note(now, self.newest, text);
    }
}
