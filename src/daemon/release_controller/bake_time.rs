//! Bake time: a revision that stays healthy for 10 minutes counts as known good, even if it was deployed before
//! Leadsman started.

use super::ReleaseController;
use super::rollback::digest_of;
use super::state::State;
use crate::core::analysis::Rule;
use crate::core::revision_ledger::ContentVerdict;
use crate::core::rollout::RolloutPhase;
use crate::core::units::{Revision, Time};
use crate::release::ObservedState;

/// Whole minutes with results that each probe needs since the release is idle. Minutes without knowledge do not count:
/// while the daemon was away or blind, or probes brought no result.
const MINUTES: u32 = 10;

impl ReleaseController {
    /// Writes the revision into the ledger, once, when its bake time has passed.
    pub(super) fn soak(&mut self, now: Time) {
        let release = &self.setup.release;
        let names = release.probes.iter().map(|probe| probe.id.probe.as_str());
        let bake_time_passed = {
            let observed = self.release_state.borrow();
            if self.is_blind {
                return;
            }
            self.state
                .bake_time_passed(&observed, names, &release.controller.rule, now)
        };
        let Some(BakeTimePassed { revision, is_news }) = bake_time_passed else {
            return;
        };
        if self.state.doubtful {
            self.state.adopt_candidates();
            self.is_dirty = true;
        }
        if is_news {
            let text = format!("served well for {MINUTES} minutes");
            let remark = format!("Revision {revision} {text}, and is known to be good");
            self.state.rollout.remark(now, &remark);
            self.keep_entries();
            self.found(revision, ContentVerdict::Good, text);
        }
    }
}

/// A revision whose bake time has passed.
#[derive(Debug, PartialEq, Eq)]
struct BakeTimePassed {
    revision: Revision,
    /// Whether the ledger does not have it yet.
    is_news: bool,
}

impl State {
    /// The revision whose bake time has passed; `None` if nothing would change.
    fn bake_time_passed<'a>(
        &self,
        observed: &ObservedState,
        probes: impl Iterator<Item = &'a str>,
        rule: &Rule,
        now: Time,
    ) -> Option<BakeTimePassed> {
        let release_state = &observed.release_state;
        let newest = self.rollout.newest();
        // While it bakes, that is what decides.
        if self.bake.is_some() {
            return None;
        }
        // All of it must be so at this moment; that it went well before is what the results say.
        let stands = *self.rollout.phase() == RolloutPhase::Idle
            && observed.trouble.is_none()
            && !self.rollout.is_held()
            && release_state.complete == newest
            && self.deployed == newest;
        let revision = newest.filter(|_| stands)?;
        let is_news = match digest_of(release_state, revision) {
            // Without that there is nothing that it could be known by.
            None => false,
            Some(digest) => match self.ledger.find(&digest).map(|entry| entry.found) {
                // Whatever it is like now, it made things worse once.
                Some(ContentVerdict::Bad | ContentVerdict::BakeFailed) => return None,
                Some(ContentVerdict::Good) => false,
                Some(
                    ContentVerdict::Passed | ContentVerdict::Unknown | ContentVerdict::Incomplete,
                )
                | None => true,
            },
        };
        let changes = is_news || self.doubtful;
        (changes && self.has_been_well(probes, rule, now))
            .then_some(BakeTimePassed { revision, is_news })
    }

    /// Whether all these probes have been healthy for long enough since the release is idle.
    fn has_been_well<'a>(
        &self,
        probes: impl Iterator<Item = &'a str>,
        rule: &Rule,
        now: Time,
    ) -> bool {
        let (mut failed, mut total) = (0, 0);
        let baked = self.baked.as_ref().map(|baked| baked.at);
        let since = baked.map_or(self.rollout.since(), |at| at.max(self.rollout.since()));
        for probe in probes {
            let Some(known) = self.probes.get(probe) else {
                return false;
            };
            // What a revision in doubt measures is kept apart.
            let measured = if self.doubtful {
                &known.candidate
            } else {
                &known.baseline
            };
            let stretch = measured.since(since, now);
            if known.baseline.is_failing() || stretch.minutes < MINUTES {
                return false;
            }
            failed += stretch.failed;
            total += stretch.total;
        }
        total >= rule.n0_min && failed as f64 <= rule.p_assumed * total as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use std::sync::Arc;
    use std::time::Duration;

    use super::super::state::tests::START;
    use super::*;
    use crate::core::analysis::TickOutcome;
    use crate::core::revision_ledger::{
        ContentDigest, LedgerEntry, RevisionStatus, StoredRevision,
    };
    use crate::core::rollout::{Mode, RevisionOrigin, Rollout, RolloutInput, RolloutLimits};
    use crate::core::units::{ClockShift, HasTimes as _};
    use crate::release::ReleaseState;

    const MINUTE: Duration = Duration::from_secs(60);

    /// A release that was deployed before Leadsman started: revision 7 serves, without an analysis.
    fn found_there() -> (State, ObservedState) {
        let limits = RolloutLimits {
            mode: Mode::Enforce,
            max_per_day: 2,
            watch: Duration::from_secs(300),
            settle_cap: Duration::from_secs(90),
        };
        let mut state = State::new(Rollout::new(limits, START));
        let seen = RolloutInput::Seen {
            revision: Revision(7),
            origin: RevisionOrigin::Upgrade,
            serving: None,
            appears: crate::core::rollout::Appearance::New,
        };
        state.rollout.step(seen, START);
        state.deployed = Some(Revision(7));
        let record = StoredRevision {
            revision: Revision(7),
            status: RevisionStatus::Deployed,
            description: "Upgrade complete".into(),
            digest: Some(ContentDigest("abc".into())),
            weak: None,
            hooks_succeeded: true,
            test_failed: false,
        };
        let release_state = ReleaseState {
            revisions: vec![record],
            complete: Some(Revision(7)),
            ..ReleaseState::default()
        };
        let observed = ObservedState {
            release_state: Arc::new(release_state),
            ..ObservedState::default()
        };
        (state, observed)
    }

    /// Both probes answer every ten seconds within these minutes.
    fn hears(state: &mut State, minutes: std::ops::Range<u32>, outcome: TickOutcome) {
        for tick in minutes.start * 6..minutes.end * 6 {
            let now = START + Duration::from_secs(10) * tick;
            state.add_result("api", outcome, None, now);
            state.add_result("db", outcome, None, now);
        }
    }

    fn bake_time_passed(state: &State, observed: &ObservedState, minute: u32) -> Option<bool> {
        let probes = ["api", "db"].into_iter();
        let bake_time_passed =
            state.bake_time_passed(observed, probes, &Rule::default(), START + MINUTE * minute);
        bake_time_passed.map(|bake_time_passed| {
            assert_eq!(bake_time_passed.revision, Revision(7));
            bake_time_passed.is_news
        })
    }

    fn write(state: &mut State, found: ContentVerdict) {
        state.ledger.write(LedgerEntry {
            digest: ContentDigest("abc".into()),
            weak: None,
            revision: Revision(7),
            found,
            at: START,
            evidence: String::new(),
        });
    }

    #[test]
    fn what_was_there_before_us_is_good_after_ten_minutes_and_that_is_news_once() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..10, TickOutcome::Success);
        assert_eq!(
            bake_time_passed(&state, &observed, 10),
            None,
            "not whole yet"
        );
        hears(&mut state, 10..12, TickOutcome::Success);
        assert_eq!(bake_time_passed(&state, &observed, 12), Some(true));
        write(&mut state, ContentVerdict::Good);
        assert_eq!(bake_time_passed(&state, &observed, 12), None);
        // A probe that was added since has its own ten minutes.
        write(&mut state, ContentVerdict::Unknown);
        let probes = ["api", "db", "new"].into_iter();
        let now = START + MINUTE * 12;
        assert_eq!(
            state.bake_time_passed(&observed, probes, &Rule::default(), now),
            None
        );
    }

    #[test]
    fn time_in_which_nothing_was_known_does_not_count() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..6, TickOutcome::Success);
        hears(&mut state, 6..30, TickOutcome::Unknown);
        assert_eq!(bake_time_passed(&state, &observed, 30), None);
        hears(&mut state, 30..35, TickOutcome::Success);
        assert_eq!(bake_time_passed(&state, &observed, 35), Some(true));
    }

    #[test]
    fn what_fails_is_not_well() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..12, TickOutcome::Success);
        hears(&mut state, 12..14, TickOutcome::Failure);
        hears(&mut state, 14..15, TickOutcome::Success);
        assert_eq!(
            bake_time_passed(&state, &observed, 15),
            None,
            "a tenth of it failed"
        );
        let (mut state, observed) = found_there();
        hears(&mut state, 0..60, TickOutcome::Success);
        hears(&mut state, 60..61, TickOutcome::Failure);
        assert_eq!(
            bake_time_passed(&state, &observed, 61),
            None,
            "it fails now"
        );
    }

    #[test]
    fn what_does_not_stand_whole_waits_and_what_was_bad_stays_bad() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..12, TickOutcome::Success);
        let with = |change: &dyn Fn(&mut ReleaseState)| {
            let mut release_state = ReleaseState::clone(&observed.release_state);
            change(&mut release_state);
            ObservedState {
                release_state: Arc::new(release_state),
                ..ObservedState::default()
            }
        };
        let unsettled = with(&|release_state| release_state.complete = None);
        assert_eq!(bake_time_passed(&state, &unsettled, 12), None);
        let unread = with(&|release_state| release_state.revisions[0].digest = None);
        assert_eq!(bake_time_passed(&state, &unread, 12), None);
        let trouble = ObservedState {
            trouble: Some("the API server is away".into()),
            ..observed.clone()
        };
        assert_eq!(bake_time_passed(&state, &trouble, 12), None);
        let mut held = state.clone();
        held.rollout
            .step(RolloutInput::Held(true), START + MINUTE * 12);
        assert_eq!(bake_time_passed(&held, &observed, 12), None);
        let mut failed = state.clone();
        failed.deployed = Some(Revision(6));
        assert_eq!(bake_time_passed(&failed, &observed, 12), None);
        write(&mut state, ContentVerdict::Bad);
        assert_eq!(bake_time_passed(&state, &observed, 12), None);
    }

    /// The count survives a restart and another clock, and does not grow while the daemon is away.
    #[test]
    fn a_restart_in_between_loses_nothing_and_gives_nothing() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..6, TickOutcome::Success);
        let text = serde_json::to_string(&state).unwrap();
        let read: State = serde_json::from_str(&text).unwrap();
        let mut read = read.bounded().unwrap();
        assert_eq!(bake_time_passed(&read, &observed, 300), None);
        hears(&mut read, 300..305, TickOutcome::Success);
        assert_eq!(bake_time_passed(&read, &observed, 305), Some(true));
        read.shift(ClockShift::between(START, START + MINUTE * 90));
        assert_eq!(bake_time_passed(&read, &observed, 395), Some(true));
    }

    #[test]
    fn a_revision_in_doubt_is_taken_by_what_it_measured_itself() {
        let (mut state, observed) = found_there();
        hears(&mut state, 0..12, TickOutcome::Success);
        state.doubtful = true;
        assert_eq!(bake_time_passed(&state, &observed, 12), None);
        hears(&mut state, 12..24, TickOutcome::Success);
        assert_eq!(bake_time_passed(&state, &observed, 24), Some(true));
        // Known to be good already: it is a baseline again.
        write(&mut state, ContentVerdict::Good);
        assert_eq!(bake_time_passed(&state, &observed, 24), Some(false));
    }
}
