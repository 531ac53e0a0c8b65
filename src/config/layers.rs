//! Merges files, variables and flags into one tree in which each value knows where it was written.
//!
//! The `config` crate merges. Arrays of named tables (`[[release]]`, their `[[release.probe]]`, `[[module]]`) become
//! tables by name first, so that a later layer can change one key of one of them.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use config::{ConfigError, Map, Source, Value, ValueKind};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{Diagnostic, SourceFile};
use super::source_location::SourceLocation;

/// The largest configuration file. A thousand probes take about 200 KiB.
const FILE_LIMIT: u64 = 1024 * 1024;

/// The deepest nesting of tables and arrays. Ours goes to six.
const MAX_DEPTH: usize = 24;

/// The variables that are settings start so.
pub(super) const PREFIX: &str = "LEADSMAN__";

/// Arrays of tables that are merged by name.
const BY_NAME: [&str; 5] = ["release", "probe", "module", "alert", "dependency"];

/// A key that no file can write: holds the place of the table that it stands in, one for each layer.
const MARK: char = '\0';

/// One value of the merged tree.
#[derive(Debug, Clone)]
pub(super) struct ConfigNode {
    pub(super) location: SourceLocation,
    pub(super) kind: NodeKind,
}

#[derive(Debug, Clone)]
pub(super) enum NodeKind {
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Array(Vec<ConfigNode>),
    /// In the order in which the keys were first written.
    Table(Vec<(String, ConfigNode)>),
}

impl NodeKind {
    /// For complaints: what it is.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Bool(_) => "true or false",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// Reads a file into the list, and its content as a layer. Every mistake in its form is noted.
pub(super) fn read_file(
    path: &Path,
    files: &mut Vec<SourceFile>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<ConfigLayer> {
    let file = files.len();
    let name = path.display().to_string();
    let text = read_text(path);
    files.push(SourceFile {
        name: name.clone(),
        text: text.as_ref().map_or_else(|_| String::new(), Clone::clone),
    });
    if let Err((message, help)) = text {
        let location = SourceLocation::Default;
        diagnostics.push(Diagnostic {
            path: String::new(),
            message: format!("{name}: {message}"),
            help: Some(help),
            location,
            secret: false,
        });
        return None;
    }
    let text = &files.get(file)?.text;
    let (table, errors) = DeTable::parse_recoverable(text);
    let broken = !errors.is_empty();
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let span = (span.start.min(text.len()), span.end.min(text.len()));
        let location = SourceLocation::File {
            file,
            key: span,
            value: span,
        };
        diagnostics.push(Diagnostic {
            path: String::new(),
            message: format!("not TOML: {}", error.message()),
            help: None,
            location,
            secret: false,
        });
    }
    if broken {
        return None;
    }
    let span = table.span();
    let mut builder = LayerBuilder { file, diagnostics };
    let root = builder.table(table.get_ref(), (span.start, span.end), "", 0);
    match root.kind {
        ValueKind::Table(root) => Some(ConfigLayer(root)),
        _ => None,
    }
}

fn read_text(path: &Path) -> Result<String, (String, String)> {
    let cannot = |error: std::io::Error| {
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "write one, or name another with --config".to_owned(),
            std::io::ErrorKind::IsADirectory => "name a file in it with --config".to_owned(),
            _ => "check its permissions".to_owned(),
        };
        (format!("cannot be read: {error}"), help)
    };
    let file = File::open(path).map_err(cannot)?;
    let facts = file.metadata().map_err(cannot)?;
    if facts.is_dir() {
        return Err((
            "is a directory".into(),
            "name a file in it with --config".into(),
        ));
    }
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_LIMIT {
        let help = "split it into several files with --overlay, if it really is a configuration"
            .to_owned();
        return Err(("is larger than 1 MiB".into(), help));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        (
            format!("is not UTF-8, from byte {at} on"),
            "save it as UTF-8".to_owned(),
        )
    })
}

/// One layer, ready to be merged.
#[derive(Debug, Clone)]
pub(super) struct ConfigLayer(Map<String, Value>);

impl Source for ConfigLayer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

struct LayerBuilder<'a> {
    file: usize,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl LayerBuilder<'_> {
    fn table(
        &mut self,
        table: &DeTable<'_>,
        key: (usize, usize),
        path: &str,
        depth: usize,
    ) -> Value {
        let mut map = Map::new();
        let location = SourceLocation::File {
            file: self.file,
            key,
            value: key,
        };
        map.insert(
            format!("{MARK}{}", self.file),
            Value::new(None, location.encode()),
        );
        for (name, value) in table {
            let span = (name.span().start, name.span().end);
            let inner = if path.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{path}.{}", name.get_ref())
            };
            let value = self.value(name.get_ref(), value, span, &inner, depth + 1);
            map.insert(name.get_ref().to_string(), value);
        }
        Value::new(None, map)
    }

    fn value(
        &mut self,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        key: (usize, usize),
        path: &str,
        depth: usize,
    ) -> Value {
        let span = (value.span().start, value.span().end);
        let location = SourceLocation::File {
            file: self.file,
            key,
            value: span,
        };
        let origin = location.encode();
        if depth > MAX_DEPTH {
            self.complain(path, "is nested too deeply", None, location);
            return Value::new(Some(&origin), false);
        }
        match value.get_ref() {
            DeValue::String(text) => Value::new(Some(&origin), text.to_string()),
            DeValue::Integer(number) => {
                if let Ok(number) = i64::from_str_radix(number.as_str(), number.radix()) {
                    Value::new(Some(&origin), number)
                } else {
                    self.complain(path, "is too large a number", None, location);
                    Value::new(Some(&origin), 0_i64)
                }
            }
            DeValue::Float(number) => {
                let number: f64 = number.as_str().parse().unwrap_or(f64::NAN);
                if !number.is_finite() {
                    self.complain(path, "is not a finite number", None, location);
                }
                Value::new(Some(&origin), number)
            }
            DeValue::Boolean(is) => Value::new(Some(&origin), *is),
            DeValue::Datetime(date) => {
                self.complain(
                    path,
                    "is a date",
                    Some("write it in quotes if it is meant as text"),
                    location,
                );
                Value::new(Some(&origin), date.to_string())
            }
            DeValue::Table(table) => self.table(table, key, path, depth),
            DeValue::Array(array) => {
                let is_tables = array
                    .iter()
                    .all(|item| matches!(item.get_ref(), DeValue::Table(_)));
                if BY_NAME.contains(&name) && is_tables {
                    return self.named_tables(array.iter(), path, depth);
                }
                let items: Vec<Value> = array
                    .iter()
                    .map(|item| self.value("", item, key, path, depth + 1))
                    .collect();
                Value::new(Some(&origin), items)
            }
        }
    }

    /// An array of tables as a table by their `id`, which is the `name` unless it is given.
    fn named_tables<'a, 'i: 'a>(
        &mut self,
        items: impl Iterator<Item = &'a Spanned<DeValue<'i>>>,
        path: &str,
        depth: usize,
    ) -> Value {
        let mut map = Map::new();
        let mut known = HashSet::new();
        for item in items {
            let DeValue::Table(table) = item.get_ref() else {
                continue;
            };
            let span = (item.span().start, item.span().end);
            let location = SourceLocation::File {
                file: self.file,
                key: span,
                value: span,
            };
            let text = |key: &str| match table.get(key).map(Spanned::get_ref) {
                Some(DeValue::String(text)) if !text.is_empty() => Some(text.to_string()),
                _ => None,
            };
            // Entries that are wrong are read all the same, so that what is wrong inside them shows as well.
            // What is one for many is told apart by whom it is for.
            let of_many = || Some(format!("{}:{}", text("namespace")?, text("select")?));
            let id = text("id").or_else(|| text("name")).or_else(of_many);
            // Rules of alerts need no name: nothing speaks of one of them.
            let number = known.len() + 1;
            let of_rule = path.rsplit('.').next() == Some("alert");
            let id = id.or_else(|| of_rule.then(|| format!("{number}")));
            let id = id.unwrap_or_else(|| {
                let help = format!("add name = \"…\" below [[{}]]", path_of_tables(path));
                self.complain(path, "an entry has no name", Some(&help), location.clone());
                format!("#{}", known.len() + 1)
            });
            if !known.insert(id.clone()) {
                let help = "give it another name; two releases of one name in different namespaces each take an id";
                self.complain(
                    &format!("{path}.{id}"),
                    "the name stands twice",
                    Some(help),
                    location,
                );
                continue;
            }
            let table = self.table(table, span, &format!("{path}.{id}"), depth + 1);
            map.insert(id, table);
        }
        Value::new(None, map)
    }

    fn complain(
        &mut self,
        path: &str,
        message: &str,
        help: Option<&str>,
        location: SourceLocation,
    ) {
        let help = help.map(str::to_owned);
        self.diagnostics.push(Diagnostic {
            path: path.to_owned(),
            message: message.to_owned(),
            help,
            location,
            secret: false,
        });
    }
}

/// `release.mykadoo.probe` was written `[[release.probe]]`.
fn path_of_tables(path: &str) -> String {
    path.split('.')
        .filter(|part| BY_NAME.contains(part))
        .collect::<Vec<_>>()
        .join(".")
}

/// A layer of single settings: variables or flags. `keys` are the parts of a path, as `["serve", "listen"]`.
pub(super) fn single(keys: &[String], text: &str, location: &SourceLocation) -> ConfigLayer {
    let origin = location.encode();
    let mut value = Value::new(Some(&origin), text.to_owned());
    for key in keys.iter().skip(1).rev() {
        value = Value::new(None, Map::from_iter([(key.clone(), value)]));
    }
    ConfigLayer(
        keys.first()
            .map(|key| Map::from_iter([(key.clone(), value)]))
            .unwrap_or_default(),
    )
}

/// The path that a variable means: its parts, in lower case, where they name an existing entry by that entry's name.
/// `-` and `.` cannot stand in a variable, so `_` matches them as well.
pub(super) fn keys_of_variable(name: &str, tree: &ConfigNode) -> Vec<String> {
    let parts = name.strip_prefix(PREFIX).unwrap_or(name).split("__");
    let mut node = Some(tree);
    parts
        .map(|part| {
            let part = part.to_lowercase();
            let entries = match node.map(|node| &node.kind) {
                Some(NodeKind::Table(entries)) => entries.as_slice(),
                _ => &[],
            };
            let plain = |key: &str| key.to_lowercase().replace(['-', '.'], "_");
            let found = entries.iter().find(|(key, _)| plain(key) == part);
            node = found.map(|(_, node)| node);
            found.map_or(part, |(key, _)| key.clone())
        })
        .collect()
}

/// Merges layers; later ones win.
pub(super) fn merge(layers: &[ConfigLayer]) -> Result<ConfigNode, ConfigError> {
    let builder = layers
        .iter()
        .fold(config::Config::builder(), |builder, layer| {
            builder.add_source(layer.clone())
        });
    Ok(node(builder.build()?.cache))
}

fn node(value: Value) -> ConfigNode {
    let location = value
        .origin()
        .map_or(SourceLocation::Default, SourceLocation::decode);
    let kind = match value.kind {
        ValueKind::Nil => NodeKind::Text(String::new()),
        ValueKind::Boolean(is) => NodeKind::Bool(is),
        ValueKind::I64(number) => NodeKind::Int(number),
        ValueKind::I128(number) => NodeKind::Int(i64::try_from(number).unwrap_or(i64::MAX)),
        ValueKind::U64(number) => NodeKind::Int(i64::try_from(number).unwrap_or(i64::MAX)),
        ValueKind::U128(number) => NodeKind::Int(i64::try_from(number).unwrap_or(i64::MAX)),
        ValueKind::Float(number) => NodeKind::Float(number),
        ValueKind::String(text) => NodeKind::Text(text),
        ValueKind::Array(items) => NodeKind::Array(items.into_iter().map(node).collect()),
        ValueKind::Table(table) => return table_node(table),
    };
    ConfigNode { location, kind }
}

fn table_node(table: Map<String, Value>) -> ConfigNode {
    let mut outcomes = Vec::new();
    let mut entries = Vec::new();
    for (key, value) in table {
        let value = node(value);
        if key.starts_with(MARK) {
            if let NodeKind::Text(location) = &value.kind {
                outcomes.push(SourceLocation::decode(location));
            }
        } else {
            entries.push((key, value));
        }
    }
    entries.sort_by(|(a, one), (b, other)| (&one.location, a).cmp(&(&other.location, b)));
    let location = outcomes
        .into_iter()
        .min()
        .or_else(|| entries.first().map(|(_, first)| first.location.clone()));
    ConfigNode {
        location: location.unwrap_or(SourceLocation::Default),
        kind: NodeKind::Table(entries),
    }
}
