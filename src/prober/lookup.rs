//! Resolves names by the system's resolver. Blocks.

use std::io;
use std::net::SocketAddr;

use dns_lookup::{AddrFamily, AddrInfoHints, LookupError, LookupErrorKind, SockType, getaddrinfo};

use crate::config::settings::IpFamily;

/// Of a name that exists, but not in this family. Not known to every C library, so not in a list of kinds.
const NOT_IN_FAMILY: i32 = -9;

/// `AF_UNSPEC`.
const ANY_FAMILY: i32 = 0;

/// Why there is no address.
#[derive(Debug)]
pub(super) struct ResolveError {
    /// What the system says.
    pub(super) error: io::Error,
    /// Whether no name server answered (timeout, SERVFAIL, REFUSED). That a name does not exist is an answer.
    pub(super) is_unanswered: bool,
}

impl From<io::Error> for ResolveError {
    fn from(error: io::Error) -> Self {
        Self {
            error,
            is_unanswered: false,
        }
    }
}

impl From<LookupError> for ResolveError {
    fn from(error: LookupError) -> Self {
        Self {
            is_unanswered: matches!(error.kind(), LookupErrorKind::Again | LookupErrorKind::Fail),
            error: error.into(),
        }
    }
}

/// Up to `most` addresses of a name. If only one family is wanted, the name server is asked only for that: it may never
/// answer for the other.
pub(super) fn lookup(
    name: &str,
    port: u16,
    choice: IpFamily,
    most: usize,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let (family, other, fallback) = match choice {
        IpFamily::Any => return of_family(name, port, ANY_FAMILY, most),
        IpFamily::V4 { fallback } => (AddrFamily::Inet, AddrFamily::Inet6, fallback),
        IpFamily::V6 { fallback } => (AddrFamily::Inet6, AddrFamily::Inet, fallback),
    };
    let found = of_family(name, port, family.into(), most);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        found if fallback => of_family(name, port, other.into(), most).or(found),
        found => found,
    }
}

fn of_family(
    name: &str,
    port: u16,
    family: i32,
    most: usize,
) -> Result<Vec<SocketAddr>, ResolveError> {
    let hints = AddrInfoHints {
        address: family,
        // Otherwise each address comes once for each kind of socket.
        socktype: SockType::Stream.into(),
        ..AddrInfoHints::default()
    };
    let found = match getaddrinfo(Some(name), None, Some(hints)) {
        Ok(found) => found,
        Err(error) if is_none(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut addresses = Vec::new();
    for info in found.take(most) {
        let mut address = info?.sockaddr;
        address.set_port(port);
        addresses.push(address);
    }
    Ok(addresses)
}

/// Whether the name has no address of the family, which is an answer.
fn is_none(error: &LookupError) -> bool {
    matches!(error.kind(), LookupErrorKind::NoData) || error.error_num() == NOT_IN_FAMILY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_one_family() {
        let (strict, loose) = (false, true);
        for (name, choice, expected) in [
            (
                "127.0.0.1",
                IpFamily::V4 { fallback: strict },
                "127.0.0.1:80",
            ),
            ("::1", IpFamily::V6 { fallback: strict }, "[::1]:80"),
            (
                "127.0.0.1",
                IpFamily::V6 { fallback: loose },
                "127.0.0.1:80",
            ),
            ("127.0.0.1", IpFamily::Any, "127.0.0.1:80"),
        ] {
            let found = lookup(name, 80, choice, 9).unwrap();
            assert_eq!(found, [expected.parse().unwrap()], "{name} {choice:?}");
        }
        let other = lookup("127.0.0.1", 80, IpFamily::V6 { fallback: strict }, 9);
        assert_eq!(other.unwrap(), []);
    }
}
