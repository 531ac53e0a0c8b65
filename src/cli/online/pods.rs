//! Checks that `pods` of a probe names a workload of the release.

use std::collections::BTreeSet;

use crate::config::settings::ReleaseConfig;
use crate::release::ReleaseState;

/// Workloads that are named.
const MAX_NAMED: usize = 5;

/// The probes whose `pods` names a workload that the release has not, each with what to write. Where the cluster shows
/// no workload at all, nothing is known of them.
pub(super) fn missing(release: &ReleaseConfig, release_state: &ReleaseState) -> Vec<String> {
    let states = release_state
        .workload_states
        .iter()
        .map(|state| &*state.name);
    // Also those that no chart knows and whose pods are the release's.
    let of_pods = release_state.pods.iter().map(|pod| &*pod.workload);
    let workloads: BTreeSet<&str> = states.chain(of_pods).filter(|it| !it.is_empty()).collect();
    if workloads.is_empty() {
        return Vec::new();
    }
    let first: Vec<&str> = workloads.iter().copied().take(MAX_NAMED).collect();
    let more = match workloads.len() - first.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let probes = release.probes.iter().filter_map(|probe| {
        let named = probe.pods.as_ref()?.workload.as_deref()?;
        (!workloads.contains(named)).then(|| {
            format!(
                "{}: pods names the workload {named}, which the release has not, so that no pod is asked; it has {}{more}",
                probe.id.probe,
                first.join(", ")
            )
        })
    });
    probes.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::config::{self, Sources};
    use crate::release::WorkloadState;

    #[test]
    fn a_workload_that_the_release_has_not_is_named_with_those_that_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        let mut text =
            "[kubernetes]\n[[release]]\nname = 'web'\nnamespace = 'shop'\nbase_url = 'http://x'\n"
                .to_owned();
        for (name, pods) in [("api", "web"), ("db", "wbe:http"), ("any", ":http")] {
            text += &format!("[[release.probe]]\nname = '{name}'\npath = '/'\npods = '{pods}'\n");
        }
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            files: vec![file],
            ..Sources::default()
        };
        let release = config::load(&sources).unwrap().settings.releases.remove(0);
        let state = |name: &str| WorkloadState {
            kind: "Deployment".into(),
            name: name.into(),
            ..WorkloadState::default()
        };
        let with = |names: &[&str]| ReleaseState {
            workload_states: names.iter().map(|name| state(name)).collect(),
            ..ReleaseState::default()
        };
        let told = missing(&release, &with(&["worker", "web"]));
        assert_eq!(
            told,
            [
                "db: pods names the workload wbe, which the release has not, so that no pod is asked; it has web, worker"
            ]
        );
        assert!(missing(&release, &with(&["web", "wbe"])).is_empty());
        assert!(missing(&release, &with(&[])).is_empty());
        let many = ["a", "b", "c", "d", "e", "f", "web"];
        let told = missing(&release, &with(&many)).concat();
        assert!(told.ends_with("it has a, b, c, d, e and 2 more"), "{told}");
    }
}
