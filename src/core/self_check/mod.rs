//! The self-check: when a result is unknown because the trouble is ours. Pure: results and times in, outcomes out.
//!
//! Three signs of our own trouble:
//! 1. *Late.* The probe started later than allowed, ended later than its timeout allows, or the process stood still
//!    meanwhile. Then the measured time is ours and not the target's, so the result is unknown whatever it says: a
//!    success would distort the latency, a failure may be our own absence.
//! 2. *All targets.* Probes of several hosts are configured, and at its last probe none of these hosts sent anything
//!    back. Such failures are then unknown. A refusal, a reset, a TLS alert and a partial answer all came back, so
//!    packets travel, and the failure counts. Hosts are distinguished by address: several names of one ingress are one
//!    host, and do not confirm each other.
//! 3. *Control.* The last two results of the control probe, which belongs to no release, were failures. All failures
//!    are then unknown. Successes stay successes: no trouble of ours makes a wrong answer right.
//!
//! Why our trouble does not become evidence: the first sign covers this process and machine, result by result. The
//! others cover the network before the targets. They first need a failure of each host (or two of the control probe),
//! so earlier failures still count, for about one interval: no verdict may rest on so few.
//!
//! Why a real outage of one app is not hidden for long:
//! - lateness excuses single results, and ends with our trouble;
//! - the second sign needs *all* hosts: one that answers with any status, or refuses, ends it with that answer. With
//!   fewer addresses than `hosts_failing`, and always with one, this sign does not exist. A failure excuses others only
//!   while it is fresh: [`SelfCheck::freshness`]. And a probe is not excused if any host has answered since it began to
//!   fail: something that breaks one path on every host, while other paths answer, is not our network;
//! - the third ends with one success of the control probe, or when it is no longer probed.
//!
//! What they cannot distinguish: an outage in which all hosts fall silent at once looks like our own lost network, and
//! stays unknown. It is reported all the same: [`SelfCheck::troubles`] names it for as long as it lasts, and it has an
//! alert of its own. `hosts_failing = 0` turns the sign off.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use crate::config::settings;
use crate::core::probe_result::{Outcome, ProbeResult, UnknownReason};
use crate::core::units::{Moment, ProbeId};

/// A heartbeat that is older says that the schedule stands still, and we with it. Four times its usual distance.
pub const BEAT_TOO_OLD: Duration = Duration::from_secs(1);

/// How long a trouble that shows only in single results counts as present after the last of them.
pub const TROUBLE_LASTS: Duration = Duration::from_secs(60);

/// Consecutive failures of the control probe that count as trouble: a single one may be its own.
const CONTROL_BAD: u32 = 2;

/// "All hosts" of fewer than two says nothing about us.
const FEWEST_HOSTS: usize = 2;

/// The state of the inner loop: whether we have been running at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it last woke.
    pub beat: Moment,
    /// When it last woke much later than it wanted to, if ever.
    pub last_stall_end: Option<Moment>,
}

/// State of the self-check. Memory is fixed by the number of configured probes.
#[derive(Debug)]
pub struct SelfCheck {
    late_after: Duration,
    hosts: FailingHosts,
    control: ControlProbe,
    /// When each trouble last made a result unknown.
    last_seen: [Option<Moment>; UnknownReason::COUNT],
}

impl SelfCheck {
    /// `probes`: each probe with the host of its target (of its proxy, where it has one) and its interval. The control
    /// probe is not among them.
    pub fn new(
        settings: &settings::SelfCheckConfig,
        probes: impl Iterator<Item = (ProbeId, String, Duration)>,
    ) -> Self {
        let control_interval = settings
            .control
            .as_ref()
            .map_or(Duration::ZERO, |probe| probe.interval);
        Self {
            late_after: settings.late_after,
            hosts: FailingHosts::new(settings.hosts_failing, probes),
            control: ControlProbe {
                fresh_for: Self::freshness(control_interval),
                bad_in_a_row: 0,
                last: Moment::default(),
            },
            last_seen: [None; UnknownReason::COUNT],
        }
    }

    /// How long a result speaks for the state of its host: three intervals, at least 10 s.
    pub fn freshness(interval: Duration) -> Duration {
        (interval * 3).max(Duration::from_secs(10))
    }

    /// The outcome after the self-check: the result's own, or unknown.
    ///
    /// Results are given in about the order in which they end. `pulse` and `now` are read when this is called, so that
    /// a standstill which ended a moment ago is known. Costs one lookup of the probe, for failures and answers alike.
    pub fn examine(
        &mut self,
        probe: &ProbeId,
        result: &ProbeResult,
        timeout: Duration,
        heartbeat: Heartbeat,
        now: Moment,
    ) -> Outcome {
        let outcome = self.judge(probe, result, timeout, heartbeat, now);
        if let Outcome::Unknown(reason) = outcome
            && let Some(seen) = self.last_seen.get_mut(reason.index())
        {
            *seen = Some(now);
        }
        outcome
    }

    fn judge(
        &mut self,
        probe: &ProbeId,
        result: &ProbeResult,
        timeout: Duration,
        heartbeat: Heartbeat,
        now: Moment,
    ) -> Outcome {
        if let Outcome::Unknown(_) = result.outcome {
            return result.outcome;
        }
        if self.is_late(result, timeout, heartbeat, now) {
            return Outcome::Unknown(UnknownReason::Late);
        }
        // The host's state is what we saw, before the doubt about it. Otherwise the doubt would starve itself: with no
        // failure left that counts it would end, let some through, and begin again.
        let transport = match result.outcome {
            Outcome::Failure(reason) => reason.is_transport() && !result.answer.reached,
            Outcome::Success | Outcome::Unknown(_) => false,
        };
        let entrance = result.answer.entrance;
        let proven = self.hosts.note(probe, transport, result.finished, entrance);
        match result.outcome {
            Outcome::Failure(_) if transport && !proven && self.hosts.all_fail(now) => {
                Outcome::Unknown(UnknownReason::AllTargets)
            }
            Outcome::Failure(_) if self.control.fails(now) => {
                Outcome::Unknown(UnknownReason::Control)
            }
            own @ (Outcome::Success | Outcome::Failure(_) | Outcome::Unknown(_)) => own,
        }
    }

    fn is_late(
        &self,
        result: &ProbeResult,
        timeout: Duration,
        heartbeat: Heartbeat,
        now: Moment,
    ) -> bool {
        result.lateness() > self.late_after
            || result.duration() > timeout.saturating_add(self.late_after)
            || now.since(heartbeat.beat) > BEAT_TOO_OLD
            // Also one that ended after `finished`: whoever was stopped reads all its clocks after the stop, in any order.
            || heartbeat
                .last_stall_end
                .is_some_and(|end| end >= result.started)
    }

    /// Takes a result of the control probe that ended at `at`. An unknown one says nothing and is not to be given.
    pub fn control(&mut self, good: bool, at: Moment) {
        self.control.bad_in_a_row = if good {
            0
        } else if at.since(self.control.last) > self.control.fresh_for {
            // What it said long ago is not "in a row" with this.
            1
        } else {
            self.control.bad_in_a_row.saturating_add(1)
        };
        self.control.last = at;
    }

    /// The current troubles. Those that only results show last for [`TROUBLE_LASTS`]; the lost network and the failing
    /// control probe last as long as they are true, whether or not a result was affected.
    pub fn troubles(&self, now: Moment) -> impl Iterator<Item = UnknownReason> + '_ {
        UnknownReason::ALL
            .iter()
            .copied()
            .filter(move |reason| match reason {
                UnknownReason::AllTargets => self.hosts.all_fail_exactly(now),
                UnknownReason::Control => self.control.fails(now),
                UnknownReason::Late
                | UnknownReason::NoFileDescriptors
                | UnknownReason::NoLocalPorts
                | UnknownReason::NoMemory
                | UnknownReason::ResolverBusy
                | UnknownReason::File
                | UnknownReason::Shutdown => self
                    .last_seen
                    .get(reason.index())
                    .copied()
                    .flatten()
                    .is_some_and(|seen| now.since(seen) <= TROUBLE_LASTS),
            })
    }
}

#[derive(Debug)]
struct ControlProbe {
    fresh_for: Duration,
    bad_in_a_row: u32,
    last: Moment,
}

impl ControlProbe {
    fn fails(&self, now: Moment) -> bool {
        self.bad_in_a_row >= CONTROL_BAD && now.since(self.last) <= self.fresh_for
    }
}

/// Which hosts fail. Empty, and without cost, when there are too few of them to say anything.
#[derive(Debug, Default)]
struct FailingHosts {
    of_probe: HashMap<ProbeId, ProbeState>,
    /// Until when each host counts as failing; `None` if its last evidence is an answer, or if there is none.
    failing_until: Vec<Option<Moment>>,
    /// How many of them are not `None`.
    failing: usize,
    /// The entrance of each host, as it was last seen; `None` where its name had no address so far.
    entrances: Vec<Option<IpAddr>>,
    /// How many different ones there are; `None` when one has changed.
    neighbours: Option<usize>,
    /// Number of hosts that must fail together.
    fewest: usize,
    /// No failure ends before this moment by age, so that until then the count alone is the answer.
    none_ends_before: Moment,
    /// The last complete answer of anyone: when it came, and for how long it proves that packets travel.
    answered: Option<(Moment, Moment)>,
}

#[derive(Debug)]
struct ProbeState {
    host: usize,
    fresh_for: Duration,
    /// When the first of its failures in a row ended; `None` while it gets answers.
    failing_since: Option<Moment>,
}

impl FailingHosts {
    fn new(
        hosts_failing: usize,
        probes: impl Iterator<Item = (ProbeId, String, Duration)>,
    ) -> Self {
        let mut index_of: HashMap<String, usize> = HashMap::new();
        let mut of_probe = HashMap::new();
        for (probe, host, interval) in probes {
            let next = index_of.len();
            // Names of hosts are the same in any case of letters.
            let index = *index_of.entry(host.to_ascii_lowercase()).or_insert(next);
            let state = ProbeState {
                host: index,
                fresh_for: SelfCheck::freshness(interval),
                failing_since: None,
            };
            of_probe.insert(probe, state);
        }
        let fewest = hosts_failing.max(FEWEST_HOSTS);
        if hosts_failing == 0 || index_of.len() < fewest {
            return Self::default();
        }
        Self {
            of_probe,
            failing_until: vec![None; index_of.len()],
            failing: 0,
            entrances: vec![None; index_of.len()],
            neighbours: None,
            fewest,
            none_ends_before: Moment::default(),
            answered: None,
        }
    }

    /// Keeps what a result that ended at `at` says about its host. Returns whether the network is known to have been
    /// there since the probe began to fail.
    fn note(&mut self, probe: &ProbeId, fails: bool, at: Moment, entrance: Option<IpAddr>) -> bool {
        let Some(probe) = self.of_probe.get_mut(probe) else {
            return false;
        };
        let Some(state) = self.failing_until.get_mut(probe.host) else {
            return false;
        };
        if let Some(known) = self.entrances.get_mut(probe.host)
            && entrance.is_some()
            && *known != entrance
        {
            *known = entrance;
            self.neighbours = None;
        }
        let until = fails.then(|| at + probe.fresh_for);
        if fails {
            probe.failing_since.get_or_insert(at);
        } else {
            probe.failing_since = None;
            let fresh = at + probe.fresh_for;
            // An answer to a rarely asked probe proves more than a later one to a busy one.
            let fresh = self.answered.map_or(fresh, |(_, other)| other.max(fresh));
            self.answered = Some((at, fresh));
        }
        let proven = match (probe.failing_since, self.answered) {
            (Some(since), Some((answer, until))) => answer > since && at <= until,
            (None, _) | (_, None) => false,
        };
        if let Some(until) = until {
            self.none_ends_before = self.none_ends_before.min(until);
        }
        match (state.is_some(), fails) {
            (false, true) => self.failing += 1,
            (true, false) => self.failing -= 1,
            (true, true) | (false, false) => {}
        }
        *state = until;
        proven
    }

    /// Whether every host fails. Looks at all hosts only when one of them may have aged, which is rare: as long as they are
    /// asked, their failures are renewed long before that.
    fn all_fail(&mut self, now: Moment) -> bool {
        if self.failing_until.is_empty() || self.failing < self.failing_until.len() {
            return false;
        }
        if now > self.none_ends_before {
            let mut earliest: Option<Moment> = None;
            for state in &mut self.failing_until {
                if state.is_some_and(|until| until < now) {
                    *state = None;
                    self.failing -= 1;
                } else if let Some(until) = *state {
                    earliest = Some(earliest.map_or(until, |other| other.min(until)));
                }
            }
            self.none_ends_before = earliest.unwrap_or(now);
        }
        self.failing == self.failing_until.len() && {
            let known = self.neighbours;
            let neighbours = known.unwrap_or_else(|| self.count_neighbours());
            self.neighbours = Some(neighbours);
            neighbours >= self.fewest
        }
    }

    /// How many of the hosts are different. One that has shown no address is by itself.
    fn count_neighbours(&self) -> usize {
        let unknown = self.entrances.iter().filter(|entrance| entrance.is_none());
        let known: HashSet<IpAddr> = self.entrances.iter().copied().flatten().collect();
        unknown.count() + known.len()
    }

    /// The same without mutation: examines all hosts.
    fn all_fail_exactly(&self, now: Moment) -> bool {
        !self.failing_until.is_empty()
            && self.failing == self.failing_until.len()
            && self
                .failing_until
                .iter()
                .all(|state| state.is_some_and(|until| until >= now))
            && self.neighbours.unwrap_or_else(|| self.count_neighbours()) >= self.fewest
    }
}

#[cfg(test)]
mod tests;
