use super::*;
use crate::config::Target;
use crate::config::settings::{ConnectConfig, ObjectivesConfig, ProbeKind, TcpProbeConfig};
use crate::core::probe_result::ResponseFacts;
use crate::core::units::{Namespace, ProbeId, ProbeName, ReleaseName};

fn probe() -> ProbeConfig {
    ProbeConfig {
        id: ProbeId {
            namespace: Namespace::new("n"),
            release: ReleaseName::new("r"),
            probe: ProbeName::new("p"),
        },
        target: Target::parse("tcp://127.0.0.1:1", "tcp").unwrap(),
        kind: ProbeKind::Tcp(Box::new(TcpProbeConfig {
            dialogue: Vec::new(),
            tls: false,
            connect: ConnectConfig::default(),
            max_latency: None,
            certificate_valid_for: None,
        })),
        interval: Duration::from_secs(10),
        analysis_interval: None,
        needs: Vec::new(),
        pods: None,
        objectives: ObjectivesConfig::default(),
        timeout: Duration::from_secs(10),
        window: Duration::from_secs(300),
        latency_objective: Some(Duration::from_millis(300)),
    }
}

fn at(millis: u64) -> Moment {
    Moment::after_boot(Duration::from_millis(millis))
}

fn result(finished: Moment, latency_ms: u64, outcome: Outcome) -> ProbeResult {
    let due = finished - Duration::from_millis(latency_ms);
    ProbeResult {
        due,
        started: due,
        finished,
        outcome,
        phases: PhaseTimes::default(),
        answer: ResponseFacts::default(),
        explanation: (outcome != Outcome::Success).then(|| "why".into()),
    }
}

#[test]
fn before_the_first_result_nothing_is_claimed() {
    let view = ProbeStats::new(&probe(), at(5)).view(at(9));
    assert_eq!(view.totals, ProbeTotals::default());
    assert_eq!((view.last, view.evidence), (None, None));
    assert_eq!(
        (view.last_success_unix, view.certificate_expiry),
        (None, None)
    );
    assert_eq!(view.latencies.count, 0);
}

#[test]
fn an_edge_belongs_to_the_bucket_below_it() {
    let mut stats = ProbeStats::new(&probe(), at(0));
    let edges = stats.view(at(0)).latencies.edges;
    let edge = |ms| edges.iter().position(|e| *e == Duration::from_millis(ms));
    let (objective, ten) = (edge(300).unwrap(), edge(10_000).unwrap());
    assert_eq!(edges.len(), ten + 1, "the timeout is an edge once");
    for latency in [300, 301, 10_000, 10_001] {
        stats.record(&result(at(20_000), latency, Outcome::Success), 1.0);
    }
    let latencies = stats.view(at(20_000)).latencies;
    assert_eq!(latencies.at_most[objective], 1);
    assert_eq!(latencies.at_most[ten], 3);
    assert_eq!(latencies.count, 4);
    assert_eq!(latencies.sum, Duration::from_millis(20_602));
}

#[test]
fn a_unknown_result_changes_only_its_counter_and_the_last_one() {
    let mut stats = ProbeStats::new(&probe(), at(0));
    stats.record(&result(at(50), 5, Outcome::Failure(Reason::Status)), 7.0);
    let before = stats.view(at(60));
    stats.record(
        &result(at(60), 5, Outcome::Unknown(UnknownReason::Late)),
        8.0,
    );
    let after = stats.view(at(60));
    assert_eq!(after.totals.all_unknown(), 1);
    assert_eq!(
        after.last.unwrap().outcome,
        Outcome::Unknown(UnknownReason::Late)
    );
    assert_eq!(after.evidence, before.evidence);
    assert_eq!(after.latencies, before.latencies);
    assert_eq!(after.consecutive_failures, 1);
}

#[test]
fn a_good_result_ends_the_failures_in_a_row() {
    let mut stats = ProbeStats::new(&probe(), at(0));
    for n in 1..4 {
        stats.record(&result(at(n), 0, Outcome::Failure(Reason::Reset)), 1.0);
    }
    assert_eq!(stats.view(at(9)).consecutive_failures, 3);
    assert_eq!(stats.view(at(9)).last_success_unix, None);
    stats.record(&result(at(9), 0, Outcome::Success), 2.5);
    let view = stats.view(at(9));
    assert_eq!(view.consecutive_failures, 0);
    assert_eq!(view.last_success_unix, Some(2.5));
    assert_eq!(view.totals.failure[Reason::Reset.index()], 3);
}

#[test]
fn counters_and_results_survive_changed_settings() {
    let tracked_probe = TrackedProbe::new(Arc::new(probe()), at(0));
    for n in 0..20 {
        tracked_probe
            .lock()
            .record(&result(at(n), 1, Outcome::Success), 1.0);
    }
    tracked_probe.lock().missed(at(20), 2);
    let faster = ProbeConfig {
        interval: Duration::from_secs(1),
        window: Duration::from_secs(600),
        ..probe()
    };
    tracked_probe.adopt(Arc::new(faster.clone()));
    let view = tracked_probe.lock().view(at(20));
    assert_eq!((view.totals.success, view.totals.missed), (20, 2));
    assert_eq!((view.window.success, view.window.missed), (20, 2));
    assert_eq!(view.latencies.count, 20);
    assert!(view.last.is_some());

    // Other edges start again; everything else goes on.
    let stricter = ProbeConfig {
        latency_objective: Some(Duration::from_millis(200)),
        target: Target::parse("tcp://127.0.0.1:2", "tcp").unwrap(),
        ..faster
    };
    tracked_probe.adopt(Arc::new(stricter.clone()));
    let view = tracked_probe.lock().view(at(20));
    assert_eq!((view.totals.success, view.latencies.count), (20, 0));
    assert_eq!(view.last, None, "another target was not asked yet");
    assert_eq!(*tracked_probe.probe(), stricter);
}

#[test]
fn the_recent_results_are_the_last_sixty_from_the_oldest() {
    let mut stats = ProbeStats::new(&probe(), at(0));
    assert_eq!(stats.recent().count(), 0);
    for n in 1..=100 {
        stats.record(&result(at(n + 200), n, Outcome::Success), 1.0);
    }
    let recent: Vec<_> = stats.recent().collect();
    assert_eq!(recent.len(), RECENT);
    assert_eq!(recent[0], (Outcome::Success, Duration::from_millis(41)));
    assert_eq!(recent[59], (Outcome::Success, Duration::from_millis(100)));
}

#[test]
fn an_idle_probe_is_small() {
    let stats = ProbeStats::new(&probe(), at(0));
    assert!(stats.bytes() <= 8 * 1024, "{} bytes", stats.bytes());
}
