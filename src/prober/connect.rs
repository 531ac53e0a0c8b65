//! From a host to a TCP connection, over the address that answers first (RFC 8305).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::error::ProbeError;
use super::lookup::lookup;
use super::stream::CountedTcp;
use super::timing::{ProbeStage, ProbeTiming};
use crate::config::settings::IpFamily;
use crate::core::probe_result::{Outcome, Reason, UnknownReason};

/// Concurrent lookups. Each blocks a thread that cannot be stopped, even when its result is no longer needed, so
/// hanging name servers must not take all of tokio's 512 blocking threads.
const MAX_LOOKUPS: usize = 256;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 32;

/// How long an address may take before the next one is tried beside it: the delay that RFC 8305 recommends.
const STAGGER: Duration = Duration::from_millis(250);

/// Names to addresses, through the system's resolver.
#[derive(Debug)]
pub(super) struct Resolver(Arc<Semaphore>);

impl Resolver {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_LOOKUPS)))
    }

    /// The addresses to try, in order; at least one. `left` is the time until the deadline.
    pub(super) async fn addresses(
        &self,
        host: &str,
        port: u16,
        choice: IpFamily,
        left: Duration,
        stage: ProbeStage,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<Addresses, ProbeError> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            let one = SocketAddr::new(ip, port);
            let wanted = match choice {
                IpFamily::V4 { fallback: false } => ip.is_ipv4(),
                IpFamily::V6 { fallback: false } => ip.is_ipv6(),
                IpFamily::Any | IpFamily::V4 { .. } | IpFamily::V6 { .. } => true,
            };
            return if wanted {
                Ok(Addresses::One(one))
            } else {
                Err(none_of(choice, host))
            };
        }
        timing.enter(stage);
        // A proxy's own name is a part of the way and not of the question.
        timing.answer.resolved |= stage == ProbeStage::Resolve;
        // A little before the deadline, so that the reason is ours and not the target's.
        let wait = left.mul_f64(0.9);
        let permit = match Arc::clone(&self.0).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => tokio::time::timeout(wait, Arc::clone(&self.0).acquire_owned())
                .await
                .ok()
                .and_then(Result::ok),
        };
        let Some(permit) = permit else {
            let text = format!("{MAX_LOOKUPS} lookups of names are under way, none ended in time");
            return Err(ProbeError::unknown(UnknownReason::ResolverBusy, text));
        };
        let name = host.to_owned();
        let lookup = spawn_blocking(move || {
            // The place is taken as long as the thread is, and not only while this result waits.
            let _permit = permit;
            lookup(&name, port, choice, MAX_ADDRESSES)
        });
        let found = lookup
            .await
            .unwrap_or_else(|error| Err(std::io::Error::from(error).into()));
        let found = found.map_err(|unresolved| {
            let doing = format!("cannot resolve {host}");
            let probe_error = ProbeError::connecting(&unresolved.error, &doing);
            match probe_error.outcome {
                // A resolver that is refused or cannot be reached is still a name without an address.
                Outcome::Failure(_) if unresolved.is_unanswered => {
                    ProbeError::bad(Reason::Resolve, probe_error.explanation).unanswered()
                }
                Outcome::Failure(_) => ProbeError::bad(Reason::Resolve, probe_error.explanation),
                Outcome::Success | Outcome::Unknown(_) => probe_error,
            }
        })?;
        let addresses = chosen(&found, choice);
        if addresses.is_empty() {
            return Err(none_of(choice, host));
        }
        timing.note(|step| *step = format!("{host} has the addresses {addresses:?}"));
        Ok(Addresses::Many(addresses))
    }
}

/// Where to connect to. One is the common case, and costs no allocation.
#[derive(Debug)]
pub(super) enum Addresses {
    One(SocketAddr),
    Many(Vec<SocketAddr>),
}

impl Addresses {
    fn as_slice(&self) -> &[SocketAddr] {
        match self {
            Self::One(address) => std::slice::from_ref(address),
            Self::Many(addresses) => addresses,
        }
    }
}

fn none_of(choice: IpFamily, host: &str) -> ProbeError {
    let wanted = match choice {
        IpFamily::Any => "IP",
        IpFamily::V4 { .. } => "IPv4",
        IpFamily::V6 { .. } => "IPv6",
    };
    ProbeError::bad(Reason::Resolve, format!("{host} has no {wanted} address"))
}

/// What of the addresses is tried.
fn chosen(all: &[SocketAddr], choice: IpFamily) -> Vec<SocketAddr> {
    let first = |v4: bool| all.iter().copied().find(|address| address.is_ipv4() == v4);
    let one = |v4: bool, fallback: bool| {
        let other = || first(!v4).filter(|_| fallback);
        first(v4).or_else(other).into_iter().collect()
    };
    match choice {
        IpFamily::Any => all.to_vec(),
        IpFamily::V4 { fallback } => one(true, fallback),
        IpFamily::V6 { fallback } => one(false, fallback),
    }
}

/// A connection to the first address that accepts one. If none does, the first failure decides, unless we lack a
/// resource: then it is unknown what the target would have said.
pub(super) async fn connect(
    addresses: &Addresses,
    stage: ProbeStage,
    timing: &mut ProbeTiming<'_>,
) -> Result<CountedTcp, ProbeError> {
    timing.enter(stage);
    timing.meter = None;
    let addresses = addresses.as_slice();
    timing.answer.entrance = addresses.iter().map(SocketAddr::ip).min();
    let (address, stream) = match addresses {
        [] => return Err(ProbeError::bad(Reason::Resolve, "there is no address")),
        [one] => {
            timing.answer.ip = Some(one.ip());
            let connected = TcpStream::connect(*one).await;
            let stream = connected.map_err(|error| {
                let probe_error = connect_error(&error, *one);
                timing.note(|step| step.clone_from(&probe_error.explanation));
                probe_error
            })?;
            (*one, stream)
        }
        many => AddressRace::new(many).run(timing).await?,
    };
    // Requests are written in one piece; waiting for more to send would only delay them.
    let _ = stream.set_nodelay(true);
    timing.answer.ip = Some(address.ip());
    timing.instead = None;
    timing.note(|step| *step = format!("connected to {address}"));
    let wire = CountedTcp::new(stream);
    timing.meter = Some(Arc::clone(wire.meter()));
    Ok(wire)
}

/// Attempts at several addresses. One begins when the one before it failed or has taken [`STAGGER`]; the first that
/// connects wins, and the others are dropped.
struct AddressRace {
    order: Vec<SocketAddr>,
    started: usize,
    failed: Vec<(SocketAddr, ProbeError)>,
}

impl AddressRace {
    fn new(addresses: &[SocketAddr]) -> Self {
        Self {
            order: interleaved(addresses),
            started: 0,
            failed: Vec::new(),
        }
    }

    async fn run(
        mut self,
        timing: &mut ProbeTiming<'_>,
    ) -> Result<(SocketAddr, TcpStream), ProbeError> {
        let mut under_way = FuturesUnordered::new();
        timing.answer.ip = self.order.first().map(SocketAddr::ip);
        loop {
            if let Some(address) = self.order.get(self.started).copied() {
                self.started += 1;
                under_way.push(async move { (address, TcpStream::connect(address).await) });
            } else if under_way.is_empty() {
                return Err(self.lost(timing));
            }
            let ended = if self.started < self.order.len() {
                // Nothing of it has ended when the time is over.
                let ended = tokio::time::timeout(STAGGER, under_way.next()).await;
                ended.unwrap_or_default()
            } else {
                timing.instead = Some(self.said());
                under_way.next().await
            };
            match ended {
                Some((address, Ok(stream))) => return Ok((address, stream)),
                Some((address, Err(error))) => {
                    let probe_error = connect_error(&error, address);
                    timing.answer.reached |= probe_error.is_of_other_side;
                    timing.note(|step| step.clone_from(&probe_error.explanation));
                    self.failed.push((address, probe_error));
                }
                None => timing.note(|step| step.push_str("no answer yet, trying the next address")),
            }
            if self.started < self.order.len() {
                timing.instead = Some(self.said());
            }
        }
    }

    /// What each address said, in the order in which they were tried.
    fn said(&self) -> String {
        let tried = self.order.iter().take(self.started);
        let of_each = tried.map(|address| {
            let failed = self.failed.iter().find(|(of, _)| of == address);
            let why = failed.map(|(_, probe_error)| probe_error.explanation.as_str());
            why.map_or_else(
                || format!("{address} does not answer"),
                |why| why.strip_prefix(DOING).unwrap_or(why).to_owned(),
            )
        });
        of_each.collect::<Vec<_>>().join("; ")
    }

    /// The failure, when no address is left.
    fn lost(&self, timing: &mut ProbeTiming<'_>) -> ProbeError {
        let said = format!("{DOING}{}", self.said());
        let mut failed = self.failed.iter();
        let ours =
            failed.find(|(_, probe_error)| matches!(probe_error.outcome, Outcome::Unknown(_)));
        let first = self.order.first();
        let mut failed = self.failed.iter();
        let decides = ours.or_else(|| failed.find(|(address, _)| Some(address) == first));
        let Some((address, probe_error)) = decides.or(self.failed.first()) else {
            return ProbeError::bad(Reason::Resolve, "there is no address");
        };
        timing.answer.ip = Some(address.ip());
        match probe_error.outcome {
            Outcome::Unknown(_) => probe_error.clone(),
            Outcome::Success | Outcome::Failure(_) => probe_error.clone().saying(&said),
        }
    }
}

/// The families in turn, beginning with the first one's; within a family the order stays.
fn interleaved(all: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v4 = all.first().is_some_and(SocketAddr::is_ipv4);
    let of_first = |address: &&SocketAddr| address.is_ipv4() == first_is_v4;
    let mut other = all.iter().filter(|address| !of_first(address));
    let mut order = Vec::with_capacity(all.len());
    for address in all.iter().filter(of_first) {
        order.push(*address);
        order.extend(other.next());
    }
    order.extend(other);
    order
}

/// Each failure to connect begins with it.
const DOING: &str = "cannot connect to ";

fn connect_error(error: &io::Error, address: SocketAddr) -> ProbeError {
    let doing = format!("{DOING}{address}");
    // The same error says "no port left" and "no address of ours could speak to that one", as on a machine without
    // IPv6. The first is our trouble of the moment, the second is how things are.
    if Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL) && !has_source(address) {
        let text = format!("{doing}: no address of this machine reaches it");
        return ProbeError::bad(Reason::ConnectUnreachable, text);
    }
    ProbeError::connecting(error, &doing)
}

/// Whether the system has an address to speak to this one from. Nothing is sent: a datagram's socket only chooses its
/// own address when it connects.
fn has_source(address: SocketAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock;

    #[test]
    fn families() {
        let v4 = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let v6 = |last| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1));
        let mixed = [v6(1), v4(1), v6(2), v4(2)];
        let (strict, loose) = (false, true);
        for (all, choice, expected) in [
            (&mixed[..], IpFamily::Any, mixed.to_vec()),
            (&mixed, IpFamily::V4 { fallback: strict }, vec![v4(1)]),
            (&mixed, IpFamily::V6 { fallback: strict }, vec![v6(1)]),
            (&mixed[..1], IpFamily::V4 { fallback: strict }, vec![]),
            (&mixed[..1], IpFamily::V4 { fallback: loose }, vec![v6(1)]),
            (&mixed[1..2], IpFamily::V6 { fallback: loose }, vec![v4(1)]),
            (&[], IpFamily::V6 { fallback: loose }, vec![]),
        ] {
            assert_eq!(chosen(all, choice), expected, "{all:?} {choice:?}");
        }
    }

    #[test]
    fn a_port_that_is_left_is_told_apart_from_an_address_that_is_missing() {
        let error = io::Error::from_raw_os_error(Errno::ADDRNOTAVAIL.raw_os_error());
        let here = SocketAddr::from(([127, 0, 0, 1], 80));
        let probe_error = connect_error(&error, here);
        assert_eq!(
            probe_error.outcome,
            Outcome::Unknown(UnknownReason::NoLocalPorts)
        );
    }

    #[tokio::test]
    async fn the_first_failure_is_told_and_the_address_that_it_is_of() {
        let free = |host: [u8; 4]| {
            let listener = std::net::TcpListener::bind((IpAddr::from(host), 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let (first, second) = (free([127, 0, 0, 1]), free([127, 0, 0, 2]));
        let mut timing = ProbeTiming::start(clock::now, None);
        let both = Addresses::Many(vec![first, second]);
        let probe_error = connect(&both, ProbeStage::Connect, &mut timing).await;
        let probe_error = probe_error.unwrap_err();
        assert_eq!(
            probe_error.outcome,
            Outcome::Failure(Reason::ConnectRefused)
        );
        for address in [first, second] {
            assert!(
                probe_error.explanation.contains(&address.to_string()),
                "{probe_error:?}"
            );
        }
        assert_eq!(timing.answer.ip, Some(first.ip()));
        assert_eq!(timing.answer.entrance, Some(first.ip()));
        assert!(probe_error.is_of_other_side);
    }

    #[test]
    fn families_take_turns() {
        let v4 = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let v6 = |last| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1));
        for (all, expected) in [
            (vec![], vec![]),
            (vec![v4(2), v4(1)], vec![v4(2), v4(1)]),
            (
                vec![v6(1), v6(2), v6(3), v4(1)],
                vec![v6(1), v4(1), v6(2), v6(3)],
            ),
            (
                vec![v4(1), v6(2), v6(1), v6(3)],
                vec![v4(1), v6(2), v6(1), v6(3)],
            ),
        ] {
            assert_eq!(interleaved(&all), expected);
        }
    }

    #[tokio::test]
    async fn a_lookup_without_a_free_place_is_our_own_trouble() {
        let resolver = Resolver(Arc::new(Semaphore::new(0)));
        let mut timing = ProbeTiming::start(clock::now, None);
        let left = Duration::from_millis(20);
        let stage = ProbeStage::Resolve;
        let found = resolver.addresses("localhost", 1, IpFamily::Any, left, stage, &mut timing);
        let outcome = found.await.unwrap_err().outcome;
        assert_eq!(outcome, Outcome::Unknown(UnknownReason::ResolverBusy));
        let numeric = resolver.addresses("127.0.0.1", 1, IpFamily::Any, left, stage, &mut timing);
        assert!(numeric.await.is_ok(), "an address needs no lookup");
    }
}
