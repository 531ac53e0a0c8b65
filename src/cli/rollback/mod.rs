//! `leadsman rollback`: orders a rollback, with the same preflight, fence, verification and record as after a verdict.

pub(super) mod direct;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::{DaemonClient, RequestError, ServerArgs, TokenArgs, reason, revision};
use super::runtime;
use super::status::text;
use super::{BAD_CONFIGURATION, ConfigArgs};

/// Options of `leadsman rollback`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(crate) struct RollbackArgs {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: String,
    /// The revision to go back to; without it the last that is known to be good, else the one before
    #[arg(value_name = "REVISION", value_parser = revision, allow_negative_numbers = true)]
    revision: Option<u32>,
    /// Why; it is written into the history of the release
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    token: TokenArgs,
    /// Without a daemon, by the configuration and helm of this machine
    #[arg(long, conflicts_with = "token_file")]
    direct: bool,
    #[command(flatten)]
    config: ConfigArgs,
    /// Stop waiting after that; the rollback goes on
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

const ABOUT: &str = "\
The mode and the limit of the day bind Leadsman, and no person: an order is carried out in the modes observe and off as
well. What would delete data, or what another tool keeps, is refused here as well, with the command that does it all the
same. What is refused changes nothing, and nobody but you is told.

Where a rollback is under way already, an order for the same one joins it and hears its result; an order to another
revision is refused until that has ended. Where a rollback brought back what is installed, also if a pipeline has
deployed that again since, the revision has to be named: two people must not go back twice.

Exit code:
    0  rolled back, and the probes are well again
   11  refused, or failed
   12  rolled back, but the probes are not well, or nothing can be said
    1  the daemon knows no such release, or the release has no such revision; or it does not know the token
    2  a mistake of the call
    3  there is no daemon, or no replica acts
  124  not done within --timeout

Examples:
  leadsman rollback mykadoo --reason 'the cart loses items'
  leadsman rollback mykadoo 41 --namespace mykadoo-production --reason 'as agreed with Ann'
  leadsman rollback mykadoo --direct --config probes.toml --reason 'the daemon is down as well'";

const FAILED: u8 = 11;
const NOT_WELL: u8 = 12;
const TIME_OUT: u8 = 124;

const EVERY: Duration = Duration::from_millis(500);

/// How long an order waits while no replica leads: one that was killed is replaced within 16 s.
const TAKEOVER: Duration = Duration::from_secs(20);

pub(super) fn run(args: &RollbackArgs) -> ExitCode {
    let token = match args.token.token() {
        Ok(token) => token,
        Err(why) => {
            complain!("leadsman: {why}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    let Some(runtime) = runtime(1) else {
        return ExitCode::FAILURE;
    };
    if args.direct {
        let loaded = match args.config.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let code = runtime.block_on(direct::run(args, &loaded.settings));
        runtime.shutdown_background();
        return code;
    }
    let code = runtime.block_on(order(args, token.as_deref()));
    runtime.shutdown_background();
    code.unwrap_or_else(|why| why.report())
}

async fn order(args: &RollbackArgs, token: Option<&str>) -> Result<ExitCode, RequestError> {
    let began = Instant::now();
    let daemon = DaemonClient::new(&args.server)?.waiting(TAKEOVER);
    let body = json!({ "revision": args.revision, "reason": args.reason });
    // Sent again, it is the same order.
    let key = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let ordered = async {
        let (namespace, _) = daemon
            .release(&args.release, args.server.namespace.as_deref())
            .await?;
        let path = format!("/api/v1/releases/{namespace}/{}/rollback", args.release);
        let accepted = daemon.order(&path, &body, token, &key).await?;
        Ok((namespace, accepted))
    };
    let (namespace, accepted) = match tokio::time::timeout(args.timeout, ordered).await {
        Ok(Ok(ordered)) => ordered,
        // It cannot be done, or another one is under way.
        Ok(Err(RequestError::Refused(409, why))) => {
            complain!("leadsman: the order is refused: {why}");
            return Ok(ExitCode::from(FAILED));
        }
        Ok(Err(why)) => return Err(why),
        Err(_) => {
            complain!(
                "leadsman: no answer within {}, so the order may have been taken; `leadsman status {}` tells",
                humantime::format_duration(args.timeout),
                args.release
            );
            return Ok(ExitCode::from(TIME_OUT));
        }
    };
    let id = text(&accepted, "id");
    say_accepted(&accepted);
    // From here on this asks again by itself.
    let daemon = daemon.waiting(Duration::ZERO);
    let path = format!("/api/v1/releases/{namespace}/{}/orders/{id}", args.release);
    let left = args.timeout.saturating_sub(began.elapsed());
    let followed = follow(&daemon, &path, began);
    if let Ok(code) = tokio::time::timeout(left, followed).await {
        return code;
    }
    complain!(
        "leadsman: order {id} is not done yet; `leadsman status {}` tells how it stands",
        args.release
    );
    Ok(ExitCode::from(TIME_OUT))
}

fn say_accepted(accepted: &Value) {
    let id = text(accepted, "id");
    let revision = accepted["revision"].as_u64().unwrap_or(0);
    let target = accepted["target"].as_u64();
    let target = target.map_or_else(String::new, |target| format!(" to revision {target}"));
    if accepted["joined"] == true {
        say!(
            "Order {id}: a rollback of revision {revision}{target} is under way already; yours joins it."
        );
    } else {
        say!("Order {id}: rolling back revision {revision}{target}.");
    }
}

/// Follows this order, and no other one, to its end. A daemon that starts anew, or another replica, goes on with it.
async fn follow(
    daemon: &DaemonClient,
    path: &str,
    began: Instant,
) -> Result<ExitCode, RequestError> {
    let mut said = String::new();
    let mut known = Instant::now();
    loop {
        let now = match daemon.get(path).await {
            Ok(order) if order["state"] == "ended" => {
                let rollout = &order["rollout"];
                let outcome = text(rollout, "outcome");
                say!("{}. {}", outcome.replace('_', " "), text(rollout, "text"));
                return Ok(ExitCode::from(code_of(outcome)));
            }
            Ok(order) => {
                known = Instant::now();
                text(&order, "says").to_owned()
            }
            // A replica that begins to act may not have all releases before it at once.
            Err(why @ RequestError::Unknown(_)) if known.elapsed() >= TAKEOVER => return Err(why),
            Err(why) => {
                if !matches!(why, RequestError::Unknown(_)) {
                    known = Instant::now();
                }
                why.why().to_owned()
            }
        };
        if now != said {
            say!("{:>6.0} s  {now}", began.elapsed().as_secs_f64());
            said = now;
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn code_of(outcome: &str) -> u8 {
    match outcome {
        "rolled_back" => 0,
        "still_failing" | "worsened" | "unverified" => NOT_WELL,
        _ => FAILED,
    }
}
