//! The bake of a revision that passed its analysis: the time until it is known to be good.
//!
//! Invariants:
//! - a revision in its bake is not known to be good, and its measurements become a baseline only when the bake ends
//!   well. It may still be the target of a rollback, see [`crate::core::revision_ledger::choose`];
//! - time in which Leadsman was away brings no results; a bake that it missed for the most part is inconclusive;
//! - the next revision ends the bake, unless it has the same contents.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ReleaseController;
use super::dependencies::ExcusedProbes;
use super::pod_states::pod_states;
use super::signs::Trouble;
use super::state::{RunningAnalysis, State};
use crate::config::settings::{BakeAction, NeedsEntry};
use crate::core::analysis::{Bake, BakeEnd, PodState, TickOutcome, number};
use crate::core::revision_ledger::ContentVerdict;
use crate::core::rollout::{RolloutInput, RolloutOutcome, RolloutPhase};
use crate::core::units::{ClockShift, HasTimes, Revision, Time};
use crate::http::status::{BakeView, VerdictView};
use crate::release::{ReleaseEvent, ReleaseState};

/// Length of a tick in seconds; [`Bake`] has no finer resolution.
const TICK_S: f64 = 5.0;

/// Endpoints that a sentence names.
const MAX_NAMED: usize = 3;

/// A running bake.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RevisionBake {
    /// The analysis that the revision passed, with its endpoints, workloads and pods.
    pub(super) analysis: RunningAnalysis,
    /// The revision that served before.
    serving: Option<Revision>,
    /// The recording of the analysis.
    recorded: Option<(Revision, Time)>,
    pub(super) began: Time,
    pub(super) bake: Bake,
    /// Latest results of each endpoint.
    lately: Vec<LatestResults>,
    #[serde(default)]
    trouble: Option<Trouble>,
    #[serde(default)]
    excused: ExcusedProbes,
    /// Outcome of each endpoint in the current tick.
    #[serde(skip)]
    outcomes: Vec<TickOutcome>,
}

/// The last eight results of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct LatestResults {
    /// One bit per result, set for a failure; the newest is the lowest.
    failures: u8,
    count: u8,
}

impl LatestResults {
    const fn take(&mut self, outcome: TickOutcome) {
        let bit = match outcome {
            TickOutcome::Success => 0,
            TickOutcome::Failure => 1,
            TickOutcome::Unknown
            | TickOutcome::NotDue
            | TickOutcome::Limited
            | TickOutcome::Unresolved => return,
        };
        self.failures = (self.failures << 1) | bit;
        if self.count < 8 {
            self.count += 1;
        }
    }

    fn shard(self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        f64::from(self.failures.count_ones()) / f64::from(self.count)
    }
}

/// How a bake ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BakeOutcome {
    pub(super) revision: Revision,
    began: Time,
    pub(super) at: Time,
    end: BakeEnd,
    /// The end in words.
    text: String,
    /// Share of failures of each endpoint at the end.
    failing: Vec<f64>,
}

impl HasTimes for BakeOutcome {
    fn shift(&mut self, by: ClockShift) {
        self.began.shift(by);
        self.at.shift(by);
    }
}

impl HasTimes for RevisionBake {
    fn shift(&mut self, by: ClockShift) {
        self.analysis.began.shift(by);
        self.analysis.hurried_until.shift(by);
        self.began.shift(by);
        if let Some(trouble) = &mut self.trouble {
            trouble.shift(by);
        }
    }
}

impl RevisionBake {
    /// Checks a stored bake and makes room for results. Returns whether it can continue.
    pub(super) fn restore(&mut self) -> bool {
        let endpoints = self.analysis.analysis.endpoints().count();
        self.outcomes = vec![TickOutcome::NotDue; endpoints];
        self.excused.retain(self.analysis.analysis.endpoints());
        self.bake.is_sound()
            && self.analysis.analysis.is_sound()
            && self.lately.len() == endpoints
            && self.lately.iter().all(|latest| latest.count <= 8)
    }

    /// Takes a result. A probe may have several in one tick: the last success or failure stands for them, so that each
    /// is equally likely to count.
    pub(super) fn hears(
        &mut self,
        probe: &str,
        outcome: TickOutcome,
        failing_dependency: Option<&NeedsEntry>,
    ) {
        let mut endpoints = self.analysis.analysis.endpoints();
        if let Some(at) = endpoints.position(|name| name == probe) {
            if let Some(need) = failing_dependency {
                self.excused.add(probe, need);
            }
            let is_evidence = matches!(outcome, TickOutcome::Success | TickOutcome::Failure);
            if let Some(known) = self.outcomes.get_mut(at)
                && (is_evidence || *known == TickOutcome::NotDue)
            {
                *known = outcome;
            }
        }
    }

    /// End of the current tick.
    fn next_tick(&self) -> Time {
        let ticks = f64::from(self.bake.ticks()) + 1.0;
        let seconds = (ticks * self.bake.tick_s()).min(1e9);
        self.began + Duration::from_secs_f64(seconds)
    }

    /// Ends the ticks that are due. Missed ticks have no results. Ticks during a rollout or rollback count as if no
    /// probe had been due, because the release is not idle. A failure does not count while a dependency of the probe
    /// fails, which may have been noticed after the failure.
    fn tick<'a>(
        &mut self,
        now: Time,
        release_state: Option<&ReleaseState>,
        is_at_rest: bool,
        failing_dependency: impl Fn(&str) -> Option<&'a NeedsEntry>,
    ) {
        let mut outcomes = vec![TickOutcome::NotDue; self.lately.len()];
        let tick = Duration::from_secs_f64(self.bake.tick_s());
        while self.next_tick() + tick <= now && self.bake.end() == BakeEnd::Baking {
            self.outcomes.fill(TickOutcome::NotDue);
            self.bake.miss();
        }
        std::mem::swap(&mut outcomes, &mut self.outcomes);
        if !is_at_rest {
            outcomes.fill(TickOutcome::NotDue);
        }
        if release_state.is_none() {
            for outcome in outcomes
                .iter_mut()
                .filter(|outcome| **outcome != TickOutcome::NotDue)
            {
                *outcome = TickOutcome::Unknown;
            }
        }
        for (name, outcome) in self.analysis.analysis.endpoints().zip(&mut outcomes) {
            if *outcome == TickOutcome::Failure
                && let Some(need) = failing_dependency(name)
            {
                self.excused.add(name, need);
                *outcome = TickOutcome::Unknown;
            }
        }
        for (latest, outcome) in self.lately.iter_mut().zip(&outcomes) {
            latest.take(*outcome);
        }
        let release_state = release_state.filter(|_| is_at_rest);
        let mut pods = release_state.map_or_else(Vec::new, |release_state| {
            pod_states(&mut self.analysis, release_state, self.serving)
        });
        if outcomes.contains(&TickOutcome::Failure) || self.analysis.has_troubled_pods() {
            Trouble::signs(&mut self.trouble, now);
        }
        let analysis = &self.analysis.analysis;
        pods.retain(|pod| analysis.can_reject(pod));
        let normal = |pod: &PodState| analysis.normal_restarts(pod);
        self.bake.tick(&outcomes, &pods, normal);
    }

    /// Failing endpoints, the worst first.
    fn failing(&self) -> Vec<String> {
        let endpoints = self.analysis.analysis.endpoints().zip(&self.lately);
        let mut failing: Vec<_> = endpoints.filter(|(_, of)| of.failures > 0).collect();
        failing.sort_by_key(|(_, of)| std::cmp::Reverse(of.failures.count_ones()));
        let words = failing.iter().map(|(name, of)| {
            format!(
                "{name}: {} of the last {} results failed",
                of.failures.count_ones(),
                of.count
            )
        });
        words.take(MAX_NAMED).collect()
    }
}

impl State {
    /// End of the current tick of the bake.
    pub(super) fn next_bake_tick(&self) -> Option<Time> {
        self.bake.as_ref().map(RevisionBake::next_tick)
    }

    /// Continues a stored bake, or drops it. If it is dropped, the revision's measurements are in doubt.
    pub(super) fn restore_bake(&mut self) {
        if let Some(bake) = &mut self.bake
            && !bake.restore()
        {
            tracing::warn!(revision = %bake.analysis.revision, "The stored bake is damaged and is dropped; the revision is known to be good once it has served well for long enough");
            self.bake = None;
        }
        let newest = self.rollout.newest();
        let mut entries = self.ledger.entries().iter();
        let is_passed =
            entries.any(|it| Some(it.revision) == newest && it.found == ContentVerdict::Passed);
        let is_at_rest = *self.rollout.phase() == RolloutPhase::Idle;
        self.doubtful |= is_passed && is_at_rest && self.bake.is_none();
    }

    /// Ends the bake because the next revision appeared. Its measurements become the baseline of probes with too few
    /// results from the last revision known to be good: where a release is deployed several times an hour no bake ever
    /// ends, and the last good hour may be a day old. Returns whether there was a bake.
    pub(super) fn end_bake_for_next(&mut self, least: u64, now: Time) -> bool {
        self.baked = None;
        if self.bake.take().is_none() {
            return false;
        }
        for known in self.probes.values_mut() {
            if known.baseline.counts(now).1 < least {
                known.adopt();
            }
        }
        true
    }

    fn is_still_that_of(&self, revision: Revision) -> Option<Revision> {
        let newest = self.rollout.newest()?;
        if newest == revision {
            return Some(newest);
        }
        // The same contents under another number go on baking.
        let mut finished = self.rollout.finished().iter().rev();
        let last = finished.find(|finished| finished.candidate.revision == newest)?;
        (last.outcome == RolloutOutcome::Unchanged && newest > revision).then_some(newest)
    }
}

impl ReleaseController {
    /// Starts the bake of a revision that passed its analysis. Without a configured bake it is known to be good at
    /// once.
    pub(super) fn begin_bake(&mut self, mut analysis: RunningAnalysis) {
        let now = self.now();
        let controller = &self.setup.release.controller;
        let from_s = now.since(analysis.began).as_secs_f64();
        let bake = Bake::new(&analysis.analysis, TICK_S, from_s);
        if controller.bake == BakeAction::Off || bake.is_over() {
            return;
        }
        let endpoints = analysis.endpoints();
        analysis.e_values.clear();
        analysis.alerts.clear();
        // Until now the probes were asked at the interval of the analysis.
        if self.hurried.is_some() {
            analysis.hurried_until = Some(now);
        }
        let last = self.state.rollout.finished().last();
        self.state.baked = None;
        self.state.bake = Some(RevisionBake {
            serving: last.and_then(|finished| finished.candidate.serving),
            recorded: self.state.recorded,
            began: now,
            bake,
            trouble: None,
            lately: vec![LatestResults::default(); endpoints],
            excused: ExcusedProbes::default(),
            outcomes: vec![TickOutcome::NotDue; endpoints],
            analysis,
        });
    }

    /// Ends the ticks of the bake that are due.
    pub(super) async fn bake_tick(&mut self) {
        let now = self.now();
        if self.state.next_bake_tick().is_none_or(|at| at > now) {
            return;
        }
        let blind = self.check_blind().await;
        let is_known = !blind && !self.state.rollout.is_held();
        let is_at_rest = *self.state.rollout.phase() == RolloutPhase::Idle;
        let release_state = Arc::clone(&self.release_state.borrow().release_state);
        let Some(mut running) = self.state.bake.take() else {
            return;
        };
        let Some(revision) = self.state.is_still_that_of(running.analysis.revision) else {
            self.count_bake("superseded");
            return;
        };
        if self.setup.release.controller.bake == BakeAction::Off {
            // From here on what holds of any revision holds of it.
            self.state.doubtful = true;
            return;
        }
        if revision != running.analysis.revision {
            let before = running.analysis.revision;
            running.analysis.first.get_or_insert(before);
            running.analysis.revision = revision;
        }
        running.tick(
            now,
            is_known.then_some(&*release_state),
            is_at_rest,
            |probe| self.failing_dependency_of(probe),
        );
        if let Some(news) = running.excused.news() {
            let remark = format!("Bake of revision {revision}: {news}");
            self.state.rollout.remark(now, &remark);
            self.keep_entries();
        }
        self.is_dirty = true;
        match running.bake.end() {
            BakeEnd::Baking => self.state.bake = Some(running),
            BakeEnd::Good => self.bake_is_good(&running, now),
            BakeEnd::Coverage => self.bake_is_inconclusive(&running, now),
            BakeEnd::Alarm => self.bake_has_failed(running, now).await,
        }
        self.publish();
    }

    fn bake_is_good(&mut self, ended: &RevisionBake, now: Time) {
        let text = format!(
            "baked until {} after it appeared, and nothing spoke against it",
            in_words(ended.bake.ends_s())
        );
        self.state.adopt_candidates();
        self.found(ended.analysis.revision, ContentVerdict::Good, text.clone());
        let remark = format!(
            "Revision {} {text}: it is known to be good",
            ended.analysis.revision
        );
        self.bake_has_ended(ended, BakeEnd::Good, text, &remark, now);
    }

    fn bake_is_inconclusive(&mut self, ended: &RevisionBake, now: Time) {
        let text = "too few results could be used, so the bake says nothing";
        self.state.doubtful = true;
        let remark = format!("Bake of revision {}: {text}", ended.analysis.revision);
        self.bake_has_ended(ended, BakeEnd::Coverage, text.into(), &remark, now);
    }

    fn bake_has_ended(
        &mut self,
        ended: &RevisionBake,
        end: BakeEnd,
        text: String,
        remark: &str,
        now: Time,
    ) {
        self.count_bake(word(end));
        if !remark.is_empty() {
            self.state.rollout.remark(now, remark);
            self.keep_entries();
        }
        self.state.baked = Some(BakeOutcome {
            revision: ended.analysis.revision,
            began: ended.began,
            at: now,
            end,
            text,
            failing: ended.lately.iter().map(|of| of.shard()).collect(),
        });
    }

    /// Acts on an alarm: sends a notice, or rejects the revision if the bake may do so.
    async fn bake_has_failed(&mut self, ended: RevisionBake, now: Time) {
        let Some(alarm) = ended.bake.alarm().cloned() else {
            return;
        };
        let revision = ended.analysis.revision;
        let failing = ended.failing();
        let mut text = format!("{} s after it appeared: {}", alarm.t.round(), alarm.text);
        for of in &failing {
            text.push_str("; ");
            text.push_str(of);
        }
        self.state.doubtful = true;
        self.bake_has_ended(&ended, BakeEnd::Alarm, text.clone(), "", now);
        let rejects = self.setup.release.controller.bake == BakeAction::Rollback
            && !self.state.rollout.has_forgotten_its_end();
        if rejects {
            let (tolerated, needed) = ended.bake.bounds();
            self.state.verdict = Some(VerdictView {
                revision: revision.0,
                verdict: "rollback".into(),
                reason: alarm.reason.to_string(),
                text: text.clone(),
                failing,
                otherwise: format!(
                    "With at most {:.1} % errors ({:.1} % are tolerated), or without restarts, it would have gone on baking.",
                    needed * 100.0,
                    tolerated * 100.0
                ),
                slower: None,
                at: now.unix_seconds(),
            });
            // What follows belongs to the recording of the analysis.
            if let Some((of, began)) = ended.recorded {
                self.state.recorded = Some((of, began));
                self.open_recorder(of, began);
                self.collect(of, began);
            }
            self.state.rejected = Some(ended.analysis.analysis);
        } else {
            self.post(ReleaseEvent {
                is_warning: true,
                reason: "BakeFailed",
                action: "Bake",
                text: format!(
                    "Revision {revision} passed its analysis, and its bake failed, so it is not known to be good: {text}"
                ),
                revision,
            });
        }
        self.happens(RolloutInput::BakeFailed {
            revision,
            reason: alarm.reason.into(),
            text,
            trouble_since: ended.trouble.map(|trouble| trouble.since),
            rejects,
        })
        .await;
    }

    pub(super) fn count_bake(&self, end: &str) {
        let release = &self.setup.release;
        let releases = &self.setup.executor.metrics().releases;
        releases.baked(release.namespace.as_str(), release.name.as_str(), end);
    }
}

const fn word(end: BakeEnd) -> &'static str {
    match end {
        BakeEnd::Baking => "baking",
        BakeEnd::Good => "good",
        BakeEnd::Coverage => "inconclusive",
        BakeEnd::Alarm => "failed",
    }
}

fn in_words(seconds: f64) -> String {
    let whole = Duration::from_secs_f64(seconds.clamp(0.0, 1e9).round());
    humantime::format_duration(whole).to_string()
}

/// View of the running bake, or of the last one.
pub(super) fn view(state: &State) -> Option<BakeView> {
    let Some(running) = &state.bake else {
        let ended = state.baked.as_ref()?;
        return Some(BakeView {
            revision: ended.revision.0,
            state: word(ended.end),
            since: ended.began.unix_seconds(),
            until: ended.at.unix_seconds(),
            text: ended.text.clone(),
            e_value: None,
            threshold: None,
        });
    };
    let bake = &running.bake;
    let (failed, total) = bake.recent();
    let (tolerated, _) = bake.bounds();
    let appeared = running.analysis.began.unix_seconds();
    Some(BakeView {
        revision: running.analysis.revision.0,
        state: word(BakeEnd::Baking),
        since: running.began.unix_seconds(),
        until: appeared + bake.ends_s(),
        text: format!(
            "{failed} of the last {total} results failed, {:.1} % are tolerated; evidence against it {} of {:.0}",
            tolerated * 100.0,
            number(bake.evidence()),
            bake.threshold()
        ),
        e_value: Some(bake.evidence()),
        threshold: Some(bake.threshold()),
    })
}

impl BakeOutcome {
    /// Share of failures of each endpoint at the end of this revision's bake, if the bake failed.
    pub(super) fn failures_of(&self, revision: Revision) -> Option<&[f64]> {
        let failed = self.end == BakeEnd::Alarm && self.revision == revision;
        failed.then_some(&*self.failing)
    }
}

#[cfg(test)]
mod tests;
