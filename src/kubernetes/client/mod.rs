//! The client for the API server, and the one way to change something there.
//!
//! Invariants:
//! - giving up a request closes its connection: bytes that wait in our buffers or in the kernel's are discarded, so
//!   they cannot arrive later;
//! - every change goes through an [`ApiWriter`], which needs the permit.

mod writer;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Extensions, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{
    CaptureConnection, Connected, Connection, HttpConnector, capture_connection,
};
use hyper_util::client::legacy::{Builder, Error};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower::{BoxError, Service, ServiceBuilder, service_fn};
use tower_http::decompression::DecompressionLayer;

pub(crate) use writer::{ApiWriter, EventRecorder, WriteError};

/// Maximum time to establish a connection, including its TLS handshake.
const CONNECT: Duration = Duration::from_secs(5);

/// A client that closes the connection of each request that is given up. Sends no request yet.
///
/// # Errors
///
/// When the certificates or credentials of the configuration cannot be used.
pub(crate) fn client(config: Config) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        // kube's own client names what this build cannot do.
        return Client::try_from(config);
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let plain = service_fn(move |to: Uri| {
        let mut http = http.clone();
        async move {
            std::future::poll_fn(|cx| http.poll_ready(cx)).await?;
            let stream = http.call(to).await?;
            // Closing it discards what the kernel has not sent; otherwise that would be sent for minutes after.
            stream.inner().set_zero_linger()?;
            Ok::<_, BoxError>(stream)
        }
    });
    let secured = config.rustls_https_connector_with_connector(plain)?;
    let limited = service_fn(move |to: Uri| {
        let mut secured = secured.clone();
        // The client wants futures that can be moved.
        Box::pin(async move {
            std::future::poll_fn(|cx| secured.poll_ready(cx)).await?;
            let connecting = tokio::time::timeout(CONNECT, secured.call(to));
            let stream = connecting.await.map_err(|_| timed_out())??;
            Ok::<_, BoxError>(AbortableSocket::new(stream))
        })
    });
    let connections = Builder::new(TokioExecutor::new()).build::<_, Body>(limited);
    let layers = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(DecompressionLayer::new().gzip(!config.disable_compression))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(AbortingService(connections));
    Ok(ClientBuilder::new(layers, config.default_namespace).build())
}

fn timed_out() -> BoxError {
    let text = format!("no connection within {} s", CONNECT.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text).into()
}

/// A connection that can be aborted from outside.
struct AbortableSocket<T> {
    stream: T,
    end: CancellationToken,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> AbortableSocket<T> {
    fn new(stream: T) -> Self {
        let end = CancellationToken::new();
        let ended = Box::pin(end.clone().cancelled_owned());
        Self { stream, end, ended }
    }
}

impl<T: Unpin> AbortableSocket<T> {
    /// The stream, unless it was aborted; then the task that waits for it is woken and drops it with everything unsent.
    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut T>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

/// The handle by which requests abort their connection.
#[derive(Clone)]
struct AbortHandle(CancellationToken);

impl<T: Connection> Connection for AbortableSocket<T> {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(AbortHandle(self.end.clone()))
    }
}

impl<T: Read + Unpin> Read for AbortableSocket<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_read(cx, buffer)
    }
}

impl<T: Write + Unpin> Write for AbortableSocket<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.open(cx)?.poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.open(cx)?.poll_write_vectored(cx, parts)
    }
}

/// A client whose requests abort their connections when they are given up.
#[derive(Clone)]
struct AbortingService<S>(S);

type Answering = Pin<Box<dyn Future<Output = Result<Response<Incoming>, Error>> + Send>>;

impl<S> Service<Request<Body>> for AbortingService<S>
where
    S: Service<Request<Body>, Response = Response<Incoming>, Error = Error>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answering;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering {
        let mut given_up = AbortOnDrop(Some(capture_connection(&mut request)));
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            given_up.is_answered();
            answer
        })
    }
}

/// Aborts the connection of a request that is dropped before its answer has begun.
struct AbortOnDrop(Option<CaptureConnection>);

impl AbortOnDrop {
    fn is_answered(&mut self) {
        self.0 = None;
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        let Some(captured) = self.0.take() else {
            return;
        };
        // Without a connection nothing was sent.
        let mut extras = Extensions::new();
        if let Some(connected) = captured.connection_metadata().as_ref() {
            connected.get_extras(&mut extras);
        }
        if let Some(AbortHandle(end)) = extras.get() {
            end.cancel();
        }
    }
}

#[cfg(test)]
mod tests;
