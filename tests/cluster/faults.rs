//! helm, rights and records that are broken: the right end, nothing written twice, and no release left pending.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::guarded::{Guarded, Settings};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::{DEAD, expected_writes, written};

/// Deploys a dead revision with a helm that is played; how it ended.
fn ended(cluster: &Cluster, script: &str, values: &[&str]) -> Value {
    cluster.install(values);
    let helm = cluster.played_helm(script);
    let guarded = Guarded::with(
        cluster,
        &Settings {
            helm,
            ..Settings::by(cluster.helm)
        },
    );
    let values: Vec<&str> = [&[DEAD][..], values].concat();
    cluster.upgrade(&values);
    let ended = guarded.outcome(2);
    println!(
        "{}: {} {}",
        cluster.namespace, ended["outcome"], ended["text"]
    );
    if ended["outcome"] != "rolled_back" {
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
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    // It depends on the machine how far the first one came: to no record, to its end, or to one that was put right.
    if ended["created_revision"] == 3 {
        expected_writes(&cluster);
    } else {
        assert_eq!(
            written(&cluster),
            "create v3, create v4, update v2, update v3, update v4, update v4"
        );
    }
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
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert_eq!(ended["created_revision"], 4, "{ended:#}");
    let history = cluster.history(Helm::Four);
    assert_eq!(history[2].1, "failed", "{history:?}");
    assert!(
        history[2].2.contains("failed: helm was killed"),
        "{history:?}"
    );
    // Helm notes in its record that the hook runs; then it is put right once.
    assert_eq!(
        written(&cluster),
        "create v3, create v4, update v2, update v3, update v3, update v4, update v4"
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
        release["preflight_failure"]
            .as_str()
            .is_some_and(|why| why.contains("/nowhere/helm"))
    });
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "refused", "{ended:#}");
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
    assert_eq!(ended["outcome"], "refused", "{ended:#}");
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
    assert_eq!(ended["outcome"], "rollback_failed", "{ended:#}");
    let text = ended["text"].as_str().unwrap();
    assert!(text.contains("by hand: helm rollback mykadoo 1"), "{text}");
    // Helm says that the hook failed, and not why.
    assert!(
        text.contains(" said last: panic: connection string postgres://"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(cluster.statuses(Helm::Three).matches("failed").count(), 1);
    // Helm notes that the hook runs; the record is put right once, nothing of the app is touched, and it stays at that.
    assert_eq!(written(&cluster), "create v3, update v3, update v3");
    let writes = cluster.writes(&cluster.account());
    let is_change = |write: &&String| write.starts_with("patch ") && !write.contains(" events/");
    let changes: Vec<_> = writes.iter().filter(is_change).collect();
    assert_eq!(changes, ["patch jobs/mykadoo-before-rollback"]);
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
    let ended = guarded.outcome(8);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
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
    let ended = first.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
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
    assert_eq!(second.outcome(2)["outcome"], "rolled_back");
    // What was found bad is known to be bad.
    cluster.upgrade(&[DEAD]);
    let ended = second.outcome(4);
    assert_eq!(
        (&ended["outcome"], &ended["target"]),
        (&"rolled_back".into(), &3.into()),
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
    assert_eq!(third.outcome(6)["outcome"], "rolled_back");
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
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    // The one that hung wrote nothing.
    expected_writes(&cluster);
    nothing_is_pending(&cluster);
}

/// Without its rights it sees nothing, says so, and rejects nobody; with them it goes on.
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
    let mut all = cluster.get(&bindings);
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
    guarded.until_fires("LeadsmanBlind");
    assert_eq!(guarded.release()["revision"], 1, "it knows of nothing new");
    for binding in &kept {
        cluster.send("POST", &bindings, json, binding);
    }
    guarded.until("it sees again", |_| blind(0));
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
}

fn secrets(cluster: &Cluster) -> String {
    format!("/api/v1/namespaces/{}/secrets", cluster.namespace)
}

/// Where a record is kept.
fn place(cluster: &Cluster, release: &str, revision: u32) -> String {
    format!(
        "/api/v1/namespaces/{}/secrets/sh.helm.release.v1.{release}.v{revision}",
        cluster.namespace
    )
}

/// What is in a record of the app.
fn record(cluster: &Cluster, revision: u32) -> Value {
    let secret = cluster.get(&place(cluster, "mykadoo", revision));
    let outer = STANDARD.decode(secret["data"]["release"].as_str().unwrap());
    let packed = STANDARD.decode(outer.unwrap()).unwrap();
    let mut text = String::new();
    let mut gzip = GzDecoder::new(packed.as_slice());
    gzip.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn packed(record: &Value) -> String {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(record.to_string().as_bytes()).unwrap();
    STANDARD.encode(STANDARD.encode(gzip.finish().unwrap()))
}

/// A record of its own, as Helm would have stored it.
fn stored(release: &str, revision: u32, status: &str, payload: &str) -> Value {
    json!({
        "metadata": {"name": format!("sh.helm.release.v1.{release}.v{revision}"),
            "labels": {"owner": "helm", "name": release, "status": status, "version": revision.to_string()}},
        "type": "helm.sh/release.v1", "data": {"release": payload},
    })
}

#[test]
fn a_record_that_lies_and_a_manifest_that_is_no_yaml_are_left_out_and_the_rest_goes_on() {
    let Some(cluster) = Cluster::new("lies", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    for revision in 2..=3 {
        cluster.upgrade(&[&format!("setting=\"{revision}\"")]);
    }
    let guarded = Guarded::start(&cluster);
    let mut liar = record(&cluster, 1);
    liar["version"] = 7.into();
    let mut broken = record(&cluster, 2);
    broken["manifest"] = "---\n# Source: mykadoo/templates/api.yaml\nkind: [Deployment\n".into();
    for (revision, record) in [(1, &liar), (2, &broken)] {
        let data = json!({"data": {"release": packed(record)}});
        let path = place(&cluster, "mykadoo", revision);
        cluster.send("PATCH", &path, "application/merge-patch+json", &data);
    }
    // Helm believes the record that lies, and counts from there.
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(8);
    assert_eq!(
        (&ended["outcome"], &ended["target"]),
        (&"rolled_back".into(), &3.into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    let log = guarded.leadsman.log();
    for (revision, why) in [
        (1, "the record says that it is mykadoo v7"),
        (2, "is not YAML that can be read"),
    ] {
        let wanted = format!("\"revision\":{revision}");
        let lines = log.lines().filter(|line| {
            line.contains("cannot be read, and is left out")
                && line.contains(&wanted)
                && line.contains(why)
        });
        assert_eq!(lines.count(), 1, "revision {revision}\n{log}");
    }
    // The rights are those of the revisions that can be read, and that is said.
    let settings = Settings::by(cluster.helm);
    let text = crate::guarded::configuration(&cluster, &settings, &cluster.kubeconfig());
    let (code, roles) = crate::program::run_to_end(&text, &["rbac"]);
    assert_eq!(code, Some(0), "{roles}");
    for part in [
        "kind: Role\n",
        "deployments",
        "revision 2 cannot be read: ",
        "what only that revision needs is left out",
    ] {
        assert!(roles.contains(part), "{part} is not in:\n{roles}");
    }
}

/// Names of releases may have dots, and then look like more of what follows them.
#[test]
fn a_release_whose_name_has_dots_is_followed() {
    let Some(cluster) = Cluster::new("dots", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let mut dotted = record(&cluster, 1);
    dotted["name"] = "my.v2.shop".into();
    let record = stored("my.v2.shop", 1, "deployed", &packed(&dotted));
    cluster.create_all(&secrets(&cluster), std::iter::once(record));
    let settings = Settings::by(cluster.helm);
    let text = crate::guarded::configuration(&cluster, &settings, &cluster.kubeconfig());
    let text = text.replace("name = \"mykadoo\"\n", "name = \"my.v2.shop\"\n");
    let leadsman = crate::program::Leadsman::run(&text, &[]);
    let release = || -> Value {
        let path = format!("/api/v1/releases/{}/my.v2.shop", cluster.namespace);
        serde_json::from_str(&leadsman.get(&path).body).unwrap_or(Value::Null)
    };
    crate::program::until("it is followed", || release()["phase"] == "idle");
    assert_eq!(release()["revision"], 1);
    assert!(!leadsman.said("cannot be read"), "{}", leadsman.log());
}

/// More than two pages of a list.
#[test]
fn a_history_of_more_than_a_thousand_revisions_is_gone_back_in() {
    gone_back_in(1100);
}

/// Twenty pages. It takes some minutes, so it runs when asked for: `LEADSMAN_TEST_LONG=1`.
#[test]
fn a_history_of_ten_thousand_revisions_is_gone_back_in() {
    if std::env::var_os("LEADSMAN_TEST_LONG").is_some() {
        gone_back_in(10_000);
    }
}

/// A dead revision after so many others is rolled back to the last one before it.
#[track_caller]
fn gone_back_in(revisions: u32) {
    let Some(cluster) = Cluster::new("history", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let mut first = record(&cluster, 1);
    // Helm reads all of them at each step, and a store of them need not be large.
    first["chart"]["templates"] = json!([]);
    first["hooks"] = json!([]);
    let began = std::time::Instant::now();
    let path = secrets(&cluster);
    let copy = |revision: u32| {
        let mut copy = first.clone();
        copy["version"] = revision.into();
        copy["info"]["status"] = "superseded".into();
        copy["info"]["description"] = "Upgrade complete".into();
        stored("mykadoo", revision, "superseded", &packed(&copy))
    };
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (cluster, path, copy) = (&cluster, &path, &copy);
            let all = (2 + worker..=revisions).step_by(4);
            scope.spawn(move || cluster.create_all(path, all.map(copy)));
        }
    });
    println!("{revisions} revisions: stored within {:?}", began.elapsed());
    cluster.helm(&[
        "upgrade",
        "mykadoo",
        crate::rig::CHART,
        "--history-max",
        "0",
    ]);
    // Helm reads them all, and ten thousand take more than it is given unless more is said.
    let settings = Settings::by(cluster.helm);
    let told = |kubeconfig: &std::path::Path| {
        let text = crate::guarded::configuration(&cluster, &settings, kubeconfig);
        text.replace(
            "[kubernetes]\n",
            "[kubernetes]\nhelm_memory = \"1024MiB\"\n",
        )
    };
    let kubeconfig = cluster.least(&told(&cluster.kubeconfig()));
    let guarded = Guarded::allowed(&cluster, &told(&kubeconfig));
    let dead = [
        "upgrade",
        "mykadoo",
        crate::rig::CHART,
        "--history-max",
        "0",
        "--set-json",
    ];
    cluster.helm(&[&dead[..], &[DEAD]].concat());
    let bad = u64::from(revisions) + 2;
    let ended = guarded.outcome(bad);
    assert_eq!(
        (
            &ended["outcome"],
            &ended["target"],
            &ended["created_revision"]
        ),
        (&"rolled_back".into(), &(bad - 1).into(), &(bad + 1).into()),
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    println!(
        "{revisions} revisions: {}, {:?} in all",
        crate::rolled_back::steps(&ended),
        began.elapsed()
    );
}
