#![allow(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "a test may end where it stands, and reads better so"
)]

use serde_json::json;

use super::*;
use crate::core::revision_ledger::ContentDigest;
use crate::release::cluster::RecordSummary;
use crate::release::cluster::objects::ReplicaSetSummary;

const START: u64 = 1_700_000_000;

fn stamp(second: u64) -> String {
    let at = i64::try_from(START + second).unwrap();
    jiff::Timestamp::from_second(at).unwrap().to_string()
}

fn time(second: u64) -> Time {
    Time::from_millis((START + second) * 1000)
}

/// A Deployment `web` with its ReplicaSets and pods, and the records of the release `web`.
#[derive(Default)]
struct World {
    tables: ObjectCache,
    known: BTreeMap<Revision, CachedRecord>,
}

impl World {
    fn revision(mut self, number: u32, status: &str, created: u64) -> Self {
        let name = format!("sh.helm.release.v1.web.v{number}");
        let meta = serde_json::from_value(json!({
            "name": name, "labels": {"status": status}, "creationTimestamp": stamp(created), "resourceVersion": "1"
        }));
        let row = RecordSummaryRow::of(&meta.unwrap()).unwrap();
        self.tables.stored.put(row.object.clone(), row);
        let stored = StoredRevision {
            revision: Revision(number),
            status: RevisionStatus::Superseded,
            description: "Upgrade complete".into(),
            digest: Some(ContentDigest(format!("{number}").into())),
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        };
        let read = RecordSummary {
            stored,
            workloads: vec![(WorkloadKind::Deployment, "web".into())],
            stops_first: false,
            indirect: Vec::new(),
            contents: Arc::default(),
        };
        self.known.insert(
            Revision(number),
            CachedRecord {
                version: "1".into(),
                read: Ok(read),
            },
        );
        self
    }

    fn deployment(mut self, status: serde_json::Value, spec: serde_json::Value) -> Self {
        let mut whole = json!({"template": {}, "selector": {}});
        whole
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let object = json!({
            "metadata": {"name": "web", "uid": "deployment", "generation": 2}, "spec": whole, "status": status
        });
        let row = WorkloadSummary::of_deployment(&serde_json::from_value(object).unwrap()).unwrap();
        self.tables.put_workload(row);
        self
    }

    fn set(mut self, uid: &str, number: u64) -> Self {
        let object = json!({"metadata": {"name": uid, "uid": uid,
            "annotations": {"deployment.kubernetes.io/revision": number.to_string()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "deployment", "controller": true}]}});
        let row = ReplicaSetSummary::of(&serde_json::from_value(object).unwrap()).unwrap();
        self.tables.replica_sets.put(row.uid.clone(), row);
        self
    }

    fn pod(mut self, name: &str, set: &str, created: u64) -> Self {
        let object = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": stamp(created),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": set, "controller": true}]}});
        let row = PodSummary::of(&serde_json::from_value(object).unwrap()).unwrap();
        self.tables.pods.put(row.name.clone(), row);
        self
    }

    /// The release's workload `web` is of another kind.
    fn of_kind(mut self, row: WorkloadSummary) -> Self {
        for known in self.known.values_mut() {
            let read = known.read.as_mut().unwrap();
            read.workloads = vec![(row.kind, "web".into())];
        }
        self.tables.put_workload(row);
        self
    }

    /// A pod whose controller is no ReplicaSet, with the label that tells its template.
    fn pod_with(mut self, name: &str, owner: &str, label: (&str, &str), created: u64) -> Self {
        let object = json!({"metadata": {"name": name, "uid": name, "creationTimestamp": stamp(created),
            "labels": {(label.0): label.1},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Any", "name": "web", "uid": owner, "controller": true}]}});
        let row = PodSummary::of(&serde_json::from_value(object).unwrap()).unwrap();
        self.tables.pods.put(row.name.clone(), row);
        self
    }

    fn release_state(&self, now: u64) -> ReleaseState {
        let view = ReleaseStateBuilder {
            release: "web",
            known: &self.known,
            unchanged_since: time(100),
            making: None,
            now: time(now),
        };
        view.release_state(&self.tables)
    }

    fn revision_of(&self, pod: &str) -> u32 {
        let release_state = self.release_state(200);
        release_state
            .pods
            .iter()
            .find(|one| &*one.name == pod)
            .unwrap()
            .revision
            .0
    }
}

/// A DaemonSet `web` of this template's generation, and pods of it.
fn daemon_set(generation: &str, strategy: &str, status: serde_json::Value) -> WorkloadSummary {
    let object = json!({
        "metadata": {"name": "web", "uid": "daemon", "generation": 2,
            "annotations": {"deprecated.daemonset.template.generation": generation}},
        "spec": {"template": {}, "selector": {}, "updateStrategy": {"type": strategy}},
        "status": status
    });
    WorkloadSummary::of_daemon_set(&serde_json::from_value(object).unwrap()).unwrap()
}

/// On every one of three nodes a pod of the newest template that serves.
fn on_each_node() -> serde_json::Value {
    json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "currentNumberScheduled": 3,
        "numberMisscheduled": 0, "numberReady": 3, "updatedNumberScheduled": 3, "numberAvailable": 3})
}

fn complete() -> serde_json::Value {
    json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2})
}

fn two() -> serde_json::Value {
    json!({"replicas": 2})
}

/// Whoever asks whether something began under the newest revision must not take what began in the same second before it.
#[test]
fn the_newest_revision_was_stored_within_the_second_of_its_stamp() {
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100);
    let stored_at = world.release_state(200).stored_at.unwrap();
    assert!(stored_at > time(100) && stored_at < time(101));
    assert_eq!(World::default().release_state(200).stored_at, None);
}

#[test]
fn a_pod_of_the_current_template_that_was_made_since_is_the_newest_revisions() {
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .deployment(complete(), two())
        .set("old", 1)
        .set("new", 2)
        .pod("a", "old", 5)
        .pod("b", "new", 101);
    assert_eq!(world.revision_of("a"), 1);
    assert_eq!(world.revision_of("b"), 2);
}

#[test]
fn a_revision_that_changes_no_template_has_no_pods_but_those_made_since() {
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .deployment(complete(), two())
        .set("only", 1)
        .pod("a", "only", 5)
        .pod("scaled-up", "only", 150);
    assert_eq!(world.revision_of("a"), 1);
    assert_eq!(world.revision_of("scaled-up"), 2);
}

#[test]
fn an_old_template_that_is_scaled_up_during_the_rollout_has_old_pods() {
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .deployment(complete(), two())
        .set("old", 1)
        .set("new", 2)
        .pod("late", "old", 120);
    assert_eq!(world.revision_of("late"), 1);
}

#[test]
fn until_the_controller_has_seen_the_new_template_a_young_pod_is_neither_new_nor_old() {
    let unseen = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "pending-upgrade", 100)
        .deployment(unseen, two())
        .set("any", 1)
        .pod("old", "any", 99)
        .pod("young", "any", 100);
    assert_eq!(world.revision_of("old"), 1);
    let release_state = world.release_state(200);
    assert_eq!(release_state.pods.len(), 1, "{:?}", release_state.pods);
    assert_eq!(release_state.complete, None);
}

#[test]
fn a_rollback_that_takes_an_old_template_up_again_has_the_pods_that_it_made() {
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "superseded", 50)
        .revision(3, "deployed", 100)
        .deployment(complete(), two())
        .set("first", 3)
        .set("bad", 2)
        .pod("survivor", "first", 5)
        .pod("bad", "bad", 51)
        .pod("new", "first", 101);
    assert_eq!(world.revision_of("survivor"), 1);
    assert_eq!(world.revision_of("bad"), 2);
    assert_eq!(world.revision_of("new"), 3);
}

#[test]
fn a_rollout_is_complete_when_helm_is_done_and_all_pods_are_new_and_serve() {
    let world = |status: serde_json::Value, helm: &str| {
        World::default()
            .revision(1, helm, 0)
            .deployment(status, two())
            .set("only", 1)
    };
    assert_eq!(
        world(complete(), "deployed").release_state(200).complete,
        Some(Revision(1))
    );
    // Helm has only just said so: what it changed may not have been seen yet.
    assert_eq!(
        world(complete(), "deployed").release_state(100).complete,
        None
    );
    assert_eq!(
        world(complete(), "pending-upgrade")
            .release_state(200)
            .complete,
        None
    );
    for (field, value) in [
        ("updatedReplicas", 1),
        ("availableReplicas", 1),
        ("replicas", 3),
        ("observedGeneration", 1),
    ] {
        let mut status = complete();
        status[field] = value.into();
        assert_eq!(
            world(status, "deployed").release_state(200).complete,
            None,
            "{field}"
        );
    }
}

#[test]
fn how_far_a_rollout_has_come_is_told_by_its_workloads() {
    let world = |status: serde_json::Value| {
        World::default()
            .revision(1, "deployed", 0)
            .deployment(status, two())
            .set("old", 1)
            .set("new", 2)
            .pod("old-1", "old", 1)
            .pod("new-1", "new", 2)
    };
    let release_state = world(complete()).release_state(200);
    assert!(release_state.applied);
    let workload = &release_state.workload_states[0];
    assert_eq!(
        (
            &*workload.kind,
            &*workload.name,
            workload.template.as_deref()
        ),
        ("Deployment", "web", Some("new"))
    );
    assert!(workload.complete && workload.lacks == 0);
    // One new pod is not Ready, and two old ones serve.
    let mut status = complete();
    status["replicas"] = 3.into();
    status["updatedReplicas"] = 1.into();
    let workload = world(status.clone()).release_state(200).workload_states[0].clone();
    assert!(!workload.complete);
    assert_eq!(
        (
            workload.wanted,
            workload.ready,
            workload.unavailable,
            workload.lacks
        ),
        (2, 0, 0, 2)
    );
    // Its controller has not seen it yet.
    status["observedGeneration"] = 1.into();
    let release_state = world(status).release_state(200);
    assert!(!release_state.applied);
    assert_eq!(release_state.workload_states[0].template, None);
    // It is not there at all.
    let release_state = World::default()
        .revision(1, "deployed", 0)
        .release_state(200);
    assert!(!release_state.applied && !release_state.workload_states[0].complete);
    assert_eq!(release_state.workload_states[0].lacks, u32::MAX);
}

#[test]
fn a_record_says_which_program_wrote_it() {
    let by = |managers: serde_json::Value| {
        let meta = serde_json::from_value(json!({
            "name": "sh.helm.release.v1.web.v3", "resourceVersion": "1", "managedFields": managers,
        }));
        RecordSummaryRow::of(&meta.unwrap()).unwrap().by
    };
    let entry = |manager: &str, field: &str| json!({"manager": manager, "fieldsV1": {field: {}}});
    assert_eq!(by(json!([])), None);
    for helm in ["helm", "Helm", "leadsman"] {
        assert_eq!(by(json!([entry(helm, "f:data")])), None);
    }
    // Who only sets labels has written nothing.
    let both = json!([
        entry("kubectl", "f:metadata"),
        entry("fleetagent", "f:data")
    ]);
    assert_eq!(by(both).as_deref(), Some("fleetagent"));
    let long = by(json!([entry(&"x".repeat(500), "f:data")]));
    assert_eq!(long.unwrap().len(), 63);
}

/// A backup keeps the labels of Helm, and the object is a new one.
#[test]
fn a_record_that_is_older_than_its_object_was_brought_back() {
    let restored = |label: &str, written: u64| {
        let meta = serde_json::from_value(json!({
            "name": "sh.helm.release.v1.web.v3", "creationTimestamp": stamp(1000), "resourceVersion": "1",
            "labels": {"status": "deployed", label: (START + written).to_string()}
        }));
        RecordSummaryRow::of(&meta.unwrap()).unwrap().restored
    };
    for label in ["createdAt", "modifiedAt"] {
        assert!(restored(label, 0));
        // A clock that is off, and what Helm has written since.
        assert!(!restored(label, 950));
        assert!(!restored(label, 5000));
    }
    assert!(!restored("other", 0));
}

#[test]
fn a_release_that_is_paused_or_scaled_to_zero_is_held() {
    let held = |spec: serde_json::Value| {
        World::default()
            .revision(1, "deployed", 0)
            .deployment(complete(), spec)
            .release_state(200)
            .held
    };
    assert!(!held(two()));
    assert!(held(json!({"replicas": 0})));
    assert!(held(json!({"replicas": 2, "paused": true})));
}

#[test]
fn a_revision_that_cannot_be_read_is_named_and_hides_nothing_else() {
    let mut world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .deployment(complete(), two())
        .set("only", 1)
        .pod("a", "only", 5);
    let broken = CachedRecord {
        version: "1".into(),
        read: Err("the record is empty".into()),
    };
    world.known.insert(Revision(2), broken);
    let release_state = world.release_state(200);
    assert_eq!(
        release_state.unreadable,
        [(Revision(2), "the record is empty".to_owned())]
    );
    assert_eq!(release_state.revisions[1].digest, None);
    assert_eq!(release_state.pods.len(), 1);
}

#[test]
fn a_release_that_is_uninstalled_is_gone_although_its_history_is_kept() {
    for status in ["uninstalling", "uninstalled"] {
        let world = World::default()
            .revision(1, "superseded", 10)
            .revision(2, status, 50)
            .deployment(complete(), json!({"replicas": 2}));
        assert_eq!(
            world.release_state(200),
            ReleaseState::default(),
            "{status}"
        );
    }
    // Installed again over its history it is there.
    let world = World::default()
        .revision(1, "uninstalled", 10)
        .revision(2, "deployed", 50);
    assert_eq!(
        world.release_state(200).newest().map(|one| one.revision),
        Some(Revision(2))
    );
}

#[test]
fn pods_of_a_daemon_set_are_told_apart_by_the_generation_of_their_template() {
    let generation = |number| ("pod-template-generation", number);
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .of_kind(daemon_set("2", "RollingUpdate", on_each_node()))
        .pod_with("old", "daemon", generation("1"), 5)
        // On a node that came while the old template was still the newest one.
        .pod_with("late", "daemon", generation("1"), 120)
        .pod_with("new", "daemon", generation("2"), 121)
        .pod_with("other", "another", generation("2"), 122);
    for (pod, revision) in [("old", 1), ("late", 1), ("new", 2)] {
        assert_eq!(world.revision_of(pod), revision, "{pod}");
    }
    // A pod of something else is none of the release's.
    assert_eq!(world.release_state(200).pods.len(), 3);
}

#[test]
fn pods_of_a_stateful_set_are_told_apart_by_the_hash_of_their_template() {
    let object = json!({
        "metadata": {"name": "web", "uid": "set", "generation": 2},
        "spec": {"replicas": 2, "template": {}, "selector": {}, "serviceName": "web"},
        "status": {"replicas": 2, "updateRevision": "web-b", "currentRevision": "web-a"}
    });
    let row = WorkloadSummary::of_stateful_set(&serde_json::from_value(object).unwrap()).unwrap();
    let hash = |text| ("controller-revision-hash", text);
    let world = World::default()
        .revision(1, "superseded", 0)
        .revision(2, "deployed", 100)
        .of_kind(row)
        .pod_with("web-0", "set", hash("web-a"), 5)
        // An old pod that was evicted comes back as an old one, until its turn has come.
        .pod_with("web-1", "set", hash("web-a"), 120)
        .pod_with("web-2", "set", hash("web-b"), 121);
    for (pod, revision) in [("web-0", 1), ("web-1", 1), ("web-2", 2)] {
        assert_eq!(world.revision_of(pod), revision, "{pod}");
    }
}

#[test]
fn a_daemon_set_is_complete_when_each_node_has_a_new_pod_that_serves() {
    let row = daemon_set("7", "RollingUpdate", on_each_node());
    let expected = WorkloadSummary {
        kind: WorkloadKind::DaemonSet,
        name: "web".into(),
        uid: "daemon".into(),
        observed: true,
        wanted: 3,
        total: 3,
        updated: 3,
        available: 3,
        paused: false,
        template: "7".into(),
        ordered: false,
        partial: false,
        stays: 0,
        stops_first: false,
        deadline_exceeded: false,
        refused: false,
        of_helm: false,
        labels: std::collections::BTreeMap::new(),
        gitops_owner: None,
    };
    assert_eq!(row, expected);
    assert!(row.is_complete());
    for (field, value) in [
        ("observedGeneration", 1),
        ("updatedNumberScheduled", 2),
        ("numberAvailable", 2),
        ("desiredNumberScheduled", 4),
    ] {
        let mut status = on_each_node();
        status[field] = value.into();
        let row = daemon_set("7", "RollingUpdate", status);
        assert!(!row.is_complete(), "{field}");
    }
    // Its pods are replaced when somebody deletes them, which nobody waits for.
    let mut status = on_each_node();
    status["updatedNumberScheduled"] = 0.into();
    let by_hand = daemon_set("7", "OnDelete", status);
    assert!(by_hand.partial && by_hand.is_complete());
    // Without any node it wants no pods, which is no pause: only what can be scaled can be held.
    let mut nowhere = on_each_node();
    for field in [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "updatedNumberScheduled",
        "numberAvailable",
    ] {
        nowhere[field] = 0.into();
    }
    let world = World::default()
        .revision(1, "deployed", 0)
        .of_kind(daemon_set("1", "RollingUpdate", nowhere));
    assert!(!world.release_state(200).held);
}
