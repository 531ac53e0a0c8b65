//! `leadsman demo`: the whole story in one process on loopback, from a deployment to its verified rollback.

mod app;
mod cluster;
mod scenario;
mod screen;
mod story;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{runtime, signals};
use crate::platform::files::TemporaryDir;
use crate::release::embedded::EmbeddedHistory;
use scenario::Scenario;

const ABOUT: &str = "\
It runs an app with the runbook's four endpoints and three pods on free ports of this machine, guards it, deploys a
revision, and shows what becomes of it. The app, its pods and its history of releases are embedded, in the place of a
cluster and Helm; probing, judgement, rollback and verification are those of `leadsman run`.

Exit code: 0 when the story ended as the list of scenarios says: a bad revision found, rolled back and verified, or a good
one kept. Otherwise 1.

Examples:
  leadsman demo
  leadsman demo --scenario dead --stay
  leadsman demo --alertmanager http://127.0.0.1:9093 --slack-url-file ./slack-url
  leadsman demo --app-only --listen 127.0.0.1:8080
  leadsman demo --app-only --history ./history     the app of a history, for `embedded = \"./history\"`
  leadsman demo --deploy errors --history ./history";

/// Options of `leadsman demo`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct DemoArgs {
    /// What is wrong with the revision that is deployed
    #[arg(long, value_enum, value_name = "SCENARIO", default_value_t = Scenario::Errors)]
    scenario: Scenario,
    /// Keep app, daemon and status page running after the end, until Ctrl-C
    #[arg(long)]
    stay: bool,
    /// Where the recording of the watch is put
    #[arg(long, value_name = "FILE", default_value = "leadsman-demo.jsonl")]
    record: PathBuf,
    /// Tell this Alertmanager, too
    #[arg(long, value_name = "URL", conflicts_with = "app_only")]
    alertmanager: Option<String>,
    /// Tell Slack, too: the file with the address of an incoming webhook
    #[arg(long, value_name = "FILE", conflicts_with = "app_only")]
    slack_url_file: Option<PathBuf>,
    /// Serve the app and nothing else, until Ctrl-C
    #[arg(long, conflicts_with_all = ["scenario", "stay"])]
    app_only: bool,
    /// Where the app listens; the demo takes a free port, --app-only port 8080
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The history of releases, for --app-only and --deploy
    #[arg(long, value_name = "DIRECTORY")]
    history: Option<PathBuf>,
    /// Deploy a revision into --history and end
    #[arg(long, value_enum, value_name = "SCENARIO", requires = "history", conflicts_with_all = ["scenario", "stay", "app_only"])]
    deploy: Option<Scenario>,
}

pub(super) fn run(args: &DemoArgs) -> ExitCode {
    if let (Some(scenario), Some(history)) = (args.deploy, &args.history) {
        return deploy(scenario, history);
    }
    // App, daemon and view share the process; two threads keep one from delaying the other.
    let Some(runtime) = runtime(2) else {
        return ExitCode::FAILURE;
    };
    let code = if args.app_only {
        runtime.block_on(app_only(args))
    } else {
        runtime.block_on(story::run(&story::StoryOptions {
            scenario: args.scenario,
            stay: args.stay,
            listen: args.listen,
            record: args.record.clone(),
            alertmanager: args.alertmanager.clone(),
            slack_url_file: args.slack_url_file.clone(),
        }))
    };
    runtime.shutdown_background();
    code
}

fn deploy(scenario: Scenario, history: &Path) -> ExitCode {
    let contents = match serde_json::to_value(scenario.behaviour()) {
        Ok(contents) => contents,
        Err(error) => {
            complain!("leadsman: {error}");
            return ExitCode::FAILURE;
        }
    };
    match EmbeddedHistory::of(history).upgrade(contents) {
        Ok(revision) => {
            say!("Revision {revision} is deployed: {}.", scenario.about());
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain!(
                "leadsman: cannot write to the history in {}: {error}",
                history.display()
            );
            ExitCode::FAILURE
        }
    }
}

async fn app_only(args: &DemoArgs) -> ExitCode {
    let wanted = args
        .listen
        .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080)));
    let listener = match TcpListener::bind(wanted).await {
        Ok(listener) => listener,
        Err(error) => {
            complain!("leadsman: cannot listen at {wanted}: {error}; choose another with --listen");
            return ExitCode::FAILURE;
        }
    };
    let address = listener.local_addr().unwrap_or(wanted);
    let temporary = match (&args.history, TemporaryDir::new()) {
        (Some(_), _) => None,
        (None, Ok(scratch)) => Some(scratch),
        (None, Err(error)) => {
            complain!(
                "leadsman: cannot make a temporary directory: {error}; give one with --history"
            );
            return ExitCode::FAILURE;
        }
    };
    let directory = match (&args.history, &temporary) {
        (Some(history), _) => history.clone(),
        (None, Some(scratch)) => scratch.path().join("history"),
        (None, None) => return ExitCode::FAILURE,
    };
    if let Err(error) = story::install(&directory, Scenario::Healthy, 1) {
        complain!(
            "leadsman: cannot write to the history in {}: {error}",
            directory.display()
        );
        return ExitCode::FAILURE;
    }
    let database = match story::database().await {
        Ok(database) => database,
        Err(why) => {
            complain!("leadsman: {why}");
            return ExitCode::FAILURE;
        }
    };
    let dependency = database.local_addr().unwrap_or(wanted);
    let running = cluster::run(&directory, listener, database, CancellationToken::new());
    let announce = async {
        if let Err(why) = story::wait_for_pods(&EmbeddedHistory::of(&directory)).await {
            return why;
        }
        say!(
            "The app answers at http://{address}/, /api/health, /api/health/db and /api/health/redis."
        );
        say!("Its database answers at http://{dependency}/.");
        say!("Stop it with Ctrl-C.");
        std::future::pending().await
    };
    tokio::select! {
        // The pods first: what an earlier run has left of them is gone before anybody looks.
        biased;
        ended = running => {
            if let Err(error) = ended {
                complain!("leadsman: the app has ended: {error}");
            }
            ExitCode::FAILURE
        }
        why = announce => {
            complain!("leadsman: {why}");
            ExitCode::FAILURE
        }
        () = signals::wait_for_stop() => ExitCode::SUCCESS,
    }
}
