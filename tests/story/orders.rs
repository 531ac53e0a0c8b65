//! Orders of people: each caller hears the result of its own order, and a mistake of a person hurts nobody.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::program::{Reply, post, until, unused_port};
use crate::story::{Guarded, PROGRAM};

/// A release that takes orders.
struct Ordering {
    guarded: Guarded,
    server: String,
    token: PathBuf,
    _folder: tempfile::TempDir,
}

/// A command that runs.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    said: String,
}

impl Running {
    /// Reads on until a line holds this text.
    #[track_caller]
    fn says(&mut self, text: &str) {
        while !self.said.contains(text) {
            let read = self.lines.read_line(&mut self.said).unwrap();
            assert!(read > 0, "{text:?} is not in:\n{}", self.said);
        }
    }

    fn ends(mut self) -> (Option<i32>, String) {
        self.lines.read_to_string(&mut self.said).unwrap();
        let mut errors = self.child.stderr.take().unwrap();
        errors.read_to_string(&mut self.said).unwrap();
        (self.child.wait().unwrap().code(), self.said)
    }
}

impl Ordering {
    fn start() -> Self {
        Self::with(|config| config)
    }

    fn with(change: impl Fn(String) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "a-token").unwrap();
        // It listens at the same port when it is started again.
        let port = unused_port();
        let serve = format!(
            "[serve]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n",
            token.display()
        );
        let guarded = Guarded::with(|config| change(serve.clone() + &config));
        Self {
            guarded,
            server: format!("http://127.0.0.1:{port}"),
            token,
            _folder: folder,
        }
    }

    fn spawn(&self, arguments: &[&str]) -> Running {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("LEADSMAN_SERVER", &self.server)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if arguments[0] == "rollback" {
            command.arg("--token-file").arg(&self.token);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running {
            child,
            lines,
            said: String::new(),
        }
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        self.spawn(arguments).ends()
    }

    fn rollback(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut all = vec!["rollback", "mykadoo", "--reason", "the cart loses items"];
        all.extend(arguments);
        self.run(&all)
    }

    /// The order as the API takes it.
    fn post(&self, body: &Value, key: Option<&str>) -> Reply {
        let mut headers = vec![("Authorization", "Bearer a-token")];
        headers.extend(key.map(|key| ("Idempotency-Key", key)));
        let path = "/api/v1/releases/shop/mykadoo/rollback";
        let address = self.guarded.daemon.address();
        post(address, path, &headers, body.to_string().as_bytes())
    }

    fn get(&self, path: &str) -> Value {
        let path = format!("/api/v1/releases/shop/mykadoo/{path}");
        serde_json::from_str(&self.guarded.daemon.get(&path).body).unwrap()
    }

    fn rollouts(&self) -> Vec<Value> {
        self.get("rollouts")["rollouts"].as_array().unwrap().clone()
    }

    /// A revision that nobody has anything against, and that is still judged.
    fn deploy(&self, revision: u64) {
        self.guarded.deploy("healthy");
        until("the revision is judged", || {
            let release = self.guarded.release();
            release["revision"] == revision && release["phase"] == "analyzing"
        });
    }
}

/// The number of an order, as the command prints it.
#[track_caller]
fn order_in(text: &str) -> String {
    let (_, rest) = text.split_once("rder ").expect(text);
    let id: String = rest
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect();
    assert!(id.len() > 5, "{text}");
    id
}

#[test]
fn two_orders_within_a_second_are_one_rollback_and_both_hear_its_result() {
    let ordering = Ordering::start();
    ordering.deploy(2);
    let order = ["rollback", "mykadoo", "--reason", "the cart loses items"];
    let (first, second) = (ordering.spawn(&order), ordering.spawn(&order));
    let (first, second) = (first.ends(), second.ends());
    for (code, text) in [&first, &second] {
        assert_eq!(*code, Some(0), "{text}\n{}", ordering.guarded.daemon.log());
        assert!(text.contains("rolled back"), "{text}");
    }
    assert_eq!(order_in(&first.1), order_in(&second.1));
    let joined = |text: &str| text.contains("is under way already; yours joins it");
    assert!(joined(&first.1) ^ joined(&second.1), "{first:?} {second:?}");
    ordering.guarded.was_rolled_back_once();
}

#[test]
fn an_order_to_another_revision_waits_for_the_end_of_the_first() {
    let ordering = Ordering::start();
    ordering.deploy(2);
    ordering.deploy(3);
    let mut first = ordering.spawn(&["rollback", "mykadoo", "1", "--reason", "to the first"]);
    first.says("rder ");
    let (code, text) = ordering.rollback(&["2"]);
    assert_eq!(code, Some(11), "{text}");
    for part in [
        "a rollback of revision 3 to revision 1 is under way",
        "wait for its end",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let (code, text) = first.ends();
    assert_eq!(code, Some(0), "{text}");
    // A second night watch that has not heard of the first does not go back twice.
    let (code, text) = ordering.rollback(&[]);
    assert_eq!(code, Some(11), "{text}");
    for part in [
        "revision 4 is what the rollback of revision 3 made",
        "it can go back to: 2, 3",
    ] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    let (code, text) = ordering.rollback(&["2"]);
    assert_eq!(code, Some(0), "{text}");
    let records = ordering.guarded.records();
    assert_eq!(records[3]["description"], "Rollback to 1");
    assert_eq!(records[4]["description"], "Rollback to 2");
    assert_eq!(records.len(), 5);
}

#[test]
fn an_order_that_is_sent_again_is_the_same_order() {
    let mut ordering = Ordering::start();
    ordering.deploy(2);
    let body = json!({ "reason": "the cart loses items" });
    let taken = ordering.post(&body, Some("night-watch-1"));
    assert_eq!(taken.status, 202, "{}", taken.body);
    let taken: Value = serde_json::from_str(&taken.body).unwrap();
    assert_eq!(taken["revision"], 2);
    let id = taken["id"].as_str().unwrap().to_owned();
    let again = |ordering: &Ordering| {
        let reply = ordering.post(&body, Some("night-watch-1"));
        assert_eq!(reply.status, 202, "{}", reply.body);
        let taken: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(taken["id"], id.as_str());
    };
    again(&ordering);
    until("it has ended", || {
        ordering.get(&format!("orders/{id}"))["state"] == "ended"
    });
    again(&ordering);
    // Also after the daemon was killed.
    ordering.guarded.daemon.kill();
    ordering.guarded.daemon.start_again();
    until("it acts again", || {
        ordering.guarded.release()["phase"] == "idle"
    });
    again(&ordering);
    // With that key another order is a mistake, and not taken for done.
    let other = json!({ "reason": "the cart loses items", "revision": 1 });
    let reply = ordering.post(&other, Some("night-watch-1"));
    assert_eq!(reply.status, 409, "{}", reply.body);
    let says = "that of an order that names no revision, and this is an order to revision 1";
    assert!(reply.body.contains(says), "{}", reply.body);
    let order = ordering.get(&format!("orders/{id}"));
    assert_eq!(order["rollout"]["outcome"], "rolled_back", "{order}");
    assert_eq!(order["rollout"]["order"], id.as_str());
    assert_eq!(order["rollout"]["created_revision"], 3);
    ordering.guarded.was_rolled_back_once();
    for (key, says) in [
        ("", "Idempotency-Key"),
        (&"x".repeat(200), "Idempotency-Key"),
    ] {
        let reply = ordering.post(&body, Some(key));
        assert_eq!(reply.status, 400, "{}", reply.body);
        assert!(reply.body.contains(says), "{}", reply.body);
    }
    let nowhere = ordering
        .guarded
        .daemon
        .get("/api/v1/releases/shop/mykadoo/orders/none");
    assert_eq!(nowhere.status, 404, "{}", nowhere.body);
}

#[test]
fn an_order_is_followed_to_its_end_although_the_daemon_was_killed_in_the_middle() {
    let mut ordering = Ordering::start();
    ordering.deploy(2);
    let mut running = ordering.spawn(&["rollback", "mykadoo", "--reason", "the cart"]);
    running.says("rder ");
    ordering.guarded.reaches("rolling_back");
    ordering.guarded.daemon.kill();
    ordering.guarded.daemon.start_again();
    let (code, text) = running.ends();
    assert_eq!(code, Some(0), "{text}\n{}", ordering.guarded.daemon.log());
    assert!(text.contains("rolled back"), "{text}");
    ordering.guarded.was_rolled_back_once();
}

/// What a person asks for and cannot be, is told at once and to them alone.
#[test]
fn what_cannot_be_ordered_is_refused_at_once_and_nobody_is_paged() {
    let ordering = Ordering::start();
    ordering.deploy(2);
    let text_of = |(code, text): (Option<i32>, String), expected: i32, parts: &[&str]| {
        assert_eq!(code, Some(expected), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    };
    let lists = "it can go back to: 1";
    text_of(ordering.rollback(&["99"]), 1, &["no revision 99", lists]);
    text_of(
        ordering.rollback(&["2"]),
        11,
        &["revision 2 is the one that is installed", lists],
    );
    for wrong in ["0", "-1", "3rd", "4294967296"] {
        text_of(ordering.rollback(&[wrong]), 2, &[wrong]);
    }
    let reason = |reason: &str| ordering.run(&["rollback", "mykadoo", "1", "--reason", reason]);
    text_of(reason(""), 2, &["--reason"]);
    text_of(reason("  "), 2, &["--reason"]);
    text_of(reason(&"x".repeat(501)), 2, &["500"]);
    let other = ordering.run(&["rollback", "another", "--reason", "typing"]);
    text_of(other, 1, &["knows no release another"]);
    for (body, status) in [
        (json!({ "reason": "r", "revision": 0 }), 404),
        (json!({ "reason": "r", "revision": -1 }), 400),
        (json!({ "reason": "r", "revision": "3" }), 400),
        (json!({ "reason": "" }), 400),
        (json!({ "reason": "r", "revision": 77 }), 404),
        (json!({ "reason": "r", "revision": 2 }), 409),
    ] {
        let reply = ordering.post(&body, None);
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
    }
    nothing_happened(&ordering);
    // Something is in the way: another operation is under way.
    let file = ordering.guarded.history.join("v1.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    record["status"] = "pending-upgrade".into();
    fs::write(&file, record.to_string()).unwrap();
    text_of(
        ordering.rollback(&["1"]),
        11,
        &["revision 1 is pending-upgrade"],
    );
    let rollouts = ordering.rollouts();
    assert_eq!(rollouts.len(), 1, "{rollouts:?}");
    assert_eq!(rollouts[0]["outcome"], "order_refused");
    let text = rollouts[0]["text"].as_str().unwrap();
    for part in ["the cart loses items", "revision 1 is pending-upgrade"] {
        assert!(text.contains(part), "{text}");
    }
    let (code, history) = ordering.run(&["history", "mykadoo"]);
    assert_eq!(code, Some(0), "{history}");
    assert!(history.contains("order refused"), "{history}");
    let release = ordering.guarded.release();
    let told = release.to_string();
    assert!(
        told.contains("A person ordered a rollback of revision 2"),
        "{told}"
    );
    nothing_happened(&ordering);
}

/// The revision is still judged, nothing was written, and nobody heard anything.
#[track_caller]
fn nothing_happened(ordering: &Ordering) {
    let release = ordering.guarded.release();
    assert_eq!(release["phase"], "analyzing", "{release:#}");
    assert_eq!(ordering.guarded.records().len(), 2);
    let history = release["history"].as_array().unwrap();
    assert!(
        history.iter().all(|one| one["outcome"].is_null()),
        "{history:?}"
    );
    for (place, text) in [
        ("the log of events", release["events"].to_string()),
        ("what is said", release["says"].to_string()),
        ("the history", release["history"].to_string()),
    ] {
        assert!(!text.contains("is bad"), "{place}: {text}");
    }
    assert_eq!(release["alerts"].to_string(), "[]");
    let state = ordering
        .guarded
        .daemon
        .folder()
        .join("state/shop.mykadoo.json");
    let state = fs::read_to_string(state).unwrap();
    assert!(!state.contains("\"found\":\"bad\""), "{state}");
}

/// Mode and limit bind Leadsman, and no person.
#[test]
fn an_order_is_carried_out_in_every_mode() {
    for mode in ["observe", "off"] {
        let ordering = Ordering::with(|config| {
            let mode = format!("mode = {mode:?}");
            config.replace("mode = \"enforce\"", &mode)
        });
        ordering.guarded.deploy("healthy");
        until("it is seen", || ordering.guarded.release()["revision"] == 2);
        let (code, text) = ordering.rollback(&["1"]);
        assert_eq!(
            code,
            Some(0),
            "{mode}: {text}\n{}",
            ordering.guarded.daemon.log()
        );
        ordering.guarded.was_rolled_back_once();
    }
}

#[test]
fn what_is_only_probed_takes_no_orders_and_says_why() {
    let ordering = Ordering::with(|config| {
        let lines = config.lines().filter(|line| !line.starts_with("embedded"));
        lines.map(|line| line.to_owned() + "\n").collect()
    });
    let (code, text) = ordering.rollback(&[]);
    assert_eq!(code, Some(11), "{text}");
    assert!(text.contains("shop/mykadoo is only probed"), "{text}");
}
