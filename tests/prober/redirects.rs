//! Redirects: off unless asked for, bounded, and within their scope.

use http::Method;
use leadsman::config::settings::{Auth, ConnectionReuse, RedirectScope, RequestBody, Secret};
use leadsman::core::probe_result::Reason;
use leadsman::core::probe_result::expect::StatusRange;

use crate::support::ask::{GOOD, TIMEOUT, bad, check, prober, sound};
use crate::support::pki::{Pki, certificate};
use crate::support::script::{Answer, answer};
use crate::support::server::Server;
use RedirectScope::{All, SameHost};

fn to(location: &str, status: u16) -> Answer {
    answer(status).header("Location", location)
}

#[tokio::test]
async fn s11_a_redirect_is_followed_when_asked() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/" => to("/there", 302),
        _ => answer(200).body("there"),
    })
    .await;
    let result = check("S11", server.url("/"), |q| q.redirects.max = 1, GOOD).await;
    assert_eq!(result.answer.redirects, 1);
    assert_eq!(result.answer.status, Some(200));
    assert_eq!(result.answer.body_bytes, 5);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn s12_a_redirect_is_judged_itself_when_not_followed() {
    let server = Server::plain(|_| to("/there", 302)).await;
    let found = StatusRange {
        low: 302,
        high: 302,
    };
    let change =
        |q: &mut leadsman::config::settings::HttpProbeConfig| q.expect.status = vec![found];
    let result = check("S12", server.url("/"), change, GOOD).await;
    assert_eq!(result.answer.redirects, 0);
    assert_eq!(server.request().path, "/");
    check(
        "S12: not wanted",
        server.url("/"),
        |_| {},
        bad(Reason::Status),
    )
    .await;
}

#[tokio::test]
async fn s14_a_redirect_to_tls_asks_for_the_new_name() {
    let pki = Pki::new();
    let secure = Server::tls(pki.server(&certificate(&["localhost"])), |_| answer(200)).await;
    let location = secure.url_of("localhost", "/there");
    let plain = Server::plain(move |_| to(&location, 301)).await;
    let result = check(
        "S14",
        plain.url("/"),
        |q| {
            q.redirects.max = 3;
            q.redirects.scope = RedirectScope::All;
            q.connect.tls.ca_file = Some(pki.ca_file());
        },
        GOOD,
    )
    .await;
    assert_eq!(secure.request().sni.as_deref(), Some("localhost"));
    assert!(result.answer.tls.is_some());
    assert!(!result.phases.tls.is_zero());
}

#[tokio::test]
async fn s16_the_number_of_redirects_is_a_limit() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/" => to("/1", 307),
        "/1" => to("/2", 307),
        _ => answer(200),
    })
    .await;
    let temporary = StatusRange {
        low: 307,
        high: 307,
    };
    // With none, the redirect is the answer; with too few, the chain is a failure: its end was asked for.
    for (max, status, path, expected) in [
        (0, 307, "/", GOOD),
        (1, 307, "/1", bad(Reason::Redirect)),
        (2, 200, "/2", bad(Reason::Status)),
    ] {
        let result = check(
            "S16",
            server.url("/"),
            |q| {
                q.redirects.max = max;
                q.expect.status = vec![temporary];
            },
            expected,
        )
        .await;
        assert_eq!(result.answer.status, Some(status), "{max}");
        assert_eq!(server.requests().last().unwrap().path, path);
    }
}

#[tokio::test]
async fn s17_s18_the_end_of_the_chain_is_judged() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/good" => answer(200),
        "/bad" => answer(500),
        path => {
            let (_, status, end) = {
                let mut parts = path.split('/');
                (parts.next(), parts.next().unwrap(), parts.next().unwrap())
            };
            to(&format!("/{end}"), status.parse().unwrap())
        }
    })
    .await;
    for status in [301, 302, 303, 307, 308] {
        let change = |q: &mut leadsman::config::settings::HttpProbeConfig| q.redirects.max = 5;
        let url = |end| server.url(&format!("/{status}/{end}"));
        check("S17", url("good"), change, GOOD).await;
        let result = check("S18", url("bad"), change, bad(Reason::Status)).await;
        assert_eq!(result.answer.status, Some(500));
    }
}

#[tokio::test]
async fn s19_a_loop_ends_at_the_limit() {
    let server = Server::plain(|_| to("/", 302)).await;
    let change = |q: &mut leadsman::config::settings::HttpProbeConfig| q.redirects.max = 20;
    let result = check("S19", server.url("/"), change, bad(Reason::Redirect)).await;
    assert_eq!(result.answer.redirects, 20);
    assert_eq!(server.requests().len(), 21);
}

#[tokio::test]
async fn s20_s21_the_scope_is_the_host() {
    let there = Server::plain(|_| answer(200)).await;
    let other_port = there.url("/there");
    let other_host = there.url_of("localhost", "/there");
    let down = there.url_of("localhost", "/there");
    let port = Server::plain(move |_| to(&other_port, 302)).await;
    let host = Server::plain(move |_| to(&other_host, 302)).await;
    let change = |scope| {
        move |q: &mut leadsman::config::settings::HttpProbeConfig| {
            q.redirects.max = 3;
            q.redirects.scope = scope;
        }
    };
    check("S20", port.url("/"), change(SameHost), GOOD).await;
    let before = there.requests().len();
    let refused = bad(Reason::Redirect);
    let result = check("S21", host.url("/"), change(SameHost), refused).await;
    assert_eq!(result.answer.status, Some(302));
    assert_eq!(there.requests().len(), before, "{down} is not asked");
    check("S21", host.url("/"), change(All), GOOD).await;
}

#[tokio::test]
async fn s22_a_redirect_to_nowhere_is_bad() {
    for location in [
        None,
        Some("http://"),
        Some("ftp://127.0.0.1/"),
        Some("http://user:pw@127.0.0.1/"),
    ] {
        let server = Server::plain(move |_| match location {
            Some(location) => to(location, 308),
            None => answer(308).body("gone"),
        })
        .await;
        let rule = format!("S22: {location:?}");
        let expected = bad(Reason::Redirect);
        let result = check(&rule, server.url("/"), |q| q.redirects.max = 3, expected).await;
        assert_eq!(result.answer.status, Some(308));
        let explanation = result.explanation.unwrap();
        assert!(!explanation.contains("user:pw"), "{explanation}");
    }
}

#[tokio::test]
async fn s24_a_body_is_sent_again_on_every_hop_and_every_run() {
    for connection in [ConnectionReuse::New, ConnectionReuse::KeepAlive] {
        for size in [0, 32, 513] {
            let server = Server::plain(|r| match r.path.as_str() {
                "/" => to("/1", 307),
                "/1" => to("/2", 308),
                _ => answer(200),
            })
            .await;
            let body = vec![b'x'; size];
            let sent = body.clone();
            let prober = prober(server.url("/"), |q| {
                q.method = Method::POST;
                q.body = RequestBody::Inline(sent.into());
                q.redirects.max = 2;
                q.connection = connection;
            });
            for _ in 0..2 {
                assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD);
            }
            let requests = server.requests();
            assert_eq!(requests.len(), 6);
            for request in requests {
                assert_eq!(request.method, "POST");
                assert_eq!(request.body, body, "{connection:?} {size}");
            }
        }
    }
}

#[tokio::test]
async fn a_303_turns_into_a_get_without_a_body() {
    let server = Server::plain(|r| match r.path.as_str() {
        "/" => to("/there", 303),
        _ => answer(200),
    })
    .await;
    let change = |q: &mut leadsman::config::settings::HttpProbeConfig| {
        q.method = Method::POST;
        q.body = RequestBody::Inline("form".into());
        q.redirects.max = 1;
    };
    check("303", server.url("/"), change, GOOD).await;
    let requests = server.requests();
    assert_eq!(
        (requests[1].method.as_str(), requests[1].body.len()),
        ("GET", 0)
    );
}

#[tokio::test]
async fn credentials_do_not_go_along_to_another_host() {
    let there = Server::plain(|_| answer(200)).await;
    let elsewhere = there.url_of("localhost", "/");
    let here = Server::plain(move |r| match r.path.as_str() {
        "/away" => to(&elsewhere, 302),
        "/stay" => to("/end", 302),
        _ => answer(200),
    })
    .await;
    let change = |q: &mut leadsman::config::settings::HttpProbeConfig| {
        q.redirects.max = 1;
        q.redirects.scope = RedirectScope::All;
        q.auth = Some(Auth::Bearer(Secret::Value("s3cret".into())));
        q.headers = vec![
            (
                http::header::AUTHORIZATION,
                "Custom s3cret".parse().unwrap(),
            ),
            (http::header::COOKIE, "session=s3cret".parse().unwrap()),
        ];
    };
    check("same host", here.url("/stay"), change, GOOD).await;
    assert!(here.requests()[1].header("authorization").is_some());
    check("another host", here.url("/away"), change, GOOD).await;
    let leaked = there.request();
    assert!(!format!("{leaked:?}").contains("s3cret"), "{leaked:?}");
}
