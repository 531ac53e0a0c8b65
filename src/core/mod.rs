//! What Leadsman knows and decides, as pure functions of observations and time.
//!
//! Nothing here reads a clock, opens a socket or awaits: time is an argument. So every decision can be replayed, and
//! tested as a table.

pub mod alerts;
pub mod analysis;
pub mod baseline;
pub mod evidence;
pub mod probe_result;
pub mod probe_stats;
pub mod recording;
pub mod revision_ledger;
pub mod rollout;
pub mod self_check;
pub mod slo;
pub mod units;
pub mod window;
