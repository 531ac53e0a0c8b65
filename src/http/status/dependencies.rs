//! Views of dependencies, and of what needs each of them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{ProbeView, one};
use crate::config::settings::NeedsEntry;
use crate::core::units::Moment;
use crate::metrics::ProbeSeries;

/// A dependency, as it is shown.
#[derive(Serialize)]
pub(super) struct DependencyView {
    /// Its name is that of the probe.
    #[serde(flatten)]
    probe: ProbeView,
    /// The releases that need it, in their order.
    needed_by: Vec<NeededBy>,
}

/// The probes of one release that need a dependency.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct NeededBy {
    namespace: String,
    release: String,
    /// Their names.
    probes: Vec<String>,
}

/// All dependencies, in the order of the series.
pub(super) fn dependencies(all: &[ProbeSeries], now: Moment) -> Vec<DependencyView> {
    let mut needed_by = needed_by(all);
    let dependencies = all
        .iter()
        .filter(|series| series.tracked_probe().probe().id.is_dependency());
    dependencies
        .map(|series| {
            let name = series.tracked_probe().probe().id.probe.to_string();
            DependencyView {
                probe: one(series, now),
                needed_by: needed_by.remove(name.as_str()).unwrap_or_default(),
            }
        })
        .collect()
}

/// What needs each dependency, by its name.
fn needed_by(all: &[ProbeSeries]) -> BTreeMap<Box<str>, Vec<NeededBy>> {
    let mut map: BTreeMap<Box<str>, Vec<NeededBy>> = BTreeMap::new();
    for series in all {
        let probe = series.tracked_probe().probe();
        for need in &probe.needs {
            let NeedsEntry::Dependency(name) = need else {
                continue;
            };
            let releases = map.entry(name.clone()).or_default();
            let (namespace, release) = (probe.id.namespace.as_str(), probe.id.release.as_str());
            // Probes of a release stand together.
            let is_same = releases
                .last()
                .is_some_and(|last| last.namespace == namespace && last.release == release);
            if !is_same {
                releases.push(NeededBy {
                    namespace: namespace.to_owned(),
                    release: release.to_owned(),
                    probes: Vec::new(),
                });
            }
            if let Some(last) = releases.last_mut() {
                last.probes.push(probe.id.probe.to_string());
            }
        }
    }
    map
}
