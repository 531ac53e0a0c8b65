//! The rule for a verdict: properties that hold of every stream, and what it does in simulated worlds.
//!
//! `cargo test --release --test verdict goal -- --nocapture` prints how far the goals are met; with
//! `LEADSMAN_SIMULATE=10` in the environment over ten times as many releases.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test may end where it stands, and its numbers are small"
)]

#[path = "verdict/goals.rs"]
mod goals;
#[path = "verdict/properties.rs"]
mod properties;
#[path = "verdict/rollout.rs"]
mod rollout;
#[path = "verdict/world.rs"]
mod world;
