//! The rule for a verdict: properties that hold of every stream, and what it does in simulated worlds.
//!
//! `cargo test --release --test integration verdict::goal -- --nocapture` prints how far the goals are met; with
//! `LEADSMAN_SIMULATE=10` in the environment over ten times as many releases.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may end where it stands, and its numbers are small"
)]

mod goals;
mod properties;
mod rollout;
mod world;
