//! Checks an answer against the expectations.
//!
//! Invariants:
//! - of several reasons the first in a fixed order counts, so that equal answers have equal reasons: version and TLS,
//!   validity of the certificate, status, headers, age, JSON, body, latency;
//! - an explanation contains the observed value, is at most [`ProbeResult::MAX_EXPLANATION`] bytes long, and has no
//!   control character and no cookie;
//! - only complete answers get here: a transport error is a failure by itself.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use http::header::{LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, HeaderValue};

use super::expect::{Expect, HeaderRule, HeaderTest, StatusRange};
use super::{HttpVersion, ProbeResult, Reason, TlsInfo, json};

/// A complete answer, as the expectations see it.
#[derive(Debug, Clone, Copy)]
pub struct ResponseView<'a> {
    /// The HTTP status; 100 to 999.
    pub status: u16,
    /// The version of HTTP that was spoken.
    pub version: HttpVersion,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The body, unpacked; it may be empty where [`Expect::needs_body`] is false.
    pub body: &'a [u8],
    /// Whether it came over TLS.
    pub over_tls: bool,
    /// From the start of the probe to the last byte.
    pub duration: Duration,
    /// What the TLS handshake showed.
    pub tls: Option<&'a TlsInfo>,
    /// The wall clock, in seconds since 1970.
    pub unix_now: f64,
}

/// Why an answer is not good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectationFailure {
    /// For counting.
    pub reason: Reason,
    /// For people: what was seen and what was expected; at most [`ProbeResult::MAX_EXPLANATION`] bytes.
    pub explanation: String,
}

/// Whether the answer is as expected.
///
/// # Errors
/// The first expectation that does not hold, in the order that the head of this module names.
pub fn judge(expect: &Expect, seen: &ResponseView<'_>) -> Result<(), ExpectationFailure> {
    let failed = |reason| move |explanation| ExpectationFailure::new(reason, explanation);
    version(expect, seen).map_err(failed(Reason::Version))?;
    certificate(expect, seen).map_err(failed(Reason::Certificate))?;
    status(expect, seen).map_err(failed(Reason::Status))?;
    for rule in &expect.headers {
        header(rule, seen.headers).map_err(failed(Reason::Header))?;
    }
    if let Some(most) = expect.max_age {
        age(most, seen).map_err(failed(Reason::Header))?;
    }
    json::check(&expect.json, seen.body).map_err(failed(Reason::Json))?;
    body(expect, seen.body).map_err(failed(Reason::Body))?;
    latency(expect, seen).map_err(failed(Reason::TooSlow))
}

impl ExpectationFailure {
    fn new(reason: Reason, mut explanation: String) -> Self {
        let mut end = explanation.len().min(ProbeResult::MAX_EXPLANATION);
        while !explanation.is_char_boundary(end) {
            end -= 1;
        }
        explanation.truncate(end);
        Self {
            reason,
            explanation,
        }
    }
}

fn version(expect: &Expect, seen: &ResponseView<'_>) -> Result<(), String> {
    let wanted = &expect.http_versions;
    if !wanted.is_empty() && !wanted.contains(&seen.version) {
        let list: Vec<_> = wanted.iter().map(|version| version.as_str()).collect();
        let (seen, list) = (seen.version.as_str(), list.join(" or "));
        return Err(format!("HTTP version {seen}, expected {list}"));
    }
    match (expect.tls, seen.over_tls) {
        (Some(true), false) => Err("the answer did not come over TLS".to_owned()),
        (Some(false), true) => Err("the answer came over TLS, expected none".to_owned()),
        (Some(true), true) | (Some(false), false) | (None, _) => Ok(()),
    }
}

fn certificate(expect: &Expect, seen: &ResponseView<'_>) -> Result<(), String> {
    let Some(least) = expect.certificate_valid_for else {
        return Ok(());
    };
    let Some(tls) = seen.tls else {
        return Err("there is no certificate: the answer did not come over TLS".to_owned());
    };
    let left = tls.earliest_expiry as f64 - seen.unix_now;
    if left >= least.as_secs_f64() {
        return Ok(());
    }
    let least = humantime::format_duration(Duration::from_secs(least.as_secs()));
    let span = whole_seconds(left);
    Err(if left < 0.0 {
        format!("a certificate expired {span} ago")
    } else {
        format!("a certificate is valid for {span} more, expected at least {least}")
    })
}

/// The absolute difference of two times, rounded for people.
fn whole_seconds(seconds: f64) -> humantime::FormattedDuration {
    let span = Duration::try_from_secs_f64(seconds.abs().trunc());
    humantime::format_duration(span.unwrap_or(Duration::MAX))
}

fn status(expect: &Expect, seen: &ResponseView<'_>) -> Result<(), String> {
    let fits = |range: &StatusRange| (range.low..=range.high).contains(&seen.status);
    if expect.status.iter().any(fits) {
        return Ok(());
    }
    let mut list = String::new();
    // As many as fit into an explanation.
    for (index, range) in expect.status.iter().take(12).enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = if range.low == range.high {
            write!(list, "{comma}{}", range.low)
        } else {
            write!(list, "{comma}{}-{}", range.low, range.high)
        };
    }
    if expect.status.len() > 12 {
        list.push_str(" …");
    }
    Err(format!("status {}, expected {list}", seen.status))
}

fn header(rule: &HeaderRule, headers: &HeaderMap) -> Result<(), String> {
    let name = &rule.name;
    let values = || headers.get_all(name).iter();
    let show = |value: &HeaderValue| {
        // A session that the target opened for us is nobody else's business.
        if value.is_sensitive() || *name == SET_COOKIE {
            "<hidden>".to_owned()
        } else {
            shown(&text_of(value))
        }
    };
    match &rule.test {
        HeaderTest::Present if headers.contains_key(name) => Ok(()),
        HeaderTest::Present => Err(format!("header {name} is missing")),
        HeaderTest::Absent => match values().next() {
            None => Ok(()),
            Some(value) => Err(format!("header {name} is {}, expected none", show(value))),
        },
        HeaderTest::Matches(pattern) => {
            if values().any(|value| pattern.0.is_match(&text_of(value))) {
                return Ok(());
            }
            let wanted = shown(pattern.0.as_str());
            Err(match values().next() {
                None => format!("header {name} is missing, expected a match of {wanted}"),
                Some(value) => {
                    let value = show(value);
                    format!("header {name} is {value}, expected a match of {wanted}")
                }
            })
        }
        HeaderTest::NotMatches(pattern) => {
            match values().find(|value| pattern.0.is_match(&text_of(value))) {
                None => Ok(()),
                Some(value) => Err(format!(
                    "header {name} is {}, which matches {}",
                    show(value),
                    shown(pattern.0.as_str())
                )),
            }
        }
    }
}

fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn age(most: Duration, seen: &ResponseView<'_>) -> Result<(), String> {
    let Some(value) = seen.headers.get(LAST_MODIFIED) else {
        return Err("header last-modified is missing, expected a recent one".to_owned());
    };
    let text = text_of(value);
    let Some(then) = httpdate::parse_http_date(&text)
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
    else {
        return Err(format!("header last-modified is {}, no date", shown(&text)));
    };
    let age = seen.unix_now - then.as_secs_f64();
    if age < most.as_secs_f64() {
        return Ok(());
    }
    let age = whole_seconds(age);
    let most = humantime::format_duration(most);
    Err(format!(
        "last modified {age} ago, expected less than {most}"
    ))
}

/// A body that is not UTF-8 is matched as text in which each wrong byte is replaced; one that is, byte by byte.
fn body(expect: &Expect, body: &[u8]) -> Result<(), String> {
    if expect.body_matches.is_empty() && expect.body_not_matches.is_empty() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(body);
    for pattern in &expect.body_matches {
        if !pattern.0.is_match(&text) {
            return Err(format!(
                "the body does not match {}: {}",
                shown(pattern.0.as_str()),
                if text.is_empty() {
                    "it is empty".to_owned()
                } else {
                    shown(&text)
                }
            ));
        }
    }
    for pattern in &expect.body_not_matches {
        if let Some(hit) = pattern.0.find(&text) {
            return Err(format!(
                "the body matches {} at byte {}: {}",
                shown(pattern.0.as_str()),
                hit.start(),
                shown(hit.as_str())
            ));
        }
    }
    Ok(())
}

fn latency(expect: &Expect, seen: &ResponseView<'_>) -> Result<(), String> {
    match expect.max_latency {
        Some(most) if seen.duration > most => Err(format!(
            "took {:?}, at most {most:?} is good",
            // Microseconds are more than anybody acts on.
            Duration::from_micros(u64::try_from(seen.duration.as_micros()).unwrap_or(u64::MAX))
        )),
        Some(_) | None => Ok(()),
    }
}

/// The start of a text for an explanation: one line, without control characters, at most 100 bytes.
pub(super) fn shown(text: &str) -> String {
    /// Two such values and the words around them fit into an explanation.
    const MOST: usize = 96;
    let mut out = String::new();
    for c in text.chars() {
        let before = out.len();
        if matches!(c, '"' | '\'' | '\\') {
            out.push(c);
        } else {
            out.extend(c.escape_debug());
        }
        if out.len() > MOST {
            out.truncate(before);
            out.push('…');
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests;
