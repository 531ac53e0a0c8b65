//! All tests that look from outside and need no cluster, in one program: linked once, run side by side.
//!
//! `cargo test --test integration serve::` runs one part. Those of the cluster are in `cluster.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

mod analyze;
mod chart;
mod commands;
mod config;
mod diagnostics;
mod documents;
mod metrics;
mod notify;
mod page;
mod prober;
mod program;
mod prometheus;
mod schedule;
mod serve;
mod story;
mod structure;
mod support;
mod targets;
mod verdict;
