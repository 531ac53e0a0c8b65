//! A receiver that answers as it is told to, and Alertmanagers that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::notify::restart::{config, firing, message, now_ms, restart_with, sent};
use crate::program::{Leadsman, hanging_server, until};

/// An answer.
#[derive(Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// Waits so long before it.
    after: Duration,
    /// What it announces is more than what comes: either nothing more, or a byte now and then.
    breaks_off: Option<Drip>,
}

/// How an answer does not come to its end.
#[derive(Clone, Copy)]
pub(crate) enum Drip {
    /// The connection ends.
    Ends,
    /// A byte comes every so often.
    Drips,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: String::new(),
            body: b"{}".to_vec(),
            after: Duration::ZERO,
            breaks_off: None,
        }
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..self
        }
    }

    pub(crate) fn header(self, header: &str) -> Self {
        Self {
            headers: format!("{}{header}\r\n", self.headers),
            ..self
        }
    }

    pub(crate) fn breaks_off(self, how: Drip) -> Self {
        Self {
            breaks_off: Some(how),
            ..self
        }
    }

    pub(crate) fn after(self, after: Duration) -> Self {
        Self { after, ..self }
    }
}

/// A request: its head and its body.
#[derive(Clone)]
pub(crate) struct Request {
    pub head: String,
    pub body: String,
}

type Answer = Box<dyn Fn(&Request) -> Reply + Send>;

/// A server that keeps what it is sent.
pub(crate) struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    answer: Arc<Mutex<Answer>>,
}

impl Receiver {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Box::new(answer)));
        let (kept, by) = (Arc::clone(&requests), Arc::clone(&answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, by) = (Arc::clone(&kept), Arc::clone(&by));
                std::thread::spawn(move || serve(stream, &kept, &by));
            }
        });
        Self {
            address,
            requests,
            answer,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub(crate) fn answers(&self, answer: impl Fn(&Request) -> Reply + Send + 'static) {
        *self.answer.lock().unwrap() = Box::new(answer);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.requests()
            .into_iter()
            .map(|request| request.body)
            .collect()
    }
}

fn serve(mut stream: TcpStream, kept: &Mutex<Vec<Request>>, by: &Mutex<Answer>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    let mut bytes = Vec::new();
    loop {
        let Some(request) = take(&mut stream, &mut bytes) else {
            return;
        };
        let reply = by.lock().unwrap()(&request);
        kept.lock().unwrap().push(request);
        std::thread::sleep(reply.after);
        let head = format!(
            "HTTP/1.1 {} x\r\nContent-Length: {}\r\n{}\r\n",
            reply.status,
            reply.body.len() + usize::from(reply.breaks_off.is_some()) * 1000,
            reply.headers
        );
        if stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&reply.body))
            .is_err()
        {
            return;
        }
        match reply.breaks_off {
            None => {}
            Some(Drip::Ends) => return,
            Some(Drip::Drips) => {
                while stream.write_all(b" ").is_ok() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                return;
            }
        }
    }
}

fn take(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> Option<Request> {
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length")
                    .then(|| value.trim().parse::<usize>().ok())?
            });
            let whole = end + 4 + length.unwrap_or(0);
            if bytes.len() >= whole {
                let body = String::from_utf8_lossy(&bytes[end + 4..whole]).into_owned();
                bytes.drain(..whole);
                return Some(Request { head, body });
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn with(urls: &[String], more: &str) -> String {
    format!(
        "[alertmanager]\nurls = {urls:?}\nresend = \"1s\"\ntimeout = \"2s\"\nwatchdog = true\n{more}\n\
         [[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\n\
         [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\n"
    )
}

fn shard_leaderships(receiver: &Receiver) -> usize {
    let requests = receiver.requests();
    requests
        .iter()
        .filter(|request| request.head.starts_with("POST /api/v2/alerts"))
        .count()
}

/// What each of them does costs the others nothing.
#[test]
fn receivers_that_misbehave_hold_up_nobody() {
    let good = Receiver::start(|_| Reply::status(200));
    let hangs = hanging_server();
    let elsewhere = Receiver::start(|_| Reply::status(200));
    let to = elsewhere.url();
    let redirects = Receiver::start(move |_| Reply::status(301).header(&format!("Location: {to}")));
    let refuses =
        Receiver::start(|_| Reply::status(400).body("start time must be before end time"));
    let large = Receiver::start(|_| Reply::status(503).body(vec![b'x'; 10_000_000]));
    let garbage = Receiver::start(|_| Reply::status(200).body("<html>\u{0}"));
    let resets = Receiver::start(|_| Reply::status(503).breaks_off(Drip::Ends));
    let drips = Receiver::start(|_| Reply::status(503).breaks_off(Drip::Drips));
    let huge = Receiver::start(|_| Reply::status(200).body(vec![b'['; 10_000_000]));
    let slow = Receiver::start(|_| Reply::status(200).after(Duration::from_millis(1500)));
    let urls: Vec<String> = [
        &good, &redirects, &refuses, &large, &garbage, &slow, &resets, &drips, &huge,
    ]
    .iter()
    .map(|receiver| receiver.url())
    .chain([
        format!("http://{hangs}"),
        "http://127.0.0.1:1".to_owned(),
        "http://nobody.invalid:9093".to_owned(),
    ])
    .collect();
    // So long that a busy machine makes none of the others late.
    let config = with(&urls, "").replace("timeout = \"2s\"", "timeout = \"10s\"");
    let leadsman = Leadsman::run(&config, &[]);
    until("the good one is told again and again", || {
        shard_leaderships(&good) >= 5
    });
    until("the slow one is told", || shard_leaderships(&slow) >= 2);
    until("all are tried", || {
        [
            &redirects, &refuses, &large, &garbage, &resets, &drips, &huge,
        ]
        .iter()
        .all(|receiver| shard_leaderships(receiver) >= 2)
    });
    // A redirect is not followed.
    assert!(elsewhere.requests().is_empty());
    let of = |page: &str, metric: &str, url: &str| -> f64 {
        let start =
            format!("leadsman_alertmanager_{metric}{{alertmanager=\"{url}api/v2/alerts\"}} ");
        let found = page
            .lines()
            .find_map(|line| line.strip_prefix(start.as_str()));
        found
            .unwrap_or_else(|| panic!("no {start}in\n{page}"))
            .parse()
            .unwrap()
    };
    // A receiver has heard it before its answer is read and counted.
    let mut page = String::new();
    until("all of it is counted", || {
        page = leadsman.get("/metrics").body;
        of(&page, "sent_total", &good.url()) > 4.5
            && of(&page, "errors_total", &redirects.url()) > 0.5
            && of(&page, "errors_total", &resets.url()) > 0.5
            // What is refused is not sent again before the next resend, and counts as dropped.
            && of(&page, "dropped_total", &refuses.url()) > 0.5
    });
    assert!(of(&page, "errors_total", &good.url()) < 0.5);
    assert!(
        of(&page, "errors_total", &huge.url()) < 0.5,
        "what it says does not matter"
    );
    assert!(of(&page, "dropped_total", &large.url()) < 0.5);
    // A name that is not resolved is no receiver, and is told of.
    assert!(
        page.contains("leadsman_alertmanager_discovered 11"),
        "{page}"
    );
    assert!(leadsman.said("nobody.invalid"));
    assert!(leadsman.said("start time must be before end time"));
    // An answer that says nothing of our alerts does not confirm them.
    let alerts: serde_json::Value =
        serde_json::from_str(&leadsman.get("/api/v1/alerts").body).unwrap();
    assert_eq!(alerts["alerts"][0]["confirmed_by"], serde_json::json!([]));
}

/// It begins in the moment of the signal, while the Alertmanager has yet to answer what was sent before: it cannot have been
/// sent by then, and arrives before the process ends.
#[test]
fn an_alert_that_begins_together_with_the_stop_still_arrives() {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let app = Receiver::start(|_| Reply::status(500));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let config = config(&alertmanager, &state, &app.url(), "timeout = \"60s\"\n");
    let mut leadsman = Leadsman::run(&config, &[]);
    let name = "LeadsmanProbeFailing";
    let (is_held, is_released) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let mut due = 0;
    restart_with(&mut leadsman, &state, |state| {
        let (held, released) = (Arc::clone(&is_held), Arc::clone(&is_released));
        alertmanager.answers(move |request| {
            while request.head.starts_with("POST") && !released.load(Ordering::Relaxed) {
                held.store(true, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
            Reply::status(200).body("[]")
        });
        // It fires when its probe has failed for a minute, and that is soon.
        due = now_ms() + 5000;
        let place = json!({"namespace": "shop", "release": "mykadoo", "probe": "api"});
        let mut alert = firing(name, &place, now_ms());
        alert["state"] = json!({"pending": {"since": due - 60_000}});
        let alerts = state["alerts"].as_array_mut().unwrap();
        alerts.retain(|alert| alert["kind"] != name);
        alerts.push(alert);
    });
    until("an answer is awaited", || is_held.load(Ordering::Relaxed));
    until("the alert is due", || now_ms() >= due);
    leadsman.signal("TERM");
    std::thread::sleep(Duration::from_millis(200));
    assert!(sent(&alertmanager, name).is_empty());
    is_released.store(true, Ordering::Relaxed);
    assert_eq!(leadsman.exit_code(Duration::from_secs(60)), Some(0));
    let sent = sent(&alertmanager, name);
    assert!(!sent.is_empty(), "{}", leadsman.log());
    // It fires: it goes on until somebody tells of it again, or that has not happened for long enough.
    assert!(sent[0]["startsAt"].as_str() < sent[0]["endsAt"].as_str());
    assert_eq!(sent[0]["labels"]["probe"], "api");
}

/// As everybody does it: `HTTP_PROXY`, and `NO_PROXY` for what is near.
#[test]
fn a_proxy_of_the_environment_is_used() {
    let proxy = Receiver::start(|_| Reply::status(200));
    let near = Receiver::start(|_| Reply::status(200));
    // Nobody answers at this address; the port keeps it apart from the one that is near.
    let far = "http://192.0.2.7:9093";
    let _leadsman = Leadsman::run_in(
        &with(&[far.to_owned(), near.url()], ""),
        &[],
        &[
            ("HTTP_PROXY", &proxy.url()),
            ("http_proxy", &proxy.url()),
            ("NO_PROXY", "127.0.0.1"),
        ],
    );
    until("the one that is near is told directly", || {
        shard_leaderships(&near) >= 1
    });
    until("the other one through the proxy", || {
        let requests = proxy.requests();
        requests.iter().any(|request| {
            request
                .head
                .starts_with(&format!("POST {far}/api/v2/alerts"))
        })
    });
    assert!(
        proxy
            .requests()
            .iter()
            .all(|request| request.head.contains("192.0.2.7"))
    );
}

#[test]
fn credentials_come_from_a_file_that_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "tok-alpha\n").unwrap();
    let receiver = Receiver::start(|_| Reply::status(200));
    let more = format!("bearer_token_file = {:?}", token.display().to_string());
    let leadsman = Leadsman::run(&with(&[format!("{}prefix", receiver.url())], &more), &[]);
    let sent = |text: &str| {
        let requests = receiver.requests();
        let text = format!("authorization: bearer {text}");
        requests.iter().any(|request| {
            request.head.starts_with("POST /prefix/api/v2/alerts")
                && request.head.to_ascii_lowercase().contains(&text)
        })
    };
    until("the token is sent", || sent("tok-alpha"));
    std::fs::write(&token, "tok-beta\n").unwrap();
    until("the new token is sent", || sent("tok-beta"));
    std::fs::remove_file(&token).unwrap();
    until("a token that is missing is told of", || {
        leadsman.said("What is sent does not arrive")
    });
    let log =
        leadsman.log() + &leadsman.get("/api/v1/alerts").body + &leadsman.get("/metrics").body;
    assert!(!log.contains("tok-"), "{log}");
}

#[test]
fn a_name_and_a_password_are_sent_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let password = folder.path().join("password");
    std::fs::write(&password, "hunter2\n").unwrap();
    let receiver = Receiver::start(|_| Reply::status(200));
    let more = format!(
        "username = \"leadsman\"\npassword_file = \"{}\"",
        password.display()
    );
    let leadsman = Leadsman::run(&with(&[receiver.url()], &more), &[]);
    until("both are sent", || {
        let requests = receiver.requests();
        // `printf leadsman:hunter2 | base64`
        requests.iter().any(|request| {
            let head = request.head.to_ascii_lowercase();
            head.contains("authorization: basic bgvhzhntyw46ahvudgvymg==")
        })
    });
    assert!(!leadsman.log().contains("hunter2"));
}

/// One that takes the request and ends the connection without a word.
fn resetting_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // What is not read makes a reset of the end.
            let _ = stream.read(&mut [0; 16]);
        }
    });
    address
}

/// What became of the messages to a receiver, where one that misbehaves is Slack or the webhook, and the other one and an
/// Alertmanager are well: these are told all the same.
fn tells(misbehaves: &str, at: &str, result: &str) {
    let alertmanager = Receiver::start(|_| Reply::status(200).body("[]"));
    let good = Receiver::start(|_| Reply::status(200));
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let well = if misbehaves == "slack" {
        "webhook"
    } else {
        "slack"
    };
    let url = |name: &str| {
        if name == misbehaves {
            at.to_owned()
        } else {
            good.url()
        }
    };
    let address = folder.path().join("slack-url");
    std::fs::write(&address, url("slack")).unwrap();
    let more = format!(
        "[slack]\nurl_file = \"{}\"\n[webhook]\nurl = \"{}\"\n",
        address.display(),
        url("webhook")
    );
    let config = config(&alertmanager, &state, "tcp://127.0.0.1:1", &more);
    let mut leadsman = Leadsman::run(&config, &[]);
    let before = sent(&alertmanager, "LeadsmanWatchdog").len();
    restart_with(&mut leadsman, &state, |state| {
        let two: Vec<_> = (1..=2).map(message).collect();
        state["waiting"] = json!({"slack": two, "webhook": two});
    });
    let counted = |receiver: &str, result: &str| -> u64 {
        let page = leadsman.get("/metrics").body;
        let start =
            format!("leadsman_messages_total{{receiver=\"{receiver}\",result=\"{result}\"}} ");
        let found = page.lines().find_map(|line| line.strip_prefix(&start));
        found.map_or(0, |count| count.parse().unwrap())
    };
    until(
        &format!("{misbehaves} at {at}: the other one is told"),
        || counted(well, "sent") == 2,
    );
    assert_eq!(good.requests().len(), 2);
    until(&format!("{misbehaves} at {at}: {result}"), || {
        counted(misbehaves, result) >= 1
    });
    until("so is Alertmanager, all the while", || {
        sent(&alertmanager, "LeadsmanWatchdog").len() >= before + 3
    });
    assert_eq!(counted(well, "failed") + counted(well, "dropped"), 0);
    // However much it says, little of it is kept.
    let longest = leadsman.log().lines().map(str::len).max();
    assert!(longest < Some(4096), "{longest:?}");
}

#[test]
fn slack_and_a_webhook_that_misbehave_hold_up_nobody() {
    let elsewhere = Receiver::start(|_| Reply::status(200));
    let to = elsewhere.url();
    let redirects = Receiver::start(move |_| Reply::status(307).header(&format!("Location: {to}")));
    let garbage = Receiver::start(|_| Reply::status(200).body("<html>\u{0}"));
    let large = Receiver::start(|_| Reply::status(503).body(vec![b'x'; 10_000_000]));
    let huge = Receiver::start(|_| Reply::status(200).body(vec![b'['; 10_000_000]));
    let refuses = Receiver::start(|_| Reply::status(400).body(vec![b'x'; 10_000_000]));
    let drips = Receiver::start(|_| Reply::status(503).breaks_off(Drip::Drips));
    let bad = [
        (format!("http://{}/", hanging_server()), "failed"),
        (format!("http://{}/", resetting_server()), "failed"),
        (redirects.url(), "failed"),
        (large.url(), "failed"),
        (drips.url(), "failed"),
        (refuses.url(), "dropped"),
        // What it says does not matter.
        (garbage.url(), "sent"),
        (huge.url(), "sent"),
    ];
    std::thread::scope(|scope| {
        for (at, result) in &bad {
            scope.spawn(move || {
                tells("slack", at, result);
                tells("webhook", at, result);
            });
        }
    });
    // A redirect is not followed: the address may be a secret, and so may be what is told.
    assert!(elsewhere.requests().is_empty());
}
