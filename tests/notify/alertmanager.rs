use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::notify::receivers::{Receiver, Reply};
use crate::program::{Leadsman, post, request, until, unused_port};
use crate::support::pki::Pki;

/// A real Alertmanager, with a webhook that hears what it tells.
pub(crate) struct Alertmanager {
    child: Child,
    pub(crate) address: SocketAddr,
    gossip: u16,
    _folder: tempfile::TempDir,
}

impl Alertmanager {
    /// One that gossips with another, where one is given. `None` where the program is not installed.
    pub(crate) fn start(receiver: &str, other: Option<&Self>) -> Option<Self> {
        Self::with(receiver, None, other)
    }

    /// One whose webhook sends the token of a file.
    pub(crate) fn with(receiver: &str, token: Option<&Path>, other: Option<&Self>) -> Option<Self> {
        Self::routed(
            receiver,
            token,
            other,
            "group_by: ['...'], repeat_interval: 1h",
            "",
        )
    }

    /// One with more in its route and in its webhook.
    pub(crate) fn routed(
        receiver: &str,
        token: Option<&Path>,
        other: Option<&Self>,
        route: &str,
        webhook: &str,
    ) -> Option<Self> {
        let found = Self::launch(receiver, token, other, &[], (route, webhook))?;
        found.becomes_ready();
        Some(found)
    }

    /// One with a configuration of its own.
    pub(crate) fn configured(text: &str) -> Option<Self> {
        let found = Self::spawn(text, None, &[])?;
        found.becomes_ready();
        Some(found)
    }

    fn becomes_ready(&self) {
        until("Alertmanager is ready", || {
            self.is_up() && request(self.address, "GET", "/-/ready", &[]).status == 200
        });
    }

    fn is_up(&self) -> bool {
        std::net::TcpStream::connect(self.address).is_ok()
    }

    fn launch(
        receiver: &str,
        token: Option<&Path>,
        other: Option<&Self>,
        more: &[String],
        (route, webhook): (&str, &str),
    ) -> Option<Self> {
        let token = token.map_or_else(String::new, |token| {
            format!(
                ", http_config: {{authorization: {{credentials_file: '{}'}}}}",
                token.display()
            )
        });
        let text = format!(
            "route: {{receiver: hears, group_wait: 100ms, group_interval: 1s, {route}}}\n\
             receivers:\n- name: hears\n  webhook_configs: [{{url: '{receiver}', send_resolved: true{webhook}{token}}}]\n"
        );
        Self::spawn(&text, other, more)
    }

    fn spawn(text: &str, other: Option<&Self>, more: &[String]) -> Option<Self> {
        let program = "prometheus-alertmanager";
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
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("alertmanager.yml");
        std::fs::write(&file, text).unwrap();
        let (port, gossip) = (unused_port(), unused_port());
        let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--cluster.listen-address=127.0.0.1:{gossip}"))
            .args([
                "--cluster.gossip-interval=50ms",
                "--cluster.peer-timeout=2s",
                "--cluster.settle-timeout=1s",
            ])
            .args(more);
        if let Some(other) = other {
            command.arg(format!("--cluster.peer=127.0.0.1:{}", other.gossip));
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self {
            child,
            address,
            gossip,
            _folder: folder,
        })
    }

    /// The alerts of a name that it has.
    pub(crate) fn alerts(&self, name: &str) -> Vec<Value> {
        let reply = request(self.address, "GET", "/api/v2/alerts", &[]);
        let all: Vec<Value> = serde_json::from_str(&reply.body).unwrap_or_default();
        all.into_iter()
            .filter(|alert| alert["labels"]["alertname"] == name)
            .collect()
    }

    fn ends_at(&self, name: &str) -> String {
        let alerts = self.alerts(name);
        alerts
            .first()
            .map_or_else(String::new, |alert| alert["endsAt"].to_string())
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(urls: &[String], state: &Path, target: &str) -> String {
    format!(
        "[state]\ndirectory = {:?}\n[alertmanager]\nurls = {urls:?}\nresend = \"2s\"\nwatchdog = true\n\
         labels = {{ cluster = \"test\" }}\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\ninterval = \"500ms\"\n\
         [[release.probe]]\nname = \"api\"\nurl = \"{target}\"\ntimeout = \"400ms\"\n",
        state.display().to_string()
    )
}

/// Times that the receiver was told of an alert, by its status.
pub(crate) fn told(receiver: &Receiver, name: &str, status: &str) -> usize {
    let bodies = receiver.bodies();
    let notices = bodies
        .iter()
        .filter_map(|body| serde_json::from_str::<Value>(body).ok());
    notices
        .filter(|notice| {
            let alerts = notice["alerts"].as_array().cloned().unwrap_or_default();
            alerts
                .iter()
                .any(|alert| alert["labels"]["alertname"] == name && alert["status"] == status)
        })
        .count()
}

#[test]
fn two_that_gossip_hear_of_the_beginning_and_of_the_end_across_a_restart() {
    let hears = Receiver::start(|_| Reply::status(200));
    let Some(one) = Alertmanager::start(&hears.url(), None) else {
        return;
    };
    let two = Alertmanager::start(&hears.url(), Some(&one)).unwrap();
    let app = Receiver::start(|_| Reply::status(500));
    let state = tempfile::tempdir().unwrap();
    let urls = [
        format!("http://{}", one.address),
        format!("http://{}/", two.address),
    ];
    let mut leadsman = Leadsman::run(&configuration(&urls, state.path(), &app.url()), &[]);

    // The watchdog fires on both, is sent again and again, and is known to be there.
    for alertmanager in [&one, &two] {
        until("the watchdog is there", || {
            alertmanager.alerts("LeadsmanWatchdog").len() == 1
        });
    }
    let watchdog = &one.alerts("LeadsmanWatchdog")[0];
    assert_eq!(watchdog["labels"]["cluster"], "test");
    assert_eq!(watchdog["labels"]["source"], "leadsman");
    for alertmanager in [&one, &two] {
        let first = alertmanager.ends_at("LeadsmanWatchdog");
        until("its end moves on", || {
            alertmanager.ends_at("LeadsmanWatchdog") > first
        });
    }
    until("both are known to have it", || {
        let alerts: Value = serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
        alerts["alerts"].as_array().unwrap().iter().any(|alert| {
            alert["labels"]["alertname"] == "LeadsmanWatchdog"
                && alert["confirmed_by"].as_array().unwrap().len() == 2
        })
    });

    // The probe has failed for a minute.
    let name = "LeadsmanProbeFailing";
    let patience = std::time::Duration::from_secs(100);
    let deadline = std::time::Instant::now() + patience;
    while one.alerts(name).is_empty() || two.alerts(name).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{}", leadsman.log());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    until("people have heard of it", || {
        told(&hears, name, "firing") == 1
    });
    let began = one.alerts(name)[0]["startsAt"].clone();
    let link = one.alerts(name)[0]["generatorURL"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(link.ends_with("/#release/shop/mykadoo"), "{link}");

    // Between the beginning and the end the daemon is killed; the fault is mended meanwhile.
    leadsman.kill();
    app.answers(|_| Reply::status(200));
    leadsman.start_again();
    let deadline = std::time::Instant::now() + patience;
    while told(&hears, name, "resolved") == 0 {
        assert!(std::time::Instant::now() < deadline, "{}", leadsman.log());
        if let Some(alert) = one.alerts(name).first() {
            assert_eq!(alert["startsAt"], began, "the beginning stays the same");
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // It is told for a while that it is over, and people hear that once.
    let errors = "leadsman_alertmanager_errors_total";
    for line in leadsman
        .get("/metrics")
        .body
        .lines()
        .filter(|line| line.starts_with(errors))
    {
        assert!(line.ends_with(" 0"), "{line}");
    }
    drop(two);
    until("the one that is gone shows", || {
        let page = leadsman.get("/metrics").body;
        let mut lines = page.lines().filter(|line| line.starts_with(errors));
        lines.any(|line| !line.ends_with(" 0"))
    });
    let first = one.ends_at("LeadsmanWatchdog");
    until("the other one hears on", || {
        one.ends_at("LeadsmanWatchdog") > first
    });
    assert_eq!(told(&hears, name, "firing"), 1);
    assert_eq!(told(&hears, name, "resolved"), 1);
}

/// One that wants to see a certificate, under a path and with a name that is not its address.
#[test]
fn one_behind_tls_and_a_prefix_knows_us_by_our_certificate() {
    let pki = Pki::new();
    let (certificate, key) = pki.server_files(&["alertmanager.example.com"]);
    let web = pki.file(
        "web.yml",
        &format!(
            "tls_server_config:\n  cert_file: '{}'\n  key_file: '{}'\n  client_ca_file: '{}'\n  \
             client_auth_type: RequireAndVerifyClientCert\n",
            certificate.display(),
            key.display(),
            pki.ca_file().display()
        ),
    );
    let hears = Receiver::start(|_| Reply::status(200));
    let more = [
        format!("--web.config.file={}", web.display()),
        "--web.route-prefix=/alerts-here/".to_owned(),
    ];
    let Some(real) =
        Alertmanager::launch(&hears.url(), None, None, &more, ("group_by: ['...']", ""))
    else {
        return;
    };
    until("Alertmanager listens", || real.is_up());
    let (own, own_key) = pki.client_files();
    let config = |tls: &str| {
        format!(
            "[alertmanager]\nurls = [\"https://{}/alerts-here\"]\nresend = \"1s\"\nwatchdog = true\n\
             [alertmanager.tls]\nserver_name = \"alertmanager.example.com\"\nca_file = {:?}\n{tls}\
             [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\n\
             [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n",
            real.address,
            pki.ca_file()
        )
    };
    let unauthenticated = Leadsman::run(&config(""), &[]);
    until("without a certificate nothing arrives", || {
        unauthenticated.said("What is sent does not arrive")
    });
    assert_eq!(told(&hears, "LeadsmanWatchdog", "firing"), 0);
    drop(unauthenticated);
    let known = Leadsman::run(
        &config(&format!("cert_file = {own:?}\nkey_file = {own_key:?}\n")),
        &[],
    );
    until("the alert is told on", || {
        told(&hears, "LeadsmanWatchdog", "firing") == 1
    });
    until("it is read back", || {
        let alerts: Value = serde_json::from_str(&known.get("/api/v1/alerts").body).unwrap();
        let by = alerts["alerts"][0]["confirmed_by"].as_array().cloned();
        by.is_some_and(|by| by.len() == 1)
    });
}

/// The example of routes is one that Alertmanager takes, and it sends each alert where its priority says.
#[test]
fn the_example_routes_by_priority() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/alertmanager.example.yml");
    let amtool = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("amtool").args(arguments).output();
        assert!(
            output.is_ok() || std::env::var_os("LEADSMAN_TEST_ALL").is_none(),
            "amtool is missing"
        );
        let output = output.ok()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Some(said)
    };
    let config = format!("--config.file={}", file.display());
    let Some(_) = amtool(&["check-config", file.to_str().unwrap()]) else {
        return;
    };
    let check = |name: &str, labels: &[(&str, &str)]| {
        let written = labels.iter().map(|(key, value)| format!("{key}={value}"));
        let labels: Vec<String> = std::iter::once(format!("alertname={name}"))
            .chain(written)
            .collect();
        let mut arguments = vec!["config", "routes", "test", config.as_str()];
        arguments.extend(labels.iter().map(String::as_str));
        let wakes = ["P0", "P1"].map(|priority| format!("priority={priority}"));
        let expected = match name {
            "LeadsmanWatchdog" => "dead-mans-switch",
            _ if labels.iter().any(|label| wakes.contains(label)) => "page",
            _ => "day",
        };
        assert_eq!(amtool(&arguments).unwrap().trim(), expected, "{labels:?}");
    };
    let own = leadsman::core::alerts::AlertKind::ALL;
    for kind in own {
        let labels = [("priority", kind.priority()), ("source", "leadsman")];
        check(kind.name(), &labels);
    }
    // What Prometheus tells by the shipped rules goes the same ways.
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/leadsman/files/rules.yaml");
    let rules: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    let mut alerts = 0;
    for rule in rules.filter(|rule| rule["alert"].is_string()) {
        let name = rule["alert"].as_str().unwrap();
        let label = |key: &str| rule["labels"][key].as_str().unwrap_or_default();
        let (severity, priority) = (label("severity"), label("priority"));
        assert_eq!(label("source"), "leadsman", "{name}");
        let wakes = matches!(priority, "P0" | "P1");
        assert_eq!(severity == "critical", wakes, "{name}: {priority}");
        assert!(wakes || matches!(priority, "P2" | "P3"), "{name}");
        // One of the same name as one of our own is as bad.
        if let Some(kind) = own.iter().find(|kind| kind.name() == name) {
            let ours = (kind.severity().as_str(), kind.priority());
            assert_eq!((severity, priority), ours, "{name}");
        }
        check(name, &[("priority", priority), ("source", "leadsman")]);
        alerts += 1;
    }
    assert!(alerts >= 22, "{alerts}");
}

/// What a bad revision does to the probes and objectives of its release is said once, whatever became of the revision.
#[test]
fn the_example_says_once_what_a_bad_revision_does() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/alertmanager.example.yml");
    let hears = Receiver::start(|_| Reply::status(200));
    let mut text = std::fs::read_to_string(file).unwrap();
    for host in ["pager", "chat", "watch"] {
        let url = format!("http://{host}.example.com/");
        text = text.replace(&url, &hears.url());
    }
    let Some(alertmanager) = Alertmanager::configured(&text) else {
        return;
    };
    // Each source is of a release of its own; one release has none.
    let sources = [
        "ReleaseRegressed",
        "ReleaseRegressedObserveOnly",
        "RollbackFailed",
        "RollbackRefused",
        "RollbackLimitReached",
        "NotTheRelease",
    ];
    let targets = ["ProbeFailing", "ObjectiveBurning", "ObjectiveAtRisk"];
    let alert = |kind: &str, release: &str| {
        let name = format!("Leadsman{kind}");
        json!({"labels": {"alertname": name, "namespace": "shop", "release": release, "source": "leadsman"}})
    };
    let mut all: Vec<Value> = sources.iter().map(|kind| alert(kind, kind)).collect();
    for release in sources.iter().chain(&["none"]) {
        all.extend(targets.iter().map(|kind| alert(kind, release)));
    }
    let headers = [("Content-Type", "application/json")];
    let body = Value::from(all).to_string();
    let posted = post(
        alertmanager.address,
        "/api/v2/alerts",
        &headers,
        body.as_bytes(),
    );
    assert_eq!(posted.status, 200, "{}", posted.body);
    until("each is told or said already", || {
        targets.iter().all(|kind| {
            let found = alertmanager.alerts(&format!("Leadsman{kind}"));
            found.len() == sources.len() + 1
                && found.iter().all(|alert| {
                    let is_alone = alert["labels"]["release"] == "none";
                    let state = if is_alone { "active" } else { "suppressed" };
                    alert["status"]["state"] == state
                })
        })
    });
}
