//! The objects of two revisions, read from their records.

use super::super::checks::PreflightFailure;
use super::super::rbac;
use super::shown;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;

/// The objects that a rollback from one record to another concerns.
#[derive(Debug, Default)]
pub(in super::super) struct Contents {
    /// Objects of the rejected revision; helm deletes those that the target does not have.
    pub(in super::super) bad: Vec<ManifestObject>,
    pub(in super::super) target: Vec<ManifestObject>,
    /// Objects of the hooks that run.
    pub(in super::super) hooks: Vec<ManifestObject>,
}

impl Contents {
    /// Reads them; an unreadable part is left out and reported.
    pub(in super::super) fn of(
        bad: &HelmRecord,
        target: &HelmRecord,
    ) -> (Self, Vec<PreflightFailure>) {
        let mut failures = Vec::new();
        let mut read = |what: String, text: &str| {
            let odd = odd(text).map(str::to_owned);
            let objects = match odd {
                Some(why) => Err(why),
                None => manifest::objects(text).map_err(|broken| broken.to_string()),
            };
            objects.unwrap_or_else(|why| {
                failures.push(PreflightFailure {
                    reason: "manifest",
                    text: format!("{what} cannot be read: {why}"),
                });
                Vec::new()
            })
        };
        let of = |record: &HelmRecord| format!("the manifest of revision {}", record.revision);
        let bad_objects = read(of(bad), &bad.manifest);
        let target_objects = read(of(target), &target.manifest);
        let mut hooks = Vec::new();
        for hook in rbac::hooks_of_rollback(target) {
            let what = format!(
                "the hook {} of revision {}",
                shown(&hook.name),
                target.revision
            );
            hooks.extend(read(what, &hook.manifest));
        }
        let contents = Self {
            bad: bad_objects,
            target: target_objects,
            hooks,
        };
        (contents, failures)
    }

    pub(in super::super) fn all(&self) -> impl Iterator<Item = &ManifestObject> {
        self.bad.iter().chain(&self.target).chain(&self.hooks)
    }
}

/// Why helm may read a text differently from us; `None` for what charts render.
pub(super) fn odd(text: &str) -> Option<&'static str> {
    if text
        .replace("\r\n", "\n")
        .contains(['\r', '\u{85}', '\u{2028}', '\u{2029}'])
    {
        return Some("it has ends of lines that YAML 1.1 knows and YAML 1.2 does not");
    }
    let is_control = |c: char| c == '\u{feff}' || (c.is_control() && !"\n\r\t".contains(c));
    if text.contains(is_control) {
        return Some("it has control characters");
    }
    let is_odd = |rest: &str| {
        let behind = rest.trim_start();
        rest.starts_with(|c: char| !c.is_whitespace())
            || !(behind.is_empty() || behind.starts_with('#'))
    };
    let mut separators = text.lines().filter_map(|line| line.strip_prefix("---"));
    if separators.any(is_odd) {
        return Some("it has a separator of documents with something behind it");
    }
    None
}
