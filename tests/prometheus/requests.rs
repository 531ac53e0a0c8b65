//! Users' requests as a real Prometheus counts them reject a revision whose probes are all good.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{App, Leadsman, hanging_server, until};
use crate::prometheus::{Prometheus, present};

/// In the place of a share: the app answers nobody any more.
const STOPPED: u64 = u64::MAX;

/// An app that counts 40 requests a second, of which so many of a hundred fail.
fn counting_app(failing: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut last, mut good, mut bad) = (Instant::now(), 0.0, 0.0);
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            if failing.load(Ordering::Relaxed) == STOPPED {
                continue;
            }
            let passed = last.elapsed().as_secs_f64() * 40.0;
            last = Instant::now();
            let share = failing.load(Ordering::Relaxed) as f64 / 100.0;
            good += passed * (1.0 - share);
            bad += passed * share;
            let body = format!(
                "http_requests_total{{code=\"200\"}} {good:.0}\nhttp_requests_total{{code=\"500\"}} {bad:.0}\n"
            );
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    address
}

#[test]
fn users_requests_reject_where_all_probes_are_good() {
    if !present("prometheus") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    until("the app's pods are Ready", || {
        std::fs::read_to_string(history.join("pods.json"))
            .is_ok_and(|text| text.contains("\"complete\":1"))
    });
    let failing = Arc::new(AtomicU64::new(1));
    let prometheus = Prometheus::of(&[counting_app(Arc::clone(&failing))]);
    let one = "sum(increase(http_requests_total{code=\"500\"}[5s]))";
    until("requests are counted", || prometheus.query(one).len() == 1);
    let config = format!(
        "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
         interval = \"100ms\"\n[release.analysis]\nduration = \"60s\"\n\
         [release.requests]\nprometheus = \"http://{}\"\ninterval = \"5s\"\n\
         errors = 'sum(increase(http_requests_total{{code=~\"5..\"}}[$interval]))'\n\
         total = 'sum(increase(http_requests_total[$interval]))'\n\
         [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\nexpect = {{ status = 200 }}\n",
        app.url(),
        history.display(),
        prometheus.address
    );
    let leadsman = Leadsman::run(&config, &[]);
    until("there is a baseline", || {
        let probes: Value = serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
        probes["probes"][0]["totals"]["success"].as_u64() >= Some(100)
    });
    // Long enough for the first look at the requests, which comes after two seconds.
    std::thread::sleep(Duration::from_secs(3));
    let deploy = [
        "demo",
        "--deploy",
        "healthy",
        "--history",
        history.to_str().unwrap(),
    ];
    let deployed = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(deploy)
        .status()
        .unwrap();
    assert!(deployed.success());
    failing.store(30, Ordering::Relaxed);
    let mut ended = Value::Null;
    until("the watch is over", || {
        let reply = leadsman.get("/api/v1/releases/shop/mykadoo/rollouts");
        let rollouts: Value = serde_json::from_str(&reply.body).unwrap();
        ended = rollouts["rollouts"]
            .as_array()
            .and_then(|all| all.last().cloned())
            .unwrap_or_default();
        !ended.is_null()
    });
    assert_eq!(
        ended["reason"],
        "error_rate:requests",
        "{ended:#}\n{}",
        leadsman.log()
    );
    assert_eq!(ended["outcome"], "rolled_back", "{ended:#}");
    // Prometheus goes away: that is said once, and is evidence of nothing.
    drop(prometheus);
    until("it is said", || {
        leadsman.said("cannot be counted, and count for nothing")
    });
}

/// What is answered by a Prometheus that has counted 2 errors among 400 requests, until it hangs.
fn prometheus_that_may_hang(hangs: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().flatten() {
            if hangs.load(Ordering::Relaxed) {
                kept.push(stream);
                continue;
            }
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap_or(0);
            let is_errors = String::from_utf8_lossy(&buffer[..count]).contains("errors");
            let number = if is_errors { 2 } else { 400 };
            let body = format!(
                "{{\"status\":\"success\",\"data\":{{\"resultType\":\"vector\",\"result\":[{{\"metric\":{{}},\"value\":[1,\"{number}\"]}}]}}}}"
            );
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    address
}

/// A release whose probes are all good, and whose users' requests are counted by this Prometheus.
struct Guarded {
    leadsman: Leadsman,
    history: PathBuf,
    _app: App,
    _folder: tempfile::TempDir,
}

impl Guarded {
    fn by(prometheus: SocketAddr, errors: &str, total: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let history = folder.path().join("history");
        let app = App::of(&history);
        until("the app's pods are Ready", || {
            std::fs::read_to_string(history.join("pods.json"))
                .is_ok_and(|text| text.contains("\"complete\":1"))
        });
        let config = format!(
            "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
             interval = \"100ms\"\n[release.analysis]\nduration = \"30s\"\n\
             [release.requests]\nprometheus = \"http://{prometheus}\"\ninterval = \"5s\"\ntimeout = \"1s\"\n\
             errors = '{errors}'\ntotal = '{total}'\n\
             [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\nexpect = {{ status = 200 }}\n",
            app.url(),
            history.display(),
        );
        let leadsman = Leadsman::run(&config, &[]);
        until("there is a baseline", || {
            let probes: Value = serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
            probes["probes"][0]["totals"]["success"].as_u64() >= Some(100)
        });
        // Long enough for the first look at the requests, which comes after two seconds.
        std::thread::sleep(Duration::from_secs(3));
        Self {
            leadsman,
            history,
            _app: app,
            _folder: folder,
        }
    }

    /// Deploys a revision; gives how its watch ended, and what its strata of users' requests looked like meanwhile.
    fn watch_of_a_healthy_one(&self) -> (Value, Vec<Value>) {
        let deployed = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(["demo", "--deploy", "healthy", "--history"])
            .arg(&self.history)
            .status()
            .unwrap();
        assert!(deployed.success());
        let (mut ended, mut seen) = (Value::Null, Vec::new());
        until("the watch is over", || {
            let get = |path: &str| -> Value {
                serde_json::from_str(&self.leadsman.get(path).body).unwrap()
            };
            let view = get("/api/v1/releases/shop/mykadoo");
            let strata = view["analysis"]["strata"].as_array();
            let requests = strata
                .into_iter()
                .flatten()
                .filter(|one| one["name"] == "requests");
            seen.extend(requests.cloned());
            let rollouts = get("/api/v1/releases/shop/mykadoo/rollouts");
            let last = rollouts["rollouts"].as_array().and_then(|all| all.last());
            ended = last.cloned().unwrap_or_default();
            !ended.is_null()
        });
        (ended, seen)
    }

    /// The revision is kept for its probes, and nothing is known of its users.
    #[track_caller]
    fn counts_for_nothing(&self, why: &str) {
        let (ended, seen) = self.watch_of_a_healthy_one();
        let log = self.leadsman.log();
        assert_eq!(ended["outcome"], "passed", "{ended:#}\n{log}");
        assert!(
            !seen.is_empty(),
            "requests were counted before it came\n{log}"
        );
        for requests in &seen {
            assert_eq!(requests["failed"], 0, "{requests}");
            assert_eq!(requests["total"], 0, "{requests}");
            assert_ne!(requests["baseline_total"], 0, "{requests}");
            let e_value = requests["e_value"].as_f64().unwrap();
            assert!((e_value - 1.0).abs() < 1e-9, "{requests}");
        }
        let said = log
            .lines()
            .filter(|line| line.contains("cannot be counted, and count for nothing"));
        let said: Vec<&str> = said.collect();
        assert_eq!(said.len(), 1, "said once\n{log}");
        assert!(said[0].contains(why), "{}", said[0]);
    }
}

#[test]
fn a_prometheus_that_hangs_is_evidence_of_nothing() {
    let hangs = Arc::new(AtomicBool::new(false));
    let prometheus = prometheus_that_may_hang(Arc::clone(&hangs));
    let guarded = Guarded::by(prometheus, "errors[$interval]", "all[$interval]");
    hangs.store(true, Ordering::Relaxed);
    guarded.counts_for_nothing("no answer in time");
}

/// One that hung before the revision came: there is nothing to compare with, so that nothing is compared.
#[test]
fn a_prometheus_that_always_hung_is_no_stratum() {
    let guarded = Guarded::by(hanging_server(), "errors[$interval]", "all[$interval]");
    let said = "cannot be counted, and count for nothing";
    until("it is said", || guarded.leadsman.said(said));
    let (ended, seen) = guarded.watch_of_a_healthy_one();
    assert_eq!(ended["outcome"], "passed", "{ended:#}");
    assert!(seen.is_empty(), "{seen:?}");
}

/// The target stopped, so that its series are stale: errors are 0 for want of a series, which is not "no errors".
#[test]
fn a_target_that_stopped_is_evidence_of_nothing() {
    if !present("prometheus") {
        return;
    }
    let failing = Arc::new(AtomicU64::new(1));
    let prometheus = Prometheus::of(&[counting_app(Arc::clone(&failing))]);
    let all = "sum(increase(http_requests_total[5s]))";
    until("requests are counted", || prometheus.query(all).len() == 1);
    let guarded = Guarded::by(
        prometheus.address,
        "sum(increase(http_requests_total{code=~\"5..\"}[$interval])) or vector(0)",
        "sum(increase(http_requests_total[$interval]))",
    );
    failing.store(STOPPED, Ordering::Relaxed);
    until("its series are stale", || prometheus.query(all).is_empty());
    guarded.counts_for_nothing("there are no such series, or none that is fresh");
}
