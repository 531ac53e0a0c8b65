//! `leadsman judge FILE`: applies the rule to recorded streams, one JSON object per line.

mod stream;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::BAD_CONFIGURATION;
use crate::core::analysis::{Analysis, Bake, BakeEnd, Verdict};
use stream::StreamOutcome;

/// The longest line: a day of ticks of a thousand endpoints is far below it.
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// Options of `leadsman analyze`.
#[derive(Debug, Args)]
#[command(after_help = FORMAT)]
pub struct AnalyzeArgs {
    /// A file of streams, one JSON object a line; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

const FORMAT: &str = r#"One JSON object a line:
  name              printed with the result
  ticks             [[row, repeats], ...]; a row has one character for each endpoint: . success, x failure, - unknown,
                    _ not due, l limited, r name not resolved
  endpoints         names of the columns; without it health, db, redis, root where there are four
  baseline          [[failures, results], ...] before the revision, one pair (or null) an endpoint, or null
  failing_at_start  [true, ...]: its last three results before had failed
  workloads         [{"name", "change": "template", "config" or null, "was_complete", "stops_first", "probes": [places],
                    "template_at", "gap_s", "ready_s", "restarts", "seen": [[t, what], ...]}, ...]; what: template,
                    ready, complete, deadline, refused, created, none, some, held, free; was_complete is true
                    without it, template_at 0
  settled_at        without workloads: seconds until the rollout was complete; 0 without it, null: nobody can see it
  expected_downtime without workloads: true where old pods stop before new ones start
  learned           {"pods": six [failures, results] by age, "service": {"*" or an endpoint: three by phase}}
  steady_s          the endpoints' own intervals, for when a limit answers
  dependencies      names, with "dependency_ticks" as ticks, and "needs": {endpoint: [names]}
  latency           {"before": for each endpoint [[ms, count], ...], "ticks": [[[ms, ...], repeats], ...], "enforce"}
  config            what differs from the rule's defaults, as {"interval_s": 1}
  pods              [{"t", "name", "workload", "restarts", "waiting", "stuck": "image" or "container",
                    "injected", "old_too"}, ...]
  requests          {"interval_s", "baseline": [failures, requests], "scrapes": [[t, failures, requests], ...]}
  direct            [{"name", "rev": "new" or "old", "from": tick, "row": [[row, repeats], ...], "ms"}, ...]
  phase             "bake": the time after a healthy verdict
  from_s            of a bake: when it begins; enforce: whether it rejects; restarts_normal: what is normal
  teaches           true: prints what the revision teaches those after it

Result, one line each: name, verdict, reason, tick, t, max_e, and e, coverage, why, slower, teaches where there are any.
A line that is not valid is named on standard error, the others are judged, and the exit code is 2.

Example:
  echo '{"name":"down","ticks":[["....",10],["xxxx",50]]}' | leadsman analyze -"#;

pub(super) fn run(args: &AnalyzeArgs) -> ExitCode {
    let shown = args.file.display();
    let reader: Box<dyn Read> = if args.file.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        match File::open(&args.file) {
            Ok(file) => Box::new(file),
            Err(error) => {
                complain!("leadsman: cannot read {shown}: {error}");
                return ExitCode::from(BAD_CONFIGURATION);
            }
        }
    };
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut all_valid = true;
    for number in 1.. {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => {
                complain!("leadsman: cannot read {shown} from line {number} on: {error}");
                return ExitCode::from(BAD_CONFIGURATION);
            }
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let judged = if line.len() as u64 == MAX_LINE {
            Err(format!("the line is longer than {MAX_LINE} bytes"))
        } else {
            stream::judge(&line)
        };
        match judged {
            Ok(judged) => say!("{}", result(&judged)),
            Err(error) => {
                complain!("leadsman: {shown}, line {number}: {error}");
                all_valid = false;
            }
        }
    }
    if all_valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(BAD_CONFIGURATION)
    }
}

fn result(judged: &StreamOutcome) -> serde_json::Value {
    match judged {
        StreamOutcome::Watched {
            name,
            analysis,
            verdict,
            teaches,
        } => watched(name, analysis, verdict, *teaches),
        StreamOutcome::Baked {
            name,
            bake,
            enforce,
        } => baked(name, bake, *enforce),
    }
}

fn watched(name: &str, analysis: &Analysis, verdict: &Verdict, teaches: bool) -> serde_json::Value {
    let tick = analysis.ticks().saturating_sub(1);
    let mut result = json!({
        "name": name,
        "verdict": verdict.word(),
        "reason": verdict.reason(),
        "tick": tick,
        "t": f64::from(tick) * analysis.rule().interval_s,
        "max_e": analysis.max_e(),
    });
    if let Verdict::Rollback(regression) = verdict {
        if let Some(e) = regression.e {
            result["e"] = json!(e);
        }
        result["why"] = json!(regression.text);
    }
    if let Some(coverage) = analysis.coverage() {
        result["coverage"] = json!(coverage);
    }
    if let Some(slower) = analysis.slower() {
        result["slower"] = json!({
            "tick": slower.tick,
            "stratum": slower.stratum.to_string(),
            "e": slower.e,
        });
    }
    if let Some(taught) = analysis.teaching().filter(|_| teaches) {
        let mut service: BTreeMap<String, _> = taught
            .endpoints
            .iter()
            .map(|(name, counts)| (name.to_string(), json!(counts)))
            .collect();
        service.insert("*".into(), json!(taught.pool));
        let workloads = taught.workloads.iter().map(|one| {
            let learned =
                json!({"gap_s": one.gap_s, "ready_s": one.ready_s, "restarts": one.restarts});
            (one.name.to_string(), learned)
        });
        let workloads: BTreeMap<String, _> = workloads.collect();
        result["teaches"] =
            json!({"pods": taught.pods, "service": service, "workloads": workloads});
    }
    result
}

fn baked(name: &str, bake: &Bake, enforce: bool) -> serde_json::Value {
    let tick = bake.ticks().saturating_sub(1);
    let (verdict, reason) = match (bake.end(), bake.alarm()) {
        (_, Some(alarm)) if enforce => ("rollback", &*alarm.reason),
        (_, Some(alarm)) => ("notice", &*alarm.reason),
        (BakeEnd::Good, None) => ("good", ""),
        (BakeEnd::Coverage, None) => ("inconclusive", "coverage"),
        (BakeEnd::Baking | BakeEnd::Alarm, None) => ("baking", ""),
    };
    let mut result = json!({
        "name": name,
        "verdict": verdict,
        "reason": reason,
        "tick": tick,
        "t": bake.t(),
        "max_e": bake.max_e(),
    });
    if let Some(alarm) = bake.alarm() {
        result["why"] = json!(alarm.text);
        if let Some(e) = alarm.e {
            result["e"] = json!(e);
        }
    }
    result
}
