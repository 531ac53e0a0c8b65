//! Several replicas: all probe, one acts, and another goes on where that one ends, however it ends.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::commands::leadsman;
use crate::guarded::{Guarded, Settings, configuration};
use crate::program::{Leadsman, until, unused_port};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;

const SERVER: &str = "https://127.0.0.1:6443";

/// Two replicas that guard the app of a cluster.
fn two(cluster: &Cluster) -> [Guarded<'_>; 2] {
    let configurations = configurations(cluster, [SERVER, SERVER], cluster.helm.path());
    configurations.map(|text| Guarded::allowed(cluster, &text))
}

/// What two replicas are told, each with its own way to the API server.
fn configurations(cluster: &Cluster, servers: [&str; 2], helm: PathBuf) -> [String; 2] {
    let settings = Settings {
        watch: 120,
        helm,
        ..Settings::by(cluster.helm)
    };
    let controllers = |kubeconfig: &Path, name: &str| {
        let text = configuration(cluster, &settings, kubeconfig);
        as_replica(cluster, name, &text)
    };
    let kubeconfig = cluster.least(&controllers(&cluster.kubeconfig(), "nobody"));
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let given = text.split("token: \"").nth(1).unwrap();
    let given = given.split('"').next().unwrap();
    let mut named = ["one", "two"].into_iter();
    servers.map(|server| {
        let name = named.next().unwrap();
        let own = kubeconfig.with_extension(name);
        // A token each, by which the audit log tells one from the other.
        let token = cluster.token("leadsman");
        let text = text.replace(given, &token).replace(SERVER, server);
        std::fs::write(&own, text).unwrap();
        std::fs::write(own.with_extension(format!("{name}.token")), token).unwrap();
        controllers(&own, name)
    })
}

/// A configuration with a state and a Lease that replicas share.
pub(crate) fn as_replica(cluster: &Cluster, name: &str, text: &str) -> String {
    let port = unused_port();
    let namespace = &cluster.namespace;
    let text = text.replace(
        "[state]\ndirectory = \"state\"\n",
        &format!("[state]\nconfig_map = \"leadsman\"\nnamespace = {namespace:?}\n"),
    );
    format!(
        "[serve]\nlisten = \"127.0.0.1:{port}\"\n\
         [lease]\nnamespace = {namespace:?}\nidentity = {name:?}\naddress = \"http://127.0.0.1:{port}\"\n{text}"
    )
}

/// A way to the API server that can be cut.
struct Way {
    address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Way {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new(AtomicBool::new(false));
        let cut = Arc::clone(&is_cut);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect("127.0.0.1:6443") else {
                    continue;
                };
                for (mut from, mut to) in [
                    (stream.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, stream),
                ] {
                    let cut = Arc::clone(&cut);
                    std::thread::spawn(move || {
                        let mut buffer = [0; 16 * 1024];
                        while let Ok(count @ 1..) = from.read(&mut buffer) {
                            // As a network does it: nothing arrives, and nobody is told.
                            while cut.load(Ordering::Relaxed) {
                                std::thread::sleep(Duration::from_millis(50));
                            }
                            // What was on its way from a connection that was reset since is sent by nobody any more; of
                            // one that was closed in order the kernel goes on sending it.
                            if !matches!(from.take_error(), Ok(None)) {
                                break;
                            }
                            if to.write_all(&buffer[..count]).is_err() {
                                break;
                            }
                        }
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self { address, is_cut }
    }

    fn cut(&self, yes: bool) {
        self.is_cut.store(yes, Ordering::Relaxed);
    }
}

#[test]
fn one_that_is_cut_off_from_the_api_server_does_nothing_more() {
    let Some(cluster) = Cluster::new("cut", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let ways = [Way::open(), Way::open()];
    let urls = ways
        .each_ref()
        .map(|way| format!("https://{}", way.address));
    let told = configurations(&cluster, [&urls[0], &urls[1]], cluster.helm.path());
    let both = told.map(|text| Guarded::allowed(&cluster, &text));
    let (way, other) = if leadership(&both[0]) {
        (&ways[0], &ways[1])
    } else {
        (&ways[1], &ways[0])
    };
    let (acts, waits) = apart(both);
    cluster.upgrade(&[DEAD]);
    acts.until("it is watched", |release| release["phase"] == "analyzing");
    way.cut(true);
    until("it acts no more", || !leadership(&acts));
    assert!(!leadership(&waits), "before another one may");
    until("the other one acts", || leadership(&waits));
    rolled_back_once(&cluster, &waits);
    way.cut(false);
    // Back again, it answers for the other one, and takes its place when that is cut off in turn.
    rolled_back_once(&cluster, &acts);
    the_other_one_writes_nothing(&cluster);
    other.cut(true);
    until("it acts again", || leadership(&acts));
    rolled_back_once(&cluster, &acts);
    assert_eq!(transitions(&cluster), 3);
}

pub(crate) fn leadership(guarded: &Guarded<'_>) -> bool {
    let page = guarded.leadsman.get("/metrics").body;
    page.lines().any(|line| line == "leadsman_leader 1")
}

/// The one that acts, and the one that waits.
fn apart(both: [Guarded<'_>; 2]) -> (Guarded<'_>, Guarded<'_>) {
    let [one, two] = both;
    assert_ne!(leadership(&one), leadership(&two), "one of two acts");
    if leadership(&one) {
        (one, two)
    } else {
        (two, one)
    }
}

fn lease(cluster: &Cluster) -> Value {
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/leadsman",
        cluster.namespace
    );
    cluster.get(&path)["spec"].clone()
}

fn transitions(cluster: &Cluster) -> Value {
    lease(cluster)["leaseTransitions"].clone()
}

/// Which of them holds the Lease: `one` or `two`.
fn holder(cluster: &Cluster) -> String {
    let identity = lease(cluster)["holderIdentity"].clone();
    let identity = identity.as_str().unwrap();
    identity.split('_').next().unwrap().to_owned()
}

/// What a replica, or its helm, has changed since a moment, by the audit log: who holds the token is named there.
pub(crate) fn writes_since(cluster: &Cluster, name: &str, since: &str) -> Vec<String> {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let token = cluster
        .folder()
        .join(format!("{}.{name}.token", cluster.namespace));
    let token = std::fs::read_to_string(token).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap());
    let claims: Value = serde_json::from_slice(&claims.unwrap()).unwrap();
    let credential = format!("JTI={}", claims["jti"].as_str().unwrap());
    let events = crate::rig::audited(cluster.folder(), &credential).into_iter();
    let mut is_known = false;
    let writes = events
        .filter(|event| {
            let ids = &event["user"]["extra"]["authentication.kubernetes.io/credential-id"];
            let is_theirs = ids[0] == credential.as_str();
            is_known |= is_theirs;
            let code = event["responseStatus"]["code"].as_u64().unwrap_or(0);
            is_theirs && code < 300 && event["requestReceivedTimestamp"].as_str() > Some(since)
        })
        .filter(|event| !crate::rig::is_tried(event))
        // Questions are no writes, though they are posted.
        .filter(|event| event["objectRef"]["apiGroup"] != "authorization.k8s.io")
        .map(|event| {
            let of = &event["objectRef"];
            format!("{} {} {}", event["verb"], of["resource"], of["name"])
        })
        .collect();
    assert!(is_known, "the audit log tells who has which token");
    writes
}

/// Nothing was written by the one that acted before since the other one acts.
#[track_caller]
fn the_other_one_writes_nothing(cluster: &Cluster) {
    let since = lease(cluster)["acquireTime"].as_str().unwrap().to_owned();
    let other = if holder(cluster) == "one" {
        "two"
    } else {
        "one"
    };
    let writes = writes_since(cluster, other, &since);
    assert!(writes.is_empty(), "{writes:#?}");
    assert!(!writes_since(cluster, &holder(cluster), &since).is_empty());
}

/// The bad revision was rolled back once, by whoever it was.
#[track_caller]
fn rolled_back_once(cluster: &Cluster, guarded: &Guarded<'_>) {
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    guarded.until("idle", |release| release["phase"] == "idle");
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
    let writes = cluster.writes(&cluster.account());
    let made = |what: &str| writes.iter().filter(|write| *write == what).count();
    assert_eq!(
        made("create secrets/sh.helm.release.v1.mykadoo.v3"),
        1,
        "{writes:#?}"
    );
    assert_eq!(made("create secrets/sh.helm.release.v1.mykadoo.v4"), 0);
}

/// The same where the one that acted was killed with its helm at work: helm reaches the API server through it, so what had
/// not ended by then is put right, and done by a helm of the other one.
#[track_caller]
fn rolled_back_by_either(cluster: &Cluster, guarded: &Guarded<'_>) {
    let ended = guarded.outcome(2);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    let statuses = cluster.statuses(Helm::Four);
    if statuses.contains("4 ") {
        let expected = "1 superseded, 2 superseded, 3 failed, 4 deployed";
        assert_eq!(statuses, expected);
        let writes = cluster.writes(&cluster.account());
        let made = |what: &str| writes.iter().filter(|write| *write == what).count();
        for revision in [3, 4] {
            let create = format!("create secrets/sh.helm.release.v1.mykadoo.v{revision}");
            assert_eq!(made(&create), 1, "{writes:#?}");
        }
    } else {
        rolled_back_once(cluster, guarded);
    }
}

#[test]
fn of_two_replicas_one_acts_and_any_of_them_answers_for_it() {
    let Some(cluster) = Cluster::new("two", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let (mut acts, waits) = apart(two(&cluster));
    assert_eq!(transitions(&cluster), 1);
    cluster.upgrade(&[DEAD]);
    // Asked of the one that waits.
    rolled_back_once(&cluster, &waits);
    assert!(!leadership(&waits));
    // Both probe.
    for guarded in [&acts, &waits] {
        let probes: Value =
            serde_json::from_str(&guarded.leadsman.get("/api/v1/probes").body).unwrap();
        assert!(probes["probes"][0]["totals"]["success"].as_u64() > Some(3));
    }
    let page = waits.leadsman.get("/metrics").body;
    assert!(page.contains("leadsman_probe_success"), "{page}");
    assert!(
        !page.contains("leadsman_release_phase{"),
        "whoever waits does not say where a release stands: {page}"
    );
    let (stops, renewed) = (holder(&cluster), lease(&cluster)["renewTime"].clone());
    let began = Instant::now();
    acts.leadsman.signal("TERM");
    until("the other one acts", || leadership(&waits));
    println!(
        "after a clean stop the other one acts within {:?}",
        began.elapsed()
    );
    assert_eq!(acts.leadsman.exit_code(Duration::from_secs(60)), Some(0));
    assert_eq!(transitions(&cluster), 2);
    // What it counted for the objectives is written while it still may.
    let last = writes_since(&cluster, &stops, renewed.as_str().unwrap());
    let long_windows = |write: &String| write.contains("leadsman.spans");
    let gives_back = last.iter().rposition(|write| write.contains("leases"));
    let writes_spans = last.iter().position(long_windows);
    assert!(
        writes_spans.is_some() && writes_spans < gives_back,
        "{last:#?}"
    );
    // It knows what has happened.
    let finished = waits.outcome(2);
    assert_eq!(finished["outcome"], "rolled_back");
    cluster.upgrade(&["api.sim={}", r#"api.image="mykadoo-api:4""#]);
    let ended = waits.outcome(4);
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
}

/// Kills the one that acts when the release is in a phase; the other one brings it to the end.
fn killed(phase: &str, bad: &[&str]) {
    let Some(cluster) = Cluster::new("killed", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let token = cluster
        .folder()
        .join(format!("{}.own-token", cluster.namespace));
    std::fs::write(&token, "a token that is long enough").unwrap();
    let told = configurations(&cluster, [SERVER, SERVER], cluster.helm.path());
    let (mut acts, waits) = apart(told.map(|text| {
        let lease = format!("token_file = {:?}\n[lease]\n", token.display().to_string());
        Guarded::allowed(&cluster, &text.replacen("[lease]\n", &lease, 1))
    }));
    cluster.upgrade(bad);
    acts.until(phase, |release| release["phase"] == phase);
    let began = Instant::now();
    acts.leadsman.kill();
    until("the other one acts", || leadership(&waits));
    println!(
        "killed while {phase}: the other one acts within {:?}",
        began.elapsed()
    );
    goes_on(&waits);
    if phase == "rolling_back" {
        rolled_back_by_either(&cluster, &waits);
    } else {
        rolled_back_once(&cluster, &waits);
    }
    if phase == "verifying" {
        // The watch was recorded by the other one, whose disk is gone with it.
        let asks = ["explain", "mykadoo", "--revision", "2", "--token-file"];
        let (code, text) = leadsman(&waits, &[&asks[..], &[token.to_str().unwrap()]].concat());
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("made things worse"), "{text}");
        assert!(text.contains("The cluster when the verdict fell"), "{text}");
    }
}

/// Whoever has begun to act goes on with what is stored, within 5 s.
#[track_caller]
fn goes_on(guarded: &Guarded<'_>) {
    let began = Instant::now();
    guarded.until("it goes on", |release| {
        let phase = release["phase"].as_str().unwrap_or("");
        release["revision"].as_u64() >= Some(2) && !matches!(phase, "" | "not_installed")
    });
    let took = began.elapsed();
    println!("it goes on with what is stored within {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Between the end of one case and the beginning of the next.
#[test]
fn one_that_is_killed_between_two_bad_revisions_is_followed_by_the_other() {
    let Some(cluster) = Cluster::new("between", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let (mut acts, waits) = apart(two(&cluster));
    cluster.upgrade(&[DEAD]);
    rolled_back_once(&cluster, &acts);
    acts.leadsman.kill();
    let other = r#"api.sim={"answers":{"/api/health/db":"status:503"}}"#;
    cluster.upgrade(&[r#"api.image="mykadoo-api:4""#, other]);
    until("the other one acts", || leadership(&waits));
    // Not before: it would have the same right to the Lease.
    acts.leadsman.start_again();
    let ended = waits.outcome(4);
    assert_eq!(
        ended["outcome"],
        "rolled_back",
        "{ended:#}\n{}",
        waits.leadsman.log()
    );
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 superseded, 4 superseded, 5 deployed"
    );
}

/// Both listen by TLS, so what is passed on goes by TLS as well.
#[test]
fn any_of_them_answers_for_the_other_by_tls() {
    let Some(cluster) = Cluster::new("by-tls", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let file = |name: &str| cluster.folder().join("pki").join(name);
    let tables = format!(
        "[serve.tls]\ncert_file = {:?}\nkey_file = {:?}\n[lease.tls]\nca_file = {:?}\n[lease]\n",
        file("server.crt"),
        file("server.key"),
        file("ca.crt")
    );
    let told = configurations(&cluster, [SERVER, SERVER], cluster.helm.path());
    let both = told.map(|text| {
        let text = text.replacen("[lease]\n", &tables, 1);
        let text = text.replacen("address = \"http:", "address = \"https:", 1);
        Leadsman::run(&text, &[])
    });
    let ask = |leadsman: &Leadsman, path: &str| {
        let output = Command::new("curl")
            .args(["-s", "--max-time", "10", "--cacert"])
            .arg(file("ca.crt"))
            .arg(format!("https://{}{path}", leadsman.address()))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let leadership = |leadsman: &Leadsman| {
        let page = ask(leadsman, "/metrics");
        page.lines().any(|line| line == "leadsman_leader 1")
    };
    until("one acts", || both.iter().any(leadership));
    let waits = both.iter().find(|one| !leadership(one)).expect("one waits");
    let path = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
    until("the other one answers for it", || {
        let release: Value = serde_json::from_str(&ask(waits, &path)).unwrap_or_default();
        release["phase"] == "idle" && release["revision"] == 1
    });
    assert!(!leadership(waits));
}

/// To the one that takes over, the bad revision was there from the start.
#[test]
fn a_revision_that_comes_while_nobody_acts_is_rolled_back() {
    let Some(cluster) = Cluster::new("nobody", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let (mut acts, waits) = apart(two(&cluster));
    acts.leadsman.kill();
    cluster.upgrade(&[DEAD]);
    until("the other one acts", || leadership(&waits));
    rolled_back_once(&cluster, &waits);
}

/// The look before a rollback takes a moment only, so it is held up: its helm does not tell its version.
#[test]
fn one_that_is_killed_while_it_looks_before_a_rollback_is_followed_by_the_other() {
    let Some(cluster) = Cluster::new("look", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let held = cluster.held_helm("*");
    let told = configurations(&cluster, [SERVER, SERVER], held.path.clone());
    let (mut acts, waits) = apart(told.map(|text| Guarded::allowed(&cluster, &text)));
    cluster.upgrade(&[DEAD]);
    acts.until("it is watched", |release| release["phase"] == "analyzing");
    held.hold();
    acts.until("it looks", |release| release["phase"] == "preflight");
    acts.leadsman.kill();
    held.let_go();
    until("the other one acts", || leadership(&waits));
    rolled_back_once(&cluster, &waits);
}

/// What a replica runs with so that its clock can be set; `None` where that is not installed.
fn clock(file: &Path) -> Option<Vec<(String, String)>> {
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    let is_there = Path::new(library).exists();
    assert!(is_there || std::env::var_os("LEADSMAN_TEST_ALL").is_none());
    let named = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    is_there.then(|| {
        vec![
            named("LD_PRELOAD", library),
            named("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            named("FAKETIME_NO_CACHE", "1"),
            named("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            named("NO_FAKE_STAT", "1"),
        ]
    })
}

/// The clocks of machines differ, and are set. Nobody loses the Lease by that, or takes it, and a watch goes on.
#[test]
fn clocks_that_differ_and_jump_change_nothing() {
    let Some(cluster) = Cluster::new("clocks", Helm::Four) else {
        return;
    };
    let files = ["one", "two"].map(|name| {
        cluster
            .folder()
            .join(format!("{}.{name}.clock", cluster.namespace))
    });
    let set = |file: &Path, offset: &str| {
        // In one step, as it is read at any time.
        let new = file.with_extension("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(new, file).unwrap();
    };
    set(&files[0], "+40m");
    set(&files[1], "-20s");
    let Some(environments) = clock(&files[0]).zip(clock(&files[1])) else {
        return;
    };
    cluster.install(&[]);
    let told = configurations(&cluster, [SERVER, SERVER], cluster.helm.path());
    let mut environments = [environments.0, environments.1].into_iter();
    let both = told.map(|text| {
        let environment = environments.next().unwrap();
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Guarded::allowed_in(&cluster, &text, &environment)
    });
    let started = |guarded: &Guarded<'_>| -> f64 {
        let page = guarded.leadsman.get("/metrics").body;
        let name = "leadsman_config_last_reload_success_timestamp_seconds ";
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().parse().unwrap()
    };
    let apart_by = started(&both[0]) - started(&both[1]);
    assert!(apart_by > 2000.0, "the clocks are set: {apart_by}");
    let (acts, waits) = apart(both);
    cluster.upgrade(&[DEAD]);
    acts.until("it is watched", |release| release["phase"] == "analyzing");
    for offset in ["+50m", "-30s", "+0"] {
        for file in &files {
            set(file, offset);
        }
        std::thread::sleep(Duration::from_secs(3));
    }
    rolled_back_once(&cluster, &acts);
    assert!(leadership(&acts) && !leadership(&waits));
    assert_eq!(transitions(&cluster), 1);
}

/// The first one acts, with a clock that differs by so much from that of the other, and is killed while it watches.
fn killed_with_another_clock(offsets: [&str; 2]) {
    let Some(cluster) = Cluster::new("skewed", Helm::Four) else {
        return;
    };
    let file = |name: &str| {
        cluster
            .folder()
            .join(format!("{}.{name}.clock", cluster.namespace))
    };
    let files = ["one", "two"].map(file);
    for (file, offset) in files.iter().zip(offsets) {
        std::fs::write(file, format!("{offset}\n")).unwrap();
    }
    let Some(environments) = clock(&files[0]).zip(clock(&files[1])) else {
        return;
    };
    cluster.install(&[]);
    let told = configurations(&cluster, [SERVER, SERVER], cluster.helm.path());
    let start = |text: &str, environment: &[(String, String)]| {
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        Guarded::allowed_in(&cluster, text, &environment)
    };
    let mut acts = start(&told[0], &environments.0);
    until("it acts", || leadership(&acts));
    let waits = start(&told[1], &environments.1);
    cluster.upgrade(&[DEAD]);
    acts.until("it is watched", |release| release["phase"] == "analyzing");
    acts.leadsman.kill();
    until("the other one acts", || leadership(&waits));
    goes_on(&waits);
    rolled_back_once(&cluster, &waits);
}

#[test]
fn one_whose_clock_is_ahead_is_followed_by_another() {
    killed_with_another_clock(["+40m", "+0"]);
}

#[test]
fn one_whose_clock_is_behind_is_followed_by_another() {
    // The certificates of the rig are of today, so it is the other one that is ahead.
    killed_with_another_clock(["+0", "+40m"]);
}

/// Its pods start slowly, so that it has not settled when the other one goes on.
#[test]
fn one_that_is_killed_while_a_revision_settles_is_followed_by_the_other() {
    killed("rolling_out", &[DEAD, r#"api.sim.start="12s""#]);
}

#[test]
fn one_that_is_killed_while_it_watches_is_followed_by_the_other() {
    killed("analyzing", &[DEAD]);
}

#[test]
fn one_that_is_killed_while_it_rolls_back_is_followed_by_the_other() {
    killed("rolling_back", &[DEAD]);
}

#[test]
fn one_that_is_killed_while_it_verifies_is_followed_by_the_other() {
    killed("verifying", &[DEAD]);
}

/// What a program has started, by any of its threads, and has not ended.
fn children(pid: u32) -> Vec<u32> {
    // None of one that has ended.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten();
    let of = |thread: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(thread.ok()?.path().join("children")).ok()
    };
    let lines: Vec<String> = threads.filter_map(of).collect();
    let pids = lines.iter().flat_map(|line| line.split_whitespace());
    pids.map(|pid| pid.parse().unwrap()).collect()
}

/// Sends a signal to a program and to what it has started.
fn signal_all(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), pid.to_string()])
        .status();
    // A child may have ended since it was listed.
    let is_gone = || !Path::new(&format!("/proc/{pid}")).exists();
    assert!(sent.unwrap().success() || is_gone());
    for child in children(pid) {
        signal_all(child, name);
    }
}

/// The one that acts stands still, with its helm, for longer than its Lease, and goes on when all is over.
fn stood_still(phase: &str) {
    let Some(cluster) = Cluster::new("still", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    // The look before takes a moment only, so it is held up as well: its helm does not tell its version.
    let held = cluster.held_helm(if phase == "preflight" {
        "*"
    } else {
        "rollback*"
    });
    let told = configurations(&cluster, [SERVER, SERVER], held.path.clone());
    let (acts, waits) = apart(told.map(|text| Guarded::allowed(&cluster, &text)));
    cluster.upgrade(&[DEAD]);
    acts.until("it is watched", |release| release["phase"] == "analyzing");
    if matches!(phase, "preflight" | "rolling_back") {
        held.hold();
    }
    acts.until(phase, |release| release["phase"] == phase);
    signal_all(acts.leadsman.pid(), "STOP");
    held.let_go();
    until("the other one acts", || leadership(&waits));
    rolled_back_once(&cluster, &waits);
    signal_all(acts.leadsman.pid(), "CONT");
    until("it has noticed", || !leadership(&acts));
    // A renewal that it was about to send is refused; otherwise it looks at the clock first.
    until("it says so", || {
        let log = acts.leadsman.log();
        log.contains("could not be renewed in time") || log.contains("has taken the Lease")
    });
    // It answers for the other one from now on.
    rolled_back_once(&cluster, &acts);
    assert_eq!(transitions(&cluster), 2);
    assert!(leadership(&waits));
    the_other_one_writes_nothing(&cluster);
}

#[test]
fn one_that_stood_still_while_it_watched_does_nothing_more() {
    stood_still("analyzing");
}

#[test]
fn one_that_stood_still_while_it_looked_before_a_rollback_does_nothing_more() {
    stood_still("preflight");
}

#[test]
fn one_that_stood_still_while_it_rolled_back_does_nothing_more() {
    stood_still("rolling_back");
}

#[test]
fn one_that_stood_still_while_it_verified_does_nothing_more() {
    stood_still("verifying");
}

/// How the one that acts is lost.
#[derive(PartialEq)]
enum Lost {
    /// It stands still, with its helm, and goes on later.
    Stopped,
    /// Nothing that it or its helm sends arrives any more, until later.
    CutOff,
}

/// The one that acts is lost while its helm waits for a hook of 5 s, with its record written and the old objects not yet
/// there. The other one puts the record right and rolls the release back by a helm of its own.
fn lost_with_helm_half_way(name: &str, how: &Lost) {
    let Some(cluster) = Cluster::new(name, Helm::Four) else {
        return;
    };
    let slow = r#"hooks={"migrate":false,"rollback":"slow","sim":{}}"#;
    cluster.install(&[slow]);
    let ways = [Way::open(), Way::open()];
    let urls = ways
        .each_ref()
        .map(|way| format!("https://{}", way.address));
    let told = configurations(&cluster, [&urls[0], &urls[1]], cluster.helm.path());
    let both = told.map(|text| Guarded::allowed(&cluster, &text));
    let way = if leadership(&both[0]) {
        &ways[0]
    } else {
        &ways[1]
    };
    let (acts, waits) = apart(both);
    cluster.upgrade(&[DEAD, slow]);
    until("helm is at work", || {
        cluster.statuses(Helm::Three).contains("3 pending-rollback")
    });
    match how {
        Lost::Stopped => signal_all(acts.leadsman.pid(), "STOP"),
        Lost::CutOff => way.cut(true),
    }
    until("the other one acts", || leadership(&waits));
    let ended = waits.outcome(2);
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    let all = "1 superseded, 2 superseded, 3 failed, 4 deployed";
    assert_eq!(cluster.statuses(Helm::Four), all);
    match how {
        Lost::Stopped => signal_all(acts.leadsman.pid(), "CONT"),
        Lost::CutOff => way.cut(false),
    }
    until("it has noticed", || !leadership(&acts));
    until("its helm has ended", || {
        children(acts.leadsman.pid()).is_empty()
    });
    // It answers for the other one from now on.
    acts.until("idle", |release| release["phase"] == "idle");
    the_other_one_writes_nothing(&cluster);
    assert_eq!(cluster.statuses(Helm::Four), all);
    assert_eq!(transitions(&cluster), 2);
}

#[test]
fn one_that_stood_still_with_helm_half_way_does_nothing_more() {
    lost_with_helm_half_way("still-half", &Lost::Stopped);
}

#[test]
fn one_that_is_cut_off_with_helm_half_way_does_nothing_more() {
    lost_with_helm_half_way("cut-half", &Lost::CutOff);
}
