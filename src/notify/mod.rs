//! Telling people: Alertmanager, Slack and webhooks.
//!
//! Invariants:
//! - nobody who listens can hold up anybody else, nor a rollback: each receiver has a queue and a loop of its own;
//! - every queue has a bound; what is dropped is counted, and the oldest goes first;
//! - a redirect is never followed: credentials go nowhere but to the address that was written;
//! - what a receiver answers is read up to a bound and trusted in nothing.

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
