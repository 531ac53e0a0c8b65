use std::time::Duration;

use super::*;

fn at(seconds: u64) -> Time {
    Time::from_millis(1_800_000_000_000) + Duration::from_secs(seconds)
}

fn condition(kind: AlertKind, release: &str) -> Condition {
    Condition {
        kind,
        place: Labels::from([
            ("release".to_owned(), release.to_owned()),
            ("probe".to_owned(), String::new()),
        ]),
        text: "because".into(),
        fragment: String::new(),
    }
}

fn long_windows(alert_store: &AlertStore) -> Vec<Option<(Time, Option<Time>)>> {
    alert_store.alerts().iter().map(Alert::span).collect()
}

#[test]
fn an_alert_fires_after_its_patience_and_ends_after_a_while() {
    let mut alert_store = AlertStore::default();
    let failing = || vec![condition(AlertKind::ProbeFailing, "web")];
    assert!(!alert_store.observe(failing(), |_| true, at(0)));
    assert_eq!(long_windows(&alert_store), [None]);
    assert_eq!(alert_store.next(), Some(at(60)));
    assert!(!alert_store.observe(failing(), |_| true, at(59)));
    assert!(alert_store.observe(failing(), |_| true, at(60)));
    assert!(
        !alert_store.observe(failing(), |_| true, at(61)),
        "it fires already"
    );
    assert_eq!(long_windows(&alert_store), [Some((at(60), None))]);
    // A short pause is no end.
    assert!(!alert_store.observe(vec![], |_| true, at(100)));
    assert!(!alert_store.observe(failing(), |_| true, at(110)));
    assert!(!alert_store.observe(vec![], |_| true, at(169)));
    assert!(alert_store.observe(vec![], |_| true, at(170)));
    assert_eq!(long_windows(&alert_store), [Some((at(60), Some(at(170))))]);
    // The end is told for a while, and then forgotten.
    alert_store.observe(vec![], |_| true, at(170 + 899));
    assert_eq!(alert_store.alerts().len(), 1);
    alert_store.observe(vec![], |_| true, at(170 + 900));
    assert!(alert_store.alerts().is_empty());
}

#[test]
fn what_passes_before_the_patience_is_over_is_forgotten() {
    let mut alert_store = AlertStore::default();
    alert_store.observe(
        vec![condition(AlertKind::ProbeFailing, "web")],
        |_| true,
        at(0),
    );
    alert_store.observe(vec![], |_| true, at(30));
    assert!(alert_store.alerts().is_empty());
}

#[test]
fn what_comes_back_is_another_episode_of_the_same_alert() {
    let mut alert_store = AlertStore::default();
    let bad = || vec![condition(AlertKind::ReleaseRegressed, "web")];
    assert!(alert_store.observe(bad(), |_| true, at(0)));
    assert!(alert_store.observe(vec![], |_| true, at(10)));
    assert!(alert_store.observe(bad(), |_| true, at(20)));
    assert_eq!(long_windows(&alert_store), [Some((at(20), None))]);
}

/// The first telling of an end may have been lost, so that an Alertmanager would let it burn on.
#[test]
fn the_end_is_told_on_while_it_may_begin_again() {
    let mut alert_store = AlertStore::default();
    let failing = || vec![condition(AlertKind::ProbeFailing, "web")];
    alert_store.observe(failing(), |_| true, at(0));
    alert_store.observe(failing(), |_| true, at(60));
    alert_store.observe(vec![], |_| true, at(120));
    let ended = [Some((at(60), Some(at(120))))];
    assert_eq!(long_windows(&alert_store), ended);
    // It flaps: pending, over, pending.
    for (seconds, conditions) in [(130, failing()), (150, vec![]), (160, failing())] {
        assert!(!alert_store.observe(conditions, |_| true, at(seconds)));
        assert_eq!(long_windows(&alert_store), ended, "{seconds}");
        assert!(!alert_store.alerts()[0].is_firing());
    }
    // Across a restart as well.
    let text = serde_json::to_string(&alert_store).unwrap();
    let alert_store = serde_json::from_str::<AlertStore>(&text).unwrap();
    let mut alert_store = alert_store.bounded(at(165)).unwrap();
    assert_eq!(long_windows(&alert_store), ended);
    // It fires again: an episode of its own.
    assert!(alert_store.observe(failing(), |_| true, at(220)));
    assert_eq!(long_windows(&alert_store), [Some((at(220), None))]);
}

#[test]
fn an_end_is_told_no_longer_than_any_other_because_it_flaps() {
    let mut alert_store = AlertStore::default();
    let failing = || vec![condition(AlertKind::ProbeFailing, "web")];
    alert_store.observe(failing(), |_| true, at(0));
    alert_store.observe(failing(), |_| true, at(60));
    alert_store.observe(vec![], |_| true, at(120));
    let last = 120 + 900;
    alert_store.observe(failing(), |_| true, at(last - 10));
    assert_eq!(long_windows(&alert_store), [Some((at(60), Some(at(120))))]);
    alert_store.observe(failing(), |_| true, at(last));
    assert_eq!(
        long_windows(&alert_store),
        [None],
        "it is pending, and nothing else"
    );
    alert_store.observe(vec![], |_| true, at(last + 10));
    assert!(alert_store.alerts().is_empty());
}

#[test]
fn what_an_older_version_stored_is_read() {
    for (text, state) in [
        (
            r#"{"pending":{"since":5}}"#,
            AlertState::Pending {
                since: Time::from_millis(5),
                before: None,
            },
        ),
        (
            r#"{"resolved":{"since":5,"at":9}}"#,
            AlertState::Resolved(Episode {
                since: Time::from_millis(5),
                at: Time::from_millis(9),
            }),
        ),
    ] {
        assert_eq!(serde_json::from_str::<AlertState>(text).unwrap(), state);
    }
}

#[test]
fn what_is_not_known_changes_nothing() {
    let mut alert_store = AlertStore::default();
    alert_store.observe(
        vec![
            condition(AlertKind::ReleaseRegressed, "web"),
            condition(AlertKind::ReleaseRegressed, "api"),
        ],
        |_| true,
        at(0),
    );
    let knows_api = |labels: &LabelSet| labels.get("release") == Some("api");
    assert!(alert_store.observe(vec![], knows_api, at(1000)));
    assert_eq!(
        long_windows(&alert_store),
        [Some((at(0), None)), Some((at(0), Some(at(1000))))]
    );
}

#[test]
fn labels_identify_and_carry_no_value() {
    let labels = condition(AlertKind::ReleaseRegressed, "web").labels();
    let names: Vec<_> = labels.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["alertname", "priority", "release", "severity", "source"]
    );
}

#[test]
fn a_stored_book_goes_on_with_the_same_beginning() {
    let mut alert_store = AlertStore::default();
    alert_store.observe(vec![condition(AlertKind::Blind, "web")], |_| true, at(0));
    alert_store.observe(vec![condition(AlertKind::Blind, "web")], |_| true, at(120));
    let text = serde_json::to_string(&alert_store).unwrap();
    let mut again = serde_json::from_str::<AlertStore>(&text)
        .unwrap()
        .bounded(at(300))
        .unwrap();
    assert_eq!(long_windows(&again), long_windows(&alert_store));
    assert!(!again.observe(vec![condition(AlertKind::Blind, "web")], |_| true, at(400)));
    assert_eq!(long_windows(&again), [Some((at(120), None))]);
}

/// The time that a book lay in its store is no time in which nothing was wrong.
#[test]
fn a_restart_ends_nothing_before_it_was_looked() {
    let mut alert_store = AlertStore::default();
    alert_store.observe(
        vec![condition(AlertKind::ProbeFailing, "web")],
        |_| true,
        at(0),
    );
    alert_store.observe(
        vec![condition(AlertKind::ProbeFailing, "web")],
        |_| true,
        at(60),
    );
    let mut again = alert_store.bounded(at(1000)).unwrap();
    // At first nobody knows, and then it is seen to be as it was.
    assert!(!again.observe(vec![], |_| false, at(1000)));
    assert!(!again.observe(vec![], |_| true, at(1030)));
    let failing = vec![condition(AlertKind::ProbeFailing, "web")];
    assert!(!again.observe(failing, |_| true, at(1040)));
    assert_eq!(long_windows(&again), [Some((at(60), None))]);
    // When it is over, that is told after the usual while.
    assert!(!again.observe(vec![], |_| true, at(1099)));
    assert!(again.observe(vec![], |_| true, at(1100)));
}

#[test]
fn what_is_pending_and_not_known_waits_on() {
    let mut alert_store = AlertStore::default();
    alert_store.observe(
        vec![condition(AlertKind::ProbeFailing, "web")],
        |_| true,
        at(0),
    );
    alert_store.observe(vec![], |_| false, at(10));
    assert!(alert_store.observe(
        vec![condition(AlertKind::ProbeFailing, "web")],
        |_| true,
        at(60)
    ));
}

#[test]
fn there_are_never_more_than_the_bound() {
    let mut alert_store = AlertStore::default();
    let many: Vec<_> = (0..MAX_ALERTS + 5)
        .map(|n| condition(AlertKind::ReleaseRegressed, &n.to_string()))
        .collect();
    alert_store.observe(many, |_| true, at(0));
    assert_eq!(
        (alert_store.alerts().len(), alert_store.left_out),
        (MAX_ALERTS, 5)
    );
    let long = Condition {
        text: "ä".repeat(3000),
        ..condition(AlertKind::ReleaseRegressed, "0")
    };
    alert_store.observe(vec![long], |_| true, at(1));
    assert_eq!(
        alert_store.left_out, 0,
        "there is one condition, and it has its place"
    );
    assert!(alert_store.alerts()[0].text.len() < 2010);
}

#[test]
fn names_are_as_prometheus_people_expect() {
    for kind in AlertKind::ALL {
        assert!(kind.name().starts_with("Leadsman"));
        assert!(kind.summary().ends_with('.') && kind.summary().len() < 100);
    }
}
