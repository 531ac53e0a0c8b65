use super::*;
use crate::core::analysis::{PodState, StuckReason, WorkloadChange};
use crate::core::recording::RecordedPod;
use crate::daemon::release_controller::pod_states::ReportedPod;
use crate::daemon::release_controller::pod_states::tests::running;
use crate::daemon::release_controller::state::tests::START;
use crate::daemon::release_controller::workload_events::ReportedWorkload;

/// A tick of one endpoint with what pods answered.
fn tick(number: u32, direct: &[(u32, &str)]) -> RecordedTick {
    let direct = direct
        .iter()
        .map(|(pod, outcomes)| (*pod, (*outcomes).into()));
    RecordedTick {
        tick: number,
        direct: direct.collect(),
        ..RecordedTick::default()
    }
}

/// Number 0 is an old pod, and number 1 a new one.
fn with_pods() -> RunningAnalysis {
    let mut running = running();
    let pod = |(number, side)| RecordedPod {
        pod: number,
        name: format!("api-{number}").into(),
        side,
        ready_tick: 0,
    };
    running.pods = [(0, PodSide::Old), (1, PodSide::New)].map(pod).into();
    running
}

#[test]
fn a_failed_result_through_the_service_or_of_a_new_pod_is_a_sign() {
    let mut running = with_pods();
    assert!(!running.trouble_begins(&[TickOutcome::Success], &tick(0, &[(0, "."), (1, ".")])));
    assert!(!running.trouble_begins(&[TickOutcome::Success], &tick(1, &[(0, "x"), (1, "-")])));
    assert!(!running.trouble_begins(&[TickOutcome::Unresolved], &tick(2, &[])));
    assert!(running.trouble_begins(&[TickOutcome::Success], &tick(3, &[(0, "."), (1, "x")])));
    // It lasts, whichever way it shows.
    assert!(!running.trouble_begins(&[TickOutcome::Failure], &tick(8, &[(0, "."), (1, ".")])));
    assert!(!running.trouble_begins(&[TickOutcome::Failure], &tick(14, &[])));
    // After a quiet time it is another one.
    assert!(running.trouble_begins(&[TickOutcome::Failure], &tick(21, &[])));
}

#[test]
fn a_pod_that_restarts_or_cannot_start_is_a_sign_while_it_is_so() {
    let states = [
        PodState {
            restarts: 1,
            ..PodState::default()
        },
        PodState {
            crash_loop_back_off: true,
            ..PodState::default()
        },
        PodState {
            stuck: Some(StuckReason::Image),
            ..PodState::default()
        },
    ];
    for state in states {
        let mut running = with_pods();
        let healthy = ReportedPod::of(&PodState::default());
        running.reported_pods.insert("api-1".into(), healthy);
        assert!(!running.trouble_begins(&[TickOutcome::Success], &tick(4, &[])));
        let troubled = ReportedPod::of(&state);
        running.reported_pods.insert("api-1".into(), troubled);
        assert!(
            running.trouble_begins(&[TickOutcome::Success], &tick(5, &[])),
            "{state:?}"
        );
        for number in 6..200 {
            assert!(!running.trouble_begins(&[TickOutcome::Success], &tick(number, &[])));
        }
    }
}

#[test]
fn a_workload_that_cannot_create_its_pods_is_a_sign() {
    for what in [WorkloadChange::Refused, WorkloadChange::Deadline] {
        let mut running = with_pods();
        let mut told = ReportedWorkload::default();
        told.note(WorkloadChange::Template);
        running.told = vec![told.clone()];
        assert!(!running.trouble_begins(&[TickOutcome::Success], &tick(4, &[])));
        told.note(what);
        running.told = vec![told];
        assert!(
            running.trouble_begins(&[TickOutcome::Success], &tick(5, &[])),
            "{what:?}"
        );
    }
}

#[test]
fn in_a_bake_ten_minutes_without_a_sign_are_a_new_beginning() {
    let mut known = None;
    let at = |seconds| START + Duration::from_secs(seconds);
    for seconds in [0, 500, 1100] {
        Trouble::signs(&mut known, at(seconds));
        assert_eq!(known.map(|it| it.since), Some(at(0)));
    }
    Trouble::signs(&mut known, at(1701));
    assert_eq!(known.map(|it| it.since), Some(at(1701)));
}
