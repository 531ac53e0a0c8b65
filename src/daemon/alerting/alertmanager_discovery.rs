//! Alertmanager discovery: resolves each configured name and runs one sending task for each of its addresses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::AlertEvaluator;
use crate::metrics::Metrics;
use crate::notify::AlertStyle;
use crate::notify::{self, AlertPayload, AlertmanagerObserver, AlertmanagerPeer};

/// One Alertmanager and the task that sends to it.
pub(super) struct AlertmanagerTask {
    pub(super) peer: Arc<AlertmanagerPeer>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

/// Index of its URL in the configuration, and its address.
pub(super) type AlertmanagerAddress = (usize, SocketAddr);

impl AlertEvaluator {
    pub(super) fn resolve(&mut self) {
        let Some(settings) = self.orders.alertmanagers.clone() else {
            return;
        };
        // One that still runs has its limit.
        if !self.resolving.is_empty() {
            return;
        }
        for (number, url) in settings.urls.iter().cloned().enumerate() {
            self.resolving
                .spawn(async move { (number, notify::addresses(&url).await) });
        }
    }

    pub(super) fn on_resolved(&mut self, number: usize, found: Result<Vec<SocketAddr>, String>) {
        let Some(settings) = self.orders.alertmanagers.clone() else {
            return;
        };
        let Some(url) = settings.urls.get(number) else {
            return;
        };
        let addresses = match found {
            Ok(addresses) => addresses,
            Err(why) => {
                if self.unresolved.insert(number) {
                    tracing::warn!(alertmanager = %url, "Its addresses are not to be had; those that were known are used: {why}");
                }
                return;
            }
        };
        self.unresolved.remove(&number);
        let (gone, new) = changes(self.alertmanagers.keys(), number, &addresses);
        for place in gone {
            if let Some(sending) = self.alertmanagers.remove(&place) {
                sending.stop.cancel();
            }
        }
        for address in new {
            let meter = Arc::new(AlertmanagerMetrics::new(Arc::clone(&self.setup.metrics)));
            let style = Arc::new(AlertStyle {
                external: settings.labels.clone(),
                page: self.orders.page.clone(),
            });
            let permit = self.setup.permit.clone();
            let peer =
                AlertmanagerPeer::new(url, address, Arc::clone(&settings), style, meter, permit);
            // It knows nothing yet.
            peer.offer(&self.wires());
            let stop = CancellationToken::new();
            let ended = self.setup.ended.clone().drop_guard();
            let task = tokio::spawn({
                let (peer, stop, halt) = (Arc::clone(&peer), stop.clone(), self.halt.clone());
                async move {
                    tokio::select! {
                        () = halt.cancelled() => {}
                        () = peer.run(stop) => {}
                    }
                    ended.disarm();
                }
            });
            let sending = AlertmanagerTask { peer, stop, task };
            self.alertmanagers.insert((number, address), sending);
        }
        self.setup.metrics.alerting.capacity(notify::CAPACITY);
    }

    pub(super) fn wires(&self) -> Vec<Arc<AlertPayload>> {
        let Some(settings) = &self.orders.alertmanagers else {
            return Vec::new();
        };
        notify::wires(
            &self.kept.alert_store,
            settings.resend,
            self.setup.timeline.now(),
        )
    }
}

/// Compares the resolved addresses of one URL with the running tasks: which to end, and which to start.
fn changes<'a>(
    known: impl Iterator<Item = &'a AlertmanagerAddress> + Clone,
    number: usize,
    addresses: &[SocketAddr],
) -> (Vec<AlertmanagerAddress>, Vec<SocketAddr>) {
    let ours = known.copied().filter(|(of, _)| *of == number);
    let gone = ours
        .clone()
        .filter(|(_, address)| !addresses.contains(address));
    let is_new = |address: &&SocketAddr| !ours.clone().any(|(_, known)| known == **address);
    let new = addresses.iter().filter(is_new).copied().collect();
    (gone.collect(), new)
}

/// Gauges of one Alertmanager.
struct AlertmanagerMetrics {
    metrics: Arc<Metrics>,
    /// How much this task has added to the shared gauges; the tasks of other releases add to the same ones.
    waiting: AtomicI64,
    unconfirmed: AtomicI64,
}

impl AlertmanagerMetrics {
    const fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            waiting: AtomicI64::new(0),
            unconfirmed: AtomicI64::new(0),
        }
    }
}

/// The difference to the value that was added last.
fn more(before: &AtomicI64, now: usize) -> i64 {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    now - before.swap(now, Ordering::Relaxed)
}

impl AlertmanagerObserver for AlertmanagerMetrics {
    fn appears(&self, to: &str) {
        self.metrics.alerting.appears(to);
    }

    fn is_gone(&self, to: &str) {
        self.waiting(to, 0);
        self.confirmed(to, 0, 0);
        self.metrics.alerting.is_gone(to);
    }

    fn sent(&self, to: &str, count: usize, took: Duration) {
        self.metrics.alerting.sent(to, count, took);
    }

    fn failed(&self, to: &str, count: usize) {
        self.metrics.alerting.failed(to, count);
    }

    fn dropped(&self, to: &str, count: usize) {
        self.metrics.alerting.dropped(to, count);
    }

    fn waiting(&self, to: &str, count: usize) {
        let more = more(&self.waiting, count);
        self.metrics.alerting.waiting(to, more);
    }

    fn confirmed(&self, to: &str, confirmed: usize, of: usize) {
        let more = more(&self.unconfirmed, of - confirmed);
        self.metrics.alerting.unconfirmed(to, more);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;

    #[test]
    fn a_name_with_two_addresses_is_two_alertmanagers() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (one, two, three) = (at("127.0.0.1:1"), at("127.0.0.2:1"), at("127.0.0.3:1"));
        // Another URL may have the same address; it stays as it is.
        let other = (1, one);
        assert_eq!(
            changes([other].iter(), 0, &[one, two]),
            (vec![], vec![one, two])
        );
        // The pod of one of them was replaced.
        let known = [(0, one), other, (0, two)];
        assert_eq!(changes(known.iter(), 0, &[one, two]), (vec![], vec![]));
        assert_eq!(
            changes(known.iter(), 0, &[two, three]),
            (vec![(0, one)], vec![three])
        );
    }
}
