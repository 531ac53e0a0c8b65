//! One HTTP connection, driven by the task that waits for its answer, and those that are kept.
//!
//! Invariants:
//! - nothing of a connection lives on when it is dropped: neither the socket nor, with HTTP/2, a task;
//! - what is kept has been read to the end of its last answer, or is found out before it is used.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::JoinSet;

use super::fault::Fault;
use super::stream::Stream;
use super::trace::Stage;
use crate::sounding::TlsSeen;

/// The head of an answer: more bytes or headers than this no health check has.
const HEAD_LIMIT: usize = 64 * 1024;
const MAX_HEADERS: usize = 256;

/// Connections that are kept for the next soundings of one probe: more are not under way at a time.
const MAX_IDLE: usize = 64;

type RequestBytes = Full<Bytes>;
type Io = TokioIo<Stream>;

/// Scheme is https, host, port.
pub(super) type Origin = (bool, String, u16);

/// What is known of a connection before HTTP is spoken on it.
pub(super) struct Facts {
    /// What the TLS handshake showed.
    pub(super) seen: Option<Arc<TlsSeen>>,
    /// The address at the other end.
    pub(super) ip: Option<IpAddr>,
    /// Of the target that it leads to.
    pub(super) origin: Origin,
}

/// A connection on which a request can be sent.
pub(super) struct Connection {
    sender: Sender,
    /// `None` once it has ended.
    driver: Option<Driver>,
    /// Whether a byte came since the last request; only where the connection may be kept.
    heard: Option<Arc<AtomicBool>>,
    pub(super) facts: Facts,
}

enum Sender {
    Http1(http1::SendRequest<RequestBytes>),
    Http2(http2::SendRequest<RequestBytes>),
}

enum Driver {
    Http1(Box<http1::Connection<Io, RequestBytes>>),
    Http2 {
        connection: Pin<Box<http2::Connection<Io, RequestBytes, Tasks>>>,
        _tasks: EndsTasks,
    },
}

impl Connection {
    /// Starts to speak HTTP/1.1 or HTTP/2.
    pub(super) async fn start(
        mut stream: Stream,
        http2: bool,
        keep: bool,
        facts: Facts,
    ) -> Result<Self, Fault> {
        let failed = |error: hyper::Error| Fault::hyper(&error, Stage::Processing, http2);
        let heard = keep.then(|| stream.listen());
        let io = TokioIo::new(stream);
        let (sender, driver) = if http2 {
            let tasks = Tasks::default();
            let guard = EndsTasks(tasks.clone());
            let (sender, connection) = http2::Builder::new(tasks)
                .timer(TokioTimer::new())
                .max_header_list_size(64 * 1024)
                .handshake(io)
                .await
                .map_err(failed)?;
            let driver = Driver::Http2 {
                connection: Box::pin(connection),
                _tasks: guard,
            };
            (Sender::Http2(sender), driver)
        } else {
            let (sender, connection) = http1::Builder::new()
                .max_headers(MAX_HEADERS)
                .max_buf_size(HEAD_LIMIT)
                .handshake(io)
                .await
                .map_err(failed)?;
            (Sender::Http1(sender), Driver::Http1(Box::new(connection)))
        };
        Ok(Self {
            sender,
            driver: Some(driver),
            heard,
            facts,
        })
    }

    /// Whether HTTP/2 is spoken.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Whether a part of an answer may have come since the request was sent. HTTP/2 speaks of the connection as well, and
    /// hands on the head of an answer as a whole.
    pub(super) fn was_heard(&self) -> bool {
        let heard = |heard: &Arc<AtomicBool>| heard.load(Ordering::Relaxed);
        !self.is_http2() && self.heard.as_ref().is_none_or(heard)
    }

    /// Sends a request and waits for the head of the answer.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBytes>,
    ) -> Result<Response<Incoming>, Fault> {
        if let Some(heard) = &self.heard {
            heard.store(false, Ordering::Relaxed);
        }
        let http2 = self.is_http2();
        let driver = &mut self.driver;
        let answer = match &mut self.sender {
            Sender::Http1(sender) => drive(driver, sender.send_request(request)).await,
            Sender::Http2(sender) => drive(driver, sender.send_request(request)).await,
        };
        answer.map_err(|error| Fault::hyper(&error, Stage::Processing, http2))
    }

    /// The next part of an answer's body.
    pub(super) async fn frame(
        &mut self,
        body: &mut Incoming,
    ) -> Option<Result<Frame<Bytes>, Fault>> {
        let http2 = self.is_http2();
        let frame = drive(&mut self.driver, body.frame()).await?;
        Some(frame.map_err(|error| Fault::hyper(&error, Stage::Transfer, http2)))
    }

    fn is_usable(&self) -> bool {
        self.driver.is_some()
            && match &self.sender {
                Sender::Http1(sender) => sender.is_ready(),
                Sender::Http2(sender) => sender.is_ready(),
            }
    }
}

/// Connections of earlier soundings, the newest first, so that those that are not needed any more grow old and are
/// closed by the target.
#[derive(Default)]
pub(super) struct Idle(Mutex<VecDeque<Connection>>);

impl Idle {
    /// One that leads there and has not been closed, as far as one can see.
    pub(super) async fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let mut connection = {
                let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let at = kept.iter().position(|one| one.facts.origin == *origin)?;
                kept.remove(at)?
            };
            // Nobody drives an idle connection; this lets it notice what came in the meantime.
            poll_fn(|cx| {
                poll_driver(&mut connection.driver, cx);
                Poll::Ready(())
            })
            .await;
            if connection.is_usable() {
                return Some(connection);
            }
        }
    }

    /// Keeps one, after its answer was read to the end.
    pub(super) fn give_back(&self, connection: Connection) {
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
async fn drive<T>(driver: &mut Option<Driver>, wanted: impl Future<Output = T>) -> T {
    let mut wanted = pin!(wanted);
    poll_fn(|cx| {
        if let Poll::Ready(value) = wanted.as_mut().poll(cx) {
            return Poll::Ready(value);
        }
        poll_driver(driver, cx);
        // What the connection just read may be what is waited for: looking again saves a wake-up.
        wanted.as_mut().poll(cx)
    })
    .await
}

fn poll_driver(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    let ended = match driver {
        None => return,
        // How it ended, the one who waits is told.
        Some(Driver::Http1(connection)) => Pin::new(connection).poll(cx).is_ready(),
        Some(Driver::Http2 { connection, .. }) => connection.as_mut().poll(cx).is_ready(),
    };
    if ended {
        *driver = None;
    }
}

/// The tasks that hyper starts for one HTTP/2 connection.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are forgotten, so that a kept connection does not gather them.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

/// Ends the tasks with the connection. Left to themselves they would first say goodbye in order, which takes for ever
/// where the target does not read.
struct EndsTasks(Tasks);

impl Drop for EndsTasks {
    fn drop(&mut self) {
        let mut tasks = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.abort_all();
    }
}
