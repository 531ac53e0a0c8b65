//! The daemon's own metrics. Their handles are resolved once, so that counting is an atomic addition.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, Result,
};

use super::alerting::AlertingMetrics;
use super::objectives::ObjectiveMetrics;
use super::releases::ReleaseMetrics;
use super::webhook::WebhookMetrics;
use crate::core::probe_result::UnknownReason;

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every member.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The value of the label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

labels! {
    /// What answered an HTTP request.
    Handler {
        /// `/metrics`
        Metrics = "metrics",
        /// `/probe`
        Probe = "probe",
        /// `/-/healthy`
        Healthy = "healthy",
        /// `/-/ready`
        Ready = "ready",
        /// `/api/…`
        Api = "api",
        /// No such path.
        Other = "other",
    }
}

impl Handler {
    /// The usual statuses. They are on the page from the start; the server's code bounds which others can occur.
    const fn usual(self) -> &'static [&'static str] {
        match self {
            Self::Metrics | Self::Healthy | Self::Ready | Self::Api => &["200", "503"],
            Self::Probe => &["200", "400", "403", "503"],
            Self::Other => &["404"],
        }
    }
}

labels! {
    /// Why a request to `/probe` got no probe.
    Refusal {
        /// It names no target.
        MissingTarget = "missing_target",
        /// It names an invalid target.
        InvalidTarget = "bad_target",
        /// It names a target that is neither configured nor allowed.
        TargetNotAllowed = "target_not_allowed",
        /// It names an unknown module.
        UnknownModule = "unknown_module",
        /// Another parameter or header is wrong.
        BadRequest = "bad_request",
        /// More requests than are allowed.
        RateLimited = "rate_limited",
        /// Too many probes are in flight.
        Saturated = "saturated",
    }
}

/// Lateness of probes: from what a good machine does to what makes a result unknown.
const LATENESS_EDGES: [f64; 19] = [
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Writing a page: from one probe to 100 000.
const PAGE_EDGES: [f64; 9] = [1e-4, 5e-4, 1e-3, 5e-3, 0.025, 0.1, 0.25, 1.0, 5.0];

/// The daemon's own metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// How late probes start, in seconds.
    pub lateness: Histogram,
    /// Probes in flight.
    pub in_flight: IntGauge,
    /// Maximum number of probes in flight.
    pub in_flight_limit: IntGauge,
    /// Probes that could not start because too many were in flight.
    pub saturated: IntCounter,
    leader: IntGauge,
    release_leader: IntGaugeVec,
    lease_failures: IntCounter,
    reload_good: IntGauge,
    reload_time: Gauge,
    page_duration: Histogram,
    /// In the order of [`UnknownReason::ALL`].
    trouble: Vec<IntGauge>,
    requests: IntCounterVec,
    /// In the order of [`Refusal::ALL`].
    refusals: Vec<IntCounter>,
    /// The series of releases.
    pub releases: ReleaseMetrics,
    /// The series of alerts.
    pub alerting: AlertingMetrics,
    /// The series of objectives.
    pub objectives: ObjectiveMetrics,
    /// The series of Alertmanager's notifications to us.
    pub webhook: WebhookMetrics,
}

impl Metrics {
    /// All at 0, in a registry of their own.
    ///
    /// # Errors
    ///
    /// If two metrics have the same name, a bug in this file that any test finds.
    pub fn new() -> Result<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;

        let build = add(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "leadsman_build_info",
                    "Always 1; its labels say which build this is.",
                ),
                &["version", "revision", "rustversion"],
            ),
        )?;
        build
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                option_env!("LEADSMAN_REVISION").unwrap_or("unknown"),
                option_env!("LEADSMAN_RUSTVERSION").unwrap_or("unknown"),
            ])
            .set(1);

        let trouble = add(
            &registry,
            IntGaugeVec::new(
                Opts::new(
                    "leadsman_self_check_failing",
                    "Whether results are unknown at present because of this trouble of our own.",
                ),
                &["reason"],
            ),
        )?;
        let requests = add(
            &registry,
            IntCounterVec::new(
                Opts::new("leadsman_http_requests_total", "HTTP requests answered."),
                &["handler", "code"],
            ),
        )?;
        for handler in Handler::ALL {
            for code in handler.usual() {
                requests.with_label_values(&[handler.as_str(), code]);
            }
        }
        let refusals = add(
            &registry,
            IntCounterVec::new(
                Opts::new(
                    "leadsman_probe_requests_refused_total",
                    "Requests to /probe that were answered without a result.",
                ),
                &["reason"],
            ),
        )?;

        Ok(Self {
            lateness: add(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "leadsman_schedule_lateness_seconds",
                        "How long after their due time results started.",
                    )
                    .buckets(LATENESS_EDGES.to_vec()),
                ),
            )?,
            in_flight: add(
                &registry,
                IntGauge::new("leadsman_schedule_in_flight", "Results under way."),
            )?,
            in_flight_limit: add(
                &registry,
                IntGauge::new(
                    "leadsman_schedule_in_flight_limit",
                    "The most results that may be under way.",
                ),
            )?,
            saturated: add(
                &registry,
                IntCounter::new(
                    "leadsman_schedule_saturated_total",
                    "Results that could not start because the most that may be were under way.",
                ),
            )?,
            leader: {
                let leader = add(
                    &registry,
                    IntGauge::new(
                        "leadsman_leader",
                        "Whether this replica acts: rolls back, tells and writes. One alone always does. Where releases are spread over replicas, for how many it acts.",
                    ),
                )?;
                leader.set(1);
                leader
            },
            release_leader: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "leadsman_release_leader",
                        "Whether this replica acts for the release, where releases are spread over replicas.",
                    ),
                    &["namespace", "release"],
                ),
            )?,
            lease_failures: add(
                &registry,
                IntCounter::new(
                    "leadsman_lease_failures_total",
                    "Times that the Lease could not be read or renewed.",
                ),
            )?,
            reload_good: add(
                &registry,
                IntGauge::new(
                    "leadsman_config_last_reload_successful",
                    "Whether the configuration was good when it was last read.",
                ),
            )?,
            reload_time: add(
                &registry,
                Gauge::new(
                    "leadsman_config_last_reload_success_timestamp_seconds",
                    "When a good configuration was last taken up, in seconds since 1970.",
                ),
            )?,
            page_duration: add(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "leadsman_metrics_page_duration_seconds",
                        "How long it took to write the earlier pages of metrics.",
                    )
                    .buckets(PAGE_EDGES.to_vec()),
                ),
            )?,
            trouble: UnknownReason::ALL
                .iter()
                .map(|reason| trouble.with_label_values(&[reason.as_str()]))
                .collect(),
            refusals: Refusal::ALL
                .iter()
                .map(|refusal| refusals.with_label_values(&[refusal.as_str()]))
                .collect(),
            requests,
            releases: ReleaseMetrics::new(&registry)?,
            alerting: AlertingMetrics::new(&registry)?,
            objectives: ObjectiveMetrics::new(&registry)?,
            webhook: WebhookMetrics::new(&registry)?,
            registry,
        })
    }

    /// Notes a reload: whether it succeeded, and when (in seconds since 1970).
    pub fn reloaded(&self, success: bool, unix: f64) {
        self.reload_good.set(i64::from(success));
        if success {
            self.reload_time.set(unix);
        }
    }

    /// Sets how many Leases this replica holds.
    pub fn leadership(&self, leases: usize) {
        self.leader.set(i64::try_from(leases).unwrap_or(i64::MAX));
    }

    /// Sets whether this replica leads a release that has a Lease of its own.
    pub fn leads_release(&self, namespace: &str, release: &str, is_leading: bool) {
        let gauge = self.release_leader.with_label_values(&[namespace, release]);
        gauge.set(i64::from(is_leading));
    }

    /// Removes a release that is no longer configured.
    pub fn forget_release(&self, namespace: &str, release: &str) {
        // A series that is not there is as good as one that is removed.
        let _ = self
            .release_leader
            .remove_label_values(&[namespace, release]);
    }

    /// Counts that the Lease could not be read or renewed.
    pub fn lease_failed(&self) {
        self.lease_failures.inc();
    }

    /// Sets whether this trouble currently makes results unknown.
    pub fn trouble(&self, reason: UnknownReason, now: bool) {
        if let Some(gauge) = self.trouble.get(reason.index()) {
            gauge.set(i64::from(now));
        }
    }

    /// Counts an HTTP request that was answered with this status.
    pub fn request(&self, handler: Handler, status: u16) {
        let code = status.to_string();
        self.requests
            .with_label_values(&[handler.as_str(), code.as_str()])
            .inc();
    }

    /// Counts a request to `/probe` that was refused.
    pub fn refused(&self, refusal: Refusal) {
        if let Some(counter) = self.refusals.get(refusal as usize) {
            counter.inc();
        }
    }

    /// Remembers how long it took to write a page.
    pub fn page_took(&self, duration: Duration) {
        self.page_duration.observe(duration.as_secs_f64());
    }

    /// A copy of all values, in the order of their names.
    pub(super) fn fan_out(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

/// Puts a metric into the registry and hands it back.
pub(super) fn add<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<M>,
) -> Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
