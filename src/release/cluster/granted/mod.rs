//! What an account may do, asked once for a namespace and not for each right of each release.
//!
//! One SelfSubjectRulesReview tells all rules of a namespace, and a right that is in them is granted: an authorizer that
//! could still deny it does not list rules, and the answer is `incomplete` then. A SelfSubjectAccessReview asks for a single
//! right where the rules are incomplete or do not have it, and for what lives in no namespace.
//!
//! Answers serve for [`KEPT`], for all releases of the namespace. A rollback, and a look after a change, takes none that is
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

/// How long an answer serves while nothing has changed.
pub(super) const KEPT: Duration = Duration::from_secs(600);

/// How old an answer may be where something has changed, or is about to be done: one look asks several times.
pub(super) const FRESH: Duration = Duration::from_secs(5);

/// How long a look that changes nothing waits for another one that asks. An authorizer that hangs takes [`PATIENCE`] of each.
const WAIT: Duration = PATIENCE.saturating_mul(2);

/// How long a rollback waits for them, before it asks by itself.
const SHORT_WAIT: Duration = Duration::from_secs(2);

/// Access reviews at a time.
const AT_A_TIME: usize = 8;

/// Namespaces and single rights that are remembered; beyond that all are asked for anew.
const MAX_NAMESPACES: usize = 64;
const MAX_SINGLE: usize = 4096;

/// Rules of one namespace that are kept; an account with more is asked about each right.
const MAX_RULES: usize = 2000;

/// Who wants to know what an account may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asker {
    /// The minutely look, where nothing has changed.
    Rest,
    /// A look after a change.
    DryRun,
    /// What is about to be done.
    Rollback,
}

impl Asker {
    /// How old an answer may be.
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

/// Who answers what an account may do.
pub(super) trait Reviewer: Clone + Send + Sync + 'static {
    /// The rules of a namespace; `None` where they do not say everything.
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
    /// Held while it is asked, so that the releases of a namespace ask once for all of them. Nobody waits long for it: where
    /// the authorizer hangs, all of them would in turn, and a rollback behind them.
    answers: tokio::sync::Mutex<Answers>,
    /// Answers from before are no longer believed.
    since: Mutex<Option<Instant>>,
}

/// A single right, and whether it is granted.
type Review = (RightScope, &'static str, Result<bool, ApiError>);

#[derive(Debug, Default)]
struct Answers {
    /// By namespace; `None` where the rules do not say everything.
    rules: BTreeMap<String, (Instant, Option<Vec<ResourceRule>>)>,
    single: BTreeMap<(RightScope, &'static str), (Instant, bool)>,
}

impl GrantedRights {
    /// Something was forbidden, so rights may have changed: all is asked for anew.
    pub(super) fn self_check(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Those of some rights that the account does not have, in words.
    ///
    /// # Errors
    /// When the API server does not answer, or is slow to answer others.
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

    /// Whether the rules of its namespace have a right; they are asked for where they are not known.
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

/// Whether a rule grants a right, as the authorizer RBAC reads it.
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
