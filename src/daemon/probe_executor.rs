//! Runs probes: from a due time to a recorded result.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::named;
use crate::config::settings::{ProbeConfig, Settings};
use crate::core::probe_result::{Outcome, PhaseTimes, ProbeResult, ResponseFacts, UnknownReason};
use crate::core::probe_stats::TrackedProbe;
use crate::core::self_check::{Heartbeat, SelfCheck};
use crate::core::units::Moment;
use crate::core::units::{Namespace, ProbeId, ProbeName, ReleaseName};
use crate::metrics::Metrics;
use crate::platform::clock;
use crate::prober::schedule::HeartbeatCell;
use crate::prober::{self, Prober};

/// A configured probe with its prober and statistics.
pub(super) struct ProbeTask {
    pub(super) probe: Arc<ProbeConfig>,
    pub(super) tracked_probe: Arc<TrackedProbe>,
    pub(super) is_control: bool,
    prober: Prober,
    in_flight: AtomicU32,
    max_in_flight: u32,
    /// The last outcome that was logged; only changes are logged.
    said: AtomicU8,
}

/// Minimum time between log lines about our own trouble.
const LOOK_EVERY_NANOS: u64 = 1_000_000_000;

const SAID_NOTHING: u8 = 0;
const SAID_GOOD: u8 = 1;
const SAID_BAD: u8 = 2;

impl ProbeTask {
    pub(super) fn new(
        probe: Arc<ProbeConfig>,
        prober: Prober,
        tracked_probe: Arc<TrackedProbe>,
        is_control: bool,
    ) -> Self {
        let max_in_flight = probe.max_in_flight();
        Self {
            probe,
            tracked_probe,
            is_control,
            prober,
            in_flight: AtomicU32::new(0),
            max_in_flight,
            said: AtomicU8::new(SAID_NOTHING),
        }
    }

    /// Logs changes of state only, not each result. Unknown is not a state: it says nothing about the target.
    fn log_change(&self, result: &ProbeResult) {
        let now = match result.outcome {
            Outcome::Success => SAID_GOOD,
            Outcome::Failure(_) => SAID_BAD,
            Outcome::Unknown(_) => return,
        };
        let before = self.said.swap(now, Ordering::Relaxed);
        if before == now {
            return;
        }
        let id = &self.probe.id;
        let latency = result.latency();
        match result.outcome {
            Outcome::Success if before == SAID_NOTHING => {
                tracing::info!(namespace = %id.namespace, release = %id.release, probe = %id.probe, ?latency,
                    "Probe answers");
            }
            Outcome::Success => {
                tracing::info!(namespace = %id.namespace, release = %id.release, probe = %id.probe, ?latency,
                    "Probe recovered");
            }
            Outcome::Failure(reason) => {
                let why = result.explanation.as_deref().unwrap_or("");
                tracing::warn!(namespace = %id.namespace, release = %id.release, probe = %id.probe,
                    reason = reason.as_str(), why, ?latency, "Probe failing");
            }
            Outcome::Unknown(_) => {}
        }
    }
}

/// What a probe checks, from the point of view of a release controller.
#[derive(Clone)]
pub(super) enum ProbeSubject {
    /// Index of the probe in the release.
    Endpoint(usize),
    /// A dependency that the release needs.
    Dependency(ProbeName),
}

/// A probe result as sent to a release controller.
pub(super) struct ProbeResultMsg {
    pub(super) of: ProbeSubject,
    /// Outcome after the self-check.
    pub(super) outcome: Outcome,
    /// From the due time to the end.
    pub(super) latency: Duration,
    /// Set if a rate limit answered: how long to wait before the next request.
    pub(super) limited: Option<Duration>,
    /// Whether no name server answered.
    pub(super) unanswered: bool,
}

/// A release controller that receives the results of a probe.
pub(super) struct Subscriber {
    pub(super) of: ProbeSubject,
    pub(super) to: mpsc::Sender<ProbeResultMsg>,
}

/// Everything that all probes share.
pub(super) struct ProbeExecutor {
    metrics: Arc<Metrics>,
    dependencies: Arc<prober::ProberContext>,
    runtime: Handle,
    tasks: TaskTracker,
    /// Drops probes that outlast the stop.
    drop_all: CancellationToken,
    self_check: Mutex<SelfCheck>,
    troubles: Mutex<Vec<UnknownReason>>,
    /// When an unknown result last led to a check of our troubles.
    looked: AtomicU64,
    heartbeat: OnceLock<HeartbeatCell>,
    in_flight: AtomicUsize,
    max_in_flight: AtomicUsize,
    listeners: RwLock<HashMap<ProbeId, Vec<Subscriber>>>,
    /// Releases, as `shop/backend`, and whether each is rejected or failing.
    suspects: RwLock<HashMap<Box<str>, bool>>,
    late_after: Mutex<Duration>,
    /// Exhausted budgets by namespace and release.
    spent: Mutex<BTreeMap<(String, String), BTreeSet<String>>>,
}

impl ProbeExecutor {
    pub(super) fn new(
        settings: &Settings,
        metrics: Arc<Metrics>,
        dependencies: Arc<prober::ProberContext>,
    ) -> Self {
        Self {
            metrics,
            dependencies,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            drop_all: CancellationToken::new(),
            self_check: Mutex::new(SelfCheck::new(&settings.self_check, std::iter::empty())),
            troubles: Mutex::new(Vec::new()),
            looked: AtomicU64::new(0),
            heartbeat: OnceLock::new(),
            in_flight: AtomicUsize::new(0),
            max_in_flight: AtomicUsize::new(settings.max_in_flight),
            listeners: RwLock::default(),
            suspects: RwLock::default(),
            late_after: Mutex::new(settings.self_check.late_after),
            spent: Mutex::default(),
        }
    }

    /// Sets whether a budget of a release is exhausted. The name is built only if needed: this is called each second
    /// for each budget.
    pub(super) fn is_spent(
        &self,
        namespace: &str,
        release: &str,
        what: impl FnOnce() -> String,
        yes: bool,
    ) {
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        if !yes && spent.is_empty() {
            return;
        }
        let of = (namespace.to_owned(), release.to_owned());
        if yes {
            spent.entry(of).or_default().insert(what());
        } else if let Some(budgets) = spent.get_mut(&of) {
            budgets.remove(&what());
        }
    }

    /// Exhausted budgets of a release.
    pub(super) fn spent_of(
        &self,
        namespace: &Namespace,
        release: &ReleaseName,
    ) -> BTreeSet<String> {
        let spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let of = (namespace.to_string(), release.to_string());
        spent.get(&of).cloned().unwrap_or_default()
    }

    /// Connects the schedule's heartbeat, once there is a schedule.
    pub(super) fn follow(&self, heartbeat_cell: HeartbeatCell) {
        // Called once, by the start.
        let _ = self.heartbeat.set(heartbeat_cell);
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(super) fn dependencies(&self) -> &Arc<prober::ProberContext> {
        &self.dependencies
    }

    /// Replaces all subscribers.
    pub(super) fn listen(&self, listeners: HashMap<ProbeId, Vec<Subscriber>>) {
        *self
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner) = listeners;
    }

    fn tell(&self, id: &ProbeId, result: &ProbeResult) {
        let listeners = self
            .listeners
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        for listener in listeners.get(id).into_iter().flatten() {
            // A guard that cannot keep up hears nothing, which is unknown. It is told thousands in advance.
            let _ = listener.to.try_send(ProbeResultMsg {
                of: listener.of.clone(),
                outcome: result.outcome,
                latency: result.latency(),
                limited: result.answer.limited,
                unanswered: result.answer.unanswered,
            });
        }
    }

    /// Sets whether a release is rejected or failing, which excuses failures of releases that need it. `None`: unknown
    /// here.
    pub(super) fn suspect(&self, release: &str, is_suspect: Option<bool>) {
        if self.is_suspect(release) == is_suspect {
            return;
        }
        let mut suspects = self
            .suspects
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        match is_suspect {
            Some(is_suspect) => suspects.insert(release.into(), is_suspect),
            None => suspects.remove(release),
        };
    }

    /// Whether a release is rejected or failing; `None` if no controller here knows.
    pub(super) fn is_suspect(&self, release: &str) -> Option<bool> {
        let suspects = self.suspects.read().unwrap_or_else(PoisonError::into_inner);
        suspects.get(release).copied()
    }

    /// How late a probe may start or end before the delay counts as ours.
    pub(super) fn late_after(&self) -> Duration {
        *self
            .late_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of the self-check troubles in force.
    pub(super) fn troubles(&self) -> Vec<&'static str> {
        let self_check = self
            .self_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self_check
            .troubles(clock::now())
            .map(UnknownReason::as_str)
            .collect()
    }

    /// Whether our own network is suspect, so that nothing is known about any target. A late result, or one without a
    /// file descriptor, is unknown by itself and says nothing about others.
    pub(super) fn is_blind(&self) -> bool {
        let self_check = self
            .self_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self_check
            .troubles(clock::now())
            .any(|reason| matches!(reason, UnknownReason::AllTargets | UnknownReason::Control))
    }

    pub(super) fn adopt(&self, self_check: SelfCheck, late_after: Duration, max_in_flight: usize) {
        *self
            .late_after
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = late_after;
        *self
            .self_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self_check;
        self.max_in_flight.store(max_in_flight, Ordering::Relaxed);
        self.metrics
            .in_flight_limit
            .set(i64::try_from(max_in_flight).unwrap_or(i64::MAX));
    }

    /// Starts the probe that is due, or counts the slot as missed. Called by the schedule's thread, so it never waits.
    pub(super) fn begin(self: &Arc<Self>, runner: &Arc<ProbeTask>, due: Moment, missed: u64) {
        if missed > 0 {
            runner
                .tracked_probe
                .lock()
                .missed(due, u32::try_from(missed).unwrap_or(u32::MAX));
        }
        let mine = runner.in_flight.fetch_add(1, Ordering::AcqRel);
        let all = self.in_flight.fetch_add(1, Ordering::AcqRel);
        let saturated = all >= self.max_in_flight.load(Ordering::Relaxed);
        let ticket = InFlightSlot {
            executor: Arc::clone(self),
            runner: Arc::clone(runner),
            due,
            started: None,
        };
        if saturated {
            self.metrics.saturated.inc();
        }
        if mine >= runner.max_in_flight || saturated {
            runner.tracked_probe.lock().missed(due, 1);
            return; // the ticket gives the places back
        }
        self.tasks.spawn_on(ticket.take(), &self.runtime);
    }

    fn record(&self, runner: &ProbeTask, mut result: ProbeResult) {
        let now = clock::now();
        let heartbeat = self.heartbeat.get().map_or(
            Heartbeat {
                beat: now,
                last_stall_end: None,
            },
            HeartbeatCell::heartbeat,
        );
        let troubles: Option<Vec<UnknownReason>> = {
            let mut self_check = self
                .self_check
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if runner.is_control {
                match result.outcome {
                    Outcome::Success => self_check.control(true, now),
                    Outcome::Failure(_) => self_check.control(false, now),
                    Outcome::Unknown(_) => {}
                }
            }
            let before = result.outcome;
            result.outcome = self_check.examine(
                &runner.probe.id,
                &result,
                runner.probe.timeout,
                heartbeat,
                now,
            );
            if let (Outcome::Unknown(reason), true) = (result.outcome, before != result.outcome) {
                result
                    .explanation
                    .get_or_insert_with(|| format!("unknown: {}", reason.as_str()).into());
            }
            let look = matches!(result.outcome, Outcome::Unknown(_)) && self.may_look(now);
            look.then(|| self_check.troubles(now).collect())
        };
        if let Some(troubles) = troubles {
            self.log_troubles(troubles);
        }
        self.metrics
            .lateness
            .observe(result.lateness().as_secs_f64());
        runner.log_change(&result);
        self.tell(&runner.probe.id, &result);
        runner
            .tracked_probe
            .lock()
            .record(&result, clock::unix_seconds());
    }

    /// Whether to name the troubles now: that visits every host, which is too expensive for each of thousands of
    /// unknown results.
    fn may_look(&self, now: Moment) -> bool {
        let last = self.looked.load(Ordering::Relaxed);
        let due = now.nanos().saturating_sub(last) >= LOOK_EVERY_NANOS;
        if due {
            self.looked.store(now.nanos(), Ordering::Relaxed);
        }
        due
    }

    fn log_troubles(&self, troubles: Vec<UnknownReason>) {
        let mut known = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != troubles {
            if troubles.is_empty() {
                tracing::info!("Our own trouble is over; results count again");
            } else {
                tracing::warn!(
                    troubles = named(&troubles),
                    "Our own trouble makes results unknown"
                );
            }
            let silent = |troubles: &[UnknownReason]| troubles.contains(&UnknownReason::AllTargets);
            if silent(&troubles) && !silent(&known) {
                tracing::error!(
                    "None of the probed hosts answers: all of them are down, or our own network is. Nothing is known of \
                     any release meanwhile"
                );
            }
            *known = troubles;
        }
    }

    /// Updates the gauges before a page is written.
    pub(super) fn refresh_metrics(&self) {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        self.metrics
            .in_flight
            .set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        let troubles: Vec<UnknownReason> = self
            .self_check
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .troubles(clock::now())
            .collect();
        for reason in UnknownReason::ALL {
            self.metrics.trouble(*reason, troubles.contains(reason));
        }
        self.log_troubles(troubles);
    }

    /// Waits for probes in flight; those that take longer than `patience` count as unknown.
    pub(super) async fn finish(&self, patience: Duration) {
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_err()
        {
            self.drop_all.cancel();
            self.tasks.wait().await;
        }
    }
}

/// The place of one probe among those in flight. Dropping it gives the place back.
struct InFlightSlot {
    executor: Arc<ProbeExecutor>,
    runner: Arc<ProbeTask>,
    due: Moment,
    /// `Some` from the start of the probe to its record. If it is dropped in between, the result is unknown.
    started: Option<Moment>,
}

impl InFlightSlot {
    async fn take(mut self) {
        self.started = Some(clock::now());
        let runner = Arc::clone(&self.runner);
        let executor = Arc::clone(&self.executor);
        let result = tokio::select! {
            biased;
            result = runner.prober.sound(self.due, runner.probe.timeout, None) => result,
            () = executor.drop_all.cancelled() => return,
        };
        self.started = None;
        executor.record(&runner, result);
    }
}

impl Drop for InFlightSlot {
    fn drop(&mut self) {
        self.runner.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.executor.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Some(started) = self.started {
            let result = ProbeResult {
                due: self.due,
                started,
                finished: clock::now(),
                outcome: Outcome::Unknown(UnknownReason::Shutdown),
                phases: PhaseTimes::default(),
                answer: ResponseFacts::default(),
                explanation: None,
            };
            self.runner
                .tracked_probe
                .lock()
                .record(&result, clock::unix_seconds());
        }
    }
}
