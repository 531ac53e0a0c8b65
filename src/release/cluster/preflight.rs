//! Before helm is started: may and can the rollback be done?

use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use super::api::Trouble;
use super::checks::{self, Allowed, Obstacle};
use super::facts::status_of;
use super::helm;
use super::rights;
use super::rights::Rights;
use crate::release::manifest::Object;
use crate::release::record::Record;
use crate::release::{Plan, Refusal};

/// A waiting upgrade is given so long before it is rolled back over.
const PENDING_FOR: Duration = Duration::from_secs(10);

/// Between looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long is waited for a hook that runs, or for an API server that is away.
const WAIT: Duration = Duration::from_secs(600);

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
                    if self.may_pass(&trouble) && !plan.is_rehearsal && began.elapsed() <= WAIT =>
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
        helm::version(&self.policy).await.map_err(|why| {
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
            obstacles.extend(self.rights(&objects, &target).await?);
            if !obstacles.is_empty() && self.hub.is_unsteady() {
                return Ok(Some(
                    "the API server has just come back and does not know all rights yet".into(),
                ));
            }
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
    async fn rights(&self, objects: &[Object], target: &Record) -> Result<Vec<Obstacle>, Trouble> {
        let hooks = rights::rollback_hooks(target);
        let (mut needed, unknown) = rights::to_change(&self.hub, objects, &hooks).await?;
        needed.extend(Rights::to_record(
            self.hub.namespace().as_str(),
            self.hub.driver(),
        ));
        let mut obstacles = Vec::new();
        if !unknown.is_empty() {
            let unknown: Vec<String> = unknown.into_iter().collect();
            obstacles.push(Obstacle {
                reason: "unknown_kind",
                text: format!("the cluster does not have {}", unknown.join(", ")),
            });
        }
        let missing = needed.missing(&self.hub).await?;
        if !missing.is_empty() {
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
