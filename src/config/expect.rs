//! `expect`: what counts as a success.

use std::time::Duration;

use http::HeaderName;

use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use super::values::{self, json_rules, pattern};
use crate::core::probe_result::HttpVersion;
use crate::core::probe_result::expect::{Expect, HeaderRule, HeaderTest, StatusRange};

/// A day and more is no latency, and below a millisecond nothing answers.
pub(super) const LATENCY: (Duration, Duration) =
    (Duration::from_millis(1), Duration::from_secs(60));

/// How old a page may be, and how long a certificate must last.
pub(super) const SECOND_TO_TEN_YEARS: (Duration, Duration) =
    (Duration::from_secs(1), Duration::from_secs(315_360_000));

pub(super) fn expect(item: ConfigValue, notes: &mut ReaderNotes) -> Expect {
    let mut table = ConfigTable::of(item, notes);
    let status = table
        .list("status", notes)
        .map(|items| values::statuses(&items, notes));
    let mut headers = Vec::new();
    for (key, make) in [
        ("header_matches", HeaderTest::Matches as fn(_) -> HeaderTest),
        ("header_not_matches", HeaderTest::NotMatches),
    ] {
        let Some(item) = table.take(key) else {
            continue;
        };
        for (name, item) in rules_of(item, notes) {
            if let (Some(name), Some(pattern)) =
                (header_name(&name, &item, notes), pattern(&item, notes))
            {
                headers.push(HeaderRule {
                    name,
                    test: make(pattern),
                });
            }
        }
    }
    for (key, test) in [
        ("header_present", HeaderTest::Present),
        ("header_absent", HeaderTest::Absent),
    ] {
        for item in &table.list(key, notes).unwrap_or_default() {
            let name = item.text().unwrap_or("").to_owned();
            headers.extend(header_name(&name, item, notes).map(|name| HeaderRule {
                name,
                test: test.clone(),
            }));
        }
    }
    let mut patterns = |key: &'static str, table: &mut ConfigTable| {
        let items = table.list(key, notes).unwrap_or_default();
        items
            .iter()
            .filter_map(|item| pattern(item, notes))
            .collect()
    };
    let body_matches = patterns("body_matches", &mut table);
    let body_not_matches = patterns("body_not_matches", &mut table);
    let json = table.take("json").map_or_else(Vec::new, |item| {
        json_rules(&mut ConfigTable::of(item, notes), notes)
    });
    let expect = Expect {
        status: status
            .filter(|ranges| !ranges.is_empty())
            .unwrap_or_else(|| {
                vec![StatusRange {
                    low: 200,
                    high: 299,
                }]
            }),
        json,
        body_matches,
        body_not_matches,
        headers,
        max_latency: table.duration("max_latency", LATENCY, notes),
        max_age: table.duration("max_age", SECOND_TO_TEN_YEARS, notes),
        certificate_valid_for: table.duration("certificate_valid_for", SECOND_TO_TEN_YEARS, notes),
        http_versions: versions(&mut table, notes),
        tls: table.word("tls", &[("required", true), ("forbidden", false)], notes),
    };
    table.end(notes);
    expect
}

fn versions(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Vec<HttpVersion> {
    let mut versions = Vec::new();
    for item in table.list("http_version", notes).unwrap_or_default() {
        match item.text() {
            Some("1.0") => versions.push(HttpVersion::V10),
            Some("1.1") => versions.push(HttpVersion::V11),
            Some("2" | "2.0") => versions.push(HttpVersion::V20),
            Some(_) | None => notes.diagnostic(
                &item,
                "is no version of HTTP that can be spoken",
                "write \"1.0\", \"1.1\" or \"2\"",
            ),
        }
    }
    versions
}

pub(super) fn header_name(
    name: &str,
    item: &ConfigValue,
    notes: &mut ReaderNotes,
) -> Option<HeaderName> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).ok();
    if parsed.is_none() {
        notes.diagnostic(
            item,
            format!("{name:?} is no name of a header"),
            "use letters, digits and dashes",
        );
    }
    parsed
}

fn rules_of(item: ConfigValue, notes: &mut ReaderNotes) -> Vec<(String, ConfigValue)> {
    ConfigTable::of(item, notes).rules(notes)
}
