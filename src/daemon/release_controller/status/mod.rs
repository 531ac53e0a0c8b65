//! What is shown of a guarded release.

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

/// Entries and revisions that are shown.
const MAX_SHOWN: usize = 50;

pub(super) fn of(
    setup: &Startup,
    state: &State,
    facts: &ReleaseState,
    obstacle: &str,
    blind: Option<&str>,
    now: Time,
) -> GuardView {
    let release = &setup.release;
    let rollout = &state.rollout;
    GuardView {
        namespace: release.namespace.to_string(),
        release: release.name.to_string(),
        mode: release.guard.mode.as_str(),
        engine: Some(setup.engine.name()),
        phase: rollout.phase().as_str().to_owned(),
        revision: rollout.newest().map(|revision| revision.0),
        at_hand: rollout.phase().case().map(|case| case.revision.0),
        phase_since: Some(rollout.since().unix_seconds()),
        says: if *setup.waits.borrow() {
            format!("{}; other settings wait until this has ended", says(state))
        } else {
            says(state)
        },
        obstacle: (!obstacle.is_empty()).then(|| obstacle.to_owned()),
        remarks: facts.remarks.clone(),
        watch: state.watching.as_ref().map(watch),
        bake: bake::view(state),
        latencies: latencies::view(state),
        verdict: state.verdict.clone(),
        steps: steps(state, now),
        history: history(state, facts),
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
        rollouts: rollout.past().iter().map(|past| ended(past, now)).collect(),
        case: rollout.phase().case().map(|case| CandidateView {
            revision: case.revision.0,
            text: case.text.clone(),
            reason: case.reason.clone(),
            since: case.seen.unix_seconds(),
            is_convicted: case.convicted.is_some(),
            is_ordered: case.ordered,
            order: order_of(case),
        }),
        blind: blind.map(str::to_owned),
    }
}

fn ended(past: &FinishedRollout, now: Time) -> RolloutView {
    let case = &past.case;
    let number = |revision: Option<Revision>| revision.map(|revision| revision.0);
    let at = |time: Option<Time>| time.map(Time::unix_seconds);
    RolloutView {
        revision: case.revision.0,
        ending: past.ending.as_str(),
        text: past.text.clone(),
        reason: case.reason.clone(),
        order: order_of(case),
        serving: number(case.serving),
        target: number(case.target),
        made: number(case.made),
        seen_at: case.seen.unix_seconds(),
        settled_at: at(case.settled),
        convicted_at: at(case.convicted),
        begun_at: at(case.begun),
        ended_at: past.at.unix_seconds(),
        steps: steps_of(case, true, now),
    }
}

fn order_of(case: &Candidate) -> Option<String> {
    case.order.as_ref().map(|order| order.id.to_string())
}

fn says(state: &State) -> String {
    match state.rollout.phase() {
        RolloutPhase::Absent => "There is no such release".into(),
        RolloutPhase::Steady => match state.rollout.last_ended() {
            Some(past) => {
                let says = format!("Revision {}: {}", past.case.revision, past.text);
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
        RolloutPhase::Settling(case) => format!(
            "Revision {} is judged while its rollout runs",
            case.revision
        ),
        RolloutPhase::Watching(case) => format!("Revision {} is judged", case.revision),
        RolloutPhase::Preflight(case) if case.ordered => format!(
            "A person ordered a rollback of revision {}; looking whether it can be done",
            case.revision
        ),
        RolloutPhase::TurningBack(case) if case.ordered => format!(
            "Rolling back from revision {} to revision {}, as a person ordered",
            case.revision,
            case.target.unwrap_or_default()
        ),
        RolloutPhase::Preflight(case) => format!(
            "Revision {} is bad; looking whether it can be turned back",
            case.revision
        ),
        RolloutPhase::TurningBack(case) => {
            let target = case.target.unwrap_or_default();
            format!(
                "Revision {} is bad; turning back to revision {target}",
                case.revision
            )
        }
        RolloutPhase::Verifying(case) => {
            let target = case.target.unwrap_or_default();
            format!("Turned back to the contents of revision {target}; its probes are asked")
        }
    }
}

fn watch(watching: &RunningAnalysis) -> AnalysisView {
    let watch = &watching.watch;
    let rule = watch.rule();
    AnalysisView {
        elapsed_s: watch.elapsed_s(),
        length_s: watch.ends_at_s(),
        e_value: watch.e_value().min(1e300),
        threshold: rule.threshold(),
        coverage: watch.coverage(),
        settled: watch.settled_at().is_some(),
        e_values: watching.trace.clone(),
        strata: watch
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
        aside: watch.aside().map(|(name, _)| name.to_owned()).collect(),
        direct: if watching.direct.contains(&true) {
            let asked = watching.pods.len();
            format!("{asked} pods were asked directly")
        } else {
            "pods are not asked directly".to_owned()
        },
        unknown: watch
            .void()
            .filter(|(_, count)| *count > 0)
            .map(|(cause, count)| UnknownView {
                reason: cause.as_str(),
                count,
                text: cause.words(),
            })
            .collect(),
        not_judged: not_judged(watch),
        slower: watch.slower().map(|slower| slower.text.clone()),
        learned_from: watch.learned_from(),
    }
}

/// What does not count, and why: endpoints, then results of those that do.
fn not_judged(watch: &Analysis) -> Vec<String> {
    let endpoints = watch
        .aside()
        .map(|(name, why)| format!("{name} does not count, because {why}"));
    let results = watch.void().filter(|(_, count)| *count > 0);
    let results = results.map(|(cause, count)| {
        let results = if count == 1 { "result" } else { "results" };
        format!("{count} {results} {}", cause.words())
    });
    endpoints.chain(watch.excuses()).chain(results).collect()
}

/// The verdict of a watch that ends; `None` when a newer revision ended it.
pub(super) fn verdict(watching: &RunningAnalysis, now: Time) -> Option<VerdictView> {
    let watch = &watching.watch;
    let conclusion = watch.conclude();
    let strongest = watch.strongest().map_or_else(String::new, |strongest| {
        format!(
            "The strongest evidence was an e-value of {} of {:.0} that are needed, after {:.0} s, most of it from {}",
            number(strongest.e),
            watch.rule().threshold(),
            strongest.t,
            strongest.stratum
        )
    });
    let mut aside = not_judged(watch);
    if let Some(slower) = watch.slower() {
        aside.push(format!("slower: {}", slower.text));
    }
    let with_aside = |text: &str| {
        let parts = std::iter::once(text).chain(aside.iter().map(String::as_str));
        parts
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    };
    let (text, otherwise) = match &conclusion {
        Verdict::Watching => return None,
        Verdict::Rollback(finding) => (with_aside(&finding.text), finding.otherwise.clone()),
        Verdict::Healthy => (with_aside(&strongest), String::new()),
        Verdict::Inconclusive(why) => (
            format!(
                "Nothing can be said ({}). {}",
                why.as_str(),
                with_aside(&strongest)
            ),
            String::new(),
        ),
    };
    Some(VerdictView {
        revision: watching.revision.0,
        verdict: conclusion.word().to_owned(),
        reason: conclusion.reason(),
        text: text + &others(&watching.alerts, ""),
        failing: watching.failing(),
        otherwise,
        slower: watch.slower().map(|slower| slower.text.clone()),
        at: now.unix_seconds(),
    })
}

fn steps(state: &State, now: Time) -> Vec<StepView> {
    let last = || state.rollout.last_ended().map(|past| &past.case);
    let is_over = state.rollout.phase().case().is_none();
    let Some(case) = state.rollout.phase().case().or_else(last) else {
        return Vec::new();
    };
    steps_of(case, is_over, now)
}

fn steps_of(case: &Candidate, is_over: bool, now: Time) -> Vec<StepView> {
    if case.convicted.is_none() {
        return Vec::new();
    }
    case.timings()
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

fn history(state: &State, facts: &ReleaseState) -> Vec<RevisionView> {
    facts
        .revisions
        .iter()
        .rev()
        .take(MAX_SHOWN)
        .map(|record| {
            let past = state.rollout.past().iter().rev().find(|past| {
                past.case.revision == record.revision && past.ending != RolloutOutcome::OrderRefused
            });
            RevisionView {
                revision: record.revision.0,
                status: record.status.to_string(),
                ending: past.map(|past| past.ending.as_str()),
                text: past.map_or_else(|| record.description.clone(), |past| past.text.clone()),
                at: past.map(|past| past.at.unix_seconds()),
            }
        })
        .collect()
}
