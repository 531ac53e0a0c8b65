//! The Alertmanagers: every address of every name, each with a task of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::Herald;
use crate::metrics::Metrics;
use crate::notify::Style;
use crate::notify::{self, Meter, Peer, Wire};

/// An Alertmanager, and the task that sends to it.
pub(super) struct Sending {
    pub(super) peer: Arc<Peer>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

/// Which one: the number of its URL, and its address.
pub(super) type Place = (usize, SocketAddr);

impl Herald {
    pub(super) fn resolve(&mut self) {
        let Some(settings) = self.orders.alertmanagers.clone() else {
            self.setup.metrics.alerting.configured(0);
            self.setup.metrics.alerting.discovered(0, notify::CAPACITY);
            return;
        };
        self.setup.metrics.alerting.configured(settings.urls.len());
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
        let gone: Vec<Place> = self
            .peers
            .keys()
            .filter(|(of, address)| *of == number && !addresses.contains(address))
            .copied()
            .collect();
        for place in gone {
            if let Some(sending) = self.peers.remove(&place) {
                sending.stop.cancel();
            }
        }
        for address in addresses {
            if self.peers.contains_key(&(number, address)) {
                continue;
            }
            let meter = Arc::new(Numbers(Arc::clone(&self.setup.metrics)));
            let style = Arc::new(Style {
                external: settings.labels.clone(),
                page: self.orders.page.clone(),
            });
            let peer = Peer::new(url, address, Arc::clone(&settings), style, meter);
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
            let sending = Sending { peer, stop, task };
            self.peers.insert((number, address), sending);
        }
        self.setup
            .metrics
            .alerting
            .discovered(self.peers.len(), notify::CAPACITY);
    }

    pub(super) fn wires(&self) -> Vec<Arc<Wire>> {
        let Some(settings) = &self.orders.alertmanagers else {
            return Vec::new();
        };
        notify::wires(&self.kept.book, settings.resend, self.setup.timeline.now())
    }
}

/// The numbers of the Alertmanagers, as metrics.
struct Numbers(Arc<Metrics>);

impl Meter for Numbers {
    fn appears(&self, to: &str) {
        self.0.alerting.appears(to);
    }

    fn is_gone(&self, to: &str) {
        self.0.alerting.is_gone(to);
    }

    fn sent(&self, to: &str, count: usize, took: Duration) {
        self.0.alerting.sent(to, count, took);
    }

    fn failed(&self, to: &str, count: usize) {
        self.0.alerting.failed(to, count);
    }

    fn dropped(&self, to: &str, count: usize) {
        self.0.alerting.dropped(to, count);
    }

    fn waiting(&self, to: &str, count: usize) {
        self.0.alerting.waiting(to, count);
    }

    fn confirmed(&self, to: &str, confirmed: usize, of: usize) {
        self.0.alerting.unconfirmed(to, of - confirmed);
    }
}
