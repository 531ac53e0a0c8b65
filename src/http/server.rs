//! Accepts connections, within limits.
//!
//! Invariants:
//! - a stop takes a bounded time, whatever clients do;
//! - a slow client costs its own connection for some seconds, and affects no other;
//! - the listener never closes: each new client is admitted, and another connection is closed for it (see `limits`).

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
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::limits::{ClientConnection, ConnectionActivity, Connections};
use super::response_budget::CLOSE;
use super::{ConnectionPeer, ListenerTls};

/// Size of a request's head and of the write buffer: a `/probe` URL may be long, but not longer.
const HEAD_LIMIT: usize = 64 * 1024;

/// Headers of one request.
const MAX_HEADERS: usize = 100;

/// A client that reads less than [`LEAST_TAKEN`] of its answer within this time is closed. Longer than any network
/// needs to recover from a lost packet or two.
const TAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// 4 KiB a second: no reader is as slow by accident, and one that reads a byte now and then cannot hold an answer
/// forever.
const LEAST_TAKEN: usize = 64 * 1024;

/// Time for running answers after the signal to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// Pause after an accept that failed for lack of file descriptors or memory: the connection that was closed for it has
/// ended by then.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Maximum duration of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections beyond the limit that have been told to close and have not ended yet. Each ends within a moment.
const CLOSING: usize = 64;

/// The most permits that a semaphore of tokio has.
const MOST: usize = Semaphore::MAX_PERMITS - CLOSING;

/// Minimum time between log lines about the same trouble.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Serves until `stop`, then lets running answers end for a second, and cuts off those that do not.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    tls: Option<Arc<ListenerTls>>,
    stop: CancellationToken,
) {
    let mut door = Acceptor::new(listener, max_connections);
    let tasks = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            next = door.next() => next,
        };
        let Some((stream, peer, connection, permit)) = next else {
            break;
        };
        let router = router.clone();
        let stop = stop.clone();
        let cut = cut.clone();
        let tls = tls.clone();
        tasks.spawn(async move {
            let activity = Arc::clone(&connection.activity);
            let welcomed = serve_connection(stream, peer, activity, tls, router, stop);
            let welcomed = CLOSE.scope(connection.close.clone(), welcomed);
            let welcomed = tokio::select! {
                () = cut.cancelled() => Err("it did not end in time".to_owned()),
                () = connection.close.cancelled() => Err("it made room for another one".to_owned()),
                welcomed = welcomed => welcomed,
            };
            if let Err(error) = welcomed {
                tracing::debug!(error, "A client's connection ended early");
            }
            drop((connection, permit));
        });
    }
    // Whoever comes now is refused at once, and may ask another replica.
    drop(door);
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        cut.cancel();
        tasks.wait().await;
    }
}

/// The listener and its connections.
struct Acceptor {
    listener: TcpListener,
    connections: Arc<Connections>,
    /// Bounds open connections, including those that are about to close.
    permits: Arc<Semaphore>,
    crowded: RareLog,
    failing: RareLog,
}

impl Acceptor {
    fn new(listener: TcpListener, max_connections: usize) -> Self {
        let most = max_connections.min(MOST);
        Self {
            listener,
            connections: Connections::new(most),
            permits: Arc::new(Semaphore::new(most + CLOSING)),
            crowded: RareLog::default(),
            failing: RareLog::default(),
        }
    }

    /// The next client. `None` when there never will be one.
    async fn next(
        &mut self,
    ) -> Option<(
        TcpStream,
        ConnectionPeer,
        ClientConnection,
        OwnedSemaphorePermit,
    )> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (connection, closed) = self.connections.admit(peer.ip());
                    if let Some(closed) = self.crowded.count(closed) {
                        tracing::warn!(
                            closed,
                            "Too many connections; those that were idle for longest are closed (see serve.max_connections)"
                        );
                    }
                    return Some((stream, ConnectionPeer(peer.ip()), connection, permit));
                }
                // The client has gone again, or its network has; there may be a next one.
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    // No file descriptors, say: an idle client has one of them.
                    self.connections.make_room();
                    if let Some(times) = self.failing.count(1) {
                        tracing::warn!(%error, times, "Could not accept a connection; one that is idle is closed");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Counts what happens too often to be logged each time.
#[derive(Debug, Default)]
struct RareLog {
    logged: Option<Instant>,
    since: usize,
}

impl RareLog {
    /// How often it has happened since it was last logged, when it is time to log it.
    fn count(&mut self, times: usize) -> Option<usize> {
        self.since += times;
        let is_due = self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if self.since == 0 || !is_due {
            return None;
        }
        self.logged = Some(Instant::now());
        Some(std::mem::take(&mut self.since))
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: ConnectionPeer,
    activity: Arc<ConnectionActivity>,
    tls: Option<Arc<ListenerTls>>,
    router: Router,
    stop: CancellationToken,
) -> Result<(), String> {
    // Answers are written in one piece; waiting for more to send would only delay them.
    let _: io::Result<()> = stream.set_nodelay(true);
    let stream = WriteTimeout::new(stream, Arc::clone(&activity));
    let answered = match tls {
        None => answer(stream, peer, activity, router, stop).await,
        Some(tls) => {
            let acceptor = tls.acceptor().ok_or("there is no certificate yet")?;
            let shaken = acceptor.accept(stream);
            let stream = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                shaken = tokio::time::timeout(HANDSHAKE, shaken) => shaken
                    .map_err(|_| "no handshake in time".to_owned())?
                    .map_err(|error| error.to_string())?,
            };
            answer(stream, peer, activity, router, stop).await
        }
    };
    answered.map_err(|error| error.to_string())
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: ConnectionPeer,
    activity: Arc<ConnectionActivity>,
    router: Router,
    stop: CancellationToken,
) -> hyper::Result<()> {
    let inner = TowerToHyperService::new(router);
    let stream = ReadTimeout {
        stream,
        activity: Arc::clone(&activity),
        alarm: None,
    };
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        activity.request_came();
        let answered = inner.call(request);
        let activity = Arc::clone(&activity);
        async move {
            let answer = answered.await;
            activity.answered();
            answer
        }
    });
    let connection = http1::Builder::new()
        // How long a head may take is what `Punctual` looks at.
        .header_read_timeout(None)
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

/// A connection whose other side has to send its requests in time.
struct ReadTimeout<S> {
    stream: S,
    activity: Arc<ConnectionActivity>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if read.is_ready() && into.filled().len() > before {
            self.activity.bytes_came();
        }
        let Some(deadline) = self.activity.deadline() else {
            return read;
        };
        // Also where bytes come: one every few seconds is no head.
        let now = Instant::now();
        if deadline > now {
            if read.is_ready() {
                return read;
            }
            let alarm = self
                .alarm
                .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if alarm.deadline() != deadline {
                alarm.as_mut().reset(deadline);
            }
            ready!(alarm.as_mut().poll(context));
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client sends no request",
        )))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        // hyper flushes when it has nothing more to write.
        self.activity.taken();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A connection whose other side has to take what it is sent.
struct WriteTimeout<S> {
    stream: S,
    activity: Arc<ConnectionActivity>,
    /// From the first write that could not go on: when enough has to have been taken.
    stalled: Option<Pin<Box<Sleep>>>,
    /// What has been taken since then, in bytes.
    taken: usize,
}

impl<S: AsyncWrite + Unpin> WriteTimeout<S> {
    const fn new(stream: S, activity: Arc<ConnectionActivity>) -> Self {
        Self {
            stream,
            activity,
            stalled: None,
            taken: 0,
        }
    }

    /// What came of a write, or an error when too little has been taken for too long.
    fn watched<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Ok(written)) = &written {
            self.taken = self.taken.saturating_add(bytes(written));
        }
        if self.taken >= LEAST_TAKEN {
            self.stalled = None;
            self.taken = 0;
        }
        if written.is_ready() && self.stalled.is_none() {
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(TAKE_TIMEOUT)));
        if stalled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not take its answer",
            )));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, into);
        if into.filled().len() > before {
            self.activity.spoke();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watched(context, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watched(context, written, |bytes| *bytes)
    }

    // Without it hyper copies each answer, and what counts answers would lose sight of them.
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            // All has been taken.
            self.stalled = None;
            self.taken = 0;
        }
        self.watched(context, flushed, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watched(context, shut, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_too_little_is_given_up_and_a_slow_one_is_not() {
        // Takes so much at a time, with pauses so long.
        async fn taken_by(piece: usize, pause: Duration) -> io::Result<()> {
            let (ours, mut theirs) = tokio::io::duplex(LEAST_TAKEN / 4);
            let reading = tokio::spawn(async move {
                let mut piece = vec![0; piece];
                while theirs.read_exact(&mut piece).await.is_ok() {
                    sleep(pause).await;
                }
            });
            let mut ours = WriteTimeout::new(ours, Arc::new(ConnectionActivity::new()));
            let written = ours.write_all(&vec![1; LEAST_TAKEN * 4]).await;
            reading.abort();
            written
        }
        let slow = taken_by(LEAST_TAKEN / 4, TAKE_TIMEOUT / 5).await;
        slow.unwrap();
        for (piece, pause) in [(1, 1), (LEAST_TAKEN / 4, 14), (LEAST_TAKEN / 4, 1000)] {
            let given_up = taken_by(piece, Duration::from_secs(pause)).await;
            assert_eq!(given_up.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
    }
}
