//! Helm's way to the API server, through this process.
//!
//! Helm gets no credentials. Its kubeconfig names a proxy on this machine, which passes on only what a rollback may do:
//! discovery, the release's own namespace, and what the configuration adds. The path of each request decides, so
//! neither a strangely written manifest nor a record that changes in between gets around it. Requests go out as the
//! account that helm acts as, and only while the permit is held.
//!
//! An object without a namespace that is the same in both revisions is left alone. Helm reads and patches each object
//! of its target, changed or not; the proxy answers that the object is as the target says. So no right is needed for
//! it, and a forged record changes nothing.
//!
//! One change is rewritten: if an autoscaler or a person gave a workload more pods than the target says, the proxy
//! keeps their number ([`super::replicas`]).

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use kube::Client;
use kube::client::Body;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::{RollbackPolicy, api, replicas};
use crate::platform::permit::Permit;

/// Concurrent connections; helm needs a handful.
const MAX_CONNECTIONS: usize = 64;

/// Maximum request body in bytes; the API server accepts 3 MiB.
const MAX_BODY: usize = 4 * 1024 * 1024;

/// Maximum duration of one write of helm: the API server gives up its own requests after a minute.
const WRITE_LIMIT: Duration = Duration::from_secs(90);

/// Maximum wait for a request head, and maximum idle time of a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What helm may reach.
#[derive(Debug, Clone, Default)]
pub(super) struct HelmReach {
    /// Namespaces whose objects it may read and change.
    pub(super) namespaces: BTreeSet<String>,
    /// Groups and plurals of kinds without a namespace that it may read and change.
    pub(super) cluster_scoped: BTreeSet<(String, String)>,
    /// Objects that it must not change, by path: it gets the target's version as the answer.
    pub(super) left_alone: BTreeMap<String, Value>,
    /// Paths of workloads that keep at least their current pods.
    pub(super) keeps_pods: BTreeSet<String>,
}

/// What to do with a request.
#[derive(Debug, PartialEq)]
enum ProxyDecision<'a> {
    Pass,
    /// Answer it here.
    Answer(&'a Value),
    /// Refuse it, and why.
    Refuse(String),
}

impl HelmReach {
    fn decide(&self, method: &Method, path: &str) -> ProxyDecision<'_> {
        let refuse = |reason: &str, why: &str| {
            ProxyDecision::Refuse(format!("{reason}: helm asked to {method} {path}, {why}"))
        };
        if let Some(object) = self.left_alone.get(path) {
            return if [Method::GET, Method::PATCH].contains(method) {
                ProxyDecision::Answer(object)
            } else {
                refuse("cluster_scoped", "which the rollback leaves alone")
            };
        }
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let is_odd =
            |part: &&str| part.is_empty() || part.starts_with('.') || part.contains(['%', '\\']);
        if parts.iter().any(is_odd) {
            return refuse("path", "which is no path of an object");
        }
        let (group, rest) = match parts.as_slice() {
            ["version" | "api" | "apis"]
            | ["api" | "apis", _]
            | ["apis", _, _]
            | ["openapi", ..] => {
                return if *method == Method::GET {
                    ProxyDecision::Pass
                } else {
                    refuse("path", "which is for reading")
                };
            }
            ["api", _, rest @ ..] => ("", rest),
            ["apis", group, _, rest @ ..] => (*group, rest),
            _ => return refuse("path", "which is no path of an object"),
        };
        // Helm deletes its objects one by one.
        let is_collection = matches!(rest, ["namespaces", _, _] | [_]);
        if is_collection && *method == Method::DELETE {
            return refuse("path", "which deletes all objects of a kind at once");
        }
        match rest {
            // `/api/v1/namespaces/shop/status` is of the Namespace itself.
            ["namespaces", namespace, plural, of @ ..]
                if !(group.is_empty()
                    && of.is_empty()
                    && ["status", "finalize"].contains(plural)) =>
            {
                if !self.namespaces.contains(*namespace) {
                    return refuse(
                        "foreign_namespace",
                        &format!(
                            "outside the release's namespace; if the release owns that, set release.rollback.namespaces = [{namespace:?}]"
                        ),
                    );
                }
                match of {
                    [] | [_] => ProxyDecision::Pass,
                    [_, "log"] if *method == Method::GET && *plural == "pods" => {
                        ProxyDecision::Pass
                    }
                    _ => refuse("path", "which no rollback needs"),
                }
            }
            [plural] | [plural, _] => {
                let kind = (group.to_owned(), (*plural).to_owned());
                if self.cluster_scoped.contains(&kind) {
                    ProxyDecision::Pass
                } else {
                    refuse(
                        "cluster_scoped",
                        "in no namespace; if the release owns that, name its kind in release.rollback.cluster_scoped",
                    )
                }
            }
            _ => refuse("path", "which no rollback needs"),
        }
    }
}

/// A proxy for one run of helm. It serves while [`HelmProxy::serve`] is polled.
pub(super) struct HelmProxy {
    client: Client,
    permit: Permit,
    reach: HelmReach,
    listener: TcpListener,
    /// The password in helm's kubeconfig, so that no other process of this machine gets through.
    password: String,
    kubeconfig: TemporaryKubeconfig,
    refused: Mutex<Option<String>>,
}

/// A file that is deleted with this value.
struct TemporaryKubeconfig(PathBuf);

impl Drop for TemporaryKubeconfig {
    fn drop(&mut self) {
        // It holds nothing that is of use after the proxy has ended.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl HelmProxy {
    /// Listens on this machine, and writes a kubeconfig for helm into the scratch folder.
    ///
    /// # Errors
    ///
    /// When there is no port, no randomness, or the file cannot be written.
    pub(super) async fn new(
        client: Client,
        reach: HelmReach,
        policy: &RollbackPolicy,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let mut random = [0_u8; 24];
        SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let mut password = String::new();
        for byte in random {
            // Writing to a text cannot fail.
            let _ = write!(password, "{byte:02x}");
        }
        // helm runs in that folder, which may be named from where we run.
        let scratch = std::path::absolute(&policy.scratch)?;
        let path = scratch.join(format!("helm-{}.kubeconfig", address.port()));
        // One that was killed may have left its own behind.
        let _ = std::fs::remove_file(&path);
        let kubeconfig = TemporaryKubeconfig(path);
        // The name of the server stays the same, so that helm finds what it knows of the cluster's kinds.
        let server = &policy.cluster;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: leadsman\n\
             clusters: [{{name: leadsman, cluster: {{server: \"http://{server}\", proxy-url: \"http://helm:{password}@{address}\"}}}}]\n\
             contexts: [{{name: leadsman, context: {{cluster: leadsman, user: leadsman}}}}]\n\
             users: [{{name: leadsman, user: {{}}}}]\n"
        );
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&kubeconfig.0)?;
        file.write_all(text.as_bytes())?;
        Ok(Self {
            client,
            permit: policy.permit.clone(),
            reach,
            listener,
            password,
            kubeconfig,
            refused: Mutex::default(),
        })
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig.0
    }

    /// The first request that was refused, and why.
    pub(super) fn refused(&self) -> Option<String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone()
    }

    /// Serves helm forever; dropping it cuts all connections.
    pub(super) async fn serve(&self) -> Infallible {
        let mut open = FuturesUnordered::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if open.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => open.push(self.connection(stream)),
                    Err(error) => {
                        tracing::warn!(%error, "A connection of helm could not be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    }

    async fn connection(&self, stream: TcpStream) {
        let service = service_fn(|request| self.answer(request));
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = served.await {
            tracing::debug!(%error, "A connection of helm ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let shown = request.headers().get(PROXY_AUTHORIZATION);
        let expected = format!(
            "Basic {}",
            STANDARD.encode(format!("helm:{}", self.password))
        );
        if shown.map(http::HeaderValue::as_bytes) != Some(expected.as_bytes()) {
            let code = StatusCode::PROXY_AUTHENTICATION_REQUIRED;
            return Ok(failure(code, "Unauthorized", "this proxy is helm's alone"));
        }
        let method = request.method().clone();
        let why = match self.reach.decide(&method, request.uri().path()) {
            ProxyDecision::Pass if method == Method::GET || self.permit.holds() => {
                return Ok(self.passed_on(request).await);
            }
            ProxyDecision::Pass => "another replica acts from now on".to_owned(),
            ProxyDecision::Answer(object) => return Ok(json_answer(StatusCode::OK, object)),
            ProxyDecision::Refuse(why) => return Ok(self.refuse(&why)),
        };
        Ok(failure(StatusCode::FORBIDDEN, "Forbidden", &why))
    }

    fn refuse(&self, why: &str) -> Response<Body> {
        tracing::warn!("A request of helm was not let through: {why}");
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get_or_insert_with(|| why.to_owned());
        failure(StatusCode::FORBIDDEN, "Forbidden", why)
    }

    /// The change with the workload's current number of pods, if helm's is smaller.
    async fn with_its_pods(&self, head: &Parts, change: Bytes) -> Result<Bytes, Response<Body>> {
        let path = head.uri.path();
        if head.method != Method::PATCH || !self.reach.keeps_pods.contains(path) {
            return Ok(change);
        }
        let mut read = Request::new(Vec::new());
        *read.uri_mut() = path.parse().unwrap_or_default();
        let live = api::ask(self.client.request::<Value>(read)).await;
        let live = live.map_err(|trouble| unable(&trouble))?;
        let live = live.pointer("/spec/replicas").and_then(Value::as_i64);
        let kind = head.headers.get(CONTENT_TYPE);
        let applies = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply"));
        let kept = replicas::without_loss(&change, live.unwrap_or(0), applies);
        let kept = kept.map_err(|why| {
            self.refuse(&format!(
                "replicas_lost: helm asked to PATCH {path}, and how many pods that leaves cannot be read: {why}"
            ))
        })?;
        Ok(kept.into())
    }

    async fn passed_on(&self, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                let code = StatusCode::PAYLOAD_TOO_LARGE;
                return failure(code, "RequestEntityTooLarge", &error.to_string());
            }
        };
        let body = match self.with_its_pods(&head, body).await {
            Ok(body) => body,
            Err(refused) => return refused,
        };
        let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let mut out = Request::new(Body::from(body));
        *out.method_mut() = head.method;
        // It was a URI already.
        *out.uri_mut() = path.parse().unwrap_or_default();
        *out.headers_mut() = without_hops(head.headers);
        let sent = if *out.method() == Method::GET {
            self.client.send(out).await
        } else {
            // A write that is under way ends with the permit.
            let writes = self.permit.bound(WRITE_LIMIT, self.client.send(out));
            let Ok(sent) = writes.await else {
                let why = "another replica acts from now on, or the API server did not answer";
                return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", why);
            };
            sent
        };
        match sent {
            Ok(response) => {
                let (mut head, body) = response.into_parts();
                head.headers = without_hops(head.headers);
                head.version = http::Version::HTTP_11;
                Response::from_parts(head, body)
            }
            Err(error) => unable(&api::ApiError::from(error)),
        }
    }
}

/// The answer while the API server is unreachable, in the form that `HelmError::Transient` recognizes.
fn unable(trouble: &api::ApiError) -> Response<Body> {
    let why = format!("the server is currently unable to handle the request: {trouble}");
    failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", &why)
}

/// The word for metrics for a text of [`HelmProxy::refused`].
pub(super) fn reason(refused: &str) -> &'static str {
    let known = ["foreign_namespace", "cluster_scoped", "replicas_lost"];
    let mut known = known.into_iter();
    known
        .find(|reason| refused.starts_with(reason))
        .unwrap_or("rights")
}

/// Removes hop-by-hop headers and the identity, which is added on the way out.
fn without_hops(mut headers: HeaderMap) -> HeaderMap {
    const OF_ONE_HOP: [HeaderName; 9] = [
        AUTHORIZATION,
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    let names: Vec<HeaderName> = headers.keys().cloned().collect();
    for name in names {
        let text = name.as_str();
        let is_out = OF_ONE_HOP.contains(&name)
            || text.starts_with("impersonate-")
            || ["keep-alive", "proxy-connection"].contains(&text);
        if is_out {
            headers.remove(&name);
        }
    }
    headers
}

/// A refusal in the form of the API server.
fn failure(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    });
    json_answer(code, &status)
}

fn json_answer(code: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(value.to_string())));
    *response.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests;
