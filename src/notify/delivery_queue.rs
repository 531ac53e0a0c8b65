//! Messages to one receiver: a queue, a sending loop, a rate limit, and an optional signature.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use reqwest::{Client, StatusCode, header};
use ring::hmac;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::failure_log::FailureLog;
use super::message::Message;
use crate::config::settings::{MessageFormat, ReceiverConfig};
use crate::platform::http_client::{authorized, cause, client, excerpt, reveal};
use crate::platform::permit::{Permit, PermitError};

/// Messages that wait for one receiver. There are a few in a day.
const CAPACITY: usize = 256;

/// One message a second, as Slack allows, and a few at once.
const RATE: NonZeroU32 = NonZeroU32::new(1).unwrap();
const BURST: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Waits between attempts: doubled each time, up to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The longest wait that a receiver may ask for.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Messages older than this are dropped, in seconds.
const MAX_AGE: f64 = 6.0 * 3600.0;

/// How long what waits may still be sent after the signal to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// What became of messages, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageFate {
    /// The receiver took it.
    Sent,
    /// It did not arrive, and is tried again.
    Failed,
    /// It will not arrive: refused, too old, or no room.
    Dropped,
}

/// Takes the numbers of a receiver.
pub type MessageObserver = Arc<dyn Fn(MessageFate) + Send + Sync>;

/// A receiver, and what waits for it.
pub struct DeliveryQueue {
    receiver: ReceiverConfig,
    queue: Mutex<VecDeque<Message>>,
    has_work: Notify,
    rate: DefaultDirectRateLimiter,
    count: MessageObserver,
    failure_log: FailureLog,
    clock: fn() -> f64,
    permit: Permit,
    /// Another one goes on with what waits.
    is_handed_over: AtomicBool,
}

enum DeliveryError {
    Passing(String, Option<Duration>),
    Lasting(String),
}

impl DeliveryQueue {
    /// Nothing is sent before [`Self::run`], nor without the permit. `clock` gives the seconds since 1970.
    pub fn new(
        receiver: ReceiverConfig,
        waiting: Vec<Message>,
        count: MessageObserver,
        clock: fn() -> f64,
        permit: Permit,
    ) -> Arc<Self> {
        Arc::new(Self {
            receiver,
            queue: Mutex::new(waiting.into_iter().take(CAPACITY).collect()),
            has_work: Notify::new(),
            rate: RateLimiter::direct(Quota::per_second(RATE).allow_burst(BURST)),
            count,
            failure_log: FailureLog::default(),
            clock,
            permit,
            is_handed_over: AtomicBool::new(false),
        })
    }

    /// Who it is, as it was configured.
    pub const fn receiver(&self) -> &ReceiverConfig {
        &self.receiver
    }

    /// Since when nothing arrives there, if so.
    pub fn failing_since(&self) -> Option<Instant> {
        self.failure_log.since()
    }

    /// Whether anything was sent there, so that it is known whether it arrives.
    pub fn is_tried(&self) -> bool {
        self.failure_log.is_known()
    }

    /// From the stop on only what is on its way is waited for: another one goes on with the rest.
    pub fn hand_over(&self) {
        self.is_handed_over.store(true, Ordering::Release);
    }

    /// Goes on with what waits in one that has ended: it is older than what waits here.
    pub fn go_on_with(&self, ended: &Self) {
        let mut queue = self.queue();
        let mut older = std::mem::take(&mut *ended.queue());
        let too_many = (older.len() + queue.len()).saturating_sub(CAPACITY);
        for _ in older.drain(..too_many.min(older.len())) {
            (self.count)(MessageFate::Dropped);
        }
        older.append(&mut queue);
        *queue = older;
        drop(queue);
        self.has_work.notify_one();
    }

    /// What waits, to be stored.
    pub fn waiting(&self) -> Vec<Message> {
        self.queue().iter().cloned().collect()
    }

    /// Puts a message into the queue. Never waits.
    pub fn offer(&self, message: Message) {
        let mut queue = self.queue();
        if queue.len() >= CAPACITY {
            queue.pop_front();
            (self.count)(MessageFate::Dropped);
        }
        queue.push_back(message);
        drop(queue);
        self.has_work.notify_one();
    }

    /// Sends until `stop` is cancelled; waiting messages are still sent for a short while.
    pub async fn run(&self, stop: CancellationToken) {
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            () = late => {}
            () = self.send_all(&stop) => {}
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Message>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends until `stop` is cancelled and nothing waits or arrives, or until the permit is lost. A message in flight
    /// is not given up then: it may have arrived, and another replica would send it again.
    async fn send_all(&self, stop: &CancellationToken) {
        let mut pause = BACKOFF.0;
        loop {
            if stop.is_cancelled() && self.is_handed_over.load(Ordering::Acquire) {
                return;
            }
            let Some(message) = self.queue().front().cloned() else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.has_work.notified() => {}
                }
                continue;
            };
            if (self.clock)() - message.at > MAX_AGE {
                self.gone(&message, MessageFate::Dropped);
                continue;
            }
            // One that is to be handed over must not wait for its turn first.
            tokio::select! {
                () = self.rate.until_ready() => {}
                () = stop.cancelled(), if !stop.is_cancelled() => continue,
            }
            let sent = match self.permit.bound(TIMEOUT, self.send(&message)).await {
                Ok(sent) => sent,
                // The replica that holds the permit now sends what waits.
                Err(PermitError::NotHeld) => return,
                Err(PermitError::TimedOut) => {
                    Err(DeliveryError::Passing("no answer in time".into(), None))
                }
            };
            match sent {
                Ok(()) => {
                    pause = BACKOFF.0;
                    self.failure_log.works(self.receiver.name);
                    self.gone(&message, MessageFate::Sent);
                }
                Err(DeliveryError::Lasting(why)) => {
                    tracing::error!(
                        receiver = self.receiver.name,
                        message = message.id(),
                        "The message is refused: {why}"
                    );
                    self.failure_log.fails(self.receiver.name, &why);
                    self.gone(&message, MessageFate::Dropped);
                }
                Err(DeliveryError::Passing(why, asked)) => {
                    (self.count)(MessageFate::Failed);
                    self.failure_log.fails(self.receiver.name, &why);
                    if stop.is_cancelled() {
                        return;
                    }
                    let jitter = 0.5 + fastrand::f64();
                    let wait = pause.mul_f64(jitter).max(asked.unwrap_or_default());
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = tokio::time::sleep(wait.min(MAX_WAIT)) => {}
                    }
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    fn gone(&self, message: &Message, fate: MessageFate) {
        let mut queue = self.queue();
        // While it was on its way, it may have been dropped for newer ones.
        if queue.front() == Some(message) {
            queue.pop_front();
        }
        drop(queue);
        (self.count)(fate);
    }

    async fn send(&self, message: &Message) -> Result<(), DeliveryError> {
        let passing = |why: String| DeliveryError::Passing(why, None);
        let body = match self.receiver.form {
            MessageFormat::Slack => message.slack(),
            MessageFormat::Json => message.json(),
        };
        let body = body.to_string();
        // The address may be a secret; it is read when it is used, and never shown.
        let url = reveal(&self.receiver.url).map_err(passing)?;
        let http: Client = client(&self.receiver.tls, TIMEOUT, None).map_err(passing)?;
        let mut request = http
            .post(url)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(secret) = &self.receiver.signing_key {
            let secret = reveal(secret).map_err(passing)?;
            let at = (self.clock)().max(0.0).round();
            request = request.header("x-leadsman-signature", signature(&secret, at, &body));
        }
        let request = authorized(request, self.receiver.auth.as_ref()).map_err(passing)?;
        let response = request.body(body).send().await;
        let response = response.map_err(|error| passing(cause(&error)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let asked = response.headers().get(header::RETRY_AFTER);
        let asked = asked.and_then(|value| value.to_str().ok()?.parse().ok());
        let asked = asked.map(Duration::from_secs);
        let why = format!("{status}: {}", excerpt(response).await);
        // An address or a token that is not taken any more may be replaced while the message waits; a message that is not
        // taken would not be taken later.
        let ours = [
            StatusCode::UNAUTHORIZED,
            StatusCode::FORBIDDEN,
            StatusCode::NOT_FOUND,
            StatusCode::GONE,
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::REQUEST_TIMEOUT,
        ];
        let passes = status.is_server_error() || status.is_redirection() || ours.contains(&status);
        Err(if passes {
            DeliveryError::Passing(why, asked)
        } else {
            DeliveryError::Lasting(why)
        })
    }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY`, so that neither can be changed, and old messages cannot be
/// replayed.
fn signature(secret: &str, at: f64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, format!("{at:.0}.{body}").as_bytes());
    let mut text = format!("t={at:.0},v1=");
    for byte in tag.as_ref() {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::settings::{Secret, TlsConfig};
    use crate::platform::clock;
    use crate::platform::permit::HeldLease;

    #[tokio::test]
    async fn what_is_on_its_way_at_the_stop_is_told_once() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let receiver = to(url);
        let message = Message {
            revision: 3,
            ..Message::default()
        };
        let count = Arc::new(move |fate| {
            counted.fetch_add(usize::from(fate == MessageFate::Sent), Ordering::Relaxed);
        });
        let delivery_queue =
            DeliveryQueue::new(receiver, vec![message], count, || 0.0, Permit::always());
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (delivery_queue, stop) = (Arc::clone(&delivery_queue), stop.clone());
            async move { delivery_queue.run(stop).await }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        // It has arrived, and its answer is late.
        stop.cancel();
        let again = tokio::time::timeout(Duration::from_millis(300), listener.accept());
        assert!(again.await.is_err(), "it was sent again");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        running.await.unwrap();
        assert_eq!(sent.load(Ordering::Relaxed), 1);
        assert!(delivery_queue.waiting().is_empty());
    }

    #[tokio::test]
    async fn what_is_on_its_way_when_the_permit_ends_is_given_up_and_the_rest_waits() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (lease, held) = tokio::sync::watch::channel(Some(HeldLease {
            until: clock::now() + Duration::from_secs(3600),
            fence: 1,
        }));
        let delivery_queue = DeliveryQueue::new(
            to(url),
            messages(1..3),
            Arc::new(|_| ()),
            || 0.0,
            Permit::of(held),
        );
        let running = tokio::spawn({
            let delivery_queue = Arc::clone(&delivery_queue);
            async move { delivery_queue.run(CancellationToken::new()).await }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = [0; 4096];
        assert!(stream.read(&mut buffer).await.unwrap() > 0);
        lease.send_replace(None);
        running.await.unwrap();
        // The connection is closed, and no other one is opened.
        while stream.read(&mut buffer).await.unwrap_or(0) > 0 {}
        let again = tokio::time::timeout(Duration::from_millis(300), listener.accept());
        assert!(again.await.is_err(), "it was sent again");
        assert_eq!(delivery_queue.waiting(), messages(1..3));
    }

    /// A receiver at an address.
    fn to(url: String) -> ReceiverConfig {
        ReceiverConfig {
            name: "webhook",
            form: MessageFormat::Json,
            url: Secret::Value(url),
            auth: None,
            signing_key: None,
            tls: TlsConfig::default(),
            kept: false,
        }
    }

    fn messages(revisions: std::ops::Range<u32>) -> Vec<Message> {
        let message = |revision| Message {
            revision,
            ..Message::default()
        };
        revisions.map(message).collect()
    }

    #[tokio::test]
    async fn an_address_that_is_taken_back_is_a_delivery_that_fails() {
        for status in [401, 403, 404, 410] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/", listener.local_addr().unwrap());
            let delivery_queue = DeliveryQueue::new(
                to(url),
                messages(1..2),
                Arc::new(|_| ()),
                || 0.0,
                Permit::always(),
            );
            assert!(!delivery_queue.is_tried());
            let stop = CancellationToken::new();
            let running = tokio::spawn({
                let (delivery_queue, stop) = (Arc::clone(&delivery_queue), stop.clone());
                async move { delivery_queue.run(stop).await }
            });
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            let answer = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            while !delivery_queue.is_tried() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(delivery_queue.failing_since().is_some(), "{status}");
            stop.cancel();
            running.await.unwrap();
            assert_eq!(
                delivery_queue.waiting().len(),
                1,
                "the address may be replaced"
            );
        }
    }

    #[test]
    fn what_is_handed_over_is_older_than_what_came_since() {
        let dropped = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&dropped);
        let count: MessageObserver = Arc::new(move |fate| {
            counted.fetch_add(usize::from(fate == MessageFate::Dropped), Ordering::Relaxed);
        });
        let new = |count: &MessageObserver, waiting| {
            DeliveryQueue::new(
                to("http://a/".into()),
                waiting,
                Arc::clone(count),
                || 0.0,
                Permit::always(),
            )
        };
        let (old, other) = (new(&count, messages(1..3)), new(&count, messages(3..5)));
        other.go_on_with(&old);
        assert_eq!(other.waiting(), messages(1..5));
        assert!(old.waiting().is_empty());
        // The oldest goes when there is no room.
        let end = u32::try_from(CAPACITY).unwrap() + 4;
        let full = new(&count, messages(5..end));
        full.go_on_with(&other);
        assert_eq!(full.waiting(), messages(4..end));
        full.offer(Message::default());
        assert_eq!(full.waiting().len(), CAPACITY);
        assert_eq!(dropped.load(Ordering::Relaxed), 4);
    }

    /// Made with `printf '1767607200.{}' | openssl dgst -sha256 -hmac key`.
    #[test]
    fn the_signature_is_that_of_others() {
        assert_eq!(
            signature("key", 1_767_607_200.0, "{}"),
            "t=1767607200,v1=523fa5f1e14d55d5de8ad41ff12c7722a613508c37bb52bba59d6bf96145a362"
        );
    }
}
