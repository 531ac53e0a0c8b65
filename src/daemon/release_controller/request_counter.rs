//! Users' requests as evidence: counted before a revision appears, and during its analysis.

use std::time::Duration;

use super::ReleaseController;
use crate::core::analysis::{RequestScrape, RequestsBefore};
use crate::core::units::{Revision, Time};
use crate::prometheus_query;

/// Length of the comparison period before the revision.
const BEFORE: Duration = Duration::from_secs(3600);

/// Interval of counting while the release is idle.
const EVERY: Duration = Duration::from_secs(60);

/// An answer of Prometheus.
pub(super) struct RequestCount {
    /// The analysis that it is for; `None` while the release is idle.
    of: Option<(Revision, Time)>,
    at: Time,
    counts: Result<(u64, u64), String>,
}

impl ReleaseController {
    /// When the next request to Prometheus is due.
    pub(super) fn next_count(&self) -> Option<Time> {
        self.setup.release.requests.as_ref()?;
        self.counting.is_empty().then_some(self.next_count)
    }

    pub(super) fn count_requests(&mut self, now: Time) {
        let Some(settings) = self.setup.release.requests.clone() else {
            return;
        };
        if self.state.rollout.is_absent() || self.state.rollout.is_starting() {
            // What users asked before an absence says nothing of what has come back.
            self.state.counts_since = Some(now);
            self.requests_before = None;
            self.next_count = now + EVERY;
            return;
        }
        let since = self.state.counts_since;
        let before = since.map_or(BEFORE, |since| now.since(since).min(BEFORE));
        let running = self.state.running.as_ref();
        let of = running.map(|running| (running.revision, running.began));
        if of.is_none() && before < EVERY {
            self.next_count = now + EVERY;
            return;
        }
        let (every, span) = match of {
            Some(_) => (settings.interval, settings.interval),
            None if self.state.rollout.phase().candidate().is_none() => (EVERY, before),
            // During a rollback nothing is judged by them.
            None => {
                self.next_count = now + EVERY;
                return;
            }
        };
        self.next_count = now + every;
        self.counting.spawn(async move {
            let counts = prometheus_query::count(&settings, span).await;
            RequestCount {
                of,
                at: now,
                counts,
            }
        });
    }

    /// An analysis has begun: the first count comes after a whole interval.
    pub(super) fn restart_counting(&mut self, now: Time) {
        if let Some(settings) = &self.setup.release.requests {
            self.counting.abort_all();
            self.next_count = now + settings.interval;
        }
    }

    pub(super) fn on_counted(&mut self, counted: RequestCount) {
        let (failed, total) = match counted.counts {
            Ok(counts) => {
                if std::mem::take(&mut self.cannot_count) {
                    tracing::info!(release = %self.setup.release.name, "Users' requests are counted again");
                }
                counts
            }
            Err(why) => {
                if !std::mem::replace(&mut self.cannot_count, true) {
                    tracing::warn!(release = %self.setup.release.name, "Users' requests cannot be counted, and count for nothing meanwhile: {why}");
                }
                if counted.of.is_none() {
                    self.requests_before = None;
                }
                return;
            }
        };
        let Some(interval) = self
            .setup
            .release
            .requests
            .as_ref()
            .map(|settings| settings.interval)
        else {
            return;
        };
        match (counted.of, &mut self.state.running) {
            (None, None) => {
                self.requests_before = Some(RequestsBefore {
                    interval_s: interval.as_secs_f64(),
                    failed,
                    total,
                });
            }
            (Some(of), Some(running)) if of == (running.revision, running.began) => {
                let t = counted.at.since(running.began).as_secs_f64();
                running
                    .tick
                    .scrapes
                    .push(RequestScrape { t, failed, total });
            }
            // It is about what is over.
            _ => {}
        }
    }
}
