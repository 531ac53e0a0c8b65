//! Builds the state of one release from the cached objects of its namespace and its decoded revisions.
//!
//! A pod does not say which revision it belongs to. It belongs to the newest one if it has its workload's current
//! template and was created after that revision's record; otherwise to the last revision whose record is older than the
//! pod. So a revision without a changed template has no pods of its own until some are created. A new pod whose
//! workload's current template is unknown is left out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::CachedRecord;
use super::completeness;
use super::namespace_cache::ObjectCache;
use super::objects::{PodSummary, PortRow, RecordSummaryRow, WorkloadKind, WorkloadSummary};
use super::rollback::is_removed;
use super::unowned_services::{self, UnownedService};
use crate::core::revision_ledger::{RevisionStatus, StoredRevision};
use crate::core::units::{Revision, Time};
use crate::release::change::WorkloadId;
use crate::release::{ContainerPort, ReleasePod, ReleaseState};

/// A record with the status `deployed` may be seen before the workloads that were changed with it.
pub(super) const SETTLES_AFTER: Duration = Duration::from_secs(1);

/// The inputs besides the cached objects.
pub(super) struct ReleaseStateBuilder<'a> {
    pub(super) release: &'a str,
    /// What was read of each revision.
    pub(super) known: &'a BTreeMap<Revision, CachedRecord>,
    /// Since when the newest record has had its status.
    pub(super) unchanged_since: Time,
    /// The revision that our rollback is making, and that has no label yet.
    pub(super) making: Option<Revision>,
    pub(super) now: Time,
}

/// Kubernetes' timestamps have whole seconds, rounded down.
const STAMP: Duration = Duration::from_millis(999);

/// The stored revisions of a release, ascending.
pub(super) fn rows<'a>(tables: &'a ObjectCache, release: &str) -> Vec<&'a RecordSummaryRow> {
    let own = |row: &&RecordSummaryRow| &*row.release == release;
    let mut rows: Vec<&RecordSummaryRow> = tables.stored.values().filter(own).collect();
    rows.sort_by_key(|row| row.revision);
    rows
}

/// The status label; a value that Helm does not know becomes unknown.
pub(super) fn status_of(row: &RecordSummaryRow) -> RevisionStatus {
    serde_json::from_value(row.status.to_string().into()).unwrap_or(RevisionStatus::Unknown)
}

impl ReleaseStateBuilder<'_> {
    pub(super) fn release_state(&self, tables: &ObjectCache) -> ReleaseState {
        let rows = rows(tables, self.release);
        let newest = rows.last().filter(|row| !is_removed(status_of(row)));
        let Some(newest) = newest else {
            // Also where somebody uninstalls it and keeps its history.
            return ReleaseState::default();
        };
        let revisions = rows.iter().map(|row| self.stored(row)).collect();
        let ours = rows
            .iter()
            .filter(|row| row.ours || self.making == Some(row.revision))
            .map(|row| row.revision)
            .collect();
        let mut unreadable = Vec::new();
        for (revision, known) in self.known {
            if let Err(why) = &known.read {
                unreadable.push((*revision, why.clone()));
            }
        }
        let parts = self.parts(tables);
        let indirect = self.indirect();
        let workloads: Vec<&WorkloadSummary> = tables
            .workloads()
            .filter(|row| {
                parts
                    .iter()
                    .any(|(kind, name)| *kind == row.kind && *name == row.name)
            })
            .collect();
        let stops_first = self
            .read(newest.revision)
            .is_some_and(|read| read.stops_first);
        let scaled: Vec<&&WorkloadSummary> = workloads
            .iter()
            .filter(|row| row.kind != WorkloadKind::DaemonSet)
            .collect();
        let states = completeness::states(tables, &parts, &workloads);
        ReleaseState {
            revisions,
            ours,
            pods: self.pods(tables, &rows, &workloads),
            applied: self.is_applied(newest) && states.iter().all(|state| state.observed),
            // An older one's parts say nothing about a revision that cannot be read.
            workload_states: if self.read(newest.revision).is_some() {
                states
            } else {
                Vec::new()
            },
            restored: newest.restored,
            stored_by: newest.by.clone(),
            complete: self
                .is_complete(newest, &workloads, parts.len())
                .then_some(newest.revision),
            // One of them alone silences only the probes that ask it.
            held: !scaled.is_empty() && scaled.iter().all(|row| row.paused || row.wanted == 0),
            expected_downtime: stops_first,
            indirect: !indirect.is_empty(),
            remarks: indirect.iter().map(|one| one.remark(tables)).collect(),
            unreadable,
            stored_at: (newest.created > Time::default()).then(|| newest.created + STAMP),
            workloads: self
                .known
                .iter()
                .filter_map(|(revision, known)| {
                    let read = known.read.as_ref().ok()?;
                    Some((*revision, Arc::clone(&read.contents)))
                })
                .collect(),
        }
    }

    /// The pods of the release, alternating between workloads, so that a prefix of the list has pods of each.
    fn pods(
        &self,
        tables: &ObjectCache,
        rows: &[&RecordSummaryRow],
        workloads: &[&WorkloadSummary],
    ) -> Vec<ReleasePod> {
        let mut of_workloads = Vec::new();
        for workload in workloads {
            let current = current_of(tables, workload);
            let newest = rows.last().map(|row| row.created);
            let mut pods: Vec<ReleasePod> = tables
                .pods
                .values()
                .filter_map(|pod| {
                    let is_current = belongs(tables, pod, workload)?.is(&current, pod);
                    // Made of the old template or of the new one: it must not stand for either.
                    let is_unclear =
                        matches!(current, CurrentPods::Unknown) && Some(pod.created) >= newest;
                    (!is_unclear).then(|| self.made_of(pod, workload, is_current, rows))
                })
                .collect();
            pods.sort_by(|a, b| a.name.cmp(&b.name));
            of_workloads.extend(pods.into_iter().enumerate());
        }
        of_workloads.sort_by_key(|(turn, _)| *turn);
        of_workloads.into_iter().map(|(_, pod)| pod).collect()
    }

    fn made_of(
        &self,
        row: &PodSummary,
        workload: &WorkloadSummary,
        is_current: bool,
        rows: &[&RecordSummaryRow],
    ) -> ReleasePod {
        let revision = revision_of(row, is_current, rows);
        let kind: Box<str> = workload.kind.as_str().into();
        let id = (kind, workload.name.clone());
        // What was injected is not the chart's, so its trouble is not the revision's.
        let read = self.read(revision);
        let is_own = |name: &str| read.is_none_or(|read| read.contents.has_container(&id, name));
        let own = row.troubled.iter().filter(|one| is_own(&one.name));
        // Of several that wait the one that says most.
        let waiting = own.clone().filter(|one| one.waiting.is_some());
        let waiting = waiting.max_by_key(|one| one.loops());
        let restarted = own.max_by_key(|one| one.restarts);
        let container = waiting.or(restarted);
        let ports = self.own_ports(row, &id, revision);
        ReleasePod {
            name: row.name.clone(),
            revision,
            node: row.node.clone(),
            ready_since: row.ready_since,
            terminating: row.terminating,
            restarts: restarted.map_or(0, |one| one.restarts),
            waiting: waiting.and_then(|one| one.waiting.clone()),
            container: container.map_or_else(Box::default, |one| one.name.clone()),
            address: None,
            workload: id.1,
            workload_kind: id.0,
            ip: row.ip,
            ports,
        }
    }

    /// The ports of the chart's containers, without those of injected sidecars.
    fn own_ports(
        &self,
        row: &PodSummary,
        id: &WorkloadId,
        revision: Revision,
    ) -> Vec<ContainerPort> {
        let of = |read: &super::RecordSummary| -> Vec<ContainerPort> {
            let own = row.ports.iter();
            let own = own.filter(|port| read.contents.has_container(id, &port.container));
            own.map(port).collect()
        };
        if let Some(read) = self.read(revision) {
            return of(read);
        }
        // An older revision, which need not have been read, may have other containers.
        let own = self.newest_read().map_or_else(Vec::new, of);
        if own.is_empty() {
            return row.ports.iter().map(port).collect();
        }
        own
    }

    fn read(&self, revision: Revision) -> Option<&super::RecordSummary> {
        self.known.get(&revision)?.read.as_ref().ok()
    }

    /// The newest readable revision: an unreadable one must not hide the pods.
    fn newest_read(&self) -> Option<&super::RecordSummary> {
        let mut all = self.known.values().rev();
        all.find_map(|known| known.read.as_ref().ok())
    }

    fn indirect(&self) -> &[UnownedService] {
        self.newest_read().map_or(&[], |read| &read.indirect)
    }

    /// Its workloads, and those that make the pods of its Services.
    fn parts(&self, tables: &ObjectCache) -> Vec<(WorkloadKind, Box<str>)> {
        let mut parts = self
            .newest_read()
            .map_or_else(Vec::new, |read| read.workloads.clone());
        for found in unowned_services::parts(self.indirect(), tables) {
            if !parts.contains(&found) {
                parts.push(found);
            }
        }
        parts
    }

    fn stored(&self, row: &RecordSummaryRow) -> StoredRevision {
        let status = status_of(row);
        match self.read(row.revision) {
            // Its status may have changed without a need to read all of it again.
            Some(read) => StoredRevision {
                status,
                ..read.stored.clone()
            },
            None => StoredRevision {
                revision: row.revision,
                status,
                description: String::new(),
                digest: None,
                weak: None,
                hooks_succeeded: false,
                test_failed: false,
            },
        }
    }

    /// Whether helm has finished the newest revision, and the cluster has had a moment to react.
    fn is_applied(&self, newest: &RecordSummaryRow) -> bool {
        self.read(newest.revision).is_some()
            && matches!(
                status_of(newest),
                RevisionStatus::Deployed | RevisionStatus::Failed
            )
            && self.now.since(self.unchanged_since) >= SETTLES_AFTER
    }

    fn is_complete(
        &self,
        newest: &RecordSummaryRow,
        workloads: &[&WorkloadSummary],
        parts: usize,
    ) -> bool {
        // Where there is no part of which anybody could see it, nobody can.
        self.is_applied(newest)
            && parts > 0
            && workloads.len() == parts
            && workloads.iter().all(|row| row.is_complete())
    }
}

fn port(row: &PortRow) -> ContainerPort {
    ContainerPort {
        name: row.name.clone(),
        number: row.number,
    }
}

/// The revision that a pod belongs to.
fn revision_of(row: &PodSummary, is_current: bool, rows: &[&RecordSummaryRow]) -> Revision {
    let newest = rows.last().map(|row| (row.revision, row.created));
    match newest {
        Some((revision, created)) if is_current && row.created >= created => revision,
        Some((newest, _)) => {
            let older = rows.iter().rev().filter(|one| one.revision < newest);
            let mut before = older.clone().filter(|one| one.created <= row.created);
            let revision = before
                .next()
                .or_else(|| older.clone().next_back())
                .map(|one| one.revision);
            // The only revision there is.
            revision.unwrap_or(newest)
        }
        None => Revision::default(),
    }
}

/// What identifies the current pods of a workload.
pub(super) enum CurrentPods {
    /// UID of the newest ReplicaSet.
    Set(Box<str>),
    /// The hash or generation of the template.
    Template(Box<str>),
    /// Not known yet.
    Unknown,
}

/// How a pod belongs to a workload.
pub(super) enum PodOwnership {
    Set,
    Hash,
    Generation,
}

impl PodOwnership {
    pub(super) fn is(&self, current: &CurrentPods, pod: &PodSummary) -> bool {
        match (self, current) {
            (Self::Set, CurrentPods::Set(uid)) => pod.owner == *uid,
            (Self::Hash, CurrentPods::Template(template)) => pod.hash == *template,
            (Self::Generation, CurrentPods::Template(template)) => pod.generation == *template,
            _ => false,
        }
    }
}

pub(super) fn current_of(tables: &ObjectCache, workload: &WorkloadSummary) -> CurrentPods {
    match workload.kind {
        // Until the controller has seen the new template, its newest ReplicaSet is still the old one.
        WorkloadKind::Deployment if !workload.observed => CurrentPods::Unknown,
        WorkloadKind::Deployment => tables
            .replica_sets
            .values()
            .filter(|set| set.owner == workload.uid)
            .max_by_key(|set| set.number)
            .map_or(CurrentPods::Unknown, |set| {
                CurrentPods::Set(set.uid.clone())
            }),
        WorkloadKind::StatefulSet | WorkloadKind::DaemonSet => {
            CurrentPods::Template(workload.template.clone())
        }
    }
}

pub(super) fn belongs(
    tables: &ObjectCache,
    pod: &PodSummary,
    workload: &WorkloadSummary,
) -> Option<PodOwnership> {
    match workload.kind {
        WorkloadKind::Deployment => {
            let set = tables.replica_sets.get(&pod.owner)?;
            (set.owner == workload.uid).then_some(PodOwnership::Set)
        }
        WorkloadKind::StatefulSet => (pod.owner == workload.uid).then_some(PodOwnership::Hash),
        WorkloadKind::DaemonSet => (pod.owner == workload.uid).then_some(PodOwnership::Generation),
    }
}

#[cfg(test)]
mod tests;
