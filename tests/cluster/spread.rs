//! Releases that are spread over two replicas by a Lease each.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guarded::{Guarded, Settings, configuration};
use crate::program::{Leadsman, until};
use crate::replicas::{as_replica, writes_since};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

const RELEASES: usize = 4;

/// A whole watch with its rollback, also where another one goes on with it.
const PATIENCE: Duration = Duration::from_secs(200);

/// How many releases a replica acts for.
fn acts_for(leadsman: &Leadsman) -> usize {
    let page = leadsman.get("/metrics").body;
    let line = page
        .lines()
        .find(|line| line.starts_with("leadsman_leader "));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// What a replica says of all releases, by namespace, in the order of the clusters.
fn releases(leadsman: &Leadsman, clusters: &[Cluster]) -> Vec<Value> {
    let said = leadsman.get("/api/v1/releases").body;
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    let all = said["releases"].as_array().cloned().unwrap_or_default();
    let of = |cluster: &Cluster| {
        let mut of = all.iter();
        let found = of.find(|release| release["namespace"] == cluster.namespace.as_str());
        found.cloned().unwrap_or_default()
    };
    clusters.iter().map(of).collect()
}

/// Waits until a replica says this of each release.
#[track_caller]
fn until_each(
    leadsman: &Leadsman,
    clusters: &[Cluster],
    what: &str,
    holds: impl Fn(&Value) -> bool,
) {
    let began = Instant::now();
    loop {
        let all = releases(leadsman, clusters);
        if all.iter().all(&holds) {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "never came true of each: {what}\n{all:#?}\n{}",
            leadsman.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_known(release: &Value) -> bool {
    let known = release["probe_history"].as_array();
    release["phase"] == "idle"
        && known.is_some_and(|known| {
            !known.is_empty()
                && known.iter().all(|probe| {
                    probe["baseline_total"].as_u64() >= Some(20) && probe["pods_answer"] == true
                })
        })
}

/// How the watch of a revision ended, as a replica tells it of each release.
#[track_caller]
fn until_ended(leadsman: &Leadsman, clusters: &[Cluster], revision: u64) {
    for cluster in clusters {
        let path = format!("/api/v1/releases/{}/mykadoo/rollouts", cluster.namespace);
        let began = Instant::now();
        let ended = loop {
            let said = leadsman.get(&path).body;
            let said: Value = serde_json::from_str(&said).unwrap_or_default();
            let finished = said["rollouts"].as_array().cloned().unwrap_or_default();
            let mut finished = finished.into_iter();
            let is_it = |finished: &Value| {
                finished["revision"] == revision && finished["outcome"].is_string()
            };
            if let Some(ended) = finished.find(is_it) {
                break ended;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{path}: revision {revision} has no end\n{said:#}\n{}",
                leadsman.log()
            );
            std::thread::sleep(Duration::from_millis(200));
        };
        assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    }
}

/// Since when people are told that a release was rolled back, by namespace; as a replica says it of all releases.
fn told_since(leadsman: &Leadsman) -> BTreeMap<String, String> {
    let said = leadsman.get("/api/v1/alerts").body;
    let said: Value = serde_json::from_str(&said).unwrap_or_default();
    let alerts = said["alerts"].as_array().cloned().unwrap_or_default();
    let told = alerts.into_iter().filter(|alert| {
        alert["state"] == "firing" && alert["labels"]["alertname"] == "LeadsmanReleaseRolledBack"
    });
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    told.map(|alert| {
        let since = format!("{} {}", alert["labels"]["revision"], alert["since"]);
        (text(&alert["labels"]["namespace"]), since)
    })
    .collect()
}

#[test]
fn each_replica_acts_for_its_half_and_one_alone_for_all() {
    let Some(first) = Cluster::new("spread", Helm::Four) else {
        return;
    };
    let mut clusters = vec![first];
    clusters.extend((1..RELEASES).map(|_| Cluster::new("spread", Helm::Four).unwrap()));
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(|| cluster.install(&[]));
        }
    });
    let settings = Settings {
        watch: 120,
        ..Settings::by(Helm::Four)
    };
    let told = |kubeconfig: &Path, name: &str| {
        let mut text = configuration(&clusters[0], &settings, kubeconfig);
        for cluster in &clusters[1..] {
            let other = configuration(cluster, &settings, kubeconfig);
            let id = format!("[[release]]\nid = {:?}\n", cluster.namespace);
            text += &other[other.find("[[release]]").unwrap()..].replace("[[release]]\n", &id);
        }
        as_replica(&clusters[0], name, &text).replace("[lease]\n", "[lease]\nspread = true\n")
    };
    let kubeconfig = clusters[0].least(&told(&clusters[0].kubeconfig(), "nobody"));
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let given = text.split("token: \"").nth(1).unwrap();
    let given = given.split('"').next().unwrap();
    // A token each, by which the audit log tells one from the other.
    let texts = ["one", "two"].map(|name| {
        let own = kubeconfig.with_extension(name);
        let token = clusters[0].token("leadsman");
        std::fs::write(&own, text.replace(given, &token)).unwrap();
        std::fs::write(own.with_extension(format!("{name}.token")), token).unwrap();
        told(&own, name)
    });
    let since = jiff::Timestamp::now().to_string();
    let one = Guarded::started(&clusters[0], &texts[0]);
    until("one acts for all", || acts_for(&one.leadsman) == RELEASES);
    let two = Guarded::started(&clusters[0], &texts[1]);
    let mut replicas = [one.leadsman, two.leadsman];
    let is_even = |replicas: &[Leadsman; 2]| {
        until("each acts for half of them", || {
            replicas.iter().all(|one| acts_for(one) == RELEASES / 2)
        });
    };
    is_even(&replicas);
    // Any of them answers for all.
    for leadsman in &replicas {
        until_each(leadsman, &clusters, "steady, with a baseline", is_known);
    }
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(|| cluster.upgrade(&[DEAD]));
        }
    });
    for leadsman in &replicas {
        until_ended(leadsman, &clusters, 2);
    }
    // Each has rolled back its half.
    for name in ["one", "two"] {
        let writes = writes_since(&clusters[0], name, &since);
        let made = writes
            .iter()
            .filter(|write| write.starts_with("\"create\" \"secrets\" \"sh.helm"));
        assert_eq!(made.count(), RELEASES / 2, "{name}: {writes:#?}");
    }

    // One dies in the middle; the other one goes on with all of them.
    until_each(&replicas[1], &clusters, "steady, with a baseline", is_known);
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(|| cluster.upgrade(&[r#"api.image="mykadoo-api:4""#, DEAD]));
        }
    });
    until_each(&replicas[1], &clusters, "it is judged", |release| {
        release["revision"].as_u64() >= Some(4) && release["phase"] != "idle"
    });
    replicas[0].kill();
    let began = Instant::now();
    until("the other one acts for all", || {
        acts_for(&replicas[1]) == RELEASES
    });
    println!("the other one acts for all within {:?}", began.elapsed());
    until_ended(&replicas[1], &clusters, 4);
    for cluster in &clusters {
        assert_eq!(
            cluster.statuses(Helm::Four),
            "1 superseded, 2 superseded, 3 superseded, 4 superseded, 5 deployed"
        );
    }

    // It comes back, has its half again, and gives it away when it ends.
    replicas[0].start_again();
    is_even(&replicas);
    for leadsman in &replicas {
        until_each(leadsman, &clusters, "idle", |release| {
            release["phase"] == "idle"
        });
    }
    // Whoever tells of a release goes on where the one before it ended.
    let told = told_since(&replicas[0]);
    assert_eq!(told.len(), RELEASES, "{told:#?}");
    assert_eq!(told, told_since(&replicas[1]));
    replicas[1].signal("TERM");
    let began = Instant::now();
    until("one acts for all again", || {
        acts_for(&replicas[0]) == RELEASES
    });
    println!(
        "after a clean stop one acts for all within {:?}",
        began.elapsed()
    );
    until_each(&replicas[0], &clusters, "idle", |release| {
        release["phase"] == "idle"
    });
    until("all of them are told of as before", || {
        told_since(&replicas[0]) == told
    });
}
