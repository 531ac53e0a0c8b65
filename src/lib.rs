//! Leadsman probes a running application, judges each new Helm revision against the one before, and rolls the release
//! back when the new one made things worse.
//!
//! This page is the map; `ARCHITECTURE.md` explains it. Words: a *probe* is a configured check; a *probe result* is one
//! outcome of it; a *window* holds the recent results of one probe; a *release* is what Helm installed, and a *revision*
//! one numbered deployment of it; an *analysis* compares a new revision with the one before; a *verdict* is its result,
//! with the evidence.
//!
//! Levels, from the bottom. A folder uses only folders below it, and `tests/structure.rs` holds the code to that:
//! 1. [`core`]: what is known and decided. Pure: no clock, no tokio, no IO; time is an argument.
//! 2. [`config`]: settings, from layers of files, environment and flags, with diagnostics that name the place.
//! 3. [`platform`]: the clock, files, an HTTP client, and the permit to change something.
//! 4. [`kubernetes`] and [`helm`]: how the API server is asked and changed, and Helm's formats.
//! 5. Adapters, each for one thing outside: [`prober`], [`metrics`], [`storage`], [`release`], [`notify`],
//!    [`prometheus_query`].
//! 6. [`http`]: the server: the status page, the API, metrics, probes on request, the webhook.
//! 7. [`daemon`]: the only place that starts long-lived tasks and holds the whole configuration.
//! 8. [`cli`]: the commands.
//!
//! Data flows one way: due time → probe → result → statistics → metrics. Each result of a release also goes to
//! its release controller, which ends a tick each second: results and the state of the cluster → analysis → rollout, a
//! pure state machine → commands → release engine; and after a rollback results → verification.
//!
//! Invariants:
//! - *Unknown is neither success nor failure.* Trouble of our own makes a result unknown.
//! - *The schedule is an open loop.* A probe starts at its due time whether or not the last one has ended, and its
//!   latency counts from the due time. A slot that could not start counts as missed; no result is made up.
//! - *Memory is fixed.* What is kept of a probe does not grow with time, and input from outside is bounded.
//! - *A decision is stored before it is carried out.* A rollback starts only after its phase is on the disk, so a
//!   replica that starts later continues there; a revision is rolled back at most once, and a rollback never.
//! - *There is one way to analyze.* A recording holds what the analysis was given, so it replays to the same end.
//! - *Secrets* are in `config::settings::Secret` or in files, and are never printed.

pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod helm;
pub mod http;
pub mod kubernetes;
pub mod metrics;
pub mod notify;
pub mod platform;
pub mod prober;
pub mod prometheus_query;
pub mod release;
pub mod storage;
