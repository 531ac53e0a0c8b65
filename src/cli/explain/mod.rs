//! `leadsman explain`: explains a past verdict to people who do not know the rule.

mod chart;
mod latencies;
mod results;
mod surroundings;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::client::{DaemonClient, RequestError, ServerArgs, TokenArgs};
use super::{BAD_CONFIGURATION, ConfigArgs, runtime, terminal};
use crate::core::analysis::{Analysis, Verdict, number};
use crate::core::recording::{MAX_BYTES, Recording, RecordingEnd};
use crate::core::units::Revision;
use crate::storage;
use chart::EvidenceChart;
use results::UnknownCauses;

/// Options of `leadsman explain`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct ExplainArgs {
    /// A release that a daemon guards, or the file of a recording [default: the newest recording in the state directory
    /// of the configuration]
    #[arg(value_name = "RELEASE or FILE")]
    what: Option<String>,
    /// The newest recording of this revision [default: of a release, the last one that was judged]
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u32>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

const ABOUT: &str = "\
A recording holds logs of pods and differences of values, with secrets hidden, so a daemon gives it only to a caller with a
token. What is a file here, or has a / or the ending .jsonl in its name, is taken for a file; anything else is a release.

Exit code: 0; 1 when there is no such release or recording; 2 when it cannot be read; 3 when no daemon answers.

Examples:
  leadsman explain mykadoo --namespace shop --server http://leadsman:9616 --token-file ./token
  leadsman explain mykadoo --revision 42 --token-file ./token
  leadsman explain leadsman-demo.jsonl
  leadsman explain --config probes.toml --revision 42";

/// The largest recording.
const MAX_RECORDING: usize = 32 * 1024 * 1024;
const _: () = assert!(
    MAX_RECORDING as u64 == MAX_BYTES,
    "what is written can be read"
);

/// Columns of the chart and of the rows of results.
const WIDTH: usize = 60;

pub(super) fn run(args: &ExplainArgs) -> ExitCode {
    let (place, recording) = match &args.what {
        Some(release) if !is_file(release) => match ask(args, release) {
            Ok((place, bytes)) => (place, Recording::read(bytes.as_slice())),
            Err(code) => return code,
        },
        _ => {
            let file = match find(args) {
                Ok(Some(file)) => file,
                Ok(None) => return ExitCode::FAILURE,
                Err(code) => return code,
            };
            (file.display().to_string(), storage::read_recording(&file))
        }
    };
    let recording = match recording {
        Ok(recording) => recording,
        Err(error) => {
            complain!("leadsman: {place} {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let mut timing = Vec::new();
    let mut causes = Vec::new();
    let analysis = match recording.judge(recording.head.rule.clone(), |analysis| {
        timing.push(analysis.log10_e());
        causes.push(analysis.causes().map(|(_, cause)| cause).collect());
    }) {
        Ok(analysis) => analysis,
        Err(error) => {
            complain!("leadsman: {place}: {error}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    if args.json {
        say!("{}", as_json(&recording, &analysis));
    } else {
        show(&recording, &analysis, &timing, &causes);
    }
    ExitCode::SUCCESS
}

fn is_file(what: &str) -> bool {
    let path = Path::new(what);
    what.contains('/') || path.extension().is_some_and(|end| end == "jsonl") || path.is_file()
}

/// A recording from the daemon and its place; an exit code if there is none.
fn ask(args: &ExplainArgs, release: &str) -> Result<(String, Vec<u8>), ExitCode> {
    let token = args.token.token().map_err(|error| {
        complain!("leadsman: {error}");
        ExitCode::from(BAD_CONFIGURATION)
    })?;
    let runtime = runtime(1).ok_or(ExitCode::FAILURE)?;
    let asked = runtime.block_on(async {
        let daemon = DaemonClient::new(&args.server)?;
        let (namespace, _) = daemon
            .release(release, args.server.namespace.as_deref())
            .await?;
        let rollouts = daemon.rollouts(&namespace, release).await?;
        let revision = match args.revision {
            Some(revision) => {
                if let Some(rollout) = unchanged(&rollouts, revision) {
                    return Ok(RolloutHistory::Unchanged(rollout));
                }
                revision
            }
            None => last_judged(&rollouts).ok_or_else(|| {
                RequestError::Unknown(format!("no watch of {namespace}/{release} has ended yet"))
            })?,
        };
        let path = format!("/api/v1/releases/{namespace}/{release}/rollouts/{revision}/recording");
        let bytes = daemon
            .get_bytes(&path, token.as_deref(), MAX_RECORDING)
            .await?;
        let place = format!("the recording of revision {revision}");
        Ok(RolloutHistory::Recording(place, bytes))
    });
    match asked.map_err(|error: RequestError| error.report())? {
        RolloutHistory::Recording(place, bytes) => Ok((place, bytes)),
        RolloutHistory::Unchanged(rollout) if args.json => {
            say!("{rollout}");
            Err(ExitCode::SUCCESS)
        }
        RolloutHistory::Unchanged(rollout) => {
            let text = rollout["text"].as_str().unwrap_or_default();
            say!("Revision {}: unchanged. {text}", rollout["revision"]);
            Err(ExitCode::SUCCESS)
        }
    }
}

/// What a daemon has of a revision.
enum RolloutHistory {
    /// A recording, and where it is.
    Recording(String, Vec<u8>),
    /// It was not judged, so there is no recording.
    Unchanged(Value),
}

fn unchanged(rollouts: &[Value], revision: u32) -> Option<Value> {
    let mut ended = rollouts.iter().rev();
    let rollout = ended.find(|rollout| rollout["revision"] == revision)?;
    (rollout["outcome"] == "unchanged").then(|| rollout.clone())
}

fn last_judged(rollouts: &[Value]) -> Option<u32> {
    let mut judged = rollouts.iter().rev();
    let judged = judged.find(|rollout| rollout["outcome"] != "unchanged")?;
    u32::try_from(judged["revision"].as_u64()?).ok()
}

/// The recording that is asked for.
fn find(args: &ExplainArgs) -> Result<Option<PathBuf>, ExitCode> {
    if let Some(file) = &args.what {
        return Ok(Some(PathBuf::from(file)));
    }
    let settings = args.config.load()?.settings;
    let Some(directory) = settings.state else {
        complain!(
            "leadsman: the configuration has no state.directory, so no watch was recorded; name a recording"
        );
        return Ok(None);
    };
    let of = |path: &PathBuf| {
        let Some(wanted) = args.revision else {
            return true;
        };
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        name.contains(&format!(".v{wanted}."))
    };
    let found = storage::recordings(&directory, None).into_iter().rfind(of);
    if found.is_none() {
        complain!(
            "leadsman: there is no such recording in {}",
            directory.join("recordings").display()
        );
    }
    Ok(found)
}

fn show(recording: &Recording, analysis: &Analysis, timing: &[f64], causes: &[UnknownCauses]) {
    let head = &recording.head;
    let verdict = analysis.conclude();
    let outcome = match &verdict {
        Verdict::Rollback(_) => "made things worse",
        Verdict::Healthy => "was kept",
        Verdict::Inconclusive(_) => "could not be judged",
        Verdict::Analyzing => "was watched, without a verdict",
    };
    say!(
        "Revision {} of {}/{} {outcome}",
        head.revision,
        head.namespace,
        head.release
    );
    let began = UNIX_EPOCH + Duration::from_millis(head.began.millis());
    let before = head.serving.map_or_else(
        || "nothing was serving before".to_owned(),
        |Revision(serving)| format!("revision {serving} was serving before"),
    );
    say!(
        "  appeared {}, watched for {:.0} s of {:.0} s in the mode {}; {before}",
        humantime::format_rfc3339_seconds(began),
        analysis.elapsed_s(),
        analysis.ends_at_s(),
        head.mode.as_str()
    );
    if let Some(cut) = &recording.cut {
        say!("  The recording is incomplete ({cut}); this is as far as it goes.");
    }
    say!("");
    say!("Verdict: {} {}", verdict.word(), verdict.reason());
    match &verdict {
        Verdict::Rollback(regression) => {
            say!("  {}", regression.text);
            say!("  {}", regression.otherwise);
        }
        Verdict::Healthy | Verdict::Analyzing | Verdict::Inconclusive(_) => {
            if let Some(strongest) = analysis.strongest() {
                say!(
                    "  The strongest evidence against it was an e-value of {} after {:.0} s, most of it from {}; {:.0} are needed.",
                    number(strongest.e),
                    strongest.t,
                    strongest.stratum,
                    head.rule.threshold()
                );
            }
        }
    }
    for (name, why) in analysis.excluded() {
        say!("  Not counted at the end: {name}, because {why}.");
    }
    for excuse in analysis.excuses() {
        say!("  {excuse}.");
    }
    for (cause, count) in analysis.unknown().filter(|(_, count)| *count > 0) {
        let results = if count == 1 { "result" } else { "results" };
        say!("  {count} {results} {}.", cause.words());
    }
    if let Some(slower) = analysis.slower() {
        say!("  Slower since {:.0} s: {}.", slower.t, slower.text);
    }
    match analysis.learned_from() {
        0 => say!("  No kept rollout to learn from: the defaults are tolerated while it warms up."),
        1 => say!("  Learned from 1 kept rollout what is normal while it warms up."),
        many => say!("  Learned from {many} kept rollouts what is normal while it warms up."),
    }
    let longest = recording.head.start.learned.longest_s;
    if longest > 0.0 {
        say!("  Of those, the longest rollout was complete after {longest:.0} s.");
    }
    if let Some(coverage) = analysis.coverage() {
        say!("  {:.0} % of the results could be used.", coverage * 100.0);
    }
    say!("");
    evidence(recording, analysis, timing);
    results::show(recording, analysis, causes);
    numbers(analysis);
    let latencies = latencies::lines(recording);
    for line in &latencies {
        say!("{line}");
    }
    if !latencies.is_empty() {
        say!("");
    }
    if let Some(evidence) = &recording.evidence {
        surroundings::show(evidence);
    }
    timeline(recording);
}

fn evidence(recording: &Recording, analysis: &Analysis, timing: &[f64]) {
    let rule = &recording.head.rule;
    say!(
        "Evidence against the revision (e-value): 1 says nothing, {:.0} rejects.",
        rule.threshold()
    );
    say!(
        "  A revision that is no worse than the one before gets there in at most {:.0} of 100 watches.",
        rule.alpha * 100.0
    );
    let chart = EvidenceChart {
        values: timing,
        threshold: rule.threshold().log10(),
        width: WIDTH,
        seconds: analysis.elapsed_s(),
        colours: terminal::has_colours(),
    };
    for line in chart.lines() {
        terminal::print_coloured(&format!("  {line}"));
    }
    say!("");
}

fn numbers(analysis: &Analysis) {
    say!("Numbers at the end (failures/results)");
    say!(
        "  {:<14} {:>12} {:>14} {:>11} {:>10}",
        "",
        "lately",
        "before",
        "tolerated",
        "e-value"
    );
    for stratum in analysis.report() {
        let before = if stratum.assumed {
            "assumed".to_owned()
        } else {
            format!("{}/{}", stratum.before_failed, stratum.before_total)
        };
        let tolerated = stratum
            .tolerated
            .map_or_else(|| "-".to_owned(), |rate| format!("{:.1} %", rate * 100.0));
        say!(
            "  {:<14} {:>12} {before:>14} {tolerated:>11} {:>10}",
            stratum.name.to_string(),
            format!("{}/{}", stratum.failed, stratum.total),
            number(10f64.powf(stratum.log10_e.min(300.0)))
        );
    }
    say!("");
}

fn timeline(recording: &Recording) {
    if recording.entries.is_empty() {
        return;
    }
    say!("Timeline (seconds since the revision appeared)");
    for entry in &recording.entries {
        let after = entry.at.since(recording.head.began).as_secs_f64();
        say!("  {after:>7.1}  {}", entry.text);
    }
}

fn as_json(recording: &Recording, analysis: &Analysis) -> serde_json::Value {
    let names: Vec<&str> = analysis.endpoints().collect();
    json!({
        "namespace": recording.head.namespace,
        "release": recording.head.release,
        "revision": recording.head.revision,
        "serving": recording.head.serving,
        "began": recording.head.began.unix_seconds(),
        "verdict": RecordingEnd::of(analysis),
        "strongest": analysis.strongest(),
        "coverage": analysis.coverage(),
        "not_judged": analysis
            .unknown()
            .map(|(cause, count)| (cause.as_str().to_owned(), json!(count)))
            .collect::<serde_json::Map<_, _>>(),
        "slower": analysis.slower(),
        "strata": analysis.report(),
        "failing": results::failing(recording, &names),
        "incomplete": recording.cut,
        "events": recording.entries,
        "cluster": recording.evidence,
    })
}
