//! Reads values out of the merged tree: typed, bounded, and with every error noted instead of only the first returned.
//!
//! A getter that finds an error notes it and returns a harmless value, so that reading continues. The settings are then
//! not used, since one error is enough to refuse all.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use super::dependency::PendingNeed;
use super::diagnostics::Diagnostic;
use super::layers::{ConfigNode, NodeKind};
use super::named_files::NamedFile;
use super::source_location::SourceLocation;

/// One setting in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// Its key, as `release.mykadoo.probe.db.timeout`.
    pub path: String,
    /// Its value as one would write it; secrets as `<secret>`.
    pub value: String,
    /// Where it was written.
    pub location: SourceLocation,
}

/// Keys whose values must never be shown.
const SECRET_KEYS: [&str; 3] = ["password", "bearer_token", "signing_key"];

/// Maximum number of values in a list, or of rules of one kind: more than anyone writes by hand.
const MAX_ITEMS: usize = 100;

/// What is noted while reading.
#[derive(Debug, Default)]
pub(super) struct ReaderNotes {
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) hints: Vec<Diagnostic>,
    pub(super) in_force: Vec<EffectiveSetting>,
    /// What probes need, as it was written.
    pub(super) needs: Vec<PendingNeed>,
    /// By key and file, each once: what is written once for many releases may name a file for each.
    pub(super) named_files: BTreeMap<(String, String), NamedFile>,
}

impl ReaderNotes {
    pub(super) fn diagnostic(
        &mut self,
        item: &ConfigValue,
        message: impl Display,
        help: impl Display,
    ) {
        self.complain(
            &item.path,
            &item.node.location,
            message,
            Some(help.to_string()),
        );
    }

    pub(super) fn complain(
        &mut self,
        path: &str,
        location: &SourceLocation,
        message: impl Display,
        help: Option<String>,
    ) {
        let message = message.to_string();
        self.diagnostics.push(Diagnostic {
            path: path.to_owned(),
            message,
            help,
            location: location.clone(),
            secret: false,
        });
    }

    pub(super) fn hint(
        &mut self,
        path: &str,
        location: &SourceLocation,
        message: impl Display,
        help: impl Display,
    ) {
        let (message, help) = (message.to_string(), Some(help.to_string()));
        self.hints.push(Diagnostic {
            path: path.to_owned(),
            message,
            help,
            location: location.clone(),
            secret: false,
        });
    }

    /// Settings that were not written, with their defaults.
    pub(super) fn defaults(&mut self, table: &str, built_in: &[(&str, &dyn Display)]) {
        for (key, value) in built_in {
            let path = if table.is_empty() {
                (*key).to_owned()
            } else {
                format!("{table}.{key}")
            };
            let below = format!("{path}.");
            // Those of one table stand together at the end.
            let written = self
                .in_force
                .iter()
                .rev()
                .take_while(|setting| setting.path.starts_with(table));
            if !written
                .into_iter()
                .any(|setting| setting.path == path || setting.path.starts_with(&below))
            {
                self.holds(&path, value, &SourceLocation::Default);
            }
        }
    }

    pub(super) fn holds(&mut self, path: &str, value: impl Display, location: &SourceLocation) {
        self.in_force.push(EffectiveSetting {
            path: path.to_owned(),
            value: value.to_string(),
            location: location.clone(),
        });
    }
}

/// A value with its path.
#[derive(Debug, Clone)]
pub(super) struct ConfigValue {
    pub(super) path: String,
    pub(super) node: ConfigNode,
}

impl ConfigValue {
    /// What it says as text; `None` when it is no text.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.node.kind {
            NodeKind::Text(text) => Some(text),
            NodeKind::Bool(_)
            | NodeKind::Int(_)
            | NodeKind::Float(_)
            | NodeKind::Array(_)
            | NodeKind::Table(_) => None,
        }
    }
}

/// A table that is being read. Keys that no reader takes are errors, see [`ConfigTable::end`].
#[derive(Debug)]
pub(super) struct ConfigTable {
    pub(super) path: String,
    pub(super) location: SourceLocation,
    entries: Vec<(String, ConfigNode)>,
    known: Vec<&'static str>,
}

impl ConfigTable {
    /// Takes an item apart; a variable or flag may hold a table as text.
    pub(super) fn of(item: ConfigValue, notes: &mut ReaderNotes) -> Self {
        let ConfigValue { path, node } = unfolded(item);
        let entries = match node.kind {
            NodeKind::Table(entries) => entries,
            other => {
                let message = format!("is {}", other.name());
                notes.complain(
                    &path,
                    &node.location,
                    message,
                    Some("write a table, as { … }".into()),
                );
                Vec::new()
            }
        };
        Self {
            path,
            location: node.location,
            entries,
            known: Vec::new(),
        }
    }

    /// A table without anything, for what was not written.
    pub(super) fn empty(path: String) -> Self {
        Self {
            path,
            location: SourceLocation::Default,
            entries: Vec::new(),
            known: Vec::new(),
        }
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Takes a value out; the key is known from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<ConfigValue> {
        self.known.push(key);
        let at = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, node) = self.entries.remove(at);
        Some(ConfigValue {
            path: self.path_of(key),
            node,
        })
    }

    /// Where a key stands, without taking it.
    pub(super) fn location_of(&self, key: &str) -> Option<SourceLocation> {
        self.entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node.location.clone())
    }

    /// All that is left, for tables whose keys are names.
    pub(super) fn rest(&mut self) -> Vec<(String, ConfigValue)> {
        let entries = std::mem::take(&mut self.entries);
        entries
            .into_iter()
            .map(|(key, node)| {
                (
                    key.clone(),
                    ConfigValue {
                        path: self.path_of(&key),
                        node,
                    },
                )
            })
            .collect()
    }

    /// The same for a table of rules, of which there are not many.
    pub(super) fn rules(&mut self, notes: &mut ReaderNotes) -> Vec<(String, ConfigValue)> {
        let mut rules = self.rest();
        if rules.len() > MAX_ITEMS {
            too_many(&self.path, &self.location, rules.len(), notes);
            rules.truncate(MAX_ITEMS);
        }
        rules
    }

    /// Notes an error for every key that no reader took, and names the nearest known one.
    pub(super) fn end(self, notes: &mut ReaderNotes) {
        for (key, node) in &self.entries {
            let near = nearest(key, &self.known);
            let help = match near {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here are {}", self.known.join(", ")),
            };
            notes.diagnostics.push(Diagnostic {
                path: self.path_of(key),
                message: "unknown key".to_owned(),
                help: Some(help),
                location: node.location.of_key(),
                // What stands behind a misspelt `password` is one.
                secret: near.is_some_and(|near| SECRET_KEYS.contains(&near)),
            });
        }
    }

    /// A text.
    pub(super) fn text(
        &mut self,
        key: &'static str,
        notes: &mut ReaderNotes,
    ) -> Option<(String, ConfigValue)> {
        let item = self.take(key)?;
        if let Some(text) = item.text() {
            let text = text.to_owned();
            notes.holds(&item.path, format!("{text:?}"), &item.node.location);
            if key.ends_with("_file") {
                let file = NamedFile::of(item.path.clone(), &text, item.node.location.clone());
                notes
                    .named_files
                    .insert((item.path.clone(), text.clone()), file);
            }
            Some((text, item))
        } else {
            notes.diagnostic(
                &item,
                format!("is {}", item.node.kind.name()),
                "write a text in quotes",
            );
            None
        }
    }

    /// A duration between two bounds, both included.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        (least, most): (Duration, Duration),
        notes: &mut ReaderNotes,
    ) -> Option<Duration> {
        let item = self.take(key)?;
        let right = format!(
            "write a duration from {} to {}, as {key} = \"{}\"",
            humantime::format_duration(least),
            humantime::format_duration(most),
            humantime::format_duration(example(least, most)),
        );
        let text = match &item.node.kind {
            NodeKind::Text(text) => text.clone(),
            NodeKind::Int(number) => {
                notes.diagnostic(
                    &item,
                    "is a number without a unit",
                    format!("{key} = \"{number}s\" if it is meant as seconds"),
                );
                return None;
            }
            other => {
                notes.diagnostic(&item, format!("is {}", other.name()), right);
                return None;
            }
        };
        match humantime::parse_duration(text.trim()) {
            Err(error) => {
                notes.diagnostic(&item, format!("{text:?} is no duration: {error}"), right);
            }
            Ok(span) if span < least => {
                notes.diagnostic(&item, format!("{text:?} is too short"), right);
            }
            Ok(span) if span > most => {
                notes.diagnostic(&item, format!("{text:?} is too long"), right);
            }
            Ok(span) => {
                notes.holds(
                    &item.path,
                    format!("\"{}\"", humantime::format_duration(span)),
                    &item.node.location,
                );
                return Some(span);
            }
        }
        None
    }

    /// A whole number between two bounds, both included.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        (least, most): (i64, i64),
        notes: &mut ReaderNotes,
    ) -> Option<i64> {
        let item = self.take(key)?;
        let number = match &item.node.kind {
            NodeKind::Int(number) => Some(*number),
            NodeKind::Text(text) if item.node.location.is_text() => text.trim().parse().ok(),
            NodeKind::Text(_)
            | NodeKind::Bool(_)
            | NodeKind::Float(_)
            | NodeKind::Array(_)
            | NodeKind::Table(_) => None,
        };
        match number {
            Some(number) if (least..=most).contains(&number) => {
                notes.holds(&item.path, number, &item.node.location);
                Some(number)
            }
            Some(_) | None => {
                let right = format!("write a whole number from {least} to {most}");
                let message = match number {
                    Some(number) => format!("{number} is out of range"),
                    None => format!("is {}", item.node.kind.name()),
                };
                notes.diagnostic(&item, message, right);
                None
            }
        }
    }

    /// true or false.
    pub(super) fn switch(&mut self, key: &'static str, notes: &mut ReaderNotes) -> Option<bool> {
        let item = self.take(key)?;
        let is = match &item.node.kind {
            NodeKind::Bool(is) => Some(*is),
            NodeKind::Text(text) if item.node.location.is_text() => text.trim().parse().ok(),
            NodeKind::Text(_)
            | NodeKind::Int(_)
            | NodeKind::Float(_)
            | NodeKind::Array(_)
            | NodeKind::Table(_) => None,
        };
        match is {
            Some(is) => notes.holds(&item.path, is, &item.node.location),
            None => notes.diagnostic(
                &item,
                format!("is {}", item.node.kind.name()),
                "write true or false, without quotes",
            ),
        }
        is
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &mut self,
        key: &'static str,
        words: &[(&str, T)],
        notes: &mut ReaderNotes,
    ) -> Option<T> {
        let (text, item) = self.text(key, notes)?;
        let found = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
            notes.diagnostic(
                &item,
                format!("{text:?} is not known"),
                format!("write {}", all.join(" or ")),
            );
        }
        found
    }

    /// A list of not too many values; a single value stands for a list of one.
    pub(super) fn list(
        &mut self,
        key: &'static str,
        notes: &mut ReaderNotes,
    ) -> Option<Vec<ConfigValue>> {
        let ConfigValue { path, node } = unfolded(self.take(key)?);
        let ConfigNode { location, kind } = node;
        let NodeKind::Array(mut items) = kind else {
            let node = ConfigNode { location, kind };
            return Some(vec![ConfigValue { path, node }]);
        };
        if items.len() > MAX_ITEMS {
            too_many(&path, &location, items.len(), notes);
            items.truncate(MAX_ITEMS);
        }
        let item = |node| ConfigValue {
            path: path.clone(),
            node,
        };
        Some(items.into_iter().map(item).collect())
    }

    /// Whether a key was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(name, _)| name == key)
    }
}

fn too_many(path: &str, location: &SourceLocation, count: usize, notes: &mut ReaderNotes) {
    let help = format!("write at most {MAX_ITEMS}; a pattern can join several with |");
    notes.complain(path, location, format!("has {count} entries"), Some(help));
}

/// A variable or flag that holds a list or a table, as TOML writes it on one line.
pub(super) fn unfolded(item: ConfigValue) -> ConfigValue {
    let Some(text) = item
        .text()
        .filter(|text| item.node.location.is_text() && text.trim_start().starts_with(['[', '{']))
    else {
        return item;
    };
    let Ok(value) = toml::from_str::<toml::Table>(&format!("value = {text}")) else {
        return item;
    };
    let location = item.node.location.clone();
    match value.get("value") {
        Some(value) => ConfigValue {
            path: item.path.clone(),
            node: from_toml(value, &location),
        },
        None => item,
    }
}

fn from_toml(value: &toml::Value, location: &SourceLocation) -> ConfigNode {
    let kind = match value {
        toml::Value::String(text) => NodeKind::Text(text.clone()),
        toml::Value::Integer(number) => NodeKind::Int(*number),
        toml::Value::Float(number) => NodeKind::Float(*number),
        toml::Value::Boolean(is) => NodeKind::Bool(*is),
        toml::Value::Datetime(date) => NodeKind::Text(date.to_string()),
        toml::Value::Array(items) => {
            NodeKind::Array(items.iter().map(|item| from_toml(item, location)).collect())
        }
        toml::Value::Table(table) => NodeKind::Table(
            table
                .iter()
                .map(|(key, value)| (key.clone(), from_toml(value, location)))
                .collect(),
        ),
    };
    ConfigNode {
        location: location.clone(),
        kind,
    }
}

/// The known word that is most like this one, if any is near.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|other| (strsim::jaro_winkler(word, other), *other))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, other)| other)
}

/// A round duration within the bounds, to show how one is written.
fn example(least: Duration, most: Duration) -> Duration {
    [5, 300, 1, 86_400]
        .map(Duration::from_secs)
        .into_iter()
        .find(|span| (least..=most).contains(span))
        .unwrap_or(least)
}
