//! `leadsman status` and `leadsman history`: show what the daemon knows.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::client::{DaemonClient, RequestError, ServerArgs};
use super::runtime;

/// Options of `leadsman status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0; 1 when the daemon knows no such release; 3 when there is no daemon, or none acts.\n\n\
    Examples:\n  leadsman status\n  leadsman status mykadoo --namespace mykadoo-production"
)]
pub(crate) struct StatusArgs {
    /// One release in detail; without it all of them
    #[arg(value_name = "RELEASE")]
    release: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Options of `leadsman history`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0; 1 when the daemon knows no such release; 3 when there is no daemon, or none acts.\n\n\
    Example:\n  leadsman history mykadoo"
)]
pub(crate) struct HistoryArgs {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: String,
    #[command(flatten)]
    server: ServerArgs,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

/// Events that are shown of one release.
const EVENTS: usize = 8;

pub(super) fn status(args: &StatusArgs) -> ExitCode {
    asked(async {
        let daemon = DaemonClient::new(&args.server)?;
        let Some(name) = &args.release else {
            let releases = daemon.releases().await?;
            if args.json {
                say!("{}", json!({ "releases": releases }));
            } else {
                table(&releases);
            }
            return Ok(());
        };
        let (_, release) = daemon
            .release(name, args.server.namespace.as_deref())
            .await?;
        if args.json {
            say!("{release}");
        } else {
            detail(&release);
        }
        Ok(())
    })
}

pub(super) fn history(args: &HistoryArgs) -> ExitCode {
    asked(async {
        let daemon = DaemonClient::new(&args.server)?;
        let wanted = args.server.namespace.as_deref();
        let (namespace, _) = daemon.release(&args.release, wanted).await?;
        let rollouts = daemon.rollouts(&namespace, &args.release).await?;
        if args.json {
            say!("{}", json!({ "rollouts": rollouts }));
            return Ok(());
        }
        if rollouts.is_empty() {
            say!("No watch of {namespace}/{} has ended yet.", args.release);
        }
        for rollout in &rollouts {
            said_rollout(rollout);
        }
        Ok(())
    })
}

/// Runs what asks a daemon.
pub(super) fn asked(work: impl Future<Output = Result<(), RequestError>>) -> ExitCode {
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => why.report(),
    }
}

fn table(releases: &[Value]) {
    let rows: Vec<[String; 5]> = releases
        .iter()
        .map(|release| {
            [
                format!(
                    "{}/{}",
                    text(release, "namespace"),
                    text(release, "release")
                ),
                text(release, "mode").to_owned(),
                release["revision"]
                    .as_u64()
                    .map_or_else(|| "-".into(), |revision| revision.to_string()),
                text(release, "phase").replace('_', " "),
                text(release, "says").to_owned(),
            ]
        })
        .collect();
    let head = ["RELEASE", "MODE", "REVISION", "PHASE", ""].map(str::to_owned);
    let wide = |column: usize| {
        let all = rows.iter().chain(std::iter::once(&head));
        all.map(|row| row[column].len()).max().unwrap_or(0)
    };
    let wides = [wide(0), wide(1), wide(2), wide(3)];
    for row in std::iter::once(&head).chain(&rows) {
        let [release, mode, revision, phase, says] = row;
        let line = format!(
            "{release:<0$}  {mode:<1$}  {revision:<2$}  {phase:<3$}  {says}",
            wides[0], wides[1], wides[2], wides[3]
        );
        say!("{}", line.trim_end());
    }
}

fn detail(release: &Value) {
    say!(
        "{}/{}: {}, mode {}",
        text(release, "namespace"),
        text(release, "release"),
        text(release, "phase").replace('_', " "),
        text(release, "mode")
    );
    say!("  {}", text(release, "says"));
    if let Some(since) = release["phase_since"].as_f64() {
        say!("  since {}", date(since));
    }
    if let Some(failure) = release["preflight_failure"].as_str() {
        say!("  A rollback could not be done: {failure}");
    }
    for remark in array(release, "remarks") {
        say!("  {}", remark.as_str().unwrap_or_default());
    }
    let watch = &release["analysis"];
    if watch.is_object() {
        say!(
            "  Watched for {:.0} of {:.0} s; evidence against it {:.3} of {:.0}; {:.0} % of the results could be used; {}",
            watch["elapsed_s"].as_f64().unwrap_or(0.0),
            watch["length_s"].as_f64().unwrap_or(0.0),
            watch["e_value"].as_f64().unwrap_or(0.0),
            watch["threshold"].as_f64().unwrap_or(0.0),
            watch["coverage"].as_f64().unwrap_or(0.0) * 100.0,
            text(watch, "direct")
        );
    }
    say_bake(&release["bake"]);
    for step in array(release, "steps") {
        say_step(step);
    }
    say!("Probes");
    for probe in array(release, "probes") {
        let why = probe["explanation"]
            .as_str()
            .map_or_else(String::new, |why| format!(": {why}"));
        say!(
            "  {:<16} {:<8} {}{why}",
            text(probe, "probe"),
            text(probe, "state"),
            text(probe, "target")
        );
    }
    say!("Revisions");
    for revision in array(release, "history").iter().take(EVENTS) {
        say!(
            "  {:>4}  {:<18} {}",
            revision["revision"].as_u64().unwrap_or(0),
            text(revision, "status"),
            text(revision, "text")
        );
    }
    say!("Events");
    for event in array(release, "events").iter().take(EVENTS) {
        say!(
            "  {}  {}",
            date(event["at"].as_f64().unwrap_or(0.0)),
            text(event, "text")
        );
    }
}

/// How long the newest revision bakes, and how it stands; or how its bake ended.
fn say_bake(bake: &Value) {
    if !bake.is_object() {
        return;
    }
    let time = |key: &str| date(bake[key].as_f64().unwrap_or(0.0));
    let revision = bake["revision"].as_u64().unwrap_or(0);
    let (since, until, words) = (time("since"), time("until"), text(bake, "text"));
    match text(bake, "state") {
        "baking" => say!("  Revision {revision} bakes ({since} to {until}): {words}"),
        state => say!("  Bake of revision {revision} ended at {until}, {state}: {words}"),
    }
}

fn said_rollout(rollout: &Value) {
    say!(
        "Revision {}: {}  ({} to {})",
        rollout["revision"].as_u64().unwrap_or(0),
        text(rollout, "outcome").replace('_', " "),
        date(rollout["appeared_at"].as_f64().unwrap_or(0.0)),
        date(rollout["ended_at"].as_f64().unwrap_or(0.0))
    );
    say!("  {}", text(rollout, "text"));
    if !text(rollout, "reason").is_empty() {
        say!("  reason: {}", text(rollout, "reason"));
    }
    for step in array(rollout, "steps") {
        say_step(step);
    }
}

fn say_step(step: &Value) {
    let took = step["took_s"]
        .as_f64()
        .map_or_else(|| "-".into(), |took| format!("{took:.1} s"));
    say!(
        "  {:<19} {took:>9} of {:.0} s, {}",
        text(step, "step"),
        step["limit_s"].as_f64().unwrap_or(0.0),
        text(step, "state")
    );
}

/// A text of an answer; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("")
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn date(seconds: f64) -> String {
    // What no clock shows is shown as the beginning of time.
    let since = Duration::try_from_secs_f64(seconds)
        .unwrap_or_default()
        .min(Duration::from_secs(253_402_300_799));
    humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string()
}
