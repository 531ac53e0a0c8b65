#![allow(clippy::unwrap_used, reason = "a test may end where it stands")]

use super::*;
use crate::config::{self, Sources};
use crate::core::probe_result::{Outcome, PhaseTimes, ProbeResult, Reason, ResponseFacts};
use crate::http::status::GuardView;

/// A release with an objective on ten-second probes, and one of a probe's own.
const CONFIG: &str = "[[release]]\nname = \"web\"\nnamespace = \"shop\"\ninterval = \"10s\"\n\
    objective = { availability = \"99%\", latency = \"95%\", window = \"30d\", tiers = [\"page-quick\"] }\n\
    [[release.probe]]\nname = \"api\"\nurl = \"tcp://127.0.0.1:1\"\nlatency_objective = \"300ms\"\n\
    [[release.probe]]\nname = \"db\"\nurl = \"tcp://127.0.0.1:2\"\nobjective = { availability = \"99%\" }\n";

struct Sounded {
    promises: Vec<Promise>,
    tracked_probe: HashMap<ProbeId, Arc<TrackedProbe>>,
    metrics: Metrics,
}

fn second(seconds: u64) -> Moment {
    Moment::after_boot(Duration::from_secs(1_000_000 + seconds))
}

impl Sounded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("probes.toml");
        std::fs::write(&file, CONFIG).unwrap();
        let sources = Sources {
            files: vec![file],
            ..Sources::default()
        };
        let settings = config::load(&sources).unwrap().settings;
        let tracked_probe = settings.probes().map(|probe| {
            let tracked_probe = Arc::new(TrackedProbe::new(Arc::clone(probe), second(0)));
            (probe.id.clone(), tracked_probe)
        });
        Self {
            tracked_probe: tracked_probe.collect(),
            promises: promises(&settings),
            metrics: Metrics::new().unwrap(),
        }
    }

    fn probe(&self, name: &str) -> &Arc<TrackedProbe> {
        let found = self
            .tracked_probe
            .iter()
            .find(|(id, _)| id.probe.as_str() == name);
        found.unwrap().1
    }

    /// A probe was asked at these seconds.
    fn sound(&self, name: &str, at: impl Iterator<Item = u64>, is_good: bool, latency_ms: u64) {
        for at in at {
            let finished = second(at);
            let due = finished - Duration::from_millis(latency_ms);
            let outcome = if is_good {
                Outcome::Success
            } else {
                Outcome::Failure(Reason::Status)
            };
            let result = ProbeResult {
                due,
                started: due,
                finished,
                outcome,
                phases: PhaseTimes::default(),
                answer: ResponseFacts::default(),
                explanation: None,
            };
            self.probe(name).lock().record(&result, 0.0);
        }
    }

    /// What is found of the objective of a probe, or of the release.
    fn found(&self, probe: Option<&str>, objective: &str, at: u64) -> ObjectiveCache {
        let is_it =
            |promise: &&Promise| promise.probe.as_deref() == probe && promise.what() == objective;
        let promise = self.promises.iter().find(is_it).unwrap();
        let accounts = SpentByRelease::new();
        one(
            promise,
            &accounts,
            &self.tracked_probe,
            &self.metrics,
            second(at),
            None,
        )
    }
}

fn view(phase: &str, revision: Option<u32>) -> Vec<Arc<GuardView>> {
    vec![Arc::new(GuardView {
        namespace: "shop".into(),
        release: "web".into(),
        phase: phase.into(),
        revision,
        ..GuardView::default()
    })]
}

fn spent(accounts: &SpentByRelease) -> Vec<(u32, (u64, u64))> {
    let account = accounts.get("shop/web");
    account.map_or_else(Vec::new, |account| {
        account.revisions.iter().map(|(a, b)| (*a, *b)).collect()
    })
}

#[test]
fn what_was_sounded_before_the_first_look_is_on_nobodys_account() {
    let sounded = Sounded::new();
    let mut accounts = SpentByRelease::new();
    let mut spending = |revision| {
        let views = view("idle", revision);
        super::add_spending(
            &mut accounts,
            &sounded.promises,
            &views,
            &sounded.tracked_probe,
        );
        spent(&accounts)
    };
    // A replica that probed for an hour before it was its turn to tell.
    sounded.sound("api", (0..3600).step_by(10), false, 10);
    assert_eq!(spending(Some(7)), [(7, (0, 0))]);
    sounded.sound("api", 3600..3604, false, 10);
    sounded.sound("db", 3600..3606, true, 10);
    assert_eq!(spending(Some(7)), [(7, (10, 4))]);
    sounded.sound("db", 3610..3612, false, 10);
    assert_eq!(spending(Some(8)), [(7, (10, 4)), (8, (2, 2))]);
    // What is not known for a moment is on the next account that is.
    sounded.sound("db", 3620..3621, true, 10);
    assert_eq!(spending(None), [(7, (10, 4)), (8, (2, 2))]);
    assert_eq!(spending(Some(8)), [(7, (10, 4)), (8, (3, 2))]);
    // The release was installed anew, and its numbers begin again.
    sounded.sound("api", 3630..3632, true, 10);
    assert_eq!(spending(Some(1)), [(1, (2, 0))]);
    for revision in 2..40 {
        spending(Some(revision));
    }
    let last = spending(Some(40));
    assert_eq!(last.len(), MAX_REVISIONS);
    assert_eq!(last.last().unwrap().0, 40);
}

#[test]
fn accounts_of_what_is_gone_are_closed() {
    let sounded = Sounded::new();
    let mut accounts = SpentByRelease::new();
    accounts.insert("shop/other".into(), SpentByRevision::default());
    let views = view("idle", Some(3));
    add_spending(
        &mut accounts,
        &sounded.promises,
        &views,
        &sounded.tracked_probe,
    );
    assert_eq!(accounts.keys().collect::<Vec<_>>(), ["shop/web"]);
    let views = view("not_installed", None);
    add_spending(
        &mut accounts,
        &sounded.promises,
        &views,
        &sounded.tracked_probe,
    );
    assert!(accounts.is_empty());
}

/// Ten minutes of outage, with the results of a watch or without.
#[test]
fn an_outage_spends_the_same_whether_or_not_anybody_watches() {
    let outage = |every: u64| {
        let sounded = Sounded::new();
        for tracked_probe in sounded.tracked_probe.values() {
            let interval = Duration::from_secs(every);
            let own = tracked_probe.probe().interval;
            tracked_probe.lock().taken_every(interval, own);
        }
        for probe in ["api", "db"] {
            let every = usize::try_from(every).unwrap();
            sounded.sound(probe, (0..600).step_by(every), false, 10);
        }
        let (view, found, totals) = sounded.found(None, "availability", 599);
        assert_eq!(totals, (120, 120));
        let condition = &found[0];
        assert_eq!(condition.kind, AlertKind::ObjectiveBurning);
        assert!(
            condition
                .text
                .contains("100.0 times as fast as it lasts over 1h"),
            "{}",
            condition.text
        );
        (view.failure, view.budget_remaining)
    };
    let quiet = outage(10);
    assert_eq!(quiet, outage(1));
    assert_eq!(quiet, outage(2));
    // Ten minutes of 432 that may fail in thirty days.
    assert!((quiet.1 - (1.0 - 10.0 / 432.0)).abs() < 1e-9, "{quiet:?}");
}

#[test]
fn each_objective_counts_what_it_promises() {
    let sounded = Sounded::new();
    sounded.sound("api", (0..900).step_by(10), true, 10);
    sounded.sound("api", (900..1000).step_by(10), true, 500);
    sounded.sound("db", (0..900).step_by(10), true, 10);
    sounded.sound("db", (900..1000).step_by(10), false, 10);
    let counts = |probe, what| {
        let (view, found, _) = sounded.found(probe, what, 999);
        (view.success, view.failure, found.len())
    };
    assert_eq!(counts(None, "availability"), (190, 10, 0));
    // Only one of the probes says what is slow.
    assert_eq!(counts(None, "latency"), (90, 10, 0));
    assert_eq!(counts(Some("db"), "availability"), (90, 10, 0));
    let (view, ..) = sounded.found(Some("db"), "availability", 999);
    let burn = |window: &str| {
        let found = view.burns.iter().find(|burn| burn.window == window);
        found.and_then(|burn| burn.burn_rate).unwrap()
    };
    assert!((burn("1h") - 10.0).abs() < 1e-9);
    assert!(burn("5m") > burn("1h"));
    assert!(view.revisions.is_empty() && view.lasts_s.is_some());
}
