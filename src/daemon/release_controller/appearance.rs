//! What a new revision means: who made it, and whether its contents are new. Also handles a release that is
//! uninstalled.

use std::time::Duration;

use super::ReleaseController;
use super::rollback::digest_of;
use crate::core::revision_ledger::{self, ContentVerdict, RevisionStatus};
use crate::core::rollout::{Appearance, RevisionOrigin, RolloutInput, RolloutPhase};
use crate::core::units::{Revision, Time};
use crate::release::{ReleaseState, WorkloadState};

/// A record restored from a backup longer ago counts as having been there before the daemon.
const RESTORED_LATELY: Duration = Duration::from_secs(600);

impl ReleaseController {
    /// The release is no longer installed. Its measurements, and those from while it was absent, are dropped.
    pub(super) async fn is_gone(&mut self) {
        self.happens(RolloutInput::Uninstalled).await;
        self.state.probes.clear();
        self.state.doubtful = false;
        self.state.bake = None;
        self.state.baked = None;
        self.state.deployed = None;
        self.state.workloads.clear();
        self.state.workloads_before.clear();
    }

    pub(super) async fn seen(&mut self, release_state: &ReleaseState, newest: Revision) {
        if self.state.rollout.newest() == Some(newest) {
            return;
        }
        let now = self.now();
        let Some(appears) = self.appearance(release_state, newest, now) else {
            return;
        };
        self.undecided = None;
        let record = release_state.newest();
        let origin = if newest.0 == 1 {
            RevisionOrigin::First
        } else if release_state.ours.contains(&newest) {
            RevisionOrigin::OurRollback
        } else if record.is_some_and(|record| record.rolled_back_to().is_some()) {
            RevisionOrigin::OtherRollback
        } else {
            RevisionOrigin::Upgrade
        };
        // What was seen as deployed before it appeared; a record's status of now may already be another.
        let serving = self.state.deployed.filter(|deployed| *deployed < newest);
        self.happens(RolloutInput::Seen {
            revision: newest,
            origin,
            serving,
            appears,
        })
        .await;
        self.recognize(release_state, newest);
        self.weigh_told(newest).await;
        // It may have come while nobody of us looked, so that to the engine nothing is new.
        if self.state.rollout.phase().candidate().is_some() {
            self.setup.engine.look_back();
        }
    }

    /// What a revision brings; `None` while that is unknown yet.
    fn appearance(
        &mut self,
        release_state: &ReleaseState,
        newest: Revision,
        now: Time,
    ) -> Option<Appearance> {
        if self.was_brought_back(release_state, now) {
            return Some(Appearance::Restored);
        }
        let rollout = &self.state.rollout;
        let Some(before) = rollout.newest() else {
            return Some(Appearance::New);
        };
        let Some(digest) = same_contents(release_state, before, newest) else {
            return Some(Appearance::New);
        };
        let known = self.state.ledger.find(&digest).map(|entry| entry.found);
        let known_good = known == Some(ContentVerdict::Good);
        let same = Some(Appearance::Same { known_good });
        // While something is judged or done, the contents are what counts.
        if *rollout.phase() != RolloutPhase::Idle || rollout.is_suspect(known_good) {
            return same;
        }
        // One whose helm failed in between changes nothing, where its contents are the same.
        let serves = self.state.deployed.filter(|deployed| *deployed <= before);
        let serves_it = serves.is_some_and(|it| same_contents(release_state, it, newest).is_some());
        if !serves_it || brings_pods(release_state, &self.state.workloads, newest) {
            return Some(Appearance::New);
        }
        if release_state.applied {
            return same;
        }
        // Helm may put right what somebody changed by hand, which makes new pods: it has to end first.
        let since = match self.undecided {
            Some((revision, since)) if revision == newest => since,
            Some(_) | None => now,
        };
        self.undecided = Some((newest, since));
        let is_pending = release_state
            .newest()
            .is_some_and(|it| it.status.is_pending());
        let is_overdue = !is_pending && now.since(since) >= rollout.limits().settle_cap;
        is_overdue.then_some(Appearance::New)
    }

    /// Whether the newest record comes from a backup. Only asked if nothing else of the release is known, or if that
    /// came from the backup as well.
    fn was_brought_back(&self, release_state: &ReleaseState, now: Time) -> bool {
        let rollout = &self.state.rollout;
        let candidate = rollout.phase().candidate();
        let is_open = rollout.newest().is_none()
            || rollout.is_starting()
            || candidate.is_some_and(|candidate| candidate.origin == RevisionOrigin::First);
        // Helm leaves the newest record so in no other way.
        let is_superseded = release_state
            .newest()
            .is_some_and(|record| record.status == RevisionStatus::Superseded);
        let is_lately = release_state
            .stored_at
            .is_some_and(|at| now.since(at) < RESTORED_LATELY);
        is_open && is_lately && (release_state.restored || is_superseded)
    }

    /// Logs that contents which were rejected before are deployed again. Their cause may have been fixed elsewhere, so
    /// they are analyzed like any other contents.
    fn recognize(&mut self, release_state: &ReleaseState, newest: Revision) {
        if release_state.ours.contains(&newest) {
            return;
        }
        let Some(digest) = digest_of(release_state, newest) else {
            return;
        };
        let Some(text) = self.state.ledger.find(&digest).and_then(bad_again) else {
            return;
        };
        self.state.rollout.remark(self.now(), &text);
        self.keep_entries();
    }
}

/// The digest that all revisions from `before` on share; `None` if one differs or is missing.
fn same_contents(
    release_state: &ReleaseState,
    before: Revision,
    newest: Revision,
) -> Option<revision_ledger::ContentDigest> {
    let digest = digest_of(release_state, newest)?;
    let between = (before.0..newest.0).all(|number| {
        let other = digest_of(release_state, Revision(number));
        other.as_ref() == Some(&digest)
    });
    between.then_some(digest)
}

/// Whether a revision with the same contents brings new pods all the same.
fn brings_pods(release_state: &ReleaseState, before: &[WorkloadState], newest: Revision) -> bool {
    if release_state.workload_states.is_empty() {
        return release_state.pods.iter().any(|pod| pod.revision == newest);
    }
    release_state.workload_states.iter().any(|workload| {
        let known = before.iter().find(|known| known.is(workload));
        // While its controller has not taken up a change, its template is not known.
        known.is_none_or(|known| workload.observed && known.template != workload.template)
    })
}

/// The log entry for rejected contents that are deployed again.
fn bad_again(known: &revision_ledger::LedgerEntry) -> Option<String> {
    let is_bad = known.found == ContentVerdict::Bad;
    is_bad.then(|| {
        format!(
            "These are the contents of revision {}, which was found bad: {}",
            known.revision, known.evidence
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::core::revision_ledger::{ContentDigest, StoredRevision};

    /// Revisions from 3 on with these contents; a space is a revision that cannot be read.
    fn release_state(contents: &str) -> ReleaseState {
        let record = |(at, contents): (usize, char)| StoredRevision {
            revision: Revision(3 + u32::try_from(at).unwrap()),
            status: RevisionStatus::Superseded,
            description: "Upgrade complete".into(),
            digest: (contents != ' ').then(|| ContentDigest(contents.to_string().into())),
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        };
        ReleaseState {
            revisions: contents.chars().enumerate().map(record).collect(),
            ..ReleaseState::default()
        }
    }

    #[test]
    fn contents_are_the_same_only_where_all_in_between_are_known_and_have_them() {
        let same = |contents: &str, before, newest| {
            same_contents(&release_state(contents), Revision(before), Revision(newest)).is_some()
        };
        assert!(same("aa", 3, 4));
        assert!(same("aaa", 3, 5));
        assert!(!same("ab", 3, 4));
        // Other contents ran meanwhile, and the way back makes new pods.
        assert!(!same("aba", 3, 5));
        assert!(!same("a a", 3, 5));
        assert!(!same("  ", 3, 4));
        // The one before is not there any longer.
        assert!(!same("aa", 2, 4));
    }

    #[test]
    fn pods_of_its_own_are_those_of_another_template() {
        let workload = |template: &str, observed| WorkloadState {
            kind: "Deployment".into(),
            name: "api".into(),
            template: Some(template.into()),
            observed,
            ..WorkloadState::default()
        };
        let now = |workload| ReleaseState {
            workload_states: vec![workload],
            ..release_state("aa")
        };
        let before = [workload("one", true)];
        let newest = Revision(4);
        assert!(!brings_pods(&now(workload("one", true)), &before, newest));
        assert!(brings_pods(&now(workload("two", true)), &before, newest));
        // Not taken up by its controller yet, as while replicas change.
        assert!(!brings_pods(&now(workload("", false)), &before, newest));
        assert!(brings_pods(&now(workload("one", true)), &[], newest));
        assert!(!brings_pods(&release_state("aa"), &[], newest));
    }
}
