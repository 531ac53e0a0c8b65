//! The commands that do one thing and end: their output and exit codes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

#[path = "commands/files.rs"]
mod files;
#[path = "commands/hostile.rs"]
mod hostile;
mod program;

use program::{App, run_bare, run_to_end, unused_port};

#[test]
fn a_url_can_be_asked_without_a_configuration() {
    let app = App::start();
    let (code, text) = run_bare(&["probe", &format!("{}/api/health?token=s3cret", app.url())]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("good  http_2xx"), "{text}");
    for phase in ["resolve", "connect", "tls", "processing", "transfer"] {
        assert!(text.contains(phase), "{phase} is missing: {text}");
    }
    assert!(!text.contains("s3cret"), "{text}");

    let (code, text) = run_bare(&["probe", &app.url().replace("http", "tcp")]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn what_fails_says_why_and_gives_another_code() {
    let (code, text) = run_bare(&["probe", &format!("http://127.0.0.1:{}/", unused_port())]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("bad (connect_refused)") && text.contains("refused (os error"),
        "{text}"
    );

    let (code, text) = run_bare(&["probe", "http://user:s3cret@127.0.0.1/"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("password_file") && !text.contains("s3cret"),
        "{text}"
    );
}

#[test]
fn a_configured_probe_is_found_by_its_name_and_several_soundings_are_lines_of_json() {
    let app = App::start();
    let config = format!(
        "[[release]]\nname = \"shop\"\nnamespace = \"prod\"\nbase_url = \"{}\"\n\
         [[release.probe]]\nname = \"db\"\npath = \"/api/health/db\"\nexpect = {{ json = {{ \"/status\" = \"down\" }} }}\n",
        app.url()
    );
    for name in ["db", "shop/db", "prod/shop/db"] {
        let (code, text) = run_to_end(
            &config,
            &["probe", name, "--json", "-n", "2", "--interval", "1ms"],
        );
        assert_eq!(code, Some(1), "{text}");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        for line in lines {
            assert_eq!(
                (line["result"].as_str(), line["reason"].as_str()),
                (Some("bad"), Some("json"))
            );
            assert_eq!(line["status"], 200);
            assert!(
                line["explanation"].as_str().unwrap().contains("\"down\""),
                "{line}"
            );
        }
    }
    let (code, text) = run_to_end(&config, &["probe", "nobody"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("prod/shop/db"), "{text}");
}

#[test]
fn check_tells_what_is_in_force_and_tries_it_when_asked() {
    let app = App::start();
    let config = format!(
        "[[release]]\nname = \"shop\"\nnamespace = \"prod\"\nbase_url = \"{}\"\ninterval = \"1s\"\n\
         [[release.probe]]\nname = \"web\"\npath = \"/\"\n",
        app.url()
    );
    let (code, text) = run_to_end(&config, &["check", "--print"]);
    assert_eq!(code, Some(0), "{text}");
    let line = |start: &str| {
        text.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or("")
            .to_owned()
    };
    assert!(
        line("release.shop.probe.web.interval ").ends_with("probes.toml:5"),
        "{text}"
    );
    assert!(line("serve.listen ").ends_with("# default"), "{text}");
    assert!(
        text.contains(
            "hint: release.shop.probe.web: the interval 1s is shorter than the timeout 5s"
        ),
        "{text}"
    );

    let (code, text) = run_to_end(&config, &["check", "--online"]);
    assert_eq!(code, Some(0), "{text}");
    drop(app);
    let (code, text) = run_to_end(&config, &["check", "--online"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("bad (connect_refused)"), "{text}");
}

#[test]
fn the_shipped_configuration_and_its_overlays_are_right() {
    let root = env!("CARGO_MANIFEST_DIR");
    let file = format!("{root}/probes.toml");
    for overlay in ["staging", "production"] {
        let overlay = format!("{root}/helm/overlays/probes.{overlay}.toml");
        let (code, text) = run_bare(&["check", "--config", &file, "--overlay", &overlay]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("4 probes"), "{text}");
    }
}
