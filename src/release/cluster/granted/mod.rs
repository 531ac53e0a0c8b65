//! What an account may do, asked once per namespace instead of per right and release.
//!
//! A SelfSubjectRulesReview returns all rules of a namespace. A right among them is granted: an authorizer that could
//! still deny it lists no rules, and then the answer is `incomplete`. A SelfSubjectAccessReview asks for a single right
//! if the rules are incomplete or lack it, and for objects without a namespace.
//!
//! Answers are used for [`KEPT`] by all releases of the namespace. A rollback, and a check after a change, accepts none
//! older than [`FRESH`].

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, ResourceRule, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
    SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use super::api::{ApiError, PATIENCE, ask};
use super::rbac::{RbacRights, RightScope};
use crate::release::EngineFuture;

/// How long an answer is used while nothing has changed.
pub(super) const KEPT: Duration = Duration::from_secs(600);

/// Maximum age of an answer after a change or before a rollback; one check asks several times.
pub(super) const FRESH: Duration = Duration::from_secs(5);

/// How long a check waits for another one that asks. An authorizer that hangs takes [`PATIENCE`] each time.
const WAIT: Duration = PATIENCE.saturating_mul(2);

/// How long a rollback waits for another check before it asks itself.
const SHORT_WAIT: Duration = Duration::from_secs(2);

/// Concurrent access reviews.
const AT_A_TIME: usize = 8;

/// Namespaces and single rights that are remembered; beyond that everything is asked anew.
const MAX_NAMESPACES: usize = 64;
const MAX_SINGLE: usize = 4096;

/// Rules that are kept per namespace; an account with more is asked about each right.
const MAX_RULES: usize = 2000;

/// Who asks what an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The minutely check, without a change.
    Rest,
    /// A check after a change.
    DryRun,
    /// A rollback.
    Rollback,
}

impl Asker {
    /// Maximum age of an answer.
    const fn oldest(self) -> Duration {
        match self {
            Self::Rest => KEPT,
            Self::DryRun | Self::Rollback => FRESH,
        }
    }

    const fn wait(self) -> Duration {
        match self {
            Self::Rest | Self::DryRun => WAIT,
            Self::Rollback => SHORT_WAIT,
        }
    }
}

/// Asks the API server what an account may do.
pub(super) trait Reviewer: Clone + Send + Sync + 'static {
    /// The rules of a namespace; `None` if they are incomplete.
    fn rules(
        &self,
        namespace: &str,
    ) -> impl Future<Output = Result<Option<Vec<ResourceRule>>, ApiError>> + Send;

    /// Whether a single right is granted.
    fn may(
        &self,
        place: &RightScope,
        verb: &str,
    ) -> impl Future<Output = Result<bool, ApiError>> + Send;
}

/// What is remembered of one account.
#[derive(Debug, Default)]
pub(super) struct GrantedRights {
    /// Held during a request, so that the releases of a namespace ask once. Waits for it are short: if the authorizer
    /// hangs, all of them would hang in turn, and a rollback behind them.
    answers: tokio::sync::Mutex<Answers>,
    /// Answers from before this time are no longer used.
    since: Mutex<Option<Instant>>,
}

/// A single right and whether it is granted.
type Review = (RightScope, &'static str, Result<bool, ApiError>);

#[derive(Debug, Default)]
struct Answers {
    /// By namespace; `None` if the rules are incomplete.
    rules: BTreeMap<String, (Instant, Option<Vec<ResourceRule>>)>,
    single: BTreeMap<(RightScope, &'static str), (Instant, bool)>,
}

impl GrantedRights {
    /// Drops all answers: a request was forbidden, so rights may have changed.
    pub(super) fn self_check(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Missing rights among those needed, in words.
    ///
    /// # Errors
    ///
    /// When the API server does not answer, or answers others slowly.
    pub(super) async fn missing(
        &self,
        reviewer: &impl Reviewer,
        needed: &RbacRights,
        asker: Asker,
    ) -> Result<Vec<String>, ApiError> {
        let oldest = asker.oldest();
        let mut unshared = Answers::default();
        let mut shared;
        let answers = match tokio::time::timeout(asker.wait(), self.answers.lock()).await {
            Ok(held) => {
                shared = held;
                &mut *shared
            }
            Err(_) if asker == Asker::Rollback => &mut unshared,
            Err(_) => return Err(ApiError::Busy),
        };
        let since = *self.since.lock().unwrap_or_else(PoisonError::into_inner);
        let serves = |at: Instant| at.elapsed() <= oldest && since.is_none_or(|since| at > since);
        answers.forget_old(&serves);
        let mut open = Vec::new();
        let mut missing = Vec::new();
        for (place, verb) in needed.each() {
            if answers.grants(reviewer, place, verb).await? {
                continue;
            }
            match answers.single.get(&(place.clone(), verb)) {
                Some((_, true)) => {}
                Some((_, false)) => missing.push(format!("{verb} {place}")),
                None => open.push((place.clone(), verb)),
            }
        }
        let mut reviews: Vec<EngineFuture<Review>> = Vec::new();
        for (place, verb) in open {
            let reviewer = reviewer.clone();
            reviews.push(Box::pin(async move {
                let may = reviewer.may(&place, verb).await;
                (place, verb, may)
            }));
        }
        let mut reviews = futures::stream::iter(reviews).buffer_unordered(AT_A_TIME);
        while let Some((place, verb, may)) = reviews.next().await {
            let may = may?;
            if !may {
                missing.push(format!("{verb} {place}"));
            }
            answers.single.insert((place, verb), (Instant::now(), may));
        }
        missing.sort();
        Ok(missing)
    }
}

impl Answers {
    fn forget_old(&mut self, serves: &impl Fn(Instant) -> bool) {
        self.rules.retain(|_, (at, _)| serves(*at));
        self.single.retain(|_, (at, _)| serves(*at));
        if self.rules.len() > MAX_NAMESPACES {
            self.rules.clear();
        }
        if self.single.len() > MAX_SINGLE {
            self.single.clear();
        }
    }

    /// Whether the rules of the namespace grant a right; asks for the rules if they are unknown.
    async fn grants(
        &mut self,
        reviewer: &impl Reviewer,
        place: &RightScope,
        verb: &str,
    ) -> Result<bool, ApiError> {
        // The rules of a namespace also have those that hold in it alone.
        if place.namespace.is_empty() {
            return Ok(false);
        }
        if !self.rules.contains_key(&place.namespace) {
            let rules = reviewer.rules(&place.namespace).await?;
            let rules = rules.filter(|rules| rules.len() <= MAX_RULES);
            let answer = (Instant::now(), rules);
            self.rules.insert(place.namespace.clone(), answer);
        }
        let known = self.rules.get(&place.namespace);
        let rules = known.and_then(|(_, rules)| rules.as_deref());
        Ok(rules
            .unwrap_or_default()
            .iter()
            .any(|rule| has(rule, place, verb)))
    }
}

/// Whether a rule grants a right, by the logic of RBAC.
fn has(rule: &ResourceRule, place: &RightScope, verb: &str) -> bool {
    let part = place.plural.split_once('/').map(|(_, part)| part);
    let is_verb = rule.verbs.iter().any(|one| one == "*" || one == verb);
    let mut groups = rule.api_groups.iter().flatten();
    let is_group = groups.any(|group| group == "*" || *group == place.group);
    let mut resources = rule.resources.iter().flatten();
    let is_resource = resources.any(|resource| {
        let of_any = resource.strip_prefix("*/");
        resource == "*" || *resource == place.plural || (of_any.is_some() && of_any == part)
    });
    let mut names = rule.resource_names.iter().flatten().peekable();
    let is_for_all = names.peek().is_none();
    is_verb && is_group && is_resource && (is_for_all || names.any(|name| *name == place.name))
}

impl Reviewer for Client {
    async fn rules(&self, namespace: &str) -> Result<Option<Vec<ResourceRule>>, ApiError> {
        let reviews: Api<SelfSubjectRulesReview> = Api::all(self.clone());
        let review = SelfSubjectRulesReview {
            spec: SelfSubjectRulesReviewSpec {
                namespace: Some(namespace.to_owned()),
            },
            ..Default::default()
        };
        let answer = match ask(reviews.create(&PostParams::default(), &review)).await {
            Ok(answer) => answer,
            // An account from which even this was taken, or an API server that does not have it: each right is asked for.
            Err(trouble) if trouble.is(403) || trouble.is(404) || trouble.is(405) => {
                return Ok(None);
            }
            Err(trouble) => return Err(trouble),
        };
        let status = answer.status.filter(|status| !status.incomplete);
        Ok(status.map(|status| status.resource_rules))
    }

    async fn may(&self, place: &RightScope, verb: &str) -> Result<bool, ApiError> {
        let reviews: Api<SelfSubjectAccessReview> = Api::all(self.clone());
        let (plural, part) = place.plural.split_once('/').unwrap_or((&place.plural, ""));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let attributes = ResourceAttributes {
            namespace: some(&place.namespace),
            group: some(&place.group),
            resource: some(plural),
            subresource: some(part),
            verb: some(verb),
            name: some(&place.name),
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

#[cfg(test)]
mod tests;
