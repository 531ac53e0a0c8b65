//! Messages to Slack and webhooks: which receiver gets which, and what of them is stored.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{AlertEvaluator, message_texts};
use crate::config::settings::ReceiverConfig;
use crate::http::status::GuardView;
use crate::notify::Message;
use crate::notify::{DeliveryQueue, MessageFate, MessageObserver};
use crate::platform::clock;

/// Sent messages that are remembered, so that each is sent once. They are forgotten long after they are too old to be
/// sent.
const MAX_TOLD: usize = 2000;

/// A receiver and the task that sends to it.
pub(super) struct ReceiverTask {
    pub(super) delivery_queue: Arc<DeliveryQueue>,
    pub(super) stop: CancellationToken,
    pub(super) task: JoinHandle<()>,
    /// It replaced another receiver at a reload.
    pub(super) is_changed: bool,
    /// The queue of the receiver that it replaced, until its messages have moved here.
    before: Option<Arc<DeliveryQueue>>,
}

impl ReceiverTask {
    /// Waiting messages, the oldest first, including those that the replaced receiver has not handed over yet.
    fn waiting(&self) -> Vec<Message> {
        let before = self.before.as_ref();
        let mut waiting = before.map_or_else(Vec::new, |before| before.waiting());
        waiting.extend(self.delivery_queue.waiting());
        waiting
    }
}

impl AlertEvaluator {
    /// Opens the queues that are not open. A receiver with new settings takes over the messages of the old one after
    /// that has ended: both at once would send a message twice.
    pub(super) fn open_outboxes(&mut self) {
        self.keep_waiting();
        let wanted = self.orders.receivers.clone();
        let (kept, mut changed): (Vec<ReceiverTask>, Vec<ReceiverTask>) =
            std::mem::take(&mut self.outboxes)
                .into_iter()
                .partition(|posting| wanted.contains(posting.delivery_queue.receiver()));
        self.outboxes = kept;
        for posting in &changed {
            posting.delivery_queue.hand_over();
            posting.stop.cancel();
        }
        for receiver in wanted {
            let is_it =
                |posting: &ReceiverTask| posting.delivery_queue.receiver().name == receiver.name;
            if self.outboxes.iter().any(is_it) {
                continue;
            }
            let before = changed.iter().position(is_it);
            let before = before.map(|at| changed.swap_remove(at));
            let posting = self.open(receiver, before);
            self.outboxes.push(posting);
        }
    }

    fn open(&mut self, receiver: ReceiverConfig, before: Option<ReceiverTask>) -> ReceiverTask {
        // Where there was none, what waited when there last was one.
        let waiting = self.kept.waiting.remove(receiver.name);
        let waiting = waiting.filter(|_| before.is_none()).unwrap_or_default();
        let (metrics, name) = (Arc::clone(&self.setup.metrics), receiver.name);
        let changed = Arc::clone(&self.setup.changed);
        let count: MessageObserver = Arc::new(move |fate| {
            // What was told is stored, so that a restart does not tell it again.
            changed.notify_one();
            let result = match fate {
                MessageFate::Sent => "sent",
                MessageFate::Failed => "failed",
                MessageFate::Dropped => "dropped",
            };
            metrics.alerting.message(name, result);
        });
        let permit = self.setup.permit.clone();
        let delivery_queue =
            DeliveryQueue::new(receiver, waiting, count, clock::unix_seconds, permit);
        let stop = CancellationToken::new();
        let ended = self.setup.ended.clone().drop_guard();
        let is_changed = before.is_some();
        let transfer = before
            .as_ref()
            .map(|before| Arc::clone(&before.delivery_queue));
        let task = tokio::spawn({
            let (delivery_queue, stop, halt) =
                (Arc::clone(&delivery_queue), stop.clone(), self.halt.clone());
            async move {
                let all = async {
                    if let Some(before) = before {
                        // It ends when what was on its way has arrived or failed.
                        let _ = before.task.await;
                        delivery_queue.go_on_with(&before.delivery_queue);
                    }
                    delivery_queue.run(stop).await;
                };
                tokio::select! {
                    () = halt.cancelled() => {}
                    () = all => {}
                }
                ended.disarm();
            }
        });
        ReceiverTask {
            delivery_queue,
            stop,
            task,
            is_changed,
            before: transfer,
        }
    }

    /// Copies waiting messages into the stored state, so that a restart sends them.
    pub(super) fn keep_waiting(&mut self) {
        for posting in &self.outboxes {
            let waiting = posting.waiting();
            let name = posting.delivery_queue.receiver().name;
            self.kept.waiting.insert(name.to_owned(), waiting);
        }
    }

    /// Whether a message has left its queue since the waiting messages were last stored.
    pub(super) fn has_told(&self) -> bool {
        self.outboxes.iter().any(|posting| {
            let stored = self
                .kept
                .waiting
                .get(posting.delivery_queue.receiver().name);
            posting.waiting() != stored.map_or(&[][..], Vec::as_slice)
        })
    }

    /// Queues each new message once for the receivers that want it. Returns whether there was one.
    pub(super) fn tell_news(&mut self, views: &[Arc<GuardView>]) -> bool {
        if self.outboxes.is_empty() {
            return false;
        }
        let now = self.setup.timeline.now().unix_seconds();
        let page = self.orders.page.as_ref();
        let mut any = false;
        for message in views
            .iter()
            .flat_map(|view| message_texts::of_release(view, page, now))
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
                if posting.delivery_queue.receiver().kept || !message_texts::is_quiet(&message) {
                    posting.delivery_queue.offer(message.clone());
                }
            }
        }
        any
    }
}
