//! Reads `probes.toml`, overlays, variables and flags into valid settings.
//!
//! Layers, later ones win: defaults, the file, the overlays, `LEADSMAN__…` variables, flags. All errors are shown at
//! once, each with its place; a hint is not an error.
//!
//! Invariants:
//! - [`Settings`] need no further checks;
//! - no secret is part of a message, of [`EffectiveSetting`], or of `Debug`.

mod alert;
mod alertmanager;
mod analysis;
mod cluster_kind;
mod combinations;
mod dependency;
mod diagnostics;
mod expect;
mod kubernetes;
mod layers;
mod messages;
mod named_files;
mod objective;
mod probe_http;
mod probe_kind;
mod request_counts;
mod rollback;
mod select;
mod service;
pub mod settings;
mod source_location;
mod tables;
pub mod target;
mod transport;
mod value_reader;
mod values;

use std::path::PathBuf;

pub use diagnostics::{Diagnostic, Diagnostics, SourceFile};
pub use named_files::{FileContent, NamedFile};
pub use settings::{DiscoveredRelease, Settings};
pub use source_location::SourceLocation;
pub use target::Target;
pub use value_reader::EffectiveSetting;

use layers::{ConfigNode, NodeKind, PREFIX};
use value_reader::{ConfigValue, ReaderNotes};

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The configuration and its overlays; later ones win.
    pub files: Vec<PathBuf>,
    /// Names and values; those whose names start with `LEADSMAN__` are settings.
    pub environment: Vec<(String, String)>,
    /// Key paths (as `release.mykadoo.base_url`) and values.
    pub flags: Vec<(String, String)>,
    /// The cluster's releases that a selector matches.
    pub discovered: Vec<DiscoveredRelease>,
}

/// A configuration without mistakes.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What to do.
    pub settings: Settings,
    /// What is right, but worth a word; each in one line.
    pub hints: Vec<String>,
    /// Every setting that was read, in the order of reading, and where each came from.
    pub in_force: Vec<EffectiveSetting>,
    /// The files, for the places in `in_force`.
    pub files: Vec<SourceFile>,
}

impl Loaded {
    /// What is wrong with the settings after all, in the form of every other mistake.
    pub fn diagnostics(&self, list: Vec<Diagnostic>) -> Diagnostics {
        Diagnostics {
            files: self.files.clone(),
            list,
        }
    }

    /// Where a setting was written, in words: "probes.toml:12", "LEADSMAN__SERVE__LISTEN", "flag", "default".
    pub fn place_name(&self, location: &SourceLocation) -> String {
        match location {
            SourceLocation::File { file, value, .. } => {
                let source = self.files.get(*file);
                let before = source
                    .and_then(|source| source.text.get(..value.0))
                    .unwrap_or("");
                let name = source.map_or("", |source| source.name.as_str());
                format!("{name}:{}", before.matches('\n').count() + 1)
            }
            SourceLocation::Variable(name) => name.clone(),
            SourceLocation::Flag(_) => "flag".to_owned(),
            SourceLocation::Default => "default".to_owned(),
        }
    }
}

/// Reads all layers.
///
/// # Errors
/// Every mistake that was found; then nothing counts.
pub fn load(sources: &Sources) -> Result<Loaded, Diagnostics> {
    let mut files = Vec::new();
    let mut notes = ReaderNotes::default();
    let mut layers: Vec<_> = sources
        .files
        .iter()
        .filter_map(|path| layers::read_file(path, &mut files, &mut notes.diagnostics))
        .collect();
    // What stands in variables is compared with names from the files, so those are merged first.
    let from_files = merged(&layers, &mut notes);
    for (name, value) in sources
        .environment
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
    {
        let keys = layers::keys_of_variable(name, &from_files);
        add_single(
            &keys,
            value,
            &SourceLocation::Variable(name.clone()),
            &from_files,
            &mut layers,
            &mut notes,
        );
    }
    for (path, value) in &sources.flags {
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        add_single(
            &keys,
            value,
            &SourceLocation::Flag(path.clone()),
            &from_files,
            &mut layers,
            &mut notes,
        );
    }
    let broken = !notes.diagnostics.is_empty();
    let root = ConfigValue {
        path: String::new(),
        node: merged(&layers, &mut notes),
    };
    // A file that could not be read at all would only bring complaints about what is missing.
    let settings = (!broken || files.len() == layers.len())
        .then(|| tables::settings(root, &sources.discovered, &mut notes));
    match settings {
        Some(settings) if notes.diagnostics.is_empty() => {
            let hints = notes.hints.iter().map(one_line).collect();
            Ok(Loaded {
                settings,
                hints,
                in_force: notes.in_force,
                files,
            })
        }
        Some(_) | None => {
            let mut list = notes.diagnostics;
            list.sort_by(|a, b| a.location.cmp(&b.location));
            list.dedup();
            Err(Diagnostics { files, list })
        }
    }
}

/// What holds when nothing is written: defaults and the built-in modules, and nothing to probe.
pub fn built_in() -> Settings {
    let node = ConfigNode {
        location: SourceLocation::Default,
        kind: NodeKind::Table(Vec::new()),
    };
    let root = ConfigValue {
        path: String::new(),
        node,
    };
    // The one complaint is that there is nothing to probe.
    tables::settings(root, &[], &mut ReaderNotes::default())
}

fn merged(layers: &[layers::ConfigLayer], notes: &mut ReaderNotes) -> ConfigNode {
    layers::merge(layers).unwrap_or_else(|error| {
        notes.complain(
            "",
            &SourceLocation::Default,
            format!("the layers do not fit together: {error}"),
            None,
        );
        ConfigNode {
            location: SourceLocation::Default,
            kind: NodeKind::Table(Vec::new()),
        }
    })
}

/// A variable or flag as a layer of its own. One for an entry that no file names is a mistake: it would make a release
/// out of a misspelt word.
fn add_single(
    keys: &[String],
    value: &str,
    location: &SourceLocation,
    tree: &ConfigNode,
    layers: &mut Vec<layers::ConfigLayer>,
    notes: &mut ReaderNotes,
) {
    let path = keys.join(".");
    let mut node = Some(tree);
    for (index, key) in keys.iter().enumerate() {
        let entries = match node.map(|node| &node.kind) {
            Some(NodeKind::Table(entries)) => entries.as_slice(),
            _ => &[],
        };
        let found = entries.iter().find(|(name, _)| name == key);
        let of = index
            .checked_sub(1)
            .and_then(|above| keys.get(above))
            .map_or("", String::as_str);
        let is_entry = index % 2 == 1 && ["release", "probe", "module", "dependency"].contains(&of);
        if is_entry && found.is_none() {
            let names: Vec<&str> = entries.iter().map(|(name, _)| name.as_str()).collect();
            let near =
                value_reader::nearest(key, &names).map(|near| format!("did you mean {near:?}?"));
            let help = near.unwrap_or_else(|| format!("known are {}", names.join(", ")));
            notes.complain(
                &path,
                location,
                format!("there is no {of} {key:?}"),
                Some(help),
            );
            return;
        }
        node = found.map(|(_, node)| node);
    }
    layers.push(layers::single(keys, value, location));
}

fn one_line(hint: &Diagnostic) -> String {
    let help = hint
        .help
        .as_ref()
        .map_or_else(String::new, |help| format!("; {help}"));
    format!("{}{help}", diagnostics::headline(hint))
}
