//! Everything a release controller remembers; all of it survives a restart.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::alert_evidence::{FiringAlert, MAX_TOLD, ReportedAlert};
use super::bake::{BakeOutcome, RevisionBake};
use super::dependencies::ExcusedProbes;
use super::pod_states::{OldPodFailures, ReportedPod};
use super::workload_events::{ReportedWorkload, WorkloadTemplates};
use crate::config::settings::NeedsEntry;
use crate::core::analysis::{
    Analysis, RolloutLessons, TickBuffer, TickOutcome, Verification, VerificationOutcome,
};
use crate::core::baseline::Baseline;
use crate::core::recording::{self, AnalysisLatencies};
use crate::core::revision_ledger::RevisionLedger;
use crate::core::rollout::{LogEntry, ROLLED_OUT_LATE, Rollout, RolloutPhase};
use crate::core::units::{ClockShift, HasTimes, Revision, Time};
use crate::http::status::VerdictView;
use crate::release::{MAX_RUN_IMAGES, ReleasePod, RunImage, WorkloadState};

/// Log entries that are kept.
pub(super) const MAX_ENTRIES: usize = 100;

/// Workloads that are remembered; further ones count as new.
pub(super) const MAX_WORKLOADS: usize = 500;

/// Passed rollouts that later ones learn from.
pub(super) const MAX_TAUGHT: usize = 5;

/// Points in the chart of e-values.
const MAX_TRACE: usize = 300;

/// Probes of pods of an idle release that count: three successes of the last five.
const LOOKS: usize = 5;
const GOOD_LOOKS: usize = 3;

/// State of one release controller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::daemon) struct State {
    pub(super) rollout: Rollout,
    pub(super) ledger: RevisionLedger,
    /// By probe name.
    pub(super) probes: BTreeMap<Box<str>, ProbeHistory>,
    /// The newest revision that was seen with the status `deployed`.
    pub(super) deployed: Option<Revision>,
    /// The revision that serves is in doubt: its measurements are no baseline until its bake time has passed.
    pub(super) doubtful: bool,
    #[serde(alias = "watching", deserialize_with = "if_readable")]
    pub(super) running: Option<RunningAnalysis>,
    /// The current revision and the start of its analysis: the recording that is being written.
    pub(super) recorded: Option<(Revision, Time)>,
    /// The analysis that rejected the revision, for the verification.
    #[serde(alias = "convicted", deserialize_with = "if_readable")]
    pub(super) rejected: Option<Analysis>,
    #[serde(skip)]
    pub(super) verifying: Option<RunningVerification>,
    pub(super) verdict: Option<VerdictView>,
    pub(super) entries: VecDeque<LogEntry>,
    /// Firing alerts of Alertmanager, also without an analysis.
    #[serde(default)]
    pub(super) told: Vec<ReportedAlert>,
    /// The workloads of the newest revision when the release was last idle.
    #[serde(default)]
    pub(super) workloads: Vec<WorkloadState>,
    /// The same of the last revision that was not in doubt: rollouts are compared with it.
    #[serde(default)]
    pub(super) workloads_before: Vec<WorkloadState>,
    /// Identifiers of the workloads' templates of the newest known revision.
    #[serde(default)]
    pub(super) templates: WorkloadTemplates,
    /// The probes that failed when the contents under analysis first appeared, and the revision that brought them. A
    /// new analysis of the same contents must not excuse what they broke themselves.
    #[serde(default)]
    pub(super) failing_before: Option<(Revision, Vec<Box<str>>)>,
    /// When the release was first installed, if that was seen: users' requests count from then on.
    #[serde(default)]
    pub(super) counts_since: Option<Time>,
    /// Fencing token: grows with each start, so that later writes can be told from earlier ones.
    #[serde(default)]
    pub(super) fence: u64,
    /// What the last passed rollouts taught, the newest at the end.
    #[serde(default)]
    pub(super) taught: VecDeque<RolloutLessons>,
    /// Images that pods of the last revisions ran.
    #[serde(default)]
    pub(super) images: Vec<RunImage>,
    /// The bake of the newest revision.
    #[serde(default, deserialize_with = "bake_if_readable")]
    pub(super) bake: Option<RevisionBake>,
    /// How the last bake ended, until the next revision.
    #[serde(default, deserialize_with = "if_readable")]
    pub(super) baked: Option<BakeOutcome>,
    /// Latencies of the running analysis, or of the last one.
    #[serde(default, deserialize_with = "if_readable")]
    pub(super) latencies: Option<AnalysisLatencies>,
}

/// Drops a bake that cannot be read.
fn bake_if_readable<'de, D>(reader: D) -> Result<Option<RevisionBake>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let value = Option::<serde_json::Value>::deserialize(reader)?;
    let read = value.map(serde_json::from_value).transpose();
    Ok(read
        .inspect_err(
            |error| tracing::warn!(%error, "The stored bake cannot be read and is dropped"),
        )
        .unwrap_or_default())
}

/// Drops an analysis of another version of the rule, so that it starts anew; everything else is kept.
fn if_readable<'de, D, T>(reader: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned,
{
    let value = Option::<serde_json::Value>::deserialize(reader)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

/// Memory of one probe.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ProbeHistory {
    pub(super) baseline: Baseline,
    /// Measurements of the current revision; they become the baseline when it is known to be good.
    pub(super) candidate: Baseline,
    /// Whether pods that were probed directly answered well while the Service did.
    pub(super) looks: VecDeque<bool>,
    /// Whether the last result through the Service was a success.
    pub(super) well: bool,
}

impl ProbeHistory {
    /// Makes the measurements of the current revision the baseline.
    pub(super) fn adopt(&mut self) {
        self.baseline = std::mem::take(&mut self.candidate);
    }

    pub(super) fn looked(&mut self, good: bool) {
        if self.looks.len() >= LOOKS {
            self.looks.pop_front();
        }
        self.looks.push_back(good);
    }

    /// Whether pods can be probed directly at all: a network policy may forbid it.
    pub(super) fn can_ask_pods(&self) -> bool {
        self.looks.iter().filter(|good| **good).count() >= GOOD_LOOKS
    }

    /// Whether enough pods were probed, so that the next probe may wait longer.
    pub(super) fn has_looked(&self) -> bool {
        self.looks.len() >= LOOKS
    }
}

/// A running analysis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RunningAnalysis {
    pub(super) revision: Revision,
    /// The first of the revisions with the same contents that are analyzed as one; `None` if there is only one.
    #[serde(default)]
    pub(super) first: Option<Revision>,
    pub(super) began: Time,
    #[serde(alias = "watch")]
    pub(super) analysis: Analysis,
    /// Pods that were probed, and their numbers.
    pub(super) pods: Vec<recording::RecordedPod>,
    /// Endpoints that are probed on pods directly.
    pub(super) direct: Vec<bool>,
    /// Failures by endpoint and reason.
    pub(super) failing: Vec<BTreeMap<Box<str>, u32>>,
    /// The tick of the last sign of trouble.
    pub(super) last_bad: Option<u32>,
    /// Pod states that were passed to the analysis.
    #[serde(default)]
    #[serde(alias = "told_pods")]
    pub(super) reported_pods: BTreeMap<Box<str>, ReportedPod>,
    /// Workload events that were passed to the analysis, in the workloads' order.
    #[serde(default)]
    pub(super) told: Vec<ReportedWorkload>,
    /// When the last probe at the interval of the analysis may still affect a rate limit.
    #[serde(default)]
    pub(super) hurried_until: Option<Time>,
    /// Failures of old pods since the revision appeared.
    #[serde(default)]
    pub(super) old: OldPodFailures,
    /// Firing alerts of Alertmanager that began since the revision appeared.
    #[serde(default)]
    pub(super) alerts: Vec<FiringAlert>,
    /// Seconds and e-value; thinned out when it grows too long.
    #[serde(alias = "trace")]
    pub(super) e_values: Vec<(f64, f64)>,
    /// Whether its rollout has been complete.
    #[serde(default)]
    pub(super) was_complete: bool,
    /// Whether the rollout is complete, as last passed to the analysis.
    #[serde(default)]
    pub(super) rolled_out: Option<bool>,
    /// Outcomes that wait for their tick.
    #[serde(skip)]
    pub(super) tick_buffer: TickBuffer,
    /// The newest outcome of each dependency since the last tick, in the order of the analysis; unknown without a
    /// result.
    #[serde(skip)]
    pub(super) needed: Vec<TickOutcome>,
    #[serde(skip)]
    pub(super) tick: recording::RecordedTick,
}

impl RunningAnalysis {
    /// Whether a pod belongs to the revision under analysis, or to an earlier one with the same contents.
    pub(super) fn is_own(&self, pod: &ReleasePod) -> bool {
        let first = self.first.unwrap_or(self.revision);
        (first..=self.revision).contains(&pod.revision)
    }

    /// Whether a pod runs what is analyzed: it belongs to the revision, and its workload has changed and rolled out.
    pub(super) fn is_new(&self, pod: &ReleasePod) -> bool {
        let mut told = self.told.iter();
        let told = told.find(|told| told.is_of(pod));
        self.is_own(pod) && told.is_none_or(ReportedWorkload::makes_new_pods)
    }

    /// Whether a pod from before may read settings that the revision changed.
    pub(super) fn is_unclear(&self, pod: &ReleasePod) -> bool {
        let mut told = self.told.iter();
        let told = told.find(|told| told.is_of(pod));
        told.is_some_and(ReportedWorkload::reads_changed_settings) && !self.is_own(pod)
    }

    /// Whether a pod belongs to what served before.
    pub(super) fn is_older(&self, pod: &ReleasePod) -> bool {
        pod.revision < self.first.unwrap_or(self.revision)
    }

    pub(super) fn e_values(&mut self) {
        let t = self.analysis.elapsed_s();
        // JSON has no infinity, and nobody tells such numbers apart.
        self.e_values.push((t, self.analysis.e_value().min(1e300)));
        if self.e_values.len() > MAX_TRACE {
            let mut keep = false;
            self.e_values.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    pub(super) fn endpoints(&self) -> usize {
        self.failing.len()
    }

    /// Failures by probe and reason.
    pub(super) fn failing(&self) -> Vec<String> {
        self.analysis
            .endpoints()
            .zip(&self.failing)
            .flat_map(|(name, reasons)| {
                reasons.iter().map(move |(reason, count)| {
                    let times = if *count == 1 { "time" } else { "times" };
                    format!("{name}: {reason} {count} {times}")
                })
            })
            .collect()
    }
}

/// A running verification.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RunningVerification {
    pub(super) began: Time,
    pub(super) verification: Verification,
    pub(super) tick_buffer: TickBuffer,
    /// Length of a tick.
    pub(super) interval: Duration,
    /// Whether a rate limit answers, so that probes run at their own interval.
    pub(super) is_limited: bool,
    pub(super) excused: ExcusedProbes,
}

impl RunningVerification {
    /// Takes a result. A failure does not count while a dependency of the probe fails.
    pub(super) fn hears(
        &mut self,
        probe: &str,
        outcome: TickOutcome,
        failing_dependency: Option<&NeedsEntry>,
    ) {
        // The next tick begins anew, at the probes' own pace.
        self.is_limited |= outcome == TickOutcome::Limited;
        let mut endpoints = self.verification.endpoints();
        let Some(at) = endpoints.position(|name| name == probe) else {
            return; // configured since
        };
        match failing_dependency {
            Some(need) => {
                self.excused.add(probe, need);
                self.tick_buffer.put(at, TickOutcome::Unknown);
            }
            None => self.tick_buffer.put(at, outcome),
        }
    }

    /// Ends a tick. A dependency may have started to fail after the probe's result.
    pub(super) fn tick<'a>(
        &mut self,
        is_unknown: bool,
        failing_dependency: impl Fn(&str) -> Option<&'a NeedsEntry>,
    ) -> Option<VerificationOutcome> {
        let mut outcomes = vec![TickOutcome::Unknown; self.verification.endpoints().count()];
        self.tick_buffer.take(&mut outcomes, TickOutcome::Unknown);
        if is_unknown {
            outcomes.fill(TickOutcome::Unknown);
        }
        for (name, outcome) in self.verification.endpoints().zip(&mut outcomes) {
            if *outcome == TickOutcome::Failure
                && let Some(need) = failing_dependency(name)
            {
                self.excused.add(name, need);
                *outcome = TickOutcome::Unknown;
            }
        }
        self.verification.tick(&outcomes)
    }
}

impl State {
    pub(super) fn new(rollout: Rollout) -> Self {
        Self {
            rollout,
            ledger: RevisionLedger::default(),
            probes: BTreeMap::new(),
            deployed: None,
            doubtful: false,
            running: None,
            recorded: None,
            rejected: None,
            verifying: None,
            verdict: None,
            entries: VecDeque::new(),
            told: Vec::new(),
            workloads: Vec::new(),
            workloads_before: Vec::new(),
            templates: Vec::new(),
            failing_before: None,
            counts_since: None,
            fence: 0,
            taught: VecDeque::new(),
            images: Vec::new(),
            bake: None,
            baked: None,
            latencies: None,
        }
    }

    /// Checks the bounds of a stored state, or says why it cannot be used.
    pub(super) fn bounded(mut self) -> Result<Self, &'static str> {
        let watches = self
            .running
            .iter()
            .map(|running| &running.analysis)
            .chain(&self.rejected);
        for analysis in watches {
            if !analysis.is_sound() {
                return Err("it holds a watch that cannot be");
            }
        }
        if let Some(running) = &mut self.running {
            let endpoints = running.analysis.endpoints().count();
            if running.failing.len() != endpoints || running.direct.len() != endpoints {
                return Err("it holds a watch whose parts do not fit together");
            }
            running.tick_buffer = TickBuffer::new(endpoints);
        }
        self.rollout = self.rollout.bounded();
        if !matches!(
            self.rollout.phase(),
            RolloutPhase::RollingOut(_) | RolloutPhase::Analyzing(_)
        ) {
            self.running = None;
        }
        self.ledger = self.ledger.bounded();
        for known in self.probes.values_mut() {
            known.baseline = std::mem::take(&mut known.baseline).bounded();
            known.candidate = std::mem::take(&mut known.candidate).bounded();
            known.looks.truncate(LOOKS);
        }
        self.entries.truncate(MAX_ENTRIES);
        self.told.truncate(MAX_TOLD);
        self.taught.truncate(MAX_TAUGHT);
        self.latencies = self.latencies.map(AnalysisLatencies::bounded);
        self.images.truncate(MAX_RUN_IMAGES);
        self.restore_bake();
        self.workloads.truncate(MAX_WORKLOADS);
        self.workloads_before.truncate(MAX_WORKLOADS);
        self.templates.truncate(MAX_WORKLOADS);
        Ok(self)
    }

    /// End of the current tick.
    pub(super) fn next_tick(&self) -> Option<Time> {
        if let Some(running) = &self.running {
            // What was found waits until it can be acted on, and nothing more is looked for.
            if running.analysis.regression().is_some() {
                return None;
            }
            let interval = Duration::from_secs_f64(running.analysis.rule().interval_s);
            return Some(running.began + interval * (running.analysis.ticks() + 1));
        }
        let verifying = self.verifying.as_ref()?;
        Some(verifying.began + verifying.interval * (verifying.verification.ticks() + 1))
    }

    /// Notes a failure that a dependency explains: it does not count for the baseline, but for the current state.
    pub(super) fn fails(&mut self, probe: &str) {
        if let Some(known) = self.probes.get_mut(probe) {
            known.baseline.follow(TickOutcome::Failure);
            known.well = false;
        }
    }

    /// Counts a result in the baseline or the current revision.
    pub(super) fn add_result(
        &mut self,
        probe: &str,
        outcome: TickOutcome,
        latency: Option<Duration>,
        now: Time,
    ) {
        let is_at_rest = self.rollout.phase().candidate().is_none();
        let complete = self
            .running
            .as_ref()
            .is_none_or(|running| running.analysis.complete_at().is_some());
        let known = match self.probes.get_mut(probe) {
            Some(known) => known,
            None => self.probes.entry(probe.into()).or_default(),
        };
        match outcome {
            TickOutcome::Success => known.well = true,
            TickOutcome::Failure => known.well = false,
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => {}
        }
        if self.rollout.is_absent() {
            return;
        }
        if self.rollout.is_starting() {
            known.baseline.follow(outcome);
            return;
        }
        let latency = latency.filter(|_| outcome == TickOutcome::Success);
        // A revision that bakes is not known to be good yet.
        let is_known_good = !self.doubtful && self.bake.is_none();
        if is_at_rest && is_known_good {
            known.baseline.record(outcome, now);
            if let Some(latency) = latency {
                known.baseline.took(latency, now);
            }
            return;
        }
        known.baseline.follow(outcome);
        if complete {
            known.candidate.record(outcome, now);
            if let Some(latency) = latency {
                known.candidate.took(latency, now);
            }
        }
    }

    /// Makes the measurements of the current revision the baseline of all probes.
    pub(super) fn adopt_candidates(&mut self) {
        for known in self.probes.values_mut() {
            known.adopt();
        }
        self.doubtful = false;
    }

    /// The rollout is complete after its analysis: measurements from in between are not the revision's, and the verdict
    /// no longer says what is missing.
    pub(super) fn completes_late(&mut self) {
        self.drop_candidates();
        let newest = self.rollout.newest().map(|newest| newest.0);
        if let Some(verdict) = &mut self.verdict
            && Some(verdict.revision) == newest
        {
            verdict.reason = ROLLED_OUT_LATE.into();
            verdict.text =
                "Its rollout was not complete at the end of the analysis, and is by now".into();
        }
    }

    pub(super) fn drop_candidates(&mut self) {
        for known in self.probes.values_mut() {
            known.candidate = Baseline::default();
        }
    }
}

impl HasTimes for State {
    fn shift(&mut self, by: ClockShift) {
        // All fields are named, so that a new one that holds a time is not forgotten.
        let Self {
            rollout,
            ledger,
            probes,
            deployed: _,
            doubtful: _,
            running,
            // It names the file of the recording, and has to go on naming it.
            recorded: _,
            rejected: _,
            verifying,
            verdict,
            entries,
            told,
            workloads: _,
            workloads_before: _,
            templates: _,
            failing_before: _,
            counts_since,
            fence: _,
            taught: _,
            images: _,
            bake,
            baked,
            latencies: _,
        } = self;
        rollout.shift(by);
        ledger.shift(by);
        counts_since.shift(by);
        for known in probes.values_mut() {
            known.baseline.shift(by);
            known.candidate.shift(by);
        }
        if let Some(running) = running {
            running.began.shift(by);
            running.hurried_until.shift(by);
        }
        if let Some(bake) = bake {
            bake.shift(by);
        }
        if let Some(baked) = baked {
            baked.shift(by);
        }
        if let Some(verifying) = verifying {
            verifying.began.shift(by);
        }
        if let Some(verdict) = verdict {
            verdict.at += by.seconds();
        }
        entries.make_contiguous().shift(by);
        for alert in told {
            alert.shift(by);
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
