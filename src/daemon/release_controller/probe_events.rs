//! Kubernetes Events about the probes and budgets of a release.
//!
//! A flapping probe is reported only when a whole row of results changes, and the cluster merges repeated Events.

use std::collections::BTreeSet;

use super::ReleaseController;
use crate::core::probe_result::Outcome;
use crate::daemon::alerting::in_a_row;
use crate::release::ReleaseEvent;

/// Recent results of one probe.
#[derive(Debug, Clone, Copy, Default)]
struct RecentResults {
    /// Results of the same kind in a row; unknown ones do not count.
    length: u32,
    is_good: bool,
    /// Whether it was reported as failing.
    is_told: bool,
}

/// What was reported about a release's probes and budgets.
#[derive(Debug, Default)]
pub(super) struct ReportedState {
    rows: Vec<RecentResults>,
    spent: BTreeSet<String>,
}

/// A change that is worth an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeChange {
    Failing,
    Recovered,
}

impl RecentResults {
    /// Takes a result; `in_a_row` of one kind make a change.
    const fn hears(&mut self, is_good: bool, in_a_row: u32) -> Option<ProbeChange> {
        if self.is_good != is_good {
            self.length = 0;
            self.is_good = is_good;
        }
        self.length = self.length.saturating_add(1);
        if self.length < in_a_row || self.is_told != is_good {
            return None;
        }
        self.is_told = !is_good;
        Some(if is_good {
            ProbeChange::Recovered
        } else {
            ProbeChange::Failing
        })
    }
}

impl ReportedState {
    fn hears(&mut self, endpoint: usize, is_good: bool, in_a_row: u32) -> Option<ProbeChange> {
        if self.rows.len() <= endpoint {
            self.rows.resize(endpoint + 1, RecentResults::default());
        }
        self.rows[endpoint].hears(is_good, in_a_row)
    }
}

impl ReleaseController {
    /// Emits an Event when a probe starts to fail, or recovers.
    pub(super) fn tell_of_probe(&mut self, endpoint: usize, outcome: Outcome) {
        let is_good = match outcome {
            Outcome::Success => true,
            Outcome::Failure(_) => false,
            Outcome::Unknown(_) => return,
        };
        let Some(probe) = self.setup.release.probes.get(endpoint) else {
            return;
        };
        let (name, interval) = (probe.id.probe.clone(), probe.interval);
        let Some(news) = self.told.hears(endpoint, is_good, in_a_row(interval)) else {
            return;
        };
        let is_warning = news == ProbeChange::Failing;
        let (reason, text) = if is_warning {
            let why = outcome.words().1.unwrap_or_default();
            ("ProbeFailing", format!("The probe {name} fails: {why}"))
        } else {
            ("ProbeRecovered", format!("The probe {name} answers again"))
        };
        self.note(is_warning, reason, "Probe", text);
    }

    /// Emits an Event when a budget is exhausted.
    pub(super) fn tell_of_budgets(&mut self) {
        let id = &self.setup.release;
        let spent = self.setup.executor.spent_of(&id.namespace, &id.name);
        let new: Vec<_> = spent.difference(&self.told.spent).cloned().collect();
        self.told.spent = spent;
        for what in new {
            let text = format!("The error budget of {what} is spent");
            self.note(true, "BudgetExhausted", "Measure", text);
        }
    }

    /// Emits an Event about the current revision.
    fn note(&mut self, is_warning: bool, reason: &'static str, action: &'static str, text: String) {
        if let Some(revision) = self.shown {
            self.post(ReleaseEvent {
                is_warning,
                reason,
                action,
                text,
                revision,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_rows_are_told_of_and_once() {
        let mut told = ReportedState::default();
        let mut hears = |answers: &str| -> Vec<Option<ProbeChange>> {
            let answers = answers.chars();
            answers
                .map(|answer| told.hears(1, answer == '+', 3))
                .collect()
        };
        assert_eq!(hears("+++--+-"), [None; 7], "nothing has failed yet");
        assert_eq!(hears("--"), [None, Some(ProbeChange::Failing)]);
        assert_eq!(hears("--++-+"), [None; 6]);
        assert_eq!(hears("++"), [None, Some(ProbeChange::Recovered)]);
        assert_eq!(hears("+++"), [None; 3]);
    }
}
