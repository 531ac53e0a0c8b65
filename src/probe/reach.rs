//! From a host to a TCP connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::fault::Fault;
use super::trace::{Stage, Trace};
use crate::config::settings::IpChoice;
use crate::sounding::{Outcome, Reason, VoidReason};

/// Lookups under way at a time. Each holds a thread that cannot be stopped, also when nobody waits for it any more, so
/// that hanging name servers must not take them all: tokio has 512 for work that blocks.
const MAX_LOOKUPS: usize = 256;

/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 32;

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
        choice: IpChoice,
        left: Duration,
        stage: Stage,
        trace: &mut Trace<'_>,
    ) -> Result<Addresses, Fault> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            let one = SocketAddr::new(ip, port);
            let wanted = match choice {
                IpChoice::V4 { fallback: false } => ip.is_ipv4(),
                IpChoice::V6 { fallback: false } => ip.is_ipv6(),
                IpChoice::Any | IpChoice::V4 { .. } | IpChoice::V6 { .. } => true,
            };
            return if wanted {
                Ok(Addresses::One(one))
            } else {
                Err(none_of(choice, host))
            };
        }
        trace.enter(stage);
        // A proxy's own name is a part of the way and not of the question.
        trace.answer.resolved |= stage == Stage::Resolve;
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
            return Err(Fault::void(VoidReason::ResolverBusy, text));
        };
        let name = host.to_owned();
        let lookup = spawn_blocking(move || {
            // The place is taken as long as the thread is, and not only while this sounding waits.
            let _permit = permit;
            let found = (name.as_str(), port).to_socket_addrs()?;
            io::Result::Ok(found.take(MAX_ADDRESSES).collect::<Vec<_>>())
        });
        let found = lookup.await.unwrap_or_else(|error| Err(error.into()));
        let found = found.map_err(|error| {
            let fault = Fault::connecting(&error, &format!("cannot resolve {host}"));
            match fault.outcome {
                // A resolver that is refused or cannot be reached is still a name without an address.
                Outcome::Bad(_) => Fault::bad(Reason::Resolve, fault.explanation),
                Outcome::Good | Outcome::Void(_) => fault,
            }
        })?;
        let addresses = chosen(&found, choice);
        if addresses.is_empty() {
            return Err(none_of(choice, host));
        }
        trace.note(|step| *step = format!("{host} has the addresses {addresses:?}"));
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

fn none_of(choice: IpChoice, host: &str) -> Fault {
    let wanted = match choice {
        IpChoice::Any => "IP",
        IpChoice::V4 { .. } => "IPv4",
        IpChoice::V6 { .. } => "IPv6",
    };
    Fault::bad(Reason::Resolve, format!("{host} has no {wanted} address"))
}

/// What of the addresses is tried.
fn chosen(all: &[SocketAddr], choice: IpChoice) -> Vec<SocketAddr> {
    let first = |v4: bool| all.iter().copied().find(|address| address.is_ipv4() == v4);
    let one = |v4: bool, fallback: bool| {
        let other = || first(!v4).filter(|_| fallback);
        first(v4).or_else(other).into_iter().collect()
    };
    match choice {
        IpChoice::Any => all.to_vec(),
        IpChoice::V4 { fallback } => one(true, fallback),
        IpChoice::V6 { fallback } => one(false, fallback),
    }
}

/// A connection to the first address that takes one. When none does, the first failure is told, but that we lack
/// something goes before: with it, nobody knows what the target would have said.
pub(super) async fn connect(
    addresses: &Addresses,
    stage: Stage,
    trace: &mut Trace<'_>,
) -> Result<TcpStream, Fault> {
    trace.enter(stage);
    let mut told: Option<(IpAddr, Fault)> = None;
    for address in addresses.as_slice() {
        trace.answer.ip = Some(address.ip());
        let error = match TcpStream::connect(*address).await {
            Ok(stream) => {
                // Requests are written in one piece; waiting for more to send would only delay them.
                let _ = stream.set_nodelay(true);
                trace.note(|step| *step = format!("connected to {address}"));
                return Ok(stream);
            }
            Err(error) => error,
        };
        let fault = connect_fault(&error, *address);
        trace.note(|step| step.clone_from(&fault.explanation));
        let ours = |fault: &Fault| matches!(fault.outcome, Outcome::Void(_));
        if told
            .as_ref()
            .is_none_or(|(_, known)| ours(&fault) && !ours(known))
        {
            told = Some((address.ip(), fault));
        }
    }
    let (ip, fault) = told.ok_or_else(|| Fault::bad(Reason::Resolve, "there is no address"))?;
    trace.answer.ip = Some(ip);
    Err(fault)
}

fn connect_fault(error: &io::Error, address: SocketAddr) -> Fault {
    let doing = format!("cannot connect to {address}");
    // The same error says "no port left" and "no address of ours could speak to that one", as on a machine without
    // IPv6. The first is our trouble of the moment, the second is how things are.
    if Errno::from_io_error(error) == Some(Errno::ADDRNOTAVAIL) && !has_source(address) {
        let text = format!("{doing}: no address of this machine reaches it");
        return Fault::bad(Reason::ConnectUnreachable, text);
    }
    Fault::connecting(error, &doing)
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
    use crate::clock;

    #[test]
    fn families() {
        let v4 = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let v6 = |last| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 1));
        let mixed = [v6(1), v4(1), v6(2), v4(2)];
        let (strict, loose) = (false, true);
        for (all, choice, expected) in [
            (&mixed[..], IpChoice::Any, mixed.to_vec()),
            (&mixed, IpChoice::V4 { fallback: strict }, vec![v4(1)]),
            (&mixed, IpChoice::V6 { fallback: strict }, vec![v6(1)]),
            (&mixed[..1], IpChoice::V4 { fallback: strict }, vec![]),
            (&mixed[..1], IpChoice::V4 { fallback: loose }, vec![v6(1)]),
            (&mixed[1..2], IpChoice::V6 { fallback: loose }, vec![v4(1)]),
            (&[], IpChoice::V6 { fallback: loose }, vec![]),
        ] {
            assert_eq!(chosen(all, choice), expected, "{all:?} {choice:?}");
        }
    }

    #[test]
    fn a_port_that_is_left_is_told_apart_from_an_address_that_is_missing() {
        let error = io::Error::from_raw_os_error(Errno::ADDRNOTAVAIL.raw_os_error());
        let here = SocketAddr::from(([127, 0, 0, 1], 80));
        let fault = connect_fault(&error, here);
        assert_eq!(fault.outcome, Outcome::Void(VoidReason::NoLocalPorts));
    }

    #[tokio::test]
    async fn the_first_failure_is_told_and_the_address_that_it_is_of() {
        let free = |host: [u8; 4]| {
            let listener = std::net::TcpListener::bind((IpAddr::from(host), 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let (first, second) = (free([127, 0, 0, 1]), free([127, 0, 0, 2]));
        let mut trace = Trace::start(clock::now, None);
        let both = Addresses::Many(vec![first, second]);
        let fault = connect(&both, Stage::Connect, &mut trace).await;
        let fault = fault.unwrap_err();
        assert_eq!(fault.outcome, Outcome::Bad(Reason::ConnectRefused));
        assert!(fault.explanation.contains(&first.to_string()), "{fault:?}");
        assert_eq!(trace.answer.ip, Some(first.ip()));
    }

    #[tokio::test]
    async fn a_lookup_without_a_free_place_is_our_own_trouble() {
        let resolver = Resolver(Arc::new(Semaphore::new(0)));
        let mut trace = Trace::start(clock::now, None);
        let left = Duration::from_millis(20);
        let stage = Stage::Resolve;
        let found = resolver.addresses("localhost", 1, IpChoice::Any, left, stage, &mut trace);
        let outcome = found.await.unwrap_err().outcome;
        assert_eq!(outcome, Outcome::Void(VoidReason::ResolverBusy));
        let numeric = resolver.addresses("127.0.0.1", 1, IpChoice::Any, left, stage, &mut trace);
        assert!(numeric.await.is_ok(), "an address needs no lookup");
    }
}
