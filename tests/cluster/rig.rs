//! The rig from inside: a namespace for each test, the app installed by a real Helm, and what the cluster saw.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "shared by the tests of one binary"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

/// Which Helm a person or a pipeline uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Helm {
    Three,
    Four,
}

impl Helm {
    pub fn program(self) -> &'static str {
        match self {
            Self::Three => "helm3",
            Self::Four => "helm4",
        }
    }

    pub fn path(self) -> PathBuf {
        let path = std::env::var_os("PATH").unwrap();
        let mut all = std::env::split_paths(&path).map(|folder| folder.join(self.program()));
        all.find(|file| file.exists())
            .expect("the rig has both Helms in its PATH")
    }
}

/// The rig's folder, when we are in it. Outside the test is left out, except where all tests must run.
pub fn rig() -> Option<&'static Path> {
    static RIG: OnceLock<Option<PathBuf>> = OnceLock::new();
    let rig = RIG.get_or_init(|| std::env::var_os("LEADSMAN_RIG").map(PathBuf::from));
    if rig.is_none() {
        eprintln!("left out: no cluster; `tests/rig/up cargo test --test cluster` brings one up");
    }
    rig.as_deref()
}

/// A namespace of its own, and the app in it.
pub struct Cluster {
    pub namespace: String,
    pub helm: Helm,
    /// Where Helm keeps its records.
    pub driver: &'static str,
    rig: &'static Path,
}

impl Cluster {
    /// A namespace that nobody else uses; `None` outside the rig.
    pub fn new(name: &str, helm: Helm) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let rig = rig()?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Some(Self {
            namespace: format!("{name}-{number}-{}", std::process::id()),
            helm,
            driver: "secret",
            rig,
        })
    }

    pub fn folder(&self) -> &'static Path {
        self.rig
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.rig.join("admin.kubeconfig")
    }

    /// A helm for Leadsman that does something of its own before or instead of this cluster's, which it finds as `$HELM`.
    pub fn played_helm(&self, script: &str) -> PathBuf {
        let file = self.rig.join(format!("{}.helm", self.namespace));
        let real = self.helm.path();
        let text = format!("#!/bin/sh\nHELM={}\n{script}\n", real.display());
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    /// A helm for Leadsman that can be held up at the commands that are like this pattern of the shell.
    pub fn held_helm(&self, commands: &str) -> HeldHelm {
        let file = self.rig.join(format!("{}.hold", self.namespace));
        let script = format!(
            "case \"$*\" in {commands}) while [ -e {} ]; do sleep 0.1; done;; esac\nexec \"$HELM\" \"$@\"",
            file.display()
        );
        HeldHelm {
            path: self.played_helm(&script),
            file,
        }
    }

    /// Runs this cluster's Helm in its namespace.
    pub fn run(&self, helm: Helm, arguments: &[&str]) -> Output {
        Command::new(helm.path())
            .args(arguments)
            .args(["--namespace", &self.namespace])
            .env("KUBECONFIG", self.kubeconfig())
            .env("HELM_CACHE_HOME", self.rig.join("helm-cache"))
            .env("HELM_DRIVER", self.driver)
            .output()
            .unwrap()
    }

    /// The same, which must work; what it wrote.
    #[track_caller]
    pub fn helm(&self, arguments: &[&str]) -> String {
        self.by(self.helm, arguments)
    }

    /// The same by another Helm.
    #[track_caller]
    pub fn by(&self, helm: Helm, arguments: &[&str]) -> String {
        let output = self.run(helm, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} {arguments:?}: {said}",
            helm.program()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Installs the app with these values, and waits for it.
    #[track_caller]
    pub fn install(&self, values: &[&str]) {
        let mut arguments = vec![
            "install",
            "mykadoo",
            CHART,
            "--create-namespace",
            "--wait",
            "--timeout",
            "60s",
        ];
        arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
        self.helm(&arguments);
    }

    /// Upgrades it as it stands to these values, and does not wait.
    #[track_caller]
    pub fn upgrade(&self, values: &[&str]) {
        let mut arguments = vec!["upgrade", "mykadoo", CHART];
        arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
        self.helm(&arguments);
    }

    /// Revision, status and description, ascending.
    pub fn history(&self, helm: Helm) -> Vec<(u64, String, String)> {
        let json: Value =
            serde_json::from_str(&self.by(helm, &["history", "mykadoo", "-o", "json"])).unwrap();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        json.as_array()
            .unwrap()
            .iter()
            .map(|entry| {
                (
                    entry["revision"].as_u64().unwrap(),
                    text(entry, "status"),
                    text(entry, "description"),
                )
            })
            .collect()
    }

    /// Revisions and statuses as one text: `1 superseded, 2 superseded, 3 deployed`.
    pub fn statuses(&self, helm: Helm) -> String {
        let all: Vec<String> = self
            .history(helm)
            .iter()
            .map(|(revision, status, _)| format!("{revision} {status}"))
            .collect();
        all.join(", ")
    }

    /// What the API server answers.
    pub fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.text(path)).unwrap_or(Value::Null)
    }

    /// The same, as text; empty when nobody answers.
    pub fn text(&self, path: &str) -> String {
        self.ask("GET", path, "application/json", "")
            .map(|(_, text)| text)
            .unwrap_or_default()
    }

    /// One request to the API server as its administrator; status and body.
    fn ask(
        &self,
        method: &str,
        path: &str,
        kind: &str,
        body: &str,
    ) -> reqwest::Result<(u16, String)> {
        let asking = Asking::of(self.rig);
        let method = method.parse().unwrap();
        let request = asking
            .client
            .request(method, format!("https://127.0.0.1:6443{path}"))
            .header("Content-Type", kind)
            .body(body.to_owned());
        asking.runtime.block_on(async {
            let answer = request.send().await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }

    /// Sends JSON to the API server.
    #[track_caller]
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &Value) -> Value {
        self.send_text(method, path, kind, &body.to_string())
    }

    #[track_caller]
    pub fn send_text(&self, method: &str, path: &str, kind: &str, body: &str) -> Value {
        let answer = self.answer(method, path, kind, body);
        assert_ne!(answer["status"], "Failure", "{method} {path}: {answer}");
        answer
    }

    /// What the API server answers, also when it refuses.
    pub fn answer(&self, method: &str, path: &str, kind: &str, body: &str) -> Value {
        let (_, text) = self.ask(method, path, kind, body).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Creates many objects, one after another.
    #[track_caller]
    pub fn create_all(&self, path: &str, bodies: impl Iterator<Item = Value>) {
        for body in bodies {
            let answered = self.ask("POST", path, "application/json", &body.to_string());
            let (status, text) = answered.unwrap();
            assert_eq!(status, 201, "{text}");
        }
    }

    /// A kubeconfig for a service account that may do exactly what `leadsman rbac` prints for this configuration, and
    /// nothing else.
    #[track_caller]
    pub fn least(&self, configuration: &str) -> PathBuf {
        let account = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        let named = serde_json::json!({"metadata": {"name": "leadsman"}});
        self.send("POST", &account, "application/json", &named);
        let (code, roles, said) = crate::program::run_apart(
            configuration,
            &[
                "rbac",
                "--account-namespace",
                &self.namespace,
                "--log-level",
                "error",
            ],
        );
        assert_eq!(code, Some(0), "{roles}{said}");
        for document in roles
            .split("---\n")
            .filter(|document| !document.trim().is_empty())
        {
            let is = |kind: &str| document.contains(&format!("\nkind: {kind}\n"));
            let group = "/apis/rbac.authorization.k8s.io/v1";
            let path = if is("ClusterRoleBinding") {
                format!("{group}/clusterrolebindings")
            } else {
                let plural = if is("Role") { "roles" } else { "rolebindings" };
                assert!(is("Role") || is("RoleBinding"), "{document}");
                let place = document
                    .lines()
                    .find_map(|line| line.strip_prefix("  namespace: "));
                let place = place.expect("a Role has a namespace").trim_matches('"');
                format!("{group}/namespaces/{place}/{plural}")
            };
            self.send_text("POST", &path, "application/yaml", document);
        }
        let token = self.token("leadsman");
        let file = self.rig.join(format!("{}.kubeconfig", self.namespace));
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: rig, cluster: {{server: \"https://127.0.0.1:6443\", certificate-authority: {:?}}}}}]\n\
             users: [{{name: leadsman, user: {{token: {}}}}}]\ncontexts: [{{name: rig, context: {{cluster: rig, user: leadsman}}}}]\ncurrent-context: rig\n",
            self.rig.join("pki/ca.crt").display().to_string(),
            serde_json::json!(token)
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A token of a service account of the namespace, for an hour.
    #[track_caller]
    pub fn token(&self, account: &str) -> String {
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{account}/token",
            self.namespace
        );
        let asked = serde_json::json!({"spec": {"expirationSeconds": 3600}});
        let token = self.send("POST", &path, "application/json", &asked);
        token["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A service account that may do one thing with the releases of the namespace; its token.
    #[track_caller]
    pub fn caller(&self, account: &str, resource: &str, verb: &str) -> String {
        let named = serde_json::json!({"metadata": {"name": account}});
        let path = format!("/api/v1/namespaces/{}/serviceaccounts", self.namespace);
        self.send("POST", &path, "application/json", &named);
        let group = format!(
            "/apis/rbac.authorization.k8s.io/v1/namespaces/{}",
            self.namespace
        );
        let role = serde_json::json!({
            "metadata": {"name": account},
            "rules": [{"apiGroups": ["leadsman.io"], "resources": [resource], "verbs": [verb]}]
        });
        self.send("POST", &format!("{group}/roles"), "application/json", &role);
        let binding = serde_json::json!({
            "metadata": {"name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": self.namespace}]
        });
        self.send(
            "POST",
            &format!("{group}/rolebindings"),
            "application/json",
            &binding,
        );
        self.token(account)
    }

    /// The account of [`Self::least`], as the audit log names it.
    pub fn account(&self) -> String {
        format!("system:serviceaccount:{}:leadsman", self.namespace)
    }

    /// The address of a Service of the app.
    pub fn service(&self, name: &str) -> String {
        let path = format!("/api/v1/namespaces/{}/services/{name}", self.namespace);
        let service = self.get(&path);
        format!(
            "http://{}",
            service["spec"]["clusterIP"].as_str().expect("a cluster IP")
        )
    }

    /// The objects of a kind in the namespace.
    pub fn list(&self, group: &str, plural: &str) -> Vec<Value> {
        let path = format!("{group}/namespaces/{}/{plural}", self.namespace);
        self.get(&path)["items"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// All pods of the app's API are Ready and of one image.
    pub fn image(&self) -> Option<String> {
        let path = format!(
            "/apis/apps/v1/namespaces/{}/deployments/mykadoo-api",
            self.namespace
        );
        let deployment = self.get(&path);
        let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
        image.as_str().map(str::to_owned)
    }

    /// Writes to release records and workloads that the API server saw, as `user verb resource/name`, in their order. What
    /// was only tried is left out.
    pub fn writes(&self, user: &str) -> Vec<String> {
        let events = audited(self.rig, &self.namespace).into_iter();
        events
            .filter(|event| {
                let object = &event["objectRef"];
                !is_tried(event)
                    && object["namespace"] == self.namespace.as_str()
                    && event["user"]["username"] == user
                    && event["responseStatus"]["code"]
                        .as_u64()
                        .is_some_and(|code| code < 300)
            })
            .map(|event| {
                let object = &event["objectRef"];
                let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
                format!(
                    "{} {}/{}",
                    text(&event["verb"]),
                    text(&object["resource"]),
                    text(&object["name"])
                )
            })
            .collect()
    }

    /// Leadsman has written nothing here but Events.
    #[track_caller]
    pub fn only_events(&self) {
        let writes = self.writes(&self.account());
        let others: Vec<&String> = writes
            .iter()
            .filter(|write| !write.contains(" events/") && !write.contains("selfsubject"))
            .collect();
        assert!(others.is_empty(), "{others:?}");
    }

    /// The reasons of the Events that Leadsman wrote here, each once, sorted.
    pub fn told(&self) -> Vec<String> {
        let events = self.list("/apis/events.k8s.io/v1", "events");
        let ours = events
            .iter()
            .filter(|event| event["reportingController"] == "leadsman");
        let mut reasons: Vec<String> = ours
            .map(|event| event["reason"].as_str().unwrap().to_owned())
            .collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// Makes all pods of the namespace answer so at a path; an empty answer ends that.
    pub fn depend(&self, path: &str, answer: &str) {
        let mut url = format!(
            "http://127.0.0.1:9900/dependency?namespace={}&path={path}",
            self.namespace
        );
        if !answer.is_empty() {
            url += &format!("&answer={answer}");
        }
        control(&url);
    }

    /// Pods of a workload that are made from now on cannot pull their images.
    pub fn registry_is_away(&self, workload: &str) {
        control(&format!(
            "http://127.0.0.1:9900/registry?namespace={}&workload={workload}",
            self.namespace
        ));
    }
}

/// The client of all tests. It keeps its connections, since tests ask often; a process for each request would cost more
/// than the API server's own work.
struct Asking {
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
}

impl Asking {
    fn of(rig: &Path) -> &'static Self {
        static ASKING: OnceLock<Asking> = OnceLock::new();
        ASKING.get_or_init(|| {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let file = |name: &str| std::fs::read(rig.join("pki").join(name)).unwrap();
            let authority = reqwest::Certificate::from_pem(&file("ca.crt")).unwrap();
            let own = [file("admin.crt"), file("admin.key")].concat();
            let client = reqwest::Client::builder()
                .tls_certs_only([authority])
                .identity(reqwest::Identity::from_pem(&own).unwrap())
                .timeout(Duration::from_secs(30))
                .no_proxy()
                .http1_only();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build();
            Self {
                runtime: runtime.unwrap(),
                client: client.build().unwrap(),
            }
        })
    }
}

/// The events of the audit log whose line holds this text. The log is long, and only what is looked for is worth reading.
pub fn audited(rig: &Path, text: &str) -> Vec<Value> {
    let log = std::fs::read_to_string(rig.join("audit.log")).unwrap();
    log.lines()
        .filter(|line| line.contains(text))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Tells the simulator.
fn control(url: &str) {
    let done = Command::new("curl")
        .args(["-sf", "-X", "POST", url])
        .status()
        .unwrap();
    assert!(done.success());
}

/// Whether an event of the audit log is of a request that was to be tried only, of which nothing is kept.
pub fn is_tried(event: &Value) -> bool {
    let address = event["requestURI"].as_str().unwrap_or_default();
    address.contains("dryRun=All")
}

/// Ends a part of the control plane as a failing machine would; `etcd`, `apiserver`.
pub fn stop(part: &str) {
    let rig = rig().unwrap();
    let pid = std::fs::read_to_string(rig.join(format!("{part}.pid"))).unwrap();
    let killed = Command::new("kill")
        .args(["-9", pid.trim()])
        .status()
        .unwrap();
    assert!(killed.success());
}

/// Starts it again.
pub fn start(part: &str) {
    let rig = rig().unwrap();
    let started = Command::new(rig.join("start").join(part)).status();
    assert!(started.unwrap().success());
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // So that hundreds of pods do not pile up; the rig goes away as a whole.
        let path = format!("/api/v1/namespaces/{}", self.namespace);
        let _ = self.ask("DELETE", &path, "application/json", "");
    }
}

/// A helm that waits while it is held.
pub struct HeldHelm {
    pub path: PathBuf,
    /// Is there as long.
    file: PathBuf,
}

impl HeldHelm {
    pub fn hold(&self) {
        std::fs::write(&self.file, "").unwrap();
    }

    pub fn let_go(&self) {
        // It may never have been held.
        let _ = std::fs::remove_file(&self.file);
    }
}

/// The chart of the app.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rig/mykadoo");
