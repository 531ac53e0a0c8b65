//! Authenticates and authorizes callers through the cluster: TokenReview and SubjectAccessReview.
//!
//! Invariants:
//! - no caller is admitted without an answer of the API server; without one the caller has to wait;
//! - an answer is cached for some seconds, by a digest of token and permission, so that no token is stored, and a
//!   revoked one is useless a moment later;
//! - unknown callers cost little: few reviews per second and at a time, and bounded memory; they do not delay callers
//!   that were admitted before.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long an answer is cached.
const KEEP: Duration = Duration::from_secs(10);

/// Maximum wait for both reviews.
const PATIENCE: Duration = Duration::from_secs(5);

/// Cached answers: all that can arrive in that time.
const MAX_REMEMBERED: usize = 1024;

/// How long a caller that was admitted need not queue with unknown ones.
const KNOWN_FOR: Duration = Duration::from_secs(60 * 60);

/// Tokens of such callers: pipelines, people and Alertmanagers of an hour.
const MAX_KNOWN: usize = 256;

/// Concurrent reviews: of unknown callers, and of those that were admitted before.
const STRANGERS_AT_ONCE: usize = 12;
const KNOWN_AT_ONCE: usize = 4;

/// Reviews of either group per second, and how many may come at once. Each is two requests to the API server, where a
/// client's default limit is 50 a second.
const RATE: NonZeroU32 = NonZeroU32::new(20).unwrap();
const BURST: NonZeroU32 = NonZeroU32::new(40).unwrap();

/// Longer tokens are not valid: those of service accounts have about a kilobyte.
const MAX_TOKEN: usize = 16 * 1024;

/// The API group of the permissions. Its kinds need not exist in the cluster: only rules name them.
pub const GROUP: &str = "leadsman.io";

/// A permission, in the terms of a Role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequiredPermission {
    /// For a release.
    Release {
        /// As `get` or `create`.
        verb: &'static str,
        /// The subresource of `releases` in [`GROUP`], as `rollback`.
        part: &'static str,
        /// The namespace of the release.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// For a path without a release.
    Path {
        /// As `post`.
        verb: &'static str,
        /// As `/-/reload`.
        path: &'static str,
    },
}

/// The cluster's answer about a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessDecision {
    /// Authenticated and allowed.
    Allowed {
        /// Their name.
        user: String,
    },
    /// Authenticated, but not allowed.
    Forbidden {
        /// Their name.
        user: String,
    },
    /// The token is not valid in this cluster.
    Unauthenticated,
    /// Unknown at the moment, and why.
    Unknown(String),
}

type TokenDigest = [u8; 32];

/// Asks the API server, and caches its answers.
pub struct AccessReviewer {
    client: Client,
    memory: Mutex<ReviewCache>,
    strangers: ReviewLane,
    known: ReviewLane,
}

/// Limits for one group of callers.
struct ReviewLane {
    rate: DefaultDirectRateLimiter,
    turns: Semaphore,
}

impl ReviewLane {
    fn new(quota: Quota, at_once: usize) -> Self {
        Self {
            rate: RateLimiter::direct(quota),
            turns: Semaphore::new(at_once),
        }
    }
}

#[derive(Default)]
struct ReviewCache {
    /// By token and permission.
    answers: HashMap<TokenDigest, (Instant, AccessDecision)>,
    /// When each token was last admitted.
    known: HashMap<TokenDigest, Instant>,
    swept: Option<Instant>,
}

impl AccessReviewer {
    /// Sends no request yet.
    pub fn new(client: Client) -> Self {
        Self::with(client, Quota::per_second(RATE).allow_burst(BURST))
    }

    fn with(client: Client, quota: Quota) -> Self {
        Self {
            client,
            memory: Mutex::default(),
            strangers: ReviewLane::new(quota, STRANGERS_AT_ONCE),
            known: ReviewLane::new(quota, KNOWN_AT_ONCE),
        }
    }

    /// Whether the caller with this token has a permission.
    pub async fn review(&self, token: &str, permission: RequiredPermission) -> AccessDecision {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return AccessDecision::Unauthenticated;
        }
        let caller = digest(&[token]);
        let key = key_of(token, &permission);
        if let Some(answer) = self.remembered(&key) {
            return answer;
        }
        let lane = if self.knows(&caller) {
            &self.known
        } else {
            &self.strangers
        };
        if lane.rate.check().is_err() {
            return AccessDecision::Unknown(
                "too many callers are asked about in this second".into(),
            );
        }
        let asked = async {
            let _turn = lane.turns.acquire().await;
            // Whoever waited may find that the same has been asked meanwhile.
            match self.remembered(&key) {
                Some(answer) => Ok(answer),
                None => self.ask(token, &permission).await,
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => {
                self.remember(caller, key, answer.clone());
                answer
            }
            Ok(Err(kube::Error::Api(status))) => AccessDecision::Unknown(format!(
                "the API server says {} {}",
                status.code, status.reason
            )),
            Ok(Err(_)) => AccessDecision::Unknown("the API server cannot be reached".into()),
            Err(_) => AccessDecision::Unknown(format!(
                "the API server does not answer within {} s",
                PATIENCE.as_secs()
            )),
        }
    }

    async fn ask(
        &self,
        token: &str,
        permission: &RequiredPermission,
    ) -> kube::Result<AccessDecision> {
        let params = PostParams::default();
        let kind = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&params, &kind).await?.status;
        let status = status.unwrap_or_default();
        let (Some(true), Some(user)) = (status.authenticated, status.user) else {
            return Ok(AccessDecision::Unauthenticated);
        };
        let name = user.username.clone().unwrap_or_default();
        let kind = SubjectAccessReview {
            spec: access(user, permission),
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = reviews.create(&params, &kind).await?.status;
        let is_allowed = status.is_some_and(|status| status.allowed && status.denied != Some(true));
        Ok(if is_allowed {
            AccessDecision::Allowed { user: name }
        } else {
            AccessDecision::Forbidden { user: name }
        })
    }

    fn memory(&self) -> MutexGuard<'_, ReviewCache> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, key: &TokenDigest) -> Option<AccessDecision> {
        let memory = self.memory();
        let (since, answer) = memory.answers.get(key)?;
        (since.elapsed() < KEEP).then(|| answer.clone())
    }

    fn knows(&self, caller: &TokenDigest) -> bool {
        let memory = self.memory();
        let since = memory.known.get(caller);
        since.is_some_and(|since| since.elapsed() < KNOWN_FOR)
    }

    fn remember(&self, caller: TokenDigest, key: TokenDigest, answer: AccessDecision) {
        let now = Instant::now();
        let mut memory = self.memory();
        if memory.swept.is_none_or(|swept| swept.elapsed() >= KEEP) {
            memory.swept = Some(now);
            memory
                .answers
                .retain(|_, (since, _)| since.elapsed() < KEEP);
            memory.known.retain(|_, since| since.elapsed() < KNOWN_FOR);
        }
        match answer {
            AccessDecision::Allowed { .. } if memory.known.len() < MAX_KNOWN => {
                memory.known.insert(caller, now);
            }
            AccessDecision::Unauthenticated => {
                memory.known.remove(&caller);
            }
            AccessDecision::Allowed { .. }
            | AccessDecision::Forbidden { .. }
            | AccessDecision::Unknown(_) => {}
        }
        if memory.answers.len() < MAX_REMEMBERED {
            memory.answers.insert(key, (now, answer));
        }
    }
}

fn key_of(token: &str, permission: &RequiredPermission) -> TokenDigest {
    match permission {
        RequiredPermission::Release {
            verb,
            part,
            namespace,
            name,
        } => digest(&[token, "release", verb, part, namespace, name]),
        RequiredPermission::Path { verb, path } => digest(&[token, "path", verb, path]),
    }
}

/// Hashes each text with its length, so that different lists have different digests.
fn digest(parts: &[&str]) -> TokenDigest {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

fn access(user: UserInfo, permission: &RequiredPermission) -> SubjectAccessReviewSpec {
    let (resource, path) = match permission {
        RequiredPermission::Release {
            verb,
            part,
            namespace,
            name,
        } => {
            let resource = ResourceAttributes {
                group: Some(GROUP.into()),
                resource: Some("releases".into()),
                subresource: Some((*part).into()),
                verb: Some((*verb).into()),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                ..ResourceAttributes::default()
            };
            (Some(resource), None)
        }
        RequiredPermission::Path { verb, path } => {
            let path = NonResourceAttributes {
                path: Some((*path).into()),
                verb: Some((*verb).into()),
            };
            (None, Some(path))
        }
    };
    SubjectAccessReviewSpec {
        user: user.username,
        groups: user.groups,
        uid: user.uid,
        extra: user.extra,
        resource_attributes: resource,
        non_resource_attributes: path,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::Json;
    use axum::extract::Request;
    use axum::http::StatusCode;
    use axum::response::{IntoResponse as _, Response};
    use serde_json::{Value, json};

    use super::*;

    /// An API server that knows Ann and Bob by their tokens, and allows only Ann. It records its requests.
    #[derive(Clone, Default)]
    struct Cluster {
        asked: Arc<Mutex<Vec<Value>>>,
        state: Arc<Mutex<State>>,
    }

    #[derive(Clone, Copy, Default, PartialEq)]
    enum State {
        #[default]
        Well,
        Failing,
        Hanging,
    }

    impl Cluster {
        fn client(&self) -> Client {
            let cluster = self.clone();
            let answers = move |request: Request| {
                let cluster = cluster.clone();
                async move { cluster.answer(request).await }
            };
            Client::new(axum::Router::new().fallback(answers), "default")
        }

        fn is(&self, state: State) {
            *self.state.lock().unwrap() = state;
        }

        /// How many callers it was asked about.
        fn callers(&self) -> usize {
            let asked = self.asked.lock().unwrap();
            asked
                .iter()
                .filter(|body| body["kind"] == "TokenReview")
                .count()
        }

        fn last(&self) -> Value {
            self.asked.lock().unwrap().last().unwrap()["spec"].clone()
        }

        async fn answer(&self, request: Request) -> Response {
            let state = *self.state.lock().unwrap();
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
            let mut body: Value = serde_json::from_slice(&body.unwrap()).unwrap();
            self.asked.lock().unwrap().push(body.clone());
            match state {
                State::Well => {}
                State::Failing => {
                    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "reason": "InternalError", "message": "etcd" });
                    return (StatusCode::INTERNAL_SERVER_ERROR, Json(status)).into_response();
                }
                State::Hanging => std::future::pending().await,
            }
            body["status"] = if body["kind"] == "TokenReview" {
                match body["spec"]["token"].as_str() {
                    Some(name @ ("ann" | "bob")) => {
                        json!({ "authenticated": true, "user": { "username": name, "groups": ["people"] } })
                    }
                    _ => json!({ "authenticated": false }),
                }
            } else {
                json!({ "allowed": body["spec"]["user"] == "ann" })
            };
            (StatusCode::CREATED, Json(body)).into_response()
        }
    }

    fn roll_back(name: &str) -> RequiredPermission {
        RequiredPermission::Release {
            verb: "create",
            part: "rollback",
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    const RELOAD: RequiredPermission = RequiredPermission::Path {
        verb: "post",
        path: "/-/reload",
    };
    const ALERTS: RequiredPermission = RequiredPermission::Path {
        verb: "post",
        path: "/api/v1/alerts",
    };

    fn ann() -> AccessDecision {
        AccessDecision::Allowed { user: "ann".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_cluster_says_who_may_what() {
        for permission in [roll_back("web"), RELOAD, ALERTS] {
            let cluster = Cluster::default();
            let reviewer = AccessReviewer::new(cluster.client());
            assert_eq!(reviewer.review("ann", permission.clone()).await, ann());
            let asked = cluster.last();
            assert_eq!(
                (&asked["user"], &asked["groups"]),
                (&json!("ann"), &json!(["people"]))
            );
            let (resource, path) = match &permission {
                RequiredPermission::Release { .. } => {
                    let resource = json!({
                        "group": "leadsman.io", "resource": "releases", "subresource": "rollback",
                        "verb": "create", "namespace": "shop", "name": "web",
                    });
                    (resource, Value::Null)
                }
                RequiredPermission::Path { verb, path } => {
                    (Value::Null, json!({ "path": path, "verb": verb }))
                }
            };
            assert_eq!(asked["resourceAttributes"], resource);
            assert_eq!(asked["nonResourceAttributes"], path);
            let bob = AccessDecision::Forbidden { user: "bob".into() };
            assert_eq!(reviewer.review("bob", permission.clone()).await, bob);
            assert_eq!(
                reviewer.review("eve", permission.clone()).await,
                AccessDecision::Unauthenticated
            );
            let callers = cluster.callers();
            let long = "x".repeat(MAX_TOKEN + 1);
            for token in ["", &long] {
                assert_eq!(
                    reviewer.review(token, permission.clone()).await,
                    AccessDecision::Unauthenticated
                );
            }
            assert_eq!(cluster.callers(), callers, "what is no token is not shown");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_a_moment_for_that_token_and_that_deed() {
        let cluster = Cluster::default();
        let reviewer = AccessReviewer::new(cluster.client());
        for _ in 0..3 {
            reviewer.review("ann", roll_back("web")).await;
            reviewer.review("eve", roll_back("web")).await;
        }
        assert_eq!(cluster.callers(), 2);
        reviewer.review("ann", roll_back("api")).await;
        reviewer.review("ann", RELOAD).await;
        reviewer.review("ann", ALERTS).await;
        assert_eq!(cluster.callers(), 5);
        // A right that was taken away is of no use a moment later, and while nobody can say neither.
        tokio::time::advance(KEEP).await;
        cluster.is(State::Failing);
        let away = reviewer.review("ann", roll_back("web")).await;
        assert!(
            matches!(&away, AccessDecision::Unknown(why) if why.contains("500")),
            "{away:?}"
        );
        cluster.is(State::Hanging);
        let away = reviewer.review("ann", roll_back("web")).await;
        assert!(
            matches!(&away, AccessDecision::Unknown(why) if why.contains("within 5 s")),
            "{away:?}"
        );
        cluster.is(State::Well);
        assert_eq!(reviewer.review("ann", roll_back("web")).await, ann());
        let memory = reviewer.memory();
        assert_eq!(
            (memory.answers.len(), memory.known.len()),
            (1, 1),
            "the rest was swept"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_cost_little_and_hold_up_nobody_who_was_let_in() {
        let cluster = Cluster::default();
        let few = Quota::with_period(Duration::from_secs(3600)).unwrap();
        let few = few.allow_burst(NonZeroU32::new(5).unwrap());
        let reviewer = AccessReviewer::with(cluster.client(), few);
        assert_eq!(reviewer.review("ann", RELOAD).await, ann());
        let mut refused = 0;
        for unauthenticated in 0..100 {
            let said = reviewer
                .review(&format!("eve-{unauthenticated}"), RELOAD)
                .await;
            refused += usize::from(matches!(said, AccessDecision::Unknown(_)));
        }
        assert_eq!((cluster.callers(), refused), (5, 96));
        // What was said of Ann is forgotten, and she is not.
        tokio::time::advance(KEEP).await;
        assert_eq!(reviewer.review("ann", RELOAD).await, ann());
        let bob = reviewer.review("bob", RELOAD).await;
        assert!(
            matches!(bob, AccessDecision::Unknown(_)),
            "a stranger so far: {bob:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn while_strangers_wait_for_the_cluster_others_are_asked_about() {
        let cluster = Cluster::default();
        let reviewer = Arc::new(AccessReviewer::new(cluster.client()));
        assert_eq!(reviewer.review("ann", RELOAD).await, ann());
        tokio::time::advance(KEEP).await;
        cluster.is(State::Hanging);
        let waiting: Vec<_> = (0..STRANGERS_AT_ONCE * 2)
            .map(|unauthenticated| {
                let reviewer = Arc::clone(&reviewer);
                tokio::spawn(async move {
                    reviewer
                        .review(&format!("eve-{unauthenticated}"), RELOAD)
                        .await
                })
            })
            .collect();
        while cluster.callers() < 1 + STRANGERS_AT_ONCE {
            tokio::task::yield_now().await;
        }
        cluster.is(State::Well);
        assert_eq!(reviewer.review("ann", RELOAD).await, ann());
        assert_eq!(
            cluster.callers(),
            2 + STRANGERS_AT_ONCE,
            "a bounded number at a time"
        );
        for unauthenticated in waiting {
            // Nobody is let in by waiting.
            assert!(!matches!(
                unauthenticated.await.unwrap(),
                AccessDecision::Allowed { .. }
            ));
        }
    }

    #[test]
    fn no_two_deeds_look_the_same() {
        let of = |namespace: &str, name: &str| {
            let permission = RequiredPermission::Release {
                verb: "get",
                part: "recording",
                namespace: namespace.into(),
                name: name.into(),
            };
            key_of("token", &permission)
        };
        assert_ne!(of("ab", "c"), of("a", "bc"));
        assert_ne!(of("a", "b"), of("b", "a"));
    }
}
