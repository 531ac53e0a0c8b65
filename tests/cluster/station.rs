//! On station: the chart, its Roles and bound tokens, several replicas of the real program as pods, which guard another
//! release, tell a real Alertmanager, and are found and scraped by a real Prometheus.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::asked::Asked;
use crate::program::{request, until, unused_port};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;
use crate::soak;

pub(crate) const OWN_CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/leadsman");

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
pub(crate) struct Station<'a> {
    cluster: &'a Cluster,
    /// Its own namespace, and the Helm that it is installed by.
    pub(crate) own: Cluster,
    pub(crate) folder: tempfile::TempDir,
}

impl<'a> Station<'a> {
    /// In a namespace where the API server takes no pod that is not restricted.
    pub(crate) fn new(cluster: &'a Cluster) -> Self {
        let station = Self {
            cluster,
            own: Cluster::new("own", cluster.helm).expect("it is on the rig"),
            folder: tempfile::tempdir().unwrap(),
        };
        let label = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        let named = json!({"metadata": {"name": station.own.namespace, "labels": label}});
        let path = "/api/v1/namespaces";
        cluster.send("POST", path, "application/json", &named);
        station
    }

    /// Also asked of the API server itself: otherwise that its pods are there would say nothing.
    #[track_caller]
    fn takes_only_restricted_pods(&self) {
        let container = json!({"name": "root", "image": "leadsman:1"});
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "root"}, "spec": {"containers": [container]}
        });
        let pki = self.cluster.folder().join("pki");
        let output = Command::new("curl")
            .args([
                "-s",
                "-H",
                "Content-Type: application/json",
                "--data-binary",
            ])
            .arg(pod.to_string())
            .arg("--cacert")
            .arg(pki.join("ca.crt"))
            .arg("--cert")
            .arg(pki.join("admin.crt"))
            .arg("--key")
            .arg(pki.join("admin.key"))
            .arg(format!(
                "https://127.0.0.1:6443/api/v1/namespaces/{}/pods?dryRun=All",
                self.own.namespace
            ))
            .output();
        let said = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(said.contains("violates PodSecurity"), "{said}");
    }

    /// In the namespace of the app.
    pub(crate) fn beside(cluster: &'a Cluster) -> Self {
        let mut own = Cluster::new("own", cluster.helm).expect("it is on the rig");
        own.namespace.clone_from(&cluster.namespace);
        Self {
            cluster,
            own,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn helm(&self, arguments: &[&str]) -> String {
        let output = self.own.run(self.own.helm, arguments);
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
        self.upgrade(&values.to_string(), &[]);
    }

    /// The same with a file of values, and more arguments.
    #[track_caller]
    pub(crate) fn upgrade(&self, values: &str, more: &[&str]) {
        let file = self.folder.path().join("values.yaml");
        std::fs::write(&file, values).unwrap();
        let arguments = [
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
        ];
        self.helm(&[&arguments[..], more].concat());
    }

    fn pods(&self) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/{}/pods", self.own.namespace);
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

    pub(crate) fn logs(&self) -> String {
        let mut all = String::new();
        for pod in self.pods() {
            let name = pod["metadata"]["name"].as_str().unwrap_or("");
            let path = format!("/api/v1/namespaces/{}/pods/{name}/log", self.own.namespace);
            all += &format!("--- {name}\n{}\n", self.cluster.text(&path));
        }
        all
    }

    /// The address of the Service.
    pub(crate) fn address(&self) -> SocketAddr {
        let path = format!(
            "/api/v1/namespaces/{}/services/leadsman",
            self.own.namespace
        );
        let service = self.cluster.get(&path);
        let ip = service["spec"]["clusterIP"].as_str().unwrap();
        format!("{ip}:9616").parse().unwrap()
    }

    /// Its account, as the audit log names it.
    fn account(&self) -> String {
        format!("system:serviceaccount:{}:leadsman", self.own.namespace)
    }

    /// All that it has changed so far is its own state; elsewhere there are Events alone.
    #[track_caller]
    pub(crate) fn has_only_looked(&self) {
        let account = self.account();
        let events = crate::rig::audited(self.cluster.folder(), &account).into_iter();
        let mut state = 0;
        for event in events.filter(|event| event["user"]["username"] == account.as_str()) {
            if event["responseStatus"]["code"].as_u64() >= Some(300) {
                continue;
            }
            if crate::rig::is_tried(&event) {
                continue;
            }
            let object = &event["objectRef"];
            let resource = object["resource"].as_str().unwrap_or("");
            let is_own = object["namespace"] == self.own.namespace.as_str();
            let may = match resource {
                "configmaps" | "leases" => is_own,
                // Asking what it may changes nothing.
                "events" | "selfsubjectaccessreviews" | "selfsubjectrulesreviews" => true,
                _ => false,
            };
            assert!(may, "{event:#}");
            state += u32::from(resource == "configmaps");
        }
        assert!(state > 0);
    }

    /// Processes of its pods.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let own = format!("OWN_RELEASE={}/leadsman\0", self.own.namespace);
        let folders = std::fs::read_dir("/proc").unwrap().flatten();
        let of_pods = folders.filter_map(|folder| {
            let pid = folder.file_name().to_str()?.parse().ok()?;
            let bytes = std::fs::read(folder.path().join("environ")).ok()?;
            let name = std::fs::read_to_string(folder.path().join("comm")).ok()?;
            let is_it = String::from_utf8_lossy(&bytes).contains(&own);
            (is_it && name.trim() == "leadsman").then_some(pid)
        });
        of_pods.collect()
    }

    pub(crate) fn get(&self, path: &str) -> String {
        request(self.address(), "GET", path, &[]).body
    }
}

fn probes(cluster: &Cluster, more: &str) -> String {
    let api = cluster.service("mykadoo-api");
    let mut text = format!(
        "[[release]]\nname = \"mykadoo\"\nnamespace = {:?}\nbase_url = {api:?}\nmode = \"enforce\"\ninterval = \"1s\"\ntimeout = \"3s\"\n\
         [release.analysis]\nduration = \"60s\"\n{more}",
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

/// A real Prometheus that finds the pods in the API server, through the Service: as the operator makes it of the chart's
/// ServiceMonitor.
fn prometheus(station: &Station<'_>) -> (Server, u16) {
    let monitor = station.helm(&[
        "template",
        "leadsman",
        OWN_CHART,
        "--api-versions",
        "monitoring.coreos.com/v1/ServiceMonitor",
        "--set",
        "serviceMonitor.enabled=true",
        "--show-only",
        "templates/servicemonitor.yaml",
    ]);
    let monitor: Value = serde_saphyr::from_str(&monitor).unwrap();
    let spec = &monitor["spec"];
    let endpoint = &spec["endpoints"][0];
    let keep = |label: String, value: &Value| {
        assert!(value.is_string(), "{monitor:#}");
        json!({"source_labels": [label], "regex": value, "action": "keep"})
    };
    let labels = spec["selector"]["matchLabels"].as_object().unwrap();
    let mut relabel: Vec<Value> = labels
        .iter()
        .map(|(label, value)| {
            let label = label.replace(['.', '/', '-'], "_");
            keep(format!("__meta_kubernetes_service_label_{label}"), value)
        })
        .collect();
    let port = "__meta_kubernetes_endpointslice_port_name".to_owned();
    relabel.push(keep(port, &endpoint["port"]));
    let config = json!({
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{
            "job_name": "leadsman",
            "honor_labels": endpoint["honorLabels"],
            "metrics_path": endpoint["path"],
            "kubernetes_sd_configs": [{
                "role": "endpointslice",
                "kubeconfig_file": station.cluster.kubeconfig(),
                "namespaces": {"names": spec["namespaceSelector"]["matchNames"]},
            }],
            "relabel_configs": relabel,
        }],
    });
    let folder = station.folder.path();
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, config.to_string()).unwrap();
    let port = unused_port();
    let server = Server::start(
        // The rig's own: Debian's knows no Kubernetes.
        Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("tsdb").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}")),
    );
    (server, port)
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
    station.takes_only_restricted_pods();
    station.install(&values(&config("")));
    assert_eq!(station.pods().len(), 2);
    let release = || {
        let path = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
        serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default()
    };
    until("there is a baseline", || {
        let known = release()["probe_history"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        !known.is_empty()
            && known
                .iter()
                .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
    });
    // Nothing is missing in the Roles of the chart.
    until("a rollback could be done", || {
        release()["preflight_failure"].is_null() && release()["phase"] == "idle"
    });
    let (_scrapes, prometheus) = prometheus(&station);

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
    let address = format!("127.0.0.1:{prometheus}").parse().unwrap();
    until("Prometheus has scraped both, and one acts", || {
        let query = "/api/v1/query?query=sum(leadsman_leader)%2B10*count(leadsman_leader)";
        request(address, "GET", query, &[]).body.contains("\"21\"")
    });
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

/// With `mode = "off"` it probes and tells, and has no right outside its own namespace.
#[test]
fn one_that_only_alerts_has_no_right_at_the_release() {
    let Some(cluster) = Cluster::new("alerts", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let station = Station::new(&cluster);
    let config = probes(&cluster, "")
        .replace("mode = \"enforce\"", "mode = \"off\"")
        .replace("pods = \"mykadoo-api\"\n", "");
    station.install(&json!({
        "image": {"repository": "registry.example.com/leadsman"},
        "config": config,
    }));
    let said = |name: &str| station.get("/api/v1/alerts").contains(name);
    until("one of two tells what it knows", || {
        let probes: Value =
            serde_json::from_str(&station.get("/api/v1/probes")).unwrap_or_default();
        probes["probes"][0]["totals"]["success"].as_u64() > Some(3)
            && station.get("/metrics").contains("leadsman_leader")
    });
    assert!(!said("LeadsmanProbeFailing"));
    cluster.upgrade(&[DEAD]);
    until("a probe that fails is told of", || {
        said("LeadsmanProbeFailing")
    });
    let path = format!("/api/v1/namespaces/{}/configmaps", station.own.namespace);
    until("its own state is stored", || {
        let maps = cluster.get(&path)["items"].as_array().cloned().unwrap();
        let names = maps
            .iter()
            .map(|map| map["metadata"]["name"].as_str().unwrap());
        let given = ["leadsman", "kube-root-ca.crt"];
        names.filter(|name| !given.contains(name)).count() > 0
    });
    station.has_only_looked();
    for kind in [
        format!("namespaces/{}/roles", cluster.namespace),
        format!("namespaces/{}/rolebindings", cluster.namespace),
        "clusterroles".to_owned(),
        "clusterrolebindings".to_owned(),
    ] {
        let found = cluster.get(&format!("/apis/rbac.authorization.k8s.io/v1/{kind}"));
        let items = found["items"].as_array().unwrap();
        let own = station.own.namespace.as_str();
        let is_own = |item: &&Value| {
            item["metadata"]["annotations"]["meta.helm.sh/release-namespace"] == own
        };
        assert!(!items.iter().any(|item| is_own(&item)), "{found:#}");
    }
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
}

/// By an upgrade of itself, and by a reload and the drain of the node of the one that acts, while a bad revision is watched.
#[test]
fn replaced_in_the_middle_of_a_watch_it_loses_nothing() {
    let Some(cluster) = Cluster::new("replaced", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let asked = Asked::listen();
    let station = Station::new(&cluster);
    let counted = asked.probe();
    let values = |run: &str, more: &str| {
        json!({
            "config": format!("{}{counted}{more}", probes(&cluster, "")),
            "namespaces": [{"name": cluster.namespace, "mode": "enforce"}],
            "podAnnotations": {"example.com/run": run}
        })
    };
    station.install(&values("one", ""));
    let of_release = |part: &str| {
        let path = format!("/api/v1/releases/{}/mykadoo{part}", cluster.namespace);
        serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default()
    };
    until("there is a baseline", || {
        let release = of_release("");
        let known = release["probe_history"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        release["phase"] == "idle"
            && !known.is_empty()
            && known
                .iter()
                .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
    });
    let is_watched = |revision: u64| {
        until("it is watched", || {
            let release = of_release("");
            // Where pods come up slowly it may be rejected before all of them are there.
            let phase = release["phase"].as_str().unwrap_or("");
            release["revision"] == revision && matches!(phase, "rolling_out" | "analyzing")
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
            of.retain(|finished| {
                finished["revision"] == revision && finished["outcome"].is_string()
            });
            assert!(of.len() <= 1, "judged once: {of:?}");
            found = of.pop().unwrap_or_default();
        }
        assert_eq!(
            found["outcome"],
            "rolled_back",
            "{found:#}\n{}",
            station.logs()
        );
    };
    let began = Instant::now();

    cluster.upgrade(&[DEAD]);
    is_watched(2);
    let before = station.names();
    station.install(&values("two", ""));
    let after = station.names();
    assert!(
        before.iter().all(|name| !after.contains(name)),
        "{before:?} {after:?}"
    );
    ended(2);

    cluster.upgrade(&[DEAD]);
    is_watched(4);
    let another = "[[release.probe]]\nname = \"another\"\npath = \"/\"\n";
    station.install(&values("two", another));
    until("the new probe is asked", || {
        station.get("/api/v1/probes").contains("another")
    });
    assert_eq!(after, station.names(), "it is reloaded, not started again");
    let lease = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases/leadsman",
        station.own.namespace
    );
    let holder = cluster.get(&lease)["spec"]["holderIdentity"].clone();
    let holder = holder.as_str().unwrap().split('_').next().unwrap();
    let pod = format!("/api/v1/namespaces/{}/pods/{holder}", station.own.namespace);
    let node = cluster.get(&pod)["spec"]["nodeName"].clone();
    let node = format!("/api/v1/nodes/{}", node.as_str().unwrap());
    let cordon = |yes: bool| {
        let patch = json!({"spec": {"unschedulable": yes}});
        cluster.send("PATCH", &node, "application/merge-patch+json", &patch);
    };
    cordon(true);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction",
        "metadata": {"name": holder, "namespace": station.own.namespace}
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
    let made = cluster.writes(&station.account());
    let made: Vec<_> = made
        .iter()
        .filter(|write| write.starts_with("create secrets/sh.helm"))
        .collect();
    assert_eq!(made.len(), 2, "{made:?}");
    station.helm(&["uninstall", "leadsman", "--wait"]);
}

/// Whoever selects all releases of a namespace does not have Leadsman judged by itself, unless they name it.
#[test]
fn all_releases_of_its_own_namespace_are_all_but_itself() {
    let Some(cluster) = Cluster::new("itself", Helm::Four) else {
        return;
    };
    cluster.install(&[]);
    let station = Station::beside(&cluster);
    let place = &cluster.namespace;
    let all = format!(
        "[[release]]\nselect = \"*\"\nnamespace = {place:?}\nbase_url = \"http://{{release}}-api\"\n\
         probe = [{{ name = \"api\", path = \"/api/health\" }}]\n"
    );
    let itself = format!(
        "[[release]]\nname = \"leadsman\"\nnamespace = {place:?}\nbase_url = \"http://leadsman:9616\"\n\
         probe = [{{ name = \"ready\", path = \"/-/ready\" }}]\n"
    );
    let install = |config: &str| {
        station.install(&json!({
            "config": config,
            "namespaces": [{"name": place, "mode": "observe"}]
        }));
    };
    let known = || {
        let answer = station.get("/api/v1/releases");
        let answer = serde_json::from_str::<Value>(&answer).unwrap_or_default();
        let all = answer["releases"].as_array().cloned().unwrap_or_default();
        let names = all.iter().filter_map(|release| release["release"].as_str());
        let mut names: Vec<_> = names.map(str::to_owned).collect();
        names.sort();
        names
    };
    install(&all);
    until("what is selected is known", || known() == ["mykadoo"]);
    // Its own record stands beside that of the app, and is looked at as often.
    let records = cluster.list("/api/v1", "secrets");
    let is_own = |record: &Value| record["metadata"]["labels"]["name"] == "leadsman";
    assert!(records.iter().any(is_own));
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(known(), ["mykadoo"], "{}", station.logs());

    install(&format!("{all}{itself}"));
    until("both are known", || known() == ["leadsman", "mykadoo"]);
    until("its own revision is known", || {
        let path = format!("/api/v1/releases/{place}/leadsman");
        let release = serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default();
        release["revision"] == 2
    });
    station.helm(&["uninstall", "leadsman", "--wait"]);
}

/// One replica turns all of them back, each by a helm of its own; that must fit into the pod.
#[test]
fn several_releases_rolled_back_at_once_fit_into_a_pod() {
    let Some(first) = Cluster::new("several", Helm::Four) else {
        return;
    };
    let mut clusters = vec![first];
    clusters.extend((1..4).map(|_| Cluster::new("several", Helm::Four).unwrap()));
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(|| cluster.install(&[]));
        }
    });
    let station = Station::new(&clusters[0]);
    let of = |cluster: &Cluster| {
        let id = format!("[[release]]\nid = {:?}\n", cluster.namespace);
        probes(cluster, "").replacen("[[release]]\n", &id, 1)
    };
    let config: String = clusters.iter().map(of).collect();
    let namespaces = clusters
        .iter()
        .map(|cluster| json!({"name": cluster.namespace, "mode": "enforce"}));
    let namespaces: Vec<Value> = namespaces.collect();
    station.install(&json!({"config": config, "namespaces": namespaces}));
    let release = |cluster: &Cluster| {
        let path = format!("/api/v1/releases/{}/mykadoo", cluster.namespace);
        serde_json::from_str::<Value>(&station.get(&path)).unwrap_or_default()
    };
    until("there are baselines", || {
        clusters.iter().all(|cluster| {
            let release = release(cluster);
            let known = release["probe_history"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            release["phase"] == "idle"
                && !known.is_empty()
                && known
                    .iter()
                    .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
        })
    });
    let processes = station.processes();
    let used = || {
        let all = processes.iter().map(|pid| soak::with_children(*pid));
        all.max().unwrap_or(0)
    };
    let before = used();
    let is_over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                most = most.max(used());
                std::thread::sleep(Duration::from_millis(50));
            }
            most
        });
        let upgrades: Vec<_> = clusters
            .iter()
            .map(|cluster| scope.spawn(|| cluster.upgrade(&[DEAD])))
            .collect();
        for upgrade in upgrades {
            upgrade.join().unwrap();
        }
        let began = Instant::now();
        let are_back = || {
            clusters.iter().all(|cluster| {
                let release = release(cluster);
                release["revision"] == 3 && release["phase"] == "idle"
            })
        };
        while !are_back() && began.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(200));
        }
        is_over.store(true, Ordering::Relaxed);
        measured.join().unwrap()
    });
    for cluster in &clusters {
        assert_eq!(
            cluster.statuses(Helm::Four),
            "1 superseded, 2 superseded, 3 deployed"
        );
    }
    let limit = soak::limit();
    println!("several: {before} KiB before, {most} KiB at most, of {limit} KiB");
    assert!(most < limit, "{most} {limit}");
    station.helm(&["uninstall", "leadsman", "--wait"]);
}
