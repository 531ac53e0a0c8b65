//! One HTTP probe: request, redirects, body, expectations.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{Response, StatusCode, Version};
use hyper::body::Incoming;

use super::ProberContext;
use super::body::{is_coded, too_large, unpack};
use super::connect::{Addresses, connect};
use super::connection::{ConnectionFacts, HttpConnection, IdleConnections};
use super::error::ProbeError;
use super::files::{CachedFile, FILE_LIMIT};
use super::proxy::tunnel;
use super::request::{RedirectHop, RequestBuilder, origin_of};
use super::stream::{CountedTcp, HttpStream};
use super::timing::{ProbeStage, ProbeTiming};
use super::tls::{Alpn, CertificateCache, handshake};
use crate::config::Target;
use crate::config::settings::{
    Compression, ConnectionReuse as Reuse, HttpProbeConfig, HttpVersions, IpFamily, RequestBody,
};
use crate::core::probe_result::expect::Expect;
use crate::core::probe_result::{HttpVersion, Outcome, Reason, ResponseView, UnknownReason, judge};
use crate::platform::clock;

/// Larger bodies are checked on a blocking thread, so that other probes start on time.
const JUDGE_ELSEWHERE: usize = 64 * 1024;

/// An HTTP probe of one target, prepared.
pub(super) struct HttpProber {
    shared: Arc<ProberContext>,
    target: Target,
    config: HttpProbeConfig,
    expect: Arc<Expect>,
    requests: RequestBuilder,
    body: Option<CachedFile>,
    seen: CertificateCache,
    idle: IdleConnections,
}

/// The head of an answer, and whether it came over TLS.
struct ResponseHead {
    parts: http::response::Parts,
    over_tls: bool,
}

impl HttpProber {
    pub(super) fn new(shared: Arc<ProberContext>, target: Target, config: HttpProbeConfig) -> Self {
        let body = match &config.body {
            RequestBody::File(path) => Some(CachedFile::new(path.clone(), FILE_LIMIT)),
            RequestBody::None | RequestBody::Inline(_) => None,
        };
        Self {
            requests: RequestBuilder::new(&config),
            expect: Arc::new(config.expect.clone()),
            shared,
            target,
            config,
            body,
            seen: CertificateCache::default(),
            idle: IdleConnections::default(),
        }
    }

    /// Sends requests until there is an answer to check.
    pub(super) async fn sound(
        &self,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let body = match (&self.body, &self.config.body) {
            (Some(file), _) => file.read()?,
            (None, RequestBody::Inline(bytes)) => bytes.clone(),
            (None, RequestBody::None | RequestBody::File(_)) => Bytes::new(),
        };
        let mut redirect =
            RedirectHop::first(self.target.clone(), self.config.method.clone(), body);
        loop {
            let (connection, answer) = self.exchange(&redirect, timeout, timing).await?;
            let followed = timing.answer.redirects;
            let redirects = self.config.redirects;
            let (status, headers) = (answer.status(), answer.headers());
            let next = redirect.redirected(&self.target, redirects, followed, status, headers)?;
            let Some(next) = next else {
                return self.read_and_judge(connection, answer, timing).await;
            };
            redirect = next;
            timing.next_redirect();
            timing.note(|step| {
                *step = format!("following the redirect to {}", redirect.target.shown());
            });
        }
    }

    /// Sends the request and waits for the head of the answer.
    ///
    /// A reused connection may turn out to be dead, which no client can know before. Then the request is sent once more
    /// over a new connection, if no byte of an answer came. The target may have seen it twice, as with every client
    /// that reuses connections; a request that must not be repeated needs a new connection for each probe.
    ///
    /// A target that goes away may say that it never processed the request, which HTTP/2 allows also on a new
    /// connection. Then the request is sent once more over another one.
    async fn exchange(
        &self,
        redirect: &RedirectHop,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(HttpConnection, Response<Incoming>), ProbeError> {
        if self.config.connection == Reuse::KeepAlive
            && let Some(mut connection) = self.idle.take(&origin_of(&redirect.target)).await
        {
            timing.answer.reused = true;
            timing.answer.ip = connection.facts.ip;
            timing.answer.entrance = connection.facts.entrance;
            timing.note(|step| step.push_str("took the connection of an earlier result"));
            match self.ask(&mut connection, redirect, timing).await {
                Ok(answer) => return Ok((connection, answer)),
                Err(probe_error)
                    if probe_error.is_unprocessed || is_dead(&probe_error, &connection) =>
                {
                    timing.note(|step| step.push_str("it was closed in the meantime"));
                    timing.answer.reused = false;
                    timing.answer.tls = None;
                }
                Err(probe_error) => return Err(probe_error),
            }
        }
        let mut connection = self.open(redirect, timeout, timing).await?;
        match self.ask(&mut connection, redirect, timing).await {
            Ok(answer) => return Ok((connection, answer)),
            Err(probe_error) if probe_error.is_unprocessed => {
                timing
                    .note(|step| *step = format!("asking once more: {}", probe_error.explanation));
                timing.answer.tls = None;
            }
            Err(probe_error) => return Err(probe_error),
        }
        drop(connection);
        let mut connection = self.open(redirect, timeout, timing).await?;
        let answer = self.ask(&mut connection, redirect, timing).await?;
        Ok((connection, answer))
    }

    async fn ask(
        &self,
        connection: &mut HttpConnection,
        redirect: &RedirectHop,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<Response<Incoming>, ProbeError> {
        timing.enter(ProbeStage::Processing);
        timing.meter = Some(Arc::clone(connection.meter()));
        timing.answer.tls.clone_from(&connection.facts.seen);
        let request = self.requests.request(redirect, connection.is_http2())?;
        timing.note(|step| {
            let url = redirect.target.shown();
            *step = format!("sending {} {url}", request.method());
        });
        let answer = connection.send(request).await?;
        timing.enter(ProbeStage::Transfer);
        timing.answer.status = Some(answer.status().as_u16());
        timing.answer.http_version = Some(version_of(answer.version()));
        let text = |name: HeaderName| answer.headers().get(name)?.to_str().ok();
        timing.answer.content_length =
            text(header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok());
        timing.answer.last_modified = text(header::LAST_MODIFIED)
            .and_then(|text| httpdate::parse_http_date(text).ok())
            .and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_secs()).ok());
        timing.note(|step| {
            let (status, version) = (answer.status(), answer.version());
            *step = format!("answer {status} over {version:?}, headers:");
            for name in answer.headers().keys() {
                step.push(' ');
                step.push_str(name.as_str());
            }
        });
        Ok(answer)
    }

    /// A new connection, up to the point where a request can be sent.
    async fn open(
        &self,
        redirect: &RedirectHop,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<HttpConnection, ProbeError> {
        let target = &redirect.target;
        let config = &self.config;
        let tcp = if let Some(proxy) = &config.proxy {
            self.through(proxy, target, timeout, timing).await?
        } else {
            let addresses = self.addresses(target, timeout, timing).await?;
            connect(&addresses, ProbeStage::Connect, timing).await?
        };
        let (stream, seen, http2) = if target.is_https() {
            let alpn = match config.http {
                HttpVersions::Auto => Alpn::Both,
                HttpVersions::Http1 => Alpn::Http1,
                HttpVersions::Http2 => Alpn::Http2,
            };
            let tls = &config.connect.tls;
            let client = self.shared.clients.client(tls, alpn)?;
            let name = tls.server_name.clone().filter(|_| redirect.home);
            let name = name.unwrap_or_else(|| target.host());
            let stream = handshake(client, &name, tcp, timing).await?;
            let seen = self.seen.look(&stream);
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            if config.http == HttpVersions::Http2 && !http2 {
                timing.answer.tls = seen;
                let text = "the target does not agree to speak HTTP/2";
                return Err(ProbeError::bad(Reason::Version, text));
            }
            (HttpStream::tls(stream), seen, http2)
        } else {
            let http2 = config.http == HttpVersions::Http2;
            (HttpStream::plain(tcp), None, http2)
        };
        timing.enter(ProbeStage::Processing);
        let keep = config.connection == Reuse::KeepAlive;
        let facts = ConnectionFacts {
            seen,
            ip: timing.answer.ip,
            entrance: timing.answer.entrance,
            over_tls: target.is_https(),
            origin: keep.then(|| origin_of(target)),
        };
        HttpConnection::start(stream, http2, facts).await
    }

    async fn addresses(
        &self,
        target: &Target,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<Addresses, ProbeError> {
        let left = timeout.saturating_sub(timing.elapsed());
        let (host, port) = (target.host(), target.port());
        let choice = self.config.connect.ip;
        let resolver = &self.shared.resolver;
        let stage = ProbeStage::Resolve;
        resolver
            .addresses(&host, port, choice, left, stage, timing)
            .await
    }

    /// A connection to the target or, for plain HTTP, to the proxy itself.
    async fn through(
        &self,
        proxy: &Target,
        target: &Target,
        timeout: Duration,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<CountedTcp, ProbeError> {
        if !self.config.proxy_resolves {
            // The name is only looked up, to know that it can be: the proxy resolves for itself.
            self.addresses(target, timeout, timing).await?;
        }
        let left = timeout.saturating_sub(timing.elapsed());
        let resolver = &self.shared.resolver;
        let (host, port) = (proxy.host(), proxy.port());
        // Which addresses of the target to use says nothing about those of the proxy.
        let any = IpFamily::Any;
        let addresses = resolver.addresses(&host, port, any, left, ProbeStage::Proxy, timing);
        let addresses = addresses.await.map_err(ProbeError::of_proxy)?;
        let tcp = connect(&addresses, ProbeStage::Proxy, timing).await;
        let tcp = tcp.map_err(ProbeError::of_proxy)?;
        if target.is_https() {
            tunnel(tcp, target, timing).await
        } else {
            Ok(tcp)
        }
    }

    async fn read_and_judge(
        &self,
        mut connection: HttpConnection,
        answer: Response<Incoming>,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let limit = self.config.body_limit;
        let (parts, mut body) = answer.into_parts();
        let coding = parts.headers.get(header::CONTENT_ENCODING);
        let coded = self.config.compression.filter(|c| is_coded(coding, *c));
        let keep = self.expect.needs_body() || coded.is_some();
        let mut bytes = Vec::new();
        while let Some(frame) = connection.frame(&mut body).await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            timing.answer.body_bytes += data.len() as u64;
            timing.answer.unpacked_bytes = timing.answer.body_bytes;
            if timing.answer.body_bytes > limit as u64 {
                return Err(too_large(limit, "on the wire"));
            }
            if keep {
                bytes.extend_from_slice(&data);
            }
        }
        let over_tls = connection.facts.over_tls;
        if self.config.connection == Reuse::KeepAlive {
            self.idle.give_back(connection);
        }
        let read = timing.answer.body_bytes;
        timing.note(|step| *step = format!("read a body of {read} bytes"));
        // What has no body, as the answer to HEAD, has nothing to unpack either.
        if let Some(compression) = coded.filter(|_| !bytes.is_empty()) {
            bytes = self.unpack(bytes, compression).await?;
            timing.answer.unpacked_bytes = bytes.len() as u64;
        }
        self.judge(ResponseHead { parts, over_tls }, bytes, timing)
            .await
    }

    /// Always on a thread for such work: a few bytes may become megabytes.
    async fn unpack(&self, packed: Vec<u8>, how: Compression) -> Result<Vec<u8>, ProbeError> {
        let limit = self.config.body_limit;
        off_thread(true, move || unpack(&packed, how, limit)).await?
    }

    async fn judge(
        &self,
        head: ResponseHead,
        body: Vec<u8>,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let expect = Arc::clone(&self.expect);
        let tls = timing.answer.tls.clone();
        timing.answer.limited = limited(&head.parts);
        let duration = timing.elapsed();
        let unix_now = clock::unix_seconds();
        let large = body.len() > JUDGE_ELSEWHERE;
        let judged = move || {
            let seen = ResponseView {
                status: head.parts.status.as_u16(),
                version: version_of(head.parts.version),
                headers: &head.parts.headers,
                body: &body,
                over_tls: head.over_tls,
                duration,
                tls: tls.as_deref(),
                unix_now,
            };
            judge(&expect, &seen)
        };
        off_thread(large, judged)
            .await?
            .map_err(|failure| ProbeError::bad(failure.reason, failure.explanation))
    }
}

/// The longest that a rate limit can ask us to wait.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// Set if a rate limit answered: how long to wait before the next request.
fn limited(head: &http::response::Parts) -> Option<Duration> {
    let after = head.headers.get(header::RETRY_AFTER);
    let is_limit = head.status == StatusCode::TOO_MANY_REQUESTS
        || head.status == StatusCode::SERVICE_UNAVAILABLE && after.is_some();
    let text = after.and_then(|value| value.to_str().ok()).map(str::trim);
    let wait = text.and_then(|text| {
        let seconds = text.parse().ok().map(Duration::from_secs);
        seconds.or_else(|| {
            let until = httpdate::parse_http_date(text).ok()?;
            until.duration_since(std::time::SystemTime::now()).ok()
        })
    });
    is_limit.then(|| wait.unwrap_or_default().min(MAX_RETRY_AFTER))
}

/// Whether a reused connection was closed before anything of an answer came.
fn is_dead(probe_error: &ProbeError, connection: &HttpConnection) -> bool {
    probe_error.outcome == Outcome::Failure(Reason::Reset) && !connection.was_heard()
}

/// Runs work here, or on a thread for long work.
async fn off_thread<T: Send + 'static>(
    elsewhere: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ProbeError> {
    if !elsewhere {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ProbeError::unknown(UnknownReason::Shutdown, "the evaluation was stopped"))
}

fn version_of(version: Version) -> HttpVersion {
    match version {
        Version::HTTP_2 | Version::HTTP_3 => HttpVersion::V20,
        Version::HTTP_11 => HttpVersion::V11,
        _ => HttpVersion::V10,
    }
}
