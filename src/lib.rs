//! Leadsman takes soundings of a running application.
//!
//! This page is the map. Words: a *probe* is a configured question; a *sounding* is one answer to it; a *window* is the
//! recent soundings of one probe; a *release* is what is guarded, and a *revision* one numbered deployment of it; a
//! *verdict* is the judgement on a revision, with its evidence.
//!
//! Floors, from the ground up; a module uses only what is below it, and `tests/floors.rs` holds it to that:
//! - ground floor: pure. No clock, no tokio, no socket: time is an argument. [`units`], [`config`], [`sounding`],
//!   [`window`], [`track`], [`doubt`], [`verdict`], [`baseline`], [`ledger`], [`rollout`], [`evidence`], [`recording`],
//!   [`alert`], [`objective`];
//! - the step between: [`clock`], the one place that reads a clock, [`permit`], whether we may change anything,
//!   `api_client`, how the API server is asked and changed, [`files`], files of our own on the disk, and `outgoing`, the
//!   client for servers that we work with;
//! - first floor: each speaks to one thing outside, and they do not know one another (but [`serve`] knows
//!   [`metrics`]): [`probe`], [`metrics`], [`serve`], [`release`], [`store`], [`notify`],
//!   [`requests`], [`review`],
//!   [`lease`];
//! - roof: [`daemon`], the only place that spawns long-lived tasks and holds the whole configuration, and [`cli`].
//!
//! Data flows one way: due time → probe → sounding → track → metrics. Of a guarded release each sounding also goes to
//! its guard, which ends a tick each second: soundings and facts → verdict → rollout, a pure state machine → commands →
//! release engine; and after a rollback soundings → verification.
//!
//! Invariants that everything rests on:
//! - *Unknown is never bad and never good.* Trouble of our own makes a sounding void.
//! - *The schedule is an open loop.* A sounding starts at its due time whether or not the last one has come back, and
//!   its latency counts from the due time. A slot that could not start is counted as missed; none is made up.
//! - *Memory is fixed.* What is kept of a probe does not grow with time, and whatever comes from outside is bounded.
//! - *What is decided is stored before it is done.* A rollback is begun only after its phase is on the disk, so whoever
//!   starts anew goes on there; one revision is turned back at most once, and a rollback never.
//! - *A watch is judged in one way.* What is recorded is what was fed, so a recording judges to the same end.
//! - *Secrets* are in `config::settings::Secret` or in files, and are never printed.

pub mod alert;
mod api_client;
pub mod baseline;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod doubt;
pub mod evidence;
pub mod files;
pub mod lease;
pub mod ledger;
pub mod metrics;
pub mod notify;
pub mod objective;
mod outgoing;
pub mod permit;
pub mod probe;
pub mod recording;
pub mod release;
pub mod requests;
pub mod review;
pub mod rollout;
pub mod serve;
pub mod sounding;
pub mod store;
pub mod track;
pub mod units;
pub mod verdict;
pub mod window;
