//! Alert conditions of one release, from its status. Pure, so a restart finds the same conditions.

use std::time::Duration;

use crate::core::alerts::AlertKind;
use crate::core::alerts::Condition;
use crate::core::alerts::Labels;
use crate::core::probe_stats::{ProbeStats, TrackedProbe};
use crate::http::status::GuardView;
use crate::http::status::RolloutView;

/// How long the alert about a successful rollback stays, in seconds.
const TOLD_FOR: f64 = 3600.0;

/// After a rollback that did not help: seconds without a failed result until the release counts as healthy.
const WELL_AFTER: f64 = 300.0;

/// Failed results in a row that make a probe failing. One is enough if the next comes a minute or more later.
const IN_A_ROW: u32 = 3;

/// Conditions of a release. `is_well`: no result of the last five minutes was a failure.
pub(super) fn of_release(view: &GuardView, is_well: bool, now: f64) -> Option<Condition> {
    let (kind, revision, text) = status(view, is_well, now)?;
    let mut place = release(&view.namespace, &view.release);
    place.insert("revision".into(), revision.to_string());
    Some(Condition {
        kind,
        place,
        text,
        fragment: fragment(&view.namespace, &view.release),
    })
}

fn status(view: &GuardView, is_well: bool, now: f64) -> Option<(AlertKind, u32, String)> {
    if let Some(candidate) = view
        .candidate
        .as_ref()
        .filter(|candidate| candidate.is_rejected && !candidate.is_ordered)
    {
        let text = format!(
            "Revision {}: {}. {}.",
            candidate.revision, candidate.text, view.says
        );
        return Some((AlertKind::ReleaseRegressed, candidate.revision, text));
    }
    // What took the place of a bad one before it was judged says nothing, nor does the same once more, nor what a person
    // could not have.
    let last = view.rollouts.iter().rev().find(|finished| {
        !matches!(
            finished.outcome,
            "superseded" | "unchanged" | "order_refused"
        )
    })?;
    let kind = of_outcome(last, is_well, now)?;
    let reason = if last.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", last.reason)
    };
    Some((
        kind,
        last.revision,
        format!("Revision {}{reason}: {}.", last.revision, last.text),
    ))
}

fn of_outcome(last: &RolloutView, is_well: bool, now: f64) -> Option<AlertKind> {
    let age = now - last.ended_at;
    match last.outcome {
        "rolled_back" if last.reason != "by_hand" && age < TOLD_FOR => {
            Some(AlertKind::ReleaseRolledBack)
        }
        "still_failing" if !is_well || age < WELL_AFTER => Some(AlertKind::NotTheRelease),
        "worsened" | "rollback_failed" | "unverified" => Some(AlertKind::RollbackFailed),
        "refused" | "not_eligible" => Some(AlertKind::RollbackRefused),
        "limit_reached" => Some(AlertKind::RollbackLimitReached),
        "would_roll_back" => Some(AlertKind::ReleaseRegressedObserveOnly),
        _ => None,
    }
}

/// The cluster says nothing about this release.
pub(super) fn blind(view: &GuardView) -> Option<Condition> {
    let why = view.blind.as_ref()?;
    Some(Condition {
        kind: AlertKind::Blind,
        place: release(&view.namespace, &view.release),
        text: format!(
            "Nothing new is known of {}/{}: {why}.",
            view.namespace, view.release
        ),
        fragment: fragment(&view.namespace, &view.release),
    })
}

/// The newest revision answers more slowly than the one before.
pub(in crate::daemon) fn slower(view: &GuardView, now: f64) -> Option<Condition> {
    let at_work = view.analysis.as_ref().and_then(|watch| {
        let candidate = view.candidate.as_ref()?;
        Some((candidate.revision, watch.slower.as_ref()?))
    });
    let ended = view.verdict.as_ref().and_then(|verdict| {
        let is_recent = verdict.verdict == "healthy" && now - verdict.at < TOLD_FOR;
        Some((verdict.revision, verdict.slower.as_ref()?)).filter(|_| is_recent)
    });
    let (revision, text) = at_work.or(ended.filter(|_| view.candidate.is_none()))?;
    let mut place = release(&view.namespace, &view.release);
    place.insert("revision".into(), revision.to_string());
    Some(Condition {
        kind: AlertKind::ReleaseSlower,
        place,
        text: format!("Revision {revision}: {text}."),
        fragment: fragment(&view.namespace, &view.release),
    })
}

/// The newest revision passed its analysis, and its bake ended with an alarm. A revision that is rolled back for that
/// has an alert of its own.
pub(super) fn bake_failed(view: &GuardView, now: f64) -> Option<Condition> {
    let bake = view.bake.as_ref().filter(|bake| bake.state == "failed")?;
    let mut ended = view.rollouts.iter().rev();
    let last = ended.find(|finished| !matches!(finished.outcome, "unchanged" | "order_refused"))?;
    let is_left = view.candidate.is_none() && last.outcome == "passed";
    if !is_left || now - bake.until >= TOLD_FOR {
        return None;
    }
    let mut place = release(&view.namespace, &view.release);
    place.insert("revision".into(), bake.revision.to_string());
    Some(Condition {
        kind: AlertKind::BakeFailed,
        place,
        text: format!(
            "Revision {} passed its analysis, and its bake failed, so it is not known to be good: {}.",
            bake.revision, bake.text
        ),
        fragment: fragment(&view.namespace, &view.release),
    })
}

/// Results of one kind in a row that are worth a message.
pub(in crate::daemon) const fn in_a_row(interval: Duration) -> u32 {
    if interval.as_secs() >= 60 {
        1
    } else {
        IN_A_ROW
    }
}

/// Whether the probe has had enough results since the start to be known as failing.
pub(super) fn is_known(stats: &ProbeStats, interval: Duration) -> bool {
    let (success, failure) = stats.judged();
    success + failure >= u64::from(in_a_row(interval))
}

/// A probe or dependency that fails.
pub(super) fn of_probe(tracked_probe: &TrackedProbe) -> Option<Condition> {
    let probe = tracked_probe.probe();
    let limit = in_a_row(probe.interval);
    let why = {
        let stats = tracked_probe.lock();
        if stats.consecutive_failures() < limit {
            return None;
        }
        stats.why_not()
    };
    let id = &probe.id;
    let (kind, place, fragment) = if id.is_dependency() {
        let place = Labels::from([("dependency".to_owned(), id.probe.to_string())]);
        (AlertKind::DependencyFailing, place, String::new())
    } else {
        let (namespace, name) = (id.namespace.as_str(), id.release.as_str());
        let mut place = release(namespace, name);
        place.insert("probe".into(), id.probe.to_string());
        (AlertKind::ProbeFailing, place, fragment(namespace, name))
    };
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    Some(Condition {
        kind,
        place,
        // The number itself would be another text each time, to be written and sent for each of thousands.
        text: match limit {
            1 => format!("{} failed{why}.", id.probe),
            _ => format!("{} failed at least {limit} times in a row{why}.", id.probe),
        },
        fragment,
    })
}

/// A condition of the daemon itself, without a release.
pub(super) fn of_ourselves(kind: AlertKind, place: Labels, text: String) -> Condition {
    Condition {
        kind,
        place,
        text,
        fragment: String::new(),
    }
}

pub(super) fn release(namespace: &str, release: &str) -> Labels {
    Labels::from([
        ("namespace".to_owned(), namespace.to_owned()),
        ("release".to_owned(), release.to_owned()),
    ])
}

/// Fragment of the status page for a release; the page percent-encodes ids in links.
pub(super) fn fragment(namespace: &str, release: &str) -> String {
    format!("release/{namespace}/{release}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

    use super::*;
    use crate::http::status::{BakeView, CandidateView};

    fn finished(revision: u32, outcome: &'static str) -> RolloutView {
        RolloutView {
            revision,
            outcome,
            text: "because".into(),
            reason: "hard_down:api".into(),
            ended_at: 1000.0,
            ..RolloutView::default()
        }
    }

    fn view(rollouts: Vec<RolloutView>) -> GuardView {
        GuardView {
            namespace: "shop".into(),
            release: "web".into(),
            rollouts,
            ..GuardView::default()
        }
    }

    fn kind(view: &GuardView, is_well: bool, now: f64) -> Option<(AlertKind, String)> {
        let found = of_release(view, is_well, now)?;
        Some((found.kind, found.place["revision"].clone()))
    }

    #[test]
    fn every_ending_that_people_must_hear_of_is_an_alert_until_a_revision_is_kept() {
        for (outcome, expected) in [
            ("rolled_back", Some(AlertKind::ReleaseRolledBack)),
            ("still_failing", Some(AlertKind::NotTheRelease)),
            ("worsened", Some(AlertKind::RollbackFailed)),
            ("rollback_failed", Some(AlertKind::RollbackFailed)),
            ("unverified", Some(AlertKind::RollbackFailed)),
            ("refused", Some(AlertKind::RollbackRefused)),
            ("not_eligible", Some(AlertKind::RollbackRefused)),
            ("limit_reached", Some(AlertKind::RollbackLimitReached)),
            (
                "would_roll_back",
                Some(AlertKind::ReleaseRegressedObserveOnly),
            ),
            ("passed", None),
            ("inconclusive", None),
            ("uninstalled", None),
        ] {
            let mut now = view(vec![finished(4, "passed"), finished(5, outcome)]);
            assert_eq!(
                kind(&now, false, 1001.0),
                expected.map(|kind| (kind, "5".into())),
                "{outcome}"
            );
            // One that took its place and was not judged changes nothing, nor does an order that was refused.
            now.rollouts.push(finished(6, "superseded"));
            now.rollouts.push(finished(6, "order_refused"));
            assert_eq!(
                kind(&now, false, 1001.0),
                expected.map(|kind| (kind, "5".into())),
                "{outcome}"
            );
            now.rollouts.push(finished(7, "passed"));
            assert_eq!(kind(&now, false, 1001.0), None);
        }
    }

    #[test]
    fn a_dependency_that_fails_is_an_alert_of_its_own() {
        use crate::config::{self, Sources};
        use crate::core::probe_result::{Outcome, PhaseTimes, ProbeResult, Reason, ResponseFacts};
        use crate::core::units::Moment;

        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        let text = "[[dependency]]\nname = 'postgres'\nurl = 'tcp://db:5432'\n[[release]]\nname = 'web'\n\
                    namespace = 'shop'\nbase_url = 'http://web'\n[[release.probe]]\nname = 'api'\npath = '/'\nneeds = 'postgres'\n";
        std::fs::write(&file, text).unwrap();
        let sources = Sources {
            files: vec![file],
            ..Sources::default()
        };
        let settings = config::load(&sources).unwrap().settings;
        let of = |probe: &std::sync::Arc<crate::config::settings::ProbeConfig>| {
            let tracked_probe = TrackedProbe::new(std::sync::Arc::clone(probe), Moment::default());
            assert_eq!(of_probe(&tracked_probe), None);
            for second in 1..=3 {
                let at = Moment::after_boot(Duration::from_secs(second));
                let result = ProbeResult {
                    due: at,
                    started: at,
                    finished: at,
                    outcome: Outcome::Failure(Reason::ConnectTimeout),
                    phases: PhaseTimes::default(),
                    answer: ResponseFacts::default(),
                    explanation: None,
                };
                tracked_probe.lock().record(&result, 0.0);
            }
            let found = of_probe(&tracked_probe).unwrap();
            (found.kind, found.place)
        };
        let (kind, place) = of(&settings.dependencies[0]);
        assert_eq!(kind, AlertKind::DependencyFailing);
        let expected = ("dependency".to_owned(), "postgres".to_owned());
        assert_eq!(place, Labels::from([expected]));
        let (kind, place) = of(&settings.releases[0].probes[0]);
        assert_eq!(kind, AlertKind::ProbeFailing);
        assert_eq!(place["release"], "web");
    }

    #[test]
    fn a_bake_that_failed_is_told_for_an_hour_where_nothing_else_is_told_of_it() {
        let bake = |state| BakeView {
            revision: 5,
            state,
            since: 0.0,
            until: 1000.0,
            text: "errors 14/96".into(),
            e_value: None,
            threshold: None,
        };
        let with = |state, outcomes: &[&'static str]| {
            let mut now = view(
                outcomes
                    .iter()
                    .map(|outcome| finished(5, outcome))
                    .collect(),
            );
            now.bake = Some(bake(state));
            now
        };
        let told = bake_failed(&with("failed", &["passed"]), 1001.0).unwrap();
        assert_eq!(told.kind, AlertKind::BakeFailed);
        assert_eq!(told.place["revision"], "5");
        assert!(told.text.contains("errors 14/96"), "{}", told.text);
        assert!(bake_failed(&with("failed", &["passed", "unchanged"]), 4599.0).is_some());
        assert!(bake_failed(&with("failed", &["passed"]), 4600.0).is_none());
        assert!(bake_failed(&with("good", &["passed"]), 1001.0).is_none());
        assert!(bake_failed(&with("failed", &["passed", "refused"]), 1001.0).is_none());
        let mut acts = with("failed", &["passed"]);
        acts.candidate = Some(CandidateView::default());
        assert!(bake_failed(&acts, 1001.0).is_none());
    }

    #[test]
    fn what_is_over_by_itself_ends_by_itself() {
        assert_eq!(
            kind(
                &view(vec![finished(5, "rolled_back")]),
                true,
                1000.0 + 3600.0
            ),
            None
        );
        let same = view(vec![finished(5, "still_failing")]);
        assert!(kind(&same, true, 1299.0).is_some());
        assert!(kind(&same, true, 1300.0).is_none());
        assert!(kind(&same, false, 5000.0).is_some());
    }

    #[test]
    fn a_revision_is_regressed_while_it_is_rolled_back_unless_a_person_wanted_that() {
        let candidate = |is_ordered| CandidateView {
            revision: 6,
            text: "api failed".into(),
            is_rejected: true,
            is_ordered,
            ..CandidateView::default()
        };
        let mut now = view(vec![finished(5, "passed")]);
        now.candidate = Some(candidate(false));
        assert_eq!(
            kind(&now, false, 1001.0),
            Some((AlertKind::ReleaseRegressed, "6".into()))
        );
        now.candidate = Some(candidate(true));
        assert_eq!(kind(&now, false, 1001.0), None);
        now.candidate = Some(CandidateView {
            is_rejected: false,
            ..candidate(false)
        });
        assert_eq!(kind(&now, false, 1001.0), None);
    }
}
