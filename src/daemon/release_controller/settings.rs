//! ConfigMaps and Secrets that a revision or a rollback changes for pods that keep running.
//!
//! If only a ConfigMap or Secret changes, no pod is replaced. The kubelet updates mounted files after a while;
//! environment variables keep the value from the pod's start.

use std::time::Duration;

use super::ReleaseController;
use crate::core::rollout::RolloutPhase;
use crate::core::units::{Namespace, Revision};
use crate::release::change::NotRestarted;

/// A kubelet syncs a pod at least every minute, with some jitter, and takes the ConfigMap that its watch knows then.
const BROUGHT_WITHIN: Duration = Duration::from_secs(90);

/// How long the release must be healthy afterwards, see [`crate::core::analysis::Verification`].
const CALM: Duration = Duration::from_secs(15);

/// Workloads that a sentence names.
const MAX_NAMED: usize = 3;

impl ReleaseController {
    /// Workloads whose pods keep running although a revision changed what they read.
    fn not_restarted(
        &self,
        revision: Option<Revision>,
        before: Option<Revision>,
    ) -> Vec<NotRestarted> {
        let both = revision.zip(before);
        both.map_or_else(Vec::new, |(revision, before)| {
            self.release_state
                .borrow()
                .release_state
                .not_restarted(revision, before)
        })
    }

    /// Workloads that the current rollback leaves running.
    fn not_restarted_by_rollback(&self) -> Vec<NotRestarted> {
        let RolloutPhase::Verifying(candidate) = self.state.rollout.phase() else {
            return Vec::new();
        };
        self.not_restarted(candidate.created_revision, Some(candidate.revision))
    }

    /// Whether pods may still get the settings that the rollback changed.
    pub(super) fn settings_may_still_come(&self) -> bool {
        let candidate = self.state.rollout.phase().candidate();
        let rolled_back_at = candidate.and_then(|candidate| candidate.rolled_back_at);
        let is_early =
            rolled_back_at.is_some_and(|at| self.now().since(at) < BROUGHT_WITHIN + CALM);
        is_early
            && self
                .not_restarted_by_rollback()
                .iter()
                .any(|one| one.is_mounted)
    }

    /// Logs at the start of a verification that pods do not have its settings yet.
    pub(super) fn tell_of_old_settings(&mut self) {
        let waits = mounting(&self.not_restarted_by_rollback());
        if waits.is_empty() {
            return;
        }
        let text = format!(
            "Its pods still have the old settings: the rollback changes what {waits} mounts, and not its template; a kubelet brings it to them within {} s, and the verification waits for that",
            BROUGHT_WITHIN.as_secs()
        );
        self.remark_settings(&text);
    }

    /// Logs the same for a new revision.
    pub(super) fn tell_of_new_settings(&mut self, revision: Revision) {
        let serving = self.state.rollout.phase().candidate();
        let serving = serving.and_then(|candidate| candidate.serving);
        let waits = mounting(&self.not_restarted(Some(revision), serving));
        if waits.is_empty() {
            return;
        }
        let text = format!(
            "Revision {revision} changes what {waits} mounts, and not its template: its pods have the old settings for up to {} s",
            BROUGHT_WITHIN.as_secs()
        );
        self.remark_settings(&text);
    }

    /// Logs that an analysis may end before the rollout is complete, judged by earlier rollouts.
    pub(super) fn tell_of_long_rollouts(&mut self) {
        let rule = &self.setup.release.controller.rule;
        let took = self.state.taught.iter().map(|one| one.rollout_s);
        if let Some(text) = too_short(
            took.fold(0.0, f64::max),
            rule.longest_s(),
            rule.after_complete_s,
        ) {
            self.remark_settings(&text);
        }
    }

    fn remark_settings(&mut self, text: &str) {
        self.state.rollout.remark(self.now(), text);
        self.keep_entries();
        self.publish();
    }

    /// Why perhaps no pod ran with the settings of a revision that passed: the analysis ended before they arrived.
    pub(super) fn ended_before_settings(&self, took: Duration) -> Option<String> {
        let candidate = self.state.rollout.phase().candidate()?;
        let waits = mounting(&self.not_restarted(Some(candidate.revision), candidate.serving));
        let least = BROUGHT_WITHIN + CALM;
        (took < least && !waits.is_empty()).then(|| {
            format!(
                "its pods may still have the old settings: a kubelet brings what {waits} mounts within {} s, and the analysis took {} s; set release.analysis.duration to {} s or more",
                BROUGHT_WITHIN.as_secs(),
                took.as_secs(),
                least.as_secs()
            )
        })
    }

    /// What to add if the same still fails after a rollback while pods may have the settings that failed.
    pub(super) fn old_settings(&self, failing: &str) -> Option<String> {
        let all = self.not_restarted_by_rollback();
        still_old(failing, &all, &self.setup.release.namespace)
    }
}

/// The warning if a rollout as long as earlier ones leaves too little of the analysis; all in seconds.
fn too_short(took: f64, longest: f64, after_complete: f64) -> Option<String> {
    // As many results as half of that time brings are too few to meet the new pods.
    let is_short = took > 0.0 && took + after_complete / 2.0 > longest;
    let needed = (took + after_complete).ceil();
    is_short.then(|| {
        format!(
            "A rollout of this release has taken {took:.0} s, and the analysis ends after {longest:.0} s: if this one takes as long, too little is left to judge it; set release.analysis.max_duration to {needed:.0} s or more"
        )
    })
}

fn mounting(all: &[NotRestarted]) -> String {
    let mounted = all.iter().filter(|one| one.is_mounted);
    named(mounted.map(|one| format!("{} {}", one.kind, one.name)))
}

fn named(all: impl Iterator<Item = String>) -> String {
    let mut names: Vec<String> = all.collect();
    let more = names.len().saturating_sub(MAX_NAMED);
    names.truncate(MAX_NAMED);
    if more > 0 {
        names.push(format!("{more} more"));
    }
    names.join(", ")
}

fn still_old(failing: &str, all: &[NotRestarted], namespace: &Namespace) -> Option<String> {
    let command = |one: &NotRestarted| {
        format!(
            "kubectl rollout restart {}/{} --namespace {namespace}",
            one.kind.to_lowercase(),
            one.name
        )
    };
    (!all.is_empty()).then(|| {
        format!(
            "{failing}; its pods still have the old settings, unless they read them anew while they run: {}",
            named(all.iter().map(command))
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_analysis_that_earlier_rollouts_outlast_is_said_to_be_too_short() {
        assert_eq!(too_short(0.0, 10.0, 120.0), None);
        assert_eq!(too_short(240.0, 300.0, 120.0), None);
        let text = too_short(250.0, 300.0, 120.0).unwrap_or_default();
        assert!(text.ends_with("max_duration to 370 s or more"), "{text}");
    }

    #[test]
    fn what_is_not_restarted_is_named_with_the_command() {
        let one = |name: &str, is_mounted: bool| NotRestarted {
            kind: "Deployment".into(),
            name: name.into(),
            is_mounted,
        };
        let all = [one("a", true), one("b", false), one("c", true)];
        assert_eq!(mounting(&all), "Deployment a, Deployment c");
        let many: Vec<NotRestarted> = (0..9).map(|_| one("a", true)).collect();
        assert!(mounting(&many).ends_with(", 6 more"));
        let namespace = Namespace::new("shop");
        assert_eq!(still_old("db 1/1", &[], &namespace), None);
        let expected = "db 1/1; its pods still have the old settings, unless they read them anew while they run: kubectl rollout restart deployment/b --namespace shop";
        assert_eq!(
            still_old("db 1/1", &all[1..2], &namespace).as_deref(),
            Some(expected)
        );
    }
}
