//! The paths that reject a revision.

use super::Analysis;
use crate::core::analysis::comparison::{Comparison, RisingStratum, StratumKind};
use crate::core::analysis::pod_results::EndpointDown;
use crate::core::analysis::regression::{
    self, Regression, RegressionReason, SlowerAnswers, StratumName,
};
use crate::core::analysis::workloads::{NotReady, WorkloadProgress};
use crate::core::analysis::{PodState, StuckReason, TickOutcome, WorkloadDiff};

impl Analysis {
    /// Path A.
    pub(super) fn crash_loop(&self, now: u32, t: f64, pods: &[PodState]) -> Option<Regression> {
        let rule = &self.rule;
        let needed = |pod: &PodState| {
            let least = if pod.crash_loop_back_off {
                rule.crash_restarts.min(rule.crash_restarts_hard)
            } else {
                rule.crash_restarts_hard
            };
            least + self.workloads.normal_restarts(pod)
        };
        let looping = pods.iter().find(|pod| {
            !pod.old_too && self.workloads.can_reject(pod) && pod.restarts >= needed(pod)
        })?;
        let mut details = Vec::new();
        if !looping.container.is_empty() {
            details.push(format!("container {}", looping.container));
        }
        if looping.crash_loop_back_off {
            details.push("CrashLoopBackOff".to_owned());
        }
        let normal = self.workloads.normal_restarts(looping);
        if normal > 0 {
            details.push(format!("up to {normal} are normal for it"));
        }
        let details = if details.is_empty() {
            String::new()
        } else {
            format!(" ({})", details.join(", "))
        };
        let workload = self.workloads.named(&looping.workload);
        Some(Regression {
            reason: RegressionReason::CrashLoop,
            tick: now,
            t,
            e: None,
            text: format!(
                "{} restarted {} times{details}{}",
                new_pod(&looping.workload, workload.map(|(_, state)| state)),
                looping.restarts,
                unknown_change(workload.map(|(_, state)| state))
            ),
            otherwise: format!(
                "With fewer than {} restarts, or with an old pod of the same workload that does the same, it would not \
                 have been held against the revision.",
                needed(looping)
            ),
        })
    }

    /// Beside path A: pods that cannot even start.
    pub(super) fn cannot_start(&self, now: u32, t: f64) -> Option<Regression> {
        let pod = self.workloads.cannot_start(&self.rule, t)?;
        let workload = self.workloads.state_of(pod.workload);
        let which = if pod.container.is_empty() {
            String::new()
        } else {
            format!(" of container {}", pod.container)
        };
        let what = match pod.what {
            StuckReason::Image => format!("the image{which} cannot be pulled"),
            StuckReason::Container if pod.container.is_empty() => {
                "its container cannot be created".into()
            }
            StuckReason::Container => format!("container {} cannot be created", pod.container),
        };
        let name = workload.map_or("", |state| &state.is.name);
        Some(Regression {
            reason: RegressionReason::CannotStart,
            tick: now,
            t,
            e: None,
            text: if workload.is_some() {
                format!(
                    "no {} became Ready, and one could not start for {:.0} s: {what}{}",
                    new_pod(name, workload),
                    self.rule.stuck_s,
                    unknown_change(workload)
                )
            } else {
                format!("a new pod could not start for {:.0} s: {what}", self.rule.stuck_s)
            },
            otherwise: "Had one new pod of the same workload become Ready, or had an old pod of it the same trouble, \
                        it would not have been held against the revision."
                .into(),
        })
    }

    /// Path E.
    pub(super) fn not_ready(&self, now: u32, t: f64) -> Option<Regression> {
        let (state, why) = self.workloads.not_ready(&self.rule, t)?;
        let name = &state.is.name;
        // `web` of `Deployment web`.
        let short = name.rsplit(' ').next().unwrap_or(name);
        let (what, otherwise) = match why {
            NotReady::Late { after_s } if state.is.ready_s > 0.0 => (
                format!(
                    "none in {after_s:.0} s (the rollouts before took up to {:.0} s)",
                    state.is.ready_s
                ),
                "Had one become Ready in that time".to_owned(),
            ),
            NotReady::Late { after_s } => (
                format!("none in {after_s:.0} s"),
                "Had one become Ready in that time".to_owned(),
            ),
            NotReady::Deadline => (
                "its progress deadline was exceeded".to_owned(),
                "Had one become Ready before the deadline".to_owned(),
            ),
            NotReady::Refused => (
                format!(
                    "its pods could not be created for {:.0} s",
                    self.rule.stuck_s
                ),
                "Had its pods been created".to_owned(),
            ),
        };
        Some(Regression {
            reason: RegressionReason::NotReady(short.into()),
            tick: now,
            t,
            e: None,
            text: format!(
                "no {} became Ready: {what}{}",
                new_pod(name, Some(state)),
                unknown_change(Some(state))
            ),
            otherwise: format!("{otherwise}, the revision would have been watched further."),
        })
    }

    /// Path B.
    pub(super) fn hard_down(&self, now: u32, t: f64, is_unsettled: bool) -> Option<Regression> {
        let regression = |reason, text, ticks: u32| Regression {
            reason,
            tick: now,
            t,
            e: None,
            text,
            otherwise: format!(
                "One good answer among the last {ticks} results would have ended the run, and the revision would have been \
                 watched further."
            ),
        };
        if self.all_run >= self.hold_all {
            let text = format!("every endpoint failed {} times in a row", self.all_run);
            return Some(regression(
                RegressionReason::HardDownAll,
                text,
                self.all_run,
            ));
        }
        let endpoints = self.endpoints.iter().zip(&self.failures.endpoints);
        let mut down = endpoints.filter(|(endpoint, compared)| {
            let holds = if self.limited {
                endpoint.hold_limited
            } else {
                endpoint.hold
            };
            compared.outcome == TickOutcome::Failure
                && endpoint.run >= holds[usize::from(is_unsettled)]
        });
        down.next().map(|(endpoint, _)| {
            let text = format!("{} failed {} times in a row", endpoint.name, endpoint.run);
            regression(
                RegressionReason::HardDown(endpoint.name.clone()),
                text,
                endpoint.run,
            )
        })
    }

    /// Path D.
    pub(super) fn pods_down(&self, now: u32, t: f64, down: EndpointDown) -> Regression {
        let name = &self.endpoints[down.endpoint].name;
        Regression {
            reason: RegressionReason::PodsDown(name.clone()),
            tick: now,
            t,
            e: None,
            text: format!(
                "{} new pods failed {name} {} times in a row while old pods answered",
                down.pods, down.ticks
            ),
            otherwise: format!(
                "One good answer of a new pod in the last {:.0} s, or old pods failing {name} as well, would have kept \
                 the revision under watch.",
                f64::from(down.ticks) * self.rule.interval_s
            ),
        }
    }

    /// Path C.
    pub(super) fn error_rate(&mut self, now: u32, t: f64) -> Option<Regression> {
        let rise = self.failures.evaluate(now)?;
        let name = self.name(&self.failures, rise.kind);
        let words = Self::words(&self.failures, &name, "errors", rise, t);
        Some(Regression {
            tick: now,
            t,
            e: Some(words.e),
            text: words.text(),
            otherwise: words.otherwise(),
            reason: RegressionReason::ErrorRate(name),
        })
    }

    /// Path C over slow answers: a notice, and a rejection if they may reject.
    pub(super) fn slow_answers(&mut self, now: u32, t: f64) -> Option<Regression> {
        if self.slower_notice.is_none()
            && let Some(slower) = &mut self.slower
            && let Some(rise) = slower.evaluate(now)
        {
            let slower = &self.slower.as_ref()?.comparison;
            let stratum = self.name(slower, rise.kind);
            let words = Self::words(slower, &stratum, "slow answers", rise, t);
            self.slower_notice = Some(Box::new(SlowerAnswers {
                tick: now,
                t,
                e: words.e,
                text: words.text(),
                stratum,
            }));
        }
        let rise = self.latency.as_mut()?.evaluate(now)?;
        let latency = &self.latency.as_ref()?.comparison;
        let name = self.name(latency, rise.kind);
        let words = Self::words(latency, &name, "slow answers", rise, t);
        Some(Regression {
            tick: now,
            t,
            e: Some(words.e),
            text: words.text(),
            otherwise: words.otherwise(),
            reason: RegressionReason::Latency(name),
        })
    }

    /// The numbers of a rise.
    fn words<'a>(
        of: &Comparison,
        name: &'a StratumName,
        what: &'static str,
        rise: RisingStratum,
        t: f64,
    ) -> regression::RiseNumbers<'a> {
        let rule = &of.rule;
        let (before, margin) =
            if let (StratumKind::Requests, Some(requests)) = (rise.kind, &of.requests) {
                (requests.before, requests.margin)
            } else {
                let stratum = of.stratum(rise.kind);
                (stratum.before, stratum.margin)
            };
        let (failed, total) = of.recent(rise.kind);
        let control = of.control(rise.kind);
        regression::RiseNumbers {
            stratum: name,
            what,
            failed,
            total,
            span_s: (t + rule.interval_s).min(of.span_s(rise.kind)),
            before: (before.failed, before.total),
            assumed: before.assumed.then_some(rule.p_assumed),
            old_pods: control
                .filter(|control| control.rate() > before.rate())
                .map(|control| (control.failed, control.total)),
            margin,
            e: rise.ln_e.exp(),
            threshold: rise.threshold,
            slow_block_s: rise.slow_blocks.then_some(rule.slow_block_s),
        }
    }
}

/// The pod in words.
fn new_pod(workload: &str, state: Option<&WorkloadProgress>) -> String {
    let mut text = "new pod".to_owned();
    if !workload.is_empty() {
        text = format!("{text} of {workload}");
    }
    if state.is_some_and(|state| state.is.change == Some(WorkloadDiff::Config)) {
        text.push_str(", which reads changed settings,");
    }
    text
}

/// A remark if it is unknown whether the revision changed the workload.
fn unknown_change(state: Option<&WorkloadProgress>) -> String {
    let Some((state, why)) = state.and_then(|state| Some((state, state.is.unknown.as_ref()?)))
    else {
        return String::new();
    };
    format!(
        "; whether this revision changed {} is not known: {why}",
        state.is.name
    )
}
