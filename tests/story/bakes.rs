//! The time after a healthy verdict: a revision is known to be good only once it has baked.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::program::until;
use crate::story::Guarded;

/// What users reach: it begins to fail when the test says so.
struct Entrance {
    url: String,
    fails: Arc<AtomicBool>,
}

impl Entrance {
    /// It is well again once the history has a third revision.
    fn start(third: PathBuf) -> Self {
        Self::with(move |fails, _| fails && !third.exists())
    }

    /// What fails is said by whether the test says so, and by the first line of the request.
    fn with(is_failure: impl Fn(bool, &str) -> bool + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let fails = Arc::new(AtomicBool::new(false));
        let does = Arc::clone(&fails);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, |line| {
                    is_failure(does.load(Ordering::Relaxed), line)
                });
            }
        });
        Self { url, fails }
    }

    fn fails_from_now_on(&self) {
        self.fails.store(true, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream, fails: impl Fn(&str) -> bool) {
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(count @ 1..) => request.extend_from_slice(&part[..count]),
            Ok(0) | Err(_) => return,
        }
    }
    let request = String::from_utf8_lossy(&request);
    let status = if fails(request.lines().next().unwrap_or_default()) {
        "503 Service Unavailable"
    } else {
        "200 OK"
    };
    let reply = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    // One who has gone away hears nothing.
    let _ = stream.write_all(reply.as_bytes());
}

/// A release that bakes with these settings.
fn baking(settings: &str) -> (Guarded, Entrance) {
    let entrance = std::cell::OnceCell::new();
    let guarded = Guarded::with(|config| {
        let history = config
            .lines()
            .find_map(|line| line.strip_prefix("embedded = "))
            .unwrap();
        let third = PathBuf::from(history.trim_matches('"')).join("v3.json");
        let entrance = entrance.get_or_init(|| Entrance::start(third));
        let lines = config.lines().map(|line| {
            if line.starts_with("base_url = ") {
                return format!("base_url = \"{}\"", entrance.url);
            }
            line.replace(
                "duration = \"60s\"",
                &format!("duration = \"30s\"\n{settings}"),
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    (guarded, entrance.into_inner().unwrap())
}

fn bake(guarded: &Guarded) -> Value {
    guarded.release()["bake"].clone()
}

#[track_caller]
fn bakes(guarded: &Guarded, revision: u64) {
    until("the revision is kept and bakes", || {
        let bake = bake(guarded);
        bake["revision"] == revision && bake["state"] == "baking"
    });
    assert_eq!(guarded.outcome_of(revision).as_deref(), Some("passed"));
    let says = guarded.release()["says"].as_str().unwrap().to_owned();
    assert!(
        says.contains("it bakes until it is known to be good"),
        "{says}"
    );
}

#[track_caller]
fn ended(guarded: &Guarded, end: &str) {
    let counted =
        format!("leadsman_bakes_total{{end=\"{end}\",namespace=\"shop\",release=\"mykadoo\"}} 1");
    until(&counted, || {
        let page = guarded.daemon.get("/metrics").body;
        page.lines().any(|line| line == counted)
    });
}

/// Two minutes of failures: one release is rolled back for them, across a restart, and of the other people are told.
#[test]
fn errors_in_the_bake_roll_back_where_that_is_set_and_are_told_elsewhere() {
    let (mut rolls, dead) = baking("bake = \"rollback\"\nbake_for = \"30m\"");
    let (tells, failing) = baking("bake_for = \"30m\"");
    for guarded in [&rolls, &tells] {
        guarded.deploy("healthy");
    }
    for guarded in [&rolls, &tells] {
        bakes(guarded, 2);
    }
    dead.fails_from_now_on();
    failing.fails_from_now_on();
    let evidence = |guarded: &Guarded, least: f64| {
        until("evidence grows", || {
            let bake = bake(guarded);
            bake["e_value"].as_f64() > Some(least) || bake["state"] != "baking"
        });
    };
    evidence(&rolls, 3.0);
    let before = bake(&rolls);
    rolls.daemon.kill();
    rolls.daemon.start_again();
    until("it goes on baking", || {
        let bake = bake(&rolls);
        bake["state"] == "baking" && bake["e_value"].as_f64() > Some(2.0)
    });
    let after = bake(&rolls);
    for key in ["revision", "since", "until"] {
        let number = |bake: &Value| bake[key].as_f64().unwrap();
        let moved = (number(&before) - number(&after)).abs();
        assert!(moved < 1.0, "{key}: {before} {after}");
    }
    for guarded in [&rolls, &tells] {
        evidence(guarded, 1000.0);
        ended(guarded, "failed");
    }
    until("revision 2 is rolled back and all is well", || {
        rolls.outcome_of(2).as_deref() == Some("rolled_back")
    });
    rolls.was_rolled_back_once();
    let verdict = rolls.release()["verdict"].clone();
    assert_eq!(verdict["reason"], "bake:error_rate", "{verdict}");

    let bake = bake(&tells);
    assert_eq!(
        (&bake["state"], &bake["revision"]),
        (&"failed".into(), &2.into())
    );
    let text = bake["text"].as_str().unwrap();
    assert!(
        text.contains("% tolerated; api: 8 of the last 8 results failed"),
        "{text}"
    );
    assert_eq!(tells.outcome_of(2).as_deref(), Some("passed"));
    assert_eq!(tells.records().len(), 2);
    until("people are told", || {
        tells
            .daemon
            .get("/api/v1/alerts")
            .body
            .contains("LeadsmanBakeFailed")
    });
    assert!(
        !rolls
            .daemon
            .get("/api/v1/alerts")
            .body
            .contains("LeadsmanBakeFailed")
    );
}

#[test]
fn what_bakes_to_its_end_is_known_to_be_good_and_the_next_revision_ends_a_bake() {
    let (guarded, _entrance) = baking("bake_for = \"1m\"");
    guarded.deploy("healthy");
    bakes(&guarded, 2);
    ended(&guarded, "good");
    assert_eq!(bake(&guarded)["state"], "good");
    let events = guarded.release()["events"].to_string();
    assert!(
        events.contains("nothing spoke against it: it is known to be good"),
        "{events}"
    );
    guarded.deploy("slow-start");
    bakes(&guarded, 3);
    guarded.deploy("healthy");
    ended(&guarded, "superseded");
    assert_eq!(guarded.outcome_of(3).as_deref(), Some("passed"));
}

/// The database goes down in the moment of the rollback: that says nothing of the revision that is gone back to.
#[test]
fn a_dependency_that_fails_while_a_rollback_is_verified_is_not_held_against_it() {
    let servers = std::cell::OnceCell::new();
    let guarded = Guarded::with(|config| {
        let mut lines = config.lines();
        let history = lines.find_map(|line| line.strip_prefix("embedded = "));
        let third = PathBuf::from(history.unwrap().trim_matches('"')).join("v3.json");
        let (app, database) = servers.get_or_init(|| {
            let is_rolled_back = third.clone();
            let app = Entrance::with(move |fails, line| {
                let is_db = line.contains("/api/health/db");
                if is_rolled_back.exists() {
                    is_db
                } else {
                    fails
                }
            });
            (app, Entrance::with(move |_, _| third.exists()))
        });
        let lines = config.lines().map(|line| match line {
            line if line.starts_with("base_url = ") => format!("base_url = \"{}\"", app.url),
            "path = \"/api/health/db\"" => format!("{line}\nneeds = [\"postgres\"]"),
            line => line.to_owned(),
        });
        lines.collect::<Vec<_>>().join("\n")
            + &format!(
                "\n[[dependency]]\nname = \"postgres\"\nurl = \"{}\"\ninterval = \"100ms\"\n",
                database.url
            )
    });
    guarded.deploy("healthy");
    guarded.reaches("analyzing");
    servers.get().unwrap().0.fails_from_now_on();
    until("the rollback is verified", || {
        let outcome = guarded.outcome_of(2);
        outcome.is_some_and(|outcome| outcome != "passed")
    });
    assert_eq!(
        guarded.outcome_of(2).as_deref(),
        Some("rolled_back"),
        "{}",
        guarded.daemon.log()
    );
    let events = guarded.release()["events"].to_string();
    let says = "postgres failed, so that failures of db meanwhile are not judged";
    assert!(events.contains(says), "{events}");
}
