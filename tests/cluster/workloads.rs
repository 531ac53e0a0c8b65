//! Each workload by itself: one that never becomes Ready, and one whose strategy stops the old pod first.

use crate::guarded::{Guarded, Settings};
use crate::rig::{Cluster, Helm};

/// While the old pods serve, no user notices; all the same the revision is not one that works.
fn never_ready(helm: Helm) {
    let Some(cluster) = Cluster::new("never-ready", helm) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings {
        analysis: "max_duration = \"5m\"\nready_within = \"40s\"",
        ..Settings::by(helm)
    };
    let guarded = Guarded::with(&cluster, &settings);
    cluster.upgrade(&[r#"api.sim={"answers":{"/ready":"status:503"}}"#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&"rolled_back".into(), &"not_ready:mykadoo-api".into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = crate::commands::explained(&guarded, 2);
    assert_eq!(code, Some(0), "{text}");
    let said = "no new pod of Deployment mykadoo-api became Ready: none in 40 s";
    assert!(text.contains(said), "{text}");
    let statuses = cluster.statuses(helm);
    assert_eq!(statuses, "1 superseded, 2 superseded, 3 deployed");
}

#[test]
fn a_workload_that_never_becomes_ready_is_rolled_back_while_its_old_pods_serve() {
    never_ready(Helm::Four);
}

#[test]
fn a_workload_that_never_becomes_ready_is_rolled_back_by_helm_3_too() {
    never_ready(Helm::Three);
}

/// A single replica without surge: the old pod goes before the new one comes, 25 s later.
#[test]
fn the_gap_of_a_single_replica_is_expected_and_a_dead_one_is_found_after_it() {
    let Some(cluster) = Cluster::new("single", Helm::Four) else {
        return;
    };
    let single = r#"api={"replicas":1,"surge":0,"unavailable":1,"sim":{"start":"25s"}}"#;
    cluster.install(&[single]);
    let settings = Settings {
        analysis: "max_duration = \"5m\"",
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    cluster.upgrade(&[single, r#"api.image="mykadoo-api:2""#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "passed",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, text) = crate::commands::explained(&guarded, 2);
    assert_eq!(code, Some(0), "{text}");
    let said = "because the strategy stops the old pods before it starts new ones";
    assert!(text.contains(said), "{text}");
    let dead = r#"api={"replicas":1,"surge":0,"unavailable":1,"sim":{"start":"25s","answers":{"/api/health":"status:500","/api/health/db":"status:500","/api/health/redis":"status:500"}}}"#;
    cluster.upgrade(&[dead, r#"api.image="mykadoo-api:3""#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert!(
        ended["reason"].as_str().unwrap().starts_with("hard_down"),
        "{ended:#}"
    );
    let (_, text) = crate::commands::explained(&guarded, 3);
    assert!(text.contains("Learned from 1 kept rollout"), "{text}");
}
