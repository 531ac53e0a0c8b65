//! The API server or its store goes away while releases are in every phase. Whoever runs these must run them alone:
//! everybody in the rig is hit.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::asked::Asked;
use crate::guarded::{Guarded, Settings, configuration};
use crate::program::until;
use crate::replicas::{as_replica, leadership};
use crate::rig::{Cluster, Helm, start, stop};
use crate::rolled_back::DEAD;

#[test]
fn the_api_server_goes_away_for_5_s() {
    outage("apiserver", 5);
}

#[test]
fn the_api_server_goes_away_for_30_s() {
    outage("apiserver", 30);
}

/// While helm waits for a hook, with its record written and the old objects not yet there.
#[test]
fn the_api_server_goes_away_in_the_middle_of_a_rollback() {
    let Some(cluster) = Cluster::new("middle", Helm::Four) else {
        return;
    };
    let slow = r#"hooks={"migrate":false,"rollback":"slow","sim":{}}"#;
    cluster.install(&[slow]);
    let guarded = Guarded::start(&cluster);
    cluster.upgrade(&[DEAD, slow]);
    guarded.until("helm is at work", |_| {
        cluster.statuses(Helm::Three).contains("3 pending-rollback")
    });
    stop("apiserver");
    std::thread::sleep(Duration::from_secs(10));
    start("apiserver");
    ends_well(&cluster, &guarded);
}

#[test]
fn the_store_of_the_api_server_goes_away_for_20_s() {
    outage("etcd", 20);
}

#[test]
fn the_api_server_goes_away_for_120_s() {
    if std::env::var_os("LEADSMAN_TEST_LONG").is_some() {
        outage("apiserver", 120);
    }
}

/// It probes at once, and guards when the API server is back.
#[test]
fn started_while_the_api_server_is_away_it_probes_and_guards_later() {
    let Some(cluster) = Cluster::new("start", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let asked = Asked::listen();
    let settings = Settings::by(Helm::Four);
    let told = |kubeconfig: &std::path::Path| {
        let text = configuration(&cluster, &settings, kubeconfig);
        as_replica(&cluster, "one", &format!("{text}{}", asked.probe()))
    };
    let text = told(&cluster.least(&told(&cluster.kubeconfig())));
    stop("apiserver");
    let began = Instant::now();
    let guarded = Guarded::started(&cluster, &text);
    until("every probe has asked", || {
        let probes = guarded.leadsman.get("/api/v1/probes").body;
        let probes: serde_json::Value = serde_json::from_str(&probes).unwrap();
        let probes = probes["probes"].as_array().cloned().unwrap_or_default();
        let asked = |probe: &serde_json::Value| probe["totals"]["success"].as_u64() > Some(5);
        probes.len() == 5 && probes.iter().all(asked)
    });
    assert!(!leadership(&guarded));
    start("apiserver");
    guarded.knows_the_app();
    assert!(leadership(&guarded));
    cluster.upgrade(&[DEAD]);
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        guarded.leadsman.log()
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
    let pause = asked.longest_pause(began);
    println!("started without the API server: nobody probed for {pause:?} at most");
    // An interval is a second: one may fail to come, and this machine, which has much to do, be late by two.
    assert!(pause < Duration::from_secs(4), "{pause:?}");
}

/// Three releases with a dead revision: one that is watched when the outage begins, one whose rollback has been decided
/// and not yet begun, and one that is being verified. All must end well, and nothing may be written twice.
fn outage(part: &str, seconds: u64) {
    let Some(before) = Cluster::new("before", Helm::Four) else {
        return;
    };
    let during = Cluster::new("during", Helm::Three).unwrap();
    let after = Cluster::new("after", Helm::Four).unwrap();
    for cluster in [&before, &during, &after] {
        cluster.install(&[]);
    }
    let waits = during.held_helm("*rollback*");
    waits.hold();
    let long = |helm: PathBuf| Settings {
        helm,
        watch: 300,
        ..Settings::by(Helm::Four)
    };
    let helms = [Helm::Four.path(), waits.path.clone(), Helm::Four.path()];
    // Each waits for its baseline.
    let [before_guarded, during_guarded, after_guarded] = std::thread::scope(|scope| {
        let mut starting = [&before, &during, &after].into_iter().zip(helms);
        std::array::from_fn::<_, 3, _>(|_| {
            let (cluster, helm) = starting.next().unwrap();
            scope.spawn(move || Guarded::with(cluster, &long(helm)))
        })
        .map(|guarded| guarded.join().unwrap())
    });
    after.upgrade(&[DEAD]);
    during.upgrade(&[DEAD]);
    during_guarded.until("the rollback begins", |release| {
        release["phase"] == "rolling_back"
    });
    after_guarded.until("the rollback is verified", |release| {
        release["phase"] == "verifying" || release["phase"] == "idle"
    });
    before.upgrade(&[DEAD]);
    before_guarded.until("revision 2 is judged", |release| release["revision"] == 2);

    stop(part);
    waits.let_go();
    std::thread::sleep(Duration::from_secs(seconds));
    start(part);

    for (cluster, guarded) in [
        (&before, &before_guarded),
        (&during, &during_guarded),
        (&after, &after_guarded),
    ] {
        ends_well(cluster, guarded);
        println!(
            "{}: recovered after {part} was away for {seconds} s",
            cluster.namespace
        );
    }
}

/// Rolled back, with one record that is deployed and none that is pending, and nothing written twice.
#[track_caller]
fn ends_well(cluster: &Cluster, guarded: &Guarded<'_>) {
    let ended = guarded.outcome(2);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{}: {ended:#}\n{}",
        cluster.namespace,
        guarded.leadsman.log()
    );
    assert_eq!(cluster.image().as_deref(), Some("mykadoo-api:1"));
    let history = cluster.history(Helm::Four);
    let deployed: Vec<_> = history
        .iter()
        .filter(|(_, status, _)| status == "deployed")
        .collect();
    assert_eq!(deployed.len(), 1, "{history:?}");
    assert!(
        history
            .iter()
            .all(|(_, status, _)| !status.starts_with("pending")),
        "{history:?}"
    );
    // Whatever came of what was begun while the API server was away, one rollback worked.
    let worked = history
        .iter()
        .filter(|(_, _, description)| description.starts_with("Rollback to 1"));
    assert_eq!(worked.count(), 1, "{history:?}");
    let made = cluster.writes(&cluster.account());
    let made: Vec<_> = made
        .iter()
        .filter(|write| write.starts_with("create secrets/sh.helm"))
        .collect();
    assert_eq!(made.len(), history.len() - 2, "{made:?}");
}
