//! What real clusters, servers and people do around a rollout (rows J of the field cases), one after another.

use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings};
use crate::program::until;
use crate::rig::{Cluster, Helm};
use crate::turned_back::DEAD;
use crate::users::Users;

/// The end of a revision, with the requests of users that failed until then.
#[track_caller]
fn ends(
    cluster: &Cluster,
    guarded: &Guarded<'_>,
    users: &Users,
    revision: u64,
    as_: &str,
) -> Value {
    let ended = guarded.ending(revision);
    let (failed, asked) = users.counts();
    eprintln!(
        "{}: revision {revision} {}: {failed} of {asked} requests of users failed",
        cluster.namespace, ended["ending"]
    );
    assert_eq!(
        ended["ending"],
        as_,
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    ended
}

#[track_caller]
fn says(ended: &Value, parts: &[&str]) {
    let text = ended["text"].as_str().unwrap();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A kind of an operator, as its chart would install it.
fn define(cluster: &Cluster, group: &str, kind: &str) {
    let plural = format!("{}s", kind.to_lowercase());
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
        },
    });
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.send("POST", path, "application/json", &definition);
    let path = format!("/apis/{group}/v1/namespaces/default/{plural}");
    until("the kind is served", || {
        cluster.get(&path)["items"].is_array()
    });
}

/// J14: a rollback would delete the database with its resource.
#[test]
fn a_resource_of_an_operator_is_not_deleted_by_a_rollback() {
    let Some(cluster) = Cluster::new("owns", Helm::Four) else {
        return;
    };
    define(&cluster, "db.example.com", "Cluster");
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let database =
        r#"extra=[{"apiVersion":"db.example.com/v1","kind":"Cluster","metadata":{"name":"main"}}]"#;
    cluster.upgrade(&[DEAD, database]);
    let ended = ends(&cluster, &guarded, &users, 2, "refused");
    let named = "Cluster main (db.example.com), whose operator may delete data with it";
    says(&ended, &[named, "may_delete", "helm rollback mykadoo 1"]);
    cluster.only_events();
}

/// J14: so are the claims of a StatefulSet that says so.
#[test]
fn claims_that_go_with_their_stateful_set_are_not_deleted_by_a_rollback() {
    let Some(cluster) = Cluster::new("claims", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let container = json!({"name": "db", "image": "db:1"});
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    let set = json!([{
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "serviceName": "db", "replicas": 1, "selector": {"matchLabels": {"app": "db"}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [container]}},
            "volumeClaimTemplates": [claim],
        },
    }]);
    cluster.upgrade(&[DEAD, &format!("extra={set}")]);
    let ended = ends(&cluster, &guarded, &users, 2, "refused");
    says(
        &ended,
        &["StatefulSet db, whose claims go with it (whenDeleted: Delete)"],
    );
    cluster.only_events();
}

/// A Job that is no hook and goes away when it is done.
fn job(image: &str) -> String {
    let container = json!({"name": "seed", "image": image});
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    let object = json!([{
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "seed"},
        "spec": {"ttlSecondsAfterFinished": 0, "template": template},
    }]);
    format!("extra={object}")
}

fn no_job(cluster: &Cluster) {
    until("the Job is done and gone", || {
        cluster.list("/apis/batch/v1", "jobs").is_empty()
    });
}

/// J21: what cannot be changed is not there, so nothing of it has to be. J16: that it may have migrated data is said.
fn job_is_gone(name: &str, helm: Helm) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[&job("seed:1")]);
    no_job(&cluster);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[DEAD, &job("seed:2")]);
    ends(&cluster, &guarded, &users, 2, "recovered");
    let said = "Job seed of revision 2 differs from that of revision 1: it may have migrated data";
    assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
    assert_eq!(
        cluster.statuses(helm),
        "1 superseded, 2 superseded, 3 deployed"
    );
}

#[test]
fn a_job_that_is_gone_keeps_no_rollback_of_helm_4_back() {
    job_is_gone("job4", Helm::Four);
}

#[test]
fn a_job_that_is_gone_keeps_no_rollback_of_helm_3_back() {
    job_is_gone("job3", Helm::Three);
}

/// J16: a hook that makes certificates migrates nothing.
#[test]
fn a_hook_that_migrates_nothing_can_be_named() {
    let Some(cluster) = Cluster::new("ignored", Helm::Four) else {
        return;
    };
    cluster.install(&["hooks.migrate=true"]);
    let settings = Settings {
        rollback: "migrations = { ignore = [\"*-migr*\"] }",
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[DEAD, "hooks.migrate=true"]);
    ends(&cluster, &guarded, &users, 2, "recovered");
}
