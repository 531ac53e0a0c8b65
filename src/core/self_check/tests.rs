use std::sync::Arc;

use super::*;
use crate::core::probe_result::{PhaseTimes, Reason, ResponseFacts};
use crate::core::units::{Namespace, ProbeName, ReleaseName};

const TIMEOUT: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_secs(2);

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn at(millis: u64) -> Moment {
    Moment::after_boot(ms(millis))
}

fn id(name: &str) -> ProbeId {
    ProbeId {
        namespace: Namespace::new("shop"),
        release: ReleaseName::new("shop"),
        probe: ProbeName::new(name),
    }
}

/// Probes "a0" and "a1" of host a, "b0" and "b1" of b, and so on.
fn self_check_of(hosts: &[&str], hosts_failing: usize) -> SelfCheck {
    let settings = settings::SelfCheckConfig {
        late_after: ms(500),
        hosts_failing,
        control: None,
    };
    let probes: Vec<_> = hosts
        .iter()
        .flat_map(|host| [0, 1].map(|n| (id(&format!("{host}{n}")), (*host).to_owned(), INTERVAL)))
        .collect();
    SelfCheck::new(&settings, probes.into_iter())
}

fn result(due: u64, started: u64, finished: u64, outcome: Outcome) -> ProbeResult {
    ProbeResult {
        due: at(due),
        started: at(started),
        finished: at(finished),
        outcome,
        phases: PhaseTimes::default(),
        answer: ResponseFacts::default(),
        explanation: None,
    }
}

fn beating(now: Moment) -> Heartbeat {
    Heartbeat {
        beat: now,
        last_stall_end: None,
    }
}

const GOOD: Outcome = Outcome::Success;
const SILENT: Outcome = Outcome::Failure(Reason::ConnectTimeout);
const STATUS: Outcome = Outcome::Failure(Reason::Status);
const SLOW: Outcome = Outcome::Failure(Reason::TooSlow);
const LATE: Outcome = Outcome::Unknown(UnknownReason::Late);
const ALL: Outcome = Outcome::Unknown(UnknownReason::AllTargets);
const CONTROL: Outcome = Outcome::Unknown(UnknownReason::Control);

/// Gives a punctual result that ended at `now`.
fn take(self_check: &mut SelfCheck, probe: &str, now: u64, outcome: Outcome) -> Outcome {
    let result = result(now - 10, now - 10, now, outcome);
    self_check.examine(&id(probe), &result, TIMEOUT, beating(at(now)), at(now))
}

#[test]
fn a_result_is_late_by_its_start_its_end_or_a_standstill() {
    // due, started, finished, beat, end of the last stall, late?
    check_late(10_000, 10_000, 10_020, 10_000, None, false);
    check_late(10_000, 10_500, 10_520, 10_500, None, false);
    check_late(10_000, 10_501, 10_520, 10_500, None, true);
    // The end: timeout and as much again as a start may be late.
    check_late(10_000, 10_000, 15_500, 15_400, None, false);
    check_late(10_000, 10_000, 15_501, 15_400, None, true);
    check_late(10_000, 10_300, 15_800, 15_700, None, false);
    // The heartbeat at the end.
    check_late(10_000, 10_000, 12_000, 11_000, None, false);
    check_late(10_000, 10_000, 12_000, 10_999, None, true);
    // A standstill before it is not its own; one within it or just after its end is.
    check_late(10_000, 10_000, 12_000, 11_900, Some(9_999), false);
    check_late(10_000, 10_000, 12_000, 11_900, Some(10_000), true);
    check_late(10_000, 10_000, 12_000, 11_900, Some(11_000), true);
    check_late(10_000, 10_000, 12_000, 12_000, Some(12_001), true);
}

#[track_caller]
fn check_late(due: u64, started: u64, finished: u64, beat: u64, stall: Option<u64>, late: bool) {
    for outcome in [GOOD, SILENT, STATUS, SLOW] {
        let mut self_check = self_check_of(&["a"], 0);
        let heartbeat = Heartbeat {
            beat: at(beat),
            last_stall_end: stall.map(at),
        };
        let result = result(due, started, finished, outcome);
        let seen = self_check.examine(&id("a0"), &result, TIMEOUT, heartbeat, at(finished));
        assert_eq!(seen, if late { LATE } else { outcome });
        let troubles: Vec<_> = self_check.troubles(at(finished)).collect();
        assert_eq!(troubles.contains(&UnknownReason::Late), late);
    }
}

#[test]
fn a_process_that_was_stopped_for_five_seconds_gains_no_evidence() {
    let mut self_check = self_check_of(&["a"], 0);
    // Under way when it was stopped at 10.0 s, and due meanwhile; all seen after 15.0 s.
    let heartbeat = Heartbeat {
        beat: at(15_001),
        last_stall_end: Some(at(15_001)),
    };
    for (due, started, outcome) in [
        (9_990, 9_990, Outcome::Failure(Reason::Reset)),
        (9_995, 9_995, Outcome::Failure(Reason::HeaderTimeout)),
        (14_200, 15_001, GOOD),
        (14_900, 15_000, SILENT),
    ] {
        let result = result(due, started, 15_003, outcome);
        let seen = self_check.examine(&id("a0"), &result, TIMEOUT, heartbeat, at(15_003));
        assert_eq!(seen, LATE, "due at {due}");
    }
    // And what starts afterwards counts again.
    let result = result(15_100, 15_100, 15_110, SILENT);
    let seen = self_check.examine(&id("a0"), &result, TIMEOUT, heartbeat, at(15_110));
    assert_eq!(seen, SILENT);
}

#[test]
fn a_unknown_result_stays_as_it_is_and_says_nothing_about_its_host() {
    let mut self_check = self_check_of(&["a", "b"], 2);
    take(&mut self_check, "a0", 1_000, SILENT);
    for reason in UnknownReason::ALL {
        let unknown = Outcome::Unknown(*reason);
        assert_eq!(take(&mut self_check, "b0", 1_000, unknown), unknown);
    }
    assert_eq!(take(&mut self_check, "a1", 1_001, SILENT), SILENT);
    // Nor does an unknown one prove that a failing host is well.
    take(&mut self_check, "b0", 1_002, SILENT);
    take(
        &mut self_check,
        "b1",
        1_003,
        Outcome::Unknown(UnknownReason::NoLocalPorts),
    );
    assert_eq!(take(&mut self_check, "a1", 1_004, SILENT), ALL);
}

#[test]
fn failures_are_ours_only_while_every_one_of_enough_hosts_fails() {
    // hosts, hosts_failing, results in order with what becomes of them
    check_hosts(
        &["a", "b", "c"],
        3,
        &[
            ("a0", SILENT, SILENT),
            ("b0", SILENT, SILENT),
            ("b1", SILENT, SILENT),
            ("c0", SILENT, ALL),
            ("a0", SILENT, ALL),
            // An answer that is not as expected is still an answer: it counts, and the network is there.
            ("b0", STATUS, STATUS),
            ("a1", SILENT, SILENT),
            // Again all hosts fail. Who has failed since before that answer is not excused; who began after it is.
            ("b1", SILENT, SILENT),
            ("b0", SILENT, ALL),
            ("c1", GOOD, GOOD),
            ("a1", SILENT, SILENT),
        ],
    );
    // Fewer hosts than asked for, one host, and turned off.
    let always = [
        ("a0", SILENT, SILENT),
        ("b0", SILENT, SILENT),
        ("a0", SILENT, SILENT),
    ];
    check_hosts(&["a", "b"], 3, &always);
    check_hosts(&["a", "b"], 0, &always);
    check_hosts(&["a"], 1, &always);
    // Unlike this one; and a probe that nobody announced changes nothing.
    check_hosts(
        &["a", "b"],
        2,
        &[
            ("a0", SILENT, SILENT),
            ("b0", SILENT, ALL),
            ("x", GOOD, GOOD),
            ("a0", SILENT, ALL),
        ],
    );
    // One name in two ways of writing is one host.
    check_hosts(
        &["a", "A"],
        2,
        &[("a0", SILENT, SILENT), ("A0", SILENT, SILENT)],
    );
}

#[track_caller]
fn check_hosts(hosts: &[&str], hosts_failing: usize, steps: &[(&str, Outcome, Outcome)]) {
    let mut self_check = self_check_of(hosts, hosts_failing);
    let mut now = 1_000;
    for (index, (probe, outcome, expected)) in steps.iter().enumerate() {
        now += 1;
        assert_eq!(
            take(&mut self_check, probe, now, *outcome),
            *expected,
            "step {index}"
        );
    }
}

/// Gives a punctual result that ended at `now`, of a host at this address.
fn take_at(
    self_check: &mut SelfCheck,
    probe: &str,
    now: u64,
    outcome: Outcome,
    (last, reached): (u8, bool),
) -> Outcome {
    let mut result = result(now - 10, now - 10, now, outcome);
    result.answer.entrance = Some([192, 0, 2, last].into());
    result.answer.reached = reached;
    self_check.examine(&id(probe), &result, TIMEOUT, beating(at(now)), at(now))
}

#[test]
fn names_of_one_entrance_are_no_witnesses_of_one_another() {
    let hosts = ["a", "b", "c"];
    // The addresses of the three hosts, and whether their silence is ours.
    for (addresses, ours) in [([1, 1, 1], false), ([1, 2, 1], false), ([1, 2, 3], true)] {
        let mut self_check = self_check_of(&hosts, 3);
        let mut now = 1_000;
        for round in 0..3 {
            for (host, address) in hosts.iter().zip(addresses) {
                now += 1;
                let probe = format!("{host}0");
                let seen = take_at(&mut self_check, &probe, now, SILENT, (address, false));
                let all_have_failed = round > 0 || *host == "c";
                let expected = if ours && all_have_failed { ALL } else { SILENT };
                assert_eq!(seen, expected, "{addresses:?} {round} {host}");
            }
        }
        let told = self_check
            .troubles(at(now))
            .any(|it| it == UnknownReason::AllTargets);
        assert_eq!(told, ours, "{addresses:?}");
        // A name that moves elsewhere is counted where it is now.
        let moved = take_at(&mut self_check, "c0", now + 1, SILENT, (3, false));
        assert_eq!(moved == ALL, addresses[1] == 2, "{addresses:?}");
        // Where a name has no address at the moment, it is where it was.
        let lost = Outcome::Failure(Reason::Resolve);
        let kept = take(&mut self_check, "c0", now + 2, lost);
        assert_eq!(kept == ALL, addresses[1] == 2, "{addresses:?}");
    }
}

#[test]
fn what_came_back_is_never_our_own_trouble() {
    for reason in [
        Reason::ConnectRefused,
        Reason::Reset,
        Reason::Tls,
        Reason::HeaderTimeout,
        Reason::BodyTimeout,
        Reason::Proxy,
    ] {
        let bad = Outcome::Failure(reason);
        let mut self_check = self_check_of(&["a", "b", "c"], 3);
        for round in 0..3 {
            for (last, probe) in ["a0", "b0", "c0"].iter().enumerate() {
                let now = 1_000 + round * 10 + last as u64;
                let address = u8::try_from(last).unwrap();
                let seen = take_at(&mut self_check, probe, now, bad, (address, true));
                assert_eq!(seen, bad, "{probe}");
            }
        }
        assert_eq!(self_check.troubles(at(1_050)).count(), 0);
        // It also proves that the silence of another host is that host's own.
        take_at(&mut self_check, "a0", 1_060, SILENT, (0, false));
        take_at(&mut self_check, "b0", 1_061, SILENT, (1, false));
        let seen = take_at(&mut self_check, "c0", 1_062, bad, (2, true));
        assert_eq!(seen, bad);
        assert_eq!(
            take_at(&mut self_check, "a0", 1_063, SILENT, (0, false)),
            SILENT
        );
    }
}

#[test]
fn the_outage_of_one_app_among_others_counts_from_its_first_failure_to_its_last() {
    let mut self_check = self_check_of(&["a", "b", "c", "d"], 3);
    for round in 0..1_000 {
        let now = 10_000 + round * 2_000;
        assert_eq!(take(&mut self_check, "a0", now, SILENT), SILENT);
        assert_eq!(take(&mut self_check, "b0", now + 1, SILENT), SILENT);
        assert_eq!(take(&mut self_check, "c0", now + 2, SILENT), SILENT);
        assert_eq!(take(&mut self_check, "d0", now + 3, GOOD), GOOD);
    }
}

#[test]
fn what_breaks_one_path_on_every_host_is_not_our_network() {
    let mut self_check = self_check_of(&["a", "b"], 2);
    let mut unknown = 0;
    for round in 0..1_000 {
        let now = 10_000 + round * 2_000;
        for (offset, probe) in ["a1", "b1"].iter().enumerate() {
            assert_eq!(
                take(&mut self_check, probe, now + offset as u64, GOOD),
                GOOD
            );
        }
        // Each host's latest evidence is now a failure, in every round.
        for (offset, probe) in ["a0", "b0"].iter().enumerate() {
            let seen = take(&mut self_check, probe, now + 10 + offset as u64, SILENT);
            unknown += u32::from(seen == ALL);
        }
    }
    assert_eq!(
        unknown, 1,
        "only in the first round, before anyone answered again"
    );
}

#[test]
fn an_old_answer_does_not_prove_the_network_of_today() {
    let mut self_check = self_check_of(&["a", "b"], 2);
    take(&mut self_check, "a0", 1_000, SILENT);
    take(&mut self_check, "b1", 2_000, GOOD);
    take(&mut self_check, "b0", 11_900, SILENT);
    assert_eq!(take(&mut self_check, "a0", 12_000, SILENT), SILENT);
    assert_eq!(take(&mut self_check, "a0", 12_001, SILENT), ALL);
}

#[test]
fn a_lost_network_stays_unknown_for_as_long_as_it_lasts() {
    let mut self_check = self_check_of(&["a", "b"], 2);
    take(&mut self_check, "a0", 9_000, SILENT);
    for round in 0..1_000 {
        let now = 10_000 + round * 2_000;
        assert_eq!(take(&mut self_check, "b0", now, SILENT), ALL, "{round}");
        assert_eq!(take(&mut self_check, "a0", now + 7, SILENT), ALL, "{round}");
    }
}

#[test]
fn a_failure_excuses_others_only_while_it_is_fresh() {
    // With an interval of 2 s it is fresh for 10 s.
    let mut self_check = self_check_of(&["a", "b"], 2);
    take(&mut self_check, "a0", 1_000, SILENT);
    assert_eq!(take(&mut self_check, "b0", 11_000, SILENT), ALL);
    assert_eq!(
        self_check.troubles(at(11_000)).collect::<Vec<_>>(),
        [UnknownReason::AllTargets]
    );
    assert_eq!(self_check.troubles(at(11_001)).count(), 0);
    assert_eq!(take(&mut self_check, "b0", 11_001, SILENT), SILENT);
    assert_eq!(take(&mut self_check, "a0", 11_002, SILENT), ALL);
    assert_eq!(
        SelfCheck::freshness(Duration::from_secs(30)),
        Duration::from_secs(90)
    );
}

#[test]
fn bad_results_are_unknown_while_the_control_probe_fails() {
    // Results of the control probe, then whether others are doubted.
    check_control(&[], false);
    check_control(&[(false, 9_000)], false);
    check_control(&[(false, 9_000), (true, 9_300), (false, 9_600)], false);
    check_control(&[(false, 9_000), (false, 9_500)], true);
    check_control(&[(false, 8_000), (false, 9_000), (true, 9_900)], false);
    check_control(&[(true, 1), (false, 9_000), (false, 9_500)], true);
    // Long ago: 15 s with its interval of 5 s.
    check_control(&[(false, 90_000), (false, 100_000)], true);
    check_control(&[(false, 90_000), (false, 106_000)], false);
}

#[track_caller]
fn check_control(results: &[(bool, u64)], doubted: bool) {
    let mut self_check = self_check_of(&["a"], 0);
    self_check.control.fresh_for = SelfCheck::freshness(Duration::from_secs(5));
    let mut now = 9_999;
    for (good, when) in results {
        self_check.control(*good, at(*when));
        now = now.max(when + 10);
    }
    for bad in [SILENT, STATUS, SLOW] {
        let expected = if doubted { CONTROL } else { bad };
        assert_eq!(take(&mut self_check, "a0", now, bad), expected);
    }
    assert_eq!(take(&mut self_check, "a0", now, GOOD), GOOD);
    assert_eq!(
        self_check
            .troubles(at(now))
            .any(|t| t == UnknownReason::Control),
        doubted
    );
    // A control probe that falls silent excuses nobody any more.
    assert_eq!(take(&mut self_check, "a0", now + 16_000, STATUS), STATUS);
}

#[test]
fn the_freshness_of_the_control_probe_follows_its_interval() {
    use crate::config::settings::{
        ConnectConfig, ObjectivesConfig, ProbeConfig, ProbeKind, TcpProbeConfig,
    };
    let tcp = TcpProbeConfig {
        dialogue: Vec::new(),
        tls: false,
        connect: ConnectConfig::default(),
        max_latency: None,
        certificate_valid_for: None,
    };
    let control = ProbeConfig {
        id: id("control"),
        target: crate::config::target::Target::parse("tcp://127.0.0.1:1", "tcp").unwrap(),
        kind: ProbeKind::Tcp(Box::new(tcp)),
        interval: Duration::from_secs(60),
        analysis_interval: None,
        needs: Vec::new(),
        pods: None,
        objectives: ObjectivesConfig::default(),
        timeout: TIMEOUT,
        window: Duration::from_secs(300),
        latency_objective: None,
    };
    let settings = settings::SelfCheckConfig {
        late_after: ms(500),
        hosts_failing: 0,
        control: Some(Arc::new(control)),
    };
    let self_check = SelfCheck::new(&settings, std::iter::empty());
    assert_eq!(self_check.control.fresh_for, Duration::from_secs(180));
}

#[test]
fn a_trouble_of_single_results_is_in_force_for_a_minute() {
    let mut self_check = self_check_of(&["a"], 0);
    assert_eq!(self_check.troubles(at(10_000)).count(), 0);
    take(
        &mut self_check,
        "a0",
        10_000,
        Outcome::Unknown(UnknownReason::File),
    );
    assert_eq!(
        self_check.troubles(at(70_000)).collect::<Vec<_>>(),
        [UnknownReason::File]
    );
    assert_eq!(self_check.troubles(at(70_001)).count(), 0);
}
