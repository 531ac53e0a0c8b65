//! The way of a new user: the pages about the installation, by their own commands and with the chart's own examples.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{until, unused_port};
use crate::rig::{Cluster, Helm};
use crate::rolled_back::DEAD;
use crate::soak;
use crate::station::{OWN_CHART, Station};

/// What `kubectl port-forward` does.
fn forward(port: u16, to: SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let Ok(to) = TcpStream::connect(to) else {
                continue;
            };
            for (mut from, mut to) in [
                (from.try_clone().unwrap(), to.try_clone().unwrap()),
                (to, from),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

/// The way of the documents: a Leadsman that observes, the rights next, and at last some that roll back and share
/// the releases; with TLS and a token.
#[test]
fn whoever_begins_lets_it_observe_first_and_enforce_and_spread_later() {
    let Some(cluster) = Cluster::new("begins", Helm::Three) else {
        return;
    };
    cluster.install(&[]);
    let station = Station::new(&cluster);
    let pki = |name: &str| cluster.folder().join("pki").join(name);
    let secret = |name: &str, kind: &str, data: Value| {
        let secret = json!({"metadata": {"name": name}, "type": kind, "stringData": data});
        let path = format!("/api/v1/namespaces/{}/secrets", station.own.namespace);
        cluster.send("POST", &path, "application/json", &secret);
    };
    let text = |name: &str| std::fs::read_to_string(pki(name)).unwrap();
    let pair = json!({
        "tls.crt": text("leadsman.crt"), "tls.key": text("leadsman.key"), "ca.crt": text("ca.crt")
    });
    secret("leadsman-tls", "kubernetes.io/tls", pair);
    secret("leadsman-token", "Opaque", json!({"token": "open sesame"}));
    let token = station.folder.path().join("token");
    std::fs::write(&token, "open sesame").unwrap();
    let token = ["--token-file", token.to_str().unwrap()];

    // Values of their own: the example's, with their addresses. The waits are made shorter.
    let example = std::fs::read_to_string(format!("{OWN_CHART}/ci/staging-values.yaml")).unwrap();
    let observes = "mode      = \"observe\"\n";
    let shorter =
        format!("{observes}  interval  = \"1s\"\n  analysis  = {{ duration = \"60s\" }}\n");
    assert!(example.contains(observes));
    let values = example
        .replace("mykadoo-staging", &cluster.namespace)
        .replace(
            "https://staging.mykadoo.com",
            &cluster.service("mykadoo-api"),
        )
        .replace(observes, &shorter)
        + "tls: {existingSecret: leadsman-tls}\nauth: {existingSecret: leadsman-token}\n";
    let image = ["--set", "image.repository=registry.example.com/leadsman"];
    station.upgrade(&values, &image);
    station.helm(&["test", "leadsman"]);

    let port = unused_port();
    forward(port, station.address());
    let server = format!("https://127.0.0.1:{port}");
    let leadsman = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(arguments)
            .env("LEADSMAN_SERVER", &server)
            .env("LEADSMAN_CA_FILE", pki("ca.crt"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let get = |path: &str| {
        let output = Command::new("curl")
            .args(["-s", "--max-time", "10", "--cacert"])
            .arg(pki("ca.crt"))
            .arg(format!("{server}{path}"))
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let of_release = |part: &str| {
        let path = format!("/api/v1/releases/{}/mykadoo{part}", cluster.namespace);
        serde_json::from_str::<Value>(&get(&path)).unwrap_or_default()
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let began = Instant::now();
        while !holds() {
            assert!(
                began.elapsed() < Duration::from_secs(240),
                "never came true: {what}\n{:#}\n{}\n{}",
                of_release(""),
                of_release("/rollouts"),
                station.logs()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    };
    let knows_the_app = |mode: &str| {
        wait("there is a baseline", &|| {
            let release = of_release("");
            let known = release["probe_history"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            release["phase"] == "idle"
                && release["mode"] == mode
                && !known.is_empty()
                && known
                    .iter()
                    .all(|probe| probe["baseline_total"].as_u64() >= Some(20))
        });
    };
    // Of the replica that acts: which one is asked is a matter of chance.
    let ready = |start: &str, end: &str| {
        wait("whether a rollback could be done", &|| {
            get("/metrics").lines().any(|line| {
                line.starts_with("leadsman_rollback_ready{")
                    && line.contains(start)
                    && line.ends_with(end)
            })
        });
    };

    // It observes.
    knows_the_app("observe");
    ready("reason=\"rights\"", " 0");
    cluster.upgrade(&[DEAD]);
    wait("revision 2 has been judged", &|| {
        let all = of_release("/rollouts")["rollouts"].as_array().cloned();
        all.unwrap_or_default()
            .iter()
            .any(|finished| finished["revision"] == 2 && finished["outcome"].is_string())
    });
    let (code, said) = leadsman(&["history", "mykadoo"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("Revision 2: would roll back"), "{said}");
    for arguments in [&["status"][..], &["status", "mykadoo"]] {
        let (code, said) = leadsman(arguments);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("observe"), "{said}");
    }
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    station.has_only_looked();
    let explain = ["explain", "mykadoo", "--revision", "2"];
    let (code, said) = leadsman(&explain);
    assert_eq!(code, Some(1), "without the token: {said}");
    let (code, said) = leadsman(&[&explain[..], &token].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("made things worse"), "{said}");

    // The rights, by which a person can roll back what Leadsman leaves.
    let rights = ["--set", "namespaces[0].mode=enforce"];
    station.upgrade(&values, &[image, rights].concat());
    ready("", " 1");
    let order = ["rollback", "mykadoo", "--reason", "the cart is empty"];
    let (code, said) = leadsman(&order);
    assert_eq!(code, Some(1), "without the token: {said}");
    assert_eq!(cluster.statuses(Helm::Four), "1 superseded, 2 deployed");
    let (code, said) = leadsman(&[&order[..], &token].concat());
    assert_eq!(code, Some(0), "{said}\n{}", station.logs());
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 deployed"
    );

    // It rolls back, whichever replica has the release.
    let values = values
        .replace("mode      = \"observe\"", "mode      = \"enforce\"")
        .replace("mode: observe", "mode: enforce");
    let spread = ["--set", "spread=true"];
    station.upgrade(&values, &[image, spread].concat());
    wait("a replica has the release", &|| {
        let has = format!(
            "leadsman_release_leader{{namespace=\"{}\",release=\"mykadoo\"}} 1",
            cluster.namespace
        );
        get("/metrics").lines().any(|line| line == has)
    });
    knows_the_app("enforce");
    let processes = station.processes();
    assert_eq!(processes.len(), 2, "{processes:?}");
    let is_over = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::Relaxed) {
                let all = processes.iter().map(|pid| soak::with_children(*pid));
                most = most.max(all.max().unwrap_or(0));
                std::thread::sleep(Duration::from_millis(200));
            }
            most
        });
        cluster.upgrade(&[r#"api.image="mykadoo-api:4""#, DEAD]);
        let (code, said) = leadsman(&["gate", "mykadoo", "4", "--timeout", "4m"]);
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(code, Some(10), "{said}\n{}", station.logs());
        measured.join().unwrap()
    });
    assert_eq!(
        cluster.statuses(Helm::Three),
        "1 superseded, 2 superseded, 3 superseded, 4 superseded, 5 deployed"
    );
    let limit = soak::limit();
    println!("begins: at most {most} KiB with helm, of {limit} KiB");
    assert!(most < limit, "{most} {limit}");
    station.helm(&["uninstall", "leadsman", "--wait"]);
}

/// A page of `docs/`.
fn page(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    std::fs::read_to_string(docs.join(name)).unwrap()
}

/// The steps of its pipeline end for want of a daemon: they are understood so far.
#[test]
fn the_pipeline_of_the_documents_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "open sesame").unwrap();
    let page = page("pipelines.md");
    let yaml = page.split("```yaml\n").nth(1).unwrap();
    let yaml = yaml.split("```").next().unwrap();
    serde_saphyr::from_str::<Value>(yaml).unwrap();
    let mut asked = Vec::new();
    for line in yaml.lines() {
        let line = line.trim().trim_start_matches("run: ");
        let Some(arguments) = line.strip_prefix("leadsman ") else {
            continue;
        };
        let arguments = arguments
            .replace("${{ steps.deploy.outputs.revision }}", "2")
            .replace("\"$RUNNER_TEMP/token\"", token.to_str().unwrap());
        assert!(!arguments.contains('$'), "{arguments}");
        let output = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(arguments.split(' '))
            .env(
                "LEADSMAN_SERVER",
                format!("http://127.0.0.1:{}", unused_port()),
            )
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{line}: {said}");
        assert!(said.contains("no daemon answers"), "{line}: {said}");
        asked.push(arguments.split(' ').next().unwrap().to_owned());
    }
    assert_eq!(asked, ["gate", "explain"]);
}

/// The commands of the two pages, one after the other; each on one line and without its comment.
fn commands_of_the_documents() -> Vec<String> {
    let pages = page("install-kubernetes.md") + &page("observe-then-enforce.md");
    let blocks = pages.split("```console\n").skip(1);
    let text: String = blocks
        .map(|block| block.split("```").next().unwrap())
        .collect();
    let text = text.replace("\\\n", "");
    let lines = text.lines().map(|line| {
        let command = line.strip_prefix("$ ").expect("a command");
        let command = command.split("   # ").next().unwrap();
        command.trim().to_owned()
    });
    lines.collect()
}

/// Word for word; only docker, whose image the rig has, and the forwarding of kubectl are others' work.
#[test]
fn the_commands_of_the_documents_work_as_they_stand() {
    let Some(mut cluster) = Cluster::new("documents", Helm::Four) else {
        return;
    };
    cluster.namespace = "mykadoo-staging".into();
    cluster.install(&[]);
    let mut station = Station::beside(&cluster);
    station.own.namespace = "leadsman".into();
    let folder = station.folder.path();
    let link = |to: &Path, name: &str| {
        std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    };
    std::fs::create_dir(folder.join("bin")).unwrap();
    link(&Helm::Four.path(), "bin/helm");
    link(Path::new(env!("CARGO_BIN_EXE_leadsman")), "bin/leadsman");
    link(&Path::new(env!("CARGO_MANIFEST_DIR")).join("helm"), "helm");
    let path = format!(
        "{}:{}",
        folder.join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let commands = commands_of_the_documents();
    let mut said = String::new();
    for command in &commands {
        let program = command.split(' ').next().unwrap();
        if program == "docker" {
            continue;
        }
        if program == "kubectl" {
            assert_eq!(
                command,
                "kubectl --namespace leadsman port-forward service/leadsman 9616:9616 &"
            );
            forward(9616, station.address());
            continue;
        }
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(folder)
            .env("PATH", &path)
            .env("KUBECONFIG", cluster.kubeconfig())
            .env_remove("LEADSMAN_SERVER")
            .output()
            .unwrap();
        said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command}: {said}{}\n{}",
            String::from_utf8_lossy(&output.stderr),
            station.logs()
        );
        if command == "leadsman status" {
            assert!(said.contains("mykadoo-staging/mykadoo"), "{said}");
            assert!(said.contains("observe"), "{said}");
        }
        if program == "cp" {
            // "Then put your addresses there."
            let file = folder.join("values.yaml");
            let values = std::fs::read_to_string(&file).unwrap();
            let api = cluster.service("mykadoo-api");
            let values = values.replace("https://staging.mykadoo.com", &api);
            std::fs::write(&file, values).unwrap();
        }
    }
    assert!(said.contains("deployed"), "{said}");
    for program in ["docker", "cp", "helm", "kubectl", "leadsman", "sed"] {
        let is_there = |command: &String| command.split(' ').next() == Some(program);
        assert!(commands.iter().any(is_there), "{program}: {commands:?}");
    }
    until("it rolls back from now on, and could", || {
        let release = station.get("/api/v1/releases/mykadoo-staging/mykadoo");
        let release = serde_json::from_str::<Value>(&release).unwrap_or_default();
        release["mode"] == "enforce" && release["preflight_failure"].is_null()
    });
    station.helm(&["uninstall", "leadsman", "--wait"]);
}
