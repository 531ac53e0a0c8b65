//! Targets that send without an end what is no answer: each ends in one bad result with a clear reason, after little of
//! it was read.

use std::time::{Duration, Instant};

use leadsman::config::settings::{ConnectionReuse, HttpProbeConfig, HttpVersions, TcpStep};
use leadsman::core::probe_result::Reason;

use crate::support::ask::{
    GOOD, SHORT, TIMEOUT, bad, check, check_tcp, check_within, prober, sound,
};
use crate::support::flood::{EARLY_HINTS, Flood, SETTINGS, frame};
use crate::support::script::{Step, raw};
use crate::support::server::Server;

/// What of a flood may have been taken: what we read of it, and the buffers of the system between the two.
const MOST_TAKEN: usize = 24 << 20;

/// A status 103 whose head takes 4 kB in the table of both sides, and then only a byte for each time it is repeated.
fn amplified() -> (Vec<u8>, Vec<u8>) {
    let value = vec![b'a'; 3900];
    let mut block = EARLY_HINTS.to_vec();
    // Literal with indexing, new name "x", a value of 3900 bytes: 127 + (3900 - 127) in groups of seven bits.
    block.extend([0x40, 1, b'x', 0x7f, 0xbd, 0x1d]);
    block.extend(&value);
    let again = [EARLY_HINTS, &[0xbe; 14]].concat();
    (frame(1, 4, 1, &block), frame(1, 4, 1, &again))
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_interim_answers_over_http1() {
    let padded = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n",
        "a".repeat(8000)
    );
    for (rule, flood) in [
        ("100", "HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
        ("the shortest", "HTTP/1.1 100\r\n\r\n".to_owned()),
        (
            "103",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_owned(),
        ),
        ("large ones", padded),
        ("blank lines", "\r\n".to_owned()),
    ] {
        let server = Flood::start(&[], &[], flood.as_bytes());
        for connection in [ConnectionReuse::New, ConnectionReuse::KeepAlive] {
            let change = |q: &mut HttpProbeConfig| q.connection = connection;
            let result = check(rule, server.url(), change, bad(Reason::Protocol)).await;
            let text = result.explanation.unwrap();
            assert!(text.contains("answer"), "{rule}: {text}");
        }
        let taken = server.taken();
        assert!(taken < MOST_TAKEN, "{rule}: {taken}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_frames_over_http2() {
    let (amplified_first, amplified) = amplified();
    let many = frame(1, 4, 1, EARLY_HINTS);
    let settings = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
    let window = frame(8, 0, 0, &[0, 0, 0, 1]);
    let trickle = [frame(0, 0, 1, b"x"), frame(6, 0, 0, &[0; 8]).repeat(20)].concat();
    let head = frame(1, 4, 1, &[0x88]);
    for (rule, once, flood) in [
        ("interim answers", vec![], many),
        ("interim answers that grow", amplified_first, amplified),
        ("pings", vec![], frame(6, 0, 0, &[0; 8])),
        ("settings", vec![], settings),
        ("empty settings", vec![], frame(4, 0, 0, &[])),
        ("windows", vec![], window),
        ("priorities", vec![], frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("frames that nobody knows", vec![], frame(0x77, 0, 0, b"?")),
        (
            "empty continuations",
            frame(1, 0, 1, EARLY_HINTS),
            frame(9, 0, 1, &[]),
        ),
        ("empty data", head.clone(), frame(0, 0, 1, &[])),
        ("pings in the body", head.clone(), frame(6, 0, 0, &[0; 8])),
        ("pings between bytes of the body", head, trickle),
    ] {
        let server = Flood::start(SETTINGS, &once, &flood);
        for connection in [ConnectionReuse::New, ConnectionReuse::KeepAlive] {
            let change = |q: &mut HttpProbeConfig| {
                q.http = HttpVersions::Http2;
                q.connection = connection;
            };
            let result = check(rule, server.url(), change, bad(Reason::Protocol)).await;
            assert!(result.explanation.is_some());
        }
        let taken = server.taken();
        assert!(taken < MOST_TAKEN, "{rule}: {taken}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_is_not_flooded_between_two_questions() {
    // A good answer, and then pings until the connection ends.
    let good = [frame(1, 4, 1, &[0x88]), frame(0, 1, 1, b"ok")].concat();
    let server = Flood::start(SETTINGS, &good, &frame(6, 0, 0, &[0; 8]));
    let prober = prober(server.url(), |q| {
        q.http = HttpVersions::Http2;
        q.connection = ConnectionReuse::KeepAlive;
    });
    assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD);
    for _ in 0..2 {
        // It may be asked on the connection that is flooded, and while that is so.
        let outcome = sound(&prober, TIMEOUT).await.outcome;
        assert!(
            [GOOD, bad(Reason::Protocol)].contains(&outcome),
            "{outcome:?}"
        );
    }
    // Whether somebody still reads shows in what is taken.
    let mut before = usize::MAX;
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let taken = server.taken();
        if taken == before {
            break;
        }
        before = taken;
        assert!(Instant::now() < deadline, "{taken} bytes, and it goes on");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(before < 3 * MOST_TAKEN, "{before}");
}

#[tokio::test]
async fn a_few_interim_answers_and_a_large_head_are_fine() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n".repeat(8);
    let large = format!("X-Large: {}\r\n", "a".repeat(60_000));
    let text = format!("\r\n{early}HTTP/1.1 200 OK\r\n{large}Content-Length: 2\r\n\r\nok");
    let server = Server::plain(move |_| raw(&text)).await;
    check("early hints", server.url("/"), |_| {}, GOOD).await;
    // Lines in a body are no interim answers.
    let body = "HTTP/1.1 100 Continue\r\n\r\n".repeat(5000);
    let server = Server::plain(move |_| crate::support::script::answer(200).body(&body)).await;
    let keep = |q: &mut HttpProbeConfig| q.connection = ConnectionReuse::KeepAlive;
    check("a body like that", server.url("/"), keep, GOOD).await;
}

#[tokio::test]
async fn what_is_still_sending_at_the_deadline_is_bad_and_says_so() {
    let every = Duration::from_millis(20);
    let steps = vec![Step::Drip(
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(50).into(),
        every,
    )];
    let server = Server::plain(move |_| steps.clone()).await;
    let expected = bad(Reason::HeaderTimeout);
    let result = check_within("drip", SHORT, server.url("/"), |_| {}, expected).await;
    assert!(result.answer.reached, "{result:?}");
    let text = result.explanation.unwrap();
    assert!(text.contains("bytes came"), "{text}");
}

#[tokio::test]
async fn endless_lines_end_a_dialogue() {
    let pattern = regex::bytes::Regex::new("^ready").unwrap();
    for (rule, line) in [
        ("short", "x\n"),
        ("empty", "\n"),
        ("long", "xxxxxxxxxxxxxxxxxxxxx\r\n"),
    ] {
        let flood = Step::Forever(line.repeat(1000).into_bytes());
        let server = Server::connections_only(vec![flood]).await;
        let pattern = pattern.clone();
        let result = check_tcp(
            rule,
            TIMEOUT,
            server.tcp(),
            |q| q.dialogue = vec![TcpStep::Expect(pattern)],
            bad(Reason::Dialogue),
        )
        .await;
        assert!(result.answer.body_bytes <= 2 << 20, "{result:?}");
    }
}
