//! The name server goes away for a while and comes back, while a healthy revision is watched. Nothing that is asked by name
//! answers then, and none of it says anything of the revision. Each story has a network and a name server of its own, so
//! these tests need root.

use std::net::UdpSocket;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::program::until;
use crate::story::Guarded;
use crate::support::namespace;

/// Seconds of the watch without a name server; failures in a row reject after 15 s.
const AWAY_S: f64 = 20.0;

const A: u16 = 1;

/// How a name server is away.
#[derive(Clone, Copy, PartialEq)]
enum Away {
    /// Packets to it get lost.
    Silent,
    /// Its port is closed, as that of a Service without an endpoint.
    Refused,
}

/// Answers that every name is 127.0.0.1, unless it is away.
struct NameServer(mpsc::Sender<bool>);

impl NameServer {
    fn start(away: Away) -> Self {
        let (tell, told) = mpsc::channel();
        let mut socket = Some(listen());
        std::thread::spawn(move || {
            let mut is_away = false;
            loop {
                is_away = told.try_iter().last().unwrap_or(is_away);
                if is_away && away == Away::Refused {
                    socket = None;
                    is_away = told.recv().unwrap_or(false);
                    continue;
                }
                let socket = socket.get_or_insert_with(listen);
                let mut query = [0; 512];
                let Ok((length, from)) = socket.recv_from(&mut query) else {
                    continue;
                };
                if !is_away && let Some(reply) = reply(&query[..length]) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Self(tell)
    }

    fn goes_away(&self) {
        self.0.send(true).unwrap();
    }

    fn comes_back(&self) {
        self.0.send(false).unwrap();
    }
}

/// Gives up a read after a moment, to hear what is told.
fn listen() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    socket
}

/// An address for a question of IPv4, and none for others.
fn reply(query: &[u8]) -> Option<Vec<u8>> {
    let end = 12 + query.get(12..)?.iter().position(|byte| *byte == 0)? + 1;
    let kind = u16::from_be_bytes([*query.get(end)?, *query.get(end + 1)?]);
    let mut reply = query.get(..end + 4)?.to_vec();
    let has_address = kind == A;
    // A response, recursion available; one question, one answer or none, and nothing more.
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
    if has_address {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
    }
    Some(reply)
}

/// The configuration of the story, with the app by these names: the last probe by the last one.
fn by_name(config: &str, names: &[&str]) -> String {
    let (_, after) = config.split_once("base_url = \"http://127.0.0.1:").unwrap();
    let (port, _) = after.split_once('"').unwrap();
    let address = |name: &str| format!("http://{name}:{port}");
    let last = names.last().unwrap();
    let config = config.replacen(&address("127.0.0.1"), &address(names[0]), 1);
    let path = "path = \"/\"\n";
    assert!(config.contains(path), "{config}");
    config.replacen(path, &format!("url = \"{}/\"\n", address(last)), 1)
}

/// The name server is away in the middle of a watch; nothing is held against the revision, and that is said.
fn the_names_go_away(names: &[&str], away: Away) {
    let server = NameServer::start(away);
    let guarded = Guarded::with(|config| by_name(&config, names));
    guarded.deploy("healthy");
    guarded.reaches("analyzing");
    let watch = || guarded.release()["analysis"].clone();
    let elapsed = |watch: &Value| watch["elapsed_s"].as_f64();
    let unresolved = |watch: &Value| {
        let mut unknown = watch["unknown"].as_array().into_iter().flatten();
        let found = unknown.find(|one| one["reason"] == "unresolved");
        found.and_then(|one| one["count"].as_u64()).unwrap_or(0)
    };
    let before = elapsed(&watch()).unwrap();
    server.goes_away();
    until("a long time without a name server", || {
        let watch = watch();
        watch.is_null() || elapsed(&watch) >= Some(before + AWAY_S)
    });
    let missed = unresolved(&watch());
    server.comes_back();
    until("the revision is judged", || guarded.outcome_of(2).is_some());
    let log = guarded.daemon.log();
    println!("{names:?}: {missed} results were not judged for want of a name server");
    assert_eq!(guarded.outcome_of(2).as_deref(), Some("passed"), "{log}");
    assert!(missed >= 30, "{missed}\n{log}");
    let verdict = guarded.release()["verdict"]["text"].clone();
    let verdict = verdict.as_str().unwrap();
    let said = "not judged, because no name server answered";
    assert!(verdict.contains(said), "{verdict}");
}

fn named(test: &str) -> String {
    let (_, module) = module_path!().split_once("::").unwrap();
    format!("{module}::{test}")
}

#[test]
fn a_name_server_that_is_away_is_no_fault_of_the_revision() {
    namespace::run(&named("one_name_and_silence"), "127.0.0.1 localhost\n");
}

#[test]
#[ignore = "run by a_name_server_that_is_away_is_no_fault_of_the_revision"]
fn one_name_and_silence() {
    the_names_go_away(&["shop.test"], Away::Silent);
}

#[test]
fn nor_is_it_where_the_app_has_two_names() {
    namespace::run(
        &named("two_names_and_a_closed_port"),
        "127.0.0.1 localhost\n",
    );
}

#[test]
#[ignore = "run by nor_is_it_where_the_app_has_two_names"]
fn two_names_and_a_closed_port() {
    the_names_go_away(&["shop.test", "shop.example"], Away::Refused);
}
