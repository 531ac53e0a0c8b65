//! The whole story, from outside: every scenario of the demo ends as it must, and a daemon that is killed in any phase
//! goes on where it was. Each test waits most of the time, so they run side by side.

mod bakes;
mod gates;
mod names;
mod orders;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::{App, Leadsman, post, until};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_leadsman");

fn leadsman(arguments: &[&str], folder: &Path) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

/// Runs a scenario; then its recording must replay to the same verdict, and explain itself.
#[track_caller]
fn scenario(name: &str, says: &[&str]) -> tempfile::TempDir {
    played(name, says).0
}

/// The folder of a scenario, and what was said.
fn played(name: &str, says: &[&str]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let (code, text) = leadsman(&["demo", "--scenario", name], folder.path());
    assert_eq!(code, Some(0), "{text}");
    for part in says {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let (code, replayed) = leadsman(&["replay", "leadsman-demo.jsonl"], folder.path());
    assert_eq!(code, Some(0), "{replayed}");
    assert!(replayed.contains("The same verdict."), "{replayed}");
    let (code, explained) = leadsman(&["explain", "leadsman-demo.jsonl"], folder.path());
    assert_eq!(code, Some(0), "{explained}");
    for part in [
        "Revision 3 of demo/mykadoo",
        "Verdict: ",
        "Evidence",
        "Results",
        "Timeline",
    ] {
        assert!(explained.contains(part), "{part:?} is not in:\n{explained}");
    }
    assert!(!explained.contains("incomplete"), "{explained}");
    (folder, text)
}

const TURNED_BACK: [&str; 4] = [
    "Verdict: rollback",
    "Rolling back to revision 2",
    "rolled back",
    "detect",
];
const KEPT: [&str; 2] = ["Verdict on revision 3: healthy", "Revision 3: passed"];

#[test]
fn a_dead_revision_is_rolled_back() {
    let folder = scenario("dead", &TURNED_BACK);
    cut_and_changed(folder.path());
}

/// A recording as it is left where the daemon or its disk went away, and one under another rule.
fn cut_and_changed(folder: &Path) {
    let text = fs::read_to_string(folder.join("leadsman-demo.jsonl")).unwrap();
    // Behind the head, without which it is no recording.
    let head = text.find('\n').unwrap();
    fs::write(
        folder.join("cut.jsonl"),
        &text[..usize::midpoint(head, text.len())],
    )
    .unwrap();
    let (code, replayed) = leadsman(&["replay", "cut.jsonl"], folder);
    assert_eq!(code, Some(1), "{replayed}");
    for part in [
        "the line is cut off",
        "as far as it goes",
        "no verdict to compare with",
    ] {
        assert!(replayed.contains(part), "{part:?} is not in:\n{replayed}");
    }
    let (code, explained) = leadsman(&["explain", "cut.jsonl"], folder);
    assert_eq!(code, Some(0), "{explained}");
    assert!(explained.contains("incomplete"), "{explained}");

    let lenient = [
        "replay",
        "leadsman-demo.jsonl",
        "--json",
        "--set",
        "pod_hold_s=25",
    ];
    let (code, replayed) = leadsman(&lenient, folder);
    assert_eq!(code, Some(1), "{replayed}");
    let replayed: Value = serde_json::from_str(&replayed).unwrap();
    assert_eq!(replayed["recorded"]["verdict"], "rollback");
    assert_ne!(replayed["replayed"], replayed["recorded"]);

    for (wrong, says) in [
        ("nonsense=1", "nonsense"),
        ("alpha=2", "alpha"),
        ("alpha", "alpha"),
    ] {
        let (code, text) = leadsman(&["replay", "leadsman-demo.jsonl", "--set", wrong], folder);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn errors_of_twenty_points_are_rolled_back() {
    scenario("errors", &TURNED_BACK);
}

#[test]
fn one_dead_endpoint_is_rolled_back() {
    scenario("one-endpoint", &TURNED_BACK);
}

#[test]
fn a_crash_loop_is_rolled_back() {
    let (_folder, text) = played("crash-loop", &TURNED_BACK);
    // Its pods are seen to crash before the Service fails, and it was there before they did.
    let took = |step: &str| -> f64 {
        let line = text
            .lines()
            .find(|line| line.trim().starts_with(&format!("{step} ")));
        let took = line.and_then(|line| line.split_whitespace().nth(1));
        took.and_then(|took| took.parse().ok())
            .unwrap_or_else(|| panic!("{step} is not in:\n{text}"))
    };
    let at = |what: &str| -> f64 {
        let line = text.lines().find(|line| line.contains(what)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let from_appearance = at("Verdict: rollback") - at("Revision 3 appeared");
    assert!((took("detect") - from_appearance).abs() < 0.2, "{text}");
    assert!(took("detect_from_trouble") > 0.0, "{text}");
    assert!(took("detect_from_trouble") <= took("detect"), "{text}");
}

#[test]
fn a_leak_that_shows_after_the_analysis_is_rolled_back_by_the_bake() {
    let mut says = TURNED_BACK[1..].to_vec();
    says.push("Revision 3: passed");
    says.push("Verdict on revision 3: rollback bake:error_rate");
    let folder = scenario("leak", &says);
    let (_, explained) = leadsman(&["explain", "leadsman-demo.jsonl"], folder.path());
    for part in ["Verdict: healthy", "% tolerated; "] {
        assert!(explained.contains(part), "{part:?} is not in:\n{explained}");
    }
}

#[test]
fn a_slow_start_is_kept() {
    scenario("slow-start", &KEPT);
}

#[test]
fn a_dependency_that_goes_down_after_the_old_pods_are_gone_is_kept_and_the_reason_said() {
    scenario(
        "dependency-down",
        &[
            KEPT[0],
            KEPT[1],
            "database failed, so that failures of db meanwhile were not judged",
        ],
    );
}

#[test]
fn pods_that_never_become_ready_are_rolled_back_at_the_progress_deadline() {
    let mut says = TURNED_BACK.to_vec();
    says.push("no new pod of Deployment mykadoo became Ready: its progress deadline was exceeded");
    scenario("never-ready", &says);
}

#[test]
fn pods_that_warm_up_are_kept() {
    scenario("warm-up", &KEPT);
}

#[test]
fn a_single_replica_is_kept_and_its_absence_is_not_judged() {
    let why = "not judged, because the strategy stops the old pods before it starts new ones";
    let folder = scenario("single-replica", &[KEPT[0], KEPT[1], why]);
    let (_, explained) = leadsman(&["explain", "leadsman-demo.jsonl"], folder.path());
    assert!(explained.contains(&format!("  e: {why}")), "{explained}");
}

#[test]
fn slower_answers_are_kept_with_a_notice() {
    let folder = scenario("slower", &[KEPT[0], KEPT[1], "slower: "]);
    let (_, explained) = leadsman(&["explain", "leadsman-demo.jsonl"], folder.path());
    for part in [
        "Latency of good answers",
        "  web    before",
        "         new pods",
    ] {
        assert!(explained.contains(part), "{part:?} is not in:\n{explained}");
    }
}

/// Prometheus can tell what Leadsman tells: the metric is 1 while the alert fires, and the next revision ends both.
#[test]
fn slower_answers_are_a_metric_while_they_are_an_alert() {
    // The answers of a pod's first minute are not compared.
    let guarded =
        Guarded::with(|config| config.replace("duration = \"60s\"", "duration = \"120s\""));
    let is = |value: u8| {
        let line =
            format!("leadsman_release_slower{{namespace=\"shop\",release=\"mykadoo\"}} {value}");
        let page = guarded.daemon.get("/metrics").body;
        page.lines().any(|one| one == line)
    };
    assert!(is(0));
    until("there is enough to compare with", || {
        let probes: Value =
            serde_json::from_str(&guarded.daemon.get("/api/v1/probes").body).unwrap();
        let probes = probes["probes"].as_array().unwrap();
        probes
            .iter()
            .all(|probe| probe["totals"]["success"].as_u64() >= Some(300))
    });
    guarded.deploy("slower");
    until("the metric says so", || is(1));
    until("people are told", || {
        let alerts = guarded.daemon.get("/api/v1/alerts").body;
        alerts.contains("LeadsmanReleaseSlower")
    });
    until("its analysis ends", || guarded.outcome_of(2).is_some());
    assert_eq!(guarded.outcome_of(2).as_deref(), Some("passed"));
    assert!(is(1), "it is told for an hour");
    guarded.deploy("healthy");
    until("the next revision ends it", || is(0));
}

#[test]
fn a_rate_limit_is_kept_and_its_refusals_are_not_judged() {
    scenario("rate-limited", &[KEPT[0], KEPT[1], "limit"]);
}

#[test]
fn a_blip_is_kept() {
    scenario("blip", &KEPT);
}

/// Ctrl-C ends what stays; how the story ended is known by then.
#[test]
fn a_demo_that_stays_ends_with_the_code_of_its_story() {
    for (waits_for, code) in [("Everything keeps running", 0), ("The app answers", 1)] {
        let folder = tempfile::tempdir().unwrap();
        let mut demo = Command::new(PROGRAM)
            .args(["demo", "--scenario", "dead", "--stay"])
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
        let mut lines = lines.by_ref().map_while(Result::ok);
        assert!(lines.any(|line| line.contains(waits_for)), "{waits_for}");
        let sent = Command::new("kill")
            .args(["-INT", &demo.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
        lines.for_each(drop);
        assert_eq!(demo.wait().unwrap().code(), Some(code), "{waits_for}");
    }
}

/// An app of its own, its history, and a daemon that guards it.
struct Guarded {
    app: App,
    daemon: Leadsman,
    history: PathBuf,
    _folder: tempfile::TempDir,
}

impl Guarded {
    fn start() -> Self {
        Self::with(|config| config)
    }

    /// With a configuration that is changed first.
    fn with(change: impl Fn(String) -> String) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let history = folder.path().join("history");
        let app = App::of(&history);
        until("the app's pods are Ready", || {
            fs::read_to_string(history.join("pods.json"))
                .is_ok_and(|text| text.contains("\"complete\":1"))
        });
        let mut config = format!(
            "[state]\ndirectory = \"state\"\n[[release]]\nname = \"mykadoo\"\nnamespace = \"shop\"\n\
             base_url = \"{}\"\nembedded = {:?}\nmode = \"enforce\"\ninterval = \"100ms\"\n\
             [release.analysis]\nduration = \"60s\"\n",
            app.url(),
            history.to_str().unwrap()
        );
        for (name, path) in [
            ("api", "/api/health"),
            ("db", "/api/health/db"),
            ("web", "/"),
        ] {
            config += &format!(
                "[[release.probe]]\nname = \"{name}\"\npath = \"{path}\"\nexpect = {{ status = 200 }}\n"
            );
        }
        let config = change(config).replace("DATABASE", &app.database());
        let daemon = Leadsman::run(&config, &[]);
        let guarded = Self {
            app,
            daemon,
            history,
            _folder: folder,
        };
        until("there is a baseline", || {
            let probes: Value =
                serde_json::from_str(&guarded.daemon.get("/api/v1/probes").body).unwrap();
            let probes = probes["probes"].as_array().unwrap();
            probes
                .iter()
                .all(|probe| probe["totals"]["success"].as_u64() >= Some(100))
        });
        guarded
    }

    fn deploy(&self, scenario: &str) {
        let (code, text) = leadsman(
            &[
                "demo",
                "--deploy",
                scenario,
                "--history",
                self.history.to_str().unwrap(),
            ],
            self.history.parent().unwrap(),
        );
        assert_eq!(code, Some(0), "{text}");
    }

    fn release(&self) -> Value {
        let reply = self.daemon.get("/api/v1/status");
        assert_eq!(reply.status, 200, "{}\n{}", reply.body, self.daemon.log());
        let status: Value = serde_json::from_str(&reply.body).unwrap();
        status["releases"][0].clone()
    }

    #[track_caller]
    fn reaches(&self, phase: &str) {
        until(&format!("the phase {phase}"), || {
            self.release()["phase"] == phase
        });
    }

    fn outcome_of(&self, revision: u64) -> Option<String> {
        let release = self.release();
        let history = release["history"].as_array()?;
        let record = history
            .iter()
            .find(|record| record["revision"] == revision)?;
        record["outcome"].as_str().map(str::to_owned)
    }

    fn records(&self) -> Vec<Value> {
        let mut records: Vec<Value> = (1..100)
            .map_while(|number| fs::read(self.history.join(format!("v{number}.json"))).ok())
            .map(|bytes| serde_json::from_slice(&bytes).unwrap())
            .collect();
        records.sort_by_key(|record| record["revision"].as_u64());
        records
    }

    /// Started again, it goes on in this phase or a later one within 5 s.
    #[track_caller]
    fn starts_again_in(&mut self, phase: &str) {
        let order = [
            "rolling_out",
            "analyzing",
            "preflight",
            "rolling_back",
            "verifying",
            "idle",
        ];
        let at = |phase: &str| order.iter().position(|other| *other == phase);
        let started = Instant::now();
        self.daemon.start_again();
        until("it goes on where it was", || {
            let release = self.release();
            let now = release["phase"].as_str().unwrap_or("").to_owned();
            release["revision"].as_u64() >= Some(2) && at(&now) >= at(phase)
        });
        // Ten times what it takes here would be more than the 5 s that are promised.
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "{:?}",
            started.elapsed()
        );
    }

    /// Revision 2 was rolled back to revision 1, once.
    #[track_caller]
    fn was_rolled_back_once(&self) {
        let records = self.records();
        let statuses: Vec<&str> = records
            .iter()
            .map(|r| r["status"].as_str().unwrap())
            .collect();
        assert_eq!(statuses, ["superseded", "superseded", "deployed"]);
        assert_eq!(records[2]["description"], "Rollback to 1");
        assert_eq!(records[2]["contents"], records[0]["contents"]);
    }
}

/// With `needs` the database's outage is the database's; without, nothing tells it from a fault of the new revision.
#[test]
fn a_database_that_fails_keeps_what_needs_it_and_condemns_what_does_not_say_so() {
    let needs = |config: String| {
        let probe = "path = \"/api/health/db\"\n";
        assert!(config.contains(probe));
        config.replace(probe, &format!("{probe}needs = [\"postgres\"]\n"))
            + "[[dependency]]\nname = \"postgres\"\nurl = \"DATABASE\"\ninterval = \"100ms\"\n"
    };
    let (with, without) = (Guarded::with(needs), Guarded::start());
    for guarded in [&with, &without] {
        guarded.deploy("dependency-down");
    }
    until("both revisions are judged", || {
        with.outcome_of(2).is_some() && without.outcome_of(2).is_some()
    });
    assert_eq!(
        with.outcome_of(2).as_deref(),
        Some("passed"),
        "{}",
        with.daemon.log()
    );
    let says = with.release()["says"].as_str().unwrap().to_owned();
    let sentence = "postgres failed, so that failures of db meanwhile were not judged";
    assert!(says.contains(sentence), "{says}");
    // Nor does it become what the next revision is measured by.
    let known = with.release()["probe_history"].clone();
    let mut known = known.as_array().unwrap().iter();
    let db = known.find(|known| known["probe"] == "db").unwrap();
    let (failed, total) = (
        db["baseline_failed"].as_u64(),
        db["baseline_total"].as_u64(),
    );
    assert!(failed < Some(10) && total > Some(0), "{db}");
    // It is probed and shown by itself, and is no probe of the release.
    let metrics = with.daemon.get("/metrics").body;
    let series = "leadsman_probe_success{dependency=\"postgres\"} 0";
    assert!(metrics.contains(series), "{metrics}");
    assert_eq!(with.release()["probes"].as_array().unwrap().len(), 3);
    let status: Value = serde_json::from_str(&with.daemon.get("/api/v1/status").body).unwrap();
    let postgres = &status["dependencies"][0];
    assert_eq!(postgres["probe"], "postgres");
    assert_eq!(postgres["state"], "failure");
    let needed_by = json!([{ "namespace": "shop", "release": "mykadoo", "probes": ["db"] }]);
    assert_eq!(postgres["needed_by"], needed_by);
    // How long answers took is there also after the analysis.
    let latencies = &with.release()["latencies"];
    assert_eq!(
        (&latencies["revision"], &latencies["is_over"]),
        (&json!(2), &json!(true))
    );
    let of = |at: usize| &latencies["probes"][0]["distributions"][at];
    assert_eq!(
        (&of(0)["of"], &of(1)["of"]),
        (&json!("before"), &json!("since"))
    );
    assert!(of(1)["answers"].as_u64() > Some(0), "{latencies}");
    // Its contents were rolled back, and fail like those before them.
    assert_eq!(
        without.outcome_of(2).as_deref(),
        Some("still_failing"),
        "{}",
        without.daemon.log()
    );
}

/// A release with a history of its own, one of whose probes asks another release.
fn shop_front(name: &str, history: &Path, app: &App, backend: &str, needs: &str) -> String {
    format!(
        "[[release]]\nname = \"{name}\"\nnamespace = \"shop\"\nbase_url = \"{}\"\nembedded = {:?}\n\
         mode = \"enforce\"\ninterval = \"100ms\"\n[release.analysis]\nduration = \"60s\"\n\
         [[release.probe]]\nname = \"web\"\npath = \"/\"\n\
         [[release.probe]]\nname = \"cart\"\nurl = \"{backend}/api/health\"\nneeds = {needs}\n",
        app.url(),
        history.to_str().unwrap()
    )
}

/// Two releases ask a third one, whose new revision is dead. The one that says so is kept, and its sentence names it.
#[test]
fn a_release_that_needs_another_is_not_rolled_back_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let fronts = ["careful", "careless"].map(|name| {
        let history = folder.path().join(name);
        (name, App::of(&history), history)
    });
    for (name, _, history) in &fronts {
        until(&format!("the pods of {name} are Ready"), || {
            fs::read_to_string(history.join("pods.json"))
                .is_ok_and(|text| text.contains("\"complete\":1"))
        });
    }
    let backend = Guarded::with(|config| {
        let begins = config.find("http://").unwrap();
        let ends = begins + config[begins..].find('"').unwrap();
        let needs = ["[\"release:shop/mykadoo\"]", "[]"];
        let fronts = fronts.iter().zip(needs);
        let fronts: String = fronts
            .map(|((name, app, history), needs)| {
                shop_front(name, history, app, &config[begins..ends], needs)
            })
            .collect();
        // It stays as bad as it is.
        config.replace("\"enforce\"", "\"observe\"") + &fronts
    });
    for (_, _, history) in &fronts {
        let history = history.to_str().unwrap();
        let deploy = ["demo", "--deploy", "healthy", "--history", history];
        let (code, text) = leadsman(&deploy, folder.path());
        assert_eq!(code, Some(0), "{text}");
    }
    backend.deploy("dead");
    let ended = |name: &str| {
        let status: Value =
            serde_json::from_str(&backend.daemon.get("/api/v1/status").body).unwrap();
        let releases = status["releases"].as_array().unwrap().iter();
        let mut releases = releases.filter(|release| release["release"] == name);
        let release = releases.next()?.clone();
        let mut history = release["history"].as_array()?.iter();
        let second = history.find(|record| record["revision"] == 2)?;
        let outcome = second["outcome"].as_str()?.to_owned();
        Some((outcome, release["says"].as_str()?.to_owned()))
    };
    for name in ["mykadoo", "careful", "careless"] {
        until(&format!("{name} is judged"), || ended(name).is_some());
    }
    assert_eq!(ended("mykadoo").unwrap().0, "would_roll_back");
    let (outcome, says) = ended("careful").unwrap();
    assert_eq!(outcome, "passed", "{says}\n{}", backend.daemon.log());
    let sentence =
        "shop/mykadoo was rejected or failing, so that failures of cart meanwhile were not judged";
    assert!(says.contains(sentence), "{says}");
    let (outcome, says) = ended("careless").unwrap();
    assert_eq!(outcome, "still_failing", "{says}");
}

/// Kills the daemon in a phase of a revision that is bad. It must go on there within 5 s, and come to the same end.
#[track_caller]
fn killed_in(phase: &str) {
    let mut guarded = Guarded::start();
    guarded.deploy("dead");
    guarded.reaches(phase);
    guarded.daemon.kill();
    guarded.starts_again_in(phase);
    until("the revision is rolled back and well", || {
        guarded.outcome_of(2).is_some()
    });
    assert_eq!(
        guarded.outcome_of(2).as_deref(),
        Some("rolled_back"),
        "{}",
        guarded.daemon.log()
    );
    guarded.was_rolled_back_once();
}

/// Whoever deploys the same bad contents again wins no time by it.
#[test]
fn the_same_contents_again_go_on_with_the_watch_that_runs() {
    let guarded = Guarded::start();
    guarded.deploy("dead");
    until("revision 2 is judged", || {
        guarded.release()["analysis"]["elapsed_s"].as_f64() > Some(0.0)
    });
    guarded.deploy("dead");
    until("it is rolled back and well", || {
        guarded.outcome_of(3).is_some()
    });
    let outcomes = [guarded.outcome_of(2), guarded.outcome_of(3)];
    assert_eq!(
        outcomes.each_ref().map(Option::as_deref),
        [Some("superseded"), Some("rolled_back")],
        "{}",
        guarded.daemon.log()
    );
    let records = guarded.records();
    assert_eq!(records[3]["description"], "Rollback to 1");
    // The recording of its number begins where that of the one before ends, and can be read.
    let (code, explained) = leadsman(
        &["explain", "--config", "probes.toml", "--revision", "3"],
        guarded.daemon.folder(),
    );
    assert_eq!(code, Some(0), "{explained}");
    assert!(
        explained.contains("before which another recording tells of it"),
        "{explained}"
    );
}

#[test]
fn killed_while_a_rollout_settles_it_goes_on() {
    killed_in("rolling_out");
}

#[test]
fn killed_while_watching_it_goes_on() {
    killed_in("analyzing");
}

#[test]
fn killed_while_rolling_back_it_goes_on_and_rolls_back_once() {
    killed_in("rolling_back");
}

#[test]
fn killed_while_verifying_it_goes_on() {
    killed_in("verifying");
}

/// The look before a rollback takes a moment only, so it is held up: a file of the history becomes a pipe in which
/// nothing is written, as if the disk under it did not answer.
#[test]
fn killed_in_the_preflight_it_goes_on() {
    let mut guarded = Guarded::start();
    guarded.deploy("dead");
    guarded.reaches("analyzing");
    let record = guarded.history.join("v1.json");
    let kept = guarded.history.join("kept");
    let content = fs::read(&record).unwrap();
    fs::write(&kept, &content).unwrap();
    let pipe = guarded.history.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let same_pipe = guarded.history.join("same-pipe");
    fs::hard_link(&pipe, &same_pipe).unwrap();
    fs::rename(&pipe, &record).unwrap();
    guarded.reaches("preflight");
    guarded.daemon.kill();
    fs::rename(&kept, &record).unwrap();
    // The app waits in the pipe as well.
    fs::write(&same_pipe, &content).unwrap();
    fs::remove_file(&same_pipe).unwrap();
    guarded.starts_again_in("preflight");
    until("the revision is rolled back and well", || {
        guarded.outcome_of(2).is_some()
    });
    assert_eq!(
        guarded.outcome_of(2).as_deref(),
        Some("rolled_back"),
        "{}",
        guarded.daemon.log()
    );
    guarded.was_rolled_back_once();
}

/// The status page's own tests feed it with written states; those must have the keys of a real one, and no others.
fn the_page_is_tested_with_what_is_really_told(daemon: &Leadsman) {
    let reply = daemon.get("/api/v1/status");
    assert_eq!(reply.header("cache-control"), "no-store");
    let real: Value = serde_json::from_str(&reply.body).unwrap();
    let mut told = BTreeSet::new();
    keys(&real, "", &mut told);
    assert!(told.contains(".releases.history.outcome"), "{told:?}");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page");
    let mut written = BTreeSet::new();
    for name in ["rolled_back", "analyzing", "idle"] {
        let text = fs::read_to_string(folder.join(name).with_extension("json")).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        keys(&state, "", &mut written);
    }
    let missing: Vec<_> = told.difference(&written).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // What only a watch that runs, a rollback, a bake or a dependency brings is not there in this state.
    let brought = |key: &&String| {
        [
            ".analysis.",
            ".steps.",
            ".took_s",
            ".direct",
            ".bake.",
            ".dependencies.",
        ]
        .iter()
        .any(|part| key.contains(part))
    };
    let unknown: Vec<_> = written
        .difference(&told)
        .filter(|key| !brought(key))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");

    let packed = daemon.get_with("/api/v1/status", &[("accept-encoding", "gzip")]);
    assert_eq!(packed.header("content-encoding"), "gzip");
    assert!(packed.raw.len() < reply.raw.len() / 2);
}

/// The paths of all keys; the elements of a list are one.
fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = format!("{path}.{key}");
                keys(value, &path, found);
                found.insert(path);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|value| keys(value, path, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn in_the_mode_observe_nothing_is_written_and_the_verdict_is_said() {
    let guarded = Guarded::start();
    let file = guarded.daemon.folder().join("probes.toml");
    let config = fs::read_to_string(&file).unwrap().replace(
        "mode = \"enforce\"",
        "mode = \"observe\"\nobjective = { availability = \"99%\" }",
    );
    guarded.daemon.rewrite(&config);
    guarded.daemon.signal("HUP");
    until("the new mode is in force", || {
        guarded.release()["mode"] == "observe"
    });
    guarded.deploy("crash-loop");
    until("the verdict has fallen", || guarded.outcome_of(2).is_some());
    assert_eq!(guarded.outcome_of(2).as_deref(), Some("would_roll_back"));
    assert_eq!(guarded.records().len(), 2);
    let is_told = |part: &str| {
        let told = &guarded.release()[part];
        told.as_array().is_some_and(|told| !told.is_empty())
    };
    until("alerts and error budgets are told", || {
        is_told("alerts") && is_told("objectives")
    });
    the_page_is_tested_with_what_is_really_told(&guarded.daemon);
    let metrics = guarded.daemon.get("/metrics").body;
    let series = "leadsman_rollouts_total{namespace=\"shop\",outcome=\"would_roll_back\",release=\"mykadoo\"} 1";
    assert!(metrics.contains(series), "{metrics}");
}

/// Changes the configuration while a dead revision is watched.
fn changed_in_a_watch(change: impl Fn(&str) -> String) -> Guarded {
    let guarded = Guarded::start();
    let file = guarded.daemon.folder().join("probes.toml");
    let config = fs::read_to_string(file).unwrap();
    guarded.deploy("dead");
    guarded.reaches("analyzing");
    guarded.daemon.rewrite(&change(&config));
    guarded.daemon.signal("HUP");
    guarded
}

#[test]
fn a_watch_keeps_the_settings_that_it_began_with_and_says_so() {
    // What is asked then is not there: by the new settings nothing would ever be well again.
    let guarded = changed_in_a_watch(|config| config.replace("/api/health\"", "/nowhere\""));
    let says = || guarded.release()["says"].as_str().unwrap_or("").to_owned();
    until("it is said", || says().contains("other settings wait"));
    until("the rollback is verified", || {
        guarded.outcome_of(2).as_deref() == Some("rolled_back")
    });
    until("the new settings are in force", || {
        let log = guarded.daemon.log();
        let probes = guarded.daemon.get("/api/v1/probes").body;
        let probes: Value = serde_json::from_str(&probes).unwrap();
        let probes = probes["probes"].as_array().unwrap();
        let fails = probes
            .iter()
            .any(|probe| probe["last"]["reason"] == "status");
        fails && log.contains("the new ones wait for its end") && !says().contains("wait")
    });
}

#[test]
fn a_mode_that_does_less_is_obeyed_in_the_middle_of_a_watch() {
    let guarded = changed_in_a_watch(|config| config.replace("\"enforce\"", "\"observe\""));
    until("the verdict has fallen", || guarded.outcome_of(2).is_some());
    assert_eq!(guarded.outcome_of(2).as_deref(), Some("would_roll_back"));
    assert_eq!(guarded.records().len(), 2);
}

#[test]
fn a_state_that_is_damaged_is_set_aside_and_the_release_is_followed_anew() {
    let mut guarded = Guarded::start();
    let state = guarded.daemon.folder().join("state/shop.mykadoo.json");
    until("the state is written", || state.exists());
    guarded.daemon.kill();
    fs::write(&state, "{\"leadsman\":\"state\",").unwrap();
    guarded.daemon.start_again();
    until("it says so", || guarded.daemon.said("was set aside"));
    guarded.reaches("idle");
    drop(guarded.app);
}

#[test]
fn the_counters_of_the_long_spans_survive_a_restart() {
    let mut guarded = Guarded::start();
    let counted = |daemon: &Leadsman| -> u64 {
        let probes: Value = serde_json::from_str(&daemon.get("/api/v1/probes").body).unwrap();
        probes["probes"][0]["spans"]["1h"]["success"]
            .as_u64()
            .unwrap()
    };
    let before = counted(&guarded.daemon);
    assert!(before >= 100);
    guarded.daemon.signal("TERM");
    assert_eq!(guarded.daemon.exit_code(Duration::from_secs(20)), Some(0));
    guarded.daemon.start_again();
    assert!(counted(&guarded.daemon) >= before);
}

#[test]
fn a_second_daemon_does_not_share_the_state() {
    let guarded = Guarded::start();
    let config = guarded.daemon.folder().join("probes.toml");
    let (code, text) = leadsman(
        &["run", "--config", config.to_str().unwrap()],
        guarded.daemon.folder(),
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("in use by another Leadsman"), "{text}");
}

/// With a token for notifications of Alertmanager, and a rule for them.
fn with_alerts(guarded: &Guarded, weight: &str) {
    let folder = guarded.daemon.folder();
    fs::write(folder.join("token"), "a-token").unwrap();
    let file = folder.join("probes.toml");
    let token = format!(
        "[serve]\ntoken_file = \"{}\"\n",
        folder.join("token").display()
    );
    let config = fs::read_to_string(&file)
        .unwrap()
        .replacen("[serve]\n", &token, 1)
        + &format!(
            "[[release.alert]]\nmatch = {{ alertname = \"High.*\" }}\nweight = \"{weight}\"\n"
        );
    guarded.daemon.rewrite(&config);
    guarded.daemon.signal("HUP");
    until("the token is known", || {
        tell(guarded, "Other", "firing", "2000-01-01T00:00:00Z") == 202
    });
}

/// As Alertmanager tells of an alert; the status of the answer.
fn tell(guarded: &Guarded, name: &str, status: &str, since: &str) -> u16 {
    let body = format!(
        r#"{{"version":"4","groupKey":"g","status":"{status}","alerts":[{{"status":"{status}","labels":{{"alertname":"{name}"}},"startsAt":"{since}","fingerprint":"{name}"}}]}}"#
    );
    let token = [("Authorization", "Bearer a-token")];
    post(
        guarded.daemon.address(),
        "/api/v1/alerts",
        &token,
        body.as_bytes(),
    )
    .status
}

const LONG_AGO: &str = "2001-01-01T00:00:00Z";
const TO_COME: &str = "2199-01-01T00:00:00Z";

#[test]
fn an_alert_that_began_under_a_revision_keeps_it_from_being_healthy() {
    let guarded = Guarded::start();
    with_alerts(&guarded, "inconclusive");
    // Outside of a watch it means nothing.
    assert_eq!(tell(&guarded, "HighLoad", "firing", TO_COME), 202);
    guarded.deploy("healthy");
    guarded.reaches("analyzing");
    assert_eq!(tell(&guarded, "HighOld", "firing", LONG_AGO), 202);
    assert_eq!(tell(&guarded, "HighErrors", "firing", TO_COME), 202);
    assert_eq!(tell(&guarded, "HighErrors", "firing", TO_COME), 202);
    until("the watch is over", || guarded.outcome_of(2).is_some());
    assert_eq!(
        guarded.outcome_of(2).as_deref(),
        Some("inconclusive"),
        "{}",
        guarded.daemon.log()
    );
    let page = guarded.daemon.get("/api/v1/status").body;
    assert!(page.contains("alert:HighErrors"), "{page}");
    assert!(page.contains("HighOld fires, and did so before"), "{page}");
    assert_eq!(guarded.records().len(), 2);
    let metrics = guarded.daemon.get("/metrics").body;
    assert!(
        metrics.contains("leadsman_webhook_alerts_total{action=\"duplicate\"} 1"),
        "{metrics}"
    );
}

#[test]
fn an_alert_rejects_where_it_is_said_so() {
    let guarded = Guarded::start();
    with_alerts(&guarded, "reject");
    guarded.deploy("healthy");
    guarded.reaches("analyzing");
    // One that has ended triggers nothing, nor does one that was there before.
    assert_eq!(tell(&guarded, "HighErrors", "resolved", TO_COME), 202);
    assert_eq!(tell(&guarded, "HighErrors", "firing", LONG_AGO), 202);
    assert_eq!(guarded.release()["phase"], "analyzing");
    assert_eq!(tell(&guarded, "HighErrors", "firing", TO_COME), 202);
    until("it is rolled back", || guarded.outcome_of(2).is_some());
    assert_eq!(
        guarded.outcome_of(2).as_deref(),
        Some("rolled_back"),
        "{}",
        guarded.daemon.log()
    );
    guarded.was_rolled_back_once();
    let page = guarded.daemon.get("/api/v1/status").body;
    assert!(page.contains("alert:HighErrors"), "{page}");
}
