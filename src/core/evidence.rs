//! Evidence about the cluster that is stored with a verdict, for people who investigate it later.
//!
//! All of it is bounded and went through [`redacted`]. That recognizes secrets by their form, so it is a second line of
//! defence: the values of Secret objects are never collected at all.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Bounds of a bundle.
pub const MAX_PODS: usize = 30;
/// Events that are kept, the newest.
pub const MAX_EVENTS: usize = 50;
/// Containers whose logs are kept.
pub const MAX_LOGS: usize = 8;
/// Lines of each log, the newest.
pub const MAX_LINES: usize = 100;
/// Characters of one line or message.
pub const MAX_TEXT: usize = 400;
/// Lines of the difference between the values of two revisions.
pub const MAX_CHANGES: usize = 100;

/// The bundle.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EvidenceBundle {
    /// Pods, those in trouble first.
    pub pods: Vec<PodEvidence>,
    /// What the cluster said of the release's objects, the newest last.
    pub events: Vec<EventEvidence>,
    /// Logs of failing containers.
    pub logs: Vec<LogEvidence>,
    /// The workloads' rollouts, and their autoscalers, in words.
    pub workloads: Vec<String>,
    /// Images of both revisions, where they differ, as `Deployment web: web:1 -> web:2`.
    pub images: Vec<String>,
    /// The user's values of both revisions, where they differ, as `api.replicas: 3 -> 5`.
    pub values: Vec<String>,
    /// What could not be collected, and why.
    pub missing: Vec<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodEvidence {
    /// Its name.
    pub name: String,
    /// The revision that it belongs to.
    pub revision: u32,
    /// Its node.
    pub node: String,
    /// What it does, as `not ready, CrashLoopBackOff, 3 restarts, last end: Error (exit code 1)`.
    pub state: String,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventEvidence {
    /// Of which object, as `Pod web-1`.
    pub object: String,
    /// As `BackOff`.
    pub reason: String,
    /// In the cluster's words.
    pub message: String,
    /// How often.
    pub count: u32,
    /// When last, in RFC 3339; empty where the cluster does not say.
    pub at: String,
}

/// The log of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEvidence {
    /// Its pod.
    pub pod: String,
    /// Its name.
    pub container: String,
    /// Whether it is of the run before, which crashed.
    pub previous: bool,
    /// The last lines.
    pub lines: Vec<String>,
}

/// What is put in place of a secret.
const HIDDEN: &str = "***";

/// What stands in front of a secret is kept, as the group `front`.
static SECRETS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    // A value: quoted, quoted inside another text, or up to where a list or a tree goes on.
    const VALUE: &str = r#"(?:"(?:[^"\\]|\\.)*(?:"|$)|'[^']*(?:'|$)|\\+["'][^"'\\]*(?:\\+["'])?|(?:bearer|basic)\s+\S+|[^\s,;&}\]]+)"#;
    // A name that tells that a secret follows.
    const NAME: &str = r"[a-z0-9_.-]*(?:passw(?:or)?d|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|authorization|cookie|signature)[a-z0-9_.-]*";
    const QUOTE: &str = r#"\\*["']?"#;
    [
        // User and password of a URL, or a token alone. Passwords may hold `/` and `@`, so the last `@` counts.
        r#"(?i)(?<front>[a-z][a-z0-9+.-]*://)[^/\s:@"'<>]*:[^\s"'<>]*@"#.to_owned(),
        r#"(?i)(?<front>[a-z][a-z0-9+.-]*://)[^/\s"'<>]+@"#.to_owned(),
        // A variable of a container, as in JSON, YAML, or a dump of Go.
        format!(
            r"(?i)(?<front>\bname{QUOTE}\s*[:=]\s*{QUOTE}{NAME}{QUOTE}\s*,?\s*{QUOTE}value{QUOTE}\s*[:=]\s*){VALUE}"
        ),
        // What stands behind a telling name, quoted or not.
        format!(r"(?i)(?<front>{NAME}{QUOTE}\s*[:=]\s*){VALUE}"),
        // Headers of HTTP.
        r"(?i)(?<front>\b(?:bearer|basic)\s+)[a-z0-9._~+/=-]{8,}".to_owned(),
        // Tokens that tell their kind.
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)?".to_owned(),
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b".to_owned(),
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{15,}|xox[abeoprs]-[A-Za-z0-9-]{8,}|sk_(?:live|test)_[A-Za-z0-9]{10,}|sk-[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{20,})".to_owned(),
        r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)".to_owned(),
    ]
    .iter()
    .filter_map(|pattern| Regex::new(pattern).ok())
    .collect()
});

static TELLING: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?i)passw(or)?d|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private|credential|auth|cookie|cert|dsn|connection",
    )
    .ok()
});

fn is_telling(name: &str) -> bool {
    TELLING
        .as_ref()
        .is_none_or(|telling| telling.is_match(name))
}

/// A text without what looks like a secret, at most [`MAX_TEXT`] long.
pub fn redacted(text: &str) -> String {
    redacted_to(text, MAX_TEXT)
}

/// The same with another bound, in characters.
pub fn redacted_to(text: &str, most: usize) -> String {
    // Cut first, so that a hostile line costs no more than a long one; some more than is kept, so that what is cut in
    // the middle is still known.
    let mut text: String = text.chars().take(4 * most).collect();
    for pattern in SECRETS.iter() {
        text = pattern
            .replace_all(&text, |found: &regex::Captures<'_>| {
                let front = found.name("front").map_or("", |front| front.as_str());
                let back = if front.ends_with("://") { "@" } else { "" };
                format!("{front}{HIDDEN}{back}")
            })
            .into_owned();
    }
    if text.chars().count() > most {
        text = text.chars().take(most).collect();
        text.push('…');
    }
    text
}

/// The last [`MAX_LINES`] lines of a log. A key may span lines that look harmless one by one, and the log may start
/// within one.
pub fn redacted_lines(log: &str) -> Vec<String> {
    let outcomes =
        |line: &str, mark: &str| line.contains(mark) && line.contains("PRIVATE KEY-----");
    let mut shown: Vec<String> = Vec::new();
    let mut is_inside = false;
    for line in log.lines() {
        let begins = outcomes(line, "-----BEGIN ");
        let ends = outcomes(line, "-----END ");
        match (is_inside, begins, ends) {
            (_, true, _) => {
                shown.push(redacted(line));
                is_inside = !ends;
            }
            (true, false, _) => is_inside = !ends,
            (false, false, true) => {
                let part = shown.iter().rposition(|line| !looks_encoded(line));
                shown.truncate(part.map_or(0, |last| last + 1));
                shown.push(HIDDEN.to_owned());
            }
            (false, false, false) => shown.push(redacted(line)),
        }
    }
    let surplus = shown.len().saturating_sub(MAX_LINES);
    shown.drain(..surplus);
    shown
}

/// Whether a line looks like base64, of which keys are made.
fn looks_encoded(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty()
        && line
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
}

/// Where two trees of values differ, a line for each place. What stands at a place with a telling name is hidden.
pub fn changes(before: &Value, after: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare("", (before, after), false, 0, &mut found);
    found.truncate(MAX_CHANGES);
    found
}

/// Deeper trees are compared as a whole.
const MAX_DEPTH: usize = 40;

fn compare(
    path: &str,
    (before, after): (&Value, &Value),
    is_secret: bool,
    depth: usize,
    found: &mut Vec<String>,
) {
    if before == after || found.len() > MAX_CHANGES {
        return;
    }
    if depth < MAX_DEPTH
        && let (Value::Object(old), Value::Object(new)) = (before, after)
    {
        let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let inner = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let value = |tree: &serde_json::Map<String, Value>| {
                tree.get(key).cloned().unwrap_or(Value::Null)
            };
            let is_secret = is_secret || is_named_secret(old, key) || is_named_secret(new, key);
            let values = (value(old), value(new));
            compare(&inner, (&values.0, &values.1), is_secret, depth + 1, found);
        }
        return;
    }
    let is_secret = is_secret || is_telling(path);
    let shown = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        _ if is_secret => HIDDEN.to_owned(),
        // A tree that appears or goes away as a whole may hold anything below it.
        Value::Object(_) | Value::Array(_) => hidden_inside(value).to_string(),
        value => value.to_string(),
    };
    found.push(redacted(&format!(
        "{path}: {} -> {}",
        shown(before),
        shown(after)
    )));
}

/// Whether a field is the value of a variable with a telling name, as in `{"name": "DB_PASSWORD", "value": …}`.
fn is_named_secret(fields: &serde_json::Map<String, Value>, key: &str) -> bool {
    const NAMES: [&str; 3] = ["name", "key", "Name"];
    const VALUES: [&str; 5] = ["value", "val", "default", "data", "content"];
    VALUES.contains(&key.to_ascii_lowercase().as_str())
        && NAMES
            .iter()
            .filter_map(|name| fields.get(*name)?.as_str())
            .any(is_telling)
}

/// The same tree with the values of telling names hidden.
fn hidden_inside(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let hidden = fields.iter().map(|(key, value)| {
                let value = if is_telling(key) || is_named_secret(fields, key) {
                    HIDDEN.into()
                } else {
                    hidden_inside(value)
                };
                (key.clone(), value)
            });
            Value::Object(hidden.collect())
        }
        Value::Array(items) => items.iter().map(hidden_inside).collect(),
        value => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        for (text, shown) in [
            (
                "postgres://app:hunter2@db:5432/app refused",
                "postgres://***@db:5432/app refused",
            ),
            ("https://:hunter2@host/", "https://***@host/"),
            ("password=hunter2 user=bob", "password=*** user=bob"),
            (
                "DB_PASSWORD: \"hunter2 with blanks\", a",
                "DB_PASSWORD: ***, a",
            ),
            (r#"{"apiKey":"hunter2","n":1}"#, r#"{"apiKey":***,"n":1}"#),
            ("Authorization: Bearer abcdefghijkl", "Authorization: ***"),
            ("sent bearer abcdefghijkl", "sent bearer ***"),
            ("jwt eyJhbGciOiJI.eyJzdWIiOiIx.abc", "jwt ***"),
            ("key AKIAABCDEFGHIJKLMNOP used", "key *** used"),
            ("ghp_abcdefghijklmnopqrstuvwxyz", "***"),
            ("-----BEGIN RSA PRIVATE KEY----- MIIE", "***"),
            ("Set-Cookie: session=abc; Path=/", "Set-Cookie: ***; Path=/"),
        ] {
            assert_eq!(redacted(text), shown);
        }
        for plain in [
            "GET /api/health 503",
            "connection to db:5432 refused",
            "3 restarts at 10:00:00",
        ] {
            assert_eq!(redacted(plain), plain);
        }
    }

    #[test]
    fn whoever_a_url_names_is_hidden() {
        for (text, shown) in [
            ("https://TOKEN@host/path", "https://***@host/path"),
            ("amqp://app:hun/ter@2@mq:5672/v", "amqp://***@mq:5672/v"),
            ("a https://u:hunter2@h/ b", "a https://***@h/ b"),
            (
                r#"{"url":"redis://:hunter2@r"}"#,
                r#"{"url":"redis://***@r"}"#,
            ),
            ("https://host/path", "https://host/path"),
            ("https://host/@scope/pkg", "https://host/@scope/pkg"),
            ("mail a@b.c", "mail a@b.c"),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }

    #[test]
    fn a_variable_with_a_telling_name_is_hidden_wherever_it_stands() {
        for text in [
            r#"{"name":"DB_PASSWORD","value":"hunter2"}"#,
            r#"EnvVar{Name:"DB_PASSWORD", Value:"hunter2", ValueFrom:nil}"#,
            r#"{\"name\":\"DB_PASSWORD\",\"value\":\"hunter2\"}"#,
            r#"{\"apiKey\": \"hunter2\"}"#,
            r#"password: "hun\"hunter2""#,
            "- name: DB_PASSWORD value: hunter2",
            "MYSQL_PWD=hunter2",
        ] {
            assert!(!redacted(text).contains("hunter2"), "{}", redacted(text));
        }
        let env = |value: &str| {
            json!({"api": {
                "env": [{"name": "DB_PASSWORD", "value": value}, {"name": "MODE", "value": value.len()}],
                "deep": {"more": [[{"key": "apiKey", "value": value}]]},
                "one": {"name": "SESSION_TOKEN", "value": value},
            }})
        };
        let found = changes(&env("hunter2"), &env("hunter3!")).join("\n");
        assert!(!found.contains("hunter"), "{found}");
        assert!(
            found.contains("MODE") && found.contains("DB_PASSWORD"),
            "{found}"
        );
        let appears = changes(&json!({}), &env("hunter2")).join("\n");
        assert!(!appears.contains("hunter"), "{appears}");
    }

    #[test]
    fn a_key_over_several_lines_of_a_log_is_hidden() {
        let log = "begins\n-----BEGIN PRIVATE KEY-----\nMIIEhunter2AAAA\nBBBB==\n-----END PRIVATE KEY-----\ngoes on\n";
        assert_eq!(redacted_lines(log), ["begins", "***", "goes on"]);
        let begun_before = "MIIEhunter2AAAA\nBBBB==\n-----END RSA PRIVATE KEY-----\ngoes on";
        assert_eq!(redacted_lines(begun_before), ["***", "goes on"]);
        let cut = "begins\n-----BEGIN EC PRIVATE KEY-----\nMIIEhunter2AAAA";
        assert_eq!(redacted_lines(cut), ["begins", "***"]);
        let certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
        assert_eq!(redacted_lines(certificate).len(), 3);
        let many = "line\n".repeat(10 * MAX_LINES);
        assert_eq!(redacted_lines(&many).len(), MAX_LINES);
    }

    #[test]
    fn a_line_has_a_bound() {
        let long = redacted(&"a".repeat(1_000_000));
        assert!(long.chars().count() <= MAX_TEXT + 1);
        // A secret that begins before the bound and ends behind it.
        let text = format!(
            "{} password={}",
            "x".repeat(MAX_TEXT - 15),
            "hunter2".repeat(50)
        );
        assert!(!redacted(&text).contains("hunter2"), "{}", redacted(&text));
    }

    #[test]
    fn values_that_differ_are_named_and_those_with_telling_names_are_hidden() {
        let before = json!({"api": {"replicas": 3, "image": "a:1"}, "db": {"password": "hunter2"}, "same": [1]});
        let after = json!({"api": {"replicas": 5, "image": "a:1"}, "db": {"password": "hunter3"}, "same": [1], "new": {"token": "hunter4", "on": true}});
        assert_eq!(
            changes(&before, &after),
            [
                "api.replicas: 3 -> 5",
                "db.password: *** -> ***",
                r#"new: none -> {"on":true,"token":***}"#,
            ]
        );
        assert!(changes(&before, &before).is_empty());
    }

    #[test]
    fn the_difference_of_values_has_a_bound() {
        let many = |value: u32| -> Value {
            (0..10_000)
                .map(|n| (format!("k{n}"), json!(value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        assert_eq!(changes(&many(1), &many(2)).len(), MAX_CHANGES);
        let mut deep = json!(1);
        for _ in 0..60 {
            deep = json!({ "a": deep });
        }
        assert_eq!(changes(&deep, &json!(2)).len(), 1);
    }
}
