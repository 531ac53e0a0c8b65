//! `leadsman rollback`: by hand, with the same looks, fence, verification and record as after a verdict.

pub(super) mod direct;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::ConfigArgs;
use super::client::{Daemon, NoAnswer, ServerArgs, TokenArgs};
use super::runtime;
use super::status::text;

/// Options of `leadsman rollback`.
#[derive(Debug, Args)]
#[command(after_help = ABOUT)]
pub(crate) struct RollbackArgs {
    /// The release
    #[arg(value_name = "RELEASE")]
    release: String,
    /// The revision to go back to; without it the last that is known to be good, else the one before
    #[arg(value_name = "REVISION")]
    revision: Option<u32>,
    /// Why; it is written into the history of the release
    #[arg(long, value_name = "TEXT")]
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
The mode and the limit of the day bind Leadsman, and no person. What would delete data, or what another tool keeps, is
refused here as well, with the command that does it all the same.

Exit code:
    0  turned back, and the probes are well again
   11  refused, or failed
   12  turned back, but the probes are not well, or nothing can be said
    1  the daemon knows no such release, or does not know the token
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

/// While no replica acts, the order waits for so long: one that was killed is followed by another within 16 s.
const TAKEOVER: Duration = Duration::from_secs(20);

pub(super) fn run(args: &RollbackArgs) -> ExitCode {
    let token = match args.token.token() {
        Ok(token) => token,
        Err(why) => {
            complain!("leadsman: {why}");
            return ExitCode::FAILURE;
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

async fn order(args: &RollbackArgs, token: Option<&str>) -> Result<ExitCode, NoAnswer> {
    let began = Instant::now();
    let daemon = Daemon::new(&args.server)?.waiting(TAKEOVER);
    let body = json!({ "revision": args.revision, "reason": args.reason });
    let ordered = async {
        let (namespace, _) = daemon
            .release(&args.release, args.server.namespace.as_deref())
            .await?;
        let path = format!("/api/v1/releases/{namespace}/{}/rollback", args.release);
        let accepted = daemon.post(&path, &body, token).await?;
        Ok((namespace, accepted))
    };
    let (namespace, accepted) = match tokio::time::timeout(args.timeout, ordered).await {
        Ok(Ok(ordered)) => ordered,
        // Another one is under way.
        Ok(Err(NoAnswer::Refused(409, why))) => {
            complain!("leadsman: {why}");
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
    // From here on this asks again by itself.
    let daemon = daemon.waiting(Duration::ZERO);
    let (bad, at) = (
        accepted["revision"].as_u64(),
        accepted["at"].as_f64().unwrap_or(0.0),
    );
    say!("Turning back from revision {}.", bad.unwrap_or(0));
    let done = async {
        let mut said = String::new();
        loop {
            // A daemon that starts anew goes on where it was.
            if let Ok(rollouts) = daemon.rollouts(&namespace, &args.release).await {
                let mut ended = rollouts.iter().rev();
                let ended = ended.find(|one| {
                    one["revision"].as_u64() == bad
                        && one["reason"] == "by_hand"
                        && one["ended_at"].as_f64().is_some_and(|end| end >= at - 1.0)
                });
                if let Some(ended) = ended {
                    say!(
                        "{}. {}",
                        text(ended, "ending").replace('_', " "),
                        text(ended, "text")
                    );
                    return code_of(text(ended, "ending"));
                }
            }
            let now = match daemon.release(&args.release, Some(&namespace)).await {
                Ok((_, release)) => text(&release, "says").to_owned(),
                Err(why) => why.why().to_owned(),
            };
            if now != said {
                say!("{:>6.0} s  {now}", began.elapsed().as_secs_f64());
                said = now;
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    let left = args.timeout.saturating_sub(began.elapsed());
    if let Ok(code) = tokio::time::timeout(left, done).await {
        return Ok(ExitCode::from(code));
    }
    complain!(
        "leadsman: not done yet; `leadsman status {}` tells how it stands",
        args.release
    );
    Ok(ExitCode::from(TIME_OUT))
}

fn code_of(ending: &str) -> u8 {
    match ending {
        "recovered" => 0,
        "same_failure" | "worse" | "unverified" => NOT_WELL,
        _ => FAILED,
    }
}
