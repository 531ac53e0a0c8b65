//! What watching costs the cluster, and what the clocks of a rollback say.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::guarded::Guarded;
use crate::program::Leadsman;
use crate::rig::{Cluster, Helm, audited, is_tried};
use crate::rolled_back::steps;
use crate::users::Users;

/// Some minutely looks of several releases, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(480);

/// J25: the detection of a crash loop counts from the moment the revision appeared, and from the first sign of trouble.
#[test]
fn the_clock_of_a_crash_loop_counts_from_the_appearance_and_from_the_first_restart() {
    let Some(cluster) = Cluster::new("clock", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let users = Users::of(&cluster.service("mykadoo-api"));
    cluster.upgrade(&[r#"api.sim={"crash-after":"1s"}"#]);
    let ended = guarded.outcome(2);
    let (failed, asked) = users.counts();
    println!(
        "clock: {failed} of {asked} requests of users failed; {}",
        steps(&ended)
    );
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );

    let step = |name: &str| -> Value {
        let mut all = ended["steps"].as_array().unwrap().iter();
        all.find(|step| step["step"] == name).unwrap().clone()
    };
    let took = |name: &str| step(name)["took_s"].as_f64().unwrap();
    let verdict = guarded.release()["verdict"]["at"].as_f64().unwrap();
    let appeared = ended["appeared_at"].as_f64().unwrap();
    assert!(
        (took("detect") - (verdict - appeared)).abs() < 0.5,
        "{ended:#}"
    );
    // Restarts are seen before anything fails through the Service, and the pods were there before they restarted.
    assert!(took("detect_from_trouble") > 0.0, "{ended:#}");
    assert!(took("detect_from_trouble") < took("detect"), "{ended:#}");
    let parts = ["initiate", "complete", "verify"].map(took);
    let total = took("detect") + parts.iter().sum::<f64>();
    assert!((took("total") - total).abs() < 0.5, "{ended:#}");
    let counts = |name: &str| step(name)["counts"].as_str().unwrap().to_owned();
    assert!(counts("detect").contains("the moment the revision appeared"));
    assert!(counts("detect_from_trouble").contains("the first sign of trouble"));

    let metrics = guarded.leadsman.get("/metrics").body;
    for name in ["detect", "detect_from_trouble"] {
        let series = format!("release=\"mykadoo\",step=\"{name}\"}}");
        assert!(metrics.contains(&series), "{series} is not in:\n{metrics}");
    }
    let help = metrics
        .lines()
        .find(|line| line.starts_with("# HELP leadsman_rollout_step_seconds "));
    let help = help.unwrap();
    for part in [
        "from the moment the revision appeared",
        "from the first sign of trouble",
    ] {
        assert!(help.contains(part), "{help}");
    }
}

/// J23: what the minutely looks of one release cost.
#[test]
fn the_minutely_looks_of_one_release_ask_for_no_rights_again() {
    minutely_looks(1);
}

/// J23: and those of several in one namespace.
#[test]
fn the_minutely_looks_of_five_releases_ask_for_no_rights_again() {
    minutely_looks(5);
}

fn minutely_looks(releases: usize) {
    let Some(cluster) = Cluster::new(&format!("looks-{releases}"), Helm::Four) else {
        return;
    };
    let namespace = &cluster.namespace;
    let named = json!({"metadata": {"name": namespace}});
    cluster.send("POST", "/api/v1/namespaces", "application/json", &named);
    for release in 0..releases {
        store(&cluster, release);
    }
    let runs = cluster.folder().join(format!("{namespace}.runs"));
    let script = format!("echo \"$1\" >>{}\nexec \"$HELM\" \"$@\"", runs.display());
    let helm = cluster.played_helm(&script);
    let configured = |kubeconfig: &std::path::Path| {
        let mut config = format!(
            "[kubernetes]\nkubeconfig = {:?}\nhelm = {:?}\nscratch = \"scratch\"\n",
            kubeconfig.display().to_string(),
            helm.display().to_string()
        );
        for release in 0..releases {
            config += &format!(
                "[[release]]\nname = \"app-{release}\"\nnamespace = {namespace:?}\nmode = \"enforce\"\nbase_url = \"http://127.0.0.1:9\"\ninterval = \"60s\"\n[[release.probe]]\nname = \"api\"\npath = \"/\"\n"
            );
        }
        config
    };
    let kubeconfig = cluster.least(&configured(&cluster.kubeconfig()));
    let leadsman = Leadsman::run(&configured(&kubeconfig), &[]);

    let account = cluster.account();
    // Each look tries at least one request of each release; its only object is tried once in a look.
    let looks = |release: usize| {
        let name = format!("app-{release}");
        let events = audited(cluster.folder(), &account).into_iter();
        let tried = events.filter(|event| {
            is_tried(event)
                && event["objectRef"]["resource"] == "configmaps"
                && event["objectRef"]["name"] == name.as_str()
        });
        tried.count()
    };
    let until_looks = |count: usize| {
        let deadline = Instant::now() + PATIENCE;
        while (0..releases).any(|release| looks(release) < count) {
            let now: Vec<usize> = (0..releases).map(&looks).collect();
            assert!(
                Instant::now() < deadline,
                "{now:?} looks\n{}",
                leadsman.log()
            );
            std::thread::sleep(Duration::from_millis(500));
        }
        Instant::now()
    };
    let asked = || {
        let events = audited(cluster.folder(), &account);
        let of = |resource: &str| {
            let mut all = events.iter().collect::<Vec<_>>();
            all.retain(|event| event["objectRef"]["resource"] == resource);
            all.len()
        };
        let text = std::fs::read_to_string(&runs).unwrap_or_default();
        let helms = text.lines().filter(|line| *line == "version").count();
        [
            of("selfsubjectrulesreviews"),
            of("selfsubjectaccessreviews"),
            helms,
        ]
    };
    // What the first look asks for about evidence it asks for at its end.
    let began = until_looks(2);
    let [rules, single, helms] = asked();
    println!(
        "{releases} releases: the first looks: {rules} reviews of rules, {single} of single rights, {helms} helms"
    );
    let minutes = until_looks(4).duration_since(began).as_secs_f64() / 60.0;
    let later = asked();
    println!(
        "{releases} releases: {minutes:.1} minutes of looks later: {} reviews of rules, {} of single rights, {} helms more",
        later[0] - rules,
        later[1] - single,
        later[2] - helms
    );
    let metrics = leadsman.get("/metrics").body;
    let is_ready = |line: &&str| {
        line.starts_with("leadsman_rollback_ready{")
            && line.contains("reason=\"\"")
            && line.ends_with(" 1")
    };
    assert_eq!(
        metrics.lines().filter(is_ready).count(),
        releases,
        "{metrics}\n{}",
        leadsman.log()
    );
    assert_eq!(later, [rules, single, helms]);
    assert_eq!(helms, 1);
}

/// A release of one ConfigMap.
fn store(cluster: &Cluster, release: usize) {
    let (name, namespace) = (format!("app-{release}"), &cluster.namespace);
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"},
        "metadata": {
            "name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"},
            "annotations": {"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace},
        },
    });
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    cluster.send("POST", &path, "application/json", &map);
    let manifest = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\ndata:\n  a: \"1\"\n"
    );
    let time = "2026-01-01T00:00:00Z";
    let record = json!({
        "name": name, "namespace": namespace, "version": 1,
        "info": {"status": "deployed", "description": "Install complete", "first_deployed": time, "last_deployed": time, "deleted": ""},
        "chart": {"metadata": {"name": "app", "version": "1.0.0", "apiVersion": "v2"}}, "config": {}, "manifest": manifest,
    });
    let payload = STANDARD.encode(STANDARD.encode(record.to_string()));
    let secret = json!({
        "metadata": {"name": format!("sh.helm.release.v1.{name}.v1"),
            "labels": {"owner": "helm", "name": name, "status": "deployed", "version": "1"}},
        "type": "helm.sh/release.v1", "data": {"release": payload},
    });
    let path = format!("/api/v1/namespaces/{namespace}/secrets");
    cluster.send("POST", &path, "application/json", &secret);
}
