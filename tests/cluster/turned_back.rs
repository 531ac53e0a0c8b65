//! Bad revisions are turned back, and every Helm can go on from there.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::guarded::{Guarded, Settings};
use crate::rig::{CHART, Cluster, Helm};
use crate::users::Users;

pub(crate) const DEAD: &str = r#"api.sim={"answers":{"/api/health":"status:503","/api/health/db":"status:503","/api/health/redis":"status:503"}}"#;

/// Upgrades to a bad revision; it must be turned back, and its history be such that every Helm can go on.
#[track_caller]
fn turned_back(name: &str, helm: Helm, bad: &str, reasons: &[&str]) -> Value {
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
    let ended = guarded.ending(2);
    let known_after = ended["seen_at"].as_f64().unwrap() - deployed;
    println!("{name}: known {known_after:+.2} s after helm said that it is deployed");
    println!(
        "{name}: {:.1} % of the requests failed until the end",
        users.failed_percent()
    );
    drop(users);
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        (&ended["target"], &ended["made"]),
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

/// The records were written once each by the rollback, and nothing else was.
#[track_caller]
fn expected_writes(cluster: &Cluster) {
    let record = |revision: u32| format!("secrets/sh.helm.release.v1.mykadoo.v{revision}");
    let writes = cluster.writes(&cluster.account());
    // What changes the app is helm's doing, by our account; the deployment by a person is not in it.
    let of = |verb: &str, object: &str| {
        let wanted = format!("{verb} {object}");
        writes.iter().filter(|write| **write == wanted).count()
    };
    assert_eq!(of("create", &record(3)), 1, "{writes:#?}");
    assert_eq!(of("create", &record(4)), 0, "{writes:#?}");
    // Helm writes it once more as deployed, and we mark it.
    assert_eq!(of("update", &record(3)), 2, "{writes:#?}");
    let deletes: Vec<_> = writes
        .iter()
        .filter(|write| write.starts_with("delete"))
        .collect();
    assert!(deletes.is_empty(), "{deletes:?}");
}

#[test]
fn a_dead_revision_is_turned_back_by_helm_4() {
    turned_back("dead", Helm::Four, DEAD, &["hard_down", "pods_down"]);
}

#[test]
fn a_dead_revision_is_turned_back_by_helm_3() {
    turned_back("dead", Helm::Three, DEAD, &["hard_down", "pods_down"]);
}

#[test]
fn errors_of_twenty_points_are_turned_back() {
    let errors = r#"api.sim={"answers":{"/api/health":"flap:0.2","/api/health/db":"flap:0.2","/api/health/redis":"flap:0.2"}}"#;
    turned_back("errors", Helm::Four, errors, &["error_rate"]);
}

#[test]
fn one_dead_endpoint_is_turned_back() {
    let one = r#"api.sim={"answers":{"/api/health/db":"hang"}}"#;
    turned_back(
        "endpoint",
        Helm::Three,
        one,
        &["hard_down:db", "pods_down:db", "error_rate"],
    );
}

#[test]
fn a_crash_loop_is_turned_back() {
    turned_back(
        "crash",
        Helm::Four,
        r#"api.sim={"crash-after":"1s"}"#,
        &["crash_loop", "hard_down"],
    );
}

#[test]
fn an_image_that_cannot_be_pulled_is_turned_back() {
    turned_back(
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
    let ended = guarded.ending(2);
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (failed, asked) = users.counts();
    // The runbook looks at five minutes; 50 requests a second are 15 000 in that time.
    let of_five_minutes = 100.0 * f64::from(failed) / 15_000.0;
    println!(
        "twenty: {failed} of {asked} requests failed until it was well again, {of_five_minutes:.1} % of five minutes; {}",
        steps(&ended)
    );
    assert!(asked > 500, "{asked}");
    assert!(of_five_minutes <= 2.0, "{failed} of {asked} failed");
}
