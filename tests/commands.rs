//! The commands that do one thing and end: their output and exit codes.

mod files;
mod hostile;

use std::io::Read as _;
use std::process::{Command, Stdio};

use crate::program::{App, Leadsman, run_bare, run_to_end, try_get, until, unused_port};

#[test]
fn a_url_can_be_asked_without_a_configuration() {
    let app = App::start();
    let (code, text) = run_bare(&["probe", &format!("{}/api/health?token=s3cret", app.url())]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("success  http_2xx"), "{text}");
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
        text.contains("failure (connect_refused)") && text.contains("refused (os error"),
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
fn a_configured_probe_is_found_by_its_name_and_several_results_are_lines_of_json() {
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
                (Some("failure"), Some("json"))
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
    assert!(text.contains("failure (connect_refused)"), "{text}");
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

/// Runs a command with a variable of the environment; its exit code, and what it said to each stream.
fn with_variable(arguments: &[&str], (name, value): (&str, &str)) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(arguments)
        .env(name, value)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A level that is none would silence everything, so that nobody sees why a daemon does nothing.
#[test]
fn a_misspelt_log_level_is_a_mistake_and_no_silence() {
    let variable = "LEADSMAN_LOG_LEVEL";
    for wrong in [
        "warnin",
        "verbose",
        "5x",
        "info,verbose",
        "leadsman=loud",
        "leadsman::prober=",
        "info,,verbose",
        "=debug",
        "leadsman[=debug",
    ] {
        let (code, text) = run_bare(&["check", "--log-level", wrong]);
        assert_eq!(code, Some(2), "{wrong}: {text}");
        for part in ["log level", "error, warn, info, debug, trace, off"] {
            assert!(text.contains(part), "{wrong}: {part} is not in {text}");
        }
        let (code, _, text) = with_variable(&["check"], (variable, wrong));
        assert_eq!(code, Some(2), "{wrong}: {text}");
        assert!(text.contains("log level"), "{wrong}: {text}");
    }
}

/// Starts a daemon, gives it a wrong configuration, stops it; what it logged.
fn logged(app: &App, arguments: &[&str], (name, value): (&str, &str)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    let address = format!("127.0.0.1:{}", unused_port());
    let config = format!(
        "[serve]\nlisten = \"{address}\"\n[[release]]\nname = \"shop\"\nnamespace = \"prod\"\n\
         base_url = \"{}\"\n[[release.probe]]\nname = \"web\"\npath = \"/\"\n",
        app.url()
    );
    std::fs::write(&file, &config).unwrap();
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .arg("run")
        .args(arguments)
        .env(name, value)
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = || try_get(address.parse().unwrap(), "/-/ready");
    until("it is ready", || ready().is_some());
    std::fs::write(&file, config.replace("path", "pth")).unwrap();
    until("it tells of the mistake", || {
        ready().is_some_and(|text| text.contains("pth"))
    });
    let stopped = Command::new("kill").arg(daemon.id().to_string()).status();
    assert!(stopped.unwrap().success());
    let mut text = String::new();
    let mut stderr = daemon.stderr.take().unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{text}");
    text
}

#[test]
fn a_log_level_is_known_however_people_write_it() {
    let app = App::start();
    for (level, shows_info, shows_error) in [
        ("warning", false, true),
        ("Warning", false, true),
        ("WARN", false, true),
        ("Info", true, true),
        ("warn,hyper=warning", false, true),
        // A target alone is more of it, and not the silence of all else.
        ("leadsman::prober=debug", true, true),
        ("", true, true),
        ("off", false, false),
    ] {
        let by_flag = logged(&app, &["--log-level", level], ("UNUSED", ""));
        let by_variable = logged(&app, &[], ("LEADSMAN_LOG_LEVEL", level));
        for text in [by_flag, by_variable] {
            assert_eq!(
                text.contains("\"level\":\"INFO\""),
                shows_info,
                "{level}: {text}"
            );
            assert_eq!(
                text.contains("\"level\":\"ERROR\""),
                shows_error,
                "{level}: {text}"
            );
        }
    }
}

/// Which daemon is asked is a part of the call: a mistake in it is no daemon that is away.
#[test]
fn a_wrong_server_or_file_is_a_mistake_of_the_call() {
    let app = App::start();
    let release = format!(
        "[[release]]\nname = \"shop\"\nnamespace = \"prod\"\nbase_url = \"{}\"\n\
         [[release.probe]]\nname = \"web\"\npath = \"/\"\n",
        app.url()
    );
    let leadsman = Leadsman::run(&release, &[]);
    let address = leadsman.address().to_string();
    let port = address.rsplit(':').next().unwrap();
    for server in [
        &address,
        &format!("localhost:{port}"),
        &format!("HTTP://{address}/"),
    ] {
        let (code, text) = run_bare(&["status", "--server", server]);
        assert_eq!(code, Some(0), "{server}: {text}");
        assert!(text.contains("prod/shop"), "{text}");
        let (code, text, _) = with_variable(&["status"], ("LEADSMAN_SERVER", server));
        assert_eq!(code, Some(0), "{server}: {text}");
    }
    for server in [
        "",
        "http://",
        "ftp://127.0.0.1:9616",
        "127.0.0.1:port",
        ":9616",
        "a b",
    ] {
        let (code, text) = run_bare(&["status", "--server", server]);
        assert_eq!(code, Some(2), "{server}: {text}");
        assert!(text.contains("--server"), "{server}: {text}");
        assert!(!text.contains("leadsman run"), "{server}: {text}");
    }
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "nothing\n").unwrap();
    let empty = empty.to_str().unwrap();
    for file in ["nope", empty] {
        for command in [
            &["status"][..],
            &["gate", "shop"],
            &["history", "shop"],
            &["rollback", "shop", "--reason", "r"],
        ] {
            let (code, text) =
                run_bare(&[command, &["--server", &address, "--ca-file", file]].concat());
            assert_eq!(code, Some(2), "{file}: {text}");
            assert!(text.contains("--ca-file") && text.contains(file), "{text}");
        }
    }
    let order = [
        "rollback",
        "shop",
        "--reason",
        "r",
        "--token-file",
        "nope",
        "--server",
        &address,
    ];
    let (code, text) = run_bare(&order);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.contains("--token-file") && text.contains("nope"),
        "{text}"
    );
}
