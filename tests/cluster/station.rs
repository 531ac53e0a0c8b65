//! On station: the chart, its Roles and bound tokens, several replicas of the real program as pods, which guard another
//! release, tell a real Alertmanager, and are found and scraped by a real Prometheus.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{request, until, unused_port};
use crate::rig::{Cluster, Helm};
use crate::turned_back::DEAD;

const OWN_CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/leadsman");

/// A program that ends with the test.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Self(child.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Leadsman as its chart installs it, for the app of a cluster.
struct Station<'a> {
    cluster: &'a Cluster,
    namespace: String,
    folder: tempfile::TempDir,
}

impl<'a> Station<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        Self {
            cluster,
            namespace: format!("{}-own", cluster.namespace),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn try_helm(&self, arguments: &[&str]) -> Output {
        Command::new(Helm::Four.path())
            .args(arguments)
            .args(["--namespace", &self.namespace])
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("HELM_CACHE_HOME", self.folder.path().join("helm-cache"))
            .output()
            .unwrap()
    }

    #[track_caller]
    fn helm(&self, arguments: &[&str]) -> String {
        let output = self.try_helm(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {said}\n{}",
            self.logs()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Installs or upgrades it with these values.
    #[track_caller]
    fn install(&self, values: &Value) {
        let file = self.folder.path().join("values.json");
        std::fs::write(&file, values.to_string()).unwrap();
        self.helm(&[
            "upgrade",
            "--install",
            "leadsman",
            OWN_CHART,
            "--create-namespace",
            "--wait",
            "--timeout",
            "120s",
            "--values",
            file.to_str().unwrap(),
        ]);
    }

    fn pods(&self) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let pods = self.cluster.get(&path)["items"].as_array().cloned();
        let running = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null();
        pods.unwrap_or_default()
            .into_iter()
            .filter(running)
            .collect()
    }

    fn names(&self) -> Vec<String> {
        let pods = self.pods();
        let names = pods.iter().map(|pod| pod["metadata"]["name"].as_str());
        names.map(|name| name.unwrap().to_owned()).collect()
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for pod in self.pods() {
            let name = pod["metadata"]["name"].as_str().unwrap_or("");
            let path = format!("/api/v1/namespaces/{}/pods/{name}/log", self.namespace);
            all += &format!("--- {name}\n{}\n", self.cluster.text(&path));
        }
        all
    }

    /// The address of the Service.
    fn address(&self) -> std::net::SocketAddr {
        let path = format!("/api/v1/namespaces/{}/services/leadsman", self.namespace);
        let service = self.cluster.get(&path);
        let ip = service["spec"]["clusterIP"].as_str().unwrap();
        format!("{ip}:9616").parse().unwrap()
    }

    fn get(&self, path: &str) -> String {
        request(self.address(), "GET", path, &[]).body
    }
}

fn probes(cluster: &Cluster, more: &str) -> String {
    let api = cluster.service("mykadoo-api");
    let mut text = format!(
        "[[release]]\nname = \"mykadoo\"\nnamespace = {:?}\nbase_url = {api:?}\nmode = \"enforce\"\ninterval = \"1s\"\ntimeout = \"3s\"\n\
         [release.rollback]\nwatch = \"60s\"\n{more}",
        cluster.namespace
    );
    for (name, path) in [("api", "/api/health"), ("db", "/api/health/db")] {
        text += &format!(
            "[[release.probe]]\nname = {name:?}\npath = {path:?}\npods = \"mykadoo-api\"\nexpect = {{ status = 200 }}\n"
        );
    }
    text
}

/// A real Alertmanager; `None` where it is not installed.
fn alertmanager(folder: &Path) -> Option<(Server, u16)> {
    let program = "prometheus-alertmanager";
    let is_there = Command::new(program).arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("LEADSMAN_TEST_ALL").is_none());
    if !is_there {
        return None;
    }
    let file = folder.join("alertmanager.yml");
    std::fs::write(
        &file,
        "route: {receiver: none}\nreceivers: [{name: none}]\n",
    )
    .unwrap();
    let port = unused_port();
    let server = Server::start(
        Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.path={}", folder.join("am").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address="),
    );
    Some((server, port))
}

/// A real Prometheus that scrapes what stands behind the Service; `None` where it is not installed. Debian's is built
/// without the discovery of Kubernetes, so the endpoints are looked up here, as that would.
fn prometheus(station: &Station<'_>) -> Option<(Server, u16)> {
    let is_there = Command::new("prometheus").arg("--version").output().is_ok();
    assert!(is_there || std::env::var_os("LEADSMAN_TEST_ALL").is_none());
    if !is_there {
        return None;
    }
    let folder = station.folder.path();
    let file: PathBuf = folder.join("prometheus.yml");
    let slices = station
        .cluster
        .get(&format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io/service-name=leadsman",
            station.namespace
        ));
    let endpoints = slices["items"][0]["endpoints"].as_array().unwrap();
    let targets: Vec<String> = endpoints
        .iter()
        .map(|endpoint| format!("{}:9616", endpoint["addresses"][0].as_str().unwrap()))
        .collect();
    let text = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: leadsman\n  honor_labels: true\n  \
         static_configs: [{{targets: {targets:?}}}]\n"
    );
    std::fs::write(&file, text).unwrap();
    let port = unused_port();
    let server = Server::start(
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
    );
    Some((server, port))
}

/// Every object of every example is what this API server knows, field by field.
#[test]
fn the_api_server_takes_what_the_chart_renders() {
    let Some(cluster) = Cluster::new("rendered", Helm::Four) else {
        return;
    };
    let named = json!({"metadata": {"name": cluster.namespace}});
    cluster.send("POST", "/api/v1/namespaces", "application/json", &named);
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{OWN_CHART}/ci")).unwrap() {
        let values = entry.unwrap().path();
        let text = cluster.helm(&[
            "template",
            "x",
            OWN_CHART,
            "--values",
            values.to_str().unwrap(),
        ]);
        for document in text.split("\n---") {
            let kind = document
                .lines()
                .find_map(|line| line.strip_prefix("kind: "));
            let Some(kind) = kind else { continue };
            let api = document.lines().find_map(|line| {
                line.trim_start_matches("---")
                    .trim()
                    .strip_prefix("apiVersion: ")
            });
            let root = match api.unwrap() {
                "v1" => "/api/v1".to_owned(),
                group => format!("/apis/{group}"),
            };
            let plural = match kind {
                "NetworkPolicy" => "networkpolicies".to_owned(),
                "Ingress" => "ingresses".to_owned(),
                kind => format!("{}s", kind.to_lowercase()),
            };
            let place = if kind.starts_with("ClusterRole") {
                String::new()
            } else {
                format!("/namespaces/{}", cluster.namespace)
            };
            let path = format!("{root}{place}/{plural}?dryRun=All&fieldValidation=Strict");
            // Roles of other namespaces, too: here all of them are in this one.
            let own = format!("  namespace: {}", cluster.namespace);
            let lines = document.lines().map(|line| {
                if line.starts_with("  namespace: ") {
                    own.as_str()
                } else {
                    line
                }
            });
            let document = lines.collect::<Vec<_>>().join("\n");
            cluster.send_text("POST", &path, "application/yaml", &document);
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn installed_by_its_chart_it_guards_another_release() {
    let Some(cluster) = Cluster::new("station", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let station = Station::new(&cluster);
    let told = alertmanager(station.folder.path());
    let more = told.as_ref().map_or_else(String::new, |(_, port)| {
        format!("[alertmanager]\nurls = [\"http://127.0.0.1:{port}\"]\n")
    });
    let values = |config: &str| {
        json!({
            "config": config,
            "namespaces": [{"name": cluster.namespace, "mode": "enforce"}],
            "auth": {"kubernetes": true}
        })
    };
    let config = |extra: &str| format!("{more}{}{extra}", probes(&cluster, ""));
    station.install(&values(&config("")));
    assert_eq!(station.pods().len(), 2);
    let release = || {
        let path = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
        serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default()
    };
    until("there is a baseline", || {
        let known = release()["known"].as_array().cloned().unwrap_or_default();
        !known.is_empty()
            && known
                .iter()
                .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
    });
    // Nothing is missing in the Roles of the chart.
    until("a rollback could be done", || {
        release()["obstacle"].is_null() && release()["phase"] == "steady"
    });
    let scraped = prometheus(&station);

    cluster.upgrade(&[DEAD]);
    let gate = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(["gate", "mykadoo", "2", "--timeout", "4m"])
        .args(["--server", &format!("http://{}", station.address())])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&gate.stdout).into_owned() + &String::from_utf8_lossy(&gate.stderr);
    assert_eq!(gate.status.code(), Some(10), "{text}\n{}", station.logs());
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );
    if let Some((_, port)) = &told {
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        until("Alertmanager has the alert", || {
            let alerts = request(address, "GET", "/api/v2/alerts", &[]).body;
            alerts.contains("LeadsmanReleaseRolledBack")
        });
    }
    if let Some((_, port)) = &scraped {
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        until("Prometheus has scraped both, and one acts", || {
            let query = "/api/v1/query?query=sum(leadsman_leader)%2B10*count(leadsman_leader)";
            request(address, "GET", query, &[]).body.contains("\"21\"")
        });
    }
    // Its own test, by the image itself.
    station.helm(&["test", "leadsman"]);

    // Another configuration is taken up without a restart.
    let before = station.names();
    let another = "[[release.probe]]\nname = \"another\"\npath = \"/\"\n";
    station.install(&values(&config(another)));
    until("the new probe is asked", || {
        station.get("/api/v1/probes").contains("another")
    });
    assert_eq!(before, station.names());

    // What it guarded stays as it is.
    station.helm(&["uninstall", "leadsman", "--wait"]);
    assert_eq!(
        cluster.statuses(Helm::Four),
        "1 superseded, 2 superseded, 3 deployed"
    );
    let app = cluster.service("mykadoo-api");
    let app = format!("{}:80", app.trim_start_matches("http://"));
    let users = request(app.parse().unwrap(), "GET", "/api/health", &[]);
    assert_eq!(users.status, 200);
}

/// A target of our own that notes when it is asked.
struct Asked {
    port: u16,
    at: Arc<Mutex<Vec<Instant>>>,
}

impl Asked {
    fn listen() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let at = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&at);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let noted = Arc::clone(&noted);
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    // A probe's request comes in one piece.
                    while let Ok(1..) = stream.read(&mut buffer) {
                        noted.lock().unwrap().push(Instant::now());
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                        if stream.write_all(answer).is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self { port, at }
    }

    /// The longest time between two questions since a moment.
    fn longest_pause(&self, since: Instant) -> Duration {
        let at = self.at.lock().unwrap();
        let at: Vec<_> = at.iter().filter(|at| **at >= since).collect();
        assert!(at.len() > 10, "{}", at.len());
        at.windows(2)
            .map(|two| two[1].duration_since(*two[0]))
            .max()
            .unwrap()
    }
}

/// By an upgrade of itself, and by the drain of the node of the one that acts, each while a bad revision is watched.
#[test]
fn replaced_in_the_middle_of_a_watch_it_loses_nothing() {
    let Some(cluster) = Cluster::new("replaced", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let asked = Asked::listen();
    let station = Station::new(&cluster);
    let counted = format!(
        "[[release.probe]]\nname = \"counted\"\nurl = \"http://127.0.0.1:{}/\"\n",
        asked.port
    );
    let config = format!("{}{counted}", probes(&cluster, ""));
    let values = |run: &str| {
        json!({
            "config": config,
            "namespaces": [{"name": cluster.namespace, "mode": "enforce"}],
            "podAnnotations": {"example.com/run": run}
        })
    };
    station.install(&values("one"));
    let of_release = |part: &str| {
        let path = format!("/api/v1/releases/{}/mykadoo{part}", cluster.namespace);
        serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default()
    };
    until("there is a baseline", || {
        let release = of_release("");
        let known = release["known"].as_array().cloned().unwrap_or_default();
        release["phase"] == "steady"
            && !known.is_empty()
            && known
                .iter()
                .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
    });
    let is_watched = |revision: u64| {
        until("it is watched", || {
            let release = of_release("");
            release["revision"] == revision && release["phase"] == "watching"
        });
    };
    let ended = |revision: u64| {
        let mut found = Value::Null;
        let began = Instant::now();
        while found.is_null() {
            assert!(
                began.elapsed() < Duration::from_secs(240),
                "revision {revision} never ended\n{}",
                station.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
            let all = of_release("/rollouts")["rollouts"].as_array().cloned();
            let mut of = all.unwrap_or_default();
            of.retain(|past| past["revision"] == revision && past["ending"].is_string());
            assert!(of.len() <= 1, "judged once: {of:?}");
            found = of.pop().unwrap_or_default();
        }
        assert_eq!(
            found["ending"],
            "recovered",
            "{found:#}\n{}",
            station.logs()
        );
    };
    let began = Instant::now();

    cluster.upgrade(&[DEAD]);
    is_watched(2);
    let before = station.names();
    station.install(&values("two"));
    let after = station.names();
    assert!(
        before.iter().all(|name| !after.contains(name)),
        "{before:?} {after:?}"
    );
    ended(2);

    cluster.upgrade(&[DEAD]);
    is_watched(4);
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/leadsman",
        station.namespace
    );
    let holder = cluster.get(&lease)["spec"]["holderIdentity"].clone();
    let holder = holder.as_str().unwrap().split('_').next().unwrap();
    let pod = format!("/api/v1/namespaces/{}/pods/{holder}", station.namespace);
    let node = cluster.get(&pod)["spec"]["nodeName"].clone();
    let node = format!("/api/v1/nodes/{}", node.as_str().unwrap());
    let cordon = |yes: bool| {
        let patch = json!({"spec": {"unschedulable": yes}});
        cluster.send("PATCH", &node, "application/merge-patch+json", &patch);
    };
    cordon(true);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": holder, "namespace": station.namespace}
    });
    let path = format!("{pod}/eviction");
    cluster.send("POST", &path, "application/json", &eviction);
    until("another one takes its place", || {
        let names = station.names();
        names.len() == 2 && !names.iter().any(|name| name == holder)
    });
    cordon(false);
    ended(4);

    let pause = asked.longest_pause(began);
    println!("replaced: nobody probed for {pause:?} at most");
    // An interval is a second: one may fail to come, and this machine be late by another.
    assert!(pause < Duration::from_secs(3), "{pause:?}");
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 superseded, 4 superseded, 5 deployed"
    );
    let account = format!("system:serviceaccount:{}:leadsman", station.namespace);
    let made = cluster.writes(&account);
    let made: Vec<_> = made
        .iter()
        .filter(|write| write.starts_with("create secrets/sh.helm"))
        .collect();
    assert_eq!(made.len(), 2, "{made:?}");
    station.helm(&["uninstall", "leadsman", "--wait"]);
}
