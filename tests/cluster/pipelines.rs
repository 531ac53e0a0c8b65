//! Pipelines and people who do something at the same time.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::commands::leadsman;
use crate::guarded::{Guarded, Settings, configuration_with};
use crate::rig::{CHART, Cluster, Helm};
use crate::rolled_back::{DEAD, expected_writes, written};

const CRASH: &str = r#"api.sim={"crash-after":"1s"}"#;
/// Crashes before it can become Ready, so that `--wait` waits.
const CRASH_AT_ONCE: &str = r#"api={"readiness":"/never","sim":{"crash-after":"1s"}}"#;

/// Never Ready, so that the pods before it go on serving.
const NO_IMAGE: &str = r#"api.sim={"image-pull":"fail"}"#;

/// The runbook's own way: helm waits for a revision that never becomes Ready.
#[track_caller]
fn waiting(name: &str, helm: Helm, flags: &[&str]) {
    let Some(cluster) = Cluster::new(name, helm) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    let mut upgrade = Command::new(helm.path())
        .args([
            "upgrade",
            "--install",
            "mykadoo",
            CHART,
            "--timeout",
            "10m",
            "--set-json",
            CRASH_AT_ONCE,
        ])
        .args(flags)
        .args(["--namespace", &cluster.namespace])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    // The upgrade believes that all is well: it is the same Deployment.
    assert!(upgrade.wait().unwrap().success());
    // The pipeline's next step hears the truth, also where it does not say which revision it has deployed: the newest one
    // is not its own any more.
    for arguments in [&["gate", "mykadoo", "2"][..], &["gate", "mykadoo"]] {
        let (code, said) = leadsman(&guarded, arguments);
        assert_eq!(code, Some(10), "{said}");
        assert!(said.contains("Revision 2"), "{said}");
    }
    // Its record is put right afterwards.
    guarded.until("one record is deployed", |_| {
        cluster.statuses(Helm::Four) == "1 superseded, 2 superseded, 3 deployed"
    });
    let (_, _, description) = &cluster.history(Helm::Three)[1];
    assert!(
        description.contains("superseded by revision 3"),
        "{description}"
    );
    // The record of the upgrade is put right once. That of the one that served was still deployed, unless the upgrade, which
    // sees all pods Ready at the same moment, was the first to supersede it.
    let written = written(&cluster);
    let either = [
        "create v3, update v1, update v2, update v3, update v3",
        "create v3, update v2, update v3, update v3",
    ];
    assert!(either.contains(&written.as_str()), "{written}");
    // A later choice by Helm's words alone must not take it for good, and everybody can go on.
    cluster.by(
        Helm::Three,
        &[
            "upgrade",
            "mykadoo",
            CHART,
            "--set",
            "api.image=mykadoo-api:4",
        ],
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 deployed"
    );
}

#[test]
fn an_upgrade_of_helm_3_that_waits_is_rolled_back_while_it_waits() {
    waiting("wait", Helm::Three, &["--wait"]);
}

#[test]
fn an_upgrade_of_helm_4_that_waits_is_rolled_back_while_it_waits() {
    waiting("wait", Helm::Four, &["--wait=legacy"]);
}

#[test]
fn an_atomic_upgrade_of_helm_3_is_rolled_back_while_it_waits() {
    waiting("atomic", Helm::Three, &["--atomic"]);
}

#[test]
fn an_upgrade_of_helm_4_that_rolls_back_on_failure_is_rolled_back_while_it_waits() {
    waiting(
        "onfail",
        Helm::Four,
        &["--rollback-on-failure", "--wait=legacy"],
    );
}

/// Helm 4's own way to wait, without a name for it.
#[test]
fn a_plain_wait_of_helm_4_is_rolled_back_while_it_waits() {
    waiting("plain", Helm::Four, &["--wait"]);
}

#[test]
fn a_plain_rollback_on_failure_of_helm_4_is_rolled_back_while_it_waits() {
    waiting("plainfail", Helm::Four, &["--rollback-on-failure"]);
}

#[test]
fn an_upgrade_in_the_middle_of_our_rollback_comes_after_it() {
    let Some(cluster) = Cluster::new("during", Helm::Four) else {
        return;
    };
    let slow = r#"hooks={"migrate":false,"rollback":"slow","sim":{}}"#;
    cluster.install(&[slow]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD, slow]);
    guarded.until("helm is at work", |_| {
        cluster.statuses(Helm::Three).contains("3 pending-rollback")
    });
    // Helm itself lets nobody in.
    let upgrade = [
        "upgrade",
        "mykadoo",
        CHART,
        "--set",
        "api.image=mykadoo-api:4",
    ];
    let refused = cluster.run(Helm::Three, &upgrade);
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("another operation"),
        "{refused:?}"
    );
    guarded.until("the rollback is done", |_| {
        cluster.statuses(Helm::Three).contains("3 deployed")
    });
    cluster.helm(&upgrade);
    let ended = guarded.outcome(2);
    assert!(
        ["superseded", "rolled_back"].contains(&ended["outcome"].as_str().unwrap()),
        "{ended:#}"
    );
    let ended = guarded.outcome(4);
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 deployed"
    );
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:4"));
    // Helm notes its hook, supersedes, and says that it is deployed; the upgrade may come before we have marked that.
    let marked = "create v3, update v2, update v3, update v3, update v3";
    let unmarked = "create v3, update v2, update v3, update v3";
    let all = written(&cluster);
    assert!([marked, unmarked].contains(&all.as_str()), "{all}");
}

#[test]
fn a_good_upgrade_in_the_middle_of_a_watch_takes_its_place() {
    let Some(cluster) = Cluster::new("middle", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
    guarded.until("revision 2 is judged", |release| release["revision"] == 2);
    cluster.upgrade(&["api.sim={}"]);
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "superseded", "{ended:#}");
    let ended = guarded.outcome(3);
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
    cluster.only_events();
}

#[test]
fn two_bad_upgrades_within_seconds_end_at_the_last_that_served() {
    let Some(cluster) = Cluster::new("two", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
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
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 deployed"
    );
    assert_eq!(
        written(&cluster),
        "create v4, update v3, update v4, update v4"
    );
}

#[test]
fn a_person_who_rolls_back_first_is_not_overruled() {
    let Some(cluster) = Cluster::new("person", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[CRASH]);
    guarded.until("revision 2 is judged", |release| release["revision"] == 2);
    cluster.helm(&["rollback", "mykadoo", "1"]);
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "superseded", "{ended:#}");
    let ended = guarded.outcome(3);
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );
    cluster.only_events();
}

#[test]
fn a_revision_before_that_was_found_bad_is_passed_over_and_the_days_limit_holds() {
    let Some(cluster) = Cluster::new("limit", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD]);
    assert_eq!(guarded.outcome(2)["outcome"], "rolled_back");
    expected_writes(&cluster);
    // The same contents once more are known to be bad; 3 was our rollback and serves.
    cluster.upgrade(&[DEAD]);
    guarded.until("the contents are recognized", |release| {
        let events = release["events"].as_array().unwrap();
        let text = |event: &serde_json::Value| event["text"].as_str().unwrap().to_owned();
        let is_it = |text: String| {
            text.starts_with("These are the contents of revision 2, which was found bad: ")
        };
        events.iter().map(text).any(is_it)
    });
    let ended = guarded.outcome(4);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&3.into(), &5.into()),
        "{ended:#}"
    );
    cluster.upgrade(&[DEAD, r#"api.image="mykadoo-api:9""#]);
    let ended = guarded.outcome(6);
    assert_eq!(ended["outcome"], "limit_reached", "{ended:#}");
    guarded.until_fires("LeadsmanRollbackLimitReached");
    let text = ended["text"].as_str().unwrap();
    let command = format!(
        "helm rollback mykadoo 5 --namespace {} --history-max 0",
        cluster.namespace
    );
    assert!(text.contains(&command), "{text}");
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 superseded, 4 superseded, 5 superseded, 6 deployed"
    );
    // Two rollbacks, and nothing after the limit.
    assert_eq!(
        written(&cluster),
        "create v3, create v5, update v2, update v3, update v3, update v4, update v5, update v5"
    );
}

/// The revision before is bad as well, and was left in place: it goes to the last that was found good.
#[test]
fn where_the_revision_before_is_bad_too_the_last_good_one_comes_back() {
    let Some(cluster) = Cluster::new("lastgood", Helm::Four) else {
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
    let mut observes = Guarded::allowed(&cluster, &text("observe", &kubeconfig));
    cluster.upgrade(&[r#"api.image="mykadoo-api:2""#]);
    assert_eq!(observes.outcome(2)["outcome"], "passed");
    cluster.upgrade(&[NO_IMAGE, r#"api.image="mykadoo-api:3""#]);
    assert_eq!(observes.outcome(3)["outcome"], "would_roll_back");
    observes.leadsman.kill();
    drop(observes);
    let enforces = Guarded::started(&cluster, &text("enforce", &kubeconfig));
    enforces.until("it knows where it stands", |release| {
        release["phase"] == "idle"
    });
    cluster.upgrade(&[CRASH, r#"api.image="mykadoo-api:4""#]);
    let ended = enforces.outcome(4);
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&2.into(), &5.into()),
        "{ended:#}\n{}",
        enforces.leadsman.log()
    );
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:2"));
}

/// What was there before Leadsman came has never been watched: it is good when it has served well for ten minutes, over a
/// restart as well, and is gone back to from two bad ones. It takes a quarter of an hour, so it runs when asked for:
/// `LEADSMAN_TEST_LONG=1`.
#[test]
fn what_was_there_before_is_good_after_ten_minutes_and_comes_back() {
    if std::env::var_os("LEADSMAN_TEST_LONG").is_none() {
        return;
    }
    let Some(cluster) = Cluster::new("soaked", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let state = tempfile::tempdir().unwrap();
    let text = |mode, kubeconfig: &std::path::Path| {
        let settings = Settings {
            mode,
            watch: 120,
            ..Settings::by(Helm::Four)
        };
        configuration_with(&cluster, &settings, kubeconfig, state.path())
    };
    let kubeconfig = cluster.least(&text("enforce", &cluster.kubeconfig()));
    let mut first = Guarded::allowed(&cluster, &text("observe", &kubeconfig));
    std::thread::sleep(Duration::from_secs(320));
    first.leadsman.kill();
    drop(first);
    let mut observes = Guarded::started(&cluster, &text("observe", &kubeconfig));
    let began = Instant::now();
    std::thread::sleep(Duration::from_secs(200));
    let says = "Revision 1 served well for 10 minutes, and is known to be good";
    assert!(!observes.leadsman.said(says), "not yet");
    observes.until("revision 1 is known to be good", |_| {
        observes.leadsman.said(says)
    });
    println!("known {:?} after the restart", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(480), "counted anew");
    cluster.upgrade(&[NO_IMAGE, r#"api.image="mykadoo-api:2""#]);
    assert_eq!(observes.outcome(2)["outcome"], "would_roll_back");
    observes.leadsman.kill();
    drop(observes);
    let enforces = Guarded::started(&cluster, &text("enforce", &kubeconfig));
    enforces.until("it knows where it stands", |release| {
        release["phase"] == "idle"
    });
    cluster.upgrade(&[CRASH, r#"api.image="mykadoo-api:3""#]);
    let ended = enforces.outcome(3);
    assert_eq!(
        (&ended["target"], &ended["created_revision"]),
        (&1.into(), &4.into()),
        "{ended:#}\n{}",
        enforces.leadsman.log()
    );
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
}
