//! Bodies: their sizes, their packing, their limits; and those that we send.

use std::io::Write as _;

use http::Method;
use leadsman::config::settings::{Compression, HttpProbeConfig, RequestBody};
use leadsman::core::probe_result::{ProbeResult, Reason, UnknownReason};

use crate::support::ask::{GOOD, TIMEOUT, bad, check, prober, sound, unknown};
use crate::support::pki::Pki;
use crate::support::script::{Answer, Step, answer};
use crate::support::server::Server;
use Compression::{Brotli, Deflate, Gzip};

const PLAIN: &[u8] = &[b'a'; 110];

#[tokio::test]
async fn b01_to_b05_packed_and_not() {
    let packed = |compression| match compression {
        Compression::Gzip => gzip(PLAIN),
        Compression::Deflate => zlib(PLAIN),
        Compression::Brotli => brotli(PLAIN),
    };
    let nothing = None;
    for (rule, coding, body, asked, unpacked) in [
        ("B01", None, PLAIN.to_vec(), nothing, 110),
        ("B01", Some("identity"), PLAIN.to_vec(), nothing, 110),
        ("B01", Some("identity"), PLAIN.to_vec(), Some(Gzip), 110),
        ("B02", Some("unheard-of"), PLAIN.to_vec(), nothing, 110),
        (
            "B04",
            Some("gzip"),
            packed(Gzip),
            nothing,
            packed(Gzip).len(),
        ),
        (
            "B04",
            Some("deflate"),
            packed(Deflate),
            nothing,
            packed(Deflate).len(),
        ),
        (
            "B04",
            Some("br"),
            packed(Brotli),
            nothing,
            packed(Brotli).len(),
        ),
        ("B05", Some("gzip"), packed(Gzip), Some(Gzip), 110),
        ("B05", Some("GZIP"), packed(Gzip), Some(Gzip), 110),
        ("B05", Some("deflate"), packed(Deflate), Some(Deflate), 110),
        ("B05", Some("br"), packed(Brotli), Some(Brotli), 110),
    ] {
        let wire = body.len();
        let server = Server::plain(move |_| match coding {
            Some(coding) => answer(200).header("Content-Encoding", coding).body(&body),
            None => answer(200).body(&body),
        })
        .await;
        let rule = format!("{rule}: {coding:?}, asked for {asked:?}");
        let change = |q: &mut HttpProbeConfig| q.compression = asked;
        let result = check(&rule, server.url("/"), change, GOOD).await;
        sizes(&rule, &result, Some(wire), wire, unpacked);
    }
}

#[tokio::test]
async fn b03_a_bad_status_still_has_a_size() {
    let server = Server::plain(|_| answer(500).body(PLAIN)).await;
    let result = check("B03", server.url("/"), |_| {}, bad(Reason::Status)).await;
    sizes("B03", &result, Some(110), 110, 110);
}

#[tokio::test]
async fn an_answer_without_a_body_has_nothing_to_unpack() {
    let server = Server::plain(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n";
        vec![Step::Bytes(head.into()), Step::Close]
    })
    .await;
    let change = |q: &mut HttpProbeConfig| {
        q.method = Method::HEAD;
        q.compression = Some(Gzip);
    };
    let result = check("HEAD", server.url("/"), change, GOOD).await;
    assert_eq!(result.answer.content_length, Some(5));
    assert_eq!(result.answer.unpacked_bytes, 0);
}

#[tokio::test]
async fn b05_what_is_unpacked_is_what_is_judged() {
    let server = Server::plain(|_| {
        let body = gzip(br#"{"status":"ok"}"#);
        answer(200).header("Content-Encoding", "gzip").body(body)
    })
    .await;
    let ok = |q: &mut HttpProbeConfig| {
        let pattern = regex::Regex::new(r#""status":"ok""#).unwrap();
        q.expect.body_matches = vec![leadsman::core::probe_result::expect::Pattern(pattern)];
    };
    check("packed", server.url("/"), ok, bad(Reason::Body)).await;
    let unpacked = |q: &mut HttpProbeConfig| {
        ok(q);
        q.compression = Some(Compression::Gzip);
    };
    check("unpacked", server.url("/"), unpacked, GOOD).await;
}

#[tokio::test]
async fn b07_the_accept_encoding_that_is_configured_is_sent() {
    let server = Server::plain(|_| {
        answer(200)
            .header("Content-Encoding", "gzip")
            .body(gzip(PLAIN))
    })
    .await;
    for accept in ["gzip", "br, gzip", "*"] {
        let change = |q: &mut HttpProbeConfig| {
            q.compression = Some(Compression::Gzip);
            q.headers = vec![(http::header::ACCEPT_ENCODING, accept.parse().unwrap())];
        };
        check("B07", server.url("/"), change, GOOD).await;
        let request = server.requests().pop().unwrap();
        let sent: Vec<_> = request
            .headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("accept-encoding"))
            .map(|(_, value)| value.as_str())
            .collect();
        assert_eq!(sent, [accept]);
    }
    let change = |q: &mut HttpProbeConfig| q.compression = Some(Compression::Gzip);
    check("unpacking is announced", server.url("/"), change, GOOD).await;
    let request = server.requests().pop().unwrap();
    assert_eq!(request.header("accept-encoding"), Some("gzip"));
}

#[tokio::test]
async fn b08_b09_b10_b12_the_limit() {
    let limited = |compression| {
        move |q: &mut HttpProbeConfig| {
            q.body_limit = 128;
            q.compression = compression;
        }
    };
    let too_large = bad(Reason::TooLarge);
    for (rule, size, expected) in [
        ("B08", 127, GOOD),
        ("B08", 128, GOOD),
        ("B09, B12", 129, too_large),
        ("B09, B12", 100_000, too_large),
    ] {
        let server = Server::plain(move |_| answer(200).body(vec![b'a'; size])).await;
        let result = check(rule, server.url("/"), limited(None), expected).await;
        assert_eq!(result.answer.content_length, Some(size as u64), "{rule}");
        let chunked = Server::plain(move |_| answer(200).body(vec![b'a'; size]).chunked()).await;
        check(rule, chunked.url("/"), limited(None), expected).await;
    }
    let gzip_of = |size: usize| {
        move |_: &_| -> Answer {
            let body = gzip(&vec![b'a'; size]);
            assert!(body.len() < 128);
            answer(200).header("Content-Encoding", "gzip").body(body)
        }
    };
    let server = Server::plain(gzip_of(127)).await;
    let result = check(
        "B10",
        server.url("/"),
        limited(Some(Compression::Gzip)),
        GOOD,
    )
    .await;
    assert_eq!(result.answer.unpacked_bytes, 127);
    let server = Server::plain(gzip_of(129)).await;
    check(
        "B10",
        server.url("/"),
        limited(Some(Compression::Gzip)),
        too_large,
    )
    .await;
    let server = Server::plain(|_| answer(200)).await;
    check(
        "no body at all",
        server.url("/"),
        |q| q.body_limit = 0,
        GOOD,
    )
    .await;
}

#[tokio::test]
async fn a_broken_packing_is_a_broken_protocol() {
    let whole = gzip(PLAIN);
    let mut flipped = whole.clone();
    let last = flipped.len() - 1;
    flipped[last - 5] ^= 0xff;
    for (rule, body) in [
        ("not packed at all", PLAIN.to_vec()),
        ("cut", whole[..whole.len() / 2].to_vec()),
        ("wrong checksum", flipped),
    ] {
        let server =
            Server::plain(move |_| answer(200).header("Content-Encoding", "gzip").body(&body))
                .await;
        let change = |q: &mut HttpProbeConfig| q.compression = Some(Compression::Gzip);
        check(rule, server.url("/"), change, bad(Reason::Protocol)).await;
    }
}

#[tokio::test]
async fn b13_b14_our_body_arrives_as_it_is_every_time() {
    let pki = Pki::new();
    for size in [0, 12, 511, 512, 513, 1024, 100_000] {
        let body: String = ('a'..='z').cycle().take(size).collect();
        let file = pki.file(&format!("{size}"), &body);
        for source in [
            RequestBody::Inline(body.clone().into()),
            RequestBody::File(file),
        ] {
            let server = Server::plain(|_| answer(200)).await;
            let prober = prober(server.url("/"), |q| {
                q.method = Method::POST;
                q.body = source.clone();
            });
            for _ in 0..2 {
                assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD);
            }
            for request in server.requests() {
                assert_eq!(request.body, body.as_bytes(), "{source:?}");
                let length = size.to_string();
                // Nothing may be announced as nothing, or not at all.
                let announced = request.header("content-length").unwrap_or("0");
                assert_eq!(announced, length);
            }
        }
    }
}

#[tokio::test]
async fn b13_a_body_that_cannot_be_read_is_our_own_trouble() {
    let server = Server::plain(|_| answer(200)).await;
    let change = |q: &mut HttpProbeConfig| {
        q.method = Method::POST;
        q.body = RequestBody::File("/nonexistent/body".into());
    };
    check(
        "B13, C10",
        server.url("/"),
        change,
        unknown(UnknownReason::File),
    )
    .await;
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn b15_a_chunked_answer_has_no_announced_length() {
    let server = Server::plain(|_| answer(200).body(PLAIN).chunked()).await;
    let result = check("B15", server.url("/"), |_| {}, GOOD).await;
    sizes("B15", &result, None, 110, 110);
    let server = Server::plain(|_| answer(200).body(PLAIN).until_close()).await;
    let result = check("until the end", server.url("/"), |_| {}, GOOD).await;
    sizes("until the end", &result, None, 110, 110);
    let server = Server::http2(|_| answer(200).body(PLAIN)).await;
    let change = |q: &mut HttpProbeConfig| q.http = leadsman::config::settings::HttpVersions::Http2;
    let result = check("HTTP/2", server.url("/"), change, GOOD).await;
    assert_eq!(result.answer.unpacked_bytes, 110);
}

#[track_caller]
fn sizes(rule: &str, result: &ProbeResult, announced: Option<usize>, wire: usize, unpacked: usize) {
    let answer = &result.answer;
    let seen = (
        answer.content_length,
        answer.body_bytes,
        answer.unpacked_bytes,
    );
    let expected = (announced.map(|n| n as u64), wire as u64, unpacked as u64);
    assert_eq!(seen, expected, "{rule}");
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

fn zlib(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Brotli (RFC 7932) without compression: one stored block and the empty last one.
fn brotli(plain: &[u8]) -> Vec<u8> {
    assert!((1..=1 << 16).contains(&plain.len()));
    // From the lowest bit: WBITS 16 (0), not last (0), four nibbles (00), length - 1, stored (1).
    let head = ((u32::try_from(plain.len()).unwrap() - 1) << 4) | (1 << 20);
    let mut out = head.to_le_bytes()[..3].to_vec();
    out.extend(plain);
    out.push(0b11);
    out
}
