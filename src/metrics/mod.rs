//! The metrics page: every metric, in the Prometheus text format and in OpenMetrics.
//!
//! Two sources, one page:
//! - the daemon's own metrics are in a registry of the `prometheus` crate, see [`Metrics`]; their handles are resolved
//!   once;
//! - the series of the probes are written straight from their statistics, see [`page`]. The series of a removed probe
//!   vanish with it.
//!
//! Invariants:
//! - every family has its help and type once, and its series stand together;
//! - all known combinations of labels exist from the start; labels have closed lists of values, except the names of
//!   probes, which the configuration bounds;
//! - an unknown value is absent, never 0: a window without results has no error ratio.

mod alerting;
mod format;
mod objectives;
mod own;
pub mod page;
mod reasons;
mod releases;
mod text;
mod webhook;

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

pub use alerting::{AlertCounts, AlertingMetrics};
pub use format::MetricsFormat;
pub use objectives::ObjectiveMetrics;
pub use own::{Handler, Metrics, Refusal};
pub use page::{ProbeSeries, write_page};
pub use reasons::{ReasonSet, possible_reasons};
pub use releases::{OUTCOMES, ObjectGauges, PHASES, ReleaseGauges, ReleaseMetrics};
pub use webhook::{CAPACITY as WEBHOOK_CAPACITY, WaitingAlert, WebhookAction, WebhookMetrics};

/// Compresses a page at the fastest level, to about a tenth.
pub fn gzip_fast(page: &[u8]) -> io::Result<Vec<u8>> {
    let packed = Vec::with_capacity(page.len() / 8);
    let mut encoder = GzEncoder::new(packed, Compression::fast());
    encoder.write_all(page)?;
    encoder.finish()
}
