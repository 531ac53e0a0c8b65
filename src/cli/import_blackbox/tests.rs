//! What is imported is read back by our own reader: a module that it refuses is no import.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::settings::{
    Auth, Compression, HttpProbeConfig, HttpVersions, IpFamily, ProbeKind, RedirectScope,
    RequestBody, Secret, Settings, TcpProbeConfig, TcpStep,
};
use crate::config::{self, Sources};
use crate::core::probe_result::HttpVersion;
use crate::core::probe_result::expect::HeaderTest;

/// What the modules are appended to.
const RELEASE: &str = "\
[[release]]
name = \"app\"
namespace = \"apps\"
[[release.probe]]
name = \"web\"
url = \"http://127.0.0.1/\"

";

fn load(toml: &str) -> Result<Settings, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("probes.toml");
    fs::write(&file, format!("{RELEASE}{toml}")).unwrap();
    let sources = Sources {
        files: vec![file],
        ..Sources::default()
    };
    config::load(&sources)
        .map(|loaded| loaded.settings)
        .map_err(|diagnostics| format!("{}\n{toml}", diagnostics.render(false)))
}

/// Imports one module called `m`, with this YAML below it.
fn import(module: &str) -> (Settings, Vec<Unsupported>) {
    let indented = module.replace('\n', "\n    ");
    let imported = convert(&format!("modules:\n  m:\n    {indented}\n")).unwrap();
    (load(&imported.toml).unwrap(), imported.left_out)
}

fn http(settings: &Settings, name: &str) -> HttpProbeConfig {
    match &settings.modules.get(name).unwrap().kind {
        ProbeKind::Http(http) => (**http).clone(),
        ProbeKind::Tcp(_) => panic!("{name} is tcp"),
    }
}

fn tcp(settings: &Settings, name: &str) -> TcpProbeConfig {
    match &settings.modules.get(name).unwrap().kind {
        ProbeKind::Tcp(tcp) => (**tcp).clone(),
        ProbeKind::Http(_) => panic!("{name} is http"),
    }
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/config")
        .join(name);
    fs::read_to_string(path).unwrap_or_default()
}

/// Compares with a file, which UPDATE_SNAPSHOTS=1 writes anew.
#[track_caller]
fn snapshot(name: &str, now: &str) {
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
        fs::write(path.join(name), now).unwrap();
    }
    assert_eq!(now, fixture(name), "UPDATE_SNAPSHOTS=1 takes this over");
}

#[test]
fn the_output_is_as_it_was_agreed() {
    let imported = convert(&fixture("blackbox.yml")).unwrap();
    let lines: Vec<_> = imported
        .left_out
        .iter()
        .map(Unsupported::to_string)
        .collect();
    snapshot("blackbox.toml", &imported.toml);
    snapshot("blackbox.left_out", &(lines.join("\n") + "\n"));
}

#[test]
fn what_is_imported_asks_the_same_question() {
    let imported = convert(&fixture("blackbox.yml")).unwrap();
    assert_eq!(imported.modules, 7);
    let settings = load(&imported.toml).unwrap();

    let plain = http(&settings, "http_2xx");
    assert_eq!(
        (plain.redirects.max, plain.redirects.scope),
        (10, RedirectScope::All)
    );
    assert_eq!(plain.connect.ip, IpFamily::V6 { fallback: true });

    let all = http(&settings, "http_all");
    let module = settings.modules.get("http_all").unwrap();
    assert_eq!(module.timeout, Some(Duration::from_secs(60)));
    assert_eq!(all.method, "POST");
    assert_eq!(all.host.as_deref(), Some("vhost.example.com"));
    let headers: Vec<_> = all
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("x-count", "1"), ("x.odd", "it's \"quoted\"")]);
    assert_eq!(all.body, RequestBody::Inline("{\"ping\": true}".into()));
    assert_eq!(all.http, HttpVersions::Http1);
    assert_eq!(all.connect.ip, IpFamily::V4 { fallback: false });
    assert!(all.connect.tls.only_tls13 && !all.connect.tls.insecure_skip_verify);
    assert_eq!(
        all.connect.tls.ca_file.as_deref(),
        Some(Path::new("/etc/ca.pem"))
    );
    assert_eq!(
        all.connect.tls.client_certificate,
        Some(("/etc/client.pem".into(), "/etc/client.key".into()))
    );
    assert_eq!(
        all.connect.tls.server_name.as_deref(),
        Some("inner.example.com")
    );
    assert_eq!(
        all.auth,
        Some(Auth::Basic {
            username: "prober".into(),
            password: Secret::File("/run/secrets/password".into()),
        })
    );
    assert_eq!(
        all.proxy.map(|proxy| proxy.host()).as_deref(),
        Some("proxy.example.com")
    );
    assert!(all.proxy_resolves);
    assert_eq!(all.compression, Some(Compression::Gzip));
    assert_eq!(all.body_limit, 1536 * 1024);
    let expect = &all.expect;
    let statuses: Vec<_> = expect
        .status
        .iter()
        .map(|range| (range.low, range.high))
        .collect();
    assert_eq!(statuses, [(200, 200), (204, 204)]);
    assert_eq!(expect.http_versions, [HttpVersion::V11, HttpVersion::V20]);
    assert_eq!(expect.tls, Some(true));
    assert!(expect.body_matches[0].0.is_match("{\"status\": \"ok\"}"));
    assert_eq!(expect.body_not_matches.len(), 2);
    let rules: Vec<_> = expect
        .headers
        .iter()
        .map(|rule| {
            let test = match &rule.test {
                HeaderTest::Matches(pattern) => format!("matches {}", pattern.0),
                HeaderTest::NotMatches(pattern) => format!("does not match {}", pattern.0),
                HeaderTest::Present => "present".to_owned(),
                HeaderTest::Absent => "absent".to_owned(),
            };
            format!("{} {test}", rule.name)
        })
        .collect();
    assert_eq!(
        rules,
        [
            "content-type matches ^application/json",
            "set-cookie does not match Domain=",
            "x-debug does not match (?:on)|(?:true)",
            "x-debug present",
        ]
    );

    let secrets = http(&settings, "http_secrets");
    assert_eq!(secrets.auth, None);
    assert_eq!(secrets.redirects.max, 0);
    assert_eq!(secrets.body, RequestBody::File("/etc/body.json".into()));
    assert_eq!(secrets.body_limit, 1000);
    assert_eq!(secrets.expect.tls, Some(false));
    assert!(secrets.connect.tls.insecure_skip_verify);

    let bearer = http(&settings, "http_bearer");
    let token = Secret::File("/run/secrets/token".into());
    assert_eq!(bearer.auth, Some(Auth::Bearer(token)));
    assert_eq!(bearer.redirects.max, 0);
}

#[test]
fn a_dialogue_keeps_its_steps() {
    let imported = convert(&fixture("blackbox.yml")).unwrap();
    let settings = load(&imported.toml).unwrap();
    let steps = |name: &str| -> Vec<String> {
        tcp(&settings, name)
            .dialogue
            .iter()
            .map(|step| match step {
                TcpStep::Expect(pattern) => format!("expect {pattern}"),
                TcpStep::Send(text) => format!("send {text:?}"),
                TcpStep::StartTls => "starttls".to_owned(),
            })
            .collect()
    };
    assert_eq!(steps("tcp_connect"), [""; 0]);
    assert_eq!(
        steps("smtp_starttls"),
        [
            "expect ^220 ([^ ]+) ESMTP (.+)$",
            r#"send "EHLO prober\r\n""#,
            "expect ^250-STARTTLS",
            r#"send "STARTTLS\r\n""#,
            "expect ^220",
            "starttls",
            r#"send "QUIT\r\n""#,
        ]
    );
    assert_eq!(
        steps("irc_banner"),
        [
            r#"send "NICK prober\n""#,
            "expect PING :([^ ]+)",
            r#"send "PONG ${1} costs $5\n""#,
        ]
    );
    assert!(tcp(&settings, "irc_banner").tls);
    let name = tcp(&settings, "smtp_starttls").connect.tls.server_name;
    assert_eq!(name.as_deref(), Some("mail.example.com"));
}

#[test]
fn a_secret_is_neither_printed_nor_listed() {
    let imported = convert(&fixture("blackbox.yml")).unwrap();
    let listed = format!("{:?}", imported.left_out);
    for secret in ["hunter2", "c2VjcmV0"] {
        assert!(!imported.toml.contains(secret) && !listed.contains(secret));
    }
    for broken in [
        "modules: { m: { http: { bearer_token: !!int hunter2 } } }",
        "modules: { m: { http: { bearer_token: \"hunter2 } } }",
        "modules: { m: { http: { bearer_token: !!bool hunter2 } } }",
        "modules: { m: { http: { bearer_token: *hunter2 } } }",
        "modules: { m: { http: { bearer_token: hunter2: hunter2 } } }",
        "modules: { m: { http: { bearer_token: !!binary hunter2! } } }",
        "bearer_token: [\nhunter2",
    ] {
        let said = format!("{:?}", convert(broken));
        assert!(!said.contains("hunter2"), "{said}");
    }
    let (_, left_out) = import("prober: http\nhttp: {proxy_url: \"http://u:hunter2@p:1\"}");
    assert!(!left_out.is_empty() && !format!("{left_out:?}").contains("hunter2"));
}

#[test]
fn a_file_that_is_not_usable_says_why() {
    for (text, why) in [
        ("", "is no table"),
        ("[]", "is no table"),
        ("modules: 3", "no table of names"),
        ("modules: {}", "has no `modules`"),
        ("module: {}", "has no `modules`"),
        ("a: [", "is not YAML"),
        ("modules: {a: {}, a: {}}", "is not YAML"),
        ("a: 1\n---\nb: 2", "is not YAML"),
    ] {
        let error = convert(text).unwrap_err();
        assert!(error.contains(why), "{text:?}: {error}");
    }
}

#[test]
fn aliases_and_merges_work_and_are_bounded() {
    let (settings, left_out) =
        import("prober: http\nhttp: &h {method: HEAD, preferred_ip_protocol: ip4}\ntcp: ~");
    assert_eq!(http(&settings, "m").method, "HEAD");
    assert_eq!(left_out, []);
    let text = "a: &a\nmodules:\n  x: &x {prober: http, timeout: 2s}\n  y: {<<: *x, timeout: 3s}\n";
    let settings = load(&convert(text).unwrap().toml).unwrap();
    let timeout = settings.modules.get("y").unwrap().timeout;
    assert_eq!(timeout, Some(Duration::from_secs(3)));

    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}, ", level - 1).repeat(9);
        laughs.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    assert!(convert(&laughs).unwrap_err().contains("is not YAML"));
    let long = "x".repeat(500_000);
    let many = "*b, ".repeat(100_000);
    let text = format!("modules: {{ a: &b {long} }}\nc: [{many}]");
    assert!(convert(&text).unwrap_err().contains("is not YAML"));
    for deep in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        "- ".repeat(100_000),
    ] {
        assert!(convert(&deep).unwrap_err().contains("is not YAML"));
    }
}

#[test]
fn what_would_ask_another_question_is_left_out_as_a_whole() {
    for module in [
        "prober: http\nhttp: {method: TRACE}",
        "prober: http\nhttp: {headers: {X: 1.10}}",
        "prober: http\nhttp: {headers: {\"a b\": c}}",
        "prober: http\nhttp: {body: a, body_file: b}",
        "prober: http\nhttp: {fail_if_ssl: true, fail_if_not_ssl: true}",
        "prober: http\nhttp: {proxy_url: \"https://p:1\"}",
        "prober: http\nhttp: {compression: zstd}",
        "prober: http\nhttp: {tls_config: {cert_file: a}}",
        "prober: tcp\ntcp: {query_response: [{expect: \"(\"}]}",
        "prober: tcp\ntcp: {query_response: [{expect: a}, {send: \"${1}\"}]}",
        "prober: dns",
        "{}",
        "3",
    ] {
        let (settings, left_out) = import(module);
        assert!(!settings.modules.contains_key("m"), "{module}");
        assert!(!left_out.is_empty(), "{module}");
    }
}

#[test]
fn more_than_comes_in_does_not_go_out() {
    let long = "x".repeat(60_000);
    let mut text = format!("body: &b {long}\nmodules:\n");
    for index in 0..30 {
        text.push_str(&format!(
            "  m{index}: {{prober: http, http: {{body: *b}}}}\n"
        ));
    }
    let error = convert(&text).unwrap_err();
    assert!(error.contains("more than 1 MiB"), "{error}");
}

/// Values that are right for some key, and wrong for most.
fn value() -> impl Strategy<Value = String> {
    let scalar = prop_oneof![
        Just("true".to_owned()),
        Just("no".to_owned()),
        Just("~".to_owned()),
        Just("1.10".to_owned()),
        Just("-7".to_owned()),
        Just("5s".to_owned()),
        Just("10MB".to_owned()),
        Just("ip4".to_owned()),
        Just("TLS13".to_owned()),
        Just("gzip".to_owned()),
        Just("HTTP/2.0".to_owned()),
        Just("http://p:3128".to_owned()),
        (0..1200_u16).prop_map(|number| number.to_string()),
        // JSON's strings are YAML's.
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
        "[a-z$^{}()|.*+?\\[\\]&~\\\\-]{0,12}"
            .prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    scalar.prop_recursive(3, 12, 4, |inner| {
        let keys = prop::sample::select(KEYS.to_vec());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(", "))),
            prop::collection::btree_map(keys, inner, 0..6).prop_map(|map| {
                let entries: Vec<_> = map.iter().map(|(k, v)| format!("{k}: {v}")).collect();
                format!("{{{}}}", entries.join(", "))
            }),
        ]
    })
}

/// Tables whose keys are known, with values that may be anything: what a random tree would seldom build.
fn nested() -> impl Strategy<Value = String> {
    let shapes = prop::sample::select(vec![
        "tls_config: {ca_file: V, server_name: V}",
        "tls_config: {cert_file: V, key_file: V, min_version: V, max_version: V}",
        "basic_auth: {username: V, password_file: V}",
        "authorization: {type: V, credentials_file: V}",
        "headers: {Host: V, Accept-Encoding: V, X: V}, compression: gzip",
        "fail_if_header_matches: [{header: a, regexp: V}, {header: V, regexp: V}]",
        "fail_if_header_not_matches: [{header: a, regexp: V, allow_missing: V}]",
        "fail_if_body_matches_regexp: [V, V]",
        "query_response: [{expect: V, send: V, starttls: V}, {send: V}]",
        "body_file: V, body_size_limit: V, proxy_url: V",
        "valid_status_codes: [V, V], valid_http_versions: [V, V]",
    ]);
    (shapes, prop::collection::vec(value(), 4)).prop_map(|(shape, values)| {
        values
            .iter()
            .fold(shape.to_owned(), |text, value| {
                text.replacen(": V", &format!(": {value}"), 1)
            })
            .replace(": V", ": x")
            .replace("[V", "[x")
            .replace("V]", "x]")
    })
}

const KEYS: [&str; 42] = [
    "valid_status_codes",
    "valid_http_versions",
    "method",
    "headers",
    "fail_if_ssl",
    "fail_if_not_ssl",
    "fail_if_body_matches_regexp",
    "fail_if_body_not_matches_regexp",
    "fail_if_header_matches",
    "fail_if_header_not_matches",
    "header",
    "regexp",
    "allow_missing",
    "tls_config",
    "ca_file",
    "cert_file",
    "key_file",
    "server_name",
    "min_version",
    "insecure_skip_verify",
    "basic_auth",
    "username",
    "password",
    "password_file",
    "bearer_token_file",
    "authorization",
    "credentials_file",
    "proxy_url",
    "skip_resolve_phase_with_proxy",
    "preferred_ip_protocol",
    "ip_protocol_fallback",
    "follow_redirects",
    "enable_http2",
    "body",
    "body_file",
    "compression",
    "body_size_limit",
    "query_response",
    "expect",
    "send",
    "starttls",
    "tls",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn whatever_is_imported_is_read_back(
        name in any::<String>(),
        prober in prop::sample::select(vec!["http", "tcp"]),
        timeout in value(),
        own in prop::collection::btree_map(prop::sample::select(KEYS.to_vec()), value(), 0..6),
        nested in nested(),
    ) {
        let name = serde_json::to_string(&name).unwrap();
        let mut entries = vec![nested.clone()];
        entries.extend(
            own.iter()
                .filter(|(key, _)| !nested.contains(*key))
                .map(|(key, value)| format!("{key}: {value}")),
        );
        let own = entries.join(", ");
        let text = format!(
            "modules: {{ {name}: {{ prober: {prober}, timeout: {timeout}, {prober}: {{ {own} }} }} }}"
        );
        if let Ok(imported) = convert(&text)
            && let Err(diagnostics) = load(&imported.toml)
        {
            prop_assert!(false, "{text}\n{diagnostics}");
        }
    }

    #[test]
    fn garbage_is_refused_or_imported_without_a_panic(text in any::<String>()) {
        let _ = convert(&text);
        let _ = convert(&format!("modules:\n  m:\n    prober: http\n    http: {text}"));
    }
}
