//! Before helm is started: may and can the rollback be done?

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use kube::core::GroupVersionKind;
use tokio::time::Instant;

use super::Cluster;
use super::api::{Trouble, ask};
use super::checks::{self, Allowed, Obstacle};
use super::facts::status_of;
use super::helm;
use crate::release::manifest::Object;
use crate::release::record::Record;
use crate::release::{Plan, Refusal};

/// A waiting upgrade is given so long before it is rolled back over.
const PENDING_FOR: Duration = Duration::from_secs(10);

/// Between looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long is waited for a hook that runs, or for an API server that is away.
const WAIT: Duration = Duration::from_secs(600);

/// Access reviews at a time.
const AT_A_TIME: usize = 8;

/// Kinds that are asked for rights.
const MAX_KINDS: usize = 100;

/// What helm does to each kind of a manifest.
const VERBS: [&str; 4] = ["get", "create", "patch", "delete"];

/// What it does to a hook's.
const HOOK_VERBS: [&str; 5] = ["get", "list", "watch", "create", "delete"];

impl Cluster {
    pub(super) async fn may_be_turned_back(&self, plan: &Plan) -> Result<(), Refusal> {
        let began = Instant::now();
        loop {
            match self.look(plan).await {
                Ok(None) => return Ok(()),
                Ok(Some(why)) if began.elapsed() > WAIT => {
                    return Err(Refusal::prevented(
                        "pending",
                        format!("waited {} s, and {why}", WAIT.as_secs()),
                    ));
                }
                // A rehearsal asks what would be in the way, not how long.
                Ok(Some(_)) if plan.is_rehearsal => return Ok(()),
                Ok(Some(why)) => {
                    tracing::info!(release = %self.release, "The rollback waits: {why}");
                }
                Err(Refused::Is(refusal)) => return Err(refusal),
                Err(Refused::Trouble(trouble))
                    if trouble.may_pass() && !plan.is_rehearsal && began.elapsed() <= WAIT =>
                {
                    tracing::warn!(release = %self.release, %trouble, "The rollback waits for the API server");
                }
                Err(Refused::Trouble(trouble)) => {
                    return Err(Refusal::Storage(trouble.to_string()));
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Looks once; why it has to be waited, if so.
    async fn look(&self, plan: &Plan) -> Result<Option<String>, Refused> {
        let version = helm::version(&self.policy).await.map_err(|why| {
            Refusal::prevented(
                "helm",
                format!("{why}; by hand: {}", self.by_hand(plan.target)),
            )
        })?;
        let rows = self.records.list(&self.release).await?;
        let Some(newest) = rows.last() else {
            return Err(Refusal::Storage(format!("the release {} is gone", self.release)).into());
        };
        if newest.revision != plan.bad {
            return Err(Refusal::Overtaken {
                bad: plan.bad,
                newest: newest.revision,
            }
            .into());
        }
        let target = self
            .record(plan.target)
            .await?
            .filter(|record| record.digest() == plan.digest);
        let Some(target) = target else {
            return Err(Refusal::TargetGone {
                target: plan.target,
            }
            .into());
        };
        let Some(bad) = self.record(plan.bad).await? else {
            return Err(Refusal::prevented(
                "unreadable",
                format!(
                    "the record of revision {} cannot be read; by hand: {}",
                    plan.bad,
                    self.by_hand(plan.target)
                ),
            )
            .into());
        };
        let status = status_of(newest);
        if status.is_pending() {
            if !self.policy.may.while_pending {
                return Err(Refusal::Pending {
                    revision: plan.bad,
                    status,
                }
                .into());
            }
            let since = self.hub.now().since(self.seen_since(plan.bad));
            if since < PENDING_FOR {
                return Ok(Some(format!(
                    "revision {} is {status} for {} s only",
                    plan.bad,
                    since.as_secs()
                )));
            }
            if let Some(hook) = bad.hooks.iter().find(|hook| hook.phase == "Running") {
                return Ok(Some(format!("its hook {} runs", hook.name)));
            }
        }
        let allowed = Allowed {
            migrations: self.policy.may.after_migrations,
            keeper: self.policy.may.against_gitops,
            kinds: &self.policy.may.delete,
        };
        let (objects, mut obstacles) = checks::look(&bad, &target, &allowed);
        if !self.policy.may.against_gitops
            && let Some(keeper) = self.keeper(&objects)
        {
            obstacles.push(checks::keeper_obstacle(keeper));
        }
        if obstacles.is_empty() {
            obstacles.extend(self.rights(&objects, &target, version).await?);
        }
        let Some(first) = obstacles.first() else {
            return Ok(None);
        };
        let texts: Vec<&str> = obstacles.iter().map(|one| one.text.as_str()).collect();
        let text = format!(
            "{}; by hand: {}",
            texts.join("; "),
            self.by_hand(plan.target)
        );
        Err(Refusal::prevented(first.reason, text).into())
    }

    /// The tool that keeps a workload of the release, by what is in the cluster.
    fn keeper(&self, objects: &[Object]) -> Option<&'static str> {
        let tables = self.hub.tables();
        let own = |kind: &str, name: &str| {
            objects
                .iter()
                .any(|object| object.kind == kind && object.name == *name)
        };
        let mut keepers = tables
            .workloads()
            .filter(|row| own(row.kind.as_str(), &row.name));
        keepers.find_map(|row| row.keeper)
    }

    /// What helm would have to be allowed, and is not.
    async fn rights(
        &self,
        objects: &[Object],
        target: &Record,
        _: helm::Version,
    ) -> Result<Vec<Obstacle>, Trouble> {
        let namespace = self.hub.namespace().as_str();
        let driver = self.hub.driver().plural();
        let mut asked: Vec<Right> = ["get", "list", "create", "update"]
            .map(|verb| Right::new(namespace, "", driver, verb))
            .into();
        let hooks = target
            .hooks
            .iter()
            .filter(|hook| hook.runs_at("pre-rollback") || hook.runs_at("post-rollback"));
        let hooks: Vec<Object> = hooks
            .filter_map(|hook| crate::release::manifest::objects(&hook.manifest).ok())
            .flatten()
            .collect();
        let mut obstacles = Vec::new();
        let all = objects.iter().map(|object| (object, &VERBS[..]));
        for (object, verbs) in all
            .chain(hooks.iter().map(|hook| (hook, &HOOK_VERBS[..])))
            .take(MAX_KINDS * 10)
        {
            let Some((group, version)) = split(&object.api_version) else {
                continue;
            };
            let kind = GroupVersionKind::gvk(group, version, &object.kind);
            let Some((plural, is_namespaced)) = self.hub.resource(&kind).await? else {
                obstacles.push(Obstacle {
                    reason: "unknown_kind",
                    text: format!(
                        "the cluster does not have {} {}",
                        object.api_version, object.kind
                    ),
                });
                continue;
            };
            let place = if is_namespaced {
                object.namespace.as_deref().unwrap_or(namespace)
            } else {
                ""
            };
            for verb in verbs {
                let right = Right::new(place, group, &plural, verb);
                if !asked.contains(&right) && asked.len() < MAX_KINDS * VERBS.len() {
                    asked.push(right);
                }
            }
        }
        obstacles.dedup();
        let mut reviews = futures::stream::iter(asked)
            .map(|right| async move {
                let may = self.may(&right).await;
                (right, may)
            })
            .buffer_unordered(AT_A_TIME);
        let mut missing = Vec::new();
        while let Some((right, may)) = reviews.next().await {
            if !may? {
                missing.push(right.to_string());
            }
        }
        if !missing.is_empty() {
            missing.sort();
            obstacles.push(Obstacle {
                reason: "rights",
                text: format!(
                    "rights are missing: {}; `leadsman rbac` prints what is needed",
                    missing.join(", ")
                ),
            });
        }
        Ok(obstacles)
    }

    async fn may(&self, right: &Right) -> Result<bool, Trouble> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.hub.client().clone());
        let attributes = ResourceAttributes {
            namespace: Some(right.namespace.clone()).filter(|namespace| !namespace.is_empty()),
            group: Some(right.group.clone()),
            resource: Some(right.plural.clone()),
            verb: Some(right.verb.to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..Default::default()
            },
            ..Default::default()
        };
        let answer = ask(reviews.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

/// Group and version of `apps/v1` or `v1`.
fn split(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        Some((group, version)) => (!version.contains('/')).then_some((group, version)),
        None => Some(("", api_version)),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Right {
    namespace: String,
    group: String,
    plural: String,
    verb: &'static str,
}

impl Right {
    fn new(namespace: &str, group: &str, plural: &str, verb: &'static str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            group: group.to_owned(),
            plural: plural.to_owned(),
            verb,
        }
    }
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.namespace.is_empty() {
            write!(f, " in {}", self.namespace)?;
        }
        Ok(())
    }
}

/// Why a look ended without an answer.
enum Refused {
    Is(Refusal),
    Trouble(Trouble),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Is(refusal)
    }
}

impl From<Trouble> for Refused {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}
