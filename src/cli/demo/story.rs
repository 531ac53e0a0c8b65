//! The story: two good revisions, a baseline, a third revision, and its outcome.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::app::ENDPOINTS;
use super::cluster;
use super::scenario::Scenario;
use super::screen::Screen;
use crate::cli::signals::{self, SignalRequest, Signals};
use crate::config::{self, Settings, Sources};
use crate::core::probe_stats::TrackedProbe;
use crate::core::units::{Namespace, ReleaseName};
use crate::daemon::Daemon;
use crate::http::status::{GuardFeed, GuardView};
use crate::platform::files::{self, TemporaryDir};
use crate::release::embedded::EmbeddedHistory;
use crate::storage;

/// A story that takes longer than this is stuck. A bake finds a leak after some four minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often the view is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(250);

const NAMESPACE: &str = "demo";
pub(super) const RELEASE: &str = "mykadoo";

/// Puts good revisions into a history that is empty.
pub(super) fn install(directory: &Path, scenario: Scenario, revisions: u32) -> io::Result<()> {
    let history = EmbeddedHistory::of(directory);
    if history.records()?.is_empty() {
        for number in 1..=revisions {
            history.upgrade(serde_json::to_value(scenario.good(number))?)?;
        }
    }
    Ok(())
}

/// What is told, and how.
#[derive(Debug, Clone)]
pub(super) struct StoryOptions {
    pub(super) scenario: Scenario,
    pub(super) stay: bool,
    pub(super) listen: Option<SocketAddr>,
    pub(super) record: PathBuf,
    pub(super) alertmanager: Option<String>,
    pub(super) slack_url_file: Option<PathBuf>,
}

pub(super) async fn run(options: &StoryOptions) -> ExitCode {
    let stays = Cell::new(false);
    let stopped = async {
        signals::wait_for_stop().await;
        if stays.get() {
            // The story has ended; how, is told when everything has stopped.
            std::future::pending::<()>().await;
        }
    };
    let told = tokio::select! {
        told = tell(options, &stays) => told,
        () = stopped => Err("stopped before the end".to_owned()),
    };
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            complain!("leadsman: {why}");
            ExitCode::FAILURE
        }
    }
}

async fn tell(options: &StoryOptions, stays: &Cell<bool>) -> Result<bool, String> {
    let scratch = TemporaryDir::new()
        .map_err(|error| format!("cannot make a temporary directory: {error}"))?;
    let history_directory = scratch.path().join("history");
    install(&history_directory, options.scenario, 2)
        .map_err(|error| format!("cannot write the history: {error}"))?;
    let wanted = options
        .listen
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = TcpListener::bind(wanted)
        .await
        .map_err(|error| format!("cannot listen at {wanted}: {error}"))?;
    let database = database().await?;
    let dependency = database.local_addr().map_err(|error| error.to_string())?;
    let service = listener.local_addr().map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let app = tokio::spawn({
        let (directory, stop) = (history_directory.clone(), stop.clone());
        async move { cluster::run(&directory, listener, database, stop).await }
    });
    let history = EmbeddedHistory::of(&history_directory);
    wait_for_pods(&history).await?;
    let settings = settings(options, service, dependency, scratch.path())?;
    let daemon = Box::pin(Daemon::start(settings))
        .await
        .map_err(|error| error.to_string())?;
    let story = DemoStory {
        scenario: options.scenario,
        record: options.record.clone(),
        began: Instant::now(),
        history,
        state: scratch.path().join("state"),
        view: daemon
            .view(&Namespace::new(NAMESPACE), &ReleaseName::new(RELEASE))
            .await
            .ok_or("the release is not guarded")?,
        probes: daemon.tracked_probe().await,
        screen: Screen::new(),
    };
    let mut daemon = daemon;
    let ended = story
        .run(service, daemon.address(), options.stay.then_some(stays))
        .await;
    daemon.stop().await;
    stop.cancel();
    match app.await {
        Ok(Err(error)) => Err(format!("the app has ended: {error}")),
        Ok(Ok(())) | Err(_) => ended,
    }
}

/// The daemon guards an app that is up, so that the baseline is that of an app that is well.
pub(super) async fn wait_for_pods(history: &EmbeddedHistory) -> Result<(), String> {
    let patience = Instant::now() + PATIENCE;
    while history
        .cluster()
        .is_ok_and(|cluster| cluster.complete.is_none())
    {
        if Instant::now() > patience {
            return Err("the app's pods never became Ready".into());
        }
        tokio::time::sleep(DRAW_EVERY).await;
    }
    Ok(())
}

/// Where the app's database listens.
pub(super) async fn database() -> Result<TcpListener, String> {
    TcpListener::bind("127.0.0.1:0")
        .await
        .map_err(|error| format!("cannot listen at a free port: {error}"))
}

/// The settings, by the same way as anybody's.
fn settings(
    options: &StoryOptions,
    service: SocketAddr,
    database: SocketAddr,
    directory: &Path,
) -> Result<Settings, String> {
    let shown = |part: &str| toml::Value::from(directory.join(part).to_string_lossy().into_owned());
    let mut text = format!(
        "[serve]\nlisten = \"127.0.0.1:0\"\n[state]\ndirectory = {}\n[[release]]\nname = \"{RELEASE}\"\n\
         namespace = \"{NAMESPACE}\"\nbase_url = \"http://{service}\"\nembedded = {}\nmode = \"enforce\"\n\
         interval = \"{}ms\"\nwindow = \"1m\"\n[release.analysis]\nduration = \"{}s\"\n",
        shown("state"),
        shown("history"),
        options.scenario.interval().as_millis(),
        options.scenario.watch().as_secs()
    );
    if let Some(bake) = options.scenario.bake() {
        let seconds = bake.as_secs();
        text.push_str(&format!("bake = \"rollback\"\nbake_for = \"{seconds}s\"\n"));
    }
    for (name, path) in ENDPOINTS {
        let expect = if path == "/" {
            "{ status = 200 }"
        } else {
            "{ status = 200, json = { \"/status\" = \"ok\" } }"
        };
        let needs = if name == "db" { "[\"database\"]" } else { "[]" };
        text.push_str(&format!(
            "[[release.probe]]\nname = \"{name}\"\npath = \"{path}\"\ntimeout = \"5s\"\nexpect = {expect}\nneeds = {needs}\n"
        ));
    }
    text.push_str(&format!(
        "[[dependency]]\nname = \"database\"\nurl = \"http://{database}/\"\n"
    ));
    if let Some(url) = &options.alertmanager {
        let url = toml::Value::from(url.as_str());
        text.push_str(&format!("[alertmanager]\nurls = [{url}]\n"));
    }
    if let Some(file) = &options.slack_url_file {
        // A relative name is one of the working directory here, not of the scratch file's.
        let file =
            std::path::absolute(file).map_err(|error| format!("{}: {error}", file.display()))?;
        let file = toml::Value::from(file.to_string_lossy().into_owned());
        text.push_str(&format!("[slack]\nurl_file = {file}\n"));
    }
    let file = directory.join("probes.toml");
    files::put(&file, text.as_bytes())
        .map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    let sources = Sources {
        files: vec![file],
        ..Sources::default()
    };
    config::load(&sources)
        .map(|loaded| loaded.settings)
        .map_err(|diagnostics| diagnostics.render(false))
}

struct DemoStory {
    scenario: Scenario,
    record: PathBuf,
    began: Instant,
    history: EmbeddedHistory,
    state: PathBuf,
    view: GuardFeed,
    probes: Vec<Arc<TrackedProbe>>,
    screen: Screen,
}

impl DemoStory {
    async fn run(
        mut self,
        service: SocketAddr,
        page: SocketAddr,
        stays: Option<&Cell<bool>>,
    ) -> Result<bool, String> {
        let screen = &mut self.screen;
        screen.say("Leadsman demo: an app with three pods, two good revisions, and a daemon that guards it.");
        screen.say("App, pods and history of releases are embedded; there is no cluster and no Helm in this process.");
        screen.say(&format!("  app          http://{service}/   (and /api/health, /api/health/db, /api/health/redis)"));
        screen.say(&format!("  status page  http://{page}/"));
        screen.say(&format!("  metrics      http://{page}/metrics"));
        screen.say(&format!(
            "The baseline is shortened to {} s (in life: an hour), the watch to {} s (in life: five minutes).",
            self.scenario.warm_up().as_secs(),
            self.scenario.watch().as_secs()
        ));
        if let Some(bake) = self.scenario.bake() {
            screen.say(&format!(
                "The bake is shortened to {} s (in life: an hour), and may roll back.",
                bake.as_secs()
            ));
        }
        self.warm_up().await?;
        let contents =
            serde_json::to_value(self.scenario.behaviour()).map_err(|error| error.to_string())?;
        let revision = self
            .history
            .upgrade(contents)
            .map_err(|error| format!("cannot write the history: {error}"))?;
        self.screen.say(&format!(
            "Revision {revision} is deployed: {}.",
            self.scenario.about()
        ));
        let view = self.follow(revision.0).await?;
        let is_right = self.end(&view, revision.0);
        if let Some(stays) = stays {
            let mut signals = Signals::listen();
            stays.set(true);
            self.screen.say(&format!(
                "Everything keeps running; the status page is at http://{page}/. Stop with Ctrl-C."
            ));
            while signals.next().await != SignalRequest::Stop {}
        }
        Ok(is_right)
    }

    /// Waits until the pods are Ready and the probes have measured for a while.
    async fn warm_up(&mut self) -> Result<(), String> {
        let patience = Instant::now() + PATIENCE;
        let is_well = |probe: &Arc<TrackedProbe>| {
            probe
                .lock()
                .recent()
                .last()
                .is_some_and(|(o, _)| o == crate::core::probe_result::Outcome::Success)
        };
        while !self.probes.iter().all(is_well) {
            if Instant::now() > patience {
                return Err("the app never answered".into());
            }
            tokio::time::sleep(DRAW_EVERY).await;
        }
        self.screen.say("The app answers. Taking the baseline.");
        let until = Instant::now() + self.scenario.warm_up();
        while Instant::now() < until {
            let left = until.duration_since(Instant::now()).as_secs() + 1;
            self.screen.draw(
                &self.view.borrow().clone(),
                &self.probes,
                &format!("baseline: {left} s left"),
            );
            tokio::time::sleep(DRAW_EVERY).await;
        }
        Ok(())
    }

    /// Whether no more is to come of a revision that ended so: neither its analysis nor its bake.
    fn has_ended(&self, view: &GuardView, outcome: Option<&str>) -> bool {
        let may_bake = self.scenario.bake().is_some() && outcome == Some("passed");
        let has_baked = |state: &str| matches!(state, "good" | "inconclusive");
        let is_over = !may_bake || view.bake.as_ref().is_some_and(|it| has_baked(it.state));
        outcome.is_some() && is_over && view.phase == "idle"
    }

    /// Shows what happens until the watch of the revision has ended, and its bake where the scenario is about that.
    async fn follow(&mut self, revision: u32) -> Result<Arc<GuardView>, String> {
        let patience = Instant::now() + PATIENCE;
        let mut shown = self.view.borrow().events.len();
        loop {
            let view = self.view.borrow().clone();
            let fresh = view.events.len().saturating_sub(shown);
            for event in view.events.iter().take(fresh).rev() {
                self.screen.event(self.began.elapsed(), &event.text);
            }
            shown = view.events.len();
            if self.has_ended(&view, outcome_of(&view, revision)) {
                return Ok(view);
            }
            if Instant::now() > patience {
                return Err(format!("the story is stuck: {}", view.says));
            }
            self.screen.draw(&view, &self.probes, "");
            tokio::time::sleep(DRAW_EVERY).await;
        }
    }

    /// The verdict in words, the steps against the runbook, and whether it ended as it should.
    fn end(&mut self, view: &GuardView, revision: u32) -> bool {
        self.screen.finish();
        let outcome = outcome_of(view, revision).unwrap_or("unknown");
        if let Some(verdict) = &view.verdict {
            self.screen.say("");
            self.screen.say(&format!(
                "Verdict on revision {}: {} {}",
                verdict.revision, verdict.verdict, verdict.reason
            ));
            self.screen.say(&format!("  {}", verdict.text));
            if !verdict.otherwise.is_empty() {
                self.screen.say(&format!("  {}", verdict.otherwise));
            }
            if !verdict.failing.is_empty() {
                self.screen
                    .say(&format!("  failed: {}", verdict.failing.join(", ")));
            }
        }
        if !view.steps.is_empty() {
            self.screen.say("");
            self.screen
                .say("  step                 took      runbook allows");
            for step in &view.steps {
                let took = step
                    .took_s
                    .map_or("-".to_owned(), |took| format!("{took:.1} s"));
                self.screen.say(&format!(
                    "  {:<20} {took:<9} {:.0} s   {}",
                    step.step, step.limit_s, step.state
                ));
            }
        }
        let expected = if self.scenario.is_bad() {
            "rolled_back"
        } else {
            "passed"
        };
        let is_right = outcome == expected;
        self.screen.say("");
        self.screen.say(&format!(
            "{}, {:.0} s after the start.",
            view.says,
            self.began.elapsed().as_secs_f64()
        ));
        if let Some(recording) = storage::recordings(&self.state, None).last() {
            let to = self.record.display();
            self.screen.say(&match std::fs::read(recording)
                .and_then(|bytes| files::put(&self.record, &bytes))
            {
                Ok(()) => format!("The watch is recorded in {to}: try `leadsman explain {to}`."),
                Err(error) => format!("The recording could not be copied to {to}: {error}"),
            });
        }
        if !is_right {
            self.screen.say(&format!(
                "This is not how it should have ended: {outcome} instead of {expected}."
            ));
        }
        is_right
    }
}

/// How a revision ended, as far as it has.
fn outcome_of(view: &GuardView, revision: u32) -> Option<&'static str> {
    let record = view.history.iter().find(|it| it.revision == revision)?;
    record.outcome
}
