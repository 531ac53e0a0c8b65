//! Bad revisions are rolled back, and every Helm can go on from there.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::guarded::{Guarded, Settings, configuration};
use crate::rig::{CHART, Cluster, Helm};
use crate::users::Users;

pub(crate) const DEAD: &str = r#"api.sim={"answers":{"/api/health":"status:503","/api/health/db":"status:503","/api/health/redis":"status:503"}}"#;

/// Upgrades to a bad revision; it must be rolled back, and its history be such that every Helm can go on.
#[track_caller]
fn rolled_back(name: &str, helm: Helm, bad: &str, reasons: &[&str]) -> Value {
    let Some(cluster) = Cluster::new(name, helm) else {
        return Value::Null;
    };
    cluster.install(&[r#"api.image="mykadoo-api:1""#]);
    // A pod that cannot start is given a minute.
    let settings = Settings {
        watch: 120,
        ..Settings::by(helm)
    };
    let guarded = Guarded::with(&cluster, &settings);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#, bad]);
    let deployed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let ended = guarded.outcome(2);
    let known_after = ended["appeared_at"].as_f64().unwrap() - deployed;
    println!("{name}: known {known_after:+.2} s after helm said that it is deployed");
    println!(
        "{name}: {:.1} % of the requests failed until the end",
        users.failed_percent()
    );
    drop(users);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&1.into(), &3.into()),
        "{ended:#}"
    );
    let reason = ended["reason"].as_str().unwrap();
    assert!(
        reasons.iter().any(|wanted| reason.starts_with(wanted)),
        "{reason}"
    );
    for step in ended["steps"].as_array().unwrap() {
        assert_eq!(step["state"], "met", "{ended:#}");
    }
    println!("{name}: {reason}; {}", steps(&ended));

    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    for reads in [Helm::Three, Helm::Four] {
        assert_eq!(
            cluster.statuses(reads),
            "1 superseded, 2 superseded, 3 deployed"
        );
        assert!(
            cluster
                .by(reads, &["status", "mykadoo"])
                .contains("REVISION: 3")
        );
        assert!(
            cluster
                .by(reads, &["get", "manifest", "mykadoo"])
                .contains("mykadoo-api:1")
        );
    }
    let (_, _, description) = &cluster.history(helm)[2];
    assert!(
        description.starts_with("Rollback to 1 by Leadsman: revision 2: "),
        "{description}"
    );
    expected_writes(&cluster);
    marked(&cluster, "secrets");
    let (of_probes, of_release): (Vec<_>, Vec<_>) = cluster
        .told()
        .into_iter()
        .partition(|reason| reason.starts_with("Probe"));
    if bad == DEAD {
        assert_eq!(of_probes, ["ProbeFailing", "ProbeRecovered"]);
    }
    assert_eq!(
        of_release,
        [
            "ReleaseObserved",
            "ReleaseRegressed",
            "RollbackStarted",
            "RollbackSucceeded",
            "RollbackVerified",
        ]
    );

    // Nothing of us stands in anybody's way.
    for (goes_on, image) in [
        (Helm::Three, "mykadoo-api:4"),
        (Helm::Four, "mykadoo-api:5"),
    ] {
        let set = format!("api.image={image}");
        cluster.by(goes_on, &["upgrade", "mykadoo", CHART, "--set", &set]);
        assert_eq!(cluster.image().as_deref(), Some(image));
    }
    cluster.by(Helm::Three, &["rollback", "mykadoo", "4"]);
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:4"));
    cluster.by(Helm::Four, &["rollback", "mykadoo", "1"]);
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    ended
}

/// Seconds of each step, in words.
pub(crate) fn steps(ended: &Value) -> String {
    let steps = ended["steps"].as_array().unwrap();
    let steps = steps.iter().map(|step| {
        format!(
            "{} {:.1} s",
            step["step"].as_str().unwrap(),
            step["took_s"].as_f64().unwrap_or(f64::NAN)
        )
    });
    steps.collect::<Vec<_>>().join(", ")
}

/// The records were written once each by the rollback, the app's objects were patched, and nothing else was: helm makes
/// its record, supersedes the one before, and says that its own is deployed, which we mark.
#[track_caller]
pub(crate) fn expected_writes(cluster: &Cluster) {
    assert_eq!(
        written(cluster),
        "create v3, update v2, update v3, update v3"
    );
}

/// What Leadsman and its helm wrote to the app's records: those that were made, then those that were changed, by their
/// numbers. Beside that they wrote Events, changed the app's own objects in place, and ran its hook; a deployment by a
/// person is not in it.
#[track_caller]
pub(crate) fn written(cluster: &Cluster) -> String {
    let of_the_app = [
        "deployments/mykadoo-api",
        "deployments/mykadoo-web",
        "services/mykadoo-api",
        "services/mykadoo-web",
        "configmaps/mykadoo-settings",
        "secrets/mykadoo-password",
    ];
    let (mut made, mut changed, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for write in cluster.writes(&cluster.account()) {
        let (verb, object) = write.split_once(' ').unwrap();
        let record = object.strip_prefix("secrets/sh.helm.release.v1.mykadoo.v");
        let number: Option<u32> = record.map(|number| number.parse().unwrap());
        match (verb, number) {
            ("create", Some(number)) => made.push(number),
            ("update", Some(number)) => changed.push(number),
            ("create" | "patch", None) if object.starts_with("events/") => {}
            ("patch", None) if of_the_app.contains(&object) => {}
            ("create" | "patch", None) if object == "jobs/mykadoo-before-rollback" => {}
            _ => others.push(write),
        }
    }
    assert!(others.is_empty(), "{others:#?}");
    made.sort_unstable();
    changed.sort_unstable();
    let made = made.iter().map(|number| format!("create v{number}"));
    let changed = changed.iter().map(|number| format!("update v{number}"));
    made.chain(changed).collect::<Vec<_>>().join(", ")
}

/// The real record says who made it, why, and of which contents.
#[track_caller]
fn marked(cluster: &Cluster, plural: &str) {
    let path = |revision: u32| {
        format!(
            "/api/v1/namespaces/{}/{plural}/sh.helm.release.v1.mykadoo.v{revision}",
            cluster.namespace
        )
    };
    let labels = cluster.get(&path(3))["metadata"]["labels"].clone();
    assert_eq!(labels["leadsman.io/made"], "3", "{labels:#}");
    assert_eq!(labels["leadsman.io/turned-back"], "2", "{labels:#}");
    assert_eq!(labels["status"], "deployed", "{labels:#}");
    let fence = labels["leadsman.io/fence"].as_str().unwrap_or("");
    assert!(fence.parse::<u64>().is_ok(), "{labels:#}");
    let digest = labels["leadsman.io/digest"].as_str().unwrap_or("");
    let is_hex = digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(digest.len() == 12 && is_hex, "{labels:#}");
    let (_, _, description) = &cluster.history(Helm::Four)[2];
    assert!(
        description.ends_with(&format!("; contents {digest}")),
        "{description}"
    );
    let before = cluster.get(&path(1))["metadata"]["labels"].clone();
    assert!(before["leadsman.io/made"].is_null(), "{before:#}");
}

#[test]
fn a_dead_revision_is_rolled_back_by_helm_4() {
    rolled_back("dead", Helm::Four, DEAD, &["hard_down", "pods_down"]);
}

#[test]
fn a_dead_revision_is_rolled_back_by_helm_3() {
    rolled_back("dead", Helm::Three, DEAD, &["hard_down", "pods_down"]);
}

#[test]
fn errors_of_twenty_points_are_rolled_back() {
    let errors = r#"api.sim={"answers":{"/api/health":"flap:0.2","/api/health/db":"flap:0.2","/api/health/redis":"flap:0.2"}}"#;
    rolled_back("errors", Helm::Four, errors, &["error_rate"]);
}

#[test]
fn one_dead_endpoint_is_rolled_back() {
    let one = r#"api.sim={"answers":{"/api/health/db":"hang"}}"#;
    rolled_back(
        "endpoint",
        Helm::Three,
        one,
        &["hard_down:db", "pods_down:db", "error_rate"],
    );
}

#[test]
fn a_crash_loop_is_rolled_back() {
    rolled_back(
        "crash",
        Helm::Four,
        r#"api.sim={"crash-after":"1s"}"#,
        &["crash_loop", "hard_down"],
    );
}

/// What ended the containers is said in words that need no exit codes.
#[test]
fn a_revision_that_needs_too_much_memory_is_rolled_back_and_that_is_said() {
    let Some(cluster) = Cluster::new("memory", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[r#"api.sim={"oom-after":"1s"}"#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = crate::commands::explained(&guarded, 2);
    assert_eq!(code, Some(0), "{text}");
    let said = "OOMKilled (exit code 137): it needed more memory than it may have";
    assert!(text.contains(said), "{text}");
}

#[test]
fn an_image_that_cannot_be_pulled_is_rolled_back() {
    rolled_back(
        "image",
        Helm::Three,
        r#"api.sim={"image-pull":"fail"}"#,
        &["cannot_start"],
    );
}

/// With many replicas and a careful rollout, new pods are asked directly, and few users meet them.
#[test]
fn of_twenty_replicas_with_a_dead_revision_few_users_notice() {
    let Some(cluster) = Cluster::new("twenty", Helm::Four) else {
        return;
    };
    let many = r#"api={"replicas":20,"surge":"10%","unavailable":0,"image":"mykadoo-api:1"}"#;
    cluster.install(&[many]);
    let guarded = Guarded::start(&cluster);
    // New pods need some seconds each, so the rollout takes longer than the verdict.
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[many, DEAD, r#"api.sim.start="8s""#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (failed, asked) = users.counts();
    let of_five_minutes = users.failed_percent_of_five_minutes();
    println!(
        "twenty: {failed} of {asked} requests failed until it was well again, {of_five_minutes:.1} % of five minutes; {}",
        steps(&ended)
    );
    assert!(asked > 500, "{asked}");
    assert!(of_five_minutes <= 2.0, "{failed} of {asked} failed");
}

#[test]
fn a_release_with_its_records_in_config_maps_is_rolled_back() {
    let Some(mut cluster) = Cluster::new("maps", Helm::Four) else {
        return;
    };
    cluster.driver = "configmap";
    cluster.install(&[]);
    let settings = Settings::by(Helm::Four);
    let mapped = |kubeconfig: &std::path::Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        text.replace("[kubernetes]\n", "[kubernetes]\ndriver = \"configmap\"\n")
    };
    let kubeconfig = cluster.least(&mapped(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &mapped(&kubeconfig));
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#, DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    marked(&cluster, "configmaps");
    let secrets = cluster.list("/api/v1", "secrets");
    assert!(
        secrets
            .iter()
            .all(|secret| secret["type"] != "helm.sh/release.v1")
    );
    cluster.helm(&["upgrade", "mykadoo", CHART]);
}

/// With ordered pods the controller waits for a pod that never becomes Ready.
#[test]
fn a_statefulset_that_crashes_is_rolled_back_and_not_left_blocked() {
    let Some(cluster) = Cluster::new("queue", Helm::Four) else {
        return;
    };
    cluster.install(&[r#"statefulset={"enabled":true,"replicas":2,"sim":{}}"#]);
    let settings = Settings {
        rollback: "unblock_statefulsets = true",
        watch: 120,
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    cluster
        .upgrade(&[r#"statefulset={"enabled":true,"replicas":2,"sim":{"crash-after":"500ms"}}"#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let pods = cluster.list("/api/v1", "pods");
    let queue: Vec<_> = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app"] == "mykadoo-queue")
        .collect();
    assert_eq!(queue.len(), 2);
    for pod in queue {
        let crashes = &pod["metadata"]["annotations"]["sim.leadsman.io/crash-after"];
        assert!(crashes.is_null(), "{pod:#}");
    }
    let deletes: Vec<String> = cluster
        .writes(&cluster.account())
        .into_iter()
        .filter(|write| write.starts_with("delete"))
        .collect();
    let is_unblock = |write: &String| write.starts_with("delete pods/mykadoo-queue-");
    assert!(
        !deletes.is_empty() && deletes.iter().all(is_unblock),
        "{deletes:?}"
    );
}

#[test]
fn a_workload_that_stops_before_it_starts_is_rolled_back() {
    rolled_back_from("recreate", r#"api={"strategy":"Recreate"}"#);
}

#[test]
fn a_workload_with_an_autoscaler_is_rolled_back() {
    rolled_back_from("scaler", r#"autoscaling={"enabled":true,"min":2,"max":5}"#);
}

/// Its pods belong to no ReplicaSet: old and new are told apart by the generation of their template.
#[test]
fn a_daemon_set_is_rolled_back() {
    let Some(cluster) = Cluster::new("daemon", Helm::Four) else {
        return;
    };
    let values = r#"api.kind="DaemonSet""#;
    cluster.install(&[values]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[values, DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let reason = ended["reason"].as_str().unwrap();
    println!("daemon: {reason}; {}", steps(&ended));
    assert!(
        ["hard_down", "pods_down"]
            .iter()
            .any(|wanted| reason.starts_with(wanted)),
        "{reason}"
    );
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );
    let pods = cluster.list("/api/v1", "pods");
    let api: Vec<_> = pods
        .iter()
        .filter(|pod| pod["metadata"]["labels"]["app"] == "mykadoo-api")
        .collect();
    // One on each node, and all of the third template, which is the first one again.
    assert_eq!(api.len(), 2, "{api:#?}");
    for pod in api {
        let labels = &pod["metadata"]["labels"];
        assert_eq!(labels["pod-template-generation"], "3", "{labels}");
        let answers = &pod["metadata"]["annotations"]["sim.leadsman.io/answers"];
        assert!(answers.is_null(), "{answers}");
    }
    let writes = cluster.writes(&cluster.account());
    let patch = "patch daemonsets/mykadoo-api".to_owned();
    assert!(writes.contains(&patch), "{writes:#?}");
}

/// A dead revision of an app that is run with these values.
#[track_caller]
fn rolled_back_from(name: &str, values: &str) {
    let Some(cluster) = Cluster::new(name, Helm::Three) else {
        return;
    };
    cluster.install(&[values]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[values, DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
}

/// Somebody sets a variable by hand while the revision is judged. Neither Helm takes it away, and that is said.
#[track_caller]
fn changed_by_hand(name: &str, helm: Helm) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
    let deployment = format!(
        "/apis/apps/v1/namespaces/{}/deployments/mykadoo-api",
        cluster.namespace
    );
    let variable = serde_json::json!([{"name": "BY_HAND", "value": "hush"}]);
    let container = serde_json::json!([{"name": "api", "env": variable}]);
    let patch = serde_json::json!({"spec": {"template": {"spec": {"containers": container}}}});
    let kind = "application/strategic-merge-patch+json";
    cluster.send("PATCH", &deployment, kind, &patch);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let says = "After the rollback the cluster is not as revision 3 says: container api of Deployment mykadoo-api has the variable BY_HAND, which is in no chart";
    let release = guarded.until("it is said", |release| {
        let events = release["events"].as_array().cloned().unwrap_or_default();
        events.iter().any(|event| event["text"] == says)
    });
    assert!(!release.to_string().contains("hush"), "{release:#}");
    assert!(guarded.leadsman.said(says), "{}", guarded.leadsman.log());
}

#[test]
fn what_helm_4_leaves_of_a_change_by_hand_is_said() {
    changed_by_hand("hand", Helm::Four);
}

#[test]
fn what_helm_3_leaves_of_a_change_by_hand_is_said() {
    changed_by_hand("hand", Helm::Three);
}
