//! Notifications: Alertmanager, Slack and webhooks.
//!
//! Invariants:
//! - no receiver can delay another one or a rollback: each has a queue and a loop of its own;
//! - every queue has a bound; the oldest entries are dropped first, and counted;
//! - redirects are never followed: credentials go only to the configured address;
//! - a receiver's answer is read up to a bound and not trusted.

mod alert_list;
mod alert_payload;
mod alertmanager;
mod delivery_queue;
mod failure_log;
mod message;

pub use alert_payload::{AlertPayload, AlertStyle, wires};
pub use alertmanager::{AlertmanagerObserver, AlertmanagerPeer, CAPACITY, addresses};
pub use delivery_queue::{DeliveryQueue, MessageFate, MessageObserver};
pub use message::Message;
