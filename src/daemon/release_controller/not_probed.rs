//! Why pods of a release are not probed directly. Without this nobody would notice.

use std::sync::Arc;

use super::ReleaseController;
use super::pod_probers::{address_of, is_clear};
use super::pod_probes::serves;
use super::state::{ProbeHistory, State};
use crate::config::settings::{ProbeConfig, ReleaseConfig};
use crate::release::ReleaseState;

/// Probes that a remark names.
const MAX_NAMED: usize = 5;

/// The reasons, each with its explanation.
const REASONS: [(&str, &str); 4] = [
    ("not_set", "no `pods` says which to ask"),
    (
        "no_port",
        "no container of the chart has the port that their `pods` means; ports of injected containers do not count",
    ),
    (
        "unclear",
        "pods of several workloads have that port; name the workload in `pods`",
    ),
    (
        "no_answer",
        "the pods do not answer Leadsman, as behind a NetworkPolicy or a mesh whose mTLS is STRICT; let Leadsman's pod reach them",
    ),
];

/// Probes whose pods are not probed, by reason.
pub(super) struct NotProbed {
    reason: &'static str,
    text: &'static str,
    probes: Vec<Box<str>>,
}

impl NotProbed {
    fn count(&self) -> i64 {
        i64::try_from(self.probes.len()).unwrap_or(i64::MAX)
    }

    /// The remark as a sentence; `None` without such probes.
    pub(super) fn remark(&self) -> Option<String> {
        let more = self.probes.len().saturating_sub(MAX_NAMED);
        let first: Vec<&str> = self
            .probes
            .iter()
            .take(MAX_NAMED)
            .map(|name| &**name)
            .collect();
        let mut names = first.join(", ");
        if more > 0 {
            names = format!("{names} and {more} more");
        }
        (!self.probes.is_empty()).then(|| {
            format!(
                "Pods are not asked directly by the probes {names}: {}",
                self.text
            )
        })
    }
}

impl ReleaseController {
    pub(super) fn look_which_are_not_probed(&mut self) {
        let release = &self.setup.release;
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let Some(found) = not_probed(release, &self.state, &release_state) else {
            return;
        };
        let releases = &self.setup.executor.metrics().releases;
        for one in &found {
            let (namespace, name) = (release.namespace.as_str(), release.name.as_str());
            releases.not_probed(namespace, name, one.reason, one.count());
        }
        self.not_probed = found;
    }
}

/// Counts for each reason, also 0; `None` while the release has no pod to probe.
fn not_probed(
    release: &ReleaseConfig,
    state: &State,
    release_state: &ReleaseState,
) -> Option<Vec<NotProbed>> {
    let mut serving = release_state.pods.iter().filter(|pod| serves(pod));
    if !serving.any(|pod| pod.ip.is_some() || pod.address.is_some()) {
        return None;
    }
    let each = REASONS.into_iter().map(|(reason, text)| NotProbed {
        reason,
        text,
        probes: release
            .probes
            .iter()
            .filter(|probe| {
                let known = state.probes.get(probe.id.probe.as_str());
                why(probe, known, release_state) == Some(reason)
            })
            .map(|probe| probe.id.probe.as_str().into())
            .collect(),
    });
    Some(each.collect())
}

fn why(
    probe: &ProbeConfig,
    known: Option<&ProbeHistory>,
    release_state: &ReleaseState,
) -> Option<&'static str> {
    let newest = release_state.newest().map(|record| record.revision);
    let mut serving = release_state.pods.iter().filter(|pod| serves(pod));
    if !serving.any(|pod| address_of(probe, pod).is_some()) {
        return Some(if probe.pods.is_some() {
            "no_port"
        } else {
            "not_set"
        });
    }
    if !is_clear(probe, release_state, newest) {
        return Some("unclear");
    }
    let known = known?;
    (known.has_looked() && !known.can_ask_pods()).then_some("no_answer")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::super::pod_probers::tests::{pod, probe};
    use super::*;
    use crate::core::units::Time;

    #[test]
    fn each_reason_is_known() {
        let ready = |workload: &str, ports: &[(&str, u16)]| crate::release::ReleasePod {
            ready_since: Some(Time::default()),
            ..pod(workload, ports)
        };
        let release_state = ReleaseState {
            pods: vec![
                ready("web", &[("http", 8080)]),
                ready("api", &[("http", 8080), ("admin", 9090)]),
            ],
            ..ReleaseState::default()
        };
        let mut silent = ProbeHistory::default();
        let why_of = |aim, known: Option<&ProbeHistory>| why(&probe(aim), known, &release_state);
        assert_eq!(why_of(None, None), Some("not_set"));
        assert_eq!(why_of(Some(("web", "grpc")), None), Some("no_port"));
        assert_eq!(why_of(Some(("", "http")), None), Some("unclear"));
        let admin = Some(("", "admin"));
        assert_eq!(why_of(admin, None), None, "nobody has looked yet");
        assert_eq!(why_of(admin, Some(&silent)), None);
        while !silent.has_looked() {
            silent.looked(false);
        }
        assert_eq!(why_of(admin, Some(&silent)), Some("no_answer"));
        let mut open = ProbeHistory::default();
        while !open.has_looked() {
            open.looked(true);
        }
        assert_eq!(why_of(admin, Some(&open)), None);
    }

    #[test]
    fn it_is_said_in_a_sentence() {
        let mut one = NotProbed {
            reason: REASONS[0].0,
            text: REASONS[0].1,
            probes: Vec::new(),
        };
        assert_eq!(one.remark(), None);
        one.probes = vec!["api".into(); 7];
        let said = one.remark().unwrap();
        assert!(
            said.contains("api, api, api, api, api and 2 more: no `pods`"),
            "{said}"
        );
        assert_eq!(one.count(), 7);
    }
}
