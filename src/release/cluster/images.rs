//! Which images pods really run: the same tag may mean another image a day later.
//!
//! A rollback brings back a manifest. Where both revisions name the same tag and their pods ran different images, the
//! code that served before is not what the tag means now, and a rollback would start the bad code again.

use std::collections::{BTreeMap, BTreeSet};

use super::checks::Obstacle;
use super::hub::Tables;
use crate::release::Facts;
use crate::release::manifest::{self, Object};
use crate::release::record::Record;
use crate::units::Revision;

/// Revisions, containers of one, and images under one name that are kept.
const MAX_REVISIONS: usize = 12;
const MAX_CONTAINERS: usize = 500;
const MAX_IDS: usize = 4;

/// A container: kind and name of its workload, and its own name.
type Container = (Box<str>, Box<str>, Box<str>);

/// The name of its image as the template writes it, and what was run under that name.
type Image = (Box<str>, BTreeSet<Box<str>>);

/// What the containers of the last revisions ran.
#[derive(Debug, Default)]
pub(super) struct Images(BTreeMap<Revision, BTreeMap<Container, Image>>);

impl Images {
    /// Takes what pods run now.
    pub(super) fn note(&mut self, tables: &Tables, facts: &Facts) {
        for pod in &facts.pods {
            let Some(row) = tables.pods.get(&pod.name) else {
                continue;
            };
            for image in &row.images {
                let id = (
                    pod.workload_kind.clone(),
                    pod.workload.clone(),
                    image.container.clone(),
                );
                self.put(pod.revision, id, &image.name, &image.id);
            }
        }
        while self.0.len() > MAX_REVISIONS {
            self.0.pop_first();
        }
    }

    fn put(&mut self, revision: Revision, container: Container, name: &str, id: &str) {
        let of_revision = self.0.entry(revision).or_default();
        if of_revision.len() >= MAX_CONTAINERS && !of_revision.contains_key(&container) {
            return;
        }
        let known = of_revision
            .entry(container)
            .or_insert_with(|| (name.into(), BTreeSet::new()));
        if *known.0 != *name {
            *known = (name.into(), BTreeSet::new());
        }
        if known.1.len() < MAX_IDS {
            known.1.insert(id.into());
        }
    }

    /// Whether the code that served before the bad revision is one that its target's manifest cannot name any more.
    pub(super) fn moved(&self, bad: Revision, target: &Record) -> Option<Obstacle> {
        let objects = manifest::objects(&target.manifest).unwrap_or_default();
        let now = self.0.get(&bad)?;
        now.iter().find_map(|(container, (name, ids))| {
            let (kind, workload, _) = container;
            let is_it = |object: &&Object| *object.kind == **kind && *object.name == **workload;
            let names_it = objects
                .iter()
                .find(is_it)
                .is_some_and(|object| object.images().contains(&&**name));
            if !names_it || name.contains("@sha256:") {
                return None;
            }
            let mut earlier = self.0.range(..bad).rev();
            let (before, (_, old)) = earlier.find_map(|(revision, all)| {
                let image = all.get(container)?;
                (image.0 == *name && !image.1.is_empty()).then_some((revision, image))
            })?;
            let (was, is) = (old.iter().next()?, ids.iter().next()?);
            old.is_disjoint(ids).then(|| Obstacle {
                reason: "mutable_tag",
                text: format!(
                    "the image {name} of {kind} {workload} is not what it was: pods of revision {before} ran {was}, and those of revision {bad} run {is} under the same name, so a rollback cannot bring the former code back; name images by their digest, or give each build a tag of its own"
                ),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(all: &[(u32, &str, &str)]) -> Images {
        let mut images = Images::default();
        for (revision, name, id) in all {
            let container = ("Deployment".into(), "web".into(), "web".into());
            images.put(Revision(*revision), container, name, id);
        }
        images
    }

    fn target(image: &str) -> Record {
        let manifest = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      containers: [{{name: web, image: \"{image}\"}}]\n"
        );
        crate::release::cluster::checks::tests::plain(&manifest)
    }

    #[test]
    fn the_same_tag_may_be_another_image() {
        let (tag, digest) = ("web:latest", "web@sha256:aa");
        let moved =
            |all: &[(u32, &str, &str)], to: &str| images(all).moved(Revision(2), &target(to));
        let found = moved(&[(1, tag, "a"), (2, tag, "b")], tag).unwrap();
        assert!(found.text.contains("ran a, and"), "{}", found.text);
        for (all, to) in [
            // The same image; another tag; one that is named by its digest; pods that ran both.
            (&[(1, tag, "a"), (2, tag, "a")][..], tag),
            (&[(1, "web:1", "a"), (2, tag, "b")], "web:1"),
            (&[(1, digest, "a"), (2, digest, "b")], digest),
            (&[(1, tag, "a"), (2, tag, "a"), (2, tag, "b")], tag),
            (&[(2, tag, "b")], tag),
        ] {
            assert_eq!(moved(all, to), None, "{all:?}");
        }
    }
}
