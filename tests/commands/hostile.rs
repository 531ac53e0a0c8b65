//! Whatever a daemon, a target, a chart or a file says: no command lets it steer the terminal, or forge a line.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use leadsman::core::analysis::{AnalysisStart, PodSide, Rule};
use leadsman::core::recording::{RecordedPod, RecordedTick, RecordingHead, RecordingLine};
use leadsman::core::rollout::Mode;
use leadsman::core::units::{Namespace, ReleaseName, Revision, Time};
use serde_json::{Value, json};

use crate::program::{Leadsman, until};

/// A title, the clipboard, colours, a cleared screen (also by one C1 character), a way back, another direction, nothing to
/// be seen, tags, and lines of its own.
const BAD: &str = "x\u{1b}]0;t\u{7}\u{1b}]52;c;cm0=\u{7}\u{1b}[31m\u{1b}[2J\u{9b}2J\u{8}\u{7f}\u{0}\u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}\r\nFORGED\nFORGED";

fn is_hidden(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
        || matches!(c, '\u{e0000}'..='\u{e0fff}')
}

#[track_caller]
fn is_clean(what: &str, output: &[u8]) {
    let text = std::str::from_utf8(output).unwrap();
    assert!(!text.contains(is_hidden), "{what}: {text:?}");
    let forged = text.lines().any(|line| line.starts_with("FORGED"));
    assert!(!forged, "{what}: {text:?}");
}

fn leadsman(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_leadsman"))
        .args(arguments)
        .current_dir(folder.path())
        .output()
        .unwrap()
}

/// Runs a command, and gives what it printed; it must have shown something of what it was told.
#[track_caller]
fn tried(arguments: &[&str]) -> String {
    let output = leadsman(arguments);
    is_clean(&format!("{arguments:?} on stdout"), &output.stdout);
    is_clean(&format!("{arguments:?} on stderr"), &output.stderr);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\\u001b]0;t\\u0007"), "{arguments:?}: {text}");
    text
}

/// A daemon (or a target) that answers each path as it is told.
fn scripted(answer: impl Fn(&str, &str) -> (u16, Vec<u8>) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve_one(stream, &*answer));
        }
    });
    address
}

/// What is answered to a method and a path: status and body.
type Answer = dyn Fn(&str, &str) -> (u16, Vec<u8>);

fn serve_one(mut stream: TcpStream, answer: &Answer) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    if reader.read_line(&mut first).is_err() {
        return;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let _ = reader.read_exact(&mut vec![0; length]);
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let (status, body) = answer(method, path);
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(&[head.into_bytes(), body].concat());
}

fn release(revision: u64) -> Value {
    json!({
        "namespace": BAD, "release": "web", "mode": BAD, "phase": BAD, "says": BAD, "revision": revision,
        "phase_since": 1.0, "preflight_failure": BAD, "watch": { "direct": BAD },
        "steps": [{ "step": BAD, "state": BAD }],
        "probes": [{ "probe": BAD, "state": BAD, "target": BAD, "explanation": BAD }],
        "history": [{ "revision": 1, "status": BAD, "text": BAD }],
        "events": [{ "at": 1.0, "text": BAD }],
    })
}

fn daemon() -> SocketAddr {
    scripted(|method, path| {
        let ended = |revision: u64, reason: &str| {
            json!({
                "revision": revision, "outcome": BAD, "text": BAD, "reason": reason, "appeared_at": 1.0, "ended_at": 2.0,
                "steps": [{ "step": BAD, "state": BAD }],
            })
        };
        let body = if method == "POST" {
            json!({ "id": "3-a", "revision": 3, "target": 2, "joined": false })
        } else if path.contains("/orders/") {
            json!({ "id": "3-a", "state": "ended", "rollout": ended(3, BAD) })
        } else if path.ends_with("/rollouts") {
            json!({ "rollouts": [ended(2, BAD), ended(3, "by_hand")] })
        } else if path.ends_with("/recording") {
            return (200, recording());
        } else if path.ends_with("/objectives") {
            json!({ "objectives": [{
                "namespace": "shop", "release": "web", "probe": BAD, "objective": BAD, "window": BAD,
                "tiers": [{ "severity": BAD, "name": BAD }], "burns": [{ "window": BAD }], "revisions": [{ "revision": BAD }],
            }] })
        } else {
            json!({ "releases": [release(4)] })
        };
        (200, body.to_string().into_bytes())
    })
}

/// A recording in which everything that can be text is hostile.
fn recording() -> Vec<u8> {
    let head = RecordingHead {
        version: leadsman::core::recording::VERSION,
        namespace: Namespace::new(BAD),
        release: ReleaseName::new(BAD),
        revision: Revision(3),
        serving: Some(Revision(2)),
        began: Time::from_millis(1_700_000_000_000),
        mode: Mode::Enforce,
        rule: Rule::default(),
        start: AnalysisStart {
            endpoints: vec![BAD.into()],
            baseline: vec![(0, 3600)],
            failing_at_start: vec![false],
            complete_at: None,
            direct: true,
            ..AnalysisStart::default()
        },
        no_direct: Some(BAD.into()),
        goes_on: None,
    };
    let mut lines = vec![
        RecordingLine::Head(Box::new(head)),
        RecordingLine::Pod(RecordedPod {
            pod: 0,
            name: BAD.into(),
            side: PodSide::New,
            ready_tick: 0,
        }),
    ];
    for tick in 0..40 {
        lines.push(RecordingLine::Tick(Box::new(RecordedTick {
            tick,
            outcomes: "x".into(),
            why: vec![(0, BAD.into())],
            complete_at: (tick == 1).then_some(1.0),
            ..RecordedTick::default()
        })));
    }
    let more = [
        json!({ "line": "entry", "at": 1_700_000_001_000_u64, "revision": 3, "phase": BAD, "text": BAD }),
        json!({
            "line": "evidence",
            "pods": [{ "name": BAD, "revision": 3, "node": BAD, "state": BAD }],
            "events": [{ "object": BAD, "reason": BAD, "message": BAD, "count": 1, "at": BAD }],
            "logs": [{ "pod": BAD, "container": BAD, "previous": false, "lines": [BAD] }],
            "workloads": [BAD], "images": [BAD], "values": [BAD], "missing": [BAD],
        }),
        json!({ "line": "end", "verdict": BAD, "reason": BAD, "tick": 1, "max_e": 1.0 }),
    ];
    let lines = lines
        .iter()
        .map(|line| serde_json::to_string(line).unwrap());
    let text: String = lines
        .chain(more.iter().map(Value::to_string))
        .map(|line| line + "\n")
        .collect();
    text.into_bytes()
}

fn file(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn what_a_daemon_says_steers_no_terminal() {
    let server = format!("http://{}", daemon());
    let server = server.as_str();
    for json in [&[][..], &["--json"]] {
        let tried = |command: &[&str]| tried(&[command, &["--server", server], json].concat());
        tried(&["status"]);
        tried(&["status", "web"]);
        tried(&["history", "web"]);
        tried(&["slo"]);
        tried(&["gate", "web", "2"]);
    }
    tried(&["slo", "--tiers", "--server", server]);
    tried(&["gate", "web", "4", "--timeout", "1s", "--server", server]);
    tried(&["rollback", "web", "--reason", "x", "--server", server]);
    for json in [&[][..], &["--json"]] {
        let text = tried(
            &[
                &["explain", "web", "--revision", "3", "--server", server],
                json,
            ]
            .concat(),
        );
        assert!(text.lines().count() > 30 || !json.is_empty(), "{text}");
    }
}

#[test]
fn nor_do_its_refusals() {
    let server = scripted(|_, path| {
        if path.ends_with("/releases") {
            return (
                200,
                json!({ "releases": [release(4)] }).to_string().into_bytes(),
            );
        }
        (409, json!({ "detail": BAD }).to_string().into_bytes())
    });
    let server = format!("http://{server}");
    let server = server.as_str();
    tried(&["history", "web", "--server", server]);
    tried(&["gate", "web", "--timeout", "1s", "--server", server]);
    tried(&["rollback", "web", "--reason", "x", "--server", server]);
    tried(&["explain", "web", "--revision", "3", "--server", server]);
    tried(&["slo", "--server", server]);
}

#[test]
fn nor_do_files_and_targets() {
    let folder = tempfile::tempdir().unwrap();
    let recorded = file(folder.path(), "recorded.jsonl", &recording());
    let recorded = recorded.to_str().unwrap();
    for json in [&[][..], &["--json"]] {
        tried(&[&["explain", recorded], json].concat());
        tried(&[&["replay", recorded], json].concat());
    }
    let streams = [
        json!({ "name": BAD, "ticks": [["....", 60]] }).to_string(),
        json!({ "name": "b", BAD: 1 }).to_string(),
    ];
    let streams = file(
        folder.path(),
        "streams.jsonl",
        streams.join("\n").as_bytes(),
    );
    tried(&["analyze", streams.to_str().unwrap()]);

    let target = scripted(|_, _| (200, json!({ "status": BAD }).to_string().into_bytes()));
    let key = serde_json::to_string(BAD).unwrap();
    // TOML writes these in another way.
    let key = key.replace(['\u{e0041}', '\u{7f}'], "");
    let config = format!(
        "[[release]]\nname = \"web\"\nnamespace = \"shop\"\nbase_url = \"http://{target}\"\ninterval = \"1s\"\n\
         [[release.probe]]\nname = \"api\"\npath = \"/\"\nexpect = {{ json = {{ \"/status\" = {key} }}, body_not_matches = \"t\" }}\n"
    );
    let wrong = file(
        folder.path(),
        "wrong.toml",
        format!("{config}\n[serve]\n{key} = 1\n").as_bytes(),
    );
    let output = leadsman(&["check", "--config", wrong.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    is_clean("check", &output.stderr);
    assert!(String::from_utf8_lossy(&output.stderr).contains("]0;t"));
    let config = config.replace(&format!("{key} }}, body_not_matches = \"t\""), "\"ok\" }");
    let right = file(folder.path(), "probes.toml", config.as_bytes());
    let right = right.to_str().unwrap();
    for command in [
        &["probe", "api", "--verbose"][..],
        &["probe", "api", "--json"],
        &["check", "--online"],
    ] {
        let output = leadsman(&[command, &["--config", right]].concat());
        is_clean("probe", &output.stdout);
        is_clean("probe", &output.stderr);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("]0;t"), "what came is shown: {text}");
    }

    // Log lines, in both formats.
    for format in ["text", "json"] {
        let config = format!("[serve]\nlisten = \"127.0.0.1:0\"\n{config}");
        // The tests read JSON to learn where it listens.
        if format == "json" {
            let daemon = Leadsman::run(&config, &[]);
            until("the probe failed", || daemon.said("Probe failing"));
            is_clean("the log", daemon.log().as_bytes());
            continue;
        }
        let path = file(folder.path(), "logged.toml", config.as_bytes());
        let mut child = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(["run", "--log-format", "text", "--config"])
            .arg(&path)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = Vec::new();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        while !log.windows(4).any(|part| part == b"]0;t") {
            assert!(reader.read_until(b'\n', &mut log).unwrap() > 0, "it ended");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        is_clean("the log", &log);
    }
}
