//! A real Prometheus scrapes a real Leadsman; promtool reads its page.
//!
//! Without Debian's package `prometheus` these tests say so and do nothing, unless `LEADSMAN_TEST_ALL` is set, as
//! `tests/all` does where it could install it.

mod dashboards;
mod mode;
mod requests;

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::program::{App, Leadsman, request, until, unused_port};

#[test]
fn promtool_finds_nothing_to_say_about_the_page() {
    if !present("promtool") {
        return;
    }
    let app = App::start();
    let refused = unused_port();
    let leadsman = Leadsman::run(&config(&app, refused), &[]);
    // The page from the first second, and the page with results.
    check_metrics(&leadsman.get("/metrics").body);
    until("all probes were asked", || {
        let page = leadsman.get("/metrics").body;
        page.contains(
            "leadsman_probe_success{namespace=\"shop\",release=\"mykadoo\",probe=\"gone\"} 0",
        )
    });
    check_metrics(&leadsman.get("/metrics").body);
    // With Alertmanagers and objectives there are more series.
    let more = format!(
        "[alertmanager]\nurls = [\"http://127.0.0.1:{refused}\"]\nresend = \"1s\"\nwatchdog = true\n{}",
        config(&app, refused).replacen(
            "[[release]]\n",
            "[[release]]\nobjective = { availability = \"99%\", latency = \"95%\" }\n",
            1,
        )
    );
    let telling = Leadsman::run(&more, &[]);
    let has = |text: &str| telling.get("/metrics").body.contains(text);
    until("there are series of both", || {
        has("leadsman_alertmanager_errors_total{") && has("leadsman_slo_burn_rate{")
    });
    check_metrics(&telling.get("/metrics").body);
    drop(telling);
    check_metrics(
        &leadsman
            .get(&format!("/probe?target={}/api/health", app.url()))
            .body,
    );
    check_metrics(
        &leadsman
            .get(&format!("/probe?target=http://127.0.0.1:{refused}/"))
            .body,
    );
}

/// Ours under /metrics, and /probe in the place of blackbox_exporter, with the usual relabelling.
#[test]
fn prometheus_scrapes_both_pages_and_dashboards_find_their_series() {
    if !present("prometheus") {
        return;
    }
    let app = App::start();
    let refused = unused_port();
    let leadsman = Leadsman::run(&config(&app, refused), &[]);
    let prometheus = Prometheus::start(&leadsman, &app, refused);

    let one = |query: &str, expected: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let values = prometheus.query(query);
            if values == [expected] {
                return;
            }
            let seen = values.join(", ");
            assert!(
                std::time::Instant::now() < deadline,
                "{query} gave [{seen}] and not {expected}"
            );
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    // Our own names.
    one("count(leadsman_probe_success == 1)", "4");
    one("leadsman_probe_success{probe=\"gone\"}", "0");
    one(
        "count(leadsman_probe_failures_total{probe=\"gone\",reason=\"connect_refused\"} > 0)",
        "1",
    );
    one(
        "count(rate(leadsman_probe_duration_seconds_bucket{probe=\"api\",le=~\"5(.0)?\"}[1m]))",
        "1",
    );
    one(
        "count(histogram_quantile(0.5, rate(leadsman_probe_duration_seconds_bucket{probe=\"api\"}[1m])) < 1)",
        "1",
    );
    one("count(leadsman_build_info)", "1");
    // The queries of the blackbox dashboards and alerts.
    let job = "job=~\"blackbox.*\"";
    one(&format!("count(probe_success{{{job}}} == 1)"), "1");
    one(&format!("count(probe_success{{{job}}} == 0)"), "1");
    one(
        &format!("count(avg by (phase) (probe_http_duration_seconds{{{job}}}))"),
        "5",
    );
    one(
        &format!(
            "count(probe_http_status_code{{{job}}} <= 199 or probe_http_status_code{{{job}}} >= 400)"
        ),
        "1",
    );
    one(
        &format!("count(avg_over_time(probe_duration_seconds{{{job}}}[1m]) < 1)"),
        "2",
    );
    one(&format!("count(probe_http_version{{{job}}} == 1.1)"), "1");
    one(
        &format!("count(probe_dns_lookup_time_seconds{{{job}}})"),
        "2",
    );
    one("count(up == 1)", "3");
}

fn config(app: &App, refused: u16) -> String {
    let mut text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\nbase_url = \"{}\"\ninterval = \"1s\"\n",
        app.url()
    );
    for (name, path) in [
        ("api", "/api/health"),
        ("db", "/api/health/db"),
        ("redis", "/api/health/redis"),
        ("web", "/"),
    ] {
        text += &format!(
            "[[release.probe]]\nname = \"{name}\"\npath = \"{path}\"\nlatency_objective = \"300ms\"\n"
        );
    }
    text + &format!("[[release.probe]]\nname = \"gone\"\nurl = \"http://127.0.0.1:{refused}/\"\n")
}

/// The burn that we tell of is the one that PromQL finds in our counters.
#[test]
fn the_burn_is_that_of_promql() {
    if !present("prometheus") {
        return;
    }
    let app = App::start();
    let refused = unused_port();
    let config = config(&app, refused).replacen(
        "[[release]]\n",
        "[[release]]\nobjective = { availability = \"99%\", latency = \"95%\" }\n",
        1,
    );
    // One of the probes has an objective of its own.
    let config = config.replacen(
        "[[release.probe]]\nname = \"gone\"\n",
        "[[release.probe]]\nname = \"gone\"\nobjective = { availability = \"99%\" }\n",
        1,
    );
    let leadsman = Leadsman::run(&config, &[]);
    let prometheus = Prometheus::start(&leadsman, &app, refused);
    let value = |query: &str| -> Option<f64> { prometheus.query(query).first()?.parse().ok() };
    let bad = "sum(increase(leadsman_probes_total{result=\"failure\"}[5m]))";
    let all = "sum(increase(leadsman_probes_total{result=~\"success|failure\"}[5m]))";
    until("there is enough to compare", || value(all) >= Some(60.0));
    let agrees = |what: &str, labels: &str, bad: &str, all: &str| {
        for window in ["5m", "30m"] {
            let ours = format!("leadsman_slo_error_ratio{{{labels},window=\"{window}\"}}");
            let theirs = format!("({bad}) / ({all})").replace("$w", window);
            until(what, || match (value(&ours), value(&theirs)) {
                // One result more or less on either side of a scrape.
                (Some(ours), Some(theirs)) => (ours - theirs).abs() < 0.02,
                _ => false,
            });
        }
    };
    // The formula of src/objective.rs, over what budgets count.
    for labels in [
        "probe=\"\",objective=\"availability\"",
        "probe=\"\",objective=\"latency\"",
        "probe=\"gone\",objective=\"availability\"",
    ] {
        agrees(
            "what budgets count",
            labels,
            &format!("sum(increase(leadsman_slo_failures_total{{{labels}}}[$w])) or vector(0)"),
            &format!("sum(increase(leadsman_slo_results_total{{{labels}}}[$w]))"),
        );
    }
    // Without a watch that is what is counted of the results themselves.
    agrees(
        "latency, from the histogram",
        "probe=\"\",objective=\"latency\"",
        "sum(increase(leadsman_probe_duration_seconds_count{probe!=\"gone\"}[$w])) \
         - sum(increase(leadsman_probe_duration_seconds_bucket{probe!=\"gone\",le=\"0.3\"}[$w]))",
        "sum(increase(leadsman_probe_duration_seconds_count{probe!=\"gone\"}[$w]))",
    );
    agrees(
        "one probe of its own",
        "probe=\"gone\",objective=\"availability\"",
        "sum(increase(leadsman_probes_total{probe=\"gone\",result=\"failure\"}[$w]))",
        "sum(increase(leadsman_probes_total{probe=\"gone\",result=~\"success|failure\"}[$w]))",
    );
    let ours = "leadsman_slo_error_ratio{probe=\"\",objective=\"availability\",window=\"5m\"}";
    until("both agree", || {
        let (Some(ours), Some(theirs)) = (value(ours), value(&format!("{bad} / {all}"))) else {
            return false;
        };
        // One result more or less on either side of a scrape.
        assert!(ours > 0.0 && ours < 1.0, "{ours}");
        (ours - theirs).abs() < 0.02
    });
    let burn =
        value("leadsman_slo_burn_rate{probe=\"\",objective=\"availability\",window=\"5m\"} * 0.01");
    let ratio = value(ours);
    assert!(
        (burn.unwrap() - ratio.unwrap()).abs() < 0.02,
        "{burn:?} {ratio:?}"
    );
    // The recording rules find what they need.
    assert_eq!(
        value(
            "count(leadsman_slo_error_ratio{probe=\"\",objective=\"availability\",window=~\"5m|30m|1h|2h|6h|1d|3d|30d\"})"
        ),
        Some(8.0)
    );
}

const RUNBOOK: &str = include_str!("../docs/runbook.md");

/// promtool finds nothing to say about the shipped rules, and each alert is tested firing and silent.
#[test]
fn the_shipped_rules_fire_when_they_should_and_only_then() {
    if !present("promtool") {
        return;
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let (rules, tests) = (
        folder.join("helm/leadsman/files/rules.yaml"),
        folder.join("tests/rules/leadsman.test.yaml"),
    );
    for (what, file) in [("check", &rules), ("test", &tests)] {
        let output = Command::new("promtool")
            .args([what, "rules"])
            .arg(file)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    let read = |file: &std::path::Path| -> serde_json::Value {
        serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    let (rules, tests) = (read(&rules), read(&tests));
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let mut tried = std::collections::BTreeSet::new();
    for test in list(&tests["tests"]) {
        for alert in list(&test["alert_rule_test"]) {
            let name = alert["alertname"].as_str().unwrap().to_owned();
            tried.insert((name, list(&alert["exp_alerts"]).is_empty()));
        }
        for expression in list(&test["promql_expr_test"]) {
            tried.insert((expression["expr"].as_str().unwrap().to_owned(), false));
        }
    }
    for rule in list(&rules["groups"])
        .iter()
        .flat_map(|group| list(&group["rules"]))
    {
        if let Some(name) = rule["alert"].as_str() {
            for silent in [false, true] {
                assert!(
                    tried.contains(&(name.to_owned(), silent)),
                    "{name}, silent: {silent}"
                );
            }
            let link = format!("#{}", name.to_lowercase());
            let annotations = &rule["annotations"];
            if name != "LeadsmanNoLeader" {
                let runbook = annotations["runbook_url"].as_str().unwrap();
                assert!(runbook.ends_with(&link), "{runbook}");
            }
            assert!(
                RUNBOOK.contains(&format!("\n## {name}\n")),
                "{name} has no part in the runbook"
            );
            assert!(
                rule["for"].is_string() && rule["labels"]["severity"].is_string(),
                "{name}"
            );
        }
        if let Some(name) = rule["record"].as_str() {
            assert!(tried.contains(&(name.to_owned(), false)), "{name}");
        }
    }
}

/// Whether a program is there; where everything must be tested, it has to be.
fn present(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    assert!(
        found || std::env::var_os("LEADSMAN_TEST_ALL").is_none(),
        "{program} is missing"
    );
    if !found {
        eprintln!("left out: {program} is not installed");
    }
    found
}

#[track_caller]
fn check_metrics(page: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool
        .stdin
        .take()
        .unwrap()
        .write_all(page.as_bytes())
        .unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "promtool says:\n{said}"
    );
}

struct Prometheus {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// One that scrapes these each second.
    fn of(targets: &[SocketAddr]) -> Self {
        let targets: Vec<String> = targets.iter().map(|target| format!("'{target}'")).collect();
        Self::with(&format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n\
             - job_name: app\n  static_configs: [{{targets: [{}]}}]\n",
            targets.join(", ")
        ))
    }

    fn start(leadsman: &Leadsman, app: &App, refused: u16) -> Self {
        let ours = leadsman.address();
        Self::with(&format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n\
             - job_name: leadsman\n  honor_labels: true\n  static_configs: [{{targets: ['{ours}']}}]\n\
             - job_name: blackbox-exporter\n  metrics_path: /probe\n  params: {{module: [http_2xx]}}\n  \
             static_configs: [{{targets: ['{}/api/health', 'http://127.0.0.1:{refused}/']}}]\n  relabel_configs:\n  \
             - {{source_labels: [__address__], target_label: __param_target}}\n  \
             - {{source_labels: [__param_target], target_label: instance}}\n  \
             - {{target_label: __address__, replacement: '{ours}'}}\n",
            app.url()
        ))
    }

    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let address: SocketAddr = format!("127.0.0.1:{}", unused_port()).parse().unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let prometheus = Self {
            child,
            address,
            _folder: folder,
        };
        until("Prometheus is ready", || {
            std::net::TcpStream::connect(address).is_ok()
                && request(address, "GET", "/-/ready", &[]).status == 200
        });
        prometheus
    }

    /// The names of all metrics that were scraped.
    fn names(&self) -> std::collections::BTreeSet<String> {
        let path = "/api/v1/label/__name__/values";
        let reply = request(self.address, "GET", path, &[]);
        let answer: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(answer["status"], "success", "{}", reply.body);
        let names = answer["data"].as_array().unwrap();
        names
            .iter()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    /// The values of an instant query, as text.
    fn query(&self, query: &str) -> Vec<String> {
        let encoded: String = url::form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let reply = request(
            self.address,
            "GET",
            &format!("/api/v1/query?query={encoded}"),
            &[],
        );
        let answer: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {}", reply.body);
        let results = answer["data"]["result"].as_array().unwrap();
        results
            .iter()
            .map(|result| result["value"][1].as_str().unwrap().to_owned())
            .collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
