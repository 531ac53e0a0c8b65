//! The whole page, and the series of the probes on it.
//!
//! Every family visits all probes, because its series must stand together. So each probe is copied once, with its lock
//! held for a moment, and the copies are kept while the page is written: under a kilobyte each, about an eighth of
//! their text.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::reasons::{ReasonSet, possible_reasons};
use super::text::{FamilyKind, MetricsText, escaped};
use super::{Metrics, MetricsFormat};
use crate::config::settings::{ProbeConfig, ProbeKind};
use crate::core::probe_result::{Reason, UnknownReason};
use crate::core::probe_stats::{ProbeStatsView, TrackedProbe};
use crate::core::units::{ErrorRate, Moment, ProbeId};
use crate::core::window::{LongWindow, Quantile};

/// A probe on the page. Cheap; make a new one when the probe's settings change.
#[derive(Debug, Clone)]
pub struct ProbeSeries {
    /// `namespace="…",release="…",probe="…"`, or `dependency="…"`, escaped.
    labels: Box<str>,
    possible: ReasonSet,
    probe: Arc<ProbeConfig>,
    tracked_probe: Arc<TrackedProbe>,
}

impl ProbeSeries {
    /// The series of a probe, with its label block rendered.
    pub fn new(tracked_probe: Arc<TrackedProbe>) -> Self {
        let probe = tracked_probe.probe();
        Self {
            labels: label_block(&probe.id),
            possible: possible_reasons(&probe),
            probe,
            tracked_probe,
        }
    }

    /// The label block without braces.
    pub fn labels(&self) -> &str {
        &self.labels
    }

    /// The probe and its statistics.
    pub const fn tracked_probe(&self) -> &Arc<TrackedProbe> {
        &self.tracked_probe
    }
}

fn label_block(id: &ProbeId) -> Box<str> {
    let mut labels = String::new();
    // Writing into a String cannot fail.
    if id.is_dependency() {
        let _ = write!(labels, "dependency=\"{}\"", escaped(id.probe.as_str()));
        return labels.into();
    }
    let _ = write!(
        labels,
        "namespace=\"{}\",release=\"{}\",probe=\"{}\"",
        escaped(id.namespace.as_str()),
        escaped(id.release.as_str()),
        escaped(id.probe.as_str()),
    );
    labels.into()
}

/// Appends a page: the daemon's own families by name, then the families of the probes in a fixed order, each with its
/// series by their labels. `now` is the end of all windows.
pub fn write_page(
    metrics: &Metrics,
    series: &[ProbeSeries],
    now: Moment,
    format: MetricsFormat,
    out: &mut Vec<u8>,
) {
    let mut rows: Vec<ProbeRow> = series
        .iter()
        .map(|series| ProbeRow {
            series,
            view: series.tracked_probe.lock().view(now),
        })
        .collect();
    if !rows.is_sorted_by_key(|row| &row.series.labels) {
        rows.sort_by_key(|row| &row.series.labels);
    }
    out.reserve(ROOM_OWN + rows.iter().map(ProbeRow::room).sum::<usize>());

    let mut text = MetricsText::new(out, format);
    for family in metrics.fan_out() {
        text.gathered(&family);
    }
    if !rows.is_empty() {
        counters(&mut text, &rows);
        latencies(&mut text, &rows);
        windows(&mut text, &rows);
        last_results(&mut text, &rows);
        settings(&mut text, &rows);
    }
    text.end();
}

/// Approximate size of the daemon's own metrics.
const ROOM_OWN: usize = 16 * 1024;

/// Current values of one probe.
struct ProbeRow<'a> {
    series: &'a ProbeSeries,
    view: ProbeStatsView,
}

impl ProbeRow<'_> {
    fn labels(&self) -> &str {
        &self.series.labels
    }

    /// Approximate size of its series, rather too large, so that the page is never reallocated.
    fn room(&self) -> usize {
        let lines = 66 + self.view.latencies.edges.len();
        lines * (self.labels().len() + 58)
    }
}

fn counters(text: &mut MetricsText, rows: &[ProbeRow]) {
    let name = "leadsman_probes_total";
    text.family(name, FamilyKind::Counter, "Results of probes, by outcome.");
    for row in rows {
        let totals = &row.view.totals;
        for (result, count) in [
            ("success", totals.success),
            ("failure", totals.all_bad()),
            ("unknown", totals.all_unknown()),
        ] {
            text.whole(name, row.labels(), Some(("result", result)), count);
        }
    }

    let name = "leadsman_probe_failures_total";
    text.family(name, FamilyKind::Counter, "Failures, by the reason.");
    for row in rows {
        for (reason, &count) in Reason::ALL.iter().zip(&row.view.totals.failure) {
            if count > 0 || row.series.possible.contains(*reason) {
                text.whole(name, row.labels(), Some(("reason", reason.as_str())), count);
            }
        }
    }

    let name = "leadsman_probe_unknown_total";
    text.family(
        name,
        FamilyKind::Counter,
        "Results that say nothing about the target because of trouble of our own, by the reason.",
    );
    for row in rows {
        for (reason, &count) in UnknownReason::ALL.iter().zip(&row.view.totals.unknown) {
            text.whole(name, row.labels(), Some(("reason", reason.as_str())), count);
        }
    }

    let name = "leadsman_probe_missed_total";
    text.family(
        name,
        FamilyKind::Counter,
        "Results that were due and could not start.",
    );
    for row in rows {
        text.whole(name, row.labels(), None, row.view.totals.missed);
    }
}

fn latencies(text: &mut MetricsText, rows: &[ProbeRow]) {
    text.family(
        "leadsman_probe_duration_seconds",
        FamilyKind::Histogram,
        "Latency of successes and failures, from the due time.",
    );
    for row in rows {
        let latencies = &row.view.latencies;
        let bucket = "leadsman_probe_duration_seconds_bucket";
        for (edge, &count) in latencies.edges.iter().zip(&latencies.at_most) {
            text.bucket(bucket, row.labels(), Some(*edge), count);
        }
        text.bucket(bucket, row.labels(), None, latencies.count);
        let sum = "leadsman_probe_duration_seconds_sum";
        text.seconds(sum, row.labels(), None, latencies.sum);
        let count = "leadsman_probe_duration_seconds_count";
        text.whole(count, row.labels(), None, latencies.count);
    }
}

/// The value of the `quantile` label, in the order of [`Quantile::ALL`].
const QUANTILES: [&str; Quantile::ALL.len()] = ["0.5", "0.9", "0.95", "0.99", "0.999"];

fn windows(text: &mut MetricsText, rows: &[ProbeRow]) {
    let name = "leadsman_probe_window_duration_seconds";
    text.family(
        name,
        FamilyKind::Summary,
        "Latency of successes and failures: quantiles over the window where there are enough, sum and count over all.",
    );
    for row in rows {
        for (label, quantile) in QUANTILES.iter().zip(row.view.quantiles) {
            if let Some(latency) = quantile {
                text.seconds(name, row.labels(), Some(("quantile", label)), latency);
            }
        }
        let latencies = &row.view.latencies;
        let sum = "leadsman_probe_window_duration_seconds_sum";
        text.seconds(sum, row.labels(), None, latencies.sum);
        let count = "leadsman_probe_window_duration_seconds_count";
        text.whole(count, row.labels(), None, latencies.count);
    }

    let name = "leadsman_probe_window_results";
    text.family(
        name,
        FamilyKind::Gauge,
        "Successes and failures in the window, behind its quantiles and its error ratio.",
    );
    for row in rows {
        let window = &row.view.window;
        text.whole(name, row.labels(), None, window.success + window.failure);
    }

    let name = "leadsman_probe_window_error_ratio";
    text.family(
        name,
        FamilyKind::Gauge,
        "Share of failures among successes and failures in the window; absent without any.",
    );
    for row in rows {
        ratio(text, name, row, None, row.view.window.error_rate());
    }

    let name = "leadsman_probe_error_ratio";
    text.family(
        name,
        FamilyKind::Gauge,
        "Share of failures among successes and failures over a longer time; absent without any.",
    );
    for row in rows {
        for (span, counts) in LongWindow::ALL.iter().zip(&row.view.long_windows) {
            let window = Some(("window", span.as_str()));
            ratio(text, name, row, window, counts.error_rate());
        }
    }
}

fn ratio(
    text: &mut MetricsText,
    name: &str,
    row: &ProbeRow,
    further: Option<(&str, &str)>,
    rate: Option<ErrorRate>,
) {
    if let Some(rate) = rate {
        text.float(name, row.labels(), further, rate.ratio());
    }
}

fn last_results(text: &mut MetricsText, rows: &[ProbeRow]) {
    let name = "leadsman_probe_success";
    text.family(
        name,
        FamilyKind::Gauge,
        "Whether the last result that was not unknown was good; absent while that is not known: before the first, and \
         after three intervals (at least 10 s) and a timeout without another one.",
    );
    let evidence = || {
        rows.iter()
            .filter_map(|row| Some((row, row.view.evidence?)))
    };
    for (row, evidence) in evidence() {
        text.whole(name, row.labels(), None, u64::from(evidence.success));
    }

    let name = "leadsman_probe_last_success_timestamp_seconds";
    text.family(
        name,
        FamilyKind::Gauge,
        "When the last success ended, in seconds since 1970; absent before the first.",
    );
    for row in rows {
        if let Some(unix) = row.view.last_success_unix {
            let since_1970 = Duration::try_from_secs_f64(unix).unwrap_or_default();
            let whole_millis =
                Duration::from_millis(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX));
            text.seconds(name, row.labels(), None, whole_millis);
        }
    }

    let name = "leadsman_probe_phase_duration_seconds";
    text.family(
        name,
        FamilyKind::Gauge,
        "Where the time of the last result that was not unknown went; absent while leadsman_probe_success is.",
    );
    for (row, evidence) in evidence() {
        for (phase, duration) in evidence.phases.named() {
            text.seconds(name, row.labels(), Some(("phase", phase)), duration);
        }
    }

    let name = "leadsman_probe_http_status_code";
    text.family(
        name,
        FamilyKind::Gauge,
        "HTTP status of the last result that was not unknown, 0 if none came; absent while leadsman_probe_success is.",
    );
    for (row, evidence) in evidence() {
        if matches!(row.series.probe.kind, ProbeKind::Http(_)) {
            let status = evidence.status.unwrap_or(0);
            text.whole(name, row.labels(), None, u64::from(status));
        }
    }

    let name = "leadsman_probe_certificate_expiry_timestamp_seconds";
    text.family(
        name,
        FamilyKind::Gauge,
        "Earliest end of validity in the chain of certificates last seen, in seconds since 1970.",
    );
    for row in rows {
        if let Some(expiry) = row.view.certificate_expiry {
            text.float(name, row.labels(), None, expiry as f64);
        }
    }
}

fn settings(text: &mut MetricsText, rows: &[ProbeRow]) {
    let name = "leadsman_probe_interval_seconds";
    text.family(name, FamilyKind::Gauge, "From one due time to the next.");
    for row in rows {
        text.seconds(name, row.labels(), None, row.series.probe.interval);
    }

    let name = "leadsman_probe_timeout_seconds";
    text.family(name, FamilyKind::Gauge, "How long one result may take.");
    for row in rows {
        text.seconds(name, row.labels(), None, row.series.probe.timeout);
    }
}
