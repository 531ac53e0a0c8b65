//! One probe result in the metric names of blackbox_exporter, so that its dashboards and alerts keep working.
//!
//! Always present, 0 on failure: success, status, the five phases, content length, TLS flag. Present only if known:
//! what the TLS handshake and the headers showed.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::settings::{ModuleConfig, ProbeKind};
use crate::core::probe_result::{
    HttpVersion, Outcome, PhaseTimes, ProbeResult, Reason, ResponseFacts, TlsInfo,
};
use crate::metrics::MetricsFormat;

/// The contents of a page.
pub(super) struct BlackboxPage<'a> {
    pub(super) kind: &'a ProbeKind,
    pub(super) timeout: Duration,
    /// `None`: the probe could not start.
    pub(super) result: Option<ProbeResult>,
    pub(super) steps: Vec<String>,
}

impl<'a> BlackboxPage<'a> {
    pub(super) fn of_nothing(kind: &'a ProbeKind, timeout: Duration) -> Self {
        Self {
            kind,
            timeout,
            result: None,
            steps: Vec::new(),
        }
    }
}

/// The page in the format that was negotiated. All metrics are gauges, as with blackbox_exporter.
pub(super) fn metrics_page(page: &BlackboxPage<'_>, format: MetricsFormat) -> Vec<u8> {
    let mut out = BlackboxGauges(String::with_capacity(4096));
    write_gauges(&mut out, page);
    let mut text = out.0;
    if format == MetricsFormat::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text.into_bytes()
}

/// For people: the steps, the metrics, and the module. None of them contains secrets.
pub(super) fn debug_page(page: &BlackboxPage<'_>, module: &ModuleConfig) -> String {
    let mut text = String::from("Steps of the result:\n");
    for step in &page.steps {
        let _ = writeln!(text, "  {step}");
    }
    if let Some(explanation) = page.result.as_ref().and_then(|s| s.explanation.as_deref()) {
        let _ = writeln!(text, "  failed: {explanation}");
    }
    text.push_str("\nMetrics:\n");
    let mut out = BlackboxGauges(text);
    write_gauges(&mut out, page);
    let mut text = out.0;
    let _ = write!(
        text,
        "\nModule {}:\n{:#?}\n",
        module.name,
        MaskedProbe(&module.kind)
    );
    text
}

/// The settings of a probe without header values and bodies, where users put tokens.
struct MaskedProbe<'a>(&'a ProbeKind);

impl std::fmt::Debug for MaskedProbe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            ProbeKind::Tcp(tcp) => f
                .debug_struct("Tcp")
                .field("tls", &tcp.tls)
                .field("steps", &tcp.dialogue.len())
                .field("connect", &tcp.connect)
                .finish_non_exhaustive(),
            ProbeKind::Http(http) => f
                .debug_struct("Http")
                .field("method", &http.method)
                .field(
                    "headers",
                    &http
                        .headers
                        .iter()
                        .map(|(name, _)| name.as_str())
                        .collect::<Vec<_>>(),
                )
                .field("host", &http.host)
                .field("auth", &http.auth)
                .field("redirects", &http.redirects)
                .field("http", &http.http)
                .field("connect", &http.connect)
                .field("connection", &http.connection)
                .field("body_limit", &http.body_limit)
                .field("compression", &http.compression)
                .finish_non_exhaustive(),
        }
    }
}

struct BlackboxGauges(String);

impl BlackboxGauges {
    fn head(&mut self, name: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn info(&mut self, name: &str, help: &str, labels: &[(&str, &str)]) {
        self.head(name, help);
        self.sample(name, labels, 1.0);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.0, "{name}{{");
        for (index, (label, text)) in labels.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let escaped = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{comma}{label}=\"{escaped}\"");
        }
        let _ = writeln!(self.0, "}} {value}");
    }
}

fn write_gauges(out: &mut BlackboxGauges, page: &BlackboxPage<'_>) {
    let nothing = ResponseFacts::default();
    let answer = page
        .result
        .as_ref()
        .map_or(&nothing, |result| &result.answer);
    let phases = page
        .result
        .as_ref()
        .map_or_else(PhaseTimes::default, |result| result.phases);
    let outcome = page.result.as_ref().map(|result| result.outcome);
    let duration = page
        .result
        .as_ref()
        .map_or(Duration::ZERO, ProbeResult::duration);

    out.one(
        "probe_success",
        "Whether the probe was a success",
        flag(outcome == Some(Outcome::Success)),
    );
    out.one(
        "probe_duration_seconds",
        "How long the probe took in seconds",
        duration.as_secs_f64(),
    );
    out.one(
        "probe_timeout_seconds",
        "The timeout that the probe had in seconds",
        page.timeout.as_secs_f64(),
    );
    out.one(
        "probe_dns_lookup_time_seconds",
        "How long resolving the name took in seconds",
        phases.resolve.as_secs_f64(),
    );
    let family = answer
        .ip
        .map_or(0.0, |ip| if ip.is_ipv4() { 4.0 } else { 6.0 });
    out.one(
        "probe_ip_protocol",
        "Whether IPv4 or IPv6 was spoken; 0 when there was no address",
        family,
    );
    if let Some(ip) = answer.ip {
        let hash = f64::from(ip_hash(ip));
        out.one(
            "probe_ip_addr_hash",
            "A hash of the address, to see when it changes",
            hash,
        );
    }
    let by_pattern = matches!(
        outcome,
        Some(Outcome::Failure(
            Reason::Body | Reason::Header | Reason::Dialogue
        ))
    );
    out.one(
        "probe_failed_due_to_regex",
        "Whether the probe failed because of a pattern",
        flag(by_pattern),
    );
    if let ProbeKind::Http(http) = page.kind {
        let resolve_is_known = http.proxy.is_none() || answer.resolved || !http.proxy_resolves;
        write_http(out, answer, phases, outcome, resolve_is_known);
    }
    if let Some(tls) = &answer.tls {
        write_tls(out, tls);
    }
}

fn write_http(
    out: &mut BlackboxGauges,
    answer: &ResponseFacts,
    phases: PhaseTimes,
    outcome: Option<Outcome>,
    resolve_is_known: bool,
) {
    out.head(
        "probe_http_duration_seconds",
        "How long each phase took in seconds, summed over redirects",
    );
    for (phase, span) in phases.named() {
        if phase != "resolve" || resolve_is_known {
            out.sample(
                "probe_http_duration_seconds",
                &[("phase", phase)],
                span.as_secs_f64(),
            );
        }
    }
    out.one(
        "probe_http_status_code",
        "The status of the answer",
        f64::from(answer.status.unwrap_or(0)),
    );
    let announced = answer.content_length.map_or(-1.0, |length| length as f64);
    let length = if answer.status.is_none() {
        0.0
    } else {
        announced
    };
    out.one(
        "probe_http_content_length",
        "The announced length of the body; -1 when there is none",
        length,
    );
    out.one(
        "probe_http_uncompressed_body_length",
        "The length of the body after unpacking",
        answer.unpacked_bytes as f64,
    );
    out.one(
        "probe_http_redirects",
        "How many redirects were followed",
        f64::from(answer.redirects),
    );
    out.one(
        "probe_http_ssl",
        "Whether the last answer came over TLS",
        flag(answer.tls.is_some()),
    );
    let version = match answer.http_version {
        None => 0.0,
        Some(HttpVersion::V10) => 1.0,
        Some(HttpVersion::V11) => 1.1,
        Some(HttpVersion::V20) => 2.0,
    };
    out.one(
        "probe_http_version",
        "The version of HTTP of the answer",
        version,
    );
    let by_json = outcome == Some(Outcome::Failure(Reason::Json));
    out.one(
        "probe_failed_due_to_json",
        "Whether the probe failed because of the JSON",
        flag(by_json),
    );
    if let Some(moment) = answer.last_modified {
        out.one(
            "probe_http_last_modified_timestamp_seconds",
            "The Last-Modified of the answer, in seconds since 1970",
            moment as f64,
        );
    }
}

fn write_tls(out: &mut BlackboxGauges, tls: &TlsInfo) {
    out.one(
        "probe_ssl_earliest_cert_expiry",
        "The earliest end of validity in the chain, in seconds since 1970",
        tls.earliest_expiry as f64,
    );
    out.one(
        "probe_ssl_last_chain_expiry_timestamp_seconds",
        "The earliest end of validity in the chain that was verified last, in seconds since 1970",
        tls.earliest_expiry as f64,
    );
    out.info(
        "probe_ssl_last_chain_info",
        "The leaf certificate",
        &[
            ("fingerprint_sha256", &tls.fingerprint_sha256),
            ("subject", &tls.subject),
            ("issuer", &tls.issuer),
            ("subjectalternative", &tls.subject_alternative),
            ("serialnumber", &tls.serial),
        ],
    );
    out.info(
        "probe_tls_version_info",
        "The version of TLS",
        &[("version", tls.version)],
    );
    out.info(
        "probe_tls_cipher_info",
        "The cipher suite",
        &[("cipher", tls.cipher)],
    );
}

const fn flag(is: bool) -> f64 {
    if is { 1.0 } else { 0.0 }
}

/// FNV-1a over the octets.
fn ip_hash(ip: IpAddr) -> u32 {
    let fold = |octets: &[u8]| {
        octets.iter().fold(0x811c_9dc5_u32, |hash, octet| {
            (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193)
        })
    };
    match ip {
        IpAddr::V4(ip) => fold(&ip.octets()),
        IpAddr::V6(ip) => fold(&ip.octets()),
    }
}
