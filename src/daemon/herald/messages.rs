//! Messages to Slack and webhooks: who gets them, and what of them is stored.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Herald, news};
use crate::clock;
use crate::notify::{Count, Fate, Outbox};
use crate::serve::status::GuardView;

/// News that is remembered, so that it is told once: it is forgotten long after it was fresh.
const MAX_TOLD: usize = 2000;

/// A receiver of messages, and the task that sends to it.
pub(super) struct Posting {
    pub(super) outbox: Arc<Outbox>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
}

impl Herald {
    pub(super) fn open_outboxes(&mut self) {
        for receiver in self.orders.receivers.clone() {
            let waiting = self.kept.waiting.remove(receiver.name).unwrap_or_default();
            let (metrics, name) = (Arc::clone(&self.setup.metrics), receiver.name);
            let changed = Arc::clone(&self.setup.changed);
            let count: Count = Arc::new(move |fate| {
                // What was told is stored, so that a restart does not tell it again.
                changed.notify_one();
                let result = match fate {
                    Fate::Sent => "sent",
                    Fate::Failed => "failed",
                    Fate::Dropped => "dropped",
                };
                metrics.alerting.message(name, result);
            });
            let outbox = Outbox::new(receiver, waiting, count, clock::unix_seconds);
            let stop = CancellationToken::new();
            let ended = self.setup.ended.clone().drop_guard();
            let task = tokio::spawn({
                let (outbox, stop) = (Arc::clone(&outbox), stop.clone());
                async move {
                    outbox.run(stop).await;
                    ended.disarm();
                }
            });
            self.outboxes.push(Posting { outbox, stop, task });
        }
    }

    /// What waits is stored, so that a restart goes on with it.
    pub(super) fn keep_waiting(&mut self) {
        for posting in &self.outboxes {
            let waiting = posting.outbox.waiting();
            let name = posting.outbox.receiver().name;
            self.kept.waiting.insert(name.to_owned(), waiting);
        }
    }

    /// Whether a message left its queue since what waits was stored.
    pub(super) fn has_told(&self) -> bool {
        self.outboxes.iter().any(|posting| {
            let stored = self.kept.waiting.get(posting.outbox.receiver().name);
            posting.outbox.waiting() != stored.map_or(&[][..], Vec::as_slice)
        })
    }

    /// Hands news to those who want it, once. Returns whether there was any.
    pub(super) fn tell_news(&mut self, views: &[Arc<GuardView>]) -> bool {
        if self.outboxes.is_empty() {
            return false;
        }
        let now = self.setup.timeline.now().unix_seconds();
        let page = self.orders.page.as_ref();
        let mut any = false;
        for message in views
            .iter()
            .flat_map(|view| news::of_release(view, page, now))
        {
            let id = message.id();
            if self.kept.told.contains(&id) {
                continue;
            }
            self.kept.told.push_back(id);
            if self.kept.told.len() > MAX_TOLD {
                self.kept.told.pop_front();
            }
            any = true;
            for posting in &self.outboxes {
                if posting.outbox.receiver().kept || !news::is_quiet(&message) {
                    posting.outbox.offer(message.clone());
                }
            }
        }
        any
    }
}
