//! What a revision is blamed for: what it changed, and nothing beside it.

use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings};
use crate::program::until;
use crate::rig::{Cluster, Helm};

/// Whether a pod of a workload waits for one of these reasons.
fn waits(cluster: &Cluster, workload: &str, reasons: &[&str]) -> bool {
    let is_of = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap();
        name.starts_with(workload)
    };
    let pods = cluster.list("/api/v1", "pods");
    pods.iter().filter(|pod| is_of(pod)).any(|pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason
            .as_str()
            .is_some_and(|reason| reasons.contains(&reason))
    })
}

/// One part of the chart has crashed for long; that excuses no other part.
#[test]
fn a_crash_loop_rejects_beside_a_part_that_has_crashed_before() {
    let Some(cluster) = Cluster::new("beside", Helm::Four) else {
        return;
    };
    let queue = r#"statefulset={"enabled":true,"replicas":1,"sim":{"crash-after":"1s"}}"#;
    cluster.install(&[]);
    cluster.upgrade(&[queue]);
    until("the queue crashes", || {
        waits(&cluster, "mykadoo-queue", &["CrashLoopBackOff"])
    });
    // Whether a part that was never complete counts after a rollback is another question.
    let settings = Settings {
        mode: "observe",
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    cluster.upgrade(&[queue, r#"api.sim={"crash-after":"1s"}"#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&"would_roll_back".into(), &"crash_loop".into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = crate::commands::explained(&guarded, 3);
    assert_eq!(code, Some(0), "{text}");
    let said = "new pod of Deployment mykadoo-api restarted";
    assert!(text.contains(said), "{text}");
    assert!(text.contains("(container api"), "{text}");
}

/// The registry is away when a part is scaled up that the revision did not change.
#[test]
fn a_pod_of_an_unchanged_part_that_cannot_start_is_no_fault_of_the_revision() {
    let Some(cluster) = Cluster::new("unchanged-part", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    // A pod that cannot start is given a minute.
    let settings = Settings {
        watch: 120,
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    guarded.until("it is watched", |release| release["phase"] == "analyzing");
    cluster.registry_is_away("mykadoo-web");
    let web = format!(
        "/apis/apps/v1/namespaces/{}/deployments/mykadoo-web/scale",
        cluster.namespace
    );
    let more = json!({"spec": {"replicas": 3}});
    cluster.send("PATCH", &web, "application/merge-patch+json", &more);
    until("its image is not pulled", || {
        waits(
            &cluster,
            "mykadoo-web",
            &["ErrImagePull", "ImagePullBackOff"],
        )
    });
    let ended = guarded.outcome(2);
    let outcomes = ["passed", "inconclusive"];
    assert!(
        outcomes.contains(&ended["outcome"].as_str().unwrap()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    cluster.only_events();
}
