//! Rollbacks: plan, preflight, execution, and what goes into the ledger.

use std::sync::Arc;
use std::time::Duration;

use super::ReleaseController;
use crate::core::evidence::EvidenceBundle;
use crate::core::recording::RecordingLine;
use crate::core::revision_ledger::{self, ContentVerdict};
use crate::core::rollout::{Candidate, RolloutInput, RolloutPhase};
use crate::core::units::{Revision, Time};
use crate::release::{self, ReleaseState};

/// Maximum wait of a rollback for the evidence.
const WITNESS: Duration = Duration::from_millis(1500);

/// Time within which a revision that took the place of the bad one is seen.
const OVERTAKEN: Duration = Duration::from_secs(10);

/// Contents that come back within this time after a rollback were not fixed.
const BROUGHT_BACK: Duration = Duration::from_secs(600);

/// After this many rollbacks of the same contents, whoever redeploys them with Helm counts as automation.
const TRIES: usize = 2;

/// Interval of dry runs: rights and helm may have changed.
const REHEARSE_EVERY: Duration = Duration::from_secs(60);

/// Interval of comparing an idle release with its newest revision; each comparison reads every workload.
const COMPARE_EVERY: Duration = Duration::from_secs(600);

/// Differences that are named.
const MAX_DIFFERENCES: usize = 10;

/// How the cluster differs from what a revision says.
pub(super) struct Compared {
    revision: Revision,
    /// Whether the release was idle.
    at_rest: bool,
    drift: Vec<String>,
}

/// The differences that existed while the release was idle.
#[derive(Default)]
pub(super) struct Differed {
    looked: Option<(Time, Revision)>,
    before: Vec<String>,
}

impl Differed {
    /// The differences that did not exist before, as far as they are named.
    fn new_of(&self, mut drift: Vec<String>) -> Vec<String> {
        drift.retain(|one| !self.before.contains(one));
        let more = drift.len().saturating_sub(MAX_DIFFERENCES);
        drift.truncate(MAX_DIFFERENCES);
        if more > 0 {
            drift.push(format!("{more} more"));
        }
        drift
    }
}

impl ReleaseController {
    pub(super) fn planned(
        &self,
        bad: Revision,
    ) -> Result<release::RollbackPlan, release::RollbackError> {
        let candidate = self.state.rollout.phase().candidate();
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let serving = candidate.and_then(|candidate| candidate.serving);
        let reason = candidate.map_or("", |candidate| candidate.reason.as_str());
        let plan = release::plan(bad, &release_state, &self.state.ledger, serving, reason)?;
        Ok(release::RollbackPlan {
            fence: self.state.fence,
            ..plan
        })
    }

    pub(super) fn preflight(&mut self, bad: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        let candidate = self.state.rollout.phase().candidate();
        let wish = candidate.filter(|candidate| candidate.ordered || candidate.chosen_by_hand);
        let wish = wish.map(|candidate| (candidate.target, candidate.text.clone()));
        let planned = match wish {
            None => {
                let planned = self.planned(bad).and_then(|plan| {
                    self.say_what_is_passed_over(&plan);
                    self.brought_back(bad).map_or(Ok(plan), Err)
                });
                Box::pin(std::future::ready(planned)) as release::EngineFuture<_>
            }
            Some((target, reason)) => self.ordered((bad, target, reason), |_| Ok(())),
        };
        let mut witnessed = self.witnessed.subscribe();
        let told = self.telling();
        if let Some(before) = self.preflight.take() {
            before.abort();
        }
        let preflight = self.work.spawn(async move {
            let plan = match planned.await {
                Ok(plan) => plan,
                Err(rollback_error) => return refused(&rollback_error, told(&rollback_error)),
            };
            // The rollback changes what the evidence is about.
            let seen = witnessed.wait_for(|seen| *seen);
            let _ = tokio::time::timeout(WITNESS, seen).await;
            let target = plan.target;
            match engine.preflight(plan).await {
                Ok(()) => RolloutInput::Ready { target },
                Err(rollback_error) => {
                    if matches!(rollback_error, release::RollbackError::Overtaken { .. }) {
                        // What took its place is seen in a moment, and may have the same contents.
                        tokio::time::sleep(OVERTAKEN).await;
                    }
                    refused(&rollback_error, told(&rollback_error))
                }
            }
        });
        self.preflight = Some(preflight);
    }

    /// Whether something redeploys what was rolled back a moment ago: a GitOps tool, also one that leaves no mark, or a
    /// pipeline that retries. It would redeploy after each rollback, so another one is refused.
    fn brought_back(&self, bad: Revision) -> Option<release::RollbackError> {
        if self.setup.release.controller.may.against_gitops {
            return None;
        }
        let rollout = &self.state.rollout;
        let appeared = rollout.phase().candidate()?.seen;
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let digest = digest_of(&release_state, bad)?;
        let mut came = appeared;
        let mut before = Vec::new();
        for finished in rollout.finished().iter().rev() {
            let Candidate {
                revision,
                created_revision,
                seen,
                ..
            } = finished.candidate;
            let is_same = created_revision.is_some()
                && revision < bad
                && digest_of(&release_state, revision).as_ref() == Some(&digest);
            if is_same && came.since(finished.at) < BROUGHT_BACK {
                before.push((revision, came.since(finished.at).as_secs()));
                came = seen;
            }
        }
        let &(revision, after) = before.first()?;
        let tool = release_state.stored_by.as_deref();
        if tool.is_none() && before.len() < TRIES {
            return None;
        }
        let tool = tool.map_or("something".to_owned(), |name| format!("{name:?}"));
        Some(release::RollbackError::prevented(
            "kept_by_another",
            format!(
                "revision {bad} has the contents of revision {revision}, and came {after} s after Leadsman had rolled that back: {tool} brings them back, as a GitOps tool, an operator or a pipeline that tries again does, and would undo this rollback as well; mend what it deploys, or set release.rollback.allow_gitops = true"
            ),
        ))
    }

    /// Logs that a rollback skips revisions in between that were not rejected.
    fn say_what_is_passed_over(&mut self, plan: &release::RollbackPlan) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let between = release_state.revisions.iter().filter(|record| {
            let found = record
                .digest
                .as_ref()
                .and_then(|it| self.state.ledger.find(it));
            plan.target < record.revision
                && record.revision < plan.bad
                && !release_state.ours.contains(&record.revision)
                && matches!(
                    record.status,
                    revision_ledger::RevisionStatus::Superseded
                        | revision_ledger::RevisionStatus::Deployed
                )
                && found.is_none_or(|entry| entry.found != ContentVerdict::Bad)
        });
        let between: Vec<Revision> = between.map(|record| record.revision).collect();
        let (Some(first), Some(last)) = (between.first(), between.last()) else {
            return;
        };
        let which = if first == last {
            format!("revision {first}, which was not")
        } else {
            format!("revisions {first} to {last}, none of which was")
        };
        let text = format!("The rollback goes back over {which} analyzed to its end");
        self.state.rollout.remark(self.now(), &text);
        self.keep_entries();
    }

    /// Turns a failed rollback into the text for people.
    pub(super) fn telling(&self) -> impl Fn(&release::RollbackError) -> String + Send + use<> {
        let release = &self.setup.release;
        let (namespace, name) = (release.namespace.clone(), release.name.clone());
        move |rollback_error| rollback_error.told(&namespace, &name)
    }

    pub(super) fn execute(&mut self, bad: Revision, target: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let candidate = self.state.rollout.phase().candidate();
        let attempt = candidate.and_then(Candidate::attempt).unwrap_or_default();
        let reason = candidate.map_or_else(String::new, |candidate| {
            let text = if candidate.ordered {
                &candidate.text
            } else {
                &candidate.reason
            };
            text.clone()
        });
        let digest = digest_of(&release_state, target);
        let fence = self.state.fence;
        let told = self.telling();
        self.work.spawn(async move {
            let digest = match digest {
                Some(digest) => Some(digest),
                None => Arc::clone(&engine)
                    .stored(target)
                    .await
                    .and_then(|stored| stored.digest),
            };
            let Some(digest) = digest else {
                let reason = told(&release::RollbackError::TargetGone { target });
                return RolloutInput::ExecutionFailed { attempt, reason };
            };
            let plan = release::RollbackPlan {
                bad,
                target,
                digest,
                reason,
                fence,
                is_dry_run: false,
            };
            match engine.execute(plan).await {
                Ok(report) => RolloutInput::Executed {
                    attempt,
                    created_revision: report.created_revision,
                },
                Err(rollback_error) => RolloutInput::ExecutionFailed {
                    attempt,
                    reason: told(&rollback_error),
                },
            }
        });
    }

    /// Compares the cluster with what the rollback should have made.
    pub(super) fn compare(&mut self, created_revision: Revision) {
        self.tell_of_old_settings();
        self.begin_to_compare(created_revision, false);
    }

    /// Compares an idle release now and then: what differs before a revision appears is not caused by its rollback.
    pub(super) fn compare_at_rest(&mut self, now: Time) {
        let newest = {
            let release_state = &self.release_state.borrow().release_state;
            let newest = release_state.newest().map(|record| record.revision);
            newest.filter(|newest| release_state.complete == Some(*newest))
        };
        let (Some(newest), RolloutPhase::Idle) = (newest, self.state.rollout.phase()) else {
            return;
        };
        let mut looked = self.differed.looked.into_iter();
        if looked.any(|(at, of)| of == newest && now.since(at) < COMPARE_EVERY) {
            return;
        }
        self.differed.looked = Some((now, newest));
        self.begin_to_compare(newest, true);
    }

    fn begin_to_compare(&mut self, revision: Revision, at_rest: bool) {
        let drift = Arc::clone(&self.setup.engine).drift(revision);
        self.comparing.spawn(async move {
            Compared {
                revision,
                at_rest,
                drift: drift.await,
            }
        });
    }

    pub(super) fn on_compared(&mut self, compared: Compared) {
        let Compared {
            revision,
            at_rest,
            drift,
        } = compared;
        if at_rest {
            let rollout = &self.state.rollout;
            // Otherwise another revision may have been met half-way.
            if matches!(rollout.phase(), RolloutPhase::Idle) && rollout.newest() == Some(revision) {
                self.differed.before = drift;
            }
            return;
        }
        let new = self.differed.new_of(drift);
        if new.is_empty() {
            return;
        }
        let text = format!(
            "After the rollback the cluster is not as revision {revision} says: {}",
            new.join("; ")
        );
        self.state.rollout.remark(self.now(), &text);
        self.keep_entries();
        self.publish();
    }

    /// Runs the preflight without a rollback: of the revision under analysis, or to the one that serves.
    pub(super) fn rehearse(&mut self, now: Time) {
        let newest = self
            .release_state
            .borrow()
            .release_state
            .newest()
            .map(|record| record.revision);
        let Some(newest) = newest.filter(|_| self.rehearsals.is_empty()) else {
            return;
        };
        let plan = match self.state.rollout.phase() {
            RolloutPhase::RollingOut(candidate) | RolloutPhase::Analyzing(candidate) => {
                self.planned(candidate.revision)
            }
            RolloutPhase::Idle => self.planned_to(newest),
            RolloutPhase::NotInstalled
            | RolloutPhase::Preflight(_)
            | RolloutPhase::RollingBack(_)
            | RolloutPhase::Verifying(_) => {
                return;
            }
        };
        let plan = match plan {
            Ok(plan) => plan,
            Err(rollback_error) => return self.on_rehearsed(Err(rollback_error)),
        };
        let is_known = self.rehearsed.is_some_and(|(at, bad, target)| {
            (bad, target) == (plan.bad, plan.target) && now.since(at) < REHEARSE_EVERY
        });
        if is_known {
            return;
        }
        self.rehearsed = Some((now, plan.bad, plan.target));
        let engine = Arc::clone(&self.setup.engine);
        let plan = release::RollbackPlan {
            is_dry_run: true,
            ..plan
        };
        self.rehearsals
            .spawn(async move { engine.preflight(plan).await });
    }

    fn planned_to(
        &self,
        newest: Revision,
    ) -> Result<release::RollbackPlan, release::RollbackError> {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let digest = digest_of(&release_state, newest).ok_or_else(|| {
            release::RollbackError::prevented(
                "unreadable",
                format!("the record of revision {newest} cannot be read"),
            )
        })?;
        Ok(release::RollbackPlan {
            bad: newest,
            target: newest,
            digest,
            reason: String::new(),
            fence: self.state.fence,
            is_dry_run: true,
        })
    }

    pub(super) fn on_rehearsed(&mut self, rehearsed: Result<(), release::RollbackError>) {
        let (reason, text) = match rehearsed {
            Ok(()) => ("", String::new()),
            Err(rollback_error) => (rollback_error.reason(), self.telling()(&rollback_error)),
        };
        let release = &self.setup.release;
        let releases = &self.setup.executor.metrics().releases;
        releases.ready(release.namespace.as_str(), release.name.as_str(), reason);
        if self.preflight_failure != text {
            if text.is_empty() {
                tracing::info!(release = %release.name, "A rollback could be done");
            } else {
                tracing::warn!(release = %release.name, reason, "A rollback could not be done: {text}");
            }
            self.preflight_failure = text;
            self.publish();
        }
    }

    /// Starts to collect evidence.
    pub(super) fn collect(&mut self, bad: Revision, began: Time) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let serving = self
            .state
            .rollout
            .phase()
            .candidate()
            .and_then(|candidate| candidate.serving);
        let serving = serving.or(self.state.deployed.filter(|deployed| *deployed < bad));
        let collected =
            Arc::clone(&self.setup.engine).evidence_collector(release_state, bad, serving);
        self.witnessed.send_replace(false);
        self.witnesses
            .spawn(async move { (bad, began, collected.await) });
    }

    /// Adds the evidence to the recording, which may be closed by now.
    pub(super) fn on_evidence(
        &mut self,
        bad: Revision,
        began: Time,
        evidence: Option<EvidenceBundle>,
    ) {
        self.witnessed.send_replace(true);
        let is_closed = self.recorder.is_none();
        if is_closed {
            self.open_recorder(bad, began);
        }
        if let Some(evidence) = evidence {
            self.record(&[RecordingLine::Evidence(Box::new(evidence))]);
        }
        self.keep_recording();
        if is_closed {
            self.recorder = None;
        }
    }

    /// Copies the recording to where another pod finds it.
    fn keep_recording(&self) {
        let (Some(store), Some(recorder)) = (&self.setup.store, &self.recorder) else {
            return;
        };
        let (store, path) = (Arc::clone(store), recorder.path().to_owned());
        let release = &self.setup.release;
        let (namespace, name) = (release.namespace.clone(), release.name.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.keep_recording(&namespace, &name, &path) {
                tracing::warn!(%namespace, release = %name, %error, "The recording is on this pod's disk alone");
            }
        });
    }

    pub(super) fn found(&mut self, revision: Revision, found: ContentVerdict, evidence: String) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let record = stored_of(&release_state, revision);
        if let Some(digest) = record.and_then(|record| record.digest.clone()) {
            let at = self.now();
            self.state.ledger.write(revision_ledger::LedgerEntry {
                digest,
                weak: record.and_then(|record| record.weak.clone()),
                revision,
                found,
                at,
                evidence,
            });
            self.is_dirty = true;
        }
    }
}

/// The input for a failed preflight.
fn refused(rollback_error: &release::RollbackError, reason: String) -> RolloutInput {
    if matches!(rollback_error, release::RollbackError::NoTarget(_)) {
        RolloutInput::NoTarget { reason }
    } else {
        RolloutInput::Refused { reason }
    }
}

pub(super) fn digest_of(
    release_state: &ReleaseState,
    revision: Revision,
) -> Option<revision_ledger::ContentDigest> {
    stored_of(release_state, revision)?.digest.clone()
}

fn stored_of(
    release_state: &ReleaseState,
    revision: Revision,
) -> Option<&revision_ledger::StoredRevision> {
    let mut all = release_state.revisions.iter();
    all.find(|record| record.revision == revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_since_is_said() {
        let differences = |range: std::ops::Range<u32>| -> Vec<String> {
            range.map(|number| number.to_string()).collect()
        };
        let differed = Differed {
            looked: None,
            before: differences(0..3),
        };
        assert_eq!(differed.new_of(differences(1..3)), Vec::<String>::new());
        assert_eq!(differed.new_of(differences(2..4)), ["3"]);
        let many = differed.new_of(differences(0..20));
        assert_eq!((many.len(), many[10].as_str()), (11, "7 more"));
    }
}
