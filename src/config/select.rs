//! `select`: one `[[release]]` for all releases of a namespace, or for those with certain labels.

use std::collections::BTreeMap;

use super::layers::{ConfigNode, NodeKind};
use super::settings::{DiscoveredRelease, ReleaseSelector};
use super::value_reader::{ConfigValue, ReaderNotes};
use crate::core::units::Namespace;

/// What stands for the name of each release in the texts below `select`.
const PLACEHOLDER: &str = "{release}";

/// A name to try the settings with while no release is known.
const SAMPLE: &str = "release";

/// Whether a release is one for many.
pub(super) fn is_one_for_many(item: &ConfigValue) -> bool {
    matches!(&item.node.kind, NodeKind::Table(entries) if entries.iter().any(|(key, _)| key == "select"))
}

/// The same settings for each release that is selected; at least for a sample, which is only there to be checked.
pub(super) struct ExpandedReleases {
    pub(super) selection: Option<ReleaseSelector>,
    /// For each name of a release its settings.
    pub(super) releases: Vec<(String, ConfigValue)>,
    pub(super) sample: ConfigValue,
}

/// Writes the settings once for each release that is known.
pub(super) fn expand(
    item: &ConfigValue,
    discovered: &[DiscoveredRelease],
    notes: &mut ReaderNotes,
) -> ExpandedReleases {
    let selection = selection(item, notes);
    let taken = discovered.iter().filter(|release| {
        selection
            .as_ref()
            .is_some_and(|selection| selection.takes(release))
    });
    let releases = taken
        .map(|release| {
            let name = release.name.to_string();
            let written = named(item, &name);
            (name, written)
        })
        .collect();
    ExpandedReleases {
        releases,
        sample: named(item, SAMPLE),
        selection,
    }
}

fn selection(item: &ConfigValue, notes: &mut ReaderNotes) -> Option<ReleaseSelector> {
    let NodeKind::Table(entries) = &item.node.kind else {
        return None;
    };
    let find = |key: &str| {
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    };
    if find("name").is_some() {
        notes.diagnostic(
            item,
            "has a name beside select",
            "give one release its name, or many a select",
        );
    }
    let NodeKind::Text(text) = &find("select")?.kind else {
        notes.diagnostic(item, "has a select that is no text", HELP);
        return None;
    };
    let mut labels = BTreeMap::new();
    for pair in text
        .split(',')
        .map(str::trim)
        .filter(|_| text.trim() != "*")
    {
        match pair.split_once('=') {
            Some((key, value)) if !key.trim().is_empty() => {
                labels.insert(key.trim().to_owned(), value.trim().to_owned());
            }
            Some(_) | None => {
                notes.diagnostic(item, format!("{pair:?} in its select is no label"), HELP);
                return None;
            }
        }
    }
    let namespace = match &find("namespace")?.kind {
        NodeKind::Text(namespace) => Namespace::new(namespace.clone()),
        _ => return None,
    };
    Some(ReleaseSelector { namespace, labels })
}

const HELP: &str =
    "write \"*\" for all releases of the namespace, or labels as \"team=shop,tier=front\"";

/// The settings with a name in the place of `select`.
fn named(item: &ConfigValue, name: &str) -> ConfigValue {
    let mut node = item.node.clone();
    fill(&mut node, name);
    if let NodeKind::Table(entries) = &mut node.kind {
        for (key, node) in entries {
            if key == "select" {
                "name".clone_into(key);
                node.kind = NodeKind::Text(name.to_owned());
            }
        }
    }
    ConfigValue {
        path: item.path.clone(),
        node,
    }
}

/// Whether a text stands there as it is.
pub(super) fn writes(node: &ConfigNode, wanted: &str) -> bool {
    match &node.kind {
        NodeKind::Text(text) => text == wanted,
        NodeKind::Array(nodes) => nodes.iter().any(|node| writes(node, wanted)),
        NodeKind::Table(entries) => entries.iter().any(|(_, node)| writes(node, wanted)),
        NodeKind::Bool(_) | NodeKind::Int(_) | NodeKind::Float(_) => false,
    }
}

fn fill(node: &mut ConfigNode, name: &str) {
    match &mut node.kind {
        NodeKind::Text(text) if text.contains(PLACEHOLDER) => {
            *text = text.replace(PLACEHOLDER, name);
        }
        NodeKind::Array(nodes) => nodes.iter_mut().for_each(|node| fill(node, name)),
        NodeKind::Table(entries) => entries.iter_mut().for_each(|(_, node)| fill(node, name)),
        NodeKind::Bool(_) | NodeKind::Int(_) | NodeKind::Float(_) | NodeKind::Text(_) => {}
    }
}
