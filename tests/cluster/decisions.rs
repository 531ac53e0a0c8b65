//! What is judged at all: contents that serve already, a release that comes back, and a rollout that never completes.

use std::path::Path;

use serde_json::Value;

use crate::commands::leadsman;
use crate::guarded::{Guarded, Settings, configuration};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

/// New pods start and never become Ready; the old ones go on serving.
const NEVER_READY: &str =
    r#"api={"image":"mykadoo-api:2","sim":{"answers":{"/ready":"status:503"}}}"#;

const PATHS: [&str; 3] = ["/api/health", "/api/health/db", "/api/health/redis"];

fn short(helm: Helm) -> Settings {
    Settings {
        watch: 45,
        ..Settings::by(helm)
    }
}

/// Good and bad results of each probe so far.
fn totals(guarded: &Guarded<'_>) -> Vec<(u64, u64)> {
    let probes: Value = serde_json::from_str(&guarded.leadsman.get("/api/v1/probes").body).unwrap();
    let good = |probe: &Value| probe["totals"]["success"].as_u64().unwrap();
    let bad = |probe: &Value| {
        let by_reason = probe["totals"]["failure"].as_object().unwrap();
        by_reason
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum::<u64>()
    };
    let probes = probes["probes"].as_array().unwrap();
    let api = probes.iter().filter(|probe| probe["probe"] != "web");
    api.map(|probe| (good(probe), bad(probe))).collect()
}

/// Waits until each probe of the API has so many more good or bad results.
#[track_caller]
fn results(guarded: &Guarded<'_>, good: u64, bad: u64) {
    let before = totals(guarded);
    guarded.until("more results", |_| {
        let now = totals(guarded);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now.0 >= before.0 + good && now.1 >= before.1 + bad)
    });
}

/// All pods of the API answer 503 for 25 s, whatever they run.
#[track_caller]
fn outage(cluster: &Cluster, guarded: &Guarded<'_>) {
    for path in PATHS {
        cluster.depend(path, "status:503");
    }
    results(guarded, 0, 25);
    for path in PATHS {
        cluster.depend(path, "");
    }
    results(guarded, 5, 0);
}

/// Pods are not asked directly, so none of them can show that it is not the revision.
fn through_the_service(cluster: &Cluster) -> Guarded<'_> {
    let settings = short(cluster.helm);
    let of = |kubeconfig: &Path| {
        let asked = configuration(cluster, &settings, kubeconfig);
        let lines = asked.lines().filter(|line| !line.starts_with("pods = "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let kubeconfig = cluster.least(&of(&cluster.kubeconfig()));
    let guarded = Guarded::started(cluster, &of(&kubeconfig));
    guarded.until("steady, with a baseline", |release| {
        let known = release["probe_history"].as_array();
        known.is_some_and(|known| {
            !known.is_empty()
                && known
                    .iter()
                    .all(|probe| probe["baseline_total"].as_u64() >= Some(40))
        })
    });
    guarded
}

fn texts(release: &Value) -> String {
    let events = release["events"].as_array().unwrap();
    let texts = events.iter().map(|event| event["text"].as_str().unwrap());
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn an_upgrade_with_the_contents_that_serve_is_unchanged_whatever_fails_meanwhile() {
    let Some(cluster) = Cluster::new("unchanged", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    let guarded = through_the_service(&cluster);
    for revision in [2, 3] {
        cluster.upgrade(&[&format!(r#"setting="{revision}""#)]);
        assert_eq!(guarded.outcome(revision)["outcome"], "passed");
    }
    // The pipeline upgrades all charts at each commit, and the database is away meanwhile.
    cluster.upgrade(&[r#"setting="3""#]);
    outage(&cluster, &guarded);
    let ended = guarded.outcome(4);
    assert_eq!(
        ended["outcome"],
        "unchanged",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 deployed"
    );
    cluster.only_events();
    let (code, said) = leadsman(&guarded, &["gate", "mykadoo", "4"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("Revision 4: unchanged. It has the contents of revision 3, which serves"),
        "{said}"
    );
    let told = cluster.told();
    assert!(told.contains(&"ReleaseUnchanged".to_owned()), "{told:?}");
    assert!(!told.contains(&"ReleaseRegressed".to_owned()), "{told:?}");
    let metrics = guarded.leadsman.get("/metrics").body;
    let counted = metrics.lines().find(|line| {
        line.starts_with("leadsman_rollouts_total{") && line.contains("\"unchanged\"")
    });
    assert!(
        counted.is_some_and(|line| line.ends_with(" 1")),
        "{counted:?}"
    );

    // A person who rolls back to the same contents changes nothing either.
    cluster.helm(&["rollback", "mykadoo", "3"]);
    assert_eq!(guarded.outcome(5)["outcome"], "unchanged");

    // Its contents are still known to be good, under its new number.
    cluster.upgrade(&[DEAD, r#"setting="3""#]);
    let ended = guarded.outcome(6);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert_eq!(ended["target"], 5, "{ended:#}");
}

#[test]
fn the_same_contents_that_bring_pods_of_their_own_are_judged() {
    let Some(cluster) = Cluster::new("byhand", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::with(&cluster, &short(Helm::Three));
    // Somebody has changed the image by hand, and Helm puts it right.
    let path = format!(
        "/apis/apps/v1/namespaces/{}/deployments/mykadoo-api",
        cluster.namespace
    );
    let by_hand = serde_json::json!({"spec": {"template": {"spec": {"containers": [
        {"name": "api", "image": "mykadoo-api:by-hand"}
    ]}}}});
    cluster.send(
        "PATCH",
        &path,
        "application/strategic-merge-patch+json",
        &by_hand,
    );
    guarded.until("its rollout is complete", |_| {
        let status = cluster.get(&path)["status"].clone();
        status["updatedReplicas"] == 3
            && status["replicas"] == 3
            && status["availableReplicas"] == 3
    });
    results(&guarded, 3, 0);
    cluster.upgrade(&[]);
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
}

/// Whoever upgrades again with the same bad contents wins no time by it.
#[test]
fn the_same_contents_again_go_on_with_the_analysis_that_runs() {
    let Some(cluster) = Cluster::new("again", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    // A slow start, so that the second upgrade comes before the verdict.
    let slow = r#"api.sim.start="15s""#;
    cluster.upgrade(&[DEAD, slow]);
    guarded.until("revision 2 is judged", |release| {
        release["revision"] == 2 && release["analysis"]["elapsed_s"].as_f64() > Some(0.0)
    });
    cluster.upgrade(&[DEAD, slow]);
    let (second, third) = (guarded.outcome(2), guarded.outcome(3));
    assert_eq!(second["outcome"], "superseded", "{second:#}");
    assert_eq!(
        third["outcome"],
        "rolled_back",
        "{third:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(third["appeared_at"], second["appeared_at"], "{third:#}");
    assert_eq!(
        (&third["target"], &third["created_revision"]),
        (&1.into(), &4.into()),
        "{third:#}"
    );
}

#[test]
fn a_rollout_that_never_completes_is_neither_kept_nor_gone_back_to() {
    let Some(cluster) = Cluster::new("incomplete", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::with(&cluster, &short(Helm::Four));
    cluster.upgrade(&[NEVER_READY]);
    let ended = guarded.outcome(2);
    assert_eq!(
        (&ended["outcome"], &ended["reason"]),
        (&"inconclusive".into(), &"not_rolled_out".into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let (code, said) = leadsman(&guarded, &["gate", "mykadoo", "2"]);
    assert_eq!(code, Some(12), "{said}");
    for part in [
        "The rollout is not complete",
        "Deployment mykadoo-api: 0 of 3 pods",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    // What is deployed next is judged against what really serves, and goes back to that.
    cluster.upgrade(&[DEAD, r#"api.image="mykadoo-api:3""#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&1.into(), &4.into()),
        "{ended:#}"
    );
}

/// What becomes Ready after the end of its analysis is not known to be good, and serves all the same.
#[test]
fn a_rollout_that_completes_late_is_told_apart_and_is_what_served() {
    let Some(cluster) = Cluster::new("late", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::with(
        &cluster,
        &Settings {
            watch: 30,
            ..Settings::by(Helm::Four)
        },
    );
    cluster.upgrade(&[r#"api={"image":"mykadoo-api:2","sim":{"start":"25s"}}"#]);
    assert_eq!(guarded.outcome(2)["reason"], "not_rolled_out");
    guarded.until("the rollout of revision 2 is complete", |_| {
        guarded.outcome(2)["reason"] == "rolled_out_late"
    });
    let (code, said) = leadsman(&guarded, &["gate", "mykadoo", "2"]);
    assert_eq!(code, Some(12), "{said}");
    let says = "so the revision serves and is not known to be good";
    assert!(said.contains(says), "{said}");
    cluster.upgrade(&[DEAD, r#"api.image="mykadoo-api:3""#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        (&ended["outcome"], &ended["target"]),
        (&"rolled_back".into(), &2.into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}

/// A part that has never been complete says nothing about a revision that leaves it as it was.
#[test]
fn a_part_that_was_never_complete_does_not_keep_good_revisions_from_being_kept() {
    let Some(cluster) = Cluster::new("neverwas", Helm::Four) else {
        return;
    };
    let broken = r#"statefulset={"enabled":true,"replicas":1,"sim":{"image-pull":"fail"}}"#;
    cluster.install(&[]);
    cluster.upgrade(&[broken]);
    let guarded = Guarded::with(&cluster, &short(Helm::Four));
    cluster.upgrade(&[broken, r#"api.image="mykadoo-api:3""#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "passed",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    // Its rollout counts as complete as well, also that of the way back.
    assert!(ended["complete_at"].is_f64(), "{ended:#}");
    cluster.upgrade(&[broken, DEAD]);
    let ended = guarded.outcome(4);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
}

/// The objects of a kind as a backup brings them back.
fn saved(
    cluster: &Cluster,
    group: &str,
    plural: &str,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Value> {
    let mut objects = cluster.list(group, plural);
    objects.retain(|object| wanted(object["metadata"]["name"].as_str().unwrap()));
    for object in &mut objects {
        object.as_object_mut().unwrap().remove("status");
        let metadata = object["metadata"].as_object_mut().unwrap();
        for own in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
            "generation",
            "ownerReferences",
        ] {
            metadata.remove(own);
        }
    }
    objects
}

fn restore(cluster: &Cluster, group: &str, plural: &str, objects: &[Value]) {
    let path = format!("{group}/namespaces/{}/{plural}", cluster.namespace);
    for object in objects {
        cluster.send("POST", &path, "application/json", object);
    }
}

/// A backup brings the records back in this order, and long after them what they speak of.
#[track_caller]
fn comes_back(name: &str, helm: Helm, order: [usize; 3]) {
    const KINDS: [(&str, &str); 4] = [
        ("/api/v1", "services"),
        ("/api/v1", "configmaps"),
        ("/api/v1", "secrets"),
        ("/apis/apps/v1", "deployments"),
    ];
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[]);
    for setting in ["2", "3"] {
        cluster.upgrade(&[&format!(r#"setting="{setting}""#)]);
    }
    let guarded = Guarded::with(&cluster, &short(helm));
    let is_record = |name: &str| name.starts_with("sh.helm.release");
    let records = saved(&cluster, "/api/v1", "secrets", is_record);
    assert_eq!(records.len(), 3);
    let rest = KINDS.map(|(group, plural)| {
        let wanted = |name: &str| name.starts_with("mykadoo-");
        (group, plural, saved(&cluster, group, plural, wanted))
    });
    cluster.helm(&["uninstall", "mykadoo"]);
    guarded.until("it is absent", |release| {
        release["phase"] == "not_installed"
    });

    for at in order {
        restore(&cluster, "/api/v1", "secrets", &records[at..=at]);
    }
    guarded.until("its records are seen", |release| release["revision"] == 3);
    // Then all but the API: its probes fail for longer than it takes to reject a revision.
    let is_api = |plural: &str, object: &Value| {
        plural == "deployments" && object["metadata"]["name"] == "mykadoo-api"
    };
    let restore_those = |api: bool| {
        for (group, plural, objects) in &rest {
            let mut objects = objects.clone();
            objects.retain(|object| is_api(plural, object) == api);
            restore(&cluster, group, plural, &objects);
        }
    };
    restore_those(false);
    results(&guarded, 0, 25);
    assert_eq!(
        guarded.release()["phase"],
        "idle",
        "{}",
        guarded.leadsman.log()
    );
    restore_those(true);
    let release = guarded.until("the start is over", |release| {
        texts(release).contains("The start is over")
    });
    assert!(
        release["history"]
            .as_array()
            .unwrap()
            .iter()
            .all(|it| it["outcome"].is_null()),
        "{release:#}"
    );
    cluster.only_events();
    let told = cluster.told();
    assert!(!told.contains(&"ReleaseRegressed".to_owned()), "{told:?}");

    // From here on it is guarded as ever, by what it has measured since.
    guarded.until("there is a baseline", |release| {
        let known = release["probe_history"].as_array().unwrap();
        known
            .iter()
            .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
    });
    let known = guarded.release()["probe_history"].clone();
    let failed = known.as_array().unwrap().iter();
    let failed: u64 = failed
        .map(|probe| probe["baseline_failed"].as_u64().unwrap())
        .sum();
    assert_eq!(failed, 0, "{known:#}");
    cluster.upgrade(&[DEAD, r#"setting="3""#]);
    let ended = guarded.outcome(4);
    assert_eq!(
        (&ended["outcome"], &ended["target"]),
        (&"rolled_back".into(), &3.into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}

#[test]
fn a_release_that_a_backup_brings_back_is_a_start() {
    comes_back("restored", Helm::Four, [0, 1, 2]);
}

#[test]
fn a_release_whose_newest_record_is_brought_back_first_is_a_start() {
    comes_back("newestfirst", Helm::Three, [2, 0, 1]);
}
