//! Progress of a workload's rollout.

use serde::{Deserialize, Serialize};

/// A Deployment, StatefulSet or DaemonSet of the newest revision.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkloadState {
    /// Its kind, as `Deployment`.
    pub kind: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Identifier of its current template; `None` if unknown.
    pub template: Option<Box<str>>,
    /// Whether it exists and its controller has seen its newest specification.
    pub observed: bool,
    /// Whether all its pods have the newest template and are available, as far as its strategy replaces them.
    pub complete: bool,
    /// Pods that it should have.
    pub wanted: u32,
    /// Ready pods of the newest template.
    pub ready: u32,
    /// Missing pods: wanted, but not available, of any template.
    pub unavailable: u32,
    /// Available pods of the newest template that are missing for completeness.
    pub lacks: u32,
    /// Ready pods of any template.
    #[serde(default)]
    pub serving: u32,
    /// Whether it is paused.
    #[serde(default)]
    pub paused: bool,
    /// Whether its strategy can leave it without pods during a rollout.
    #[serde(default)]
    pub stops_first: bool,
    /// Whether its controller reports that the progress deadline is exceeded.
    #[serde(default)]
    pub deadline_exceeded: bool,
    /// Whether its controller reports that its pods cannot be created, for example because of a quota.
    #[serde(default)]
    pub refused: bool,
}

impl WorkloadState {
    /// As `Deployment web`.
    pub fn id(&self) -> String {
        format!("{} {}", self.kind, self.name)
    }

    /// Whether it is scaled to zero or paused, so that nothing is known about it.
    pub fn is_held(&self) -> bool {
        self.paused || self.wanted == 0 && self.observed
    }

    /// Whether it is the same workload.
    pub fn is(&self, other: &Self) -> bool {
        self.kind == other.kind && self.name == other.name
    }

    /// Whether its rollout is complete compared with `before`. What was missing before is not missed now: a part that
    /// was incomplete with the same template says nothing about a new revision, nor do as many unavailable pods as
    /// before, such as those of a dead node.
    pub fn is_complete_after(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else {
            return self.complete;
        };
        let is_as_before = !before.complete && before.template == self.template;
        let misses_no_more = self.observed && self.lacks <= before.unavailable;
        self.complete || is_as_before || misses_no_more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(template: &str, unavailable: u32, lacks: u32) -> WorkloadState {
        WorkloadState {
            kind: "Deployment".into(),
            name: "api".into(),
            template: (!template.is_empty()).then(|| template.into()),
            observed: true,
            complete: lacks == 0,
            wanted: 3,
            ready: 3 - lacks.min(3),
            unavailable,
            lacks,
            ..WorkloadState::default()
        }
    }

    #[test]
    fn what_was_complete_before_must_be_complete_again() {
        let before = workload("one", 0, 0);
        assert!(workload("two", 0, 0).is_complete_after(Some(&before)));
        assert!(!workload("two", 0, 3).is_complete_after(Some(&before)));
        assert!(!workload("two", 1, 1).is_complete_after(Some(&before)));
        // Its template is the same, but it was complete.
        assert!(!workload("one", 1, 1).is_complete_after(Some(&before)));
        // A workload that is new, or of which nothing is known.
        assert!(!workload("two", 1, 1).is_complete_after(None));
        assert!(workload("two", 0, 0).is_complete_after(None));
    }

    #[test]
    fn what_was_incomplete_before_is_not_missed() {
        let before = workload("one", 1, 1);
        assert!(workload("one", 1, 1).is_complete_after(Some(&before)));
        assert!(workload("one", 3, 3).is_complete_after(Some(&before)));
        // Another template: as many pods as before may be missing, and no more.
        assert!(workload("two", 1, 1).is_complete_after(Some(&before)));
        assert!(!workload("two", 1, 3).is_complete_after(Some(&before)));
        let unobserved = WorkloadState {
            observed: false,
            ..workload("two", 1, 1)
        };
        assert!(!unobserved.is_complete_after(Some(&before)));
        // One that was not there before, and is not there now.
        let absent = WorkloadState {
            observed: false,
            ..workload("", 0, u32::MAX)
        };
        assert!(absent.is_complete_after(Some(&absent)));
        assert!(!absent.is_complete_after(Some(&workload("one", 0, 0))));
        assert!(!absent.is_complete_after(None));
    }
}
