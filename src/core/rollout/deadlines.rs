//! What time alone changes: a phase whose time is up ends, and a step that takes longer than the runbook allows is noted.

use super::candidate::RolloutOutcome;
use super::{PhaseClock, Rollout, RolloutCommand, RolloutPhase};
use crate::core::units::Time;

impl Rollout {
    /// Time has passed: a phase whose time is up ends.
    pub(super) fn on_tick(&mut self, now: Time, commands: &mut Vec<RolloutCommand>) {
        let Some(candidate) = self.phase.candidate() else {
            self.start_may_end(now);
            return;
        };
        let stands = self.phase.acts() && matches!(self.clock, PhaseClock::Stands);
        if stands || now < candidate.ends(&self.phase, &self.limits, self.counts_since()) {
            return;
        }
        match &self.phase {
            RolloutPhase::NotInstalled | RolloutPhase::Idle => {}
            RolloutPhase::RollingOut(candidate) => {
                let revision = candidate.revision;
                let cap = self.limits.settle_cap.as_secs();
                self.move_to(RolloutPhase::Analyzing, now);
                self.note(
                    now,
                    Some(revision),
                    format!("The rollout is not complete after {cap} s; the analysis goes on"),
                );
            }
            RolloutPhase::Analyzing(_) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                self.end(
                    RolloutOutcome::Inconclusive,
                    "The watch ended without a verdict".into(),
                    now,
                );
            }
            RolloutPhase::Preflight(candidate) => {
                let text = "Whether it can be rolled back could not be found out in time";
                if candidate.ordered {
                    self.end_order(text, now, commands);
                } else {
                    self.end(RolloutOutcome::Refused, text.into(), now);
                }
            }
            RolloutPhase::RollingBack(candidate) => {
                let overtaken_by = candidate.overtaken_by;
                if let Some(other) = overtaken_by.filter(|_| candidate.overtaken_by_same) {
                    self.try_again_for(other, now, commands);
                    return;
                }
                let serving = candidate.created_revision.or(candidate.serving);
                let text = match candidate.created_revision {
                    None => "The rollback did not end in time",
                    Some(_) => "The rollback's rollout was not complete in time",
                };
                self.end(RolloutOutcome::RollbackFailed, text.into(), now);
                if let Some((revision, origin)) = overtaken_by {
                    self.begin(revision, origin, serving, now, commands);
                }
            }
            RolloutPhase::Verifying(_) => {
                commands.push(RolloutCommand::EndAnalysis { kept: false });
                let text =
                    "Rolled back, but whether the release is well could not be found out".into();
                self.end(RolloutOutcome::Unverified, text, now);
            }
        }
    }

    pub(super) fn note_lateness(&mut self, now: Time) {
        let (RolloutPhase::Preflight(candidate)
        | RolloutPhase::RollingBack(candidate)
        | RolloutPhase::Verifying(candidate)) = &mut self.phase
        else {
            return;
        };
        let mut late = Vec::new();
        for timing in candidate.timings() {
            let exceeded = timing
                .from
                .is_some_and(|from| timing.to.unwrap_or(now).since(from) > timing.step.limit());
            if exceeded && !candidate.late.contains(&timing.step) {
                candidate.late.push(timing.step);
                late.push(timing.step);
            }
        }
        let revision = candidate.revision;
        for step in late {
            let limit = step.limit().as_secs();
            self.note(
                now,
                Some(revision),
                format!(
                    "Late: {} takes longer than the runbook's {limit} s",
                    step.as_str()
                ),
            );
        }
    }
}
