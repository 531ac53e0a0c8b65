//! Any replica answers for the one that acts: what is asked about releases is passed on to it.
//!
//! Invariants:
//! - a request is passed on once: what comes from another replica is answered here, or not at all;
//! - credentials go only to the address that the holder wrote into the Lease, which takes a right of the cluster;
//! - the answer is that of the other replica, or 503 with a reason.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use reqwest::Client;
use url::{Host, Url};

use super::problem::problem;
use super::{Shared, too_busy};
use crate::config::settings::Tls;
use crate::outgoing;

/// The longest that the other replica may take: as long as its slowest answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The largest body that is passed on: that of an Alertmanager.
const MAX_BODY: usize = 1024 * 1024;

/// The largest answer: a recording.
const MAX_ANSWER: usize = 33 * 1024 * 1024;

/// Says that a request has been passed on already.
const FORWARDED: HeaderName = HeaderName::from_static("x-leadsman-forwarded");

/// What of a request and of an answer is passed on.
const OF_REQUEST: [HeaderName; 3] = [header::AUTHORIZATION, header::CONTENT_TYPE, header::ACCEPT];
const OF_ANSWER: [HeaderName; 3] = [
    header::CONTENT_TYPE,
    header::WWW_AUTHENTICATE,
    header::RETRY_AFTER,
];

/// Who answers for the releases.
#[derive(Debug, Clone)]
pub enum Lead {
    /// We do.
    Here,
    /// Another replica does.
    Elsewhere {
        /// Its name.
        identity: String,
        /// How it is reached, or why it cannot be.
        forward: Result<Arc<Forward>, String>,
    },
    /// Nobody at the moment.
    Nobody,
}

/// How the replica that acts is reached.
#[derive(Debug)]
pub struct Forward {
    client: Client,
    base: Url,
}

impl Forward {
    /// To an address as it stands in the Lease: http or https with an IP address.
    ///
    /// # Errors
    /// When it is none, or the certificates that it is checked by cannot be read.
    pub fn to(address: &str, tls: &Tls) -> Result<Self, String> {
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
        let client = outgoing::direct_client(tls, PATIENCE, &base, (ip, port).into())?;
        Ok(Self { client, base })
    }

    async fn pass_on(&self, request: Request) -> Result<Response, String> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = self.base.join(path).map_err(|error| error.to_string())?;
        let body = axum::body::to_bytes(body, MAX_BODY)
            .await
            .map_err(|_| format!("the body is cut off, or larger than {MAX_BODY} bytes"))?;
        let mut passed = self.client.request(parts.method, url).body(body);
        passed = passed.header(FORWARDED, "1");
        for name in OF_REQUEST {
            if let Some(value) = parts.headers.get(&name) {
                passed = passed.header(name, value);
            }
        }
        let answer = passed
            .send()
            .await
            .map_err(|error| outgoing::cause(&error))?;
        let status = answer.status();
        let headers = answer.headers().clone();
        let bytes = outgoing::whole(answer, MAX_ANSWER).await?;
        let mut response = (status, Body::from(bytes)).into_response();
        for name in OF_ANSWER {
            if let Some(value) = headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }
}

/// Whether whoever acts has to answer this.
fn is_of_the_lead(method: &Method, path: &str) -> bool {
    // Probes are everybody's own.
    path.starts_with("/api/v1/") && (path != "/api/v1/probes" || *method != Method::GET)
}

/// Answers here what can be answered here, and passes on the rest.
pub(super) async fn forward(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    if !is_of_the_lead(request.method(), request.uri().path()) {
        return next.run(request).await;
    }
    match shared.lead() {
        Lead::Here => next.run(request).await,
        Lead::Nobody => {
            too_busy("replicas want to act, and none does yet; it is not known who will")
        }
        Lead::Elsewhere { .. } if request.headers().contains_key(FORWARDED) => {
            too_busy("changes of who acts are under way")
        }
        Lead::Elsewhere { identity, forward } => {
            let passed = match forward {
                Ok(forward) => forward.pass_on(request).await,
                Err(why) => Err(why),
            };
            passed.unwrap_or_else(|why| {
                tracing::warn!(
                    identity,
                    why,
                    "A request cannot be passed on to the replica that acts"
                );
                let text = format!("the replica {identity} acts, and cannot be asked: {why}");
                problem(StatusCode::SERVICE_UNAVAILABLE, &text)
            })
        }
    }
}
