//! Jobs and init containers, which run again or have run although they are not hooks.

use serde_json::Value;

use super::{ApiScope, MAX_NAMED};
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;

/// Whether a name fits a pattern in which `*` stands for any text.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

/// Jobs and init containers that may have changed data, and those that the rollback runs again, in words. This is only
/// reported: most of it is harmless.
pub(in super::super) fn not_hooks(
    bad: &HelmRecord,
    target: &HelmRecord,
    scope: &ApiScope,
) -> Vec<String> {
    let read = |record: &HelmRecord| manifest::objects(&record.manifest).unwrap_or_default();
    let (old, new) = (read(bad), read(target));
    let same = |among: &'_ [ManifestObject], one: &ManifestObject| -> Option<usize> {
        let mut among = among.iter();
        among.position(|other| scope.identity(other) == scope.identity(one))
    };
    let (is, will) = (bad.revision, target.revision);
    let mut lines = Vec::new();
    for object in old.iter().filter(|object| is_job(object)) {
        let name = &object.name;
        match same(&new, object).and_then(|at| new.get(at)) {
            Some(other) if template(other) == template(object) => {}
            Some(_) => lines.push(format!(
                "Job {name} of revision {is} differs from that of revision {will}: it may have migrated data, and the rollback runs that of revision {will} again"
            )),
            None => lines.push(format!(
                "Job {name} of revision {is} is not in revision {will}: it may have migrated data"
            )),
        }
    }
    for object in new.iter().filter(|object| is_job(object)) {
        if same(&old, object).is_none() {
            let name = &object.name;
            lines.push(format!(
                "The rollback runs Job {name} of revision {will} again"
            ));
        }
    }
    for object in old.iter().filter(|object| object.is_workload()) {
        let Some(other) = same(&new, object).and_then(|at| new.get(at)) else {
            continue;
        };
        let (was, is) = (init_containers(other), init_containers(object));
        let changed: Vec<&str> = is
            .iter()
            .filter(|one| !was.contains(one))
            .filter_map(|one| one.get("name")?.as_str())
            .collect();
        if !changed.is_empty() {
            lines.push(format!(
                "Init containers of {} {} were changed by revision {}, and may have migrated data: {}",
                object.kind,
                object.name,
                bad.revision,
                changed.join(", ")
            ));
        }
    }
    lines.truncate(MAX_NAMED);
    lines
}

fn is_job(object: &ManifestObject) -> bool {
    object.kind == "Job" && object.api_version.starts_with("batch/")
}

fn template(object: &ManifestObject) -> Option<&Value> {
    object.body.pointer("/spec/template")
}

fn init_containers(object: &ManifestObject) -> &[Value] {
    let list = object.body.pointer("/spec/template/spec/initContainers");
    list.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, fitting) in [
            ("*-admission-*", "web-ingress-admission-create", true),
            ("*-admission-*", "web-migrate", false),
            ("web-migrate", "web-migrate", true),
            ("web-migrate", "web-migrate-2", false),
            ("web-*", "web-", true),
            ("*", "any", true),
            ("a*a", "a", false),
            ("*-a-*-b", "x-a-y-b", true),
            ("*-a-*-b", "x-a-b", false),
        ] {
            assert_eq!(fits(pattern, name), fitting, "{pattern} {name}");
        }
    }
}
