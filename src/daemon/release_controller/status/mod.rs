//! Builds the view of a release for the API, the page and alerting.

mod latencies;

use crate::core::analysis::{Analysis, Verdict, number};
use crate::core::rollout::{Candidate, FinishedRollout, RolloutOutcome, RolloutPhase, StepName};
use crate::core::units::{Revision, Time};
use crate::http::status::{
    AnalysisView, CandidateView, EventView, GuardView, ProbeHistoryView, RevisionView, RolloutView,
    StepView, StratumView, UnknownView, VerdictView,
};
use crate::release::ReleaseState;

use super::Startup;
use super::alert_evidence::others;
use super::bake;
use super::state::{ProbeHistory, RunningAnalysis, State};

/// Log entries and revisions that are shown.
const MAX_SHOWN: usize = 50;

pub(super) fn of(
    setup: &Startup,
    state: &State,
    release_state: &ReleaseState,
    preflight_failure: &str,
    blind: Option<&str>,
    now: Time,
) -> GuardView {
    let release = &setup.release;
    let rollout = &state.rollout;
    GuardView {
        namespace: release.namespace.to_string(),
        release: release.name.to_string(),
        mode: release.controller.mode.as_str(),
        engine: Some(setup.engine.name()),
        phase: rollout.phase().as_str().to_owned(),
        revision: rollout.newest().map(|revision| revision.0),
        at_hand: rollout
            .phase()
            .candidate()
            .map(|candidate| candidate.revision.0),
        phase_since: Some(rollout.since().unix_seconds()),
        says: if *setup.waits.borrow() {
            format!("{}; other settings wait until this has ended", says(state))
        } else {
            says(state)
        },
        preflight_failure: (!preflight_failure.is_empty()).then(|| preflight_failure.to_owned()),
        remarks: release_state.remarks.clone(),
        analysis: state.running.as_ref().map(analysis),
        bake: bake::view(state),
        latencies: latencies::view(state),
        verdict: state.verdict.clone(),
        steps: steps(state, now),
        history: history(state, release_state),
        events: state
            .entries
            .iter()
            .rev()
            .take(MAX_SHOWN)
            .map(|entry| EventView {
                at: entry.at.unix_seconds(),
                text: entry.text.clone(),
            })
            .collect(),
        known: release
            .probes
            .iter()
            .map(|probe| {
                let name = probe.id.probe.as_str();
                let known = state.probes.get(name);
                let (failed, total) = known.map_or((0, 0), |known| known.baseline.counts(now));
                ProbeHistoryView {
                    probe: name.to_owned(),
                    baseline_total: total,
                    baseline_failed: failed,
                    pods_answer: known.is_some_and(ProbeHistory::can_ask_pods),
                }
            })
            .collect(),
        rollouts: rollout
            .finished()
            .iter()
            .map(|finished| ended(finished, now))
            .collect(),
        candidate: rollout.phase().candidate().map(|candidate| CandidateView {
            revision: candidate.revision.0,
            text: candidate.text.clone(),
            reason: candidate.reason.clone(),
            since: candidate.seen.unix_seconds(),
            is_rejected: candidate.rejected.is_some(),
            is_ordered: candidate.ordered,
            order: order_of(candidate),
        }),
        blind: blind.map(str::to_owned),
    }
}

fn ended(finished: &FinishedRollout, now: Time) -> RolloutView {
    let candidate = &finished.candidate;
    let number = |revision: Option<Revision>| revision.map(|revision| revision.0);
    let at = |time: Option<Time>| time.map(Time::unix_seconds);
    RolloutView {
        revision: candidate.revision.0,
        outcome: finished.outcome.as_str(),
        text: finished.text.clone(),
        reason: candidate.reason.clone(),
        order: order_of(candidate),
        serving: number(candidate.serving),
        target: number(candidate.target),
        created_revision: number(candidate.created_revision),
        appeared_at: candidate.seen.unix_seconds(),
        complete_at: at(candidate.complete),
        rejected_at: at(candidate.rejected),
        begun_at: at(candidate.begun),
        ended_at: finished.at.unix_seconds(),
        steps: steps_of(candidate, true, now),
    }
}

fn order_of(candidate: &Candidate) -> Option<String> {
    candidate.order.as_ref().map(|order| order.id.to_string())
}

fn says(state: &State) -> String {
    match state.rollout.phase() {
        RolloutPhase::NotInstalled => "There is no such release".into(),
        RolloutPhase::Idle => match state.rollout.last_ended() {
            Some(finished) => {
                let says = format!(
                    "Revision {}: {}",
                    finished.candidate.revision, finished.text
                );
                match bake::view(state).filter(|bake| bake.state == "baking") {
                    Some(bake) => format!(
                        "{says}; it bakes until it is known to be good: {}",
                        bake.text
                    ),
                    None => says,
                }
            }
            None => "No new revision has appeared since we watch".into(),
        },
        RolloutPhase::RollingOut(candidate) => format!(
            "Revision {} is judged while its rollout runs",
            candidate.revision
        ),
        RolloutPhase::Analyzing(candidate) => format!("Revision {} is judged", candidate.revision),
        RolloutPhase::Preflight(candidate) if candidate.ordered => format!(
            "A person ordered a rollback of revision {}; looking whether it can be done",
            candidate.revision
        ),
        RolloutPhase::RollingBack(candidate) if candidate.ordered => format!(
            "Rolling back from revision {} to revision {}, as a person ordered",
            candidate.revision,
            candidate.target.unwrap_or_default()
        ),
        RolloutPhase::Preflight(candidate) => format!(
            "Revision {} is bad; looking whether it can be rolled back",
            candidate.revision
        ),
        RolloutPhase::RollingBack(candidate) => {
            let target = candidate.target.unwrap_or_default();
            format!(
                "Revision {} is bad; rolling back to revision {target}",
                candidate.revision
            )
        }
        RolloutPhase::Verifying(candidate) => {
            let target = candidate.target.unwrap_or_default();
            format!("Rolled back to the contents of revision {target}; its probes are asked")
        }
    }
}

fn analysis(running: &RunningAnalysis) -> AnalysisView {
    let analysis = &running.analysis;
    let rule = analysis.rule();
    AnalysisView {
        elapsed_s: analysis.elapsed_s(),
        length_s: analysis.ends_at_s(),
        e_value: analysis.e_value().min(1e300),
        threshold: rule.threshold(),
        coverage: analysis.coverage(),
        complete: analysis.complete_at().is_some(),
        e_values: running.e_values.clone(),
        strata: analysis
            .report()
            .into_iter()
            .map(|stratum| StratumView {
                name: stratum.name.to_string(),
                failed: stratum.failed,
                total: stratum.total,
                baseline_failed: stratum.before_failed,
                baseline_total: stratum.before_total,
                e_value: 10f64.powf(stratum.log10_e.min(300.0)),
            })
            .collect(),
        excluded: analysis
            .excluded()
            .map(|(name, _)| name.to_owned())
            .collect(),
        direct: if running.direct.contains(&true) {
            let asked = running.pods.len();
            format!("{asked} pods were asked directly")
        } else {
            "pods are not asked directly".to_owned()
        },
        unknown: analysis
            .unknown()
            .filter(|(_, count)| *count > 0)
            .map(|(cause, count)| UnknownView {
                reason: cause.as_str(),
                count,
                text: cause.words(),
            })
            .collect(),
        not_judged: not_judged(analysis),
        slower: analysis.slower().map(|slower| slower.text.clone()),
        learned_from: analysis.learned_from(),
    }
}

/// What is excluded and why: endpoints first, then results of the others.
fn not_judged(analysis: &Analysis) -> Vec<String> {
    let endpoints = analysis
        .excluded()
        .map(|(name, why)| format!("{name} does not count, because {why}"));
    let results = analysis.unknown().filter(|(_, count)| *count > 0);
    let results = results.map(|(cause, count)| {
        let results = if count == 1 { "result" } else { "results" };
        format!("{count} {results} {}", cause.words())
    });
    endpoints.chain(analysis.excuses()).chain(results).collect()
}

/// The verdict of an analysis that ends; `None` if a newer revision ended it.
pub(super) fn verdict(running: &RunningAnalysis, now: Time) -> Option<VerdictView> {
    let analysis = &running.analysis;
    let conclusion = analysis.conclude();
    let strongest = analysis.strongest().map_or_else(String::new, |strongest| {
        format!(
            "The strongest evidence was an e-value of {} of {:.0} that are needed, after {:.0} s, most of it from {}",
            number(strongest.e),
            analysis.rule().threshold(),
            strongest.t,
            strongest.stratum
        )
    });
    let mut excluded = not_judged(analysis);
    if let Some(slower) = analysis.slower() {
        excluded.push(format!("slower: {}", slower.text));
    }
    let with_excluded = |text: &str| {
        let parts = std::iter::once(text).chain(excluded.iter().map(String::as_str));
        parts
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    };
    let (text, otherwise) = match &conclusion {
        Verdict::Analyzing => return None,
        Verdict::Rollback(regression) => (
            with_excluded(&regression.text),
            regression.otherwise.clone(),
        ),
        Verdict::Healthy => (with_excluded(&strongest), String::new()),
        Verdict::Inconclusive(why) => (
            format!(
                "Nothing can be said ({}). {}",
                why.as_str(),
                with_excluded(&strongest)
            ),
            String::new(),
        ),
    };
    Some(VerdictView {
        revision: running.revision.0,
        verdict: conclusion.word().to_owned(),
        reason: conclusion.reason(),
        text: text + &others(&running.alerts, ""),
        failing: running.failing(),
        otherwise,
        slower: analysis.slower().map(|slower| slower.text.clone()),
        at: now.unix_seconds(),
    })
}

fn steps(state: &State, now: Time) -> Vec<StepView> {
    let last = || {
        state
            .rollout
            .last_ended()
            .map(|finished| &finished.candidate)
    };
    let is_over = state.rollout.phase().candidate().is_none();
    let Some(candidate) = state.rollout.phase().candidate().or_else(last) else {
        return Vec::new();
    };
    steps_of(candidate, is_over, now)
}

fn steps_of(candidate: &Candidate, is_over: bool, now: Time) -> Vec<StepView> {
    if candidate.rejected.is_none() {
        return Vec::new();
    }
    candidate
        .timings()
        .iter()
        .map(|timing| {
            let limit = timing.step.limit();
            let running = timing.from.filter(|_| timing.to.is_none() && !is_over);
            let took = timing
                .took()
                .or_else(|| running.map(|from| now.since(from)));
            let state = match (timing.took(), took) {
                (_, Some(took)) if took > limit => "late",
                (Some(_), _) => "met",
                (None, Some(_)) => "running",
                (None, None) => "open",
            };
            StepView {
                step: StepName::as_str(timing.step),
                counts: timing.step.counts(),
                limit_s: limit.as_secs_f64(),
                took_s: took.map(|took| took.as_secs_f64()),
                state,
            }
        })
        .collect()
}

fn history(state: &State, release_state: &ReleaseState) -> Vec<RevisionView> {
    release_state
        .revisions
        .iter()
        .rev()
        .take(MAX_SHOWN)
        .map(|record| {
            let finished = state.rollout.finished().iter().rev().find(|finished| {
                finished.candidate.revision == record.revision
                    && finished.outcome != RolloutOutcome::OrderRefused
            });
            RevisionView {
                revision: record.revision.0,
                status: record.status.to_string(),
                outcome: finished.map(|finished| finished.outcome.as_str()),
                text: finished.map_or_else(
                    || record.description.clone(),
                    |finished| finished.text.clone(),
                ),
                at: finished.map(|finished| finished.at.unix_seconds()),
            }
        })
        .collect()
}
