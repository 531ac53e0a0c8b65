//! Servers that break the rules, by mistake or on purpose: each ends in one bounded reason, in time, and in bounded
//! memory.

use std::time::Duration;

use leadsman::config::settings::{Compression, ConnectionReuse, HttpProbeConfig, HttpVersions};
use leadsman::core::probe_result::{Outcome, Reason};

use crate::support::ask::{GOOD, SHORT, TIMEOUT, bad, check, check_within, prober, sound};
use crate::support::script::{Script, Step, answer, close, raw, reset};
use crate::support::server::Server;

const HEAD: &str = "HTTP/1.1 200 OK\r\n";

#[tokio::test]
async fn answers_that_break_off() {
    let length = |rest: &str| format!("{HEAD}Content-Length: 10\r\n\r\n{rest}");
    let chunked = |rest: &str| format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{rest}");
    for (rule, script) in [
        ("closed before a byte", close()),
        ("closed in the status line", raw("HTTP/1.1 20")),
        ("closed in the head", raw(format!("{HEAD}Content-Le"))),
        ("body shorter than announced", raw(length("12345"))),
        ("no body at all", raw(length(""))),
        ("chunks without an end", raw(chunked("5\r\n12345\r\n"))),
        ("half a chunk", raw(chunked("5\r\n12"))),
        ("reset before a byte", reset()),
        ("reset in the head", broken_off(HEAD)),
        ("reset in the body", broken_off(&length("12345"))),
        (
            "reset between chunks",
            broken_off(&chunked("5\r\n12345\r\n")),
        ),
    ] {
        let server = Server::plain(move |_| script.clone()).await;
        check(rule, server.url("/"), |_| {}, bad(Reason::Reset)).await;
    }
    let server = Server::connections_only(vec![Step::Reset]).await;
    let result = check("reset at once", server.url("/"), |_| {}, bad(Reason::Reset)).await;
    assert_eq!(result.answer.status, None);
}

fn broken_off(text: &str) -> Script {
    // The wait lets the bytes arrive before the reset, which would overtake them.
    let wait = Duration::from_millis(20);
    vec![Step::Bytes(text.into()), Step::Wait(wait), Step::Reset].into()
}

#[tokio::test]
async fn answers_that_are_no_http() {
    let with = |headers: &str| format!("{HEAD}{headers}\r\n");
    for (rule, text) in [
        ("garbage", "\u{0}\u{1}\u{2}garbage\r\n\r\n".into()),
        ("another protocol", "220 mail.test ESMTP\r\n".into()),
        ("SSH", "SSH-2.0-OpenSSH_9.9\r\n".into()),
        ("a header without a colon", with("Broken\r\n")),
        ("a header name with a blank", with("Bro ken: 1\r\n")),
        ("a NUL in a header", with("X-A: a\0b\r\n")),
        (
            "two lengths",
            with("Content-Length: 1\r\nContent-Length: 2\r\n"),
        ),
        ("a negative length", with("Content-Length: -1\r\n")),
        (
            "a length beyond all bounds",
            with("Content-Length: 99999999999999999999999\r\n"),
        ),
        (
            "a chunk size that is none",
            with("Transfer-Encoding: chunked\r\n") + "zz\r\n",
        ),
        (
            "a chunk size beyond all bounds",
            with("Transfer-Encoding: chunked\r\n") + "fffffffffffffffff\r\n",
        ),
        (
            "a chunk without its end",
            with("Transfer-Encoding: chunked\r\n") + "1\r\nabc\r\n0\r\n\r\n",
        ),
    ] {
        let server = Server::plain(move |_| raw(&text)).await;
        check(rule, server.url("/"), |_| {}, bad(Reason::Protocol)).await;
    }
}

#[tokio::test]
async fn answers_without_an_end() {
    let line = |text: &str| {
        vec![
            Step::Bytes(HEAD.into()),
            Step::Forever(text.repeat(50).into()),
        ]
    };
    let forever =
        |head: &str, text: &[u8]| vec![Step::Bytes(head.into()), Step::Forever(text.to_vec())];
    let chunk = [b"1000\r\n", [b'x'; 0x1000].as_slice(), b"\r\n"].concat();
    let chunked = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
    let length = format!("{HEAD}Content-Length: 10000000000\r\n\r\n");
    for (rule, steps, expected) in [
        ("headers", line("X-Endless: 1\r\n"), Reason::Protocol),
        ("one header", line("xxxxxxxxxxxxxxxx"), Reason::Protocol),
        (
            "a status line",
            forever("HTTP/1.1 200 ", b"xxxxxxxxxxxxxxxx"),
            Reason::Protocol,
        ),
        ("chunks", forever(&chunked, &chunk), Reason::TooLarge),
        (
            "one chunk's size",
            forever(&chunked, b"1111111111111111"),
            Reason::Protocol,
        ),
        (
            "one chunk's extension",
            forever(&format!("{chunked}1;"), &[b'x'; 1000]),
            Reason::Protocol,
        ),
        (
            "trailers",
            forever(&format!("{chunked}0\r\n"), b"X-Endless: 1\r\n"),
            Reason::Protocol,
        ),
        (
            "a body of 10 GB",
            forever(&length, &vec![b'x'; 0x10000]),
            Reason::TooLarge,
        ),
        (
            "a body until the end",
            forever(&format!("{HEAD}\r\n"), &vec![b'x'; 0x10000]),
            Reason::TooLarge,
        ),
    ] {
        let server = Server::plain(move |_| steps.clone()).await;
        let before = memory();
        let result = check(rule, server.url("/"), |_| {}, bad(expected)).await;
        assert!(result.answer.body_bytes <= 2 << 20, "{rule}: {result:?}");
        // The other tests of this process need some as well.
        assert!(
            memory().saturating_sub(before) < 100 << 20,
            "{rule} needs too much memory"
        );
    }
}

#[tokio::test]
async fn interim_answers_and_blank_lines_are_not_an_answer() {
    for text in ["HTTP/1.1 100 Continue\r\n\r\n", "\r\n"] {
        let steps = vec![Step::Forever(text.repeat(100).into())];
        let server = Server::plain(move |_| steps.clone()).await;
        let prober = prober(server.url("/"), |_| {});
        let outcome = sound(&prober, SHORT).await.outcome;
        let allowed = [bad(Reason::HeaderTimeout), bad(Reason::Protocol)];
        assert!(allowed.contains(&outcome), "{outcome:?}");
    }
    let server = Server::plain(|_| {
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        raw(format!("{early}{HEAD}Content-Length: 2\r\n\r\nok"))
    })
    .await;
    let result = check("a few are", server.url("/"), |_| {}, GOOD).await;
    assert_eq!(result.answer.status, Some(200));
}

#[tokio::test]
async fn a_gzip_bomb_is_not_unpacked() {
    let bomb = gzip_bomb();
    assert!(bomb.len() < 2 << 20, "{}", bomb.len());
    let server =
        Server::plain(move |_| answer(200).header("Content-Encoding", "gzip").body(&bomb)).await;
    let change = |q: &mut HttpProbeConfig| {
        q.compression = Some(Compression::Gzip);
        q.body_limit = 4 << 20;
    };
    let before = memory();
    let result = check("bomb", server.url("/"), change, bad(Reason::TooLarge)).await;
    assert!(result.answer.unpacked_bytes <= 5 << 20, "{result:?}");
    assert!(memory().saturating_sub(before) < 100 << 20);
}

/// A gigabyte of zeros in a megabyte: one packed mebibyte, a thousand times.
fn gzip_bomb() -> Vec<u8> {
    use flate2::{Compress, Compression, FlushCompress};
    let mut packer = Compress::new(Compression::best(), false);
    let mut block = Vec::with_capacity(1 << 20);
    let zeros = vec![0; 1 << 20];
    packer
        .compress_vec(&zeros, &mut block, FlushCompress::Full)
        .unwrap();
    assert_eq!(packer.total_in(), 1 << 20);
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    for _ in 0..1000 {
        out.extend(&block);
    }
    out
}

#[tokio::test]
async fn what_comes_after_an_answer_is_not_the_next_answer() {
    let good = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let smuggled = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let server = Server::plain(move |r| match r.connection {
        0 => vec![Step::Bytes(format!("{good}{smuggled}").into())],
        _ => vec![Step::Bytes(good.into())],
    })
    .await;
    let prober = prober(server.url("/"), |q| {
        q.connection = ConnectionReuse::KeepAlive;
    });
    for run in 0..3 {
        let result = sound(&prober, TIMEOUT).await;
        assert_eq!(result.outcome, GOOD, "{run}");
        assert_eq!(result.answer.unpacked_bytes, 2, "{run}: {result:?}");
    }
}

#[tokio::test]
async fn an_answer_before_the_question_is_not_waited_for() {
    let server = Server::connections_only(raw(format!("{HEAD}Content-Length: 2\r\n\r\nok"))).await;
    let prober = prober(server.url("/"), |_| {});
    let outcome = sound(&prober, TIMEOUT).await.outcome;
    let allowed = [
        GOOD,
        bad(Reason::Protocol),
        bad(Reason::Reset),
        bad(Reason::Request),
    ];
    assert!(allowed.contains(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn an_unwanted_switch_of_protocols_is_bad() {
    let server = Server::plain(|_| {
        raw("HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    })
    .await;
    let prober = prober(server.url("/"), |_| {});
    let outcome = sound(&prober, TIMEOUT).await.outcome;
    assert!(
        matches!(outcome, Outcome::Failure(Reason::Protocol | Reason::Status)),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn broken_http2() {
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let goaway: &[u8] = &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let rst: &[u8] = &[0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2];
    let pings: Vec<u8> = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(50);
    for (rule, steps, reasons) in [
        (
            "garbage",
            vec![Step::Bytes(vec![0xff; 500]), Step::Hang],
            &[Reason::Protocol][..],
        ),
        (
            "closed",
            vec![Step::Close],
            &[Reason::Reset, Reason::Protocol],
        ),
        (
            "settings, then closed",
            vec![Step::Bytes(settings.into()), Step::Close],
            &[Reason::Reset],
        ),
        (
            "GOAWAY",
            vec![Step::Bytes([settings, goaway].concat()), Step::Hang],
            &[Reason::Protocol, Reason::Reset],
        ),
        (
            "the stream is reset",
            vec![Step::Bytes([settings, rst].concat()), Step::Hang],
            &[Reason::Protocol, Reason::Reset],
        ),
        ("silence", vec![Step::Hang], &[Reason::HeaderTimeout]),
        (
            "settings only",
            vec![Step::Bytes(settings.into()), Step::Hang],
            &[Reason::HeaderTimeout],
        ),
        (
            "a flood of pings",
            vec![Step::Bytes(settings.into()), Step::Forever(pings)],
            &[Reason::HeaderTimeout, Reason::Protocol],
        ),
    ] {
        let server = Server::connections_only(steps).await;
        let prober = prober(server.url("/"), |q| q.http = HttpVersions::Http2);
        let result = sound(&prober, SHORT).await;
        let Outcome::Failure(reason) = result.outcome else {
            panic!("{rule}: {result:?}");
        };
        assert!(reasons.contains(&reason), "{rule}: {result:?}");
    }
}

#[tokio::test]
async fn a_drip_ends_at_the_deadline() {
    let every = Duration::from_millis(20);
    let whole = format!("{HEAD}Content-Length: 1000\r\n\r\n");
    for (rule, steps, expected) in [
        (
            "head",
            vec![Step::Drip(HEAD.repeat(50).into(), every)],
            Reason::HeaderTimeout,
        ),
        (
            "body",
            vec![
                Step::Bytes(whole.into()),
                Step::Drip(vec![b'x'; 1000], every),
            ],
            Reason::BodyTimeout,
        ),
    ] {
        let server = Server::plain(move |_| steps.clone()).await;
        check_within(rule, SHORT, server.url("/"), |_| {}, bad(expected)).await;
    }
}

/// Bytes of memory that this process holds.
fn memory() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}
