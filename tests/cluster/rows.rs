//! What real clusters, servers and people do around a rollout (rows J of the field cases), one after another.

use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings};
use crate::program::until;
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;
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
    let ended = guarded.outcome(revision);
    let (failed, asked) = users.counts();
    eprintln!(
        "{}: revision {revision} {}: {failed} of {asked} requests of users failed",
        cluster.namespace, ended["outcome"]
    );
    assert_eq!(
        ended["outcome"],
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
    ends(&cluster, &guarded, &users, 2, "rolled_back");
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
    ends(&cluster, &guarded, &users, 2, "rolled_back");
}

const RELEASE: &str = "/apis/apps/v1/namespaces";

/// J8: at night all is scaled to zero, and in the morning comes a revision that fails in part.
#[test]
fn a_night_at_zero_teaches_nothing_and_the_morning_is_judged() {
    // Helm 4 does not take over a number of pods that somebody else has set.
    let Some(cluster) = Cluster::new("night", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    // At first nothing is known of how the app warms up, and less than half of the answers fail.
    let settings = Settings {
        watch: 150,
        ..Settings::by(Helm::Three)
    };
    let guarded = Guarded::with(&cluster, &settings);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let scale = |replicas: u32| {
        for name in ["api", "web"] {
            let path = format!("{RELEASE}/{}/deployments/mykadoo-{name}", cluster.namespace);
            let change = json!({"spec": {"replicas": replicas}});
            cluster.send("PATCH", &path, "application/merge-patch+json", &change);
        }
    };
    let failures = |release: &Value| -> u64 {
        let known = release["probe_history"].as_array().unwrap();
        known
            .iter()
            .map(|it| it["baseline_failed"].as_u64().unwrap())
            .sum()
    };
    let before = failures(&guarded.release());
    scale(0);
    let began = std::time::Instant::now();
    guarded.until("the night is over", |_| began.elapsed().as_secs() > 45);
    let after = failures(&guarded.release());
    // Between the scaling and our knowing of it a result or two may fail.
    assert!(after <= before + 8, "{before} {after}");
    let flaky = r#"api.sim={"answers":{"/api/health":"flap:0.3","/api/health/db":"flap:0.3","/api/health/redis":"flap:0.3"}}"#;
    cluster.upgrade(&[flaky]);
    ends(&cluster, &guarded, &users, 2, "rolled_back");
}

/// J8: somebody paused one Deployment; it silences the probes that ask it, and no other.
#[test]
fn one_paused_deployment_does_not_hold_the_others() {
    let Some(cluster) = Cluster::new("onepaused", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let path = format!("{RELEASE}/{}/deployments/mykadoo-web", cluster.namespace);
    let change = json!({"spec": {"paused": true}});
    cluster.send("PATCH", &path, "application/merge-patch+json", &change);
    cluster.upgrade(&[DEAD]);
    ends(&cluster, &guarded, &users, 2, "rolled_back");
}

/// J9: a part whose image never came does not keep a good rollback from being one.
#[test]
fn a_part_that_was_never_complete_fails_no_rollback() {
    let Some(cluster) = Cluster::new("part", Helm::Four) else {
        return;
    };
    let queue = r#"statefulset={"enabled":true,"sim":{"image-pull":"fail"}}"#;
    let chart = crate::rig::CHART;
    cluster.helm(&[
        "install",
        "mykadoo",
        chart,
        "--create-namespace",
        "--set-json",
        queue,
    ]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[DEAD, queue]);
    let ended = ends(&cluster, &guarded, &users, 2, "rolled_back");
    assert_eq!(ended["created_revision"], 3, "{ended:#}");
}

/// J4: the app lets each address have so many requests a minute, and the analysis asks more often.
#[test]
fn a_rate_limit_is_no_evidence_and_a_rollback_is_verified_under_it() {
    let Some(cluster) = Cluster::new("limited", Helm::Four) else {
        return;
    };
    let limited = r#"{"answers":{"/api/health":"limit:40","/api/health/db":"limit:40","/api/health/redis":"limit:40"}}"#;
    let limited = format!("api.sim={limited}");
    cluster.install(&[&limited]);
    // At the probes' own pace it takes longer until enough results have met a new pod.
    let settings = Settings {
        watch: 180,
        ..Settings::by(Helm::Four)
    };
    let configured = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        text.replace("interval = \"1s\"\n", "interval = \"5s\"\n")
            .replace(
                "[release.analysis]\n",
                "[release.analysis]\ninterval = \"1s\"\n",
            )
    };
    let kubeconfig = cluster.least(&configured(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &configured(&kubeconfig));
    cluster.upgrade(&[&limited, r#"api.image="mykadoo-api:2""#]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "passed",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let said = "A rate limit answers the probes";
    assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
    cluster.upgrade(&[DEAD, r#"api.image="mykadoo-api:3""#]);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}

/// J15: each build has the same tag, so a rollback would start the bad one again.
#[test]
fn a_tag_that_means_another_image_by_now_cannot_be_gone_back_to() {
    let Some(cluster) = Cluster::new("tag", Helm::Four) else {
        return;
    };
    cluster.install(&[r#"api={"image":"app:latest","sim":{"image-id":"app@sha256:aaaa"}}"#]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let bad = r#"api={"image":"app:latest","sim":{"image-id":"app@sha256:bbbb","answers":{"/api/health":"status:503","/api/health/db":"status:503","/api/health/redis":"status:503"}}}"#;
    cluster.upgrade(&[bad]);
    let ended = ends(&cluster, &guarded, &users, 2, "refused");
    let named = "the image app:latest of Deployment mykadoo-api is not what it was";
    says(&ended, &[named, "app@sha256:aaaa", "app@sha256:bbbb"]);
    cluster.only_events();
}

/// Has a record say that another program wrote it: whoever applies its data takes the fields over.
fn written_by(cluster: &Cluster, revision: u32, program: &str) {
    let path = format!(
        "/api/v1/namespaces/{}/secrets/sh.helm.release.v1.mykadoo.v{revision}",
        cluster.namespace
    );
    let stored = cluster.get(&path);
    let applied = json!({
        "apiVersion": "v1", "kind": "Secret", "data": stored["data"], "metadata": {"name": stored["metadata"]["name"]},
    });
    let path = format!("{path}?fieldManager={program}&force=true");
    cluster.send("PATCH", &path, "application/apply-patch+yaml", &applied);
}

/// J19: two good revisions that came too fast to be judged are gone back over; a tool that brings the bad one back is not
/// fought.
#[test]
fn what_is_gone_back_over_is_said_and_an_unknown_keeper_is_not_fought() {
    let Some(cluster) = Cluster::new("keeper", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings {
        rollback: "max_per_day = 9\n",
        ..Settings::by(Helm::Four)
    };
    let guarded = Guarded::with(&cluster, &settings);
    let users = Users::of(&cluster.service("mykadoo-api"));
    for revision in [2, 3] {
        let image = format!(r#"api.image="mykadoo-api:{revision}""#);
        cluster.upgrade(&[&image]);
        guarded.until("it is judged", |release| release["revision"] == revision);
    }
    cluster.upgrade(&[DEAD]);
    ends(&cluster, &guarded, &users, 4, "rolled_back");
    let said =
        "The rollback goes back over revisions 2 to 3, none of which was analyzed to its end";
    assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
    // A person who tries once more is no keeper, and whoever does it a third time is.
    cluster.upgrade(&[DEAD]);
    ends(&cluster, &guarded, &users, 6, "rolled_back");
    cluster.upgrade(&[DEAD]);
    let ended = ends(&cluster, &guarded, &users, 8, "refused");
    let told = [
        "revision 8 has the contents of revision 6",
        "something brings",
        "allow_gitops",
    ];
    says(&ended, &told);
}

/// J19: a tool with Helm built in is known by the name that it gives the API server, and is not fought at all.
#[test]
fn a_tool_that_brings_the_bad_revision_back_is_not_fought() {
    let Some(cluster) = Cluster::new("tool", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[DEAD]);
    ends(&cluster, &guarded, &users, 2, "rolled_back");
    cluster.upgrade(&[DEAD]);
    written_by(&cluster, 4, "fleetagent");
    let ended = ends(&cluster, &guarded, &users, 4, "refused");
    let told = [
        "revision 4 has the contents of revision 2",
        "\"fleetagent\"",
        "allow_gitops",
    ];
    says(&ended, &told);
}

/// J20: a mesh puts its sidecar before the app's container. It is not the app's port that it opens.
#[test]
fn pods_are_asked_at_the_apps_port_and_not_at_that_of_an_injected_container() {
    let Some(cluster) = Cluster::new("mesh", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let deployments = format!("{RELEASE}/{}/deployments", cluster.namespace);
    for name in ["api", "web"] {
        let sidecar = json!({"name": "istio-proxy", "image": "proxy:1", "ports": [{"name": "http-envoy-prom", "containerPort": 15090}]});
        let change =
            json!([{"op": "add", "path": "/spec/template/spec/containers/0", "value": sidecar}]);
        let path = format!("{deployments}/mykadoo-{name}");
        cluster.send("PATCH", &path, "application/json-patch+json", &change);
    }
    let settings = Settings::by(Helm::Four);
    let configured = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        let probe = format!(
            "[[release.probe]]\nname = \"{}\"\nurl = \"{}/\"\npods = \"mykadoo-web:9999\"\n",
            crate::asked::PROBE,
            cluster.service("mykadoo-web")
        );
        text + &probe
    };
    let kubeconfig = cluster.least(&configured(&cluster.kubeconfig()));
    // It waits until pods answer directly.
    let guarded = Guarded::allowed(&cluster, &configured(&kubeconfig));
    let said =
        "Pods are not asked directly by the probes counted: no container of the chart has the port";
    guarded.until("it is said which pods are not asked", |release| {
        release["remarks"].to_string().contains(said)
    });
    let metrics = guarded.leadsman.get("/metrics").body;
    for (reason, count) in [("no_port", 1), ("no_answer", 0)] {
        let found = metrics.lines().any(|line| {
            line.starts_with("leadsman_pods_not_probed{")
                && line.contains(&format!("reason=\"{reason}\""))
                && line.ends_with(&format!("}} {count}"))
        });
        assert!(found, "{reason}: {metrics}");
    }
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[DEAD]);
    ends(&cluster, &guarded, &users, 2, "rolled_back");
}

/// J20: blue and green have the same port; only the one that the Service selected is the control.
#[test]
fn only_the_colour_that_the_service_selected_is_the_control() {
    let Some(cluster) = Cluster::new("colours", Helm::Four) else {
        return;
    };
    let chart = |live: &str, green: &str| {
        let paths = ["/api/health/played"];
        let colour = |name: &str, answer: &str| {
            let answers: serde_json::Map<String, Value> = paths
                .iter()
                .map(|path| ((*path).to_owned(), json!(answer)))
                .collect();
            let container = json!({
                "name": "play", "image": "play:1", "ports": [{"name": "play", "containerPort": 8080}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "play"}, "periodSeconds": 1},
            });
            let labels = json!({"app": "play", "colour": name});
            let sim = json!({"sim.leadsman.io/answers": Value::from(answers).to_string()});
            let template = json!({
                "metadata": {"labels": labels, "annotations": sim}, "spec": {"containers": [container]},
            });
            let spec =
                json!({"replicas": 2, "selector": {"matchLabels": labels}, "template": template});
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec})
        };
        let ports = json!([{"name": "http", "port": 80, "targetPort": "play"}]);
        let selector = json!({"app": "play", "colour": live});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "play"}, "spec": {"selector": selector, "ports": ports}});
        format!(
            "extra={}",
            json!([colour("blue", "ok"), colour("green", green), service])
        )
    };
    // The other colour is an old version that fails.
    cluster.install(&[&chart("blue", "status:500")]);
    let settings = Settings::by(Helm::Four);
    let probed = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        let probes = text.find("[[release.probe]]").unwrap();
        let probe = format!(
            "[[release.probe]]\nname = \"played\"\nurl = \"{}/api/health/played\"\npods = \":play\"\n",
            cluster.service("play")
        );
        text[..probes].to_owned() + &probe
    };
    let kubeconfig = cluster.least(&probed(&cluster.kubeconfig()));
    // It waits until pods answer directly.
    let guarded = Guarded::allowed(&cluster, &probed(&kubeconfig));
    let users = Users::asking(&cluster.service("play"), "/api/health/played");
    cluster.upgrade(&[&chart("green", "status:503")]);
    ends(&cluster, &guarded, &users, 2, "rolled_back");
}

/// J17: only a ConfigMap changes, and the kubelet brings it to the pods long after helm is done.
#[test]
fn pods_get_what_they_mount_long_after_a_rollback() {
    /// When a kubelet brings the good ones to them.
    const LATER: std::time::Duration = std::time::Duration::from_secs(70);
    let Some(cluster) = Cluster::new("mounted", Helm::Four) else {
        return;
    };
    let chart = |answer: &str| {
        let mount = json!({"name": "settings", "mountPath": "/settings"});
        let container = json!({
            "name": "play", "image": "play:1", "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
            "volumeMounts": [mount],
        });
        let volume = json!({"name": "settings", "configMap": {"name": "play"}});
        let template = json!({
            "metadata": {"labels": {"app": "play"}},
            "spec": {"containers": [container], "volumes": [volume]},
        });
        let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "play"}}, "template": template});
        let workload = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "play"}, "spec": spec});
        let settings = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "play"}, "data": {"answer": answer}});
        let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "play"}, "spec": {"selector": {"app": "play"}, "ports": ports}});
        format!("extra={}", json!([workload, settings, service]))
    };
    cluster.install(&[&chart("ok")]);
    let settings = Settings {
        watch: 180,
        ..Settings::by(Helm::Four)
    };
    let probed = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        let probe = format!(
            "[[release.probe]]\nname = \"played\"\nurl = \"{}/api/health/played\"\npods = \"play\"\n",
            cluster.service("play")
        );
        text + &probe
    };
    let kubeconfig = cluster.least(&probed(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &probed(&kubeconfig));
    let users = Users::asking(&cluster.service("play"), "/api/health/played");
    let path = format!("/api/v1/namespaces/{}/configmaps/play", cluster.namespace);
    let answer = || cluster.get(&path)["data"]["answer"].clone();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The kubelet.
        scope.spawn(|| {
            let mut brought = answer();
            let mut since = std::time::Instant::now();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let wanted = answer();
                if wanted == brought || wanted.is_null() {
                    since = std::time::Instant::now();
                } else if wanted != "ok" || since.elapsed() >= LATER {
                    let answer = wanted.as_str().unwrap();
                    cluster.depend(
                        "/api/health/played",
                        if answer == "ok" { "" } else { answer },
                    );
                    brought = wanted;
                }
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
        });
        cluster.upgrade(&[&chart("status:503")]);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ends(&cluster, &guarded, &users, 2, "rolled_back")
        }));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        ended.unwrap();
    });
    for said in [
        "Revision 2 changes what Deployment play mounts, and not its template",
        "Its pods still have the old settings: the rollback changes what Deployment play mounts",
    ] {
        assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
    }
}

/// J18: at noon an autoscaler that is in no chart has made four times the chart's pods.
fn noon(name: &str, helm: Helm) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&["api.replicas=2"]);
    let place = format!("namespaces/{}", cluster.namespace);
    let aim = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "mykadoo-api"});
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "noon"},
        "spec": {"scaleTargetRef": aim, "minReplicas": 1, "maxReplicas": 50},
    });
    let scalers = format!("/apis/autoscaling/v2/{place}/horizontalpodautoscalers");
    cluster.send("POST", &scalers, "application/json", &scaler);
    let deployment = format!("/apis/apps/v1/{place}/deployments/mykadoo-api");
    let scale = || {
        let change = json!({"spec": {"replicas": 8}});
        let path = format!("{deployment}/scale");
        cluster.send("PATCH", &path, "application/merge-patch+json", &change);
    };
    scale();
    let guarded = Guarded::start(&cluster);
    let said = "An autoscaler, noon, scales Deployment mykadoo-api, of which the chart says 2 pods";
    let told = guarded.until("the autoscaler is known", |release| {
        release["remarks"].to_string().contains(said)
    });
    assert_eq!(told["preflight_failure"], Value::Null);
    let users = Users::of(&cluster.service("mykadoo-api"));
    let mut upgrade = vec!["upgrade", "mykadoo", crate::rig::CHART];
    upgrade.extend(["--set-json", DEAD, "--set-json", "api.replicas=2"]);
    if helm == Helm::Four {
        upgrade.push("--force-conflicts");
    }
    cluster.helm(&upgrade);
    // The upgrade has set its own number, and the autoscaler sees what is asked of the app.
    scale();
    ends(&cluster, &guarded, &users, 2, "rolled_back");
    let live = cluster.get(&deployment);
    assert_eq!(live["spec"]["replicas"], 8, "{live:#}");
    let said = "The rollback leaves Deployment mykadoo-api at 8 pods, as its autoscaler noon has set them, where the chart says 2";
    assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
}

#[test]
fn pods_of_an_autoscaler_outlive_a_rollback_of_helm_4() {
    noon("noon4", Helm::Four);
}

#[test]
fn pods_of_an_autoscaler_outlive_a_rollback_of_helm_3() {
    noon("noon3", Helm::Three);
}

/// J10: an Argo `Rollout` makes the pods, by a controller of its own that takes its time.
#[test]
fn pods_that_a_resource_of_another_controller_makes_are_found_by_their_service() {
    let Some(cluster) = Cluster::new("argoplay", Helm::Four) else {
        return;
    };
    define(&cluster, "argoproj.io", "Rollout");
    let chart = |answer: &str| {
        let paths = ["/api/health", "/api/health/db", "/api/health/redis"];
        let answers: serde_json::Map<String, Value> = paths
            .iter()
            .map(|path| ((*path).to_owned(), json!(answer)))
            .collect();
        let sim = json!({"sim.leadsman.io/answers": Value::from(answers).to_string()});
        let container = json!({
            "name": "play", "image": "play:1", "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1},
        });
        let template = json!({
            "metadata": {"labels": {"app": "play"}, "annotations": sim},
            "spec": {"containers": [container]},
        });
        let rollout = json!({"apiVersion": "argoproj.io/v1", "kind": "Rollout", "metadata": {"name": "play"}, "spec": {"template": template}});
        let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "play"}, "spec": {"selector": {"app": "play"}, "ports": ports}});
        format!("extra={}", json!([rollout, service]))
    };
    cluster.install(&[&chart("ok")]);
    let rollout = format!(
        "/apis/argoproj.io/v1/namespaces/{}/rollouts/play",
        cluster.namespace
    );
    let deployments = format!("{RELEASE}/{}/deployments", cluster.namespace);
    let template = || cluster.get(&rollout)["spec"]["template"].clone();
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "play"}}, "template": template()});
    let made = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "played"}, "spec": spec});
    cluster.send("POST", &deployments, "application/json", &made);
    let settings = Settings::by(Helm::Four);
    let probed = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        let probe = format!(
            "[[release.probe]]\nname = \"played\"\nurl = \"{}/api/health\"\npods = \"played\"\n",
            cluster.service("play")
        );
        text + &probe
    };
    let kubeconfig = cluster.least(&probed(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &probed(&kubeconfig));
    let said = "Service play selects pods of Deployment played, which the chart does not have";
    assert!(guarded.leadsman.said(said), "{}", guarded.leadsman.log());
    let users = Users::of(&cluster.service("play"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        // The controller: it sees what is wanted, and makes it some time later.
        scope.spawn(|| {
            let mut made = template();
            let mut seen = std::time::Instant::now();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let wanted = template();
                if wanted == made || wanted.is_null() {
                    seen = std::time::Instant::now();
                } else if seen.elapsed().as_secs() >= 20 {
                    let path = format!("{deployments}/played");
                    let change = json!({"spec": {"template": wanted}});
                    cluster.send("PATCH", &path, "application/merge-patch+json", &change);
                    made = wanted;
                }
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
        });
        cluster.upgrade(&[&chart("status:503")]);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| guarded.outcome(2)));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let ended = ended.unwrap();
        let (failed, asked) = users.counts();
        eprintln!("argoplay: {failed} of {asked} requests of users failed");
        assert_eq!(
            ended["outcome"],
            "rolled_back",
            "{ended:#}\n{}",
            guarded.leadsman.log()
        );
    });
}
