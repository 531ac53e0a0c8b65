//! Arbitrary bytes in place of an answer: no panic, an end in time, a bounded size.
//!
//! The cases are made from a fixed seed, so a failing one fails again; its number and bytes are in the message.

use std::time::Duration;

use leadsman::config::settings::{Compression, HttpProbeConfig, HttpVersions};
use leadsman::core::probe_result::Outcome;
use leadsman::core::probe_result::expect::{JsonPlace, JsonRule, JsonTest, Pattern};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::ask::{prober, sound};
use crate::support::script::raw;
use crate::support::server::Server;

/// As many as one timeout of the machine's slowest moment still allows.
const CASES: usize = 400;

/// At a time.
const BATCH: usize = 20;

/// All answers end with the connection, so none needs it.
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn any_bytes_in_place_of_http1() {
    check(answers(), false, |q| {
        q.compression = Some(Compression::Gzip);
        q.redirects.max = 2;
    })
    .await;
}

#[tokio::test]
async fn any_bytes_in_place_of_http2() {
    let frame = (
        0_u8..12,
        any::<u8>(),
        0_u8..4,
        prop::collection::vec(any::<u8>(), 0..60),
    )
        .prop_map(|(kind, flags, stream, payload)| {
            let length = u8::try_from(payload.len()).unwrap();
            let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
            [&head, payload.as_slice()].concat()
        });
    let settings = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    let frames = prop::collection::vec(frame, 0..10);
    let frames = frames.prop_map(move |frames| [settings.clone(), frames.concat()].concat());
    let any = prop::collection::vec(any::<u8>(), 0..200);
    let bytes = prop_oneof![4 => frames, 1 => any].boxed();
    check(bytes, true, |q| q.http = HttpVersions::Http2).await;
}

/// Answers put together from parts that are almost right, some of them with wrong bytes.
fn answers() -> BoxedStrategy<Vec<u8>> {
    let text = |parts: &'static [&'static str]| {
        prop::sample::select(parts).prop_map(|part| part.as_bytes().to_vec())
    };
    let some = |most| prop::collection::vec(any::<u8>(), 0..most);
    let status = prop_oneof![
        8 => text(&["HTTP/1.1 200 OK\r\n", "HTTP/1.1 302 Found\r\n", "HTTP/1.0 500 \r\n", "HTTP/1.1 100 C\r\n\r\n"]),
        1 => text(&["HTTP/1.1 1e3 x\r\n", "HTTP/2 200\r\n", "200 OK\r\n", "HTTP/1.1 200 OK\n"]),
        1 => some(30),
    ];
    let header = prop_oneof![
        8 => text(&[
            "Content-Length: 5\r\n", "Content-Length: 100000000\r\n", "Content-Length: x\r\n",
            "Transfer-Encoding: chunked\r\n", "Transfer-Encoding: gzip, chunked\r\n", "Content-Encoding: gzip\r\n",
            "Content-Encoding: gzip, gzip\r\n", "Location: /\r\n", "Location: //\r\n", "Location: \u{7f}\r\n",
            "Connection: close\r\n", "Last-Modified: x\r\n", "Content-Type: application/json\r\n", " folded\r\n",
        ]),
        1 => some(40),
    ];
    let body = prop_oneof![
        text(&[
            "5\r\nhello\r\n0\r\n\r\n",
            "hello",
            r#"{"status":"ok"}"#,
            "[[[[[[",
            "0\r\n\r\n",
            "\u{1f}\u{8b}"
        ]),
        some(100),
    ];
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (status, prop::collection::vec(header, 0..5), body, flips)
        .prop_map(|(status, headers, body, flips)| {
            let mut bytes = [status, headers.concat(), b"\r\n".to_vec(), body].concat();
            for (at, value) in flips {
                if !bytes.is_empty() {
                    let at = at.index(bytes.len());
                    bytes[at] = value;
                }
            }
            bytes
        })
        .boxed()
}

async fn check(
    strategy: BoxedStrategy<Vec<u8>>,
    at_once: bool,
    change: impl Fn(&mut HttpProbeConfig) + Copy,
) {
    let never = regex::Regex::new("^never$").unwrap();
    let mut runner = TestRunner::deterministic();
    for batch in 0..CASES / BATCH {
        let mut results = tokio::task::JoinSet::new();
        for candidate in 0..BATCH {
            let bytes = strategy.new_tree(&mut runner).unwrap().current();
            let answer = bytes.clone();
            let server = if at_once {
                Server::connections_only(raw(&answer)).await
            } else {
                Server::plain(move |_| raw(&answer)).await
            };
            let prober = prober(server.url("/"), |q| {
                q.body_limit = 1000;
                q.expect.json = vec![JsonRule {
                    place: JsonPlace::Pointer {
                        parts: vec!["status".into()],
                        text: "/status".into(),
                    },
                    test: JsonTest::Equals("ok".into()),
                }];
                q.expect.body_not_matches = vec![Pattern(never.clone())];
                change(q);
            });
            results.spawn(async move {
                let result = sound(&prober, DEADLINE).await;
                drop(server);
                let candidate = batch * BATCH + candidate;
                let shown = bytes.escape_ascii().to_string();
                assert!(
                    !matches!(result.outcome, Outcome::Unknown(_)),
                    "{candidate}: {shown}: {result:?}"
                );
                assert!(
                    result.duration() < DEADLINE,
                    "{candidate}: {shown}: {result:?}"
                );
                assert!(
                    result.answer.unpacked_bytes <= 100_000,
                    "{candidate}: {shown}"
                );
            });
        }
        while let Some(done) = results.join_next().await {
            if let Err(error) = done {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    }
}
