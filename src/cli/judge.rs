//! `leadsman judge FILE`: applies the rule to streams, one JSON object a line.

mod stream;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::BAD_CONFIGURATION;
use crate::verdict::Verdict;
use stream::Judged;

/// The longest line: a day of ticks of a thousand endpoints is far below it.
const MAX_LINE: u64 = 64 * 1024 * 1024;

/// Options of `leadsman judge`.
#[derive(Debug, Args)]
#[command(after_help = FORMAT)]
pub struct JudgeArgs {
    /// A file of streams, one JSON object a line; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

const FORMAT: &str = r#"One JSON object a line:
  name              printed with the result
  ticks             [[row, repeats], ...]; a row has one character for each endpoint: . good, x failed, - void
  endpoints         names of the columns; without it health, db, redis, root where there are four
  baseline          [[failures, soundings], ...] before the revision, one pair (or null) an endpoint, or null
  failing_at_start  [true, ...]: its last three soundings before had failed
  settled_at        seconds until the rollout was complete; 0 without it
  expected_downtime true where old pods stop before new ones start
  config            what differs from the rule's defaults, as {"interval_s": 1}
  pods              [{"t", "restarts", "waiting", "old_too"}, ...]
  requests          {"interval_s", "baseline": [failures, requests], "scrapes": [[t, failures, requests], ...]}
  direct            [{"name", "rev": "new" or "old", "node", "from": tick, "row": [[row, repeats], ...]}, ...]

Result, one line each: name, verdict, reason, tick, t, max_e, and e, coverage, why where there are any.
A line that is not valid is named on standard error, the others are judged, and the exit code is 2.

Example:
  echo '{"name":"down","ticks":[["....",10],["xxxx",50]]}' | leadsman judge -"#;

pub(super) fn run(args: &JudgeArgs) -> ExitCode {
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

fn result(judged: &Judged) -> serde_json::Value {
    let Judged {
        name,
        watch,
        verdict,
    } = judged;
    let tick = watch.ticks().saturating_sub(1);
    let mut result = json!({
        "name": name,
        "verdict": verdict.word(),
        "reason": verdict.reason(),
        "tick": tick,
        "t": f64::from(tick) * watch.rule().interval_s,
        "max_e": watch.max_e(),
    });
    if let Verdict::Rollback(finding) = verdict {
        if let Some(e) = finding.e {
            result["e"] = json!(e);
        }
        result["why"] = json!(finding.text);
    }
    if let Some(coverage) = watch.coverage() {
        result["coverage"] = json!(coverage);
    }
    result
}
