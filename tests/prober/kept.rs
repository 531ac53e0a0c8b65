//! Connections that are kept, and what is left of those that are not.

use std::io::Write as _;

use http::Method;
use leadsman::config::settings::{ConnectionReuse, HttpProbeConfig, HttpVersions, RequestBody};
use leadsman::core::probe_result::{HttpVersion, Reason};
use leadsman::platform::clock;
use leadsman::prober::Transcript;

use crate::support::ask::{GOOD, SHORT, TIMEOUT, bad, check, check_within, prober, sound, until};
use crate::support::pki::{Pki, certificate};
use crate::support::script::{Script, Step, answer, hang};
use crate::support::server::{Server, nobody};

fn keep(q: &mut HttpProbeConfig) {
    q.connection = ConnectionReuse::KeepAlive;
}

/// The first request of each connection is answered well, the second as `second` says.
async fn second_time(second: Vec<Step>) -> Server {
    let count = std::sync::Mutex::new(std::collections::HashMap::new());
    Server::plain(move |r| {
        let mut count = count.lock().unwrap();
        let number: &mut usize = count.entry(r.connection).or_default();
        *number += 1;
        match *number {
            1 => Script::from(answer(200).body("ok")),
            _ => second.clone().into(),
        }
    })
    .await
}

#[tokio::test]
async fn a_kept_connection_that_closes_without_a_byte_is_replaced() {
    for second in [vec![Step::Close], vec![Step::Reset]] {
        let server = second_time(second).await;
        let prober = prober(server.url("/"), keep);
        for run in 0..3 {
            let result = sound(&prober, TIMEOUT).await;
            assert_eq!(result.outcome, GOOD, "{run} {result:?}");
            assert!(!result.answer.reused, "{run}");
        }
        assert_eq!(server.connections(), 3);
    }
}

#[tokio::test]
async fn a_broken_answer_on_a_kept_connection_is_not_asked_for_again() {
    for (rule, second, expected) in [
        (
            "half a head",
            vec![Step::Bytes("HTTP/1.1 2".into()), Step::Close],
            Reason::Reset,
        ),
        (
            "half a body",
            vec![
                Step::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok".into()),
                Step::Close,
            ],
            Reason::Reset,
        ),
        (
            "no HTTP",
            vec![Step::Bytes("220 mail\r\n\r\n".into()), Step::Close],
            Reason::Protocol,
        ),
        ("silence", vec![Step::Hang], Reason::HeaderTimeout),
    ] {
        let server = second_time(second).await;
        let prober = prober(server.url("/"), keep);
        assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD, "{rule}");
        let result = sound(&prober, SHORT).await;
        assert_eq!(result.outcome, bad(expected), "{rule}: {result:?}");
        assert!(result.answer.reused, "{rule}");
        assert_eq!(server.connections(), 1, "{rule}");
        assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD, "{rule}");
    }
}

#[tokio::test]
async fn bodies_go_over_a_kept_http2_connection() {
    let body = vec![b'x'; 70_000];
    let server = Server::http2(|r| answer(200).body(r.body.len().to_string())).await;
    let prober = prober(server.url("/"), |q| {
        keep(q);
        q.http = HttpVersions::Http2;
        q.method = Method::POST;
        q.body = RequestBody::Inline(body.clone().into());
    });
    for _ in 0..20 {
        let result = sound(&prober, TIMEOUT).await;
        assert_eq!(result.outcome, GOOD, "{result:?}");
        assert_eq!(result.answer.body_bytes, 5);
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_dropped_http2_result_leaves_nothing_behind() {
    // Neither a server that hangs nor one that does not read keeps it open.
    let hangs = Server::http2(|_| hang()).await;
    let prober_of_hanging = prober(hangs.url("/"), |q| q.http = HttpVersions::Http2);
    let result = prober_of_hanging.sound(clock::now(), TIMEOUT, None);
    let dropped = tokio::time::timeout(SHORT, result).await;
    assert!(dropped.is_err(), "it hangs");
    until("the connection is closed", || hangs.open() == 0).await;

    // It lets us send as much as we like, and reads nothing: a goodbye in order would never be sent.
    let settings: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
    let window: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0, 0];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[settings, window].concat()).unwrap();
        stream
    });
    let alive = tokio::runtime::Handle::current().metrics();
    let before = alive.num_alive_tasks();
    let change = |q: &mut HttpProbeConfig| {
        q.http = HttpVersions::Http2;
        q.method = Method::POST;
        // More than fits into the buffers between the two.
        q.body = RequestBody::Inline(vec![0; 32 << 20].into());
    };
    let timeout = bad(Reason::HeaderTimeout);
    check_within("does not read", SHORT, url, change, timeout).await;
    until("no task is left", || alive.num_alive_tasks() <= before).await;
    drop(server.join().unwrap());
}

#[tokio::test]
async fn how_an_http2_connection_ends() {
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let goaway = |code| vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, code];
    let rst = |code| vec![0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code];
    for (rule, frame, expected) in [
        ("it goes away", goaway(0), Reason::Reset),
        ("it goes away over an error", goaway(1), Reason::Protocol),
        ("it refuses", rst(7), Reason::Reset),
        ("it gives up", rst(8), Reason::Reset),
        ("it fails", rst(2), Reason::Protocol),
        (
            "its length is wrong",
            vec![0, 0, 1, 4, 0, 0, 0, 0, 0, 0],
            Reason::Protocol,
        ),
    ] {
        let steps = vec![Step::Bytes([settings, &frame].concat()), Step::Hang];
        let server = Server::connections_only(steps).await;
        let change = |q: &mut HttpProbeConfig| q.http = HttpVersions::Http2;
        check_within(rule, SHORT, server.url("/"), change, bad(expected)).await;
    }
    let server = Server::connections_only(vec![Step::Bytes(settings.into()), Step::Reset]).await;
    let change = |q: &mut HttpProbeConfig| q.http = HttpVersions::Http2;
    check("reset", server.url("/"), change, bad(Reason::Reset)).await;
    // The alert comes after the handshake, when HTTP/2 is spoken already.
    let pki = Pki::new();
    let wanted = certificate(&["localhost"]).http2();
    let config = pki.server(&wanted.asks_for_client_certificate());
    let server = Server::tls(config, |_| answer(200)).await;
    let url = server.url_of("localhost", "/");
    let change = |q: &mut HttpProbeConfig| q.connect.tls.ca_file = Some(pki.ca_file());
    check("alert", url, change, bad(Reason::Tls)).await;
}

#[tokio::test]
async fn http2_only_does_not_fall_back() {
    let pki = Pki::new();
    let change = |q: &mut HttpProbeConfig| {
        q.connect.tls.ca_file = Some(pki.ca_file());
        q.http = HttpVersions::Http2;
    };
    // One server says that it does not speak it, the other has never heard of the question.
    let says_no = pki.server(&certificate(&["localhost"]));
    let mut says_nothing = (*says_no).clone();
    says_nothing.alpn_protocols.clear();
    for config in [says_no, says_nothing.into()] {
        let old = Server::tls(config, |_| answer(200)).await;
        let url = old.url_of("localhost", "/");
        check("1.1 only", url, change, bad(Reason::Version)).await;
        assert_eq!(old.requests().len(), 0);
    }
    let config = pki.server(&certificate(&["localhost"]).http2());
    let new = Server::tls(config, |_| answer(200)).await;
    let result = check("HTTP/2", new.url_of("localhost", "/"), change, GOOD).await;
    assert_eq!(result.answer.http_version, Some(HttpVersion::V20));
}

#[tokio::test]
async fn what_a_redirect_showed_is_not_told_of_the_hop_after_it() {
    let gone = format!("http://{}/", nobody().await);
    let server = Server::plain(move |_| answer(302).header("Location", &gone).body("moved")).await;
    let change = |q: &mut HttpProbeConfig| q.redirects.max = 2;
    let refused = bad(Reason::ConnectRefused);
    let result = check("gone", server.url("/"), change, refused).await;
    assert_eq!(result.answer.redirects, 1);
    assert_eq!(result.answer.status, None);
    assert_eq!(result.answer.content_length, None);
}

#[tokio::test]
async fn a_kept_connection_that_leads_to_a_redirect_is_told_of_the_last_hop() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/" => answer(302).header("Location", "/next"),
        _ => answer(200).body("ok"),
    })
    .await;
    let prober = prober(server.url("/"), |q| {
        keep(q);
        q.redirects.max = 1;
    });
    for _ in 0..3 {
        let result = sound(&prober, TIMEOUT).await;
        assert_eq!(result.outcome, GOOD, "{result:?}");
        // The first hop took the connection that the last result left, the last hop opened one.
        assert!(!result.answer.reused && !result.phases.connect.is_zero());
    }
}

#[tokio::test]
async fn a_transcript_tells_the_steps_and_no_secret() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/?token=secret" => answer(302).header("Location", "/next?token=secret"),
        _ => answer(200).header("Set-Cookie", "id=secret").body("ok"),
    })
    .await;
    let prober = prober(server.url("/?token=secret"), |q| {
        q.redirects.max = 1;
        q.headers = vec![(http::header::COOKIE, "a=secret".parse().unwrap())];
    });
    let mut transcript = Transcript::default();
    let due = clock::now();
    let result = prober.sound(due, TIMEOUT, Some(&mut transcript)).await;
    assert_eq!(result.outcome, GOOD, "{result:?}");
    let lines = transcript.lines().join("\n");
    for text in ["connected to", "GET", "302", "/next?…", "200", "set-cookie"] {
        assert!(lines.contains(text), "{text}: {lines}");
    }
    assert!(!lines.contains("secret"), "{lines}");
}
