//! helm, rights and records that are broken: the right end, nothing written twice, and no release left pending.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings};
use crate::rig::{Cluster, Helm};
use crate::turned_back::DEAD;

/// A helm that does something of its own before or instead of the real one, which it finds as `$HELM`.
fn played(cluster: &Cluster, script: &str) -> PathBuf {
    let file = cluster.folder().join(format!("{}.helm", cluster.namespace));
    let real = cluster.helm.path();
    std::fs::write(
        &file,
        format!("#!/bin/sh\nHELM={}\n{script}\n", real.display()),
    )
    .unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// Deploys a dead revision with a helm that is played; how it ended.
fn ended(cluster: &Cluster, script: &str, values: &[&str]) -> Value {
    cluster.install(values);
    let helm = played(cluster, script);
    let guarded = Guarded::with(
        cluster,
        &Settings {
            helm,
            ..Settings::by(cluster.helm)
        },
    );
    let values: Vec<&str> = [&[DEAD][..], values].concat();
    cluster.upgrade(&values);
    let ended = guarded.ending(2);
    println!(
        "{}: {} {}",
        cluster.namespace, ended["ending"], ended["text"]
    );
    if ended["ending"] == "inconclusive" {
        println!("{}", guarded.leadsman.log());
    }
    ended
}

#[track_caller]
fn nothing_is_pending(cluster: &Cluster) {
    for (revision, status, description) in cluster.history(Helm::Four) {
        assert!(
            !status.starts_with("pending"),
            "{revision} {status} {description}"
        );
    }
    // The next deployment goes through.
    cluster.upgrade(&[r#"api.image="mykadoo-api:9""#]);
}

#[test]
fn a_helm_that_is_killed_in_the_middle_is_started_again() {
    let Some(cluster) = Cluster::new("killed", Helm::Four) else {
        return;
    };
    // The first time it is killed as soon as its record is there.
    let script = r#"
case "$*" in *rollback*)
  if [ ! -e killed ]; then
    "$HELM" "$@" & pid=$!
    sleep 0.09; kill -9 $pid && touch killed && kill -9 $$
  fi;;
esac
exec "$HELM" "$@""#;
    let ended = ended(&cluster, script, &[]);
    assert_eq!(ended["ending"], "recovered", "{ended:#}");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    nothing_is_pending(&cluster);
}

#[test]
fn a_record_that_a_killed_helm_left_pending_is_put_right() {
    let Some(cluster) = Cluster::new("pending", Helm::Three) else {
        return;
    };
    // A hook that hangs, so that helm is certainly killed after it wrote its record.
    let script = r#"
case "$*" in *rollback*)
  if [ ! -e killed ]; then
    "$HELM" "$@" & pid=$!
    sleep 3; touch killed; kill -9 $pid; kill -9 $$
  fi
  set -- "$@" --no-hooks;;
esac
exec "$HELM" "$@""#;
    let ended = ended(
        &cluster,
        script,
        &[r#"hooks={"migrate":false,"rollback":"hang","sim":{}}"#],
    );
    assert_eq!(ended["ending"], "recovered", "{ended:#}");
    assert_eq!(ended["made"], 4, "{ended:#}");
    let history = cluster.history(Helm::Four);
    assert_eq!(history[2].1, "failed", "{history:?}");
    assert!(
        history[2].2.contains("failed: helm was killed"),
        "{history:?}"
    );
    nothing_is_pending(&cluster);
}

#[test]
fn a_missing_helm_is_an_obstacle_with_the_command_for_a_person() {
    let Some(cluster) = Cluster::new("missing", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let helm = PathBuf::from("/nowhere/helm");
    let guarded = Guarded::with(
        &cluster,
        &Settings {
            helm,
            ..Settings::by(Helm::Four)
        },
    );
    guarded.until("it is known beforehand", |release| {
        release["obstacle"]
            .as_str()
            .is_some_and(|why| why.contains("/nowhere/helm"))
    });
    cluster.upgrade(&[DEAD]);
    let ended = guarded.ending(2);
    assert_eq!(ended["ending"], "refused", "{ended:#}");
    let text = ended["text"].as_str().unwrap();
    assert!(
        text.contains("/nowhere/helm") && text.contains("helm rollback mykadoo 1"),
        "{text}"
    );
    nothing_is_pending(&cluster);
}

#[test]
fn an_old_helm_is_an_obstacle() {
    let Some(cluster) = Cluster::new("old", Helm::Three) else {
        return;
    };
    let script = r#"case "$*" in *version*) echo v3.9.0; exit 0;; esac; exec "$HELM" "$@""#;
    let ended = ended(&cluster, script, &[]);
    assert_eq!(ended["ending"], "refused", "{ended:#}");
    assert!(
        ended["text"].as_str().unwrap().contains("3.14 or newer"),
        "{ended:#}"
    );
    nothing_is_pending(&cluster);
}

#[test]
fn a_rollback_hook_that_fails_ends_as_failed_and_leaves_nothing_pending() {
    let Some(cluster) = Cluster::new("hook", Helm::Four) else {
        return;
    };
    let ended = ended(
        &cluster,
        r#"exec "$HELM" "$@""#,
        &[r#"hooks={"migrate":false,"rollback":"fail","sim":{}}"#],
    );
    assert_eq!(ended["ending"], "failed", "{ended:#}");
    let text = ended["text"].as_str().unwrap();
    assert!(text.contains("by hand: helm rollback mykadoo 1"), "{text}");
    assert_eq!(cluster.statuses(Helm::Three).matches("failed").count(), 1);
    nothing_is_pending(&cluster);
}

#[test]
fn records_that_cannot_be_read_are_told_once_and_the_rest_goes_on() {
    let Some(cluster) = Cluster::new("bad", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    for revision in 2..=7 {
        cluster.upgrade(&[&format!("setting=\"{revision}\"")]);
    }
    let large = "QUFB".repeat(250_000);
    for (revision, payload) in [
        (2, ""),
        (3, "bm90IGJhc2U2NCEh"),
        (4, "SDRzSUFBQUE="),
        (5, "ZTMwPQ=="),
        (6, &large),
    ] {
        let path = format!(
            "/api/v1/namespaces/{}/secrets/sh.helm.release.v1.mykadoo.v{revision}",
            cluster.namespace
        );
        let rubbish = json!({"data": {"release": payload}});
        cluster.send("PATCH", &path, "application/merge-patch+json", &rubbish);
    }
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
    let ended = guarded.ending(8);
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        (&ended["target"], &ended["made"]),
        (&7.into(), &9.into()),
        "{ended:#}"
    );
    // They were read when there was a case, each was told once, and they are counted.
    let told = guarded.leadsman.log();
    for revision in 4..=6 {
        let wanted = format!("\"revision\":{revision}");
        let lines = told.lines().filter(|line| {
            line.contains("cannot be read, and is left out") && line.contains(&wanted)
        });
        assert_eq!(lines.count(), 1, "revision {revision}\n{told}");
    }
    let metrics = guarded.leadsman.get("/metrics").body;
    let counted = metrics
        .lines()
        .find(|line| line.starts_with("leadsman_release_unreadable_revisions{"))
        .unwrap();
    assert!(!counted.ends_with(" 0"), "{counted}");
}

#[test]
fn a_pod_without_a_disk_goes_on_with_the_state_of_the_one_before() {
    let Some(cluster) = Cluster::new("map", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let settings = Settings::by(Helm::Four);
    let mapped = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        let map = format!(
            "config_map = \"leadsman\"\nnamespace = {:?}\n",
            cluster.namespace
        );
        text.replace("directory = \"state\"\n", &map)
    };
    let kubeconfig = cluster.least(&mapped(&cluster.kubeconfig()));
    let text = mapped(&kubeconfig);
    let mut first = Guarded::allowed(&cluster, &text);
    cluster.upgrade(&[DEAD]);
    let ended = first.ending(2);
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        first.leadsman.log()
    );
    assert!(
        !first.leadsman.said("cannot be written"),
        "{}",
        first.leadsman.log()
    );
    first.leadsman.kill();
    // Another folder, so nothing of the first one's files.
    let second = Guarded::allowed(&cluster, &text);
    let release = second.release();
    assert_eq!(release["revision"], 3, "{release:#}");
    assert_eq!(second.ending(2)["ending"], "recovered");
    // What was found bad is known to be bad.
    cluster.upgrade(&[DEAD]);
    let ended = second.ending(4);
    assert_eq!(
        (&ended["ending"], &ended["target"]),
        (&"recovered".into(), &3.into()),
        "{ended:#}"
    );
    drop(second);

    // A newer Leadsman was here: what it left is kept for it, and nothing of it believed.
    let maps = format!("/api/v1/namespaces/{}/configmaps", cluster.namespace);
    let map = format!("leadsman.state.{}.mykadoo", cluster.namespace);
    let state = |name: &str| {
        let map = cluster.get(&format!("{maps}/{name}"));
        let packed = map["binaryData"]["state.json.gz"].as_str().unwrap();
        let packed = STANDARD.decode(packed).unwrap();
        let mut text = String::new();
        let mut gzip = GzDecoder::new(packed.as_slice());
        gzip.read_to_string(&mut text).unwrap();
        text
    };
    let newer = state(&map).replacen("\"version\":1", "\"version\":99", 1);
    assert!(newer.contains("99"), "{newer}");
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(newer.as_bytes()).unwrap();
    let packed = STANDARD.encode(gzip.finish().unwrap());
    let patch = serde_json::json!({"binaryData": {"state.json.gz": packed}});
    cluster.send(
        "PATCH",
        &format!("{maps}/{map}"),
        "application/merge-patch+json",
        &patch,
    );
    let third = Guarded::allowed(&cluster, &text);
    assert!(
        third.leadsman.said("was written by a newer Leadsman"),
        "{}",
        third.leadsman.log()
    );
    assert_eq!(state(&format!("{map}.aside")), newer);
    cluster.upgrade(&[DEAD]);
    assert_eq!(third.ending(6)["ending"], "recovered");
}

#[test]
fn a_helm_that_hangs_is_ended_and_started_again() {
    let Some(cluster) = Cluster::new("hang", Helm::Three) else {
        return;
    };
    let script = r#"
case "$*" in *rollback*)
  if [ ! -e hung ]; then touch hung; exec sleep 1000; fi;;
esac
exec "$HELM" "$@""#;
    let ended = ended(&cluster, script, &[]);
    assert_eq!(ended["ending"], "recovered", "{ended:#}");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    nothing_is_pending(&cluster);
}

/// Without its rights it sees nothing, says so, and convicts nobody; with them it goes on.
#[test]
fn rights_that_are_taken_away_make_it_blind_and_no_more() {
    let Some(cluster) = Cluster::new("taken", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let bindings = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings",
        cluster.namespace
    );
    let json = "application/json";
    let mut all = cluster.send("GET", &bindings, json, &json!({}));
    let mut kept = Vec::new();
    for mut binding in all["items"].as_array_mut().unwrap().drain(..) {
        let name = binding["metadata"]["name"].as_str().unwrap().to_owned();
        cluster.send("DELETE", &format!("{bindings}/{name}"), json, &json!({}));
        binding["metadata"] = json!({"name": name});
        kept.push(binding);
    }
    assert!(!kept.is_empty());
    let blind = |is: u8| {
        let series = format!(
            "leadsman_release_blind{{namespace=\"{}\",release=\"mykadoo\"}} {is}",
            cluster.namespace
        );
        guarded.leadsman.get("/metrics").body.contains(&series)
    };
    guarded.until("it is blind", |_| blind(1));
    cluster.upgrade(&[DEAD]);
    std::thread::sleep(std::time::Duration::from_secs(20));
    assert_eq!(guarded.release()["revision"], 1, "it knows of nothing new");
    for binding in &kept {
        cluster.send("POST", &bindings, json, binding);
    }
    guarded.until("it sees again", |_| blind(0));
    let ended = guarded.ending(2);
    assert_eq!(
        ended["ending"],
        "recovered",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}
