//! Many releases with long histories: what they cost. It takes some minutes and a GiB of etcd, so it runs when asked for:
//! `LEADSMAN_TEST_LONG=1 tests/rig/up cargo test --release --test cluster -- scale:: --nocapture`.

use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::program::Leadsman;
use crate::rig::{Cluster, Helm};

const RELEASES: u32 = 200;
const REVISIONS: u32 = 10;

/// The most that the issue of memory allows, in KiB.
const MOST: u64 = 60 * 1024;

#[test]
fn two_hundred_releases_with_ten_large_revisions_each_take_little_memory() {
    if std::env::var_os("LEADSMAN_TEST_LONG").is_none() {
        return;
    }
    let Some(cluster) = Cluster::new("scale", Helm::Four) else {
        return;
    };
    let namespace = &cluster.namespace;
    let named = json!({"metadata": {"name": namespace}});
    cluster.send("POST", "/api/v1/namespaces", "application/json", &named);
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= RELEASES * REVISIONS {
                        return;
                    }
                    store(&cluster, number / REVISIONS, number % REVISIONS + 1);
                }
            });
        }
    });
    let mut config = format!(
        "[kubernetes]\nkubeconfig = {:?}\nscratch = \"scratch\"\n",
        cluster.kubeconfig().display().to_string()
    );
    for release in 0..RELEASES {
        config += &format!(
            "[[release]]\nname = \"app-{release}\"\nnamespace = {namespace:?}\nbase_url = \"http://127.0.0.1:9\"\ninterval = \"60s\"\n[[release.probe]]\nname = \"api\"\npath = \"/\"\n"
        );
    }
    let began = Instant::now();
    let leadsman = Leadsman::run(&config, &[]);
    let deadline = Instant::now() + Duration::from_secs(300);
    loop {
        let status: serde_json::Value =
            serde_json::from_str(&leadsman.get("/api/v1/releases").body).unwrap_or_default();
        let known = status["releases"].as_array().map_or(0, |all| {
            all.iter()
                .filter(|one| one["phase"] == "idle" && one["revision"] == REVISIONS)
                .count()
        });
        if known == RELEASES as usize {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{known} of {RELEASES} are known\n{}",
            leadsman.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    let took = began.elapsed();
    std::thread::sleep(Duration::from_secs(5));
    let status = std::fs::read_to_string(format!("/proc/{}/status", leadsman.pid())).unwrap();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    println!(
        "{RELEASES} releases of {REVISIONS} revisions: known after {:.1} s; {} KiB at most, {} KiB now",
        took.as_secs_f64(),
        kib("VmHWM"),
        kib("VmRSS")
    );
    assert!(kib("VmHWM") <= MOST, "{status}");
}

/// A record of half a megabyte that does not get smaller by gzip.
fn store(cluster: &Cluster, release: u32, revision: u32) {
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(490_000)
        .collect();
    let manifest = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: app-{release}\ndata:\n  noise: {noise}\n"
    );
    let status = if revision == REVISIONS {
        "deployed"
    } else {
        "superseded"
    };
    let record = json!({
        "name": format!("app-{release}"), "namespace": cluster.namespace, "version": revision,
        "info": {"status": status, "description": "Upgrade complete", "first_deployed": "2026-01-01T00:00:00Z", "last_deployed": "2026-01-01T00:00:00Z", "deleted": ""},
        "chart": {"metadata": {"name": "app", "version": "1.0.0", "apiVersion": "v2"}}, "config": {}, "manifest": manifest,
    });
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(record.to_string().as_bytes()).unwrap();
    let payload = STANDARD.encode(STANDARD.encode(gzip.finish().unwrap()));
    let secret = json!({
        "metadata": {"name": format!("sh.helm.release.v1.app-{release}.v{revision}"),
            "labels": {"owner": "helm", "name": format!("app-{release}"), "status": status, "version": revision.to_string()}},
        "type": "helm.sh/release.v1", "data": {"release": payload},
    });
    let path = format!("/api/v1/namespaces/{}/secrets", cluster.namespace);
    cluster.send("POST", &path, "application/json", &secret);
}
