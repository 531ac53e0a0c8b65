//! Progress of the rollout of each workload.

use super::namespace_cache::ObjectCache;
use super::objects::{WorkloadKind, WorkloadSummary};
use super::release_state::CurrentPods;
use super::release_state::{belongs, current_of};
use crate::release::WorkloadState;

/// The workloads that the newest revision names, also missing ones.
pub(super) fn states(
    tables: &ObjectCache,
    parts: &[(WorkloadKind, Box<str>)],
    workloads: &[&WorkloadSummary],
) -> Vec<WorkloadState> {
    let state = |(kind, name): &(WorkloadKind, Box<str>)| {
        let mut rows = workloads.iter();
        let row = rows.find(|row| row.kind == *kind && row.name == *name);
        row.map_or_else(
            || WorkloadState {
                kind: kind.as_str().into(),
                name: name.clone(),
                lacks: u32::MAX,
                ..WorkloadState::default()
            },
            |row| of(tables, row),
        )
    };
    parts.iter().map(state).collect()
}

fn of(tables: &ObjectCache, row: &WorkloadSummary) -> WorkloadState {
    let current = current_of(tables, row);
    let is_ready = |pod: &&super::objects::PodSummary| {
        pod.ready_since.is_some()
            && !pod.terminating
            && belongs(tables, pod, row).is_some_and(|bond| bond.is(&current, pod))
    };
    let ready = tables.pods.values().filter(is_ready).count();
    let serves = |pod: &&super::objects::PodSummary| {
        pod.ready_since.is_some() && !pod.terminating && belongs(tables, pod, row).is_some()
    };
    let serving = tables.pods.values().filter(serves).count();
    let number = |count: i32| u32::try_from(count).unwrap_or(0);
    WorkloadState {
        kind: row.kind.as_str().into(),
        name: row.name.clone(),
        template: match &current {
            CurrentPods::Set(template) | CurrentPods::Template(template) => Some(template.clone()),
            CurrentPods::Unknown => None,
        },
        observed: row.observed,
        complete: row.is_complete(),
        wanted: number(row.wanted),
        ready: u32::try_from(ready).unwrap_or(u32::MAX),
        unavailable: number(row.wanted.saturating_sub(row.available)),
        lacks: row.lacks(),
        serving: u32::try_from(serving).unwrap_or(u32::MAX),
        paused: row.paused,
        stops_first: row.stops_first,
        deadline_exceeded: row.observed && row.deadline_exceeded,
        refused: row.refused,
    }
}
