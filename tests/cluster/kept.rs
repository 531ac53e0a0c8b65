//! What is not the release's fault is kept, and why is said.

use std::time::Duration;

use crate::guarded::Guarded;
use crate::rig::{Cluster, Helm};
use crate::users::Users;

/// A rollout that harms nobody: a request may meet a pod in the moment in which it ends.
const HARMLESS: f64 = 1.0;

/// The test itself harms them.
const ANY: f64 = 100.0;

/// Upgrades to a revision with these values, does something, and it must be kept; at most so many percent of the
/// requests of users fail meanwhile.
#[track_caller]
fn kept(name: &str, values: &str, most: f64, meanwhile: impl FnOnce(&Cluster, &Guarded<'_>)) {
    ends(name, values, &["passed"], most, meanwhile);
}

/// The same for what need not be found good, but must be left where it is; why.
#[track_caller]
fn ends(
    name: &str,
    values: &str,
    outcomes: &[&str],
    most: f64,
    meanwhile: impl FnOnce(&Cluster, &Guarded<'_>),
) -> String {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return String::new();
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#, values]);
    meanwhile(&cluster, &guarded);
    let ended = guarded.outcome(2);
    let ((failed, asked), percent) = (users.counts(), users.failed_percent());
    drop(users);
    println!("{name}: {failed} of {asked} requests failed, {percent:.2} %");
    assert!(
        outcomes.contains(&ended["outcome"].as_str().unwrap()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    println!("{name}: {}: {}", ended["outcome"], ended["text"]);
    assert!(asked > 500, "{asked}");
    assert!(percent <= most, "{failed} of {asked} failed");
    assert_eq!(cluster.statuses(Helm::Three), "1 superseded, 2 deployed");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:2"));
    cluster.only_events();
    let told = cluster.told();
    assert!(told.contains(&"ReleaseObserved".to_owned()), "{told:?}");
    let text = ended["text"].as_str().unwrap().to_owned();
    if ended["outcome"] == "passed" {
        assert!(text.contains("nothing speaks against it"), "{text}");
        assert!(told.contains(&"ReleaseHealthy".to_owned()), "{told:?}");
    }
    text
}

#[test]
fn a_healthy_revision_is_kept() {
    kept("healthy", "api.sim={}", HARMLESS, |_, _| {});
}

#[test]
fn a_slow_start_is_kept() {
    kept("slow", r#"api.sim={"start":"12s"}"#, HARMLESS, |_, _| {});
}

#[test]
fn a_cold_start_of_8_s_after_ready_is_kept() {
    let cold = r#"api.sim={"answers":{"/api/health":"cold:8s","/api/health/db":"cold:8s","/api/health/redis":"cold:8s"}}"#;
    kept("cold", cold, ANY, |_, _| {});
}

#[test]
fn a_dependency_that_is_down_for_old_and_new_is_no_fault_of_the_revision() {
    // A slow start, so that old pods are there to show that it is not the revision.
    let values = r#"api.sim={"start":"12s"}"#;
    let text = ends(
        "dependency",
        values,
        &["passed", "inconclusive"],
        // They ask for something else than what depends on it.
        HARMLESS,
        |cluster, _| {
            cluster.depend("/api/health/db", "status:503");
            cluster.depend("/api/health/redis", "flap:0.4");
        },
    );
    if crate::rig::rig().is_some() {
        // Not found good is no finding against it, and why is said.
        let says = ["nothing speaks against it", "Nothing can be said: "];
        assert!(says.iter().any(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn a_blip_of_ten_seconds_is_kept() {
    kept("blip", "api.sim={}", ANY, |cluster, guarded| {
        guarded.until("it settles", |release| {
            release["analysis"]["complete"] == true
        });
        cluster.depend("/api/health", "status:503");
        let began = guarded.release()["analysis"]["elapsed_s"].as_f64().unwrap();
        guarded.until("ten seconds pass", |release| {
            release["analysis"]["elapsed_s"]
                .as_f64()
                .is_none_or(|now| now - began >= Duration::from_secs(10).as_secs_f64())
        });
        cluster.depend("/api/health", "");
    });
}
