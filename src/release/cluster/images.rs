//! Which images pods really ran: a tag may name another image a day later.
//!
//! A rollback restores a manifest. If both revisions name the same tag, but their pods ran different images, the tag no
//! longer means the code that served before, and a rollback would start the bad code again.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::Value;

use super::checks::PreflightFailure;
use super::namespace_cache::ObjectCache;
use crate::core::units::Revision;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;
use crate::release::{MAX_RUN_IMAGES, ReleaseState, RunImage};

/// Limits: containers per release, image names per container, revisions per name, and images per name.
const MAX_CONTAINERS: usize = 500;
const MAX_NAMES: usize = 3;
const MAX_OF_NAME: usize = 3;
const MAX_IDS: usize = 8;

/// Remarks about images in one check.
const MAX_REMARKS: usize = 5;

/// A container: kind and name of its workload, and its own name.
type ContainerKey = (Box<str>, Box<str>, Box<str>);

/// What a container ran in the pods of one revision.
#[derive(Debug)]
struct Run {
    revision: Revision,
    /// Its image as the pods name it.
    name: Box<str>,
    /// The images that ran under that name, the newest at the end.
    ids: Vec<Box<str>>,
    /// Whether a current pod runs it.
    is_live: bool,
}

/// What moved tags mean for a rollback.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// A workload would get only the moved code.
    pub(super) refused: Option<PreflightFailure>,
    /// Workloads that get another image as well: the rollback may help them, so this is only reported.
    pub(super) remarks: Vec<String>,
}

/// The identity of an image's code. Nodes write the same image in several ways: with a scheme, with or without the
/// registry, or with the name of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code<'a> {
    /// The digest by which a registry delivered it.
    Pulled(&'a str),
    /// The ID of an image without a registry: a digest of something else, even for the same image.
    Local(&'a str),
}

impl<'a> Code<'a> {
    /// `None` if the ID does not identify it, for example because it only repeats the name.
    fn of(id: &'a str) -> Option<Self> {
        if let Some((_, digest)) = id.rsplit_once("@sha256:") {
            return (!digest.is_empty()).then_some(Self::Pulled(digest));
        }
        let id = id.rsplit_once("://").map_or(id, |(_, id)| id);
        let digest = id.strip_prefix("sha256:")?;
        (!digest.is_empty()).then_some(Self::Local(digest))
    }

    /// Whether it is certainly another image.
    fn differs(self, other: Self) -> bool {
        let can_be_compared = matches!(
            (self, other),
            (Self::Pulled(_), Self::Pulled(_)) | (Self::Local(_), Self::Local(_))
        );
        can_be_compared && self != other
    }
}

/// Whether no image of one list can equal one of the other.
fn all_differ(old: &[Box<str>], new: &[Box<str>]) -> bool {
    let codes = || new.iter().filter_map(|id| Code::of(id));
    old.iter()
        .filter_map(|id| Code::of(id))
        .all(|was| codes().all(|is| was.differs(is)))
}

impl Run {
    fn put(&mut self, id: &str) {
        let Some(code) = Code::of(id) else {
            return;
        };
        // What runs now is the newest, also where it ran before, so that it is never the one to go.
        self.ids.retain(|one| Code::of(one) != Some(code));
        if self.ids.len() >= MAX_IDS {
            self.ids.remove(0);
        }
        self.ids.push(id.into());
    }
}

/// What each container last ran, the newest revision first. A workload that no revision changes keeps its pods for
/// long, so age is counted for each container by itself.
#[derive(Debug, Default)]
pub(super) struct ImageHistory(BTreeMap<ContainerKey, Vec<Run>>);

impl ImageHistory {
    /// Takes what pods run now.
    pub(super) fn note(&mut self, tables: &ObjectCache, release_state: &ReleaseState) {
        for run in self.0.values_mut().flatten() {
            run.is_live = false;
        }
        for pod in &release_state.pods {
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
        // A release that was uninstalled counts its revisions anew.
        if let Some(newest) = release_state.newest() {
            for runs in self.0.values_mut() {
                runs.retain(|run| run.revision <= newest.revision);
            }
        }
        self.forget();
    }

    /// The stored form, within its bounds: containers that run come first, and of each the newest.
    pub(super) fn to_stored(&self) -> Vec<RunImage> {
        let mut all = Vec::new();
        for (container, runs) in &self.0 {
            let is_gone = !runs.iter().any(|run| run.is_live);
            for (rank, run) in runs.iter().enumerate() {
                let stored = RunImage {
                    revision: run.revision,
                    kind: container.0.clone(),
                    workload: container.1.clone(),
                    container: container.2.clone(),
                    image: run.name.clone(),
                    ids: run.ids.clone(),
                };
                all.push(((is_gone, rank, Reverse(run.revision)), stored));
            }
        }
        all.retain(|(_, stored)| stored.is_bounded());
        all.sort_by_key(|(order, _)| *order);
        all.truncate(MAX_RUN_IMAGES);
        all.into_iter().map(|(_, stored)| stored).collect()
    }

    /// Takes what an earlier process stored.
    pub(super) fn remember(&mut self, stored: &[RunImage]) {
        let stored = stored.iter().take(MAX_RUN_IMAGES);
        for one in stored.filter(|one| one.is_bounded()) {
            let container = (
                one.kind.clone(),
                one.workload.clone(),
                one.container.clone(),
            );
            let run = self.run(one.revision, container, &one.image);
            // Pods may have been seen already, and what they run is newer.
            let seen = std::mem::take(&mut run.ids);
            one.ids.iter().chain(&seen).for_each(|id| run.put(id));
        }
        self.forget();
    }

    fn put(&mut self, revision: Revision, container: ContainerKey, name: &str, id: &str) {
        let run = self.run(revision, container, name);
        run.put(id);
        run.is_live = true;
    }

    /// The entry of a container's image in a revision.
    fn run(&mut self, revision: Revision, container: ContainerKey, name: &str) -> &mut Run {
        let runs = self.0.entry(container).or_default();
        let found = runs
            .iter()
            .position(|run| run.revision == revision && *run.name == *name);
        let place = found.unwrap_or_else(|| {
            let place = runs.partition_point(|run| run.revision >= revision);
            let new = Run {
                revision,
                name: name.into(),
                ids: Vec::new(),
                is_live: false,
            };
            runs.insert(place, new);
            place
        });
        &mut runs[place]
    }

    /// Drops what is old and runs nowhere.
    fn forget(&mut self) {
        self.0.retain(|_, runs| {
            // What is not known is no reason for anything.
            runs.retain(|run| !run.ids.is_empty());
            let mut names: Vec<(Box<str>, usize)> = Vec::new();
            runs.retain(|run| {
                let known = names.iter().position(|(name, _)| *name == run.name);
                let place = known.unwrap_or_else(|| {
                    names.push((run.name.clone(), 0));
                    names.len() - 1
                });
                names[place].1 += 1;
                run.is_live || (place < MAX_NAMES && names[place].1 <= MAX_OF_NAME)
            });
            !runs.is_empty()
        });
        if self.0.len() <= MAX_CONTAINERS {
            return;
        }
        let mut order: Vec<_> = self
            .0
            .iter()
            .map(|(container, runs)| {
                let is_live = runs.iter().any(|run| run.is_live);
                (is_live, runs[0].revision, container.clone())
            })
            .collect();
        order.sort_unstable();
        let spare = order.len().saturating_sub(MAX_CONTAINERS);
        for (_, _, container) in order.into_iter().take(spare) {
            self.0.remove(&container);
        }
    }

    /// The tags of the target that no longer name the code that served before the bad revision.
    pub(super) fn moved(&self, bad: Revision, [before, target]: [&HelmRecord; 2]) -> Moved {
        let mut moved = Moved::default();
        let parsed = [before, target].map(|record| manifest::objects(&record.manifest));
        let [Ok(before), Ok(target)] = parsed else {
            return moved;
        };
        let all = self.0.iter();
        let now = all.flat_map(|(container, runs)| runs.iter().map(move |run| (container, run)));
        for (container, run) in now.filter(|(_, run)| run.revision == bad) {
            let (kind, workload, own) = container;
            let templates = [&before, &target].map(|all| template_images(all, kind, workload));
            let is_named_alike = templates[0].contains_key(&**own)
                && templates[0].get(&**own) == templates[1].get(&**own);
            if !is_named_alike || run.name.contains("@sha256:") {
                continue;
            }
            let Some(what) = self.is_another(container, run) else {
                continue;
            };
            if templates[0] != templates[1] {
                moved.remarks.push(format!(
                    "{what}, so a rollback brings other images of {kind} {workload} back, but not this one"
                ));
            } else if moved.refused.is_none() {
                moved.refused = Some(PreflightFailure {
                    reason: "mutable_tag",
                    text: format!(
                        "{what}, so a rollback cannot bring the former code back; name images by their digest, or give each build a tag of its own"
                    ),
                });
            }
        }
        moved.remarks.truncate(MAX_REMARKS);
        moved
    }

    /// A text if pods of an earlier revision ran another image under this name.
    fn is_another(&self, container: &ContainerKey, run: &Run) -> Option<String> {
        let earlier = self.0.get(container)?.iter();
        let mut earlier = earlier.filter(|one| one.revision < run.revision);
        let old = earlier.find(|one| one.name == run.name && !one.ids.is_empty())?;
        let (was, is) = (old.ids.last()?, run.ids.last()?);
        let (kind, workload, _) = container;
        all_differ(&old.ids, &run.ids).then(|| {
            format!(
                "the image {} of {kind} {workload} is not what it was: pods of revision {} ran {was}, and those of revision {} run {is} under the same name",
                run.name, old.revision, run.revision
            )
        })
    }
}

/// Images of a workload's template by container.
fn template_images<'a>(
    objects: &'a [ManifestObject],
    kind: &str,
    workload: &str,
) -> BTreeMap<&'a str, &'a str> {
    let mut all = objects.iter();
    let found = all.find(|object| *object.kind == *kind && *object.name == *workload);
    let lists = ["initContainers", "containers"];
    let lists = lists.iter().filter_map(|list| {
        let place = format!("/spec/template/spec/{list}");
        found?.body.pointer(&place)?.as_array()
    });
    let text = |container: &'a Value, key: &str| container.get(key)?.as_str();
    lists
        .flatten()
        .filter_map(|one| Some((text(one, "name")?, text(one, "image")?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One letter stands for a digest.
    fn full(id: &str) -> String {
        if id.len() == 1 {
            format!("web@sha256:{id}")
        } else {
            id.to_owned()
        }
    }

    fn images(all: &[(u32, &str, &str)]) -> ImageHistory {
        let mut images = ImageHistory::default();
        for (revision, name, id) in all {
            let container = ("Deployment".into(), "web".into(), "web".into());
            images.put(Revision(*revision), container, name, &full(id));
        }
        images
    }

    fn target(image: &str) -> HelmRecord {
        with_containers(&format!("{{name: web, image: \"{image}\"}}"))
    }

    fn with_containers(containers: &str) -> HelmRecord {
        let manifest = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    spec:\n      containers: [{containers}]\n"
        );
        crate::release::cluster::checks::tests::plain(&manifest)
    }

    #[test]
    fn the_same_tag_may_be_another_image() {
        let (tag, digest) = ("web:latest", "web@sha256:aa");
        let moved = |all: &[(u32, &str, &str)], to: &str| {
            let bad = all.last().map_or(to, |(_, name, _)| name);
            refused(&images(all), [&target(bad), &target(to)])
        };
        let found = moved(&[(1, tag, "a"), (2, tag, "b")], tag).unwrap();
        assert!(
            found.text.contains("ran web@sha256:a, and"),
            "{}",
            found.text
        );
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

    fn refused(images: &ImageHistory, records: [&HelmRecord; 2]) -> Option<PreflightFailure> {
        images.moved(Revision(2), records).refused
    }

    #[test]
    fn a_rollback_that_changes_another_image_of_the_workload_is_not_refused() {
        let mut images = images(&[(1, "web:1", "a"), (2, "web:2", "b")]);
        for (revision, id) in [(1, "nginx@sha256:c"), (2, "nginx@sha256:d")] {
            let sidecar = ("Deployment".into(), "web".into(), "proxy".into());
            images.put(Revision(revision), sidecar, "nginx:1.25", id);
        }
        let record = |web: &str, proxy: &str| {
            let web = format!("{{name: web, image: \"{web}\"}}");
            with_containers(&format!("{web}, {{name: proxy, image: \"{proxy}\"}}"))
        };
        let bad = record("web:2", "nginx:1.25");
        let moved = images.moved(Revision(2), [&bad, &record("web:1", "nginx:1.25")]);
        assert_eq!(moved.refused, None);
        let said = "the image nginx:1.25 of Deployment web is not what it was";
        assert_eq!(moved.remarks.len(), 1);
        assert!(moved.remarks[0].starts_with(said), "{:?}", moved.remarks);
        // Only settings change: nothing but the moved image would come back.
        let moved = images.moved(Revision(2), [&bad, &bad]);
        assert!(moved.refused.is_some() && moved.remarks.is_empty());
        // The sidecar is named otherwise, or is not there at all, or was injected.
        for target in [record("web:1", "nginx:1.24"), target("web:1")] {
            assert_eq!(images.moved(Revision(2), [&bad, &target]), Moved::default());
        }
        let alone = target("web:2");
        assert_eq!(
            images.moved(Revision(2), [&alone, &alone]),
            Moved::default()
        );
    }

    #[test]
    fn of_many_images_under_one_name_the_newest_are_known() {
        let tag = "web:latest";
        let old = |last: &str| {
            let ran = ["a", "b", "c", "d", "e", "f", "g", "h", "a", last];
            ran.map(|id| (1, tag, full(id)))
        };
        let moved = |last: &str, new: &str| {
            let mut images = ImageHistory::default();
            for (revision, name, id) in old(last).into_iter().chain([(2, tag, full(new))]) {
                let container = ("Deployment".into(), "web".into(), "web".into());
                images.put(Revision(revision), container, name, &id);
            }
            refused(&images, [&target(tag); 2]).is_some()
        };
        // Old pods ran the ninth one too. The first was seen again, so it is not the oldest.
        for new in ["i", "e", "a"] {
            assert!(!moved("i", new), "{new}");
        }
        // The oldest is dropped; the same image by another way drops none.
        assert!(moved("i", "b"));
        assert!(!moved("docker.io/web@sha256:h", "b"));
    }

    #[test]
    fn what_an_unchanged_workload_runs_is_known_after_many_revisions() {
        let mut images = images(&[(1, "web:latest", "a")]);
        let id = |workload: &str| ("Deployment".into(), workload.into(), "web".into());
        for revision in 2..=20 {
            images.put(Revision(revision), id("api"), "api:latest", &full("c"));
            images.put(
                Revision(revision),
                id("job"),
                &format!("job:{revision}"),
                &full("d"),
            );
            // Of all these pods none is there any more, but the first one's are.
            for run in images.0.values_mut().flatten() {
                run.is_live = run.revision == Revision(1);
            }
            images.forget();
        }
        let of = |workload: &str| {
            let runs = &images.0[&id(workload)];
            runs.iter().map(|run| run.revision.0).collect::<Vec<_>>()
        };
        assert_eq!(of("web"), [1]);
        assert_eq!(of("api"), [20, 19, 18]);
        assert_eq!(of("job"), [20, 19, 18]);
        let stored = images.to_stored();
        assert_eq!((stored.len(), &*stored[0].workload), (7, "web"));
        images.put(Revision(21), id("web"), "web:latest", &full("b"));
        let record = target("web:latest");
        let moved = images.moved(Revision(21), [&record; 2]);
        assert!(moved.refused.is_some());
    }

    #[test]
    fn what_live_pods_run_is_never_dropped() {
        let all = ["web:1", "web:2", "web:3", "web:4", "web:5"];
        let all = (1..).zip(all).map(|(revision, name)| (revision, name, "a"));
        let mut images = images(&all.collect::<Vec<_>>());
        images.forget();
        assert_eq!(images.to_stored().len(), 5);
        let runs = images.0.values_mut().flatten();
        runs.for_each(|run| run.is_live = run.revision == Revision(1));
        images.forget();
        let left = images.to_stored();
        let left: Vec<_> = left.iter().map(|one| one.revision.0).collect();
        assert_eq!(left, [5, 4, 3, 1]);
    }

    /// The stored form before entries were counted by container.
    #[test]
    fn what_was_stored_earlier_is_read() {
        let stored = r#"[{"revision":2,"kind":"Deployment","workload":"web","container":"web","image":"web:latest","ids":["web@sha256:b","one"]},{"revision":1,"kind":"Deployment","workload":"web","container":"web","image":"web:latest","ids":["web@sha256:a"]}]"#;
        let stored: Vec<RunImage> = serde_json::from_str(stored).unwrap();
        // Pods were seen before that is read.
        let mut images = images(&[(2, "web:latest", "c")]);
        images.remember(&stored);
        let again = images.to_stored();
        let ids = |run: &RunImage| run.ids.join(" ");
        assert_eq!(ids(&again[0]), "web@sha256:b web@sha256:c");
        assert_eq!(again[1], stored[1]);
        assert!(refused(&images, [&target("web:latest"); 2]).is_some());
    }

    #[test]
    fn only_digests_are_compared() {
        let moved = |old: &str, new: &str| {
            let tag = "web:latest";
            let images = images(&[(1, tag, old), (2, tag, new)]);
            refused(&images, [&target(tag); 2]).is_some()
        };
        for (old, new) in [
            // The same image by another way.
            (
                "docker-pullable://x@sha256:aa",
                "docker.io/library/x@sha256:aa",
            ),
            (
                "docker.io/library/x@sha256:aa",
                "mirror:5000/hub/x@sha256:aa",
            ),
            ("docker://sha256:aa", "sha256:aa"),
            // Digests of different things, and what is no digest.
            ("x@sha256:aa", "sha256:bb"),
            ("sha256:aa", "x@sha256:bb"),
            ("web:latest", "x@sha256:bb"),
            ("x@sha256:aa", "docker://web:latest"),
            ("x@sha256:", "x@sha256:bb"),
            ("one", "two"),
        ] {
            assert!(!moved(old, new), "{old} {new}");
        }
        assert!(moved(
            "docker-pullable://x@sha256:aa",
            "docker.io/x@sha256:bb"
        ));
        assert!(moved("sha256:aa", "docker://sha256:bb"));
    }

    /// After a restart the pods that ran the former image are gone.
    #[test]
    fn what_was_run_is_known_after_a_restart() {
        let tag = "web:latest";
        let before = images(&[(1, tag, "a"), (2, tag, "b")]);
        let text = serde_json::to_string(&before.to_stored()).unwrap();
        let stored: Vec<RunImage> = serde_json::from_str(&text).unwrap();
        let mut after = ImageHistory::default();
        after.remember(&stored);
        let (was, is) = (
            refused(&before, [&target(tag); 2]),
            refused(&after, [&target(tag); 2]),
        );
        assert!(was.is_some());
        assert_eq!(is, was);
    }

    #[test]
    fn little_is_stored_and_of_the_newest_revisions_first() {
        let mut many = ImageHistory::default();
        for revision in 1..=3 {
            for workload in 0..60 {
                let name = format!("web-{workload}");
                let container = ("Deployment".into(), name.into(), "web".into());
                many.put(Revision(revision), container, "web:latest", "sha256:a");
            }
        }
        let long = ("Deployment".into(), "x".repeat(10_000).into(), "web".into());
        many.put(Revision(3), long, "web:latest", "sha256:a");
        let stored = many.to_stored();
        let of = |revision| {
            stored
                .iter()
                .filter(|one| one.revision == Revision(revision))
                .count()
        };
        assert_eq!((of(3), of(2), of(1)), (60, 40, 0));
        // From outside there may be more.
        let mut read = ImageHistory::default();
        let more: Vec<RunImage> = stored.iter().chain(&stored).cloned().collect();
        read.remember(&more);
        assert_eq!(read.to_stored(), stored);
    }

    #[test]
    fn revisions_that_are_counted_anew_are_not_compared_with_former_ones() {
        let mut images = images(&[(1, "web:latest", "a"), (7, "web:latest", "b")]);
        let release_state = ReleaseState {
            revisions: vec![crate::core::revision_ledger::StoredRevision {
                revision: Revision(2),
                status: crate::core::revision_ledger::RevisionStatus::Deployed,
                description: String::new(),
                digest: None,
                weak: None,
                hooks_succeeded: true,
                test_failed: false,
            }],
            ..ReleaseState::default()
        };
        images.note(&ObjectCache::default(), &release_state);
        let stored = images.to_stored();
        assert_eq!(stored.len(), 1);
        assert_eq!(stored[0].revision, Revision(1));
    }
}
