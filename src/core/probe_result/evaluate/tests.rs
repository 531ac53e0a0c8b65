//! What is asked of an answer, by the ids of the scenarios that every good prober is held to.
//!
//! Refused on purpose, so without a test here:
//! - A08, A09, A11 (expressions in CEL) and A33 (jq): a second language to learn and to bound. JSON pointers and
//!   JSONPath with tests beside them say the same; what they find is compared exactly.
//! - A26, A31, G06, G16, G17: mistakes in the configuration, refused when it is read.
//! - G02 (`[STATUS] < 300`, `!=`): ranges of statuses say it, and cannot be true of an answer that never came.
//! - G09 (two places compared with each other): a filter says it, as in `$[?@.a == @.b]`.
//! - G10 (hexadecimal, octal and binary integers in strings): not numbers in JSON, so never equal to one.
//! - G11 (`len()`): `length()` in a filter says it, for strings, arrays and objects; a number has no length.
//! - G13 (globs): regular expressions say it.

use http::HeaderName;
use proptest::prelude::*;
use regex::Regex;

use super::*;
use crate::core::probe_result::expect::{JsonPlace, JsonRule, JsonTest, Pattern};

const NOW: f64 = 1_800_000_000.0;

#[test]
fn s_statuses() {
    let any = Expect::default();
    let of = |list: &[(u16, u16)]| Expect {
        status: list
            .iter()
            .map(|&(low, high)| StatusRange { low, high })
            .collect(),
        ..Expect::default()
    };
    let with = |status| answer().status(status);
    check("S01", &any, &with(200), None);
    check("S02", &any, &with(201), None);
    check("S02", &any, &with(299), None);
    check(
        "S03",
        &any,
        &with(300),
        Some("status 300, expected 200-299"),
    );
    check(
        "S04",
        &any,
        &with(404),
        Some("status 404, expected 200-299"),
    );
    let list = of(&[(200, 200), (404, 404)]);
    check("S05", &list, &with(404), None);
    check(
        "S06",
        &list,
        &with(201),
        Some("status 201, expected 200, 404"),
    );
    let only = of(&[(404, 404)]);
    check("S07", &only, &with(200), Some("status 200, expected 404"));
    let codes = of(&[(302, 302), (200, 299), (403, 403)]);
    for status in [200, 204, 302, 403] {
        check("A25", &codes, &with(status), None);
    }
    for status in [301, 404, 500, 502] {
        let why = format!("status {status}, expected 302, 200-299, 403");
        check("A25", &codes, &with(status), Some(&why));
    }
    check(
        "G01",
        &any,
        &with(500),
        Some("status 500, expected 200-299"),
    );
    let long: Vec<_> = (400..500).map(|code| (code, code)).collect();
    check("a long list is cut", &of(&long), &with(200), Some("… …"));
}

#[test]
fn s_versions_and_tls() {
    use HttpVersion::{V10, V11, V20};
    let of = |list: &[HttpVersion]| Expect {
        http_versions: list.to_vec(),
        ..Expect::default()
    };
    check("S08", &of(&[]), &answer(), None);
    check("S09", &of(&[V11]), &answer(), None);
    check("S09", &of(&[V11, V20]), &answer(), None);
    let why = "HTTP version 1.1, expected 2.0";
    check("S10", &of(&[V20]), &answer(), Some(why));
    let why = "HTTP version 1.1, expected 1.0 or 2.0";
    check("S10", &of(&[V10, V20]), &answer(), Some(why));

    let tls = |wanted| Expect {
        tls: Some(wanted),
        ..Expect::default()
    };
    let why = "the answer did not come over TLS";
    check("X05", &tls(true), &answer(), Some(why));
    check("X05", &tls(true), &answer().valid_for(3600), None);
    check("X05", &tls(false), &answer(), None);
    let why = "the answer came over TLS, expected none";
    check("X05", &tls(false), &answer().valid_for(3600), Some(why));
}

#[test]
fn g15_certificates_that_end_soon() {
    let hours = |hours: u64| Expect {
        certificate_valid_for: Some(Duration::from_secs(hours * 3600)),
        ..Expect::default()
    };
    let day = answer().valid_for(24 * 3600);
    check("G15", &hours(12), &day, None);
    check("G15: exactly as long", &hours(24), &day, None);
    let why = "a certificate is valid for 1day more, expected at least 2days";
    check("G15", &hours(48), &day, Some(why));
    let finished = answer().valid_for(-3600);
    check(
        "G15",
        &hours(0),
        &finished,
        Some("a certificate expired 1h ago"),
    );
    let why = "there is no certificate: the answer did not come over TLS";
    check("G15: plain", &hours(12), &answer(), Some(why));
}

#[test]
fn a_headers() {
    let rule = |name: &'static str, test| Expect {
        headers: vec![HeaderRule {
            name: HeaderName::from_static(name),
            test,
        }],
        ..Expect::default()
    };
    let matches = |name, pattern| rule(name, HeaderTest::Matches(regex(pattern)));
    let not = |name, pattern| rule(name, HeaderTest::NotMatches(regex(pattern)));
    let html = answer().header("Content-Type", "text/html");

    let why = "header content-type is text/html, which matches text/html";
    check("A18", &not("content-type", "text/html"), &html, Some(why));
    check("A19", &not("content-type", "text/javascript"), &html, None);
    check("A19", &not("x-none", ".*"), &html, None);
    let empty = answer().header("X-Empty", "");
    let why = "header x-empty is , which matches .*";
    check("A20", &not("x-empty", ".*"), &empty, Some(why));
    check("A20", &matches("x-empty", ".*"), &empty, None);
    let twice = answer().header("X-A", "one").header("X-A", "two");
    check("A24: any of them", &matches("x-a", "^two$"), &twice, None);
    let why = "header x-a is one, expected a match of three";
    check("A24", &matches("x-a", "three"), &twice, Some(why));
    let why = "header x-a is two, which matches two";
    check("A24", &not("x-a", "two"), &twice, Some(why));

    let some = answer().header("X-Some", "some");
    check("A28", &rule("x-some", HeaderTest::Present), &some, None);
    check("A28", &matches("x-some", "s[om]me"), &some, None);
    let why = "header x-some is some, expected a match of ^none";
    check("A28", &matches("x-some", "^none"), &some, Some(why));
    let why = "header x-other is missing, expected a match of .";
    check("A28", &matches("x-other", "."), &some, Some(why));
    let why = "header x-other is missing";
    check(
        "A28",
        &rule("x-other", HeaderTest::Present),
        &some,
        Some(why),
    );
    check("A28", &rule("x-other", HeaderTest::Absent), &some, None);
    let why = "header x-some is some, expected none";
    check("A28", &rule("x-some", HeaderTest::Absent), &some, Some(why));

    let both = |failing| Expect {
        headers: vec![
            HeaderRule {
                name: HeaderName::from_static("x-good"),
                test: HeaderTest::Present,
            },
            HeaderRule {
                name: HeaderName::from_static("x-bad"),
                test: HeaderTest::NotMatches(regex(failing)),
            },
        ],
        ..Expect::default()
    };
    let seen = answer().header("X-Good", "").header("X-Bad", "broken");
    let why = "header x-bad is broken, which matches broken";
    check("A29", &both("broken"), &seen, Some(why));
    check("A29", &both("on fire"), &seen, None);
    let why = "status 500, expected 200-299";
    let seen = answer().header("X-Good", "").status(500);
    check("A30", &both("broken"), &seen, Some(why));

    let session = answer().header("Set-Cookie", "session=s3cret");
    let why = "header set-cookie is <hidden>, expected none";
    check(
        "a cookie stays hidden",
        &rule("set-cookie", HeaderTest::Absent),
        &session,
        Some(why),
    );
}

#[test]
fn a32_last_modified() {
    let expect = |seconds| Expect {
        max_age: Some(Duration::from_secs(seconds)),
        ..Expect::default()
    };
    let aged = |seconds: u64| {
        let then = UNIX_EPOCH + Duration::from_secs(1_800_000_000 - seconds);
        answer().header("Last-Modified", &httpdate::fmt_http_date(then))
    };
    let with = |text| answer().header("Last-Modified", text);
    check("A32", &expect(1), &aged(0), None);
    check("A32", &expect(3601), &aged(3600), None);
    let why = "last modified 1h ago, expected less than 1h";
    check("A32", &expect(3600), &aged(3600), Some(why));
    let why = "header last-modified is yesterday, no date";
    check("A32", &expect(3600), &with("yesterday"), Some(why));
    let why = "header last-modified is , no date";
    check("A32", &expect(3600), &with(""), Some(why));
    let why = "header last-modified is missing, expected a recent one";
    check("A32", &expect(3600), &answer(), Some(why));
}

#[test]
fn a_bodies() {
    let must = |list: &[&str]| Expect {
        body_matches: list.iter().copied().map(regex).collect(),
        ..Expect::default()
    };
    let must_not = |list: &[&str]| Expect {
        body_not_matches: list.iter().copied().map(regex).collect(),
        ..Expect::default()
    };
    let down = answer().body("could not connect to database");
    let up = answer().body("all is well: OK");
    let why = "the body matches could not connect at byte 0: could not connect";
    check("A01", &must_not(&["could not connect"]), &down, Some(why));
    check("A02", &must_not(&["could not connect"]), &up, None);
    let why = "the body matches to data at byte 18: to data";
    check("A03", &must_not(&["all is", "to data"]), &down, Some(why));
    check("A04", &must_not(&["panic", "fatal"]), &up, None);
    let why = "the body does not match OK$: could not connect to database";
    check("A05", &must(&["OK$"]), &down, Some(why));
    check("A05", &must(&["OK$"]), &up, None);
    let why = "the body does not match bad: all is well: OK";
    check("A06", &must(&["well", "bad"]), &up, Some(why));
    check("A06", &must(&["well", "OK"]), &up, None);
    let why = "the body does not match .: it is empty";
    check(
        "an empty body",
        &must(&["."]),
        &answer().body(""),
        Some(why),
    );
    check("an empty body", &must(&["^$"]), &answer().body(""), None);
    check(
        "A16",
        &must(&["^Grüße, 世界$"]),
        &answer().body("Grüße, 世界"),
        None,
    );
    let binary = answer().bytes(b"\xff\xfe OK");
    check("not UTF-8", &must(&["OK"]), &binary, None);
    check(
        "not UTF-8",
        &must(&["^\u{fffd}\u{fffd} OK$"]),
        &binary,
        None,
    );
}

#[test]
fn a17_json_and_body_are_asked_of_the_same_body() {
    let expect = Expect {
        json: vec![JsonRule {
            place: JsonPlace::Pointer {
                parts: vec!["status".into()],
                text: "/status".into(),
            },
            test: JsonTest::Equals("ok".into()),
        }],
        body_matches: vec![regex("\"v\": *[0-9]+")],
        ..Expect::default()
    };
    let seen = |body| answer().body(body);
    check("both", &expect, &seen(r#"{"status":"ok","v":7}"#), None);
    let why = r#"JSON at /status is "down", expected "ok""#;
    check(
        "JSON",
        &expect,
        &seen(r#"{"status":"down","v":7}"#),
        Some(why),
    );
    let why = r#"the body does not match "v": *[0-9]+: {"status":"ok"}"#;
    check("body", &expect, &seen(r#"{"status":"ok"}"#), Some(why));
}

#[test]
fn g_latency_is_inclusive() {
    let expect = |millis| Expect {
        max_latency: Some(Duration::from_millis(millis)),
        ..Expect::default()
    };
    check("G03", &expect(500), &answer().took(50_000), None);
    check("G04", &expect(500), &answer().took(500_000), None);
    let why = "took 750.123ms, at most 500ms is good";
    check("G05", &expect(500), &answer().took(750_123), Some(why));
}

#[test]
fn the_first_reason_in_the_fixed_order_counts() {
    let mut expect = Expect {
        http_versions: vec![HttpVersion::V20],
        certificate_valid_for: Some(Duration::from_secs(1)),
        headers: vec![HeaderRule {
            name: HeaderName::from_static("x-a"),
            test: HeaderTest::Present,
        }],
        max_age: Some(Duration::from_secs(1)),
        json: vec![JsonRule {
            place: JsonPlace::Pointer {
                parts: Vec::new(),
                text: String::new(),
            },
            test: JsonTest::Exists(true),
        }],
        body_matches: vec![regex("x")],
        max_latency: Some(Duration::ZERO),
        ..Expect::default()
    };
    let seen = answer().status(500).body("").took(1);
    let broken = vec![StatusRange {
        low: 500,
        high: 500,
    }];
    let mut reasons = Vec::new();
    while let Err(failure) = judge(&expect, &seen.seen()) {
        reasons.push(failure.reason);
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "all that are not judged here"
        )]
        match failure.reason {
            Reason::Version => expect.http_versions.clear(),
            Reason::Certificate => expect.certificate_valid_for = None,
            Reason::Status => expect.status.clone_from(&broken),
            Reason::Header if expect.headers.is_empty() => expect.max_age = None,
            Reason::Header => expect.headers.clear(),
            Reason::Json => expect.json.clear(),
            Reason::Body => expect.body_matches.clear(),
            Reason::TooSlow => expect.max_latency = None,
            other => panic!("{other:?} is not judged here"),
        }
    }
    assert_eq!(
        reasons,
        [
            Reason::Version,
            Reason::Certificate,
            Reason::Status,
            Reason::Header,
            Reason::Header,
            Reason::Json,
            Reason::Body,
            Reason::TooSlow
        ]
    );
}

#[test]
fn explanations_are_one_bounded_line() {
    let hostile = "\u{1b}[31m\r\n\0\u{202e}evil".repeat(100);
    let expect = Expect {
        body_matches: vec![regex("^ok$")],
        ..Expect::default()
    };
    let failure = judge(&expect, &answer().body(&hostile).seen()).unwrap_err();
    assert!(failure.explanation.len() <= ProbeResult::MAX_EXPLANATION);
    let control = |c: char| c.is_control() || c == '\u{202e}';
    assert!(!failure.explanation.contains(control), "{failure:?}");
    assert!(
        failure.explanation.contains("\\u{1b}[31m\\r\\n\\0"),
        "{failure:?}"
    );
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic_or_run_on(
        status in 100_u16..=999,
        body in prop::collection::vec(any::<u8>(), 0..2000),
        value in prop::collection::vec(any::<u8>().prop_filter("a header", |b| *b >= 32 && *b != 127), 0..400),
        micros in any::<u64>(),
        expiry in any::<i64>(),
        now in any::<f64>(),
    ) {
        let mut given = answer().status(status).bytes(&body).took(micros).valid_for(0);
        if let Some(tls) = &mut given.tls {
            tls.earliest_expiry = expiry;
        }
        let value = HeaderValue::from_bytes(&value).unwrap();
        given.headers.insert("x-a", value.clone());
        given.headers.insert("last-modified", value);
        let base = Expect {
            status: vec![StatusRange { low: 100, high: 999 }],
            ..Expect::default()
        };
        let hour = Some(Duration::from_secs(3600));
        let place = JsonPlace::Pointer { parts: vec!["a".into()], text: "/a".into() };
        let asked = [
            Expect { certificate_valid_for: hour, ..base.clone() },
            Expect { max_age: hour, ..base.clone() },
            Expect { max_latency: hour, ..base.clone() },
            Expect { body_matches: vec![regex("never there")], ..base.clone() },
            Expect { body_not_matches: vec![regex("(?s).*")], ..base.clone() },
            Expect { json: vec![JsonRule { place, test: JsonTest::Exists(true) }], ..base.clone() },
            Expect {
                headers: vec![HeaderRule {
                    name: HeaderName::from_static("x-a"),
                    test: HeaderTest::Absent,
                }],
                ..base
            },
        ];
        for expect in asked {
            let seen = ResponseView { unix_now: now, ..given.seen() };
            if let Err(failure) = judge(&expect, &seen) {
                prop_assert!(failure.explanation.len() <= ProbeResult::MAX_EXPLANATION);
                prop_assert!(!failure.explanation.contains(char::is_control));
            }
        }
    }
}

/// `expected` is the explanation, or `None` for a good answer; `…` at its end stands for anything.
#[track_caller]
fn check(rule: &str, expect: &Expect, given: &Given, expected: Option<&str>) {
    let got = judge(expect, &given.seen()).err().map(|f| f.explanation);
    match (expected.and_then(|text| text.strip_prefix("… ")), &got) {
        (Some(end), Some(got)) => assert!(got.ends_with(end), "{rule}: {got}"),
        _ => assert_eq!(got.as_deref(), expected, "{rule}"),
    }
}

fn regex(pattern: &str) -> Pattern {
    Pattern(Regex::new(pattern).unwrap())
}

/// 200 without headers or body, over plain HTTP/1.1, in no time.
fn answer() -> Given {
    Given {
        status: 200,
        headers: HeaderMap::new(),
        body: Vec::new(),
        micros: 0,
        tls: None,
    }
}

struct Given {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    micros: u64,
    tls: Option<TlsInfo>,
}

impl Given {
    fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers.append(name, value.parse().unwrap());
        self
    }

    fn body(self, body: &str) -> Self {
        self.bytes(body.as_bytes())
    }

    fn bytes(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn took(mut self, micros: u64) -> Self {
        self.micros = micros;
        self
    }

    fn valid_for(mut self, seconds: i64) -> Self {
        self.tls = Some(TlsInfo {
            version: "TLS 1.3",
            cipher: "TLS13_AES_128_GCM_SHA256",
            earliest_expiry: 1_800_000_000 + seconds,
            leaf_expiry: 1_900_000_000,
            fingerprint_sha256: String::new(),
            subject: String::new(),
            issuer: String::new(),
            subject_alternative: String::new(),
            serial: String::new(),
        });
        self
    }

    fn seen(&self) -> ResponseView<'_> {
        ResponseView {
            status: self.status,
            version: HttpVersion::V11,
            headers: &self.headers,
            body: &self.body,
            over_tls: self.tls.is_some(),
            duration: Duration::from_micros(self.micros),
            tls: self.tls.as_ref(),
            unix_now: NOW,
        }
    }
}
