//! The keys of a probe's transport, shared by probes and modules.

use super::expect::{LATENCY, SECOND_TO_TEN_YEARS, expect};
use super::probe_http::{auth, body, headers, method};
use super::settings::{
    Compression, ConnectionReuse, HttpProbeConfig, HttpVersions, TcpProbeConfig, TcpStep,
};
use super::transport::{connect, proxy, redirects};
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use super::values::{self, bytes_pattern};
use crate::core::probe_result::expect::Expect;

/// The largest limit for a body that is read, and the limit when none is given.
const MAX_BODY_LIMIT: usize = 64 * 1024 * 1024;
const BODY_LIMIT: usize = 1024 * 1024;

/// Steps of a TCP dialogue.
const MAX_STEPS: usize = 64;

/// Keys that only one kind of question has; for a complaint that says so instead of "unknown key".
const HTTP_ONLY: [&str; 18] = [
    "method",
    "headers",
    "host",
    "body",
    "body_file",
    "username",
    "password",
    "password_file",
    "bearer_token",
    "bearer_token_file",
    "expect",
    "redirects",
    "http",
    "connection",
    "proxy",
    "proxy_resolves",
    "body_limit",
    "compression",
];

const TCP_ONLY: [&str; 4] = ["send", "expect_line", "dialogue", "start_with_tls"];

/// Notes the defaults of a probe as effective settings.
pub(super) fn defaults(path: &str, is_tcp: bool, notes: &mut ReaderNotes) {
    notes.defaults(
        path,
        &[
            ("ip", &"\"any\""),
            ("tls.insecure_skip_verify", &false),
            ("tls.resume", &false),
        ],
    );
    if is_tcp {
        notes.defaults(path, &[("start_with_tls", &false)]);
    } else {
        notes.defaults(
            path,
            &[
                ("method", &"\"GET\""),
                ("http", &"\"auto\""),
                ("connection", &"\"new\""),
                ("redirects", &0),
                ("body_limit", &BODY_LIMIT),
                ("expect.status", &"\"200-299\""),
            ],
        );
    }
}

/// Reads an HTTP question.
pub(super) fn http(table: &mut ConfigTable, notes: &mut ReaderNotes) -> HttpProbeConfig {
    refuse_foreign(table, &TCP_ONLY, "tcp", notes);
    let compression = table.word(
        "compression",
        &[
            ("gzip", Compression::Gzip),
            ("deflate", Compression::Deflate),
            ("br", Compression::Brotli),
        ],
        notes,
    );
    let (method, body) = (method(table, notes), body(table, notes));
    let (headers, host) = headers(table, compression, notes);
    let body_limit = table
        .take("body_limit")
        .and_then(|item| values::size(&item, MAX_BODY_LIMIT, notes));
    let offers = [
        ("auto", HttpVersions::Auto),
        ("1.1", HttpVersions::Http1),
        ("2", HttpVersions::Http2),
    ];
    let connections = [
        ("new", ConnectionReuse::New),
        ("keep-alive", ConnectionReuse::KeepAlive),
    ];
    HttpProbeConfig {
        method,
        headers,
        host,
        body,
        auth: auth(table, notes),
        redirects: redirects(table, notes),
        http: table.word("http", &offers, notes).unwrap_or_default(),
        connect: connect(table, notes),
        connection: table
            .word("connection", &connections, notes)
            .unwrap_or_default(),
        proxy: proxy(table, notes),
        proxy_resolves: table.switch("proxy_resolves", notes).unwrap_or(false),
        body_limit: body_limit.unwrap_or(BODY_LIMIT),
        compression,
        expect: table
            .take("expect")
            .map_or_else(Expect::default, |item| expect(item, notes)),
    }
}

/// Reads a TCP question.
pub(super) fn tcp(table: &mut ConfigTable, notes: &mut ReaderNotes) -> TcpProbeConfig {
    refuse_foreign(table, &HTTP_ONLY, "http", notes);
    let short = table.has("send") || table.has("expect_line");
    if short && let Some(location) = table.location_of("dialogue") {
        let path = table.path_of("dialogue");
        notes.complain(
            &path,
            &location.of_key(),
            "stands beside send or expect_line",
            Some("put all steps into dialogue".into()),
        );
    }
    let mut dialogue = Vec::new();
    if let Some((text, _)) = table.text("send", notes) {
        dialogue.push(TcpStep::Send(text));
    }
    if let Some(item) = table.take("expect_line") {
        dialogue.extend(bytes_pattern(&item, notes).map(TcpStep::Expect));
    }
    for item in table.list("dialogue", notes).unwrap_or_default() {
        if dialogue.len() >= MAX_STEPS {
            notes.diagnostic(
                &item,
                format!("is longer than {MAX_STEPS} steps"),
                "shorten the dialogue",
            );
            break;
        }
        dialogue.extend(step(item, notes));
    }
    TcpProbeConfig {
        dialogue,
        tls: table.switch("start_with_tls", notes).unwrap_or(false),
        connect: connect(table, notes),
        max_latency: table.duration("max_latency", LATENCY, notes),
        certificate_valid_for: table.duration("certificate_valid_for", SECOND_TO_TEN_YEARS, notes),
    }
}

fn step(item: ConfigValue, notes: &mut ReaderNotes) -> Option<TcpStep> {
    let mut table = ConfigTable::of(item, notes);
    let mut steps = Vec::new();
    if let Some(item) = table.take("expect_line") {
        steps.extend(bytes_pattern(&item, notes).map(TcpStep::Expect));
    }
    steps.extend(
        table
            .text("send", notes)
            .map(|(text, _)| TcpStep::Send(text)),
    );
    if table.switch("start_tls", notes) == Some(true) {
        steps.push(TcpStep::StartTls);
    }
    if steps.len() != 1 && notes.diagnostics.is_empty() {
        let help =
            "a step is one of { expect_line = \"…\" }, { send = \"…\" }, { start_tls = true }";
        notes.complain(
            &table.path,
            &table.location,
            "is not one step",
            Some(help.into()),
        );
    }
    table.end(notes);
    steps.pop()
}

/// A key of the other kind of question is no unknown key; the complaint says what it belongs to.
fn refuse_foreign(
    table: &mut ConfigTable,
    keys: &[&'static str],
    kind: &str,
    notes: &mut ReaderNotes,
) {
    for key in keys {
        if table.has(key)
            && let Some(item) = table.take(key)
        {
            let location = item.node.location.of_key();
            let help = format!("take it out, or ask a {kind} target");
            notes.complain(
                &item.path,
                &location,
                format!("is for {kind} targets"),
                Some(help),
            );
        }
    }
}
