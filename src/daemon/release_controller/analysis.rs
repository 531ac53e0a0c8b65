//! Runs the analysis: collects results, ends ticks, acts on the verdict, and verifies a rollback.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::dependencies::ExcusedProbes;
use super::pod_probers::{address_of, is_clear};
use super::pod_probes::stays;
use super::pod_states::{OldPodFailures, ReportedPod, note_old_pods, pod_states};
use super::state::{ProbeHistory, RunningAnalysis, RunningVerification, State};
use super::workload_events::ReportedWorkload;
use super::{ReleaseController, dependencies, status};
use crate::config::settings::ProbeConfig;
use crate::core::analysis::{
    Analysis, AnalysisStart, InconclusiveReason, TickBuffer, TickOutcome, Verdict, Verification,
    VerificationOutcome,
};
use crate::core::probe_result::Outcome;
use crate::core::recording::{
    self, AnalysisLatencies, RecordedTick, Recording, RecordingEnd, RecordingHead, RecordingLine,
};
use crate::core::rollout::{BY_HAND, Candidate, RolloutInput, RolloutOutcome};
use crate::core::units::{Revision, Time};
use crate::daemon::probe_executor::{ProbeResultMsg, ProbeSubject};
use crate::release::ReleaseState;

/// How long after the last probe at the interval of the analysis a rate limit may still be caused by it.
const LIMIT_LASTS: Duration = Duration::from_secs(60);

/// A verification takes a minute; its last attempt must end before its phase does.
const ONCE_MORE: Duration = Duration::from_secs(75);

impl ReleaseController {
    pub(super) fn on_result(&mut self, message: &ProbeResultMsg) {
        let endpoint = match &message.of {
            ProbeSubject::Endpoint(endpoint) => *endpoint,
            ProbeSubject::Dependency(name) => return self.on_dependency(name, message),
        };
        let now = self.now();
        let outcome = self.outcome_of(message, now);
        self.tell_of_probe(endpoint, message.outcome);
        let Some(probe) = self.setup.release.probes.get(endpoint) else {
            return;
        };
        let name = probe.id.probe.as_str();
        // While we are blind, a revision that nobody told us of may be what answers: that is no baseline. Nor is what a
        // workload answers that is scaled to zero or paused, nor a failure while something fails that the probe needs.
        let is_held = self.asks_held_workload(probe);
        let is_failure = outcome == TickOutcome::Failure;
        let failing_dependency = self.failing_dependency(probe).filter(|_| is_failure);
        if failing_dependency.is_some() {
            self.state.fails(name);
        }
        let known = if self.is_blind || is_held || failing_dependency.is_some() {
            TickOutcome::Unknown
        } else {
            outcome
        };
        self.state
            .add_result(name, known, Some(message.latency), now);
        self.is_dirty = true;
        self.tell_whether_suspect();
        if let Some(verifying) = &mut self.state.verifying {
            verifying.hears(name, outcome, failing_dependency);
        }
        if let Some(bake) = &mut self.state.bake {
            bake.hears(name, known, failing_dependency);
        }
        let running = self.state.running.as_mut();
        let Some(running) = running.filter(|running| running.analysis.regression().is_none())
        else {
            return;
        };
        let Some(at) = running.analysis.endpoints().position(|other| other == name) else {
            return; // configured during the watch
        };
        running.tick_buffer.put(at, outcome);
        let endpoints = running.endpoints();
        running.tick.us.resize(endpoints, None);
        running.tick.us[at] = u32::try_from(message.latency.as_micros()).ok();
        if let (_, Some(reason)) = message.outcome.words() {
            let place = u16::try_from(at).unwrap_or(u16::MAX);
            running.tick.why.push((place, reason.into()));
            if outcome == TickOutcome::Failure {
                *running.failing[at].entry(reason.into()).or_default() += 1;
            }
        }
    }

    /// The outcome for the analysis. An answer of a rate limit is not evidence if the analysis probes more often than
    /// configured, or did so lately.
    fn outcome_of(&mut self, message: &ProbeResultMsg, now: Time) -> TickOutcome {
        match message.outcome {
            Outcome::Success => TickOutcome::Success,
            Outcome::Unknown(_) => TickOutcome::Unknown,
            Outcome::Failure(_) if message.unanswered => TickOutcome::Unresolved,
            Outcome::Failure(_) => {
                let Some(wait) = message.limited else {
                    return TickOutcome::Failure;
                };
                let is_hurried = self.hurried.is_some();
                let state = &mut self.state;
                let bake = state.bake.as_mut().map(|bake| &mut bake.analysis);
                let Some(running) = state.running.as_mut().or(bake) else {
                    return if is_hurried {
                        TickOutcome::Limited
                    } else {
                        TickOutcome::Failure
                    };
                };
                if is_hurried {
                    running.hurried_until = Some(now);
                }
                let lasts = LIMIT_LASTS.max(wait);
                let lately = running
                    .hurried_until
                    .is_some_and(|at| now.since(at) < lasts);
                if lately {
                    TickOutcome::Limited
                } else {
                    TickOutcome::Failure
                }
            }
        }
    }

    /// Whether the probe's workload is scaled to zero or paused.
    fn asks_held_workload(&self, probe: &ProbeConfig) -> bool {
        let release_state = self.release_state.borrow();
        let mut states = release_state.release_state.workload_states.iter();
        let Some(named) = probe.pods.as_ref().and_then(|aim| aim.workload.as_ref()) else {
            return self.state.rollout.is_held();
        };
        states.any(|state| state.name == *named && state.is_held())
    }

    /// What is known before the revision's analysis: baselines, failing probes, workloads, dependencies.
    fn start_of(
        &self,
        release_state: &ReleaseState,
        revision: Option<Revision>,
        now: Time,
    ) -> (AnalysisStart, Vec<bool>) {
        let release = &self.setup.release;
        let names: Vec<Box<str>> = release
            .probes
            .iter()
            .map(|probe| probe.id.probe.as_str().into())
            .collect();
        let known = |name: &str| self.state.probes.get(name);
        let candidate = self.state.rollout.phase().candidate();
        let serving = candidate.and_then(|candidate| candidate.serving);
        let direct: Vec<bool> = release
            .probes
            .iter()
            .map(|probe| {
                let has_pods = release_state
                    .pods
                    .iter()
                    .any(|pod| address_of(probe, pod).is_some());
                let can = known(probe.id.probe.as_str()).is_some_and(ProbeHistory::can_ask_pods);
                has_pods && can && is_clear(probe, release_state, serving)
            })
            .collect();
        let start = AnalysisStart {
            baseline: names
                .iter()
                .map(|name| known(name).map_or((0, 0), |known| known.baseline.counts(now)))
                .collect(),
            failing_at_start: names
                .iter()
                .map(|name| known(name).is_some_and(|known| known.baseline.is_failing()))
                .collect(),
            complete_at: None,
            expected_downtime: release_state.expected_downtime,
            direct: direct.contains(&true),
            requests: self.requests_before,
            workloads: revision
                .and_then(|revision| self.workloads_at_start(release_state, revision, serving)),
            learned: self.learned(&names),
            steady_s: release
                .probes
                .iter()
                .map(|probe| probe.interval.as_secs_f64().clamp(0.1, 86_400.0))
                .collect(),
            dependencies: dependencies::all(release),
            needs: dependencies::of_probes(release),
            latency: names
                .iter()
                .map(|name| known(name).map_or_else(Vec::new, |known| known.baseline.latencies()))
                .collect(),
            endpoints: names,
        };
        (start, direct)
    }

    /// If the same contents were analyzed before, the probes that failed at that start count as failing now. Otherwise
    /// a new analysis would excuse what the contents broke. Not after an inconclusive analysis: that may have been a
    /// dependency.
    fn keep_failing_before(&mut self, revision: Revision, start: &mut AnalysisStart) {
        let rollout = &self.state.rollout;
        let first = rollout
            .phase()
            .candidate()
            .map_or(revision, Candidate::first);
        let mut finished = rollout.finished().iter().rev();
        let was_inconclusive = finished
            .find(|finished| {
                finished.candidate.first() == first && finished.candidate.reason != BY_HAND
            })
            .is_some_and(|finished| finished.outcome == RolloutOutcome::Inconclusive);
        match &self.state.failing_before {
            Some((of, failing)) if *of == first && !was_inconclusive => {
                let endpoints = start.endpoints.iter();
                start.failing_at_start = endpoints.map(|name| failing.contains(name)).collect();
            }
            Some(_) | None => {
                let failing = start.endpoints.iter().zip(&start.failing_at_start);
                let failing = failing.filter(|(_, fails)| **fails);
                let names = failing.map(|(name, _)| name.clone()).collect();
                self.state.failing_before = Some((first, names));
            }
        }
    }

    pub(super) fn begin_analysis(&mut self, revision: Revision) {
        let now = self.now();
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let least = self.setup.release.controller.rule.n0_min;
        if self.state.end_bake_for_next(least, now) {
            self.count_bake("superseded");
        }
        let (mut start, direct) = self.start_of(&release_state, Some(revision), now);
        self.keep_failing_before(revision, &mut start);
        let release = &self.setup.release;
        let analysis = match Analysis::new(release.controller.rule.clone(), &start) {
            Ok(analysis) => analysis,
            Err(error) => {
                // The settings were checked and the baseline is ours, so this is a mistake of the program.
                tracing::error!(release = %release.name, %error, "The revision cannot be judged");
                return;
            }
        };
        let endpoints = start.endpoints.len();
        let latencies = AnalysisLatencies::new(revision, &start.endpoints, &start.latency);
        let workloads = start.workloads.iter().flatten();
        let told = workloads
            .map(|one| ReportedWorkload::new(one, self.template_before(&one.name)))
            .collect();
        let no_direct = (!start.direct).then(|| {
            if release_state
                .pods
                .iter()
                .any(|pod| pod.ip.is_some() || pod.address.is_some())
            {
                "pods did not answer directly in steady state".into()
            } else {
                "no pod can be asked directly".into()
            }
        });
        let head = RecordingHead {
            version: recording::VERSION,
            namespace: release.namespace.clone(),
            release: release.name.clone(),
            revision,
            serving: self
                .state
                .rollout
                .phase()
                .candidate()
                .and_then(|candidate| candidate.serving),
            began: now,
            mode: release.controller.mode,
            rule: release.controller.rule.clone(),
            start,
            no_direct,
            goes_on: None,
        };
        self.state.drop_candidates();
        self.state.verdict = None;
        self.state.latencies = Some(latencies);
        self.state.running = Some(RunningAnalysis {
            revision,
            first: self
                .state
                .rollout
                .phase()
                .candidate()
                .and_then(|candidate| candidate.first),
            began: now,
            analysis,
            pods: Vec::new(),
            direct,
            failing: vec![BTreeMap::new(); endpoints],
            last_bad: None,
            reported_pods: BTreeMap::new(),
            told,
            hurried_until: None,
            alerts: Vec::new(),
            old: OldPodFailures::default(),
            e_values: Vec::new(),
            was_complete: false,
            rolled_out: None,
            tick_buffer: TickBuffer::new(endpoints),
            needed: Vec::new(),
            tick: RecordedTick::default(),
        });
        if let Some(running) = &mut self.state.running {
            // Before they go: the trouble of old pods excuses that of new ones.
            let candidate = self.state.rollout.phase().candidate();
            let serving = candidate.and_then(|candidate| candidate.serving);
            note_old_pods(running, &release_state, serving);
        }
        self.restart_counting(now);
        self.state.recorded = Some((revision, now));
        self.open_recorder(revision, now);
        let mut lines = vec![RecordingLine::Head(Box::new(head))];
        // That it appeared was noted before there was a recording.
        lines.extend(self.state.entries.back().cloned().map(RecordingLine::Entry));
        self.record(&lines);
        self.tell_of_new_settings(revision);
        self.tell_of_long_rollouts();
        self.ask_pods();
    }

    /// Continues the analysis under a new revision number with the same contents, in a recording of that number.
    pub(super) fn go_on_as(&mut self, revision: Revision) {
        let now = self.now();
        let Some(running) = &mut self.state.running else {
            return;
        };
        running.first.get_or_insert(running.revision);
        running.revision = revision;
        if let Some(latencies) = &mut self.state.latencies {
            latencies.revision = revision;
        }
        let end = RecordingEnd::of(&running.analysis);
        self.record(&[RecordingLine::End(end)]);
        self.state.recorded = Some((revision, now));
        self.open_recorder(revision, now);
        self.record_from_here(revision, true);
    }

    /// After a restart: feeds the analysis the ticks that were recorded after the state was last stored. If another
    /// replica ran the analysis before, its recording is elsewhere, and ours starts here.
    pub(super) fn resume_analysis(&mut self) {
        let Some((revision, began)) = self.state.recorded else {
            return;
        };
        self.open_recorder(revision, began);
        let Some(recorder) = &mut self.recorder else {
            return;
        };
        let is_new = recorder.is_empty();
        let read_back = (!is_new).then(|| recorder.read_back());
        let State {
            running, latencies, ..
        } = &mut self.state;
        let goes_on = match (read_back, running) {
            (Some(Ok(before)), Some(running)) => go_on(running, latencies.as_mut(), before),
            // The verdict has fallen; what follows is added to the recording.
            (Some(Ok(_)), None) => true,
            (Some(Err(error)), _) => {
                tracing::warn!(%error, "The recording of the watch cannot be gone on with");
                false
            }
            (None, _) => false,
        };
        if !goes_on {
            self.record_from_here(revision, is_new);
        }
        if self.state.running.is_some() {
            tracing::info!(release = %self.setup.release.name, %revision, "The watch goes on after a restart");
        }
    }

    /// Starts a recording in the middle of an analysis.
    fn record_from_here(&mut self, revision: Revision, is_new: bool) {
        let now = self.now();
        let running = self.state.running.as_ref();
        // After a verdict there is the watch that rejected; without either there is nothing that could be read.
        let rejected = self.state.rejected.as_ref();
        let analysis = running.map(|running| &running.analysis);
        let analysis =
            analysis.or_else(|| rejected.filter(|analysis| analysis.regression().is_some()));
        let Some(analysis) = analysis else {
            self.recorder = None;
            return;
        };
        let release = &self.setup.release;
        let endpoints: Vec<Box<str>> = analysis.endpoints().map(Into::into).collect();
        let candidate = self.state.rollout.phase().candidate();
        let began = running.map(|running| running.began);
        let head = RecordingHead {
            version: recording::VERSION,
            namespace: release.namespace.clone(),
            release: release.name.clone(),
            revision,
            serving: candidate.and_then(|candidate| candidate.serving),
            began: began
                .or(candidate.map(|candidate| candidate.seen))
                .unwrap_or(now),
            mode: release.controller.mode,
            rule: analysis.rule().clone(),
            start: AnalysisStart {
                endpoints,
                ..AnalysisStart::default()
            },
            no_direct: None,
            goes_on: Some(Box::new(analysis.clone())),
        };
        let mut lines = vec![RecordingLine::Head(Box::new(head))];
        let pods = running.map(|running| running.pods.clone());
        lines.extend(pods.into_iter().flatten().map(RecordingLine::Pod));
        if !is_new {
            // There is one of ours with a hole after it: this is another file.
            self.state.recorded = Some((revision, now));
            self.open_recorder(revision, now);
        }
        self.record(&lines);
    }

    pub(super) fn open_recorder(&mut self, revision: Revision, began: Time) {
        let release = &self.setup.release;
        let Some(store) = &self.setup.store else {
            return;
        };
        self.recorder = store
            .recorder(&release.namespace, &release.name, revision, began)
            .inspect_err(|error| tracing::warn!(%error, "The watch is not recorded"))
            .ok();
    }

    pub(super) fn record(&mut self, lines: &[RecordingLine]) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(lines)
        {
            tracing::warn!(%error, "The recording of the watch ends here");
            self.setup.executor.metrics().releases.state_failed();
        }
    }

    /// Ends the current tick.
    pub(super) async fn tick(&mut self) {
        if self.state.verifying.is_some() {
            self.verify_tick().await;
            return;
        }
        let blind = self.check_blind().await;
        let is_unknown = blind || self.state.rollout.is_held();
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let candidate = self.state.rollout.phase().candidate();
        let serving = candidate.and_then(|candidate| candidate.serving);
        if !blind {
            self.tell_of_rollout(&release_state);
            self.note_templates(&release_state);
        }
        // Old facts are none: what they say of the rollout may be over.
        let rollout = if blind {
            Vec::new()
        } else {
            self.rollout_events(&release_state)
        };
        let Some(running) = &mut self.state.running else {
            return;
        };
        let nothing = if running.analysis.is_limited() {
            TickOutcome::NotDue
        } else {
            TickOutcome::Unknown
        };
        let mut outcomes = vec![TickOutcome::Unknown; running.endpoints()];
        running.tick_buffer.take(&mut outcomes, nothing);
        if is_unknown {
            outcomes.fill(TickOutcome::Unknown);
        }
        let mut tick = std::mem::take(&mut running.tick);
        tick.tick = running.analysis.ticks();
        tick.outcomes = recording::row(&outcomes);
        tick.rollout = rollout;
        tick.dependencies = dependencies::row(running, &self.setup.executor);
        if !blind {
            tick.pods = pod_states(running, &release_state, serving);
        }
        let mut lines = Vec::new();
        if !is_unknown {
            // The newest of a name: a StatefulSet gives a new pod the name of the old one.
            let mut taken = BTreeSet::new();
            for pod in running.pods.iter().rev() {
                if !taken.insert(&pod.name) {
                    continue;
                }
                let Some((outcomes, latencies)) = self.askers.take(&pod.name, outcomes.len())
                else {
                    continue;
                };
                // One that has begun to end since it was asked refuses whoever comes, and that says nothing.
                if stays(&release_state.pods, &pod.name) {
                    tick.direct.push((pod.pod, recording::row(&outcomes)));
                    if latencies.iter().any(Option::is_some) {
                        tick.direct_us.push((pod.pod, latencies));
                    }
                }
            }
        }
        recording::feed(&mut running.analysis, &running.pods, &tick);
        if let Some(latencies) = &mut self.state.latencies {
            latencies.take(&running.pods, &tick);
        }
        running.e_values();
        let trouble_begins = running.trouble_begins(&outcomes, &tick);
        lines.push(RecordingLine::Tick(Box::new(tick)));
        let is_limited = running.analysis.is_limited();
        let is_found = running.analysis.regression().is_some();
        let is_over = running.analysis.is_over();
        let revision = running.revision;
        self.record(&lines);
        self.is_dirty = true;
        if is_limited && self.hurried.is_some() {
            self.slow_down();
        }
        if trouble_begins {
            self.happens(RolloutInput::TroubleBegan).await;
        }
        if is_found {
            self.act_on_regression().await;
        } else if is_over {
            self.conclude(revision).await;
        } else {
            self.ask_pods();
            self.publish();
        }
    }

    /// Acts on a regression as soon as the cluster reports the release. Until then another revision may have come, and
    /// nothing could be rolled back; the regression remains valid.
    pub(super) async fn act_on_regression(&mut self) {
        let Some(running) = &self.state.running else {
            return;
        };
        let Some(regression) = running.analysis.regression().cloned() else {
            return;
        };
        if self.release_state.borrow().trouble.is_some() {
            self.publish();
            return;
        }
        let revision = running.revision;
        self.happens(RolloutInput::Regressed {
            revision,
            reason: regression.reason.to_string(),
            text: regression.text,
        })
        .await;
    }

    pub(super) async fn conclude(&mut self, revision: Revision) {
        let Some(running) = &self.state.running else {
            return;
        };
        let took = Duration::from_secs_f64(running.analysis.elapsed_s());
        let event = match running.analysis.conclude() {
            Verdict::Healthy => match self
                .self_check()
                .or_else(|| self.ended_before_settings(took))
            {
                Some(reason) => RolloutInput::Inconclusive { revision, reason },
                None => match running.analysis.excuses().join("; ") {
                    text if text.is_empty() => RolloutInput::Healthy(revision),
                    text => RolloutInput::HealthyDespite { revision, text },
                },
            },
            Verdict::Inconclusive(InconclusiveReason::NotRolledOut)
                if running.analysis.is_rollout_running() =>
            {
                let release_state = Arc::clone(&self.release_state.borrow().release_state);
                let text = self.what_is_missing(&release_state);
                RolloutInput::NotRolledOut { revision, text }
            }
            // The rollout is complete, so nothing is to be waited for.
            Verdict::Inconclusive(InconclusiveReason::NotRolledOut) => RolloutInput::Inconclusive {
                revision,
                reason: "too few results could meet a new pod".to_owned(),
            },
            Verdict::Inconclusive(why) => RolloutInput::Inconclusive {
                revision,
                reason: std::iter::once(why.as_str().to_owned())
                    .chain(running.analysis.excuses())
                    .collect::<Vec<_>>()
                    .join("; "),
            },
            // Told before, or not over: neither can be here.
            Verdict::Rollback(_) | Verdict::Analyzing => return,
        };
        self.happens(event).await;
    }

    pub(super) fn end_analysis(&mut self, kept: bool) {
        self.state.verifying = None;
        if let Some(running) = self.state.running.take() {
            let is_rolled = running.told.iter().any(ReportedWorkload::is_rolled);
            if kept
                && is_rolled
                && let Some(taught) = running.analysis.teaching()
            {
                self.learn_from(taught);
            }
            self.record(&[RecordingLine::End(RecordingEnd::of(&running.analysis))]);
            self.state.verdict = status::verdict(&running, self.now());
            if running.analysis.regression().is_some() {
                let recorded = self.state.recorded;
                let began = recorded.map_or(running.began, |(_, began)| began);
                self.collect(running.revision, began);
            }
            if kept {
                self.state.rejected = None;
                self.begin_bake(running);
            } else {
                let is_found = running.analysis.regression().is_some();
                self.state.rejected = is_found.then_some(running.analysis);
            }
        }
        if kept {
            self.state.doubtful = false;
            // Until the end of its bake it is not known to be good.
            if self.state.bake.is_none() {
                self.state.adopt_candidates();
            }
        } else {
            self.state.doubtful = true;
        }
        let recovered = self
            .state
            .rollout
            .finished()
            .last()
            .is_some_and(|finished| {
                finished.outcome == RolloutOutcome::RolledBack
                    && finished.at == self.state.rollout.since()
            });
        if recovered {
            self.state.drop_candidates();
            self.state.doubtful = false;
        }
    }

    pub(super) fn begin_verification(&mut self) {
        let now = self.now();
        if self.state.rejected.is_none() {
            // A person wanted it rolled back: what was measured before is all there is to compare with.
            let release_state = Arc::clone(&self.release_state.borrow().release_state);
            let (start, _) = self.start_of(&release_state, None, now);
            let rule = self.setup.release.controller.rule.clone();
            self.state.rejected = Analysis::new(rule, &start).ok();
        }
        let Some(rejected) = &self.state.rejected else {
            return; // the phase ends by its deadline
        };
        let before = self.state.verifying.as_ref();
        let was_limited = before.is_some_and(|it| it.is_limited);
        let excused = before.map_or_else(ExcusedProbes::default, |it| it.excused.clone());
        let is_limited = was_limited || rejected.is_limited();
        let own = self.setup.release.controller.interval();
        let interval = if is_limited {
            let paces = self.setup.release.probes.iter().map(|it| it.interval);
            paces.max().unwrap_or(own).max(own)
        } else {
            own
        };
        let mut verification = Verification::at_pace(rejected, interval.as_secs_f64());
        let candidate = self.state.rollout.phase().candidate();
        let failed_in_bake = candidate.and_then(|candidate| {
            let baked = self.state.baked.as_ref()?;
            baked.failures_of(candidate.revision)
        });
        if let Some(shards) = failed_in_bake {
            verification = verification.with_failures(shards);
        }
        self.state.verifying = Some(RunningVerification {
            began: now,
            verification,
            tick_buffer: TickBuffer::new(rejected.endpoints().count()),
            interval,
            is_limited,
            excused,
        });
        self.shorten_interval();
    }

    /// Whether pods of the rollback may be missing although the cluster reports it complete.
    fn may_still_come(&self) -> bool {
        let left = self.state.rollout.phase_ends();
        let left = left.map_or(Duration::ZERO, |at| at.since(self.now()));
        // A kubelet is given less than the phase has, whatever is due before its end.
        self.release_state.borrow().release_state.indirect && left > ONCE_MORE
            || self.settings_may_still_come()
    }

    pub(super) async fn verify_tick(&mut self) {
        let is_unknown =
            self.release_state.borrow().trouble.is_some() || self.state.rollout.is_held();
        let is_hurried = self.hurried.is_some();
        let Some(mut verifying) = self.state.verifying.take() else {
            return;
        };
        if verifying.is_limited && is_hurried {
            self.state.verifying = Some(verifying);
            self.slow_down();
            self.begin_verification();
            return;
        }
        let verified = verifying.tick(is_unknown, |probe| self.failing_dependency_of(probe));
        if let Some(news) = verifying.excused.news() {
            self.state.rollout.remark(self.now(), &news);
            self.keep_entries();
        }
        self.state.verifying = Some(verifying);
        let event = match verified {
            None => {
                self.publish();
                return;
            }
            Some(VerificationOutcome::Recovered) => RolloutInput::Recovered,
            // Whatever makes its pods, or brings them their settings, may take its time.
            Some(VerificationOutcome::StillFailing(_) | VerificationOutcome::Worsened(_))
                if self.may_still_come() =>
            {
                self.begin_verification();
                return;
            }
            Some(VerificationOutcome::StillFailing(text)) => match self.old_settings(&text) {
                Some(text) => RolloutInput::OldSettings { text },
                None => RolloutInput::StillFailing { text },
            },
            Some(VerificationOutcome::Worsened(text)) => RolloutInput::Worsened { text },
            // Once more, until the phase's own deadline.
            Some(VerificationOutcome::Unknown) => {
                self.begin_verification();
                return;
            }
        };
        self.happens(event).await;
    }
}

/// Feeds the analysis the ticks that were recorded after the state was stored. `false` if the recording ends before
/// that: another replica ran the analysis in between.
fn go_on(
    running: &mut RunningAnalysis,
    mut latencies: Option<&mut AnalysisLatencies>,
    recorded: Recording,
) -> bool {
    let next = running.analysis.ticks();
    if next < recorded.first_tick() || next > recorded.next_tick() {
        return false;
    }
    let missed = (next - recorded.first_tick()) as usize;
    running.pods = recorded.pods;
    for tick in recorded.ticks.get(missed..).unwrap_or_default() {
        recording::feed(&mut running.analysis, &running.pods, tick);
        if let Some(latencies) = &mut latencies {
            latencies.take(&running.pods, tick);
        }
        running.e_values();
        for event in &tick.rollout {
            if let Some(told) = running.told.get_mut(usize::from(event.workload)) {
                told.note(event.what);
            }
        }
        for pod in &tick.pods {
            let told = ReportedPod::of(pod);
            running.reported_pods.insert(pod.name.clone(), told);
        }
    }
    true
}
