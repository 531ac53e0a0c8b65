//! What the target sees of us.

use http::header::{ACCEPT_LANGUAGE, HeaderName, USER_AGENT};
use leadsman::config::settings::{Auth, ConnectionReuse, HttpProbeConfig, HttpVersions, Secret};
use leadsman::core::probe_result::UnknownReason;

use crate::support::ask::{GOOD, TIMEOUT, check, prober, sound, unknown, until};
use crate::support::pki::Pki;
use crate::support::script::{Script, Step, answer};
use crate::support::server::Server;

#[tokio::test]
async fn r01_headers_are_sent_as_configured() {
    let change = |q: &mut HttpProbeConfig| {
        q.host = Some("shop.test:81".into());
        q.headers = vec![
            (USER_AGENT, "watchman/7".parse().unwrap()),
            (ACCEPT_LANGUAGE, "en-US".parse().unwrap()),
            (HeaderName::from_static("x-two"), "1".parse().unwrap()),
            (HeaderName::from_static("x-two"), "2".parse().unwrap()),
        ];
    };
    let server = Server::plain(|_| answer(200)).await;
    check("R01", server.url("/a?b=c"), change, GOOD).await;
    let request = server.request();
    assert_eq!(request.path, "/a?b=c");
    assert_eq!(request.header("host"), Some("shop.test:81"));
    assert_eq!(request.header("user-agent"), Some("watchman/7"));
    assert_eq!(request.header("accept-language"), Some("en-US"));
    let two = |(name, _): &&(String, String)| name.eq_ignore_ascii_case("x-two");
    let two: Vec<_> = request
        .headers
        .iter()
        .filter(two)
        .map(|h| h.1.as_str())
        .collect();
    assert_eq!(two, ["1", "2"]);
    let agents = request
        .headers
        .iter()
        .filter(|h| h.0.eq_ignore_ascii_case("user-agent"));
    assert_eq!(agents.count(), 1);

    let server = Server::http2(|_| answer(200)).await;
    let change = |q: &mut HttpProbeConfig| {
        change(q);
        q.http = HttpVersions::Http2;
    };
    check("R01: HTTP/2", server.url("/"), change, GOOD).await;
    let request = server.request();
    assert_eq!(request.header(":authority"), Some("shop.test:81"));
    assert_eq!(request.header("host"), None);
}

#[tokio::test]
async fn r02_r04_what_is_sent_by_itself() {
    let server = Server::plain(|_| answer(200)).await;
    check("R02", server.url(""), |_| {}, GOOD).await;
    let request = server.request();
    assert_eq!(request.path, "/");
    let agent = request.header("user-agent").unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(agent.starts_with(&format!("leadsman/{version}")), "{agent}");
    assert_eq!(
        request.header("host"),
        Some(server.address.to_string().as_str())
    );
    let mut names: Vec<_> = request.headers.iter().map(|h| h.0.to_lowercase()).collect();
    names.sort();
    assert_eq!(names, ["accept", "connection", "host", "user-agent"], "R04");
}

#[tokio::test]
async fn r06_credentials() {
    let server = Server::plain(|_| answer(200)).await;
    let basic = |q: &mut HttpProbeConfig| {
        q.auth = Some(Auth::Basic {
            username: "Aladdin".into(),
            password: Secret::Value("open sesame".into()),
        });
    };
    check("basic", server.url("/"), basic, GOOD).await;
    let bearer =
        |q: &mut HttpProbeConfig| q.auth = Some(Auth::Bearer(Secret::Value("t0ken".into())));
    check("bearer", server.url("/"), bearer, GOOD).await;
    let sent: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.header("authorization").unwrap().to_owned())
        .collect();
    // The example of RFC 7617.
    assert_eq!(sent, ["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "Bearer t0ken"]);
}

#[tokio::test]
async fn r07_a_token_that_changes_is_read_again() {
    let pki = Pki::new();
    let token = pki.file("token", "first\n");
    let server = Server::plain(|_| answer(200)).await;
    let prober = prober(server.url("/"), |q| {
        q.auth = Some(Auth::Bearer(Secret::File(token.clone())));
    });
    assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD);
    // Another size, so that a clock with coarse ticks cannot hide the change.
    pki.file("token", "second one");
    assert_eq!(sound(&prober, TIMEOUT).await.outcome, GOOD);
    let sent: Vec<_> = server
        .requests()
        .iter()
        .map(|r| r.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(sent, ["Bearer first", "Bearer second one"]);
    std::fs::remove_file(&token).unwrap();
    let result = sound(&prober, TIMEOUT).await;
    assert_eq!(result.outcome, unknown(UnknownReason::File), "{result:?}");
    assert!(!format!("{result:?}").contains("second one"));
}

#[tokio::test]
async fn r10_http2_only_where_it_is_offered() {
    let server = Server::plain(|_| answer(200)).await;
    check(
        "R10",
        server.url("/"),
        |q| q.http = HttpVersions::Http1,
        GOOD,
    )
    .await;
    assert_eq!(server.request().version, "HTTP/1.1");
}

#[tokio::test]
async fn r11_new_and_kept_connections() {
    for (connection, connections) in [(ConnectionReuse::New, 5), (ConnectionReuse::KeepAlive, 1)] {
        for http in [HttpVersions::Http1, HttpVersions::Http2] {
            let server = match http {
                HttpVersions::Http2 => Server::http2(|_| answer(200).body("ok")).await,
                HttpVersions::Auto | HttpVersions::Http1 => {
                    Server::plain(|_| answer(200).body("ok")).await
                }
            };
            let prober = prober(server.url("/"), |q| {
                q.connection = connection;
                q.http = http;
            });
            for run in 0..5 {
                let result = sound(&prober, TIMEOUT).await;
                assert_eq!(result.outcome, GOOD);
                let reused = connection == ConnectionReuse::KeepAlive && run > 0;
                assert_eq!(
                    result.answer.reused, reused,
                    "{connection:?} {http:?} {run}"
                );
                if reused {
                    assert!(result.phases.connect.is_zero(), "{result:?}");
                }
                assert!(result.answer.ip.is_some());
            }
            assert_eq!(server.connections(), connections, "{connection:?} {http:?}");
        }
    }
}

#[tokio::test]
async fn r11_a_kept_connection_that_was_closed_is_replaced() {
    let server = Server::plain(|_| answer(200).until_close()).await;
    let prober = prober(server.url("/"), |q| {
        q.connection = ConnectionReuse::KeepAlive;
    });
    for _ in 0..3 {
        let result = sound(&prober, TIMEOUT).await;
        assert_eq!(result.outcome, GOOD, "{result:?}");
        assert!(!result.answer.reused);
    }
}

#[tokio::test]
async fn r11_a_kept_connection_that_went_away_is_not_the_targets_fault() {
    let server = Server::plain(|_| {
        let mut steps = Script::from(answer(200).body("ok")).steps;
        steps.push(Step::Close);
        steps
    })
    .await;
    let prober = prober(server.url("/"), |q| {
        q.connection = ConnectionReuse::KeepAlive;
    });
    for _ in 0..3 {
        let result = sound(&prober, TIMEOUT).await;
        assert_eq!(result.outcome, GOOD, "{result:?}");
        until("the server has closed", || server.open() == 0).await;
    }
}
