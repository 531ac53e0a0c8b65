//! The prober: runs one probe over real sockets.
//!
//! Invariants:
//! - a probe ends by its timeout, and everything that it opened is closed when it is dropped;
//! - each moment from the start to the end belongs to exactly one phase;
//! - everything that a target sends is bounded before it is kept: heads, bodies (compressed and not), lines, redirects,
//!   and bytes outside of answers (`response_meter`);
//! - trouble of our own (files, descriptors, ports, resolver) makes a result unknown; trouble on the way to the target
//!   makes it a failure.

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
    /// With the clock for measuring probes.
    pub fn new(clock: fn() -> Moment) -> Arc<Self> {
        Arc::new(Self {
            clock,
            resolver: connect::Resolver::new(),
            clients: tls::TlsClients::default(),
        })
    }
}

/// One probe of one target, prepared; keeps idle connections if configured.
pub struct Prober {
    shared: Arc<ProberContext>,
    kind: ProberKind,
}

enum ProberKind {
    Http(Box<http::HttpProber>),
    Tcp(Box<tcp::TcpProber>),
}

impl Prober {
    /// Never fails: an unreadable file makes results unknown, and may be there for the next probe.
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

    /// Runs the probe, which ends by `timeout`, counted from now. `due` is when it should have started.
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
