//! What people who look at the release are told, and when.

use std::sync::Arc;

use super::Guard;
use crate::release::Notice;
use crate::rollout::{Case, Ending, Phase};
use crate::units::{Revision, Time};

/// Notices under way at a time; when the cluster takes none, further ones are left out.
const MAX_NOTICES: usize = 20;

impl Guard {
    /// Tells of what has just happened: `phase` and `ended` are what held before it.
    pub(super) fn tell(&mut self, phase: &str, ended: Option<(Time, Revision)>) {
        let past = self.state.rollout.past().last();
        let past = past.filter(|past| ended != Some((past.at, past.case.revision)));
        let mut notices: Vec<Notice> = past
            .and_then(|past| {
                let (is_warning, reason, action) = of_ending(past.ending)?;
                Some(Notice {
                    is_warning,
                    reason,
                    action,
                    text: if past.ending == Ending::OrderRefused {
                        past.text.clone()
                    } else {
                        format!("Revision {}: {}", past.case.revision, past.text)
                    },
                    revision: past.case.revision,
                })
            })
            .into_iter()
            .collect();
        let now = self.state.rollout.phase();
        if now.as_str() != phase {
            match now {
                Phase::Preflight(case) => notices.push(of_decision(case)),
                Phase::TurningBack(case) => notices.push(Notice {
                    is_warning: false,
                    reason: "RollbackStarted",
                    action: "RollBack",
                    text: format!(
                        "Turning back from revision {} to the contents of revision {}",
                        case.revision,
                        case.target.unwrap_or_default()
                    ),
                    revision: case.revision,
                }),
                Phase::Settling(case) => notices.push(Notice {
                    is_warning: false,
                    reason: "ReleaseObserved",
                    action: "Judge",
                    text: format!("Revision {} appeared; its watch begins", case.revision),
                    revision: case.revision,
                }),
                Phase::Verifying(case) => notices.push(Notice {
                    is_warning: false,
                    reason: "RollbackSucceeded",
                    action: "RollBack",
                    text: format!(
                        "Turned back from revision {} by revision {}, {}; its probes are asked",
                        case.revision,
                        case.made.unwrap_or_default(),
                        self.how_far()
                    ),
                    revision: case.made.unwrap_or(case.revision),
                }),
                Phase::Absent | Phase::Steady | Phase::Watching(_) => {}
            }
        }
        for notice in notices {
            self.post(notice);
        }
    }

    /// How far the rollout of a rollback is known to have come.
    fn how_far(&self) -> &'static str {
        let facts = Arc::clone(&self.facts.borrow().facts);
        if self.is_rolled_out(&facts).is_none() {
            "whose rollout cannot be seen"
        } else {
            "whose rollout is complete"
        }
    }

    /// Sends a notice on its way.
    pub(super) fn post(&mut self, notice: Notice) {
        if self.notices.len() < MAX_NOTICES {
            self.notices
                .spawn(Arc::clone(&self.setup.engine).tell(notice));
        }
    }
}

/// That a revision is to be rolled back: by a verdict, or because a person ordered it.
fn of_decision(case: &Case) -> Notice {
    let (revision, why) = (case.revision, &case.text);
    if case.ordered {
        return Notice {
            is_warning: false,
            reason: "RollbackOrdered",
            action: "RollBack",
            text: format!("A person ordered a rollback of revision {revision}: {why}"),
            revision,
        };
    }
    Notice {
        is_warning: true,
        reason: "ReleaseRegressed",
        action: "Judge",
        text: format!("Revision {revision} made things worse: {why}"),
        revision,
    }
}

/// Whether somebody should look at it, the reason, and the action; `None` for what is no news to anybody.
const fn of_ending(ending: Ending) -> Option<(bool, &'static str, &'static str)> {
    Some(match ending {
        Ending::Kept => (false, "ReleaseHealthy", "Judge"),
        Ending::Unchanged => (false, "ReleaseUnchanged", "Judge"),
        Ending::Inconclusive => (false, "ReleaseInconclusive", "Judge"),
        Ending::Superseded | Ending::Uninstalled => return None,
        // Bad, and not turned back; why is in the text.
        Ending::WouldRollBack | Ending::LeftAlone => (true, "RollbackSuppressed", "Judge"),
        Ending::LimitReached | Ending::Refused => (true, "RollbackSuppressed", "RollBack"),
        Ending::OrderRefused => (false, "RollbackOrderRefused", "RollBack"),
        Ending::Failed => (true, "RollbackFailed", "RollBack"),
        Ending::Recovered => (false, "RollbackVerified", "Verify"),
        Ending::SameFailure => (true, "NotTheRelease", "Verify"),
        Ending::Worse => (true, "WorseAfterRollback", "Verify"),
        Ending::Unverified => (true, "RollbackUnverified", "Verify"),
    })
}
