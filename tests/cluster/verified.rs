//! A rollback that works and helps nobody: what still fails was not the release, or more fails than before.

use serde_json::Value;

use crate::guarded::{Guarded, Settings};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::{DEAD, expected_writes};

/// How it must end, and what people are told of it.
struct Expected {
    outcome: &'static str,
    text: &'static str,
    event: &'static str,
    alert: &'static str,
}

/// Rolls back a bad revision, while something else begins to fail for all of the app.
#[track_caller]
fn still_fails(name: &str, bad: &str, then_fail: &[&str], expected: &Expected) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    cluster.install(&[r#"api.image="mykadoo-api:1""#]);
    let held = cluster.held_helm("*rollback*");
    let settings = Settings {
        helm: held.path.clone(),
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    held.hold();
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#, bad]);
    // The verdict has fallen, and nothing is undone yet.
    guarded.until("the rollback begins", |release| {
        release["phase"] == "rolling_back"
    });
    for path in then_fail {
        cluster.depend(path, "status:503");
    }
    held.let_go();
    let ended = guarded.outcome(2);
    println!("{name}: {}: {}", ended["outcome"], ended["text"]);
    assert_eq!(
        ended["outcome"],
        expected.outcome,
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let text = ended["text"].as_str().unwrap();
    assert!(text.starts_with(expected.text), "{text}");
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&1.into(), &3.into()),
        "{ended:#}"
    );
    guarded.until("the alert fires", |_| {
        let answer = guarded.leadsman.get("/api/v1/alerts").body;
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let alerts = answer["alerts"].as_array().cloned().unwrap_or_default();
        alerts.iter().any(|alert| {
            alert["state"] == "firing"
                && alert["labels"]["alertname"] == expected.alert
                && alert["labels"]["severity"] == "critical"
        })
    });
    let told = cluster.told();
    assert!(told.contains(&expected.event.to_owned()), "{told:?}");
    assert!(!told.contains(&"RollbackVerified".to_owned()), "{told:?}");

    // All of it goes on failing, and a rollback is never rolled back: nothing is done a second time.
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert_eq!(guarded.release()["phase"], "idle");
    for reads in [Helm::Three, Helm::Four] {
        assert_eq!(
            cluster.statuses(reads),
            "1 superseded, 2 superseded, 3 deployed"
        );
    }
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    expected_writes(&cluster);
}

#[test]
fn what_still_fails_after_the_rollback_was_not_the_release() {
    let all = ["/api/health", "/api/health/db", "/api/health/redis"];
    still_fails(
        "same",
        DEAD,
        &all,
        &Expected {
            outcome: "still_failing",
            text: "Rolled back, but the same still fails, so it was not the release: ",
            event: "NotTheRelease",
            alert: "LeadsmanNotTheRelease",
        },
    );
}

#[test]
fn where_more_fails_after_the_rollback_than_before_it_is_worse() {
    let one = r#"api.sim={"answers":{"/api/health/db":"status:503"}}"#;
    let others = ["/api/health", "/api/health/db", "/api/health/redis"];
    still_fails(
        "worsened",
        one,
        &others,
        &Expected {
            outcome: "worsened",
            text: "Rolled back, and more fails than before: ",
            event: "WorseAfterRollback",
            alert: "LeadsmanRollbackFailed",
        },
    );
}
