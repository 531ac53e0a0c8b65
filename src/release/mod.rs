//! Releases: their stored revisions, their pods, and rolling them back.
//!
//! Every engine has the same four steps: *plan* (the target), *preflight* (may and can it be done), *execute*,
//! *report*. The state of the release comes from a watch that never ends.
//!
//! Invariants:
//! - an engine acts only if the rejected revision is still the newest: creating the next record is the fence;
//! - carrying out the same plan twice makes one rollback: what a killed engine left behind is finished, not repeated.

pub mod by_hand;
pub mod change;
pub mod cluster;
pub mod embedded;
mod run_images;
mod workload;

use std::future::Future;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::core::analysis::{StuckReason, WorkloadDiff};
use crate::core::evidence::EvidenceBundle;
use crate::core::revision_ledger::{self, ContentDigest, NoTarget, RevisionLedger, StoredRevision};
use crate::core::units::{Namespace, ReleaseName, Revision, Time};
use change::{NotRestarted, RevisionWorkloads};
pub use run_images::{MAX_RUN_IMAGES, RunImage};
pub use workload::WorkloadState;

/// Current state of a release.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReleaseState {
    /// Its revisions, ascending; empty if it is not installed.
    pub revisions: Vec<StoredRevision>,
    /// Revisions that our rollbacks made.
    pub ours: Vec<Revision>,
    /// The program that stored the newest revision, by its name at the API server; `None` for the helm command, and if
    /// unknown.
    pub stored_by: Option<Box<str>>,
    /// Its pods, of all revisions.
    pub pods: Vec<ReleasePod>,
    /// The newest revision, if its rollout is complete.
    pub complete: Option<Revision>,
    /// Paused, or scaled to zero.
    pub held: bool,
    /// The old pods stop before the new ones start.
    pub expected_downtime: bool,
    /// Whether its pods are made by something outside its objects, and may come later.
    pub indirect: bool,
    /// Remarks about that for people.
    pub remarks: Vec<String>,
    /// Unreadable revisions, and why.
    pub unreadable: Vec<(Revision, String)>,
    /// Its Deployments, StatefulSets and DaemonSets; also empty if they cannot be seen.
    pub workload_states: Vec<WorkloadState>,
    /// Whether the deployment of the newest revision has finished, and the cluster has reacted to it.
    pub applied: bool,
    /// Whether the newest record is older than its object: a backup restored it.
    pub restored: bool,
    /// When the newest revision was stored, by the clock of the program that stored it; `None` if unknown.
    pub stored_at: Option<Time>,
    /// The workloads of each readable revision, ascending.
    pub workloads: Vec<(Revision, Arc<RevisionWorkloads>)>,
}

impl ReleaseState {
    /// The newest stored revision.
    pub fn newest(&self) -> Option<&StoredRevision> {
        self.revisions.last()
    }

    /// What a revision changed of a pod's workload since the one that served before.
    ///
    /// # Errors
    ///
    /// Why that is unknown.
    pub fn change_of(
        &self,
        pod: &ReleasePod,
        revision: Revision,
        serving: Option<Revision>,
    ) -> Result<Option<WorkloadDiff>, String> {
        self.change_of_workload(&pod.workload_kind, &pod.workload, revision, serving)
    }

    /// What a revision changed of a workload since the one that served before.
    ///
    /// # Errors
    ///
    /// Why that is unknown.
    pub fn change_of_workload(
        &self,
        kind: &str,
        name: &str,
        revision: Revision,
        serving: Option<Revision>,
    ) -> Result<Option<WorkloadDiff>, String> {
        let serving = serving.ok_or("it is not known which revision served before")?;
        let (now, before) = (self.workloads_of(revision)?, self.workloads_of(serving)?);
        let id = (kind.into(), name.into());
        let change = now.change_since(before, &id);
        change.map_err(|_| format!("the manifest of revision {revision} does not have it"))
    }

    /// Whether a revision's manifest makes a workload stop its old pods before the new ones start.
    pub fn stops_first(&self, kind: &str, name: &str, revision: Revision) -> bool {
        let id = (kind.into(), name.into());
        self.workloads_of(revision)
            .is_ok_and(|workloads| workloads.stops_first(&id))
    }

    /// Workloads whose pods keep running although a revision changed what they read since another one; also empty if
    /// unknown.
    pub fn not_restarted(&self, revision: Revision, before: Revision) -> Vec<NotRestarted> {
        let both = self.workloads_of(revision).ok();
        let both = both.zip(self.workloads_of(before).ok());
        both.map_or_else(Vec::new, |(now, before)| now.not_restarted_since(before))
    }

    /// Whether the Service behind a host name selects a pod in a revision; true if unknown.
    pub fn is_selected(&self, pod: &ReleasePod, host: &str, revision: Revision) -> bool {
        let id = (pod.workload_kind.clone(), pod.workload.clone());
        self.workloads_of(revision)
            .map_or(true, |workloads| workloads.is_selected(&id, host))
    }

    fn workloads_of(&self, revision: Revision) -> Result<&RevisionWorkloads, String> {
        let mut all = self.workloads.iter();
        if let Some((_, workloads)) = all.find(|(of, _)| *of == revision) {
            return Ok(workloads);
        }
        let mut unreadable = self.unreadable.iter();
        Err(match unreadable.find(|(of, _)| *of == revision) {
            Some((_, why)) => format!("revision {revision} cannot be read: {why}"),
            None => format!("the record of revision {revision} was not read"),
        })
    }
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasePod {
    /// Its name.
    pub name: Box<str>,
    /// The revision that it belongs to.
    pub revision: Revision,
    /// Its node.
    pub node: Box<str>,
    /// Since when it is Ready; `None` while it is not.
    pub ready_since: Option<Time>,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Restarts of its containers. Injected containers are ignored, here and below, if the template is known.
    pub restarts: u32,
    /// Why a container waits, as CrashLoopBackOff.
    pub waiting: Option<Box<str>>,
    /// Where it can be reached directly, if there is only one way.
    pub address: Option<SocketAddr>,
    /// Its workload, as the Deployment's name; empty if there is none.
    #[serde(default)]
    pub workload: Box<str>,
    /// The workload's kind, as `Deployment`; empty if there is none.
    #[serde(default)]
    pub workload_kind: Box<str>,
    /// The container that restarts or waits; empty if there is none, or it is unknown.
    #[serde(default)]
    pub container: Box<str>,
    /// Its address in the cluster.
    #[serde(default)]
    pub ip: Option<IpAddr>,
    /// The ports of its containers.
    #[serde(default)]
    pub ports: Vec<ContainerPort>,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// Its name; empty if it has none.
    pub name: Box<str>,
    /// Its number.
    pub number: u16,
}

impl ReleasePod {
    /// Its workload in words, as `Deployment web`; empty if there is none.
    pub fn workload_name(&self) -> String {
        format!("{} {}", self.workload_kind, self.workload)
            .trim()
            .to_owned()
    }

    /// Whether another pod belongs to the same workload.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        self.workload_kind == other.workload_kind && self.workload == other.workload
    }

    /// Whether one of its containers crashes in a loop.
    pub fn is_crash_looping(&self) -> bool {
        self.waiting.as_deref() == Some("CrashLoopBackOff")
    }

    /// Why it cannot start, if so, by the kubelet's reasons.
    pub fn stuck(&self) -> Option<StuckReason> {
        match self.waiting.as_deref()? {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => Some(StuckReason::Image),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                Some(StuckReason::Container)
            }
            _ => None,
        }
    }
}

/// A rollback that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackPlan {
    /// The rejected revision; it must still be the newest.
    pub bad: Revision,
    /// The revision to roll back to.
    pub target: Revision,
    /// The contents of the target.
    pub digest: ContentDigest,
    /// The reason, for the record.
    pub reason: String,
    /// The fencing token: higher than that of any replica before, written to what the rollback changes.
    pub fence: u64,
    /// Only to learn what prevents a rollback: nothing is waited for.
    pub is_dry_run: bool,
}

/// Result of a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackReport {
    /// The revision that it made.
    pub created_revision: Revision,
    /// Whether an unfinished rollback was found and completed.
    pub finished: bool,
}

/// Why a rollback does not start, or failed. The text names the thing and the way out. If the way out is another
/// revision, [`RollbackError::told`] adds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// There is no revision to roll back to.
    #[error("{0}")]
    NoTarget(#[from] NoTarget),
    /// Another revision is the newest by now.
    #[error("revision {newest} took the place of revision {bad}")]
    Overtaken {
        /// The rejected revision.
        bad: Revision,
        /// The newest one.
        newest: Revision,
    },
    /// Another operation is running.
    #[error(
        "revision {revision} is {status}: another operation is under way; wait for it, or clear the record"
    )]
    Pending {
        /// Its revision.
        revision: Revision,
        /// Its status.
        status: revision_ledger::RevisionStatus,
    },
    /// The target is gone, or has other contents than planned.
    #[error("revision {target} is no longer there with the contents that were planned")]
    TargetGone {
        /// The target.
        target: Revision,
    },
    /// A preflight check failed.
    #[error("{text}")]
    Prevented {
        /// A word for it, as `rights`.
        reason: &'static str,
        /// What, and the way out.
        text: String,
    },
    /// It was tried, and failed.
    #[error("{text}")]
    Failed {
        /// Why, and the way out.
        text: String,
    },
    /// The history cannot be read or written.
    #[error("{0}")]
    Storage(String),
}

impl RollbackError {
    /// A failed preflight check.
    pub fn prevented(reason: &'static str, text: impl Into<String>) -> Self {
        Self::Prevented {
            reason,
            text: text.into(),
        }
    }

    /// The text for people, with how to find another revision and the command to roll back to it.
    pub fn told(&self, namespace: &Namespace, release: &ReleaseName) -> String {
        match self {
            Self::NoTarget(_) | Self::TargetGone { .. } => {
                let command = by_hand::helm_command(release.as_str(), namespace.as_str(), None);
                format!(
                    "{self}; by hand, to one that you trust: helm history {release} --namespace {namespace}, and then {command}"
                )
            }
            Self::Overtaken { .. }
            | Self::Pending { .. }
            | Self::Prevented { .. }
            | Self::Failed { .. }
            | Self::Storage(_) => self.to_string(),
        }
    }

    /// A word for it, for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoTarget(_) => "no_target",
            Self::Overtaken { .. } => "overtaken",
            Self::Pending { .. } => "pending",
            Self::TargetGone { .. } => "target_gone",
            Self::Prevented { reason, .. } => reason,
            Self::Failed { .. } => "failed",
            Self::Storage(_) => "storage",
        }
    }
}

/// A future of an engine.
pub type EngineFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Follows a release and carries out rollbacks.
pub trait Engine: Send + Sync {
    /// Its name in the API: `embedded`.
    fn name(&self) -> &'static str;

    /// Follows the release until all receivers are gone. Trouble is published beside the last known state.
    fn follow(self: Arc<Self>, to: watch::Sender<ObservedState>) -> EngineFuture<()>;

    /// A revision is under analysis, so earlier ones are needed as well, even if it was there at the start.
    fn look_back(&self) {}

    /// Sets the fencing token; nothing is changed before.
    ///
    /// Each release has one sequence of tokens, which only grows: a controller that starts takes one more than the
    /// stored state has, or the count of the Lease's transitions if that is higher. So it also grows without a Lease,
    /// and after the Lease was deleted and counts from 1 again. The stored state, its ConfigMap, the plans
    /// ([`RollbackPlan::fence`]) and all writes to the cluster carry the same token.
    fn acts_as(&self, _fence: u64) {}

    /// Images that pods of the last revisions ran, to be stored: at most [`MAX_RUN_IMAGES`]. A later process needs them
    /// when the pods are gone.
    fn run_images(&self) -> Vec<RunImage> {
        Vec::new()
    }

    /// Takes what an earlier process stored of that.
    fn remember_images(&self, _images: &[RunImage]) {}

    /// Whether the plan may and can be carried out now.
    fn preflight(self: Arc<Self>, plan: RollbackPlan) -> EngineFuture<Result<(), RollbackError>>;

    /// Carries out the plan.
    fn execute(
        self: Arc<Self>,
        plan: RollbackPlan,
    ) -> EngineFuture<Result<RollbackReport, RollbackError>>;

    /// A stored revision with its contents, even if [`ReleaseState`] knows only its number; `None` if it is gone or
    /// unreadable.
    fn stored(self: Arc<Self>, revision: Revision) -> EngineFuture<Option<StoredRevision>>;

    /// Collects evidence about a rejected revision; `None` if the engine has none.
    fn evidence_collector(
        self: Arc<Self>,
        _facts: Arc<ReleaseState>,
        _bad: Revision,
        _serving: Option<Revision>,
    ) -> EngineFuture<Option<EvidenceBundle>> {
        Box::pin(std::future::ready(None))
    }

    /// How the cluster differs from the revision that a rollback made, in words.
    fn drift(self: Arc<Self>, _made: Revision) -> EngineFuture<Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Emits a Kubernetes Event, or nothing in other surroundings.
    fn tell(self: Arc<Self>, _notice: ReleaseEvent) -> EngineFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

/// An event for people who look at the release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseEvent {
    /// Whether somebody should act.
    pub is_warning: bool,
    /// What happened, as `ReleaseRegressed`.
    pub reason: &'static str,
    /// What was done, as `Judge`.
    pub action: &'static str,
    /// As a sentence.
    pub text: String,
    /// The revision that it is about.
    pub revision: Revision,
}

/// The state of a release, or why it is unknown at the moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedState {
    /// The last known state.
    pub release_state: Arc<ReleaseState>,
    /// Why nothing newer is known; `None` if all is well.
    pub trouble: Option<String>,
    /// Failed watches since the start.
    pub failures: u64,
}

/// The target of a rollback, from the release's state and the ledger.
///
/// # Errors
///
/// When there is none.
pub fn plan(
    bad: Revision,
    release_state: &ReleaseState,
    ledger: &RevisionLedger,
    serving: Option<Revision>,
    reason: &str,
) -> Result<RollbackPlan, RollbackError> {
    let choice = revision_ledger::choose(bad, &release_state.revisions, ledger, serving)?;
    Ok(RollbackPlan {
        bad,
        target: choice.target,
        digest: choice.digest,
        reason: reason.to_owned(),
        fence: 0,
        is_dry_run: false,
    })
}

/// Revisions before the bad one, with other contents, that are read if a person names none.
const READ_BACK: usize = 6;

/// Revisions with the same contents as the bad one do not count as targets. There are many of them where each commit
/// deploys all charts.
const MAX_READ_BACK: usize = 50;

/// The state, together with the revisions that a person who names none may mean; so far only their numbers may be
/// known.
///
/// # Errors
///
/// When one cannot be read that may have the contents of the bad revision: the target is unknown then.
pub async fn read_back(
    engine: Arc<dyn Engine>,
    bad: Revision,
    release_state: &ReleaseState,
) -> Result<ReleaseState, RollbackError> {
    let mut release_state = release_state.clone();
    let mut all = release_state.revisions.iter();
    let of_bad = all.find(|record| record.revision == bad);
    let digest = of_bad.and_then(|record| record.digest.clone());
    let mut others = 0;
    let earlier = release_state.revisions.iter_mut().rev();
    let earlier = earlier.filter(|record| record.revision < bad);
    for record in earlier.take(MAX_READ_BACK) {
        if let Some(stored) = Arc::clone(&engine).stored(record.revision).await {
            *record = stored;
        }
        if others == 0 && digest.is_some() && record.digest.is_none() {
            return Err(RollbackError::Storage(format!(
                "revision {} cannot be read, so it is not known how far back to go; try again, or name the revision",
                record.revision
            )));
        }
        if digest.is_none() || record.digest != digest {
            others += 1;
        }
        if others >= READ_BACK {
            break;
        }
    }
    Ok(release_state)
}

/// The plan for an order: to the named revision, else to the last known good one, else to the last that worked as far
/// as Helm tells. See [`read_back`].
///
/// # Errors
///
/// When there is none.
pub async fn plan_by_hand(
    engine: Arc<dyn Engine>,
    bad: Revision,
    target: Option<Revision>,
    release_state: &ReleaseState,
    ledger: &RevisionLedger,
    reason: &str,
) -> Result<RollbackPlan, RollbackError> {
    if let Some(target) = target {
        let stored = engine.stored(target).await;
        let digest = stored.and_then(|stored| stored.digest);
        return Ok(RollbackPlan {
            bad,
            target,
            digest: digest.ok_or(RollbackError::TargetGone { target })?,
            reason: reason.to_owned(),
            fence: 0,
            is_dry_run: false,
        });
    }
    let mut planned = plan(bad, release_state, ledger, None, reason);
    let earlier = release_state.revisions.iter().rev();
    for record in earlier.filter(|record| record.revision < bad && record.digest.is_some()) {
        if planned.is_ok() {
            break;
        }
        planned = plan(bad, release_state, ledger, Some(record.revision), reason);
    }
    planned
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use std::collections::BTreeMap;

    use super::*;
    use crate::core::revision_ledger::RevisionStatus;

    /// One letter per revision stands for its contents.
    struct Letters(&'static str);

    impl Engine for Letters {
        fn name(&self) -> &'static str {
            "letters"
        }

        fn follow(self: Arc<Self>, _to: watch::Sender<ObservedState>) -> EngineFuture<()> {
            Box::pin(std::future::pending())
        }

        fn preflight(
            self: Arc<Self>,
            _plan: RollbackPlan,
        ) -> EngineFuture<Result<(), RollbackError>> {
            Box::pin(std::future::ready(Ok(())))
        }

        fn execute(
            self: Arc<Self>,
            _plan: RollbackPlan,
        ) -> EngineFuture<Result<RollbackReport, RollbackError>> {
            let text = "it has no hands".into();
            Box::pin(std::future::ready(Err(RollbackError::Failed { text })))
        }

        fn stored(self: Arc<Self>, revision: Revision) -> EngineFuture<Option<StoredRevision>> {
            let letter = self.0.get(revision.0 as usize - 1..revision.0 as usize);
            // A space cannot be read.
            let letter = letter.filter(|letter| *letter != " ");
            let stored = letter.map(|letter| StoredRevision {
                digest: Some(ContentDigest(letter.into())),
                ..known_by_number(revision)
            });
            Box::pin(std::future::ready(stored))
        }
    }

    fn known_by_number(revision: Revision) -> StoredRevision {
        StoredRevision {
            revision,
            status: RevisionStatus::Superseded,
            description: "Upgrade complete".into(),
            digest: None,
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        }
    }

    /// Where a pipeline deploys all charts at each commit, many revisions in a row have the same contents.
    #[tokio::test]
    async fn a_person_goes_back_over_all_that_has_the_same_contents() {
        let contents = "abaaaaaaaaaaaa";
        let engine: Arc<dyn Engine> = Arc::new(Letters(contents));
        let bad = Revision(14);
        let mut release_state = ReleaseState {
            revisions: (1..=14)
                .map(|number| known_by_number(Revision(number)))
                .collect(),
            ours: vec![Revision(3)],
            ..ReleaseState::default()
        };
        release_state.revisions[13] = Arc::clone(&engine).stored(bad).await.unwrap();
        let read = read_back(Arc::clone(&engine), bad, &release_state)
            .await
            .unwrap();
        let check = by_hand::check(&read, bad, None, &BTreeMap::new(), "shop/web");
        let why = check.unwrap_err().why().to_owned();
        assert!(
            why.starts_with(
                "revision 14 has the contents of revision 3, which is what a rollback made"
            ),
            "{why}"
        );
        let plan = plan_by_hand(
            engine,
            bad,
            None,
            &read,
            &RevisionLedger::default(),
            "the cart",
        )
        .await;
        assert_eq!(plan.unwrap().target, Revision(2));
        // One of other contents ends it.
        let engine: Arc<dyn Engine> = Arc::new(Letters("zyxwvutsrqponm"));
        let read = read_back(Arc::clone(&engine), bad, &release_state)
            .await
            .unwrap();
        let known = read
            .revisions
            .iter()
            .filter(|record| record.digest.is_some());
        assert_eq!(known.count(), 1 + READ_BACK);
        // One that cannot be read may be what a rollback made, so nothing is chosen over it.
        let engine: Arc<dyn Engine> = Arc::new(Letters("aba aaaaaaaaaa"));
        let refused = read_back(engine, bad, &release_state).await.unwrap_err();
        assert!(
            refused.to_string().starts_with("revision 4 cannot be read"),
            "{refused}"
        );
    }

    #[test]
    fn whoever_has_no_revision_to_go_back_to_is_told_the_commands_as_they_are_run() {
        let nothing = NoTarget {
            passed_over: vec!["revision 1 has contents that were found bad".into()],
        };
        let gone = RollbackError::TargetGone {
            target: Revision(1),
        };
        let (namespace, release) = (Namespace::new("shop"), ReleaseName::new("web"));
        for rollback_error in [RollbackError::from(nothing), gone] {
            let told = rollback_error.told(&namespace, &release);
            assert!(told.starts_with(&rollback_error.to_string()), "{told}");
            for command in [
                "helm history web --namespace shop, and then",
                "helm rollback web REVISION --namespace shop --history-max 0",
            ] {
                assert!(told.contains(command), "{told}");
            }
        }
        let other = RollbackError::prevented("helm", "there is no helm");
        assert_eq!(other.told(&namespace, &release), "there is no helm");
    }
}
