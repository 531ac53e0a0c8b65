//! One HTTP sounding: request, redirects, body, judgement.

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
use crate::core::probe_result::{HttpVersion, Outcome, Reason, ResponseView, VoidReason, judge};
use crate::platform::clock;

/// Larger bodies are judged on a thread for such work, so that others start on time.
const JUDGE_ELSEWHERE: usize = 64 * 1024;

/// An HTTP question to one target, prepared.
pub(super) struct HttpProber {
    shared: Arc<ProberContext>,
    target: Target,
    question: HttpProbeConfig,
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
    pub(super) fn new(
        shared: Arc<ProberContext>,
        target: Target,
        question: HttpProbeConfig,
    ) -> Self {
        let body = match &question.body {
            RequestBody::File(path) => Some(CachedFile::new(path.clone(), FILE_LIMIT)),
            RequestBody::None | RequestBody::Inline(_) => None,
        };
        Self {
            requests: RequestBuilder::new(&question),
            expect: Arc::new(question.expect.clone()),
            shared,
            target,
            question,
            body,
            seen: CertificateCache::default(),
            idle: IdleConnections::default(),
        }
    }

    /// Asks until there is an answer to judge.
    pub(super) async fn sound(
        &self,
        timeout: Duration,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let body = match (&self.body, &self.question.body) {
            (Some(file), _) => file.read()?,
            (None, RequestBody::Inline(bytes)) => bytes.clone(),
            (None, RequestBody::None | RequestBody::File(_)) => Bytes::new(),
        };
        let mut hop = RedirectHop::first(self.target.clone(), self.question.method.clone(), body);
        loop {
            let (connection, answer) = self.exchange(&hop, timeout, trace).await?;
            let followed = trace.answer.redirects;
            let redirects = self.question.redirects;
            let (status, headers) = (answer.status(), answer.headers());
            let next = hop.redirected(&self.target, redirects, followed, status, headers)?;
            let Some(next) = next else {
                return self.read_and_judge(connection, answer, trace).await;
            };
            hop = next;
            trace.next_hop();
            trace.note(|step| {
                *step = format!("following the redirect to {}", hop.target.shown());
            });
        }
    }

    /// Sends the request and waits for the head of the answer.
    ///
    /// A kept connection may turn out to be dead, which no client can know before. Then the request is sent once more,
    /// over a new one, if no byte of an answer came. The target may have seen it twice, as with every client that keeps
    /// connections; a request that must not be repeated wants a new connection for each sounding.
    ///
    /// A target that goes away may also say of a new connection that it never began with the request, as HTTP/2 can.
    /// Then it is sent once more, over another one.
    async fn exchange(
        &self,
        hop: &RedirectHop,
        timeout: Duration,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<(HttpConnection, Response<Incoming>), ProbeError> {
        if self.question.connection == Reuse::KeepAlive
            && let Some(mut connection) = self.idle.take(&origin_of(&hop.target)).await
        {
            trace.answer.reused = true;
            trace.answer.ip = connection.facts.ip;
            trace.answer.entrance = connection.facts.entrance;
            trace.note(|step| step.push_str("took the connection of an earlier sounding"));
            match self.ask(&mut connection, hop, trace).await {
                Ok(answer) => return Ok((connection, answer)),
                Err(fault) if fault.is_unprocessed || is_dead(&fault, &connection) => {
                    trace.note(|step| step.push_str("it was closed in the meantime"));
                    trace.answer.reused = false;
                    trace.answer.tls = None;
                }
                Err(fault) => return Err(fault),
            }
        }
        let mut connection = self.open(hop, timeout, trace).await?;
        match self.ask(&mut connection, hop, trace).await {
            Ok(answer) => return Ok((connection, answer)),
            Err(fault) if fault.is_unprocessed => {
                trace.note(|step| *step = format!("asking once more: {}", fault.explanation));
                trace.answer.tls = None;
            }
            Err(fault) => return Err(fault),
        }
        drop(connection);
        let mut connection = self.open(hop, timeout, trace).await?;
        let answer = self.ask(&mut connection, hop, trace).await?;
        Ok((connection, answer))
    }

    async fn ask(
        &self,
        connection: &mut HttpConnection,
        hop: &RedirectHop,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<Response<Incoming>, ProbeError> {
        trace.enter(ProbeStage::Processing);
        trace.meter = Some(Arc::clone(connection.meter()));
        trace.answer.tls.clone_from(&connection.facts.seen);
        let request = self.requests.request(hop, connection.is_http2())?;
        trace.note(|step| {
            let url = hop.target.shown();
            *step = format!("sending {} {url}", request.method());
        });
        let answer = connection.send(request).await?;
        trace.enter(ProbeStage::Transfer);
        trace.answer.status = Some(answer.status().as_u16());
        trace.answer.http_version = Some(version_of(answer.version()));
        let text = |name: HeaderName| answer.headers().get(name)?.to_str().ok();
        trace.answer.content_length =
            text(header::CONTENT_LENGTH).and_then(|text| text.trim().parse().ok());
        trace.answer.last_modified = text(header::LAST_MODIFIED)
            .and_then(|text| httpdate::parse_http_date(text).ok())
            .and_then(|date| date.duration_since(std::time::UNIX_EPOCH).ok())
            .and_then(|since| i64::try_from(since.as_secs()).ok());
        trace.note(|step| {
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
        hop: &RedirectHop,
        timeout: Duration,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<HttpConnection, ProbeError> {
        let target = &hop.target;
        let question = &self.question;
        let tcp = if let Some(proxy) = &question.proxy {
            self.through(proxy, target, timeout, trace).await?
        } else {
            let addresses = self.addresses(target, timeout, trace).await?;
            connect(&addresses, ProbeStage::Connect, trace).await?
        };
        let (stream, seen, http2) = if target.is_https() {
            let alpn = match question.http {
                HttpVersions::Auto => Alpn::Both,
                HttpVersions::Http1 => Alpn::Http1,
                HttpVersions::Http2 => Alpn::Http2,
            };
            let tls = &question.connect.tls;
            let config = self.shared.clients.client(tls, alpn)?;
            let name = tls.server_name.clone().filter(|_| hop.home);
            let name = name.unwrap_or_else(|| target.host());
            let stream = handshake(config, &name, tcp, trace).await?;
            let seen = self.seen.look(&stream);
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            if question.http == HttpVersions::Http2 && !http2 {
                trace.answer.tls = seen;
                let text = "the target does not agree to speak HTTP/2";
                return Err(ProbeError::bad(Reason::Version, text));
            }
            (HttpStream::tls(stream), seen, http2)
        } else {
            let http2 = question.http == HttpVersions::Http2;
            (HttpStream::plain(tcp), None, http2)
        };
        trace.enter(ProbeStage::Processing);
        let keep = question.connection == Reuse::KeepAlive;
        let facts = ConnectionFacts {
            seen,
            ip: trace.answer.ip,
            entrance: trace.answer.entrance,
            over_tls: target.is_https(),
            origin: keep.then(|| origin_of(target)),
        };
        HttpConnection::start(stream, http2, facts).await
    }

    async fn addresses(
        &self,
        target: &Target,
        timeout: Duration,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<Addresses, ProbeError> {
        let left = timeout.saturating_sub(trace.elapsed());
        let (host, port) = (target.host(), target.port());
        let choice = self.question.connect.ip;
        let resolver = &self.shared.resolver;
        let stage = ProbeStage::Resolve;
        resolver
            .addresses(&host, port, choice, left, stage, trace)
            .await
    }

    /// A connection to the target or, for plain HTTP, to the proxy itself.
    async fn through(
        &self,
        proxy: &Target,
        target: &Target,
        timeout: Duration,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<CountedTcp, ProbeError> {
        if !self.question.proxy_resolves {
            // The name is only looked up, to know that it can be: the proxy resolves for itself.
            self.addresses(target, timeout, trace).await?;
        }
        let left = timeout.saturating_sub(trace.elapsed());
        let resolver = &self.shared.resolver;
        let (host, port) = (proxy.host(), proxy.port());
        // Which addresses of the target to use says nothing about those of the proxy.
        let any = IpFamily::Any;
        let addresses = resolver.addresses(&host, port, any, left, ProbeStage::Proxy, trace);
        let addresses = addresses.await.map_err(ProbeError::of_proxy)?;
        let tcp = connect(&addresses, ProbeStage::Proxy, trace).await;
        let tcp = tcp.map_err(ProbeError::of_proxy)?;
        if target.is_https() {
            tunnel(tcp, target, trace).await
        } else {
            Ok(tcp)
        }
    }

    async fn read_and_judge(
        &self,
        mut connection: HttpConnection,
        answer: Response<Incoming>,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let limit = self.question.body_limit;
        let (parts, mut body) = answer.into_parts();
        let coding = parts.headers.get(header::CONTENT_ENCODING);
        let coded = self.question.compression.filter(|c| is_coded(coding, *c));
        let keep = self.expect.needs_body() || coded.is_some();
        let mut bytes = Vec::new();
        while let Some(frame) = connection.frame(&mut body).await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            trace.answer.body_bytes += data.len() as u64;
            trace.answer.unpacked_bytes = trace.answer.body_bytes;
            if trace.answer.body_bytes > limit as u64 {
                return Err(too_large(limit, "on the wire"));
            }
            if keep {
                bytes.extend_from_slice(&data);
            }
        }
        let over_tls = connection.facts.over_tls;
        if self.question.connection == Reuse::KeepAlive {
            self.idle.give_back(connection);
        }
        let read = trace.answer.body_bytes;
        trace.note(|step| *step = format!("read a body of {read} bytes"));
        // What has no body, as the answer to HEAD, has nothing to unpack either.
        if let Some(compression) = coded.filter(|_| !bytes.is_empty()) {
            bytes = self.unpack(bytes, compression).await?;
            trace.answer.unpacked_bytes = bytes.len() as u64;
        }
        self.judge(ResponseHead { parts, over_tls }, bytes, trace)
            .await
    }

    /// Always on a thread for such work: a few bytes may become megabytes.
    async fn unpack(&self, packed: Vec<u8>, how: Compression) -> Result<Vec<u8>, ProbeError> {
        let limit = self.question.body_limit;
        off_thread(true, move || unpack(&packed, how, limit)).await?
    }

    async fn judge(
        &self,
        head: ResponseHead,
        body: Vec<u8>,
        trace: &mut ProbeTiming<'_>,
    ) -> Result<(), ProbeError> {
        let expect = Arc::clone(&self.expect);
        let tls = trace.answer.tls.clone();
        trace.answer.limited = limited(&head.parts);
        let duration = trace.elapsed();
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

/// Whether a rate limit answered, and after how long it wants to be asked again.
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

/// Whether a kept connection was closed before anything of an answer came.
fn is_dead(fault: &ProbeError, connection: &HttpConnection) -> bool {
    fault.outcome == Outcome::Bad(Reason::Reset) && !connection.was_heard()
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
    done.map_err(|_| ProbeError::void(VoidReason::Shutdown, "the evaluation was stopped"))
}

fn version_of(version: Version) -> HttpVersion {
    match version {
        Version::HTTP_2 | Version::HTTP_3 => HttpVersion::V20,
        Version::HTTP_11 => HttpVersion::V11,
        _ => HttpVersion::V10,
    }
}
