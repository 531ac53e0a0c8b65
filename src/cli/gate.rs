//! `leadsman gate`: lets a pipeline wait for the verdict on what it has deployed.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::{DaemonClient, RequestError, ServerArgs, UNKNOWN, revision};
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
    /// rolled back since
    #[arg(value_name = "REVISION", value_parser = revision, allow_negative_numbers = true)]
    revision: Option<u32>,
    #[command(flatten)]
    server: ServerArgs,
    /// Give up after that
    #[arg(long, default_value = "30m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The end as one JSON object, instead of progress
    #[arg(long)]
    json: bool,
}

const ABOUT: &str = "\
Exit code:
    0  healthy: the revision was watched and kept, and its bake is not waited for; or unchanged: it has the contents
       that serve already
   10  it made things worse, and the release was rolled back
   11  it made things worse and is still there: the rollback was refused or failed, the limit of the day is
       reached, it is a first revision, or the mode is observe
   12  inconclusive: too little could be measured, its rollout is not complete or was so only after the analysis
       (the text says which), or the revision served before Leadsman began to watch
   13  a newer revision took its place before there was a verdict
    1  the daemon knows no such release, or does not judge it (only probed, or the mode is off); or no such revision
       appeared within 30 s
    2  a mistake of the call
    3  there is no daemon: none answered for ten seconds from the start on
  124  no verdict within --timeout

What a rollback of Leadsman made is no deployment: for its number the answer is that of the revision rolled back.
Of a revision that is no longer the newest the recorded outcome is told. While replicas change, a daemon that was there
starts anew, or the cluster cannot be read, it waits on. A line at least each 15 s tells what stands for and against.

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

/// A revision that is named appears within this: helm writes its record before anything else, and it is seen a second later.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);

/// While there is nothing new, a line is printed so often: what shows nothing for long is taken for stuck.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// What a pipeline needs to know of how a watch ended.
pub(super) fn code_of(outcome: &str) -> u8 {
    match outcome {
        "passed" | "unchanged" => 0,
        "rolled_back" | "still_failing" | "worsened" | "unverified" => ROLLED_BACK,
        "would_roll_back" | "not_eligible" | "limit_reached" | "refused" | "rollback_failed" => {
            STILL_THERE
        }
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
    let daemon = match DaemonClient::new(&args.server) {
        // What passes is waited for here.
        Ok(daemon) => daemon.waiting(Duration::ZERO),
        Err(why) => return why.report(),
    };
    let began = Instant::now();
    let mut story = GateProgress::default();
    let mut wanted = args.revision.map(u64::from);
    let mut missing = None;
    let mut printed = began;
    loop {
        // One look is always taken.
        let left = args.timeout.saturating_sub(began.elapsed()).max(EVERY);
        let is_early = began.elapsed() < SEEN_WITHIN;
        let looked = tokio::time::timeout(left, look(&daemon, args, &mut wanted, is_early)).await;
        let looked = looked.unwrap_or_else(|_| {
            let why = format!("{} does not answer", args.server.server);
            Err(RequestError::Unreachable(why))
        });
        if !matches!(looked, Ok(GateCheck::Missing(_))) {
            missing = None;
        }
        let (line, numbers) = match looked {
            Ok(GateCheck::Ended(rollout)) => return ended(args, &rollout),
            Ok(GateCheck::Answered(answer)) => return answer.tell(args),
            Ok(GateCheck::Waits(line, numbers)) => {
                story.knows(&line);
                (line, numbers)
            }
            Ok(GateCheck::Missing(why)) => {
                let since = *missing.get_or_insert_with(Instant::now);
                if since.elapsed() >= APPEARS_WITHIN {
                    let span = APPEARS_WITHIN.as_secs();
                    return RequestError::Unknown(format!("{why}; waited {span} s for it"))
                        .report();
                }
                let line = format!(
                    "{why}; waits {} s for it to appear",
                    APPEARS_WITHIN.as_secs()
                );
                story.knows(&line);
                (line, String::new())
            }
            Err(why) if story.may_pass(&why, began.elapsed()) => {
                (why.why().to_owned(), String::new())
            }
            Err(why) => return why.report(),
        };
        let is_due = line != story.said || printed.elapsed() >= LINE_EVERY;
        if is_due && !args.json {
            say!("{:>6.0} s  {line}{numbers}", began.elapsed().as_secs_f64());
            printed = Instant::now();
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
struct GateProgress {
    /// Whether a daemon has answered.
    was_reached: bool,
    /// The last that was known of the release.
    known: Option<String>,
    /// Why nothing is known now, if so.
    trouble: Option<RequestError>,
    /// The last line.
    said: String,
}

impl GateProgress {
    fn knows(&mut self, line: &str) {
        self.was_reached = true;
        self.known = Some(line.to_owned());
        self.trouble = None;
    }

    /// Whether a later try may have more luck.
    fn may_pass(&mut self, why: &RequestError, after: Duration) -> bool {
        let is_early = after < FIRST;
        let may_pass = match why {
            RequestError::Unreachable(_) => self.was_reached || is_early,
            RequestError::NotNow(_) => true,
            // A replica that begins to act may not have all releases before it at once.
            RequestError::Unknown(_) => self.known.is_some() || is_early,
            RequestError::Refused(status, _) => self.known.is_some() && *status >= 500,
            RequestError::Ambiguous(_) | RequestError::Mistake(_) => false,
        };
        self.was_reached |= !matches!(why, RequestError::Unreachable(_));
        self.trouble = Some(why.clone());
        may_pass
    }

    fn ends_without(&self, args: &GateArgs) -> ExitCode {
        match &self.trouble {
            Some(why @ RequestError::Unreachable(_)) if !self.was_reached => return why.report(),
            Some(why @ RequestError::Unknown(_)) if self.known.is_none() => return why.report(),
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

enum GateCheck {
    /// What is waited for, in words, and the numbers of now.
    Waits(String, String),
    /// The revision is not there, and may appear yet.
    Missing(String),
    /// There is no verdict, and there will be none.
    Answered(GateResult),
    Ended(Value),
}

/// An answer without a rollout to tell of.
struct GateResult {
    revision: Option<u64>,
    outcome: &'static str,
    text: String,
    code: u8,
}

impl GateResult {
    /// Nobody judges it.
    fn not_judged(revision: Option<u64>, text: String, code: u8) -> GateCheck {
        GateCheck::Answered(Self {
            revision,
            outcome: "not_judged",
            text,
            code,
        })
    }

    fn tell(&self, args: &GateArgs) -> ExitCode {
        if args.json {
            say!(
                "{}",
                json!({ "revision": self.revision, "outcome": self.outcome, "text": self.text })
            );
        } else if let Some(revision) = self.revision {
            let outcome = self.outcome.replace('_', " ");
            say!("Revision {revision}: {outcome}. {}", self.text);
        } else {
            say!("Not judged: {}", self.text);
        }
        ExitCode::from(self.code)
    }
}

async fn look(
    daemon: &DaemonClient,
    args: &GateArgs,
    wanted: &mut Option<u64>,
    is_early: bool,
) -> Result<GateCheck, RequestError> {
    let (namespace, release) = daemon
        .release(&args.release, args.server.namespace.as_deref())
        .await?;
    let rollouts = if release["engine"].is_null() {
        Vec::new() // nobody guards it
    } else {
        daemon.rollouts(&namespace, &args.release).await?
    };
    let name = format!("{namespace}/{}", args.release);
    Ok(judge(&name, &release, rollouts, wanted, is_early))
}

/// What can be said of a revision, from where its release stands and how its revisions ended.
fn judge(
    name: &str,
    release: &Value,
    rollouts: Vec<Value>,
    wanted: &mut Option<u64>,
    is_early: bool,
) -> GateCheck {
    let phase = text(release, "phase").replace('_', " ");
    let waits = || {
        GateCheck::Waits(
            format!("{phase}: {}", text(release, "says")),
            numbers(release),
        )
    };
    // What a person wanted and could not have says nothing of the revision.
    let rollouts: Vec<Value> = rollouts
        .into_iter()
        .filter(|rollout| rollout["outcome"] != "order_refused")
        .collect();
    let nobody_judges = nobody_judges(name, release);
    let Some(newest) = release["revision"].as_u64() else {
        return match (nobody_judges, text(release, "phase")) {
            (Some(why), _) => GateResult::not_judged(*wanted, why, UNKNOWN),
            (None, "not_installed") => gone(name, *wanted, &rollouts),
            // Its state is being read, or whoever acts for it cannot be heard.
            (None, _) => waits(),
        };
    };
    let at_hand = at_hand(release, newest, &rollouts);
    if wanted.is_none() && is_early && at_hand.is_complete && nobody_judges.is_none() {
        let line = format!(
            "revision {} is the newest that has been seen",
            at_hand.revision
        );
        return GateCheck::Waits(line, String::new());
    }
    let revision = *wanted.get_or_insert(at_hand.revision);
    let of = |key: &str| {
        let mut ended = rollouts.iter().rev();
        ended.find(|rollout| rollout[key].as_u64() == Some(revision))
    };
    // A revision that was kept may be rolled back by its bake, or by a person.
    if is_rolled_back_now(release, revision) {
        return waits();
    }
    if let Some(rollout) = of("revision") {
        return GateCheck::Ended(rollout.clone());
    }
    // What a rollback made is no deployment: what was deployed was rolled back.
    if let Some(undone) = of("created_revision") {
        let mut told = undone.clone();
        let what = format!(
            "revision {revision} is what the rollback of revision {} made",
            undone["revision"]
        );
        told["text"] = format!("{} ({what})", text(undone, "text")).into();
        return GateCheck::Ended(told);
    }
    if release["at_hand"].as_u64() == Some(revision) {
        return waits();
    }
    if let Some(why) = nobody_judges {
        return GateResult::not_judged(Some(revision), why, UNKNOWN);
    }
    // While the rollback that made it is being verified, or it is about to be judged, it is not known yet.
    if newest == revision && !matches!(text(release, "phase"), "idle" | "not_installed") {
        return waits();
    }
    without_verdict(name, release, revision, newest)
}

/// What is said of a revision that is judged neither now nor ever was.
fn without_verdict(name: &str, release: &Value, revision: u64, newest: u64) -> GateCheck {
    if revision > newest {
        return match release["blind"].as_str() {
            Some(why) => {
                let line = format!("nothing new is known of {name}: {why}");
                GateCheck::Waits(line, String::new())
            }
            None => GateCheck::Missing(format!(
                "{name} has no revision {revision} yet; {newest} is the newest"
            )),
        };
    }
    if revision < newest {
        return GateCheck::Answered(GateResult {
            revision: Some(revision),
            outcome: "superseded",
            text: format!(
                "Revision {newest} is the newest, and there is no verdict on revision {revision}"
            ),
            code: SUPERSEDED,
        });
    }
    let why = format!(
        "Revision {revision} served before Leadsman began to watch, so there is no verdict on it"
    );
    GateResult::not_judged(Some(revision), why, INCONCLUSIVE)
}

/// Why there is never a verdict on a revision of this release, if so.
fn nobody_judges(name: &str, release: &Value) -> Option<String> {
    if release["engine"].is_null() {
        return Some(format!(
            "{name} is only probed: its revisions are not known here"
        ));
    }
    let is_off = text(release, "mode") == "off";
    is_off.then(|| format!("the mode of {name} is off, so its revisions are not judged"))
}

/// A release that is not there, or not yet.
fn gone(name: &str, wanted: Option<u64>, rollouts: &[Value]) -> GateCheck {
    let mut ended = rollouts.iter().rev();
    let is_it = |rollout: &&Value| {
        rollout["outcome"] == "uninstalled"
            && wanted.is_none_or(|wanted| rollout["revision"].as_u64() == Some(wanted))
    };
    match ended.find(is_it) {
        Some(rollout) => GateCheck::Ended(rollout.clone()),
        None => GateCheck::Missing(format!("{name} is not installed")),
    }
}

/// How long it takes yet, and what stands for and against the revision that is judged.
fn numbers(release: &Value) -> String {
    let watch = &release["analysis"];
    if !watch.is_object() {
        return String::new();
    }
    let number = |key: &str| watch[key].as_f64().unwrap_or(0.0);
    let counted = |stratum: &Value| {
        let [failed, total, before, all] = ["failed", "total", "baseline_failed", "baseline_total"]
            .map(|key| stratum[key].as_u64().unwrap_or(0));
        let name = text(stratum, "name");
        format!("{name}: {failed} of {total} failed, before {before} of {all}")
    };
    let strata = watch["strata"].as_array().map_or(&[][..], Vec::as_slice);
    let worst = strata.iter().max_by(|one, other| {
        let of = |stratum: &Value| stratum["e_value"].as_f64().unwrap_or(0.0);
        of(one).total_cmp(&of(other))
    });
    let worst = worst.map_or_else(String::new, |worst| format!(" ({})", counted(worst)));
    let rollout = if watch["complete"] == true {
        "complete"
    } else {
        "not complete yet"
    };
    format!(
        "; {:.0} s left; against it: e-value {:.3} of {:.0}{worst}; for it: {:.0} % of the probe results could be \
         used, the rollout is {rollout}",
        (number("length_s") - number("elapsed_s")).max(0.0),
        number("e_value"),
        number("threshold"),
        number("coverage") * 100.0,
    )
}

/// The revision that people mean when they name none.
struct CurrentRevision {
    revision: u64,
    /// Whether nothing is being done about it.
    is_complete: bool,
}

fn is_rolled_back_now(release: &Value, revision: u64) -> bool {
    let phase = text(release, "phase");
    release["at_hand"].as_u64() == Some(revision)
        && matches!(phase, "preflight" | "rolling_back" | "verifying")
}

/// The newest one; where that was made by rolling one back, it is the one that was rolled back.
fn at_hand(release: &Value, newest: u64, rollouts: &[Value]) -> CurrentRevision {
    let at_hand = release["at_hand"].as_u64();
    if matches!(
        text(release, "phase"),
        "preflight" | "rolling_back" | "verifying"
    ) {
        return CurrentRevision {
            revision: at_hand.unwrap_or(newest),
            is_complete: false,
        };
    }
    let mut created_revision = rollouts.iter().rev();
    let of = created_revision.find(|rollout| rollout["created_revision"].as_u64() == Some(newest));
    let rolled_back = of.and_then(|rollout| rollout["revision"].as_u64());
    CurrentRevision {
        revision: rolled_back.unwrap_or(newest),
        is_complete: !matches!(text(release, "phase"), "rolling_out" | "analyzing"),
    }
}

fn ended(args: &GateArgs, rollout: &Value) -> ExitCode {
    if args.json {
        say!("{rollout}");
    } else {
        let outcome = text(rollout, "outcome").replace('_', " ");
        say!(
            "Revision {}: {outcome}. {}",
            rollout["revision"],
            text(rollout, "text")
        );
    }
    ExitCode::from(code_of(text(rollout, "outcome")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::OUTCOMES;

    #[test]
    fn every_ending_has_its_code() {
        for outcome in OUTCOMES {
            let expected = match outcome {
                "passed" | "unchanged" => 0,
                "rolled_back" | "still_failing" | "worsened" | "unverified" => 10,
                "would_roll_back" | "not_eligible" | "limit_reached" | "refused"
                | "rollback_failed" => 11,
                // The last says nothing of the revision, and is left out.
                "inconclusive" | "order_refused" => 12,
                "superseded" | "uninstalled" => 13,
                other => panic!("{other} has no code"),
            };
            assert_eq!(code_of(outcome), expected, "{outcome}");
        }
        assert_eq!(code_of("something new"), INCONCLUSIVE);
    }

    #[test]
    fn a_revision_that_was_kept_and_is_rolled_back_now_has_no_verdict_yet() {
        let is_now = |phase: &str| {
            let release = serde_json::json!({"phase": phase, "at_hand": 3});
            is_rolled_back_now(&release, 3)
        };
        assert!(is_now("preflight") && is_now("rolling_back") && is_now("verifying"));
        assert!(!is_now("idle") && !is_now("analyzing"));
        let other = serde_json::json!({"phase": "verifying", "at_hand": 4});
        assert!(!is_rolled_back_now(&other, 3));
    }

    #[test]
    fn without_a_number_the_one_that_was_rolled_back_is_meant() {
        let rollouts = [
            serde_json::json!({"revision": 2, "outcome": "passed", "created_revision": null}),
            serde_json::json!({"revision": 3, "outcome": "rolled_back", "created_revision": 4}),
        ];
        let of = |phase: &str, newest| {
            let release = serde_json::json!({"phase": phase, "at_hand": 3});
            let at_hand = at_hand(&release, newest, &rollouts);
            (at_hand.revision, at_hand.is_complete)
        };
        // What our rollback has made is not what the pipeline has deployed.
        assert_eq!(of("idle", 4), (3, true));
        assert_eq!(of("verifying", 4), (3, false));
        assert_eq!(of("rolling_back", 3), (3, false));
        assert_eq!(of("analyzing", 5), (5, false));
        assert_eq!(of("idle", 5), (5, true));
    }
}
