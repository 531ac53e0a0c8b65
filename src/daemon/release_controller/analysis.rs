//! The judgement at work: soundings come in, ticks end, a verdict falls, a rollback is verified.

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

/// So long after the last result at the interval of the analysis a limit's answer may still be its doing.
const LIMIT_LASTS: Duration = Duration::from_secs(60);

/// A verification takes a minute, and its last one must end before its phase does.
const ONCE_MORE: Duration = Duration::from_secs(75);

impl ReleaseController {
    pub(super) fn on_heard(&mut self, heard: &ProbeResultMsg) {
        let endpoint = match &heard.of {
            ProbeSubject::Endpoint(endpoint) => *endpoint,
            ProbeSubject::Dependency(name) => return self.on_dependency(name, heard),
        };
        let now = self.now();
        let mark = self.mark_of(heard, now);
        self.tell_of_probe(endpoint, heard.outcome);
        let Some(probe) = self.setup.release.probes.get(endpoint) else {
            return;
        };
        let name = probe.id.probe.as_str();
        // While we are blind, a revision that nobody told us of may be what answers: that is no baseline. Nor is what a
        // workload answers that is scaled to zero or paused, nor a failure while something fails that the probe needs.
        let is_held = self.asks_held_workload(probe);
        let is_failure = mark == TickOutcome::Bad;
        let failing_need = self.failing_need(probe).filter(|_| is_failure);
        if failing_need.is_some() {
            self.state.fails(name);
        }
        let known = if self.is_blind || is_held || failing_need.is_some() {
            TickOutcome::Void
        } else {
            mark
        };
        self.state.heard(name, known, Some(heard.latency), now);
        self.is_dirty = true;
        self.tell_whether_suspect();
        if let Some(verifying) = &mut self.state.verifying {
            verifying.hears(name, mark, failing_need);
        }
        if let Some(bake) = &mut self.state.bake {
            bake.hears(name, known, failing_need);
        }
        let watching = self.state.watching.as_mut();
        let Some(watching) = watching.filter(|watching| watching.watch.finding().is_none()) else {
            return;
        };
        let Some(at) = watching.watch.endpoints().position(|other| other == name) else {
            return; // configured during the watch
        };
        watching.inbox.put(at, mark);
        let endpoints = watching.endpoints();
        watching.tick.us.resize(endpoints, None);
        watching.tick.us[at] = u32::try_from(heard.latency.as_micros()).ok();
        if let (_, Some(reason)) = heard.outcome.words() {
            let place = u16::try_from(at).unwrap_or(u16::MAX);
            watching.tick.why.push((place, reason.into()));
            if mark == TickOutcome::Bad {
                *watching.failing[at].entry(reason.into()).or_default() += 1;
            }
        }
    }

    /// What a result is evidence of. A limit's answer says nothing where the analysis asks more often than the probe
    /// would, or did so lately.
    fn mark_of(&mut self, heard: &ProbeResultMsg, now: Time) -> TickOutcome {
        match heard.outcome {
            Outcome::Good => TickOutcome::Good,
            Outcome::Void(_) => TickOutcome::Void,
            Outcome::Bad(_) if heard.unanswered => TickOutcome::Unresolved,
            Outcome::Bad(_) => {
                let Some(wait) = heard.limited else {
                    return TickOutcome::Bad;
                };
                let is_hurried = self.hurried.is_some();
                let state = &mut self.state;
                let bake = state.bake.as_mut().map(|bake| &mut bake.analysis);
                let Some(watching) = state.watching.as_mut().or(bake) else {
                    return if is_hurried {
                        TickOutcome::Limited
                    } else {
                        TickOutcome::Bad
                    };
                };
                if is_hurried {
                    watching.hurried_until = Some(now);
                }
                let lasts = LIMIT_LASTS.max(wait);
                let lately = watching
                    .hurried_until
                    .is_some_and(|at| now.since(at) < lasts);
                if lately {
                    TickOutcome::Limited
                } else {
                    TickOutcome::Bad
                }
            }
        }
    }

    /// Whether a probe asks a workload that is scaled to zero or paused.
    fn asks_held_workload(&self, probe: &ProbeConfig) -> bool {
        let facts = self.facts.borrow();
        let mut states = facts.facts.workload_states.iter();
        let Some(named) = probe.pods.as_ref().and_then(|aim| aim.workload.as_ref()) else {
            return self.state.rollout.is_held();
        };
        states.any(|state| state.name == *named && state.is_held())
    }

    /// What is known at this moment, before a revision is judged.
    fn start_of(
        &self,
        facts: &ReleaseState,
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
        let case = self.state.rollout.phase().case();
        let serving = case.and_then(|case| case.serving);
        let direct: Vec<bool> = release
            .probes
            .iter()
            .map(|probe| {
                let has_pods = facts
                    .pods
                    .iter()
                    .any(|pod| address_of(probe, pod).is_some());
                let can = known(probe.id.probe.as_str()).is_some_and(ProbeHistory::can_ask_pods);
                has_pods && can && is_clear(probe, facts, serving)
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
            settled_at: None,
            expected_downtime: facts.expected_downtime,
            direct: direct.contains(&true),
            requests: self.requests_before,
            workloads: revision
                .and_then(|revision| self.workloads_at_start(facts, revision, serving)),
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

    /// Of contents that are analyzed anew, the probes count as failing at the start that did so the first time: what these
    /// contents broke must not be excused. Where the first analysis was inconclusive it may have been a dependency.
    fn keep_failing_before(&mut self, revision: Revision, start: &mut AnalysisStart) {
        let rollout = &self.state.rollout;
        let first = rollout.phase().case().map_or(revision, Candidate::first);
        let mut past = rollout.past().iter().rev();
        let was_inconclusive = past
            .find(|past| past.case.first() == first && past.case.reason != BY_HAND)
            .is_some_and(|past| past.ending == RolloutOutcome::Inconclusive);
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

    pub(super) fn begin_watch(&mut self, revision: Revision) {
        let now = self.now();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let least = self.setup.release.guard.rule.n0_min;
        if self.state.end_bake_for_next(least, now) {
            self.count_bake("superseded");
        }
        let (mut start, direct) = self.start_of(&facts, Some(revision), now);
        self.keep_failing_before(revision, &mut start);
        let release = &self.setup.release;
        let watch = match Analysis::new(release.guard.rule.clone(), &start) {
            Ok(watch) => watch,
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
            if facts
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
                .case()
                .and_then(|case| case.serving),
            began: now,
            mode: release.guard.mode,
            rule: release.guard.rule.clone(),
            start,
            no_direct,
            goes_on: None,
        };
        self.state.drop_candidates();
        self.state.verdict = None;
        self.state.latencies = Some(latencies);
        self.state.watching = Some(RunningAnalysis {
            revision,
            first: self
                .state
                .rollout
                .phase()
                .case()
                .and_then(|case| case.first),
            began: now,
            watch,
            pods: Vec::new(),
            direct,
            failing: vec![BTreeMap::new(); endpoints],
            last_bad: None,
            told_pods: BTreeMap::new(),
            told,
            hurried_until: None,
            alerts: Vec::new(),
            old: OldPodFailures::default(),
            trace: Vec::new(),
            was_complete: false,
            rolled_out: None,
            inbox: TickBuffer::new(endpoints),
            needed: Vec::new(),
            tick: RecordedTick::default(),
        });
        if let Some(watching) = &mut self.state.watching {
            // Before they go: the trouble of old pods excuses that of new ones.
            let case = self.state.rollout.phase().case();
            let serving = case.and_then(|case| case.serving);
            note_old_pods(watching, &facts, serving);
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

    /// The watch that runs goes on for another number of the same contents, in a recording of that number.
    pub(super) fn go_on_as(&mut self, revision: Revision) {
        let now = self.now();
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        watching.first.get_or_insert(watching.revision);
        watching.revision = revision;
        if let Some(latencies) = &mut self.state.latencies {
            latencies.revision = revision;
        }
        let end = RecordingEnd::of(&watching.watch);
        self.record(&[RecordingLine::End(end)]);
        self.state.recorded = Some((revision, now));
        self.open_recorder(revision, now);
        self.record_from_here(revision, true);
    }

    /// After a restart: what was recorded after the state was last saved is made up for. Where another replica watched
    /// before, its recording is elsewhere, and ours begins here.
    pub(super) fn resume_watch(&mut self) {
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
            watching,
            latencies,
            ..
        } = &mut self.state;
        let goes_on = match (read_back, watching) {
            (Some(Ok(before)), Some(watching)) => go_on(watching, latencies.as_mut(), before),
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
        if self.state.watching.is_some() {
            tracing::info!(release = %self.setup.release.name, %revision, "The watch goes on after a restart");
        }
    }

    /// Begins a recording in the middle of a case.
    fn record_from_here(&mut self, revision: Revision, is_new: bool) {
        let now = self.now();
        let watching = self.state.watching.as_ref();
        // After a verdict there is the watch that convicted; without either there is nothing that could be read.
        let convicted = self.state.convicted.as_ref();
        let watch = watching.map(|watching| &watching.watch);
        let watch = watch.or_else(|| convicted.filter(|watch| watch.finding().is_some()));
        let Some(watch) = watch else {
            self.recorder = None;
            return;
        };
        let release = &self.setup.release;
        let endpoints: Vec<Box<str>> = watch.endpoints().map(Into::into).collect();
        let case = self.state.rollout.phase().case();
        let began = watching.map(|watching| watching.began);
        let head = RecordingHead {
            version: recording::VERSION,
            namespace: release.namespace.clone(),
            release: release.name.clone(),
            revision,
            serving: case.and_then(|case| case.serving),
            began: began.or(case.map(|case| case.seen)).unwrap_or(now),
            mode: release.guard.mode,
            rule: watch.rule().clone(),
            start: AnalysisStart {
                endpoints,
                ..AnalysisStart::default()
            },
            no_direct: None,
            goes_on: Some(Box::new(watch.clone())),
        };
        let mut lines = vec![RecordingLine::Head(Box::new(head))];
        let pods = watching.map(|watching| watching.pods.clone());
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
            self.setup.crew.metrics().releases.state_failed();
        }
    }

    /// Ends the tick that runs.
    pub(super) async fn tick(&mut self) {
        if self.state.verifying.is_some() {
            self.verify_tick().await;
            return;
        }
        let blind = self.check_blind().await;
        let is_void = blind || self.state.rollout.is_held();
        let facts = Arc::clone(&self.facts.borrow().facts);
        let case = self.state.rollout.phase().case();
        let serving = case.and_then(|case| case.serving);
        if !blind {
            self.tell_of_rollout(&facts);
            self.note_templates(&facts);
        }
        // Old facts are none: what they say of the rollout may be over.
        let rollout = if blind {
            Vec::new()
        } else {
            self.rollout_events(&facts)
        };
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        let nothing = if watching.watch.is_limited() {
            TickOutcome::NotDue
        } else {
            TickOutcome::Void
        };
        let mut marks = vec![TickOutcome::Void; watching.endpoints()];
        watching.inbox.take(&mut marks, nothing);
        if is_void {
            marks.fill(TickOutcome::Void);
        }
        let mut tick = std::mem::take(&mut watching.tick);
        tick.tick = watching.watch.ticks();
        tick.marks = recording::row(&marks);
        tick.rollout = rollout;
        tick.dependencies = dependencies::row(watching, &self.setup.crew);
        if !blind {
            tick.pods = pod_states(watching, &facts, serving);
        }
        let mut lines = Vec::new();
        if !is_void {
            // The newest of a name: a StatefulSet gives a new pod the name of the old one.
            let mut taken = BTreeSet::new();
            for pod in watching.pods.iter().rev() {
                if !taken.insert(&pod.name) {
                    continue;
                }
                let Some((marks, latencies)) = self.askers.take(&pod.name, marks.len()) else {
                    continue;
                };
                // One that has begun to end since it was asked refuses whoever comes, and that says nothing.
                if stays(&facts.pods, &pod.name) {
                    tick.direct.push((pod.pod, recording::row(&marks)));
                    if latencies.iter().any(Option::is_some) {
                        tick.direct_us.push((pod.pod, latencies));
                    }
                }
            }
        }
        recording::feed(&mut watching.watch, &watching.pods, &tick);
        if let Some(latencies) = &mut self.state.latencies {
            latencies.take(&watching.pods, &tick);
        }
        watching.trace();
        let trouble_begins = watching.trouble_begins(&marks, &tick);
        lines.push(RecordingLine::Tick(Box::new(tick)));
        let is_limited = watching.watch.is_limited();
        let is_found = watching.watch.finding().is_some();
        let is_over = watching.watch.is_over();
        let revision = watching.revision;
        self.record(&lines);
        self.is_dirty = true;
        if is_limited && self.hurried.is_some() {
            self.slow_down();
        }
        if trouble_begins {
            self.happens(RolloutInput::TroubleBegan).await;
        }
        if is_found {
            self.act_on_finding().await;
        } else if is_over {
            self.conclude(revision).await;
        } else {
            self.ask_pods();
            self.publish();
        }
    }

    /// Acts on what the watch has found, as soon as the cluster tells of the release. While it does not, another revision
    /// may have come, and nothing could be turned back; what was found before is no less true for that.
    pub(super) async fn act_on_finding(&mut self) {
        let Some(watching) = &self.state.watching else {
            return;
        };
        let Some(finding) = watching.watch.finding().cloned() else {
            return;
        };
        if self.facts.borrow().trouble.is_some() {
            self.publish();
            return;
        }
        let revision = watching.revision;
        self.happens(RolloutInput::Regressed {
            revision,
            reason: finding.reason.to_string(),
            text: finding.text,
        })
        .await;
    }

    pub(super) async fn conclude(&mut self, revision: Revision) {
        let Some(watching) = &self.state.watching else {
            return;
        };
        let took = Duration::from_secs_f64(watching.watch.elapsed_s());
        let event = match watching.watch.conclude() {
            Verdict::Healthy => match self.doubt().or_else(|| self.ended_before_settings(took)) {
                Some(reason) => RolloutInput::Inconclusive { revision, reason },
                None => match watching.watch.excuses().join("; ") {
                    text if text.is_empty() => RolloutInput::Healthy(revision),
                    text => RolloutInput::HealthyDespite { revision, text },
                },
            },
            Verdict::Inconclusive(InconclusiveReason::NotRolledOut)
                if watching.watch.is_rollout_running() =>
            {
                let facts = Arc::clone(&self.facts.borrow().facts);
                let text = self.what_is_missing(&facts);
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
                    .chain(watching.watch.excuses())
                    .collect::<Vec<_>>()
                    .join("; "),
            },
            // Told before, or not over: neither can be here.
            Verdict::Rollback(_) | Verdict::Watching => return,
        };
        self.happens(event).await;
    }

    pub(super) fn end_watch(&mut self, kept: bool) {
        self.state.verifying = None;
        if let Some(watching) = self.state.watching.take() {
            let is_rolled = watching.told.iter().any(ReportedWorkload::is_rolled);
            if kept
                && is_rolled
                && let Some(taught) = watching.watch.teaching()
            {
                self.learn_from(taught);
            }
            self.record(&[RecordingLine::End(RecordingEnd::of(&watching.watch))]);
            self.state.verdict = status::verdict(&watching, self.now());
            if watching.watch.finding().is_some() {
                let recorded = self.state.recorded;
                let began = recorded.map_or(watching.began, |(_, began)| began);
                self.collect(watching.revision, began);
            }
            if kept {
                self.state.convicted = None;
                self.begin_bake(watching);
            } else {
                let is_found = watching.watch.finding().is_some();
                self.state.convicted = is_found.then_some(watching.watch);
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
        let recovered = self.state.rollout.past().last().is_some_and(|past| {
            past.ending == RolloutOutcome::Recovered && past.at == self.state.rollout.since()
        });
        if recovered {
            self.state.drop_candidates();
            self.state.doubtful = false;
        }
    }

    pub(super) fn begin_verification(&mut self) {
        let now = self.now();
        if self.state.convicted.is_none() {
            // A person wanted it turned back: what was measured before is all there is to compare with.
            let facts = Arc::clone(&self.facts.borrow().facts);
            let (start, _) = self.start_of(&facts, None, now);
            let rule = self.setup.release.guard.rule.clone();
            self.state.convicted = Analysis::new(rule, &start).ok();
        }
        let Some(convicted) = &self.state.convicted else {
            return; // the phase ends by its deadline
        };
        let before = self.state.verifying.as_ref();
        let was_limited = before.is_some_and(|it| it.is_limited);
        let excused = before.map_or_else(ExcusedProbes::default, |it| it.excused.clone());
        let is_limited = was_limited || convicted.is_limited();
        let own = self.setup.release.guard.interval();
        let interval = if is_limited {
            let paces = self.setup.release.probes.iter().map(|it| it.interval);
            paces.max().unwrap_or(own).max(own)
        } else {
            own
        };
        let mut verification = Verification::at_pace(convicted, interval.as_secs_f64());
        let case = self.state.rollout.phase().case();
        let failed_in_bake = case.and_then(|case| {
            let baked = self.state.baked.as_ref()?;
            baked.failures_of(case.revision)
        });
        if let Some(shares) = failed_in_bake {
            verification = verification.with_failures(shares);
        }
        self.state.verifying = Some(RunningVerification {
            began: now,
            verification,
            inbox: TickBuffer::new(convicted.endpoints().count()),
            interval,
            is_limited,
            excused,
        });
        self.hurry();
    }

    /// Whether the pods that the rollback brings back may not be there yet although nothing is seen to be missing.
    fn may_still_come(&self) -> bool {
        let left = self.state.rollout.phase_ends();
        let left = left.map_or(Duration::ZERO, |at| at.since(self.now()));
        // A kubelet is given less than the phase has, whatever is due before its end.
        self.facts.borrow().facts.indirect && left > ONCE_MORE || self.settings_may_still_come()
    }

    pub(super) async fn verify_tick(&mut self) {
        let is_void = self.facts.borrow().trouble.is_some() || self.state.rollout.is_held();
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
        let verified = verifying.tick(is_void, |probe| self.failing_need_of(probe));
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
            Some(VerificationOutcome::SameFailure(_) | VerificationOutcome::Worse(_))
                if self.may_still_come() =>
            {
                self.begin_verification();
                return;
            }
            Some(VerificationOutcome::SameFailure(text)) => match self.old_settings(&text) {
                Some(text) => RolloutInput::OldSettings { text },
                None => RolloutInput::SameFailure { text },
            },
            Some(VerificationOutcome::Worse(text)) => RolloutInput::Worse { text },
            // Once more, until the phase's own deadline.
            Some(VerificationOutcome::Unknown) => {
                self.begin_verification();
                return;
            }
        };
        self.happens(event).await;
    }
}

/// Makes up for what was recorded after the state was saved. `false` when the recording ends before that: another
/// replica watched meanwhile.
fn go_on(
    watching: &mut RunningAnalysis,
    mut latencies: Option<&mut AnalysisLatencies>,
    recorded: Recording,
) -> bool {
    let next = watching.watch.ticks();
    if next < recorded.first_tick() || next > recorded.next_tick() {
        return false;
    }
    let missed = (next - recorded.first_tick()) as usize;
    watching.pods = recorded.pods;
    for tick in recorded.ticks.get(missed..).unwrap_or_default() {
        recording::feed(&mut watching.watch, &watching.pods, tick);
        if let Some(latencies) = &mut latencies {
            latencies.take(&watching.pods, tick);
        }
        watching.trace();
        for event in &tick.rollout {
            if let Some(told) = watching.told.get_mut(usize::from(event.workload)) {
                told.note(event.what);
            }
        }
        for pod in &tick.pods {
            let told = ReportedPod::of(pod);
            watching.told_pods.insert(pod.name.clone(), told);
        }
    }
    true
}
