//! The result of one probe.
//!
//! Invariants:
//! - every result is a success, a failure for one reason of a closed list, or unknown: unknown is not evidence;
//! - a transport error is a failure, whatever the expectations are;
//! - the phases sum up to the time from the start to the end of the probe.

mod evaluate;
pub mod expect;
mod json;
mod json_path;
mod reason;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

pub use evaluate::{ExpectationFailure, ResponseView, judge};
pub use reason::{Reason, UnknownReason};

use crate::core::units::Moment;

/// What a result says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "result", content = "reason", rename_all = "snake_case")]
pub enum Outcome {
    /// The answer was as expected.
    #[serde(alias = "good")]
    Success,
    /// The answer was not as expected, or there was none.
    #[serde(alias = "bad")]
    Failure(Reason),
    /// Not evidence: our own trouble.
    #[serde(alias = "void")]
    Unknown(UnknownReason),
}

impl Outcome {
    /// "good", "bad" or "unknown", and the reason where there is one.
    pub const fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Success => ("success", None),
            Self::Failure(reason) => ("failure", Some(reason.as_str())),
            Self::Unknown(reason) => ("unknown", Some(reason.as_str())),
        }
    }
}

/// One answer to one probe.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeResult {
    /// When it should have started.
    pub due: Moment,
    /// When it did start.
    pub started: Moment,
    /// When the last byte was read, or the attempt given up.
    pub finished: Moment,
    /// Success, failure or unknown.
    pub outcome: Outcome,
    /// Where the time went.
    pub phases: PhaseTimes,
    /// What was seen of the answer.
    pub answer: ResponseFacts,
    /// Why it is not good, in words, with the value that was observed; at most [`ProbeResult::MAX_EXPLANATION`] bytes,
    /// without secrets. `None` for a good one.
    pub explanation: Option<Box<str>>,
}

impl ProbeResult {
    /// Longer explanations are cut at a character's boundary.
    pub const MAX_EXPLANATION: usize = 300;

    /// From the due time to the end: what a user who came at the due time would have waited.
    pub fn latency(&self) -> Duration {
        self.finished.since(self.due)
    }

    /// From the start to the end.
    pub fn duration(&self) -> Duration {
        self.finished.since(self.started)
    }

    /// How late it started.
    pub fn lateness(&self) -> Duration {
        self.started.since(self.due)
    }
}

/// Where the time of a probe went. With redirects, sums over all hops. Phases that did not happen are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PhaseTimes {
    /// Name to address.
    pub resolve: Duration,
    /// TCP handshake.
    pub connect: Duration,
    /// TLS handshake.
    pub tls: Duration,
    /// From the request to the first byte of the answer.
    pub processing: Duration,
    /// From the first byte of the answer to the last, and its evaluation.
    pub transfer: Duration,
}

impl PhaseTimes {
    /// The names as Prometheus users know them from blackbox_exporter, with the values.
    pub const fn named(&self) -> [(&'static str, Duration); 5] {
        [
            ("resolve", self.resolve),
            ("connect", self.connect),
            ("tls", self.tls),
            ("processing", self.processing),
            ("transfer", self.transfer),
        ]
    }

    /// The sum of all phases.
    pub fn total(&self) -> Duration {
        self.named().iter().map(|(_, span)| *span).sum()
    }
}

/// What was seen of an answer, as far as it came. Of a redirected request: of the last hop.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ResponseFacts {
    /// The address that was asked.
    pub ip: Option<IpAddr>,
    /// The HTTP status; 100 to 999.
    pub status: Option<u16>,
    /// The version of HTTP that was spoken.
    pub http_version: Option<HttpVersion>,
    /// Redirects that were followed.
    pub redirects: u8,
    /// `Content-Length` as the target announced it.
    pub content_length: Option<u64>,
    /// Bytes of the body read from the wire.
    pub body_bytes: u64,
    /// Bytes of the body after unpacking.
    pub unpacked_bytes: u64,
    /// `Last-Modified`, in seconds since 1970.
    pub last_modified: Option<i64>,
    /// What the TLS handshake showed.
    pub tls: Option<Arc<TlsInfo>>,
    /// Whether the connection was taken over from an earlier probe.
    pub reused: bool,
    /// Whether a name was resolved (false for numeric hosts and where a proxy resolves).
    pub resolved: bool,
    /// Whether the other side was heard: an answer, a part of one, a refusal, a reset, an alert of TLS. Packets travel
    /// then, so that a failure is not our own network's.
    pub reached: bool,
    /// Whether no name server answered (timeout, SERVFAIL, REFUSED). That a name does not exist is an answer.
    pub unanswered: bool,
    /// Set if a rate limit answered (429, or 503 with `Retry-After`): how long to wait before the next request, at most
    /// ten minutes.
    pub limited: Option<Duration>,
    /// The lowest of the addresses that the host has (the proxy, if there is one). Hosts for which it is the same are
    /// names of one entrance.
    pub entrance: Option<IpAddr>,
}

/// The version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum HttpVersion {
    /// HTTP/1.0
    #[serde(rename = "1.0")]
    V10,
    /// HTTP/1.1
    #[serde(rename = "1.1")]
    V11,
    /// HTTP/2
    #[serde(rename = "2.0")]
    V20,
}

impl HttpVersion {
    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V10 => "1.0",
            Self::V11 => "1.1",
            Self::V20 => "2.0",
        }
    }
}

/// What a TLS handshake showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// As blackbox_exporter writes it: "TLS 1.2", "TLS 1.3".
    pub version: &'static str,
    /// The IANA name of the cipher suite.
    pub cipher: &'static str,
    /// The earliest end of validity in the chain that was sent, in seconds since 1970.
    pub earliest_expiry: i64,
    /// The end of validity of the leaf, in seconds since 1970.
    pub leaf_expiry: i64,
    /// SHA-256 of the leaf, in lower-case hexadecimal.
    pub fingerprint_sha256: String,
    /// The leaf's subject.
    pub subject: String,
    /// The leaf's issuer.
    pub issuer: String,
    /// The DNS names of the leaf, comma-separated; at most 1 KiB.
    pub subject_alternative: String,
    /// The leaf's serial number in lower-case hexadecimal, with leading zeros kept.
    pub serial: String,
}
