//! Files that a configuration names, and files that we make.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::program::{App, Leadsman, run_to_end, until};

const RELEASE: &str = "[[release]]\nname = \"web\"\nnamespace = \"shop\"\n\
     [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n";

/// A configuration with a key of each kind; each names a file of that name in `folder`.
fn naming(folder: &Path) -> String {
    let file = |name: &str| format!("\"{}\"", folder.join(name).display());
    format!(
        "[serve]\ntoken_file = {}\n[serve.tls]\ncert_file = {}\nkey_file = {}\nclient_ca_file = {}\n\
         [slack]\nurl_file = {}\n[webhook]\nurl = \"http://127.0.0.1:1/\"\nsigning_key_file = {}\n\
         [alertmanager]\nurls = [\"http://127.0.0.1:1\"]\nbearer_token_file = {}\ntls = {{ ca_file = {} }}\n{RELEASE}",
        file("token"),
        file("cert"),
        file("key"),
        file("client-ca"),
        file("url"),
        file("signing"),
        file("bearer"),
        file("ca"),
    )
}

/// The key that names each file, and the line of [`naming`] where it stands.
const NAMED: [(&str, &str, usize); 8] = [
    ("token", "serve.token_file", 2),
    ("cert", "serve.tls.cert_file", 4),
    ("key", "serve.tls.key_file", 5),
    ("client-ca", "serve.tls.client_ca_file", 6),
    ("url", "slack.url_file", 8),
    ("signing", "webhook.signing_key_file", 11),
    ("bearer", "alertmanager.bearer_token_file", 14),
    ("ca", "alertmanager.tls.ca_file", 15),
];

fn certificates(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    for name in ["cert", "client-ca", "ca"] {
        fs::write(folder.join(name), made.cert.pem()).unwrap();
    }
    fs::write(folder.join("key"), made.signing_key.serialize_pem()).unwrap();
}

fn all_right(folder: &Path) {
    certificates(folder);
    fs::write(folder.join("url"), "http://127.0.0.1:1/s3cret\n").unwrap();
    for name in ["token", "signing", "bearer"] {
        fs::write(folder.join(name), "s3cret\n").unwrap();
    }
}

/// Each in a way of its own, and what is said of it.
fn broken(folder: &Path, way: usize, name: &str) -> &'static str {
    let path = folder.join(name);
    let is_pem = matches!(name, "cert" | "key" | "client-ca" | "ca");
    fs::remove_file(&path).unwrap();
    match way {
        0 => "No such file",
        1 => {
            fs::create_dir(&path).unwrap();
            "it is a directory"
        }
        2 => {
            let made = Command::new("mkfifo").arg(&path).status();
            assert!(made.unwrap().success());
            "not a regular file"
        }
        3 => {
            fs::write(&path, " \n").unwrap();
            if is_pem { "as PEM" } else { "is empty" }
        }
        4 => {
            fs::write(&path, "s3cret".repeat(400_000)).unwrap();
            "it is larger than"
        }
        _ => {
            fs::write(&path, b"s3cret\xff").unwrap();
            if is_pem { "as PEM" } else { "is not a text" }
        }
    }
}

#[test]
fn check_names_every_file_that_cannot_be_used() {
    for way in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let config = naming(folder.path());
        all_right(folder.path());
        let (code, text) = run_to_end(&config, &["check"]);
        assert_eq!(code, Some(0), "{text}");
        let expected = NAMED.map(|(name, key, line)| (key, line, broken(folder.path(), way, name)));
        let (code, text) = run_to_end(&config, &["check"]);
        assert_eq!(code, Some(2), "{text}");
        for (key, line, why) in expected {
            let said = text
                .lines()
                .any(|said| said.contains(&format!("{key}: ")) && said.contains(why));
            assert!(said, "{key} {why}: {text}");
            assert!(
                text.contains(&format!("probes.toml:{line}:")),
                "{line}: {text}"
            );
        }
        assert!(text.contains("8 mistakes"), "{text}");
        assert!(
            text.contains("--no-files") && !text.contains("s3cret"),
            "{text}"
        );
        // A machine that does not have them.
        let (code, text) = run_to_end(&config, &["check", "--no-files"]);
        assert_eq!(code, Some(0), "{text}");
        assert!(
            text.contains("Not looked at: the files that 8 keys name."),
            "{text}"
        );
    }
    let config = format!("[serve]\ntoken_file = \"token\"\n{RELEASE}");
    let (code, text) = run_to_end(&config, &["check", "--no-files"]);
    assert_eq!(code, Some(0), "{text}");
    let said = "Not looked at: the file that 1 key names.";
    assert!(text.contains(said), "{text}");
}

#[test]
fn a_daemon_starts_without_them_and_says_which_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    all_right(folder.path());
    fs::remove_file(folder.path().join("token")).unwrap();
    fs::remove_file(folder.path().join("url")).unwrap();
    let made = Command::new("mkfifo")
        .arg(folder.path().join("token"))
        .status();
    assert!(made.unwrap().success());
    // Without TLS, so that it can be asked.
    let config = naming(folder.path());
    let lines = config.lines().enumerate();
    let plain: Vec<&str> = lines
        .filter(|(at, _)| !(2..6).contains(at))
        .map(|(_, line)| line)
        .collect();
    let leadsman = Leadsman::run(&plain.join("\n"), &[]);
    until("it is said", || {
        let log = leadsman.log();
        log.contains("serve.token_file: ") && log.contains("slack.url_file: ")
    });
    let ready = leadsman.get("/-/ready");
    assert_eq!(ready.status, 200);
    for said in [
        "Leadsman is ready.\nDegraded: ",
        "serve.token_file: ",
        "it is not a regular file\n",
        "slack.url_file: ",
        "No such file",
    ] {
        assert!(ready.body.contains(said), "{said}: {}", ready.body);
    }
    assert_eq!(ready.body.lines().count(), 4, "{}", ready.body);
    // A token that cannot be read lets nobody in, and a pipe holds nothing up.
    let reload = leadsman.request("POST", "/-/reload", &[("Authorization", "Bearer x")]);
    assert_eq!(reload.status, 500, "{}", reload.body);
    // They come, as a Secret's do.
    fs::remove_file(folder.path().join("token")).unwrap();
    all_right(folder.path());
    until("all is well", || {
        leadsman.get("/-/ready").body == "Leadsman is ready.\n"
    });
}

#[test]
fn a_listener_without_its_certificate_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| format!("{:?}", folder.path().join(name));
    let config = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[serve.tls]\ncert_file = {}\nkey_file = {}\n{RELEASE}",
        file("cert"),
        file("key")
    );
    let leadsman = Leadsman::run(&config, &[]);
    assert!(
        leadsman.said("certificate cannot be used"),
        "{}",
        leadsman.log()
    );
    let plain = leadsman.get("/-/healthy");
    assert_eq!(
        plain.status, 0,
        "nothing is answered without TLS: {}",
        plain.body
    );
    certificates(folder.path());
    let url = format!("https://localhost:{}", leadsman.address().port());
    until("it is shown", || {
        let asked = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(["status", "--server", &url, "--ca-file"])
            .arg(folder.path().join("cert"))
            .output()
            .unwrap();
        let text =
            String::from_utf8(asked.stdout).unwrap() + &String::from_utf8(asked.stderr).unwrap();
        text.contains("shop/web") || text.contains("CaUsedAsEndEntity")
    });
}

#[test]
fn what_is_stored_is_for_our_user_alone() {
    let app = App::start();
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = format!(
        "[state]\ndirectory = {state:?}\n[[release]]\nname = \"web\"\nnamespace = \"shop\"\nbase_url = \"{}\"\ninterval = \"1s\"\n\
         embedded = {:?}\n[[release.probe]]\nname = \"api\"\npath = \"/api/health\"\n",
        app.url(),
        folder.path().join("history"),
    );
    let mut leadsman = Leadsman::run(&config, &[]);
    let stored = state.join("shop.web.json");
    until("its state is stored", || stored.exists());
    leadsman.signal("TERM");
    leadsman.exit_code(std::time::Duration::from_secs(50));
    let mut seen = 0;
    let mut left = vec![state];
    while let Some(path) = left.pop() {
        let facts = fs::symlink_metadata(&path).unwrap();
        let expected = if facts.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(facts.mode() & 0o7777, expected, "{}", path.display());
        if facts.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn a_trap_in_the_place_of_the_state_is_not_stepped_into() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
    let state = folder.path().join("state");
    let config =
        format!("[state]\ndirectory = {state:?}\n[serve]\nlisten = \"127.0.0.1:0\"\n{RELEASE}");
    symlink(&victim, &state).unwrap();
    let refused = |what: &str| {
        let (code, text) = run_to_end(&config, &["run"]);
        assert_eq!(code, Some(1), "{text}");
        assert!(
            text.contains(what) && text.contains("state.directory"),
            "{text}"
        );
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0);
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o755);
    };
    refused("symbolic link");
    // One below it.
    fs::remove_file(&state).unwrap();
    fs::create_dir(&state).unwrap();
    symlink(&victim, state.join("recordings")).unwrap();
    refused("symbolic link");
    fs::remove_file(state.join("recordings")).unwrap();
    symlink(victim.join("lock"), state.join("leadsman.lock")).unwrap();
    refused("symbolic link");
}
