//! Guarding one release: facts and soundings in, judgement and rollbacks out.
//!
//! The shell around [`crate::rollout`] and [`crate::verdict`]: it turns the world into events and commands into the
//! world, and decides nothing itself. One task for each guarded release; all its state is in [`State`].
//!
//! Invariants:
//! - a rollback is carried out only after the state that says so is on the disk (or the disk has refused it), so that a
//!   daemon that is killed does not do it twice;
//! - a tick is fed to the watch in the form in which it is recorded, so a recording is judged again to the same end;
//! - while the facts are not to be had, or the release is held, every sounding is void.

mod pods;
mod saved;
mod view;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pace::Pace;
use super::runner::{Crew, Heard};
use crate::clock;
use crate::clock::Timeline;
use crate::config::settings::Release;
use crate::ledger::{self, Found};
use crate::metrics::Standing;
use crate::recording::{self, End, Head, Line, Recorded};
use crate::release::{self, Engine, Facts, Observed, Pod};
use crate::rollout::{Command, Event, Origin, Phase, Rollout};
use crate::serve::status::GuardView;
use crate::sounding::Outcome;
use crate::store::{self, Recorder, Store};
use crate::units::{Revision, Time};
use crate::verdict::{Inbox, Mark, PodState, Side, Start, Verdict, Verification, Verified, Watch};
use pods::Askers;
pub(super) use saved::State;
use saved::{MAX_ENTRIES, Verifying, Watching};

/// Soundings that wait to be counted: a thousand probes for some seconds. When there are more, they are void.
pub(super) const HEARD: usize = 8192;

/// The state is written at each transition and, when anything has changed, so often.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// In steady state one pod is asked so often whether it can be asked at all; more often until that is known.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const FIRST_LOOKS_EVERY: Duration = Duration::from_secs(2);

/// A new bad sounding after so long without one may be the beginning of trouble.
const QUIET: f64 = 30.0;

/// A revision in doubt that served well for so long is good.
const SOAK: Duration = Duration::from_secs(600);

/// Pods that get a number in one watch.
const MAX_PODS: usize = 2000;

/// How long the disk may take before a rollback goes on without it.
const SAVE_PATIENCE: Duration = Duration::from_secs(3);

/// What a guard is made of.
pub(super) struct Setup {
    pub(super) release: Release,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) crew: Arc<Crew>,
    pub(super) pace: Arc<Pace>,
    pub(super) timeline: Timeline,
}

/// A pod has answered.
struct PodHeard {
    pod: Box<str>,
    endpoint: usize,
    mark: Mark,
    /// Only to see whether pods can be asked at all.
    is_look: bool,
}

/// One guarded release at work.
pub(super) struct Guard {
    setup: Setup,
    state: State,
    facts: watch::Receiver<Observed>,
    heard: mpsc::Receiver<Heard>,
    pod_heard: (mpsc::Sender<PodHeard>, mpsc::Receiver<PodHeard>),
    work: JoinSet<Event>,
    asking: JoinSet<()>,
    askers: Askers,
    recorder: Option<Recorder>,
    view: watch::Sender<Arc<GuardView>>,
    last_save: Time,
    next_look: Time,
    is_dirty: bool,
    save_fails: bool,
}

impl Guard {
    /// Reads what was stored, and goes on from there.
    pub(super) fn new(
        setup: Setup,
        handed_over: Option<State>,
        facts: watch::Receiver<Observed>,
        heard: mpsc::Receiver<Heard>,
        view: watch::Sender<Arc<GuardView>>,
    ) -> Self {
        let now = setup.timeline.now();
        let limits = setup.release.guard.limits();
        let mut state = handed_over
            .or_else(|| load(&setup, now))
            .unwrap_or_else(|| State::new(Rollout::new(limits, now)));
        state.rollout.set_limits(limits);
        let mut guard = Self {
            setup,
            state,
            facts,
            heard,
            pod_heard: mpsc::channel(HEARD),
            work: JoinSet::new(),
            asking: JoinSet::new(),
            askers: Askers::default(),
            recorder: None,
            view,
            last_save: now,
            next_look: now + FIRST_LOOKS_EVERY,
            is_dirty: false,
            save_fails: false,
        };
        guard.resume_watch();
        guard
    }

    /// Guards until told to stop; then gives the state, for whoever goes on.
    pub(super) async fn run(mut self, stop: CancellationToken) -> State {
        self.hurry();
        let resumed = self.state.rollout.resume();
        self.carry_out(resumed).await;
        self.publish();
        loop {
            let wake = self.wake();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(event) = self.work.join_next() => {
                    let event = event.unwrap_or_else(|error| Event::ExecutionFailed { reason: error.to_string() });
                    self.happens(event).await;
                }
                Ok(()) = self.facts.changed() => self.on_facts().await,
                Some(heard) = self.heard.recv() => self.on_heard(&heard),
                Some(heard) = self.pod_heard.1.recv() => self.on_pod_heard(&heard),
                Some(_) = self.asking.join_next(), if !self.asking.is_empty() => {}
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
        }
        self.save(true).await;
        self.state
    }

    fn now(&self) -> Time {
        self.setup.timeline.now()
    }

    fn wake(&self) -> Instant {
        let now = self.now();
        let tick = self.next_tick();
        let save = self.is_dirty.then(|| self.last_save + SAVE_EVERY);
        let deadline = self.state.rollout.deadline();
        let next = [tick, save, deadline, Some(self.next_look)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(now + SAVE_EVERY);
        Instant::now() + next.since(now).min(SAVE_EVERY)
    }

    /// When the tick that runs ends.
    fn next_tick(&self) -> Option<Time> {
        let interval = self.setup.release.guard.interval();
        if let Some(watching) = &self.state.watching {
            let interval = Duration::from_secs_f64(watching.watch.rule().interval_s);
            return Some(watching.began + interval * (watching.watch.ticks() + 1));
        }
        let verifying = self.state.verifying.as_ref()?;
        Some(verifying.began + interval * (verifying.verification.ticks() + 1))
    }

    async fn on_time(&mut self) {
        let mut now = self.now();
        // After a standstill several ticks may be due; what is missing in them is void.
        while self.next_tick().is_some_and(|at| at <= now) {
            self.tick().await;
            now = self.now();
        }
        if self.state.rollout.deadline().is_some_and(|at| at <= now) {
            self.happens(Event::Tick).await;
        }
        if self.next_look <= now {
            self.look(now);
            self.soak(now);
            self.publish();
        }
        if self.is_dirty && (self.last_save + SAVE_EVERY) <= now {
            self.save(false).await;
        }
    }

    /// Takes an event, and carries out what follows from it.
    async fn happens(&mut self, event: Event) {
        let now = self.now();
        let is_silent = matches!(event, Event::Tick);
        let ended = self
            .state
            .rollout
            .past()
            .last()
            .map(|past| (past.at, past.case.revision));
        let commands = self.state.rollout.step(event, now);
        if let Some(past) = self.state.rollout.past().last()
            && ended != Some((past.at, past.case.revision))
        {
            let release = &self.setup.release;
            self.setup.crew.metrics().releases.ended(
                release.namespace.as_str(),
                release.name.as_str(),
                past.ending.as_str(),
            );
        }
        self.keep_entries();
        if !commands.is_empty() || !is_silent {
            self.is_dirty = true;
        }
        self.hurry();
        self.carry_out(commands).await;
        self.publish();
    }

    /// Writes the entries of the log of events wherever they belong.
    fn keep_entries(&mut self) {
        for entry in self.state.rollout.take_entries() {
            let id = &self.setup.release;
            tracing::info!(namespace = %id.namespace, release = %id.name, phase = &*entry.phase,
                revision = entry.revision.map(|revision| revision.0), "{}", entry.text);
            self.record(&[Line::Entry(entry.clone())]);
            if self.state.entries.len() >= MAX_ENTRIES {
                self.state.entries.pop_front();
            }
            self.state.entries.push_back(entry);
            self.is_dirty = true;
        }
    }

    /// During a case the probes are asked at the interval of the watch.
    fn hurry(&self) {
        let release = &self.setup.release;
        let interval = self
            .state
            .rollout
            .phase()
            .case()
            .map(|_| release.guard.interval());
        self.setup
            .pace
            .watch((release.namespace.clone(), release.name.clone()), interval);
    }

    async fn carry_out(&mut self, commands: Vec<Command>) {
        let acts = commands
            .iter()
            .any(|command| matches!(command, Command::Execute { .. }));
        if acts {
            self.save(true).await;
        }
        for command in commands {
            match command {
                Command::Watch(revision) => self.begin_watch(revision),
                Command::EndWatch { kept } => self.end_watch(kept),
                Command::Preflight(bad) => self.preflight(bad),
                Command::Execute { bad, target } => self.execute(bad, target),
                Command::Verify(_) => self.begin_verification(),
                Command::Found {
                    revision,
                    found,
                    evidence,
                } => self.found(revision, found, evidence),
            }
        }
    }

    // --- facts ---------------------------------------------------------------------------------------------------

    async fn on_facts(&mut self) {
        let observed = self.facts.borrow_and_update().clone();
        if let Some(trouble) = &observed.trouble {
            tracing::warn!(release = %self.setup.release.name, trouble, "Nothing new is known of the release");
        }
        self.happens(Event::Blind(
            observed.trouble.is_some() || self.setup.crew.is_blind(),
        ))
        .await;
        if observed.trouble.is_some() {
            return;
        }
        let facts = observed.facts;
        self.happens(Event::Held(facts.held)).await;
        let newest = facts.newest().map(|record| record.revision);
        let known = self.state.rollout.newest();
        match newest {
            None if known.is_some() => self.happens(Event::Uninstalled).await,
            None => {}
            Some(newest) if Some(newest) < known => {
                self.happens(Event::Uninstalled).await;
                self.seen(&facts, newest).await;
            }
            Some(newest) => self.seen(&facts, newest).await,
        }
        self.askers.keep(&facts.pods);
        let deployed = facts
            .revisions
            .iter()
            .rev()
            .find(|record| record.status == ledger::Status::Deployed);
        self.state.deployed = deployed.map(|record| record.revision);
        if newest.is_some() && facts.settled == newest {
            if let Some(watching) = &mut self.state.watching
                && watching.watch.settled_at().is_none()
                && watching.tick.settled_at.is_none()
            {
                let since = self.setup.timeline.now().since(watching.began);
                watching.tick.settled_at = Some(since.as_secs_f64());
            }
            self.happens(Event::Settled).await;
        }
        self.publish();
    }

    async fn seen(&mut self, facts: &Facts, newest: Revision) {
        if self.state.rollout.newest() == Some(newest) {
            return;
        }
        let record = facts.newest();
        let origin = if newest.0 == 1 {
            Origin::First
        } else if facts.ours.contains(&newest) {
            Origin::OurRollback
        } else if record.is_some_and(|record| record.rolled_back_to().is_some()) {
            Origin::OtherRollback
        } else {
            Origin::Upgrade
        };
        // What was seen as deployed before it appeared; a record's status of now may already be another.
        let serving = self.state.deployed.filter(|deployed| *deployed < newest);
        self.happens(Event::Seen {
            revision: newest,
            origin,
            serving,
        })
        .await;
    }

    // --- soundings -----------------------------------------------------------------------------------------------

    fn on_heard(&mut self, heard: &Heard) {
        let mark = match heard.outcome {
            Outcome::Good => Mark::Good,
            Outcome::Bad(_) => Mark::Bad,
            Outcome::Void(_) => Mark::Void,
        };
        let now = self.now();
        let Some(probe) = self.setup.release.probes.get(heard.endpoint) else {
            return;
        };
        let name = probe.id.probe.as_str();
        self.state.heard(name, mark, now);
        self.is_dirty = true;
        if let Some(verifying) = &mut self.state.verifying {
            verifying.inbox.put(heard.endpoint, mark);
        }
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        let Some(at) = watching.watch.endpoints().position(|other| other == name) else {
            return; // configured during the watch
        };
        watching.inbox.put(at, mark);
        let endpoints = watching.endpoints();
        watching.tick.ms.resize(endpoints, None);
        watching.tick.ms[at] = u32::try_from(heard.latency.as_millis()).ok();
        if let (_, Some(reason)) = heard.outcome.words() {
            let place = u16::try_from(at).unwrap_or(u16::MAX);
            watching.tick.why.push((place, reason.into()));
            if mark == Mark::Bad {
                *watching.failing[at].entry(reason.into()).or_default() += 1;
            }
        }
    }

    fn on_pod_heard(&mut self, heard: &PodHeard) {
        if heard.is_look {
            self.askers.heard(&heard.pod, heard.endpoint, Mark::Void);
            let probe = &self.setup.release.probes[heard.endpoint];
            let name = probe.id.probe.as_str();
            if let Some(known) = self.state.probes.get_mut(name)
                && known.well
                && heard.mark != Mark::Void
            {
                known.looked(heard.mark == Mark::Good);
            }
            return;
        }
        self.askers.heard(&heard.pod, heard.endpoint, heard.mark);
    }

    // --- the watch -----------------------------------------------------------------------------------------------

    fn begin_watch(&mut self, revision: Revision) {
        let now = self.now();
        let release = &self.setup.release;
        let facts = Arc::clone(&self.facts.borrow().facts);
        let names: Vec<Box<str>> = release
            .probes
            .iter()
            .map(|probe| probe.id.probe.as_str().into())
            .collect();
        let known = |name: &str| self.state.probes.get(name);
        let has_pods = facts.pods.iter().any(|pod| pod.address.is_some());
        let direct: Vec<bool> = names
            .iter()
            .map(|name| has_pods && known(name).is_some_and(saved::Known::can_ask_pods))
            .collect();
        let start = Start {
            baseline: names
                .iter()
                .map(|name| known(name).map_or((0, 0), |known| known.baseline.counts(now)))
                .collect(),
            failing_at_start: names
                .iter()
                .map(|name| known(name).is_some_and(|known| known.baseline.is_failing()))
                .collect(),
            settled_at: None,
            expected_downtime: facts.expected_downtime,
            direct: direct.contains(&true),
            requests: None,
            endpoints: names,
        };
        let watch = match Watch::new(release.guard.rule.clone(), &start) {
            Ok(watch) => watch,
            Err(error) => {
                // The settings were checked and the baseline is ours, so this is a mistake of the program.
                tracing::error!(release = %release.name, %error, "The revision cannot be judged");
                return;
            }
        };
        let endpoints = start.endpoints.len();
        let no_direct = (!start.direct).then(|| {
            if has_pods {
                "pods did not answer directly in steady state".into()
            } else {
                "no pod can be asked directly".into()
            }
        });
        let head = Head {
            version: recording::VERSION,
            namespace: release.namespace.clone(),
            release: release.name.clone(),
            revision,
            serving: self
                .state
                .rollout
                .phase()
                .case()
                .and_then(|case| case.serving),
            began: now,
            mode: release.guard.mode,
            rule: release.guard.rule.clone(),
            start,
            no_direct,
        };
        self.state.drop_candidates();
        self.state.verdict = None;
        self.state.watching = Some(Watching {
            revision,
            began: now,
            watch,
            pods: Vec::new(),
            nodes: Vec::new(),
            direct,
            failing: vec![std::collections::BTreeMap::new(); endpoints],
            last_bad: None,
            crashes: std::collections::BTreeMap::new(),
            trace: Vec::new(),
            inbox: Inbox::new(endpoints),
            tick: Recorded::default(),
        });
        self.open_recorder(revision, now);
        self.record(&[Line::Head(Box::new(head))]);
        self.ask_pods();
    }

    /// After a restart: what was recorded after the state was last saved is made up for.
    fn resume_watch(&mut self) {
        let Some((revision, began)) = self
            .state
            .watching
            .as_ref()
            .map(|watching| (watching.revision, watching.began))
        else {
            return;
        };
        self.open_recorder(revision, began);
        let read_back = self.recorder.as_mut().map(Recorder::read_back);
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        match read_back {
            Some(Ok(recorded)) => {
                watching.pods = recorded.pods;
                let missed = watching.watch.ticks() as usize;
                for tick in recorded.ticks.get(missed..).unwrap_or_default() {
                    recording::feed(&mut watching.watch, &watching.pods, tick);
                    watching.trace();
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "The recording of the watch cannot be gone on with");
                self.recorder = None;
            }
            None => {}
        }
        tracing::info!(release = %self.setup.release.name, %revision, "The watch goes on after a restart");
    }

    fn open_recorder(&mut self, revision: Revision, began: Time) {
        let release = &self.setup.release;
        let Some(store) = &self.setup.store else {
            return;
        };
        self.recorder = store
            .recorder(&release.namespace, &release.name, revision, began)
            .inspect_err(|error| tracing::warn!(%error, "The watch is not recorded"))
            .ok();
    }

    fn record(&mut self, lines: &[Line]) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(lines)
        {
            tracing::warn!(%error, "The recording of the watch ends here");
            self.setup.crew.metrics().releases.state_failed();
        }
    }

    /// Ends the tick that runs.
    async fn tick(&mut self) {
        if self.state.verifying.is_some() {
            self.verify_tick().await;
            return;
        }
        let blind = self.facts.borrow().trouble.is_some() || self.setup.crew.is_blind();
        self.happens(Event::Blind(blind)).await;
        let is_void = blind || self.state.rollout.is_held();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        let mut marks = vec![Mark::Void; watching.endpoints()];
        watching.inbox.take(&mut marks);
        if is_void {
            marks.fill(Mark::Void);
        }
        let mut tick = std::mem::take(&mut watching.tick);
        tick.tick = watching.watch.ticks();
        tick.marks = recording::row(&marks);
        tick.pods = crashes(watching, &facts);
        let mut lines = Vec::new();
        if !is_void {
            for pod in &watching.pods {
                if let Some(marks) = self.askers.take(&pod.name, marks.len()) {
                    tick.direct.push((pod.pod, recording::row(&marks)));
                }
            }
        }
        recording::feed(&mut watching.watch, &watching.pods, &tick);
        watching.trace();
        let now_at = tick.tick;
        let trouble_begins = marks.contains(&Mark::Bad) && {
            let quiet = QUIET / watching.watch.rule().interval_s;
            let before = watching.last_bad.replace(now_at);
            before.is_none_or(|before| f64::from(now_at - before) > quiet)
        };
        lines.push(Line::Tick(Box::new(tick)));
        let finding = watching.watch.finding().cloned();
        let is_over = watching.watch.is_over();
        let revision = watching.revision;
        self.record(&lines);
        self.is_dirty = true;
        if trouble_begins {
            self.happens(Event::FirstBad).await;
        }
        if let Some(finding) = finding {
            self.happens(Event::Regressed {
                revision,
                reason: finding.reason.to_string(),
                text: finding.text,
            })
            .await;
        } else if is_over {
            self.conclude(revision).await;
        } else {
            self.ask_pods();
            self.publish();
        }
    }

    async fn conclude(&mut self, revision: Revision) {
        let Some(watching) = &self.state.watching else {
            return;
        };
        let event = match watching.watch.conclude() {
            Verdict::Healthy => Event::Healthy(revision),
            Verdict::Inconclusive(why) => Event::Inconclusive {
                revision,
                reason: why.as_str().to_owned(),
            },
            // Told before, or not over: neither can be here.
            Verdict::Rollback(_) | Verdict::Watching => return,
        };
        self.happens(event).await;
    }

    fn end_watch(&mut self, kept: bool) {
        self.state.verifying = None;
        if let Some(watching) = self.state.watching.take() {
            self.record(&[Line::End(End::of(&watching.watch))]);
            self.recorder = None;
            self.state.verdict = view::verdict(&watching, self.now());
            self.state.convicted = watching.watch.finding().is_some().then_some(watching.watch);
        }
        if kept {
            self.state.adopt_candidates();
        } else {
            self.state.doubtful = true;
        }
        let recovered = self.state.rollout.past().last().is_some_and(|past| {
            past.ending == crate::rollout::Ending::Recovered
                && past.at == self.state.rollout.since()
        });
        if recovered {
            self.state.drop_candidates();
            self.state.doubtful = false;
        }
    }

    /// A revision in doubt that serves well for long enough is good after all.
    fn soak(&mut self, now: Time) {
        let is_steady = *self.state.rollout.phase() == Phase::Steady;
        if !is_steady || !self.state.doubtful || now.since(self.state.rollout.since()) < SOAK {
            return;
        }
        let rule = &self.setup.release.guard.rule;
        let (failed, total) = self.state.probes.values().fold((0, 0), |(k, n), known| {
            let (more_k, more_n) = known.candidate.counts(now);
            (k + more_k, n + more_n)
        });
        let is_well = total >= rule.n0_min && failed as f64 <= rule.p_assumed * total as f64;
        let failing = self
            .state
            .probes
            .values()
            .any(|known| known.baseline.is_failing());
        let Some(revision) = self.state.rollout.newest().filter(|_| is_well && !failing) else {
            return;
        };
        let digest = digest_of(&self.facts.borrow().facts, revision);
        let is_bad = digest.is_some_and(|digest| {
            self.state
                .ledger
                .find(&digest)
                .is_some_and(|entry| entry.found == Found::Bad)
        });
        if is_bad {
            return;
        }
        self.state.adopt_candidates();
        let minutes = SOAK.as_secs() / 60;
        self.found(
            revision,
            Found::Good,
            format!("served well for {minutes} minutes"),
        );
    }

    // --- turning back --------------------------------------------------------------------------------------------

    fn planned(&self, bad: Revision) -> Result<release::Plan, release::Refusal> {
        let case = self.state.rollout.phase().case();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let serving = case.and_then(|case| case.serving);
        let reason = case.map_or("", |case| case.reason.as_str());
        release::plan(bad, &facts, &self.state.ledger, serving, reason)
    }

    fn preflight(&mut self, bad: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        match self.planned(bad) {
            Err(refusal) => {
                let reason = refusal.to_string();
                self.work.spawn(async move { Event::Refused { reason } });
            }
            Ok(plan) => {
                let target = plan.target;
                self.work.spawn(async move {
                    match engine.preflight(plan).await {
                        Ok(()) => Event::Ready { target },
                        Err(refusal) => Event::Refused {
                            reason: refusal.to_string(),
                        },
                    }
                });
            }
        }
    }

    fn execute(&mut self, bad: Revision, target: Revision) {
        let engine = Arc::clone(&self.setup.engine);
        let facts = Arc::clone(&self.facts.borrow().facts);
        let case = self.state.rollout.phase().case();
        let reason = case.map_or_else(String::new, |case| case.reason.clone());
        let Some(digest) = digest_of(&facts, target) else {
            let reason = release::Refusal::TargetGone { target }.to_string();
            self.work
                .spawn(async move { Event::ExecutionFailed { reason } });
            return;
        };
        let plan = release::Plan {
            bad,
            target,
            digest,
            reason,
        };
        self.work.spawn(async move {
            match engine.execute(plan).await {
                Ok(report) => Event::Executed(report.made),
                Err(refusal) => Event::ExecutionFailed {
                    reason: refusal.to_string(),
                },
            }
        });
    }

    fn found(&mut self, revision: Revision, found: Found, evidence: String) {
        let facts = Arc::clone(&self.facts.borrow().facts);
        if let Some(digest) = digest_of(&facts, revision) {
            let at = self.now();
            self.state.ledger.write(ledger::Entry {
                digest,
                revision,
                found,
                at,
                evidence,
            });
            self.is_dirty = true;
        }
    }

    fn begin_verification(&mut self) {
        let Some(convicted) = &self.state.convicted else {
            return; // without a watch that convicted there is nothing to compare with; the phase ends by its deadline
        };
        self.state.verifying = Some(Verifying {
            began: self.setup.timeline.now(),
            verification: Verification::new(convicted),
            inbox: Inbox::new(convicted.endpoints().count()),
        });
    }

    async fn verify_tick(&mut self) {
        let is_void = self.facts.borrow().trouble.is_some() || self.state.rollout.is_held();
        let Some(verifying) = &mut self.state.verifying else {
            return;
        };
        let count = self.setup.release.probes.len();
        let mut marks = vec![Mark::Void; count];
        verifying.inbox.take(&mut marks);
        if is_void {
            marks.fill(Mark::Void);
        }
        let event = match verifying.verification.tick(&marks) {
            None => {
                self.publish();
                return;
            }
            Some(Verified::Recovered) => Event::Recovered,
            Some(Verified::SameFailure(text)) => Event::SameFailure { text },
            Some(Verified::Worse(text)) => Event::Worse { text },
            // The phase's own deadline ends it.
            Some(Verified::Unknown) => {
                self.state.verifying = None;
                return;
            }
        };
        self.happens(event).await;
    }

    // --- pods ----------------------------------------------------------------------------------------------------

    /// Asks the pods whose turn it is, for the tick that begins.
    fn ask_pods(&mut self) {
        let facts = Arc::clone(&self.facts.borrow().facts);
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        if !watching.direct.contains(&true) {
            return;
        }
        let revision = watching.revision;
        let mut asked = Vec::new();
        for side in [Side::New, Side::Old] {
            let pods: Vec<&Pod> = facts
                .pods
                .iter()
                .filter(|pod| (side_of(pod, revision) == side) && can_be_asked(pod))
                .collect();
            asked.extend(
                self.askers
                    .next(&pods)
                    .into_iter()
                    .map(|pod| (side, pod.clone())),
            );
        }
        let mut lines = Vec::new();
        for (side, pod) in &asked {
            lines.extend(number(watching, *side, pod).map(Line::Pod));
        }
        let endpoints: Vec<usize> = (0..watching.direct.len())
            .filter(|at| watching.direct[*at])
            .collect();
        let interval = Duration::from_secs_f64(watching.watch.rule().interval_s);
        self.record(&lines);
        for (_, pod) in &asked {
            for endpoint in &endpoints {
                self.ask(pod, *endpoint, interval, false);
            }
        }
    }

    /// In steady state: can pods be asked at all?
    fn look(&mut self, now: Time) {
        let has_looked = self.state.probes.values().all(saved::Known::has_looked)
            && !self.state.probes.is_empty();
        self.next_look = now
            + if has_looked {
                LOOK_EVERY
            } else {
                FIRST_LOOKS_EVERY
            };
        if self.state.rollout.phase().case().is_some() {
            return;
        }
        let facts = Arc::clone(&self.facts.borrow().facts);
        let pods: Vec<&Pod> = facts.pods.iter().filter(|pod| can_be_asked(pod)).collect();
        let Some(pod) = self.askers.next(&pods).first().map(|pod| (*pod).clone()) else {
            return;
        };
        for endpoint in 0..self.setup.release.probes.len() {
            self.ask(&pod, endpoint, LOOK_EVERY, true);
        }
    }

    fn ask(&mut self, pod: &Pod, endpoint: usize, interval: Duration, is_look: bool) {
        let Some(probe) = self.setup.release.probes.get(endpoint) else {
            return;
        };
        let slots = probe
            .timeout
            .as_nanos()
            .div_ceil(interval.as_nanos().max(1));
        let most = u32::try_from(slots).unwrap_or(u32::MAX - 1) + 1;
        let shared = self.setup.crew.outfit();
        let Some(prober) = self.askers.begin(shared, pod, endpoint, probe, most) else {
            return;
        };
        let to = self.pod_heard.0.clone();
        let timeout = probe.timeout;
        let late_after = self.setup.crew.late_after();
        let name = pod.name.clone();
        self.asking.spawn(async move {
            let due = clock::now();
            let sounding = prober.sound(due, timeout, None).await;
            let is_late =
                sounding.lateness() > late_after || sounding.duration() > timeout + late_after;
            let mark = match sounding.outcome {
                _ if is_late => Mark::Void,
                Outcome::Good => Mark::Good,
                Outcome::Bad(_) => Mark::Bad,
                Outcome::Void(_) => Mark::Void,
            };
            // When the guard is gone nobody wants to know.
            let _ = to
                .send(PodHeard {
                    pod: name,
                    endpoint,
                    mark,
                    is_look,
                })
                .await;
        });
    }

    // --- what remains --------------------------------------------------------------------------------------------

    fn publish(&self) {
        let facts = Arc::clone(&self.facts.borrow().facts);
        let view = view::of(&self.setup, &self.state, &facts, self.now());
        self.setup.crew.metrics().releases.stands(&Standing {
            namespace: &view.namespace,
            release: &view.release,
            phase: &view.phase,
            revision: view.revision,
            e_value: view.watch.as_ref().map(|watch| watch.e_value),
            coverage: view.watch.as_ref().and_then(|watch| watch.coverage),
        });
        self.view.send_replace(Arc::new(view));
    }

    /// Writes the state. A disk that is slow or full is said once, and holds up nothing.
    async fn save(&mut self, urgent: bool) {
        let Some(store) = self.setup.store.clone() else {
            return;
        };
        let now = self.now();
        self.last_save = now;
        self.is_dirty = false;
        let (namespace, name) = (
            self.setup.release.namespace.clone(),
            self.setup.release.name.clone(),
        );
        let state = self.state.clone();
        let written =
            tokio::task::spawn_blocking(move || store.save(&namespace, &name, &state, now));
        let patience = if urgent { SAVE_PATIENCE } else { SAVE_EVERY };
        let error = match tokio::time::timeout(patience, written).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(error))) => Some(error.to_string()),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("not written within {} s", patience.as_secs())),
        };
        let fails = error.is_some();
        if let Some(error) = error {
            self.is_dirty = true;
            self.setup.crew.metrics().releases.state_failed();
            if !self.save_fails {
                tracing::error!(release = %self.setup.release.name, error,
                    "The state cannot be written; judging goes on, but a restart would forget what happens now");
            }
        } else if self.save_fails {
            tracing::info!(release = %self.setup.release.name, "The state is written again");
        }
        self.save_fails = fails;
    }
}

fn load(setup: &Setup, now: Time) -> Option<State> {
    let store = setup.store.as_ref()?;
    let release = &setup.release;
    match store.load::<State>(&release.namespace, &release.name, now) {
        store::Found::Nothing => None,
        store::Found::State(state) => match state.bounded() {
            Ok(state) => Some(state),
            Err(why) => {
                tracing::warn!(release = %release.name, "The stored state is not used, because {why}; the release is followed anew");
                None
            }
        },
        store::Found::SetAside(why) => {
            tracing::warn!(release = %release.name, "{why}");
            None
        }
    }
}

fn digest_of(facts: &Facts, revision: Revision) -> Option<ledger::Digest> {
    let record = facts
        .revisions
        .iter()
        .find(|record| record.revision == revision)?;
    record.digest.clone()
}

fn side_of(pod: &Pod, revision: Revision) -> Side {
    if pod.revision == revision {
        Side::New
    } else {
        Side::Old
    }
}

/// Only pods that are Ready and stay are asked.
fn can_be_asked(pod: &Pod) -> bool {
    pod.ready_since.is_some() && !pod.terminating && pod.address.is_some()
}

/// Gives a pod a number the first time that it is asked.
fn number(watching: &mut Watching, side: Side, pod: &Pod) -> Option<recording::Pod> {
    let is_known = watching.pods.iter().any(|known| known.name == pod.name);
    if is_known || watching.pods.len() >= MAX_PODS {
        return None;
    }
    let node = watching.nodes.iter().position(|node| *node == pod.node);
    let node = node.unwrap_or_else(|| {
        watching.nodes.push(pod.node.clone());
        watching.nodes.len() - 1
    });
    // It may have been Ready before the revision appeared; then nothing of it is new.
    let since = pod
        .ready_since
        .map_or(0.0, |at| at.since(watching.began).as_secs_f64());
    let numbered = recording::Pod {
        pod: u32::try_from(watching.pods.len()).ok()?,
        name: pod.name.clone(),
        side,
        node: u16::try_from(node).unwrap_or(u16::MAX),
        ready_tick: (since / watching.watch.rule().interval_s) as u32,
    };
    watching.pods.push(numbered.clone());
    Some(numbered)
}

/// States of new pods that are not known yet.
fn crashes(watching: &mut Watching, facts: &Facts) -> Vec<PodState> {
    let revision = watching.revision;
    let old_too = facts
        .pods
        .iter()
        .any(|pod| pod.revision < revision && !pod.terminating && pod.is_crash_looping());
    let mut states = Vec::new();
    for pod in facts.pods.iter().filter(|pod| pod.revision == revision) {
        let state = (pod.restarts, pod.is_crash_looping());
        if state == (0, false) || watching.crashes.get(&pod.name) == Some(&state) {
            continue;
        }
        watching.crashes.insert(pod.name.clone(), state);
        states.push(PodState {
            restarts: pod.restarts,
            crash_loop_back_off: pod.is_crash_looping(),
            old_too,
        });
    }
    states
}
