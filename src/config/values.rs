//! Values with a notation of their own: sizes, statuses, patterns, JSON expectations.

use jsonpath_rust::parser::parse_json_path;
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::layers::{ConfigNode, NodeKind};
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use crate::core::probe_result::expect::{
    Decimal, JsonPlace, JsonRule, JsonTest, NumberComparison, Pattern, StatusRange,
};

/// The largest that a compiled pattern may be; the library's own default, said here because it is a bound.
const PATTERN_LIMIT: usize = 10 * 1024 * 1024;

/// Bytes, as people write them: 512, "64 KiB", "1MiB", "10kB".
pub(super) fn size(item: &ConfigValue, most: usize, notes: &mut ReaderNotes) -> Option<usize> {
    let bytes = match &item.node.kind {
        NodeKind::Int(number) => u64::try_from(*number).ok(),
        NodeKind::Text(text) => parse_size(text),
        NodeKind::Bool(_) | NodeKind::Float(_) | NodeKind::Array(_) | NodeKind::Table(_) => None,
    };
    let bytes = bytes
        .and_then(|bytes| usize::try_from(bytes).ok())
        .filter(|bytes| *bytes <= most);
    match bytes {
        Some(bytes) => notes.holds(&item.path, bytes, &item.node.location),
        None => notes.diagnostic(
            item,
            format!("is no size up to {} MiB", most / 1024 / 1024),
            "write bytes as a number, or as \"64 KiB\", \"1MiB\", \"10kB\"",
        ),
    }
    bytes
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text.get(..end)?.parse().ok()?;
    let unit: u64 = match text.get(end..)?.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "ki" | "k" => 1024,
        "mib" | "mi" | "m" => 1024 * 1024,
        "kb" => 1000,
        "mb" => 1_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Statuses: 200, "200-299", "2xx", "302,200-299", or a list of such.
pub(super) fn statuses(items: &[ConfigValue], notes: &mut ReaderNotes) -> Vec<StatusRange> {
    let mut ranges = Vec::new();
    for item in items {
        let text = match &item.node.kind {
            NodeKind::Int(number) => number.to_string(),
            NodeKind::Text(text) => text.clone(),
            NodeKind::Bool(_) | NodeKind::Float(_) | NodeKind::Array(_) | NodeKind::Table(_) => {
                String::new()
            }
        };
        let parsed: Option<Vec<StatusRange>> = text
            .split(',')
            .map(|part| status_range(part.trim()))
            .collect();
        match parsed {
            Some(parsed) => {
                notes.holds(&item.path, &text, &item.node.location);
                ranges.extend(parsed);
            }
            None => notes.diagnostic(
                item,
                format!("{text:?} is no status from 100 to 999 and no range of them"),
                "write 200, \"200-299\", \"2xx\", or a list of such",
            ),
        }
    }
    ranges
}

fn status_range(text: &str) -> Option<StatusRange> {
    let status = |text: &str| {
        let plain = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>()
            .ok()
            .filter(|status| plain && *status >= 100)
    };
    if let Some(class) = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX")) {
        let low = class
            .parse::<u16>()
            .ok()
            .filter(|class| (1..=9).contains(class) && text.len() == 3)?
            * 100;
        return Some(StatusRange {
            low,
            high: low + 99,
        });
    }
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (status(low.trim())?, status(high.trim())?),
        None => (status(text)?, status(text)?),
    };
    (low <= high).then_some(StatusRange { low, high })
}

/// A regular expression.
pub(super) fn pattern(item: &ConfigValue, notes: &mut ReaderNotes) -> Option<Pattern> {
    let Some(text) = item.text() else {
        notes.diagnostic(
            item,
            format!("is {}", item.node.kind.name()),
            "write a regular expression in quotes",
        );
        return None;
    };
    match RegexBuilder::new(text).size_limit(PATTERN_LIMIT).build() {
        Ok(regex) => {
            notes.holds(&item.path, format!("{text:?}"), &item.node.location);
            Some(Pattern(regex))
        }
        Err(error) => {
            notes.diagnostic(
                item,
                format!("{text:?} is no regular expression"),
                why(&error),
            );
            None
        }
    }
}

/// The last line of a regex error says what is wrong; those before draw it.
pub(super) fn why(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines()
        .last()
        .unwrap_or("")
        .trim_start_matches("error: ")
        .to_owned()
}

/// `json = { "/status" = "ok", "$.items[0].n" = { gt = 3 } }`
pub(super) fn json_rules(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Vec<JsonRule> {
    let mut rules = Vec::new();
    for (key, item) in table.rules(notes) {
        match json_place(&key) {
            Ok(location) => {
                let tests = json_tests(item, notes);
                rules.extend(tests.into_iter().map(|test| JsonRule {
                    place: location.clone(),
                    test,
                }));
            }
            Err((message, help)) => {
                let location = item.node.location.of_key();
                notes.complain(&item.path, &location, message, Some(help));
            }
        }
    }
    rules
}

fn json_place(text: &str) -> Result<JsonPlace, (String, String)> {
    let written = text.to_owned();
    if text.starts_with('$') {
        return match parse_json_path(text) {
            Ok(query) => Ok(JsonPlace::Path {
                query: Box::new(query),
                text: written,
            }),
            Err(error) => {
                let first = error
                    .to_string()
                    .lines()
                    .last()
                    .unwrap_or("")
                    .trim()
                    .to_owned();
                Err((
                    format!("{text:?} is no JSONPath: {first}"),
                    "write it as RFC 9535, as \"$.items[0].name\"".into(),
                ))
            }
        };
    }
    if !text.is_empty() && !text.starts_with('/') {
        let help = format!(
            "write \"/{}\" for the key {text:?}, or a JSONPath that starts with $",
            text.replace('.', "/")
        );
        return Err((format!("{text:?} is no JSON pointer"), help));
    }
    let mut parts = Vec::new();
    for part in text.split('/').skip(1) {
        let bare = part.replace("~0", "").replace("~1", "");
        if bare.contains('~') {
            let help = "write ~0 for ~ and ~1 for / within a key".to_owned();
            return Err((format!("{text:?} is no JSON pointer"), help));
        }
        parts.push(part.replace("~1", "/").replace("~0", "~"));
    }
    Ok(JsonPlace::Pointer {
        parts,
        text: written,
    })
}

fn json_tests(item: ConfigValue, notes: &mut ReaderNotes) -> Vec<JsonTest> {
    if !matches!(item.node.kind, NodeKind::Table(_)) {
        let value = json(&item.node);
        notes.holds(&item.path, &value, &item.node.location);
        return vec![JsonTest::Equals(value)];
    }
    let mut table = ConfigTable::of(item, notes);
    let mut tests = Vec::new();
    for (key, make) in [
        ("equals", JsonTest::Equals as fn(Value) -> JsonTest),
        ("not_equals", JsonTest::NotEquals),
    ] {
        if let Some(item) = table.take(key) {
            let value = json(&item.node);
            notes.holds(&item.path, &value, &item.node.location);
            tests.push(make(value));
        }
    }
    if let Some(items) = table.list("one_of", notes) {
        let values: Vec<Value> = items.iter().map(|item| json(&item.node)).collect();
        tests.push(JsonTest::OneOf(values));
    }
    if let Some(item) = table.take("matches") {
        tests.extend(pattern(&item, notes).map(JsonTest::Matches));
    }
    for (key, comparison) in [
        ("gt", NumberComparison::Greater),
        ("ge", NumberComparison::GreaterOrEqual),
        ("lt", NumberComparison::Less),
        ("le", NumberComparison::LessOrEqual),
    ] {
        let Some(item) = table.take(key) else {
            continue;
        };
        let text = match &item.node.kind {
            NodeKind::Int(number) => number.to_string(),
            NodeKind::Float(number) => number.to_string(),
            NodeKind::Text(text) => text.clone(),
            NodeKind::Bool(_) | NodeKind::Array(_) | NodeKind::Table(_) => String::new(),
        };
        match Decimal::parse(&text) {
            Some(number) => {
                notes.holds(&item.path, &text, &item.node.location);
                tests.push(JsonTest::Compare(comparison, number));
            }
            None => notes.diagnostic(
                &item,
                "is no number",
                "write a number; one that is too long for TOML in quotes",
            ),
        }
    }
    tests.extend(table.switch("exists", notes).map(JsonTest::Exists));
    if tests.is_empty() {
        let help = "write equals, not_equals, one_of, matches, gt, ge, lt, le or exists; an object as { equals = { … } }";
        notes.complain(
            &table.path,
            &table.location,
            "says nothing about the value",
            Some(help.into()),
        );
    }
    table.end(notes);
    tests
}

/// A value as JSON.
fn json(node: &ConfigNode) -> Value {
    match &node.kind {
        NodeKind::Bool(is) => Value::Bool(*is),
        NodeKind::Int(number) => Value::from(*number),
        NodeKind::Float(number) => Value::from(*number),
        NodeKind::Text(text) => Value::String(text.clone()),
        NodeKind::Array(items) => items.iter().map(json).collect(),
        NodeKind::Table(entries) => entries
            .iter()
            .map(|(key, node)| (key.clone(), json(node)))
            .collect(),
    }
}

/// A pattern over bytes, for the lines of a TCP dialogue.
pub(super) fn bytes_pattern(
    item: &ConfigValue,
    notes: &mut ReaderNotes,
) -> Option<regex::bytes::Regex> {
    let checked: Regex = pattern(item, notes)?.0;
    regex::bytes::RegexBuilder::new(checked.as_str())
        .size_limit(PATTERN_LIMIT)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in [
            ("512", Some(512)),
            ("64 KiB", Some(65_536)),
            ("1MiB", Some(1_048_576)),
            ("10kB", Some(10_000)),
            ("", None),
            ("KiB", None),
            ("1 furlong", None),
            ("99999999999999999999", None),
            ("18446744073709551615k", None),
        ] {
            assert_eq!(parse_size(text), expected, "{text:?}");
        }
    }

    #[test]
    fn statuses_and_ranges_a25_a26() {
        for (text, expected) in [
            ("200", Some((200, 200))),
            ("200-299", Some((200, 299))),
            ("2xx", Some((200, 299))),
            ("30a", None),
            ("299-200", None),
            ("200-299-400", None),
            ("99", None),
            ("1000", None),
            ("+20", None),
            ("xx", None),
            ("", None),
        ] {
            let got = status_range(text).map(|range| (range.low, range.high));
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn pointers_and_paths() {
        for good in ["", "/status", "/a~1b/0", "$.items[0].n", "$..x"] {
            assert!(json_place(good).is_ok(), "{good:?}");
        }
        for bad in ["status", "/a~2", "/a~", "$[", "$."] {
            assert!(json_place(bad).is_err(), "{bad:?}");
        }
    }
}
