//! What is not rolled back, and why that is said at once, with the command for a person.

use crate::commands::leadsman;
use crate::guarded::{Guarded, Settings, configuration, configuration_with};
use crate::program::until;
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

/// Deploys a bad revision that must not be rolled back; the reason must be said.
#[track_caller]
fn refused(name: &str, first: &[&str], bad: &[&str], says: &[&str]) {
    refused_after(name, first, bad, says, |_| {});
}

/// The same after something was done to the first revision.
#[track_caller]
fn refused_after(
    name: &str,
    first: &[&str],
    bad: &[&str],
    says: &[&str],
    done: impl FnOnce(&Cluster),
) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    cluster.install(first);
    done(&cluster);
    let guarded = Guarded::start(&cluster);
    let values: Vec<&str> = [&[DEAD][..], bad].concat();
    cluster.upgrade(&values);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
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
    // The pipeline hears of it, and people do.
    let (code, said) = leadsman(&guarded, &["gate", "mykadoo"]);
    assert_eq!(code, Some(11), "{said}");
    guarded.until_fires("LeadsmanRollbackRefused");
    cluster.only_events();
}

#[test]
fn a_release_that_flux_keeps_is_not_rolled_back() {
    let label = r#"labels={"helm.toolkit.fluxcd.io/name":"mykadoo"}"#;
    refused("flux", &[label], &[label], &["Flux keeps this release"]);
}

#[test]
fn a_release_that_argo_cd_keeps_is_not_rolled_back() {
    let label = r#"labels={"argocd.argoproj.io/instance":"mykadoo"}"#;
    refused("argo", &[label], &[label], &["Argo CD keeps this release"]);
}

#[test]
fn a_revision_whose_hook_may_have_migrated_data_is_not_rolled_back() {
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

/// The API server lets nobody give away rights that they don't have; helm would learn that half-way.
#[test]
fn rights_that_leadsman_does_not_have_cannot_be_given_back_to_the_app() {
    let more = r#"role=["get","delete"]"#;
    let says = [
        "rights are missing to write Role mykadoo-reader",
        "escalate",
    ];
    refused("role", &[more], &[r#"role=["get"]"#], &says);
}

/// Those that it has itself, to look at pods, it can give back.
#[test]
fn rights_that_leadsman_has_are_given_back_to_the_app() {
    let Some(cluster) = Cluster::new("given", Helm::Four) else {
        return;
    };
    cluster.install(&[r#"role=["get","list"]"#]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[r#"role=["get"]"#, DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let roles = cluster.list("/apis/rbac.authorization.k8s.io/v1", "roles");
    let name = |role: &&serde_json::Value| role["metadata"]["name"] == "mykadoo-reader";
    let role = roles.iter().find(name).unwrap();
    assert_eq!(
        role["rules"][0]["verbs"],
        serde_json::json!(["get", "list"])
    );
}

/// Whoever labels a record labels all that follow: Helm hands labels on.
#[test]
fn a_record_whose_label_denies_it_is_not_rolled_back() {
    let says = ["the record's label says leadsman.io/rollback: deny"];
    refused_after("label", &[], &[], &says, |cluster| {
        let record = format!(
            "/api/v1/namespaces/{}/secrets/sh.helm.release.v1.mykadoo.v1",
            cluster.namespace
        );
        let label = serde_json::json!({"metadata": {"labels": {"leadsman.io/rollback": "deny"}}});
        cluster.send("PATCH", &record, "application/merge-patch+json", &label);
    });
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
        release["phase"] == "not_installed"
    });
    cluster.helm(&["install", "mykadoo", crate::rig::CHART, "--set-json", DEAD]);
    let ended = guarded.outcome(1);
    assert_eq!(ended["outcome"], "not_eligible", "{ended:#}");
    cluster.only_events();
}

#[test]
fn in_observe_mode_nothing_is_written_and_what_would_have_been_done_is_said() {
    let Some(cluster) = Cluster::new("observe", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings {
        mode: "observe",
        ..Settings::by(Helm::Four)
    };
    let told = |kubeconfig: &std::path::Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        let promise =
            "mode = \"observe\"\nobjective = { availability = \"99.97%\", window = \"1d\" }\n";
        text.replacen("mode = \"observe\"\n", promise, 1)
    };
    let kubeconfig = cluster.least(&told(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &told(&kubeconfig));
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "would_roll_back", "{ended:#}");
    guarded.until_fires("LeadsmanReleaseRegressedObserveOnly");
    guarded.until_fires("LeadsmanObjectiveBurning");
    until("the budget is spent", || {
        cluster.told().contains(&"BudgetExhausted".to_owned())
    });
    let text = ended["text"].as_str().unwrap();
    assert!(
        text.starts_with("Would have been rolled back in the mode enforce: "),
        "{text}"
    );
    let (code, explained) = crate::commands::explained(&guarded, 2);
    assert_eq!(code, Some(0), "{explained}");
    assert!(explained.contains("made things worse"), "{explained}");
    assert!(cluster.told().contains(&"RollbackSuppressed".to_owned()));
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    cluster.only_events();
    let metrics = guarded.leadsman.get("/metrics").body;
    let series = format!(
        "leadsman_rollouts_total{{namespace=\"{}\",outcome=\"would_roll_back\",release=\"mykadoo\"}} 1",
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
    // Nor may it read logs.
    let path = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles/leadsman",
        cluster.namespace
    );
    let mut role = cluster.get(&path);
    let rules = role["rules"].as_array_mut().unwrap();
    let before = rules.len();
    rules.retain(|rule| rule["resources"] != serde_json::json!(["pods/log"]));
    assert_eq!(rules.len() + 1, before, "{role:#}");
    cluster.send("PUT", &path, "application/json", &role);
    let enforcing = configuration(&cluster, &Settings::by(Helm::Four), &kubeconfig);
    let guarded = Guarded::allowed(&cluster, &enforcing);
    let release = guarded.until("the obstacle is known", |release| {
        release["preflight_failure"].is_string()
    });
    let failure = release["preflight_failure"].as_str().unwrap();
    for part in [
        "rights are missing",
        "patch deployments.apps in",
        "update secrets in",
        "leadsman rbac",
    ] {
        assert!(failure.contains(part), "{part} is not in: {failure}");
    }
    let lacking = format!("rights are missing: get pods/log in {}", cluster.namespace);
    assert!(
        guarded.leadsman.said(&lacking),
        "{}",
        guarded.leadsman.log()
    );
    let metrics = guarded.leadsman.get("/metrics").body;
    let series = format!(
        "leadsman_rollback_ready{{namespace=\"{}\",reason=\"rights\",release=\"mykadoo\"}} 0",
        cluster.namespace
    );
    assert!(metrics.contains(&series), "{metrics}");
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "refused", "{ended:#}");
    assert!(
        ended["text"]
            .as_str()
            .unwrap()
            .contains("rights are missing"),
        "{ended:#}"
    );
}

/// Somebody takes the app away while it is judged: what fails then is no verdict, and it must not come back.
#[track_caller]
fn uninstalled(name: &str, flags: &[&str]) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    guarded.until("revision 2 is judged", |release| release["revision"] == 2);
    cluster.helm(&[&["uninstall", "mykadoo"], flags].concat());
    guarded.until("the release is gone", |release| {
        release["phase"] == "not_installed"
    });
    assert_eq!(guarded.outcome(2)["outcome"], "uninstalled");
    // For as long as a dead release takes to be found and rolled back.
    let began = std::time::Instant::now();
    guarded.until("half a minute has passed", |release| {
        assert_eq!(release["phase"], "not_installed", "{release:#}");
        began.elapsed() > std::time::Duration::from_secs(30)
    });
    assert!(cluster.list("/apis/apps/v1", "deployments").is_empty());
    cluster.only_events();
}

#[test]
fn an_app_that_is_uninstalled_while_it_is_judged_does_not_come_back() {
    uninstalled("away", &[]);
}

#[test]
fn an_app_whose_history_is_kept_does_not_come_back_either() {
    uninstalled("history", &["--keep-history"]);
}

/// What is held still is not judged: pods that nobody wants are no failure of the revision.
#[track_caller]
fn held_still(name: &str, values: &[&str]) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(values);
    let ended = guarded.outcome(2);
    let outcome = ended["outcome"].as_str().unwrap();
    assert!(
        ["passed", "inconclusive", "not_eligible"].contains(&outcome),
        "{ended:#}"
    );
    assert_eq!(cluster.statuses(Helm::Three), "1 superseded, 2 deployed");
    cluster.only_events();
}

#[test]
fn a_release_that_is_paused_is_not_rolled_back() {
    held_still("paused", &[r#"api={"paused":true}"#]);
}

#[test]
fn a_release_that_is_scaled_to_zero_is_not_rolled_back() {
    held_still("zero", &[r#"api={"replicas":0}"#, "web.replicas=0"]);
}

/// Of those before the bad one none is known to work: people are told, and nothing is done.
#[test]
fn where_nothing_good_is_left_people_are_told_and_nothing_is_done() {
    let Some(cluster) = Cluster::new("nothing", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let state = tempfile::tempdir().unwrap();
    let text = |mode, kubeconfig: &std::path::Path| {
        let settings = Settings {
            mode,
            // A pod that cannot start is given a minute.
            watch: 120,
            ..Settings::by(Helm::Four)
        };
        configuration_with(&cluster, &settings, kubeconfig, state.path())
    };
    let kubeconfig = cluster.least(&text("enforce", &cluster.kubeconfig()));
    let no_image = r#"api.sim={"image-pull":"fail"}"#;
    let crash = r#"api.sim={"crash-after":"1s"}"#;
    let mut observes = Guarded::allowed(&cluster, &text("observe", &kubeconfig));
    cluster.upgrade(&[no_image]);
    assert_eq!(observes.outcome(2)["outcome"], "would_roll_back");
    observes.leadsman.kill();
    drop(observes);
    let first = format!(
        "/api/v1/namespaces/{}/secrets/sh.helm.release.v1.mykadoo.v1",
        cluster.namespace
    );
    cluster.send("DELETE", &first, "application/json", &serde_json::json!({}));
    let enforces = Guarded::started(&cluster, &text("enforce", &kubeconfig));
    enforces.until("it knows where it stands", |release| {
        release["phase"] == "idle"
    });
    cluster.upgrade(&[crash, r#"api.image="mykadoo-api:3""#]);
    let ended = enforces.outcome(3);
    assert_eq!(
        ended["outcome"],
        "refused",
        "{ended:#}\n{}",
        enforces.leadsman.log()
    );
    let said = ended["text"].as_str().unwrap();
    assert!(said.contains("no revision to go back to"), "{said}");
    assert!(said.contains("found bad"), "{said}");
    let command = format!(
        "helm rollback mykadoo REVISION --namespace {} --history-max 0",
        cluster.namespace
    );
    assert!(said.contains(&command), "{said}");
    assert_eq!(cluster.statuses(Helm::Four), "2 superseded, 3 deployed");
    cluster.only_events();
}
