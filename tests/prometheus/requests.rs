//! Users' requests as a real Prometheus counts them convict a revision whose probes are all good.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{App, Leadsman, until};
use crate::{Prometheus, present};

/// An app that counts 40 requests a second, of which so many of a hundred fail.
fn counting_app(failing: Arc<AtomicU64>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut last, mut good, mut bad) = (Instant::now(), 0.0, 0.0);
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
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
fn users_requests_convict_where_all_probes_are_good() {
    if !present("prometheus") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    until("the app's pods are Ready", || {
        std::fs::read_to_string(history.join("pods.json"))
            .is_ok_and(|text| text.contains("\"settled\":1"))
    });
    let failing = Arc::new(AtomicU64::new(1));
    let prometheus = Prometheus::of(&[counting_app(Arc::clone(&failing))]);
    let one = "sum(increase(http_requests_total{code=\"500\"}[5s]))";
    until("requests are counted", || prometheus.query(one).len() == 1);
    let config = format!(
        "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
         interval = \"100ms\"\n[release.rollback]\nwatch = \"60s\"\n\
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
        probes["probes"][0]["totals"]["good"].as_u64() >= Some(100)
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
    assert_eq!(ended["ending"], "recovered", "{ended:#}");
    // Prometheus goes away: that is said once, and is evidence of nothing.
    drop(prometheus);
    until("it is said", || {
        leadsman.said("cannot be counted, and count for nothing")
    });
}
