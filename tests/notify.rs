//! People are told: two real Alertmanagers that gossip, and receivers that misbehave.
//!
//! Without Debian's package `prometheus-alertmanager` the tests with real ones say so and do nothing, unless
//! `LEADSMAN_TEST_ALL` is set.

mod alertmanager;
mod commands;
mod receivers;
mod restart;
mod slack;
mod webhook;
