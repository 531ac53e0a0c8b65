//! What targets do to the daemon, seen from outside: goodbyes in the middle of a watch, floods, silence of all.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::program::{App, Leadsman, until};
use crate::support::flood::{EARLY_HINTS, Flood, SETTINGS, frame};
use crate::support::nginx::Nginx;
use crate::support::pki::Pki;
use serde_json::Value;

fn status(leadsman: &Leadsman) -> Value {
    serde_json::from_str(&leadsman.get("/api/v1/status").body).unwrap()
}

fn deploy(history: &Path, scenario: &str) {
    let deployed = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(["demo", "--deploy", scenario, "--history"])
        .arg(history)
        .output()
        .unwrap();
    assert!(deployed.status.success(), "{deployed:?}");
}

/// Each answer of this nginx comes with a goodbye, and it is reloaded again and again while the revision is judged.
#[test]
fn a_good_revision_behind_an_nginx_that_says_goodbye_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    let app = App::of(&history);
    until("the app's pods are Ready", || {
        let pods = std::fs::read_to_string(history.join("pods.json"));
        pods.is_ok_and(|text| text.contains("\"complete\":1"))
    });
    let pki = Pki::new();
    let certificate = pki.server_files(&["127.0.0.1"]);
    let proxy = format!("location / {{ proxy_pass {}; }}", app.url());
    let nginx = Nginx::start("keepalive_timeout 0;", &proxy, &certificate);
    let mut config = format!(
        "[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nembedded = {history:?}\nmode = \"enforce\"\n\
         interval = \"200ms\"\ntimeout = \"20s\"\n[release.analysis]\nduration = \"40s\"\n"
    );
    for (name, entrance, http, connection) in [
        ("clear", 1, "2", "new"),
        ("tls", 2, "2", "new"),
        ("kept", 2, "2", "keep-alive"),
        ("old", 0, "1.1", "keep-alive"),
    ] {
        config += &format!(
            "[[release.probe]]\nname = \"{name}\"\nurl = \"{}\"\nhttp = \"{http}\"\n\
             connection = \"{connection}\"\ntls = {{ ca_file = {:?} }}\n",
            nginx.url(entrance, "/api/health"),
            pki.ca_file(),
        );
    }
    let leadsman = Leadsman::run(&config, &[]);
    let release = || status(&leadsman)["releases"][0].clone();
    until("there is a baseline", || {
        let probes: Value = serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
        let probes = probes["probes"].as_array().unwrap();
        let good = |probe: &Value| probe["totals"]["success"].as_u64() >= Some(20);
        probes.iter().all(good)
    });
    deploy(&history, "healthy");
    until("the new revision is judged", || {
        release()["phase"] == "analyzing"
    });
    let mut reloads = 0;
    while release()["phase"] == "analyzing" && reloads < 10 {
        let before = nginx.generations();
        nginx.reload();
        until("nginx is reloaded", || nginx.generations() > before);
        reloads += 1;
        std::thread::sleep(Duration::from_secs(2));
    }
    assert!(reloads >= 3, "{reloads}");
    until("the watch has ended", || release()["phase"] == "idle");
    let page = leadsman.get("/metrics").body;
    let failures: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("leadsman_probe_failures_total") && !line.ends_with(" 0"))
        .collect();
    assert_eq!(failures, [""; 0], "{}", leadsman.log());
    let history = release()["history"].clone();
    let mut judged = history.as_array().unwrap().iter();
    let judged = judged.find(|record| record["revision"] == 2).unwrap();
    assert_eq!(
        judged["outcome"],
        "passed",
        "{history:#}\n{}",
        leadsman.log()
    );
}

/// The value of a series that begins so.
fn value(page: &str, start: &str) -> Option<f64> {
    let line = page.lines().find_map(|line| line.strip_prefix(start))?;
    line.trim().parse().ok()
}

/// The same of a counter.
fn count(page: &str, start: &str) -> Option<u64> {
    let line = page.lines().find_map(|line| line.strip_prefix(start))?;
    line.trim().parse().ok()
}

fn probes_total(page: &str, probe: &str, result: &str) -> u64 {
    let of = if probe == "quiet" { "quiet" } else { "loud" };
    let start = format!(
        "leadsman_probes_total{{namespace=\"shop\",release=\"{of}\",probe=\"{probe}\",result=\"{result}\"}}"
    );
    count(page, &start).unwrap_or_else(|| panic!("{start}: {page}"))
}

#[test]
fn floods_are_bad_results_and_cost_nobody_else_anything() {
    let app = App::start();
    let amplified = [
        EARLY_HINTS,
        &[0x40, 1, b'x', 0x7f, 0xbd, 0x1d],
        &[b'a'; 3900],
    ]
    .concat();
    let again = [EARLY_HINTS, &[0xbe; 14]].concat();
    let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let floods = [
        ("interim", "1.1", Flood::start(&[], &[], early)),
        (
            "shortest",
            "1.1",
            Flood::start(&[], &[], b"HTTP/1.1 100\r\n\r\n"),
        ),
        (
            "lines",
            "1.1",
            Flood::start(&[], b"HTTP/1.1 200 OK\r\n", b"a:\r\n"),
        ),
        (
            "interim2",
            "2",
            Flood::start(SETTINGS, &[], &frame(1, 4, 1, EARLY_HINTS)),
        ),
        (
            "growing",
            "2",
            Flood::start(
                SETTINGS,
                &frame(1, 4, 1, &amplified),
                &frame(1, 4, 1, &again),
            ),
        ),
        (
            "pings",
            "2",
            Flood::start(SETTINGS, &[], &frame(6, 0, 0, &[0; 8])),
        ),
        (
            "settings",
            "2",
            Flood::start(SETTINGS, &[], &frame(4, 0, 0, &[])),
        ),
    ];
    let mut config = format!(
        "[[release]]\nname = \"quiet\"\nnamespace = \"shop\"\ninterval = \"200ms\"\n\
         [[release.probe]]\nname = \"quiet\"\nurl = \"{}/api/health\"\n\
         [[release]]\nname = \"loud\"\nnamespace = \"shop\"\ninterval = \"1s\"\ntimeout = \"20s\"\n",
        app.url()
    );
    for (name, http, flood) in &floods {
        let url = flood.url();
        config +=
            &format!("[[release.probe]]\nname = \"{name}\"\nurl = \"{url}\"\nhttp = \"{http}\"\n");
    }
    let leadsman = Leadsman::run(&config, &[]);
    let page = || leadsman.get("/metrics").body;
    until("all were asked again and again", || {
        let page = page();
        let mut names = floods.iter().map(|(name, ..)| *name);
        names.all(|name| probes_total(&page, name, "failure") >= 8)
    });
    let page = page();
    for (name, ..) in &floods {
        assert_eq!(probes_total(&page, name, "success"), 0, "{name}");
        let start = format!(
            "leadsman_probe_failures_total{{namespace=\"shop\",release=\"loud\",probe=\"{name}\",reason=\"protocol\"}}"
        );
        let all = probes_total(&page, name, "failure");
        assert_eq!(count(&page, &start), Some(all), "{name}");
    }
    assert!(probes_total(&page, "quiet", "success") >= 20);
    for result in ["failure", "unknown"] {
        assert_eq!(probes_total(&page, "quiet", result), 0, "{result}");
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", leadsman.pid())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let kib: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let cpu = value(&page, "process_cpu_seconds_total").unwrap();
    let asked: u64 = floods
        .iter()
        .map(|(name, ..)| probes_total(&page, name, "failure"))
        .sum();
    println!("{kib} KiB at most, {cpu:.2} s of CPU for {asked} results of floods");
    // A debug build of the program needs more than the 40 MiB of a release build.
    assert!(kib < MOST_MEMORY_KIB, "{kib} KiB");
    // A twentieth of a core for a probe that is asked each second.
    assert!(
        cpu / (asked as f64) < 0.05,
        "{cpu} s of CPU for {asked} results"
    );
}

/// What a daemon that is asked for nothing special takes in a debug build, and a little more.
const MOST_MEMORY_KIB: usize = if cfg!(debug_assertions) {
    100 << 10
} else {
    40 << 10
};

/// A server that answers until it falls silent, and takes connections all the time.
fn falls_silent(silent: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = Arc::clone(silent);
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            if silent.load(Ordering::Relaxed) {
                kept.push(stream);
                continue;
            }
            kept.clear();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    port
}

#[test]
fn when_all_targets_fall_silent_that_is_said_loudly_and_success_is_unknown() {
    let silent = Arc::new(AtomicBool::new(false));
    let port = falls_silent(&silent);
    let folder = tempfile::tempdir().unwrap();
    let mut config = format!(
        "[alertmanager]\nurls = [\"http://127.0.0.1:{}\"]\n[state]\ndirectory = {:?}\n\
         [[release]]\nname = \"web\"\nnamespace = \"shop\"\ninterval = \"300ms\"\ntimeout = \"1s\"\n",
        crate::program::unused_port(),
        folder.path()
    );
    for last in 1..=3 {
        config += &format!(
            "[[release.probe]]\nname = \"p{last}\"\nurl = \"http://127.0.0.{last}:{port}/\"\n"
        );
    }
    let leadsman = Leadsman::run(&config, &[]);
    let success = |last: usize| {
        let name = format!("p{last}");
        let page = leadsman.get("/metrics").body;
        let start = format!(
            "leadsman_probe_success{{namespace=\"shop\",release=\"web\",probe=\"{name}\"}}"
        );
        value(&page, &start)
    };
    until("all are well", || {
        (1..=3).all(|last| success(last) == Some(1.0))
    });
    silent.store(true, Ordering::Relaxed);
    until("nothing is known of them", || {
        (1..=3).all(|last| success(last).is_none())
    });
    let page = leadsman.get("/metrics").body;
    let trouble = "leadsman_self_check_failing{reason=\"all_targets\"}";
    assert_eq!(value(&page, trouble), Some(1.0));
    assert!(
        leadsman.said("None of the probed hosts answers"),
        "{}",
        leadsman.log()
    );
    until("an alert of the highest severity fires", || {
        let alerts: Value = serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
        alerts["alerts"].as_array().unwrap().iter().any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == "LeadsmanAllTargetsSilent" && labels["severity"] == "critical"
        })
    });
    silent.store(false, Ordering::Relaxed);
    until("they are well again", || {
        (1..=3).all(|last| success(last) == Some(1.0))
    });
}

#[test]
fn names_of_one_entrance_that_refuses_are_bad_and_not_our_own_trouble() {
    let port = crate::program::unused_port();
    let mut config =
        "[self_check]\nhosts_failing = 2\n[[release]]\nname = \"web\"\nnamespace = \"shop\"\ninterval = \"200ms\"\n"
            .to_owned();
    for (name, host) in [("a", "localhost"), ("b", "127.0.0.1"), ("c", "127.0.0.2")] {
        config +=
            &format!("[[release.probe]]\nname = \"{name}\"\nurl = \"http://{host}:{port}/\"\n");
    }
    let leadsman = Leadsman::run(&config, &[]);
    let total = |page: &str, probe: &str, result: &str| {
        let start = format!(
            "leadsman_probes_total{{namespace=\"shop\",release=\"web\",probe=\"{probe}\",result=\"{result}\"}}"
        );
        count(page, &start).unwrap()
    };
    until("all were asked", || {
        let page = leadsman.get("/metrics").body;
        ["a", "b", "c"]
            .iter()
            .all(|probe| total(&page, probe, "failure") >= 10)
    });
    let page = leadsman.get("/metrics").body;
    for probe in ["a", "b", "c"] {
        assert_eq!(total(&page, probe, "unknown"), 0, "{probe}");
    }
    assert_eq!(
        value(&page, "leadsman_self_check_failing{reason=\"all_targets\"}"),
        Some(0.0)
    );
}
