//! `leadsman replay FILE`: replays a recorded analysis.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::{BAD_CONFIGURATION, key_and_value};
use crate::core::analysis::{Analysis, Rule, number};
use crate::core::recording::{Recording, RecordingEnd};
use crate::storage;

/// Options of `leadsman replay`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub struct ReplayArgs {
    /// The recording; they are in the state directory, under recordings
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// A setting of the rule that differs, as margin=0.05
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

const ABOUT: &str = "\
Settings of the rule, with the units in their names: watch_s, margin, endpoint_margin, hold_s, alpha, burst_s and the
others that the head of a recording lists.

Exit code: 0 when the verdict, its reason and its time are those of the recording, 1 when not or when the recording has
no verdict, 2 when the recording or a setting cannot be used.

Examples:
  leadsman replay leadsman-demo.jsonl
  leadsman replay leadsman-demo.jsonl --set margin=0.30 --set hold_s=60";

pub(super) fn run(args: &ReplayArgs) -> ExitCode {
    match replay(args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            complain!("leadsman: {why}");
            ExitCode::from(BAD_CONFIGURATION)
        }
    }
}

fn replay(args: &ReplayArgs) -> Result<bool, String> {
    let shown = args.file.display();
    let recording =
        storage::read_recording(&args.file).map_err(|error| format!("{shown} {error}"))?;
    let rule = with_settings(&recording.head.rule, &args.set)?;
    let watch = recording
        .judge(rule, |_| {})
        .map_err(|error| format!("{shown}: {error}"))?;
    let agrees = recording.agrees(&watch);
    if args.json {
        say!("{}", as_json(&recording, &watch, agrees));
    } else {
        let head = &recording.head;
        say!(
            "Revision {} of {}/{}",
            head.revision,
            head.namespace,
            head.release
        );
        let recorded = recording.end.as_ref();
        let recorded = recorded.map_or_else(|| "no end".to_owned(), sentence);
        say!("  recorded  {recorded}");
        say!("  replayed  {}", sentence(&RecordingEnd::of(&watch)));
        if let Some(regression) = watch.regression() {
            say!("            {}", regression.text);
        }
        if head.version < crate::core::recording::VERSION {
            say!(
                "  The recording has the format version {}: it is judged by today's rule, without what that version did not record.",
                head.version
            );
        }
        if let Some(cut) = &recording.cut {
            say!("  The recording is incomplete ({cut}); it was judged as far as it goes.");
        }
        say!(
            "{}",
            match (agrees, &recording.end) {
                (true, _) => "The same verdict.",
                (false, Some(_)) => "Another verdict.",
                (false, None) => "The recording has no verdict to compare with.",
            }
        );
    }
    Ok(agrees)
}

fn sentence(end: &RecordingEnd) -> String {
    let reason = if end.reason.is_empty() {
        String::new()
    } else {
        format!(" ({})", end.reason)
    };
    format!(
        "{}{reason} at tick {}, largest e-value {}",
        end.verdict,
        end.tick,
        number(end.max_e)
    )
}

fn as_json(recording: &Recording, watch: &Analysis, agrees: bool) -> Value {
    json!({
        "namespace": recording.head.namespace,
        "release": recording.head.release,
        "revision": recording.head.revision,
        "recorded": recording.end,
        "replayed": RecordingEnd::of(watch),
        "incomplete": recording.cut,
        "same": agrees,
    })
}

/// The rule with some settings changed.
pub(super) fn with_settings(rule: &Rule, set: &[(String, String)]) -> Result<Rule, String> {
    let mut changed = serde_json::to_value(rule).map_err(|error| error.to_string())?;
    for (key, text) in set {
        let Some(place) = changed.get_mut(key) else {
            return Err(format!(
                "--set {key}: there is no such setting of the rule; see the head of the recording"
            ));
        };
        *place = serde_json::from_str(text).map_err(|_| {
            format!("--set {key}: {text:?} is no number; write it as {key}={place}")
        })?;
    }
    let changed: Rule =
        serde_json::from_value(changed).map_err(|error| format!("--set: {error}"))?;
    changed.check().map_err(|error| format!("--set: {error}"))?;
    Ok(changed)
}
