//! The metrics page: every name that is promised, in the Prometheus text format and in OpenMetrics.
//!
//! Two sources, one page:
//! - the daemon's own metrics are in a registry of the `prometheus` crate, see [`Metrics`]; their handles are resolved
//!   once;
//! - the series of the probes are written straight from what their tracks hold, see [`page`]. A probe that is gone
//!   has no series left, and nothing has to be removed anywhere.
//!
//! Invariants:
//! - every family has its help and type once, and its series stand together;
//! - all combinations of labels that are known are there from the first second; labels have closed lists of values,
//!   but for the names of probes, which the configuration bounds;
//! - what is not known is absent, and never 0: a window without results has no error ratio.

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

/// Packs a page at the fastest level, which already makes it about a tenth.
pub fn gzip_fast(page: &[u8]) -> io::Result<Vec<u8>> {
    let packed = Vec::with_capacity(page.len() / 8);
    let mut encoder = GzEncoder::new(packed, Compression::fast());
    encoder.write_all(page)?;
    encoder.finish()
}
