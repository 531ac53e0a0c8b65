//! `leadsman slo`: what is promised, what of its budget is left, and for how long.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{Daemon, NoAnswer, ServerArgs};
use super::status::asked;

/// Options of `leadsman slo`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit code: 0; 1 when nothing is promised of that release; 3 when there is no daemon.\n\n\
    Examples:\n  leadsman slo\n  leadsman slo mykadoo --tiers"
)]
pub struct SloArgs {
    /// One release; without it all of them
    #[arg(value_name = "RELEASE")]
    release: Option<String>,
    /// Also when people are told: each tier, and how long an outage lasts before it fires
    #[arg(long)]
    tiers: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn slo(args: &SloArgs) -> ExitCode {
    asked(async {
        let daemon = Daemon::new(&args.server)?;
        let mut answer = daemon.get("/api/v1/objectives").await?;
        let Value::Array(mut objectives) = answer["objectives"].take() else {
            return Err(NoAnswer::Unknown("the daemon knows no objectives".into()));
        };
        let namespace = args.server.namespace.as_deref();
        objectives.retain(|objective| {
            args.release
                .as_deref()
                .is_none_or(|name| objective["release"] == name)
                && namespace.is_none_or(|namespace| objective["namespace"] == namespace)
        });
        if let Some(name) = args.release.as_ref().filter(|_| objectives.is_empty()) {
            let text = format!(
                "nothing is promised of {name}; add objective = {{ availability = \"99.9%\" }} to it"
            );
            return Err(NoAnswer::Unknown(text));
        }
        if args.json {
            say!("{}", json!({ "objectives": objectives }));
            return Ok(());
        }
        if objectives.is_empty() {
            say!(
                "Nothing is promised; add objective = {{ availability = \"99.9%\" }} to a release or a probe."
            );
        }
        for objective in &objectives {
            said(objective, args.tiers);
        }
        Ok(())
    })
}

fn said(objective: &Value, tiers: bool) {
    let text = |key: &str| objective[key].as_str().unwrap_or("");
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let probe = objective["probe"]
        .as_str()
        .map_or_else(String::new, |probe| format!(" {probe}"));
    let lasts = match objective["lasts_s"].as_f64() {
        None => "nothing is being spent".to_owned(),
        Some(seconds) if seconds < 1.0 => "it is spent".to_owned(),
        Some(seconds) => format!("lasts {} at the burn of the last hour", span(seconds)),
    };
    say!(
        "{}/{}{probe}: {} of {} % in {}: {:.1} % of the budget is left, {lasts}",
        text("namespace"),
        text("release"),
        text("objective"),
        trimmed(number(&objective["target"]) * 100.0),
        text("window"),
        number(&objective["budget_remaining"]) * 100.0
    );
    let burns = objective["burns"].as_array().into_iter().flatten();
    let burns: Vec<String> = burns
        .map(|burn| {
            let window = burn["window"].as_str().unwrap_or("");
            burn["burn_rate"].as_f64().map_or_else(
                || format!("{window} -"),
                |rate| format!("{window} {rate:.2}"),
            )
        })
        .collect();
    say!("  burn: {}", burns.join(", "));
    if tiers {
        for tier in objective["tiers"].as_array().into_iter().flatten() {
            let fires = tier["outage_fires_after_s"].as_f64();
            let fires = fires.map_or_else(
                || "never".to_owned(),
                |seconds| format!("after {}", span(seconds)),
            );
            say!(
                "  {:<13} burn over {} in {} and {}; of a total outage people hear {fires}{}",
                tier["tier"].as_str().unwrap_or(""),
                trimmed(number(&tier["factor"])),
                tier["long"].as_str().unwrap_or(""),
                tier["short"].as_str().unwrap_or(""),
                if tier["firing"] == true {
                    "; fires now"
                } else {
                    ""
                }
            );
        }
    }
    for spent in objective["revisions"].as_array().into_iter().flatten() {
        say!(
            "  revision {}: {:.2} % of the budget ({} of {} soundings bad)",
            spent["revision"],
            number(&spent["budget_spent"]) * 100.0,
            spent["bad"],
            spent["soundings"]
        );
    }
}

/// A span in words, to two units.
fn span(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.round()).unwrap_or(Duration::MAX);
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number without zeros at its end.
fn trimmed(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
