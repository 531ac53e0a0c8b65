//! How the revisions of a release are analyzed: `[release.analysis]`.

use std::time::Duration;

use super::combinations::{self, AnalysisTimes, WrittenKeys};
use super::settings::BakeAction;
use super::tables::written;
use super::value_reader::{ConfigTable, ConfigValue, ReaderNotes};
use crate::core::analysis::Rule;
use crate::core::rollout::Mode;

const DURATION: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));
const MAX_DURATION: (Duration, Duration) =
    (Duration::from_secs(30), Duration::from_secs(24 * 3600));
const READY_WITHIN: (Duration, Duration) =
    (Duration::from_secs(30), Duration::from_secs(24 * 3600));
const LATENCY: [(&str, bool); 2] = [("notify", false), ("rollback", true)];
const BAKES: [(&str, BakeAction); 3] = [
    ("notify", BakeAction::Notify),
    ("rollback", BakeAction::Rollback),
    ("off", BakeAction::Off),
];
/// The least leaves some time after the shortest analysis; no bake is needed that outlasts a week.
const BAKE_FOR: (Duration, Duration) =
    (Duration::from_secs(60), Duration::from_secs(7 * 24 * 3600));
const INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));
const HOLD: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(600));
/// Percentage points.
const INCREASE: (f64, f64) = (0.5, 50.0);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Reads the table `analysis` where there is one: the rule, and what follows a bake that fails.
pub(super) fn analysis(
    release: &mut ConfigTable,
    mode: Mode,
    notes: &mut ReaderNotes,
) -> (Rule, BakeAction) {
    let mut table = match release.take("analysis") {
        Some(item) => ConfigTable::of(item, notes),
        None => ConfigTable::empty(release.path_of("analysis")),
    };
    let written_keys = WrittenKeys::of(&table);
    let built_in = Rule::default();
    let (times, increase) = times(&mut table, &built_in, notes);
    let latency = table
        .word("latency", &LATENCY, notes)
        .unwrap_or(built_in.latency_rejects);
    let (path, location) = (table.path.clone(), table.location.clone());
    // Where no revision is analyzed, there is nothing that could not work.
    if mode != Mode::Off {
        combinations::of_analysis(&path, &location, &written_keys, &times, notes);
    }
    let latency_word = if latency { "rollback" } else { "notify" };
    notes.defaults(
        &path,
        &[
            ("duration", &written(times.duration)),
            ("max_duration", &written(times.max_duration)),
            ("ready_within", &written(times.ready_within)),
            ("latency", &format!("\"{latency_word}\"")),
            ("bake", &format!("\"{}\"", times.bake.as_str())),
            ("bake_for", &written(times.bake_for)),
            ("interval", &written(times.interval)),
            ("error_rate_increase", &format!("\"{increase}%\"")),
            ("hold", &written(times.hold)),
        ],
    );
    table.end(notes);
    let duration = times.duration.as_secs_f64();
    let rule = Rule {
        interval_s: times.interval.as_secs_f64(),
        analysis_s: duration,
        // What follows the rollout is never longer than the analysis itself.
        after_complete_s: built_in.after_complete_s.min(duration),
        analysis_cap_s: times.max_duration.as_secs_f64().max(duration),
        ready_within_s: times.ready_within.as_secs_f64(),
        latency_rejects: latency,
        bake_s: times.bake_for.as_secs_f64(),
        hold_s: times.hold.as_secs_f64(),
        margin: increase / 100.0,
        // One endpoint alone needs more than all together, as in the built-in rule.
        endpoint_margin: built_in.endpoint_margin.max(increase / 100.0),
        ..built_in
    };
    (rule, times.bake)
}

/// The times, and the increase of the error rate in percentage points.
fn times(
    table: &mut ConfigTable,
    built_in: &Rule,
    notes: &mut ReaderNotes,
) -> (AnalysisTimes, f64) {
    let seconds = Duration::from_secs_f64;
    let duration = table
        .duration("duration", DURATION, notes)
        .unwrap_or(seconds(built_in.analysis_s));
    let times = AnalysisTimes {
        duration,
        max_duration: table
            .duration("max_duration", MAX_DURATION, notes)
            .unwrap_or(seconds(built_in.analysis_cap_s).max(duration)),
        ready_within: table
            .duration("ready_within", READY_WITHIN, notes)
            .unwrap_or(seconds(built_in.ready_within_s)),
        interval: table
            .duration("interval", INTERVAL, notes)
            .unwrap_or(DEFAULT_INTERVAL),
        hold: table
            .duration("hold", HOLD, notes)
            .unwrap_or(seconds(built_in.hold_s)),
        bake: table.word("bake", &BAKES, notes).unwrap_or_default(),
        bake_for: table
            .duration("bake_for", BAKE_FOR, notes)
            .unwrap_or(seconds(built_in.bake_s)),
    };
    let increase = table
        .text("error_rate_increase", notes)
        .and_then(|(text, item)| points(&text, &item, notes))
        .unwrap_or(built_in.margin * 100.0);
    (times, increase)
}

/// Percentage points, as `2%`.
fn points(text: &str, item: &ConfigValue, notes: &mut ReaderNotes) -> Option<f64> {
    let (least, most) = INCREASE;
    let number = text
        .strip_suffix('%')
        .map(str::trim)
        .and_then(|number| number.parse().ok());
    match number {
        Some(points) if points >= least && points <= most => Some(points),
        Some(_) | None => {
            notes.diagnostic(
                item,
                format!("{text:?} is not an increase in percentage points"),
                format!("write \"2%\"; from {least}% to {most}%"),
            );
            None
        }
    }
}
