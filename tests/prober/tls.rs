//! TLS: who is trusted, what is seen of it, and what is asked of it.

use std::time::Duration;

use leadsman::config::settings::{HttpProbeConfig, HttpVersions, TlsConfig};
use leadsman::core::probe_result::{HttpVersion, Outcome, Reason, UnknownReason};

use crate::support::ask::{GOOD, SHORT, bad, check, check_within, unknown};
use crate::support::pki::{Pki, Wanted, certificate};
use crate::support::script::{Step, answer, raw};
use crate::support::server::Server;

/// A server with such a certificate is asked at `localhost`, trusting the authority.
async fn check_certificate(
    rule: &str,
    wanted: Wanted,
    change: impl FnOnce(&mut HttpProbeConfig),
    expected: Outcome,
) -> leadsman::core::probe_result::ProbeResult {
    let pki = Pki::new();
    let server = Server::tls(pki.server(&wanted), |_| answer(200).body("ok")).await;
    let trusting = |q: &mut HttpProbeConfig| {
        q.connect.tls.ca_file = Some(pki.ca_file());
        change(q);
    };
    check(rule, server.url_of("localhost", "/"), trusting, expected).await
}

fn local() -> Wanted {
    certificate(&["localhost"])
}

#[tokio::test]
async fn x01_x02_x04_whom_to_trust() {
    let certificate_bad = bad(Reason::Certificate);
    let any = |q: &mut HttpProbeConfig| q.connect.tls.insecure_skip_verify = true;
    let result = check_certificate("X01", local().self_signed(), |_| {}, certificate_bad).await;
    assert_eq!(result.answer.status, None);
    let result = check_certificate("X02", local().self_signed(), any, GOOD).await;
    assert!(result.answer.tls.is_some());
    let system = |q: &mut HttpProbeConfig| q.connect.tls.ca_file = None;
    check_certificate("unknown to the system", local(), system, certificate_bad).await;
    check_certificate("X04", local(), |_| {}, GOOD).await;
    let other = || certificate(&["elsewhere.test"]);
    let result = check_certificate("another name", other(), |_| {}, certificate_bad).await;
    let explanation = result.explanation.unwrap();
    assert!(explanation.contains("localhost"), "{explanation}");
    check_certificate("any name", other(), any, GOOD).await;
    let named = |q: &mut HttpProbeConfig| q.connect.tls.server_name = Some("elsewhere.test".into());
    check_certificate("the name that is given", other(), named, GOOD).await;
    check_certificate("expired", local().hours_left(-1), |_| {}, certificate_bad).await;
    check_certificate(
        "expired, but any will do",
        local().hours_left(-1),
        any,
        GOOD,
    )
    .await;
}

#[tokio::test]
async fn g15_a_certificate_that_ends_soon() {
    let hours = |hours: u64| {
        move |q: &mut HttpProbeConfig| {
            q.expect.certificate_valid_for = Some(Duration::from_secs(hours * 3600));
        }
    };
    check_certificate("G15", local(), hours(12), GOOD).await;
    check_certificate("G15", local(), hours(48), bad(Reason::Certificate)).await;
    let skip = |q: &mut HttpProbeConfig| {
        hours(12)(q);
        q.connect.tls.insecure_skip_verify = true;
    };
    check_certificate(
        "G15",
        local().hours_left(-1),
        skip,
        bad(Reason::Certificate),
    )
    .await;
}

#[tokio::test]
async fn x03_m02_tls_settings_mean_nothing_on_a_plain_target() {
    let server = Server::plain(|_| answer(200)).await;
    let change = |q: &mut HttpProbeConfig| {
        q.connect.tls = TlsConfig {
            server_name: Some("elsewhere.test".into()),
            insecure_skip_verify: true,
            only_tls13: true,
            ..TlsConfig::default()
        };
    };
    let result = check("X03", server.url("/"), change, GOOD).await;
    assert_eq!(result.answer.tls, None, "M02");
    assert!(result.phases.tls.is_zero());
}

#[tokio::test]
async fn x05_tls_that_is_required() {
    let server = Server::plain(|_| answer(200)).await;
    let required = |q: &mut HttpProbeConfig| q.expect.tls = Some(true);
    let result = check("X05", server.url("/"), required, bad(Reason::Version)).await;
    assert!(result.explanation.unwrap().contains("TLS"));
    check_certificate("X05", local(), required, GOOD).await;
    let forbidden = |q: &mut HttpProbeConfig| q.expect.tls = Some(false);
    check_certificate("X05", local(), forbidden, bad(Reason::Version)).await;
}

#[tokio::test]
async fn x07_x09_what_is_seen_of_a_handshake() {
    let wanted = local().serial(&[0x00, 0x0a, 0xbc]);
    let result = check_certificate("X07", wanted, |_| {}, GOOD).await;
    let phases = result.phases;
    assert!(result.answer.resolved && !phases.resolve.is_zero());
    assert!(!phases.connect.is_zero() && !phases.tls.is_zero());
    assert!(!phases.processing.is_zero());
    let tls = result.answer.tls.unwrap();
    // DER drops the zeros that carry no sign, so the leading nibble is what can be kept.
    assert_eq!(tls.serial, "0abc");
    assert_eq!(tls.version, "TLS 1.3");
    assert!(
        tls.cipher.starts_with("TLS13_") || tls.cipher.starts_with("TLS_"),
        "{}",
        tls.cipher
    );
    assert!(tls.subject.contains("Test Server"), "{}", tls.subject);
    assert!(tls.issuer.contains("Test Authority"), "{}", tls.issuer);
    assert_eq!(tls.subject_alternative, "localhost");
    assert_eq!(tls.fingerprint_sha256.len(), 64);
    let left = tls.leaf_expiry as f64 - leadsman::platform::clock::unix_seconds();
    assert!((82_800.0..=86_400.0).contains(&left), "{left}");
    assert_eq!(tls.earliest_expiry, tls.leaf_expiry);
}

#[tokio::test]
async fn http2_is_spoken_where_both_sides_can() {
    let version = |version| move |q: &mut HttpProbeConfig| q.expect.http_versions = vec![version];
    check_certificate("ALPN", local().http2(), version(HttpVersion::V20), GOOD).await;
    check_certificate("ALPN", local(), version(HttpVersion::V11), GOOD).await;
    let old = |q: &mut HttpProbeConfig| {
        q.http = HttpVersions::Http1;
        q.expect.http_versions = vec![HttpVersion::V11];
    };
    check_certificate("R10", local().http2(), old, GOOD).await;
}

#[tokio::test]
async fn a_client_shows_its_certificate() {
    let pki = Pki::new();
    let config = pki.server(&local().asks_for_client_certificate());
    let server = Server::tls(config, |_| answer(200)).await;
    let files = pki.client_files();
    let ask = |client: Option<(std::path::PathBuf, std::path::PathBuf)>| {
        let ca = pki.ca_file();
        move |q: &mut HttpProbeConfig| {
            q.connect.tls.ca_file = Some(ca);
            q.connect.tls.client_certificate = client;
        }
    };
    let url = server.url_of("localhost", "/");
    check("with one", &url, ask(Some(files.clone())), GOOD).await;
    assert!(server.request().client_certificate);
    check("without one", &url, ask(None), bad(Reason::Tls)).await;
    let gone = (files.0, pki.path().join("gone.key"));
    check(
        "C10: a file is missing",
        &url,
        ask(Some(gone)),
        unknown(UnknownReason::File),
    )
    .await;
    let garbage = pki.file("garbage.pem", "-----BEGIN CERTIFICATE-----\n!\n");
    let change = |q: &mut HttpProbeConfig| q.connect.tls.ca_file = Some(garbage);
    check(
        "C10: a file is no certificate",
        &url,
        change,
        unknown(UnknownReason::File),
    )
    .await;
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls() {
    for (rule, server) in [
        (
            "plain HTTP",
            Server::connections_only(raw("HTTP/1.1 400 Bad Request\r\n\r\n")).await,
        ),
        ("garbage", Server::connections_only(raw([0xde; 100])).await),
        ("closed", Server::connections_only(vec![Step::Close]).await),
        (
            "alert",
            Server::connections_only(raw([0x15, 3, 3, 0, 2, 2, 40])).await,
        ),
    ] {
        let url = format!("https://localhost:{}/", server.address.port());
        check(rule, url, |_| {}, bad(Reason::Tls)).await;
    }
}

#[tokio::test]
async fn a_handshake_that_hangs_ends_at_the_timeout() {
    let server = Server::connections_only(vec![Step::Hang]).await;
    let url = format!("https://localhost:{}/", server.address.port());
    let result = check_within("hang", SHORT, url, |_| {}, bad(Reason::Tls)).await;
    assert!(result.latency() >= SHORT);
    assert!(result.phases.tls >= SHORT / 2, "{result:?}");
    assert!(result.phases.processing.is_zero());
}
