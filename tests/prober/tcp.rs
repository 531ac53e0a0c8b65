//! TCP dialogues.

use std::sync::Arc;
use std::time::Duration;

use leadsman::config::settings::{TcpProbeConfig, TcpStep};
use leadsman::core::probe_result::{Outcome, ProbeResult, Reason};
use regex::bytes::Regex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::support::ask::{GOOD, SHORT, TIMEOUT, bad, check_tcp};
use crate::support::pki::{Pki, certificate};
use crate::support::script::{Script, Step, hang, raw, reset};
use crate::support::server::{Server, nobody};

fn expect(pattern: &str) -> TcpStep {
    TcpStep::Expect(Regex::new(pattern).unwrap())
}

fn send(text: &str) -> TcpStep {
    TcpStep::Send(text.into())
}

async fn check(
    rule: &str,
    script: Script,
    dialogue: Vec<TcpStep>,
    expected: Outcome,
) -> ProbeResult {
    let server = Server::connections_only(script).await;
    let change = |q: &mut TcpProbeConfig| q.dialogue = dialogue;
    check_tcp(rule, TIMEOUT, server.tcp(), change, expected).await
}

#[tokio::test]
async fn a_connection_is_enough_where_nothing_is_asked() {
    let result = check("hangs", hang(), Vec::new(), GOOD).await;
    assert!(result.answer.ip.is_some());
    assert_eq!(result.answer.status, None);
    assert!(!result.phases.connect.is_zero());
    let nobody = format!("tcp://{}", nobody().await);
    let refused = bad(Reason::ConnectRefused);
    check_tcp("refused", TIMEOUT, nobody, |_| {}, refused).await;
}

#[tokio::test]
async fn a_dialogue_that_goes_as_expected() {
    let greeting = || raw("220 first\r\n220 mail.test ready\r\n");
    check("first line", greeting(), vec![expect("^220 first$")], GOOD).await;
    check("a later line", greeting(), vec![expect("ready")], GOOD).await;
    check(
        "in order",
        greeting(),
        vec![expect("first"), expect("ready")],
        GOOD,
    )
    .await;
    let dialogue = vec![expect("ready"), expect("first")];
    check("not backwards", greeting(), dialogue, bad(Reason::Dialogue)).await;
    let split = vec![
        Step::Bytes("22".into()),
        Step::Wait(Duration::from_millis(20)),
        Step::Bytes("0 re".into()),
        Step::Wait(Duration::from_millis(20)),
        Step::Bytes("ady\n".into()),
        Step::Hang,
    ];
    check("in pieces", split.into(), vec![expect("^220 ready$")], GOOD).await;
    let binary = raw(b"\xff\xfe\n");
    check("bytes", binary, vec![expect(r"(?-u)^\xff\xfe$")], GOOD).await;
}

#[tokio::test]
async fn m09_groups_go_into_what_is_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.write_all(b"PING 12ab\r\n").await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        stream.write_all(b"welcome\r\n").await.unwrap();
        line
    });
    let dialogue = vec![
        expect(r"^PING (\d+)(?P<rest>\w+)"),
        send("PONG ${1}-${rest} $1\r\n"),
        expect("^welcome"),
    ];
    let change = |q: &mut TcpProbeConfig| q.dialogue = dialogue;
    check_tcp("groups", TIMEOUT, format!("tcp://{address}"), change, GOOD).await;
    assert_eq!(server.await.unwrap(), "PONG 12-ab $1\r\n");
}

#[tokio::test]
async fn a_dialogue_that_does_not() {
    let dialogue = || vec![expect("^220 ")];
    let unexpected = bad(Reason::Dialogue);
    let result = check(
        "another line",
        raw("554 go away\r\n"),
        dialogue(),
        unexpected,
    )
    .await;
    let explanation = result.explanation.unwrap();
    assert!(explanation.contains("554 go away"), "{explanation}");
    check("nothing", raw(""), dialogue(), unexpected).await;
    check("reset", reset(), dialogue(), bad(Reason::Reset)).await;
    let endless = vec![Step::Forever(vec![b'x'; 0x1000])];
    let change = |q: &mut TcpProbeConfig| q.dialogue = dialogue();
    let server = Server::connections_only(endless).await;
    check_tcp(
        "a line without an end",
        TIMEOUT,
        server.tcp(),
        change,
        unexpected,
    )
    .await;
    let server = Server::connections_only(hang()).await;
    let result = check_tcp("silence", SHORT, server.tcp(), change, unexpected).await;
    assert!(result.latency() >= SHORT);
    let refuses = vec![Step::Bytes(b"554 go away\r\n".to_vec()), Step::Hang];
    let server = Server::connections_only(refuses).await;
    let result = check_tcp("waits", SHORT, server.tcp(), change, unexpected).await;
    let explanation = result.explanation.unwrap();
    assert!(explanation.contains("554 go away"), "{explanation}");
    let chatter = vec![Step::Forever(b"250 not this\r\n".repeat(100))];
    let server = Server::connections_only(chatter).await;
    check_tcp(
        "the wrong lines for ever",
        SHORT,
        server.tcp(),
        change,
        unexpected,
    )
    .await;
}

#[tokio::test]
async fn tcp_over_tls() {
    let pki = Pki::new();
    let config = pki.server(&certificate(&["localhost"]));
    let server = Server::tls_connections_only(config, raw("* OK ready\r\n")).await;
    let url = format!("tcp://localhost:{}", server.address.port());
    let change = |q: &mut TcpProbeConfig| {
        q.tls = true;
        q.connect.tls.ca_file = Some(pki.ca_file());
        q.dialogue = vec![expect(r"^\* OK")];
    };
    let result = check_tcp("TLS", TIMEOUT, &url, change, GOOD).await;
    assert!(result.answer.tls.is_some());
    assert!(!result.phases.tls.is_zero());
    let untrusting = |q: &mut TcpProbeConfig| q.tls = true;
    check_tcp("X01", TIMEOUT, &url, untrusting, bad(Reason::Certificate)).await;
    let soon = |q: &mut TcpProbeConfig| {
        change(q);
        q.certificate_valid_for = Some(Duration::from_secs(48 * 3600));
    };
    check_tcp("G15", TIMEOUT, &url, soon, bad(Reason::Certificate)).await;
}

#[tokio::test]
async fn a_certificate_that_is_asked_for_has_to_be_there() {
    let change = |q: &mut TcpProbeConfig| q.certificate_valid_for = Some(Duration::from_secs(1));
    let server = Server::connections_only(hang()).await;
    let expected = bad(Reason::Certificate);
    check_tcp("no TLS", TIMEOUT, server.tcp(), change, expected).await;
}

#[tokio::test]
async fn x10_starttls() {
    let pki = Pki::new();
    let config = pki.server(&certificate(&["localhost"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(mail_server(listener, config));
    let result = check_tcp(
        "X10",
        TIMEOUT,
        format!("tcp://localhost:{port}"),
        |q| {
            q.connect.tls.ca_file = Some(pki.ca_file());
            q.dialogue = vec![
                expect("^220 "),
                send("EHLO probe\r\n"),
                expect("^250[ -]STARTTLS"),
                send("STARTTLS\r\n"),
                expect("^220 "),
                TcpStep::StartTls,
                send("EHLO again\r\n"),
                expect("^250 AUTH"),
                send("QUIT\r\n"),
            ];
        },
        GOOD,
    )
    .await;
    assert_eq!(server.await.unwrap(), "EHLO again\r\n");
    let tls = result.answer.tls.unwrap();
    assert_eq!(tls.subject_alternative, "localhost");
    assert!(!result.phases.tls.is_zero());
}

async fn mail_server(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> String {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.write_all(b"220 mail.test\r\n").await.unwrap();
    stream.read_line(&mut line).await.unwrap();
    stream
        .write_all(b"250-mail.test\r\n250 STARTTLS\r\n")
        .await
        .unwrap();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, "EHLO probe\r\nSTARTTLS\r\n");
    stream.write_all(b"220 go ahead\r\n").await.unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let stream = acceptor.accept(stream.into_inner()).await.unwrap();
    let mut stream = BufReader::new(stream);
    line.clear();
    stream.read_line(&mut line).await.unwrap();
    stream.write_all(b"250 AUTH PLAIN\r\n").await.unwrap();
    let _ = stream.read_to_string(&mut String::new()).await;
    line
}

/// What a server slips in before the handshake must not be taken for something said under its protection.
#[tokio::test]
async fn x10_lines_injected_before_the_handshake_are_refused() {
    let script = vec![
        Step::Bytes(b"220 go ahead\r\n250 AUTH injected\r\n".to_vec()),
        Step::Hang,
    ];
    let server = Server::connections_only(script).await;
    let change = |q: &mut TcpProbeConfig| {
        q.connect.tls.insecure_skip_verify = true;
        q.dialogue = vec![expect("^220 "), TcpStep::StartTls, expect("^250 AUTH")];
    };
    let url = format!("tcp://localhost:{}", server.address.port());
    let allowed = [bad(Reason::Tls), bad(Reason::Dialogue)];
    let mut kind = crate::support::ask::tcp_question();
    change(&mut kind);
    let prober = leadsman::prober::Prober::new(
        &crate::support::ask::shared(),
        crate::support::ask::target(url),
        leadsman::config::settings::ProbeKind::Tcp(Box::new(kind)),
    );
    let result = crate::support::ask::sound(&prober, SHORT).await;
    assert!(allowed.contains(&result.outcome), "{result:?}");
}
