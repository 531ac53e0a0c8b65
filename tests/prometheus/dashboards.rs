//! The shipped dashboards: the rules of grafana/dashboard-linter, and every query against a Prometheus that scraped a
//! rollback and a slow revision that bakes: none may come back empty. Every metric that they or the rules name is one of
//! the program.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::program::{App, Leadsman, hanging_server, request, until, unused_port};
use crate::prometheus::{Prometheus, present};

fn dashboards() -> Vec<Value> {
    let folder =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/leadsman/files/dashboards");
    ["fleet.json", "release.json"]
        .iter()
        .map(|name| {
            serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        })
        .collect()
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// The queries of the panels and of the annotations.
fn queries(dashboard: &Value) -> (Vec<String>, Vec<String>) {
    let text = |value: &Value| value["expr"].as_str().unwrap().to_owned();
    let panels = list(&dashboard["panels"]);
    let panels = panels.iter().flat_map(|panel| list(&panel["targets"]));
    let panels = panels.map(|target| text(&target)).collect();
    let notes = list(&dashboard["annotations"]["list"])
        .iter()
        .map(text)
        .collect();
    (panels, notes)
}

/// What the variables ask for, as an expression that finds the values of their label.
fn variables(dashboard: &Value) -> Vec<String> {
    let all = list(&dashboard["templating"]["list"]);
    all.iter()
        .filter(|variable| variable["type"] == "query")
        .map(|variable| {
            let query = variable["query"]["query"].as_str().unwrap();
            assert_eq!(variable["definition"], query, "Grafana shows another one");
            let parts = query.strip_prefix("label_values(");
            let parts = parts.and_then(|parts| parts.strip_suffix(')'));
            let (selector, label) = parts.and_then(|parts| parts.rsplit_once(", ")).unwrap();
            let metric = selector.split('{').next().unwrap();
            format!("count by ({label}) ({selector} unless {metric}{{{label}=\"\"}})")
        })
        .collect()
}

#[test]
fn dashboards_keep_the_linters_rules() {
    let mut uids = std::collections::BTreeSet::new();
    for dashboard in dashboards() {
        let title = dashboard["title"].as_str().unwrap();
        assert!(
            uids.insert(dashboard["uid"].as_str().unwrap().to_owned()),
            "{title}"
        );
        assert_eq!(dashboard["editable"], false, "{title}");
        assert!(
            list(&dashboard["tags"]).contains(&"leadsman".into()),
            "{title}"
        );
        let variables = list(&dashboard["templating"]["list"]);
        let sources: Vec<_> = variables
            .iter()
            .filter(|variable| variable["type"] == "datasource")
            .collect();
        assert_eq!(sources.len(), 1, "{title}");
        assert_eq!(sources[0]["name"], "datasource");
        assert_eq!(sources[0]["label"], "Data Source");
        assert_eq!(sources[0]["query"], "prometheus");
        for name in ["job", "instance"] {
            let variable = variables
                .iter()
                .find(|variable| variable["name"] == name)
                .unwrap();
            assert_eq!(variable["multi"], true, "{title} {name}");
            assert_eq!(variable["allValue"], ".+", "{title} {name}");
            assert_eq!(variable["refresh"], 2, "{title} {name}");
        }
        for variable in variables
            .iter()
            .filter(|variable| variable["type"] == "query")
        {
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{title}");
        }
        let mut ids = std::collections::BTreeSet::new();
        for panel in list(&dashboard["panels"]) {
            let name = format!("{title}: {}", panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{name}");
            for key in ["title", "description"] {
                assert!(
                    panel[key].as_str().is_some_and(|text| !text.is_empty()),
                    "{name}: {key}"
                );
            }
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name}"
            );
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}");
            for target in list(&panel["targets"]) {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{name}");
            }
        }
        let (panels, notes) = queries(&dashboard);
        for query in panels.iter().chain(&notes) {
            for matcher in ["job=~\"$job\"", "instance=~\"$instance\""] {
                let selectors = query.matches('{').count();
                assert_eq!(
                    query.matches(matcher).count(),
                    selectors,
                    "{title}: {query}"
                );
            }
        }
        for query in &panels {
            if query.contains("_total") || query.contains("_bucket") {
                let window = query.matches("[$__rate_interval]").count();
                assert!(
                    window > 0 && query.matches('[').count() == window,
                    "{title}: {query}"
                );
                assert!(
                    query.contains("rate(") || query.contains("increase("),
                    "{title}: {query}"
                );
            }
        }
    }
}

/// The series of a Lease are there only in a cluster; tests/cluster/newcomer.rs sees this one.
const ONLY_IN_A_CLUSTER: [&str; 1] = ["leadsman_release_leader"];

/// The metrics of the program that a text names.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| word.starts_with("leadsman_") || word.starts_with("process_");
    words.filter(ours).map(str::to_owned).collect()
}

/// What the expressions of the shipped rules name.
fn metrics_of_the_rules() -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/leadsman/files/rules.yaml");
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let groups = list(&rules["groups"]);
    let rules = groups.iter().flat_map(|group| list(&group["rules"]));
    rules
        .flat_map(|rule| metrics(rule["expr"].as_str().unwrap()))
        .collect()
}

/// An app with its history, once its pods are Ready.
fn app(history: &Path) -> App {
    let app = App::of(history);
    until("the app's pods are Ready", || {
        std::fs::read_to_string(history.join("pods.json"))
            .is_ok_and(|text| text.contains("\"complete\":1"))
    });
    app
}

fn release(name: &str, app: &App, history: &Path, watch: &str) -> String {
    format!(
        "[[release]]\nname = \"{name}\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = \"{}\"\nmode = \"enforce\"\n\
         interval = \"100ms\"\nobjective = {{ availability = \"99%\" }}\n[release.analysis]\nduration = \"{watch}\"\n\
         [[release.probe]]\nname = \"api\"\npath = \"/api/health\"\nexpect = {{ status = 200 }}\n",
        app.url(),
        history.display()
    )
}

fn deploy(scenario: &str, history: &Path) {
    let arguments = ["demo", "--deploy", scenario, "--history"];
    let deployed = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(arguments)
        .arg(history)
        .status()
        .unwrap();
    assert!(deployed.success());
}

#[test]
fn every_query_of_the_dashboards_finds_something() {
    if !present("prometheus") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (history, slow) = (folder.path().join("history"), folder.path().join("slow"));
    let (mykadoo, slower) = (app(&history), app(&slow));
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[alertmanager]\nurls = [\"http://{}\"]\nwatchdog = true\n{}{}",
        hanging_server(),
        release("mykadoo", &mykadoo, &history, "60s"),
        // The answers of a pod's first minute are not compared.
        release("slower", &slower, &slow, "120s"),
    );
    let leadsman = Leadsman::run(&config, &[]);
    let prometheus = Prometheus::start(&leadsman, &mykadoo, unused_port());
    until("there are baselines", || {
        let probes: Value = serde_json::from_str(&leadsman.get("/api/v1/probes").body).unwrap();
        let probes = list(&probes["probes"]);
        probes.len() == 2
            && probes
                .iter()
                .all(|probe| probe["totals"]["success"].as_u64() >= Some(300))
    });
    deploy("slower", &slow);
    deploy("dead", &history);
    for (what, query) in [
        (
            "it was rolled back, and that was scraped",
            "leadsman_rollouts_total{release=\"mykadoo\",outcome=\"rolled_back\"} == 1",
        ),
        (
            "the other one is slower, and that was scraped",
            "leadsman_release_slower{release=\"slower\"} == 1",
        ),
        (
            "it bakes, and that was scraped",
            "leadsman_bake_e_value{release=\"slower\"}",
        ),
    ] {
        until(what, || !prometheus.query(query).is_empty());
    }
    let scraped = prometheus.names();
    let mut named = metrics_of_the_rules();
    for dashboard in dashboards() {
        let (panels, notes) = queries(&dashboard);
        let all = panels.iter().chain(&notes);
        named.extend(all.flat_map(|query| metrics(query)));
    }
    for name in ONLY_IN_A_CLUSTER {
        assert!(
            named.remove(name),
            "no rule names {name}: take it from the list"
        );
    }
    let missing: Vec<_> = named.difference(&scraped).collect();
    assert!(missing.is_empty(), "{missing:?}");
    for dashboard in dashboards() {
        let (panels, notes) = queries(&dashboard);
        let variables = variables(&dashboard);
        assert!(variables.len() >= 2);
        for query in panels.iter().chain(&notes).chain(&variables) {
            let mut plain = query.replace("$__rate_interval", "1m");
            for name in ["$job", "$instance", "$namespace", "$release"] {
                plain = plain.replace(name, ".+");
            }
            assert!(!plain.contains('$'), "{plain}");
            let over_time = format!("last_over_time(({plain})[5m:1s])");
            let encoded: String =
                url::form_urlencoded::byte_serialize(over_time.as_bytes()).collect();
            let path = format!("/api/v1/query?query={encoded}");
            // The newest scrape is a step behind.
            until(&format!("{query} finds something"), || {
                let reply = request(prometheus.address, "GET", &path, &[]);
                let answer: Value = serde_json::from_str(&reply.body).unwrap();
                assert_eq!(answer["status"], "success", "{query}: {}", reply.body);
                !list(&answer["data"]["result"]).is_empty()
            });
        }
    }
}
