//! Accepting connections, within limits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
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

/// How long answers that are being written may still take after the signal to stop.
const DRAIN: Duration = Duration::from_secs(1);

/// After a failed accept (no file descriptors, say) we wait so long instead of turning in a circle.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A client that has not shaken hands by then is closed.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Serves until `stop`, then lets running answers end for a second.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) {
    let connections = Arc::new(Semaphore::new(max_connections));
    let tasks = TaskTracker::new();
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            break;
        };
        let stream = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let router = router.clone();
        let stop = stop.clone();
        let tls = tls.clone();
        tasks.spawn(async move {
            if let Err(error) = welcome(stream, tls, router, stop).await {
                tracing::debug!(error, "A client's connection ended early");
            }
            drop(permit);
        });
    }
    tasks.close();
    if tokio::time::timeout(DRAIN, tasks.wait()).await.is_err() {
        tracing::debug!("Closed connections that did not end in time");
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
