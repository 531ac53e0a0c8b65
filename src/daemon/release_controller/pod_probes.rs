//! Probes pods directly: during an analysis the ones whose turn it is, otherwise one now and then.

use std::sync::Arc;
use std::time::Duration;

use super::pod_probers::{address_of, is_behind, is_clear};
use super::state::{ProbeHistory, RunningAnalysis};
use super::{FIRST_LOOKS_EVERY, LOOK_EVERY, MAX_PODS, PodResultMsg, ReleaseController};
use crate::config::settings::ProbeConfig;
use crate::core::analysis::{PodSide, TickOutcome};
use crate::core::probe_result::Outcome;
use crate::core::recording::{self, RecordingLine};
use crate::core::units::Time;
use crate::platform::clock;
use crate::release::ReleasePod;

impl ReleaseController {
    pub(super) fn on_pod_result(&mut self, message: &PodResultMsg) {
        if message.is_look {
            self.askers
                .add_result(&message.pod, message.endpoint, TickOutcome::Unknown, None);
            let probe = &self.setup.release.probes[message.endpoint];
            let name = probe.id.probe.as_str();
            if let Some(known) = self.state.probes.get_mut(name)
                && known.well
                && message.outcome != TickOutcome::Unknown
            {
                known.looked(message.outcome == TickOutcome::Success);
            }
            return;
        }
        let took = (message.outcome == TickOutcome::Success).then_some(message.latency);
        self.askers
            .add_result(&message.pod, message.endpoint, message.outcome, took);
    }

    /// Probes the pods whose turn it is, for the tick that starts.
    pub(super) fn ask_pods(&mut self) {
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let Some(running) = &mut self.state.running else {
            return;
        };
        if !running.direct.contains(&true) {
            return;
        }
        // Where a limit answers, pods are asked no more often than the probes are.
        if running.analysis.is_limited() {
            let paces = self.setup.release.probes.iter().map(|it| it.interval);
            let ticks = paces.max().map_or(1, |interval_overrides| {
                let rule = running.analysis.rule();
                rule.whole_ticks(interval_overrides.as_secs_f64()).max(1)
            });
            if !running.analysis.ticks().is_multiple_of(ticks) {
                return;
            }
        }
        let probes = &self.setup.release.probes;
        let direct = &running.direct;
        let candidate = self.state.rollout.phase().candidate();
        let serving = candidate.and_then(|candidate| candidate.serving);
        // Pods of a revision in between, which was never found good, are no control: they may be as bad.
        let is_known = |pod: &ReleasePod| {
            running.is_own(pod) || serving.is_none_or(|serving| pod.revision <= serving)
        };
        // What no Service selected when the revision appeared is no control, as the other colour of a blue-green pair.
        let asks = |probe: &ProbeConfig, side: PodSide, pod: &ReleasePod| {
            let is_behind = || is_behind(probe, pod, &release_state, serving);
            address_of(probe, pod).is_some() && (side == PodSide::New || is_behind())
        };
        let is_asked = |side: PodSide, pod: &ReleasePod| {
            let mut endpoints = probes.iter().zip(direct).filter(|(_, direct)| **direct);
            serves(pod) && is_known(pod) && endpoints.any(|(probe, _)| asks(probe, side, pod))
        };
        let mut asked = Vec::new();
        for side in [PodSide::New, PodSide::Old] {
            let pods: Vec<&ReleasePod> = release_state
                .pods
                .iter()
                .filter(|pod| side_of(pod, running) == side && is_asked(side, pod))
                .filter(|pod| !running.is_unclear(pod))
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
            lines.extend(number(running, *side, pod).map(RecordingLine::Pod));
        }
        let mut probing = Vec::new();
        for (side, pod) in &asked {
            let endpoints = probes.iter().zip(&running.direct).enumerate();
            let own = endpoints.filter(|(_, (probe, direct))| **direct && asks(probe, *side, pod));
            probing.extend(own.map(|(endpoint, _)| (pod, endpoint)));
        }
        let interval = Duration::from_secs_f64(running.analysis.rule().interval_s);
        self.record(&lines);
        for (pod, endpoint) in probing {
            self.ask(pod, endpoint, interval, false);
        }
    }

    /// On an idle release: can pods be probed at all?
    pub(super) fn look(&mut self, now: Time) {
        let has_looked = self.state.probes.values().all(ProbeHistory::has_looked)
            && !self.state.probes.is_empty();
        self.next_look = now
            + if has_looked {
                LOOK_EVERY
            } else {
                FIRST_LOOKS_EVERY
            };
        if self.state.rollout.phase().candidate().is_some() {
            return;
        }
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let newest = release_state.newest().map(|record| record.revision);
        for endpoint in 0..self.setup.release.probes.len() {
            let probe = &self.setup.release.probes[endpoint];
            let pods: Vec<&ReleasePod> = release_state
                .pods
                .iter()
                .filter(|pod| serves(pod) && address_of(probe, pod).is_some())
                .filter(|pod| is_behind(probe, pod, &release_state, newest))
                .collect();
            if !is_clear(probe, &release_state, newest) {
                continue;
            }
            if let Some(pod) = self.askers.one(&pods) {
                self.ask(&pod.clone(), endpoint, LOOK_EVERY, true);
            }
        }
    }

    pub(super) fn ask(
        &mut self,
        pod: &ReleasePod,
        endpoint: usize,
        interval: Duration,
        is_look: bool,
    ) {
        let Some(probe) = self.setup.release.probes.get(endpoint) else {
            return;
        };
        let slots = probe
            .timeout
            .as_nanos()
            .div_ceil(interval.as_nanos().max(1));
        let most = u32::try_from(slots).unwrap_or(u32::MAX - 1) + 1;
        let shared = self.setup.executor.dependencies();
        let Some(prober) = self.askers.begin(shared, pod, endpoint, probe, most) else {
            return;
        };
        let to = self.pod_results.0.clone();
        let timeout = probe.timeout;
        let late_after = self.setup.executor.late_after();
        let name = pod.name.clone();
        self.probing.spawn(async move {
            let due = clock::now();
            let result = prober.sound(due, timeout, None).await;
            let is_late =
                result.lateness() > late_after || result.duration() > timeout + late_after;
            let outcome = match result.outcome {
                _ if is_late => TickOutcome::Unknown,
                Outcome::Success => TickOutcome::Success,
                // A limit of the pod's own says nothing: the Service's results tell whether it is one.
                Outcome::Failure(_) if result.answer.limited.is_some() => TickOutcome::Unknown,
                Outcome::Failure(_) => TickOutcome::Failure,
                Outcome::Unknown(_) => TickOutcome::Unknown,
            };
            // When the guard is gone nobody wants to know.
            let latency = result.latency();
            let _ = to
                .send(PodResultMsg {
                    pod: name,
                    endpoint,
                    outcome,
                    latency,
                    is_look,
                })
                .await;
        });
    }
}

fn side_of(pod: &ReleasePod, running: &RunningAnalysis) -> PodSide {
    if running.is_new(pod) {
        PodSide::New
    } else {
        PodSide::Old
    }
}

/// Only pods that are Ready and not terminating are probed.
pub(super) fn serves(pod: &ReleasePod) -> bool {
    pod.ready_since.is_some() && !pod.terminating
}

/// Whether a pod that was probed still qualifies.
pub(super) fn stays(pods: &[ReleasePod], name: &str) -> bool {
    pods.iter().any(|pod| *pod.name == *name && serves(pod))
}

/// Gives a pod a number when it is first probed.
fn number(
    running: &mut RunningAnalysis,
    side: PodSide,
    pod: &ReleasePod,
) -> Option<recording::RecordedPod> {
    // A pod of a StatefulSet has the name of the one before it.
    let mut known = running.pods.iter().rev();
    let known = known.find(|known| known.name == pod.name);
    let is_known = known.is_some_and(|known| known.side == side);
    if is_known || running.pods.len() >= MAX_PODS {
        return None;
    }
    // It may have been Ready before the revision appeared; then nothing of it is new.
    let since = pod
        .ready_since
        .map_or(0.0, |at| at.since(running.began).as_secs_f64());
    let numbered = recording::RecordedPod {
        pod: u32::try_from(running.pods.len()).ok()?,
        name: pod.name.clone(),
        side,
        ready_tick: running.analysis.rule().whole_ticks(since),
    };
    running.pods.push(numbered.clone());
    Some(numbered)
}
