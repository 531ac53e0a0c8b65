//! Who a caller is, and what the cluster lets them do: TokenReview and SubjectAccessReview.
//!
//! Invariants:
//! - nobody is let in by what the API server did not say: without an answer the caller has to wait;
//! - an answer is remembered for some seconds and by the token's digest, so that a token is never kept, and one that is
//!   revoked is of no use a moment later;
//! - strangers cost little: few questions at a time, and a bounded memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long an answer of the API server holds.
const KEEP: Duration = Duration::from_secs(10);

/// The longest that the API server may take for both questions.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers that are remembered.
const MAX_REMEMBERED: usize = 1024;

/// Callers that are asked about at a time.
const MAX_AT_ONCE: usize = 16;

/// Longer tokens are none: those of service accounts have about a kilobyte.
const MAX_TOKEN: usize = 16 * 1024;

/// The API group of what we ask about. No such kinds need to exist in the cluster: only rules name them.
pub const GROUP: &str = "leadsman.io";

/// What a caller wants to do, in the words of a Role.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Deed {
    /// Something with a release.
    Release {
        /// As `get` or `create`.
        verb: &'static str,
        /// What of `releases` in [`GROUP`], as `rollback`.
        part: &'static str,
        /// The namespace of the release.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A path that belongs to no release.
    Path {
        /// As `post`.
        verb: &'static str,
        /// As `/-/reload`.
        path: &'static str,
    },
}

/// What the cluster says of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The cluster knows them, and lets them.
    Allowed {
        /// Their name.
        user: String,
    },
    /// The cluster knows them, and does not let them.
    Forbidden {
        /// Their name.
        user: String,
    },
    /// The token is none of this cluster.
    Stranger,
    /// Nobody can say now.
    Unknown(String),
}

type Key = ([u8; 32], Deed);

/// Asks the API server, and remembers what it said for a moment.
pub struct Reviewer {
    client: Client,
    remembered: Mutex<HashMap<Key, (Instant, Answer)>>,
    turns: Semaphore,
}

impl Reviewer {
    /// Nothing is asked yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            remembered: Mutex::default(),
            turns: Semaphore::new(MAX_AT_ONCE),
        }
    }

    /// What the cluster says of who has this token.
    pub async fn review(&self, token: &str, deed: Deed) -> Answer {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Answer::Stranger;
        }
        let key = (Sha256::digest(token.as_bytes()).into(), deed);
        if let Some(answer) = self.remembered(&key) {
            return answer;
        }
        let asked = async {
            let _turn = self.turns.acquire().await;
            // Whoever waited may find that the same has been asked meanwhile.
            match self.remembered(&key) {
                Some(answer) => Ok(answer),
                None => self.ask(token, &key.1).await,
            }
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(answer)) => {
                self.remember(key, answer.clone());
                answer
            }
            Ok(Err(kube::Error::Api(status))) => Answer::Unknown(format!(
                "the API server says {} {}",
                status.code, status.reason
            )),
            Ok(Err(_)) => Answer::Unknown("the API server cannot be reached".into()),
            Err(_) => Answer::Unknown(format!(
                "the API server does not answer within {} s",
                PATIENCE.as_secs()
            )),
        }
    }

    async fn ask(&self, token: &str, deed: &Deed) -> kube::Result<Answer> {
        let params = PostParams::default();
        let question = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: None,
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let status = reviews.create(&params, &question).await?.status;
        let status = status.unwrap_or_default();
        let (Some(true), Some(user)) = (status.authenticated, status.user) else {
            return Ok(Answer::Stranger);
        };
        let name = user.username.clone().unwrap_or_default();
        let question = SubjectAccessReview {
            spec: access(user, deed),
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let status = reviews.create(&params, &question).await?.status;
        let is_allowed = status.is_some_and(|status| status.allowed && status.denied != Some(true));
        Ok(if is_allowed {
            Answer::Allowed { user: name }
        } else {
            Answer::Forbidden { user: name }
        })
    }

    fn remembered(&self, key: &Key) -> Option<Answer> {
        let remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (since, answer) = remembered.get(key)?;
        (since.elapsed() < KEEP).then(|| answer.clone())
    }

    fn remember(&self, key: Key, answer: Answer) {
        let mut remembered = self
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, (since, _)| since.elapsed() < KEEP);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(key, (Instant::now(), answer));
        }
    }
}

fn access(user: UserInfo, deed: &Deed) -> SubjectAccessReviewSpec {
    let (resource, path) = match deed {
        Deed::Release {
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
        Deed::Path { verb, path } => {
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
