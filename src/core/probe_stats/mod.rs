//! Statistics of one probe, as shown by the metrics page and the API.
//!
//! Invariants:
//! - Memory does not grow with time; recording a success allocates nothing.
//! - Counters never decrease while the statistics live, not even when the probe's settings change. Only a histogram
//!   with new edges starts from zero, because its counts cannot be redistributed.
//! - An unknown result is counted and shown as the last one, and changes nothing else: no latencies, no last success,
//!   no number of failures in a row.
//! - What the last success or failure says is valid only for a while: see [`ProbeStats::known_for`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::settings::ProbeConfig;
use crate::core::probe_result::{
    HttpVersion, Outcome, PhaseTimes, ProbeResult, Reason, UnknownReason,
};
use crate::core::units::Moment;
use crate::core::window::{
    Counts, LongWindow, LongWindows, PackedResult, Quantile, ResultWeight, WeightedCounts, Window,
    WindowCounts,
};

/// How many results [`ProbeStats::recent`] goes back: a small chart's worth, at four bytes each.
pub const RECENT: usize = 60;

/// The edges that every latency histogram has, in milliseconds, so that probes can be added up. 5 s and 10 s are
/// common timeouts.
const COMMON_EDGES_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// The common edges, the latency objective and the timeout.
pub const MAX_EDGES: usize = COMMON_EDGES_MS.len() + 2;

/// What is remembered of one probe.
#[derive(Debug)]
pub struct ProbeStats {
    window: Window,
    long_windows: LongWindows,
    /// What results count in the long spans now, and what was counted there.
    weight: ResultWeight,
    weighted: WeightedCounts,
    /// Results within the promised latency, where one is promised.
    slow: Option<Box<LatencySli>>,
    totals: ProbeTotals,
    /// Ascending; shared with the views.
    edges: Arc<[Duration]>,
    /// How many latencies are above the edge before and not above this one; the last is above all edges.
    buckets: [u64; MAX_EDGES + 1],
    latency_sum: Duration,
    recent: [PackedResult; RECENT],
    /// How many were ever put into `recent`.
    recent_count: u64,
    last: Option<LastResult>,
    evidence: Option<(Moment, LastKnown)>,
    /// How long that is the state of the probe.
    known_for: Duration,
    last_success_unix: Option<f64>,
    consecutive_failures: u32,
    certificate_expiry: Option<i64>,
}

/// Counts since the probe was first configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProbeTotals {
    /// Good results.
    pub success: u64,
    /// Failures, in the order of [`Reason::ALL`].
    pub failure: [u64; Reason::COUNT],
    /// Unknown results, in the order of [`UnknownReason::ALL`].
    pub unknown: [u64; UnknownReason::COUNT],
    /// Slots of the schedule that could not start.
    pub missed: u64,
}

impl ProbeTotals {
    /// Failures of every reason.
    pub fn all_bad(&self) -> u64 {
        self.failure.iter().sum()
    }

    /// Unknown results of every reason.
    pub fn all_unknown(&self) -> u64 {
        self.unknown.iter().sum()
    }
}

/// The newest result, whatever its outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct LastResult {
    /// When it was recorded, in seconds since 1970.
    pub unix: f64,
    /// Success, failure or unknown.
    pub outcome: Outcome,
    /// From the due time to the end.
    pub latency: Duration,
    /// Where the time went.
    pub phases: PhaseTimes,
    /// The HTTP status, if one came.
    pub status: Option<u16>,
    /// The version of HTTP, if an answer came.
    pub http_version: Option<HttpVersion>,
    /// Why it is not good, in words.
    pub explanation: Option<Arc<str>>,
}

/// What the newest result that was not unknown says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastKnown {
    /// Whether it was good.
    pub success: bool,
    /// Where the time went.
    pub phases: PhaseTimes,
    /// The HTTP status, if one came.
    pub status: Option<u16>,
}

/// A histogram of the latencies of all successes and failures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Ascending; at most [`MAX_EDGES`].
    pub edges: Arc<[Duration]>,
    /// How many are not above the edge of the same place; further places are meaningless.
    pub at_most: [u64; MAX_EDGES],
    /// How many there are.
    pub count: u64,
    /// The sum of them.
    pub sum: Duration,
}

/// A copy of the statistics for display. Made without allocation.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeStatsView {
    /// Since the probe was first configured.
    pub totals: ProbeTotals,
    /// Since then, or since the edges last changed.
    pub latencies: LatencyHistogram,
    /// Over the rolling window.
    pub window: WindowCounts,
    /// Of the window's latencies, in the order of [`Quantile::ALL`]; `None` where there are too few.
    pub quantiles: [Option<Duration>; Quantile::ALL.len()],
    /// Over the long spans, in the order of [`LongWindow::ALL`].
    pub long_windows: [Counts; LongWindow::ALL.len()],
    /// The newest result; `None` before the first.
    pub last: Option<LastResult>,
    /// The newest that was not unknown; `None` before the first, and when it is too old to say how the target is now.
    pub evidence: Option<LastKnown>,
    /// When the last good one was recorded, in seconds since 1970.
    pub last_success_unix: Option<f64>,
    /// Failures since the last good one.
    pub consecutive_failures: u32,
    /// The earliest end of validity in the chain that was last seen, in seconds since 1970.
    pub certificate_expiry: Option<i64>,
}

impl ProbeStats {
    /// Nothing is remembered yet of this probe.
    pub fn new(probe: &ProbeConfig, now: Moment) -> Self {
        let mut window = Window::new(probe.window, room(probe));
        window.counts(now);
        Self {
            window,
            long_windows: LongWindows::default(),
            weight: ResultWeight::default(),
            weighted: WeightedCounts::default(),
            slow: LatencySli::of(probe),
            totals: ProbeTotals::default(),
            edges: edges(probe),
            buckets: [0; MAX_EDGES + 1],
            latency_sum: Duration::ZERO,
            recent: [PackedResult::default(); RECENT],
            recent_count: 0,
            last: None,
            evidence: None,
            known_for: Self::known_for(probe),
            last_success_unix: None,
            consecutive_failures: 0,
            certificate_expiry: None,
        }
    }

    /// How long the last good or failure says how the target is: three intervals, at least 10 s, and the timeout of the
    /// next one. Without a newer one after that, nothing is known.
    pub fn known_for(probe: &ProbeConfig) -> Duration {
        crate::core::self_check::SelfCheck::freshness(probe.interval).saturating_add(probe.timeout)
    }

    /// Takes up changed settings. Counters and results stay; a window of another span or interval takes over what the
    /// old one holds.
    pub fn adopt(&mut self, probe: &ProbeConfig) {
        self.known_for = Self::known_for(probe);
        let room = room(probe);
        if (self.window.span(), self.window.most()) != (probe.window, Window::bounded(room)) {
            self.window = self.window.carried_over(probe.window, room);
        }
        let promised = self.slow.as_ref().map(|slow| slow.promised);
        if promised != probe.latency_objective {
            self.slow = LatencySli::of(probe);
        }
        let edges = edges(probe);
        if self.edges != edges {
            self.edges = edges;
            self.buckets = [0; MAX_EDGES + 1];
            self.latency_sum = Duration::ZERO;
        }
    }

    /// Forgets what was seen of the answers, because another target is asked now.
    pub fn forget_answers(&mut self) {
        self.last = None;
        self.evidence = None;
        self.certificate_expiry = None;
    }

    /// The counters of the long spans, to be stored.
    pub const fn long_windows(&self) -> &LongWindows {
        &self.long_windows
    }

    /// Goes on with counters of the long spans that were stored.
    pub fn restore_long_windows(&mut self, long_windows: LongWindows) {
        self.long_windows = long_windows;
    }

    /// The counters of results within the promised latency, and what is promised; to be stored.
    pub fn slow(&self) -> Option<(Duration, &LongWindows)> {
        self.slow
            .as_ref()
            .map(|slow| (slow.promised, &slow.long_windows))
    }

    /// Goes on with counters of the promised latency that were stored, when the same is promised.
    pub fn restore_slow(&mut self, promised: Duration, long_windows: LongWindows) {
        if let Some(slow) = self.slow.as_mut().filter(|slow| slow.promised == promised) {
            slow.long_windows = long_windows;
        }
    }

    /// Remembers a result; `unix` is the time of day of its end, in seconds since 1970.
    pub fn record(&mut self, result: &ProbeResult, unix: f64) {
        let (at, latency, outcome) = (result.finished, result.latency(), result.outcome);
        self.window.record(at, latency, outcome);
        let times = self.weighted.count(outcome, self.weight);
        self.long_windows.record_times(at, outcome, times);
        if let Some(slow) = &mut self.slow {
            slow.record(at, latency, outcome, self.weight);
        }
        self.recent[place(self.recent_count)] = PackedResult::new(latency, outcome);
        self.recent_count += 1;
        self.last = Some(LastResult {
            unix,
            outcome,
            latency,
            phases: result.phases,
            status: result.answer.status,
            http_version: result.answer.http_version,
            explanation: result.explanation.as_deref().map(Arc::from),
        });
        match outcome {
            Outcome::Success => {
                self.totals.success += 1;
                self.consecutive_failures = 0;
                self.last_success_unix = Some(unix);
            }
            Outcome::Failure(reason) => {
                self.totals.failure[reason.index()] += 1;
                self.consecutive_failures = self.consecutive_failures.saturating_add(1);
            }
            Outcome::Unknown(reason) => {
                self.totals.unknown[reason.index()] += 1;
                return;
            }
        }
        let evidence = LastKnown {
            success: outcome == Outcome::Success,
            phases: result.phases,
            status: result.answer.status,
        };
        self.evidence = Some((at, evidence));
        if let Some(tls) = &result.answer.tls {
            self.certificate_expiry = Some(tls.earliest_expiry);
        }
        let bucket = self.edges.partition_point(|edge| *edge < latency);
        self.buckets[bucket] += 1;
        self.latency_sum = self.latency_sum.saturating_add(latency);
    }

    /// Counts slots of the schedule that could not start.
    pub fn missed(&mut self, now: Moment, count: u32) {
        self.totals.missed = self.totals.missed.saturating_add(u64::from(count));
        self.window.missed(now, count);
    }

    /// Failures since the last good one.
    pub const fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures
    }

    /// Successes and failures since the probe was first configured.
    pub fn judged(&self) -> (u64, u64) {
        (self.totals.success, self.totals.all_bad())
    }

    /// From now on results are taken at this interval, and count in the long spans for as much of the probe's own as
    /// that is.
    pub fn taken_every(&mut self, interval: Duration, own: Duration) {
        self.weight = ResultWeight::of(interval, own);
    }

    /// Successes and failures as the long spans count them, since the probe was first configured.
    pub const fn weighted(&self) -> (u64, u64) {
        self.weighted.counts()
    }

    /// The same for results within the promised latency, and above it; `None` without a latency objective.
    pub fn weighted_slow(&self) -> Option<(u64, u64)> {
        self.slow.as_ref().map(|slow| slow.weighted.counts())
    }

    /// Whether any result came yet.
    pub const fn is_known(&self) -> bool {
        self.last.is_some()
    }

    /// Why the newest result is not good, in words.
    pub fn why_not(&self) -> Option<Arc<str>> {
        let last = self
            .last
            .as_ref()
            .filter(|last| last.outcome != Outcome::Success)?;
        last.explanation.clone()
    }

    /// Counts over one of the long spans.
    pub fn counts(&self, span: LongWindow, now: Moment) -> Counts {
        self.long_windows.count(span, now)
    }

    /// What is remembered, as of now.
    pub fn view(&mut self, now: Moment) -> ProbeStatsView {
        let mut at_most = [0; MAX_EDGES];
        let mut below = 0;
        for (sum, bucket) in at_most.iter_mut().zip(&self.buckets[..self.edges.len()]) {
            below += bucket;
            *sum = below;
        }
        ProbeStatsView {
            totals: self.totals,
            latencies: LatencyHistogram {
                edges: Arc::clone(&self.edges),
                at_most,
                count: self.buckets.iter().sum(),
                sum: self.latency_sum,
            },
            window: self.window.counts(now),
            quantiles: self.window.quantiles(now),
            long_windows: self.long_windows.all(now),
            last: self.last.clone(),
            evidence: self
                .evidence
                .filter(|(at, _)| now.since(*at) <= self.known_for)
                .map(|(_, evidence)| evidence),
            last_success_unix: self.last_success_unix,
            consecutive_failures: self.consecutive_failures,
            certificate_expiry: self.certificate_expiry,
        }
    }

    /// The last results, at most [`RECENT`], from the oldest: outcome and latency.
    pub fn recent(&self) -> impl Iterator<Item = (Outcome, Duration)> {
        let first = self.recent_count.saturating_sub(RECENT as u64);
        (first..self.recent_count).map(|number| {
            let packed = self.recent[place(number)];
            (packed.outcome(), packed.latency())
        })
    }

    /// The rolling window, for questions that a [`ProbeStatsView`] does not answer.
    pub const fn window(&mut self) -> &mut Window {
        &mut self.window
    }

    /// Bytes of memory, without the last explanation.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() - size_of::<Window>() - size_of::<LongWindows>()
            + self.window.bytes()
            + self.long_windows.bytes()
            + size_of_val(&*self.edges)
    }
}

/// Results, good or bad, by whether they came within the promised latency: as the histogram has them.
#[derive(Debug)]
struct LatencySli {
    promised: Duration,
    long_windows: LongWindows,
    weighted: WeightedCounts,
}

impl LatencySli {
    fn of(probe: &ProbeConfig) -> Option<Box<Self>> {
        let promised = probe.latency_objective?;
        let long_windows = LongWindows::default();
        let weighted = WeightedCounts::default();
        Some(Box::new(Self {
            promised,
            long_windows,
            weighted,
        }))
    }

    fn record(&mut self, at: Moment, latency: Duration, outcome: Outcome, weight: ResultWeight) {
        let counted = match outcome {
            Outcome::Unknown(_) => outcome,
            Outcome::Success | Outcome::Failure(_) if latency <= self.promised => Outcome::Success,
            Outcome::Success | Outcome::Failure(_) => Outcome::Failure(Reason::TooSlow),
        };
        let times = self.weighted.count(counted, weight);
        self.long_windows.record_times(at, counted, times);
    }
}

/// Where the result with this number is in `recent`.
const fn place(number: u64) -> usize {
    // A remainder of 60 fits every integer.
    #[expect(clippy::cast_possible_truncation)]
    let place = (number % RECENT as u64) as usize;
    place
}

fn room(probe: &ProbeConfig) -> usize {
    Window::room(
        probe.window,
        probe.shortest_interval(),
        probe.max_in_flight(),
    )
}

fn edges(probe: &ProbeConfig) -> Arc<[Duration]> {
    let mut edges: Vec<_> = COMMON_EDGES_MS.map(Duration::from_millis).into();
    edges.push(probe.timeout);
    edges.extend(probe.latency_objective);
    edges.sort_unstable();
    edges.dedup();
    edges.into()
}

/// A probe and what is remembered of it, shared by those who take results and those who show them.
#[derive(Debug)]
pub struct TrackedProbe {
    probe: Mutex<Arc<ProbeConfig>>,
    stats: Mutex<ProbeStats>,
}

impl TrackedProbe {
    /// Nothing is remembered yet of this probe.
    pub fn new(probe: Arc<ProbeConfig>, now: Moment) -> Self {
        Self {
            stats: Mutex::new(ProbeStats::new(&probe, now)),
            probe: Mutex::new(probe),
        }
    }

    /// The settings in force.
    pub fn probe(&self) -> Arc<ProbeConfig> {
        Arc::clone(&self.probe.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is remembered. Hold it for a moment only; nothing in it is left half done by a panic, so that a poisoned
    /// lock is taken all the same.
    pub fn lock(&self) -> MutexGuard<'_, ProbeStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up changed settings of the same probe.
    pub fn adopt(&self, probe: Arc<ProbeConfig>) {
        let mut stats = self.lock();
        stats.adopt(&probe);
        let mut current = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        if current.target != probe.target {
            stats.forget_answers();
        }
        *current = probe;
    }
}

#[cfg(test)]
mod tests;
