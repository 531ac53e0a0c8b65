//! What not everybody may: a walk over all routes, TLS, and the reload over HTTP.

use std::path::Path;
use std::process::Command;

use crate::program::{App, Leadsman, post, request, until};
use crate::serve::config;
use crate::support::pki::Pki;

/// Every route, and whether it takes a token.
pub(crate) const ROUTES: &[(&str, &str, bool)] = &[
    ("GET", "/metrics", false),
    ("GET", "/probe", false),
    ("GET", "/-/healthy", false),
    ("GET", "/healthz", false),
    ("GET", "/-/ready", false),
    ("GET", "/readyz", false),
    ("POST", "/-/reload", true),
    ("GET", "/", false),
    ("GET", "/api/v1/status", false),
    ("GET", "/api/v1/probes", false),
    ("GET", "/runbook", false),
    ("GET", "/api/v1/alerts", false),
    ("POST", "/api/v1/alerts", true),
    ("GET", "/api/v1/objectives", false),
    ("GET", "/api/v1/releases", false),
    ("GET", "/api/v1/releases/{namespace}/{name}", false),
    ("GET", "/api/v1/releases/{namespace}/{name}/rollouts", false),
    (
        "GET",
        "/api/v1/releases/{namespace}/{name}/rollouts/{revision}",
        false,
    ),
    (
        "GET",
        "/api/v1/releases/{namespace}/{name}/rollouts/{revision}/recording",
        true,
    ),
    ("POST", "/api/v1/releases/{namespace}/{name}/rollback", true),
    (
        "GET",
        "/api/v1/releases/{namespace}/{name}/orders/{id}",
        false,
    ),
];

/// The usual configuration with more in `[serve]`.
fn serving(app: &App, more: &str) -> String {
    config(app, "").replacen("[[release]]", &format!("{more}\n[[release]]"), 1)
}

fn ask(leadsman: &Leadsman, method: &str, path: &str, token: Option<&str>) -> u16 {
    let path = path
        .replace("{namespace}", "shop")
        .replace("{name}", "mykadoo")
        .replace("{revision}", "2");
    let authorization = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = authorization
        .iter()
        .map(|value| ("Authorization", value.as_str()))
        .collect();
    let reply = if method == "POST" {
        post(leadsman.address(), &path, &headers, b"{}")
    } else {
        request(leadsman.address(), method, &path, &headers)
    };
    reply.status
}

#[test]
fn the_walk_below_knows_every_route() {
    let source = std::fs::read_to_string("src/http/mod.rs").unwrap();
    let routes: Vec<&str> = source
        .split(".route(")
        .skip(1)
        .map(|rest| rest.split('"').nth(1).unwrap())
        .collect();
    assert!(routes.len() > 15, "{routes:?}");
    for route in &routes {
        assert!(ROUTES.iter().any(|(_, path, _)| path == route), "{route}");
    }
    // What takes POST changes something.
    let shard_leaderships = source.matches("post(").count();
    let guarded = ROUTES.iter().filter(|(method, ..)| *method == "POST");
    assert_eq!(shard_leaderships, guarded.count());
    assert!(
        ROUTES
            .iter()
            .all(|(method, _, is_guarded)| *method == "GET" || *is_guarded)
    );
}

#[test]
fn whatever_changes_something_or_shows_evidence_takes_the_token() {
    let app = App::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "tok-right\n").unwrap();
    let open = Leadsman::run(&config(&app, ""), &[]);
    let guarded = Leadsman::run(&serving(&app, &format!("token_file = {file:?}")), &[]);
    for (method, path, is_guarded) in ROUTES {
        let without_any = ask(&open, method, path, Some("tok-right"));
        let nobody = ask(&guarded, method, path, None);
        let unauthenticated = ask(&guarded, method, path, Some("tok-wrong"));
        let known = ask(&guarded, method, path, Some("tok-right"));
        if *is_guarded {
            let refused = (without_any, nobody, unauthenticated);
            assert_eq!(refused, (403, 401, 401), "{method} {path}");
            assert!(![401, 403].contains(&known), "{method} {path}: {known}");
        } else {
            for status in [without_any, nobody, unauthenticated, known] {
                assert!(![401, 403].contains(&status), "{method} {path}: {status}");
            }
        }
    }
    // An empty token is nobody's.
    std::fs::write(&file, "\n").unwrap();
    assert_eq!(ask(&guarded, "POST", "/-/reload", Some("")), 401);
    assert_eq!(ask(&guarded, "POST", "/-/reload", Some("tok-right")), 500);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(ask(&guarded, "POST", "/-/reload", Some("tok-right")), 500);
    let said = guarded.log() + &guarded.get("/metrics").body;
    assert!(!said.contains("tok-"), "{said}");
}

#[test]
fn the_configuration_is_read_again_when_somebody_who_may_asks() {
    let app = App::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "token").unwrap();
    let with = |rest: &str| {
        let config = serving(&app, &format!("token_file = {file:?}"));
        format!("{config}{rest}")
    };
    let leadsman = Leadsman::run(&with(""), &[]);
    let reload = || {
        let headers = [("Authorization", "bearer token")];
        post(leadsman.address(), "/-/reload", &headers, b"")
    };
    assert_eq!(leadsman.get("/-/reload").status, 405);
    leadsman.rewrite(&with(
        "[[release.probe]]\nname = \"another\"\nurl = \"tcp://127.0.0.1:1\"\n",
    ));
    let reply = reload();
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (200, "The configuration is in force.\n")
    );
    assert!(leadsman.get("/api/v1/probes").body.contains("another"));
    leadsman.rewrite(&with("[[release.probe]]\nname = \"wrong\"\nurll = \"x\"\n"));
    let reply = reload();
    assert_eq!(reply.status, 500);
    assert!(reply.body.contains("urll"), "{}", reply.body);
    // The one before stays in force, and says so.
    assert!(leadsman.get("/api/v1/probes").body.contains("another"));
    let ready = leadsman.get("/-/ready");
    assert_eq!(ready.status, 200);
    assert!(ready.body.contains("urll"), "{}", ready.body);
    let failed = "leadsman_config_last_reload_successful 0";
    assert!(leadsman.get("/metrics").body.contains(failed));
    leadsman.rewrite(&with(""));
    assert_eq!(reload().status, 200);
    assert_eq!(leadsman.get("/-/ready").body, "Leadsman is ready.\n");
    assert!(!leadsman.get("/api/v1/probes").body.contains("another"));
}

/// As Kubernetes changes a ConfigMap: a link that is set anew.
#[test]
fn a_changed_file_is_taken_up_by_itself() {
    use std::os::unix::fs::symlink;
    let app = App::start();
    let leadsman = Leadsman::run(&config(&app, ""), &[]);
    let file = leadsman.folder().join("probes.toml");
    let swap = |name: &str, text: &str| {
        let (new, link) = (leadsman.folder().join(name), leadsman.folder().join("link"));
        std::fs::write(&new, text).unwrap();
        symlink(&new, &link).unwrap();
        std::fs::rename(&link, &file).unwrap();
    };
    let more = "[[release.probe]]\nname = \"another\"\nurl = \"tcp://127.0.0.1:1\"\n";
    swap("second", &(config(&app, "") + more));
    until("the new probe is there", || {
        leadsman.get("/api/v1/probes").body.contains("another")
    });
    swap("third", "[[release]]\nnam = \"x\"\n");
    until("the mistake is told", || {
        leadsman.get("/-/ready").body.contains("nam")
    });
    assert!(leadsman.get("/api/v1/probes").body.contains("another"));
    swap("fourth", &config(&app, ""));
    until("the old one is back", || {
        !leadsman.get("/api/v1/probes").body.contains("another")
    });
    assert_eq!(leadsman.get("/-/ready").body, "Leadsman is ready.\n");
}

#[test]
fn a_listener_with_tls_shows_a_new_certificate_without_a_restart() {
    let (first, second) = (Pki::new(), Pki::new());
    let (certificate, key) = first.server_files(&["localhost"]);
    let app = App::start();
    let leadsman = Leadsman::run(
        &serving(
            &app,
            &format!("[serve.tls]\ncert_file = {certificate:?}\nkey_file = {key:?}"),
        ),
        &[],
    );
    let trusts = |authority: &Path| {
        let server = format!("https://localhost:{}", leadsman.address().port());
        let asked = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(["status", "--server", &server, "--ca-file"])
            .arg(authority)
            .output()
            .unwrap();
        asked.status.code()
    };
    // Whoever connects and says nothing holds up nobody.
    let silent: Vec<_> = (0..20)
        .map(|_| std::net::TcpStream::connect(leadsman.address()).unwrap())
        .collect();
    assert_eq!(trusts(&first.ca_file()), Some(0));
    assert_eq!(trusts(&second.ca_file()), Some(3));
    // Half of a pair is no certificate: the old one goes on.
    let (new, new_key) = second.server_files(&["localhost"]);
    std::fs::copy(&new, &certificate).unwrap();
    until("the mistake is told", || {
        trusts(&first.ca_file()) == Some(0) && leadsman.said("cannot be read; the old one is shown")
    });
    std::fs::copy(&new_key, &key).unwrap();
    until("the new one is shown", || {
        trusts(&second.ca_file()) == Some(0)
    });
    drop(silent);
}

#[test]
fn a_listener_may_ask_for_certificates_of_clients() {
    let pki = Pki::new();
    let (certificate, key) = pki.server_files(&["localhost"]);
    let app = App::start();
    let leadsman = Leadsman::run(
        &serving(
            &app,
            &format!(
                "[serve.tls]\ncert_file = {certificate:?}\nkey_file = {key:?}\nclient_ca_file = {:?}",
                pki.ca_file()
            ),
        ),
        &[],
    );
    let (own, own_key) = pki.client_files();
    let curl = |more: &[&Path]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--fail", "--cacert"]);
        command.arg(pki.ca_file());
        if let [own, own_key] = more {
            command.arg("--cert").arg(own).arg("--key").arg(own_key);
        }
        let url = format!("https://localhost:{}/-/ready", leadsman.address().port());
        command.arg(url).output()
    };
    let Ok(unauthenticated) = curl(&[]) else {
        assert!(
            std::env::var_os("LEADSMAN_TEST_ALL").is_none(),
            "curl is missing"
        );
        eprintln!("left out: curl is not installed");
        return;
    };
    assert!(!unauthenticated.status.success());
    let known = curl(&[&own, &own_key]).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&known.stdout),
        "Leadsman is ready.\n"
    );
}
