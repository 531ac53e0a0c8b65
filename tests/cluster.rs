//! A real API server with real controllers, a real Helm 3 and Helm 4, and a daemon that guards a release there.
//!
//! `tests/rig/up cargo test --test cluster -- --test-threads=6`; outside the rig every test is left out. Each has a
//! namespace of its own, and waits most of the time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may end where it stands"
)]

#[path = "cluster/asked.rs"]
mod asked;
#[path = "cluster/commands.rs"]
mod commands;
#[path = "cluster/cost.rs"]
mod cost;
#[path = "cluster/decisions.rs"]
mod decisions;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/guarded.rs"]
mod guarded;
#[path = "cluster/kept.rs"]
mod kept;
#[path = "cluster/large.rs"]
mod large;
#[path = "cluster/newcomer.rs"]
mod newcomer;
#[path = "cluster/outages.rs"]
mod outages;
#[path = "cluster/pipelines.rs"]
mod pipelines;
#[path = "cluster/policies.rs"]
mod policies;
mod program;
#[path = "cluster/refused.rs"]
mod refused;
#[path = "cluster/replicas.rs"]
mod replicas;
#[path = "cluster/rig.rs"]
mod rig;
#[path = "cluster/rolled_back.rs"]
mod rolled_back;
#[path = "cluster/rows.rs"]
mod rows;
#[path = "cluster/scale.rs"]
mod scale;
#[path = "cluster/scoped.rs"]
mod scoped;
#[path = "cluster/soak.rs"]
mod soak;
#[path = "cluster/spread.rs"]
mod spread;
#[path = "cluster/station.rs"]
mod station;
#[path = "cluster/tenants.rs"]
mod tenants;
#[path = "cluster/users.rs"]
mod users;
#[path = "cluster/verified.rs"]
mod verified;
#[path = "cluster/workloads.rs"]
mod workloads;
