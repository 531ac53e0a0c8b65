//! Records that helm cannot read with the memory that it may have.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::guarded::{Guarded, Settings, configuration};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

const MIB: usize = 1024 * 1024;

/// A payload that unpacks to 500 MiB. Go reads on where one member of gzip ends and another begins.
fn bomb() -> String {
    let member = gzipped(&vec![b' '; 20 * MIB]);
    STANDARD.encode(member.repeat(25))
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// A helm that notes what it is asked for.
fn noting(cluster: &Cluster) -> (PathBuf, PathBuf) {
    let notes = cluster
        .folder()
        .join(format!("{}.asked", cluster.namespace));
    let script = format!("echo \"$*\" >>{}\nexec \"$HELM\" \"$@\"", notes.display());
    (cluster.played_helm(&script), notes)
}

fn rollbacks(notes: &Path) -> usize {
    let text = std::fs::read_to_string(notes).unwrap();
    text.lines()
        .filter(|line| line.contains("rollback "))
        .count()
}

/// The third revision is bad and the second good, and the record of the first one is too large.
#[track_caller]
fn refused(name: &str, driver: &'static str, plant: impl FnOnce(&Cluster, &str) -> String) {
    let Some(mut cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    let bomb = bomb();
    cluster.driver = driver;
    cluster.install(&[]);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    let (helm, notes) = noting(&cluster);
    let settings = Settings {
        helm,
        ..Settings::by(Helm::Four)
    };
    let told = |kubeconfig: &Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        text.replace(
            "[kubernetes]\n",
            &format!("[kubernetes]\ndriver = {driver:?}\n"),
        )
    };
    let kubeconfig = cluster.least(&told(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &told(&kubeconfig));
    cluster.upgrade(&[DEAD]);
    // A helm of this test would read it as well.
    let path = plant(&cluster, &bomb);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "refused",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let text = ended["text"].as_str().unwrap();
    let object = path.rsplit('/').next().unwrap();
    for part in [
        &format!("the record {object} has "),
        "unpacks to more than 33554432",
        &format!("{object} --namespace {}", cluster.namespace),
    ] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    guarded.until("the metric says so", |_| {
        let metrics = guarded.leadsman.get("/metrics").body;
        let series = format!(
            "leadsman_rollback_ready{{namespace=\"{}\",reason=\"too_large\",release=\"mykadoo\"}} 0",
            cluster.namespace
        );
        metrics.contains(&series)
    });
    assert_eq!(rollbacks(&notes), 0);
    let pid = guarded.leadsman.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let most = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kib: u64 = most.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("Leadsman: {most}");
    assert!(kib < 200 * 1024, "{most}");
    // Without it all is well.
    cluster.send("DELETE", &path, "application/json", &json!({}));
    guarded.until("nothing is in the way", |release| {
        release["preflight_failure"].is_null()
    });
}

fn place(cluster: &Cluster, plural: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{}/{plural}/{name}", cluster.namespace)
}

#[test]
fn a_bomb_among_the_old_records_is_refused_before_helm_is_started() {
    refused("bomb", "secret", |cluster, payload| {
        let path = place(cluster, "secrets", "sh.helm.release.v1.mykadoo.v1");
        let body = json!({"data": {"release": STANDARD.encode(payload)}});
        cluster.send("PATCH", &path, "application/merge-patch+json", &body);
        path
    });
}

#[test]
fn a_bomb_in_a_config_map_is_refused_as_well() {
    refused("bombmap", "configmap", |cluster, payload| {
        let path = place(cluster, "configmaps", "sh.helm.release.v1.mykadoo.v1");
        let body = json!({"data": {"release": payload}});
        cluster.send("PATCH", &path, "application/merge-patch+json", &body);
        path
    });
}

/// Helm goes by labels, and does not care of what type a Secret is or what it is called.
#[test]
fn a_bomb_that_only_its_labels_make_a_record_is_refused_as_well() {
    refused("bomblabel", "secret", |cluster, payload| {
        let labels =
            json!({"owner": "helm", "name": "mykadoo", "status": "superseded", "version": "1"});
        let body = json!({
            "metadata": {"name": "innocent", "labels": labels},
            "data": {"release": STANDARD.encode(payload)},
        });
        let path = place(cluster, "secrets", "");
        let path = path.trim_end_matches('/');
        cluster.send("POST", path, "application/json", &body);
        place(cluster, "secrets", "innocent")
    });
}

/// Small text can still be large in memory: what its size does not tell, helm's own limit does.
#[test]
fn a_helm_that_needs_more_memory_than_it_may_have_ends_and_that_is_said() {
    let Some(cluster) = Cluster::new("memory", Helm::Four) else {
        return;
    };
    // Written by hand, since so many values take long to write.
    let record = format!(
        r#"{{"name":"mykadoo","namespace":{:?},"version":1,"info":{{"status":"superseded"}},"config":{{"a":[{}[]]}},"manifest":""}}"#,
        cluster.namespace,
        "[],".repeat(5 * MIB / 2)
    );
    let payload = STANDARD.encode(STANDARD.encode(gzipped(record.as_bytes())));
    cluster.install(&[]);
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    let (helm, notes) = noting(&cluster);
    let settings = Settings {
        helm,
        ..Settings::by(Helm::Four)
    };
    let told = |kubeconfig: &Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        text.replace("[kubernetes]\n", "[kubernetes]\nhelm_memory = \"128MiB\"\n")
    };
    let kubeconfig = cluster.least(&told(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &told(&kubeconfig));
    cluster.upgrade(&[DEAD]);
    let path = place(&cluster, "secrets", "sh.helm.release.v1.mykadoo.v1");
    let body = json!({"data": {"release": payload}});
    cluster.send("PATCH", &path, "application/merge-patch+json", &body);
    let ended = guarded.outcome(3);
    assert_eq!(
        ended["outcome"],
        "rollback_failed",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let text = ended["text"].as_str().unwrap();
    for part in [
        "needed more memory than the 134217728 bytes that it may have",
        "kubernetes.helm_memory",
    ] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert_eq!(rollbacks(&notes), 1, "it is not tried again");
}
