//! Targets, names, addresses and proxies.

use std::process::Command;
use std::time::Duration;

use leadsman::config::Target;
use leadsman::config::settings::IpFamily;
use leadsman::core::probe_result::Reason;

use crate::support::ask::{GOOD, bad, check, target};
use crate::support::pki::{Pki, certificate};
use crate::support::script::answer;
use crate::support::server::Server;

#[tokio::test]
async fn t01_t02_schemes() {
    let server = Server::plain(|_| answer(200)).await;
    let address = server.address;
    check("T01", format!("{address}/path"), |_| {}, GOOD).await;
    check("T02", format!("HTTP://{address}"), |_| {}, GOOD).await;
    check("T02", format!("hTTp://{address}"), |_| {}, GOOD).await;
    let paths: Vec<_> = server.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(paths, ["/path", "/", "/"]);
}

#[test]
fn t03_t04_t05_what_is_no_target_is_an_error() {
    for text in [
        "invalid://",
        "invalid://x",
        "127.0.0.1%3A8080",
        "http%3A%2F%2F127.0.0.1%2F",
        "http://",
        "",
        "http://a b/",
        "http://[::1",
        "http://host:99999/",
    ] {
        assert!(Target::parse(text, "http").is_err(), "{text}");
    }
}

#[tokio::test]
async fn t08_t09_families() {
    let Some(server) = on_ipv6().await else {
        return;
    };
    let url = server.url("/");
    let with = |ip| move |q: &mut leadsman::config::settings::HttpProbeConfig| q.connect.ip = ip;
    let result = check("T08", &url, with(IpFamily::V4 { fallback: true }), GOOD).await;
    assert_eq!(result.answer.ip, Some(server.address.ip()));
    let only = with(IpFamily::V4 { fallback: false });
    let result = check("T09", &url, only, bad(Reason::Resolve)).await;
    assert!(result.explanation.unwrap().contains("IPv4"));
    check("T08", &url, with(IpFamily::V6 { fallback: false }), GOOD).await;
    check("T08", &url, with(IpFamily::Any), GOOD).await;
}

#[tokio::test]
async fn t10_a_numeric_address_is_not_looked_up() {
    let server = Server::plain(|_| answer(200)).await;
    let numeric = check("T10", server.url("/"), |_| {}, GOOD).await;
    assert!(!numeric.answer.resolved);
    assert!(
        numeric.phases.resolve < Duration::from_millis(100),
        "{numeric:?}"
    );
    let named = check("T10", server.url_of("localhost", "/"), |_| {}, GOOD).await;
    assert!(named.answer.resolved);
    assert_eq!(named.answer.ip, Some(server.address.ip()));
}

#[tokio::test]
async fn t11_t12_who_looks_up_the_name_behind_a_proxy() {
    let proxy = Server::plain(|_| answer(200)).await;
    let here = target(proxy.url("/"));
    for (rule, proxy_resolves, resolved) in [("T11", true, false), ("T12", false, true)] {
        let here = here.clone();
        let change = move |q: &mut leadsman::config::settings::HttpProbeConfig| {
            q.proxy = Some(here);
            q.proxy_resolves = proxy_resolves;
        };
        let result = check(rule, "http://localhost:1/path", change, GOOD).await;
        assert_eq!(result.answer.resolved, resolved, "{rule}");
        assert_eq!(result.phases.resolve.is_zero(), !resolved, "{rule}");
        let request = proxy.requests().pop().unwrap();
        assert!(request.path.starts_with("http://"), "{request:?}");
        assert_eq!(request.header("host"), Some("localhost:1"));
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_told_apart_from_the_target() {
    let proxy = Server::plain(|r| match r.method.as_str() {
        "CONNECT" => answer(403),
        _ => answer(200),
    })
    .await;
    let here = target(proxy.url("/"));
    let change = move |q: &mut leadsman::config::settings::HttpProbeConfig| {
        q.proxy = Some(here);
        q.proxy_resolves = true;
    };
    check(
        "CONNECT",
        "https://localhost:1/",
        change,
        bad(Reason::Proxy),
    )
    .await;
    assert_eq!(proxy.request().path, "localhost:1");
    let nobody = crate::support::server::nobody().await;
    let gone = target(format!("http://{nobody}"));
    let change = move |q: &mut leadsman::config::settings::HttpProbeConfig| q.proxy = Some(gone);
    check("nobody", "http://127.0.0.1:1/", change, bad(Reason::Proxy)).await;
}

/// The environment can only be set before a process starts, so the question is asked by another one.
#[test]
fn t13_a_proxy_in_the_environment_is_not_used() {
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this);
    child.args([
        "--exact",
        "prober::addresses::t13_in_another_process",
        "--ignored",
    ]);
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        child.env(name, "http://127.0.0.1:1/");
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[tokio::test]
#[ignore = "run by t13_a_proxy_in_the_environment_is_not_used"]
async fn t13_in_another_process() {
    assert!(std::env::var_os("http_proxy").is_some());
    let server = Server::plain(|_| answer(200)).await;
    check("T13", server.url("/"), |_| {}, GOOD).await;
}

#[tokio::test]
async fn t14_an_ipv6_address_keeps_its_brackets() {
    let Some(server) = on_ipv6().await else {
        return;
    };
    check("T14", server.url("/"), |_| {}, GOOD).await;
    let port = server.address.port();
    let host = format!("[::1]:{port}");
    assert_eq!(server.request().header("host"), Some(host.as_str()));
    assert_eq!(target("http://[::1]/").host(), "::1");
    assert_eq!(target("http://[::1]/").port(), 80);
}

#[tokio::test]
async fn t15_an_address_with_the_name_of_its_certificate() {
    let pki = Pki::new();
    let server = Server::tls(pki.server(&certificate(&["shop.test"])), |_| answer(200)).await;
    check(
        "T15",
        server.url("/"),
        |q| {
            q.connect.tls.ca_file = Some(pki.ca_file());
            q.connect.tls.server_name = Some("shop.test".into());
            q.host = Some("shop.test:8443".into());
        },
        GOOD,
    )
    .await;
    let request = server.request();
    assert_eq!(request.sni.as_deref(), Some("shop.test"));
    assert_eq!(request.header("host"), Some("shop.test:8443"));
}

#[tokio::test]
async fn t16_a_name_without_an_address_hurts_nobody_else() {
    let server = Server::plain(|_| answer(200)).await;
    let lost = check(
        "T16",
        "http://no-such-name.invalid/",
        |_| {},
        bad(Reason::Resolve),
    );
    let good = check("T16", server.url("/"), |_| {}, GOOD);
    let (lost, _) = tokio::join!(lost, good);
    assert_eq!(lost.answer.ip, None);
    assert!(lost.phases.connect.is_zero());
    assert!(lost.explanation.unwrap().contains("no-such-name.invalid"));
}

/// A server at ::1; `None`, said aloud, on a machine without IPv6.
async fn on_ipv6() -> Option<Server> {
    if tokio::net::TcpListener::bind("[::1]:0").await.is_err() {
        eprintln!("left out: this machine has no IPv6 loopback");
        return None;
    }
    Some(Server::plain_at("::1", |_| answer(200)).await)
}
