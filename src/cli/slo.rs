//! `leadsman slo`: shows each objective, what is left of its budget, and for how long.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::client::{DaemonClient, RequestError, ServerArgs};
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
        let daemon = DaemonClient::new(&args.server)?;
        let mut answer = daemon.get("/api/v1/objectives").await?;
        let Value::Array(mut objectives) = answer["objectives"].take() else {
            return Err(RequestError::Unknown(
                "the daemon knows no objectives".into(),
            ));
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
            return Err(RequestError::Unknown(text));
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
        for line in table(&objectives) {
            say!("{line}");
        }
        for objective in &objectives {
            for line in details(objective, args.tiers) {
                say!("{line}");
            }
        }
        Ok(())
    })
}

/// The windows of the table, the shortest first; all of them are in the JSON.
const WINDOWS: [&str; 4] = ["5m", "1h", "6h", "3d"];

/// One line for each objective, under a line of titles; aligned.
fn table(objectives: &[Value]) -> Vec<String> {
    if objectives.is_empty() {
        return Vec::new();
    }
    let mut rows = vec![["OBJECTIVE", "TARGET", "LEFT"].map(str::to_owned).to_vec()];
    rows[0].extend(WINDOWS.map(|window| format!("BURN {window}")));
    rows[0].push("LASTS".to_owned());
    for objective in objectives {
        let burns = objective["burns"].as_array();
        let burn = |window: &str| {
            let found = burns
                .into_iter()
                .flatten()
                .find(|burn| burn["window"] == window);
            let rate = found.and_then(|burn| burn["burn_rate"].as_f64());
            // Without results nothing is known.
            rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.2}"))
        };
        let mut row = vec![
            name(objective),
            format!(
                "{} % in {}",
                trimmed(number(&objective["target"]) * 100.0),
                objective["window"].as_str().unwrap_or("")
            ),
            format!("{:.1} %", number(&objective["budget_remaining"]) * 100.0),
        ];
        row.extend(WINDOWS.map(burn));
        row.push(lasts(objective));
        rows.push(row);
    }
    let columns = rows[0].len();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let wide = rows.iter().map(|row| row[column].chars().count());
            wide.max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(|(column, (cell, width))| {
                // Numbers end below each other, words begin there.
                if (2..columns - 1).contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Whose promise it is, and of what.
fn name(objective: &Value) -> String {
    let text = |key: &str| objective[key].as_str().unwrap_or("");
    let probe = objective["probe"]
        .as_str()
        .map_or_else(String::new, |probe| format!(" {probe}"));
    format!(
        "{}/{}{probe} {}",
        text("namespace"),
        text("release"),
        text("objective")
    )
}

/// When the budget is spent at the burn of the last hour.
fn lasts(objective: &Value) -> String {
    match objective["lasts_s"].as_f64() {
        _ if number(&objective["budget_remaining"]) <= 0.0 => "it is spent".to_owned(),
        None => "nothing is being spent".to_owned(),
        Some(seconds) => format!("{} at the burn of 1h", span(seconds)),
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

/// When people are told, and what the revisions spent: indented below the name, where there is any of it.
fn details(objective: &Value, tiers: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if tiers {
        for tier in objective["tiers"].as_array().into_iter().flatten() {
            let fires = tier["outage_fires_after_s"].as_f64();
            let fires = fires.map_or_else(
                || "never".to_owned(),
                |seconds| format!("after {}", span(seconds)),
            );
            lines.push(format!(
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
            ));
        }
    }
    for spent in objective["revisions"].as_array().into_iter().flatten() {
        lines.push(format!(
            "  revision {}: {:.2} % of the budget ({} of {} results bad)",
            spent["revision"],
            number(&spent["budget_spent"]) * 100.0,
            spent["failure"],
            spent["results"]
        ));
    }
    if !lines.is_empty() {
        lines.splice(0..0, [String::new(), name(objective)]);
    }
    lines
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

#[cfg(test)]
mod tests {
    use super::*;

    fn objective(release: &str, remaining: f64, lasts: Option<f64>, burn: Option<f64>) -> Value {
        json!({
            "namespace": "shop", "release": release, "probe": null, "objective": "availability",
            "target": 0.999, "window": "30d", "budget_remaining": remaining, "lasts_s": lasts,
            "burns": [{"window": "5m", "burn_rate": burn}, {"window": "1h", "burn_rate": 0.5}],
            "tiers": [{"tier": "page-quick", "factor": 14.4, "long": "1h", "short": "5m",
                       "outage_fires_after_s": 52.0, "firing": true}],
            "revisions": [{"revision": 7, "budget_spent": 0.0123, "failure": 3, "results": 900}],
        })
    }

    #[test]
    fn the_table_is_aligned_and_says_when_the_budget_ends() {
        let lines = table(&[
            objective("web", 0.981, Some(93_600.0), Some(12.0)),
            objective("a-longer-name", -0.2, Some(0.0), None),
            objective("quiet", 1.0, None, Some(0.0)),
        ]);
        assert_eq!(
            lines,
            [
                "OBJECTIVE                        TARGET            LEFT  BURN 5m  BURN 1h  BURN 6h  BURN 3d  LASTS",
                "shop/web availability            99.9 % in 30d   98.1 %    12.00     0.50        -        -  1day 2h at the burn of 1h",
                "shop/a-longer-name availability  99.9 % in 30d  -20.0 %        -     0.50        -        -  it is spent",
                "shop/quiet availability          99.9 % in 30d  100.0 %     0.00     0.50        -        -  nothing is being spent",
            ]
        );
        assert!(table(&[]).is_empty());
    }

    #[test]
    fn tiers_and_revisions_stand_below_the_name() {
        let one = objective("web", 0.9, None, None);
        assert_eq!(
            details(&one, true),
            [
                "",
                "shop/web availability",
                "  page-quick    burn over 14.4 in 1h and 5m; of a total outage people hear after 52s; fires now",
                "  revision 7: 1.23 % of the budget (3 of 900 results bad)",
            ]
        );
        assert_eq!(details(&one, false).len(), 3);
    }
}
