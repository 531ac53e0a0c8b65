//! Telling people: Alertmanager, Slack and webhooks.
//!
//! Invariants:
//! - nobody who listens can hold up anybody else, nor a rollback: each receiver has a queue and a loop of its own;
//! - every queue has a bound; what is dropped is counted, and the oldest goes first;
//! - a redirect is never followed: credentials go nowhere but to the address that was written;
//! - what a receiver answers is read up to a bound and trusted in nothing.

mod alertmanager;
mod failing;
mod listed;
mod message;
mod outbox;
mod wire;

pub use alertmanager::{AlertmanagerObserver, AlertmanagerPeer, CAPACITY, addresses};
pub use message::Message;
pub use outbox::{DeliveryQueue, MessageFate, MessageObserver};
pub use wire::{AlertPayload, AlertStyle, wires};
