//! Passes requests about releases on to the replica that leads them. With a Lease for each release, that is the
//! release's leader; requests about all releases are answered by `fan_out`.
//!
//! Invariants:
//! - a request is passed on once: one from another replica is answered here or not at all;
//! - credentials go only to the address that the holder wrote into the Lease, which needs a right in the cluster;
//! - the answer is that of the other replica, or a reason: 503 with Retry-After if nothing can have been done, 504 if
//!   that is unknown;
//! - unauthenticated callers cost little: a request without a token is passed on without its body, and few wait at a
//!   time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::RequestExt as _;
use axum::body::Bytes;
use axum::extract::{RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reqwest::{Client, RequestBuilder};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use url::{Host, Url};

use super::problem::problem;
use super::{AppState, not_now, orders, response_budget, too_busy};
use crate::config::settings::TlsConfig;
use crate::platform::http_client;

/// Maximum wait for the other replica: as long as its slowest answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The largest body that is passed on: that of an Alertmanager.
const MAX_BODY: usize = 1024 * 1024;

/// The largest answer: a recording.
const MAX_ANSWER: usize = 33 * 1024 * 1024;

/// Requests that are passed on concurrently; while the other replica is slow, each waits up to [`PATIENCE`].
const MAX_PASSED_ON: u32 = 64;

/// Replicas that are asked concurrently for lists of all releases, counted separately: reads must not delay orders.
const MAX_GATHERED: u32 = 64;

/// Bodies that are read concurrently, each at most [`MAX_BODY`], before their tokens are checked.
const MAX_BODIES: usize = 16;

/// Interval of checking the files of `lease.tls`, when a request is passed on.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Marks a request that was passed on already.
const FORWARDED: HeaderName = HeaderName::from_static("x-leadsman-forwarded");

/// Headers of a request and of an answer that are passed on.
const OF_REQUEST: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::ACCEPT,
    HeaderName::from_static(orders::IDEMPOTENCY_KEY),
];
const OF_ANSWER: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
    header::CACHE_CONTROL,
];

/// Which replica answers requests about releases.
#[derive(Debug, Clone)]
pub enum Routing {
    /// One replica for all of them.
    One(LeaderRoute),
    /// The holder of each release's Lease, by namespace and name. Other releases are answered here.
    Each(HashMap<(String, String), LeaderRoute>),
}

impl Routing {
    /// Whether a release with a Lease of its own has no leader.
    pub(super) fn lacks_somebody(&self) -> bool {
        match self {
            // It has been looked at before a handler is asked.
            Self::One(_) => false,
            Self::Each(each) => each
                .values()
                .any(|leader_route| matches!(leader_route, LeaderRoute::Nobody)),
        }
    }
}

/// The leader.
#[derive(Debug, Clone)]
pub enum LeaderRoute {
    /// This replica.
    Here,
    /// Another replica.
    Elsewhere {
        /// Its name.
        identity: String,
        /// The connection to it, or why there is none.
        forward: Result<Arc<LeaderProxy>, String>,
    },
    /// No replica at the moment.
    Nobody,
}

/// The connection to the leader.
#[derive(Debug)]
pub struct LeaderProxy {
    base: Url,
    address: SocketAddr,
    tls: TlsConfig,
    state: Mutex<ProxyClient>,
}

/// A client, and the files that it was made from.
#[derive(Debug)]
struct ProxyClient {
    looked: Instant,
    files: [u8; 32],
    client: Client,
}

/// Why there is no answer of the other replica.
enum ProxyError {
    /// It has not received the request.
    Unheard(String),
    /// It may have received the request.
    Lost(String),
    /// It was not asked.
    Refused(Response),
}

/// Limits of concurrent requests.
pub(super) struct Permits {
    requests: Semaphore,
    bodies: Semaphore,
    gathered: Semaphore,
}

impl Permits {
    /// All permits are free.
    pub(super) fn new() -> Self {
        Self {
            requests: Semaphore::new(MAX_PASSED_ON as usize),
            bodies: Semaphore::new(MAX_BODIES),
            gathered: Semaphore::new(MAX_GATHERED as usize),
        }
    }

    /// Permits to pass one request on to this many replicas.
    pub(super) fn requests(&self, replicas: usize) -> Option<SemaphorePermit<'_>> {
        turns(&self.requests, replicas, MAX_PASSED_ON)
    }

    /// Permits to ask this many replicas for a list.
    pub(super) fn gathered(&self, replicas: usize) -> Option<SemaphorePermit<'_>> {
        turns(&self.gathered, replicas, MAX_GATHERED)
    }
}

/// One permit per replica, at most all.
fn turns(of: &Semaphore, replicas: usize, all: u32) -> Option<SemaphorePermit<'_>> {
    let turns = u32::try_from(replicas).map_or(all, |replicas| replicas.min(all));
    of.try_acquire_many(turns).ok()
}

impl LeaderProxy {
    /// To an address from the Lease: http or https with an IP address.
    ///
    /// # Errors
    ///
    /// When it is not a valid address, or the certificates to check it cannot be read.
    pub fn to(address: &str, tls: &TlsConfig) -> Result<Self, String> {
        let unusable = || format!("{address:?} is no address of a replica");
        let mut base = Url::parse(address).map_err(|_| unusable())?;
        let ip: IpAddr = match base.host() {
            Some(Host::Ipv4(ip)) => ip.into(),
            Some(Host::Ipv6(ip)) => ip.into(),
            Some(Host::Domain(_)) | None => return Err(unusable()),
        };
        if !matches!(base.scheme(), "http" | "https") {
            return Err(unusable());
        }
        let port = base.port_or_known_default().ok_or_else(unusable)?;
        if let Some(name) = &tls.server_name {
            base.set_host(Some(name)).map_err(|_| unusable())?;
        }
        let address = (ip, port).into();
        // In this order, so that a change in between is found at the next look.
        let files = http_client::contents(tls)?;
        let client = http_client::direct_client(tls, PATIENCE, &base, address)?;
        let state = Mutex::new(ProxyClient {
            looked: Instant::now(),
            files,
            client,
        });
        Ok(Self {
            base,
            address,
            tls: tls.clone(),
            state,
        })
    }

    /// The client, with the current certificates. Files that have become unusable change nothing.
    fn client(&self) -> Client {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.elapsed() >= LOOK_EVERY {
            state.looked = Instant::now();
            match self.renewed(state.files) {
                Ok(Some((files, client))) => {
                    tracing::info!("Other replicas are asked with the new files of lease.tls");
                    state.files = files;
                    state.client = client;
                }
                Ok(None) => {}
                Err(why) => {
                    tracing::warn!(
                        why,
                        "The files of lease.tls cannot be used; those before them are"
                    );
                }
            }
        }
        state.client.clone()
    }

    fn renewed(&self, before: [u8; 32]) -> Result<Option<([u8; 32], Client)>, String> {
        let files = http_client::contents(&self.tls)?;
        if files == before {
            return Ok(None);
        }
        let client = http_client::direct_client(&self.tls, PATIENCE, &self.base, self.address)?;
        Ok(Some((files, client)))
    }

    async fn pass_on(&self, shared: &AppState, request: Request) -> Result<Response, ProxyError> {
        let Some(_turn) = shared.forwards.requests(1) else {
            let busy = too_busy("requests wait for the replica that acts");
            return Err(ProxyError::Refused(busy));
        };
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = self.base.join(path);
        let url = url.map_err(|error| ProxyError::Unheard(error.to_string()))?;
        // Who shows no token is refused before anybody looks at what they sent.
        let has_token = parts.headers.contains_key(header::AUTHORIZATION);
        let is_kind = is_kind(&parts.method);
        let body = if is_kind || !has_token {
            Bytes::new()
        } else {
            let Ok(_reading) = shared.forwards.bodies.try_acquire() else {
                let busy = too_busy("requests with a body come");
                return Err(ProxyError::Refused(busy));
            };
            let read = response_budget::read(body, MAX_BODY).await;
            read.map_err(ProxyError::Refused)?
        };
        let mut passed = self.client().request(parts.method, url).body(body);
        passed = passed.header(FORWARDED, "1");
        for name in OF_REQUEST {
            if let Some(value) = parts.headers.get(&name) {
                passed = passed.header(name, value);
            }
        }
        let (status, headers, bytes) = exchange(passed, MAX_ANSWER).await?;
        let Some(bytes) = shared.response_budget.hold(bytes).await else {
            return Err(if is_kind {
                ProxyError::Refused(too_busy(response_budget::WAITING))
            } else {
                ProxyError::Lost(format!("too many {}", response_budget::WAITING))
            });
        };
        let mut response = (status, bytes).into_response();
        for name in OF_ANSWER {
            match headers.get(&name) {
                Some(value) => response.headers_mut().insert(name, value.clone()),
                None => response.headers_mut().remove(name),
            };
        }
        Ok(response)
    }

    /// Sends it a request of our own; returns its answer, or why there is none.
    pub(super) async fn ask(&self, asked: &ReplicaRequest) -> Result<Vec<u8>, String> {
        let url = self.base.join(asked.path);
        let url = url.map_err(|error| error.to_string())?;
        let request = self.client().request(asked.method.clone(), url);
        let request = request.headers(asked.headers.clone());
        let request = request
            .header(FORWARDED, "1")
            .body(asked.body.clone())
            .timeout(asked.patience);
        match exchange(request, asked.most).await {
            Ok((status, _, bytes)) if status.is_success() => Ok(bytes),
            Ok((status, ..)) => Err(format!("it says {status}")),
            Err(ProxyError::Unheard(why) | ProxyError::Lost(why)) => Err(why),
            Err(ProxyError::Refused(refused)) => Err(format!("it says {}", refused.status())),
        }
    }
}

/// A request of our own to another replica.
pub(super) struct ReplicaRequest {
    pub(super) method: Method,
    pub(super) path: &'static str,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Maximum wait for the answer.
    pub(super) patience: Duration,
    /// Maximum size of the answer.
    pub(super) most: usize,
}

/// Sends a request once, and reads the whole answer.
async fn exchange(
    request: RequestBuilder,
    most: usize,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), ProxyError> {
    let answer = request.send().await.map_err(|error| {
        let why = http_client::cause(&error);
        if error.is_connect() {
            ProxyError::Unheard(why)
        } else {
            ProxyError::Lost(why)
        }
    })?;
    let status = answer.status();
    let headers = answer.headers().clone();
    let bytes = http_client::whole(answer, most).await;
    Ok((status, headers, bytes.map_err(ProxyError::Lost)?))
}

/// Whether a request changes nothing, so that it may be repeated.
fn is_kind(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether the leader has to answer this request.
fn is_of_the_lead(method: &Method, path: &str) -> bool {
    // Probes are everybody's own.
    path.starts_with("/api/v1/") && (path != "/api/v1/probes" || *method != Method::GET)
}

/// The release that a request is about, parsed like its handler does; `None` if it is about all.
async fn release_of(request: &mut Request) -> Option<(String, String)> {
    // A path that is no text is refused by its handler.
    let params = request.extract_parts::<RawPathParams>().await.ok()?;
    let param = |wanted| {
        let found = params.iter().find(|(name, _)| *name == wanted)?;
        Some(found.1.to_owned())
    };
    Some((param("namespace")?, param("name")?))
}

/// Answers a request here or passes it on.
pub(super) async fn forward(
    State(shared): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    if !is_of_the_lead(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    if !shared.is_ready() {
        // Before the releases are there each of them would seem unknown.
        return not_now("this Leadsman is starting or stopping; try again");
    }
    let answers = shared.answers();
    let (leader_route, acts) = match &*answers {
        Routing::One(leader_route) => (Some(leader_route), "acts"),
        Routing::Each(each) => {
            let release = release_of(&mut request).await;
            let leader_route = release.and_then(|release| each.get(&release));
            (leader_route, "acts for this release")
        }
    };
    let (identity, forward) = match leader_route {
        None | Some(LeaderRoute::Here) => return next.run(request).await,
        Some(LeaderRoute::Nobody) => {
            return not_now(&format!(
                "no replica {acts} at the moment; another one takes over within some seconds, so try again"
            ));
        }
        Some(LeaderRoute::Elsewhere { .. }) if is_passed_on(request.headers()) => {
            return not_now(
                "the replica that was asked does not act any more, and another one takes over; try again",
            );
        }
        Some(LeaderRoute::Elsewhere { identity, forward }) => (identity, forward),
    };
    let is_kind = is_kind(request.method());
    let passed = match forward {
        Ok(forward) => forward.pass_on(&shared, request).await,
        Err(why) => Err(ProxyError::Unheard(why.clone())),
    };
    let (why, is_unheard) = match passed {
        Ok(answer) | Err(ProxyError::Refused(answer)) => return answer,
        Err(ProxyError::Unheard(why)) => (why, true),
        Err(ProxyError::Lost(why)) => (why, false),
    };
    tracing::warn!(
        identity,
        why,
        "A request cannot be passed on to the replica that acts"
    );
    if is_unheard || is_kind {
        let text = format!(
            "the replica {identity} {acts}, and cannot be asked from here ({why}); try again, or ask it itself"
        );
        return not_now(&text);
    }
    let text = format!(
        "the replica {identity} was asked, and its answer did not come ({why}), so it may have been done; look before \
         you ask again"
    );
    problem(StatusCode::GATEWAY_TIMEOUT, &text)
}

/// Whether a request comes from another replica.
pub(super) fn is_passed_on(headers: &HeaderMap) -> bool {
    headers.contains_key(FORWARDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Path;
    use axum::routing::get;

    /// A release is looked up by the same names as its handler reads.
    #[tokio::test]
    async fn a_release_is_looked_up_by_the_names_that_its_handler_reads() {
        async fn names(mut request: Request) -> String {
            let looked_up = release_of(&mut request).await;
            let read = request.extract_parts::<Path<(String, String)>>().await;
            assert_eq!(looked_up, read.ok().map(|Path(names)| names));
            looked_up.map_or("none".into(), |(namespace, name)| {
                format!("{namespace}|{name}")
            })
        }
        let router = Router::new()
            .route("/r/{namespace}/{name}/of", get(names))
            .route("/all", get(names));
        for (path, expected) in [
            ("/r/shop/mykadoo/of", "shop|mykadoo"),
            ("/r/sh%6Fp/my%2Fkadoo/of", "shop|my/kadoo"),
            ("/r/shop/a+b%2520/of", "shop|a+b%20"),
            ("/r/shop/%C3%BC/of?name=x", "shop|ü"),
            ("/r/shop/%ff/of", "none"),
            ("/all", "none"),
        ] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            let answer = answer_of(&router, request).await;
            assert_eq!(answer, expected, "{path}");
        }
    }

    async fn answer_of(router: &Router, request: Request) -> String {
        use hyper::service::Service as _;
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        let Ok(answer) = service.call(request).await;
        let body = axum::body::to_bytes(answer.into_body(), 1024).await;
        String::from_utf8(body.unwrap().to_vec()).unwrap()
    }
}
