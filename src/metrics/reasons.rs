//! The reasons for which a probe can fail, so that their counters exist before the first failure, and no series exists
//! for the impossible.

use crate::config::settings::{
    HttpProbeConfig, HttpVersions, ProbeConfig, ProbeKind, TcpProbeConfig, TcpStep,
};
use crate::config::target::Target;
use crate::core::probe_result::Reason;

/// A set of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReasonSet(u32);

const _: () = assert!(Reason::COUNT <= u32::BITS as usize);

impl ReasonSet {
    /// Whether it is in the set.
    pub const fn contains(self, reason: Reason) -> bool {
        self.0 & (1 << reason.index()) != 0
    }

    fn add(&mut self, reason: Reason, possible: bool) {
        self.0 |= u32::from(possible) << reason.index();
    }
}

/// The reasons that this probe can fail for, as far as its settings tell.
pub fn possible_reasons(probe: &ProbeConfig) -> ReasonSet {
    let mut set = ReasonSet::default();
    for reason in [
        Reason::Resolve,
        Reason::ConnectRefused,
        Reason::ConnectTimeout,
        Reason::ConnectUnreachable,
        Reason::Request,
        Reason::HeaderTimeout,
        Reason::BodyTimeout,
        Reason::Reset,
        Reason::Protocol,
    ] {
        set.add(reason, true);
    }
    match &probe.kind {
        ProbeKind::Http(http) => of_http(&mut set, http, probe.target.is_https()),
        ProbeKind::Tcp(tcp) => of_tcp(&mut set, tcp),
    }
    set
}

fn of_http(set: &mut ReasonSet, http: &HttpProbeConfig, https: bool) {
    let expect = &http.expect;
    // A redirect may lead from a plain target to one with TLS.
    let redirects = http.redirects.max > 0;
    let tls = https || redirects || http.proxy.as_ref().is_some_and(Target::is_https);
    let body = !expect.body_matches.is_empty() || !expect.body_not_matches.is_empty();
    set.add(Reason::Proxy, http.proxy.is_some());
    set.add(Reason::Tls, tls);
    set.add(Reason::Certificate, tls);
    set.add(Reason::Status, true);
    set.add(
        Reason::Version,
        !expect.http_versions.is_empty()
            || expect.tls.is_some()
            || http.http == HttpVersions::Http2,
    );
    set.add(Reason::Json, !expect.json.is_empty());
    set.add(Reason::Body, body);
    set.add(
        Reason::Header,
        !expect.headers.is_empty() || expect.max_age.is_some(),
    );
    set.add(Reason::TooLarge, true);
    set.add(Reason::TooSlow, expect.max_latency.is_some());
    set.add(Reason::Redirect, redirects);
}

fn of_tcp(set: &mut ReasonSet, tcp: &TcpProbeConfig) {
    let start_tls = |step: &TcpStep| matches!(step, TcpStep::StartTls);
    let tls_used = tcp.tls || tcp.dialogue.iter().any(start_tls);
    set.add(Reason::Tls, tls_used);
    set.add(Reason::Certificate, tls_used);
    set.add(Reason::Dialogue, !tcp.dialogue.is_empty());
    set.add(Reason::TooSlow, tcp.max_latency.is_some());
}
