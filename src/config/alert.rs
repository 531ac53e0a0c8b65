//! `[[release.alert]]`: which alerts of Alertmanager are evidence about a release, and how much each counts.

use regex::RegexBuilder;

use super::settings::{AlertRule, AlertWeight};
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use super::values::why;
use crate::core::probe_result::expect::Pattern;

/// Rules of one release.
const MAX_RULES: usize = 32;

const WEIGHTS: [(&str, AlertWeight); 3] = [
    ("note", AlertWeight::Note),
    ("inconclusive", AlertWeight::Inconclusive),
    ("reject", AlertWeight::Reject),
];

/// Reads the rules, in the order of the file.
pub(super) fn alerts(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Vec<AlertRule> {
    let path = table.path_of("alert");
    let location = table.location.clone();
    let written = table
        .take("alert")
        .map_or_else(Vec::new, |item| ConfigTable::of(item, notes).rest());
    if written.len() > MAX_RULES {
        let message = format!("has {} entries", written.len());
        notes.complain(
            &path,
            &location,
            message,
            Some(format!("write at most {MAX_RULES}")),
        );
    }
    written
        .into_iter()
        .filter_map(|(_, item)| rule(item, notes))
        .collect()
}

fn rule(item: ConfigValue, notes: &mut ReaderNotes) -> Option<AlertRule> {
    let mut table = ConfigTable::of(item, notes);
    let path = table.path.clone();
    let location = table.location.clone();
    for key in ["id", "name"] {
        table.take(key);
    }
    let weight = table.word("weight", &WEIGHTS, notes).unwrap_or_default();
    notes.defaults(&path, &[("weight", &"\"inconclusive\"")]);
    let matched = table.take("match");
    table.end(notes);
    let Some(matched) = matched else {
        let help = "add match = { alertname = \"…\" }".to_owned();
        notes.complain(&path, &location, "matches nothing", Some(help));
        return None;
    };
    let mut labels = Vec::new();
    for (name, item) in ConfigTable::of(matched, notes).rest() {
        let Some(text) = item.text() else {
            notes.diagnostic(
                &item,
                "is no text",
                "write the label's value, or a regular expression",
            );
            continue;
        };
        // As Alertmanager's own =~: the whole value.
        match RegexBuilder::new(&format!("^(?:{text})$"))
            .size_limit(1 << 20)
            .build()
        {
            Ok(regex) => {
                notes.holds(&item.path, format!("{text:?}"), &item.node.location);
                labels.push((name, Pattern(regex)));
            }
            Err(error) => notes.diagnostic(
                &item,
                format!("{text:?} is no regular expression"),
                why(&error),
            ),
        }
    }
    if labels.is_empty() {
        let help =
            "write match = { alertname = \"…\" }; one that matches everything is no evidence"
                .to_owned();
        notes.complain(&path, &location, "matches every alert", Some(help));
        return None;
    }
    Some(AlertRule { labels, weight })
}
