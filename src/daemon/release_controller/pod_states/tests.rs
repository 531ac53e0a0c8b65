#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::core::analysis::{Analysis, AnalysisStart, Rule, Tick, TickBuffer, TickOutcome};
use crate::core::recording::RecordedTick;
use crate::daemon::release_controller::state::tests::START;
use crate::helm::{manifest, record};
use crate::release::change::RevisionWorkloads;

const OLD: Revision = Revision(1);
const NEW: Revision = Revision(2);

pub(in crate::daemon::release_controller) fn running() -> RunningAnalysis {
    let start = AnalysisStart {
        endpoints: vec!["api".into()],
        baseline: vec![(0, 100)],
        failing_at_start: vec![false],
        ..AnalysisStart::default()
    };
    RunningAnalysis {
        revision: NEW,
        first: None,
        was_complete: false,
        rolled_out: None,
        began: START,
        analysis: Analysis::new(Rule::default(), &start).unwrap(),
        pods: Vec::new(),
        direct: vec![false],
        failing: vec![BTreeMap::new()],
        last_bad: None,
        reported_pods: BTreeMap::new(),
        told: Vec::new(),
        hurried_until: None,
        old: OldPodFailures::default(),
        alerts: Vec::new(),
        e_values: Vec::new(),
        tick_buffer: TickBuffer::new(1),
        needed: Vec::new(),
        tick: RecordedTick::default(),
    }
}

/// What a revision with Deployments says of them: each with its image, and the value of a ConfigMap that it reads.
fn workloads(revision: Revision, parts: &[(&str, &str, &str)]) -> Arc<RevisionWorkloads> {
    let part = |(name, image, value): &(&str, &str, &str)| {
        format!(
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec: {{template: {{spec: {{containers: [{{name: app, image: {image}, envFrom: [{{configMapRef: {{name: {name}}}}}]}}]}}}}}}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: {value}}}\n"
        )
    };
    let manifest: String = parts.iter().map(part).collect();
    let stored = serde_json::json!({"name": "web", "version": revision.0, "manifest": manifest});
    let object = format!("sh.helm.release.v1.web.v{revision}");
    let payload = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(stored.to_string())
    };
    let record = record::decode(&object, payload.as_bytes()).unwrap();
    let objects = manifest::objects(&record.manifest).unwrap();
    Arc::new(RevisionWorkloads::of(&record, &objects))
}

/// The second revision changes the template of `api`, the settings of `jobs`, and nothing of `web`.
fn release_state(pods: Vec<ReleasePod>) -> ReleaseState {
    let before = [
        ("api", "api:1", "1"),
        ("web", "web:1", "1"),
        ("jobs", "jobs:1", "1"),
    ];
    let now = [
        ("api", "api:2", "1"),
        ("web", "web:1", "1"),
        ("jobs", "jobs:1", "2"),
    ];
    ReleaseState {
        pods,
        workloads: vec![(OLD, workloads(OLD, &before)), (NEW, workloads(NEW, &now))],
        ..ReleaseState::default()
    }
}

fn pod(workload: &str, revision: Revision, restarts: u32, waiting: &str) -> ReleasePod {
    ReleasePod {
        name: format!("{workload}-{revision}").into(),
        revision,
        node: "node".into(),
        ready_since: None,
        terminating: false,
        restarts,
        waiting: (!waiting.is_empty()).then(|| waiting.into()),
        address: None,
        workload: workload.into(),
        workload_kind: "Deployment".into(),
        container: "app".into(),
        ip: None,
        ports: Vec::new(),
    }
}

fn looping(workload: &str, revision: Revision) -> ReleasePod {
    pod(workload, revision, 3, "CrashLoopBackOff")
}

/// What is told of new pods: each workload, and whether an old pod of it does the same.
#[track_caller]
fn check(rule: &str, pods: Vec<ReleasePod>, expected: &[(&str, bool)]) {
    let states = pod_states(&mut running(), &release_state(pods), Some(OLD));
    let told = states.iter().map(|state| (&*state.workload, state.old_too));
    assert_eq!(told.collect::<Vec<_>>(), expected, "{rule}");
}

#[test]
fn only_an_old_pod_of_the_same_workload_excuses() {
    let new = || looping("api", NEW);
    check("nothing else", vec![new()], &[("Deployment api", false)]);
    let neighbour = vec![new(), looping("web", OLD)];
    check("a neighbour", neighbour, &[("Deployment api", false)]);
    let own = vec![new(), looping("api", OLD)];
    check("its own", own, &[("Deployment api", true)]);
    let namesake = ReleasePod {
        workload_kind: "StatefulSet".into(),
        ..looping("api", OLD)
    };
    let of_that_name = vec![new(), namesake];
    check("of that name", of_that_name, &[("Deployment api", false)]);
}

#[test]
fn a_pod_of_a_workload_that_was_not_changed_is_not_held_against_the_revision() {
    check("unchanged", vec![looping("web", NEW)], &[]);
    let stuck = vec![pod("web", NEW, 0, "ImagePullBackOff")];
    check("unchanged, and stuck", stuck, &[]);
}

#[test]
fn one_that_reads_changed_settings_is() {
    let states = pod_states(
        &mut running(),
        &release_state(vec![looping("jobs", NEW)]),
        Some(OLD),
    );
    assert_eq!(states.len(), 1);
    assert_eq!(&*states[0].workload, "Deployment jobs");
    assert_eq!(&*states[0].container, "app");
    // Old pods may read the new settings by now, and crash of them.
    let release_state = release_state(vec![looping("jobs", NEW), looping("jobs", OLD)]);
    let mut late = running();
    late.analysis.tick(&Tick {
        outcomes: &[TickOutcome::Success],
        ..Tick::default()
    });
    let excused = |running: &mut RunningAnalysis| {
        let states = pod_states(running, &release_state, Some(OLD));
        states[0].old_too
    };
    assert!(!excused(&mut late));
    assert!(excused(&mut running()), "it crashed before");
}

#[test]
fn an_old_pod_that_has_gone_still_excuses() {
    let mut running = running();
    let before = release_state(vec![looping("api", OLD)]);
    assert!(pod_states(&mut running, &before, Some(OLD)).is_empty());
    let after = release_state(vec![looping("api", NEW)]);
    assert!(pod_states(&mut running, &after, Some(OLD))[0].old_too);
}

#[test]
fn what_cannot_start_is_told_once_and_so_is_its_end() {
    let stuck = release_state(vec![pod("api", NEW, 0, "ImagePullBackOff")]);
    let mut running = running();
    let states = pod_states(&mut running, &stuck, Some(OLD));
    assert_eq!(states[0].stuck, Some(StuckReason::Image));
    assert!(pod_states(&mut running, &stuck, Some(OLD)).is_empty());
    let started = release_state(vec![pod("api", NEW, 0, "")]);
    let states = pod_states(&mut running, &started, Some(OLD));
    assert_eq!(states[0].stuck, None);
    // One that goes while it is stuck is no longer in the way.
    assert_eq!(pod_states(&mut running, &stuck, Some(OLD)).len(), 1);
    let states = pod_states(&mut running, &release_state(Vec::new()), Some(OLD));
    assert_eq!((&*states[0].name, states[0].stuck), ("api-2", None));
}

/// What is not known neither excuses nor is passed over in silence.
#[test]
fn where_it_is_not_known_what_changed_the_release_s_new_pods_count() {
    let pods = vec![looping("web", NEW)];
    let known = release_state(pods.clone());
    let unread = ReleaseState {
        workloads: vec![known.workloads[1].clone()],
        ..known.clone()
    };
    let unreadable = ReleaseState {
        unreadable: vec![(OLD, "it is cut off".into())],
        ..unread.clone()
    };
    for (release_state, serving, why) in [
        (&known, None, "it is not known which revision served before"),
        (&unread, Some(OLD), "the record of revision 1 was not read"),
        (
            &unreadable,
            Some(OLD),
            "revision 1 cannot be read: it is cut off",
        ),
    ] {
        let states = pod_states(&mut running(), release_state, serving);
        assert_eq!(states.len(), 1);
        let change = release_state.change_of_workload("Deployment", "web", NEW, serving);
        assert_eq!(change, Err(why.to_owned()));
    }
}
