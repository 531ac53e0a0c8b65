//! The verdict on a revision: tick by tick, with the evidence.
//!
//! Four paths convict, in this order: pods that crash in a loop (A), endpoints that are down without a break (B), new
//! pods that are down while old ones answer (D), and an error rate that rose (C), shown by an e-value that no burst
//! and no amount of looking can push to its threshold by chance.
//!
//! Invariants:
//! - void is no evidence: it neither convicts nor acquits;
//! - the state has a fixed size, a tick allocates nothing, and it can be saved and restored between any two ticks;
//! - time is counted in ticks from the revision's appearance, so a clock that jumps changes nothing;
//! - once a verdict of rollback has fallen, further ticks change nothing.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "ticks, blocks and counts are small: the rule's own check and the bounds below see to it"
)]

mod bound;
mod counts;
mod direct;
mod finding;
mod inbox;
mod rule;
mod stratum;
mod verification;
mod watch;

pub use bound::upper_bound;
pub use direct::{MAX_ASKED, PodLook, Side};
pub use finding::{Finding, Reason, StratumName, StratumReport, Strongest, Verdict, Why, number};
pub use inbox::Inbox;
pub use rule::{Rule, Unusable};
pub use verification::{Verification, Verified};
pub use watch::Watch;

use serde::{Deserialize, Serialize};

/// The most endpoints of one release.
pub const MAX_ENDPOINTS: usize = 1000;

/// What a sounding says to the judgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Mark {
    /// `.`: the answer was good.
    #[serde(rename = ".")]
    Good,
    /// `x`: it was not.
    #[serde(rename = "x")]
    Bad,
    /// `-`: no evidence either way.
    #[default]
    #[serde(rename = "-")]
    Void,
}

impl Mark {
    /// The character of a mark in streams and recordings.
    pub const fn letter(self) -> char {
        match self {
            Self::Good => '.',
            Self::Bad => 'x',
            Self::Void => '-',
        }
    }

    /// The mark of a character; `None` for any other.
    pub const fn of(letter: char) -> Option<Self> {
        match letter {
            '.' => Some(Self::Good),
            'x' => Some(Self::Bad),
            '-' => Some(Self::Void),
            _ => None,
        }
    }
}

/// What is known when a revision appears.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Start {
    /// The endpoints' names, 1 to [`MAX_ENDPOINTS`].
    pub endpoints: Vec<Box<str>>,
    /// Failures and soundings of each in the hour before, void ones left out; (0, 0) without a baseline.
    pub baseline: Vec<(u64, u64)>,
    /// Whether each endpoint's last three soundings before had all failed.
    pub failing_at_start: Vec<bool>,
    /// Seconds until the rollout was complete; `None` while it is not known, see [`Watch::settled`].
    pub settled_at: Option<f64>,
    /// The strategy stops the old pods before it starts new ones.
    pub expected_downtime: bool,
    /// Whether pods are asked directly as well.
    pub direct: bool,
    /// Counts of users' requests, where they are to be had.
    pub requests: Option<RequestsBefore>,
}

/// Users' requests before the revision appeared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RequestsBefore {
    /// Seconds from one scrape to the next; 1 to 600.
    pub interval_s: f64,
    /// Requests that failed.
    pub failed: u64,
    /// All requests.
    pub total: u64,
}

/// Everything that became known in one tick.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tick<'a> {
    /// One mark for each endpoint, asked through the Service.
    pub marks: &'a [Mark],
    /// What pods answered that were asked directly, at most [`MAX_ASKED`] of each side.
    pub direct: &'a [PodLook<'a>],
    /// States of new pods that are new since the tick before.
    pub pods: &'a [PodState],
    /// Scrapes that came in since the tick before.
    pub scrapes: &'a [Scrape],
}

/// What a revision changed of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Its pod template.
    Template,
    /// Only a ConfigMap or Secret that its pods read.
    Config,
}

/// The state of one pod of the new revision, of a workload that the revision changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodState {
    /// Restarts of its containers since the revision appeared.
    pub restarts: u32,
    /// Whether it waits with the reason CrashLoopBackOff.
    pub crash_loop_back_off: bool,
    /// Whether an old pod of the same workload does the same, or has since the revision appeared.
    pub old_too: bool,
    /// Why it cannot even start, told when that has lasted long enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<Stuck>,
    /// Its workload, as `Deployment web`; empty where that is not known.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub workload: Box<str>,
    /// Its container that is in trouble; empty where that is not known.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub container: Box<str>,
    /// What the revision changed of its workload, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// Why it is not known whether the revision changed its workload, so that a reader can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unknown: Option<Box<str>>,
}

/// Why a pod cannot start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stuck {
    /// An image of it cannot be pulled.
    Image,
    /// A container of it cannot be created, as where a Secret that it needs is missing.
    Container,
}

/// Counts of users' requests in one scrape interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scrape {
    /// Seconds since the revision appeared.
    pub t: f64,
    /// Requests that failed.
    pub failed: u64,
    /// All requests.
    pub total: u64,
}

#[cfg(test)]
mod tests;
