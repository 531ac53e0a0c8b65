//! Whether the API server would accept what helm is about to write.
//!
//! A policy, a webhook or a quota that was added after a revision may reject its manifest, and helm would find out
//! half-way. So each request of the rollback is first sent with `dryRun=All`: the API server admits and validates it
//! like the real one, but stores nothing.
//!
//! - Helm 3, and Helm 4 if the target was not applied server-side, writes the difference between both manifests and the
//!   live object. [`super::merge`] computes the same difference, so unchanged objects are not sent.
//! - Helm 4 applies every object of a target that was applied server-side, also unchanged ones.
//! - Removed objects are deleted, and the hooks of the rollback are created.
//!
//! Before a rollback all requests are tried. The check each minute tries all of them for a new plan and every ten
//! minutes; in between it tries a few in turn, and those that were refused. That suffices: a policy refuses whole
//! kinds, so a new one shows soon. Watching the policies themselves would need rights that Leadsman should not have.

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

/// Concurrent requests for one release.
const AT_A_TIME: usize = 4;

/// Concurrent requests of the minutely checks of all releases; a rollback does not wait for them.
static LOOKING: Semaphore = Semaphore::const_new(8);

/// Objects that are tried for one rollback, and their total size in bytes.
const MAX_TRIED: usize = 500;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// Maximum duration of one request. A webhook has 10 s by default; with some more, the API server still names the
/// webhook.
const PATIENCE: Duration = Duration::from_secs(12);

/// Maximum duration of all requests.
const LONGEST: Duration = Duration::from_secs(20);

/// In the minutely check: objects tried in turn, refused objects tried again, and the interval of a full check.
const IN_TURN: usize = 4;
const AGAIN: usize = 4;
const ALL_EVERY: Duration = Duration::from_secs(600);

/// The field manager of helm.
const MANAGER: &str = "helm";

/// One request of helm.
#[derive(Debug, Clone, PartialEq)]
struct DryRunStep {
    object: ManifestObject,
    what: DryRunVerb,
}

#[derive(Debug, Clone, PartialEq)]
enum DryRunVerb {
    /// Created, or changed from the bad revision's object.
    Written {
        was: Option<Value>,
    },
    /// A hook, created anew.
    Hook,
    Deleted,
}

/// How helm writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct WriteMethod {
    /// Server-side apply: the server merges, and knows what helm wrote before.
    applies: bool,
    /// Unchanged objects are written as well.
    writes_all: bool,
}

/// Result of a dry run of a rollback.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StepResult {
    /// What was refused.
    pub(super) failures: Vec<PreflightFailure>,
    /// A webhook that the API server waits for in vain, in words.
    pub(super) away: Option<String>,
    /// What could not be tried, in words.
    pub(super) untried: Vec<String>,
}

/// Results of some steps.
struct DryRunRound {
    tried: StepResult,
    /// Steps that were refused.
    refused: BTreeSet<usize>,
    /// Some answers did not come in time.
    is_late: bool,
}

/// What the minutely check remembers.
#[derive(Debug)]
pub(super) struct DryRunCache {
    key: String,
    at: Instant,
    /// The next step in turn.
    next: usize,
    /// Steps that were refused.
    refused: BTreeSet<usize>,
    tried: StepResult,
}

type StepResults<'a> =
    Pin<Box<dyn Future<Output = (usize, Result<DryRunAnswer, ApiError>)> + Send + 'a>>;

impl ClusterEngine {
    /// Tries what a rollback from one record to the other would write.
    ///
    /// # Errors
    ///
    /// When the API server fails itself.
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
    /// The steps to try this time, and which of them were refused before; `None` if all have to be tried.
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

/// The steps, starting with the kinds that policies restrict most.
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

/// How many of the steps are tried, and a remark about the others.
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

/// The object with Helm's ownership labels, which no manifest has.
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

/// Sends one dry run.
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

/// Tries a deletion. Only for kinds that Kubernetes itself serves: an aggregated API server that ignores `dryRun` would
/// really delete the object. And only for objects that helm deletes.
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

/// Whether helm and the API server both know the kind without an extension.
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
