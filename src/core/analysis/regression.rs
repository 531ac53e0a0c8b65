//! The verdict and its reason: numbers, and the sentence for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict on a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// The analysis is over, and the revision passed.
    Healthy,
    /// The analysis is not over.
    #[serde(rename = "Watching")]
    Analyzing,
    /// The revision made things worse.
    Rollback(Regression),
    /// No statement is possible.
    Inconclusive(InconclusiveReason),
}

impl Verdict {
    /// `healthy`, `watching`, `rollback` or `inconclusive`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Analyzing => "watching",
            Self::Rollback(_) => "rollback",
            Self::Inconclusive(_) => "inconclusive",
        }
    }

    /// The reason, as `error_rate:db`; empty if there is none.
    pub fn reason(&self) -> String {
        match self {
            Self::Healthy | Self::Analyzing => String::new(),
            Self::Rollback(regression) => regression.reason.to_string(),
            Self::Inconclusive(why) => why.as_str().to_owned(),
        }
    }
}

/// Why no statement about a revision is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InconclusiveReason {
    /// All endpoints failed before the revision already.
    BaselineBad,
    /// Too few results were usable.
    Coverage,
    /// The rollout was known to be incomplete, or no new pod was met.
    NotRolledOut,
}

impl InconclusiveReason {
    /// As in results and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BaselineBad => "baseline_bad",
            Self::Coverage => "coverage",
            Self::NotRolledOut => "not_rolled_out",
        }
    }
}

/// Why a revision was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegressionReason {
    /// Path A.
    CrashLoop,
    /// New pods cannot start at all.
    CannotStart,
    /// Path E: no new pod of this workload became Ready.
    NotReady(Box<str>),
    /// Path B, all endpoints.
    HardDownAll,
    /// Path B, this endpoint.
    HardDown(Box<str>),
    /// Path D, this endpoint.
    PodsDown(Box<str>),
    /// Path C.
    ErrorRate(StratumName),
    /// Path C over slow answers, if they may reject.
    Latency(StratumName),
}

impl fmt::Display for RegressionReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CrashLoop => f.write_str("crash_loop"),
            Self::CannotStart => f.write_str("cannot_start"),
            Self::NotReady(workload) => write!(f, "not_ready:{workload}"),
            Self::HardDownAll => f.write_str("hard_down_all"),
            Self::HardDown(endpoint) => write!(f, "hard_down:{endpoint}"),
            Self::PodsDown(endpoint) => write!(f, "pods_down:{endpoint}"),
            Self::ErrorRate(stratum) => write!(f, "error_rate:{stratum}"),
            Self::Latency(stratum) => write!(f, "latency:{stratum}"),
        }
    }
}

/// A stream of counts that is judged by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StratumName {
    /// All endpoints together.
    Pool,
    /// One endpoint.
    Endpoint(Box<str>),
    /// Users' requests.
    Requests,
    /// New pods, asked directly.
    NewPods,
}

impl fmt::Display for StratumName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "all endpoints",
            Self::Endpoint(name) => name,
            Self::Requests => "requests",
            Self::NewPods => "new pods",
        })
    }
}

/// A rejected revision: the reason, with every number behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Regression {
    /// The reason.
    pub reason: RegressionReason,
    /// The tick of the verdict, counted from 0.
    pub tick: u32,
    /// Seconds since the revision appeared.
    pub t: f64,
    /// The e-value, if it decided.
    pub e: Option<f64>,
    /// The numbers in words.
    pub text: String,
    /// What would have had to differ for the revision to pass.
    pub otherwise: String,
}

/// Answers are slower than before: a notice, not a verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SlowerAnswers {
    /// The tick in which it became evident.
    pub tick: u32,
    /// Seconds since the revision appeared.
    pub t: f64,
    /// Where.
    pub stratum: StratumName,
    /// The e-value.
    pub e: f64,
    /// The numbers in words.
    pub text: String,
}

/// Current numbers of one stratum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StratumReport {
    /// Its name.
    pub name: StratumName,
    /// Failures within the span of the estimate.
    pub failed: u64,
    /// Outcomes within it.
    pub total: u64,
    /// Failures before.
    pub before_failed: u64,
    /// Outcomes before.
    pub before_total: u64,
    /// Too little was measured before; the rule's rate is assumed.
    pub assumed: bool,
    /// The rate that is tolerated in the open block; `None` before the first.
    pub tolerated: Option<f64>,
    /// Evidence of this stratum alone, as log10 of the e-value.
    pub log10_e: f64,
    /// Blocks whose weight was limited, so that no burst can reject by itself.
    pub clipped_blocks: u32,
}

/// The strongest evidence of an analysis so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StrongestEvidence {
    /// The largest e-value.
    pub e: f64,
    /// Where most of it came from.
    pub stratum: StratumName,
    /// Seconds since the revision appeared.
    pub t: f64,
}

/// The numbers of path C, for its sentence.
pub(super) struct RiseNumbers<'a> {
    pub(super) stratum: &'a StratumName,
    /// `errors`, or `slow answers`.
    pub(super) what: &'static str,
    pub(super) failed: u64,
    pub(super) total: u64,
    pub(super) span_s: f64,
    pub(super) before: (u64, u64),
    pub(super) assumed: Option<f64>,
    /// Old pods' failures and outcomes, if they raise what is tolerated.
    pub(super) old_pods: Option<(u64, u64)>,
    pub(super) margin: f64,
    pub(super) e: f64,
    pub(super) threshold: f64,
    /// Length of the long blocks in seconds, if they decided.
    pub(super) slow_block_s: Option<f64>,
}

impl RiseNumbers<'_> {
    fn before_rate(&self) -> f64 {
        let rate = |(k, n): (u64, u64)| if n == 0 { 0.0 } else { k as f64 / n as f64 };
        let own = self.assumed.unwrap_or_else(|| rate(self.before));
        self.old_pods.map_or(own, |old| own.max(rate(old)))
    }

    pub(super) fn text(&self) -> String {
        let now = share(self.failed, self.total);
        let before = match (self.old_pods, self.assumed) {
            (Some((k, n)), _) => format!("{k}/{n} ({}) of old pods at the same time", share(k, n)),
            (None, Some(assumed)) => {
                format!("no sufficient baseline, {} assumed", percent(assumed))
            }
            (None, None) => {
                let (k, n) = self.before;
                format!("{k}/{n} ({}) before", share(k, n))
            }
        };
        let rate = self.failed as f64 / self.total.max(1) as f64;
        let increase = rate - self.before_rate();
        // Against an assumed rate the estimate may be below it, and the evidence still counts.
        let increase = if increase > self.margin {
            format!(
                "increase {:.1} points > {:.1}",
                increase * 100.0,
                self.margin * 100.0
            )
        } else {
            format!("increase {:.1} points", increase * 100.0)
        };
        let blocks = self
            .slow_block_s
            .map_or_else(String::new, |span| format!(", in blocks of {span:.0} s"));
        format!(
            "{}: {} {}/{} ({now}) in the last {} s vs {before}; {increase}; e-value {} > {:.0}{blocks}",
            self.stratum,
            self.what,
            self.failed,
            self.total,
            self.span_s.round(),
            number(self.e),
            self.threshold,
        )
    }

    pub(super) fn otherwise(&self) -> String {
        let most = ((self.before_rate() + self.margin) * self.total as f64 + 1e-9).floor();
        let of = if self.what == "errors" {
            "failures"
        } else {
            self.what
        };
        format!(
            "With at most {most} {of} among these {} the increase would not have been above {:.1} points, and the \
             revision would have been watched further.",
            self.total,
            self.margin * 100.0
        )
    }
}

/// `23.3 %`, with more digits for small shares.
pub(super) fn share(failed: u64, total: u64) -> String {
    if total == 0 {
        return "none".to_owned();
    }
    percent(failed as f64 / total as f64)
}

pub(super) fn percent(rate: f64) -> String {
    let points = rate * 100.0;
    if points == 0.0 || points >= 1.0 && (points - points.round()).abs() < 0.005 {
        format!("{points:.0} %")
    } else if points >= 1.0 {
        format!("{points:.1} %")
    } else {
        format!("{points:.2} %")
    }
}

/// An e-value as people read it: `310`, `12.4`, `0.77`, `2.4e35`.
pub fn number(e: f64) -> String {
    if e >= 1e6 {
        format!("{e:.1e}")
    } else if e >= 101.0 {
        format!("{e:.0}")
    } else if e >= 10.0 {
        format!("{e:.1}")
    } else {
        format!("{e:.2}")
    }
}
