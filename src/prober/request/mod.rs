//! Builds the request of one redirect hop, and finds the next hop.
//!
//! Invariants:
//! - credentials go only to the host for which they were configured, never in clear text if TLS was to protect them,
//!   and no longer once a redirect has led elsewhere;
//! - texts for people contain no query, which may hold a token, and no credential.

use base64::Engine as _;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::Full;

use super::body::accept;
use super::connection::ConnectionOrigin;
use super::error::ProbeError;
use super::files::{CREDENTIAL_LIMIT, CachedFile};
use super::timing::cut;
use crate::config::Target;
use crate::config::settings::{
    Auth, ConnectionReuse as Reuse, HttpProbeConfig, RedirectConfig, RedirectScope, Secret,
};
use crate::core::probe_result::{Reason, UnknownReason};

/// How much of a URL is shown where more has to be said.
const SHOWN: usize = 120;

/// What a request may not carry to another host.
const PRIVATE: [HeaderName; 3] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
];

/// What describes a body, and goes with it.
const ABOUT_BODY: [HeaderName; 6] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LENGTH,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
];

/// What is asked of whom at this hop.
#[derive(Debug, Clone)]
pub(super) struct RedirectHop {
    pub(super) target: Target,
    pub(super) method: Method,
    /// `None` when a redirect turned the request into one without a body.
    pub(super) body: Option<Bytes>,
    /// Whether the host is the one that was configured: its name in TLS and its Host are, too.
    pub(super) home: bool,
    /// Whether credentials may go along.
    trusted: bool,
}

impl RedirectHop {
    /// The first hop of a probe.
    pub(super) const fn first(target: Target, method: Method, body: Bytes) -> Self {
        Self {
            target,
            method,
            body: Some(body),
            home: true,
            trusted: true,
        }
    }

    /// The next hop, if the answer is a redirect to follow.
    pub(super) fn redirected(
        &self,
        home: &Target,
        redirects: RedirectConfig,
        followed: u8,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Self>, ProbeError> {
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) || redirects.max == 0 {
            return Ok(None);
        }
        let bad = |why: String| {
            let from = cut(&self.target.shown(), SHOWN);
            ProbeError::bad(Reason::Redirect, format!("{from} redirects {why}"))
        };
        if followed >= redirects.max {
            return Err(bad(format!("once more after {followed} redirects")));
        }
        let Some(location) = headers.get(header::LOCATION) else {
            return Err(bad("to nowhere: it names no location".into()));
        };
        // Servers send UTF-8 as it is, and the URL parser then encodes it.
        let location = std::str::from_utf8(location.as_bytes())
            .map_err(|_| bad("to something that is not text".into()))?;
        let url = self.target.url().join(location);
        let url = url.map_err(|error| bad(format!("to what is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad(format!("to the scheme {}", cut(url.scheme(), 40))));
        }
        let target = Target::of(url).map_err(|error| bad(format!("to a URL that {error}")))?;
        let same_host = target.host().eq_ignore_ascii_case(&home.host());
        if redirects.scope == RedirectScope::SameHost && !same_host {
            let host = cut(&target.host(), SHOWN);
            return Err(bad(format!(
                "to the host {host}, and only redirects to the same host are followed"
            )));
        }
        let (method, body) = if keeps_method(status, &self.method) {
            (self.method.clone(), self.body.clone())
        } else {
            (Method::GET, None)
        };
        Ok(Some(Self {
            method,
            body,
            home: same_host,
            trusted: self.trusted && same_host && (target.is_https() || !home.is_https()),
            target,
        }))
    }
}

/// As in browsers: 307 and 308 repeat the request, 303 asks for the result of the action, and 301 and 302 do so after a
/// POST, for historical reasons.
fn keeps_method(status: StatusCode, method: &Method) -> bool {
    match *method {
        Method::GET | Method::HEAD => true,
        Method::POST => matches!(
            status,
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
        ),
        _ => status != StatusCode::SEE_OTHER,
    }
}

/// Builds the requests of one probe.
pub(super) struct RequestBuilder {
    headers: HeaderMap,
    host: Option<String>,
    proxied: bool,
    credential: Credential,
}

impl RequestBuilder {
    pub(super) fn new(config: &HttpProbeConfig) -> Self {
        Self {
            headers: common_headers(config),
            host: config.host.clone(),
            proxied: config.proxy.is_some(),
            credential: Credential::new(config.auth.as_ref()),
        }
    }

    /// The request of a hop.
    pub(super) fn request(
        &self,
        redirect: &RedirectHop,
        http2: bool,
    ) -> Result<Request<Full<Bytes>>, ProbeError> {
        let target = &redirect.target;
        let url = target.url();
        let host = match &self.host {
            Some(host) if redirect.home => host.clone(),
            Some(_) | None => authority_of(target),
        };
        let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
        let path = if path.is_empty() { "/" } else { path };
        let uri = Uri::builder().path_and_query(path);
        let uri = if http2 {
            uri.scheme(url.scheme()).authority(host.as_str())
        } else if self.proxied && !target.is_https() {
            uri.scheme(url.scheme()).authority(authority_of(target))
        } else {
            uri
        };
        let cannot = |what: &str| {
            let text = format!("the request cannot be made: {what}");
            ProbeError::bad(Reason::Request, text)
        };
        let uri = uri.build().map_err(|error| cannot(&error.to_string()))?;
        let body = redirect.body.clone().unwrap_or_default();
        let has_no_body = body.is_empty();
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = redirect.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        if redirect.trusted {
            if let Some(value) = self.credential.value()? {
                headers.insert(header::AUTHORIZATION, value);
            }
        } else {
            for name in &PRIVATE {
                headers.remove(name);
            }
        }
        if redirect.body.is_none() {
            for name in &ABOUT_BODY {
                headers.remove(name);
            }
        }
        if http2 {
            headers.remove(header::CONNECTION);
        } else {
            let host = HeaderValue::try_from(host)
                .map_err(|_| cannot("the host is not usable as a header"))?;
            headers.insert(header::HOST, host);
            // Without it some servers wait for a body, or answer 411.
            if has_no_body && matches!(redirect.method, Method::POST | Method::PUT | Method::PATCH)
            {
                let none = HeaderValue::from_static("0");
                headers.entry(header::CONTENT_LENGTH).or_insert(none);
            }
        }
        Ok(request)
    }
}

/// The value of `Authorization`, or where it comes from.
enum Credential {
    None,
    Known(HeaderValue),
    /// It came from the environment, and no header can hold it.
    Unusable,
    File {
        /// For basic authentication.
        username: Option<String>,
        secret: CachedFile,
    },
}

impl Credential {
    fn new(auth: Option<&Auth>) -> Self {
        let (username, secret) = match auth {
            None => return Self::None,
            Some(Auth::Basic { username, password }) => (Some(username.as_str()), password),
            Some(Auth::Bearer(token)) => (None, token),
        };
        match secret {
            Secret::Value(value) => {
                let value = authorization(username, value.as_bytes());
                value.map_or(Self::Unusable, Self::Known)
            }
            Secret::File(path) => Self::File {
                username: username.map(str::to_owned),
                secret: CachedFile::new(path.clone(), CREDENTIAL_LIMIT),
            },
        }
    }

    fn value(&self) -> Result<Option<HeaderValue>, ProbeError> {
        let unusable = || {
            let text = "the credentials hold characters that no header may have";
            ProbeError::unknown(UnknownReason::File, text)
        };
        match self {
            Self::None => Ok(None),
            Self::Known(value) => Ok(Some(value.clone())),
            Self::Unusable => Err(unusable()),
            Self::File { username, secret } => {
                let bytes = secret.read()?;
                let text = bytes.trim_ascii_end();
                if text.is_empty() {
                    let text = format!("{} is empty", secret.path().display());
                    return Err(ProbeError::unknown(UnknownReason::File, text));
                }
                let value = authorization(username.as_deref(), text);
                value.ok_or_else(unusable).map(Some)
            }
        }
    }
}

/// The value of `Authorization`, marked as sensitive.
fn authorization(username: Option<&str>, secret: &[u8]) -> Option<HeaderValue> {
    let text = match username {
        None => [b"Bearer ", secret].concat(),
        Some(username) => {
            let pair = [username.as_bytes(), b":", secret].concat();
            let pair = base64::engine::general_purpose::STANDARD.encode(pair);
            format!("Basic {pair}").into_bytes()
        }
    };
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn common_headers(config: &HttpProbeConfig) -> HeaderMap {
    // With room for Host and Authorization.
    let mut headers = HeaderMap::with_capacity(config.headers.len() + 6);
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("leadsman/", env!("CARGO_PKG_VERSION"))),
    );
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    if config.connection == Reuse::New {
        // The target then closes first, and the ports that wait after a close are its own.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(compression) = config.compression {
        let accepted = HeaderValue::from_static(accept(compression));
        headers.insert(header::ACCEPT_ENCODING, accepted);
    }
    let mut own: Vec<&HeaderName> = Vec::new();
    for (name, value) in &config.headers {
        // The first of a name replaces what is sent by default, further ones are added.
        if own.contains(&name) {
            headers.append(name, value.clone());
        } else {
            headers.insert(name, value.clone());
            own.push(name);
        }
    }
    headers
}

/// Scheme, host and port.
pub(super) fn origin_of(target: &Target) -> ConnectionOrigin {
    (target.is_https(), target.host(), target.port())
}

/// Host and, where the scheme does not imply it, port; IPv6 addresses in brackets.
fn authority_of(target: &Target) -> String {
    let host = target.url().host_str().unwrap_or("");
    let port = target.url().port();
    port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests;
