//! The controller of one release: probe results and the state of the cluster in, rollouts and rollbacks out.
//!
//! It is the shell around [`crate::core::rollout`] and [`crate::core::analysis`]: it turns the world into inputs, and
//! commands into actions, and decides nothing itself. There is one task for each release; all its state is in
//! [`State`].
//!
//! Invariants:
//! - a rollback starts only after the state that says so is on the disk (or the disk has refused it), so a daemon that
//!   is killed does not roll back twice;
//! - a tick is fed to the analysis in the form in which it is recorded, so a recording replays to the same verdict;
//! - while the state of the cluster is unknown, or the release is paused, every result is unknown.

mod alert_evidence;
mod analysis;
mod appearance;
mod bake;
mod bake_time;
mod completeness;
mod dependencies;
mod kubernetes_events;
mod not_probed;
mod orders;
mod persistence;
mod pod_probers;
mod pod_probes;
mod pod_states;
mod probe_events;
mod request_counter;
mod rollback;
mod settings;
mod signs;
mod state;
mod status;
mod workload_events;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::alerting::slower;
use super::interval_overrides::IntervalOverrides;
use super::probe_executor::{ProbeExecutor, ProbeResultMsg};
use crate::config::settings::ReleaseConfig;
use crate::core::analysis::{RequestsBefore, TickOutcome};
use crate::core::evidence::EvidenceBundle;
use crate::core::recording::RecordingLine;
use crate::core::revision_ledger;
use crate::core::rollout::{Candidate, RolloutCommand, RolloutInput, RolloutPhase};
use crate::core::units::{Revision, Time};
use crate::http::status::GuardView;
use crate::http::{ReceivedAlert, RollbackOrder};
use crate::metrics::ObjectGauges;
use crate::metrics::ReleaseGauges;
use crate::platform::clock::Timeline;
use crate::platform::permit::Permit;
use crate::release::{self, Engine, ObservedState, ReleaseState, RollbackError};
use crate::storage::{RecordingWriter, StateStore};
use not_probed::NotProbed;
pub(super) use persistence::Posted;
use pod_probers::PodProbers;
use request_counter::RequestCount;
use state::MAX_ENTRIES;
pub(super) use state::State;

/// Results that wait to be counted: a thousand probes for some seconds. Further ones are dropped and count as unknown.
pub(super) const HEARD: usize = 8192;

/// The state is written at each transition, and at this interval while anything has changed.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Interval at which an idle release's pods are probed to learn whether they can be; shorter until that is known.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const FIRST_LOOKS_EVERY: Duration = Duration::from_secs(2);

/// Pods that get a number in one analysis.
const MAX_PODS: usize = 2000;

/// Maximum wait for a running helm at the stop. Helm takes less than a second if the API server answers.
const LAST_WORK: Duration = Duration::from_secs(3);

/// Dependencies of a controller.
pub(super) struct Startup {
    pub(super) release: ReleaseConfig,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) store: Option<Arc<StateStore>>,
    pub(super) executor: Arc<ProbeExecutor>,
    pub(super) interval_overrides: Arc<IntervalOverrides>,
    pub(super) timeline: Timeline,
    /// Notified when the status may have changed.
    pub(super) changed: Arc<Notify>,
    pub(super) permit: Permit,
    /// Whether new settings wait until the analysis has ended.
    pub(super) waits: watch::Receiver<bool>,
    /// Cancelled when the stored state is known; then the engine starts to follow the release.
    pub(super) begun: CancellationToken,
}

/// A result of probing one pod.
struct PodResultMsg {
    pod: Box<str>,
    endpoint: usize,
    outcome: TickOutcome,
    /// From the due time to the end.
    latency: Duration,
    /// Sent only to learn whether pods can be probed.
    is_look: bool,
}

/// The controller of one release.
pub(super) struct ReleaseController {
    setup: Startup,
    state: State,
    release_state: watch::Receiver<ObservedState>,
    results: mpsc::Receiver<ProbeResultMsg>,
    pod_results: (mpsc::Sender<PodResultMsg>, mpsc::Receiver<PodResultMsg>),
    work: JoinSet<RolloutInput>,
    probing: JoinSet<()>,
    askers: PodProbers,
    recorder: Option<RecordingWriter>,
    view: watch::Sender<Arc<GuardView>>,
    last_save: Time,
    /// The write in progress; one at a time, so that none overtakes a later one.
    writing: Option<JoinHandle<io::Result<()>>>,
    next_look: Time,
    is_dirty: bool,
    save_fails: bool,
    /// Whether the phase from before the restart was resumed, which needs the state of the cluster.
    is_resumed: bool,
    is_blind: bool,
    hurried: Option<Duration>,
    /// The newest revision in the last state of the cluster.
    shown: Option<Revision>,
    /// A revision whose appearance is not decided yet, and since when.
    undecided: Option<(Revision, Time)>,
    /// Since when the workloads of the idle release have had their templates.
    templates_since: Time,
    /// The workloads' templates, and since when they are seen so.
    templates_seen: (workload_events::WorkloadTemplates, Time),
    /// The running preflight.
    preflight: Option<AbortHandle>,
    /// Unreadable revisions that were logged.
    unreadable: BTreeSet<Revision>,
    /// Remarks that were logged about pods that the chart's own workloads do not make.
    remarked: Vec<String>,
    /// The last dry run of a rollback: when, and for which plan.
    rehearsed: Option<(Time, Revision, Revision)>,
    /// Why a rollback could not be done at the last dry run; empty if it could.
    preflight_failure: String,
    orders: mpsc::Receiver<RollbackOrder>,
    order_look: orders::OrderCheck,
    alerts: mpsc::Receiver<ReceivedAlert>,
    /// Evidence that is being collected, with the revision and the start of its analysis.
    witnesses: JoinSet<(Revision, Time, Option<EvidenceBundle>)>,
    /// True when the evidence is there; a rollback waits for it.
    witnessed: watch::Sender<bool>,
    /// Requests to Prometheus in flight, and when the next is due.
    counting: JoinSet<RequestCount>,
    next_count: Time,
    /// Counts of users' requests before the revision; `None` if unknown.
    requests_before: Option<RequestsBefore>,
    cannot_count: bool,
    /// Last known state of the dependencies.
    needed: dependencies::DependencyStates,
    /// Events in flight.
    notices: JoinSet<()>,
    /// What was reported about probes and budgets.
    told: probe_events::ReportedState,
    rehearsals: JoinSet<Result<(), release::RollbackError>>,
    /// Comparisons of the cluster with what a rollback should have made.
    comparing: JoinSet<rollback::Compared>,
    /// Probes that do not probe pods directly, at the last check.
    not_probed: Vec<NotProbed>,
    /// How the cluster differed from the newest revision before another one came, and when that was checked.
    differed: rollback::Differed,
}

impl ReleaseController {
    /// Continues from a state that was stored or handed over.
    fn new(posted: Posted, state: State) -> Self {
        let Posted {
            setup,
            release_state,
            results,
            view,
            orders,
            alerts,
            ..
        } = posted;
        let now = setup.timeline.now();
        let mut controller = Self {
            setup,
            state,
            release_state,
            results,
            pod_results: mpsc::channel(HEARD),
            work: JoinSet::new(),
            probing: JoinSet::new(),
            askers: PodProbers::default(),
            recorder: None,
            view,
            last_save: now,
            writing: None,
            next_look: now + FIRST_LOOKS_EVERY,
            is_dirty: false,
            save_fails: false,
            is_resumed: false,
            is_blind: false,
            hurried: None,
            shown: None,
            undecided: None,
            templates_since: now,
            templates_seen: (Vec::new(), now),
            preflight: None,
            unreadable: BTreeSet::new(),
            rehearsed: None,
            remarked: Vec::new(),
            preflight_failure: String::new(),
            orders,
            order_look: orders::OrderCheck::default(),
            alerts,
            witnesses: JoinSet::new(),
            witnessed: watch::Sender::new(true),
            counting: JoinSet::new(),
            next_count: now + FIRST_LOOKS_EVERY,
            requests_before: None,
            cannot_count: false,
            needed: dependencies::DependencyStates::new(),
            notices: JoinSet::new(),
            told: probe_events::ReportedState::default(),
            rehearsals: JoinSet::new(),
            comparing: JoinSet::new(),
            not_probed: Vec::new(),
            differed: rollback::Differed::default(),
        };
        controller.setup.engine.acts_as(controller.state.fence);
        controller
            .setup
            .engine
            .remember_images(&controller.state.images);
        controller.resume_analysis();
        if controller.state.rollout.phase().candidate().is_some() {
            controller.setup.engine.look_back();
        }
        controller.setup.begun.cancel();
        if controller.state.running.is_some() {
            controller.restart_counting(now);
        }
        controller
    }

    /// Runs until `stop` is cancelled or the permit is lost; then returns the state for its successor.
    async fn run(mut self, stop: CancellationToken) -> State {
        self.shorten_interval();
        self.publish();
        let permit = self.setup.permit.clone();
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = permit.lost() => break,
                Some(event) = self.work.join_next() => {
                    // A look before the rollback that another one took the place of.
                    if event.as_ref().is_err_and(JoinError::is_cancelled) {
                        continue;
                    }
                    let event = event.unwrap_or_else(|error| self.has_panicked(&error));
                    self.happens(event).await;
                    self.check_complete().await;
                }
                Ok(()) = self.release_state.changed() => self.on_release_state().await,
                Some(order) = self.orders.recv() => self.on_order(order).await,
                Some(looked) = self.order_look.looks.join_next() => {
                    let looked = looked.unwrap_or_else(|error| Err(RollbackError::Storage(error.to_string()).into()));
                    self.on_order_looked(looked).await;
                }
                Some(alert) = self.alerts.recv() => self.on_alert(alert).await,
                Some(message) = self.results.recv() => self.on_result(&message),
                Some(message) = self.pod_results.1.recv() => self.on_pod_result(&message),
                Some(_) = self.probing.join_next(), if !self.probing.is_empty() => {}
                Some(Ok((revision, began, evidence))) = self.witnesses.join_next() => {
                    self.on_evidence(revision, began, evidence);
                }
                Some(counted) = self.counting.join_next(), if !self.counting.is_empty() => {
                    // One that was given up says nothing.
                    if let Ok(counted) = counted {
                        self.on_counted(counted);
                    }
                }
                Some(_) = self.notices.join_next(), if !self.notices.is_empty() => {}
                Some(Ok(compared)) = self.comparing.join_next() => self.on_compared(compared),
                Some(Ok(rehearsed)) = self.rehearsals.join_next() => self.on_rehearsed(rehearsed),
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
        }
        self.hand_over().await;
        self.state
    }

    /// A task of a rollback panicked. The error does not say which, so the current attempt has failed.
    fn has_panicked(&self, error: &JoinError) -> RolloutInput {
        let candidate = self.state.rollout.phase().candidate();
        RolloutInput::ExecutionFailed {
            attempt: candidate.and_then(Candidate::attempt).unwrap_or_default(),
            reason: error.to_string(),
        }
    }

    /// Waits up to [`LAST_WORK`] for a running helm, so that its end is in the state. Without the permit nothing is
    /// stored or sent.
    async fn hand_over(&mut self) {
        let rolling_back = matches!(self.state.rollout.phase(), RolloutPhase::RollingBack(candidate) if candidate.created_revision.is_none());
        let until = Instant::now() + LAST_WORK;
        while rolling_back && !self.work.is_empty() {
            let event = tokio::time::timeout_at(until, self.work.join_next()).await;
            let Ok(Some(event)) = event else { break };
            if let (Ok(event), true) = (event, self.setup.permit.holds()) {
                self.happens(event).await;
            }
        }
        // A helm that takes longer ends here, before anybody else looks at what it left behind and goes on with it.
        self.work.shutdown().await;
        if self.setup.permit.holds() {
            self.save(true).await;
        }
    }

    fn now(&self) -> Time {
        self.setup.timeline.now()
    }

    fn wake(&self) -> Instant {
        let now = self.now();
        let tick = self.next_tick();
        let save = self.is_dirty.then(|| self.last_save + SAVE_EVERY);
        let deadline = self.state.rollout.deadline();
        let next = [
            tick,
            self.state.next_bake_tick(),
            save,
            deadline,
            Some(self.next_look),
            self.next_count(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(now + SAVE_EVERY);
        Instant::now() + next.since(now).min(SAVE_EVERY)
    }

    /// End of the current tick.
    fn next_tick(&self) -> Option<Time> {
        self.state.next_tick()
    }

    async fn on_time(&mut self) {
        let mut now = self.now();
        // After a standstill several ticks may be due; what is missing in them is unknown.
        while self.next_tick().is_some_and(|at| at <= now) {
            self.tick().await;
            now = self.now();
        }
        self.bake_tick().await;
        if self.state.rollout.deadline().is_some_and(|at| at <= now) {
            self.happens(RolloutInput::Tick).await;
        }
        if self.next_count().is_some_and(|at| at <= now) {
            self.count_requests(now);
        }
        if self.next_look <= now {
            self.look(now);
            self.tell_of_budgets();
            self.look_which_are_not_probed();
            self.rehearse(now);
            self.compare_at_rest(now);
            self.soak(now);
            if self.undecided.is_some() {
                self.on_release_state().await;
            }
            self.look_at_workloads();
            self.publish();
        }
        if self.is_dirty && (self.last_save + SAVE_EVERY) <= now {
            self.save(false).await;
        }
    }

    /// Gives an input to the rollout, and carries out its commands.
    async fn happens(&mut self, event: RolloutInput) {
        let now = self.now();
        let phase = self.state.rollout.phase().as_str();
        let ended = self
            .state
            .rollout
            .finished()
            .last()
            .map(|finished| (finished.at, finished.candidate.revision));
        let commands = self.state.rollout.step(event, now);
        if let Some(finished) = self.state.rollout.finished().last()
            && ended != Some((finished.at, finished.candidate.revision))
        {
            let release = &self.setup.release;
            self.setup.executor.metrics().releases.ended(
                release.namespace.as_str(),
                release.name.as_str(),
                finished.outcome.as_str(),
            );
            let is_rollback = finished.candidate.begun.is_some();
            for timing in finished.candidate.timings().iter().filter(|_| is_rollback) {
                let took = timing.took().map(|took| took.as_secs_f64());
                let step = timing.step.as_str();
                let releases = &self.setup.executor.metrics().releases;
                releases.took(
                    release.namespace.as_str(),
                    release.name.as_str(),
                    step,
                    took,
                );
            }
        }
        self.keep_entries();
        self.tell(phase, ended);
        self.shorten_interval();
        let has_moved = self.state.rollout.phase().as_str() != phase;
        // What is only noted is stored together with the phase; what touches the release comes after that.
        let (acts, notes): (Vec<RolloutCommand>, Vec<RolloutCommand>) =
            commands.into_iter().partition(|command| {
                matches!(
                    command,
                    RolloutCommand::Preflight(_) | RolloutCommand::Execute { .. }
                )
            });
        let begins = notes
            .iter()
            .any(|command| matches!(command, RolloutCommand::Watch(_)));
        self.carry_out(notes);
        if has_moved || begins {
            self.save(true).await;
        }
        self.carry_out(acts);
        if self.state.rollout.phase().candidate().is_none() {
            self.state.recorded = None;
            self.recorder = None;
        }
        self.publish();
    }

    /// Writes new log entries to the log, the recording and the status.
    fn keep_entries(&mut self) {
        for entry in self.state.rollout.take_entries() {
            let id = &self.setup.release;
            tracing::info!(namespace = %id.namespace, release = %id.name, phase = &*entry.phase,
                revision = entry.revision.map(|revision| revision.0), "{}", entry.text);
            self.record(&[RecordingLine::Entry(entry.clone())]);
            if self.state.entries.len() >= MAX_ENTRIES {
                self.state.entries.pop_front();
            }
            self.state.entries.push_back(entry);
            self.is_dirty = true;
        }
    }

    /// During an analysis or rollback the release's probes run at the interval of the analysis.
    fn shorten_interval(&mut self) {
        let release = &self.setup.release;
        let interval = self
            .state
            .rollout
            .phase()
            .candidate()
            .map(|_| release.controller.interval());
        let running = self.state.running.as_ref();
        let verifying = self.state.verifying.as_ref();
        let is_limited = running.is_some_and(|it| it.analysis.is_limited())
            || verifying.is_some_and(|it| it.is_limited);
        let interval = interval.filter(|_| !is_limited);
        if interval == self.hurried {
            return;
        }
        self.hurried = interval;
        self.setup.interval_overrides.watch(
            (release.namespace.clone(), release.name.clone()),
            interval,
            dependencies::names(release),
        );
    }

    /// A rate limit answers: for the rest of the analysis the probes run at their own interval.
    fn slow_down(&mut self) {
        let release = &self.setup.release;
        tracing::warn!(namespace = %release.namespace, release = %release.name,
            "A rate limit answers the probes: they are asked at their own interval for the rest of the analysis. Exempt Leadsman's address from the limit, or set analysis.interval to the probes' interval");
        self.shorten_interval();
    }

    fn carry_out(&mut self, commands: Vec<RolloutCommand>) {
        for command in commands {
            match command {
                RolloutCommand::Watch(revision) => self.begin_analysis(revision),
                RolloutCommand::GoOn(revision) => self.go_on_as(revision),
                RolloutCommand::EndAnalysis { kept } => self.end_analysis(kept),
                RolloutCommand::Preflight(bad) => self.preflight(bad),
                RolloutCommand::Execute { bad, target } => self.execute(bad, target),
                RolloutCommand::Verify(created_revision) => {
                    self.begin_verification();
                    self.compare(created_revision);
                }
                RolloutCommand::Found {
                    revision,
                    found,
                    evidence,
                } => {
                    // Without a bake the analysis is all that is asked.
                    let is_good = found == revision_ledger::ContentVerdict::Passed
                        && self.state.bake.is_none();
                    let found = if is_good {
                        revision_ledger::ContentVerdict::Good
                    } else {
                        found
                    };
                    self.found(revision, found, evidence);
                }
            }
        }
    }

    async fn on_release_state(&mut self) {
        let observed = self.release_state.borrow_and_update().clone();
        if let Some(trouble) = &observed.trouble {
            tracing::warn!(release = %self.setup.release.name, trouble, "Nothing new is known of the release");
        }
        self.check_blind().await;
        self.tell_what_is_seen(&observed);
        if observed.trouble.is_some() {
            return;
        }
        let release_state = observed.release_state;
        if !self.is_resumed {
            self.is_resumed = true;
            let resumed = self.state.rollout.resume();
            self.carry_out(resumed);
            self.begin_again();
        }
        if release_state.held != self.state.rollout.is_held() {
            self.happens(RolloutInput::Held(release_state.held)).await;
        }
        let newest = release_state.newest().map(|record| record.revision);
        let known = self.state.rollout.newest();
        match newest {
            None if known.is_some() || !self.state.rollout.is_absent() => self.is_gone().await,
            None => {}
            // Helm has told of its record before the watch of the records shows it, as after an outage.
            Some(newest) if Some(newest) < known && self.awaits(known) => {}
            Some(newest) if Some(newest) < known => {
                self.is_gone().await;
                self.seen(&release_state, newest).await;
            }
            Some(newest) => self.seen(&release_state, newest).await,
        }
        self.tell_remarks(&release_state);
        self.shown = newest;
        self.askers.keep(&release_state.pods);
        // What serves when a revision appears is what was deployed before it.
        if newest == self.state.rollout.newest() {
            let mut records = release_state.revisions.iter().rev();
            let deployed =
                records.find(|record| record.status == revision_ledger::RevisionStatus::Deployed);
            self.state.deployed = deployed.map(|record| record.revision);
            self.note_workloads(&release_state);
            self.note_templates(&release_state);
        }
        self.act_on_regression().await;
        self.check_complete().await;
        self.publish();
    }

    /// Restarts an analysis that was stored by another version of the rule.
    fn begin_again(&mut self) {
        let phase = self.state.rollout.phase();
        let is_watched = matches!(
            phase,
            RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_)
        );
        let revision = phase.candidate().map(|candidate| candidate.revision);
        if let (true, None, Some(revision)) = (is_watched, &self.state.running, revision) {
            tracing::warn!(release = %self.setup.release.name, %revision, "The stored analysis is of another version of Leadsman, so the analysis begins anew");
            self.begin_analysis(revision);
        }
    }

    /// Whether this is the revision that our rollback made, before the cluster shows it.
    fn awaits(&self, revision: Option<Revision>) -> bool {
        let candidate = self.state.rollout.phase().candidate();
        candidate.is_some_and(|candidate| candidate.created_revision == revision)
            && self.shown < revision
    }

    fn tell_what_is_seen(&mut self, observed: &ObservedState) {
        let release = &self.setup.release;
        let unreadable = &observed.release_state.unreadable;
        let seen = ObjectGauges {
            unreadable: i64::try_from(unreadable.len()).unwrap_or(i64::MAX),
            blind: observed.trouble.is_some(),
            watch_failures: observed.failures,
        };
        let releases = &self.setup.executor.metrics().releases;
        releases.sees(release.namespace.as_str(), release.name.as_str(), &seen);
        for (revision, why) in unreadable {
            if self.unreadable.insert(*revision) {
                tracing::warn!(release = %release.name, revision = revision.0, "A stored revision cannot be read, and is left out: {why}");
            }
        }
        self.unreadable
            .retain(|known| unreadable.iter().any(|(revision, _)| revision == known));
    }

    /// Logs each new remark about pods that the chart's own workloads do not make, and about a rollback.
    fn tell_remarks(&mut self, release_state: &ReleaseState) {
        if self.remarked == release_state.remarks {
            return;
        }
        let known = std::mem::replace(&mut self.remarked, release_state.remarks.clone());
        let now = self.now();
        let is_new = |text: &&String| !known.contains(text);
        for text in release_state.remarks.iter().filter(is_new) {
            self.state.rollout.remark(now, text);
        }
        self.keep_entries();
    }

    /// Updates and returns whether we are blind: the cluster or our own network tells nothing.
    async fn check_blind(&mut self) -> bool {
        let blind = self.release_state.borrow().trouble.is_some() || self.setup.executor.is_blind();
        if blind != self.is_blind {
            self.is_blind = blind;
            self.happens(RolloutInput::Blind(blind)).await;
        }
        blind
    }

    /// Reports the completed rollout of the newest revision, in the phases that wait for it.
    async fn check_complete(&mut self) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let newest = release_state.newest().map(|record| record.revision);
        let waits = match self.state.rollout.phase() {
            RolloutPhase::RollingOut(candidate) => Some(candidate.revision),
            RolloutPhase::Analyzing(candidate) if candidate.complete.is_none() => {
                Some(candidate.revision)
            }
            RolloutPhase::RollingBack(candidate) => candidate.way_back(),
            RolloutPhase::Idle
                if self.state.rollout.awaits_completion()
                    || self.state.rollout.may_complete_late() =>
            {
                newest
            }
            RolloutPhase::NotInstalled
            | RolloutPhase::Idle
            | RolloutPhase::Analyzing(_)
            | RolloutPhase::Preflight(_)
            | RolloutPhase::Verifying(_) => None,
        };
        let is_complete = self.is_rolled_out(&release_state);
        let rolls_back = matches!(self.state.rollout.phase(), RolloutPhase::RollingBack(_));
        if waits.is_some() && waits == newest && is_complete.is_none() && rolls_back {
            if release_state.applied {
                self.happens(RolloutInput::HelmIsDone).await;
            }
            return;
        }
        if waits.is_some() && waits == newest && is_complete == Some(true) {
            if let Some(running) = &mut self.state.running
                && running.analysis.complete_at().is_none()
                && running.tick.complete_at.is_none()
            {
                let since = self.setup.timeline.now().since(running.began);
                running.tick.complete_at = Some(since.as_secs_f64());
            }
            if self.state.rollout.may_complete_late() {
                self.state.completes_late();
            }
            self.happens(RolloutInput::RolloutComplete).await;
        }
    }

    fn publish(&self) {
        let observed = self.release_state.borrow().clone();
        let mut view = status::of(
            &self.setup,
            &self.state,
            &observed.release_state,
            &self.preflight_failure,
            observed.trouble.as_deref(),
            self.now(),
        );
        self.setup
            .executor
            .metrics()
            .releases
            .stands(&ReleaseGauges {
                namespace: &view.namespace,
                release: &view.release,
                phase: &view.phase,
                revision: view.revision,
                e_value: view.analysis.as_ref().map(|analysis| analysis.e_value),
                coverage: view
                    .analysis
                    .as_ref()
                    .and_then(|analysis| analysis.coverage),
                bake_e_value: view.bake.as_ref().and_then(|bake| bake.e_value),
                is_slower: slower(&view, self.now().unix_seconds()).is_some(),
            });
        let not_probed = self.not_probed.iter();
        view.remarks
            .extend(not_probed.filter_map(NotProbed::remark));
        self.tell_whether_suspect();
        self.view.send_replace(Arc::new(view));
        self.setup.changed.notify_one();
    }
}
