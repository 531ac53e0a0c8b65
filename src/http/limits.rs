//! The open connections, and which of them is closed to make room for the next one.
//!
//! Invariants:
//! - no client is refused: a connection above the limit closes another one, so `/-/healthy` and `/metrics` always
//!   answer;
//! - a client that opens many connections loses its own ones first.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Maximum time for the first request's head, and for each later one from its first byte. A client sends a head in one
/// packet or two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that wants something has sent its first byte within this time; a TLS handshake may take longer.
const SILENCE: Duration = Duration::from_millis(100);

/// Maximum idle time of a connection. Longer than the usual scrape interval of 15 s to 60 s, so that Prometheus keeps
/// its connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Share of all connections that one address may have: one of this many. A half is 256 by default, more than a
/// Prometheus, an ingress or a mesh's sidecar (from whose address everything comes) uses. It can be this high because
/// it refuses nothing: one more connection from there closes the one of them that is idle for longest.
const SHARE_OF_ONE: usize = 2;

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ConnectionStage {
    /// No byte has arrived.
    Silent,
    /// A part of the TLS handshake or of the first request's head has arrived.
    New,
    /// It waits for its next request.
    Idle,
    /// A part of a later request's head has arrived.
    Head,
    /// A request is being answered.
    Busy,
    /// The answer is ready, and the client reads it.
    Taking,
}

/// State of a connection, and since when.
#[derive(Debug)]
pub(super) struct ConnectionActivity(Mutex<(ConnectionStage, Instant)>);

impl ConnectionStage {
    /// Connections with a lower rank are closed first: silent ones before others, those with a running request last.
    fn rank(self, since: Instant) -> u8 {
        match self {
            Self::Silent if since.elapsed() >= SILENCE => 0,
            Self::Silent | Self::New | Self::Idle | Self::Head | Self::Taking => 1,
            Self::Busy => 2,
        }
    }
}

impl ConnectionActivity {
    pub(super) fn new() -> Self {
        Self(Mutex::new((ConnectionStage::Silent, Instant::now())))
    }

    fn now(&self) -> MutexGuard<'_, (ConnectionStage, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first bytes arrived; the time for the first request continues.
    pub(super) fn spoke(&self) {
        let mut now = self.now();
        if now.0 == ConnectionStage::Silent {
            now.0 = ConnectionStage::New;
        }
    }

    /// A part of a request arrived.
    pub(super) fn bytes_came(&self) {
        let mut now = self.now();
        if now.0 == ConnectionStage::Idle {
            *now = (ConnectionStage::Head, Instant::now());
        }
    }

    /// A request's head is complete.
    pub(super) fn request_came(&self) {
        *self.now() = (ConnectionStage::Busy, Instant::now());
    }

    /// The answer is ready.
    pub(super) fn answered(&self) {
        *self.now() = (ConnectionStage::Taking, Instant::now());
    }

    /// The client has read the whole answer.
    pub(super) fn taken(&self) {
        let mut now = self.now();
        if now.0 == ConnectionStage::Taking {
            *now = (ConnectionStage::Idle, Instant::now());
        }
    }

    /// When the connection is closed if nothing more arrives. `None` while a request is answered or the answer is read,
    /// which have limits of their own.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let (stage, since) = *self.now();
        match stage {
            ConnectionStage::Silent | ConnectionStage::New | ConnectionStage::Head => {
                Some(since + HEAD_TIMEOUT)
            }
            ConnectionStage::Idle => Some(since + IDLE_TIMEOUT),
            ConnectionStage::Busy | ConnectionStage::Taking => None,
        }
    }
}

#[derive(Debug)]
struct ConnectionEntry {
    source: IpAddr,
    activity: Arc<ConnectionActivity>,
    close: CancellationToken,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    entries: HashMap<u64, ConnectionEntry>,
    by_source: HashMap<IpAddr, usize>,
}

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<OpenConnections>,
}

/// An open connection; dropping it makes room for another one.
#[derive(Debug)]
pub(super) struct ClientConnection {
    number: u64,
    of: Arc<Connections>,
    /// What it does.
    pub(super) activity: Arc<ConnectionActivity>,
    /// Cancelled when it has to make room.
    pub(super) close: CancellationToken,
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.of.lock().remove(self.number);
    }
}

impl Connections {
    /// With room for `most` connections.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            open: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits a connection. Returns how many others (0 to 2) were closed for it.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> (ClientConnection, usize) {
        let source = source(address);
        let mut open = self.lock();
        let mut closed = 0;
        if open.count(source) >= (self.most / SHARE_OF_ONE).max(1) {
            closed += usize::from(open.close_one(Some(source)));
        }
        if open.entries.len() >= self.most {
            closed += usize::from(open.close_one(None));
        }
        let number = open.next;
        open.next += 1;
        let activity = Arc::new(ConnectionActivity::new());
        let close = CancellationToken::new();
        *open.by_source.entry(source).or_default() += 1;
        let entry = ConnectionEntry {
            source,
            activity: Arc::clone(&activity),
            close: close.clone(),
        };
        open.entries.insert(number, entry);
        let connection = ClientConnection {
            number,
            of: Arc::clone(self),
            activity,
            close,
        };
        (connection, closed)
    }

    /// Closes the connection that is idle for longest. Returns whether there was one.
    pub(super) fn make_room(&self) -> bool {
        self.lock().close_one(None)
    }
}

impl OpenConnections {
    fn count(&self, source: IpAddr) -> usize {
        self.by_source.get(&source).copied().unwrap_or(0)
    }

    fn remove(&mut self, number: u64) -> Option<ConnectionEntry> {
        let entry = self.entries.remove(&number)?;
        if let Some(count) = self.by_source.get_mut(&entry.source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&entry.source);
            }
        }
        Some(entry)
    }

    /// Closes one of all connections, or of one source: by rank, then by the source with the most connections, then by
    /// age.
    fn close_one(&mut self, of: Option<IpAddr>) -> bool {
        let candidates = self
            .entries
            .iter()
            .filter(|(_, entry)| of.is_none_or(|source| entry.source == source));
        let first = candidates.min_by_key(|(number, entry)| {
            let (stage, since) = *entry.activity.now();
            let rest = usize::MAX - self.count(entry.source);
            (stage.rank(since), rest, since, **number)
        });
        let Some(number) = first.map(|(number, _)| *number) else {
            return false;
        };
        if let Some(entry) = self.remove(number) {
            entry.close.cancel();
        }
        true
    }
}

/// The address that counts: for IPv6 its network of 64 bits, since a host has all of it.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_one_makes_room_and_a_busy_one_last() {
        let connections = Connections::new(4);
        let mut open = Vec::new();
        for last in 1..=4 {
            let (connection, closed) = connections.admit(IpAddr::from([10, 0, 0, last]));
            assert_eq!(closed, 0);
            open.push(connection);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        // The first is at work; the second has just been, and waits since. The others have said nothing.
        open[0].activity.request_came();
        open[1].activity.request_came();
        open[1].activity.answered();
        open[1].activity.taken();
        open[2].activity.spoke();
        let mut gone = |last: u8| {
            let (connection, closed) = connections.admit(IpAddr::from([10, 0, 1, last]));
            assert_eq!(closed, 1);
            connection.activity.request_came();
            open.push(connection);
            let closed = open.iter().map(|one| one.close.is_cancelled());
            closed.collect::<Vec<bool>>()
        };
        assert_eq!(gone(1), [false, false, false, true, false]);
        assert_eq!(gone(2)[..4], [false, false, true, true]);
        assert_eq!(gone(3)[..4], [false, true, true, true]);
        // All are at work now: also then nobody is refused.
        assert_eq!(gone(4)[..4], [true, true, true, true]);
        drop(open);
        let left = connections.lock();
        assert!(left.entries.is_empty() && left.by_source.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn who_opens_many_loses_their_own() {
        let connections = Connections::new(8);
        let (success, _) = connections.admit(address("10.0.0.1"));
        success.activity.spoke();
        tokio::time::advance(Duration::from_secs(60)).await;
        // The networks of hosts, and an IPv4 address in either form.
        for many in ["10.9.9.9", "::ffff:10.9.9.9", "2001:db8::1", "2001:db8::2"] {
            for _ in 0..20 {
                // One that is closed is removed at once, also where its task has not ended.
                std::mem::forget(connections.admit(address(many)).0);
            }
        }
        assert!(!success.close.is_cancelled(), "it has waited for longest");
        let open = connections.lock();
        assert!(open.entries.len() <= 8, "{}", open.entries.len());
        assert!(open.by_source.len() == 3, "{:?}", open.by_source);
        assert!(open.count(address("10.9.9.9")) <= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_ten_seconds_and_a_pause_ninety() {
        let activity = ConnectionActivity::new();
        let left =
            |activity: &ConnectionActivity| activity.deadline().map(|at| at - Instant::now());
        activity.bytes_came();
        tokio::time::advance(Duration::from_secs(4)).await;
        activity.bytes_came();
        assert_eq!(
            left(&activity),
            Some(Duration::from_secs(6)),
            "no byte adds"
        );
        activity.request_came();
        assert_eq!(left(&activity), None);
        activity.answered();
        assert_eq!(left(&activity), None);
        activity.taken();
        assert_eq!(left(&activity), Some(IDLE_TIMEOUT));
        tokio::time::advance(Duration::from_secs(80)).await;
        activity.bytes_came();
        assert_eq!(left(&activity), Some(HEAD_TIMEOUT));
    }
}
