//! Whether the API server would take what helm is about to write.
//!
//! A policy, a webhook or a quota that came after a revision may refuse its manifest, and helm would learn that half-way.
//! So each request of the rollback is sent beforehand with `dryRun=All`: it is admitted and checked as the real one, and
//! nothing is kept of it.
//!
//! - Helm 3, and Helm 4 where the target was not applied by the server, writes the difference between both manifests and
//!   what is there. The same difference is made here ([`super::merge`]), so that what is equal everywhere is not sent.
//! - Helm 4 applies every object of a target that the server applied, also one that does not change.
//! - Objects that go away are deleted, and hooks of the rollback created.
//!
//! Before a rollback all of it is tried; in the minutely look all of it when a plan is new and every ten minutes, and in
//! between a few in turn, with those that were refused. Policies look at kinds and say so for the next of them, and who
//! may see that a policy changed is more than Leadsman needs to be.

mod answer;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::PoisonError;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Patch, PatchParams, PostParams, ValidationDirective};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ClusterEngine;
use super::api::ApiError;
use super::checks::PreflightFailure;
use super::helm_command::HelmVersion;
use super::merge;
use super::rbac;
use super::scope::ApiScope;
use super::scope_check::ScopeCheck;
use crate::helm::manifest::{self, ManifestObject};
use crate::helm::record::HelmRecord;
use crate::release::RollbackPlan;
use answer::DryRunAnswer;

/// Requests of one release that are under way at a time.
const AT_A_TIME: usize = 4;

/// Those of the minutely looks of all releases together; a rollback waits for none of them.
static LOOKING: Semaphore = Semaphore::const_new(8);

/// Objects that are tried for one rollback, and their size together, in bytes.
const MAX_TRIED: usize = 500;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// How long one request may take: some more than the 10 s that a webhook is given unless it asks for more, so that the
/// API server names the webhook.
const PATIENCE: Duration = Duration::from_secs(12);

/// How long all of them may take.
const LONGEST: Duration = Duration::from_secs(20);

/// In the minutely look: objects that are tried in turn, refused ones that are tried again, and when all are.
const IN_TURN: usize = 4;
const AGAIN: usize = 4;
const ALL_EVERY: Duration = Duration::from_secs(600);

/// What helm writes with.
const MANAGER: &str = "helm";

/// One request of helm.
#[derive(Debug, Clone, PartialEq)]
struct DryRunStep {
    object: ManifestObject,
    what: DryRunVerb,
}

#[derive(Debug, Clone, PartialEq)]
enum DryRunVerb {
    /// Made, or changed from what the bad revision says of it.
    Written {
        was: Option<Value>,
    },
    /// Created anew.
    Hook,
    Deleted,
}

/// How helm writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WriteMethod {
    /// The server merges, and knows what helm wrote before.
    applies: bool,
    /// Also what does not change is written.
    writes_all: bool,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StepResult {
    /// What was refused.
    pub(super) failures: Vec<PreflightFailure>,
    /// A webhook that the API server waits for in vain, in words.
    pub(super) away: Option<String>,
    /// What could not be tried, in words.
    pub(super) untried: Vec<String>,
}

/// What came of some steps.
struct DryRunRound {
    tried: StepResult,
    /// Those that were not taken.
    refused: BTreeSet<usize>,
    /// Some were not answered in time.
    is_late: bool,
}

/// What the minutely look knows from before.
#[derive(Debug)]
pub(super) struct DryRunCache {
    key: String,
    at: Instant,
    /// The step whose turn is next.
    next: usize,
    /// Steps that were not taken.
    refused: BTreeSet<usize>,
    tried: StepResult,
}

type StepResults<'a> =
    Pin<Box<dyn Future<Output = (usize, Result<DryRunAnswer, ApiError>)> + Send + 'a>>;

impl ClusterEngine {
    /// Tries what a rollback from one record to the other would write.
    ///
    /// # Errors
    /// When the API server has trouble of its own.
    pub(super) async fn try_beforehand(
        &self,
        plan: &RollbackPlan,
        [bad, target]: [&HelmRecord; 2],
        scoped: &ScopeCheck,
        version: HelmVersion,
    ) -> Result<StepResult, ApiError> {
        let is_server_side = version.major >= 4 && target.server_side;
        let way = WriteMethod {
            applies: is_server_side && bad.server_side,
            // A rehearsal without a bad revision asks whether what serves could be written again.
            writes_all: is_server_side || plan.bad == plan.target,
        };
        let (namespace, name) = (self.cache.namespace().as_str(), self.release.as_str());
        let read = |record: &HelmRecord| {
            let objects = manifest::objects(&record.manifest).unwrap_or_default();
            scoped.without_left_alone(&objects, &self.policy.may)
        };
        let hooks = rbac::rollback_hooks(target);
        let steps = steps([read(bad), read(target), hooks], &scoped.scope, &|object| {
            marked(object, name, namespace)
        });
        let (tried, bounds) = within_bounds(&steps);
        if !plan.is_dry_run {
            let all: Vec<usize> = (0..tried).collect();
            let DryRunRound { tried: found, .. } = self.try_these(&steps, &all, way, None).await?;
            for line in bounds.iter().chain(&found.untried) {
                tracing::warn!(release = %self.release, "Before the rollback: {line}");
            }
            return Ok(found);
        }
        let key = format!(
            "{} {} {} {}",
            plan.bad,
            bad.digest().0,
            target.digest().0,
            version.major
        );
        let known = || self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        let few = known().as_mut().and_then(|known| known.few(&key, tried));
        if let Some((few, refused)) = few {
            let now = self.try_these(&steps, &few, way, Some(&LOOKING)).await?;
            if (now.is_late || now.refused == refused)
                && let Some(known) = &*known()
            {
                return Ok(known.tried.clone());
            }
        }
        let all: Vec<usize> = (0..tried).collect();
        let all = self.try_these(&steps, &all, way, Some(&LOOKING)).await?;
        let (mut found, refused) = (all.tried, all.refused);
        found.untried.extend(bounds);
        let before = known().replace(DryRunCache {
            key,
            at: Instant::now(),
            next: 0,
            refused,
            tried: found.clone(),
        });
        if before.is_none_or(|before| before.tried.untried != found.untried) {
            for line in &found.untried {
                tracing::info!(release = %self.release, "A rollback could not be tried as a whole: {line}");
            }
        }
        Ok(found)
    }

    /// Tries some of the steps.
    async fn try_these(
        &self,
        steps: &[DryRunStep],
        these: &[usize],
        way: WriteMethod,
        turns: Option<&'static Semaphore>,
    ) -> Result<DryRunRound, ApiError> {
        let deadline = Instant::now() + LONGEST;
        let requests: Vec<StepResults<'_>> = these
            .iter()
            .filter_map(|index| Some((*index, steps.get(*index)?)))
            .map(|(index, step)| {
                Box::pin(async move { (index, self.answer(step, way, turns).await) }) as _
            })
            .collect();
        let mut requests = futures::stream::iter(requests).buffer_unordered(AT_A_TIME);
        let mut answers = Vec::new();
        let mut is_late = false;
        loop {
            match tokio::time::timeout_at(deadline, requests.next()).await {
                Ok(Some((index, answer))) => answers.push((index, answer?)),
                Ok(None) => break,
                Err(_) => {
                    is_late = true;
                    break;
                }
            }
        }
        answers.sort_by_key(|(index, _)| *index);
        let refused = answers
            .iter()
            .filter(|(_, answer)| answer.is_refusal())
            .map(|(index, _)| *index)
            .collect();
        let objects = answers
            .iter()
            .filter_map(|(index, answer)| Some((&steps.get(*index)?.object, answer)));
        let mut tried = answer::together(objects);
        if is_late {
            tried.untried.push(format!(
                "{} of {} requests of helm were answered within {} s; what becomes of the others is known when helm sends them",
                answers.len(),
                these.len(),
                LONGEST.as_secs()
            ));
        }
        Ok(DryRunRound {
            tried,
            refused,
            is_late,
        })
    }

    async fn answer(
        &self,
        step: &DryRunStep,
        way: WriteMethod,
        turns: Option<&'static Semaphore>,
    ) -> Result<DryRunAnswer, ApiError> {
        // They are never closed; without a turn there would only be more at a time.
        let _turn = match turns {
            Some(turns) => turns.acquire().await.ok(),
            None => None,
        };
        let client = self.cache.acting()?.clone();
        let Some(api) = self.api_of(client.clone(), &step.object).await? else {
            return Ok(DryRunAnswer::Taken);
        };
        match tokio::time::timeout(PATIENCE, send(client, &api, step, way)).await {
            Ok(Ok(())) => Ok(DryRunAnswer::Taken),
            Ok(Err(trouble)) => answer::of(trouble),
            Err(_) => Ok(DryRunAnswer::Away(format!(
                "no answer within {} s",
                PATIENCE.as_secs()
            ))),
        }
    }
}

impl DryRunCache {
    /// Which steps are tried this time, and which of them were refused before; `None` when all have to be.
    fn few(&mut self, key: &str, steps: usize) -> Option<(Vec<usize>, BTreeSet<usize>)> {
        if self.key != key || self.at.elapsed() >= ALL_EVERY || steps == 0 {
            return None;
        }
        let in_turn = (0..steps.min(IN_TURN)).map(|more| (self.next + more) % steps);
        let again = self.refused.iter().copied().take(AGAIN);
        let few: BTreeSet<usize> = in_turn.chain(again).collect();
        self.next = (self.next + IN_TURN) % steps;
        let refused = few.intersection(&self.refused).copied().collect();
        Some((few.into_iter().collect(), refused))
    }
}

/// What helm sends, in an order in which those come first that policies ask most of.
fn steps(
    [old, new, hooks]: [Vec<ManifestObject>; 3],
    scope: &ApiScope,
    marked: &dyn Fn(ManifestObject) -> ManifestObject,
) -> Vec<DryRunStep> {
    let is_same =
        |one: &ManifestObject, other: &ManifestObject| scope.identity(one) == scope.identity(other);
    let deleted = old
        .iter()
        .filter(|object| !new.iter().any(|other| is_same(object, other)))
        .map(|object| DryRunStep {
            object: object.clone(),
            what: DryRunVerb::Deleted,
        });
    let deleted: Vec<DryRunStep> = deleted.collect();
    let written = new.into_iter().map(|object| {
        let was = old.iter().find(|other| is_same(&object, other));
        DryRunStep {
            what: DryRunVerb::Written {
                was: was.map(|was| was.body.clone()),
            },
            object: marked(object),
        }
    });
    let hooks = hooks.into_iter().map(|object| DryRunStep {
        object,
        what: DryRunVerb::Hook,
    });
    let mut steps: Vec<DryRunStep> = written.chain(hooks).chain(deleted).collect();
    steps.sort_by_key(|step| !step.object.is_workload() && step.what != DryRunVerb::Hook);
    steps
}

/// How many of the steps are tried, and what is said of the others.
fn within_bounds(steps: &[DryRunStep]) -> (usize, Option<String>) {
    let mut bytes = 0;
    let fits = |step: &&DryRunStep| {
        bytes += step.object.body.to_string().len();
        bytes <= MAX_BYTES
    };
    let tried = steps.iter().take(MAX_TRIED).take_while(fits).count();
    let said = (tried < steps.len()).then(|| {
        format!(
            "of {} requests of helm the first {tried} are tried beforehand (at most {MAX_TRIED}, and {} MiB); what becomes of the others is known when helm sends them",
            steps.len(),
            MAX_BYTES / 1024 / 1024
        )
    });
    (tried, said)
}

/// An object as helm writes it: no manifest says whose it is.
fn marked(mut object: ManifestObject, release: &str, namespace: &str) -> ManifestObject {
    let mark = json!({"metadata": {
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {
            "meta.helm.sh/release-name": release,
            "meta.helm.sh/release-namespace": namespace,
        },
    }});
    object.body = merge::merged(None, &mark, Some(&object.body));
    object
}

/// Sends what helm would send, to be tried only.
async fn send(
    client: Client,
    api: &Api<DynamicObject>,
    step: &DryRunStep,
    way: WriteMethod,
) -> Result<(), ApiError> {
    let DryRunStep { object, what } = step;
    match what {
        DryRunVerb::Hook => create(api, object).await,
        DryRunVerb::Deleted => delete(client, api, object).await,
        DryRunVerb::Written { .. } if way.applies => {
            let params = PatchParams {
                dry_run: true,
                force: true,
                field_manager: Some(MANAGER.into()),
                field_validation: Some(ValidationDirective::Strict),
            };
            let patch = Patch::Apply(&object.body);
            api.patch(&object.name, &params, &patch)
                .await
                .map_err(ApiError::from)
                .map(drop)
        }
        DryRunVerb::Written { was } => {
            let Some(live) = api.get_opt(&object.name).await? else {
                return create(api, object).await;
            };
            let live = serde_json::to_value(&live)
                .map_err(|error| ApiError::Unreadable(error.to_string()))?;
            let patch = match was {
                // Of kinds that it does not know Helm compares the manifests alone.
                Some(was) if !is_built_in(object) => merge::patch(was, &object.body),
                _ => {
                    let will = merge::merged(was.as_ref(), &object.body, Some(&live));
                    merge::patch(&live, &will)
                }
            };
            if patch == json!({}) && !way.writes_all {
                return Ok(());
            }
            let params = PatchParams {
                dry_run: true,
                field_manager: Some(MANAGER.into()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(&patch);
            api.patch(&object.name, &params, &patch)
                .await
                .map_err(ApiError::from)
                .map(drop)
        }
    }
}

async fn create(api: &Api<DynamicObject>, object: &ManifestObject) -> Result<(), ApiError> {
    let Ok(whole) = serde_json::from_value(object.body.clone()) else {
        // Helm reads it as loosely as the manifest is written; what it says is known then.
        return Ok(());
    };
    let params = PostParams {
        dry_run: true,
        field_manager: Some(MANAGER.into()),
    };
    api.create(&params, &whole)
        .await
        .map_err(ApiError::from)
        .map(drop)
}

/// Only of kinds that Kubernetes itself serves: a server of somebody else that does not know of `dryRun` would really
/// delete. And only what helm deletes.
async fn delete(
    client: Client,
    api: &Api<DynamicObject>,
    object: &ManifestObject,
) -> Result<(), ApiError> {
    if !is_built_in(object) {
        return Ok(());
    }
    let live = api.get_metadata_opt(&object.name).await?;
    let is_deleted = live.is_some_and(|live| {
        let annotations = live.metadata.annotations.unwrap_or_default();
        let policy = annotations.get("helm.sh/resource-policy");
        policy.is_none_or(|policy| policy != "keep")
    });
    if !is_deleted {
        return Ok(());
    }
    // In the address, where the API server's audit log shows it, and not in a body as the client has it.
    let address = format!(
        "{}/{}?dryRun=All&propagationPolicy=Background",
        api.resource_url(),
        object.name
    );
    let request = http::Request::delete(address)
        .body(Vec::new())
        .map_err(|error| ApiError::Unreadable(error.to_string()))?;
    client
        .request_text(request)
        .await
        .map_err(ApiError::from)
        .map(drop)
}

/// Whether helm knows the kind by itself, and the API server serves it by itself.
fn is_built_in(object: &ManifestObject) -> bool {
    const GROUPS: [&str; 20] = [
        "",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "apps",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "coordination.k8s.io",
        "discovery.k8s.io",
        "events.k8s.io",
        "flowcontrol.apiserver.k8s.io",
        "networking.k8s.io",
        "node.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "resource.k8s.io",
        "scheduling.k8s.io",
        "storage.k8s.io",
    ];
    rbac::split(&object.api_version).is_some_and(|(group, _)| GROUPS.contains(&group))
}

#[cfg(test)]
mod tests;
