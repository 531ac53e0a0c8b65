//! Accepting connections, within limits.
//!
//! Invariants:
//! - the stop takes a bounded time, whatever clients do or leave undone;
//! - a client that is slow costs its own connection for some seconds, and no other one anything.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Peer, Tls};

/// A head that does not come within this time, or a connection that idles longer, is closed. Longer than the usual
/// scrape interval of 15 s and its neighbours, so that Prometheus keeps its connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);

/// The size of a request's head and of the write buffer: a `/probe` URL may be long, but not longer.
const HEAD_LIMIT: usize = 64 * 1024;

/// Headers of one request.
const MAX_HEADERS: usize = 100;

/// A client that takes nothing of its answer for so long is closed. Longer than any network needs to come to itself after a
/// lost packet or two.
const TAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long answers that are being written may still take after the signal to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// After a failed accept (no file descriptors, say) we wait so long instead of turning in a circle.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client that has not shaken hands by then is closed.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Serves until `stop`, then lets running answers end for a second, and cuts off those that do not.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(max_connections));
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            next = next(&listener, &connections) => next,
        };
        let Some((stream, permit)) = next else {
            break;
        };
        let router = router.clone();
        let stop = stop.clone();
        let cut = cut.clone();
        let tls = tls.clone();
        tasks.spawn(async move {
            let welcomed = tokio::select! {
                () = cut.cancelled() => Err("it did not end in time".to_owned()),
                welcomed = welcome(stream, tls, router, stop) => welcomed,
            };
            if let Err(error) = welcomed {
                tracing::debug!(error, "A client's connection ended early");
            }
            drop(permit);
        });
    }
    // Whoever comes now is refused at once, and may ask another replica.
    drop(listener);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
}

/// The next client, when there is room for one; further ones wait in the system's queue. Nobody when there never will be.
async fn next(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return Some((stream, permit)),
            Err(error) => {
                tracing::warn!(%error, "Could not accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn welcome(
    stream: TcpStream,
    tls: Option<Arc<Tls>>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), String> {
    // Answers are written in one piece; waiting for more to send would only delay them.
    let _: io::Result<()> = stream.set_nodelay(true);
    let peer = stream.peer_addr().map(|address| Peer(address.ip()));
    let stream = Patient::new(stream);
    let answered = match tls {
        None => answer(stream, peer, router, stop).await,
        Some(tls) => {
            let shaken = tls.acceptor().accept(stream);
            let stream = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                shaken = tokio::time::timeout(HANDSHAKE, shaken) => shaken
                    .map_err(|_| "no handshake in time".to_owned())?
                    .map_err(|error| error.to_string())?,
            };
            answer(stream, peer, router, stop).await
        }
    };
    answered.map_err(|error| error.to_string())
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: io::Result<Peer>,
    router: Router,
    stop: CancellationToken,
) -> hyper::Result<()> {
    let inner = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Ok(peer) = &peer {
            request.extensions_mut().insert(*peer);
        }
        inner.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_LIMIT)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// A connection whose other side has to take what it is sent.
struct Patient<S> {
    stream: S,
    /// While it takes nothing: when that has lasted too long.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Patient<S> {
    const fn new(stream: S) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    /// What came of a write, or an error when nothing has come of any for too long.
    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(TAKE_TIMEOUT)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take its answer",
        )))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watched(context, written)
    }

    // Without it hyper copies each answer, and what counts answers would lose sight of them.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watched(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut ours = Patient::new(ours);
        let writing = tokio::spawn(async move {
            let slow = ours.write_all(&[1; 64]).await;
            let stuck = ours.write_all(&[2; 64]).await;
            (slow, stuck)
        });
        for _ in 0..4 {
            sleep(TAKE_TIMEOUT * 2 / 3).await;
            theirs.read_exact(&mut [0; 16]).await.unwrap();
        }
        let (slow, stuck) = writing.await.unwrap();
        slow.unwrap();
        assert_eq!(stuck.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }
}
