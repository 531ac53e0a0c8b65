//! The rule for a verdict: properties that hold of every stream, and what it does in simulated worlds.
//!
//! `cargo test --release --test integration verdict::goals -- --nocapture` prints the table of false rollbacks and delays
//! beside the goals; with `LEADSMAN_SIMULATE=50` in the environment over fifty times as many releases.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may end where it stands, and its numbers are small"
)]

mod goals;
mod properties;
mod rollout;
mod world;
