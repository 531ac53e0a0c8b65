//! A server on a free loopback port that does what its script says, and remembers what it was asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::script::{Script, Step};

/// One request as the server saw it.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// The number of the connection, from 0.
    pub connection: usize,
    /// As in the request line.
    pub method: String,
    /// Path and query; for a proxy the whole URL, or the authority.
    pub path: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// In their order, with names as they were written.
    pub headers: Vec<(String, String)>,
    /// Whole.
    pub body: Vec<u8>,
    /// The name that TLS was asked for.
    pub sni: Option<String>,
    /// Whether the client showed a certificate.
    pub client_certificate: bool,
}

impl Received {
    /// The first value of a header; names without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }
}

type Handler = Arc<dyn Fn(&Received) -> Script + Send + Sync>;

/// A server; it stops when this is dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    connections: usize,
    open: usize,
    requests: Vec<Received>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// HTTP/1.1 without TLS.
    pub async fn plain<S: Into<Script>>(
        handler: impl Fn(&Received) -> S + Send + Sync + 'static,
    ) -> Self {
        Self::start("127.0.0.1", Protocol::Http1, None, handler).await
    }

    /// HTTP/1.1 without TLS at another loopback address.
    pub async fn plain_at<S: Into<Script>>(
        host: &str,
        handler: impl Fn(&Received) -> S + Send + Sync + 'static,
    ) -> Self {
        Self::start(host, Protocol::Http1, None, handler).await
    }

    /// HTTP/2 without TLS.
    pub async fn http2<S: Into<Script>>(
        handler: impl Fn(&Received) -> S + Send + Sync + 'static,
    ) -> Self {
        Self::start("127.0.0.1", Protocol::Http2, None, handler).await
    }

    /// HTTP over TLS, of the version that is agreed on.
    pub async fn tls<S: Into<Script>>(
        config: Arc<ServerConfig>,
        handler: impl Fn(&Received) -> S + Send + Sync + 'static,
    ) -> Self {
        Self::start("127.0.0.1", Protocol::Http1, Some(config), handler).await
    }

    /// Does the same to each connection, without waiting for a request.
    pub async fn connections_only(script: impl Into<Script>) -> Self {
        let script = script.into();
        Self::start("127.0.0.1", Protocol::None, None, move |_| script.clone()).await
    }

    /// The same over TLS.
    pub async fn tls_connections_only(
        config: Arc<ServerConfig>,
        script: impl Into<Script>,
    ) -> Self {
        let script = script.into();
        let handler = move |_: &Received| script.clone();
        Self::start("127.0.0.1", Protocol::None, Some(config), handler).await
    }

    async fn start<S: Into<Script>>(
        host: &str,
        protocol: Protocol,
        tls: Option<Arc<ServerConfig>>,
        handler: impl Fn(&Received) -> S + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let scheme = if tls.is_some() { "https" } else { "http" };
        let handler: Handler = Arc::new(move |request| handler(request).into());
        let task = tokio::spawn(accept(listener, protocol, tls, handler, seen.clone()));
        Self {
            address,
            scheme,
            seen,
            task,
        }
    }

    /// The URL of a path here.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// The URL of a path here, with a name in the place of the address.
    pub fn url_of(&self, host: &str, path: &str) -> String {
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    /// The address as a `tcp` target.
    pub fn tcp(&self) -> String {
        format!("tcp://{}", self.address)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Received> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// The only request.
    #[track_caller]
    pub fn request(&self) -> Received {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests[0].clone()
    }

    /// How many connections came.
    pub fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.seen.lock().unwrap().open
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Protocol {
    Http1,
    Http2,
    None,
}

async fn accept(
    listener: TcpListener,
    protocol: Protocol,
    tls: Option<Arc<ServerConfig>>,
    handler: Handler,
    seen: Arc<Mutex<Seen>>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let mut connection = Received::default();
        {
            let mut seen = seen.lock().unwrap();
            connection.connection = seen.connections;
            seen.connections += 1;
            seen.open += 1;
        }
        let (tls, handler, seen) = (tls.clone(), handler.clone(), seen.clone());
        tasks.spawn(async move {
            let _closed = Closed(seen.clone());
            let Some(tls) = tls else {
                return serve(stream, protocol, connection, handler, seen).await;
            };
            let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else {
                return;
            };
            let (_, state) = stream.get_ref();
            connection.sni = state.server_name().map(str::to_owned);
            connection.client_certificate = state.peer_certificates().is_some();
            let protocol = match (protocol, state.alpn_protocol()) {
                (Protocol::Http1, Some(b"h2")) => Protocol::Http2,
                (protocol, _) => protocol,
            };
            serve(stream, protocol, connection, handler, seen).await;
        });
    }
}

struct Closed(Arc<Mutex<Seen>>);

impl Drop for Closed {
    fn drop(&mut self) {
        if let Ok(mut seen) = self.0.lock() {
            seen.open -= 1;
        }
    }
}

async fn serve(
    mut stream: impl Stream,
    protocol: Protocol,
    connection: Received,
    handler: Handler,
    seen: Arc<Mutex<Seen>>,
) {
    match protocol {
        Protocol::None => {
            let script = handler(&connection);
            // After a reset there is nothing to end in order.
            if play(&mut stream, script).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        }
        Protocol::Http1 => {
            let _ = serve_http1(stream, connection, handler, seen).await;
        }
        Protocol::Http2 => serve_http2(stream, connection, handler, seen).await,
    }
}

async fn serve_http1(
    mut stream: impl Stream,
    connection: Received,
    handler: Handler,
    seen: Arc<Mutex<Seen>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, &connection).await? {
        seen.lock().unwrap().requests.push(request.clone());
        let end = request.header("connection") == Some("close");
        let script = handler(&request);
        if !play(&mut stream, script).await? || end {
            break;
        }
    }
    stream.shutdown().await
}

/// Whether the connection may go on.
async fn play(stream: &mut impl Stream, script: Script) -> std::io::Result<bool> {
    for step in script.steps {
        match step {
            Step::Bytes(bytes) => stream.write_all(&bytes).await?,
            Step::Wait(span) => tokio::time::sleep(span).await,
            Step::Forever(bytes) => loop {
                stream.write_all(&bytes).await?;
                tokio::task::yield_now().await;
            },
            Step::Drip(bytes, every) => {
                for byte in bytes {
                    stream.write_all(&[byte]).await?;
                    stream.flush().await?;
                    tokio::time::sleep(every).await;
                }
            }
            Step::Hang => {
                stream.flush().await?;
                // Until the other side goes: what it still sends is not an answer.
                let mut rest = [0; 1024];
                while stream.read(&mut rest).await? > 0 {}
                return Ok(false);
            }
            Step::Reset => {
                stream.flush().await?;
                stream.tcp().set_zero_linger()?;
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            Step::Close => {
                stream.flush().await?;
                return Ok(false);
            }
        }
        stream.flush().await?;
    }
    Ok(true)
}

async fn read_request(
    stream: &mut impl Stream,
    buffer: &mut Vec<u8>,
    connection: &Received,
) -> std::io::Result<Option<Received>> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head: Vec<u8> = buffer.drain(..end + 4).collect();
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.trim_end().split("\r\n");
    let mut line = lines.next().unwrap_or_default().split(' ');
    let mut next = || line.next().unwrap_or_default().to_owned();
    let mut request = Received {
        method: next(),
        path: next(),
        version: next(),
        ..connection.clone()
    };
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        request.headers.push((name.into(), value.trim().into()));
    }
    assert_ne!(
        request.header("transfer-encoding"),
        Some("chunked"),
        "a request's body is known in advance, so it has a length"
    );
    let length = request.header("content-length");
    let length: usize = length.map_or(0, |text| text.parse().unwrap());
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    request.body = buffer.drain(..length).collect();
    Ok(Some(request))
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

async fn serve_http2(
    stream: impl Stream,
    connection: Received,
    handler: Handler,
    seen: Arc<Mutex<Seen>>,
) {
    let service =
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (connection, handler, seen) = (connection.clone(), handler.clone(), seen.clone());
            async move {
                let (parts, body) = request.into_parts();
                let body = body
                    .collect()
                    .await
                    .map(http_body_util::Collected::to_bytes)
                    .unwrap_or_default();
                let mut headers: Vec<(String, String)> = Vec::new();
                if let Some(authority) = parts.uri.authority() {
                    headers.push((":authority".into(), authority.to_string()));
                }
                for (name, value) in &parts.headers {
                    headers.push((name.to_string(), value.to_str().unwrap().to_owned()));
                }
                let request = Received {
                    method: parts.method.to_string(),
                    path: parts
                        .uri
                        .path_and_query()
                        .map_or(String::new(), ToString::to_string),
                    version: format!("{:?}", parts.version),
                    headers,
                    body: body.to_vec(),
                    ..connection
                };
                seen.lock().unwrap().requests.push(request.clone());
                let Some(answer) = handler(&request).answer else {
                    std::future::pending::<()>().await;
                    unreachable!()
                };
                tokio::time::sleep(answer.before).await;
                let mut response = http::Response::builder().status(answer.status);
                for (name, value) in &answer.headers {
                    response = response.header(name.to_lowercase(), value);
                }
                Ok::<_, Infallible>(response.body(Full::new(Bytes::from(answer.body))).unwrap())
            }
        });
    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    fn tcp(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Stream for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// An address where nobody listens.
pub async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}
