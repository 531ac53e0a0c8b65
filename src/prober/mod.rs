//! The prober: from a question to a result, over real sockets.
//!
//! Invariants:
//! - a result ends by its timeout, and whatever it opened is closed when it is dropped;
//! - each moment from the start to the end belongs to exactly one phase;
//! - what a target sends is bounded before it is kept: heads, bodies (packed and unpacked), lines, redirects, and what
//!   is no answer at all (`meter`);
//! - a fault of ours (files, descriptors, ports, resolver) is unknown, a fault on the way to the answer is bad.

mod body;
mod connect;
mod connection;
mod error;
mod files;
mod http;
mod lookup;
mod proxy;
mod request;
mod response_meter;
pub mod schedule;
mod stream;
mod tcp;
mod timing;
mod tls;

use std::sync::Arc;
use std::time::Duration;

pub use timing::Transcript;

use crate::config::Target;
use crate::config::settings::ProbeKind;
use crate::core::probe_result::{Outcome, ProbeResult};
use crate::core::units::Moment;
use error::ProbeError;
use timing::ProbeTiming;

/// What all probers share: the resolver's limit and the TLS clients. One per process.
pub struct ProberContext {
    clock: fn() -> Moment,
    resolver: connect::Resolver,
    clients: tls::TlsClients,
}

impl ProberContext {
    /// With the clock that results are timed by.
    pub fn new(clock: fn() -> Moment) -> Arc<Self> {
        Arc::new(Self {
            clock,
            resolver: connect::Resolver::new(),
            clients: tls::TlsClients::default(),
        })
    }
}

/// One question to one target, prepared; keeps its connections where it is told to.
pub struct Prober {
    shared: Arc<ProberContext>,
    kind: ProberKind,
}

enum ProberKind {
    Http(Box<http::HttpProber>),
    Tcp(Box<tcp::TcpProber>),
}

impl Prober {
    /// Never fails: a file that cannot be read makes results unknown, and may be there for the next one.
    pub fn new(shared: &Arc<ProberContext>, target: Target, kind: ProbeKind) -> Self {
        let kind = match kind {
            ProbeKind::Http(kind) => ProberKind::Http(Box::new(http::HttpProber::new(
                Arc::clone(shared),
                target,
                *kind,
            ))),
            ProbeKind::Tcp(kind) => ProberKind::Tcp(Box::new(tcp::TcpProber::new(
                Arc::clone(shared),
                target,
                *kind,
            ))),
        };
        Self {
            shared: Arc::clone(shared),
            kind,
        }
    }

    /// Takes one result, which ends by `timeout`, counted from now. `due` is when it should have started.
    pub async fn sound(
        &self,
        due: Moment,
        timeout: Duration,
        transcript: Option<&mut Transcript>,
    ) -> ProbeResult {
        let mut timing = ProbeTiming::start(self.shared.clock, transcript);
        let started = timing.started();
        let asked = async {
            match &self.kind {
                ProberKind::Http(http) => http.sound(timeout, &mut timing).await,
                ProberKind::Tcp(tcp) => tcp.sound(timeout, &mut timing).await,
            }
        };
        let ended = tokio::time::timeout(timeout, asked).await;
        let ended = ended.unwrap_or_else(|_| {
            let instead = timing.instead();
            Err(ProbeError::timeout(
                timing.stage(),
                timeout,
                instead.as_deref(),
            ))
        });
        let (finished, phases) = timing.finish();
        timing.answer.reached |= timing.was_heard();
        let (outcome, explanation) = match ended {
            Ok(()) => (Outcome::Success, None),
            Err(probe_error) => {
                timing.answer.reached |= probe_error.is_of_other_side;
                timing.answer.unanswered = probe_error.is_unanswered;
                timing.note(|step| step.clone_from(&probe_error.explanation));
                (probe_error.outcome, Some(probe_error.explanation.into()))
            }
        };
        ProbeResult {
            due,
            started,
            finished,
            outcome,
            phases,
            answer: timing.answer,
            explanation,
        }
    }
}
