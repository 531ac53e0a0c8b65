//! Turning back: the plan, the look before, the rollback, and what the ledger is told.

use std::sync::Arc;

use super::Guard;
use crate::ledger::{self, Found};
use crate::release::{self, Facts};
use crate::rollout::Event;
use crate::units::Revision;

impl Guard {
    pub(super) fn planned(&self, bad: Revision) -> Result<release::Plan, release::Refusal> {
        let case = self.state.rollout.phase().case();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let serving = case.and_then(|case| case.serving);
        let reason = case.map_or("", |case| case.reason.as_str());
        release::plan(bad, &facts, &self.state.ledger, serving, reason)
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
