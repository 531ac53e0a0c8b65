//! The four paths that convict.

use super::Watch;
use super::report::Kind;
use crate::verdict::direct::Down;
use crate::verdict::finding::{Finding, Reason, Rise};
use crate::verdict::stratum::{LN_ZERO, ln, ln_sum};
use crate::verdict::{Change, Mark, PodState, Stuck};

impl Watch {
    /// Path A.
    pub(super) fn crash_loop(&self, now: u32, t: f64, pods: &[PodState]) -> Option<Finding> {
        let rule = &self.rule;
        let looping = pods.iter().find(|pod| {
            !pod.old_too
                && (pod.restarts >= rule.crash_restarts_hard
                    || pod.crash_loop_back_off && pod.restarts >= rule.crash_restarts)
        })?;
        let mut details = Vec::new();
        if !looping.container.is_empty() {
            details.push(format!("container {}", looping.container));
        }
        if looping.crash_loop_back_off {
            details.push("CrashLoopBackOff".to_owned());
        }
        let details = if details.is_empty() {
            String::new()
        } else {
            format!(" ({})", details.join(", "))
        };
        Some(Finding {
            reason: Reason::CrashLoop,
            tick: now,
            t,
            e: None,
            text: format!(
                "{} restarted {} times{details}{}",
                new_pod(looping),
                looping.restarts,
                unknown_change(looping)
            ),
            otherwise: format!(
                "With fewer than {} restarts, or with an old pod of the same workload that does the same, it would not \
                 have been held against the revision.",
                if looping.crash_loop_back_off {
                    rule.crash_restarts
                } else {
                    rule.crash_restarts_hard
                }
            ),
        })
    }

    /// Beside path A: pods that never come as far as to crash.
    pub(super) fn cannot_start(now: u32, t: f64, pods: &[PodState]) -> Option<Finding> {
        let mut pods = pods.iter().filter(|pod| !pod.old_too);
        let (pod, stuck) = pods.find_map(|pod| Some((pod, pod.stuck?)))?;
        let which = if pod.container.is_empty() {
            String::new()
        } else {
            format!(" of container {}", pod.container)
        };
        let what = match stuck {
            Stuck::Image => format!("the image{which} cannot be pulled"),
            Stuck::Container if pod.container.is_empty() => {
                "its container cannot be created".into()
            }
            Stuck::Container => format!("container {} cannot be created", pod.container),
        };
        Some(Finding {
            reason: Reason::CannotStart,
            tick: now,
            t,
            e: None,
            text: format!(
                "no {} became Ready, and one could not start for a minute: {what}{}",
                new_pod(pod),
                unknown_change(pod)
            ),
            otherwise: "Had one new pod of the same workload become Ready, or had an old pod of it the same trouble, \
                        it would not have been held against the revision."
                .into(),
        })
    }

    /// Path B.
    pub(super) fn hard_down(&self, now: u32, t: f64, is_settled: bool) -> Option<Finding> {
        let finding = |reason, text, ticks: u32| Finding {
            reason,
            tick: now,
            t,
            e: None,
            text,
            otherwise: format!(
                "One good answer in the last {:.0} s would have ended the run, and the revision would have been watched \
                 further.",
                f64::from(ticks) * self.rule.interval_s
            ),
        };
        if self.all_run >= self.hold_all {
            let text = format!("every endpoint failed {} times in a row", self.all_run);
            return Some(finding(Reason::HardDownAll, text, self.all_run));
        }
        self.endpoints.iter().find_map(|endpoint| {
            let hold = if is_settled {
                endpoint.hold
            } else {
                endpoint.hold_unsettled
            };
            (endpoint.mark == Mark::Bad && endpoint.run >= hold).then(|| {
                let text = format!("{} failed {} times in a row", endpoint.name, endpoint.run);
                finding(Reason::HardDown(endpoint.name.clone()), text, endpoint.run)
            })
        })
    }

    /// Path D.
    pub(super) fn pods_down(&self, now: u32, t: f64, down: Down) -> Finding {
        let name = &self.endpoints[down.endpoint].name;
        Finding {
            reason: Reason::PodsDown(name.clone()),
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
    pub(super) fn error_rate(&mut self, now: u32, t: f64) -> Option<Finding> {
        let rule = &self.rule;
        // One pass for the sum; the terms are made again only where something convicts.
        let mut ln_e = LN_ZERO;
        let mut largest = (LN_ZERO, 0u16);
        for at in 0..self.strata() {
            let stratum = self.stratum(at);
            let weighted = stratum.ln_weighted(stratum.ln_e(rule));
            ln_e = ln_sum(&[ln_e, weighted]);
            if weighted > largest.0 {
                largest = (weighted, at as u16);
            }
        }
        self.ln_e = ln_e;
        if self.strongest.is_none_or(|(most, _, _)| ln_e > most) {
            self.strongest = Some((ln_e, largest.1, now));
        }
        let needed = ln(rule.threshold());
        if ln_e < needed {
            return None;
        }
        let mut best: Option<(f64, usize)> = None;
        for at in 0..self.strata() {
            let stratum = self.stratum(at);
            let own = stratum.ln_e(rule);
            if own < needed + 0.1f64.ln() || !self.passes(at, now, t) {
                continue;
            }
            let weighted = stratum.ln_weighted(own);
            if best.is_none_or(|(most, _)| weighted > most) {
                best = Some((weighted, at));
            }
        }
        let (_, at) = best?;
        let stratum = self.stratum(at);
        let (failed, total) = self.recent(at);
        let control = self.control(at);
        let name = self.name(at);
        let rise = Rise {
            stratum: &name,
            failed,
            total,
            span_s: (t + rule.interval_s).min(self.span_s(at)),
            before: (stratum.before.failed, stratum.before.total),
            assumed: stratum.before.assumed.then_some(rule.p_assumed),
            old_pods: control
                .filter(|control| control.rate() > stratum.before.rate())
                .map(|control| (control.failed, control.total)),
            margin: stratum.margin,
            e: ln_e.exp(),
            threshold: rule.threshold(),
        };
        Some(Finding {
            tick: now,
            t,
            e: Some(ln_e.exp()),
            text: rise.text(),
            otherwise: rise.otherwise(),
            reason: Reason::ErrorRate(name),
        })
    }

    /// Tests 2 and 3 of path C.
    pub(super) fn passes(&self, at: usize, now: u32, t: f64) -> bool {
        let rule = &self.rule;
        let stratum = self.stratum(at);
        let (failed, total) = self.recent(at);
        let is_alive = match (self.kind(at), &self.requests) {
            (Kind::Requests, Some(requests)) => {
                let lately = rule.still_failing_s.max(2.0 * requests.interval_s);
                stratum.failing_ticks >= rule.min_failing_scrapes
                    && t - requests.last_failing_t <= lately + 1e-9
            }
            (Kind::Pool | Kind::Endpoint(_) | Kind::NewPods | Kind::Requests, _) => {
                stratum.is_alive(rule, now)
            }
        };
        is_alive && stratum.rose(failed, total, self.control(at))
    }
}

/// Which pod it is, in words.
fn new_pod(pod: &PodState) -> String {
    let mut text = "new pod".to_owned();
    if !pod.workload.is_empty() {
        text = format!("{text} of {}", pod.workload);
    }
    if pod.change == Some(Change::Config) {
        text.push_str(", which reads changed settings,");
    }
    text
}

/// That it is not known whether the revision changed the workload, where that is so.
fn unknown_change(pod: &PodState) -> String {
    let Some(why) = &pod.unknown else {
        return String::new();
    };
    format!(
        "; whether this revision changed {} is not known: {why}",
        pod.workload
    )
}
