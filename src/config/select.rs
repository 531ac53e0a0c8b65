//! `select`: one [[release]] for all releases of a namespace, or for those with some labels.

use std::collections::BTreeMap;

use super::layers::{Kind, Node};
use super::reader::{Item, Notes};
use super::settings::{Discovered, Selection};
use crate::units::Namespace;

/// What stands for the name of each release in the texts below `select`.
const PLACEHOLDER: &str = "{release}";

/// A name to try the settings with while no release is known.
const SAMPLE: &str = "release";

/// Whether a release is one for many.
pub(super) fn is_one_for_many(item: &Item) -> bool {
    matches!(&item.node.kind, Kind::Table(entries) if entries.iter().any(|(key, _)| key == "select"))
}

/// The same settings for each release that is selected; at least for a sample, which is only there to be checked.
pub(super) struct Expanded {
    pub(super) selection: Option<Selection>,
    /// For each name of a release its settings.
    pub(super) releases: Vec<(String, Item)>,
    pub(super) sample: Item,
}

/// Writes the settings once for each release that is known.
pub(super) fn expand(item: &Item, discovered: &[Discovered], notes: &mut Notes) -> Expanded {
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
    Expanded {
        releases,
        sample: named(item, SAMPLE),
        selection,
    }
}

fn selection(item: &Item, notes: &mut Notes) -> Option<Selection> {
    let Kind::Table(entries) = &item.node.kind else {
        return None;
    };
    let find = |key: &str| {
        entries
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, node)| node)
    };
    if find("name").is_some() {
        notes.mistake(
            item,
            "has a name beside select",
            "give one release its name, or many a select",
        );
    }
    let Kind::Text(text) = &find("select")?.kind else {
        notes.mistake(item, "has a select that is no text", HELP);
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
                notes.mistake(item, format!("{pair:?} in its select is no label"), HELP);
                return None;
            }
        }
    }
    let namespace = match &find("namespace")?.kind {
        Kind::Text(namespace) => Namespace::new(namespace.clone()),
        _ => return None,
    };
    Some(Selection { namespace, labels })
}

const HELP: &str =
    "write \"*\" for all releases of the namespace, or labels as \"team=shop,tier=front\"";

/// The settings with a name in the place of `select`.
fn named(item: &Item, name: &str) -> Item {
    let mut node = item.node.clone();
    fill(&mut node, name);
    if let Kind::Table(entries) = &mut node.kind {
        for (key, node) in entries {
            if key == "select" {
                "name".clone_into(key);
                node.kind = Kind::Text(name.to_owned());
            }
        }
    }
    Item {
        path: item.path.clone(),
        node,
    }
}

/// Whether a text stands there as it is.
pub(super) fn writes(node: &Node, wanted: &str) -> bool {
    match &node.kind {
        Kind::Text(text) => text == wanted,
        Kind::Array(nodes) => nodes.iter().any(|node| writes(node, wanted)),
        Kind::Table(entries) => entries.iter().any(|(_, node)| writes(node, wanted)),
        Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) => false,
    }
}

fn fill(node: &mut Node, name: &str) {
    match &mut node.kind {
        Kind::Text(text) if text.contains(PLACEHOLDER) => *text = text.replace(PLACEHOLDER, name),
        Kind::Array(nodes) => nodes.iter_mut().for_each(|node| fill(node, name)),
        Kind::Table(entries) => entries.iter_mut().for_each(|(_, node)| fill(node, name)),
        Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Text(_) => {}
    }
}
