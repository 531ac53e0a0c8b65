//! `[[dependency]]`, probes without a release, and `needs`, which names what a probe depends on.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::settings::{ProbeConfig, ReleaseConfig, ReleaseSelector};
use super::source_location::SourceLocation;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes, nearest};
use crate::core::analysis::MAX_DEPENDENCIES;
use crate::core::units::{Namespace, ReleaseName};

/// The most dependencies of one configuration: each is asked by itself, and told to every release that needs it.
const MAX_DECLARED: usize = 256;

/// What a need begins with that names a release.
const RELEASE: &str = "release:";

/// Keys of a probe that say something of its release.
const OF_RELEASES: [&str; 3] = ["pods", "needs", "objective"];

/// One entry of `needs`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NeedsEntry {
    /// A `[[dependency]]`.
    Dependency(Box<str>),
    /// Another release.
    Release(Namespace, ReleaseName),
}

impl NeedsEntry {
    /// The name of the dependency; `None` of a release.
    pub fn dependency(&self) -> Option<&str> {
        match self {
            Self::Dependency(name) => Some(name),
            Self::Release(..) => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let Some(release) = text.strip_prefix(RELEASE) else {
            return (!text.is_empty()).then(|| Self::Dependency(text.into()));
        };
        let (namespace, name) = release.split_once('/')?;
        let is_name = |part: &str| !part.is_empty() && part.len() <= 63 && !part.contains('/');
        (is_name(namespace) && is_name(name))
            .then(|| Self::Release(Namespace::new(namespace), ReleaseName::new(name)))
    }
}

impl fmt::Display for NeedsEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dependency(name) => f.write_str(name),
            Self::Release(namespace, name) => write!(f, "{RELEASE}{namespace}/{name}"),
        }
    }
}

/// A need as it was written, to be checked once everything is read.
#[derive(Debug)]
pub(super) struct PendingNeed {
    need: NeedsEntry,
    item: ConfigValue,
}

/// `needs` of a probe.
pub(super) fn needs(table: &mut ConfigTable, notes: &mut ReaderNotes) -> Vec<NeedsEntry> {
    let location = table.location_of("needs");
    let Some(items) = table.list("needs", notes) else {
        return Vec::new();
    };
    let mut needs = Vec::new();
    for item in items {
        let Some(need) = item.text().and_then(NeedsEntry::parse) else {
            notes.diagnostic(
                &item,
                "names nothing that could be needed",
                "write names of [[dependency]], as [\"postgres\"], or of a guarded release, as [\"release:shop/backend\"]",
            );
            continue;
        };
        if needs.contains(&need) {
            notes.diagnostic(&item, format!("names {need} twice"), "name it once");
            continue;
        }
        needs.push(need.clone());
        notes.needs.push(PendingNeed { need, item });
    }
    if let Some(location) = location {
        let shown: Vec<String> = needs.iter().map(|need| format!("\"{need}\"")).collect();
        let shown = format!("[{}]", shown.join(", "));
        notes.holds(&table.path_of("needs"), shown, &location);
    }
    needs
}

/// Keys that a dependency cannot have, as it belongs to no release.
pub(super) fn refuse_keys_of_releases(table: &mut ConfigTable, notes: &mut ReaderNotes) {
    for key in OF_RELEASES {
        if let Some(item) = table.take(key) {
            notes.diagnostic(
                &item,
                "is for probes of a release, and this one belongs to none",
                "leave it out; a probe of a release names what it needs with needs = [\"…\"]",
            );
        }
    }
}

/// The dependencies of a file, each read by `probe`.
pub(super) fn dependencies(
    mut table: ConfigTable,
    control: Option<&ProbeConfig>,
    notes: &mut ReaderNotes,
    probe: impl Fn(&str, ConfigValue, &mut ReaderNotes) -> Option<ProbeConfig>,
) -> Vec<(ProbeConfig, SourceLocation)> {
    let (path, location) = (table.path.clone(), table.location.clone());
    let written = table.rest();
    if written.len() > MAX_DECLARED {
        let message = format!("has {} entries", written.len());
        let help = format!("write at most {MAX_DECLARED}");
        notes.complain(&path, &location, message, Some(help));
    }
    let mut names = BTreeSet::new();
    let mut dependencies = Vec::new();
    for (id, item) in written.into_iter().take(MAX_DECLARED) {
        if id.starts_with(RELEASE) {
            notes.diagnostic(
                &item,
                format!("{id:?} names a release, which is no dependency of its own"),
                format!("leave it out; needs = [{id:?}] at a probe is enough"),
            );
            continue;
        }
        let whole = item.clone();
        let Some(one) = probe(&id, item, notes) else {
            continue;
        };
        let name = one.id.probe.as_str().to_owned();
        if control.is_some_and(|control| control.id == one.id) {
            notes.diagnostic(
                &whole,
                format!("has the name of the control probe, {name:?}"),
                "give it another name",
            );
        } else if names.insert(name) {
            dependencies.push((one, whole.node.location));
        } else {
            notes.diagnostic(&whole, "the name stands twice", "give it another name");
        }
    }
    dependencies
}

/// Checks what is needed against what there is. Each dependency is asked at the shortest interval of those who need it
/// while one of them is judged.
pub(super) fn resolve(
    mut dependencies: Vec<(ProbeConfig, SourceLocation)>,
    releases: &[ReleaseConfig],
    selections: &[ReleaseSelector],
    notes: &mut ReaderNotes,
) -> Vec<Arc<ProbeConfig>> {
    let wanted = std::mem::take(&mut notes.needs);
    let names: Vec<&str> = dependencies
        .iter()
        .map(|(probe, _)| probe.id.probe.as_str())
        .collect();
    for wanted in &wanted {
        check_one(wanted, &names, releases, selections, notes);
    }
    for release in releases {
        check_all_of(release, notes);
    }
    refuse_cycles(releases, notes);
    let needed: BTreeSet<&str> = wanted
        .iter()
        .filter_map(|wanted| wanted.need.dependency())
        .collect();
    let mut paces = HashMap::new();
    for release in releases.iter().filter(|release| release.is_guarded()) {
        let interval = release.controller.interval();
        for name in release
            .needs()
            .into_iter()
            .filter_map(NeedsEntry::dependency)
        {
            let interval_overrides = paces.entry(name).or_insert(interval);
            *interval_overrides = interval.min(*interval_overrides);
        }
    }
    for (probe, location) in &mut dependencies {
        let name = probe.id.probe.as_str();
        if !needed.contains(name) {
            notes.hint(
                &format!("dependency.{name}"),
                location,
                "no probe needs it, so that it excuses nothing",
                format!("add needs = [{name:?}] to the probes whose answers hang on it"),
            );
        }
        probe.analysis_interval = paces.get(name).copied();
    }
    dependencies
        .into_iter()
        .map(|(probe, _)| Arc::new(probe))
        .collect()
}

/// Whether there is what one entry names.
fn check_one(
    wanted: &PendingNeed,
    names: &[&str],
    releases: &[ReleaseConfig],
    selections: &[ReleaseSelector],
    notes: &mut ReaderNotes,
) {
    let item = &wanted.item;
    match &wanted.need {
        NeedsEntry::Dependency(name) if names.contains(&&**name) => {}
        NeedsEntry::Dependency(name) => {
            let help = match nearest(name, names) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("add [[dependency]] with name = {name:?} and its url"),
            };
            notes.diagnostic(item, format!("there is no [[dependency]] {name:?}"), help);
        }
        NeedsEntry::Release(namespace, name) => {
            let mut all = releases.iter();
            let found =
                all.find(|release| release.namespace == *namespace && release.name == *name);
            let is_selected = selections.iter().any(|it| it.namespace == *namespace);
            if found.map_or(!is_selected, |release| !release.is_guarded()) {
                notes.diagnostic(
                    item,
                    format!("no release {namespace}/{name} is guarded here"),
                    "write \"release:NAMESPACE/NAME\" of a [[release]] whose revisions are judged",
                );
            }
        }
    }
}

/// Whether all that a release needs can be needed together.
fn check_all_of(release: &ReleaseConfig, notes: &mut ReaderNotes) {
    let count = release.needs().len();
    if count > MAX_DEPENDENCIES {
        let message = format!("the probes of {} need {count} things", release.name);
        let help = format!("name at most {MAX_DEPENDENCIES}");
        notes.complain("release", &SourceLocation::Default, message, Some(help));
    }
    let itself = NeedsEntry::Release(release.namespace.clone(), release.name.clone());
    if release.needs().contains(&&itself) {
        let message = format!("{}/{} needs itself", release.namespace, release.name);
        let help = "leave that out; its own failures are what is judged".to_owned();
        notes.complain("release", &SourceLocation::Default, message, Some(help));
    }
}

/// Refuses releases that need each other: each would excuse the next, and none would ever be rejected. A release that
/// `select` takes is one of them once it is known.
fn refuse_cycles(releases: &[ReleaseConfig], notes: &mut ReaderNotes) {
    let guarded: Vec<&ReleaseConfig> = releases.iter().filter(|it| it.is_guarded()).collect();
    let places: HashMap<_, _> = guarded
        .iter()
        .enumerate()
        .map(|(at, release)| ((&release.namespace, &release.name), at))
        .collect();
    let needed: Vec<Vec<usize>> = guarded
        .iter()
        .enumerate()
        .map(|(at, release)| {
            let needs = release.needs().into_iter();
            let others = needs.filter_map(|need| match need {
                NeedsEntry::Release(namespace, name) => places.get(&(namespace, name)).copied(),
                NeedsEntry::Dependency(_) => None,
            });
            // A release that needs itself is told of by itself.
            others.filter(|other| *other != at).collect()
        })
        .collect();
    for cycle in cycles(&needed) {
        let on_it = cycle.iter().chain(cycle.first());
        let names = on_it.filter_map(|at| guarded.get(*at));
        let names: Vec<String> = names
            .map(|release| format!("{}/{}", release.namespace, release.name))
            .collect();
        let message = format!(
            "{}: each would excuse the failures of the one that needs it, and none would ever be rolled back",
            names.join(" needs ")
        );
        let help = "remove one of these needs".to_owned();
        notes.complain("release", &SourceLocation::Default, message, Some(help));
    }
}

/// Cycles in what needs what, each as the places along it; at least one where there is any. Every need is followed once.
fn cycles(needed: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut done = HashSet::new();
    for start in 0..needed.len() {
        // The way from the start, each with those of its needs that are still to be followed. No recursion: a chain may be
        // as long as the configuration.
        let mut way: Vec<(usize, &[usize])> = Vec::new();
        let mut next = (!done.contains(&start)).then_some(start);
        loop {
            if let Some(at) = next {
                way.push((at, needed.get(at).map_or(&[], Vec::as_slice)));
            }
            let Some((at, open)) = way.last_mut() else {
                break;
            };
            let Some((first, rest)) = open.split_first() else {
                done.insert(*at);
                way.pop();
                next = None;
                continue;
            };
            *open = rest;
            let begins = way.iter().position(|(at, _)| at == first);
            if let Some(begins) = begins {
                let cycle = way.iter().skip(begins).map(|(at, _)| *at);
                found.push(cycle.collect());
            }
            next = (begins.is_none() && !done.contains(first)).then_some(*first);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_of_any_length_are_found_and_what_only_leads_to_one_is_not_named() {
        for (needed, expected) in [
            (vec![vec![1], vec![2], vec![]], vec![]),
            (vec![vec![1, 2], vec![2], vec![]], vec![]),
            (vec![vec![1], vec![0]], vec![vec![0, 1]]),
            (
                vec![vec![1], vec![2], vec![3], vec![1]],
                vec![vec![1, 2, 3]],
            ),
            (
                vec![vec![1], vec![0], vec![3], vec![0, 2]],
                vec![vec![0, 1], vec![2, 3]],
            ),
        ] {
            assert_eq!(cycles(&needed), expected, "{needed:?}");
        }
        let mut ring: Vec<Vec<usize>> = (1..5_000).map(|next| vec![next]).collect();
        ring.push(vec![0]);
        let found: Vec<usize> = cycles(&ring).iter().map(Vec::len).collect();
        assert_eq!(found, [5_000]);
    }
}
