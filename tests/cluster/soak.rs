//! A long watch: two replicas guard several releases for a while, in which good and bad revisions come, replicas are
//! killed, configurations change, and the API server goes away, in an order that a seed decides. Two minutes, or as
//! many seconds as `LEADSMAN_TEST_SOAK` says. Whoever runs it must run it alone.
//!
//! What happened is written to `soak.log` in the folder of the tests' temporary files.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guarded::{Guarded, Settings, configuration};
use crate::program::{Leadsman, try_get, until};
use crate::replicas::as_replica;
use crate::rig::{Cluster, Helm, start, stop};
use crate::rolled_back::DEAD;

const SEED: u64 = 20_261_124;

/// So many releases are deployed at the same time.
const RELEASES: usize = 4;

/// A revision's whole watch with its rollback, also when replicas change and the API server is away.
const PATIENCE: Duration = Duration::from_secs(300);

const CRASHES: &str = r#"api.sim={"crash-after":"2s"}"#;
const ONE_DEAD: &str = r#"api.sim={"answers":{"/api/health/db":"status:503"}}"#;
const GOOD: &str = "api.sim={}";
const SLOW: &str = r#"api.sim={"start":"4s"}"#;

/// All that happened, with the seconds since the start.
struct Log {
    began: Instant,
    text: Mutex<String>,
}

impl Log {
    fn note(&self, what: &str) {
        let line = format!("{:7.1} {what}", self.began.elapsed().as_secs_f64());
        println!("{line}");
        let mut text = self.text.lock().unwrap();
        let _ = writeln!(text, "{line}");
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("soak.log");
        let _ = std::fs::write(file, text.as_str());
    }
}

/// The two replicas; whoever asks them may find one of them dead.
struct Both<'a> {
    clusters: &'a [Cluster],
    replicas: [Mutex<Guarded<'a>>; 2],
}

impl Both<'_> {
    /// What either of them answers, so that it is about the releases.
    fn ask(&self, path: &str) -> Option<Value> {
        self.replicas.iter().find_map(|replica| {
            let address = replica.lock().unwrap().leadsman.address();
            serde_json::from_str(&try_get(address, path)?).ok()
        })
    }

    /// How the watch of a revision ended, if it has.
    fn outcome(&self, cluster: &Cluster, revision: u64) -> Option<Value> {
        let path = format!("/api/v1/releases/{}/mykadoo/rollouts", cluster.namespace);
        let all = self.ask(&path)?["rollouts"].as_array().cloned()?;
        let mut of = all;
        of.retain(|finished| finished["revision"] == revision && finished["outcome"].is_string());
        assert!(
            of.len() <= 1,
            "revision {revision} was judged twice: {of:?}"
        );
        of.pop()
    }

    /// What both have said so far, beside the log of the test.
    fn keep_logs(&self) {
        for (replica, name) in self.replicas.iter().zip(["one", "two"]) {
            keep_log(name, &replica.lock().unwrap().leadsman);
        }
    }

    fn leader(&self) -> Option<usize> {
        (0..2).find(|which| {
            let address = self.replicas[*which].lock().unwrap().leadsman.address();
            try_get(address, "/metrics")
                .is_some_and(|page| page.lines().any(|line| line == "leadsman_leader 1"))
        })
    }
}

/// Adds what a replica has said since its start to its file.
fn keep_log(name: &str, leadsman: &Leadsman) {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{name}.log"));
    let opened = OpenOptions::new().create(true).append(true).open(file);
    if let Ok(mut file) = opened {
        let _ = file.write_all(leadsman.log().as_bytes());
    }
}

/// Memory of a process, in KiB; none when it is gone.
fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Memory of a process and of all that it has started, as helm, in KiB.
pub(crate) fn with_children(pid: u32) -> u64 {
    let folders = std::fs::read_dir("/proc").unwrap().flatten();
    let parents: Vec<(u32, u32)> = folders
        .filter_map(|folder| {
            let pid = folder.file_name().to_str()?.parse().ok()?;
            let status = std::fs::read_to_string(folder.path().join("status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            Some((pid, parent?.trim().parse().ok()?))
        })
        .collect();
    let mut all = vec![pid];
    let mut seen = 0;
    while let Some(parent) = all.get(seen).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        all.extend(children.map(|(child, _)| *child));
        seen += 1;
    }
    all.into_iter().filter_map(resident).sum()
}

/// What the chart lets a pod of Leadsman use, in KiB.
pub(crate) fn limit() -> u64 {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/leadsman/values.yaml");
    let values: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let limit = values["resources"]["limits"]["memory"].as_str().unwrap();
    let mebibytes = limit.strip_suffix("Mi").expect("the limit is in Mi");
    mebibytes.parse::<u64>().unwrap() * 1024
}

#[test]
fn good_and_bad_revisions_while_much_else_goes_wrong() {
    let seconds = std::env::var("LEADSMAN_TEST_SOAK").ok();
    let seconds = seconds.map_or(120, |text| text.parse().expect("seconds"));
    let Some(first) = Cluster::new("soak", Helm::Four) else {
        return;
    };
    let mut clusters = vec![first];
    clusters.extend((1..RELEASES).map(|_| Cluster::new("soak", Helm::Four).unwrap()));
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(|| cluster.install(&[r#"api.image="mykadoo-api:1""#]));
        }
    });
    let settings = Settings {
        // Long enough for a verdict also where the replica that acts is killed twice in it.
        watch: 120,
        rollback: "max_per_day = 100\n",
        ..Settings::by(Helm::Four)
    };
    let told = |kubeconfig: &Path, name: &str, more: &str| {
        let mut text = configuration(&clusters[0], &settings, kubeconfig);
        for cluster in &clusters[1..] {
            let other = configuration(cluster, &settings, kubeconfig);
            let id = format!("[[release]]\nid = {:?}\n", cluster.namespace);
            text += &other[other.find("[[release]]").unwrap()..].replace("[[release]]\n", &id);
        }
        as_replica(&clusters[0], name, &text) + more
    };
    let kubeconfig = clusters[0].least(&told(&clusters[0].kubeconfig(), "nobody", ""));
    let texts = ["one", "two"].map(|name| told(&kubeconfig, name, ""));
    let both = Both {
        clusters: &clusters,
        replicas: texts
            .each_ref()
            .map(|text| Mutex::new(Guarded::allowed(&clusters[0], text))),
    };
    let log = Log {
        began: Instant::now(),
        text: Mutex::default(),
    };
    for name in ["one", "two"] {
        let _ = std::fs::remove_file(
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{name}.log")),
        );
    }
    log.note(&format!("seed {SEED}, {RELEASES} releases, {seconds} s"));
    let is_over = AtomicBool::new(false);
    // Nobody deploys while the API server is away: a helm that was cut off leaves a mess of its own.
    let deploys = RwLock::new(());
    let outcomes: Mutex<Vec<(bool, String)>> = Mutex::default();
    let memory: Mutex<Vec<u64>> = Mutex::default();
    let with_helm = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let deployers: Vec<_> = clusters
            .iter()
            .enumerate()
            .map(|(number, cluster)| {
                let (both, log, is_over) = (&both, &log, &is_over);
                let (deploys, outcomes) = (&deploys, &outcomes);
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(SEED + number as u64);
                    let mut revision = 1;
                    while !is_over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_secs(random.u64(3..12)));
                        let (is_bad, what) =
                            *random.choice(&KINDS).expect("there are kinds of revisions");
                        revision += 1;
                        let image = format!("api.image=\"mykadoo-api:{revision}\"");
                        {
                            let _turn = deploys.read().unwrap();
                            cluster.upgrade(&[&image, what]);
                        }
                        log.note(&format!("release {number}: revision {revision}, {what}"));
                        let began = Instant::now();
                        let ended = loop {
                            if let Some(ended) = both.outcome(cluster, revision) {
                                break ended;
                            }
                            if began.elapsed() >= PATIENCE {
                                let path = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
                                let release = both.ask(&path).unwrap_or_default();
                                both.keep_logs();
                                panic!(
                                    "revision {revision} of release {number} never ended; {:?}\n{release:#}",
                                    cluster.history(Helm::Four)
                                );
                            }
                            std::thread::sleep(Duration::from_millis(500));
                        };
                        let outcome = ended["outcome"].as_str().unwrap_or("").to_owned();
                        log.note(&format!(
                            "release {number}: revision {revision} {outcome}: {}",
                            ended["text"].as_str().unwrap_or("")
                        ));
                        outcomes.lock().unwrap().push((is_bad, outcome.clone()));
                        if outcome == "rolled_back" {
                            revision += 1;
                        }
                    }
                    revision
                })
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let pids = both
                    .replicas
                    .each_ref()
                    .map(|replica| replica.lock().unwrap().leadsman.pid());
                let used = pids.into_iter().filter_map(resident).max().unwrap_or(0);
                memory.lock().unwrap().push(used);
                let all = pids.into_iter().map(with_children).max().unwrap_or(0);
                with_helm.fetch_max(all, Ordering::Relaxed);
                // A helm runs for a second or two.
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        trouble(&both, &texts, &deploys, &log, seconds);
        is_over.store(true, Ordering::Relaxed);
        let revisions: Vec<u64> = deployers
            .into_iter()
            .map(|deployer| deployer.join().unwrap())
            .collect();
        log.note(&format!(
            "the releases are at their revisions {revisions:?}"
        ));
    });

    let outcomes = outcomes.into_inner().unwrap();
    let count = |bad: bool, outcome: &str| {
        outcomes
            .iter()
            .filter(|(is_bad, ended)| *is_bad == bad && ended == outcome)
            .count()
    };
    let bad = outcomes.iter().filter(|(is_bad, _)| *is_bad).count();
    log.note(&format!(
        "{bad} bad revisions, {} rolled back; {} good ones, {} kept",
        count(true, "rolled_back"),
        outcomes.len() - bad,
        count(false, "passed")
    ));
    assert!(bad > 0 && bad < outcomes.len(), "{outcomes:?}");
    assert_eq!(count(true, "rolled_back"), bad, "{outcomes:?}");
    assert_eq!(count(false, "rolled_back"), 0, "{outcomes:?}");
    let made: usize = clusters
        .iter()
        .map(|cluster| {
            let writes = cluster.writes(&clusters[0].account());
            let made = writes
                .iter()
                .filter(|write| write.starts_with("create secrets/sh.helm"));
            made.count()
        })
        .sum();
    assert_eq!(made, bad, "each was rolled back once, and nothing else was");
    let memory = memory.into_inner().unwrap();
    let most = |part: &[u64]| part.iter().copied().max().unwrap();
    let (early, late) = memory.split_at(memory.len() / 2);
    let (early, late) = (most(early), most(late));
    log.note(&format!(
        "at most {early} KiB of memory in the first half, {late} KiB in the second"
    ));
    let (with_helm, limit) = (with_helm.into_inner(), limit());
    log.note(&format!(
        "at most {with_helm} KiB with the helm that it runs; a pod of the chart may use {limit} KiB"
    ));
    assert!(late < early + early / 4, "{early} {late}");
    assert!(with_helm < limit, "{with_helm} {limit}");
}

/// Whether a revision is bad, and its values.
const KINDS: [(bool, &str); 6] = [
    (true, DEAD),
    (true, CRASHES),
    (true, ONE_DEAD),
    (false, GOOD),
    (false, GOOD),
    (false, SLOW),
];

/// Kills, reloads and cuts off for so long.
fn trouble(both: &Both<'_>, texts: &[String; 2], deploys: &RwLock<()>, log: &Log, seconds: u64) {
    let mut random = fastrand::Rng::with_seed(SEED);
    while log.began.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_secs(random.u64(8..20)));
        match random.u8(0..4) {
            0 => {
                let Some(which) = both.leader() else { continue };
                log.note("the replica that acts is killed");
                let mut replica = both.replicas[which].lock().unwrap();
                replica.leadsman.kill();
                keep_log(["one", "two"][which], &replica.leadsman);
                replica.leadsman.start_again();
            }
            1 => {
                let away = random.u64(2..7);
                let _turn = deploys.write().unwrap();
                log.note(&format!("the API server goes away for {away} s"));
                stop("apiserver");
                std::thread::sleep(Duration::from_secs(away));
                start("apiserver");
                until("the API server is ready", || {
                    both.clusters[0].text("/readyz") == "ok"
                });
            }
            2 => {
                log.note("another probe");
                let number = random.u32(..);
                let more = format!("[[release.probe]]\nname = \"more\"\npath = \"/?{number}\"\n");
                for (replica, text) in both.replicas.iter().zip(texts) {
                    let replica = replica.lock().unwrap();
                    replica.leadsman.rewrite(&format!("{text}{more}"));
                    replica.leadsman.signal("HUP");
                }
            }
            _ => {
                log.note("the replica that acts is ended");
                let Some(which) = both.leader() else { continue };
                let mut replica = both.replicas[which].lock().unwrap();
                replica.leadsman.signal("TERM");
                replica.leadsman.end();
                keep_log(["one", "two"][which], &replica.leadsman);
                replica.leadsman.start_again();
            }
        }
    }
}
