//! Several replicas: what is asked of one that does not act, and what commands make of a change.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use leadsman::config::settings::{ServeTlsConfig, TlsConfig as LeaseTls};
use leadsman::http::status::RolloutView;
use leadsman::http::{AuthDecision, LeaderRoute, ListenerTls, Routing};

use crate::program::{Reply, post, request, until, unused_port};
use crate::serve::replica::{LONG, Made, Replica, token};
use crate::support::pki::Pki;

const ROLL_BACK: &str = "/api/v1/releases/shop/mykadoo/rollback";
const RECORDING: &str = "/api/v1/releases/shop/mykadoo/rollouts/2/recording";
const ALERTS: &str = "/api/v1/alerts";
const ORDER: &str = r#"{ "reason": "the cart loses items" }"#;
const NOTICE: &str = r#"{ "version": "4", "groupKey": "g", "status": "firing", "alerts": [] }"#;

fn is_not_now(reply: &Reply, says: &str) {
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(reply.header("content-type"), "application/problem+json");
    assert!(reply.body.contains(says), "{}", reply.body);
}

#[test]
fn a_replica_that_follows_answers_as_the_one_that_acts() {
    let (_folder, file) = token();
    let leader = Replica::start(Made {
        token_file: Some(file),
        recording: vec![b'x'; 5_000_000],
        ..Made::default()
    });
    let follower = Replica::follower(&leader.url(), &LeaseTls::default());
    // It knows nothing of the release itself.
    follower.guards_nothing();
    let releases = follower.get("/api/v1/releases", None);
    assert_eq!(releases.body, leader.get("/api/v1/releases", None).body);
    assert_eq!(releases.header("cache-control"), "no-store");
    for (path, body) in [(ROLL_BACK, ORDER), (ALERTS, NOTICE)] {
        for wrong in [None, Some("tok-wrong")] {
            let refused = follower.post(path, wrong, body);
            assert_eq!(refused.status, 401, "{path}: {}", refused.body);
            assert_eq!(refused.header("www-authenticate"), "Bearer");
        }
        let taken = follower.post(path, Some("tok-right"), body);
        assert_eq!(taken.status, 202, "{path}: {}", taken.body);
    }
    assert_eq!(leader.done(), 1);
    let headers = [
        ("Authorization", "Bearer tok-right"),
        ("Idempotency-Key", "night-watch-1"),
    ];
    let taken = post(follower.address, ROLL_BACK, &headers, ORDER.as_bytes());
    assert!(taken.body.contains("night-watch-1"), "{}", taken.body);
    let orders = "/api/v1/releases/shop/mykadoo/orders/none";
    assert_eq!(
        follower.get(orders, None).body,
        leader.get(orders, None).body
    );
    assert_eq!(follower.get(RECORDING, None).status, 401);
    let recording = follower.get(RECORDING, Some("tok-right"));
    assert_eq!((recording.status, recording.raw.len()), (200, 5_000_000));
    assert_eq!(recording.header("content-type"), "application/jsonl");
    let unknown = follower.get("/api/v1/releases/shop/another", None);
    assert_eq!(unknown.status, 404, "{}", unknown.body);

    // Where nobody may, nobody may here.
    let closed = Replica::start(Made::default());
    follower.follows(&closed.url(), &LeaseTls::default());
    let refused = follower.post(ROLL_BACK, Some("tok-right"), ORDER);
    assert_eq!(refused.status, 403);
    assert!(
        refused.body.contains("serve.token_file"),
        "{}",
        refused.body
    );
}

#[test]
fn while_nobody_can_be_asked_it_is_said_why() {
    let replica = Replica::start(Made::default());
    replica
        .shared
        .set_answers(Routing::One(LeaderRoute::Nobody));
    is_not_now(&replica.get(ALERTS, None), "no replica acts at the moment");
    is_not_now(&replica.post(ROLL_BACK, Some("t"), ORDER), "try again");
    // Its own probes it knows all the same.
    assert_eq!(replica.get("/api/v1/probes", None).status, 200);

    let nowhere = format!("http://127.0.0.1:{}", unused_port());
    replica.follows(&nowhere, &LeaseTls::default());
    for reply in [
        replica.get(ALERTS, None),
        replica.post(ROLL_BACK, Some("t"), ORDER),
    ] {
        is_not_now(&reply, "refused");
        assert!(
            reply.body.contains("the replica leadsman-1 acts"),
            "{}",
            reply.body
        );
    }
    replica.follows("http://leader.example/", &LeaseTls::default());
    is_not_now(&replica.get(ALERTS, None), "no address of a replica");

    // Two that take each other for the one that acts.
    let other = Replica::follower(&replica.url(), &LeaseTls::default());
    replica.follows(&other.url(), &LeaseTls::default());
    is_not_now(&replica.get(ALERTS, None), "does not act any more");
    let passed_on = [("X-Leadsman-Forwarded", "1")];
    let loops = request(replica.address, "GET", ALERTS, &passed_on);
    is_not_now(&loops, "does not act any more");

    replica.shared.set_answers(Routing::One(LeaderRoute::Here));
    replica.shared.set_ready(false);
    is_not_now(&replica.get(ALERTS, None), "starting or stopping");
}

/// Whether an order was carried out is not known then, and whoever repeats it might do it twice.
#[test]
fn an_answer_that_was_lost_is_no_invitation_to_repeat_an_order() {
    let forgetful = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", forgetful.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in forgetful.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let follower = Replica::follower(&address, &LeaseTls::default());
    let lost = follower.post(ROLL_BACK, Some("tok"), ORDER);
    assert_eq!((lost.status, lost.header("retry-after")), (504, ""));
    assert!(lost.body.contains("may have been done"), "{}", lost.body);
    is_not_now(&follower.get(ALERTS, None), "cannot be asked");
}

#[test]
fn another_replica_is_checked_by_the_authority_of_today() {
    let (first, second) = (Pki::new(), Pki::new());
    let (cert_file, key_file) = second.server_files(&["localhost"]);
    let files = ServeTlsConfig {
        cert_file,
        key_file,
        client_ca_file: None,
    };
    let leader = Replica::start(Made {
        tls: Some(ListenerTls::read(&files)),
        ..Made::default()
    });
    let tls = LeaseTls {
        ca_file: Some(first.ca_file()),
        server_name: Some("localhost".into()),
        ..LeaseTls::default()
    };
    let follower = Replica::follower(&format!("https://{}", leader.address), &tls);
    is_not_now(&follower.get(ALERTS, None), "ertificate");
    std::fs::copy(second.ca_file(), first.ca_file()).unwrap();
    until("the new authority is trusted", || {
        follower.get(ALERTS, None).status == 200
    });
}

/// What the cluster says of each caller is what they get, and nothing is done unless it lets them.
#[test]
fn whom_the_cluster_lets_in_is_let_in_and_nobody_else() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let replica = Replica::start(Made {
        review: Some(Arc::new(move |token: String, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            Box::pin(async move {
                match token.as_str() {
                    "ann" => AuthDecision::Allowed("ann".into()),
                    "bob" => AuthDecision::Forbidden("bob".into()),
                    "away" => AuthDecision::Unknown("the API server cannot be reached".into()),
                    _ => AuthDecision::Unauthenticated,
                }
            })
        })),
        ..Made::default()
    });
    let permissions = [
        (
            "POST",
            ROLL_BACK,
            ORDER,
            202,
            "releases/rollback of leadsman.io in shop",
        ),
        ("POST", "/-/reload", "", 200, "non-resource URL /-/reload"),
        (
            "POST",
            ALERTS,
            NOTICE,
            202,
            "non-resource URL /api/v1/alerts",
        ),
        (
            "GET",
            RECORDING,
            "",
            200,
            "releases/recording of leadsman.io in shop",
        ),
    ];
    let ask = |method, path, token, body| match method {
        "POST" => replica.post(path, token, body),
        _ => replica.get(path, token),
    };
    for (method, path, body, _, needed) in permissions {
        assert_eq!(ask(method, path, None, body).status, 401);
        assert_eq!(ask(method, path, Some("eve"), body).status, 401);
        let forbidden = ask(method, path, Some("bob"), body);
        assert_eq!(forbidden.status, 403);
        assert!(forbidden.body.contains(needed), "{}", forbidden.body);
        let away = ask(method, path, Some("away"), body);
        is_not_now(&away, "the API server cannot be reached");
    }
    assert_eq!(replica.done(), 0);
    for (method, path, body, status, _) in permissions {
        assert_eq!(
            ask(method, path, Some("ann"), body).status,
            status,
            "{path}"
        );
    }
    until("both were done", || replica.done() == 2);
    // What can be no release is no question for the cluster.
    let before = asked.load(Ordering::SeqCst);
    let long = "x".repeat(254);
    for path in [
        ROLL_BACK.replace("shop", &long),
        ROLL_BACK.replace("mykadoo", &long),
    ] {
        assert_eq!(replica.post(&path, Some("ann"), ORDER).status, 404);
    }
    for path in [
        RECORDING.replace("shop", &long),
        RECORDING.replace("mykadoo", &long),
    ] {
        assert_eq!(replica.get(&path, Some("ann")).status, 404);
    }
    assert_eq!(asked.load(Ordering::SeqCst), before);
}

/// A command that runs, with what it has said.
struct Running {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Running {
    fn start(server: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_leadsman"))
            .args(arguments)
            .args(["--server", server])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let kept = Arc::clone(&said);
        let keep = move |line: String| {
            let mut kept = kept.lock().unwrap();
            kept.push_str(&line);
            kept.push('\n');
        };
        let also = keep.clone();
        std::thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .for_each(keep);
        });
        std::thread::spawn(move || {
            BufReader::new(err)
                .lines()
                .map_while(Result::ok)
                .for_each(also);
        });
        Self { child, said }
    }

    fn says(&self, text: &str) {
        let deadline = Instant::now() + LONG;
        while !self.said.lock().unwrap().contains(text) {
            let said = self.said.lock().unwrap().clone();
            assert!(Instant::now() < deadline, "{text}: never said, but\n{said}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ends_with(mut self, code: i32, says: &str) {
        let status = self.child.wait().unwrap();
        self.says(says);
        let said = self.said.lock().unwrap();
        assert_eq!(status.code(), Some(code), "{said}");
    }
}

fn ended(outcome: &'static str, reason: &str) -> RolloutView {
    RolloutView {
        revision: 2,
        outcome,
        reason: reason.into(),
        ended_at: leadsman::platform::clock::unix_seconds() + 1.0,
        ..RolloutView::default()
    }
}

#[test]
fn the_gate_waits_through_every_change_of_who_acts() {
    let replica = Replica::start(Made::default());
    let address = replica.address;
    // A release that was installed a moment ago, and nobody has seen.
    replica.guards_nothing();
    let gate = Running::start(&replica.url(), &["gate", "mykadoo", "--timeout", "10m"]);
    gate.says("knows no release mykadoo");
    replica.controllers(&[]);
    gate.says("it is watched");
    // The one that acted is gone, and nobody takes over yet.
    let nowhere = format!("http://127.0.0.1:{}", unused_port());
    replica.follows(&nowhere, &LeaseTls::default());
    gate.says("the replica leadsman-1 acts, and cannot be asked");
    replica
        .shared
        .set_answers(Routing::One(LeaderRoute::Nobody));
    gate.says("no replica acts at the moment");
    // It acts, and has not put the release on its board.
    replica.guards_nothing();
    gate.said.lock().unwrap().clear();
    replica.shared.set_answers(Routing::One(LeaderRoute::Here));
    gate.says("knows no release mykadoo");
    // It is killed, and starts again.
    replica.stop();
    replica.ends();
    drop(replica);
    gate.says("no daemon answers");
    let replica = Replica::start(Made {
        at: address,
        ..Made::default()
    });
    gate.said.lock().unwrap().clear();
    gate.says("it is watched");
    replica.controllers(&[ended("rolled_back", "pods_down:api")]);
    gate.ends_with(10, "rolled back");
}

#[test]
fn the_gate_gives_up_with_what_was_the_matter() {
    let replica = Replica::start(Made::default());
    let gate =
        |server: &str, release: &str| Running::start(server, &["gate", release, "--timeout", "2s"]);
    let unknown = gate(&replica.url(), "another");
    let nobody = gate(&format!("http://127.0.0.1:{}", unused_port()), "mykadoo");
    let watched = gate(&replica.url(), "mykadoo");
    unknown.ends_with(1, "knows no release another");
    nobody.ends_with(3, "no daemon answers");
    watched.ends_with(124, "the last that was known: analyzing: it is watched");
    replica
        .shared
        .set_answers(Routing::One(LeaderRoute::Nobody));
    gate(&replica.url(), "mykadoo").ends_with(124, "no replica acts at the moment");
    // One that takes the question and does not answer holds it no longer.
    let hanging = crate::program::hanging_server();
    gate(&format!("http://{hanging}"), "mykadoo").ends_with(3, "does not answer");
}

/// A replica that acts, takes an order, and is gone before it answers; the keys of the orders that it took.
fn forgetful() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let keys = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&keys);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut head = String::new();
            let mut reader = BufReader::new(&stream);
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            if head.starts_with("POST") {
                let mut lines = head.lines().filter_map(|line| line.split_once(": "));
                let key = lines.find(|(name, _)| name.eq_ignore_ascii_case("idempotency-key"));
                let key = key.map_or("none", |(_, key)| key);
                kept.lock().unwrap().push(key.to_owned());
                continue;
            }
            let body = r#"{"releases":[{"namespace":"shop","release":"mykadoo"}]}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    (url, keys)
}

/// Whether it was done is not known, so it is the same order that is sent again: to the replica that acts then.
#[test]
fn an_order_whose_answer_is_lost_is_sent_again_as_the_same_order() {
    let (_folder, file) = token();
    let replica = Replica::start(Made {
        token_file: Some(file.clone()),
        ..Made::default()
    });
    let (acts, keys) = forgetful();
    replica.follows(&acts, &LeaseTls::default());
    let file = file.to_str().unwrap();
    let order = ["rollback", "mykadoo", "--reason", "r", "--token-file", file];
    let running = Running::start(&replica.url(), &order);
    until("an order is lost", || !keys.lock().unwrap().is_empty());
    replica.shared.set_answers(Routing::One(LeaderRoute::Here));
    until("it is sent again", || replica.done() == 1);
    let id = replica.order_ids.lock().unwrap()[0].clone();
    assert!(id.len() > 20, "{id}");
    let keys = keys.lock().unwrap().clone();
    assert!(keys.iter().all(|key| *key == id), "{keys:?} {id}");
    replica.controllers(&[RolloutView {
        order: Some(id),
        ..ended("rolled_back", "by_hand")
    }]);
    running.ends_with(0, "rolled back");
    assert_eq!(replica.done(), 1);
}

#[test]
fn a_command_waits_for_a_moment_until_somebody_acts() {
    let (_folder, file) = token();
    let replica = Replica::start(Made {
        token_file: Some(file.clone()),
        ..Made::default()
    });
    let refused = || {
        let page = replica.get("/metrics", None).body;
        let line = page.lines().find_map(|line| {
            line.strip_prefix("leadsman_http_requests_total{code=\"503\",handler=\"other\"} ")
        });
        line.map_or(0.0, |count| count.parse::<f64>().unwrap())
    };
    let file = file.to_str().unwrap();
    let commands: [(&[&str], i32, &str); 4] = [
        (&["status", "mykadoo"], 0, "it is watched"),
        (
            &["history", "mykadoo"],
            0,
            "No watch of shop/mykadoo has ended yet",
        ),
        (
            &["explain", "mykadoo"],
            1,
            "no watch of shop/mykadoo has ended yet",
        ),
        (
            &[
                "rollback",
                "mykadoo",
                "--reason",
                "a test",
                "--token-file",
                file,
            ],
            0,
            "rolled back",
        ),
    ];
    for (arguments, code, says) in commands {
        replica
            .shared
            .set_answers(Routing::One(LeaderRoute::Nobody));
        let before = refused();
        let running = Running::start(&replica.url(), arguments);
        until("it was told that nobody acts", || refused() > before);
        replica.shared.set_answers(Routing::One(LeaderRoute::Here));
        if arguments[0] == "rollback" {
            until("the order is there", || replica.done() == 1);
            let id = replica.order_ids.lock().unwrap()[0].clone();
            // That of somebody else, which ended at the same time, says nothing of it.
            replica.controllers(&[
                RolloutView {
                    order: Some(id),
                    ..ended("rolled_back", "by_hand")
                },
                RolloutView {
                    order: Some("of-another".into()),
                    ..ended("rollback_failed", "by_hand")
                },
            ]);
        }
        running.ends_with(code, says);
    }
    replica
        .shared
        .set_answers(Routing::One(LeaderRoute::Nobody));
    let status = Running::start(&replica.url(), &["status", "mykadoo"]);
    status.ends_with(3, "no replica acts at the moment");
}
