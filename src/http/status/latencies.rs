//! View of the latencies of an analysis.

use serde::Serialize;

/// The distributions of the analysis that runs, or of the last one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatenciesView {
    /// The revision that is, or was, judged.
    pub revision: u32,
    /// Whether its analysis has ended.
    pub is_over: bool,
    /// The probes of which there is something to compare, in their order.
    pub probes: Vec<ProbeLatenciesView>,
}

/// The distributions of one probe, on one scale.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProbeLatenciesView {
    /// Its name.
    pub probe: String,
    /// The edges of the columns in seconds: one more than there are columns. Each column is about as wide as the others
    /// on a logarithmic scale.
    pub edges_s: Vec<f64>,
    /// Those that have answers.
    pub distributions: Vec<DistributionView>,
}

/// How long some good answers took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistributionView {
    /// Whose: `before` or `since` the revision appeared, through the Service; `old_pods` or `new_pods`, asked directly.
    pub of: &'static str,
    /// How many there are.
    pub answers: u64,
    /// Quantiles in seconds, right to an eighth; `None` where there are too few answers.
    pub p50_s: Option<f64>,
    /// The same.
    pub p90_s: Option<f64>,
    /// The same.
    pub p95_s: Option<f64>,
    /// The same.
    pub p99_s: Option<f64>,
    /// Answers in each column.
    pub counts: Vec<u64>,
}
