//! Turning back: the plan, the look before, the rollback, and what the ledger is told.

use std::sync::Arc;
use std::time::Duration;

use super::Guard;
use crate::ledger::{self, Found};
use crate::release::{self, Facts};
use crate::rollout::{Event, Phase};
use crate::units::{Revision, Time};

/// A rehearsal is repeated after that: rights and helm may have changed.
const REHEARSE_EVERY: Duration = Duration::from_secs(60);

impl Guard {
    pub(super) fn planned(&self, bad: Revision) -> Result<release::Plan, release::Refusal> {
        let case = self.state.rollout.phase().case();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let serving = case.and_then(|case| case.serving);
        let reason = case.map_or("", |case| case.reason.as_str());
        let plan = release::plan(bad, &facts, &self.state.ledger, serving, reason)?;
        Ok(release::Plan {
            fence: self.state.fence,
            ..plan
        })
    }

    pub(super) fn preflight(&mut self, bad: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        match self.planned(bad) {
            Err(refusal) => {
                let reason = refusal.to_string();
                self.work.spawn(async move { Event::Refused { reason } });
            }
            Ok(plan) => {
                let target = plan.target;
                self.work.spawn(async move {
                    match engine.preflight(plan).await {
                        Ok(()) => Event::Ready { target },
                        Err(refusal) => Event::Refused {
                            reason: refusal.to_string(),
                        },
                    }
                });
            }
        }
    }

    pub(super) fn execute(&mut self, bad: Revision, target: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        let facts = Arc::clone(&self.facts.borrow().facts);
        let case = self.state.rollout.phase().case();
        let reason = case.map_or_else(String::new, |case| case.reason.clone());
        let Some(digest) = digest_of(&facts, target) else {
            let reason = release::Refusal::TargetGone { target }.to_string();
            self.work
                .spawn(async move { Event::ExecutionFailed { reason } });
            return;
        };
        let plan = release::Plan {
            bad,
            target,
            digest,
            reason,
            fence: self.state.fence,
            is_rehearsal: false,
        };
        self.work.spawn(async move {
            match engine.execute(plan).await {
                Ok(report) => Event::Executed(report.made),
                Err(refusal) => Event::ExecutionFailed {
                    reason: refusal.to_string(),
                },
            }
        });
    }

    /// Looks beforehand whether a rollback could be done: of the revision that is judged, or to the one that serves.
    pub(super) fn rehearse(&mut self, now: Time) {
        let newest = self
            .facts
            .borrow()
            .facts
            .newest()
            .map(|record| record.revision);
        let Some(newest) = newest.filter(|_| self.rehearsals.is_empty()) else {
            return;
        };
        let plan = match self.state.rollout.phase() {
            Phase::Settling(case) | Phase::Watching(case) => self.planned(case.revision),
            Phase::Steady => self.planned_to(newest),
            Phase::Absent | Phase::Preflight(_) | Phase::TurningBack(_) | Phase::Verifying(_) => {
                return;
            }
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(refusal) => return self.on_rehearsed(Err(refusal)),
        };
        let is_known = self.rehearsed.is_some_and(|(at, bad, target)| {
            (bad, target) == (plan.bad, plan.target) && now.since(at) < REHEARSE_EVERY
        });
        if is_known {
            return;
        }
        self.rehearsed = Some((now, plan.bad, plan.target));
        let engine = Arc::clone(&self.setup.engine);
        let plan = release::Plan {
            is_rehearsal: true,
            ..plan
        };
        self.rehearsals
            .spawn(async move { engine.preflight(plan).await });
    }

    fn planned_to(&self, newest: Revision) -> Result<release::Plan, release::Refusal> {
        let facts = Arc::clone(&self.facts.borrow().facts);
        let digest = digest_of(&facts, newest).ok_or_else(|| {
            release::Refusal::prevented(
                "unreadable",
                format!("the record of revision {newest} cannot be read"),
            )
        })?;
        Ok(release::Plan {
            bad: newest,
            target: newest,
            digest,
            reason: String::new(),
            fence: self.state.fence,
            is_rehearsal: true,
        })
    }

    pub(super) fn on_rehearsed(&mut self, rehearsed: Result<(), release::Refusal>) {
        let (reason, text) = match rehearsed {
            Ok(()) => ("", String::new()),
            Err(refusal) => (refusal.reason(), refusal.to_string()),
        };
        let release = &self.setup.release;
        let releases = &self.setup.crew.metrics().releases;
        releases.ready(release.namespace.as_str(), release.name.as_str(), reason);
        if self.obstacle != text {
            if text.is_empty() {
                tracing::info!(release = %release.name, "A rollback could be done");
            } else {
                tracing::warn!(release = %release.name, reason, "A rollback could not be done: {text}");
            }
            self.obstacle = text;
            self.publish();
        }
    }

    pub(super) fn found(&mut self, revision: Revision, found: Found, evidence: String) {
        let facts = Arc::clone(&self.facts.borrow().facts);
        if let Some(digest) = digest_of(&facts, revision) {
            let at = self.now();
            self.state.ledger.write(ledger::Entry {
                digest,
                revision,
                found,
                at,
                evidence,
            });
            self.is_dirty = true;
        }
    }
}

pub(super) fn digest_of(facts: &Facts, revision: Revision) -> Option<ledger::Digest> {
    let record = facts
        .revisions
        .iter()
        .find(|record| record.revision == revision)?;
    record.digest.clone()
}
