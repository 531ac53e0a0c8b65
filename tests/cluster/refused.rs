//! What is not turned back, and why that is said at once, with the command for a person.

use crate::guarded::{Guarded, Settings, configuration};
use crate::rig::{Cluster, Helm};
use crate::turned_back::DEAD;

/// Deploys a bad revision that must not be turned back; the reason must be said.
#[track_caller]
fn refused(name: &str, first: &[&str], bad: &[&str], says: &[&str]) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    cluster.install(first);
    let guarded = Guarded::start(&cluster);
    let values: Vec<&str> = [&[DEAD][..], bad].concat();
    cluster.upgrade(&values);
    let ended = guarded.ending(2);
    assert_eq!(
        ended["ending"],
        "refused",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let text = ended["text"].as_str().unwrap();
    for part in says {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(
        text.contains("helm rollback mykadoo 1 --namespace"),
        "{text}"
    );
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    only_events(&cluster);
}

/// Nothing was written but Events.
#[track_caller]
fn only_events(cluster: &Cluster) {
    let writes = cluster.writes(&cluster.account());
    let others: Vec<&String> = writes
        .iter()
        .filter(|write| !write.contains(" events/") && !write.contains("selfsubject"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_release_that_flux_keeps_is_not_turned_back() {
    let label = r#"labels={"helm.toolkit.fluxcd.io/name":"mykadoo"}"#;
    refused("flux", &[label], &[label], &["Flux keeps this release"]);
}

#[test]
fn a_release_that_argo_cd_keeps_is_not_turned_back() {
    let label = r#"labels={"argocd.argoproj.io/instance":"mykadoo"}"#;
    refused("argo", &[label], &[label], &["Argo CD keeps this release"]);
}

#[test]
fn a_revision_whose_hook_may_have_migrated_data_is_not_turned_back() {
    refused(
        "migrate",
        &[],
        &["hooks.migrate=true"],
        &["mykadoo-migrate", "migrations"],
    );
}

#[test]
fn storage_is_not_deleted_by_a_rollback() {
    refused(
        "claim",
        &[],
        &["claim=true"],
        &["PersistentVolumeClaim mykadoo-data"],
    );
}

#[test]
fn the_first_revision_is_left_alone() {
    let Some(cluster) = Cluster::new("first", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.helm(&["uninstall", "mykadoo", "--wait"]);
    guarded.until("the release is gone", |release| {
        release["phase"] == "absent"
    });
    cluster.helm(&["install", "mykadoo", crate::rig::CHART, "--set-json", DEAD]);
    let ended = guarded.ending(1);
    assert_eq!(ended["ending"], "left_alone", "{ended:#}");
    only_events(&cluster);
}

#[test]
fn in_observe_mode_nothing_is_written_and_what_would_have_been_done_is_said() {
    let Some(cluster) = Cluster::new("observe", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::with(
        &cluster,
        &Settings {
            mode: "observe",
            ..Settings::by(Helm::Four)
        },
    );
    cluster.upgrade(&[DEAD]);
    let ended = guarded.ending(2);
    assert_eq!(ended["ending"], "would_roll_back", "{ended:#}");
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    only_events(&cluster);
    let metrics = guarded.leadsman.get("/metrics").body;
    let series = format!(
        "leadsman_rollouts_total{{ending=\"would_roll_back\",namespace=\"{}\",release=\"mykadoo\"}} 1",
        cluster.namespace
    );
    assert!(metrics.contains(&series), "{metrics}");
}

#[test]
fn a_missing_right_is_known_before_it_is_needed() {
    let Some(cluster) = Cluster::new("rights", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    // The rights of somebody who only observes, and the mode of somebody who acts.
    let observing = Settings {
        mode: "observe",
        ..Settings::by(Helm::Four)
    };
    let kubeconfig = cluster.least(&configuration(&cluster, &observing, &cluster.kubeconfig()));
    let enforcing = configuration(&cluster, &Settings::by(Helm::Four), &kubeconfig);
    let guarded = Guarded::allowed(&cluster, &enforcing);
    let release = guarded.until("the obstacle is known", |release| {
        release["obstacle"].is_string()
    });
    let obstacle = release["obstacle"].as_str().unwrap();
    for part in [
        "rights are missing",
        "patch deployments.apps in",
        "update secrets in",
        "leadsman rbac",
    ] {
        assert!(obstacle.contains(part), "{part} is not in: {obstacle}");
    }
    let metrics = guarded.leadsman.get("/metrics").body;
    let series = format!(
        "leadsman_rollback_ready{{namespace=\"{}\",reason=\"rights\",release=\"mykadoo\"}} 0",
        cluster.namespace
    );
    assert!(metrics.contains(&series), "{metrics}");
    cluster.upgrade(&[DEAD]);
    let ended = guarded.ending(2);
    assert_eq!(ended["ending"], "refused", "{ended:#}");
    assert!(
        ended["text"]
            .as_str()
            .unwrap()
            .contains("rights are missing"),
        "{ended:#}"
    );
}
