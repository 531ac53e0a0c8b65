//! Statuses and versions over the wire.

use http::Method;
use leadsman::config::settings::HttpVersions;
use leadsman::core::probe_result::expect::StatusRange;
use leadsman::core::probe_result::{HttpVersion, Reason};

use crate::support::ask::{GOOD, bad, check};
use crate::support::script::{answer, raw};
use crate::support::server::{Server, nobody};
use HttpVersion::{V11, V20};

fn list(statuses: &[u16]) -> Vec<StatusRange> {
    let one = |&status| StatusRange {
        low: status,
        high: status,
    };
    statuses.iter().map(one).collect()
}

#[tokio::test]
async fn s01_to_s07_statuses() {
    let server = Server::plain(|r| answer(r.path[1..].parse().unwrap())).await;
    for (rule, status, allowed, expected) in [
        ("S01", 200, &[][..], GOOD),
        ("S02", 201, &[], GOOD),
        ("S02", 204, &[], GOOD),
        ("S02", 299, &[], GOOD),
        ("S03", 300, &[], bad(Reason::Status)),
        ("S04", 404, &[], bad(Reason::Status)),
        ("S05", 404, &[200, 404], GOOD),
        ("S06", 201, &[200, 404], bad(Reason::Status)),
        ("S07", 200, &[404], bad(Reason::Status)),
        ("S25", 500, &[], bad(Reason::Status)),
        ("a status that nobody knows", 999, &[999], GOOD),
    ] {
        let change = |q: &mut leadsman::config::settings::HttpProbeConfig| {
            if !allowed.is_empty() {
                q.expect.status = list(allowed);
            }
        };
        let result = check(rule, server.url(&format!("/{status}")), change, expected).await;
        assert_eq!(result.answer.status, Some(status));
        assert_eq!(result.answer.http_version, Some(HttpVersion::V11));
    }
}

#[tokio::test]
async fn s08_s09_s10_versions() {
    let old = Server::plain(|_| answer(200)).await;
    let new = Server::http2(|_| answer(200)).await;
    for (rule, versions, expected) in [
        ("S08", &[][..], GOOD),
        ("S09", &[V11], GOOD),
        ("S09", &[V11, V20], GOOD),
        ("S10", &[V20], bad(Reason::Version)),
    ] {
        let change = |q: &mut leadsman::config::settings::HttpProbeConfig| {
            q.expect.http_versions = versions.to_vec();
        };
        check(rule, old.url("/"), change, expected).await;
    }
    let result = check(
        "HTTP/2 with prior knowledge",
        new.url("/"),
        |q| {
            q.http = HttpVersions::Http2;
            q.expect.http_versions = vec![V20];
        },
        GOOD,
    )
    .await;
    assert_eq!(result.answer.http_version, Some(V20));
    assert_eq!(new.request().version, "HTTP/2.0");
    check(
        "HTTP/2 to a server that speaks none",
        old.url("/"),
        |q| q.http = HttpVersions::Http2,
        bad(Reason::Protocol),
    )
    .await;
}

#[tokio::test]
async fn http_1_0_is_understood() {
    let server = Server::plain(|_| raw("HTTP/1.0 200 OK\r\n\r\nok")).await;
    let result = check("HTTP/1.0", server.url("/"), |_| {}, GOOD).await;
    assert_eq!(result.answer.http_version, Some(HttpVersion::V10));
    assert_eq!(result.answer.body_bytes, 2);
}

#[tokio::test]
async fn s25_a_status_that_is_none_is_a_broken_protocol() {
    for line in [
        "HTTP/1.1 -1 Status",
        "HTTP/1.1 99 Status",
        "HTTP/1.1 1000 Status",
        "HTTP/1.1 two Status",
        "HTTP/1.1",
        "HTTP/9.9 200 OK",
        "ICY 200 OK",
    ] {
        let server =
            Server::plain(move |_| raw(format!("{line}\r\nContent-Length: 0\r\n\r\n"))).await;
        let result = check(line, server.url("/"), |_| {}, bad(Reason::Protocol)).await;
        assert_eq!(result.answer.status, None, "{line}");
    }
}

#[tokio::test]
async fn r09_every_method_is_sent_as_it_is() {
    let server = Server::plain(|r| match r.method.as_str() {
        "HEAD" => answer(200).body("12345").head_only(),
        _ => answer(200).body("12345"),
    })
    .await;
    for method in [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::HEAD,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::from_bytes(b"REPORT").unwrap(),
    ] {
        let sent = method.clone();
        let result = check("R09", server.url("/"), |q| q.method = sent, GOOD).await;
        assert_eq!(server.requests().last().unwrap().method, method.as_str());
        assert_eq!(result.answer.content_length, Some(5), "{method}");
        let bytes = if method == Method::HEAD { 0 } else { 5 };
        assert_eq!(result.answer.body_bytes, bytes, "{method}");
    }
}

#[tokio::test]
async fn r12_reachable_and_unreachable() {
    let server = Server::plain(|_| answer(200)).await;
    check("R12", server.url("/"), |_| {}, GOOD).await;
    let nobody = nobody().await;
    let refused = bad(Reason::ConnectRefused);
    check("R12", format!("http://{nobody}/"), |_| {}, refused).await;
}

#[tokio::test]
async fn m01_a_refused_connection_still_shows_what_is_known() {
    let nobody = nobody().await;
    let refused = bad(Reason::ConnectRefused);
    let result = check("M01", format!("http://{nobody}/"), |_| {}, refused).await;
    assert_eq!(result.answer.status, None);
    assert_eq!(result.answer.ip, Some(nobody.ip()));
    assert!(!result.duration().is_zero());
    assert!(result.phases.processing.is_zero() && result.phases.transfer.is_zero());
    assert!(result.phases.tls.is_zero());
}
