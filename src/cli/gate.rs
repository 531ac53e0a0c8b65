//! `leadsman gate`: a pipeline waits for the verdict on what it has deployed.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::client::{Daemon, NoAnswer, ServerArgs};
use super::runtime;
use super::status::text;

/// Options of `leadsman gate`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(crate) struct GateArgs {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: String,
    /// The revision that was deployed, as `helm upgrade` prints it; without it the newest one, or the one that has been
    /// turned back since
    #[arg(value_name = "REVISION")]
    revision: Option<u64>,
    #[command(flatten)]
    server: ServerArgs,
    /// Give up after that
    #[arg(long, default_value = "15m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The end as one JSON object, instead of progress
    #[arg(long)]
    json: bool,
}

const ABOUT: &str = "\
Exit code:
    0  healthy: the revision was watched and kept
   10  it made things worse, and the release was turned back
   11  it made things worse and is still there: the rollback was refused or failed, the limit of the day is
       reached, it is a first revision, or the mode is observe
   12  inconclusive: too little could be measured
   13  a newer revision took its place before there was a verdict
    1  the daemon knows no such release
    3  there is no daemon: none answered for ten seconds from the start on
  124  no verdict within --timeout

While replicas change, or a daemon that was there starts anew, it waits on.

Example:
  revision=$(helm upgrade --install mykadoo ./chart -n mykadoo-production --wait -o json | jq .version)
  leadsman gate mykadoo $revision --namespace mykadoo-production";

const ROLLED_BACK: u8 = 10;
const STILL_THERE: u8 = 11;
const INCONCLUSIVE: u8 = 12;
const SUPERSEDED: u8 = 13;
const TIME_OUT: u8 = 124;

/// Between questions.
const EVERY: Duration = Duration::from_secs(1);

/// A daemon that was never reached, or a release that it has never known, is not waited for any longer: a release may have
/// been installed a moment ago. One that was there may be starting anew, or another replica takes over.
const FIRST: Duration = Duration::from_secs(10);

/// Where no revision is named, what has ended counts only after this: the one that was deployed a moment ago may not have
/// been seen yet. It is seen within a second.
const SEEN_WITHIN: Duration = Duration::from_secs(3);

/// What a pipeline needs to know of how a watch ended.
pub(super) fn code_of(ending: &str) -> u8 {
    match ending {
        "kept" => 0,
        "recovered" | "same_failure" | "worse" | "unverified" => ROLLED_BACK,
        "would_roll_back" | "left_alone" | "limit_reached" | "refused" | "failed" => STILL_THERE,
        "superseded" | "uninstalled" => SUPERSEDED,
        // Also what a newer daemon may say.
        _ => INCONCLUSIVE,
    }
}

pub(super) fn run(args: &GateArgs) -> ExitCode {
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    let code = runtime.block_on(wait(args));
    runtime.shutdown_background();
    code
}

async fn wait(args: &GateArgs) -> ExitCode {
    let daemon = match Daemon::new(&args.server) {
        // What passes is waited for here.
        Ok(daemon) => daemon.waiting(Duration::ZERO),
        Err(why) => return why.report(),
    };
    let began = Instant::now();
    let mut story = Story::default();
    let mut wanted = args.revision;
    loop {
        // One look is always taken.
        let left = args.timeout.saturating_sub(began.elapsed()).max(EVERY);
        let is_early = began.elapsed() < SEEN_WITHIN;
        let looked = tokio::time::timeout(left, look(&daemon, args, &mut wanted, is_early)).await;
        let looked = looked.unwrap_or_else(|_| {
            let why = format!("{} does not answer", args.server.server);
            Err(NoAnswer::Unreachable(why))
        });
        let line = match looked {
            Ok(Look::Ended(rollout)) => return ended(args, &rollout),
            Ok(Look::Waits(line)) => {
                story.knows(&line);
                line
            }
            Err(why) if story.may_pass(&why, began.elapsed()) => why.why().to_owned(),
            Err(why) => return why.report(),
        };
        if line != story.said && !args.json {
            say!("{:>6.0} s  {line}", began.elapsed().as_secs_f64());
        }
        story.said = line;
        if began.elapsed() >= args.timeout {
            return story.ends_without(args);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// What has been heard so far.
#[derive(Default)]
struct Story {
    /// Whether a daemon has answered.
    was_reached: bool,
    /// The last that was known of the release.
    known: Option<String>,
    /// Why nothing is known now, if so.
    trouble: Option<NoAnswer>,
    /// The last line.
    said: String,
}

impl Story {
    fn knows(&mut self, line: &str) {
        self.was_reached = true;
        self.known = Some(line.to_owned());
        self.trouble = None;
    }

    /// Whether a later try may have more luck.
    fn may_pass(&mut self, why: &NoAnswer, after: Duration) -> bool {
        let is_early = after < FIRST;
        let may_pass = match why {
            NoAnswer::Unreachable(_) => self.was_reached || is_early,
            NoAnswer::NotNow(_) => true,
            // A replica that begins to act may not have all releases before it at once.
            NoAnswer::Unknown(_) => self.known.is_some() || is_early,
            NoAnswer::Refused(status, _) => self.known.is_some() && *status >= 500,
            NoAnswer::Ambiguous(_) => false,
        };
        self.was_reached |= !matches!(why, NoAnswer::Unreachable(_));
        self.trouble = Some(why.clone());
        may_pass
    }

    fn ends_without(&self, args: &GateArgs) -> ExitCode {
        match &self.trouble {
            Some(why @ NoAnswer::Unreachable(_)) if !self.was_reached => return why.report(),
            Some(why @ NoAnswer::Unknown(_)) if self.known.is_none() => return why.report(),
            _ => {}
        }
        let now = self.trouble.as_ref();
        let now = now.map_or_else(String::new, |why| format!("; now {}", why.why()));
        complain!(
            "leadsman: no verdict on {} within {}; the last that was known: {}{now}",
            args.release,
            humantime::format_duration(args.timeout),
            self.known.as_deref().unwrap_or("nothing")
        );
        ExitCode::from(TIME_OUT)
    }
}

enum Look {
    /// What is waited for, in words.
    Waits(String),
    Ended(Value),
}

async fn look(
    daemon: &Daemon,
    args: &GateArgs,
    wanted: &mut Option<u64>,
    is_early: bool,
) -> Result<Look, NoAnswer> {
    let (namespace, release) = daemon
        .release(&args.release, args.server.namespace.as_deref())
        .await?;
    let newest = release["revision"].as_u64();
    let Some(newest) = newest else {
        return Ok(Look::Waits("no revision is known yet".into()));
    };
    let rollouts = daemon.rollouts(&namespace, &args.release).await?;
    let at_hand = at_hand(&release, newest, &rollouts);
    if wanted.is_none() && is_early && at_hand.is_settled {
        let line = format!(
            "revision {} is the newest that has been seen",
            at_hand.revision
        );
        return Ok(Look::Waits(line));
    }
    let revision = *wanted.get_or_insert(at_hand.revision);
    if newest < revision {
        return Ok(Look::Waits(format!(
            "revision {revision} has not been seen yet; {newest} is the newest"
        )));
    }
    let mut ended = rollouts.into_iter().rev();
    if let Some(rollout) = ended.find(|rollout| rollout["revision"].as_u64() == Some(revision)) {
        return Ok(Look::Ended(rollout));
    }
    let is_at_rest = matches!(text(&release, "phase"), "steady" | "absent");
    if is_at_rest && newest == revision {
        // It was there before the daemon watched: nobody judges it.
        return Ok(Look::Waits(format!(
            "revision {revision} served before the daemon began to watch, so there is no verdict on it"
        )));
    }
    Ok(Look::Waits(format!(
        "{}: {}",
        text(&release, "phase").replace('_', " "),
        text(&release, "says")
    )))
}

/// The revision that people mean when they name none.
struct AtHand {
    revision: u64,
    /// Whether nothing is being done about it.
    is_settled: bool,
}

/// The newest one; where that was made by turning one back, it is the one that was turned back.
fn at_hand(release: &Value, newest: u64, rollouts: &[Value]) -> AtHand {
    let judged = release["verdict"]["revision"].as_u64();
    if matches!(
        text(release, "phase"),
        "preflight" | "turning_back" | "verifying"
    ) {
        return AtHand {
            revision: judged.unwrap_or(newest),
            is_settled: false,
        };
    }
    let mut made = rollouts.iter().rev();
    let of = made.find(|rollout| rollout["made"].as_u64() == Some(newest));
    let turned_back = of.and_then(|rollout| rollout["revision"].as_u64());
    AtHand {
        revision: turned_back.unwrap_or(newest),
        is_settled: !matches!(text(release, "phase"), "settling" | "watching"),
    }
}

fn ended(args: &GateArgs, rollout: &Value) -> ExitCode {
    if args.json {
        say!("{rollout}");
    } else {
        let ending = text(rollout, "ending").replace('_', " ");
        say!(
            "Revision {}: {ending}. {}",
            rollout["revision"],
            text(rollout, "text")
        );
    }
    ExitCode::from(code_of(text(rollout, "ending")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ENDINGS;

    #[test]
    fn every_ending_has_its_code() {
        for ending in ENDINGS {
            let expected = match ending {
                "kept" => 0,
                "recovered" | "same_failure" | "worse" | "unverified" => 10,
                "would_roll_back" | "left_alone" | "limit_reached" | "refused" | "failed" => 11,
                "inconclusive" => 12,
                "superseded" | "uninstalled" => 13,
                other => panic!("{other} has no code"),
            };
            assert_eq!(code_of(ending), expected, "{ending}");
        }
        assert_eq!(code_of("something new"), INCONCLUSIVE);
    }

    #[test]
    fn without_a_number_the_one_that_was_turned_back_is_meant() {
        let rollouts = [
            serde_json::json!({"revision": 2, "ending": "kept", "made": null}),
            serde_json::json!({"revision": 3, "ending": "recovered", "made": 4}),
        ];
        let of = |phase: &str, newest| {
            let release = serde_json::json!({"phase": phase, "verdict": {"revision": 3}});
            let at_hand = at_hand(&release, newest, &rollouts);
            (at_hand.revision, at_hand.is_settled)
        };
        // What our rollback has made is not what the pipeline has deployed.
        assert_eq!(of("steady", 4), (3, true));
        assert_eq!(of("verifying", 4), (3, false));
        assert_eq!(of("turning_back", 3), (3, false));
        assert_eq!(of("watching", 5), (5, false));
        assert_eq!(of("steady", 5), (5, true));
    }
}
