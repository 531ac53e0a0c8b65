//! Expectations over the wire. The rules themselves are tested beside `result::judge`.

use std::time::Duration;

use leadsman::config::settings::HttpProbeConfig;
use leadsman::core::probe_result::expect::{
    Expect, HeaderRule, HeaderTest, JsonPlace, JsonRule, JsonTest, Pattern,
};
use leadsman::core::probe_result::{HttpVersion, Reason};

use crate::support::ask::{GOOD, bad, check};
use crate::support::script::{answer, close, reset};
use crate::support::server::{Server, nobody};

#[tokio::test]
async fn a14_a17_json_and_body() {
    let server =
        Server::plain(|r| answer(200).body(format!(r#"{{"status":"{}","v":7}}"#, &r.path[1..])))
            .await;
    let ask = |q: &mut HttpProbeConfig| {
        q.expect.json = vec![status_ok()];
        q.expect.body_matches = vec![pattern(r#""v":\d"#)];
        q.expect.body_not_matches = vec![pattern("panic")];
    };
    let result = check("A14", server.url("/ok"), ask, GOOD).await;
    assert_eq!(result.answer.unpacked_bytes, 21, "A07");
    let result = check("A14", server.url("/down"), ask, bad(Reason::Json)).await;
    assert_eq!(result.answer.unpacked_bytes, 23, "A07");
    assert_eq!(
        result.explanation.as_deref(),
        Some(r#"JSON at /status is "down", expected "ok""#)
    );
}

#[tokio::test]
async fn a12_a_body_that_is_not_json() {
    for body in ["", "<html>", "👻", "{\"status\":\"ok\""] {
        let server = Server::plain(move |_| answer(200).body(body)).await;
        let ask = |q: &mut HttpProbeConfig| q.expect.json = vec![status_ok()];
        check("A12", server.url("/"), ask, bad(Reason::Json)).await;
    }
}

#[tokio::test]
async fn a18_to_a30_headers() {
    let server = Server::plain(|_| {
        answer(200)
            .header("Content-Type", "text/html")
            .header("X-Empty", "")
            .header("X-Twice", "one")
            .header("X-Twice", "two")
    })
    .await;
    for (rule, name, test, expected) in [
        (
            "A18",
            "content-type",
            HeaderTest::NotMatches(pattern("html")),
            bad(Reason::Header),
        ),
        (
            "A19",
            "content-type",
            HeaderTest::NotMatches(pattern("json")),
            GOOD,
        ),
        (
            "A20",
            "x-empty",
            HeaderTest::NotMatches(pattern(".*")),
            bad(Reason::Header),
        ),
        ("A20", "x-empty", HeaderTest::Matches(pattern(".*")), GOOD),
        ("A24", "x-twice", HeaderTest::Matches(pattern("two")), GOOD),
        (
            "A24",
            "x-twice",
            HeaderTest::Matches(pattern("three")),
            bad(Reason::Header),
        ),
        ("A28", "x-none", HeaderTest::Present, bad(Reason::Header)),
        ("A28", "x-none", HeaderTest::Absent, GOOD),
    ] {
        let name = http::HeaderName::from_static(name);
        let rules = vec![HeaderRule { name, test }];
        let ask = |q: &mut HttpProbeConfig| q.expect.headers = rules;
        check(rule, server.url("/"), ask, expected).await;
    }
}

#[tokio::test]
async fn a32_last_modified_is_seen() {
    let server =
        Server::plain(|_| answer(200).header("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT"))
            .await;
    let ask = |q: &mut HttpProbeConfig| q.expect.max_age = Some(Duration::from_secs(1));
    let result = check("A32: from the future", server.url("/"), ask, GOOD).await;
    assert_eq!(result.answer.last_modified, Some(1_893_456_000));
    let server = Server::plain(|_| answer(200)).await;
    check("A32: missing", server.url("/"), ask, bad(Reason::Header)).await;
}

#[tokio::test]
async fn g05_an_answer_that_took_too_long() {
    let slow = Duration::from_millis(60);
    let server = Server::plain(move |_| answer(200).after(slow)).await;
    let ask = |most| move |q: &mut HttpProbeConfig| q.expect.max_latency = Some(most);
    let short = Duration::from_millis(30);
    let result = check("G05", server.url("/"), ask(short), bad(Reason::TooSlow)).await;
    assert!(result.phases.processing >= slow, "{result:?}");
    check("G03", server.url("/"), ask(Duration::from_secs(8)), GOOD).await;
}

#[tokio::test]
async fn g19_a_transport_error_is_bad_whatever_is_expected() {
    // Everything that another prober could take for fulfilled when nothing has come.
    let anything = |q: &mut HttpProbeConfig| {
        q.expect = Expect {
            status: vec![leadsman::core::probe_result::expect::StatusRange {
                low: 100,
                high: 999,
            }],
            json: Vec::new(),
            body_not_matches: vec![pattern("panic")],
            headers: vec![HeaderRule {
                name: http::HeaderName::from_static("x-error"),
                test: HeaderTest::Absent,
            }],
            max_latency: Some(Duration::from_secs(9)),
            http_versions: vec![HttpVersion::V10, HttpVersion::V11, HttpVersion::V20],
            tls: Some(false),
            ..Expect::default()
        };
    };
    let nobody = format!("http://{}/", nobody().await);
    let result = check("refused", nobody, anything, bad(Reason::ConnectRefused)).await;
    assert_eq!(result.answer.status, None);
    let server = Server::plain(|_| reset()).await;
    check("reset", server.url("/"), anything, bad(Reason::Reset)).await;
    let server = Server::plain(|_| close()).await;
    check("closed", server.url("/"), anything, bad(Reason::Reset)).await;
    let lost = "http://no-such-name.invalid/";
    check("no address", lost, anything, bad(Reason::Resolve)).await;
}

fn status_ok() -> JsonRule {
    JsonRule {
        place: JsonPlace::Pointer {
            parts: vec!["status".into()],
            text: "/status".into(),
        },
        test: JsonTest::Equals("ok".into()),
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern(regex::Regex::new(text).unwrap())
}
