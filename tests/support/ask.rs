//! Asks one question and holds the answer to what every result must keep.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use leadsman::config::Target;
use leadsman::config::settings::{
    ConnectConfig, ConnectionReuse, HttpProbeConfig, HttpVersions, ProbeKind, RedirectConfig,
    RequestBody, TcpProbeConfig,
};
use leadsman::core::probe_result::expect::Expect;
use leadsman::core::probe_result::{Outcome, ProbeResult, Reason, UnknownReason};
use leadsman::platform::clock;
use leadsman::prober::{Prober, ProberContext};

/// The timeout of questions that name none: far more than a loopback answer takes.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of questions that are meant to run into it.
pub const SHORT: Duration = Duration::from_millis(400);

/// How much later than its timeout a result may end on a busy machine.
const SLACK: Duration = Duration::from_secs(5);

/// What is expected of an outcome.
pub const GOOD: Outcome = Outcome::Success;

/// Bad for this reason.
pub fn bad(reason: Reason) -> Outcome {
    Outcome::Failure(reason)
}

/// No evidence, for this reason.
pub fn unknown(reason: UnknownReason) -> Outcome {
    Outcome::Unknown(reason)
}

/// GET without anything, a new connection, no redirects, 2xx.
pub fn http_question() -> HttpProbeConfig {
    HttpProbeConfig {
        method: Method::GET,
        headers: Vec::new(),
        host: None,
        body: RequestBody::None,
        auth: None,
        redirects: RedirectConfig::default(),
        http: HttpVersions::Auto,
        connect: ConnectConfig::default(),
        connection: ConnectionReuse::New,
        proxy: None,
        proxy_resolves: false,
        body_limit: 1 << 20,
        compression: None,
        expect: Expect::default(),
    }
}

/// A connection and nothing else.
pub fn tcp_question() -> TcpProbeConfig {
    TcpProbeConfig {
        dialogue: Vec::new(),
        tls: false,
        connect: ConnectConfig::default(),
        max_latency: None,
        certificate_valid_for: None,
    }
}

/// A target as the configuration would read it.
#[track_caller]
pub fn target(url: impl Display) -> Target {
    Target::parse(&url.to_string(), "http").unwrap()
}

/// A prober for an HTTP question.
#[track_caller]
pub fn prober(url: impl Display, change: impl FnOnce(&mut HttpProbeConfig)) -> Prober {
    let mut kind = http_question();
    change(&mut kind);
    let shared = ProberContext::new(clock::now);
    Prober::new(&shared, target(url), ProbeKind::Http(Box::new(kind)))
}

/// Asks by HTTP once.
pub async fn check(
    rule: &str,
    url: impl Display,
    change: impl FnOnce(&mut HttpProbeConfig),
    expected: Outcome,
) -> ProbeResult {
    check_within(rule, TIMEOUT, url, change, expected).await
}

/// Asks by HTTP once, with a timeout.
pub async fn check_within(
    rule: &str,
    timeout: Duration,
    url: impl Display,
    change: impl FnOnce(&mut HttpProbeConfig),
    expected: Outcome,
) -> ProbeResult {
    let prober = prober(url, change);
    let result = sound(&prober, timeout).await;
    assert_eq!(result.outcome, expected, "{rule}: {result:#?}");
    result
}

/// Asks by TCP once.
pub async fn check_tcp(
    rule: &str,
    timeout: Duration,
    url: impl Display,
    change: impl FnOnce(&mut TcpProbeConfig),
    expected: Outcome,
) -> ProbeResult {
    let mut kind = tcp_question();
    change(&mut kind);
    let shared = ProberContext::new(clock::now);
    let prober = Prober::new(&shared, target(url), ProbeKind::Tcp(Box::new(kind)));
    let result = sound(&prober, timeout).await;
    assert_eq!(result.outcome, expected, "{rule}: {result:#?}");
    result
}

/// Takes one result and checks what holds for all of them.
pub async fn sound(prober: &Prober, timeout: Duration) -> ProbeResult {
    let due = clock::now();
    let began = Instant::now();
    let result = tokio::time::timeout(timeout + SLACK, prober.sound(due, timeout, None))
        .await
        .expect("a result ends by its deadline");
    let took = began.elapsed();
    assert_eq!(result.due, due);
    assert!(result.started >= due && result.finished >= result.started);
    assert!(result.duration() <= took + Duration::from_millis(1));
    let (sum, duration) = (result.phases.total(), result.duration());
    assert!(
        sum.abs_diff(duration) <= Duration::from_millis(1),
        "phases sum up to the duration: {sum:?} against {duration:?}: {result:#?}"
    );
    match (&result.outcome, &result.explanation) {
        (Outcome::Success, explanation) => assert_eq!(*explanation, None),
        (Outcome::Failure(_) | Outcome::Unknown(_), Some(explanation)) => {
            assert!(!explanation.is_empty());
            assert!(explanation.len() <= ProbeResult::MAX_EXPLANATION);
            assert!(!explanation.contains(char::is_control), "{explanation:?}");
        }
        (outcome, None) => panic!("{outcome:?} without an explanation"),
    }
    if let Outcome::Failure(Reason::ConnectTimeout | Reason::HeaderTimeout | Reason::BodyTimeout) =
        result.outcome
    {
        assert!(
            result.latency() >= timeout,
            "a timeout counts with at least the timeout: {result:#?}"
        );
    }
    result
}

/// Waits until something is so, at most ten seconds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} within ten seconds");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What several probers of one test share.
pub fn shared() -> Arc<ProberContext> {
    ProberContext::new(clock::now)
}
