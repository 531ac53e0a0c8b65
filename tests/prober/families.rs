//! Names with several addresses, some of which lead nowhere, and name servers that do not answer everything. Each test
//! runs in a network and with name servers of its own, so it needs root.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leadsman::config::settings::{HttpProbeConfig, IpFamily, ProbeKind};
use leadsman::core::probe_result::Reason;
use leadsman::platform::clock;
use leadsman::prober::{Prober, Transcript};

use crate::support::ask::{
    GOOD, TIMEOUT, bad, check, check_tcp, check_within, http_question, shared, target,
};
use crate::support::namespace;
use crate::support::script::answer;
use crate::support::server::Server;

const HOSTS: &str = "127.0.0.1 localhost
fd00:1::2 shop.test
127.0.0.1 shop.test
fd00:1::2 dead.test
192.0.2.2 dead.test
fd00:1::2 many.test
fd00:1::3 many.test
fd00:1::4 many.test
127.0.0.1 many.test
";

/// The name of a test of this file, as the test program knows it.
fn named(test: &str) -> String {
    let (_, module) = module_path!().split_once("::").unwrap();
    format!("{module}::{test}")
}

#[test]
fn an_address_that_leads_nowhere_does_not_take_the_time_of_one_that_serves() {
    namespace::run(&named("in_a_network_with_black_holes"), HOSTS);
}

#[tokio::test]
#[ignore = "run by an_address_that_leads_nowhere_does_not_take_the_time_of_one_that_serves"]
async fn in_a_network_with_black_holes() {
    let server = Server::plain(|_| answer(200)).await;
    let here = Some(server.address.ip());
    for name in ["shop.test", "many.test"] {
        let result = check(name, server.url_of(name, "/"), |_| {}, GOOD).await;
        assert_eq!(result.answer.ip, here, "{name}");
        assert_eq!(result.answer.entrance, here, "{name}");
        // It was not tried first.
        assert!(
            result.phases.connect >= Duration::from_millis(250),
            "{result:?}"
        );
        let url = format!("tcp://{name}:{}", server.address.port());
        let result = check_tcp(name, TIMEOUT, url, |_| {}, GOOD).await;
        assert_eq!(result.answer.ip, here, "{name}");
    }
    assert_eq!(half_open(), 0, "what did not win is gone");

    let mut transcript = Transcript::default();
    let asked = ProbeKind::Http(Box::new(http_question()));
    let url = target(server.url_of("shop.test", "/"));
    let prober = Prober::new(&shared(), url, asked);
    prober
        .sound(clock::now(), TIMEOUT, Some(&mut transcript))
        .await;
    let lines = transcript.lines().join("\n");
    for text in ["trying the next", "connected to 127.0.0.1"] {
        assert!(lines.contains(text), "{text}: {lines}");
    }

    // Both addresses stand in the text, with what each said.
    let wait = Duration::from_millis(900);
    let timeout = bad(Reason::ConnectTimeout);
    let result = check_within("dead", wait, "http://dead.test:1/", |_| {}, timeout).await;
    let text = result.explanation.unwrap();
    for said in [
        "[fd00:1::2]:1 does not answer",
        "192.0.2.2:1 does not answer",
    ] {
        assert!(text.contains(said), "{text}");
    }
    assert!(!result.answer.reached);
    assert_eq!(result.answer.entrance, Some([192, 0, 2, 2].into()));
    let result = check_within("half", wait, "http://shop.test:1/", |_| {}, timeout).await;
    let text = result.explanation.unwrap();
    for said in [
        "[fd00:1::2]:1 does not answer",
        "127.0.0.1:1: Connection refused",
    ] {
        assert!(text.contains(said), "{text}");
    }
    assert!(result.answer.reached, "one of them refuses");
    assert_eq!(half_open(), 0, "nothing is left of what was given up");
    // One address alone has the time for itself.
    let only = |q: &mut HttpProbeConfig| q.connect.ip = IpFamily::V4 { fallback: false };
    let result = check("only", server.url_of("shop.test", "/"), only, GOOD).await;
    assert_eq!(result.answer.ip, here);
}

/// Connections that have not been answered, of the whole network.
fn half_open() -> usize {
    let both =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| std::fs::read_to_string(file).unwrap());
    let lines = both.iter().flat_map(|text| text.lines().skip(1));
    // The fourth column is the state, and 02 is SYN-SENT.
    lines
        .filter(|line| line.split_whitespace().nth(3) == Some("02"))
        .count()
}

#[test]
fn a_name_server_is_asked_only_for_the_family_that_is_wanted() {
    let name = named("with_a_name_server_that_drops_a_family");
    namespace::run(&name, "127.0.0.1 localhost\n");
}

const A: u16 = 1;
const AAAA: u16 = 28;

/// A name server that answers questions of one type for `v4.test` (A) and `v6.test` (AAAA), and drops all others but for
/// `both.test`, whose questions it answers all, and `none.test`, which exists without an address.
struct NameServer(Arc<Mutex<Vec<u16>>>);

impl NameServer {
    fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let query = &query[..length];
                // Behind the name, which ends with a zero byte.
                let end = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap() + 1;
                let kind = u16::from_be_bytes([query[end], query[end + 1]]);
                seen.lock().unwrap().push(kind);
                let name = &query[12..];
                let answers = name.starts_with(b"\x04both") || name.starts_with(b"\x04none");
                let of_v4 = name.starts_with(b"\x02v4") && kind == A;
                let of_v6 = name.starts_with(b"\x02v6") && kind == AAAA;
                if answers || of_v4 || of_v6 {
                    let empty = name.starts_with(b"\x04none");
                    answer_to(&socket, from, &query[..end + 4], kind, empty);
                }
            }
        });
        Self(asked)
    }

    fn asked(&self) -> Vec<u16> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn answer_to(socket: &UdpSocket, to: SocketAddr, query: &[u8], kind: u16, empty: bool) {
    let mut reply = query.to_vec();
    // A response, recursion available; one question, one answer or none, and nothing more.
    reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(!empty), 0, 0, 0, 0]);
    if !empty {
        let address: &[u8] = match kind {
            A => &[127, 0, 0, 1],
            _ => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        };
        reply.extend([
            0xc0,
            12,
            0,
            u8::try_from(kind).unwrap(),
            0,
            1,
            0,
            0,
            0,
            60,
            0,
        ]);
        reply.push(u8::try_from(address.len()).unwrap());
        reply.extend(address);
    }
    socket.send_to(&reply, to).unwrap();
}

#[tokio::test]
#[ignore = "run by a_name_server_is_asked_only_for_the_family_that_is_wanted"]
async fn with_a_name_server_that_drops_a_family() {
    let names = NameServer::start();
    let four = Server::plain(|_| answer(200)).await;
    let six = Server::plain_at("::1", |_| answer(200)).await;
    // Shorter than the resolver waits for a name server.
    let wait = Duration::from_secs(3);
    for fallback in [false, true] {
        let v4 = |q: &mut HttpProbeConfig| q.connect.ip = IpFamily::V4 { fallback };
        check_within("4", wait, four.url_of("v4.test", "/"), v4, GOOD).await;
        assert_eq!(names.asked(), [A], "fallback {fallback}");
        let v6 = |q: &mut HttpProbeConfig| q.connect.ip = IpFamily::V6 { fallback };
        check_within("6", wait, six.url_of("v6.test", "/"), v6, GOOD).await;
        assert_eq!(names.asked(), [AAAA], "fallback {fallback}");
    }
    let any = check_within("both", wait, four.url_of("both.test", "/"), |_| {}, GOOD).await;
    assert_eq!(any.answer.ip, Some(four.address.ip()));
    let mut both = names.asked();
    both.sort_unstable();
    assert_eq!(both, [A, AAAA]);
    let strict = |q: &mut HttpProbeConfig| q.connect.ip = IpFamily::V4 { fallback: false };
    let none = check("none", "http://none.test:1/", strict, bad(Reason::Resolve)).await;
    let text = none.explanation.unwrap();
    assert!(text.contains("none.test has no IPv4 address"), "{text}");
}
