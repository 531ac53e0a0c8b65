//! What the probes of a release depend on: dependencies and other releases.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ReleaseController;
use super::state::RunningAnalysis;
use crate::config::settings::{NeedsEntry, ProbeConfig, ReleaseConfig};
use crate::core::analysis::{Dependency, TickOutcome};
use crate::core::probe_result::Outcome;
use crate::core::recording;
use crate::core::rollout::RolloutPhase;
use crate::core::units::ProbeName;
use crate::daemon::probe_executor::{ProbeExecutor, ProbeResultMsg};

/// Prefix of the name of a needed release in an analysis.
const RELEASE: &str = "release:";

/// State of the dependencies by name, also without an analysis.
pub(super) type DependencyStates = BTreeMap<ProbeName, Dependency>;

/// Names that a sentence lists.
const MAX_NAMED: usize = 3;

/// Probes whose failures were excused, each with the dependency that failed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct ExcusedProbes {
    needs: BTreeMap<Box<str>, Box<str>>,
    /// How many of them the log names so far.
    said: usize,
}

impl ExcusedProbes {
    pub(super) fn add(&mut self, probe: &str, need: &NeedsEntry) {
        if !self.needs.contains_key(probe) {
            self.needs.insert(probe.into(), need.to_string().into());
        }
    }

    /// Removes all other probes.
    pub(super) fn retain<'a>(&mut self, probes: impl Iterator<Item = &'a str>) {
        let probes: BTreeSet<&str> = probes.collect();
        self.needs.retain(|probe, _| probes.contains(&**probe));
        self.said = self.said.min(self.needs.len());
    }

    /// New entries as a sentence, once for each probe.
    pub(super) fn news(&mut self) -> Option<String> {
        if self.needs.len() <= self.said {
            return None;
        }
        self.said = self.needs.len();
        let needs: BTreeSet<&str> = self.needs.values().map(|need| &**need).collect();
        let probes = self.needs.keys().map(|probe| &**probe);
        Some(format!(
            "{} failed, so that failures of {} meanwhile are not judged",
            listed(needs.into_iter()),
            listed(probes)
        ))
    }
}

fn listed<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    let names: Vec<&str> = names.take(MAX_NAMED).collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// The dependencies that a release needs.
pub(super) fn names(release: &ReleaseConfig) -> Vec<ProbeName> {
    let needs = release.needs();
    let names = needs.into_iter().filter_map(NeedsEntry::dependency);
    names.map(ProbeName::new).collect()
}

/// Everything that a release needs, by its name in the analysis.
pub(super) fn all(release: &ReleaseConfig) -> Vec<Box<str>> {
    let needs = release.needs();
    needs.iter().map(|need| need.to_string().into()).collect()
}

/// For each probe the indices of what it needs; empty if no probe needs anything.
pub(super) fn of_probes(release: &ReleaseConfig) -> Vec<Vec<u16>> {
    let all = release.needs();
    if all.is_empty() {
        return Vec::new();
    }
    let place = |need: &NeedsEntry| {
        let place = all.iter().position(|one| *one == need)?;
        u16::try_from(place).ok()
    };
    let probes = release.probes.iter();
    probes
        .map(|probe| probe.needs.iter().filter_map(place).collect())
        .collect()
}

/// Outcomes of this tick for everything needed: the newest result of a dependency, the state of a release.
pub(super) fn row(running: &mut RunningAnalysis, executor: &ProbeExecutor) -> Box<str> {
    let mut outcomes = std::mem::take(&mut running.needed);
    let names = running.analysis.dependencies();
    outcomes.resize(
        running.analysis.dependencies().count(),
        TickOutcome::Unknown,
    );
    for (outcome, name) in outcomes.iter_mut().zip(names) {
        if let Some(release) = name.strip_prefix(RELEASE) {
            *outcome = match executor.is_suspect(release) {
                Some(true) => TickOutcome::Failure,
                Some(false) => TickOutcome::Success,
                // Another replica guards it, or nobody does.
                None => TickOutcome::Unknown,
            };
        }
    }
    recording::row(&outcomes)
}

impl ReleaseController {
    /// Takes the result of a dependency. There may be several per tick, because of another release: the newest counts.
    pub(super) fn on_dependency(&mut self, name: &ProbeName, message: &ProbeResultMsg) {
        let outcome = match message.outcome {
            Outcome::Success => TickOutcome::Success,
            // Neither a rate limit nor a name server says anything of it.
            Outcome::Failure(_) if message.unanswered || message.limited.is_some() => return,
            Outcome::Failure(_) => TickOutcome::Failure,
            Outcome::Unknown(_) => return,
        };
        let rule = &self.setup.release.controller.rule;
        let known = self.needed.entry(name.clone());
        let known = known.or_insert_with(|| Dependency::new(name.as_str()));
        known.take(rule, outcome);
        let Some(running) = &mut self.state.running else {
            return;
        };
        let mut names = running.analysis.dependencies();
        let Some(at) = names.position(|one| one == name.as_str()) else {
            return; // configured during the watch
        };
        let count = running.analysis.dependencies().count();
        running.needed.resize(count, TickOutcome::Unknown);
        running.needed[at] = outcome;
    }

    /// The first failing dependency of a probe.
    pub(super) fn failing_dependency<'a>(&self, probe: &'a ProbeConfig) -> Option<&'a NeedsEntry> {
        probe.needs.iter().find(|need| match need {
            NeedsEntry::Dependency(name) => {
                let mut all = self.needed.iter();
                let known = all.find(|(known, _)| known.as_str() == &**name);
                known.is_some_and(|(_, known)| known.is_failing())
            }
            NeedsEntry::Release(namespace, name) => {
                let release = format!("{namespace}/{name}");
                self.setup.executor.is_suspect(&release) == Some(true)
            }
        })
    }

    /// The same for a probe by name.
    pub(super) fn failing_dependency_of(&self, probe: &str) -> Option<&NeedsEntry> {
        let mut probes = self.setup.release.probes.iter();
        let probe = probes.find(|it| it.id.probe.as_str() == probe)?;
        self.failing_dependency(probe)
    }

    /// Publishes whether this release is rejected or failing, for the releases that need it.
    pub(super) fn tell_whether_suspect(&self) {
        let phase = self.state.rollout.phase();
        let is_rejected = matches!(
            phase,
            RolloutPhase::Preflight(_) | RolloutPhase::RollingBack(_) | RolloutPhase::Verifying(_)
        );
        let release = &self.setup.release;
        let fails = |name: &str| {
            let known = self.state.probes.get(name);
            known.is_some_and(|known| known.baseline.is_failing())
        };
        let mut probes = release.probes.iter();
        let is_failing = probes.any(|probe| fails(probe.id.probe.as_str()));
        let name = format!("{}/{}", release.namespace, release.name);
        let is_suspect = is_rejected || is_failing;
        self.setup.executor.suspect(&name, Some(is_suspect));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeline_names_each_excused_probe_once() {
        let mut excused = ExcusedProbes::default();
        assert_eq!(excused.news(), None);
        let postgres = NeedsEntry::Dependency("postgres".into());
        excused.add("db", &postgres);
        excused.add("db", &NeedsEntry::Dependency("redis".into()));
        let says = "postgres failed, so that failures of db meanwhile are not judged";
        assert_eq!(excused.news().as_deref(), Some(says));
        assert_eq!(excused.news(), None);
        for probe in ["api", "cart", "orders"] {
            excused.add(probe, &postgres);
        }
        let says = "postgres failed, so that failures of api, cart, db and 1 more meanwhile are not judged";
        assert_eq!(excused.news().as_deref(), Some(says));
        excused.retain(["db"].into_iter());
        assert_eq!(excused.news(), None);
    }
}
