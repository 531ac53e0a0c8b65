//! What the probes of a release hang on: dependencies, and other guarded releases.

use std::collections::BTreeMap;

use super::Guard;
use super::saved::Watching;
use crate::config::settings::{Need, Probe, Release};
use crate::daemon::runner::{Crew, Heard};
use crate::recording;
use crate::rollout::Phase;
use crate::sounding::Outcome;
use crate::units::ProbeName;
use crate::verdict::{Dependency, Mark};

/// What a watch calls a release that is needed begins with this.
const RELEASE: &str = "release:";

/// How dependencies stand, by name: whether a revision is judged or not.
pub(super) type Needed = BTreeMap<ProbeName, Dependency>;

/// The dependencies that a release needs.
pub(super) fn names(release: &Release) -> Vec<ProbeName> {
    let needs = release.needs();
    let names = needs.into_iter().filter_map(Need::dependency);
    names.map(ProbeName::new).collect()
}

/// All that a release needs, as a watch names it.
pub(super) fn all(release: &Release) -> Vec<Box<str>> {
    let needs = release.needs();
    needs.iter().map(|need| need.to_string().into()).collect()
}

/// For each probe the places of what it needs; empty where none needs anything.
pub(super) fn of_probes(release: &Release) -> Vec<Vec<u16>> {
    let all = release.needs();
    if all.is_empty() {
        return Vec::new();
    }
    let place = |need: &Need| {
        let place = all.iter().position(|one| *one == need)?;
        u16::try_from(place).ok()
    };
    let probes = release.probes.iter();
    probes
        .map(|probe| probe.needs.iter().filter_map(place).collect())
        .collect()
}

/// What became known in a tick of all that is needed: of a dependency its newest result, of a release where it stands.
pub(super) fn row(watching: &mut Watching, crew: &Crew) -> Box<str> {
    let mut marks = std::mem::take(&mut watching.needed);
    let names = watching.watch.dependencies();
    marks.resize(watching.watch.dependencies().count(), Mark::Void);
    for (mark, name) in marks.iter_mut().zip(names) {
        if let Some(release) = name.strip_prefix(RELEASE) {
            *mark = match crew.is_suspect(release) {
                Some(true) => Mark::Bad,
                Some(false) => Mark::Good,
                // Another replica guards it, or nobody does.
                None => Mark::Void,
            };
        }
    }
    recording::row(&marks)
}

impl Guard {
    /// A dependency was asked. It may be asked more often than ticks end, for another release: the newest result counts.
    pub(super) fn on_dependency(&mut self, name: &ProbeName, heard: &Heard) {
        let mark = match heard.outcome {
            Outcome::Good => Mark::Good,
            // Neither a rate limit nor a name server says anything of it.
            Outcome::Bad(_) if heard.unanswered || heard.limited.is_some() => return,
            Outcome::Bad(_) => Mark::Bad,
            Outcome::Void(_) => return,
        };
        let rule = &self.setup.release.guard.rule;
        let known = self.needed.entry(name.clone());
        let known = known.or_insert_with(|| Dependency::new(name.as_str()));
        known.take(rule, mark);
        let Some(watching) = &mut self.state.watching else {
            return;
        };
        let mut names = watching.watch.dependencies();
        let Some(at) = names.position(|one| one == name.as_str()) else {
            return; // configured during the watch
        };
        let count = watching.watch.dependencies().count();
        watching.needed.resize(count, Mark::Void);
        watching.needed[at] = mark;
    }

    /// Whether something fails that a probe needs.
    pub(super) fn is_excused(&self, probe: &Probe) -> bool {
        probe.needs.iter().any(|need| match need {
            Need::Dependency(name) => {
                let mut all = self.needed.iter();
                let known = all.find(|(known, _)| known.as_str() == &**name);
                known.is_some_and(|(_, known)| known.is_failing())
            }
            Need::Release(namespace, name) => {
                let release = format!("{namespace}/{name}");
                self.setup.crew.is_suspect(&release) == Some(true)
            }
        })
    }

    /// Whether this release is rejected or failing, for those that need it.
    pub(super) fn tell_whether_suspect(&self) {
        let phase = self.state.rollout.phase();
        let is_rejected = matches!(
            phase,
            Phase::Preflight(_) | Phase::TurningBack(_) | Phase::Verifying(_)
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
        self.setup.crew.suspect(&name, Some(is_suspect));
    }
}
