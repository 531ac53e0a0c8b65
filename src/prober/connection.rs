//! One HTTP connection, driven by the task that waits for its answer; and the idle connections that are kept.
//!
//! Invariants:
//! - nothing of a connection outlives it: neither the socket nor, with HTTP/2, a task;
//! - an answer in progress is read to its end, even if the target has sent a GOAWAY meanwhile;
//! - an idle connection was read to the end of its last answer, or is detected before it is used.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;

use super::error::ProbeError;
use super::response_meter::{HeadReader, Http2Frames, InterimHeads, ResponseMeter};
use super::stream::HttpStream;
use super::timing::ProbeStage;
use crate::core::probe_result::TlsInfo;

/// Maximum head of an answer: no health check has more bytes or headers.
const HEAD_LIMIT: usize = 64 * 1024;
const MAX_HEADERS: usize = 256;

/// Idle connections per probe: no probe has more in flight.
const MAX_IDLE: usize = 64;

type RequestBytes = Full<Bytes>;
type ConnectionIo = TokioIo<HttpStream>;

/// Scheme is https, host, port.
pub(super) type ConnectionOrigin = (bool, String, u16);

/// What is known of a connection before HTTP is spoken on it.
pub(super) struct ConnectionFacts {
    /// What the TLS handshake showed.
    pub(super) seen: Option<Arc<TlsInfo>>,
    /// The address at the other end, and the lowest of those that its host has.
    pub(super) ip: Option<IpAddr>,
    pub(super) entrance: Option<IpAddr>,
    /// Whether TLS is spoken.
    pub(super) over_tls: bool,
    /// Of the target that it leads to, where the connection may be kept.
    pub(super) origin: Option<ConnectionOrigin>,
}

/// A connection on which a request can be sent.
pub(super) struct HttpConnection {
    sender: RequestSender,
    /// `None` once no further request can be sent. With HTTP/2, answers may still be in progress.
    driver: Option<ConnectionDriver>,
    /// What HTTP/2 reads the connection with.
    tasks: Option<AbortTasksOnDrop>,
    meter: Arc<ResponseMeter>,
    pub(super) facts: ConnectionFacts,
}

enum RequestSender {
    Http1(http1::SendRequest<RequestBytes>),
    Http2(http2::SendRequest<RequestBytes>),
}

enum ConnectionDriver {
    Http1(Box<http1::Connection<ConnectionIo, RequestBytes>>),
    Http2(Pin<Box<http2::Connection<ConnectionIo, RequestBytes, ConnectionTasks>>>),
}

impl HttpConnection {
    /// Starts to speak HTTP/1.1 or HTTP/2.
    pub(super) async fn start(
        mut stream: HttpStream,
        http2: bool,
        facts: ConnectionFacts,
    ) -> Result<Self, ProbeError> {
        let failed = |error: hyper::Error| ProbeError::hyper(&error, ProbeStage::Processing, http2);
        let meter = Arc::clone(stream.meter());
        stream.watch(if http2 {
            HeadReader::Http2(Http2Frames::default())
        } else {
            HeadReader::Http1(InterimHeads::default())
        });
        let io = TokioIo::new(stream);
        let mut controller = None;
        let (sender, driver) = if http2 {
            let tasks = ConnectionTasks::default();
            controller = Some(AbortTasksOnDrop(tasks.clone()));
            let (sender, connection) = http2::Builder::new(tasks)
                .timer(TokioTimer::new())
                .max_header_list_size(64 * 1024)
                .handshake(io)
                .await
                .map_err(failed)?;
            let driver = ConnectionDriver::Http2(Box::pin(connection));
            (RequestSender::Http2(sender), driver)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(MAX_HEADERS)
                .max_buf_size(HEAD_LIMIT)
                .handshake(io)
                .await
                .map_err(failed)?;
            (
                RequestSender::Http1(sender),
                ConnectionDriver::Http1(Box::new(connection)),
            )
        };
        Ok(Self {
            sender,
            driver: Some(driver),
            tasks: controller,
            meter,
            facts,
        })
    }

    /// Whether HTTP/2 is spoken.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, RequestSender::Http2(_))
    }

    /// Whether a part of an answer may have arrived since the request was sent. HTTP/2 sends frames about the
    /// connection as well, and delivers the head of an answer as a whole.
    pub(super) fn was_heard(&self) -> bool {
        !self.is_http2() && self.meter.was_read()
    }

    pub(super) const fn meter(&self) -> &Arc<ResponseMeter> {
        &self.meter
    }

    fn probe_error(&self, error: &hyper::Error, stage: ProbeStage) -> ProbeError {
        let flood = self.meter.probe_error();
        flood.unwrap_or_else(|| ProbeError::hyper(error, stage, self.is_http2()))
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBytes>,
    ) -> Result<Response<Incoming>, ProbeError> {
        self.meter.request();
        let (driver, tasks) = (&mut self.driver, self.tasks.as_ref());
        let answer = match &mut self.sender {
            RequestSender::Http1(sender) => {
                drive(driver, tasks, sender.send_request(request)).await
            }
            RequestSender::Http2(sender) => {
                drive(driver, tasks, sender.send_request(request)).await
            }
        };
        answer.map_err(|error| self.probe_error(&error, ProbeStage::Processing))
    }

    /// The next part of an answer's body.
    pub(super) async fn frame(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Frame<Bytes>, ProbeError>> {
        let frame = drive(&mut self.driver, self.tasks.as_ref(), body.frame()).await?;
        Some(frame.map_err(|error| self.probe_error(&error, ProbeStage::Transfer)))
    }

    fn is_usable(&self) -> bool {
        self.driver.is_some()
            && match &self.sender {
                RequestSender::Http1(sender) => sender.is_ready(),
                RequestSender::Http2(sender) => sender.is_ready(),
            }
    }
}

/// Idle connections of earlier probes, the newest first, so that superfluous ones grow old and are closed by the
/// target.
#[derive(Default)]
pub(super) struct IdleConnections(Mutex<VecDeque<HttpConnection>>);

impl IdleConnections {
    /// One that leads there and has not been closed, as far as one can see.
    pub(super) async fn take(&self, origin: &ConnectionOrigin) -> Option<HttpConnection> {
        loop {
            let mut connection = {
                let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let leads_there = |one: &HttpConnection| one.facts.origin.as_ref() == Some(origin);
                let at = kept.iter().position(leads_there)?;
                kept.remove(at)?
            };
            // Nobody drives an idle connection; this lets it notice what came in the meantime.
            poll_fn(|cx| {
                poll_driver(&mut connection.driver, connection.tasks.as_ref(), cx);
                Poll::Ready(())
            })
            .await;
            if connection.is_usable() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection after its answer was read to the end.
    pub(super) fn give_back(&self, connection: HttpConnection) {
        if connection.driver.is_none() {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_IDLE {
            kept.pop_back();
        }
        kept.push_front(connection);
    }
}

/// Drives a connection and something that waits for it, both in this task.
async fn drive<T>(
    driver: &mut Option<ConnectionDriver>,
    tasks: Option<&AbortTasksOnDrop>,
    wanted: impl Future<Output = T>,
) -> T {
    let mut wanted = pin!(wanted);
    poll_fn(|cx| {
        if let Poll::Ready(value) = wanted.as_mut().poll(cx) {
            return Poll::Ready(value);
        }
        poll_driver(driver, tasks, cx);
        // What the connection just read may be what is waited for: looking again saves a wake-up.
        wanted.as_mut().poll(cx)
    })
    .await
}

fn poll_driver(
    driver: &mut Option<ConnectionDriver>,
    tasks: Option<&AbortTasksOnDrop>,
    cx: &mut Context<'_>,
) {
    let _alone = tasks.map(|AbortTasksOnDrop(tasks)| tasks.alone());
    let ended = match driver {
        None => return,
        // How it ended, the one who waits is told.
        Some(ConnectionDriver::Http1(connection)) => Pin::new(connection).poll(cx).is_ready(),
        // HTTP/2 has a task that reads on until all answers have come.
        Some(ConnectionDriver::Http2(connection)) => connection.as_mut().poll(cx).is_ready(),
    };
    if ended {
        *driver = None;
    }
}

/// The tasks that hyper starts for one HTTP/2 connection.
///
/// Only one of them, or the driver, runs at a time. The driver passes on a request and then checks whether the
/// connection is usable for another one. A GOAWAY that a task reads in between, together with the answer, would make
/// the driver give up the request that it has just sent.
#[derive(Clone, Default)]
struct ConnectionTasks {
    set: Arc<Mutex<JoinSet<()>>>,
    turn: Arc<Mutex<()>>,
}

impl ConnectionTasks {
    /// Nothing else of the connection runs while this is held.
    fn alone(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for ConnectionTasks {
    fn execute(&self, task: F) {
        let turn = Arc::clone(&self.turn);
        let in_turn = async move {
            let mut task = pin!(task);
            poll_fn(|cx| {
                let _alone = turn.lock().unwrap_or_else(PoisonError::into_inner);
                task.as_mut().poll(cx)
            })
            .await;
        };
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are forgotten, so that a kept connection does not gather them.
        while set.try_join_next().is_some() {}
        set.spawn(in_turn);
    }
}

/// Ends the tasks with the connection. Left to themselves they would first say goodbye in order, which takes for ever
/// where the target does not read.
struct AbortTasksOnDrop(ConnectionTasks);

impl Drop for AbortTasksOnDrop {
    fn drop(&mut self) {
        let mut set = self.0.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.abort_all();
    }
}
