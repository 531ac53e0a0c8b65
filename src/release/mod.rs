//! Releases: what is stored of them, what their pods do, and turning one back.
//!
//! Every engine has the same four steps: *plan* (which revision to go back to), *preflight* (may and can it be done),
//! *execute*, *report*. Facts about the release come by a watch that never ends.
//!
//! Invariants:
//! - an engine acts only if the revision found bad is still the newest: creating the next record is the fence;
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

/// What is known of a release at the moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReleaseState {
    /// Its revisions, ascending; empty when there is no such release.
    pub revisions: Vec<StoredRevision>,
    /// Revisions that a rollback of ours made.
    pub ours: Vec<Revision>,
    /// The program that stored the newest revision, by the name that it gave the API server; `None` for Helm's own
    /// command, and where nobody says.
    pub stored_by: Option<Box<str>>,
    /// Its pods, of all revisions.
    pub pods: Vec<ReleasePod>,
    /// The revision whose rollout is complete, if the newest one's is.
    pub complete: Option<Revision>,
    /// Paused, or scaled to zero.
    pub held: bool,
    /// The old pods stop before the new ones start.
    pub expected_downtime: bool,
    /// Whether pods of it are made by something that is not among its objects, and may come some time later.
    pub indirect: bool,
    /// What people should know of that, in words.
    pub remarks: Vec<String>,
    /// Revisions whose records cannot be read, and why.
    pub unreadable: Vec<(Revision, String)>,
    /// Its Deployments, StatefulSets and DaemonSets; empty where it has none, or nobody can see them.
    pub workload_states: Vec<WorkloadState>,
    /// Whether whoever deployed the newest revision is done with it, and the cluster has taken up what was written.
    pub applied: bool,
    /// Whether the newest record is older than the object that holds it: a backup has brought it back.
    pub restored: bool,
    /// When the newest revision was stored, by the clock of whoever stores it; `None` where nobody says.
    pub stored_at: Option<Time>,
    /// What the revisions that can be read say of their workloads, ascending.
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
    /// Why that is not known.
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
    /// Why that is not known.
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

    /// Workloads whose pods run on although a revision changed what they read since another one; empty as well where that
    /// is not known.
    pub fn not_restarted(&self, revision: Revision, before: Revision) -> Vec<NotRestarted> {
        let both = self.workloads_of(revision).ok();
        let both = both.zip(self.workloads_of(before).ok());
        both.map_or_else(Vec::new, |(now, before)| now.not_restarted_since(before))
    }

    /// Whether the Service that a host name stands for selects a pod in a revision; true where that is not known.
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
    /// The node that it runs on.
    pub node: Box<str>,
    /// Since when it is Ready; `None` while it is not.
    pub ready_since: Option<Time>,
    /// Whether it is on its way out.
    pub terminating: bool,
    /// Restarts of its containers; those that were injected are left out, here and in what follows, where the template is
    /// known.
    pub restarts: u32,
    /// Why a container waits, as CrashLoopBackOff.
    pub waiting: Option<Box<str>>,
    /// Where it can be asked directly, when there is only one way.
    pub address: Option<SocketAddr>,
    /// The workload that it is of, as the Deployment's name; empty where there is none.
    #[serde(default)]
    pub workload: Box<str>,
    /// The kind of that, as `Deployment`; empty where there is none.
    #[serde(default)]
    pub workload_kind: Box<str>,
    /// Which container restarts or waits; empty where none does, or that is not known.
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
    /// Its name; empty when it has none.
    pub name: Box<str>,
    /// Its number.
    pub number: u16,
}

impl ReleasePod {
    /// Its workload in words, as `Deployment web`; empty where there is none.
    pub fn workload_name(&self) -> String {
        format!("{} {}", self.workload_kind, self.workload)
            .trim()
            .to_owned()
    }

    /// Whether another pod is of the same workload.
    pub fn is_sibling_of(&self, other: &Self) -> bool {
        self.workload_kind == other.workload_kind && self.workload == other.workload
    }

    /// Whether a container of it crashes in a loop.
    pub fn is_crash_looping(&self) -> bool {
        self.waiting.as_deref() == Some("CrashLoopBackOff")
    }

    /// Why it cannot start, if so: the reasons are a kubelet's.
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
    /// The revision found bad; it must still be the newest.
    pub bad: Revision,
    /// The revision to go back to.
    pub target: Revision,
    /// The contents of the target.
    pub digest: ContentDigest,
    /// Why, for the record.
    pub reason: String,
    /// Whoever acts has a higher number than all who acted before; it is written to what is made.
    pub fence: u64,
    /// Only to learn what would be in the way: nothing is waited for.
    pub is_dry_run: bool,
}

/// What became of a rollback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackReport {
    /// The revision that it made.
    pub made: Revision,
    /// Whether it was found half done and was finished.
    pub finished: bool,
}

/// Why a rollback is not begun, or failed. The text names the thing and the way out; where that is another revision,
/// [`RollbackError::told`] does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RollbackError {
    /// There is no revision to go back to.
    #[error("{0}")]
    NoTarget(#[from] NoTarget),
    /// Another revision is the newest by now.
    #[error("revision {newest} took the place of revision {bad}")]
    Overtaken {
        /// The revision found bad.
        bad: Revision,
        /// The newest one.
        newest: Revision,
    },
    /// Somebody else's operation is under way.
    #[error(
        "revision {revision} is {status}: another operation is under way; wait for it, or clear the record"
    )]
    Pending {
        /// Which revision.
        revision: Revision,
        /// Its status.
        status: revision_ledger::RevisionStatus,
    },
    /// The target is no longer there, or is another than was planned.
    #[error("revision {target} is no longer there with the contents that were planned")]
    TargetGone {
        /// The target.
        target: Revision,
    },
    /// Something speaks against it.
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
    /// The store of the history cannot be read or written.
    #[error("{0}")]
    Storage(String),
}

impl RollbackError {
    /// Something speaks against it.
    pub fn prevented(reason: &'static str, text: impl Into<String>) -> Self {
        Self::Prevented {
            reason,
            text: text.into(),
        }
    }

    /// What a person is told: also how to find another revision, and the command to go back to it.
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

    /// A word for it, as in the metric `leadsman_rollback_ready`.
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

/// What carries out a rollback, and tells of a release.
pub trait Engine: Send + Sync {
    /// What it is, as in the API: `embedded`.
    fn name(&self) -> &'static str;

    /// Follows the release until the receivers are gone. Trouble is told as an error beside the last facts.
    fn follow(self: Arc<Self>, to: watch::Sender<ObservedState>) -> EngineFuture<()>;

    /// A revision is being judged: earlier ones are needed as well, also when it was there at the start.
    fn look_back(&self) {}

    /// Whose turn it is from now on; nothing is changed before that is told.
    ///
    /// There is one sequence of these numbers for each release, and it only grows: whoever begins to guard takes one more
    /// than the stored state has, or the count of the Lease's transitions where that is higher. So it grows as well where
    /// there is no Lease, and when the Lease was deleted and counts from 1 again. The stored state, its ConfigMap, the
    /// plans ([`RollbackPlan::fence`]) and what is written to the cluster all carry this one number.
    fn acts_as(&self, _fence: u64) {}

    /// What pods of the last revisions were seen to run, to be stored: at most [`MAX_RUN_IMAGES`]. The pods of a revision
    /// may be gone when another process has to know it.
    fn run_images(&self) -> Vec<RunImage> {
        Vec::new()
    }

    /// What an earlier process stored of that.
    fn remember_images(&self, _images: &[RunImage]) {}

    /// Whether the plan may and can be carried out now.
    fn preflight(self: Arc<Self>, plan: RollbackPlan) -> EngineFuture<Result<(), RollbackError>>;

    /// Carries out the plan.
    fn execute(
        self: Arc<Self>,
        plan: RollbackPlan,
    ) -> EngineFuture<Result<RollbackReport, RollbackError>>;

    /// A stored revision with its contents, also one that [`ReleaseState`] know by its number only; `None` when it is not there
    /// or cannot be read.
    fn stored(self: Arc<Self>, revision: Revision) -> EngineFuture<Option<StoredRevision>>;

    /// Collects what the surroundings of a bad revision are like; `None` where there are none.
    fn evidence_collector(
        self: Arc<Self>,
        _facts: Arc<ReleaseState>,
        _bad: Revision,
        _serving: Option<Revision>,
    ) -> EngineFuture<Option<EvidenceBundle>> {
        Box::pin(std::future::ready(None))
    }

    /// How what runs differs from what the revision that a rollback made says, in words.
    fn drift(self: Arc<Self>, _made: Revision) -> EngineFuture<Vec<String>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// Tells people who look at the release in its own surroundings.
    fn tell(self: Arc<Self>, _notice: ReleaseEvent) -> EngineFuture<()> {
        Box::pin(std::future::ready(()))
    }
}

/// Something that people who look at the release should see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseEvent {
    /// Whether somebody should look at it.
    pub is_warning: bool,
    /// What happened, as `ReleaseRegressed`.
    pub reason: &'static str,
    /// What was done, as `Judge`.
    pub action: &'static str,
    /// In a sentence.
    pub text: String,
    /// The revision that it is about.
    pub revision: Revision,
}

/// The facts, or why there are none at the moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ObservedState {
    /// What was last known.
    pub release_state: Arc<ReleaseState>,
    /// Why nothing newer is known; `None` when all is well.
    pub trouble: Option<String>,
    /// Watches that failed since the start.
    pub failures: u64,
}

/// Which revision to go back to, from the facts and what the ledger knows.
///
/// # Errors
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

/// So many revisions before the bad one, with other contents, are looked at when a person names none.
const READ_BACK: usize = 6;

/// Those with its own contents are no way back; where each commit deploys all charts there are many of them.
const MAX_READ_BACK: usize = 50;

/// The facts, and beside them the revisions that a person who names none may mean: what was not needed so far is known by
/// its number only.
///
/// # Errors
/// When one cannot be read that may have the contents of the bad revision, so that it is not known how far back to go.
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

/// The plan of a person: to the revision that was named, or else to the last that is known to be good, or to the last
/// that worked as far as Helm can tell; of those that were read, see [`read_back`].
///
/// # Errors
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

    /// Each revision has one letter for its contents.
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
