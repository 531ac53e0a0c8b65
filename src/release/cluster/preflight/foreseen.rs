//! What people should know of a rollback beforehand.

use std::sync::PoisonError;

use crate::helm::record::HelmRecord;
use crate::release::RollbackPlan;
use crate::release::cluster::ClusterEngine;
use crate::release::cluster::api::ApiError;
use crate::release::cluster::checks;
use crate::release::cluster::granted::Asker;
use crate::release::cluster::rbac::RbacRights;
use crate::release::cluster::replicas::{self, KeptReplicas};
use crate::release::cluster::scope::ApiScope;

/// Sentences on one rollback, beside those on autoscalers.
const MAX_FORESEEN: usize = 12;

impl ClusterEngine {
    /// Keeps what people should know of the rollback for the status and the timeline.
    pub(super) async fn foresee(
        &self,
        about: About<'_>,
        records: [&HelmRecord; 2],
        scope: &ApiScope,
        remarks: Vec<String>,
    ) -> Result<(), ApiError> {
        let [bad, target] = records;
        let kept = self.kept_replicas(bad, target, scope).await?;
        let namespace = self.cache.namespace().as_str();
        let mut lines = foreseen(about, records, (scope, namespace), &kept);
        lines.extend(remarks);
        if about.begins {
            for line in &lines {
                tracing::warn!(release = %self.release, "{line}");
            }
        }
        *self.foreseen.lock().unwrap_or_else(PoisonError::into_inner) = lines;
        Ok(())
    }

    /// Says when rights are missing without which a rollback goes on, and people learn less of why.
    pub(super) async fn say_what_evidence_lacks(&self, asker: Asker) -> Result<(), ApiError> {
        let needed = RbacRights::to_collect(self.cache.namespace().as_str());
        let missing = self.cache.missing(&needed, asker).await?.join(", ");
        let mut known = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
        if !missing.is_empty() && *known != missing {
            tracing::warn!(
                release = %self.release,
                "Evidence and Events will not be whole, as rights are missing: {missing}; `leadsman rbac` prints what is needed"
            );
        }
        *known = missing;
        Ok(())
    }
}

/// A rollback of which people are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) plan: &'a RollbackPlan,
    /// Whether it begins now; otherwise it might.
    pub(super) begins: bool,
}

/// What people should know of a rollback: before it, and in other words when it is done, so that the timeline says both.
fn foreseen(
    About { plan, begins }: About<'_>,
    [bad, target]: [&HelmRecord; 2],
    (scope, namespace): (&ApiScope, &str),
    kept: &[KeptReplicas],
) -> Vec<String> {
    let mut foreseen = replicas::remarks(kept);
    if plan.bad == plan.target {
        return foreseen;
    }
    // What may have changed data comes first: it is what people may have to undo.
    let mut lines = checks::not_hooks(bad, target, scope);
    lines.extend(checks::other_crds(bad, target));
    lines.extend(checks::not_restarted(bad, target, scope, namespace));
    // An autoscaler changes its numbers each minute, and has a remark without them.
    let is_told = |one: &&KeptReplicas| begins || !one.is_scaled();
    lines.extend(kept.iter().filter(is_told).filter_map(KeptReplicas::line));
    lines.truncate(MAX_FORESEEN);
    let about = if begins {
        format!("Rollback of revision {}", plan.bad)
    } else {
        format!("If revision {} is rolled back", plan.bad)
    };
    foreseen.extend(lines.into_iter().map(|line| format!("{about}: {line}")));
    foreseen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::revision_ledger::ContentDigest;
    use crate::core::units::Revision;
    use crate::release::cluster::checks::tests::plain;

    fn plan(bad: u32) -> RollbackPlan {
        RollbackPlan {
            bad: Revision(bad),
            target: Revision(4),
            digest: ContentDigest("4444".into()),
            reason: String::new(),
            is_dry_run: false,
            fence: 1,
        }
    }

    #[test]
    fn a_job_that_may_have_migrated_data_is_told_of_before_the_rollback_and_at_it() {
        let jobs = |count: u32| {
            let job = |number| {
                format!(
                    "---\napiVersion: batch/v1\nkind: Job\nmetadata:\n  name: migrate-{number}\nspec: {{template: {{}}}}\n"
                )
            };
            plain(&(0..count).map(job).collect::<String>())
        };
        let scope = ApiScope::for_tests("shop", &[("batch/v1", "Job", "jobs")]);
        let (bad, target) = (jobs(1), jobs(0));
        let told = |bad_number, begins, bad: &HelmRecord| {
            let plan = &plan(bad_number);
            let about = About { plan, begins };
            foreseen(about, [bad, &target], (&scope, "shop"), &[])
        };
        let line = "Job migrate-0 of revision 1 is not in revision 1: it may have migrated data";
        let before = format!("If revision 5 is rolled back: {line}");
        assert_eq!(told(5, false, &bad), [before]);
        let at_it = format!("Rollback of revision 5: {line}");
        assert_eq!(told(5, true, &bad), [at_it]);
        assert!(told(4, false, &bad).is_empty(), "it serves");
        let many = told(5, false, &jobs(100));
        assert!(many.len() <= MAX_FORESEEN, "{many:?}");
    }
}
