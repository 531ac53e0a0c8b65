//! People are told: two real Alertmanagers that gossip, and receivers that misbehave.
//!
//! Without Debian's package `prometheus-alertmanager` the tests with real ones say so and do nothing, unless
//! `LEADSMAN_TEST_ALL` is set.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

#[path = "notify/alertmanager.rs"]
mod alertmanager;
#[path = "notify/commands.rs"]
mod commands;
mod program;
#[path = "notify/receivers.rs"]
mod receivers;
#[path = "notify/restart.rs"]
mod restart;
#[path = "notify/slack.rs"]
mod slack;
mod support;
#[path = "notify/webhook.rs"]
mod webhook;
