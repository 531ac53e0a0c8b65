//! A release in a Kubernetes cluster: followed by watches, rolled back by helm.
//!
//! Of its records only the metadata is watched. A payload is large and may hold secrets, so it is fetched when it is
//! needed: that of the newest and of the deployed revision, and during an analysis those of the last few before.
//!
//! Invariants:
//! - helm starts only if the rejected revision is still the newest; its result is read from the records, not from its
//!   output;
//! - we leave no record in `pending-rollback`;
//! - each of our writes names the version that was read;
//! - helm reaches the API server through this process, which passes on only what a rollback of this release may do;
//! - only the replica with the permit writes: each write asks for it immediately before, and is given up when it is
//!   lost, with everything that was not sent yet;
//! - each record that we change and each Event carries the fencing token ([`Engine::acts_as`]). Helm's own writes
//!   cannot; our first change of the record afterwards adds it. The deletion of a pod cannot either; it names the pod's
//!   uid instead.

mod api;
mod checks;
mod completeness;
mod drift;
mod dry_run;
mod events;
mod evidence;
mod granted;
mod helm_command;
mod helm_limits;
mod helm_proxy;
mod helm_version;
mod images;
mod labels;
mod merge;
mod namespace_cache;
mod objects;
mod preflight;
mod rbac;
mod record_patch;
mod record_sizes;
mod records;
mod release_state;
mod replicas;
mod rollback;
mod scope;
mod scope_check;
mod unowned_services;
mod watcher;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

pub use api::{ApiAccess, ApiConnector, connect};
pub use helm_command::prepare_scratch;
pub use namespace_cache::NamespaceCache;
pub use rbac::{RbacRights, RequiredRights, needed};

use super::change::RevisionWorkloads;
use super::{
    Engine, EngineFuture, ObservedState, ReleaseEvent, ReleaseState, RollbackError, RollbackPlan,
    RollbackReport, RunImage,
};
use crate::config::settings::HelmDriver;
use crate::config::settings::RollbackPermissions;
use crate::core::evidence::EvidenceBundle;
use crate::core::revision_ledger::StoredRevision;
use crate::core::units::{Namespace, ReleaseName, Revision, Time};
use crate::kubernetes::client::EventRecorder;
use crate::platform::permit::Permit;
use objects::WorkloadKind;
use records::{FencingToken, Records};
use release_state::ReleaseStateBuilder;

/// Revisions before the newest that are read during an analysis: the target is among them.
const READ_BACK: usize = 6;

/// Interval of updates when only time has passed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Wait before a failed payload is fetched again.
const READ_AGAIN: Duration = Duration::from_secs(2);

/// How a rollback may be done.
#[derive(Debug, Clone)]
pub struct RollbackPolicy {
    /// The helm binary: a path, or a name that is looked up in `PATH`.
    pub helm: PathBuf,
    /// Helm's memory limit in bytes.
    pub helm_memory: u64,
    /// A folder that helm may write to.
    pub scratch: PathBuf,
    /// A name for the cluster, see [`ApiConnector::cluster`].
    pub cluster: String,
    /// What a rollback may do.
    pub may: RollbackPermissions,
    /// Whether this process may change anything now.
    pub permit: Permit,
    /// Whether the mode is enforce. Only then leftovers of our earlier runs are repaired.
    pub enforces: bool,
    /// A person runs this, so helm uses that person's environment.
    pub by_person: bool,
}

/// A fetched revision.
#[derive(Debug, Clone)]
struct CachedRecord {
    /// Version of the object that it was read from.
    version: Box<str>,
    read: Result<RecordSummary, String>,
}

/// What is kept of a payload.
#[derive(Debug, Clone)]
struct RecordSummary {
    stored: StoredRevision,
    workloads: Vec<(WorkloadKind, Box<str>)>,
    stops_first: bool,
    /// Services whose pods come from workloads outside the chart.
    indirect: Vec<unowned_services::UnownedService>,
    contents: Arc<RevisionWorkloads>,
}

/// The engine for a release in a cluster.
pub struct ClusterEngine {
    cache: Arc<NamespaceCache>,
    release: ReleaseName,
    policy: RollbackPolicy,
    records: Records,
    /// The revision that helm is making for us now, and its target.
    making: Mutex<Option<(Revision, Revision)>>,
    /// A rollback with an unknown end, and when it was abandoned.
    left: Mutex<Option<(RollbackPlan, Time)>>,
    /// The revision that the last rollback of this process made.
    created_revision: Mutex<Option<Revision>>,
    recorder: EventRecorder,
    /// The workloads of the newest readable revision.
    parts: Mutex<Vec<(WorkloadKind, Box<str>)>>,
    /// The last minutely check: the revision to roll back, the target, and whether all checks passed.
    looked: Mutex<Option<(Revision, Revision, bool)>>,
    /// Rights for evidence that were missing at the last check.
    lacking: Mutex<String>,
    /// Whether earlier revisions are needed although no new one has appeared since the start.
    looks_back: AtomicBool,
    /// Unpacked sizes of its records.
    sizes: Mutex<record_sizes::RecordSizes>,
    /// What the last minutely check knows from dry runs.
    tried: Mutex<Option<dry_run::DryRunCache>>,
    /// Since when the newest revision is known, by our clock.
    seen: Mutex<Option<(Revision, Time)>>,
    /// Images of the last revisions' pods.
    images: Mutex<images::ImageHistory>,
    /// Remarks about a rollback from the last check: autoscalers, moved tags, possible data changes.
    foreseen: Mutex<Vec<String>>,
    /// The fencing token; 0 until it is known. Until then nothing is repaired.
    fence: AtomicU64,
}

impl ClusterEngine {
    /// For a release in the cache's namespace.
    pub fn new(
        cache: Arc<NamespaceCache>,
        release: ReleaseName,
        policy: RollbackPolicy,
    ) -> Arc<Self> {
        let records = Records::new(cache.client().clone(), cache.namespace(), cache.driver());
        let recorder = events::recorder(cache.client().clone());
        Arc::new(Self {
            cache,
            release,
            policy,
            records,
            making: Mutex::new(None),
            left: Mutex::new(None),
            created_revision: Mutex::new(None),
            recorder,
            parts: Mutex::new(Vec::new()),
            looks_back: AtomicBool::new(false),
            looked: Mutex::default(),
            lacking: Mutex::default(),
            sizes: Mutex::default(),
            tried: Mutex::default(),
            images: Mutex::default(),
            foreseen: Mutex::default(),
            seen: Mutex::new(None),
            fence: AtomicU64::new(0),
        })
    }

    fn fence(&self) -> u64 {
        self.fence.load(Ordering::Relaxed)
    }

    fn turn(&self) -> FencingToken<'_> {
        FencingToken {
            permit: &self.policy.permit,
            fence: self.fence(),
        }
    }

    fn foreseen(&self) -> Vec<String> {
        let foreseen = self.foreseen.lock();
        foreseen.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn making(&self) -> Option<(Revision, Revision)> {
        *self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_making(&self, making: Option<(Revision, Revision)>) {
        *self.making.lock().unwrap_or_else(PoisonError::into_inner) = making;
    }

    fn left(&self) -> Option<(RollbackPlan, Time)> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.clone()
    }

    fn set_left(&self, left: Option<(RollbackPlan, Time)>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }

    fn created_revision(&self) -> Option<Revision> {
        *self
            .created_revision
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn set_made(&self, created_revision: Revision) {
        *self
            .created_revision
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(created_revision);
    }

    fn parts(&self) -> Vec<(WorkloadKind, Box<str>)> {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn note_parts(&self, known: &BTreeMap<Revision, CachedRecord>) {
        let mut read = known
            .values()
            .rev()
            .filter_map(|known| known.read.as_ref().ok());
        let Some(read) = read.next() else {
            return;
        };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if *parts != read.workloads {
            parts.clone_from(&read.workloads);
        }
    }

    fn note_newest(&self, revision: Option<Revision>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.map(|(revision, _)| revision) != revision {
            *seen = revision.map(|revision| (revision, self.cache.now()));
        }
    }

    /// Since when a revision is known to be the newest; now, if it is not.
    fn seen_since(&self, revision: Revision) -> Time {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let since = seen.filter(|(newest, _)| *newest == revision);
        since.map_or_else(|| self.cache.now(), |(_, since)| since)
    }

    async fn follow(&self, to: &watch::Sender<ObservedState>) {
        // However it ends, also by a panic: what was last known must not be taken for what is.
        let _ended = EndGuard(to);
        let mut changes = self.cache.changes();
        let mut known: BTreeMap<Revision, CachedRecord> = BTreeMap::new();
        let mut is_told = false;
        let mut first_newest = None;
        let mut newest_row: Option<(Revision, Box<str>)> = None;
        let mut unchanged_since = self.cache.now();
        let mut unread: Option<(tokio::time::Instant, String)> = None;
        let mut repaired = tokio::time::Instant::now();
        while !to.is_closed() {
            let (rows, trouble, is_unread) = {
                let tables = self.cache.tables();
                let rows = release_state::rows(&tables, self.release.as_str());
                (
                    rows.into_iter().cloned().collect::<Vec<_>>(),
                    tables.trouble(),
                    tables.is_unread(),
                )
            };
            if is_unread && trouble.is_none() {
                // The very first lists are on their way.
                tokio::select! {
                    gone = changes.changed() => if gone.is_err() { return },
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
                continue;
            }
            if trouble.is_none() {
                let newest = rows.last().map(|row| (row.revision, row.status.clone()));
                if newest != newest_row {
                    newest_row = newest;
                    unchanged_since = self.cache.now();
                }
                let revision = rows.last().map(|row| row.revision);
                self.note_newest(revision);
                let in_candidate = *first_newest.get_or_insert(revision) != revision
                    || self.looks_back.load(Ordering::Relaxed);
                known.retain(|revision, _| rows.iter().any(|row| row.revision == *revision));
                let may_read = unread
                    .as_ref()
                    .is_none_or(|(since, _)| since.elapsed() >= READ_AGAIN);
                if may_read {
                    unread = self
                        .read_what_is_needed(&rows, in_candidate, &mut known)
                        .await
                        .map(|why| (tokio::time::Instant::now(), why));
                }
                self.note_parts(&known);
                if repaired.elapsed() >= Duration::from_secs(1) {
                    repaired = tokio::time::Instant::now();
                    if self.policy.permit.holds() && self.fence() > 0 {
                        self.finish_left().await;
                        self.repair_records(&rows).await;
                        self.unblock(&rows, &known).await;
                    }
                }
            }
            let trouble = trouble.or_else(|| unread.as_ref().map(|(_, why)| why.clone()));
            let release_state = trouble.is_none().then(|| {
                let view = ReleaseStateBuilder {
                    release: self.release.as_str(),
                    known: &known,
                    unchanged_since,
                    making: self.made_now(&rows, &known),
                    now: self.cache.now(),
                };
                let tables = self.cache.tables();
                let mut release_state = view.release_state(&tables);
                release_state.remarks.extend(self.foreseen());
                let images = || self.images.lock().unwrap_or_else(PoisonError::into_inner);
                images().note(&tables, &release_state);
                release_state
            });
            to.send_if_modified(|observed| {
                let mut is_new = observed.trouble != trouble;
                observed.trouble.clone_from(&trouble);
                observed.failures = self.cache.failures();
                if let Some(release_state) = release_state
                    && (*observed.release_state != release_state || !is_told)
                {
                    observed.release_state = Arc::new(release_state);
                    is_told = true;
                    is_new = true;
                }
                is_new
            });
            tokio::select! {
                gone = changes.changed() => if gone.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// The revision that helm has made for us and that has no label yet.
    fn made_now(
        &self,
        rows: &[objects::RecordSummaryRow],
        known: &BTreeMap<Revision, CachedRecord>,
    ) -> Option<Revision> {
        let (created_revision, target) = self.making()?;
        let newest = rows.last().filter(|row| row.revision == created_revision)?;
        let read = known.get(&newest.revision)?.read.as_ref().ok()?;
        let goes_back = read.stored.rolled_back_to() == Some(target)
            || read.stored.description.starts_with("Rollback \"");
        goes_back.then_some(created_revision)
    }

    /// Fetches payloads that are unknown or have changed. Returns why one that matters could not be fetched.
    async fn read_what_is_needed(
        &self,
        rows: &[objects::RecordSummaryRow],
        in_candidate: bool,
        known: &mut BTreeMap<Revision, CachedRecord>,
    ) -> Option<String> {
        let newest = rows.last().map(|row| row.revision);
        let deployed = rows.iter().rev().find(|row| &*row.status == "deployed");
        let deployed = deployed.map(|row| row.revision);
        let mut trouble = None;
        for (back, row) in rows.iter().rev().enumerate() {
            let wanted = Some(row.revision) == newest
                || Some(row.revision) == deployed
                || (in_candidate && back < READ_BACK);
            if !wanted
                || !needs_reading(row, known.get(&row.revision), Some(row.revision) == newest)
            {
                continue;
            }
            let namespace = self.cache.namespace().clone();
            let fetched = self
                .records
                .fetch_as(&row.object, move |it| RecordSummary::of(&it, &namespace));
            match fetched.await {
                Ok(Some((version, read))) => {
                    known.insert(row.revision, CachedRecord { version, read });
                }
                // Also of an earlier one: what is not known is no reason to say that there is nothing to go back to.
                Err(error) => trouble = Some(format!("{}: {error}", row.object)),
                // Deleted in between, which the watch will say.
                Ok(None) => {}
            }
        }
        trouble
    }
}

/// Publishes at its end that nothing new will be known.
struct EndGuard<'a>(&'a watch::Sender<ObservedState>);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|observed| {
            observed.trouble =
                Some("the release is not followed any more; start Leadsman again".into());
        });
    }
}

/// Whether a payload has to be fetched. When an older revision becomes superseded, nothing else in it changes.
fn needs_reading(
    row: &objects::RecordSummaryRow,
    known: Option<&CachedRecord>,
    is_newest: bool,
) -> bool {
    let Some(known) = known else {
        return true;
    };
    if known.version == row.version {
        return false;
    }
    let was_final = known
        .read
        .as_ref()
        .is_ok_and(|read| !read.stored.status.is_pending());
    is_newest || !was_final
}

impl RecordSummary {
    /// A revision with an unreadable manifest can neither be analyzed nor be a target: it counts as unreadable.
    fn of(record: &crate::helm::record::HelmRecord, namespace: &Namespace) -> Result<Self, String> {
        let objects =
            crate::helm::manifest::objects(&record.manifest).map_err(|why| why.to_string())?;
        let workloads = objects.iter().filter_map(|object| {
            let kind = match object.kind.as_str() {
                "Deployment" => WorkloadKind::Deployment,
                "StatefulSet" => WorkloadKind::StatefulSet,
                "DaemonSet" => WorkloadKind::DaemonSet,
                _ => return None,
            };
            // What lives in another namespace is not watched, so nobody can see how far it has come.
            let is_elsewhere = object
                .namespace
                .as_deref()
                .is_some_and(|own| own != namespace.as_str());
            (object.is_workload() && !is_elsewhere).then(|| (kind, object.name.as_str().into()))
        });
        Ok(Self {
            stored: StoredRevision {
                weak: record.weak(&objects),
                ..told(record.stored())
            },
            workloads: workloads.collect(),
            stops_first: objects
                .iter()
                .any(crate::helm::manifest::ManifestObject::stops_first),
            indirect: unowned_services::services(&objects, namespace.as_str()),
            contents: Arc::new(RevisionWorkloads::of(record, &objects)),
        })
    }
}

/// Redacts the description, which is shown and may be an error of Helm with everything that it prints.
fn told(stored: StoredRevision) -> StoredRevision {
    StoredRevision {
        description: crate::helm::error::described(&stored.description),
        ..stored
    }
}

impl Engine for ClusterEngine {
    fn name(&self) -> &'static str {
        "helm"
    }

    fn follow(self: Arc<Self>, to: watch::Sender<ObservedState>) -> EngineFuture<()> {
        Box::pin(async move { ClusterEngine::follow(&self, &to).await })
    }

    fn look_back(&self) {
        self.looks_back.store(true, Ordering::Relaxed);
    }

    fn acts_as(&self, fence: u64) {
        self.fence.store(fence, Ordering::Relaxed);
    }

    fn preflight(self: Arc<Self>, plan: RollbackPlan) -> EngineFuture<Result<(), RollbackError>> {
        Box::pin(async move { self.may_be_rolled_back(&plan).await })
    }

    fn stored(self: Arc<Self>, revision: Revision) -> EngineFuture<Option<StoredRevision>> {
        Box::pin(async move {
            let record = self.record(revision).await.ok()??;
            Some(
                RecordSummary::of(&record, self.cache.namespace())
                    .map_or_else(|_| told(record.stored()), |read| read.stored),
            )
        })
    }

    fn evidence_collector(
        self: Arc<Self>,
        release_state: Arc<ReleaseState>,
        bad: Revision,
        serving: Option<Revision>,
    ) -> EngineFuture<Option<EvidenceBundle>> {
        Box::pin(async move {
            // Each part of it has a limit, so that what is slow does not cost the rest.
            Some(
                Box::pin(ClusterEngine::evidence_collector(
                    &self,
                    &release_state,
                    bad,
                    serving,
                ))
                .await,
            )
        })
    }

    fn drift(self: Arc<Self>, created_revision: Revision) -> EngineFuture<Vec<String>> {
        Box::pin(async move { self.differs(created_revision).await })
    }

    fn run_images(&self) -> Vec<RunImage> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.to_stored()
    }

    fn remember_images(&self, stored: &[RunImage]) {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.remember(stored);
    }

    fn tell(self: Arc<Self>, notice: ReleaseEvent) -> EngineFuture<()> {
        Box::pin(async move { self.publish(notice).await })
    }

    fn execute(
        self: Arc<Self>,
        plan: RollbackPlan,
    ) -> EngineFuture<Result<RollbackReport, RollbackError>> {
        // Before anything else: what helm makes is ours from its first moment.
        self.set_making(Some((Revision(plan.bad.0 + 1), plan.target)));
        Box::pin(async move {
            let report = self.roll_back(&plan).await;
            self.set_making(None);
            report
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader must not take the last known state for the present one.
    #[tokio::test]
    async fn a_following_that_ends_by_itself_is_told_as_trouble() {
        let (tell, told) = watch::channel(ObservedState::default());
        let following = tokio::spawn(async move {
            let _ended = EndGuard(&tell);
            std::future::pending::<()>().await;
        });
        tokio::task::yield_now().await;
        assert_eq!(told.borrow().trouble, None);
        following.abort();
        assert!(following.await.is_err());
        assert!(told.borrow().trouble.is_some());
    }
}
