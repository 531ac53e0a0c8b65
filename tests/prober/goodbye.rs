//! Servers that say goodbye while they answer: nginx does with `keepalive_timeout 0`, after `keepalive_requests`, at each
//! reload and each drain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use leadsman::config::settings::{ConnectionReuse, HttpProbeConfig, HttpVersions, ProbeKind};
use leadsman::core::probe_result::{HttpVersion, Reason};
use leadsman::platform::clock;
use leadsman::prober::Prober;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::ask::{
    GOOD, TIMEOUT, bad, check_within, http_question, prober, shared, sound, target, until,
};
use crate::support::flood::{SETTINGS, has_request};
use crate::support::nginx::Nginx;
use crate::support::pki::Pki;

/// Ways to reach the same nginx: entrance, what is offered, connection.
fn ways() -> Vec<(usize, HttpVersions, ConnectionReuse)> {
    let mut all = Vec::new();
    for connection in [ConnectionReuse::New, ConnectionReuse::KeepAlive] {
        all.push((0, HttpVersions::Auto, connection));
        all.push((1, HttpVersions::Http2, connection));
        all.push((2, HttpVersions::Http1, connection));
        all.push((2, HttpVersions::Http2, connection));
    }
    all
}

fn kind(pki: &Pki, offer: HttpVersions, connection: ConnectionReuse) -> HttpProbeConfig {
    let mut kind = http_question();
    kind.http = offer;
    kind.connection = connection;
    kind.connect.tls.ca_file = Some(pki.ca_file());
    kind
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nginx_that_goes_away_after_each_answer_is_good() {
    let pki = Pki::new();
    let certificate = pki.server_files(&["127.0.0.1"]);
    for http in ["keepalive_timeout 0;", "keepalive_requests 1;", ""] {
        let nginx = Nginx::start(http, "", &certificate);
        for (entrance, offer, connection) in ways() {
            for path in ["/", "/large"] {
                let shared = shared();
                let kind = kind(&pki, offer, connection);
                let asked = ProbeKind::Http(Box::new(kind));
                let prober = Prober::new(&shared, target(nginx.url(entrance, path)), asked);
                for run in 0..11 {
                    let result = sound(&prober, TIMEOUT).await;
                    assert_eq!(
                        result.outcome, GOOD,
                        "{http} {entrance} {offer:?} {connection:?} {path} {run}: {result:#?}"
                    );
                    let two = offer == HttpVersions::Http2;
                    let two = two.then_some(HttpVersion::V20);
                    let expected = two.unwrap_or(HttpVersion::V11);
                    assert_eq!(result.answer.http_version, Some(expected));
                }
            }
        }
    }
}

/// How often nginx is reloaded while it is asked.
const RELOADS: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn an_nginx_that_is_reloaded_again_and_again_is_good() {
    let pki = Pki::new();
    let certificate = pki.server_files(&["127.0.0.1"]);
    // A large answer takes a while, so that reloads fall into it.
    let slow = "limit_rate_after 64k; limit_rate 4m;";
    let nginx = Nginx::start(slow, "", &certificate);
    let stop = Arc::new(AtomicBool::new(false));
    let mut asked = tokio::task::JoinSet::new();
    let mut counts = Vec::new();
    for (entrance, offer, connection) in ways() {
        let kind = kind(&pki, offer, connection);
        let probers = ["/", "/large"].map(|path| {
            let asked = ProbeKind::Http(Box::new(kind.clone()));
            Prober::new(&shared(), target(nginx.url(entrance, path)), asked)
        });
        let count = Arc::new(AtomicUsize::new(0));
        counts.push(Arc::clone(&count));
        let stop = Arc::clone(&stop);
        asked.spawn(async move {
            let mut bad = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let run = count.load(Ordering::Relaxed);
                let result = probers[run % 2].sound(clock::now(), TIMEOUT, None).await;
                if result.outcome != GOOD {
                    bad.push(format!(
                        "{entrance} {offer:?} {connection:?} {run}: {result:#?}"
                    ));
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            bad
        });
    }
    for _ in 0..RELOADS {
        // Each way meets each reload once: a single question is not met by two of them.
        let before: Vec<usize> = counts.iter().map(|it| it.load(Ordering::Relaxed)).collect();
        let all = || counts.iter().zip(&before);
        until("each was asked twice more", || {
            all().all(|(count, before)| count.load(Ordering::Relaxed) >= before + 2)
        })
        .await;
        let generations = nginx.generations();
        nginx.reload();
        until("it is reloaded", || nginx.generations() > generations).await;
    }
    stop.store(true, Ordering::Relaxed);
    let bad: Vec<String> = asked.join_all().await.concat();
    assert!(bad.is_empty(), "{} bad: {bad:#?}", bad.len());
}

/// The head of an answer on stream 1: status 200 of the static table, and nothing else.
const HEADERS: &[u8] = &[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];

/// Two bytes of its body, and then the last one.
const DATA: &[u8] = &[0, 0, 2, 0, 0, 0, 0, 0, 1, b'o', b'k'];
const LAST_DATA: &[u8] = &[0, 0, 1, 0, 1, 0, 0, 0, 1, b'!'];

fn goaway(last: u8, code: u8) -> Vec<u8> {
    vec![0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, code]
}

fn reset(code: u8) -> Vec<u8> {
    vec![0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code]
}

/// Connections in turn are answered with these pieces, one after the other once a request came, and then closed; the
/// last script stands for all that follow. Counts the connections.
async fn http2_server(scripts: Vec<Vec<Vec<u8>>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let number = counted.fetch_add(1, Ordering::Relaxed);
            let script = scripts.get(number).or(scripts.last()).unwrap().clone();
            tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let _ = stream.write_all(SETTINGS).await;
                // Preface, settings and the head of the request: it ends the stream.
                let mut seen = Vec::new();
                while !has_request(&seen) {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                for piece in script {
                    if stream.write_all(&piece).await.is_err() {
                        return;
                    }
                    let _ = stream.flush().await;
                    // Pieces are to be read one by one.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                let _ = stream.shutdown().await;
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await.unwrap_or(0) > 0 {}
            });
        }
    });
    (url, count)
}

#[tokio::test]
async fn a_goodbye_does_not_end_what_is_under_way() {
    for (rule, script) in [
        (
            "before the head",
            vec![goaway(1, 0), [HEADERS, DATA, LAST_DATA].concat()],
        ),
        (
            "in pieces",
            vec![goaway(1, 0), HEADERS.into(), DATA.into(), LAST_DATA.into()],
        ),
        (
            "after the head",
            vec![HEADERS.into(), goaway(1, 0), DATA.into(), LAST_DATA.into()],
        ),
        (
            "in the body",
            vec![[HEADERS, DATA].concat(), goaway(1, 0), LAST_DATA.into()],
        ),
        (
            "all at once",
            vec![[&goaway(1, 0), HEADERS, DATA, LAST_DATA].concat()],
        ),
        // The first says that it will go, the second how far it came.
        (
            "in two steps",
            vec![
                vec![
                    0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
                ],
                goaway(1, 0),
                [HEADERS, DATA].concat(),
                LAST_DATA.into(),
            ],
        ),
    ] {
        for connection in [ConnectionReuse::New, ConnectionReuse::KeepAlive] {
            let (url, count) = http2_server(vec![script.clone()]).await;
            let prober = prober(url, |q| {
                q.http = HttpVersions::Http2;
                q.connection = connection;
            });
            for run in 1..4 {
                let result = sound(&prober, TIMEOUT).await;
                assert_eq!(result.outcome, GOOD, "{rule} {connection:?}: {result:#?}");
                assert_eq!(result.answer.body_bytes, 3, "{rule}");
                assert_eq!(count.load(Ordering::Relaxed), run, "{rule}: asked once");
            }
        }
    }
}

#[tokio::test]
async fn a_stream_that_was_not_processed_is_asked_for_again_once() {
    let good = vec![[HEADERS, DATA, LAST_DATA].concat()];
    for (rule, refusal, expected) in [
        ("GOAWAY", goaway(0, 0), Reason::Reset),
        ("GOAWAY over an error", goaway(0, 11), Reason::Protocol),
        ("REFUSED_STREAM", reset(7), Reason::Reset),
    ] {
        let refused = vec![refusal];
        let (url, count) = http2_server(vec![refused.clone(), good.clone()]).await;
        let change = |q: &mut HttpProbeConfig| q.http = HttpVersions::Http2;
        check_within(rule, TIMEOUT, url, change, GOOD).await;
        assert_eq!(count.load(Ordering::Relaxed), 2, "{rule}");
        // Once: what refuses always is not asked for ever.
        let (url, count) = http2_server(vec![refused]).await;
        check_within(rule, TIMEOUT, url, change, bad(expected)).await;
        assert_eq!(count.load(Ordering::Relaxed), 2, "{rule}");
    }
}

#[tokio::test]
async fn what_was_processed_is_not_asked_for_again() {
    for (rule, script) in [
        ("it gives up", vec![reset(8)]),
        ("it closes", vec![]),
        ("it goes away and closes", vec![goaway(1, 0)]),
        (
            "it breaks off",
            vec![[HEADERS, DATA].concat(), goaway(1, 0)],
        ),
    ] {
        let (url, count) = http2_server(vec![script]).await;
        let change = |q: &mut HttpProbeConfig| q.http = HttpVersions::Http2;
        check_within(rule, TIMEOUT, url, change, bad(Reason::Reset)).await;
        assert_eq!(count.load(Ordering::Relaxed), 1, "{rule}");
    }
}
