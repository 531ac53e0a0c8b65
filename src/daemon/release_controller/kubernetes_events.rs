//! Kubernetes Events about rollouts: which, and when.

use std::sync::Arc;

use super::ReleaseController;
use crate::core::rollout::{Candidate, RolloutOutcome, RolloutPhase};
use crate::core::units::{Revision, Time};
use crate::release::ReleaseEvent;

/// Events in flight; if the cluster takes none, further ones are dropped.
const MAX_NOTICES: usize = 20;

impl ReleaseController {
    /// Emits Events for what has just changed; `phase` and `ended` are the values before the change.
    pub(super) fn tell(&mut self, phase: &str, ended: Option<(Time, Revision)>) {
        let finished = self.state.rollout.finished().last();
        let finished =
            finished.filter(|finished| ended != Some((finished.at, finished.candidate.revision)));
        let mut notices: Vec<ReleaseEvent> = finished
            .and_then(|finished| {
                let (is_warning, reason, action) = of_outcome(finished.outcome)?;
                Some(ReleaseEvent {
                    is_warning,
                    reason,
                    action,
                    text: if finished.outcome == RolloutOutcome::OrderRefused {
                        finished.text.clone()
                    } else {
                        format!(
                            "Revision {}: {}",
                            finished.candidate.revision, finished.text
                        )
                    },
                    revision: finished.candidate.revision,
                })
            })
            .into_iter()
            .collect();
        let now = self.state.rollout.phase();
        if now.as_str() != phase {
            match now {
                RolloutPhase::Preflight(candidate) => notices.push(of_decision(candidate)),
                RolloutPhase::RollingBack(candidate) => notices.push(ReleaseEvent {
                    is_warning: false,
                    reason: "RollbackStarted",
                    action: "RollBack",
                    text: format!(
                        "Rolling back from revision {} to the contents of revision {}",
                        candidate.revision,
                        candidate.target.unwrap_or_default()
                    ),
                    revision: candidate.revision,
                }),
                RolloutPhase::RollingOut(candidate) => notices.push(ReleaseEvent {
                    is_warning: false,
                    reason: "ReleaseObserved",
                    action: "Judge",
                    text: format!("Revision {} appeared; its watch begins", candidate.revision),
                    revision: candidate.revision,
                }),
                RolloutPhase::Verifying(candidate) => notices.push(ReleaseEvent {
                    is_warning: false,
                    reason: "RollbackSucceeded",
                    action: "RollBack",
                    text: format!(
                        "Rolled back from revision {} by revision {}, {}; its probes are asked",
                        candidate.revision,
                        candidate.created_revision.unwrap_or_default(),
                        self.how_far()
                    ),
                    revision: candidate.created_revision.unwrap_or(candidate.revision),
                }),
                RolloutPhase::NotInstalled | RolloutPhase::Idle | RolloutPhase::Analyzing(_) => {}
            }
        }
        for notice in notices {
            self.post(notice);
        }
    }

    /// What is known about the progress of a rollback's rollout.
    fn how_far(&self) -> &'static str {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        if self.is_rolled_out(&release_state).is_none() {
            "whose rollout cannot be seen"
        } else {
            "whose rollout is complete"
        }
    }

    /// Starts to send an Event.
    pub(super) fn post(&mut self, notice: ReleaseEvent) {
        if self.notices.len() < MAX_NOTICES {
            self.notices
                .spawn(Arc::clone(&self.setup.engine).tell(notice));
        }
    }
}

/// The Event for the decision to roll back, by a verdict or an order.
fn of_decision(candidate: &Candidate) -> ReleaseEvent {
    let (revision, why) = (candidate.revision, &candidate.text);
    if candidate.ordered {
        return ReleaseEvent {
            is_warning: false,
            reason: "RollbackOrdered",
            action: "RollBack",
            text: format!("A person ordered a rollback of revision {revision}: {why}"),
            revision,
        };
    }
    ReleaseEvent {
        is_warning: true,
        reason: "ReleaseRegressed",
        action: "Judge",
        text: format!("Revision {revision} made things worse: {why}"),
        revision,
    }
}

/// Whether it is a warning, with reason and action; `None` for outcomes without an Event.
const fn of_outcome(outcome: RolloutOutcome) -> Option<(bool, &'static str, &'static str)> {
    Some(match outcome {
        RolloutOutcome::Passed => (false, "ReleaseHealthy", "Judge"),
        RolloutOutcome::Unchanged => (false, "ReleaseUnchanged", "Judge"),
        RolloutOutcome::Inconclusive => (false, "ReleaseInconclusive", "Judge"),
        RolloutOutcome::Superseded | RolloutOutcome::Uninstalled => return None,
        // Bad, and not rolled back; why is in the text.
        RolloutOutcome::WouldRollBack | RolloutOutcome::NotEligible => {
            (true, "RollbackSuppressed", "Judge")
        }
        RolloutOutcome::LimitReached | RolloutOutcome::Refused => {
            (true, "RollbackSuppressed", "RollBack")
        }
        RolloutOutcome::OrderRefused => (false, "RollbackOrderRefused", "RollBack"),
        RolloutOutcome::RollbackFailed => (true, "RollbackFailed", "RollBack"),
        RolloutOutcome::RolledBack => (false, "RollbackVerified", "Verify"),
        RolloutOutcome::StillFailing => (true, "NotTheRelease", "Verify"),
        RolloutOutcome::Worsened => (true, "WorseAfterRollback", "Verify"),
        RolloutOutcome::Unverified => (true, "RollbackUnverified", "Verify"),
    })
}
