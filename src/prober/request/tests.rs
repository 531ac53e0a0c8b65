use super::*;
use crate::config::settings::{ConnectConfig, HttpVersions, RequestBody};
use crate::core::probe_result::Outcome;
use crate::core::probe_result::expect::Expect;

fn target(url: &str) -> Target {
    Target::parse(url, "http").unwrap()
}

fn config() -> HttpProbeConfig {
    HttpProbeConfig {
        method: Method::GET,
        headers: Vec::new(),
        host: None,
        body: RequestBody::None,
        auth: None,
        redirects: RedirectConfig::default(),
        http: HttpVersions::Auto,
        connect: ConnectConfig::default(),
        connection: Reuse::New,
        proxy: None,
        proxy_resolves: true,
        body_limit: 1 << 20,
        compression: None,
        expect: Expect::default(),
    }
}

/// A redirect from one URL by a `Location`, with everything allowed.
#[track_caller]
fn follow(
    from: &str,
    status: u16,
    location: &[u8],
    redirect: &RedirectHop,
) -> Result<Option<RedirectHop>, ProbeError> {
    let redirects = RedirectConfig {
        max: 3,
        scope: RedirectScope::All,
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::LOCATION, HeaderValue::from_bytes(location).unwrap());
    let status = StatusCode::from_u16(status).unwrap();
    redirect.redirected(&target(from), redirects, 0, status, &headers)
}

fn get(url: &str) -> RedirectHop {
    RedirectHop::first(target(url), Method::GET, Bytes::new())
}

#[test]
fn where_a_redirect_leads() {
    let from = "http://a.test:81/x/y?q=1";
    for (location, expected) in [
        ("/z", Ok("http://a.test:81/z")),
        ("z?p#part", Ok("http://a.test:81/x/z?p")),
        ("?p", Ok("http://a.test:81/x/y?p")),
        ("//b.test/z", Ok("http://b.test/z")),
        ("HTTPS://B.test", Ok("https://b.test/")),
        ("http://[::1]:8/", Ok("http://[::1]:8/")),
        ("/ä", Ok("http://a.test:81/%C3%A4")),
        ("", Ok("http://a.test:81/x/y?q=1")),
        ("http://", Err("no URL")),
        ("http://a:b@c.test/", Err("credentials")),
        ("ftp://b.test/", Err("scheme ftp")),
        ("tcp://b.test:1", Err("scheme tcp")),
        ("javascript:alert(1)", Err("scheme javascript")),
    ] {
        let got = follow(from, 302, location.as_bytes(), &get(from));
        match (got, expected) {
            (Ok(Some(redirect)), Ok(url)) => {
                assert_eq!(redirect.target.to_string(), url, "{location}");
            }
            (Err(probe_error), Err(text)) => {
                assert_eq!(probe_error.outcome, Outcome::Failure(Reason::Redirect));
                assert!(
                    probe_error.explanation.contains(text),
                    "{location}: {}",
                    probe_error.explanation
                );
                assert!(
                    !probe_error.explanation.contains("q=1"),
                    "{}",
                    probe_error.explanation
                );
            }
            (got, expected) => panic!("{location}: {got:?} in place of {expected:?}"),
        }
    }
    assert!(follow(from, 302, b"/\xff", &get(from)).is_err());
}

#[test]
fn which_answers_are_redirects() {
    let from = "http://a.test/";
    for status in [300, 304, 305, 306, 200, 201, 404] {
        let next = follow(from, status, b"/", &get(from)).unwrap();
        assert!(next.is_none(), "{status}");
    }
    for status in [301, 302, 303, 307, 308] {
        let next = follow(from, status, b"/", &get(from)).unwrap();
        assert!(next.is_some(), "{status}");
    }
}

#[test]
fn what_becomes_of_the_request() {
    let from = "http://a.test/";
    for (status, method, expected) in [
        (301, Method::POST, (Method::GET, false)),
        (302, Method::POST, (Method::GET, false)),
        (303, Method::POST, (Method::GET, false)),
        (307, Method::POST, (Method::POST, true)),
        (308, Method::POST, (Method::POST, true)),
        (302, Method::PUT, (Method::PUT, true)),
        (303, Method::PUT, (Method::GET, false)),
        (303, Method::HEAD, (Method::HEAD, true)),
        (303, Method::GET, (Method::GET, true)),
    ] {
        let first = RedirectHop::first(target(from), method.clone(), Bytes::from_static(b"body"));
        let next = follow(from, status, b"/", &first).unwrap().unwrap();
        assert_eq!(
            (next.method, next.body.is_some()),
            expected,
            "{status} {method}"
        );
    }
}

#[test]
fn credentials_stay_where_they_belong() {
    for (from, path, sent) in [
        ("http://a.test/", &["/x"][..], true),
        ("http://a.test/", &["http://A.test:81/"], true),
        ("http://a.test/", &["https://a.test/"], true),
        ("http://a.test/", &["http://b.test/"], false),
        ("http://a.test/", &["http://sub.a.test/"], false),
        // Once they were given up, coming back does not bring them back: the way is no longer the target's choice.
        (
            "http://a.test/",
            &["http://b.test/", "http://a.test/"],
            false,
        ),
        ("https://a.test/", &["https://a.test:444/"], true),
        ("https://a.test/", &["http://a.test/"], false),
        (
            "https://a.test/",
            &["http://a.test/", "https://a.test/"],
            false,
        ),
    ] {
        let mut config = config();
        config.auth = Some(Auth::Bearer(Secret::Value("secret".into())));
        config.headers = vec![
            (header::COOKIE, HeaderValue::from_static("secret")),
            (header::ACCEPT_LANGUAGE, HeaderValue::from_static("en")),
        ];
        let requests = RequestBuilder::new(&config);
        let mut redirect = get(from);
        for location in path {
            redirect = follow(from, 302, location.as_bytes(), &redirect)
                .unwrap()
                .unwrap();
        }
        let request = requests.request(&redirect, false).unwrap();
        let headers = request.headers();
        assert_eq!(
            headers.contains_key(header::AUTHORIZATION),
            sent,
            "{from} {path:?}"
        );
        assert_eq!(
            headers.contains_key(header::COOKIE),
            sent,
            "{from} {path:?}"
        );
        assert!(headers.contains_key(header::ACCEPT_LANGUAGE));
        assert!(!format!("{request:?}").contains("Bearer"), "{request:?}");
    }
}

#[test]
fn what_describes_a_body_goes_with_it() {
    let from = "http://a.test/";
    let mut config = config();
    config.headers = vec![(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    )];
    let requests = RequestBuilder::new(&config);
    let first = RedirectHop::first(target(from), Method::POST, Bytes::from_static(b"{}"));
    let with = |redirect: &RedirectHop| {
        let request = requests.request(redirect, false).unwrap();
        request.headers().contains_key(header::CONTENT_TYPE)
    };
    assert!(with(&first));
    assert!(with(&follow(from, 307, b"/", &first).unwrap().unwrap()));
    assert!(!with(&follow(from, 303, b"/", &first).unwrap().unwrap()));
}

#[test]
fn a_post_without_a_body_says_so() {
    let requests = RequestBuilder::new(&config());
    for (method, length) in [
        (Method::POST, Some("0")),
        (Method::PUT, Some("0")),
        (Method::PATCH, Some("0")),
        (Method::GET, None),
        (Method::DELETE, None),
    ] {
        let redirect = RedirectHop::first(target("http://a.test/"), method.clone(), Bytes::new());
        let request = requests.request(&redirect, false).unwrap();
        let sent = request.headers().get(header::CONTENT_LENGTH);
        assert_eq!(sent.map(|v| v.to_str().unwrap()), length, "{method}");
    }
}

#[test]
fn the_forms_of_a_request() {
    for (url, proxied, http2, uri, host) in [
        ("http://a.test:80/x?y", false, false, "/x?y", Some("a.test")),
        ("http://[::1]:8/", false, false, "/", Some("[::1]:8")),
        (
            "http://a.test:8/x",
            true,
            false,
            "http://a.test:8/x",
            Some("a.test:8"),
        ),
        ("https://a.test/x", true, false, "/x", Some("a.test")),
        (
            "https://a.test:8/x",
            false,
            true,
            "https://a.test:8/x",
            None,
        ),
    ] {
        let mut config = config();
        config.proxy = proxied.then(|| target("http://proxy.test:3128"));
        let request = RequestBuilder::new(&config)
            .request(&get(url), http2)
            .unwrap();
        assert_eq!(request.uri().to_string(), uri, "{url}");
        let sent = request.headers().get(header::HOST);
        assert_eq!(sent.map(|v| v.to_str().unwrap()), host, "{url}");
        assert_eq!(request.headers().contains_key(header::CONNECTION), !http2);
    }
}

#[test]
fn credentials_that_cannot_be_sent_are_our_own_trouble() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        Secret::File(path)
    };
    for secret in [
        Secret::Value("top\nsecret".into()),
        file("lines", b"top\nsecret"),
        file("empty", b" \n"),
        Secret::File(folder.path().join("gone")),
    ] {
        let credential = Credential::new(Some(&Auth::Bearer(secret)));
        let probe_error = credential.value().unwrap_err();
        assert_eq!(probe_error.outcome, Outcome::Unknown(UnknownReason::File));
        assert!(
            !probe_error.explanation.contains("secret"),
            "{probe_error:?}"
        );
    }
    // A password is any bytes: what is not UTF-8 is sent as it is.
    let basic = Auth::Basic {
        username: "u".into(),
        password: file("latin1", b"\xe9\n"),
    };
    let value = Credential::new(Some(&basic)).value().unwrap().unwrap();
    assert_eq!(value, "Basic dTrp");
}

#[test]
fn a_query_is_not_shown() {
    for (url, shown) in [
        ("http://a.test/x?token=secret", "http://a.test/x?…"),
        ("http://a.test:81/x?", "http://a.test:81/x?…"),
        ("http://a.test/x#part", "http://a.test/x"),
        ("tcp://db.test:5432", "tcp://db.test:5432"),
    ] {
        assert_eq!(target(url).shown(), shown);
    }
}
