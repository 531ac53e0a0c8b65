//! Settings that are valid one by one, but not together.

use std::time::Duration;

use humantime::format_duration as shown;

use super::settings::{BakeAction, ProbeConfig};
use super::source_location::SourceLocation;
use super::value_reader::{ConfigTable, ReaderNotes};
use crate::core::analysis::Rule;

/// Blocks full of failures that an alarm of the bake takes: its threshold, as the clip of a block allows.
const BAKE_BLOCKS: f64 = 5.0;

/// Fewer results of a probe in an analysis show little but an endpoint that is dead.
const FEW_RESULTS: f64 = 10.0;

/// Probes that a hint names.
const MAX_NAMED: usize = 3;

/// Keys of `[release.analysis]` that others can contradict.
const KEYS: [&str; 4] = ["max_duration", "ready_within", "hold", "bake_for"];

/// Where the keys that others can contradict were written, in the order of [`KEYS`].
pub(super) struct WrittenKeys([Option<SourceLocation>; 4]);

impl WrittenKeys {
    /// Before the keys are taken from the table.
    pub(super) fn of(table: &ConfigTable) -> Self {
        Self(KEYS.map(|key| table.location_of(key)))
    }

    fn location(&self, key: &str) -> Option<&SourceLocation> {
        let mut all = KEYS.iter().zip(&self.0);
        all.find(|(name, _)| **name == key)?.1.as_ref()
    }
}

/// The times of an analysis.
pub(super) struct AnalysisTimes {
    pub(super) duration: Duration,
    /// As written, also where it is shorter than `duration`.
    pub(super) max_duration: Duration,
    pub(super) ready_within: Duration,
    pub(super) interval: Duration,
    pub(super) hold: Duration,
    pub(super) bake: BakeAction,
    pub(super) bake_for: Duration,
}

/// What can never work is a mistake where it was written; what may not is a hint.
pub(super) fn of_analysis(
    path: &str,
    location: &SourceLocation,
    written: &WrittenKeys,
    times: &AnalysisTimes,
    notes: &mut ReaderNotes,
) {
    let AnalysisTimes {
        duration,
        max_duration,
        ..
    } = *times;
    let key = |key: &str| format!("{path}.{key}");
    if let Some(at) = written.location("max_duration")
        && max_duration < duration
    {
        let message = format!(
            "{} is shorter than the duration of {}",
            shown(max_duration),
            shown(duration)
        );
        let help = "make it at least as long as duration, or leave it out".to_owned();
        notes.complain(&key("max_duration"), at, message, Some(help));
        return;
    }
    if times.ready_within >= max_duration {
        let message = format!(
            "a workload that never becomes Ready would be rolled back after {}, and every analysis ends after {} at the latest",
            shown(times.ready_within),
            shown(max_duration)
        );
        let help = "make ready_within shorter than max_duration, or max_duration longer";
        match written.location("ready_within") {
            Some(at) => notes.complain(&key("ready_within"), at, message, Some(help.to_owned())),
            None => notes.hint(path, location, message, help),
        }
    }
    of_results(path, location, written, times, notes);
    let left = times.bake_for.saturating_sub(duration);
    let needed = Duration::from_secs_f64(BAKE_BLOCKS * Rule::default().bake_block_s);
    if times.bake != BakeAction::Off && left <= needed {
        let message = format!(
            "the bake ends {} after the shortest analysis, and errors show in it after more than {}: only restarts can raise an alarm",
            shown(left),
            shown(needed)
        );
        let at = written.location("bake_for").unwrap_or(location);
        let help = "make bake_for longer, or write bake = \"off\"";
        notes.hint(&key("bake_for"), at, message, help);
    }
}

/// Whether an analysis has the results that a verdict takes.
fn of_results(
    path: &str,
    location: &SourceLocation,
    written: &WrittenKeys,
    times: &AnalysisTimes,
    notes: &mut ReaderNotes,
) {
    let rule = Rule {
        interval_s: times.interval.as_secs_f64(),
        ..Rule::default()
    };
    let in_a_row = rule.hold(times.hold.as_secs_f64());
    let lasts = times.interval * in_a_row;
    let location = written.location("hold").unwrap_or(location);
    let message = format!(
        "an endpoint that is dead is found by {in_a_row} failures in a row, one each {}, which takes {}",
        shown(times.interval),
        shown(lasts)
    );
    let help = "make interval or hold shorter, or duration longer";
    let results = times.duration.as_secs_f64() / times.interval.as_secs_f64();
    if lasts > times.max_duration {
        let message = format!(
            "{message}, and every analysis ends after {} at the latest",
            shown(times.max_duration)
        );
        notes.complain(path, location, message, Some(help.to_owned()));
    } else if lasts > times.duration {
        let message = format!(
            "{message}: longer than the analysis of {}",
            shown(times.duration)
        );
        notes.hint(path, location, message, help);
    } else if results < FEW_RESULTS {
        let message = format!(
            "in an analysis of {} each probe has {results:.0} results: so few show little more than a dead endpoint",
            shown(times.duration)
        );
        notes.hint(path, location, message, help);
    }
}

/// Probes of one release, against its duration and against one another.
pub(super) fn of_probes<'a>(
    path: &str,
    location: &SourceLocation,
    watch: Duration,
    probes: impl Iterator<Item = &'a ProbeConfig> + Clone,
    notes: &mut ReaderNotes,
) {
    let few = |probe: &&ProbeConfig| probe.interval * 3 > watch;
    if let Some(names) = named(probes.clone().filter(few)) {
        let message = format!(
            "should a rate limit answer, probes are asked at their own interval, and {names} would have less than three results in an analysis of {}",
            shown(watch)
        );
        let help = "make duration longer, or the interval of these probes shorter";
        notes.hint(path, location, message, help);
    }
    let asks_pods = |probe: &&ProbeConfig| probe.pods.is_some();
    let Some(with) = named(probes.clone().filter(asks_pods)) else {
        return;
    };
    if let Some(without) = named(probes.filter(|probe| !asks_pods(probe))) {
        let message = format!(
            "pods are asked directly for {with}, and not for {without}: that is judged by the answers of its URL alone, and counts as asking every workload"
        );
        let help = "write pods = \"WORKLOAD\" at these probes as well, so that old pods can show what is not the revision's fault";
        notes.hint(path, location, message, help);
    }
}

/// The first of these probes by name, and how many there are beyond.
fn named<'a>(probes: impl Iterator<Item = &'a ProbeConfig>) -> Option<String> {
    let names: Vec<&str> = probes.map(|probe| probe.id.probe.as_str()).collect();
    let first = names.get(..MAX_NAMED).unwrap_or(&names).join(", ");
    match names.len() {
        0 => None,
        many if many > MAX_NAMED => Some(format!("{first} and {} more", many - MAX_NAMED)),
        _ => Some(first),
    }
}
